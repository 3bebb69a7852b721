"""STA on VideoMAE's vision transformer: after three blocks the tokens that repeat what was seen are dropped.

There is one form: what is dropped is gone, in training as in evaluation, and with r = 0 it is the plain ViT.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout
from torch.utils.checkpoint import checkpoint

from vidmodels.backbones.vit import LAYER_NORM_EPS, SIZES, BlockOutput, VideoViT, ViTShape, init_weights
from vidmodels.methods.sta.pruning import NUM_GROUPS, Decision, Stage, choose_tokens, gather_tokens, stages
from vidmodels.types import Output
from vidprep.errors import UsageError

__all__ = ["Sta", "StaConfig", "build"]


@dataclass(frozen=True, kw_only=True)
class StaConfig:
    """What varies. r is the only dial of STA itself; the rest is VideoMAE's network and its fine-tuning."""

    prune_number: int = 0
    """r, tokens dropped of each of 8, then 4, then 2 groups of frames; 0 is the plain ViT."""
    size: Literal["small", "base", "large", "huge"] = "base"
    shape: ViTShape | None = None
    """A network of another size, instead of `size`."""
    num_frames: int = 16
    """t of every clip, as in the recipe's data."""
    image_size: int = 224
    """Side of every frame in pixels, the data's `crop`."""

    drop_path: float = 0.1
    """Stochastic depth of the last block in training, rising linearly from 0."""
    head_dropout: float = 0.0
    """Before the classifier, in training."""
    head_init_scale: float = 0.001
    """What the classifier's initial weights are multiplied by."""
    layer_decay: float = 0.75
    """The learning rate of each layer over that of the next one."""
    label_smoothing: float = 0.1
    mixup_alpha: float = 0.8
    """Of the beta distribution that clips are blended by; 0 blends none."""
    cutmix_alpha: float = 1.0
    """Of the beta distribution that boxes are exchanged by; 0 exchanges none."""
    activation_checkpointing: bool = False
    """Compute blocks again in the backward pass instead of keeping what is in them."""

    def __post_init__(self) -> None:
        if min(self.num_frames, self.image_size) < 1:
            raise ValueError(f"num_frames and image_size must be at least 1, got {self.num_frames}, {self.image_size}")
        for name in ("drop_path", "head_dropout", "label_smoothing"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} lies in [0, 1), got {getattr(self, name)}")
        if min(self.mixup_alpha, self.cutmix_alpha) < 0:
            raise ValueError(
                f"mixup_alpha and cutmix_alpha are at least 0, got {self.mixup_alpha}, {self.cutmix_alpha}"
            )
        if not 0 < self.layer_decay <= 1:
            raise ValueError(f"layer_decay lies in (0, 1], got {self.layer_decay}")
        if self.prune_number < 0:
            raise ValueError(f"prune_number must be at least 0, got {self.prune_number}")
        if self.prune_number:
            self._check_pruning()

    def _check_pruning(self) -> None:
        shape = self.vit
        if shape.depth < len(NUM_GROUPS):
            raise ValueError(f"pruning after 3 blocks needs a depth of at least 3, got {shape.depth}")
        time, rows, columns = shape.grid(self.num_frames, self.image_size, self.image_size)
        num_tokens = time * rows * columns
        if num_tokens % NUM_GROUPS[0]:
            raise ValueError(f"{num_tokens} tokens do not divide into the {NUM_GROUPS[0]} groups of the first stage")
        most = (num_tokens // 2 - 1) // 7  # after the last stage 2 groups of num_tokens / 2 - 7 r are left
        if self.prune_number > most:
            raise ValueError(
                f"prune_number is at most {most} for clips of {num_tokens} tokens, or none are left at the end; "
                f"got {self.prune_number}"
            )

    @property
    def vit(self) -> ViTShape:
        """Size of the network."""
        return self.shape or SIZES[self.size]

    @property
    def stages(self) -> tuple[Stage, ...]:
        """Where tokens are dropped; () for the plain ViT."""
        return stages(self.vit.depth) if self.prune_number else ()


class Sta(nn.Module):
    """`forward(frames (n, t, 3, h, w)) -> Output`: logits (n, k).

    `aux` holds for stage i = 1, 2, 3 `kept_i` (n, tokens): which tokens are left after it, as numbers of the
    original tokens, time * rows * columns + row * columns + column, in the order in which they are stored.
    """

    def __init__(self, config: StaConfig, num_classes: int) -> None:
        super().__init__()
        self.config = config
        self.num_classes = num_classes
        self.backbone = VideoViT(
            config.vit,
            num_frames=config.num_frames,
            image_size=(config.image_size, config.image_size),
            drop_path=config.drop_path,
        )
        self.norm = nn.LayerNorm(config.vit.width, eps=LAYER_NORM_EPS)
        self.head = nn.Linear(config.vit.width, num_classes)
        init_weights(self.head)
        with torch.no_grad():
            self.head.weight.mul_(config.head_init_scale)
        self._stages = {stage.after_block: stage for stage in config.stages}

    def forward(self, frames: Tensor) -> Output:
        """Classify clips."""
        tokens = self.backbone.embed(frames)
        numbers = torch.arange(tokens.shape[1], device=tokens.device).expand(tokens.shape[0], -1)
        aux: dict[str, Tensor] = {}
        for index, block in enumerate(self.backbone.blocks):
            stage = self._stages.get(index)
            tokens, keys = self.run_block(block, tokens, with_keys=stage is not None)
            if stage is not None and keys is not None:
                decision = self.choose(tokens, keys, stage)
                tokens, numbers = gather_tokens(tokens, decision.kept), gather_tokens(numbers, decision.kept)
                aux[f"kept_{len(aux) + 1}"] = numbers
        features = self.norm(tokens.mean(1))
        return Output(logits=self.head(dropout(features, self.config.head_dropout, self.training)), aux=aux)

    def run_block(self, block: nn.Module, tokens: Tensor, *, with_keys: bool) -> BlockOutput:
        """One block, with or without keeping what its backward pass needs."""
        if self.config.activation_checkpointing and self.training and torch.is_grad_enabled():
            out: BlockOutput = checkpoint(block, tokens, with_keys=with_keys, use_reentrant=False)
        else:
            out = block(tokens, with_keys=with_keys)
        return out

    def choose(self, tokens: Tensor, keys: Tensor, stage: Stage) -> Decision:
        """What a stage keeps."""
        return choose_tokens(
            tokens,
            keys,
            num_groups=stage.num_groups,
            prune_number=self.config.prune_number,
            backwards=stage.backwards,
        )

    def initial_weights(self, state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
        """What training starts from, and the entries that start afresh.

        Those are `norm` and `head` where the checkpoint has none (a pre-trained encoder), and a head for another
        number of classes.
        """
        own, given = self.state_dict(), dict(state)
        if any(name in given and given[name].shape != own[name].shape for name in ("head.weight", "head.bias")):
            given = {name: tensor for name, tensor in given.items() if not name.startswith("head.")}
        fresh = [name for name in own if name not in given and name.startswith(("norm.", "head."))]
        return {**given, **{name: own[name] for name in fresh}}, fresh


def build(config: StaConfig, num_classes: int) -> Sta:
    """The model, which trains and evaluates."""
    if num_classes < 1:
        raise UsageError(f"a classifier needs at least 1 class, got {num_classes}.")
    return Sta(config, num_classes)
