"""Trained models side by side: accuracy, cost and time of each, in its trainable and in its dynamic form."""

from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vidmodels.cost import LatencyStats, compare_latency, counting_macs
from vidmodels.data import open_test_split
from vidmodels.distributed import ALONE, World
from vidmodels.evaluate import Result, choose_device, classify
from vidmodels.methods import METHODS
from vidmodels.runs import Run, load_model
from vidprep.errors import UsageError
from vidprep.load.loader import make_loader

__all__ = ["Comparison", "Form", "ScoredRun", "compare_runs"]


@dataclass(frozen=True, kw_only=True)
class Form:
    """One form of one model, evaluated."""

    result: Result
    gmacs_per_clip: float
    """Counted from what ran, mean over all clips of the split."""
    latency: LatencyStats
    """Of one call with `timed_clips` clips."""


@dataclass(frozen=True, kw_only=True)
class ScoredRun:
    """One model, evaluated in its forms."""

    run: Run
    forms: dict[str, Form]
    """"trainable", and "dynamic" where the method has one."""

    @property
    def promised_gmacs(self) -> float | None:
        """What the masks of the trainable form say that an exact skipper computes, per clip."""
        return self.forms["trainable"].result.summary.get("gmacs_counted")

    @property
    def same_predictions(self) -> int:
        """Videos for which both forms predict the same class."""
        trainable, dynamic = (self.forms[name].result for name in ("trainable", "dynamic"))
        return int((trainable.predictions == dynamic.predictions).sum())

    @property
    def largest_score_difference(self) -> float:
        """Between both forms, over all videos and classes."""
        trainable, dynamic = (self.forms[name].result for name in ("trainable", "dynamic"))
        return float((trainable.scores - dynamic.scores).abs().max())

    @property
    def different_gates(self) -> tuple[int, int] | None:
        """Gates that the forms set differently, and clips with such a gate; None for methods without gates."""
        trainable, dynamic = (self.forms[name].result.packed_masks for name in ("trainable", "dynamic"))
        if trainable is None or dynamic is None:
            return None
        per_clip = np.unpackbits(trainable ^ dynamic, axis=1).sum(axis=1)
        return int(per_clip.sum()), int(np.count_nonzero(per_clip))


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Several models on their split."""

    runs: tuple[ScoredRun, ...]
    timed_clips: int
    heading: str

    @property
    def table(self) -> list[list[str]]:
        """Rows of text, the header first. `of first`: GMACs as a share of the first row's."""
        rows = [
            ["model", "form", "top-1", "top-5", "mAP", "GMACs/clip", "of first", "ms/clip (min-max)", "CPU ms/clip"]
        ]
        first = next(iter(self.runs[0].forms.values())).gmacs_per_clip
        for scored in self.runs:
            for name, form in scored.forms.items():
                median, low, high, cpu = (
                    value / self.timed_clips
                    for value in (
                        form.latency.median_ms,
                        form.latency.min_ms,
                        form.latency.max_ms,
                        form.latency.cpu_median_ms,
                    )
                )
                rows.append(
                    [
                        scored.run.name,
                        name,
                        f"{form.result.top1:.2f}",
                        f"{form.result.top5:.2f}",
                        f"{form.result.map:.2f}",
                        f"{form.gmacs_per_clip:.4f}",
                        f"{100 * form.gmacs_per_clip / first:.1f} %",
                        f"{median:.1f} ({low:.1f}-{high:.1f})",
                        f"{cpu:.1f}",
                    ]
                )
        return rows

    @property
    def remarks(self) -> list[str]:
        """What the masks promise, and whether both forms agree: a line or two for each model."""
        lines = []
        for scored in self.runs:
            result = scored.forms["trainable"].result
            nouns = ", ".join(f"{name} {value:.2f} %" for name, value in result.nouns.items())
            if nouns:
                lines.append(f"{scored.run.name}: {nouns}; the table is of the verbs")
            figures = ", ".join(f"{name} {value:.4f}" for name, value in result.summary.items())
            if figures:
                lines.append(f"{scored.run.name}: {figures}")
            if "dynamic" not in scored.forms:
                continue
            dynamic, promised = scored.forms["dynamic"], scored.promised_gmacs
            if promised is not None:
                lines.append(
                    f"{scored.run.name}: the masks promise {promised:.4f} GMACs per clip, the dynamic form runs "
                    f"{dynamic.gmacs_per_clip:.4f} ({100 * (dynamic.gmacs_per_clip / promised - 1):+.2f} %)"
                )
            lines.append(
                f"{scored.run.name}: both forms predict the same for {scored.same_predictions} of "
                f"{len(dynamic.result.video_id)} videos; scores differ by at most {scored.largest_score_difference:.1e}"
            )
            if scored.different_gates is not None and scored.different_gates[0]:
                num_gates, num_clips = scored.different_gates
                lines.append(
                    f"{scored.run.name}: {num_gates} gates differ between the forms, in {num_clips} of "
                    f"{dynamic.result.num_clips} clips: their logits are so near 0 that rounding decides"
                )
        return lines

    def to_json(self) -> dict[str, Any]:
        """All figures, for a file."""
        content: dict[str, Any] = {"heading": self.heading, "timed_clips": self.timed_clips, "runs": []}
        for scored in self.runs:
            entry: dict[str, Any] = {
                "name": scored.run.name,
                "recipe": scored.run.recipe.name,
                "weights": str(scored.run.weights),
                "num_videos": len(scored.forms["trainable"].result.video_id),
                "forms": {
                    name: {
                        **form.result.metrics,
                        "gmacs_per_clip": form.gmacs_per_clip,
                        "latency": asdict(form.latency),
                    }
                    for name, form in scored.forms.items()
                },
                "promised_gmacs": scored.promised_gmacs,
            }
            if "dynamic" in scored.forms:
                entry["same_predictions"] = scored.same_predictions
                entry["largest_score_difference"] = scored.largest_score_difference
                if scored.different_gates is not None:
                    entry["different_gates"], entry["clips_with_different_gates"] = scored.different_gates
            content["runs"].append(entry)
        return content


def compare_runs(
    runs: Sequence[Run],
    *,
    data: Path | None = None,
    split: str | None = None,
    dynamic: bool = True,
    timed_clips: int = 1,
    timed_runs: int = 10,
    device: str | None = None,
    workers: int | None = None,
    world: World = ALONE,
) -> Comparison:
    """Evaluate models on a split, counting what runs; then time all of them taking turns.

    Several processes share the videos, and the first one times, while the others wait; all get the same comparison.

    Args:
        runs: at least one.
        data: shards; None takes those that each was trained on.
        split: None takes each recipe's validation split.
        dynamic: evaluate the dynamic form too, where it is another than the trainable one.
        timed_clips: clips of one timed call (the split's first ones).
        timed_runs: timed calls of each.
        device: None takes a GPU where there is one.
        workers: threads that prepare clips.
        world: the processes that share the videos.

    Raises:
        UsageError: no shards known, or they do not fit the recipe.
        CheckpointError: weights that do not fit.
    """
    chosen = world.device(choose_device(device))
    results: list[dict[str, tuple[Result, float]]] = []
    calls: dict[str, tuple[nn.Module, Tensor]] = {}
    for position, run in enumerate(runs):
        recipe, method = run.recipe, METHODS[run.recipe.method]
        folder = data or run.data
        if folder is None:
            raise UsageError(f"{run.weights}: say with --data which shards to evaluate on.")
        dataset = open_test_split(recipe, folder, split or recipe.data.val_split)
        num_classes = len(dataset.manifest.classes)
        model = load_model(run, num_classes=num_classes, device=chosen)
        forms = {"trainable": model}
        if dynamic and (other := method.make_dynamic(model)) is not model:
            forms["dynamic"] = other
        first = torch.cat([dataset[index].frames for index in range(min(timed_clips, len(dataset)))])
        clips = first.repeat(-(-timed_clips // len(first)), 1, 1, 1, 1)[:timed_clips].to(chosen)
        evaluated = {}
        for name, form in forms.items():
            loader = make_loader(
                dataset,
                batch_size=recipe.eval.batch_size,
                workers=workers,
                rank=world.rank,
                world_size=world.size,
                share="batches",
            )
            with counting_macs() as counter, closing(loader):
                result = classify(
                    form,
                    loader,
                    num_classes=num_classes,
                    average=recipe.eval.average,
                    summarise=method.summarise,
                    renumber_present_classes=recipe.eval.renumber_present_classes,
                    keep_masks=len(forms) > 1,
                    clips_per_call=recipe.eval.clips_per_call,
                    device=chosen,
                    world=world,
                    description=f"{run.name} {name}",
                    quiet=not world.is_main,
                )
            evaluated[name] = (result, sum(world.gather(counter.macs)) / 1e9 / result.num_clips)
            calls[f"{position} {name}"] = (form, clips)
        results.append(evaluated)
    timed = {key: partial(form, clips) for key, (form, clips) in calls.items()}
    latency = world.of_first(lambda: compare_latency(timed, runs=timed_runs))
    scored = tuple(
        ScoredRun(
            run=run,
            forms={
                name: Form(result=result, gmacs_per_clip=gmacs, latency=latency[f"{position} {name}"])
                for name, (result, gmacs) in evaluated.items()
            },
        )
        for position, (run, evaluated) in enumerate(zip(runs, results, strict=True))
    )
    last = runs[-1].recipe
    num_videos = len(results[-1]["trainable"][0].video_id)
    heading = (
        f"{last.data.dataset} {split or last.data.val_split}: {num_videos} videos x "
        f"{last.eval.num_clips * last.eval.num_crops} views, {last.data.num_frames} frames of {last.eval_crop} x "
        f"{last.eval_crop}; timed on {_say(chosen)}, {timed_clips} clip{'s' if timed_clips > 1 else ''} a call, float32"
    )
    return Comparison(runs=scored, timed_clips=timed_clips, heading=heading)


def _say(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} with {torch.get_num_threads()} threads"
