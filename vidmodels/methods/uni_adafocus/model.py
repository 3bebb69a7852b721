"""Uni-AdaFocus, the trainable form, and its TSM and X3D variants: everything is computed, every exit answers.

    frames --+-- glance frames -- MobileNetV2 --+-- policies -- which frames, which rectangle of each
             |                    (X3D-S)       |                    |
             +-- candidates --------------------|-- patches ---------+-- ResNet --+
                                                |                      (X3D-L)    |
                                                +---------------------------------+-- classifier

Nothing is skipped for a video that would leave early; `dynamic.py` does that.
"""

import logging
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout, interpolate

from vidmodels.backbones import mobilenet_v2, resnet, x3d
from vidmodels.backbones.mobilenet_v2 import PUBLISHED_STAGES, MobileNetV2
from vidmodels.backbones.resnet import DEPTHS, ResNet, Stem
from vidmodels.backbones.x3d import X3d, X3dHead
from vidmodels.layers.temporal_shift import temporal_shift
from vidmodels.methods.uni_adafocus.policy import (
    PatchGeometry,
    SpatialPolicy,
    TemporalPolicy,
    choose_frames,
    draw_removed_frames,
    interpolate_actions,
    monte_carlo_logits,
)
from vidmodels.types import Output
from vidprep.errors import UsageError

__all__ = [
    "Draws",
    "FocusNetwork",
    "Glance",
    "PoolingClassifier",
    "TwoHeads",
    "UniAdaFocus",
    "UniAdaFocusConfig",
    "UniAdaFocusTsm",
    "X3dHeads",
    "build",
]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class UniAdaFocusConfig:
    """What varies in Uni-AdaFocus. Defaults are those of the published ActivityNet checkpoint.

    Numbers in brackets point to the traps in this folder's README.
    """

    variant: Literal["pooling", "tsm", "x3d"] = "pooling"
    """"pooling": features are max-pooled over time and classified after every frame, one rectangle a frame.
    "tsm": both networks shift channels along time, one rectangle a clip, two exits.
    "x3d": both networks convolve over time; the rest as "tsm"."""
    num_candidates: int = 48
    """s, frames to choose from. "tsm" and "x3d" get them behind their glance frames, sampled on their own."""
    num_glance: int = 16
    """g; "pooling" takes them out of the candidates."""
    num_focus: int = 16
    """f."""
    image_size: int = 224
    """Side of a frame in pixels."""
    patch_size: int = 128
    """(2) Side of a patch in pixels, whatever the rectangle's."""
    min_extent: int = 96
    """(2) Smallest side of a rectangle in pixels; the largest is the frame's."""
    temperature: float = 1.0
    """Divides the temporal logits for the frame choice; the loss does without it."""

    glance_stages: tuple[tuple[int, int, int, int], ...] = PUBLISHED_STAGES
    """MobileNetV2's (expansion, channels, blocks, stride of the first block)."""
    glance_width: float = 1.0
    focus_backbone: Literal["resnet18", "resnet50"] = "resnet50"
    """Kind of block: basic or bottleneck; and the depths unless given."""
    focus_depths: tuple[int, ...] | None = None
    focus_widths: tuple[int, ...] = (64, 128, 256, 512)
    focus_stem: Stem = "conv7_pool"
    spatial_hidden_dim: int = 128
    temporal_hidden_dim: int = 64
    classifier_hidden_dim: int = 4096
    """Of "pooling": width of the features that are max-pooled."""
    shift_div: int = 8
    """Of "tsm"."""
    glance_size: int = 160
    """Of "x3d": side in pixels that glance frames are resized to. The other variants glance at whole frames."""
    x3d_widths: tuple[int, ...] = x3d.WIDTHS
    """Of "x3d": channels of the stages of both networks."""
    x3d_glance_depths: tuple[int, ...] = x3d.DEPTHS["s"]
    """Of "x3d": blocks of each stage, X3D-S's."""
    x3d_focus_depths: tuple[int, ...] = x3d.DEPTHS["l"]
    x3d_head_dim: int = 2048
    """Of "x3d": width inside each classifier."""

    dropout: float = 0.2
    """Before every step's classifier; "tsm": behind both networks; "x3d": inside its classifiers."""
    head_dropout: float = 0.2
    """Of "pooling": before the heads that classify single frames, in training."""
    glance_lr_scale: float = 0.5
    """Learning rate of the glance network and its heads, over the base rate."""
    spatial_lr_scale: float = 0.2
    temporal_lr_scale: float = 0.2
    classifier_lr_scale: float = 20.0
    """Of "pooling"."""
    norm_weight: float = 1.0
    """Weight of the term that pulls rectangles to the whole frame."""
    kl_weight: float = 0.0
    """(13) Of "pooling": weight of the temporal weights' divergence from equal ones; 0 in all published runs."""
    num_samples: int = 128
    """Random removals of each size that the temporal loss averages."""

    def __post_init__(self) -> None:
        sizes = (self.num_candidates, self.num_glance, self.num_focus, self.patch_size, self.min_extent)
        widths = (self.spatial_hidden_dim, self.temporal_hidden_dim, self.classifier_hidden_dim, self.x3d_head_dim)
        depths = (*self.block_depths, *self.x3d_glance_depths, *self.x3d_focus_depths)
        if (
            min(
                *sizes,
                self.shift_div,
                self.glance_size,
                *widths,
                *self.focus_widths,
                *self.x3d_widths,
                *depths,
                self.num_samples,
            )
            < 1
        ):
            raise ValueError("all counts, sizes, widths and depths must be at least 1")
        if len(self.focus_widths) != len(self.block_depths):
            raise ValueError(
                f"focus_widths and focus_depths need one number a stage, got {self.focus_widths} and "
                f"{self.block_depths}"
            )
        if not len(self.x3d_widths) == len(self.x3d_glance_depths) == len(self.x3d_focus_depths):
            raise ValueError(
                f"x3d_widths, x3d_glance_depths and x3d_focus_depths need one number a stage, got {self.x3d_widths}, "
                f"{self.x3d_glance_depths} and {self.x3d_focus_depths}"
            )
        if self.num_focus > self.num_candidates:
            raise ValueError(f"num_focus = {self.num_focus} frames cannot be chosen from {self.num_candidates}")
        ratio, rest = divmod(self.num_candidates, self.num_glance)
        if self.variant == "pooling" and (rest or ratio < 2):
            raise ValueError(
                f"num_candidates must be a multiple, at least twice, of num_glance = {self.num_glance}, got "
                f"{self.num_candidates}"
            )
        if not self.min_extent <= self.patch_size <= self.image_size:
            raise ValueError(
                f"patch_size lies between min_extent = {self.min_extent} and image_size = {self.image_size}, got "
                f"{self.patch_size}"
            )
        if self.min_extent == self.image_size:
            raise ValueError(f"min_extent must be less than image_size = {self.image_size}")
        side_name = "glance_size" if self.variant == "x3d" else "image_size"
        if self.glance_side % self.map_stride or self.patch_size % self.map_stride:
            raise ValueError(
                f"{side_name} and patch_size must be multiples of the glance network's stride {self.map_stride}, got "
                f"{self.glance_side} and {self.patch_size}"
            )
        if not (0 <= self.dropout < 1 and 0 <= self.head_dropout < 1):
            raise ValueError(f"dropout lies in [0, 1), got {self.dropout} and {self.head_dropout}")
        if self.temperature <= 0:
            raise ValueError(f"temperature must be above 0, got {self.temperature}")

    @property
    def num_frames(self) -> int:
        """Frames of a clip as the model gets it."""
        return self.num_candidates + (0 if self.variant == "pooling" else self.num_glance)

    @property
    def block_depths(self) -> tuple[int, ...]:
        """Blocks of each stage of the focus network."""
        return self.focus_depths if self.focus_depths is not None else DEPTHS[self.focus_backbone]

    @property
    def map_stride(self) -> int:
        """Pixels along a side of one cell of the glance network's map."""
        if self.variant == "x3d":
            return int(2 ** (1 + len(self.x3d_widths)))
        stride = 2
        for *_, first in self.glance_stages:
            stride *= first
        return stride

    @property
    def glance_side(self) -> int:
        """Side in pixels of a frame as the glance network sees it."""
        return self.glance_size if self.variant == "x3d" else self.image_size

    @property
    def map_size(self) -> int:
        """Side of the glance network's map in cells."""
        return self.glance_side // self.map_stride

    @property
    def num_removals(self) -> int:
        """Numbers of frames, 0 among them, that the temporal loss removes: g / 3, rounded down, or of "x3d" rounded."""
        return round(self.num_glance / 3) if self.variant == "x3d" else self.num_glance // 3

    @property
    def geometry(self) -> PatchGeometry:
        """How actions become patches."""
        return PatchGeometry(image_size=self.image_size, min_extent=self.min_extent, patch_size=self.patch_size)


@dataclass(frozen=True, kw_only=True)
class Draws:
    """The random numbers of one training pass; what is None is drawn."""

    glance_offsets: Tensor | None = None
    """(n, g) int64: which frame of each segment is glanced at, in [0, s / g)."""
    thresholds: Tensor | None = None
    """(n, f) in [0, 1): where in its share each focus frame is taken."""
    positions: Tensor | None = None
    """(n, s, 2) in (0, 1): y and x of the random branch's rectangles; "tsm" and "x3d": (n, 2)."""
    removed: Sequence[Tensor] | None = None
    """See `draw_removed_frames`."""


class Glance(NamedTuple):
    """What the glance network and the temporal policy say of n clips, in float32."""

    maps: Tensor
    """(n, g, c, h, w)."""
    features: Tensor
    """(n, g, c): mean over the map; "tsm": after dropout."""
    weights: Tensor
    """(n, g), sum 1."""
    choice_weights: Tensor
    """(n, g): the same at the configured temperature."""
    policy_logits: Tensor
    """(n, g)."""


class FocusNetwork(nn.Module):
    """A ResNet on patches, with TSM's shift before the first convolution of every block where `shift_div` says so."""

    def __init__(self, config: UniAdaFocusConfig) -> None:
        super().__init__()
        self.shift_div = config.shift_div if config.variant == "tsm" else None
        self.backbone = ResNet(
            layout="basic" if config.focus_backbone == "resnet18" else "bottleneck",
            depths=config.block_depths,
            widths=config.focus_widths,
            stem=config.focus_stem,
        )
        self.out_channels = self.backbone.out_channels

    def forward(self, patches: Tensor, *, num_frames: int = 1) -> Tensor:
        """(n*t, 3, p, p) -> features (n*t, out_channels), mean over the last map, in float32."""
        _, x = deque(self.maps(patches, num_frames=num_frames), maxlen=1).pop()
        return x.float().mean((-2, -1))

    def maps(self, patches: Tensor, *, num_frames: int = 1) -> Iterator[tuple[str, Tensor]]:
        """What leaves the stem and every stage, by name."""
        x = self.backbone.stem(patches)
        yield "stem", x
        for stage, blocks in self.backbone.stages.items():
            for block in blocks:
                if self.shift_div is None:
                    x = block(x)
                else:
                    shifted = temporal_shift(x, num_frames=num_frames, mode="offline", shift_div=self.shift_div)
                    x = block.outer(block.inner(shifted), block.shortcut(x))
            yield stage, x


class X3dFocusNetwork(nn.Module):
    """An X3D on patches."""

    def __init__(self, config: UniAdaFocusConfig) -> None:
        super().__init__()
        self.backbone = X3d(depths=config.x3d_focus_depths, widths=config.x3d_widths)
        self.out_channels = self.backbone.out_channels

    def forward(self, patches: Tensor, *, num_frames: int) -> Tensor:
        """(n*t, 3, p, p) -> features (n*t, out_channels), mean over each frame's map, in float32."""
        maps: Tensor = self.backbone(patches, num_frames=num_frames)
        return maps.float().mean((-2, -1))


class PoolingClassifier(nn.Module):
    """Classifies after every frame from the running maximum of the features seen so far.

        u_t = max of the first t glance features          step t:      linear_t(u_t)
        v_i = max of the first i focus features           step g + i:  linear_i([v_i ; u_g])   the focus part first

    Every step has a linear layer of its own. Source: specification section 2.7; after FrameExit (CVPR 2021).
    """

    def __init__(self, config: UniAdaFocusConfig, num_classes: int, *, glance_dim: int, focus_dim: int) -> None:
        super().__init__()
        width = config.classifier_hidden_dim
        self.dropout = config.dropout
        self.glance_mlp = nn.Sequential(nn.Linear(glance_dim, width), nn.BatchNorm1d(width), nn.ReLU())
        self.focus_mlp = nn.Sequential(nn.Linear(focus_dim, width), nn.BatchNorm1d(width), nn.ReLU())
        self.glance_steps = nn.ModuleList(nn.Linear(width, num_classes) for _ in range(config.num_glance))
        self.focus_steps = nn.ModuleList(nn.Linear(2 * width, num_classes) for _ in range(config.num_focus))

    def forward(self, glance: Tensor, focus: Tensor) -> Tensor:
        """Features (n, g, c) and (n, f, d) -> logits of all steps (n, g + f, k)."""
        seen = self.embed(self.glance_mlp, glance).cummax(1).values
        looked_at = self.embed(self.focus_mlp, focus).cummax(1).values
        logits = [self.classify(step, u) for step, u in zip(self.glance_steps, seen.unbind(1), strict=True)]
        for step, v in zip(self.focus_steps, looked_at.unbind(1), strict=True):
            logits.append(self.classify(step, torch.cat([v, seen[:, -1]], dim=-1)))
        return torch.stack(logits, dim=1)

    def classify(self, step: nn.Module, pooled: Tensor) -> Tensor:
        """Logits (n, k) of one step."""
        logits: Tensor = step(dropout(pooled, self.dropout, self.training))
        return logits

    @staticmethod
    def embed(mlp: nn.Module, features: Tensor) -> Tensor:
        """(n, t, c) -> (n, t, width); the batch norm's statistics are over all frames."""
        embedded: Tensor = mlp(features.flatten(0, 1))
        return embedded.view(*features.shape[:2], -1)


class TwoHeads(nn.Module):
    """The TSM variant's two classifiers of one network.

    (17) `final` gives the prediction and trains on detached features; `average` trains the network.
    """

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        self.final = nn.Linear(channels, num_classes)
        self.average = nn.Linear(channels, num_classes)
        for head in (self.final, self.average):
            nn.init.normal_(head.weight, std=0.001)
            nn.init.zeros_(head.bias)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """(n, t, c) -> final logits (n, k), and of every frame those to average (n, t, k)."""
        return self.predict(features), self.average(features)

    def predict(self, features: Tensor) -> Tensor:
        """(n, t, c) -> final logits (n, k)."""
        logits: Tensor = self.final(features.detach())
        return logits.mean(1)


class X3dHeads(nn.Module):
    """The X3D variant's two classifiers of one network, both in float32.

    `final` is the network's own, of the mean over all frames; it gives the prediction. `average` sees single frames.
    Unlike TSM's both train the network, and start from the same published weights. Source: specification section 9.
    """

    def __init__(self, channels: int, num_classes: int, *, hidden_dim: int, dropout: float) -> None:
        super().__init__()
        self.final = X3dHead(channels, num_classes, hidden_dim=hidden_dim, dropout=dropout)
        self.average = X3dHead(channels, num_classes, hidden_dim=hidden_dim, dropout=dropout)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """(n, t, c) -> final logits (n, k), and of every frame those to average (n, t, k)."""
        with _full_precision(features):
            return self.predict(features), self.average(features)

    def predict(self, features: Tensor) -> Tensor:
        """(n, t, c) -> final logits (n, k)."""
        with _full_precision(features):
            logits: Tensor = self.final(features.mean(1))
        return logits


class _Network(nn.Module):
    """What all variants have: two networks and two policies."""

    glance: MobileNetV2 | X3d
    focus: FocusNetwork | X3dFocusNetwork

    def __init__(self, config: UniAdaFocusConfig, num_classes: int) -> None:
        super().__init__()
        self.config = config
        self.num_classes = num_classes
        self.geometry = config.geometry
        if config.variant == "x3d":
            self.glance = X3d(depths=config.x3d_glance_depths, widths=config.x3d_widths)
            self.focus = X3dFocusNetwork(config)
        else:
            self.glance = MobileNetV2(
                stages=config.glance_stages,
                width=config.glance_width,
                shift_div=config.shift_div if config.variant == "tsm" else None,
            )
            self.focus = FocusNetwork(config)
        self.spatial_policy = SpatialPolicy(
            self.glance.out_channels,
            config.map_size,
            hidden_dim=config.spatial_hidden_dim,
            num_joint_frames=1 if config.variant == "pooling" else config.num_glance,
        )
        self.temporal_policy = TemporalPolicy(self.glance.out_channels, hidden_dim=config.temporal_hidden_dim)
        self.spatial_head = nn.Linear(self.glance.out_channels, num_classes)

    def load_imagenet(self, glance: Path | None = None, focus: Path | None = None) -> None:
        """Start both networks from torchvision's ImageNet weights (local copies where paths are given).

        Raises:
            UsageError: the networks are X3D's.
        """
        if not isinstance(self.glance, MobileNetV2) or not isinstance(self.focus, FocusNetwork):
            raise UsageError("there are no ImageNet weights of X3D; start variant 'x3d' with init = 'kinetics400'.")
        mobilenet_v2.load_imagenet(self.glance, glance)
        resnet.load_imagenet(self.focus.backbone, focus)

    def check(self, frames: Tensor) -> None:
        """Raises ValueError for clips of another length or size than the model was built for."""
        config = self.config
        expected = (config.num_frames, 3, config.image_size, config.image_size)
        if tuple(frames.shape[1:]) != expected:
            raise ValueError(f"this Uni-AdaFocus takes clips {expected} (t, c, h, w), got {tuple(frames.shape[1:])}")

    def look(self, glance_frames: Tensor) -> Glance:
        """The glance network on (n, g, 3, h, w), and the temporal policy's weights."""
        maps = self.glance_maps(glance_frames)
        with _full_precision(maps):
            return self.weigh(maps, self.glance_features(maps))

    def glance_maps(self, glance_frames: Tensor) -> Tensor:
        """The glance network on (n, g, 3, h, w): maps (n, g, c, h', w')."""
        frames = glance_frames.flatten(0, 1)
        side = self.config.glance_side
        if frames.shape[-1] != side:
            with _full_precision(frames):
                frames = interpolate(frames, (side, side), mode="bilinear", align_corners=False)
        maps: Tensor = self.glance(frames, num_frames=glance_frames.shape[1]).float()
        return maps.view(*glance_frames.shape[:2], *maps.shape[1:])

    def weigh(self, maps: Tensor, features: Tensor) -> Glance:
        """What the temporal policy makes of maps (n, g, c, h, w) and features (n, g, c)."""
        logits = self.temporal_policy(features if self.config.variant == "pooling" else features.detach())
        return Glance(
            maps=maps,
            features=features,
            weights=logits.softmax(1),
            choice_weights=(logits / self.config.temperature).softmax(1),
            policy_logits=logits,
        )

    def glance_features(self, maps: Tensor) -> Tensor:
        """(n, g, c, h, w) -> (n, g, c)."""
        return maps.mean((-2, -1))

    def choose(self, glance: Glance, thresholds: Tensor | None = None) -> Tensor:
        """Candidates to focus on, (n, f); in training at random places of their shares."""
        config = self.config
        if self.training and thresholds is None:
            weights = glance.choice_weights
            thresholds = torch.rand(len(weights), config.num_focus, dtype=weights.dtype, device=weights.device)
        return choose_frames(
            glance.choice_weights,
            num_candidates=config.num_candidates,
            num_focus=config.num_focus,
            draws=thresholds,
        )

    def cut(self, candidates: Tensor, chosen: Tensor, actions: Tensor) -> Tensor:
        """Patches (n*f, 3, p, p) of the chosen frames; no other frame is read.

        Args:
            candidates: (n, s, 3, h, w).
            chosen: (n, f) of each clip's candidates.
            actions: (n, f, 4) of the chosen frames, or (n, 1, 4) for all of a clip.
        """
        with _full_precision(candidates):
            rows = torch.arange(chosen.shape[0], device=chosen.device)[:, None]
            frames = candidates[rows, chosen].flatten(0, 1).float()
            spread = actions.expand(-1, chosen.shape[1], -1).flatten(0, 1)
            return self.geometry.resample(frames, spread, points=self.config.patch_size)

    def spatial_logits(self, maps: Tensor, actions: Tensor) -> Tensor:
        """What trains the spatial policy: logits (n, k) of the maps (n, g, c, h, w) inside the rectangles."""
        return self.spatial_head(self.map_patches(maps, actions).mean((1, 3, 4)))  # type: ignore[no-any-return]

    def map_patches(self, maps: Tensor, actions: Tensor) -> Tensor:
        """(n, g, c, h, w), actions (n, g or 1, 4) -> (n, g, c, p', p')."""
        points = self.geometry.points(maps.shape[-1])
        spread = actions.expand(-1, maps.shape[1], -1).flatten(0, 1)
        patches = self.geometry.resample(maps.flatten(0, 1), spread, points=points)
        return patches.view(*maps.shape[:2], *patches.shape[1:])

    def temporal_logits(self, glance: Glance, frame_logits: Tensor, draws: Draws) -> Tensor:
        """What trains the temporal policy, (n, k)."""
        removed = draws.removed
        if removed is None:
            removed = draw_removed_frames(
                glance.weights, num_removals=self.config.num_removals, num_samples=self.config.num_samples
            )
        return monte_carlo_logits(glance.weights, frame_logits, removed)

    def random_actions(self, positions: Tensor) -> Tensor:
        """Actions of rectangles exactly as large as the patch, at y and x (..., 2)."""
        return torch.cat([positions, torch.full_like(positions, self.geometry.unit_action)], dim=-1)


class UniAdaFocus(_Network):
    """`forward(frames (n, s, 3, h, w)) -> Output`: logits (n, k) of the last step.

    `aux` in evaluation: `step_logits` (n, g + f, k), of which the last f + 1 are exits; `weights` (n, g),
    `glance_actions` (n, g, 4), `focus_indices` (n, f), `focus_actions` (n, f, 4). In training also, all of them with
    gradients: `glance_logits` (n, g, k), `focus_logits` (n, f, k), `temporal_logits`, `spatial_logits` (n, k), and of
    the random branch `random_step_logits`, `random_focus_logits`, `random_focus_actions`.
    """

    def __init__(self, config: UniAdaFocusConfig, num_classes: int) -> None:
        super().__init__(config, num_classes)
        self.glance_head = nn.Linear(self.glance.out_channels, num_classes)
        self.focus_head = nn.Linear(self.focus.out_channels, num_classes)
        self.classifier = PoolingClassifier(
            config, num_classes, glance_dim=self.glance.out_channels, focus_dim=self.focus.out_channels
        )

    def forward(self, frames: Tensor, *, draws: Draws | None = None) -> Output:
        """Classify clips.

        Args:
            frames: (n, s, 3, h, w), the candidates.
            draws: given random numbers of training.
        """
        self.check(frames)
        if self.training:
            return self.forward_training(frames, draws or Draws())
        glance = self.look(frames[:, self.glance_indices])
        with _full_precision(frames):
            glance_actions = self.spatial_policy(glance.maps)
        chosen = self.choose(glance)
        actions = self.actions_of(chosen, glance_actions)
        features = self.focus(self.cut(frames, chosen, actions)).view(*chosen.shape, -1)
        with _full_precision(frames):
            step_logits = self.classifier(glance.features, features)
        return Output(
            logits=step_logits[:, -1],
            aux={
                "step_logits": step_logits,
                "weights": glance.weights,
                "policy_logits": glance.policy_logits,
                "glance_actions": glance_actions,
                "focus_indices": chosen,
                "focus_actions": actions,
            },
        )

    @property
    def glance_indices(self) -> Tensor:
        """Candidates that evaluation glances at: the second of each segment, 1, 1 + s / g, ..."""
        config = self.config
        return torch.arange(1, config.num_candidates, config.num_candidates // config.num_glance)

    def actions_of(self, chosen: Tensor, glance_actions: Tensor) -> Tensor:
        """Actions of the chosen candidates, (n, f, 4), interpolated from those of the glance frames."""
        every = interpolate_actions(glance_actions, self.config.num_candidates)
        return every.gather(1, chosen[..., None].expand(-1, -1, 4))

    def forward_training(self, frames: Tensor, draws: Draws) -> Output:
        """Two branches on the same frames, the policy's rectangles and random ones, and both surrogates.

        (6) The focus network sees both branches in one batch; the classifier and the spatial policy run twice, which
        shows in their batch norms' statistics only. Source: specification section 2.9.
        """
        config, n = self.config, len(frames)
        segment = config.num_candidates // config.num_glance
        offsets = draws.glance_offsets
        if offsets is None:
            offsets = torch.randint(segment, (n, config.num_glance), device=frames.device)
        glanced = offsets + segment * torch.arange(config.num_glance, device=frames.device)
        glance = self.look(frames[torch.arange(n, device=frames.device)[:, None], glanced])
        positions = draws.positions
        if positions is None:
            positions = torch.rand(n, config.num_candidates, 2, device=frames.device)
        maps = glance.maps.detach()
        with _full_precision(frames), torch.no_grad():
            policy_actions = self.spatial_policy(maps)
        chosen = self.choose(glance, draws.thresholds)
        actions = self.actions_of(chosen, policy_actions)
        random_actions = self.random_actions(positions).gather(1, chosen[..., None].expand(-1, -1, 4))
        patches = torch.cat([self.cut(frames, chosen, rectangles) for rectangles in (actions, random_actions)])
        features, random_features = self.focus(patches).view(2, *chosen.shape, -1)
        with _full_precision(frames):
            step_logits = self.classifier(glance.features, features)
            random_step_logits = self.classifier(glance.features, random_features)
            glance_logits = self.classify_frames(self.glance_head, glance.features)
            glance_actions = self.spatial_policy(maps)
            aux = {
                "step_logits": step_logits,
                "random_step_logits": random_step_logits,
                "glance_logits": glance_logits,
                "focus_logits": self.classify_frames(self.focus_head, features),
                "random_focus_logits": self.classify_frames(self.focus_head, random_features),
                "temporal_logits": self.temporal_logits(glance, glance_logits, draws),
                "spatial_logits": self.spatial_logits(maps, glance_actions),
                "weights": glance.weights,
                "policy_logits": glance.policy_logits,
                "glance_actions": glance_actions,
                "glance_indices": glanced,
                "focus_indices": chosen,
                "focus_actions": actions,
                "random_focus_actions": random_actions,
            }
        return Output(logits=step_logits[:, -1], aux=aux)

    def classify_frames(self, head: nn.Module, features: Tensor) -> Tensor:
        """(n, t, c) -> (n, t, k), frame by frame."""
        logits: Tensor = head(dropout(features, self.config.head_dropout, self.training))
        return logits


class UniAdaFocusTsm(_Network):
    """`forward(frames (n, g + s, 3, h, w)) -> Output`: logits (n, k); the glance clip lies before the candidates.

    The X3D variant is the same around other networks and heads (`variant = "x3d"`).

    `aux` in evaluation: `glance_average` (n, k), exit 0, and its frames' `glance_frame_logits` (n, g, k);
    `glance_final`, `focus_final` (n, k); `weights` (n, g), `glance_actions` (n, 1, 4), `focus_indices` (n, f). In
    training also `focus_average`, `random_logits`, `random_focus_average`, `temporal_logits`, `spatial_logits` (n, k)
    and `random_focus_actions` (n, 1, 4).
    """

    def __init__(self, config: UniAdaFocusConfig, num_classes: int) -> None:
        super().__init__(config, num_classes)
        self.glance_heads = self._heads(self.glance.out_channels)
        self.focus_heads = self._heads(self.focus.out_channels)

    def _heads(self, channels: int) -> TwoHeads | X3dHeads:
        config = self.config
        if config.variant == "tsm":
            return TwoHeads(channels, self.num_classes)
        return X3dHeads(channels, self.num_classes, hidden_dim=config.x3d_head_dim, dropout=config.dropout)

    def load_kinetics400(self, glance: Path | None = None, focus: Path | None = None) -> None:
        """Start both networks of the X3D variant from weights trained on Kinetics-400, all heads from their heads.

        Args:
            glance: a local copy of X3D-S's, PyTorchVideo's or PySlowFast's; None: see `x3d.load_kinetics400`.
            focus: of X3D-L's.

        Raises:
            UsageError: the networks are TSM's.
        """
        if not isinstance(self.glance, X3d) or not isinstance(self.focus, X3dFocusNetwork):
            raise UsageError("only variant 'x3d' has Kinetics-400 weights; start the others with init = 'imagenet'.")
        fresh = x3d.load_kinetics400(self.glance, _both(self.glance_heads), size="s", path=glance)
        fresh += x3d.load_kinetics400(self.focus.backbone, _both(self.focus_heads), size="l", path=focus)
        if fresh:
            logger.info("projections of all heads start afresh: there are %d classes, not 400", self.num_classes)

    def forward(self, frames: Tensor, *, draws: Draws | None = None) -> Output:
        """Classify clips.

        Args:
            frames: (n, g + s, 3, h, w): the glance clip, then the candidates.
            draws: given random numbers of training.
        """
        self.check(frames)
        glance_frames, candidates = frames[:, : self.config.num_glance], frames[:, self.config.num_glance :]
        if self.training:
            return self.forward_training(glance_frames, candidates, draws or Draws())
        glance = self.look(glance_frames)
        with _full_precision(frames):
            actions = self.spatial_policy(glance.maps)
        chosen = self.choose(glance)
        glance_final, glance_average = self.glance_heads(glance.features)
        aux = _averages(glance_final, glance_average) | {
            "focus_final": self.focus_heads.predict(self.focus_features(self.cut(candidates, chosen, actions))),
            "weights": glance.weights,
            "policy_logits": glance.policy_logits,
            "glance_actions": actions,
            "focus_indices": chosen,
        }
        return Output(logits=aux["glance_final"] + aux["focus_final"], aux=aux)

    def glance_features(self, maps: Tensor) -> Tensor:
        """(n, g, c, h, w) -> (n, g, c), with dropout in training, which "x3d" has inside its heads instead."""
        return self._dropout(super().glance_features(maps))

    def focus_features(self, patches: Tensor) -> Tensor:
        """(n*f, 3, p, p) -> (n, f, d), with dropout in training, which "x3d" has inside its heads instead."""
        features = self._dropout(self.focus(patches, num_frames=self.config.num_focus))
        return features.view(-1, self.config.num_focus, features.shape[-1])

    def _dropout(self, features: Tensor) -> Tensor:
        return dropout(features, self.config.dropout, self.training and self.config.variant == "tsm")

    def forward_training(self, glance_frames: Tensor, candidates: Tensor, draws: Draws) -> Output:
        """Two branches, random rectangles first and then the policy's, and both surrogates.

        Source: specification section 8.
        """
        glance, n = self.look(glance_frames), len(candidates)
        maps = glance.maps.detach()
        with _full_precision(candidates), torch.no_grad():
            actions = self.spatial_policy(maps)
        positions = draws.positions
        if positions is None:
            positions = torch.rand(n, 2, device=candidates.device)
        random_actions = self.random_actions(positions)[:, None]
        chosen = self.choose(glance, draws.thresholds)
        patches = torch.cat([self.cut(candidates, chosen, rectangle) for rectangle in (random_actions, actions)])
        glance_final, glance_average = self.glance_heads(glance.features)
        focus_final, focus_average = self.focus_heads(self.focus_features(patches))
        final, average = focus_final.split(n), focus_average.mean(1).split(n)
        with _full_precision(candidates):
            glance_actions = self.spatial_policy(maps)
            spatial_logits = self.spatial_logits(maps, glance_actions)
            temporal_logits = self.temporal_logits(glance, glance_average.detach().float(), draws)
        aux = _averages(glance_final, glance_average)
        aux |= {
            "random_logits": aux["glance_final"] + final[0],
            "random_focus_average": average[0],
            "random_focus_actions": random_actions,
            "focus_final": final[1],
            "focus_average": average[1],
            "temporal_logits": temporal_logits,
            "spatial_logits": spatial_logits,
            "weights": glance.weights,
            "policy_logits": glance.policy_logits,
            "glance_actions": glance_actions,
            "focus_indices": chosen,
        }
        return Output(logits=aux["glance_final"] + final[1], aux=aux)


def build(config: UniAdaFocusConfig, num_classes: int) -> UniAdaFocus | UniAdaFocusTsm:
    """The trainable form of the configured variant."""
    return UniAdaFocus(config, num_classes) if config.variant == "pooling" else UniAdaFocusTsm(config, num_classes)


def _both(heads: TwoHeads | X3dHeads) -> list[X3dHead]:
    return [head for head in (heads.final, heads.average) if isinstance(head, X3dHead)]


def _averages(final: Tensor, average: Tensor) -> dict[str, Tensor]:
    return {
        "glance_final": final,
        "glance_average": average.mean(1),
        "glance_frame_logits": average,
    }


def _full_precision(like: Tensor) -> AbstractContextManager[object]:
    """Float32 inside, whatever autocast is on: published mixed precision is that of the two networks only."""
    kind = like.device.type
    return torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else nullcontext()
