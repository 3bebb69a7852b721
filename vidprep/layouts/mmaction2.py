"""mmaction2: `data/NAME/` in its checkout, as its guides for the data sets describe; frames or (variant) videos.

Kinetics is laid out by class, the others are flat; ActivityNet's frames count from 0 and its classes are numbered in
the order of `action_name.csv`.
"""

from dataclasses import replace

from vidprep.layouts.types import Columns, Layout
from vidprep.types import FrameFormat

__all__ = ["LAYOUTS"]

KINETICS_FRAMES = FrameFormat(short_side=256, jpeg_quality=95, template="img_{:05d}.jpg")


def _kinetics(dataset: str) -> tuple[Layout, Layout]:
    frames = Layout(
        code="mmaction2",
        dataset=dataset,
        allows_spaces=False,
        base=f"data/{dataset}/rawframes_{{split}}",
        path="{class_name}/{video_id}",
        spelling="underscore",
        frames=KINETICS_FRAMES,
        list_file=f"data/{dataset}/{dataset}_{{split}}_list_rawframes.txt",
    )
    videos = replace(
        frames,
        variant="videos",
        base=f"data/{dataset}/videos_{{split}}",
        path="{class_name}/{video_id}{suffix}",
        frames=None,
        list_file=f"data/{dataset}/{dataset}_{{split}}_list_videos.txt",
        columns=("path", "label"),
    )
    return frames, videos


def _flat(dataset: str, folder: str, frames: FrameFormat) -> Layout:
    return Layout(
        code="mmaction2",
        dataset=dataset,
        allows_spaces=False,
        base=f"data/{folder}/rawframes",
        path="{video_id}",
        frames=frames,
        list_file=f"data/{folder}/{folder}_{{split}}_list_rawframes.txt",
    )


def _own(variant: str, columns: Columns, *, is_video: bool = False) -> Layout:
    """Lists of the user's own videos; names of frames are mmaction2's default."""
    return Layout(
        code="mmaction2",
        dataset="folder",
        allows_spaces=False,
        variant=variant,
        splits={"train": "train", "val": "val", "test": "test", "all": "all"},
        base="videos" if is_video else "rawframes",
        path="{video_id}",
        frames=None if is_video else KINETICS_FRAMES,
        list_file="{split}_list_videos.txt" if is_video else "{split}_list_rawframes.txt",
        columns=columns,
        max_labels=1000 if columns[-1] == "labels" else 1,
    )


SOMETHING_V2 = _flat("something_v2", "sthv2", FrameFormat(jpeg_quality=95, template="img_{:05d}.jpg"))

LAYOUTS = (
    *_kinetics("kinetics400"),
    *_kinetics("kinetics600"),
    *_kinetics("kinetics700"),
    _flat("something_v1", "sthv1", FrameFormat(template="{:05d}.jpg")),
    SOMETHING_V2,
    replace(
        SOMETHING_V2,
        variant="videos",
        base="data/sthv2/videos",
        path="{video_id}{suffix}",
        frames=None,
        list_file="data/sthv2/sthv2_{split}_list_videos.txt",
        columns=("path", "label"),
    ),
    _flat("jester", "jester", FrameFormat(template="{:05d}.jpg")),
    Layout(
        code="mmaction2",
        dataset="activitynet",
        allows_spaces=False,
        base="data/ActivityNet/rawframes",
        path="v_{video_id}",
        frames=FrameFormat(short_side=256, jpeg_quality=95, template="img_{:05d}.jpg", first_index=0),
        list_file="data/ActivityNet/anet_{split}_video.txt",
        class_order="classes_mmaction2.txt",
        note="Frames count from 0 (start_index=0); a video of two classes is listed with the first.",
    ),
    _own("", ("path", "frames", "label")),
    _own("offset", ("path", "offset", "frames", "label")),
    _own("multi_label", ("path", "frames", "labels")),
    _own("videos", ("path", "label"), is_video=True),
    _own("videos_multi_label", ("path", "labels"), is_video=True),
)
