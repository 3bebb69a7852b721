"""ViTDet's backbone: a vision transformer with windowed and global blocks, and a pyramid of its last map.

    images (n, 3, S, S) -- PatchEmbedding --> (n, s, d), s = g * g tokens, row-major, g = S / 16
       + positions, resized to g x g
       block 0 (14 x 14 windows), 1 (windows), 2 (global), 3, 4, 5 (global), ... 11 (global)      no norm at the end
    (n, d, g, g) -- Pyramid --> p2 (stride 4), p3, p4, p5, p6 (stride 64)

Training and plain evaluation run `ViTDet.forward`. What keeps only some tokens runs the parts of the blocks itself.
Source: Li et al., "Exploring Plain Vision Transformer Backbones for Object Detection" (ECCV 2022); arithmetic and names
of entries as in the RGTP code, whose checkpoints have them.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, interpolate, layer_norm, max_pool2d, scaled_dot_product_attention

__all__ = [
    "Block",
    "LayerNorm2d",
    "PatchEmbedding",
    "Pyramid",
    "ViTDet",
    "ViTDetShape",
    "Windows",
    "relative_bias",
    "relative_terms",
    "relative_terms_at",
    "windows",
]

LAYER_NORM_EPS = 1e-6


@dataclass(frozen=True, kw_only=True)
class ViTDetShape:
    """Size of the transformer; the defaults are ViTDet-B."""

    width: int = 768
    """d, of a token."""
    depth: int = 12
    num_heads: int = 12
    mlp_ratio: int = 4
    patch_size: int = 16
    """Side of a patch in pixels."""
    window_size: int = 14
    """Side of a window, in tokens."""
    global_blocks: tuple[int, ...] = (2, 5, 8, 11)
    """Blocks (from 0) that attend to the whole frame; the others attend within windows."""
    position_grid: int = 14
    """Side of the stored position table."""
    relative_position_size: int = 64
    """Side of the grid that the relative positions of global blocks are stored for."""

    def __post_init__(self) -> None:
        sizes = ("width", "depth", "num_heads", "mlp_ratio", "patch_size", "window_size", "position_grid")
        for name in (*sizes, "relative_position_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.width % self.num_heads:
            raise ValueError(f"a width of {self.width} does not divide into {self.num_heads} heads")
        outside = [block for block in self.global_blocks if not 0 <= block < self.depth]
        if outside:
            raise ValueError(f"global_blocks lie in 0 ... {self.depth - 1}, got {outside}")


# ---- windows ----


@dataclass(frozen=True, kw_only=True)
class Windows:
    """How a grid of g x g tokens lies in windows; the grid is filled up at the bottom and right to whole windows."""

    count: int
    area: int
    """Tokens of a window."""
    slots: Tensor
    """(s,) where token i stands: window * area + row in it * side + column in it."""


@lru_cache(maxsize=32)
def windows(grid: int, side: int, device: torch.device) -> Windows:
    """The windows of a grid.

    Args:
        grid: g, tokens along a side.
        side: tokens along a side of a window.
        device: where the numbers live.
    """
    per_side = -(-grid // side)
    with torch.inference_mode(mode=False):  # kept for all callers, those that need gradients among them
        position = torch.arange(grid, device=device)
        window, inside = position // side, position % side
        slots = (window[:, None] * per_side + window) * side**2 + inside[:, None] * side + inside
        return Windows(count=per_side**2, area=side**2, slots=slots.flatten())


# ---- parts of the transformer ----


class PatchEmbedding(nn.Module):
    """(n, 3, S, S) -> (n, s, d), patches row-major, without positions."""

    def __init__(self, shape: ViTDetShape) -> None:
        super().__init__()
        size = shape.patch_size
        self.conv = nn.Conv2d(3, shape.width, kernel_size=size, stride=size)

    def forward(self, images: Tensor) -> Tensor:
        """Embed images whose sides are multiples of the patch."""
        return self.conv(images).flatten(2).transpose(1, 2)  # type: ignore[no-any-return]


class PositionEncoding(nn.Module):
    """A learnt position of each token."""

    def __init__(self, shape: ViTDetShape) -> None:
        super().__init__()
        self.grid = shape.position_grid
        self.encoding = nn.Parameter(torch.empty(1, shape.position_grid**2, shape.width))
        nn.init.trunc_normal_(self.encoding, std=0.02)

    def forward(self, grid: int) -> Tensor:
        """(1, grid * grid, d): resized by bicubic interpolation."""
        if grid == self.grid:
            return self.encoding
        table = self.encoding.view(1, self.grid, self.grid, -1).permute(0, 3, 1, 2)
        resized = interpolate(table, size=(grid, grid), mode="bicubic", align_corners=False)
        return resized.permute(0, 2, 3, 1).flatten(1, 2)


class RelativePosition(nn.Module):
    """Decomposed relative positions: one vector for each distance along y, one for each along x."""

    def __init__(self, size: int, head_width: int) -> None:
        super().__init__()
        self.size = size
        self.y_embedding = nn.Parameter(torch.zeros(2 * size - 1, head_width))
        self.x_embedding = nn.Parameter(torch.zeros(2 * size - 1, head_width))

    def forward(self, grid: int) -> Tensor:
        """(2, grid, grid, e): along y and x, the vector for [position of the query, position of the key].

        The tables of another grid are those of the own one, gathered and then resized as an image with e channels.
        detectron2 resizes the one-dimensional tables before gathering; the published results at 672 pixels do not.
        """
        position = torch.arange(self.size, device=self.y_embedding.device)
        distance = position[:, None] - position + self.size - 1
        tables = torch.stack([self.y_embedding[distance], self.x_embedding[distance]])
        if grid == self.size:
            return tables
        resized = interpolate(tables.permute(0, 3, 1, 2), size=(grid, grid), mode="bicubic", align_corners=False)
        return resized.permute(0, 2, 3, 1).contiguous()


class Block(nn.Module):
    """x + attention(norm(x)), then x + MLP(norm(x)); windowed or global."""

    def __init__(self, shape: ViTDetShape, *, is_global: bool) -> None:
        super().__init__()
        d = shape.width
        self.num_heads, self.is_global, self.window_size = shape.num_heads, is_global, shape.window_size
        self.input_layer_norm = nn.LayerNorm(d, eps=LAYER_NORM_EPS)
        self.qkv = nn.Linear(d, 3 * d)
        size = shape.relative_position_size if is_global else shape.window_size
        self.relative_position = RelativePosition(size, d // shape.num_heads)
        self.projection = nn.Linear(d, d)
        self.mlp_layer_norm = nn.LayerNorm(d, eps=LAYER_NORM_EPS)
        self.mlp_1 = nn.Linear(d, d * shape.mlp_ratio)
        self.mlp_2 = nn.Linear(d * shape.mlp_ratio, d)

    def relative_tables(self, grid: int) -> Tensor:
        """(2, side, side, e) for the tokens that a query of this block sees, of a frame of grid x grid tokens."""
        return self.relative_position(grid if self.is_global else self.window_size)  # type: ignore[no-any-return]

    def forward(self, x: Tensor, tables: Tensor) -> Tensor:
        """All tokens (n, g * g, d) of each image.

        Args:
            x: the tokens.
            tables: those of `relative_tables`.
        """
        return self.finish(x, self.attend(self.qkv(self.input_layer_norm(x)), tables))

    def attend(self, qkv: Tensor, tables: Tensor) -> Tensor:
        """Attention of all tokens, (n, g * g, 3 d) -> (n, g * g, d); the rest as for `forward`."""
        if self.is_global:
            return self._attend(qkv, tables)
        n, s, _ = qkv.shape
        layout = windows(round(s**0.5), self.window_size, qkv.device)
        # Where no token stands, there is what the projection gives for a vector of zeros: it is seen like any other.
        filled = self.qkv.bias.expand(n, layout.count * layout.area, -1).index_copy(1, layout.slots, qkv)
        attended = self._attend(filled.view(n * layout.count, layout.area, -1), tables)
        return attended.view(n, layout.count * layout.area, -1).index_select(1, layout.slots)

    def finish(self, x: Tensor, attended: Tensor) -> Tensor:
        """What follows the attention: projection and MLP, each added to what came in. (n, any, d)."""
        x = x + self.projection(attended)
        return x + self.mlp(x)

    def mlp(self, x: Tensor) -> Tensor:
        """norm, linear, GELU (exact), linear."""
        hidden = self.mlp_1(self.mlp_layer_norm(x))
        if torch.is_grad_enabled():
            return self.mlp_2(gelu(hidden))  # type: ignore[no-any-return]
        return self.mlp_2(torch.ops.aten.gelu_(hidden))  # type: ignore[no-any-return]

    def _attend(self, qkv: Tensor, tables: Tensor) -> Tensor:
        """(n, side * side, 3 d) -> (n, side * side, d)."""
        n, s, _ = qkv.shape
        query, key, value = qkv.view(n, s, 3, self.num_heads, -1).transpose(1, 3).unbind(2)  # (n, heads, s, e) each
        out = scaled_dot_product_attention(query, key, value, attn_mask=relative_bias(*relative_terms(query, tables)))
        return out.transpose(1, 2).reshape(n, s, -1)


def relative_terms(query: Tensor, tables: Tensor) -> tuple[Tensor, Tensor]:
    """What the relative positions add to the scores of all queries of a grid, for each row and each column of keys.

    Args:
        query: (n, heads, side * side, e), not scaled.
        tables: (2, side, side, e).

    Returns:
        Two of (n, heads, side * side, side).
    """
    n, heads, s, e = query.shape
    side = tables.shape[1]
    grid = query.reshape(n, heads, side, side, e)
    along_y = torch.einsum("nhyxe,yke->nhyxk", grid, tables[0])
    along_x = torch.einsum("nhyxe,xke->nhyxk", grid, tables[1])
    return along_y.reshape(n, heads, s, side), along_x.reshape(n, heads, s, side)


def relative_terms_at(query: Tensor, tables: Tensor, y: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """The same for some queries only.

    Args:
        query: (heads, k, e), not scaled.
        tables: (2, side, side, e).
        y: (k,) row of each query in the grid.
        x: (k,) its column.

    Returns:
        Two of (heads, k, side).
    """
    rows = query.transpose(0, 1)  # (k, heads, e)
    along_y = rows @ tables[0].index_select(0, y).transpose(1, 2)
    along_x = rows @ tables[1].index_select(0, x).transpose(1, 2)
    return along_y.transpose(0, 1), along_x.transpose(0, 1)


def relative_bias(along_y: Tensor, along_x: Tensor) -> Tensor:
    """The terms of `relative_terms` for every key: (..., side), (..., side) -> (..., side * side)."""
    return (along_y[..., :, None] + along_x[..., None, :]).flatten(-2)


class ViTDet(nn.Module):
    """Positions and blocks: tokens in, tokens out."""

    def __init__(self, shape: ViTDetShape) -> None:
        super().__init__()
        self.shape = shape
        self.position_encoding = PositionEncoding(shape)
        self.blocks = nn.ModuleList(
            Block(shape, is_global=index in shape.global_blocks) for index in range(shape.depth)
        )

    def forward(self, patches: Tensor) -> Tensor:
        """(n, g * g, d) embedded patches -> (n, g * g, d)."""
        grid = round(patches.shape[1] ** 0.5)
        x: Tensor = patches + self.position_encoding(grid)
        for block in self.each_block():
            x = block(x, block.relative_tables(grid))
        return x

    def each_block(self) -> Iterator[Block]:
        """The blocks, the first one first."""
        for block in self.blocks:
            assert isinstance(block, Block)  # noqa: S101 - tells the type checker what the list holds
            yield block


# ---- pyramid ----


class LayerNorm2d(nn.LayerNorm):
    """Layer norm over the channels of each position of a map (n, c, h, w)."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, eps=LAYER_NORM_EPS)

    def forward(self, x: Tensor) -> Tensor:
        """(n, c, h, w) -> (n, c, h, w)."""
        return self.rows(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)

    def rows(self, x: Tensor) -> Tensor:
        """The same of positions in any order, (..., c)."""
        return layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps)


class Pyramid(nn.Module):
    """The last map at strides 4, 8, 16 and 32, each brought to `channels` channels, and p6, every second cell of p5."""

    strides = (4, 8, 16, 32, 64)

    def __init__(self, width: int, channels: int = 256) -> None:
        super().__init__()
        half, quarter = width // 2, width // 4

        def out(given: int) -> list[nn.Module]:
            return [
                nn.Conv2d(given, channels, kernel_size=1, bias=False),
                LayerNorm2d(channels),
                nn.Conv2d(channels, channels, kernel_size=3, padding=1, bias=False),
                LayerNorm2d(channels),
            ]

        def enlarge(given: int, to: int) -> nn.Module:
            return nn.ConvTranspose2d(given, to, kernel_size=2, stride=2)

        self.stages = nn.ModuleList(
            [
                nn.Sequential(
                    enlarge(width, half), LayerNorm2d(half), nn.GELU(), enlarge(half, quarter), *out(quarter)
                ),
                nn.Sequential(enlarge(width, half), *out(half)),
                nn.Sequential(*out(width)),
                nn.Sequential(nn.MaxPool2d(2), *out(width)),
            ]
        )

    def forward(self, tokens: Tensor) -> tuple[Tensor, ...]:
        """(n, g * g, d) -> p2 ... p6, (n, channels, side, side) each."""
        x = self.as_map(tokens)
        levels = [stage(x) for stage in self.stages]
        return (*levels, self.top(levels[-1]))

    def as_map(self, tokens: Tensor) -> Tensor:
        """(n, g * g, d) -> (n, d, g, g), channels last in memory."""
        grid = round(tokens.shape[1] ** 0.5)
        return tokens.view(len(tokens), grid, grid, -1).permute(0, 3, 1, 2)

    def top(self, level: Tensor) -> Tensor:
        """p5 -> p6."""
        return max_pool2d(level, kernel_size=1, stride=2)

    def each_stage(self) -> Iterator[nn.Sequential]:
        """What makes p2, p3, p4 and p5; the last two layers of each are a 3 x 3 convolution and its norm."""
        for stage in self.stages:
            assert isinstance(stage, nn.Sequential)  # noqa: S101 - tells the type checker what the list holds
            yield stage
