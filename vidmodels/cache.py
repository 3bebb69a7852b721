"""`vidmodels cache`: run the costly first part of a model over whole splits once, and keep what it gives."""

import hashlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from vidmodels.data import open_test_split
from vidmodels.evaluate import choose_device
from vidmodels.features import FeatureIndex, read_shard_plan, settings_of, weights_digest, write_shard
from vidmodels.methods import METHODS
from vidmodels.recipes import differences, load_recipe
from vidmodels.runs import Run, find_run, load_model
from vidmodels.types import Features, Recipe
from vidprep.console import track
from vidprep.errors import CorruptShard, UsageError
from vidprep.index import ShardFacts
from vidprep.load.loader import make_loader
from vidprep.load.shards import ShardDataset
from vidprep.load.types import Sample

__all__ = ["CachedSplit", "cache_features", "find_cached"]

logger = logging.getLogger(__name__)

VIDEOS_PER_SHARD = 64
"""At most, or a batch if that is larger: 38 MB of ViViT-B's features of 12 views."""


@dataclass(frozen=True, kw_only=True)
class CachedSplit:
    """What was written of a split."""

    index: FeatureIndex
    num_new: int
    """Shards written now; the others were there."""

    @property
    def sentence(self) -> str:
        """What was done, in a line."""
        views, time, width = self.index.shape
        size = sum(shard.num_bytes for shard in self.index.shards) / 1e6
        return (
            f"{self.index.split}: {len(self.index.video_id)} videos x {views} views x {time} x {width}, "
            f"{self.index.num_shards} shards ({self.num_new} new), {size:.1f} MB"
        )


def find_cached(target: str, *, weights: Path | None = None, overrides: Sequence[str] = ()) -> Run:
    """The recipe and the weights whose features are wanted.

    Args:
        target: a run folder or checkpoint file, or a recipe, whose weights are `weights` or its `train.init`.
        weights: of a recipe: run folder or checkpoint file.
        overrides: changes to the recipe.

    Raises:
        UsageError: nothing there, or no weights known.
    """
    if Path(target).exists() and not target.endswith(".toml"):
        if weights is not None:
            raise UsageError(f"{target} has weights of its own; name a recipe to cache with {weights}.")
        return find_run(Path(target), overrides=overrides)
    recipe = load_recipe(target, overrides)
    if weights is None:
        init = recipe.train.init if recipe.train else "none"
        if init in ("none", "imagenet"):
            raise UsageError(
                f"recipe {recipe.name} does not say which weights to start from; give them with --weights."
            )
        weights = Path(init)
    file = find_run(weights).weights if weights.is_dir() else weights
    return Run(name=recipe.name, recipe=recipe, weights=file, data=None)


def cache_features(
    run: Run,
    data: Path,
    out: Path,
    *,
    splits: Sequence[str] = (),
    device: str | None = None,
    workers: int | None = None,
) -> Iterator[CachedSplit]:
    """Write the features of whole splits, or what is missing of them.

    Args:
        run: recipe and weights; all views of `recipe.eval` are kept.
        data: shards.
        out: folder of the cache; made when missing.
        splits: none: those that the recipe trains and validates on.
        device: None takes a GPU where there is one.
        workers: threads that prepare clips.

    Yields:
        Each split when it is done.

    Raises:
        UsageError: the method has no features to keep, or the folder holds others.
        CheckpointError: weights that do not fit.
    """
    recipe, method = run.recipe, METHODS[run.recipe.method]
    if method.features is None:
        raise UsageError(f"{method.name} has no features to cache; train it on the clips themselves.")
    chosen = choose_device(device)
    model: nn.Module | None = None
    for split in splits or (recipe.data.train_split, recipe.data.val_split):
        dataset = open_test_split(recipe, data, split)
        if model is None:
            model = load_model(run, num_classes=len(dataset.manifest.classes), device=chosen)
        yield _cache_split(model, method.features, recipe, dataset, out, device=chosen, workers=workers)


def _cache_split(
    model: nn.Module,
    features: Features,
    recipe: Recipe,
    dataset: ShardDataset,
    out: Path,
    *,
    device: torch.device,
    workers: int | None,
) -> CachedSplit:
    batch_size = recipe.eval.batch_size
    manifest, first = dataset.manifest, dataset[0]
    if manifest.task == "detection":
        raise UsageError("features are of videos with labels; detection has none.")
    with torch.no_grad():
        shape = (len(first.frames), *features.compute(model, first.frames[:1].to(device)).shape[1:])
    index = FeatureIndex(
        dataset=manifest.dataset,
        split=manifest.split,
        task=manifest.task,
        classes=manifest.classes,
        noun_classes=manifest.noun_classes,
        data=str(dataset.folder.resolve()),
        data_sha256=hashlib.sha256("".join(shard.sha256 for shard in manifest.shards).encode()).hexdigest(),
        settings=settings_of(recipe),
        weights_sha256=weights_digest(model, features),
        shape=(shape[0], shape[1], shape[2]),
        videos_per_shard=batch_size * max(1, VIDEOS_PER_SHARD // batch_size),
        video_id=tuple(video.video_id for video in dataset.videos),
        labels=tuple(video.labels for video in dataset.videos),
    )
    facts = _begin(index, out)
    missing = [number for number in range(index.num_shards) if number not in facts]
    part = _Part(dataset, [position for number in missing for position in index.videos_of(number)])
    if missing:
        loader = make_loader(part, batch_size=batch_size, workers=workers)
        waiting: list[Tensor] = []
        numbers = iter(missing)
        number = next(numbers)
        for batch in track(loader, description=f"cache {index.split}"):
            with torch.no_grad():
                calls = torch.split(batch.frames.flatten(0, 1), recipe.eval.clips_per_call)
                computed = torch.cat([features.compute(model, clips.to(device)).cpu() for clips in calls])
            waiting.append(computed.view(*batch.frames.shape[:2], *computed.shape[1:]))
            if sum(len(videos) for videos in waiting) == len(index.videos_of(number)):
                facts[number] = write_shard(out / index.shard_name(number), torch.cat(waiting), plan=index.plan)
                waiting, number = [], next(numbers, -1)
    done = replace(index, shards=tuple(facts[number] for number in range(index.num_shards)))
    done.write(out)
    return CachedSplit(index=done, num_new=len(missing))


def _begin(index: FeatureIndex, out: Path) -> dict[int, ShardFacts]:
    """The shards that are there already, checked; the folder is new, or holds this very plan."""
    path = out / f"{index.split}.json"
    if path.exists():
        differing = differences(FeatureIndex.read(out, index.split).facts, index.facts)
        if differing:
            raise UsageError(
                f"{path}: features of other videos, settings or weights: {'; '.join(_short(differing))}. Choose "
                "another folder for these."
            )
    out.mkdir(parents=True, exist_ok=True)
    facts: dict[int, ShardFacts] = {}
    for number in range(index.num_shards):
        shard = out / index.shard_name(number)
        if not shard.exists():
            continue
        try:
            plan, found = read_shard_plan(shard)
        except CorruptShard as error:
            logger.warning("%s It is written again.", error)
            continue
        if plan != index.plan:
            raise UsageError(
                f"{shard}: features of other videos, settings or weights; choose another folder for these."
            )
        facts[number] = found
    index.write(out)
    return facts


def _short(sentences: Sequence[str], *, most: int = 5, width: int = 200) -> list[str]:
    """Some of them, none too long: lists of videos are."""
    cut = [sentence if len(sentence) <= width else f"{sentence[:width]}..." for sentence in sentences[:most]]
    return [*cut, f"and {len(sentences) - most} more"] if len(sentences) > most else cut


class _Part:
    """Some samples of a data set, in this order."""

    def __init__(self, dataset: ShardDataset, indices: Sequence[int]) -> None:
        self.dataset = dataset
        self.indices = indices

    def set_epoch(self, epoch: int) -> None:
        """Nothing is random in them."""

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Sample:
        return self.dataset[self.indices[index]]
