"""What the golden cases of all methods share: how a component is called, and how its arrays are brought to numbers."""

from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from vidprep.errors import VidprepError

__all__ = ["Array", "Component", "Config", "UnsupportedCase", "stats", "to_array"]

Array = NDArray[Any]
Config = Mapping[str, Any]
"""The settings of a case, as its file has them."""
Component = Callable[[Config, Mapping[str, Any], dict[str, Tensor], Collection[str]], Mapping[str, Array]]
"""(config, inputs, published state dict, wanted output names) -> arrays. It may empty the state dict as it goes."""


class UnsupportedCase(VidprepError):
    """A case whose settings contradict each other or are none of ours."""


def to_array(value: Tensor | Array | float) -> Array:
    """As NumPy has it; a tensor's memory is shared."""
    return value.detach().numpy() if isinstance(value, Tensor) else np.asarray(value)


def stats(x: Tensor | Array | float) -> Array:
    """(10,) float64: mean, population standard deviation, first 8 values."""
    values = to_array(x).astype(np.float64)
    return np.concatenate([[values.mean(), values.std()], values.reshape(-1)[:8]])
