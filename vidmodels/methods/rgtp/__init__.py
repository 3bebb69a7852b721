"""RGTP: tokens of a video transformer are pruned by the attention rollout of the frame before."""

from vidmodels.methods.rgtp.convert import convert
from vidmodels.methods.rgtp.cost import summarise
from vidmodels.methods.rgtp.show import draw_heat_and_kept_tokens
from vidmodels.methods.rgtp.training import FEATURES, param_groups, training_step
from vidmodels.methods.rgtp.vivit import RgtpVivit, RgtpVivitConfig, StreamState, build
from vidmodels.types import Method

__all__ = ["VIVIT", "RgtpVivit", "RgtpVivitConfig", "StreamState", "build", "convert"]

VIVIT = Method(
    name="rgtp_vivit",
    paper="Rollout-Guided Token Pruning for Efficient Video Understanding",
    Config=RgtpVivitConfig,
    build=build,
    training_step=training_step,
    param_groups=param_groups,
    make_dynamic=lambda model: model,
    convert=convert,
    summarise=summarise,
    draw=draw_heat_and_kept_tokens,
    drawn_recipe="rgtp_vivit/kinetics400_keep_0215",
    features=FEATURES,
)
