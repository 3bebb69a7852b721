"""The ledger of a run: each sample with its state, the reason, the attempts, the seconds it took, and when.

    shards    OUT/val.ledger.jsonl     (of an array task: OUT/val.2-of-3.ledger.jsonl)
    frames    OUT.journal              (of an array task: OUT.2-of-3.journal, while others are at work)
    clips     OUT/val.clips.jsonl

JSON lines that are only ever appended to; the last line of a sample counts. A killed run loses at most the line that
it was writing. The first lines say which samples there are, so what has no line yet is pending.

What is in a shard, and what is not and why, its sidecar decides; the ledger adds what a sidecar cannot know: attempts,
times, and the samples that ended their process before there was a sidecar. For extracted frames the journal is both.
"""

import csv
import hashlib
import io
import json
import re
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Literal, Self, get_args

from vidprep.engine import writing
from vidprep.errors import FaultKind, UsageError, VidprepError, suggest
from vidprep.store import Location, local_or_url, open_store

__all__ = [
    "LEDGER_SUFFIX",
    "Entry",
    "Ledger",
    "LedgerReport",
    "State",
    "check_retry",
    "ends_in_newline",
    "entries_to_csv",
    "ledger_paths",
    "missing_tasks",
    "now",
    "open_ledgers",
    "read_ledger",
    "samples_line",
    "samples_sha256",
]

State = Literal["done", "failed", "pending"]
KINDS: tuple[FaultKind, ...] = get_args(FaultKind)
LEDGER_SUFFIX = ".ledger.jsonl"
CLIPS_SUFFIX = ".clips.jsonl"


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """What is known of one sample."""

    key: str
    """What tells it from all others: its position in the split, or the folder of its frames."""
    sample: str
    """Its id."""
    state: State
    kind: str = ""
    """Of a failed one: one of `errors.FaultKind`."""
    reason: str = ""
    path: str = ""
    source: list[int] | None = None
    """State of its file when it was tried: a failed one is tried again when this changes."""
    attempts: int = 0
    seconds: float | None = None
    """That the last attempt took; None where it was not measured."""
    when: str = ""
    """Of the last attempt, UTC, ISO 8601."""


def now() -> str:
    """The time of an entry."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def check_retry(names: Iterable[str]) -> frozenset[FaultKind]:
    """The kinds of faults that `--retry` asks for; "failed" is all of them.

    Raises:
        UsageError: no such kind.
    """
    kinds: set[FaultKind] = set()
    for name in names:
        if name == "failed":
            kinds.update(KINDS)
        elif name in KINDS:
            kinds.add(name)
        else:
            raise UsageError(f"--retry: no reason is called {name!r}; {suggest(name, ['failed', *KINDS])}")
    return frozenset(kinds)


def samples_line(keys_and_samples: Sequence[tuple[str, str]]) -> str:
    """The line that says which samples there are; equal for equal samples."""
    digest = samples_sha256(keys_and_samples)
    text = _samples_text(keys_and_samples)
    return f'{{"samples_sha256": "{digest}", "num_samples": {len(keys_and_samples)}, "samples": {text}}}\n'


def samples_sha256(keys_and_samples: Sequence[tuple[str, str]]) -> str:
    """A digest that is equal for equal samples in the same order."""
    return hashlib.sha256(_samples_text(keys_and_samples).encode()).hexdigest()


def _samples_text(keys_and_samples: Sequence[tuple[str, str]]) -> str:
    return json.dumps(keys_and_samples, ensure_ascii=False, separators=(",", ":"))


class Ledger:
    """A ledger that a run writes."""

    def __init__(self, path: Path, samples: Sequence[tuple[str, str]]) -> None:
        """Open it, or begin it; `samples` are (key, id) of all that there are."""
        self.path = path
        self.attempts: dict[str, int] = {}
        """Key -> how often it was tried, for those that have a line."""
        self.deaths: dict[str, Entry] = {}
        """Key -> entry of those whose last attempt ended its process."""
        line = samples_line(samples)
        is_known = False
        if path.is_file():
            with path.open(encoding="utf-8", errors="replace") as lines:
                for found in lines:
                    if found.startswith(SAMPLES_LINE):
                        is_known = found == line
                    elif (raw := _parse_raw(found)) is not None:
                        key = _key_of(raw)
                        self.attempts[key] = raw.get("attempts", 1)
                        self.deaths.pop(key, None)
                        if raw.get("kind") in ("crashed", "out_of_memory", "hung"):
                            self.deaths[key] = _to_entry(raw)
        with writing(path):
            self._stream: IO[str] = path.open("a", encoding="utf-8")
            if not ends_in_newline(path):
                self._stream.write("\n")  # ends the line that a killed run was writing
            if not is_known:
                self._stream.write(line)
            self._stream.flush()

    def add(self, entries: Iterable[Entry]) -> None:
        """Append what became of some samples; `attempts` are those of this run, and are added to those of before."""
        lines = []
        for entry in entries:
            self.attempts[entry.key] = attempts = self.attempts.get(entry.key, 0) + entry.attempts
            lines.append(json.dumps({**asdict(entry), "attempts": attempts}, ensure_ascii=False) + "\n")
        with writing(self.path):
            self._stream.write("".join(lines))
            self._stream.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with writing(self.path):
            self._stream.close()


def ends_in_newline(path: Path) -> bool:
    """Whether nothing was cut off at the end of a file of lines; also of an empty one."""
    with path.open("rb") as stream:
        if stream.seek(0, io.SEEK_END) == 0:
            return True
        stream.seek(-1, io.SEEK_END)
        return stream.read(1) == b"\n"


def ledger_paths(folder: Path, split: str | None = None) -> dict[str, list[Path]]:
    """Split -> the ledgers that runs left in, or beside, a folder of shards, clips or frames.

    Raises:
        UsageError: no such folder, no ledger, no such split.
    """
    folder = folder.absolute()
    journal = folder.with_name(f"{folder.name}.journal")
    if journal.is_file():
        return {folder.name: [journal, *sorted(folder.parent.glob(f"{folder.name}.*-of-*.journal"))]}
    if not folder.is_dir():
        raise UsageError(f"{folder}: no such folder; give what `vidprep shard` or `vidprep extract` wrote.")
    found: dict[str, list[Path]] = {}
    for path in sorted([*folder.glob(f"*{LEDGER_SUFFIX}"), *folder.glob(f"*{CLIPS_SUFFIX}")]):
        found.setdefault(path.name.partition(".")[0], []).append(path)
    if not found:
        raise UsageError(
            f"{folder}: no ledger here (no SPLIT{LEDGER_SUFFIX}, no {journal.name} beside it); see docs/ledger.md."
        )
    if split is not None:
        if split not in found:
            raise UsageError(f"{folder}: no ledger of {split!r}; {suggest(split, found)}")
        found = {split: found[split]}
    return found


@contextmanager
def open_ledgers(location: Location, split: str | None = None) -> Iterator[dict[str, list[Path]]]:
    """As `ledger_paths`, also of an object store: then the ledgers lie in a temporary folder inside of the block.

    Raises:
        UsageError: no such folder, no ledger, no such split.
        StoreUnreachable: the store does not answer.
    """
    place = local_or_url(location)
    if isinstance(place, Path):
        yield ledger_paths(place, split)
        return
    store = open_store(place)
    names = store.sizes()
    found = [name for name in names if name.endswith((LEDGER_SUFFIX, CLIPS_SUFFIX))]
    if not found:
        raise UsageError(
            f"{place}: no ledger here (no SPLIT{LEDGER_SUFFIX}); give the URL that `vidprep shard --out` named, "
            "when its run has ended."
        )
    with tempfile.TemporaryDirectory(prefix="vidprep-") as scratch:
        folder = Path(scratch)
        for name in found:
            (folder / name).write_bytes(store.read(name))
            manifest = f"{name.partition('.')[0]}.json"  # `missing_tasks` looks whether it is there
            if manifest in names:
                (folder / manifest).touch()
        try:
            yield ledger_paths(folder, split)
        except VidprepError as error:
            raise type(error)(str(error).replace(str(folder), place)) from error


def missing_tasks(paths: Sequence[Path]) -> str:
    """In words, the tasks of a job array that have noted nothing yet; empty where all have, or one run did all."""
    found = [re.search(r"\.(\d+)-of-(\d+)\.", path.name) for path in paths]
    tasks = {(int(task[1]), int(task[2])) for task in found if task is not None}
    if not tasks or any(_names_samples(path) for path, task in zip(paths, found, strict=True) if task is None):
        return ""  # the ledger of one run names all samples
    if paths[0].with_name(f"{paths[0].name.partition('.')[0]}.json").exists():
        return ""  # all shards are finished, by tasks of whatever number
    missing = [
        f"{number}/{count}"
        for count in sorted({count for _, count in tasks})
        for number in range(1, count + 1)
        if (number, count) not in tasks
    ]
    more = f" and {len(missing) - MAX_NAMED} more" if len(missing) > MAX_NAMED else ""
    return f"{', '.join(missing[:MAX_NAMED])}{more}"


def _names_samples(journal: Path) -> bool:
    """Whether a run without tasks began it, or took in what all tasks noted; else there are but the settings."""
    with journal.open("rb") as lines:
        lines.readline()
        return bool(lines.readline())


MAX_NAMED = 8
"""Tasks that are named one by one."""


def read_ledger(paths: Sequence[Path]) -> Iterator[Entry]:
    """Every sample once, in the order of the split, the pending ones included.

    Args:
        paths: the ledgers of one split; of several array tasks the latest line of a sample counts.

    Raises:
        VidprepError: not a ledger.
    """
    samples: dict[str, str] = {}
    last: dict[str, tuple[str, Path, int]] = {}
    """Key -> (when, file, place) of its latest line: the lines themselves would not fit into memory."""
    for path in paths:
        place, of_file = 0, dict[str, str]()
        with path.open("rb") as lines:
            for encoded in lines:
                line = encoded.decode("utf-8", errors="replace")
                if line.startswith(SAMPLES_LINE):
                    of_file = dict(json.loads(line)["samples"])
                elif (raw := _parse_raw(line)) is not None:
                    key, when = _key_of(raw), raw.get("when", "")
                    if when >= last.get(key, ("",))[0]:
                        last[key] = (when, path, place)
                place += len(encoded)
        samples |= of_file
    if len(paths) > 1:
        samples = dict(sorted(samples.items()))  # of tasks, whose keys are positions in the split
    if not samples:
        raise VidprepError(f"{paths[0]}: does not say which samples there are; run the same command again.")
    streams = {path: path.open("rb") for path in paths}
    try:
        for key, sample in samples.items():
            if key not in last:
                yield Entry(key=key, sample=sample, state="pending")
                continue
            _, path, place = last[key]
            streams[path].seek(place)
            found = _parse_raw(streams[path].readline().decode("utf-8", errors="replace"))
            if found is not None:
                yield replace(_to_entry(found), sample=sample)
    finally:
        for stream in streams.values():
            stream.close()


SAMPLES_LINE = '{"samples_sha256"'
"""How the line begins that says which samples there are."""


def _parse_raw(line: str) -> dict[str, Any] | None:
    """What a line says of a sample; None for other lines: settings, samples, what a killed run was writing."""
    if line.startswith(SAMPLES_LINE):
        return None
    try:
        raw = json.loads(line)
    except ValueError:
        return None
    return raw if isinstance(raw, dict) and _key_of(raw) is not None else None


def _key_of(raw: Mapping[str, Any]) -> Any:
    return raw.get("key", raw.get("folder", raw.get("clip")))


def _to_entry(raw: Mapping[str, Any]) -> Entry:
    state: State = "done" if "facts" in raw else raw.get("state", "failed")
    return Entry(
        key=_key_of(raw),
        sample=raw.get("sample", _key_of(raw)),
        state=state,
        kind=raw.get("kind", "" if state == "done" else "other"),
        reason=raw.get("reason", ""),
        path=raw.get("path", ""),
        source=raw.get("source"),
        attempts=raw.get("attempts", 1),
        seconds=raw.get("seconds"),
        when=raw.get("when", ""),
    )


@dataclass(kw_only=True)
class LedgerReport:
    """What the samples of a split have come to."""

    split: str
    states: Counter[State] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)
    """Of the failed ones."""
    examples: dict[str, str] = field(default_factory=dict)
    """Kind -> "id: reason" of the first one."""
    num_attempts: int = 0
    seconds: float = 0.0
    """Over all samples, of their last attempts."""

    def count(self, entry: Entry) -> None:
        """Add a sample."""
        self.states[entry.state] += 1
        self.num_attempts += entry.attempts
        self.seconds += entry.seconds or 0.0
        if entry.state == "failed":
            self.kinds[entry.kind] += 1
            self.examples.setdefault(entry.kind, f"{entry.sample}: {entry.reason}")

    def to_text(self) -> str:
        """A table: samples per state, then per reason."""
        total = self.states.total()
        lines = [f"{self.split}: {total} samples, {self.num_attempts} attempts, {self.seconds:.0f} s of work"]
        for state in get_args(State):
            lines.append(f"  {state:<14}{self.states[state]:>9}")
            if state == "failed":
                for kind, count in sorted(self.kinds.items(), key=lambda item: (-item[1], item[0])):
                    lines.append(f"    {kind:<12}{count:>9}   {self.examples[kind]}")
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """The same, to be read by programs."""
        return {
            "split": self.split,
            "states": {state: self.states[state] for state in get_args(State)},
            "kinds": dict(self.kinds),
            "num_attempts": self.num_attempts,
            "seconds": round(self.seconds, 3),
        }


def entries_to_csv(entries: Iterable[Entry], stream: IO[bytes]) -> None:
    """Write entries as a table to open in any program."""
    names = ("key", "sample", "state", "kind", "reason", "path", "attempts", "seconds", "when")
    text = io.TextIOWrapper(stream, encoding="utf-8", newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(names)
    for entry in entries:
        writer.writerow(getattr(entry, name) for name in names)
    text.detach()  # flushes, and leaves the stream open
