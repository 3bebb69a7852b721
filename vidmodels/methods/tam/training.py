"""How TANet is trained: cross-entropy of the mean logits, and six groups of parameters."""

from typing import Any

from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from vidmodels.methods.tam.model import Tanet
from vidmodels.metrics import first_label
from vidmodels.types import Batch, Output, Train
from vidprep.errors import UsageError

__all__ = ["param_groups", "training_step"]


def training_step(model: nn.Module, batch: Batch, epoch: float) -> dict[str, Tensor]:
    """Loss of one batch: frames (b, v, t, c, h, w); labels (b,), or (b, k) of which the first of a row counts."""
    output: Output = model(batch.frames.flatten(0, 1))
    labels = first_label(batch.labels).repeat_interleave(batch.frames.shape[1])
    return {"loss": cross_entropy(output.logits, labels)}


def param_groups(model: nn.Module, train: Train) -> list[dict[str, Any]]:
    """Groups for the optimiser, each with `lr`, `lr_scale` (lr over the base rate), `weight_decay` and `name`.

        weights          convolutions, 2D and 1D                            lr x 1    decay
        norms            weights and biases of all batch norms              lr x 1    no decay
        linear_weights   classifier, and both linears of every module       lr x 5    decay
        linear_biases    of the classifier                                  lr x 10   no decay

    Without `fast_linears` the last two learn at 1 and 2 times the rate. With `partial_bn` the norms are the first one
    alone; those of the modules get gradients, which enter the clipping norm, but are in no group.

    Raises:
        UsageError: fp16 with `partial_bn`: gradients in no group would stay scaled and rule the clip.

    Source: `get_optim_policies` of the published code (`ops/models.py`). Its group for the stem's convolution has the
    settings of the other convolutions where frames are RGB, and its groups for their biases are empty in a ResNet.
    """
    if not isinstance(model, Tanet):
        raise TypeError(f"expected a Tanet model, got {type(model).__name__}")
    config = model.config
    if train.amp == "fp16" and config.partial_bn and config.temporal == "adaptive":
        raise UsageError(
            'amp = "fp16" with partial_bn: the loss scale would enter the clipping norm through the norms that do not '
            'train; use amp = "bf16" or "none"'
        )
    weights, norms, linear_weights, linear_biases = [], [], [], []
    for module in model.modules():
        if isinstance(module, nn.Conv1d | nn.Conv2d):
            weights.append(module.weight)
        elif isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            if not config.partial_bn or module is model.backbone.bn1:
                norms += [module.weight, module.bias]
        elif isinstance(module, nn.Linear):
            linear_weights.append(module.weight)
            if module.bias is not None:
                linear_biases.append(module.bias)
    weight_scale, bias_scale = (5.0, 10.0) if config.fast_linears else (1.0, 2.0)
    return [
        {"name": name, "params": params, "lr": train.lr * scale, "lr_scale": scale, "weight_decay": decay}
        for name, params, scale, decay in (
            ("weights", weights, 1.0, train.weight_decay),
            ("norms", norms, 1.0, 0.0),
            ("linear_weights", linear_weights, weight_scale, train.weight_decay),
            ("linear_biases", linear_biases, bias_scale, 0.0),
        )
    ]
