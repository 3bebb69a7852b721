"""Published TAPS checkpoints -> our names, by a table; no tensor changes."""

from collections.abc import Iterable, Mapping

from torch import Tensor

from vidmodels.checkpoints import check_blocks, present_lines, rename, without_wrapper

__all__ = ["convert"]

NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
AFFINE = ("weight", "bias")


def _lines(
    old: str, new: str | None, names: Iterable[str], new_names: Iterable[str] | None = None
) -> dict[str, str | None]:
    names = list(names)
    pairs = zip(names, new_names or names, strict=True)
    return {f"{old}.{name}": None if new is None else f"{new}.{target}" for name, target in pairs}


_BLOCK, _OUR_BLOCK, _OUR_POLICY = "base_model.layer{}.{}", "backbone.layer{}.{}", "policies.layer{}.{}"
_POLICY = f"{_BLOCK}.policy_net"
_ATTENTION = ("in_proj_weight", "in_proj_bias", "out_proj.weight", "out_proj.bias")
_OUR_ATTENTION = ("in_proj.weight", "in_proj.bias", "out_proj.weight", "out_proj.bias")
_FEED_FORWARD = ("0.weight", "0.bias", "2.weight", "2.bias")

NETWORK: dict[str, str | None] = {
    "base_model.conv1.weight": "backbone.conv1.weight",
    **_lines("base_model.bn1", "backbone.bn1", NORM),
    f"{_BLOCK}.conv{{}}.weight": f"{_OUR_BLOCK}.conv{{}}.weight",
    **_lines(f"{_BLOCK}.bn{{}}", f"{_OUR_BLOCK}.bn{{}}", NORM),
    f"{_BLOCK}.downsample0.weight": f"{_OUR_BLOCK}.downsample.0.weight",
    **_lines(f"{_BLOCK}.downsample1", f"{_OUR_BLOCK}.downsample.1", NORM),
    **_lines("new_fc", "head", AFFINE),
}
"""The ResNet and the classifier."""

POLICY: dict[str, str | None] = {
    **_lines(f"{_POLICY}.TDCP_ca", f"{_OUR_POLICY}.attention1", _ATTENTION, _OUR_ATTENTION),
    **_lines(f"{_POLICY}.TDCP_norm1", f"{_OUR_POLICY}.norm1", AFFINE),
    **_lines(f"{_POLICY}.TDCP_ca2", f"{_OUR_POLICY}.attention2", _ATTENTION, _OUR_ATTENTION),
    **_lines(f"{_POLICY}.TDCP_norm2", f"{_OUR_POLICY}.norm2", AFFINE),
    **_lines(f"{_POLICY}.gate_fc0", f"{_OUR_POLICY}.hidden", AFFINE),
    **_lines(f"{_POLICY}.gate_bn", f"{_OUR_POLICY}.hidden_norm", NORM),
    **_lines(f"{_POLICY}.gate_fc1", f"{_OUR_POLICY}.gate", AFFINE),
}
FEED_FORWARD: dict[str, str | None] = {
    **_lines(f"{_POLICY}.TDCP_ffn", f"{_OUR_POLICY}.feed_forward", _FEED_FORWARD),
    **_lines(f"{_POLICY}.TDCP_norm3", f"{_OUR_POLICY}.norm3", AFFINE),
}
LEFTOVERS: dict[str, str | None] = {
    **_lines(f"{_POLICY}.TDCP_sa", None, _ATTENTION),
    **_lines(f"{_BLOCK}.FBS", None, AFFINE),
}
"""In the files, never used by the published settings: a third attention; an unused linear of ResNet-18 blocks."""


def convert(state: Mapping[str, Tensor], *, feed_forward: bool = False, partial: bool = False) -> dict[str, Tensor]:
    """Rename the entries of a published checkpoint, with or without the `module.` prefix of its wrapper.

    Args:
        state: published name -> tensor.
        feed_forward: keep the policies' feed-forward sub-layers; the published settings do not run them, and by
            default they are dropped.
        partial: the entries of some modules only, not a whole network.

    Raises:
        CheckpointError: an entry that is not known, or (unless `partial`) one that every checkpoint has is missing.

    Source: specification section 5.
    """
    state = without_wrapper(state)
    if feed_forward:
        required, optional = NETWORK | POLICY | FEED_FORWARD, LEFTOVERS
    else:
        required, optional = NETWORK | POLICY, LEFTOVERS | dict.fromkeys(FEED_FORWARD)
    if partial:
        required, optional = {}, required | optional
    converted = rename(state, required | present_lines(optional, state))
    if not partial:
        check_blocks(converted, r"((?:backbone|policies)\.)(layer\d+\.\d+)(\.(?!downsample).+)")
    return converted
