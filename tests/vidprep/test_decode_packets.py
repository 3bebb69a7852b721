"""Packet headers and the plan of packets to decode: integers, no decoder."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vidprep.decode.bitstream import PacketHeader, UnmappablePackets, header_reader
from vidprep.decode.sparse import PacketTable, build_packet_table

ENTRY = PacketHeader(num_shown=1, is_entry=True, is_droppable=False)
REFERENCE = PacketHeader(num_shown=1, is_entry=False, is_droppable=False)
DROPPABLE = PacketHeader(num_shown=1, is_entry=False, is_droppable=True)
HIDDEN = PacketHeader(num_shown=0, is_entry=False, is_droppable=False)


def table(
    pts: list[int | None], headers: list[PacketHeader], *, codec: str = "h264", reorder_depth: int = 2
) -> PacketTable:
    return build_packet_table(pts, headers, is_discarded=[False] * len(pts), codec=codec, reorder_depth=reorder_depth)


# Decode order of two closed GOPs: I0 P3 b1 b2 | I4 P7 b5 b6.
CLOSED = table([0, 3, 1, 2, 4, 7, 5, 6], [ENTRY, REFERENCE, DROPPABLE, DROPPABLE] * 2)


def test_a_run_starts_at_the_last_entry_and_leaves_out_what_nothing_refers_to() -> None:
    (run,) = CLOSED.plan([6])
    assert list(run.packets) == [4, 5, 7]
    assert list(run.frames) == [6]


def test_runs_are_separate_where_an_entry_lies_between() -> None:
    runs = CLOSED.plan([7, 0, 0, 1])
    assert [(list(run.packets), list(run.frames)) for run in runs] == [([0, 1, 2], [0, 1]), ([4, 5], [7])]


def test_a_key_frame_with_earlier_frames_behind_it_is_no_entry() -> None:
    # I0 P3 b1 b2 | I6 b4 b5: frames 4 and 5 are shown before the second key frame and refer to the first GOP.
    opened = table([0, 3, 1, 2, 6, 4, 5], [ENTRY, REFERENCE, DROPPABLE, DROPPABLE, ENTRY, DROPPABLE, DROPPABLE])
    assert list(opened.entries) == [0]


def test_hidden_packets_are_no_frames() -> None:
    shown = table([0, 1, 2, 3], [ENTRY, REFERENCE, HIDDEN, REFERENCE], codec="vp8", reorder_depth=0)
    assert list(shown.frame_packets) == [0, 1, 3]
    assert list(shown.frame_pts) == [0, 1, 3]


def test_only_the_highest_layer_is_dropped() -> None:
    layers = [ENTRY, DROPPABLE._replace(layer=0), DROPPABLE._replace(layer=1)]
    assert list(table([0, 2, 1], layers, codec="hevc").droppable) == [False, False, True]


@pytest.mark.parametrize(
    ("pts", "headers", "codec", "depth", "reason"),
    [
        ([], [], "h264", 0, "no packets"),
        ([0, None], [ENTRY, REFERENCE], "h264", 0, "without presentation times"),
        ([0, 0], [ENTRY, REFERENCE], "h264", 0, "one presentation time"),
        ([0, 1], [REFERENCE, ENTRY], "h264", 0, "does not start with a key frame"),
        ([5, 3, 4], [ENTRY, REFERENCE, REFERENCE], "h264", 2, "does not start with a key frame"),
        ([0, 1, 2], [ENTRY, REFERENCE, REFERENCE], "h264", 2, "in decode order"),
        ([0, 4, 3, 2, 1], [ENTRY, *[REFERENCE] * 4], "h264", 2, "reordered further"),
        ([0, 2, 1], [ENTRY, REFERENCE, REFERENCE], "vp9", 0, "do not ascend"),
    ],
)
def test_doubtful_tables_are_refused(
    pts: list[int | None], headers: list[PacketHeader], codec: str, depth: int, reason: str
) -> None:
    with pytest.raises(UnmappablePackets, match=reason):
        table(pts, headers, codec=codec, reorder_depth=depth)


@given(data=st.data())
def test_plans_hold_every_wanted_frame_and_its_references(data: st.DataObject) -> None:
    pts: list[int | None] = []
    headers: list[PacketHeader] = []
    for _ in range(data.draw(st.integers(1, 5))):
        size = data.draw(st.integers(1, 4))
        start = len(pts)
        pts += [start, *(start + 1 + at for at in data.draw(st.permutations(range(size))))]
        headers += [ENTRY, *data.draw(st.lists(st.sampled_from([REFERENCE, DROPPABLE]), min_size=size, max_size=size))]
    is_ascending = all(pts[at] == at for at in range(len(pts)))
    mapped = table(pts, headers, reorder_depth=0 if is_ascending else 5)
    wanted = data.draw(st.lists(st.integers(0, len(pts) - 1), min_size=1))
    runs = mapped.plan(wanted)
    assert [frame for run in runs for frame in run.frames] == sorted(set(wanted))
    for run in runs:
        packets = list(run.packets)
        assert packets == sorted(packets)
        assert headers[packets[0]].is_entry
        assert {mapped.frame_packets[frame] for frame in run.frames} <= set(packets)
        skipped = set(range(packets[0], packets[-1] + 1)) - set(packets)
        assert all(headers[at].is_droppable for at in skipped)
        assert not any(headers[at].is_entry for at in packets[1:])


def test_vp8_shows_a_packet_by_its_bit() -> None:
    read = header_reader("vp8", b"")
    assert read(memoryview(bytes([0x10, 0, 0]))) == PacketHeader(1, True, False)
    assert read(memoryview(bytes([0x01, 0, 0]))) == PacketHeader(0, False, False)


def test_vp9_superframe_shows_its_one_visible_frame() -> None:
    hidden, shown = bytes([0b1000_0100, 1, 2]), bytes([0b1000_0110, 3])
    index = bytes([0b1100_0001, len(hidden), len(shown), 0b1100_0001])
    read = header_reader("vp9", b"")
    assert read(memoryview(hidden + shown + index)).num_shown == 1
    assert read(memoryview(hidden)).num_shown == 0
    assert read(memoryview(bytes([0b1000_1000]))).num_shown == 1  # show_existing_frame
    assert read(memoryview(bytes([0b1000_0010, 0]))) == PacketHeader(1, True, False)
    with pytest.raises(UnmappablePackets, match="several shown VP9 frames"):
        read(memoryview(shown + shown + bytes([0b1100_0001, 2, 2, 0b1100_0001])))


def test_av1_temporal_unit_shows_its_one_visible_frame() -> None:
    sequence, key, hidden = bytes([0x0A, 1, 0]), bytes([0x32, 1, 0b0001_0000]), bytes([0x32, 1, 0b0010_0000])
    again = bytes([0x1A, 1, 0b1000_0000])  # show_existing_frame
    read = header_reader("av1", b"")
    assert read(memoryview(sequence + key)) == PacketHeader(1, True, False)
    assert read(memoryview(key)) == PacketHeader(1, False, False)
    assert read(memoryview(hidden + again)) == PacketHeader(1, False, False)
    with pytest.raises(UnmappablePackets, match="several shown AV1 frames"):
        read(memoryview(key + again))


def test_other_codecs_are_not_read() -> None:
    with pytest.raises(UnmappablePackets, match="codec mpeg4"):
        header_reader("mpeg4", b"")


@given(extradata=st.binary(max_size=60), packet=st.binary(max_size=60))
def test_nonsense_is_refused_or_read_but_nothing_else(extradata: bytes, packet: bytes) -> None:
    for codec in ("h264", "hevc", "vp8", "vp9", "av1"):
        for prefix in (b"", b"\x01"):
            try:
                header = header_reader(codec, prefix + extradata)(memoryview(packet))
            except (UnmappablePackets, IndexError):
                continue
            assert header.num_shown in (0, 1)


def test_a_table_of_many_packets_is_made_quickly() -> None:
    pts: list[int | None] = [int(time) for time in np.arange(50_000)]
    assert len(table(pts, [ENTRY] * 50_000, reorder_depth=0).entries) == 50_000
