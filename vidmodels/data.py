"""The clips of a recipe: one split of a shard folder, sampled and cropped as the recipe says."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypedDict, Unpack

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vidmodels.types import Data, Recipe
from vidprep.datasets import DATASETS
from vidprep.errors import UsageError
from vidprep.load.dataset import ClipDataset, ClipOptions, ClipSettings
from vidprep.load.shards import ShardDataset
from vidprep.load.transforms import CropPlacement
from vidprep.sampling import ClipPlacement, Short
from vidprep.types import Video

__all__ = ["clip_of_file", "clip_of_frames", "clips_of_file", "known_classes", "open_split", "open_test_split"]


class _Changes(TypedDict, total=False):
    """Options of `ClipSettings` in which the splits of a recipe differ."""

    train: bool
    num_clips: int
    clip_placement: ClipPlacement
    num_crops: int
    crop_placement: CropPlacement
    resize: int
    crop: int
    short: Short


def open_split(recipe: Recipe, folder: Path, split: str, *, train: bool) -> ShardDataset:
    """One split of the shards in `folder`, as training reads it.

    Args:
        recipe: its `data` says how clips are made.
        folder: what `vidprep shard --out` wrote.
        split: of those in the folder.
        train: one random clip of each video; otherwise the central clip and crop.

    Raises:
        UsageError: no such folder or split, or the shards hold another data set than the recipe's.
        CorruptShard: the shards are not what their index says.
    """
    return _open(recipe, folder, split, train=train)


def open_test_split(recipe: Recipe, folder: Path, split: str) -> ShardDataset:
    """One split as the recipe's `eval` wants videos scored: all clips and crops of each.

    Raises:
        UsageError: as for `open_split`.
        CorruptShard: as for `open_split`.
    """
    return _open(recipe, folder, split, **_test_changes(recipe))


def _test_changes(recipe: Recipe) -> _Changes:
    """How scoring a video differs from the clip that training validates on."""
    how = recipe.eval
    return {
        "num_clips": how.num_clips,
        "clip_placement": how.clip_placement,
        "num_crops": how.num_crops,
        "crop_placement": how.crop_placement,
        "resize": recipe.eval_resize,
        "crop": recipe.eval_crop,
        "short": how.short or recipe.data.short,
    }


def clip_of_file(recipe: Recipe, video: Path) -> Tensor:
    """The central clip and crop of a video file, (t, c, h, w), as a model of this recipe gets it.

    Raises:
        MissingVideo: no such file.
        CorruptVideo: it does not decode.
    """
    return _views_of_file(video, {**_options(recipe), "resize": recipe.eval_resize, "crop": recipe.eval_crop})[0]


def clips_of_file(recipe: Recipe, video: Path) -> Tensor:
    """All clips and crops of a video file, (v, t, c, h, w), by which the recipe's `eval` scores a video.

    Raises:
        MissingVideo: no such file.
        CorruptVideo: it does not decode.
    """
    return _views_of_file(video, {**_options(recipe), **_test_changes(recipe)})


def clip_of_frames(recipe: Recipe, frames: Sequence[NDArray[np.uint8]]) -> Tensor:
    """The central clip and crop of frames at hand, (t, c, h, w), as if they were a whole video.

    Args:
        recipe: which of them are taken, and how they are cropped.
        frames: (h, w, 3) RGB each, of one size, at least one.
    """
    options: ClipOptions = {**_options(recipe), "resize": recipe.eval_resize, "crop": recipe.eval_crop}
    settings = ClipSettings(**options)
    chosen = np.stack([frames[index] for index in settings.indices(len(frames), None)[0]])
    return settings.eval_transform()(torch.from_numpy(chosen).permute(0, 3, 1, 2))[0]


def _views_of_file(video: Path, options: ClipOptions) -> Tensor:
    row = Video(video_id=video.stem, labels=(0,))  # a sample needs a label; it is not used
    return ClipDataset([row], [video], task="single_label", num_classes=1, **options)[0].frames


def _options(recipe: Recipe) -> ClipOptions:
    """The clips that training validates on."""
    data = recipe.data
    return {
        "num_frames": data.num_frames,
        "sampler": data.train_sampler,
        "dense_window": data.dense_window,
        "leading_frames": data.leading_frames,
        "short": data.short,
        "fit": data.fit,
        "dtype": "uint8" if data.fit == "pad" else "float32",
        "resize": data.resize,
        "crop": data.crop,
        "antialias": data.antialias,
        "resize_floats": data.resize_floats,
        "num_repeats": data.num_repeats,
        "train_crop": data.train_crop,
        "rand_augment": data.rand_augment,
        "random_erasing": data.random_erasing,
        "scales": data.train_scales,
        "max_aspect_step": data.max_aspect_step,
        "flip": data.flip,
        "mean": data.mean,
        "std": data.std,
        "seed": recipe.train.seed if recipe.train else 0,
    }


def _open(recipe: Recipe, folder: Path, split: str, **changes: Unpack[_Changes]) -> ShardDataset:
    """The clips that training validates on, with what `changes` says instead."""
    data = recipe.data
    options: ClipOptions = {**_options(recipe), **changes}
    dataset = ShardDataset(folder, split, min_frames=data.min_frames, **options)
    manifest, expected = dataset.manifest, known_classes(data)
    if manifest.dataset != data.dataset or expected not in (None, len(manifest.classes)):
        raise UsageError(
            f"{folder}: holds {manifest.dataset} ({len(manifest.classes)} classes), but recipe {recipe.name} is for "
            f"{data.dataset}{f' ({expected} classes)' if expected else ''}; give its shards, or say "
            f"--set data.dataset={manifest.dataset} to use these."
        )
    _number_classes(dataset, data)
    return dataset


def _number_classes(dataset: ShardDataset, data: Data) -> None:
    """Give classes, labels and flipped pairs the model's numbers.

    Raises:
        UsageError: the task has more than one list of classes, or two classes have one name.
    """
    manifest = dataset.manifest
    if data.class_order == "sorted":
        if manifest.noun_classes or len(set(manifest.classes)) < len(manifest.classes):
            raise UsageError(
                f'{dataset.folder}: class_order = "sorted" needs one list of classes with a name each; '
                'use "official" for these shards.'
            )
        classes = tuple(sorted(manifest.classes))
        number = {name: index for index, name in enumerate(classes)}
        new = [number[name] for name in manifest.classes]  # by the old number
        dataset.videos = [
            replace(video, labels=tuple(sorted(new[label] for label in video.labels))) for video in dataset.videos
        ]
        dataset.manifest = replace(manifest, classes=classes)
        pairs = {new[label]: new[flipped] for label, flipped in dataset.make.flip_pairs.items()}
        dataset.make = replace(dataset.make, flip_pairs=pairs)
    if data.flip_pairs is not None:
        outside = [pair for pair in data.flip_pairs if not 0 <= min(pair) <= max(pair) < len(manifest.classes)]
        if outside:
            raise UsageError(f"data.flip_pairs: {outside[0]} are no classes of 0 ... {len(manifest.classes) - 1}.")
        pairs = dict(data.flip_pairs) | {right: left for left, right in data.flip_pairs}
        dataset.make = replace(dataset.make, flip_pairs=pairs)


def known_classes(data: Data) -> int | None:
    """Number of classes that a recipe's data have: as it says itself, or as vidprep knows; None: the shards say."""
    info = DATASETS.get(data.dataset)
    return data.num_classes or (info.num_classes if info else None)
