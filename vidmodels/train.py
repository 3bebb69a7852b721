"""Training: seed, build, step, evaluate, save; the same command goes on after the last finished epoch.

    OUT/recipe.toml        the merged recipe            OUT/log.jsonl         one line an epoch
    OUT/run.json           shards, classes, versions    OUT/tensorboard/      the same figures
    OUT/last.pt            all that resuming needs      OUT/result.json       written when the last epoch is done
    OUT/best.safetensors   weights of the best epoch, with the recipe in its header

Every epoch is seeded from the recipe's seed and its own number (as published), and learning rates are functions of
the epoch: a resumed run makes the same steps as one that was never interrupted.
"""

import contextlib
import dataclasses
import hashlib
import json
import logging
import math
import random
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_

from vidmodels.checkpoints import (
    CheckpointError,
    TrainingState,
    load_checkpoint,
    load_into,
    load_training,
    save_training,
    save_weights,
    write_atomically,
)
from vidmodels.data import open_split
from vidmodels.evaluate import choose_device, classify
from vidmodels.features import FeatureDataset, open_features, weights_digest
from vidmodels.methods import METHODS
from vidmodels.recipes import differences, dump_recipe, load_recipe
from vidmodels.runs import read_facts, select_weights
from vidmodels.schedules import learning_rate_factor
from vidmodels.streams import detect_frames
from vidmodels.types import Method, Recipe, Train
from vidprep.console import track
from vidprep.errors import UsageError, VidprepError
from vidprep.load.loader import Loader, make_loader
from vidprep.load.shards import ShardDataset

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

__all__ = ["TrainingDiverged", "train"]

logger = logging.getLogger(__name__)


class TrainingDiverged(VidprepError):
    """The loss, or its gradient, is no finite number any more."""


@runtime_checkable
class LoadsImageNet(Protocol):
    """A model that can start from torchvision's ImageNet weights."""

    def load_imagenet(self) -> None:
        """Fetch and load them."""
        ...


@runtime_checkable
class CompletesWeights(Protocol):
    """A model that can start from weights which lack some of its entries."""

    def initial_weights(self, state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
        """(given weights, those it adds included; names of what starts afresh)."""
        ...


@dataclass(frozen=True, kw_only=True)
class Parts:
    """What a run works on."""

    recipe: Recipe
    settings: Train
    method: Method
    model: nn.Module
    runs: nn.Module
    """What is run: the model, or the part of it that learns on cached features."""
    optimizer: torch.optim.Optimizer
    initial_rates: tuple[float, ...]
    """Of each group, before the schedule."""
    scaler: torch.amp.GradScaler
    device: torch.device


def train(
    recipe: Recipe,
    data: Path | None,
    out: Path,
    *,
    cache: Path | None = None,
    device: str | None = None,
    workers: int | None = None,
) -> dict[str, Any]:
    """Train a recipe on shards, or go on where an earlier run into the same folder stopped.

    Args:
        recipe: with a `train` part.
        data: shards, with the recipe's training and validation splits; None: `cache` is given.
        out: run folder; made when missing.
        cache: train on these cached features instead, which `vidmodels cache` wrote with the recipe's settings and
            initial weights: on all views of each video, and only what comes after them.
        device: "cpu", "cuda", "cuda:1"; None takes a GPU where there is one.
        workers: threads that prepare clips; None starts one per CPU.

    Returns:
        What `result.json` holds: `method`, `recipe`, `epochs`, `best_epoch`, `best` (the validation figures of the
        best epoch), `last` (of the last one), `seconds` of all epochs.

    Raises:
        UsageError: nothing to train, shards that do not fit, or a folder that holds a run with other settings.
        TrainingDiverged: the loss is not finite; what earlier epochs saved is kept.
    """
    settings = recipe.train
    if settings is None:
        raise UsageError(f"recipe {recipe.name} has no train part; give one with [train], or evaluate it as it is.")
    if recipe.eval.best_from_epoch >= settings.epochs:
        raise UsageError(
            f"eval.best_from_epoch = {recipe.eval.best_from_epoch}, but epochs count from 0 to {settings.epochs - 1}: "
            "no epoch could be the best."
        )
    train_set: ShardDataset | FeatureDataset
    val_set: ShardDataset | FeatureDataset
    if cache is not None:
        train_set = open_features(recipe, cache, recipe.data.train_split)
        val_set = open_features(recipe, cache, recipe.data.val_split)
        facts = _facts(Path(train_set.manifest.data), train_set, val_set) | {"cache": str(cache.resolve())}
    elif data is not None:
        train_set = open_split(recipe, data, recipe.data.train_split, train=True)
        val_set = open_split(recipe, data, recipe.data.val_split, train=False)
        facts = _facts(data, train_set, val_set)
    else:
        raise UsageError("training needs shards or cached features; give one of them.")
    _check_folder(recipe, facts, out)
    if (out / "result.json").exists():
        result: dict[str, Any] = json.loads((out / "result.json").read_text())
        logger.info("%s: this run is finished; %s", out, _say(result["best"], recipe))
        return result
    chosen = choose_device(device)
    train_loader = make_loader(
        train_set,
        batch_size=settings.batch_size,
        shuffle=True,
        seed=settings.seed,
        workers=workers,
        drop_last=True,
        pin_memory=chosen.type == "cuda",
    )
    val_loader = make_loader(val_set, batch_size=recipe.eval.batch_size, workers=workers)
    parts = _prepare(recipe, settings, num_classes=len(train_set.manifest.classes), device=chosen)
    if isinstance(train_set, FeatureDataset) and isinstance(val_set, FeatureDataset):
        parts = _on_features(parts, train_set, val_set)
    out.mkdir(parents=True, exist_ok=True)
    _write_text(out / "recipe.toml", dump_recipe(recipe))
    _write_text(out / "run.json", json.dumps(facts, indent=1) + "\n")
    records = _run_epochs(parts, train_loader, val_loader, out, classes=train_set.manifest.classes)
    best = _best(records, recipe)
    result = {
        "method": recipe.method,
        "recipe": recipe.name,
        "epochs": settings.epochs,
        "best_epoch": best["epoch"],
        "best": best["val"],
        "last": records[-1]["val"],
        "seconds": sum(record["seconds"] for record in records),
    }
    _write_text(out / "result.json", json.dumps(result, indent=1) + "\n")
    logger.info("best epoch %d: %s", best["epoch"] + 1, _say(best["val"], recipe))
    return result


def _facts(
    data: Path, train_set: ShardDataset | FeatureDataset, val_set: ShardDataset | FeatureDataset
) -> dict[str, Any]:
    """What `run.json` says: which shards these are."""
    if train_set.manifest.classes != val_set.manifest.classes:
        raise UsageError(
            f"{data}: the classes of {train_set.manifest.split} and {val_set.manifest.split} differ; "
            "write both splits from one data set."
        )
    shards = [shard.sha256 for dataset in (train_set, val_set) for shard in dataset.manifest.shards]
    return {
        "data": str(data.resolve()),
        "shards": hashlib.sha256("".join(shards).encode()).hexdigest(),
        "classes": list(train_set.manifest.classes),
        "torch": str(torch.__version__),
    }


def _check_folder(recipe: Recipe, facts: Mapping[str, Any], out: Path) -> None:
    """The run folder is new, or holds nothing finished yet, or a run with these very settings."""
    if not (out / "recipe.toml").exists():
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise UsageError(f"{out}: exists and is no run folder (no recipe.toml in it); choose another one.")
        return
    if not (out / "last.pt").exists():
        return
    other = load_recipe(out / "recipe.toml")
    differing = differences(dataclasses.asdict(other), dataclasses.asdict(recipe))
    before = read_facts(out / "run.json")
    if before.get("shards") != facts["shards"]:
        differing.append(f"shards: those of {before['data']} there, those of {facts['data']} now")
    if differing:
        raise UsageError(
            f"{out} holds a run with other settings: {'; '.join(differing)}. Choose another folder for this run."
        )


def _prepare(recipe: Recipe, settings: Train, *, num_classes: int, device: torch.device) -> Parts:
    _seed(settings.seed)
    method = METHODS[recipe.method]
    model = method.build(recipe.model, num_classes)
    if settings.init == "imagenet":
        if not isinstance(model, LoadsImageNet):
            raise UsageError(f"train.init = 'imagenet': {method.name} has no ImageNet weights; give a file or 'none'.")
        model.load_imagenet()
    elif settings.init != "none":
        _start_from(Path(settings.init), model, method)
    model.to(device)
    groups = method.param_groups(model, settings)
    if settings.optimizer == "sgd":
        optimizer: torch.optim.Optimizer = torch.optim.SGD(groups, lr=settings.lr, momentum=settings.momentum)
    else:
        optimizer = torch.optim.AdamW(groups, lr=settings.lr)
    return Parts(
        recipe=recipe,
        settings=settings,
        method=method,
        model=model,
        runs=model,
        optimizer=optimizer,
        initial_rates=tuple(group["lr"] for group in optimizer.param_groups),
        scaler=torch.amp.GradScaler("cuda", enabled=settings.amp == "fp16" and device.type == "cuda"),
        device=device,
    )


def _on_features(parts: Parts, *datasets: FeatureDataset) -> Parts:
    """The parts for training on cached features, which are those of the model as it starts.

    Raises:
        UsageError: the features were made with other weights, or the recipe trains what made them.
    """
    features = parts.method.features
    if features is None:
        raise UsageError(f"{parts.method.name} has no features to cache; train it on the clips themselves.")
    learning = [name for name, p in parts.model.named_parameters() if p.requires_grad]
    frozen = [name for name in learning if name.startswith(features.prefixes)]
    if frozen:
        raise UsageError(
            f"recipe {parts.recipe.name} trains {frozen[0]} and {len(frozen) - 1} more, but cached features are made "
            f"with these as they are; freeze them ({features.freeze})."
        )
    weights = weights_digest(parts.model, features)
    for dataset in datasets:
        made_with = dataset.manifest.weights_sha256
        if made_with != weights:
            raise UsageError(
                f"{dataset.folder}, split {dataset.manifest.split}: features of other weights (SHA-256 "
                f"{made_with[:12]}...) than train.init = {parts.settings.init!r} gives ({weights[:12]}...); start from "
                "the weights that they were made with, or make them anew."
            )
    return dataclasses.replace(parts, runs=features.rest(parts.model))


def _start_from(path: Path, model: nn.Module, method: Method) -> None:
    """Load initial weights, ours or published ones, and say what starts afresh all the same."""
    state = load_checkpoint(path)
    if path.suffix != ".safetensors" and set(state) != set(model.state_dict()):
        try:
            state = method.convert(state)
        except CheckpointError as error:
            raise CheckpointError(f"{path}: {error}") from error
    if isinstance(model, CompletesWeights):
        state, fresh = model.initial_weights(state)
        if fresh:
            logger.info("%s: these start afresh: %s", path, ", ".join(fresh))
    load_into(model, select_weights(model, state), path)


def _run_epochs(
    parts: Parts, train_loader: Loader, val_loader: Loader, out: Path, *, classes: tuple[str, ...]
) -> list[dict[str, Any]]:
    """Train the epochs that are not done yet; the log's records of all of them."""
    recipe, settings = parts.recipe, parts.settings
    records: list[dict[str, Any]] = []
    if (out / "last.pt").exists():
        epochs_done = _resume(parts, out / "last.pt")
        records = _read_log(out / "log.jsonl", epochs_done)
        logger.info("%s: going on after epoch %d of %d", out, epochs_done, settings.epochs)
    with _tensorboard(out / "tensorboard", first_epoch=len(records)) as board:
        for epoch in range(len(records), settings.epochs):
            started = time.perf_counter()
            terms = _train_epoch(parts, train_loader, epoch)
            description = f"epoch {epoch + 1}/{settings.epochs} {recipe.data.val_split}"
            record: dict[str, Any] = {
                "epoch": epoch,
                "lr": settings.lr * learning_rate_factor(settings, epoch, steps_per_epoch=len(train_loader)),
                "train": terms,
                "val": _validate(parts, val_loader, num_classes=len(classes), description=description),
                "seconds": time.perf_counter() - started,
            }
            records.append(record)
            _save_epoch(parts, out, records, classes)
            for part in ("train", "val"):
                for name, value in record[part].items():
                    board.add_scalar(f"{part}/{name}", value, epoch)
            board.add_scalar("lr", record["lr"], epoch)
            board.flush()
            logger.info(
                "epoch %d/%d: loss %.4f, %s, lr %.3g, %.1f s",
                epoch + 1,
                settings.epochs,
                terms["loss"],
                _say(record["val"], recipe),
                record["lr"],
                record["seconds"],
            )
    return records


def _train_epoch(parts: Parts, loader: Loader, epoch: int) -> dict[str, float]:
    """One pass over the training split; the mean of each term over its batches."""
    settings, model, optimizer, scaler = parts.settings, parts.runs, parts.optimizer, parts.scaler
    _seed(settings.seed + epoch)
    loader.set_epoch(epoch)
    model.train()
    sums: dict[str, float] = {}
    steps = len(loader)
    autocast = torch.autocast(
        parts.device.type,
        dtype=torch.float16 if settings.amp == "fp16" else torch.bfloat16,
        enabled=settings.amp != "none" and parts.device.type == "cuda",
    )
    description = f"epoch {epoch + 1}/{settings.epochs} {parts.recipe.data.train_split}"
    for step, batch in enumerate(track(loader, description=description, total=steps)):
        position = epoch + step / steps
        factor = learning_rate_factor(settings, position, steps_per_epoch=steps)
        for group, rate in zip(optimizer.param_groups, parts.initial_rates, strict=True):
            group["lr"] = rate * factor
        with autocast:
            terms = parts.method.training_step(model, batch.to(parts.device), position)
        values = {name: float(term.detach()) for name, term in terms.items()}
        if not math.isfinite(values["loss"]):
            raise _diverged(parts, epoch, step, steps, f"the loss is {values['loss']}")
        torch.autograd.backward(scaler.scale(terms["loss"]))
        scaler.unscale_(optimizer)
        if settings.clip_grad is not None:
            norm = float(clip_grad_norm_(model.parameters(), settings.clip_grad))
            if not math.isfinite(norm) and not scaler.is_enabled():  # the scaler skips such a step and halves its scale
                raise _diverged(parts, epoch, step, steps, f"the gradient's norm is {norm}")
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=True)  # only what the optimiser holds: see TrainingState.gradients
        for name, value in values.items():
            sums[name] = sums.get(name, 0.0) + value
    return {name: total / steps for name, total in sums.items()}


def _validate(parts: Parts, loader: Loader, *, num_classes: int, description: str) -> dict[str, float]:
    """The figures of one pass over the validation split: of detectors on one frame of each video."""
    recipe = parts.recipe
    if recipe.eval.metric == "map50":
        return detect_frames(parts.model, loader, device=parts.device, description=description).metrics
    return classify(
        parts.runs,
        loader,
        num_classes=num_classes,
        average=recipe.eval.average,
        summarise=parts.method.summarise,
        renumber_present_classes=recipe.eval.renumber_present_classes,
        device=parts.device,
        description=description,
    ).metrics


def _diverged(parts: Parts, epoch: int, step: int, steps: int, what: str) -> TrainingDiverged:
    kept = f"what epoch {epoch} saved is kept" if epoch else "nothing was saved yet"
    return TrainingDiverged(
        f"epoch {epoch + 1}, step {step + 1} of {steps}: {what}; {kept}. Lower train.lr = {parts.settings.lr:g}, "
        "or clip gradients with train.clip_grad."
    )


def _save_epoch(parts: Parts, out: Path, records: list[dict[str, Any]], classes: tuple[str, ...]) -> None:
    """Best weights and log first, `last.pt` at the end: what it does not count as done is written again."""
    epoch, model = records[-1]["epoch"], parts.model
    state = model.state_dict()
    if epoch >= parts.recipe.eval.best_from_epoch and _best(records, parts.recipe)["epoch"] == epoch:
        metadata = {
            "method": parts.recipe.method,
            "recipe": dump_recipe(parts.recipe),
            "classes": json.dumps(classes),
            "epoch": str(epoch),
            "val": json.dumps(records[-1]["val"]),
        }
        save_weights(out / "best.safetensors", state, metadata)
    _write_text(out / "log.jsonl", "".join(json.dumps(record) + "\n" for record in records))
    save_training(
        out / "last.pt",
        TrainingState(
            epochs_done=epoch + 1,
            state_dict=state,
            optimizer=parts.optimizer.state_dict(),
            scaler=parts.scaler.state_dict(),
            gradients={name: p.grad for name, p in model.named_parameters() if p.grad is not None},
        ),
    )


def _resume(parts: Parts, path: Path) -> int:
    state = load_training(path)
    load_into(parts.model, state.state_dict, path)
    parts.optimizer.load_state_dict(dict(state.optimizer))
    parts.scaler.load_state_dict(dict(state.scaler))
    parameters = dict(parts.model.named_parameters())
    for name, gradient in state.gradients.items():
        parameters[name].grad = gradient.to(parts.device)
    return state.epochs_done


def _read_log(path: Path, epochs_done: int) -> list[dict[str, Any]]:
    """The records of the epochs that `last.pt` counts as done; a later one is written again."""
    try:
        records = [json.loads(line) for line in path.read_text().splitlines()][:epochs_done]
        epochs = [record["epoch"] for record in records]
    except (FileNotFoundError, ValueError, TypeError, KeyError) as error:
        raise VidprepError(f"{path}: no readable log of this run ({error}); train into another folder.") from error
    if epochs != list(range(epochs_done)):
        raise VidprepError(
            f"{path}: {epochs_done} epochs are done, but the log has {len(epochs)} of them; train into another folder."
        )
    return records


def _best(records: list[dict[str, Any]], recipe: Recipe) -> dict[str, Any]:
    """The record with the highest metric, of equal ones the last, among the epochs that may be the best."""
    allowed = [record for record in records if record["epoch"] >= recipe.eval.best_from_epoch]
    return max(allowed, key=lambda record: (record["val"][recipe.eval.metric], record["epoch"]))


def _say(metrics: Mapping[str, float], recipe: Recipe) -> str:
    name = {"top1": "top-1", "map": "mAP", "map50": "mAP50"}[recipe.eval.metric]
    return f"{recipe.data.val_split} {name} {metrics[recipe.eval.metric]:.2f} %"


def _seed(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - a method's own code may draw from the global state
    torch.manual_seed(seed)


def _write_text(path: Path, text: str) -> None:
    write_atomically(path, lambda file: file.write(text.encode()))


@contextlib.contextmanager
def _tensorboard(folder: Path, *, first_epoch: int) -> Iterator["SummaryWriter"]:
    from torch.utils.tensorboard import SummaryWriter  # takes a second to import

    with SummaryWriter(str(folder), purge_step=first_epoch) as board:
        yield board
