import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.videos import write_numbered_video
from tests.vidprep import s3
from vidprep.cli import main

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    def run_command(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["vidprep", *map(str, arguments)])
        status = main()
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run_command


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for number in range(6):
        path = tmp_path / "my videos" / "ab"[number % 2] / f"{number}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_numbered_video(path, num_frames=5 + number, width=64, height=48)
    return tmp_path / "my videos"


def files(folder: Path) -> dict[str, bytes]:
    found = (path for path in sorted(folder.iterdir()) if path.is_file() and not path.name.endswith(".ledger.jsonl"))
    return {path.name: path.read_bytes() for path in found}


def flip_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[2000] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("settings", [[], ["--content", "frames", "--fps", 5, "--short-side", 32], ["--check", "open"]])
def test_damaged_shards_are_put_aside_and_rebuilt_with_the_same_bytes(
    settings: list[object], run: Run, root: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert (
        run("shard", "-d", "folder", "--data-root", root, "--out", out, "--shard-bytes", 1, "-w", 1, *settings)[0] == 0
    )
    before = files(out)
    flip_bit(out / "all-000001.tar")
    os.truncate(out / "all-000002.tar", 100)
    (out / "all-000003.tar").unlink()
    (out / "all-000004.idx").write_text("v1.2 0\n")
    untouched = (out / "all-000000.tar").stat().st_mtime_ns
    damaged = {name: (out / name).read_bytes() for name in ("all-000001.tar", "all-000002.tar", "all-000004.idx")}
    status, output, _ = run("repair", out, "--data-root", root, "-w", 1)
    assert status == 0
    assert "all-000001.tar: changed, SHA-256" in output
    assert "all-000003.tar: missing\n" in output
    for number in (1, 2, 3):
        assert f"all-00000{number}.tar: rebuilt, the same bytes as before\n" in output
    assert output.endswith("all: 3 shards rebuilt: sound\n")
    assert files(out) == before
    assert (out / "all-000000.tar").stat().st_mtime_ns == untouched
    for name, content in damaged.items():
        assert (out / "damaged" / name).read_bytes() == content
        assert f"put aside: damaged/{name}\n" in output
    assert run("verify", out, "-w", 1)[0] == 0
    assert run("repair", out, "--data-root", root, "-w", 1)[:2] == (0, "all: sound, nothing to repair\n")


def test_what_is_damaged_again_is_put_beside_the_first(run: Run, root: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert run("shard", "-d", "folder", "--data-root", root, "--out", out, "-w", 1)[0] == 0
    for _ in range(3):
        flip_bit(out / "all-000000.tar")
        assert run("repair", out, "--data-root", root, "-w", 1)[0] == 0
    aside = {path.name for path in (out / "damaged").glob("*.tar*")}
    assert aside == {"all-000000.tar", "all-000000.tar.1", "all-000000.tar.2"}


def test_a_damaged_manifest_or_table_is_written_again(run: Run, root: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert run("shard", "-d", "folder", "--data-root", root, "--out", out, "-w", 1)[0] == 0
    before = files(out)
    for name in ("all.json", "all.parquet", "all.wids.json"):
        (out / name).write_bytes(b"{}")
        status, output, _ = run("repair", out, "--data-root", root, "-w", 1)
        assert (status, output.splitlines()[-1]) == (0, "all: 0 shards rebuilt: sound")
        assert files(out) == before


def test_shards_without_sidecars_are_written_again_and_counted(run: Run, root: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert run("shard", "-d", "folder", "--data-root", root, "--out", out, "--shard-bytes", 1, "-w", 1)[0] == 0
    before = files(out)
    for path in out.glob("all-*.jsonl"):
        path.unlink()
    flip_bit(out / "all-000000.tar")
    status, output, _ = run("repair", out, "--data-root", root, "-w", 1)
    assert status == 0
    assert "5 further shards had no sidecar (.jsonl), and were written again, too\n" in output
    assert files(out) == before


def test_videos_that_have_changed_are_said(run: Run, root: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert run("shard", "-d", "folder", "--data-root", root, "--out", out, "-w", 1)[0] == 0
    flip_bit(out / "all-000000.tar")
    write_numbered_video(root / "a" / "0.mp4", num_frames=9, width=64, height=48)
    status, output, _ = run("repair", out, "--data-root", root, "-w", 1)
    assert status == 1
    assert "all-000000.tar: rebuilt with other bytes than before; its videos have changed, or FFmpeg" in output


def test_shards_in_a_store_are_repaired_there(run: Run, root: Path, s3_url: str) -> None:
    assert run("shard", "-d", "folder", "--data-root", root, "--out", s3_url, "-w", 1)[::2] == (0, "")
    before = s3.contents(s3_url)["all-000000.tar"]
    damaged = before[:3000] + b"x" + before[3001:]
    s3.file_system().pipe_file(f"{s3_url}/all-000000.tar", damaged)
    assert run("verify", s3_url, "-w", 1)[0] == 1
    status, output, _ = run("repair", s3_url, "--data-root", root, "-w", 1)
    assert status == 0
    assert "put aside: damaged/all-000000.tar\n" in output
    assert s3.contents(s3_url)["all-000000.tar"] == before
    assert s3.contents(f"{s3_url}/damaged")["all-000000.tar"] == damaged


def test_folders_that_no_plan_describes_are_refused(run: Run, root: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    status, _, errors = run("repair", out, "--data-root", root, "-w", 1)
    assert (status, "out: no SPLIT.plan.json here; give the folder that `vidprep shard --out` wrote" in errors) == (
        2,
        True,
    )
    assert run("shard", "-d", "folder", "--data-root", root, "--out", out, "-w", 1)[0] == 0
    status, _, errors = run("repair", out, "--data-root", root, "-s", "val", "-w", 1)
    assert (status, "no val.plan.json; there are shards of all" in errors) == (2, True)
