"""The pruning step: which tokens of each group of frames are kept. Nothing is merged, and there is nothing to learn.

    tokens (n, G * N, d)   G groups of N tokens, one after another   a: temporal order   b: reversed order
    group 0   drop the r even tokens that are most like an odd one
    group 1   compare with all of group 0                  redundancy A (mean 1) * (1 - semantic importance)
    group 2   compare with what group 1 kept, weighted     drop the r highest of each group
    ...

Source: Ding et al., ICCV 2023, section 3; steps a to h of the specification, section 2.3. The traps in brackets are
numbered as in this folder's README.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.linalg import vector_norm

from vidmodels.layers.token_ops import at_least_float32, full_precision, gather_rows

__all__ = ["Decision", "Stage", "choose_tokens", "gather_tokens", "stages"]

NUM_GROUPS = (8, 4, 2)
"""Of the three stages, whatever the clip's length."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """When and how tokens are dropped."""

    after_block: int
    """Block (from 0) whose output is pruned."""
    num_groups: int
    backwards: bool
    """Groups are processed from the last to the first. (3)"""


def stages(depth: int) -> tuple[Stage, Stage, Stage]:
    """The three stages of a network of `depth` blocks, at least 3."""
    first, second, third = NUM_GROUPS
    return (
        Stage(after_block=0, num_groups=first, backwards=False),
        Stage(after_block=depth // 3, num_groups=second, backwards=True),
        Stage(after_block=2 * depth // 3, num_groups=third, backwards=False),
    )


class Decision(NamedTuple):
    """What one step decides. Positions count within a group; groups lie in temporal order unless said otherwise."""

    kept: Tensor
    """(n, G, N - r) positions, in the order in which the tokens are stored from now on. (1)"""
    first_order: Tensor
    """(n, N) positions of the first processed group: odd ones, then even ones by ascending similarity."""
    first_similarity: Tensor
    """(n, ceil(N / 2)) of its even positions: largest similarity to an odd one."""
    semantic: Tensor
    """(n, G, N) in [0, 1]: activation, from the group's smallest to its largest."""
    accumulated: Tensor
    """(n, G - 1, N): redundancy A; groups in the order of processing, from the second on."""
    score: Tensor
    """(n, G - 1, N): A * (1 - semantic), alike."""


@torch.no_grad()
def choose_tokens(
    tokens: Tensor, keys: Tensor, *, num_groups: int, prune_number: int, backwards: bool = False
) -> Decision:
    """Decide which tokens of each group are kept, in float32 even under autocast. (9)

    Args:
        tokens: (n, G * N, d), the block's output.
        keys: (n, G * N, e), the block's keys, mean over heads, before any normalisation.
        num_groups: G, at least 2.
        prune_number: r, tokens to drop of each group, below N.
        backwards: process the last group first.

    Raises:
        ValueError: the tokens do not divide into groups, or none would be left.
    """
    size, rest = divmod(tokens.shape[1], num_groups)
    if rest or num_groups < 2:
        raise ValueError(f"{tokens.shape[1]} tokens do not divide into {num_groups} groups (at least 2)")
    num_kept = size - prune_number
    if prune_number < 0 or num_kept < 1:
        raise ValueError(f"r = {prune_number} of {size} tokens in a group leaves none; lower r")
    with full_precision(tokens.device.type):
        # summed pairwise; `vector_norm` would need no copy, but its error can exchange near ties
        importance = tokens.abs().sum(-1, dtype=at_least_float32(tokens)).reshape(-1, num_groups, size)
        low, high = importance.amin(-1, keepdim=True), importance.amax(-1, keepdim=True)
        semantic = (importance - low) / (high - low)
        keys = keys.to(at_least_float32(keys))
        unit = (keys / vector_norm(keys, dim=-1, keepdim=True)).reshape(-1, num_groups, size, keys.shape[-1])
        groups = range(num_groups)[::-1] if backwards else range(num_groups)

        first_order, first_similarity = _bipartite_order(unit[:, groups[0]])
        kept = {groups[0]: first_order[:, :num_kept]}
        accumulated, scores = [], []
        before, weights = unit[:, groups[0]], None  # all tokens of the first group, dropped ones included (4)
        for group in groups[1:]:
            current = unit[:, group]
            # Each token before spreads one unit of weight over the current group's tokens. (5)
            spread = (before @ current.transpose(1, 2)).softmax(-1)  # (n, before, N)
            redundancy = spread.sum(1) if weights is None else (weights[:, None] @ spread)[:, 0]
            score = redundancy * (1 - semantic[:, group])
            index = score.sort(dim=-1, stable=True).indices[:, :num_kept]
            kept[group] = index
            before, weights = gather_rows(current, index), redundancy.gather(1, index)
            weights = weights / weights.sum(-1, keepdim=True)
            accumulated.append(redundancy)
            scores.append(score)
    return Decision(
        kept=torch.stack([kept[group] for group in range(num_groups)], dim=1),
        first_order=first_order,
        first_similarity=first_similarity,
        semantic=semantic,
        accumulated=torch.stack(accumulated, dim=1),
        score=torch.stack(scores, dim=1),
    )


def gather_tokens(tokens: Tensor, kept: Tensor) -> Tensor:
    """The kept tokens of all groups, (n, G * N, ...) -> (n, G * kept, ...), in their stored order.

    Args:
        tokens: any values of the tokens, such as their features or their numbers.
        kept: (n, G, kept) positions within each group.
    """
    num_groups = kept.shape[1]
    starts = torch.arange(num_groups, device=kept.device)[:, None] * (tokens.shape[1] // num_groups)
    return gather_rows(tokens, (kept + starts).flatten(1))


def _bipartite_order(unit: Tensor) -> tuple[Tensor, Tensor]:
    """Order of the first processed group (n, N, e): what comes last is dropped; its importance plays no role. (2)"""
    sources, targets = unit[:, 0::2], unit[:, 1::2]
    similarity = (sources @ targets.transpose(1, 2)).amax(-1)
    positions = torch.arange(unit.shape[1], device=unit.device)
    ranked = positions[0::2][similarity.sort(dim=-1, stable=True).indices]
    return torch.cat([positions[1::2].expand(unit.shape[0], -1), ranked], dim=1), similarity
