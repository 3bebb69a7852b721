"""A trained model with its recipe, from a run folder or a checkpoint file."""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from vidmodels.checkpoints import CheckpointError, load_checkpoint, load_into, read_metadata
from vidmodels.data import known_classes
from vidmodels.methods import METHODS
from vidmodels.recipes import load_recipe, read_recipe
from vidmodels.types import Recipe
from vidprep import datasets
from vidprep.errors import UsageError, VidprepError

__all__ = ["Run", "class_names", "find_run", "load_model", "read_facts", "select_weights"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Run:
    """Weights, and what is needed to use them."""

    name: str
    """Of the run folder, or of the file without its ending."""
    recipe: Recipe
    weights: Path
    data: Path | None
    """The shards it was trained on, where that is known."""


def find_run(target: Path, *, recipe: str | None = None, overrides: Sequence[str] = ()) -> Run:
    """What `vidmodels train` left in a folder, or a checkpoint file with its recipe.

    Args:
        target: a run folder (its best weights are taken), or a file of weights.
        recipe: name or file of a recipe, for files that do not bring theirs: ours have it in their header, and
            what lies in a run folder has it beside it.
        overrides: changes to the recipe, as for `load_recipe`.

    Raises:
        UsageError: nothing there, or no recipe to be found.
    """
    folder = target if target.is_dir() else target.parent
    beside = folder / "recipe.toml"
    if target.is_dir():
        if not beside.exists():
            raise UsageError(
                f"{target}: no run folder (no recipe.toml in it); give what `vidmodels train --out` wrote, or a "
                "checkpoint file."
            )
        packaged = target / "model.safetensors"  # of a folder that `vidmodels package` wrote
        weights, name = packaged if packaged.exists() else target / "best.safetensors", target.resolve().name
        if not weights.exists():
            raise UsageError(
                f"{target}: no best.safetensors yet; let the training get further, or give {target}/last.pt."
            )
    else:
        weights, name = target, target.name.partition(".")[0]
    header = read_metadata(weights).get("recipe")
    if recipe is not None:
        loaded = load_recipe(recipe, overrides)
    elif header is not None:
        loaded = read_recipe(header, source_file=f"{weights} (header)", name=name, overrides=overrides)
    elif beside.exists():
        loaded = load_recipe(beside, overrides)
    elif not target.exists():
        raise UsageError(f"{target}: no such run folder or checkpoint file.")
    else:
        raise UsageError(
            f"{target}: brings no recipe; say which with --recipe, or in `vidmodels show` instead of the method."
        )
    facts = folder / "run.json"
    data = Path(read_facts(facts)["data"]) if facts.exists() else None
    return Run(name=name, recipe=loaded, weights=weights, data=data)


def class_names(run: Run) -> tuple[str, ...] | None:
    """What the classes are called, by the model's numbers: as the weights say, or vidprep; None: neither knows.

    Raises:
        UsageError: no such file of weights.
    """
    names = read_metadata(run.weights).get("classes")
    if names is not None:
        return tuple(json.loads(names))
    data = run.recipe.data
    info = datasets.DATASETS.get(data.dataset)
    if info is None or (known_classes(data) or info.num_classes) != info.num_classes or not info.num_classes:
        return None
    names_of_set = datasets.class_names(info)[0]
    return tuple(sorted(names_of_set)) if data.class_order == "sorted" else names_of_set


def read_facts(path: Path) -> dict[str, Any]:
    """What a run's `run.json` says: `data`, the folder of its shards, and more.

    Raises:
        VidprepError: missing or broken.
    """
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(facts, dict) and isinstance(facts.get("data"), str):
            return facts
    except (FileNotFoundError, ValueError) as error:
        raise VidprepError(f"{path}: not the facts of a training run ({error}); train into another folder.") from error
    raise VidprepError(f"{path}: not the facts of a training run (no data); train into another folder.")


@runtime_checkable
class SelectsWeights(Protocol):
    """A model that leaves out entries of some checkpoints on purpose."""

    def select_weights(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Those that it has a place for."""
        ...


def select_weights(model: nn.Module, state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """A checkpoint's entries without those that the model leaves out on purpose, which the log names."""
    if not isinstance(model, SelectsWeights):
        return state
    selected = model.select_weights(state)
    left_out = [name for name in state if name not in selected]
    if left_out:
        logger.info("left out of the checkpoint, for which this model has no place: %s", ", ".join(left_out))
    return selected


def load_model(run: Run, *, num_classes: int, device: torch.device | str = "cpu") -> nn.Module:
    """The trainable form with the run's weights, in evaluation mode. Published PyTorch files are converted.

    Raises:
        CheckpointError: broken, or weights of another method or model.
    """
    method = METHODS[run.recipe.method]
    of_method = read_metadata(run.weights).get("method", method.name)
    if of_method != method.name:
        raise CheckpointError(
            f"{run.weights}: checkpoint of another method: {of_method}; recipe {run.recipe.name} is for {method.name}."
        )
    state = load_checkpoint(run.weights)
    model = method.build(run.recipe.model, num_classes)
    is_ours = run.weights.suffix == ".safetensors" or set(state) == set(model.state_dict())
    if not is_ours:
        try:
            state = method.convert(state)
        except CheckpointError as error:
            raise CheckpointError(f"{run.weights}: {error}") from error
    load_into(model, select_weights(model, state), run.weights)
    return model.to(device).eval()
