import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.videos import read_number, write_numbered_video
from tests.vidprep.load.test_targets import NUM_FRAMES, boxes_of, write_shards
from tests.vidprep.media import write_frames
from vidprep.datasets.imagenet_vid import INFO
from vidprep.errors import CorruptVideo, MissingVideo, UsageError
from vidprep.load import FitTransform
from vidprep.load.sequences import SequenceDataset, open_sequences, split_at_gaps
from vidprep.shard import shard
from vidprep.splits import Split, read_classes
from vidprep.types import FrameFormat, Video

FIT = FitTransform(short_side=32, long_side=64)
"""96 x 64 pixels become 48 x 32."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shards(tmp_path_factory.mktemp("vid"), num_snippets=2)


def test_a_sequence_has_every_frame_in_order_with_all_its_boxes(folder: Path) -> None:
    dataset = SequenceDataset(folder, fit=FIT)
    assert len(dataset) == 2
    assert dataset.num_frames == 2 * NUM_FRAMES
    assert not dataset.missing
    for k in (0, 1):
        frames = list(dataset[k])
        assert [frame.number for frame in frames] == list(range(NUM_FRAMES)) == list(dataset[k].places)
        assert [read_number(frame.picture) for frame in frames] == [100 * k + index for index in range(NUM_FRAMES)]
        assert {tuple(frame.pixels.shape) for frame in frames} == {(3, 32, 48)}
        assert {frame.pixels.dtype for frame in frames} == {torch.uint8}
        for index, frame in enumerate(frames):
            assert frame.targets is not None
            expected = np.array([box.xyxy for box in boxes_of(index)]) / 2
            np.testing.assert_allclose(frame.targets.boxes, expected)
            assert frame.scale == 0.5
            assert frame.targets.labels.tolist() == [12, 29]
            assert frame.targets.track_ids.tolist() == [3, 4]
            assert math.isnan(frame.seconds)


def test_frames_are_resized_as_the_published_data_set_does(folder: Path) -> None:
    [frame] = SequenceDataset(folder, fit=FIT)[0].part(3, 4)
    expected = FIT(torch.from_numpy(frame.picture.copy()).permute(2, 0, 1))
    torch.testing.assert_close(frame.pixels, expected, rtol=0, atol=0)


def test_a_part_of_a_sequence_keeps_its_numbers_and_ends_where_the_sequence_does(folder: Path) -> None:
    sequence = SequenceDataset(folder, fit=FIT)[1]
    part = sequence.part(15, 99)
    assert len(part) == 5
    assert [read_number(frame.picture) for frame in part] == [115, 116, 117, 118, 119]
    assert [frame.number for frame in part.part(1, 3)] == [16, 17]


def test_frames_without_annotations_have_no_targets(tmp_path: Path) -> None:
    [frame, *_] = SequenceDataset(write_shards(tmp_path, num_snippets=1, with_boxes=False), fit=FIT)[0]
    assert frame.targets is None


def test_videos_that_are_in_no_shard_are_named(tmp_path: Path) -> None:
    frames = write_frames(tmp_path / "a", 6, template="{:06d}.JPEG", first_index=0)
    gap = write_frames(tmp_path / "b", 6, template="{:06d}.JPEG", first_index=0)
    (gap / "000003.JPEG").unlink()
    split = Split(
        dataset="imagenet_vid",
        split="test",
        task="detection",
        classes=read_classes("imagenet_vid"),
        videos=(Video(video_id="a"), Video(video_id="b")),
    )
    paths = {"a": frames, "b": gap}
    shard(split, paths, out=tmp_path / "shards", content="frames", frames=FrameFormat(), delivered=INFO.frames)
    dataset = SequenceDataset(tmp_path / "shards", fit=FIT)
    [missing] = dataset.missing
    assert len(dataset) == 1
    assert missing.video_id == "b"
    assert "000003.JPEG is missing" in missing.reason


def test_shards_that_hold_some_frames_only_are_no_sequences(tmp_path: Path) -> None:
    frames = write_frames(tmp_path / "a", 6, template="{:06d}.JPEG", first_index=0)
    split = Split(
        dataset="imagenet_vid",
        split="test",
        task="detection",
        classes=read_classes("imagenet_vid"),
        videos=(Video(video_id="a"),),
    )
    some = FrameFormat(num_frames=3)
    shard(split, {"a": frames}, out=tmp_path / "s", content="frames", frames=some, delivered=INFO.frames)
    with pytest.raises(UsageError, match=r"holds some frames of each video only \(\{'num_frames': 3\}\)"):
        SequenceDataset(tmp_path / "s", fit=FIT)


@pytest.mark.parametrize(
    ("numbers", "expected"),
    [
        ([3, 4, 5, 9, 10], [[3, 4, 5], [9, 10]]),
        ([0], [[0]]),
        ([0, 2, 4], [[0], [2], [4]]),
        ([], []),
    ],
)
def test_a_gap_in_the_numbers_starts_a_new_sequence(numbers: list[int], expected: list[list[int]]) -> None:
    assert [numbers[part] for part in split_at_gaps(numbers)] == expected


def test_a_video_file_is_one_sequence_with_times(tmp_path: Path) -> None:
    path = write_numbered_video(tmp_path / "a.mp4", num_frames=9, fps=10, width=96, height=64)
    [sequence] = open_sequences(path, fit=FIT)
    frames = list(sequence)
    assert sequence.name == "a.mp4"
    assert [read_number(frame.picture) for frame in frames] == list(range(9))
    assert [frame.seconds for frame in frames] == pytest.approx([index / 10 for index in range(9)])
    assert [read_number(frame.picture) for frame in sequence.part(4, 6)] == [4, 5]
    assert frames[0].targets is None


def test_a_folder_of_images_is_split_at_its_gaps(tmp_path: Path) -> None:
    folder = write_frames(tmp_path / "frames", 8, template="img_{:04d}.jpg", first_index=5)
    (folder / "img_0008.jpg").unlink()
    (folder / "notes.txt").touch()
    first, second = open_sequences(folder, fit=FIT)
    assert [frame.number for frame in first] == [5, 6, 7]
    assert [read_number(frame.picture) for frame in second] == [4, 5, 6, 7]
    assert (first.name, second.name) == ("frames/img_0005", "frames/img_0009")


def test_what_is_no_sequence_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MissingVideo, match="no such video file or folder of images"):
        open_sequences(tmp_path / "nowhere", fit=FIT)
    folder = tmp_path / "frames"
    folder.mkdir()
    with pytest.raises(CorruptVideo, match=r"no .jpg, .jpeg or .png images"):
        open_sequences(folder, fit=FIT)
    write_frames(folder / "a", 2)
    (folder / "a" / "first.jpg").write_bytes((folder / "a" / "00001.jpg").read_bytes())
    with pytest.raises(UsageError, match=r"first.jpg: an image of a sequence has a number at the end of its name"):
        open_sequences(folder / "a", fit=FIT)
    (folder / "a" / "first.jpg").rename(folder / "a" / "x1.jpg")
    with pytest.raises(UsageError, match=r"00001.jpg and x1.jpg have the same number; keep one"):
        open_sequences(folder / "a", fit=FIT)


def test_an_image_of_another_size_or_none_at_all_is_named(tmp_path: Path) -> None:
    folder = write_frames(tmp_path / "a", 3)
    Image.new("RGB", (10, 20)).save(folder / "00003.jpg")
    [sequence] = open_sequences(folder, fit=FIT)
    with pytest.raises(CorruptVideo, match=r"00003.jpg: is 10x20 pixels, the first image 64x48"):
        list(sequence)
    (folder / "00002.jpg").write_bytes(b"no image")
    with pytest.raises(CorruptVideo, match=r"00002.jpg: "):
        list(sequence)


def test_the_classes_of_imagenet_vid_are_numbered_as_the_published_labels_less_one() -> None:
    classes, synsets = read_classes("imagenet_vid"), read_classes("imagenet_vid", "synsets.txt")
    published = (
        "airplane antelope bear bicycle bird bus car cattle dog domestic_cat elephant fox giant_panda hamster horse "
        "lion lizard monkey motorcycle rabbit red_panda sheep snake squirrel tiger train turtle watercraft whale zebra"
    )
    assert classes == tuple(published.split())
    assert (synsets[0], synsets[12], synsets[29]) == ("n02691156", "n02510455", "n02391049")
