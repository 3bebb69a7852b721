"""Binary gates that are 0 or 1 going forward and smooth going back."""

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["GateNoise", "draw_gate_noise", "open_gates", "straight_through_gate"]

EPSILON = 1e-8


class GateNoise(NamedTuple):
    """Uniform draws in [0, 1) for the two Gumbel variables of a binary gate, each of the logits' shape."""

    u1: Tensor
    u2: Tensor


def draw_gate_noise(logits: Tensor, generator: torch.Generator | None = None) -> GateNoise:
    """Draws for these logits, u1 first; from torch's global generator unless one is given."""
    u1 = torch.rand(logits.shape, generator=generator, dtype=logits.dtype, device=logits.device)
    u2 = torch.rand(logits.shape, generator=generator, dtype=logits.dtype, device=logits.device)
    return GateNoise(u1, u2)


def straight_through_gate(logits: Tensor, *, temperature: float, noise: GateNoise | None = None) -> Tensor:
    """1 where s = sigmoid((logits + g1 - g2) / temperature) is at least 0.5, else 0, with the gradient of s.

    g = -log(-log(u + 1e-8) + 1e-8). The value is (hard - s) + s and may miss 0 or 1 by one rounding step.

    Source: Jang et al., 2017 (Gumbel softmax), for two classes; constants of the published code of TAPS.
    """
    if noise is not None:
        logits = logits + _gumbel(noise.u1) - _gumbel(noise.u2)
    soft = torch.sigmoid(logits / temperature)
    return ((soft >= 0.5).to(soft.dtype) - soft).detach() + soft


def open_gates(logits: Tensor) -> Tensor:
    """The gate of evaluation: 1 where the logit is at least 0, without noise and without gradient."""
    return (logits >= 0).to(logits.dtype)


def _gumbel(u: Tensor) -> Tensor:
    return -torch.log(-torch.log(u + EPSILON) + EPSILON)
