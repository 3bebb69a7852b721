"""The optimiser of a run: PyTorch's SGD and AdamW, or one of timm's by its name."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from timm.optim import create_optimizer_v2, get_optimizer_class, list_optimizers  # type: ignore[attr-defined]
from torch import nn

from vidmodels.options import option_faults
from vidmodels.types import TIMM, Train
from vidprep.errors import UsageError, suggest

__all__ = ["make_optimizer", "optimizer_faults"]

LOOKAHEAD = "lookahead_"
"""Before the name of any other: the slow weights of Zhang et al. (2019) around it, with timm's k = 6, alpha = 0.5."""
RECIPE_SETTINGS = {name: f"train.{name}" for name in ("lr", "weight_decay", "momentum")}
"""Arguments that the recipe's own settings give."""


def make_optimizer(train: Train, groups: Sequence[Mapping[str, Any]]) -> torch.optim.Optimizer:
    """The optimiser of the recipe over the method's groups, each with its own rate and weight decay.

    Raises:
        UsageError: what `optimizer_faults` finds.
    """
    own = [dict(group) for group in groups]
    if train.optimizer == "sgd":
        return torch.optim.SGD(own, lr=train.lr, momentum=train.momentum)
    if train.optimizer == "adamw":
        return torch.optim.AdamW(own, lr=train.lr)
    for fault in optimizer_faults(train):
        raise UsageError(f"train.{fault}.")
    return _of_timm(train, own)


def optimizer_faults(train: Train) -> list[str]:
    """What is wrong with the optimiser's name and options, a sentence each; [] where it can be made.

    It is made once for two parameters, so that values which it refuses show before any training.
    """
    if not train.optimizer.startswith(TIMM):
        return []
    name = train.optimizer.removeprefix(TIMM).removeprefix(LOOKAHEAD)
    known = [str(one) for one in list_optimizers()]
    if name not in known:
        return [f"optimizer: timm has no {name!r}, {suggest(name, known)}"]
    try:
        kind = get_optimizer_class(name, bind_defaults=False)
    except ImportError as error:
        return [f"optimizer: timm's {name} needs a package that is not installed ({error})"]
    except AssertionError as error:  # timm's way to say that APEX and bitsandbytes want a GPU
        return [f"optimizer: timm's {name} is not to be had here ({error})"]
    what = f"timm's {name}"
    faults = option_faults(
        train.optimizer_options, kind, what=what, instead=RECIPE_SETTINGS, hidden=("params", "differentiable")
    )
    if faults:
        return [f"optimizer_options.{fault}" for fault in faults]
    parameters = [nn.Parameter(torch.zeros(2, 2)), nn.Parameter(torch.zeros(2))]
    try:
        optimizer = _of_timm(train, [{"params": parameters, "lr": train.lr, "weight_decay": train.weight_decay}])
    except (TypeError, ValueError) as error:
        return [f"optimizer_options: {what} does not take these: {error}"]
    if getattr(optimizer, "is_second_order", False):
        return [f"optimizer: {what} needs second derivatives, which training does not compute"]
    return []


def _of_timm(train: Train, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    options: dict[str, Any] = dict(train.optimizer_options)
    return create_optimizer_v2(
        groups,
        opt=train.optimizer.removeprefix(TIMM),
        lr=train.lr,
        weight_decay=train.weight_decay,
        momentum=train.momentum,
        **options,
    )
