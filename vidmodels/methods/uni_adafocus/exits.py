"""Early exit as pure functions: how sure an exit is, which thresholds spend a budget, where each video leaves.

Exit 0 answers after the glance, exit i after i focus frames ("tsm": exit 1 after all of them).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import sqrt
from operator import mul
from typing import Literal

import torch
from torch import Tensor

__all__ = [
    "NEVER",
    "PUBLISHED_Q",
    "PUBLISHED_Q_OF_TWO",
    "Criterion",
    "CurvePoint",
    "budget_curve",
    "exit_counts",
    "exit_shares",
    "exit_steps",
    "exit_values",
    "expected_macs",
    "q_of_budget",
    "solve_thresholds",
]

Criterion = Literal["confidence", "entropy"]

NEVER = 1e8
"""A threshold that no value reaches; at the last exit -NEVER lets everyone out."""

PUBLISHED_Q = tuple(step / 20 for step in range(1, 20))
"""The points of the published curves of "pooling": 0.05, 0.10, ..., 0.95."""

PUBLISHED_Q_OF_TWO = (*(step / 100 for step in range(1, 400)), 40.0, 400.0, 4000.0, 40000.0)
"""Of networks with two exits: 0.01, 0.02, ..., 3.99, and four that let hardly anybody out early."""


@dataclass(frozen=True, kw_only=True)
class CurvePoint:
    """One budget, solved on one set of videos and applied to another."""

    q: float
    thresholds: tuple[float, ...]
    """(e,)."""
    shares: tuple[float, ...]
    """(e,) of the other set's videos that leave at each exit: near the solved ones, not equal."""
    gmacs: float
    """Mean over the other set's videos."""
    score: float


def budget_curve(
    solve_on: Tensor,
    apply_to: Tensor,
    *,
    macs: Sequence[int],
    score: Callable[[Tensor], float],
    criterion: Criterion = "confidence",
    q: Sequence[float] = PUBLISHED_Q,
) -> list[CurvePoint]:
    """What each budget gives: accuracy against cost.

    Args:
        solve_on: (n, e, k) logits of all exits, which the thresholds are solved on.
        apply_to: (m, e, k), which they are applied to.
        macs: of a video that leaves at each exit, as `cost.exit_macs` gives them.
        score: of (m, k), each video's logits at its exit, such as its top-1.
        criterion: what thresholds are compared with.
        q: a point each; see `exit_shares`.

    Raises:
        ValueError: other numbers of exits.

    Source: specification section 3.7.
    """
    num_exits = len(macs)
    if not solve_on.shape[1] == apply_to.shape[1] == num_exits:
        raise ValueError(
            f"{num_exits} costs are for logits (n, {num_exits}, k), got {tuple(solve_on.shape)} and "
            f"{tuple(apply_to.shape)}"
        )
    known, new = exit_values(solve_on, criterion), exit_values(apply_to, criterion)
    gmacs = torch.tensor(macs, dtype=torch.float64) / 1e9
    points = []
    for budget in q:
        thresholds = solve_thresholds(known, exit_counts(exit_shares(budget, num_exits), len(known)))
        steps = exit_steps(new, thresholds)
        shares = torch.bincount(steps, minlength=num_exits).double() / len(steps)
        points.append(
            CurvePoint(
                q=budget,
                thresholds=tuple(thresholds.tolist()),
                shares=tuple(shares.tolist()),
                gmacs=float(gmacs[steps].mean()),
                score=score(apply_to[torch.arange(len(steps)), steps]),
            )
        )
    return points


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


def expected_macs(q: float, macs: Sequence[int], num_videos: int) -> float:
    """Mean multiply-adds of a set of so many videos when the budget of `q` is spent on it."""
    counts = exit_counts(exit_shares(q, len(macs)), num_videos)
    return float(sum(map(mul, [*counts, num_videos - sum(counts)], macs)) / num_videos)


def q_of_budget(budget_macs: float, macs: Sequence[int], num_videos: int) -> float:
    """The largest q whose budget costs at most so many multiply-adds a video, to six digits.

    Raises:
        ValueError: even leaving at the first exit costs more.
    """
    low, high = 1e-9, 1e9
    if expected_macs(low, macs, num_videos) > budget_macs:
        raise ValueError(f"the first exit costs {macs[0] / 1e9:.4f} GMACs, more than {budget_macs / 1e9:.4f}")
    while high / low > 1 + 1e-6:  # the cost rises with q
        middle = sqrt(low * high)
        low, high = (low, middle) if expected_macs(middle, macs, num_videos) > budget_macs else (middle, high)
    return low


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
