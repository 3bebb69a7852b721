"""Clips from the lists of a code base: frames that it extracted, or its video files."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from torch import Tensor

from tests.videos import number_image, read_number, write_numbered_video
from vidprep.layouts import find_layout
from vidprep.layouts.lists import FrameList, check_frames, read_list
from vidprep.load.dataset import ClipDataset

CLIPS: dict[str, Any] = {
    "num_frames": 8,
    "resize": 96,
    "crop": 96,
    "mean": (0.0, 0.0, 0.0),
    "std": (1.0, 1.0, 1.0),
}
IDS = ("0wR5jVB-WPk_000417_000427", "3caPS4FHFF8_000036_000046")
LABELS = (0, 399)


def dataset_of(listed: FrameList, **changes: Any) -> ClipDataset:
    return ClipDataset(
        listed.split.videos,
        [row.source for row in listed.rows],
        task=listed.split.task,
        num_classes=len(listed.split.classes),
        delivered=listed.layout.frames,
        **{**CLIPS, **changes},
    )


def numbers(clip: Tensor) -> list[int]:
    return [read_number(frame) for frame in (clip * 255).round().byte().numpy()]


@pytest.fixture
def of_frames(tmp_path: Path) -> FrameList:
    for k, (video_id, num_frames) in enumerate(zip(IDS, (80, 12), strict=True)):
        folder = tmp_path / "k400" / "frames" / video_id
        folder.mkdir(parents=True)
        for number in range(1, num_frames + 1):
            picture = number_image(100 * k + number, width=96, height=96)
            Image.fromarray(picture).save(folder / f"img_{number:05d}.png", compress_level=1)
    path = tmp_path / "list.txt"
    path.write_text(f"frames/{IDS[0]} 80 0\nframes/{IDS[1]} 12 399")
    return read_list(path, find_layout("tam", "kinetics400"), split="val", root=tmp_path)


def test_tams_lists_of_extracted_frames_give_the_frames_that_it_reads(of_frames: FrameList) -> None:
    assert check_frames(of_frames) == ()
    uniform = dataset_of(of_frames, short="first")
    assert [int(uniform[k].labels) for k in range(2)] == list(LABELS)
    # frame numbers from 1: int(tick / 2 + tick * i) + 1
    assert numbers(uniform[0].frames[0]) == [6, 16, 26, 36, 46, 56, 66, 76]
    dense = dataset_of(of_frames, sampler="dense", dense_window=64, num_clips=2)
    assert [numbers(clip) for clip in dense[0].frames] == [[*range(1, 65, 8)], [*range(17, 81, 8)]]
    assert numbers(dense[1].frames[0]) == [101, 109, 105, 101, 109, 105, 101, 109]  # 12 frames, read round and round


def test_tams_lists_of_videos_give_the_same_frames(tmp_path: Path, of_frames: FrameList) -> None:
    folder = tmp_path / "k400" / "val" / "part_0"
    folder.mkdir(parents=True)
    for k, (video_id, num_frames) in enumerate(zip(IDS, (80, 12), strict=True)):
        write_numbered_video(folder / f"{video_id}.mp4", num_frames=num_frames, width=96, height=96, start=100 * k + 1)
    path = tmp_path / "videos.txt"
    path.write_text(f"val/part_0/{IDS[0]}.mp4 80 0\nval/part_0/{IDS[1]}.mp4 12 399")
    of_videos = read_list(path, find_layout("tam", "kinetics400", "videos"), split="val", root=tmp_path)
    assert check_frames(of_videos) == ()
    for settings in ({"short": "first"}, {"sampler": "dense", "num_clips": 2, "num_crops": 3}):
        frames, videos = dataset_of(of_frames, **settings), dataset_of(of_videos, **settings)
        for index in range(2):
            assert frames[index].video_id == videos[index].video_id == IDS[index]
            assert int(frames[index].labels) == int(videos[index].labels) == LABELS[index]
            pairs = zip(frames[index].frames, videos[index].frames, strict=True)
            assert all(numbers(ours) == numbers(theirs) for ours, theirs in pairs)


def test_a_random_clip_of_the_same_epoch_is_the_same(of_frames: FrameList) -> None:
    dataset = dataset_of(of_frames, train=True, sampler="dense", crop=64, seed=3)
    first = dataset[0].frames
    assert np.array_equal(dataset[0].frames, first)
    dataset.set_epoch(1)
    assert not np.array_equal(dataset[0].frames, first)
