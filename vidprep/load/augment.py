"""Random changes of training clips, each the same in all frames: operations of RandAugment, crops, erased boxes.

Every number comes from the generator that is passed in: what happens to a clip does not depend on threads or on other
clips. (timm's and torchvision's own classes draw from global states and choose anew for each frame.)
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from vidprep.errors import UsageError

__all__ = ["Operation", "RandAugment", "apply_operations", "erased_box", "random_resized_box"]

Operation = tuple[str, tuple[float, ...]]
"""Name, and arguments."""

FILL = (128, 128, 128)
"""Colour of what an operation moves in from outside."""
MAX_MAGNITUDE = 10.0


def _signed(level: float, sign: int) -> tuple[float]:
    return (sign * level,)


def _factor(level: float, sign: int) -> tuple[float]:
    return (max(0.1, 1.0 + sign * level),)


_Arguments = Callable[[float, int], tuple[float, ...]]
OPERATIONS: Mapping[str, _Arguments] = {
    "AutoContrast": lambda _, __: (),
    "Equalize": lambda _, __: (),
    "Invert": lambda _, __: (),
    "Rotate": lambda m, sign: _signed(30 * m, sign),  # degrees
    "PosterizeIncreasing": lambda m, _: (4 - int(4 * m),),  # bits that are kept
    "SolarizeIncreasing": lambda m, _: (256 - min(256, int(256 * m)),),  # threshold
    "SolarizeAdd": lambda m, _: (min(128, int(110 * m)),),
    "ColorIncreasing": lambda m, sign: _factor(0.9 * m, sign),
    "ContrastIncreasing": lambda m, sign: _factor(0.9 * m, sign),
    "BrightnessIncreasing": lambda m, sign: _factor(0.9 * m, sign),
    "SharpnessIncreasing": lambda m, sign: _factor(0.9 * m, sign),
    "ShearX": lambda m, sign: _signed(0.3 * m, sign),
    "ShearY": lambda m, sign: _signed(0.3 * m, sign),
    "TranslateXRel": lambda m, sign: _signed(0.45 * m, sign),  # of the side
    "TranslateYRel": lambda m, sign: _signed(0.45 * m, sign),
}
"""timm's name -> its arguments, from the magnitude in 0 ... 1 and a sign. The set "increasing"."""


@dataclass(frozen=True, kw_only=True)
class RandAugment:
    """`num_operations` of 15, drawn with replacement, each applied half of the time, alike in all frames of a clip.

    The operations are timm's, on PIL images. Source: RandAugment (Cubuk et al., 2020) as in VideoMAE,
    `rand_augment.py`, "rand-m7-n4-mstd0.5-inc1".
    """

    magnitude: float
    """0 ... 10."""
    num_operations: int
    magnitude_std: float = 0.0
    """Each applied operation draws its own magnitude, from a normal of this deviation."""
    probability: float = 0.5

    @classmethod
    def parse(cls, text: str) -> "RandAugment":
        """From timm's notation: rand-mM-nN[-mstdS]-inc1.

        Raises:
            UsageError: something else.
        """
        found = re.fullmatch(r"rand-m(\d+(?:\.\d+)?)-n(\d+)(?:-mstd(\d+(?:\.\d+)?))?-inc1", text)
        if not found or float(found[1]) > MAX_MAGNITUDE or int(found[2]) < 1:
            raise UsageError(
                f"rand_augment {text!r}: expected rand-mM-nN[-mstdS]-inc1 with a magnitude M of 0 to 10 and at least "
                "one operation, such as rand-m7-n4-mstd0.5-inc1."
            )
        return cls(magnitude=float(found[1]), num_operations=int(found[2]), magnitude_std=float(found[3] or 0))

    def __call__(self, frames: Tensor, rng: np.random.Generator) -> Tensor:
        """Change one clip, (t, 3, h, w) uint8 -> the same."""
        drawn = self.draw(rng)
        if not drawn:
            return frames
        changed = [apply_operations(frame, drawn) for frame in frames.movedim(1, -1).contiguous().numpy()]
        return torch.from_numpy(np.stack(changed)).movedim(-1, 1)

    def draw(self, rng: np.random.Generator) -> list[Operation]:
        """Names and arguments of the operations to apply, in this order."""
        drawn = []
        names = list(OPERATIONS)
        for index in rng.integers(0, len(names), size=self.num_operations):
            if rng.random() >= self.probability:
                continue
            magnitude = np.clip(rng.normal(self.magnitude, self.magnitude_std), 0, MAX_MAGNITUDE) / MAX_MAGNITUDE
            sign = 1 if rng.random() < 0.5 else -1
            drawn.append((names[index], OPERATIONS[names[index]](float(magnitude), sign)))
        return drawn


def apply_operations(frame: NDArray[np.uint8], operations: Sequence[Operation]) -> NDArray[np.uint8]:
    """Change one frame, (h, w, 3) -> the same."""
    known = _timm_operations()
    image = Image.fromarray(frame)
    for name, arguments in operations:
        image = known[name](image, *arguments, fillcolor=FILL, resample=Image.Resampling.BICUBIC)
    return np.asarray(image)


@cache
def _timm_operations() -> Mapping[str, Callable[..., Image.Image]]:
    from timm.data import auto_augment  # takes seconds to import

    known: Mapping[str, Any] = auto_augment.NAME_TO_OP
    return known


def random_resized_box(
    height: int,
    width: int,
    rng: np.random.Generator,
    *,
    area: tuple[float, float] = (0.08, 1.0),
    aspect: tuple[float, float] = (3 / 4, 4 / 3),
) -> tuple[int, int, int, int]:
    """A random part of a frame: (top, left, height, width) in pixels.

    Its share of the area is uniform, the logarithm of width / height too; after 10 tries that do not fit, the largest
    central part whose aspect is allowed.

    Source: Inception's crop as in torchvision's `RandomResizedCrop.get_params`.
    """
    for _ in range(10):
        target = rng.uniform(*area) * height * width
        ratio = math.exp(rng.uniform(math.log(aspect[0]), math.log(aspect[1])))
        box_width, box_height = round(math.sqrt(target * ratio)), round(math.sqrt(target / ratio))
        if 0 < box_width <= width and 0 < box_height <= height:
            top, left = rng.integers(0, height - box_height + 1), rng.integers(0, width - box_width + 1)
            return int(top), int(left), box_height, box_width
    box_width = min(width, round(height * aspect[1]))
    box_height = min(height, round(width / aspect[0]))
    return (height - box_height) // 2, (width - box_width) // 2, box_height, box_width


def erased_box(height: int, width: int, rng: np.random.Generator) -> tuple[int, int, int, int] | None:
    """The part of a frame that random erasing fills with noise: (top, left, height, width); None where none fits.

    Its share of the area is uniform in 2 % ... 1/3, the logarithm of height / width between those of 0.3 and 1 / 0.3.

    Source: Zhong et al., 2020, as timm's `RandomErasing`, count 1.
    """
    for _ in range(10):
        target = rng.uniform(0.02, 1 / 3) * height * width
        ratio = math.exp(rng.uniform(math.log(0.3), math.log(1 / 0.3)))
        box_height, box_width = round(math.sqrt(target * ratio)), round(math.sqrt(target / ratio))
        if box_height < height and box_width < width:
            top, left = rng.integers(0, height - box_height + 1), rng.integers(0, width - box_width + 1)
            return int(top), int(left), box_height, box_width
    return None
