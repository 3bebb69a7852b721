"""Efficient video models: trained, evaluated, and used on the clips that vidprep makes.

`from_pretrained` loads a trained model, `save_pretrained` and `push` hand one on. What takes long to import is imported
when one of them is first asked for.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vidmodels.hub import PretrainedModel, from_pretrained, push, save_pretrained

__all__ = ["PretrainedModel", "from_pretrained", "push", "save_pretrained"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from vidmodels import hub

    return getattr(hub, name)
