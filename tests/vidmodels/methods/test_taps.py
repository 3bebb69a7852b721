import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from vidmodels.checkpoints import CheckpointError, load_into
from vidmodels.layers.gumbel import draw_gate_noise
from vidmodels.methods import METHODS
from vidmodels.methods.taps import METHOD, Taps, TapsConfig, build, convert
from vidmodels.methods.taps.cost import (
    density_ratio,
    dynamic_macs,
    gmacs_per_frame,
    network_macs,
    upper_bound_macs,
)
from vidmodels.methods.taps.policy import AttentionMode, Policy, attention_bias
from vidmodels.methods.taps.training import (
    hard_gates_open,
    param_groups,
    sparsity_factor,
    sparsity_loss,
    temperature,
    training_step,
)
from vidmodels.recipes import list_recipes, load_recipe
from vidmodels.types import Batch, Train
from vidprep.errors import UsageError

CASES = Path(__file__).parents[2] / "golden" / "taps"
SMALL: dict[str, Any] = {
    "depths": (1, 1),
    "widths": (8, 16),
    "hidden_dim": 16,
    "static_macs_image_size": 32,
    "dropout": 0.0,
}


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def small(**settings: Any) -> Taps:
    return build(TapsConfig(**{**SMALL, **settings}), 3)


def batch(num_clips: int = 4, num_frames: int = 4, side: int = 32) -> Batch:
    return Batch(
        video_id=[str(index) for index in range(num_clips)],
        frames=torch.randn(num_clips, 1, num_frames, 3, side, side),
        labels=torch.arange(num_clips) % 3,
        pts_seconds=torch.zeros(num_clips, 1, num_frames, dtype=torch.float64),
    )


def open_masks(config: TapsConfig, num_frames: int = 8, value: float = 1.0) -> list[Tensor]:
    shapes = network_macs(config, 200, size=(224, 224), num_frames=num_frames).blocks
    return [torch.full((1, num_frames, block.num_channels), value) for block in shapes]


# ---- model ----


def test_output_has_one_row_a_clip_and_the_gates_of_all_blocks() -> None:
    model = small()
    out = model(torch.randn(2, 5, 3, 32, 40))
    assert out.logits.shape == (2, 3)
    torch.testing.assert_close(out.logits, out.aux["frame_logits"].mean(1))
    assert out.aux["masks"].shape == out.aux["soft"].shape == out.aux["gate_logits"].shape == (2, 5, 24)
    assert [part.shape[-1] for part in model.split_gates(out.aux["masks"])] == [8, 16]
    assert out.aux["input_size"].tolist() == [32, 40]


def test_hard_gates_keep_logits_from_zero_on_in_evaluation() -> None:
    out = small().eval()(torch.randn(2, 4, 3, 32, 32))
    assert torch.equal(out.aux["masks"], (out.aux["gate_logits"] >= 0).float())
    assert torch.equal(out.aux["soft"], out.aux["gate_logits"].sigmoid())


def test_open_hard_gates_keep_everything_and_soft_gates_still_scale() -> None:
    model, frames = small().eval(), torch.randn(2, 4, 3, 32, 32)
    scaled = model(frames, hard_gates_open=True)
    assert (scaled.aux["masks"] == 1).all()
    unscaled = model(frames, hard_gates_open=True, soft_gates=False)
    assert not torch.allclose(scaled.logits, unscaled.logits)


def test_all_gates_open_and_no_scale_is_the_dense_baseline() -> None:
    model, frames = small(soft_gates=False).eval(), torch.randn(2, 4, 3, 32, 32)
    dense = small(pruning=False).eval()
    dense.load_state_dict({k: v for k, v in model.state_dict().items() if not k.startswith("policies")})
    out = dense(frames)
    assert "masks" not in out.aux
    torch.testing.assert_close(out.logits, model(frames, hard_gates_open=True).logits)


def test_training_gates_draw_noise_from_torchs_generator_unless_told_not_to() -> None:
    model, frames = small().train(), torch.randn(2, 4, 3, 32, 32)

    def masks(**settings: Any) -> Tensor:
        gates: Tensor = model(frames, **settings).aux["masks"]
        return gates.detach().round()

    first = masks(generator=torch.Generator().manual_seed(1))
    assert torch.equal(first, masks(generator=torch.Generator().manual_seed(1)))
    assert not torch.equal(first, masks(generator=torch.Generator().manual_seed(2)))
    assert torch.equal(masks(gate_noise=False), masks(gate_noise=False))
    generator = torch.Generator().manual_seed(1)
    given = [draw_gate_noise(torch.zeros(2, 4, w), generator) for w in model.num_gates]
    assert torch.equal(first, masks(noise=given))


def test_evaluation_may_attend_otherwise_than_training() -> None:
    frames = torch.randn(2, 4, 3, 32, 32)
    model = small(eval_attention="future_bias")
    plain = small()
    plain.load_state_dict(model.state_dict())
    logits = [m(frames, gate_noise=False).aux["gate_logits"] for m in (model.train(), plain.train())]
    torch.testing.assert_close(*logits)
    logits = [m(frames).aux["gate_logits"] for m in (model.eval(), plain.eval())]
    assert not torch.equal(*logits)


@pytest.mark.parametrize("attention", ["full", "future_bias", "causal"])
def test_only_causal_attention_hides_the_future(attention: AttentionMode) -> None:
    policy = Policy(8, 6, hidden_dim=16, num_heads=4).eval()
    torch.nn.init.normal_(policy.gate.weight)
    pooled = torch.randn(1, 5, 8)
    changed = pooled.clone()
    changed[:, 3:] += 1
    before, after = (policy(p, attention=attention).logits[:, :3] for p in (pooled, changed))
    assert torch.allclose(before, after, atol=1e-9) == (attention == "causal")


def test_an_unknown_attention_is_not_taken_for_a_known_one() -> None:
    mode: Any = "caussal"
    with pytest.raises(ValueError, match="no attention 'caussal'; expected full, future_bias, causal"):
        attention_bias(mode, 3, like=torch.zeros(1))


def test_the_published_online_bias_raises_future_scores() -> None:
    bias = attention_bias("future_bias", 3, like=torch.zeros(1))
    assert bias is not None
    assert bias.tolist() == [[0, 1, 1], [0, 0, 1], [0, 0, 0]]


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"num_heads": 3}, "num_heads = 3 does not divide the channels that enter every block"),
        ({"depths": (1,)}, "widths and depths need one number a stage"),
        ({"temperature": 0.0}, "temperature must be above 0, got 0.0"),
        ({"dropout": 1.0}, r"dropout lies in \[0, 1\), got 1.0"),
        ({"shift_div": 0}, "shift_div must be at least 1, got 0"),
        ({"hidden_dim": 0}, "must be at least 1"),
    ],
)
def test_settings_check_themselves(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        TapsConfig(**{**SMALL, **settings})


# ---- cost: the numbers of section 4 of the specification ----


def test_costs_of_the_published_network() -> None:
    config = TapsConfig()
    macs = network_macs(config, 200, size=(224, 224), num_frames=8)
    assert macs.stem == 118_013_952
    assert macs.classifier == 409_800
    assert sum(macs.static(8)) == 31_998_869_504
    assert 8 * sum(block.downsample for block in macs.blocks) == 2_877_292_544
    assert 8 * sum(block.policy_mlp for block in macs.blocks) == 245_891_072
    kept, dropped = (dynamic_macs(macs.blocks, open_masks(config, value=value)) for value in (1.0, 0.0))
    assert int(kept.sum()) == 28_875_685_888
    assert int(dropped.sum()) == 6_576_668_672
    assert float(density_ratio(kept, macs)) == pytest.approx(0.905195, abs=5e-7)
    assert float(density_ratio(dropped, macs)) == pytest.approx(0.228306, abs=5e-7)
    profiler = 0.045138
    assert float(gmacs_per_frame(kept, macs)) + profiler == pytest.approx(4.163011, abs=1e-6)
    assert float(gmacs_per_frame(dropped, macs)) + profiler == pytest.approx(1.375634, abs=1e-6)
    assert torch.equal(upper_bound_macs(macs.blocks, open_masks(config)), kept)
    # FlopCounterMode, 2 per MAC, dense and masked: 67.938 GFLOP; without policy 65.401
    everything = sum(block.policy_attention for block in macs.blocks) + 8 * macs.classifier_counted
    counted = sum(macs.static(8)) + 8 * macs.stem + everything
    assert 2 * counted / 1e9 == pytest.approx(67.938, abs=5e-4)
    dense = network_macs(TapsConfig(pruning=False), 200, size=(224, 224), num_frames=8)
    assert 2 * (sum(dense.static(8)) + 8 * dense.stem + 8 * dense.classifier_counted) / 1e9 == pytest.approx(
        65.401, abs=5e-4
    )


def test_only_conv1_gives_a_gradient_unless_all_shall() -> None:
    macs = network_macs(TapsConfig(), 200, size=(224, 224), num_frames=1)
    gradients = {}
    for kind in ("conv1", "all"):
        masks = [mask.requires_grad_() for mask in open_masks(TapsConfig(), num_frames=1)]
        torch.autograd.backward(dynamic_macs(macs.blocks, masks, gradient=kind).sum())
        gradients[kind] = [float(mask.grad[0, 0, 0]) for mask in masks if mask.grad is not None]
    ratios = [both / one for one, both in zip(gradients["conv1"], gradients["all"], strict=True)]
    ordinary, strided = 3.25, 2.125
    stages = [[10, ordinary, ordinary], *([strided, *(depth - 1) * [ordinary]] for depth in (4, 6, 3))]
    assert ratios == pytest.approx([ratio for stage in stages for ratio in stage])


# ---- training ----


def test_schedules_of_the_published_run() -> None:
    config = TapsConfig()
    assert [hard_gates_open(config, epoch) for epoch in (0, 9.9, 10)] == [True, True, False]
    assert [sparsity_factor(config, epoch) for epoch in (0, 10, 11, 20.7, 30, 49)] == [0, 0, 0.05, 0.5, 1, 1]
    assert temperature(config, 49) == 0.67
    decaying = TapsConfig(temperature=5.0, temperature_decay=0.045)
    assert temperature(decaying, 10.5) == pytest.approx(5 * 2.718281828**-0.45)
    assert sparsity_factor(TapsConfig(sparsity_warmup_start=5, sparsity_warmup_end=5), 0) == 1
    assert not hard_gates_open(TapsConfig(warmup_hard_gates_open=False), 0)


def test_sparsity_loss_forms() -> None:
    ratio = torch.tensor(0.6)
    squared, l1 = TapsConfig(density_target=0.5), TapsConfig(density_target=0.5, sparsity_loss="l1")
    assert sparsity_loss(ratio, squared, factor=0.5).item() == pytest.approx(0.5 * 5 * 0.01)
    assert sparsity_loss(ratio, l1).item() == pytest.approx(5 * 0.1)
    assert sparsity_loss(torch.tensor(0.4), l1).item() == 0


def test_a_training_step_logs_its_terms_and_reaches_every_trained_parameter() -> None:
    model = small().train()
    terms = training_step(model, batch(), 40)
    torch.testing.assert_close(terms["loss"].detach(), (terms["classification_loss"] + terms["sparsity_loss"]).float())
    assert 0.2 < terms["keep_fraction"] < 0.8
    assert not terms["density_ratio"].requires_grad
    torch.autograd.backward(terms["loss"])
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_warm_up_keeps_all_channels_and_has_no_sparsity_loss() -> None:
    terms = training_step(small().train(), batch(), 5)
    assert terms["keep_fraction"] == 1
    assert terms["sparsity_loss"] == 0


def test_noise_ends_and_soft_gates_begin_when_configured() -> None:
    model, clips = small(gate_noise_until_epoch=20, soft_gates_from_epoch=20).train(), batch()
    seen: list[dict[str, object]] = []
    model.register_forward_pre_hook(lambda _m, _a, kwargs: seen.append(kwargs), with_kwargs=True)
    for epoch in (19.5, 20):
        training_step(model, clips, epoch)
    assert [(kwargs["gate_noise"], kwargs["soft_gates"]) for kwargs in seen] == [(True, False), (False, True)]


def test_the_dense_baseline_trains_on_its_classes_alone() -> None:
    terms = training_step(small(pruning=False).train(), batch(), 40)
    assert set(terms) == {"loss", "classification_loss"}


def test_training_lowers_the_loss_and_meets_the_density_target() -> None:
    model, clips = small(density_target=0.5, sparsity_warmup_start=0, sparsity_warmup_end=0).train(), batch(6)
    train = Train(epochs=1, batch_size=6, lr=0.05)
    optimizer = torch.optim.SGD(param_groups(model, train), momentum=0.9)
    losses = []
    for _ in range(30):
        terms = training_step(model, clips, 0)
        optimizer.zero_grad()
        torch.autograd.backward(terms["loss"])
        torch.nn.utils.clip_grad_norm_(model.parameters(), 20)
        optimizer.step()
        losses.append(float(terms["loss"].detach()))
    assert losses[-1] < 0.5 * losses[0]


def test_groups_scale_rates_and_spare_biases_and_norms_from_decay() -> None:
    model = small()
    groups = {group["name"]: group for group in param_groups(model, Train(epochs=1, batch_size=1, lr=0.1))}
    assert {name: (group["lr"], group["weight_decay"]) for name, group in groups.items()} == {
        "weights": (0.1, 1e-4),
        "biases": (0.2, 0.0),
        "norms": (0.1, 0.0),
    }
    grouped = {id(p) for group in groups.values() for p in group["params"]}
    left_out = {name for name, p in model.named_parameters() if id(p) not in grouped}
    assert left_out == {
        f"policies.layer{stage}.0.attention{number}.in_proj.{part}"
        for stage in (1, 2)
        for number in (1, 2)
        for part in ("weight", "bias")
    }


def test_in_projections_are_untrained_frozen_or_trained() -> None:
    train = Train(epochs=1, batch_size=4, lr=0.1)
    for kind, has_gradient, is_grouped in (
        ("untrained", True, False),
        ("frozen", False, False),
        ("trained", True, True),
    ):
        model = small(attention_in_proj=kind).train()
        weight = dict(model.named_parameters())["policies.layer1.0.attention1.in_proj.weight"]
        torch.autograd.backward(training_step(model, batch(), 40)["loss"])
        assert (weight.grad is not None) == has_gradient
        groups = param_groups(model, train)
        assert any(p is weight for group in groups for p in group["params"]) == is_grouped


def test_fp16_refuses_gradients_that_only_the_clip_sees() -> None:
    train = Train(epochs=1, batch_size=1, lr=0.1, amp="fp16")
    with pytest.raises(UsageError, match="the loss scale would enter the clipping norm"):
        param_groups(small(), train)
    assert param_groups(small(attention_in_proj="frozen"), train)


def test_a_step_inside_data_parallel_reaches_the_network_through_its_wrapper() -> None:
    class Wrapper(torch.nn.Module):
        def __init__(self, module: Taps) -> None:
            super().__init__()
            self.module, self.num_calls = module, 0

        def forward(self, *args: object, **kwargs: object) -> object:
            self.num_calls += 1
            return self.module(*args, **kwargs)

    wrapper = Wrapper(small().train())
    assert training_step(wrapper, batch(), 0)["loss"].isfinite()
    assert wrapper.num_calls == 1


# ---- converter ----


@pytest.fixture(scope="module")
def published() -> dict[str, Tensor]:
    """Entries of the published checkpoint, shapes only."""
    case = json.loads((CASES / "minik_online_8f_224.json").read_text())
    return {key: torch.empty(shape, device="meta") for key, shape in case["state_dict"].items()}


def test_every_published_entry_has_its_place_or_is_a_known_leftover(published: dict[str, Tensor]) -> None:
    ours = convert(published)
    with torch.device("meta"):
        model = build(TapsConfig(), 200)
    load_into(model, ours, "published")
    leftovers = sum(t.numel() for k, t in published.items() if "TDCP_sa" in k or "TDCP_ffn" in k or "TDCP_norm3" in k)
    num_params = sum(parameter.numel() for parameter in model.parameters())
    assert num_params + leftovers == 373_595_784


def test_feed_forward_layers_are_kept_on_demand(published: dict[str, Tensor]) -> None:
    with torch.device("meta"):
        model = build(TapsConfig(feed_forward=True), 200)
    load_into(model, convert(published, feed_forward=True), "published")


def test_the_wrappers_prefix_is_accepted(published: dict[str, Tensor]) -> None:
    assert list(convert({f"module.{key}": value for key, value in published.items()})) == list(convert(published))


def test_lean_files_without_leftovers_convert_too(published: dict[str, Tensor]) -> None:
    lean = {k: v for k, v in published.items() if not any(part in k for part in ("TDCP_sa", "TDCP_ffn", "TDCP_norm3"))}
    assert list(convert(lean)) == list(convert(published))


def test_entries_of_resnet18_convert_and_its_unused_linears_are_dropped() -> None:
    state = build(TapsConfig(backbone="resnet18", hidden_dim=8), 5).state_dict()
    theirs = {"downsample.": "downsample", "hidden_norm": "gate_bn", "hidden": "gate_fc0", "in_proj.": "in_proj_"}
    theirs |= {"attention1": "TDCP_ca", "attention2": "TDCP_ca2", "norm1": "TDCP_norm1", "norm2": "TDCP_norm2"}
    published = {}
    for name, tensor in state.items():
        place, _, rest = name.partition(".")
        if place == "head":
            published[f"new_fc.{rest}"] = tensor
        elif place == "backbone":
            published[f"base_model.{rest.replace('downsample.', 'downsample')}"] = tensor
        else:
            stage, block, rest = rest.split(".", 2)
            for ours, old in theirs.items():
                rest = rest.replace(ours, old, 1)
            rest = f"gate_fc1.{rest.removeprefix('gate.')}" if rest.startswith("gate.") else rest
            published[f"base_model.{stage}.{block}.policy_net.{rest}"] = tensor
    published["base_model.layer1.0.FBS.weight"] = torch.empty(64, 64)
    published["base_model.layer1.0.FBS.bias"] = torch.empty(64)
    converted = convert(published)
    assert converted.keys() == state.keys()
    assert all(converted[name] is tensor for name, tensor in state.items())


def test_unknown_and_missing_entries_are_named(published: dict[str, Tensor]) -> None:
    with pytest.raises(CheckpointError, match=r"1 unexpected entries such as base_model\.fc\.weight"):
        convert({**published, "base_model.fc.weight": torch.empty(1)})
    headless = {key: value for key, value in published.items() if not key.startswith("new_fc")}
    with pytest.raises(CheckpointError, match=r"2 expected entries missing such as new_fc\.weight, new_fc\.bias"):
        convert(headless)
    del (holed := dict(published))["base_model.layer3.4.conv2.weight"]
    with pytest.raises(
        CheckpointError,
        match=r"1 entries missing that other blocks have, in our names such as backbone\.layer3\.4\.conv2",
    ):
        convert(holed)


# ---- recipes ----


@pytest.mark.parametrize("name", list_recipes("taps"))
def test_recipes_load_and_build(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.method == "taps"
    with torch.device("meta"):
        model = METHODS[recipe.method].build(recipe.model, 200)
    num_params = sum(parameter.numel() for parameter in model.parameters())
    if recipe.published is not None and recipe.published.num_params is not None:
        assert num_params == recipe.published.num_params
    assert recipe.model.static_macs_image_size == recipe.data.crop


def test_the_published_recipes_are_those_of_the_commands() -> None:
    online, offline = load_recipe("taps/mini_kinetics_online"), load_recipe("taps/activitynet_offline")
    assert (online.model.temporal_shift, offline.model.temporal_shift) == ("online", "none")
    assert (online.model.attention, online.model.eval_attention) == ("full", "future_bias")
    assert offline.model.attention == "full"
    assert not online.model.positional_encoding
    assert offline.train is None
    assert online.train is not None
    assert (online.train.lr_milestones, online.train.clip_grad, online.data.short) == ((20, 40), 20, "last")


def test_the_method_is_registered() -> None:
    assert METHODS["taps"] is METHOD
