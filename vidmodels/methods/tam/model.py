"""TANet: a 2D ResNet with a temporal adaptive module after the first convolution of every block."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout, pad

from vidmodels.backbones.resnet import DEPTHS, Layout, ResidualBlock, ResNet, Stem, load_imagenet
from vidmodels.layers.temporal_conv import temporal_conv
from vidmodels.types import Output

__all__ = ["Tanet", "TanetConfig", "TemporalAdaptiveModule", "build"]


@dataclass(frozen=True, kw_only=True)
class TanetConfig:
    """What varies in TANet. Defaults are what the published checkpoints were trained and are tested with.

    Numbers in brackets point to the traps in this folder's README.
    """

    num_frames: int = 8
    """(1) T; the modules' weights depend on it, so a model takes clips of this length only."""
    backbone: Literal["resnet18", "resnet50", "resnet101", "resnet152"] = "resnet50"
    """Kind of block: basic or bottleneck; and the depths unless given. All published models are resnet50."""
    depths: tuple[int, ...] | None = None
    """Blocks of each stage; None: the backbone's own."""
    widths: tuple[int, ...] = (64, 128, 256, 512)
    stem: Stem = "conv7_pool"
    temporal: Literal["adaptive", "none"] = "adaptive"
    """"none": TSN, the same network without the modules."""
    kernel_size: int = 3
    """Taps of the adaptive kernel and of the local branch's convolution."""
    expansion: int = 2
    """Hidden width of the global branch over T."""
    reduction: int = 4
    """Channels over the local branch's hidden ones."""
    dropout: float = 0.5
    """Before the classifier, in training."""
    partial_bn: bool = False
    """(4) Only the first batch norm trains; off in all published runs."""
    fast_linears: bool = True
    """(3) Linear layers learn at 5 times the rate (weights) and 10 times (biases); false, as in the published code's
    fine-tuning on a data set that the weights already know: 1 and 2 times."""

    def __post_init__(self) -> None:
        if len(self.widths) != len(self.block_depths) or not self.widths:
            raise ValueError(
                f"widths and depths need one number a stage, got widths {self.widths} and depths {self.block_depths}"
            )
        if min(*self.widths, *self.block_depths, self.num_frames, self.expansion, self.reduction) < 1:
            raise ValueError("num_frames, widths, depths, expansion and reduction must be at least 1")
        if self.kernel_size < 1 or self.kernel_size % 2 == 0:
            raise ValueError(f"kernel_size is odd, so that a frame is its middle; got {self.kernel_size}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout lies in [0, 1), got {self.dropout}")
        if self.temporal == "adaptive" and min(self.widths) < self.reduction:
            raise ValueError(f"reduction = {self.reduction} leaves no channel of a width in {self.widths}")

    @property
    def layout(self) -> Layout:
        """Kind of residual block."""
        return "basic" if self.backbone == "resnet18" else "bottleneck"

    @property
    def block_depths(self) -> tuple[int, ...]:
        """Blocks of each stage."""
        return self.depths if self.depths is not None else DEPTHS[self.backbone]


class TemporalAdaptiveModule(nn.Module):
    """Weighs the frames of each channel, then convolves them along time with a kernel made from the whole clip.

        x --+--------------------- * importance -- conv along time -- y      nothing is added to x: no shortcut
            |                          ^                 ^
            +-- mean over space --+-- local branch       |               importance (n, c, t) in (0, 1)
                                  +-- global branch -----+               kernel (n, c, k), sums to 1 over its taps

    Both branches see the clip before the importance is applied. The local one sees `kernel_size` frames of all
    channels, the global one all frames of one channel, with the same weights for every channel.

    Args:
        channels: c.
        num_frames: T.
        kernel_size: k, odd.
        expansion: hidden width of the global branch over T.
        reduction: c over the hidden channels of the local branch, rounded down.

    Source: TAM (Liu et al., ICCV 2021), section 3; `ops/temporal_module.py` of its code, where the branches are called
    L and G.
    """

    def __init__(
        self, channels: int, num_frames: int, *, kernel_size: int = 3, expansion: int = 2, reduction: int = 4
    ) -> None:
        super().__init__()
        self.num_frames = num_frames
        hidden, hidden_channels = expansion * num_frames, channels // reduction
        self.global_branch = nn.Sequential(
            nn.Linear(num_frames, hidden, bias=False),
            nn.BatchNorm1d(hidden),
            nn.ReLU(),
            nn.Linear(hidden, kernel_size, bias=False),
        )
        self.local_branch = nn.Sequential(
            nn.Conv1d(channels, hidden_channels, kernel_size, padding=kernel_size // 2, bias=False),
            nn.BatchNorm1d(hidden_channels),
            nn.ReLU(),
            nn.Conv1d(hidden_channels, channels, 1, bias=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(n*t, c, h, w) -> (n*t, c, h, w), clip by clip."""
        descriptor = self.describe(x)
        return self.aggregate(x, self.importance(descriptor), self.kernel(descriptor))

    def describe(self, x: Tensor) -> Tensor:
        """What the branches see: (n*t, c, h, w) -> (n, c, t).

        Raises:
            ValueError: the rows are not whole clips.
        """
        if x.shape[0] % self.num_frames:
            raise ValueError(f"{len(x)} frames are not whole clips of {self.num_frames}")
        return x.mean((-2, -1)).view(-1, self.num_frames, x.shape[1]).transpose(1, 2)

    def importance(self, descriptor: Tensor) -> Tensor:
        """Local branch: (n, c, t) -> (n, c, t) in (0, 1)."""
        return torch.sigmoid(self.local_branch(descriptor))

    def kernel(self, descriptor: Tensor) -> Tensor:
        """Global branch: (n, c, t) -> (n, c, k); tap 0 looks back, the last one ahead."""
        # One row a clip and channel; batch norm takes the statistics of all of them: (n, c, t) -> (n*c, t).
        weights: Tensor = self.global_branch(descriptor.flatten(0, 1)).softmax(-1)
        return weights.view(*descriptor.shape[:2], -1)

    def aggregate(self, x: Tensor, importance: Tensor, kernel: Tensor) -> Tensor:
        """Weigh the frames of x (n*t, c, h, w), then convolve them along time, with zeros beyond both ends."""
        num_taps = kernel.shape[-1]
        # The weight of the frame that a tap reads goes into the tap: frames are read once, and never reordered.
        windows = pad(importance, (num_taps // 2, num_taps // 2)).unfold(-1, num_taps, 1)  # (n, c, t, k)
        taps = (windows * kernel[:, :, None]).transpose(1, 2)
        return temporal_conv(x.view(-1, self.num_frames, *x.shape[1:]), taps).flatten(0, 1)


class Tanet(nn.Module):
    """`forward(frames (n, t, 3, h, w)) -> Output`: logits (n, k), the mean of the frames' logits.

    `aux` holds `frame_logits` (n, t, k).
    """

    def __init__(self, config: TanetConfig, num_classes: int) -> None:
        super().__init__()
        self.config = config
        self.num_classes = num_classes
        self.backbone = ResNet(
            layout=config.layout,
            depths=config.block_depths,
            widths=config.widths,
            stem=config.stem,
            temporal=self._adaptive_module if config.temporal == "adaptive" else None,
        )
        self.head = nn.Linear(self.backbone.out_channels, num_classes)
        nn.init.normal_(self.head.weight, std=0.001)
        nn.init.zeros_(self.head.bias)
        Tanet.train(self)  # not that of the form for evaluation, which never trains

    def _adaptive_module(self, channels: int) -> TemporalAdaptiveModule:
        config = self.config
        return TemporalAdaptiveModule(
            channels,
            config.num_frames,
            kernel_size=config.kernel_size,
            expansion=config.expansion,
            reduction=config.reduction,
        )

    @property
    def blocks(self) -> dict[str, ResidualBlock]:
        """All residual blocks by name (`layer1.0`, ...), in network order."""
        return {
            f"{stage}.{index}": block
            for stage, blocks in self.backbone.stages.items()
            for index, block in enumerate(blocks)
        }

    def load_imagenet(self, path: Path | None = None) -> None:
        """Start from torchvision's ImageNet weights (a local copy when `path` is given)."""
        load_imagenet(self.backbone, path)

    def initial_weights(self, state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
        """Weights to start from: those given, with an own classifier where theirs is for other classes.

        A plain ResNet or TSN leaves the modules as they were made, too.

        Returns:
            The whole state dict, and the names that start afresh.

        Source: `--tune_from` of the published code, which decides by the data set's name in the path.
        """
        own = self.state_dict()
        has_modules = any(".temporal." in name for name in state)
        fresh = [
            name
            for name, tensor in own.items()
            if (name.startswith("head.") and (name not in state or state[name].shape != tensor.shape))
            or (".temporal." in name and not has_modules)
        ]
        return {**state, **{name: own[name] for name in fresh}}, fresh

    def train(self, mode: bool = True) -> Self:
        """As for any module; with `partial_bn` the backbone's batch norms but the first stay as they are.

        Those of the modules keep training on batch statistics, as in the published code.
        """
        super().train(mode)
        if mode and self.config.partial_bn:
            for norm in self.frozen_norms:
                norm.eval()
                norm.requires_grad_(False)
        return self

    @property
    def frozen_norms(self) -> list[nn.BatchNorm2d]:
        """Those that `partial_bn` keeps from training: every 2D one of the backbone but the first."""
        norms = [module for module in self.backbone.modules() if isinstance(module, nn.BatchNorm2d)]
        return [norm for norm in norms if norm is not self.backbone.bn1]

    def forward(self, frames: Tensor) -> Output:
        """Classify clips.

        Raises:
            ValueError: clips of another length than the model was built for.
        """
        if frames.shape[1] != self.config.num_frames:
            raise ValueError(f"this TANet takes clips of {self.config.num_frames} frames, got {frames.shape[1]}")
        return self.classify(self.last_map(frames.flatten(0, 1)).mean((-2, -1)))

    def last_map(self, frames: Tensor) -> Tensor:
        """(n*t, 3, h, w) -> (n*t, d, h', w')."""
        return self.backbone(frames)  # type: ignore[no-any-return]

    def classify(self, features: Tensor) -> Output:
        """Mean over time of the frames' logits. `features`: (n*t, d), pooled."""
        frame_logits = self.head(dropout(features, self.config.dropout, self.training))
        frame_logits = frame_logits.view(-1, self.config.num_frames, self.num_classes)
        return Output(logits=frame_logits.mean(1), aux={"frame_logits": frame_logits})


def build(config: TanetConfig, num_classes: int) -> Tanet:
    """The trainable form."""
    return Tanet(config, num_classes)
