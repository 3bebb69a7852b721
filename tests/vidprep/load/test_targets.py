"""Clips with boxes, and clips with a verb and a noun."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.videos import read_number, write_numbered_video
from tests.vidprep.media import write_boxes, write_frames
from vidprep.datasets.imagenet_vid import read_annotations
from vidprep.errors import CorruptShard, UsageError
from vidprep.load import (
    Batch,
    BoxMap,
    ClipDataset,
    ClipOptions,
    EvalTransform,
    FrameTargets,
    Sample,
    ShardDataset,
    TrainTransform,
    make_loader,
)
from vidprep.sampling import sample_segments
from vidprep.shard import shard
from vidprep.splits import Split, read_classes
from vidprep.types import Box, FrameFormat, Video

VID = FrameFormat(template="{:06d}.JPEG", first_index=0)
SIZE = (96, 64)
"""Width and height of the frames."""
NUM_FRAMES = 20


def boxes_of(index: int) -> list[Box]:
    """One that tells its frame's number by its place, one in the left upper corner."""
    return [
        Box(xyxy=(20 + index, 16, 40 + index, 48), label=12, track_id=3, is_occluded=index % 2 == 1),
        Box(xyxy=(0, 0, 8, 8), label=29, track_id=4, is_generated=True),
    ]


def write_shards(folder: Path, *, num_snippets: int = 3, with_boxes: bool = True) -> Path:
    names = [f"snippet_{k}" for k in range(num_snippets)]
    frames = {
        name: write_frames(
            folder / "Data" / name, NUM_FRAMES, start=100 * k, template=VID.template, first_index=0, size=SIZE
        )
        for k, name in enumerate(names)
    }
    synsets = read_classes("imagenet_vid", "synsets.txt")
    per_frame = [boxes_of(index) for index in range(NUM_FRAMES)]
    boxes = {name: write_boxes(folder / "Annotations" / name, per_frame, synsets=synsets, size=SIZE) for name in names}
    split = Split(
        dataset="imagenet_vid",
        split="val",
        task="detection",
        classes=read_classes("imagenet_vid"),
        videos=tuple(Video(video_id=name) for name in names),
    )
    shard(
        split,
        frames,
        out=folder / "shards",
        content="frames",
        frames=FrameFormat(),
        delivered=VID,
        annotations=boxes if with_boxes else None,
        read_boxes=read_annotations,
    )
    return folder / "shards"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shards(tmp_path_factory.mktemp("vid"))


AS_THEY_ARE: ClipOptions = {"num_frames": 5, "resize": 64, "crop": 64, "mean": (0, 0, 0), "std": (1, 1, 1)}


def test_every_frame_of_a_clip_comes_with_its_own_boxes(folder: Path) -> None:
    dataset = ShardDataset(folder, **AS_THEY_ARE)
    expected = sample_segments(NUM_FRAMES, num_segments=5)
    for sample in (dataset[0], dataset[2]):
        assert sample.targets is not None
        [view] = sample.targets
        assert len(view) == 5
        for index, frame in zip(expected, view, strict=True):
            # The centre crop of 96 x 64 begins at 16: the second box lies outside of it.
            left = 20 + int(index) - 16
            assert frame.boxes.tolist() == [[left, 16, left + 20, 48]]
            assert frame.boxes.dtype == torch.float32
            assert frame.labels.tolist() == [12]
            assert frame.track_ids.tolist() == [3]
            assert frame.is_occluded.tolist() == [index % 2 == 1]
            assert frame.is_generated.tolist() == [False]
        assert sample.labels.nonzero().flatten().tolist() == [12]
        assert torch.isnan(sample.pts_seconds).all()


def test_a_sequence_is_read_in_order_with_the_numbers_of_its_frames(folder: Path) -> None:
    whole: ClipOptions = {**AS_THEY_ARE, "num_frames": NUM_FRAMES, "num_crops": 3}
    sample = ShardDataset(folder, **whole)[1]
    assert sample.targets is not None
    assert sample.frames.shape[:2] == (3, NUM_FRAMES)
    for view, offset in zip(sample.targets, (0, 16, 32), strict=True):
        assert [frame.boxes[0, 0].item() for frame in view] == [
            max(0, 20 + index - offset) for index in range(NUM_FRAMES)
        ]
    # The left crop sees the corner.
    assert sample.targets[0][0].labels.tolist() == [12, 29]
    assert sample.targets[0][0].is_generated.tolist() == [False, True]
    assert sample.labels.nonzero().flatten().tolist() == [12, 29]


def test_batches_carry_the_targets_of_their_samples_through_threads(folder: Path) -> None:
    dataset = ShardDataset(folder, **AS_THEY_ARE)
    [batch] = make_loader(dataset, batch_size=3, workers=2)
    assert batch.labels.shape == (3, 30)
    assert batch.targets is not None
    assert len(batch.targets) == 3
    for k, targets in enumerate(batch.targets):
        alone = dataset[k].targets
        assert alone is not None
        for frame, same in zip(targets[0], alone[0], strict=True):
            assert torch.equal(frame.boxes, same.boxes)
    moved = batch.to("cpu")
    assert moved.targets is not None
    assert torch.equal(moved.targets[1][0][0].boxes, batch.targets[1][0][0].boxes)


def test_detection_shards_without_boxes_give_samples_without_targets(tmp_path: Path) -> None:
    sample = ShardDataset(write_shards(tmp_path, num_snippets=1, with_boxes=False), **AS_THEY_ARE)[0]
    assert sample.targets is None
    assert not sample.labels.any()


def test_samples_with_and_without_targets_do_not_mix(folder: Path) -> None:
    dataset = ShardDataset(folder, **AS_THEY_ARE)
    with pytest.raises(ValueError, match="either all samples of a batch have targets or none, snippet_1 has none"):
        Batch.stack([dataset[0], replace(dataset[1], targets=None)])


def test_targets_check_themselves() -> None:
    none = torch.zeros(0, dtype=torch.int64)
    flags = torch.zeros(0, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"0 labels need boxes \(n, 4\), got shape \(1, 4\)"):
        FrameTargets(boxes=torch.zeros(1, 4), labels=none, track_ids=none, is_occluded=flags, is_generated=flags)
    frame = FrameTargets(boxes=torch.zeros(0, 4), labels=none, track_ids=none, is_occluded=flags, is_generated=flags)
    parts: dict[str, Any] = {"video_id": "a", "labels": torch.tensor(0)}
    frames, times = torch.zeros(1, 2, 3, 8, 8), torch.zeros(1, 2, dtype=torch.float64)
    with pytest.raises(ValueError, match="a: 2 frames need as many targets"):
        Sample(**parts, frames=frames, pts_seconds=times, targets=[[frame]])
    with pytest.raises(ValueError, match="a: 1 views need as many targets, got 2"):
        Sample(**parts, frames=frames, pts_seconds=times, targets=[[frame] * 2] * 2)


def test_broken_boxes_are_named_with_their_shard(tmp_path: Path) -> None:
    folder = write_shards(tmp_path, num_snippets=1)
    path = folder / "val-000000.tar"
    path.write_bytes(path.read_bytes().replace(b'"track_id":3', b'"track_ip":3'))
    with pytest.raises(CorruptShard, match=r"00000000\.json holds a box of frame 2 that is none \(KeyError"):
        ShardDataset(folder, **AS_THEY_ARE)[0]


def drawn(width: int, height: int, box: tuple[int, int, int, int]) -> Tensor:
    """(1, c, h, w): a white box on black."""
    picture = torch.zeros(1, 3, height, width, dtype=torch.uint8)
    picture[:, :, box[1] : box[3], box[0] : box[2]] = 255
    return picture


def seen(frame: Tensor) -> list[float]:
    """Where the white box of a frame (c, h, w) lies."""
    rows, columns = torch.where(frame[0] > 0.5)
    return [columns.min().item(), rows.min().item(), columns.max().item() + 1, rows.max().item() + 1]


def test_training_crops_resizes_and_flips_move_the_boxes_with_the_pixels() -> None:
    box = (70, 40, 110, 90)
    frames = drawn(200, 150, box)
    transform = TrainTransform(crop=112, mean=(0, 0, 0), std=(1, 1, 1))
    num_flips = num_cut = 0
    for seed in range(60):
        clip, _, box_map = transform.with_map(frames, (), np.random.default_rng(seed))
        moved, is_seen = box_map(torch.tensor([box], dtype=torch.float32))
        num_flips += box_map.is_flipped
        if not is_seen.item():
            assert not (clip > 0.5).any()
            continue
        place = moved[0].tolist()
        num_cut += 0 in place or 112 in place
        assert np.abs(np.array(seen(clip[0])) - place).max() <= 1.5
        same, _ = transform(frames, (), np.random.default_rng(seed))
        assert torch.equal(same, clip)
    assert 15 < num_flips < 45
    assert num_cut > 5


@pytest.mark.parametrize("size", [(200, 150), (150, 200), (96, 96)])
@pytest.mark.parametrize("num_crops", [1, 3])
def test_evaluation_crops_move_the_boxes_with_the_pixels(size: tuple[int, int], num_crops: int) -> None:
    box = (30, 40, 70, 90)
    transform = EvalTransform(resize=128, crop=112, num_crops=num_crops, mean=(0, 0, 0), std=(1, 1, 1))
    crops = transform(drawn(*size, box))
    maps = transform.box_maps(size[1], size[0])
    assert len(maps) == len(crops) == num_crops
    for crop, box_map in zip(crops, maps, strict=True):
        moved, is_seen = box_map(torch.tensor([box], dtype=torch.float32))
        assert is_seen.item()
        assert np.abs(np.array(seen(crop[0])) - moved[0].tolist()).max() <= 1.5


def test_a_flip_mirrors_boxes_and_those_outside_are_gone() -> None:
    box_map = BoxMap(scale_x=0.5, scale_y=2, left=10, top=0, width=40, height=100, is_flipped=True)
    moved, is_seen = box_map(torch.tensor([[30.0, 10.0, 50.0, 30.0], [0.0, 0.0, 20.0, 50.0], [90.0, 0.0, 999.0, 50.0]]))
    assert moved.tolist() == [[25, 20, 35, 60], [40, 0, 40, 100], [0, 0, 5, 100]]
    assert is_seen.tolist() == [True, False, True]
    none, _ = box_map(torch.zeros(0, 4))
    assert none.shape == (0, 4)


def test_training_clips_carry_moved_boxes(folder: Path) -> None:
    train: ClipOptions = {**AS_THEY_ARE, "train": True, "seed": 1}
    dataset = ShardDataset(folder, **train)
    flips = set()
    for epoch in range(8):
        dataset.set_epoch(epoch)
        sample = dataset[0]
        assert sample.targets is not None
        [view] = sample.targets
        steps = [frame.boxes[0, 0].item() for frame in view if len(frame.boxes) and frame.labels[0] == 12]
        # The object moves to the right; in a flipped clip to the left.
        flips.add(bool(steps[-1] < steps[0]))
        assert steps == sorted(steps, reverse=steps[-1] < steps[0])
    assert flips == {True, False}


# A verb and a noun


def actions(tmp_path: Path, flip_pairs: Mapping[int, int] | None = None) -> ShardDataset:
    path = write_numbered_video(tmp_path / "P01_11.MP4", num_frames=60, fps=10, width=64, height=64)
    labels = [(1, 1), (0, 2), (1, 0)]
    split = Split(
        dataset="epic_kitchens",
        split="train",
        task="verb_noun",
        classes=("pull left", "pull right"),
        noun_classes=("plate", "cup", "door"),
        videos=tuple(
            Video(video_id="P01_11", labels=label, start_seconds=k, end_seconds=k + 2.0, segment_id=f"P01_11_{k}")
            for k, label in enumerate(labels)
        ),
    )
    shard(split, {"P01_11": path}, out=tmp_path / "shards", content="frames")
    options: ClipOptions = {"num_frames": 4, "resize": 64, "crop": 64, "mean": (0, 0, 0), "std": (1, 1, 1)}
    dataset = ShardDataset(tmp_path / "shards", **options)
    if flip_pairs is not None:
        train: ClipOptions = {**options, "train": True, "scales": (1.0,)}
        dataset = ShardDataset(tmp_path / "shards", **train)
        dataset.make = replace(dataset.make, flip_pairs=dict(flip_pairs))
    return dataset


def test_batches_hold_the_verb_and_the_noun_of_each_segment(tmp_path: Path) -> None:
    [batch] = make_loader(actions(tmp_path), batch_size=3)
    assert batch.labels.tolist() == [[1, 1], [0, 2], [1, 0]]
    assert batch.labels.dtype == torch.int64
    assert list(batch.video_id) == ["P01_11_0", "P01_11_1", "P01_11_2"]
    assert batch.targets is None
    for k in range(3):
        shown = [read_number((frame * 255).round().numpy()) for frame in batch.frames[k, 0]]
        assert shown == (10 * k + sample_segments(20, num_segments=4)).tolist()


def test_a_flip_changes_verbs_only(tmp_path: Path) -> None:
    dataset = actions(tmp_path, flip_pairs={0: 1, 1: 0})
    found = set()
    for epoch in range(12):
        dataset.set_epoch(epoch)
        found.add(tuple(dataset[0].labels.tolist()))
    assert found == {(1, 1), (0, 1)}


# Files instead of shards


def test_clips_come_from_folders_of_frames_too(tmp_path: Path) -> None:
    delivered = FrameFormat(fps=12, template="{:05d}.jpg")
    folder = write_frames(tmp_path / "7", 24, size=(64, 64))
    dataset = ClipDataset(
        [Video(video_id="7", labels=(0,))],
        [folder],
        task="single_label",
        num_classes=1,
        delivered=delivered,
        num_frames=4,
        resize=64,
        crop=64,
        mean=(0, 0, 0),
        std=(1, 1, 1),
    )
    expected = sample_segments(24, num_segments=4)
    assert [read_number((frame * 255).round().numpy()) for frame in dataset[0].frames[0]] == expected.tolist()
    np.testing.assert_allclose(dataset[0].pts_seconds[0], expected / 12)


def test_detection_from_files_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="the boxes of a detection task come with its shards"):
        ClipDataset(
            [Video(video_id="7")], [tmp_path], task="detection", num_classes=30, num_frames=4, resize=64, crop=64
        )
