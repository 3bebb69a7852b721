"""What STA costs, in closed form: all multiply-accumulates that run, and the count of the published code.

The published code counts with fvcore: multiply-adds of convolutions, linears and matrix products, the pruning steps'
included, and 5 for each element that a layer norm reads; softmax, GELU, sums, sorting and gathering count nothing.
"""

from dataclasses import dataclass

from torch import nn

from vidmodels.methods.sta.model import Sta, StaConfig
from vidmodels.types import Output

__all__ = ["ClipCost", "clip_cost", "summarise"]

NORM_FLOPS = 5
"""fvcore's count for an element of a layer norm."""


@dataclass(frozen=True, kw_only=True)
class ClipCost:
    """Of one clip."""

    macs: int
    """Multiply-accumulates: what FlopCounterMode counts, halved."""
    published: int
    """The same and the layer norms: fvcore's count."""
    num_tokens: tuple[int, ...]
    """At the entry of each block, and at the end."""


def clip_cost(config: StaConfig, num_classes: int) -> ClipCost:
    """Cost of one clip, which does not depend on what the clip shows. Source: specification section 4."""
    shape, r = config.vit, config.prune_number
    d, head_width = shape.width, shape.width // shape.num_heads
    time, rows, columns = shape.grid(config.num_frames, config.image_size, config.image_size)
    tokens = time * rows * columns
    macs = tokens * (3 * shape.tubelet * shape.patch_size**2) * d + d * num_classes
    norms, counts = d, [tokens]
    after = {stage.after_block: stage for stage in config.stages}
    for block in range(shape.depth):
        macs += (4 + 2 * shape.mlp_ratio) * tokens * d**2 + 2 * tokens**2 * d
        norms += 2 * tokens * d
        if stage := after.get(block):
            size, others = tokens // stage.num_groups, stage.num_groups - 2
            similarities = (size - size // 2) * (size // 2) + size**2 + others * size * (size - r)
            macs += similarities * head_width + others * size * (size - r)
            tokens -= stage.num_groups * r
        counts.append(tokens)
    return ClipCost(macs=macs, published=macs + NORM_FLOPS * norms, num_tokens=tuple(counts))


def summarise(model: nn.Module, output: Output) -> dict[str, float]:
    """Figures of an evaluated batch, each a mean per clip, equal for all clips.

    `gmacs_published`: as the published code counts. `tokens_kept`: of all tokens, the share that is averaged at the
    end.
    """
    if not isinstance(model, Sta):
        raise TypeError(f"expected a Sta model, got {type(model).__name__}")
    cost = clip_cost(model.config, output.logits.shape[-1])
    return {"gmacs_published": cost.published / 1e9, "tokens_kept": cost.num_tokens[-1] / cost.num_tokens[0]}
