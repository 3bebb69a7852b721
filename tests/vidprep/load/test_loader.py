import gc
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from vidprep.errors import CorruptVideo, UsageError
from vidprep.load.loader import Loader, make_loader
from vidprep.load.types import Allocate, Sample


class Numbers:
    """Sample i shows i; a value drawn from (epoch, i) stands for what is random."""

    def __init__(self, length: int, *, broken: tuple[int, ...] = (), seconds: float = 0.0) -> None:
        self.length = length
        self.broken = broken
        self.seconds = seconds
        self.epoch = 0
        self.read: list[int] = []
        self.most_at_once = 0
        self.at_once = 0
        self.torch_threads: set[int] = set()

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Sample:
        self.read.append(index)
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        self.torch_threads.add(torch.get_num_threads())
        time.sleep(self.seconds)
        self.at_once -= 1
        if index in self.broken:
            raise CorruptVideo(f"sample {index:03d} of train-000000.tar gives no clip")
        noise = np.random.default_rng((self.epoch, index)).random()
        return Sample(
            video_id=f"v{index}",
            frames=torch.full((1, 2, 3, 4, 4), noise),
            labels=torch.tensor(index),
            pts_seconds=torch.zeros((1, 2), dtype=torch.float64),
        )


def epoch_of(loader: Loader, epoch: int = 0) -> list[tuple[int, float]]:
    loader.set_epoch(epoch)
    return [
        (int(label), float(frames.mean()))
        for batch in loader
        for label, frames in zip(batch.labels, batch.frames, strict=True)
    ]


def order_of(loader: Loader, epoch: int = 0) -> list[int]:
    return [label for label, _ in epoch_of(loader, epoch)]


@pytest.mark.parametrize("workers", [0, 1, 2, 5])
def test_batches_come_in_order_and_whole(workers: int) -> None:
    loader = make_loader(Numbers(10), batch_size=4, workers=workers)
    batches = list(loader)
    assert len(loader) == len(batches) == 3
    assert [batch.video_id for batch in batches] == [
        ["v0", "v1", "v2", "v3"],
        ["v4", "v5", "v6", "v7"],
        ["v8", "v9"],
    ]
    assert [tuple(batch.frames.shape) for batch in batches] == [(4, 1, 2, 3, 4, 4)] * 2 + [(2, 1, 2, 3, 4, 4)]
    assert [batch.labels.tolist() for batch in batches] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


@pytest.mark.parametrize("workers", [0, 1])
def test_planned_samples_are_begun_together_before_the_first_is_decoded(workers: int) -> None:
    events: list[tuple[str, int]] = []

    class Planned(Numbers):
        samples_at_once = 3

        def begin(self, index: int, *, epoch: int, allocate: Allocate) -> Callable[[], Sample]:
            events.append(("begin", index))

            def finish() -> Sample:
                events.append(("finish", index))
                return self[index]

            return finish

    loader = make_loader(Planned(5), batch_size=4, workers=workers)
    assert order_of(loader) == [0, 1, 2, 3, 4]
    groups = [(0, 1, 2), (3,), (4,)]
    assert events == [(step, index) for group in groups for step in ("begin", "finish") for index in group]


def test_workers_change_neither_order_nor_samples() -> None:
    expected = epoch_of(make_loader(Numbers(50), batch_size=4, shuffle=True, seed=3, workers=0), 2)
    for workers in (1, 2, 7):
        assert epoch_of(make_loader(Numbers(50), batch_size=4, shuffle=True, seed=3, workers=workers), 2) == expected


def test_each_epoch_and_each_seed_has_its_own_order() -> None:
    loader = make_loader(Numbers(50), batch_size=8, shuffle=True, seed=0, workers=0)
    orders = [order_of(loader, 0), order_of(loader, 1)]
    orders.append(order_of(make_loader(Numbers(50), batch_size=8, shuffle=True, seed=1, workers=0)))
    assert all(sorted(order) == list(range(50)) for order in orders)
    assert len({tuple(order) for order in orders}) == 3
    assert order_of(loader, 0) == orders[0]


def test_without_shuffle_every_epoch_has_the_order_of_the_data_set() -> None:
    loader = make_loader(Numbers(9), batch_size=2, workers=0)
    assert order_of(loader, 0) == order_of(loader, 1) == list(range(9))


def test_an_iteration_keeps_the_epoch_it_began_with() -> None:
    loader = make_loader(Numbers(12), batch_size=3, shuffle=True, workers=1)
    expected = order_of(loader, 1)
    batches = iter(loader)
    first = next(batches).labels.tolist()
    loader.set_epoch(2)
    assert first + [label for batch in batches for label in batch.labels.tolist()] == expected


@pytest.mark.parametrize("length", [16, 17, 23, 24, 31])
@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_training_gives_each_process_equally_many_batches(length: int, world_size: int) -> None:
    loaders = [
        make_loader(
            Numbers(length),
            batch_size=8 // world_size,
            shuffle=True,
            seed=5,
            workers=0,
            drop_last=True,
            rank=rank,
            world_size=world_size,
        )
        for rank in range(world_size)
    ]
    steps = [set[int]() for _ in range(length // 8)]
    for loader in loaders:
        assert len(loader) == length // 8
        for step, batch in zip(steps, loader, strict=True):
            assert len(batch.video_id) == 8 // world_size
            step |= set(batch.labels.tolist())
    # the samples of a step are the same for any number of processes
    alone = make_loader(Numbers(length), batch_size=8, shuffle=True, seed=5, workers=0, drop_last=True)
    assert steps == [set(batch.labels.tolist()) for batch in alone]


@pytest.mark.parametrize("length", [1, 2, 7, 8, 16])
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_evaluation_reads_each_sample_exactly_once(length: int, world_size: int) -> None:
    parts = [
        order_of(make_loader(Numbers(length), batch_size=3, workers=0, rank=rank, world_size=world_size))
        for rank in range(world_size)
    ]
    assert sorted(label for part in parts for label in part) == list(range(length))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@pytest.mark.parametrize("workers", [0, 2])
def test_a_broken_sample_is_raised_in_its_turn_and_named(workers: int) -> None:
    batches = iter(make_loader(Numbers(20, broken=(9,)), batch_size=4, workers=workers))
    assert [next(batches).labels.tolist() for _ in range(2)] == [[0, 1, 2, 3], [4, 5, 6, 7]]
    with pytest.raises(CorruptVideo, match=r"sample 009 of train-000000\.tar") as caught:
        next(batches)
    assert caught.value.__notes__ == ["while loading sample 9 of 20"]
    assert not loading_threads()


def test_breaking_off_stops_the_threads_and_drops_what_waits() -> None:
    numbers = Numbers(1000, seconds=0.001)
    for batch in make_loader(numbers, batch_size=2, workers=3):
        assert len(batch.video_id) == 2
        break
    gc.collect()
    assert not loading_threads()
    assert len(numbers.read) < 30


def test_an_error_in_the_callers_loop_stops_the_threads() -> None:
    batches = iter(make_loader(Numbers(100, seconds=0.001), batch_size=2, workers=2))
    next(batches)
    assert loading_threads()
    batches.close()  # type: ignore[attr-defined]
    assert not loading_threads()


def test_prefetch_is_bounded() -> None:
    numbers = Numbers(200)
    batches = iter(make_loader(numbers, batch_size=5, workers=2))
    next(batches)
    time.sleep(0.1)
    assert len(numbers.read) <= 5 * 4
    assert sum(len(batch.video_id) for batch in batches) == 195


def test_workers_read_at_the_same_time() -> None:
    numbers = Numbers(40, seconds=0.005)
    order_of(make_loader(numbers, batch_size=2, workers=4))
    assert numbers.most_at_once == 4


@pytest.mark.parametrize("workers", [0, 2])
def test_samples_are_made_on_one_core_each_and_leave_the_caller_its_own(workers: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        numbers = Numbers(20)
        for _ in make_loader(numbers, batch_size=4, workers=workers):
            assert torch.get_num_threads() == 2
        assert numbers.torch_threads == {1}
        later: list[int] = []
        thread = threading.Thread(target=lambda: later.append(torch.get_num_threads()))
        thread.start()
        thread.join()
        assert later == [2]
    finally:
        torch.set_num_threads(before)


def test_ctrl_c_ends_a_running_loader_at_once(tmp_path: Path) -> None:
    script = tmp_path / "endless.py"
    script.write_text(
        "import sys\n"
        "from tests.vidprep.load.test_loader import Numbers\n"
        "from vidprep.load.loader import make_loader\n"
        "for batch in make_loader(Numbers(10**6, seconds=0.005), batch_size=4, workers=2):\n"
        "    print('batch', flush=True)\n"
    )
    root = Path(__file__).parents[3]
    process = subprocess.Popen(
        [sys.executable, str(script)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(root)},
        text=True,
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "batch\n"
        process.send_signal(signal.SIGINT)
        begun = time.monotonic()
        _, errors = process.communicate(timeout=20)
        assert time.monotonic() - begun < 15  # all samples take an hour and a half
    assert process.returncode != 0
    assert errors.rstrip().endswith("KeyboardInterrupt")


def test_impossible_loaders_are_refused() -> None:
    with pytest.raises(UsageError, match=r"batch_size >= 1, workers >= 0 and seed >= 0; got 0, 1 and 0"):
        make_loader(Numbers(4), batch_size=0, workers=1)
    with pytest.raises(UsageError, match="rank counts from 0 and is below world_size; got 2 of 2"):
        make_loader(Numbers(4), batch_size=1, rank=2, world_size=2)
    with pytest.raises(UsageError, match="7 samples fill no batch of 4 in each of 2 processes; lower batch_size"):
        make_loader(Numbers(7), batch_size=4, drop_last=True, rank=0, world_size=2)


@pytest.mark.gpu
def test_pinned_batches_go_to_the_gpu() -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    for batch in make_loader(Numbers(8), batch_size=4, workers=2, pin_memory=True):
        assert batch.frames.is_pinned()
        assert torch.equal(batch.to("cuda").labels.cpu(), batch.labels)


def loading_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("vidprep-load")]
