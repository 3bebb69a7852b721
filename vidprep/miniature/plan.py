"""What a miniature is, and how its parts are written: clips with numbers of their own, tars, zips, parts, text."""

import gzip
import io
import json
import tarfile
import zipfile
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import numpy as np
import simplejpeg
from numpy.typing import NDArray

from vidprep.errors import UsageError
from vidprep.miniature.videos import MAX_NUMBER, number_image, write_numbered_video
from vidprep.types import Box, FrameAnnotation

__all__ = [
    "EXPECTED",
    "Clip",
    "Content",
    "ExpectedFault",
    "ExpectedSample",
    "ExpectedSplit",
    "Flaw",
    "Miniature",
    "Workshop",
    "cut",
    "make_tar",
    "make_zip",
    "read_miniature",
    "youtube_id",
]

Flaw = Literal["missing", "empty", "truncated", "gap", "outside"]
"""Why a video cannot become a sample: listed without a file (or folder); a file of zero bytes (a folder without an
image); a file (or an image) without its end; an image missing in the middle; a segment that lies after its video."""

EXPECTED = "expected.json"
JPEG_QUALITY = 90
QUICK_CODECS = {"libx264": {"preset": "ultrafast"}, "libx265": {"preset": "ultrafast"}}
"""Flat squares need no effort; B-frames, which these presets leave out, are asked for."""


@dataclass(frozen=True, kw_only=True)
class ExpectedSample:
    """One sample that the shards of a split must hold."""

    video_id: str
    labels: tuple[int, ...]
    first_number: int
    """Shown by the first frame of the sample (see `read_number`)."""
    last_number: int
    """Shown by its last frame."""
    start_seconds: float | None = None
    """Of the annotated segment; None is the whole video."""
    end_seconds: float | None = None
    segment_id: str = ""
    """The segment's own name, where the data set gives one."""
    boxes: tuple[FrameAnnotation, ...] = ()
    """Of detection: one a frame, also of frames without objects."""

    @property
    def name(self) -> str:
        """As reports call the sample."""
        return self.segment_id or self.video_id

    @property
    def num_frames(self) -> int:
        """Frames of the sample."""
        return self.last_number - self.first_number + 1


@dataclass(frozen=True, kw_only=True)
class ExpectedFault:
    """One video, or segment, that is listed and must end up as a fault."""

    name: str
    """As reports call it: the segment's own name, else the video's."""
    flaw: Flaw


@dataclass(frozen=True, kw_only=True)
class ExpectedSplit:
    """What must become of one split."""

    samples: tuple[ExpectedSample, ...]
    faults: tuple[ExpectedFault, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Miniature:
    """What was written, and what must come out of it."""

    dataset: str
    seed: int
    folder: Path
    annotations: tuple[str, ...]
    """Files for `vidprep split --annotations`, below `folder`."""
    splits: Mapping[str, ExpectedSplit]
    traps: Mapping[str, str]
    """Trap -> where it lies."""

    @property
    def archives(self) -> Path:
        """The files as a user who was given them would have them: for `vidprep download --from`."""
        return self.folder / "archives"

    @property
    def annotation_files(self) -> tuple[Path, ...]:
        """Files for `vidprep split --annotations`."""
        return tuple(self.folder / name for name in self.annotations)

    def to_json(self) -> str:
        """What expected.json says."""
        content = asdict(self)
        del content["folder"]
        return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def read_miniature(folder: Path) -> Miniature:
    """The description of a miniature that `make_miniature` wrote.

    Raises:
        UsageError: there is none in `folder`.
    """
    path = folder / EXPECTED
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        splits = {
            name: ExpectedSplit(
                samples=tuple(_to_sample(sample) for sample in split["samples"]),
                faults=tuple(ExpectedFault(**fault) for fault in split["faults"]),
            )
            for name, split in content.pop("splits").items()
        }
        annotations = tuple(content.pop("annotations"))
        return Miniature(folder=folder, annotations=annotations, splits=splits, **content)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(
            f"{path}: not the description of a miniature ({error}); `vidprep miniature NAME --out DIR` writes one."
        ) from error


def _to_sample(content: Mapping[str, Any]) -> ExpectedSample:
    boxes = tuple(
        FrameAnnotation(**frame | {"boxes": tuple(Box(**box | {"xyxy": tuple(box["xyxy"])}) for box in frame["boxes"])})
        for frame in content["boxes"]
    )
    return ExpectedSample(**{**content, "labels": tuple(content["labels"]), "boxes": boxes})


@dataclass(frozen=True, kw_only=True)
class Content:
    """What the maker of one data set's miniature hands back; see `Miniature`."""

    annotations: tuple[str, ...]
    splits: Mapping[str, ExpectedSplit]
    traps: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class Clip:
    """One video to be made, and its place in the lists."""

    video_id: str
    labels: tuple[int, ...] = ()
    num_frames: int = 100
    fps: int | Fraction = 10
    width: int = 340
    height: int = 256
    flaw: Flaw | None = None


@dataclass(kw_only=True)
class Workshop:
    """Makes videos and frames below a folder; each gets numbers that no other one of the miniature has."""

    folder: Path
    next_number: int = 0
    first_numbers: dict[str, int] = field(default_factory=dict)
    """Of each clip that was made, by its id."""

    def write_video(self, clip: Clip, path: Path, *, codec: str = "libx264", has_audio: bool = False) -> None:
        """Write a clip at `path`, with its flaw."""
        if clip.flaw == "missing":
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        write_numbered_video(
            path,
            num_frames=clip.num_frames,
            fps=clip.fps,
            width=clip.width,
            height=clip.height,
            codec=codec,
            gop=25,
            bframes=2 if codec in QUICK_CODECS else None,
            start=self._take(clip),
            has_audio=has_audio,
            options={"threads": "1"} | QUICK_CODECS.get(codec, {}),
            container_options={"fflags": "+bitexact"},
        )
        if clip.flaw == "empty":
            path.write_bytes(b"")
        elif clip.flaw == "truncated":
            # MP4 has its table of contents at the end: what is left is "moov atom not found".
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

    def write_frames(self, clip: Clip, folder: Path, *, template: str = "{:05d}.jpg", first_index: int = 1) -> None:
        """Write a clip as JPEG files, with its flaw in the middle."""
        if clip.flaw == "missing":
            return
        folder.mkdir(parents=True, exist_ok=True)
        if clip.flaw == "empty":
            return
        first_number = self._take(clip)
        for index in range(clip.num_frames):
            if clip.flaw == "gap" and index == clip.num_frames // 2:
                continue
            picture = number_image(first_number + index, width=clip.width, height=clip.height)
            content = encode_jpeg(picture)
            if clip.flaw == "truncated" and index == clip.num_frames // 2:
                content = content[: len(content) * 4 // 5]  # behind its header: it opens, and has a size
            (folder / template.format(first_index + index)).write_bytes(content)

    def expect(self, clips: Iterable[Clip]) -> ExpectedSplit:
        """What must become of a split of whole videos, in its order."""
        samples, faults = [], []
        for clip in clips:
            if clip.flaw is not None:
                faults.append(ExpectedFault(name=clip.video_id, flaw=clip.flaw))
                continue
            first = self.first_numbers[clip.video_id]
            samples.append(
                ExpectedSample(
                    video_id=clip.video_id,
                    labels=clip.labels,
                    first_number=first,
                    last_number=first + clip.num_frames - 1,
                )
            )
        return ExpectedSplit(samples=tuple(samples), faults=tuple(faults))

    def _take(self, clip: Clip) -> int:
        """The first of as many numbers as the clip has frames."""
        first = self.next_number
        self.next_number += clip.num_frames
        if self.next_number > MAX_NUMBER + 1:
            raise ValueError(f"a miniature has {MAX_NUMBER + 1} numbers for its frames; {clip.video_id} needs more")
        self.first_numbers[clip.video_id] = first
        return first


def encode_jpeg(picture: NDArray[np.uint8]) -> bytes:
    """(h, w, c) RGB as JPEG."""
    content: bytes = simplejpeg.encode_jpeg(
        np.ascontiguousarray(picture), quality=JPEG_QUALITY, colorspace="RGB", colorsubsampling="420"
    )
    return content


def make_tar(folder: Path, *, is_gzip: bool = True, only: Collection[str] | None = None) -> bytes:
    """A tar of everything below `folder`, sorted, without times and owners: equal files give equal bytes.

    Args:
        folder: names in the tar are relative to it.
        is_gzip: gzip, with no name and time in its header.
        only: files and folders below `folder` that go in; all when left out.
    """
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for path in sorted(folder.rglob("*")):
            below = path.relative_to(folder)
            if only is not None and not any(below.is_relative_to(name) for name in only):
                continue
            member = tarfile.TarInfo(below.as_posix())
            if path.is_dir():
                member.type, member.mode = tarfile.DIRTYPE, 0o755
                tar.addfile(member)
            else:
                member.size = path.stat().st_size
                with path.open("rb") as file:
                    tar.addfile(member, file)
    return gzip.compress(stream.getvalue(), compresslevel=1, mtime=0) if is_gzip else stream.getvalue()


def make_zip(members: Mapping[str, bytes]) -> bytes:
    """A zip of these files, without times: equal files give equal bytes."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in sorted(members):
            archive.writestr(zipfile.ZipInfo(name), members[name])
    return stream.getvalue()


def cut(content: bytes, num_parts: int) -> Sequence[bytes]:
    """An archive in parts of about equal length; joined they are the archive."""
    size = -(-len(content) // num_parts)
    return [content[first : first + size] for first in range(0, len(content), size)]


def youtube_id(rng: np.random.Generator, *, start: str = "") -> str:
    """Eleven characters as YouTube names videos, beginning with `start` and else with a letter."""
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
    inside = rng.choice(list(letters + "0123456789-_"), size=11 - max(len(start), 1))
    return (start or str(rng.choice(list(letters)))) + "".join(inside)
