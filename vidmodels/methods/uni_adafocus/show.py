"""A picture of where Uni-AdaFocus looks: the glance frames as a strip, under it the chosen frames with rectangles."""

from dataclasses import dataclass

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor, nn

from vidmodels.methods.uni_adafocus.model import UniAdaFocus, UniAdaFocusTsm

__all__ = ["Looked", "draw_looks", "look_at"]

FOCUS_SIDE, GAP, BAR_HEIGHT, MIN_WIDTH = 176, 8, 8, 800
"""Pixels: side of a focus frame in the picture, space between frames, height of a weight's bar, least width of all."""
FONT_SIZE, LINE_HEIGHT = 15, 22
COLUMNS = 8
"""Focus frames in a row."""
RECTANGLE, BAR, FADED = "#ff2d55", "#1f4e8c", 0.55
"""Colours of a rectangle and of a weight's bar; how dark the frame around a rectangle becomes."""


@dataclass(frozen=True, kw_only=True)
class Looked:
    """Where a model looks in one clip."""

    glance: tuple[int, ...]
    """(g,) places in the clip of the frames that it glances at."""
    weights: tuple[float, ...]
    """(g,) of the temporal policy; sum 1."""
    focus: tuple[int, ...]
    """(f,) places in the clip of the frames that it focuses on."""
    boxes: tuple[tuple[float, float, float, float], ...]
    """(f,) their rectangles: y1, x1, y2, x2 in pixels of the frame."""


@torch.no_grad()
def look_at(model: UniAdaFocus | UniAdaFocusTsm, clip: Tensor) -> Looked:
    """Run a clip (t, 3, h, w) through a model in evaluation mode and note where it looks."""
    config, geometry = model.config, model.geometry
    aux = model(clip[None]).aux
    chosen = aux["focus_indices"][0]
    if isinstance(model, UniAdaFocus):
        glance, actions = model.glance_indices, aux["focus_actions"][0]
    else:
        glance, actions = torch.arange(config.num_glance), aux["glance_actions"][0].expand(len(chosen), -1)
        chosen = chosen + config.num_glance
    boxes = geometry.boxes(actions, side=config.image_size, points=config.patch_size)
    return Looked(
        glance=tuple(glance.tolist()),
        weights=tuple(aux["weights"][0].tolist()),
        focus=tuple(chosen.tolist()),
        boxes=tuple((y1, x1, y2, x2) for y1, x1, y2, x2 in boxes.tolist()),
    )


def draw_looks(model: nn.Module, clip: Tensor, pixels: Tensor) -> Image.Image:
    """Draw where a model looks in a clip.

    Above, the glance frames in order, each with the weight that the temporal policy gives its part of the video; a bar
    shows it. Below, the frames that were chosen, by their number among the candidates, from 1: dark but for the
    rectangle that the focus network sees, at its true place and size.

    Args:
        model: of any variant, in evaluation mode.
        clip: (t, 3, h, w) as the model gets it.
        pixels: the same in 0 ... 1, to look at.
    """
    if not isinstance(model, UniAdaFocus | UniAdaFocusTsm):
        raise TypeError(f"expected a Uni-AdaFocus model, got {type(model).__name__}")
    config, looked = model.config, look_at(model, clip)
    images = [_image(frame) for frame in pixels.clamp(0, 1)]
    first = 0 if config.variant == "pooling" else config.num_glance
    columns = min(COLUMNS, len(looked.focus))
    rows = -(-len(looked.focus) // columns)
    width = max(columns * (FOCUS_SIDE + GAP) + GAP, MIN_WIDTH)
    glance_step = min((width - GAP) // len(looked.glance), FOCUS_SIDE + GAP)
    glance_side = glance_step - GAP
    focus_top = GAP + LINE_HEIGHT + glance_side + BAR_HEIGHT + LINE_HEIGHT + 2 * GAP
    row_height = LINE_HEIGHT + FOCUS_SIDE + GAP
    canvas = Image.new("RGB", (width, focus_top + LINE_HEIGHT + rows * row_height), "white")
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(FONT_SIZE)

    def write(left: int, top: int, text: str) -> None:
        draw.text((left, top + (LINE_HEIGHT - FONT_SIZE) // 2), text, fill="black", font=font)

    write(GAP, GAP, f"{len(looked.glance)} glance frames, each with the weight of its part of the video")
    for number, (place, weight) in enumerate(zip(looked.glance, looked.weights, strict=True)):
        left, top = GAP + number * glance_step, GAP + LINE_HEIGHT
        canvas.paste(images[place].resize((glance_side, glance_side), Image.Resampling.LANCZOS), (left, top))
        bar = max(1, round(weight / max(looked.weights) * glance_side))
        bar_top = top + glance_side + 2
        draw.rectangle((left, bar_top, left + bar - 1, bar_top + BAR_HEIGHT - 3), fill=BAR)
        write(left, bar_top + BAR_HEIGHT - 2, f"{100 * weight:.1f} %")
    rectangles = "a rectangle of each" if config.variant == "pooling" else "the same rectangle of each"
    write(
        GAP,
        focus_top,
        f"{len(looked.focus)} of {config.num_candidates} candidates to focus on, by number; {rectangles}, "
        f"width x height in pixels, is seen as {config.patch_size} x {config.patch_size} points",
    )
    for number, (place, box) in enumerate(zip(looked.focus, looked.boxes, strict=True)):
        row, column = divmod(number, columns)
        left, top = GAP + column * (FOCUS_SIDE + GAP), focus_top + LINE_HEIGHT + row * row_height
        y1, x1, y2, x2 = box
        write(left, top, f"frame {place - first + 1}: {x2 - x1:.0f} x {y2 - y1:.0f}")
        canvas.paste(_focused(images[place], box), (left, top + LINE_HEIGHT))
    return canvas


def _focused(image: Image.Image, box: tuple[float, float, float, float]) -> Image.Image:
    """A frame of the picture, dark outside of the rectangle, which has an edge."""
    scale = FOCUS_SIDE / image.width
    y1, x1, y2, x2 = (round(scale * side) for side in box)
    frame = image.resize((FOCUS_SIDE, FOCUS_SIDE), Image.Resampling.LANCZOS)
    faded = Image.blend(frame, Image.new("RGB", frame.size, "black"), FADED)
    faded.paste(frame.crop((x1, y1, x2, y2)), (x1, y1))
    ImageDraw.Draw(faded).rectangle((x1, y1, x2 - 1, y2 - 1), outline=RECTANGLE, width=2)
    return faded


def _image(frame: Tensor) -> Image.Image:
    """(3, h, w) in 0 ... 1."""
    return Image.fromarray((255 * frame).round().to(torch.uint8).movedim(0, -1).contiguous().numpy())
