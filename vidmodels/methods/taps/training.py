"""How TAPS is trained: losses, schedules as pure functions of the epoch, parameter groups."""

import math
from typing import Any

from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from vidmodels.distributed import mean_over_ranks
from vidmodels.methods.taps.cost import density_ratio, dynamic_macs, network_macs
from vidmodels.methods.taps.model import Taps, TapsConfig
from vidmodels.metrics import first_label
from vidmodels.types import Batch, Output, Train
from vidprep.errors import UsageError

__all__ = [
    "hard_gates_open",
    "param_groups",
    "sparsity_factor",
    "sparsity_loss",
    "temperature",
    "training_step",
]

BIAS_LR_MULTIPLIER = 2.0
"""Of the biases of linear layers, which also have no weight decay. Source: specification section 3.3."""


def temperature(config: TapsConfig, epoch: float) -> float:
    """Temperature tau of the hard gates. Source: specification section 3.2; published runs keep it constant."""
    return config.temperature * math.exp(-config.temperature_decay * math.floor(epoch))


def hard_gates_open(config: TapsConfig, epoch: float) -> bool:
    """Whether all channels are kept in this epoch (warm-up)."""
    return config.warmup_hard_gates_open and math.floor(epoch) < config.sparsity_warmup_start


def sparsity_factor(config: TapsConfig, epoch: float) -> float:
    """f, what lambda is multiplied by: 0 up to the start, then a line to 1 at the end.

    Hard gates act from epoch `start` on, the loss from `start + 1` on (pitfall 12).
    """
    start, end, whole = config.sparsity_warmup_start, config.sparsity_warmup_end, math.floor(epoch)
    if not 0 <= start < end:
        return 1.0
    return min(max((whole - start) / (end - start), 0.0), 1.0)


def sparsity_loss(ratio: Tensor, config: TapsConfig, *, factor: float = 1.0) -> Tensor:
    """S = factor * lambda * (r - d)^2, or lambda * max(0, r - d). Source: specification section 3.1."""
    excess = ratio - config.density_target
    shape = excess.square() if config.sparsity_loss == "squared" else excess.clamp(min=0)
    return factor * config.sparsity_lambda * shape


def batch_density_ratio(model: Taps, output: Output) -> Tensor:
    """Density ratio r of a forward pass of all processes, with its gradient to the gates."""
    config = model.config
    height, width = (int(side) for side in output.aux["input_size"])
    num_frames = output.aux["frame_logits"].shape[1]
    actual = network_macs(config, model.num_classes, size=(height, width), num_frames=num_frames)
    side = config.static_macs_image_size
    static = network_macs(config, model.num_classes, size=(side, side), num_frames=num_frames)
    masks = model.split_gates(output.aux["masks"])
    return mean_over_ranks(density_ratio(dynamic_macs(actual.blocks, masks, gradient=config.sparsity_gradient), static))


def training_step(model: nn.Module, batch: Batch, epoch: float) -> dict[str, Tensor]:
    """Loss of one batch: cross-entropy of the mean logits + S.

    Args:
        model: a `Taps`, alone or inside DistributedDataParallel; gate noise comes from torch's global generator.
        batch: frames (b, v, t, c, h, w); labels (b,) or (b, k).
        epoch: from 0; what depends on it changes between whole epochs.

    Returns:
        `loss`, and to log `classification_loss`; with pruning also `sparsity_loss`, `density_ratio`, `keep_fraction`.
    """
    taps = model if isinstance(model, Taps) else model.get_submodule("module")
    if not isinstance(taps, Taps):
        raise TypeError(f"expected a Taps model, got {type(taps).__name__}")
    config, whole = taps.config, math.floor(epoch)
    noise_ends = config.gate_noise_until_epoch
    output: Output = model(
        batch.frames.flatten(0, 1),
        temperature=temperature(config, epoch),
        hard_gates_open=hard_gates_open(config, epoch),
        soft_gates=config.soft_gates and whole >= config.soft_gates_from_epoch,
        gate_noise=config.gate_noise and (noise_ends is None or whole < noise_ends),
    )
    labels = first_label(batch.labels).repeat_interleave(batch.frames.shape[1])
    classification = cross_entropy(output.logits, labels)
    terms = {"loss": classification, "classification_loss": classification.detach()}
    if config.pruning:
        ratio = batch_density_ratio(taps, output)
        sparsity = sparsity_loss(ratio, config, factor=sparsity_factor(config, epoch))
        terms["loss"] = classification + sparsity.to(classification.dtype)
        terms["sparsity_loss"] = sparsity.detach()
        terms["density_ratio"] = ratio.detach()
        terms["keep_fraction"] = output.aux["masks"].detach().mean()
    return terms


def param_groups(model: nn.Module, train: Train) -> list[dict[str, Any]]:
    """Groups for the optimiser, each with `lr`, `lr_scale` (lr over the base rate), `weight_decay` and `name`.

        weights       convolutions, linears                          lr x 1   decay
        biases        of linears                                     lr x 2   no decay
        norms         weights and biases of batch and layer norms    lr x 1   no decay
        (in no group) in-projections of attention, unless `attention_in_proj = "trained"` (pitfall 3)

    Raises:
        UsageError: fp16 with untrained in-projections: their gradients would stay scaled and rule the clip.
    """
    if not isinstance(model, Taps):
        raise TypeError(f"expected a Taps model, got {type(model).__name__}")
    if train.amp == "fp16" and model.config.attention_in_proj == "untrained" and model.config.pruning:
        raise UsageError(
            'amp = "fp16" with attention_in_proj = "untrained": the loss scale would enter the clipping norm; '
            'use amp = "bf16" or "none", or attention_in_proj = "frozen" or "trained"'
        )
    trains_in_proj = model.config.attention_in_proj == "trained"
    weights, biases, norms = [], [], []
    for name, module in model.named_modules():
        if name.endswith(".in_proj") and not trains_in_proj:
            continue
        if isinstance(module, nn.Conv2d | nn.Linear):
            weights.append(module.weight)
            if module.bias is not None:
                biases.append(module.bias)
        elif isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d | nn.LayerNorm):
            norms += [module.weight, module.bias]
    return [
        {"name": name, "params": params, "lr": train.lr * scale, "lr_scale": scale, "weight_decay": decay}
        for name, params, scale, decay in (
            ("weights", weights, 1.0, train.weight_decay),
            ("biases", biases, BIAS_LR_MULTIPLIER, 0.0),
            ("norms", norms, 1.0, 0.0),
        )
    ]
