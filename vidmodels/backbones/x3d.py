"""X3D: 3D networks of channel-wise convolutions, wide in time and narrow in channels; frames in, the last map out.

    stem     1x3x3 (stride 2), 5x1x1 channel by channel, norm, ReLU
    stage    blocks, the first of each with stride 2 in space; time is kept everywhere
    block    1x1x1, norm, ReLU, 3x3x3 channel by channel, norm, [squeeze-excitation], swish, 1x1x1, norm; the shortcut
             is added, ReLU
    conv5    1x1x1, norm, ReLU
    head     mean over time and space | lin5, ReLU, dropout, projection

Inner channels are 2.25 times a block's; every other block, the first included, has squeeze-excitation. Between modules
frames travel as (n*t, c, h, w), like everywhere here.

Source: X3D (Feichtenhofer, CVPR 2020). As PySlowFast builds it every shortcut convolution has a norm; PyTorchVideo
leaves out the one of the first block.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout, relu, silu

from vidmodels.checkpoints import CheckpointError, load_checkpoint, load_into, rename

__all__ = ["DEPTHS", "X3d", "X3dHead", "convert", "load_kinetics400"]

Size = Literal["s", "l"]

DEPTHS: dict[Size, tuple[int, ...]] = {"s": (3, 5, 11, 7), "l": (5, 10, 25, 15)}
"""Blocks of each stage of X3D-S and X3D-L: (1, 2, 5, 3) by 2.2 and by 5, rounded up."""

WIDTHS = (24, 48, 96, 192)
"""Channels of each stage, in both."""

KINETICS400_URLS: dict[Size, str] = {
    "s": "https://dl.fbaipublicfiles.com/pytorchvideo/model_zoo/kinetics/X3D_S.pyth",
    "l": "https://dl.fbaipublicfiles.com/pytorchvideo/model_zoo/kinetics/X3D_L.pyth",
}
"""PyTorchVideo's weights, trained on Kinetics-400."""

EXPANSION = 2.25
SE_RATIO = 0.0625


class X3d(nn.Module):
    """Stem, stages and conv5; gives the map of every frame.

    Args:
        depths: blocks of each stage.
        widths: channels of each stage; the stem has the first one's.
    """

    def __init__(self, *, depths: Sequence[int] = DEPTHS["s"], widths: Sequence[int] = WIDTHS) -> None:
        super().__init__()
        if len(depths) != len(widths) or not depths or min(*depths, *widths) < 1:
            raise ValueError(f"an X3D needs one depth and one width a stage, got depths {depths}, widths {widths}")
        self.depths = tuple(depths)
        self.conv_xy = nn.Conv3d(3, widths[0], (1, 3, 3), stride=(1, 2, 2), padding=(0, 1, 1), bias=False)
        self.conv_t = nn.Conv3d(widths[0], widths[0], (5, 1, 1), padding=(2, 0, 0), groups=widths[0], bias=False)
        self.norm = nn.BatchNorm3d(widths[0])
        stages, channels = [], widths[0]
        for depth, width in zip(depths, widths, strict=True):
            blocks = []
            for index in range(depth):
                blocks.append(X3dBlock(channels, width, stride=1 if index else 2, use_se=index % 2 == 0))
                channels = width
            stages.append(nn.Sequential(*blocks))
        self.stages = nn.Sequential(*stages)
        self.out_channels = int(EXPANSION * channels)
        self.conv5 = nn.Conv3d(channels, self.out_channels, 1, bias=False)
        self.norm5 = nn.BatchNorm3d(self.out_channels)
        self.stride: int = 2 ** (1 + len(widths))
        for module in self.modules():
            if isinstance(module, nn.Conv3d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            if isinstance(module, X3dBlock):
                nn.init.zeros_(module.norm_c.weight)  # a block starts as its shortcut

    def forward(self, frames: Tensor, *, num_frames: int) -> Tensor:
        """(n*t, 3, h, w) -> (n*t, out_channels, h / stride, w / stride); `num_frames` is t."""
        # (n*t, c, h, w) -> (n, c, t, h, w)
        x = frames.view(-1, num_frames, *frames.shape[1:]).transpose(1, 2)
        x = relu(self.norm(self.conv_t(self.conv_xy(x))))
        x = relu(self.norm5(self.conv5(self.stages(x))))
        return x.transpose(1, 2).flatten(0, 1)


class X3dBlock(nn.Module):
    """A bottleneck turned inside out: its channel-wise convolution sees more channels than the block's ends.

    Args:
        in_channels: of the input.
        out_channels: of the output.
        stride: in space.
        use_se: weigh the inner channels by squeeze-excitation.
    """

    def __init__(self, in_channels: int, out_channels: int, *, stride: int, use_se: bool) -> None:
        super().__init__()
        inner, strides = int(EXPANSION * out_channels), (1, stride, stride)
        self.conv_a = nn.Conv3d(in_channels, inner, 1, bias=False)
        self.norm_a = nn.BatchNorm3d(inner)
        self.conv_b = nn.Conv3d(inner, inner, 3, stride=strides, padding=1, groups=inner, bias=False)
        self.norm_b = nn.BatchNorm3d(inner)
        self.se = SqueezeExcitation(inner) if use_se else None
        self.conv_c = nn.Conv3d(inner, out_channels, 1, bias=False)
        self.norm_c = nn.BatchNorm3d(out_channels)
        self.shortcut = (
            nn.Sequential(
                nn.Conv3d(in_channels, out_channels, 1, stride=strides, bias=False), nn.BatchNorm3d(out_channels)
            )
            if stride != 1 or in_channels != out_channels
            else None
        )

    def forward(self, x: Tensor) -> Tensor:
        """(n, c, t, h, w) -> (n, c', t, h', w')."""
        inner = self.norm_b(self.conv_b(relu(self.norm_a(self.conv_a(x)))))
        inner = silu(inner if self.se is None else self.se(inner))
        return relu(self.norm_c(self.conv_c(inner)) + (x if self.shortcut is None else self.shortcut(x)))


class SqueezeExcitation(nn.Module):
    """Each channel times a weight in (0, 1), which two small layers give from the channels' means."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        width = round_width(SE_RATIO * channels)
        self.reduce = nn.Conv3d(channels, width, 1)
        self.expand = nn.Conv3d(width, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(n, c, t, h, w) -> the same."""
        weights: Tensor = self.expand(relu(self.reduce(x.mean((2, 3, 4), keepdim=True))))
        return x * weights.sigmoid()


class X3dHead(nn.Module):
    """X3D's classifier: `lin5` without bias, ReLU, dropout, `projection`."""

    def __init__(self, channels: int, num_classes: int, *, hidden_dim: int = 2048, dropout: float = 0.5) -> None:
        super().__init__()
        self.dropout = dropout
        self.lin5 = nn.Linear(channels, hidden_dim, bias=False)
        self.projection = nn.Linear(hidden_dim, num_classes)
        nn.init.normal_(self.projection.weight, std=0.01)
        nn.init.zeros_(self.projection.bias)

    def forward(self, features: Tensor) -> Tensor:
        """(..., c) -> logits (..., k)."""
        logits: Tensor = self.projection(dropout(relu(self.lin5(features)), self.dropout, self.training))
        return logits


def round_width(width: float, divisor: int = 8) -> int:
    """The multiple of `divisor` next to a width, at least one of them and at least 0.9 of the width."""
    rounded = max(divisor, int(width + divisor / 2) // divisor * divisor)
    return rounded if rounded >= 0.9 * width else rounded + divisor


# ---- published weights ----

NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
AFFINE = ("weight", "bias")
SHORTCUT_NORM = "stages.0.0.shortcut.1"
"""The one that PyTorchVideo's networks lack."""


def _lines(pairs: Mapping[str, str], endings: Iterable[str]) -> dict[str, str | None]:
    return {f"{old}.{ending}": f"{new}.{ending}" for ending in endings for old, new in pairs.items()}


PYTORCHVIDEO: dict[str, str | None] = {
    **_lines(
        {
            "blocks.0.conv.conv_t": "conv_xy",  # its names of the two are swapped
            "blocks.0.conv.conv_xy": "conv_t",
            "blocks.5.pool.pre_conv": "conv5",
            "blocks.5.pool.post_conv": "lin5",
            **{
                f"blocks.{stage + 1}.res_blocks.{{}}.{old}": f"stages.{stage}.{{}}.{new}"
                for stage in range(4)
                for old, new in {
                    "branch1_conv": "shortcut.0",
                    "branch2.conv_a": "conv_a",
                    "branch2.conv_b": "conv_b",
                    "branch2.conv_c": "conv_c",
                }.items()
            },
        },
        ["weight"],
    ),
    **_lines(
        {
            "blocks.0.norm": "norm",
            "blocks.5.pool.pre_norm": "norm5",
            **{
                f"blocks.{stage + 1}.res_blocks.{{}}.{old}": f"stages.{stage}.{{}}.{new}"
                for stage in range(4)
                for old, new in {
                    "branch2.norm_a": "norm_a",
                    "branch2.norm_b.0": "norm_b",
                    "branch2.norm_c": "norm_c",
                    **({"branch1_norm": "shortcut.1"} if stage else {}),
                }.items()
            },
        },
        NORM,
    ),
    **_lines(
        {
            "blocks.5.proj": "projection",
            **{
                f"blocks.{stage + 1}.res_blocks.{{}}.branch2.norm_b.1.block.{old}": f"stages.{stage}.{{}}.se.{new}"
                for stage in range(4)
                for old, new in {0: "reduce", 2: "expand"}.items()
            },
        },
        AFFINE,
    ),
}

PYSLOWFAST: dict[str, str | None] = {
    **_lines(
        {
            "s1.pathway0_stem.conv_xy": "conv_xy",
            "s1.pathway0_stem.conv": "conv_t",
            "head.conv_5": "conv5",
            "head.lin_5": "lin5",
            **{
                f"s{stage + 2}.pathway0_res{{}}.{old}": f"stages.{stage}.{{}}.{new}"
                for stage in range(4)
                for old, new in {
                    "branch1": "shortcut.0",
                    "branch2.a": "conv_a",
                    "branch2.b": "conv_b",
                    "branch2.c": "conv_c",
                }.items()
            },
        },
        ["weight"],
    ),
    **_lines(
        {
            "s1.pathway0_stem.bn": "norm",
            "head.conv_5_bn": "norm5",
            **{
                f"s{stage + 2}.pathway0_res{{}}.{old}": f"stages.{stage}.{{}}.{new}"
                for stage in range(4)
                for old, new in {
                    "branch1_bn": "shortcut.1",
                    "branch2.a_bn": "norm_a",
                    "branch2.b_bn": "norm_b",
                    "branch2.c_bn": "norm_c",
                }.items()
            },
        },
        NORM,
    ),
    **_lines(
        {
            "head.projection": "projection",
            **{
                f"s{stage + 2}.pathway0_res{{}}.branch2.se.fc{number}": f"stages.{stage}.{{}}.se.{new}"
                for stage in range(4)
                for number, new in {1: "reduce", 2: "expand"}.items()
            },
        },
        AFFINE,
    ),
}


def convert(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """PyTorchVideo's or PySlowFast's X3D under our names: those of `X3d`, and `lin5`, `projection` of its head.

    PyTorchVideo's network has no norm behind the first shortcut convolution; ours gets one that changes nothing.

    Raises:
        CheckpointError: other entries than theirs.
    """
    is_pyslowfast = any(key.startswith("s1.") for key in state)
    converted = rename(state, PYSLOWFAST if is_pyslowfast else PYTORCHVIDEO)
    converted["lin5.weight"] = converted["lin5.weight"].flatten(1)
    if not is_pyslowfast:
        like = converted["norm.weight"]
        eps = nn.BatchNorm3d(1).eps
        converted |= {
            f"{SHORTCUT_NORM}.weight": torch.full_like(like, (1 + eps) ** 0.5),
            f"{SHORTCUT_NORM}.bias": torch.zeros_like(like),
            f"{SHORTCUT_NORM}.running_mean": torch.zeros_like(like),
            f"{SHORTCUT_NORM}.running_var": torch.ones_like(like),
            f"{SHORTCUT_NORM}.num_batches_tracked": torch.zeros((), dtype=torch.long),
        }
    return converted


def load_kinetics400(backbone: X3d, heads: Sequence[X3dHead], *, size: Size, path: Path | None = None) -> list[str]:
    """Set a network, and all heads given, to weights trained on Kinetics-400.

    Args:
        backbone: X3D-S or X3D-L.
        heads: each gets the published head; one for another number of classes keeps its own `projection`.
        size: which file is fetched.
        path: a downloaded copy, PyTorchVideo's or PySlowFast's; None takes the one in torch's cache
            (`hub/checkpoints`), or fetches PyTorchVideo's there.

    Returns:
        Entries of the heads that keep their random weights.

    Raises:
        CheckpointError: no such file, or it does not fit.
    """
    source = path or _fetch(KINETICS400_URLS[size])
    state = convert(load_checkpoint(source))
    head = {name: state.pop(name) for name in ("lin5.weight", "projection.weight", "projection.bias")}
    load_into(backbone, state, source)
    fresh = []
    for own in heads:
        fits = own.projection.weight.shape == head["projection.weight"].shape
        fitting = (
            head if fits else head | {name: own.state_dict()[name] for name in head if not name.startswith("lin5")}
        )
        load_into(own, fitting, source)
        fresh += [] if fits else ["projection.weight", "projection.bias"]
    return fresh


def _fetch(url: str) -> Path:
    """The file in torch's cache, fetched unless it is there."""
    target = Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
    if not target.is_file():
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(url, str(target), progress=False)
        except OSError as error:
            raise CheckpointError(
                f"{url}: not to be had ({error}); put a copy of the file into {target.parent}, or start with "
                "init = 'none'."
            ) from error
    return target
