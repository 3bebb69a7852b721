"""Damaged videos end in the ledger, decoded or with a reason; they neither crash nor hang a run."""

import io
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from tests.vidprep.damage import KINDS, damage_files
from vidprep.errors import FaultKind
from vidprep.extract import extract
from vidprep.ledger import Entry, ledger_paths, read_ledger
from vidprep.shard import shard
from vidprep.splits import Split
from vidprep.types import FrameFormat, Video
from vidprep.verify import verify_shards

TIME_LIMIT_SECONDS = 120.0
SMALL_BYTES = 400_000
"""Of the sources of the quick test."""


def entries_of(folder: Path) -> list[Entry]:
    [paths] = ledger_paths(folder).values()
    return list(read_ledger(paths))


def look_at(testdata: Path, tmp_path: Path, *, count: int, max_bytes: int, content_seed: int) -> str:
    """Extract and shard damaged variants; a table of what came of each kind of damage."""
    sources = sorted(path for path in (testdata / "videos").iterdir() if 0 < path.stat().st_size <= max_bytes)
    folder = tmp_path / "videos"
    folder.mkdir()
    variants = list(damage_files(sources, folder, count=count, seed=content_seed))
    split = Split(
        dataset="folder",
        split="all",
        task="single_label",
        classes=("one",),
        videos=tuple(Video(video_id=variant.name) for variant in variants),
    )
    paths = {variant.name: variant.path for variant in variants}
    text = io.StringIO()
    for what in ("extract", "shard"):
        out, started = tmp_path / what, time.monotonic()
        if what == "extract":
            settings = FrameFormat(fps=1.0, short_side=64)
            extract(split, paths, out=out, settings=settings, workers=2, time_limit_seconds=TIME_LIMIT_SECONDS)
        else:
            shard(split, paths, out=out, workers=2, time_limit_seconds=TIME_LIMIT_SECONDS)
            assert verify_shards(out).is_sound
        seconds = time.monotonic() - started
        entries = entries_of(out)
        assert [entry.sample for entry in entries] == list(paths)
        assert all(entry.state in ("done", "failed") for entry in entries)
        assert all(entry.reason and entry.kind in FaultKind.__args__ for entry in entries if entry.state == "failed")  # type: ignore[attr-defined]
        assert max(entry.seconds or 0.0 for entry in entries) <= TIME_LIMIT_SECONDS + 5.0
        by_kind = Counter(
            (variant.kind, entry.kind or "done") for variant, entry in zip(variants, entries, strict=True)
        )
        outcomes = sorted({outcome for _, outcome in by_kind})
        text.write(f"{what}: {count} variants in {seconds:.0f} s\n")
        for kind in KINDS:
            text.write(f"  {kind:<9}" + "  ".join(f"{name} {by_kind[kind, name]}" for name in outcomes) + "\n")
        whole = Counter(entry.kind or "done" for entry in entries)
        text.write(f"  all      {'  '.join(f'{name} {whole[name]}' for name in outcomes)}\n")
    return text.getvalue()


@pytest.mark.real
def test_damaged_variants_are_decoded_or_have_a_reason(testdata: Path, tmp_path: Path) -> None:
    table = look_at(testdata, tmp_path, count=40, max_bytes=SMALL_BYTES, content_seed=0)
    assert "done" in table
    assert "damaged" in table


@pytest.mark.real
@pytest.mark.slow
def test_a_thousand_damaged_variants_are_decoded_or_have_a_reason(testdata: Path, tmp_path: Path) -> None:
    table = look_at(testdata, tmp_path, count=1000, max_bytes=1 << 30, content_seed=1)
    sys.stdout.write(f"\n{table}")  # shown with -s
