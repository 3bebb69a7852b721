from itertools import combinations, pairwise
from typing import get_args

import numpy as np
import pytest
from numpy.typing import NDArray

from vidmodels.methods.taps.grouping import Granularity, Group, GroupingCost, group_frames

COST = GroupingCost(macs=1000, weights=10, per_group=5000, per_weight=100)


def draw(num_rows: int, num_gates: int, keep: float = 0.4, seed: int = 0) -> NDArray[np.bool_]:
    return np.random.default_rng(seed).random((num_rows, num_gates)) < keep


def total(masks: NDArray[np.bool_], bounds: list[int], cost: GroupingCost = COST) -> int:
    sum_of_costs = 0
    for start, stop in pairwise(bounds):
        rows, union = np.array(stop - start), np.array(masks[start:stop].any(0).sum())
        sum_of_costs += int(cost.cheapest(rows, union, masks.shape[1])[0])
    return sum_of_costs


def bounds_of(groups: list[Group]) -> list[int]:
    return [0, *(group.stop for group in groups)]


@pytest.mark.parametrize("granularity", get_args(Granularity))
@pytest.mark.parametrize("keep", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("channel_multiple", [1, 8])
def test_groups_cover_all_rows_in_order_and_all_that_their_frames_keep(
    granularity: Granularity, keep: float, channel_multiple: int
) -> None:
    masks = draw(12, 20, keep)
    groups = group_frames(masks, num_frames=4, granularity=granularity, cost=COST, channel_multiple=channel_multiple)
    assert groups[0].start == 0
    assert groups[-1].stop == 12
    assert all(one.stop == other.start for one, other in pairwise(groups))
    for group in groups:
        if group.channels is not None:
            kept = np.flatnonzero(masks[group.start : group.stop].max(0))
            assert set(kept) <= set(group.channels)
            assert len(group.channels) % channel_multiple == 0
            assert (np.diff(group.channels) > 0).all()


def test_by_frame_only_equal_neighbours_are_together_and_nothing_is_computed_in_vain() -> None:
    one, other = draw(2, 20)
    groups = group_frames(np.stack([one, one, other, one]), num_frames=2, granularity="frame", cost=COST)
    assert bounds_of(groups) == [0, 2, 3, 4]
    for group, mask in zip(groups, (one, other, one), strict=True):
        assert group.channels is not None
        assert group.channels.tolist() == np.flatnonzero(mask).tolist()


def test_by_clip_the_frames_of_a_clip_are_together() -> None:
    groups = group_frames(draw(12, 20), num_frames=4, granularity="clip", cost=COST)
    assert bounds_of(groups) == [0, 4, 8, 12]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("per_group", [0, 5000, 40_000])
def test_no_parting_into_neighbours_costs_less(seed: int, per_group: int) -> None:
    masks = draw(7, 16, seed=seed)
    cost = GroupingCost(macs=1000, weights=10, per_group=per_group, per_weight=100)
    groups = group_frames(masks, num_frames=7, granularity="auto", cost=cost)
    partings = [[0, *inner, 7] for count in range(7) for inner in combinations(range(1, 7), count)]
    assert total(masks, bounds_of(groups), cost) == min(total(masks, bounds, cost) for bounds in partings)


def test_dear_groups_are_joined_and_cheap_ones_are_not() -> None:
    masks = draw(8, 64, 0.3)
    cheap = GroupingCost(macs=10**6, weights=1, per_group=1, per_weight=1)
    dear = GroupingCost(macs=1, weights=1, per_group=10**6, per_weight=1)
    assert bounds_of(group_frames(masks, num_frames=4, granularity="auto", cost=cheap)) == list(range(9))
    assert bounds_of(group_frames(masks, num_frames=4, granularity="auto", cost=dear)) == [0, 8]


def test_all_channels_are_computed_where_most_are_wanted_and_picking_costs_more() -> None:
    masks = np.ones((4, 16), dtype=np.bool_)
    masks[:, 0] = False
    dear = GroupingCost(macs=1, weights=10**6)

    def channels(masks: NDArray[np.bool_], granularity: Granularity) -> NDArray[np.int64] | None:
        return group_frames(masks, num_frames=4, granularity=granularity, cost=dear)[0].channels

    assert channels(masks, "auto") is None
    assert channels(masks, "frame") is not None
    masks[:, :8] = False
    assert channels(masks, "auto") is not None
