"""The forms in which pixels come: normalised floats, bytes, whole frames, frames scaled while they are decoded."""

from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import pytest
import simplejpeg
import torch

from tests.videos import read_number
from tests.vidprep.load.folders import SIDE, numbered_sources, write_shard_folder
from tests.vidprep.media import write_frames
from vidprep.decode.jpeg import JpegReader
from vidprep.errors import CorruptVideo, UsageError
from vidprep.load import ClipDataset, ClipOptions, ClipSettings, ShardDataset, make_loader, normalise
from vidprep.types import FrameFormat, Video

CLIPS: ClipOptions = {"num_frames": 6, "resize": 72, "crop": 64}
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("pixels")
    sources = numbered_sources(root, [Video(video_id=f"v{k}", labels=(k,)) for k in range(3)], num_frames=20)
    return {
        "video": write_shard_folder(root / "video", sources),
        "frames": write_shard_folder(root / "frames", sources, content="frames"),
    }


def with_options(**changes: Any) -> ClipOptions:
    return cast(ClipOptions, {**CLIPS, **changes})


@pytest.mark.parametrize("content", ["video", "frames"])
@pytest.mark.parametrize("changes", [{"train": True}, {}, {"num_clips": 2, "num_crops": 3}], ids=str)
def test_bytes_normalised_later_are_the_floats(
    folders: dict[str, Path], content: Literal["video", "frames"], changes: dict[str, Any]
) -> None:
    floats = ShardDataset(folders[content], **with_options(**changes))
    as_bytes = ShardDataset(folders[content], **with_options(**changes, dtype="uint8"))
    for workers in (0, 2):
        batches = [next(iter(make_loader(source, batch_size=3, workers=workers))) for source in (floats, as_bytes)]
        assert batches[1].frames.dtype == torch.uint8
        assert torch.equal(batches[0].frames, normalise(batches[1].frames, mean=MEAN, std=STD))
        assert torch.equal(batches[0].labels, batches[1].labels)
        samples = torch.stack([as_bytes[index].frames for index in range(3)])
        assert torch.equal(samples, batches[1].frames)


@pytest.mark.parametrize("content", ["video", "frames"])
@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_whole_frames_are_those_of_the_decoder(
    folders: dict[str, Path], content: str, dtype: Literal["uint8", "float32"]
) -> None:
    dataset = ShardDataset(
        folders[content], **with_options(whole_frames=True, dtype=dtype, mean=(0, 0, 0), std=(1, 1, 1), num_clips=2)
    )
    for index, sample in enumerate(dataset[at] for at in range(3)):
        assert sample.frames.shape == (2, 6, 3, SIDE, SIDE)
        pixels = sample.frames if dtype == "uint8" else (sample.frames * 255).round().to(torch.uint8)
        expected = dataset.make.settings.indices(20, None) + 100 * index
        assert [[read_number(frame.numpy()) for frame in clip] for clip in pixels] == expected.tolist()
    if content == "frames":
        wanted = dataset.make.settings.indices(20, None).reshape(-1)
        with JpegReader(list(dataset.encoded(0))) as reader:
            truth = reader.get_frames_at(wanted).to_torch().reshape(2, 6, 3, SIDE, SIDE)
        found = dataset[0].frames
        assert torch.equal(found, truth if dtype == "uint8" else truth.float() / 255)


def test_frames_shown_twice_are_whole_too(tmp_path: Path) -> None:
    sources = numbered_sources(tmp_path, [Video(video_id="short", labels=(0,))], num_frames=3)
    folder = write_shard_folder(tmp_path / "shards", sources, content="frames")
    sample = ShardDataset(folder, **with_options(whole_frames=True, dtype="uint8"))[0]
    assert [read_number(frame.numpy()) for frame in sample.frames[0]] == [0, 1, 2, 2, 2, 2]


# Scaling while decoding


def photo(height: int, width: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Smooth and coarse at once, as photographs are: noise whose power falls with its frequency."""
    rng = np.random.default_rng(0)
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None, :]) + 1 / width
    planes = [np.fft.ifft2(np.fft.fft2(rng.normal(size=(height, width))) / frequency**1.3).real for _ in range(3)]
    picture = np.stack([128 + 45 * plane / plane.std() for plane in planes], axis=2)
    return picture.clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize(("size", "min_side", "decoded"), [
    ((480, 640), 240, (240, 320)), ((480, 640), 241, (480, 640)), ((481, 641), 100, (121, 161)),
    ((480, 640), 30, (60, 80)), ((90, 70), 64, (90, 70)),
])  # fmt: skip
def test_frames_are_scaled_by_powers_of_two_down_to_the_side_that_is_needed(
    size: tuple[int, int], min_side: int, decoded: tuple[int, int]
) -> None:
    data = bytes(simplejpeg.encode_jpeg(photo(*size)))
    with JpegReader([data], min_side=min_side) as reader:
        assert (reader.height, reader.width) == decoded
        assert reader.get_frames_at([0]).data.shape == (1, 3, *decoded)
        (frame,) = reader.iterate_frames([0])
        assert frame.shape == (*decoded, 3)


def test_scaling_while_decoding_changes_pixels_by_less_than_three_grey_levels_on_average(tmp_path: Path) -> None:
    """As docs/loading.md says; on photographs, at the size that evaluation resizes to."""
    frames = tmp_path / "frames"
    write_frames(frames, 1, size=(16, 16))
    (frames / "00001.jpg").write_bytes(simplejpeg.encode_jpeg(photo(480, 640), quality=92))
    video, delivered = Video(video_id="a", labels=(0,)), FrameFormat(template="{:05d}.jpg")
    clips = [
        ClipDataset(
            [video],
            [frames],
            task="single_label",
            num_classes=1,
            delivered=delivered,
            num_frames=1,
            resize=112,
            crop=112,
            dtype="uint8",
            dct_scaling=dct_scaling,
        )[0].frames.to(torch.float32)
        for dct_scaling in (False, True)
    ]
    difference = (clips[0] - clips[1]).abs()
    assert 0 < difference.mean() < 3


def test_training_never_enlarges_frames_that_were_scaled() -> None:
    options = with_options(dct_scaling=True, scales=(1.0, 0.5))
    assert ClipSettings(**options).min_decoded_side == 72
    assert ClipSettings(**cast(ClipOptions, {**options, "train": True})).min_decoded_side == 128
    assert ClipSettings(**CLIPS).min_decoded_side is None


# Faults


def test_a_frame_of_another_size_or_a_damaged_one_is_named_where_it_is_decoded_into_memory() -> None:
    good, small = (bytes(simplejpeg.encode_jpeg(photo(*size))) for size in ((64, 80), (32, 40)))
    with JpegReader([good, small, good[:-200], good]) as reader:
        memory = np.empty((64, 80, 3), dtype=np.uint8)
        with pytest.raises(CorruptVideo, match=r"frame 1 .*: is 40x32 pixels, the first frame 80x64"):
            reader.decode_into(1, memory)
        with pytest.raises(CorruptVideo, match=r"frame 2 .*: is damaged: "):
            reader.decode_into(2, memory)
        reader.decode_into(3, memory)
        assert np.array_equal(memory, reader.get_frames_at([0]).data[0].transpose(1, 2, 0))


def test_forms_that_exclude_each_other_are_refused() -> None:
    with pytest.raises(UsageError, match="whole_frames are neither scaled nor cropped"):
        ClipSettings(**with_options(whole_frames=True, dct_scaling=True))
    with pytest.raises(UsageError, match="dtype is 'float32' or 'uint8', got 'float16'"):
        ClipSettings(**with_options(dtype="float16"))
