"""What RGTP on ViTDet costs for a frame, in closed form: as the published code counts it, and what really runs.

The published code counts the backbone alone: multiply-accumulates of linear layers, of matrix products (those of
attention, rollout and shift) and of relative positions, and elements of biases and sums. The patch embedding, norms,
softmax, GELU, the pyramid and all heads count nothing, and relative positions and windows count whole in pruned frames,
too. What really runs are the multiply-accumulates of the whole detector, as `vidmodels.cost` counts them.
"""

from dataclasses import dataclass

from torch import nn

from vidmodels.methods.rgtp.vitdet import Detector, VitDetConfig
from vidmodels.methods.rgtp.vitdet_stream import CELL

__all__ = ["FrameCost", "backbone_cost", "detector_macs", "heads_macs", "mean_over_frames", "summarise"]

KEY_FRAME_SHARE = 0.12655
"""Of the frames of ImageNet VID's validation sequences, with a key frame at the start of each and at every eighth.
With this one number all twelve published figures come out to the printed digit."""
PUBLISHED_INTERVAL = 8


@dataclass(frozen=True, kw_only=True)
class FrameCost:
    """Counts of the backbone in one frame, by the kinds of the published code."""

    linear: int
    """Multiply-accumulates of linear layers."""
    matmul: int
    """Of matrix products: attention, rollout and shift."""
    einsum: int
    """Of relative positions."""
    bias: int
    """Elements that a bias is added to."""
    add: int
    """Elements of residual sums, of the position encoding's and of the relative positions'."""

    @property
    def published(self) -> int:
        """All that the published code sums up."""
        return self.linear + self.matmul + self.einsum + self.bias + self.add


def backbone_cost(config: VitDetConfig, *, is_key: bool) -> FrameCost:
    """The backbone in a key frame, or in another one, in the published convention. Source: specification section 4."""
    shape, n = config.shape, config.grid**2
    d, side = shape.width, shape.window_size
    padded, num_global = _padded_tokens(config), len(shape.global_blocks)
    num_windowed, later = shape.depth - num_global, shape.depth - 1
    prunes = config.keep_ratio is not None
    k = n if is_key else config.num_kept
    mlp = 2 * shape.mlp_ratio
    rollout = num_global * ((n // CELL**2) ** 3 if config.cell else n**2) if prunes else 0
    shift = 9 * n * d if prunes and not is_key else 0
    return FrameCost(
        linear=d**2 * (4 * n + mlp * k + later * (4 + mlp) * k),
        matmul=2 * d * (num_windowed * padded * side**2 + num_global * k * n) + rollout + shift,
        einsum=2 * d * (num_windowed * padded * side + num_global * n * config.grid),
        bias=d * (4 * n + (1 + shape.mlp_ratio) * k + later * (5 + shape.mlp_ratio) * k),
        add=d * (2 * n + k + 2 * later * k)
        + 2 * shape.num_heads * (num_windowed * padded * side**2 + num_global * n**2),
    )


def detector_macs(config: VitDetConfig, num_classes: int, *, is_key: bool) -> int:
    """Multiply-accumulates that run in a key frame, or in another one: the whole detector.

    In the other frames it is the most that can be: with kept tokens in every window, and all proposals found.
    """
    shape, n, g = config.shape, config.grid**2, config.grid
    d, side = shape.width, shape.window_size
    num_global, prunes = len(shape.global_blocks), config.keep_ratio is not None
    num_windowed, mlp = shape.depth - num_global, 2 * shape.mlp_ratio
    total = n * 3 * shape.patch_size**2 * d + heads_macs(config, num_classes)
    if prunes:
        total += num_global * (n // CELL**2 if config.cell else n) ** 2  # the rollout, as vectors
    if is_key or not prunes:
        padded = _padded_tokens(config)
        windowed, over_all = padded * (2 * side**2 + 2 * side), n * (2 * n + 2 * g)
        return total + shape.depth * n * (4 + mlp) * d**2 + d * (num_windowed * windowed + num_global * over_all)
    k = config.num_kept
    first = d**2 * (2 * n + (2 + mlp) * k)
    windowed, over_all = k * (2 * side**2 + 2 * side), k * (2 * n + 2 * g)
    shift = (3 * g - 2) * g**2 * d  # rows against rows, of which a band is read
    later = (shape.depth - 1) * k * (4 + mlp) * d**2
    return total + first + later + shift + d * (num_windowed * windowed + num_global * over_all)


def heads_macs(config: VitDetConfig, num_classes: int) -> int:
    """Pyramid, region proposals and box heads of a frame in which all proposals are found."""
    n, d, c, g = config.grid**2, config.shape.width, config.channels, config.grid
    conv = 9 * c**2
    p2 = 4 * n * d * (d // 2) + 16 * n * (d // 2) * (d // 4) + 16 * n * ((d // 4) * c + conv)
    p3 = 4 * n * d * (d // 2) + 4 * n * ((d // 2) * c + conv)
    p4 = n * (d * c + conv)
    p5 = (g // 2) ** 2 * (d * c + conv)
    sides = (4 * g, 2 * g, g, g // 2, (g // 2 + 1) // 2)
    proposals = sum(side**2 for side in sides) * (2 * conv + 15 * c)
    hidden, bins, stages = 1024, 7**2, 3 if config.cascade else 1
    predicted = num_classes + 1 + (4 if config.cascade else 4 * num_classes)
    box = 4 * bins * conv + bins * c * hidden + hidden * predicted
    return p2 + p3 + p4 + p5 + proposals + stages * config.proposals.num_proposals * box


def mean_over_frames(config: VitDetConfig, key: float, other: float) -> float:
    """The mean of a figure over the frames of ImageNet VID's validation sequences."""
    if config.keep_ratio is None:
        return key
    share = KEY_FRAME_SHARE if config.reset_interval == PUBLISHED_INTERVAL else 1 / config.reset_interval
    return share * key + (1 - share) * other


def summarise(model: nn.Module, _: object) -> dict[str, float]:
    """Figures of a mean frame, which depend on the settings only, in GMACs.

    `gmacs_published`: the backbone in the published convention. `gmacs_detector`: what runs of the whole detector at
    most; `gmacs_heads`: the part of it after the backbone, which no token is dropped from.
    """
    if not isinstance(model, Detector):
        raise TypeError(f"expected a Detector, got {type(model).__name__}")
    config, classes = model.config, model.num_classes
    published = [backbone_cost(config, is_key=is_key).published for is_key in (True, False)]
    runs = [detector_macs(config, classes, is_key=is_key) for is_key in (True, False)]
    return {
        "gmacs_published": mean_over_frames(config, *published) / 1e9,
        "gmacs_detector": mean_over_frames(config, *runs) / 1e9,
        "gmacs_heads": heads_macs(config, classes) / 1e9,
    }


def _padded_tokens(config: VitDetConfig) -> int:
    """Of the grid filled up to whole windows."""
    side = config.shape.window_size
    return (-(-config.grid // side) * side) ** 2
