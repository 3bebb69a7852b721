"""Which packets must be decoded to get some frames: integers only, no decoder.

    decode order   I0 P4 b2 b1 b3 | I5 P9 b7 b6 b8      frames wanted: 1 and 7
    sent           I0 P4 b2 b1      I5 P9 b7            two runs, each from the last entry before its first frame

An *entry* is a key frame that is shown before every later packet, so that nothing from there on refers to what
came before. A key frame that is followed by packets shown earlier (open GOP) is no entry. Packets that no other
packet refers to are left out when their own frame is not wanted.
"""

from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from vidprep.decode.bitstream import PacketHeader, UnmappablePackets

__all__ = ["PacketTable", "Run", "build_packet_table"]

# Their packets are stored in the order in which they are shown.
CODECS_WITHOUT_REORDERING = frozenset({"vp8", "vp9", "av1"})


@dataclass(frozen=True, kw_only=True)
class Run:
    """Packets to decode from a clean state, and the frames to keep."""

    packets: Sequence[int]
    """Positions in decode order, ascending."""
    frames: Sequence[int]
    """Frame indices that come out of them and are wanted, ascending."""


@dataclass(frozen=True, kw_only=True)
class PacketTable:
    """The packets of a stream of which each shows at most one frame."""

    frame_pts: Sequence[int]
    """When each frame is shown, strictly ascending."""
    frame_packets: Sequence[int]
    """The packet, by its position in decode order, that holds each frame."""
    entries: Sequence[int]
    """Packets where decoding may start, ascending; the first is 0."""
    droppable: Sequence[bool]
    """Per packet: no other packet refers to it."""

    def plan(self, frames: Iterable[int]) -> list[Run]:
        """The runs that give `frames` (indices in any order, repeats allowed)."""
        wanted: dict[int, list[int]] = {}
        for frame in sorted(set(frames)):
            entry = self.entries[bisect_right(self.entries, self.frame_packets[frame]) - 1]
            wanted.setdefault(entry, []).append(frame)
        runs = []
        for entry in sorted(wanted):
            kept = {self.frame_packets[frame] for frame in wanted[entry]}
            packets = [at for at in range(entry, max(kept) + 1) if at in kept or not self.droppable[at]]
            runs.append(Run(packets=packets, frames=wanted[entry]))
        return runs


def build_packet_table(
    pts: Sequence[int | None],
    headers: Sequence[PacketHeader],
    *,
    is_discarded: Sequence[bool],
    codec: str,
    reorder_depth: int,
) -> PacketTable:
    """Map packets to frames, or refuse.

    Args:
        pts: presentation time of each packet, in decode order.
        headers: what each packet holds.
        is_discarded: packets that the container says not to show (edit lists); others may refer to them.
        codec: canonical FFmpeg name.
        reorder_depth: how many frames the decoder holds back to put them in order.

    Raises:
        UnmappablePackets: frames and packets cannot be matched with certainty.
    """
    known = [time for time in pts if time is not None]
    if not known:
        raise UnmappablePackets("no packets" if not pts else "packets without presentation times")
    if len(known) != len(pts):
        raise UnmappablePackets("packets without presentation times")
    if len(set(known)) != len(known):
        raise UnmappablePackets("several packets with one presentation time")
    if not headers[0].is_entry or min(known) != known[0]:
        raise UnmappablePackets("the stream does not start with a key frame, so its first frames may not decode")
    is_ascending = all(before < after for before, after in pairwise(known))
    if codec in CODECS_WITHOUT_REORDERING:
        if not is_ascending:
            raise UnmappablePackets(f"{codec} packets whose presentation times do not ascend")
    elif is_ascending and reorder_depth > 0:
        raise UnmappablePackets("presentation times are in decode order although the decoder may reorder frames")
    elif codec == "h264" and not is_ascending and _needed_depth(known) > reorder_depth:
        # The decoder would find that out while decoding, and lose frames on the way.
        raise UnmappablePackets("frames are reordered further than the stream declares")

    shown = sorted(
        (time, at)
        for at, (time, header) in enumerate(zip(known, headers, strict=True))
        if header.num_shown and not is_discarded[at]
    )
    if not shown:
        raise UnmappablePackets("no packet that is shown")
    entries, earliest_later = [], max(known) + 1
    for at in range(len(known) - 1, -1, -1):
        if headers[at].is_entry and known[at] < earliest_later:
            entries.append(at)
        earliest_later = min(earliest_later, known[at])
    top_layer = max(header.layer for header in headers)
    return PacketTable(
        frame_pts=[time for time, _ in shown],
        frame_packets=[at for _, at in shown],
        entries=entries[::-1],
        droppable=[header.is_droppable and header.layer == top_layer for header in headers],
    )


def _needed_depth(pts: Sequence[int]) -> int:
    """The largest number of packets that precede a packet and are shown after it."""
    depth, ordered = 0, list[int]()
    for time in pts:
        depth = max(depth, len(ordered) - bisect_left(ordered, time))
        insort(ordered, time)
    return depth
