"""The policy of one residual block: which channels of conv1 each frame keeps, decided from all frames of its clip."""

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.functional import relu

from vidmodels.layers.attention import MultiHeadAttention, sinusoidal_positions

__all__ = ["AttentionMode", "Policy", "PolicyOutput", "attention_bias"]

AttentionMode = Literal["full", "future_bias", "causal"]


@dataclass(frozen=True, kw_only=True)
class PolicyOutput:
    """The gate logits and every step on the way to them; n clips of t frames, c input channels."""

    logits: Tensor
    """(n, t, gates)."""
    attention1: Tensor
    """(n, t, c), after the output projection; so is `attention2`."""
    weights1: Tensor
    """(n, heads, t, t)."""
    norm1: Tensor
    attention2: Tensor
    weights2: Tensor
    norm2: Tensor
    mlp_input: Tensor
    """(n, t, 2 c): attention branch, then the pooled input."""
    hidden: Tensor
    """(n, t, D), before batch norm."""
    hidden_normed: Tensor
    """(n, t, D), after batch norm, before the ReLU."""


class Policy(nn.Module):
    """Two self-attentions over time, then an MLP from (attention output, pooled input) to one logit per channel.

    Args:
        in_channels: c.
        num_gates: channels that are gated.
        hidden_dim: D of the MLP.
        num_heads: of both attentions.
        feed_forward: a third sub-layer between attention and MLP.
        positional_encoding: sinusoids on query and key of the first attention.

    Source: TAPS, specification section 2.4.
    """

    def __init__(
        self,
        in_channels: int,
        num_gates: int,
        *,
        hidden_dim: int,
        num_heads: int,
        feed_forward: bool = False,
        positional_encoding: bool = False,
    ) -> None:
        super().__init__()
        self.positional_encoding = positional_encoding
        self.attention1 = MultiHeadAttention(in_channels, num_heads)
        self.norm1 = nn.LayerNorm(in_channels)
        self.attention2 = MultiHeadAttention(in_channels, num_heads)
        self.norm2 = nn.LayerNorm(in_channels)
        self.feed_forward: nn.Sequential | None = None
        self.norm3: nn.LayerNorm | None = None
        if feed_forward:
            self.feed_forward = nn.Sequential(
                nn.Linear(in_channels, 4 * in_channels), nn.ReLU(), nn.Linear(4 * in_channels, in_channels)
            )
            self.norm3 = nn.LayerNorm(in_channels)
        self.hidden = nn.Linear(2 * in_channels, hidden_dim)
        self.hidden_norm = nn.BatchNorm1d(hidden_dim)
        self.gate = nn.Linear(hidden_dim, num_gates)
        for linear in (self.hidden, self.gate):
            nn.init.normal_(linear.weight, std=0.001)
            nn.init.zeros_(linear.bias)

    def forward(self, pooled: Tensor, *, attention: AttentionMode = "full") -> PolicyOutput:
        """Gate logits of each frame.

        Args:
            pooled: (n, t, c), the block's (shifted) input averaged over space.
            attention: what a frame sees of later ones.
        """
        bias = attention_bias(attention, pooled.shape[1], like=pooled)
        if self.positional_encoding:
            placed = pooled + sinusoidal_positions(pooled.shape[1], pooled.shape[2], like=pooled)
            attention1, weights1 = self.attention1(placed, value=pooled, bias=bias)
        else:
            attention1, weights1 = self.attention1(pooled, bias=bias)
        norm1 = self.norm1(pooled + attention1)
        attention2, weights2 = self.attention2(norm1, bias=bias)
        norm2 = self.norm2(norm1 + attention2)
        attended = norm2
        if self.feed_forward is not None and self.norm3 is not None:
            attended = self.norm3(norm2 + self.feed_forward(norm2))
        mlp_input = torch.cat([attended, pooled], dim=-1)
        hidden = self.hidden(mlp_input)
        # Frames and clips are normalised together: (n, t, D) -> (n*t, D).
        hidden_normed = self.hidden_norm(hidden.flatten(0, 1)).view_as(hidden)
        return PolicyOutput(
            logits=self.gate(relu(hidden_normed)),
            attention1=attention1,
            weights1=weights1,
            norm1=norm1,
            attention2=attention2,
            weights2=weights2,
            norm2=norm2,
            mlp_input=mlp_input,
            hidden=hidden,
            hidden_normed=hidden_normed,
        )


def attention_bias(mode: AttentionMode, num_frames: int, *, like: Tensor) -> Tensor | None:
    """(t, t) added to the scores [query, key]: None, +1 on later frames, or -inf on them.

    "future_bias" is what the published "online" flag does: its float mask is added, so later frames are attended
    MORE. "causal" is what the flag's name says. Source: specification section 2.5.

    Raises:
        ValueError: no such mode.
    """
    if mode not in get_args(AttentionMode):
        raise ValueError(f"no attention {mode!r}; expected {', '.join(get_args(AttentionMode))}")
    if mode == "full":
        return None
    value = 1.0 if mode == "future_bias" else float("-inf")
    future = torch.ones(num_frames, num_frames, dtype=torch.bool, device=like.device).triu(1)
    return torch.zeros(num_frames, num_frames, dtype=like.dtype, device=like.device).masked_fill(future, value)
