"""Batch norms folded into the layers before them, for evaluation: other rounding, the same arithmetic."""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, linear
from torch.nn.modules.batchnorm import _BatchNorm

__all__ = ["FoldedLayer", "FoldedNorms"]


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

    def conv(self, conv: nn.Conv2d, norm: nn.BatchNorm2d, x: Tensor) -> Tensor:
        """(n, c, h, w) -> what leaves the norm."""
        folded = self.fold(conv, norm)
        return conv2d(x, folded.weight, folded.bias, stride=conv.stride, padding=conv.padding, groups=conv.groups)

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
