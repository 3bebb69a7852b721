"""`toy_detection`: generated sequences of moving shapes, with boxes and track ids, in the form of ImageNet VID.

A sequence is a static background over which one to three shapes drift and bounce off the edges, some slowly, some fast.
The class is the kind of shape: its outline and its hue. A sequence whose shapes come late begins with empty frames.
"""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from vidprep import engine
from vidprep.datasets import imagenet_vid
from vidprep.errors import UsageError
from vidprep.splits import Split
from vidprep.types import Box, DatasetInfo, FrameAnnotation, FrameFormat, Video

__all__ = ["CLASSES", "INFO", "build_split", "generate", "read_annotations", "render_sequence"]

CLASSES = ("disc", "square", "triangle", "cross")
HUES = ((0.93, 0.32, 0.29), (0.30, 0.78, 0.42), (0.33, 0.55, 0.96), (0.97, 0.84, 0.35))
"""RGB in 0 ... 1 of each class, a little different for each shape."""

NUM_SEQUENCES: Mapping[str, int] = MappingProxyType({"train": 32, "val": 8})
SEED = 2025
WIDTH, HEIGHT = 128, 96
NUM_FRAMES = 24
SPEEDS = (0.3, 1.5, 5.0)
"""Pixels a frame: of slow, medium and fast shapes (`vidmodels.detection` tells them apart by how boxes overlap)."""

INFO = DatasetInfo(
    name="toy_detection",
    title="Toy: moving shapes with boxes",
    description="Generated sequences of moving shapes of four kinds, with boxes and track ids in every frame.",
    access="generated",
    task="detection",
    num_classes=len(CLASSES),
    splits=dict(NUM_SEQUENCES),
    video_paths=("Data/VID/{split}/{video_id}",),
    media="frames",
    frames=FrameFormat(template="{:06d}.JPEG", first_index=0),
    instructions="It is generated: `vidprep toy toy_detection --data-root ROOT` writes it in some seconds.",
    licence="Apache-2.0, as vidprep",
)


def build_split(split: str) -> Split:
    """The list that splits/toy_detection/ holds."""
    return Split(
        dataset=INFO.name,
        split=split,
        task=INFO.task,
        classes=CLASSES,
        videos=tuple(Video(video_id=f"{split}_{number:02d}") for number in range(NUM_SEQUENCES[split])),
    )


def read_annotations(folder: Path) -> tuple[FrameAnnotation, ...]:
    """The boxes of a sequence, as `imagenet_vid.read_annotations`; an object is called by its class."""
    return imagenet_vid.read_annotations(folder, names=CLASSES)


def generate(data_root: Path, *, workers: int = 1, progress: str | None = None) -> None:
    """Write all sequences of both splits: frames below `data_root`/Data/VID, boxes below `data_root`/Annotations/VID.

    The same pixels and boxes each time. The frames of a sequence appear together, after its boxes; what is there is
    left alone, so an interrupted call is simply repeated.

    Args:
        data_root: made when missing.
        workers: processes.
        progress: what is being done, in a word or two, to show how far it is; None shows nothing.

    Raises:
        UsageError: `data_root` is a file.
        CannotWrite: no space, no permission.
    """
    if data_root.exists() and not data_root.is_dir():
        raise UsageError(f"{data_root}: is a file; give a folder for the toy data set.")
    missing = []
    for split in NUM_SEQUENCES:
        for number, video in enumerate(build_split(split).videos):
            frames = data_root / INFO.video_paths[0].format(split=split, video_id=video.video_id)
            if not frames.is_dir():
                missing.append(_Sequence(frames=frames, split=split, number=number))
    if missing:
        engine.run_all(missing, _write_sequence, workers=workers, progress=progress)


@dataclass(frozen=True, kw_only=True)
class _Sequence:
    frames: Path
    split: str
    number: int


def _write_sequence(sequence: _Sequence) -> None:
    import simplejpeg  # only here: the command line reads INFO and must start quickly

    frames, annotations = render_sequence(sequence.split, sequence.number)
    template = INFO.frames.template
    images = {
        template.format(index): simplejpeg.encode_jpeg(np.ascontiguousarray(frame), quality=95)
        for index, frame in enumerate(frames)
    }
    texts = {f"{found.frame_index:06d}.xml": _to_xml(found).encode() for found in annotations}
    _write_folder(imagenet_vid.annotation_folder(sequence.frames), texts)
    _write_folder(sequence.frames, images)


def _write_folder(folder: Path, files: Mapping[str, bytes]) -> None:
    """The whole folder or nothing."""
    with engine.writing(folder):
        part = folder.with_name(f".{folder.name}.part")
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        for name, content in files.items():
            (part / name).write_bytes(content)
        shutil.rmtree(folder, ignore_errors=True)
        part.replace(folder)


@dataclass(frozen=True, kw_only=True)
class _Shape:
    label: int
    radius: float
    tint: NDArray[np.float64]
    """Added to the class's hue."""
    centres: NDArray[np.float64]
    """(t, 2): row and column in each frame."""
    first_frame: int

    @property
    def colour(self) -> NDArray[np.float64]:
        """RGB in 0 ... 1."""
        return np.clip(np.array(HUES[self.label]) + self.tint, 0, 1)


def render_sequence(split: str, number: int) -> tuple[NDArray[np.uint8], tuple[FrameAnnotation, ...]]:
    """Frames (t, h, w, c) of a sequence, RGB, and the boxes of each; later shapes lie over earlier ones."""
    rng = np.random.default_rng([SEED, list(NUM_SEQUENCES).index(split), number])
    frames = np.repeat(_draw_background(rng)[None], NUM_FRAMES, axis=0)
    starts_late = rng.random() < 0.25
    shapes = [_draw_shape(rng, starts_late=starts_late) for _ in range(int(rng.integers(1, 4)))]
    shapes[0] = replace(shapes[0], label=number % len(CLASSES))  # every class in every split
    boxes: list[list[Box]] = [[] for _ in range(NUM_FRAMES)]
    for track_id, shape in enumerate(shapes):
        for index in range(shape.first_frame, NUM_FRAMES):
            coverage = _coverage(shape, index)
            frames[index] += coverage[..., None] * (shape.colour - frames[index])
            rows, columns = np.nonzero(coverage.max(1) > 0.5)[0], np.nonzero(coverage.max(0) > 0.5)[0]
            boxes[index].append(
                Box(
                    xyxy=(float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)),
                    label=shape.label,
                    track_id=track_id,
                    is_occluded=any(_overlap(shape, other, index) for other in shapes[track_id + 1 :]),
                )
            )
    annotations = tuple(
        FrameAnnotation(frame_index=index, width=WIDTH, height=HEIGHT, boxes=tuple(found))
        for index, found in enumerate(boxes)
    )
    return np.round(frames * 255).astype(np.uint8), annotations


def _draw_background(rng: np.random.Generator) -> NDArray[np.float64]:
    """(h, w, c) in 0 ... 1: two dark greys that melt into each other, and a little noise."""
    rows, columns = np.mgrid[0:HEIGHT, 0:WIDTH] * (2 * np.pi / WIDTH)
    phase, dark = rng.uniform(0, 2 * np.pi, size=2), rng.uniform(0.05, 0.3, size=(2, 3))
    mix = 0.5 + 0.25 * (np.sin(rows + phase[0]) + np.sin(columns + phase[1]))
    noise = rng.normal(0, 0.02, size=(HEIGHT, WIDTH, 1))
    background: NDArray[np.float64] = np.clip(dark[0] * mix[..., None] + dark[1] * (1 - mix[..., None]) + noise, 0, 1)
    return background


def _draw_shape(rng: np.random.Generator, *, starts_late: bool) -> _Shape:
    label = int(rng.integers(len(CLASSES)))
    radius = rng.uniform(11, 19)
    low, high = np.full(2, radius + 1), np.array([HEIGHT, WIDTH]) - radius - 1
    angle, speed = rng.uniform(0, 2 * np.pi), float(rng.choice(SPEEDS))
    steps = np.arange(NUM_FRAMES)[:, None] * speed * np.array([np.sin(angle), np.cos(angle)])
    # bouncing: the straight path, folded back at both ends
    period = 2 * (high - low)
    folded = (rng.uniform(low, high) - low + steps) % period
    return _Shape(
        label=label,
        radius=radius,
        tint=rng.uniform(-0.06, 0.06, size=3),
        centres=low + np.minimum(folded, period - folded),
        first_frame=int(rng.integers(3, 8)) if starts_late else 0,
    )


def _coverage(shape: _Shape, index: int) -> NDArray[np.float64]:
    """(h, w) in 0 ... 1: how much of each pixel the shape covers, edges one pixel soft."""
    centre, radius = shape.centres[index], shape.radius
    down = np.arange(HEIGHT)[:, None] + 0.5 - centre[0]
    right = np.arange(WIDTH)[None, :] + 0.5 - centre[1]
    along, across = np.abs(right), np.abs(down)
    match CLASSES[shape.label]:
        case "disc":
            outside = np.hypot(down, right) - radius
        case "square":
            outside = np.maximum(along, across) - 0.85 * radius
        case "triangle":  # the tip on top
            outside = np.maximum(down - 0.8 * radius, (2 * along - down - 0.8 * radius) / np.sqrt(5))
        case _:  # a bar across another
            bars = (
                np.maximum(along - 0.32 * radius, across - radius),
                np.maximum(across - 0.32 * radius, along - radius),
            )
            outside = np.minimum(*bars)
    coverage: NDArray[np.float64] = np.clip(0.5 - outside, 0, 1)
    return coverage


def _overlap(shape: _Shape, other: _Shape, index: int) -> bool:
    if index < other.first_frame:
        return False
    return bool((np.minimum(_coverage(shape, index), _coverage(other, index)) > 0.5).any())


def _to_xml(found: FrameAnnotation) -> str:
    objects = "".join(_object_to_xml(box) for box in found.boxes)
    return (
        f"<annotation>\n  <folder>{INFO.name}</folder>\n  <filename>{found.frame_index:06d}</filename>\n"
        f"  <size><width>{found.width}</width><height>{found.height}</height></size>\n{objects}</annotation>\n"
    )


def _object_to_xml(box: Box) -> str:
    corners: Sequence[tuple[str, float]] = tuple(zip(("xmin", "ymin", "xmax", "ymax"), box.xyxy, strict=True))
    bounds = "".join(f"<{name}>{value:g}</{name}>" for name, value in corners)
    return (
        f"  <object><trackid>{box.track_id}</trackid><name>{CLASSES[box.label]}</name><bndbox>{bounds}</bndbox>"
        f"<occluded>{box.is_occluded:d}</occluded><generated>{box.is_generated:d}</generated></object>\n"
    )
