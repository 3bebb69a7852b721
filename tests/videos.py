"""Numbered videos for the tests, drawn by `vidprep.miniature.videos`, and the plain decode as their measure."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from vidprep.miniature.videos import MAX_NUMBER, SecondStream, number_image, read_number, write_numbered_video

__all__ = ["MAX_NUMBER", "SecondStream", "decode_plainly", "number_image", "read_number", "write_numbered_video"]


def decode_plainly(path: Path | str) -> Iterator[NDArray[np.uint8]]:
    """Every frame (c, h, w) of the best video stream, upright: what all readers are measured against."""
    with av.open(f"file:{path}") as container:
        stream: Any = container.streams.best("video")
        for frame in container.decode(stream):
            picture = frame.to_ndarray(format="rgb24")
            yield np.rot90(picture, round(frame.rotation / 90)).transpose(2, 0, 1)
