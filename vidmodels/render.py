"""What a detector finds in a video, drawn on it."""

import colorsys
import json
import math
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import IO, Any

import av
import av.error
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from vidmodels.checkpoints import read_metadata, write_atomically
from vidmodels.data import known_classes
from vidmodels.evaluate import choose_device
from vidmodels.methods import METHODS
from vidmodels.recipes import load_recipe
from vidmodels.runs import find_run, load_model
from vidmodels.streams import StreamDetector, fit_of
from vidmodels.types import Detections, Recipe
from vidprep.console import track
from vidprep.datasets import DATASETS, class_names
from vidprep.errors import UsageError, VidprepError
from vidprep.load.sequences import SequenceFrame, open_sequences

__all__ = ["Rendered", "draw_boxes", "render_video"]

DEFAULT_RECIPE = "rgtp_vitdet/imagenet_vid_672_keep512"
TICKS_PER_SECOND = 90_000
"""In which the times of frames are written."""


@dataclass(frozen=True, kw_only=True)
class Rendered:
    """What became of a video."""

    num_frames: int
    num_sequences: int
    num_boxes: int
    """Drawn ones."""
    seconds: float

    def line(self) -> str:
        """In a sentence."""
        sequences = f" of {self.num_sequences} sequences" if self.num_sequences > 1 else ""
        return (
            f"{self.num_frames} frames{sequences}, {self.num_boxes} boxes ({self.num_boxes / self.num_frames:.1f} a "
            f"frame), {self.num_frames / self.seconds:.2g} frames a second"
        )


def render_video(
    video: Path,
    out: Path,
    *,
    weights: Path | None = None,
    recipe_name: str | None = None,
    overrides: Sequence[str] = (),
    min_score: float = 0.5,
    frame_rate: float = 25.0,
    max_frames: int | None = None,
    device: str | None = None,
) -> str:
    """Run a detector over a video, frame by frame, and write the video with what it finds, all of it or nothing.

    Args:
        video: a file, or a folder of numbered images, in which a gap starts a new sequence.
        out: the new video, .mp4 (H.264).
        weights: run folder or checkpoint; None: random weights, which find nothing.
        recipe_name: of the model, where the weights bring none.
        overrides: changes to the recipe.
        min_score: boxes with a lower score are not drawn.
        frame_rate: frames per second of images, which bring no times.
        max_frames: stop after so many.
        device: None takes a GPU where there is one.

    Returns:
        What was done, in a sentence.

    Raises:
        UsageError: a recipe that is no detector's, numbers out of range, or another ending than .mp4.
        MissingVideo: no such video.
        CorruptVideo: it does not decode.
        VidprepError: the new video cannot be written.
    """
    if out.suffix != ".mp4" or not out.absolute().parent.is_dir():
        raise UsageError(f"{out}: expected a name ending in .mp4, in a folder that exists.")
    if out.resolve() == video.resolve():
        raise UsageError(f"{out}: is the video itself; write to another file.")
    if not 0 <= min_score <= 1 or not 0 < frame_rate <= 1000 or (max_frames is not None and max_frames < 1):
        raise UsageError(
            f"min_score lies in 0 ... 1, frame_rate above 0, and there is at least 1 frame; got {min_score}, "
            f"{frame_rate} and {max_frames}."
        )
    chosen = choose_device(device)
    if weights is not None:
        run = find_run(weights, recipe=recipe_name, overrides=overrides)
        recipe, names = run.recipe, _class_names(run.recipe, run.weights)
        fit = fit_of(recipe)
        model = load_model(run, num_classes=len(names), device=chosen)
    else:
        recipe = load_recipe(recipe_name or DEFAULT_RECIPE, overrides)
        names, fit = _class_names(recipe, None), fit_of(recipe)
        torch.manual_seed(0)
        model = METHODS[recipe.method].build(recipe.model, len(names)).to(chosen).eval()
    if not isinstance(model, StreamDetector):
        raise UsageError(f"recipe {recipe.name} is no detector's ({recipe.method} has no step()).")
    sequences = open_sequences(video, fit=fit)
    num_frames = sum(map(len, sequences))
    counts = {"frames": 0, "boxes": 0}

    def pictures() -> Iterator[tuple[float, NDArray[np.uint8]]]:
        for sequence in sequences:
            state: Any = None
            for frame in sequence:
                if counts["frames"] == max_frames:
                    return
                found, state = model.step(frame.pixels.to(chosen), state)
                drawn, picture = _draw_found(frame, found.to("cpu"), names, min_score=min_score)
                yield _seconds(frame, counts["frames"], frame_rate), picture
                counts["frames"] += 1
                counts["boxes"] += drawn

    started = time.perf_counter()
    total = num_frames if max_frames is None else min(num_frames, max_frames)
    with torch.no_grad():
        shown = track(pictures(), description=f"detect {video.name}", total=total)
        write_atomically(out, lambda file: _encode(file, shown, out))
    rendered = Rendered(
        num_frames=counts["frames"],
        num_sequences=len(sequences),
        num_boxes=counts["boxes"],
        seconds=time.perf_counter() - started,
    )
    said = f"weights of {weights}" if weights is not None else "RANDOM weights (give trained ones with --weights)"
    return f"{out}: {rendered.line()}; {recipe.method}/{recipe.name} with {said}"


def _class_names(recipe: Recipe, weights: Path | None) -> tuple[str, ...]:
    """As the weights' header has them, or as vidprep knows them of the data set."""
    header = read_metadata(weights).get("classes") if weights is not None else None
    if header is not None:
        return tuple(json.loads(header))
    info = DATASETS.get(recipe.data.dataset)
    if info is not None and info.num_classes == known_classes(recipe.data):
        return class_names(info)[0]
    num_classes = known_classes(recipe.data)
    if num_classes is None:
        raise UsageError(f"recipe {recipe.name} does not say how many classes there are; add --set data.num_classes=K.")
    return tuple(f"class {index}" for index in range(num_classes))


def _seconds(frame: SequenceFrame, place: int, frame_rate: float) -> float:
    return place / frame_rate if math.isnan(frame.seconds) else frame.seconds


def _draw_found(
    frame: SequenceFrame, found: Detections, names: Sequence[str], *, min_score: float
) -> tuple[int, NDArray[np.uint8]]:
    """How many boxes are drawn, and the picture with them, as large as it is stored."""
    certain = found.scores >= min_score
    boxes = found.boxes[certain] / frame.scale
    picture = draw_boxes(
        frame.picture, boxes.tolist(), found.labels[certain].tolist(), found.scores[certain].tolist(), names
    )
    return int(certain.sum()), picture


def draw_boxes(
    picture: NDArray[np.uint8],
    boxes: Sequence[Sequence[float]],
    labels: Sequence[int],
    scores: Sequence[float],
    names: Sequence[str],
) -> NDArray[np.uint8]:
    """A picture (h, w, c) with boxes in its pixels, each with its class and score, the most certain one on top."""
    image = Image.fromarray(picture)
    height, width = picture.shape[:2]
    draw = ImageDraw.Draw(image)
    line = max(1, round(min(height, width) / 240))
    font = ImageFont.load_default(size=max(9, min(height, width) / 32))
    for box, label, score in sorted(zip(boxes, labels, scores, strict=True), key=lambda one: one[2]):
        left, right = (min(max(value, 0), width - 1) for value in box[::2])
        top, bottom = (min(max(value, 0), height - 1) for value in box[1::2])
        if right <= left or bottom <= top:
            continue  # all of it lies in the padding
        colour = _colour(label)
        draw.rectangle((left, top, right, bottom), outline=colour, width=line)
        text = f"{names[label]} {score:.2f}"
        _, _, text_width, text_height = draw.textbbox((0, 0), text, font=font)
        above = top - text_height - 2 >= 0
        corner = (min(left, max(0, width - text_width - 2)), top - text_height - 2 if above else top)
        draw.rectangle((*corner, corner[0] + text_width + 2, corner[1] + text_height + 2), fill=colour)
        draw.text((corner[0] + 1, corner[1]), text, fill="black", font=font)
    return np.asarray(image)


def _colour(label: int) -> tuple[int, int, int]:
    """Hues a golden angle apart: neighbouring classes look different."""
    red, green, blue = colorsys.hsv_to_rgb(label * 0.618034 % 1, 0.65, 1.0)
    return round(255 * red), round(255 * green), round(255 * blue)


def _encode(file: IO[bytes], pictures: Iterable[tuple[float, NDArray[np.uint8]]], out: Path) -> None:
    """Write H.264 in MP4 to the (still empty) file; sides become even, since 4:2:0 needs that."""
    size: tuple[int, ...] = ()
    try:
        with av.open(file.name, "w", format="mp4", options={"movflags": "+faststart"}) as container:
            stream: Any = container.add_stream(
                "libx264", rate=Fraction(25), options={"crf": "20", "preset": "veryfast"}
            )
            stream.pix_fmt = "yuv420p"
            stream.codec_context.time_base = Fraction(1, TICKS_PER_SECOND)
            last = -1
            for seconds, picture in pictures:
                height, width = (side - side % 2 for side in picture.shape[:2])
                if not size:
                    size = (height, width)
                    stream.height, stream.width = size
                elif size != (height, width):
                    raise VidprepError(
                        f"{out}: a frame of {width}x{height} pixels follows frames of {size[1]}x{size[0]}; a video has "
                        "one size, draw these sequences one by one."
                    )
                frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture[:height, :width]), format="rgb24")
                last = max(last + 1, round(seconds * TICKS_PER_SECOND))
                frame.pts, frame.time_base = last, Fraction(1, TICKS_PER_SECOND)
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
    except av.error.FFmpegError as error:
        raise VidprepError(f"{out}: cannot be encoded: {error.strerror or error}.") from error
