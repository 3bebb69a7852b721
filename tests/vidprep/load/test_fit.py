"""Whole frames in a square: how they are resized, padded and mirrored, and their boxes with them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.vidprep.load.test_targets import write_shards
from vidprep.errors import UsageError
from vidprep.load import Batch, ClipOptions, FitTransform, ShardDataset
from vidprep.load.transforms import normalise

PADDED: ClipOptions = {"num_frames": 3, "fit": "pad", "resize": 40, "crop": 48, "dtype": "uint8"}
"""Frames of 96 x 64 become 48 x 32: the long side decides."""


def opened(folder: Path, **changes: Any) -> ShardDataset:
    options: Any = {**PADDED, **changes}
    return ShardDataset(folder, **options)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shards(tmp_path_factory.mktemp("vid"), num_snippets=2)


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [
        (720, 1280, (378, 672)),
        (480, 640, (420, 560)),
        (640, 480, (560, 420)),
        (420, 420, (420, 420)),
        (1, 999, (1, 672)),
    ],
)
def test_a_frame_is_as_large_as_both_limits_allow(height: int, width: int, expected: tuple[int, int]) -> None:
    assert FitTransform(short_side=420, long_side=672).resized(height, width) == expected


def test_a_frame_that_has_its_size_is_not_touched(rng: np.random.Generator) -> None:
    frame = torch.from_numpy(rng.integers(0, 256, (3, 32, 48), dtype=np.uint8))
    assert FitTransform(short_side=32, long_side=48)(frame) is frame


def test_limits_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(ValueError, match="at most its long side, got 50 and 48"):
        FitTransform(short_side=50, long_side=48)


def test_boxes_are_scaled_by_the_scale_not_by_the_ratio_of_rounded_sizes() -> None:
    fit = FitTransform(short_side=640, long_side=1024)
    _, box_map = fit.window(240, 320)
    assert fit.resized(240, 320) == (640, 853)
    boxes, is_seen = box_map(torch.tensor([[10.0, 20, 110, 220]]))
    np.testing.assert_allclose(boxes[0], np.array([10, 20, 110, 220]) * (640 / 240), rtol=1e-6)
    assert is_seen.all()


def test_a_view_is_the_frame_and_black_right_of_it_and_below(folder: Path) -> None:
    dataset = ShardDataset(folder, **PADDED)
    sample, frames = dataset[0], ShardDataset(folder, whole_frames=True, num_frames=3, resize=1, crop=1, dtype="uint8")
    assert sample.frames.shape == (1, 3, 3, 48, 48)
    assert sample.frames.dtype == torch.uint8
    assert sample.shown_size == (32, 48)
    assert not sample.frames[..., 32:, :].any()
    expected = FitTransform(short_side=40, long_side=48)(frames[0].frames[0])
    torch.testing.assert_close(sample.frames[0, ..., :32, :], expected, rtol=0, atol=0)
    assert sample.targets is not None
    assert sample.targets[0][0].boxes[1].tolist() == [0, 0, 4, 4]


def test_padding_is_zero_after_normalising(folder: Path) -> None:
    padded, given = opened(folder, dtype="float32")[1], ShardDataset(folder, **PADDED)[1]
    assert not padded.frames[..., 32:, :].any()
    expected = normalise(given.frames[..., :32, :], mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    torch.testing.assert_close(padded.frames[..., :32, :], expected)


def test_memory_of_an_earlier_batch_does_not_shine_through(folder: Path) -> None:
    dataset = ShardDataset(folder, **PADDED)
    memory = torch.full((1, 3, 48, 48, 3), 77, dtype=torch.uint8)
    sample = dataset.load(0, epoch=0, allocate=lambda shape, dtype: memory.movedim(-1, -3))
    assert sample.frames.data_ptr() == memory.data_ptr()
    assert not memory[:, :, 32:].any()


def test_a_flip_mirrors_the_picture_and_its_boxes_and_not_the_padding(folder: Path) -> None:
    # 36 x 24: padding on both sides
    flipping, plain = (opened(folder, resize=24, train=True, flip=flip) for flip in (True, False))
    num_flipped = 0
    for epoch in range(6):
        flipped, given = (dataset.load(0, epoch=epoch) for dataset in (flipping, plain))
        picture = given.frames[..., :24, :36]
        assert not flipped.frames[..., 36:].any()
        if torch.equal(flipped.frames, given.frames):
            continue
        num_flipped += 1
        torch.testing.assert_close(flipped.frames[..., :24, :36], picture.flip(-1), rtol=0, atol=0)
        assert flipped.targets is not None
        assert given.targets is not None
        left, top, right, bottom = given.targets[0][0].boxes[0].tolist()
        assert flipped.targets[0][0].boxes[0].tolist() == pytest.approx([36 - right, top, 36 - left, bottom])
    assert 0 < num_flipped < 6


def test_a_batch_knows_the_size_of_each_picture(folder: Path) -> None:
    samples = [ShardDataset(folder, **PADDED)[index] for index in (0, 1)]
    batch = Batch.stack(samples)
    assert batch.shown_sizes == [(32, 48), (32, 48)]
    assert batch.to("cpu").shown_sizes == batch.shown_sizes
    cropped = ShardDataset(folder, num_frames=3, resize=48, crop=48, dtype="uint8")[0]
    assert cropped.shown_size is None
    with pytest.raises(ValueError, match="either all samples of a batch are padded or none"):
        Batch.stack([samples[0], cropped])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"resize": 50}, "a short side of 50 px does not fit a square of 48 px; enlarge crop"),
        ({"num_crops": 3}, "shows whole frames as they are; leave num_crops out"),
        ({"rand_augment": "rand-m7-n4-inc1", "dct_scaling": True}, "leave rand_augment, dct_scaling out"),
        ({"fit": "stretch"}, "fit is one of crop, pad; got 'stretch'"),
    ],
)
def test_settings_that_do_not_go_with_padding_are_refused(folder: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        opened(folder, **options)
