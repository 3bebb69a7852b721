"""The journal of a run over the rows of a split: what was done and what failed, so that a restart does the rest.

    {"format": "vidprep-frames", ...}                              the settings: others are refused
    {"samples_sha256": ..., "samples": [["a.mp4", "a.mp4"], ...]}  which rows there are
    {"folder": "a.mp4", "attempts": 1, ..., "facts": {...}}        one is done, and what was made of it
    {"folder": "b.mp4", "kind": "damaged", "reason": ..., ...}     one is a fault
    {"index": {...}}                                               a run came to its end, and what it left behind

Lines are only appended; of a row the last one counts. Tasks of a job array append to journals of their own, which a run
without tasks, or the last task to finish, takes into the journal of all.
"""

import json
import os
import re
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import IO, Any, Literal

from vidprep.engine import Outcomes, WorkerDied, differences, media_state, publish, writing
from vidprep.errors import MissingVideo, UsageError, VidprepError, kind_of
from vidprep.index import Fault, folder_name
from vidprep.ledger import ends_in_newline, now, samples_line, samples_sha256
from vidprep.tasks import ArrayTask, hold
from vidprep.types import Video

__all__ = ["Group", "Journal", "JournalState", "Known", "by_file", "fault_entry", "note_all"]

VIDEOS_PER_GROUP = 32
"""Of one long video; it is opened once for them, and they are noted together."""
FINISH_PATIENCE_SECONDS = 10.0
"""A task waits so long for another one that writes what is written when all are done."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Known:
    """What the journal says of a row, in little: of a hundred thousand the entries themselves fill the memory."""

    journal: Path
    place: int
    """Of its entry there, in bytes."""
    is_done: bool
    kind: str
    """Of a fault."""
    source: list[int] | None
    """State of its file when it was tried and was a fault."""
    num_attempts: int
    num_bytes: int | None
    """Of the file that was made, where the facts say so and are read."""


@dataclass(kw_only=True)
class JournalState:
    """What stands in a journal, kept up to date as lines are added."""

    path: Path
    known: dict[str, Known]
    """Key -> what is known of the row."""
    end: int
    """Bytes that the journal has."""
    mark: Mapping[str, Any] | None = None
    """What the last run that came to its end left behind."""
    mark_place: int = 0
    """Where its line begins: entries before it are what it saw."""
    mark_end: int = -1

    @property
    def is_unchanged(self) -> bool:
        """Whether nothing was noted since the last run that came to its end."""
        return self.mark_end == self.end


@dataclass(frozen=True, kw_only=True)
class Journal:
    """A journal, or, of a task, its own beside the one of all."""

    base: Path
    """What the journal's name begins with."""
    suffix: Literal[".journal", ".clips.jsonl"]
    folder: Path
    """What is made lies there."""
    what: Literal["frames", "clips"]
    command: Literal["extract", "clips"]
    plan: Mapping[str, Any]
    """The settings."""
    key: Literal["folder", "clip"]
    """What an entry calls the key of its row."""
    rows: Sequence[tuple[str, str]]
    """Key and id of each row of the split, in order; keys differ."""
    task: ArrayTask | None
    skips_facts: bool = False
    """They are the last of an entry, and long: of a hundred thousand videos parsing them takes minutes."""

    @property
    def path(self) -> Path:
        """The journal of all."""
        return self.base.with_name(self.base.name + self.suffix)

    @property
    def own_path(self) -> Path:
        """The journal that this run appends to."""
        if self.task is None:
            return self.path
        return self.base.with_name(f"{self.base.name}.{self.task.number}-of-{self.task.count}{self.suffix}")

    @property
    def lock_file(self) -> Path:
        """Each row is a byte of it, which the process at work on the row holds."""
        return self.base.with_name(self.base.name + {".journal": ".lock", ".clips.jsonl": ".clips.lock"}[self.suffix])

    @property
    def part(self) -> range:
        """Positions of the rows that this run looks at."""
        return range(len(self.rows)) if self.task is None else self.task.part_of(len(self.rows))

    @property
    def samples(self) -> str:
        """The line that says which rows this run looks at."""
        return samples_line(self.rows[self.part.start : self.part.stop])

    @cached_property
    def rows_sha256(self) -> str:
        """Equal for equal rows of the split in the same order."""
        return samples_sha256(self.rows)

    def begin(self) -> None:
        """Write the settings where there is no journal yet."""
        self._begin(self.path)
        with writing(self.lock_file):
            self.lock_file.touch()

    def _begin(self, path: Path) -> None:
        if not path.exists():
            with publish(path) as stream:
                stream.write((json.dumps(self.plan) + "\n").encode())

    @contextmanager
    def hold_part(self) -> Iterator[JournalState]:
        """Hold the rows of this run; what is known of them, and where this run appends.

        Raises:
            Held: another process is at work on some of them.
            UsageError: not a journal, or one of other settings.
        """
        # A task that is just finishing for all holds all rows, for a moment.
        patience = 0.0 if self.task is None else FINISH_PATIENCE_SECONDS
        purpose = f"vidprep {self.command}" + (f" --task {self.task}" if self.task is not None else "")
        with hold(self.lock_file, self.part, purpose=purpose, patience_seconds=patience):
            if self.task is None:
                with self.path.open("rb") as lines:
                    self._check_settings(lines.readline(), self.path)
                self._absorb_tasks()
                yield self._scan(self.path)
            else:
                known = self._scan(self.path).known
                self._begin(self.own_path)
                state = self._scan(self.own_path)
                state.known = known | state.known
                yield state

    @contextmanager
    def hold_all(self) -> Iterator[JournalState]:
        """Hold all rows, when the own part is done, to see what tasks have left, and to finish for all.

        Raises:
            Held: another task is at work.
        """
        with hold(self.lock_file, range(len(self.rows)), purpose=f"vidprep {self.command}"):
            self._absorb_tasks()
            yield self._scan(self.path)

    def num_missing(self, state: JournalState) -> int:
        """Rows that nobody has looked at yet."""
        return sum(key not in state.known for key, _ in self.rows)

    def entries(
        self, state: JournalState, keys: Sequence[str]
    ) -> Generator[tuple[str, Known, dict[str, Any]], None, None]:
        """The entry of each row that is known, one at a time."""
        with ExitStack() as opened:
            streams: dict[Path, IO[bytes]] = {}
            for key in keys:
                known = state.known.get(key)
                if known is None:
                    continue
                if known.journal not in streams:
                    streams[known.journal] = opened.enter_context(known.journal.open("rb"))
                streams[known.journal].seek(known.place)
                yield key, known, json.loads(streams[known.journal].readline())

    def faults(self, state: JournalState) -> tuple[Fault, ...]:
        """Those of this run's rows that are faults, in order."""
        rows = {key: sample for key, sample in self.rows[self.part.start : self.part.stop] if _is_fault(state, key)}
        return tuple(
            Fault(video_id=rows[key], reason=entry["reason"], path=entry["path"], kind=known.kind)
            for key, known, entry in self.entries(state, list(rows))
        )

    def mark(self, state: JournalState, what: Mapping[str, Any]) -> None:
        """Note that a run came to its end, and what it left behind."""
        line = (json.dumps({"index": what}) + "\n").encode()
        with writing(state.path), state.path.open("ab") as stream:
            stream.write(line)
            stream.flush()
            os.fsync(stream.fileno())
        state.mark, state.mark_place, state.end = what, state.end, state.end + len(line)
        state.mark_end = state.end

    def _scan(self, path: Path) -> JournalState:
        state = JournalState(path=path, known={}, end=0)
        with path.open("rb") as lines:
            first = lines.readline()
            self._check_settings(first, path)
            state.end = len(first)
            for line in lines:
                self._read_line(line, state)
                state.end += len(line)
        return state

    def _check_settings(self, line: bytes, path: Path) -> None:
        try:
            before = json.loads(line) if line else {}
        except ValueError as error:
            raise UsageError(
                f"{path}: not a journal of `vidprep {self.command}`; move it away or give another --out."
            ) from error
        if found := differences(before, self.plan):
            raise UsageError(f"{self.folder}: holds {self.what} of other settings ({found}); give another --out.")

    def _read_line(self, line: bytes, state: JournalState) -> None:
        """Take in a line that begins where the state ends; one that was not written out, or says else, does nothing."""
        if not line.endswith(b"}\n") or line.startswith(b'{"samples_sha256"'):
            return
        facts_at = line.find(FACTS) if self.skips_facts else -1
        try:
            entry = json.loads(line if facts_at < 0 else line[:facts_at] + b"}")
        except ValueError:
            return
        if "index" in entry:
            state.mark, state.mark_place, state.mark_end = entry["index"], state.end, state.end + len(line)
        key = entry.get(self.key)
        if key is None:
            return
        state.known[key] = Known(
            journal=state.path,
            place=state.end,
            is_done=facts_at >= 0 or "facts" in entry,
            kind=entry.get("kind", "other"),
            source=entry.get("source"),
            num_attempts=entry.get("attempts", 1),
            num_bytes=entry.get("facts", {}).get("num_bytes"),
        )

    def _absorb_tasks(self) -> None:
        """Append to the journal of all what tasks noted in their own, and remove these. No task is at work."""
        name = re.compile(rf"{re.escape(self.base.name)}\.\d+-of-\d+{re.escape(self.suffix)}")
        found = sorted(path for path in self.base.parent.iterdir() if name.fullmatch(path.name))
        if not found:
            return
        with writing(self.path), self.path.open("a+b") as target:
            if not ends_in_newline(self.path):
                target.write(b"\n")
            target.write(samples_line(self.rows).encode())
            for path in found:
                with path.open("rb") as lines:
                    lines.readline()  # its settings, which are the journal's
                    for line in lines:
                        if b'"samples_sha256"' not in line[:20]:
                            target.write(line if line.endswith(b"\n") else line + b"\n")
            target.flush()
            os.fsync(target.fileno())
            for path in found:
                path.unlink()


FACTS = b', "facts": '


def _is_fault(state: JournalState, key: str) -> bool:
    known = state.known.get(key)
    return known is not None and not known.is_done


# The work


@dataclass(frozen=True, kw_only=True)
class Group:
    """Rows of a split that come from one file: a video, or some segments of a long one."""

    videos: tuple[Video, ...]
    path: Path | None


def by_file(rows: Sequence[tuple[Video, Path | None]]) -> list[Group]:
    """Neighbours of the same file together, in order."""
    groups: list[Group] = []
    for video, path in rows:
        last = groups[-1] if groups else None
        if last is not None and path is not None and last.path == path and len(last.videos) < VIDEOS_PER_GROUP:
            groups[-1] = replace(last, videos=(*last.videos, video))
        else:
            groups.append(Group(videos=(video,), path=path))
    return groups


def note_all(
    groups: Sequence[Group],
    journal: Journal,
    state: JournalState,
    engine: Callable[[Sequence[Group]], Outcomes[Group, list[dict[str, Any]]]],
    *,
    key_of: Callable[[Video], str],
) -> int:
    """Do the work on each group and note what becomes of its rows; how many were made.

    Of a group that ends its process, the row that was at work when it did (`workers.begin_part`, by its folder's name)
    becomes a fault; the others are done again without it, or each alone where it is not known.

    Args:
        groups: a row without a file becomes a fault without further ado.
        journal: says where.
        state: what is known of the rows; is kept up to date.
        engine: does the work; a group's result are the entries of its rows, without attempts and time.
        key_of: the key of a row.
    """
    num_new = 0
    with writing(state.path), state.path.open("ab") as stream:
        state.end = stream.tell()

        def append(line: bytes) -> None:
            stream.write(line)
            journal._read_line(line, state)
            state.end += len(line)

        def note(entries: Sequence[dict[str, Any]], *, seconds: float | None = None, num_attempts: int = 1) -> None:
            for entry in entries:
                before = state.known.get(entry[journal.key])
                entry.setdefault("seconds", None if seconds is None else round(seconds, 3))
                entry["attempts"] = num_attempts + (before.num_attempts if before is not None else 0)
                entry["when"] = now()
                # The facts last: see `Journal.skips_facts`.
                append((json.dumps(dict(sorted(entry.items(), key=lambda item: item[0] == "facts"))) + "\n").encode())
            stream.flush()

        if not ends_in_newline(state.path):
            append(b"\n")  # ends the line that a killed run was writing
        if groups:
            append(journal.samples.encode())
        stream.flush()
        missing = MissingVideo("no file found for it")
        note(
            [
                fault_entry(journal.key, key_of(video), None, missing)
                for group in groups
                if group.path is None
                for video in group.videos
            ]
        )
        waiting = [group for group in groups if group.path is not None]
        while waiting:
            lost: list[Group] = []
            with closing(engine(waiting)) as outcomes:
                for outcome in outcomes:
                    group, error = outcome.unit, outcome.error
                    failed = group.videos
                    if isinstance(error, WorkerDied) and len(group.videos) > 1:
                        failed = tuple(video for video in group.videos if folder_name(video) == error.part)
                        rest = [video for video in group.videos if video not in failed]
                        apart = [tuple(rest)] if failed else [(video,) for video in rest]
                        lost += [replace(group, videos=videos) for videos in apart]
                    entries = outcome.result or [
                        fault_entry(journal.key, key_of(video), group.path, error) for video in failed
                    ]
                    note(entries, seconds=outcome.seconds, num_attempts=outcome.num_attempts)
                    num_new += sum("facts" in entry for entry in entries)
            waiting = lost
    return num_new


def fault_entry(key_name: str, key: str, path: Path | None, error: Exception | None) -> dict[str, Any]:
    """The entry of a row of which nothing was made, and why."""
    text = str(error).removeprefix(f"{path}: ").removeprefix(f"{path}/").rstrip(".")  # the path has its own column
    return {
        key_name: key,
        "kind": "other" if error is None else kind_of(error),
        "reason": text if isinstance(error, VidprepError) else f"{type(error).__name__}: {text}",
        "path": str(path or ""),
        "source": media_state(path),
    }
