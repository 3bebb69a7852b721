"""A method and shards small enough to train in a blink: clips of one brightness, and a classifier of the mean."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from vidmodels.types import Batch, Method, Output, Train
from vidprep.index import Manifest, ShardFacts
from vidprep.load.types import Sample


@dataclass(frozen=True, kw_only=True)
class FakeConfig:
    """Settings of the fake method."""

    width: int = 4
    """Hidden channels."""
    dropout: float = 0.0
    depths: tuple[int, ...] = (1,)
    gate: bool = True

    def __post_init__(self) -> None:
        if self.width < 1:
            raise ValueError(f"width must be at least 1, got {self.width}")


class FakeModel(nn.Module):
    """Mean colour of a clip -> hidden -> classes. In training the hidden layer is noisy."""

    def __init__(self, config: FakeConfig, num_classes: int) -> None:
        super().__init__()
        self.config = config
        self.norm = nn.BatchNorm1d(3)
        self.hidden = nn.Linear(3, config.width)
        self.head = nn.Linear(config.width, num_classes)

    def forward(self, frames: Tensor) -> Output:
        x = self.hidden(self.norm(frames.mean((1, 3, 4))))
        if self.training:
            x = x + 0.01 * torch.randn_like(x)
        return Output(logits=self.head(x), aux={"hidden": x})


def training_step(model: nn.Module, batch: Batch, epoch: float) -> dict[str, Tensor]:
    out = model(batch.frames.flatten(0, 1))
    loss = cross_entropy(out.logits, batch.labels)
    return {"loss": loss, "classification_loss": loss.detach(), "epoch_seen": torch.tensor(epoch)}


def param_groups(model: nn.Module, train: Train) -> list[dict[str, Any]]:
    """Biases at twice the rate and without decay."""
    weights = [p for name, p in model.named_parameters() if not name.endswith("bias")]
    biases = [p for name, p in model.named_parameters() if name.endswith("bias")]
    return [
        {"name": "weights", "params": weights, "lr": train.lr, "weight_decay": train.weight_decay},
        {"name": "biases", "params": biases, "lr": 2 * train.lr, "weight_decay": 0.0},
    ]


def convert(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix("module."): tensor for name, tensor in state.items()}


METHOD = Method(
    name="fake",
    paper="https://example.org/fake",
    Config=FakeConfig,
    build=FakeModel,
    training_step=training_step,
    param_groups=param_groups,
    make_dynamic=lambda model: model,
    convert=convert,
    summarise=lambda model, output: {"mean_hidden": float(output.aux["hidden"].mean())},
)

RECIPE = """\
method = "fake"
source = "Table 1"
data = { dataset = "bright", num_frames = 2, resize = 8, crop = 8 }
model = { width = 6, depths = [2, 3] }
train = { epochs = 2, batch_size = 4, lr = 0.1, lr_milestones = [20, 40] }
eval = { num_clips = 2 }
published = { top1 = 62.7, convention = "not stated" }
"""


class FakeSplit:
    """Clips (v, 2, 3, 8, 8) whose brightest colour is their class; noisy anew each epoch, as a training split is."""

    def __init__(self, name: str, num_samples: int, *, num_views: int = 1, shards: str = "a") -> None:
        self.manifest = Manifest(
            dataset="bright",
            split=name,
            task="single_label",
            classes=("red", "green", "blue"),
            content="video",
            settings={},
            num_videos=num_samples,
            shards=(ShardFacts(name=f"{name}-000000.tar", num_samples=num_samples, num_bytes=0, sha256=shards),),
        )
        self.num_views = num_views
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.manifest.num_videos

    def __getitem__(self, index: int) -> Sample:
        label = index % 3
        seed = (self.epoch, index) if self.manifest.split == "train" else (1000, index)
        frames = np.random.default_rng(seed).normal(size=(self.num_views, 2, 3, 8, 8))
        frames[:, :, label] += 0.5
        return Sample(
            video_id=f"{self.manifest.split}{index}",
            frames=torch.from_numpy(frames).float(),
            labels=torch.tensor(label),
            pts_seconds=torch.zeros(self.num_views, 2, dtype=torch.float64),
        )
