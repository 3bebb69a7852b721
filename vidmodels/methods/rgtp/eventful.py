"""Eventful Transformers' blocks, the baseline of the paper: every token lives on, but few are computed anew.

    norm1 -- gate: the k tokens that changed most --> qkv of these --> buffer
    scores: rows and columns of these --> softmax -- gates --> product of attention and values, by differences
    gate --> projection --> buffer, added to x;   norm2 -- gate --> MLP --> buffer, added to x

A gate compares every token with what it last let through, and lets the k of the largest difference through. State is
passed and returned. Source: Dutson et al., ICCV 2023, as in the published code of RGTP, specification section 2.9.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from vidmodels.backbones.vivit import Block
from vidmodels.layers.token_ops import gather_rows

__all__ = ["BlockState", "run", "step"]

ValueCast = Literal["float16", "bfloat16"] | None


class BlockState(NamedTuple):
    """What a block remembers of the time steps before, of n streams."""

    qkv_input: Tensor
    """(n, s, d): what the gate before the queries, keys and values last let through, token by token."""
    qkv: Tensor
    """(n, s, 3 d): their last results."""
    scores: Tensor
    """(n, heads, s, s): scaled products of queries and keys."""
    weights: Tensor
    """(n, heads, s, s): attention, each column from when its token was last let through."""
    product: Tensor
    """(n, heads, s, e): attention times values, kept up to date by differences."""
    proj_input: Tensor
    """(n, s, d): as `qkv_input`, before the output projection."""
    proj: Tensor
    """(n, s, d)."""
    mlp_input: Tensor
    """(n, s, d): as `qkv_input`, before the MLP."""
    mlp: Tensor
    """(n, s, d)."""


def run(
    blocks: Sequence[Block],
    x: Tensor,
    states: Sequence[BlockState] | None,
    *,
    top_k: int,
    value_cast: ValueCast = None,
) -> tuple[Tensor, tuple[BlockState, ...]]:
    """One time step through all blocks.

    Args:
        blocks: in order.
        x: (n, s, d), class token and positions included.
        states: of the time step before, one a block; None: this is the first, and everything is computed.
        top_k: k, tokens that a gate lets through; all where there are fewer.
        value_cast: type of the product of attention and values; None: as they are.

    Returns:
        (n, s, d) after the last block, and the states for the next time step.
    """
    after = []
    for index, block in enumerate(blocks):
        x, state = step(block, x, states[index] if states is not None else None, top_k=top_k, value_cast=value_cast)
        after.append(state)
    return x, tuple(after)


def step(
    block: Block, x: Tensor, state: BlockState | None, *, top_k: int, value_cast: ValueCast = None
) -> tuple[Tensor, BlockState]:
    """One time step through one block; see `run`."""
    if state is None:
        return _first_step(block, x, value_cast)
    attention, top_k = block.attn, min(top_k, x.shape[1])
    index, qkv_input = _gate(block.norm1(x), state.qkv_input, top_k)
    qkv = _put(state.qkv, index, attention.qkv(gather_rows(qkv_input, index)))
    query, key, value = _heads(qkv, attention.num_heads)
    scores = _update_scores(state.scores, query, key, index)
    new_weights = scores.softmax(-1)
    weights, product = _update_product(state, new_weights, value, index, value_cast)
    index, proj_input = _gate(product.transpose(1, 2).flatten(2), state.proj_input, top_k)
    proj = _put(state.proj, index, attention.proj(gather_rows(proj_input, index)))
    x = x + proj
    index, mlp_input = _gate(block.norm2(x), state.mlp_input, top_k)
    mlp = _put(state.mlp, index, block.mlp(gather_rows(mlp_input, index)))
    return x + mlp, BlockState(
        qkv_input=qkv_input,
        qkv=qkv,
        scores=scores,
        weights=weights,
        product=product,
        proj_input=proj_input,
        proj=proj,
        mlp_input=mlp_input,
        mlp=mlp,
    )


def _first_step(block: Block, x: Tensor, value_cast: ValueCast) -> tuple[Tensor, BlockState]:
    """Everything is computed, and fills the buffers."""
    attention = block.attn
    qkv_input = block.norm1(x)
    qkv = attention.qkv(qkv_input)
    query, key, value = _heads(qkv, attention.num_heads)
    scores = _scale(query) @ key.transpose(-2, -1)
    weights = scores.softmax(-1)
    product = _multiply(weights, value, value_cast)
    proj_input = product.transpose(1, 2).flatten(2)
    proj = attention.proj(proj_input)
    x = x + proj
    mlp_input = block.norm2(x)
    mlp = block.mlp(mlp_input)
    return x + mlp, BlockState(
        qkv_input=qkv_input,
        qkv=qkv,
        scores=scores,
        weights=weights,
        product=product,
        proj_input=proj_input,
        proj=proj,
        mlp_input=mlp_input,
        mlp=mlp,
    )


def _gate(x: Tensor, reference: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
    """Which k tokens (n, k) differ most from the reference, by L2 norm, and the reference with these let through."""
    index = (x - reference).norm(dim=-1).topk(top_k, dim=-1, sorted=False).indices
    return index, _put(reference, index, gather_rows(x, index))


def _put(buffer: Tensor, index: Tensor, rows: Tensor) -> Tensor:
    """The buffer (n, s, c) with these rows (n, k, c) in these places."""
    return buffer.scatter(1, index[..., None].expand(-1, -1, buffer.shape[-1]), rows)


def _update_scores(scores: Tensor, query: Tensor, key: Tensor, index: Tensor) -> Tensor:
    """New rows for the tokens' queries, and new columns for their keys."""
    heads, s = scores.shape[1], scores.shape[-1]
    rows = _take(_scale(query), index) @ key.transpose(-2, -1)
    columns = _scale(query) @ _take(key, index).transpose(-2, -1)
    place = index[:, None, :].expand(-1, heads, -1)
    updated = scores.scatter(2, place[..., None].expand(-1, -1, -1, s), rows)
    return updated.scatter_(3, place[:, :, None].expand(-1, -1, s, -1), columns)


def _update_product(
    state: BlockState, new_weights: Tensor, value: Tensor, index: Tensor, value_cast: ValueCast
) -> tuple[Tensor, Tensor]:
    """Attention as far as it was let through, and attention times values: A dv + dA v_old, over the tokens' columns."""
    heads, s = new_weights.shape[1], new_weights.shape[-1]
    old_value = _heads(state.qkv, heads)[2]
    new_rows, old_rows = _take(value, index), _take(old_value, index)
    columns = index[:, None, None].expand(-1, heads, s, -1)
    accepted = new_weights.gather(3, columns)
    change = accepted - state.weights.gather(3, columns)
    difference = new_rows - old_rows
    product = state.product + _multiply(accepted, difference, value_cast)
    product = product + _multiply(change, new_rows - difference, value_cast)
    return state.weights.scatter(3, columns, accepted), product


def _multiply(weights: Tensor, value: Tensor, value_cast: ValueCast) -> Tensor:
    if value_cast is None:
        return weights @ value
    dtype = torch.float16 if value_cast == "float16" else torch.bfloat16
    product: Tensor = weights.to(dtype) @ value.to(dtype)
    return product.to(value.dtype)


def _scale(query: Tensor) -> Tensor:
    return query.mul(query.shape[-1] ** -0.5)


def _heads(qkv: Tensor, num_heads: int) -> tuple[Tensor, ...]:
    """(n, s, 3 d) -> queries, keys and values, each (n, heads, s, e)."""
    return qkv.view(*qkv.shape[:2], 3, num_heads, -1).transpose(1, 3).unbind(2)


def _take(x: Tensor, index: Tensor) -> Tensor:
    """Rows (n, k) of every head of (n, heads, s, e)."""
    return x.gather(2, index[:, None, :, None].expand(-1, x.shape[1], -1, x.shape[-1]))
