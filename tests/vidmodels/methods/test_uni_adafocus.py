import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from PIL import ImageColor
from torch import Tensor, nn

from vidmodels.backbones import x3d
from vidmodels.checkpoints import CheckpointError, load_into
from vidmodels.cost import count_cost, counting_macs
from vidmodels.data import known_classes
from vidmodels.methods import METHODS
from vidmodels.methods.uni_adafocus import UniAdaFocus, UniAdaFocusConfig, UniAdaFocusTsm, build, convert, make_dynamic
from vidmodels.methods.uni_adafocus.cost import exit_macs, part_macs, summarise
from vidmodels.methods.uni_adafocus.exits import (
    NEVER,
    Criterion,
    budget_curve,
    exit_counts,
    exit_shares,
    exit_steps,
    exit_values,
    solve_thresholds,
)
from vidmodels.methods.uni_adafocus.policy import (
    PatchGeometry,
    choose_frames,
    draw_removed_frames,
    interpolate_actions,
    monte_carlo_logits,
)
from vidmodels.methods.uni_adafocus.show import FOCUS_SIDE, GAP, RECTANGLE, draw_looks, look_at
from vidmodels.methods.uni_adafocus.training import loss_terms, param_groups, training_step
from vidmodels.metrics import topk_accuracy
from vidmodels.recipes import list_recipes, load_recipe
from vidmodels.types import Batch, Output, Train
from vidprep.errors import UsageError

CASES = Path(__file__).parents[2] / "golden" / "uni_adafocus"
TRAIN = Train(epochs=1, batch_size=2, lr=0.01, weight_decay=1e-3)
SMALL: dict[str, Any] = {
    "num_candidates": 12,
    "num_glance": 6,
    "num_focus": 4,
    "image_size": 32,
    "patch_size": 16,
    "min_extent": 16,
    "glance_stages": ((1, 8, 1, 1), (2, 8, 2, 2), (2, 16, 1, 2)),
    "focus_backbone": "resnet18",
    "focus_depths": (1, 1),
    "focus_widths": (8, 16),
    "spatial_hidden_dim": 8,
    "temporal_hidden_dim": 8,
    "classifier_hidden_dim": 16,
    "glance_size": 24,
    "x3d_widths": (8, 16),
    "x3d_glance_depths": (2, 1),
    "x3d_focus_depths": (1, 2),
    "x3d_head_dim": 16,
    "dropout": 0.0,
    "head_dropout": 0.0,
    "num_samples": 4,
}


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def small(**settings: Any) -> UniAdaFocus | UniAdaFocusTsm:
    return build(UniAdaFocusConfig(**{**SMALL, **settings}), 3)


def pooling(**settings: Any) -> UniAdaFocus:
    model = small(**settings)
    assert isinstance(model, UniAdaFocus)
    return model


def clips(model: UniAdaFocus | UniAdaFocusTsm, n: int = 2) -> Tensor:
    return torch.randn(n, model.config.num_frames, 3, 32, 32)


def batch(model: UniAdaFocus | UniAdaFocusTsm, n: int = 2) -> Batch:
    return Batch(
        video_id=[str(index) for index in range(n)],
        frames=clips(model, n)[:, None],
        labels=torch.arange(n) % 3,
        pts_seconds=torch.zeros(n, 1, model.config.num_frames, dtype=torch.float64),
    )


# ---- rectangles ----


def test_a_patch_as_large_as_its_rectangle_is_a_cut() -> None:
    geometry = PatchGeometry(image_size=32, min_extent=8, patch_size=16)
    image = torch.randn(1, 3, 32, 32)
    y, x = 3, 9
    action = torch.tensor([[y / 16, x / 16, geometry.unit_action, geometry.unit_action]])
    torch.testing.assert_close(geometry.boxes(action, side=32, points=16), torch.tensor([[3.0, 9.0, 19.0, 25.0]]))
    patch = geometry.resample(image, action, points=16)
    torch.testing.assert_close(patch, image[:, :, y : y + 16, x : x + 16], atol=1e-5, rtol=1e-5)


def test_rectangles_reach_from_the_smallest_extent_to_the_whole_frame() -> None:
    geometry = PatchGeometry()
    ends = torch.tensor([[1.0, 0.0, 0.0, 0.0], [0.5, 0.5, 1.0, 1.0]])
    expected = torch.tensor([[128.0, 0.0, 224.0, 96.0], [0.0, 0.0, 224.0, 224.0]])
    torch.testing.assert_close(geometry.boxes(ends, side=224, points=128), expected)
    torch.testing.assert_close(geometry.boxes(ends, side=7, points=4), expected / 32)


def test_a_gradient_reaches_the_actions_through_the_patch() -> None:
    actions = torch.full((1, 4), 0.4, requires_grad=True)
    patch = PatchGeometry(image_size=32, min_extent=8, patch_size=16).resample(
        torch.randn(1, 3, 32, 32), actions, points=16
    )
    (gradient,) = torch.autograd.grad(patch.square().sum(), actions)
    assert (gradient != 0).all()


def test_with_three_candidates_a_glance_frame_the_middle_one_gets_its_action() -> None:
    actions = torch.rand(2, 5, 4)
    torch.testing.assert_close(interpolate_actions(actions, 15)[:, 1::3], actions)


# ---- frames ----


def test_equal_weights_choose_the_centres() -> None:
    chosen = choose_frames(torch.full((1, 16), 1 / 16), num_candidates=48, num_focus=16)
    assert chosen.tolist() == [list(range(1, 48, 3))]


@pytest.mark.parametrize("peak", [0, 7, 15])
def test_chosen_frames_ascend_whatever_the_weights(peak: int) -> None:
    weights = torch.full((1, 16), 1e-6)
    weights[0, peak] = 1 - 15e-6
    for draws in (None, torch.zeros(1, 16), torch.full((1, 16), 0.999999)):
        chosen = choose_frames(weights, num_candidates=48, num_focus=16, draws=draws)[0]
        assert (chosen.diff() > 0).all()
        assert chosen.min() >= 0
        assert chosen.max() < 48
        assert abs(int(chosen.float().median()) - 3 * peak) < 20


def test_a_draw_of_zero_beside_a_weight_of_zero_chooses_a_frame() -> None:
    weights = torch.tensor([[0.0, 1.0]])
    chosen = choose_frames(weights, num_candidates=4, num_focus=1, draws=torch.zeros(1, 1))
    assert 0 <= int(chosen) < 4


def test_equal_logits_survive_every_removal() -> None:
    weights = torch.rand(2, 9).softmax(1)
    removed = draw_removed_frames(weights, num_removals=3, num_samples=5)
    assert [tuple(frames.shape) for frames in removed] == [(2, 5, 1), (2, 5, 2)]
    assert all(len(set(row.tolist())) == len(row) for row in removed[1].flatten(0, 1))
    logits = torch.randn(2, 1, 3)
    torch.testing.assert_close(monte_carlo_logits(weights, logits.expand(2, 9, 3), removed), logits[:, 0])


# ---- networks ----


@pytest.mark.parametrize("variant", ["pooling", "tsm", "x3d"])
def test_evaluation_does_not_draw_and_does_not_mix_videos(variant: str) -> None:
    model = small(variant=variant).eval()
    frames = clips(model, 3)
    with torch.no_grad():
        state = torch.get_rng_state()
        together: Output = model(frames)
        assert torch.equal(state, torch.get_rng_state())
        alone: Output = model(frames[1:2])
    torch.testing.assert_close(alone.logits, together.logits[1:2], atol=1e-5, rtol=1e-4)
    assert together.logits.shape == (3, 3)


def test_every_step_answers() -> None:
    model = pooling().eval()
    with torch.no_grad():
        output: Output = model(clips(model))
    assert output.aux["step_logits"].shape == (2, 10, 3)
    torch.testing.assert_close(output.logits, output.aux["step_logits"][:, -1])


def test_steps_see_earlier_frames_only() -> None:
    classifier = pooling().eval().classifier
    glance, focus = torch.randn(1, 6, 1280), torch.randn(1, 4, 16)
    changed = focus.clone()
    changed[:, 2] += 3
    with torch.no_grad():
        differs = (classifier(glance, focus) != classifier(glance, changed)).any(-1)[0]
    assert differs.tolist() == [False] * 8 + [True] * 2


def test_clips_of_another_length_are_refused() -> None:
    model = small()
    with pytest.raises(ValueError, match=r"takes clips \(12, 3, 32, 32\)"):
        model(torch.zeros(1, 11, 3, 32, 32))


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"num_glance": 5}, "num_candidates must be a multiple, at least twice, of num_glance = 5"),
        ({"num_glance": 12}, "at least twice"),
        ({"num_focus": 13}, "num_focus = 13 frames cannot be chosen from 12"),
        ({"patch_size": 8}, "patch_size lies between min_extent = 16 and image_size = 32"),
        ({"patch_size": 20}, "multiples of the glance network's stride 8"),
        ({"min_extent": 32, "patch_size": 32}, "min_extent must be less than image_size = 32"),
        ({"temperature": 0.0}, "temperature must be above 0"),
        ({"dropout": 1.0}, r"dropout lies in \[0, 1\)"),
        ({"focus_depths": (1,)}, "one number a stage"),
        ({"num_samples": 0}, "must be at least 1"),
        ({"glance_size": 0}, "must be at least 1"),
        ({"variant": "x3d", "glance_size": 20}, "glance_size and patch_size must be multiples of .* stride 8, got 20"),
        ({"x3d_focus_depths": (1, 1, 1)}, "x3d_widths, x3d_glance_depths and x3d_focus_depths need one number a stage"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        UniAdaFocusConfig(**{**SMALL, **settings})


def test_x3d_glances_at_resized_frames_and_its_rectangles_have_rounded_points() -> None:
    config = UniAdaFocusConfig(variant="x3d", num_candidates=96, num_glance=16, num_focus=32)
    assert (config.num_frames, config.map_size, config.num_removals) == (112, 5, 5)
    assert config.geometry.points(config.map_size) == 3
    model = small(variant="x3d").eval()
    seen: list[tuple[int, ...]] = []
    model.glance.register_forward_pre_hook(lambda _module, inputs: seen.append(tuple(inputs[0].shape)))
    with torch.no_grad():
        output: Output = model(clips(model))
    assert seen == [(12, 3, 24, 24)]
    assert output.aux["glance_actions"].shape == (2, 1, 4)


def test_x3d_predicts_with_heads_of_the_whole_clip_that_train_the_networks() -> None:
    model = small(variant="x3d").train()
    assert isinstance(model, UniAdaFocusTsm)
    output: Output = model(clips(model))
    torch.autograd.backward(output.logits.sum())
    assert model.glance.get_submodule("conv5").weight.grad is not None
    assert model.focus.get_submodule("backbone.conv5").weight.grad is not None
    features = torch.randn(2, 6, model.glance.out_channels)
    final, average = model.glance_heads(features)
    torch.testing.assert_close(final, model.glance_heads.final(features.mean(1)))
    torch.testing.assert_close(average, model.glance_heads.average(features))
    assert average.shape == (2, 6, 3)


# ---- training ----


@pytest.mark.parametrize("variant", ["pooling", "tsm", "x3d"])
def test_every_parameter_gets_a_gradient_and_is_in_one_group(variant: str) -> None:
    model = small(variant=variant).train()
    terms = training_step(model, batch(model), 0.0)
    torch.autograd.backward(terms["loss"])
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []
    grouped = [id(parameter) for group in param_groups(model, TRAIN) for parameter in group["params"]]
    assert sorted(grouped) == sorted(id(parameter) for parameter in model.parameters())


def test_a_weight_that_underflows_leaves_the_divergence_a_number() -> None:
    model = pooling().train()
    output: Output = model(clips(model))
    sharp = torch.tensor([[0.0, 200.0, 0.0, 0.0, 0.0, 0.0]]).softmax(1).expand(2, -1)
    assert sharp[0, 0] == 0
    terms = loss_terms(
        model.config, Output(logits=output.logits, aux={**output.aux, "weights": sharp}), torch.zeros(2).long()
    )
    assert float(terms["kl_loss"]) == pytest.approx(math.log(model.config.num_focus))


def test_modules_learn_at_their_published_rates() -> None:
    scales = {group["name"]: group["lr_scale"] for group in param_groups(small(), TRAIN)}
    assert scales == {
        "temporal_policy": 0.2,
        "spatial_policy": 0.2,
        "glance": 0.5,
        "glance_head": 0.5,
        "spatial_head": 0.5,
        "focus": 1.0,
        "focus_head": 1.0,
        "classifier": 20.0,
    }


def test_the_spatial_policy_learns_from_its_own_terms_alone() -> None:
    model = pooling().train()
    output: Output = model(clips(model))
    labels = torch.tensor([0, 1])
    loss = nn.functional.cross_entropy(output.logits, labels)
    torch.autograd.backward(loss)
    assert all(parameter.grad is None for parameter in model.spatial_policy.parameters())
    assert all(parameter.grad is None for parameter in model.temporal_policy.parameters())


def test_batch_norms_that_run_twice_count_twice() -> None:
    model = pooling().train()
    model(clips(model))
    counts = {name: int(buffer) for name, buffer in model.named_buffers() if name.endswith("1.num_batches_tracked")}
    assert counts["spatial_policy.encoder.1.num_batches_tracked"] == 2
    assert counts["temporal_policy.layers.1.num_batches_tracked"] == 1
    assert counts["classifier.glance_mlp.1.num_batches_tracked"] == 2
    assert counts["glance.features.0.1.num_batches_tracked"] == 1


@pytest.mark.parametrize("variant", ["pooling", "tsm", "x3d"])
def test_a_few_steps_lower_the_loss(variant: str) -> None:
    model = small(variant=variant, classifier_lr_scale=1.0).train()
    data, optimizer = batch(model, 3), torch.optim.SGD(param_groups(model, TRAIN), lr=TRAIN.lr, momentum=0.9)
    losses = []
    for _ in range(8):
        terms = training_step(model, data, 0.0)
        optimizer.zero_grad()
        torch.autograd.backward(terms["loss"])
        optimizer.step()
        losses.append(float(terms["loss"].detach()))
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("variant", ["pooling", "tsm", "x3d"])
def test_mixed_precision_is_that_of_the_networks_alone(variant: str) -> None:
    model = small(variant=variant).train()
    seen: dict[str, torch.dtype] = {}
    for name in ("spatial_policy", "temporal_policy"):
        model.get_submodule(name).register_forward_hook(
            lambda _module, _inputs, output, name=name: seen.update({name: output.dtype})
        )
    model.glance.register_forward_hook(lambda _module, _inputs, output: seen.update(glance=output.dtype))
    heads = model.classifier if isinstance(model, UniAdaFocus) else model.glance_heads.average
    heads.register_forward_hook(lambda _module, _inputs, output: seen.update(heads=output.dtype))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        terms = training_step(model, batch(model), 0.0)
    assert terms["loss"].dtype == torch.float32
    assert terms["loss"].isfinite()
    assert seen == {
        "glance": torch.bfloat16,
        "spatial_policy": torch.float32,
        "temporal_policy": torch.float32,
        "heads": torch.bfloat16 if variant == "tsm" else torch.float32,
    }


# ---- checkpoints ----


@pytest.mark.parametrize(
    ("case", "settings"),
    [
        ("anet_full_p128_48_16_16", {}),
        (
            "tsm_sthv2_full_p128_8_36_12",
            {"variant": "tsm", "num_candidates": 36, "num_glance": 8, "num_focus": 12, "dropout": 0.5},
        ),
    ],
)
def test_published_checkpoints_fit_with_and_without_prefix(case: str, settings: dict[str, Any]) -> None:
    content = json.loads((CASES / f"{case}.json").read_text())
    with torch.device("meta"):
        model = build(UniAdaFocusConfig(**settings), content["config"]["num_classes"])
        state = {key: torch.empty(shape) for key, shape in content["state_dict"].items()}
    num_entries = {"pooling": 750, "tsm": 672}[model.config.variant]
    assert len(state) == num_entries
    converted = convert(state)
    load_into_meta(model, converted)
    assert list(convert({f"module.{key}": value for key, value in state.items()})) == list(converted)
    for lost in ("local_CNN", "aux_fc.bias", "temporal_policy.Tconv.6.weight"):
        key = next(key for key in state if key.startswith(lost))
        with pytest.raises(CheckpointError):
            load_into(model, convert({name: value for name, value in state.items() if name != key}), "it")
    with pytest.raises(CheckpointError, match="1 unexpected entries such as extra"):
        convert(state | {"extra": torch.empty(1)})


def test_x3d_checkpoints_of_others_are_refused_with_the_reason() -> None:
    with pytest.raises(CheckpointError, match=r"the names in the published one are not known here.*kinetics400"):
        convert({"module.global_CNN.s2.pathway0_res0.branch2.a.weight": torch.empty(1)})


def test_x3d_starts_from_kinetics_and_the_others_from_imagenet(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(UsageError, match="there are no ImageNet weights of X3D"):
        small(variant="x3d").load_imagenet()
    tsm, model = small(variant="tsm"), small(variant="x3d")
    assert isinstance(tsm, UniAdaFocusTsm)
    assert isinstance(model, UniAdaFocusTsm)
    with pytest.raises(UsageError, match="only variant 'x3d' has Kinetics-400 weights"):
        tsm.load_kinetics400()
    loaded: list[tuple[nn.Module, int, str]] = []

    def load(backbone: nn.Module, heads: list[nn.Module], *, size: str, path: Path | None) -> list[str]:
        loaded.append((backbone, len(heads), size))
        return ["projection.weight"]

    monkeypatch.setattr(x3d, "load_kinetics400", load)
    with caplog.at_level("INFO"):
        model.load_kinetics400()
    assert loaded == [(model.glance, 2, "s"), (model.focus.get_submodule("backbone"), 2, "l")]
    assert "there are 3 classes, not 400" in caplog.text


def load_into_meta(model: nn.Module, state: dict[str, Tensor]) -> None:
    own = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    assert {name: tuple(value.shape) for name, value in state.items()} == own


# ---- cost ----


@pytest.mark.parametrize(("patch_size", "gmacs"), [(96, 17.88795392), (128, 27.229979648), (160, 39.241155584)])
def test_the_published_cost_of_pooling(patch_size: int, gmacs: float) -> None:
    macs = exit_macs(UniAdaFocusConfig(patch_size=patch_size), 200)
    assert macs[-1] == round(gmacs * 1e9)
    assert len(macs) == 17


@pytest.mark.parametrize(
    ("patch_size", "num_focus", "gmacs"),
    [(96, 8, 8.824464128), (96, 12, 11.830215168), (128, 12, 18.836734464), (128, 16, 24.177991936)],
)
def test_the_published_cost_of_tsm(patch_size: int, num_focus: int, gmacs: float) -> None:
    config = UniAdaFocusConfig(
        variant="tsm", num_glance=8, num_focus=num_focus, num_candidates=3 * num_focus, patch_size=patch_size
    )
    assert exit_macs(config, 174) == [2_399_654_144, round(gmacs * 1e9)]


def test_the_published_cost_of_x3d() -> None:
    config = UniAdaFocusConfig(variant="x3d", num_candidates=96, num_glance=16, num_focus=32)
    parts = part_macs(config, 400)
    assert (parts.glance, parts.focus) == (2_415_453_044, 5_984_521_316)
    assert (parts.spatial_policy, parts.temporal_policy) == (376_217_984, 1_524_864)
    assert exit_macs(config, 400) == [2_415_453_044, 8_777_717_208]


def test_what_runs_is_the_published_cost_without_the_norms() -> None:
    with torch.device("meta"):
        model = build(UniAdaFocusConfig(), 200).eval()
        counted = count_cost(model, torch.empty(1, 48, 3, 224, 224)).macs
    assert counted == 54_458_300_416 // 2
    assert sum(parameter.numel() for parameter in model.parameters()) == 84_300_968 - 1_281_000 - 2_049_000


def test_summarise_gives_the_cost_at_the_exit() -> None:
    model = pooling().eval()
    macs = [value / 1e9 for value in exit_macs(model.config, 3)]
    with torch.no_grad():
        assert summarise(model, model(clips(model))) == {"gmacs_published": pytest.approx(macs[-1])}
    left = Output(logits=torch.zeros(2, 3), aux={"exit_steps": torch.tensor([0, 2])})
    assert summarise(model, left) == {"gmacs_published": pytest.approx((macs[0] + macs[2]) / 2)}


# ---- exits ----


def test_shares_are_spent_exactly_where_thresholds_were_solved() -> None:
    values = torch.rand(200, 5)
    counts = exit_counts(exit_shares(0.5, 5), 200)
    steps = exit_steps(values, solve_thresholds(values, counts))
    assert torch.bincount(steps, minlength=5).tolist() == [*counts, 200 - sum(counts)]


def test_an_exit_without_a_share_lets_nobody_out() -> None:
    thresholds = solve_thresholds(torch.rand(4, 3), [0, 1])
    assert thresholds[0] == NEVER
    assert thresholds[2] == -NEVER
    with pytest.raises(ValueError, match="3 exits need 2 counts of at most 4 videos"):
        solve_thresholds(torch.rand(4, 3), [5, 0])


def test_the_curve_gives_the_stored_points() -> None:
    with np.load(CASES / "early_exit_top1_p128.npz") as file:
        stored = {name: torch.from_numpy(file[name]) for name in file.files}
    labels = stored["val_labels"][:, 0].long()
    macs = exit_macs(UniAdaFocusConfig(), 200)
    for criterion in get_args(Criterion):
        points = budget_curve(
            stored["train_logits"],
            stored["val_logits"],
            macs=macs,
            score=lambda logits: topk_accuracy(logits, labels, 1),
            criterion=criterion,
        )
        # At one point the last bit of a float32 share decides a count, and a video leaves elsewhere.
        gmacs = torch.tensor([point.gmacs for point in points])
        torch.testing.assert_close(gmacs, stored[f"{criterion}_gflops"].float(), atol=0.02, rtol=0)
        scores = torch.tensor([point.score for point in points])
        torch.testing.assert_close(scores, stored[f"{criterion}_metric"][:, 0].float(), atol=1e-3, rtol=0)
        assert gmacs[-1] > 2 * gmacs[0]
        assert all(sum(point.shares) == pytest.approx(1) for point in points)


def test_a_curve_wants_a_cost_an_exit() -> None:
    with pytest.raises(ValueError, match=r"3 costs are for logits \(n, 3, k\), got \(4, 2, 5\)"):
        budget_curve(torch.rand(4, 2, 5), torch.rand(4, 3, 5), macs=[1, 2, 3], score=lambda _: 0.0)


def test_entropy_of_a_certain_answer_is_zero_and_not_nan() -> None:
    values = exit_values(torch.tensor([[1000.0, 0.0, 0.0], [0.0, 0.0, 0.0]]), "entropy")
    torch.testing.assert_close(values, torch.tensor([0.0, -1.0986123]))
    assert exit_values(torch.tensor([[2.0, -5.0]]), "confidence").tolist() == [2.0]


@pytest.mark.parametrize("variant", ["pooling", "tsm", "x3d"])
def test_without_thresholds_dynamic_equals_trainable(variant: str) -> None:
    model = small(variant=variant).eval()
    frames = clips(model, 3)
    with torch.no_grad():
        expected: Output = model(frames)
    output: Output = make_dynamic(model)(frames)
    torch.testing.assert_close(output.logits, expected.logits, atol=1e-5, rtol=1e-4)
    assert output.aux["exit_steps"].tolist() == [len(exit_macs(model.config, 3)) - 1] * 3


def exits_of(model: UniAdaFocus | UniAdaFocusTsm, output: Output) -> Tensor:
    if isinstance(model, UniAdaFocusTsm):
        return torch.stack([output.aux["glance_average"], output.logits], dim=1)
    return output.aux["step_logits"][:, model.config.num_glance - 1 :]


@pytest.mark.parametrize("criterion", ["confidence", "entropy"])
@pytest.mark.parametrize("variant", ["pooling", "tsm", "x3d"])
def test_every_video_leaves_where_its_threshold_says_with_that_exits_answer(variant: str, criterion: Any) -> None:
    model = small(variant=variant).eval()
    if isinstance(model, UniAdaFocusTsm):  # its heads start near 0, where all answers are alike
        for name, parameter in [*model.glance_heads.named_parameters(), *model.focus_heads.named_parameters()]:
            parameter.data.mul_(1 if "lin5" in name else 1000)
    frames = clips(model, 12)
    with torch.no_grad():
        logits = exits_of(model, model(frames))
    values = exit_values(logits, criterion)
    thresholds = solve_thresholds(values, exit_counts(exit_shares(0.8, values.shape[1]), 12)) - 1e-6
    expected = exit_steps(values, thresholds)
    assert len(set(expected.tolist())) > 1
    output: Output = make_dynamic(model, thresholds=thresholds.tolist(), criterion=criterion)(frames)
    assert torch.equal(output.aux["exit_steps"], expected)
    torch.testing.assert_close(output.logits, logits[torch.arange(12), expected], atol=1e-5, rtol=1e-4)


def test_a_video_that_left_is_seen_by_nothing() -> None:
    model = pooling().eval()
    frames, parts = clips(model, 4), part_macs(model.config, 3)
    with torch.no_grad():
        values = exit_values(exits_of(model, model(frames)), "confidence")
    early = make_dynamic(model, thresholds=solve_thresholds(values, [2, 0, 1, 0]).sub(1e-6).tolist())
    seen: list[int] = []
    early.focus.register_forward_pre_hook(lambda _module, inputs: seen.append(len(inputs[0])))
    with counting_macs() as counter:
        output: Output = early(frames)
    assert sorted(output.aux["exit_steps"].tolist()) == [0, 0, 2, 4]
    assert seen == [4, 2]  # two frames of two videos, then two of one
    with counting_macs() as all_out:
        make_dynamic(model, thresholds=[-NEVER] * 5)(frames)
    assert counter.macs - all_out.macs < 2 * (parts.spatial_policy + parts.temporal_policy) + 6 * (
        parts.focus + parts.focus_step
    )


def test_when_all_leave_at_the_glance_no_policy_runs() -> None:
    model = pooling().eval()
    early = make_dynamic(model, thresholds=[-NEVER] * 5)

    def refuse(*_: Any) -> None:
        raise AssertionError("the spatial policy ran")

    early.spatial_policy.register_forward_pre_hook(refuse)
    output: Output = early(clips(model, 2))
    assert output.aux["exit_steps"].tolist() == [0, 0]


def test_the_dynamic_form_does_not_train_and_wants_a_threshold_an_exit() -> None:
    model = pooling()
    with pytest.raises(ValueError, match="this model has 5 exits, got 2 thresholds"):
        make_dynamic(model, thresholds=[1.0, 2.0])
    with pytest.raises(ValueError, match="for evaluation"):
        make_dynamic(model).train()
    with pytest.raises(TypeError, match="expected a Uni-AdaFocus model, got Linear"):
        make_dynamic(nn.Linear(1, 1))


def test_other_models_are_refused() -> None:
    for call in (lambda: param_groups(nn.Linear(1, 1), TRAIN), lambda: summarise(nn.Linear(1, 1), None)):  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="expected a Uni-AdaFocus model, got Linear"):
            call()


def test_it_is_registered() -> None:
    assert METHODS["uni_adafocus"].Config is UniAdaFocusConfig


# ---- pictures ----


@pytest.mark.parametrize("variant", ["pooling", "tsm", "x3d"])
def test_a_picture_shows_the_rectangles_where_they_are(variant: str) -> None:
    model = small(variant=variant, num_focus=3).eval()
    # y at its largest, x at its smallest; the smallest height, the largest width.
    steep = torch.tensor([30.0, -30.0, -30.0, 30.0])
    model.spatial_policy.forward = lambda maps: (  # type: ignore[method-assign]
        steep.sigmoid().expand(len(maps), 6 if variant == "pooling" else 1, 4)
    )
    clip = clips(model, 1)[0]
    looked = look_at(model, clip)
    with torch.no_grad():
        aux = model(clip[None]).aux
    start = 0 if variant == "pooling" else 6
    assert looked.focus == tuple(int(place) + start for place in aux["focus_indices"][0])
    assert len(looked.boxes) == 3
    assert looked.glance == ((1, 3, 5, 7, 9, 11) if variant == "pooling" else tuple(range(6)))
    assert sum(looked.weights) == pytest.approx(1)
    for box in looked.boxes:
        assert box == pytest.approx((16, 0, 32, 32), abs=1e-3)
    picture = draw_looks(model, clip, torch.ones_like(clip))
    # The lower half of a frame of the last row is as it is, the upper half is dark.
    left, bottom = GAP, picture.height - GAP
    middle = left + FOCUS_SIDE // 2
    assert picture.getpixel((middle, bottom - FOCUS_SIDE // 4)) == (255, 255, 255)
    assert max(picture.getpixel((middle, bottom - 3 * FOCUS_SIDE // 4))) < 128  # type: ignore[arg-type]
    edge = bottom - FOCUS_SIDE // 2
    assert picture.getpixel((middle, edge)) == ImageColor.getrgb(RECTANGLE)
    assert picture.getpixel((middle, edge - 1)) != ImageColor.getrgb(RECTANGLE)


def test_pictures_are_of_uni_adafocus() -> None:
    with pytest.raises(TypeError, match="expected a Uni-AdaFocus model, got Linear"):
        draw_looks(nn.Linear(1, 1), torch.empty(0), torch.empty(0))


# ---- recipes ----


@pytest.mark.parametrize("name", [name for name in list_recipes("uni_adafocus") if not name.endswith("/toy")])
def test_a_recipe_has_the_published_size_and_cost(name: str) -> None:
    recipe = load_recipe(name)
    published, num_classes = recipe.published, known_classes(recipe.data)
    assert published is not None
    assert num_classes is not None
    with torch.device("meta"):
        model = build(recipe.model, num_classes)
    if recipe.model.variant != "x3d":  # nobody says how many it has
        assert sum(parameter.numel() for parameter in model.parameters()) == published.num_params
    table_classes = {"pooling": 200, "tsm": 174, "x3d": 400}[recipe.model.variant]
    assert round(exit_macs(recipe.model, table_classes)[-1] / 1e9, 1) == published.gmacs
    leading = 0 if recipe.model.variant == "pooling" else recipe.model.num_glance
    assert recipe.data.leading_frames == leading
    assert recipe.data.train_sampler == "jittered"
