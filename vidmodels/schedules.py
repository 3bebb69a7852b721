"""The learning rate as a pure function of the epoch."""

import math

from vidmodels.types import Train

__all__ = ["learning_rate_factor"]

STEP_DECAY = 10.0


def learning_rate_factor(train: Train, epoch: float) -> float:
    """What every group's initial learning rate is multiplied by.

    "step" divides by 10 at each milestone; "cosine" is (1 + cos(pi e / epochs)) / 2. Both change between epochs
    (e = floor(epoch)); the warm-up rises with every step: epoch / warmup_epochs, from 0 to 1, times the schedule.

    Args:
        train: the recipe's training settings.
        epoch: epochs done, from 0, with the fraction of the current one.

    Source: TAPS, specification section 3.3; the same forms in TSM, `main.py::adjust_learning_rate`.
    """
    whole = math.floor(epoch)
    if train.schedule == "step":
        factor = STEP_DECAY ** -sum(milestone <= whole for milestone in train.lr_milestones)
    else:
        factor = 0.5 * (1.0 + math.cos(math.pi * whole / train.epochs))
    if epoch < train.warmup_epochs:
        factor *= epoch / train.warmup_epochs
    return factor
