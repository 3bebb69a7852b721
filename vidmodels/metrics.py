"""Accuracy and average precision, in per cent, as pure functions of scores and labels."""

import torch
from torch import Tensor

__all__ = ["action_accuracy", "first_label", "mean_average_precision", "topk_accuracy"]


def topk_accuracy(scores: Tensor, labels: Tensor, k: int) -> float:
    """Per cent of clips whose class is among the k highest scores; of equal scores the lower class comes first.

    Args:
        scores: (n, k classes), any monotonic score: logits or probabilities.
        labels: (n,) int64 class indices.
        k: at least 1; more than there are classes counts as all of them.

    Raises:
        ValueError: shapes do not fit, no clips, or a score is not a number.
    """
    if scores.ndim != 2 or labels.shape != scores.shape[:1]:
        raise ValueError(f"expected scores (n, k) and labels (n,), got {tuple(scores.shape)} and {tuple(labels.shape)}")
    if not len(scores) or k < 1:
        raise ValueError(f"top-k accuracy needs clips and k >= 1, got {len(scores)} clips and k = {k}")
    if scores.isnan().any():
        raise ValueError("a score is not a number; the model that gave it is broken")
    true = scores.gather(1, labels[:, None])
    classes = torch.arange(scores.shape[1], device=scores.device)
    ahead = (scores > true) | ((scores == true) & (classes < labels[:, None]))
    return 100.0 * float((ahead.sum(1) < k).double().mean())


def action_accuracy(verb_scores: Tensor, noun_scores: Tensor, labels: Tensor, k: int) -> float:
    """Per cent of clips whose (verb, noun) is among the k pairs of the highest product of probabilities.

    With k = 1 these are the clips of which both are right. Of equal products the one of the lower verb, then of the
    lower noun comes first.

    Args:
        verb_scores: (n, verbs) probabilities.
        noun_scores: (n, nouns) probabilities.
        labels: (n, 2) int64, verb and noun.
        k: at least 1.

    Raises:
        ValueError: shapes do not fit, or no clips.

    Source: EPIC-KITCHENS-100 (Damen et al., 2022), action recognition.
    """
    if labels.shape != (len(verb_scores), 2) or len(noun_scores) != len(verb_scores) or not len(labels):
        raise ValueError(
            f"expected verb and noun scores of n clips and labels (n, 2), got {tuple(verb_scores.shape)}, "
            f"{tuple(noun_scores.shape)} and {tuple(labels.shape)}"
        )
    num_nouns = noun_scores.shape[1]
    hits = [
        topk_accuracy((verb[:, None] * noun).flatten()[None], (label[0] * num_nouns + label[1])[None], k)
        for verb, noun, label in zip(verb_scores, noun_scores, labels, strict=True)
    ]
    return sum(hits) / len(hits)


def mean_average_precision(
    scores: Tensor, targets: Tensor, *, renumber_present_classes: bool = False
) -> tuple[float, Tensor]:
    """Mean over ALL classes of the average precision, and that of each class, in per cent.

    The clips are sorted by a class's score, descending (equal scores keep their order); the precisions at the ranks
    of its clips are averaged, without interpolation. A class without clips counts as 0.

    Args:
        scores: (n, k) probabilities (a score that compares across clips: softmax, not raw logits).
        targets: (n, k) of zeros and ones; several ones a row for multi-label tasks.
        renumber_present_classes: take the i-th class that has clips for class i, as the published code does. It
            changes the figure only where some class has no clip, and there it compares with the wrong columns.

    Raises:
        ValueError: shapes do not fit, no clips, or a score is not a number.

    Source: TAPS, specification section 3.5 and pitfall 9.
    """
    if scores.ndim != 2 or scores.shape != targets.shape or not len(scores):
        raise ValueError(f"expected scores and targets (n, k), got {tuple(scores.shape)} and {tuple(targets.shape)}")
    if scores.isnan().any():
        raise ValueError("a score is not a number; the model that gave it is broken")
    targets = targets.to(device=scores.device, dtype=torch.float64)
    if renumber_present_classes:
        present = targets[:, targets.sum(0) > 0]
        targets = torch.zeros_like(targets)
        targets[:, : present.shape[1]] = present
    order = scores.argsort(dim=0, descending=True, stable=True)
    hits = targets.gather(0, order)
    ranks = torch.arange(1, len(scores) + 1, device=scores.device, dtype=torch.float64)[:, None]
    precision = hits.cumsum(0) / ranks
    average = 100.0 * (precision * hits).sum(0) / targets.sum(0).clamp(min=1.0)
    return float(average.mean()), average


def first_label(labels: Tensor) -> Tensor:
    """(n,) class indices: as given, or the smallest class of each row of zeros and ones (n, k).

    What single-label methods train multi-label data with, and what their top-k is of.

    Source: the published code of TAPS.

    Raises:
        ValueError: a row without a label.
    """
    if labels.ndim == 1:
        return labels
    present = labels > 0
    if not present.any(1).all():
        raise ValueError("a training clip has no label; leave unlabelled videos out of the training split")
    classes = torch.arange(labels.shape[1], device=labels.device)
    return torch.where(present, classes, labels.shape[1]).amin(1)
