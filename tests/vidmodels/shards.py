"""Real shards of eight numbered videos a split, and a TAPS small enough for them."""

from pathlib import Path

from tests.vidprep.load.folders import numbered_sources, write_shard_folder
from vidprep.types import Video

TINY = (
    "data.dataset=numbers",
    "data.num_frames=4",
    "data.resize=32",
    "data.crop=32",
    "model.depths=[1, 1]",
    "model.widths=[8, 16]",
    "model.hidden_dim=8",
    "model.sparsity_warmup_start=1",
    "model.sparsity_warmup_end=2",
    "model.static_macs_image_size=32",
    "train.epochs=2",
    "train.batch_size=4",
    "eval.best_from_epoch=0",
)
"""Changes to the recipe taps/toy that make it fit and quick."""


def write_tiny_shards(folder: Path, *, num_classes: int = 4) -> Path:
    """Splits train and val, eight videos each."""
    (folder / "videos").mkdir()
    for split in ("train", "val"):
        videos = [Video(video_id=f"{split}{k}", labels=(k % num_classes,)) for k in range(8)]
        sources = numbered_sources(folder / "videos", videos, num_frames=12)
        write_shard_folder(folder / "shards", sources, num_classes=num_classes, split=split, per_shard=4)
    return folder / "shards"
