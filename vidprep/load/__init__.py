"""From prepared videos to batches of clips, for any training loop."""

from vidprep.load.dataset import ClipDataset, ClipOptions, ClipSettings, open_videos
from vidprep.load.loader import Loader, SampleSource, make_loader
from vidprep.load.shards import ShardDataset
from vidprep.load.transforms import BoxMap, EvalTransform, TrainTransform, crop_offsets, multiscale_crop_sizes
from vidprep.load.types import Batch, FrameTargets, Sample, Targets

__all__ = [
    "Batch",
    "BoxMap",
    "ClipDataset",
    "ClipOptions",
    "ClipSettings",
    "EvalTransform",
    "FrameTargets",
    "Loader",
    "Sample",
    "SampleSource",
    "ShardDataset",
    "Targets",
    "TrainTransform",
    "crop_offsets",
    "make_loader",
    "multiscale_crop_sizes",
    "open_videos",
]
