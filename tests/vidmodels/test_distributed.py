"""Several processes make the steps of one."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.vidmodels import detection_shards
from tests.vidmodels.shards import TINY, write_tiny_shards
from vidmodels.checkpoints import load_checkpoint, load_training
from vidmodels.distributed import ALONE, joined_world, mean_over_ranks
from vidmodels.layers.sync_norm import synchronise_norms
from vidprep.errors import UsageError

ROOT = Path(__file__).parents[2]

SETTINGS: dict[str, tuple[str, ...]] = {
    "taps": (*TINY, "model.gate_noise=false", "model.dropout=0.0"),
    "tam": ("model.dropout=0.0", "data.num_frames=4", "model.num_frames=4"),
    "sta": (),
    "uni_adafocus": ("model.dropout=0.0", "model.head_dropout=0.0"),
    "rgtp_vivit": (),
    "rgtp_vitdet": (*detection_shards.TINY, "data.num_frames=1"),
}
"""Changes to each method's toy recipe, so that chance has no part in training. Weights and passes are in float64."""

TRAINING = """
import sys
from dataclasses import replace
from pathlib import Path

import torch

from vidmodels.methods import METHODS
from vidmodels.recipes import load_recipe
from vidmodels.train import train

# What training draws itself is the same for every clip, so that it does not depend on which process has the clip.
draw, draw_integer, permute = torch.rand, torch.randint, torch.randperm

def same():
    return torch.Generator().manual_seed(0)

def rand(count, *shape, **settings):
    return draw(1, *shape, **{"dtype": torch.float64, **settings}, generator=same()).expand(count, *shape)

def randint(high, size, **settings):
    return draw_integer(high, (1, *size[1:]) if size else size, **settings, generator=same()).expand(*size)

def multinomial(weights, count, **settings):
    return torch.arange(count).expand(len(weights), count)  # not by weight: of nearly equal ones rounding would decide

def randperm(length, **settings):
    return permute(length, generator=same())

def build(config, num_classes):
    model = method.build(config, num_classes).double()
    model.register_forward_pre_hook(lambda _, inputs: (inputs[0].double(), *inputs[1:]))
    if hasattr(model, "embedding"):  # a detector's validation takes another way in
        model.embedding.register_forward_pre_hook(lambda _, inputs: (inputs[0].double(), *inputs[1:]))
    return model

torch.set_num_threads(1)
torch.rand, torch.randint, torch.multinomial, torch.randperm = rand, randint, multinomial, randperm
torch.Tensor.float = torch.Tensor.double  # where a method asks for full precision
name, shards, out, *overrides = sys.argv[1:]
recipe = load_recipe(name, overrides)
method = METHODS[recipe.method]
METHODS[recipe.method] = replace(method, build=build)
train(recipe, Path(shards), Path(out), device="cpu", workers=1)
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def losses(folder: Path, recipe: str, shards: Path, *overrides: str, ranks: int) -> list[float]:
    """Of each epoch, which is a step, in so many processes."""
    folder.mkdir()
    script, out = folder / "training.py", folder / "run"
    script.write_text(TRAINING)
    command = [sys.executable]
    if ranks > 1:
        command += ["-m", "torch.distributed.run", f"--nproc-per-node={ranks}", f"--master-port={free_port()}"]
    done = subprocess.run(
        [*command, str(script), recipe, str(shards), str(out), *overrides],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=1500,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line)["train"]["loss"] for line in (out / "log.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    ("method", "steps"),
    [
        ("taps", 20),
        ("rgtp_vivit", 3),
        *(pytest.param(name, 20, marks=pytest.mark.slow) for name in SETTINGS if name != "taps"),
    ],
)
def test_two_processes_make_the_steps_of_one(tmp_path: Path, method: str, steps: int) -> None:
    if method == "rgtp_vitdet":
        shards, dataset, clips = detection_shards.write_detection_shards(tmp_path, train=4, val=1), "toy_detection", 4
    else:
        shards, dataset, clips = write_tiny_shards(tmp_path), "numbers", 8
    changes = (
        *SETTINGS[method],
        f"data.dataset={dataset}",
        f"train.epochs={steps}",
        f"train.batch_size={clips}",
        "train.sync_norms=true",
    )
    one = losses(tmp_path / "one", f"{method}/toy", shards, *changes, ranks=1)
    two = losses(tmp_path / "two", f"{method}/toy", shards, *changes, ranks=2)
    assert len(one) == steps
    assert one[-1] != one[0]
    assert two == pytest.approx(one, rel=1e-5)


def test_a_single_process_needs_no_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    with joined_world(on_gpu=False) as world:
        assert world == ALONE
        assert world.gather(3) == [3]
    x = torch.ones(2, requires_grad=True)
    assert mean_over_ranks(x) is x


def test_half_of_torchruns_variables_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    sentence = r"needs RANK, LOCAL_RANK, WORLD_SIZE as numbers, found .*start it with torchrun"
    with pytest.raises(UsageError, match=sentence), joined_world(on_gpu=False):
        pass


def test_a_step_that_does_not_divide_among_the_processes_is_refused(tmp_path: Path) -> None:
    from vidmodels.distributed import World
    from vidmodels.train import _clips_of_a_pass
    from vidmodels.types import Train

    settings = Train(epochs=1, batch_size=8, lr=0.1, accumulate=2)
    assert _clips_of_a_pass(settings, World(size=2)) == 2
    with pytest.raises(UsageError, match=r"batch_size = 8 does not divide evenly among 3 processes x"):
        _clips_of_a_pass(settings, World(size=3))


@pytest.mark.parametrize("momentum", [0.1, None])
def test_synchronised_norms_of_one_process_are_batch_norms(momentum: float | None, tmp_path: Path) -> None:
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, momentum=momentum))
    other = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, momentum=momentum))
    other.load_state_dict(plain.state_dict())
    synchronise_norms(other)
    assert isinstance(other[1], nn.BatchNorm2d)
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        for _ in range(3):
            x = torch.randn(5, 3, 8, 8)
            ours, theirs = other(x), plain(x)
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
            for model, out in ((other, ours), (plain, theirs)):
                model.zero_grad()
                torch.autograd.backward(out.pow(3).sum())
            torch.testing.assert_close(other[0].weight.grad, plain[0].weight.grad, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(other.state_dict(), plain.state_dict(), rtol=1e-5, atol=1e-6)
        other.eval(), plain.eval()
        torch.testing.assert_close(other(x), plain(x), rtol=1e-5, atol=1e-5)
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_a_run_killed_inside_epochs_ends_in_the_same_weights(tmp_path: Path) -> None:
    shards = write_tiny_shards(tmp_path)
    changes = [part for change in (*TINY, "train.epochs=30", "train.batch_size=2") for part in ("--set", change)]
    command = [sys.executable, "-m", "vidmodels.cli", "train", "taps", "--recipe", "toy", "--data", str(shards)]
    command += ["--device", "cpu", "--workers", "1", "--save-steps", "1", *changes, "--out"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}

    def run(out: Path, *, until: tuple[int, int] | None = None) -> None:
        """To the end, or to the step of the epoch after which it is killed."""
        with subprocess.Popen([*command, str(out)], env=environment, stdout=subprocess.DEVNULL) as process:
            while process.poll() is None:
                if until is not None and (out / "last.pt").exists():
                    saved = load_training(out / "last.pt")
                    if (saved.epochs_done, saved.steps_done) >= until:
                        process.kill()
                time.sleep(0.005)
            assert process.returncode == (0 if until is None or (out / "result.json").exists() else -signal.SIGKILL)

    run(tmp_path / "whole")
    for until in ((0, 1), (7, 2), (15, 3)):
        run(tmp_path / "killed", until=until)
        assert not (tmp_path / "killed" / "result.json").exists()
    run(tmp_path / "killed")
    for name in ("best.safetensors", "last.pt"):
        whole, killed = (load_checkpoint(tmp_path / run / name) for run in ("whole", "killed"))
        torch.testing.assert_close(killed, whole, rtol=0, atol=0)
    records = [(tmp_path / run / "log.jsonl").read_text().splitlines() for run in ("whole", "killed")]
    whole_log, killed_log = ([json.loads(line)["train"] for line in lines] for lines in records)
    assert killed_log == whole_log
