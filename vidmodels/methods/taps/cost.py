"""What TAPS costs, from its masks: the published accounting, and everything that an exact skipper computes.

All counts are multiply-accumulates (MACs). A mask says it per frame: a channel that one frame keeps and another drops
costs only in the first. Computing the union over a clip's frames costs more; `dynamic.py` says which it does.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from vidmodels.backbones.resnet import BlockShape, Stem, block_shapes, size_after
from vidmodels.methods.taps.model import Taps, TapsConfig
from vidmodels.types import Output

__all__ = [
    "BlockMacs",
    "NetworkMacs",
    "block_macs",
    "density_ratio",
    "dynamic_macs",
    "gmacs_per_frame",
    "network_macs",
    "stem_macs",
    "summarise",
    "upper_bound_macs",
]

SizeHW = tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class BlockMacs:
    """MACs of one frame in one block, each with all channels kept."""

    num_channels: int
    """w, gated channels."""
    conv1: int
    conv2: int
    conv3: int
    """0 in basic blocks."""
    downsample: int
    policy_mlp: int
    """The two linears 2c -> D -> w, per frame; 0 without pruning."""
    policy_attention: int
    """Everything else in the policy, per CLIP: projections, scores, weighted sums, feed-forward. The published
    accounting leaves it out."""

    @property
    def convs(self) -> int:
        """conv1 + conv2 + conv3."""
        return self.conv1 + self.conv2 + self.conv3


@dataclass(frozen=True, kw_only=True)
class NetworkMacs:
    """MACs of the parts of a network for one input size."""

    blocks: tuple[BlockMacs, ...]
    stem: int
    """Per frame."""
    classifier: int
    """As published: once per clip, with its bias."""
    classifier_counted: int
    """As it runs: per frame, without bias."""

    def static(self, num_frames: int) -> list[int]:
        """Per block and clip: conv1-3 with all channels + downsample + policy MLP."""
        return [num_frames * (block.convs + block.downsample + block.policy_mlp) for block in self.blocks]


def block_macs(
    shape: BlockShape,
    *,
    size: SizeHW,
    hidden_dim: int,
    num_frames: int,
    feed_forward: bool = False,
    pruning: bool = True,
) -> BlockMacs:
    """MACs of one block whose input grid is `size`. Source: specification section 4."""
    c, w, out = shape.in_channels, shape.width, shape.out_channels
    area = size[0] * size[1]
    small = size_after(size[0], shape.stride) * size_after(size[1], shape.stride)
    if shape.layout == "bottleneck":
        conv1, conv2, conv3 = w * area * c, w * small * 9 * w, out * small * w
    else:
        conv1, conv2, conv3 = w * small * 9 * c, w * small * 9 * w, 0
    # Two attentions: in_proj 3c x c and out_proj c x c for each frame, scores and weighted sums t x t x c each.
    attention = 2 * (4 * c * c * num_frames + 2 * c * num_frames**2)
    if feed_forward:
        attention += 8 * c * c * num_frames
    return BlockMacs(
        num_channels=w,
        conv1=conv1,
        conv2=conv2,
        conv3=conv3,
        downsample=out * small * c if shape.has_downsample else 0,
        policy_mlp=2 * c * hidden_dim + hidden_dim * w if pruning else 0,
        policy_attention=attention if pruning else 0,
    )


def network_macs(config: TapsConfig, num_classes: int, *, size: SizeHW, num_frames: int) -> NetworkMacs:
    """MACs of a network for inputs of this [height, width]."""
    shrinks = 2 if config.stem == "conv7_pool" else 0
    grid = size
    for _ in range(shrinks):
        grid = (size_after(grid[0], 2), size_after(grid[1], 2))
    shapes = block_shapes(layout=config.layout, depths=config.block_depths, widths=config.widths)
    blocks = []
    for shape in [shape for stage in shapes.values() for shape in stage]:
        blocks.append(
            block_macs(
                shape,
                size=grid,
                hidden_dim=config.hidden_dim,
                num_frames=num_frames,
                feed_forward=config.feed_forward,
                pruning=config.pruning,
            )
        )
        grid = (size_after(grid[0], shape.stride), size_after(grid[1], shape.stride))
    features = shape.out_channels
    return NetworkMacs(
        blocks=tuple(blocks),
        stem=stem_macs(config.widths[0], config.stem, size=size),
        classifier=features * num_classes + num_classes,
        classifier_counted=features * num_classes,
    )


def stem_macs(channels: int, stem: Stem, *, size: SizeHW) -> int:
    """MACs of the stem's convolution for one frame."""
    kernel, stride = (7, 2) if stem == "conv7_pool" else (3, 1)
    return 3 * channels * kernel**2 * size_after(size[0], stride) * size_after(size[1], stride)


def dynamic_macs(
    blocks: Sequence[BlockMacs], masks: Sequence[Tensor], *, gradient: Literal["conv1", "all"] = "all"
) -> Tensor:
    """MACs of conv1 + conv2 + conv3 with the kept channels only: (n, t, blocks), float64.

    conv1 computes the kept channels, conv2 reads them, conv3 is always full.

    Args:
        blocks: of the actual input size.
        masks: (n, t, w) of each block, 0 or 1.
        gradient: whether the term of conv2 has a gradient too; the published code's has none (pitfall 4).
    """
    columns = []
    for block, mask in zip(blocks, masks, strict=True):
        kept = mask.double().sum(-1)
        kept_by_conv2 = kept.detach() if gradient == "conv1" else kept
        per_channel1, per_channel2 = block.conv1 // block.num_channels, block.conv2 // block.num_channels
        columns.append(kept * per_channel1 + kept_by_conv2 * per_channel2 + block.conv3)
    return torch.stack(columns, dim=-1)


def upper_bound_macs(blocks: Sequence[BlockMacs], masks: Sequence[Tensor]) -> Tensor:
    """The published "upper bound", (n, t, blocks): conv1 full, conv2 pruned, conv3 full."""
    columns = [
        mask.double().sum(-1) * (block.conv2 // block.num_channels) + block.conv1 + block.conv3
        for block, mask in zip(blocks, masks, strict=True)
    ]
    return torch.stack(columns, dim=-1)


def density_ratio(dynamic: Tensor, static: NetworkMacs) -> Tensor:
    """r, what the sparsity loss pulls to its target.

    The numerator has conv1-3, stem and classifier, the denominator downsamples and policy MLPs too (pitfall 5): with
    everything open r is 0.905 for the published ResNet-50.

    Args:
        dynamic: (n, t, blocks) from `dynamic_macs`.
        static: of the size that `static_macs_image_size` says, whatever the input (pitfall 6).

    Source: specification section 3.1.
    """
    num_frames = dynamic.shape[1]
    rest = num_frames * static.stem + static.classifier
    return (dynamic.sum((1, 2)).mean() + rest) / (sum(static.static(num_frames)) + rest)


def gmacs_per_frame(per_row: Tensor, static: NetworkMacs) -> Tensor:
    """The published cost of a frame in 1e9 MACs, without the profiler's constant (0.045138 for the published network).

    Mean over clips and frames of conv1-3, plus stem, downsamples and policy MLPs. Left out: attention, classifier.

    Args:
        per_row: (n, t, blocks), dynamic MACs or their upper bound.
        static: for stem, downsample and policy.
    """
    constant = static.stem + sum(block.downsample + block.policy_mlp for block in static.blocks)
    return (per_row.sum(-1).mean() + constant) / 1e9


def summarise(model: nn.Module, output: Output) -> dict[str, float]:
    """Figures of an evaluated batch, each a mean per clip, from the masks of every frame.

    `gmacs_masked`: t times the published cost of a frame without the profiler's constant: conv1-3 with the kept
    channels, stem, downsamples, policy MLPs. `gmacs_counted`: what FlopCounterMode counts when exactly the kept
    channels of every frame are computed: the same, the policies' attention and the classifier. `keep_fraction`: kept
    channels, all blocks and frames together.
    """
    if not isinstance(model, Taps):
        raise TypeError(f"expected a Taps model, got {type(model).__name__}")
    height, width = (int(side) for side in output.aux["input_size"])
    num_frames = output.aux["frame_logits"].shape[1]
    macs = network_macs(model.config, model.num_classes, size=(height, width), num_frames=num_frames)
    rows = output.aux["frame_logits"]
    if "masks" in output.aux:
        masks = model.split_gates(output.aux["masks"].detach())
        keep_fraction = float(output.aux["masks"].detach().double().mean())
    else:
        masks = [rows.new_ones(*rows.shape[:2], block.num_channels) for block in macs.blocks]
        keep_fraction = 1.0
    masked = num_frames * float(gmacs_per_frame(dynamic_macs(macs.blocks, masks), macs))
    extra = sum(block.policy_attention for block in macs.blocks) + num_frames * macs.classifier_counted
    return {"gmacs_masked": masked, "gmacs_counted": masked + extra / 1e9, "keep_fraction": keep_fraction}
