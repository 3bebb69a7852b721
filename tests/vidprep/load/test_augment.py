import numpy as np
import pytest
import torch
from torch import Tensor

from vidprep.errors import UsageError
from vidprep.load.augment import OPERATIONS, RandAugment, erased_box, random_resized_box
from vidprep.load.dataset import ClipSettings, SampleMaker
from vidprep.load.transforms import EvalTransform, TrainTransform

VIDEOMAE = "rand-m7-n4-mstd0.5-inc1"


def clip(height: int = 40, width: int = 56) -> Tensor:
    """Four times the same frame, of smooth colours."""
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    frame = torch.stack([rows * 255 // height, columns * 255 // width, (rows + columns) % 256]).to(torch.uint8)
    return frame.expand(4, -1, -1, -1).contiguous()


def test_the_notation_is_timms() -> None:
    assert RandAugment.parse(VIDEOMAE) == RandAugment(magnitude=7, num_operations=4, magnitude_std=0.5)
    assert RandAugment.parse("rand-m9-n2-inc1") == RandAugment(magnitude=9, num_operations=2)


@pytest.mark.parametrize("text", ["", "rand-m7-n4", "rand-m11-n4-inc1", "rand-m7-n0-inc1", "augmix-m3"])
def test_other_notations_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match=r"expected rand-mM-nN\[-mstdS\]-inc1"):
        RandAugment.parse(text)


def test_half_of_the_operations_are_applied_and_all_of_them_come() -> None:
    rng, augment = np.random.default_rng(0), RandAugment.parse(VIDEOMAE)
    drawn = [augment.draw(rng) for _ in range(500)]
    assert np.mean([len(operations) for operations in drawn]) == pytest.approx(2, abs=0.1)
    arguments: dict[str, list[tuple[float, ...]]] = {}
    for name, values in (operation for operations in drawn for operation in operations):
        arguments.setdefault(name, []).append(values)
    assert set(arguments) == set(OPERATIONS)
    degrees = np.array([values[0] for values in arguments["Rotate"]])
    assert np.abs(degrees).mean() == pytest.approx(21, abs=0.6)
    assert 0.3 < (degrees < 0).mean() < 0.7


@pytest.mark.parametrize(
    ("name", "level", "sign", "expected"),
    [
        ("Invert", 0.7, 1, ()),
        ("Rotate", 0.7, -1, (-21.0,)),
        ("PosterizeIncreasing", 0.7, 1, (2,)),
        ("PosterizeIncreasing", 1.0, 1, (0,)),
        ("SolarizeIncreasing", 0.7, 1, (77,)),
        ("SolarizeAdd", 0.7, 1, (77,)),
        ("ColorIncreasing", 0.7, 1, (1.63,)),
        ("SharpnessIncreasing", 1.0, -1, (0.1,)),
        ("ShearX", 0.7, 1, (0.21,)),
        ("TranslateYRel", 0.7, -1, (-0.315,)),
    ],
)
def test_magnitudes_become_arguments(name: str, level: float, sign: int, expected: tuple[float, ...]) -> None:
    assert OPERATIONS[name](level, sign) == pytest.approx(expected)


def test_all_frames_of_a_clip_change_alike_and_by_the_generator_alone() -> None:
    augment, frames = RandAugment.parse(VIDEOMAE), clip()
    seen = set()
    for seed in range(20):
        changed = augment(frames, np.random.default_rng(seed))
        assert changed.shape == frames.shape
        assert changed.dtype == torch.uint8
        assert (changed == changed[:1]).all()
        assert torch.equal(changed, augment(frames, np.random.default_rng(seed)))
        seen.add(changed.numpy().tobytes())
    assert len(seen) > 15


def test_crops_lie_in_the_frame_with_the_asked_area_and_aspect() -> None:
    rng = np.random.default_rng(0)
    boxes = np.array([random_resized_box(240, 320, rng) for _ in range(500)])
    top, left, height, width = boxes.T
    assert (np.minimum(top, left) >= 0).all()
    assert (top + height <= 240).all()
    assert (left + width <= 320).all()
    area = height * width / (240 * 320)
    assert area.min() > 0.07
    assert area.max() > 0.85
    assert np.abs(np.log(width / height)).max() < np.log(4 / 3) + 0.03


def test_a_frame_that_no_crop_fits_is_cropped_centrally() -> None:
    assert random_resized_box(8, 800, np.random.default_rng(0), area=(0.9, 1.0)) == (0, 394, 8, 11)


def test_erased_boxes_cover_a_fiftieth_to_a_third() -> None:
    rng = np.random.default_rng(0)
    boxes = [box for _ in range(500) if (box := erased_box(224, 224, rng))]
    assert len(boxes) == 500
    areas = np.array([height * width / 224**2 for _, _, height, width in boxes])
    assert 0.018 < areas.min() < 0.04
    assert 0.3 < areas.max() < 0.34
    assert all(top + height <= 224 and left + width <= 224 for top, left, height, width in boxes)


def test_an_erased_box_is_noise_anew_in_every_frame_at_one_place() -> None:
    transform = TrainTransform(crop=32, train_crop="random_resized", random_erasing=1.0)
    values, _ = transform(torch.zeros(3, 3, 40, 40, dtype=torch.uint8), (), np.random.default_rng(0))
    plain = TrainTransform(crop=32, train_crop="random_resized")
    before, _ = plain(torch.zeros(3, 3, 40, 40, dtype=torch.uint8), (), np.random.default_rng(0))
    changed = values != before
    assert (changed == changed[:1, :1]).all()
    assert 0.01 < changed.float().mean() < 0.4
    noise = values[changed].view(3, -1)
    assert noise.std() == pytest.approx(1, abs=0.15)
    assert not torch.equal(noise[0], noise[1])


def test_a_random_resized_crop_sees_the_same_part_in_every_frame_and_keeps_colours() -> None:
    transform = TrainTransform(crop=16, train_crop="random_resized", flip=False, mean=(0, 0, 0), std=(1, 1, 1))
    values, _, box_map = transform.with_map(clip(), (), np.random.default_rng(3))
    assert values.shape == (4, 3, 16, 16)
    assert (values == values[:1]).all()
    left = box_map.left / box_map.scale_x
    column = left + 0.5 / box_map.scale_x - 0.5
    assert float(values[0, 1, 8, 0]) == pytest.approx(column / 56, abs=0.02)


def test_views_of_a_clip_are_changed_each_by_itself() -> None:
    settings = ClipSettings(num_frames=4, resize=32, crop=32, train=True, num_repeats=2, rand_augment=VIDEOMAE)
    SampleMaker(settings=settings, task="single_label", num_classes=2, flip_pairs={})
    with pytest.raises(UsageError, match="num_repeats flips each view by itself"):
        SampleMaker(settings=settings, task="single_label", num_classes=2, flip_pairs={0: 1, 1: 0})
    with pytest.raises(UsageError, match="detection needs them off"):
        SampleMaker(settings=settings, task="detection", num_classes=2, flip_pairs={})


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"random_erasing": 1.5}, "random_erasing is a probability, got 1.5"),
        ({"rand_augment": "strong"}, "rand_augment 'strong': expected rand-mM"),
        ({"num_repeats": 0}, "num_repeats must be at least 1, got 0"),
        ({"train_crop": "five"}, "train_crop is one of multi_scale, random_resized; got 'five'"),
        ({"clip_placement": "interleaved", "num_clips": 3}, "is for 2 clips of segments, got 3 of segments"),
        ({"sampler": "window", "dense_window": 2}, "dense_window 2 holds no clip of 4 frames"),
        ({"sampler": "strided", "dense_window": 2}, "dense_window 2 holds no clip of 4 frames"),
        ({"resize_floats": True, "antialias": False}, "resize_floats is with antialias"),
        ({"resize_floats": True, "dtype": "uint8"}, "resize_floats gives no whole grey levels"),
    ],
)
def test_settings_out_of_range_are_named(options: dict[str, object], sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        ClipSettings(num_frames=4, resize=32, crop=32, **options)  # type: ignore[arg-type]


def test_without_antialias_frames_are_resized_as_opencv_does() -> None:
    frames = torch.zeros(1, 3, 8, 8, dtype=torch.uint8)
    frames[..., 3:5, 3:5] = 200
    sharp = EvalTransform(resize=2, crop=2, antialias=False, mean=(0, 0, 0), std=(1 / 255, 1 / 255, 1 / 255))
    # pixel centres at 1.5 and 5.5: what lies at 3 and 4 is never read
    assert sharp(frames).abs().max() == 0
    smooth = EvalTransform(resize=2, crop=2, mean=(0, 0, 0), std=(1 / 255, 1 / 255, 1 / 255))
    assert smooth(frames).min() > 10


def test_the_middle_crop_may_be_cut_to_an_integer() -> None:
    rounded = EvalTransform(resize=4, crop=4, num_crops=3)
    cut = EvalTransform(resize=4, crop=4, num_crops=3, crop_placement="along_longer_side_floor")
    assert rounded.corners(7, 4) == [(0, 0), (2, 0), (3, 0)]
    assert cut.corners(7, 4) == [(0, 0), (1, 0), (3, 0)]
    assert cut.corners(4, 7) == [(0, 0), (0, 1), (0, 3)]
