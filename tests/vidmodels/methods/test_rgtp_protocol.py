"""RGTP on ViViT beside the network: cost, recipes, training, the Eventful baseline, the picture."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from vidmodels.backbones.vit import ViTShape
from vidmodels.backbones.vivit import Block
from vidmodels.cost import count_cost
from vidmodels.data import known_classes
from vidmodels.methods.rgtp import VIVIT, RgtpVivit, RgtpVivitConfig, build, eventful
from vidmodels.methods.rgtp.cost import ClipCost, clip_cost, summarise
from vidmodels.methods.rgtp.show import draw_heat_and_kept_tokens
from vidmodels.methods.rgtp.training import SPATIAL, OnFeatures, param_groups, rgtp_model, training_step
from vidmodels.recipes import list_recipes, load_recipe
from vidmodels.types import Batch, Train
from vidprep.errors import UsageError

TINY: dict[str, Any] = {
    "shape": ViTShape(width=24, depth=3, num_heads=2, patch_size=8),
    "temporal_depth": 1,
    "num_frames": 8,
    "image_size": 32,
    "init_std": 0.1,
}
"""4 time steps of 16 patches."""

PUBLISHED = {
    "kinetics400_base": (268195639296, 11447015424, 0, 261909904, 60635904),
    "kinetics400_keep_049": (144497750016, 4388335442, 357650002, 142261648, 34175232),
    "kinetics400_keep_0215": (82070777856, 2468948966, 229342438, 81878416, 20821248),
    "kinetics400_keep_0066": (48545181696, 2062456488, 217520936, 49450384, 13649664),
    "epic_kitchens_base": (545422123776, 47423920128, 0, 532638817, 123304704),
    "epic_kitchens_fg_300_bg_025": (421559083776, 36907850820, 6582241092, 412830817, 96808704),
    "epic_kitchens_fg_180_bg_016": (314541417216, 21801825156, 3376522884, 309316705, 73916160),
    "epic_kitchens_fg_120_bg_005": (232296358656, 14815489728, 2333741760, 229764193, 56322816),
    "epic_kitchens_fg_160s05_bg_009": (175814812416, 11320092996, 1919232324, 175131745, 44240640),
    "epic_kitchens_fg_96s05_bg_003": (132215022336, 9749636724, 1802102388, 132959329, 34914048),
    "epic_kitchens_fg_28s05_bg_00": (102487892736, 9183246204, 1778211708, 104205409, 28555008),
}
"""Recipe -> linear, matmul, rollout's part of it, bias, add, of one view, as the published code counts them."""


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def tiny(num_classes: int = 5, **settings: Any) -> RgtpVivit:
    return build(RgtpVivitConfig(**{**TINY, **settings}), num_classes).eval()


def batch(*, labels: Tensor, num_views: int = 1, features: bool = False) -> Batch:
    shape = (4, 24, 1, 1) if features else (8, 3, 32, 32)
    return Batch(
        video_id=[str(index) for index in range(len(labels))],
        frames=torch.randn(len(labels), num_views, *shape),
        labels=labels,
        pts_seconds=torch.zeros(len(labels), num_views, shape[0], dtype=torch.float64),
    )


# ---- cost ----


@pytest.mark.parametrize("name", PUBLISHED)
def test_costs_are_the_published_ones_to_the_digit(name: str) -> None:
    recipe = load_recipe(f"rgtp_vivit/{name}")
    cost = clip_cost(recipe.model, known_classes(recipe.data) or 0)
    assert (cost.linear, cost.matmul, cost.rollout, cost.bias, cost.add) == PUBLISHED[name]
    assert recipe.published is not None
    assert recipe.published.gmacs is not None
    assert recipe.published.gmacs_views == recipe.eval.num_clips * recipe.eval.num_crops == 12
    assert 12 * cost.published / 1e9 == pytest.approx(recipe.published.gmacs, rel=0.01)


@pytest.mark.parametrize(("top_k", "tera"), [(24, 0.6178), (48, 1.0164), (96, 1.8138)])
def test_the_eventful_baselines_cost_what_the_published_code_counts(top_k: int, tera: float) -> None:
    recipe = load_recipe(f"rgtp_vivit/kinetics400_eventful_{top_k}")
    assert recipe.model.top_k == top_k
    assert round(12 * clip_cost(recipe.model, 400).published / 1e12, 4) == tera


def test_the_base_runs_the_products_that_the_formula_counts() -> None:
    model = tiny()
    cost = clip_cost(model.config, 5)
    assert count_cost(model, torch.randn(1, 8, 3, 32, 32)).macs == cost.linear + cost.matmul + cost.convolution


def test_pruning_runs_less_than_the_published_order_of_work() -> None:
    model = tiny(mode="rollout", keep_ratio=0.25, reset_interval=2)
    cost = clip_cost(model.config, 5)
    assert count_cost(model, torch.randn(1, 8, 3, 32, 32)).macs < cost.linear + cost.matmul + cost.convolution
    assert cost.published < clip_cost(tiny().config, 5).published


def test_figures_of_a_batch_are_those_of_one_clip() -> None:
    model = tiny(mode="rollout", keep_ratio=0.25, reset_interval=2)
    figures = summarise(OnFeatures(model), model(torch.randn(3, 8, 3, 32, 32)))
    # all, by heat, reset, by heat
    assert figures["tokens_kept"] == (16 + 4 + 8 + 4) / 64
    assert figures["gmacs_published"] == clip_cost(model.config, 5).published / 1e9


def test_costs_add_up() -> None:
    one = ClipCost(linear=1, matmul=2, bias=3, add=4, gate=5, accumulator=6, rollout=7, convolution=8)
    assert (one + one).published == 2 * (1 + 2 + 3 + 4 + 5 + 6)
    assert ((one + one).rollout, (one + one).convolution) == (14, 16)


# ---- recipes ----


@pytest.mark.parametrize("name", [name for name in list_recipes("rgtp_vivit") if "toy" not in name])
def test_published_recipes_take_the_published_views(name: str) -> None:
    recipe = load_recipe(name)
    assert (recipe.eval.num_clips, recipe.eval.num_crops, recipe.eval.average) == (4, 3, "logits")
    assert recipe.data.dense_window == (64 if recipe.data.dataset == "kinetics400" else 32)
    assert (recipe.data.train_sampler, recipe.data.resize_floats) == ("strided", True)
    assert recipe.data.resize == recipe.data.crop
    if recipe.train is not None:
        assert recipe.eval.best_from_epoch == recipe.train.epochs - 1
        assert (recipe.train.schedule, recipe.train.lr_milestones, recipe.train.warmup_epochs) == ("step", (), 0)
        assert (recipe.model.trained, recipe.model.loss_on, recipe.model.head_dropout) == (
            "temporal",
            "probabilities",
            0.5,
        )


# ---- training ----


def test_the_published_loss_takes_a_second_softmax_of_the_views_mean() -> None:
    clips = batch(labels=torch.tensor([1, 4]), num_views=3)
    logits = tiny(loss_on="logits")
    mean = logits(clips.frames.flatten(0, 1)).logits.view(2, 3, 5).mean(1)
    torch.testing.assert_close(training_step(logits, clips, 0.0)["loss"], cross_entropy(mean, clips.labels))
    published = build(RgtpVivitConfig(**TINY, loss_on="probabilities"), 5).eval()
    published.load_state_dict(logits.state_dict())
    torch.testing.assert_close(
        training_step(published, clips, 0.0)["loss"], cross_entropy(mean.softmax(-1), clips.labels)
    )


def test_features_train_as_the_clips_that_they_are_of() -> None:
    model = tiny(mode="rollout", keep_ratio=0.25)
    clips = batch(labels=torch.tensor([0, 2]), num_views=2)
    features = model.spatial_features(clips.frames.flatten(0, 1)).view(2, 2, 4, 24, 1, 1)
    cached = Batch(
        video_id=clips.video_id, frames=features, labels=clips.labels, pts_seconds=clips.pts_seconds[..., :4]
    )
    on_features = OnFeatures(model)
    torch.testing.assert_close(training_step(on_features, cached, 0.0), training_step(model, clips, 0.0))
    assert rgtp_model(on_features) is model


def test_verbs_and_nouns_are_learnt_together() -> None:
    model = tiny(num_noun_classes=7)
    clips = batch(labels=torch.tensor([[1, 6], [4, 0]]))
    terms = training_step(model, clips, 0.0)
    torch.testing.assert_close(terms["loss"], terms["verb_loss"] + terms["noun_loss"])
    assert set(training_step(tiny(), clips, 0.0)) == {"loss"}  # a model of verbs leaves the nouns alone
    with pytest.raises(UsageError, match="these data have no nouns"):
        training_step(model, batch(labels=torch.tensor([1, 4])), 0.0)
    with pytest.raises(UsageError, match="trains with one label a clip"):
        training_step(tiny(), batch(labels=torch.zeros(2, 5)), 0.0)


def test_fine_tuning_leaves_the_spatial_sub_model_alone_and_decays_everything_else() -> None:
    train = Train(epochs=1, batch_size=2, lr=2e-6, optimizer="adamw", weight_decay=0.05)
    model = tiny(trained="temporal")
    (group,) = param_groups(model, train)
    learning = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert len(group["params"]) == len(learning)
    assert not any(name.startswith(SPATIAL) for name in learning)
    assert {"head.weight", "head.bias", "backbone.temporal.cls_token", "backbone.temporal.pos_embed"} <= learning
    assert (group["lr"], group["weight_decay"]) == (2e-6, 0.05)
    assert len(param_groups(tiny(), train)[0]["params"]) == len(list(tiny().parameters()))
    with pytest.raises(TypeError, match="expected an RgtpVivit model, got Linear"):
        param_groups(torch.nn.Linear(1, 1), train)


def test_features_depend_on_what_is_pruned_and_not_on_how_the_rest_is_trained() -> None:
    assert VIVIT.features is not None
    settings = VIVIT.features.settings
    rollout = RgtpVivitConfig(**TINY, mode="rollout")
    assert settings(rollout) == settings(RgtpVivitConfig(**TINY, mode="rollout", head_dropout=0.5, trained="temporal"))
    assert settings(rollout) != settings(RgtpVivitConfig(**TINY, mode="rollout", keep_ratio=0.5))
    base = RgtpVivitConfig(**TINY)
    assert settings(base) == settings(RgtpVivitConfig(**TINY, keep_ratio=0.5, top_k=3))
    assert settings(base) != settings(rollout)


# ---- the Eventful baseline ----


def test_letting_every_token_through_is_the_plain_model() -> None:
    frames = torch.randn(2, 8, 3, 32, 32)
    plain = tiny()
    all_through = tiny(mode="eventful", top_k=17)
    all_through.load_state_dict(plain.state_dict())
    torch.testing.assert_close(all_through(frames).logits, plain(frames).logits, atol=1e-5, rtol=1e-5)
    few = tiny(mode="eventful", top_k=3)
    few.load_state_dict(plain.state_dict())
    assert not torch.allclose(few(frames).logits, plain(frames).logits, atol=1e-3)
    torch.testing.assert_close(few(frames[:1]).logits, few(frames).logits[:1], atol=1e-5, rtol=1e-5)


def test_a_frame_that_did_not_change_costs_nothing_to_keep() -> None:
    block, x = Block(ViTShape(width=24, depth=1, num_heads=2)).eval(), torch.randn(2, 9, 24)
    with torch.no_grad():
        out, states = eventful.run([block], x, None, top_k=4)
        again, states = eventful.run([block], x, states, top_k=4)
        torch.testing.assert_close(again, out)
        torch.testing.assert_close(out, block(x))
        # one token changes a little: only what attends to it follows, and by differences the product stays right
        x = x.clone()
        x[:, 3] += 1.0
        changed, _ = eventful.run([block], x, states, top_k=9)
        torch.testing.assert_close(changed, block(x), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("value_cast", ["float16", "bfloat16"])
def test_values_may_be_multiplied_in_half_precision(value_cast: Any) -> None:
    frames = torch.randn(1, 8, 3, 32, 32)
    plain, cast = tiny(mode="eventful", top_k=5), tiny(mode="eventful", top_k=5, value_cast=value_cast)
    cast.load_state_dict(plain.state_dict())
    difference = (cast(frames).logits - plain(frames).logits).abs().max()
    assert 0 < difference < 0.05


# ---- nouns in checkpoints, the picture ----


def test_a_model_of_verbs_reads_a_checkpoint_with_nouns() -> None:
    with_nouns = tiny(num_noun_classes=7).state_dict()
    assert set(tiny().select_weights(with_nouns)) == set(tiny().state_dict())
    assert set(tiny(num_noun_classes=7).select_weights(with_nouns)) == set(with_nouns)


def test_a_picture_shows_what_is_kept_and_where_it_is_hot() -> None:
    model = tiny(mode="rollout", keep_ratio=0.25, reset_interval=2)
    clip = torch.randn(8, 3, 32, 32)
    picture = draw_heat_and_kept_tokens(model, clip, torch.full_like(clip, 0.5))
    assert picture.size == (6 + 4 * 134, 2 * 16 + 3 * 128 + 4 * 6)
    kept = model(clip[None]).aux["kept"][0, 1]
    middle = 2 * 16 + 6 + 134  # of step 1: below two lines of text and the frame
    for patch, is_kept in enumerate(kept.tolist()):
        x, y = 6 + 134 + 32 * (patch % 4) + 16, middle + 32 * (patch // 4) + 16
        red, _, _ = picture.getpixel((x, y))  # type: ignore[misc]
        assert (red < 150) == bool(is_kept)
    with pytest.raises(UsageError, match="this model keeps every token"):
        draw_heat_and_kept_tokens(tiny(), clip, clip)
