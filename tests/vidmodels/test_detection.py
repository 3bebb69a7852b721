from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from vidmodels.detection import Speed, match, motion_iou, score_detections, speeds_of
from vidmodels.types import Detections
from vidprep.load import FrameTargets

Row = tuple[float, float, float, float]


def box(left: float, top: float = 0, side: float = 10) -> Row:
    return left, top, left + side, top + side


def objects(*rows: Row, labels: Sequence[int] | None = None, tracks: Sequence[int] | None = None) -> FrameTargets:
    n = len(rows)
    return FrameTargets(
        boxes=torch.tensor(rows, dtype=torch.float32).reshape(n, 4),
        labels=torch.tensor(labels if labels is not None else [0] * n, dtype=torch.int64),
        track_ids=torch.tensor(tracks if tracks is not None else range(n), dtype=torch.int64),
        is_occluded=torch.zeros(n, dtype=torch.bool),
        is_generated=torch.zeros(n, dtype=torch.bool),
    )


def found(*rows: tuple[float, Row], labels: Sequence[int] | None = None) -> Detections:
    n = len(rows)
    return Detections(
        boxes=torch.tensor([row for _, row in rows], dtype=torch.float32).reshape(n, 4),
        scores=torch.tensor([score for score, _ in rows]),
        labels=torch.tensor(labels if labels is not None else [0] * n, dtype=torch.int64),
    )


def no_speeds(targets: Sequence[FrameTargets]) -> list[list[Speed | None]]:
    return [[None] * len(frame.labels) for frame in targets]


def test_map50_is_the_one_computed_by_hand() -> None:
    """Class 0: three objects, two of them found, with a false alarm between: precision 1, 1/2, 2/3.

    COCO reads the precision at recalls 0, 0.01 ... 1: 34 of them up to 1/3 give 1, 33 up to 2/3 give 2/3, the rest 0.
    Class 1: one object, found. Class 2: a false alarm of a class without objects, which has no average precision.
    """
    targets = [objects(box(0), box(50), labels=[0, 1]), objects(box(0), box(50)), objects()]
    predictions = [
        found((0.9, box(1)), (0.6, box(50)), labels=[0, 1]),
        found((0.8, box(80)), (0.7, box(0)), (0.5, box(30)), labels=[0, 0, 2]),
        found(),
    ]
    scores = score_detections(predictions, targets, speeds=no_speeds(targets))
    of_class_0 = 100 * (34 + 33 * 2 / 3) / 101
    assert scores.map50_per_class == pytest.approx({0: of_class_0, 1: 100})
    assert scores.map50 == pytest.approx((of_class_0 + 100) / 2)
    # A box moved by a tenth overlaps by 9/11 = 0.82: at IoU 0.85 and above it is a false alarm and a missed object.
    assert scores.map < scores.map50
    assert scores.map50_by_speed == {"slow": None, "medium": None, "fast": None}
    assert set(scores.metrics) == {"map50", "map", "map75"}


def test_false_alarms_in_frames_without_objects_count() -> None:
    targets = [objects(box(0)), objects()]
    predictions = [found((0.5, box(0))), found((0.9, box(0)))]
    assert score_detections(predictions, targets, speeds=no_speeds(targets)).map50 == pytest.approx(50)


def test_motion_is_the_mean_overlap_with_the_own_boxes_nearby() -> None:
    frames = [objects(box(step), box(50), tracks=[7, 3]) for step in range(3)]
    one, two = 9 / 11, 8 / 12
    values = motion_iou(frames)
    assert [of_frame[0] for of_frame in values] == pytest.approx([(one + two) / 2, one, (one + two) / 2])
    assert [of_frame[1] for of_frame in values] == [1, 1, 1]


def test_only_ten_frames_to_either_side_are_nearby() -> None:
    frames = [objects(box(0))] + [objects()] * 9 + [objects(box(5))] + [objects(box(500))]
    [first], *_, [tenth], [last] = motion_iou(frames)
    assert first == pytest.approx(5 / 15)
    assert tenth == pytest.approx(5 / 30)
    assert last == 0


def test_objects_are_told_apart_by_their_tracks_and_shown_again_after_a_while() -> None:
    frames = [objects(box(0), box(20), tracks=[0, 1]), objects(box(20), box(0), tracks=[1, 0])]
    assert motion_iou(frames) == [[1, 1], [1, 1]]
    apart = [objects(box(0))] + [objects()] * 10 + [objects(box(0))]
    assert speeds_of(apart)[0] == [None]


@pytest.mark.parametrize(("step", "expected"), [(0.2, "slow"), (1.0, "medium"), (2.0, "fast"), (0.0, "slow")])
def test_speed_is_that_of_fgfa(step: float, expected: str) -> None:
    assert speeds_of([objects(box(0)), objects(box(step))])[0] == [expected]


def test_a_detection_that_finds_an_object_of_another_speed_says_nothing_about_this_one() -> None:
    targets = [objects(box(0), box(50)), objects(box(0), box(90))]
    speeds = speeds_of(targets)
    assert speeds == [["slow", "fast"], ["slow", "fast"]]
    predictions = [
        found((0.9, box(50)), (0.8, box(0)), (0.7, box(200))),  # the fast one, the slow one, nothing
        found((0.6, box(0))),
    ]
    scores = score_detections(predictions, targets, speeds=speeds)
    # slow: found, false alarm, found; precision 1, 1/2, 2/3
    assert scores.map50_by_speed["slow"] == pytest.approx(100 * (51 + 50 * 2 / 3) / 101)
    # fast: found, false alarm; one of two is missed
    assert scores.map50_by_speed["fast"] == pytest.approx(100 * 51 / 101)
    assert scores.map50_by_speed["medium"] is None
    assert scores.num_by_speed == {"slow": 2, "medium": 0, "fast": 2}
    assert scores.metrics["map50_slow"] == scores.map50_by_speed["slow"]


def test_every_object_is_found_once_by_the_most_certain_detection_of_its_class() -> None:
    predictions = found((0.3, box(0)), (0.9, box(2)), (0.8, box(0)), (0.7, box(6)), labels=[0, 0, 1, 0])
    boxes, labels = objects(box(0), box(4)).boxes, torch.tensor([0, 0])
    # The first to choose takes the first of two equal overlaps, box(6) the other one; class 1 has no object.
    assert match(predictions, boxes, labels).tolist() == [-1, 0, -1, 1]


def test_nothing_matches_where_there_is_nothing() -> None:
    empty: Tensor = torch.zeros(0, 4)
    assert match(found((0.5, box(0))), empty, torch.zeros(0, dtype=torch.int64)).tolist() == [-1]
    assert match(found(), objects(box(0)).boxes, torch.tensor([0])).tolist() == []


def test_predictions_and_objects_are_of_the_same_frames() -> None:
    with pytest.raises(ValueError, match="as many predictions as targets and speeds, got 0, 1 and 1 frames"):
        score_detections([], [objects()], speeds=[[]])
    with pytest.raises(ValueError, match="a frame has 1 objects and 0 speeds"):
        score_detections([found()], [objects(box(0))], speeds=[[]])


def test_detections_check_their_shapes() -> None:
    with pytest.raises(ValueError, match=r"2 scores need boxes \(n, 4\) and as many labels"):
        Detections(boxes=torch.zeros(1, 4), scores=torch.zeros(2), labels=torch.zeros(2, dtype=torch.int64))
