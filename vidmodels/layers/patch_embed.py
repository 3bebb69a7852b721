"""Frames to tokens: tubelets, small boxes of pixels in space and time, each projected to one token."""

import torch
from torch import Tensor, nn

__all__ = ["TubeletEmbed"]


class TubeletEmbed(nn.Module):
    """(n, t, c, h, w) -> (n, s, d), tokens in the order time, row, column.

    `proj` holds the weights of a Conv3d whose stride is its kernel, under whose names checkpoints have them. The boxes
    do not overlap, so it is computed as one matrix product: the same sums, faster on a CPU, without a permuted copy
    of the clip.
    """

    def __init__(self, width: int, *, patch_size: int, tubelet: int, in_channels: int = 3) -> None:
        super().__init__()
        self.patch_size, self.tubelet = patch_size, tubelet
        kernel = (tubelet, patch_size, patch_size)
        self.proj = nn.Conv3d(in_channels, width, kernel_size=kernel, stride=kernel)

    def forward(self, frames: Tensor) -> Tensor:
        """Embed clips whose length and sides are multiples of the box.

        Raises:
            ValueError: they are not.
        """
        n, t, c, h, w = frames.shape
        p, u = self.patch_size, self.tubelet
        if t % u or h % p or w % p:
            raise ValueError(f"{t} frames of {h} x {w} do not divide into boxes of {u} x {p} x {p}")
        boxes = frames.view(n, t // u, u, c, h // p, p, w // p, p).permute(0, 1, 4, 6, 3, 2, 5, 7)
        rows = boxes.reshape(n, -1, c * u * p * p)
        return torch.nn.functional.linear(rows, self.proj.weight.flatten(1), self.proj.bias)
