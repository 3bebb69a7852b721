"""The clips of a recipe: one split of a shard folder, sampled and cropped as the recipe says."""

from pathlib import Path

from vidmodels.types import Data, Recipe
from vidprep.datasets import DATASETS
from vidprep.errors import UsageError
from vidprep.load.shards import ShardDataset

__all__ = ["known_classes", "open_split"]


def open_split(recipe: Recipe, folder: Path, split: str, *, train: bool) -> ShardDataset:
    """One split of the shards in `folder`.

    Args:
        recipe: its `data` says how clips are made, its `eval` how many there are of a video.
        folder: what `vidprep shard --out` wrote.
        split: of those in the folder.
        train: one random clip of each video, instead of the fixed ones.

    Raises:
        UsageError: no such folder or split, or the shards hold another data set than the recipe's.
        CorruptShard: the shards are not what their index says.
    """
    data = recipe.data
    dataset = ShardDataset(
        folder,
        split,
        num_frames=data.num_frames,
        sampler=data.train_sampler,
        dense_window=data.dense_window,
        short=data.short,
        train=train,
        num_clips=1 if train else recipe.eval.num_clips,
        num_crops=1 if train else recipe.eval.num_crops,
        resize=data.resize,
        crop=data.crop,
        scales=data.train_scales,
        max_aspect_step=data.max_aspect_step,
        flip=data.flip,
        mean=data.mean,
        std=data.std,
        seed=recipe.train.seed if recipe.train else 0,
    )
    manifest, expected = dataset.manifest, known_classes(data)
    if manifest.dataset != data.dataset or expected not in (None, len(manifest.classes)):
        raise UsageError(
            f"{folder}: holds {manifest.dataset} ({len(manifest.classes)} classes), but recipe {recipe.name} is for "
            f"{data.dataset}{f' ({expected} classes)' if expected else ''}; give its shards, or say "
            f"--set data.dataset={manifest.dataset} to use these."
        )
    return dataset


def known_classes(data: Data) -> int | None:
    """Number of classes that a recipe's data have: as it says itself, or as vidprep knows; None: the shards say."""
    info = DATASETS.get(data.dataset)
    return data.num_classes or (info.num_classes if info else None)
