import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.videos import read_number, write_numbered_video
from vidprep import __version__
from vidprep.cli import main
from vidprep.index import read_manifest, read_samples

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the command in this process: exit status, output, errors."""

    def run_command(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["vidprep", *map(str, arguments)])
        status = main()
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run_command


@pytest.fixture(scope="module")
def data_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes; names with spaces and a leading dash; one empty file."""
    root = tmp_path_factory.mktemp("data root")
    for number, name in enumerate(["mowing lawn/-a.mp4", "mowing lawn/b b.mp4", "archery/c.mp4"]):
        (root / name).parent.mkdir(exist_ok=True)
        write_numbered_video(root / name, num_frames=20, fps=10, start=100 * number)
    (root / "archery" / "empty.webm").touch()
    return root


def shard_arguments(data_root: Path, out: Path) -> list[object]:
    return ["shard", "--dataset", "folder", "--data-root", data_root, "--out", out, "--workers", 1]


def test_shard_verify_and_inspect_in_a_row(run: Run, data_root: Path, tmp_path: Path) -> None:
    out = tmp_path / "out dir"
    status, output, _ = run(*shard_arguments(data_root, out))
    assert status == 1  # one fault
    assert "all: 3 samples in 1 shards" in output
    assert "1 written now" in output
    assert "1 of 4 videos are in no shard:\n  archery/empty.webm: is empty (0 bytes)" in output
    again = run(*shard_arguments(data_root, out))
    assert again[0] == 1
    assert "all there already" in again[1]
    status, output, _ = run("verify", out, "--json", tmp_path / "report.json", "--workers", 1)
    assert status == 0
    assert "all: 1 shards, 3 samples" in output
    assert "sound; 1 of 4 videos are in no shard" in output
    assert json.loads((tmp_path / "report.json").read_text())["is_sound"] is True
    status, output, _ = run("inspect", out, "--out", tmp_path / "sheet.png")
    assert (status, output) == (0, f"{tmp_path / 'sheet.png'}: 3 samples\n")
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.width > 800
    os.truncate(out / "all-000000.tar", 5000)
    status, output, _ = run("verify", out, "--workers", 1)
    assert status == 1
    assert "all-000000.tar: cut short, 5000 of" in output
    (out / "all-000000.tar").write_bytes(os.urandom(100))
    status, _, errors = run("inspect", out, "--out", tmp_path / "sheet.png")
    assert status == 1
    assert "all-000000.tar: sample 00000000 does not decode" in errors


def test_extract_then_shard_from_frames(run: Run, data_root: Path, tmp_path: Path) -> None:
    frames = tmp_path / "frames"
    extract = ["extract", "--dataset", "folder", "--data-root", data_root, "--out", frames, "--workers", 1]
    extract += ["--fps", 5, "--rate-mode", "output", "--short-side", 48, "--template", "f{:03d}.jpg", "--quality", 95]
    status, output, _ = run(*extract)
    assert status == 1
    assert "of 3 videos" in output
    assert "1 of 4 videos are without frames:\n  archery/empty.webm: is empty (0 bytes); fetch it again\n" in output
    with Image.open(frames / "mowing lawn/-a.mp4" / "f003.jpg") as third:
        assert read_number(np.asarray(third)) == 2  # 10 fps to 5, as ffmpeg -r 5: 0 1 2 4 ...
    assert "3 of them were there already" in run(*extract)[1]
    status, output, _ = run(*shard_arguments(data_root, tmp_path / "out"), "--from", "frames", "--frames-root", frames)
    assert status == 1
    assert "3 samples in 1 shards" in output
    assert run("verify", tmp_path / "out", "--workers", 1)[0] == 0


def test_frames_lie_below_the_data_root_by_default(run: Run, tmp_path: Path) -> None:
    write_numbered_video(tmp_path / "a.mp4", num_frames=5)
    assert run("extract", "--dataset", "folder", "--data-root", tmp_path, "--workers", 1)[0] == 0
    assert (tmp_path / "frames" / "all" / "a.mp4" / "image_00005.jpg").exists()
    # They are no videos of the next run.
    arguments = shard_arguments(tmp_path, tmp_path / "out")
    assert run(*arguments, "--from", "frames")[0] == 0


def test_frames_go_straight_into_shards_in_every_form_that_extract_knows(
    run: Run, data_root: Path, tmp_path: Path
) -> None:
    command = [*shard_arguments(data_root, tmp_path), "--content", "frames", "--subsampling", "444"]
    status, _, _ = run(*command, "--num-frames", 3, "--size", "40x24")
    assert status == 1  # one fault
    [row] = {(row.num_frames, row.width, row.height) for row in read_samples(tmp_path, "all")}
    assert row == (3, 40, 24)
    assert read_manifest(tmp_path, "all").settings["frames"]["subsampling"] == "444"
    (tmp_path / "all-000000.tar").write_bytes(b"damaged")
    status, output, _ = run("repair", tmp_path, "--data-root", data_root, "--workers", 1)
    assert "all-000000.tar: rebuilt, the same bytes as before" in output
    status, _, errors = run(*shard_arguments(data_root, tmp_path / "b"), "--keyframes", "--height", 24)
    assert (status, "--keyframes, --height: for --content frames straight from videos" in errors) == (2, True)


def test_videos_are_verified_without_shards(run: Run, data_root: Path) -> None:
    status, output, _ = run("verify", "--dataset", "folder", "--data-root", data_root, "--workers", 1)
    assert status == 1
    fault, footnote, coverage = output.splitlines()
    assert fault == "archery/empty.webm: is empty (0 bytes); fetch it again"
    assert footnote.startswith("footnote: folder/all: 3 of 4 videos (75.0 %), list sha256 ")
    assert coverage == "folder/all: 3 of 4 listed videos (75.0 %)"


def test_a_csv_file_with_segments_is_a_data_set(run: Run, data_root: Path, tmp_path: Path) -> None:
    table = data_root / "list.csv"
    table.write_text("video,label,start_seconds,end_seconds\nmowing lawn/-a.mp4,x,0.5,1\nmowing lawn/-a.mp4,y,1,1.5\n")
    try:
        assert run(*shard_arguments(table, tmp_path / "out"))[0] == 0
    finally:
        table.unlink()
    assert run("verify", tmp_path / "out", "--workers", 1)[0] == 0


def test_lists_name_every_data_set(run: Run) -> None:
    status, output, _ = run("list")
    assert status == 0
    for name in ("toy", "folder", "kinetics400", "activitynet"):
        assert name in output
    status, output, _ = run("list", "activitynet")
    assert status == 0
    assert "10,024" in output
    assert "short side" in output or "own size" in output


@pytest.mark.real
def test_split_builds_lists_from_annotations(run: Run, testdata: Path, tmp_path: Path) -> None:
    annotations = testdata / "annotations" / "kinetics-400_val.dash_ids.csv"
    status, output, _ = run("split", "kinetics400", "--annotations", annotations, "--data-root", tmp_path)
    assert status == 0
    assert "val.csv: 50 videos, 400 classes" in output
    arguments = ["--dataset", "kinetics400", "--data-root", tmp_path, "--split", "val", "--workers", 1]
    status, output, _ = run("verify", *arguments)
    assert status == 1
    assert "kinetics400/val: 0 of 50 listed videos (0.0 %); published: 19906" in output


def test_version_and_help(run: Run) -> None:
    assert run("--version")[:2] == (0, f"vidprep {__version__}\n")
    assert run("--help")[0] == 0
    status, output, _ = run()
    assert status == 2
    assert "Usage: vidprep" in output


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["nonsense"], "No such command 'nonsense'"),
        (["shard"], "Missing option '--dataset'"),
        (["shard", "--datset", "toy"], "No such option: --datset"),
        (["list", "toy", "toys"], "unexpected extra argument"),
        (["verify", "x", "--check", "twice"], "Invalid value for '--check'"),
        (["verify"], "give a folder of shards, or --dataset and --data-root"),
        (["verify", "x", "--dataset", "toy"], "not both"),
        (["verify", "{tmp}/none"], "no such folder; give the folder that `vidprep shard --out` wrote"),
        (["verify", "{tmp}"], "no shards here"),
        (["inspect", "{tmp}", "--out", "{tmp}/a.png"], "no finished shards here"),
        (["list", "toyy"], "no data set 'toyy'; did you mean toy"),
        (["shard", "--dataset", "-x", "--data-root", "{tmp}", "--out", "{tmp}/o"], "no data set '-x'"),
        (["shard", "--dataset", "folder", "--data-root", "{tmp}/none", "--out", "{tmp}/o"], "no such data root"),
        (["shard", "--dataset", "folder", "--data-root", "{tmp}", "--out", "{tmp}/o"], "holds no videos"),
        (["shard", "--dataset", "toy", "--data-root", "{tmp}", "--out", "{tmp}/o"], "say which with --split"),
        (
            ["shard", "--dataset", "toy", "--data-root", "{tmp}", "--split", "-v", "--out", "{tmp}/o"],
            "toy has no split '-v'",
        ),
        (
            ["shard", "--dataset", "toy", "--data-root", "{tmp}", "--split", "val", "--out", "{tmp}/o", "--fps", "5"],
            "--fps: for --content frames",
        ),
        (
            ["extract", "--dataset", "toy", "--data-root", "{tmp}", "--split", "val", "--template", "a/{:05d}.jpg"],
            "--template: a file name without folders",
        ),
        (
            ["extract", "--dataset", "toy", "--data-root", "{tmp}", "--split", "val", "--template", "frame.jpg"],
            "template needs a number field",
        ),
        (
            ["extract", "--dataset", "toy", "--data-root", "{tmp}", "--split", "val", "--quality", "101"],
            "jpeg_quality lies between 1 and 100, got 101",
        ),
        (
            ["extract", "--dataset", "toy", "--data-root", "{tmp}", "--split", "val", "--fps", "nan"],
            "fps must be positive and finite, or None, got nan",
        ),
        (["split", "toy", "--annotations", "x", "--data-root", "{tmp}"], "is not built from annotation files"),
    ],
)
def test_wrong_questions_get_one_line_and_status_2(
    arguments: list[str], sentence: str, run: Run, tmp_path: Path
) -> None:
    status, _, errors = run(*(argument.replace("{tmp}", str(tmp_path)) for argument in arguments))
    assert status == 2
    assert sentence in errors
    assert errors.startswith("error: ")
    assert errors.count("\n") == 1


def test_out_that_is_a_file_is_refused(run: Run, data_root: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    status, _, errors = run(*shard_arguments(data_root, tmp_path / "file"))
    assert (status, errors) == (2, f"error: {tmp_path / 'file'}: is a file; give --out the name of a folder.\n")
    status, _, errors = run(*shard_arguments(data_root, tmp_path / "file" / "below"))
    assert status == 1
    assert "cannot be written (Not a directory)" in errors


def test_a_read_only_target_is_one_line(run: Run, data_root: Path, tmp_path: Path) -> None:
    if os.geteuid() == 0:
        # Root may write anywhere, but not on a file system that is mounted read-only.
        tmp_path = tmp_path / "mounted"
        tmp_path.mkdir()
        mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", str(tmp_path)], capture_output=True)
        if mounted.returncode != 0:
            pytest.skip(f"cannot mount: {mounted.stderr.decode()}")
    else:
        tmp_path.chmod(0o500)
    try:
        status, _, errors = run(*shard_arguments(data_root, tmp_path / "out"))
    finally:
        if os.geteuid() == 0:
            subprocess.run(["umount", str(tmp_path)], check=True)
        else:
            tmp_path.chmod(0o700)
    assert status == 1
    assert "cannot be written" in errors
    assert errors.count("\n") == 1


def test_a_reader_that_goes_away_is_no_fault() -> None:
    script = "import sys; from vidprep.cli import main; sys.argv = ['vidprep', 'list']; sys.exit(main())"
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    errors = process.stderr.read()
    process.stderr.close()
    process.wait(timeout=30)
    assert b"Traceback" not in errors


def test_the_command_starts_without_heavy_imports() -> None:
    script = (
        "import sys, vidprep.cli\n"
        "heavy = {'torch', 'pandas', 'numpy', 'av', 'pyarrow', 'joblib'} & set(sys.modules)\n"
        "sys.exit(f'imported: {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
