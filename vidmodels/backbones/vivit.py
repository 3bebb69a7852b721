"""ViViT with a factorised encoder: a vision transformer for every time step, and a small one over their class tokens.

    frames (n, t, 3, h, w) -- patch_embed --> (n, time, p, d)
    each time step: class token + patches -- spatial: 12 blocks --> its class token (d)
    class token + (n, time, d) -- temporal: 4 blocks --> its class token (n, d)

A method that drops tokens runs the spatial sub-model's parts itself, with queries of only some tokens where it wants.
Source: Arnab et al., 2021, model 2; TAdaConv's implementation of it.
"""

from typing import NamedTuple

import torch
from timm.layers.drop import DropPath
from torch import Tensor, nn
from torch.nn.functional import interpolate, linear, scaled_dot_product_attention

from vidmodels.backbones.vit import LAYER_NORM_EPS, Mlp, ViTShape, init_weights
from vidmodels.layers.patch_embed import TubeletEmbed

__all__ = ["Attended", "Attention", "Block", "FactorisedViViT", "SubModel", "resize_positions"]


class Attended(NamedTuple):
    """Result of one attention."""

    out: Tensor
    """(n, q, d), heads side by side, before the output projection."""
    weights: Tensor | None
    """(n, heads, q, s); None unless asked for, which is faster."""


class Attention(nn.Module):
    """Multi-head self-attention, fused unless its weights are wanted. Queries, keys and values have a bias."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(n, s, d) -> (n, s, d)."""
        return self.proj(self.attend(*self.project(x)).out)  # type: ignore[no-any-return]

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of tokens (n, s, d), each (n, heads, s, e)."""
        query, key, value = self._heads(self.qkv(x), 3)
        return query, key, value

    def queries(self, x: Tensor) -> Tensor:
        """Of tokens (n, q, d): (n, heads, q, e)."""
        d = x.shape[-1]
        (query,) = self._heads(linear(x, self.qkv.weight[:d], self.qkv.bias[:d]), 1)
        return query

    def keys_values(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Of tokens (n, s, d), each (n, heads, s, e)."""
        d = x.shape[-1]
        key, value = self._heads(linear(x, self.qkv.weight[d:], self.qkv.bias[d:]), 2)
        return key, value

    def attend(self, query: Tensor, key: Tensor, value: Tensor, *, with_weights: bool = False) -> Attended:
        """softmax(Q K^T / sqrt(e)) V, and the softmax if asked for."""
        if not with_weights:
            out, weights = scaled_dot_product_attention(query, key, value), None
        else:
            weights = ((query * query.shape[-1] ** -0.5) @ key.transpose(-2, -1)).softmax(-1)
            out = weights @ value
        return Attended(out.transpose(1, 2).flatten(2), weights)

    def _heads(self, x: Tensor, num_parts: int) -> tuple[Tensor, ...]:
        """(n, s, parts * heads * e) -> parts of (n, heads, s, e), without a copy."""
        width = x.shape[-1] // (num_parts * self.num_heads)
        return x.view(*x.shape[:2], num_parts, self.num_heads, width).transpose(1, 3).unbind(2)


class Block(nn.Module):
    """x + attention(norm(x)), then x + MLP(norm(x))."""

    def __init__(self, shape: ViTShape, *, drop_path: float = 0.0) -> None:
        super().__init__()
        d = shape.width
        self.norm1 = nn.LayerNorm(d, eps=LAYER_NORM_EPS)
        self.attn = Attention(d, shape.num_heads)
        self.drop_path = DropPath(drop_path)
        self.norm2 = nn.LayerNorm(d, eps=LAYER_NORM_EPS)
        self.mlp = Mlp(d, d * shape.mlp_ratio)

    def forward(self, x: Tensor) -> Tensor:
        """(n, s, d) -> (n, s, d)."""
        return self.feed_forward(self.add(x, self.attn(self.norm1(x))))

    def feed_forward(self, x: Tensor) -> Tensor:
        """The second half, token by token."""
        return self.add(x, self.mlp(self.norm2(x)))

    def add(self, x: Tensor, new: Tensor) -> Tensor:
        """The residual sum; `new` is given up."""
        new = self.drop_path(new)
        return new.add_(x) if new.dtype == x.dtype else x + new


class SubModel(nn.Module):
    """Class token, learnt positions, blocks, norm: tokens (n, s, d) in, the class token (n, d) out."""

    def __init__(self, shape: ViTShape, *, num_tokens: int, drop_path: tuple[float, ...]) -> None:
        """Build with random weights.

        Args:
            shape: sizes; its depth counts.
            num_tokens: s that the position encoding is stored for, without the class token.
            drop_path: stochastic depth of each block.
        """
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, shape.width))
        self.pos_embed = nn.Parameter(torch.zeros(1, num_tokens + 1, shape.width))
        self.blocks = nn.ModuleList(Block(shape, drop_path=rate) for rate in drop_path)
        self.norm = nn.LayerNorm(shape.width, eps=LAYER_NORM_EPS)
        nn.init.trunc_normal_(self.cls_token, std=0.02)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        self.apply(init_weights)

    def with_class_token(self, x: Tensor, positions: Tensor | None = None) -> Tensor:
        """(n, s, d) -> (n, s + 1, d), class token first, positions added.

        Args:
            x: tokens.
            positions: (1, s + 1, d) instead of the stored ones.
        """
        positions = self.pos_embed if positions is None else positions
        first = (self.cls_token + positions[:, :1]).expand(x.shape[0], -1, -1)
        return torch.cat([first, x + positions[:, 1:]], dim=1)

    def forward(self, x: Tensor, positions: Tensor | None = None) -> Tensor:
        """All blocks, every token."""
        x = self.with_class_token(x, positions)
        for block in self.blocks:
            x = block(x)
        return self.norm(x[:, 0])  # type: ignore[no-any-return]


class FactorisedViViT(nn.Module):
    """`patch_embed`, `spatial` and `temporal`; their parts are run by the method."""

    def __init__(
        self,
        shape: ViTShape,
        *,
        temporal_depth: int,
        num_frames: int,
        image_size: int,
        position_grid: tuple[int, int] | None = None,
        drop_path: float = 0.0,
    ) -> None:
        """Build with random weights.

        Args:
            shape: sizes; its depth is that of the spatial sub-model.
            temporal_depth: of the other one.
            num_frames: t of every clip.
            image_size: side of every frame in pixels.
            position_grid: rows and columns that positions are stored for; None: those of the frames.
            drop_path: stochastic depth of the last of all blocks, rising linearly from 0 at the first.

        Raises:
            ValueError: the clip does not divide into tubelets.
        """
        super().__init__()
        if num_frames % shape.tubelet or image_size % shape.patch_size:
            raise ValueError(
                f"{num_frames} frames of {image_size} x {image_size} do not divide into tubelets of "
                f"{shape.tubelet} x {shape.patch_size} x {shape.patch_size}"
            )
        self.shape = shape
        self.num_steps, *grid = shape.grid(num_frames, image_size, image_size)
        self.grid = (grid[0], grid[1])
        self.position_grid = position_grid or self.grid
        depth = shape.depth + temporal_depth
        rates = tuple(drop_path * index / max(depth - 1, 1) for index in range(depth))
        self.patch_embed = TubeletEmbed(shape.width, patch_size=shape.patch_size, tubelet=shape.tubelet)
        stored = self.position_grid[0] * self.position_grid[1]
        self.spatial = SubModel(shape, num_tokens=stored, drop_path=rates[: shape.depth])
        self.temporal = SubModel(shape, num_tokens=self.num_steps, drop_path=rates[shape.depth :])

    @property
    def num_patches(self) -> int:
        """p, of a time step."""
        return self.grid[0] * self.grid[1]

    def embed(self, frames: Tensor) -> Tensor:
        """(n, t, 3, h, w) -> (n, time, p, d), without positions.

        Raises:
            ValueError: frames of another size than the model was built for.
        """
        rows, columns = (side // self.shape.patch_size for side in frames.shape[-2:])
        if (rows, columns) != self.grid:
            raise ValueError(
                f"the model is for frames of {self.grid[0]} x {self.grid[1]} patches, got {rows} x {columns}; build it "
                "for these"
            )
        tokens: Tensor = self.patch_embed(frames)
        return tokens.view(tokens.shape[0], -1, self.num_patches, tokens.shape[-1])

    def positions(self) -> Tensor:
        """(1, p + 1, d): the spatial sub-model's positions, resized where they are stored for another grid."""
        return resize_positions(self.spatial.pos_embed, self.position_grid, self.grid)


def resize_positions(encoding: Tensor, stored: tuple[int, int], wanted: tuple[int, int]) -> Tensor:
    """Learnt positions (1, 1 + rows * columns, d) for another grid: bicubic; the class token's stays as it is."""
    if stored == wanted:
        return encoding
    patches = encoding[:, 1:].view(1, *stored, -1).movedim(-1, 1)
    patches = interpolate(patches, size=wanted, mode="bicubic", align_corners=False)
    return torch.cat([encoding[:, :1], patches.flatten(2).transpose(1, 2)], dim=1)
