"""Fine-tuning as VideoMAE does it, with or without pruning: mixed clips, smoothed targets, a rate for each layer."""

from dataclasses import dataclass
from typing import Any

import torch
from timm.data.mixup import mixup_target
from timm.optim import param_groups_layer_decay  # type: ignore[attr-defined]
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from vidmodels.methods.sta.model import Sta, StaConfig
from vidmodels.types import Batch, Output, Train
from vidprep.errors import UsageError

__all__ = ["Mixing", "draw_mixing", "mix", "param_groups", "training_step"]


@dataclass(frozen=True, kw_only=True)
class Mixing:
    """How a batch is mixed with itself in reversed order."""

    share: float
    """lambda, of a clip in its own target; the rest is its partner's."""
    box: tuple[int, int, int, int] | None = None
    """Rows and columns (top, bottom, left, right) that are taken from the partner in every frame (cutmix); None
    blends the pixels (mixup)."""


def draw_mixing(config: StaConfig, *, height: int, width: int) -> Mixing | None:
    """Mixup or cutmix, each half of the time where both are on, from torch's global generator; None: neither is on.

    A box has sides of sqrt(1 - lambda) of the frame's, lies anywhere with its centre in the frame, and is cut at the
    frame's edges; lambda becomes the share of pixels outside.

    Source: timm's `Mixup`, mode "batch"; VideoMAE's defaults.
    """
    alphas = {"mixup": config.mixup_alpha, "cutmix": config.cutmix_alpha}
    kinds = [kind for kind, alpha in alphas.items() if alpha > 0]
    if not kinds:
        return None
    kind = kinds[int(torch.randint(len(kinds), ()))]
    share = float(torch.distributions.Beta(alphas[kind], alphas[kind]).sample())
    if kind == "mixup":
        return Mixing(share=share)
    side = (1 - share) ** 0.5
    top, bottom = _span(height, side)
    left, right = _span(width, side)
    return Mixing(share=1 - (bottom - top) * (right - left) / (height * width), box=(top, bottom, left, right))


def _span(length: int, share: float) -> tuple[int, int]:
    cut, centre = int(length * share), int(torch.randint(length, ()))
    return max(centre - cut // 2, 0), min(centre + cut // 2, length)


def mix(
    frames: Tensor, labels: Tensor, mixing: Mixing | None, *, num_classes: int, smoothing: float
) -> tuple[Tensor, Tensor]:
    """Clips mixed with those of the reversed batch, and targets mixed alike.

    Args:
        frames: (n, t, c, h, w); left as they are.
        labels: (n,) class indices.
        mixing: how; None leaves the clips alone.
        num_classes: k.
        smoothing: s: a target is s / k everywhere, plus 1 - s at the label.

    Returns:
        (n, t, c, h, w), and targets (n, k) whose rows sum to 1.
    """
    share = 1.0 if mixing is None else mixing.share
    targets: Tensor = mixup_target(labels, num_classes, lam=share, smoothing=smoothing)  # type: ignore[no-untyped-call]
    if mixing is None:
        return frames, targets
    if mixing.box is None:
        return frames * share + frames.flip(0) * (1 - share), targets
    top, bottom, left, right = mixing.box
    mixed = frames.clone()
    mixed[..., top:bottom, left:right] = frames.flip(0)[..., top:bottom, left:right]
    return mixed, targets


def training_step(model: nn.Module, batch: Batch, epoch: float, *, mixing: Mixing | None = None) -> dict[str, Tensor]:
    """Loss of one batch: cross-entropy with mixed and smoothed targets, mean over the clips.

    Args:
        model: a `Sta`, alone or inside DistributedDataParallel.
        batch: frames (b, v, t, c, h, w), v > 1 with repeated augmentation, whose clips lie next to each other;
            labels (b,).
        epoch: has no influence.
        mixing: instead of a drawn one.

    Raises:
        UsageError: data with several labels a clip.
    """
    sta = model if isinstance(model, Sta) else model.get_submodule("module")
    if not isinstance(sta, Sta):
        raise TypeError(f"expected a Sta model, got {type(sta).__name__}")
    if batch.labels.ndim != 1:
        raise UsageError("sta trains with one label a clip, this data set has several; choose a single-label one.")
    config, frames = sta.config, batch.frames.flatten(0, 1)
    labels = batch.labels.repeat_interleave(batch.frames.shape[1])
    if mixing is None:
        mixing = draw_mixing(config, height=frames.shape[-2], width=frames.shape[-1])
    frames, targets = mix(frames, labels, mixing, num_classes=sta.num_classes, smoothing=config.label_smoothing)
    output: Output = model(frames)
    return {"loss": cross_entropy(output.logits.float(), targets)}


def param_groups(model: nn.Module, train: Train) -> list[dict[str, Any]]:
    """Groups for the optimiser, one for each layer and decay, each with `lr`, `lr_scale`, `weight_decay` and `name`.

    Layer 0 is the embedding, i + 1 is block i, depth + 1 is the rest; layer l learns at `layer_decay` to the power
    depth + 1 - l. Biases and norms have no weight decay.
    """
    if not isinstance(model, Sta):
        raise TypeError(f"expected a Sta model, got {type(model).__name__}")
    groups = param_groups_layer_decay(_Layers(model), train.weight_decay, layer_decay=model.config.layer_decay)
    for group in groups:
        group["name"] = f"{'decayed' if group['weight_decay'] else 'not decayed'} x {group['lr_scale']:g}"
        group["lr"] = train.lr * group["lr_scale"]
    return groups  # type: ignore[no-any-return]


class _Layers(nn.Module):
    """A model as timm's layer decay wants it: one that says which entries belong to which layer."""

    def __init__(self, model: Sta) -> None:
        super().__init__()
        self.model = model

    def group_matcher(self, *, coarse: bool = False) -> dict[str, Any]:
        """Patterns of names; what fits none of them is one layer more, the last."""
        return {"stem": r"^model\.backbone\.patch_embed", "blocks": r"^model\.backbone\.blocks\.(\d+)"}
