"""From prepared videos to batches of clips, for any training loop."""

from vidprep.load.dataset import ClipDataset, ClipOptions, ClipSettings, open_videos
from vidprep.load.loader import BufferedSource, Loader, LoadFault, PlannedSource, SampleSource, make_loader
from vidprep.load.on_demand import ClipOnDemand, ClipsOnDemand, iterate_on_demand
from vidprep.load.remote import ShardCache
from vidprep.load.sequences import FrameSequence, SequenceDataset, SequenceFrame, open_sequences
from vidprep.load.shards import ShardDataset
from vidprep.load.transforms import (
    BoxMap,
    EvalTransform,
    FitTransform,
    TrainTransform,
    crop_offsets,
    multiscale_crop_sizes,
    normalise,
)
from vidprep.load.types import Batch, FrameTargets, Sample, Targets
from vidprep.load.wds_pipeline import ClipPipeline, webdataset

__all__ = [
    "Batch",
    "BoxMap",
    "BufferedSource",
    "ClipDataset",
    "ClipOnDemand",
    "ClipOptions",
    "ClipPipeline",
    "ClipSettings",
    "ClipsOnDemand",
    "EvalTransform",
    "FitTransform",
    "FrameSequence",
    "FrameTargets",
    "LoadFault",
    "Loader",
    "PlannedSource",
    "Sample",
    "SampleSource",
    "SequenceDataset",
    "SequenceFrame",
    "ShardCache",
    "ShardDataset",
    "Targets",
    "TrainTransform",
    "crop_offsets",
    "iterate_on_demand",
    "make_loader",
    "multiscale_crop_sizes",
    "normalise",
    "open_sequences",
    "open_videos",
    "webdataset",
]
