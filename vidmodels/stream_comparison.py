"""Trained detectors side by side on a split: average precision, cost and time of each, frame by frame."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vidmodels.breakdown import Naming, objects_per_class
from vidmodels.cost import LatencyStats, compare_latency, counting_macs
from vidmodels.distributed import ALONE, World
from vidmodels.evaluate import choose_device
from vidmodels.runs import Run, load_model
from vidmodels.streams import StreamDetector, StreamResult, detect_stream, fit_of
from vidprep.errors import UsageError
from vidprep.load.sequences import SequenceDataset

__all__ = ["ScoredStream", "StreamComparison", "compare_streams"]

TIMED_FRAMES = 8
"""The first ones of the split's first sequence, from no state: in RGTP a key frame and its cycle."""


@dataclass(frozen=True, kw_only=True)
class ScoredStream:
    """One detector, evaluated."""

    run: Run
    result: StreamResult
    gmacs_per_frame: float
    """Counted from what ran, of the whole detector, mean of the timed frames."""
    latency: LatencyStats
    """Of the timed frames together."""


@dataclass(frozen=True, kw_only=True)
class StreamComparison:
    """Several detectors on their split."""

    runs: tuple[ScoredStream, ...]
    heading: str
    num_timed_frames: int

    @property
    def table(self) -> list[list[str]]:
        """Rows of text, the header first."""
        rows = [
            ["model", "mAP50", "slow", "medium", "fast", "mAP", "mAP75", "GMACs/frame", "ms/frame (min-max)", "CPU ms"]
        ]
        for scored in self.runs:
            scores = scored.result.scores
            figures = ["-"] * 6
            if scores is not None:
                by_speed = [scores.map50_by_speed[speed] for speed in ("slow", "medium", "fast")]
                values = [scores.map50, *by_speed, scores.map, scores.map75]
                figures = ["-" if value is None else f"{value:.2f}" for value in values]
            times = scored.latency
            median, low, high, cpu = (
                value / self.num_timed_frames
                for value in (times.median_ms, times.min_ms, times.max_ms, times.cpu_median_ms)
            )
            rows.append(
                [
                    scored.run.title,
                    *figures,
                    f"{scored.gmacs_per_frame:.3f}",
                    f"{median:.1f} ({low:.1f}-{high:.1f})",
                    f"{cpu:.1f}",
                ]
            )
        return rows

    @property
    def remarks(self) -> list[str]:
        """What is missing, what the speeds mean, and the classes of each model, a line each."""
        lines = []
        result = self.runs[-1].result
        if result.missing:
            first = result.missing[0]
            lines.append(
                f"MISSING: {len(result.missing)} of {len(result.missing) + result.num_sequences} videos of the split "
                f"are in no shard and are not scored, so these figures are not those of the split; the first: "
                f"{first.video_id} ({first.reason})"
            )
        if result.scores is None:
            lines.append("this split has no boxes: nothing is scored")
        else:
            counts = ", ".join(f"{count:,} {speed}" for speed, count in result.scores.num_by_speed.items())
            lines.append(f"objects, counted in every frame: {counts} (a false alarm counts against every speed)")
        for scored in self.runs:
            if scored.result.scores is not None:
                per_class = ", ".join(
                    f"{scored.result.classes[label]} {value:.1f}"
                    for label, value in scored.result.scores.map50_per_class.items()
                )
                lines.append(f"{scored.run.title}: mAP50 of each class that occurs: {per_class}")
        return lines

    def to_json(self) -> dict[str, Any]:
        """All figures, for a file."""
        content: dict[str, Any] = {"heading": self.heading, "timed_frames": self.num_timed_frames, "runs": []}
        for scored in self.runs:
            result = scored.result
            entry: dict[str, Any] = {
                "name": scored.run.title,
                "recipe": scored.run.recipe.name,
                "weights": str(scored.run.weights),
                "num_sequences": result.num_sequences,
                "num_frames": len(result.frames),
                "missing": {fault.video_id: fault.reason for fault in result.missing},
                **result.metrics,
                "gmacs_per_frame": scored.gmacs_per_frame,
                "latency": asdict(scored.latency),
            }
            if result.scores is not None:
                per_class = objects_per_class(result, Naming(model=scored.run.title, form="stream"))
                entry["per_class"] = json.loads(per_class.drop(columns=["model", "form"]).to_json(orient="records"))
                entry["num_by_speed"] = dict(result.scores.num_by_speed)
                entry["map50_per_class"] = {
                    result.classes[label]: value for label, value in result.scores.map50_per_class.items()
                }
            content["runs"].append(entry)
        return content


def compare_streams(
    runs: Sequence[Run],
    *,
    data: Path | None = None,
    split: str | None = None,
    timed_runs: int = 10,
    device: str | None = None,
    world: World = ALONE,
) -> StreamComparison:
    """Evaluate detectors on every frame of a split; then count and time the first frames, models taking turns.

    Several processes share the sequences, and the first one times, while the others wait; all get the same comparison.

    Args:
        runs: at least one.
        data: shards; None takes those that each was trained on.
        split: None takes each recipe's validation split.
        timed_runs: timed passes over the first frames, of each.
        device: None takes a GPU where there is one.
        world: the processes that share the sequences.

    Raises:
        UsageError: no shards known, or they do not fit the recipe.
        CheckpointError: weights that do not fit.
    """
    chosen = world.device(choose_device(device))
    evaluated: list[tuple[Run, StreamResult, float]] = []
    calls = {}
    num_timed = 0
    for position, run in enumerate(runs):
        recipe = run.recipe
        folder = data or run.data
        if folder is None:
            raise UsageError(f"{run.weights}: say with --data which shards to evaluate on.")
        sequences = SequenceDataset(folder, split or recipe.data.val_split, fit=fit_of(recipe))
        if sequences.manifest.dataset != recipe.data.dataset:
            raise UsageError(
                f"{folder}: holds {sequences.manifest.dataset}, but recipe {recipe.name} is for {recipe.data.dataset}; "
                f"give its shards, or say --set data.dataset={sequences.manifest.dataset} to use these."
            )
        model = load_model(run, num_classes=len(sequences.manifest.classes), device=chosen)
        result = detect_stream(
            model, sequences, device=chosen, world=world, description=f"{run.title} {sequences.manifest.split}"
        )
        first = [frame.pixels.to(chosen) for frame in sequences[0].part(0, TIMED_FRAMES)]
        num_timed = len(first)
        with torch.no_grad(), counting_macs() as counter:
            _go_through(model, first)
        evaluated.append((run, result, counter.macs / 1e9 / num_timed))
        calls[str(position)] = partial(_go_through, model, first)
    latency = world.of_first(lambda: compare_latency(calls, warmup=1, runs=timed_runs))
    result, recipe = evaluated[-1][1], runs[-1].recipe
    where = torch.cuda.get_device_name(chosen) if chosen.type == "cuda" else f"cpu, {torch.get_num_threads()} threads"
    heading = (
        f"{recipe.data.dataset} {split or recipe.data.val_split}: every one of {len(result.frames):,} frames of "
        f"{result.num_sequences} sequences, in order, in a square of {recipe.data.crop} x {recipe.data.crop}; GMACs "
        f"(of the whole detector) and times are those of the first {num_timed} frames, on {where}, float32"
    )
    return StreamComparison(
        runs=tuple(
            ScoredStream(run=run, result=result, gmacs_per_frame=gmacs, latency=latency[str(position)])
            for position, (run, result, gmacs) in enumerate(evaluated)
        ),
        heading=heading,
        num_timed_frames=num_timed,
    )


def _go_through(model: nn.Module, frames: Sequence[Tensor]) -> None:
    assert isinstance(model, StreamDetector)  # noqa: S101 - `detect_stream` has gone through it
    state = None
    for frame in frames:
        _, state = model.step(frame, state)
