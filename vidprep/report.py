"""A picture of what is in the shards: samples with their labels, frames from left to right."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vidprep.engine import publish
from vidprep.errors import CorruptShard, CorruptVideo, UsageError
from vidprep.index import Manifest, SampleRow, read_manifest, read_samples, sample_id
from vidprep.store import Location, Store, open_store

if TYPE_CHECKING:
    from PIL import Image, ImageFont

__all__ = ["contact_sheet"]

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
                times = reader.pts_seconds - reader.pts_seconds[0]
                first = int(np.searchsorted(times, row.start_seconds)) if row.start_seconds is not None else 0
                last = int(np.searchsorted(times, row.end_seconds)) if row.end_seconds is not None else len(times)
                first = min(first, len(times) - 1)
                batch = reader.get_frames_at(_middles(first, max(last, first + 1), num_frames))
                return [Image.fromarray(picture) for picture in batch.data.transpose(0, 2, 3, 1)]
    except (CorruptVideo, OSError, ValueError, IndexError, Image.DecompressionBombError) as error:
        raise CorruptShard(f"{place} does not decode ({error}); run `vidprep verify {store}`.") from error


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
    lists = (
        (manifest.classes, manifest.noun_classes) if manifest.noun_classes else (manifest.classes,) * len(row.labels)
    )
    names = [
        of_label[label] if label < len(of_label) else str(label)
        for label, of_label in zip(row.labels, lists, strict=False)
    ]
    return _on_one_line(", ".join(names)) or ("(boxes)" if manifest.task == "detection" else "(no label)")


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
