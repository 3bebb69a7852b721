"""What is timed of each method, on random clips: its dense forms and its dynamic one, and how much that one drops.

    plain        the dense network as people run it: module by module, in PyTorch's default layout
    optimised    the same dense network with its norms folded and channels-last, as our dynamic forms run
    dense        of vision transformers, which have no norms to fold: both at once, with fused attention
    dynamic      what `Method.make_dynamic` gives

What a clip shows decides in some methods what is dropped. Random clips decide nothing sensible, so the amount is set
here, and said.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from statistics import NormalDist
from typing import Any, Literal

import torch
import torchvision
from torch import Tensor, nn

from vidmodels.backbones.resnet import DEPTHS, ResNet
from vidmodels.methods import METHODS, tam
from vidmodels.methods.rgtp import RgtpVivit
from vidmodels.methods.rgtp.vitdet import Detector
from vidmodels.methods.sta import Sta
from vidmodels.methods.tam import Tanet, TanetConfig
from vidmodels.methods.taps import Taps
from vidmodels.methods.taps.policy import Policy, PolicyOutput
from vidmodels.methods.uni_adafocus import UniAdaFocus, UniAdaFocusTsm
from vidmodels.methods.uni_adafocus.exits import NEVER, exit_shares, exit_values
from vidmodels.types import Detections, Recipe
from vidprep.errors import UsageError

__all__ = ["BENCH_RECIPES", "FORMS", "Amounts", "Form", "Forms", "make_forms"]

BENCH_RECIPES: Mapping[str, str] = {
    "taps": "taps/mini_kinetics_online",
    "sta": "sta/something_v2_vit_base_r64",
    "rgtp_vivit": "rgtp_vivit/kinetics400_keep_0215",
    "tam": "tam/something_v2_r50_8f",
    "uni_adafocus": "uni_adafocus/activitynet_p128",
    "rgtp_vitdet": "rgtp_vitdet/imagenet_vid_672_keep196",
}
"""The published setting of each method that is measured when none is named."""

Masks = Literal["same", "clip", "frame"]


@dataclass(frozen=True, kw_only=True)
class Amounts:
    """How much is dropped where weights and clips would decide."""

    kept: float | None = None
    """TAPS: share of the gated channels that is kept, in (0, 1]; None: a third, or with given weights what they say."""
    masks: Masks = "same"
    """TAPS: the same channels are kept in all frames of all clips, in all frames of each clip, or differ by frame."""
    budget: float = 0.5
    """Uni-AdaFocus: mean multiply-adds of a video over those of the full run."""

    def __post_init__(self) -> None:
        if self.kept is not None and not 0 < self.kept <= 1:
            raise UsageError(f"--kept is a share of the channels in (0, 1], got {self.kept:g}.")
        if not 0 < self.budget <= 1:
            raise UsageError(f"--budget is a share of the full run in (0, 1], got {self.budget:g}.")


@dataclass(frozen=True, kw_only=True)
class Form:
    """One network on some clips."""

    name: str
    what: str
    """In words."""
    run: Callable[[], object]
    """The timed call; without gradients."""
    num_units: int
    """Clips of a call, or frames of streams."""
    run_one: Callable[[], object] | None = None
    """The same on one unit, to be counted, where the cost does not depend on what a clip shows."""


@dataclass(frozen=True, kw_only=True)
class Forms:
    """What is timed against what."""

    forms: tuple[Form, ...]
    pairs: tuple[tuple[str, str], ...]
    """(the faster one, what it is measured against), by name; the method's own comparison comes first."""
    amount: str
    """What is dropped, in words."""
    unit: Literal["clip", "frame"] = "clip"


def make_forms(
    recipe: Recipe,
    model: nn.Module,
    *,
    num_clips: int,
    device: torch.device | str = "cpu",
    amounts: Amounts | None = None,
    is_trained: bool = False,
) -> Forms:
    """The forms of a model on so many random clips.

    Args:
        recipe: of the model.
        model: the trainable form in evaluation mode, on the device. Of TAPS the gates' biases are changed where the
            amount is set.
        num_clips: of each call.
        device: where the clips are to be.
        amounts: None takes the defaults.
        is_trained: the weights are given ones, not random.

    Raises:
        UsageError: the recipe drops nothing.
    """
    data = recipe.data
    generator = torch.Generator().manual_seed(0)
    # Clips differ in their contrast, so that a network's answers to them do.
    contrast = torch.linspace(0.5, 1.5, num_clips).view(-1, 1, 1, 1, 1)
    shape = (num_clips, data.num_frames, 3, recipe.eval_crop, recipe.eval_crop)
    clips = (torch.randn(shape, generator=generator) * contrast).to(device)
    return FORMS[recipe.method](recipe, model, clips, amounts or Amounts(), is_trained)


# ---- vision transformers ----


def _sta(recipe: Recipe, model: nn.Module, clips: Tensor, _amounts: Amounts, _is_trained: bool) -> Forms:
    assert isinstance(model, Sta)  # noqa: S101
    config = model.config
    if not config.prune_number:
        raise _drops_nothing(recipe, "model.prune_number=64")
    dense = _sharing(model, replace(config, prune_number=0), recipe)
    return Forms(
        forms=(
            _on_clips("dense", "the plain ViT, fused attention", dense, clips),
            _on_clips("dynamic", f"STA, r = {config.prune_number}", model, clips),
        ),
        pairs=(("dynamic", "dense"),),
        amount=f"r = {config.prune_number}, whatever the clip shows",
    )


def _rgtp_vivit(recipe: Recipe, model: nn.Module, clips: Tensor, _amounts: Amounts, _is_trained: bool) -> Forms:
    assert isinstance(model, RgtpVivit)  # noqa: S101
    config = model.config
    if config.mode == "base":
        raise _drops_nothing(recipe, "model.mode=rollout")
    what = f"keep {config.keep_ratio:g}" if config.mode == "rollout" else f"eventful, k = {config.top_k}"
    dense = _sharing(model, replace(config, mode="base"), recipe)
    return Forms(
        forms=(
            _on_clips("dense", "the plain ViViT, all time steps together, fused attention", dense, clips),
            _on_clips("dynamic", f"{what}, time steps between resets one after the other", model, clips),
        ),
        pairs=(("dynamic", "dense"),),
        amount=f"{what}, whatever the clip shows",
    )


MAX_DENSE_FRAMES = 2
"""Of a stream that nothing is dropped of: its frames are all alike."""


def _rgtp_vitdet(recipe: Recipe, model: nn.Module, clips: Tensor, _amounts: Amounts, _is_trained: bool) -> Forms:
    """The backbone with its rollout, as published costs count, on streams of one cycle: a key frame and those after it.

    What is found is given, a box that moves to the right; frames fill 9 / 16 of the square.
    """
    assert isinstance(model, Detector)  # noqa: S101
    config = model.config
    if config.keep_ratio is None:
        raise _drops_nothing(recipe, "model.keep_ratio=0.111")
    dense = _sharing(model, replace(config, keep_ratio=None), recipe)
    side, num_frames, num_streams = config.image_size, config.reset_interval, len(clips)
    generator = torch.Generator().manual_seed(0)
    still = torch.rand(3, side * 9 // 16, side, generator=generator)
    noise = torch.randn(num_frames, *still.shape, generator=generator)
    frames = (still + 0.05 * noise).to(clips.device)
    few = frames[:MAX_DENSE_FRAMES]

    def run(detector: nn.Module, shown: Tensor, num_streams: int) -> None:
        for _ in range(num_streams):
            _follow_stream(detector, shown)

    return Forms(
        forms=(
            Form(
                name="dense",
                what="the backbone, every token of every frame, fused attention where it has no relative positions",
                run=partial(run, dense, few, num_streams),
                num_units=num_streams * len(few),
                run_one=partial(run, dense, few[:1], 1),
            ),
            Form(
                name="dynamic",
                what=f"the backbone with its rollout, keep {config.keep_ratio:g}",
                run=partial(run, model, frames, num_streams),
                num_units=num_streams * len(frames),
            ),
        ),
        pairs=(("dynamic", "dense"),),
        amount=f"keep {config.keep_ratio:g}, one key frame in {num_frames}; backbone only, streams one after the other",
        unit="frame",
    )


def _follow_stream(detector: nn.Module, frames: Tensor) -> None:
    assert isinstance(detector, Detector)  # noqa: S101
    state, side = None, detector.config.image_size
    for number, frame in enumerate(frames):
        left = side * (0.15 + 0.01 * number)
        box = [[left, 0.15 * side, left + 0.25 * side, 0.45 * side]]
        found = Detections(
            boxes=torch.tensor(box, device=frames.device),
            scores=torch.tensor([0.9], device=frames.device),
            labels=torch.tensor([0], device=frames.device),
        )
        state = detector.follow(detector.run_backbone(frame, state), found)


# ---- ResNets ----


def _tam(_recipe: Recipe, model: nn.Module, clips: Tensor, _amounts: Amounts, _is_trained: bool) -> Forms:
    assert isinstance(model, Tanet)  # noqa: S101
    config = model.config
    frames = clips.flatten(0, 1)
    bare = tam.make_dynamic(tam.build(replace(config, temporal="none"), model.num_classes).to(clips.device))
    return Forms(
        forms=(
            _on_clips("plain", "TANet as it is trained", model, clips),
            Form(
                name="resnet",
                what="its ResNet without the modules, norms folded, channels-last",
                run=partial(bare, clips),
                num_units=len(clips),
                run_one=partial(bare, frames[None, : config.num_frames]),
            ),
            _on_clips("dynamic", "TANet, norms folded, channels-last", tam.make_dynamic(model), clips),
        ),
        pairs=(("dynamic", "plain"), ("dynamic", "resnet")),
        amount="nothing; its dynamic form is the dense one, folded",
    )


def _taps(recipe: Recipe, model: nn.Module, clips: Tensor, amounts: Amounts, is_trained: bool) -> Forms:
    assert isinstance(model, Taps)  # noqa: S101
    config = model.config
    if not config.pruning:
        raise _drops_nothing(recipe, "model.pruning=true")
    dense = TanetConfig(
        num_frames=clips.shape[1],
        backbone=config.backbone,
        depths=config.depths,
        widths=config.widths,
        stem=config.stem,
        temporal="none",
    )
    optimised = tam.make_dynamic(tam.build(dense, model.num_classes).to(clips.device))
    kept = amounts.kept
    if kept is None and not is_trained:
        kept = 1 / 3
    if kept is not None:
        if amounts.masks == "clip":
            clips = clips[:, :1].expand_as(clips).contiguous()  # frames that are alike are decided alike
        _set_gates(model, clips, kept=kept, masks=amounts.masks)
    dynamic = METHODS["taps"].make_dynamic(model)
    with torch.no_grad():
        measured = float(dynamic(clips).aux["masks"].mean())
    differ = {
        "same": "the same in all frames of all clips",
        "clip": "nearly the same in all frames of a clip, other ones in other clips",
        "frame": "other ones in every frame",
    }
    how = differ[amounts.masks] if kept is not None else "as the given weights decide on random clips"
    return Forms(
        forms=(
            _on_clips("plain", "the plain ResNet on every frame, module by module", _plain_resnet(model), clips),
            _on_clips("optimised", "the plain ResNet, norms folded, channels-last", optimised, clips),
            Form(name="dynamic", what="TAPS, policies included", run=partial(dynamic, clips), num_units=len(clips)),
        ),
        pairs=(("dynamic", "optimised"), ("dynamic", "plain")),
        amount=f"{100 * measured:.1f} % of the gated channels kept, {how}",
    )


class _FramesOf(nn.Module):
    """A network of pictures on clips (n, t, c, h, w): every frame's logits, averaged."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, clips: Tensor) -> Tensor:
        logits: Tensor = self.network(clips.flatten(0, 1))
        return logits.view(*clips.shape[:2], -1).mean(1)


def _plain_resnet(model: Taps) -> nn.Module:
    """The ResNet of torchvision; where it has none of this depth or these widths, ours, the same layer by layer."""
    config = model.config
    device = model.head.weight.device
    is_theirs = config.widths == (64, 128, 256, 512) and config.stem == "conv7_pool"
    if is_theirs and config.block_depths == DEPTHS[config.backbone]:
        network = torchvision.models.get_model(config.backbone, weights=None, num_classes=model.num_classes)
        network.load_state_dict(model.backbone.state_dict(), strict=False, assign=True)
        return _FramesOf(network.to(device).eval())
    own = ResNet(layout=config.layout, depths=config.block_depths, widths=config.widths, stem=config.stem)
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(own.out_channels, model.num_classes))
    return _FramesOf(nn.Sequential(own, head).to(device).eval())


def _set_gates(model: Taps, clips: Tensor, *, kept: float, masks: Masks) -> None:
    """Change the biases of all gates so that this share of them is open on these clips.

    "same": a random choice of channels, far from the threshold. Otherwise each gate's own mean over clips and frames is
    brought to where as many logits lie above 0 as are wanted: what is above it differs by clip or frame.
    """
    generator = torch.Generator().manual_seed(0)

    def set_bias(policy: Policy, _inputs: object, out: PolicyOutput) -> PolicyOutput:
        logits = out.logits.flatten(0, 1)
        if masks == "same":
            order = torch.rand(logits.shape[1], generator=generator).argsort()
            sign = torch.where(order < max(1, round(kept * len(order))), 1.0, -1.0).to(logits)
            change = sign * (1 + 2 * logits.abs().amax(0))
        else:
            deviation = logits.std(0)
            change = -logits.mean(0) - deviation * _height(((logits - logits.mean(0)) / deviation), kept)
        policy.gate.bias.add_(change)
        return replace(out, logits=out.logits + change)

    policies = [module for module in model.modules() if isinstance(module, Policy)]
    hooks = [policy.register_forward_hook(set_bias) for policy in policies]
    try:
        with torch.no_grad():
            model(clips)
    finally:
        for hook in hooks:
            hook.remove()


def _height(values: Tensor, share: float) -> float:
    """What this share of the values lies above."""
    if share == 1:
        return float(values.min()) - 1
    found = values.flatten().sort(descending=True).values
    place = min(len(found) - 1, max(1, round(share * len(found))))
    middle = float(found[place - 1] + found[place]) / 2
    # Equal values, such as those of a single frame, tell nothing: then as if they were normal.
    return middle if found[0] > found[-1] else NormalDist().inv_cdf(1 - share)


def _uni_adafocus(_recipe: Recipe, model: nn.Module, clips: Tensor, amounts: Amounts, _is_trained: bool) -> Forms:
    """Two comparisons: with all of its focus frames seen whole by its large network, and with nobody leaving early."""
    assert isinstance(model, UniAdaFocus | UniAdaFocusTsm)  # noqa: S101
    exits = METHODS["uni_adafocus"].early_exit
    assert exits is not None  # noqa: S101
    config, num_frames = model.config, model.config.num_focus
    full = exits.make(model)
    macs = exits.macs(config, model.num_classes)
    with torch.no_grad():
        values = exit_values(
            torch.cat([exits.logits(model, model(clip)) for clip in torch.split(clips, 1)]), "confidence"
        )
    steps = _spread_exits(macs, len(clips), amounts.budget)
    early = exits.make(model, thresholds=_thresholds(values.cpu(), steps), criterion="confidence")
    with torch.no_grad():
        left = early(clips).aux["exit_steps"].tolist()
    whole = clips[:, :num_frames].flatten(0, 1)
    at_once = partial(_focus, whole, num_frames)
    one = partial(_focus, whole[:num_frames], num_frames)
    large = "X3D" if config.variant == "x3d" else "ResNet"
    forms = [
        Form(
            name="plain",
            what=f"its {large} on {num_frames} whole frames, module by module",
            run=partial(at_once, model.focus),
            num_units=len(clips),
            run_one=partial(one, model.focus),
        )
    ]
    fast = full.get_submodule("focus")
    if type(fast) is not type(model.focus):
        forms.append(
            Form(
                name="optimised",
                what=f"its {large} on {num_frames} whole frames, norms folded, channels-last",
                run=partial(at_once, fast),
                num_units=len(clips),
                run_one=partial(one, fast),
            )
        )
    forms += [
        _on_clips("full", "the whole of Uni-AdaFocus, nobody leaves early", full, clips),
        Form(name="dynamic", what="videos leave, the batch shrinks", run=partial(early, clips), num_units=len(clips)),
    ]
    share = sum(macs[step] for step in left) / len(left) / macs[-1]
    return Forms(
        forms=tuple(forms),
        pairs=(("dynamic", "full"), *(("full", form.name) for form in reversed(forms[:-2]))),
        amount=f"exits {', '.join(map(str, sorted(left)))} of {len(macs) - 1}, {100 * share:.0f} % of the full run",
    )


def _focus(frames: Tensor, num_frames: int, network: nn.Module) -> Tensor:
    features: Tensor = network(frames, num_frames=num_frames)
    return features


def _spread_exits(macs: Sequence[int], num_videos: int, budget: float) -> list[int]:
    """Where each video of a batch leaves: as the published shares spread them, at the mean cost nearest the budget."""
    places = (torch.arange(num_videos) + 0.5) / num_videos
    candidates = []
    for q in torch.logspace(-3, 3, 601).tolist():
        steps = torch.searchsorted(exit_shares(q, len(macs)).cumsum(0), places).clamp(max=len(macs) - 1).tolist()
        share = sum(macs[step] for step in steps) / num_videos / macs[-1]
        candidates.append((abs(share - budget), steps))
    return min(candidates)[1]


def _thresholds(values: Tensor, steps: Sequence[int]) -> list[float]:
    """Thresholds of all exits that let the surest video leave first, and so on.

    Every exit asks those that are there, as it does in use, also where nobody leaves.

    Args:
        values: (n, e).
        steps: (n,) exits, ascending; which video takes which follows from the values.
    """
    waiting = torch.ones(len(values), dtype=torch.bool)
    thresholds = []
    for step in range(values.shape[1] - 1):
        count = steps.count(step)
        candidates = waiting.nonzero()[:, 0]
        ordered = values[candidates, step].sort(descending=True)
        waiting[candidates[ordered.indices[:count]]] = False
        if not len(candidates):
            thresholds.append(NEVER / 2)  # nobody is there to ask
        elif count == len(candidates):
            thresholds.append(-NEVER / 2)
        elif count:
            thresholds.append(float(ordered.values[count - 1] + ordered.values[count]) / 2)
        else:
            thresholds.append(NEVER / 2)
    return [*thresholds, -NEVER]


# ---- what they share ----


def _on_clips(name: str, what: str, model: nn.Module, clips: Tensor) -> Form:
    return Form(
        name=name,
        what=what,
        run=partial(model, clips),
        num_units=len(clips),
        run_one=partial(model, clips[:1]),
    )


def _sharing(model: nn.Module, config: Any, recipe: Recipe) -> nn.Module:
    """A model of other settings with the parameters of `model`, not a copy of them."""
    device = next(model.parameters()).device
    other = METHODS[recipe.method].build(config, int(model.num_classes))  # type: ignore[arg-type]
    other.load_state_dict(model.state_dict(keep_vars=True), assign=True)
    return other.to(device).eval()


def _drops_nothing(recipe: Recipe, setting: str) -> UsageError:
    return UsageError(
        f"recipe {recipe.method}/{recipe.name} drops nothing, so there is nothing to measure against its dense form; "
        f"take {BENCH_RECIPES[recipe.method]}, or --set {setting}."
    )


FORMS: Mapping[str, Callable[[Recipe, nn.Module, Tensor, Amounts, bool], Forms]] = {
    "taps": _taps,
    "sta": _sta,
    "rgtp_vivit": _rgtp_vivit,
    "tam": _tam,
    "uni_adafocus": _uni_adafocus,
    "rgtp_vitdet": _rgtp_vitdet,
}
"""Of every method."""
