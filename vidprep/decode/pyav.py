"""Exact sparse decoding with PyAV: only the packets that the wanted frames need go through the decoder."""

import io
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeAlias, cast

import av
import av.error
import numpy as np
from av.container import InputContainer
from av.sidedata.sidedata import SideDataContainer
from av.sidedata.sidedata import Type as SideDataType
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream
from numpy.typing import NDArray

from vidprep.decode.bitstream import PacketHeader, UnmappablePackets, header_reader
from vidprep.decode.sparse import PacketTable, build_packet_table
from vidprep.decode.types import FrameBatch
from vidprep.errors import CorruptVideo, EmptyVideo, MissingVideo

__all__ = [
    "CONTAINERS_WITH_TIMES",
    "UPRIGHT",
    "Orientation",
    "PyavReader",
    "check_indices",
    "demux",
    "describe",
    "open_container",
    "orientation",
    "reason_of",
    "require_file",
    "stores_times",
    "turn_upright",
]

KEPT_PACKET_BYTES = 64 * 1024**2
"""A stream with more compressed bytes is read from its source again for each call."""

# Containers that store when each packet is shown. The others (AVI, raw streams, MPEG program streams) store the
# order of decoding, or times of some packets only.
CONTAINERS_WITH_TIMES = frozenset({"mov", "matroska", "webm", "mpegts", "flv"})

VideoPacket: TypeAlias = "av.Packet[VideoStream]"  # generic in the stubs only
Orientation: TypeAlias = tuple[tuple[int, int], tuple[int, int]]
"""How stored pixels lie upright: the signs ((a, b), (c, d)) of x' = a x + c y, y' = b x + d y."""
UPRIGHT: Orientation = ((1, 0), (0, 1))


class PyavReader:
    """A video of which single frames are decoded exactly and cheaply.

    Frame i is the i-th frame of a plain decode, from first to last packet, of the best video stream
    (`av_find_best_stream`), turned upright; `get_frames_at` gives the very same bytes. Where every packet
    demonstrably shows one frame or none (H.264, HEVC, VP8, VP9 and AV1 in MP4, MOV, Matroska, WebM, MPEG-TS
    and FLV, almost always), a scan of the packets gives the frames without decoding, decoding starts at the
    last safe key frame before a wanted frame, and pictures that nothing refers to are left out. Where that is
    not certain (AVI, interlaced or damaged streams, MPEG-4 and others: `sequential_reason` says why) the stream
    is decoded once to count its frames and again, from its start, for each `get_frames_at`: exact first, fast
    second.

    One thread at a time may use a reader. It decodes in one thread: run several readers side by side.

    Args:
        source: a file, or the bytes of one.
        kept_packet_bytes: streams larger than this are not kept in memory but read again for each call.

    Raises:
        MissingVideo: no such file.
        CorruptVideo: not a video, no video stream, or nothing in it decodes.
    """

    def __init__(self, source: str | Path | bytes, *, kept_packet_bytes: int = KEPT_PACKET_BYTES) -> None:
        self._source = source
        self._name = describe(source)
        self._container, self._stream = open_container(source)
        self._codec = self._stream.codec_context
        self._reformatter = VideoReformatter()
        self._size: tuple[int, int] | None = None
        self._rotation = 0
        self._packets: list[VideoPacket] | None = []
        self.sequential_reason: str | None = None
        """Why packets cannot be matched with frames, so that decoding is sequential; None where they can."""
        self.num_keyframes = 0
        """Packets marked as key frames."""
        self._is_keyframe: list[bool] = []
        """Per packet; per frame where packets cannot be matched with frames."""
        self.num_discarded_packets = 0
        """Packets that the container says not to show (edit lists)."""
        self._table: PacketTable | None = None
        try:
            self._scan(kept_packet_bytes)
            frame_pts = self._scan_sequentially() if self._table is None else self._table.frame_pts
            unit = self._stream.time_base or Fraction(1)
            self._pts_seconds = np.array(
                [np.nan if pts is None else pts * unit.numerator / unit.denominator for pts in frame_pts],
                dtype=np.float64,
            )
        except BaseException:
            self.close()
            raise

    @property
    def num_frames(self) -> int:
        """Frames that the stream decodes to."""
        return len(self._pts_seconds)

    @property
    def height(self) -> int:
        """Pixels, upright. The first use decodes the first frame, if none was decoded before."""
        return self._upright_size()[0]

    @property
    def width(self) -> int:
        """Pixels, upright. The first use decodes the first frame, if none was decoded before."""
        return self._upright_size()[1]

    @property
    def pts_seconds(self) -> NDArray[np.float64]:
        """(num_frames,) when each frame is shown, as stored; ascending; NaN where the file stores no time."""
        return self._pts_seconds

    @property
    def keyframe_indices(self) -> NDArray[np.int64]:
        """Frames that are marked as key frames, ascending: stored whole, in most codecs."""
        packets = range(self.num_frames) if self._table is None else self._table.frame_packets
        return np.flatnonzero([self._is_keyframe[packet] for packet in packets]).astype(np.int64)

    @property
    def rotation(self) -> int:
        """Degrees, counter-clockwise, by which stored pixels are turned to be upright: 0, 90, 180 or 270."""
        self._upright_size()
        return self._rotation

    @property
    def stream(self) -> VideoStream:
        """The stream that is read, for what its header says."""
        return self._stream

    def get_frames_at(self, indices: Sequence[int] | NDArray[np.int64]) -> FrameBatch:
        """Frames at `indices` (t,), in that order; an index may repeat.

        Raises:
            IndexError: an index outside 0 ... num_frames - 1.
            CorruptVideo: a frame that was asked for does not decode, or its size is not that of the others.
        """
        wanted = check_indices(indices, num_frames=self.num_frames, name=self._name)
        places: dict[int, list[int]] = {}
        for place, index in enumerate(wanted):
            places.setdefault(index, []).append(place)
        data: NDArray[np.uint8] | None = None
        missing = set(places)
        for index, frame in self._decode(sorted(places)):
            picture = self._upright_rgb(frame)
            if data is None:
                data = np.empty((len(wanted), *picture.shape), dtype=np.uint8)
            if picture.shape != data.shape[1:]:
                raise CorruptVideo(
                    f"{self._name}: frame {index} is {picture.shape[1]}x{picture.shape[0]} pixels, "
                    f"frames before it {data.shape[2]}x{data.shape[1]}; re-encode the video to one size."
                )
            first, *repeats = places[index]
            data[first] = picture
            for place in repeats:
                data[place] = data[first]
            missing.discard(index)
        if missing:
            raise CorruptVideo(
                f"{self._name}: frame {min(missing)} of {self.num_frames} does not come out of the decoder; "
                f"the stream is damaged there."
            )
        if data is None:
            data = np.empty((0, self.height, self.width, 3), dtype=np.uint8)
        return FrameBatch(data=data.transpose(0, 3, 1, 2), pts_seconds=self._pts_seconds[wanted])

    def iterate_frames(self, indices: Sequence[int] | NDArray[np.int64]) -> Iterator[NDArray[np.uint8]]:
        """Frames (h, w, c) at strictly ascending `indices`, one after the other: one pass, memory for one frame.

        Raises:
            IndexError: an index outside 0 ... num_frames - 1.
            ValueError: indices that do not ascend.
            CorruptVideo: a frame that was asked for does not decode.
        """
        return (self._upright_rgb(frame) for frame in self.iterate_stored(indices))

    def iterate_stored(self, indices: Sequence[int] | NDArray[np.int64]) -> Iterator[av.VideoFrame]:
        """As `iterate_frames`, but frames as the decoder gives them: not in RGB, not turned (see `orientation`).

        A frame is valid until the next one is asked for; it must not be changed.
        """
        wanted = check_indices(indices, num_frames=self.num_frames, name=self._name)
        if any(before >= after for before, after in pairwise(wanted)):
            raise ValueError("frames are iterated in ascending order, each once")
        decoded = self._decode(wanted)
        for index in wanted:
            found, frame = next(decoded, (-1, None))
            if found != index or frame is None:
                raise CorruptVideo(
                    f"{self._name}: frame {index} of {self.num_frames} does not come out of the decoder; "
                    f"the stream is damaged there."
                )
            yield frame

    def packets_of(self, first: int, last: int) -> list[VideoPacket] | None:
        """The packets of the frames `first` to `last`, where they are a video of their own; None where they are not.

        They are when decoding can start at `first`, no other frame lies between them in the file, and nothing in them
        refers to what is outside. They belong to the reader and must not be changed.
        """
        table = self._table
        if table is None or self.num_discarded_packets:
            return None
        wanted = table.frame_packets[first : last + 1]
        begin, end = min(wanted), max(wanted) + 1
        others = set(range(begin, end)) - set(wanted)
        if wanted[0] != begin or begin not in table.entries or not others.isdisjoint(table.frame_packets):
            return None
        packets = list(self._stored_packets(range(begin, end)))
        return packets if all(packet.dts is not None for packet in packets) else None

    def orientation_of(self, frame: av.VideoFrame) -> Orientation:
        """How the pixels of a stored frame lie upright."""
        return orientation(frame, name=self._name)

    def close(self) -> None:
        """Let go of the file."""
        self._packets = None
        self._container.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _scan(self, kept_packet_bytes: int) -> None:
        """Read all packets; fill `_table`, or `sequential_reason`."""
        pts: list[int | None] = []
        headers: list[PacketHeader] = []
        is_discarded: list[bool] = []
        num_bytes = 0
        try:
            codec = self._codec.codec.canonical_name
            read = None
            if not stores_times(self._container):
                self._refuse(f"the container {self._container.format.name} stores no time for each frame")
            else:
                try:
                    read = header_reader(codec, self._codec.extradata or b"")
                except (UnmappablePackets, IndexError) as reason:
                    self._refuse(reason)
            for packet in demux(self._container, self._stream):
                self.num_keyframes += packet.is_keyframe
                self.num_discarded_packets += packet.is_discard
                if read is None:
                    continue
                if packet.is_corrupt:
                    self._refuse("a packet is marked as damaged")
                    read = None
                    continue
                try:
                    headers.append(read(memoryview(packet)))
                except (UnmappablePackets, IndexError) as reason:
                    self._refuse(reason)
                    read = None
                    continue
                pts.append(packet.pts)
                self._is_keyframe.append(packet.is_keyframe)
                is_discarded.append(packet.is_discard)
                num_bytes += packet.size
                if self._packets is not None:
                    self._packets.append(packet)
                    if num_bytes > kept_packet_bytes:
                        self._packets = None
        except av.error.FFmpegError as error:
            raise CorruptVideo(f"{self._name}: reading its packets failed: {reason_of(error)}.") from error
        if read is None:
            return
        try:
            self._table = build_packet_table(
                pts, headers, is_discarded=is_discarded, codec=codec, reorder_depth=self._codec.reorder_depth
            )
        except UnmappablePackets as reason:
            self._refuse(reason)

    def _refuse(self, reason: object) -> None:
        self.sequential_reason = str(reason) or "a packet is cut short"
        self._packets = None

    def _scan_sequentially(self) -> Sequence[int | None]:
        """Decode everything; when each frame is shown."""
        pts: list[int | None] = []
        self._is_keyframe.clear()
        for frame in self._decode_sequentially():
            if self._size is None:
                self._remember_size(frame)
            pts.append(frame.pts if frame.pts is not None else frame.dts)
            self._is_keyframe.append(frame.key_frame)
        if not pts:
            raise CorruptVideo(f"{self._name}: no frame of it decodes; it is empty or damaged.")
        # Frames come in the order in which they are shown. Times that do not ascend are those of the order of
        # decoding (AVI): sorted, they are the times of the frames in the order in which they are shown.
        known = sorted(time for time in pts if time is not None)
        return known if len(known) == len(pts) else [None] * len(pts)

    def _decode(self, frames: Sequence[int]) -> Iterator[tuple[int, av.VideoFrame]]:
        """The frames of these ascending indices, with their index, ascending."""
        if not frames:
            return
        if self._table is not None:
            yield from self._decode_runs(self._table, frames)
            return
        remaining = iter(frames)
        following = next(remaining)
        for index, frame in enumerate(self._decode_sequentially()):
            if index == following:
                yield index, frame
                following = next(remaining, -1)
                if following < 0:
                    return

    def _decode_sequentially(self) -> Iterator[av.VideoFrame]:
        """A plain decode from the start, in a decoder that has seen nothing before.

        A recording that was cut between key frames begins with packets that do not decode: there are no frames
        before its first key frame.
        """
        container, stream = open_container(self._source)
        index = 0
        has_key_frame = False
        with container:
            try:
                for packet in container.demux(stream):
                    has_key_frame |= packet.is_keyframe
                    try:
                        frames = stream.decode(packet)
                    except av.error.InvalidDataError:
                        if has_key_frame:
                            raise
                        continue
                    for frame in frames:
                        yield frame
                        index += 1
            except av.error.FFmpegError as error:
                raise CorruptVideo(f"{self._name}: decoding stops after {index} frames: {reason_of(error)}.") from error

    def _decode_runs(self, table: PacketTable, frames: Sequence[int]) -> Iterator[tuple[int, av.VideoFrame]]:
        runs = table.plan(frames)
        needed = [at for run in runs for at in run.packets]
        stored = self._stored_packets(needed)
        decode = self._codec.decode
        for run in runs:
            wanted = {table.frame_pts[index]: index for index in run.frames}
            self._codec.flush_buffers()
            last_pts = table.frame_pts[0] - 1
            try:
                for number in range(len(run.packets) + 1):
                    # None at the end: what the decoder holds back for reordering comes out.
                    for frame in decode(next(stored) if number < len(run.packets) else None):
                        if frame.pts is None or frame.pts <= last_pts:
                            raise CorruptVideo(
                                f"{self._name}: its frames are stored with times that contradict their order "
                                f"({frame.pts} after {last_pts}); re-encode it."
                            )
                        last_pts = frame.pts
                        index = wanted.pop(frame.pts, None)
                        if index is not None:
                            yield index, frame
                    if not wanted:
                        break
            except av.error.FFmpegError as error:
                raise CorruptVideo(
                    f"{self._name}: frame {min(wanted.values())} of {self.num_frames} does not decode: "
                    f"{reason_of(error)}."
                ) from error

    def _stored_packets(self, positions: Sequence[int]) -> Iterator[VideoPacket]:
        """The packets at these ascending positions: from memory, or by reading the source once more."""
        if self._packets is not None:
            packets = self._packets
            yield from (packets[at] for at in positions)
            return
        container, stream = open_container(self._source)
        with container:
            for at, packet in enumerate(demux(container, stream)):
                place = bisect_left(positions, at)
                if place == len(positions):
                    return
                if positions[place] == at:
                    yield packet

    def _upright_rgb(self, frame: av.VideoFrame) -> NDArray[np.uint8]:
        """(h, w, c), possibly a turned view; the same bytes as `frame.to_ndarray(format="rgb24")`, turned.

        One conversion context for all frames: making one for each costs as much as the conversion itself.
        """
        rgb = self._reformatter.reformat(frame, format="rgb24", threads=1)
        picture = turn_upright(cast(NDArray[np.uint8], rgb.to_ndarray()), orientation(frame, name=self._name))
        if self._size is None:
            self._remember_size(frame)
        return picture

    def _remember_size(self, frame: av.VideoFrame) -> None:
        is_turned = orientation(frame, name=self._name)[0][0] == 0
        self._size = (frame.width, frame.height) if is_turned else (frame.height, frame.width)
        self._rotation = round(frame.rotation / 90) * 90 % 360

    def _upright_size(self) -> tuple[int, int]:
        if self._size is None:
            for _, frame in self._decode([0]):
                self._remember_size(frame)
            if self._size is None:
                raise CorruptVideo(f"{self._name}: frame 0 does not come out of the decoder; the stream is damaged.")
        return self._size


def open_container(
    source: str | Path | bytes, *, codec_options: Mapping[str, str] | None = None
) -> tuple[InputContainer, VideoStream]:
    """The opened file and its best video stream, set to decode in one thread; nothing else is read from it.

    Args:
        source: a file, or the bytes of one.
        codec_options: options of the decoder, by their FFmpeg names.

    Raises:
        MissingVideo: no such file.
        CorruptVideo: not a media file, or one without video.
    """
    name = describe(source)
    if not isinstance(source, bytes):
        require_file(Path(source))
    try:
        if isinstance(source, bytes):
            container = av.open(io.BytesIO(source), "r", buffer_size=1 << 20, metadata_errors="replace")
        else:
            # "file:": a name such as "a:b.mp4" is a name, not a protocol.
            container = av.open(f"file:{source}", "r", metadata_errors="replace")
    except av.error.FFmpegError as error:
        raise CorruptVideo(f"{name}: cannot be opened as a video: {_opening_fault(source, error)}.") from error
    stream = container.streams.best("video")
    if stream is None or stream.codec_context is None:
        container.close()
        missing = "holds no video stream" if stream is None else "its video codec has no decoder here"
        raise CorruptVideo(f"{name}: {missing}.")
    for other in container.streams:
        if other.index != stream.index:
            other.discard = av.stream.Discard.all
    video = cast(VideoStream, stream)
    video.thread_type = "NONE"
    video.codec_context.thread_count = 1
    if codec_options:
        video.codec_context.options = dict(codec_options)
    return container, video


def stores_times(container: InputContainer) -> bool:
    """Whether this kind of file says of every frame when it is shown."""
    return not CONTAINERS_WITH_TIMES.isdisjoint(container.format.name.split(","))


def demux(container: InputContainer, stream: VideoStream) -> Iterator[VideoPacket]:
    """The packets of a stream, without the empty one that PyAV appends to flush the decoder."""
    for packet in container.demux(stream):
        if packet.size or packet.pts is not None or packet.dts is not None:
            yield packet


def orientation(frame: av.VideoFrame, *, name: str) -> Orientation:
    """How stored pixels lie upright, by the frame's display matrix.

    Raises:
        CorruptVideo: a display matrix that is no multiple of a quarter turn, mirrored or not.
    """
    # Not `frame.side_data`: a frame keeps that, and it the frame, so that pictures of a megabyte would pile up in
    # memory until Python next looks for cycles, and the decoder would fill new pages with every frame.
    parts: Any = cast(Any, SideDataContainer)(frame)  # a sequence of buffers; the stub knows a mapping
    for side_data in parts:
        if side_data.type != SideDataType.DISPLAYMATRIX:
            continue
        # 3x3 int32, row by row; the upper left 2x2 is in 16.16 fixed point.
        values = np.frombuffer(bytes(side_data), dtype=np.int32)[:5].astype(np.int64)
        a, b, c, d = (int(np.sign(value)) * (abs(int(value)) > 1 << 15) for value in values[[0, 1, 3, 4]])
        if abs(a * d - b * c) != 1 or (a and b):
            raise CorruptVideo(
                f"{name}: its display matrix turns it by {frame.rotation} degrees; "
                f"only multiples of 90 are understood, re-encode it upright."
            )
        return (a, b), (c, d)
    return UPRIGHT


def turn_upright(picture: NDArray[np.uint8], matrix: Orientation) -> NDArray[np.uint8]:
    """(h, w, c) as stored -> (h, w, c) as shown, a view."""
    if matrix == UPRIGHT:
        return picture
    (a, b), (c, d) = matrix
    if a == 0:  # x' comes from y and y' from x
        picture, x_sign, y_sign = picture.transpose(1, 0, 2), c, b
    else:
        x_sign, y_sign = a, d
    return picture[::y_sign, ::x_sign]


def check_indices(indices: Sequence[int] | NDArray[np.int64], *, num_frames: int, name: str) -> list[int]:
    """The indices as Python integers.

    Raises:
        IndexError: one of them is outside 0 ... num_frames - 1.
        TypeError: they are not integers.
    """
    array = np.asarray(indices)
    if array.size and array.dtype.kind not in "iu":
        raise TypeError(f"frame indices must be integers, got {array.dtype}")
    wanted: list[int] = [int(index) for index in array.reshape(-1)]
    for index in wanted:
        if not 0 <= index < num_frames:
            raise IndexError(f"{name}: frame {index} was asked for; it has the frames 0 to {num_frames - 1}.")
    return wanted


def describe(source: str | Path | bytes) -> str:
    """The source's name in messages."""
    return f"video of {len(source)} bytes in memory" if isinstance(source, bytes) else str(source)


def require_file(path: Path) -> None:
    """Refuse what is not a file.

    Raises:
        MissingVideo: there is none.
        CorruptVideo: it is empty, or a directory.
    """
    if path.is_dir():
        raise CorruptVideo(f"{path}: is a directory; give a video file (folders of frames: backend 'jpeg').")
    if not path.exists():
        raise MissingVideo(f"{path}: no such file.")
    if path.stat().st_size == 0:
        raise EmptyVideo(f"{path}: is empty (0 bytes); fetch it again.")


def reason_of(error: av.error.FFmpegError) -> str:
    """FFmpeg's words for an error, without PyAV's numbers and names."""
    return str(error.strerror or error).rstrip(".")


def _opening_fault(source: str | Path | bytes, error: av.error.FFmpegError) -> str:
    """Why a file does not open, in words that help; the commonest case is a download that was cut short."""
    file: Any
    with io.BytesIO(source) if isinstance(source, bytes) else Path(source).open("rb") as file:
        boxes = list(_top_level_boxes(file))
    if b"ftyp" in boxes and b"moov" not in boxes:
        return "its index (the moov atom) is missing, the file is cut short; fetch it again"
    return reason_of(error)


def _top_level_boxes(file: io.BufferedIOBase) -> Iterator[bytes]:
    """The kinds of the boxes of an MP4 file, as far as they can be followed."""
    position, end = 0, file.seek(0, io.SEEK_END)
    while position + 8 <= end:
        file.seek(position)
        header = file.read(16)
        size, kind = int.from_bytes(header[:4], "big"), header[4:8]
        if size == 1:
            size = int.from_bytes(header[8:16], "big")
        yield kind
        if size < 8:
            return
        position += size
