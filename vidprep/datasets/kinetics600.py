"""Kinetics-600: 600 human actions, one label a clip, clips of 10 s cut from YouTube."""

from collections.abc import Sequence
from pathlib import Path

from vidprep.datasets import kinetics
from vidprep.splits import Split
from vidprep.types import DatasetInfo, FrameFormat

__all__ = ["INFO", "build_splits"]

INFO = DatasetInfo(
    name="kinetics600",
    title="Kinetics-600",
    description="Human actions, one label a clip of 10 s, cut from YouTube by DeepMind; hosted by CVDF.",
    task="single_label",
    num_classes=600,
    splits={"train": 392_622, "val": 30_000, "test": 72_924},
    video_paths=kinetics.VIDEO_PATHS,
    frames=FrameFormat(short_side=256, template="img_{:05d}.jpg"),
    access="open",
    # the .csv files of train and val beside these are incomplete
    files=kinetics.offered_files(
        "600", "k600", annotations=[("train.txt", "train"), ("val.txt", "val"), ("test.csv", "test")]
    ),
    archives=("part_*.tar.gz",),
    traps=(
        "CVDF's train.csv and val.csv are incomplete (15 of 29 thousand val clips): take train.txt and val.txt.",
        "One class has a lower-case letter, `passing american football (not in game)`, beside `passing American "
        "football (in game)`: both are kept, and sorted with case.",
        "32 classes of Kinetics-400 are missing here (renamed, split or gone), and 4 of these in Kinetics-700.",
        "Labels are never quoted, test has none; another file, kinetics600_holdout_test.csv, is no part of test.",
        "About 366,000 train and 28,000 val clips can still be had.",
    ),
    instructions=(
        "Fetch the archives listed at https://s3.amazonaws.com/kinetics/600/{train,val,test}/k600_{...}_path.txt and "
        "unpack them to ROOT/{train,val,test}; fetch https://s3.amazonaws.com/kinetics/600/annotations/"
        "{train.txt,val.txt,test.csv} and run `vidprep split kinetics600 --annotations FILE --data-root ROOT`."
    ),
    homepage="https://github.com/cvdfoundation/kinetics-dataset",
    licence="annotations CC BY 4.0; videos under their uploaders' rights",
    paper="https://arxiv.org/abs/1808.01340",
)


def build_splits(annotations: Sequence[Path]) -> dict[str, Split]:
    """All splits that official annotation files hold; see `kinetics.build_splits`."""
    return kinetics.build_splits(annotations, info=INFO)
