import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.vidmodels.shards import TINY, write_tiny_shards
from vidmodels.checkpoints import load_checkpoint
from vidmodels.compilation import check_compiler, uncompiled
from vidmodels.recipes import load_recipe
from vidmodels.train import train
from vidprep.errors import UsageError

SENTENCE = r"train\.compile needs a C\+\+ compiler .*, and it does not work here \(.*; install it, or train without"


def test_a_compiler_that_does_not_work_is_said_in_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(function: Any) -> Any:
        raise RuntimeError("no working compiler\nand many lines more")

    monkeypatch.setattr(torch, "compile", broken)
    with pytest.raises(UsageError, match=SENTENCE) as caught:
        check_compiler(torch.device("cpu"))
    assert "many lines" not in str(caught.value)


def test_a_compiled_module_may_run_as_it_is_written() -> None:
    runs: list[str] = []

    def backend(graph: torch.fx.GraphModule, _: Any) -> Any:
        runs.append("compiled")
        return graph

    model = torch.nn.Linear(2, 2)
    model.compile(backend=backend)
    with uncompiled():
        model(torch.ones(1, 2))
    assert runs == []
    model(torch.ones(1, 2))
    assert runs == ["compiled"]


@pytest.mark.slow
def test_a_missing_compiler_is_noticed_before_training() -> None:
    script = "import torch; from vidmodels.compilation import check_compiler; check_compiler(torch.device('cpu'))"
    environment = {"PATH": "", "CXX": "/nowhere/g++", "PYTHONPATH": str(Path(__file__).parents[2]), "HOME": "/nowhere"}
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert "UsageError: train.compile needs a C++ compiler" in done.stderr


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of PyTorch's compiler itself
def test_compiled_training_comes_to_the_weights_of_plain_training(tmp_path: Path) -> None:
    shards = write_tiny_shards(tmp_path)
    weights = []
    for name, compiled in (("plain", "false"), ("compiled", "true")):
        recipe = load_recipe(
            "taps/toy", (*TINY, f"train.compile={compiled}", "model.gate_noise=false", "model.dropout=0.0")
        )
        train(recipe, shards, tmp_path / name, device="cpu", workers=1)
        weights.append(load_checkpoint(tmp_path / name / "best.safetensors"))
    torch.testing.assert_close(*weights, rtol=1e-3, atol=1e-4)  # fused sums round otherwise
