"""TAPS, the trainable form: a ResNet whose blocks multiply the output of conv1 by hard and soft gates.

Nothing is skipped here; `dynamic.py` computes only what the gates keep.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout

from vidmodels.backbones.resnet import DEPTHS, Layout, ResidualBlock, ResNet, Stem, load_imagenet
from vidmodels.layers.gumbel import GateNoise, draw_gate_noise, open_gates, straight_through_gate
from vidmodels.layers.temporal_shift import ShiftMode, temporal_shift
from vidmodels.methods.taps.policy import AttentionMode, Policy, PolicyOutput
from vidmodels.types import Output

__all__ = ["Gates", "Gating", "Taps", "TapsConfig", "build", "decide", "make_gates", "run_block"]


@dataclass(frozen=True, kw_only=True)
class TapsConfig:
    """What varies in TAPS. Defaults are what the published checkpoints were trained and are tested with.

    Numbers in brackets point to the traps in section 6 of the specification, retold in this folder's README.
    """

    backbone: Literal["resnet18", "resnet50"] = "resnet50"
    """Kind of block: basic or bottleneck; and the depths unless given."""
    depths: tuple[int, ...] | None = None
    """Blocks of each stage; None: the backbone's own."""
    widths: tuple[int, ...] = (64, 128, 256, 512)
    stem: Stem = "conv7_pool"
    dropout: float = 0.5
    """Before the classifier, in training."""

    temporal_shift: ShiftMode = "online"
    """(17) Says nothing in a checkpoint; the published ActivityNet one needs "none"."""
    shift_div: int = 8
    copy_edges: bool = False

    pruning: bool = True
    """False: no policies and no gates, the dense baseline."""
    hidden_dim: int = 1024
    num_heads: int = 4
    attention: AttentionMode = "full"
    """(1) In training, and in evaluation unless `eval_attention` says otherwise."""
    eval_attention: AttentionMode | None = None
    """(1) None: as in training. The published Mini-Kinetics test uses "future_bias"."""
    positional_encoding: bool = False
    """(2) Never added in published runs."""
    feed_forward: bool = False
    """(8) Off in published runs."""
    soft_gates: bool = True

    gate_noise: bool = True
    gate_noise_until_epoch: int | None = None
    """Train without noise from this epoch on."""
    soft_gates_from_epoch: int = 0
    """Train without the soft factor before this epoch."""
    warmup_hard_gates_open: bool = True
    """(12) All channels are kept in epochs before `sparsity_warmup_start`."""
    temperature: float = 0.67
    temperature_decay: float = 0.0
    """tau = temperature * exp(-temperature_decay * epoch); 0 is the published constant, 0.045 the code's option."""
    sparsity_lambda: float = 5.0
    density_target: float = 0.45
    """(5) d; because r leaves terms out of its numerator, 0.45 means 0.55 of the dense cost."""
    sparsity_warmup_start: int = 10
    sparsity_warmup_end: int = 30
    """Lambda rises linearly between these epochs; no ramp unless 0 <= start < end."""
    sparsity_loss: Literal["squared", "l1"] = "squared"
    sparsity_gradient: Literal["conv1", "all"] = "conv1"
    """(4) "conv1": the term of conv2 counts but has no gradient, as published; the published lambda belongs to it."""
    attention_in_proj: Literal["untrained", "frozen", "trained"] = "untrained"
    """(3) Query, key and value projections. "untrained": not updated, but their gradients accumulate and enter the
    clipping norm, as published; "frozen": no gradients; "trained": like all other weights."""
    static_macs_image_size: int = 224
    """(6) Side of the input that the denominator of the density ratio is counted for."""

    def __post_init__(self) -> None:
        if self.shift_div < 1:
            raise ValueError(f"shift_div must be at least 1, got {self.shift_div}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout lies in [0, 1), got {self.dropout}")
        if self.temperature <= 0:
            raise ValueError(f"temperature must be above 0, got {self.temperature}")
        if len(self.widths) != len(self.block_depths) or not self.widths:
            raise ValueError(
                f"widths and depths need one number a stage, got widths {self.widths} and depths {self.block_depths}"
            )
        if min(*self.widths, *self.block_depths, self.hidden_dim, self.num_heads, self.static_macs_image_size) < 1:
            raise ValueError("widths, depths, hidden_dim, num_heads and static_macs_image_size must be at least 1")
        expansion = 4 if self.backbone == "resnet50" else 1
        channels = {self.widths[0], *(expansion * width for width in self.widths)}
        if self.pruning and any(c % self.num_heads for c in channels):
            raise ValueError(
                f"num_heads = {self.num_heads} does not divide the channels that enter every block, "
                f"{sorted(channels)}; choose a common divisor"
            )

    @property
    def layout(self) -> Layout:
        """Kind of residual block."""
        return "bottleneck" if self.backbone == "resnet50" else "basic"

    @property
    def block_depths(self) -> tuple[int, ...]:
        """Blocks of each stage."""
        return self.depths if self.depths is not None else DEPTHS[self.backbone]


@dataclass(frozen=True, kw_only=True)
class Gating:
    """How the gates of one forward pass are made from their logits."""

    hard: Literal["threshold", "straight_through", "open"] = "threshold"
    """Evaluation's logit >= 0; training's noisy gate with a gradient; or all ones without a gradient."""
    soft: bool = True
    attention: AttentionMode = "full"
    temperature: float = 1.0
    """Of straight-through gates."""
    noise: bool = False
    """Straight-through gates draw noise."""


class Gates(NamedTuple):
    """Gates of one block, each (n, t, w)."""

    mask: Tensor
    """0 or 1: which channels of conv1 are kept."""
    soft: Tensor
    """sigmoid(logits): what kept channels are scaled by, unless soft gates are off."""
    logits: Tensor


class Taps(nn.Module):
    """`forward(frames (n, t, 3, h, w)) -> Output`: logits (n, k), the mean of the frames' logits.

    `aux` holds `frame_logits` (n, t, k) and `input_size` [h, w]; with pruning also `masks`, `soft` and `gate_logits`,
    each (n, t, all gates), the blocks one after another (`split_gates` parts them).
    """

    def __init__(self, config: TapsConfig, num_classes: int) -> None:
        super().__init__()
        self.config = config
        self.num_classes = num_classes
        self.backbone = ResNet(
            layout=config.layout,
            depths=config.block_depths,
            widths=config.widths,
            stem=config.stem,
        )
        self.policies = nn.ModuleDict()
        if config.pruning:
            for stage, blocks in self.backbone.stages.items():
                self.policies[stage] = nn.ModuleList(build_policy(config, block) for block in blocks)
        self.head = nn.Linear(self.backbone.out_channels, num_classes)
        nn.init.normal_(self.head.weight, std=0.001)
        nn.init.zeros_(self.head.bias)

    @property
    def blocks(self) -> list[ResidualBlock]:
        """All residual blocks in network order."""
        return [block for blocks in self.backbone.stages.values() for block in blocks]

    @property
    def num_gates(self) -> list[int]:
        """Gated channels of each block, in network order."""
        return [block.shape.width for block in self.blocks]

    def load_imagenet(self, path: Path | None = None) -> None:
        """Start from torchvision's ImageNet weights (a local copy when `path` is given)."""
        load_imagenet(self.backbone, path)

    def forward(
        self,
        frames: Tensor,
        *,
        temperature: float | None = None,
        hard_gates_open: bool = False,
        soft_gates: bool | None = None,
        gate_noise: bool | None = None,
        noise: Sequence[GateNoise] | None = None,
        generator: torch.Generator | None = None,
    ) -> Output:
        """Classify clips.

        Args:
            frames: (n, t, 3, h, w).
            temperature: of training's hard gates; None: the configured one, without decay.
            hard_gates_open: keep every channel (warm-up), in training or evaluation.
            soft_gates: None: as configured.
            gate_noise: whether training's hard gates are noisy; None: as configured.
            noise: given draws, one for each block, (n, t, w); None: drawn from `generator`.
            generator: of the noise; None: torch's global one.
        """
        config = self.config
        attention = config.attention if self.training else config.eval_attention or config.attention
        hard: Literal["threshold", "straight_through", "open"] = "straight_through" if self.training else "threshold"
        gating = Gating(
            hard="open" if hard_gates_open else hard,
            soft=config.soft_gates if soft_gates is None else soft_gates,
            attention=attention,
            temperature=config.temperature if temperature is None else temperature,
            noise=config.gate_noise if gate_noise is None else gate_noise,
        )
        num_frames = frames.shape[1]
        x = self.backbone.stem(frames.flatten(0, 1))
        gates: list[Gates] = []
        for stage in self.backbone.stages:
            stage_noise = None if noise is None else noise[len(gates) : len(gates) + len(self.backbone.stages[stage])]
            x, stage_gates = self.run_stage(
                stage, x, num_frames=num_frames, gating=gating, noise=stage_noise, generator=generator
            )
            gates += stage_gates
        features = x.mean((-2, -1)).view(-1, num_frames, x.shape[1])
        return self.classify(features, gates, input_size=(frames.shape[-2], frames.shape[-1]))

    def run_stage(
        self,
        stage: str,
        x: Tensor,
        *,
        num_frames: int,
        gating: Gating,
        noise: Sequence[GateNoise] | None = None,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, list[Gates]]:
        """The blocks of one stage, (n*t, c, h, w) -> (n*t, out, h', w'), and their gates."""
        gates = []
        for index, block in enumerate(self.backbone.stages[stage]):
            shifted = self.shift(x, num_frames)
            policy = self.policy_of(stage, index)
            if policy is None:
                x = block.outer(block.inner(shifted), block.shortcut(x))
                continue
            block_noise = None if noise is None else noise[index]
            decided = decide(policy, shifted, num_frames=num_frames, attention=gating.attention)
            gates.append(make_gates(decided.logits, gating, noise=block_noise, generator=generator))
            x = run_block(block, x, shifted, gates[-1], soft=gating.soft)
        return x, gates

    def shift(self, x: Tensor, num_frames: int) -> Tensor:
        """The configured temporal shift of (n*t, c, h, w)."""
        return temporal_shift(
            x,
            num_frames=num_frames,
            mode=self.config.temporal_shift,
            shift_div=self.config.shift_div,
            copy_edges=self.config.copy_edges,
        )

    def policy_of(self, stage: str, index: int) -> Policy | None:
        """The policy of a block; None in the dense baseline."""
        if not self.config.pruning:
            return None
        policy = self.policies.get_submodule(f"{stage}.{index}")
        return policy if isinstance(policy, Policy) else None

    def classify(self, features: Tensor, gates: Sequence[Gates], *, input_size: tuple[int, int]) -> Output:
        """Mean over time of the frames' logits. `features`: (n, t, d), pooled."""
        frame_logits = self.head(dropout(features, self.config.dropout, self.training))
        aux: dict[str, Tensor] = {"frame_logits": frame_logits, "input_size": torch.tensor(input_size)}
        if gates:
            aux["masks"] = torch.cat([g.mask for g in gates], dim=-1)
            aux["soft"] = torch.cat([g.soft for g in gates], dim=-1)
            aux["gate_logits"] = torch.cat([g.logits for g in gates], dim=-1)
        return Output(logits=frame_logits.mean(1), aux=aux)

    def split_gates(self, gates: Tensor) -> list[Tensor]:
        """(n, t, all gates) -> one (n, t, w) for each block."""
        return list(torch.split(gates, self.num_gates, dim=-1))


def build(config: TapsConfig, num_classes: int) -> Taps:
    """The trainable form."""
    return Taps(config, num_classes)


def build_policy(config: TapsConfig, block: ResidualBlock) -> Policy:
    """The policy that goes with a block."""
    policy = Policy(
        block.shape.in_channels,
        block.shape.width,
        hidden_dim=config.hidden_dim,
        num_heads=config.num_heads,
        feed_forward=config.feed_forward,
        positional_encoding=config.positional_encoding,
    )
    if config.attention_in_proj == "frozen":
        for attention in (policy.attention1, policy.attention2):
            attention.in_proj.requires_grad_(False)
    return policy


def make_gates(
    logits: Tensor, gating: Gating, *, noise: GateNoise | None = None, generator: torch.Generator | None = None
) -> Gates:
    """Gates from logits (n, t, w), in float32 at least. Source: specification sections 2.4 (steps 8, 9) and 2.8."""
    if logits.dtype in (torch.bfloat16, torch.float16):
        logits = logits.float()  # under autocast the straight-through value would miss 0 and 1 by far more
    if gating.hard == "open":
        mask = torch.ones_like(logits)
    elif gating.hard == "threshold":
        mask = open_gates(logits)
    else:
        if gating.noise and noise is None:
            noise = draw_gate_noise(logits, generator)
        mask = straight_through_gate(logits, temperature=gating.temperature, noise=noise if gating.noise else None)
    return Gates(mask, torch.sigmoid(logits), logits)


def decide(policy: Policy, shifted: Tensor, *, num_frames: int, attention: AttentionMode) -> PolicyOutput:
    """Ask a policy about a block's SHIFTED input (n*t, c, h, w)."""
    out: PolicyOutput = policy(shifted.mean((-2, -1)).view(-1, num_frames, shifted.shape[1]), attention=attention)
    return out


def run_block(block: ResidualBlock, x: Tensor, shifted: Tensor, gates: Gates, *, soft: bool) -> Tensor:
    """A residual block with the channels of conv1 gated: (n*t, c, h, w) -> (n*t, out, h', w').

    Args:
        block: its convolutions and norms.
        x: what the shortcut gets, unshifted.
        shifted: what conv1 and the policy get.
        gates: of this block.
        soft: whether the soft factor is applied.
    """
    factor = gates.mask * gates.soft if soft else gates.mask
    return block.outer(block.inner(shifted) * factor.flatten(0, 1)[..., None, None], block.shortcut(x))
