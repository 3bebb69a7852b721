from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.vidprep.load.folders import numbered_sources, write_shard_folder
from vidprep.errors import CorruptVideo, MissingVideo, UsageError
from vidprep.load import ClipDataset, ClipOptions, ClipSettings, ShardDataset, make_loader, open_videos
from vidprep.types import Video

CLIPS: ClipOptions = {"num_frames": 8, "resize": 72, "crop": 64}
VIDEOS = [Video(video_id=f"v{k}", labels=(k,)) for k in range(3)]


@pytest.mark.parametrize("backend", ["pyav", "torchcodec"])
def test_video_files_give_the_samples_of_their_shards(tmp_path: Path, backend: Any) -> None:
    sources = numbered_sources(tmp_path, VIDEOS)
    folder = write_shard_folder(tmp_path / "shards", sources)
    paths = [source.path for source in sources]
    for train in (False, True):
        options: ClipOptions = {**CLIPS, "train": train}
        files = ClipDataset(VIDEOS, paths, task="single_label", num_classes=8, backend=backend, **options)
        shards = ShardDataset(folder, backend=backend, **options)
        for epoch in (0, 1):
            batches = []
            for dataset in (files, shards):
                loader = make_loader(dataset, batch_size=3, workers=2)
                loader.set_epoch(epoch)
                batches += list(loader)
            assert torch.equal(batches[0].frames, batches[1].frames)
            assert torch.equal(batches[0].labels, batches[1].labels)
            assert torch.equal(batches[0].pts_seconds, batches[1].pts_seconds)
            assert batches[0].video_id == batches[1].video_id == ["v0", "v1", "v2"]


def test_the_videos_of_a_folder_are_opened_by_name(tmp_path: Path) -> None:
    for name in ("left", "right"):
        (tmp_path / "data" / name).mkdir(parents=True)
    numbered_sources(tmp_path / "data" / "left", VIDEOS[:2])
    numbered_sources(tmp_path / "data" / "right", VIDEOS[2:])
    dataset = open_videos("folder", "all", data_root=tmp_path / "data", **CLIPS)
    (batch,) = make_loader(dataset, batch_size=3, workers=0)
    assert batch.frames.shape == (3, 1, 8, 3, 64, 64)
    assert batch.labels.tolist() == [0, 0, 1]


def test_a_video_file_that_does_not_decode_is_named(tmp_path: Path) -> None:
    path = tmp_path / "v0.mp4"
    path.write_bytes(bytes(5000))
    dataset = ClipDataset(VIDEOS[:1], [path], task="single_label", num_classes=8, **CLIPS)
    with pytest.raises(CorruptVideo, match=r"v0 \(.*v0\.mp4\) gives no clip: "):
        dataset[0]


def test_a_video_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        MissingVideo, match=r"1 of 1 videos are not there, .*v0\.mp4 is the first; run `vidprep verify`"
    ):
        ClipDataset(VIDEOS[:1], [tmp_path / "v0.mp4"], task="single_label", num_classes=8, **CLIPS)


def test_a_data_set_needs_videos_with_paths() -> None:
    with pytest.raises(UsageError, match="at least one video, got none"):
        ClipDataset([], [], task="single_label", num_classes=8, **CLIPS)
    with pytest.raises(ValueError, match="3 videos need as many paths, got 1"):
        ClipDataset(VIDEOS, ["a.mp4"], task="single_label", num_classes=8, **CLIPS)


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"num_frames": 0}, "num_frames must be at least 1, got 0"),
        ({"num_clips": 0}, "num_clips must be at least 1, got 0"),
        ({"crop": 73}, "a crop of 73 px does not fit a short side of 72 px; enlarge resize"),
        ({"num_crops": 2}, r"num_crops is 1 \(centre\) or 3 \(left, centre and right\), got 2"),
        ({"sampler": "dense", "dense_window": 7}, "dense_window 7 holds no clip of 8 frames"),
        ({"sampler": "jittered", "num_clips": 2}, "a jittered clip is the only one of its video, got num_clips = 2"),
        ({"sampler": "jittered", "leading_frames": 8}, r"leading_frames lies in 0 \.\.\. 7 for 8 frames"),
        ({"leading_frames": 1}, r'leading_frames lies in 0 \.\.\. 0 for 8 frames of "segments", got 1'),
        ({"sampler": "random"}, "sampler is one of segments, dense.*; got 'random'"),
        ({"short": "none"}, "short is one of first, last, spread; got 'none'"),
        ({"crop_placement": "left"}, "crop_placement is one of along_longer_side,.* along_width; got 'left'"),
        ({"scales": ()}, r"scales are fractions of the short side, above 0 and at most 1, got \(\)"),
        ({"scales": (1.5,)}, r"at most 1, got \(1\.5,\)"),
        ({"std": (1, 0, 1)}, r"std must be positive, got \(1, 0, 1\)"),
        ({"seed": -1}, "seed and max_aspect_step are 0 or more, got -1 and 1"),
    ],
)
def test_settings_out_of_range_are_refused(wrong: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        ClipSettings(**{**CLIPS, **wrong})


def test_leading_frames_are_sampled_on_their_own() -> None:
    settings = ClipSettings(num_frames=6, leading_frames=2, sampler="jittered", resize=72, crop=64)
    assert settings.indices(80, None).tolist() == [[20, 60, 10, 30, 50, 70]]
    leading, others = np.split(settings.indices(80, np.random.default_rng(0))[0], [2])
    assert (leading // 40).tolist() == [0, 1]
    assert (others // 20).tolist() == [0, 1, 2, 3]
