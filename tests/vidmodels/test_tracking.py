"""Weights & Biases, offline: what a run sends there lies in its folder."""

import json
import os
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.vidmodels.fakes import METHOD
from tests.vidmodels.test_train import Interruption, log_of, recipe_with, run, use_method
from tests.vidmodels.test_train import splits as splits  # the fixture
from vidmodels import train
from vidmodels.recipes import load_recipe
from vidmodels.tracking import reporting_to_wandb
from vidprep.errors import MissingPackage, UsageError, VidprepError

ROOT = Path(__file__).parents[2]

REPORT = """
import json, sys, time
from pathlib import Path
from vidmodels.recipes import load_recipe
from vidmodels.tracking import reporting_to_wandb

for done, new in json.loads(sys.argv[2]):
    time.sleep(1.1)  # folders are named by the second
    with reporting_to_wandb("birds", Path(sys.argv[1]), load_recipe("taps/toy"), done=done) as report:
        for record in new:
            report(record)
"""

READ = """
import json, sys
from wandb.proto.wandb_internal_pb2 import Record

def contents(data):
    # A LevelDB log after 7 bytes: blocks of 32 KiB, parts with a checksum (4 bytes), a length (2) and a kind (1).
    at, content = 7, b""
    while at + 7 <= len(data):
        length, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        content += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield content
            content = b""
        left = 32768 - at % 32768
        at += left if left < 7 else 0

for path in sys.argv[1:]:
    with open(path, "rb") as file:
        for content in contents(file.read()):
            record = Record()
            record.ParseFromString(content)
            if record.WhichOneof("record_type") == "run":
                settings = {item.key: json.loads(item.value_json) for item in record.run.config.update}
                print(json.dumps(["run", record.run.project, record.run.run_id, record.run.display_name, settings]))
            if record.WhichOneof("record_type") == "history":
                figures = {(item.key or item.nested_key[0]): item.value_json for item in record.history.item}
                print(json.dumps(["epoch", {name: json.loads(value) for name, value in figures.items()}]))
"""


def python(script: str, *arguments: str) -> str:
    """What it prints, in a process of its own: the package starts threads, a service and an exit handler."""
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT), "WANDB_MODE": "offline", "WANDB_SILENT": "true"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def record(epoch: int) -> dict[str, Any]:
    return {
        "epoch": epoch,
        "lr": 0.1,
        "seconds": 2.0,
        "train": {"loss": 1.0 / (1 + epoch)},
        "val": {"top1": 10.0 * epoch},
    }


def test_a_run_goes_on_as_the_same_one(tmp_path: Path) -> None:
    out = tmp_path / "taps"
    out.mkdir()
    python(REPORT, str(out), json.dumps([([record(0)], [record(1)]), ([record(0), record(1)], [record(2)])]))
    known = json.loads((out / "wandb.json").read_text())
    recipe = load_recipe("taps/toy")
    assert recipe.train is not None
    files = sorted((out / "wandb").glob("offline-run-*/run-*.wandb"))
    assert len(files) == 2
    seen: dict[int, dict[str, Any]] = {}
    for line in python(READ, *map(str, files)).splitlines():
        kind, *rest = json.loads(line)
        if kind == "run":
            project, run_id, name, settings = rest
            assert (project, run_id, name) == (known["project"], known["id"], "taps")
            assert (settings["method"], settings["train"]["lr"]) == ("taps", recipe.train.lr)
        else:
            [figures] = rest
            assert figures["epoch"] not in seen
            seen[figures["epoch"]] = figures
    assert sorted(seen) == [0, 1, 2]
    assert {name: seen[2][name] for name in ("_step", "train/loss", "val/top1", "lr", "seconds")} == {
        "_step": 2,
        "train/loss": pytest.approx(1 / 3),
        "val/top1": 20.0,
        "lr": 0.1,
        "seconds": 2.0,
    }


@pytest.mark.usefixtures("splits")
def test_training_reports_each_epoch_once_over_an_interruption(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reported: list[list[int]] = []

    @contextmanager
    def reporting(project: str | None, out: Path, recipe: Any, *, done: Any) -> Any:
        assert project == "birds"
        reported.append([entry["epoch"] for entry in done])
        yield lambda entry: reported[-1].append(entry["epoch"])

    monkeypatch.setattr(train, "reporting_to_wandb", reporting)
    use_method(monkeypatch, replace(METHOD, training_step=Interruption(12, KeyboardInterrupt())))
    for _ in range(2):
        try:
            train.train(recipe_with(), Path("shards"), tmp_path / "run", device="cpu", workers=0, wandb="birds")
        except KeyboardInterrupt:
            continue
    assert reported == [[0, 1], [0, 1, 2, 3]]
    assert [entry["epoch"] for entry in log_of(tmp_path / "run")] == [0, 1, 2, 3]


@pytest.mark.usefixtures("splits")
def test_without_the_package_training_does_not_begin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(MissingPackage, match=r"--wandb needs the `wandb` extra: pip install 'vidprep\[wandb\]'"):
        train.train(recipe_with(), Path("shards"), tmp_path / "run", device="cpu", workers=0, wandb="birds")
    assert not (tmp_path / "run").exists()
    run(recipe_with("train.epochs=1"), tmp_path / "run")  # nobody needs it who does not ask for it


def test_a_run_of_another_project_is_named(tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    (tmp_path / "wandb.json").write_text('{"project": "birds", "id": "1234"}')
    with (
        pytest.raises(
            UsageError, match=r"this run is in the project birds of Weights & Biases, not in cats; go on with"
        ),
        reporting_to_wandb("cats", tmp_path, load_recipe("taps/toy"), done=[]),
    ):
        pass
    (tmp_path / "wandb.json").write_text("{}")
    with (
        pytest.raises(VidprepError, match=r"wandb\.json: not a run of Weights & Biases .*delete it to begin another"),
        reporting_to_wandb("cats", tmp_path, load_recipe("taps/toy"), done=[]),
    ):
        pass
