"""Golden cases of RGTP on ViViT that are not of pruning: clips and crops, positions, the temporal half, the baseline.

What each component gives is in the table of tests/golden/README.md.
"""

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vidmodels.backbones.vit import ViTShape
from vidmodels.backbones.vivit import Block, resize_positions
from vidmodels.cases import Array, Component, Config, UnsupportedCase, to_array
from vidmodels.checkpoints import load_into
from vidmodels.methods.rgtp import eventful
from vidmodels.methods.rgtp.convert import BLOCK_ENTRIES, convert
from vidmodels.methods.rgtp.cost import ClipCost, step_cost
from vidmodels.methods.rgtp.training import OnFeatures, param_groups, training_step
from vidmodels.methods.rgtp.vivit import RgtpVivit, RgtpVivitConfig, build
from vidmodels.types import Batch, Train
from vidprep.load.transforms import EvalTransform
from vidprep.sampling import sample_clips

__all__ = ["COMPONENTS", "row_stats", "vit_shape"]

Arrays = dict[str, Array]


def row_stats(x: Tensor) -> Array:
    """(..., c) -> (..., 10): mean, population standard deviation and first 8 values along the last axis."""
    values = to_array(x).astype(np.float64)
    moments = [values.mean(-1, keepdims=True), values.std(-1, keepdims=True)]
    return np.concatenate([*moments, values[..., :8]], axis=-1)


def vit_shape(config: Config, *, depth: int) -> ViTShape:
    """Size of a sub-model of so many blocks."""
    return ViTShape(
        width=config["dim"], depth=depth, num_heads=config["num_heads"], mlp_ratio=config["mlp_ratio"], patch_size=16
    )


# ---- clips and crops ----


def _preprocessing(config: Config, inputs: Mapping[str, Any], _: Any, __: Any) -> Arrays:
    height, width = config["crop_size"]
    if height != width:
        raise UnsupportedCase(f"crops are {height} x {width}; ours are square.")
    transform = EvalTransform(
        resize=height,
        crop=height,
        num_crops=config["spatial_views"],
        crop_placement="along_longer_side_floor",
        resize_floats=True,
        mean=(config["mean"],) * 3,
        std=(config["std"],) * 3,
    )
    t = config["num_frames"]
    views = []
    for video in inputs["video"]:
        index = sample_clips(
            len(video),
            num_segments=t,
            num_clips=config["temporal_views"],
            sampler="strided",
            window=t * config["temporal_stride"],
        )
        wanted, places = np.unique(index, return_inverse=True)
        crops = transform(torch.from_numpy(video[wanted]))  # (crops, frames, c, h, w)
        views.append(crops[:, places.reshape(index.shape)].flatten(0, 1))
    stacked = torch.stack(views, dim=1).double()  # (v, b, t, c, h, w)
    return {
        "mean": to_array(stacked.mean((-2, -1))),
        "std": to_array(stacked.std((-2, -1), correction=0)),
        "first_row8": to_array(stacked[..., 0, :8]),
        "last_row8": to_array(stacked[..., -1, -8:]),
    }


def _position_encoding(config: Config, _: Any, state: dict[str, Tensor], __: Any) -> Arrays:
    (encoding,) = convert(state, partial=True).values()
    stored, wanted = (tuple(config[name]) for name in ("encoding_grid", "grid"))
    return {"encoding": to_array(resize_positions(encoding, stored, wanted))}


# ---- the temporal half ----


def _temporal(config: Config, state: dict[str, Tensor], **settings: Any) -> RgtpVivit:
    """A model with a spatial sub-model of one block, which the case leaves out and nothing reads."""
    model = build(
        RgtpVivitConfig(
            shape=vit_shape(config, depth=1),
            temporal_depth=config["depth"] if "depth" in config else config["temporal_depth"],
            num_frames=2 * config["num_time_steps"],
            image_size=16,
            **settings,
        ),
        config["num_classes"],
    )
    given = convert(state, partial=True)
    spatial = {name: tensor for name, tensor in model.state_dict().items() if name not in given}
    if any(name.startswith(("backbone.temporal.", "head.")) for name in spatial):
        raise UnsupportedCase(f"the case lacks entries of the temporal sub-model, {next(iter(spatial))} is one.")
    load_into(model, {**spatial, **given}, "the case")
    return model


@torch.no_grad()
def _temporal_model(config: Config, inputs: Mapping[str, Any], state: dict[str, Tensor], _: Any) -> Arrays:
    model = _temporal(config, state).eval()
    features = torch.from_numpy(inputs["features"])
    num_videos, num_views = features.shape[:2]
    clips, part = features.flatten(0, 1), model.backbone.temporal
    x, blocks = part.with_class_token(clips), []
    for block in part.blocks:
        x = block(x)
        blocks.append(x[:4])
    logits = model.classify(clips).logits
    mean = logits.view(num_videos, num_views, -1).mean(1)
    return {
        "probs": to_array(mean.softmax(-1)),
        "logits_per_view": to_array(logits),
        "logits_mean": to_array(mean),
        "temporal_out": to_array(part(clips)),
        "blocks.row_stats": row_stats(torch.stack(blocks)),
    }


def _training_step(config: Config, inputs: Mapping[str, Any], state: dict[str, Tensor], _: Any) -> Arrays:
    ours = {"optimizer": "adamw", "betas": [0.9, 0.999], "eps": 1e-8}
    for name, expected in ours.items():
        if config[name] != expected:
            raise UnsupportedCase(f"{name} is {config[name]!r}; ours is always {expected!r}.")
    settings: dict[str, Any] = {"trained": "temporal", "loss_on": "probabilities", "head_dropout": config["dropout"]}
    published_names = {name: next(iter(convert({name: tensor}, partial=True))) for name, tensor in state.items()}
    model = _temporal(config, state, **settings).train()
    features = torch.from_numpy(inputs["features"])
    batch = Batch(
        video_id=[str(index) for index in range(len(features))],
        frames=features[..., None, None],
        labels=torch.from_numpy(inputs["labels"]),
        pts_seconds=torch.zeros(features.shape[:3], dtype=torch.float64),
    )
    train = Train(
        epochs=1,
        batch_size=len(features),
        lr=config["learning_rate"],
        weight_decay=config["weight_decay"],
        optimizer="adamw",
    )
    optimizer = torch.optim.AdamW(param_groups(model, train))
    losses: list[float] = []
    probabilities: list[Array] = []
    norms: list[float] = []

    def probs() -> Array:
        with torch.no_grad():
            logits = model.classify(features.flatten(0, 1)).logits
        return to_array(logits.view(*features.shape[:2], -1).mean(1).softmax(-1))

    for step in range(config["steps"]):
        if step == 1:
            probabilities.append(probs())
        loss = training_step(OnFeatures(model), batch, 0.0)["loss"]
        losses.append(float(loss.detach()))
        torch.autograd.backward(loss)
        if not norms:
            parameters = dict(model.named_parameters())
            gradients = [parameters[published_names[key]].grad for key in config["grad_norm_keys"]]
            norms = [float(gradient.double().norm()) for gradient in gradients if gradient is not None]
        optimizer.step()
        optimizer.zero_grad()
    return {
        "loss": np.array(losses),
        "grad_norms": np.array(norms),
        "probs_second_step": probabilities[0],
        "probs_after": probs(),
    }


# ---- Eventful Transformers ----


@torch.no_grad()
def _eventful_block(config: Config, inputs: Mapping[str, Any], state: dict[str, Tensor], _: Collection[str]) -> Arrays:
    block = Block(vit_shape(config, depth=1)).eval()
    renamed = {}
    for key, tensor in state.items():
        module, _, kind = key.removeprefix(config["key_prefix"]).rpartition(".")
        renamed[f"{BLOCK_ENTRIES[module]}.{kind}"] = tensor
    load_into(block, renamed, "the case")
    settings = RgtpVivitConfig(mode="eventful", top_k=config["top_k"], shape=vit_shape(config, depth=1))
    x = torch.from_numpy(inputs["x"])
    states, outputs, counts = None, [], []
    for step in range(config["num_frames"]):
        out, states = eventful.run([block], x[step : step + 1], states, top_k=config["top_k"])
        outputs.append(out[0])
        counts.append(_counts(step_cost(settings, step, tuple(config["grid"]), with_positions=False)))
    stacked = torch.stack(outputs)
    return {
        "out": to_array(stacked),
        "out.row_stats": row_stats(stacked),
        "out_class_token": to_array(stacked[:, 0]),
        "operation_counts": np.array(counts),
    }


def _counts(cost: ClipCost) -> list[int]:
    return [cost.linear, cost.matmul, cost.bias, cost.add, cost.gate, cost.accumulator]


COMPONENTS: Mapping[str, Component] = {
    "preprocessing": _preprocessing,
    "position_encoding": _position_encoding,
    "temporal_model": _temporal_model,
    "training_step": _training_step,
    "eventful_block": _eventful_block,
}
"""(config, inputs, published state dict, wanted names) -> arrays."""
