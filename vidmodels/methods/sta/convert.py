"""VideoMAE checkpoints -> our names, by a table; no tensor changes. STA adds nothing to them."""

import re
from collections.abc import Mapping

from torch import Tensor

from vidmodels.checkpoints import CheckpointError, rename

__all__ = ["convert"]

BLOCK_ENTRIES = (
    "norm1.weight",
    "norm1.bias",
    "attn.q_bias",
    "attn.v_bias",
    "attn.qkv.weight",
    "attn.proj.weight",
    "attn.proj.bias",
    "norm2.weight",
    "norm2.bias",
    "mlp.fc1.weight",
    "mlp.fc1.bias",
    "mlp.fc2.weight",
    "mlp.fc2.bias",
)
ENCODER: dict[str, str | None] = {
    "patch_embed.proj.weight": "backbone.patch_embed.proj.weight",
    "patch_embed.proj.bias": "backbone.patch_embed.proj.bias",
    **{f"blocks.{{}}.{entry}": f"backbone.blocks.{{}}.{entry}" for entry in BLOCK_ENTRIES},
}
CLASSIFIER: dict[str, str | None] = {
    "fc_norm.weight": "norm.weight",
    "fc_norm.bias": "norm.bias",
    "head.weight": "head.weight",
    "head.bias": "head.bias",
}
PREFIXES = ("encoder.", "backbone.")
"""Of the encoder's entries in pre-training checkpoints."""
ONLY_PRE_TRAINING = ("decoder.", "encoder.norm.", "backbone.norm.", "encoder_to_decoder.", "mask_token")
"""What fine-tuning never reads: the decoder, and a norm that mean pooling replaces."""


def convert(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the entries of a fine-tuned model, or of a pre-trained one, of which the encoder is kept.

    A pre-trained encoder comes without `norm` and `head`: initial weights for `train.init`.

    Args:
        state: published name -> tensor.

    Raises:
        CheckpointError: an entry that is not known, or one that every checkpoint has is missing.

    Source: specification sections 3.1 and 5.
    """
    if any(key.startswith(PREFIXES) for key in state):
        kept = {key: tensor for key, tensor in state.items() if not key.startswith(ONLY_PRE_TRAINING)}
        converted = rename({re.sub(f"^({'|'.join(PREFIXES)})", "", key): kept[key] for key in kept}, ENCODER)
    else:
        converted = rename(state, ENCODER | CLASSIFIER)
    _check_blocks(converted)
    return converted


def _check_blocks(converted: Mapping[str, Tensor]) -> None:
    """Blocks are numbered from 0 without a gap, and each has all its entries."""
    numbers = {name.split(".")[2] for name in converted if name.startswith("backbone.blocks.")}
    expected = [f"backbone.blocks.{number}.{entry}" for number in range(len(numbers)) for entry in BLOCK_ENTRIES]
    missing = [name for name in expected if name not in converted]
    if missing:
        raise CheckpointError(
            f"not a checkpoint of the expected layout: {len(missing)} entries of blocks missing, in our names such as "
            f"{', '.join(missing[:3])}."
        )
