"""RGTP: tokens of a video transformer are pruned by the attention rollout of the frame before."""

from vidmodels.methods.rgtp import vitdet, vitdet_convert, vitdet_cost, vitdet_training
from vidmodels.methods.rgtp.convert import convert
from vidmodels.methods.rgtp.cost import summarise
from vidmodels.methods.rgtp.show import draw_heat_and_kept_tokens
from vidmodels.methods.rgtp.training import FEATURES, param_groups, training_step
from vidmodels.methods.rgtp.vitdet_show import draw_kept_tokens
from vidmodels.methods.rgtp.vivit import RgtpVivit, RgtpVivitConfig, StreamState, build
from vidmodels.types import Method

__all__ = ["VITDET", "VIVIT", "RgtpVivit", "RgtpVivitConfig", "StreamState", "build", "convert"]

PAPER = "Rollout-Guided Token Pruning for Efficient Video Understanding"

VIVIT = Method(
    name="rgtp_vivit",
    paper=PAPER,
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

VITDET = Method(
    name="rgtp_vitdet",
    paper=PAPER,
    Config=vitdet.VitDetConfig,
    build=vitdet.build,
    training_step=vitdet_training.training_step,
    param_groups=vitdet_training.param_groups,
    make_dynamic=lambda model: model,
    convert=vitdet_convert.convert,
    summarise=vitdet_cost.summarise,
    draw=draw_kept_tokens,
    drawn_recipe="rgtp_vitdet/imagenet_vid_672_keep512",
)
