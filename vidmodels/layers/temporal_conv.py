"""Depthwise convolution along time whose kernel belongs to the clip, the frame and the channel."""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.utils.flop_counter import register_flop_formula

__all__ = ["temporal_conv"]


def temporal_conv(x: Tensor, kernel: Tensor) -> Tensor:
    """Every frame becomes a weighted sum of itself and its neighbours, with zeros beyond both ends of the clip:

        y[n, t, c] = sum_j kernel[n, t, c, j] * x[n, t + j - k // 2, c]

    Nothing is copied into another order of the axes; whatever layout `x` has in memory, the result has too. Cost
    counters see it as a convolution: k multiply-accumulates for each value of y.

    Args:
        x: (n, t, c, h, w).
        kernel: (n, t, c, k), k odd; taken in x's precision.

    Raises:
        ValueError: shapes that do not fit, or an even number of taps.
    """
    if kernel.ndim != 4 or kernel.shape[:3] != x.shape[:3] or kernel.shape[3] % 2 == 0:
        raise ValueError(
            f"x (n, t, c, h, w) needs a kernel (n, t, c, odd number of taps), got {tuple(x.shape)} and "
            f"{tuple(kernel.shape)}"
        )
    if torch.compiler.is_exporting():  # other programs do not know the operator
        return _of_known_operators(x, kernel.to(x.dtype))
    result: Tensor = _temporal_conv(x, kernel.to(x.dtype))
    return result


def _of_known_operators(x: Tensor, kernel: Tensor) -> Tensor:
    num_frames, num_taps = kernel.shape[1], kernel.shape[3]
    padded = pad(x, (0, 0) * 3 + (num_taps // 2, num_taps // 2))
    taps = kernel[..., None, None].unbind(3)
    y = padded[:, :num_frames] * taps[0]
    for index in range(1, num_taps):
        y = y + padded[:, index : index + num_frames] * taps[index]
    return y


# An operator of its own, so that cost counters see one convolution and not a dozen products that they leave out.
@torch.library.custom_op("vidmodels::temporal_conv", mutates_args=())
def _temporal_conv(x: Tensor, kernel: Tensor) -> Tensor:
    num_frames, num_taps = kernel.shape[1], kernel.shape[3]
    taps = kernel[..., None, None].unbind(3)
    y = torch.empty_like(x)
    torch.mul(x, taps[num_taps // 2], out=y)
    for distance in range(1, min(num_taps // 2, num_frames - 1) + 1):
        before, after = taps[num_taps // 2 - distance], taps[num_taps // 2 + distance]
        y[:, distance:].addcmul_(x[:, :-distance], before[:, distance:])
        y[:, :-distance].addcmul_(x[:, distance:], after[:, :-distance])
    return y


@_temporal_conv.register_fake
def _(x: Tensor, kernel: Tensor) -> Tensor:
    return torch.empty_like(x)


def _save_for_backward(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
    x, kernel = ctx.saved_tensors
    num_taps = kernel.shape[3]
    grad_x = _temporal_conv(grad, _transposed(kernel))
    products = [(grad * shift(x, tap - num_taps // 2)).sum((-2, -1)) for tap in range(num_taps)]
    return grad_x, torch.stack(products, dim=-1)


def _transposed(kernel: Tensor) -> Tensor:
    """The kernel that sends gradients back: what frame t gave to frame t + d, it now gets from there."""
    half = kernel.shape[3] // 2
    return torch.stack([shift(kernel[..., half - offset], offset) for offset in range(-half, half + 1)], dim=-1)


def shift(x: Tensor, offset: int) -> Tensor:
    """x[:, t + offset] at t, zeros where there is no such frame: (n, t, ...) -> (n, t, ...)."""
    shifted = torch.zeros_like(x)
    num_frames = x.shape[1]
    if abs(offset) < num_frames:
        first, last = max(0, -offset), num_frames - max(0, offset)
        shifted[:, first:last] = x[:, first + offset : last + offset]
    return shifted


_temporal_conv.register_autograd(_backward, setup_context=_save_for_backward)


@register_flop_formula(torch.ops.vidmodels.temporal_conv)
def _flops(x_shape: torch.Size, kernel_shape: torch.Size, *_: Any, **__: Any) -> int:
    return 2 * x_shape.numel() * kernel_shape[3]
