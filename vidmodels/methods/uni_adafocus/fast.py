"""Both networks as evaluation runs them: norms folded, channels-last, and on a CPU in parts that its cache holds.

Same parameters, same names, same answers up to rounding. A batch of whole frames makes activations of hundreds of
megabytes, which a CPU writes to memory and reads back after every layer; a few frames at a time stay in its cache.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.mobilenetv2 import InvertedResidual

from vidmodels.backbones.folded_resnet import run_folded
from vidmodels.backbones.mobilenet_v2 import MobileNetV2, is_shifted
from vidmodels.layers.folded import Activation, FoldedNorms
from vidmodels.layers.temporal_shift import temporal_shift
from vidmodels.methods.uni_adafocus.model import FocusNetwork

__all__ = ["GLANCE_PIXELS", "FastFocusNetwork", "FastMobileNetV2", "frames_at_once", "join"]

GLANCE_PIXELS = 2**19
"""Pixels of frames that go through MobileNetV2 at once on a CPU: 10 frames of 224 x 224, 32 of 64 x 64. Fewer
keep threads waiting at every layer (2 frames take 1.1 times the time), of more the maps leave the cache."""
FOCUS_PIXELS = 2**18
"""Of patches, through the ResNet: 16 of 128 x 128. Its weights are read again for each part."""
MAX_FRAMES = 32
"""Small ones are no further joined."""


def frames_at_once(frames: Tensor, *, num_pixels: int, num_joint: int) -> int:
    """How many of the frames (n, c, h, w) go through a network together.

    Args:
        frames: on a CPU; on other devices all of them.
        num_pixels: in all, as far as that is possible.
        num_joint: frames that belong together, a clip's where it is shifted along time.
    """
    if frames.device.type != "cpu":
        return max(1, len(frames))
    num_frames = min(MAX_FRAMES, num_pixels // (frames.shape[-2] * frames.shape[-1]))
    return max(1, num_frames // num_joint) * num_joint


class FastMobileNetV2(MobileNetV2):
    """For evaluation; arguments of `MobileNetV2`. Maps lie channels-last."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self._norms = FoldedNorms()

    def forward(self, frames: Tensor, *, num_frames: int = 1) -> Tensor:
        """(n*t, 3, h, w) -> (n*t, out_channels, h / stride, w / stride)."""
        num_joint = 1 if self.shift_div is None else num_frames
        parts = torch.split(frames, frames_at_once(frames, num_pixels=GLANCE_PIXELS, num_joint=num_joint))
        return join([self._last_map(part, num_frames) for part in parts])

    def _last_map(self, frames: Tensor, num_frames: int) -> Tensor:
        x = frames.contiguous(memory_format=torch.channels_last)
        for block in self.features:
            if not isinstance(block, InvertedResidual):
                x = self._layer(block, x)
                continue
            inner = x
            if self.shift_div is not None and is_shifted(block):
                inner = temporal_shift(x, num_frames=num_frames, mode="offline", shift_div=self.shift_div)
            *layers, conv, norm = block.conv
            for layer in layers:
                inner = self._layer(layer, inner)
            inner = self._conv(conv, norm, inner)
            x = inner.add_(x) if block.use_res_connect else inner
        return x

    def _layer(self, layer: nn.Module, x: Tensor) -> Tensor:
        """Convolution, norm, ReLU6."""
        conv, norm, _ = layer.children()
        return self._conv(conv, norm, x, then="relu6")

    def _conv(self, conv: nn.Module, norm: nn.Module, x: Tensor, *, then: Activation = "") -> Tensor:
        assert isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d)  # noqa: S101, PT018
        return self._norms.conv(conv, norm, x, then=then)


class FastFocusNetwork(FocusNetwork):
    """For evaluation; argument of `FocusNetwork`."""

    def __init__(self, *settings: Any) -> None:
        super().__init__(*settings)
        self._norms = FoldedNorms()

    def forward(self, patches: Tensor, *, num_frames: int = 1) -> Tensor:
        """(n*t, 3, p, p) -> features (n*t, out_channels), mean over the last map, in float32."""
        num_joint = 1 if self.shift_div is None else num_frames
        parts = torch.split(patches, frames_at_once(patches, num_pixels=FOCUS_PIXELS, num_joint=num_joint))
        return join([self._features(part, num_frames) for part in parts])

    def _features(self, patches: Tensor, num_frames: int) -> Tensor:
        def shift(x: Tensor) -> Tensor:
            assert self.shift_div is not None  # noqa: S101
            return temporal_shift(x, num_frames=num_frames, mode="offline", shift_div=self.shift_div)

        before_block = None if self.shift_div is None else shift
        return run_folded(self.backbone, patches, self._norms, before_block=before_block).float().mean((-2, -1))


def join(parts: list[Tensor]) -> Tensor:
    """All rows; no copy of a single part."""
    return parts[0] if len(parts) == 1 else torch.cat(parts)
