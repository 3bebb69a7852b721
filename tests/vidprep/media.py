"""Folders of numbered frames, and the XML files of boxes on them, as data sets deliver them."""

from collections.abc import Sequence
from pathlib import Path

import simplejpeg

from tests.videos import number_image
from vidprep.types import Box

__all__ = ["write_boxes", "write_frames"]


def write_frames(
    folder: Path,
    num_frames: int,
    *,
    start: int = 0,
    template: str = "{:05d}.jpg",
    first_index: int = 1,
    size: tuple[int, int] = (64, 48),
) -> Path:
    """A folder of JPEG files whose i-th shows `start` + i."""
    folder.mkdir(parents=True)
    for index in range(num_frames):
        image = simplejpeg.encode_jpeg(number_image(start + index, width=size[0], height=size[1]), quality=95)
        (folder / template.format(first_index + index)).write_bytes(image)
    return folder


def write_boxes(
    folder: Path, boxes: Sequence[Sequence[Box]], *, synsets: Sequence[str], size: tuple[int, int] = (64, 48)
) -> Path:
    """A folder of ILSVRC's XML files, one a frame."""
    folder.mkdir(parents=True)
    for index, of_frame in enumerate(boxes):
        objects = "".join(
            f"<object><trackid>{box.track_id}</trackid><name>{synsets[box.label]}</name><bndbox>"
            f"<xmax>{box.xyxy[2]:g}</xmax><xmin>{box.xyxy[0]:g}</xmin><ymax>{box.xyxy[3]:g}</ymax>"
            f"<ymin>{box.xyxy[1]:g}</ymin></bndbox><occluded>{int(box.is_occluded)}</occluded>"
            f"<generated>{int(box.is_generated)}</generated></object>"
            for box in of_frame
        )
        (folder / f"{index:06d}.xml").write_text(
            f"<annotation><folder>{folder.name}</folder><filename>{index:06d}</filename>"
            f"<size><width>{size[0]}</width><height>{size[1]}</height></size>{objects}</annotation>"
        )
    return folder
