"""What a layout is: where one code base expects the frames and lists of one data set, and how they are written."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

from vidprep.errors import UsageError
from vidprep.splits import Split, read_classes
from vidprep.types import FrameAnnotation, FrameFormat, Video

__all__ = [
    "FFMPEG_DEFAULT_QUALITY",
    "FFMPEG_Q2",
    "Columns",
    "Entry",
    "Layout",
    "ReadBoxes",
    "Spelling",
    "class_folder",
    "describe_frames",
]

FFMPEG_Q2 = 95
"""JPEG quality in place of ffmpeg's `-q:v 2` (and 0 and 1, which are the same): a little finer, so that nothing is
lost. Measured over 14 frames of two videos at height 360, `-q:v 2` loses as much as quality 82 to 90."""
FFMPEG_DEFAULT_QUALITY = 15
"""In place of ffmpeg without -q: it sets out finer and is there after some ten frames (30.3 to 32.5 dB, 5 to 10 kB)."""

Columns = tuple[Literal["path", "offset", "frames", "label", "labels"], ...]
"""Of a line: `path` first, `label` (one class) or `labels` (one or more) last."""
ReadBoxes = Callable[[Video], Sequence[FrameAnnotation]]
"""The boxes of all frames of a video."""
Spelling = Literal["as_is", "underscore", "tsm"]
"""Class names as folders: with spaces; spaces as `_` (OpenMMLab); the same less quotes and brackets (TSM, TAM)."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One video of a list."""

    video: Video
    row: int
    """Its position in the split, from 0."""
    path: str
    """As the list names it."""
    num_frames: int
    labels: tuple[int, ...]
    """In the code base's numbers."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Where one code base expects the frames and lists of one data set, and how they are written.

    Templates may use {split} (the code base's name), {video_id}, {class_name} (spelt as `spelling` says), {suffix} (of
    the video file), {row} (position in the split) and {part} (a thousand videos each).
    """

    code: str
    """Name of the code base: taps, uni_adafocus, tam, rgtp, sta, mmaction2."""
    dataset: str
    """vidprep's name of the data set."""
    variant: str = ""
    """Tells layouts of one code base and data set apart; "" is the usual one."""
    splits: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({"train": "train", "val": "val"}))
    """vidprep's name of a split -> the code base's."""
    frames: FrameFormat | None
    """How frames are extracted and named; None: the list names video files."""
    base: str = ""
    """Folder below the root that the paths of the list lie in; may use {split}."""
    path: str
    """Folder of frames, or video file, of one video below `base`; what the list names."""
    also_read: tuple[str, ...] = ()
    """Other forms of `path` in lists that circulate."""
    spelling: Spelling = "as_is"
    list_file: str
    """Below the root; may use {split}."""
    copies: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: MappingProxyType({}))
    """The code base's split -> further files with the same content as `list_file`."""
    columns: Columns = ("path", "frames", "label")
    separators: tuple[str, ...] = (" ",)
    """The first is written, all are read."""
    line_end: Literal["\n", "\r\n"] = "\n"
    has_final_newline: bool = True
    allows_spaces: bool = True
    """The code cuts lines from the right; else a space in a path would break its labels."""
    is_absolute: bool = False
    """The list names whole paths, not paths below `base`."""
    max_labels: int = 1
    """1: a video of several classes is listed with the first; more: a video that has more still is refused."""
    class_file: str = ""
    """Below the root; "" where the code base reads none."""
    class_has_final_newline: bool = True
    class_line: Literal["{name}", "{index},{name}"] = "{name}"
    class_order: str = "own"
    """How classes are numbered: "own" as in vidprep, "sorted" by name, or as in that file of the data set's folder in
    splits/ (videos of classes that are not in it are left out)."""
    video_height: int | None = None
    """Of video files: re-encoded as H.264 MP4 of this height; None: linked as they are."""
    markers: tuple[str, ...] = ()
    """Empty files that tell the code base that a step is done."""
    write_list: Callable[[Split, Sequence[Entry], ReadBoxes | None], str] | None = None
    """Makes the text of `list_file` where it is no list of `columns`."""
    note: str = ""
    """What the user has to know or to do, a sentence."""

    @property
    def name(self) -> str:
        """As in `taps/mini_kinetics` or `taps/something_v2:half1`."""
        return f"{self.code}/{self.dataset}" + (f":{self.variant}" if self.variant else "")

    def split_name(self, split: str) -> str:
        """The code base's name of vidprep's split.

        Raises:
            UsageError: it has no such split.
        """
        if split not in self.splits:
            raise UsageError(f"{self.name}: no split {split!r}; it has {', '.join(self.splits)}.")
        return self.splits[split]

    def order_classes(self, classes: Sequence[str]) -> tuple[int, ...]:
        """For each of the code base's classes vidprep's index in `classes`.

        Raises:
            UsageError: `classes` lacks one.
        """
        if self.class_order == "own":
            return tuple(range(len(classes)))
        if self.class_order == "sorted":
            return tuple(sorted(range(len(classes)), key=lambda index: classes[index]))
        index_of = {name: index for index, name in enumerate(classes)}
        names = read_classes(self.dataset, self.class_order)
        lacking = [name for name in names if name not in index_of]
        if lacking:
            raise UsageError(
                f"{self.name}: the split's {len(classes)} classes lack {lacking[0]!r}; is it of another set?"
            )
        return tuple(index_of[name] for name in names)

    def pattern(self, template: str) -> re.Pattern[str]:
        """A regular expression with a group for each field of `template`."""
        any_text = r".+" if template == "{video_id}" else r"[^/]+"
        parts = re.split(r"(\{\w+(?::\w+)?\})", template)
        seen: set[str] = set()
        expression = ""
        for part in parts:
            name = part.strip("{}").split(":")[0]
            if not part.startswith("{"):
                expression += re.escape(part)
            elif name in seen:
                expression += f"(?P={name})"
            else:
                expression += f"(?P<{name}>{FIELD_PATTERNS.get(name, any_text)})"
                seen.add(name)
        return re.compile(expression)


FIELD_PATTERNS = {"suffix": r"\.[A-Za-z0-9]+", "row": r"\d+", "part": r"\d+", "digits": r"\d{8}"}


def class_folder(name: str, spelling: Spelling) -> str:
    """The folder of a class: "massaging person's head" is massaging_person's_head or, "tsm", massaging_persons_head."""
    if spelling == "as_is":
        return name
    underscored = name.replace(" ", "_")
    return underscored if spelling == "underscore" else re.sub(r"[\"()']", "", underscored)


def describe_frames(settings: FrameFormat) -> str:
    """In FFmpeg's words: "-r 5, short side 256, quality 95, image_00001.jpg ..."."""
    rate = "every frame"
    if settings.fps is not None:
        rate = f"-r {settings.fps:g}" if settings.rate_mode == "output" else f"-vf fps={settings.fps:g}"
    size = "own size"
    if settings.short_side is not None:
        size = f"short side {settings.short_side}"
    elif settings.height is not None:
        size = f"height {settings.height}"
    name = settings.template.format(settings.first_index)
    quality = "" if name.endswith(".png") else f", JPEG quality {settings.jpeg_quality}"
    return f"{rate}, {size}{quality}, {name}"
