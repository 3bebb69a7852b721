"""Fine-tuning of the detector on single frames: which anchors and proposals are right, and the four losses.

    anchors   -- IoU with the objects: >= 0.7 right, < 0.3 wrong --> 256 a frame, half of them right --> BCE, L1
    proposals and objects -- IoU >= 0.5 right --> 128 a frame, a quarter of them right --> cross-entropy, GIoU x 2

RGTP itself trains nothing: it prunes the tokens of a detector that was trained on whole frames. Source: the detector's
settings in the published code, specification section 3.1 (detectron2's losses).
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy
from torchvision.ops import box_iou, generalized_box_iou_loss

from vidmodels.backbones.detection import BoxHeads, RpnOutput, decode_boxes, encode_boxes
from vidmodels.methods.rgtp.vitdet import Detector, DetectorOutput
from vidmodels.types import Batch, Train
from vidprep.errors import UsageError
from vidprep.load.types import FrameTargets

__all__ = ["SampledProposals", "box_losses", "match_anchors", "param_groups", "rpn_losses", "sample", "training_step"]

BACKGROUND, IGNORED = -1, -2
"""Where a number of an object is expected: no object; neither this nor that."""

ANCHOR_IOU, NO_ANCHOR_IOU = 0.7, 0.3
NUM_ANCHORS, RIGHT_ANCHORS = 256, 0.5
"""Of a frame, that the losses see; and the share of right ones, at most."""
PROPOSAL_IOU = 0.5
NUM_PROPOSALS, RIGHT_PROPOSALS = 128, 0.25
BOX_LOSS_WEIGHT = 2.0


def training_step(
    model: nn.Module, batch: Batch, epoch: float, *, generator: torch.Generator | None = None
) -> dict[str, Tensor]:
    """Losses of one batch; every frame of a clip is an image of its own.

    Args:
        model: a `Detector`, alone or inside DistributedDataParallel, in training mode.
        batch: frames (b, v, t, c, S, S) of bytes with `targets`, padded as `shown_sizes` says.
        epoch: has no influence.
        generator: which anchors and proposals are looked at; None: PyTorch's global one.

    Returns:
        `loss`, the sum of `rpn_class_loss`, `rpn_box_loss`, `class_loss` and `box_loss`.

    Raises:
        UsageError: data without boxes.
    """
    detector = model if isinstance(model, Detector) else model.get_submodule("module")
    if not isinstance(detector, Detector):
        raise TypeError(f"expected a Detector, got {type(detector).__name__}")
    if batch.targets is None:
        raise UsageError("a detector trains with boxes, these data have none; choose shards of a detection data set.")
    frames = batch.frames.flatten(0, 2)
    targets = [frame for sample_targets in batch.targets for view in sample_targets for frame in view]
    per_sample = len(targets) // len(batch.frames)
    shown_sizes = None
    if batch.shown_sizes is not None:
        shown_sizes = [size for size in batch.shown_sizes for _ in range(per_sample)]
    chosen = SampledProposals(targets, num_classes=detector.num_classes, generator=generator)
    out: DetectorOutput = model(frames, shown_sizes=shown_sizes, choose=chosen)
    rpn_class_loss, rpn_box_loss = rpn_losses(out.rpn, targets, generator=generator)
    class_loss, box_loss = box_losses(out, chosen)
    return {
        "loss": rpn_class_loss + rpn_box_loss + class_loss + box_loss,
        "rpn_class_loss": rpn_class_loss,
        "rpn_box_loss": rpn_box_loss,
        "class_loss": class_loss,
        "box_loss": box_loss,
    }


# ---- region proposals ----


def rpn_losses(
    rpn: RpnOutput, targets: Sequence[FrameTargets], *, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    """Binary cross-entropy of the sampled anchors and L1 of the right ones' deltas, both over 256 x images.

    Args:
        rpn: of n images.
        targets: of each image.
        generator: which anchors are sampled.
    """
    anchors = torch.cat(rpn.anchors)
    logits, deltas = torch.cat(rpn.logits, dim=1).float(), torch.cat(rpn.deltas, dim=1).float()
    class_loss, box_loss = logits.new_zeros(()), logits.new_zeros(())
    for image_logits, image_deltas, frame in zip(logits, deltas, targets, strict=True):
        matched = match_anchors(box_iou(frame.boxes, anchors))
        right, wrong = sample(matched, number=NUM_ANCHORS, right_share=RIGHT_ANCHORS, generator=generator)
        seen = torch.cat([right, wrong])
        is_right = (matched[seen] >= 0).to(image_logits)
        class_loss = class_loss + binary_cross_entropy_with_logits(image_logits[seen], is_right, reduction="sum")
        wanted = encode_boxes(frame.boxes[matched[right]], anchors[right])
        box_loss = box_loss + (image_deltas[right] - wanted).abs().sum()
    return class_loss / (NUM_ANCHORS * len(targets)), box_loss / (NUM_ANCHORS * len(targets))


def match_anchors(overlap: Tensor) -> Tensor:
    """(a,) the object of each anchor, or BACKGROUND, or IGNORED.

    An anchor belongs to the object that it overlaps most, if by 0.7 or more; below 0.3 it is background. The anchors
    that overlap an object more than all others do count as right, too, however little that is; they keep the object
    that they overlap most themselves.

    Args:
        overlap: IoU of every object with every anchor, (m, a).
    """
    m, a = overlap.shape
    if not m:
        return torch.full((a,), BACKGROUND, dtype=torch.int64, device=overlap.device)
    most, index = overlap.max(0)
    matched = torch.where(most >= ANCHOR_IOU, index, IGNORED)
    matched[most < NO_ANCHOR_IOU] = BACKGROUND
    best_of_object = overlap.max(1, keepdim=True).values
    is_best = ((overlap == best_of_object) & (best_of_object > 0)).any(0)
    return torch.where(is_best, index, matched)


def sample(
    matched: Tensor, *, number: int, right_share: float, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    """Random places of right entries, at most `right_share` of `number`, and of background to fill up the number.

    Args:
        matched: (a,) numbers of objects, BACKGROUND or IGNORED.
        number: in all.
        right_share: at most.
        generator: on the CPU.
    """
    right, wrong = (matched >= 0).nonzero()[:, 0], (matched == BACKGROUND).nonzero()[:, 0]
    num_right = min(len(right), int(number * right_share))
    return (
        right[_shuffled(len(right), generator)[:num_right].to(right.device)],
        wrong[_shuffled(len(wrong), generator)[: number - num_right].to(wrong.device)],
    )


def _shuffled(length: int, generator: torch.Generator | None) -> Tensor:
    return torch.randperm(length, generator=generator)


# ---- box head ----


class SampledProposals:
    """Chooses the proposals that the box head sees in training, and remembers what each of them should be."""

    def __init__(
        self, targets: Sequence[FrameTargets], *, num_classes: int, generator: torch.Generator | None = None
    ) -> None:
        self.targets, self.num_classes, self.generator = targets, num_classes, generator
        self.labels: list[Tensor] = []
        """Of each image, the class of each chosen proposal; `num_classes` is the background."""
        self.boxes: list[Tensor] = []
        """Of each image, the box that each right proposal stands for; those of the background are not used."""

    @torch.no_grad()
    def __call__(self, proposals: list[Tensor]) -> list[Tensor]:
        """Of each image's proposals (r_i, 4) and objects 128, a quarter of them right where there are so many."""
        chosen = []
        for found, frame in zip(proposals, self.targets, strict=True):
            every = torch.cat([found, frame.boxes.to(found)])
            matched = torch.full((len(every),), BACKGROUND, dtype=torch.int64, device=every.device)
            if len(frame.labels):
                most, index = box_iou(frame.boxes, every).max(0)
                matched = torch.where(most >= PROPOSAL_IOU, index, BACKGROUND)
            right, wrong = sample(matched, number=NUM_PROPOSALS, right_share=RIGHT_PROPOSALS, generator=self.generator)
            seen = torch.cat([right, wrong])
            labels = torch.full((len(seen),), self.num_classes, dtype=torch.int64, device=every.device)
            labels[: len(right)] = frame.labels[matched[right]]
            boxes = every[seen].clone()
            boxes[: len(right)] = frame.boxes[matched[right]]
            self.labels.append(labels)
            self.boxes.append(boxes)
            chosen.append(every[seen])
        return chosen


def box_losses(out: DetectorOutput, chosen: SampledProposals) -> tuple[Tensor, Tensor]:
    """Cross-entropy, mean over the chosen proposals, and twice GIoU's loss of the right ones over all chosen ones."""
    labels, wanted, proposals = torch.cat(chosen.labels), torch.cat(chosen.boxes), torch.cat(out.proposals)
    logits = out.boxes.logits.float()
    class_loss = cross_entropy(logits, labels)
    right = (labels < chosen.num_classes).nonzero()[:, 0]
    deltas = out.boxes.deltas.float().view(-1, chosen.num_classes, 4)[right, labels[right]]
    boxes = decode_boxes(deltas, proposals[right], BoxHeads.box_weights)
    box_loss = generalized_box_iou_loss(boxes, wanted[right], reduction="sum") / max(1, len(labels))
    return class_loss, BOX_LOSS_WEIGHT * box_loss


# ---- what is trained ----


def param_groups(model: nn.Module, train: Train) -> list[dict[str, Any]]:
    """Groups for the optimiser: matrices and filters, and biases, norms and positions, which do not decay."""
    if not isinstance(model, Detector):
        raise TypeError(f"expected a Detector, got {type(model).__name__}")
    decayed: list[Tensor] = []
    others: list[Tensor] = []
    for name, parameter in model.named_parameters():
        is_table = "position_encoding" in name or "relative_position" in name
        (others if parameter.ndim == 1 or is_table else decayed).append(parameter)
    return [
        {"name": "decayed", "params": decayed, "lr": train.lr, "weight_decay": train.weight_decay},
        {"name": "not decayed", "params": others, "lr": train.lr, "weight_decay": 0.0},
    ]
