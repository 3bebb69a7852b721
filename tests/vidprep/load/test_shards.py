import multiprocessing
import os
import pickle
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import pytest
import torch

from tests.videos import read_number
from tests.vidprep.load.folders import SIDE, Source, numbered_sources, write_shard_folder
from vidprep.errors import CorruptShard, CorruptVideo, UnknownName, UsageError
from vidprep.index import Manifest, read_manifest, read_samples, samples_to_frame
from vidprep.load import ClipOptions, Sample, ShardDataset, make_loader, shards
from vidprep.sampling import sample_clips, sample_segments
from vidprep.shard import shard
from vidprep.splits import Split
from vidprep.types import Video

PLAIN: ClipOptions = {"num_frames": 8, "resize": SIDE, "crop": SIDE, "mean": (0, 0, 0), "std": (1, 1, 1)}
"""Frames as they are, so that their numbers are readable."""
TRAIN: ClipOptions = {**PLAIN, "train": True, "scales": (1.0,), "flip": False}


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> list[Source]:
    videos = [Video(video_id=f"v{k}", labels=(k,)) for k in range(5)]
    return numbered_sources(tmp_path_factory.mktemp("videos"), videos)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, sources: list[Source]) -> Path:
    return write_shard_folder(tmp_path_factory.mktemp("shards"), sources)


def changed(options: ClipOptions, **changes: Any) -> ClipOptions:
    return cast(ClipOptions, {**options, **changes})


def numbers(sample: Sample) -> list[list[int]]:
    """What each frame of each view shows."""
    return [[read_number((frame * 255).round().numpy()) for frame in view] for view in sample.frames]


@pytest.mark.parametrize("content", ["video", "frames"])
def test_evaluation_gives_the_frames_that_the_sampler_names(
    tmp_path: Path, sources: list[Source], content: Literal["video", "frames"]
) -> None:
    dataset = ShardDataset(write_shard_folder(tmp_path, sources, content=content), **PLAIN)
    expected = sample_segments(40, num_segments=8)
    assert len(dataset) == 5
    for k, sample in enumerate(dataset[i] for i in range(len(dataset))):
        assert sample.video_id == f"v{k}"
        assert sample.frames.shape == (1, 8, 3, SIDE, SIDE)
        assert sample.frames.dtype == torch.float32
        assert numbers(sample) == [(100 * k + expected).tolist()]
        assert sample.labels.dtype == torch.int64
        assert sample.labels.item() == k
        np.testing.assert_allclose(sample.pts_seconds.numpy(), [expected / 10])


def test_video_shards_and_frame_shards_give_the_same_training_clips(tmp_path: Path, sources: list[Source]) -> None:
    videos = ShardDataset(write_shard_folder(tmp_path / "v", sources), **TRAIN)
    frames = ShardDataset(write_shard_folder(tmp_path / "f", sources, content="frames"), **TRAIN)
    for epoch in range(3):
        videos.set_epoch(epoch)
        frames.set_epoch(epoch)
        for i in range(len(sources)):
            one, other = videos[i], frames[i]
            assert numbers(one) == numbers(other)
            torch.testing.assert_close(one.pts_seconds, other.pts_seconds)
            # JPEG of quality 95
            assert (one.frames - other.frames).abs().mean() < 0.02


@pytest.mark.parametrize("content", ["video", "frames"])
def test_shards_of_vidprep_shard_give_the_same_samples(
    tmp_path: Path, sources: list[Source], content: Literal["video", "frames"]
) -> None:
    classes = tuple(f"class {k}" for k in range(8))
    videos = tuple(replace(source.video, start_seconds=1.0, end_seconds=3.5) for source in sources)
    split = Split(dataset="numbers", split="val", task="single_label", classes=classes, videos=videos)
    paths = {source.video.video_id: source.path for source in sources}
    shard(split, paths, out=tmp_path, content=content, samples_per_shard=2)
    dataset = ShardDataset(tmp_path, **PLAIN)
    expected = 10 + sample_segments(25, num_segments=8)
    for k in range(5):
        assert numbers(dataset[k]) == [(100 * k + expected).tolist()]
        np.testing.assert_allclose(dataset[k].pts_seconds.numpy(), [expected / 10], atol=1e-6)
        assert dataset[k].labels.item() == k


def test_training_clips_follow_from_seed_epoch_and_position_alone(folder: Path) -> None:
    clips = {}
    for seed in (0, 1):
        for epoch in (0, 1):
            dataset = ShardDataset(folder, **changed(TRAIN, seed=seed))
            dataset.set_epoch(epoch)
            backwards = {i: dataset[i] for i in reversed(range(5))}
            for workers in (0, 3):
                loader = make_loader(dataset, batch_size=2, shuffle=True, workers=workers)
                loader.set_epoch(epoch)
                for batch in loader:
                    for video_id, frames in zip(batch.video_id, batch.frames, strict=True):
                        assert torch.equal(frames, backwards[int(video_id[1:])].frames)
            clips[seed, epoch] = [numbers(backwards[i]) for i in range(5)]
    shown = list(clips.values())
    assert all(shown[i] != shown[j] for i in range(4) for j in range(i))
    for per_seed in shown:
        for k, (clip,) in enumerate(per_seed):
            assert [(number - 100 * k) // 5 for number in clip] == list(range(8))


def test_dense_training_clips_keep_their_stride(folder: Path) -> None:
    dataset = ShardDataset(folder, **changed(TRAIN, sampler="dense", dense_window=24))
    starts = set()
    for epoch in range(4):
        dataset.set_epoch(epoch)
        for k in range(5):
            (clip,) = numbers(dataset[k])
            assert clip == list(range(clip[0], clip[0] + 24, 3))
            starts.add(clip[0] - 100 * k)
    assert len(starts) > 5
    assert max(starts) < 40 - 24


def test_views_lie_crop_by_crop_and_inside_clip_by_clip(tmp_path: Path) -> None:
    (source,) = numbered_sources(tmp_path, [Video(video_id="v", labels=(0,))])
    folder = write_shard_folder(tmp_path / "shards", [source])
    sample = ShardDataset(folder, **changed(PLAIN, num_clips=2, num_crops=3))[0]
    clips = sample_clips(40, num_segments=8, num_clips=2)
    assert sample.frames.shape == (6, 8, 3, SIDE, SIDE)
    # square frames: all three crops show everything
    assert numbers(sample) == [clip.tolist() for _ in range(3) for clip in clips]
    np.testing.assert_allclose(sample.pts_seconds.numpy(), np.tile(clips / 10, (3, 1)))


@pytest.mark.parametrize("content", ["video", "frames"])
def test_only_frames_of_the_annotated_segment_are_shown(tmp_path: Path, content: Literal["video", "frames"]) -> None:
    video = Video(video_id="v", labels=(0,), start_seconds=0.95, end_seconds=2.5)
    folder = write_shard_folder(tmp_path / "shards", numbered_sources(tmp_path, [video]), content=content)
    sample = ShardDataset(folder, **PLAIN)[0]
    expected = 10 + sample_segments(15, num_segments=8)
    assert numbers(sample) == [expected.tolist()]
    np.testing.assert_allclose(sample.pts_seconds.numpy(), [expected / 10])
    dataset = ShardDataset(folder, **TRAIN)
    for epoch in range(5):
        dataset.set_epoch(epoch)
        (clip,) = numbers(dataset[0])
        assert min(clip) >= 10
        assert max(clip) < 25


def test_a_segment_without_frames_is_an_error_that_names_the_sample(tmp_path: Path) -> None:
    video = Video(video_id="v", labels=(0,), start_seconds=7, end_seconds=9)
    folder = write_shard_folder(tmp_path / "shards", numbered_sources(tmp_path, [video]))
    with pytest.raises(CorruptVideo, match=r"sample 00000000 of .*train-000000\.tar .* segment 7 s to 9 s; the 40"):
        ShardDataset(folder, **PLAIN)[0]


def test_multi_label_samples_are_multi_hot(tmp_path: Path) -> None:
    videos = [Video(video_id="a", labels=(3, 1)), Video(video_id="b", labels=(0,))]
    sources = numbered_sources(tmp_path, videos)
    folder = write_shard_folder(tmp_path / "shards", sources, task="multi_label", num_classes=5)
    (batch,) = make_loader(ShardDataset(folder, **PLAIN), batch_size=2, workers=1)
    assert batch.labels.dtype == torch.float32
    assert batch.labels.tolist() == [[0, 1, 0, 1, 0], [1, 0, 0, 0, 0]]


def test_flipped_clips_carry_the_flipped_label(tmp_path: Path, sources: list[Source]) -> None:
    folder = write_shard_folder(tmp_path, sources[2:3], flip_pairs={2: 6, 6: 2})
    dataset = ShardDataset(folder, **changed(TRAIN, flip=True))
    seen = set()
    for epoch in range(20):
        dataset.set_epoch(epoch)
        sample = dataset[0]
        frame = (sample.frames[0, 0] * 255).round().numpy()
        is_flipped = sample.labels.item() == 6
        assert read_number(frame[:, :, ::-1] if is_flipped else frame) in range(200, 240)
        seen.add(is_flipped)
    assert seen == {True, False}


def test_negative_positions_count_from_the_end(folder: Path) -> None:
    dataset = ShardDataset(folder, **PLAIN)
    assert dataset[-1].video_id == dataset[len(dataset) - 1].video_id
    train = ShardDataset(folder, **TRAIN)
    assert torch.equal(train[-1].frames, train[len(train) - 1].frames)
    for index in (len(dataset), -len(dataset) - 1):
        with pytest.raises(IndexError, match=rf"sample {index} of a data set of 5 samples; they count from 0 to 4"):
            dataset[index]


def test_threads_read_one_data_set_at_the_same_time(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = [numbers(ShardDataset(folder, **PLAIN)[i]) for i in range(5)]
    for max_open in (0, 1, 256):
        monkeypatch.setattr(shards, "_MAX_OPEN_SHARDS", max_open)
        dataset = ShardDataset(folder, **PLAIN)
        with ThreadPoolExecutor(4) as pool:
            shown = list(pool.map(lambda i, data=dataset: numbers(data[i % 5]), range(40)))
        assert shown == expected * 8


def test_no_file_stays_open(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def open_tars() -> int:
        links = [link for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]
        return sum(link.readlink().is_relative_to(folder) for link in links)

    monkeypatch.setattr(shards, "_MAX_OPEN_SHARDS", 2)
    dataset = ShardDataset(folder, **PLAIN)
    for i in range(5):
        dataset[i]
    assert open_tars() == 2
    dataset.close()
    assert open_tars() == 0
    dataset[0]
    del dataset
    assert open_tars() == 0


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_processes_read_a_pickled_data_set(folder: Path, method: str) -> None:
    dataset = ShardDataset(folder, **PLAIN)
    expected = [dataset[i].frames.double().sum().item() for i in range(5)]
    with multiprocessing.get_context(method).Pool(1) as pool:
        assert pool.map(_Sum(dataset), range(5)) == expected


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_forked_processes_read_a_data_set_that_is_in_use(folder: Path) -> None:
    dataset = ShardDataset(folder, **PLAIN)
    expected = [dataset[i].pts_seconds.sum().item() for i in range(5)]
    loader = torch.utils.data.DataLoader(
        dataset, batch_size=1, num_workers=2, collate_fn=_first_pts, multiprocessing_context="fork"
    )
    assert list(loader) == expected
    assert numbers(dataset[0]) == [sample_segments(40, num_segments=8).tolist()]


def test_a_pickled_data_set_holds_no_open_files(folder: Path) -> None:
    dataset = ShardDataset(folder, **PLAIN)
    first = dataset[0]
    copy: ShardDataset = pickle.loads(pickle.dumps(dataset))
    assert copy._files._open == {}
    assert torch.equal(copy[0].frames, first.frames)


def test_a_sample_that_does_not_decode_is_named_with_its_shard(tmp_path: Path, sources: list[Source]) -> None:
    folder = write_shard_folder(tmp_path, sources)
    row = read_samples(folder, "train")[3]
    with (folder / row.shard).open("r+b") as file:
        file.seek(row.members[1].offset)
        file.write(bytes(row.members[1].size))
    dataset = ShardDataset(folder, **PLAIN)
    dataset[2]
    with pytest.raises(CorruptVideo, match=r"sample 00000003 of .*/train-000001\.tar gives no clip: ") as caught:
        list(make_loader(dataset, batch_size=2, workers=2))
    assert caught.value.__notes__ == ["while loading sample 3 of 5"]


@pytest.mark.parametrize("content", ["video", "frames"])
def test_a_shard_cut_short_is_named_when_the_folder_is_opened(
    tmp_path: Path, sources: list[Source], content: Literal["video", "frames"]
) -> None:
    folder = write_shard_folder(tmp_path, sources, content=content)
    shard = folder / "train-000001.tar"
    num_bytes = shard.stat().st_size
    os.truncate(shard, num_bytes // 2)
    with pytest.raises(
        CorruptShard, match=rf"train-000001\.tar: {num_bytes // 2} bytes, its manifest says {num_bytes}"
    ):
        ShardDataset(folder, **PLAIN)
    shard.unlink()
    with pytest.raises(CorruptShard, match=r"train-000001\.tar: cannot be read .*No such file"):
        ShardDataset(folder, **PLAIN)


def test_a_shard_cut_short_while_in_use_is_named(tmp_path: Path, sources: list[Source]) -> None:
    folder = write_shard_folder(tmp_path, sources)
    dataset = ShardDataset(folder, **PLAIN)
    os.truncate(folder / "train-000000.tar", 2048)
    with pytest.raises(CorruptShard, match=r"train-000000\.tar: ends before byte \d+ that its index names"):
        dataset[0]
    (folder / "train-000001.tar").unlink()
    with pytest.raises(CorruptShard, match=r"train-000001\.tar: cannot be read"):
        dataset[2]


def test_a_video_with_another_number_of_frames_than_indexed_is_named(tmp_path: Path, sources: list[Source]) -> None:
    folder = write_shard_folder(tmp_path, sources[:2])
    rows = read_samples(folder, "train")
    samples_to_frame([replace(rows[0], num_frames=41), rows[1]]).to_parquet(folder / "train.parquet")
    with pytest.raises(CorruptVideo, match=r"backend pyav finds 40 frames, the index says 41"):
        ShardDataset(folder, **PLAIN)[0]


def test_a_table_that_does_not_fit_its_manifest_is_refused(tmp_path: Path, sources: list[Source]) -> None:
    folder = write_shard_folder(tmp_path, sources[:2])
    rows = read_samples(folder, "train")
    samples_to_frame([replace(rows[0], members=rows[0].members[:1]), rows[1]]).to_parquet(folder / "train.parquet")
    with pytest.raises(CorruptShard, match=r"sample 00000000 should hold a json file and 1 of video, .* says 1 files"):
        ShardDataset(folder, **PLAIN)
    samples_to_frame([replace(rows[0], shard="other.tar"), rows[1]]).to_parquet(folder / "train.parquet")
    with pytest.raises(CorruptShard, match=r"other\.tar: in the table of samples, not in the manifest"):
        ShardDataset(folder, **PLAIN)
    samples_to_frame(rows[:1]).to_parquet(folder / "train.parquet")
    with pytest.raises(CorruptShard, match=r"train-\d+\.tar: the table of samples lists 1 of its 2 samples; write the"):
        ShardDataset(folder, **PLAIN)


@pytest.mark.parametrize(
    ("written", "sentence"),
    [
        (b'"pts": [0.0, 0.1,        ', r"00000000\.json holds no times of the frames \(KeyError"),
        (b'"pts_seconds": [0.0  0.1,', r"00000000\.json is no JSON object \(Expecting ',' delimiter"),
        (b'"pts_seconds": [0.1,     ', r"00000000\.json holds times of shape \(39,\) for 40 frames"),
    ],
)
def test_frames_without_their_times_are_refused(
    tmp_path: Path, sources: list[Source], written: bytes, sentence: str
) -> None:
    folder = write_shard_folder(tmp_path, sources[:1], content="frames")
    shard = folder / "train-000000.tar"
    right = b'"pts_seconds": [0.0, 0.1,'
    assert len(written) == len(right)
    shard.write_bytes(shard.read_bytes().replace(right, written))
    with pytest.raises(CorruptShard, match=sentence):
        ShardDataset(folder, **PLAIN)[0]


@pytest.mark.parametrize(
    ("labels", "task", "sentence"),
    [
        ((), "single_label", r"1 of 2 videos have no label \(bad is the first\), but the task is single_label"),
        ((), "multi_label", r"1 of 2 videos have no label \(bad is the first\), but the task is multi_label"),
        ((1, 2), "single_label", r"bad has the labels \(1, 2\), but the task is single_label"),
        ((8,), "single_label", "bad has label 8, but the 8 classes count from 0"),
        ((1,), "detection", r"bad has the labels \(1,\), but the task is detection"),
        ((1,), "verb_noun", r"bad has the labels \(1,\), but the task needs \(verb, noun\)"),
    ],
)
def test_labels_that_do_not_fit_the_task_are_refused(
    tmp_path: Path, sources: list[Source], labels: tuple[int, ...], task: Any, sentence: str
) -> None:
    good: dict[str, tuple[int, ...]] = {"verb_noun": (0, 0), "detection": ()}
    videos = [
        replace(sources[0], video=Video(video_id="good", labels=good.get(task, (0,)))),
        replace(sources[1], video=Video(video_id="bad", labels=labels)),
    ]
    folder = write_shard_folder(tmp_path, videos, task=task, num_noun_classes=8)
    with pytest.raises(UsageError, match=sentence):
        ShardDataset(folder, **PLAIN)


def test_folders_and_splits_that_are_not_there_are_refused(tmp_path: Path, sources: list[Source]) -> None:
    with pytest.raises(UsageError, match="no such folder"):
        ShardDataset(tmp_path / "nowhere", **PLAIN)
    folder = write_shard_folder(tmp_path / "shards", sources[:1])
    with pytest.raises(UnknownName, match="no split 'trian'; did you mean train"):
        ShardDataset(folder, "trian", **PLAIN)


def test_a_split_without_samples_is_refused(tmp_path: Path, sources: list[Source]) -> None:
    folder = write_shard_folder(tmp_path, sources[:1])
    table = samples_to_frame(read_samples(folder, "train")).iloc[:0]
    table.to_parquet(folder / "train.parquet")
    manifest = read_manifest(folder)
    assert isinstance(manifest, Manifest)
    with pytest.raises(UsageError, match=r"split train: the split holds no samples \(0 faults\)"):
        ShardDataset(folder, **PLAIN)


class _Sum:
    """A function of a position that can be pickled."""

    def __init__(self, dataset: ShardDataset) -> None:
        self.dataset = dataset

    def __call__(self, index: int) -> float:
        return self.dataset[index].frames.double().sum().item()


def _first_pts(samples: Sequence[Sample]) -> float:
    return samples[0].pts_seconds.sum().item()
