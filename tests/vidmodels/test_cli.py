import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from tests.vidmodels.shards import TINY, write_tiny_shards
from vidmodels import cli
from vidmodels.checkpoints import load_checkpoint, load_training, read_metadata, save_weights
from vidmodels.recipes import load_recipe

SETTINGS = [part for override in TINY for part in ("--set", override)]


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_shards(tmp_path_factory.mktemp("tiny"))


def call(*arguments: object) -> int:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["vidmodels", *map(str, arguments)])
        return cli.main()


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, shards: Path) -> Path:
    """Two finished runs: `taps` and its dense baseline `dense`."""
    folder = tmp_path_factory.mktemp("runs")
    for name, extra in (("taps", []), ("dense", ["--set", "model.pruning=false"])):
        arguments = ["train", "taps", "--recipe", "toy", "--data", shards, "--out", folder / name, "--workers", 1]
        assert call(*arguments, "--device", "cpu", *SETTINGS, *extra) == 0
    return folder


@pytest.fixture
def complaint(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """The one line that a call with a wrong question (status 2) or wrong data (1) prints."""

    def ask(status: int, *arguments: object) -> str:
        assert call(*arguments) == status
        err = capsys.readouterr().err
        assert err.startswith("error: ")
        assert err.count("\n") == 1
        return err

    return ask


def test_help_answers_without_importing_torch() -> None:
    code = "import sys; sys.argv = ['vidmodels', '--help']; from vidmodels.cli import main; status = main(); "
    code += "assert 'torch' not in sys.modules; assert 'pandas' not in sys.modules; sys.exit(status)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    for command in ("list", "show", "train", "eval", "report", "convert", "cost", "verify"):
        assert f"\n  {command} " in done.stdout


def test_list_shows_methods_and_recipes(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("list") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["method", "paper"]
    assert any(line.split()[:4] == ["taps/toy", "toy", "20", "epochs"] for line in lines)


def test_show_prints_toml_that_loads_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("show", "taps/toy", "--set", "train.lr=0.5") == 0
    (tmp_path / "mine.toml").write_text(capsys.readouterr().out)
    assert load_recipe(tmp_path / "mine.toml") == load_recipe("taps/toy", ["train.lr=0.5"])


def test_show_of_a_method_lists_its_recipes(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("show", "tam") == 0
    shown = capsys.readouterr().out
    assert "https://arxiv.org/abs/2005.06803" in shown
    assert "tam/something_v2_r50_8f" in shown
    assert "taps/toy" not in shown


def test_a_paper_with_a_method_of_another_name_is_shown_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("show", "rgtp") == 0
    assert "rgtp_vivit/kinetics400_keep_0215" in capsys.readouterr().out


def test_training_leaves_a_run_and_says_so_when_asked_again(
    runs: Path, shards: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = {path.name for path in (runs / "taps").iterdir()}
    assert {"recipe.toml", "log.jsonl", "best.safetensors", "last.pt", "result.json", "tensorboard"} <= names
    arguments = ["train", "taps", "--recipe", "toy", "--data", shards, "--out", runs / "taps", *SETTINGS]
    assert call(*arguments) == 0
    assert "this run is finished; val top-1" in capsys.readouterr().out


def test_runs_are_evaluated_side_by_side(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    figures = tmp_path / "figures.json"
    arguments = ["eval", runs / "dense", runs / "taps", "--timed-runs", 2, "--workers", 1, "--json", figures]
    assert call(*arguments) == 0
    out = capsys.readouterr().out
    rows = [line.split()[:2] for line in out.splitlines()[1:6]]
    assert rows[0] == ["model", "form"]
    assert rows[1:] == [[name, form] for name in ("dense", "taps") for form in ("trainable", "dynamic")]
    dense, taps = json.loads(figures.read_text())["runs"]
    assert taps["same_predictions"] == taps["num_videos"] == 8
    assert taps["largest_score_difference"] < 1e-4
    assert (taps["different_gates"], taps["clips_with_different_gates"]) == (0, 0)
    assert "different_gates" not in dense
    assert "gates differ" not in out
    # the dynamic form runs what the masks promise, or a little more where frames run together; the other everything
    assert taps["forms"]["dynamic"]["gmacs_per_clip"] >= (1 - 1e-9) * taps["promised_gmacs"]
    assert taps["forms"]["dynamic"]["gmacs_per_clip"] < taps["forms"]["trainable"]["gmacs_per_clip"]
    assert dense["forms"]["dynamic"]["gmacs_per_clip"] == pytest.approx(dense["promised_gmacs"], rel=1e-9)
    best = json.loads((runs / "taps" / "result.json").read_text())["best"]
    assert taps["forms"]["trainable"]["top1"] == pytest.approx(best["top1"])


@pytest.mark.parametrize("weights", ["best.safetensors", "last.pt"])
def test_a_file_of_a_run_is_evaluated_with_the_recipe_it_brings(runs: Path, tmp_path: Path, weights: str) -> None:
    arguments = ["eval", runs / "taps" / weights, "--no-dynamic", "--timed-runs", 1]
    assert call(*arguments, "--predictions", tmp_path / "p.parquet") == 0
    assert pd.read_parquet(tmp_path / "p.parquet")["video_id"].tolist() == [f"val{k}" for k in range(8)]


def test_weights_moved_elsewhere_bring_their_recipe_but_not_their_shards(
    runs: Path, shards: Path, tmp_path: Path, complaint: Callable[..., str]
) -> None:
    moved = tmp_path / "moved.safetensors"
    moved.write_bytes((runs / "taps" / "best.safetensors").read_bytes())
    assert "say with --data which shards" in complaint(2, "eval", moved)
    assert call("eval", moved, "--data", shards, "--no-dynamic", "--timed-runs", 1) == 0


def published(folder: Path, runs: Path) -> Path:
    """The run's weights under the names of the published code, as its files hold them."""
    state = load_checkpoint(runs / "taps" / "best.safetensors")
    names = {ours: name for name, ours in published_names(state).items()}
    path = folder / "ckpt.best.pth.tar"
    torch.save({"state_dict": {f"module.{names[ours]}": tensor for ours, tensor in state.items()}}, path)
    return path


def published_names(state: dict[str, torch.Tensor]) -> dict[str, str]:
    """Published name -> ours, for all entries of `state`."""
    renamings = (
        ("backbone.", "base_model."),
        (".downsample.", ".downsample"),
        ("head.", "new_fc."),
        (".attention1.in_proj.", ".policy_net.TDCP_ca.in_proj_"),
        (".attention2.in_proj.", ".policy_net.TDCP_ca2.in_proj_"),
        (".attention1.", ".policy_net.TDCP_ca."),
        (".attention2.", ".policy_net.TDCP_ca2."),
        (".norm1.", ".policy_net.TDCP_norm1."),
        (".norm2.", ".policy_net.TDCP_norm2."),
        (".hidden.", ".policy_net.gate_fc0."),
        (".hidden_norm.", ".policy_net.gate_bn."),
        (".gate.", ".policy_net.gate_fc1."),
        ("policies.", "base_model."),
    )
    table = {}
    for ours in state:
        name = ours
        for old, new in renamings:
            name = name.replace(old, new)
        table[name] = ours
    return table


def test_a_published_checkpoint_is_converted_and_evaluated(
    runs: Path, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], complaint: Callable[..., str]
) -> None:
    source, target = published(tmp_path, runs), tmp_path / "converted.safetensors"
    assert call("convert", "taps", source, target) == 0
    assert "converted.safetensors: " in capsys.readouterr().out
    torch.testing.assert_close(
        load_checkpoint(target), load_checkpoint(runs / "taps" / "best.safetensors"), rtol=0, atol=0
    )
    assert read_metadata(target) == {"method": "taps", "source": "ckpt.best.pth.tar"}
    assert "brings no recipe; say which with --recipe" in complaint(2, "eval", target, "--data", shards)
    for path in (source, target):
        arguments = ["eval", path, "--recipe", "taps/toy", "--data", shards, "--timed-runs", 1, *SETTINGS]
        assert call(*arguments) == 0
        assert "both forms predict the same for 8 of 8 videos" in capsys.readouterr().out


def test_cost_counts_parameters_and_macs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    figures = tmp_path / "cost.json"
    assert call("cost", "taps/toy", "--json", figures, *SETTINGS, "--set", "data.num_classes=4") == 0
    assert "GMACs per clip, dynamic" in capsys.readouterr().out
    content: dict[str, Any] = json.loads(figures.read_text())
    assert content["figures"]["GMACs per clip, dynamic"] < content["figures"]["GMACs per clip"]
    assert sum(content["gmacs_by_operator"].values()) == pytest.approx(content["figures"]["GMACs per clip"])


def test_costs_published_for_all_views_stand_beside_as_many_of_ours(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    counted = {"parameters": 115062928, "GMACs per clip": 50.2, "gmacs_published (random weights)": 50.6707}
    monkeypatch.setattr(cli, "_count", lambda recipe, num_classes: (dict(counted), {"addmm": 50.2}))
    assert call("cost", "kinetics400_keep_0066") == 0
    row = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("gmacs_published, 12 views"))
    assert row.split()[-4:] == ["608.0484", "610.0000", "-0.32", "%"]


def test_wrong_questions_are_one_line_with_the_nearest_names(
    runs: Path, shards: Path, tmp_path: Path, complaint: Callable[..., str]
) -> None:
    training = ["--data", shards, "--out", tmp_path / "run"]
    assert "no method 'tap'; did you mean taps or tam" in complaint(2, "train", "tap", "--recipe", "toy", *training)
    assert "no recipe 'taps/toi'; did you mean taps/toy" in complaint(2, "train", "taps", "--recipe", "toi", *training)
    assert "train.lrr: unknown key, did you mean lr?" in complaint(2, "show", "taps/toy", "--set", "train.lrr=1")
    assert "but recipe toy is for toy (8 classes)" in complaint(2, "train", "taps", "--recipe", "toy", *training)
    assert "no such folder" in complaint(2, "train", "taps", "--recipe", "toy", "--data", "nowhere", "--out", tmp_path)
    assert "no run folder (no recipe.toml in it)" in complaint(2, "eval", tmp_path)
    assert "no such checkpoint file" in complaint(2, "eval", tmp_path / "no.safetensors")
    assert "no such run folder or checkpoint file" in complaint(2, "eval", tmp_path / "no.pth")
    assert "does not say how many classes numbers has" in complaint(2, "cost", "taps/toy", *SETTINGS)
    assert "expected a name ending in .safetensors" in complaint(2, "convert", "taps", "a.pth", "b.pth")
    assert "got 2 targets" in complaint(2, "eval", runs / "taps", runs / "dense", "--predictions", "p.json")
    assert "other settings: train.epochs: 2 there, 3 now" in complaint(
        2,
        "train",
        "taps",
        "--recipe",
        "toy",
        "--data",
        shards,
        "--out",
        runs / "taps",
        *SETTINGS,
        "--set",
        "train.epochs=3",
    )
    assert not (tmp_path / "run").exists()


class Malicious:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.folder),)


def test_a_malicious_checkpoint_is_refused_and_nothing_runs(tmp_path: Path, complaint: Callable[..., str]) -> None:
    path, evidence = tmp_path / "ckpt.pth.tar", tmp_path / "evidence"
    torch.save({"state_dict": Malicious(evidence)}, path)
    assert "nothing of it was executed" in complaint(1, "convert", "taps", path, tmp_path / "out.safetensors")
    assert not evidence.exists()
    assert not (tmp_path / "out.safetensors").exists()


def test_checkpoints_of_other_methods_and_models_are_refused(
    runs: Path, shards: Path, tmp_path: Path, complaint: Callable[..., str]
) -> None:
    other = tmp_path / "resnet.pth"
    torch.save({"conv1.weight": torch.zeros(1), "fc.weight": torch.zeros(1)}, other)
    assert "resnet.pth: not a checkpoint of the expected layout: 2 unexpected entries" in complaint(
        1, "convert", "taps", other, tmp_path / "out.safetensors"
    )
    evaluation = ["--recipe", "taps/toy", "--data", shards, *SETTINGS]
    assert "resnet.pth: not a checkpoint of the expected layout" in complaint(1, "eval", other, *evaluation)
    tam = tmp_path / "tam.safetensors"
    save_weights(tam, {"conv1.weight": torch.zeros(1)}, {"method": "tam"})
    assert "tam.safetensors: checkpoint of another method: tam; recipe toy is for taps" in complaint(
        1, "eval", tam, *evaluation
    )
    assert "checkpoint of another model: " in complaint(
        1, "eval", runs / "taps", "--set", "model.hidden_dim=4", "--timed-runs", 1
    )


def test_a_checkpoint_cut_short_is_refused(
    runs: Path, shards: Path, tmp_path: Path, complaint: Callable[..., str]
) -> None:
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes((runs / "taps" / "best.safetensors").read_bytes()[:-100])
    assert "cut.safetensors: not a whole safetensors file" in complaint(1, "eval", cut, "--data", shards)


def test_ctrl_c_is_one_line_and_the_same_command_goes_on(shards: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    arguments = ["train", "taps", "--recipe", "toy", "--data", shards, "--out", out, *SETTINGS, "--workers", 1]
    long = [*arguments, "--device", "cpu", "--set", "train.epochs=500"]
    command = [sys.executable, "-m", "vidmodels.cli", *map(str, long)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not (out / "last.pt").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    complaints = [line for line in stderr.splitlines() if not line.startswith("epoch ")]  # progress of a slow machine
    assert complaints == ["error: interrupted; the same command goes on where it stopped."]
    # The interrupt may fall between the files of an epoch, or before its line: last.pt says what is done.
    epochs_done = load_training(out / "last.pt").epochs_done
    assert epochs_done >= 1
    assert epochs_done - 1 <= stdout.count("val top-1") <= epochs_done
    assert 0 <= len((out / "log.jsonl").read_text().splitlines()) - epochs_done <= 1
    assert not list(out.glob("*.part"))
    again = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert again.stdout is not None
    assert again.stdout.readline().endswith(f"going on after epoch {epochs_done} of 500\n")
    again.send_signal(signal.SIGINT)
    again.communicate(timeout=60)
