"""Order and content do not depend on processes and threads; an epoch that was left goes on exactly where it stood."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.vidprep.load.folders import numbered_sources, write_shard_folder
from vidprep.errors import CorruptVideo, UsageError
from vidprep.load import Batch, Loader, Sample, ShardDataset, make_loader
from vidprep.load.types import Allocate, new_frames
from vidprep.types import Video

ROOT = Path(__file__).parents[3]


class Clips:
    """Sample i shows i and what is random in (epoch, i), and is written straight into its batch."""

    def __init__(self, length: int, *, broken: tuple[int, ...] = (), dtype: torch.dtype = torch.float32) -> None:
        self.length = length
        self.broken = broken
        self.dtype = dtype
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Sample:
        return self.load(index, epoch=self.epoch, allocate=new_frames)

    def load(self, index: int, *, epoch: int, allocate: Allocate) -> Sample:
        frames = allocate((1, 2, 3, 4, 5), self.dtype)
        frames.fill_(float(np.random.default_rng((epoch, index)).integers(0, 256)))
        if index in self.broken:
            raise CorruptVideo(f"sample {index:08d} gives no clip: it is damaged")
        return Sample(
            video_id=f"v{index}",
            frames=frames,
            labels=torch.tensor(index),
            pts_seconds=torch.zeros((1, 2), dtype=torch.float64),
        )


class PlannedClips(Clips):
    """The same samples in two steps, several first steps before the first second one."""

    samples_at_once = 3

    def begin(self, index: int, *, epoch: int, allocate: Allocate) -> Callable[[], Sample]:
        if index in self.broken[:1]:
            raise CorruptVideo(f"sample {index:08d} gives no clip: it is damaged")
        frames = allocate((1, 2, 3, 4, 5), self.dtype)

        def given(_shape: tuple[int, ...], _dtype: torch.dtype) -> torch.Tensor:
            return frames

        return lambda: self.load(index, epoch=epoch, allocate=given)


KINDS = (Clips, PlannedClips)

Seen = list[tuple[int, float]]


def seen(batch: Batch) -> Seen:
    return [
        (int(label), float(frames.float().mean())) for label, frames in zip(batch.labels, batch.frames, strict=True)
    ]


def loaders(source: Any, *, world_size: int, workers: int, **options: Any) -> list[Loader]:
    return [
        make_loader(source, world_size=world_size, rank=rank, workers=workers, shuffle=True, **options)
        for rank in range(world_size)
    ]


def steps_of(group: list[Loader], *, num_steps: int | None = None) -> list[Seen]:
    """What all processes together saw in each step, in the order of the samples."""
    iterators = [iter(loader) for loader in group]
    steps: list[Seen] = []
    while num_steps is None or len(steps) < num_steps:
        batches = [next(iterator, None) for iterator in iterators]
        if all(batch is None for batch in batches):
            break
        shares = [seen(batch) if batch is not None else [] for batch in batches]
        longest = max(map(len, shares))
        steps.append([share[place] for place in range(longest) for share in shares if place < len(share)])
    for iterator in iterators:
        iterator.close()  # type: ignore[attr-defined]
    return steps


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 60), st.integers(0, 3), st.integers(0, 5), st.sampled_from(KINDS))
def test_order_and_content_are_the_same_for_any_number_of_processes_and_threads(
    length: int, seed: int, epoch: int, kind: type[Clips]
) -> None:
    source = kind(length)
    expected: Seen | None = None
    for world_size in (1, 2, 3, 8):
        for workers in (0, 1, 2, 5) if world_size < 3 else (0, 2):
            group = loaders(source, world_size=world_size, workers=workers, batch_size=24 // world_size, seed=seed)
            for loader in group:
                loader.set_epoch(epoch)
            together = [sample for step in steps_of(group) for sample in step]
            expected = expected or together
            assert together == expected
            assert sorted(label for label, _ in together) == list(range(length))


@pytest.mark.parametrize("content", ["frames", "video"])
def test_clips_of_shards_are_the_same_bytes_in_the_same_order_for_any_number_of_processes_and_threads(
    tmp_path: Path, content: Literal["frames", "video"]
) -> None:
    videos = [Video(video_id=f"v{k:02d}", labels=(k % 8,)) for k in range(24)]
    folder = write_shard_folder(
        tmp_path / "shards", numbered_sources(tmp_path, videos, num_frames=8), content=content, per_shard=5
    )
    dataset = ShardDataset(folder, train=True, num_frames=4, resize=48, crop=40, seed=3)
    dataset.set_epoch(2)
    alone = {sample.video_id: sample.frames.clone() for sample in map(dataset.__getitem__, range(24))}
    expected: list[str] = []
    for world_size in (1, 2, 3, 8):
        for workers in (1, 2, 5):
            group = loaders(dataset, world_size=world_size, workers=workers, batch_size=24 // world_size // 2)
            for loader in group:
                loader.set_epoch(2)
            order: list[str] = []
            for batches in zip(*group, strict=True):
                order += chain.from_iterable(zip(*(batch.video_id for batch in batches), strict=True))
                for batch in batches:
                    for name, frames in zip(batch.video_id, batch.frames, strict=True):
                        assert torch.equal(frames, alone[name])
            expected = expected or order
            assert order == expected
            assert sorted(order) == sorted(alone)


WORLD_SIZES = st.sampled_from([1, 2, 3, 8])


@settings(max_examples=60, deadline=None)
@given(data=st.data(), drop_last=st.booleans(), kind=st.sampled_from(KINDS))
def test_stopped_at_any_batch_and_resumed_by_others_no_clip_comes_twice_and_none_is_missing(
    data: st.DataObject, drop_last: bool, kind: type[Clips]
) -> None:
    length = data.draw(st.integers(1, 70))
    source = kind(length)
    whole = [sample for step in steps_of(loaders(source, world_size=1, workers=0, batch_size=5)) for sample in step]
    done: Seen = []
    state: dict[str, Any] | None = None
    for _ in range(data.draw(st.integers(1, 4))):
        world_size, batch_size = data.draw(WORLD_SIZES), data.draw(st.integers(1, 6))
        if drop_last and length < world_size * batch_size:
            continue
        workers = data.draw(st.sampled_from([0, 1, 2, 5]))
        group = loaders(source, world_size=world_size, workers=workers, batch_size=batch_size, drop_last=drop_last)
        if state is not None:
            for loader in group:
                loader.load_state_dict(json.loads(json.dumps(state)))
        num_steps = data.draw(st.integers(0, 6))
        planned = [len(loader) for loader in group]
        assert not drop_last or len(set(planned)) == 1
        done += [sample for step in steps_of(group, num_steps=num_steps) for sample in step]
        # Without drop_last, later processes may have run out of batches one step before the first one.
        state = group[0].state_dict()
        assert state["position"] == len(done)
    assert done == whole[: len(done)]
    rest = make_loader(source, batch_size=3, shuffle=True, workers=1)
    if state is not None:
        rest.load_state_dict(state)
    assert done + [sample for batch in rest for sample in seen(batch)] == whole


def test_the_state_counts_the_batches_handed_out_and_not_those_prepared() -> None:
    loader = make_loader(Clips(20), batch_size=4, shuffle=True, workers=3)
    loader.set_epoch(2)
    batches = iter(loader)
    assert loader.state_dict()["position"] == 0
    for number in range(1, 4):
        next(batches)
        assert (loader.state_dict()["epoch"], loader.state_dict()["position"]) == (2, 4 * number)


def test_the_epoch_after_a_resumed_one_is_whole() -> None:
    loader = make_loader(Clips(20), batch_size=4, shuffle=True, workers=1)
    loader.set_epoch(1)
    batches = iter(loader)
    next(batches)
    state = loader.state_dict()
    resumed = make_loader(Clips(20), batch_size=4, shuffle=True, workers=1)
    resumed.load_state_dict(state)
    assert (resumed.epoch, len(resumed), resumed.num_samples) == (1, 4, 16)
    resumed.set_epoch(1)
    assert len(list(resumed)) == 4
    assert len(resumed) == 5
    resumed.set_epoch(2)
    assert len(list(resumed)) == 5


def test_a_finished_epoch_has_nothing_left() -> None:
    loader = make_loader(Clips(7), batch_size=4, workers=1)
    assert len(list(loader)) == 2
    resumed = make_loader(Clips(7), batch_size=4, workers=1)
    resumed.load_state_dict(loader.state_dict())
    assert list(resumed) == []


def test_states_of_another_order_are_refused() -> None:
    state = make_loader(Clips(7), batch_size=4, seed=1, shuffle=True, workers=0).state_dict()
    for changed, sentence in (
        ({"num_samples": 8}, "taken with num_samples = 8, this loader has 7; go on with the same data set"),
        ({"seed": 0}, "taken with seed = 0, this loader has 1"),
        ({"shuffle": False}, "taken with shuffle = False, this loader has True"),
        ({"version": 2}, "the state of a loader has version 1, got 2"),
        ({"position": 8}, "position 8 of a state lies outside of 7 samples"),
    ):
        loader = make_loader(Clips(7), batch_size=4, seed=1, shuffle=True, workers=0)
        with pytest.raises(UsageError, match=sentence):
            loader.load_state_dict({**state, **changed})


@pytest.mark.parametrize("length", [1, 7, 8, 23])
def test_evaluation_scores_each_video_once_and_says_how_many_each_process_has(length: int) -> None:
    group = [make_loader(Clips(length), batch_size=2, rank=rank, world_size=3, workers=1) for rank in range(3)]
    shares = [[label for batch in loader for label in batch.labels.tolist()] for loader in group]
    assert sorted(label for share in shares for label in share) == list(range(length))
    assert [loader.num_samples for loader in group] == list(map(len, shares))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


# Samples that do not decode


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_broken_samples_are_counted_and_never_replaced(
    workers: int, kind: type[Clips], caplog: pytest.LogCaptureFixture
) -> None:
    loader = make_loader(kind(10, broken=(2, 3, 4, 5, 9)), batch_size=2, workers=workers, on_error="count")
    batches = [batch.labels.tolist() for batch in loader]
    assert batches == [[0, 1], [6, 7], [8]]
    assert [fault.index for fault in loader.faults] == [2, 3, 4, 5, 9]
    assert loader.faults[0].reason == "sample 00000002 gives no clip: it is damaged"
    assert "5 samples gave no clip and were left out; the first: sample 00000002" in caplog.text
    list(loader)
    assert len(loader.faults) == 5


def test_the_frames_of_a_batch_with_a_gap_are_those_of_its_samples() -> None:
    expected = {int(sample.labels): sample.frames for sample in map(Clips(8).__getitem__, range(8))}
    loader = make_loader(Clips(8, broken=(1, 6)), batch_size=4, workers=2, on_error="count")
    for batch in loader:
        assert batch.frames.shape == (3, 1, 2, 3, 4, 5)
        for label, frames in zip(batch.labels.tolist(), batch.frames, strict=True):
            assert torch.equal(frames, expected[label])


@pytest.mark.parametrize("workers", [0, 2])
def test_a_training_batch_without_any_clip_ends_the_epoch(workers: int) -> None:
    """The other processes wait for its step."""
    loader = make_loader(Clips(8, broken=(4, 5)), batch_size=2, workers=workers, drop_last=True, on_error="count")
    with pytest.raises(CorruptVideo, match="all 2 samples of a training batch give no clip; the last: sample 00000005"):
        list(loader)


def test_only_samples_that_do_not_decode_are_counted() -> None:
    class Faulty(Clips):
        def load(self, index: int, *, epoch: int, allocate: Allocate) -> Sample:
            raise ValueError("a fault of the program")

    with pytest.raises(ValueError, match="a fault of the program"):
        list(make_loader(Faulty(4), batch_size=2, workers=1, on_error="count"))
    with pytest.raises(UsageError, match="on_error is 'raise' or 'count', got 'skip'"):
        make_loader(Clips(4), batch_size=2, on_error="skip")  # type: ignore[arg-type]


# The memory of batches


@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8])
def test_batches_that_are_kept_are_never_overwritten(dtype: torch.dtype) -> None:
    loader = make_loader(Clips(60, dtype=dtype), batch_size=3, workers=2)
    kept = [(batch, batch.frames.clone()) for batch in loader]
    assert len({batch.frames.data_ptr() for batch, _ in kept}) == 20
    assert all(torch.equal(batch.frames, copy) for batch, copy in kept)
    part = kept[0][0].frames[1, 0]
    address, before = kept[0][0].frames.data_ptr(), part.clone()
    kept.clear()
    # A view of a batch keeps all of its memory.
    assert all(batch.frames.data_ptr() != address for batch in loader)
    assert torch.equal(part, before)


def test_the_memory_of_batches_that_are_gone_is_used_again() -> None:
    loader = make_loader(Clips(300), batch_size=3, workers=2)
    addresses = {batch.frames.data_ptr() for _ in range(2) for batch in loader}
    assert len(addresses) <= 10


# Several processes


TRAINING = """
import sys
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from vidprep.load import ShardDataset, make_loader

dist.init_process_group("gloo")
torch.set_num_threads(1)
rank, world_size = dist.get_rank(), dist.get_world_size()
dataset = ShardDataset(sys.argv[1], train=True, num_frames=4, resize=32, crop=32)
loader = make_loader(
    dataset, batch_size=2, shuffle=True, drop_last=True, rank=rank, world_size=world_size, workers=1
)
model = DistributedDataParallel(torch.nn.Linear(3, 8))
optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
labels = []
for batch in loader:
    loss = torch.nn.functional.cross_entropy(model(batch.frames.mean((1, 2, 4, 5))), batch.labels)
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()
    labels += batch.labels.tolist()
gathered = [None] * world_size
dist.all_gather_object(gathered, labels)
if rank == 0:
    print("STEPS", [len(part) // 2 for part in gathered], sorted(sum(gathered, [])), flush=True)
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_two_processes_train_an_epoch_on_unequal_shards_without_waiting_for_each_other(tmp_path: Path) -> None:
    videos = [Video(video_id=f"v{k}", labels=(k % 8,)) for k in range(11)]
    # Shards of 4, 4 and 3 samples.
    folder = write_shard_folder(tmp_path / "shards", numbered_sources(tmp_path, videos, num_frames=8), per_shard=4)
    assert len(ShardDataset(folder, num_frames=4, resize=32, crop=32)) == 11
    script = tmp_path / "training.py"
    script.write_text(TRAINING)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script)]
    done = subprocess.run(
        [*command, str(folder)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("STEPS")]
    assert line.startswith("STEPS [2, 2] ")
