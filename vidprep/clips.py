"""Videos, or annotated segments of them, as short video files: trimmed, resized and re-timed in one pass.

OUT/videos/ID.mp4 ...         the clips; each file appears when it is whole
OUT/splits/val.csv            their list: OUT is a data root of the same data set, for `vidprep shard` and all others
OUT/val.clips.jsonl           the settings, then one line a clip: what it is, or why there is none; a restart reads it
OUT/val.clips.faults.csv      the videos without a clip, and why

Of the data set `folder` the list is OUT/val.csv (video,label) with OUT/classes.txt.
"""

import math
import os
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import av
import av.error
import numpy as np
from av.audio.resampler import AudioResampler
from av.video.reformatter import ColorRange, Colorspace, Interpolation, VideoReformatter
from numpy.typing import NDArray

from vidprep.datasets import folder, list_path
from vidprep.decode.pyav import KEPT_PACKET_BYTES, UPRIGHT, Orientation, PyavReader, open_container, turn_upright
from vidprep.encode import JpegEncoder
from vidprep.engine import CannotWrite, media_state, publish, run, source_state, writing
from vidprep.errors import CorruptVideo, FaultKind, MissingVideo, UsageError, VidprepError
from vidprep.extract import frame_size, select_frames
from vidprep.index import Fault, faults_to_csv, folder_name, sample_id
from vidprep.journal import Group, Journal, JournalState, by_file, fault_entry, note_all
from vidprep.ledger import check_retry
from vidprep.sampling import frames_between
from vidprep.splits import LABEL_SEPARATOR, Split, write_split
from vidprep.store import DiskStore
from vidprep.tasks import ArrayTask, Held
from vidprep.types import DatasetInfo, Video
from vidprep.workers import begin_part

__all__ = ["ClipCodec", "ClipFacts", "ClipFormat", "ClipReport", "clips", "write_clip"]

ClipCodec = Literal["h264", "vp9", "mjpeg"]


@dataclass(frozen=True, kw_only=True)
class _Coder:
    """How a codec is written."""

    encoder: str
    suffix: str
    container: str
    quality: int
    """By default; and its range."""
    qualities: range
    preset: str
    audio_encoder: str
    audio_copied: frozenset[str]
    """Codecs of sound that the container holds as they are."""


CODERS: Mapping[ClipCodec, _Coder] = {
    "h264": _Coder(
        encoder="libx264",
        suffix=".mp4",
        container="mp4",
        quality=23,
        qualities=range(52),
        preset="medium",
        audio_encoder="aac",
        audio_copied=frozenset({"aac", "mp3", "ac3"}),
    ),
    "vp9": _Coder(
        encoder="libvpx-vp9",
        suffix=".webm",
        container="webm",
        quality=32,
        qualities=range(64),
        preset="4",
        audio_encoder="libopus",
        audio_copied=frozenset({"opus", "vorbis"}),
    ),
    "mjpeg": _Coder(
        encoder="mjpeg",
        suffix=".mov",  # AVI holds no times of frames
        container="mov",
        quality=3,
        qualities=range(1, 32),
        preset="",
        audio_encoder="aac",
        audio_copied=frozenset({"aac", "mp3", "ac3", "pcm_s16le"}),
    ),
}
# fmt: off
X264_PRESETS = (
    "ultrafast", "superfast", "veryfast", "faster", "fast", "medium", "slow", "slower", "veryslow", "placebo",
)
# fmt: on
COPIED_CONTAINERS = frozenset({"mov", "matroska", "webm"})
QUANTISER_UNIT = 118
"""FF_QP2LAMBDA: in which FFmpeg counts the quality of MJPEG."""


@dataclass(frozen=True, kw_only=True)
class ClipFormat:
    """What clips are made of a split."""

    codec: ClipCodec = "h264"
    """H.264 in MP4, VP9 in WebM, or MJPEG in MOV; the last two are decoded by DALI without a GPU, too."""
    short_side: int | None = None
    """Length of the shorter side in pixels, even; None keeps the size. The other side is rounded to an even number."""
    fps: float | None = None
    """Frames per second, chosen as by ffmpeg's `-vf fps=`; None keeps every frame with its time."""
    gop: int | None = None
    """Frames from one key frame to the next, at most, in closed groups; None: the encoder's own choice (250; 128)."""
    quality: int | None = None
    """Constant quality, lower is better: x264's crf (0 to 51), libvpx's crf (0 to 63), MJPEG's quantiser (1 to 31)."""
    preset: str | None = None
    """Speed against size: x264's ultrafast ... placebo, libvpx's cpu-used 0 ... 8."""
    keeps_audio: bool = False
    """Sound of the same seconds: copied where the container takes it, encoded (AAC, Opus) where not."""
    copies: bool = True
    """Where nothing is to be changed and the cut falls on key frames, pictures are copied, not encoded again."""

    def __post_init__(self) -> None:
        if self.codec not in CODERS:
            raise ValueError(f"codec is one of {', '.join(get_args(ClipCodec))}, got {self.codec!r}")
        coder = CODERS[self.codec]
        if self.short_side is not None and (self.short_side < 2 or self.short_side % 2):
            raise ValueError(f"short_side is an even number of pixels or None, got {self.short_side}")
        if self.fps is not None and not 0 < self.fps < math.inf:
            raise ValueError(f"fps must be positive and finite, or None, got {self.fps}")
        if self.gop is not None and self.gop < 1:
            raise ValueError(f"gop must be at least 1 frame or None, got {self.gop}")
        if self.quality is not None and self.quality not in coder.qualities:
            raise ValueError(
                f"quality of {self.codec} lies between {coder.qualities[0]} and {coder.qualities[-1]}, "
                f"got {self.quality}"
            )
        known = {"h264": X264_PRESETS, "vp9": tuple(map(str, range(9))), "mjpeg": ()}[self.codec]
        if self.preset is not None and self.preset not in known:
            raise ValueError(f"presets of {self.codec}: {', '.join(known) or 'none'}; got {self.preset!r}")


@dataclass(frozen=True, kw_only=True)
class ClipFacts:
    """One clip."""

    path: str
    """Below the folder of clips."""
    num_frames: int
    width: int
    height: int
    start_seconds: float
    """Of its first frame in the video, counted from the video's first."""
    is_copied: bool
    """Its pictures are those of the video, not encoded again."""
    num_bytes: int


@dataclass(frozen=True, kw_only=True)
class ClipReport:
    """What a run left behind."""

    folder: Path
    num_clips: int
    num_copied: int
    num_new: int
    """Clips that this run made; the others were there."""
    num_bytes: int
    faults: tuple[Fault, ...]
    num_missing: int = 0
    """Videos that other tasks have still to look at."""
    is_finished: bool = True
    """The list of all clips is written; False while other tasks are at work: then this tells of one part."""


def clips(
    info: DatasetInfo,
    split: Split,
    paths: Mapping[str, Path],
    *,
    out: Path,
    settings: ClipFormat,
    workers: int = 1,
    time_limit_seconds: float | None = None,
    scheduler: str | None = None,
    retry: Sequence[str] = (),
    task: ArrayTask | None = None,
    progress: str | None = None,
) -> ClipReport:
    """Make a clip of every video (or annotated segment) of a split; what is there already is left alone.

    Args:
        info: the data set; says how its files are called.
        split: the videos.
        paths: video_id -> file; videos that are not in it are missing.
        out: the data root of the clips; several splits may share one.
        settings: size, rate, codec.
        workers: processes, each with one thread.
        time_limit_seconds: for a video; one that takes longer becomes a fault. None: as long as it takes.
        scheduler: address of a Dask scheduler whose workers do the work, instead of processes here.
        retry: kinds of faults (`ledger.check_retry`) whose videos are tried again though their files are the same.
        task: only this part of the videos; other tasks, here or elsewhere, do theirs in the same folder. The one that
            finds all of them done and nobody else at work writes the list of clips.
        progress: shown while it runs; None shows nothing.

    Raises:
        UsageError: a data set of frames, an empty split, clips of other settings in `out`, or another run is at it.
        CannotWrite: no space, no permission.
    """
    if info.media == "frames":
        raise UsageError(f"{info.name} is delivered as folders of frames; clips are made from video files.")
    if not split.videos:
        raise UsageError(f"{split.dataset}/{split.split}: the split is empty, there is nothing to cut.")
    out = out.absolute()
    places = _places(info, split, settings, out)
    plan = {"format": "vidprep-clips", "dataset": split.dataset, "split": split.split, **asdict(settings)}
    if out.exists() and not out.is_dir():
        raise UsageError(f"{out}: is a file; give --out the name of a folder.")
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
    kinds = check_retry(retry)
    journal = Journal(
        base=out / split.split,
        suffix=".clips.jsonl",
        folder=out,
        what="clips",
        command="clips",
        plan=plan,
        key="clip",
        rows=[(places[folder_name(video)], sample_id(video)) for video in split.videos],
        task=task,
    )
    journal.begin()
    with journal.hold_part() as state:
        videos = split.videos[journal.part.start : journal.part.stop]
        _sweep(out, [places[folder_name(video)] for video in videos])
        if task is None:
            names = (f"{split.split}.csv", folder.CLASSES_FILE, f"{split.split}.clips.faults.csv", journal.path.name)
            DiskStore(folder=out).sweep(names)
        todo = [
            (video, paths.get(video.video_id))
            for video in videos
            if not _is_settled(places[folder_name(video)], paths.get(video.video_id), state, out, kinds)
        ]
        engine = partial(
            run,
            work=partial(_cut_group, out=out, places=places, settings=settings),
            workers=workers,
            time_limit_seconds=time_limit_seconds,
            scheduler=scheduler,
            progress=progress,
        )
        try:
            num_new = note_all(by_file(todo), journal, state, engine, key_of=lambda video: places[folder_name(video)])
        except BaseException:
            _sweep(out, [places[folder_name(video)] for video in videos])  # what workers were writing when ended
            raise
        if task is None:
            return _finish(info, split, places, journal, state, num_new=num_new)
        report = _report(journal, state, num_new=num_new)
    try:
        with journal.hold_all() as state:
            num_missing = journal.num_missing(state)
            if not num_missing:
                return _finish(info, split, places, replace(journal, task=None), state, num_new=num_new)
    except Held:
        num_missing = 0  # whoever is still at work looks for what is missing when it is done
    return replace(report, num_missing=num_missing, is_finished=False)


# Where clips lie, and what is there


def _places(info: DatasetInfo, split: Split, settings: ClipFormat, out: Path) -> dict[str, str]:
    """Name of a video or segment -> the path of its clip below `out`."""
    suffix = CODERS[settings.codec].suffix
    pattern = info.video_paths[-1].replace("**/", "videos/")
    if info.name != folder.INFO.name and Path(pattern).suffix not in (".*", suffix):
        raise UsageError(f"{info.name}'s videos are called {pattern}; choose a codec whose files are, not {suffix}.")
    places: dict[str, str] = {}
    for video in split.videos:
        name = folder_name(video)
        if info.name == folder.INFO.name:
            place = name if name.lower().endswith(suffix) else f"{name}{suffix}"
        else:
            place = str(Path(pattern.format(split=split.split, video_id=name)).with_suffix("")) + suffix
            if pattern.endswith(".*"):
                place = pattern.removesuffix(".*").format(split=split.split, video_id=name) + suffix
        base = os.path.normpath(out)
        if not os.path.normpath(os.path.join(base, place)).startswith(base + os.sep):  # noqa: PTH118 - an absolute id
            raise UsageError(
                f"{video.video_id}: its clip would lie outside {out}; list videos by paths below the root."
            )
        places[name] = place
    if len(set(places.values())) < len(places):
        double = next(place for place in places.values() if list(places.values()).count(place) > 1)
        raise UsageError(f"{split.dataset}/{split.split}: two of its videos would be the clip {double}; rename one.")
    return places


def _sweep(out: Path, places: Iterable[str]) -> None:
    """Remove what ended runs left half-written of these clips; others may be at work on others."""
    names: dict[Path, set[str]] = {}
    for place in places:
        names.setdefault((out / place).parent, set()).add(Path(place).name)
    for parent, below in names.items():
        DiskStore(folder=parent).sweep(below)


def _is_settled(place: str, path: Path | None, state: JournalState, out: Path, retry: frozenset[FaultKind]) -> bool:
    """Whether nothing is to be done: the clip is there, or it is a fault and its video the one that was tried."""
    known = state.known.get(place)
    if known is None:
        return False
    if known.is_done:
        found = source_state(out / place)
        return found is not None and found[0] == known.num_bytes
    return known.kind not in retry and known.source == media_state(path)


def _cut_group(group: Group, *, out: Path, places: Mapping[str, str], settings: ClipFormat) -> list[dict[str, Any]]:
    """The journal's entry of each clip; a fault of one does not keep the others from theirs."""
    path = group.path
    if path is None:
        raise MissingVideo("no file found for it")
    before = source_state(path)
    entries: list[dict[str, Any]] = []
    with PyavReader(path, kept_packet_bytes=KEPT_PACKET_BYTES) as reader:
        for video in group.videos:
            begin_part(folder_name(video))
            started = time.perf_counter()
            place = places[folder_name(video)]
            target = out / place
            try:
                with writing(target):
                    target.parent.mkdir(parents=True, exist_ok=True)
                with publish(target) as stream:
                    facts = write_clip(reader, path, video, Path(stream.name), settings=settings, name=place)
                    if source_state(path) != before:
                        raise CorruptVideo(f"{path}: changed while it was read; run the same command again.")
                entries.append({"clip": place, "facts": asdict(facts)})
            except CannotWrite:
                raise
            except (VidprepError, ValueError, MemoryError) as error:
                entries.append(fault_entry("clip", place, path, error))
            entries[-1]["seconds"] = round(time.perf_counter() - started, 3)
    return entries


def _report(journal: Journal, state: JournalState, *, num_new: int) -> ClipReport:
    """What has become of the videos of this run."""
    keys = [key for key, _ in journal.rows[journal.part.start : journal.part.stop]]
    facts = [entry["facts"] for _, known, entry in journal.entries(state, keys) if known.is_done]
    return ClipReport(
        folder=journal.folder,
        num_clips=len(facts),
        num_copied=sum(fact["is_copied"] for fact in facts),
        num_new=num_new,
        num_bytes=sum(fact["num_bytes"] for fact in facts),
        faults=journal.faults(state),
    )


def _finish(
    info: DatasetInfo,
    split: Split,
    places: Mapping[str, str],
    journal: Journal,
    state: JournalState,
    *,
    num_new: int,
) -> ClipReport:
    """Write the list of the clips, and of the faults."""
    out = journal.folder
    report = _report(journal, state, num_new=num_new)
    if info.name == folder.INFO.name:
        _write_table(split, places, out)
    else:
        videos = tuple(Video(video_id=folder_name(video), labels=video.labels) for video in split.videos)
        write_split(
            Split(
                dataset=split.dataset,
                split=split.split,
                task=split.task,
                classes=split.classes,
                noun_classes=split.noun_classes,
                videos=videos,
            ),
            list_path(out, split.split),
        )
    with publish(out / f"{split.split}.clips.faults.csv") as stream:
        stream.write(faults_to_csv(report.faults).encode())
    return report


def _write_table(split: Split, places: Mapping[str, str], out: Path) -> None:
    """The list of a folder of one's own: video,label, and the names of the classes."""
    import csv
    import io

    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["video", "label"])
    for video in split.videos:
        labels = LABEL_SEPARATOR.join(map(str, video.labels))
        writer.writerow([places[folder_name(video)], labels])
    if split.classes:
        with publish(out / folder.CLASSES_FILE) as stream:
            stream.write("".join(f"{name}\n" for name in split.classes).encode())
    with publish(out / f"{split.split}.csv") as stream:
        stream.write(text.getvalue().encode())


# From one video to a clip


def write_clip(
    reader: PyavReader, source: Path, video: Video, target: Path, *, settings: ClipFormat, name: str = ""
) -> ClipFacts:
    """Write one clip; `target` is written in place and is whole when this returns.

    The frames are those that begin in the segment, start <= time < end, counted from the video's first frame.

    Args:
        reader: of the video.
        source: the same file, for its sound.
        video: says which segment is wanted.
        target: the file to write.
        settings: size, rate, codec.
        name: that the facts give the clip.

    Raises:
        CorruptVideo: a frame does not decode, or the clip does not hold what it should.
        ValueError: no frame begins in the segment.
    """
    times, nominal = _times(reader)
    inside = frames_between(times, video.start_seconds, video.end_seconds)
    first, last = int(inside[0]), int(inside[-1])
    coder = CODERS[settings.codec]
    size = _even(frame_size(reader.width, reader.height, settings.short_side))
    copied = _copied_packets(reader, settings, first, last, size=size)
    if settings.fps is None:
        chosen = inside
    else:
        end = (
            times[-1] + 1 / float(nominal)
            if video.end_seconds is None
            else min(video.end_seconds, times[-1] + 1 / float(nominal))
        )
        chosen = first + select_frames(times[inside], fps=settings.fps, frame_rate=float(nominal), end_seconds=end)
    options = {"fflags": "+bitexact"}  # without it, WebM files carry a random number
    if coder.container != "webm":
        options["movflags"] = "+faststart"
    try:
        with av.open(str(target), "w", format=coder.container, options=options) as container:
            if copied is not None:
                stream: Any = container.add_stream_from_template(reader.stream)
                pictures = _shifted(reader, copied, stream)
            else:
                stream = _add_encoder(container, reader, settings, size=size, nominal=nominal)
                pictures = _encoded(reader, stream, chosen, times, settings, size=size)
            seconds = (float(times[first]), _end_of(times, last, nominal))
            sound = _sound(container, source, seconds, coder) if settings.keeps_audio else iter(())
            _mux(container, pictures, sound)
    except av.error.FFmpegError as error:
        if isinstance(error, OSError) and error.errno is not None and error.errno > 0:
            raise CannotWrite(f"{target.name}: cannot be written ({error.strerror}).") from error
        raise CorruptVideo(f"{source}: its clip cannot be encoded: {error.strerror or error}.") from error
    with PyavReader(target) as made:
        if made.num_frames != len(chosen) or (copied is None and (made.width, made.height) != size):
            raise CorruptVideo(
                f"{source}: its clip came out with {made.num_frames} frames of {made.width}x{made.height} pixels, "
                f"expected {len(chosen)} of {size[0]}x{size[1]}; try it without copying (--no-copy)."
            )
        width, height = made.width, made.height
    return ClipFacts(
        path=name or target.name,
        num_frames=len(chosen),
        width=width,
        height=height,
        start_seconds=float(times[first]),
        is_copied=copied is not None,
        num_bytes=target.stat().st_size,
    )


def _times(reader: PyavReader) -> tuple[NDArray[np.float64], Fraction]:
    """When each frame is shown, from the first one on, and the nominal rate."""
    nominal = reader.stream.guessed_rate or reader.stream.average_rate or Fraction(25)
    stored = reader.pts_seconds
    # A file that stores no times (raw streams) is taken at its nominal rate.
    times = stored if np.all(np.isfinite(stored)) else np.arange(reader.num_frames) / float(nominal)
    # Times are rational in the file: a cut at 2 s begins with the frame of 2 s, not with the one after it.
    return np.round(times - times[0], 6), nominal


def _end_of(times: NDArray[np.float64], last: int, nominal: Fraction) -> float:
    return float(times[last + 1]) if last + 1 < len(times) else float(times[last]) + 1 / float(nominal)


def _even(size: tuple[int, int]) -> tuple[int, int]:
    """4:2:0 needs even sides."""
    width, height = (max(side - side % 2, 2) for side in size)
    return width, height


def _copied_packets(
    reader: PyavReader, settings: ClipFormat, first: int, last: int, *, size: tuple[int, int]
) -> list[Any] | None:
    """The packets of these frames where they can be taken as they are."""
    is_same = (
        settings.copies
        and settings.fps is None
        and settings.gop is None
        and (settings.short_side is None or size == (reader.width, reader.height))
        and reader.stream.codec_context.codec.canonical_name == settings.codec
        and not COPIED_CONTAINERS.isdisjoint(reader.stream.container.format.name.split(","))
    )
    return reader.packets_of(first, last) if is_same else None


def _shifted(reader: PyavReader, packets: Iterable[Any], stream: Any) -> Iterator[Any]:
    """Copies of packets, so that the first picture is shown at 0."""
    listed = list(packets)
    origin = min(packet.pts for packet in listed)
    for packet in listed:
        copy = av.Packet(bytes(packet))
        copy.pts, copy.dts = packet.pts - origin, packet.dts - origin
        copy.time_base, copy.duration = packet.time_base, packet.duration
        copy.is_keyframe = packet.is_keyframe
        copy.stream = stream
        yield copy


def _add_encoder(
    container: Any, reader: PyavReader, settings: ClipFormat, *, size: tuple[int, int], nominal: Fraction
) -> Any:
    coder = CODERS[settings.codec]
    quality = coder.quality if settings.quality is None else settings.quality
    preset = settings.preset or coder.preset
    rate = nominal if settings.fps is None else Fraction(settings.fps).limit_denominator(100_000)
    options: dict[str, str] = {}
    if settings.codec == "h264":
        # x264 with its macroblock tree gives small pictures one of several encodings at random.
        options = {"crf": str(quality), "preset": preset, "x264-params": "open-gop=0:mbtree=0"}
    elif settings.codec == "vp9":
        options = {"crf": str(quality), "b": "0", "deadline": "good", "cpu-used": preset, "row-mt": "0"}
    stream: Any = container.add_stream(coder.encoder, rate=rate, options=options)
    stream.width, stream.height = size
    stream.pix_fmt = "yuvj420p" if settings.codec == "mjpeg" else "yuv420p"
    stored = reader.stream.time_base or Fraction(1, 90_000)
    stream.codec_context.time_base = stored if settings.fps is None else 1 / rate
    stream.codec_context.thread_count = 1
    if settings.gop is not None:
        stream.codec_context.gop_size = settings.gop
    if settings.codec == "mjpeg":
        stream.codec_context.options = {"global_quality": str(quality * QUANTISER_UNIT), "flags": "+qscale"}
        stream.codec_context.color_range = ColorRange.JPEG
    else:
        source = reader.stream.codec_context
        is_rgb = source.format is not None and source.format.is_rgb
        stream.codec_context.colorspace = Colorspace.ITU601 if is_rgb else source.colorspace
        stream.codec_context.color_range = ColorRange.MPEG if is_rgb else source.color_range
        stream.codec_context.color_primaries = source.color_primaries
        stream.codec_context.color_trc = source.color_trc
    return stream


def _encoded(
    reader: PyavReader,
    stream: Any,
    chosen: NDArray[np.int64],
    times: NDArray[np.float64],
    settings: ClipFormat,
    *,
    size: tuple[int, int],
) -> Iterator[Any]:
    """The packets of the clip; a frame that repeats is scaled once."""
    unit = stream.codec_context.time_base
    scaler = _Scaler(size, is_jpeg=settings.codec == "mjpeg")
    distinct, counts = np.unique(chosen, return_counts=True)
    position = 0
    for index, frame, count in zip(distinct, reader.iterate_stored(distinct), counts.tolist(), strict=True):
        scaled = scaler.scale(frame, reader.orientation_of(frame))
        for _ in range(count):
            seconds = times[index] - times[distinct[0]]
            scaled.pts = position if settings.fps is not None else round(seconds / unit)
            scaled.time_base = unit
            scaled.pict_type = 0  # key frames are the encoder's choice, not the source's
            position += 1
            yield from stream.encode(scaled)
    yield from stream.encode(None)


class _Scaler:
    """Decoded frames at one size, upright, 4:2:0, in the matrix and range of the source (of JPEG: its own)."""

    def __init__(self, size: tuple[int, int], *, is_jpeg: bool) -> None:
        self._size = size
        self._scaler = VideoReformatter()
        self._jpeg = JpegEncoder(width=size[0], height=size[1], quality=100) if is_jpeg else None

    def scale(self, frame: av.VideoFrame, turn: Orientation) -> av.VideoFrame:
        width, height = self._size[::-1] if turn[0][0] == 0 else self._size
        if self._jpeg is not None:
            scaled = self._jpeg.scale(frame, width, height)
        else:
            is_full = frame.color_range == ColorRange.JPEG or frame.format.name.startswith("yuvj")
            scaled = self._scaler.reformat(
                frame,
                width=width,
                height=height,
                format="yuv420p",
                dst_colorspace=Colorspace.ITU601 if frame.format.is_rgb else None,
                dst_color_range=ColorRange.JPEG if is_full and not frame.format.is_rgb else ColorRange.MPEG,
                interpolation=Interpolation.BICUBIC,
                threads=1,
            )
        if turn != UPRIGHT or scaled is frame:
            scaled = _turned(scaled, turn)
        return scaled


def _turned(frame: av.VideoFrame, turn: Orientation) -> av.VideoFrame:
    """A copy that lies upright."""
    is_on_its_side = turn[0][0] == 0
    width, height = (frame.height, frame.width) if is_on_its_side else (frame.width, frame.height)
    upright = av.VideoFrame(width, height, frame.format.name)
    upright.colorspace, upright.color_range = frame.colorspace, frame.color_range
    for source, target in zip(frame.planes, upright.planes, strict=True):
        _rows(target)[:] = turn_upright(_rows(source)[:, :, None], turn)[:, :, 0]
    return upright


def _rows(plane: Any) -> NDArray[np.uint8]:
    rows = np.frombuffer(plane, dtype=np.uint8).reshape(plane.height, plane.line_size)
    return rows[:, : plane.width]


def _sound(container: Any, source: Path, seconds: tuple[float, float], coder: _Coder) -> Iterator[Any]:
    """The packets of the sound of these seconds, from 0; none where the video has no sound."""
    with av.open(f"file:{source}", metadata_errors="replace") as opened:
        stream: Any = opened.streams.best("audio")
        if stream is None:
            return iter(())
        pictures = open_container(source)
        with pictures[0]:
            first_picture = float((pictures[1].start_time or 0) * (pictures[1].time_base or 0))
        begin, end = seconds[0] + first_picture, seconds[1] + first_picture
        if stream.codec_context.codec.canonical_name in coder.audio_copied:
            target = container.add_stream_from_template(stream)
            return iter(_copied_sound(opened, stream, target, begin, end))
        target = container.add_stream(coder.audio_encoder, rate=_rate_of_sound(coder, stream.rate))
        return iter(_encoded_sound(opened, stream, target, begin, end))


def _rate_of_sound(coder: _Coder, rate: int) -> int:
    return 48_000 if coder.audio_encoder == "libopus" else rate


def _copied_sound(opened: Any, stream: Any, target: Any, begin: float, end: float) -> list[Any]:
    packets = []
    for packet in opened.demux(stream):
        if packet.pts is None or not begin <= packet.pts * packet.time_base < end:
            continue
        copy = av.Packet(bytes(packet))
        shift = round(begin / packet.time_base)
        copy.pts = packet.pts - shift
        copy.dts = (packet.dts if packet.dts is not None else packet.pts) - shift
        copy.time_base, copy.duration, copy.is_keyframe = packet.time_base, packet.duration, True
        copy.stream = target
        packets.append(copy)
    return packets


def _encoded_sound(opened: Any, stream: Any, target: Any, begin: float, end: float) -> list[Any]:
    context = target.codec_context
    resampler = AudioResampler(
        format=context.format, layout=context.layout, rate=context.sample_rate, frame_size=context.frame_size or None
    )
    packets, position = [], 0
    kept = (frame for frame in opened.decode(stream) if frame.time is not None and begin <= frame.time < end)
    for frame in (*kept, None):
        for resampled in resampler.resample(frame):
            resampled.pts, resampled.time_base = position, Fraction(1, context.sample_rate)
            position += resampled.samples
            packets += target.encode(resampled)
    return packets + list(target.encode(None))


def _mux(container: Any, pictures: Iterable[Any], sound: Iterable[Any]) -> None:
    """Write packets, sound before the pictures of its time."""
    waiting = deque(sound)
    for packet in pictures:
        while waiting and waiting[0].dts * waiting[0].time_base <= packet.dts * packet.time_base:
            container.mux(waiting.popleft())
        container.mux(packet)
    for packet in waiting:
        container.mux(packet)
