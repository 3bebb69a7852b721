"""Published ViViT checkpoints -> our names, by tables; no tensor changes. RGTP adds nothing to them.

TAdaConv's (.pyth) -- TADACONV --> names of RGTP and Eventful Transformers (.pth) -- PUBLISHED --> ours
"""

from collections.abc import Mapping

from torch import Tensor

from vidmodels.checkpoints import check_blocks, present_lines, rename

__all__ = ["BLOCK_ENTRIES", "PUBLISHED", "TADACONV", "convert"]

BLOCK_ENTRIES = {
    "input_layer_norm": "norm1",
    "qkv": "attn.qkv",
    "projection": "attn.proj",
    "mlp_layer_norm": "norm2",
    "mlp_1": "mlp.fc1",
    "mlp_2": "mlp.fc2",
}
"""Of a block: RGTP's names -> ours."""
TADACONV_ENTRIES = {
    "norm": "input_layer_norm",
    "attn.to_qkv": "qkv",
    "attn.proj": "projection",
    "norm_ffn": "mlp_layer_norm",
    "ffn.net.0": "mlp_1",
    "ffn.net.3": "mlp_2",
}
"""Of a block: TAdaConv's names -> RGTP's."""


def _weights_and_biases(table: Mapping[str, str | None]) -> dict[str, str | None]:
    return {
        f"{old}.{kind}": None if new is None else f"{new}.{kind}"
        for old, new in table.items()
        for kind in ("weight", "bias")
    }


PUBLISHED: dict[str, str | None] = {
    "spatial_model.class_token": "backbone.spatial.cls_token",
    "spatial_model.backbone.position_encoding.encoding": "backbone.spatial.pos_embed",
    "temporal_model.class_token": "backbone.temporal.cls_token",
    "temporal_model.backbone.position_encoding.encoding": "backbone.temporal.pos_embed",
    **_weights_and_biases(
        {
            "embedding.conv": "backbone.patch_embed.proj",
            **{
                f"{part}_model.backbone.blocks.{{}}.{old}": f"backbone.{part}.blocks.{{}}.{new}"
                for part in ("spatial", "temporal")
                for old, new in BLOCK_ENTRIES.items()
            },
            "spatial_model.layer_norm": "backbone.spatial.norm",
            "temporal_model.layer_norm": "backbone.temporal.norm",
            "classifier": "head",
        }
    ),
}
TADACONV: dict[str, str | None] = {
    "backbone.cls_token": "spatial_model.class_token",
    "backbone.pos_embd": "spatial_model.backbone.position_encoding.encoding",
    "backbone.cls_token_out": "temporal_model.class_token",
    "backbone.temp_embd": "temporal_model.backbone.position_encoding.encoding",
    **_weights_and_biases(
        {
            "backbone.stem.conv1": "embedding.conv",
            **{
                f"backbone.layers.{{}}.{old}": f"spatial_model.backbone.blocks.{{}}.{new}"
                for old, new in TADACONV_ENTRIES.items()
            },
            **{
                f"backbone.layers_temporal.{{}}.{old}": f"temporal_model.backbone.blocks.{{}}.{new}"
                for old, new in TADACONV_ENTRIES.items()
            },
            "backbone.norm": "spatial_model.layer_norm",
            "backbone.norm_out": "temporal_model.layer_norm",
        }
    ),
}
"""Without the classifiers."""
ONE_HEAD = _weights_and_biases({"head.linear": "classifier"})
VERBS_AND_NOUNS = _weights_and_biases({"head.linear1": "classifier", "head.linear2": None})
"""EPIC-KITCHENS-100; RGTP's names have no place for the nouns."""
NOUNS = _weights_and_biases({"head.linear2": "noun_head"})


def convert(state: Mapping[str, Tensor], *, partial: bool = False) -> dict[str, Tensor]:
    """Rename the entries of a checkpoint of RGTP, of Eventful Transformers or of TAdaConv.

    TAdaConv's for EPIC-KITCHENS-100 has a classifier for nouns, which RGTP dropped and we keep: for a model with
    `num_noun_classes`.

    Args:
        state: published name -> tensor.
        partial: the entries of some modules only, under RGTP's names.

    Raises:
        CheckpointError: an entry that is not known, or (unless `partial`) one that every checkpoint has is missing.

    Source: specification section 5.
    """
    if partial:
        return rename(state, present_lines(PUBLISHED, state))
    nouns: dict[str, Tensor] = {}
    if any(key.startswith("backbone.stem.") for key in state):
        nouns = {str(NOUNS[key]): state[key] for key in NOUNS if key in state}
        state = rename(state, tadaconv_table(state))
    converted = rename(state, PUBLISHED)
    check_blocks(converted, r"(backbone\.spatial\.blocks\.)(\d+)(\..+)")
    check_blocks(converted, r"(backbone\.temporal\.blocks\.)(\d+)(\..+)")
    return converted | nouns


def tadaconv_table(state: Mapping[str, Tensor]) -> dict[str, str | None]:
    """TAdaConv's names -> RGTP's, for a checkpoint with one classifier or with two."""
    return TADACONV | (VERBS_AND_NOUNS if present_lines(VERBS_AND_NOUNS, state) else ONE_HEAD)
