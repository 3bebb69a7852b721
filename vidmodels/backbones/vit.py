"""The vision transformer of VideoMAE: tubelets, a fixed sine-cosine table, pre-norm blocks; tokens in, tokens out.

    frames (n, t, 3, h, w) -- embed --> tokens (n, s, d) -- block 0 -- ... -- block depth - 1 --> tokens

A method that drops tokens runs the parts itself: `embed`, then `blocks` one by one, each of which gives its keys'
mean over heads when asked. Source: VideoMAE, `modeling_finetune.py`; names of entries are its own.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from timm.layers.drop import DropPath
from torch import Tensor, nn
from torch.nn.functional import linear, scaled_dot_product_attention

from vidmodels.layers.attention import sinusoidal_positions
from vidmodels.layers.patch_embed import TubeletEmbed

__all__ = ["SIZES", "Attention", "Block", "BlockOutput", "ViTShape", "VideoViT", "init_weights"]

LAYER_NORM_EPS = 1e-6


@dataclass(frozen=True, kw_only=True)
class ViTShape:
    """Size of a vision transformer."""

    width: int
    """d, of a token."""
    depth: int
    num_heads: int
    mlp_ratio: int = 4
    patch_size: int = 16
    """Side of a patch in pixels."""
    tubelet: int = 2
    """Frames that a token spans."""

    def __post_init__(self) -> None:
        if min(self.width, self.depth, self.num_heads, self.mlp_ratio, self.patch_size, self.tubelet) < 1:
            raise ValueError("width, depth, num_heads, mlp_ratio, patch_size and tubelet must be at least 1")
        if self.width % self.num_heads:
            raise ValueError(f"a width of {self.width} does not divide into {self.num_heads} heads")

    def grid(self, num_frames: int, height: int, width: int) -> tuple[int, int, int]:
        """Tokens of a clip along time, height and width."""
        return num_frames // self.tubelet, height // self.patch_size, width // self.patch_size


SIZES = {
    "small": ViTShape(width=384, depth=12, num_heads=6),
    "base": ViTShape(width=768, depth=12, num_heads=12),
    "large": ViTShape(width=1024, depth=24, num_heads=16),
    "huge": ViTShape(width=1280, depth=32, num_heads=16),
}
"""VideoMAE's."""


class BlockOutput(NamedTuple):
    """What a block, or its attention, gives."""

    tokens: Tensor
    """(n, s, d)."""
    keys: Tensor | None
    """(n, s, d / heads): keys as they leave the projection, mean over heads; None unless asked for."""


class Attention(nn.Module):
    """Fused multi-head self-attention. Queries and values have a bias, keys have none."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(width))
        self.v_bias = nn.Parameter(torch.zeros(width))
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, *, with_keys: bool = False) -> BlockOutput:
        """Attend within each clip's tokens (n, s, d)."""
        n, s, d = x.shape
        bias = torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])
        # (n, s, 3, heads, e) -> (n, heads, s, e) each, without a copy
        query, key, value = linear(x, self.qkv.weight, bias).view(n, s, 3, self.num_heads, -1).transpose(1, 3).unbind(2)
        keys = key.mean(1) if with_keys else None
        out = scaled_dot_product_attention(query, key, value)
        return BlockOutput(self.proj(out.transpose(1, 2).reshape(n, s, d)), keys)


class Mlp(nn.Module):
    """Linear, GELU (exact), linear."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """(n, s, d) -> (n, s, d)."""
        hidden = self.fc1(x)
        if torch.is_grad_enabled():
            return self.fc2(nn.functional.gelu(hidden))  # type: ignore[no-any-return]
        # The largest tensor of the network: in place it is not written anew, which took 5 times as long on a CPU.
        return self.fc2(torch.ops.aten.gelu_(hidden))  # type: ignore[no-any-return]


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

    def forward(self, x: Tensor, *, with_keys: bool = False) -> BlockOutput:
        """(n, s, d) -> (n, s, d), and the keys' mean over heads if asked for."""
        attended: BlockOutput = self.attn(self.norm1(x), with_keys=with_keys)
        x = _add(x, self.drop_path(attended.tokens))
        return BlockOutput(_add(x, self.drop_path(self.mlp(self.norm2(x)))), attended.keys)


class VideoViT(nn.Module):
    """Embedding and blocks. There is no class token, and no norm at the end: tokens are averaged by the method."""

    positions: Tensor

    def __init__(
        self, shape: ViTShape, *, num_frames: int, image_size: tuple[int, int], drop_path: float = 0.0
    ) -> None:
        """Build with random weights.

        Args:
            shape: sizes.
            num_frames: t of every clip.
            image_size: height and width of every frame, in pixels.
            drop_path: stochastic depth of the last block; it rises linearly from 0 at the first.

        Raises:
            ValueError: the clip does not divide into tubelets.
        """
        super().__init__()
        if num_frames % shape.tubelet or image_size[0] % shape.patch_size or image_size[1] % shape.patch_size:
            raise ValueError(
                f"{num_frames} frames of {image_size[0]} x {image_size[1]} do not divide into tubelets of "
                f"{shape.tubelet} x {shape.patch_size} x {shape.patch_size}"
            )
        self.shape, self.num_frames, self.image_size = shape, num_frames, image_size
        self.grid = shape.grid(num_frames, *image_size)
        self.patch_embed = TubeletEmbed(shape.width, patch_size=shape.patch_size, tubelet=shape.tubelet)
        self.blocks = nn.ModuleList(
            Block(shape, drop_path=drop_path * index / max(shape.depth - 1, 1)) for index in range(shape.depth)
        )
        # One running index over time and space, computed in float64: the float32 table differs in its last digits.
        table = sinusoidal_positions(self.num_tokens, shape.width, like=torch.empty(0), compute=torch.float64)
        self.register_buffer("positions", table, persistent=False)
        self.apply(init_weights)

    @property
    def num_tokens(self) -> int:
        """Tokens of a clip."""
        time, rows, columns = self.grid
        return time * rows * columns

    def embed(self, frames: Tensor) -> Tensor:
        """(n, t, 3, h, w) -> (n, s, d), with positions added.

        Raises:
            ValueError: clips of another size than the position table is for.
        """
        given = (frames.shape[1], *frames.shape[-2:])
        if given != (self.num_frames, *self.image_size):
            raise ValueError(
                f"the position table is for clips of {self.num_frames} frames of {self.image_size[0]} x "
                f"{self.image_size[1]}, got {given[0]} of {given[1]} x {given[2]}; build the model for these"
            )
        tokens: Tensor = self.patch_embed(frames)
        return _add(self.positions, tokens)

    def forward(self, frames: Tensor) -> Tensor:
        """(n, t, 3, h, w) -> (n, s, d): all blocks, every token."""
        tokens = self.embed(frames)
        for block in self.blocks:
            tokens = block(tokens).tokens
        return tokens


def init_weights(module: nn.Module) -> None:
    """Linear weights from a normal of deviation 0.02 cut at +-2, biases 0; other modules keep PyTorch's."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def _add(x: Tensor, new: Tensor) -> Tensor:
    """The sum; `new` is given up, and its memory used where both have one type (under autocast they differ)."""
    return new.add_(x) if new.dtype == x.dtype else x + new
