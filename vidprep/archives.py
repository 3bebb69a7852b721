"""Join and unpack archives: in parts or whole, packed in whichever way, checked to the last byte, never outside.

What an archive is, is told by its first bytes, not by its name. It is unpacked into a hidden folder beside its target
and moved into place when every check sum was right; then a mark says so, and the archive may be removed.
"""

import bz2
import contextlib
import errno
import gzip
import hashlib
import io
import json
import lzma
import os
import re
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, Literal, cast

from vidprep.engine import CannotWrite, publish, source_state, writing
from vidprep.errors import ChecksumMismatch, VidprepError

__all__ = [
    "Archive",
    "CorruptArchive",
    "Limits",
    "RefusedArchive",
    "Unpacked",
    "find_mark",
    "group_parts",
    "is_archive_name",
    "is_unpacked",
    "part_of",
    "unpack",
]

Packing = Literal["zip", "gzip", "bzip2", "xz", "tar"]

PART_NAME = re.compile(r"(?P<stem>.+?)(?:[-.](?P<number>\d{2,4})|(?<=gz|ar|ip)\.(?P<letters>[a-z]{2}))(?:\.zip)?")
"""NAME-00, NAME.tar.gz.00, NAME.tar.gz.aa, each perhaps inside a zip of its own."""

ARCHIVE_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".zip")

MAGIC: dict[bytes, Packing] = {b"PK\x03\x04": "zip", b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ\x00": "xz"}

LONGEST_HEADER_BYTES = 1024 * 1024
"""Of names and attributes that a tar keeps in blocks of their own, which are read into memory."""
CHUNK_BYTES = 1024 * 1024

FAULTS = (
    EOFError,
    OSError,
    RuntimeError,  # a password, a packing that it does not know
    ValueError,  # no numbers where a header should hold some; names that are no text
    zlib.error,
    lzma.LZMAError,
    tarfile.TarError,
    zipfile.BadZipFile,
)
"""What the readers of the standard library raise on bad archives."""
HIDDEN_STATE = ".vidprep"


class CorruptArchive(VidprepError):
    """An archive that is not what it should be: cut short, changed, a part missing, or no archive at all."""


class RefusedArchive(VidprepError):
    """An archive that would write outside its target, or far more than an archive of its size holds."""


@dataclass(frozen=True, kw_only=True)
class Archive:
    """One archive and the files that it lies in."""

    name: str
    parts: tuple[Path, ...]
    """In their order; one for a whole archive."""

    @property
    def num_bytes(self) -> int:
        """Bytes of all parts together."""
        return sum(part.stat().st_size for part in self.parts)


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How much an archive may unpack to; what no data set comes near, and bombs exceed."""

    max_ratio: float = 100.0
    """Bytes unpacked for each byte of the archive; videos and images come to 1, lists of labels to 10 or so."""
    min_bytes: int = 64 * 1024 * 1024
    """Allowed to any archive, however small."""

    def max_bytes(self, num_bytes: int) -> int:
        """Bytes that an archive of `num_bytes` may unpack to."""
        return max(self.min_bytes, int(self.max_ratio * num_bytes))


@dataclass(frozen=True, kw_only=True)
class Unpacked:
    """What came out of an archive."""

    name: str
    num_files: int
    num_bytes: int
    is_new: bool
    """False: an earlier run had unpacked it."""


def is_archive_name(name: str) -> bool:
    """Whether a file is called as whole archives are."""
    return name.lower().endswith(ARCHIVE_SUFFIXES)


def part_of(name: str) -> tuple[str, int] | None:
    """The archive's name and the number of the part, for a file called as a part; None for any other."""
    found = PART_NAME.fullmatch(name)
    if found is None or name.lower().endswith((".gz", ".tgz", ".bz2", ".xz", ".tar")):
        return None
    letters = found["letters"]
    number = int(found["number"]) if letters is None else (ord(letters[0]) - 97) * 26 + ord(letters[1]) - 97
    return found["stem"], number


def group_parts(paths: Iterable[Path]) -> list[Archive]:
    """The archives that files make up: parts of one name together, in the order of their numbers, others alone.

    A zip called as a part is one when it holds a part; else it is an archive of its own.

    Raises:
        CorruptArchive: a part is missing between others, or there twice.
    """
    alone, together = list[Archive](), dict[tuple[Path, str], dict[int, Path]]()
    for path in sorted(paths):
        part = part_of(path.name)
        if part is None or (_packing(path) == "zip" and _wrapped(path) is None):
            alone.append(Archive(name=path.name, parts=(path,)))
            continue
        stem, number = part
        other = together.setdefault((path.parent, stem), {}).setdefault(number, path)
        if other != path:
            raise CorruptArchive(f"{other} and {path.name} are both part {number} of {stem}; keep one of them.")
    for (folder, stem), numbered in together.items():
        first, last = min(numbered), max(numbered)
        missing = [number for number in range(min(first, 1), last) if number not in numbered]
        if missing:
            raise CorruptArchive(
                f"{folder}: {stem} lacks part {_few(missing)}; there are "
                f"{_few([path.name for _, path in sorted(numbered.items())])}. Fetch what is missing."
            )
        alone.append(Archive(name=stem, parts=tuple(path for _, path in sorted(numbered.items()))))
    return sorted(alone, key=lambda archive: archive.parts[0])


def _few(values: Sequence[object]) -> str:
    return ", ".join(map(str, values[:5])) + (f" and {len(values) - 5} more" if len(values) > 5 else "")


def find_mark(name: str, marks: Path) -> Unpacked | None:
    """What a run noted about an archive that it unpacked; None if there is no such note."""
    try:
        facts = json.loads((marks / f"{name}.json").read_text())
        return Unpacked(name=name, num_files=facts["num_files"], num_bytes=facts["num_bytes"], is_new=False)
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


def is_unpacked(archive: Archive, marks: Path) -> bool:
    """Whether a run noted that it unpacked this very archive, or that of which these parts are left."""
    return _find_same(archive, marks) is not None


def _find_same(archive: Archive, marks: Path) -> Unpacked | None:
    before = _read_mark(marks / f"{archive.name}.json")
    # Fewer parts than then: the rest was removed already, by a run that was killed meanwhile.
    if before is None or not _states(archive).items() <= before["parts"].items():
        return None
    return Unpacked(name=archive.name, num_files=before["num_files"], num_bytes=before["num_bytes"], is_new=False)


def _states(archive: Archive) -> dict[str, Any]:
    return {part.name: source_state(part) for part in archive.parts}


def unpack(
    archive: Archive,
    folder: Path,
    *,
    marks: Path,
    delete_archives: bool = False,
    limits: Limits | None = None,
    progress: str | None = None,
) -> Unpacked:
    """Unpack an archive into `folder`, whole or not at all; an archive that was unpacked before is passed over.

    Files that are there already give way to those of the archive. Sum checks (gzip, zip, xz, bzip2, and MD5 files
    beside parts in zips) are all verified before anything is moved into place.

    Args:
        archive: its parts, as `group_parts` gives them.
        folder: where its members go; made when missing.
        marks: folder of the notes that an archive was unpacked.
        delete_archives: remove all parts once the whole is verified, in place and on the disk.
        limits: against bombs.
        progress: what is being done, in a word or two; None shows nothing.

    Raises:
        CorruptArchive: cut short, changed, or no archive.
        ChecksumMismatch: a part is not what the MD5 beside it says.
        RefusedArchive: a member would leave `folder`, is a device or pipe, or the whole is larger than `limits`.
        CannotWrite: no space, no permission.
    """
    result = _find_same(archive, marks)
    if result is None:
        states = _states(archive)
        result = _unpack_now(archive, folder, limits or Limits(), progress)
        with writing(marks):
            marks.mkdir(parents=True, exist_ok=True)
        # What the mark vouches for, and what deleted archives cannot give back, is on the disk first.
        os.sync()
        with publish(marks / f"{archive.name}.json") as stream:
            facts = {**asdict(result), "parts": states}
            stream.write(json.dumps(facts, indent=1).encode())
    if delete_archives:
        # The last one first, so that after a kill none seems to be missing between the others.
        for part in reversed(archive.parts):
            with writing(part):
                part.unlink(missing_ok=True)
    return result


def _read_mark(mark: Path) -> dict[str, Any] | None:
    try:
        facts = json.loads(mark.read_text())
    except (FileNotFoundError, ValueError):
        return None
    return facts if isinstance(facts, dict) and {"parts", "num_files", "num_bytes"} <= set(facts) else None


def _unpack_now(archive: Archive, folder: Path, limits: Limits, progress: str | None) -> Unpacked:
    # Inside the target, so that it is on the same disk; hidden, so that nobody takes it for videos.
    work = folder / f".unpacking-{archive.name}"
    with writing(folder):
        _remove(work)
        work.mkdir(parents=True)
    try:
        bounds = _Bounds(archive, limits, num_free=shutil.disk_usage(folder).free)
        with _said_as_corrupt(archive):
            num_files = _extract(archive, work, bounds, progress)
        _check_merge(work, folder, archive.name)
        with writing(folder):
            _merge(work, folder)
    finally:
        with writing(folder):
            _remove(work)
    return Unpacked(name=archive.name, num_files=num_files, num_bytes=bounds.num_written, is_new=True)


def _remove(work: Path) -> None:
    if work.is_symlink() or work.is_file():
        work.unlink()
    elif work.exists():
        shutil.rmtree(work)


@contextlib.contextmanager
def _said_as_corrupt(archive: Archive) -> Iterator[None]:
    """What the readers of the standard library say about bad archives, as one kind of error."""
    try:
        yield
    except FAULTS as error:
        reason = str(error) or type(error).__name__
        where = archive.parts[0] if len(archive.parts) == 1 else f"{archive.parts[0]} and {len(archive.parts) - 1} more"
        raise CorruptArchive(
            f"{where}: cannot be unpacked ({reason}): damaged, cut short, or a part is missing; fetch it again. "
            f"Nothing of it was put in place."
        ) from error


class _Bounds:
    """Counts what comes out of an archive, and stops it when that is too much."""

    def __init__(self, archive: Archive, limits: Limits, *, num_free: int) -> None:
        self._name = archive.name
        self._num_packed = archive.num_bytes
        self._max_bytes = limits.max_bytes(self._num_packed)
        self._num_free = num_free
        self._num_declared = 0
        self._num_read = 0
        self.num_written = 0

    def declare(self, name: str, num_bytes: int) -> None:
        """A member says how large it is, before it is unpacked."""
        if num_bytes < 0:
            raise RefusedArchive(f"{self._name}: refused: {name} says that it is {num_bytes} bytes long.")
        self._num_declared += num_bytes
        self._check(self._num_declared, f"with {name}, of {num_bytes} bytes, ")

    def read(self, num_bytes: int) -> None:
        """So much came out of the decompressor."""
        self._num_read += num_bytes
        self._check(self._num_read, "")

    def _check(self, num_bytes: int, what: str) -> None:
        if num_bytes > self._max_bytes:
            raise RefusedArchive(
                f"{self._name}: refused: {what}it unpacks to more than {self._max_bytes} bytes, though it has only "
                f"{self._num_packed}; no data set does, a bomb does."
            )
        if num_bytes > self._num_free:
            raise CannotWrite(
                f"{self._name}: {what}it unpacks to more than the {self._num_free} bytes that are free on the disk; "
                f"free some and run the same command again."
            )


def _extract(archive: Archive, work: Path, bounds: _Bounds, progress: str | None) -> int:
    """Write all members below `work`; returns the number of files."""
    with _Joined(archive.parts) as joined:
        head = joined.peek(512)
        packing = _packing_of(head)
        if packing != "zip":
            return _extract_tar(archive, cast(IO[bytes], joined), packing, work, bounds, progress)
    if len(archive.parts) > 1:
        raise CorruptArchive(
            f"{archive.parts[0]} and {len(archive.parts) - 1} more: a zip cut into parts; join them first "
            f"(cat {archive.parts[0].name} ... > whole.zip)."
        )
    return _extract_zip(archive, work, bounds, progress)


def _packing_of(head: bytes) -> Packing:
    return next((packing for magic, packing in MAGIC.items() if head.startswith(magic)), "tar")


def _packing(path: Path) -> Packing:
    with path.open("rb") as stream:
        return _packing_of(stream.read(8))


# Tar


class _Member(tarfile.TarInfo):
    """A header that is not passed over when it is bad, as the base class does in the middle of an archive."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> "_Member":
        if len(buf) == tarfile.BLOCKSIZE and not any(buf):
            return super().frombuf(buf, encoding, errors)  # which raises: the end
        try:
            member = super().frombuf(buf, encoding, errors)
        except tarfile.HeaderError as error:
            # As one that the reader of the archive does not take for the end.
            raise tarfile.ReadError(f"no tar member where one should begin: {error}") from error
        kinds = (
            tarfile.XHDTYPE,
            tarfile.XGLTYPE,
            tarfile.SOLARIS_XHDTYPE,
            tarfile.GNUTYPE_LONGNAME,
            tarfile.GNUTYPE_LONGLINK,
        )
        if member.size < 0 or (member.type in kinds and member.size > LONGEST_HEADER_BYTES):
            raise RefusedArchive(f"a tar header says that it is {member.size} bytes long; refused.")
        return member


class _Counted(io.RawIOBase):
    """A stream whose bytes are counted on their way."""

    def __init__(self, stream: IO[bytes], bounds: _Bounds) -> None:
        self._stream = stream
        self._bounds = bounds

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._stream.read(len(buffer))
        self._bounds.read(len(data))
        buffer[: len(data)] = data
        return len(data)


def _extract_tar(
    archive: Archive, joined: IO[bytes], packing: Packing, work: Path, bounds: _Bounds, progress: str | None
) -> int:
    openers: dict[Packing, Any] = {"gzip": _gunzip, "bzip2": bz2.BZ2File, "xz": lzma.LZMAFile}
    unpacked = openers[packing](joined) if packing in openers else joined
    stream = io.BufferedReader(_Counted(unpacked, bounds), CHUNK_BYTES)
    num_files = 0
    links: list[tuple[str, str]] = []
    with tarfile.open(fileobj=stream, mode="r|", tarinfo=_Member) as tar:
        for member in _shown(_members(tar), progress):
            path = _inside(work, member.name, archive.name)
            if member.isdir():
                with _no_clash(archive.name, member.name), writing(path):
                    path.mkdir(parents=True, exist_ok=True)
            elif member.isreg():
                bounds.declare(member.name, member.size)
                source = tar.extractfile(member)
                assert source is not None  # noqa: S101 - regular files have contents
                _write(source, path, archive.name, member.name, member.size, bounds)
                num_files += 1
            elif member.islnk():
                _link(path, _inside(work, member.linkname, archive.name, of=member.name), archive.name, member)
                num_files += 1
            elif member.issym():
                _check_link(member.name, member.linkname, archive.name)
                links.append((member.name, member.linkname))
            else:
                kind = {tarfile.CHRTYPE: "a device", tarfile.BLKTYPE: "a device", tarfile.FIFOTYPE: "a pipe"}
                raise RefusedArchive(
                    f"{archive.name}: refused: {member.name} is {kind.get(member.type, f'of type {member.type!r}')}; "
                    f"a data set holds files, folders and links."
                )
        # To the last byte: the check sum of a compressed stream comes after it, and zeros alone fill up a tar.
        rest = cast(IO[bytes], tar.fileobj)
        while chunk := rest.read(CHUNK_BYTES):
            if chunk.count(0) != len(chunk):
                raise tarfile.ReadError("something follows where the tar ends: a second one, or zeros in its middle")
    for name, target in links:
        _make_symlink(work, name, target, archive.name)
    return num_files + len(links)


def _gunzip(joined: IO[bytes]) -> IO[bytes]:
    return cast(IO[bytes], gzip.GzipFile(fileobj=joined, mode="rb"))


def _members(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """All members; none is kept, for there are archives of millions."""
    while (member := tar.next()) is not None:
        yield member
        tar.members.clear()  # type: ignore[attr-defined]  # public, though not in the stubs


def _shown(members: Iterable[Any], progress: str | None) -> Iterable[Any]:
    from vidprep.console import track

    return members if progress is None else track(members, description=progress)


def _inside(work: Path, name: str, archive_name: str, *, of: str | None = None) -> Path:
    """The place of a member below `work`.

    Raises:
        RefusedArchive: the name leads elsewhere.
    """
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if name.startswith("/") or "\0" in name or any(".." in re.split(r"[\\]", part) for part in parts):
        what = f"{of} links to {name}, which leaves" if of else f"{name} would leave"
        raise RefusedArchive(f"{archive_name}: refused: {what} the folder that it is unpacked into.")
    if parts and parts[0] == HIDDEN_STATE:
        raise RefusedArchive(f"{archive_name}: refused: {name} would change vidprep's own notes.")
    return work.joinpath(*parts)


@contextlib.contextmanager
def _no_clash(archive_name: str, name: str) -> Iterator[None]:
    try:
        yield
    except CannotWrite as error:
        if isinstance(error.__cause__, OSError) and error.__cause__.errno == errno.ENAMETOOLONG:
            raise RefusedArchive(
                f"{archive_name}: refused: {name[:80]}..., of {len(name)} characters, is longer than the disk allows."
            ) from error
        if isinstance(error.__cause__, FileExistsError | IsADirectoryError | NotADirectoryError):
            raise RefusedArchive(
                f"{archive_name}: refused: {name} needs a folder where the archive has a file, or a file in place of a "
                f"folder."
            ) from error
        raise


def _write(source: IO[bytes], path: Path, archive_name: str, name: str, num_bytes: int, bounds: _Bounds) -> None:
    with _no_clash(archive_name, name), writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        # A member may come twice: the later one counts, and must not write through a hard link of the earlier.
        path.unlink(missing_ok=True)
    size = 0
    with contextlib.ExitStack() as stack:
        with _no_clash(archive_name, name), writing(path):
            target = stack.enter_context(path.open("xb"))
        while size < num_bytes:
            chunk = source.read(min(CHUNK_BYTES, num_bytes - size))
            if not chunk:
                raise EOFError(f"{name} ends after {size} of {num_bytes} bytes")
            with writing(path):
                target.write(chunk)
            size += len(chunk)
        with writing(path):
            target.flush()
    bounds.num_written += size


def _link(path: Path, source: Path, archive_name: str, member: tarfile.TarInfo) -> None:
    if source == path or not source.is_file():
        raise RefusedArchive(
            f"{archive_name}: refused: {member.name} is a hard link to {member.linkname}, no file of the archive."
        )
    with _no_clash(archive_name, member.name), writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        path.hardlink_to(source)


def _check_link(name: str, target: str, archive_name: str) -> None:
    """A symbolic link may go up first, then down, and end inside; nothing that depends on other links."""
    parts = [part for part in target.split("/") if part not in ("", ".")]
    num_up = next((index for index, part in enumerate(parts) if part != ".."), len(parts))
    depth = len([part for part in name.split("/") if part not in ("", ".")]) - 1
    if not target or target.startswith("/") or "\0" in target or num_up > depth or ".." in parts[num_up:]:
        raise RefusedArchive(f"{archive_name}: refused: {name} links to {target}, which leaves, or may, its folder.")


def _make_symlink(work: Path, name: str, target: str, archive_name: str) -> None:
    """Made when all files are written, so that nothing is written through a link."""
    path = _inside(work, name, archive_name)
    folder = path.parent
    with _no_clash(archive_name, name), writing(path):
        folder.mkdir(parents=True, exist_ok=True)
        if folder.resolve() != work.resolve().joinpath(folder.relative_to(work)):
            raise RefusedArchive(f"{archive_name}: refused: {name} lies behind another link.")
        path.unlink(missing_ok=True)
        path.symlink_to(target)
    if not path.resolve().is_relative_to(work.resolve()):
        path.unlink()
        raise RefusedArchive(f"{archive_name}: refused: {name} links to {target}, which leaves its folder.")


# Zip


def _extract_zip(archive: Archive, work: Path, bounds: _Bounds, progress: str | None) -> int:
    [path_of_zip] = archive.parts
    num_files = 0
    with zipfile.ZipFile(path_of_zip) as packed:
        # All names and sizes stand at its end: nothing is written of a zip that is refused.
        for info in packed.infolist():
            _inside(work, _zip_name(info), archive.name)
            mode = info.external_attr >> 16
            if stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise RefusedArchive(f"{archive.name}: refused: {info.filename} is a link or a device in a zip.")
            if info.flag_bits & 1:
                raise CorruptArchive(f"{path_of_zip}: {info.filename} is locked with a password; unpack it by hand.")
            bounds.declare(info.filename, info.file_size)
        for info in _shown(packed.infolist(), progress):
            path = _inside(work, _zip_name(info), archive.name)
            if _zip_name(info).endswith("/"):
                with _no_clash(archive.name, info.filename), writing(path):
                    path.mkdir(parents=True, exist_ok=True)
                continue
            with packed.open(info) as source:
                _write(source, path, archive.name, info.filename, info.file_size, bounds)
                if source.read(1):
                    raise EOFError(f"{info.filename} is longer than it says")
            num_files += 1
    return num_files


def _zip_name(info: zipfile.ZipInfo) -> str:
    """The name of a member with `/` between folders: some programs of Windows write a backslash, against the norm.

    A drive (`C:`) becomes the root, which no member may begin with.

    Raises:
        ValueError: an empty name.
    """
    if not info.filename:
        raise ValueError("a member without a name")
    return re.sub(r"^[A-Za-z]:(?=/)", "", info.filename.replace("\\", "/"))


# Parts


@dataclass(frozen=True, kw_only=True)
class _Wrapped:
    """A part inside a zip."""

    member: str
    md5: str | None


def _wrapped(path: Path) -> _Wrapped | None:
    """The part that a zip holds, alone but for its MD5; None for another zip, and one that cannot be read."""
    try:
        with zipfile.ZipFile(path) as packed:
            infos = [info for info in packed.infolist() if not _zip_name(info).endswith("/")]
            held = [info for info in infos if not info.filename.endswith(".md5")]
            if len(held) != 1 or part_of(_zip_name(held[0]).rpartition("/")[2]) is None:
                return None
            sums = [info for info in infos if info.filename.endswith(".md5") and info.file_size < 10_000]
            text = packed.read(sums[0]).decode("ascii", errors="replace") if sums else ""
    except FAULTS:
        return None  # unpacking it as an archive of its own says what is wrong
    found = re.search(r"\b[0-9a-fA-F]{32}\b", text)
    return _Wrapped(member=held[0].filename, md5=found.group().lower() if found else None)


class _Joined(io.BufferedReader):
    """The parts of an archive as one stream; no joined copy is made."""

    def __init__(self, parts: Sequence[Path]) -> None:
        super().__init__(_JoinedRaw(parts), CHUNK_BYTES)


class _JoinedRaw(io.RawIOBase):
    def __init__(self, parts: Sequence[Path]) -> None:
        self._waiting = list(parts)
        self._is_alone = len(parts) == 1 and part_of(parts[0].name) is None
        self._open: contextlib.ExitStack | None = None
        self._stream: IO[bytes] | None = None
        self._path = parts[0]
        self._md5: str | None = None
        self._digest = hashlib.md5(usedforsecurity=False)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while True:
            if self._stream is None:
                if not self._waiting:
                    return 0
                self._begin(self._waiting.pop(0))
            assert self._stream is not None  # noqa: S101 - just opened
            data = self._stream.read(len(buffer))
            if data:
                if self._md5 is not None:
                    self._digest.update(data)
                buffer[: len(data)] = data
                return len(data)
            self._end()

    def close(self) -> None:
        if self._open is not None:
            self._open.close()
            self._open = self._stream = None
        super().close()

    def _begin(self, path: Path) -> None:
        self._path, self._open = path, contextlib.ExitStack()
        wrapped = None if self._is_alone or _packing(path) != "zip" else _wrapped(path)
        if wrapped is None:
            self._stream, self._md5 = self._open.enter_context(path.open("rb")), None
        else:
            packed = self._open.enter_context(zipfile.ZipFile(path))
            self._stream, self._md5 = self._open.enter_context(packed.open(wrapped.member)), wrapped.md5
            self._digest = hashlib.md5(usedforsecurity=False)

    def _end(self) -> None:
        assert self._open is not None  # noqa: S101 - only called while one is open
        self._open.close()
        self._open = self._stream = None
        if self._md5 is not None and self._digest.hexdigest() != self._md5:
            raise ChecksumMismatch(
                f"{self._path}: the part in it has the MD5 {self._digest.hexdigest()}, the file beside it says "
                f"{self._md5}; fetch it again."
            )


# Moving into place


def _check_merge(source: Path, target: Path, archive_name: str) -> None:
    """Refuse before the first move what could not be moved, or would be moved through a link."""
    for name, is_folder in _entries(source):
        place = target / name
        if is_folder and place.is_symlink():
            raise RefusedArchive(
                f"{archive_name}: {place} is a link, {name} in the archive a folder; unpack to where the link leads, "
                f"or remove it."
            )
        if place.exists() and not place.is_symlink() and place.is_dir() != is_folder:
            raise RefusedArchive(
                f"{archive_name}: {place} and {name} in the archive are a file and a folder; move it away."
            )
        if is_folder and place.is_dir():
            _check_merge(source / name, place, archive_name)


def _merge(source: Path, target: Path) -> None:
    for name, is_folder in _entries(source):
        if is_folder and (target / name).is_dir():
            _merge(source / name, target / name)
        else:
            (source / name).replace(target / name)


def _entries(folder: Path) -> list[tuple[str, bool]]:
    """What lies in a folder, sorted, and whether it is a folder itself and no link to one."""
    with os.scandir(folder) as entries:
        return sorted((entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries)
