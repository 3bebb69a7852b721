"""A flat folder of files, on a disk or in an object store: s3://, gs://, memory:// and whatever else fsspec knows.

A file appears whole or not at all. On a disk it is written beside its place and renamed; for a store it is written to
a temporary folder of this machine, put there once, and looked up: a store shows an object when it has all of it.
"""

# ruff: noqa: D102 - what the methods of a store do is said once, where they are abstract
import errno
import hashlib
import os
import re
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any
from urllib.parse import unquote, urlsplit

from vidprep.engine import CannotWrite, publish, unique_name, writing
from vidprep.errors import MissingPackage, UsageError, VidprepError

__all__ = [
    "DiskStore",
    "Location",
    "ObjectStore",
    "Store",
    "StoreUnreachable",
    "is_url",
    "local_or_url",
    "open_store",
    "placeholders",
    "read_url",
    "url_sizes",
    "url_state",
]

Location = Path | str
"""A path, or the text of a path or of a URL."""

SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
EXTRAS = {"s3": "remote", "s3a": "remote", "gs": "gcs", "gcs": "gcs"}
"""Scheme -> the extra of ours that brings its driver."""
HEAD_BYTES = 1 << 16
"""Of a file whose first line is wanted; the first line of most sidecars is far shorter."""
NUM_HEADS = 64
"""Heads that are asked for at the same time."""


class StoreUnreachable(VidprepError):
    """An object store does not answer, or refuses; ends a run, since no other file would fare better."""


def is_url(location: Location) -> bool:
    """Whether it is text that names a place in an object store; "file://" is a place on a disk."""
    found = SCHEME.match(location) if isinstance(location, str) else None
    return found is not None and found[1].lower() != "file"


def local_or_url(location: Location) -> Location:
    """A path as a `Path`, a URL as text without its last "/"; "file:///a/b" is the path /a/b.

    Raises:
        UsageError: a `Path` made from a URL, which has lost one of its slashes.
    """
    text = str(location)
    if isinstance(location, Path):
        if found := re.match(r"([a-z][a-z0-9]+):/(?=[^/])", text):
            raise UsageError(f"{text}: give URLs as text, Path() makes {found[1]}:// into {found[1]}:/.")
        return location
    if is_url(text):
        return text.rstrip("/")
    if SCHEME.match(text):
        return Path(unquote(urlsplit(text).path))
    return Path(text)


class Store(ABC):
    """A flat folder of files."""

    @property
    @abstractmethod
    def location(self) -> Location:
        """The path, or the URL."""

    @abstractmethod
    def exists(self) -> bool:
        """Whether there is such a folder; in an object store: whether it holds anything."""

    @abstractmethod
    def make(self) -> None:
        """Create the folder where folders are created."""

    @abstractmethod
    def sizes(self) -> dict[str, int]:
        """Name -> bytes of each file; what is half-written is not among them."""

    @abstractmethod
    def open(self, name: str) -> IO[bytes]:
        """A file to read.

        Raises:
            FileNotFoundError: there is none.
        """

    @abstractmethod
    def heads(self, names: Sequence[str]) -> dict[str, bytes]:
        """Name -> first line of each file; without those that are missing."""

    @abstractmethod
    def publish(self, name: str) -> AbstractContextManager[IO[bytes]]:
        """A file to write, that appears when the block ends, whole or not at all.

        Raises:
            CannotWrite: no space, no permission, no connection.
        """

    def create(self, name: str, content: bytes) -> None:
        """Write a file where there is none; one that is there stays as it is.

        Raises:
            CannotWrite: no space, no permission, no connection.
        """
        if name not in self.sizes():
            with self.publish(name) as stream:
                stream.write(content)

    @abstractmethod
    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""

    @abstractmethod
    def move(self, name: str, *, to: str) -> None:
        """Give a file another name, which may lie in a folder below."""

    @abstractmethod
    def sweep(self, names: Collection[str]) -> None:
        """Remove what killed runs left half-written of the files of these names."""

    @abstractmethod
    def lock_file(self, name: str) -> Path:
        """A file on this machine, or on a disk that it shares, to hold for a run that writes the file `name`."""

    def read(self, name: str) -> bytes:
        """A file's content.

        Raises:
            FileNotFoundError: there is none.
        """
        with self.open(name) as stream:
            return stream.read()

    def __str__(self) -> str:
        return str(self.location)


def open_store(location: "Location | Store") -> Store:
    """The folder at a path or a URL.

    Raises:
        UsageError: no such kind of store.
        MissingPackage: its driver is not installed.
    """
    if isinstance(location, Store):
        return location
    place = local_or_url(location)
    if isinstance(place, Path):
        return DiskStore(folder=place)
    _connect(place)
    return ObjectStore(url=place)


@dataclass(frozen=True, kw_only=True)
class DiskStore(Store):
    """A folder on a disk."""

    folder: Path

    @property
    def location(self) -> Path:
        return self.folder

    def exists(self) -> bool:
        return self.folder.is_dir()

    def make(self) -> None:
        with writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)

    def sizes(self) -> dict[str, int]:
        with os.scandir(self.folder) as entries:
            return {entry.name: entry.stat().st_size for entry in entries if entry.is_file()}

    def open(self, name: str) -> IO[bytes]:
        return (self.folder / name).open("rb")

    def heads(self, names: Sequence[str]) -> dict[str, bytes]:
        heads = {}
        for name in names:
            try:
                with (self.folder / name).open("rb") as stream:
                    heads[name] = stream.readline()
            except OSError:
                continue  # missing, or on a broken disk: either way there is none
        return heads

    def publish(self, name: str) -> AbstractContextManager[IO[bytes]]:
        return publish(self.folder / name)

    def create(self, name: str, content: bytes) -> None:
        whole, target = self.folder / f"{name}.{unique_name()}.part", self.folder / name
        try:
            with self.publish(whole.name) as stream:
                stream.write(content)
        except CannotWrite:
            if target.exists():
                return  # another run was first, and has swept what this one was writing
            raise
        with writing(target):
            try:
                target.hardlink_to(whole)  # which, unlike a rename, never takes the place of a file
            except FileExistsError:
                pass
            except FileNotFoundError:
                if not target.exists():  # else swept, as above
                    raise
            except OSError as error:
                if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS):
                    raise
                if not target.exists():  # a disk without links (exFAT, some network disks)
                    whole.replace(target)
            finally:
                whole.unlink(missing_ok=True)

    def remove(self, name: str) -> None:
        with writing(self.folder / name):
            (self.folder / name).unlink(missing_ok=True)

    def move(self, name: str, *, to: str) -> None:
        target = self.folder / to
        with writing(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            (self.folder / name).rename(target)

    def sweep(self, names: Collection[str]) -> None:
        _sweep(self.folder, names)

    def lock_file(self, name: str) -> Path:
        return self.folder / name


@dataclass(frozen=True, kw_only=True)
class ObjectStore(Store):
    """The objects below a prefix of an object store."""

    url: str

    @property
    def location(self) -> str:
        return self.url

    @property
    def staging(self) -> Path:
        """Where this machine writes files before they are put, and holds the lock of a run."""
        user = f"vidprep-{os.getuid()}" if hasattr(os, "getuid") else "vidprep"
        return Path(tempfile.gettempdir()) / user / hashlib.sha256(self.url.encode()).hexdigest()[:16]

    def exists(self) -> bool:
        return bool(self.sizes())

    def make(self) -> None:
        with writing(self.staging):
            self.staging.mkdir(parents=True, exist_ok=True, mode=0o700)

    def sizes(self) -> dict[str, int]:
        system, root = _connect(self.url)
        with _asking(self.url):
            try:
                found = system.ls(root, detail=True)
            except FileNotFoundError:
                return {}
        return {PurePosixPath(entry["name"]).name: int(entry["size"]) for entry in found if entry["type"] == "file"}

    def open(self, name: str) -> IO[bytes]:
        system, path = _connect(f"{self.url}/{name}")
        with _asking(f"{self.url}/{name}"):
            stream: IO[bytes] = system.open(path, "rb")
            return stream

    def read(self, name: str) -> bytes:
        return read_url(f"{self.url}/{name}")

    def heads(self, names: Sequence[str]) -> dict[str, bytes]:
        heads: dict[str, bytes] = {}
        system, root = _connect(self.url)
        for start in range(0, len(names), NUM_HEADS):
            some = names[start : start + NUM_HEADS]
            paths = [f"{root}/{name}" for name in some]
            with _asking(self.url):
                found = system.cat_ranges(paths, [0] * len(paths), [HEAD_BYTES] * len(paths), on_error="return")
            for name, head in zip(some, found, strict=True):
                if isinstance(head, FileNotFoundError):
                    continue
                if isinstance(head, BaseException):
                    raise _unreachable(f"{self.url}/{name}", head) from head
                whole = head if b"\n" in head or len(head) < HEAD_BYTES else self.read(name)
                heads[name] = whole.partition(b"\n")[0]
        return heads

    @contextmanager
    def publish(self, name: str) -> Iterator[IO[bytes]]:
        self.make()
        staged = self.staging / name
        try:
            with publish(staged) as stream:
                yield stream
            self._put(staged, name)
        finally:
            staged.unlink(missing_ok=True)

    def _put(self, staged: Path, name: str) -> None:
        """Put a file and see that the store has as many bytes of it."""
        url = f"{self.url}/{name}"
        system, path = _connect(url)
        with _asking(url, is_write=True):
            system.put_file(str(staged), path)
            num_bytes = int(system.info(path)["size"])
        if num_bytes != staged.stat().st_size:
            raise CannotWrite(
                f"{url}: the store has {num_bytes} of {staged.stat().st_size} bytes after it was put there; "
                "run the same command again."
            )

    def remove(self, name: str) -> None:
        url = f"{self.url}/{name}"
        system, path = _connect(url)
        with _asking(url, is_write=True), suppress(FileNotFoundError):
            system.rm_file(path)

    def move(self, name: str, *, to: str) -> None:
        system, root = _connect(self.url)
        with _asking(f"{self.url}/{to}", is_write=True):
            system.mv(f"{root}/{name}", f"{root}/{to}")

    def sweep(self, names: Collection[str]) -> None:
        # What is half-put is no object. A file that was written whole and not put lies here under its own name.
        _sweep(self.staging, names)
        for name in names:
            (self.staging / name).unlink(missing_ok=True)

    def lock_file(self, name: str) -> Path:
        # Not the name itself, which `publish` uses.
        self.make()
        path = self.staging / f"{name}.lock"
        with writing(path):
            path.touch()
        return path


HALF_WRITTEN = re.compile(r"(.+?)(?:\.\d+(?:-[0-9a-f]+)?\.part)+")
"""How `engine.publish` calls a file before it has its name, and `DiskStore.create` one that is written so."""


def _sweep(folder: Path, names: Collection[str]) -> None:
    if not folder.is_dir():
        return
    with writing(folder):
        for path in folder.iterdir():
            found = HALF_WRITTEN.fullmatch(path.name)
            if found is not None and found[1] in names:
                path.unlink(missing_ok=True)


# Single files


def read_url(url: str) -> bytes:
    """The content of one object.

    Raises:
        FileNotFoundError, PermissionError: there is none, or it may not be read.
        StoreUnreachable: the store does not answer.
    """
    system, path = _connect(url)
    with _asking(url):
        content: bytes = system.cat_file(path)
        return content


def url_state(url: str) -> list[int] | None:
    """Size and a number for the version of an object, to see whether it was replaced; None for a missing one.

    Raises:
        StoreUnreachable: the store does not answer.
    """
    system, path = _connect(url)
    try:
        with _asking(url):
            info = system.info(path)
    except (FileNotFoundError, PermissionError):
        return None
    if info["type"] != "file":
        return None
    version = next((info[name] for name in ("ETag", "etag", "md5Hash", "LastModified", "created") if name in info), "")
    return [int(info["size"]), int(hashlib.sha256(str(version).encode()).hexdigest()[:12], 16)]


def url_sizes(urls: Collection[str]) -> dict[str, int]:
    """URL -> bytes of each that is there, by listing the folder that all of them lie in.

    Raises:
        StoreUnreachable: the store does not answer.
    """
    scheme = next(iter(urls)).partition("://")[0]
    url = f"{scheme}://{os.path.commonpath([url.partition('://')[2].rpartition('/')[0] for url in urls])}"
    system, root = _connect(url)
    with _asking(url):
        found = system.find(root, detail=True)
    return {
        f"{url}/{str(path).removeprefix(root).strip('/')}": int(entry["size"] or 0) for path, entry in found.items()
    }


def placeholders(url: str, folder: Path, *, is_fetched: "re.Pattern[str]") -> int:
    """The files below a URL as a tree of empty files, so that they can be looked for as on a disk.

    Args:
        url: the root of the tree.
        folder: an empty folder.
        is_fetched: paths below the root, with "/", of files that come with their content: lists and class names.

    Returns:
        How many files there are.

    Raises:
        UsageError: nothing lies there.
        StoreUnreachable: the store does not answer.
    """
    system, root = _connect(url)
    with _asking(url):
        try:
            paths = system.find(root)
        except FileNotFoundError:
            paths = []
    base = str(root).strip("/")
    for path in paths:
        below = str(path).strip("/").removeprefix(base).strip("/")
        place = folder / below
        if not below or ".." in PurePosixPath(below).parts:
            continue
        place.parent.mkdir(parents=True, exist_ok=True)
        if is_fetched.fullmatch(below):
            place.write_bytes(read_url(f"{url}/{below}"))
        else:
            place.touch()
    if not paths:
        raise UsageError(f"{url}: nothing lies there; give the data root that holds the videos.")
    return len(paths)


# fsspec


def _connect(url: str) -> tuple[Any, str]:
    """The file system of a URL (one for a process) and the path in it."""
    scheme = url.partition("://")[0].lower()
    try:
        import fsspec
        from fsspec.core import url_to_fs

        if scheme not in fsspec.available_protocols():
            raise UsageError(
                f"{url}: no kind of store is called {scheme}://; known are s3://, gs://, file:// and more."
            )
        # Other tasks write to the same place: what a listing said a minute ago is no answer.
        system, path = url_to_fs(url, use_listings_cache=False)
    except ImportError as error:
        extra = EXTRAS.get(scheme)
        what = f"pip install 'vidprep[{extra}]'" if extra else str(error)
        raise MissingPackage(f"{scheme}:// needs a driver that is not installed: {what}.") from error
    return system, str(path)


@contextmanager
def _asking(url: str, *, is_write: bool = False) -> Iterator[None]:
    """Turn what the drivers of stores raise, which is of many kinds, into one sentence."""
    try:
        yield
    except VidprepError:
        raise
    except Exception as error:
        if is_write:
            raise CannotWrite(
                f"{url}: cannot be written ({_sentence(error)}); see to it and run the same command again."
            ) from error
        if isinstance(error, FileNotFoundError | PermissionError):
            raise
        raise _unreachable(url, error) from error


def _unreachable(url: str, error: BaseException) -> StoreUnreachable:
    return StoreUnreachable(f"{url}: cannot be read ({_sentence(error)}); see to it and run the same command again.")


def _sentence(error: BaseException) -> str:
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__
