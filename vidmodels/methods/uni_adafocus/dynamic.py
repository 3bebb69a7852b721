"""Uni-AdaFocus, the dynamic form: a video leaves at the first exit that is sure enough, and nothing more is computed.

    glance all -- exit 0 --- policies of those that stay -- focus frame 1 of these -- exit 1 -- focus frame 2 ... exit f

The batch shrinks as its videos leave. The same parameters under the same names as the trainable form.
"""

from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor, nn

from vidmodels.methods.uni_adafocus.exits import NEVER, Criterion, exit_values
from vidmodels.methods.uni_adafocus.model import Glance, UniAdaFocus, UniAdaFocusTsm
from vidmodels.types import Output

__all__ = ["DynamicUniAdaFocus", "DynamicUniAdaFocusTsm", "make_dynamic"]


class _Exits:
    """Where the videos of a batch leave, and with which answer."""

    def __init__(self, thresholds: Sequence[float], criterion: Criterion, num_videos: int) -> None:
        self.thresholds, self.criterion = thresholds, criterion
        self.waiting = torch.arange(num_videos)
        """Places in the batch of those that have not left."""
        self.steps = torch.full((num_videos,), len(thresholds) - 1)
        self.answers: list[tuple[Tensor, Tensor]] = []

    def leave(self, logits: Tensor, step: int) -> Tensor:
        """Let the sure ones of the waiting videos leave; which of them (m,) stay."""
        is_last = step == len(self.thresholds) - 1
        leaves = exit_values(logits, self.criterion) >= self.thresholds[step]
        if is_last:
            leaves = torch.ones_like(leaves)
        places = self.waiting[leaves.cpu()]
        self.answers.append((places, logits[leaves]))
        self.steps[places] = step
        self.waiting = self.waiting[~leaves.cpu()]
        return ~leaves

    def output(self) -> Output:
        """Every video's answer, in the batch's order; `aux["exit_steps"]` (n,) says where it left."""
        places = torch.cat([place for place, _ in self.answers])
        logits = torch.cat([answer for _, answer in self.answers])
        return Output(logits=logits[places.argsort().to(logits.device)], aux={"exit_steps": self.steps})


class DynamicUniAdaFocus(UniAdaFocus):
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
        self.load_state_dict(model.state_dict(keep_vars=True), assign=True)
        self.thresholds = _checked(thresholds, model.config.num_focus + 1)
        self.criterion: Criterion = criterion
        self.eval()

    def train(self, mode: bool = True) -> Self:
        """Stay in evaluation mode.

        Raises:
            ValueError: training was asked for.
        """
        return super().train(_never(mode))

    @torch.no_grad()
    def forward(self, frames: Tensor) -> Output:  # type: ignore[override]  # nothing of training is left to set
        """Classify clips, each up to its exit."""
        self.check(frames)
        exits = _Exits(self.thresholds, self.criterion, len(frames))
        classifier = self.classifier
        glance = self.look(frames[:, self.glance_indices])
        seen = classifier.embed(classifier.glance_mlp, glance.features).amax(1)
        stays = exits.leave(classifier.classify(classifier.glance_steps[-1], seen), 0)
        if not stays.any():
            return exits.output()
        glance, seen = _of(glance, stays), seen[stays]
        chosen = self.choose(glance)
        actions = self.actions_of(chosen, self.spatial_policy(glance.maps))
        looked_at = torch.zeros_like(seen)  # behind a ReLU: 0 is the least
        start = 0
        for index, step in enumerate(classifier.focus_steps):
            if self.thresholds[index + 1] >= NEVER:
                continue  # nobody leaves here: the frame goes along with the next ones
            frame = slice(start, index + 1)
            rows = exits.waiting.to(frames.device)
            patches = self.cut(frames, chosen[:, frame], actions[:, frame], rows)
            features = self.focus(patches).view(len(chosen), index + 1 - start, -1)
            looked_at = torch.maximum(looked_at, classifier.embed(classifier.focus_mlp, features).amax(1))
            stays = exits.leave(classifier.classify(step, torch.cat([looked_at, seen], dim=-1)), index + 1)
            if not stays.any():
                break
            chosen, actions, seen, looked_at = chosen[stays], actions[stays], seen[stays], looked_at[stays]
            start = index + 1
        return exits.output()


class DynamicUniAdaFocusTsm(UniAdaFocusTsm):
    """`forward(frames (n, g + s, 3, h, w)) -> Output`: logits (n, k) of each video's exit; `aux`: `exit_steps` (n,).

    Exit 0 is the average of the glance frames, exit 1 the whole. Arguments as for `DynamicUniAdaFocus`, 2 exits.
    """

    def __init__(
        self, model: UniAdaFocusTsm, *, thresholds: Sequence[float] | None = None, criterion: Criterion = "confidence"
    ) -> None:
        with torch.device("meta"):
            super().__init__(model.config, model.num_classes)
        self.load_state_dict(model.state_dict(keep_vars=True), assign=True)
        self.thresholds = _checked(thresholds, 2)
        self.criterion: Criterion = criterion
        self.eval()

    def train(self, mode: bool = True) -> Self:
        """Stay in evaluation mode.

        Raises:
            ValueError: training was asked for.
        """
        return super().train(_never(mode))

    @torch.no_grad()
    def forward(self, frames: Tensor) -> Output:  # type: ignore[override]  # nothing of training is left to set
        """Classify clips, each up to its exit."""
        self.check(frames)
        num_glance = self.config.num_glance
        exits = _Exits(self.thresholds, self.criterion, len(frames))
        glance = self.look(frames[:, :num_glance])
        final, average = self.glance_heads(glance.features)
        stays = exits.leave(average.mean(1), 0)
        if not stays.any():
            return exits.output()
        glance = _of(glance, stays)
        chosen, actions = self.choose(glance), self.spatial_policy(glance.maps)
        patches = self.cut(frames[:, num_glance:], chosen, actions, exits.waiting.to(frames.device))
        exits.leave(final[stays] + self.focus_heads.predict(self.focus_features(patches)), 1)
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


def _of(glance: Glance, stays: Tensor) -> Glance:
    """The videos that stay."""
    return Glance(*(part[stays] for part in glance))


def _checked(thresholds: Sequence[float] | None, num_exits: int) -> tuple[float, ...]:
    if thresholds is None:
        return (*[NEVER] * (num_exits - 1), -NEVER)
    given = tuple(float(threshold) for threshold in thresholds)
    if len(given) != num_exits:
        raise ValueError(f"this model has {num_exits} exits, got {len(given)} thresholds")
    return (*given[:-1], -NEVER)  # at the last one everyone leaves


def _never(mode: bool) -> bool:
    if mode:
        raise ValueError("the dynamic form of Uni-AdaFocus is for evaluation; train the model that it was made from")
    return mode
