"""The command `vidprep`: each sub-command is one call of the library, and says in words what came of it."""

import os
import re
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
import typer.core

from vidprep import __version__
from vidprep.console import run_app
from vidprep.errors import UnknownName, UsageError, suggest

# Everything heavy is imported by the command that needs it: `vidprep --help` answers at once.
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from vidprep.ffmpeg import FfmpegOptions
    from vidprep.index import Fault
    from vidprep.shard import ShardReport
    from vidprep.splits import Split
    from vidprep.store import Location
    from vidprep.tasks import ArrayTask
    from vidprep.types import DatasetInfo, FrameAnnotation, FrameFormat

__all__ = ["app", "main"]

# click's UsageError, which typer brings along under a name that changes with its version.
WrongCommandLine: type[Exception] = typer.BadParameter.__mro__[1]


class _OneLineErrors(typer.core.TyperGroup):
    """Says what is wrong with a command line in one line, as with all other errors."""

    def make_context(self, info_name: str | None, args: list[str], *more: Any, **extra: Any) -> Any:
        with _said_in_one_line():
            # Not the name of the file that was started, which differs with the way it was installed.
            return super().make_context("vidprep", args, *more, **extra)

    def invoke(self, ctx: Any) -> Any:
        with _said_in_one_line():
            return super().invoke(ctx)


@contextmanager
def _said_in_one_line() -> Iterator[None]:
    try:
        yield
    except WrongCommandLine as error:
        context = getattr(error, "ctx", None)
        where = context.command_path if context is not None else "vidprep"
        sentence = str(getattr(error, "format_message", error.__str__)()).rstrip(".")
        raise UsageError(f"{sentence}; see `{where} --help`.") from error


app = typer.Typer(
    name="vidprep",
    cls=_OneLineErrors,
    help="Video data sets from files to verified WebDataset shards.",
    invoke_without_command=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


class Check(StrEnum):
    """How thoroughly a video is looked at."""

    decode = "decode"
    open = "open"


class VerifyCheck(StrEnum):
    """How thoroughly a video is verified."""

    decode = "decode"
    sample = "sample"
    open = "open"


class Unit(StrEnum):
    """What a row of a list is."""

    video = "video"
    segment = "segment"


class Content(StrEnum):
    """What shards hold."""

    video = "video"
    frames = "frames"


class Source(StrEnum):
    """What shards are made from."""

    videos = "videos"
    frames = "frames"


class RateMode(StrEnum):
    """What a frame rate means."""

    filter = "filter"
    output = "output"


class Engine(StrEnum):
    """Who does the work: processes of this machine, or a Dask cluster."""

    loky = "loky"
    dask = "dask"


class Backend(StrEnum):
    """What decodes, scales and encodes."""

    pyav = "pyav"
    ffmpeg = "ffmpeg"


class ClipCodec(StrEnum):
    """How clips are stored."""

    h264 = "h264"
    vp9 = "vp9"
    mjpeg = "mjpeg"


class ColourSubsampling(StrEnum):
    """Of colour against brightness."""

    half = "420"
    half_width = "422"
    none = "444"


Dataset = Annotated[str, typer.Option("--dataset", "-d", help="Name of the data set; `vidprep list` names them.")]
DataRoot = Annotated[Path, typer.Option("--data-root", help="Folder of its videos (folder: or the CSV file itself).")]
SplitName = Annotated[
    str | None, typer.Option("--split", "-s", help="Split; may be left out where there is only one (folder: all).")
]
Workers = Annotated[
    int, typer.Option("--workers", "-w", min=1, help="Processes that work at the same time.", show_default="all cores")
]
CheckHow = Annotated[Check, typer.Option("--check", help="Decode all of each video, or only open it.")]
Fps = Annotated[float | None, typer.Option("--fps", help="Frames per second; 0 keeps every frame.")]
Rate = Annotated[
    RateMode | None, typer.Option("--rate-mode", help="As ffmpeg -vf fps=N (filter), or as ffmpeg -r N (output).")
]
NumFrames = Annotated[
    int | None, typer.Option("--num-frames", min=1, help="So many frames of each video, evenly spread.")
]
Keyframes = Annotated[bool, typer.Option("--keyframes", help="Only the key frames of each video.")]
ShortSide = Annotated[int | None, typer.Option("--short-side", help="Shorter side in pixels; 0 keeps the size.")]
Height = Annotated[int | None, typer.Option("--height", min=1, help="Height in pixels, the width in proportion.")]
Size = Annotated[str | None, typer.Option("--size", help="Exactly this size: WIDTHxHEIGHT.")]
Task = Annotated[
    str | None,
    typer.Option("--task", help="Do part I of N only, as one of a job array: 2/3.", metavar="I/N", show_default="all"),
]
Quality = Annotated[int | None, typer.Option("--quality", help="JPEG quality, 1 to 100.")]
ChosenSubsampling = Annotated[
    ColourSubsampling | None,
    typer.Option("--subsampling", help="Of colour in JPEG: half the size, half the width, none."),
]


ChosenEngine = Annotated[
    Engine | None, typer.Option("--engine", help="Processes of this machine (loky), or a cluster (dask).")
]
Scheduler = Annotated[
    str | None, typer.Option("--scheduler", help="Address of the cluster's Dask scheduler: tcp://HOST:8786.")
]
TimeLimit = Annotated[
    float, typer.Option("--time-limit", min=0, help="Seconds for a video; one that takes longer is given up; 0: none.")
]
Retry = Annotated[
    list[str] | None,
    typer.Option("--retry", help="Try again what failed for this reason (missing, damaged, hung ...), or all: failed."),
]


def _num_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _print_version(is_asked: bool) -> None:
    if is_asked:
        typer.echo(f"vidprep {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
        raise typer.Exit(2)


@app.command("list")
def list_datasets(
    name: Annotated[str | None, typer.Argument(help="One data set: where it is from, how to get it.")] = None,
) -> None:
    """List the data sets, or say more about one."""
    from vidprep.datasets import DATASETS, get

    if name is not None:
        _describe(get(name))
        return
    rows = [("name", "title", "task", "classes", "splits")]
    for info in DATASETS.values():
        rows.append(
            (
                info.name,
                info.title,
                info.task.replace("_", " "),
                str(info.num_classes or "its own"),
                ", ".join(f"{split} {count:,}" if count else split for split, count in info.splits.items()),
            )
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        typer.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _describe(info: "DatasetInfo") -> None:
    frames = info.frames
    rate = "every frame" if frames.fps is None else f"{frames.fps:g} fps ({frames.rate_mode})"
    size = "own size" if frames.short_side is None else f"short side {frames.short_side}"
    facts = {
        "title": info.title,
        "task": info.task.replace("_", " "),
        "classes": str(info.num_classes or "its own"),
        "splits": ", ".join(f"{split} {count:,}" if count else split for split, count in info.splits.items()),
        "videos": " or ".join(info.video_paths),
        "frames": f"{rate}, {size}, JPEG quality {frames.jpeg_quality}, {frames.template}",
        "how to get": info.instructions,
        "homepage": info.homepage,
        "licence": info.licence,
        "paper": info.paper,
    }
    typer.echo(info.name)
    for label, text in facts.items():
        if text:
            typer.echo(f"  {label + ':':<12}{text}")


@app.command()
def info(name: Annotated[str, typer.Argument(help="Name of the data set.")]) -> None:
    """One screen about a data set: what it is, counts, licence, how to get it, its traps, the commands."""
    from vidprep.datasets import info_text

    typer.echo(info_text(name).rstrip("\n"))


@app.command()
def toy(
    data_root: Annotated[Path, typer.Option("--data-root", help="Folder to write to.")],
    name: Annotated[str, typer.Argument(help="toy: clips to classify; toy_detection: sequences with boxes.")] = "toy",
    workers: Workers = _num_cores(),
) -> None:
    """Generate a toy data set: clips of eight classes that only motion tells apart, or moving shapes with boxes."""
    from vidprep.datasets import DATASETS, toy, toy_detection

    makers = {"toy": toy.generate, "toy_detection": toy_detection.generate}
    if name not in makers:
        raise UnknownName(f"no generated data set {name!r}; {suggest(name, makers)}")
    info = DATASETS[name]
    makers[name](data_root, workers=workers, progress="toy clips")
    what = "sequences" if info.task == "detection" else "clips"
    typer.echo(f"{data_root}: {sum(count or 0 for count in info.splits.values())} {what} of {info.num_classes} classes")


@app.command()
def miniature(
    name: Annotated[str, typer.Argument(help="Name of the data set.")],
    out: Annotated[Path, typer.Option("--out", help="Folder to write to: a new or an empty one.")],
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of the ids, the times and the order.")] = 0,
) -> None:
    """Make a small, valid copy of a data set in its official form, from generated videos."""
    from vidprep.miniature import make_miniature

    made = make_miniature(name, out, seed=seed)
    for split_name, expected in made.splits.items():
        faulty = f", {len(expected.faults)} faulty" if expected.faults else ""
        typer.echo(f"{split_name}: {len(expected.samples)} samples{faulty}")
    typer.echo("traps:")
    for trap, place in made.traps.items():
        typer.echo(f"  {trap}: {place}")
    annotations = " ".join(f"--annotations {shlex.quote(str(path))}" for path in made.annotation_files)
    typer.echo("try it:")
    typer.echo(f"  vidprep download {name} --from {shlex.quote(str(made.archives))} --data-root ROOT")
    typer.echo(f"  vidprep split {name} {annotations} --data-root ROOT")


@app.command()
def download(
    name: Annotated[str, typer.Argument(help="Name of the data set.")],
    data_root: Annotated[Path, typer.Option("--data-root", help="Folder to write to.")],
    split_name: Annotated[
        str | None, typer.Option("--split", "-s", help="Only what this split needs.", show_default="all")
    ] = None,
    source: Annotated[
        Path | None, typer.Option("--from", help="Take the archives and files that lie in this folder.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be fetched, and what is free.")] = False,
    parallel: Annotated[int, typer.Option("--parallel", "-p", min=1, help="Files at the same time.")] = 4,
    delete_archives: Annotated[
        bool, typer.Option("--delete-archives", help="Remove each archive when it is unpacked and verified.")
    ] = False,
    mirror: Annotated[
        str | None, typer.Option("--mirror", help="A server with the publisher's paths: http://host:8000")
    ] = None,
    accept_terms: Annotated[
        bool, typer.Option("--accept-terms", help="You signed what the publisher asks for; fetch what it links to.")
    ] = False,
    youtube: Annotated[
        bool, typer.Option("--youtube", help="Fetch the videos of the split that have no file yet from YouTube.")
    ] = False,
    max_height: Annotated[int, typer.Option("--max-height", min=1, help="Of videos from YouTube, in pixels.")] = 720,
    retry: Annotated[
        list[str] | None,
        typer.Option("--retry", help="With --youtube: try again what failed for this reason, too; repeat."),
    ] = None,
) -> None:
    """Fetch a data set from its publisher, or take it from a folder, and unpack it."""
    from vidprep import acquire
    from vidprep.datasets import get
    from vidprep.datasets.info import how_generated

    info = get(name)
    if youtube:
        if source is not None or mirror is not None:
            raise UsageError("--youtube asks YouTube; leave --from and --mirror out.")
        _download_youtube(name, split_name, data_root, dry_run=dry_run, max_height=max_height, retry=retry or [])
        return
    if retry:
        raise UsageError("--retry: with --youtube only; other downloads are always tried again.")
    if info.access in ("generated", "own"):
        make_it = f"make it: `{how_generated(info)} --data-root {data_root}`"
        cure = make_it if info.access == "generated" else "you have it"
        raise UsageError(f"{name} is not downloaded; {cure}.")
    if source is not None:
        if dry_run or mirror is not None:
            raise UsageError("--from fetches nothing; leave --dry-run and --mirror out.")
        report = acquire.take_dataset(
            info, source, data_root, split=split_name, delete_archives=delete_archives, progress="unpack"
        )
    else:
        if not info.files or (info.access == "form" and not (accept_terms or dry_run)):
            typer.echo(f"{name} is not fetched without you: {info.instructions}")
            typer.echo(f"Then: vidprep download {name} --from DIR --data-root {data_root}")
            if info.files and info.access == "form":
                typer.echo(f"Or, once its terms are accepted: vidprep download {name} --accept-terms ...")
            raise typer.Exit(1)
        if dry_run:
            plan, failures = acquire.plan_dataset(info, data_root, split=split_name, mirror=mirror)
            typer.echo(plan.to_text())
            for failure in failures:
                typer.echo(f"  {failure.path.name}: {failure.reason}")
            raise typer.Exit(1 if failures else 0)
        report = acquire.download_dataset(
            info,
            data_root,
            split=split_name,
            parallel=parallel,
            mirror=mirror,
            delete_archives=delete_archives,
            progress="download",
        )
    typer.echo(report.to_text())
    if source is None and info.access == "youtube":
        typer.echo(f"The videos themselves: {info.instructions}")
        typer.echo(f"Or from YouTube: vidprep download {name} --data-root {data_root} --split SPLIT --youtube")
    if report.failures:
        raise typer.Exit(1)


def _download_youtube(
    name: str, split_name: str | None, data_root: Path, *, dry_run: bool, max_height: int, retry: list[str]
) -> None:
    """Fetch the videos of a split that have no file."""
    from vidprep.youtube import fetch_videos, youtube_videos

    info, chosen, paths = _load(name, split_name, data_root)
    missing = {video.video_id: video for video in chosen.videos if video.video_id not in paths}
    wanted = youtube_videos(info, missing.values(), split=chosen.split)
    if dry_run:
        typer.echo(f"{len(wanted)} videos of {name}/{chosen.split} have no file and would be asked for at YouTube.")
        return
    report = fetch_videos(
        wanted,
        data_root,
        ledger=data_root / ".vidprep" / "youtube.jsonl",
        retry=retry,  # type: ignore[arg-type]  # checked there
        max_height=max_height,
        progress="youtube",
    )
    typer.echo(report.to_text())
    if not report.is_complete:
        raise typer.Exit(1)


@app.command()
def split(
    dataset: Annotated[str, typer.Argument(help="Name of the data set.")],
    annotations: Annotated[
        list[Path], typer.Option("--annotations", "-a", help="An official annotation file, or several.")
    ],
    data_root: Annotated[
        Path, typer.Option("--data-root", help="Where its videos lie; the lists go to splits/ there.")
    ],
    more: Annotated[list[Path] | None, typer.Argument(help="Further annotation files.", metavar="[FILE]...")] = None,
    unit: Annotated[
        Unit, typer.Option("--unit", help="A row for each video, or for each annotated segment (activitynet).")
    ] = Unit.video,
) -> None:
    """Build a data set's lists of videos from its official annotation files."""
    from vidprep.datasets import activitynet, build_splits, list_path, note_count
    from vidprep.splits import write_split

    files = [*annotations, *(more or ())]
    if unit is Unit.video:
        splits = build_splits(dataset, files)
    elif dataset == activitynet.INFO.name:
        splits = {name: note_count(built) for name, built in activitynet.build_splits(files, unit="segment").items()}
    else:
        raise UsageError(
            f"--unit segment: for activitynet; the annotations of {dataset} leave no choice of what a row is."
        )
    for name, built in splits.items():
        path = list_path(data_root, name)
        write_split(built, path)
        for note in built.notes:
            typer.echo(f"note: {note}")
        num_videos = len({video.video_id for video in built.videos})
        rows = f"{len(built.videos)} segments of {num_videos}" if num_videos < len(built.videos) else str(num_videos)
        nouns = f" (verbs) and {len(built.noun_classes)} nouns" if built.noun_classes else ""
        typer.echo(f"{path}: {rows} videos, {len(built.classes)} classes{nouns}")


@app.command()
def extract(
    dataset: Dataset,
    data_root: DataRoot,
    split_name: SplitName = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder of the frames.", show_default="DATA_ROOT/frames/SPLIT")
    ] = None,
    fps: Fps = None,
    rate_mode: Rate = None,
    num_frames: NumFrames = None,
    is_keyframes: Keyframes = False,
    short_side: ShortSide = None,
    height: Height = None,
    size: Size = None,
    quality: Quality = None,
    subsampling: ChosenSubsampling = None,
    template: Annotated[str | None, typer.Option("--template", help="Names of the frames: image_{:05d}.jpg")] = None,
    backend: Annotated[
        Backend, typer.Option("--backend", help="In the process itself, or by the ffmpeg program: slower.")
    ] = Backend.pyav,
    filters: Annotated[
        str | None, typer.Option("--filter", help="With --backend ffmpeg: a chain of its filters, as after -vf.")
    ] = None,
    qscale: Annotated[
        int | None, typer.Option("--qscale", help="With --backend ffmpeg: its quality, 2 to 31.", show_default="2")
    ] = None,
    task: Task = None,
    workers: Workers = _num_cores(),
    engine: ChosenEngine = None,
    scheduler: Scheduler = None,
    time_limit: TimeLimit = 600.0,
    retry: Retry = None,
) -> None:
    """Extract JPEG frames from the videos of a split, as the data set's published frames are."""
    from vidprep.extract import extract as extract_split
    from vidprep.tasks import parse_task

    part = None if task is None else parse_task(task)
    info, chosen, paths = _load(dataset, split_name, data_root)
    settings = _frame_format(
        info,
        fps=fps,
        rate_mode=rate_mode,
        num_frames=num_frames,
        is_keyframes=is_keyframes,
        short_side=short_side,
        height=height,
        size=size,
        quality=quality,
        subsampling=subsampling,
        template=template,
    )
    folder = out or _frames_folder(data_root, chosen.split)
    report = extract_split(
        chosen,
        paths,
        out=folder,
        settings=settings,
        delivered=info.frames if info.media == "frames" else None,
        ffmpeg=_ffmpeg_options(backend, filters, qscale, quality),
        workers=workers,
        task=part,
        scheduler=_scheduler(engine, scheduler),
        time_limit_seconds=time_limit or None,
        retry=retry or (),
        progress=f"extract {chosen.split}",
    )
    was_there = report.num_videos - report.num_new
    there = f", {was_there} of them were there already" if was_there else ""
    of_task = "" if report.is_finished else f"task {part}: "
    typer.echo(f"{report.folder}: {of_task}{report.num_frames} frames of {report.num_videos} videos{there}")
    if not report.is_finished:
        left = f"{report.num_missing} videos of other tasks are missing" if report.num_missing else ""
        typer.echo(f"{left or 'another task is at work'}; the last task to finish writes the index.")
    _tell_faults(report.faults, num_videos=len(chosen.videos), what="without frames")


@app.command()
def clips(
    dataset: Dataset,
    data_root: DataRoot,
    out: Annotated[Path, typer.Option("--out", help="Folder of the clips: a data root of the same data set.")],
    split_name: SplitName = None,
    codec: Annotated[
        ClipCodec, typer.Option("--codec", help="H.264 in MP4, VP9 in WebM or MJPEG in MOV.")
    ] = ClipCodec.h264,
    short_side: Annotated[
        int | None, typer.Option("--short-side", help="Shorter side in pixels, even.", show_default="as it is")
    ] = None,
    fps: Annotated[
        float | None, typer.Option("--fps", help="Frames per second, as ffmpeg -vf fps=N.", show_default="as it is")
    ] = None,
    gop: Annotated[
        int | None,
        typer.Option("--gop", min=1, help="Frames between key frames, in closed groups.", show_default="the encoder's"),
    ] = None,
    quality: Annotated[
        int | None,
        typer.Option(
            "--quality", help="Lower is better: crf of x264 and VP9, MJPEG's quantiser.", show_default="23, 32, 3"
        ),
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option("--preset", help="x264's ultrafast ... placebo, VP9's 0 ... 8.", show_default="medium, 4"),
    ] = None,
    keeps_audio: Annotated[bool, typer.Option("--audio/--no-audio", help="Keep the sound.")] = False,
    copies: Annotated[
        bool, typer.Option("--copy/--no-copy", help="Copy pictures where nothing changes and the cut allows it.")
    ] = True,
    task: Task = None,
    workers: Workers = _num_cores(),
    engine: ChosenEngine = None,
    scheduler: Scheduler = None,
    time_limit: TimeLimit = 600.0,
    retry: Retry = None,
) -> None:
    """Cut, resize and re-time the videos of a split, or their annotated segments, into files of their own."""
    from vidprep.clips import ClipFormat
    from vidprep.clips import clips as make_clips
    from vidprep.tasks import parse_task

    part = None if task is None else parse_task(task)
    info, chosen, paths = _load(dataset, split_name, data_root)
    try:
        settings = ClipFormat(
            codec=codec.value,
            short_side=short_side or None,
            fps=fps or None,
            gop=gop,
            quality=quality,
            preset=preset,
            keeps_audio=keeps_audio,
            copies=copies,
        )
    except ValueError as error:
        raise UsageError(f"clip settings: {error}.") from error
    report = make_clips(
        info,
        chosen,
        paths,
        out=out,
        settings=settings,
        workers=workers,
        scheduler=_scheduler(engine, scheduler),
        time_limit_seconds=time_limit or None,
        retry=retry or (),
        task=part,
        progress=f"clips {chosen.split}",
    )
    was_there = report.num_clips - report.num_new
    there = f", {was_there} of them were there already" if was_there else ""
    of_task = "" if report.is_finished else f"task {part}: "
    typer.echo(
        f"{report.folder}: {of_task}{report.num_clips} clips, {report.num_bytes / 1e6:.1f} MB, "
        f"{report.num_copied} copied without encoding{there}"
    )
    if not report.is_finished:
        left = f"{report.num_missing} videos of other tasks are missing" if report.num_missing else ""
        typer.echo(f"{left or 'another task is at work'}; the last task to finish writes the list.")
    _tell_faults(report.faults, num_videos=len(chosen.videos), what="without a clip")


@app.command()
def shard(
    dataset: Dataset,
    data_root: Annotated[
        str, typer.Option("--data-root", help="Folder of its videos (folder: or the CSV file itself), or its URL.")
    ],
    out: Annotated[
        str, typer.Option("--out", help="Folder of the shards, or its URL (s3://BUCKET/DIR); splits may share one.")
    ],
    split_name: SplitName = None,
    content: Annotated[
        Content | None,
        typer.Option(
            "--content",
            help="The files as they are, or JPEG frames.",
            show_default="video; frames for data sets of frames and of segments",
        ),
    ] = None,
    source: Annotated[
        Source, typer.Option("--from", help="From the videos, or from the frames that `vidprep extract` wrote.")
    ] = Source.videos,
    frames_root: Annotated[
        Path | None,
        typer.Option("--frames-root", help="What `extract --out` named.", show_default="DATA_ROOT/frames/SPLIT"),
    ] = None,
    samples_per_shard: Annotated[
        int | None,
        typer.Option(
            "--samples-per-shard", min=1, help="Positions in a shard.", show_default="16 to 256, by the split"
        ),
    ] = None,
    shard_bytes: Annotated[
        str | None, typer.Option("--shard-bytes", help="Instead: about how large a shard is, 256MB.", metavar="SIZE")
    ] = None,
    task: Task = None,
    check: CheckHow = Check.decode,
    fps: Fps = None,
    rate_mode: Rate = None,
    num_frames: NumFrames = None,
    is_keyframes: Keyframes = False,
    short_side: ShortSide = None,
    height: Height = None,
    size: Size = None,
    quality: Quality = None,
    subsampling: ChosenSubsampling = None,
    workers: Workers = _num_cores(),
    engine: ChosenEngine = None,
    scheduler: Scheduler = None,
    time_limit: TimeLimit = 600.0,
    retry: Retry = None,
) -> None:
    """Write the videos of a split, or their frames, as WebDataset shards; each is checked first."""
    from vidprep.datasets import get
    from vidprep.shard import shard as shard_split
    from vidprep.store import local_or_url
    from vidprep.tasks import parse_task

    part = None if task is None else parse_task(task)
    num_bytes = None if shard_bytes is None else _parse_size(shard_bytes)
    is_from_frames = source is Source.frames
    # Data sets of frames, and those whose samples are segments of long videos, have no video file a sample.
    has_no_files = get(dataset).media == "frames" or get(dataset).task == "verb_noun"
    chosen_content = content or (Content.frames if is_from_frames or has_no_files else Content.video)
    if chosen_content is Content.video and is_from_frames:
        raise UsageError("--from frames gives shards of frames; leave --content video out.")
    options = {
        "--fps": fps,
        "--rate-mode": rate_mode,
        "--num-frames": num_frames,
        "--keyframes": is_keyframes or None,
        "--short-side": short_side,
        "--height": height,
        "--size": size,
        "--quality": quality,
        "--subsampling": subsampling,
    }
    given = [option for option, value in options.items() if value is not None]
    if given and (chosen_content is Content.video or is_from_frames):
        raise UsageError(f"{', '.join(given)}: for --content frames straight from videos, not for what is given.")
    if frames_root is not None and not is_from_frames:
        raise UsageError("--frames-root: for --from frames only.")
    place = local_or_url(data_root)
    info, chosen, paths = _load_anywhere(dataset, split_name, place, is_located=not is_from_frames)
    settings = None
    if chosen_content is Content.frames and not is_from_frames:
        settings = _frame_format(
            info,
            fps=fps,
            rate_mode=rate_mode,
            num_frames=num_frames,
            is_keyframes=is_keyframes,
            short_side=short_side,
            height=height,
            size=size,
            quality=quality,
            subsampling=subsampling,
        )
    is_delivered = info.media == "frames" and not is_from_frames
    boxes = None
    if is_delivered and info.task == "detection":
        boxes = _locate_boxes(info, chosen, {name: path for name, path in paths.items() if isinstance(path, Path)})
    report = shard_split(
        chosen,
        paths,
        out=local_or_url(out),
        content=chosen_content.value,
        frames=settings,
        delivered=info.frames if is_delivered else None,
        annotations=boxes,
        read_boxes=None if boxes is None else _box_reader(info),
        frames_from=_extracted(frames_root, place, chosen.split) if is_from_frames else None,
        samples_per_shard=samples_per_shard,
        shard_bytes=num_bytes,
        task=part,
        workers=workers,
        scheduler=_scheduler(engine, scheduler),
        time_limit_seconds=time_limit or None,
        retry=retry or (),
        check=check.value,
        progress=f"shards {chosen.split}",
    )
    _tell_shards(report, task=part)
    manifest = report.manifest
    _tell_faults(manifest.faults, num_videos=manifest.num_videos, what="in no shard")


@app.command()
def plan(
    dataset: Annotated[str, typer.Argument(help="Name of the data set; `vidprep list` names them.")],
    data_root: DataRoot,
    split_name: SplitName = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Where the result is to lie: its disk.", show_default="DATA_ROOT")
    ] = None,
    fps: Fps = None,
    rate_mode: Rate = None,
    num_frames: NumFrames = None,
    is_keyframes: Keyframes = False,
    short_side: ShortSide = None,
    height: Height = None,
    size: Size = None,
    quality: Quality = None,
    subsampling: ChosenSubsampling = None,
    num_videos: Annotated[int, typer.Option("--num-videos", "-n", min=1, help="So many are measured.")] = 8,
    clip_frames: Annotated[int, typer.Option("--clip-frames", min=1, help="Frames of a clip in training.")] = 8,
    workers: Workers = _num_cores(),
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the plan to this file, too.")] = None,
) -> None:
    """Measure a few videos; say hours, bytes, shards, and which form will load fastest, before anything is done."""
    from vidprep.engine import publish
    from vidprep.plan import make_plan

    info, chosen, paths = _load(dataset, split_name, data_root)
    options = {
        "--fps": fps,
        "--rate-mode": rate_mode,
        "--num-frames": num_frames,
        "--short-side": short_side,
        "--height": height,
        "--size": size,
        "--quality": quality,
        "--subsampling": subsampling,
    }
    given = "".join(f" {name} {value}" for name, value in options.items() if value is not None)
    made = make_plan(
        chosen,
        paths,
        settings=_frame_format(
            info,
            fps=fps,
            rate_mode=rate_mode,
            num_frames=num_frames,
            is_keyframes=is_keyframes,
            short_side=short_side,
            height=height,
            size=size,
            quality=quality,
            subsampling=subsampling,
        ),
        delivered=info.frames if info.media == "frames" else None,
        folder=out or data_root,
        workers=workers,
        num_videos=num_videos,
        num_clip_frames=clip_frames,
        command_options=f"--dataset {dataset} --data-root {shlex.quote(str(data_root))} --split {chosen.split}",
        frame_options=given + (" --keyframes" if is_keyframes else ""),
        progress="measure",
    )
    typer.echo(made.to_text())
    if json_file is not None:
        with publish(json_file.absolute()) as stream:
            stream.write(made.to_json().encode())


@app.command()
def doctor(
    folder: Annotated[
        Path | None, typer.Option("--folder", help="Where data sets are to lie.", show_default="the working directory")
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the findings to this file, too.")] = None,
) -> None:
    """Say whether this machine is fit: libraries, disk, memory; and how to mend what is not."""
    from vidprep.doctor import examine
    from vidprep.engine import publish

    report = examine(folder)
    typer.echo(report.to_text())
    if json_file is not None:
        with publish(json_file.absolute()) as stream:
            stream.write(report.to_json().encode())
    if not report.is_fit:
        raise typer.Exit(1)


@app.command()
def ledger(
    folder: Annotated[str, typer.Argument(help="What `--out` of `shard`, `extract` or `clips` named, or its URL.")],
    split_name: SplitName = None,
    csv_file: Annotated[Path | None, typer.Option("--csv", help="Write a line for each sample to this file.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the counts to this file.")] = None,
) -> None:
    """Say which samples are done, which failed and why, and which are pending."""
    import json

    from vidprep.engine import publish
    from vidprep.ledger import LedgerReport, entries_to_csv, missing_tasks, open_ledgers, read_ledger
    from vidprep.store import local_or_url

    reports = []
    with open_ledgers(local_or_url(folder), split_name) as ledgers:
        for name, paths in ledgers.items():
            report = LedgerReport(split=name)
            for entry in read_ledger(paths):
                report.count(entry)
            typer.echo(report.to_text())
            if missing := missing_tasks(paths):
                typer.echo(f"  not counted: the samples of tasks that have noted nothing yet: {missing}")
            reports.append(report)
        if csv_file is not None:
            with publish(csv_file.absolute()) as stream:
                entries_to_csv((entry for paths in ledgers.values() for entry in read_ledger(paths)), stream)
    if json_file is not None:
        with publish(json_file.absolute()) as stream:
            stream.write((json.dumps([report.to_json() for report in reports], indent=1) + "\n").encode())


@app.command()
def verify(
    shards: Annotated[
        str | None, typer.Argument(help="A folder of shards, or its URL. Or, for videos, leave it out:")
    ] = None,
    dataset: Annotated[str | None, typer.Option("--dataset", "-d", help="Data set whose videos are verified.")] = None,
    data_root: Annotated[Path | None, typer.Option("--data-root", help="Folder of its videos.")] = None,
    split_name: SplitName = None,
    check: Annotated[
        VerifyCheck, typer.Option("--check", help="Decode all of each video, some frames, or only open it.")
    ] = VerifyCheck.decode,
    is_quarantined: Annotated[
        bool, typer.Option("--quarantine", help="Move damaged files to DATA_ROOT/quarantine; quarantine.csv says why.")
    ] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the report to this file, too.")] = None,
    workers: Workers = _num_cores(),
    time_limit: Annotated[
        float | None,
        typer.Option(
            "--time-limit",
            min=0,
            help="Seconds for a video; one that takes longer is a fault; 0: none.",
            show_default="600",
        ),
    ] = None,
) -> None:
    """Verify every byte of a folder of shards, or every video of a data set."""
    from vidprep import verify as verification
    from vidprep.engine import publish
    from vidprep.store import local_or_url

    if shards is not None:
        if dataset is not None or data_root is not None:
            raise UsageError("give a folder of shards, or --dataset and --data-root, not both.")
        if is_quarantined:
            raise UsageError("--quarantine: for videos (--dataset and --data-root); shards are written again instead.")
        if time_limit is not None:
            raise UsageError("--time-limit: for videos (--dataset and --data-root), which are decoded; shards are not.")
        of_shards = verification.verify_shards(local_or_url(shards), split_name, workers=workers, progress="verify")
        text, as_json, is_good = of_shards.to_text(), of_shards.to_json(), of_shards.is_sound
    else:
        if dataset is None or data_root is None:
            raise UsageError("give a folder of shards, or --dataset and --data-root to verify videos.")
        info, chosen, paths = _load(dataset, split_name, data_root)
        boxes = _locate_boxes(info, chosen, paths) if info.task == "detection" else None
        of_videos = verification.verify_videos(
            chosen,
            paths,
            check=check.value,
            delivered=info.frames if info.media == "frames" else None,
            annotations=boxes,
            read_boxes=None if boxes is None else _box_reader(info),
            num_published=info.splits.get(chosen.split),
            workers=workers,
            time_limit_seconds=600.0 if time_limit is None else time_limit or None,
            progress=f"verify {chosen.split}",
        )
        text, as_json, is_good = of_videos.to_text(), of_videos.to_json(), not of_videos.faults
    typer.echo(text)
    if json_file is not None:
        with publish(json_file.absolute()) as stream:
            stream.write(as_json.encode())
    if is_quarantined and shards is None and data_root is not None:
        for move in verification.quarantine(of_videos, data_root):
            typer.echo(f"quarantine: {move.from_path} -> {move.to_path}")
    if not is_good:
        raise typer.Exit(1)


@app.command()
def repair(
    shards: Annotated[str, typer.Argument(help="A folder of shards, or its URL.")],
    data_root: Annotated[
        str, typer.Option("--data-root", help="Folder of the videos that they were made from, or URL.")
    ],
    split_name: SplitName = None,
    frames_root: Annotated[
        Path | None,
        typer.Option("--frames-root", help="Of shards made with --from frames.", show_default="DATA_ROOT/frames/SPLIT"),
    ] = None,
    workers: Workers = _num_cores(),
) -> None:
    """Rebuild the shards that verify finds damaged, as their plan says; the damaged ones are put aside."""
    from vidprep.repair import repair as repair_split
    from vidprep.shard import ShardReport, list_plans, read_plan
    from vidprep.shard import shard as shard_split
    from vidprep.store import local_or_url, open_store

    store = open_store(local_or_url(shards))
    begun = list_plans(store) if store.exists() else []
    if not begun:
        raise UsageError(f"{store}: no SPLIT.plan.json here; give the folder that `vidprep shard --out` wrote.")
    if split_name is None and len(begun) > 1:
        raise UsageError(f"{store}: holds shards of {', '.join(begun)}; say which with --split.")
    name = split_name or begun[0]
    plan = read_plan(store, name)
    if plan is None:
        raise UsageError(f"{store}: no {name}.plan.json; there are shards of {', '.join(begun)}.")

    def rebuild() -> ShardReport:
        place = local_or_url(data_root)
        is_from_frames = plan["source"] == "frames"
        info, chosen, paths = _load_anywhere(plan["dataset"], name, place, is_located=not is_from_frames)
        boxes = None
        if plan.get("has_boxes"):
            boxes = _locate_boxes(info, chosen, {key: path for key, path in paths.items() if isinstance(path, Path)})
        return shard_split(
            chosen,
            paths,
            out=store.location,
            content=plan["content"],
            frames=_planned_format(plan["frames"]) if plan["source"] != "frames" else None,
            delivered=_planned_format(plan.get("delivered")),
            annotations=boxes,
            read_boxes=None if boxes is None else _box_reader(info),
            frames_from=_extracted(frames_root, place, name) if is_from_frames else None,
            samples_per_shard=plan["samples_per_shard"],
            shard_bytes=plan.get("shard_bytes"),
            workers=workers,
            check=plan["check"],
            progress=f"shards {name}",
        )

    report = repair_split(store.location, name, rebuild, workers=workers, progress="verify")
    typer.echo(report.to_text())
    if not report.is_sound:
        raise typer.Exit(1)


def _planned_format(settings: "Mapping[str, Any] | None") -> "FrameFormat | None":
    from dataclasses import fields

    from vidprep.types import FrameFormat

    # A plan of another vidprep may lack settings, or have more; `shard` then says what differs.
    names = {field.name for field in fields(FrameFormat)}
    if settings is None:
        return None
    values: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in settings.items()
    }
    return FrameFormat(**{key: value for key, value in values.items() if key in names})


@app.command()
def inspect(
    shards: Annotated[str, typer.Argument(help="A folder of shards, or its URL.")],
    out: Annotated[Path, typer.Option("--out", help="The PNG file to write.")],
    split_name: SplitName = None,
    num_samples: Annotated[int, typer.Option("--num-samples", "-n", min=1, max=100, help="Rows of the sheet.")] = 8,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of the choice of samples.")] = 0,
) -> None:
    """Draw a sheet of random samples with their labels."""
    from vidprep.report import contact_sheet
    from vidprep.store import local_or_url

    rows = contact_sheet(local_or_url(shards), split_name, out, num_samples=num_samples, seed=seed)
    typer.echo(f"{out}: {len(rows)} samples")


@app.command()
def report(
    source: Annotated[
        str,
        typer.Argument(metavar="SHARDS|DATASET", help="A folder of shards, or its URL; or, with --data-root, a name."),
    ],
    out: Annotated[Path, typer.Option("--out", help="The HTML file to write.")],
    data_root: Annotated[Path | None, typer.Option("--data-root", help="Folder of the data set's videos.")] = None,
    split_name: Annotated[str | None, typer.Option("--split", "-s", help="Split; of shards all by default.")] = None,
    num_samples: Annotated[int, typer.Option("--num-samples", "-n", min=0, max=100, help="Films of each split.")] = 8,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of the choice of samples.")] = 0,
    check: Annotated[
        VerifyCheck | None, typer.Option("--check", help="Of videos: decode all, some frames, or only open each.")
    ] = None,
    workers: Workers = _num_cores(),
) -> None:
    """Write a page on shards or videos: samples that play, coverage, classes, durations, faults."""
    from vidprep.datasets import DATASETS
    from vidprep.engine import publish
    from vidprep.report import shards_page, videos_page
    from vidprep.store import local_or_url
    from vidprep.verify import verify_videos

    if out.suffix != ".html" or not out.absolute().parent.is_dir():
        raise UsageError(f"{out}: expected a name ending in .html, in a folder that exists.")
    if data_root is None:
        if check is not None:
            raise UsageError("--check: for videos (DATASET and --data-root); `vidprep verify SHARDS` reads every byte.")
        if source in DATASETS and not Path(source).exists():
            raise UsageError(f"{source}: say with --data-root where its videos lie, or give a folder of shards.")
        text = shards_page(local_or_url(source), split_name, num_samples=num_samples, seed=seed)
    else:
        info, chosen, paths = _load(source, split_name, data_root)
        boxes = _locate_boxes(info, chosen, paths) if info.task == "detection" else None
        delivered = info.frames if info.media == "frames" else None
        of_videos = verify_videos(
            chosen,
            paths,
            check=(check or VerifyCheck.open).value,
            delivered=delivered,
            annotations=boxes,
            read_boxes=None if boxes is None else _box_reader(info),
            num_published=info.splits.get(chosen.split),
            workers=workers,
            progress=f"verify {chosen.split}",
        )
        text = videos_page(chosen, paths, of_videos, delivered=delivered, num_samples=num_samples, seed=seed)
    with publish(out.absolute()) as stream:
        stream.write(text.encode())
    typer.echo(f"{out}: {len(text.encode()) / 1e6:.1f} MB")


Layout = Annotated[
    str, typer.Option("--layout", help="Code base: taps, uni_adafocus, tam, rgtp, sta or mmaction2; docs/layouts.md.")
]
Variant = Annotated[str, typer.Option("--variant", help="Of the layout, where it has several: half1, videos ...")]


@app.command()
def export(
    dataset: Annotated[str, typer.Argument(help="Name of the data set.")],
    layout_name: Layout,
    data_root: DataRoot,
    out: Annotated[Path, typer.Option("--out", help="The folder that the code base is given as its data root.")],
    split_name: SplitName = None,
    variant: Variant = "",
    frames_root: Annotated[
        Path | None,
        typer.Option("--frames-root", help="Frames that `vidprep extract` wrote, to be linked if they are the same."),
    ] = None,
    workers: Workers = _num_cores(),
) -> None:
    """Write frames and lists as a code base expects them, by its published extraction."""
    from vidprep.datasets.imagenet_vid import annotation_folder
    from vidprep.export import export as export_split
    from vidprep.layouts import find_layout

    layout = find_layout(layout_name, dataset, variant)
    info, chosen, paths = _load(dataset, split_name, data_root)
    extracted = frames_root or _frames_folder(data_root, chosen.split)
    report = export_split(
        chosen,
        paths,
        layout=layout,
        out=out,
        frames_from=extracted
        if frames_root is not None or extracted.with_name(f"{extracted.name}.parquet").is_file()
        else None,
        delivered=info.frames if info.media == "frames" else None,
        read_boxes=lambda video: _box_reader(info)(annotation_folder(paths[video.video_id])),
        workers=workers,
        progress=f"export {chosen.split}",
    )
    for note in report.notes:
        typer.echo(f"note: {note}")
    typer.echo(
        f"{report.list_file}: {report.num_videos} videos"
        f"{f', {report.num_frames} frames' if report.num_frames else ''}; "
        f"{report.num_made} made now, {report.num_linked} linked"
    )
    _tell_faults(report.faults, num_videos=len(chosen.videos), what="not in the list")


@app.command("import-list")
def import_list(
    list_file: Annotated[Path, typer.Argument(help="A list that a code base reads.")],
    dataset: Dataset,
    layout_name: Layout,
    split_name: Annotated[str, typer.Option("--split", "-s", help="Split that the list describes.")],
    root: Annotated[Path, typer.Option("--root", help="The folder that the code base is given; its frames lie below.")],
    data_root: Annotated[Path, typer.Option("--data-root", help="Folder to work in; the list goes to splits/ there.")],
    variant: Variant = "",
    class_file: Annotated[
        Path | None, typer.Option("--class-file", help="The code base's class file, if its order is another.")
    ] = None,
    is_copied: Annotated[
        bool, typer.Option("--copy-frames", help="Copy the frames, too, for `vidprep shard --from frames`.")
    ] = False,
    workers: Workers = _num_cores(),
) -> None:
    """Start from the list and the frames of a code base: check them, and make them vidprep's."""
    from vidprep.layouts import find_layout
    from vidprep.layouts.lists import adopt_frames, check_frames, read_list, write_videos

    layout = find_layout(layout_name, dataset, variant)
    listed = read_list(list_file, layout, split=split_name, root=root, class_file=class_file)
    for note in listed.split.notes:
        typer.echo(f"note: {note}")
    path = write_videos(listed, data_root)
    typer.echo(f"{path}: {len(listed.rows)} videos, {len(listed.split.classes)} classes")
    faults = {fault.video_id: fault for fault in check_frames(listed)}
    if is_copied:
        report = adopt_frames(
            listed, out=_frames_folder(data_root, split_name), workers=workers, progress=f"copy {split_name}"
        )
        typer.echo(f"{report.folder}: {report.num_frames} frames of {report.num_videos} videos")
        faults |= {fault.video_id: fault for fault in report.faults}
    _tell_faults(list(faults.values()), num_videos=len(listed.rows), what="not as listed")


class LoadDtype(StrEnum):
    """What batches hold."""

    float32 = "float32"
    uint8 = "uint8"


bench_app = typer.Typer(
    name="bench", help="Measure how fast this machine is.", no_args_is_help=False, rich_markup_mode=None
)
app.add_typer(bench_app)


@bench_app.callback()
def _bench() -> None:
    pass


@bench_app.command("load")
def bench_load(
    shards: Annotated[Path, typer.Argument(help="A folder of shards.")],
    split_name: SplitName = None,
    num_frames: Annotated[int, typer.Option("--num-frames", min=1, help="Frames of a clip.")] = 8,
    resize: Annotated[int, typer.Option("--resize", min=1, help="Short side before the crop, in pixels.")] = 256,
    crop: Annotated[int, typer.Option("--crop", min=1, help="Side of what the model sees, in pixels.")] = 224,
    dtype: Annotated[LoadDtype, typer.Option("--dtype", help="Normalised floats, or bytes.")] = LoadDtype.float32,
    train: Annotated[bool, typer.Option("--train", help="Random clips and crops.")] = False,
    whole_frames: Annotated[
        bool, typer.Option("--whole-frames", help="Frames as they are stored, for crops on the device.")
    ] = False,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Clips of a batch.")] = 16,
    workers: Annotated[
        int, typer.Option("--workers", "-w", min=1, help="Threads or processes of each.", show_default="all cores")
    ] = _num_cores(),
    rounds: Annotated[int, typer.Option("--rounds", min=1, help="Measured rounds of each backend.")] = 3,
    seconds: Annotated[float, typer.Option("--seconds", min=0.1, help="CPU time of a round.")] = 2.0,
    png: Annotated[Path | None, typer.Option("--png", help="Draw the table to this file, too.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the report to this file, too.")] = None,
) -> None:
    """Clips per second of every way to load these shards that is there, against the decoder's own limit."""
    from vidprep.bench import LoadTask, measure_loading
    from vidprep.index import read_manifest

    for path in (png, json_file):
        if path is not None and not path.absolute().parent.is_dir():
            raise UsageError(f"{path}: there is no folder {path.absolute().parent}.")
    task = LoadTask(
        folder=str(shards),
        split=read_manifest(shards, split_name).split,
        num_frames=num_frames,
        resize=resize,
        crop=crop,
        dtype=dtype.value,
        train=train,
        whole_frames=whole_frames,
        batch_size=batch_size,
        workers=workers,
    )
    report = measure_loading(task, rounds=rounds, seconds=seconds, say=lambda line: typer.echo(line, err=True))
    typer.echo(report.to_text())
    if png is not None:
        report.draw(png)
    if json_file is not None:
        json_file.write_text(report.to_json(), encoding="utf-8")


def _load(
    dataset: str, split_name: str | None, data_root: Path, *, is_located: bool = True, stands_for: str = ""
) -> "tuple[DatasetInfo, Split, dict[str, Path]]":
    """The data set, its split and the files of its videos; what its maker noted is printed."""
    from vidprep.datasets import folder, get, load_split, locate

    info = get(dataset)
    if split_name is None:
        if not data_root.exists():
            raise UsageError(f"{data_root}: no such data root for {dataset}. {info.instructions}")
        names = folder.list_splits(data_root) if dataset == folder.INFO.name else list(info.splits)
        # A CSV file is both "all" and a split of its own name.
        if len(names) > 1 and not (dataset == folder.INFO.name and data_root.is_file()):
            raise UsageError(f"{dataset} has the splits {', '.join(names)}; say which with --split.")
        split_name = folder.ALL if data_root.is_file() else names[0]
    chosen = load_split(dataset, split_name, data_root=data_root)
    for note in chosen.notes:
        typer.echo(f"note: {note.replace(str(data_root), stands_for or str(data_root))}", err=True)
    return info, chosen, locate(info, chosen, data_root) if is_located else {}


LISTS = r"(splits/)?[^/]+\.(csv|txt)"
"""Files of a data root that are read, apart from videos: lists, class names, the ledger of the quarantine."""


def _load_anywhere(
    dataset: str, split_name: str | None, data_root: "Location", *, is_located: bool = True
) -> "tuple[DatasetInfo, Split, Mapping[str, Location]]":
    """As `_load`, of a data root that may be a URL: then the paths of its videos are URLs, too."""
    import re
    import tempfile

    from vidprep.datasets import get
    from vidprep.errors import VidprepError
    from vidprep.store import placeholders

    if isinstance(data_root, Path):
        return _load(dataset, split_name, data_root, is_located=is_located)
    if get(dataset).media == "frames" or not is_located:
        raise UsageError(f"{data_root}: frames are read from a disk; copy their folder there, or shard the videos.")
    with tempfile.TemporaryDirectory(prefix="vidprep-") as scratch:
        root = Path(scratch)
        placeholders(data_root, root, is_fetched=re.compile(LISTS))
        try:
            info, chosen, found = _load(dataset, split_name, root, stands_for=data_root)
        except VidprepError as error:
            raise type(error)(str(error).replace(scratch, data_root)) from error
        return info, chosen, {name: f"{data_root}/{path.relative_to(root).as_posix()}" for name, path in found.items()}


def _extracted(frames_root: Path | None, data_root: "Location", split_name: str) -> Path:
    """Where the frames of a split lie."""
    if frames_root is None and not isinstance(data_root, Path):
        raise UsageError("--from frames: frames are read from a disk; say from where with --frames-root.")
    return frames_root or _frames_folder(Path(data_root), split_name)


def _parse_size(text: str) -> int:
    """Bytes: "256MB" is 256,000,000, "256MiB" 268,435,456, "1000" a thousand."""
    import re

    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?(?:([kmgt])(i?)b?|b)?", text.strip().lower())
    if found is None:
        raise UsageError(f"--shard-bytes: expected a size such as 256MB or 1GiB, got {text!r}.")
    unit = (1024 if found[3] else 1000) ** (" kmgt".index(found[2]) if found[2] else 0)
    return int(float(found[1]) * unit)


def _scheduler(engine: Engine | None, scheduler: str | None) -> str | None:
    if engine is Engine.dask and scheduler is None:
        raise UsageError("--engine dask needs the address of its scheduler: --scheduler tcp://HOST:8786.")
    if engine is Engine.loky and scheduler is not None:
        raise UsageError("--scheduler: for --engine dask; loky works on this machine.")
    return scheduler


def _tell_shards(report: "ShardReport", *, task: "ArrayTask | None") -> None:
    manifest = report.manifest
    num_bytes = sum(facts.num_bytes for facts in manifest.shards)
    state = f"{report.num_new_shards} written now" if report.num_new_shards else "all there already"
    of_task = f"task {task}: " if not report.is_published else ""
    typer.echo(
        f"{report.folder}: {manifest.split}: {of_task}{report.num_samples} samples in {len(manifest.shards)} shards, "
        f"{num_bytes / 1e6:.1f} MB; {state}"
    )
    if not report.is_published:
        left = f"{report.num_missing_shards} shards of other tasks are missing" if report.num_missing_shards else ""
        typer.echo(f"{left or 'another task is at work'}; the last task to finish writes the manifest.")


def _locate_boxes(info: "DatasetInfo", chosen: "Split", paths: "Mapping[str, Path]") -> "dict[str, Path] | None":
    """video_id -> the folder of its boxes; None for a split that was published without."""
    from vidprep.datasets.imagenet_vid import annotation_folder

    if chosen.split == "test":
        typer.echo(f"note: {info.name}/test was published without boxes.", err=True)
        return None
    folders = {video_id: annotation_folder(path) for video_id, path in paths.items()}
    return {video_id: folder for video_id, folder in folders.items() if folder.is_dir()}


def _box_reader(info: "DatasetInfo") -> "Callable[[Path], Sequence[FrameAnnotation]]":
    from vidprep.datasets import BOX_READERS

    return BOX_READERS[info.name]


def _frames_folder(data_root: Path, split_name: str) -> Path:
    base = data_root if data_root.is_dir() else data_root.parent
    return base / "frames" / split_name


def _frame_format(
    info: "DatasetInfo",
    *,
    fps: float | None,
    rate_mode: RateMode | None,
    short_side: int | None,
    quality: int | None,
    num_frames: int | None = None,
    is_keyframes: bool = False,
    height: int | None = None,
    size: str | None = None,
    subsampling: ColourSubsampling | None = None,
    template: str | None = None,
) -> "FrameFormat":
    """The data set's own format, but for what was asked for; of delivered frames that is all of them as they are."""
    from dataclasses import replace

    if template is not None and "/" in template:
        raise UsageError(f"--template: a file name without folders, got {template!r}.")
    changes: dict[str, object] = {"fps": None, "short_side": None, "height": None} if info.media == "frames" else {}
    if sum(given is not None for given in (short_side, height, size)) > 1:
        raise UsageError("--short-side, --height and --size: one of them says how large the frames are.")
    if num_frames is not None or is_keyframes:
        changes |= {"fps": None, "num_frames": num_frames, "keyframes_only": is_keyframes}
    if fps is not None:
        changes["fps"] = fps or None
    if rate_mode is not None:
        changes["rate_mode"] = rate_mode.value
    if short_side is not None:
        changes |= {"short_side": short_side or None, "height": None, "width": None}
    if height is not None:
        changes |= {"short_side": None, "height": height, "width": None}
    if size is not None:
        found = re.fullmatch(r"(\d+)x(\d+)", size)
        if found is None:
            raise UsageError(f"--size: WIDTHxHEIGHT in pixels, such as 320x240, got {size!r}.")
        changes |= {"short_side": None, "width": int(found[1]), "height": int(found[2])}
    if subsampling is not None:
        changes["subsampling"] = subsampling.value
    if quality is not None:
        changes["jpeg_quality"] = quality
    if template is not None:
        changes["template"] = template
    try:
        return replace(info.frames, **changes)  # type: ignore[arg-type]  # checked by FrameFormat itself
    except (ValueError, IndexError, KeyError) as error:
        raise UsageError(f"frame settings: {error}.") from error


def _ffmpeg_options(
    backend: Backend, filters: str | None, qscale: int | None, quality: int | None
) -> "FfmpegOptions | None":
    from vidprep.ffmpeg import FfmpegOptions

    if backend is Backend.pyav:
        if filters is not None or qscale is not None:
            raise UsageError("--filter and --qscale: with --backend ffmpeg only.")
        return None
    if quality is not None:
        raise UsageError("--quality: of --backend pyav; the ffmpeg program counts it otherwise, see --qscale.")
    try:
        return FfmpegOptions(filter=filters or "", **({} if qscale is None else {"qscale": qscale}))
    except ValueError as error:
        raise UsageError(f"{error}.") from error


def _tell_faults(faults: "Sequence[Fault]", *, num_videos: int, what: str) -> None:
    """Name each video that something is wrong with, and end with status 1 if there is any."""
    if not faults:
        return
    typer.echo(f"{len(faults)} of {num_videos} videos are {what}:")
    for fault in faults:
        typer.echo(f"  {fault.video_id}: {fault.reason}")
    raise typer.Exit(1)


def main() -> int:
    """Entry point: 0 done, 1 the data were wrong, 2 the question was wrong, 130 interrupted."""
    return run_app(app)
