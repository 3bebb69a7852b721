from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.videos import read_number, write_numbered_video
from vidprep.engine import CannotWrite
from vidprep.errors import CorruptShard, UsageError
from vidprep.index import Member, read_samples, samples_to_frame
from vidprep.report import FRAME_HEIGHT, GAP, MARGIN, TEXT_SIZE, TITLE_SIZE, contact_sheet
from vidprep.shard import shard
from vidprep.splits import Split
from vidprep.types import FrameFormat, Video

CLASSES = ("tying knot (not on a tie)", "Blow-drying hair")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("shards")
    paths = {f"v{n}": write_numbered_video(root / f"v{n}.mp4", num_frames=40, start=100 * n) for n in range(4)}
    videos = tuple(Video(video_id=name, labels=(number % 2,)) for number, name in enumerate(paths))
    split = Split(dataset="folder", split="val", task="single_label", classes=CLASSES, videos=videos)
    shard(split, paths, out=root / "video")
    shard(split, paths, out=root / "frames", content="frames", frames=FrameFormat(short_side=48))
    return {"video": root / "video", "frames": root / "frames"}


def numbers_on(sheet: Path, *, row: int) -> list[int]:
    """The numbers that the frames of one row show."""
    picture = np.asarray(Image.open(sheet).convert("RGB"))
    text_height = TITLE_SIZE + TEXT_SIZE + 3 * GAP
    top = 2 * MARGIN + TITLE_SIZE + row * (text_height + FRAME_HEIGHT + MARGIN) + text_height
    width = round(FRAME_HEIGHT * 128 / 96)
    lefts = [MARGIN + place * (width + GAP) for place in range(8)]
    return [read_number(picture[top : top + FRAME_HEIGHT, left : left + width]) for left in lefts]


@pytest.mark.parametrize("content", ["video", "frames"])
def test_a_sheet_shows_frames_of_equal_distance(content: str, folders: dict[str, Path], tmp_path: Path) -> None:
    sheet = tmp_path / "sheet.png"
    rows = contact_sheet(folders[content], None, sheet, num_samples=10)
    assert [row.video_id for row in rows] == ["v0", "v1", "v2", "v3"]
    for place in range(4):
        assert numbers_on(sheet, row=place) == [100 * place + 5 * part + 2 for part in range(8)]


def test_a_line_break_in_a_name_is_drawn_as_a_space(tmp_path: Path) -> None:
    paths = {"a b\nc": write_numbered_video(tmp_path / "a b\nc.mp4", num_frames=9)}
    split = Split(
        dataset="folder",
        split="val",
        task="single_label",
        classes=("run\nfast",),
        videos=(Video(video_id="a b\nc", labels=(0,)),),
    )
    shard(split, paths, out=tmp_path / "shards")
    contact_sheet(tmp_path / "shards", None, tmp_path / "sheet.png")
    assert numbers_on(tmp_path / "sheet.png", row=0) == [0, 1, 2, 3, 5, 6, 7, 8]


def test_the_seed_chooses_the_samples(folders: dict[str, Path], tmp_path: Path) -> None:
    chosen = {
        tuple(row.key for row in contact_sheet(folders["video"], "val", tmp_path / "a.png", num_samples=2, seed=seed))
        for seed in range(8)
    }
    assert len(chosen) > 2
    first, again = (
        contact_sheet(folders["video"], "val", tmp_path / name, num_samples=2, seed=3) for name in ("b.png", "c.png")
    )
    assert first == again
    assert (tmp_path / "b.png").read_bytes() == (tmp_path / "c.png").read_bytes()


def test_a_damaged_sample_is_named(folders: dict[str, Path], tmp_path: Path) -> None:
    for path in folders["video"].iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "val-000000.tar").write_bytes(bytes(100_000))
    with pytest.raises(CorruptShard, match=r"val-000000.tar: sample 0000000\d does not decode .* run `vidprep verify"):
        contact_sheet(tmp_path, "val", tmp_path / "sheet.png")
    rows = [replace(row, members=(Member(name="json", offset=0, size=1),)) for row in read_samples(tmp_path, "val")]
    samples_to_frame(rows).to_parquet(tmp_path / "val.parquet")
    with pytest.raises(CorruptShard, match="does not decode"):
        contact_sheet(tmp_path, "val", tmp_path / "sheet.png")


def test_senseless_requests_are_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="at least 1 sample"):
        contact_sheet(folders["video"], "val", tmp_path / "a.png", num_samples=0)
    with pytest.raises(CannotWrite, match="cannot be written"):
        contact_sheet(folders["video"], "val", tmp_path / "nowhere" / "a.png")
    empty = Split(dataset="folder", split="val", task="single_label", classes=(), videos=(Video(video_id="gone"),))
    shard(empty, {}, out=tmp_path / "none")
    with pytest.raises(UsageError, match="has no samples to look at"):
        contact_sheet(tmp_path / "none", None, tmp_path / "a.png")
