"""RGTP on ViViT: in every time step only the patches stay that the attention of the step before looked at.

    first time step    every patch
    reset time step    a fixed pattern: every `reset_interval`-th
    ordinary ones      the hottest patches of the step before, moved to where they are now, and a sample of the others

A reset reads nothing of the steps before, so the spans between resets are independent: a clip runs them side by side,
with all views and videos of a batch, and a stream runs them one after the other with the same numbers.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout

from vidmodels.backbones.vit import SIZES, ViTShape, init_weights
from vidmodels.backbones.vivit import FactorisedViViT
from vidmodels.methods.rgtp.rollout import HeadFusion, Pattern
from vidmodels.types import Output
from vidprep.errors import UsageError

__all__ = ["RgtpVivit", "RgtpVivitConfig", "StreamState", "build"]


@dataclass(frozen=True, kw_only=True)
class RgtpVivitConfig:
    """What varies: what is kept of a time step, and ViViT's network and its fine-tuning."""

    mode: Literal["base", "rollout", "eventful"] = "base"
    """"base": every token, plain ViViT. "rollout": RGTP. "eventful": Eventful Transformers, the paper's baseline."""

    keep_ratio: float = 0.215
    """Share of the patches that is foreground: the hottest."""
    foreground_ratio: float = 1.0
    """Share of the foreground that is kept: every round(1 / ratio)-th by heat."""
    background_ratio: float = 0.0
    """Share of the background that is kept: every round(1 / ratio)-th patch."""
    gilbert_sampling: bool = False
    """Sample both along a Gilbert curve instead."""
    reset_interval: int = 8
    """Time steps from one reset to the next; 0: no resets."""
    reset_pattern: Pattern = "1in2"
    """What is kept at a reset."""
    offset_radius: int = 1
    """How far, in patches, the heat map's values may move from one step to the next; 0: not at all."""
    head_fusion: HeadFusion = "root_mean_square"
    """How one attention matrix is made of all heads."""

    top_k: int = 48
    """Tokens that are computed anew in each time step ("eventful")."""
    value_cast: Literal["float16", "bfloat16"] | None = None
    """In what type attention weights and values are multiplied ("eventful"); None: as they are."""

    shape: ViTShape = SIZES["base"]
    """Size of the network; its depth is that of the spatial sub-model."""
    temporal_depth: int = 4
    num_frames: int = 32
    """t of every clip, as in the recipe's data."""
    image_size: int = 224
    """Side of every frame in pixels, the data's `crop`."""
    position_grid: int | None = None
    """Rows and columns that positions are stored for, resized where the frames have others; None: the frames'."""
    num_noun_classes: int = 0
    """Of a second classifier beside the one for verbs (EPIC-KITCHENS-100); 0: there is none."""

    drop_path: float = 0.0
    """Stochastic depth of the last of all blocks in training, rising linearly from 0."""
    head_dropout: float = 0.0
    """Before the classifier, in training."""
    trained: Literal["all", "temporal"] = "all"
    """"temporal": only the temporal sub-model and the classifier learn."""
    loss_on: Literal["logits", "probabilities"] = "logits"
    """What cross-entropy is taken of; the published fine-tuning gives it probabilities, as if they were logits."""

    def __post_init__(self) -> None:
        if not 0 < self.keep_ratio <= 1:
            raise ValueError(f"keep_ratio lies in (0, 1], got {self.keep_ratio}")
        if not 0 < self.foreground_ratio <= 1:
            raise ValueError(f"foreground_ratio lies in (0, 1], got {self.foreground_ratio}")
        if not 0 <= self.background_ratio <= 1:
            raise ValueError(f"background_ratio lies in [0, 1], got {self.background_ratio}")
        for name in ("reset_interval", "offset_radius", "num_noun_classes"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be at least 0, got {getattr(self, name)}")
        for name in ("top_k", "temporal_depth", "num_frames", "image_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.position_grid is not None and self.position_grid < 1:
            raise ValueError(f"position_grid must be at least 1, got {self.position_grid}")
        for name in ("drop_path", "head_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} lies in [0, 1), got {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True)
class StreamState:
    """What n streams carry from one time step to the next; `state[index]` takes some of them, `join` puts together."""

    time_step: Tensor
    """(n,) int64: time steps seen."""
    heat: Tensor
    """(n, p): heat map of the last one."""
    embedding: Tensor
    """(n, p, d): its patches."""
    class_tokens: Tensor
    """(n, time, d): of the last time steps of a clip's length, the newest at the end."""

    def __getitem__(self, index: Tensor | slice | Sequence[int]) -> "StreamState":
        """The streams at these places, in this order."""
        return StreamState(
            time_step=self.time_step[index],
            heat=self.heat[index],
            embedding=self.embedding[index],
            class_tokens=self.class_tokens[index],
        )

    def __len__(self) -> int:
        return len(self.time_step)

    @staticmethod
    def join(states: Sequence["StreamState"]) -> "StreamState":
        """All streams of several states, one state after the other."""
        names = ("time_step", "heat", "embedding", "class_tokens")
        return StreamState(**{name: torch.cat([getattr(state, name) for state in states]) for name in names})


class RgtpVivit(nn.Module):
    """`forward(frames (n, t, 3, h, w)) -> Output`: logits (n, k).

    With a second classifier `aux["noun_logits"]` (n, nouns).
    """

    def __init__(self, config: RgtpVivitConfig, num_classes: int) -> None:
        super().__init__()
        self.config = config
        self.num_classes = num_classes
        side = config.position_grid
        self.backbone = FactorisedViViT(
            config.shape,
            temporal_depth=config.temporal_depth,
            num_frames=config.num_frames,
            image_size=config.image_size,
            position_grid=None if side is None else (side, side),
            drop_path=config.drop_path,
        )
        self.head = nn.Linear(config.shape.width, num_classes)
        self.noun_head = nn.Linear(config.shape.width, config.num_noun_classes) if config.num_noun_classes else None
        for head in (self.head, self.noun_head):
            if head is not None:
                init_weights(head)

    def forward(self, frames: Tensor) -> Output:
        """Classify clips."""
        return self.classify(self.spatial_features(frames))

    def spatial_features(self, frames: Tensor) -> Tensor:
        """(n, t, 3, h, w) -> (n, time, d): the class token of every time step, what the spatial cache holds."""
        embedding = self.backbone.embed(frames)
        steps = embedding.flatten(0, 1)
        return self.backbone.spatial(steps, self.backbone.positions()).unflatten(0, embedding.shape[:2])  # type: ignore[no-any-return]

    def classify(self, features: Tensor) -> Output:
        """(n, time, d), from `spatial_features` or a cache of them -> logits."""
        temporal = self.backbone.temporal(features)
        temporal = dropout(temporal, self.config.head_dropout, self.training)
        aux = {} if self.noun_head is None else {"noun_logits": self.noun_head(temporal)}
        return Output(logits=self.head(temporal), aux=aux)


def build(config: RgtpVivitConfig, num_classes: int) -> RgtpVivit:
    """The model, which trains and evaluates."""
    if num_classes < 1:
        raise UsageError(f"a classifier needs at least 1 class, got {num_classes}.")
    return RgtpVivit(config, num_classes)
