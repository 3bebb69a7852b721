"""Rebuild just the shards that `verify` finds damaged; the damaged files are put aside, and nothing is deleted.

OUT/damaged/val-000003.tar, .jsonl, .idx        and val-000003.tar.1 ... when it happens again
"""

from collections.abc import Callable
from dataclasses import dataclass

from vidprep.errors import UsageError, VidprepError
from vidprep.index import ShardFacts, read_manifest
from vidprep.shard import ShardReport, read_plan
from vidprep.store import Location, Store, open_store
from vidprep.tasks import hold
from vidprep.verify import verify_shards

__all__ = ["DAMAGED", "RepairReport", "repair"]

DAMAGED = "damaged"
"""Folder below that of the shards, for what was put aside."""


@dataclass(frozen=True, kw_only=True)
class RepairReport:
    """What was wrong with the shards of a split, and what was done about it."""

    split: str
    problems: tuple[str, ...]
    """As `verify` says them; none when nothing was wrong."""
    moved: tuple[str, ...]
    """Files that were put aside, by their names now, below the folder of the shards."""
    rebuilt: tuple[str, ...]
    """Shards that were written again, with the bytes that the manifest says."""
    different: tuple[str, ...]
    """Shards that were written again with other bytes: their videos, or what makes frames of them, have changed."""
    num_others: int
    """Further shards that were written again, because their sidecars were gone."""
    remaining: tuple[str, ...]
    """What is still wrong; nothing, unless something damages the shards even now."""

    @property
    def is_sound(self) -> bool:
        """The shards are what they were."""
        return not self.different and not self.remaining

    def to_text(self) -> str:
        """The report in lines: each problem, each file that was moved, and what came of it."""
        if not self.problems:
            return f"{self.split}: sound, nothing to repair"
        lines = [*self.problems, *(f"put aside: {name}" for name in self.moved)]
        lines += [f"{name}: rebuilt, the same bytes as before" for name in self.rebuilt]
        lines += [
            f"{name}: rebuilt with other bytes than before; its videos have changed, or FFmpeg or the JPEG library has"
            for name in self.different
        ]
        if self.num_others:
            lines.append(f"{self.num_others} further shards had no sidecar (.jsonl), and were written again, too")
        lines += [f"still: {problem}" for problem in self.remaining]
        state = "sound" if not self.remaining else "damaged"
        return "\n".join([*lines, f"{self.split}: {len(self.rebuilt) + len(self.different)} shards rebuilt: {state}"])


def repair(
    folder: Location,
    split: str,
    rebuild: Callable[[], ShardReport],
    *,
    workers: int = 1,
    progress: str | None = None,
) -> RepairReport:
    """Verify the shards of a split, put the damaged ones aside, and have them written again.

    Args:
        folder: what `vidprep shard --out` wrote, or its URL.
        split: which one.
        rebuild: calls `shard` with the settings that the shards were made with; it writes what is missing.
        workers: processes that verify.
        progress: shown while it verifies; None shows nothing.

    Raises:
        UsageError: no shards of this split, or they were not written by `vidprep shard`, or a run is at work on them.
    """
    store = open_store(folder)
    if read_plan(store, split) is None:
        raise UsageError(
            f"{store}: no {split}.plan.json, so nothing says how the shards of {split} were made; write them anew."
        )
    [found] = verify_shards(store.location, split, workers=workers, progress=progress).splits
    if not found.problems:
        return RepairReport(split=split, problems=(), moved=(), rebuilt=(), different=(), num_others=0, remaining=())
    before = _facts(store, split)
    with hold(store.lock_file(f"{split}.plan.json"), range(1 << 30), purpose="vidprep shard"):
        moved = [new for name in found.damaged for new in _put_aside(name, store)]
    num_new = rebuild().num_new_shards
    after = _facts(store, split)
    written = [name for name in found.damaged if name.endswith(".tar")]
    [left] = verify_shards(store.location, split, workers=workers, progress=progress).splits
    return RepairReport(
        split=split,
        problems=found.problems,
        moved=tuple(moved),
        rebuilt=tuple(name for name in written if before.get(name) == after.get(name)),
        different=tuple(name for name in written if before.get(name) != after.get(name)),
        num_others=max(num_new - len(written), 0),
        remaining=left.problems,
    )


def _facts(store: Store, split: str) -> dict[str, ShardFacts]:
    try:
        return {facts.name: facts for facts in read_manifest(store, split).shards}
    except VidprepError:
        return {}  # the manifest itself is damaged or missing, and then no shard was found to be


def _put_aside(name: str, store: Store) -> list[str]:
    """Move a damaged file, and of a shard what belongs to it, to `DAMAGED`; the new names."""
    stem, _, suffix = name.rpartition(".")
    names = [f"{stem}.{part}" for part in ("tar", "idx", "jsonl")] if suffix == "tar" else [name]
    there = store.sizes()
    place = store.location
    aside = open_store(f"{place}/{DAMAGED}" if isinstance(place, str) else place / DAMAGED)
    taken = aside.sizes() if aside.exists() else {}
    moved = []
    for old in names:
        if old not in there:
            continue
        new, number = old, 0
        while new in taken:
            number += 1
            new = f"{old}.{number}"
        store.move(old, to=f"{DAMAGED}/{new}")
        moved.append(f"{DAMAGED}/{new}")
    return moved
