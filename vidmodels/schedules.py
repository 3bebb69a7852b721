"""The learning rate as a pure function of the epoch."""

import math

from vidmodels.types import Train

__all__ = ["learning_rate_factor"]

STEP_DECAY = 10.0


def learning_rate_factor(train: Train, epoch: float, *, steps_per_epoch: int = 1) -> float:
    """What every group's initial learning rate is multiplied by.

        "step"          divided by 10 at each milestone
        "cosine"        (1 + cos(pi e / epochs)) / 2
        "cosine_steps"  from 1 to min_lr / lr on half a cosine over the steps after the warm-up

    The first two change between epochs (e = floor(epoch)), their warm-up rises with every step: epoch /
    warmup_epochs, from 0 to 1, times the schedule. "cosine_steps" counts steps: its warm-up reaches 1 with its last
    step. All is scaled by batch_size / lr_batch_size where that is set.

    Args:
        train: the recipe's training settings.
        epoch: epochs done, from 0, with the fraction of the current one.
        steps_per_epoch: for "cosine_steps", which counts them.

    Source: TAPS, specification section 3.3; the same forms in TSM, `main.py::adjust_learning_rate`. "cosine_steps":
    VideoMAE, `utils.py::cosine_scheduler`; linear scaling of the rate as in its fine-tuning.
    """
    scale = 1.0 if train.lr_batch_size is None else train.batch_size / train.lr_batch_size
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
