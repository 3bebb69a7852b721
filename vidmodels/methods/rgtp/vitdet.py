"""RGTP on ViTDet: a detector for video that computes, in most frames, only the tokens that attention leads to.

frame (3, h, w) -- normalise, pad --> (3, S, S) -- patches --> blocks --> pyramid p2 ... p6
   --> region proposals --> box heads --> detections
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from vidmodels.backbones.detection import (
    BoxHeadOutput,
    BoxHeads,
    CascadeBoxHeads,
    DetectionLimits,
    Detections,
    ProposalLimits,
    RegionProposals,
    RpnOutput,
    propose,
)
from vidmodels.backbones.vitdet import PatchEmbedding, Pyramid, ViTDet, ViTDetShape
from vidmodels.methods.rgtp.vitdet_boxes import run_boxes
from vidmodels.methods.rgtp.vitdet_maps import all_maps, changed_maps, is_worth_it
from vidmodels.methods.rgtp.vitdet_stream import (
    CELL,
    Memory,
    Rollout,
    StreamState,
    anchor_tokens,
    choose_tokens,
    heat_from_attention,
    next_state,
    run_key_frame,
    run_pruned_frame,
    start,
)
from vidprep.errors import UsageError

__all__ = ["ComputedFrame", "Detector", "DetectorOutput", "VitDetConfig", "build"]

MEAN = (123.675, 116.28, 103.53)
STD = (58.395, 57.12, 57.375)
"""Of RGB values from 0 to 255."""
ShownSizes = Sequence[tuple[int, int]] | None
"""(height, width) of the picture in the upper left of each padded image; None: it fills them."""
TRAINING_PROPOSALS = ProposalLimits(num_candidates=2000, num_proposals=1000)


@dataclass(frozen=True, kw_only=True)
class VitDetConfig:
    """What varies. `keep_ratio` is the only dial of RGTP itself; the rest is the detector."""

    image_size: int = 672
    """S, side in pixels of the padded square."""
    keep_ratio: float | None = None
    """Share of the tokens that are computed in a frame between two key frames; None computes all in every frame."""
    rollout: Rollout = "pooled"
    """Over cells of 2 x 2 tokens, first block first; or over tokens, last block first."""
    reset_interval: int = 8
    """Every so many frames a key frame is computed whole, and all that was kept from before is forgotten."""
    anchor_score: float = 0.1
    """Detections with a higher score are where the rollout starts."""
    shape: ViTDetShape = field(default_factory=ViTDetShape)
    channels: int = 256
    """Of the pyramid's levels and the heads."""
    cascade: bool = False
    """Three box heads, as in the published COCO weights; evaluation only."""
    proposals: ProposalLimits = field(default_factory=ProposalLimits)
    """In evaluation."""
    training_proposals: ProposalLimits = TRAINING_PROPOSALS
    detections: DetectionLimits = field(default_factory=DetectionLimits)

    def __post_init__(self) -> None:
        patch = self.shape.patch_size
        if self.image_size < 1 or self.image_size % patch:
            raise ValueError(f"image_size is a multiple of the patch, {patch} pixels, got {self.image_size}")
        if self.keep_ratio is not None:
            if not 0 < self.keep_ratio <= 1:
                raise ValueError(f"keep_ratio lies in (0, 1], got {self.keep_ratio}")
            if not self.num_kept:
                raise ValueError(f"keep_ratio = {self.keep_ratio} keeps none of {self.grid**2} tokens")
            if not self.shape.global_blocks:
                raise ValueError("the rollout reads the attention of global blocks, but global_blocks is empty")
            if 0 in self.shape.global_blocks:
                raise ValueError("block 0 drops the tokens and is a windowed one; take 0 out of global_blocks")
            if self.rollout == "pooled" and self.grid % 2:
                raise ValueError(
                    f"the pooled rollout takes 2 x 2 tokens together, but the grid is {self.grid} x {self.grid}"
                )
        if self.channels < 1:
            raise ValueError(f"channels must be at least 1, got {self.channels}")
        if self.reset_interval < 1:
            raise ValueError(f"reset_interval must be at least 1, got {self.reset_interval}")

    @property
    def grid(self) -> int:
        """g, tokens along a side."""
        return self.image_size // self.shape.patch_size

    @property
    def num_kept(self) -> int:
        """K, tokens that are computed in a pruned frame; all of them without `keep_ratio`."""
        return self.grid**2 if self.keep_ratio is None else round(self.keep_ratio * self.grid**2)

    @property
    def cell(self) -> int | None:
        """Side in tokens of the cells that attention is pooled over; None: it is not."""
        return CELL if self.rollout == "pooled" else None


@dataclass(frozen=True, kw_only=True)
class DetectorOutput:
    """All that losses and detections need of n images."""

    rpn: RpnOutput
    proposals: list[Tensor]
    """Of each image (r_i, 4), as they went into the box head."""
    boxes: BoxHeadOutput
    """What the box head says of them, those of the first image first."""


@dataclass(frozen=True, kw_only=True)
class ComputedFrame:
    """A frame of a stream between the backbone and the heads."""

    output: Tensor
    """(1, s, d): the last block's output, of dropped tokens from the frame they were last computed in."""
    patches: Tensor
    state: StreamState
    """Before the frame."""
    with_heat: bool
    """Whether a heat map is to be computed."""
    kept: Tensor | None = None
    """(K,) tokens that were computed; None: all of them."""
    memory: Memory | None = None


class Detector(nn.Module):
    """The detector. `forward` computes every token of images; `detect` gives what is found in them."""

    def __init__(self, config: VitDetConfig, num_classes: int) -> None:
        super().__init__()
        self.config, self.num_classes = config, num_classes
        self.embedding = PatchEmbedding(config.shape)
        self.backbone = ViTDet(config.shape)
        self.pyramid = Pyramid(config.shape.width, config.channels)
        self.proposal_generator = RegionProposals(config.channels)
        heads = CascadeBoxHeads if config.cascade else BoxHeads
        self.roi_heads: BoxHeads | CascadeBoxHeads = heads(num_classes, channels=config.channels)

    def forward(
        self,
        frames: Tensor,
        *,
        shown_sizes: ShownSizes = None,
        choose: Callable[[list[Tensor]], list[Tensor]] | None = None,
    ) -> DetectorOutput:
        """Run images through all stages, every token of every one.

        Args:
            frames: (..., 3, h, w) RGB, uint8 or in [0, 1], at most `config.image_size` along a side; leading
                dimensions are taken as one, n.
            shown_sizes: where images of several sizes were padded to one.
            choose: in training, takes the proposals of each image, (r_i, 4), and gives those that the box head is to
                see; the losses' sampling, which adds the annotated boxes.

        Raises:
            UsageError: a cascade, which has no single box head, or frames that are too large.
        """
        if not isinstance(self.roi_heads, BoxHeads):
            raise UsageError("a cascade of box heads does not train; use detect(), or model.cascade = false.")
        levels = self.features(frames, shown_sizes)
        rpn: RpnOutput = self.proposal_generator(levels)
        limits = self.config.training_proposals if self.training else self.config.proposals
        proposals, _ = propose(rpn, image_size=self.config.image_size, limits=limits)
        if choose is not None:
            proposals = choose(proposals)
        return DetectorOutput(rpn=rpn, proposals=proposals, boxes=self.roi_heads(levels, proposals))

    def initial_weights(self, state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
        """Weights of a detector of other classes, or of the cascade on COCO, as initial weights of this one.

        What fits is taken. The box head of a cascade's first stage becomes the only one; its further stages, the masks'
        head, and predictors of other classes are left out, and what nothing is given for starts afresh.

        Args:
            state: converted weights.

        Returns:
            Weights, and the names of those that start afresh. Outside of the box heads all must be given, and what is
            given must be known: loading says so otherwise.
        """
        own = self.state_dict()
        heads = {name: tensor for name, tensor in state.items() if name.startswith("roi_heads.")}
        if any(name.startswith("roi_heads.box_head.0.") for name in heads):
            first = ("roi_heads.box_head.0.", "roi_heads.box_predictor.0.")
            heads = {name.replace(".0.", ".", 1): tensor for name, tensor in heads.items() if name.startswith(first)}
        fitting = {name: heads[name] for name in heads if name in own and heads[name].shape == own[name].shape}
        fresh = [name for name in own if name.startswith("roi_heads.") and name not in fitting]
        rest = {name: tensor for name, tensor in state.items() if not name.startswith("roi_heads.")}
        return rest | fitting | {name: own[name] for name in fresh}, fresh

    @torch.no_grad()
    def detect(self, frames: Tensor, *, shown_sizes: ShownSizes = None) -> list[Detections]:
        """What is found in each of the images (..., 3, h, w), every token of every one computed."""
        levels = self.features(frames, shown_sizes)
        return self.detect_in(levels, self.proposal_generator(levels))

    @torch.no_grad()
    def step(
        self, frame: Tensor, state: StreamState | None = None, *, every_heat: bool = False
    ) -> tuple[Detections, StreamState]:
        """The next frame of a stream: what is found in it, and the state for the frame after it.

        Args:
            frame: (3, h, w) RGB, uint8 or in [0, 1]; all frames of a stream have one size.
            state: what the last step of this stream returned; None starts a stream. It is used once.
            every_heat: compute the heat map where no frame will read it, too.

        Raises:
            UsageError: frames that are too large.
            ValueError: a state that was used before.
        """
        computed = self.run_backbone(frame, state, every_heat=every_heat)
        detections = self.run_heads(computed)
        return detections, self.follow(computed, detections)

    @torch.no_grad()
    def run_backbone(
        self, frame: Tensor, state: StreamState | None = None, *, every_heat: bool = False
    ) -> ComputedFrame:
        """The first half of `step`: the last block's output of every token, not all of them computed in this frame."""
        config = self.config
        patches = self.embed(frame)
        if state is None:
            state = start(self.backbone, config.grid)
        with_heat = config.keep_ratio is not None and (
            every_heat or (state.num_frames + 1) % config.reset_interval != 0
        )
        if config.keep_ratio is None:
            x = patches + state.positions
            for block, tables in zip(self.backbone.each_block(), state.tables, strict=True):
                x = block(x, tables)
            return ComputedFrame(output=x, patches=patches, state=state, with_heat=with_heat)
        kept = None
        if state.num_frames % config.reset_interval == 0:
            memory = run_key_frame(self.backbone, patches, state, with_attention=with_heat, cell=config.cell)
        else:
            kept = choose_tokens(patches, state, grid=config.grid, keep_ratio=config.keep_ratio)
            memory = run_pruned_frame(self.backbone, patches, kept, state, with_attention=with_heat, cell=config.cell)
        return ComputedFrame(
            output=memory.output, patches=patches, state=state, with_heat=with_heat, kept=kept, memory=memory
        )

    @torch.no_grad()
    def run_heads(self, computed: ComputedFrame) -> Detections:
        """Between the two halves: what is found, with proposals scored anew only where something has changed."""
        levels, rpn = self.run_maps(computed)
        memory = computed.memory
        if memory is None or isinstance(self.roi_heads, CascadeBoxHeads):
            return self.detect_in(levels, rpn)[0]
        config, size = self.config, self.config.image_size
        (proposals,), _ = self.propose(rpn)
        out, memory.boxes = run_boxes(
            self.roi_heads, levels, proposals, before=memory.boxes, changed=computed.kept, grid=config.grid
        )
        return self.roi_heads.detect(out, [proposals], image_size=size, limits=config.detections)[0]

    @torch.no_grad()
    def run_maps(self, computed: ComputedFrame) -> tuple[tuple[Tensor, ...], RpnOutput]:
        """First of what `run_heads` does: p2 ... p6 and what the region proposals say, computed where a token was."""
        memory, kept = computed.memory, computed.kept
        if memory is None:
            levels = self.pyramid(computed.output)
            return levels, self.proposal_generator(levels)
        if kept is not None and memory.maps is not None and is_worth_it(kept, self.config.grid):
            return changed_maps(self.pyramid, self.proposal_generator, memory.output, kept, memory.maps)
        levels, rpn, memory.maps = all_maps(self.pyramid, self.proposal_generator, memory.output)
        return levels, rpn

    @torch.no_grad()
    def follow(self, computed: ComputedFrame, detections: Detections) -> StreamState:
        """The second half of `step`: what was found leads to the heat map of the next frame."""
        config, memory = self.config, computed.memory
        if memory is None:
            return next_state(computed.state, patches=computed.patches)
        anchors = heat = None
        if computed.with_heat:
            anchors = anchor_tokens(
                detections, grid=config.grid, patch_size=config.shape.patch_size, threshold=config.anchor_score
            )
            heat = heat_from_attention(
                memory.attention, anchors, rollout=config.rollout, previous=computed.state.heat, kept=computed.kept
            )
        return next_state(
            computed.state,
            patches=computed.patches,
            heat=heat,
            kept=computed.kept,
            anchors=anchors,
            memory=memory,
            num_writes=memory.num_writes,
        )

    def detect_in(self, levels: Sequence[Tensor], rpn: RpnOutput) -> list[Detections]:
        """What is found in each image of the levels p2 ... p6."""
        config, size = self.config, self.config.image_size
        proposals, _ = self.propose(rpn)
        if isinstance(self.roi_heads, CascadeBoxHeads):
            return self.roi_heads.detect(levels, proposals, image_size=size, limits=config.detections)
        out = self.roi_heads(levels, proposals)
        return self.roi_heads.detect(out, proposals, image_size=size, limits=config.detections)

    def propose(self, rpn: RpnOutput) -> tuple[list[Tensor], list[Tensor]]:
        """The proposals of each image and their logits, as evaluation takes them."""
        return propose(rpn, image_size=self.config.image_size, limits=self.config.proposals)

    def features(self, frames: Tensor, shown_sizes: ShownSizes = None) -> tuple[Tensor, ...]:
        """p2 ... p6 of images (..., 3, h, w), (n, 256, side, side) each."""
        return self.pyramid(self.backbone(self.embed(frames, shown_sizes)))  # type: ignore[no-any-return]

    def embed(self, frames: Tensor, shown_sizes: ShownSizes = None) -> Tensor:
        """Images (..., 3, h, w) as patches (n, s, d), without positions."""
        return self.embedding(self.normalise(frames, shown_sizes))  # type: ignore[no-any-return]

    def normalise(self, frames: Tensor, shown_sizes: ShownSizes = None) -> Tensor:
        """Images (..., 3, h, w) as the network sees them, (n, 3, S, S): filled up with zeros at the bottom and right.

        Args:
            frames: the images.
            shown_sizes: the n pictures' sizes in their upper left, where they were padded before; zeros are put
                outside of them, too.

        Raises:
            UsageError: frames that are larger than the square.
        """
        height, width = frames.shape[-2:]
        size = self.config.image_size
        if frames.shape[-3] != 3 or max(height, width) > size:
            raise UsageError(
                f"expected RGB frames of at most {size} x {size} pixels, got {frames.shape[-3]} channels of {height} x "
                f"{width}; resize them first."
            )
        values = frames / 255 if frames.dtype == torch.uint8 else frames
        mean, std = (values.new_tensor(numbers).view(3, 1, 1) for numbers in (MEAN, STD))
        normalised = (values.reshape(-1, 3, height, width) * 255 - mean) / std
        for image, (shown_height, shown_width) in zip(normalised, shown_sizes or (), strict=shown_sizes is not None):
            image[:, shown_height:] = 0
            image[:, :, shown_width:] = 0
        return pad(normalised, (0, size - width, 0, size - height))


def build(config: VitDetConfig, num_classes: int) -> Detector:
    """The detector, which trains and evaluates."""
    if num_classes < 1:
        raise UsageError(f"a detector needs at least 1 class, got {num_classes}.")
    return Detector(config, num_classes)
