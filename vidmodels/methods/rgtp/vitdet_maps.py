"""Pyramid and region proposals of a stream, computed only where a token was.

Tokens that a pruned frame does not compute leave the last block's map as it was, and so all that follows, as far as
convolutions carry: the 3 x 3 of the pyramid one cell, those of the region proposals two more. p2 and p3, which are 94 %
of this work, are therefore kept from frame to frame and computed anew around the kept tokens alone; p4 to p6, whose
cells are as large as tokens or larger, are computed whole. The numbers are those of computing all, up to rounding.

    tokens -- up to the 3 x 3 convolution --> entry --> p2, p3 --> hidden --> logits, deltas
              kept tokens alone               cells: + 1 around     + 2         + 3
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, max_pool2d, pad, relu

from vidmodels.backbones.detection import RegionProposals, RpnOutput
from vidmodels.backbones.vitdet import LayerNorm2d, Pyramid

__all__ = ["LevelMaps", "all_maps", "changed_maps", "is_worth_it"]

SCALES = (4, 2)
"""Cells of p2 and p3 along a token's side."""
LARGEST_SHARE = 0.5
"""Of a level's cells: where more have to be computed anew, gathering them takes longer than computing all."""
CELLS_AT_ONCE = 4096
"""Of which the nine neighbours are copied together: 38 MB with 256 channels."""


@dataclass(kw_only=True)
class LevelMaps:
    """A level as it was computed last; later frames write to it in place.

    Maps are rows (rows of cells + 2) * (cells + 2) of channels, with a border of zeros.
    """

    side: int
    """Cells along a side."""
    entry: Tensor
    """What the pyramid's 3 x 3 convolution reads."""
    level: Tensor
    hidden: Tensor
    """Between the two convolutions of the region proposals."""
    logits: Tensor
    """(cells, anchors)."""
    deltas: Tensor
    """(cells, 4 * anchors)."""

    def image(self) -> Tensor:
        """The level as convolutions have it, (1, c, side, side)."""
        return self.level.view(1, self.side + 2, self.side + 2, -1)[:, 1:-1, 1:-1].permute(0, 3, 1, 2)


def all_maps(
    pyramid: Pyramid, network: RegionProposals, tokens: Tensor
) -> tuple[tuple[Tensor, ...], RpnOutput, list[LevelMaps]]:
    """Levels p2 ... p6 of all tokens (1, s, d), what the region proposals say of them, and what to keep of both."""
    x = pyramid.as_map(tokens)
    levels, kept = [], []
    for number, stage in enumerate(pyramid.each_stage()):
        entry = stage[:-2](x)
        level = stage[-2:](entry)
        levels.append(level)
        if number < len(SCALES):
            hidden = relu(network.rpn_head.conv.conv0(level))
            last = relu(network.rpn_head.conv.conv1(hidden))
            logits, deltas = network.rpn_head.objectness_logits(last), network.rpn_head.anchor_deltas(last)
            maps = LevelMaps(
                side=level.shape[-1],
                entry=_bordered(entry),
                level=_bordered(level),
                hidden=_bordered(hidden),
                logits=logits[0].flatten(1).T.contiguous(),
                deltas=deltas[0].flatten(1).T.contiguous(),
            )
            kept.append(maps)
    levels.append(pyramid.top(levels[-1]))
    return tuple(levels), _rpn(network, levels, kept), kept


def changed_maps(
    pyramid: Pyramid, network: RegionProposals, tokens: Tensor, changed: Tensor, maps: list[LevelMaps]
) -> tuple[tuple[Tensor, ...], RpnOutput]:
    """Levels p2 ... p6 and what the region proposals say of them, where only some tokens have changed.

    Args:
        pyramid: of the detector.
        network: of the detector.
        tokens: (1, s, d), all of them.
        changed: (K,) those that differ from when `maps` was computed last.
        maps: written to.
    """
    x = pyramid.as_map(tokens)
    stages = list(pyramid.each_stage())
    for stage, scale, level in zip(stages, SCALES, maps, strict=False):
        _renew(stage, network, tokens, changed, scale, level)
    levels = [level.image() for level in maps]
    levels += [stage(x) for stage in stages[len(maps) :]]
    levels.append(pyramid.top(levels[-1]))
    return tuple(levels), _rpn(network, levels, maps)


def is_worth_it(changed: Tensor, grid: int) -> bool:
    """Whether few enough cells have to be computed anew, by what p3 needs."""
    mask = _mask(changed, grid, 2)
    return float(_grown(mask, 3).float().mean()) <= LARGEST_SHARE


def _renew(
    stage: nn.Sequential, network: RegionProposals, tokens: Tensor, changed: Tensor, scale: int, maps: LevelMaps
) -> None:
    """Compute a level anew around changed tokens."""
    grid = maps.side // scale
    # A token is an image of one cell: up to the 3 x 3 convolution no cell sees another one's.
    own = stage[:-2](tokens[0].index_select(0, changed)[:, :, None, None])
    inside = torch.arange(scale, device=changed.device)
    y = (changed // grid)[:, None, None] * scale + inside[:, None] + 1
    x = (changed % grid)[:, None, None] * scale + inside + 1
    rows = (y * (maps.side + 2) + x).flatten()
    maps.entry.index_copy_(0, rows, own.permute(0, 2, 3, 1).flatten(0, 2))

    mask = _mask(changed, grid, scale)
    convolution, norm, head = stage[-2], stage[-1], network.rpn_head
    assert isinstance(convolution, nn.Conv2d)  # noqa: S101 - tells the type checker what the stage ends with
    assert isinstance(norm, LayerNorm2d)  # noqa: S101 - the same
    for part, _ in _parts(_cells(_grown(mask, 1)), maps.side):
        maps.level.index_copy_(0, part, norm.rows(_convolve(maps.entry, part, convolution, maps.side)))
    for part, _ in _parts(_cells(_grown(mask, 2)), maps.side):
        maps.hidden.index_copy_(0, part, relu(_convolve(maps.level, part, head.conv.conv0, maps.side)))
    for part, number in _parts(_cells(_grown(mask, 3)), maps.side):
        last = relu(_convolve(maps.hidden, part, head.conv.conv1, maps.side))
        for layer, out in ((head.objectness_logits, maps.logits), (head.anchor_deltas, maps.deltas)):
            out.index_copy_(0, number, linear(last, layer.weight.flatten(1), layer.bias))


def _convolve(source: Tensor, rows: Tensor, layer: nn.Conv2d, side: int) -> Tensor:
    """A 3 x 3 convolution at some cells: (rows of the bordered map) -> (rows, channels)."""
    step = torch.arange(-1, 2, device=rows.device)
    around = (step[:, None] * (side + 2) + step).flatten()
    neighbours = source.index_select(0, (rows[:, None] + around).flatten()).view(len(rows), -1)
    return linear(neighbours, layer.weight.permute(0, 2, 3, 1).flatten(1), layer.bias)


def _mask(tokens: Tensor, grid: int, scale: int) -> Tensor:
    """(1, side, side), 1.0 where the cells of tokens are."""
    mask = torch.zeros(grid * grid, device=tokens.device)
    mask[tokens] = 1.0
    return mask.view(1, grid, grid).repeat_interleave(scale, 1).repeat_interleave(scale, 2)


def _grown(mask: Tensor, cells: int) -> Tensor:
    return max_pool2d(mask, 2 * cells + 1, stride=1, padding=cells)


def _cells(mask: Tensor) -> Tensor:
    """(P,) numbers of the cells of a mask, row-major."""
    return mask.flatten().nonzero(as_tuple=True)[0]


def _parts(cells: Tensor, side: int) -> list[tuple[Tensor, Tensor]]:
    """Cells a few thousand at a time: their rows in a bordered map, and their numbers."""
    return [((part // side + 1) * (side + 2) + part % side + 1, part) for part in torch.split(cells, CELLS_AT_ONCE)]


def _bordered(x: Tensor) -> Tensor:
    """(1, c, h, w) -> ((h + 2) * (w + 2), c)."""
    return pad(x.permute(0, 2, 3, 1), (0, 0, 1, 1, 1, 1)).flatten(0, 2)


def _rpn(network: RegionProposals, levels: Sequence[Tensor], maps: Sequence[LevelMaps]) -> RpnOutput:
    """What is kept of the first levels, and computed of the others."""
    others = network.score(levels[len(maps) :])
    return RpnOutput(
        anchors=network.anchors(levels),
        logits=(*(level.logits.view(1, -1) for level in maps), *others[0]),
        deltas=(*(level.deltas.view(1, -1, 4) for level in maps), *others[1]),
    )
