"""The learning rate as a pure function of the epoch."""

import math
from typing import Any

import torch
from timm.scheduler import create_scheduler_v2  # type: ignore[attr-defined]
from torch import nn

from vidmodels.options import option_faults
from vidmodels.types import TIMM, Train
from vidprep.errors import suggest

__all__ = ["learning_rate_factor", "schedule_faults"]

STEP_DECAY = 10.0
TIMM_SCHEDULES = ("cosine", "tanh", "step", "multistep", "poly", "wsd", "rsqrt", "constant")
"""timm's "plateau" follows validation figures and is deprecated there: it keeps its state in no checkpoint."""
RECIPE_SETTINGS = {
    "warmup_epochs": "train.warmup_epochs",
    "min_lr": "train.min_lr",
    "decay_milestones": "train.lr_milestones",
}
"""Arguments that the recipe's own settings give, and these settings."""
NOT_SETTINGS = ("optimizer", "sched", "updates_per_epoch", "patience_epochs", "plateau_mode")


def learning_rate_factor(train: Train, epoch: float, *, steps_per_epoch: int = 1) -> float:
    """What every group's initial learning rate is multiplied by.

        "step"          divided by 10 at each milestone
        "cosine"        (1 + cos(pi e / epochs)) / 2
        "cosine_steps"  from 1 to min_lr / lr on half a cosine over the steps after the warm-up
        "timm:NAME"     what timm's schedule makes of `lr`, over `lr`

    The first two change between epochs (e = floor(epoch)), their warm-up rises with every step: epoch /
    warmup_epochs, from 0 to 1, times the schedule. "cosine_steps" counts steps: its warm-up reaches 1 with its last
    step. timm's change between epochs, warm-up included, or with every step where `step_on_epochs` is false. All is
    scaled by batch_size / lr_batch_size where that is set.

    Args:
        train: the recipe's training settings.
        epoch: epochs done, from 0, with the fraction of the current one.
        steps_per_epoch: for the schedules that count steps.

    Source: TAPS, specification section 3.3; the same forms in TSM, `main.py::adjust_learning_rate`. "cosine_steps":
    VideoMAE, `utils.py::cosine_scheduler`; linear scaling of the rate as in its fine-tuning.
    """
    scale = 1.0 if train.lr_batch_size is None else train.batch_size / train.lr_batch_size
    if train.schedule.startswith(TIMM):
        return scale * _factor_of_timm(train, epoch, steps_per_epoch)
    if train.schedule == "cosine_steps":
        return scale * _cosine_steps(train, round(epoch * steps_per_epoch), steps_per_epoch)
    whole = math.floor(epoch)
    if train.schedule == "step":
        factor = STEP_DECAY ** -sum(milestone <= whole for milestone in train.lr_milestones)
    else:
        factor = 0.5 * (1.0 + math.cos(math.pi * whole / train.epochs))
    if epoch < train.warmup_epochs:
        factor *= epoch / train.warmup_epochs
    return scale * factor


def _cosine_steps(train: Train, step: int, steps_per_epoch: int) -> float:
    num_warmup = train.warmup_epochs * steps_per_epoch
    if step < num_warmup:
        return step / max(num_warmup - 1, 1)
    least = train.min_lr / train.lr
    done = (step - num_warmup) / max(train.epochs * steps_per_epoch - num_warmup, 1)
    return least + 0.5 * (1.0 - least) * (1.0 + math.cos(math.pi * done))


def _factor_of_timm(train: Train, epoch: float, steps_per_epoch: int) -> float:
    """Schedules of timm are functions of the epoch or the step; they write their rate into an optimiser's groups.

    The group here is alone and not the model's, whose groups have an `lr_scale` that timm would apply once more.
    """
    scheduler, _ = _scheduler(train, steps_per_epoch)
    if scheduler.t_in_epochs:
        scheduler.step(math.floor(epoch))
    else:
        scheduler.step_update(round(epoch * steps_per_epoch))
    [group] = scheduler.optimizer.param_groups
    return float(group["lr"]) / train.lr


def _scheduler(train: Train, steps_per_epoch: int) -> tuple[Any, int]:
    """The scheduler of a group with the rate `train.lr`; and how many epochs it lasts."""
    options: dict[str, Any] = dict(train.schedule_options)
    around = options.get("cooldown_epochs", 0)
    if options.get("warmup_prefix"):
        around += train.warmup_epochs
    options.setdefault("num_epochs", train.epochs - around)
    if train.lr_milestones:
        options["decay_milestones"] = list(train.lr_milestones)
    scheduler, num_epochs = create_scheduler_v2(
        torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=train.lr),
        sched=train.schedule.removeprefix(TIMM),
        min_lr=train.min_lr,
        warmup_epochs=train.warmup_epochs,
        updates_per_epoch=steps_per_epoch,
        **options,
    )
    return scheduler, num_epochs


def schedule_faults(train: Train) -> list[str]:
    """What is wrong with the schedule's name and options, a sentence each; [] where it can be followed."""
    if not train.schedule.startswith(TIMM):
        return []
    name = train.schedule.removeprefix(TIMM)
    if name == "plateau":
        return ["schedule: timm's 'plateau' keeps its state in no checkpoint, so no run could go on; try 'wsd'"]
    if name not in TIMM_SCHEDULES:
        return [f"schedule: timm has no {name!r}, {suggest(name, TIMM_SCHEDULES)}"]
    what = f"timm's {name}"
    faults = option_faults(
        train.schedule_options,
        create_scheduler_v2,
        what=what,
        instead=RECIPE_SETTINGS,
        hidden=NOT_SETTINGS,
    )
    if faults:
        return [f"schedule_options.{fault}" for fault in faults]
    try:
        _, num_epochs = _scheduler(train, 1)
        factors = [_factor_of_timm(train, epoch, 1) for epoch in range(train.epochs)]
    except (TypeError, ValueError, AssertionError, ArithmeticError, AttributeError) as error:
        return [f"schedule_options: {what} does not take these: {str(error) or 'a value out of range'}"]
    if num_epochs != train.epochs:
        return [
            f"schedule_options: with cycles, warm-up and cooldown this schedule takes {num_epochs} epochs, but "
            f"train.epochs = {train.epochs}; set num_epochs, the length of one cycle, or train.epochs"
        ]
    if not all(math.isfinite(factor) and factor >= 0 for factor in factors):
        return ["schedule_options: with these the rate is not a finite number from 0 on in every epoch"]
    return []
