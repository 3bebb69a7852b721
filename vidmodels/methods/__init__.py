"""The methods, by name."""

from collections.abc import Mapping

from vidmodels.methods import tam, taps
from vidmodels.types import Method

__all__ = ["METHODS"]

METHODS: Mapping[str, Method] = {
    "taps": taps.METHOD,
    "tam": tam.METHOD,
}
