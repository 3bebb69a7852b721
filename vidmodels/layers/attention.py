"""Multi-head attention that gives its weights as well."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

__all__ = ["Attended", "MultiHeadAttention", "sinusoidal_positions"]


class Attended(NamedTuple):
    """Result of one attention."""

    out: Tensor
    """(n, s, d), after the output projection."""
    weights: Tensor
    """(n, heads, s, s) softmax weights; a row sums to 1."""


class MultiHeadAttention(nn.Module):
    """softmax(Q K^T / sqrt(d / heads) + bias) V with projections before and after.

    `in_proj.weight` is (3 d, d), rows of query, key and value in this order, as in `torch.nn.MultiheadAttention`.
    The products are explicit: sequences here are a few frames long, and the weights are wanted.
    """

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        if width % num_heads:
            raise ValueError(f"a width of {width} does not divide into {num_heads} heads; choose a divisor of {width}")
        self.num_heads = num_heads
        self.in_proj = nn.Linear(width, 3 * width)
        self.out_proj = nn.Linear(width, width)
        nn.init.xavier_uniform_(self.in_proj.weight)
        nn.init.zeros_(self.in_proj.bias)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, x: Tensor, *, value: Tensor | None = None, bias: Tensor | None = None) -> Attended:
        """Attend within each row of x.

        Args:
            x: (n, s, d), query and key, and value too unless given.
            value: (n, s, d), where the value is not the query.
            bias: (s, s) added to the scores [query, key]; -inf masks.
        """
        if value is None:
            query, key, values = self.in_proj(x).chunk(3, dim=-1)
        else:
            d = x.shape[-1]
            weight, offset = self.in_proj.weight, self.in_proj.bias
            query, key = nn.functional.linear(x, weight[: 2 * d], offset[: 2 * d]).chunk(2, dim=-1)
            values = nn.functional.linear(value, weight[2 * d :], offset[2 * d :])
        query, key, values = (
            part.view(*part.shape[:2], self.num_heads, -1).transpose(1, 2) for part in (query, key, values)
        )
        scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-2, -1)
        weights = (scores if bias is None else scores + bias).softmax(-1)
        return Attended(self.out_proj((weights @ values).transpose(1, 2).flatten(2)), weights)


def sinusoidal_positions(length: int, width: int, *, like: Tensor, compute: torch.dtype = torch.float32) -> Tensor:
    """(length, width): sin(p / 10000^(2i/d)) in the even columns 2i, the cosine of the same angle in 2i + 1.

    Computed in the type `compute`, then brought to the type and device of `like`.
    Source: Vaswani et al., 2017, section 3.5.
    """
    even = torch.arange(0, width, 2, device=like.device, dtype=compute)
    angles = torch.arange(length, device=like.device)[:, None] * torch.pow(10000.0, -even / width)
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)[:, :width].to(like.dtype)
