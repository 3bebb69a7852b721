"""Golden cases of RGTP on ViViT: component -> a function from a case's settings and inputs to named arrays.

Here are those of pruning and of whole networks, in `golden_protocol` the others. What each component gives is in the
table of tests/golden/README.md.
"""

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vidmodels.backbones.vivit import Block
from vidmodels.cases import Array, Component, Config, UnsupportedCase, to_array
from vidmodels.checkpoints import load_into, rename
from vidmodels.layers.token_ops import gather_rows
from vidmodels.methods.rgtp import golden_protocol
from vidmodels.methods.rgtp.convert import BLOCK_ENTRIES, convert, tadaconv_table
from vidmodels.methods.rgtp.cost import clip_cost
from vidmodels.methods.rgtp.golden_protocol import row_stats, vit_shape
from vidmodels.methods.rgtp.rollout import (
    Selection,
    class_token_rollout,
    clusters,
    fuse_heads,
    gilbert_positions,
    heat_map,
    offset_choice,
    offset_sources,
    pattern_patches,
    select,
    shift_heat,
)
from vidmodels.methods.rgtp.vivit import RgtpVivit, RgtpVivitConfig, TimeStep, build, run_first_block, token_numbers
from vidprep.load.transforms import EvalTransform
from vidprep.sampling import sample_clips

__all__ = ["COMPONENTS"]

Arrays = dict[str, Array]
PATCH_SIZE = 16


def _settings(config: Config, *, depth: int = 1, temporal_depth: int = 1, num_frames: int = 2) -> RgtpVivitConfig:
    """The model's settings; what a case does not say is not read by it."""
    rows, columns = config["grid"] if "grid" in config else (side // PATCH_SIZE for side in config["crop_size"])
    if rows != columns:
        raise UnsupportedCase(f"frames are {rows} x {columns} patches; ours are square.")
    prunes = "keep_ratio" in config
    chosen: dict[str, Any] = {}
    if prunes:
        chosen = {
            "keep_ratio": config["keep_ratio"],
            "foreground_ratio": config["foreground_ratio"],
            "background_ratio": config["background_ratio"],
            "gilbert_sampling": config["gilbert_sampling"],
            "reset_interval": config["reset_interval"],
            "reset_pattern": config["reset_pattern"],
            "head_fusion": config["head_fusion"],
            "offset_radius": config["local_offset_radius"],
        }
    return RgtpVivitConfig(
        mode="rollout" if prunes else "base",
        shape=vit_shape(config, depth=depth),
        temporal_depth=temporal_depth,
        num_frames=num_frames,
        image_size=PATCH_SIZE * rows,
        position_grid=config["position_grid"][0] if "position_grid" in config else None,
        **chosen,
    )


# ---- parts ----


def _load_block(config: Config, block: Block, state: Mapping[str, Tensor]) -> None:
    table: dict[str, str | None] = {
        f"{config['key_prefix']}{old}.{kind}": f"{new}.{kind}"
        for old, new in BLOCK_ENTRIES.items()
        for kind in ("weight", "bias")
    }
    load_into(block, rename(state, table), "the case")


@torch.no_grad()
def _block(config: Config, inputs: Mapping[str, Any], state: dict[str, Tensor], _: Any) -> Arrays:
    block = Block(vit_shape(config, depth=1)).eval()
    _load_block(config, block, state)
    x = torch.from_numpy(inputs["x"])
    normed = block.norm1(x)
    out = block(x)
    return {
        "layer_norm1.row_stats": row_stats(normed),
        "qkv.row_stats": row_stats(block.attn.qkv(normed)),
        "attention_out.row_stats": row_stats(block.attn.attend(*block.attn.project(normed)).out),
        "out.row_stats": row_stats(out),
        "out_class_token": to_array(out[:, 0]),
    }


@torch.no_grad()
def _rollout_block(
    config: Config, inputs: Mapping[str, Any], state: dict[str, Tensor], wanted: Collection[str]
) -> Arrays:
    model = build(_settings(config), 1).eval()
    block = model.backbone.spatial.blocks[0]
    if not isinstance(block, Block):
        raise TypeError(f"expected a Block, got {type(block).__name__}")
    _load_block(config, block, state)
    names = ("x", "patch_embedding", "previous_patch_embedding", "heat_map")
    x, embedding, previous, heat = (torch.from_numpy(inputs[name]) for name in names)
    arrays: Arrays = {}
    step, interval, patches = config["time_step"], config["reset_interval"], model.backbone.num_patches
    selection = None
    if step and step % interval == 0:
        fixed = pattern_patches(config["reset_pattern"], model.backbone.grid)
        selection = Selection(*(table.expand(len(x), -1) for table in fixed))
    elif step:
        choice, heat, kept = model.choose(embedding[:, 1:], previous[:, 1:], heat)
        selection = Selection(kept, _select(config, heat).pruned)
        arrays["offset_choice"] = to_array(choice) if choice is not None else np.empty(0)
    out, keys, _ = run_first_block(block, x, None if selection is None else selection.kept, with_weights=True)
    # For pruned queries too, which the block itself leaves out.
    weights = run_first_block(block, x, None, with_weights=True)[2]
    if weights is None:
        raise ValueError("attention's weights were asked for")
    fused = fuse_heads(weights, config["head_fusion"])
    everything = torch.arange(patches).expand(len(x), -1)
    mean_key = keys.mean(1)
    cluster = everything if selection is None else clusters(mean_key[:, 1:], selection.kept)
    arrays |= {
        "out.row_stats": row_stats(out),
        "mean_key.row_stats": row_stats(mean_key),
        "fused_attention.row_stats": row_stats(fused),
        "fused_attention_class_row": to_array(fused[:, 0]),
        "kept": to_array(everything if selection is None else selection.kept),
        "clusters": to_array(cluster),
        "heat_after_offset": to_array(heat),
    }
    if selection is not None:
        arrays["pruned"] = to_array(selection.pruned)
        arrays["match"] = to_array(cluster.gather(1, selection.pruned))
    return {name: arrays[name] for name in wanted if name in arrays}


def _index_tables(config: Config, _: Any, __: Any, ___: Any) -> Arrays:
    arrays: Arrays = {}
    radius = config["local_offset_radius"]
    for rows, columns in config["grids"]:
        grid = (rows, columns)
        for pattern in config["reset_patterns"]:
            selection = pattern_patches(pattern, grid)
            arrays[f"{pattern}_{rows}_kept"] = to_array(selection.kept[0])
            arrays[f"{pattern}_{rows}_pruned"] = to_array(selection.pruned[0])
        arrays[f"gilbert_{rows}"] = to_array(gilbert_positions(grid))
        arrays[f"offset_copy_lut_{rows}"] = to_array(offset_sources(grid, radius=radius))
        padded = (rows + 2 * radius, columns + 2 * radius)
        inside = torch.arange(padded[0] * padded[1]).view(padded)[radius:-radius, radius:-radius].flatten()
        arrays[f"offset_padded_index_{rows}"] = to_array(offset_sources(padded, radius=radius)[inside])
    return arrays


def _select(setting: Mapping[str, Any], heat: Tensor) -> Selection:
    side = round(heat.shape[1] ** 0.5)
    return select(
        heat,
        keep_ratio=setting["keep_ratio"],
        foreground_ratio=setting["foreground_ratio"],
        background_ratio=setting["background_ratio"],
        curve=gilbert_positions((side, side)) if setting["gilbert_sampling"] else None,
    )


def _token_selection(config: Config, inputs: Mapping[str, Any], _: Any, __: Any) -> Arrays:
    arrays: Arrays = {}
    for number, setting in enumerate(config["settings"]):
        heat, keys = (
            torch.from_numpy(inputs[f"{name}_{setting['num_patches']}"]) for name in ("heat_map", "key_features")
        )
        selection = _select(setting, heat)
        cluster = clusters(keys, selection.kept)
        arrays[f"kept_{number}"] = to_array(selection.kept)
        arrays[f"pruned_{number}"] = to_array(selection.pruned)
        arrays[f"match_{number}"] = to_array(cluster.gather(1, selection.pruned))
        arrays[f"clusters_{number}"] = to_array(cluster)
    return arrays


def _local_offset(config: Config, inputs: Mapping[str, Any], _: Any, __: Any) -> Arrays:
    features, previous, heat = (
        torch.from_numpy(inputs[name]) for name in ("features", "previous_features", "heat_map")
    )
    rows, columns = config["grid"]
    radius = config["local_offset_radius"]
    choice = offset_choice(features[:, 1:], previous[:, 1:], grid=(rows, columns), radius=radius)
    shifted = shift_heat(heat, choice, sources=offset_sources((rows, columns), radius=radius))
    return {"offset_choice": to_array(choice), "heat_after_offset": to_array(shifted)}


def _rollout_sequence(config: Config, inputs: Mapping[str, Any], _: Any, __: Any) -> Arrays:
    rows, columns = config["grid"]
    grid, radius, patches = (rows, columns), config["local_offset_radius"], rows * columns
    sources = offset_sources(grid, radius=radius)
    features, keys = (torch.from_numpy(inputs[name])[:, None] for name in ("patch_features", "key_features"))
    heat = torch.zeros(1, patches)
    steps: list[TimeStep] = []
    for step in range(config["num_frames"]):
        attentions = [torch.from_numpy(inputs[f"attention.{step}.{layer}"]) for layer in range(config["depth"])]
        fused = [fuse_heads(attention, config["head_fusion"]) for attention in attentions]
        kept = choice = shifted = cluster = tokens = None
        if step and step % config["reset_interval"] == 0:
            kept = pattern_patches(config["reset_pattern"], grid).kept
        elif step:
            choice = offset_choice(features[step], features[step - 1], grid=grid, radius=radius)
            shifted = shift_heat(heat, choice, sources=sources)
            kept = _select(config, shifted).kept
        if kept is not None:
            tokens = token_numbers(kept)
            fused[0] = gather_rows(fused[0], tokens)
            cluster = clusters(keys[step], kept)
        values = class_token_rollout(fused, tokens)[:, 1:]
        heat = heat_map(values if kept is None else values.gather(1, kept), kept, cluster)
        steps.append(TimeStep(heat, kept, heat, cluster, choice, shifted))
    return {name: array[:, 0] for name, array in _pruning(steps, patches, num_rows=1).items()}


def _pruning(steps: list[TimeStep], patches: int, *, num_rows: int) -> Arrays:
    """What was decided in each time step, of the first `num_rows` rows, as the cases store it."""
    everything = torch.arange(patches)
    kept, cluster, heat, choice, shifted = [], [], [], [], []
    for step in steps:
        n = len(step.class_token)
        padded = torch.full((n, patches), -1)
        chosen = everything.expand(n, -1) if step.kept is None else step.kept
        padded[:, : chosen.shape[1]] = chosen
        kept.append(padded)
        cluster.append((everything.expand(n, -1) if step.clusters is None else step.clusters)[:num_rows])
        if step.heat is not None:
            heat.append(step.heat[:num_rows])
        if step.choice is not None and step.shifted is not None:
            choice.append(step.choice[:num_rows])
            shifted.append(step.shifted[:num_rows])
    named = {"clusters": cluster, "heat_map": heat, "offset_choice": choice, "heat_after_offset": shifted}
    return {"kept": to_array(torch.stack(kept)), **{name: to_array(torch.stack(v)) for name, v in named.items()}}


def _convert_keys(_: Any, __: Any, state: dict[str, Tensor], ___: Any) -> Arrays:
    converted = rename({key: torch.tensor(number) for number, key in enumerate(state)}, tadaconv_table(state))
    names = [""] * len(state)
    for name, number in converted.items():
        names[int(number)] = name
    return {"converted_keys": np.array(names), "num_keys": np.array([len(state), len(converted)])}


# ---- whole networks ----


def _views(config: Config, video: Tensor) -> Tensor:
    """One video (t, c, h, w), in 0 ... 1 and not to be resized -> its views (v, t, c, h, w), crop by crop."""
    size = config["crop_size"][0]
    height, width = video.shape[-2:]
    if min(height, width) != size:
        raise UnsupportedCase(
            f"the video is {height} x {width}, crops are {size}; whole networks come without resizing."
        )
    t = config["num_frames"]
    clips = sample_clips(
        len(video),
        num_segments=t,
        num_clips=config["temporal_views"],
        sampler="strided",
        window=t * config["temporal_stride"],
    )
    transform = EvalTransform(
        resize=size, crop=size, num_crops=config["spatial_views"], crop_placement="along_longer_side_floor"
    )
    normalised = (video - config["mean"]) / config["std"]
    return torch.stack(
        [
            normalised[torch.from_numpy(clip), :, top : top + size, left : left + size]
            for left, top in transform.corners(width, height)
            for clip in clips
        ]
    )


class _BlockRecorder:
    """Keeps the output of every spatial block in the calls that hold the first three time steps."""

    NUM_STEPS = 3

    def __init__(self, model: RgtpVivit) -> None:
        self.outputs: list[list[Tensor]] = []
        for index, block in enumerate(model.backbone.spatial.blocks):
            if not isinstance(block, Block):
                raise TypeError(f"expected a Block, got {type(block).__name__}")
            self._listen(index, block)

    def _listen(self, index: int, block: Block) -> None:
        run = block.feed_forward

        def feed_forward(x: Tensor) -> Tensor:
            out = run(x)
            if index == 0:
                self.outputs.append([])
            if len(self.outputs) <= self.NUM_STEPS + 1:
                self.outputs[-1].append(out)
            return out

        block.feed_forward = feed_forward  # type: ignore[method-assign]

    def steps(self, model: RgtpVivit, num_clips: int) -> list[list[Tensor]]:
        """Of the first time steps, every block's output (n, s, d), picked from the rows that ran together."""
        total, interval = model.backbone.num_steps, model.config.reset_interval
        if model.config.mode == "base":
            return [[out[step::total] for out in self.outputs[0]] for step in range(self.NUM_STEPS)]
        if interval < self.NUM_STEPS:
            raise UnsupportedCase(f"reset_interval is {interval}; expected at least {self.NUM_STEPS}, or no resets.")
        # The calls are: the first step, the resets, then the steps after each of these, and so on.
        later = [
            [out[:: len(range(step, total, interval))] for out in self.outputs[step + 1]]
            for step in range(1, self.NUM_STEPS)
        ]
        return [self.outputs[0], *later]


@torch.no_grad()
def _network(config: Config, inputs: Mapping[str, Any], state: dict[str, Tensor], wanted: Collection[str]) -> Arrays:
    settings = _settings(
        config,
        depth=config["spatial_depth"],
        temporal_depth=config["temporal_depth"],
        num_frames=config["num_frames"],
    )
    model = build(settings, config["num_classes"]).eval()
    converted = convert(state)
    state.clear()
    load_into(model, converted, "the case")
    clips = torch.cat([_views(config, torch.from_numpy(video)) for video in inputs["video"]])
    num_videos = len(inputs["video"])
    recorder = _BlockRecorder(model)
    arrays: Arrays = {}
    embedding = model.backbone.embed(clips)
    if settings.mode == "rollout":
        steps = model.run_clip(embedding, every_heat=True)
        features = torch.stack([step.class_token for step in steps], dim=1)
        arrays |= _pruning(steps, model.backbone.num_patches, num_rows=config["stored_rows"])
        counts = [model.backbone.num_patches if step.kept is None else step.kept.shape[1] for step in steps]
    else:
        features = model.spatial_features(clips)
        counts = [model.backbone.num_patches] * model.backbone.num_steps
    logits = model.classify(features).logits
    mean = logits.view(num_videos, -1, logits.shape[-1]).mean(1)
    first_steps = recorder.steps(model, len(clips))
    cost = clip_cost(settings, config["num_classes"])
    arrays |= {
        "probs": to_array(mean.softmax(-1)),
        "logits_per_view": to_array(logits),
        "logits_mean": to_array(mean),
        "spatial_out.row_stats": row_stats(features),
        "temporal_out.row_stats": row_stats(model.backbone.temporal(features)),
        "frame_tokens": np.array(counts) + 1,
        "block_class_token.row_stats": row_stats(torch.stack([torch.stack([x[0, 0] for x in s]) for s in first_steps])),
        "block_out_mean_std": np.array(
            [[[float(x.double().mean()), float(x.double().std())] for x in s] for s in first_steps]
        ),
        "operation_counts": len(clips) * np.array([cost.linear, cost.matmul, cost.bias, cost.add]),
    }
    return {name: arrays[name] for name in wanted if name in arrays}


COMPONENTS: Mapping[str, Component] = {
    **golden_protocol.COMPONENTS,
    "block": _block,
    "rollout_block_first": _rollout_block,
    "rollout_block_reset": _rollout_block,
    "rollout_block_ordinary": _rollout_block,
    "index_tables": _index_tables,
    "token_selection": _token_selection,
    "local_offset": _local_offset,
    "rollout_sequence": _rollout_sequence,
    "network": _network,
    "pruned_network": _network,
    "convert_keys": _convert_keys,
}
"""(config, inputs, published state dict, wanted names) -> arrays."""
