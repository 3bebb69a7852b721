"""Miniatures: small, valid copies of data sets in their official form, made from generated videos, traps included.

Each frame shows a number that no other frame of the miniature shows (`read_number`), so whatever becomes of it, its
pixels say which frame of which video it is. `expected.json` says what must come out.
"""

import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from vidprep import engine
from vidprep.errors import UnknownName, UsageError, suggest
from vidprep.miniature import activitynet, epic_kitchens, fcvid, imagenet_vid, kinetics, twenty_bn
from vidprep.miniature.plan import (
    EXPECTED,
    Content,
    ExpectedFault,
    ExpectedSample,
    ExpectedSplit,
    Miniature,
    Workshop,
    read_miniature,
)
from vidprep.miniature.videos import number_image, read_number

__all__ = [
    "MAKERS",
    "ExpectedFault",
    "ExpectedSample",
    "ExpectedSplit",
    "Miniature",
    "make_miniature",
    "number_image",
    "read_miniature",
    "read_number",
]

MAKERS: Mapping[str, Callable[[str, Path, Workshop, np.random.Generator], Content]] = {
    "kinetics400": kinetics.make,
    "kinetics600": kinetics.make,
    "kinetics700": kinetics.make,
    "mini_kinetics": kinetics.make,
    "mini_kinetics_xie2018": kinetics.make,
    "something_v2": twenty_bn.make,
    "something_v1": twenty_bn.make,
    "jester": twenty_bn.make,
    "activitynet": activitynet.make,
    "fcvid": fcvid.make,
    "epic_kitchens": epic_kitchens.make,
    "imagenet_vid": imagenet_vid.make,
}
"""Data set -> what writes its archives and annotations."""


def make_miniature(name: str, out: Path, *, seed: int = 0) -> Miniature:
    """Write a miniature of a data set: all of it or, when something goes wrong, nothing.

        OUT/archives/      what a user who was given the data set has: for `vidprep download NAME --from OUT/archives`
        OUT/annotations/   the official annotation files: for `vidprep split NAME --annotations ...`
        OUT/expected.json  what must come out of it, and which traps are in it; also what is returned

    The same seed gives the same bytes with one build of FFmpeg and its encoders; another one other ids and times.

    Args:
        name: one of `MAKERS`.
        out: a folder that is not there yet, or empty.
        seed: of all that is drawn by lot.

    Raises:
        UnknownName: there is no miniature of this name; the message lists the nearest.
        UsageError: there is something at `out` already, or the seed is negative.
        CannotWrite: no space, no permission.
    """
    if name not in MAKERS:
        raise UnknownName(f"no miniature of a data set {name!r}; {suggest(name, MAKERS)}")
    if seed < 0:
        raise UsageError(f"a seed is 0 or more, got {seed}.")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out}: there is something already; give a new or empty folder for the miniature.")
    with engine.writing(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".part", dir=out.parent))
        try:
            target = scratch / "miniature"
            target.mkdir()
            rng = np.random.default_rng([seed, list(MAKERS).index(name)])
            content = MAKERS[name](name, target, Workshop(folder=scratch / "unpacked"), rng)
            miniature = Miniature(
                dataset=name,
                seed=seed,
                folder=out,
                annotations=content.annotations,
                splits=content.splits,
                traps=content.traps,
            )
            (target / EXPECTED).write_text(miniature.to_json(), encoding="utf-8")
            target.replace(out)  # takes the place of an empty folder, too
        finally:
            shutil.rmtree(scratch)
    return miniature
