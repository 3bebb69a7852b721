"""Uni-AdaFocus, the dynamic form: a video leaves at the first exit that is sure enough, and nothing more is computed.

    glance all -- exit 0 --- policies of those that stay -- focus frame 1 of these -- exit 1 -- focus frame 2 ... exit f

The batch shrinks as its videos leave, and frames are asked for only when they are needed: those of a video that left
never are. The same parameters under the same names as the trainable form; networks as `fast.py` runs them.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from vidmodels.backbones.mobilenet_v2 import MobileNetV2
from vidmodels.layers.evaluation_only import EvaluationOnly
from vidmodels.layers.folded import FoldedNorms
from vidmodels.methods.uni_adafocus.exits import NEVER, PUBLISHED_Q, PUBLISHED_Q_OF_TWO, Criterion, exit_values
from vidmodels.methods.uni_adafocus.fast import GLANCE_PIXELS, FastFocusNetwork, FastMobileNetV2, join
from vidmodels.methods.uni_adafocus.model import FocusNetwork, Glance, UniAdaFocus, UniAdaFocusConfig, UniAdaFocusTsm
from vidmodels.types import Output

__all__ = ["Clips", "DynamicUniAdaFocus", "DynamicUniAdaFocusTsm", "exit_logits", "make_dynamic", "published_budgets"]


class Clips(Protocol):
    """n clips whose frames are handed out when they are asked for, such as `vidprep.load.ClipsOnDemand`."""

    @property
    def shape(self) -> Sequence[int]:
        """(n, t, c, h, w) of all frames together."""
        ...

    def take(self, rows: Tensor, places: Tensor) -> Tensor:
        """Frames (m, j, c, h, w) of clips `rows` (m,) at `places` (m, j); both on the CPU."""
        ...


class DynamicUniAdaFocus(EvaluationOnly, UniAdaFocus):
    """`forward(frames (n, s, 3, h, w)) -> Output`: logits (n, k) of each video's exit; `aux`: `exit_steps` (n,).

    Args:
        model: the trainable form, whose tensors are shared.
        thresholds: of the f + 1 exits, as `exits.solve_thresholds` gives them; None: nobody leaves early.
        criterion: what is compared with them.
    """

    def __init__(
        self, model: UniAdaFocus, *, thresholds: Sequence[float] | None = None, criterion: Criterion = "confidence"
    ) -> None:
        with torch.device("meta"):
            super().__init__(model.config, model.num_classes)
            _run_fast(self)
        self.load_state_dict(model.state_dict(keep_vars=True), assign=True)
        self.thresholds = _checked(thresholds, model.config.num_focus + 1)
        self.criterion: Criterion = criterion
        self._norms = FoldedNorms()
        self.eval()

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.spatial_head.weight.device

    @property
    def first_frames(self) -> Tensor:
        """Places in a clip of the frames that every video needs."""
        return self.glance_indices

    @torch.no_grad()
    def forward(self, frames: Tensor | Clips) -> Output:  # type: ignore[override]  # nothing of training is left
        """Classify clips, each up to its exit."""
        clips = _Source(self, frames)
        exits = _Exits(self.thresholds, self.criterion, clips.num_clips)
        classifier = self.classifier

        def answer(features: Tensor) -> tuple[Tensor, Tensor]:
            seen = self._embed(classifier.glance_mlp, features).amax(1)
            return classifier.classify(classifier.glance_steps[-1], seen), seen

        staying = _glance(self, clips, exits, answer)
        if staying is None:
            return exits.output()
        glance, seen = staying
        chosen = self.choose(glance)
        actions = self.actions_of(chosen, self.spatial_policy(glance.maps))
        looked_at = torch.zeros_like(seen)  # behind a ReLU: 0 is the least
        start = 0
        for index, step in enumerate(classifier.focus_steps):
            if self.thresholds[index + 1] >= NEVER:
                continue  # nobody leaves here: the frame goes along with the next ones
            frame = slice(start, index + 1)
            patches = clips.cut(exits.waiting, chosen[:, frame], actions[:, frame])
            features = self.focus(patches).view(len(chosen), index + 1 - start, -1)
            looked_at = torch.maximum(looked_at, self._embed(classifier.focus_mlp, features).amax(1))
            stays = exits.leave(
                exits.waiting, classifier.classify(step, torch.cat([looked_at, seen], dim=-1)), index + 1
            )
            if not stays.any():
                break
            chosen, actions, seen, looked_at = (_rows(part, stays) for part in (chosen, actions, seen, looked_at))
            start = index + 1
        return exits.output()

    def _embed(self, mlp: nn.Module, features: Tensor) -> Tensor:
        """(n, t, c) -> (n, t, width)."""
        layer, norm, _ = mlp.children()
        assert isinstance(layer, nn.Linear) and isinstance(norm, nn.BatchNorm1d)  # noqa: S101, PT018
        embedded = self._norms.linear(layer, norm, features.flatten(0, 1)).relu_()
        return embedded.view(*features.shape[:2], -1)


class DynamicUniAdaFocusTsm(EvaluationOnly, UniAdaFocusTsm):
    """`forward(frames (n, g + s, 3, h, w)) -> Output`: logits (n, k) of each video's exit; `aux`: `exit_steps` (n,).

    Exit 0 is the average of the glance frames, exit 1 the whole. Arguments as for `DynamicUniAdaFocus`, 2 exits.
    """

    def __init__(
        self, model: UniAdaFocusTsm, *, thresholds: Sequence[float] | None = None, criterion: Criterion = "confidence"
    ) -> None:
        with torch.device("meta"):
            super().__init__(model.config, model.num_classes)
            _run_fast(self)
        self.load_state_dict(model.state_dict(keep_vars=True), assign=True)
        self.thresholds = _checked(thresholds, 2)
        self.criterion: Criterion = criterion
        self.eval()

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.spatial_head.weight.device

    @property
    def first_frames(self) -> Tensor:
        """Places in a clip of the frames that every video needs."""
        return torch.arange(self.config.num_glance)

    @torch.no_grad()
    def forward(self, frames: Tensor | Clips) -> Output:  # type: ignore[override]  # nothing of training is left
        """Classify clips, each up to its exit."""
        clips = _Source(self, frames)
        exits = _Exits(self.thresholds, self.criterion, clips.num_clips)

        def answer(features: Tensor) -> tuple[Tensor, Tensor]:
            logits = self.glance_heads.average(features).mean(1)
            return logits, logits

        staying = _glance(self, clips, exits, answer)
        if staying is None:
            return exits.output()
        glance, _ = staying
        chosen, actions = self.choose(glance), self.spatial_policy(glance.maps)
        patches = clips.cut(exits.waiting, self.config.num_glance + chosen, actions)
        answers = self.focus_heads.predict(self.focus_features(patches))
        exits.leave(exits.waiting, self.glance_heads.predict(glance.features) + answers, 1)
        return exits.output()


def make_dynamic(
    model: nn.Module, *, thresholds: Sequence[float] | None = None, criterion: Criterion = "confidence"
) -> DynamicUniAdaFocus | DynamicUniAdaFocusTsm:
    """The form that stops; without thresholds every video goes to the last exit."""
    if isinstance(model, UniAdaFocusTsm):
        return DynamicUniAdaFocusTsm(model, thresholds=thresholds, criterion=criterion)
    if isinstance(model, UniAdaFocus):
        return DynamicUniAdaFocus(model, thresholds=thresholds, criterion=criterion)
    raise TypeError(f"expected a Uni-AdaFocus model, got {type(model).__name__}")


def exit_logits(model: nn.Module, output: Output) -> Tensor:
    """Logits of all exits (n, e, k) from what the trainable form gives in evaluation."""
    if isinstance(model, UniAdaFocusTsm):
        return torch.stack([output.aux["glance_average"], output.logits], dim=1)
    if isinstance(model, UniAdaFocus):
        return output.aux["step_logits"][:, model.config.num_glance - 1 :]
    raise TypeError(f"expected a Uni-AdaFocus model, got {type(model).__name__}")


def published_budgets(config: UniAdaFocusConfig) -> tuple[float, ...]:
    """The budgets of the published curves, ascending; see `exits.exit_shares`."""
    return PUBLISHED_Q if config.variant == "pooling" else PUBLISHED_Q_OF_TWO


class _Exits:
    """Where the videos of a batch leave, and with which answer."""

    def __init__(self, thresholds: Sequence[float], criterion: Criterion, num_videos: int) -> None:
        self.thresholds, self.criterion = thresholds, criterion
        self.waiting = torch.arange(num_videos)
        """(m,) places in the batch of those that have not left, ascending."""
        self.steps = torch.full((num_videos,), len(thresholds) - 1)
        self.answers: list[tuple[Tensor, Tensor]] = []

    def leave(self, places: Tensor, logits: Tensor, step: int) -> Tensor:
        """Let the sure ones leave.

        Args:
            places: (m,) of the videos that are asked, of those that wait.
            logits: (m, k), their answers.
            step: of this exit.

        Returns:
            (m,) which of them stay, on the CPU.
        """
        leaves = (exit_values(logits, self.criterion) >= self.thresholds[step]).cpu()
        if step == len(self.thresholds) - 1:
            leaves = torch.ones_like(leaves)
        gone = places[leaves]
        self.answers.append((gone, _rows(logits, leaves)))
        self.steps[gone] = step
        self.waiting = self.waiting[~torch.isin(self.waiting, gone)]
        return ~leaves

    def output(self) -> Output:
        """Every video's answer, in the batch's order; `aux["exit_steps"]` (n,) says where it left."""
        places = torch.cat([place for place, _ in self.answers])
        logits = torch.cat([answer for _, answer in self.answers])
        return Output(logits=logits[places.argsort().to(logits.device)], aux={"exit_steps": self.steps})


class _Source:
    """The frames of a batch, all there or handed out on demand, where the model is."""

    def __init__(self, model: "DynamicUniAdaFocus | DynamicUniAdaFocusTsm", frames: Tensor | Clips) -> None:
        self.frames = frames
        self.geometry = model.geometry
        self.device = model.device
        self.num_clips = frames.shape[0]
        config = model.config
        expected = (config.num_frames, 3, config.image_size, config.image_size)
        if tuple(frames.shape[1:]) != expected:
            raise ValueError(f"this Uni-AdaFocus takes clips {expected} (t, c, h, w), got {tuple(frames.shape[1:])}")

    def take(self, rows: Tensor, places: Tensor) -> Tensor:
        """Frames (m, j, 3, h, w) of clips `rows` (m,), on the CPU, at `places` (m, j)."""
        if isinstance(self.frames, Tensor):
            where = self.frames.device
            return self.frames[rows[:, None].to(where), places.to(where)].to(self.device)
        return self.frames.take(rows, places.cpu()).to(self.device, non_blocking=True)

    def cut(self, rows: Tensor, places: Tensor, actions: Tensor) -> Tensor:
        """Patches (m*j, 3, p, p) of frames, whose rectangles are those of `actions` (m, j, 4) or (m, 1, 4)."""
        num_frames = places.shape[1]
        # A few frames at a time: they are used once, and need not all be there together.
        at_once = max(1, _FRAMES_CUT_AT_ONCE // num_frames)
        parts = zip(*(torch.split(part, at_once) for part in (rows, places, actions)), strict=True)
        return join(
            [
                self.geometry.resample(
                    self.take(part, part_places).flatten(0, 1).float(),
                    part_actions.expand(-1, num_frames, -1).flatten(0, 1),
                    points=self.geometry.patch_size,
                )
                for part, part_places, part_actions in parts
            ]
        )


_FRAMES_CUT_AT_ONCE = 16


def _glance(
    model: DynamicUniAdaFocus | DynamicUniAdaFocusTsm,
    clips: _Source,
    exits: _Exits,
    answer: Callable[[Tensor], tuple[Tensor, Tensor]],
) -> tuple[Glance, Tensor] | None:
    """Glance at all clips, let the sure ones leave at exit 0, and ask the temporal policy about the others.

    A few clips at a time: the maps of those that leave, the largest tensors of all, are gone before the next ones.

    Args:
        model: whose networks.
        clips: the batch.
        exits: where they leave.
        answer: features (m, g, c) -> logits (m, k) of exit 0, and what else is to be kept of each clip (m, ...).

    Returns:
        What is known of those that stay, and what was to be kept of them; None when nobody stays.
    """
    size = model.config.image_size
    num_glance = model.config.num_glance
    at_once = clips.num_clips if model.device.type != "cpu" else max(1, GLANCE_PIXELS // (num_glance * size**2))
    staying = []
    for rows in torch.split(exits.waiting, at_once):
        maps = model.glance_maps(clips.take(rows, model.first_frames.expand(len(rows), -1)))
        features = model.glance_features(maps)
        logits, kept = answer(features)
        stays = exits.leave(rows, logits, 0)
        if stays.any():
            staying.append([_rows(part, stays) for part in (maps, features, kept)])
    if not staying:
        return None
    maps, features, kept = (join(list(parts)) for parts in zip(*staying, strict=True))
    return model.weigh(maps, features), kept


def _run_fast(model: UniAdaFocus | UniAdaFocusTsm) -> None:
    """Put in networks that evaluation runs faster, where there are such."""
    config = model.config
    if isinstance(model.glance, MobileNetV2):
        model.glance = FastMobileNetV2(
            stages=config.glance_stages, width=config.glance_width, shift_div=model.glance.shift_div
        )
    if isinstance(model.focus, FocusNetwork):
        model.focus = FastFocusNetwork(config)


def _rows(values: Tensor, stays: Tensor) -> Tensor:
    """The rows that stay; no copy where all do."""
    return values if stays.all() else values[stays.to(values.device)]


def _checked(thresholds: Sequence[float] | None, num_exits: int) -> tuple[float, ...]:
    if thresholds is None:
        return (*[NEVER] * (num_exits - 1), -NEVER)
    given = tuple(float(threshold) for threshold in thresholds)
    if len(given) != num_exits:
        raise ValueError(f"this model has {num_exits} exits, got {len(given)} thresholds")
    return (*given[:-1], -NEVER)  # at the last one everyone leaves
