"""Pictures of what a method keeps of a video."""

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL.Image import Image

from vidmodels.checkpoints import write_atomically
from vidmodels.data import clip_of_file, known_classes
from vidmodels.methods import METHODS
from vidmodels.recipes import load_recipe
from vidmodels.runs import find_run, load_model
from vidmodels.streams import stream_of_file
from vidprep.errors import UsageError

__all__ = ["draw_video"]


def draw_video(name: str, video: Path, out: Path, *, weights: Path | None = None, overrides: Sequence[str] = ()) -> str:
    """Draw what a model keeps of the central clip of a video, of detectors the central frames, and write the picture.

    Args:
        name: a method, whose usual recipe is taken unless `weights` bring theirs; or a recipe.
        video: the file; for detectors also a folder of numbered images.
        out: the picture, .png.
        weights: run folder or checkpoint; None: random weights.
        overrides: changes to the recipe.

    Returns:
        What was drawn, in a sentence.

    Raises:
        UsageError: a method without pictures, nothing to draw, or another ending than .png.
    """
    if out.suffix != ".png" or not out.absolute().parent.is_dir():
        raise UsageError(f"{out}: expected a name ending in .png, in a folder that exists.")
    is_method = name in METHODS
    recipe_name = name if not is_method else METHODS[name].drawn_recipe
    if weights is not None:
        run = find_run(weights, recipe=None if is_method else name, overrides=overrides)
        recipe = run.recipe
    else:
        if is_method and not recipe_name:
            raise UsageError(f"{name} has no pictures; `vidmodels show RECIPE` prints a recipe.")
        recipe = load_recipe(recipe_name, overrides)
    method = METHODS[recipe.method]
    if method.draw is None:
        raise UsageError(f"{method.name} has no pictures; `vidmodels show RECIPE` prints a recipe.")
    is_stream = recipe.data.fit == "pad"
    clip = stream_of_file(recipe, video) if is_stream else clip_of_file(recipe, video)
    num_classes = known_classes(recipe.data)
    if num_classes is None:
        raise UsageError(f"recipe {recipe.name} does not say how many classes there are; add --set data.num_classes=K.")
    if weights is not None:
        model = load_model(run, num_classes=num_classes)
    else:
        torch.manual_seed(0)
        model = method.build(recipe.model, num_classes).eval()
    if is_stream:
        pixels = clip / 255
    else:
        pixels = clip * torch.tensor(recipe.data.std).view(3, 1, 1) + torch.tensor(recipe.data.mean).view(3, 1, 1)
    picture: Image = method.draw(model, clip, pixels)
    write_atomically(out, lambda file: picture.save(file, format="png"))
    said = f"weights of {weights}" if weights is not None else "RANDOM weights (give trained ones with --weights)"
    return f"{out}: {video.name} as {recipe.method}/{recipe.name} sees it, with {said}"
