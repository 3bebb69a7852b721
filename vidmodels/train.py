"""Training: seed, build, step, evaluate, save; the same command goes on where the last one stopped.

    OUT/recipe.toml        the merged recipe            OUT/log.jsonl         one line an epoch
    OUT/run.json           shards, classes, versions    OUT/tensorboard/      the same figures
    OUT/last.pt            all that resuming needs      OUT/result.json       written when the last epoch is done
    OUT/best.safetensors   weights of the best epoch, with the recipe in its header

Every epoch is seeded from the recipe's seed and its own number (as published), learning rates are functions of the
epoch, and what is saved inside an epoch has the random states and the loader's place: a resumed run makes the same
steps as one that was never interrupted. Under torchrun the processes share each step's clips; the first one writes.
"""

import contextlib
import copy
import dataclasses
import hashlib
import json
import logging
import math
import random
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grad_norm_
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

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
from vidmodels.compilation import check_compiler, uncompiled
from vidmodels.data import open_split
from vidmodels.distributed import World, joined_world
from vidmodels.evaluate import choose_device, classify
from vidmodels.features import FeatureDataset, open_features, weights_digest
from vidmodels.layers.sync_norm import synchronise_norms
from vidmodels.methods import METHODS
from vidmodels.optimizers import make_optimizer
from vidmodels.recipes import differences, dump_recipe, load_recipe
from vidmodels.runs import read_facts, select_weights
from vidmodels.schedules import learning_rate_factor, schedule_faults
from vidmodels.streams import detect_frames
from vidmodels.tracking import check_wandb, reporting_to_wandb
from vidmodels.types import Batch, Method, Recipe, Train
from vidprep.console import track
from vidprep.errors import UsageError, VidprepError
from vidprep.load.loader import Loader, make_loader
from vidprep.load.shards import ShardDataset

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

__all__ = ["SAVE_SECONDS", "TrainingDiverged", "train"]

logger = logging.getLogger(__name__)

RANK_STRIDE = 1_000_003
"""Between the seeds of processes, so that none meets another's in a later epoch."""
SAVE_SECONDS = 600.0
"""How often a long epoch is saved on the way, where `save_steps` does not say."""


class TrainingDiverged(VidprepError):
    """The loss, or its gradient, is no finite number any more."""


@runtime_checkable
class LoadsImageNet(Protocol):
    """A model that can start from torchvision's ImageNet weights."""

    def load_imagenet(self) -> None:
        """Fetch and load them."""
        ...


@runtime_checkable
class LoadsKinetics400(Protocol):
    """A model that can start from weights trained on Kinetics-400."""

    def load_kinetics400(self) -> None:
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
    world: World
    model: nn.Module
    """The method's own, which holds the weights."""
    trained: nn.Module
    """What a pass goes through: the model, or the part of it that learns on cached features, and
    DistributedDataParallel around it where there are several processes."""
    averaged: AveragedModel | None
    """The model's moving average, where the recipe wants one."""
    rest: Callable[[nn.Module], nn.Module] | None
    """Of a model, the part that learns on cached features; None: trained on clips."""
    optimizer: torch.optim.Optimizer
    initial_rates: tuple[float, ...]
    """Of each group, before the schedule."""
    scaler: torch.amp.GradScaler
    device: torch.device
    save_steps: int | None

    @property
    def weights(self) -> nn.Module:
        """The model whose weights count: the averaged one where there is one."""
        return self.model if self.averaged is None else self.averaged.module

    @property
    def evaluated(self) -> nn.Module:
        """What is evaluated: with the weights that count, on what it trains on."""
        return self.weights if self.rest is None else self.rest(self.weights)

    @property
    def batch_size(self) -> int:
        """Clips of one pass in this process."""
        return _clips_of_a_pass(self.settings, self.world)


@dataclass
class Progress:
    """How far an epoch is."""

    epoch: int
    steps_done: int = 0
    sums: dict[str, float] = field(default_factory=dict)
    """Of each logged term over these steps."""


def train(
    recipe: Recipe,
    data: Path | None,
    out: Path,
    *,
    cache: Path | None = None,
    device: str | None = None,
    workers: int | None = None,
    save_steps: int | None = None,
    wandb: str | None = None,
) -> dict[str, Any]:
    """Train a recipe on shards, or go on where an earlier run into the same folder stopped.

    Args:
        recipe: with a `train` part.
        data: shards, with the recipe's training and validation splits; None: `cache` is given.
        out: run folder; made when missing.
        cache: train on these cached features instead, which `vidmodels cache` wrote with the recipe's settings and
            initial weights: on all views of each video, and only what comes after them.
        device: "cpu", "cuda", "cuda:1"; None takes a GPU where there is one. Under torchrun "cuda" is each process's
            own GPU.
        workers: threads that prepare clips; None starts one per CPU.
        save_steps: optimiser steps after which a running epoch is saved; None saves it every ten minutes.
        wandb: project of Weights & Biases that gets each epoch's figures, too; None: none does.

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
    for fault in schedule_faults(settings):
        raise UsageError(f"train.{fault}.")
    if save_steps is not None and save_steps < 1:
        raise UsageError(f"save_steps must be at least 1, got {save_steps}.")
    if wandb is not None:
        check_wandb()
    chosen = choose_device(device)
    with joined_world(on_gpu=chosen.type == "cuda") as world:
        chosen = world.device(chosen)
        if settings.amp == "fp16" and chosen.type != "cuda":
            raise UsageError(
                f'train.amp = "fp16" needs a GPU, this run is on {chosen.type}; '
                "add --set train.amp=bf16 or --set train.amp=none."
            )
        if settings.compile:
            check_compiler(chosen)
        return _train(
            recipe,
            settings,
            data,
            out,
            cache=cache,
            world=world,
            device=chosen,
            workers=workers,
            save_steps=save_steps,
            wandb=wandb,
        )


def _train(
    recipe: Recipe,
    settings: Train,
    data: Path | None,
    out: Path,
    *,
    cache: Path | None,
    world: World,
    device: torch.device,
    workers: int | None,
    save_steps: int | None,
    wandb: str | None,
) -> dict[str, Any]:
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
    world.wait()  # nobody writes before all have looked
    if (out / "result.json").exists():
        result: dict[str, Any] = json.loads((out / "result.json").read_text())
        if world.is_main:
            logger.info("%s: this run is finished; %s", out, _say(result["best"], recipe))
        return result
    if len(train_set) < settings.batch_size:
        raise UsageError(
            f"{cache or data}: {len(train_set)} training clips make no step of train.batch_size = "
            f"{settings.batch_size}; lower it."
        )
    train_loader = make_loader(
        train_set,
        batch_size=_clips_of_a_pass(settings, world),
        shuffle=True,
        seed=settings.seed,
        workers=workers,
        drop_last=True,
        rank=world.rank,
        world_size=world.size,
        pin_memory=device.type == "cuda",
    )
    val_loader = make_loader(
        val_set,
        batch_size=recipe.eval.batch_size,
        workers=workers,
        rank=world.rank,
        world_size=world.size,
        share="batches",
    )
    with closing(train_loader), closing(val_loader):
        parts = _prepare(
            recipe,
            settings,
            num_classes=len(train_set.manifest.classes),
            features=[part for part in (train_set, val_set) if isinstance(part, FeatureDataset)],
            world=world,
            device=device,
            save_steps=save_steps,
        )
        if world.is_main:
            out.mkdir(parents=True, exist_ok=True)
            _write_text(out / "recipe.toml", dump_recipe(recipe))
            _write_text(out / "run.json", json.dumps(facts, indent=1) + "\n")
        records = _run_epochs(parts, train_loader, val_loader, out, classes=train_set.manifest.classes, wandb=wandb)
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
    if world.is_main:
        _write_text(out / "result.json", json.dumps(result, indent=1) + "\n")
        logger.info("best epoch %d: %s", best["epoch"] + 1, _say(best["val"], recipe))
    world.wait()
    return result


def _clips_of_a_pass(settings: Train, world: World) -> int:
    """In one process.

    Raises:
        UsageError: the clips of a step do not divide evenly.
    """
    clips, rest = divmod(settings.batch_size, settings.accumulate * world.size)
    if rest:
        raise UsageError(
            f"train.batch_size = {settings.batch_size} does not divide evenly among {world.size} processes x "
            f"train.accumulate = {settings.accumulate}; choose a multiple of {settings.accumulate * world.size}."
        )
    return clips


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


def _prepare(
    recipe: Recipe,
    settings: Train,
    *,
    num_classes: int,
    features: Sequence[FeatureDataset],
    world: World,
    device: torch.device,
    save_steps: int | None,
) -> Parts:
    _seed(settings.seed)
    method = METHODS[recipe.method]
    model = method.build(recipe.model, num_classes)
    if settings.init == "imagenet":
        if not isinstance(model, LoadsImageNet):
            raise UsageError(f"train.init = 'imagenet': {method.name} has no ImageNet weights; give a file or 'none'.")
        model.load_imagenet()
    elif settings.init == "kinetics400":
        if not isinstance(model, LoadsKinetics400):
            raise UsageError(
                f"train.init = 'kinetics400': {method.name} has no such weights here; give a file or 'none'."
            )
        model.load_kinetics400()
    elif settings.init != "none":
        _start_from(Path(settings.init), model, method)
    model.to(device)
    groups = method.param_groups(model, settings)
    optimizer = make_optimizer(settings, groups)
    averaged = None
    if settings.ema_decay is not None:
        average = get_ema_multi_avg_fn(settings.ema_decay)  # type: ignore[no-untyped-call]
        averaged = AveragedModel(model, multi_avg_fn=average, use_buffers=True)
    rest = _learning_part(recipe, method, model, features) if features else None
    trained = model if rest is None else rest(model)
    if world.size > 1 and settings.sync_norms:
        synchronise_norms(model)
    if settings.compile:
        trained.compile()  # in place: the names of its entries stay
    if world.size > 1:
        # Methods leave out parts of their networks in some epochs, and for some settings.
        trained = DistributedDataParallel(
            trained, device_ids=[device] if device.type == "cuda" else None, find_unused_parameters=True
        )
    return Parts(
        recipe=recipe,
        settings=settings,
        method=method,
        world=world,
        model=model,
        trained=trained,
        averaged=averaged,
        rest=rest,
        optimizer=optimizer,
        initial_rates=tuple(group["lr"] for group in optimizer.param_groups),
        scaler=torch.amp.GradScaler("cuda", enabled=settings.amp == "fp16"),
        device=device,
        save_steps=save_steps,
    )


def _learning_part(
    recipe: Recipe, method: Method, model: nn.Module, datasets: Sequence[FeatureDataset]
) -> Callable[[nn.Module], nn.Module]:
    """What of the model learns on cached features, which are those of the model as it starts.

    Raises:
        UsageError: the features were made with other weights, or the recipe trains what made them.
    """
    features = method.features
    if features is None:
        raise UsageError(f"{method.name} has no features to cache; train it on the clips themselves.")
    learning = [name for name, p in model.named_parameters() if p.requires_grad]
    frozen = [name for name in learning if name.startswith(features.prefixes)]
    if frozen:
        raise UsageError(
            f"recipe {recipe.name} trains {frozen[0]} and {len(frozen) - 1} more, but cached features are made "
            f"with these as they are; freeze them ({features.freeze})."
        )
    weights = weights_digest(model, features)
    init = "none" if recipe.train is None else recipe.train.init
    for dataset in datasets:
        made_with = dataset.manifest.weights_sha256
        if made_with != weights:
            raise UsageError(
                f"{dataset.folder}, split {dataset.manifest.split}: features of other weights (SHA-256 "
                f"{made_with[:12]}...) than train.init = {init!r} gives ({weights[:12]}...); start from "
                "the weights that they were made with, or make them anew."
            )
    return features.rest


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
    parts: Parts, train_loader: Loader, val_loader: Loader, out: Path, *, classes: tuple[str, ...], wandb: str | None
) -> list[dict[str, Any]]:
    """Train the epochs that are not done yet; the log's records of all of them."""
    recipe, settings, world = parts.recipe, parts.settings, parts.world
    records: list[dict[str, Any]] = []
    progress = Progress(epoch=0)
    if (out / "last.pt").exists():
        progress = _resume(parts, train_loader, out / "last.pt")
        records = _read_log(out / "log.jsonl", progress.epoch)
        _tell(parts, "%s: going on after epoch %d of %d%s", out, progress.epoch, settings.epochs, _say_steps(progress))
    else:
        _check_parts(parts, train_loader, val_loader, out, num_classes=len(classes))
    with (
        _tensorboard(out / "tensorboard", first_epoch=len(records), wanted=world.is_main) as board,
        reporting_to_wandb(wandb if world.is_main else None, out, recipe, done=records) as report,
    ):
        for epoch in range(progress.epoch, settings.epochs):
            started = time.perf_counter()
            terms = _train_epoch(parts, train_loader, progress, out)
            description = f"epoch {epoch + 1}/{settings.epochs} {recipe.data.val_split}"
            record: dict[str, Any] = {
                "epoch": epoch,
                "lr": settings.lr
                * learning_rate_factor(settings, epoch, steps_per_epoch=_steps_per_epoch(parts, train_loader)),
                "train": terms,
                "val": _validate(parts, val_loader, num_classes=len(classes), description=description),
                "seconds": time.perf_counter() - started,
            }
            records.append(record)
            progress = Progress(epoch=epoch + 1)
            _save_epoch(parts, train_loader, out, records, classes)
            if board is not None:
                for part in ("train", "val"):
                    for name, value in record[part].items():
                        board.add_scalar(f"{part}/{name}", value, epoch)
                board.add_scalar("lr", record["lr"], epoch)
                board.flush()
            report(record)
            _tell(
                parts,
                "epoch %d/%d: loss %.4f, %s, lr %.3g, %.1f s",
                epoch + 1,
                settings.epochs,
                terms["loss"],
                _say(record["val"], recipe),
                record["lr"],
                record["seconds"],
            )
    return records


def _steps_per_epoch(parts: Parts, loader: Loader) -> int:
    """Optimiser steps of a whole epoch, whatever the loader has handed out of it."""
    return len(loader.dataset) // parts.settings.batch_size


def _train_epoch(parts: Parts, loader: Loader, progress: Progress, out: Path) -> dict[str, float]:
    """What is left of one pass over the training split; the mean of each term over all of its steps."""
    settings, optimizer, epoch = parts.settings, parts.optimizer, progress.epoch
    if not progress.steps_done:
        _seed(settings.seed + epoch, rank=parts.world.rank)
    loader.set_epoch(epoch)
    parts.trained.train()
    steps = _steps_per_epoch(parts, loader)
    steps_left = steps - progress.steps_done
    description = f"epoch {epoch + 1}/{settings.epochs} {parts.recipe.data.train_split}"
    batches: Iterator[Batch] = islice(iter(loader), steps_left * settings.accumulate)
    if parts.world.is_main:
        batches = track(batches, description=description, total=steps_left * settings.accumulate)
    last_saved = time.monotonic()
    for step in range(progress.steps_done, steps):
        position = epoch + step / steps
        factor = learning_rate_factor(settings, position, steps_per_epoch=steps)
        for group, rate in zip(optimizer.param_groups, parts.initial_rates, strict=True):
            group["lr"] = rate * factor
        values = _step(parts, batches, position, where=(epoch, step, steps))
        for name, value in values.items():
            progress.sums[name] = progress.sums.get(name, 0.0) + value
        progress.steps_done = step + 1
        is_due = (
            time.monotonic() - last_saved > SAVE_SECONDS
            if parts.save_steps is None
            else progress.steps_done % parts.save_steps == 0
        )
        is_last = progress.steps_done == steps
        if is_last or any(parts.world.gather(is_due)):
            if not all(bool(parameter.isfinite().all()) for parameter in parts.model.parameters()):
                raise _diverged(parts, epoch, step, steps, "a weight is no finite number after it")
            if is_last:
                break  # saved after its validation
            _save_state(parts, loader, progress, out)
            last_saved = time.monotonic()
    for _ in batches:  # none is left: this ends the display
        raise AssertionError("an epoch has more batches than its steps take")
    return {name: total / steps for name, total in progress.sums.items()}


def _step(parts: Parts, batches: Iterator[Batch], position: float, *, where: tuple[int, int, int]) -> dict[str, float]:
    """One step of the optimiser, from the gradients of as many passes as the recipe says; the mean of their terms."""
    settings, optimizer, scaler = parts.settings, parts.optimizer, parts.scaler
    means: dict[str, float] = {}
    for number, batch in enumerate(islice(batches, settings.accumulate), start=1):
        with contextlib.ExitStack() as stack:
            if isinstance(parts.trained, DistributedDataParallel) and number < settings.accumulate:
                stack.enter_context(parts.trained.no_sync())  # processes exchange the gradients of a step once
            terms = _pass(parts, batch, position)
            values = parts.world.mean({name: float(term.detach()) for name, term in terms.items()}, parts.device)
            if not math.isfinite(values["loss"]):
                raise _diverged(parts, *where, f"the loss is {values['loss']}")
            torch.autograd.backward(scaler.scale(terms["loss"] / settings.accumulate))
        for name, value in values.items():
            means[name] = means.get(name, 0.0) + value / settings.accumulate
    scaler.unscale_(optimizer)
    if settings.clip_grad is not None:
        norm = float(clip_grad_norm_(parts.model.parameters(), settings.clip_grad))
        if not math.isfinite(norm) and not scaler.is_enabled():  # the scaler skips such a step and halves its scale
            raise _diverged(parts, *where, f"the gradient's norm is {norm}")
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad(set_to_none=True)  # only what the optimiser holds: see TrainingState.gradients
    if parts.averaged is not None:
        parts.averaged.update_parameters(parts.model)
    return means


def _pass(parts: Parts, batch: Batch, position: float) -> dict[str, Tensor]:
    """The terms of the loss, in the recipe's precision."""
    dtype = torch.float16 if parts.settings.amp == "fp16" else torch.bfloat16
    with torch.autocast(parts.device.type, dtype=dtype, enabled=parts.settings.amp != "none"):
        return parts.method.training_step(parts.trained, batch.to(parts.device), position)


def _check_parts(parts: Parts, train_loader: Loader, val_loader: Loader, out: Path, *, num_classes: int) -> None:
    """Before the long run: a batch of each split, one pass back, and a checkpoint written and read; then as new.

    What is broken (shards, memory, the disk) shows here, in seconds, and not at the end of the first epoch.
    """
    weights = copy.deepcopy(parts.model.state_dict())
    try:
        _seed(parts.settings.seed)
        parts.trained.train()
        batch = next(iter(train_loader))
        terms = _pass(parts, batch, 0.0)
        loss = parts.world.mean({"loss": float(terms["loss"].detach())}, parts.device)["loss"]
        if not math.isfinite(loss):
            raise _diverged(parts, 0, 0, _steps_per_epoch(parts, train_loader), f"the loss is {loss}")
        torch.autograd.backward(parts.scaler.scale(terms["loss"]))
        _validate(parts, islice(val_loader, 1), num_classes=num_classes, description="trial", quiet=True)
        if parts.world.is_main:
            probe = out / "check.pt"
            try:
                save_training(probe, _state(parts, train_loader, Progress(epoch=0), random_states=[]))
                load_training(probe)
            finally:
                probe.unlink(missing_ok=True)
    finally:
        parts.model.load_state_dict(weights)
        for parameter in parts.model.parameters():
            parameter.grad = None
        train_loader.load_state_dict({**train_loader.state_dict(), "epoch": 0, "position": 0})
    parts.world.wait()


def _validate(
    parts: Parts, batches: Iterable[Batch], *, num_classes: int, description: str, quiet: bool = False
) -> dict[str, float]:
    """The figures of one pass over the validation split: of detectors on one frame of each video."""
    recipe, world = parts.recipe, parts.world
    quiet = quiet or not world.is_main
    with uncompiled() if parts.settings.compile else contextlib.nullcontext():
        if recipe.eval.metric == "map50":
            return detect_frames(
                parts.evaluated, batches, device=parts.device, world=world, description=description, quiet=quiet
            ).metrics
        return classify(
            parts.evaluated,
            batches,
            num_classes=num_classes,
            average=recipe.eval.average,
            summarise=parts.method.summarise,
            renumber_present_classes=recipe.eval.renumber_present_classes,
            device=parts.device,
            world=world,
            description=description,
            quiet=quiet,
        ).metrics


def _diverged(parts: Parts, epoch: int, step: int, steps: int, what: str) -> TrainingDiverged:
    kept = f"what epoch {epoch} saved is kept" if epoch else "nothing was saved yet"
    return TrainingDiverged(
        f"epoch {epoch + 1}, step {step + 1} of {steps}: {what}; {kept}. Lower train.lr = {parts.settings.lr:g}, "
        "or clip gradients with train.clip_grad."
    )


def _save_epoch(
    parts: Parts, loader: Loader, out: Path, records: list[dict[str, Any]], classes: tuple[str, ...]
) -> None:
    """Best weights and log first, `last.pt` at the end: what it does not count as done is written again."""
    epoch = records[-1]["epoch"]
    if parts.world.is_main:
        if epoch >= parts.recipe.eval.best_from_epoch and _best(records, parts.recipe)["epoch"] == epoch:
            metadata = {
                "method": parts.recipe.method,
                "recipe": dump_recipe(parts.recipe),
                "classes": json.dumps(classes),
                "epoch": str(epoch),
                "val": json.dumps(records[-1]["val"]),
            }
            save_weights(out / "best.safetensors", parts.weights.state_dict(), metadata)
        _write_text(out / "log.jsonl", "".join(json.dumps(record) + "\n" for record in records))
    _save_state(parts, loader, Progress(epoch=epoch + 1), out)


def _save_state(parts: Parts, loader: Loader, progress: Progress, out: Path) -> None:
    """`last.pt`, by the first process; all of them tell it their random states, and wait."""
    random_states = parts.world.gather(_random_state(parts.device)) if progress.steps_done else []
    if parts.world.is_main:
        save_training(out / "last.pt", _state(parts, loader, progress, random_states=random_states))
    parts.world.wait()


def _state(parts: Parts, loader: Loader, progress: Progress, *, random_states: list[dict[str, Any]]) -> TrainingState:
    return TrainingState(
        epochs_done=progress.epoch,
        steps_done=progress.steps_done,
        sums=dict(progress.sums),
        loader=loader.state_dict() if progress.steps_done else {},
        random=random_states,
        averaged={} if parts.averaged is None else parts.averaged.state_dict(),
        state_dict=parts.model.state_dict(),
        optimizer=parts.optimizer.state_dict(),
        scaler=parts.scaler.state_dict(),
        gradients={name: p.grad for name, p in parts.model.named_parameters() if p.grad is not None},
    )


def _resume(parts: Parts, loader: Loader, path: Path) -> Progress:
    state = load_training(path)
    load_into(parts.model, state.state_dict, path)
    parts.optimizer.load_state_dict(dict(state.optimizer))
    parts.scaler.load_state_dict(dict(state.scaler))
    if parts.averaged is not None:
        parts.averaged.load_state_dict(dict(state.averaged))
    parameters = dict(parts.model.named_parameters())
    for name, gradient in state.gradients.items():
        parameters[name].grad = gradient.to(parts.device)
    progress = Progress(epoch=state.epochs_done, steps_done=state.steps_done, sums=dict(state.sums))
    if progress.steps_done:
        loader.load_state_dict(state.loader)
        if len(state.random) == parts.world.size:
            _restore_random_state(state.random[parts.world.rank], parts.device)
        else:
            _tell(
                parts,
                "saved by %d processes, this run has %d: the rest of the epoch draws other random numbers",
                len(state.random),
                parts.world.size,
            )
            _seed(parts.settings.seed + progress.epoch, rank=parts.world.rank)
    return progress


def _random_state(device: torch.device) -> dict[str, Any]:
    """Of every generator that training may draw from, in types that load without running code."""
    kind, keys, *rest = np.random.get_state()  # noqa: NPY002 - as in `_seed`
    return {
        "python": random.getstate(),
        "numpy": (kind, torch.from_numpy(np.asarray(keys).astype(np.int64)), *rest),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
    }


def _restore_random_state(state: Mapping[str, Any], device: torch.device) -> None:
    random.setstate(state["python"])
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))  # noqa: NPY002 - as in `_seed`
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"], device)


def _read_log(path: Path, epochs_done: int) -> list[dict[str, Any]]:
    """The records of the epochs that `last.pt` counts as done; a later one is written again."""
    if not epochs_done:
        return []
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


def _say_steps(progress: Progress) -> str:
    return f" and {progress.steps_done} steps of the next" if progress.steps_done else ""


def _tell(parts: Parts, sentence: str, *arguments: object) -> None:
    """Log what one of the processes may say for all."""
    if parts.world.is_main:
        logger.info(sentence, *arguments)


def _seed(seed: int, *, rank: int = 0) -> None:
    """Seed every generator; processes draw different numbers, the first one those of a single process."""
    seed += RANK_STRIDE * rank
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - a method's own code may draw from the global state
    torch.manual_seed(seed)


def _write_text(path: Path, text: str) -> None:
    write_atomically(path, lambda file: file.write(text.encode()))


@contextlib.contextmanager
def _tensorboard(folder: Path, *, first_epoch: int, wanted: bool) -> Iterator["SummaryWriter | None"]:
    if not wanted:
        yield None
        return
    from torch.utils.tensorboard import SummaryWriter  # takes a second to import

    with SummaryWriter(str(folder), purge_step=first_epoch) as board:
        yield board
