"""TAPS, the dynamic form: conv1 computes only the kept channels, conv2 reads only them.

The same parameters under the same names as the trainable form, for evaluation. What makes it fast as well as small:

- Batch norms are folded into their convolutions, and maps lie channels-last.
- Neighbouring frames that keep about the same channels run together, with the union of what they keep.
- On a CPU a block runs for a few frames at a time, from the shift to the pooling for the next policy, so that what one
  step writes is still in the cache when the next one reads it. Stages with large maps run clip by clip, later ones,
  whose policies have large weights, for several clips together.
- Maps are pooled before they are shifted: the policy sees the same, and no shifted map need be written for it.
"""

from itertools import groupby
from typing import NamedTuple, cast, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import conv2d, max_pool2d

from vidmodels.backbones.resnet import ResidualBlock, size_after
from vidmodels.layers.evaluation_only import EvaluationOnly
from vidmodels.layers.folded import FoldedNorms
from vidmodels.layers.packed import pack_linears
from vidmodels.layers.temporal_shift import shifted_in_place
from vidmodels.methods.taps.grouping import Granularity, Group, GroupingCost, group_frames
from vidmodels.methods.taps.model import Gates, Gating, Taps, make_gates
from vidmodels.types import Output

__all__ = ["DynamicTaps", "Granularity", "make_dynamic"]

PART_BYTES = 8 * 2**20
"""Of a block's largest map that a CPU computes at once: what its cache holds beside the weights."""
CLIP_BYTES = 8 * 2**20
"""Stages where one clip's map is larger than this run clip by clip on a CPU."""
CLIPS_BYTES = 32 * 2**20
"""Of the maps of the clips that run together in the other stages on a CPU."""

GPU_MACS_PER_GROUP = 10**9
"""A GPU does as much while it starts the ten small operators of a group."""


class Maps(NamedTuple):
    """What goes from block to block."""

    x: Tensor
    """(n*t, c, h, w), channels-last."""
    pooled: Tensor
    """(n*t, c), x averaged over space."""


class DynamicTaps(EvaluationOnly, Taps):
    """`forward(frames (n, t, 3, h, w)) -> Output` with the logits and `aux` of the trainable form.

    Args:
        model: the trainable form, whose tensors are shared: there is one set of weights, and changing it in place
            changes both.
        granularity: which frames run together, with the union of the channels that they keep. "auto" joins
            neighbours where that saves time, by their masks and the sizes of the block's maps and weights; "frame"
            joins equal masks only: its MACs are exactly what the masks promise; "clip" joins the frames of each clip.
        channel_multiple: fill the computed channels up to a multiple of this with dropped ones, whose results are
            multiplied by their zeros; more MACs than promised, for kernels that like 8 or 16.
        pack_policies: in float32 on a CPU, keep a second copy of the policies' weights (633 MB at the published
            size), laid out for the kernels: a third of their time for one clip.
    """

    def __init__(
        self, model: Taps, *, granularity: Granularity = "auto", channel_multiple: int = 1, pack_policies: bool = True
    ) -> None:
        if channel_multiple < 1:
            raise ValueError(f"channel_multiple must be at least 1, got {channel_multiple}")
        if granularity not in get_args(Granularity):
            raise ValueError(f"no granularity {granularity!r}; expected {', '.join(get_args(Granularity))}")
        with torch.device("meta"):
            super().__init__(model.config, model.num_classes)
        if pack_policies:
            pack_linears(self.policies)
        self.load_state_dict(model.state_dict(keep_vars=True), assign=True)
        self.granularity: Granularity = granularity
        self.channel_multiple = channel_multiple
        self._norms = FoldedNorms()
        self.eval()

    @torch.no_grad()
    def forward(self, frames: Tensor) -> Output:  # type: ignore[override]  # nothing of training is left to set
        """Classify clips, skipping what the gates drop."""
        num_clips, num_frames = frames.shape[:2]
        gates: list[list[Gates]] = [[] for _ in self.blocks]
        # A slice of frames as they come, then maps: what the next stages start from.
        maps: Tensor | Maps = frames.flatten(0, 1)
        for clips_at_once, stages in self._stages_by_clips_at_once(frames):
            results = []
            for first in range(0, num_clips, clips_at_once):
                rows = slice(first * num_frames, (first + clips_at_once) * num_frames)
                part = self._stem(maps[rows]) if isinstance(maps, Tensor) else Maps(maps.x[rows], maps.pooled[rows])
                for stage in stages:
                    part = self._stage(stage, part, num_frames=num_frames, gates=gates)
                results.append(part)
            maps = _join(results)
        decided = [Gates(*(torch.cat(part) for part in zip(*parts, strict=True))) for parts in gates if parts]
        features = cast(Maps, maps).pooled.view(num_clips, num_frames, -1)
        return self.classify(features, decided, input_size=(frames.shape[-2], frames.shape[-1]))

    def _stages_by_clips_at_once(self, frames: Tensor) -> list[tuple[int, list[str]]]:
        """Consecutive stages that run for as many clips at a time, with that number."""
        num_clips, num_frames = frames.shape[:2]
        numbers = {}
        height, width = (size_after(size_after(side, 2), 2) for side in frames.shape[-2:])
        if self.config.stem == "conv3":
            height, width = frames.shape[-2:]
        clips_at_once = 0
        for stage, blocks in self.backbone.stages.items():
            stride = blocks[0].shape.stride
            height, width = size_after(height, stride), size_after(width, stride)
            num_bytes = num_frames * blocks[0].shape.out_channels * height * width * frames.element_size()
            if frames.device.type != "cpu":
                clips_at_once = num_clips
            elif num_bytes > CLIP_BYTES:
                clips_at_once = 1
            elif clips_at_once <= 1:
                clips_at_once = max(1, CLIPS_BYTES // max(1, num_bytes))
            numbers[stage] = max(1, min(clips_at_once, num_clips))
        return [(number, list(stages)) for number, stages in groupby(numbers, key=numbers.__getitem__)]

    def _stem(self, images: Tensor) -> Maps:
        """(n*t, 3, h, w) -> the first block's input."""
        backbone, parts = self.backbone, []
        num_bytes = 4 * self.config.widths[0] * images[0, 0].numel() * images.element_size()
        at_once = _rows_at_once(images, num_bytes if self.config.stem == "conv3" else num_bytes // 16)
        for part in torch.split(images, at_once):
            x = self._norms.conv(backbone.conv1, backbone.bn1, part.contiguous(memory_format=torch.channels_last))
            if self.config.stem == "conv7_pool":
                x = max_pool2d(x, 3, stride=2, padding=1)
            x.relu_()  # the largest of rectified values is the rectified largest
            parts.append(Maps(x, x.mean((-2, -1))))
        return _join(parts)

    def _stage(self, stage: str, maps: Maps, *, num_frames: int, gates: list[list[Gates]]) -> Maps:
        """The blocks of one stage; what their policies decide is added to the lists of the blocks in `gates`."""
        config = self.config
        gating = Gating(soft=config.soft_gates, attention=config.eval_attention or config.attention)
        first = self.blocks.index(self.backbone.stages[stage][0])
        for index, block in enumerate(self.backbone.stages[stage]):
            policy = self.policy_of(stage, index)
            decided = None
            if policy is not None:
                pooled = self.shift(maps.pooled[..., None, None], num_frames)[..., 0, 0]
                logits = policy(pooled.view(-1, num_frames, pooled.shape[1]), attention=gating.attention).logits
                decided = make_gates(logits, gating)
                gates[first + index].append(decided)
            maps = self._block(block, maps.x, decided, num_frames=num_frames, soft=gating.soft)
        return maps

    def _block(self, block: ResidualBlock, x: Tensor, gates: Gates | None, *, num_frames: int, soft: bool) -> Maps:
        """A block on the rows of whole clips; None keeps all channels unscaled."""
        shape = block.shape
        height, width = (size_after(side, shape.stride) for side in x.shape[-2:])
        out = x.new_empty(len(x), height, width, shape.out_channels).permute(0, 3, 1, 2)
        pooled = x.new_empty(len(x), shape.out_channels)
        factors = None
        groups = [Group(start=0, stop=len(x), channels=None)]
        if gates is not None:
            factors = (gates.mask * gates.soft if soft else gates.mask).flatten(0, 1)
            groups = group_frames(
                (gates.mask > 0).flatten(0, 1).cpu().numpy(),
                num_frames=num_frames,
                granularity=self.granularity,
                cost=_grouping_cost(block, x, out),
                channel_multiple=self.channel_multiple,
            )
        inner = [
            self._inner(block, x, slice(group.start, group.stop), group.channels, factors, num_frames)
            for group in groups
        ]
        joined = inner[0] if len(inner) == 1 else torch.cat(inner)
        step = _rows_at_once(x, max(x[0].numel(), out[0].numel()) * x.element_size())
        for start in range(0, len(x), step):
            rows = slice(start, start + step)
            result = joined[rows]
            if shape.layout == "bottleneck":
                result = self._norms.conv(block.conv3, block.bn3, result.relu_())
            torch.add(result, self._shortcut(block, x[rows]), out=out[rows]).relu_()
            pooled[rows] = out[rows].mean((-2, -1))
        return Maps(out, pooled)

    def _inner(
        self,
        block: ResidualBlock,
        x: Tensor,
        rows: slice,
        channels: NDArray[np.int64] | None,
        factors: Tensor | None,
        num_frames: int,
    ) -> Tensor:
        """conv1, gates and conv2 for some rows of x, with some channels (None: all) in between; what leaves bn2."""
        config, num_rows = self.config, rows.stop - rows.start
        first, second = self._norms.fold(block.conv1, block.bn1), self._norms.fold(block.conv2, block.bn2)
        weight1, bias1, weight2 = first.weight, first.bias, second.weight
        if factors is not None:
            factors = factors[rows]
        if channels is not None:
            if not len(channels):
                sides = (size_after(side, block.shape.stride) for side in x.shape[-2:])
                nothing = second.bias[:, None, None].expand(num_rows, -1, *sides)
                return nothing.clone(memory_format=torch.channels_last)
            picked = torch.from_numpy(channels).to(x.device)
            weight1, bias1, weight2 = weight1[picked], bias1[picked], weight2[:, picked]
            factors = factors[:, picked] if factors is not None else None
        with shifted_in_place(
            x,
            rows,
            num_frames=num_frames,
            mode=config.temporal_shift,
            shift_div=config.shift_div,
            copy_edges=config.copy_edges,
        ) as shifted:
            inner = conv2d(shifted, weight1, bias1, stride=block.conv1.stride, padding=block.conv1.padding).relu_()
        if factors is not None:
            inner.mul_(factors[..., None, None])
        return conv2d(inner, weight2, second.bias, stride=block.conv2.stride, padding=block.conv2.padding)

    def _shortcut(self, block: ResidualBlock, x: Tensor) -> Tensor:
        if block.downsample is None:
            return x
        conv, norm = block.downsample
        return self._norms.conv(cast(nn.Conv2d, conv), cast(nn.BatchNorm2d, norm), x)


def make_dynamic(
    model: nn.Module, *, granularity: Granularity = "auto", channel_multiple: int = 1, pack_policies: bool = True
) -> DynamicTaps:
    """The form that skips; see `DynamicTaps` for the choices."""
    if not isinstance(model, Taps):
        raise TypeError(f"expected a Taps model, got {type(model).__name__}")
    return DynamicTaps(model, granularity=granularity, channel_multiple=channel_multiple, pack_policies=pack_policies)


def _join(parts: list[Maps]) -> Maps:
    return parts[0] if len(parts) == 1 else Maps(*(torch.cat(part) for part in zip(*parts, strict=True)))


def _grouping_cost(block: ResidualBlock, x: Tensor, out: Tensor) -> GroupingCost:
    """Of one channel: what conv1 computes for it and conv2 reads from it."""
    weights1, weights2 = block.conv1.weight[0].numel(), block.conv2.weight[:, 0].numel()
    area1 = (out if block.shape.layout == "basic" else x)[0, 0].numel()
    macs = weights1 * area1 + weights2 * out[0, 0].numel()
    if x.device.type == "cpu":
        return GroupingCost(macs=macs, weights=weights1 + weights2)
    return GroupingCost(macs=macs, weights=weights1 + weights2, per_group=GPU_MACS_PER_GROUP)


def _rows_at_once(x: Tensor, bytes_per_row: int) -> int:
    """How many frames of a map a CPU computes at once; other devices compute all."""
    return max(1, PART_BYTES // bytes_per_row) if x.device.type == "cpu" else len(x)
