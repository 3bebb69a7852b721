"""Models as files for other programs, and what cannot be one."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.vidmodels.shards import TINY
from tests.vidmodels.test_cli import call
from vidmodels import export
from vidmodels.checkpoints import save_weights
from vidmodels.export import ExportError, export_model
from vidmodels.methods import METHODS
from vidmodels.recipes import dump_recipe, load_recipe
from vidmodels.runs import Run, find_run, load_model
from vidprep.errors import UsageError

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

CLASSES = ("zero", "one", "two", "drei")
SMALL_RESNET = ("data.num_frames=4", "data.resize=32", "data.crop=32", "model.depths=[1, 1]", "model.widths=[8, 16]")


@dataclass(frozen=True)
class Case:
    recipe: str
    overrides: Sequence[str] = ()

    def save(self, folder: Path) -> Run:
        """Random weights, in which no layer is left at its quiet beginning, as a checkpoint of ours."""
        recipe = load_recipe(self.recipe, [*self.overrides, "data.dataset=numbers"])
        torch.manual_seed(0)
        model = METHODS[recipe.method].build(recipe.model, len(CLASSES))
        with torch.no_grad():
            for tensor in model.state_dict().values():
                if tensor.is_floating_point():
                    tensor.add_(0.05 * torch.rand_like(tensor))
        path = folder / "weights.safetensors"
        metadata = {"method": recipe.method, "recipe": dump_recipe(recipe), "classes": json.dumps(CLASSES)}
        save_weights(path, model.state_dict(), metadata)
        return find_run(path)


SHORT_VIVIT = ["data.num_frames=8", "model.num_frames=8", "model.reset_interval=3"]
CASES = {
    "tam": Case("tam/toy", [*SMALL_RESNET, "model.num_frames=4"]),
    "taps": Case("taps/toy", TINY),
    "taps_dense": Case("taps/toy_dense", TINY),
    "sta": Case("sta/toy_r11"),
    "sta_dense": Case("sta/toy"),
    "rgtp_vivit": Case("rgtp_vivit/toy_keep_02", SHORT_VIVIT),
    "rgtp_vivit_sampled": Case(
        "rgtp_vivit/toy_keep_02",
        [*SHORT_VIVIT, "model.gilbert_sampling=true", "model.foreground_ratio=0.5", "model.background_ratio=0.2"],
    ),
    "rgtp_vivit_nouns": Case("rgtp_vivit/toy", [*SHORT_VIVIT, "model.num_noun_classes=3"]),
    "eventful": Case("rgtp_vivit/toy", [*SHORT_VIVIT, "model.mode=eventful", "model.top_k=3"]),
    "uni_adafocus_tsm": Case("uni_adafocus/toy"),
    "uni_adafocus": Case("uni_adafocus/toy", ["model.variant=pooling", "model.num_candidates=32"]),
}


PRUNED = ("sta", "rgtp_vivit")
"""Thousands of operators: slow to trace."""


def expected(run: Run, frames: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = load_model(run, num_classes=len(CLASSES))(frames).logits
    return logits


def clips(run: Run, number: int) -> torch.Tensor:
    side = run.recipe.eval_crop
    return torch.randn(number, run.recipe.data.num_frames, 3, side, side, generator=torch.Generator().manual_seed(9))


def call_onnx(path: Path, frames: torch.Tensor) -> list[torch.Tensor]:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    found: list[np.ndarray] = session.run(None, {"frames": frames.numpy()})
    return [torch.from_numpy(array) for array in found]


def test_every_method_is_exported_or_refused() -> None:
    tried = {case.recipe.partition("/")[0] for case in CASES.values()}
    assert tried == set(METHODS) - {"rgtp_vitdet"}


@pytest.mark.parametrize(
    "name",
    [
        "tam",
        "taps",
        "rgtp_vivit_nouns",
        "uni_adafocus_tsm",
        *(pytest.param(name, marks=pytest.mark.slow) for name in PRUNED),
    ],
)
def test_a_torch_program_gives_what_the_model_gives_for_any_number_of_clips(name: str, tmp_path: Path) -> None:
    run = CASES[name].save(tmp_path)
    done = export_model(run, tmp_path / "model.pt2")
    extra = {export.FACTS_FILE: ""}
    module = torch.export.load(done.path, extra_files=extra).module()
    frames = clips(run, 5)
    torch.testing.assert_close(module(frames)[0], expected(run, frames))
    assert json.loads(json.loads(extra[export.FACTS_FILE])["classes"]) == list(CLASSES)
    assert done.difference <= 1e-6 * done.scale


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name == "sta_dense" else [pytest.mark.slow]) for name in CASES]
)
def test_onnx_gives_what_the_model_gives_for_any_number_of_clips(name: str, tmp_path: Path) -> None:
    run = CASES[name].save(tmp_path)
    done = export_model(run, tmp_path / "model.onnx")
    assert done.num_checked == 4
    assert done.difference <= export.TOLERANCE * done.scale
    frames = clips(run, 5)
    torch.testing.assert_close(
        call_onnx(done.path, frames)[0], expected(run, frames), rtol=1e-3, atol=1e-4 * done.scale
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.onnx", "weights.safetensors"]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A plain ViT of one block."""
    return Case("sta/toy", ["model.shape.depth=1", "data.num_frames=2", "model.num_frames=2"]).save(
        tmp_path_factory.mktemp("small")
    )


def test_an_onnx_file_says_what_goes_in_and_what_comes_out(
    small: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "model.onnx"
    assert call("export", small.weights, "--out", out, "--clips", 2, "--opset", 18) == 0
    shown = capsys.readouterr().out
    assert f"{out}: trainable form, 2 clips a call" in shown
    assert "checked with onnxruntime on 2 random clips: largest difference " in shown
    session = onnxruntime.InferenceSession(str(out), providers=["CPUExecutionProvider"])
    assert [(value.name, value.shape) for value in session.get_inputs()] == [("frames", [2, 2, 3, 48, 48])]
    assert [(value.name, value.shape) for value in session.get_outputs()] == [("logits", [2, 4])]
    facts = session.get_modelmeta().custom_metadata_map
    assert json.loads(facts["classes"]) == list(CLASSES)
    assert json.loads(facts["mean"]) == list(small.recipe.data.mean)
    assert (facts["method"], facts["num_frames"], facts["crop"]) == ("sta", "2", "48")
    assert facts["recipe"] == dump_recipe(small.recipe)
    assert {entry.version for entry in onnx.load(str(out)).opset_import} == {18}


def test_a_file_that_differs_from_the_model_is_not_left_behind(
    small: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = export._program_runner

    def wrong(path: Path) -> Callable[[torch.Tensor], Sequence[torch.Tensor]]:
        return lambda frames: [logits + 0.01 for logits in runner(path)(frames)]

    monkeypatch.setattr(export, "_program_runner", wrong)
    (tmp_path / "model.pt2").write_text("of before")
    with pytest.raises(ExportError, match=r"not written: .* differ from the model's by 1\.0e-02"):
        export_model(small, tmp_path / "model.pt2")
    assert [path.name for path in tmp_path.iterdir()] == ["model.pt2"]
    assert (tmp_path / "model.pt2").read_text() == "of before"
    assert export_model(small, tmp_path / "model.pt2", tolerance=1).difference == pytest.approx(0.01, rel=0.01)


@pytest.mark.parametrize(
    ("recipe", "overrides", "reason"),
    [
        ("taps/toy", TINY, "the dynamic form of taps cannot be exported: it gathers the channels that a clip keeps"),
        ("uni_adafocus/toy", (), "videos leave it at the exit that is sure of them"),
        ("rgtp_vitdet/toy", (), "finds any number of boxes"),
    ],
)
def test_what_has_no_fixed_list_of_operators_is_refused_with_the_reason(
    recipe: str, overrides: Sequence[str], reason: str, tmp_path: Path
) -> None:
    run = Run(name="x", recipe=load_recipe(recipe, overrides), weights=tmp_path / "none.safetensors", data=None)
    with pytest.raises(UsageError, match=reason):
        export_model(run, tmp_path / "model.onnx", form="dynamic")


def test_every_dynamic_form_without_an_obstacle_is_the_one_that_is_exported() -> None:
    obstacles = {name for name, method in METHODS.items() if method.export_obstacle}
    assert obstacles == {"taps", "uni_adafocus"}


def test_wrong_questions_are_answered(small: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def said(*words: object) -> str:
        assert call("export", small.weights, *words) == 2
        return " ".join(capsys.readouterr().err.split())

    assert "expected a name ending in .onnx or .pt2" in said("--out", tmp_path / "model.bin")
    assert "in a folder that exists" in said("--out", tmp_path / "no" / "model.onnx")
    assert "--clips is a number from 1 on, or dynamic; got many" in said("--out", "m.onnx", "--clips", "many")
    assert "got 0" in said("--out", tmp_path / "m.onnx", "--clips", 0)
    assert "--form is trainable or dynamic" in said("--out", tmp_path / "m.onnx", "--form", "dense")
    assert "--opset is for .onnx files" in said("--out", tmp_path / "m.pt2", "--opset", 18)
    assert "--tolerance must be above 0" in said("--out", tmp_path / "m.pt2", "--tolerance", 0)


def test_onnx_without_its_packages_names_the_extra(small: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "ONNX_PACKAGES", ("onnx", "no_such_onnxruntime"))
    with pytest.raises(UsageError, match=r"writing ONNX needs no_such_onnxruntime: pip install '\.\[export\]'"):
        export_model(small, tmp_path / "model.onnx")


def test_a_model_that_cannot_be_traced_is_named(
    small: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    forward = torch.nn.Linear.forward

    def branching(layer: torch.nn.Linear, x: torch.Tensor) -> torch.Tensor:
        return forward(layer, x) if x.sum() > 0 else forward(layer, -x)

    monkeypatch.setattr(torch.nn.Linear, "forward", branching)
    with pytest.raises(ExportError, match=r"sta/toy: cannot be traced as a fixed list of operators \(.*--clips 1"):
        export_model(small, tmp_path / "model.pt2")
    assert list(tmp_path.iterdir()) == []
    assert "def forward" not in "".join(capsys.readouterr())
