"""A ResNet as evaluation runs it: norms folded, channels-last. Other rounding, the same arithmetic."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import max_pool2d

from vidmodels.backbones.resnet import ResidualBlock, ResNet
from vidmodels.layers.folded import FoldedNorms

__all__ = ["run_folded"]


def run_folded(
    backbone: ResNet, frames: Tensor, norms: FoldedNorms, *, before_block: Callable[[Tensor], Tensor] | None = None
) -> Tensor:
    """The last feature map, as `backbone(frames)` gives it: (n*t, 3, h, w) -> (n*t, out_channels, h', w').

    What sits in the temporal slots is run as it is, on channels-last maps.

    Args:
        backbone: in evaluation mode.
        frames: any layout.
        norms: what was folded before; kept by the caller.
        before_block: applied to what conv1 of a block sees, not to what its shortcut sees, such as a temporal shift; it
            gives a tensor of its own or its argument.
    """
    x = frames.contiguous(memory_format=torch.channels_last)
    x = norms.conv(backbone.conv1, backbone.bn1, x, then="relu")
    if backbone.stem_kind == "conv7_pool":
        x = max_pool2d(x, 3, stride=2, padding=1)
    for blocks in backbone.stages.values():
        for block in blocks:
            x = _run_block(block, x if before_block is None else before_block(x), x, norms)
    return x


def _run_block(block: ResidualBlock, seen: Tensor, x: Tensor, norms: FoldedNorms) -> Tensor:
    inner = block.temporal(norms.conv(block.conv1, block.bn1, seen, then="relu"))
    if block.shape.layout == "bottleneck":
        out = norms.conv(block.conv3, block.bn3, norms.conv(block.conv2, block.bn2, inner, then="relu"))
    else:
        out = norms.conv(block.conv2, block.bn2, inner)
    if block.downsample is not None:
        conv, norm = block.downsample
        assert isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d)  # noqa: S101, PT018
        x = norms.conv(conv, norm, x)
    return out.add_(x).relu_()
