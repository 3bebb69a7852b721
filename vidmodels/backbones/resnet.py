"""2D ResNets of any width and depth, with one temporal slot per block.

Parameter names are torchvision's (`conv1`, `bn1`, `layer1.0.conv1`, `layer1.0.downsample.0`, ...), without the
classifier: that belongs to the method. Frames go through as (n*t, c, h, w).
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import max_pool2d, relu

from vidmodels.checkpoints import CheckpointError, load_checkpoint

__all__ = ["DEPTHS", "BlockShape", "Layout", "ResNet", "ResidualBlock", "Stem", "block_shapes", "load_imagenet"]
__all__ += ["size_after"]

Stem = Literal["conv7_pool", "conv3"]
Layout = Literal["basic", "bottleneck"]

DEPTHS: dict[str, tuple[int, ...]] = {
    "resnet18": (2, 2, 2, 2),
    "resnet50": (3, 4, 6, 3),
    "resnet101": (3, 4, 23, 3),
    "resnet152": (3, 8, 36, 3),
}
"""Blocks of each stage; resnet18 has basic blocks, the others bottlenecks."""

IMAGENET_URLS: dict[tuple[Layout, tuple[int, ...]], str] = {
    ("basic", (2, 2, 2, 2)): "https://download.pytorch.org/models/resnet18-f37072fd.pth",
    ("bottleneck", (3, 4, 6, 3)): "https://download.pytorch.org/models/resnet50-0676ba61.pth",
    ("bottleneck", (3, 4, 23, 3)): "https://download.pytorch.org/models/resnet101-63fe2227.pth",
    ("bottleneck", (3, 8, 36, 3)): "https://download.pytorch.org/models/resnet152-394f9c45.pth",
}
"""torchvision's IMAGENET1K_V1 weights: 69.76 %, 76.13 %, 77.37 % and 78.31 % top-1. The second has the values of
resnet50-19c8e357."""


@dataclass(frozen=True, kw_only=True)
class BlockShape:
    """What a residual block maps: c channels over w inner ones to its output."""

    layout: Layout
    in_channels: int
    """c."""
    width: int
    """w, channels after conv1."""
    stride: int = 1

    @property
    def out_channels(self) -> int:
        """4 w for bottlenecks, w for basic blocks."""
        return 4 * self.width if self.layout == "bottleneck" else self.width

    @property
    def has_downsample(self) -> bool:
        """Whether the shortcut is a convolution."""
        return self.stride != 1 or self.in_channels != self.out_channels


class ResidualBlock(nn.Module):
    """A basic block or a bottleneck, in three parts that a method may run itself: `shortcut`, `inner`, `outer`.

        bottleneck  conv1 1x1 | conv2 3x3 (stride), conv3 1x1     "v1.5": the stride sits on the 3x3 convolution
        basic       conv1 3x3 (stride) | conv2 3x3
                    `inner`  ^ temporal slot, `outer`

    Batch norm after every convolution, ReLU after all but the last.
    """

    def __init__(self, shape: BlockShape, temporal: Callable[[int], nn.Module] | None = None) -> None:
        super().__init__()
        self.shape = shape
        c, w, out = shape.in_channels, shape.width, shape.out_channels
        if shape.layout == "bottleneck":
            self.conv1 = nn.Conv2d(c, w, 1, bias=False)
            self.conv2 = nn.Conv2d(w, w, 3, stride=shape.stride, padding=1, bias=False)
            self.conv3 = nn.Conv2d(w, out, 1, bias=False)
            self.bn3 = nn.BatchNorm2d(out)
        else:
            self.conv1 = nn.Conv2d(c, w, 3, stride=shape.stride, padding=1, bias=False)
            self.conv2 = nn.Conv2d(w, w, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(w)
        self.bn2 = nn.BatchNorm2d(w)
        self.downsample = (
            nn.Sequential(nn.Conv2d(c, out, 1, stride=shape.stride, bias=False), nn.BatchNorm2d(out))
            if shape.has_downsample
            else None
        )
        self.temporal = temporal(w) if temporal is not None else nn.Identity()

    def shortcut(self, x: Tensor) -> Tensor:
        """The input, brought to the output's shape where they differ."""
        return x if self.downsample is None else self.downsample(x)

    def inner(self, x: Tensor) -> Tensor:
        """Up to the ReLU after conv1: (n*t, c, h, w) -> (n*t, w, h, w)."""
        return relu(self.bn1(self.conv1(x)))

    def outer(self, inner: Tensor, shortcut: Tensor) -> Tensor:
        """From conv2 to the block's output."""
        out = self.bn2(self.conv2(inner))
        if self.shape.layout == "bottleneck":
            out = self.bn3(self.conv3(relu(out)))
        return relu(out + shortcut)

    def forward(self, x: Tensor) -> Tensor:
        """(n*t, c, h, w) -> (n*t, out, h', w')."""
        return self.outer(self.temporal(self.inner(x)), self.shortcut(x))


class ResNet(nn.Module):
    """Stem and stages; gives the last feature map.

    ResNet-50 is `layout="bottleneck", depths=(3, 4, 6, 3)`, ResNet-18 `layout="basic", depths=(2, 2, 2, 2)`.

    Args:
        layout: kind of block.
        depths: blocks of each stage; every stage but the first halves the size.
        widths: inner channels of each stage; the stem has the first one's.
        stem: "conv7_pool" (7x7 stride 2, 3x3 max-pool stride 2: a quarter of the size) or "conv3" (3x3, full size).
        temporal: makes the module in each block's temporal slot, given its channels.
    """

    def __init__(
        self,
        *,
        layout: Layout,
        depths: tuple[int, ...],
        widths: tuple[int, ...] = (64, 128, 256, 512),
        stem: Stem = "conv7_pool",
        temporal: Callable[[int], nn.Module] | None = None,
    ) -> None:
        super().__init__()
        self.layout, self.depths, self.stem_kind = layout, tuple(depths), stem
        kernel, stride = (7, 2) if stem == "conv7_pool" else (3, 1)
        self.conv1 = nn.Conv2d(3, widths[0], kernel, stride=stride, padding=kernel // 2, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        shapes = block_shapes(layout=layout, depths=depths, widths=widths)
        for name, stage_shapes in shapes.items():
            self.add_module(name, nn.ModuleList(ResidualBlock(shape, temporal) for shape in stage_shapes))
        self.out_channels = stage_shapes[-1].out_channels
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    @property
    def stages(self) -> dict[str, list[ResidualBlock]]:
        """Blocks of each stage, by its name (`layer1`, ...), in network order."""
        names = [f"layer{stage + 1}" for stage in range(len(self.depths))]
        return {
            name: [b for b in self.get_submodule(name).children() if isinstance(b, ResidualBlock)] for name in names
        }

    def stem(self, frames: Tensor) -> Tensor:
        """(n*t, 3, h, w) -> (n*t, c, h', w')."""
        x = relu(self.bn1(self.conv1(frames)))
        return max_pool2d(x, 3, stride=2, padding=1) if self.stem_kind == "conv7_pool" else x

    def forward(self, frames: Tensor) -> Tensor:
        """(n*t, 3, h, w) -> (n*t, out_channels, h', w')."""
        x = self.stem(frames)
        for blocks in self.stages.values():
            for block in blocks:
                x = block(x)
        return x


def block_shapes(*, layout: Layout, depths: tuple[int, ...], widths: tuple[int, ...]) -> dict[str, list[BlockShape]]:
    """Shapes of the blocks of each stage (`layer1`, ...); every stage but the first begins with stride 2.

    Raises:
        ValueError: not one depth and one width a stage, or one below 1.
    """
    if len(depths) != len(widths) or not depths or min(*depths, *widths) < 1:
        raise ValueError(f"a ResNet needs one depth and one width a stage, got depths {depths}, widths {widths}")
    shapes: dict[str, list[BlockShape]] = {}
    channels = widths[0]
    for stage, (depth, width) in enumerate(zip(depths, widths, strict=True)):
        blocks = shapes.setdefault(f"layer{stage + 1}", [])
        for index in range(depth):
            stride = 2 if stage > 0 and index == 0 else 1
            blocks.append(BlockShape(layout=layout, in_channels=channels, width=width, stride=stride))
            channels = blocks[-1].out_channels
    return shapes


def size_after(size: int, stride: int) -> int:
    """Side of a grid after any of the convolutions or pools here, all padded to keep it at stride 1."""
    return (size - 1) // stride + 1


def load_imagenet(backbone: ResNet, path: Path | None = None) -> None:
    """Set a backbone's weights to torchvision's ImageNet ones; what sits in the temporal slots stays as it is.

    Args:
        backbone: a ResNet-18, -50, -101 or -152, or any other when `path` is given.
        path: a downloaded copy; None takes the one in torch's cache (`hub/checkpoints`), or fetches it there and
            checks it against the hash in its name.

    Raises:
        CheckpointError: no such weights, or the file does not fit the backbone.
    """
    if path is not None:
        state = load_checkpoint(path)
    else:
        url = IMAGENET_URLS.get((backbone.layout, backbone.depths))
        if url is None:
            raise CheckpointError(
                f"no published ImageNet weights for {backbone.layout} blocks of depths {backbone.depths}; "
                "give a checkpoint file, or init = 'none'"
            )
        try:
            state = torch.hub.load_state_dict_from_url(url, check_hash=True, weights_only=True, map_location="cpu")
        except OSError as error:
            cache = Path(torch.hub.get_dir()) / "checkpoints"
            raise CheckpointError(
                f"{url}: not to be had ({error}); put a copy of the file into {cache}, or start with init = 'none'."
            ) from error
    state = {key: value for key, value in state.items() if not key.startswith("fc.")}
    expected = {key for key in backbone.state_dict() if ".temporal." not in key}
    # torchvision's older files have no batch counters; nothing reads them where the momentum is fixed.
    missing = {key for key in expected - set(state) if not key.endswith("num_batches_tracked")}
    unused = set(state) - expected
    own = backbone.state_dict()
    misshapen = {key for key in expected & set(state) if own[key].shape != state[key].shape}
    if missing or unused or misshapen:
        raise CheckpointError(
            f"{path or 'the ImageNet weights'}: do not fit this ResNet: {len(missing)} entries missing, "
            f"{len(unused)} not known, {len(misshapen)} of another shape "
            f"({', '.join(sorted(missing | unused | misshapen)[:3])}, ...); use weights of the same depths and widths"
        )
    backbone.load_state_dict(state, strict=False)
