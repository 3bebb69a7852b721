"""Shards that lie behind a URL: fetched whole into a bounded cache on this machine, verified, and read from there.

    CACHE/3f6c01d2/val.json                      manifest and table, fetched when the data set is opened
    CACHE/3f6c01d2/91ab44e0-val-000003.tar       a shard, named after its checksum: complete and verified
    CACHE/3f6c01d2/91ab44e0-val-000003.tar.part  what is there of one that is being fetched, or was when it broke off
    CACHE/3f6c01d2/91ab44e0-val-000003.tar.lock  held by the process that fetches it

Processes may share a cache: of several that want a shard one fetches it, the others wait. What broke off goes on where
it stopped. A shard takes its name when its length and its SHA-256 are those of the manifest, and not before. When the
cache outgrows its bound, the shards that were not read for longest go first.
"""

import fcntl
import hashlib
import logging
import os
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

from vidprep.errors import ChecksumMismatch, CorruptShard, MissingPackage, UsageError
from vidprep.index import ShardFacts

__all__ = ["ShardCache", "default_cache", "is_url"]

logger = logging.getLogger(__name__)

CHUNK_BYTES = 8 * 1024**2
ATTEMPTS = 4
"""Times that a broken connection is taken up again, before a fetch is given up."""
TOUCH_SECONDS = 10.0
"""How exactly the cache knows when a shard was last read."""


def is_url(folder: Path | str) -> bool:
    """Whether a folder of shards is told by its URL: s3://, https://, file://, memory:// ..."""
    return isinstance(folder, str) and "://" in folder


def default_cache() -> Path:
    """VIDPREP_CACHE, or ~/.cache/vidprep."""
    return Path(os.environ.get("VIDPREP_CACHE") or Path.home() / ".cache" / "vidprep") / "shards"


class ShardCache:
    """The shards of one URL, as files of this machine.

    Args:
        url: of the folder that `vidprep shard --out` wrote.
        root: where shards are kept, of all URLs; None: `default_cache()`.
        max_bytes: of all complete shards in `root` together; the one that is being read is kept in any case.
        storage_options: for fsspec: keys, endpoint and the like.

    Raises:
        MissingPackage: fsspec is not installed, or what it needs for this kind of URL.
        UsageError: a URL of an unknown kind, or a bound below 1.
    """

    def __init__(
        self,
        url: str,
        *,
        root: Path | None = None,
        max_bytes: int = 100 * 1024**3,
        storage_options: Mapping[str, Any] | None = None,
    ) -> None:
        if max_bytes < 1:
            raise UsageError(f"the cache needs a bound of at least 1 byte, got {max_bytes}.")
        self.url = url.rstrip("/")
        self.root = (root or default_cache()).absolute()
        self.folder = self.root / hashlib.sha256(self.url.encode()).hexdigest()[:16]
        self.max_bytes = max_bytes
        self._options = dict(storage_options or {})
        self._shards: dict[str, ShardFacts] = {}
        self._touched: dict[str, float] = {}
        self._ahead: _ReadAhead | None = None
        self._remote()
        self.folder.mkdir(parents=True, exist_ok=True)

    def fetch_index(self, split: str) -> None:
        """Manifest and table of a split, anew: they are small, and say which shards there are.

        Raises:
            UsageError: the URL holds no such split.
        """
        for name in (f"{split}.parquet", f"{split}.json"):
            filesystem, path = self._remote()
            try:
                data = filesystem.cat_file(f"{path}/{name}")
            except FileNotFoundError as error:
                raise UsageError(f"{self.url}: no {name} here; is the split {split!r} finished?") from error
            except Exception as error:
                raise CorruptShard(f"{self.url}/{name}: cannot be fetched ({_reason(error)}).") from error
            part = self.folder / f"{name}.{os.getpid()}.{threading.get_ident()}.part"
            part.write_bytes(data)
            part.replace(self.folder / name)

    def list_splits(self) -> list[str]:
        """Names of the splits whose manifests lie at the URL."""
        filesystem, path = self._remote()
        try:
            names = {Path(entry).name for entry in filesystem.ls(path, detail=False)}
        except Exception as error:
            raise UsageError(
                f"{self.url}: cannot be listed ({_reason(error)}); name the split, if there is one."
            ) from error
        return sorted(name[:-5] for name in names if name.endswith(".json") and f"{name[:-5]}.parquet" in names)

    def use(self, shards: Sequence[ShardFacts]) -> None:
        """Know the shards by what their manifest says."""
        self._shards = {shard.name: shard for shard in shards}

    def open(self, name: str) -> int:
        """A descriptor of a complete shard, fetched first where it is not there; the caller closes it.

        Raises:
            CorruptShard: it cannot be fetched.
            ChecksumMismatch: what was fetched is not what the manifest says.
        """
        if self._ahead is not None:
            self._ahead.reached(name)
        path = self._path(name)
        while True:
            try:
                descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError:
                self.fetch(name)  # another process may drop it again before it is opened here
                continue
            now = time.monotonic()
            if now - self._touched.get(name, -TOUCH_SECONDS) >= TOUCH_SECONDS:
                self._touched[name] = now
                os.utime(descriptor)
            return descriptor

    def fetch(self, name: str) -> None:
        """Have a shard in the cache; nothing happens where it is there."""
        path, facts = self._path(name), self._shards[name]
        with _locked(path.with_name(f"{path.name}.lock")):
            if path.exists():
                return
            part = path.with_name(f"{path.name}.part")
            self._download(name, part, facts.num_bytes)
            with part.open("rb") as stream:
                found = hashlib.file_digest(stream, "sha256").hexdigest()
            if found != facts.sha256:
                part.unlink()
                raise ChecksumMismatch(
                    f"{self.url}/{name}: SHA-256 {found[:12]}..., its manifest says {facts.sha256[:12]}...; "
                    "what was fetched is deleted. Fetch again, or write the shards again."
                )
            part.replace(path)
        self._evict(keep=path)

    def read_ahead(self, names: Sequence[str], *, num_shards: int) -> None:
        """Fetch shards in the order in which they will be read, so many before they are, in a thread of its own."""
        if self._ahead is not None:
            self._ahead.stop()
        self._ahead = _ReadAhead(self, names, num_shards=num_shards)

    def close(self) -> None:
        """Stop reading ahead."""
        if self._ahead is not None:
            self._ahead.stop()
            self._ahead = None

    def _path(self, name: str) -> Path:
        return self.folder / f"{self._shards[name].sha256[:16]}-{name}"

    def _download(self, name: str, part: Path, num_bytes: int) -> None:
        """Bring `part` to its full length, from where it is."""
        filesystem, root = self._remote()
        options: dict[str, Any] = {}
        if part.exists() and part.stat().st_size > num_bytes:
            part.unlink()
        for attempt in range(1, ATTEMPTS + 1):
            try:
                with part.open("ab") as target, filesystem.open(f"{root}/{name}", "rb", **options) as source:
                    source.seek(target.tell())
                    while target.tell() < num_bytes:
                        data = source.read(min(CHUNK_BYTES, num_bytes - target.tell()))
                        if not data:
                            break
                        target.write(data)
                    reached = target.tell()
            except Exception as error:
                if isinstance(error, ValueError) and not options and self.url.startswith("http"):
                    # A server that sends whole files only: from the start, as a stream.
                    part.unlink()
                    options = {"block_size": 0}
                    continue
                if attempt == ATTEMPTS or isinstance(error, FileNotFoundError | PermissionError):
                    raise CorruptShard(
                        f"{self.url}/{name}: cannot be fetched ({_reason(error)}); "
                        f"{part.stat().st_size if part.exists() else 0} of {num_bytes} bytes are kept, run again."
                    ) from error
                logger.warning("%s/%s: %s; going on after a pause", self.url, name, _reason(error))
                time.sleep(0.2 * 2**attempt)
                continue
            if reached < num_bytes:
                part.unlink()
                raise CorruptShard(
                    f"{self.url}/{name}: ends after {reached} bytes, its manifest says {num_bytes}; "
                    "upload the shard again."
                )
            return

    def _evict(self, *, keep: Path) -> None:
        """Drop the shards that were not read for longest, until the cache is within its bound."""
        with _locked(self.root / "evict.lock"):
            shards = []
            for path in self.root.glob("*/*.tar"):
                try:
                    facts = path.stat()
                except FileNotFoundError:
                    continue
                shards.append((facts.st_mtime_ns, facts.st_size, path))
            total = sum(size for _, size, _ in shards)
            for _, size, path in sorted(shards):
                if total <= self.max_bytes:
                    return
                if path != keep:
                    # A process that has it open reads on.
                    path.unlink(missing_ok=True)
                    total -= size

    def _remote(self) -> tuple[Any, str]:
        try:
            fsspec: Any = import_module("fsspec")
        except ImportError as error:
            raise MissingPackage("Shards at a URL need the `remote` extra: pip install 'vidprep[remote]'.") from error
        try:
            # fsspec keeps one instance a process and a set of options.
            filesystem, path = fsspec.core.url_to_fs(self.url, **self._options)
        except ImportError as error:
            raise MissingPackage(f"{self.url}: {error}. pip install 'vidprep[remote]'.") from error
        except ValueError as error:
            raise UsageError(f"{self.url}: {error}; fsspec knows no such kind of URL.") from error
        return filesystem, str(path).rstrip("/")

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_ahead": None}


class _ReadAhead:
    """A thread that fetches the shards which come next; it never is further ahead than it was told."""

    def __init__(self, cache: ShardCache, names: Sequence[str], *, num_shards: int) -> None:
        self._cache = cache
        self._names = list(names)
        self._places = {name: place for place, name in enumerate(self._names)}
        self._num_shards = num_shards
        self._reached = 0
        self._is_stopped = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="vidprep-read-ahead", daemon=True)
        self._thread.start()

    def reached(self, name: str) -> None:
        """A shard is being read."""
        place = self._places.get(name, 0)
        if place > self._reached:
            with self._changed:
                self._reached = max(self._reached, place)
                self._changed.notify()

    def stop(self) -> None:
        """End after the shard that is being fetched."""
        with self._changed:
            self._is_stopped = True
            self._changed.notify()

    def _run(self) -> None:
        for place, name in enumerate(self._names):
            with self._changed:
                while not self._is_stopped and place > self._reached + self._num_shards:
                    self._changed.wait()
                if self._is_stopped:
                    return
            try:
                self._cache.fetch(name)
            except (CorruptShard, ChecksumMismatch) as error:
                # Whoever reads the shard fetches it again, and is told.
                logger.warning("reading ahead: %s", error)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Alone with this file, among threads and processes; a process that ends lets go of it."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _reason(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".rstrip(". ")
