"""Detectors on videos: every frame of a split in order, scored; and on single frames, as training validates.

Each sequence starts with no state, and its frames follow one by one: what the detector keeps from frame to frame is a
value that `step` returns.
"""

import io
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import pandas as pd
import torch
from torch import Tensor

from vidmodels.checkpoints import write_atomically
from vidmodels.detection import DetectionScores, Speed, score_detections, speeds_of
from vidmodels.distributed import ALONE, World
from vidmodels.types import Batch, Detections, Recipe
from vidprep.console import track
from vidprep.errors import UsageError, VidprepError
from vidprep.index import Fault
from vidprep.load.sequences import SequenceDataset, open_sequences
from vidprep.load.transforms import FitTransform
from vidprep.load.types import FrameTargets

__all__ = ["FoundInFrame", "FrameDetector", "StreamDetector", "StreamResult", "detect_frames", "detect_stream"]
__all__ += ["fit_of", "stream_of_file", "write_detections"]

SHOWN_FRAMES = 10
"""Of a video that is drawn: in RGTP a key frame with its cycle, the next key frame, and one more."""


@runtime_checkable
class FrameDetector(Protocol):
    """A model that finds objects in single frames."""

    def detect(self, frames: Tensor, *, shown_sizes: Sequence[tuple[int, int]] | None = None) -> list[Detections]:
        """What is found in each of n frames (..., 3, h, w) of bytes, padded as `shown_sizes` says."""
        ...


@runtime_checkable
class StreamDetector(Protocol):
    """A model that goes through a video."""

    def step(self, frame: Tensor, state: Any = None) -> tuple[Detections, Any]:
        """The next frame (3, h, w) of bytes: what is found in it, and the state for the frame after it."""
        ...


@dataclass(frozen=True, kw_only=True)
class FoundInFrame:
    """What was found in one frame of a sequence."""

    video_id: str
    number: int
    """Of the frame in its video, from 0."""
    detections: Detections
    """In pixels of the resized frame."""
    scale: float
    """Pixels of the resized frame for one of the stored frame."""
    targets: FrameTargets | None
    """The objects that are there; None where nothing is annotated."""


@dataclass(frozen=True, kw_only=True)
class StreamResult:
    """What a detector made of a split."""

    frames: tuple[FoundInFrame, ...]
    """All frames of all sequences, in order."""
    classes: tuple[str, ...]
    num_sequences: int
    missing: tuple[Fault, ...]
    """Videos of the split that are in no shard, and so are not scored."""
    scores: DetectionScores | None
    """None: no frame is annotated."""
    seconds: float
    """Wall clock, loading included."""

    @property
    def metrics(self) -> dict[str, float]:
        """All figures by name."""
        return {} if self.scores is None else self.scores.metrics


def fit_of(recipe: Recipe) -> FitTransform:
    """How the frames of a detection recipe are resized.

    Raises:
        UsageError: the recipe crops its frames.
    """
    data = recipe.data
    if data.fit != "pad":
        raise UsageError(
            f'recipe {recipe.name} crops its frames (data.fit = "{data.fit}"); a detector needs fit = "pad".'
        )
    return FitTransform(short_side=data.resize, long_side=data.crop)


def stream_of_file(recipe: Recipe, video: Path) -> Tensor:
    """Ten consecutive frames from the middle of a video, (t, c, h, w) of bytes, as a model of this recipe gets them.

    Raises:
        MissingVideo: no such file or folder.
        CorruptVideo: it does not decode.
    """
    longest = max(open_sequences(video, fit=fit_of(recipe)), key=len)
    start = max(0, (len(longest) - SHOWN_FRAMES) // 2)
    return torch.stack([frame.pixels for frame in longest.part(start, start + SHOWN_FRAMES)])


def detect_stream(
    model: torch.nn.Module,
    sequences: SequenceDataset,
    *,
    device: torch.device | str = "cpu",
    world: World = ALONE,
    description: str = "detect",
) -> StreamResult:
    """Run a detector over every frame of a split, sequence by sequence, and score all frames together.

    Several processes share the sequences; each gets the result of all.

    Args:
        model: a `StreamDetector`; run in evaluation mode, without gradients, and returned in the mode it came in.
        sequences: the split.
        device: where the model is.
        world: the processes that share the sequences.
        description: of the progress display.

    Raises:
        UsageError: a model that is no stream detector, or has other classes than the split.
        VidprepError: the model gives boxes or scores that are not numbers; names the frame.
    """
    if not isinstance(model, StreamDetector):
        raise UsageError(f"{type(model).__name__} does not go through videos frame by frame; it has no step().")
    started = time.perf_counter()
    speeds: list[list[Speed | None]] = []
    own = [sequences[index] for index in range(world.rank, len(sequences), world.size)]

    by_sequence: list[list[FoundInFrame]] = [[] for _ in own]

    def every_frame() -> Iterable[tuple[int, FoundInFrame]]:
        for place, sequence in enumerate(own):
            state = None
            for frame in sequence:
                detections, state = model.step(frame.pixels.to(device), state)
                yield (
                    place,
                    FoundInFrame(
                        video_id=sequence.name,
                        number=frame.number,
                        detections=_checked(detections.to("cpu"), f"{sequence.name}, frame {frame.number}"),
                        scale=frame.scale,
                        targets=frame.targets,
                    ),
                )

    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            frames = every_frame()
            if world.is_main:
                frames = track(frames, description=description, total=sum(len(sequence) for sequence in own))
            for place, in_frame in frames:
                by_sequence[place].append(in_frame)
    finally:
        model.train(was_training)
    found = [frame for part in world.gather_in_turn(by_sequence) for frame in part]
    is_annotated = all(frame.targets is not None for frame in found)
    if is_annotated:
        by_video: dict[str, list[FrameTargets]] = {}
        for frame in found:
            if frame.targets is not None:
                by_video.setdefault(frame.video_id, []).append(frame.targets)
        for of_video in by_video.values():
            speeds += speeds_of(of_video)
    return StreamResult(
        frames=tuple(found),
        classes=sequences.manifest.classes,
        num_sequences=len(sequences),
        missing=tuple(sequences.missing),
        scores=_score(found, speeds) if is_annotated else None,
        seconds=time.perf_counter() - started,
    )


def _score(found: Sequence[FoundInFrame], speeds: Sequence[Sequence[Speed | None]]) -> DetectionScores:
    targets = [frame.targets for frame in found if frame.targets is not None]
    return score_detections([frame.detections for frame in found], targets, speeds=speeds)


def _checked(detections: Detections, where: str) -> Detections:
    if not (detections.boxes.isfinite().all() and detections.scores.isfinite().all()):
        raise VidprepError(f"{where}: the model's boxes or scores are not finite numbers; its weights are broken.")
    return detections


def detect_frames(
    model: torch.nn.Module,
    loader: Iterable[Batch],
    *,
    device: torch.device | str = "cpu",
    world: World = ALONE,
    description: str = "evaluate",
    quiet: bool = False,
) -> DetectionScores:
    """Score a detector on single frames, none of which knows of another: how training validates.

    Args:
        model: a `FrameDetector`; run in evaluation mode, without gradients, and returned in the mode it came in.
        loader: batches of padded frames (b, v, t, c, S, S) with targets.
        device: where the model is.
        world: the processes that share the batches, as for `classify`; all of them get the scores of all.
        description: of the progress display.
        quiet: without one.

    Raises:
        UsageError: a model that is no detector, or data without boxes.
        VidprepError: the model gives boxes or scores that are not numbers; names the video.
    """
    if not isinstance(model, FrameDetector):
        raise UsageError(f"{type(model).__name__} finds no objects; it has no detect().")
    was_training = model.training
    batches: list[tuple[list[Detections], list[FrameTargets]]] = []
    model.eval()
    try:
        with torch.no_grad():
            for batch in loader if quiet else track(loader, description=description):
                if batch.targets is None:
                    raise UsageError("a detector is scored by boxes, these data have none; choose an annotated split.")
                predictions = []
                frames = batch.frames.flatten(0, 2)
                repeats = len(frames) // len(batch.frames)
                sizes = (
                    None if batch.shown_sizes is None else [size for size in batch.shown_sizes for _ in range(repeats)]
                )
                for name, found in zip(
                    (name for name in batch.video_id for _ in range(repeats)),
                    model.detect(frames.to(device), shown_sizes=sizes),
                    strict=True,
                ):
                    predictions.append(_checked(found.to("cpu"), name))
                batches.append(
                    (predictions, [frame.to("cpu") for sample in batch.targets for view in sample for frame in view])
                )
    finally:
        model.train(was_training)
    batches = world.gather_in_turn(batches)
    if not batches:
        raise UsageError("nothing to evaluate: the split gives no batch.")
    detections = [found for part, _ in batches for found in part]
    targets = [frame for _, part in batches for frame in part]
    return score_detections(detections, targets, speeds=[[None] * len(frame.labels) for frame in targets])


def write_detections(result: StreamResult, path: Path) -> None:
    """One row a detection: video_id, frame, class, label, score, left, top, right, bottom; as `.parquet` or `.json`.

    The box is in pixels of the frame as it is stored.

    Raises:
        UsageError: another ending.
    """
    rows = []
    for frame in result.frames:
        found = frame.detections
        corners = (found.boxes.double() / frame.scale).tolist()
        for label, score, box in zip(found.labels.tolist(), found.scores.tolist(), corners, strict=True):
            rows.append((frame.video_id, frame.number, result.classes[label], label, score, *box))
    columns = ["video_id", "frame", "class", "label", "score", "left", "top", "right", "bottom"]
    table = pd.DataFrame(rows, columns=columns)
    buffer = io.BytesIO()
    if path.suffix == ".parquet":
        table.to_parquet(buffer, index=False)
    elif path.suffix == ".json":
        buffer.write((table.to_json(orient="records", indent=1) + "\n").encode())
    else:
        raise UsageError(f"{path}: detections are written as .parquet or .json.")
    write_atomically(path, lambda file: file.write(buffer.getvalue()))
