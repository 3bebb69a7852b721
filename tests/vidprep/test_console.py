import errno
import logging
import subprocess
import sys
from collections.abc import Callable

import pytest
import typer

from vidprep import console
from vidprep.console import run_app, track
from vidprep.errors import CorruptShard, UnknownDataset


def app_that(action: Callable[[], None], monkeypatch: pytest.MonkeyPatch, *arguments: str) -> typer.Typer:
    app = typer.Typer(rich_markup_mode=None)
    app.command()(action)
    monkeypatch.setattr("sys.argv", ["program", *arguments])
    return app


def raising(error: BaseException) -> Callable[[], None]:
    def action() -> None:
        raise error

    return action


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (UnknownDataset("no data set 'toyy';\n  did you mean toy?"), 2, "error: no data set 'toyy'; did you mean toy?"),
        (CorruptShard("val-000000.tar: cut short"), 1, "error: val-000000.tar: cut short"),
        (
            OSError(errno.ENOSPC, "No space left on device", "out.tar"),
            1,
            "error: no space left on the disk (out.tar); ",
        ),
        (PermissionError(errno.EACCES, "Permission denied", "x"), 1, "error: [Errno 13] Permission denied: 'x'"),
        (KeyboardInterrupt(), 130, "error: interrupted; the same command goes on where it stopped."),
    ],
)
def test_an_error_is_one_line_and_an_exit_status(
    error: BaseException, status: int, line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_app(app_that(raising(error), monkeypatch)) == status
    complaint = capsys.readouterr().err
    assert complaint.startswith(line)
    assert complaint.count("\n") == 1


def test_a_fault_of_the_program_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ZeroDivisionError):
        run_app(app_that(raising(ZeroDivisionError()), monkeypatch))


def test_success_is_zero_and_an_unknown_option_two(monkeypatch: pytest.MonkeyPatch) -> None:
    assert run_app(app_that(lambda: None, monkeypatch)) == 0
    assert run_app(app_that(lambda: None, monkeypatch, "--no-such-option")) == 2


def test_log_lines_go_to_standard_output(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_app(app_that(lambda: logging.getLogger("vidprep.x").info("eight videos"), monkeypatch)) == 0
    assert capsys.readouterr().out == "eight videos\n"


def test_progress_hands_every_item_on(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(console, "SECONDS_BETWEEN_LINES", 0.0)
    assert list(track([1, 2], description="videos")) == [1, 2]
    assert capsys.readouterr().err.splitlines() == ["videos 1/2", "videos 2/2"]
    assert list(track(iter("ab"), description="videos")) == ["a", "b"]
    assert capsys.readouterr().err.splitlines() == ["videos 1", "videos 2"]


def test_progress_is_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    assert list(track([1, 2], description="videos")) == [1, 2]
    assert "videos 2/2" not in capsys.readouterr().out


def test_quick_work_prints_no_progress(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(track(range(100), description="videos")) == list(range(100))
    assert capsys.readouterr().err == ""


def test_a_reader_that_has_seen_enough_ends_the_program_without_a_traceback() -> None:
    script = (
        "import logging, sys, typer\n"
        "from vidprep.console import run_app\n"
        "app = typer.Typer(rich_markup_mode=None)\n"
        "@app.command()\n"
        "def talk() -> None:\n"
        "    for _ in range(100_000):\n"
        "        logging.getLogger('vidprep').info('a line that nobody waits for')\n"
        "sys.exit(run_app(app))\n"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        errors = process.stderr.read()
    assert process.returncode == 1
    assert errors == b""
