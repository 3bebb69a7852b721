"""TAPS, the dynamic form: conv1 computes only the kept channels, conv2 reads only them.

The same parameters under the same names as the trainable form, for evaluation. Batch norms are folded into their
convolutions and activations lie channels-last: that changes the rounding, not the arithmetic.
"""

from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, max_pool2d

from vidmodels.backbones.resnet import ResidualBlock, size_after
from vidmodels.layers.evaluation_only import EvaluationOnly
from vidmodels.layers.folded import FoldedNorms
from vidmodels.methods.taps.model import Gates, Gating, Taps, decide, make_gates
from vidmodels.types import Output

__all__ = ["DynamicTaps", "Granularity", "make_dynamic"]

Granularity = Literal["frame", "clip"]


class DynamicTaps(EvaluationOnly, Taps):
    """`forward(frames (n, t, 3, h, w)) -> Output` with the logits and `aux` of the trainable form.

    Args:
        model: the trainable form, whose tensors are shared: there is one set of weights, and changing it in place
            changes both.
        granularity: "frame" computes exactly the channels that each frame keeps, frames with equal masks together:
            its MACs are what the masks promise. "clip" computes for all frames of a clip the union of what they keep:
            more MACs in fewer, larger products.
        channel_multiple: fill the computed channels up to a multiple of this with dropped ones, whose results are
            multiplied by their zeros; more MACs than promised, but kernels like 16.
    """

    def __init__(self, model: Taps, *, granularity: Granularity = "frame", channel_multiple: int = 1) -> None:
        if channel_multiple < 1:
            raise ValueError(f"channel_multiple must be at least 1, got {channel_multiple}")
        with torch.device("meta"):
            super().__init__(model.config, model.num_classes)
        self.load_state_dict(model.state_dict(keep_vars=True), assign=True)
        self.granularity = granularity
        self.channel_multiple = channel_multiple
        self._norms = FoldedNorms()
        self.eval()

    @torch.no_grad()
    def forward(self, frames: Tensor) -> Output:  # type: ignore[override]  # nothing of training is left to set
        """Classify clips, skipping what the gates drop."""
        config = self.config
        gating = Gating(soft=config.soft_gates, attention=config.eval_attention or config.attention)
        num_frames = frames.shape[1]
        x = frames.flatten(0, 1).contiguous(memory_format=torch.channels_last)
        x = self._norms.conv(self.backbone.conv1, self.backbone.bn1, x).relu_()
        if config.stem == "conv7_pool":
            x = max_pool2d(x, 3, stride=2, padding=1)
        gates: list[Gates] = []
        for stage, blocks in self.backbone.stages.items():
            for index, block in enumerate(blocks):
                shifted = self.shift(x, num_frames)
                policy = self.policy_of(stage, index)
                if policy is None:
                    out = self._norms.conv(
                        block.conv2, block.bn2, self._norms.conv(block.conv1, block.bn1, shifted).relu_()
                    )
                else:
                    decided = decide(policy, shifted, num_frames=num_frames, attention=gating.attention)
                    gates.append(make_gates(decided.logits, gating))
                    out = self._kept_channels(block, shifted, gates[-1], soft=gating.soft)
                if block.shape.layout == "bottleneck":
                    out = self._norms.conv(block.conv3, block.bn3, out.relu_())
                x = out.add_(self._shortcut(block, x)).relu_()
        features = x.mean((-2, -1)).view(-1, num_frames, x.shape[1])
        return self.classify(features, gates, input_size=(frames.shape[-2], frames.shape[-1]))

    def _kept_channels(self, block: ResidualBlock, x: Tensor, gates: Gates, *, soft: bool) -> Tensor:
        """conv1, gates and conv2 of (n*t, c, h, w), with the kept channels only; what leaves bn2."""
        first, second = self._norms.fold(block.conv1, block.bn1), self._norms.fold(block.conv2, block.bn2)
        factors = (gates.mask * gates.soft if soft else gates.mask).flatten(0, 1)
        masks = gates.mask > 0
        if self.granularity == "clip":
            masks = masks.any(1, keepdim=True).expand_as(masks)
        distinct, group_of_row = torch.unique(masks.flatten(0, 1), dim=0, return_inverse=True)
        height, width = (size_after(side, block.shape.stride) for side in x.shape[-2:])
        out = x.new_empty(len(x), len(second.weight), height, width).to(memory_format=torch.channels_last)
        for group, mask in enumerate(distinct):
            rows = slice(None) if len(distinct) == 1 else (group_of_row == group).nonzero()[:, 0]
            channels = self._computed_channels(mask)
            if not len(channels):
                out[rows] = second.bias[:, None, None]
                continue
            inner = conv2d(
                x[rows].contiguous(memory_format=torch.channels_last),
                first.weight[channels],
                first.bias[channels],
                stride=block.conv1.stride,
                padding=block.conv1.padding,
            )
            inner = inner.relu_().mul_(factors[rows][:, channels, None, None])
            result = conv2d(
                inner,
                second.weight[:, channels],
                second.bias,
                stride=block.conv2.stride,
                padding=block.conv2.padding,
            )
            if len(distinct) == 1:
                return result
            out[rows] = result
        return out

    def _computed_channels(self, mask: Tensor) -> Tensor:
        """Indices of the kept channels and of as many dropped ones as the multiple asks for, ascending."""
        num_wanted = min(-(-int(mask.sum()) // self.channel_multiple) * self.channel_multiple, len(mask))
        return mask.to(torch.int8).argsort(descending=True, stable=True)[:num_wanted].sort().values

    def _shortcut(self, block: ResidualBlock, x: Tensor) -> Tensor:
        if block.downsample is None:
            return x
        conv, norm = block.downsample
        return self._norms.conv(cast(nn.Conv2d, conv), cast(nn.BatchNorm2d, norm), x)


def make_dynamic(model: nn.Module, *, granularity: Granularity = "frame", channel_multiple: int = 1) -> DynamicTaps:
    """The form that skips; see `DynamicTaps` for the choices."""
    if not isinstance(model, Taps):
        raise TypeError(f"expected a Taps model, got {type(model).__name__}")
    return DynamicTaps(model, granularity=granularity, channel_multiple=channel_multiple)
