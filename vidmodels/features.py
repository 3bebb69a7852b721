"""Cached features: what the costly first part of a model makes of every view of every video, kept to learn on.

    OUT/val-000000.safetensors   `features` (videos, v, time, d) float32, and in the header the plan they belong to
    OUT/val.json                 the index: data set, classes, settings, digest of the weights, videos, checksums

The index is written first, without shards, and again when the last of them is done. A shard appears whole or not at
all; which videos lie in it follows from the plan, so a run that was stopped goes on and ends with the same bytes.
"""

import hashlib
import json
import threading
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, Self

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_safetensors
from torch import Tensor, nn
from torch.utils.data import Dataset

from vidmodels.checkpoints import write_atomically
from vidmodels.methods import METHODS
from vidmodels.recipes import differences
from vidmodels.types import Features, Recipe
from vidprep.errors import CorruptShard, UsageError
from vidprep.index import ShardFacts
from vidprep.load.types import Sample

__all__ = [
    "FeatureDataset",
    "FeatureIndex",
    "open_features",
    "read_shard_plan",
    "settings_of",
    "weights_digest",
    "write_shard",
]

FORMAT_VERSION = 1
TENSOR, HEADER = "features", "vidmodels"
Task = Literal["single_label", "multi_label", "verb_noun"]


@dataclass(frozen=True, kw_only=True)
class FeatureIndex:
    """What one split of a cache holds."""

    dataset: str
    split: str
    task: Task
    classes: tuple[str, ...]
    noun_classes: tuple[str, ...]
    data: str
    """The folder of shards that the videos came from."""
    data_sha256: str
    """Of these shards."""
    settings: Mapping[str, Any]
    """All that features depend on beside the weights: method, model, clips and crops."""
    weights_sha256: str
    """Of the entries that features depend on."""
    shape: tuple[int, int, int]
    """(v, time, d) of a video."""
    videos_per_shard: int
    video_id: tuple[str, ...]
    labels: tuple[tuple[int, ...], ...]
    """Of each video, as in the split: class indices; (verb, noun) for verb_noun."""
    shards: tuple[ShardFacts, ...] = ()
    """() until all of them are done."""

    @property
    def plan(self) -> str:
        """Digest of all that decides what is in the shards."""
        return hashlib.sha256(json.dumps(self.facts, sort_keys=True).encode()).hexdigest()

    @property
    def facts(self) -> dict[str, Any]:
        """What decides what is in the shards, as JSON has it."""
        facts: dict[str, Any] = json.loads(json.dumps(asdict(replace(self, shards=()))))
        return {name: value for name, value in facts.items() if name not in ("shards", "data")}

    @property
    def num_shards(self) -> int:
        """How many there will be."""
        return -(-len(self.video_id) // self.videos_per_shard)

    def shard_name(self, number: int) -> str:
        """Of the shard's file."""
        return f"{self.split}-{number:06d}.safetensors"

    def videos_of(self, number: int) -> range:
        """Positions of the shard's videos in the split."""
        first = number * self.videos_per_shard
        return range(first, min(first + self.videos_per_shard, len(self.video_id)))

    def write(self, folder: Path) -> None:
        """Write `SPLIT.json`."""
        content = {"format_version": FORMAT_VERSION, **asdict(self)}
        text = json.dumps(content, indent=1) + "\n"
        write_atomically(folder / f"{self.split}.json", lambda file: file.write(text.encode()))

    @classmethod
    def read(cls, folder: Path, split: str) -> Self:
        """What `write` wrote, finished or not.

        Raises:
            UsageError: no such cache or split, or of another version.
            CorruptShard: the file is broken.
        """
        path = folder / f"{split}.json"
        if not path.is_file():
            there = ", ".join(sorted(found.stem for found in folder.glob("*.json"))) or "none"
            raise UsageError(
                f"{path}: no cached features of this split (there: {there}); `vidmodels cache` writes them."
            )
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            version = content.pop("format_version")
            if version != FORMAT_VERSION:
                raise UsageError(
                    f"{path}: cached features of format {version}, expected {FORMAT_VERSION}; write them anew."
                )
            content["shards"] = tuple(ShardFacts(**shard) for shard in content["shards"])
            content["labels"] = tuple(tuple(labels) for labels in content["labels"])
            for name in ("classes", "noun_classes", "shape", "video_id"):
                content[name] = tuple(content[name])
            return cls(**content)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CorruptShard(f"{path}: no index of cached features ({error!r}); write them anew.") from error


def settings_of(recipe: Recipe) -> dict[str, Any]:
    """What features depend on beside the weights, as JSON has it.

    Raises:
        UsageError: the method has no features to cache.
    """
    features = METHODS[recipe.method].features
    if features is None:
        raise UsageError(f"{recipe.method} has no features to cache; train it on the clips themselves.")
    data, how = recipe.data, recipe.eval
    return {
        "method": recipe.method,
        "model": features.settings(recipe.model),
        "data": {
            "num_frames": data.num_frames,
            "sampler": data.train_sampler,
            "dense_window": data.dense_window,
            "leading_frames": data.leading_frames,
            "short": how.short or data.short,
            "min_frames": data.min_frames,
            "class_order": data.class_order,
            "resize": recipe.eval_resize,
            "crop": recipe.eval_crop,
            "antialias": data.antialias,
            "resize_floats": data.resize_floats,
            "mean": list(data.mean),
            "std": list(data.std),
            "num_clips": how.num_clips,
            "num_crops": how.num_crops,
            "clip_placement": how.clip_placement,
            "crop_placement": how.crop_placement,
        },
    }


def open_features(recipe: Recipe, folder: Path, split: str) -> "FeatureDataset":
    """One split of a cache that was made with the settings of this recipe.

    Raises:
        UsageError: no such cache or split, not finished, or made with other settings.
        CorruptShard: a shard is missing or cut short; names it.
    """
    dataset = FeatureDataset(folder, split)
    manifest = dataset.manifest
    if manifest.dataset != recipe.data.dataset:
        raise UsageError(
            f"{folder}: features of {manifest.dataset}, but recipe {recipe.name} is for {recipe.data.dataset}."
        )
    differing = differences(manifest.settings, json.loads(json.dumps(settings_of(recipe))))
    if differing:
        raise UsageError(
            f"{folder}, split {split}: features of other settings than recipe {recipe.name}: {'; '.join(differing)}. "
            "Make them with this recipe."
        )
    return dataset


def weights_digest(model: nn.Module, features: Features) -> str:
    """SHA-256 of the names, types, shapes and values of the entries that features depend on."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        if name.startswith(features.prefixes):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            digest.update(_bytes(tensor))
    return digest.hexdigest()


def write_shard(path: Path, features: Tensor, *, plan: str) -> ShardFacts:
    """Write features (videos, v, time, d); `path` appears whole or not at all."""
    features = features.detach().cpu().float().contiguous()
    # one entry, because the order of several is not certain, and the same features shall give the same bytes
    header = json.dumps({"plan": plan, "sha256": hashlib.sha256(_bytes(features)).hexdigest()})
    content = to_safetensors({TENSOR: features}, metadata={HEADER: header})
    write_atomically(path, lambda file: file.write(content))
    return ShardFacts(
        name=path.name,
        num_samples=len(features),
        num_bytes=len(content),
        sha256=hashlib.sha256(content).hexdigest(),
    )


def read_shard_plan(path: Path) -> tuple[str, ShardFacts]:
    """The plan that a finished shard belongs to, and its facts, after checking every byte of it.

    Raises:
        CorruptShard: it is damaged, or none.
    """
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {})[HEADER])
            features = file.get_tensor(TENSOR)
        is_whole = hashlib.sha256(_bytes(features)).hexdigest() == header["sha256"]
        plan = str(header["plan"])
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise CorruptShard(f"{path}: no shard of cached features ({error}).") from error
    if not is_whole:
        raise CorruptShard(f"{path}: damaged: its features are not those that were written.")
    content = path.read_bytes()
    facts = ShardFacts(
        name=path.name,
        num_samples=len(features),
        num_bytes=len(content),
        sha256=hashlib.sha256(content).hexdigest(),
    )
    return plan, facts


class FeatureDataset(Dataset[Sample]):
    """The videos of a cached split: samples whose `frames` are features (v, time, d, 1, 1). Nothing in them is random.

    Every shard is checked against the index before its first use; samples may be read from threads.
    """

    def __init__(self, folder: Path, split: str) -> None:
        """Open a split.

        Raises:
            UsageError: no such cache or split, or it is not finished.
            CorruptShard: a shard is missing or not as long as the index says; names it.
        """
        self.folder = folder
        self.manifest = FeatureIndex.read(folder, split)
        if not self.manifest.shards:
            raise UsageError(f"{folder}/{split}.json: this cache is not finished; the same `vidmodels cache` goes on.")
        for shard in self.manifest.shards:
            path = folder / shard.name
            if not path.is_file() or path.stat().st_size != shard.num_bytes:
                raise CorruptShard(
                    f"{path}: missing, or not {shard.num_bytes} bytes long as {split}.json says; run the same "
                    "`vidmodels cache` again, which writes it anew."
                )
        self._files: dict[str, Any] = {}
        self._lock = threading.Lock()

    def set_epoch(self, epoch: int) -> None:
        """Features are the same in every epoch."""

    def __len__(self) -> int:
        return len(self.manifest.video_id)

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of a data set of {len(self)} samples")
        number, row = divmod(index, self.manifest.videos_per_shard)
        with self._lock:
            features = self._open(self.manifest.shards[number]).get_slice(TENSOR)[row]
        return Sample(
            video_id=self.manifest.video_id[index],
            frames=features[..., None, None],
            labels=self._encode(self.manifest.labels[index]),
            pts_seconds=torch.full(features.shape[:2], float("nan"), dtype=torch.float64),
        )

    def _encode(self, labels: Sequence[int]) -> Tensor:
        if self.manifest.task == "single_label":
            return torch.tensor(labels[0], dtype=torch.int64)
        if self.manifest.task == "verb_noun":
            return torch.tensor(labels, dtype=torch.int64)
        hot = torch.zeros(len(self.manifest.classes))
        hot[list(labels)] = 1
        return hot

    def _open(self, shard: ShardFacts) -> Any:
        if shard.name not in self._files:
            path = self.folder / shard.name
            with path.open("rb") as file:
                sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            if sha256 != shard.sha256:
                raise CorruptShard(
                    f"{path}: damaged: its SHA-256 is {sha256[:12]}..., but {shard.sha256[:12]}... by "
                    f"{self.manifest.split}.json; run the same `vidmodels cache` again, which writes it anew."
                )
            self._files[shard.name] = safe_open(path, framework="pt")
        return self._files[shard.name]


def _bytes(tensor: Tensor) -> bytes:
    """The values in memory order."""
    return tensor.detach().cpu().contiguous().numpy().tobytes()
