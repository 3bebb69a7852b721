"""Batch norms folded into the layers before them, for evaluation: other rounding, the same arithmetic."""

from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, hardtanh_, linear
from torch.nn.modules.batchnorm import _BatchNorm

__all__ = ["Activation", "FoldedLayer", "FoldedNorms", "can_prepack"]

Activation = Literal["", "relu", "relu6"]


class FoldedLayer(NamedTuple):
    """A convolution or linear layer with the batch norm after it folded in, and what it was folded from."""

    weight: Tensor
    """Of a 2D convolution channels-last."""
    bias: Tensor
    made_from: tuple[tuple[int, int], ...]
    """(address, version) of each source tensor; a changed one shows here."""


class FoldedNorms:
    """Folds layers at their first use, and again whenever one of their tensors has changed.

    The sources stay as they are: a model keeps its parameters under their names, and folded copies beside them.
    """

    def __init__(self) -> None:
        self._known: dict[nn.Module, FoldedLayer] = {}
        self._packed: dict[nn.Module, tuple[FoldedLayer, Tensor]] = {}

    def __reduce__(self) -> tuple[type["FoldedNorms"], tuple[()]]:
        """Copies begin anew: they belong to copied layers."""
        return FoldedNorms, ()

    def conv(self, conv: nn.Conv2d, norm: nn.BatchNorm2d, x: Tensor, *, then: Activation = "") -> Tensor:
        """(n, c, h, w) -> what leaves the norm, and the activation after it."""
        folded = self.fold(conv, norm)
        if can_prepack(x) and not isinstance(conv.padding, str):
            return self._packed_conv(conv, folded, x, then)
        out = conv2d(x, folded.weight, folded.bias, stride=conv.stride, padding=conv.padding, groups=conv.groups)
        if then == "relu":
            return out.relu_()
        return hardtanh_(out, 0.0, 6.0) if then == "relu6" else out

    def _packed_conv(self, conv: nn.Conv2d, folded: FoldedLayer, x: Tensor, then: Activation) -> Tensor:
        """The convolution of oneDNN on weights that lie as its kernel reads them, and the activation in the same pass.

        `conv2d` puts them in that order at every call, which for a few frames takes longer than the convolution.
        """
        how = (list(conv.padding), list(conv.stride), list(conv.dilation), conv.groups)
        known = self._packed.get(conv)
        if known is None or known[0] is not folded:
            packed = torch.ops.mkldnn._reorder_convolution_weight(folded.weight, *how, list(x.shape))
            known = self._packed[conv] = (folded, packed)
        out: Tensor = torch.ops.mkldnn._convolution_pointwise(x, known[1], folded.bias, *how, *_ONEDNN_NAMES[then], "")
        return out

    def linear(self, layer: nn.Linear, norm: nn.BatchNorm1d, x: Tensor) -> Tensor:
        """(n, c) -> what leaves the norm."""
        folded = self.fold(layer, norm)
        return linear(x, folded.weight, folded.bias)

    def fold(self, layer: nn.Conv2d | nn.Linear, norm: _BatchNorm) -> FoldedLayer:
        """Weight and bias that do the work of both.

        Raises:
            ValueError: the norm keeps no statistics or has no scale, so that it is no constant; or the convolution is
                dilated or pads with other values than zeros.
        """
        mean, variance, num_batches = norm.running_mean, norm.running_var, norm.num_batches_tracked
        if mean is None or variance is None or num_batches is None or not norm.affine:
            raise ValueError("only batch norms with running statistics and a scale can be folded")
        if torch.compiler.is_exporting() and layer in self._known:
            return self._known[layer]  # of the call before: while a model is traced its tensors have no addresses
        # A training pass updates the statistics without raising their versions; that of the batch counter rises.
        sources: list[Tensor] = [layer.weight, norm.weight, norm.bias, mean, variance, num_batches]
        if layer.bias is not None:
            sources.append(layer.bias)
        made_from = tuple((source.data_ptr(), source._version) for source in sources)
        known = self._known.get(layer)
        if known is not None and known.made_from == made_from:
            return known
        if isinstance(layer, nn.Conv2d) and (layer.padding_mode != "zeros" or layer.dilation != (1, 1)):
            raise ValueError(f"only convolutions without dilation that pad with zeros are folded, got {layer}")
        with torch.no_grad():
            scale = norm.weight * torch.rsqrt(variance + norm.eps)
            weight = layer.weight * scale.view(-1, *[1] * (layer.weight.ndim - 1))
            if weight.ndim == 4:
                weight = weight.contiguous(memory_format=torch.channels_last)
            shift = -mean if layer.bias is None else layer.bias - mean
            self._known[layer] = FoldedLayer(weight, norm.bias + shift * scale, made_from)
        return self._known[layer]


_ONEDNN_NAMES: dict[Activation, tuple[str, list[float]]] = {
    "": ("none", []),
    "relu": ("relu", []),
    "relu6": ("hardtanh", [0.0, 6.0]),
}
_HAS_OPERATORS = bool(torch._C._has_mkldnn) and all(
    hasattr(torch.ops.mkldnn, name) for name in ("_reorder_convolution_weight", "_convolution_pointwise")
)
"""Those that TorchInductor calls where weights are frozen; builds of PyTorch without oneDNN have none."""


def can_prepack(x: Tensor) -> bool:
    """Whether oneDNN's own operators can take the place of `conv2d`: float32 on a CPU, nothing but running it.

    What looks at operators (gradients, autocast, cost counters, tracing and export) gets to see a convolution.
    """
    return (
        _HAS_OPERATORS
        and bool(torch.backends.mkldnn.enabled)
        and x.device.type == "cpu"
        and x.dtype == torch.float32
        and not torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
        and not torch._C._is_tracing()
        and torch._C._len_torch_dispatch_stack() == 0
    )
