"""TAM: a temporal adaptive module in every block of a 2D ResNet, together TANet (Liu et al., ICCV 2021)."""

from vidmodels.methods.tam.convert import convert
from vidmodels.methods.tam.dynamic import make_dynamic
from vidmodels.methods.tam.model import Tanet, TanetConfig, TemporalAdaptiveModule, build
from vidmodels.methods.tam.training import param_groups, training_step
from vidmodels.types import Method

__all__ = ["METHOD", "Tanet", "TanetConfig", "TemporalAdaptiveModule", "build", "convert", "make_dynamic"]

METHOD = Method(
    name="tam",
    paper="https://arxiv.org/abs/2005.06803",
    Config=TanetConfig,
    build=build,
    training_step=training_step,
    param_groups=param_groups,
    make_dynamic=make_dynamic,
    convert=convert,
    summarise=lambda _model, _output: {},
)
