"""What Uni-AdaFocus costs, exit by exit, by the published convention.

Published "GFLOPs" are 1e9 multiply-adds: convolutions and linear layers, and one operation a batch norm CHANNEL
whatever the map's size. Not counted: activations, pooling, resampling, softmax, the heads that only train, decoding.
All classifiers of the glance steps count, though only the last one is needed. The published tables take 200 classes
("tsm": 174) whatever the data set.
"""

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from vidmodels.cost import counting_macs
from vidmodels.methods.uni_adafocus.model import UniAdaFocus, UniAdaFocusConfig, UniAdaFocusTsm, build
from vidmodels.types import Output

__all__ = ["PartMacs", "exit_macs", "part_macs", "summarise"]


@dataclass(frozen=True, kw_only=True)
class PartMacs:
    """Multiply-adds of the parts, each for one frame but the policies, which are for all glance frames.

    The networks of "x3d" cannot be counted frame by frame: theirs are for all of a clip, with the head that predicts.
    """

    glance: int
    """The glance network on a frame; "tsm": with both heads."""
    focus: int
    """The focus network on a patch; "tsm": with both heads."""
    spatial_policy: int
    temporal_policy: int
    glance_step: int = 0
    """Of "pooling": embedding and classifier after a glance frame."""
    focus_step: int = 0


@lru_cache(maxsize=32)
def part_macs(config: UniAdaFocusConfig, num_classes: int) -> PartMacs:
    """Counted from the operators that run on each part. Source of the convention: specification section 4."""
    with torch.device("meta"):
        model = build(config, num_classes).eval()
        side, cells = config.glance_side, config.map_size
        frame, patch = torch.empty(1, 3, side, side), torch.empty(1, 3, config.patch_size, config.patch_size)
        maps = torch.empty(1, config.num_glance, model.glance.out_channels, cells, cells)
        features = torch.empty(1, model.glance.out_channels)
        clip_features = torch.empty(1, config.num_glance, model.glance.out_channels)
        patch_features = torch.empty(1, model.focus.out_channels)
        if config.variant == "x3d":
            frame, patch = frame.repeat(config.num_glance, 1, 1, 1), patch.repeat(config.num_focus, 1, 1, 1)
        glance = _macs(model.glance, frame, num_frames=len(frame))
        focus = _macs(model.focus, patch, num_frames=len(patch))
        steps = (0, 0)
        if isinstance(model, UniAdaFocusTsm) and config.variant == "x3d":
            glance += _macs(model.glance_heads.final, features)
            focus += _macs(model.focus_heads.final, patch_features)
        elif isinstance(model, UniAdaFocusTsm):
            glance += _macs(model.glance_heads, features)
            focus += _macs(model.focus_heads, patch_features)
        else:
            classifier = model.classifier
            pooled = torch.empty(1, 2 * config.classifier_hidden_dim)
            steps = (
                _macs(classifier.glance_mlp, features)
                + _macs(classifier.glance_steps[0], pooled[:, : config.classifier_hidden_dim]),
                _macs(classifier.focus_mlp, patch_features) + _macs(classifier.focus_steps[0], pooled),
            )
        return PartMacs(
            glance=glance,
            focus=focus,
            spatial_policy=_macs(model.spatial_policy, maps),
            temporal_policy=_macs(model.temporal_policy, clip_features),
            glance_step=steps[0],
            focus_step=steps[1],
        )


def exit_macs(config: UniAdaFocusConfig, num_classes: int) -> list[int]:
    """Multiply-adds of a video that leaves at each exit: f + 1 of them, or 2 with "tsm" and "x3d"."""
    parts = part_macs(config, num_classes)
    policies = parts.spatial_policy + parts.temporal_policy
    if config.variant == "x3d":
        return [parts.glance, parts.glance + policies + parts.focus]
    macs = [config.num_glance * (parts.glance + parts.glance_step)]
    focused = [config.num_focus] if config.variant == "tsm" else range(1, config.num_focus + 1)
    return macs + [macs[0] + policies + num_frames * (parts.focus + parts.focus_step) for num_frames in focused]


def summarise(model: nn.Module, output: Output) -> dict[str, float]:
    """`gmacs_published`: mean cost of a clip by the published convention, at the exit where it left (or the last)."""
    if not isinstance(model, UniAdaFocus | UniAdaFocusTsm):
        raise TypeError(f"expected a Uni-AdaFocus model, got {type(model).__name__}")
    macs = torch.tensor(exit_macs(model.config, model.num_classes), dtype=torch.float64) / 1e9
    steps = output.aux.get("exit_steps")
    return {"gmacs_published": float(macs[-1] if steps is None else macs[steps.cpu()].mean())}


def _macs(module: nn.Module, x: torch.Tensor, **settings: int) -> int:
    """Convolutions and linear layers, and a batch norm's channels; the module is in evaluation mode."""
    norms = sum(norm.num_features for norm in module.modules() if isinstance(norm, _BatchNorm))
    with torch.no_grad(), counting_macs() as counter:
        module(x, **settings)
    return counter.macs + norms
