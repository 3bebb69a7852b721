"""Published Uni-AdaFocus checkpoints -> our names, by tables; no tensor changes.

The names in the checkpoint of the X3D variant are not known here, so that one cannot be converted.
"""

from collections.abc import Iterable, Mapping

from torch import Tensor

from vidmodels.checkpoints import CheckpointError, check_blocks, present_lines, rename, without_wrapper

__all__ = ["convert"]

NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
AFFINE = ("weight", "bias")


def _lines(old: str, new: str | None, names: Iterable[str]) -> dict[str, str | None]:
    return {f"{old}.{name}": None if new is None else f"{new}.{name}" for name in names}


def _conv_norm(conv: str, norm: str, our_conv: str, our_norm: str) -> dict[str, str | None]:
    return {f"{conv}.weight": f"{our_conv}.weight", **_lines(norm, our_norm, NORM)}


def _mobilenet(prefix: str) -> dict[str, str | None]:
    """The authors number a block's parts in one row, torchvision (whose names ours are) groups them."""
    table = _conv_norm(f"{prefix}.0.0", f"{prefix}.0.1", "glance.features.0.0", "glance.features.0.1")
    table |= _conv_norm(f"{prefix}.18.0", f"{prefix}.18.1", "glance.features.18.0", "glance.features.18.1")
    for index in range(1, 18):
        block, ours = f"{prefix}.{index}.conv", f"glance.features.{index}.conv"
        for part in range(1 if index == 1 else 2):
            conv, norm = f"{block}.{3 * part}", f"{block}.{3 * part + 1}"
            table |= _conv_norm(conv, norm, f"{ours}.{part}.0", f"{ours}.{part}.1")
        last, ours_last = (3, 1) if index == 1 else (6, 2)
        table |= _conv_norm(f"{block}.{last}", f"{block}.{last + 1}", f"{ours}.{ours_last}", f"{ours}.{ours_last + 1}")
    return table


def _resnet(prefix: str) -> dict[str, str | None]:
    block, ours = f"{prefix}.layer{{}}.{{}}", "focus.backbone.layer{}.{}"
    return {
        **_conv_norm(f"{prefix}.conv1", f"{prefix}.bn1", "focus.backbone.conv1", "focus.backbone.bn1"),
        **_conv_norm(f"{block}.conv{{}}", f"{block}.bn{{}}", f"{ours}.conv{{}}", f"{ours}.bn{{}}"),
        **_conv_norm(f"{block}.downsample.0", f"{block}.downsample.1", f"{ours}.downsample.0", f"{ours}.downsample.1"),
    }


def _policies() -> dict[str, str | None]:
    lines: dict[str, str | None] = {"spatial_policy.encoder.9.weight": "spatial_policy.encoder.9.weight"}
    for index in (0, 3, 6):
        conv, norm = f"spatial_policy.encoder.{index}", f"spatial_policy.encoder.{index + 1}"
        lines |= _conv_norm(conv, norm, conv, norm)
    for index in (0, 3):
        conv, norm = f"temporal_policy.Tconv.{index}", f"temporal_policy.Tconv.{index + 1}"
        lines |= _conv_norm(conv, norm, f"temporal_policy.layers.{index}", f"temporal_policy.layers.{index + 1}")
    lines["temporal_policy.Tconv.6.weight"] = "temporal_policy.layers.6.weight"
    return lines | _lines("aux_fc", "spatial_head", AFFINE)


POOLING: dict[str, str | None] = {
    **_mobilenet("global_CNN.features"),
    **_lines("global_CNN_fc.1", "glance_head", AFFINE),
    **_resnet("local_CNN"),
    **_lines("local_CNN_fc.1", "focus_head", AFFINE),
    **_policies(),
    **_lines("classifier.global_mlp.layers.0", "classifier.glance_mlp.0", AFFINE),
    **_lines("classifier.global_mlp.layers.1", "classifier.glance_mlp.1", NORM),
    **_lines("classifier.local_mlp.layers.0", "classifier.focus_mlp.0", AFFINE),
    **_lines("classifier.local_mlp.layers.1", "classifier.focus_mlp.1", NORM),
    **_lines("classifier.global_classifiers.{}.1", "classifier.glance_steps.{}", AFFINE),
    **_lines("classifier.local_classifiers.{}.1", "classifier.focus_steps.{}", AFFINE),
}
"""The experiments on ActivityNet, FCVID and Mini-Kinetics."""

LEFTOVERS: dict[str, str | None] = {
    **_lines("global_CNN.classifier", None, AFFINE),
    **_lines("local_CNN.fc", None, AFFINE),
}
"""In the files, never used: the networks' ImageNet classifiers."""

SHIFTED_BLOCKS = (3, 5, 6, 8, 9, 10, 12, 13, 15, 16)
"""Blocks of MobileNetV2 whose first convolution the authors wrap with the temporal shift."""

TSM: dict[str, str | None] = {
    **{
        old.replace(".conv.0.weight", ".conv.0.net.weight") if int(old.split(".")[3]) in SHIFTED_BLOCKS else old: new
        for old, new in _mobilenet("global_CNN.base_model.features").items()
    },
    **_lines("global_CNN.new_fc", "glance_heads.final", AFFINE),
    **_lines("global_CNN.new_new_fc", "glance_heads.average", AFFINE),
    "local_CNN.base_model.layer{}.{}.conv1.net.weight": "focus.backbone.layer{}.{}.conv1.weight",
    **_resnet("local_CNN.base_model"),
    **_lines("local_CNN.new_fc", "focus_heads.final", AFFINE),
    **_lines("local_CNN.new_new_fc", "focus_heads.average", AFFINE),
    **_policies(),
}
"""The experiments on Something-Something and Jester."""


def convert(state: Mapping[str, Tensor], *, partial: bool = False) -> dict[str, Tensor]:
    """Rename the entries of a published checkpoint, "pooling" or "tsm", with or without the `module.` prefix.

    Args:
        state: published name -> tensor.
        partial: the entries of some modules only, not a whole network.

    Raises:
        CheckpointError: an entry that is not known, or (unless `partial`) one that every checkpoint has is missing; or
            a checkpoint of X3D networks.

    Source: specification section 5.
    """
    state = without_wrapper(state)
    if any(".branch2." in key for key in state):
        raise CheckpointError(
            "a checkpoint of X3D networks: the names in the published one are not known here, so it cannot be "
            'converted; train.init = "kinetics400" starts from X3D\'s own weights.'
        )
    is_tsm = any(".base_model." in key for key in state)
    required, optional = (TSM, {}) if is_tsm else (POOLING, LEFTOVERS)
    if partial:
        required, optional = {}, required | optional
    converted = rename(state, required | present_lines(optional, state))
    if not partial:
        check_blocks(converted, r"(focus\.backbone\.)(layer\d+\.\d+)(\.(?!downsample).+)")
    if not partial and not is_tsm:
        check_blocks(converted, r"(classifier\.glance_steps\.)(\d+)(\..+)")
        check_blocks(converted, r"(classifier\.focus_steps\.)(\d+)(\..+)")
    return converted
