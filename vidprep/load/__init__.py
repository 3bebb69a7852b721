"""From prepared videos to batches of clips, for any training loop."""

from vidprep.load.dataset import ClipDataset, ClipOptions, ClipSettings, open_videos
from vidprep.load.loader import Loader, SampleSource, make_loader
from vidprep.load.shards import ShardDataset
from vidprep.load.transforms import EvalTransform, TrainTransform, crop_offsets, multiscale_crop_sizes
from vidprep.load.types import Batch, Sample

__all__ = [
    "Batch",
    "ClipDataset",
    "ClipOptions",
    "ClipSettings",
    "EvalTransform",
    "Loader",
    "Sample",
    "SampleSource",
    "ShardDataset",
    "TrainTransform",
    "crop_offsets",
    "make_loader",
    "multiscale_crop_sizes",
    "open_videos",
]
