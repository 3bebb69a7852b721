"""ImageNet VID (ILSVRC2015): boxes of 30 classes with track ids in every frame of short videos, as JPEG frames."""

import re
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from pathlib import Path

from vidprep.datasets.annotations import Rows, read_lines
from vidprep.errors import MissingVideo, UsageError, VidprepError, quote
from vidprep.splits import Split, read_classes
from vidprep.types import Box, DatasetInfo, FrameAnnotation, FrameFormat, RemoteFile, Video

__all__ = [
    "INFO",
    "annotation_folder",
    "build_splits",
    "read_annotation",
    "read_annotations",
    "read_det_images",
    "read_frame_list",
]

ARCHIVE_MD5 = "5feb88ac3345e5b5eae71f6ec8a91325"

INFO = DatasetInfo(
    name="imagenet_vid",
    title="ImageNet VID (ILSVRC2015)",
    description="Object detection in video: boxes of 30 classes, with track ids and occlusion, in every frame.",
    task="detection",
    num_classes=30,
    splits={"train": 3_862, "val": 555, "test": 937},
    video_paths=("**/Data/VID/{split}/{video_id}", "**/Data/VID/{split}/*/{video_id}"),
    media="frames",
    frames=FrameFormat(template="{:06d}.JPEG", first_index=0),
    access="form",
    files=(
        RemoteFile(
            url="http://bvisionweb1.cs.unc.edu/ilsvrc2015/ILSVRC2015_VID.tar.gz",
            md5=ARCHIVE_MD5,
            filename="archives/ILSVRC2015_VID.tar.gz",
            kind="archive",
        ),
    ),
    archives=("ILSVRC2015_VID*.tar.gz", "ILSVRC2017_VID*.tar.gz"),
    archive_md5={"ILSVRC2015_VID.tar.gz": ARCHIVE_MD5},
    traps=(
        "Frames are numbered from 000000, their suffix is .JPEG in capitals.",
        "A bndbox gives xmax, xmin, ymax, ymin in that order: read by tag; xmax may equal the width.",
        "Frames without any object exist, and still have an XML file.",
        "Class numbers start at 0 here and at 1 in COCO files; names are WordNet ids (n02510455 is giant_panda).",
        "Frame numbers in VID_train_15frames.txt count from 0, the running index in VID_val_videos.txt from 1.",
        "The archive of 2017 has ILSVRC/ as its top folder, that of 2015 ILSVRC2015/.",
    ),
    instructions=(
        "Make an ImageNet account and accept its terms (https://image-net.org/challenges/LSVRC/2015/2015-downloads); "
        "unpack ILSVRC2015_VID.tar.gz (86 GB) below ROOT and run `vidprep split imagenet_vid --annotations "
        "ROOT/ILSVRC2015/ImageSets/VID/val.txt --data-root ROOT` (train_1.txt to train_30.txt for train), or with "
        "FGFA's lists VID_train_15frames.txt and VID_val_videos.txt."
    ),
    homepage="https://image-net.org/challenges/LSVRC/2015/",
    licence="ImageNet terms: non-commercial research and education",
    paper="https://arxiv.org/abs/1409.0575",
)

LIST_LINE = re.compile(
    r"(?:(?:train|val|test)/)?(?:ILSVRC201\d_VID_(?:train|val|test)_\d{4}/)?"
    r"(?P<snippet>ILSVRC201\d_(?P<split>train|val|test)_\d{8})(?:/(?P<frame>\d{6}))?(?P<numbers>(?: -?[0-9]{1,9})*)"
)


def build_splits(annotations: Sequence[Path]) -> dict[str, Split]:
    """The snippets that image sets hold, each once, in the order of the files.

    ILSVRC's ImageSets/VID/{train_1 ... train_30,val,test}.txt and FGFA's VID_train_15frames.txt, VID_val_frames.txt and
    VID_val_videos.txt. Snippets have no labels: `read_annotations` gives their boxes. Lists that give lengths, or name
    every frame, give `Video.num_frames`.

    Raises:
        UsageError: a line is not of these forms; names file, line and reason.
    """
    rows = Rows(INFO, read_classes(INFO.name))
    snippets: dict[str, tuple[str, str]] = {}
    lengths: dict[str, int] = {}
    listed_frames: dict[str, set[str]] = {}
    for path in annotations:
        next_index = 1
        for line, text in read_lines(path):
            place = f"{path}, line {line}"
            found = _match(text, place)
            numbers = [int(number) for number in found["numbers"].split()]
            if "VID_val_videos" in path.name:
                # snippet, running index of its first frame, 0, length
                if len(numbers) != 3 or numbers[0] != next_index:
                    raise UsageError(
                        f"{place}: expected `snippet {next_index} 0 length`, a running index of frames from 1, got "
                        f"{text[:80]!r}; is a line missing?"
                    )
                next_index += numbers[2]
            snippets.setdefault(found["snippet"], (found["split"], place))  # named once a frame, or once a class
            if found["frame"]:
                listed_frames.setdefault(found["snippet"], set()).add(found["frame"])
            elif len(numbers) == 3 and lengths.setdefault(found["snippet"], numbers[2]) != numbers[2]:
                raise UsageError(
                    f"{place}: {found['snippet']} has {numbers[2]} frames here and {lengths[found['snippet']]} before; "
                    "fetch the file again."
                )
    for snippet, (split, place) in snippets.items():
        # val.txt and test.txt of ILSVRC name every frame.
        num_frames = lengths.get(snippet) or len(listed_frames.get(snippet, ())) or None
        if num_frames is not None and num_frames < 1:
            raise UsageError(f"{place}: {snippet} has at least 1 frame, got {num_frames}.")
        rows.add(split, Video(video_id=snippet, num_frames=num_frames), place=place)
    return rows.to_splits()


def _match(text: str, place: str) -> re.Match[str]:
    found = LIST_LINE.fullmatch(text)
    if found is None:
        what = "DET images, which are no videos" if "ILSVRC2014" in text or "_DET_" in text else "another kind of list"
        raise UsageError(
            f"{place}: expected a snippet such as train/ILSVRC2015_VID_train_0000/ILSVRC2015_train_00000000 and "
            f"numbers, got {text[:80]!r}; is this {what}, or cut short?"
        )
    return found


def read_frame_list(path: Path) -> dict[str, tuple[int, ...]]:
    """Snippet -> its chosen frames, counted from 0, of FGFA's VID_train_15frames.txt (`snippet 1 frame length`).

    Raises:
        UsageError: a line is not of this form, or a frame is not within its snippet.
    """
    frames: dict[str, list[int]] = {}
    for line, text in read_lines(path):
        found = _match(text, f"{path}, line {line}")
        numbers = [int(number) for number in found["numbers"].split()]
        if len(numbers) != 3 or not 0 <= numbers[1] < numbers[2]:
            raise UsageError(
                f"{path}, line {line}: expected `snippet 1 frame length`, 0 <= frame < length, got {quote(text)}."
            )
        frames.setdefault(found["snippet"], []).append(numbers[1])
    return {snippet: tuple(chosen) for snippet, chosen in frames.items()}


def read_det_images(path: Path) -> tuple[str, ...]:
    """The images of DET that FGFA trains on beside VID, of DET_train_30classes.txt (`train/.../ILSVRC2014_... 1`).

    Raises:
        UsageError: a line is not of this form.
    """
    images: list[str] = []
    for line, text in read_lines(path):
        found = re.fullmatch(r"(train/\S*ILSVRC201[34]_\S+|train/n\d{8}/n\d{8}_\d+) 1", text)
        if found is None:
            raise UsageError(f"{path}, line {line}: expected `train/FOLDER/IMAGE 1`, got {text[:80]!r}.")
        images.append(found[1])
    return tuple(images)


def annotation_folder(frames: Path) -> Path:
    """The folder of XML files that belongs to a snippet's folder of frames: Annotations/VID/... beside Data/VID/...

    Raises:
        UsageError: the frames do not lie below Data/VID.
    """
    parts = frames.parts
    places = [index for index in range(len(parts) - 1) if parts[index : index + 2] == ("Data", "VID")]
    if not places:
        raise UsageError(f"{frames}: expected frames below Data/VID, as the archive has them, to find their boxes.")
    return Path(*parts[: places[-1]], "Annotations", *parts[places[-1] + 1 :])


def read_annotations(folder: Path, *, names: Sequence[str] | None = None) -> tuple[FrameAnnotation, ...]:
    """The boxes of a snippet, frame by frame in order, from its folder of XML files.

    Args:
        folder: the files.
        names: what the files call the classes, by index; None: the WordNet ids of ImageNet VID.

    Raises:
        MissingVideo: no such folder, or no XML files in it.
        VidprepError: a file is not of ILSVRC's form; names the file and the reason.
    """
    paths = sorted(folder.glob("*.xml")) if folder.is_dir() else []
    if not paths:
        raise MissingVideo(
            f"{folder}: no XML files; a snippet's boxes lie in Annotations/VID/... beside Data/VID/... (test has none)."
        )
    known = read_classes(INFO.name, "synsets.txt") if names is None else names
    index_of_synset = {synset: index for index, synset in enumerate(known)}
    return tuple(_read_annotation(path, index_of_synset) for path in paths)


def read_annotation(path: Path) -> FrameAnnotation:
    """The boxes of one frame, from its XML file.

    Raises:
        VidprepError: the file is not of ILSVRC's form; names the file and the reason.
    """
    return _read_annotation(path, {name: index for index, name in enumerate(read_classes(INFO.name, "synsets.txt"))})


def _read_annotation(path: Path, index_of_synset: dict[str, int]) -> FrameAnnotation:
    try:
        root = ET.fromstring(path.read_bytes())  # noqa: S314 - no entities are resolved from outside
        return FrameAnnotation(
            frame_index=_read_frame_index(root, path),
            width=int(_text(root, "size/width")),
            height=int(_text(root, "size/height")),
            boxes=tuple(_read_box(item, index_of_synset) for item in root.iter("object")),
        )
    except OSError as error:
        raise VidprepError(f"{path}: cannot be read ({error.strerror}).") from error
    except ET.ParseError as error:
        line, _ = error.position
        raise VidprepError(f"{path}, line {line}: not readable as XML ({error}); is the file cut short?") from error
    except (ValueError, LookupError) as error:  # LookupError: an encoding that does not exist
        raise VidprepError(f"{path}: not an annotation of ImageNet VID ({error}).") from error


def _read_frame_index(root: ET.Element, path: Path) -> int:
    name = _text(root, "filename")
    if path.stem != name and not path.stem.endswith(f"_{name}"):  # flat copies: SNIPPET_000000.xml
        raise ValueError(f"its <filename> is {quote(name)}; the file was renamed, or is of another frame")
    return int(name)


def _read_box(item: ET.Element, index_of_synset: dict[str, int]) -> Box:
    synset = _text(item, "name")
    if synset not in index_of_synset:
        raise ValueError(f"{quote(synset)} is none of the {len(index_of_synset)} classes")
    # by tag: the file gives xmax, xmin, ymax, ymin
    left, top, right, bottom = (float(_text(item, f"bndbox/{tag}")) for tag in ("xmin", "ymin", "xmax", "ymax"))
    return Box(
        xyxy=(left, top, right, bottom),
        label=index_of_synset[synset],
        track_id=int(_text(item, "trackid")),
        is_occluded=_read_flag(item, "occluded"),
        is_generated=_read_flag(item, "generated"),
    )


def _text(item: ET.Element, tag: str) -> str:
    text = item.findtext(tag)
    if text is None or not text.strip():
        raise ValueError(f"no <{tag}>")
    return text.strip()


def _read_flag(item: ET.Element, tag: str) -> bool:
    text = _text(item, tag)
    if text not in ("0", "1"):
        raise ValueError(f"<{tag}> is 0 or 1, got {quote(text)}")
    return text == "1"
