"""Settings of a recipe that are passed on to another package, checked against what takes them."""

import inspect
from collections.abc import Callable, Collection, Mapping
from numbers import Real

from vidprep.errors import suggest

__all__ = ["option_faults"]


def option_faults(
    options: Mapping[str, object],
    function: Callable[..., object],
    *,
    what: str,
    instead: Mapping[str, str],
    hidden: Collection[str] = (),
) -> list[str]:
    """Options that a function has no argument for, or that are nothing like the argument's default; a sentence each.

    Args:
        options: name -> value.
        function: a function or a class.
        what: the function, in words: "timm's lamb".
        instead: arguments that are set in another way, and in which.
        hidden: arguments that are none of the user's.
    """
    arguments = {
        name: argument for name, argument in inspect.signature(function).parameters.items() if name not in hidden
    }
    faults = []
    for name, value in options.items():
        if name in instead:
            faults.append(f"{name}: set {instead[name]} instead")
        elif name not in arguments:
            faults.append(f"{name}: no argument of {what}, {suggest(name, arguments.keys() - instead.keys())}")
        elif not _is_like(value, arguments[name].default):
            faults.append(f"{name}: {what} has {arguments[name].default!r} there, got {value!r}")
    return faults


def _is_like(value: object, default: object) -> bool:
    """Whether a value is of a default's kind: a truth value, a number, a text, so many numbers."""
    if isinstance(default, tuple):
        return isinstance(value, tuple | list) and len(value) == len(default)
    if isinstance(default, bool) or isinstance(value, bool):
        return isinstance(value, bool) and (isinstance(default, bool) or default is None)
    if isinstance(default, Real):
        return isinstance(value, Real)
    return not isinstance(default, str) or isinstance(value, str)
