import html
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.browser import open_page
from tests.videos import read_number, write_numbered_video
from vidprep import cli
from vidprep.engine import CannotWrite
from vidprep.errors import CorruptShard, UsageError
from vidprep.index import Member, read_samples, samples_to_frame
from vidprep.report import FRAME_HEIGHT, GAP, MARGIN, TEXT_SIZE, TITLE_SIZE, contact_sheet, shards_page, videos_page
from vidprep.shard import shard
from vidprep.splits import Split
from vidprep.types import FrameFormat, Video
from vidprep.verify import verify_videos

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


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory) -> tuple[Split, dict[str, Path]]:
    """Five videos of 2, 3, 4 ... seconds: one is missing, one is damaged, the last of another class."""
    root = tmp_path_factory.mktemp("faulty")
    paths = {
        f"v{n}": write_numbered_video(root / f"v{n}.mp4", num_frames=20 + 10 * n, fps=10, start=100 * n)
        for n in range(4)
    }
    (root / "v1.mp4").write_bytes(b"no video")
    videos = tuple(Video(video_id=f"v{n}", labels=(int(n == 3),)) for n in range(5))
    return Split(dataset="folder", split="val", task="single_label", classes=CLASSES, videos=videos), paths


def part(page: str, title: str) -> str:
    """One section of a page as plain text, a cell a line."""
    (body,) = re.findall(rf"<h2>{re.escape(title)}</h2>(.*?)</section>", page, re.DOTALL)
    return html.unescape(re.sub(r"(?:<[^>]*>|\n)+", "\n", body))


@pytest.mark.parametrize("content", ["video", "frames"])
def test_the_page_shows_what_is_in_the_shards(content: str, folders: dict[str, Path]) -> None:
    page = shards_page(folders[content], num_samples=3)
    assert page.count('class="film"') == 3
    assert "\nval\n4\n4\n100.0 %\n" in part(page, "Coverage")
    assert "val: 4 attempts and " in part(page, "Coverage")
    assert f"\n{CLASSES[0]}\n2\n{CLASSES[1]}\n2\n" in part(page, "Classes")
    assert "None: every sample" in part(page, "Faults")
    assert ("64 x 48" if content == "frames" else "128 x 96") in part(page, "Durations and sizes")


def test_the_page_counts_faults_by_the_ledger(faulty: tuple[Split, dict[str, Path]], tmp_path: Path) -> None:
    split, paths = faulty
    shard(split, paths, out=tmp_path / "shards", workers=1)
    page = shards_page(tmp_path / "shards")
    assert "\nval\n3\n5\n60.0 %\n" in part(page, "Coverage")
    faults = part(page, "Faults")
    assert "\nval\ndamaged\n1\n" in faults
    assert "\nval\nmissing\n1\n" in faults
    assert "\nval\nv4\nfailed\nmissing\n" in faults
    assert "val: 2.00 to 5.00 s, median 4.00 s" in part(page, "Durations and sizes")
    (tmp_path / "shards" / "val.ledger.jsonl").unlink()
    page = shards_page(tmp_path / "shards")
    assert "no ledger lies beside the shards" in part(page, "Coverage")
    assert "\nval\nv4\nfailed\nmissing\n" in part(page, "Faults")


def test_the_page_on_videos_says_what_the_list_has_and_is_not_there(faulty: tuple[Split, dict[str, Path]]) -> None:
    split, paths = faulty
    report = verify_videos(split, paths, check="open", num_published=6)
    page = videos_page(split, paths, report)
    assert page.count('class="film"') == 3
    assert "\nval\n3\n5\n60.0 %\n6\n2\n" in part(page, "Coverage")
    assert report.footnote in part(page, "Coverage")
    assert f"\n{CLASSES[0]}\n2\n{CLASSES[1]}\n1\n" in part(page, "Classes")
    assert "\nval\nv1\nfailed\ndamaged\n" in part(page, "Faults")
    assert report.sound_list_sha256 in part(page, "Settings and versions")


def test_verbs_and_nouns_are_counted_apart_and_segments_are_what_is_covered(tmp_path: Path) -> None:
    path = write_numbered_video(tmp_path / "a.mp4", num_frames=40, fps=10)
    segments = tuple(
        Video(video_id="a", labels=(verb, noun), start_seconds=start, end_seconds=start + 1, segment_id=f"a_{start}")
        for start, (verb, noun) in enumerate([(0, 1), (0, 2), (1, 2), (1, 2), (1, 2)])
    )
    split = Split(
        dataset="folder",
        split="val",
        task="verb_noun",
        classes=("take", "put"),
        noun_classes=("cup", "tap", "pan"),
        videos=segments,
    )
    report = verify_videos(split, {"a": path}, num_published=9)
    page = videos_page(split, {"a": path}, report)
    assert "\nval\n4\n5\n80.0 %\n9\n" in part(page, "Coverage"), "the fifth segment begins where the video ends"
    assert "\ntake\n2\nput\n2\n" in part(page, "Verbs")
    assert "\ncup\n0\ntap\n1\npan\n3\n" in part(page, "Nouns")
    assert "val: 0 to 3 samples a class, median 1; 1 without any" in part(page, "Nouns")


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    def run(*arguments: object) -> int:
        monkeypatch.setattr("sys.argv", ["vidprep", *map(str, arguments)])
        return cli.main()

    return run


def test_the_command_writes_the_page(
    call: Callable[..., int], folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "page.html"
    assert call("report", folders["video"], "--out", out) == 0
    assert capsys.readouterr().out.startswith(f"{out}: 0.")
    assert out.read_text().startswith("<!doctype html>")
    for name in ("jump", "run"):
        (tmp_path / "mine" / name).mkdir(parents=True)
        write_numbered_video(tmp_path / "mine" / name / "a.mp4", num_frames=9)
    assert call("report", "folder", "--data-root", tmp_path / "mine", "--workers", 1, "--out", out) == 0
    assert "2 of 2 videos of all are there and sound" in out.read_text()


def test_the_command_says_what_it_needs(
    call: Callable[..., int], folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "page.html"
    for arguments, complaint in (
        ((folders["video"], "--out", tmp_path / "page.txt"), "expected a name ending in .html"),
        ((folders["video"], "--out", tmp_path / "nowhere" / "page.html"), "in a folder that exists"),
        (("toy", "--out", out), "toy: say with --data-root where its videos lie"),
        ((folders["video"], "--check", "open", "--out", out), "--check: for videos"),
        ((tmp_path / "none", "--out", out), "no such folder"),
        ((folders["video"], "--split", "vall", "--out", out), "did you mean val"),
    ):
        assert call("report", *arguments) == 2
        assert complaint in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.slow
def test_the_page_works_in_chromium(faulty: tuple[Split, dict[str, Path]], tmp_path: Path) -> None:
    split, paths = faulty
    shard(split, paths, out=tmp_path / "shards", workers=1)
    path = tmp_path / "page.html"
    path.write_text(shards_page(tmp_path / "shards"), encoding="utf-8")
    with open_page(path, viewport={"width": 380, "height": 800}) as (page, complaints):
        assert page.locator("figure.chart > svg").count() == 2
        for column in page.locator("rect.column").all()[:2]:
            box = column.bounding_box()
            assert box is not None
            assert box["height"] > 0
        assert page.evaluate("document.documentElement.scrollWidth") == 380
        table = page.locator("table[aria-label='Samples of each of the classes']")
        table.locator("th", has_text="class").locator("button").click()
        names = table.locator("tbody td:first-child")
        assert names.all_inner_texts() == ["Blow-drying hair", "tying knot (not on a tie)"]
        table.locator("th", has_text="val").locator("button").click()
        assert names.all_inner_texts() == ["tying knot (not on a tie)", "Blow-drying hair"]
        film = page.locator(".film").first
        before = film.evaluate("film => getComputedStyle(film).backgroundPositionX")
        film.click()
        page.wait_for_function(
            "([film, before]) => getComputedStyle(film).backgroundPositionX !== before",
            arg=[film.element_handle(), before],
        )
        assert complaints == []
