"""RGTP: tokens of a video transformer are pruned by the attention rollout of the frame before."""

from vidmodels.methods.rgtp import vitdet, vitdet_convert, vitdet_training
from vidmodels.methods.rgtp.vitdet_show import draw_kept_tokens
from vidmodels.methods.rgtp.vivit import RgtpVivit, RgtpVivitConfig, StreamState, build
from vidmodels.types import Method

__all__ = ["VITDET", "RgtpVivit", "RgtpVivitConfig", "StreamState", "build"]

VITDET = Method(
    name="rgtp_vitdet",
    paper="Rollout-Guided Token Pruning for Efficient Video Understanding",
    Config=vitdet.VitDetConfig,
    build=vitdet.build,
    training_step=vitdet_training.training_step,
    param_groups=vitdet_training.param_groups,
    make_dynamic=lambda model: model,
    convert=vitdet_convert.convert,
    summarise=lambda model, output: {},
    draw=draw_kept_tokens,
    drawn_recipe="rgtp_vitdet/imagenet_vid_672_keep512",
)
