"""Write a split as one code base expects it: folders of frames (or video files), lists, class files, markers.

    OUT/{layout.base}/{layout.path}/image_00001.jpg ...   one folder a video, there when all its frames are
    OUT/{layout.list_file}                                written last, with the counts of what is there
    OUT/.vidprep/{layout}.json                            the settings of these frames: other ones are refused

Frames are extracted as the code base's published recipe does, or linked where they exist already: those that
`vidprep extract` wrote with the same settings, and those that a data set delivers. A restart does what is left.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any, Literal

from vidprep.engine import differences, lock, publish, run, writing
from vidprep.errors import CorruptVideo, UsageError, VidprepError
from vidprep.extract import FrameIndex, open_frames, read_delivered, read_frame_index
from vidprep.index import Fault, folder_name
from vidprep.layouts import Entry, Layout, class_folder, describe_frames
from vidprep.layouts.frames import find_hole, list_numbers
from vidprep.layouts.lists import format_classes, format_list
from vidprep.layouts.types import ReadBoxes
from vidprep.probe import probe
from vidprep.splits import Split
from vidprep.types import FrameFormat, Video

__all__ = ["ExportReport", "export"]

MIN_VIDEO_BYTES = 1024
"""STA's loader takes another clip, in silence, for a file that is smaller."""
How = Literal["there", "linked", "made"]


@dataclass(frozen=True, kw_only=True)
class ExportReport:
    """What a run left behind."""

    list_file: Path
    num_videos: int
    """In the list."""
    num_frames: int
    """0 where the list does not count them."""
    num_linked: int
    """Videos that this run linked (or, between disks, copied)."""
    num_made: int
    """Videos that this run decoded; those that are neither were there already."""
    faults: tuple[Fault, ...]
    """Videos that are not in the list, and why."""
    notes: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class _Unit:
    """One video to put in its place."""

    row: int
    video: Video
    labels: tuple[int, ...]
    path: str
    """Below the layout's `base`."""
    target: Path
    source: Path | None
    """A video file or a folder of frames."""
    source_frames: FrameFormat | None
    """How the frames in the folder `source` are called; None: `source` is a video file."""
    is_extracted: bool
    """`source` was written by `vidprep extract`, so that its frames are known to be whole."""


@dataclass(frozen=True, kw_only=True)
class _Placed:
    num_frames: int
    how: How


def export(
    split: Split,
    paths: Mapping[str, Path],
    *,
    layout: Layout,
    out: Path,
    frames_from: Path | None = None,
    delivered: FrameFormat | None = None,
    read_boxes: ReadBoxes | None = None,
    workers: int = 1,
    progress: str | None = None,
) -> ExportReport:
    """Write the frames, the list and the class file of a split as a code base expects them.

    A video that is missing or does not decode is left out of the list and becomes a fault.

    Args:
        split: the videos, in the order of the list.
        paths: video_id -> file, or folder of frames of a data set that is delivered so.
        layout: of the code base for this data set.
        out: the folder that the code base is given as its root; lists of its checkout go below it, too.
        frames_from: what `vidprep extract` wrote for this split; linked where its settings agree with the layout's.
        delivered: how a data set that is delivered as folders of frames calls them.
        read_boxes: reads the boxes of a video, for layouts of detection.
        workers: processes.
        progress: shown while it runs; None shows nothing.

    Raises:
        UsageError: the layout is of another data set or has no such split; a video has no label, too many, or a path
            that would break the list; `out` holds frames of other settings; another run is at work there.
        CannotWrite: no space, no permission.
    """
    if split.dataset != layout.dataset:
        raise UsageError(f"{layout.name}: is the layout of {layout.dataset}, the split is of {split.dataset}.")
    if not split.videos:
        raise UsageError(f"{split.dataset}/{split.split}: the split is empty, there is nothing to export.")
    if layout.frames is None and delivered is not None:
        raise UsageError(f"{layout.name}: lists video files; {split.dataset} is delivered as folders of frames.")
    out = out.absolute()
    index, notes = _read_extracted(frames_from, layout)
    units, more_notes = _plan(split, paths, layout, out, index=index, frames_from=frames_from, delivered=delivered)
    if not units:
        raise UsageError(f"{layout.name}: no video of {split.split} is of a class that this layout has.")
    record = _open_record(layout, out, units)
    with lock(record, purpose="vidprep export"):
        placed, faults = _place_all(units, layout, record.with_suffix(".part"), workers=workers, progress=progress)
        entries = [
            Entry(
                video=unit.video,
                row=unit.row,
                path=str(unit.target) if layout.is_absolute else unit.path,
                num_frames=placed[unit.row].num_frames,
                labels=unit.labels,
            )
            for unit in units
            if unit.row in placed
        ]
        list_file = _write_lists(split, entries, layout, out, read_boxes)
    return ExportReport(
        list_file=list_file,
        num_videos=len(entries),
        num_frames=sum(entry.num_frames for entry in entries),
        num_linked=sum(result.how == "linked" for result in placed.values()),
        num_made=sum(result.how == "made" for result in placed.values()),
        faults=faults,
        notes=(*notes, *more_notes, *([layout.note] if layout.note else [])),
    )


# What goes where


def _read_extracted(frames_from: Path | None, layout: Layout) -> tuple[FrameIndex | None, list[str]]:
    """The index of extracted frames if they are what the layout wants, else a note that says why not."""
    if frames_from is None or layout.frames is None:
        return None, []
    index = read_frame_index(frames_from)
    wanted, found = (_content(settings) for settings in (layout.frames, index.settings))
    if unlike := differences(found, wanted):
        return None, [f"{frames_from}: its frames are not those of {layout.name} ({unlike}); made from the videos."]
    return index, []


def _content(settings: FrameFormat) -> dict[str, Any]:
    """What tells apart frames but for their names."""
    is_png = settings.template.endswith(".png")
    return {
        "fps": settings.fps,
        "rate_mode": settings.rate_mode if settings.fps is not None else None,
        "short_side": settings.short_side,
        "height": settings.height,
        "image": "png" if is_png else "jpeg",
        "jpeg_quality": None if is_png else settings.jpeg_quality,
    }


def _plan(
    split: Split,
    paths: Mapping[str, Path],
    layout: Layout,
    out: Path,
    *,
    index: FrameIndex | None,
    frames_from: Path | None,
    delivered: FrameFormat | None,
) -> tuple[list[_Unit], list[str]]:
    """Where each video goes and comes from, and notes on what the layout cannot express."""
    to_code = {own: code for code, own in enumerate(layout.order_classes(split.classes))}
    name = layout.split_name(split.split)
    base = out / layout.base.format(split=name)
    units: list[_Unit] = []
    row_of: dict[Path, Video] = {}
    num_left_out = num_cut = 0
    for row, video in enumerate(split.videos):
        labels = _code_labels(video, to_code, split, layout)
        if labels is None:
            num_left_out += 1
            continue
        if layout.max_labels == 1 and split.task == "multi_label" and len(labels) > 1:
            num_cut += 1
            labels = labels[:1]
        source, source_frames = paths.get(video.video_id), delivered
        is_extracted = index is not None and folder_name(video) in index.frames
        if index is not None and frames_from is not None and is_extracted:
            source, source_frames = frames_from / folder_name(video), index.settings
        path = layout.path.format(
            split=name,
            video_id=video.video_id,
            class_name=class_folder(split.classes[video.labels[0]], layout.spelling) if video.labels else "",
            suffix=source.suffix if source is not None else ".mp4",
            row=row,
            part=row // 1000,
            digits=_last_digits(video) if "{digits}" in layout.path else "",
        )
        target = Path(os.path.normpath(base / path))
        if not target.is_relative_to(base) or target == base:
            raise UsageError(f"{video.video_id}: would lie outside {base}; list videos by paths below the data root.")
        _check_path(str(target) if layout.is_absolute else path, layout)
        if target in row_of:
            raise UsageError(
                f"{layout.name}: {row_of[target].video_id} and {video.video_id} would both go to {target}; "
                "export whole videos, each once."
            )
        row_of[target] = video
        units.append(
            _Unit(
                row=row,
                video=video,
                labels=labels,
                path=path,
                target=target,
                source=source,
                source_frames=source_frames,
                is_extracted=is_extracted,
            )
        )
    notes = []
    if num_left_out:
        notes.append(f"{num_left_out} videos of classes that {layout.name} does not have are left out.")
    if num_cut:
        notes.append(f"{num_cut} videos of several classes are listed with the first, as {layout.code} takes one.")
    return units, notes


def _code_labels(video: Video, to_code: Mapping[int, int], split: Split, layout: Layout) -> tuple[int, ...] | None:
    """A video's classes in the code base's numbers; None for a class that the layout leaves out."""
    if split.task in ("detection", "verb_noun"):
        return video.labels
    if not video.labels:
        raise UsageError(
            f"{split.dataset}/{split.split}: {video.video_id} has no label; the lists of {layout.code} need one each."
        )
    labels = tuple(to_code[label] for label in video.labels if label in to_code)
    if not labels:
        return None
    return labels if layout.max_labels == 1 else tuple(sorted(labels))


def _last_digits(video: Video) -> str:
    found = re.search(r"\d{8}$", video.video_id)
    if found is None:
        raise UsageError(
            f"{video.video_id}: a snippet of ImageNet VID ends in eight digits, from which its folder is named."
        )
    return found[0]


def _check_path(path: str, layout: Layout) -> None:
    """Refuse what would be read as something else."""
    separator = layout.separators[0]
    is_spaced = not layout.allows_spaces or (layout.columns[-1] == "labels" and separator == " ")
    if is_spaced and re.search(r"[\s\"]", path):
        raise UsageError(
            f"{path!r}: {layout.code} ends a path at the first space (or quote), so its labels would be wrong; "
            "choose an --out and names of videos without spaces."
        )
    if separator != " " and separator in path:
        raise UsageError(
            f"{path!r}: holds {separator!r}, which separates the columns of {layout.code}; rename the video."
        )
    if re.search(r"[\r\n]", path):
        raise UsageError(f"{path!r}: holds a line break, which ends a line of a list; rename the video.")


def _open_record(layout: Layout, out: Path, units: Iterable[_Unit]) -> Path:
    """The file that says which settings the frames below `out` have; made when missing."""
    plan: dict[str, Any] = {
        "format": "vidprep-export",
        "layout": layout.name,
        "frames": None if layout.frames is None else describe_frames(layout.frames),
        "video_height": layout.video_height,
    }
    record = out / ".vidprep" / f"{layout.name.replace('/', '-').replace(':', '-')}.json"
    if out.exists() and not out.is_dir():
        raise UsageError(f"{out}: is a file; give --out the name of a folder.")
    if record.exists():
        try:
            before: dict[str, Any] = json.loads(record.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UsageError(f"{record}: cannot be read ({error}); remove it and what it stands for.") from error
        if found := differences(before, plan):
            raise UsageError(f"{out}: holds an export of other settings ({found}); give another --out.")
        return record
    # Frames may be shared with another variant of the layout, which then has a record of its own.
    known = any(_same_frames(other, plan) for other in record.parent.glob(f"{layout.code}-{layout.dataset}*.json"))
    there = None if known else next((unit.target for unit in units if _is_foreign(unit)), None)
    if there is not None:
        raise UsageError(
            f"{there}: is there already, and no `vidprep export` recorded how it was made; give another --out, or "
            "start from your own frames and lists with `vidprep import-list`."
        )
    with writing(record):
        record.parent.mkdir(parents=True, exist_ok=True)
    with publish(record) as stream:
        stream.write((json.dumps(plan, indent=1) + "\n").encode())
    return record


def _same_frames(record: Path, plan: Mapping[str, Any]) -> bool:
    try:
        before = json.loads(record.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False  # says nothing of the frames that are there, so they count as foreign
    return all(before.get(key) == plan[key] for key in ("frames", "video_height"))


def _is_foreign(unit: _Unit) -> bool:
    """Whether something that no export made is in the place of a video (its own source may be)."""
    return unit.target.exists() and not (unit.source is not None and _is_same_file(unit.source, unit.target))


def _is_same_file(first: Path, second: Path) -> bool:
    try:
        return first.samefile(second)
    except OSError:
        return False


# Putting it there


def _place_all(
    units: Sequence[_Unit], layout: Layout, half: Path, *, workers: int, progress: str | None
) -> tuple[dict[int, _Placed], tuple[Fault, ...]]:
    """Put every video in its place; by row what came of it, and the faults in the order of the rows."""
    placed: dict[int, _Placed] = {}
    faults: dict[int, Fault] = {}
    shutil.rmtree(half, ignore_errors=True)  # what a killed run left half-filled
    try:
        with closing(run(units, partial(_place, layout=layout, half=half), workers=workers, progress=progress)) as done:
            for outcome in done:
                unit, error = outcome.unit, outcome.error
                if outcome.result is not None:
                    placed[unit.row] = outcome.result
                else:
                    reason = str(error) if isinstance(error, VidprepError) else f"{type(error).__name__}: {error}"
                    faults[unit.row] = Fault(
                        video_id=unit.video.segment_id or unit.video.video_id,
                        reason=reason,
                        path=str(unit.source or ""),
                    )
    finally:
        shutil.rmtree(half, ignore_errors=True)
    return placed, tuple(faults[row] for row in sorted(faults))


def _place(unit: _Unit, *, layout: Layout, half: Path) -> _Placed:
    if layout.columns[-1] == "labels" and len(unit.labels) > layout.max_labels:
        raise VidprepError(f"has {len(unit.labels)} classes; {layout.code} takes {layout.max_labels} and stops at more")
    name = f"{os.getpid()}-{hashlib.sha256(str(unit.target).encode()).hexdigest()[:16]}"
    if layout.frames is None:
        return _place_video(unit, layout, half / f"{name}{unit.target.suffix}")
    if unit.target.is_dir():
        if reason := find_hole(unit.target, layout.frames):
            raise CorruptVideo(f"{unit.target}: {reason}; remove the folder and run the same command again.")
        return _Placed(num_frames=len(list_numbers(unit.target, layout.frames.template)), how="there")
    return _place_frames(unit, layout.frames, half / name)


def _place_frames(unit: _Unit, settings: FrameFormat, half: Path) -> _Placed:
    source, frames = unit.source, unit.source_frames
    if source is None:
        raise VidprepError("no file found for it")
    how: How = "made"
    with writing(unit.target):
        shutil.rmtree(half, ignore_errors=True)
        half.mkdir(parents=True)
    if frames is not None and _is_kept(frames, settings):
        how = "linked"
        if not unit.is_extracted:
            for _ in read_delivered(source, unit.video, FrameFormat(template=frames.template), delivered=frames).images:
                pass  # each is decoded to see that it is whole
        num_frames = _link_frames(source, frames, half, settings)
    elif frames is not None:
        if settings.template.endswith(".png"):
            raise VidprepError(f"{source}: PNG images are made from videos, not from delivered frames")
        num_frames = _write_images(
            read_delivered(source, unit.video, settings, delivered=frames).images, half, settings
        )
    else:
        with open_frames(source, unit.video, settings) as (_, images):
            num_frames = _write_images(images, half, settings)
    with writing(unit.target):
        unit.target.parent.mkdir(parents=True, exist_ok=True)
        half.rename(unit.target)
    return _Placed(num_frames=num_frames, how=how)


def _is_kept(found: FrameFormat, wanted: FrameFormat) -> bool:
    """Whether frames that lie in a folder are taken as they are: extracted so, or delivered and wanted as delivered."""
    is_as_delivered = wanted.fps is None and wanted.short_side is None and wanted.height is None
    return _content(found) == _content(wanted) or (is_as_delivered and not wanted.template.endswith(".png"))


def _link_frames(source: Path, found: FrameFormat, half: Path, wanted: FrameFormat) -> int:
    if reason := find_hole(source, found):
        raise CorruptVideo(f"{source}: {reason}")
    numbers = list_numbers(source, found.template)
    with writing(half):
        for number in numbers:
            new = half / wanted.template.format(number - found.first_index + wanted.first_index)
            _link(source / found.template.format(number), new)
    return len(numbers)


def _link(source: Path, target: Path) -> None:
    """The same file under another name; between disks a copy."""
    try:
        target.hardlink_to(source.resolve())
    except OSError:
        shutil.copy2(source, target)


def _write_images(images: Iterable[bytes], half: Path, settings: FrameFormat) -> int:
    num_frames = 0
    with writing(half):
        for number, image in enumerate(images, start=settings.first_index):
            (half / settings.template.format(number)).write_bytes(image)
            num_frames += 1
    return num_frames


def _place_video(unit: _Unit, layout: Layout, half: Path) -> _Placed:
    how: How = "there"
    if not unit.target.is_file():
        if unit.source is None:
            raise VidprepError("no file found for it")
        num_bytes = unit.source.stat().st_size
        if num_bytes < MIN_VIDEO_BYTES:
            raise CorruptVideo(f"{unit.source}: has {num_bytes} bytes, which is no video")
        with writing(unit.target):
            half.parent.mkdir(parents=True, exist_ok=True)
            unit.target.parent.mkdir(parents=True, exist_ok=True)
        if layout.video_height is None:
            how = "linked"
            with writing(unit.target):
                _link_video(unit.source, half)
        else:
            how = "made"
            _transcode(unit.source, half, height=layout.video_height)
        num_frames = probe(unit.source if how == "linked" else half).num_frames
        with writing(unit.target):
            half.rename(unit.target)
    else:
        num_frames = probe(unit.target).num_frames
    return _Placed(num_frames=num_frames if "frames" in layout.columns else 0, how=how)


def _link_video(source: Path, target: Path) -> None:
    """The same file under another name; between disks a symbolic link, since videos are large."""
    try:
        target.hardlink_to(source.resolve())
    except OSError:
        target.symlink_to(source.resolve())


def _transcode(source: Path, target: Path, *, height: int) -> None:
    """Encode a video anew as H.264 in MP4: ffmpeg's `-vf scale=-2:HEIGHT`, every frame at its own time, no sound."""
    import av
    from av.video.reformatter import Interpolation

    from vidprep.decode.pyav import PyavReader

    unit = Fraction(1, 90_000)
    with PyavReader(source) as reader, writing(target), av.open(str(target), "w") as container:
        rate = reader.stream.average_rate or reader.stream.guessed_rate or Fraction(25)
        stream: Any = container.add_stream("libx264", rate=rate)
        stream.width, stream.height = 2 * round(reader.width * height / reader.height / 2), height
        stream.pix_fmt = "yuv420p"
        stream.codec_context.thread_count = 1
        stream.codec_context.time_base = unit
        seconds = reader.pts_seconds - reader.pts_seconds[0]
        for time, picture in zip(seconds, reader.iterate_frames(range(reader.num_frames)), strict=True):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(
                width=stream.width, height=height, format="yuv420p", interpolation=Interpolation.BICUBIC
            )
            frame.pts, frame.time_base = round(float(time) / unit), unit
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


# Lists


def _write_lists(
    split: Split, entries: Sequence[Entry], layout: Layout, out: Path, read_boxes: ReadBoxes | None
) -> Path:
    name = layout.split_name(split.split)
    list_file = out / layout.list_file.format(split=name)
    text = format_list(layout, entries) if layout.write_list is None else layout.write_list(split, entries, read_boxes)
    files = {list_file: text} | {out / copy: text for copy in layout.copies.get(name, ())}
    if layout.class_file:
        files[out / layout.class_file] = format_classes(layout, split.classes)
    files |= {out / marker.format(split=name): "" for marker in layout.markers}
    for path, content in files.items():
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        with publish(path) as stream:
            stream.write(content.encode())
    return list_file
