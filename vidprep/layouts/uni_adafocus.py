"""Uni-AdaFocus (and AdaFuse, AR-Net): four roots, one for each family of data sets; lists beside the frames.

ActivityNet, FCVID and Mini-Kinetics are its `<data_dir>`; the Something-Something and Jester sets (its TSM part) and
Kinetics-400 (its X3D part) lie below its `ROOT`. The frames of the first are made by a script that scales to a height
of 360 and leaves FFmpeg's default quality; TSM's lists lack the final newline and number the classes by name.
"""

from dataclasses import replace

from vidprep.layouts.types import FFMPEG_DEFAULT_QUALITY, FFMPEG_Q2, Layout
from vidprep.types import FrameFormat

__all__ = ["LAYOUTS"]

SCRIPT = FrameFormat(height=360, jpeg_quality=FFMPEG_DEFAULT_QUALITY, template="image_{:05d}.jpg")

SOMETHING_V1 = Layout(
    code="uni_adafocus",
    dataset="something_v1",
    base="something-something-v1/20bn-something-something-v1",
    path="{video_id}",
    also_read=("something/v1/img/{video_id}",),
    frames=FrameFormat(template="{:05d}.jpg"),
    list_file="something-something-v1/{split}_videofolder.txt",
    has_final_newline=False,
    class_file="something-something-v1/category.txt",
    class_has_final_newline=False,
    class_order="sorted",
)

LAYOUTS = (
    Layout(
        code="uni_adafocus",
        dataset="activitynet",
        base="frames",
        path="v_{video_id}",
        frames=SCRIPT,
        list_file="actnet_{split}_split.txt",
        columns=("path", "frames", "labels"),
        separators=(",",),
        max_labels=3,
        class_file="classInd.txt",
        class_line="{index},{name}",
    ),
    Layout(
        code="uni_adafocus",
        dataset="fcvid",
        splits={"train": "train", "val": "val", "test": "val"},
        base="frames",
        path="{video_id}",
        frames=replace(SCRIPT, fps=1, rate_mode="output"),
        list_file="fcvid_{split}_split.txt",
        columns=("path", "frames", "labels"),
        separators=(",",),
        max_labels=3,
        class_file="classInd.txt",
        class_line="{index},{name}",
        note="The test half of FCVID is what the code calls val.",
    ),
    Layout(
        code="uni_adafocus",
        dataset="mini_kinetics",
        path="images/{split}/{class_name}/{video_id}",
        frames=replace(SCRIPT, template="img_{:05d}.jpg"),
        list_file="mini_{split}_videofolder.txt",
        separators=(" ", ";"),
        has_final_newline=False,
        class_file="minik_classInd.txt",
    ),
    SOMETHING_V1,
    replace(
        SOMETHING_V1,
        variant="adafuse",
        class_order="own",
        note="The classes are numbered as in the labels file of the data set, as AdaFuse has them; TSM sorts them.",
    ),
    Layout(
        code="uni_adafocus",
        dataset="something_v2",
        base="something-something-v2/20bn-something-something-v2-frames",
        path="{video_id}",
        frames=FrameFormat(height=256, jpeg_quality=FFMPEG_Q2, template="{:06d}.jpg"),
        list_file="something-something-v2/{split}_videofolder.txt",
        has_final_newline=False,
        class_file="something-something-v2/category.txt",
        class_has_final_newline=False,
        class_order="sorted",
    ),
    Layout(
        code="uni_adafocus",
        dataset="jester",
        base="jester/20bn-jester-v1",
        path="{video_id}",
        frames=FrameFormat(template="{:05d}.jpg"),
        list_file="jester/{split}_videofolder.txt",
        has_final_newline=False,
        class_file="jester/category.txt",
        class_has_final_newline=False,
        class_order="sorted",
        note="The code looks for jester/category.txt in its working directory: copy it there.",
    ),
    Layout(
        code="uni_adafocus",
        dataset="kinetics400",
        base="kinetics/images",
        path="{class_name}/{video_id}",
        spelling="tsm",
        frames=FrameFormat(height=331, jpeg_quality=FFMPEG_Q2, template="img_{:05d}.jpg"),
        list_file="kinetics/labels/{split}_videofolder.txt",
        has_final_newline=False,
        note="The code joins ROOT by plain concatenation, so give it with a final /; "
        "it reads kinetics/labels/ from its working directory: copy the folder there.",
    ),
)
