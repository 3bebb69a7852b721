"""The same batches from a pipeline of NVIDIA DALI, on the CPU or on a GPU.

    here    order, frame numbers, crops and flips, labels      as for every other backend, from the same seeds
    DALI    bytes of the shards -> frames -> cut -> resized -> mirrored -> normalised -> a tensor

The pipeline is told which frames to decode and where to cut each of them, so a batch shows what the backend "threads"
shows; pixels differ by the interpolation of the resize only (docs/dali.md has the figures). What DALI would decode to
other frames, or to frames that lie on their side, is refused before it gets there.
"""

from collections import deque
from collections.abc import Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Unpack

import av.error
import numpy as np
import simplejpeg
import torch
from av.container import InputContainer
from av.video.stream import VideoStream
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from vidprep.decode.pyav import UPRIGHT, PyavReader, open_container, orientation
from vidprep.errors import CorruptVideo, MissingPackage, UsageError
from vidprep.index import SampleRow
from vidprep.load.dataset import ClipPlan, ClipSettings
from vidprep.load.loader import Device, Loader, LoaderOptions, PendingBatch, SampleSource
from vidprep.load.memory import BatchMemory
from vidprep.load.shards import ShardDataset
from vidprep.load.types import Batch, new_frames

__all__ = ["DaliLoader"]

_CODECS: dict[Device, frozenset[str]] = {
    "cpu": frozenset({"vp8", "vp9", "mjpeg"}),
    "gpu": frozenset({"vp8", "vp9", "mjpeg", "h264", "hevc", "av1"}),
}
"""What DALI 2.4 decodes to the frames that it is asked for, by FFmpeg's names."""

_MAX_KEPT_TIMES = 8_000_000
"""Frames whose times are kept in memory, 8 bytes each; videos beyond are looked through again in each epoch."""


class DaliLoader(Loader):
    """Iterates over the batches of one epoch, prepared by DALI; see `make_loader`."""

    def __init__(self, dataset: SampleSource, *, device: Device, **options: Unpack[LoaderOptions]) -> None:
        """Look whether DALI can do what is asked for.

        Raises:
            MissingPackage: DALI is not installed.
            UsageError: the data set, its first video or its settings are none that DALI can read.
        """
        if not _has_dali():
            raise MissingPackage(
                "The backend 'dali' needs NVIDIA DALI: pip install 'vidprep[dali]', or choose backend='threads'."
            )
        if not isinstance(dataset, ShardDataset):
            raise UsageError(
                f"the backend 'dali' reads shards (ShardDataset), got a {type(dataset).__name__}; "
                "write shards with `vidprep shard`, or choose backend='threads'."
            )
        if dataset.make.settings.dct_scaling:
            raise UsageError(
                "DALI decodes JPEG frames in their full size only; leave dct_scaling off, or choose backend='threads'."
            )
        _refuse_settings(dataset.make.settings)
        if dataset.make.settings.whole_frames:
            raise UsageError("DALI crops on the device itself; leave whole_frames off, or choose backend='threads'.")
        if device == "gpu" and not torch.cuda.is_available():
            raise UsageError("device 'gpu' needs a CUDA device that PyTorch can use, and there is none; use 'cpu'.")
        if device == "gpu" and options["pin_memory"]:
            raise UsageError("pin_memory is for batches in the memory of the CPU; leave it off with device='gpu'.")
        super().__init__(dataset, **options)
        self.device: Device = device
        self._shards = dataset
        self._times: dict[int, NDArray[np.float64]] = {}
        self._num_kept_times = 0
        if dataset.manifest.content == "video":
            # What DALI cannot do with the first video it mostly cannot do with any: say so before an epoch begins.
            # A damaged one is left for its turn.
            with suppress(CorruptVideo):
                self._times_of_video(0, dataset.encoded(0)[0])

    def _prepare(self, batches: Sequence[Sequence[int]], epoch: int) -> Generator[PendingBatch, None, None]:
        """The batches in their order: while the caller works with one, DALI works on the next."""
        waiting = deque(batches)
        planned: deque[list[tuple[int, Future[_Item]]]] = deque()
        num_threads = max(1, self.workers)
        pool = ThreadPoolExecutor(num_threads, thread_name_prefix="vidprep-dali")
        decoder = _Decoder(self._shards, device=self.device, max_samples=self.batch_size, num_threads=num_threads)

        def begin() -> "_BatchInDali":
            while waiting and len(planned) < 3:
                planned.append([(at, pool.submit(self._item, at, epoch)) for at in waiting.popleft()])
            batch = _BatchInDali(
                planned.popleft(), decoder, memory=self._memory, keep_faults=self.on_error == "count", loader=self
            )
            batch.begin()
            return batch

        try:
            following = begin() if waiting else None
            while following is not None:
                batch = following
                batch.finish()
                following = begin() if waiting or planned else None
                yield batch
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def name_of(self, index: int) -> str:
        """How messages call sample `index`."""
        row = self._shards.rows[index]
        return f"sample {row.key} of {self._shards.folder / row.shard}"

    def _item(self, index: int, epoch: int) -> "_Item":
        """The compressed frames of a sample, and what is to be done to them.

        Raises:
            CorruptVideo: it gives no clip; names its key and its shard.
            CorruptShard: the shard is not what its index says.
            UsageError: a video that DALI cannot read as it should be read.
        """
        shards, row, encoded = self._shards, self._shards.rows[index], self._shards.encoded(index)
        rng = shards.make.settings.rng(epoch, index)
        try:
            if shards.manifest.content == "video":
                data = encoded[0]
                times = self._times_of_video(index, data)
                plan = shards.make.plan(times, shards.videos[index], height=row.height, width=row.width, rng=rng)
                return _Item(plan=plan, encoded=[np.frombuffer(data, dtype=np.uint8)])
            facts = shards.facts(index)
            height, width = _jpeg_size(encoded[0], 0)
            plan = shards.make.plan(
                facts.times(row.num_frames),
                shards.videos[index],
                height=height,
                width=width,
                rng=rng,
                boxes=facts.boxes(row.num_frames),
                box_scale=(width / row.width, height / row.height),
            )
            index_of_frames = plan.index.reshape(-1).tolist()
            frames = [encoded[at] for at in index_of_frames]
            for at, frame in zip(index_of_frames, frames, strict=True):
                _check_jpeg_size(frame, at, expected=(height, width))
            return _Item(plan=plan, encoded=[np.frombuffer(frame, dtype=np.uint8) for frame in frames])
        except CorruptVideo as error:
            raise CorruptVideo(f"{self.name_of(index)} gives no clip: {error}") from error

    def _times_of_video(self, index: int, data: bytes) -> NDArray[np.float64]:
        """(num_frames,) when each frame is shown, of a video that DALI decodes to just these frames, upright."""
        times = self._times.get(index)
        if times is None:
            times = self._checked_times(index, data)
            if self._num_kept_times + len(times) <= _MAX_KEPT_TIMES:
                self._times[index] = times
                self._num_kept_times += len(times)
        return times

    def _checked_times(self, index: int, data: bytes) -> NDArray[np.float64]:
        row, name = self._shards.rows[index], self.name_of(index)
        container, stream = open_container(data)
        with container:
            codec = stream.codec_context.codec.canonical_name
            if codec not in _CODECS[self.device]:
                raise UsageError(f"{name}: {_why_not(codec, self.device)}")
            _check_key_frames(container, stream, row, name)
        with PyavReader(data, kept_packet_bytes=0) as reader:
            if reader.num_frames != row.num_frames:
                raise CorruptVideo(
                    f"it has {reader.num_frames} frames, the index says {row.num_frames}; write the shards again."
                )
            is_plain = reader.sequential_reason is None and not reader.num_discarded_packets
            if self.device == "gpu" and codec != "mjpeg" and not is_plain:
                raise UsageError(
                    f"{name}: its packets do not tell for certain which frames a GPU decodes of it "
                    f"({reader.sequential_reason or 'an edit list hides some'}); choose backend='threads'."
                )
            return reader.pts_seconds


def _check_key_frames(container: InputContainer, stream: VideoStream, row: SampleRow, name: str) -> None:
    """All key frames are upright and as large as the index says; DALI takes the first one's size for all."""
    stream.codec_context.skip_frame = "NONKEY"
    num_frames = 0
    try:
        for frame in container.decode(stream):
            num_frames += 1
            if orientation(frame, name=name) != UPRIGHT:
                raise UsageError(
                    f"{name} is stored turned or mirrored (rotation {frame.rotation}), which DALI does not undo; "
                    "choose backend='threads'."
                )
            if (frame.width, frame.height) != (row.width, row.height):
                raise CorruptVideo(
                    f"a frame is {frame.width} x {frame.height} pixels, the index says {row.width} x {row.height}; "
                    "re-encode the video to one size."
                )
    except av.error.FFmpegError as error:
        raise CorruptVideo(f"a key frame does not decode: {error.strerror}.") from error
    if not num_frames:
        raise CorruptVideo("no key frame of it decodes; it is empty or damaged.")


def _refuse_settings(settings: ClipSettings) -> None:
    """What the pipeline does not do to frames."""
    not_here = {
        "antialias = false": not settings.antialias,
        "resize_floats": settings.resize_floats,
        'fit "pad"': settings.fit == "pad",
    }
    if settings.train:
        not_here = {
            'fit "pad"': settings.fit == "pad",
            "rand_augment": bool(settings.rand_augment),
            "random_erasing": settings.random_erasing > 0,
            'train_crop "random_resized"': settings.train_crop == "random_resized",
            "num_repeats above 1": settings.num_repeats > 1,
        }
    asked = [name for name, is_asked in not_here.items() if is_asked]
    if asked:
        raise UsageError(f"the backend 'dali' does not do {', '.join(asked)}; choose backend='threads'.")


def _has_dali() -> bool:
    try:
        return find_spec("nvidia.dali") is not None
    except ModuleNotFoundError:  # no package of that vendor at all
        return False


def _why_not(codec: str, device: Device) -> str:
    if device == "cpu" and codec in _CODECS["gpu"]:
        return (
            f"DALI decodes {codec} on a GPU only; choose device='gpu', or backend='threads', "
            "which decodes the same frames on the CPU."
        )
    return f"DALI does not decode {codec}; choose backend='threads'."


def _jpeg_size(encoded: bytes, index: int) -> tuple[int, int]:
    """(height, width) of a JPEG frame."""
    try:
        height, width, _, _ = simplejpeg.decode_jpeg_header(encoded)
    except ValueError as error:
        raise CorruptVideo(f"frame {index} is not a JPEG: {error}.") from error
    return int(height), int(width)


def _check_jpeg_size(encoded: bytes, index: int, *, expected: tuple[int, int]) -> None:
    size = _jpeg_size(encoded, index)
    if size != expected:
        raise CorruptVideo(
            f"frame {index} is {size[1]} x {size[0]} pixels, the first frame {expected[1]} x {expected[0]}; "
            "fetch or extract the frames again."
        )


@dataclass(frozen=True, kw_only=True)
class _Item:
    """A sample before it is decoded."""

    plan: ClipPlan
    encoded: Sequence[NDArray[np.uint8]]
    """The bytes of the video, or of each frame of the clips."""


class _BatchInDali:
    """A batch in the making: planned in threads, decoded by DALI."""

    def __init__(
        self,
        futures: Sequence[tuple[int, "Future[_Item]"]],
        decoder: "_Decoder",
        *,
        memory: BatchMemory,
        keep_faults: bool,
        loader: DaliLoader,
    ) -> None:
        self._futures = futures
        self._decoder = decoder
        self._memory = memory
        self._keep_faults = keep_faults
        self._loader = loader
        self._items: list[tuple[int, _Item]] = []
        self._faults: dict[int, CorruptVideo] = {}
        self._error: Exception | None = None
        self._batch: Batch | None = None

    def begin(self) -> None:
        """Hand what is planned to DALI, which begins to work on it."""
        for index, future in self._futures:
            try:
                self._items.append((index, future.result()))
            except CorruptVideo as error:
                self._faults[index] = error
                if not self._keep_faults:
                    self._error = error
                    return
            except Exception as error:  # raised again by `result`, in the batch's turn
                self._error = error
                return
        if self._items:
            self._decoder.begin([item for _, item in self._items])

    def finish(self) -> None:
        """Wait for DALI; its memory is free for the next batch afterwards."""
        if self._error is not None or not self._items:
            return
        try:
            frames = self._decoder.frames([item for _, item in self._items], self._memory)
        except RuntimeError as error:
            self._find_broken(error)
            if self._error is not None or not self._items:
                return
            items = [item for _, item in self._items]
            self._decoder.begin(items)
            frames = self._decoder.frames(items, self._memory)
        samples = [item.plan.sample(clips) for (_, item), clips in zip(self._items, frames.unbind(), strict=True)]
        self._batch = Batch.stack(samples, frames=frames)
        if frames.is_cuda:
            self._batch = self._batch.to(frames.device)

    def _find_broken(self, error: RuntimeError) -> None:
        """Which samples DALI does not decode: a batch of several does not say."""
        sound = []
        for index, item in self._items:
            try:
                self._decoder.begin([item])
                self._decoder.frames([item], self._memory)
            except RuntimeError as reason:
                self._faults[index] = CorruptVideo(
                    f"{self._loader.name_of(index)} gives no clip: DALI says: {_reason(reason)}"
                )
            else:
                sound.append((index, item))
        if len(sound) == len(self._items):
            # Each alone is fine: it was not the data.
            self._error = error
        elif not self._keep_faults:
            self._error = next(iter(self._faults.values()))
        self._items = sound

    def result(self) -> Batch | None:
        """The batch; None where no sample gave a clip."""
        if self._error is not None:
            raise self._error
        return self._batch

    def faults(self) -> Sequence[tuple[int, CorruptVideo]]:
        """(position in the data set, why it gave no clip)."""
        return sorted(self._faults.items())


def _reason(error: RuntimeError) -> str:
    """What went wrong, without the operator's traceback and the library's source lines."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    after = next((i for i, line in enumerate(lines) if line.startswith("encountered")), -1) + 1
    text = " ".join(line for line in lines[after : after + 2] if not line.startswith("C++ context"))
    return text.split(" C++ context")[0] or "no reason."


class _Decoder:
    """A DALI pipeline for clips of one shape; built when it is first used, and again after an error."""

    def __init__(self, shards: ShardDataset, *, device: Device, max_samples: int, num_threads: int) -> None:
        self._settings = shards.make.settings
        self._is_video = shards.manifest.content == "video"
        self._device: Device = device
        self._max_samples = max_samples
        self._num_threads = num_threads
        self._pipeline: Any = None

    def begin(self, items: Sequence[_Item]) -> None:
        """Feed the pipeline and let it run."""
        if self._pipeline is None:
            clip_length = items[0].plan.index.size
            num_inputs = self._max_samples * (1 if self._is_video else clip_length)
            self._pipeline = _build(
                self._settings,
                is_video=self._is_video,
                device=self._device,
                max_inputs=num_inputs,
                num_threads=self._num_threads,
            )
        feed = self._pipeline.feed_input
        feed("encoded", [data for item in items for data in item.encoded])
        if self._is_video:
            feed("frames", [np.sort(item.plan.index, axis=None).astype(np.int32) for item in items])
        windows = [(item.plan.windows[0], 1 if self._is_video else item.plan.index.size) for item in items]
        feed("start", [np.array((w.top, w.left), np.int32) for w, n in windows for _ in range(n)])
        feed("shape", [np.array((w.height, w.width), np.int32) for w, n in windows for _ in range(n)])
        feed("size", [np.array((w.new_height, w.new_width), np.float32) for w, n in windows for _ in range(n)])
        feed("mirror", [np.array(w.is_flipped, np.int32) for w, n in windows for _ in range(n)])
        for view in range(len(windows[0][0].corners)):
            # The window is mirrored after it was cut into views, here; so the views are cut from the other side.
            corners = [
                (top, w.new_width - w.crop - left if w.is_flipped else left)
                for w, n in windows
                for left, top in [w.corners[view]] * n
            ]
            feed(f"corner{view}", [np.array(corner, np.int32) for corner in corners])
        self._pipeline.schedule_run()

    def frames(self, items: Sequence[_Item], memory: BatchMemory) -> Tensor:
        """The frames (b, v, t, c, h, w) of the items that the pipeline was last fed with.

        Raises:
            RuntimeError: DALI does not decode one of them; the pipeline is gone.
        """
        try:
            outputs = self._pipeline.share_outputs()
        except RuntimeError:
            self._pipeline = None
            raise
        num_clips, length = items[0].plan.index.shape
        num_views = len(outputs) * num_clips
        shape = (len(items), num_views, length, 3, self._settings.crop, self._settings.crop)
        dtype = torch.float32 if self._settings.dtype == "float32" else torch.uint8
        if self._device == "gpu":
            with torch.device("cuda"):
                frames = new_frames(shape, dtype)
        else:
            frames = memory.take(shape, dtype)
        for view, output in enumerate(outputs):
            decoded = from_dlpack(output.as_tensor())
            clips = decoded.reshape(len(items), num_clips * length, *decoded.shape[-3:])
            clips = clips if dtype == torch.float32 else clips.movedim(-1, -3)
            places = frames[:, view * num_clips : (view + 1) * num_clips]
            for item, clip, place in zip(items, clips, places, strict=True):
                order = item.plan.index.reshape(-1)
                if self._is_video and (np.diff(order) < 0).any():
                    # DALI was asked for the frames in ascending order, so that it reads the video once.
                    clip = clip[torch.from_numpy(np.argsort(np.argsort(order, kind="stable"))).to(clip.device)]
                place.copy_(clip.reshape(place.shape))
        if self._device == "gpu":
            torch.cuda.current_stream().synchronize()  # DALI writes into its outputs again
        self._pipeline.release_outputs()
        return frames


def _build(settings: ClipSettings, *, is_video: bool, device: Device, max_inputs: int, num_threads: int) -> Any:
    """The pipeline: of each input, one video or one JPEG frame, the views of its frames."""
    # Imported by name: what DALI makes when it is imported, type checkers do not see.
    fn, types = import_module("nvidia.dali.fn"), import_module("nvidia.dali.types")
    pipeline = import_module("nvidia.dali").Pipeline(
        batch_size=max_inputs,
        num_threads=num_threads,
        device_id=torch.cuda.current_device() if device == "gpu" else None,
        prefetch_queue_depth=1,
    )
    decoder_device = "mixed" if device == "gpu" else "cpu"
    with pipeline:

        def numbers(name: str, ndim: int, dtype: Any = types.INT32) -> Any:
            return fn.external_source(name=name, ndim=ndim, dtype=dtype)

        encoded = numbers("encoded", 1, types.UINT8)
        if is_video:
            # "none": an index beyond the video is an error. The default gives black frames instead.
            frames = fn.decoders.video(encoded, frames=numbers("frames", 1), device=decoder_device, pad_mode="none")
        else:
            # As the decoders of the other backends: no turning by EXIF, chroma interpolated.
            frames = fn.decoders.image(
                encoded,
                device=decoder_device,
                output_type=types.RGB,
                adjust_orientation=False,
                jpeg_fancy_upsampling=True,
            )
        # What lies outside of a frame is black.
        frames = fn.slice(
            frames, start=numbers("start", 1), shape=numbers("shape", 1), axis_names="HW", out_of_bounds_policy="pad"
        )
        frames = fn.resize(
            frames, size=numbers("size", 1, types.FLOAT), interp_type=types.INTERP_LINEAR, antialias=True
        )
        mirror = numbers("mirror", 0)
        views = []
        for view in range(1 if settings.train else settings.num_crops):
            corner = numbers(f"corner{view}", 1)
            part = fn.slice(frames, start=corner, shape=[settings.crop, settings.crop], axis_names="HW")
            views.append(_normalised(fn, types, part, mirror, settings=settings, is_video=is_video))
        pipeline.set_outputs(*views)
    pipeline.build()
    return pipeline


def _normalised(fn: Any, types: Any, part: Any, mirror: Any, *, settings: ClipSettings, is_video: bool) -> Any:
    leading = "F" if is_video else ""
    if settings.dtype == "uint8":
        return fn.crop_mirror_normalize(part, mirror=mirror, dtype=types.UINT8, output_layout=leading + "HWC")
    return fn.crop_mirror_normalize(
        part,
        mirror=mirror,
        dtype=types.FLOAT,
        output_layout=leading + "CHW",
        mean=[255 * value for value in settings.mean],
        std=[255 * value for value in settings.std],
    )
