"""A trained model with its recipe, from a run folder or a checkpoint file."""

import json
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
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

__all__ = ["Run", "class_names", "find_run", "find_variant", "load_model", "read_facts", "select_weights"]

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
    variant: str = ""
    """The settings that are not those it was trained with, shortened: "prune_number=11"; "": none that has a name."""

    @property
    def title(self) -> str:
        """Its name, with the settings that are other ones."""
        return f"{self.name}, {self.variant}" if self.variant else self.name


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


def find_variant(target: str, *, recipe: str | None = None, overrides: Sequence[str] = ()) -> Run:
    """As `find_run`, or the same weights with settings of their own, by which one call compares several.

    Args:
        target: a run folder or a file; or one with settings: "RUN:KEY=VALUE,KEY=VALUE", "RUN:RECIPE" or
            "RUN:RECIPE,KEY=VALUE", such as "runs/vit:model.prune_number=11" or "runs/vivit:rgtp_vivit/toy_keep_02".
        recipe: as for `find_run`; a recipe in `target` comes first.
        overrides: as for `find_run`; those in `target` come after them.

    Raises:
        UsageError: as for `find_run`, or settings that are none.
    """
    path, colon, text = target.rpartition(":")
    if not colon or Path(target).exists() or not Path(path).exists():
        return find_run(Path(target), recipe=recipe, overrides=overrides)
    settings = [
        setting.strip() for setting in re.split(r",(?![^\[]*\])", text)
    ]  # not the commas of a [list, of values]
    if "=" not in settings[0]:
        recipe, settings = settings[0], settings[1:]
    wrong = [setting for setting in settings if "=" not in setting]
    if recipe == "" or wrong:
        raise UsageError(
            f"{target}: {wrong[0] if wrong else ''!r} is no KEY=VALUE; say {path}:KEY=VALUE,... or {path}:RECIPE."
        )
    run = find_run(Path(path), recipe=recipe, overrides=[*overrides, *settings])
    return replace(run, variant=", ".join(_short(setting) for setting in re.split(r",(?![^\[]*\])", text)))


def _short(setting: str) -> str:
    """Without its table, or a recipe without its method: "model.prune_number=11" -> "prune_number=11"."""
    key, equals, value = setting.strip().partition("=")
    return f"{key.rpartition('.')[2]}={value}" if equals else key.rpartition("/")[2].removesuffix(".toml")


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
