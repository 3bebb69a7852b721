"""Uni-AdaFocus: glance at whole frames, focus on rectangles of a few, leave when sure (Wang et al., TPAMI 2024)."""

from vidmodels.methods.uni_adafocus.convert import convert
from vidmodels.methods.uni_adafocus.cost import exit_macs, summarise
from vidmodels.methods.uni_adafocus.dynamic import (
    DynamicUniAdaFocus,
    DynamicUniAdaFocusTsm,
    exit_logits,
    make_dynamic,
    published_budgets,
)
from vidmodels.methods.uni_adafocus.model import UniAdaFocus, UniAdaFocusConfig, UniAdaFocusTsm, build
from vidmodels.methods.uni_adafocus.show import draw_looks
from vidmodels.methods.uni_adafocus.training import param_groups, training_step
from vidmodels.types import EarlyExit, Method

__all__ = [
    "METHOD",
    "DynamicUniAdaFocus",
    "DynamicUniAdaFocusTsm",
    "UniAdaFocus",
    "UniAdaFocusConfig",
    "UniAdaFocusTsm",
    "build",
    "convert",
    "make_dynamic",
]

METHOD = Method(
    name="uni_adafocus",
    paper="https://arxiv.org/abs/2412.11228",
    Config=UniAdaFocusConfig,
    build=build,
    training_step=training_step,
    param_groups=param_groups,
    make_dynamic=make_dynamic,
    convert=convert,
    summarise=summarise,
    draw=draw_looks,
    drawn_recipe="uni_adafocus/activitynet_p128",
    early_exit=EarlyExit(logits=exit_logits, macs=exit_macs, budgets=published_budgets, make=make_dynamic),
    export_obstacle="videos leave it at the exit that is sure of them, and the batch shrinks with them",
)
"""One entry for all variants; `model.variant` says which."""
