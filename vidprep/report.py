"""What a data set looks like: a picture of samples from its shards, or a page on its shards or its videos.

The picture has a row of frames for each sample. The page has samples that play, how much of the official list is there,
the balance of the classes, durations and sizes, and the faults; `vidprep.page` draws it.
"""

import io
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from markupsafe import Markup

from vidprep import page
from vidprep.datasets import DATASETS
from vidprep.engine import publish
from vidprep.errors import CorruptShard, CorruptVideo, UsageError
from vidprep.index import Manifest, SampleRow, list_splits, read_manifest, read_samples, sample_id
from vidprep.ledger import LedgerReport, ledger_paths, read_ledger
from vidprep.page import Cell, Column, ColumnBar, Section
from vidprep.splits import Split
from vidprep.store import Location, Store, open_store
from vidprep.types import FrameFormat
from vidprep.verify import VideosReport

if TYPE_CHECKING:
    from PIL import Image, ImageFont

    from vidprep.decode.jpeg import JpegReader
    from vidprep.decode.pyav import PyavReader

__all__ = ["contact_sheet", "shards_page", "videos_page"]

NUM_FRAMES = 8
FRAME_HEIGHT = 112
MAX_FRAME_WIDTH = 224
"""Wider pictures are made smaller, so that a sheet stays readable."""
GAP = 4
MARGIN = 16
TITLE_SIZE, TEXT_SIZE = 15, 12
PAPER, INK, FAINT, EDGE = (255, 255, 255), (24, 24, 27), (113, 113, 122), (212, 212, 216)


def contact_sheet(
    folder: Location, split: str | None, png: Path, *, num_samples: int = 8, num_frames: int = NUM_FRAMES, seed: int = 0
) -> list[SampleRow]:
    """Draw random samples of a split, a row each: its classes, name and facts above frames of equal distance.

    Args:
        folder: what `vidprep shard --out` wrote, or its URL.
        split: may be left out where the folder holds only one.
        png: the picture to write.
        num_samples: rows, at most; fewer where the split has fewer samples.
        num_frames: pictures in a row; repeated where a sample has fewer.
        seed: of the choice of samples.

    Returns:
        The samples drawn, in the split's order.

    Raises:
        UsageError: no such folder or split, or no samples in it.
        CorruptShard: a sample that is not what the table says; run `vidprep verify`.
        CannotWrite: the picture cannot be written.
    """
    if num_samples < 1 or num_frames < 1:
        raise UsageError(f"a sheet needs at least 1 sample and 1 frame, got {num_samples} and {num_frames}.")
    store = open_store(folder)
    manifest = read_manifest(store, split)
    samples = read_samples(store, manifest.split)
    if not samples:
        raise UsageError(f"{store}: the split {manifest.split} has no samples to look at; see its faults.")
    rng = np.random.default_rng(seed)
    chosen = sorted(rng.choice(len(samples), size=min(num_samples, len(samples)), replace=False))
    rows = [samples[index] for index in chosen]
    strips = [[_thumbnail(frame) for frame in _frames(store, manifest, row, num_frames)] for row in rows]
    sheet = _draw(manifest, rows, strips)
    encoded = io.BytesIO()
    sheet.save(encoded, format="PNG", optimize=True)
    with publish(png.absolute()) as stream:
        stream.write(encoded.getvalue())
    return rows


def _frames(store: Store, manifest: Manifest, row: SampleRow, num_frames: int) -> "list[Image.Image]":
    """Frames at the middles of `num_frames` equal parts of a sample."""
    from PIL import Image

    from vidprep.decode.pyav import PyavReader

    media = [member for member in row.members if member.name != "json"]
    place = f"{store}/{row.shard}: sample {row.key}"
    try:
        with store.open(row.shard) as stream:

            def read(index: int) -> bytes:
                stream.seek(media[index].offset)
                return stream.read(media[index].size)

            if manifest.content == "frames":
                indices = _middles(0, len(media), num_frames)
                return [Image.open(io.BytesIO(read(index))).convert("RGB") for index in indices]
            with PyavReader(read(0)) as reader:
                return _pictures(reader, row.start_seconds, row.end_seconds, num_frames)
    except (CorruptVideo, OSError, ValueError, IndexError, Image.DecompressionBombError) as error:
        raise CorruptShard(f"{place} does not decode ({error}); run `vidprep verify {store}`.") from error


def _pictures(
    reader: "PyavReader | JpegReader", start_seconds: float | None, end_seconds: float | None, num_frames: int
) -> "list[Image.Image]":
    """Frames at the middles of `num_frames` equal parts of a segment of a video."""
    from PIL import Image

    times = reader.pts_seconds - reader.pts_seconds[0]
    first = int(np.searchsorted(times, start_seconds)) if start_seconds is not None else 0
    last = int(np.searchsorted(times, end_seconds)) if end_seconds is not None else len(times)
    first = min(first, len(times) - 1)
    batch = reader.get_frames_at(_middles(first, max(last, first + 1), num_frames))
    return [Image.fromarray(picture) for picture in batch.data.transpose(0, 2, 3, 1)]


def _middles(first: int, end: int, count: int) -> list[int]:
    return [first + (2 * part + 1) * (end - first) // (2 * count) for part in range(count)]


def _thumbnail(picture: "Image.Image") -> "Image.Image":
    from PIL import Image

    scale = min(FRAME_HEIGHT / picture.height, MAX_FRAME_WIDTH / picture.width)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    return picture.resize(size, Image.Resampling.LANCZOS)


def _draw(manifest: Manifest, rows: Sequence[SampleRow], strips: "Sequence[Sequence[Image.Image]]") -> "Image.Image":
    from PIL import Image, ImageDraw

    title_font, text_font = _font(TITLE_SIZE), _font(TEXT_SIZE)
    heading = (
        f"{manifest.dataset}/{manifest.split}: {len(rows)} of "
        f"{sum(shard.num_samples for shard in manifest.shards)} samples, {len(manifest.classes)} classes"
    )
    titles = [_title(manifest, row) for row in rows]
    details = [_details(row) for row in rows]
    text_height = TITLE_SIZE + TEXT_SIZE + 3 * GAP
    row_height = text_height + FRAME_HEIGHT + MARGIN
    strip_width = max(sum(frame.width + GAP for frame in strip) - GAP for strip in strips)
    text_width = max(
        *(title_font.getlength(text) for text in [heading, *titles]), *(text_font.getlength(text) for text in details)
    )
    width = 2 * MARGIN + int(max(strip_width, min(text_width, 2000)))
    sheet = Image.new("RGB", (width, 2 * MARGIN + TITLE_SIZE + MARGIN + len(rows) * row_height), PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((MARGIN, MARGIN), heading, fill=FAINT, font=title_font)
    top = 2 * MARGIN + TITLE_SIZE
    for title, detail, strip in zip(titles, details, strips, strict=True):
        draw.text((MARGIN, top), title, fill=INK, font=title_font)
        draw.text((MARGIN, top + TITLE_SIZE + GAP), detail, fill=FAINT, font=text_font)
        left = MARGIN
        for frame in strip:
            # An edge, so that white pictures show on the paper.
            draw.rectangle(
                (left - 1, top + text_height - 1, left + frame.width, top + text_height + frame.height), EDGE
            )
            sheet.paste(frame, (left, top + text_height))
            left += frame.width + GAP
        top += row_height
    return sheet


def _title(manifest: Manifest, row: SampleRow) -> str:
    names = _label_names(manifest.classes, manifest.noun_classes, row.labels)
    return _on_one_line(names) or ("(boxes)" if manifest.task == "detection" else "(no label)")


def _label_names(classes: Sequence[str], noun_classes: Sequence[str], labels: Sequence[int]) -> str:
    """Names of a sample's classes, or of its verb and its noun."""
    lists = (classes, noun_classes) if noun_classes else (classes,) * len(labels)
    return ", ".join(
        names[label] if label < len(names) else str(label) for label, names in zip(labels, lists, strict=False)
    )


def _details(row: SampleRow) -> str:
    parts = [sample_id(row), f"{row.shard} {row.key}", f"{row.num_frames} frames", f"{row.width}x{row.height}"]
    if row.fps == row.fps:  # NaN for a single frame
        parts += [f"{row.fps:.4g} fps", f"{row.duration_seconds:.2f} s"]
    if row.start_seconds is not None or row.end_seconds is not None:
        end = "the end" if row.end_seconds is None else f"{row.end_seconds:g} s"
        parts.append(f"from {row.start_seconds or 0:g} s to {end}")
    return _on_one_line("   ".join(parts))


def _on_one_line(text: str) -> str:
    # A line break in a file's name would end the line, or the program: Pillow does not measure it.
    return "".join(character if character.isprintable() else " " for character in text)


def _font(size: int) -> "ImageFont.FreeTypeFont | ImageFont.ImageFont":
    """DejaVu knows most alphabets; Pillow brings a smaller font of its own."""
    from PIL import ImageFont

    try:
        return ImageFont.truetype("DejaVuSans.ttf", size)
    except OSError:
        return ImageFont.load_default(size)


# The page

FILM_FRAMES = 16
SAME_DURATION_SECONDS = 0.005
MAX_LISTED_FAULTS = 1000
"""Rows of the table of faults; `vidprep ledger --csv` writes all."""
PACKAGES = ("vidprep", "av", "numpy", "pandas", "pyarrow", "pillow")


@dataclass(frozen=True, kw_only=True)
class _Part:
    """One split, as the page shows it."""

    split: str
    listed: int
    """Samples of the split's list; of videos that are not cut yet, what its publisher counts."""
    there: int
    published: int | None
    labels: Sequence[tuple[int, ...]]
    """Of what is there."""
    lengths_seconds: Sequence[float]
    """Of what is there, as far as it is known: more than 0."""
    sizes: Mapping[tuple[int, int, float], int] = field(default_factory=dict)
    """(width, height, frames per second) -> samples; empty where it was not measured."""
    num_frames: int
    faults: Sequence[tuple[str, str, str, str]]
    """id, state, kind, reason."""
    remarks: Sequence[str]
    films: Sequence[Markup]
    settings: str


def shards_page(
    folder: Location, split: str | None = None, *, num_samples: int = 8, seed: int = 0, num_frames: int = FILM_FRAMES
) -> str:
    """A page on a folder of shards, from its manifests, tables and ledgers, and some of its samples.

    Args:
        folder: what `vidprep shard --out` wrote, or its URL.
        split: only this one; None: all that the folder holds.
        num_samples: films of each split, at most.
        seed: of the choice of samples.
        num_frames: of a film.

    Raises:
        UsageError: no such folder or split, or no shards in it.
        CorruptShard: a sample that is not what the table says; run `vidprep verify`.
    """
    store = open_store(folder)
    names = list_splits(store) if split is None and store.exists() else []
    manifests = [read_manifest(store, name) for name in names] or [read_manifest(store, split)]
    first = manifests[0]
    parts = [
        _part_of_shards(folder, store, manifest, num_samples=num_samples, seed=seed, num_frames=num_frames)
        for manifest in manifests
    ]
    content = "videos" if first.content == "video" else "frames"
    num_shards = sum(len(manifest.shards) for manifest in manifests)
    num_bytes = sum(shard.num_bytes for manifest in manifests for shard in manifest.shards)
    lead = f"{store}: {num_shards:,} shards of {content}, {num_bytes / 1e6:,.1f} MB, task {first.task}"
    return _page(first.dataset, lead, parts, first.classes, first.noun_classes)


def videos_page(
    split: Split,
    paths: Mapping[str, Path],
    report: VideosReport,
    *,
    delivered: FrameFormat | None = None,
    num_samples: int = 8,
    seed: int = 0,
    num_frames: int = FILM_FRAMES,
) -> str:
    """A page on the videos of a split, as `verify_videos` found them.

    Args:
        split: the videos.
        paths: video_id -> file, or folder of frames.
        report: of these videos.
        delivered: of a data set that is delivered as folders of frames: how these are called.
        num_samples: films, at most.
        seed: of the choice of samples.
        num_frames: of a film.

    Raises:
        CorruptVideo: a sample does not decode, though it was found sound: only opened, perhaps.
    """
    durations = report.durations_seconds
    # As the report counts them: without segments that begin where their video ends.
    sound = [
        video
        for video in split.videos
        if video.video_id in durations and not (video.start_seconds or -1.0) >= durations[video.video_id]
    ]
    films = []
    for place in _choose(len(sound), num_samples, seed):
        video = sound[place]
        path = paths[video.video_id]
        names = _label_names(split.classes, split.noun_classes, video.labels)
        with _open(path, delivered) as reader:
            frames = _pictures(reader, video.start_seconds, video.end_seconds, num_frames)
            facts = f"{reader.num_frames} frames, {reader.width}x{reader.height}"
        films.append(
            page.clip(
                frames,
                name=sample_id(video),
                caption=names or "(no label)",
                lines=[(sample_id(video), None), (facts, None)],
            )
        )
    remarks = [f"footnote: {report.footnote}", report.coverage, *([report.lengths] if report.lengths else [])]
    remarks += [str(difference) for difference in report.length_differences[:MAX_LISTED_FAULTS]]
    remarks += [f"{doubt.video_id}: {doubt.reason}" for doubt in report.doubts[:MAX_LISTED_FAULTS]]
    damaged = set(report.damaged)
    lengths = [_length(durations[video.video_id], video.start_seconds, video.end_seconds) for video in sound]
    part = _Part(
        split=split.split,
        listed=report.num_segments if report.is_published_in_segments else report.num_listed,
        there=report.num_sound_segments if report.is_published_in_segments else report.num_sound,
        published=report.num_published,
        labels=[video.labels for video in sound],
        lengths_seconds=[length for length in lengths if length > 0],
        num_frames=report.num_frames,
        faults=[
            (
                fault.video_id,
                "failed",
                "damaged" if fault.video_id in damaged else "missing or unreadable",
                fault.reason,
            )
            for fault in report.faults
        ],
        remarks=remarks,
        films=films,
        settings=f"list sha256         {report.list_sha256}\nsound videos sha256 {report.sound_list_sha256}",
    )
    lead = f"{report.num_sound:,} of {report.num_listed:,} videos of {split.split} are there and sound"
    return _page(split.dataset, lead, [part], split.classes, split.noun_classes)


def _open(path: Path, delivered: FrameFormat | None) -> "PyavReader | JpegReader":
    from vidprep.decode.jpeg import JpegReader
    from vidprep.decode.pyav import PyavReader

    return PyavReader(path) if delivered is None else JpegReader(path, template=delivered.template)


def _part_of_shards(
    folder: Location, store: Store, manifest: Manifest, *, num_samples: int, seed: int, num_frames: int
) -> _Part:
    samples = read_samples(store, manifest.split)
    info = DATASETS.get(manifest.dataset)
    films = []
    for place in _choose(len(samples), num_samples, seed):
        row = samples[place]
        facts = [text for text in _details(row).split("   ") if text]
        films.append(
            page.clip(
                _frames(store, manifest, row, num_frames),
                name=facts[0],
                caption=_title(manifest, row),
                lines=[(facts[0], None), (", ".join(facts[2:]), None)],
            )
        )
    faults, remarks = _noted_faults(folder, manifest)
    lengths = [_length(row.duration_seconds, row.start_seconds, row.end_seconds) for row in samples]
    rates = [round(row.fps, 2) if math.isfinite(row.fps) else math.nan for row in samples]
    sizes = Counter((row.width, row.height, rate) for row, rate in zip(samples, rates, strict=True))
    return _Part(
        split=manifest.split,
        listed=manifest.num_videos,
        there=len(samples),
        published=None if info is None else info.splits.get(manifest.split),
        labels=[row.labels for row in samples],
        lengths_seconds=[length for length in lengths if length > 0],
        sizes=sizes,
        num_frames=sum(row.num_frames for row in samples),
        faults=faults,
        remarks=remarks,
        films=films,
        settings=json.dumps(manifest.settings, indent=1, ensure_ascii=False),
    )


def _noted_faults(folder: Location, manifest: Manifest) -> tuple[list[tuple[str, str, str, str]], list[str]]:
    """What failed or is pending, and remarks on the work: by the ledger where there is one, else by the manifest."""
    in_manifest: list[tuple[str, str, str, str]] = [
        (fault.video_id, "failed", fault.kind or "other", fault.reason) for fault in manifest.faults
    ]
    if not isinstance(folder, Path) or not any(folder.glob(f"{manifest.split}.*ledger.jsonl")):
        return in_manifest, [f"{manifest.split}: no ledger lies beside the shards; the faults are the manifest's."]
    report = LedgerReport(split=manifest.split)
    faults: list[tuple[str, str, str, str]] = []
    for entry in read_ledger(ledger_paths(folder, manifest.split)[manifest.split]):
        report.count(entry)
        if entry.state != "done":
            reason = f"{entry.reason} ({entry.attempts} attempts)" if entry.attempts > 1 else entry.reason
            faults.append((entry.sample, entry.state, entry.kind, reason))
    work = f"{manifest.split}: {report.num_attempts:,} attempts and {report.seconds:,.0f} s of work, by the ledger."
    return faults, [work]


def _length(duration_seconds: float, start_seconds: float | None, end_seconds: float | None) -> float:
    """Of a segment, as far as it lies in the video."""
    end = duration_seconds if end_seconds is None else min(end_seconds, duration_seconds)
    return max(0.0, end - (start_seconds or 0.0))


def _choose(num_there: int, num_samples: int, seed: int) -> list[int]:
    rng = np.random.default_rng(seed)
    return sorted(rng.choice(num_there, size=min(num_samples, num_there), replace=False).tolist())


def _page(dataset: str, lead: str, parts: Sequence[_Part], classes: Sequence[str], noun_classes: Sequence[str]) -> str:
    info = DATASETS.get(dataset)
    sections = [Section(title="Coverage", body=_coverage(parts))]
    if any(part.films for part in parts):
        body = Markup("")
        for part in parts:
            body += Markup("<h3>{}</h3>\n").format(part.split) + page.clips(part.films)
        sections.append(Section(title="Samples", body=body))
    sections += _balance(parts, classes, noun_classes)
    sections.append(Section(title="Durations and sizes", body=_measures(parts)))
    sections.append(Section(title="Faults", body=_faults(parts)))
    body = page.facts([*_known(info), *page.environment(PACKAGES)])
    for part in parts:
        body += page.details(f"{part.split}: made with", part.settings)
    sections.append(Section(title="Settings and versions", body=body))
    return page.page(
        f"Data set {dataset}",
        lead=lead,
        sections=sections,
        footer=f"Written by `vidprep report` on {datetime.now(UTC):%Y-%m-%d %H:%M} UTC.",
    )


def _known(info: Any) -> list[tuple[str, str]]:
    if info is None:
        return []
    known = [("data set", info.title), ("homepage", info.homepage), ("licence", info.licence)]
    return [(name, value) for name, value in known if value]


def _number(value: float | None, text: str = "") -> Cell:
    return Cell(text="" if value is None else text or f"{value:,}", value=value)


def _coverage(parts: Sequence[_Part]) -> Markup:
    columns = [
        Column(name="split"),
        *(Column(name=name, is_number=True) for name in ("there", "listed", "covered", "published", "not there")),
        *(Column(name=name, is_number=True) for name in ("hours", "frames")),
    ]
    rows: list[list[str | Cell]] = []
    for part in parts:
        hours, share = sum(part.lengths_seconds) / 3600, part.there / part.listed if part.listed else 0.0
        rows.append(
            [
                part.split,
                _number(part.there),
                _number(part.listed),
                Cell(text=f"{100 * share:.1f} %", value=share, bar=share),
                _number(part.published),
                _number(len(part.faults)),
                _number(hours, f"{hours:.2f}"),
                _number(part.num_frames),
            ]
        )
    remarks = page.item_list(remark for part in parts for remark in part.remarks)
    return page.table(columns, rows, caption="How much of each split's list is there") + remarks


def _balance(parts: Sequence[_Part], classes: Sequence[str], noun_classes: Sequence[str]) -> list[Section]:
    """A part for the classes, or one for the verbs and one for the nouns."""
    lists: list[tuple[str, Sequence[str], int | None]] = [("Classes", classes, None)]
    if noun_classes:
        lists = [("Verbs", classes, 0), ("Nouns", noun_classes, 1)]
    sections = []
    for title, names, position in lists:
        counts = []
        for part in parts:
            labels = part.labels if position is None else [row[position : position + 1] for row in part.labels]
            found = Counter(label for row in labels for label in row)
            counts.append([found[label] for label in range(len(names))])
        if not names or not any(map(any, counts)):
            continue
        most = [max(1, *of_split) for of_split in counts]
        columns = [Column(name="class"), *(Column(name=part.split, is_number=True) for part in parts)]
        rows: list[list[str | Cell]] = [
            [
                name,
                *(
                    Cell(text=f"{of_split[label]:,}", value=of_split[label], bar=of_split[label] / largest)
                    for of_split, largest in zip(counts, most, strict=True)
                ),
            ]
            for label, name in enumerate(names)
        ]
        charts = [_ranked(part.split, names, of_split) for part, of_split in zip(parts, counts, strict=True)]
        said = [_balance_line(part.split, of_split) for part, of_split in zip(parts, counts, strict=True)]
        body = page.figures(charts) + page.item_list(said)
        body += page.table(columns, rows, caption=f"Samples of each of the {title.lower()}")
        sections.append(Section(title=title, body=body))
    return sections


def _ranked(split: str, names: Sequence[str], counts: Sequence[int]) -> Markup:
    order = sorted(range(len(counts)), key=lambda label: -counts[label])
    columns = [
        ColumnBar(
            start=rank - 0.5, end=rank + 0.5, height=counts[label], tip=f"{names[label]}\n{counts[label]:,} samples"
        )
        for rank, label in enumerate(order, start=1)
    ]
    return page.column_chart(f"{split}: samples a class", columns, x_label="class, by its rank", y_label="samples")


def _balance_line(split: str, counts: Sequence[int]) -> str:
    empty = sum(count == 0 for count in counts)
    line = f"{split}: {min(counts):,} to {max(counts):,} samples a class, median {float(np.median(counts)):g}"
    return line + (f"; {empty} without any" if empty else "")


def _measures(parts: Sequence[_Part]) -> Markup:
    charts, said = [], []
    for part in parts:
        if not part.lengths_seconds:
            said.append(f"{part.split}: no durations are known")
            continue
        low, middle, high = np.percentile(part.lengths_seconds, (0, 50, 100))
        if high - low < SAME_DURATION_SECONDS:
            said.append(f"{part.split}: all last {middle:.2f} s")
            continue
        said.append(f"{part.split}: {low:.2f} to {high:.2f} s, median {middle:.2f} s")
        title = f"{part.split}: durations"
        charts.append(page.histogram(title, part.lengths_seconds, x_label="duration", unit="s", counted="samples"))
    body = (page.figures(charts) if charts else Markup("")) + page.item_list(said)
    if any(part.sizes for part in parts):
        keys = sorted({key for part in parts for key in part.sizes}, key=str)
        columns = [Column(name="size"), Column(name="frames per second", is_number=True)]
        columns += [Column(name=part.split, is_number=True) for part in parts]
        rows: list[list[str | Cell]] = [
            [
                f"{width} x {height}",
                _number(None if math.isnan(rate) else rate, f"{rate:g}"),
                *(_number(part.sizes.get((width, height, rate), 0)) for part in parts),
            ]
            for width, height, rate in keys
        ]
        body += page.table(columns, rows, caption="Samples of each size and rate")
    return body


def _faults(parts: Sequence[_Part]) -> Markup:
    rows = [(part.split, *fault) for part in parts for fault in part.faults]
    if not rows:
        return page.paragraph("None: every sample of the list is there.")
    kinds = Counter((split, kind or state) for split, _, state, kind, _ in rows)
    counted: list[list[str | Cell]] = [[split, kind, _number(count)] for (split, kind), count in kinds.most_common()]
    columns = [Column(name="split"), Column(name="reason"), Column(name="samples", is_number=True)]
    body = page.table(columns, counted, caption="Samples that are not there, by reason")
    columns = [
        *(Column(name=name) for name in ("split", "sample", "state", "reason")),
        Column(name="in words", is_long=True),
    ]
    body += Markup("<h3>One by one</h3>\n")
    body += page.table(columns, rows[:MAX_LISTED_FAULTS], caption="Samples that are not there, one by one")
    if len(rows) > MAX_LISTED_FAULTS:
        body += page.paragraph(
            f"The first {MAX_LISTED_FAULTS:,} of {len(rows):,}; `vidprep ledger SHARDS --csv FILE` writes all."
        )
    return body
