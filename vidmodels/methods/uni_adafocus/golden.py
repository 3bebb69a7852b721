"""Golden cases of Uni-AdaFocus: component -> a function from a case's settings and inputs to named arrays.

What each component gives is in the table of tests/golden/README.md. Everything is built from the case's `config`.
"""

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from vidmodels.backbones.mobilenet_v2 import MobileNetV2
from vidmodels.cases import Array, Component, Config, UnsupportedCase, to_array
from vidmodels.checkpoints import load_into
from vidmodels.layers.temporal_shift import temporal_shift
from vidmodels.methods.uni_adafocus.convert import convert
from vidmodels.methods.uni_adafocus.cost import exit_macs
from vidmodels.methods.uni_adafocus.exits import exit_counts, exit_shares, exit_steps, exit_values, solve_thresholds
from vidmodels.methods.uni_adafocus.model import (
    Draws,
    FocusNetwork,
    PoolingClassifier,
    UniAdaFocus,
    UniAdaFocusConfig,
    UniAdaFocusTsm,
    build,
)
from vidmodels.methods.uni_adafocus.policy import (
    SpatialPolicy,
    TemporalPolicy,
    choose_frames,
    interpolate_actions,
    monte_carlo_logits,
)
from vidmodels.methods.uni_adafocus.training import loss_terms, param_groups
from vidmodels.metrics import mean_average_precision, topk_accuracy
from vidmodels.types import Output, Train
from vidprep.load.transforms import EvalTransform, Window, crop_offsets, multiscale_crop_sizes
from vidprep.sampling import sample_jittered

__all__ = ["COMPONENTS"]

Arrays = dict[str, Tensor | Array]
GLANCE_CHANNELS, FOCUS_CHANNELS = 1280, 2048
PUBLISHED_CLASSES = 200
"""That the published cost table is for."""


# ---- arrays as the cases name them ----


def _named(arrays: Mapping[str, Tensor | Array | float], wanted: Collection[str], stride: int = 1) -> dict[str, Array]:
    """The wanted arrays: as they are, or a part or reduction of them, as the name's ending says."""
    named = {}
    for name in wanted:
        base, _, ending = name.rpartition(".")
        if name in arrays:
            named[name] = to_array(arrays[name])
        elif base in arrays:
            named[name] = _reduced(to_array(arrays[base]), ending, stride)
    return named


def _reduced(x: Array, ending: str, stride: int) -> Array:
    if ending == "sample_stats":
        rows = x.reshape(len(x), -1).astype(np.float64)
        return np.concatenate([rows.mean(1, keepdims=True), rows.std(1, keepdims=True), rows[:, :8]], axis=1)
    if ending == "strided":
        return x[:, :, ::stride, ::stride]
    if ending == "first2_channels":
        return x[:, :2]
    if ending == "first64":
        return x[..., :64]
    if ending.startswith("flat") and ending[4:].isdigit():
        return x.reshape(-1)[: int(ending[4:])]
    raise UnsupportedCase(f"no ending {ending!r} for an array.")


# ---- building from a case ----


def _settings(config: Config, **more: Any) -> UniAdaFocusConfig:
    names = {
        "num_candidates": "num_candidate_frames",
        "num_glance": "num_glance_frames",
        "num_focus": "num_focus_frames",
        "patch_size": "patch_size",
        "image_size": "image_size",
        "spatial_hidden_dim": "spatial_hidden_dim",
        "temporal_hidden_dim": "temporal_hidden_dim",
        "temperature": "temperature",
        "shift_div": "shift_div",
        "dropout": "dropout",
        "head_dropout": "head_dropout",
        "norm_weight": "norm_weight",
        "kl_weight": "kl_weight",
        "num_samples": "num_samples",
    }
    given = {ours: config[theirs] for ours, theirs in names.items() if theirs in config}
    return UniAdaFocusConfig(**given, **more)


def _load_part(module: nn.Module, state: Mapping[str, Tensor], ours: str) -> None:
    """Put those converted entries that lie at `ours` into a module."""
    converted = convert(state, partial=True)
    load_into(
        module,
        {name.removeprefix(ours): value for name, value in converted.items() if name.startswith(ours)},
        "the case",
    )
    module.eval()


def _build(config: Config, state: dict[str, Tensor], **more: Any) -> UniAdaFocus | UniAdaFocusTsm:
    """The whole network with the case's entries, which are emptied on the way."""
    model = build(_settings(config, **more), config["num_classes"])
    converted = convert(state)
    state.clear()
    load_into(model, converted, "the case")
    return model.eval()


def _published_names(state: Mapping[str, Tensor]) -> dict[str, str]:
    """Our name -> published name, for the entries that we keep."""
    keys = list(state)
    numbers = convert({key: torch.tensor(number) for number, key in enumerate(keys)})
    return {name: keys[int(number)] for name, number in numbers.items()}


# ---- parts ----


def _glance_network(
    config: Config, inputs: Mapping[str, Any], state: dict[str, Tensor], wanted: Collection[str]
) -> dict[str, Array]:
    network, head = MobileNetV2(), nn.Linear(GLANCE_CHANNELS, config["num_classes"])
    _load_part(network, state, "glance.")
    _load_part(head, state, "glance_head.")
    with torch.no_grad():
        maps = [x.clone() for x in network.maps(torch.from_numpy(inputs["frames"]))]
        feature = maps[-1].mean((-2, -1))
        arrays: Arrays = {f"features_{index:02d}": x for index, x in enumerate(maps)}
        arrays |= {"glance_map": maps[-1], "glance_feature": feature, "glance_logits": head(feature)}
    return _named(arrays, wanted)


def _focus_network(
    config: Config, inputs: Mapping[str, Any], state: dict[str, Tensor], wanted: Collection[str]
) -> dict[str, Array]:
    network, head = FocusNetwork(UniAdaFocusConfig()), nn.Linear(FOCUS_CHANNELS, config["num_classes"])
    _load_part(network, state, "focus.")
    _load_part(head, state, "focus_head.")
    patches = torch.from_numpy(inputs["patches"])
    with torch.no_grad():
        feature = network(patches)
        arrays: Arrays = dict(network.maps(patches))
        arrays |= {"focus_feature": feature, "focus_logits": head(feature)}
    return _named(arrays, wanted)


def _spatial_policy(
    config: Config, inputs: Mapping[str, Any], state: dict[str, Tensor], wanted: Collection[str]
) -> dict[str, Array]:
    settings = _settings(config)
    with torch.device("meta"):
        model = UniAdaFocus(settings, config["num_classes"])
    policy = SpatialPolicy(GLANCE_CHANNELS, 7, hidden_dim=settings.spatial_hidden_dim)
    head = nn.Linear(GLANCE_CHANNELS, config["num_classes"])
    _load_part(policy, state, "spatial_policy.")
    _load_part(head, state, "spatial_head.")
    maps = torch.from_numpy(inputs["glance_map"])
    maps = maps.view(-1, settings.num_glance, *maps.shape[1:])
    geometry, points = settings.geometry, settings.geometry.points(settings.map_size)
    arrays: Arrays = {}
    with torch.no_grad():
        x = maps.transpose(1, 2)
        for index, layer in enumerate(policy.encoder):
            x = layer(x)
            arrays[f"encoder_{index}"] = x
        actions = policy(maps)
        every = interpolate_actions(actions, settings.num_candidates)
        patches = model.map_patches(maps, actions)
        feature = patches.mean((1, 3, 4))
        arrays |= {
            "glance_actions": actions.flatten(0, 1),
            "frame_actions": every.flatten(0, 1),
            "frame_boxes": geometry.boxes(every, side=settings.image_size, points=settings.patch_size).flatten(0, 1),
            "map_boxes": geometry.boxes(actions, side=maps.shape[-1], points=points).flatten(0, 1),
            "map_patches": patches.flatten(0, 1),
            "aux_feature": feature,
            "spatial_logits": head(feature),
        }
    return _named(arrays, wanted)


def _patch_resampling(config: Config, inputs: Mapping[str, Any], _: Any, wanted: Collection[str]) -> dict[str, Array]:
    geometry = UniAdaFocusConfig(patch_size=config["patch_size"]).geometry
    images, actions = torch.from_numpy(inputs["images"]), torch.from_numpy(inputs["actions"])
    points = config["output_size"]
    arrays: Arrays = {
        "patches": geometry.resample(images, actions, points=points),
        "boxes": geometry.boxes(actions, side=config["image_size"], points=points),
    }
    return _named(arrays, wanted, config["stored_stride"])


def _temporal_policy(
    config: Config, inputs: Mapping[str, Any], state: dict[str, Tensor], wanted: Collection[str]
) -> dict[str, Array]:
    policy = TemporalPolicy(GLANCE_CHANNELS, hidden_dim=config["temporal_hidden_dim"])
    _load_part(policy, state, "temporal_policy.")
    features = torch.from_numpy(inputs["glance_feature"]).view(-1, config["num_glance_frames"], GLANCE_CHANNELS)
    with torch.no_grad():
        logits = policy(features)
    weights = (logits / config["temperature"]).softmax(1)
    chosen = [
        _flat_indices(choose_frames(weights, num_candidates=s, num_focus=f), s) for s, f in config["frame_choices"]
    ]
    arrays: Arrays = {
        "policy_logits": logits,
        "weights": logits.softmax(1),
        "weights_with_temperature": weights,
        "focus_indices_flat": torch.cat(chosen, dim=1),
    }
    return _named(arrays, wanted)


def _flat_indices(chosen: Tensor, num_candidates: int) -> Tensor:
    return chosen + num_candidates * torch.arange(len(chosen))[:, None]


def _frame_choice(config: Config, inputs: Mapping[str, Any], _: Any, wanted: Collection[str]) -> dict[str, Array]:
    weights, draws = torch.from_numpy(inputs["weights"]), torch.from_numpy(inputs["uniform_draws"])
    s, f = config["num_candidate_frames"], config["num_focus_frames"]
    arrays: Arrays = {
        "focus_indices_flat_eval": _flat_indices(choose_frames(weights, num_candidates=s, num_focus=f), s),
        "focus_indices_flat_train": _flat_indices(
            choose_frames(weights, num_candidates=s, num_focus=f, draws=draws), s
        ),
    }
    return _named(arrays, wanted)


def _removed(config: Config, inputs: Mapping[str, Any], num_clips: int) -> list[Tensor]:
    """The case's draws of frames to remove.

    Raises:
        UnsupportedCase: another number of them than the glance frames ask for.
    """
    if config["num_removal_steps"] != config["num_glance_frames"] // 3:
        raise UnsupportedCase("num_removal_steps is a third of num_glance_frames here.")
    return [
        torch.from_numpy(inputs[f"removed_frames_{count}"]).long().view(num_clips, config["num_samples"], count)
        for count in range(1, config["num_removal_steps"])
    ]


def _temporal_logits(config: Config, inputs: Mapping[str, Any], _: Any, wanted: Collection[str]) -> dict[str, Array]:
    frame_logits = torch.from_numpy(inputs["glance_logits"]).requires_grad_()
    weights = torch.from_numpy(inputs["weights"]).requires_grad_()
    logits = monte_carlo_logits(
        weights,
        frame_logits.view(*weights.shape, config["num_classes"]),
        _removed(config, inputs, len(weights)),
    )
    loss = cross_entropy(logits, torch.as_tensor(inputs["labels"]))
    gradients = torch.autograd.grad(loss, [weights, frame_logits])
    arrays: Arrays = {
        "temporal_logits": logits,
        "loss": loss,
        "grad:weights": gradients[0],
        "grad:glance_logits": gradients[1],
    }
    return _named(arrays, wanted)


def _classifier(
    config: Config, inputs: Mapping[str, Any], state: dict[str, Tensor], wanted: Collection[str]
) -> dict[str, Array]:
    settings = _settings(config, num_candidates=3 * config["num_glance_frames"])
    classifier = PoolingClassifier(
        settings, config["num_classes"], glance_dim=GLANCE_CHANNELS, focus_dim=FOCUS_CHANNELS
    )
    _load_part(classifier, state, "classifier.")
    glance, focus = torch.from_numpy(inputs["glance_feature"]), torch.from_numpy(inputs["focus_feature"])
    with torch.no_grad():
        steps = classifier(glance, focus)
        arrays: Arrays = {
            "glance_mlp": classifier.embed(classifier.glance_mlp, glance).flatten(0, 1),
            "focus_mlp": classifier.embed(classifier.focus_mlp, focus).flatten(0, 1),
            "step_logits": steps,
            "logits": steps[:, -1],
        }
    return _named(arrays, wanted)


# ---- whole networks ----


def _network(
    config: Config, inputs: Mapping[str, Any], state: dict[str, Tensor], wanted: Collection[str]
) -> dict[str, Array]:
    model = _build(config, state)
    if not isinstance(model, UniAdaFocus):
        raise UnsupportedCase("expected the pooling variant.")
    video = torch.from_numpy(inputs["video"])
    settings = model.config
    with torch.no_grad():
        output: Output = model(video)
        aux = output.aux
        glance = model.look(video[:, model.glance_indices])
        patches = model.cut(video, aux["focus_indices"], aux["focus_actions"])
        features = model.focus(patches)
        boxes = settings.geometry.boxes(aux["focus_actions"], side=settings.image_size, points=settings.patch_size)
        arrays: Arrays = {
            "policy_logits": aux["policy_logits"],
            "weights": aux["weights"],
            "focus_indices": aux["focus_indices"],
            "glance_actions": aux["glance_actions"].flatten(0, 1),
            "focus_actions": aux["focus_actions"].flatten(0, 1),
            "focus_boxes": boxes.flatten(0, 1),
            "glance_map": glance.maps.flatten(0, 1),
            "glance_feature": glance.features.flatten(0, 1),
            "glance_logits": model.glance_head(glance.features).flatten(0, 1),
            "patches": patches,
            "focus_feature": features,
            "focus_logits": model.focus_head(features),
            "step_logits": aux["step_logits"],
            "logits": output.logits,
            "spatial_logits": model.spatial_logits(glance.maps, aux["glance_actions"]),
        }
    return _named(arrays, wanted)


def _early_exit_network(
    config: Config, inputs: Mapping[str, Any], state: dict[str, Tensor], wanted: Collection[str]
) -> dict[str, Array]:
    model = _build(config, state)
    with torch.no_grad():
        output: Output = model(torch.from_numpy(inputs["video"]))
    logits = output.aux["step_logits"][:, -(config["num_focus_frames"] + 1) :]
    gmacs = torch.tensor(exit_macs(model.config, PUBLISHED_CLASSES), dtype=torch.float64) / 1e9
    arrays: Arrays = {"exit_logits": logits}
    for criterion in ("confidence", "entropy"):
        values = exit_values(logits, "confidence" if criterion == "confidence" else "entropy")
        steps = torch.stack([exit_steps(values, row) for row in torch.from_numpy(inputs[f"{criterion}_thresholds"])])
        arrays |= {
            f"{criterion}_values": values,
            f"{criterion}_exit_step": steps,
            f"{criterion}_gflops": gmacs[steps].mean(1),
        }
    return _named(arrays, wanted)


def _tsm_network(
    config: Config, inputs: Mapping[str, Any], state: dict[str, Tensor], wanted: Collection[str]
) -> dict[str, Array]:
    model = _build(config, state, variant="tsm")
    if (
        not isinstance(model, UniAdaFocusTsm)
        or not isinstance(model.glance, MobileNetV2)
        or not isinstance(model.focus, FocusNetwork)
    ):
        raise UnsupportedCase("expected the TSM variant.")
    settings = model.config
    clip, candidates = torch.from_numpy(inputs["glance_clip"]), torch.from_numpy(inputs["candidate_frames"])
    with torch.no_grad():
        output: Output = model(torch.cat([clip, candidates], dim=1))
        aux = output.aux
        arrays: Arrays = {}
        maps = clip.flatten(0, 1)
        for index, maps in enumerate(model.glance.maps(clip.flatten(0, 1), num_frames=settings.num_glance)):
            arrays |= _named({f"glance_features_{index:02d}": maps}, wanted)
        stacked = maps.view(len(clip), settings.num_glance, *maps.shape[1:])
        patches = model.cut(candidates, aux["focus_indices"], aux["glance_actions"])
        for name, x in model.focus.maps(patches, num_frames=settings.num_focus):
            arrays |= _named({f"focus_{name}": x}, wanted)
        boxes = settings.geometry.boxes(aux["glance_actions"], side=settings.image_size, points=settings.patch_size)
        feature = model.focus_features(patches)
        arrays |= {
            "policy_logits": aux["policy_logits"],
            "weights": aux["weights"],
            "focus_indices": aux["focus_indices"],
            "action": aux["glance_actions"][:, 0],
            "box": boxes[:, 0],
            "spatial_logits": model.spatial_logits(stacked, aux["glance_actions"]),
            "glance_map": stacked.flatten(1, 2),
            "glance_feature": maps.mean((-2, -1)),
            "glance_frame_logits": aux["glance_frame_logits"],
            "glance_avg_logits": aux["glance_average"],
            "glance_final_logits": aux["glance_final"],
            "patches": patches,
            "focus_feature": feature.flatten(0, 1),
            "focus_avg_logits": model.focus_heads.average(feature).mean(1),
            "focus_final_logits": aux["focus_final"],
            "logits": output.logits,
        }
    return _named(arrays, wanted)


# ---- training ----


def _backward(model: nn.Module, loss: Tensor, published: Mapping[str, str]) -> Arrays:
    """Gradients, their norms by published module, and buffers after the forward pass."""
    torch.autograd.backward(loss)
    arrays: Arrays = {}
    squares: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        if parameter.grad is None:
            raise UnsupportedCase(f"{name} has no gradient.")
        arrays[f"grad:{published[name]}"] = parameter.grad.clone()
        square = parameter.grad.double().square().sum()
        for module in (published[name].partition(".")[0], "total"):
            squares[module] = squares.get(module, torch.zeros((), dtype=torch.float64)) + square
    arrays |= {f"grad_norm:{module}": square.sqrt() for module, square in squares.items()}
    return arrays | {f"after:{published[name]}": buffer.clone() for name, buffer in model.named_buffers()}


def _training_step(
    config: Config, inputs: Mapping[str, Any], state: dict[str, Tensor], wanted: Collection[str]
) -> dict[str, Array]:
    """One optimiser step through the same functions as a training run."""
    leftovers = {key: state[key] for key in ("global_CNN.classifier.bias", "local_CNN.fc.bias")}
    published = _published_names(state)
    scales = config["lr_multipliers"]
    if {scales["global_CNN"]} != {scales["global_CNN_fc"], scales["aux_fc"]} or scales["local_CNN"] != 1:
        raise UnsupportedCase("the glance network's heads learn as fast as itself here, and the focus network at 1.")
    model = _build(
        config,
        state,
        glance_lr_scale=scales["global_CNN"],
        spatial_lr_scale=scales["spatial_policy"],
        temporal_lr_scale=scales["temporal_policy"],
        classifier_lr_scale=scales["classifier"],
    ).train()
    video, labels = torch.from_numpy(inputs["video"]), torch.as_tensor(inputs["labels"])
    settings, n = model.config, len(video)
    draws = Draws(
        glance_offsets=torch.from_numpy(inputs["glance_offsets"]).long(),
        thresholds=torch.from_numpy(inputs["threshold_draws"]),
        positions=torch.from_numpy(inputs["random_actions"])[:, :2].view(n, settings.num_candidates, 2),
        removed=_removed(config, inputs, n),
    )
    output: Output = model(video, draws=draws)
    terms, aux = loss_terms(settings, output, labels), output.aux
    arrays: Arrays = _backward(model, terms["loss"], published)
    train = Train(
        epochs=1,
        batch_size=n,
        lr=config["learning_rate"],
        momentum=config["momentum"],
        weight_decay=config["weight_decay"],
    )
    torch.optim.SGD(param_groups(model, train), lr=train.lr, momentum=train.momentum).step()
    arrays |= {f"updated:{published[name]}": parameter for name, parameter in model.named_parameters()}
    arrays |= {f"updated:{key}": value for key, value in leftovers.items()}
    arrays |= {
        "loss": terms["loss"],
        "loss_cat": terms["prediction_loss"],
        "loss_global": terms["glance_loss"],
        "loss_local": terms["focus_loss"],
        "loss_temporal": terms["temporal_loss"],
        "loss_spatial": terms["spatial_loss"],
        "loss_norm": terms["norm_loss"],
        "loss_kl": terms["kl_loss"],
        "logits_policy": output.logits,
        "logits_random": aux["random_step_logits"][:, -1],
        "glance_actions": aux["glance_actions"].flatten(0, 1),
        "weights": aux["weights"],
        "glance_indices_flat": _flat_indices(aux["glance_indices"], settings.num_candidates),
        "focus_indices_flat": _flat_indices(aux["focus_indices"], settings.num_candidates),
        "focus_actions_policy": aux["focus_actions"].flatten(0, 1),
        "focus_actions_random": aux["random_focus_actions"].flatten(0, 1),
        "temporal_logits": aux["temporal_logits"],
        "spatial_logits": aux["spatial_logits"],
    }
    return _named(arrays, wanted)


def _tsm_training_step(
    config: Config, inputs: Mapping[str, Any], state: dict[str, Tensor], wanted: Collection[str]
) -> dict[str, Array]:
    published = _published_names(state)
    model = _build(config, state, variant="tsm").train()
    clip, candidates = torch.from_numpy(inputs["glance_clip"]), torch.from_numpy(inputs["candidate_frames"])
    settings, n = model.config, len(clip)
    draws = Draws(
        thresholds=torch.from_numpy(inputs["threshold_draws"]),
        positions=torch.from_numpy(inputs["random_actions"])[:, :2],
        removed=_removed(config, inputs, n),
    )
    output: Output = model(torch.cat([clip, candidates], dim=1), draws=draws)
    terms, aux = loss_terms(settings, output, torch.as_tensor(inputs["labels"])), output.aux
    arrays: Arrays = _backward(model, terms["loss"], published)
    arrays |= {
        "loss": terms["loss"],
        "loss_target": terms["prediction_loss"],
        "loss_global": terms["glance_loss"],
        "loss_local": terms["focus_loss"],
        "loss_temporal": terms["temporal_loss"],
        "loss_spatial": terms["spatial_loss"],
        "loss_norm": terms["norm_loss"],
        "logits_policy": output.logits,
        "logits_random": aux["random_logits"],
        "action_random": aux["random_focus_actions"][:, 0],
        "action_policy": aux["glance_actions"][:, 0],
        "weights": aux["weights"],
        "focus_indices_flat": _flat_indices(aux["focus_indices"], settings.num_candidates),
        "temporal_logits": aux["temporal_logits"],
        "spatial_logits": aux["spatial_logits"],
    }
    return _named(arrays, wanted)


# ---- exits, cost, metrics ----


def _gmacs(patch_size: int) -> Tensor:
    macs = exit_macs(UniAdaFocusConfig(patch_size=patch_size), PUBLISHED_CLASSES)
    return torch.tensor(macs, dtype=torch.float64) / 1e9


def _cost_table(config: Config, _: Any, __: Any, wanted: Collection[str]) -> dict[str, Array]:
    arrays: Arrays = {f"gflops_per_exit_{size}": _gmacs(size) for size in config["patch_sizes"]}
    return _named(arrays, wanted)


def _early_exit_search(config: Config, inputs: Mapping[str, Any], _: Any, wanted: Collection[str]) -> dict[str, Array]:
    num_exits = config["num_exits"]
    train, val = torch.from_numpy(inputs["train_logits"]), torch.from_numpy(inputs["val_logits"])
    labels, gmacs = torch.from_numpy(inputs["val_labels"]).long(), _gmacs(config["patch_size"])
    rows = torch.arange(len(val))
    shares = torch.stack([exit_shares(q, num_exits) for q in config["q"]])
    arrays: Arrays = {
        "exit_shares": shares,
        "gflops_per_exit": gmacs,
        "fixed_exit_metric": np.stack([_metric(val[:, step], labels, config["metric"]) for step in range(num_exits)]),
    }
    for row, given in zip(shares, inputs["train_exit_counts"], strict=True):
        # The last bit of a float32 share may decide a count; more than one off is another rule.
        if np.abs(np.array(exit_counts(row, len(train))) - given).max() > 1:
            raise UnsupportedCase("the shares give other counts than the case's.")
    for criterion in ("confidence", "entropy"):
        kind: Any = criterion
        train_values, val_values = exit_values(train, kind), exit_values(val, kind)
        thresholds = torch.stack(
            [solve_thresholds(train_values, [int(count) for count in row]) for row in inputs["train_exit_counts"]]
        )
        steps = torch.stack([exit_steps(val_values, row) for row in thresholds])
        arrays |= {
            f"{criterion}_thresholds": thresholds,
            f"{criterion}_exit_step": steps,
            f"{criterion}_exit_counts": torch.stack([torch.bincount(row, minlength=num_exits) for row in steps]),
            f"{criterion}_gflops": gmacs[steps].mean(1),
            f"{criterion}_metric": np.stack([_metric(val[rows, row], labels, config["metric"]) for row in steps]),
        }
    return _named(arrays, wanted)


def _metric(logits: Tensor, labels: Tensor, metric: str) -> Array:
    if metric == "map":
        targets = _targets(labels, logits.shape[1])
        return np.array([mean_average_precision(logits.softmax(-1), targets, renumber_present_classes=True)[0]])
    return np.array([topk_accuracy(logits, labels[:, 0], k) for k in (1, 5)])


def _targets(labels: Tensor, num_classes: int) -> Tensor:
    """(n, 3) class indices, -1 for none -> (n, k) of zeros and ones."""
    targets = torch.zeros(len(labels), num_classes + 1)
    targets.scatter_(1, torch.where(labels < 0, num_classes, labels).long(), 1.0)
    return targets[:, :num_classes]


def _metrics(config: Config, inputs: Mapping[str, Any], _: Any, wanted: Collection[str]) -> dict[str, Array]:
    logits, labels = torch.from_numpy(inputs["logits"]), torch.from_numpy(inputs["labels"]).long()
    targets = _targets(labels, config["num_classes"])
    mean, each = mean_average_precision(logits.softmax(-1), targets, renumber_present_classes=True)
    arrays: dict[str, Tensor | Array | float] = {
        "map": mean,
        "ap": each,
        "map_no_softmax": mean_average_precision(logits, targets, renumber_present_classes=True)[0],
        "top1": topk_accuracy(logits, labels[:, 0], 1),
        "top5": topk_accuracy(logits, labels[:, 0], 5),
    }
    return _named(arrays, wanted)


# ---- frames, crops, pixels ----


class _GivenDraws:
    """Stored uniform numbers behind the interface that our sampler draws from."""

    def __init__(self, draws: Array) -> None:
        self.draws = draws

    def random(self, size: int) -> Array:
        return self.draws[:size]


def _frame_sampling(config: Config, inputs: Mapping[str, Any], _: Any, wanted: Collection[str]) -> dict[str, Array]:
    arrays: Arrays = {}
    for t in config["num_frames"]:
        arrays[f"val_{t}"] = np.stack([sample_jittered(n, num_segments=t) for n in config["video_lengths"]]) + 1
    t, draws = config["train_num_frames"], _GivenDraws(inputs["uniform_draws"])
    arrays[f"train_{t}"] = (
        np.stack([sample_jittered(n, num_segments=t, rng=draws) for n in config["train_video_lengths"]]) + 1
    )
    return _named(arrays, wanted)


def _train_crops(config: Config, _: Any, __: Any, wanted: Collection[str]) -> dict[str, Array]:
    arrays: Arrays = {}
    for width, height in config["image_sizes"]:
        sizes = multiscale_crop_sizes(
            width,
            height,
            scales=config["scales"],
            max_aspect_step=config["max_scale_difference"],
            crop=config["crop_size"],
        )
        arrays[f"sizes_{width}x{height}"] = np.array(sizes)
        offsets = crop_offsets(width, height, *sizes[config["offsets_of_size"]])
        arrays[f"offsets_{width}x{height}"] = np.array(offsets)
    return _named(arrays, wanted)


def _image_transform(config: Config, inputs: Mapping[str, Any], _: Any, wanted: Collection[str]) -> dict[str, Array]:
    mean, std, crop = tuple(config["mean"]), tuple(config["std"]), config["crop_size"]
    if config["interpolation"] != "pil_bilinear":
        raise UnsupportedCase("images are resized as PIL does.")
    evaluation = EvalTransform(resize=config["short_side"], crop=crop, mean=mean, std=std)
    arrays: Arrays = {}
    for width, height in config["image_sizes"]:
        arrays[f"val_{width}x{height}"] = evaluation(_frames(inputs, width, height))[0]
    width, height = config["train_image_size"]
    sizes = multiscale_crop_sizes(width, height, scales=(1.0, 0.875, 0.75, 0.66), max_aspect_step=1, crop=crop)
    crop_width, crop_height = sizes[config["train_size_index"]]
    left, top = crop_offsets(width, height, crop_width, crop_height)[config["train_offset_index"]]
    window = Window(
        left=left,
        top=top,
        width=crop_width,
        height=crop_height,
        new_width=crop,
        new_height=crop,
        crop=crop,
        is_flipped=config["train_flip"],
        mean=mean,
        std=std,
        is_normalised=True,
    )
    frames = _frames(inputs, width, height)
    views = torch.empty(1, len(frames), 3, crop, crop)
    window.write(frames, views)
    arrays[f"train_{width}x{height}"] = views[0]
    return _named(arrays, wanted, config["stored_stride"])


def _frames(inputs: Mapping[str, Any], width: int, height: int) -> Tensor:
    images = np.stack([inputs[f"image_{width}x{height}_{index}"] for index in range(2)])
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()


def _temporal_shift(config: Config, inputs: Mapping[str, Any], _: Any, wanted: Collection[str]) -> dict[str, Array]:
    shifted = temporal_shift(
        torch.from_numpy(inputs["x"]),
        num_frames=config["num_frames"],
        mode="offline",
        shift_div=config["shift_div"],
    )
    return _named({"shifted": shifted}, wanted)


COMPONENTS: Mapping[str, Component] = {
    "glance_network": _glance_network,
    "focus_network": _focus_network,
    "spatial_policy": _spatial_policy,
    "patch_resampling": _patch_resampling,
    "temporal_policy": _temporal_policy,
    "frame_choice": _frame_choice,
    "temporal_logits": _temporal_logits,
    "classifier": _classifier,
    "network": _network,
    "early_exit_network": _early_exit_network,
    "early_exit_search": _early_exit_search,
    "metrics": _metrics,
    "cost_table": _cost_table,
    "training_step": _training_step,
    "frame_sampling": _frame_sampling,
    "train_crops": _train_crops,
    "image_transform": _image_transform,
    "temporal_shift": _temporal_shift,
    "tsm_network": _tsm_network,
    "tsm_training_step": _tsm_training_step,
}
"""(config, inputs, published state dict, wanted names) -> arrays."""
