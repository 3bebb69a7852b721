"""TANet as evaluation runs it. TAM skips nothing: this form is the same network with its batch norms folded.

The same parameters under the same names as the trainable form; activations lie channels-last.
"""

import torch
from torch import Tensor, nn

from vidmodels.backbones.folded_resnet import run_folded
from vidmodels.layers.evaluation_only import EvaluationOnly
from vidmodels.layers.folded import FoldedNorms
from vidmodels.methods.tam.model import Tanet
from vidmodels.types import Output

__all__ = ["FoldedTanet", "make_dynamic"]


class FoldedTanet(EvaluationOnly, Tanet):
    """`forward(frames (n, t, 3, h, w)) -> Output` with the logits and `aux` of the trainable form.

    Args:
        model: the trainable form, whose tensors are shared: there is one set of weights, and changing it in place
            changes both.
    """

    def __init__(self, model: Tanet) -> None:
        with torch.device("meta"):
            super().__init__(model.config, model.num_classes)
        self.load_state_dict(model.state_dict(keep_vars=True), assign=True)
        self._norms = FoldedNorms()
        self.eval()

    @torch.no_grad()
    def forward(self, frames: Tensor) -> Output:
        """Classify clips.

        Raises:
            ValueError: clips of another length than the model was built for.
        """
        return super().forward(frames)

    def last_map(self, frames: Tensor) -> Tensor:
        """(n*t, 3, h, w) -> (n*t, d, h', w')."""
        return run_folded(self.backbone, frames, self._norms)


def make_dynamic(model: nn.Module) -> FoldedTanet:
    """The form for evaluation."""
    if not isinstance(model, Tanet):
        raise TypeError(f"expected a Tanet, got {type(model).__name__}")
    return FoldedTanet(model)
