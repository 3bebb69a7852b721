import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from vidprep.load.transforms import EvalTransform, TrainTransform, crop_offsets, multiscale_crop_sizes

SCALES = (1.0, 0.875, 0.75, 0.66)


def test_multiscale_crop_sizes_of_a_256_pixel_frame() -> None:
    # int(256 * 0.66) = 168; 224 is a scale of its own; width's scale varies fastest
    assert multiscale_crop_sizes(340, 256, scales=SCALES, max_aspect_step=1, crop=224) == [
        (256, 256), (224, 256),
        (256, 224), (224, 224), (192, 224),
        (224, 192), (192, 192), (168, 192),
        (192, 168), (168, 168),
    ]  # fmt: skip
    assert multiscale_crop_sizes(340, 256, scales=SCALES, max_aspect_step=0, crop=224) == [
        (256, 256), (224, 224), (192, 192), (168, 168),
    ]  # fmt: skip


@pytest.mark.parametrize(("short_side", "expected"), [(221, 221), (222, 224), (226, 224), (227, 227)])
def test_a_side_within_two_pixels_of_the_crop_becomes_the_crop(short_side: int, expected: int) -> None:
    sizes = multiscale_crop_sizes(400, short_side, scales=(1.0, 0.5), max_aspect_step=1, crop=224)
    assert sizes[0] == (expected, expected)
    assert sizes[1] == (short_side // 2, expected)


def test_crop_offsets_lie_on_quarters_of_the_slack() -> None:
    # slack 116 x 32: steps 29 x 8
    assert crop_offsets(340, 256, 224, 224) == [
        (0, 0), (116, 0), (0, 32), (116, 32),
        (58, 16),
        (0, 16), (116, 16), (58, 32), (58, 0),
        (29, 8), (87, 8), (29, 24), (87, 24),
    ]  # fmt: skip
    assert crop_offsets(103, 100, 100, 100) == [(0, 0)] * 13  # a slack of 3 pixels has no quarters


@given(st.integers(1, 600), st.integers(1, 600), st.integers(8, 300), st.integers(0, 3))
def test_training_crops_lie_in_the_frame(width: int, height: int, crop: int, max_aspect_step: int) -> None:
    sizes = multiscale_crop_sizes(width, height, scales=SCALES, max_aspect_step=max_aspect_step, crop=crop)
    assert len(sizes) == [4, 10, 14, 16][max_aspect_step]
    for crop_width, crop_height in sizes:
        if crop in (crop_width, crop_height) and crop > min(width, height):
            continue  # 1 or 2 pixels over the edge
        for left, top in crop_offsets(width, height, crop_width, crop_height):
            assert 0 <= left <= width - crop_width
            assert 0 <= top <= height - crop_height


def test_training_makes_one_choice_for_the_whole_clip(rng: np.random.Generator) -> None:
    frames = _noise(rng, 1, 96, 128).expand(5, -1, -1, -1)
    clips = [TrainTransform(crop=64)(frames, (0,), np.random.default_rng(seed))[0] for seed in range(20)]
    for clip in clips:
        assert clip.shape == (5, 3, 64, 64)
        assert clip.dtype == torch.float32
        assert (clip == clip[:1]).all()
    assert len({clip.numpy().tobytes() for clip in clips}) > 10


def test_equal_random_states_make_equal_clips(rng: np.random.Generator) -> None:
    frames = _noise(rng, 2, 96, 128)
    transform = TrainTransform(crop=64)
    first, second = (transform(frames, (3,), np.random.default_rng(5))[0] for _ in range(2))
    assert torch.equal(first, second)


def test_a_flip_maps_the_labels_of_the_flipped_clips_only(rng: np.random.Generator) -> None:
    frames = _ramp(96, 96)  # grey grows from left to right
    transform = TrainTransform(crop=64, flip_pairs={4: 5, 5: 4, 7: 7})
    flipped = 0
    for seed in range(200):
        clip, labels = transform(frames, (4, 7, 9), np.random.default_rng(seed))
        is_flipped = bool(clip[0, 0, 0, 0] > clip[0, 0, 0, -1])
        assert labels == ((5, 7, 9) if is_flipped else (4, 7, 9))
        flipped += is_flipped
    assert 70 < flipped < 130


def test_without_flip_no_clip_is_flipped() -> None:
    frames = _ramp(96, 96)
    transform = TrainTransform(crop=64, flip=False, flip_pairs={4: 5, 5: 4})
    for seed in range(50):
        clip, labels = transform(frames, (4,), np.random.default_rng(seed))
        assert clip[0, 0, 0, 0] < clip[0, 0, 0, -1]
        assert labels == (4,)


def test_a_training_crop_that_fits_is_not_resampled(rng: np.random.Generator) -> None:
    frames = _noise(rng, 2, 64, 64)
    transform = TrainTransform(crop=64, scales=(1.0,), flip=False)
    clip, _ = transform(frames, (0,), rng)
    assert torch.equal(clip, _normalised(frames))


def test_frames_of_one_pixel_are_cropped_too(rng: np.random.Generator) -> None:
    clip, _ = TrainTransform(crop=16)(_noise(rng, 2, 1, 3), (0,), rng)
    assert clip.shape == (2, 3, 16, 16)


def test_a_training_crop_over_the_edge_is_black_there() -> None:
    frames = torch.full((1, 3, 62, 62), 255, dtype=torch.uint8)
    transform = TrainTransform(crop=64, scales=(1.0,), flip=False, mean=(0, 0, 0), std=(1, 1, 1))
    clip, _ = transform(frames, (0,), np.random.default_rng(0))
    assert set(clip.flatten().tolist()) == {0.0, 1.0}
    assert clip.sum() >= 3 * 60 * 60


def test_resizing_is_that_of_pil_within_one_grey_level(rng: np.random.Generator) -> None:
    frames = _noise(rng, 1, 120, 160)
    ours = EvalTransform(resize=64, crop=64, mean=(0, 0, 0), std=(1, 1, 1))(frames)[0, 0] * 255
    pil = Image.fromarray(frames[0].permute(1, 2, 0).numpy()).resize((85, 64), Image.Resampling.BILINEAR)
    centre = np.asarray(pil).transpose(2, 0, 1)[:, :, 10:74].astype(np.int64)  # slack 21: round(10.5) = 10
    assert np.abs(ours.round().long().numpy() - centre).max() <= 1


@pytest.mark.parametrize(("width", "left"), [(455, 116), (453, 114), (340, 58), (256, 16)])
def test_centre_crop_rounds_halves_to_even(width: int, left: int) -> None:
    frames = _columns(256, width)
    views = EvalTransform(resize=256, crop=224)(frames)
    assert torch.equal(views, _normalised(frames[..., 16:240, left : left + 224])[None])


def test_three_crops_go_along_the_longer_side() -> None:
    frames = _columns(64, 100)
    views = EvalTransform(resize=64, crop=64, num_crops=3)(frames)
    assert torch.equal(views, torch.stack([_normalised(frames[..., x : x + 64]) for x in (0, 18, 36)]))
    upright = frames.transpose(-1, -2)
    views = EvalTransform(resize=64, crop=64, num_crops=3)(upright)
    assert torch.equal(views, torch.stack([_normalised(upright[..., y : y + 64, :]) for y in (0, 18, 36)]))


def test_three_crops_along_the_width_lie_on_quarters_of_the_slack() -> None:
    frames = _columns(64, 103)  # slack 39: the right crop ends 3 pixels before the edge; the centre comes last
    views = EvalTransform(resize=64, crop=64, num_crops=3, crop_placement="along_width")(frames)
    assert torch.equal(views, torch.stack([_normalised(frames[..., x : x + 64]) for x in (0, 36, 18)]))
    upright = frames.transpose(-1, -2)
    views = EvalTransform(resize=64, crop=64, num_crops=3, crop_placement="along_width")(upright)
    assert torch.equal(views, _normalised(upright[..., 18:82, :]).expand(3, -1, -1, -1, -1))
    assert [
        m.left for m in EvalTransform(resize=64, crop=56, num_crops=3, crop_placement="along_width").box_maps(64, 103)
    ] == [0, 44, 22]


@given(st.integers(16, 200), st.integers(16, 200), st.integers(8, 64), st.integers(0, 40), st.sampled_from([1, 3]))
def test_evaluation_fits_any_frame(width: int, height: int, crop: int, margin: int, num_crops: int) -> None:
    frames = torch.zeros((2, 3, height, width), dtype=torch.uint8)
    views = EvalTransform(resize=crop + margin, crop=crop, num_crops=num_crops)(frames)
    assert views.shape == (num_crops, 2, 3, crop, crop)


def test_frames_stored_channels_last_give_the_same_clip(rng: np.random.Generator) -> None:
    frames = _noise(rng, 2, 90, 120)
    permuted = frames.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    for transform in (EvalTransform(resize=72, crop=64), EvalTransform(resize=90, crop=64, num_crops=3)):
        views = transform(permuted)
        assert torch.equal(views, transform(frames))
        assert views.is_contiguous()


def test_impossible_evaluation_crops_are_refused() -> None:
    with pytest.raises(ValueError, match="a crop of 65 px does not fit a short side of 64 px"):
        EvalTransform(resize=64, crop=65)
    with pytest.raises(ValueError, match=r"num_crops is 1 \(centre\) or 3 \(left, centre and right\), got 5"):
        EvalTransform(resize=64, crop=64, num_crops=5)


def _noise(rng: np.random.Generator, t: int, height: int, width: int) -> Tensor:
    return torch.from_numpy(rng.integers(0, 256, (t, 3, height, width), dtype=np.uint8))


def _ramp(height: int, width: int) -> Tensor:
    return (torch.arange(width) * 255 // (width - 1)).to(torch.uint8).expand(1, 3, height, width)


def _columns(height: int, width: int) -> Tensor:
    """Neighbouring columns differ, so a shift by one pixel shows."""
    return (torch.arange(width) * 7 % 256).to(torch.uint8).expand(2, 3, height, width)


def _normalised(frames: Tensor) -> Tensor:
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    return (frames.float() / 255 - mean.view(3, 1, 1)) / std.view(3, 1, 1)


def test_floats_are_resized_with_antialias_and_cover_the_crop() -> None:
    frames = torch.randint(0, 256, (2, 3, 30, 53), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    transform = EvalTransform(
        resize=20, crop=20, num_crops=3, crop_placement="along_longer_side_floor", resize_floats=True,
        mean=(0.45,) * 3, std=(0.225,) * 3,
    )  # fmt: skip
    assert transform.resized(30, 53) == (20, 35)
    assert EvalTransform(resize=20, crop=20, resize_floats=True).resized(30, 52) == (20, 35)  # 34.67 is rounded
    assert EvalTransform(resize=20, crop=20).resized(30, 52) == (20, 34)
    resized = F.resize((frames / 255 - 0.45) / 0.225, [20, 35], antialias=True)
    expected = torch.stack([resized[..., left : left + 20] for left in (0, 7, 15)])
    torch.testing.assert_close(transform(frames), expected, atol=2e-6, rtol=0)


def test_a_single_crop_may_lie_at_the_centre_cut_to_an_integer() -> None:
    assert EvalTransform(resize=4, crop=4).corners(7, 4) == [(2, 0)]
    assert EvalTransform(resize=4, crop=4, crop_placement="along_longer_side_floor").corners(7, 4) == [(1, 0)]
