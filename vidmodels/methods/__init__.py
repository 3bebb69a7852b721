"""The methods, by name."""

from collections.abc import Mapping

from vidmodels.methods import rgtp, sta, tam, taps, uni_adafocus
from vidmodels.types import Method

__all__ = ["METHODS"]

METHODS: Mapping[str, Method] = {
    "taps": taps.METHOD,
    "sta": sta.METHOD,
    "rgtp_vivit": rgtp.VIVIT,
    "tam": tam.METHOD,
    "uni_adafocus": uni_adafocus.METHOD,
    "rgtp_vitdet": rgtp.VITDET,
}
