"""What a packet's first bytes say: how many frames it shows, whether decoding may start or skip there.

Read straight from the headers (no decoding), for the codecs that data sets use. Whatever these readers do not
cover - fields, layers, changing parameter sets, pictures that are decoded but not shown - is refused with a
reason, and the caller decodes the stream in order instead.

Source: ITU-T H.264 sections 7.3.1, 7.3.2.1, 7.4.1; ITU-T H.265 sections 7.3.1, 7.3.2.3, 7.3.6.1, 8.3.1, C.5.2;
RFC 6386 section 9.1; VP9 bitstream specification sections 6.2 and annex B; AV1 specification sections 5.3-5.9;
ISO/IEC 14496-15 sections 5.3.3 and 8.3.3 (avcC, hvcC).
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

__all__ = ["PacketHeader", "UnmappablePackets", "header_reader"]


class UnmappablePackets(Exception):
    """The packets of this stream cannot be mapped to frames without decoding them; the text says why."""


class PacketHeader(NamedTuple):
    """What one packet holds."""

    num_shown: int
    """Frames that it shows: 0 or 1."""
    is_entry: bool
    """Everything decoded before may be forgotten here: no later packet refers to an earlier one, provided
    that all later packets are also shown later."""
    is_droppable: bool
    """No other packet refers to it, provided that `layer` is the stream's highest."""
    layer: int = 0
    """Temporal layer (HEVC)."""


def header_reader(codec: str, extradata: bytes) -> Callable[[memoryview], PacketHeader]:
    """The function that reads the packets of this stream.

    Args:
        codec: canonical FFmpeg name: h264, hevc, vp8, vp9, av1.
        extradata: the stream's parameter sets, as stored by the container.

    Raises:
        UnmappablePackets: another codec, or a stream of a kind that is not covered. The function returned
            raises it as well.
    """
    if codec == "h264":
        return _h264_reader(extradata)
    if codec == "hevc":
        return _hevc_reader(extradata)
    if codec in _SIMPLE_READERS:
        return _SIMPLE_READERS[codec]
    raise UnmappablePackets(f"packets of codec {codec} are not read")


def _h264_reader(extradata: bytes) -> Callable[[memoryview], PacketHeader]:
    if extradata[:1] == b"\x01" and len(extradata) > 6:
        length_size = (extradata[4] & 3) + 1
        parameter_sets = list(_avcc_parameter_sets(extradata))
    else:
        length_size = 0
        parameter_sets = [nal.tobytes() for nal in _start_code_units(memoryview(extradata))]
    sequence_sets = [unit for unit in parameter_sets if unit and unit[0] & 31 == 7]
    if not sequence_sets:
        raise UnmappablePackets("no H.264 sequence parameter set ahead of the packets")
    for unit in sequence_sets:
        _require_whole_frames(unit)

    # By the first byte of a slice: nal_ref_idc(2 bits) 0 is droppable, nal_unit_type(5 bits) 5 is an entry.
    pictures = {
        first: PacketHeader(num_shown=1, is_entry=first & 31 == 5, is_droppable=not first & 0x60)
        for first in range(256)
        if first & 31 in (1, 5)
    }

    def read(packet: memoryview) -> PacketHeader:
        for unit in _units(packet, length_size):
            first = unit[0]
            if first in pictures:
                return pictures[first]
            kind = first & 31
            if kind in (7, 8, 13, 15) and unit.tobytes().rstrip(b"\0") not in extradata:
                raise UnmappablePackets("the H.264 parameter sets change")
            if kind in (2, 3, 4):
                raise UnmappablePackets("H.264 data partitions")
        raise UnmappablePackets("an H.264 packet without a picture")

    return read


def _avcc_parameter_sets(extradata: bytes) -> Iterator[bytes]:
    position = 5
    for mask in (31, 255):  # sequence parameter sets, then picture parameter sets
        if position >= len(extradata):
            return
        count = extradata[position] & mask
        position += 1
        for _ in range(count):
            size = int.from_bytes(extradata[position : position + 2], "big")
            yield extradata[position + 2 : position + 2 + size]
            position += 2 + size


def _require_whole_frames(sequence_set: bytes) -> None:
    """Refuse streams that may hold fields, or gaps that the decoder fills with frames of its own."""
    bits = _Bits(sequence_set[1:])
    profile = bits.read(8)
    bits.read(16)
    bits.unsigned()
    if profile in (100, 110, 122, 244, 44, 83, 86, 118, 128, 138, 139, 134, 135):
        chroma_format = bits.unsigned()
        if chroma_format == 3:
            bits.read(1)
        bits.unsigned()
        bits.unsigned()
        bits.read(1)
        if bits.read(1):
            for index in range(12 if chroma_format == 3 else 8):
                if bits.read(1):
                    _skip_scaling_list(bits, length=16 if index < 6 else 64)
    bits.unsigned()
    order_type = bits.unsigned()
    if order_type == 0:
        bits.unsigned()
    elif order_type == 1:
        bits.read(1)
        bits.unsigned()
        bits.unsigned()
        for _ in range(bits.unsigned()):
            bits.unsigned()
    bits.unsigned()
    if bits.read(1):
        raise UnmappablePackets("H.264 with gaps in its frame numbers")
    bits.unsigned()
    bits.unsigned()
    if not bits.read(1):
        raise UnmappablePackets("H.264 that may hold fields (interlaced)")


def _skip_scaling_list(bits: "_Bits", *, length: int) -> None:
    last = following = 8
    for _ in range(length):
        if following:
            following = (last + bits.signed()) % 256
        last = following or last


def _hevc_reader(extradata: bytes) -> Callable[[memoryview], PacketHeader]:
    if extradata[:1] == b"\x01" and len(extradata) > 23:
        length_size = (extradata[21] & 3) + 1
        parameter_sets = list(_hvcc_parameter_sets(extradata))
    else:
        length_size = 0
        parameter_sets = [nal.tobytes() for nal in _start_code_units(memoryview(extradata))]
    picture_sets = [unit for unit in parameter_sets if len(unit) > 2 and unit[0] >> 1 & 63 == 34]
    if not picture_sets:
        raise UnmappablePackets("no HEVC picture parameter set ahead of the packets")
    for unit in picture_sets:
        bits = _Bits(unit[2:])
        bits.unsigned()
        bits.unsigned()
        bits.read(1)
        if bits.read(1):
            raise UnmappablePackets("HEVC whose pictures may be hidden (output_flag_present_flag)")

    def read(packet: memoryview) -> PacketHeader:
        header = None
        for unit in _units(packet, length_size):
            if len(unit) < 3:
                if unit[0] >> 1 & 63 in (36, 37):
                    raise UnmappablePackets("HEVC with an end of sequence")
                continue
            kind, layer_id = unit[0] >> 1 & 63, (unit[0] & 1) << 5 | unit[1] >> 3
            if layer_id:
                continue  # enhancement layers (multi-view): the decoder gives the base layer
            if kind < 32 and unit[2] & 0x80:
                if header is not None:
                    raise UnmappablePackets("several HEVC pictures in one packet")
                if kind in (16, 17, 18):
                    raise UnmappablePackets("HEVC with broken links (BLA), whose leading pictures are dropped")
                is_entry = 19 <= kind <= 21
                if 16 <= kind <= 23 and unit[2] & 0x40:
                    raise UnmappablePackets("HEVC that drops earlier pictures (no_output_of_prior_pics_flag)")
                # Even kinds below 16 are "sub-layer non-reference" pictures.
                droppable = kind < 16 and not kind & 1
                header = PacketHeader(1, is_entry, droppable, (unit[1] & 7) - 1)
            elif kind in (32, 33, 34) and unit.tobytes().rstrip(b"\0") not in extradata:
                raise UnmappablePackets("the HEVC parameter sets change")
            elif kind in (36, 37):
                raise UnmappablePackets("HEVC with an end of sequence")
        if header is None:
            raise UnmappablePackets("an HEVC packet without a picture")
        return header

    return read


def _hvcc_parameter_sets(extradata: bytes) -> Iterator[bytes]:
    position = 23
    for _ in range(extradata[22]):
        count = int.from_bytes(extradata[position + 1 : position + 3], "big")
        position += 3
        for _ in range(count):
            size = int.from_bytes(extradata[position : position + 2], "big")
            yield extradata[position + 2 : position + 2 + size]
            position += 2 + size


def _read_vp8(packet: memoryview) -> PacketHeader:
    if len(packet) < 3:
        raise UnmappablePackets("an empty VP8 packet")
    return PacketHeader(num_shown=packet[0] >> 4 & 1, is_entry=not packet[0] & 1, is_droppable=False)


def _read_vp9(packet: memoryview) -> PacketHeader:
    shown, is_entry = 0, False
    for number, frame in enumerate(_vp9_frames(packet)):
        first = frame[0]
        if first >> 6 != 2:
            raise UnmappablePackets("a VP9 packet without a frame marker")
        # marker(2) profile(2) [reserved(1) if profile 3] show_existing_frame(1) frame_type(1) show_frame(1)
        flags = first if first & 0x30 == 0x30 else first >> 1
        shows_existing, is_inter, is_shown = flags & 4, flags & 2, flags & 1
        shown += bool(shows_existing or is_shown)
        if number == 0:
            is_entry = not shows_existing and not is_inter
    if shown > 1:
        raise UnmappablePackets("several shown VP9 frames in one packet (spatial layers)")
    return PacketHeader(num_shown=shown, is_entry=is_entry, is_droppable=False)


def _vp9_frames(packet: memoryview) -> list[memoryview]:
    """The frames of a superframe; a packet without an index is one frame."""
    if not len(packet):
        raise UnmappablePackets("an empty VP9 packet")
    marker = packet[-1]
    count, magnitude = (marker & 7) + 1, (marker >> 3 & 3) + 1
    index_size = 2 + magnitude * count
    if marker & 0xE0 != 0xC0 or len(packet) < index_size or packet[-index_size] != marker:
        return [packet]
    frames, position = [], 0
    for number in range(count):
        at = len(packet) - index_size + 1 + number * magnitude
        size = int.from_bytes(packet[at : at + magnitude], "little")
        if size == 0 or position + size > len(packet) - index_size:
            raise UnmappablePackets("a VP9 superframe whose index does not fit")
        frames.append(packet[position : position + size])
        position += size
    return frames


def _read_av1(packet: memoryview) -> PacketHeader:
    shown, is_entry, has_sequence, position, num_frames = 0, False, False, 0, 0
    while position < len(packet):
        header = packet[position]
        kind, has_extension, has_size = header >> 3 & 15, header & 4, header & 2
        position += 1
        if has_extension:
            if packet[position] >> 3 & 3:
                raise UnmappablePackets("AV1 with spatial layers")
            position += 1
        size = len(packet) - position
        if has_size:
            size, position = _leb128(packet, position)
        if size > len(packet) - position:
            raise UnmappablePackets("an AV1 packet that is cut short")
        if kind == 1 and size:
            has_sequence = True
            if packet[position] & 8:
                raise UnmappablePackets("an AV1 still picture")
        elif kind in (3, 6) and size:
            first = packet[position]
            shows_existing, frame_type, is_shown = first & 0x80, first >> 5 & 3, first & 0x10
            shown += bool(shows_existing or is_shown)
            if num_frames == 0:
                is_entry = has_sequence and not shows_existing and frame_type == 0 and bool(is_shown)
            num_frames += 1
        position += size
    if shown > 1:
        raise UnmappablePackets("several shown AV1 frames in one packet")
    return PacketHeader(num_shown=shown, is_entry=is_entry, is_droppable=False)


def _leb128(data: memoryview, position: int) -> tuple[int, int]:
    value = 0
    for number in range(8):
        if position >= len(data):
            break
        byte = data[position]
        position += 1
        value |= (byte & 127) << 7 * number
        if not byte & 128:
            return value, position
    raise UnmappablePackets("an AV1 packet that is cut short")


_SIMPLE_READERS: dict[str, Callable[[memoryview], PacketHeader]] = {
    "vp8": _read_vp8,
    "vp9": _read_vp9,
    "av1": _read_av1,
}


def _units(packet: memoryview, length_size: int) -> Iterator[memoryview]:
    """The NAL units of a packet: behind their lengths, or (`length_size` 0) between start codes."""
    if length_size == 0:
        yield from _start_code_units(packet)
        return
    position, end = 0, len(packet)
    while position + length_size < end:
        size = int.from_bytes(packet[position : position + length_size], "big")
        position += length_size
        if size == 0 or position + size > end:
            raise UnmappablePackets("a packet whose NAL units do not fit")
        yield packet[position : position + size]
        position += size


def _start_code_units(data: memoryview) -> Iterator[memoryview]:
    raw = data.tobytes()
    start = raw.find(b"\0\0\1")
    while start >= 0:
        following = raw.find(b"\0\0\1", start + 3)
        end = len(raw) if following < 0 else following
        if end > start + 3:
            yield data[start + 3 : end]
        start = following


class _Bits:
    """Reads the payload of a parameter set, with its emulation prevention bytes taken out."""

    def __init__(self, payload: bytes) -> None:
        payload = payload.replace(b"\0\0\3", b"\0\0")
        self._value = int.from_bytes(payload, "big")
        self._left = 8 * len(payload)

    def read(self, count: int) -> int:
        if count > self._left:
            raise UnmappablePackets("a parameter set that is cut short")
        self._left -= count
        return self._value >> self._left & (1 << count) - 1

    def unsigned(self) -> int:
        """An Exp-Golomb code ue(v)."""
        zeros = 0
        while not self.read(1):
            zeros += 1
        return (1 << zeros) - 1 + self.read(zeros)

    def signed(self) -> int:
        """An Exp-Golomb code se(v)."""
        code = self.unsigned()
        return (code + 1) // 2 if code & 1 else -(code // 2)
