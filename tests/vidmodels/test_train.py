import json
import random
import shutil
import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # type: ignore[import-untyped]

from tests.vidmodels import fakes
from vidmodels import recipes, train
from vidmodels.checkpoints import CheckpointError, load_checkpoint, load_training, read_metadata, save_weights
from vidmodels.evaluate import classify
from vidmodels.recipes import load_recipe, read_recipe
from vidmodels.types import Batch, Method, Recipe
from vidprep.errors import UsageError, VidprepError

SETTINGS = """\
method = "fake"
source = "none"
data = { dataset = "bright", num_frames = 2, resize = 8, crop = 8 }
train = { epochs = 4, batch_size = 8, lr = 0.2, schedule = "cosine", warmup_epochs = 1, clip_grad = 5.0 }
"""


@pytest.fixture
def splits(monkeypatch: pytest.MonkeyPatch) -> dict[str, fakes.FakeSplit]:
    """The fake method and its shards in the place of real ones."""
    found = {"train": fakes.FakeSplit("train", 42), "val": fakes.FakeSplit("val", 12)}
    monkeypatch.setattr(train, "open_split", lambda recipe, folder, split, *, train: found[split])
    use_method(monkeypatch, fakes.METHOD)
    return found


def use_method(monkeypatch: pytest.MonkeyPatch, method: Method) -> None:
    monkeypatch.setattr(train, "METHODS", {"fake": method})
    monkeypatch.setattr(recipes, "METHODS", {"fake": method})


def recipe_with(*overrides: str) -> Recipe:
    return read_recipe(SETTINGS, source_file="test.toml", name="test", overrides=overrides)


def run(recipe: Recipe, out: Path, *, save_steps: int | None = None) -> dict[str, Any]:
    return train.train(recipe, Path("shards"), out, device="cpu", workers=0, save_steps=save_steps)


def log_of(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def same_weights(one: Path, other: Path) -> None:
    for name in ("best.safetensors", "last.pt"):
        torch.testing.assert_close(load_checkpoint(one / name), load_checkpoint(other / name), rtol=0, atol=0)


@pytest.mark.usefixtures("splits")
def test_a_run_learns_and_leaves_its_files(tmp_path: Path) -> None:
    out, recipe = tmp_path / "run", recipe_with()
    result = run(recipe, out)
    assert result["best"]["top1"] > 90
    assert json.loads((out / "result.json").read_text()) == result
    assert load_recipe(out / "recipe.toml") == recipe
    names = {path.name for path in out.iterdir()}
    assert names == {
        "recipe.toml",
        "run.json",
        "log.jsonl",
        "tensorboard",
        "last.pt",
        "best.safetensors",
        "result.json",
    }
    log = log_of(out)
    assert [record["epoch"] for record in log] == [0, 1, 2, 3]
    assert set(log[0]) == {"epoch", "lr", "train", "val", "seconds"}
    assert log[0]["train"]["loss"] > log[-1]["train"]["loss"]
    assert set(log[0]["val"]) == {"top1", "top5", "map", "mean_hidden"}
    metadata = read_metadata(out / "best.safetensors")
    assert (metadata["method"], json.loads(metadata["classes"])) == ("fake", ["red", "green", "blue"])
    assert read_recipe(metadata["recipe"], source_file="header", name="header") == recipe


@pytest.mark.usefixtures("splits")
def test_tensorboard_shows_the_same_figures(tmp_path: Path) -> None:
    run(recipe_with(), tmp_path / "run")
    board = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    board.Reload()
    assert {"train/loss", "val/top1", "lr"} <= set(board.Tags()["scalars"])
    shown = [event.value for event in board.Scalars("train/loss")]
    assert shown == pytest.approx([record["train"]["loss"] for record in log_of(tmp_path / "run")])


@pytest.mark.usefixtures("splits")
def test_steps_see_the_fraction_of_the_epoch(tmp_path: Path) -> None:
    run(recipe_with("train.epochs=2"), tmp_path / "run")
    # 42 clips in batches of 8, the last two clips dropped: 5 steps, at 0, 0.2, ..., 0.8 of each epoch
    assert [record["train"]["epoch_seen"] for record in log_of(tmp_path / "run")] == pytest.approx([0.4, 1.4])


@pytest.mark.usefixtures("splits")
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_groups_keep_their_ratio_while_the_rate_is_scheduled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, optimizer: str
) -> None:
    seen: list[tuple[float, float]] = []
    kind = {"sgd": torch.optim.SGD, "adamw": torch.optim.AdamW}[optimizer]

    class Watched(kind):  # type: ignore[misc, valid-type]
        def step(self, *args: Any, **kwargs: Any) -> Any:
            seen.append((self.param_groups[0]["lr"], self.param_groups[1]["lr"]))
            return super().step(*args, **kwargs)

    monkeypatch.setattr(torch.optim, kind.__name__, Watched)
    run(recipe_with(f"train.optimizer={optimizer}", "train.epochs=3", "train.lr=0.1"), tmp_path / "run")
    assert len(seen) == 15
    assert all(biases == pytest.approx(2 * weights) for weights, biases in seen)
    assert [weights for weights, _ in seen[:5]] == pytest.approx([0.0, 0.02, 0.04, 0.06, 0.08])  # warm-up
    assert seen[5][0] == pytest.approx(0.1 * 0.75)  # cosine of epoch 1 of 3


@pytest.mark.usefixtures("splits")
def test_a_finished_run_returns_at_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    result = run(recipe_with(), tmp_path / "run")
    before = (tmp_path / "run" / "last.pt").stat().st_mtime_ns
    with caplog.at_level("INFO"):
        assert run(recipe_with(), tmp_path / "run") == result
    assert "this run is finished; val top-1" in caplog.text
    assert (tmp_path / "run" / "last.pt").stat().st_mtime_ns == before


class Interruption:
    """A training step that stops the run at the given step, once."""

    def __init__(self, at_step: int, error: BaseException) -> None:
        self.steps_left, self.error = at_step, error

    def __call__(self, model: torch.nn.Module, batch: Batch, epoch: float) -> dict[str, torch.Tensor]:
        self.steps_left -= 1
        if self.steps_left == -1:
            raise self.error
        return fakes.training_step(model, batch, epoch)


@pytest.mark.usefixtures("splits")
@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "timm:lamb", "timm:lookahead_nadamw", "timm:muon"])
@pytest.mark.parametrize("at_step", [2, 7, 17])
def test_an_interrupted_run_goes_on_to_the_very_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_step: int, optimizer: str
) -> None:
    schedule = ["train.schedule=timm:cosine", "train.schedule_options={noise = [0.2, 0.9], step_on_epochs = false}"]
    recipe = recipe_with(f"train.optimizer={optimizer}", *(schedule if "timm" in optimizer else []))
    run(recipe, tmp_path / "whole")
    use_method(monkeypatch, replace(fakes.METHOD, training_step=Interruption(at_step, KeyboardInterrupt())))
    with pytest.raises(KeyboardInterrupt):
        run(recipe, tmp_path / "halved")
    assert not (tmp_path / "halved" / "result.json").exists()
    torch.rand(3)  # whatever the process has drawn meanwhile
    run(recipe, tmp_path / "halved")
    same_weights(tmp_path / "whole", tmp_path / "halved")
    without_seconds = [[{**record, "seconds": 0} for record in log_of(tmp_path / name)] for name in ("whole", "halved")]
    assert without_seconds[0] == without_seconds[1]


@pytest.mark.usefixtures("splits")
@pytest.mark.parametrize("at_step", [4, 7, 13])
def test_a_run_stopped_inside_an_epoch_goes_on_from_its_last_saved_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_step: int
) -> None:
    recipe = recipe_with("train.ema_decay=0.9", "train.epochs=3")
    run(recipe, tmp_path / "whole")
    steps_seen: list[float] = []

    def watched(model: torch.nn.Module, batch: Batch, epoch: float) -> dict[str, torch.Tensor]:
        steps_seen.append(epoch)
        return fakes.training_step(model, batch, epoch)

    use_method(monkeypatch, replace(fakes.METHOD, training_step=Interruption(at_step, KeyboardInterrupt())))
    with pytest.raises(KeyboardInterrupt):
        run(recipe, tmp_path / "halved", save_steps=2)
    random.random()  # whatever the process has drawn meanwhile
    torch.rand(3)
    use_method(monkeypatch, replace(fakes.METHOD, training_step=watched))
    run(recipe, tmp_path / "halved", save_steps=2)
    # One pass before the run is a trial; of 5 steps an epoch, 2 and 4 were saved, and the end of each epoch.
    saved = {4: 0.4, 7: 1.2 - 0.2, 13: 2.4}[at_step]
    assert steps_seen[0] == pytest.approx(saved)
    same_weights(tmp_path / "whole", tmp_path / "halved")
    without_seconds = [[{**record, "seconds": 0} for record in log_of(tmp_path / name)] for name in ("whole", "halved")]
    assert without_seconds[0] == without_seconds[1]


@pytest.mark.usefixtures("splits")
def test_gradients_of_several_passes_make_the_step_of_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def without_noise(config: Any, num_classes: int) -> torch.nn.Module:
        model = fakes.FakeModel(config, num_classes)
        model.norm.eval()
        model.norm.train = lambda mode=True: model.norm  # type: ignore[method-assign]
        monkeypatch.setattr(torch, "randn_like", torch.zeros_like)
        return model

    use_method(monkeypatch, replace(fakes.METHOD, build=without_noise))
    passes: list[int] = []

    def counted(model: torch.nn.Module, batch: Batch, epoch: float) -> dict[str, torch.Tensor]:
        passes.append(len(batch.labels))
        return fakes.training_step(model, batch, epoch)

    run(recipe_with(), tmp_path / "one")
    use_method(monkeypatch, replace(fakes.METHOD, build=without_noise, training_step=counted))
    run(recipe_with("train.accumulate=4"), tmp_path / "four")
    assert passes == [2] * (1 + 4 * 5 * 4)
    for one, four in zip(log_of(tmp_path / "one"), log_of(tmp_path / "four"), strict=True):
        assert four["train"]["loss"] == pytest.approx(one["train"]["loss"], rel=1e-5)
    weights = [load_checkpoint(tmp_path / name / "best.safetensors") for name in ("one", "four")]
    torch.testing.assert_close(*weights, rtol=1e-4, atol=1e-6)


def test_clips_of_a_step_divide_evenly() -> None:
    with pytest.raises(UsageError, match="accumulate must divide batch_size = 8, got 3"):
        recipe_with("train.accumulate=3")


@pytest.mark.usefixtures("splits")
def test_the_moving_average_is_what_is_evaluated_and_saved(tmp_path: Path) -> None:
    run(recipe_with("train.ema_decay=0.5", "train.epochs=1"), tmp_path / "run")
    last, best = load_checkpoint(tmp_path / "run" / "last.pt"), load_checkpoint(tmp_path / "run" / "best.safetensors")
    assert set(last) == set(best)
    assert not torch.equal(last["head.weight"], best["head.weight"])
    run(recipe_with("train.epochs=1"), tmp_path / "plain")
    plain = load_checkpoint(tmp_path / "plain" / "best.safetensors")
    torch.testing.assert_close(last["head.weight"], plain["head.weight"], rtol=0, atol=0)  # training does not notice


def test_a_split_that_does_not_load_shows_before_the_first_epoch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, splits: dict[str, fakes.FakeSplit]
) -> None:
    def broken(self: fakes.FakeSplit, index: int) -> Any:
        raise VidprepError(f"{self.manifest.split}{index}: damaged")

    splits["val"].__class__ = type("BrokenSplit", (fakes.FakeSplit,), {"__getitem__": broken})
    with pytest.raises(VidprepError, match="val0: damaged"):
        run(recipe_with(), tmp_path / "run")
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"recipe.toml", "run.json"}


@pytest.mark.usefixtures("splits")
@pytest.mark.parametrize(
    ("lines", "sentence"), [(1, "2 epochs are done, but the log has 1 of them"), (None, "no readable log of this run")]
)
def test_a_run_whose_log_lost_epochs_does_not_train_them_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lines: int | None, sentence: str
) -> None:
    use_method(monkeypatch, replace(fakes.METHOD, training_step=Interruption(12, KeyboardInterrupt())))
    with pytest.raises(KeyboardInterrupt):
        run(recipe_with(), tmp_path)
    log = tmp_path / "log.jsonl"
    kept = log.read_text().splitlines(keepends=True)
    log.unlink() if lines is None else log.write_text("".join(kept[:lines]))
    with pytest.raises(VidprepError, match=sentence):
        run(recipe_with(), tmp_path)


@pytest.mark.usefixtures("splits")
def test_gradients_outside_the_optimiser_survive_an_interruption(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As in TAPS: a projection that gets gradients but is in no group; they accumulate and enter the clipping norm.
    def without_hidden(model: torch.nn.Module, settings: Any) -> list[dict[str, Any]]:
        groups = fakes.param_groups(model, settings)
        hidden = {id(parameter) for parameter in model.get_submodule("hidden").parameters()}
        return [{**group, "params": [p for p in group["params"] if id(p) not in hidden]} for group in groups]

    method = replace(fakes.METHOD, param_groups=without_hidden)
    recipe = recipe_with("train.clip_grad=0.05", "train.epochs=3")
    use_method(monkeypatch, method)
    run(recipe, tmp_path / "whole")
    use_method(monkeypatch, replace(method, training_step=Interruption(12, KeyboardInterrupt())))
    with pytest.raises(KeyboardInterrupt):
        run(recipe, tmp_path / "halved")
    run(recipe, tmp_path / "halved")
    same_weights(tmp_path / "whole", tmp_path / "halved")


@pytest.mark.usefixtures("splits")
@pytest.mark.parametrize("at", ["best.safetensors", "log.jsonl", "last.pt"])
def test_a_kill_between_the_files_of_an_epoch_does_no_harm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    recipe = recipe_with()
    run(recipe, tmp_path / "whole")
    saved: list[str] = []

    def killed(write: Callable[..., None]) -> Callable[..., None]:
        def wrapper(path: Path, *arguments: Any) -> None:
            if path.name == at:
                saved.append(path.name)
                if len(saved) == 2:
                    raise SystemExit(137)
            write(path, *arguments)

        return wrapper

    with monkeypatch.context() as patch:
        for name in ("save_weights", "save_training", "_write_text"):
            patch.setattr(train, name, killed(getattr(train, name)))
        with pytest.raises(SystemExit):
            run(recipe, tmp_path / "killed")
    run(recipe, tmp_path / "killed")
    same_weights(tmp_path / "whole", tmp_path / "killed")
    assert [record["epoch"] for record in log_of(tmp_path / "killed")] == [0, 1, 2, 3]


@pytest.mark.usefixtures("splits")
def test_other_settings_in_the_same_folder_are_named(tmp_path: Path) -> None:
    run(recipe_with(), tmp_path / "run")
    with pytest.raises(
        UsageError,
        match=r"holds a run with other settings: model\.width: 4 there, 5 now; train\.lr: 0\.2 there, 0\.3 now",
    ):
        run(recipe_with("train.lr=0.3", "model.width=5"), tmp_path / "run")


def test_other_shards_in_the_same_folder_are_named(tmp_path: Path, splits: dict[str, fakes.FakeSplit]) -> None:
    run(recipe_with(), tmp_path / "run")
    splits["val"] = fakes.FakeSplit("val", 12, shards="b")
    with pytest.raises(UsageError, match=r"shards: those of .*shards there, those of .*shards now"):
        run(recipe_with(), tmp_path / "run")


@pytest.mark.usefixtures("splits")
def test_a_folder_that_is_no_run_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(UsageError, match=r"exists and is no run folder"):
        run(recipe_with(), tmp_path)


@pytest.mark.usefixtures("splits")
def test_a_batch_larger_than_the_split_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"42 training clips make no step of train.batch_size = 64; lower it"):
        run(recipe_with("train.batch_size=64"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_splits_of_other_classes_are_refused(tmp_path: Path, splits: dict[str, fakes.FakeSplit]) -> None:
    splits["val"].manifest = replace(splits["val"].manifest, classes=("red", "green"))
    with pytest.raises(UsageError, match="the classes of train and val differ"):
        run(recipe_with(), tmp_path / "run")


@pytest.mark.usefixtures("splits")
def test_a_recipe_without_training_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="recipe test has no train part"):
        run(replace(recipe_with(), train=None), tmp_path / "run")


@pytest.mark.usefixtures("splits")
def test_a_loss_that_is_no_number_names_its_step_and_keeps_what_was_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Diverging(Interruption):
        def __call__(self, *arguments: Any) -> dict[str, torch.Tensor]:
            self.steps_left -= 1
            terms = fakes.training_step(*arguments)
            return terms if self.steps_left >= 0 else {"loss": terms["loss"] * float("nan")}

    recipe = recipe_with()
    run(recipe_with("train.epochs=1"), tmp_path / "one")
    use_method(monkeypatch, replace(fakes.METHOD, training_step=Diverging(8, KeyboardInterrupt())))
    with pytest.raises(
        train.TrainingDiverged,
        match=r"epoch 2, step 3 of 5: the loss is nan; what epoch 1 saved is kept\. Lower train\.lr",
    ):
        run(recipe, tmp_path / "run")
    assert [record["epoch"] for record in log_of(tmp_path / "run")] == [0]


@pytest.mark.usefixtures("splits")
def test_a_first_epoch_that_diverges_leaves_the_folder_free(tmp_path: Path) -> None:
    with pytest.raises(VidprepError, match=r"loss is nan|loss is inf|not finite|norm is"):
        run(recipe_with("train.lr=1e30", "train.warmup_epochs=0"), tmp_path / "run")
    assert run(recipe_with(), tmp_path / "run")["epochs"] == 4


@pytest.mark.usefixtures("splits")
def test_a_gradient_that_is_not_finite_stops_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(model: torch.nn.Module, batch: Batch, epoch: float) -> dict[str, torch.Tensor]:
        terms = fakes.training_step(model, batch, epoch)
        zero = terms["loss"] * 0
        return {"loss": terms["loss"] + torch.sqrt(zero)}  # a gradient of 0 * inf

    use_method(monkeypatch, replace(fakes.METHOD, training_step=broken))
    with pytest.raises(
        train.TrainingDiverged, match=r"epoch 1, step 1 of 5: the gradient's norm is nan; nothing was saved"
    ):
        run(recipe_with(), tmp_path / "run")


def fixed_metrics(monkeypatch: pytest.MonkeyPatch, top1: list[float]) -> None:
    real, values = classify, iter([0.0, *top1])  # the first is that of the trial before the run
    monkeypatch.setattr(train, "classify", lambda *args, **kwargs: replace(real(*args, **kwargs), top1=next(values)))


@pytest.mark.usefixtures("splits")
@pytest.mark.parametrize(("first_allowed", "best"), [(0, 1), (2, 3)])
def test_the_best_epoch_is_the_last_of_the_highest_that_are_allowed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first_allowed: int, best: int
) -> None:
    fixed_metrics(monkeypatch, [90.0, 90.0, 60.0, 70.0])
    result = run(recipe_with(f"eval.best_from_epoch={first_allowed}"), tmp_path / "run")
    assert result["best_epoch"] == best
    assert read_metadata(tmp_path / "run" / "best.safetensors")["epoch"] == str(best)


@pytest.mark.usefixtures("splits")
def test_no_epoch_could_be_the_best_is_said_at_once(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"eval\.best_from_epoch = 4, but epochs count from 0 to 3"):
        run(recipe_with("eval.best_from_epoch=4"), tmp_path / "run")


@pytest.mark.usefixtures("splits")
def test_training_starts_from_a_file_of_weights(tmp_path: Path) -> None:
    model = fakes.FakeModel(fakes.FakeConfig(), 3)
    save_weights(tmp_path / "start.safetensors", model.state_dict(), {})
    overrides = (f"train.init={tmp_path}/start.safetensors", "train.lr=1e-20", "train.epochs=1")
    run(recipe_with(*overrides), tmp_path / "run")
    state = load_checkpoint(tmp_path / "run" / "last.pt")
    torch.testing.assert_close(state["head.weight"], model.head.weight.detach(), rtol=0, atol=0)
    shutil.rmtree(tmp_path / "run")
    save_weights(tmp_path / "start.safetensors", {"other": torch.zeros(1)}, {})
    with pytest.raises(CheckpointError, match=r"start\.safetensors: checkpoint of another method"):
        run(recipe_with(*overrides), tmp_path / "run")
    with pytest.raises(UsageError, match="fake has no ImageNet weights"):
        run(recipe_with("train.init=imagenet"), tmp_path / "run")


class WithoutHead(fakes.FakeModel):
    """A model whose classifier may be missing from its initial weights."""

    def initial_weights(self, state: Mapping[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], list[str]]:
        fresh = {name: tensor for name, tensor in self.state_dict().items() if name.startswith("head")}
        return {**fresh, **state}, [name for name in fresh if name not in state]


@pytest.mark.usefixtures("splits")
def test_training_starts_from_published_weights_and_says_what_starts_afresh(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    use_method(monkeypatch, replace(fakes.METHOD, build=WithoutHead))
    model = fakes.FakeModel(fakes.FakeConfig(), 3)
    published = {f"module.{name}": tensor for name, tensor in model.state_dict().items() if "head" not in name}
    torch.save(published, tmp_path / "encoder.pth")
    with caplog.at_level("INFO"):
        run(recipe_with(f"train.init={tmp_path}/encoder.pth", "train.lr=1e-20", "train.epochs=1"), tmp_path / "run")
    assert "encoder.pth: these start afresh: head.weight, head.bias" in caplog.text
    state = load_checkpoint(tmp_path / "run" / "last.pt")
    torch.testing.assert_close(state["hidden.weight"], model.hidden.weight.detach(), rtol=0, atol=0)


@pytest.mark.usefixtures("splits")
def test_a_weight_that_is_not_finite_is_never_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(model: torch.nn.Module, batch: Batch, epoch: float) -> dict[str, torch.Tensor]:
        terms = fakes.training_step(model, batch, epoch)
        return {"loss": terms["loss"] + torch.sqrt(terms["loss"] * 0)}  # finite, with a gradient that is not

    use_method(monkeypatch, replace(fakes.METHOD, training_step=broken))
    recipe = recipe_with()
    assert recipe.train is not None
    unclipped = replace(recipe, train=replace(recipe.train, clip_grad=None))
    with pytest.raises(
        train.TrainingDiverged, match=r"epoch 1, step 1 of 5: a weight is no finite number after it; no"
    ):
        run(unclipped, tmp_path / "run", save_steps=1)
    assert not (tmp_path / "run" / "last.pt").exists()


@pytest.mark.usefixtures("splits")
def test_an_error_leaves_no_threads_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_method(monkeypatch, replace(fakes.METHOD, training_step=Interruption(3, RuntimeError("mine"))))
    with pytest.raises(RuntimeError, match="mine") as caught:
        train.train(recipe_with(), Path("shards"), tmp_path / "run", device="cpu", workers=2)
    assert caught.tb is not None  # it holds all that ran
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("vidprep-load")]


@pytest.mark.usefixtures("splits")
def test_bf16_trains_on_a_cpu_and_goes_on_to_the_very_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    precisions: set[torch.dtype] = set()

    def watched(model: torch.nn.Module, batch: Batch, epoch: float) -> dict[str, torch.Tensor]:
        precisions.add(model(batch.frames.flatten(0, 1)).logits.dtype)
        return fakes.training_step(model, batch, epoch)

    recipe = recipe_with("train.amp=bf16")
    assert run(recipe, tmp_path / "whole")["best"]["top1"] > 90
    use_method(monkeypatch, replace(fakes.METHOD, training_step=Interruption(12, KeyboardInterrupt())))
    with pytest.raises(KeyboardInterrupt):
        run(recipe, tmp_path / "halved", save_steps=2)
    use_method(monkeypatch, fakes.METHOD)
    run(recipe, tmp_path / "halved", save_steps=2)
    same_weights(tmp_path / "whole", tmp_path / "halved")
    use_method(monkeypatch, replace(fakes.METHOD, training_step=watched))
    run(recipe_with("train.amp=bf16", "train.epochs=1"), tmp_path / "watched")
    assert precisions == {torch.bfloat16}


@pytest.mark.usefixtures("splits")
def test_fp16_is_refused_without_a_gpu(tmp_path: Path) -> None:
    with pytest.raises(
        UsageError, match=r'train.amp = "fp16" needs a GPU, this run is on cpu; add --set train.amp=bf16'
    ):
        run(recipe_with("train.amp=fp16"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("splits")
def test_compiled_training_keeps_its_names_and_goes_on_exactly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    passes: list[bool] = []

    def compiled(graph: torch.fx.GraphModule, _: Any) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            passes.append(torch.is_grad_enabled())
            return graph(*arguments)

        return call

    plain = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module: plain(module, backend=compiled))
    monkeypatch.setattr(train, "check_compiler", lambda device: None)
    recipe = recipe_with("train.compile=true", "train.ema_decay=0.9")
    run(recipe, tmp_path / "whole")
    assert passes == [True] * (1 + 4 * 5)  # the trial and every step, and nothing of the validation
    use_method(monkeypatch, replace(fakes.METHOD, training_step=Interruption(12, KeyboardInterrupt())))
    with pytest.raises(KeyboardInterrupt):
        run(recipe, tmp_path / "halved", save_steps=2)
    use_method(monkeypatch, fakes.METHOD)
    run(recipe, tmp_path / "halved", save_steps=2)
    same_weights(tmp_path / "whole", tmp_path / "halved")
    assert set(load_checkpoint(tmp_path / "whole" / "best.safetensors")) == set(
        fakes.FakeModel(fakes.FakeConfig(), 3).state_dict()
    )


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.usefixtures("splits")
@pytest.mark.parametrize("compiled", ["true", "false"])
@pytest.mark.parametrize("amp", ["none", "bf16", "fp16"])
def test_mixed_precision_learns_and_resumes_on_a_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, amp: str, compiled: str
) -> None:
    recipe = recipe_with(f"train.amp={amp}", f"train.compile={compiled}")
    use_method(monkeypatch, replace(fakes.METHOD, training_step=Interruption(12, KeyboardInterrupt())))
    with pytest.raises(KeyboardInterrupt):
        train.train(recipe, Path("shards"), tmp_path / "run", device="cuda", workers=0)
    assert bool(load_training(tmp_path / "run" / "last.pt").scaler) == (amp == "fp16")
    result = train.train(recipe, Path("shards"), tmp_path / "run", device="cuda", workers=0)
    assert result["best"]["top1"] > 90
