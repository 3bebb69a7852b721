"""Shards of a few clips of the toy data set, of which the recipes `toy` learn for an epoch in a second or two."""

from pathlib import Path
from unittest import mock

from vidprep.datasets import toy
from vidprep.shard import shard

__all__ = ["ONE_EPOCH", "write_toy_clips"]

ONE_EPOCH = ("train.epochs=1", "train.batch_size=8", "train.warmup_epochs=0", "eval.best_from_epoch=0")
"""Changes to a toy recipe that make its training one short epoch."""


def write_toy_clips(folder: Path) -> Path:
    """16 clips to train on and 8 to validate, in `folder`/SHARDS; the videos lie in `folder`/videos."""
    with mock.patch.object(toy, "NUM_SCENES", {"train": 2, "val": 1}):
        toy.generate(folder / "videos")
        for name in ("train", "val"):
            split = toy.build_split(name)
            videos = folder / "videos" / "videos" / name
            paths = {video.video_id: videos / f"{video.video_id}.mp4" for video in split.videos}
            shard(split, paths, out=folder / "SHARDS", samples_per_shard=8)
    return folder / "SHARDS"
