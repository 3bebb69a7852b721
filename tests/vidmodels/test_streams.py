from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from tests.vidmodels.detection_shards import write_detection_shards
from vidmodels.recipes import load_recipe
from vidmodels.streams import detect_frames, detect_stream, fit_of, stream_of_file, write_detections
from vidmodels.types import Detections
from vidprep.errors import UsageError, VidprepError
from vidprep.load import FitTransform, FrameTargets, ShardDataset, make_loader
from vidprep.load.sequences import SequenceDataset

FIT = FitTransform(short_side=48, long_side=64)
"""Half of the toy's 128 x 96 pixels."""


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_detection_shards(tmp_path_factory.mktemp("toy"))


def as_found(targets: FrameTargets) -> Detections:
    scores = torch.linspace(0.9, 0.8, len(targets.labels))
    return Detections(boxes=targets.boxes, scores=scores, labels=targets.labels)


class Oracle(nn.Module):
    """Knows all objects of a split, in the order of its frames; its state counts the frames of a sequence."""

    def __init__(self, sequences: SequenceDataset) -> None:
        super().__init__()
        self.known = [[frame.targets for frame in sequences[index]] for index in range(len(sequences))]
        self.sequence = -1
        self.seen: set[tuple[tuple[int, ...], torch.dtype]] = set()

    def step(self, frame: Tensor, state: Any = None) -> tuple[Detections, Any]:
        assert not self.training
        assert not torch.is_grad_enabled()
        self.seen.add((tuple(frame.shape), frame.dtype))
        if state is None:
            self.sequence += 1
        place = state or 0
        targets = self.known[self.sequence][place]
        assert targets is not None
        return as_found(targets), place + 1


def test_every_frame_is_found_in_order_and_every_sequence_starts_anew(shards: Path) -> None:
    sequences = SequenceDataset(shards, "val", fit=FIT)
    model = Oracle(sequences).train()
    result = detect_stream(model, sequences)
    assert model.training
    assert model.sequence == 1
    assert model.seen == {((3, 48, 64), torch.uint8)}
    assert [(frame.video_id, frame.number) for frame in result.frames] == [
        (f"val_{k:02d}", number) for k in range(2) for number in range(24)
    ]
    assert result.scores is not None
    assert result.scores.map50 == pytest.approx(100)
    assert result.scores.map == pytest.approx(100)
    num_objects = sum(len(frame.targets.labels) for frame in result.frames if frame.targets is not None)
    assert sum(result.scores.num_by_speed.values()) == num_objects > 0
    assert all(value in (None, pytest.approx(100)) for value in result.scores.map50_by_speed.values())
    assert result.missing == ()
    assert result.num_sequences == 2


def test_the_table_of_detections_is_in_pixels_of_the_stored_frames(shards: Path, tmp_path: Path) -> None:
    sequences = SequenceDataset(shards, "val", fit=FIT)
    result = detect_stream(Oracle(sequences), sequences)
    write_detections(result, tmp_path / "found.parquet")
    table = pd.read_parquet(tmp_path / "found.parquet")
    assert list(table.columns) == ["video_id", "frame", "class", "label", "score", "left", "top", "right", "bottom"]
    assert len(table) == sum(len(frame.detections.labels) for frame in result.frames)
    row = table[(table["video_id"] == "val_01") & (table["frame"] == 23)].iloc[0]
    targets = result.frames[-1].targets
    assert targets is not None
    assert row[["left", "top", "right", "bottom"]].tolist() == pytest.approx((2 * targets.boxes[0]).tolist())
    assert row["class"] == sequences.manifest.classes[int(targets.labels[0])]
    write_detections(result, tmp_path / "found.json")
    assert len(pd.read_json(tmp_path / "found.json")) == len(table)
    with pytest.raises(UsageError, match=r"written as .parquet or .json"):
        write_detections(result, tmp_path / "found.csv")


def test_a_split_without_boxes_is_run_and_not_scored(tmp_path: Path) -> None:
    shards = write_detection_shards(tmp_path, train=1, val=1, with_boxes=False)
    result = detect_stream(Silent(), SequenceDataset(shards, "val", fit=FIT))
    assert len(result.frames) == 24
    assert result.scores is None
    assert result.metrics == {}


class Silent(nn.Module):
    """Finds nothing; or, broken, what is no number."""

    def __init__(self, score: float | None = None) -> None:
        super().__init__()
        self.score = score
        self.shown: list[tuple[int, int]] = []

    def step(self, frame: Tensor, state: Any = None) -> tuple[Detections, Any]:
        return self.detect(frame[None])[0], 0

    def detect(self, frames: Tensor, *, shown_sizes: Any = None) -> list[Detections]:
        self.shown += shown_sizes or []
        number = 0 if self.score is None else 1
        found = Detections(
            boxes=torch.zeros(number, 4),
            scores=torch.full((number,), self.score or 0.0),
            labels=torch.zeros(number, dtype=torch.int64),
        )
        return [found] * len(frames)


def test_a_detector_that_finds_nothing_scores_zero(shards: Path) -> None:
    result = detect_stream(Silent(), SequenceDataset(shards, "val", fit=FIT))
    assert result.scores is not None
    assert result.scores.map50 == 0


def test_scores_that_are_no_numbers_are_an_error_that_names_the_frame(shards: Path) -> None:
    with pytest.raises(VidprepError, match="val_00, frame 0: the model's boxes or scores are not finite numbers"):
        detect_stream(Silent(float("nan")), SequenceDataset(shards, "val", fit=FIT))


def test_what_is_no_detector_is_refused(shards: Path) -> None:
    with pytest.raises(UsageError, match="Linear does not go through videos frame by frame"):
        detect_stream(nn.Linear(1, 1), SequenceDataset(shards, "val", fit=FIT))
    with pytest.raises(UsageError, match="Linear finds no objects"):
        detect_frames(nn.Linear(1, 1), [])
    with pytest.raises(UsageError, match=r'recipe toy crops its frames \(data.fit = "crop"\)'):
        fit_of(load_recipe("taps/toy"))


def padded_loader(shards: Path) -> Any:
    dataset = ShardDataset(shards, "val", num_frames=2, fit="pad", resize=48, crop=64, dtype="uint8")
    return make_loader(dataset, batch_size=2, workers=0)


def test_single_frames_are_scored_with_their_own_objects(shards: Path) -> None:
    [batch] = list(padded_loader(shards))
    model = Silent()
    assert detect_frames(model, [batch]).map50 == 0
    assert model.shown == [(48, 64)] * 4
    assert batch.targets is not None
    found = [as_found(frame) for sample in batch.targets for view in sample for frame in view]

    class Right(Silent):
        def detect(self, frames: Tensor, *, shown_sizes: Any = None) -> list[Detections]:
            return found

    assert detect_frames(Right(), [batch]).map50 == pytest.approx(100)
    with pytest.raises(UsageError, match="a detector is scored by boxes, these data have none"):
        detect_frames(model, [replace(batch, targets=None)])
    with pytest.raises(UsageError, match="the split gives no batch"):
        detect_frames(model, [])


def test_ten_frames_from_the_middle_are_drawn(shards: Path) -> None:
    folder = shards.parent / "data/Data/VID/val/val_00"
    clip = stream_of_file(load_recipe("rgtp_vitdet/toy"), folder)
    assert clip.shape == (10, 3, 96, 128)
    assert clip.dtype == torch.uint8
    expected = SequenceDataset(shards, "val", fit=FitTransform(short_side=96, long_side=128))[0].part(7, 17)
    torch.testing.assert_close(clip, torch.stack([frame.pixels for frame in expected]), rtol=0, atol=0)
