import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from vidprep import doctor
from vidprep.doctor import DoctorReport, Finding, examine

BROKEN = {
    "crashes": "import ctypes; ctypes.string_at(0)",
    "fails": "raise RuntimeError('Could not load libtorchcodec.')\n# and a long explanation",
    "absent": "import nothing_of_this_name",
    "hangs": "import time; time.sleep(60)",
}


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Broken libraries instead of the large ones."""
    monkeypatch.setattr(doctor, "PROBE_SECONDS", 3.0)
    monkeypatch.setattr(
        doctor, "_LIBRARIES", tuple((name, name == "fails", f"mend {name}", text) for name, text in BROKEN.items())
    )
    monkeypatch.setattr(doctor, "_MODULES", dict.fromkeys(BROKEN, "nothing_of_this_name"))


@pytest.mark.usefixtures("quick")
def test_a_broken_library_is_a_line_with_its_cure(tmp_path: Path) -> None:
    report = examine(tmp_path)
    found = {finding.name: finding for finding in report.findings}
    assert (found["crashes"].state, found["crashes"].detail) == ("unfit", "ended by signal 11")
    assert (found["fails"].state, found["fails"].detail) == ("unfit", "RuntimeError: Could not load libtorchcodec.")
    assert (found["absent"].state, found["absent"].detail) == ("absent", "not installed")
    assert (found["hangs"].state, found["hangs"].detail) == ("unfit", "takes longer than 3 s")
    assert not report.is_fit
    lines = report.to_text().splitlines()
    assert any(line.startswith("absent") and line.endswith("not installed -> mend absent") for line in lines)
    assert lines[-1] == "needed and not fit: fails"
    assert json.loads(report.to_json())["is_fit"] is False


def test_a_library_that_is_missing_leaves_no_clip_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    state, detail = doctor._try_program(doctor._DECORD.replace("import decord", "import nothing_of_this_name"))
    assert (state, detail) == ("unfit", "ModuleNotFoundError: No module named 'nothing_of_this_name'")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("quick")
def test_a_folder_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    found = {finding.name: finding for finding in examine(tmp_path / "none").findings}
    assert found["disk"].state == "unfit"
    assert "cannot be written" in found["disk"].detail or "No such file" in found["disk"].detail
    assert found["disk"].is_required


def test_what_is_not_required_does_not_make_a_machine_unfit() -> None:
    choice = Finding(
        name="decord", state="absent", detail="not installed", is_required=False, cure="pip install decord"
    )
    needed = Finding(name="PyAV", state="fit", detail="15", is_required=True, cure="pip install av")
    report = DoctorReport(findings=(needed, choice))
    assert report.is_fit
    assert report.to_text().splitlines() == [
        "PyAV    fit      15",
        "decord  absent   not installed -> pip install decord",
        "all that is needed is fit",
    ]


@pytest.mark.slow
def test_the_command_finds_this_machine_fit(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", "from vidprep.cli import main; raise SystemExit(main())", "doctor", "--json", "a.json"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == "all that is needed is fit"
    found = {finding["name"]: finding for finding in json.loads((tmp_path / "a.json").read_text())["findings"]}
    assert [found[name]["state"] for name in ("PyAV", "simplejpeg", "torch", "torchvision")] == ["fit"] * 4
