"""What RGTP and its baselines cost on ViViT, in closed form, as the published code counts.

It counts multiply-accumulates of linear layers and of matrix products - attention, rollout, matches and local shifts -
and elements of biases and of residual and position sums; of Eventful Transformers also those of gates and
accumulators. The tubelets' convolution, norms, softmax, GELU, sorting and gathering count nothing. The counts are those
of the published order of work, whatever is really computed: ours does less (see the method's page).
"""

from dataclasses import dataclass
from math import ceil

from torch import nn

from vidmodels.methods.rgtp.rollout import pattern_patches, sampling_stride
from vidmodels.methods.rgtp.training import rgtp_model
from vidmodels.methods.rgtp.vivit import RgtpVivitConfig
from vidmodels.types import Output

__all__ = ["ClipCost", "clip_cost", "num_kept_patches", "step_cost", "summarise"]


@dataclass(frozen=True, kw_only=True)
class ClipCost:
    """Counts of one clip, by the keys of the published code."""

    linear: int
    """Multiply-accumulates of linear layers."""
    matmul: int
    """Multiply-accumulates of matrix products, those of the rollout among them."""
    bias: int
    """Elements that a bias is added to."""
    add: int
    """Elements of residual sums and of the position encoding's."""
    gate: int = 0
    """Elements that gates compare ("eventful")."""
    accumulator: int = 0
    """Elements that are added to kept products ("eventful")."""
    rollout: int = 0
    """Part of `matmul`: running products of the attention matrices."""
    convolution: int = 0
    """Multiply-accumulates of the tubelets; not in `published`."""

    @property
    def published(self) -> int:
        """All that the published code sums up."""
        return self.linear + self.matmul + self.bias + self.add + self.gate + self.accumulator

    def __add__(self, other: "ClipCost") -> "ClipCost":
        return ClipCost(**{name: getattr(self, name) + getattr(other, name) for name in self.__dataclass_fields__})


def clip_cost(config: RgtpVivitConfig, num_classes: int) -> ClipCost:
    """Cost of one clip, which does not depend on what it shows. Source: specification section 4."""
    shape = config.shape
    time, rows, columns = shape.grid(config.num_frames, config.image_size, config.image_size)
    patches, d = rows * columns, shape.width
    convolution = time * patches * 3 * shape.tubelet * shape.patch_size**2 * d
    total = ClipCost(linear=0, matmul=0, bias=0, add=0, convolution=convolution)
    for step in range(time):
        total += step_cost(config, step, (rows, columns))
    total += _blocks(config, time + 1, config.temporal_depth) + _sum(time + 1, d)
    for classes in (num_classes, config.num_noun_classes):
        total += ClipCost(linear=d * classes, matmul=0, bias=classes, add=0)
    return total


def step_cost(config: RgtpVivitConfig, step: int, grid: tuple[int, int], *, with_positions: bool = True) -> ClipCost:
    """Cost of one time step of the spatial sub-model.

    Args:
        config: of the model.
        step: counted from 0.
        grid: rows and columns of patches.
        with_positions: the sum of tokens and positions too.
    """
    d, depth, patches = config.shape.width, config.shape.depth, grid[0] * grid[1]
    tokens = patches + 1
    before = _sum(tokens if with_positions else 0, d)
    if config.mode == "eventful" and step:
        return before + _eventful_blocks(config, tokens)
    left = num_kept_patches(config, step, grid) + 1
    cost = before + _attention(config, tokens) + _mlp(config, left) + _blocks(config, left, depth - 1)
    if config.mode != "rollout":
        return cost
    rollout = tokens**3 + (depth - 1) * left**3
    match = offset = 0
    if step:
        match = (tokens - left) * (left - 1) * (d // config.shape.num_heads)
        if config.offset_radius and not _is_reset(config, step):
            offset = patches * (2 * config.offset_radius + 1) ** 2 * d
    return cost + ClipCost(linear=0, matmul=rollout + match + offset, bias=0, add=0, rollout=rollout)


def num_kept_patches(config: RgtpVivitConfig, step: int, grid: tuple[int, int]) -> int:
    """Patches that are left after the first block in a time step, counted from 0."""
    patches = grid[0] * grid[1]
    if config.mode != "rollout" or step == 0:
        return patches
    if _is_reset(config, step):
        return pattern_patches(config.reset_pattern, grid).kept.shape[1]
    foreground = round(config.keep_ratio * patches)
    return _sampled(foreground, config.foreground_ratio) + _sampled(patches - foreground, config.background_ratio)


def summarise(model: nn.Module, output: Output) -> dict[str, float]:
    """Figures of an evaluated batch, each a mean per clip, equal for all clips.

    `gmacs_published`: as the published code counts. `tokens_kept`: of all patches of all time steps, the share that is
    left after the first block.
    """
    own = rgtp_model(model)
    config, grid, num_steps = own.config, own.backbone.grid, own.backbone.num_steps
    kept = sum(num_kept_patches(config, step, grid) for step in range(num_steps))
    return {
        "gmacs_published": clip_cost(config, output.logits.shape[-1]).published / 1e9,
        "tokens_kept": kept / (num_steps * grid[0] * grid[1]),
    }


def _is_reset(config: RgtpVivitConfig, step: int) -> bool:
    return bool(config.reset_interval) and step % config.reset_interval == 0


def _sampled(length: int, ratio: float) -> int:
    """Of a list of this length, every so many-th element."""
    if ratio in (0, 1):
        return length if ratio else 0
    return ceil(length / sampling_stride(ratio))


def _blocks(config: RgtpVivitConfig, tokens: int, depth: int) -> ClipCost:
    total = ClipCost(linear=0, matmul=0, bias=0, add=0)
    for _ in range(depth):
        total += _attention(config, tokens) + _mlp(config, tokens)
    return total


def _attention(config: RgtpVivitConfig, tokens: int) -> ClipCost:
    d = config.shape.width
    return ClipCost(linear=4 * tokens * d**2, matmul=2 * tokens**2 * d, bias=4 * tokens * d, add=tokens * d)


def _mlp(config: RgtpVivitConfig, tokens: int) -> ClipCost:
    d, ratio = config.shape.width, config.shape.mlp_ratio
    return ClipCost(linear=2 * ratio * tokens * d**2, matmul=0, bias=(ratio + 1) * tokens * d, add=tokens * d)


def _sum(tokens: int, width: int) -> ClipCost:
    return ClipCost(linear=0, matmul=0, bias=0, add=tokens * width)


def _eventful_blocks(config: RgtpVivitConfig, tokens: int) -> ClipCost:
    """All blocks of a later time step: k tokens are let through each gate; sums and gates see all of them."""
    d, heads, ratio = config.shape.width, config.shape.num_heads, config.shape.mlp_ratio
    k = min(config.top_k, tokens)
    return ClipCost(
        linear=config.shape.depth * (4 + 2 * ratio) * k * d**2,
        # k rows and k columns of the scores, and two products with k inner elements
        matmul=config.shape.depth * 4 * k * tokens * d,
        bias=config.shape.depth * (5 + ratio) * k * d,
        add=config.shape.depth * 2 * tokens * d,
        gate=config.shape.depth * (4 * tokens * d + heads * tokens**2),
        accumulator=config.shape.depth * (k + 2 * tokens) * d,
    )
