"""Golden cases of RGTP on ViTDet: component -> a function from a case's settings and inputs to named arrays.

What each component gives is in the table of tests/golden/README.md.
"""

from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vidmodels.backbones.detection import (
    BoxHeads,
    CascadeBoxHeads,
    DetectionLimits,
    Detections,
    ProposalLimits,
    RegionProposals,
    RpnOutput,
    decode_boxes,
    levels_of_boxes,
    pool_boxes,
    propose,
)
from vidmodels.backbones.vitdet import Block, PositionEncoding, Pyramid, ViTDetShape
from vidmodels.cases import Array, Component, Config, UnsupportedCase
from vidmodels.checkpoints import load_into
from vidmodels.methods.rgtp import vitdet_stream as stream
from vidmodels.methods.rgtp.rollout import offset_choice, offset_sources, shift_heat
from vidmodels.methods.rgtp.vitdet import MEAN, STD, ComputedFrame, Detector, VitDetConfig, build
from vidmodels.methods.rgtp.vitdet_convert import convert

__all__ = ["COMPONENTS"]

Arrays = dict[str, Array]
Maps = tuple[tuple[Tensor, ...], RpnOutput]
Proposals = tuple[list[Tensor], list[Tensor]]

OURS: Mapping[str, object] = {
    "mean": list(MEAN),
    "std": list(STD),
    "pyramid_channels": 256,
    "pyramid_scales": [4.0, 2.0, 1.0, 0.5],
    "anchor_sizes": list(RegionProposals.anchor_sizes),
    "anchor_aspect_ratios": list(RegionProposals.aspect_ratios),
    "anchor_strides": list(RegionProposals.strides),
    "roi_size": 7,
    "head_fusion": "root_mean_square",
    "local_offset_radius": 1,
}
"""What a case may say, and our only form of it."""
ROLLOUTS: Mapping[str, stream.Rollout] = {"pooled_forward": "pooled", "backward": "backward"}


def _check(config: Config) -> None:
    weights = CascadeBoxHeads.box_weights if isinstance(config.get("box_weights", [0])[0], list) else None
    expected = {**OURS, "box_weights": [list(w) for w in weights] if weights else list(BoxHeads.box_weights)}
    for name, ours in expected.items():
        if config.get(name, ours) != ours:
            raise UnsupportedCase(f"{name} is {config[name]!r}; ours is always {ours!r}.")
    cell = stream.CELL if config.get("rollout") == "pooled_forward" else None
    if config.get("pool_size", cell) != cell and "rollout" in config:
        raise UnsupportedCase(f"pool_size is {config['pool_size']!r}; with this rollout ours is {cell!r}.")


def _shape(config: Config) -> ViTDetShape:
    depth = config["depth"]
    return ViTDetShape(
        width=config["dim"],
        depth=depth,
        num_heads=config["num_heads"],
        mlp_ratio=config["mlp_ratio"],
        patch_size=config["patch_size"],
        window_size=config["window_size"],
        global_blocks=tuple(block for block in range(depth) if block not in config["windowed_blocks"]),
        position_grid=config["position_grid"],
        relative_position_size=config["relative_position_size"],
    )


def _settings(config: Config, *, cascade: bool) -> VitDetConfig:
    _check(config)
    settings = VitDetConfig(
        image_size=config["input_size"],
        keep_ratio=config.get("keep_ratio"),
        rollout=ROLLOUTS[config.get("rollout", "pooled_forward")],
        reset_interval=config.get("reset_interval", 8),
        anchor_score=config.get("anchor_score_threshold", 0.1),
        shape=_shape(config),
        cascade=cascade,
        proposals=ProposalLimits(
            num_candidates=config["pre_nms_proposals"],
            num_proposals=config["num_proposals"],
            nms_iou=config["proposal_nms_iou"],
        ),
        detections=DetectionLimits(
            score_threshold=config["score_threshold"],
            nms_iou=config["detection_nms_iou"],
            max_detections=config["max_detections"],
        ),
    )
    if settings.num_kept != config.get("num_kept", settings.num_kept):
        raise UnsupportedCase(f"num_kept is {config['num_kept']}, ours is {settings.num_kept}.")
    return settings


def _stats(x: Tensor) -> Array:
    """[mean, standard deviation with n - 1, largest absolute value]."""
    values = x.detach().double()
    return np.array([float(values.mean()), float(values.std()), float(values.abs().max())])


def _reduced(name: str, x: Tensor, slices: Tensor | None = None) -> Arrays:
    arrays = {name: x.numpy(), f"{name}.stats": _stats(x), f"{name}.first8": x.reshape(-1)[:8].numpy()}
    return arrays if slices is None else arrays | {f"{name}.slice": slices.numpy()}


def _wanted(arrays: Arrays, wanted: Collection[str]) -> Arrays:
    return {name: arrays[name] for name in wanted if name in arrays}


def _load(module: nn.Module, state: Mapping[str, Tensor], prefix: str) -> None:
    load_into(
        module,
        {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)},
        "the case",
    )
    module.eval()


# ---- parts ----


@torch.no_grad()
def _blocks(config: Config, inputs: Mapping[str, Any], state: dict[str, Tensor], wanted: Collection[str]) -> Arrays:
    _check(config)
    grid, cell = config["grid"], config["pool_size"]
    shape = ViTDetShape(
        width=config["dim"],
        depth=3,
        num_heads=config["num_heads"],
        mlp_ratio=config["mlp_ratio"],
        window_size=config["window_size"],
        global_blocks=(2,),
        position_grid=config["position_grid"],
        relative_position_size=config["relative_position_size"],
    )
    blocks = [Block(shape, is_global=index == 2) for index in range(3)]
    for index, block in enumerate(blocks):
        _load(block, state, f"backbone.blocks.{index}.")
    positions = PositionEncoding(shape)
    _load(positions, state, "backbone.position_encoding.")
    first, second = torch.from_numpy(inputs["x0"]), torch.from_numpy(inputs["x1"])
    kept = torch.from_numpy(inputs["kept"]).long()
    tables = [block.relative_tables(grid) for block in blocks]

    def rows(x: Tensor) -> Tensor:
        return x.view(-1, x.shape[-1])[:: max(1, x.shape[-2] // 24), :16]

    plain = blocks[0](first, tables[0])
    arrays = _reduced("window_plain", plain, rows(plain))
    for name, index in (("window_reuse", 1), ("global_reuse", 2)):
        block = blocks[index]
        out, memory = stream.run_block_of_all(block, first, tables[index], with_attention=True, cell=cell)
        arrays |= _reduced(f"{name}.first", out, rows(out))
        places = stream.Places.of(kept, grid=grid, window_size=config["window_size"])
        ordered, fused = stream.run_block_of_kept(
            block, second[:, places.tokens], tables[index], memory, places, with_attention=True
        )
        back = torch.empty_like(kept).index_copy(0, places.order, torch.arange(len(kept)))
        pruned = ordered[:, back]
        arrays |= _reduced(f"{name}.pruned", pruned, rows(pruned))
        if index == 2:
            assert memory.attention is not None  # noqa: S101 - asked for
            assert fused is not None  # noqa: S101 - the same
            attention = fused[0, back]
            if cell is not None:
                attention = stream.pool_keys(attention[None], cell)[0]
            for part, matrix in (("first", memory.attention[0]), ("pruned", attention)):
                arrays |= _reduced(f"{name}.{part}.attention", matrix, rows(matrix))
    for name, table in zip("yx", tables[2], strict=True):
        arrays[f"relative_{name}_resized.slice"] = table[::3, ::3, :8].numpy()
    table = positions(grid)
    arrays |= _reduced("position", table, rows(table))
    return _wanted(arrays, wanted)


@torch.no_grad()
def _rollout(config: Config, inputs: Mapping[str, Any], _: Any, wanted: Collection[str]) -> Arrays:
    _check(config)
    grid, cell = config["grid"], config["pool_size"]
    rollout = ROLLOUTS[config["rollout"]]
    blocks = range(config["num_global_blocks"])
    full = [torch.from_numpy(inputs[f"attention_full_{block}"]) for block in blocks]
    part = [torch.from_numpy(inputs[f"attention_kept_{block}"]) for block in blocks]
    kept, anchors = torch.from_numpy(inputs["kept"]).long(), torch.from_numpy(inputs["anchors"]).bool()
    key = stream.heat_from_attention(full, anchors, rollout=rollout)
    buffers = [attention.clone() for attention in full]
    for buffer, rows in zip(buffers, part, strict=True):
        stream.remember_attention(buffer, rows, kept, cell=cell)
    pruned = stream.heat_from_attention(buffers, anchors, rollout=rollout, previous=key, kept=kept)
    every = stream.heat_from_attention(full, torch.ones_like(anchors), rollout=rollout)
    before = torch.from_numpy(inputs["previous_embedding"])
    now = 0.7 * before.roll(1, dims=1) + 0.7 * torch.from_numpy(inputs["embedding_noise"])
    shifted = shift_heat(key, offset_choice(now, before, grid=(grid, grid)), sources=offset_sources((grid, grid)))
    heats = {
        "heatmap_key": key,
        "heatmap_pruned": pruned,
        "heatmap_all_anchors": every,
        "heatmap_shifted": shifted,
    }
    return _wanted({name: heat[0].numpy() for name, heat in heats.items()}, wanted)


@torch.no_grad()
def _pyramid(config: Config, inputs: Mapping[str, Any], state: dict[str, Tensor], wanted: Collection[str]) -> Arrays:
    _check(config)
    pyramid = Pyramid(config["dim"])
    _load(pyramid, state, "pyramid.")
    arrays: Arrays = {}
    for number, level in enumerate(pyramid(torch.from_numpy(inputs["tokens"])), start=2):
        step = max(1, level.shape[-1] // 6)
        arrays |= _reduced(f"p{number}", level, level[0, ::32, ::step, ::step])
    return _wanted(arrays, wanted)


@torch.no_grad()
def _region_proposals(
    config: Config, inputs: Mapping[str, Any], state: dict[str, Tensor], wanted: Collection[str]
) -> Arrays:
    _check(config)
    network = RegionProposals()
    _load(network, state, "proposal_generator.")
    levels = [torch.from_numpy(inputs[f"p{number}"]) for number in range(2, 7)]
    rpn = network(levels)
    arrays: Arrays = {}
    for number, (level, anchors, logits, deltas) in enumerate(
        zip(levels, rpn.anchors, rpn.logits, rpn.deltas, strict=True), start=2
    ):
        arrays |= {
            f"anchors.p{number}.first9": anchors[:9].numpy(),
            f"anchors.p{number}.last3": anchors[-3:].numpy(),
            f"anchors.p{number}.count": np.array([len(anchors)]),
        }
        side = level.shape[-1]
        arrays |= _reduced(f"logits.p{number}", logits.view(1, side, side, -1).permute(0, 3, 1, 2))
        arrays |= _reduced(f"deltas.p{number}", deltas.view(1, side, side, -1).permute(0, 3, 1, 2))
    limits = ProposalLimits(
        num_candidates=config["pre_nms_proposals"],
        num_proposals=config["num_proposals"],
        nms_iou=config["proposal_nms_iou"],
    )
    (boxes,), (scores,) = propose(rpn, image_size=config["input_size"], limits=limits)
    arrays["proposals"] = torch.cat([boxes, scores[:, None]], dim=1).numpy()
    return _wanted(arrays, wanted)


@torch.no_grad()
def _roi_heads(config: Config, inputs: Mapping[str, Any], state: dict[str, Tensor], wanted: Collection[str]) -> Arrays:
    _check(config)
    heads = BoxHeads(config["num_classes"])
    _load(heads, state, "roi_heads.")
    levels = [torch.from_numpy(inputs[f"p{number}"]) for number in range(2, 6)]
    boxes = torch.from_numpy(inputs["boxes"])
    pooled = pool_boxes(levels, [boxes], roi_size=heads.roi_size)
    hidden = heads.box_head(pooled)
    out = heads.box_predictor(hidden)
    decoded = decode_boxes(out.deltas, boxes, heads.box_weights)
    limits = DetectionLimits(
        score_threshold=config["score_threshold"],
        nms_iou=config["detection_nms_iou"],
        max_detections=config["max_detections"],
    )
    (found,) = heads.detect(out, [boxes], image_size=config["input_size"], limits=limits)
    arrays: Arrays = {
        "levels": (levels_of_boxes(boxes, len(levels)) + 2).numpy(),
        "logits": out.logits.numpy(),
        "detections": _rows(found, limits.max_detections),
        **_reduced("pooled", pooled, pooled[:, ::64, ::3, ::3]),
        **_reduced("head", hidden, hidden[:, :16]),
        **_reduced("deltas", out.deltas, out.deltas[:, :12]),
        **_reduced("decoded", decoded, decoded[:, :12]),
    }
    return _wanted(arrays, wanted)


def _rows(found: Detections, count: int) -> Array:
    """(count, 6): box, score, label; filled up with rows of -1."""
    rows = torch.cat([found.boxes, found.scores[:, None], found.labels[:, None].float()], dim=1)
    return torch.cat([rows, rows.new_full((count - len(rows), 6), -1.0)]).numpy()


# ---- whole detectors ----


class _Recorder:
    """Listens to a detector's parts while it runs; large tensors are reduced at once."""

    def __init__(self, model: Detector) -> None:
        self.frames: dict[str, list[Array]] = {}
        self._blocks: list[Tensor] = []
        model.embedding.register_forward_hook(lambda _, __, out: self.add("embedding", [out]))
        for block in model.backbone.each_block():
            block.finish = self._finish(block.finish)  # type: ignore[method-assign, assignment]
        most = model.config.proposals.num_proposals
        model.run_maps = self._run_maps(model.run_maps)  # type: ignore[method-assign, assignment]
        model.propose = self._propose(model.propose, most)  # type: ignore[method-assign, assignment]

    def add(self, name: str, parts: list[Tensor]) -> None:
        """A frame's statistics, one row for each part."""
        stats, first = np.stack([_stats(part) for part in parts]), np.stack([_first8(part) for part in parts])
        single = len(parts) == 1 and name in ("embedding", "with_position")
        self.append(f"{name}.stats", stats[0] if single else stats)
        self.append(f"{name}.first8", first[0] if single else first)

    def append(self, name: str, value: Array) -> None:
        """A frame's value."""
        self.frames.setdefault(name, []).append(value)

    def arrays(self) -> Arrays:
        """All frames of everything."""
        return {name: np.stack(values) for name, values in self.frames.items()}

    def take_blocks(self, hottest: int | None) -> None:
        """Record the blocks' outputs of the frame that has just run; row `hottest` counts as the first."""
        outs = [out if hottest is None else out[:, hottest:] for out in self._blocks]
        stats = [_stats(out) for out in self._blocks[:-1]] + [_stats(self._output)]
        firsts = [_first8(out) for out in outs[:-1]] + [_first8(self._output)]
        self.append("blocks.stats", np.stack(stats))
        self.append("blocks.first8", np.stack(firsts))
        self._blocks = []

    def _finish(self, finish: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
        def recorded(x: Tensor, attended: Tensor) -> Tensor:
            out = finish(x, attended)
            self._blocks.append(out)
            return out

        return recorded

    def _run_maps(self, run: Callable[[ComputedFrame], Maps]) -> Callable[[ComputedFrame], Maps]:
        def recorded(computed: ComputedFrame) -> Maps:
            levels, rpn = run(computed)
            self._output = computed.output.clone()
            self.add("pyramid", list(levels))
            return levels, rpn

        return recorded

    def _propose(self, find: Callable[[RpnOutput], Proposals], most: int) -> Callable[[RpnOutput], Proposals]:
        def recorded(rpn: RpnOutput) -> Proposals:
            boxes, logits = find(rpn)
            rows = torch.cat([boxes[0], logits[0][:, None]], dim=1)[: min(32, most)]
            self.append("proposals", rows.numpy())
            self.append("num_proposals", np.array(len(boxes[0])))
            return boxes, logits

        return recorded


def _first8(x: Tensor) -> Array:
    return x.reshape(-1)[:8].numpy().copy()


def _network(config: Config, inputs: Mapping[str, Any], state: dict[str, Tensor], wanted: Collection[str]) -> Arrays:
    return _wanted(_run(config, inputs, state, cascade=False), wanted)


def _cascade_network(
    config: Config, inputs: Mapping[str, Any], state: dict[str, Tensor], wanted: Collection[str]
) -> Arrays:
    return _wanted(_run(config, inputs, state, cascade=True), wanted)


@torch.no_grad()
def _run(config: Config, inputs: Mapping[str, Any], state: dict[str, Tensor], *, cascade: bool) -> Arrays:
    """Frames one by one. Empties `state`, so that the weights are not held twice."""
    settings = _settings(config, cascade=cascade)
    with torch.device("meta"):
        model = build(settings, config["num_classes"])
    converted = convert(state)
    state.clear()
    load_into(model.to_empty(device="cpu").eval(), converted, "the case")
    recorder = _Recorder(model)
    before: stream.StreamState | None = None
    for frame in torch.from_numpy(inputs["video"]):
        found, after = model.step(frame, before, every_heat=True)
        recorder.append("detections", _rows(found, settings.detections.max_detections))
        assert after.patches is not None  # noqa: S101 - set by every step
        recorder.add("with_position", [after.patches + after.positions])
        hottest = None
        if settings.keep_ratio is not None:
            assert after.heat is not None  # noqa: S101 - asked for above
            assert after.anchors is not None  # noqa: S101 - the same
            recorder.append("heatmap", after.heat[0].numpy())
            recorder.append("anchor_mask_packed", np.packbits(after.anchors.numpy()))
            if after.kept is not None and before is not None:
                shifted = stream.shifted_heat(after.patches, before, grid=settings.grid)
                recorder.append("heatmap_shifted", shifted[0].numpy())
                recorder.append("kept", after.kept.numpy())
                places = stream.Places.of(after.kept, grid=settings.grid, window_size=settings.shape.window_size)
                hottest = int((places.order == 0).nonzero())  # row of the first one in the published order
        recorder.take_blocks(hottest)
        before = after
    return recorder.arrays()


def _convert_keys(__: Config, _: Any, state: dict[str, Tensor], wanted: Collection[str]) -> Arrays:
    converted = convert(state)
    by_memory = {tensor.untyped_storage().data_ptr(): name for name, tensor in converted.items()}
    names = [by_memory[tensor.untyped_storage().data_ptr()] for tensor in state.values()]
    table = converted["backbone.position_encoding.encoding"].reshape(-1)
    arrays: Arrays = {
        "converted_keys": np.array(names),
        "num_keys": np.array([len(state), len(converted)]),
        "position_table": torch.cat([table[:8], table[-8:]]).numpy(),
    }
    return _wanted(arrays, wanted)


COMPONENTS: Mapping[str, Component] = {
    "blocks": _blocks,
    "rollout": _rollout,
    "pyramid": _pyramid,
    "region_proposals": _region_proposals,
    "roi_heads": _roi_heads,
    "network": _network,
    "pruned_network": _network,
    "cascade_network": _cascade_network,
    "convert_keys": _convert_keys,
}
"""(config, inputs, published state dict, wanted names) -> arrays."""
