"""For every method: the form that skips gives what the trainable form gives, at the cost that its masks promise."""

from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from vidmodels.cost import count_cost
from vidmodels.methods import METHODS
from vidmodels.methods.taps import TapsConfig, build, make_dynamic
from vidmodels.methods.taps import dynamic as taps_dynamic
from vidmodels.methods.taps.cost import summarise
from vidmodels.methods.taps.dynamic import Granularity
from vidmodels.methods.taps.model import Taps
from vidmodels.methods.taps.policy import AttentionMode, Policy, PolicyOutput
from vidmodels.recipes import load_recipe

SMALL: dict[str, Any] = {"depths": (2, 1, 2), "widths": (8, 16, 32), "hidden_dim": 16, "num_heads": 4}


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def randomised(**settings: Any) -> Taps:
    """A small model in float64 whose norms, gates and scores are far from their initial values, and alive."""
    model = build(TapsConfig(**{**SMALL, **settings}), 5).double().eval()
    nn.init.normal_(model.head.weight)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.get_buffer("running_mean"), std=0.3)
            nn.init.uniform_(module.get_buffer("running_var"), 0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.3)
        if isinstance(module, Policy):
            nn.init.normal_(module.hidden.weight)
            nn.init.normal_(module.gate.weight)
            module.hidden_norm.reset_running_stats()
    return model


def clips(num_clips: int = 2, num_frames: int = 4) -> Tensor:
    return torch.randn(num_clips, num_frames, 3, 40, 48, dtype=torch.float64)


class GivenPolicy(Policy):
    """A policy that decides what it is told: logits (n, t, gates)."""

    def __init__(self, logits: Tensor, in_channels: int) -> None:
        super().__init__(in_channels, logits.shape[-1], hidden_dim=4, num_heads=4)
        self.double().eval()
        self.register_buffer("given", logits)

    def forward(self, pooled: Tensor, *, attention: AttentionMode = "full") -> PolicyOutput:
        out = super().forward(pooled)
        return PolicyOutput(**{**out.__dict__, "logits": self.given})


def give_masks(model: Taps, logits: Sequence[Tensor]) -> None:
    rest = list(logits)
    for stage, blocks in model.backbone.stages.items():
        model.policies[stage] = nn.ModuleList(GivenPolicy(rest.pop(0), block.shape.in_channels) for block in blocks)


@pytest.mark.parametrize("backbone", ["resnet18", "resnet50"])
@pytest.mark.parametrize("granularity", ["auto", "frame", "clip"])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"temporal_shift": "offline", "stem": "conv3"},
        {"temporal_shift": "none", "eval_attention": "future_bias"},
        {"soft_gates": False, "feed_forward": True, "positional_encoding": True, "attention": "causal"},
        {"pruning": False},
    ],
)
def test_dynamic_equals_trainable(backbone: str, granularity: Granularity, settings: dict[str, Any]) -> None:
    model, frames = randomised(backbone=backbone, **settings), clips()
    dynamic = make_dynamic(model, granularity=granularity)
    expected, out = model(frames), dynamic(frames)
    assert expected.logits.std() > 0.1
    torch.testing.assert_close(out.logits, expected.logits)
    assert set(out.aux) == set(expected.aux)
    for name in out.aux:
        torch.testing.assert_close(out.aux[name], expected.aux[name])


@pytest.mark.parametrize("backbone", ["resnet18", "resnet50"])
@pytest.mark.parametrize("granularity", ["auto", "frame", "clip"])
@pytest.mark.parametrize("channel_multiple", [1, 16])
@pytest.mark.parametrize("keep", [0.0, 0.3, 1.0])
def test_dynamic_equals_trainable_for_independent_random_masks(
    backbone: str, granularity: Granularity, channel_multiple: int, keep: float
) -> None:
    model, frames = randomised(backbone=backbone), clips(3, 5)
    logits = [torch.randn(3, 5, w).double().abs() for w in model.num_gates]
    logits = [torch.where(torch.rand(part.shape) < keep, part, -part - 0.1) for part in logits]
    dynamic = make_dynamic(model, granularity=granularity, channel_multiple=channel_multiple)
    give_masks(model, logits)
    give_masks(dynamic, logits)
    expected, out = model(frames), dynamic(frames)
    assert float(expected.aux["masks"].mean()) == pytest.approx(keep, abs=0.05)
    assert expected.logits.std() > 0.1
    torch.testing.assert_close(out.logits, expected.logits)


@pytest.mark.parametrize("backbone", ["resnet18", "resnet50"])
@pytest.mark.parametrize("feed_forward", [False, True])
def test_macs_that_run_are_the_macs_that_the_masks_promise(backbone: str, feed_forward: bool) -> None:
    model, frames = randomised(backbone=backbone, feed_forward=feed_forward), clips(3)
    dynamic = make_dynamic(model, granularity="frame")
    promised = summarise(model, model(frames))
    assert 0.05 < promised["keep_fraction"] < 0.95
    assert count_cost(dynamic, frames).macs / 3 == pytest.approx(1e9 * promised["gmacs_counted"], rel=1e-12)
    assert promised == pytest.approx(summarise(dynamic, dynamic(frames)))


def test_the_union_of_a_clip_costs_more_unless_its_frames_agree() -> None:
    model, frames = randomised(), clips(2)
    logits = [torch.randn(2, 4, w, dtype=torch.float64) for w in model.num_gates]
    by_frame, by_clip = (make_dynamic(model, granularity=kind) for kind in ("frame", "clip"))
    for form in (by_frame, by_clip):
        give_masks(form, logits)
    assert count_cost(by_clip, frames).macs > 1.1 * count_cost(by_frame, frames).macs
    same = [part[:, :1].expand_as(part) for part in logits]
    for form in (by_frame, by_clip):
        give_masks(form, same)
    assert count_cost(by_clip, frames).macs == count_cost(by_frame, frames).macs


def test_joining_by_cost_runs_at_least_what_the_masks_promise_and_at_most_everything() -> None:
    model, frames = randomised(), clips(2)
    promised = 2e9 * summarise(model, model(frames))["gmacs_counted"]
    assert promised <= count_cost(make_dynamic(model), frames).macs <= count_cost(model, frames).macs


@pytest.mark.parametrize("temporal_shift", ["none", "online", "offline"])
@pytest.mark.parametrize("copy_edges", [False, True])
def test_maps_that_no_cache_holds_run_in_parts_with_the_same_result(
    monkeypatch: pytest.MonkeyPatch, temporal_shift: str, copy_edges: bool
) -> None:
    model, frames = randomised(temporal_shift=temporal_shift, copy_edges=copy_edges), clips(3, 5)
    expected = model(frames)
    for clip_bytes in (0, 5 * 32 * 10 * 12 * 8, 10**9):  # every stage clip by clip, none, and the first one only
        monkeypatch.setattr(taps_dynamic, "CLIP_BYTES", clip_bytes)
        monkeypatch.setattr(taps_dynamic, "CLIPS_BYTES", clip_bytes + 1)
        monkeypatch.setattr(taps_dynamic, "PART_BYTES", 2 * 32 * 10 * 12 * 8)
        out = make_dynamic(model)(frames)
        torch.testing.assert_close(out.logits, expected.logits)
        for name in out.aux:
            torch.testing.assert_close(out.aux[name], expected.aux[name])


def test_packed_policies_decide_as_the_trainable_form_does_and_follow_its_weights() -> None:
    model, frames = randomised().float(), clips().float()
    dynamic, plain = make_dynamic(model), make_dynamic(model, pack_policies=False)
    assert list(dynamic.state_dict()) == list(plain.state_dict()) == list(model.state_dict())
    for _ in range(2):
        expected = model(frames).aux["gate_logits"]
        torch.testing.assert_close(dynamic(frames).aux["gate_logits"], expected, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(plain(frames).aux["gate_logits"], expected, rtol=1e-4, atol=1e-4)
        with torch.no_grad():
            model.get_parameter("policies.layer1.0.hidden.weight").mul_(-2)
    assert count_cost(dynamic, frames).macs == count_cost(plain, frames).macs


def test_an_unknown_granularity_is_not_taken_for_a_known_one() -> None:
    granularity: Any = "video"
    with pytest.raises(ValueError, match="no granularity 'video'; expected auto, frame, clip"):
        make_dynamic(randomised(), granularity=granularity)


def test_the_dense_baseline_costs_what_the_trainable_form_runs() -> None:
    model, frames = randomised(pruning=False), clips()
    expected = count_cost(model, frames)
    assert count_cost(make_dynamic(model), frames).macs == expected.macs
    assert summarise(model, model(frames)) == {
        "gmacs_masked": pytest.approx((expected.macs - 2 * 4 * 128 * 5) / 2e9),  # the classifier is left out there
        "gmacs_counted": pytest.approx(expected.macs / 2e9),
        "keep_fraction": 1.0,
    }


def test_both_forms_share_one_set_of_weights() -> None:
    model, frames = randomised(), clips()
    dynamic = make_dynamic(model)
    assert list(dynamic.state_dict()) == list(model.state_dict())
    assert all(a is b for a, b in zip(model.parameters(), dynamic.parameters(), strict=True))
    before = dynamic(frames).logits
    with torch.no_grad():
        model.backbone.conv1.weight.mul_(1.5)
        dict(model.named_buffers())["backbone.layer2.0.bn2.running_mean"].add_(0.3)
    expected = model(frames).logits
    assert not torch.allclose(before, expected)
    torch.testing.assert_close(dynamic(frames).logits, expected)


CLASSIFIERS = [name for name in METHODS if load_recipe(f"{name}/toy").data.fit == "crop"]
"""A detector skips over the frames of a stream, and has no logits to compare: see its own tests."""


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_the_dynamic_form_of_every_method_gives_the_trainable_ones_logits(name: str) -> None:
    method, recipe = METHODS[name], load_recipe(f"{name}/toy")
    model = method.build(recipe.model, 8).eval()
    frames = torch.randn(2, recipe.data.num_frames, 3, recipe.eval_crop, recipe.eval_crop)
    for module in model.modules():
        if isinstance(module, nn.Linear) and module.out_features == 8:  # classifiers, which start near 0
            nn.init.normal_(module.weight)
    dynamic = method.make_dynamic(model)
    with torch.no_grad():
        expected, given = model(frames).logits, dynamic(frames).logits
    assert expected.std() > 0.1
    torch.testing.assert_close(given, expected, rtol=1e-4, atol=1e-4)
    assert count_cost(dynamic, frames).macs <= count_cost(model, frames).macs
    shared = {name: parameter.data_ptr() for name, parameter in model.named_parameters()}
    assert {name: parameter.data_ptr() for name, parameter in dynamic.named_parameters()} == shared


def test_making_the_dynamic_form_leaves_the_mode_of_the_trainable_one() -> None:
    model = randomised().train()
    make_dynamic(model)
    assert all(module.training for module in model.modules())


def test_the_dynamic_form_does_not_train() -> None:
    with pytest.raises(ValueError, match="is for evaluation; train the model that it was made from"):
        make_dynamic(randomised()).train()


def test_only_taps_has_this_dynamic_form() -> None:
    with pytest.raises(TypeError, match="expected a Taps model, got Linear"):
        make_dynamic(nn.Linear(1, 1))


def test_the_dynamic_form_follows_statistics_that_are_gathered_without_a_step() -> None:
    model, frames = randomised(), clips()
    dynamic = make_dynamic(model)
    before = dynamic(frames).logits
    model.train()
    with torch.no_grad():
        model(3 * frames + 1)
    expected = model.eval()(frames).logits
    assert not torch.allclose(before, expected)
    torch.testing.assert_close(dynamic(frames).logits, expected)
