"""Lists of a code base: written from a split, and read back so that a user who has lists and frames starts from them.

val/air drumming/7LSJ2Ryv1a8_000000_000010 52 0     cut from the right: paths hold spaces
v_sJFgo9H6zNo,141,57                                path, frames, class (and further classes)
imgs 2 5 127                                        path, first frame, frames, class
/data/ssv2/78687.mp4 19                             path, class
"""

import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from vidprep.datasets import folder, list_path
from vidprep.engine import publish, writing
from vidprep.errors import UsageError
from vidprep.extract import ExtractReport, extract
from vidprep.index import Fault
from vidprep.layouts.frames import find_hole
from vidprep.layouts.types import Entry, Layout, class_folder
from vidprep.splits import Split, read_classes, split_to_csv, write_split
from vidprep.types import FrameFormat, Task, Video

__all__ = [
    "FrameList",
    "ListedVideo",
    "adopt_frames",
    "check_frames",
    "format_classes",
    "format_list",
    "read_class_file",
    "read_list",
    "write_videos",
]


@dataclass(frozen=True, kw_only=True)
class ListedVideo:
    """One line of a list."""

    line: int
    path: str
    """As the list names it."""
    source: Path
    """The folder of frames, or the video file."""
    video_id: str
    labels: tuple[int, ...]
    """vidprep's class indices."""
    num_frames: int | None
    """None where the list does not say."""
    first_index: int
    """The number of the first frame."""


@dataclass(frozen=True, kw_only=True)
class FrameList:
    """A list that was read: the split that it describes, and where each video lies."""

    layout: Layout
    path: Path
    split: Split
    rows: tuple[ListedVideo, ...]
    """One for each video of `split`, in its order."""


# Writing


def format_list(layout: Layout, entries: Sequence[Entry]) -> str:
    """The text of a list in the layout's columns, separator and line ends."""
    separator = layout.separators[0]
    lines = []
    for entry in entries:
        fields = {
            "path": entry.path,
            "offset": str(layout.frames.first_index if layout.frames is not None else 0),
            "frames": str(entry.num_frames),
            "label": str(entry.labels[0]),
            "labels": separator.join(map(str, entry.labels)),
        }
        lines.append(separator.join(fields[column] for column in layout.columns))
    return layout.line_end.join(lines) + (layout.line_end if layout.has_final_newline else "")


def format_classes(layout: Layout, classes: Sequence[str]) -> str:
    """The text of the class file; `classes` in vidprep's order."""
    ordered = [classes[own] for own in layout.order_classes(classes)]
    lines = [layout.class_line.format(index=index, name=name) for index, name in enumerate(ordered)]
    return layout.line_end.join(lines) + (layout.line_end if layout.class_has_final_newline else "")


# Reading


def read_list(
    path: Path,
    layout: Layout,
    *,
    split: str,
    root: Path,
    classes: Sequence[str] | None = None,
    class_file: Path | None = None,
) -> FrameList:
    """Read a list as the layout's code base has it.

    UTF-8 with or without byte-order mark, any line ends, with or without a final newline; blank lines are passed
    over. A line that repeats another is taken once, with a note.

    Args:
        path: the list.
        layout: says columns, separators, how paths are built and classes numbered.
        split: vidprep's name of the split.
        root: the folder that the code base is given (its DATA_PATH, data_dir, ROOT).
        classes: class names in vidprep's order; None: those of the data set, of the user's own videos (`folder`)
            those of the class file.
        class_file: a class file of the code base; its order replaces that of the layout.

    Raises:
        UsageError: the layout's list is no list of lines, the file cannot be read, or a line is not as expected:
            names file and line, what was found and what was expected.
    """
    name = layout.split_name(split)
    if layout.write_list is not None:
        official = Path(layout.list_file.format(split=name)).name
        raise UsageError(
            f"{layout.name}: reads the official label files ({official}), no list of its own; "
            f"use `vidprep split {layout.dataset}`."
        )
    if classes is None:
        classes = _read_classes(layout, class_file)
    to_own = layout.order_classes(classes) if class_file is None else read_class_file(class_file, classes)
    patterns = [layout.pattern(template) for template in (*layout.also_read, layout.path)]
    base = root / layout.base.format(split=name)
    rows: dict[str, ListedVideo] = {}
    notes: list[str] = []
    for line, text in _lines(path):
        place = f"{path}, line {line}"
        found, offset, num_frames, numbers = _cut(text, layout, place=place)
        fields = _match_path(found, patterns, layout, base=base, split=name, place=place)
        labels = _own_labels(numbers, to_own, layout, place=place)
        _check_class_folder(fields, labels, classes, layout, place=place)
        first = offset if offset is not None else layout.frames.first_index if layout.frames is not None else 0
        video_id = fields["video_id"] + (f"@{offset}" if offset is not None else "")
        row = ListedVideo(
            line=line,
            path=found,
            source=Path(found) if layout.is_absolute else _locate(found, fields, layout, root=root, split=name),
            video_id=video_id,
            labels=labels,
            num_frames=num_frames,
            first_index=first,
        )
        if video_id not in rows:
            rows[video_id] = row
        elif replace(row, line=rows[video_id].line) == rows[video_id]:
            notes.append(f"{place}: repeats line {rows[video_id].line}; taken once.")
        else:
            raise UsageError(
                f"{place}: {found} was listed on line {rows[video_id].line} with other numbers; keep one of the two."
            )
    if not rows:
        raise UsageError(f"{path}: holds no line; expected {_describe_line(layout)}.")
    task: Task = "multi_label" if layout.columns[-1] == "labels" else "single_label"
    listed = Split(
        dataset=layout.dataset,
        split=split,
        task=task,
        classes=tuple(classes),
        videos=tuple(Video(video_id=row.video_id, labels=row.labels) for row in rows.values()),
        notes=tuple(notes),
    )
    return FrameList(layout=layout, path=path, split=listed, rows=tuple(rows.values()))


def read_class_file(path: Path, classes: Sequence[str]) -> tuple[int, ...]:
    """For each class of a code base's class file (`name` or `id,name` lines) vidprep's index in `classes`.

    Spellings may differ in case, spaces and punctuation.

    Raises:
        UsageError: the file cannot be read, its numbers do not count from 0, or a name is unknown or doubled.
    """
    lines = list(_lines(path))
    is_numbered = bool(lines) and all(re.match(r"\d+,", text) for _, text in lines)
    index_of = {_key(name): index for index, name in enumerate(classes)}
    found: dict[int, int] = {}
    for expected, (line, text) in enumerate(lines):
        number, _, name = text.partition(",") if is_numbered else (str(expected), "", text)
        if int(number) != expected:
            raise UsageError(f"{path}, line {line}: expected class {expected}, got {number}; ids count from 0.")
        own = index_of.get(_key(name))
        if own is None:
            raise UsageError(f"{path}, line {line}: {name!r} is none of the {len(classes)} classes of this data set.")
        if own in found:
            raise UsageError(f"{path}, line {line}: {name!r} was on line {found[own]} already.")
        found[own] = line
    return tuple(found)


def _lines(path: Path) -> list[tuple[int, str]]:
    """(line number from 1, text) of each line that is not blank."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror}).") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: not a text file in UTF-8 (byte {error.start}); expected a list.") from error
    numbered = enumerate(re.split(r"\r\n|\r|\n", text), start=1)
    return [(number, line.rstrip(" \t")) for number, line in numbered if line.strip()]


def _cut(text: str, layout: Layout, *, place: str) -> tuple[str, int | None, int | None, list[int]]:
    """Path, offset, number of frames and class numbers of one line."""
    middle = layout.columns[1:-1]
    for separator in layout.separators:
        if layout.columns[-1] == "labels":
            path, *tail = text.split(separator)
        else:
            path, *tail = text.rsplit(separator, len(middle) + 1)
        if path and len(tail) > len(middle) and all(field.isascii() and field.isdigit() for field in tail):
            break
    else:
        raise UsageError(f"{place}: expected {_describe_line(layout)}, got {_short(text)!r}; is the line cut short?")
    if not layout.allows_spaces and re.search(r"\s", path):
        raise UsageError(f"{place}: {path!r} holds a space, which {layout.code} takes for the end of the path.")
    numbers = [int(field) for field in tail]
    named = dict(zip(middle, numbers, strict=False))
    if named.get("frames") == 0:
        raise UsageError(f"{place}: {path} has 0 frames; take the line out.")
    return path, named.get("offset"), named.get("frames"), numbers[len(middle) :]


def _describe_line(layout: Layout) -> str:
    """As in "PATH FRAMES LABEL" or "PATH,FRAMES,LABEL[,LABEL ...]"."""
    separator = layout.separators[0]
    more = f"[{separator}LABEL ...]" if layout.columns[-1] == "labels" else ""
    return separator.join(column.upper() for column in layout.columns).removesuffix("S" if more else "") + more


def _match_path(
    path: str, patterns: Sequence[re.Pattern[str]], layout: Layout, *, base: Path, split: str, place: str
) -> dict[str, str]:
    """The fields of the layout's template that a path holds."""
    below = path
    # Where a file's name holds the video's, the file may lie anywhere: TAM's list maker writes whole paths, too.
    is_whole = path.startswith("/") and (layout.is_absolute or "{suffix}" in layout.path)
    if is_whole:
        below = path.removeprefix(f"{base}/") if path.startswith(f"{base}/") else path.rpartition("/")[2]
    elif layout.is_absolute:
        raise UsageError(f"{place}: {layout.code} lists whole paths, got {path!r}.")
    elif path.startswith("/"):
        raise UsageError(f"{place}: {layout.code} lists paths below {base}, got the whole path {_short(path)!r}.")
    matches = [match for pattern in patterns if (match := pattern.fullmatch(below))]
    if is_whole and not matches:
        matches = [match for match in [re.fullmatch(r"(?P<video_id>.+)(?P<suffix>\.\w+)", Path(path).name)] if match]
    if not matches:
        raise UsageError(f"{place}: expected a path like {layout.path}, got {_short(path)!r}.")
    fields = matches[0].groupdict()
    # The id names folders and files in everything that follows.
    parts = f"{below}/{fields.get('video_id', below)}".split("/")
    if "\0" in below or not {"", ".", ".."}.isdisjoint(parts):
        raise UsageError(f"{place}: expected a path like {layout.path}, got {_short(path)!r}, which leads elsewhere.")
    if fields.get("split", split) != split:
        raise UsageError(f"{place}: {path} lies in {fields['split']}/, the list is of {split}.")
    return fields


def _locate(path: str, fields: dict[str, str], layout: Layout, *, root: Path, split: str) -> Path:
    """Where a listed path lies: as the code base joins it, else below the root itself, else where the layout has it."""
    base = root / layout.base.format(split=split)
    candidates = [base / path, root / path]
    with suppress(KeyError):  # another form of path lacks a field
        candidates.append(base / layout.path.format(**{"split": split, **fields}))
    return next((candidate for candidate in candidates if candidate.exists()), candidates[0])


def _own_labels(numbers: Sequence[int], to_own: Sequence[int], layout: Layout, *, place: str) -> tuple[int, ...]:
    for number in numbers:
        if number >= len(to_own):
            hint = "; are its classes counted from 1?" if number == len(to_own) else ""
            raise UsageError(f"{place}: class {number}, expected 0 to {len(to_own) - 1}{hint}.")
    if len(numbers) > layout.max_labels:
        raise UsageError(f"{place}: {len(numbers)} classes, {layout.code} takes {layout.max_labels} at most.")
    return tuple(dict.fromkeys(to_own[number] for number in numbers))


def _check_class_folder(
    fields: dict[str, str], labels: Sequence[int], classes: Sequence[str], layout: Layout, *, place: str
) -> None:
    """A path that names the class shows when a list is numbered in another order."""
    named = fields.get("class_name")
    if named is not None and _key(named) != _key(class_folder(classes[labels[0]], layout.spelling)):
        raise UsageError(
            f"{place}: lies in the folder {named!r} and is labelled {classes[labels[0]]!r}; is the list numbered in "
            "another order, or cut short? Give its class file."
        )


def _key(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _short(text: str) -> str:
    return text if len(text) <= 80 else f"{text[:77]}..."


def _read_classes(layout: Layout, class_file: Path | None) -> tuple[str, ...]:
    if layout.dataset != folder.INFO.name:
        return read_classes(layout.dataset)
    if class_file is None:
        raise UsageError(f"{layout.name}: a list of your own videos needs a --class-file, one name a line.")
    return tuple(re.sub(r"^\d+,", "", text) for _, text in _lines(class_file))


# Starting from a list


def write_videos(listed: FrameList, data_root: Path) -> Path:
    """Write the videos of a list where `vidprep.datasets.load_split` looks for them; gives the file.

    Raises:
        VidprepError: it cannot be written.
    """
    if listed.layout.dataset != folder.INFO.name:
        path = list_path(data_root, listed.split.split)
        write_split(listed.split, path)
        return path
    path = data_root / f"{listed.split.split}.csv"
    texts = {
        path: split_to_csv(listed.split).replace("video_id,label", "video,label", 1),
        data_root / folder.CLASSES_FILE: "".join(f"{name}\n" for name in listed.split.classes),
    }
    for file, text in texts.items():
        with writing(file):
            file.parent.mkdir(parents=True, exist_ok=True)
        with publish(file) as stream:
            stream.write(text.encode())
    return path


def adopt_frames(listed: FrameList, *, out: Path, workers: int = 1, progress: str | None = None) -> ExtractReport:
    """Copy the frames of a list into the form of `vidprep extract`, from which shards are made.

    Every frame is decoded to see that it is whole; the files' bytes stay as they are. The frames of a video are those
    in its folder: `check_frames` says where the list disagrees.

    Raises:
        UsageError: the list names video files, PNG images, or parts of folders.
        CannotWrite: no space, no permission.
    """
    frames = listed.layout.frames
    if frames is None or frames.template.endswith(".png") or "offset" in listed.layout.columns:
        raise UsageError(
            f"{listed.layout.name}: only whole folders of JPEG frames are copied; leave --copy-frames out."
        )
    settings = FrameFormat(jpeg_quality=frames.jpeg_quality, template=frames.template, first_index=frames.first_index)
    paths = {row.video_id: row.source for row in listed.rows}
    return extract(
        listed.split, paths, out=out, settings=settings, delivered=frames, workers=workers, progress=progress
    )


def check_frames(listed: FrameList) -> tuple[Fault, ...]:
    """The videos of a list whose folder holds other frames than the list says, or whose file is missing.

    Only files with the layout's names count: optical flow (x_00001.jpg) in the same folder is passed over.
    """
    faults = []
    for row in listed.rows:
        if listed.layout.frames is None:
            reason = "" if row.source.is_file() else "no such file"
        else:
            settings = replace(listed.layout.frames, first_index=row.first_index)
            is_part = "offset" in listed.layout.columns
            reason = find_hole(row.source, settings, num_frames=row.num_frames, is_part=is_part)
        if reason:
            faults.append(Fault(video_id=row.video_id, reason=f"{reason} (line {row.line})", path=str(row.source)))
    return tuple(faults)
