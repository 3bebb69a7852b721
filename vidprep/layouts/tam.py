"""TAM: everything below its ROOT; frames are PNG images of the video's own size where it extracts them itself."""

from dataclasses import replace

from vidprep.layouts.types import Layout
from vidprep.types import FrameFormat

__all__ = ["LAYOUTS"]

KINETICS400 = Layout(
    code="tam",
    dataset="kinetics400",
    base="k400",
    path="frames/{video_id}",
    frames=FrameFormat(template="img_{:05d}.png"),
    list_file="k400/label/k400_{split}_list.txt",
    has_final_newline=False,
    class_file="k400/label/kinetics_label_map.txt",
    class_has_final_newline=False,
)

LAYOUTS = (
    KINETICS400,
    replace(
        KINETICS400,
        variant="videos",
        path="{split}/part_{part}/{video_id}{suffix}",
        also_read=("Kinetics400/{split}/part_{part}/{video_id}{suffix}", "{split}/{video_id}{suffix}"),
        frames=None,
        note="Frames are decoded while training; the frame counts of the list are those that decode.",
    ),
    Layout(
        code="tam",
        dataset="kinetics600",
        base="k600",
        path="frames/{video_id}",
        frames=FrameFormat(template="img_{:05d}.jpg"),
        list_file="k600/label/k600_{split}.txt",
        has_final_newline=False,
    ),
    Layout(
        code="tam",
        dataset="something_v1",
        base="sth-v1/20bn-something-something-v1",
        path="{video_id}",
        frames=FrameFormat(template="{:05d}.jpg"),
        list_file="sth-v1/label/{split}.txt",
        has_final_newline=False,
        class_file="sth-v1/label/category.txt",
        class_has_final_newline=False,
        class_order="sorted",
    ),
    Layout(
        code="tam",
        dataset="something_v2",
        base="sth-v2/sth-v2-frames",
        path="{video_id}",
        frames=FrameFormat(template="img_{:05d}.png"),
        list_file="sth-v2/label/{split}.txt",
        has_final_newline=False,
        class_file="sth-v2/label/category.txt",
        class_has_final_newline=False,
        class_order="sorted",
    ),
    Layout(
        code="tam",
        dataset="jester",
        base="jester/20bn-jester-v1",
        path="{video_id}",
        frames=FrameFormat(template="{:05d}.jpg"),
        list_file="jester/{split}_videofolder.txt",
        has_final_newline=False,
        class_file="jester/category.txt",
        class_has_final_newline=False,
        class_order="sorted",
        note="The code does not set the number of classes of Jester (27).",
    ),
)
