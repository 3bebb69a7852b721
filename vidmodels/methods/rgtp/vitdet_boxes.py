"""The box head of a stream, run only for proposals of which something has changed since the frame before.

What the head says of a proposal depends on its corners and on the cells of its level that it is pooled from. Where the
tokens around did not change, neither did these cells nor, mostly, the proposals: such are found again, to the last bit,
and keep their logits and deltas.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import max_pool2d, pad

from vidmodels.backbones.detection import BoxHeadOutput, BoxHeads, levels_of_boxes

__all__ = ["BoxMemory", "run_boxes"]

STRIDES = (4, 8, 16, 32)


@dataclass(frozen=True, kw_only=True)
class BoxMemory:
    """What the box head said of the last frame's proposals."""

    proposals: Tensor
    """(r, 4)."""
    out: BoxHeadOutput


def run_boxes(
    heads: BoxHeads,
    levels: Sequence[Tensor],
    proposals: Tensor,
    *,
    before: BoxMemory | None,
    changed: Tensor | None,
    grid: int,
) -> tuple[BoxHeadOutput, BoxMemory]:
    """What the head says of one frame's proposals, and what the next frame may keep of it.

    Args:
        heads: of the detector.
        levels: p2 ... p6 of the frame.
        proposals: (r, 4).
        before: of the last frame; None: nothing is known.
        changed: (K,) tokens that differ from the last frame's; None: all.
        grid: tokens along a side.
    """
    if before is None or changed is None or not len(proposals) or not len(before.proposals):
        out = heads(levels, [proposals])
    else:
        same = (proposals[:, None] == before.proposals).all(-1)
        is_known = same.any(1) & ~_touched(proposals, changed, grid)
        row = same.float().argmax(1)
        logits, deltas = before.out.logits[row], before.out.deltas[row]
        new = (~is_known).nonzero(as_tuple=True)[0]
        if len(new):
            told = heads(levels, [proposals[new]])
            logits, deltas = logits.index_copy(0, new, told.logits), deltas.index_copy(0, new, told.deltas)
        out = BoxHeadOutput(logits=logits, deltas=deltas)
    return out, BoxMemory(proposals=proposals, out=out)


def _touched(boxes: Tensor, changed: Tensor, grid: int) -> Tensor:
    """(r,) whether a box is pooled from a cell that depends on a changed token."""
    mask = torch.zeros(grid * grid, device=changed.device)
    mask[changed] = 1.0
    tokens = mask.view(1, grid, grid)
    every_level = (
        tokens.repeat_interleave(4, 1).repeat_interleave(4, 2),
        tokens.repeat_interleave(2, 1).repeat_interleave(2, 2),
        tokens,
        max_pool2d(tokens, 2),
    )
    number = levels_of_boxes(boxes, len(STRIDES))
    touched = torch.zeros(len(boxes), dtype=torch.bool, device=boxes.device)
    for index, (cells, stride) in enumerate(zip(every_level, STRIDES, strict=True)):
        grown = max_pool2d(cells, 3, stride=1, padding=1)[0]  # the pyramid's 3 x 3 convolution
        side = grown.shape[-1]
        sums = pad(grown.cumsum(0).cumsum(1), (1, 0, 1, 0))
        # Samples lie half a cell up and left of the box, and read the cell that they are in and the next one.
        corners = boxes / stride - 0.5
        left, top = corners[:, :2].floor().clamp(0, side - 1).long().unbind(1)
        right, bottom = (corners[:, 2:].floor() + 2).clamp(1, side).long().unbind(1)
        inside = sums[bottom, right] - sums[top, right] - sums[bottom, left] + sums[top, left]
        touched |= (number == index) & (inside > 0)
    return touched
