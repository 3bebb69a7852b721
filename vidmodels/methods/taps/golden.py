"""Golden cases of TAPS: component -> a function from a case's settings and inputs to named arrays.

What each component gives is in the table of tests/golden/README.md. Everything is built from the case's `config` and
the shapes of its checkpoint entries.
"""

import math
import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from vidmodels.backbones.resnet import BlockShape, ResidualBlock
from vidmodels.cases import Array, Component, Config, UnsupportedCase, stats, to_array
from vidmodels.checkpoints import load_into
from vidmodels.layers.gumbel import GateNoise
from vidmodels.layers.temporal_shift import temporal_shift
from vidmodels.methods.taps.convert import convert
from vidmodels.methods.taps.cost import (
    BlockMacs,
    NetworkMacs,
    block_macs,
    density_ratio,
    dynamic_macs,
    gmacs_per_frame,
    network_macs,
    stem_macs,
    upper_bound_macs,
)
from vidmodels.methods.taps.model import Gates, Gating, Taps, TapsConfig, build, decide, make_gates, run_block
from vidmodels.methods.taps.policy import Policy, PolicyOutput
from vidmodels.methods.taps.training import (
    hard_gates_open,
    param_groups,
    sparsity_factor,
    sparsity_loss,
    temperature,
    training_step,
)
from vidmodels.metrics import mean_average_precision, topk_accuracy
from vidmodels.schedules import STEP_DECAY, learning_rate_factor
from vidmodels.types import Batch, Output, Train
from vidprep.load.transforms import crop_offsets, multiscale_crop_sizes
from vidprep.sampling import sample_clips, sample_dense, sample_segments

__all__ = ["COMPONENTS"]

Arrays = dict[str, Tensor | Array | float]


# ---- arrays as the cases name them ----


def _named(arrays: Mapping[str, Tensor | Array | float], wanted: Collection[str]) -> dict[str, Array]:
    """The wanted arrays: as they are, or reduced as the name says (`X.stats`, `X.firstN`)."""
    named = {}
    for name in wanted:
        base, _, reduction = name.rpartition(".")
        if name in arrays:
            named[name] = to_array(arrays[name])
        elif base in arrays and reduction == "stats":
            named[name] = stats(to_array(arrays[base]))
        elif base in arrays and (first := re.fullmatch(r"first(\d+)", reduction)):
            named[name] = to_array(arrays[base])[..., : int(first[1])]
    return named


# ---- building from a case ----


def _load(model: nn.Module, config: Config, state: dict[str, Tensor], *, prefix: str = "") -> None:
    """Convert the published entries and load them strictly; `prefix` (our names) is cut off. Empties `state`."""
    converted = convert(state, feed_forward=config["feed_forward"], partial=bool(prefix))
    state.clear()
    load_into(model, {name.removeprefix(prefix): value for name, value in converted.items()}, "the case")


def _published_names(config: Config, state: Mapping[str, Tensor], *, partial: bool) -> dict[str, str]:
    """Our name -> published name of every entry that is converted."""
    keys = list(state)
    numbers = {key: torch.tensor(number) for number, key in enumerate(keys)}
    converted = convert(numbers, feed_forward=config["feed_forward"], partial=partial)
    return {name: keys[int(number)] for name, number in converted.items()}


def _gating(config: Config, *, training: bool) -> Gating:
    hard = config.get("hard_gates", "straight_through")
    if hard not in ("straight_through", "open"):
        raise UnsupportedCase(f"hard_gates is {hard!r}; expected straight_through or open.")
    in_training: Literal["straight_through", "open"] = "open" if hard == "open" else "straight_through"
    return Gating(
        hard=in_training if training else "threshold",
        soft=config.get("soft_gates", True),
        attention=config["attention"],
        temperature=config.get("temperature", 1.0),
        noise=config.get("gate_noise", False),
    )


def _noise(inputs: Mapping[str, Any], num_clips: int) -> GateNoise | None:
    if inputs.get("noise_u1") is None:
        return None
    u1, u2 = (torch.from_numpy(inputs[name]) for name in ("noise_u1", "noise_u2"))
    return GateNoise(u1.view(num_clips, -1, u1.shape[-1]), u2.view(num_clips, -1, u2.shape[-1]))


def _build_policy(config: Config, num_gates: int) -> Policy:
    return Policy(
        config["in_channels"],
        num_gates,
        hidden_dim=config["hidden_dim"],
        num_heads=config["num_heads"],
        feed_forward=config["feed_forward"],
        positional_encoding=config["positional_encoding"],
    )


def _taps_config(config: Config, state: Mapping[str, Tensor]) -> TapsConfig:
    """Settings of a whole network; widths and depths from the entries of its checkpoint."""
    depths: dict[str, int] = {}
    widths: dict[str, int] = {}
    for key, tensor in state.items():
        if match := re.fullmatch(r"base_model\.(layer\d+)\.\d+\.conv1\.weight", key):
            depths[match[1]] = depths.get(match[1], 0) + 1
            widths[match[1]] = len(tensor)
    return TapsConfig(
        backbone="resnet50" if any(re.search(r"\.conv3\.weight$", key) for key in state) else "resnet18",
        depths=tuple(depths[stage] for stage in sorted(depths)),
        widths=tuple(widths[stage] for stage in sorted(depths)),
        dropout=config.get("dropout", 0.5),
        temporal_shift=config["temporal_shift"],
        shift_div=config["shift_div"],
        copy_edges=config.get("copy_edges", False),
        hidden_dim=config["hidden_dim"],
        num_heads=config["num_heads"],
        attention=config["attention"],
        positional_encoding=config["positional_encoding"],
        feed_forward=config["feed_forward"],
        soft_gates=config.get("soft_gates", True),
        gate_noise=config.get("gate_noise", False),
        warmup_hard_gates_open=config.get("hard_gates") == "open",
        temperature=config.get("temperature", 0.67),
        sparsity_lambda=config.get("sparsity_lambda", 0.0),
        density_target=config.get("density_target", 0.0),
        sparsity_warmup_start=config.get("sparsity_warmup_start", 0),
        sparsity_warmup_end=config.get("sparsity_warmup_end", 0),
        sparsity_gradient=config.get("sparsity_gradient", "conv1"),
        attention_in_proj="trained" if config.get("train_attention_in_proj", False) else "untrained",
        static_macs_image_size=config.get("static_macs_image_size", 224),
    )


def _gradients(modules: nn.Module, names: Mapping[str, str]) -> Arrays:
    """`grad:NAME` of every parameter that has one, by published name."""
    return {
        f"grad:{names[name]}": parameter.grad
        for name, parameter in modules.named_parameters()
        if parameter.grad is not None
    }


def _buffers(modules: nn.Module, names: Mapping[str, str]) -> Arrays:
    return {f"after:{names[name]}": buffer for name, buffer in modules.named_buffers()}


# ---- parts ----


def _temporal_shift(config: Config, inputs: Mapping[str, Any], _: Any, wanted: Collection[str]) -> dict[str, Array]:
    x = torch.from_numpy(inputs["x"])
    shifted: Arrays = {
        name: temporal_shift(
            x,
            num_frames=config["num_frames"],
            mode=setting["temporal_shift"],
            shift_div=setting["shift_div"],
            copy_edges=setting.get("copy_edges", False),
        )
        for name, setting in config["settings"].items()
    }
    return _named(shifted, wanted)


def _policy_arrays(out: PolicyOutput, gates: Gates) -> Arrays:
    return {
        "mask": gates.mask.detach().round().flatten(0, 1),
        "soft_mask": gates.soft.flatten(0, 1),
        "logits": out.logits.flatten(0, 1),
        "attn1": out.attention1,
        "attn1_weights": out.weights1.mean(1),
        "norm1": out.norm1,
        "attn2": out.attention2,
        "attn2_weights": out.weights2.mean(1),
        "norm2": out.norm2,
        "mlp_in": out.mlp_input.flatten(0, 1),
        "fc0": out.hidden.flatten(0, 1),
        "bn": out.hidden_normed.flatten(0, 1),
        "keep_fraction": gates.mask.mean(),
    }


def _policy(
    config: Config, inputs: Mapping[str, Any], state: dict[str, Tensor], wanted: Collection[str]
) -> dict[str, Array]:
    with torch.no_grad():
        _, out, gates, _, _ = _run_policy(config, inputs, state, training=False)
    return _named(_policy_arrays(out, gates), wanted)


def _policy_train(
    config: Config, inputs: Mapping[str, Any], state: dict[str, Tensor], wanted: Collection[str]
) -> dict[str, Array]:
    policy, out, gates, x, names = _run_policy(config, inputs, state, training=True)
    weight = torch.from_numpy(inputs["output_weight"])
    torch.autograd.backward((gates.mask * gates.soft).flatten(0, 1).mul(weight).sum())
    arrays = _policy_arrays(out, gates) | _gradients(policy, names) | _buffers(policy, names)
    return _named(arrays | {"grad:input": _gradient(x)}, wanted)


def _run_policy(
    config: Config, inputs: Mapping[str, Any], state: dict[str, Tensor], *, training: bool
) -> tuple[Policy, PolicyOutput, Gates, Tensor, dict[str, str]]:
    """One policy on its (already shifted) input; also that input and the published names below the case's prefix."""
    prefix = _our_policy_prefix(config["key_prefix"])
    published = _published_names(config, state, partial=True)
    names = {ours.removeprefix(prefix): key.removeprefix(config["key_prefix"]) for ours, key in published.items()}
    policy = _build_policy(config, config["out_channels"]).train(training)
    _load(policy, config, state, prefix=prefix)
    x = torch.from_numpy(inputs["x"]).requires_grad_(training)
    gating = _gating(config, training=training)
    out = decide(policy, x, num_frames=config["num_frames"], attention=gating.attention)
    gates = make_gates(out.logits, gating, noise=_noise(inputs, config["num_clips"]))
    return policy, out, gates, x, names


def _our_policy_prefix(key_prefix: str) -> str:
    match = re.fullmatch(r"base_model\.(layer\d+\.\d+)\.(policy_net\.)?", key_prefix)
    if match is None:
        raise UnsupportedCase(f"key_prefix is {key_prefix!r}; expected base_model.layerS.B. (and policy_net.).")
    return f"policies.{match[1]}."


def _gradient(x: Tensor) -> Tensor:
    if x.grad is None:
        raise UnsupportedCase("the loss does not depend on the input, so grad:input does not exist.")
    return x.grad


def _bottleneck(
    config: Config, inputs: Mapping[str, Any], state: dict[str, Tensor], wanted: Collection[str]
) -> dict[str, Array]:
    with torch.no_grad():
        _, arrays, _, _ = _run_bottleneck(config, inputs, state, training=False)
    return _named(arrays, wanted)


def _bottleneck_train(
    config: Config, inputs: Mapping[str, Any], state: dict[str, Tensor], wanted: Collection[str]
) -> dict[str, Array]:
    modules, arrays, x, names = _run_bottleneck(config, inputs, state, training=True)
    out = arrays["out"]
    if not isinstance(out, Tensor):
        raise TypeError(f"expected the block's output as a tensor, got {type(out).__name__}")
    torch.autograd.backward((out * torch.from_numpy(inputs["output_weight"])).sum())
    arrays |= _gradients(modules, names) | _buffers(modules, names) | {"grad:input": _gradient(x)}
    return _named(arrays, wanted)


def _run_bottleneck(
    config: Config, inputs: Mapping[str, Any], state: dict[str, Tensor], *, training: bool
) -> tuple[nn.Module, Arrays, Tensor, dict[str, str]]:
    """One gated block; its modules, arrays, input, and the published names below the case's prefix."""
    num_clips, num_frames, w = config["num_clips"], config["num_frames"], config["inner_channels"]
    layout = "bottleneck" if config["key_prefix"] + "conv3.weight" in state else "basic"
    shape = BlockShape(
        layout="bottleneck" if layout == "bottleneck" else "basic",
        in_channels=config["in_channels"],
        width=w,
        stride=config["stride"],
    )
    if shape.out_channels != config["out_channels"]:
        raise UnsupportedCase(
            f"out_channels is {config['out_channels']}; a {layout} of width {w} gives {shape.out_channels}."
        )
    block, policy = ResidualBlock(shape), _build_policy(config, w)
    modules = nn.ModuleDict({"backbone": block, "policies": policy}).train(training)
    # backbone.layer2.0.conv1.weight -> backbone.conv1.weight, as the two modules are called here
    place = _our_policy_prefix(config["key_prefix"]).removeprefix("policies.")
    published = _published_names(config, state, partial=True)
    names = {ours.replace(place, "", 1): key.removeprefix(config["key_prefix"]) for ours, key in published.items()}
    converted = convert(state, feed_forward=config["feed_forward"], partial=True)
    load_into(modules, {name.replace(place, "", 1): value for name, value in converted.items()}, "the case")

    x = torch.from_numpy(inputs["x"]).requires_grad_(training)
    gating = _gating(config, training=training)
    shifted = temporal_shift(
        x,
        num_frames=num_frames,
        mode=config["temporal_shift"],
        shift_div=config["shift_div"],
        copy_edges=config.get("copy_edges", False),
    )
    decided = decide(policy, shifted, num_frames=num_frames, attention=gating.attention)
    gates = make_gates(decided.logits, gating, noise=_noise(inputs, num_clips))
    with _seen(block.bn1) as bn1, _seen(block.conv2) as conv2:
        out = run_block(block, x, shifted, gates, soft=gating.soft)
    gated = conv2["input"]
    height, width = config["feature_size"]
    macs = block_macs(shape, size=(height, width), hidden_dim=config["hidden_dim"], num_frames=num_frames)
    per_row = dynamic_macs([macs], [gates.mask.detach()])[..., 0]
    upper = upper_bound_macs([macs], [gates.mask.detach()]).sum()
    per_clip = [macs.downsample, macs.policy_mlp, macs.convs + macs.downsample + macs.policy_mlp]
    arrays: Arrays = {
        "mask": gates.mask.detach().round(),
        "soft_mask": gates.soft,
        "logits": gates.logits.flatten(0, 1),
        "shifted": shifted,
        "bn1": bn1["output"],
        "gated": gated,
        "gated_channel_mean": gated.mean((-2, -1)),
        "out": out,
        "out_channel_mean": out.mean((-2, -1)),
        "out_pixel_0_0": out[..., 0, 0],
        "macs_row": torch.cat([per_row.flatten(), upper[None], torch.tensor(per_clip).double() * num_frames]),
        "keep_fraction": gates.mask.mean(),
    }
    return modules, arrays, x, names


@contextmanager
def _seen(module: nn.Module) -> Iterator[dict[str, Tensor]]:
    """What goes into and comes out of a module while the block runs: `input`, `output`."""
    seen: dict[str, Tensor] = {}

    def look(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        seen["input"], seen["output"] = inputs[0], output

    handle = module.register_forward_hook(look)
    try:
        yield seen
    finally:
        handle.remove()


# ---- the whole network ----


def _network(
    config: Config, inputs: Mapping[str, Any], state: dict[str, Tensor], wanted: Collection[str]
) -> dict[str, Array]:
    model = build(_taps_config(config, state), config["num_classes"]).eval()
    _load(model, config, state)
    frames = torch.from_numpy(inputs["video"])
    with torch.no_grad():
        output = model(frames)
        arrays = _stage_arrays(model, frames, output, wanted)
    num_frames, side = frames.shape[1], model.config.static_macs_image_size
    masks, soft, logits = (model.split_gates(output.aux[name]) for name in ("masks", "soft", "gate_logits"))
    actual = network_macs(model.config, model.num_classes, size=_size(frames), num_frames=num_frames)
    static = network_macs(model.config, model.num_classes, size=(side, side), num_frames=num_frames)
    arrays |= _macs_arrays(actual.blocks, static, masks)
    dynamic, upper = dynamic_macs(actual.blocks, masks), upper_bound_macs(actual.blocks, masks)
    everything = torch.tensor([sum(static.static(num_frames)) / num_frames / 1e9 + static.stem / 1e9])
    arrays |= {
        "clip_logits": output.logits,
        "frame_logits": output.aux["frame_logits"],
        "gate_logits_per_block": torch.stack([part.flatten(0, 1)[:, : min(model.num_gates)] for part in logits], dim=1),
        "gate_logits_per_block.stats": np.stack([stats(part.numpy()) for part in logits]),
        "gate_mask_packed": np.packbits(output.aux["masks"].flatten(0, 1).numpy() > 0, axis=-1),
        "keep_fraction_per_block": torch.stack([part.mean() for part in masks]),
        "keep_fraction_per_block_frame": torch.stack([part.mean((0, 2)) for part in masks]),
        "soft_mean_per_block": torch.stack([part.mean() for part in soft]),
        "gmacs_per_frame": torch.cat(
            [everything, gmacs_per_frame(upper, static)[None], gmacs_per_frame(dynamic, static)[None]]
        ),
    }
    return _named(arrays, wanted)


def _size(frames: Tensor) -> tuple[int, int]:
    return frames.shape[-2], frames.shape[-1]


def _stage_arrays(model: Taps, frames: Tensor, output: Output, wanted: Collection[str]) -> Arrays:
    """What leaves the stem, each stage and the pooling, in a second pass stage by stage.

    Raises:
        UnsupportedCase: this pass does not end in the logits of the model's own forward.
    """
    num_frames = frames.shape[1]
    gating = Gating(soft=model.config.soft_gates, attention=model.config.eval_attention or model.config.attention)
    x = model.backbone.stem(frames.flatten(0, 1))
    maps = {"stem": x}
    gates: list[Gates] = []
    for number, stage in enumerate(model.backbone.stages, start=1):
        x, stage_gates = model.run_stage(stage, x, num_frames=num_frames, gating=gating)
        gates += stage_gates
        maps[f"stage{number}"] = x
    features = x.mean((-2, -1))
    again = model.classify(features.view(-1, num_frames, features.shape[1]), gates, input_size=_size(frames))
    if not torch.allclose(again.logits, output.logits, rtol=1e-5, atol=1e-6):
        raise UnsupportedCase("running stage by stage gives other logits than the model's forward.")
    arrays: Arrays = {"features": features, "features_frame_mean": features.mean(1)}
    for name, value in maps.items():
        # Reduced here, as the case asks: no feature map of a full-size network is kept for nothing.
        arrays |= _named({name: value}, wanted)
        arrays[f"{name}_frame_mean"] = value.mean((1, 2, 3))
    return arrays


def _macs_arrays(actual: Collection[BlockMacs], static: NetworkMacs, masks: list[Tensor]) -> Arrays:
    num_frames = masks[0].shape[1]
    dynamic = dynamic_macs(list(actual), masks)
    return {
        "macs_dynamic": dynamic,
        "macs_static": np.array(static.static(num_frames)),
        "macs_downsample": np.array([num_frames * block.downsample for block in static.blocks]),
        "macs_policy": np.array([num_frames * block.policy_mlp for block in static.blocks]),
        "macs_upper_bound": upper_bound_macs(list(actual), masks).sum((0, 1)),
        "macs_stem": np.array([static.stem]),
        "macs_classifier": np.array([static.classifier]),
        "density_ratio": density_ratio(dynamic, static),
    }


def _training_step(
    config: Config, inputs: Mapping[str, Any], state: dict[str, Tensor], wanted: Collection[str]
) -> dict[str, Array]:
    """One optimiser step in float64, through the same functions as a training run."""
    settings = _taps_config(config, state)
    epoch = config["epoch"]
    if hard_gates_open(settings, epoch) != (config["hard_gates"] == "open"):
        raise UnsupportedCase(
            f"hard_gates is {config['hard_gates']!r} at epoch {epoch}, but the warm-up ends before epoch "
            f"{settings.sparsity_warmup_start}."
        )
    names = _published_names(config, state, partial=False)
    model = build(settings, config["num_classes"])
    _load(model, config, state)
    model = model.double().train()
    train = Train(
        epochs=max([epoch + 1, *config["lr_steps"]]),
        batch_size=config["num_clips"],
        lr=config["learning_rate"],
        momentum=config["momentum"],
        weight_decay=config["weight_decay"],
        lr_milestones=tuple(config["lr_steps"]),
        clip_grad=config["clip_grad_norm"],
    )
    groups = param_groups(model, train)
    for group in groups:
        group["lr"] *= _step_factor(train, epoch, config["lr_decay"])
    optimizer = torch.optim.SGD(groups, lr=train.lr, momentum=train.momentum)
    video = torch.from_numpy(inputs["video"]).double()
    batch = Batch(
        video_id=[str(number) for number in range(len(video))],
        frames=video[:, None],
        labels=torch.from_numpy(inputs["labels"]),
        pts_seconds=torch.zeros(len(video), 1, video.shape[1], dtype=torch.float64),
    )
    outputs: list[Output] = []
    handle = model.register_forward_hook(lambda _module, _inputs, output: outputs.append(output))
    terms = training_step(model, batch, epoch)
    handle.remove()
    torch.autograd.backward(terms["loss"])
    asked = {name for name, published in names.items() if any(key.startswith(f"delta:{published}") for key in wanted)}
    parameters = dict(model.named_parameters())
    before = {name: parameters[name].detach().clone() for name in asked}
    gradients = {
        key: to_array(value).copy() for key, value in _gradients(model, names).items() if _is_wanted(key, wanted)
    }
    norm = nn.utils.clip_grad_norm_(model.parameters(), config["clip_grad_norm"])
    optimizer.step()
    (output,) = outputs
    arrays: Arrays = {
        "clip_logits": output.logits,
        "classification_loss": terms["classification_loss"],
        "sparsity_loss": terms["sparsity_loss"],
        "keep_fraction_per_block": torch.stack([part.mean() for part in model.split_gates(output.aux["masks"])]),
        "soft_mean_per_block": torch.stack([part.mean() for part in model.split_gates(output.aux["soft"])]),
        "grad_total_norm": norm,
    }
    arrays |= gradients
    arrays |= {f"delta:{names[name]}": parameters[name].detach() - before[name] for name in asked}
    return _named(arrays | _buffers(model, names), wanted)


def _is_wanted(key: str, wanted: Collection[str]) -> bool:
    return any(name == key or name.startswith(f"{key}.") for name in wanted)


def _step_factor(train: Train, epoch: float, decay: float) -> float:
    """Our schedule's factor, with the case's divisor in place of our fixed one."""
    num_decays = round(-math.log(learning_rate_factor(train, epoch), STEP_DECAY))
    return float(decay**-num_decays)


# ---- losses, schedules, data, metrics ----


def _sparsity_loss(config: Config, inputs: Mapping[str, Any], _: Any, wanted: Collection[str]) -> dict[str, Array]:
    num_clips, num_frames, side = config["num_clips"], config["num_frames"], config["image_size"]
    layout = "basic" if config["backbone"] == "resnet18" else "bottleneck"
    blocks, masks = [], []
    sizes = zip(
        config["in_channels_per_block"],
        config["channels_per_block"],
        config["input_size_per_block"],
        config["stride_per_block"],
        strict=True,
    )
    for index, (c, w, size, stride) in enumerate(sizes):
        shape = BlockShape(layout="basic" if layout == "basic" else "bottleneck", in_channels=c, width=w, stride=stride)
        blocks.append(block_macs(shape, size=(size, size), hidden_dim=config["hidden_dim"], num_frames=num_frames))
        gate = torch.from_numpy(inputs[f"gates_block{index}"])
        masks.append(gate.reshape(num_clips, num_frames, w).requires_grad_())
    classes = config["num_classes"]
    static = NetworkMacs(
        blocks=tuple(blocks),
        stem=stem_macs(config["in_channels_per_block"][0], "conv7_pool", size=(side, side)),
        classifier=shape.out_channels * classes + classes,
        classifier_counted=shape.out_channels * classes,
    )
    settings = TapsConfig(
        sparsity_lambda=config["sparsity_lambda"],
        density_target=config["density_target"],
        sparsity_warmup_start=config["sparsity_warmup_start"],
        sparsity_warmup_end=config["sparsity_warmup_end"],
    )
    l1 = TapsConfig(
        sparsity_lambda=config["sparsity_lambda"], density_target=config["density_target"], sparsity_loss="l1"
    )
    arrays = _macs_arrays(blocks, static, masks)
    ratio = density_ratio(dynamic_macs(blocks, masks), static)
    arrays |= {
        "keep_fraction_per_block": torch.stack([mask.mean() for mask in masks]),
        "sparsity_loss_by_epoch": torch.stack(
            [sparsity_loss(ratio, settings, factor=sparsity_factor(settings, epoch)) for epoch in config["epochs"]]
        ),
        "sparsity_loss_l1": sparsity_loss(ratio, l1),
        "classification_loss": nn.functional.cross_entropy(
            torch.from_numpy(inputs["logits"]), torch.from_numpy(inputs["labels"])
        ),
    }
    conv1_only = density_ratio(dynamic_macs(blocks, masks, gradient="conv1"), static)
    gradients = torch.autograd.grad(sparsity_loss(conv1_only, settings), masks)
    arrays["grad_per_block_mean"] = torch.stack([g.double().mean() for g in gradients])
    arrays["grad_per_block_std"] = torch.stack([g.double().std(correction=0) for g in gradients])
    gradients = torch.autograd.grad(sparsity_loss(ratio, settings), masks)
    arrays["grad_all_terms_per_block_mean"] = torch.stack([g.double().mean() for g in gradients])
    return _named(arrays, wanted)


def _schedules(config: Config, _: Any, __: Any, wanted: Collection[str]) -> dict[str, Array]:
    epochs, lr = range(config["epochs"]), config["learning_rate"]
    step = Train(epochs=config["epochs"], batch_size=1, lr=lr, lr_milestones=tuple(config["lr_steps"]))
    cosine = Train(epochs=config["epochs"], batch_size=1, lr=lr, schedule="cosine")
    settings = TapsConfig(
        temperature=config["temperature"],
        sparsity_warmup_start=config["sparsity_warmup_start"],
        sparsity_warmup_end=config["sparsity_warmup_end"],
    )
    exponential = TapsConfig(
        temperature=config["exponential_temperature_start"],
        temperature_decay=-config["exponential_temperature_factor"],
    )
    rates = lr * np.array([_step_factor(step, epoch, config["lr_decay"]) for epoch in epochs])
    decays = np.full(len(epochs), config["weight_decay"])
    arrays: Arrays = {
        "learning_rate": np.outer(rates, config["lr_multipliers"]),
        "weight_decay": np.outer(decays, config["decay_multipliers"]),
        "learning_rate_cosine": lr * np.array([learning_rate_factor(cosine, epoch) for epoch in epochs]),
        "temperature": np.array([temperature(settings, epoch) for epoch in epochs]),
        "temperature_exponential": np.array([temperature(exponential, epoch) for epoch in epochs]),
        "sparsity_factor": np.array([sparsity_factor(settings, epoch) for epoch in epochs]),
        "hard_gates_open": np.array([hard_gates_open(settings, epoch) for epoch in epochs]),
    }
    return _named(arrays, wanted)


class _PublishedDraws:
    """The numbers of `numpy.random.seed(seed)` and `randint`, behind the interface that our samplers draw from."""

    def __init__(self, seed: int) -> None:
        self.state = np.random.RandomState(seed)

    def integers(self, low: int, high: int, size: int | None = None) -> Any:
        return self.state.randint(low, high, size=size)


def _frame_sampling(config: Config, inputs: Mapping[str, Any], _: Any, wanted: Collection[str]) -> dict[str, Array]:
    lengths = [int(length) for length in inputs["video_lengths"]]
    arrays: Arrays = {}
    for t in config["num_frames"]:
        train, dense = _PublishedDraws(config["seed"]), _PublishedDraws(config["seed"])
        window = config["dense_window"]
        rows = {
            "val": [sample_segments(n, num_segments=t, short="last") for n in lengths],
            "test": [sample_clips(n, num_segments=t, num_clips=1)[0] for n in lengths],
            "train": [sample_segments(n, num_segments=t, short="last", rng=train) for n in lengths],
            "dense_val": [sample_dense(n, num_segments=t, window=window, rng=dense) for n in lengths],
        }
        arrays |= {f"{split}_T{t}": np.stack(indices) + 1 for split, indices in rows.items()}  # published: from 1
    return _named(arrays, wanted)


def _train_crops(config: Config, _: Any, __: Any, wanted: Collection[str]) -> dict[str, Array]:
    arrays: Arrays = {}
    for width, height in config["image_sizes"]:
        sizes = multiscale_crop_sizes(
            width, height, scales=config["scales"], max_aspect_step=config["max_distort"], crop=config["crop_size"]
        )
        arrays[f"sizes_{width}x{height}"] = np.array(sizes)
        arrays[f"offsets_{width}x{height}"] = np.array([crop_offsets(width, height, w, h) for w, h in sizes])
    return _named(arrays, wanted)


def _metrics(config: Config, inputs: Mapping[str, Any], _: Any, wanted: Collection[str]) -> dict[str, Array]:
    logits = torch.from_numpy(inputs["logits"])
    scores = logits.softmax(-1)
    arrays: Arrays = {}
    for name, labels in inputs.items():
        if not name.startswith("labels_"):
            continue
        suffix = name.removeprefix("labels_")
        all_labels = torch.zeros(len(logits), config["num_classes"])
        for row, classes in enumerate(labels):
            all_labels[row, classes[classes >= 0]] = 1
        first = torch.from_numpy(labels[:, 0])
        first_labels = nn.functional.one_hot(first, config["num_classes"])
        for kind, targets in (("", first_labels), ("_all_labels", all_labels)):
            mean, each = mean_average_precision(scores, targets, renumber_present_classes=True)
            arrays |= {f"map{kind}.{suffix}": mean, f"ap{kind}.{suffix}": each}
        accuracies = [topk_accuracy(logits, first, k) for k in config["top_k"]]
        arrays[f"top1_top5.{suffix}"] = np.array(accuracies)
    return _named(arrays, wanted)


COMPONENTS: Mapping[str, Component] = {
    "temporal_shift": _temporal_shift,
    "policy": _policy,
    "policy_train": _policy_train,
    "bottleneck": _bottleneck,
    "bottleneck_train": _bottleneck_train,
    "network": _network,
    "sparsity_loss": _sparsity_loss,
    "schedules": _schedules,
    "frame_sampling": _frame_sampling,
    "train_crops": _train_crops,
    "metrics": _metrics,
    "training_step": _training_step,
}
"""(config, inputs, published state dict, wanted names) -> arrays."""
