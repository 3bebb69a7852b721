"""How Uni-AdaFocus is trained: cross-entropies of all exits, surrogates for both policies, a group for each module."""

import math
from typing import Any

from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.special import xlogy

from vidmodels.methods.uni_adafocus.model import UniAdaFocus, UniAdaFocusConfig, UniAdaFocusTsm
from vidmodels.metrics import first_label
from vidmodels.types import Batch, Output, Train

__all__ = ["loss_terms", "param_groups", "training_step"]


def training_step(model: nn.Module, batch: Batch, epoch: float) -> dict[str, Tensor]:
    """Loss of one batch: frames (b, v, t, c, h, w); labels (b,), or (b, k) of which the first of a row counts.

    (14) The published code takes a random one of a video's labels at each access.

    Returns:
        `loss`, with its gradient, and to log the terms of `loss_terms`.
    """
    whole = model if isinstance(model, UniAdaFocus | UniAdaFocusTsm) else model.get_submodule("module")
    if not isinstance(whole, UniAdaFocus | UniAdaFocusTsm):
        raise TypeError(f"expected a Uni-AdaFocus model, got {type(whole).__name__}")
    output: Output = model(batch.frames.flatten(0, 1))
    labels = first_label(batch.labels).repeat_interleave(batch.frames.shape[1])
    terms = loss_terms(whole.config, output, labels)
    return {name: term if name == "loss" else term.detach() for name, term in terms.items()}


def loss_terms(config: UniAdaFocusConfig, output: Output, labels: Tensor) -> dict[str, Tensor]:
    """`loss` and its terms, for the output of a training pass and labels (n,).

    With CE the mean cross-entropy, and sums over the two branches (policy's and random rectangles):

        pooling   prediction_loss = sum CE(all steps)     tsm, x3d   sum CE(prediction)
                  glance_loss = 2 CE(every glance frame)             2 CE(average over glance frames)
                  focus_loss = sum CE(every focus frame)             sum CE(average over focus frames)
        both      temporal_loss = 2 CE(Monte Carlo logits), spatial_loss = 2 CE(logits inside the rectangles)
                  norm_loss = mean (size - 1)^2 of the glance frames' actions
        loss      (the first five) / 2 + norm_weight norm_loss + kl_weight kl_loss

    Source: specification sections 3.1 and 8; section 9 names none of its own for "x3d", which has those of "tsm".
    """
    aux = output.aux
    if config.variant != "pooling":
        prediction = cross_entropy(output.logits, labels) + cross_entropy(aux["random_logits"], labels)
        glance = 2 * cross_entropy(aux["glance_average"], labels)
        focus = cross_entropy(aux["focus_average"], labels) + cross_entropy(aux["random_focus_average"], labels)
    else:
        prediction = _frame_loss(aux["step_logits"], labels) + _frame_loss(aux["random_step_logits"], labels)
        glance = 2 * _frame_loss(aux["glance_logits"], labels)
        focus = _frame_loss(aux["focus_logits"], labels) + _frame_loss(aux["random_focus_logits"], labels)
    temporal = 2 * cross_entropy(aux["temporal_logits"], labels)
    spatial = 2 * cross_entropy(aux["spatial_logits"], labels)
    norm = (aux["glance_actions"][..., 2:] - 1).square().mean()
    terms = {
        "prediction_loss": prediction,
        "glance_loss": glance,
        "focus_loss": focus,
        "temporal_loss": temporal,
        "spatial_loss": spatial,
        "norm_loss": norm,
    }
    loss = (prediction + glance + focus + temporal + spatial) / 2 + config.norm_weight * norm
    if config.variant == "pooling":
        terms["kl_loss"] = _divergence(aux["weights"], config.num_focus)
        if config.kl_weight:
            loss = loss + config.kl_weight * terms["kl_loss"]
    return {"loss": loss, **terms}


def _frame_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy of (n, t, k), every frame with its clip's label."""
    return cross_entropy(logits.flatten(0, 1), labels.repeat_interleave(logits.shape[1]))


def _divergence(weights: Tensor, num_focus: int) -> Tensor:
    """(13) Of the weights (n, g) from 1 / f (not 1 / g, as published), mean over the clips."""
    divergence: Tensor = xlogy(weights, weights) + weights * math.log(num_focus)  # 0 log 0 = 0
    return divergence.sum(1).mean()


def param_groups(model: nn.Module, train: Train) -> list[dict[str, Any]]:
    """Groups for the optimiser, each with `lr`, `lr_scale` (lr over the base rate), `weight_decay` and `name`.

        temporal_policy   temporal_lr_scale            glance           with its heads and the spatial head,
        spatial_policy    spatial_lr_scale                              glance_lr_scale
        focus             with its heads, 1            classifier       classifier_lr_scale

    Weight decay is on everything, norms and biases too. Source: specification section 3.3; of "tsm" section 8, whose
    heads belong to their networks, and so do those of "x3d" (section 9 says nothing else).
    """
    if not isinstance(model, UniAdaFocus | UniAdaFocusTsm):
        raise TypeError(f"expected a Uni-AdaFocus model, got {type(model).__name__}")
    config = model.config
    scales = {
        "temporal_policy": config.temporal_lr_scale,
        "spatial_policy": config.spatial_lr_scale,
        "glance": config.glance_lr_scale,
        "glance_head": config.glance_lr_scale,
        "glance_heads": config.glance_lr_scale,
        "spatial_head": config.glance_lr_scale,
        "focus": 1.0,
        "focus_head": 1.0,
        "focus_heads": 1.0,
        "classifier": config.classifier_lr_scale,
    }
    modules = dict(model.named_children())
    return [
        {
            "name": name,
            "params": list(modules[name].parameters()),
            "lr": train.lr * scale,
            "lr_scale": scale,
            "weight_decay": train.weight_decay,
        }
        for name, scale in scales.items()
        if name in modules
    ]
