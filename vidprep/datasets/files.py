"""Finding videos (files, or folders of frames) below a data root: one walk over the folders, a look-up by name."""

import logging
import os
import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from vidprep.errors import UsageError, VidprepError

__all__ = ["VIDEO_SUFFIXES", "find_frame_folders", "find_videos", "is_video_name", "walk_videos"]

VIDEO_SUFFIXES = frozenset(
    {".3gp", ".avi", ".flv", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts", ".ogv", ".webm", ".wmv"}
)
"""Compared in lower case."""
NOT_VIDEOS = frozenset({"frames", "splits", "quarantine"})
"""Folders directly below a data root that are never searched: extracted frames (alone they can be millions of files),
lists, and what `vidprep verify --quarantine` put aside."""

CLIP_NAME = re.compile(r"[A-Za-z0-9_-]{11}_(\d{6})_\d{6}")
"""A clip of Kinetics: YouTube id, start and end in seconds."""

logger = logging.getLogger(__name__)


def is_video_name(name: str) -> bool:
    """Whether a file of this name counts as a video: a known suffix, and not hidden."""
    return os.path.splitext(name)[1].lower() in VIDEO_SUFFIXES and not name.startswith(".")  # noqa: PTH122 - hot


def walk_videos(root: Path) -> Iterator[str]:
    """Paths of all video files below `root`, relative to it, with "/"; in no fixed order.

    Symbolic links are followed, each folder is visited once; hidden folders and `NOT_VIDEOS` are not entered.
    Folders that may not be read (lost+found) are named in the log.
    """
    visited: set[tuple[int, int]] = set()
    pending = [""]
    while pending:
        below = pending.pop()
        folder = os.path.join(root, below)  # noqa: PTH118 - 250,000 files: plain strings
        status = os.stat(folder)  # noqa: PTH116
        if (status.st_dev, status.st_ino) in visited:
            continue
        visited.add((status.st_dev, status.st_ino))
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    name = entry.name
                    if name.startswith(".") or (not below and name in NOT_VIDEOS):
                        continue
                    if entry.is_dir():
                        pending.append(f"{below}{name}/")
                    elif is_video_name(name) and entry.is_file():
                        yield below + name
        except PermissionError:
            logger.warning("%s: no permission to read this folder; videos in it count as missing.", folder)


@dataclass(frozen=True, kw_only=True)
class _Place:
    """One pattern of `DatasetInfo.video_paths`, taken apart: "{split}/**/v_{video_id}.*"."""

    folder: re.Pattern[str]
    stem: str
    suffix: str

    @classmethod
    def parse(cls, pattern: str, *, split: str) -> "_Place":
        *folders, name = pattern.split("/")
        stem, dot, suffix = name.rpartition(".")
        if "{video_id" not in stem or not dot:
            raise ValueError(f"a video pattern ends like /{{video_id}}.* or /{{video_id}}.mp4, got {pattern!r}")
        parts = (
            r"(?:[^/]+/)*" if part == "**" else re.escape(part.format(split=split)).replace(r"\*", "[^/]*") + "/"
            for part in folders
        )
        return cls(folder=re.compile("".join(parts)), stem=stem, suffix=suffix)

    def holds(self, path: str, *, video_id: str, split: str) -> bool:
        """Whether the file of a video lies where this pattern says; ids may hold folders ("archery/a")."""
        without_suffix, _, suffix = path.rpartition(".")
        stem = self.fill_stem(video_id=video_id, split=split)
        if stem.endswith("*"):
            folder, slash, name = without_suffix.rpartition("/")
            folder, has_stem = folder + slash, name.startswith(stem[:-1])
        else:
            folder, has_stem = without_suffix[: len(without_suffix) - len(stem)], without_suffix.endswith(stem)
        return has_stem and self.suffix in ("*", suffix) and self.folder.fullmatch(folder) is not None

    def fill_stem(self, *, video_id: str, split: str) -> str:
        """The name of a video's file without suffix; one that ends in "*" is the beginning of it."""
        if "{start_seconds}" not in self.stem:
            return self.stem.format(video_id=video_id, split=split)
        clip = CLIP_NAME.fullmatch(video_id)
        return self.stem.format(video_id=video_id, split=split, start_seconds=int(clip[1]) if clip else "")


def find_videos(root: Path, video_ids: Iterable[str], *, patterns: Sequence[str], split: str) -> dict[str, Path]:
    """The file of each video, by the patterns of its data set; videos without a file are absent.

    The first pattern that holds for any file of a video decides, so earlier patterns take precedence.

    Args:
        root: the data root.
        video_ids: names to look for; a repeated one counts once.
        patterns: below `root`, with {split} and {video_id}, {video_id:.11} its first 11 letters, {start_seconds} of
            ids such as ---QUuC4vJs_000084_000094 (84); `**` is any depth, `_*` any rest of a name, `.*` any suffix
            of `VIDEO_SUFFIXES`.
        split: fills {split}.

    Raises:
        UsageError: `root` is no folder.
        VidprepError: one pattern holds for two files of one video.
    """
    if not root.is_dir():
        raise UsageError(f"{root}: no such folder; give the data root that holds the videos.")
    places = [_Place.parse(pattern, split=split) for pattern in patterns]
    ids = list(dict.fromkeys(video_ids))
    stems = {place.stem: place for place in places}.values()
    wanted = {place.fill_stem(video_id=_last_part(video_id), split=split) for place in stems for video_id in ids}
    prefix_lengths = {len(stem) - 1 for stem in wanted if stem.endswith("*")}
    by_stem: dict[str, list[str]] = defaultdict(list)
    for path in walk_videos(root):
        stem = path.rpartition("/")[2].rpartition(".")[0]
        for key in (stem, *(f"{stem[:length]}*" for length in prefix_lengths)):
            if key in wanted:
                by_stem[key].append(path)
    found: dict[str, Path] = {}
    doubles: list[tuple[str, Path, Path]] = []
    for video_id in ids:
        for place in places:
            candidates = by_stem.get(place.fill_stem(video_id=_last_part(video_id), split=split), [])
            files = _distinct(
                root / path for path in sorted(candidates) if place.holds(path, video_id=video_id, split=split)
            )
            if files:
                found[video_id] = files[0]
                if len(files) > 1:
                    doubles.append((video_id, files[0], files[1]))
                break
    _refuse_doubles(doubles)
    return found


def _last_part(video_id: str) -> str:
    return video_id.rpartition("/")[2]


def find_frame_folders(root: Path, video_ids: Iterable[str], *, patterns: Sequence[str], split: str) -> dict[str, Path]:
    """The folder of images of each video, by the patterns of its data set; videos without a folder are absent.

    As `find_videos`, for patterns such as "**/Data/VID/{split}/*/{video_id}" that name folders. Folders of videos are
    not searched for more, so a walk is as long as there are videos, not images.

    Raises:
        UsageError: `root` is no folder.
        VidprepError: one pattern holds for two folders of one video.
    """
    if not root.is_dir():
        raise UsageError(f"{root}: no such folder; give the data root that holds the frames.")
    # a folder is taken for a file whose suffix is "": the pattern ends with the id itself
    places = [_Place.parse(f"{pattern}.", split=split) for pattern in patterns]
    ids = dict.fromkeys(video_ids)
    folders: dict[str, dict[int, list[str]]] = defaultdict(lambda: defaultdict(list))
    pending = [""]
    while pending:
        below = pending.pop()
        for name in _list_folders(root, below):
            path = f"{below}{name}"
            held = [
                number
                for number, place in enumerate(places)
                if name in ids and place.holds(f"{path}.", video_id=name, split=split)
            ]
            for number in held:
                folders[name][number].append(path)
            if not held:
                pending.append(f"{path}/")
    found: dict[str, Path] = {}
    doubles: list[tuple[str, Path, Path]] = []
    for video_id in ids:
        if video_id not in folders:
            continue
        candidates = _distinct(root / path for path in sorted(folders[video_id][min(folders[video_id])]))
        found[video_id] = candidates[0]
        if len(candidates) > 1:
            doubles.append((video_id, candidates[0], candidates[1]))
    _refuse_doubles(doubles)
    return found


def _list_folders(root: Path, below: str) -> list[str]:
    try:
        with os.scandir(os.path.join(root, below)) as entries:  # noqa: PTH118 - 150,000 folders: plain strings
            return [
                entry.name
                for entry in entries
                if not entry.name.startswith(".") and (below or entry.name not in NOT_VIDEOS) and entry.is_dir()
            ]
    except PermissionError:
        logger.warning("%s: no permission to read this folder; videos in it count as missing.", root / below)
        return []


def _distinct(paths: Iterable[Path]) -> list[Path]:
    """The paths less those that are links to an earlier one."""
    candidates = list(paths)
    if len(candidates) < 2:
        return candidates
    return list({path.resolve(): path for path in reversed(candidates)}.values())[::-1]


def _refuse_doubles(doubles: Collection[tuple[str, Path, Path]]) -> None:
    for video_id, first, second in doubles:
        others = f" (and so for {len(doubles) - 1} other videos)" if len(doubles) > 1 else ""
        what = "folders" if first.is_dir() else "files"
        raise VidprepError(f"{video_id}: two {what}, {first} and {second}{others}; keep one of them.")
