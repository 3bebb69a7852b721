"""A picture of what RGTP keeps: frames of a clip, the heat map after each time step, and the patches that were kept."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor, nn

from vidmodels.methods.rgtp.training import rgtp_model
from vidmodels.methods.rgtp.vivit import RgtpVivit
from vidprep.errors import UsageError

__all__ = ["draw_heat_and_kept_tokens"]

CELL, GAP, LABEL_HEIGHT = 128, 6, 16
"""Pixels: side of a frame in the picture, space between frames, height of a line of text."""
COLUMNS = 8
"""Time steps side by side; more of them go below."""
FADED = 0.85
"""How white a pruned patch becomes."""
GREY = 0.45
"""How much of the frame is seen through the heat map."""


@torch.no_grad()
def draw_heat_and_kept_tokens(model: nn.Module, clip: Tensor, pixels: Tensor) -> Image.Image:
    """Run a clip and draw, for every time step, its first frame, its kept patches, and the heat map that it leaves.

    The heat map of a time step says what the next one keeps, unless that is a reset. Each map goes from its coldest
    patch to its hottest: black, red, yellow, white.

    Args:
        model: an `RgtpVivit` that prunes, in evaluation mode.
        clip: (t, 3, h, w) as the model gets it.
        pixels: the same in 0 ... 1, to look at.

    Raises:
        UsageError: the model prunes nothing.
    """
    own = rgtp_model(model)
    if own.config.mode != "rollout":
        raise UsageError('this model keeps every token; choose a recipe with model.mode = "rollout".')
    rows, columns = own.backbone.grid
    steps = own.run_clip(own.backbone.embed(clip[None]), every_heat=True)
    frames = [_bytes(frame) for frame in pixels[:: own.config.shape.tubelet].clamp(0, 1).movedim(1, -1)]
    line = 2 * LABEL_HEIGHT + 3 * CELL + 4 * GAP
    width = min(len(steps), COLUMNS)
    canvas = Image.new("RGB", (GAP + width * (CELL + GAP), -(-len(steps) // COLUMNS) * line), "white")
    draw = ImageDraw.Draw(canvas)
    for number, (step, frame) in enumerate(zip(steps, frames, strict=True)):
        left, top = GAP + number % COLUMNS * (CELL + GAP), number // COLUMNS * line
        kept = torch.ones(rows * columns) if step.kept is None else torch.zeros(rows * columns)
        if step.kept is not None:
            kept[step.kept[0].cpu()] = 1.0
        heat = torch.zeros(rows * columns) if step.heat is None else step.heat[0].float().cpu()
        visible = _enlarged(kept.view(rows, columns), frame.shape)
        faded = 255 - (255 - frame.astype(np.float32)) * (1 - FADED * (1 - visible))
        seen = GREY * frame.mean(-1, keepdims=True) + (1 - GREY) * _heat_colours(
            _enlarged(_scaled(heat).view(rows, columns), frame.shape)
        )
        draw.text((left, top + 2), f"step {number}: {_kind(own, number)}", fill="black")
        draw.text((left, top + 2 + LABEL_HEIGHT), f"{int(kept.sum())} of {len(kept)} kept", fill="black")
        for place, picture in enumerate((frame, faded, seen)):
            canvas.paste(_cell(picture), (left, top + 2 * LABEL_HEIGHT + GAP + place * (CELL + GAP)))
    return canvas


def _scaled(heat: Tensor) -> Tensor:
    """From 0 at the coldest to 1 at the hottest; 0 where all are alike."""
    return (heat - heat.min()) / (heat.max() - heat.min()).clamp(min=1e-12)


def _kind(model: RgtpVivit, number: int) -> str:
    if number == 0:
        return "all"
    interval = model.config.reset_interval
    return "reset" if interval and number % interval == 0 else "by heat"


def _enlarged(patches: Tensor, shape: Sequence[int]) -> NDArray[np.float32]:
    """(rows, columns) -> (h, w, 1), each value over its patch."""
    values = patches.numpy().astype(np.float32)
    return np.kron(values, np.ones((shape[0] // values.shape[0], shape[1] // values.shape[1]), np.float32))[..., None]


def _heat_colours(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """(h, w, 1) in 0 ... 1 -> (h, w, 3) in 0 ... 255: black, red, yellow, white."""
    ramp = [np.clip(3 * values[..., 0] - channel, 0, 1) for channel in range(3)]
    return 255 * np.stack(ramp, axis=-1).astype(np.float32)


def _bytes(frame: Tensor) -> NDArray[np.uint8]:
    return (255 * frame).round().to(torch.uint8).contiguous().cpu().numpy()


def _cell(picture: NDArray[np.float32] | NDArray[np.uint8]) -> Image.Image:
    image = Image.fromarray(np.clip(np.rint(picture), 0, 255).astype(np.uint8))
    return image.resize((CELL, CELL), Image.Resampling.LANCZOS)
