import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn

from vidmodels.checkpoints import CheckpointError, load_into
from vidmodels.cost import count_cost
from vidmodels.data import known_classes
from vidmodels.methods import METHODS
from vidmodels.methods.tam import METHOD, Tanet, TanetConfig, TemporalAdaptiveModule, build, convert, make_dynamic
from vidmodels.methods.tam.convert import MMACTION2, OLDER, PUBLISHED
from vidmodels.methods.tam.training import param_groups, training_step
from vidmodels.recipes import list_recipes, load_recipe
from vidmodels.types import Batch, Train
from vidprep.errors import UsageError

CASES = Path(__file__).parents[2] / "golden" / "tam"
SMALL: dict[str, Any] = {"num_frames": 4, "depths": (1, 2), "widths": (8, 16), "dropout": 0.0}
TRAIN = Train(epochs=1, batch_size=4, lr=0.01, weight_decay=1e-3)


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def small(**settings: Any) -> Tanet:
    return build(TanetConfig(**{**SMALL, **settings}), 3)


def batch(num_clips: int = 4, num_views: int = 1, side: int = 32) -> Batch:
    return Batch(
        video_id=[str(index) for index in range(num_clips)],
        frames=torch.randn(num_clips, num_views, 4, 3, side, side),
        labels=torch.arange(num_clips) % 3,
        pts_seconds=torch.zeros(num_clips, num_views, 4, dtype=torch.float64),
    )


# ---- the module ----


def test_the_taps_of_a_channel_sum_to_one_and_its_importance_lies_between_zero_and_one() -> None:
    module = TemporalAdaptiveModule(8, 4)
    descriptor = module.describe(torch.randn(12, 8, 3, 3))
    assert descriptor.shape == (3, 8, 4)
    kernel, importance = module.kernel(descriptor), module.importance(descriptor)
    torch.testing.assert_close(kernel.sum(-1), torch.ones(3, 8))
    assert kernel.shape == (3, 8, 3)
    assert importance.shape == (3, 8, 4)
    assert 0 < importance.min() < importance.max() < 1


def test_frames_are_weighed_before_they_are_convolved() -> None:
    module, x = TemporalAdaptiveModule(8, 4), torch.randn(8, 8, 3, 3)
    importance, kernel = torch.rand(2, 8, 4), torch.rand(2, 8, 3)
    weighed = x.view(2, 4, 8, 3, 3) * importance.transpose(1, 2)[..., None, None]
    padded = torch.cat([torch.zeros(2, 1, 8, 3, 3), weighed, torch.zeros(2, 1, 8, 3, 3)], dim=1)
    expected = sum(kernel[:, None, :, tap, None, None] * padded[:, tap : tap + 4] for tap in range(3))
    assert isinstance(expected, Tensor)
    torch.testing.assert_close(module.aggregate(x, importance, kernel), expected.flatten(0, 1))


def test_both_branches_see_the_clip_before_it_is_weighed() -> None:
    module, x = TemporalAdaptiveModule(8, 4).eval(), torch.randn(4, 8, 3, 3)
    pooled = x.mean((-2, -1)).T[None]  # (1, c, t)
    torch.testing.assert_close(module.describe(x), pooled)
    expected = module.aggregate(x, module.importance(pooled), module.kernel(pooled))
    torch.testing.assert_close(module(x), expected)


def test_clips_of_a_batch_do_not_see_each_other() -> None:
    model = small().eval()
    frames = torch.randn(3, 4, 3, 32, 32)
    alone = torch.cat([model(clip[None]).logits for clip in frames])
    torch.testing.assert_close(model(frames).logits, alone)


def test_wider_kernels_see_further_frames() -> None:
    module, x = TemporalAdaptiveModule(8, 6, kernel_size=5).eval(), torch.randn(6, 8, 1, 1)
    reached = torch.zeros(6, 6, dtype=torch.bool)
    for frame in range(6):
        changed = x.clone()
        changed[frame] += 1
        ones = (torch.ones(1, 8, 6), torch.ones(1, 8, 5))
        reached[:, frame] = (module.aggregate(changed, *ones) != module.aggregate(x, *ones)).flatten(1).all(1)
    distance = (torch.arange(6)[:, None] - torch.arange(6)).abs()
    assert torch.equal(reached, distance <= 2)


# ---- the network ----


def test_output_has_one_row_a_clip() -> None:
    out = small()(torch.randn(2, 4, 3, 32, 40))
    assert out.logits.shape == (2, 3)
    assert out.aux["frame_logits"].shape == (2, 4, 3)
    torch.testing.assert_close(out.logits, out.aux["frame_logits"].mean(1))


def test_every_block_has_a_module_of_its_own_width() -> None:
    model = small()
    modules = {name: block.temporal for name, block in model.blocks.items()}
    assert list(modules) == ["layer1.0", "layer2.0", "layer2.1"]
    assert all(isinstance(module, TemporalAdaptiveModule) for module in modules.values())
    assert [module.get_parameter("local_branch.3.weight").shape[0] for module in modules.values()] == [8, 16, 16]
    assert not any(isinstance(module, TemporalAdaptiveModule) for module in small(temporal="none").modules())


def test_without_modules_frames_are_classified_alone() -> None:
    model = small(temporal="none").eval()
    frames = torch.randn(1, 4, 3, 32, 32)
    shuffled = model(frames[:, [2, 0, 3, 1]])
    torch.testing.assert_close(shuffled.logits, model(frames).logits)


def test_clips_of_another_length_are_refused() -> None:
    with pytest.raises(ValueError, match="this TANet takes clips of 4 frames, got 8"):
        small()(torch.randn(1, 8, 3, 32, 32))
    with pytest.raises(ValueError, match="7 frames are not whole clips of 4"):
        TemporalAdaptiveModule(8, 4)(torch.randn(7, 8, 2, 2))


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"widths": (8,)}, "widths and depths need one number a stage"),
        ({"num_frames": 0}, "num_frames, widths, depths, expansion and reduction must be at least 1"),
        ({"kernel_size": 4}, "kernel_size is odd, so that a frame is its middle; got 4"),
        ({"dropout": 1.0}, r"dropout lies in \[0, 1\), got 1.0"),
        ({"widths": (2, 8)}, r"reduction = 4 leaves no channel of a width in \(2, 8\)"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        small(**settings)


@pytest.mark.parametrize("backbone", ["resnet18", "resnet50"])
@pytest.mark.parametrize("temporal", ["adaptive", "none"])
def test_the_folded_form_answers_as_the_trainable_one(backbone: str, temporal: str) -> None:
    model, frames = small(backbone=backbone, temporal=temporal).double().eval(), batch(2).frames[:, 0].double()
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.normal_(norm.get_buffer("running_mean"), std=0.3)
            nn.init.uniform_(norm.get_buffer("running_var"), 0.5, 1.5)
    nn.init.normal_(model.head.weight)
    expected, given = model(frames), make_dynamic(model)(frames)
    assert expected.logits.std() > 0.1
    torch.testing.assert_close(given.logits, expected.logits)
    torch.testing.assert_close(given.aux["frame_logits"], expected.aux["frame_logits"])


def test_only_tanet_is_folded_so() -> None:
    with pytest.raises(TypeError, match="expected a Tanet, got Linear"):
        make_dynamic(nn.Linear(1, 1))


# ---- training ----


def names_of(model: nn.Module) -> dict[str, set[str]]:
    assert isinstance(model, Tanet)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {
        group["name"]: {names[id(parameter)] for parameter in group["params"]} for group in param_groups(model, TRAIN)
    }


def test_linear_layers_learn_five_and_ten_times_faster_those_of_the_modules_too() -> None:
    model = small()
    groups = {group["name"]: group for group in param_groups(model, TRAIN)}
    scales = {name: (group["lr_scale"], group["lr"], group["weight_decay"]) for name, group in groups.items()}
    assert scales == {
        "weights": (1.0, 0.01, 1e-3),
        "norms": (1.0, 0.01, 0.0),
        "linear_weights": (5.0, 0.05, 1e-3),
        "linear_biases": (10.0, 0.1, 0.0),
    }
    names = names_of(model)
    assert names["linear_biases"] == {"head.bias"}
    assert "backbone.layer1.0.temporal.global_branch.0.weight" in names["linear_weights"]
    assert "backbone.layer1.0.temporal.local_branch.0.weight" in names["weights"]
    assert set.union(*names.values()) == {name for name, _ in model.named_parameters()}
    slow = [group["lr_scale"] for group in param_groups(small(fast_linears=False), TRAIN)]
    assert slow == [1.0, 1.0, 1.0, 2.0]


def test_partial_bn_trains_the_first_norm_and_lets_those_of_the_modules_gather_statistics() -> None:
    model = small(partial_bn=True)
    assert names_of(model)["norms"] == {"backbone.bn1.weight", "backbone.bn1.bias"}
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    for _ in range(2):  # train() after eval() freezes them again
        model.eval()
        model.train()
    torch.autograd.backward(training_step(model, batch(), 0.0)["loss"])
    moved = {name for name, buffer in model.named_buffers() if not torch.equal(buffer, before[name])}
    assert moved == {name for name in before if name.startswith("backbone.bn1.") or ".temporal." in name}
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert frozen == {
        name
        for name, _ in model.named_parameters()
        if re.search(r"\.bn\d|downsample\.1", name) and not name.startswith("backbone.bn1.")
    }
    norm = dict(model.named_parameters())["backbone.layer1.0.temporal.global_branch.1.weight"]
    assert norm.grad is not None


def test_the_loss_scale_must_not_rule_the_clip() -> None:
    scaled = Train(epochs=1, batch_size=1, lr=0.1, amp="fp16")
    with pytest.raises(UsageError, match='amp = "fp16" with partial_bn: the loss scale would enter the clipping norm'):
        param_groups(small(partial_bn=True), scaled)
    assert param_groups(small(), scaled)
    with pytest.raises(TypeError, match="expected a Tanet model, got Linear"):
        param_groups(nn.Linear(1, 1), TRAIN)


def test_a_training_step_reaches_every_parameter_and_every_view_counts() -> None:
    model, two_views = small().train(), batch(num_views=2)
    loss = training_step(model, two_views, 0.0)["loss"]
    torch.autograd.backward(loss)
    assert all(parameter.grad is not None for parameter in model.parameters())
    labels = two_views.labels.repeat_interleave(2)
    model.train()
    logits = model(two_views.frames.flatten(0, 1)).logits
    torch.testing.assert_close(loss, nn.functional.cross_entropy(logits, labels))


def test_it_starts_from_imagenet_weights_and_makes_the_modules_anew(tmp_path: Path) -> None:
    torch.save(torchvision.models.resnet18().state_dict(), tmp_path / "resnet.pth")
    model = build(TanetConfig(backbone="resnet18"), 3)
    module = model.blocks["layer1.0"].temporal.get_parameter("global_branch.0.weight").clone()
    model.load_imagenet(tmp_path / "resnet.pth")
    torch.testing.assert_close(model.blocks["layer1.0"].temporal.get_parameter("global_branch.0.weight"), module)


def test_fine_tuning_takes_the_classifier_only_where_its_classes_fit() -> None:
    model, other, same = small(), build(TanetConfig(**SMALL), 5), small()
    weights, fresh = model.initial_weights(other.state_dict())
    assert fresh == ["head.weight", "head.bias"]
    assert torch.equal(weights["head.weight"], model.state_dict()["head.weight"])
    load_into(model, weights, "weights")
    assert model.initial_weights(same.state_dict())[1] == []
    plain = small(temporal="none")
    fresh = model.initial_weights(plain.state_dict())[1]
    assert fresh == [name for name in model.state_dict() if ".temporal." in name]


# ---- published checkpoints ----


def published(name: str = "tanet_r50_8x64_small") -> dict[str, Tensor]:
    shapes = json.loads((CASES / f"{name}.json").read_text())["state_dict"]
    return {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}


def renamed(state: Mapping[str, Tensor], table: Mapping[str, str | None]) -> dict[str, Tensor]:
    """A published state dict under the names of another table."""
    to_ours = convert(state)
    theirs: dict[str, Tensor] = {}
    for name, tensor in to_ours.items():
        for old, new in table.items():
            assert new is not None
            match = re.fullmatch(re.escape(new).replace(r"\{\}", r"([^.]+)"), name)
            if match:
                theirs[old.format(*match.groups())] = tensor
                break
    return theirs


def test_a_published_checkpoint_fits_the_published_model() -> None:
    with torch.device("meta"):
        model = build(TanetConfig(), 10)
    for prefix in ("", "module."):
        converted = convert({prefix + key: tensor for key, tensor in published().items()})
        assert set(converted) == set(model.state_dict())
        assert all(converted[name].shape == tensor.shape for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("table", [PUBLISHED, OLDER, MMACTION2], ids=["published", "older", "mmaction2"])
def test_other_names_of_the_same_network_are_taken(table: Mapping[str, str | None]) -> None:
    state = published()
    theirs = renamed(state, table)
    assert len(theirs) == len(state) == 544
    ours = convert(theirs)
    assert {name: tensor.shape for name, tensor in ours.items()} == {
        name: tensor.shape for name, tensor in convert(state).items()
    }


def test_the_classifier_of_a_model_without_dropout_sits_in_the_resnet() -> None:
    state = {key.replace("new_fc", "base_model.fc"): tensor for key, tensor in published().items()}
    assert convert(state)["head.weight"].shape == (10, 2048)


def test_a_network_without_modules_is_taken() -> None:
    state = {key.replace(".net.", "."): tensor for key, tensor in published().items() if ".tam." not in key}
    with torch.device("meta"):
        model = build(TanetConfig(temporal="none"), 10)
    assert set(convert(state)) == set(model.state_dict())


def test_missing_and_unknown_entries_are_named() -> None:
    state = published()
    del state["base_model.layer3.2.tam.G.0.weight"]
    with pytest.raises(CheckpointError, match=r"missing.*backbone\.layer3\.2\.temporal\.global_branch\.0\.weight"):
        convert(state)
    with pytest.raises(CheckpointError, match=r"1 unexpected entries such as base_model\.gate"):
        convert({**published(), "base_model.gate": torch.zeros(1)})
    with pytest.raises(CheckpointError, match="not a checkpoint of the expected layout"):
        convert({key: tensor for key, tensor in published().items() if not key.startswith("new_fc")})


# ---- recipes ----

PUBLISHED_COSTS = {  # GMACs of one view: section 4 of the paper's comparison, as counted in the published code
    "kinetics400_r50_8f": 42.783,
    "kinetics400_r50_16f": 85.568,
    "something_v1_r50_8f": 32.756,
    "something_v1_r50_16f": 65.514,
    "something_v2_r50_8f": 42.780,
    "something_v2_r50_16f": 85.560,
}


def test_there_is_a_recipe_for_every_published_result() -> None:
    assert set(list_recipes("tam")) == {"tam/toy", *(f"tam/{name}" for name in PUBLISHED_COSTS)}


@pytest.mark.parametrize(("name", "gmacs"), PUBLISHED_COSTS.items())
def test_costs_are_the_published_ones(name: str, gmacs: float) -> None:
    recipe = load_recipe(f"tam/{name}")
    with torch.device("meta"):
        model = METHOD.build(recipe.model, known_classes(recipe.data) or 0)
        side = recipe.eval_crop
        cost = count_cost(model, torch.zeros(1, recipe.data.num_frames, 3, side, side))
    assert cost.macs / 1e9 == pytest.approx(gmacs, abs=6e-4)
    assert recipe.published is not None
    if recipe.published.gmacs is not None:
        assert round(gmacs) == recipe.published.gmacs


@pytest.mark.parametrize("name", PUBLISHED_COSTS)
def test_published_recipes_share_what_all_of_them_share(name: str) -> None:
    recipe = load_recipe(f"tam/{name}")
    train = recipe.train
    assert train is not None
    assert (train.clip_grad, train.momentum, train.schedule, train.init) == (20.0, 0.9, "step", "imagenet")
    assert (recipe.data.min_frames, recipe.data.short, recipe.data.crop) == (3, "first", 224)
    assert not recipe.model.partial_bn
    assert recipe.model.fast_linears
    assert recipe.data.flip == (recipe.data.dataset != "something_v1")
    assert (recipe.data.flip_pairs is not None) == (recipe.data.dataset == "something_v2")
    assert recipe.eval.crop_placement == ("along_width" if recipe.eval.num_crops == 3 else "along_longer_side")


def test_a_clip_length_that_the_model_is_not_built_for_is_refused() -> None:
    with pytest.raises(UsageError, match=r"model.num_frames = 8, but data.num_frames = 16; .* so set both"):
        load_recipe("tam/kinetics400_r50_8f", ["data.num_frames=16"])
    assert load_recipe("tam/kinetics400_r50_8f", ["data.num_frames=16", "model.num_frames=16"])


def test_it_is_among_the_methods() -> None:
    assert METHODS["tam"] is METHOD
