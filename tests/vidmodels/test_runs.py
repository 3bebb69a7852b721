import json
from pathlib import Path

import pytest
import torch

from tests.vidmodels.shards import TINY
from vidmodels.checkpoints import CheckpointError, TrainingState, save_training, save_weights
from vidmodels.methods import METHODS
from vidmodels.recipes import dump_recipe, load_recipe
from vidmodels.runs import find_run, find_variant, load_model
from vidprep.errors import UsageError, VidprepError

RECIPE = load_recipe("taps/toy", TINY)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A run folder as training leaves it."""
    out = tmp_path / "run"
    out.mkdir()
    state = METHODS["taps"].build(RECIPE.model, 4).state_dict()
    save_weights(out / "best.safetensors", state, {"method": "taps", "recipe": dump_recipe(RECIPE)})
    save_training(
        out / "last.pt", TrainingState(epochs_done=2, state_dict=state, optimizer={}, scaler={}, gradients={})
    )
    (out / "recipe.toml").write_text(dump_recipe(RECIPE))
    (out / "run.json").write_text(json.dumps({"data": "/data/shards"}))
    return out


def test_a_run_folder_gives_its_best_weights_its_recipe_and_its_shards(folder: Path) -> None:
    run = find_run(folder)
    assert (run.name, run.recipe, run.weights) == ("run", RECIPE, folder / "best.safetensors")
    assert run.data == Path("/data/shards")


def test_a_file_of_ours_brings_its_recipe_in_its_header(folder: Path, tmp_path: Path) -> None:
    moved = (folder / "best.safetensors").rename(tmp_path / "taps.safetensors")
    run = find_run(moved)
    assert (run.name, run.recipe, run.data) == ("taps", RECIPE, None)


def test_the_last_state_of_a_run_takes_the_recipe_beside_it(folder: Path) -> None:
    run = find_run(folder / "last.pt", overrides=["eval.num_clips=2"])
    assert run.recipe.eval.num_clips == 2
    model = load_model(run, num_classes=4)
    assert not model.training
    assert len(model.state_dict()) > 0


def test_a_run_without_a_best_epoch_says_what_to_do(folder: Path) -> None:
    (folder / "best.safetensors").unlink()
    with pytest.raises(
        UsageError, match=r"no best\.safetensors yet; let the training get further, or give .*/last\.pt"
    ):
        find_run(folder)


def test_weights_of_another_number_of_classes_are_refused(folder: Path) -> None:
    with pytest.raises(
        CheckpointError, match=r"2 of another shape such as head\.weight \(4, \d+\) instead of \(5, \d+\)"
    ):
        load_model(find_run(folder), num_classes=5)


def test_pytorch_files_of_ours_are_not_converted(folder: Path) -> None:
    state = load_model(find_run(folder), num_classes=4).state_dict()
    torch.save(state, folder / "plain.pth")
    again = load_model(find_run(folder / "plain.pth"), num_classes=4).state_dict()
    torch.testing.assert_close(again, state, rtol=0, atol=0)


@pytest.mark.parametrize("content", ["{", "[]", "{}"])
def test_broken_facts_of_a_run_are_one_sentence(folder: Path, content: str) -> None:
    (folder / "run.json").write_text(content)
    with pytest.raises(VidprepError, match=r"run\.json: not the facts of a training run"):
        find_run(folder)


def test_the_same_weights_are_found_with_other_settings(folder: Path) -> None:
    assert find_variant(str(folder)) == find_run(folder)
    other = find_variant(f"{folder}:model.widths=[8, 16],eval.num_clips=2", overrides=["eval.num_clips=3"])
    assert (other.recipe.eval.num_clips, other.recipe.model.widths) == (2, (8, 16))
    assert (other.weights, other.data) == (folder / "best.safetensors", Path("/data/shards"))
    assert (other.name, other.title) == ("run", "run, widths=[8, 16], num_clips=2")
    of_recipe = find_variant(f"{folder}:taps/toy_dense,eval.batch_size=2")
    assert (of_recipe.recipe.name, of_recipe.recipe.eval.batch_size) == ("toy_dense", 2)
    assert of_recipe.title == "run, toy_dense, batch_size=2"


def test_a_path_with_a_colon_is_a_path(folder: Path, tmp_path: Path) -> None:
    moved = folder.rename(tmp_path / "run:1")
    assert find_variant(str(moved)).name == "run:1"


@pytest.mark.parametrize("settings", ["", "taps/toy,,", "eval.num_clips=2,model", "taps/toy,taps/toy_dense"])
def test_settings_that_are_none_are_refused(folder: Path, settings: str) -> None:
    with pytest.raises(UsageError, match=r"is no KEY=VALUE; say .*/run:KEY=VALUE,\.\.\. or .*/run:RECIPE\."):
        find_variant(f"{folder}:{settings}")
    with pytest.raises(UsageError, match="no such run folder or checkpoint file"):
        find_variant(f"{folder.parent}/none:{settings}")
