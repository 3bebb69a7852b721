"""STA (VideoMAE's loader): video files in lists of `path label`, whole paths, one space, read by pandas.

It reads train.csv, val.csv and test.csv; the last is val again, for the test of many views.

A space or a quote in a path breaks the labels in silence, and files under 1,024 bytes are replaced by others: such
paths and files are refused.
"""

from vidprep.layouts.types import Layout

__all__ = ["LAYOUTS"]

LAYOUTS = (
    Layout(
        code="sta",
        dataset="kinetics400",
        path="{split}/{class_name}/{video_id}{suffix}",
        spelling="underscore",
        frames=None,
        list_file="{split}.csv",
        copies={"val": ("test.csv",)},
        columns=("path", "label"),
        allows_spaces=False,
        is_absolute=True,
        note="STA was trained on copies with a short side of 320 pixels; the files are linked as they are.",
    ),
    Layout(
        code="sta",
        dataset="something_v2",
        path="{video_id}.mp4",
        frames=None,
        video_height=240,
        list_file="{split}.csv",
        copies={"val": ("test.csv",)},
        columns=("path", "label"),
        allows_spaces=False,
        is_absolute=True,
    ),
)
