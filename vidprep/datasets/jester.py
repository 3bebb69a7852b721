"""Jester (20BN-Jester v1): hand gestures in front of a webcam, one label a clip, published as JPEG frames."""

from collections.abc import Sequence
from pathlib import Path
from types import MappingProxyType

from vidprep.datasets import labelled_ids
from vidprep.datasets.something_v2 import QUALCOMM
from vidprep.splits import Split
from vidprep.types import DatasetInfo, FrameFormat, RemoteFile

__all__ = ["INFO", "build_splits"]

# As published by a third party's loader, not by Qualcomm.
PARTS = (
    "477d047b06dca56a3ceb09026840afc5aa1a3f3318e4901dc772e51d43a1d8a7",
    "93b840e531c4d785d33f9a334b8448c21d90895dad144bdf27555c1e2cec2f31",
    "03bfb430c0be0c70517de0cd0efb09a87e6e7c6e4c4d5d7600ead7c76ef983e8",
)

INFO = DatasetInfo(
    name="jester",
    title="Jester (20BN-Jester v1)",
    description="Hand gestures in front of a webcam, 27 classes, as JPEG frames of 100 px at 12 fps, 12 to 70 a clip.",
    task="single_label",
    num_classes=27,
    splits={"train": 118_562, "val": 14_787, "test": 14_743},
    video_paths=("20bn-jester-v1/{video_id}", "**/{video_id}"),
    media="frames",
    frames=FrameFormat(fps=12.0, template="{:05d}.jpg"),
    access="form",
    files=tuple(
        RemoteFile(
            url=f"{QUALCOMM}/Jester/20bnjester-v1-{part:02d}",  # no hyphen after 20bn
            sha256=sha256,
            filename=f"archives/20bnjester-v1-{part:02d}",
            kind="archive",
        )
        for part, sha256 in enumerate(PARTS)
    ),
    archives=(
        "20bnjester-v1-??",
        "20bn-jester-v1-??",
        "20bn-jester-v1-??.zip",
        "20bn-jester-download-package-labels.zip",
    ),
    flip_pairs=MappingProxyType({0: 1, 1: 0, 6: 7, 7: 6}),
    traps=(
        "Its classes have two numberings: that of labels.csv (TAPS, OpenMMLab; taken here, 0 is Swiping Left) and "
        "sorted order (TSM, Uni-AdaFocus; 0 is Doing other things).",
        "A copy of labels.csv that swaps 4 and 5 circulates.",
        "A flip changes the class: 0 and 1, 6 and 7 are swapped, as in TAPS; turning clockwise (14, 15) is not.",
        "4,807 training clips have fewer than 32 frames, 15 fewer than 16.",
        "The files are called 20bnjester or 20bn-jester; older packings are zips of the parts with an .md5 beside.",
        "Test labels came later, in test-answers.csv.",
    ),
    instructions=(
        "Sign the research licence at https://www.qualcomm.com/developer/software/jester-dataset; put the parts "
        "20bnjester-v1-?? (zipped or not) and the labels into one folder DIR; unpacked, the frames lie in "
        "ROOT/20bn-jester-v1/ID/00001.jpg. Then `vidprep split jester --annotations jester-v1-train.csv --annotations "
        "jester-v1-validation.csv --data-root ROOT`."
    ),
    homepage="https://www.qualcomm.com/developer/software/jester-dataset",
    licence="Qualcomm research licence: internal, non-commercial",
    paper=(
        "https://openaccess.thecvf.com/content_ICCVW_2019/html/HANDS/"
        "Materzynska_The_Jester_Dataset_A_Large-Scale_Video_Dataset_of_Human_Gestures_ICCVW_2019_paper.html"
    ),
)

KNOWN = {"34870": 24, "56557": 7, "9223": 20, "107090": 10}
"""Classes of the first clips of train and val, in the order of labels.csv."""


def build_splits(annotations: Sequence[Path]) -> dict[str, Split]:
    """The splits that official files or lists of training codes hold; see `labelled_ids.build_splits`."""
    return labelled_ids.build_splits(annotations, info=INFO, known=KNOWN)
