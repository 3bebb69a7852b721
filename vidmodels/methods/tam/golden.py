"""Golden cases of TAM: component -> a function from a case's settings and inputs to named arrays.

What each component gives is in the table of tests/golden/README.md. Everything is built from the case's `config`.
"""

import re
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vidmodels.backbones.resnet import BlockShape, ResidualBlock
from vidmodels.cases import Array, Component, Config, UnsupportedCase, stats, to_array
from vidmodels.checkpoints import load_into
from vidmodels.methods.tam.convert import convert
from vidmodels.methods.tam.model import Tanet, TanetConfig, TemporalAdaptiveModule, build
from vidmodels.methods.tam.training import param_groups, training_step
from vidmodels.types import Batch, Output, Train
from vidprep.load.transforms import EvalTransform, crop_offsets, multiscale_crop_sizes
from vidprep.sampling import sample_clips, sample_dense, sample_segments

__all__ = ["COMPONENTS"]

Arrays = dict[str, Tensor | Array]


# ---- arrays as the cases name them ----


def _named(arrays: Mapping[str, Tensor | Array], wanted: Collection[str]) -> dict[str, Array]:
    """The wanted arrays: as they are, or reduced (`X_stats`)."""
    named = {}
    for name in wanted:
        if name in arrays:
            named[name] = to_array(arrays[name])
        elif (base := name.removesuffix("_stats")) != name and base in arrays:
            named[name] = stats(arrays[base])
    return named


# ---- building from a case ----


def _tanet_config(config: Config) -> TanetConfig:
    """Settings of a whole network.

    Raises:
        UnsupportedCase: a setting that is the same in every model of ours, and another one here.
    """
    _check_kernel(config)
    return TanetConfig(
        num_frames=config["num_frames"],
        backbone=config["backbone"],
        kernel_size=config["kernel_size"],
        expansion=config["global_expansion"],
        reduction=config["local_reduction"],
        dropout=config.get("dropout", 0.5),
        partial_bn=config.get("partial_batch_norm", False),
    )


def _check_kernel(config: Config) -> None:
    found = (config["kernel_stride"], config["kernel_padding"], config["batch_norm_eps"])
    expected = (1, config["kernel_size"] // 2, 1e-5)
    if found != expected:
        raise UnsupportedCase(f"kernel_stride, kernel_padding and batch_norm_eps are {expected} here, got {found}.")


def _build_module(config: Config, channels: int) -> TemporalAdaptiveModule:
    _check_kernel(config)
    return TemporalAdaptiveModule(
        channels,
        config["num_frames"],
        kernel_size=config["kernel_size"],
        expansion=config["global_expansion"],
        reduction=config["local_reduction"],
    )


def _load_part(module: nn.Module, config: Config, state: Mapping[str, Tensor], *, ours: str) -> dict[str, str]:
    """Convert and load the entries of a part of the network, which lies at `ours`; our name -> published name."""
    prefix = config["published_prefix"]
    numbers = {prefix + key: torch.tensor(number) for number, key in enumerate(state)}
    keys = list(state)
    names = {name.removeprefix(ours): keys[int(number)] for name, number in convert(numbers, partial=True).items()}
    converted = convert({prefix + key: value for key, value in state.items()}, partial=True)
    load_into(module, {name.removeprefix(ours): value for name, value in converted.items()}, "the case")
    return names


def _our_block(config: Config) -> str:
    match = re.fullmatch(r"base_model\.(layer\d+\.\d+)\.(tam\.)?", config["published_prefix"])
    if match is None:
        raise UnsupportedCase(f"published_prefix is {config['published_prefix']!r}; expected base_model.layerS.B.")
    return f"backbone.{match[1]}."


# ---- parts ----


def _module_arrays(module: TemporalAdaptiveModule, x: Tensor) -> tuple[Arrays, Tensor]:
    """What a module makes of x (n*t, c, h, w), step by step as its `forward`; and its output."""
    descriptor = module.describe(x)
    importance, kernel = module.importance(descriptor), module.kernel(descriptor)
    out = module.aggregate(x, importance, kernel)
    arrays: Arrays = {
        "descriptor": descriptor.flatten(0, 1),
        "importance": importance,
        "kernel": kernel.flatten(0, 1),
    }
    return arrays, out


def _tam_module(
    config: Config, inputs: Mapping[str, Any], state: dict[str, Tensor], wanted: Collection[str]
) -> dict[str, Array]:
    module = _build_module(config, config["in_channels"]).eval()
    _load_part(module, config, state, ours=_our_block(config) + "temporal.")
    with torch.no_grad():
        arrays, out = _module_arrays(module, torch.from_numpy(inputs["x"]))
    return _named(arrays | {"out": out[:, : config["stored_channels"]], "out_stats": stats(out)}, wanted)


def _tam_module_training(
    config: Config, inputs: Mapping[str, Any], state: dict[str, Tensor], wanted: Collection[str]
) -> dict[str, Array]:
    module = _build_module(config, config["in_channels"]).train()
    names = _load_part(module, config, state, ours=_our_block(config) + "temporal.")
    x = torch.from_numpy(inputs["x"]).requires_grad_()
    arrays, out = _module_arrays(module, x)
    torch.autograd.backward((out * torch.from_numpy(inputs["output_weight"])).sum())
    arrays |= {"out": out[:, : config["stored_channels"]], "out_stats": stats(out)}
    arrays["input_grad_stats"] = stats(_gradient(x))
    for name, parameter in module.named_parameters():
        arrays[f"grad/{names[name]}"] = stats(_gradient(parameter))
    for name, buffer in module.named_buffers():
        arrays[f"buffer_after/{names[name]}"] = buffer.flatten()
    return _named(arrays, wanted)


def _gradient(tensor: Tensor) -> Tensor:
    if tensor.grad is None:
        raise UnsupportedCase("a tensor of the case has no gradient.")
    return tensor.grad


def _ta_block(
    config: Config, inputs: Mapping[str, Any], state: dict[str, Tensor], wanted: Collection[str]
) -> dict[str, Array]:
    shape = BlockShape(
        layout="bottleneck",
        in_channels=config["in_channels"],
        width=config["inner_channels"],
        stride=config["stride"],
    )
    if (shape.out_channels, shape.has_downsample) != (config["out_channels"], config["downsample"]):
        raise UnsupportedCase("out_channels and downsample are not those of a bottleneck with these channels.")
    block = ResidualBlock(shape, lambda channels: _build_module(config, channels)).eval()
    _load_part(block, config, state, ours=_our_block(config))
    x = torch.from_numpy(inputs["x"])
    with torch.no_grad():
        inner = block.inner(x)
        adapted = block.temporal(inner)
        out = block(x)
    arrays: Arrays = {"tam_in": inner, "tam_out": adapted, "out_stats": stats(out)}
    return _named(arrays | {"out": out[:, : config["stored_channels"]]}, wanted)


# ---- the whole network ----


def _build_network(config: Config, state: dict[str, Tensor]) -> Tanet:
    """The network with the case's entries, which are emptied on the way."""
    model = build(_tanet_config(config), config["num_classes"])
    converted = convert(state)
    state.clear()
    load_into(model, converted, "the case")
    return model.eval()


def _network(
    config: Config, inputs: Mapping[str, Any], state: dict[str, Tensor], wanted: Collection[str]
) -> dict[str, Array]:
    model = _build_network(config, state)
    video = torch.from_numpy(inputs["video"])
    with torch.no_grad():
        output: Output = model(video)
        arrays, again = _stages(model, video, wanted)
    if not torch.allclose(again.logits, output.logits, rtol=1e-5, atol=1e-6):
        raise UnsupportedCase("running block by block gives other logits than the model's forward.")
    arrays |= {"frame_logits": output.aux["frame_logits"].flatten(0, 1), "logits": output.logits}
    return _named(arrays, wanted)


def _stages(model: Tanet, video: Tensor, wanted: Collection[str]) -> tuple[Arrays, Output]:
    """What leaves every part of the network, block by block, reduced at once; and the output."""
    arrays: dict[str, Tensor | Array] = {}

    def keep(values: Mapping[str, Tensor | Array]) -> None:
        arrays.update(_named(values, wanted))

    backbone = model.backbone
    conv1 = backbone.conv1(video.flatten(0, 1))
    keep({"conv1": conv1, "bn1": backbone.bn1(conv1)})
    x = backbone.stem(video.flatten(0, 1))
    keep({"maxpool": x})
    for stage, blocks in backbone.stages.items():
        for index, block in enumerate(blocks):
            inner, module = block.inner(x), block.temporal
            if not isinstance(module, TemporalAdaptiveModule):
                raise UnsupportedCase(f"{stage}.{index} has no temporal adaptive module.")
            parts, adapted = _module_arrays(module, inner)
            keep({f"{stage}.{index}.tam/{name}": value for name, value in parts.items()})
            keep({f"{stage}.{index}.tam/in": inner, f"{stage}.{index}.tam/out": adapted})
            x = block.outer(adapted, block.shortcut(x))
        keep({stage: x})
    pooled = x.mean((-2, -1))
    keep({"avgpool": pooled, "pooled_first64": pooled[:, :64]})
    return arrays, model.classify(pooled)


def _multi_view(
    config: Config, inputs: Mapping[str, Any], state: dict[str, Tensor], wanted: Collection[str]
) -> dict[str, Array]:
    model = _build_network(config, state)
    num_views = config["spatial_views"] * config["temporal_views"]
    stacked = torch.from_numpy(inputs["views"])
    # (b, views * t * 3, h, w) -> (b, views, t, 3, h, w), as our loaders give it
    views = stacked.view(len(stacked), num_views, config["num_frames"], 3, *stacked.shape[-2:])
    with torch.no_grad():
        logits = torch.cat([model(clips).logits for clips in views])
    mean = logits.view(-1, num_views, config["num_classes"]).mean(1)
    arrays: Arrays = {
        "view_logits": logits,
        "logits": mean,
        "softmax_of_mean": mean.softmax(-1),
        "pred": mean.argmax(-1),
        "top5": mean.argsort(dim=-1, descending=True, stable=True)[:, :5],
    }
    return _named(arrays, wanted)


# ---- training ----


def _training_step(
    config: Config, inputs: Mapping[str, Any], state: dict[str, Tensor], wanted: Collection[str]
) -> dict[str, Array]:
    """Optimiser steps through the same functions as a training run."""
    if config["optimizer"] != "sgd" or config["nesterov"]:
        raise UnsupportedCase("only plain SGD with momentum is run.")
    keys = list(state)
    published = {
        name: keys[int(number)]
        for name, number in convert({key: torch.tensor(index) for index, key in enumerate(keys)}).items()
    }
    model = _build_network(config, state).train()
    train = Train(
        epochs=1,
        batch_size=config["num_clips"],
        lr=config["learning_rate"],
        momentum=config["momentum"],
        weight_decay=config["weight_decay"],
        clip_grad=config["max_grad_norm"],
    )
    groups = param_groups(model, train)
    arrays: Arrays = _multipliers(model, groups, train, published, keys)
    optimizer = torch.optim.SGD(groups, lr=train.lr, momentum=train.momentum)
    video = torch.from_numpy(inputs["video"])
    batch = Batch(
        video_id=[str(number) for number in range(len(video))],
        frames=video[:, None],
        labels=torch.as_tensor(inputs["labels"]),
        pts_seconds=torch.zeros(len(video), 1, video.shape[1], dtype=torch.float64),
    )
    outputs: list[Output] = []
    handle = model.register_forward_hook(lambda _module, _inputs, output: outputs.append(output))
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    for step in range(config["num_steps"]):
        terms = training_step(model, batch, 0.0)
        torch.autograd.backward(terms["loss"])
        norm = nn.utils.clip_grad_norm_(model.parameters(), config["max_grad_norm"])
        arrays |= {
            f"step{step}/loss": terms["loss"],
            f"step{step}/logits": outputs[-1].logits,
            f"step{step}/grad_norm_before_clip": norm,
        }
        if step == 0:
            for name, parameter in model.named_parameters():
                gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
                arrays[f"clipped_grad/{published[name]}"] = stats(gradient)
                arrays[f"clipped_grad_norm/{published[name]}"] = gradient.norm().clone()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    handle.remove()
    for name, parameter in model.named_parameters():
        arrays[f"param_after/{published[name]}"] = stats(parameter)
        arrays[f"param_change/{published[name]}"] = (parameter.detach() - before[name]).flatten()[:8]
    for name, buffer in model.named_buffers():
        arrays[f"buffer_after/{published[name]}"] = stats(buffer)
    return _named(arrays, wanted)


def _multipliers(
    model: Tanet, groups: list[dict[str, Any]], train: Train, published: Mapping[str, str], keys: list[str]
) -> Arrays:
    """Of the learning rate and the decay, for every entry of the checkpoint; -1 where no group holds it."""
    names = {id(parameter): published[name] for name, parameter in model.named_parameters()}
    rates, decays = dict.fromkeys(keys, -1.0), dict.fromkeys(keys, -1.0)
    for group in groups:
        for parameter in group["params"]:
            rates[names[id(parameter)]] = group["lr"] / train.lr
            decays[names[id(parameter)]] = group["weight_decay"] / train.weight_decay
    return {"lr_multiplier": np.array([*rates.values()]), "weight_decay_multiplier": np.array([*decays.values()])}


# ---- frames and crops ----


class _Extreme:
    """A source of random numbers that always draws the lowest, or the highest, it may."""

    def __init__(self, *, highest: bool) -> None:
        self.highest = highest

    def integers(self, low: int, high: int, size: int | None = None) -> Any:
        value = high - 1 if self.highest else low
        return value if size is None else np.full(size, value)


def _frame_sampling(config: Config, _: Any, __: Any, wanted: Collection[str]) -> dict[str, Array]:
    arrays: Arrays = {}
    window = config["dense_window"]
    for t in config["num_frames"]:
        for n in config["video_lengths"]:
            at = f"seg{t}/n{n}"
            arrays[f"val/uniform/{at}"] = sample_segments(n, num_segments=t, short="first")
            arrays[f"val/dense/{at}"] = sample_dense(n, num_segments=t, window=window)
            lowest, highest = _Extreme(highest=False), _Extreme(highest=True)
            arrays[f"train_bounds/uniform/{at}"] = np.stack(
                [sample_segments(n, num_segments=t, short="first", rng=rng) for rng in (lowest, highest)]
            )
            arrays[f"train_bounds/dense/{at}"] = np.stack(_dense_bounds(n, num_segments=t, window=window))
            for mode in config["test_modes"]:
                sampler, _, clips = mode.partition("-")
                indices = sample_clips(
                    n,
                    num_segments=t,
                    num_clips=int(clips),
                    sampler="dense" if sampler == "dense" else "segments",
                    window=window,
                )
                arrays[f"test/{mode}/{at}"] = indices.flatten()
    return _named({name: to_array(value) + 1 for name, value in arrays.items()}, wanted)  # published: from 1


def _dense_bounds(n: int, *, num_segments: int, window: int) -> tuple[Array, Array]:
    lowest, highest = (
        sample_dense(n, num_segments=num_segments, window=window, rng=_Extreme(highest=is_high))
        for is_high in (False, True)
    )
    return lowest, highest


def _crop_boxes(config: Config, _: Any, __: Any, wanted: Collection[str]) -> dict[str, Array]:
    arrays: Arrays = {}
    for width, height in config["frame_sizes"]:
        at = f"{width}x{height}"
        for crop in config["test_crop_sizes"]:
            transform = EvalTransform(
                resize=config["test_short_side"],
                crop=crop,
                num_crops=config["spatial_views"],
                crop_placement="along_width",
            )
            new_height, new_width = transform.resized(height, width)
            arrays[f"resized/{at}"] = np.array([new_width, new_height])
            boxes = [[left, top, left + crop, top + crop] for left, top in transform.corners(new_width, new_height)]
            arrays[f"three_crops/{crop}/{at}"] = np.array(boxes)
        sizes = multiscale_crop_sizes(
            width,
            height,
            scales=config["train_scales"],
            max_aspect_step=config["max_aspect_step"],
            crop=config["train_crop_size"],
        )
        drawn = {(w, h, left, top) for w, h in sizes for left, top in crop_offsets(width, height, w, h)}
        arrays[f"multiscale_all/{at}"] = np.array(sorted(drawn))
    return _named(arrays, wanted)


COMPONENTS: Mapping[str, Component] = {
    "tam_module": _tam_module,
    "tam_module_training": _tam_module_training,
    "ta_block": _ta_block,
    "network": _network,
    "multi_view": _multi_view,
    "training_step": _training_step,
    "frame_sampling": _frame_sampling,
    "crop_boxes": _crop_boxes,
}
"""(config, inputs, published state dict, wanted names) -> arrays."""
