"""What `KEY.json` of a sample says beside its frames: when each is shown, and the objects in it."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from vidprep.errors import CorruptShard
from vidprep.types import Box

__all__ = ["KeyFacts"]


@dataclass(frozen=True, kw_only=True)
class KeyFacts:
    """The facts of one sample, checked when they are asked for.

    Raises:
        CorruptShard: they are not what they should be; names the shard and the sample.
    """

    values: Mapping[str, Any]
    where: str
    """The shard and the file's name in it, for messages."""

    @classmethod
    def parse(cls, data: bytes | memoryview, *, where: str) -> Self:
        """Read the text of `KEY.json`."""
        try:
            values = json.loads(str(data, "utf-8"))
        except ValueError as error:
            raise CorruptShard(f"{where} is no JSON object ({error}); run `vidprep verify`.") from error
        if not isinstance(values, dict):
            raise CorruptShard(f"{where} is no JSON object but a {type(values).__name__}; run `vidprep verify`.")
        return cls(values=values, where=where)

    def times(self, num_frames: int) -> NDArray[np.float64]:
        """(num_frames,) when each frame of a frame sample is shown in its video; NaN where that is not known."""
        try:
            times = np.array(self.values["pts_seconds"], dtype=np.float64)  # null -> NaN
        except (ValueError, KeyError, TypeError) as error:
            raise self._fault(f"holds no times of the frames ({error!r})") from error
        if times.shape != (num_frames,):
            raise self._fault(f"holds times of shape {times.shape} for {num_frames} frames")
        return times

    def boxes(self, num_frames: int) -> Callable[[int], list[Box]] | None:
        """The objects of each frame of a detection sample, by its index; None where there are no annotations."""
        if "boxes" not in self.values:
            return None
        per_frame = self.values["boxes"]
        if not isinstance(per_frame, list) or len(per_frame) != num_frames:
            raise self._fault(f"does not hold boxes for each of {num_frames} frames")

        def of_frame(index: int) -> list[Box]:
            try:
                return [
                    Box(
                        xyxy=(box["xyxy"][0], box["xyxy"][1], box["xyxy"][2], box["xyxy"][3]),
                        label=box["label"],
                        track_id=box["track_id"],
                        is_occluded=box["occluded"],
                        is_generated=box["generated"],
                    )
                    for box in per_frame[index]
                ]
            except (ValueError, KeyError, TypeError, IndexError) as error:
                raise self._fault(f"holds a box of frame {index} that is none ({error!r})") from error

        return of_frame

    def _fault(self, what: str) -> CorruptShard:
        return CorruptShard(f"{self.where} {what}; run `vidprep verify`.")
