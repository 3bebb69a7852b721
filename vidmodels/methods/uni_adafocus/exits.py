"""Early exit as pure functions: how sure an exit is, which thresholds spend a budget, where each video leaves.

Exit 0 answers after the glance, exit i after i focus frames ("tsm": exit 1 after all of them).
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

__all__ = ["NEVER", "Criterion", "exit_counts", "exit_shares", "exit_steps", "exit_values", "solve_thresholds"]

Criterion = Literal["confidence", "entropy"]

NEVER = 1e8
"""A threshold that no value reaches; at the last exit -NEVER lets everyone out."""


def exit_values(logits: Tensor, criterion: Criterion) -> Tensor:
    """How sure each answer is, larger is surer: (..., k) -> (...).

    "confidence" is the largest raw logit, not a probability; "entropy" the negative entropy of the softmax, with
    0 log 0 = 0 where the published code gives NaN.
    """
    if criterion == "confidence":
        return logits.amax(-1)
    entropy: Tensor = torch.special.entr(logits.softmax(-1)).sum(-1)
    return -entropy


def exit_shares(q: float, num_exits: int) -> Tensor:
    """Share of videos that each exit shall get, (e,) float32: q^k over their sum. Small q lets most leave early."""
    shares = torch.pow(torch.tensor(q, dtype=torch.float32), torch.arange(num_exits, dtype=torch.float32))
    return shares / shares.sum()


def exit_counts(shares: Tensor, num_videos: int) -> list[int]:
    """Videos of a set that each exit but the last gets: floor(n * share), the product in float32 as published."""
    return [int(count) for count in (num_videos * shares.float()).floor()[:-1]]


def solve_thresholds(values: Tensor, counts: Sequence[int]) -> Tensor:
    """Thresholds (e,) that send exactly so many videos of a set to each exit: the surest of those still there.

    Args:
        values: (n, e) of the set on which the budget is solved.
        counts: of all exits but the last, (e - 1,).

    Raises:
        ValueError: not a count an exit, or more than there are videos.

    Source: specification section 3.7.
    """
    num_videos, num_exits = values.shape
    if len(counts) != num_exits - 1 or sum(counts) > num_videos:
        raise ValueError(
            f"{num_exits} exits need {num_exits - 1} counts of at most {num_videos} videos in all, got {list(counts)}"
        )
    thresholds = torch.full((num_exits,), NEVER, dtype=values.dtype)
    thresholds[-1] = -NEVER
    waiting = torch.ones(num_videos, dtype=torch.bool)
    for step, count in enumerate(counts):
        if count:
            candidates = waiting.nonzero()[:, 0]
            order = values[candidates, step].argsort(descending=True, stable=True)
            leaving = candidates[order[:count]]
            thresholds[step] = values[leaving[-1], step]
            waiting[leaving] = False
    return thresholds


def exit_steps(values: Tensor, thresholds: Tensor) -> Tensor:
    """Where each video leaves: the first exit whose value reaches its threshold; values (n, e) -> (n,) int64."""
    return (values >= thresholds.to(values)).to(torch.uint8).argmax(1)
