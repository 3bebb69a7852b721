"""Training of ViViT, whole, or of its temporal sub-model and classifiers alone, on frames or on cached features.

The published fine-tuning keeps the spatial sub-model: its class tokens are computed once for every video, all views,
with the pruning that the model is to run with, and the rest learns on them.
"""

from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from vidmodels.methods.rgtp.vivit import RgtpVivit, RgtpVivitConfig
from vidmodels.types import Batch, Features, Output, Train
from vidprep.errors import UsageError

__all__ = ["FEATURES", "OnFeatures", "param_groups", "rgtp_model", "training_step"]

SPATIAL = ("backbone.patch_embed.", "backbone.spatial.")
"""What entries begin with that cached features depend on."""


class OnFeatures(nn.Module):
    """The temporal sub-model and the classifiers of a model: `forward(features (n, time, d, 1, 1)) -> Output`.

    It shares the model's parameters. Features have the axes of frames, so that data sets of them are like others.
    """

    def __init__(self, model: RgtpVivit) -> None:
        super().__init__()
        self.model = model

    def forward(self, features: Tensor) -> Output:
        """Classify clips by what the spatial sub-model made of them."""
        return self.model.classify(features.flatten(2))


def training_step(model: nn.Module, batch: Batch, epoch: float) -> dict[str, Tensor]:
    """Loss of one batch: cross-entropy of the mean of a video's views, mean over the videos; verbs' and nouns' added.

    With `loss_on = "probabilities"` cross-entropy is given probabilities where it expects logits, and so takes a second
    softmax of them: its gradients are small, and the loss never falls below log(1 + (k - 1) / e). The published weights
    were made that way.

    Args:
        model: an `RgtpVivit` for frames, an `OnFeatures` for cached features, alone or in DistributedDataParallel.
        batch: frames (b, v, t, c, h, w), or features (b, v, time, d, 1, 1); labels (b,), or (b, 2) verbs and nouns.
        epoch: has no influence.

    Raises:
        UsageError: data with several labels a clip, or nouns to learn and no nouns in the data.
    """
    config = rgtp_model(model).config
    labels = batch.labels
    if labels.is_floating_point():
        raise UsageError("rgtp_vivit trains with one label a clip, this data set has several; choose another one.")
    if config.num_noun_classes and labels.ndim == 1:
        raise UsageError("model.num_noun_classes: these data have no nouns; set it to 0, or train on verbs and nouns.")
    num_videos, num_views = batch.frames.shape[:2]
    output: Output = model(batch.frames.flatten(0, 1))
    verbs = labels if labels.ndim == 1 else labels[:, 0]
    logits = {"verb": (output.logits, verbs)}
    if config.num_noun_classes:
        logits["noun"] = (output.aux["noun_logits"], labels[:, 1])
    losses = {}
    for name, (views, targets) in logits.items():
        mean = views.float().view(num_videos, num_views, -1).mean(1)
        losses[name] = cross_entropy(mean.softmax(-1) if config.loss_on == "probabilities" else mean, targets)
    total = torch.stack(list(losses.values())).sum()
    if len(losses) == 1:
        return {"loss": total}
    return {"loss": total, **{f"{name}_loss": loss.detach() for name, loss in losses.items()}}


def param_groups(model: nn.Module, train: Train) -> list[dict[str, Any]]:
    """One group: everything that learns, with weight decay on all of it, biases, norms and positions too.

    With `trained = "temporal"` the spatial sub-model is frozen here.
    """
    own = rgtp_model(model)
    if own.config.trained == "temporal":
        for name, parameter in own.named_parameters():
            parameter.requires_grad_(not name.startswith(SPATIAL))
    learning = [parameter for parameter in own.parameters() if parameter.requires_grad]
    return [{"name": own.config.trained, "params": learning, "lr": train.lr, "weight_decay": train.weight_decay}]


def rgtp_model(model: nn.Module) -> RgtpVivit:
    """The model itself, whatever it is wrapped in."""
    for part in model.modules():
        if isinstance(part, RgtpVivit):
            return part
    raise TypeError(f"expected an RgtpVivit model, got {type(model).__name__}")


ONLY_TRAINING = ("num_noun_classes", "temporal_depth", "init_std", "drop_path", "head_dropout", "trained", "loss_on")
"""Settings that class tokens of the spatial sub-model do not depend on, whatever the mode."""
OF_ROLLOUT = (
    "keep_ratio",
    "foreground_ratio",
    "background_ratio",
    "gilbert_sampling",
    "reset_interval",
    "reset_pattern",
    "offset_radius",
    "head_fusion",
)
OF_EVENTFUL = ("top_k", "value_cast")


def _compute(model: nn.Module, clips: Tensor) -> Tensor:
    return rgtp_model(model).spatial_features(clips)


def _settings(config: RgtpVivitConfig) -> dict[str, Any]:
    of_mode = {"base": (*OF_ROLLOUT, *OF_EVENTFUL), "rollout": OF_EVENTFUL, "eventful": OF_ROLLOUT}
    without = (*ONLY_TRAINING, *of_mode[config.mode])
    return {name: value for name, value in asdict(config).items() if name not in without}


FEATURES = Features(
    compute=_compute,
    rest=lambda model: OnFeatures(rgtp_model(model)),
    prefixes=SPATIAL,
    settings=_settings,
    freeze='model.trained = "temporal"',
)
"""The class tokens of the spatial sub-model, one a time step."""
