"""TAPS: temporal attention-based channel pruning and scaling of 2D ResNets (Dinai et al., ACCV 2024)."""

from vidmodels.methods.taps.convert import convert
from vidmodels.methods.taps.cost import summarise
from vidmodels.methods.taps.dynamic import DynamicTaps, make_dynamic
from vidmodels.methods.taps.model import Taps, TapsConfig, build
from vidmodels.methods.taps.training import param_groups, training_step
from vidmodels.types import Method

__all__ = ["METHOD", "DynamicTaps", "Taps", "TapsConfig", "build", "convert", "make_dynamic"]

METHOD = Method(
    name="taps",
    paper="https://openaccess.thecvf.com/content/ACCV2024/html/"
    "Dinai_TAPS_Temporal_Attention-based_Pruning_and_Scaling_for_Efficient_Video_Action_ACCV_2024_paper.html",
    Config=TapsConfig,
    build=build,
    training_step=training_step,
    param_groups=param_groups,
    make_dynamic=make_dynamic,
    convert=convert,
    export_obstacle="it gathers the channels that a clip keeps, so the shapes of its tensors follow from the pixels",
    summarise=summarise,
)
