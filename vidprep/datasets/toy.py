"""`toy`: generated clips of eight classes that only motion tells apart.

A scene is a static background and some shapes. Its eight clips show the shapes drifting at the same speed in the eight
directions, wrapped around the edges, each clip from a place drawn by lot: every position in every frame is as likely in
one class as in another, so that no single frame says which way things move.
"""

import io
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from vidprep import engine
from vidprep.errors import UsageError
from vidprep.splits import Split
from vidprep.types import DatasetInfo, Video

__all__ = ["CLASSES", "INFO", "build_split", "generate", "render_clip"]

CLASSES = ("right", "up-right", "up", "up-left", "left", "down-left", "down", "down-right")
"""Class k drifts at k x 45 degrees, counter-clockwise from the right."""

NUM_SCENES: Mapping[str, int] = MappingProxyType({"train": 50, "val": 20})
SEED = 2024
SIZE = 96
"""Height and width in pixels."""
NUM_FRAMES = 30
FRAME_RATE = 15

INFO = DatasetInfo(
    name="toy",
    title="Toy: eight directions of drift",
    description="Generated clips of drifting shapes in eight directions, which only motion tells apart.",
    access="generated",
    task="single_label",
    num_classes=len(CLASSES),
    splits={split: num_scenes * len(CLASSES) for split, num_scenes in NUM_SCENES.items()},
    video_paths=("videos/{split}/{video_id}.mp4",),
    instructions="It is generated: `vidprep toy --data-root ROOT` writes it in under a minute.",
    # a mirror turns k x 45 degrees into 180 - k x 45
    flip_pairs=MappingProxyType({index: (4 - index) % 8 for index in range(8)}),
    licence="Apache-2.0, as vidprep",
)


def generate(data_root: Path, *, workers: int = 1, progress: str | None = None) -> None:
    """Write all clips of both splits to `data_root`/videos/{split}/{video_id}.mp4.

    The same bytes each time with one build of FFmpeg and x264. Each file appears whole or not at all and files that
    are there are left alone, so an interrupted call is simply repeated.

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
    missing: list[_Clip] = []
    for split in NUM_SCENES:
        clips = [
            _Clip(path=_clip_path(data_root, split, video.video_id), split=split, scene=index // 8, label=index % 8)
            for index, video in enumerate(build_split(split).videos)
        ]
        folder = clips[0].path.parent
        with engine.writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
        engine.sweep(folder, r".*\.mp4")
        missing += [clip for clip in clips if not clip.path.is_file()]
    if missing:
        engine.run_all(missing, _write_clip, workers=workers, progress=progress)


@dataclass(frozen=True, kw_only=True)
class _Clip:
    path: Path
    split: str
    scene: int
    label: int


def build_split(split: str) -> Split:
    """The list that splits/toy/ holds: scene by scene, each in all eight directions."""
    return Split(
        dataset=INFO.name,
        split=split,
        task=INFO.task,
        classes=CLASSES,
        videos=tuple(
            Video(video_id=f"{split}_{scene:02d}_{name}", labels=(label,))
            for scene in range(NUM_SCENES[split])
            for label, name in enumerate(CLASSES)
        ),
    )


def _clip_path(data_root: Path, split: str, video_id: str) -> Path:
    return data_root / INFO.video_paths[0].format(split=split, video_id=video_id)


def _write_clip(clip: _Clip) -> None:
    content = _encode(render_clip(clip.split, clip.scene, clip.label))
    with engine.publish(clip.path) as file:
        file.write(content)


def render_clip(split: str, scene: int, label: int) -> NDArray[np.uint8]:
    """Frames (t, h, w, c) of one clip, RGB, before encoding."""
    seed = [SEED, list(NUM_SCENES).index(split), scene]
    rng = np.random.default_rng(seed)  # one scene for all classes
    background = _draw_background(rng)
    shapes = _draw_shapes(rng)
    pixels_per_frame = rng.uniform(1.2, 1.9)  # 4.5 to 7 px between two of 8 frames out of 30
    start = np.random.default_rng([*seed, label]).uniform(0, SIZE, size=2)
    angle = label * np.pi / 4
    steps = np.arange(NUM_FRAMES)[:, None] * pixels_per_frame
    drift = start + steps * np.array([-np.sin(angle), np.cos(angle)])  # (t, 2): rows grow downwards
    frames = np.repeat(background[None], NUM_FRAMES, axis=0)
    for shape in shapes:
        _paint(frames, shape, drift)
    return np.round(frames * 255).astype(np.uint8)


PALETTE = np.array(
    [
        (0.96, 0.36, 0.32),
        (0.98, 0.64, 0.24),
        (0.98, 0.85, 0.37),
        (0.45, 0.80, 0.47),
        (0.28, 0.75, 0.77),
        (0.37, 0.58, 0.93),
        (0.68, 0.49, 0.90),
        (0.95, 0.53, 0.73),
    ]
)
"""RGB in 0 ... 1."""


@dataclass(frozen=True, kw_only=True)
class _Shape:
    centre: NDArray[np.float64]
    """(row, column) in pixels, before the drift."""
    radius: float
    num_corners: int
    """0 is a disc."""
    rotation: float
    colour: NDArray[np.float64]
    pattern: str
    """How the second colour is laid in: "half", "dot", "ring" or "band"."""
    second_colour: NDArray[np.float64]


def _draw_background(rng: np.random.Generator) -> NDArray[np.float64]:
    """(h, w, c) in 0 ... 1: two dark hues that melt into each other over the whole picture."""
    hues = PALETTE[rng.choice(len(PALETTE), size=2, replace=False)] * 0.32 + 0.04
    rows, columns = np.mgrid[0:SIZE, 0:SIZE] * (2 * np.pi / SIZE)
    phase = rng.uniform(0, 2 * np.pi, size=2)
    mix = 0.5 + 0.25 * (np.sin(rows + phase[0]) + np.sin(columns + phase[1]))
    background: NDArray[np.float64] = hues[0] * mix[..., None] + hues[1] * (1 - mix[..., None])
    return background


def _draw_shapes(rng: np.random.Generator) -> list[_Shape]:
    """Shapes in a jittered 3 x 3 grid, so that they rarely overlap; some cells stay empty."""
    cell = SIZE / 3
    cells = rng.permutation(9)[: rng.integers(6, 9)]
    shapes = []
    for place in cells:
        first, second = rng.choice(len(PALETTE), size=2, replace=False)
        shapes.append(
            _Shape(
                centre=np.array(divmod(place, 3)) * cell + rng.uniform(-0.15, 0.15, size=2) * cell,
                radius=rng.uniform(9.0, 13.0),
                num_corners=int(rng.choice([0, 3, 4, 5, 6])),
                rotation=rng.uniform(0, 2 * np.pi),
                colour=PALETTE[first],
                pattern=str(rng.choice(["half", "dot", "ring", "band"])),
                second_colour=PALETTE[second],
            )
        )
    return shapes


def _paint(frames: NDArray[np.float64], shape: _Shape, drift: NDArray[np.float64]) -> None:
    """Lay one shape over `frames` (t, h, w, c), displaced by `drift` (t, 2) and wrapped around the edges."""
    reach = int(np.ceil(shape.radius)) + 1
    offsets = np.arange(-reach, reach + 1)
    centres = shape.centre + drift
    corners = np.round(centres).astype(np.int64)
    for frame, centre, corner in zip(frames, centres, corners, strict=True):
        rows, columns = corner[0] + offsets, corner[1] + offsets
        colour, alpha = _shade(shape, rows[:, None] - centre[0], columns[None, :] - centre[1])
        window = np.ix_(rows % SIZE, columns % SIZE)
        frame[window] += alpha[..., None] * (colour - frame[window])


def _shade(
    shape: _Shape, down: NDArray[np.float64], right: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Colour (h, w, c) and coverage (h, w) of a shape at offsets from its centre, edges one pixel soft."""
    distance = np.hypot(down, right)
    if shape.num_corners:
        sector = 2 * np.pi / shape.num_corners
        inner_radius = shape.radius * np.cos(sector / 2)
        angle = (np.arctan2(down, right) + shape.rotation) % sector - sector / 2
        outside = distance * np.cos(angle) - inner_radius
    else:
        outside = distance - shape.radius
    along = down * np.sin(shape.rotation) + right * np.cos(shape.rotation)
    across = down * np.cos(shape.rotation) - right * np.sin(shape.rotation)
    beyond = {  # pixels beyond the edge of the second colour
        "half": along,
        "dot": np.hypot(along - 0.3 * shape.radius, across) - 0.35 * shape.radius,
        "ring": 0.55 * shape.radius - distance,
        "band": np.abs(along) - 0.3 * shape.radius,
    }[shape.pattern]
    share = np.clip(0.5 - beyond, 0, 1)[..., None]
    return shape.second_colour * share + shape.colour * (1 - share), np.clip(0.5 - outside, 0, 1)


def _encode(frames: NDArray[np.uint8]) -> bytes:
    """The clip as H.264 in MP4, with settings under which the bytes depend on the frames alone.

    That is one thread, and no macroblock tree: with it, x264 gives pictures this small one of several encodings at
    random (measured: 3 different files of 6).
    """
    import av  # only here: the command line reads INFO and must start quickly

    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream(
            "libx264",
            rate=FRAME_RATE,
            options={"preset": "veryfast", "crf": "20", "threads": "1", "g": "15", "x264-params": "mbtree=0"},
        )
        stream.width, stream.height, stream.pix_fmt = SIZE, SIZE, "yuv420p"
        stream.time_base = Fraction(1, FRAME_RATE)
        for index, picture in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts = index
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return file.getvalue()
