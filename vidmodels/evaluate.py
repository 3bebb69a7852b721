"""Scoring a split of videos: every video once, its views averaged, figures and a table of predictions."""

import io
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vidmodels.checkpoints import write_atomically
from vidmodels.distributed import ALONE, World
from vidmodels.metrics import action_accuracy, mean_average_precision, topk_accuracy
from vidmodels.types import Batch, Output
from vidprep.console import track
from vidprep.errors import UsageError, VidprepError

__all__ = ["Result", "choose_device", "classify", "mean_average_precision", "mean_probabilities"]
__all__ += ["topk_accuracy", "write_predictions"]


@dataclass(frozen=True, kw_only=True)
class Result:
    """What a model made of a split."""

    video_id: tuple[str, ...]
    """n, in the split's order; videos with several annotated segments come several times."""
    labels: Tensor
    """(n,) class indices (of verbs and nouns: the verb), or (n, k) of zeros and ones."""
    scores: Tensor
    """(n, k): logits or probabilities, averaged over the views."""
    probabilities: Tensor
    """(n, k): the same as probabilities."""
    top1: float
    """Per cent. For several labels a clip: the one with the smallest index counts."""
    top5: float
    map: float
    """Per cent; of multi-label tasks with all labels."""
    num_clips: int
    """Clips that the model saw: videos x views."""
    summary: Mapping[str, float]
    """The method's own figures, mean over the clips."""
    seconds: float
    """Wall clock, loading included."""
    nouns: Mapping[str, float] = field(default_factory=dict)
    """Per cent, for data with verbs and nouns and models that know both: top-1 and top-5 of the noun and of the action,
    which is verb and noun together."""
    noun_labels: Tensor | None = None
    """(n,) the true nouns, where `nouns` are known."""
    noun_probabilities: Tensor | None = None
    """(n, nouns)."""
    packed_masks: NDArray[np.uint8] | None = None
    """(clips, bytes): `aux["masks"]` of every clip, a bit a gate, where asked for and the method has them."""

    @property
    def metrics(self) -> dict[str, float]:
        """All figures by name."""
        return {"top1": self.top1, "top5": self.top5, "map": self.map, **self.nouns, **self.summary}

    @property
    def predictions(self) -> Tensor:
        """(n,) the class with the highest score; of equal ones the lowest."""
        return self.scores.argsort(dim=1, descending=True, stable=True)[:, 0]


@dataclass(frozen=True, kw_only=True)
class _ScoredBatch:
    """What a model made of b videos."""

    video_id: Sequence[str]
    labels: Tensor
    scores: Tensor
    """(b, k)."""
    probabilities: Tensor
    """(b, k)."""
    noun_probabilities: Tensor | None
    """(b, nouns)."""
    masks: Sequence[NDArray[np.uint8]]
    """Of each call."""
    figures: Sequence[Mapping[str, float]]
    """The method's own, summed over the clips of each call."""
    num_clips: int


def classify(
    model: nn.Module,
    loader: Iterable[Batch],
    *,
    num_classes: int,
    average: Literal["logits", "probabilities"] = "logits",
    summarise: Callable[[nn.Module, Output], Mapping[str, float]] | None = None,
    renumber_present_classes: bool = False,
    keep_masks: bool = False,
    clips_per_call: int | None = None,
    device: torch.device | str = "cpu",
    world: World = ALONE,
    description: str = "evaluate",
    quiet: bool = False,
) -> Result:
    """Score every sample of a loader once.

    Several processes share the batches; each gets the result of all, to the last bit that of a single process, as far
    as the arithmetic of each has as many threads.

    Args:
        model: `forward(frames (n, t, c, h, w)) -> Output` with logits (n, k); run in evaluation mode, without
            gradients, and returned in the mode it came in. Of verbs and nouns the logits are the verbs', and
            `aux["noun_logits"]` the nouns', where the model knows them.
        loader: batches of (b, v, t, c, h, w), none left out, none twice; in several processes those of
            `make_loader(rank=..., world_size=..., share="batches")`.
        num_classes: k.
        average: what is averaged over the v views of a video: logits (softmax after), or probabilities.
        summarise: the method's figures of a batch, means per clip; (model, output) -> {name: value}.
        renumber_present_classes: see `metrics.mean_average_precision`.
        keep_masks: keep which gates were open in each clip.
        clips_per_call: the model sees at most so many at once; None: all views of a batch.
        device: where the model is.
        world: the processes that share the batches.
        description: of the progress display.
        quiet: without one.

    Raises:
        UsageError: the loader gives nothing, or the model has another number of classes.
        VidprepError: the model gives scores that are not numbers; names the first video.
    """
    started = time.perf_counter()
    was_training = model.training
    batches: list[_ScoredBatch] = []
    model.eval()
    try:
        with torch.no_grad():
            for batch in loader if quiet else track(loader, description=description):
                batch_size, num_views = batch.frames.shape[:2]
                clips = batch.frames.flatten(0, 1)
                calls, noun_calls, masks, figures = [], [], [], []
                for part in torch.split(clips, clips_per_call or len(clips)):
                    output: Output = model(part.to(device, non_blocking=True))
                    calls.append(output.logits.double().cpu())
                    if "noun_logits" in output.aux:
                        noun_calls.append(output.aux["noun_logits"].double().cpu())
                    if keep_masks and "masks" in output.aux:
                        masks.append(np.packbits(output.aux["masks"].flatten(1).cpu().numpy() > 0, axis=1))
                    own = summarise(model, output) if summarise else {}
                    figures.append({name: value * len(part) for name, value in own.items()})
                logits = torch.cat(calls).view(batch_size, num_views, -1)
                if logits.shape[-1] != num_classes:
                    raise UsageError(f"the model has {logits.shape[-1]} classes, the data have {num_classes}.")
                if not logits.isfinite().all():
                    broken = int((~logits.isfinite()).flatten(1).any(1).nonzero()[0])
                    raise VidprepError(
                        f"{batch.video_id[broken]}: the model's scores are not finite numbers; its weights are broken."
                    )
                nouns_of = torch.cat(noun_calls).view(batch_size, num_views, -1) if noun_calls else None
                batches.append(
                    _ScoredBatch(
                        video_id=batch.video_id,
                        labels=batch.labels,
                        scores=logits.mean(1) if average == "logits" else logits.softmax(-1).mean(1),
                        probabilities=mean_probabilities(logits, average),
                        noun_probabilities=None if nouns_of is None else mean_probabilities(nouns_of, average),
                        masks=masks,
                        figures=figures,
                        num_clips=batch_size * num_views,
                    )
                )
    finally:
        model.train(was_training)
    batches = world.gather_in_turn(batches)
    if not batches:
        raise UsageError("nothing to evaluate: the split gives no batch.")
    all_labels = torch.cat([batch.labels for batch in batches])
    all_probabilities = torch.cat([batch.probabilities for batch in batches])
    nouns, noun_labels, all_noun_probabilities = {}, None, None
    if all_labels.ndim == 2 and not all_labels.is_floating_point():
        scored_nouns = [batch.noun_probabilities for batch in batches if batch.noun_probabilities is not None]
        if scored_nouns:
            noun_labels, all_noun_probabilities = all_labels[:, 1], torch.cat(scored_nouns)
            nouns = _noun_accuracy(all_probabilities, all_noun_probabilities, all_labels)
        all_labels = all_labels[:, 0]
    num_clips = sum(batch.num_clips for batch in batches)
    sums: dict[str, float] = {}
    for call in (call for batch in batches for call in batch.figures):
        for name, value in call.items():
            sums[name] = sums.get(name, 0.0) + value
    all_masks = [part for batch in batches for part in batch.masks]
    return _scored(
        [name for batch in batches for name in batch.video_id],
        all_labels,
        torch.cat([batch.scores for batch in batches]),
        all_probabilities,
        num_clips=num_clips,
        summary={name: total / num_clips for name, total in sums.items()},
        seconds=time.perf_counter() - started,
        nouns=nouns,
        noun_labels=noun_labels,
        noun_probabilities=all_noun_probabilities,
        packed_masks=np.concatenate(all_masks) if all_masks else None,
        renumber_present_classes=renumber_present_classes,
    )


def _scored(
    video_id: Sequence[str],
    labels: Tensor,
    scores: Tensor,
    probabilities: Tensor,
    *,
    num_clips: int,
    summary: Mapping[str, float],
    seconds: float,
    nouns: Mapping[str, float],
    noun_labels: Tensor | None,
    noun_probabilities: Tensor | None,
    packed_masks: NDArray[np.uint8] | None,
    renumber_present_classes: bool,
) -> Result:
    """A result with the metrics of its scores."""
    is_multi_label = labels.ndim == 2
    first = labels.argmax(1) if is_multi_label else labels
    targets = labels if is_multi_label else torch.nn.functional.one_hot(labels, scores.shape[1])
    return Result(
        video_id=tuple(video_id),
        labels=labels,
        scores=scores,
        probabilities=probabilities,
        top1=topk_accuracy(scores, first, 1),
        top5=topk_accuracy(scores, first, 5),
        map=mean_average_precision(probabilities, targets, renumber_present_classes=renumber_present_classes)[0],
        num_clips=num_clips,
        summary=summary,
        seconds=seconds,
        nouns=nouns,
        noun_labels=noun_labels,
        noun_probabilities=noun_probabilities,
        packed_masks=packed_masks,
    )


def mean_probabilities(logits: Tensor, average: Literal["logits", "probabilities"]) -> Tensor:
    """(b, v, k) -> (b, k), mean over the views."""
    return logits.mean(1).softmax(-1) if average == "logits" else logits.softmax(-1).mean(1)


def _noun_accuracy(verbs: Tensor, nouns: Tensor, labels: Tensor) -> dict[str, float]:
    if int(labels[:, 1].max()) >= nouns.shape[1]:
        raise UsageError(
            f"the model has {nouns.shape[1]} classes of nouns, the data have noun {int(labels[:, 1].max())}."
        )
    return {
        "noun_top1": topk_accuracy(nouns, labels[:, 1], 1),
        "noun_top5": topk_accuracy(nouns, labels[:, 1], 5),
        "action_top1": action_accuracy(verbs, nouns, labels, 1),
        "action_top5": action_accuracy(verbs, nouns, labels, 5),
    }


def choose_device(name: str | None) -> torch.device:
    """The named device, or the best there is.

    Raises:
        UsageError: no such device, or it is not on this machine.
    """
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"device {name!r} is not to be had here ({str(error).splitlines()[0]}); try cpu.") from error
    return device


def write_predictions(result: Result, path: Path) -> None:
    """One row a video: video_id, labels, predicted class, its probability; as `.parquet` or `.json`.

    Raises:
        UsageError: another ending.
    """
    rows = [row.nonzero()[:, 0].tolist() if row.ndim else [int(row)] for row in result.labels]
    predicted = result.predictions
    table = pd.DataFrame(
        {
            "video_id": result.video_id,
            "labels": rows,
            "predicted": predicted.tolist(),
            "probability": result.probabilities.gather(1, predicted[:, None])[:, 0].tolist(),
        }
    )
    buffer = io.BytesIO()
    if path.suffix == ".parquet":
        table.to_parquet(buffer, index=False)
    elif path.suffix == ".json":
        buffer.write((table.to_json(orient="records", indent=1) + "\n").encode())
    else:
        raise UsageError(f"{path}: predictions are written as .parquet or .json.")
    write_atomically(path, lambda file: file.write(buffer.getvalue()))
