"""Damaged variants of videos, as disks, networks and interrupted copies make them; the same for the same seed."""

import random
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

__all__ = ["KINDS", "Variant", "damage_files", "damaged"]

KINDS = ("flip", "truncate", "zero", "swap")


@dataclass(frozen=True)
class Variant:
    """A damaged video."""

    name: str
    kind: str
    path: Path


def damage_files(sources: Sequence[Path], folder: Path, *, count: int, seed: int) -> Iterator[Variant]:
    """Write `count` damaged variants of the sources to `folder`: sources and kinds in turn, places by chance."""
    for number in range(count):
        source, kind = sources[number % len(sources)], KINDS[number // len(sources) % len(KINDS)]
        data = damaged(source.read_bytes(), kind, random.Random(f"{seed}-{number}"))
        path = folder / f"{number:04d}-{kind}-{source.name.lstrip('-')}"
        path.write_bytes(data)
        yield Variant(name=path.name, kind=kind, path=path)


def damaged(data: bytes, kind: str, chance: random.Random) -> bytes:
    """The file with one kind of damage."""
    damage: Callable[[bytes, random.Random], bytes] = {
        "flip": _flip_bits,
        "truncate": _truncate,
        "zero": _zero_ranges,
        "swap": _swap_boxes,
    }[kind]
    return damage(data, chance)


def _flip_bits(data: bytes, chance: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(chance.choice([1, 10, 100, 1000])):
        # A third of them in the first kilobytes, where the headers lie.
        place = chance.randrange(min(len(data), 4096) if chance.random() < 1 / 3 else len(data))
        changed[place] ^= 1 << chance.randrange(8)
    return bytes(changed)


def _truncate(data: bytes, chance: random.Random) -> bytes:
    return data[: chance.randrange(len(data))]


def _zero_ranges(data: bytes, chance: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(chance.randint(1, 4)):
        start, length = chance.randrange(len(data)), min(chance.choice([512, 4096, 65536]), len(data) // 2)
        changed[start : start + length] = bytes(len(changed[start : start + length]))
    return bytes(changed)


def _swap_boxes(data: bytes, chance: random.Random) -> bytes:
    """Two boxes ("atoms") of an MP4 change places, on the top or inside `moov`; of other files two blocks do."""
    boxes = _boxes(data, 0, len(data))
    inner = [box for box in boxes if data[box[0] + 4 : box[0] + 8] == b"moov"]
    if inner and chance.random() < 0.5:
        boxes = _boxes(data, inner[0][0] + 8, inner[0][1])
    if len(boxes) < 2:
        size = max(len(data) // 16, 1)
        boxes = [(start, min(start + size, len(data))) for start in range(0, len(data), size)]
    one, two = sorted(chance.sample(boxes, 2))
    return b"".join([data[: one[0]], data[slice(*two)], data[one[1] : two[0]], data[slice(*one)], data[two[1] :]])


def _boxes(data: bytes, start: int, end: int) -> list[tuple[int, int]]:
    """(start, end) of the boxes that follow each other in a range; none where it does not hold boxes."""
    boxes: list[tuple[int, int]] = []
    while start + 8 <= end:
        (size,) = struct.unpack_from(">I", data, start)
        if size == 1 and start + 16 <= end:
            (size,) = struct.unpack_from(">Q", data, start + 8)
        if size < 8 or start + size > end or not data[start + 4 : start + 8].isalnum():
            return boxes
        boxes.append((start, start + size))
        start += size
    return boxes
