"""Batch norms whose statistics are those of the batches of all processes together, on any device."""

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from vidmodels.distributed import sum_over_ranks

__all__ = ["synchronise_norms"]


class _Synchronised(_BatchNorm):
    """What the three kinds of batch norm share; PyTorch's own synchronised one is for GPUs alone."""

    def forward(self, x: Tensor) -> Tensor:
        """(n, c, ...) -> the same, normalised over n and what follows c; in evaluation as any batch norm."""
        if not (self.training and torch.distributed.is_initialized()):
            return super().forward(x)
        self._check_input_dim(x)  # type: ignore[no-untyped-call]
        over = [0, *range(2, x.ndim)]
        exact = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
        shape = (1, -1, *[1] * (x.ndim - 2))
        size = exact.new_full((1,), x.numel() / x.shape[1])
        sums = sum_over_ranks(torch.cat([exact.sum(over), size]))
        count = sums[-1].detach()
        mean = sums[:-1] / count
        centred = exact - mean.view(shape)
        variance = sum_over_ranks(centred.square().sum(over)) / count
        self._remember(mean.detach(), variance.detach() * count / (count - 1))
        out = centred * (variance + self.eps).rsqrt().view(shape)
        if self.affine:
            out = out * self.weight.view(shape) + self.bias.view(shape)
        return out.to(x.dtype)

    def _remember(self, mean: Tensor, variance: Tensor) -> None:
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked.add_(1)
        momentum = 1.0 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), momentum)
        self.running_var.lerp_(variance.to(self.running_var.dtype), momentum)


class _Synchronised1d(_Synchronised, nn.BatchNorm1d):
    pass


class _Synchronised2d(_Synchronised, nn.BatchNorm2d):
    pass


class _Synchronised3d(_Synchronised, nn.BatchNorm3d):
    pass


SYNCHRONISED: dict[type[nn.Module], type[_Synchronised]] = {
    nn.BatchNorm1d: _Synchronised1d,
    nn.BatchNorm2d: _Synchronised2d,
    nn.BatchNorm3d: _Synchronised3d,
}


def synchronise_norms(model: nn.Module) -> None:
    """Let every batch norm of the model take its statistics from all processes, in place.

    They stay what they are (names, parameters, `isinstance`), so that what a method does with its batch norms goes on.
    """
    for module in model.modules():
        kind = SYNCHRONISED.get(type(module))
        if kind is not None:
            module.__class__ = kind
