"""How good detections are: COCO's average precision, also by how fast objects move; pure functions of boxes.

torchmetrics with its COCO backend counts; this module says what is counted.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor
from torchvision.ops import box_iou

from vidmodels.types import Detections
from vidprep.errors import MissingPackage
from vidprep.load.types import FrameTargets

__all__ = ["DetectionScores", "Speed", "count_coco", "motion_iou", "score_detections", "speeds_of"]

Speed = Literal["slow", "medium", "fast"]
"""Of an object in a frame: its `motion_iou` is above 0.9, between 0.7 and 0.9, or below 0.7."""

NEIGHBOURS = 10
"""Frames before and after one in which an object's boxes are compared with its own."""
SLOW_ABOVE, FAST_BELOW = 0.9, 0.7
MATCH_IOU = 0.5


@dataclass(frozen=True, kw_only=True)
class DetectionScores:
    """What detections of a split are worth, in per cent."""

    map50: float
    """Mean over the classes that have objects, at IoU 0.5."""
    map: float
    """At IoU 0.5, 0.55 ... 0.95."""
    map75: float
    map50_by_speed: Mapping[Speed, float | None]
    """Of the objects of each speed alone: see `score_detections`; None where there is none."""
    num_by_speed: Mapping[Speed, int]
    """Objects of each speed, counted in every frame."""
    map50_per_class: Mapping[int, float]
    """Of the classes that have objects."""

    @property
    def metrics(self) -> dict[str, float]:
        """All figures but those of single classes, by name; those that there are."""
        by_speed = {f"map50_{speed}": value for speed, value in self.map50_by_speed.items() if value is not None}
        return {"map50": self.map50, "map": self.map, "map75": self.map75, **by_speed}


def score_detections(
    predictions: Sequence[Detections], targets: Sequence[FrameTargets], *, speeds: Sequence[Sequence[Speed | None]]
) -> DetectionScores:
    """Average precision of all frames of a split together, and by the speed of objects.

    A detection that finds an object of another speed (the greedy matching of COCO, at IoU 0.5, all objects of its class
    in the frame) says nothing about this speed and is left out; one that finds none counts against every speed.

    Args:
        predictions: one a frame.
        targets: the objects of the same frames; of a frame without objects none, and it counts all the same.
        speeds: of each object of each frame, as `speeds_of` gives them; None: of no speed.

    Raises:
        ValueError: the frames, or their objects and speeds, are not equally many.
        MissingPackage: without the `detection` extra.

    Source: RGTP, specification section 3.4, for the figures over all objects; FGFA (Zhu et al., 2017), section 5, for
    what slow, medium and fast mean.
    """
    if not len(predictions) == len(targets) == len(speeds):
        raise ValueError(
            f"expected as many predictions as targets and speeds, got {len(predictions)}, {len(targets)} and "
            f"{len(speeds)} frames"
        )
    for frame, of_frame in zip(targets, speeds, strict=True):
        if len(frame.labels) != len(of_frame):
            raise ValueError(f"a frame has {len(frame.labels)} objects and {len(of_frame)} speeds")
    boxes, labels = [frame.boxes for frame in targets], [frame.labels for frame in targets]
    found = count_coco(predictions, boxes, labels)
    per_class = count_coco(predictions, boxes, labels, iou_thresholds=(MATCH_IOU,), per_class=True)
    matches = [match(*frame) for frame in zip(predictions, boxes, labels, strict=True)]
    by_speed: dict[Speed, float | None] = {}
    num_by_speed: dict[Speed, int] = {}
    for speed in get_args(Speed):
        is_of_speed = [torch.tensor([one == speed for one in of_frame], dtype=torch.bool) for of_frame in speeds]
        num_by_speed[speed] = sum(int(mask.sum()) for mask in is_of_speed)
        by_speed[speed] = None
        if num_by_speed[speed]:
            kept = [
                _of_speed(prediction, matched, mask)
                for prediction, matched, mask in zip(predictions, matches, is_of_speed, strict=True)
            ]
            counted = count_coco(
                kept,
                [part[mask] for part, mask in zip(boxes, is_of_speed, strict=True)],
                [part[mask] for part, mask in zip(labels, is_of_speed, strict=True)],
                iou_thresholds=(MATCH_IOU,),
            )
            by_speed[speed] = 100 * float(counted["map_50"])
    return DetectionScores(
        map50=100 * float(found["map_50"]),
        map=100 * float(found["map"]),
        map75=100 * float(found["map_75"]),
        map50_by_speed=by_speed,
        num_by_speed=num_by_speed,
        map50_per_class={
            label: 100 * value
            for label, value in zip(
                per_class["classes"].reshape(-1).tolist(), per_class["map_per_class"].reshape(-1).tolist(), strict=True
            )
            if value >= 0
        },
    )


def count_coco(
    predictions: Sequence[Detections],
    boxes: Sequence[Tensor],
    labels: Sequence[Tensor],
    *,
    iou_thresholds: Sequence[float] | None = None,
    per_class: bool = False,
) -> Mapping[str, Tensor]:
    """What `torchmetrics.detection.MeanAveragePrecision` counts with its default settings, as fractions.

    Args:
        predictions: one a frame.
        boxes: (n, 4) of the objects of each frame.
        labels: (n,) of them.
        iou_thresholds: None: 0.5, 0.55 ... 0.95.
        per_class: count each class by itself, too.

    Returns:
        `map`, `map_50`, `map_75`, `map_small` and so on, -1 where there is nothing to count; `classes` that objects or
        detections have, and `map_per_class` of these.

    Raises:
        MissingPackage: without the `detection` extra.
    """
    try:
        from torchmetrics.detection import MeanAveragePrecision
    except ModuleNotFoundError as error:
        raise MissingPackage("Mean average precision needs torchmetrics: pip install 'vidprep[detection]'.") from error
    thresholds = None if iou_thresholds is None else list(iou_thresholds)
    metric = MeanAveragePrecision(box_format="xyxy", iou_thresholds=thresholds, class_metrics=per_class)
    metric.warn_on_many_detections = False
    metric.update(
        [{"boxes": one.boxes.cpu(), "scores": one.scores.cpu(), "labels": one.labels.cpu()} for one in predictions],
        [{"boxes": b.cpu(), "labels": n.cpu()} for b, n in zip(boxes, labels, strict=True)],
    )
    counted: Mapping[str, Tensor] = metric.compute()
    return counted


def match(found: Detections, boxes: Tensor, labels: Tensor) -> Tensor:
    """(n,) which object of the frame each detection finds; -1: none.

    Detections choose in the order of their scores: of the objects of their class that are not taken, the one that
    they overlap most, at least at IoU 0.5.
    """
    matched = torch.full((len(found.scores),), -1, dtype=torch.int64)
    overlap = box_iou(found.boxes.double(), boxes.double().to(found.boxes.device)).cpu()
    overlap[found.labels.cpu()[:, None] != labels.cpu()] = -1
    for row in found.scores.argsort(descending=True, stable=True).tolist():
        if len(labels) and float((best := overlap[row].max(0)).values) >= MATCH_IOU:
            matched[row] = best.indices
            overlap[:, best.indices] = -1
    return matched


def _of_speed(found: Detections, matched: Tensor, is_of_speed: Tensor) -> Detections:
    """Detections without those that find an object of another speed."""
    keep = matched < 0
    keep[~keep] = is_of_speed[matched[~keep]]
    return Detections(boxes=found.boxes.cpu()[keep], scores=found.scores.cpu()[keep], labels=found.labels.cpu()[keep])


def speeds_of(frames: Sequence[FrameTargets]) -> list[list[Speed | None]]:
    """How fast each object of each frame moves, from all frames of one sequence in order.

    None: the object is in no other frame nearby.
    """
    return [[_speed(value) for value in of_frame] for of_frame in motion_iou(frames)]


def _speed(overlap: float | None) -> Speed | None:
    if overlap is None:
        return None
    return "slow" if overlap > SLOW_ABOVE else "medium" if overlap >= FAST_BELOW else "fast"


def motion_iou(frames: Sequence[FrameTargets]) -> list[list[float | None]]:
    """How much each object's box overlaps its own boxes in the 10 frames before and the 10 after: the mean IoU.

    Args:
        frames: all frames of one sequence, in order; the same object has one track id.

    Returns:
        One value for each object of each frame; None for an object that none of these frames shows.

    Source: FGFA (Zhu et al., 2017), section 5: "averaged IoU scores with its corresponding instances in the nearby
    frames (+-10 frames)".
    """
    tracks: dict[int, list[tuple[int, int]]] = {}
    for number, frame in enumerate(frames):
        for row, track in enumerate(frame.track_ids.tolist()):
            tracks.setdefault(track, []).append((number, row))
    overlaps: list[list[float | None]] = [[None] * len(frame.labels) for frame in frames]
    for places in tracks.values():
        numbers = torch.tensor([number for number, _ in places])
        boxes = torch.stack([frames[number].boxes[row].cpu() for number, row in places]).double()
        for at, (number, row) in enumerate(places):
            near = ((numbers - number).abs() <= NEIGHBOURS) & (numbers != number)
            if near.any():
                overlaps[number][row] = float(box_iou(boxes[at : at + 1], boxes[near]).mean())
    return overlaps
