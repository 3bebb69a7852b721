from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from vidmodels.methods.rgtp.rollout import (
    Pattern,
    class_token_rollout,
    clusters,
    fuse_heads,
    gilbert_positions,
    heat_map,
    offset_choice,
    offset_sources,
    pattern_patches,
    rollout_matrix_step,
    select,
    shift_heat,
)


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def attention(*shape: int) -> Tensor:
    return (3 * torch.randn(*shape, dtype=torch.float64)).softmax(-1)


def normalised(fused: Tensor) -> Tensor:
    a = (fused + torch.eye(fused.shape[-1], dtype=fused.dtype)) / 2
    return a / a.sum(-1, keepdim=True)


# ---- rollout ----


def test_heads_are_fused_by_root_mean_squares_or_means() -> None:
    weights = attention(2, 5, 3, 7)
    torch.testing.assert_close(fuse_heads(weights, "root_mean_square"), weights.square().mean(1).sqrt())
    torch.testing.assert_close(fuse_heads(weights, "mean"), weights.mean(1))
    assert fuse_heads(weights.half(), "root_mean_square").dtype == torch.float32


def test_the_running_row_is_the_class_tokens_row_of_the_product_of_matrices() -> None:
    fused = [fuse_heads(attention(2, 3, 6, 6), "root_mean_square") for _ in range(4)]
    product = torch.eye(6, dtype=torch.float64).expand(2, 6, 6)
    for matrix in fused:
        product = normalised(matrix) @ product
    torch.testing.assert_close(class_token_rollout(fused, None), product[:, 0])


def test_the_running_matrix_is_the_product_of_matrices() -> None:
    fused = [fuse_heads(attention(2, 3, 6, 6), "mean") for _ in range(3)]
    product = running = torch.eye(6, dtype=torch.float64).expand(2, 6, 6)
    for matrix in fused:
        product, running = normalised(matrix) @ product, rollout_matrix_step(running, matrix)
    torch.testing.assert_close(running, product)


def test_after_the_first_block_rows_and_columns_of_pruned_tokens_are_cut_without_renormalising() -> None:
    first, later = fuse_heads(attention(1, 3, 7, 7), "root_mean_square"), fuse_heads(attention(1, 3, 4, 4), "mean")
    tokens = torch.tensor([[0, 5, 2, 3]])
    cut = normalised(first)[:, tokens[0]][:, :, tokens[0]]
    expected = (normalised(later) @ cut)[:, 0]
    row = class_token_rollout([first[:, tokens[0]], later], tokens)
    torch.testing.assert_close(row.gather(1, tokens), expected)


def test_all_patches_of_a_cluster_have_exactly_equal_heat() -> None:
    kept, cluster = torch.tensor([[4, 1]]), torch.tensor([[1, 1, 4, 1, 4]])
    heat = heat_map(torch.tensor([[0.3, 0.1]]), kept, cluster)
    torch.testing.assert_close(heat, torch.tensor([[0.1, 0.1, 0.3, 0.1, 0.3]]) / 0.9)
    assert heat[0, 0] == heat[0, 1] == heat[0, 3]


def test_a_kept_patch_stands_for_itself_and_ties_go_to_the_first_kept() -> None:
    # Patch 0 is as much like 3 as like 2; patch 1 is most like itself among all, but it is pruned.
    features = torch.tensor([[[1.0, 0], [0, 5], [1, 1], [1, 0]]])
    assert clusters(features, torch.tensor([[3, 2]])).tolist() == [[3, 2, 2, 3]]
    assert clusters(features, torch.tensor([[2, 3]])).tolist() == [[2, 2, 2, 3]]


# ---- local shift ----


@pytest.mark.parametrize("radius", [1, 2])
def test_an_offset_is_the_best_neighbour_by_plain_products(radius: int) -> None:
    rows, columns = 4, 5
    now, before = torch.randn(2, 2, rows * columns, 6, dtype=torch.float64)
    choice = offset_choice(now, before, grid=(rows, columns), radius=radius)
    sources = offset_sources((rows, columns), radius=radius)
    side = 2 * radius + 1
    for n in range(2):
        for y in range(rows):
            for x in range(columns):
                scores, patches = [], []
                for candidate in range(side**2):
                    yy, xx = y + candidate // side - radius, x + candidate % side - radius
                    is_inside = 0 <= yy < rows and 0 <= xx < columns
                    patches.append(yy * columns + xx if is_inside else 0)
                    scores.append(float(now[n, y * columns + x] @ before[n, patches[-1]]) if is_inside else -100.0)
                best = max(range(side**2), key=scores.__getitem__)
                assert choice[n, y * columns + x] == best
                assert sources[y * columns + x].tolist() == patches


def test_heat_moves_with_what_moved() -> None:
    frame = torch.randn(1, 5, 6, 16)
    moved = frame.roll(1, dims=2)  # one column to the right
    choice = offset_choice(moved.flatten(1, 2), frame.flatten(1, 2), grid=(5, 6))
    heat = torch.rand(1, 30)
    shifted = shift_heat(heat, choice, sources=offset_sources((5, 6))).view(5, 6)
    assert torch.equal(shifted[:, 1:], heat.view(5, 6)[:, :-1])


def test_beyond_the_grid_scores_minus_100_and_reads_patch_0() -> None:
    """All products inside are -400: the first candidate outside wins, and in the centre, which has none, the first."""
    now, before = torch.full((1, 9, 1), 20.0), torch.full((1, 9, 1), -20.0)
    choice = offset_choice(now, before, grid=(3, 3))
    assert choice.tolist() == [[0, 0, 0, 0, 0, 2, 0, 6, 2]]
    shifted = shift_heat(torch.arange(9.0)[None], choice, sources=offset_sources((3, 3)))
    assert shifted.tolist() == [[0.0] * 9]


def test_a_product_of_exactly_zero_counts_as_outside() -> None:
    now, before = torch.ones(1, 9, 1), torch.full((1, 9, 1), -1.0)
    before[0, 4] = 0
    choice = offset_choice(now, before, grid=(3, 3))
    assert 4 not in offset_sources((3, 3))[0].gather(0, choice[0, :1])


# ---- selection ----


def test_ties_in_heat_go_by_number() -> None:
    heat = torch.tensor([[0.1, 0.5, 0.1, 0.5, 0.1, 0.5]])
    selection = select(heat, keep_ratio=4 / 6)
    assert selection.kept.tolist() == [[1, 3, 5, 0]]
    assert selection.pruned.tolist() == [[2, 4]]


@pytest.mark.parametrize(
    ("num_patches", "keep", "foreground", "background", "expected"),
    [
        (196, 0.49, 1.0, 0.0, 96),
        (196, 0.215, 1.0, 0.0, 42),
        (196, 0.066, 1.0, 0.0, 13),
        (400, 0.75, 1.0, 0.25, 325),
        (400, 0.45, 1.0, 0.16666, 217),
        (400, 0.3, 1.0, 0.05, 134),
        (400, 0.4, 0.5, 0.09, 102),
        (400, 0.24, 0.5, 0.03, 58),
        (400, 0.14, 0.5, 0.0, 28),
    ],
)
def test_published_settings_keep_their_counts(
    num_patches: int, keep: float, foreground: float, background: float, expected: int
) -> None:
    selection = select(
        torch.rand(3, num_patches), keep_ratio=keep, foreground_ratio=foreground, background_ratio=background
    )
    assert selection.kept.shape == (3, expected)
    everything = torch.cat([selection.kept, selection.pruned], dim=1).sort(-1).values
    assert torch.equal(everything, torch.arange(num_patches).expand(3, -1))


def test_background_is_sampled_by_number_and_foreground_by_heat() -> None:
    heat = torch.tensor([[0.0, 0.9, 0.1, 0.8, 0.2, 0.7, 0.3, 0.6]])
    selection = select(heat, keep_ratio=0.5, foreground_ratio=0.5, background_ratio=0.5)
    assert selection.kept.tolist() == [[1, 5, 0, 4]]
    assert selection.pruned.tolist() == [[3, 7, 2, 6]]


def test_along_a_curve_both_are_sampled_in_its_order() -> None:
    heat = torch.tensor([[0.0, 0.9, 0.1, 0.8, 0.2, 0.7, 0.3, 0.6]])
    curve = torch.arange(7, -1, -1)
    selection = select(heat, keep_ratio=0.5, foreground_ratio=0.5, background_ratio=0.5, curve=curve)
    assert selection.kept.tolist() == [[7, 3, 6, 2]]


@pytest.mark.parametrize(("pattern", "kept"), [("1in2", 98), ("1in4", 49), ("1in9", 25)])
def test_patterns_keep_their_counts(pattern: Pattern, kept: int) -> None:
    selection = pattern_patches(pattern, (14, 14))
    assert selection.kept.shape == (1, kept)
    assert selection.pruned.shape == (1, 196 - kept)
    assert 0 in selection.kept


@pytest.mark.parametrize("grid", [(14, 14), (20, 20), (4, 10), (6, 2)])
def test_the_gilbert_curve_goes_from_cell_to_neighbouring_cell(grid: tuple[int, int]) -> None:
    rows, columns = grid
    positions = gilbert_positions(grid)
    assert sorted(positions.tolist()) == list(range(rows * columns))
    order = positions.argsort()
    y, x = order // columns, order % columns
    steps = (y.diff().abs() + x.diff().abs()).tolist()
    assert set(steps) == {1}
    assert (int(y[0]), int(x[0])) == (rows - 1, 0)  # the lower left
