"""A picture of what RGTP computes of a video: what is found, where attention leads, and which tokens are left."""

import torch
from PIL import Image, ImageDraw
from torch import Tensor, nn

from vidmodels.methods.rgtp.vitdet import Detector
from vidprep.errors import UsageError

__all__ = ["draw_kept_tokens"]

FADED = 0.85
"""How white a token becomes that is not computed."""
SEEN_THROUGH = 0.35
"""Share of the frame under its heat."""
DRAWN_SCORE = 0.5
"""Boxes with a lower score are not drawn; the rollout starts from some of them, too (`anchor_score`)."""
WIDTH, GAP, LABEL_HEIGHT = 192, 6, 20
"""Pixels: width of a frame in the picture, space between frames, height of a line of text."""


@torch.no_grad()
def draw_kept_tokens(model: nn.Module, clip: Tensor, pixels: Tensor) -> Image.Image:
    """Run consecutive frames as one stream, and draw each as a column.

    The first row has the frames with the boxes that were found; the second the tokens that were computed, the others
    faded; the third the heat after the frame, which decides on the tokens of the next one.

    Args:
        model: a `Detector` that prunes, in evaluation mode.
        clip: (t, 3, h, w) as the model gets it, not padded.
        pixels: the same in 0 ... 1, to look at.

    Raises:
        UsageError: the model prunes nothing.
    """
    if not isinstance(model, Detector):
        raise TypeError(f"expected a Detector, got {type(model).__name__}")
    config = model.config
    if config.keep_ratio is None:
        raise UsageError("this model computes every token; say how many to keep with --set model.keep_ratio=R.")
    height = round(WIDTH * pixels.shape[-2] / pixels.shape[-1])
    rows = 3 * (LABEL_HEIGHT + height + GAP)
    canvas = Image.new("RGB", (GAP + len(clip) * (WIDTH + GAP), rows), "white")
    draw = ImageDraw.Draw(canvas)
    state = None
    for column, (frame, shown) in enumerate(zip(clip, pixels, strict=True)):
        found, state = model.step(frame, state, every_heat=True)
        kept = torch.ones(config.grid**2)
        if state.kept is not None:
            kept = torch.zeros(config.grid**2).index_fill(0, state.kept.cpu().flatten(), 1.0)
        heat = torch.zeros(config.grid**2) if state.heat is None else state.heat.cpu().flatten().float()
        what = "key frame" if state.kept is None else "frame"
        boxes = found.boxes[found.scores >= DRAWN_SCORE]
        cells = (
            (f"{what} {column}: {len(boxes)} boxes", _frame(shown, boxes)),
            (f"{int(kept.sum())} of {len(kept)} tokens computed", _fade(shown, kept, config.grid, config.image_size)),
            ("heat for the next frame", _warm(shown, heat, config.grid, config.image_size)),
        )
        left = GAP + column * (WIDTH + GAP)
        for row, (label, picture) in enumerate(cells):
            top = row * (LABEL_HEIGHT + height + GAP)
            draw.text((left, top + 4), label, fill="black")
            canvas.paste(picture.resize((WIDTH, height), Image.Resampling.LANCZOS), (left, top + LABEL_HEIGHT))
    return canvas


def _frame(shown: Tensor, boxes: Tensor) -> Image.Image:
    image = _image(shown)
    draw = ImageDraw.Draw(image)
    line = max(1, round(shown.shape[-1] / WIDTH * 2))
    for left, top, right, bottom in boxes.tolist():
        draw.rectangle((left, top, max(left, right), max(top, bottom)), outline="red", width=line)
    return image


def _fade(shown: Tensor, kept: Tensor, grid: int, size: int) -> Image.Image:
    return _image(1 - (1 - shown) * (1 - FADED * (1 - _spread(kept, grid, size, shown))))


def _warm(shown: Tensor, heat: Tensor, grid: int, size: int) -> Image.Image:
    """Black, red, yellow, white: the square root of the heat, of which the hottest token is white."""
    level = _spread((heat / heat.max().clamp(min=1e-12)).sqrt(), grid, size, shown)
    colours = torch.stack([(3 * level - shift).clamp(0, 1) for shift in range(3)])
    return _image(SEEN_THROUGH * shown + (1 - SEEN_THROUGH) * colours)


def _spread(values: Tensor, grid: int, size: int, shown: Tensor) -> Tensor:
    """Values of tokens (g * g,) on the pixels of the frame (h, w); what lies in the padding is left out."""
    side = size // grid
    on_square = values.view(grid, grid).repeat_interleave(side, 0).repeat_interleave(side, 1)
    return on_square[: shown.shape[-2], : shown.shape[-1]]


def _image(values: Tensor) -> Image.Image:
    return Image.fromarray((255 * values.clamp(0, 1)).round().to(torch.uint8).movedim(0, -1).contiguous().numpy())
