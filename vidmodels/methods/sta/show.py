"""A picture of what STA keeps: the frames of a clip, and under them each stage with the dropped patches faded."""

import torch
from PIL import Image, ImageDraw
from torch import Tensor, nn

from vidmodels.methods.sta.model import Sta
from vidprep.errors import UsageError

__all__ = ["draw_kept_tokens"]

FADED = 0.9
"""How white a dropped patch becomes."""
CELL, GAP, LABEL_HEIGHT = 128, 6, 20
"""Pixels: side of a frame in the picture, space between frames, height of a line of text."""


@torch.no_grad()
def draw_kept_tokens(model: nn.Module, clip: Tensor, pixels: Tensor) -> Image.Image:
    """Run a clip and draw which of its tokens are left after each of the three stages.

    A column is a tubelet, shown by its first frame; the first row has all patches, the others what a stage leaves.

    Args:
        model: a `Sta` that prunes, in evaluation mode.
        clip: (t, 3, h, w) as the model gets it.
        pixels: the same in 0 ... 1, to look at.

    Raises:
        UsageError: the model drops nothing.
    """
    if not isinstance(model, Sta):
        raise TypeError(f"expected a Sta model, got {type(model).__name__}")
    if not model.config.stages:
        raise UsageError("this model keeps every token; say how many to drop with --set model.prune_number=R.")
    grid = model.backbone.grid
    aux = model(clip[None]).aux
    masks = [torch.ones(grid)]
    labels = [f"{masks[0].numel()} tokens"]
    for number, stage in enumerate(model.config.stages, start=1):
        kept = aux[f"kept_{number}"][0]
        masks.append(torch.zeros(masks[0].numel()).index_fill(0, kept, 1.0).view(grid))
        labels.append(f"after block {stage.after_block + 1} of {model.config.vit.depth}: {len(kept)} tokens")
    shown = pixels[:: model.config.vit.tubelet].clamp(0, 1)
    canvas = Image.new(
        "RGB",
        (GAP + len(shown) * (CELL + GAP), len(masks) * (LABEL_HEIGHT + CELL + GAP)),
        "white",
    )
    draw = ImageDraw.Draw(canvas)
    for row, (mask, label) in enumerate(zip(masks, labels, strict=True)):
        top = row * (LABEL_HEIGHT + CELL + GAP)
        draw.text((GAP, top + 4), label, fill="black")
        for column, (frame, patches) in enumerate(zip(shown, mask, strict=True)):
            left = GAP + column * (CELL + GAP)
            canvas.paste(_cell(frame, patches), (left, top + LABEL_HEIGHT))
    return canvas


def _cell(frame: Tensor, patches: Tensor) -> Image.Image:
    """One frame (3, h, w) in 0 ... 1, whiter where `patches` (rows, columns) is 0."""
    sides = [size // count for size, count in zip(frame.shape[1:], patches.shape, strict=True)]
    visible = patches.repeat_interleave(sides[0], 0).repeat_interleave(sides[1], 1)
    values = 1 - (1 - frame) * (1 - FADED * (1 - visible))
    image = Image.fromarray((255 * values).round().to(torch.uint8).movedim(0, -1).contiguous().numpy())
    return image.resize((CELL, CELL), Image.Resampling.LANCZOS)
