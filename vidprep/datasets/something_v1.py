"""Something-Something V1: hands acting on objects after 174 templates, one label a clip, published as JPEG frames."""

from collections.abc import Sequence
from pathlib import Path
from types import MappingProxyType

from vidprep.datasets import labelled_ids
from vidprep.splits import Split
from vidprep.types import DatasetInfo, FrameFormat

__all__ = ["INFO", "build_splits"]

INFO = DatasetInfo(
    name="something_v1",
    title="Something-Something V1",
    description="Crowd-acted actions of hands on objects, the 174 templates of V2, as JPEG frames of 100 px at 12 fps.",
    task="single_label",
    num_classes=174,
    splits={"train": 86_017, "val": 11_522, "test": 10_960},
    video_paths=("20bn-something-something-v1/{video_id}", "**/{video_id}"),
    media="frames",
    frames=FrameFormat(fps=12.0, template="{:05d}.jpg"),
    access="form",
    archives=("20bn-something-something-v1-??", "20bn-something-something-v1-??.zip"),
    # pushing and pulling something from left to right <-> from right to left
    flip_pairs=MappingProxyType({30: 41, 41: 30, 66: 52, 52: 66}),
    traps=(
        "Its classes have two numberings: that of labels.csv (OpenMMLab, AdaFuse; taken here, 0 is Holding something) "
        "and sorted order (TSM, Uni-AdaFocus; equal to V2's).",
        "The official page is gone; only copies circulate.",
        "A flip changes the class of pulling and pushing from left to right.",
        "The names of its classes are those of V2, the videos are not.",
    ),
    instructions=(
        "The official page is gone; with a copy, join the parts (`cat 20bn-something-something-v1-?? | tar zx`), so "
        "that the frames lie in ROOT/20bn-something-something-v1/ID/00001.jpg, and run `vidprep split something_v1 "
        "--annotations something-something-v1-train.csv --annotations something-something-v1-validation.csv "
        "--data-root ROOT`."
    ),
    homepage="https://www.qualcomm.com/developer/software/something-something-v-2-dataset",
    licence="Qualcomm (20BN) research licence: internal, non-commercial",
    paper="https://arxiv.org/abs/1706.04261",
)

KNOWN = {"100218": 31, "48032": 79, "85": 90, "1753": 108}
"""Classes of the first clips of train and val, by AdaFuse's lists, in the order of labels.csv."""


def build_splits(annotations: Sequence[Path]) -> dict[str, Split]:
    """The splits that official files or lists of training codes hold; see `labelled_ids.build_splits`."""
    return labelled_ids.build_splits(annotations, info=INFO, known=KNOWN)
