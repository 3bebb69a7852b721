"""Where six code bases expect the frames and lists of each data set. A layout is data; a code base is one file here."""

from vidprep.errors import UnknownName, UsageError, suggest
from vidprep.layouts import mmaction2, rgtp, sta, tam, taps, uni_adafocus
from vidprep.layouts.types import Entry, Layout, class_folder, describe_frames

__all__ = ["LAYOUTS", "Entry", "Layout", "class_folder", "describe_frames", "find_layout"]

LAYOUTS: dict[str, tuple[Layout, ...]] = {
    "taps": taps.LAYOUTS,
    "uni_adafocus": uni_adafocus.LAYOUTS,
    "tam": tam.LAYOUTS,
    "rgtp": rgtp.LAYOUTS,
    "sta": sta.LAYOUTS,
    "mmaction2": mmaction2.LAYOUTS,
}


def find_layout(code: str, dataset: str, variant: str = "") -> Layout:
    """The layout of one code base for one data set.

    Raises:
        UnknownName: no such code base or variant.
        UsageError: the code base has no layout for the data set; the message names those it has.
    """
    if code not in LAYOUTS:
        raise UnknownName(f"no layout {code!r}; {suggest(code, LAYOUTS)}")
    of_dataset = {layout.variant: layout for layout in LAYOUTS[code] if layout.dataset == dataset}
    if not of_dataset:
        known = ", ".join(dict.fromkeys(layout.dataset for layout in LAYOUTS[code]))
        raise UsageError(f"{code} has no layout for {dataset!r}; it has {known}.")
    if variant not in of_dataset:
        variants = ", ".join(name or "(none)" for name in of_dataset)
        raise UnknownName(f"{code}/{dataset} has no variant {variant!r}; it has {variants}.")
    return of_dataset[variant]
