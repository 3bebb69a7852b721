"""Two-stage detection heads: a region proposal network and box heads, one stage or a cascade of three.

    p2 ... p6 -- RegionProposals --> logits, deltas of every anchor -- propose --> boxes
    p2 ... p5, boxes -- BoxHeads --> class logits (the last class is the background), deltas -- detect --> Detections

Losses read the logits and deltas; nothing here depends on whether the model trains. Boxes are x1, y1, x2, y2 in pixels.
Arithmetic and names of entries as in detectron2, on torchvision's `batched_nms` and `roi_align`; what torchvision's own
detection heads do differently (rounded anchors, background first, unaligned RoIAlign) would not fit the weights.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import relu
from torchvision.ops import batched_nms, clip_boxes_to_image, roi_align

from vidmodels.backbones.vitdet import LayerNorm2d
from vidmodels.types import Detections

__all__ = [
    "BoxHeadOutput",
    "BoxHeads",
    "CascadeBoxHeads",
    "DetectionLimits",
    "Detections",
    "ProposalLimits",
    "RegionProposals",
    "RpnOutput",
    "decode_boxes",
    "encode_boxes",
    "make_anchors",
    "propose",
]

BoxWeights = tuple[float, float, float, float]
"""What the deltas dx, dy, dw, dh are multiplied by in training targets, and divided by again when decoded."""

LARGEST_SCALE = math.log(1000.0 / 16)
"""Of the exponents dw and dh."""
CANONICAL_SIDE, CANONICAL_LEVEL = 224, 4
"""A box of 224 x 224 pixels is pooled from p4, one of half the side from the level below."""


@dataclass(frozen=True, kw_only=True)
class RpnOutput:
    """What the region proposal network says, one entry a level, p2 first. Cells are row-major, anchors innermost."""

    anchors: tuple[Tensor, ...]
    """(a, 4)."""
    logits: tuple[Tensor, ...]
    """(n, a): whether there is an object."""
    deltas: tuple[Tensor, ...]
    """(n, a, 4)."""


@dataclass(frozen=True, kw_only=True)
class BoxHeadOutput:
    """What a box head says of r boxes, those of the first image first."""

    logits: Tensor
    """(r, k + 1); the last class is the background."""
    deltas: Tensor
    """(r, 4 k), class by class; (r, 4) where all classes share one box."""


@dataclass(frozen=True, kw_only=True)
class ProposalLimits:
    """Which anchors become proposals."""

    num_candidates: int = 1000
    """The best anchors of each level that are looked at; ViTDet trains with 2000."""
    num_proposals: int = 300
    """At most so many boxes are left of an image; ViTDet trains with 1000."""
    nms_iou: float = 0.7
    """Of two boxes of a level that overlap more, the lesser one is dropped."""


@dataclass(frozen=True, kw_only=True)
class DetectionLimits:
    """Which boxes are detections."""

    score_threshold: float = 0.05
    """Pairs of box and class at or below it are dropped."""
    nms_iou: float = 0.5
    """Of two boxes of a class that overlap more, the lesser one is dropped."""
    max_detections: int = 100
    """At most so many are left of an image."""


# ---- boxes ----


def decode_boxes(deltas: Tensor, reference: Tensor, weights: BoxWeights = (1.0, 1.0, 1.0, 1.0)) -> Tensor:
    """Boxes from what the network predicts.

    Args:
        deltas: (..., r, 4 m): dx, dy in sizes of the reference box, dw, dh as logarithms, m times.
        reference: (r, 4), the anchors or proposals.
        weights: see `BoxWeights`.

    Returns:
        (..., r, 4 m).
    """
    sizes = reference[:, 2:] - reference[:, :2]
    centres = reference[:, :2] + 0.5 * sizes
    parts = deltas.view(*deltas.shape[:-1], deltas.shape[-1] // 4, 4) / deltas.new_tensor(weights)
    new_centres = parts[..., :2] * sizes[:, None] + centres[:, None]
    new_sizes = parts[..., 2:].clamp(max=LARGEST_SCALE).exp() * sizes[:, None]
    return torch.cat([new_centres - 0.5 * new_sizes, new_centres + 0.5 * new_sizes], dim=-1).flatten(-2)


def encode_boxes(boxes: Tensor, reference: Tensor, weights: BoxWeights = (1.0, 1.0, 1.0, 1.0)) -> Tensor:
    """(r, 4) boxes as deltas from (r, 4) reference boxes: what `decode_boxes` turns back."""
    sizes, reference_sizes = boxes[:, 2:] - boxes[:, :2], reference[:, 2:] - reference[:, :2]
    shift = (boxes[:, :2] + 0.5 * sizes - reference[:, :2] - 0.5 * reference_sizes) / reference_sizes
    return torch.cat([shift, (sizes / reference_sizes).log()], dim=-1) * boxes.new_tensor(weights)


def make_anchors(height: int, width: int, *, stride: int, size: float, aspect_ratios: Sequence[float]) -> Tensor:
    """(height * width * len(aspect_ratios), 4): boxes around the top-left corner of every cell of a map.

    Args:
        height: of the map.
        width: of the map.
        stride: pixels from cell to cell.
        size: square root of an anchor's area in pixels.
        aspect_ratios: height over width.
    """
    widths = torch.tensor([math.sqrt(size**2 / ratio) for ratio in aspect_ratios], dtype=torch.float64)
    heights = widths * torch.tensor(aspect_ratios, dtype=torch.float64)
    around = torch.stack([-widths, -heights, widths, heights], dim=-1) / 2
    y, x = torch.meshgrid(torch.arange(height) * stride, torch.arange(width) * stride, indexing="ij")
    corners = torch.stack([x, y, x, y], dim=-1).view(-1, 1, 4)
    return (corners.float() + around.float()).view(-1, 4)


# ---- region proposals ----


class _TwoConvs(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv0 = nn.Conv2d(channels, channels, kernel_size=3, padding=1)
        self.conv1 = nn.Conv2d(channels, channels, kernel_size=3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return relu(self.conv1(relu(self.conv0(x))))


class _RpnHead(nn.Module):
    def __init__(self, channels: int, num_anchors: int) -> None:
        super().__init__()
        self.conv = _TwoConvs(channels)
        self.objectness_logits = nn.Conv2d(channels, num_anchors, kernel_size=1)
        self.anchor_deltas = nn.Conv2d(channels, 4 * num_anchors, kernel_size=1)


class RegionProposals(nn.Module):
    """Scores anchors of three shapes at every cell of every level, with one head for all levels."""

    strides = (4, 8, 16, 32, 64)
    anchor_sizes = (32, 64, 128, 256, 512)
    aspect_ratios = (0.5, 1.0, 2.0)

    def __init__(self, channels: int = 256) -> None:
        super().__init__()
        self.rpn_head = _RpnHead(channels, len(self.aspect_ratios))
        for layer in self.rpn_head.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.normal_(layer.weight, std=0.01)
                nn.init.zeros_(layer.bias)  # type: ignore[arg-type]

    def forward(self, levels: Sequence[Tensor]) -> RpnOutput:
        """p2 ... p6, (n, channels, side, side) each."""
        logits, deltas = self.score(levels)
        return RpnOutput(anchors=self.anchors(levels), logits=tuple(logits), deltas=tuple(deltas))

    def score(self, levels: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Logits (n, a) and deltas (n, a, 4) of any levels."""
        logits, deltas = [], []
        for level in levels:
            hidden = self.rpn_head.conv(level)
            logits.append(self.rpn_head.objectness_logits(hidden).permute(0, 2, 3, 1).flatten(1))
            deltas.append(self.rpn_head.anchor_deltas(hidden).permute(0, 2, 3, 1).reshape(len(level), -1, 4))
        return logits, deltas

    def anchors(self, levels: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The anchors of each level, (a, 4)."""
        return tuple(
            make_anchors(
                level.shape[-2], level.shape[-1], stride=stride, size=size, aspect_ratios=self.aspect_ratios
            ).to(level.device)
            for level, stride, size in zip(levels, self.strides, self.anchor_sizes, strict=True)
        )


@torch.no_grad()
def propose(rpn: RpnOutput, *, image_size: int, limits: ProposalLimits) -> tuple[list[Tensor], list[Tensor]]:
    """The best boxes of every image, without gradients.

    Args:
        rpn: of n images.
        image_size: side in pixels of the square that boxes are clipped to.
        limits: how many.

    Returns:
        For each image boxes (r, 4) and their logits (r,), the highest first. On the meta device, where nothing has a
        value, as many as there can be.
    """
    if rpn.logits[0].is_meta:
        full = rpn.logits[0].new_empty(len(rpn.logits[0]), limits.num_proposals, 5)
        return list(full[..., :4]), list(full[..., 4])
    boxes, logits, level_numbers = [], [], []
    for number, (anchors, level_logits, deltas) in enumerate(zip(rpn.anchors, rpn.logits, rpn.deltas, strict=True)):
        best, index = level_logits.float().topk(min(limits.num_candidates, level_logits.shape[1]), dim=1)
        chosen = deltas.float().gather(1, index[..., None].expand(-1, -1, 4))
        boxes.append(torch.stack([decode_boxes(d, anchors[i]) for d, i in zip(chosen, index, strict=True)]))
        logits.append(best)
        level_numbers.append(torch.full_like(index[0], number))
    numbers = torch.cat(level_numbers)
    proposals, scores = [], []
    for image_boxes, image_logits in zip(torch.cat(boxes, dim=1), torch.cat(logits, dim=1), strict=True):
        finite = image_boxes.isfinite().all(-1) & image_logits.isfinite()
        clipped = clip_boxes_to_image(image_boxes, (image_size, image_size))
        fits = finite & (clipped[:, 2:] > clipped[:, :2]).all(-1)
        clipped, of_clipped = clipped[fits], image_logits[fits]
        kept = batched_nms(clipped, of_clipped, numbers[fits], limits.nms_iou)[: limits.num_proposals]
        proposals.append(clipped[kept])
        scores.append(of_clipped[kept])
    return proposals, scores


# ---- box heads ----


class _ConvNorm(nn.Conv2d):
    """3 x 3 convolution without bias, norm, ReLU."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, kernel_size=3, padding=1, bias=False)
        self.norm = LayerNorm2d(channels)
        nn.init.kaiming_normal_(self.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        return relu(self.norm(super().forward(x)))


class _BoxHead(nn.Module):
    """(r, channels, 7, 7) -> (r, 1024)."""

    def __init__(self, channels: int, roi_size: int, hidden: int = 1024) -> None:
        super().__init__()
        self.conv1, self.conv2, self.conv3, self.conv4 = (_ConvNorm(channels) for _ in range(4))
        self.fc1 = nn.Linear(channels * roi_size**2, hidden)
        nn.init.kaiming_uniform_(self.fc1.weight, a=1)
        nn.init.zeros_(self.fc1.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv4(self.conv3(self.conv2(self.conv1(x))))
        return relu(self.fc1(x.flatten(1)))


class _BoxPredictor(nn.Module):
    """(r, 1024) -> class logits, deltas."""

    def __init__(self, num_classes: int, *, is_class_agnostic: bool, hidden: int = 1024) -> None:
        super().__init__()
        self.cls_score = nn.Linear(hidden, num_classes + 1)
        self.bbox_pred = nn.Linear(hidden, 4 if is_class_agnostic else 4 * num_classes)
        nn.init.normal_(self.cls_score.weight, std=0.01)
        nn.init.normal_(self.bbox_pred.weight, std=0.001)
        for layer in (self.cls_score, self.bbox_pred):
            nn.init.zeros_(layer.bias)

    def forward(self, hidden: Tensor) -> BoxHeadOutput:
        return BoxHeadOutput(logits=self.cls_score(hidden), deltas=self.bbox_pred(hidden))


def levels_of_boxes(boxes: Tensor, num_levels: int) -> Tensor:
    """(r,) which of the levels, counted from 0 = p2, each box (r, 4) is pooled from."""
    sides = ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).sqrt()
    level = torch.floor(CANONICAL_LEVEL + torch.log2(sides / CANONICAL_SIDE + 1e-8))
    return level.clamp(2, num_levels + 1).long() - 2


def pool_boxes(levels: Sequence[Tensor], boxes: Sequence[Tensor], *, roi_size: int) -> Tensor:
    """Features of boxes, each from the level of its size: (r, channels, roi_size, roi_size).

    Args:
        levels: p2 ... p5, (n, channels, side, side) each; further ones are not looked at.
        boxes: of each image, (r_i, 4).
        roi_size: bins along a side.
    """
    strides = (4, 8, 16, 32)
    image = torch.cat([torch.full((len(part), 1), float(index)) for index, part in enumerate(boxes)])
    every = torch.cat(list(boxes))
    rows = torch.cat([image.to(every), every], dim=1)
    number = levels_of_boxes(every, len(strides))
    pooled = levels[0].new_zeros(len(rows), levels[0].shape[1], roi_size, roi_size)
    if pooled.is_meta:
        return pooled
    for index, (level, stride) in enumerate(zip(levels, strides, strict=False)):
        chosen = (number == index).nonzero(as_tuple=True)[0]
        if len(chosen):
            found = roi_align(level, rows[chosen], roi_size, 1 / stride, sampling_ratio=0, aligned=True)
            pooled = pooled.index_copy(0, chosen, found)
    return pooled


def best_boxes(
    boxes: Tensor,
    probabilities: Tensor,
    *,
    image_size: int,
    limits: DetectionLimits,
) -> Detections:
    """What is detected in one image: every pair of box and class above the threshold, after NMS within each class.

    Args:
        boxes: (r, 4 k), or (r, 4) where the classes share one box.
        probabilities: (r, k + 1), the background last.
        image_size: side in pixels of the square that boxes are clipped to.
        limits: what is too little, and how many.
    """
    finite = boxes.isfinite().all(-1) & probabilities.isfinite().all(-1)
    boxes, probabilities = boxes[finite].view(-1, boxes.shape[-1] // 4, 4), probabilities[finite, :-1]
    boxes = clip_boxes_to_image(boxes, (image_size, image_size))
    row, label = (probabilities > limits.score_threshold).nonzero(as_tuple=True)
    scores = probabilities[row, label]
    chosen = boxes[row, label if boxes.shape[1] > 1 else torch.zeros_like(label)]
    kept = batched_nms(chosen, scores, label, limits.nms_iou)[: limits.max_detections]
    return Detections(boxes=chosen[kept], scores=scores[kept], labels=label[kept])


class BoxHeads(nn.Module):
    """One stage, with a box for each class."""

    box_weights: BoxWeights = (10.0, 10.0, 5.0, 5.0)

    def __init__(self, num_classes: int, *, channels: int = 256, roi_size: int = 7) -> None:
        super().__init__()
        self.num_classes, self.roi_size = num_classes, roi_size
        self.box_head = _BoxHead(channels, roi_size)
        self.box_predictor = _BoxPredictor(num_classes, is_class_agnostic=False)

    def forward(self, levels: Sequence[Tensor], proposals: Sequence[Tensor]) -> BoxHeadOutput:
        """What the head says of each image's proposals, (r_i, 4)."""
        pooled = pool_boxes(levels, proposals, roi_size=self.roi_size)
        return self.box_predictor(self.box_head(pooled))  # type: ignore[no-any-return]

    def detect(
        self,
        out: BoxHeadOutput,
        proposals: Sequence[Tensor],
        *,
        image_size: int,
        limits: DetectionLimits,
    ) -> list[Detections]:
        """What is detected in each image; see `best_boxes`."""
        every = decode_boxes(out.deltas.float(), torch.cat(list(proposals)), self.box_weights)
        counts = [len(part) for part in proposals]
        return [
            best_boxes(boxes, probabilities, image_size=image_size, limits=limits)
            for boxes, probabilities in zip(
                torch.split(every, counts), torch.split(out.logits.float().softmax(-1), counts), strict=True
            )
        ]


class CascadeBoxHeads(nn.Module):
    """Three stages, each of which improves the boxes of the one before; all classes share a box.

    It evaluates the published COCO weights; training it would need targets between the stages.
    """

    box_weights: tuple[BoxWeights, ...] = ((10.0, 10.0, 5.0, 5.0), (20.0, 20.0, 10.0, 10.0), (30.0, 30.0, 15.0, 15.0))

    def __init__(self, num_classes: int, *, channels: int = 256, roi_size: int = 7) -> None:
        super().__init__()
        self.num_classes, self.roi_size = num_classes, roi_size
        stages = range(len(self.box_weights))
        self.box_head = nn.ModuleList(_BoxHead(channels, roi_size) for _ in stages)
        self.box_predictor = nn.ModuleList(_BoxPredictor(num_classes, is_class_agnostic=True) for _ in stages)

    def detect(
        self,
        levels: Sequence[Tensor],
        proposals: Sequence[Tensor],
        *,
        image_size: int,
        limits: DetectionLimits,
    ) -> list[Detections]:
        """What is detected in each image: boxes of the last stage, probabilities averaged over the stages."""
        counts = [len(part) for part in proposals]
        boxes, probabilities = torch.cat(list(proposals)), []
        for head, predictor, weights in zip(self.box_head, self.box_predictor, self.box_weights, strict=True):
            reference = clip_boxes_to_image(boxes, (image_size, image_size))
            out = predictor(head(pool_boxes(levels, torch.split(reference, counts), roi_size=self.roi_size)))
            boxes = decode_boxes(out.deltas.float(), reference, weights)
            probabilities.append(out.logits.float().softmax(-1))
        mean = torch.stack(probabilities).mean(0)
        return [
            best_boxes(image_boxes, image_probabilities, image_size=image_size, limits=limits)
            for image_boxes, image_probabilities in zip(
                torch.split(boxes, counts), torch.split(mean, counts), strict=True
            )
        ]
