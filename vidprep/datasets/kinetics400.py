"""Kinetics-400: 400 human actions, one label a clip, clips of about 10 s cut from YouTube."""

from collections.abc import Sequence
from pathlib import Path

from vidprep.datasets import kinetics
from vidprep.datasets.annotations import label_key
from vidprep.splits import Split
from vidprep.types import DatasetInfo, FrameFormat, RemoteFile

__all__ = ["INFO", "build_splits", "label_key"]

INFO = DatasetInfo(
    name="kinetics400",
    title="Kinetics-400",
    description="Human actions, one label a clip of about 10 s, cut from YouTube by DeepMind; hosted by CVDF.",
    task="single_label",
    num_classes=400,
    splits={"train": 246_534, "val": 19_906, "test": 39_805},
    video_paths=kinetics.VIDEO_PATHS,
    frames=FrameFormat(short_side=256, template="img_{:05d}.jpg"),
    access="open",
    files=(
        *kinetics.offered_files(
            "400", "k400", annotations=[("train.csv", "train"), ("val.csv", "val"), ("test.csv", "test")]
        ),
        RemoteFile(
            url="https://s3.amazonaws.com/kinetics/400/replacement_for_corrupted_k400.tgz",
            filename="archives/replacement_for_corrupted_k400.tgz",
            kind="archive",
            split="train",
        ),
    ),
    archives=("part_*.tar.gz", "replacement_for_corrupted_k400.tgz"),
    traps=(
        "No two copies hold the same clips (train about 234,600 to 241,700, val 19,404 to 19,906): say which you have.",
        "About 1,392 training clips were corrupt; their replacements are taken first, about 80 stay broken.",
        "Class folders are spelt in at least four ways; names are matched by letters and digits alone.",
        "Ids may begin with `-` and hold `_`: a clip is {id}_{start:06d}_{end:06d}, cut from the right.",
        "DeepMind's files call val `validate`; some copies write times as floats or lack is_cc.",
        "An archive (train/part_120) was once a plain tar called .tar.gz.",
        "Never mix releases: val of Kinetics-400 is largely inside train of Kinetics-700.",
    ),
    instructions=(
        "Fetch the archives listed at https://s3.amazonaws.com/kinetics/400/{train,val,test}/k400_{...}_path.txt and "
        "unpack them to ROOT/{train,val,test}; fetch https://s3.amazonaws.com/kinetics/400/annotations/"
        "{train,val,test}.csv and run `vidprep split kinetics400 --annotations FILE --data-root ROOT`."
    ),
    homepage="https://github.com/cvdfoundation/kinetics-dataset",
    licence="annotations CC BY 4.0; videos under their uploaders' rights",
    paper="https://arxiv.org/abs/1705.06950",
)


def build_splits(annotations: Sequence[Path]) -> dict[str, Split]:
    """All splits that official annotation files hold; see `kinetics.build_splits`."""
    return kinetics.build_splits(annotations, info=INFO)
