"""STA on VideoMAE: video tokens are pruned by semantic-aware temporal accumulation (Ding et al., ICCV 2023)."""

from vidmodels.methods.sta.convert import convert
from vidmodels.methods.sta.cost import summarise
from vidmodels.methods.sta.model import Sta, StaConfig, build
from vidmodels.methods.sta.show import draw_kept_tokens
from vidmodels.methods.sta.training import param_groups, training_step
from vidmodels.types import Method

__all__ = ["METHOD", "Sta", "StaConfig", "build", "convert"]

METHOD = Method(
    name="sta",
    paper="https://arxiv.org/abs/2308.04549",
    Config=StaConfig,
    build=build,
    training_step=training_step,
    param_groups=param_groups,
    make_dynamic=lambda model: model,
    convert=convert,
    summarise=summarise,
    draw=draw_kept_tokens,
    drawn_recipe="sta/kinetics400_vit_large_r64",
)
