"""The backbone over a stream of frames: key frames in full, in the others only the tokens that the rollout leads to.

    key frame      all tokens; keys and values of every block, the last block's output and the attention are kept
    pruned frame   heat of the frame before -- shift --> K tokens: they alone pass through the blocks. They attend to
                   the keys and values that the other tokens had when they were last computed, and the last block's
                   output of those stands beside theirs.
    after both     detections -> anchors -- rollout of the global blocks' attention --> heat for the next frame

Tokens of a pruned frame travel in the order of their windows, so that a window's are neighbours; the published code
has them by heat, which gives the same numbers. Source: specification sections 2.4 and 2.5.
"""

import logging
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate, linear, scaled_dot_product_attention

from vidmodels.backbones.detection import Detections
from vidmodels.backbones.vitdet import (
    Block,
    ViTDet,
    Windows,
    relative_bias,
    relative_terms,
    relative_terms_at,
    windows,
)
from vidmodels.methods.rgtp.rollout import offset_choice, offset_sources, rollout_row_step, select, shift_heat
from vidmodels.methods.rgtp.vitdet_boxes import BoxMemory
from vidmodels.methods.rgtp.vitdet_maps import LevelMaps

__all__ = [
    "BlockMemory",
    "Memory",
    "Places",
    "Rollout",
    "StreamState",
    "anchor_tokens",
    "choose_tokens",
    "heat_from_attention",
    "next_state",
    "pool_keys",
    "remember_attention",
    "run_block_of_all",
    "run_block_of_kept",
    "run_key_frame",
    "run_pruned_frame",
    "shifted_heat",
    "start",
]

Rollout = Literal["pooled", "backward"]
CELL = 2
"""Side in tokens of what the pooled rollout takes together."""

logger = logging.getLogger(__name__)


@dataclass(kw_only=True)
class BlockMemory:
    """What pruned frames read of a block, and write to in place."""

    keys_values: Tensor
    """(slots, 2 d): row-major in a global block, in the order of windows in a windowed one."""
    attention: Tensor | None = None
    """Of a global block, (1, s, s), or (1, cells, cells): fused over heads, and pooled."""


class Memory:
    """What pruned frames write to in place."""

    def __init__(self, output: Tensor, blocks: list[BlockMemory]) -> None:
        self.output = output
        """(1, s, d): the last block's output of every token, each from the frame it was last computed in."""
        self.blocks = blocks
        """Of every block but the first, whose keys and values are computed anew in every frame."""
        self.maps: list[LevelMaps] | None = None
        """Of the pyramid and the region proposals."""
        self.boxes: BoxMemory | None = None
        """Of the box head."""
        self.num_writes = 0

    @property
    def attention(self) -> list[Tensor]:
        """Of the global blocks, first block first."""
        return [block.attention for block in self.blocks if block.attention is not None]


@dataclass(frozen=True, kw_only=True)
class StreamState:
    """What a stream carries from frame to frame. A state is used once: its buffers go on with the stream."""

    num_frames: int
    """Frames seen, of which the next one is the number."""
    tables: tuple[Tensor, ...]
    """Relative positions of each block."""
    positions: Tensor
    """(1, s, d)."""
    patches: Tensor | None = None
    """(1, s, d) of the last frame, without positions."""
    heat: Tensor | None = None
    """(1, s), summing to 1; None where the next frame is a key frame, or nothing is pruned."""
    kept: Tensor | None = None
    """(K,) tokens that were computed in the last frame, the hottest first; None: all of them."""
    anchors: Tensor | None = None
    """(s,) which tokens the rollout of the last frame started from."""
    memory: Memory | None = None
    num_writes: int = 0
    """Of the memory, when this state was made."""

    def own_memory(self) -> Memory:
        """The buffers, to be written to.

        Raises:
            ValueError: a state that was used before.
        """
        assert self.memory is not None  # noqa: S101 - a pruned frame comes after a key frame
        if self.memory.num_writes != self.num_writes:
            raise ValueError(
                f"this state, after {self.num_frames} frames, was used before: its buffers went on with the stream; "
                "pass the state that the last step returned, or start anew with None"
            )
        return self.memory


def start(backbone: ViTDet, grid: int) -> StreamState:
    """The state before the first frame of a stream of frames of grid x grid tokens."""
    return StreamState(
        num_frames=0,
        tables=tuple(block.relative_tables(grid) for block in backbone.each_block()),
        positions=backbone.position_encoding(grid),
    )


# ---- key frames ----


def run_key_frame(
    backbone: ViTDet, patches: Tensor, state: StreamState, *, with_attention: bool, cell: int | None
) -> Memory:
    """All tokens through all blocks, and what later frames need of them.

    Args:
        backbone: the blocks.
        patches: (1, s, d), without positions.
        state: of the stream.
        with_attention: keep the global blocks' attention for the rollout.
        cell: side of the cells that attention is pooled over; None: it is not.
    """
    first, *others = zip(backbone.each_block(), state.tables, strict=True)
    x = first[0](patches + state.positions, first[1])
    memories = []
    for block, tables in others:
        x, memory = run_block_of_all(block, x, tables, with_attention=with_attention, cell=cell)
        memories.append(memory)
    return Memory(x, memories)


def run_block_of_all(
    block: Block, x: Tensor, tables: Tensor, *, with_attention: bool, cell: int | None
) -> tuple[Tensor, BlockMemory]:
    """One block of all tokens (1, s, d), and what later frames need of it; the rest as for `run_key_frame`."""
    s, d = x.shape[1:]
    qkv = block.qkv(block.input_layer_norm(x))
    keys_values = qkv[0, :, d:]
    if not block.is_global:
        layout = windows(round(s**0.5), block.window_size, x.device)
        rows = block.qkv.bias[d:].expand(layout.count * layout.area, -1).index_copy(0, layout.slots, keys_values)
        return block.finish(x, block.attend(qkv, tables)), BlockMemory(keys_values=rows)
    memory = BlockMemory(keys_values=keys_values.clone())
    if not with_attention:
        return block.finish(x, block.attend(qkv, tables)), memory
    query, key, value = _heads(qkv[0], 3, block.num_heads)
    along_y, along_x = (terms[0] for terms in relative_terms(query[None], tables))
    attended, fused = _attend_and_fuse(query, key, value, along_y, along_x)
    memory.attention = fused if cell is None else _pool_queries(pool_keys(fused, cell), cell)
    return block.finish(x, attended[None]), memory


# ---- pruned frames ----


def choose_tokens(patches: Tensor, state: StreamState, *, grid: int, keep_ratio: float) -> Tensor:
    """(K,) the tokens of the largest shifted heat, the largest first."""
    return select(shifted_heat(patches, state, grid=grid), keep_ratio=keep_ratio).kept[0]


def shifted_heat(patches: Tensor, state: StreamState, *, grid: int) -> Tensor:
    """(1, s): the heat of the frame before, where its tokens are now."""
    assert state.heat is not None  # noqa: S101 - after a frame that a pruned one follows
    assert state.patches is not None  # noqa: S101 - the same
    choice = offset_choice(patches, state.patches, grid=(grid, grid))
    return shift_heat(state.heat, choice, sources=offset_sources((grid, grid)).to(choice.device))


@dataclass(frozen=True, kw_only=True)
class Places:
    """Where the K tokens of a pruned frame stand, sorted by window."""

    order: Tensor
    """(K,) positions in the list that was given."""
    tokens: Tensor
    """(K,)"""
    y: Tensor
    """(K,) row in the frame."""
    x: Tensor
    slots: Tensor
    """(K,) ascending places in the order of windows."""
    y_inside: Tensor
    """(K,) row in the window."""
    x_inside: Tensor
    layout: Windows
    windows: list[int]
    """Windows with a kept token, ascending."""
    starts: list[int]
    """First row of each of these, and K at the end."""

    @classmethod
    def of(cls, kept: Tensor, *, grid: int, window_size: int) -> "Places":
        """Of tokens (K,) in any order."""
        layout = windows(grid, window_size, kept.device)
        slots, order = layout.slots[kept].sort()
        tokens, inside = kept[order], slots % layout.area
        numbers, counts = torch.unique_consecutive(slots // layout.area, return_counts=True)
        return cls(
            order=order,
            tokens=tokens,
            y=tokens // grid,
            x=tokens % grid,
            slots=slots,
            y_inside=inside // window_size,
            x_inside=inside % window_size,
            layout=layout,
            windows=numbers.tolist(),
            starts=[0, *counts.cumsum(0).tolist()],
        )


def run_pruned_frame(
    backbone: ViTDet,
    patches: Tensor,
    kept: Tensor,
    state: StreamState,
    *,
    with_attention: bool,
    cell: int | None,
) -> Memory:
    """The kept tokens through all blocks, and the state's memory with what is new.

    Args:
        backbone: the blocks.
        patches: (1, s, d), without positions.
        kept: (K,) tokens, in any order.
        state: of the stream; its memory is written to.
        with_attention: keep the global blocks' attention for the rollout.
        cell: side of the cells that attention is pooled over; None: it is not.

    Raises:
        ValueError: the state was used before.
    """
    memory = state.own_memory()
    places = Places.of(kept, grid=round(patches.shape[1] ** 0.5), window_size=backbone.shape.window_size)
    first, *others = zip(backbone.each_block(), state.tables, strict=True)
    x = _run_first_block(first[0], patches + state.positions, first[1], places)
    for (block, tables), remembered in zip(others, memory.blocks, strict=True):
        x, fused = run_block_of_kept(block, x, tables, remembered, places, with_attention=with_attention)
        if fused is not None and remembered.attention is not None:
            remember_attention(remembered.attention, fused, places.tokens, cell=cell)
    memory.output.index_copy_(1, places.tokens, x)
    memory.num_writes += 1
    return memory


def run_block_of_kept(
    block: Block, x: Tensor, tables: Tensor, memory: BlockMemory, places: Places, *, with_attention: bool
) -> tuple[Tensor, Tensor | None]:
    """One block of the kept tokens, which attend to all; the memory takes their keys and values.

    Args:
        block: any but the first.
        x: (1, K, d), sorted by window.
        tables: the block's relative positions.
        memory: the block's.
        places: of the tokens.
        with_attention: give a global block's attention, too.

    Returns:
        (1, K, d), and the attention fused over heads, (1, K, s), or None.
    """
    d = x.shape[-1]
    qkv = block.qkv(block.input_layer_norm(x[0]))
    memory.keys_values.index_copy_(0, places.tokens if block.is_global else places.slots, qkv[:, d:])
    (query,) = _heads(qkv[:, :d], 1, block.num_heads)
    if not block.is_global:
        return block.finish(x, _attend_in_windows(query, memory.keys_values, tables, places)[None]), None
    key, value = _heads(memory.keys_values, 2, block.num_heads)
    along_y, along_x = relative_terms_at(query, tables, places.y, places.x)
    if not with_attention:
        return block.finish(x, _attend(query, key, value, relative_bias(along_y, along_x))[None]), None
    attended, fused = _attend_and_fuse(query, key, value, along_y, along_x)
    return block.finish(x, attended[None]), fused


def _run_first_block(block: Block, x: Tensor, tables: Tensor, places: Places) -> Tensor:
    """Block 0, (1, s, d) -> (1, K, d): keys and values of all tokens in the windows of kept ones, queries of these."""
    s, d = x.shape[1:]
    layout = places.layout
    is_seen = torch.zeros(layout.count, dtype=torch.bool, device=x.device)
    is_seen[places.windows] = True
    seen = is_seen[layout.slots // layout.area].nonzero(as_tuple=True)[0]
    row_of = torch.empty(s, dtype=torch.int64, device=x.device)
    row_of[seen] = torch.arange(len(seen), device=x.device)
    normed = block.input_layer_norm(x[0].index_select(0, seen))
    weight, bias = block.qkv.weight, block.qkv.bias
    queries = linear(normed.index_select(0, row_of[places.tokens]), weight[:d], bias[:d])
    filled = bias[d:].expand(layout.count * layout.area, -1)
    keys_values = filled.index_copy(0, layout.slots[seen], linear(normed, weight[d:], bias[d:]))
    (query,) = _heads(queries, 1, block.num_heads)
    attended = _attend_in_windows(query, keys_values, tables, places)
    return block.finish(x.index_select(1, places.tokens), attended[None])


def _attend_in_windows(query: Tensor, keys_values: Tensor, tables: Tensor, places: Places) -> Tensor:
    """(heads, K, e) queries sorted by window -> (K, d)."""
    bias = relative_bias(*relative_terms_at(query, tables, places.y_inside, places.x_inside))
    area = places.layout.area
    parts = []
    for window, first, end in zip(places.windows, places.starts, places.starts[1:], strict=False):
        key, value = _heads(keys_values[window * area : (window + 1) * area], 2, len(query))
        parts.append(_attend(query[:, first:end], key, value, bias[:, first:end]))
    return torch.cat(parts)


# ---- attention ----


def _heads(rows: Tensor, count: int, num_heads: int) -> tuple[Tensor, ...]:
    """(rows, count * d) -> `count` times (heads, rows, e), views."""
    return rows.view(len(rows), count, num_heads, -1).permute(1, 2, 0, 3).unbind(0)


def _attend(query: Tensor, key: Tensor, value: Tensor, bias: Tensor) -> Tensor:
    """(heads, k, e) -> (k, d), in one piece."""
    out = scaled_dot_product_attention(query[None], key[None], value[None], attn_mask=bias[None])[0]
    return out.transpose(0, 1).flatten(1)


def _attend_and_fuse(
    query: Tensor, key: Tensor, value: Tensor, along_y: Tensor, along_x: Tensor
) -> tuple[Tensor, Tensor]:
    """Attention (k, d), and its weights fused over heads as a root mean square, (1, k, s).

    One head after another: the weights of one fit the caches, those of all would not.
    """
    heads, k, e = query.shape
    out = query.new_empty(k, heads, e)
    fused = query.new_zeros(k, key.shape[1])
    for head in range(heads):
        scores = relative_bias(along_y[head], along_x[head])
        torch.addmm(scores, query[head], key[head].T, alpha=e**-0.5, out=scores)
        weights = scores.softmax(-1)
        fused.addcmul_(weights, weights)
        torch.mm(weights, value[head], out=out[:, head])
    return out.flatten(1), fused.div_(heads).sqrt_()[None]


# ---- rollout ----


def pool_keys(fused: Tensor, cell: int) -> Tensor:
    """(1, k, s) -> (1, k, cells): sums over the keys of each cell."""
    side = round(fused.shape[-1] ** 0.5)
    grid = fused.view(*fused.shape[:-1], side // cell, cell, side // cell, cell)
    return grid.sum((-3, -1)).flatten(-2)


def _pool_queries(fused: Tensor, cell: int) -> Tensor:
    """(1, s, m) -> (1, cells, m): means over the queries of each cell."""
    side = round(fused.shape[1] ** 0.5)
    grid = fused.view(1, side // cell, cell, side // cell, cell, -1)
    return grid.mean((2, 4)).flatten(1, 2)


def remember_attention(attention: Tensor, fused: Tensor, kept: Tensor, *, cell: int | None) -> None:
    """Put the rows (1, K, s) of kept tokens into the attention of all; the other rows stay as they were.

    With cells: keys are summed over each cell, and a cell with kept tokens takes the mean over those.
    """
    if cell is None:
        attention.index_copy_(1, kept, fused)
        return
    rows = pool_keys(fused, cell)[0] if fused.shape[-1] != attention.shape[-1] else fused[0]
    cells_per_side = round(attention.shape[-1] ** 0.5)
    side = cells_per_side * cell
    cell_of = (kept // side) // cell * cells_per_side + (kept % side) // cell
    sums = torch.zeros_like(attention[0]).index_add_(0, cell_of, rows)
    counts = torch.bincount(cell_of, minlength=len(sums))
    filled = counts.nonzero(as_tuple=True)[0]
    attention.index_copy_(1, filled, (sums[filled] / counts[filled, None])[None])


def anchor_tokens(detections: Detections, *, grid: int, patch_size: int, threshold: float) -> Tensor:
    """(s,) which tokens lie in a detected box of a score above the threshold; all of them where there is no such box.

    The last row and column never do: boxes are cut off before them, as published.
    """
    mask = torch.zeros(grid, grid, dtype=torch.bool, device=detections.boxes.device)
    boxes = detections.boxes[detections.scores > threshold] / patch_size
    if not len(boxes):
        return ~mask.flatten()
    corners = torch.cat([boxes[:, :2].floor(), boxes[:, 2:].ceil()], dim=1).clamp(0, grid - 1).long()
    for left, top, right, bottom in corners.tolist():
        mask[top:bottom, left:right] = True
    return mask.flatten()


def heat_from_attention(
    attention: list[Tensor],
    anchors: Tensor,
    *,
    rollout: Rollout,
    previous: Tensor | None = None,
    kept: Tensor | None = None,
) -> Tensor:
    """(1, s), summing to 1: how much every token contributes to the anchors, by the attention of the global blocks.

    The mean of the anchors' rows of the product a_last ... a_1 (a as in `rollout.rollout_row_step`) is computed as one
    row, multiplied by one matrix after another. Where no anchor is left, which the published code divides by, all
    tokens are anchors, and a message says so.

    Args:
        attention: of the global blocks, first block first: (1, s, s), or (1, cells, cells) with "pooled".
        anchors: (s,) which tokens the rollout starts from.
        rollout: "pooled" gives every token a new heat; "backward" leaves that of dropped tokens as it was.
        previous: (1, s) the heat before, not shifted; for "backward".
        kept: (K,) tokens of a pruned frame; None: all.
    """
    side = round(len(anchors) ** 0.5)
    starts = anchors.float()
    if rollout == "pooled":
        starts = (avg_pool2d(starts.view(1, 1, side, side), CELL) >= 0.5).float().flatten()
    if not starts.any():
        logger.warning(
            "no token lies in a detected box (boxes too small, or in the last row or column): the rollout starts from "
            "all tokens instead"
        )
        starts = torch.ones_like(starts)
    row = (starts / starts.sum())[None]
    for fused in reversed(attention):
        row = rollout_row_step(row, fused)
    if rollout == "pooled":
        cells = side // CELL
        row = interpolate(row.view(1, 1, cells, cells), scale_factor=CELL, mode="bilinear", align_corners=False)
        row = row.flatten(1)
    elif kept is not None and previous is not None:
        row = previous.index_copy(1, kept, row[:, kept])
    return row / row.sum(-1, keepdim=True)


def next_state(state: StreamState, **changes: object) -> StreamState:
    """The state after a frame."""
    return replace(state, num_frames=state.num_frames + 1, **changes)  # type: ignore[arg-type]
