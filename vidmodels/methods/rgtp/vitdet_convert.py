"""ViTDet checkpoints -> our names, by a table: detectron2's, and those that RGTP's own conversion has made of them.

RGTP's names are ours. One tensor changes: detectron2's position table loses its first row, that of a class token that
detection never had. The pruning adds nothing, so one file serves every configuration and both frame sizes.
"""

from collections.abc import Mapping

from torch import Tensor

from vidmodels.checkpoints import CheckpointError, check_blocks, present_lines, rename, without_wrapper

__all__ = ["convert"]

BOTH = ("weight", "bias")
POSITIONS = "backbone.position_encoding.encoding"

BLOCK = {
    "norm1": "input_layer_norm",
    "attn.qkv": "qkv",
    "attn.proj": "projection",
    "norm2": "mlp_layer_norm",
    "mlp.fc1": "mlp_1",
    "mlp.fc2": "mlp_2",
}
PYRAMID = {
    "simfp_2": {"0": "0", "1": "1", "3": "3", "4": "4", "4.norm": "5", "5": "6", "5.norm": "7"},
    "simfp_3": {"0": "0", "1": "1", "1.norm": "2", "2": "3", "2.norm": "4"},
    "simfp_4": {"0": "0", "0.norm": "1", "1": "2", "1.norm": "3"},
    "simfp_5": {"1": "1", "1.norm": "2", "2": "3", "2.norm": "4"},
}
NO_BIAS = {("simfp_2", "4"), ("simfp_2", "5"), ("simfp_3", "1"), ("simfp_3", "2"), ("simfp_4", "0"), ("simfp_4", "1")}
NO_BIAS |= {("simfp_5", "1"), ("simfp_5", "2")}

DETECTRON2: dict[str, str | None] = {
    **{f"backbone.net.patch_embed.proj.{part}": f"embedding.conv.{part}" for part in BOTH},
    "backbone.net.pos_embed": POSITIONS,
    **{
        f"backbone.net.blocks.{{}}.{theirs}.{part}": f"backbone.blocks.{{}}.{ours}.{part}"
        for theirs, ours in BLOCK.items()
        for part in BOTH
    },
    "backbone.net.blocks.{}.attn.rel_pos_h": "backbone.blocks.{}.relative_position.y_embedding",
    "backbone.net.blocks.{}.attn.rel_pos_w": "backbone.blocks.{}.relative_position.x_embedding",
    **{
        f"backbone.{level}.{theirs}.{part}": f"pyramid.stages.{number}.{ours}.{part}"
        for number, (level, layers) in enumerate(PYRAMID.items())
        for theirs, ours in layers.items()
        for part in (BOTH[:1] if (level, theirs) in NO_BIAS else BOTH)
    },
}
RGTP: dict[str, str | None] = {ours: ours for ours in DETECTRON2.values() if ours is not None}

REGION_PROPOSALS = [
    f"proposal_generator.rpn_head.{layer}.{part}"
    for layer in ("conv.conv0", "conv.conv1", "objectness_logits", "anchor_deltas")
    for part in BOTH
]
BOX_HEAD = [
    *(f"conv{number}.{part}" for number in range(1, 5) for part in ("weight", "norm.weight", "norm.bias")),
    *(f"fc1.{part}" for part in BOTH),
]
BOX_PREDICTOR = [f"{layer}.{part}" for layer in ("cls_score", "bbox_pred") for part in BOTH]
MASK_HEAD: dict[str, str | None] = {"roi_heads.mask_head.{}.{}": None, "roi_heads.mask_head.{}.{}.{}": None}
"""Of the cascade: masks are no part of what is detected here."""


def convert(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the entries of a detector, with one box head or a cascade of them.

    Args:
        state: published name -> tensor, with detectron2's names or with RGTP's.

    Raises:
        CheckpointError: an entry that is not known, or one that every checkpoint has is missing.

    Source: specification section 5.
    """
    state = without_wrapper(state)
    stage = "{}." if any(key.startswith("roi_heads.box_head.0.") for key in state) else ""
    heads = [
        *REGION_PROPOSALS,
        *(f"roi_heads.box_head.{stage}{entry}" for entry in BOX_HEAD),
        *(f"roi_heads.box_predictor.{stage}{entry}" for entry in BOX_PREDICTOR),
    ]
    transformer = DETECTRON2 if any(key.startswith("backbone.net.") for key in state) else RGTP
    table = {**transformer, **{entry: entry for entry in heads}, **present_lines(MASK_HEAD, state)}
    converted = rename(state, table)
    check_blocks(converted, r"(backbone\.blocks\.)(\d+)(\..*)")
    if transformer is DETECTRON2:
        converted[POSITIONS] = _without_class_token(converted[POSITIONS])
    return converted


def _without_class_token(table: Tensor) -> Tensor:
    """(1, 1 + g * g, d) -> (1, g * g, d)."""
    rows = table.shape[1] - 1
    if table.ndim != 3 or round(rows**0.5) ** 2 != rows:
        raise CheckpointError(
            f"not a checkpoint of the expected layout: a position table of shape {tuple(table.shape)}; expected "
            "(1, 1 + g * g, d), a class token and a square of positions."
        )
    return table[:, 1:]
