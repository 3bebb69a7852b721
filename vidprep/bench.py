"""How fast are clips loaded from a folder of shards, and how fast could they be?

Every backend delivers the same clips in batches of the same kind, in a process of its own, on the same cores:

    limit                  the decoder alone: compressed data in memory, each thread decodes into memory of its own
    vidprep                `make_loader`: threads that decode straight into the batch
    dataloader             the same data set in `torch.utils.data.DataLoader`: worker processes
    webdataset_pil         webdataset as its README and its examples show it: shards and a buffer of 1000 samples are
                           shuffled, `decode("pil")`, torchvision's transforms for each frame, `torch.stack`,
                           `batched`, in a WebLoader, which is a DataLoader (frames)
    webdataset_pil_numpy   the same with less work: PIL is called directly, NumPy stacks the frames of a clip, and
                           PyTorch's `default_collate` puts batches together in shared memory (frames)
    dali_cpu               DALI: readers.webdataset, shuffling through its buffer of 1024 samples, and decoders.image on
                           the CPU, all else as it is by default (frames; where it is installed)

All but the limit shuffle, as training does; all take their number of workers from the task, and decode only the frames
that are wanted.

Their rounds take turns, so that all see the same machine; between its rounds a backend is stopped, so that it neither
disturbs the others nor works ahead unseen. Rates are given per second and per second of CPU time of all
processes of a backend; the latter does not depend on what else the machine does. Memory is the largest proportional
set size (PSS) of the processes together: shared pages count once.
"""

import ctypes
import io
import itertools
import json
import os
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np

from vidprep.errors import UsageError, VidprepError
from vidprep.index import read_samples

__all__ = ["BACKENDS", "LoadRate", "LoadReport", "LoadTask", "measure_loading"]

BACKENDS = ("limit", "vidprep", "dataloader", "webdataset_pil", "webdataset_pil_numpy", "dali_cpu")
"""In the order in which they are shown."""

MOST_WALL_SECONDS = 10
"""A backend that waits for a busy machine ends its round after so many times the CPU time that was asked for."""

MAX_CLIPS_IN_MEMORY = 512
"""Of the limit, whose compressed data wait in memory."""


@dataclass(frozen=True, kw_only=True)
class LoadTask:
    """What is loaded, and in which form."""

    folder: str
    split: str
    num_frames: int = 8
    resize: int = 256
    crop: int = 224
    dtype: Literal["float32", "uint8"] = "uint8"
    train: bool = False
    whole_frames: bool = False
    """Frames as they are stored, for crops on the device; resize and crop are not used."""
    batch_size: int = 16
    workers: int = 2
    """Threads or processes that prepare batches; the process that takes them comes on top."""

    def dataset(self) -> Any:
        """The clips of the shards."""
        from vidprep.load import ShardDataset

        return ShardDataset(
            self.folder,
            self.split,
            num_frames=self.num_frames,
            resize=self.resize,
            crop=self.crop,
            dtype=self.dtype,
            train=self.train,
            whole_frames=self.whole_frames,
        )


@dataclass(frozen=True, kw_only=True)
class LoadRate:
    """How fast one backend is."""

    backend: str
    clips_per_second: tuple[float, ...]
    """Of each round."""
    clips_per_cpu_second: tuple[float, ...]
    """Of each round: of the CPU time of all its processes and threads."""
    peak_bytes: int
    """Proportional set size of its processes, at most."""

    def share_of(self, other: "LoadRate") -> float:
        """The median over rounds of its rate by CPU time over that of `other`."""
        pairs = zip(self.clips_per_cpu_second, other.clips_per_cpu_second, strict=True)
        return statistics.median(mine / theirs for mine, theirs in pairs)


@dataclass(frozen=True, kw_only=True)
class LoadReport:
    """All backends on the same shards."""

    task: LoadTask
    content: str
    num_clips: int
    rates: tuple[LoadRate, ...]
    left_out: dict[str, str]
    """Backend -> why it was not measured."""

    def rate(self, backend: str) -> LoadRate:
        """That of one backend.

        Raises:
            KeyError: it was left out.
        """
        return {rate.backend: rate for rate in self.rates}[backend]

    @property
    def title(self) -> str:
        """What was loaded, in a line."""
        task = self.task
        return (
            f"{self.num_clips} clips of {task.num_frames} {'whole ' if task.whole_frames else ''}frames"
            f"{'' if task.whole_frames else f' at {task.crop} px'}, {task.dtype}, "
            f"{'training' if task.train else 'evaluation'}, from {self.content} shards; batches of {task.batch_size}, "
            f"{task.workers} workers"
        )

    def to_json(self) -> str:
        """The report as JSON."""
        return json.dumps(asdict(self), indent=1) + "\n"

    def rows(self) -> list[tuple[str, float, float, float | None, float]]:
        """(backend, clips a second, clips a CPU second, share of the limit, peak MiB): medians over the rounds."""
        limit = next((rate for rate in self.rates if rate.backend == "limit"), None)
        return [
            (
                rate.backend,
                statistics.median(rate.clips_per_second),
                statistics.median(rate.clips_per_cpu_second),
                None if limit is None else rate.share_of(limit),
                rate.peak_bytes / 2**20,
            )
            for rate in self.rates
        ]

    def to_text(self) -> str:
        """The report as a table."""
        lines = [self.title, f"{'backend':<22}{'clips/s':>10}{'clips/CPU s':>13}{'of limit':>10}{'peak MiB':>10}"]
        for backend, wall, cpu, share, mebibytes in self.rows():
            of_limit = "" if share is None else f"{share:.2f}"
            lines.append(f"{backend:<22}{wall:>10.1f}{cpu:>13.1f}{of_limit:>10}{mebibytes:>10.0f}")
        lines += [f"{backend}: left out, it {reason}" for backend, reason in self.left_out.items()]
        return "\n".join(lines)

    def draw(self, path: Path) -> None:
        """Write the table as a picture: a bar for each backend, by CPU time."""
        from PIL import Image, ImageDraw, ImageFont

        font, small = ImageFont.load_default(size=18), ImageFont.load_default(size=14)
        left, top, step, length = 250, 80, 46, 560
        picture = Image.new("RGB", (left + length + 250, top + step * len(self.rates) + 40), "white")
        pen = ImageDraw.Draw(picture)
        pen.text((20, 16), self.title, fill="black", font=small)
        pen.text(
            (left, 44), "clips per second of CPU time (share of the limit, peak memory)", fill="#555555", font=small
        )
        rows = self.rows()
        longest = max(cpu for _, _, cpu, _, _ in rows)
        for place, (backend, _, cpu, share, mebibytes) in enumerate(rows):
            y, end = top + step * place, left + length * cpu / longest
            colour = {"limit": "#b0b0b0", "vidprep": "#1f77b4"}.get(backend, "#e39b54")
            pen.rectangle((left, y, end, y + step - 16), fill=colour)
            pen.text((20, y + 4), backend, fill="black", font=font)
            of_limit = "" if share is None or backend == "limit" else f"{share:.2f}, "
            pen.text((end + 8, y + 6), f"{cpu:.0f}  ({of_limit}{mebibytes:.0f} MiB)", fill="black", font=small)
        picture.save(path, format="PNG")


def measure_loading(
    task: LoadTask,
    *,
    rounds: int = 3,
    seconds: float = 2.0,
    backends: Sequence[str] = BACKENDS,
    say: Callable[[str], None] = lambda line: None,
) -> LoadReport:
    """Measure each backend that is there.

    Args:
        task: what is loaded.
        rounds: measured rounds of each backend, after one that is not.
        seconds: of CPU time, of all processes of a backend: a round is as many batches as take so long, at least one,
            or `MOST_WALL_SECONDS` times as long by the clock. Epochs follow each other without an end.
        backends: which of `BACKENDS`.
        say: told what is going on.

    Raises:
        UsageError: no such folder, split or backend, or rounds or seconds out of range.
        VidprepError: a backend ends with an error; it is quoted.
    """
    unknown = set(backends) - set(BACKENDS)
    if unknown or rounds < 1 or seconds <= 0:
        raise UsageError(
            f"backends are {', '.join(BACKENDS)}, rounds at least 1, seconds above 0; "
            f"got {', '.join(backends)}, {rounds} and {seconds}."
        )
    dataset = task.dataset()
    left_out = {}
    chosen = []
    for backend in (name for name in BACKENDS if name in backends):
        reason = _why_not(backend, dataset, task)
        if reason:
            left_out[backend] = reason
        else:
            chosen.append(backend)
    walls: dict[str, list[float]] = {backend: [] for backend in chosen}
    processor: dict[str, list[float]] = {backend: [] for backend in chosen}
    with ExitStack() as stack:
        running = {}
        for backend in chosen:
            say(f"{backend}: warming up")
            running[backend] = stack.enter_context(_running(backend, task))
            running[backend].run_for(seconds / 2)
        for number in range(rounds):
            # The order rotates: none always follows the same one.
            shift = number % len(chosen)
            say(f"round {number + 1} of {rounds}")
            for backend in [*chosen[shift:], *chosen[:shift]]:
                num_clips, wall_seconds, cpu_seconds = running[backend].run_for(seconds)
                walls[backend].append(num_clips / wall_seconds)
                processor[backend].append(num_clips / cpu_seconds)
        rates = tuple(
            LoadRate(
                backend=backend,
                clips_per_second=tuple(walls[backend]),
                clips_per_cpu_second=tuple(processor[backend]),
                peak_bytes=running[backend].peak_bytes,
            )
            for backend in chosen
        )
    return LoadReport(
        task=task, content=dataset.manifest.content, num_clips=len(dataset), rates=rates, left_out=left_out
    )


def _why_not(backend: str, dataset: Any, task: LoadTask) -> str:
    """Why a backend cannot do this task; "" where it can."""
    if backend in ("limit", "vidprep", "dataloader"):
        return ""
    if dataset.manifest.content != "frames":
        return "reads shards of frames"
    if task.train:
        return "has other random crops"
    lengths = {row.num_frames for row in dataset.rows}
    if backend == "dali_cpu":
        if find_spec("nvidia.dali") is None:
            return "is not installed; pip install 'vidprep[dali]'"
        if lengths != {task.num_frames}:
            return f"needs samples of exactly {task.num_frames} frames, these have {_span(lengths)}"
    return ""


def _span(lengths: set[int]) -> str:
    return str(min(lengths)) if len(lengths) == 1 else f"{min(lengths)} to {max(lengths)}"


class _Running:
    """A backend in its own process."""

    def __init__(self, process: "subprocess.Popen[str]", backend: str) -> None:
        self.peak_bytes = 0
        self._process = process
        self._backend = backend

    def run_for(self, seconds: float) -> tuple[int, float, float]:
        """(clips, seconds, seconds of CPU time) of a round; afterwards the backend is stopped."""
        stop = threading.Event()
        watcher = threading.Thread(target=self._watch, args=(stop,))
        watcher.start()
        try:
            cpu_before, started = _cpu_seconds(self._process.pid), time.perf_counter()
            self.signal(signal.SIGCONT)
            num_clips = self._ask(f"{seconds}")
            self.signal(signal.SIGSTOP)
            wall_seconds = time.perf_counter() - started
            cpu_seconds = _cpu_seconds(self._process.pid) - cpu_before
        finally:
            stop.set()
            watcher.join()
        return num_clips, wall_seconds, max(cpu_seconds, 1e-3)

    def signal(self, number: signal.Signals) -> None:
        """Stop all its processes, or let them go on."""
        for pid in _tree(self._process.pid):
            with suppress(ProcessLookupError):  # it ended just now
                os.kill(pid, number)

    def _ask(self, line: str) -> int:
        if self._process.stdin is None or self._process.stdout is None:
            raise RuntimeError("a backend's process is started with pipes")
        try:
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # it has ended; the empty answer below tells
        answer = self._process.stdout.readline()
        if not answer.startswith("clips "):
            self._process.wait(timeout=60)
            said = self._process.stderr.read() if self._process.stderr else ""
            raise VidprepError(
                f"backend {self._backend} ended with status {self._process.returncode}: "
                f"{(said.strip().splitlines() or ['it said nothing'])[-1]}"
            )
        return int(answer.split()[1])

    def _watch(self, stop: threading.Event) -> None:
        while not stop.wait(0.25):
            self.peak_bytes = max(self.peak_bytes, sum(_pss_bytes(pid) for pid in _tree(self._process.pid)))


@contextmanager
def _running(backend: str, task: LoadTask) -> Iterator[_Running]:
    command = [sys.executable, "-m", "vidprep.bench", backend, json.dumps(asdict(task))]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    process = subprocess.Popen(  # noqa: S603 - our own module
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )
    running = _Running(process, backend)
    try:
        yield running
    finally:
        running.signal(signal.SIGCONT)  # what is stopped does not end
        with process:
            if process.stdin is not None:
                process.stdin.close()
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                process.kill()


def _tree(pid: int) -> list[int]:
    """A process and all that descend from it."""
    found = [pid]
    try:
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                found += _tree(int(child))
    except OSError:
        pass  # it ended while it was looked at
    return found


def _cpu_seconds(root: int) -> float:
    """Of a process and all that descend from it, those that have ended included."""
    ticks = 0
    for pid in _tree(root):
        try:
            # After the name, which may hold anything: user, system, and the same of children that have ended.
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it ended just now, and counts with its parent
        ticks += sum(int(field) for field in fields[11:15])
    return ticks / os.sysconf("SC_CLK_TCK")


def _pss_bytes(pid: int) -> int:
    try:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass  # it ended while it was looked at
    return 0


# What follows runs in the processes of the backends.

_PR_SET_PDEATHSIG = 1
"""Of Linux' `prctl`."""


def _end_with_parent() -> None:
    """Have this process killed as soon as the one that started it ends, however that ends.

    Between its rounds a backend is stopped with all its processes. A stopped process notices nothing: it would stay for
    good where the one that measures is killed.
    """
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _begin_worker(worker: int, *, parent: int) -> None:
    """Set up a worker process of a DataLoader, which process `parent` started."""
    _end_with_parent()
    if os.getppid() != parent:  # it ended before it could be watched
        os._exit(1)


def _serve(backend: str, task: LoadTask) -> None:
    """Load batches for as much CPU time as each line of the standard input says, and answer how many clips they had."""
    _end_with_parent()
    batches = _STREAMS[backend](task)
    next(batches)  # makes ready
    for line in sys.stdin:
        seconds, num_clips = float(line), 0
        started, cpu_before = time.perf_counter(), _cpu_seconds(os.getpid())
        while True:
            num_clips += next(batches)
            if _cpu_seconds(os.getpid()) - cpu_before >= seconds:
                break
            if time.perf_counter() - started >= MOST_WALL_SECONDS * seconds:
                break
        sys.stdout.write(f"clips {num_clips}\n")
        sys.stdout.flush()


def _limit(task: LoadTask) -> Iterator[int]:
    dataset = task.dataset()
    is_video = dataset.manifest.content == "video"
    indices = range(min(len(dataset), MAX_CLIPS_IN_MEMORY))
    clips = [_compressed(dataset, index) for index in indices]
    memory = threading.local()

    def decode(clip: "_Compressed") -> int:
        import simplejpeg

        from vidprep.decode import open_video

        if is_video:
            with open_video(clip.data[0]) as reader:
                return len(reader.get_frames_at(clip.wanted).data)
        if not hasattr(memory, "frame") or memory.frame.shape != clip.shape:
            memory.frame = np.empty(clip.shape, dtype=np.uint8)
        for data in clip.data:
            simplejpeg.decode_jpeg(data, buffer=memory.frame)
        return len(clip.data)

    endless = itertools.cycle(clips)
    if task.workers == 1:
        while True:
            yield sum(1 for clip in itertools.islice(endless, task.batch_size) if decode(clip))
    with ThreadPoolExecutor(task.workers) as pool:
        running: deque[Future[int]] = deque()
        while True:
            # A batch ahead, so that no thread waits for the next one.
            running.extend(pool.submit(decode, clip) for clip in itertools.islice(endless, task.batch_size))
            if len(running) > task.batch_size:
                yield sum(1 for _ in range(task.batch_size) if running.popleft().result())


@dataclass(frozen=True, kw_only=True)
class _Compressed:
    data: list[bytes]
    """The JPEG frames of a clip, or its video."""
    wanted: Sequence[int]
    shape: tuple[int, int, int]


def _compressed(dataset: Any, index: int) -> _Compressed:
    """What must be decoded for a sample."""
    import simplejpeg

    row, settings, encoded = dataset.rows[index], dataset.make.settings, dataset.encoded(index)
    wanted = settings.indices(row.num_frames, settings.rng(0, index)).reshape(-1).tolist()
    if dataset.manifest.content == "video":
        return _Compressed(data=[encoded[0]], wanted=wanted, shape=(0, 0, 0))
    data = [encoded[at] for at in wanted]
    height, width, _, _ = simplejpeg.decode_jpeg_header(data[0])
    return _Compressed(data=data, wanted=wanted, shape=(height, width, 3))


def _vidprep(task: LoadTask) -> Iterator[int]:
    from vidprep.load import make_loader

    loader = make_loader(task.dataset(), batch_size=task.batch_size, workers=task.workers, shuffle=True)
    for epoch in itertools.count():
        loader.set_epoch(epoch)
        for batch in loader:
            yield len(batch.video_id)


def _dataloader(task: LoadTask) -> Iterator[int]:
    from torch.utils.data import DataLoader

    from vidprep.load import Batch

    loader: Any = DataLoader(
        task.dataset(),
        batch_size=task.batch_size,
        shuffle=True,
        num_workers=task.workers,
        collate_fn=Batch.stack,
        persistent_workers=True,
        worker_init_fn=partial(_begin_worker, parent=os.getpid()),
    )
    while True:
        for batch in loader:
            yield len(batch.video_id)


def _webdataset_pil(task: LoadTask) -> Iterator[int]:
    import torch
    import webdataset
    from torchvision import transforms

    dataset = task.dataset()
    settings = dataset.make.settings
    steps: list[Any] = [] if task.whole_frames else [transforms.Resize(task.resize), transforms.CenterCrop(task.crop)]
    if task.dtype == "float32":
        steps += [transforms.ToTensor(), transforms.Normalize(mean=settings.mean, std=settings.std)]
    else:
        steps += [transforms.PILToTensor()]
    transform = transforms.Compose(steps)

    def keep_wanted(sample: dict[str, Any]) -> dict[str, Any]:
        wanted = _wanted_names(sample, settings)
        return {"__wanted__": wanted, "json": sample["json"], **{name: sample[name] for name in wanted}}

    def make_sample(sample: dict[str, Any]) -> tuple[torch.Tensor, int]:
        clip = torch.stack([transform(sample[name]) for name in sample["__wanted__"]])
        return clip, sample["json"]["labels"][0]

    urls = _urls(task, dataset)
    source = webdataset.WebDataset(urls, shardshuffle=len(urls), empty_check=False)
    source = source.shuffle(1000).map(keep_wanted).decode("pil").map(make_sample).batched(task.batch_size)
    loader: Any = webdataset.WebLoader(source, **_worker_options(task, urls))
    while True:
        for _, labels in loader:
            yield len(labels)


def _webdataset_pil_numpy(task: LoadTask) -> Iterator[int]:
    import torch
    import webdataset
    from PIL import Image
    from torch.utils.data import DataLoader, default_collate
    from torchvision.transforms.v2 import functional as F

    dataset = task.dataset()
    settings = dataset.make.settings
    mean, std = list(settings.mean), list(settings.std)

    def clip_of(sample: dict[str, Any]) -> tuple[torch.Tensor, int]:
        frames = []
        for name in _wanted_names(sample, settings):
            picture = Image.open(io.BytesIO(sample[name])).convert("RGB")
            if task.whole_frames:
                frames.append(np.asarray(picture))
                continue
            if min(picture.size) != task.resize:
                short = min(picture.size)
                size = [int(task.resize * side / short) for side in picture.size]
                picture = picture.resize((size[0], size[1]), Image.Resampling.BILINEAR)
            left, top = round((picture.width - task.crop) / 2), round((picture.height - task.crop) / 2)
            frames.append(np.asarray(picture.crop((left, top, left + task.crop, top + task.crop))))
        clip = torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2)
        if task.dtype == "float32":
            clip = F.normalize(F.to_dtype(clip, torch.float32, scale=True), mean, std)
        return clip, int(json.loads(sample["json"])["labels"][0])

    urls = _urls(task, dataset)
    source = webdataset.WebDataset(urls, shardshuffle=len(urls), empty_check=False).shuffle(1000).map(clip_of)
    batches = source.batched(task.batch_size, collation_fn=default_collate)
    loader: Any = DataLoader(batches, **_worker_options(task, urls))
    while True:
        for _, labels in loader:
            yield len(labels)


def _urls(task: LoadTask, dataset: Any) -> list[str]:
    return [str(Path(task.folder) / shard.name) for shard in dataset.manifest.shards]


def _wanted_names(sample: dict[str, Any], settings: Any) -> list[str]:
    """The frames of a clip, by their names in a sample of webdataset; a name may repeat."""
    names = sorted(name for name in sample if name.endswith(".jpg"))
    return [names[at] for at in settings.indices(len(names), None).reshape(-1)]


def _worker_options(task: LoadTask, urls: list[str]) -> dict[str, Any]:
    """Of a DataLoader whose data set makes the batches; no more workers than shards, which they share."""
    return {
        "batch_size": None,
        "num_workers": min(task.workers, len(urls)),
        "persistent_workers": True,
        "worker_init_fn": partial(_begin_worker, parent=os.getpid()),
    }


def _dali_cpu(task: LoadTask) -> Iterator[int]:
    dali: Any = import_module("nvidia.dali")
    fn, types = dali.fn, dali.types

    dataset = task.dataset()
    settings = dataset.make.settings
    first = read_samples(Path(task.folder), task.split)[0]
    names = [member.name for member in first.members if member.name != "json"]
    is_resized = not task.whole_frames and any(min(row.width, row.height) != task.resize for row in dataset.rows)
    urls = _urls(task, dataset)

    @dali.pipeline_def(batch_size=task.batch_size, num_threads=task.workers, device_id=None)  # type: ignore[untyped-decorator]
    def clips() -> Any:
        *encoded, facts = fn.readers.webdataset(paths=urls, ext=[*names, "json"], name="shards", random_shuffle=True)
        frames = [fn.decoders.image(frame, output_type=types.RGB) for frame in encoded]
        if is_resized:
            frames = [fn.resize(frame, resize_shorter=task.resize, interp_type=types.INTERP_LINEAR) for frame in frames]
        output: dict[str, Any] = {"dtype": types.UINT8, "output_layout": "HWC"}
        if task.dtype == "float32":
            output = {
                "dtype": types.FLOAT,
                "output_layout": "CHW",
                "mean": [255 * value for value in settings.mean],
                "std": [255 * value for value in settings.std],
            }
        if not task.whole_frames:
            output["crop"] = (task.crop, task.crop)
        if output != {"dtype": types.UINT8, "output_layout": "HWC"}:
            frames = [fn.crop_mirror_normalize(frame, **output) for frame in frames]
        return fn.stack(*frames), facts

    pipeline = clips()
    pipeline.build()
    while True:  # the reader begins again by itself
        frames, _ = pipeline.run()
        yield len(frames)


_STREAMS: dict[str, Callable[[LoadTask], Iterator[int]]] = {
    "limit": _limit,
    "vidprep": _vidprep,
    "dataloader": _dataloader,
    "webdataset_pil": _webdataset_pil,
    "webdataset_pil_numpy": _webdataset_pil_numpy,
    "dali_cpu": _dali_cpu,
}
"""Each loads batches, epoch after epoch without an end, and says how many clips each has."""


if __name__ == "__main__":
    _serve(sys.argv[1], LoadTask(**json.loads(sys.argv[2])))
