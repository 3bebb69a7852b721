"""Shards of a few sequences of the toy detection set, and a detector of it that is built in a blink."""

from pathlib import Path
from unittest import mock

from vidprep.datasets import toy_detection
from vidprep.datasets.imagenet_vid import annotation_folder
from vidprep.shard import shard
from vidprep.types import FrameFormat

TINY = (
    "model.channels=8",
    "model.shape.width=24",
    "model.shape.depth=2",
    "model.shape.num_heads=2",
    "model.shape.global_blocks=[1]",
    "train.epochs=1",
    "data.num_frames=2",
)
"""Changes to the recipe rgtp_vitdet/toy that make it quick, and too small to learn much."""


def write_detection_shards(
    folder: Path, *, train: int = 2, val: int = 2, with_boxes: bool = True, damaged: str = ""
) -> Path:
    """Splits train and val with so many sequences of 24 frames; one of them may lack a frame, and so is in no shard."""
    with mock.patch.object(toy_detection, "NUM_SEQUENCES", {"train": train, "val": val}):
        toy_detection.generate(folder / "data")
        if damaged:
            (folder / "data" / "Data" / "VID" / "val" / damaged / "000005.JPEG").unlink()
        for name in ("train", "val"):
            split = toy_detection.build_split(name)
            frames = {
                video.video_id: folder / "data" / "Data" / "VID" / name / video.video_id for video in split.videos
            }
            shard(
                split,
                frames,
                out=folder / "shards",
                content="frames",
                frames=FrameFormat(),
                delivered=toy_detection.INFO.frames,
                annotations={name: annotation_folder(path) for name, path in frames.items()} if with_boxes else None,
                read_boxes=toy_detection.read_annotations if with_boxes else None,
            )
    return folder / "shards"
