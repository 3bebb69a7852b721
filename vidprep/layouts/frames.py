"""Which numbered frames lie in a folder: only the files of the right name count, others (flow x_*.jpg) do not."""

import os
import re
from pathlib import Path

from vidprep.types import FrameFormat

__all__ = ["find_hole", "list_numbers"]


def list_numbers(folder: Path, template: str) -> list[int]:
    """The numbers of the frames in `folder`, ascending; [] where there is no such folder."""
    prefix, suffix = template.split("{")[0], template.rpartition("}")[2]
    name = re.compile(re.escape(prefix) + r"(\d+)" + re.escape(suffix))
    try:
        with os.scandir(folder) as entries:
            matches = [match for entry in entries if (match := name.fullmatch(entry.name))]
    except (FileNotFoundError, NotADirectoryError):
        return []
    return sorted(int(match[1]) for match in matches if template.format(int(match[1])) == match[0])


def find_hole(folder: Path, settings: FrameFormat, *, num_frames: int | None = None, is_part: bool = False) -> str:
    """What is wrong with the frames of a folder, or "".

    Args:
        folder: of one video.
        settings: how the frames are called, and the number of the first one.
        num_frames: how many there should be; None: as many as there are (at least one), without holes.
        is_part: the folder may hold further frames.
    """
    if not folder.is_dir():
        return "no such folder"
    numbers = list_numbers(folder, settings.template)
    first = settings.first_index
    last = first + num_frames - 1 if num_frames is not None else max(numbers, default=first)
    missing = sorted(set(range(first, last + 1)) - set(numbers))
    extra = [number for number in numbers if not (is_part or first <= number <= last)]
    parts = []
    if missing:
        names = ", ".join(settings.template.format(number) for number in missing[:3])
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        parts.append(f"{names}{more} {'is' if len(missing) == 1 else 'are'} missing")
    if extra:
        parts.append(f"{len(extra)} frames besides ({settings.template.format(extra[0])} ...)")
    if not parts:
        return ""
    expected = f", expected {num_frames}" if num_frames is not None else ""
    return f"holds {len(numbers)} frames{expected}: {'; '.join(parts)}"
