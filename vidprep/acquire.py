"""Bring a data set to its data root: fetched from its publisher, or taken from a folder that the user has."""

import contextlib
import errno
import os
import shutil
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath

from vidprep import archives, miniature
from vidprep.datasets import epic_kitchens
from vidprep.download import (
    STATE_FOLDER,
    Failure,
    Plan,
    Retries,
    expand_lists,
    fetch_files,
    human_bytes,
    place,
    plan_downloads,
    require_space,
    url_name,
    wrong_checksum,
)
from vidprep.engine import CannotWrite, lock, writing
from vidprep.errors import UsageError, VidprepError
from vidprep.types import DatasetInfo, RemoteFile

__all__ = ["Acquired", "download_dataset", "plan_dataset", "take_dataset"]


MORE_FILES: dict[str, Callable[[], tuple[RemoteFile, ...]]] = {"epic_kitchens": epic_kitchens.list_files}
"""Files that a publisher offers beyond those in the data set's `files`: too many to be written there."""


@dataclass(frozen=True, kw_only=True)
class Acquired:
    """What became of a data set's files."""

    folder: Path
    num_files: int
    """Files and archives in place, those of earlier runs included."""
    num_new_bytes: int
    """That travelled."""
    unpacked: tuple[archives.Unpacked, ...]
    failures: tuple[str, ...]
    """One sentence for each file or archive that is not in place."""
    notes: tuple[str, ...] = ()

    def to_text(self) -> str:
        """What there is, and what is missing."""
        num_new = sum(one.is_new for one in self.unpacked)
        lines = [
            f"{self.folder}: {self.num_files} files and archives, {human_bytes(self.num_new_bytes)} fetched now, "
            f"{num_new} archives unpacked now ({sum(one.num_files for one in self.unpacked)} files in all)"
        ]
        lines += [f"note: {note}" for note in self.notes]
        if self.failures:
            lines += [f"{len(self.failures)} failed:", *(f"  {reason}" for reason in self.failures)]
        return "\n".join(lines)


@dataclass(frozen=True, kw_only=True)
class _Group:
    """The files of one archive, or one plain file."""

    name: str
    unpack_to: str
    files: tuple[RemoteFile, ...]
    is_archive: bool


def plan_dataset(
    info: DatasetInfo,
    root: Path,
    *,
    split: str | None = None,
    mirror: str | None = None,
    retries: Retries | None = None,
) -> tuple[Plan, list[Failure]]:
    """What `download_dataset` would fetch. Lists of URLs are fetched for it, nothing else.

    Returns:
        The plan, and the lists that could not be had.

    Raises:
        UsageError: no such split.
    """
    wanted, failures = expand_lists(_files_of(info, split), root, mirror=mirror, retries=retries)
    waiting = [file for group in _groups(wanted) if not _was_freed(group, root) for file in group.files]
    return plan_downloads(waiting, root, mirror=mirror), failures


def download_dataset(
    info: DatasetInfo,
    root: Path,
    *,
    split: str | None = None,
    parallel: int = 4,
    mirror: str | None = None,
    delete_archives: bool = False,
    retries: Retries | None = None,
    progress: str | None = None,
) -> Acquired:
    """Fetch what a data set's publisher offers, and unpack each archive as soon as all its parts are there.

    Args:
        info: the data set.
        root: its data root; made when missing.
        split: only what this split needs.
        parallel: files at the same time.
        mirror: a server that offers the publisher's paths.
        delete_archives: remove each archive once it is unpacked, verified and in place; it is not fetched again.
        retries: as `download_files`.
        progress: what is being done, in a word or two; None shows nothing.

    Raises:
        UsageError: no such split, or another download is at work in `root`.
        CannotWrite: not enough room, or the disk takes no more.
    """
    files = _files_of(info, split)
    with _alone(root):
        wanted, list_failures = expand_lists(files, root, mirror=mirror, retries=retries)
        groups = _groups(wanted)
        waiting = [group for group in groups if not _was_freed(group, root)]
        plan = plan_downloads([file for group in waiting for file in group.files], root, mirror=mirror)
        to_unpack = {place(file, root) for group in waiting if not _marks_of(group, root) for file in group.files}
        _require_space(plan, to_unpack, delete_archives=delete_archives)
        group_of = {place(file, root): group for group in waiting for file in group.files}
        paths_of: dict[str, list[Path]] = {}
        unpacked = [mark for group in groups if group not in waiting for mark in _marks_of(group, root)]
        failures = [f"{failure.path.name}: {failure.reason}" for failure in list_failures]
        notes: list[str] = []
        num_files, num_new_bytes = sum(len(group.files) for group in groups if group not in waiting), 0
        for group in groups if delete_archives else ():
            left = [path for file in group.files if (path := place(file, root)).is_file()]
            if left and group not in waiting:  # a run that was killed had freed some of its parts only
                _unpack_all(left, root, group.unpack_to, delete_archives, unpacked=[], failures=failures)
        with closing(
            fetch_files(
                [planned.file for planned in plan.files],
                root,
                parallel=parallel,
                mirror=mirror,
                retries=retries,
                progress=progress,
                plan=plan,
            )
        ) as outcomes:
            for outcome in outcomes:
                if isinstance(outcome, Failure):
                    failures.append(f"{outcome.path.name}: {outcome.reason}")
                    continue
                num_files += 1
                num_new_bytes += outcome.num_new_bytes
                group = group_of[outcome.path]
                if not group.is_archive:  # those end in check sums, or in a mark, of their own
                    notes += [f"{outcome.path}: {outcome.doubt}"] if outcome.doubt else []
                    continue
                there = paths_of.setdefault(f"{group.unpack_to}/{group.name}", [])
                there.append(outcome.path)
                if len(there) == len(group.files):
                    # Of parts nobody knows which is bad; one with the published check sum came as it was meant.
                    sets_aside = len(there) == 1 and not (outcome.file.sha256 or outcome.file.md5)
                    _unpack_all(
                        there,
                        root,
                        group.unpack_to,
                        delete_archives,
                        unpacked=unpacked,
                        failures=failures,
                        sets_aside=sets_aside,
                    )
    return Acquired(
        folder=root,
        num_files=num_files,
        num_new_bytes=num_new_bytes,
        unpacked=tuple(unpacked),
        failures=tuple(failures),
        notes=tuple(notes),
    )


def take_dataset(
    info: DatasetInfo,
    source: Path,
    root: Path,
    *,
    split: str | None = None,
    delete_archives: bool = False,
    progress: str | None = None,
) -> Acquired:
    """Unpack the archives that the user has in `source`, and put the other files of it into the same places of `root`.

    An archive in `source/x/` or `source/archives/x/` is unpacked into `root/x/`, unless the data set says otherwise
    of a file of its name, of a folder on its way (`train/`), or of a word in its name (`k700_train_001.tar.gz`).
    Other files go to the same place, linked where the disk allows it, else copied; one that is there with another size
    stays. An archive of a published name and checksum is compared before it is unpacked; those of a miniature
    (`vidprep miniature`) differ on purpose, which is noted.

    Args:
        info: the data set.
        source: folder with what the user has; not `root` itself, and not above it.
        root: its data root; made when missing.
        split: leave out what is of other splits.
        delete_archives: remove each archive from `source` once it is unpacked, verified and in place.
        progress: what is being done, in a word or two; None shows nothing.

    Raises:
        UsageError: no such folder or split, or nothing in it (and nothing that was taken from it before).
        CannotWrite: the disk takes no more.
    """
    _files_of(info, split)
    if not source.is_dir():
        raise UsageError(f"{source}: no such folder; --from names the one that holds the archives of {info.name}.")
    if root.resolve().is_relative_to(source.resolve()):
        raise UsageError(
            f"{source}: holds the data root {root}, or is it; put the archives into a folder of their own."
        )
    found = [path for path in sorted(_walk(source)) if path.is_file()]
    if not found and (freed := _all_marks(root)):  # this command again, after --delete-archives
        return Acquired(folder=root, num_files=len(freed), num_new_bytes=0, unpacked=freed, failures=())
    if not found:
        raise UsageError(f"{source}: holds no files. {info.instructions}")
    by_folder: dict[str, list[Path]] = {}
    unpacked: list[archives.Unpacked] = []
    failures: list[str] = []
    not_published: list[str] = []
    num_files = 0
    offered = _offered(info)
    is_miniature = _is_miniature(info, source)
    with _alone(root):
        for path in found:
            below = PurePosixPath(path.relative_to(source).as_posix())
            known = _known_file(offered, below)
            if known is not None and known.kind == "url_list":
                continue
            if _is_archive(info, path, known):
                to, of_split = _destination(info, below, known)
                if split is not None and of_split not in (None, split):
                    continue
                wrong = _unlike_published(info, path, known, marks=_marks_folder(root, to))
                if wrong and not is_miniature:
                    failures.append(
                        f"{path}: {wrong}; nothing of it was taken. Fetch it again; if it is meant to be another "
                        f"edition, give it another name, under which it is taken as it is."
                    )
                    continue
                if wrong:
                    not_published.append(path.name)
                by_folder.setdefault(to, []).append(path)
            elif split is None or known is None or known.split in (None, split):
                to = known.filename if known is not None and known.filename is not None else _own_place(below)
                try:
                    _put(path, root / to)
                    num_files += 1
                except CannotWrite:
                    raise
                except VidprepError as error:
                    failures.append(str(error))
        for to, paths in by_folder.items():
            num_before = len(unpacked)
            _unpack_all(paths, root, to, delete_archives, unpacked=unpacked, failures=failures, progress=progress)
            num_files += len(unpacked) - num_before
    notes = [f"{source}: a miniature, so not what was published under these names: {', '.join(not_published)}."]
    return Acquired(
        folder=root,
        num_files=num_files,
        num_new_bytes=0,
        unpacked=tuple(unpacked),
        failures=tuple(failures),
        notes=tuple(notes) if not_published else (),
    )


@contextmanager
def _alone(root: Path) -> Iterator[None]:
    path = root / STATE_FOLDER / "lock"
    with writing(root):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    with lock(path, purpose="download"):
        yield


def _files_of(info: DatasetInfo, split: str | None) -> list[RemoteFile]:
    if split is not None and split not in info.splits:
        raise UsageError(f"{info.name} has no split {split!r}; it has {', '.join(info.splits)}.")
    return [file for file in _offered(info) if split is None or file.split in (None, split)]


def _offered(info: DatasetInfo) -> tuple[RemoteFile, ...]:
    return (*info.files, *MORE_FILES.get(info.name, tuple)())


def _groups(files: Sequence[RemoteFile]) -> list[_Group]:
    """Parts of one archive together, in the order of the files."""
    together: dict[tuple[str, str], list[RemoteFile]] = {}
    plain = []
    for file in files:
        name = PurePosixPath(file.filename).name if file.filename else url_name(file.url)
        part = archives.part_of(name) if file.kind == "archive" else None
        if file.kind == "archive":
            together.setdefault((file.unpack_to, part[0] if part else name), []).append(file)
        else:
            plain.append(_Group(name=name, unpack_to="", files=(file,), is_archive=False))
    packed = [
        _Group(name=name, unpack_to=unpack_to, files=tuple(parts), is_archive=True)
        for (unpack_to, name), parts in together.items()
    ]
    return plain + packed


def _marks_folder(root: Path, unpack_to: str) -> Path:
    return root / STATE_FOLDER / "unpacked" / unpack_to


def _all_marks(root: Path) -> tuple[archives.Unpacked, ...]:
    """What earlier runs noted about any archive."""
    paths = sorted(_marks_folder(root, "").rglob("*.json"))
    marks = [archives.find_mark(path.stem, path.parent) for path in paths]
    return tuple(mark for mark in marks if mark is not None)


def _marks_of(group: _Group, root: Path) -> list[archives.Unpacked]:
    """What earlier runs noted about a group: one note for the joined archive, or one for each zip of its own."""
    marks = _marks_folder(root, group.unpack_to)
    joined = archives.find_mark(group.name, marks)
    if joined is not None:
        return [joined]
    alone = [archives.find_mark(place(file, root).name, marks) for file in group.files]
    return [mark for mark in alone if mark is not None]


def _was_freed(group: _Group, root: Path) -> bool:
    """Unpacked by an earlier run, and its archive removed since: there is nothing to fetch."""
    if not group.is_archive or all(place(file, root).is_file() for file in group.files):
        return False
    marks = _marks_of(group, root)
    return any(mark.name == group.name for mark in marks) or len(marks) == len(group.files)


def _require_space(plan: Plan, to_unpack: Collection[Path], *, delete_archives: bool) -> None:
    """Videos and images do not shrink: what an archive unpacks to is at least as large as itself."""
    packed = sum(
        planned.num_bytes or 0 for planned in plan.files if planned.file.kind == "archive" and planned.path in to_unpack
    )
    to_fetch = plan.num_missing
    if packed and not delete_archives:
        cure = " With --delete-archives about half of it is enough."
        require_space(plan.folder, to_fetch + packed, what=" for the archives and what is in them", cure=cure)
    else:
        require_space(plan.folder, to_fetch)


def _unpack_all(
    paths: Sequence[Path],
    root: Path,
    unpack_to: str,
    delete_archives: bool,
    *,
    unpacked: list[archives.Unpacked],
    failures: list[str],
    progress: str | None = None,
    sets_aside: bool = False,
) -> None:
    """Unpack what `paths` make up; `sets_aside` what cannot be, so that the next run fetches it anew."""
    try:
        found = archives.group_parts(paths)
    except VidprepError as error:
        failures.append(str(error))
        return
    for archive in found:
        try:
            unpacked.append(
                archives.unpack(
                    archive,
                    root / unpack_to,
                    marks=_marks_folder(root, unpack_to),
                    delete_archives=delete_archives,
                    progress=f"{progress} {archive.name}" if progress else None,
                )
            )
        except CannotWrite:
            raise
        except archives.CorruptArchive as error:
            reason = str(error)
            if sets_aside:
                [path] = archive.parts
                with writing(path):
                    path.replace(path.with_name(f"{path.name}.rejected"))
                reason += f" It is kept as {path.name}.rejected; the next run fetches it anew."
            failures.append(reason)
        except VidprepError as error:
            failures.append(str(error))


def _walk(folder: Path) -> Iterator[Path]:
    """All files below, but for hidden ones and those of unfinished downloads."""
    for base, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in names:
            if not name.startswith(".") and not name.endswith((".part", ".part.json", ".rejected")):
                yield Path(base) / name


def _known_file(offered: Sequence[RemoteFile], below: PurePosixPath) -> RemoteFile | None:
    """The publisher's file of this place, or else the only one of this name."""
    of_name = []
    for file in offered:
        name = url_name(file.url)
        path = f"{file.filename or ''}/{name}" if file.kind == "url_list" else (file.filename or name)
        if path == below.as_posix():
            return file
        if PurePosixPath(path).name == below.name:
            of_name.append(file)
    return of_name[0] if len(of_name) == 1 else None


def _is_archive(info: DatasetInfo, path: Path, known: RemoteFile | None) -> bool:
    if known is not None:
        return known.kind == "archive"
    return archives.is_archive_name(path.name) or any(fnmatch(path.name, pattern) for pattern in info.archives)


def _destination(info: DatasetInfo, below: PurePosixPath, known: RemoteFile | None) -> tuple[str, str | None]:
    """The folder below the data root for an archive, and the split that it is of, if that is known."""
    if known is not None:
        return known.unpack_to, known.split
    folders = {file.unpack_to: file.split for file in info.files if file.unpack_to}
    for folder in reversed(below.parts[:-1]):
        if folder in folders:
            return folder, folders[folder]
    words = below.name.replace("-", "_").replace(".", "_").split("_")
    named = [folder for folder in folders if folder in words]
    if len(named) == 1:
        return named[0], folders[named[0]]
    own = PurePosixPath(_own_place(below)).parent.as_posix()
    return "" if own == "." else own, None


def _own_place(below: PurePosixPath) -> str:
    """The same place below the data root, where `archives/` stands for the root itself."""
    return "/".join(below.parts[1:] if below.parts[0] == "archives" else below.parts)


def _unlike_published(info: DatasetInfo, path: Path, known: RemoteFile | None, *, marks: Path) -> str:
    """What tells an archive from the published one of its name; empty where nothing does, or nothing was published.

    Read through once: one that was unpacked is not compared again.
    """
    md5 = info.archive_md5.get(path.name.removeprefix("Copy of "))  # as Google Drive calls them
    if md5 is not None and (known is None or not (known.sha256 or known.md5)):
        known = RemoteFile(url=path.name, md5=md5, kind="archive")
    if known is None or archives.is_unpacked(archives.Archive(name=path.name, parts=(path,)), marks):
        return ""
    return wrong_checksum(known, path)


def _is_miniature(info: DatasetInfo, source: Path) -> bool:
    """Whether `vidprep miniature` wrote a folder, or the one that it lies in."""
    for folder in (source.resolve(), source.resolve().parent):
        with contextlib.suppress(UsageError):  # no description of one
            return miniature.read_miniature(folder).dataset == info.name
    return False


def _put(source: Path, target: Path) -> None:
    """Link or copy a file, whole or not at all."""
    if target.exists():
        if target.samefile(source) or (target.is_file() and target.stat().st_size == source.stat().st_size):
            return
        raise VidprepError(
            f"{target}: is there with {target.stat().st_size} bytes, {source} has {source.stat().st_size}; remove the "
            f"wrong one."
        )
    part = target.with_name(f"{target.name}.{os.getpid()}.part")
    with writing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        part.unlink(missing_ok=True)
        try:
            os.link(source, part)
        except OSError as error:
            if error.errno not in (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP, errno.EACCES):
                raise
            shutil.copyfile(source, part)
        part.replace(target)
