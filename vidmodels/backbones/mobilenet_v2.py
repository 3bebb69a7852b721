"""MobileNetV2 without its classifier, with an optional temporal shift; frames in, the last feature map out.

Blocks and names (`features.0.0`, `features.2.conv.1.0`, ...) are torchvision's.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torchvision.models.mobilenetv2 import InvertedResidual
from torchvision.models.mobilenetv2 import MobileNetV2 as TorchvisionMobileNetV2

from vidmodels.checkpoints import CheckpointError, load_checkpoint
from vidmodels.layers.temporal_shift import temporal_shift

__all__ = ["PUBLISHED_STAGES", "MobileNetV2", "load_imagenet"]

PUBLISHED_STAGES: tuple[tuple[int, int, int, int], ...] = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
"""(expansion, channels, blocks, stride of the first block) of each stage."""

IMAGENET_URL = "https://download.pytorch.org/models/mobilenet_v2-7ebf99e0.pth"
"""torchvision's IMAGENET1K_V1 weights, 71.88 % top-1."""


class MobileNetV2(nn.Module):
    """Stem, inverted residual blocks and the last 1x1 convolution, each followed by batch norm.

    Args:
        stages: (expansion, channels, blocks, stride of the first block) of each stage.
        width: factor of all channels but the last convolution's, which are at least 1280.
        shift_div: move channels / shift_div of a clip's frames each way before the first 1x1 convolution of every
            block with a shortcut and expansion, on the residual branch; None moves nothing.

    Source: MobileNetV2 (Sandler et al., 2018); the shift as in TSM, `ops/temporal_shift.py`.
    """

    def __init__(
        self,
        *,
        stages: Sequence[tuple[int, int, int, int]] = PUBLISHED_STAGES,
        width: float = 1.0,
        shift_div: int | None = None,
    ) -> None:
        super().__init__()
        whole = TorchvisionMobileNetV2(
            num_classes=1, width_mult=width, inverted_residual_setting=[list(stage) for stage in stages]
        )
        self.features = whole.features
        self.shift_div = shift_div
        self.out_channels: int = whole.last_channel
        self.stride = 2
        for *_, stride in stages:
            self.stride *= stride

    def forward(self, frames: Tensor, *, num_frames: int = 1) -> Tensor:
        """(n*t, 3, h, w) -> (n*t, out_channels, h / stride, w / stride); `num_frames` is the t of the shift."""
        return deque(self.maps(frames, num_frames=num_frames), maxlen=1).pop()

    def maps(self, frames: Tensor, *, num_frames: int = 1) -> Iterator[Tensor]:
        """What leaves the stem, every block and the last convolution, one after another."""
        x = frames
        for block in self.features:
            if self.shift_div is not None and is_shifted(block):
                shifted = temporal_shift(x, num_frames=num_frames, mode="offline", shift_div=self.shift_div)
                x = x + block.get_submodule("conv")(shifted)
            else:
                x = block(x)
            yield x


def is_shifted(block: nn.Module) -> bool:
    """Whether a block's residual branch is where frames are shifted: it has a shortcut and expands."""
    return isinstance(block, InvertedResidual) and block.use_res_connect and len(block.conv) > 3


def load_imagenet(backbone: MobileNetV2, path: Path | None = None) -> None:
    """Set a backbone's weights to torchvision's ImageNet ones.

    Args:
        backbone: of the published stages and width.
        path: a downloaded copy; None takes the one in torch's cache (`hub/checkpoints`), or fetches it there and
            checks it against the hash in its name.

    Raises:
        CheckpointError: no such file, or it does not fit the backbone.
    """
    if path is not None:
        state = load_checkpoint(path)
    else:
        try:
            state = torch.hub.load_state_dict_from_url(
                IMAGENET_URL, check_hash=True, weights_only=True, map_location="cpu"
            )
        except OSError as error:
            cache = Path(torch.hub.get_dir()) / "checkpoints"
            raise CheckpointError(
                f"{IMAGENET_URL}: not to be had ({error}); put a copy of the file into {cache}, or start with "
                "init = 'none'."
            ) from error
    state = {key: value for key, value in state.items() if not key.startswith("classifier.")}
    own = backbone.state_dict()
    unfit = [
        key for key in {**own, **state} if key not in own or key not in state or own[key].shape != state[key].shape
    ]
    if unfit:
        raise CheckpointError(
            f"{path or 'the ImageNet weights'}: do not fit this MobileNetV2: {len(unfit)} entries are missing, not "
            f"known or of another shape ({', '.join(unfit[:3])}, ...); use weights of the same stages and width"
        )
    backbone.load_state_dict(state)
