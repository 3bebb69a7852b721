"""RGTP on ViViT: in every time step only the patches stay that the attention of the step before looked at.

    first time step    every patch
    reset time step    a fixed pattern: every `reset_interval`-th
    ordinary ones      the hottest patches of the step before, moved to where they are now, and a sample of the others

A reset reads nothing of the steps before, so the spans between resets are independent: a clip runs them side by side,
with all views and videos of a batch, and a stream runs them one after the other with the same numbers.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout

from vidmodels.backbones.vit import SIZES, ViTShape, init_weights
from vidmodels.backbones.vivit import Block, FactorisedViViT
from vidmodels.layers.token_ops import at_least_float32, full_precision, gather_rows
from vidmodels.methods.rgtp import eventful
from vidmodels.methods.rgtp.rollout import (
    HeadFusion,
    Pattern,
    class_token_rollout,
    clusters,
    fuse_heads,
    gilbert_positions,
    heat_map,
    offset_choice,
    offset_sources,
    pattern_patches,
    select,
    shift_heat,
)
from vidmodels.types import Output
from vidprep.errors import UsageError

__all__ = ["RgtpVivit", "RgtpVivitConfig", "StreamState", "TimeStep", "build"]

Kind = Literal["first", "reset", "ordinary"]


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

    init_std: float = 0.02
    """Deviation of the initial weights of linear layers; narrow networks learn sooner with more."""
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
        if not self.init_std > 0:
            raise ValueError(f"init_std must be above 0, got {self.init_std}")
        for name in ("drop_path", "head_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} lies in [0, 1), got {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True)
class StreamState:
    """What n streams carry from one time step to the next; `state[index]` takes some of them, `join` puts together."""

    time_step: Tensor
    """(n,) int64: time steps seen."""
    heat: Tensor
    """(n, p): heat map of the last one; zeros before a reset, which does not read it."""
    embedding: Tensor
    """(n, p, d): its patches."""
    class_tokens: Tensor
    """(n, time, d): of the last time steps of a clip's length, the newest at the end."""

    def __getitem__(self, index: Tensor | slice | Sequence[int]) -> "StreamState":
        """The streams at these places, in this order.

        Raises:
            TypeError: a single number.
        """
        if isinstance(index, int):
            raise TypeError(
                f"expected a slice, a list or a tensor of streams, got {index}; one alone is state[[{index}]]"
            )
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


class TimeStep(NamedTuple):
    """What one time step of n streams gave."""

    class_token: Tensor
    """(n, d)."""
    kept: Tensor | None
    """(n, k) patches in the order of the tokens; None: all of them."""
    heat: Tensor | None
    """(n, p), for the next step; None where nobody reads it."""
    clusters: Tensor | None
    """(n, p) the kept patch whose heat each patch has; None where there is no heat, or all patches are kept."""
    choice: Tensor | None
    """(n, p) where the heat came from: see `offset_choice`; None unless something was shifted."""
    shifted: Tensor | None
    """(n, p) the heat of the step before that the choice was made by; None unless there was a choice."""

    def streams(self, index: slice) -> "TimeStep":
        """Those of some streams only."""
        rows = {name: field[index] for name, field in self._asdict().items() if field is not None}
        return self._replace(**rows)


class RgtpVivit(nn.Module):
    """`forward(frames (n, t, 3, h, w)) -> Output`: logits (n, k).

    `step` takes a stream, or many, time step by time step. Where patches are pruned `aux["kept"]` (n, time, p) tells
    which stay; with a second classifier there is `aux["noun_logits"]` (n, nouns).
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
        if config.mode == "rollout" and not round(config.keep_ratio * self.backbone.num_patches):
            raise ValueError(f"keep_ratio {config.keep_ratio} of {self.backbone.num_patches} patches is none; raise it")
        self.head = nn.Linear(config.shape.width, num_classes)
        self.noun_head = nn.Linear(config.shape.width, config.num_noun_classes) if config.num_noun_classes else None
        for head in (self.head, self.noun_head):
            if head is not None:
                init_weights(head)
        for part in self.modules():
            if isinstance(part, nn.Linear):
                nn.init.trunc_normal_(part.weight, std=config.init_std)

    # ---- clips ----

    def forward(self, frames: Tensor) -> Output:
        """Classify clips."""
        embedding = self.backbone.embed(frames)
        if self.config.mode != "rollout":
            return self.classify(self._class_tokens(embedding))
        steps = self.run_clip(embedding)
        output = self.classify(torch.stack([step.class_token for step in steps], dim=1))
        kept = torch.stack([self._kept_mask(step) for step in steps], dim=1)
        return Output(logits=output.logits, aux={**output.aux, "kept": kept})

    def select_weights(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The entries of a checkpoint that this model has a place for on purpose: without nouns, where it has none."""
        return {name: tensor for name, tensor in state.items() if self.noun_head or not name.startswith("noun_head.")}

    def spatial_features(self, frames: Tensor) -> Tensor:
        """(n, t, 3, h, w) -> (n, time, d): the class token of every time step, what the spatial cache holds."""
        return self._class_tokens(self.backbone.embed(frames))

    def classify(self, features: Tensor) -> Output:
        """(n, time, d), from `spatial_features` or a cache of them -> logits.

        Raises:
            ValueError: clips of another length than the model was built for.
        """
        if features.shape[1] != self.backbone.num_steps:
            raise ValueError(
                f"the model is for clips of {self.backbone.num_steps} time steps ({self.config.num_frames} frames), "
                f"got {features.shape[1]}; build it for these"
            )
        temporal = self.backbone.temporal(features)
        temporal = dropout(temporal, self.config.head_dropout, self.training)
        aux = {} if self.noun_head is None else {"noun_logits": self.noun_head(temporal)}
        return Output(logits=self.head(temporal), aux=aux)

    def _class_tokens(self, embedding: Tensor) -> Tensor:
        if self.config.mode == "rollout":
            return torch.stack([step.class_token for step in self.run_clip(embedding)], dim=1)
        if self.config.mode == "eventful":
            return self._run_eventful(embedding)
        tokens: Tensor = self.backbone.spatial(embedding.flatten(0, 1), self.backbone.positions())
        return tokens.view(*embedding.shape[:2], -1)

    def run_clip(self, embedding: Tensor, *, every_heat: bool = False) -> list[TimeStep]:
        """Every time step of clips. The i-th ones after each reset run together: they need nothing of each other.

        Args:
            embedding: (n, time, p, d), from `backbone.embed`.
            every_heat: compute the heat maps too that no step reads.
        """
        num_clips, num_steps = embedding.shape[:2]
        interval = min(self.config.reset_interval or num_steps, num_steps)
        steps: dict[int, TimeStep] = {}
        heat = None
        for offset in range(interval):
            numbers = range(offset, num_steps, interval)
            with_heat = every_heat or (offset + 1 < min(interval, num_steps))
            if offset == 0:
                steps[0] = self.run_step(embedding[:, 0], kind="first", with_heat=with_heat)
                if len(numbers) > 1:
                    resets = self.run_step(
                        embedding[:, interval::interval].flatten(0, 1), kind="reset", with_heat=with_heat
                    )
                    steps |= _by_time(resets, numbers[1:], num_clips)
            else:
                before = embedding[:, offset - 1 :: interval][:, : len(numbers)]
                heat = torch.stack([_given(steps[number - 1].heat) for number in numbers], dim=1)
                ordinary = self.run_step(
                    embedding[:, offset::interval].flatten(0, 1),
                    kind="ordinary",
                    previous=before.flatten(0, 1),
                    heat=heat.flatten(0, 1),
                    with_heat=with_heat,
                )
                steps |= _by_time(ordinary, numbers, num_clips)
        return [steps[number] for number in range(num_steps)]

    def _run_eventful(self, embedding: Tensor) -> Tensor:
        spatial, config, states = self.backbone.spatial, self.config, None
        positions, blocks = self.backbone.positions(), cast("list[Block]", list(spatial.blocks))
        tokens = []
        for patches in embedding.unbind(1):
            x = spatial.with_class_token(patches, positions)
            x, states = eventful.run(blocks, x, states, top_k=config.top_k, value_cast=config.value_cast)
            tokens.append(spatial.norm(x[:, 0]))
        return torch.stack(tokens, dim=1)

    # ---- streams ----

    def start(self, num_streams: int) -> StreamState:
        """The state of streams that have not begun."""
        like, backbone = self.head.weight, self.backbone
        n, d = num_streams, backbone.shape.width
        return StreamState(
            time_step=torch.zeros(n, dtype=torch.int64, device=like.device),
            heat=like.new_zeros(n, backbone.num_patches, dtype=at_least_float32(like)),
            embedding=like.new_zeros(n, backbone.num_patches, d),
            class_tokens=like.new_zeros(n, backbone.num_steps, d),
        )

    @torch.no_grad()
    def step(self, frames: Tensor, state: StreamState) -> tuple[Output, StreamState]:
        """One time step of n streams, wherever each of them is.

        A stream goes on for ever: what is classified are its last time steps, as many as a clip has, and until there
        are so many its logits are not a number. The first so many steps are those of a clip.

        Args:
            frames: (n, tubelet, 3, h, w), the next frames of each stream.
            state: from `start` or from the step before.

        Returns:
            Logits (n, k), with `aux` as of `forward` but without the axis of time; and the next state.

        Raises:
            UsageError: the model is the Eventful baseline.
            ValueError: another number of frames, or of streams, than there is a state for.
        """
        config, backbone = self.config, self.backbone
        if config.mode == "eventful":
            raise UsageError('streams run with model.mode "rollout" or "base"; "eventful" runs whole clips only.')
        if frames.shape[:2] != (len(state), config.shape.tubelet):
            raise ValueError(
                f"expected {config.shape.tubelet} frames of each of {len(state)} streams, got {tuple(frames.shape[:2])}"
            )
        embedding = backbone.embed(frames)[:, 0]
        heat = torch.zeros_like(state.heat)
        kept = torch.ones_like(heat, dtype=torch.bool)
        tokens = torch.empty_like(state.class_tokens[:, 0])
        for (kind, with_heat), rows in self._by_kind(state.time_step.tolist()).items():
            index = torch.tensor(rows, device=embedding.device)
            before = state[index]
            now = self.run_step(
                embedding[index], kind=kind, previous=before.embedding, heat=before.heat, with_heat=with_heat
            )
            tokens[index] = now.class_token.to(tokens.dtype)
            kept[index] = self._kept_mask(now)
            if now.heat is not None:
                heat[index] = now.heat
        state = StreamState(
            time_step=state.time_step + 1,
            heat=heat,
            embedding=embedding,
            class_tokens=torch.cat([state.class_tokens[:, 1:], tokens[:, None]], dim=1),
        )
        return self._classify_streams(state, kept), state

    def _by_kind(self, time_steps: Sequence[int]) -> dict[tuple[Kind, bool], list[int]]:
        """Streams that can run together: of one kind, and with or without a heat map for the step after."""
        groups: dict[tuple[Kind, bool], list[int]] = {}
        for stream, number in enumerate(time_steps):
            prunes = self.config.mode == "rollout"
            kind: Kind = "first" if not number or not prunes else "reset" if self._is_reset(number) else "ordinary"
            groups.setdefault((kind, prunes and not self._is_reset(number + 1)), []).append(stream)
        return groups

    def _is_reset(self, number: int) -> bool:
        return bool(self.config.reset_interval) and number % self.config.reset_interval == 0

    def _classify_streams(self, state: StreamState, kept: Tensor) -> Output:
        is_whole = state.time_step >= self.backbone.num_steps
        output = self.classify(state.class_tokens[is_whole])

        def spread(values: Tensor) -> Tensor:
            return values.new_full((len(state), values.shape[1]), float("nan")).index_put_((is_whole,), values)

        aux = {name: spread(values) for name, values in output.aux.items()}
        if self.config.mode == "rollout":
            aux["kept"] = kept
        return Output(logits=spread(output.logits), aux=aux)

    # ---- one time step ----

    def run_step(
        self,
        embedding: Tensor,
        *,
        kind: Kind,
        previous: Tensor | None = None,
        heat: Tensor | None = None,
        with_heat: bool,
    ) -> TimeStep:
        """One time step of n independent streams, all of one kind.

        What is kept does not depend on this step's attention, so it is chosen before the first block, which then has
        keys and values of all tokens but queries of the kept ones only.

        Args:
            embedding: (n, p, d), without positions.
            kind: "first" keeps every patch, "reset" the pattern, "ordinary" goes by the heat map.
            previous: (n, p, d) and
            heat: (n, p), of the step before; read by ordinary steps only.
            with_heat: whether a heat map is wanted.
        """
        spatial = self.backbone.spatial
        choice = shifted = kept = None
        if kind == "ordinary":
            choice, shifted, kept = self.choose(embedding, _given(previous), _given(heat))
        elif kind == "reset":
            kept = self._tables(embedding.device).pattern.expand(embedding.shape[0], -1)

        first, *later = cast("list[Block]", list(spatial.blocks))
        x = spatial.with_class_token(embedding, self.backbone.positions())
        x, keys, weights = run_first_block(first, x, kept, with_weights=with_heat)
        fused = [] if weights is None else [fuse_heads(weights, self.config.head_fusion)]
        for block in later:
            attended = block.attn.attend(*block.attn.project(block.norm1(x)), with_weights=with_heat)
            if attended.weights is not None:
                fused.append(fuse_heads(attended.weights, self.config.head_fusion))
            x = block.feed_forward(block.add(x, block.attn.proj(attended.out)))
        class_token = spatial.norm(x[:, 0])
        if not with_heat:
            return TimeStep(class_token, kept, None, None, choice, shifted)

        with full_precision(x.device.type):
            values = class_token_rollout(fused, None if kept is None else token_numbers(kept))[:, 1:]
            if kept is None:
                return TimeStep(class_token, None, heat_map(values, None, None), None, choice, shifted)
            cluster = clusters(keys.to(at_least_float32(keys)).mean(1)[:, 1:], kept)
            heat = heat_map(values.gather(1, kept), kept, cluster)
        return TimeStep(class_token, kept, heat, cluster, choice, shifted)

    def choose(self, embedding: Tensor, previous: Tensor, heat: Tensor) -> tuple[Tensor | None, Tensor, Tensor]:
        """What an ordinary step keeps: (n, p) where heat came from, (n, p) the shifted heat, (n, k) patches."""
        config, choice, tables = self.config, None, self._tables(embedding.device)
        if config.offset_radius:
            now, before = (x.to(at_least_float32(x)) for x in (embedding, previous))
            with full_precision(now.device.type):
                choice = offset_choice(now, before, grid=self.backbone.grid, radius=config.offset_radius)
            heat = shift_heat(heat, choice, sources=tables.sources)
        selection = select(
            heat,
            keep_ratio=config.keep_ratio,
            foreground_ratio=config.foreground_ratio,
            background_ratio=config.background_ratio,
            curve=tables.curve if config.gilbert_sampling else None,
        )
        return choice, heat, selection.kept

    def _tables(self, device: torch.device) -> "_Tables":
        return _tables(self.backbone.grid, self.config.reset_pattern, self.config.offset_radius, device)

    def _kept_mask(self, step: TimeStep) -> Tensor:
        """(n, p) bool."""
        shape = (step.class_token.shape[0], self.backbone.num_patches)
        if step.kept is None:
            return torch.ones(shape, dtype=torch.bool, device=step.class_token.device)
        return torch.zeros(shape, dtype=torch.bool, device=step.kept.device).scatter_(1, step.kept, True)


def run_first_block(
    block: Block, x: Tensor, kept: Tensor | None, *, with_weights: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The block that drops tokens: all are attended to, the kept ones go on.

    Args:
        block: the first one.
        x: (n, s, d), class token first.
        kept: (n, k) patches; None: all.
        with_weights: whether attention's are wanted.

    Returns:
        (n, k + 1, d), class token first; keys of all tokens (n, heads, s, e); weights (n, heads, k + 1, s).
    """
    y = block.norm1(x)
    if kept is None:
        query, key, value = block.attn.project(y)
    else:
        tokens = token_numbers(kept)
        key, value = block.attn.keys_values(y)
        x = gather_rows(x, tokens)
        query = block.attn.queries(gather_rows(y, tokens))
    attended = block.attn.attend(query, key, value, with_weights=with_weights)
    x = block.feed_forward(block.add(x, block.attn.proj(attended.out)))
    return x, key, attended.weights


def token_numbers(kept: Tensor) -> Tensor:
    """(n, k) patches -> (n, k + 1) tokens, the class token first."""
    return torch.cat([kept.new_zeros(kept.shape[0], 1), kept + 1], dim=1)


class _Tables(NamedTuple):
    pattern: Tensor
    """(1, k) what a reset keeps."""
    sources: Tensor
    """(p, candidates): see `offset_sources`."""
    curve: Tensor
    """(p,): see `gilbert_positions`."""


@cache
def _tables(grid: tuple[int, int], pattern: Pattern, radius: int, device: torch.device) -> _Tables:
    """Made once for each device; values, whatever mode or default device they are first asked for in."""
    with torch.inference_mode(mode=False), torch.device("cpu"):
        tables = (pattern_patches(pattern, grid).kept, offset_sources(grid, radius=radius), gilbert_positions(grid))
        return _Tables(*(table.to(device) for table in tables))


def _by_time(step: TimeStep, numbers: Sequence[int], num_clips: int) -> dict[int, TimeStep]:
    """Rows (clip, time) of a step that ran several times together -> number of the time step -> its rows."""
    stride = len(numbers)
    return {number: step.streams(slice(place, num_clips * stride, stride)) for place, number in enumerate(numbers)}


def _given(value: Tensor | None) -> Tensor:
    if value is None:
        raise ValueError("an ordinary time step needs the patches and the heat map of the one before")
    return value


def build(config: RgtpVivitConfig, num_classes: int) -> RgtpVivit:
    """The model, which trains and evaluates."""
    if num_classes < 1:
        raise UsageError(f"a classifier needs at least 1 class, got {num_classes}.")
    return RgtpVivit(config, num_classes)
