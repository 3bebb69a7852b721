"""The methods, by name."""

from collections.abc import Mapping

from vidmodels.methods import taps
from vidmodels.types import Method

__all__ = ["METHODS"]

METHODS: Mapping[str, Method] = {
    "taps": taps.METHOD,
}
