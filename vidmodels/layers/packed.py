"""Linear layers that keep a copy of their weights as oneDNN's kernels want them, for few rows on a CPU.

A product of few rows with a large matrix is over before the matrix has been laid out for the kernel, which ordinary
layers do at every call.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from torch.utils.flop_counter import flop_registry, register_flop_formula

__all__ = ["PackedLinear", "pack_linears"]

HAS_KERNELS = bool(torch._C._has_mkldnn) and all(
    hasattr(torch.ops.mkldnn, name) for name in ("_reorder_linear_weight", "_linear_pointwise")
)
"""What `torch.compile` uses for the same purpose; a build of PyTorch without these operators packs nothing."""


class PackedLinear(nn.Linear):
    """`nn.Linear` for evaluation: a second copy of its weight, in float32 on a CPU, made anew when the weight changes.

    Elsewhere, and while gradients are recorded, it is an ordinary linear layer.
    """

    def __init__(self, *settings: Any, **named: Any) -> None:
        super().__init__(*settings, **named)
        self._packed: Tensor | None = None
        self._packed_from = (0, 0)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        weight = self.weight
        is_packable = HAS_KERNELS and x.device.type == weight.device.type == "cpu"
        if not is_packable or not x.dtype == weight.dtype == torch.float32 or torch.is_grad_enabled() or not x.numel():
            return linear(x, weight, self.bias)
        made_from = (weight.data_ptr(), weight._version)
        if self._packed is None or self._packed_from != made_from:
            self._packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach())
            self._packed_from = made_from
        out: Tensor = torch.ops.mkldnn._linear_pointwise(x, self._packed, self.bias, "none", [], "")
        return out

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_packed": None}


def pack_linears(module: nn.Module) -> None:
    """Put packed layers in the places of all linear layers inside; parameters and names stay."""
    for parent in list(module.modules()):
        for name, layer in list(parent.named_children()):
            if type(layer) is nn.Linear:
                with torch.device("meta"):
                    packed = PackedLinear(layer.in_features, layer.out_features, bias=layer.bias is not None)
                packed.weight, packed.bias = layer.weight, layer.bias
                packed.train(layer.training)
                setattr(parent, name, packed)


def _linear_flops(x_shape: Any, weight_shape: Any, *_: Any, **__: Any) -> int:
    """2 per multiply-accumulate, as PyTorch counts its own products."""
    rows = 1
    for size in x_shape[:-1]:
        rows *= size
    return 2 * rows * int(x_shape[-1]) * int(weight_shape[0])


if HAS_KERNELS and torch.ops.mkldnn._linear_pointwise not in flop_registry:
    register_flop_formula(torch.ops.mkldnn._linear_pointwise)(_linear_flops)
