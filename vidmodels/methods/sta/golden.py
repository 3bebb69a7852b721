"""Golden cases of STA: component -> a function from a case's settings and inputs to named arrays.

What each component gives is in the table of tests/golden/README.md.
"""

from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vidmodels.backbones.vit import BlockOutput, ViTShape
from vidmodels.cases import Array, Component, Config, UnsupportedCase, stats
from vidmodels.checkpoints import load_into
from vidmodels.layers.attention import sinusoidal_positions
from vidmodels.methods.sta.convert import convert
from vidmodels.methods.sta.model import Sta, StaConfig, build
from vidmodels.methods.sta.pruning import Decision, Stage, choose_tokens, gather_tokens
from vidmodels.methods.sta.training import Mixing, mix, param_groups, training_step
from vidmodels.schedules import learning_rate_factor
from vidmodels.types import Batch, Train
from vidprep.load.transforms import EvalTransform
from vidprep.sampling import sample_clips, sample_window

__all__ = ["COMPONENTS"]

Arrays = dict[str, Array]

OURS: Mapping[str, object] = {
    "layer_norm_eps": 1e-6,
    "qkv_bias": True,
    "layer_scale": False,
    "position_encoding": "fixed_sinusoid",
    "pooling": "mean",
    "dropout": 0.0,
    "optimizer": "adamw",
    "betas": [0.9, 0.999],
    "adam_eps": 1e-8,
    "max_grad_norm": None,
}
"""What a case may say, and our only form of it."""


def _settings(config: Config) -> StaConfig:
    for name, expected in OURS.items():
        if config.get(name, expected) != expected:
            raise UnsupportedCase(f"{name} is {config[name]!r}; ours is always {expected!r}.")
    settings = StaConfig(
        shape=ViTShape(
            width=config["embed_dim"],
            depth=config["depth"],
            num_heads=config["num_heads"],
            mlp_ratio=config["mlp_ratio"],
            patch_size=config["patch_size"],
            tubelet=config["tubelet_size"],
        ),
        prune_number=config.get("prune_number", 0),
        num_frames=config["num_frames"],
        image_size=config["image_size"],
        drop_path=config.get("drop_path", 0.0),
        label_smoothing=config.get("label_smoothing", 0.0),
        layer_decay=config.get("layer_decay", 1.0),
    )
    if settings.prune_number:
        ours = [(stage.after_block, stage.num_groups, stage.backwards) for stage in settings.stages]
        names = ("prune_after_blocks", "num_groups", "process_backwards")
        theirs = list(zip(*(config[name] for name in names), strict=True))
        if ours != theirs:
            raise UnsupportedCase(f"stages (block, groups, backwards) are {theirs}; ours are {ours}.")
    return settings


def _load(config: Config, state: dict[str, Tensor]) -> Sta:
    """The model with the case's weights. Empties `state`, so that the weights are not held twice."""
    with torch.device("meta"):
        model = build(_settings(config), config["num_classes"])
    converted = convert(state)
    state.clear()
    load_into(model.to_empty(device="cpu"), converted, "the case")
    like, backbone = torch.empty(0), model.backbone  # the table is no entry of a checkpoint
    backbone.positions = sinusoidal_positions(
        backbone.num_tokens, backbone.shape.width, like=like, compute=torch.float64
    )
    return model


def _frames(inputs: Mapping[str, Any]) -> Tensor:
    """Published layout [B, 3, F, H, W] -> (n, t, c, h, w)."""
    return torch.from_numpy(inputs["video"]).transpose(1, 2).contiguous()


# ---- parts ----


def _pruning_step(config: Config, inputs: Mapping[str, Any], _: Any, wanted: Collection[str]) -> Arrays:
    tokens, keys = torch.from_numpy(inputs["tokens"]), torch.from_numpy(inputs["keys"])
    decision = choose_tokens(
        tokens,
        keys,
        num_groups=config["num_groups"],
        prune_number=config["prune_number"],
        backwards=config["process_backwards"],
    )
    out = gather_tokens(tokens, decision.kept)
    arrays = {
        "kept_tokens": decision.kept,
        "kept_positions": decision.kept,
        "first_group_full_order": decision.first_order,
        "first_group_best_similarity": decision.first_similarity,
        "semantic": decision.semantic,
        "accumulated": decision.accumulated,
        "score": decision.score,
        "out_first_tokens": out[:, :2],
    }
    named = {name: tensor.numpy() for name, tensor in arrays.items()} | {"out_stats": stats(out)}
    return {name: named[name] for name in wanted if name in named}


class _Recorder:
    """Listens to a model's parts while it runs; large tensors are reduced at once."""

    def __init__(self, model: Sta) -> None:
        self.arrays: Arrays = {}
        self._model = model
        self._choose = model.choose
        model.choose = self.choose  # type: ignore[method-assign]
        self._num_stages = 0
        model.backbone.patch_embed.register_forward_hook(self._embedded)
        model.norm.register_forward_hook(self._pooled)
        for index, block in enumerate(model.backbone.blocks):
            block.register_forward_pre_hook(self._ask_for_keys, with_kwargs=True)
            block.register_forward_hook(self._ran_block(f"block{index:02d}"), with_kwargs=True)

    def _embedded(self, _: nn.Module, __: Any, tokens: Tensor) -> None:
        self.arrays["patch_embed_stats"] = stats(tokens)

    def _pooled(self, _: nn.Module, __: Any, features: Tensor) -> None:
        self.arrays["fc_norm_first64"] = features[:, :64].numpy()

    def _ask_for_keys(self, _: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        return args, {**kwargs, "with_keys": True}

    def _ran_block(self, name: str) -> Callable[..., None]:
        def listen(_: nn.Module, args: Any, __: Any, out: BlockOutput) -> None:
            assert out.keys is not None  # noqa: S101 - asked for above
            self.arrays[f"{name}/in_stats"] = stats(args[0])
            self.arrays[f"{name}/out_stats"] = stats(out.tokens)
            self.arrays[f"{name}/key_metric_stats"] = stats(out.keys)

        return listen

    def choose(self, tokens: Tensor, keys: Tensor, stage: Stage) -> Decision:
        """As the model, and keep what was decided."""
        decision = self._choose(tokens, keys, stage)
        self._num_stages += 1
        name = f"stage{self._num_stages}"
        self.arrays[f"{name}/kept_positions"] = decision.kept.numpy()
        self.arrays[f"{name}/num_tokens"] = np.asarray(decision.kept[0].numel())
        for which, score in (("second", decision.score[:, 0]), ("last", decision.score[:, -1])):
            self.arrays[f"{name}/score_{which}_group"] = score.numpy()
            self.arrays[f"{name}/score_{which}_group_sorted"] = score.sort(-1).values.numpy()
        return decision


@torch.no_grad()
def _network(config: Config, inputs: Mapping[str, Any], state: dict[str, Tensor], wanted: Collection[str]) -> Arrays:
    model = _load(config, state).eval()
    recorder = _Recorder(model)
    output = model(_frames(inputs))
    arrays = recorder.arrays | {"logits": output.logits.numpy()}
    for number, stage in enumerate(model.config.stages, start=1):
        kept = output.aux[f"kept_{number}"]
        arrays[f"stage{number}/kept_tokens"] = kept.unflatten(1, (stage.num_groups, -1)).numpy()
    return {name: arrays[name] for name in wanted if name in arrays}


def _training_step(
    config: Config, inputs: Mapping[str, Any], state: dict[str, Tensor], wanted: Collection[str]
) -> Arrays:
    numbers = {key: torch.tensor(number) for number, key in enumerate(state)}
    published = list(state)
    names = {name: published[int(number)] for name, number in convert(numbers).items()}
    model = _load(config, state).train()
    settings = Train(
        epochs=1, batch_size=1, lr=config["learning_rate"], optimizer="adamw", weight_decay=config["weight_decay"]
    )
    optimizer = torch.optim.AdamW(param_groups(model, settings), lr=settings.lr)
    frames, labels = _frames(inputs), torch.from_numpy(inputs["labels"])
    mixing = Mixing(share=config["mixup_lambda"])
    batch = Batch(
        video_id=[str(index) for index in range(len(frames))],
        frames=frames[:, None],
        labels=labels,
        pts_seconds=torch.zeros(len(frames), 1, frames.shape[1], dtype=torch.float64),
    )
    mixed, targets = mix(frames, labels, mixing, num_classes=config["num_classes"], smoothing=config["label_smoothing"])
    arrays: Arrays = {"mixed_target": targets.numpy()}
    parameters = {names[name]: parameter for name, parameter in model.named_parameters()}
    before = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    for step in range(config["num_steps"]):
        arrays[f"step{step}/logits"] = model(mixed).logits.detach().numpy()
        loss = training_step(model, batch, 0.0, mixing=mixing)["loss"]
        arrays[f"step{step}/loss"] = loss.detach().numpy()
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        if step == 0:
            gradients = {name: p.grad for name, p in parameters.items() if p.grad is not None}
            arrays |= {f"grad/{name}": stats(gradient) for name, gradient in gradients.items()}
            norms = torch.stack([gradient.double().norm() for gradient in gradients.values()])
            arrays["grad_norm_total"] = norms.norm().numpy()
        optimizer.step()
    for name, parameter in parameters.items():
        arrays[f"param_after/{name}"] = stats(parameter)
        arrays[f"param_change/{name}"] = (parameter.detach() - before[name]).flatten()[:8].numpy()
    return {name: arrays[name] for name in wanted if name in arrays}


def _parameter_groups(config: Config, _: Any, state: dict[str, Tensor], wanted: Collection[str]) -> Arrays:
    numbers = {name: int(n) for name, n in convert({key: torch.tensor(n) for n, key in enumerate(state)}).items()}
    with torch.device("meta"):
        model = build(_settings(config), config["num_classes"])
    settings = Train(epochs=1, batch_size=1, lr=2.0, optimizer="adamw", weight_decay=config["weight_decay"])
    positions = {parameter: numbers[name] for name, parameter in model.named_parameters()}
    scale, decay = np.full(len(state), np.nan), np.full(len(state), np.nan)
    for group in param_groups(model, settings):
        for parameter in group["params"]:
            scale[positions[parameter]] = group["lr"] / settings.lr
            decay[positions[parameter]] = group["weight_decay"]
    arrays = {"lr_scale_by_layer": np.unique(scale), "lr_scale": scale, "weight_decay": decay}
    return {name: arrays[name] for name in wanted if name in arrays}


def _learning_rate_schedule(config: Config, _: Any, __: Any, wanted: Collection[str]) -> Arrays:
    if config["warmup_start"] != 0:
        raise UnsupportedCase(f"warmup_start is {config['warmup_start']}; our warm-up always starts from 0.")
    settings = Train(
        epochs=config["num_epochs"],
        batch_size=1,
        lr=config["learning_rate"],
        min_lr=config["min_learning_rate"],
        schedule="cosine_steps",
        warmup_epochs=config["warmup_epochs"],
    )
    steps = config["iterations_per_epoch"]
    epochs = [step / steps for step in range(settings.epochs * steps)]
    rates = [settings.lr * learning_rate_factor(settings, epoch, steps_per_epoch=steps) for epoch in epochs]
    return {name: np.array(rates) for name in wanted if name == "lr"}


def _position_table(config: Config, _: Any, __: Any, wanted: Collection[str]) -> Arrays:
    arrays, edge = {}, config["edge_columns"]
    for width in config["embed_dims"]:
        table = sinusoidal_positions(config["num_positions"], width, like=torch.empty(0), compute=torch.float64)
        arrays[f"d{width}/stats"] = stats(table)
        for row in config["rows"]:
            arrays[f"d{width}/row{row}"] = torch.cat([table[row, :edge], table[row, -edge:]]).numpy()
    return {name: arrays[name] for name in wanted if name in arrays}


class _Extreme:
    """Draws the smallest or the largest integer there is."""

    def __init__(self, *, largest: bool) -> None:
        self.largest = largest

    def integers(self, low: int, high: int, size: int | None = None) -> Any:
        drawn = high - 1 if self.largest else low
        return drawn if size is None else np.full(size, drawn)


def _frame_sampling_and_crops(config: Config, _: Any, __: Any, wanted: Collection[str]) -> Arrays:
    t, crop = config["num_frames"], config["crop_size"]
    window = t * config["frame_stride"]
    arrays: Arrays = {}
    for n in config["video_lengths"]:
        arrays[f"kinetics_test/n{n}"] = sample_clips(
            n, num_segments=t, num_clips=config["kinetics_temporal_views"], sampler="window", window=window
        )
        arrays[f"ssv2_test/n{n}"] = sample_clips(
            n, num_segments=t, num_clips=config["ssv2_temporal_views"], placement="interleaved"
        )
        extremes = [_Extreme(largest=largest) for largest in (False, True)][: 2 if n > window else 1]
        arrays[f"kinetics_train_extremes/n{n}"] = np.stack(
            [sample_window(n, num_segments=t, window=window, rng=extreme) for extreme in extremes]
        )
    transform = EvalTransform(
        resize=config["short_side"],
        crop=crop,
        num_crops=config["spatial_views"],
        crop_placement="along_longer_side_floor",
    )
    for height, width in config["frame_sizes"]:
        new_height, new_width = transform.resized(height, width)
        corners = transform.corners(new_width, new_height)
        starts = [top if new_height >= new_width else left for left, top in corners]
        arrays[f"three_crops/{height}x{width}"] = np.array([new_height, new_width, *starts])
    return {name: arrays[name] for name in wanted if name in arrays}


COMPONENTS: Mapping[str, Component] = {
    "pruning_step": _pruning_step,
    "network": _network,
    "pruned_network": _network,
    "training_step": _training_step,
    "parameter_groups": _parameter_groups,
    "learning_rate_schedule": _learning_rate_schedule,
    "position_table": _position_table,
    "frame_sampling_and_crops": _frame_sampling_and_crops,
}
"""(config, inputs, published state dict, wanted names) -> arrays."""
