"""Models that only evaluate, such as dynamic forms: they stay in evaluation mode."""

from typing import Self

from torch import nn

__all__ = ["EvaluationOnly"]


class EvaluationOnly(nn.Module):
    """Put before the trainable form among the bases of a class."""

    def train(self, mode: bool = True) -> Self:
        """Stay in evaluation mode.

        Raises:
            ValueError: training was asked for.
        """
        if mode:
            raise ValueError(f"{type(self).__name__} is for evaluation; train the model that it was made from")
        return super().train(mode)
