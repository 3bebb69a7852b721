"""The methods, by name."""

from collections.abc import Mapping

from vidmodels.methods import rgtp, sta, tam, taps, uni_adafocus
from vidmodels.types import Method

__all__ = ["ALIASES", "METHODS"]

METHODS: Mapping[str, Method] = {
    "taps": taps.METHOD,
    "sta": sta.METHOD,
    "rgtp_vivit": rgtp.VIVIT,
    "tam": tam.METHOD,
    "uni_adafocus": uni_adafocus.METHOD,
    "rgtp_vitdet": rgtp.VITDET,
}

ALIASES: Mapping[str, str] = {"rgtp": "rgtp_vivit"}
"""What a method may also be called when its pictures or recipes are shown: a paper's name, where it has two methods."""
