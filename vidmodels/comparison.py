"""Trained models side by side: accuracy, cost and time of each, in its trainable and in its dynamic form."""

import json
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from vidmodels.breakdown import Coverage, Naming, confusion_pairs, confusion_tables, coverage_of, figures_per_class
from vidmodels.cost import LatencyStats, compare_latency, counting_macs
from vidmodels.data import open_test_split
from vidmodels.distributed import ALONE, World
from vidmodels.evaluate import Result, choose_device, classify
from vidmodels.methods import METHODS
from vidmodels.runs import Run, load_model
from vidprep.errors import UsageError
from vidprep.load.loader import make_loader
from vidprep.load.shards import ShardDataset

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
    classes: tuple[str, ...]
    """Of verbs and nouns the verbs."""
    noun_classes: tuple[str, ...] = ()
    coverage: Coverage
    """Which videos of the split the figures are of."""

    @property
    def seen(self) -> str:
        """How much of a video the model sees: views x frames x side."""
        recipe = self.run.recipe
        side = f"{recipe.eval_crop} x {recipe.eval_crop}"
        return f"{recipe.eval.num_clips * recipe.eval.num_crops} x {recipe.data.num_frames} x {side}"

    def per_class(self, form: str) -> pd.DataFrame:
        """What became of each class in one form; see `breakdown.figures_per_class`."""
        return figures_per_class(
            self.forms[form].result,
            Naming(model=self.run.name, form=form),
            classes=self.classes,
            nouns=self.noun_classes,
        )

    def confusion(self, form: str) -> dict[str, pd.DataFrame]:
        """Which class is taken for which; see `breakdown.confusion_tables`. Of several labels a video none."""
        result = self.forms[form].result
        if result.labels.ndim == 2:
            return {}
        return confusion_tables(result, classes=self.classes, nouns=self.noun_classes)

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
        are_alike = len({scored.seen for scored in self.runs}) == 1
        if not are_alike:
            rows[0].insert(1, "views x clip")
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
                        scored.run.title,
                        *(() if are_alike else (scored.seen,)),
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
    def coverage_remarks(self) -> list[str]:
        """Which videos are missing, and what the accuracies would be if they counted as wrong."""
        lines = []
        for sentence in dict.fromkeys(scored.coverage.sentence for scored in self.runs):
            if not sentence:
                continue
            lines.append(sentence)
            for scored in self.runs:
                if scored.coverage.sentence != sentence:
                    continue
                forms = ", ".join(
                    f"{name} top-1 {scored.coverage.if_wrong(form.result.top1):.2f} instead of {form.result.top1:.2f}"
                    for name, form in scored.forms.items()
                )
                lines.append(f"{scored.run.title}: if the missing videos counted as wrong: {forms}")
        return lines

    @property
    def remarks(self) -> list[str]:
        """What is missing, what the masks promise, and whether both forms agree: a line or two for each model."""
        lines = self.coverage_remarks
        for scored in self.runs:
            result = scored.forms["trainable"].result
            nouns = ", ".join(f"{name} {value:.2f} %" for name, value in result.nouns.items())
            if nouns:
                lines.append(f"{scored.run.title}: {nouns}; the table is of the verbs")
            figures = ", ".join(f"{name} {value:.4f}" for name, value in result.summary.items())
            if figures:
                lines.append(f"{scored.run.title}: {figures}")
            if "dynamic" not in scored.forms:
                continue
            dynamic, promised = scored.forms["dynamic"], scored.promised_gmacs
            if promised is not None:
                lines.append(
                    f"{scored.run.title}: the masks promise {promised:.4f} GMACs per clip, the dynamic form runs "
                    f"{dynamic.gmacs_per_clip:.4f} ({100 * (dynamic.gmacs_per_clip / promised - 1):+.2f} %)"
                )
            lines.append(
                f"{scored.run.title}: both forms predict the same for {scored.same_predictions} of "
                f"{len(dynamic.result.video_id)} videos; scores differ by at most {scored.largest_score_difference:.1e}"
            )
            if scored.different_gates is not None and scored.different_gates[0]:
                num_gates, num_clips = scored.different_gates
                lines.append(
                    f"{scored.run.title}: {num_gates} gates differ between the forms, in {num_clips} of "
                    f"{dynamic.result.num_clips} clips: their logits are so near 0 that rounding decides"
                )
        return lines

    def to_json(self) -> dict[str, Any]:
        """All figures, for a file."""
        content: dict[str, Any] = {"heading": self.heading, "timed_clips": self.timed_clips, "runs": []}
        for scored in self.runs:
            entry: dict[str, Any] = {
                "name": scored.run.title,
                "recipe": scored.run.recipe.name,
                "weights": str(scored.run.weights),
                "num_videos": len(scored.forms["trainable"].result.video_id),
                "coverage": scored.coverage.to_json(),
                "forms": {
                    name: {
                        **form.result.metrics,
                        **_accuracies_if_wrong(form.result, scored.coverage),
                        "gmacs_per_clip": form.gmacs_per_clip,
                        "latency": asdict(form.latency),
                        "per_class": json.loads(
                            scored.per_class(name).drop(columns=["model", "form"]).to_json(orient="records")
                        ),
                        "confused": {
                            kind: [asdict(pair) for pair in confusion_pairs(table)]
                            for kind, table in scored.confusion(name).items()
                        },
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
    datasets: list[ShardDataset] = []
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
                    description=f"{run.title} {name}",
                    quiet=not world.is_main,
                )
            evaluated[name] = (result, sum(world.gather(counter.macs)) / 1e9 / result.num_clips)
            calls[f"{position} {name}"] = (form, clips)
        results.append(evaluated)
        datasets.append(dataset)
    timed = {key: partial(form, clips) for key, (form, clips) in calls.items()}
    latency = world.of_first(lambda: compare_latency(timed, runs=timed_runs))
    scored = tuple(
        ScoredRun(
            run=run,
            forms={
                name: Form(result=result, gmacs_per_clip=gmacs, latency=latency[f"{position} {name}"])
                for name, (result, gmacs) in evaluated.items()
            },
            classes=dataset.manifest.classes,
            noun_classes=dataset.manifest.noun_classes,
            coverage=coverage_of(dataset),
        )
        for position, (run, evaluated, dataset) in enumerate(zip(runs, results, datasets, strict=True))
    )
    of_splits = dict.fromkeys(
        f"{one.run.recipe.data.dataset} {split or one.run.recipe.data.val_split}: {one.coverage.num_scored} videos"
        for one in scored
    )
    clips_seen = {one.seen: one.run.recipe for one in scored}
    seen = ""
    if len(clips_seen) == 1:
        [recipe] = clips_seen.values()
        views, side = recipe.eval.num_clips * recipe.eval.num_crops, recipe.eval_crop
        seen = f" x {views} views, {recipe.data.num_frames} frames of {side} x {side}"
    calls_of = f"{timed_clips} clip{'s' if timed_clips > 1 else ''} a call"
    heading = f"{', '.join(of_splits)}{seen}; timed on {_say(chosen)}, {calls_of}, float32"
    return Comparison(runs=scored, timed_clips=timed_clips, heading=heading)


def _accuracies_if_wrong(result: Result, coverage: Coverage) -> dict[str, float]:
    """Accuracies with the missing videos as wrong ones, where any is missing."""
    if coverage.is_whole:
        return {}
    accuracies = {name: value for name, value in result.metrics.items() if name.endswith(("top1", "top5"))}
    return {f"{name}_if_missing_are_wrong": coverage.if_wrong(value) for name, value in accuracies.items()}


def _say(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} with {torch.get_num_threads()} threads"
