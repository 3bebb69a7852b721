"""TAPS: frames below its DATA_PATH; lists in its checkout (`data/...`), with CRLF line ends and a final newline.

Its ActivityNet and Mini-Kinetics frames follow FrameExit's recipe: `-r N` (a 10 s clip at 5 fps has 52 frames).
"""

from dataclasses import replace

from vidprep.layouts.types import FFMPEG_Q2, Layout
from vidprep.types import FrameFormat

__all__ = ["LAYOUTS"]

COPY_LISTS = "Copy `data/` over that of the TAPS checkout; its DATA_PATH is the folder given as --out."

SOMETHING_V2 = Layout(
    code="taps",
    dataset="something_v2",
    base="something2something-v2/frames",
    path="{split}/{video_id}",
    frames=FrameFormat(jpeg_quality=FFMPEG_Q2, template="{:05d}.jpg"),
    list_file="data/somethingv2/{split}_videofolder.txt",
    line_end="\r\n",
    class_file="data/somethingv2/classInd.txt",
    class_line="{index},{name}",
    note=COPY_LISTS,
)

LAYOUTS = (
    Layout(
        code="taps",
        dataset="activitynet",
        base="ActivityNet1_3/Frames_aug23/train_val",
        path="v_{video_id}",
        frames=FrameFormat(
            fps=1, rate_mode="output", short_side=350, jpeg_quality=FFMPEG_Q2, template="image_{:05d}.jpg"
        ),
        list_file="data/ActivityNet/actnet_{split}_videofolder_aug23.txt",
        separators=(",",),
        line_end="\r\n",
        class_file="data/ActivityNet/classInd.txt",
        class_line="{index},{name}",
        note=f"A video of two classes is listed with the first. {COPY_LISTS}",
    ),
    Layout(
        code="taps",
        dataset="mini_kinetics",
        base="Kinetics_400/mini_kinetics_frames_aug23",
        path="{split}/{class_name}/{video_id}",
        frames=FrameFormat(
            fps=5, rate_mode="output", short_side=256, jpeg_quality=FFMPEG_Q2, template="image_{:05d}.jpg"
        ),
        list_file="data/kinetics/mini_{split}_videofolder_aug23.txt",
        line_end="\r\n",
        class_file="data/kinetics/minik_classInd.txt",
        note=COPY_LISTS,
    ),
    SOMETHING_V2,
    replace(
        SOMETHING_V2,
        variant="half1",
        list_file="data/somethingv2_half1/{split}_videofolder.txt",
        class_file="data/somethingv2_half1/classInd.txt",
        class_order="classes_half1.txt",
    ),
    Layout(
        code="taps",
        dataset="jester",
        splits={"train": "train", "val": "validation"},
        base="jester/20bn-jester-v1",
        path="{video_id}",
        frames=FrameFormat(template="{:05d}.jpg"),
        list_file="data/jester/{split}_split.txt",
        line_end="\r\n",
        class_file="data/jester/classInd.txt",
        class_line="{index},{name}",
        note=COPY_LISTS,
    ),
)
