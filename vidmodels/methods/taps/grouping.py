"""Which frames compute their kept channels together: fewer and larger products against channels in vain."""

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
from numpy.typing import NDArray

__all__ = ["Granularity", "Group", "GroupingCost", "group_frames"]

Granularity = Literal["auto", "frame", "clip"]

MOST = 0.75
"""Share of the channels from which on all may be computed: few multiply-accumulates in vain."""


@dataclass(frozen=True, kw_only=True)
class Group:
    """Consecutive rows (frames of one or several clips) that run with one set of channels."""

    start: int
    stop: int
    channels: NDArray[np.int64] | None
    """What is computed, ascending; None: all."""


@dataclass(frozen=True, kw_only=True)
class GroupingCost:
    """What the groups of a block cost, in multiply-accumulates or what takes as long."""

    macs: int
    """Of one channel in one frame."""
    weights: int
    """Values to pick out for one channel, for each group anew unless it computes all channels."""
    per_group: int = 20_000_000
    """Starting a group's operators."""
    per_weight: int = 200
    """Picking out a weight and laying it out for the kernel."""

    def picking(self, num_rows: NDArray[np.int64], num_channels: NDArray[np.int64]) -> NDArray[np.int64]:
        """Cost of groups of so many rows that compute so many channels."""
        return num_channels * (num_rows * self.macs + self.weights * self.per_weight) + self.per_group

    def cheapest(
        self, num_rows: NDArray[np.int64], num_channels: NDArray[np.int64], num_gates: int
    ) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """The same, or of computing all channels where most are wanted and that costs less; and where it does."""
        picking, everything = self.picking(num_rows, num_channels), num_gates * num_rows * self.macs + self.per_group
        takes_all = (num_channels >= MOST * num_gates) & (everything <= picking)
        return np.where(takes_all, everything, picking), takes_all


def group_frames(
    masks: NDArray[np.bool_],
    *,
    num_frames: int,
    granularity: Granularity,
    cost: GroupingCost,
    channel_multiple: int = 1,
) -> list[Group]:
    """Part the rows into groups.

    Args:
        masks: (n*t, w), kept channels of each frame, clip by clip.
        num_frames: t.
        granularity: "frame": neighbours with equal masks are together, and nothing else; "clip": the frames of a clip;
            "auto": the parting of least cost, in which a group is a part of a clip or several clips, and computes all
            channels where it needs most and picking them out costs more.
        cost: of the block, for "auto".
        channel_multiple: computed channels are filled up with dropped ones to a multiple of this.
    """
    if granularity == "clip":
        bounds = list(range(0, len(masks) + 1, num_frames))
    else:
        changes = np.flatnonzero((masks[1:] != masks[:-1]).any(1)) + 1
        bounds = [0, *changes.tolist(), len(masks)]
        if granularity == "auto":
            bounds = _cheapest(masks, bounds, cost)
    num_gates = masks.shape[1]
    groups = []
    for start, stop in pairwise(bounds):
        kept = masks[start:stop].max(0)
        wanted = min(-(-int(kept.sum()) // channel_multiple) * channel_multiple, num_gates)
        rows = np.array(stop - start)
        if granularity == "auto" and cost.cheapest(rows, np.array(wanted), num_gates)[1]:
            wanted = num_gates
        channels = np.sort(np.argsort(~kept, kind="stable")[:wanted])
        groups.append(Group(start=start, stop=stop, channels=None if wanted == num_gates else channels))
    return groups


def _cheapest(masks: NDArray[np.bool_], bounds: list[int], cost: GroupingCost) -> list[int]:
    """The bounds of runs of equal masks that are left when runs are joined at the least cost in all.

    best[j], the least cost of the first j runs, is the least of best[i] + cost(runs i to j) over all i < j.
    """
    runs = masks[bounds[:-1]]
    edges = np.array(bounds)
    num_runs = len(runs)
    best = np.zeros(num_runs + 1, dtype=np.int64)
    origin = np.zeros(num_runs + 1, dtype=np.int64)
    for stop in range(1, num_runs + 1):
        # Unions of the runs i to stop, for i = stop - 1 down to 0.
        sizes = np.logical_or.accumulate(runs[:stop][::-1], axis=0).sum(1)[::-1]
        rows = edges[stop] - edges[:stop]
        totals = best[:stop] + cost.cheapest(rows, sizes, masks.shape[1])[0]
        origin[stop] = int(totals.argmin())
        best[stop] = totals[origin[stop]]
    chosen = [num_runs]
    while chosen[-1]:
        chosen.append(int(origin[chosen[-1]]))
    return [bounds[index] for index in reversed(chosen)]
