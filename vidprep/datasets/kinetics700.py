"""Kinetics-700 (2020): 700 human actions, one label a clip, clips of about 10 s cut from YouTube."""

from collections.abc import Sequence
from pathlib import Path

from vidprep.datasets import kinetics
from vidprep.splits import Split
from vidprep.types import DatasetInfo, FrameFormat

__all__ = ["INFO", "build_splits"]

INFO = DatasetInfo(
    name="kinetics700",
    title="Kinetics-700 (2020)",
    description="Human actions, one label a clip of about 10 s, cut from YouTube by DeepMind; hosted by CVDF.",
    task="single_label",
    num_classes=700,
    splits={"train": None, "val": None, "test": None},
    video_paths=kinetics.VIDEO_PATHS,
    frames=FrameFormat(short_side=256, template="img_{:05d}.jpg"),
    access="open",
    files=kinetics.offered_files(
        "700_2020", "k700_2020", annotations=[("train.csv", "train"), ("val.csv", "val"), ("test.csv", "test")]
    ),
    archives=("k700_train_*.tar.gz", "k700_val_*.tar.gz", "k700_test_*.tar.gz"),
    traps=(
        "Two releases bear this name: 2019 (545,317 train, 35,000 val) and 2020, this one, which CVDF hosts.",
        "Train archives are one a class in alphabetical order and unpack to class folders, unlike 400 and 600.",
        "About 536,500 train clips can still be had; about 5 % of test is shorter than 9 s, genuinely.",
        "21 class names hold brackets or an apostrophe.",
        "Never mix releases: val of Kinetics-400 is largely inside train of this one.",
    ),
    instructions=(
        "Fetch the archives listed at https://s3.amazonaws.com/kinetics/700_2020/{train,val,test}/k700_2020_{...}"
        "_path.txt and unpack them to ROOT/{train,val,test}; fetch https://s3.amazonaws.com/kinetics/700_2020/"
        "annotations/{train,val,test}.csv and run `vidprep split kinetics700 --annotations FILE --data-root ROOT`."
    ),
    homepage="https://github.com/cvdfoundation/kinetics-dataset",
    licence="annotations CC BY 4.0; videos under their uploaders' rights",
    paper="https://arxiv.org/abs/2010.10864",
)


def build_splits(annotations: Sequence[Path]) -> dict[str, Split]:
    """All splits that official annotation files hold; see `kinetics.build_splits`."""
    return kinetics.build_splits(annotations, info=INFO)
