"""Published TANet checkpoints -> our names, by tables; no tensor changes."""

from collections.abc import Iterable, Mapping

from torch import Tensor

from vidmodels.checkpoints import check_blocks, present_lines, rename, without_wrapper

__all__ = ["convert"]

NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
AFFINE = ("weight", "bias")
BRANCH = ("0.weight", *(f"1.{name}" for name in NORM), "3.weight")


def _lines(old: str, new: str, names: Iterable[str]) -> dict[str, str | None]:
    return {f"{old}.{name}": f"{new}.{name}" for name in names}


_OUR_BLOCK = "backbone.layer{}.{}"
_GLOBAL, _LOCAL = f"{_OUR_BLOCK}.temporal.global_branch", f"{_OUR_BLOCK}.temporal.local_branch"

PUBLISHED: dict[str, str | None] = {
    "base_model.conv1.weight": "backbone.conv1.weight",
    **_lines("base_model.bn1", "backbone.bn1", NORM),
    "base_model.layer{}.{}.net.conv{}.weight": f"{_OUR_BLOCK}.conv{{}}.weight",
    **_lines("base_model.layer{}.{}.net.bn{}", f"{_OUR_BLOCK}.bn{{}}", NORM),
    "base_model.layer{}.{}.net.downsample.0.weight": f"{_OUR_BLOCK}.downsample.0.weight",
    **_lines("base_model.layer{}.{}.net.downsample.1", f"{_OUR_BLOCK}.downsample.1", NORM),
    **_lines("base_model.layer{}.{}.tam.G", _GLOBAL, BRANCH),
    **_lines("base_model.layer{}.{}.tam.L", _LOCAL, BRANCH),
    **_lines("new_fc", "head", AFFINE),
}
"""The files of the authors."""

WITHOUT_MODULES: dict[str, str | None] = {
    old.replace(".net.", "."): new for old, new in PUBLISHED.items() if ".tam." not in old
}
"""TSN: what the same code writes when its modules are off. Blocks are not wrapped then."""

OLDER: dict[str, str | None] = {
    **{old: new for old, new in PUBLISHED.items() if ".tam." not in old},
    **_lines("base_model.layer{}.{}.self_conv.conv_f", _GLOBAL, BRANCH),
    **_lines("base_model.layer{}.{}.self_conv.conv_g", _LOCAL, BRANCH),
}
"""The same before its `tools/transfer_params.py`, which renames f -> G and g -> L."""

MMACTION2: dict[str, str | None] = {
    "backbone.conv1.conv.weight": "backbone.conv1.weight",
    **_lines("backbone.conv1.bn", "backbone.bn1", NORM),
    "backbone.layer{}.{}.block.conv{}.conv.weight": f"{_OUR_BLOCK}.conv{{}}.weight",
    **_lines("backbone.layer{}.{}.block.conv{}.bn", f"{_OUR_BLOCK}.bn{{}}", NORM),
    "backbone.layer{}.{}.block.downsample.conv.weight": f"{_OUR_BLOCK}.downsample.0.weight",
    **_lines("backbone.layer{}.{}.block.downsample.bn", f"{_OUR_BLOCK}.downsample.1", NORM),
    **_lines("backbone.layer{}.{}.tam.G", _GLOBAL, BRANCH),
    **_lines("backbone.layer{}.{}.tam.L", _LOCAL, BRANCH),
    **_lines("cls_head.fc_cls", "head", AFFINE),
}
"""The files of mmaction2's TANet."""


def convert(state: Mapping[str, Tensor], *, partial: bool = False) -> dict[str, Tensor]:
    """Rename the entries of a checkpoint of the authors (old or new names, with or without the `module.` prefix), or of
    mmaction2.

    Args:
        state: published name -> tensor.
        partial: the entries of some modules only, not a whole network.

    Raises:
        CheckpointError: an entry that is not known, or (unless `partial`) one that every checkpoint has is missing.

    Source: specification section 5.
    """
    state = without_wrapper(state)
    table = _table(state)
    if partial:
        return rename(state, present_lines(table, state))
    converted = rename(state, table)
    check_blocks(converted, r"(backbone\.)(layer\d+\.\d+)(\.(?!downsample).+)")
    return converted


def _table(state: Mapping[str, Tensor]) -> dict[str, str | None]:
    """The table whose names these are; where the classifier sits tells whether it was trained with dropout."""
    if any(key.startswith("cls_head.") for key in state):
        return MMACTION2
    if any(".self_conv." in key for key in state):
        table = OLDER
    elif any(".net." in key or ".tam." in key for key in state):
        table = PUBLISHED
    else:
        table = WITHOUT_MODULES
    if "base_model.fc.weight" in state:
        return {old.replace("new_fc", "base_model.fc"): new for old, new in table.items()}
    return table
