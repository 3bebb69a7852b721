"""Which patches of a frame matter: attention rollout, its heat map, and what is kept by it. Pure functions.

    attention of every block -- fuse heads --> (n, s, s) each -- running products --> row of the class token
    row -- fill what was pruned by its match --> heat map (n, p) -- shift locally --> select --> kept patches

Patches are numbered row by row, without the class token. p patches, s tokens (class token first, where there is one),
n independent streams. Nothing here has a gradient. Source: specification sections 2.5 to 2.8 and 2.10 of the published
code of Rollout-Guided Token Pruning; where it sorts without saying how ties end, ties here go by number.
"""

from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from vidmodels.layers.token_ops import at_least_float32, gather_rows

__all__ = [
    "HeadFusion",
    "Pattern",
    "Selection",
    "class_token_rollout",
    "clusters",
    "fuse_heads",
    "gilbert_positions",
    "heat_map",
    "offset_choice",
    "offset_sources",
    "pattern_patches",
    "rollout_matrix_step",
    "rollout_row_step",
    "select",
    "shift_heat",
]

HeadFusion = Literal["root_mean_square", "mean"]
Pattern = Literal["1in2", "1in4", "1in9"]
"""What a reset frame keeps: a checkerboard, every second row and column, every third row and column."""

OUTSIDE = -100.0
"""Score of a candidate beyond the grid, and of any other whose score is exactly 0."""


class Selection(NamedTuple):
    """Patches of each stream, the same number in all; together every patch once."""

    kept: Tensor
    """(n, k), in the order in which the tokens are stored from now on."""
    pruned: Tensor
    """(n, p - k)."""


# ---- rollout ----


@torch.no_grad()
def fuse_heads(weights: Tensor, fusion: HeadFusion) -> Tensor:
    """One attention matrix of all heads, (n, heads, q, s) -> (n, q, s), in float32 at least.

    Root mean squares of rows that sum to 1 no longer sum to 1; that is meant.
    """
    weights = weights.to(at_least_float32(weights))
    if fusion == "mean":
        return weights.mean(1)
    total = weights[:, 0].square()
    for head in weights.unbind(1)[1:]:  # 30 times faster than `vector_norm` over the heads' axis
        total.addcmul_(head, head)
    return total.div_(weights.shape[1]).sqrt_()


@torch.no_grad()
def rollout_row_step(row: Tensor, fused: Tensor, query_tokens: Tensor | None = None) -> Tensor:
    """One product of a running row: row a, where a = (A + I) / 2 with every row divided by its sum.

    The class token's row of a_last ... a_1 a_0 is this step from the last block to the first, started with the unit
    vector of the class token: vectors instead of matrices.

    Args:
        row: (n, q), over the query tokens of the block.
        fused: A, (n, q, s).
        query_tokens: (n, q) which of the s tokens the queries are; None: all of them, q = s.

    Returns:
        (n, s), over the tokens that the block attends to.
    """
    weighted = row / (fused.sum(-1) + 1)
    product = (weighted[:, None] @ fused)[:, 0]
    if query_tokens is None:
        return product.add_(weighted)
    return product.scatter_add_(1, query_tokens, weighted)


@torch.no_grad()
def class_token_rollout(fused: Sequence[Tensor], query_tokens: Tensor | None) -> Tensor:
    """How much each token of the first block contributed to the class token after the last one, (n, s).

    Args:
        fused: of each block in order: (n, q, s) of the first, whose queries may be of some tokens only, (n, q, q) of
            the others. Token 0 is the class token.
        query_tokens: (n, q) which tokens the first block's queries are; None: all.
    """
    row = torch.zeros_like(fused[-1][:, 0, : fused[-1].shape[1]])
    row[:, 0] = 1
    for attention in fused[:0:-1]:
        row = rollout_row_step(row, attention)
    return rollout_row_step(row, fused[0], query_tokens)


@torch.no_grad()
def rollout_matrix_step(product: Tensor, fused: Tensor) -> Tensor:
    """One product of a running matrix: a R, with a as above, from the first block to the last.

    Args:
        product: R so far, (n, s, r).
        fused: A, (n, s, s).
    """
    return (fused @ product).add_(product).div_(fused.sum(-1, keepdim=True) + 1)


@torch.no_grad()
def heat_map(values: Tensor, kept: Tensor | None, cluster: Tensor | None) -> Tensor:
    """How much every patch matters, (n, p), summing to 1.

    Args:
        values: (n, k), of the kept patches; of all of them, in order, where nothing was pruned.
        kept: (n, k) patches; None: nothing was pruned.
        cluster: (n, p) the kept patch whose value each patch takes: see `clusters`.
    """
    if kept is not None and cluster is not None:
        everywhere = values.new_zeros(cluster.shape).scatter_(1, kept, values)
        values = everywhere.gather(1, cluster)  # copies: patches of a cluster have exactly equal heat
    return values / values.sum(-1, keepdim=True)


@torch.no_grad()
def clusters(features: Tensor, kept: Tensor) -> Tensor:
    """The kept patch that stands for each patch: itself, or the one of the largest dot product; ties: first in order.

    Args:
        features: (n, p, c), of every patch.
        kept: (n, k).

    Returns:
        (n, p) patches.
    """
    scores = features @ gather_rows(features, kept).transpose(1, 2)
    nearest = kept.gather(1, scores.argmax(-1))
    return nearest.scatter_(1, kept, kept)


# ---- local shift ----


@torch.no_grad()
def offset_choice(features: Tensor, previous: Tensor, *, grid: tuple[int, int], radius: int = 1) -> Tensor:
    """Where each patch was in the frame before: the neighbour of the largest dot product.

    Candidates are numbered row by row from the upper left, (2 radius + 1)^2 in all; the middle one is "stay".
    Those beyond the grid, and any whose product is exactly 0, score -100; ties: the first.

    Args:
        features: (n, p, d), of the frame.
        previous: (n, p, d), of the one before.
        grid: rows and columns, p of them.
        radius: how far a patch may have moved, in patches.

    Returns:
        (n, p) candidates.
    """
    rows, columns = grid
    n, _, d = features.shape
    frame, before = (x.reshape(n, rows, columns, d) for x in (features, previous))
    side = 2 * radius + 1
    scores = features.new_full((n, rows, columns, side * side), OUTSIDE)
    for down in range(-radius, radius + 1):
        top, bottom = max(-down, 0), min(rows - down, rows)
        # Rows of the frame against rows of the one before, whole: of each product only a band is wanted.
        bands = frame[:, top:bottom] @ before[:, top + down : bottom + down].transpose(-1, -2)
        for right in range(-radius, radius + 1):
            candidate = (down + radius) * side + right + radius
            left, end = max(-right, 0), min(columns - right, columns)
            scores[:, top:bottom, left:end, candidate] = bands.diagonal(right, -2, -1)
    return scores.masked_fill_(scores == 0, OUTSIDE).flatten(1, 2).argmax(-1)


@torch.no_grad()
def shift_heat(heat: Tensor, choice: Tensor, *, sources: Tensor) -> Tensor:
    """The heat map where things are now, (n, p): each patch takes the heat of its candidate. It is not normalised.

    Args:
        heat: (n, p), of the frame before.
        choice: (n, p), from `offset_choice`.
        sources: `offset_sources` of the same grid and radius.
    """
    return heat.gather(1, sources.expand(choice.shape[0], -1, -1).gather(2, choice[..., None])[..., 0])


def offset_sources(grid: tuple[int, int], *, radius: int = 1) -> Tensor:
    """(p, candidates): the patch that each candidate of each patch is; beyond the grid patch 0, as published."""
    rows, columns = grid
    span = torch.arange(-radius, radius + 1)
    y = torch.arange(rows)[:, None] + span
    x = torch.arange(columns)[:, None] + span
    number = y[:, None, :, None] * columns + x[None, :, None, :]
    is_inside = ((y >= 0) & (y < rows))[:, None, :, None] & ((x >= 0) & (x < columns))[None, :, None, :]
    return torch.where(is_inside, number, 0).flatten(2).flatten(0, 1)


# ---- selection ----


def sampling_stride(ratio: float) -> int:
    """A sampled share of a list is every so many-th element of it."""
    return round(1 / ratio)


@torch.no_grad()
def select(
    heat: Tensor,
    *,
    keep_ratio: float,
    foreground_ratio: float = 1.0,
    background_ratio: float = 0.0,
    curve: Tensor | None = None,
) -> Selection:
    """Keep the hot patches, or every so many-th of them, and a regular sample of the others.

    Args:
        heat: (n, p).
        keep_ratio: share of the patches that is foreground: the hottest; ties by number.
        foreground_ratio: share of the foreground that is kept.
        background_ratio: share of the background that is kept.
        curve: (p,) a place for every patch along which both are sampled, instead of by heat and by number.

    Returns:
        Kept foreground, then kept background; pruned likewise.
    """
    num_foreground = round(keep_ratio * heat.shape[1])
    order = heat.sort(dim=-1, descending=True, stable=True).indices
    foreground, background = order[:, :num_foreground], order[:, num_foreground:].sort(-1).values
    kept_foreground, pruned_foreground = _sample(foreground, foreground_ratio, curve)
    kept_background, pruned_background = _sample(background, background_ratio, curve)
    return Selection(
        torch.cat([kept_foreground, kept_background], dim=1), torch.cat([pruned_foreground, pruned_background], dim=1)
    )


def _sample(patches: Tensor, ratio: float, curve: Tensor | None) -> tuple[Tensor, Tensor]:
    """Elements 0, stride, 2 stride ... of each row, and the others; ratio 1: all and none, 0: none and all."""
    if ratio >= 1:
        return patches, patches[:, :0]
    if ratio <= 0:
        return patches[:, :0], patches
    if curve is not None:
        patches = patches.gather(1, curve[patches].argsort(-1))
    stride = sampling_stride(ratio)
    others = torch.tensor([place for place in range(patches.shape[1]) if place % stride], device=patches.device)
    return patches[:, ::stride], patches.index_select(1, others.long())


def pattern_patches(pattern: Pattern, grid: tuple[int, int]) -> Selection:
    """The fixed patches of a reset frame and the others, (1, k) and (1, p - k), row by row."""
    rows, columns = grid
    y, x = torch.arange(rows)[:, None], torch.arange(columns)
    match pattern:
        case "1in2":
            is_kept = (y + x) % 2 == 0
        case "1in4":
            is_kept = (y % 2 == 0) & (x % 2 == 0)
        case "1in9":
            is_kept = (y % 3 == 0) & (x % 3 == 0)
    flat = is_kept.flatten()
    return Selection(flat.nonzero().T, (~flat).nonzero().T)


# ---- Gilbert curve ----


def gilbert_positions(grid: tuple[int, int]) -> Tensor:
    """(p,): the place of every patch on a generalised Hilbert curve, which starts at the lower left.

    Source: Cerveny, "gilbert", the generalised Hilbert curve for rectangles of any size; the picture is flipped as in
    the published table.
    """
    rows, columns = grid
    positions = torch.empty(rows, columns, dtype=torch.int64)
    curve = _gilbert(0, 0, columns, 0, 0, rows) if columns >= rows else _gilbert(0, 0, 0, rows, columns, 0)
    for place, (x, y) in enumerate(curve):
        positions[rows - 1 - y, x] = place
    return positions.flatten()


def _gilbert(x: int, y: int, ax: int, ay: int, bx: int, by: int) -> Iterator[tuple[int, int]]:
    """Cells of the rectangle at (x, y) with major axis a and minor axis b, one of each pair being 0."""
    width, height = abs(ax + ay), abs(bx + by)
    ax_step, ay_step, bx_step, by_step = (_sign(value) for value in (ax, ay, bx, by))
    if height == 1:
        yield from ((x + ax_step * i, y + ay_step * i) for i in range(width))
        return
    if width == 1:
        yield from ((x + bx_step * i, y + by_step * i) for i in range(height))
        return
    half_ax, half_ay, half_bx, half_by = _half(ax), _half(ay), _half(bx), _half(by)
    half_width, half_height = abs(half_ax + half_ay), abs(half_bx + half_by)
    if 2 * width > 3 * height:
        if half_width % 2 and width > 2:  # parts of even length where there is a choice
            half_ax, half_ay = half_ax + ax_step, half_ay + ay_step
        yield from _gilbert(x, y, half_ax, half_ay, bx, by)
        yield from _gilbert(x + half_ax, y + half_ay, ax - half_ax, ay - half_ay, bx, by)
        return
    if half_height % 2 and height > 2:
        half_bx, half_by = half_bx + bx_step, half_by + by_step
    yield from _gilbert(x, y, half_bx, half_by, half_ax, half_ay)
    yield from _gilbert(x + half_bx, y + half_by, ax, ay, bx - half_bx, by - half_by)
    yield from _gilbert(
        x + (ax - ax_step) + (half_bx - bx_step),
        y + (ay - ay_step) + (half_by - by_step),
        -half_bx,
        -half_by,
        -(ax - half_ax),
        -(ay - half_ay),
    )


def _half(length: int) -> int:
    """Half of it, rounded down also below 0."""
    return length // 2


def _sign(value: int) -> int:
    return (value > 0) - (value < 0)
