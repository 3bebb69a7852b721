import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from vidmodels.backbones.vit import ViTShape
from vidmodels.checkpoints import CheckpointError, load_checkpoint, load_into
from vidmodels.cost import count_cost
from vidmodels.data import known_classes
from vidmodels.methods.sta import METHOD, Sta, StaConfig, build, convert
from vidmodels.methods.sta.convert import CLASSIFIER, ENCODER
from vidmodels.methods.sta.cost import clip_cost, summarise
from vidmodels.methods.sta.pruning import choose_tokens, gather_tokens, stages
from vidmodels.methods.sta.show import draw_kept_tokens
from vidmodels.methods.sta.training import Mixing, draw_mixing, mix, param_groups, training_step
from vidmodels.recipes import list_recipes, load_recipe
from vidmodels.types import Batch, Train
from vidprep.errors import UsageError

TINY: dict[str, Any] = {
    "shape": ViTShape(width=24, depth=4, num_heads=2, patch_size=8),
    "image_size": 32,
    "head_init_scale": 1.0,
}
"""16 frames of 32 x 32: 8 x 16 tokens."""


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def tiny(num_classes: int = 5, **settings: Any) -> Sta:
    """A small model in float64 whose parts all have an influence."""
    model = build(StaConfig(**{**TINY, **settings}), num_classes).double().eval()
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1 and "norm" not in name:
            nn.init.normal_(parameter, std=0.3)
        elif parameter.ndim == 2:
            nn.init.normal_(parameter, std=0.2)
    return model


def clips(num_clips: int = 2) -> Tensor:
    return torch.randn(num_clips, 16, 3, 32, 32, dtype=torch.float64)


def batch(num_clips: int = 4, num_views: int = 1) -> Batch:
    return Batch(
        video_id=[str(index) for index in range(num_clips)],
        frames=torch.randn(num_clips, num_views, 16, 3, 32, 32),
        labels=torch.arange(num_clips) % 5,
        pts_seconds=torch.zeros(num_clips, num_views, 16, dtype=torch.float64),
    )


# ---- the network ----


def test_keeping_everything_is_the_plain_vit() -> None:
    model, frames = tiny(), clips()
    tokens = model.backbone(frames)
    assert tokens.shape == (2, 128, 24)
    out = model(frames)
    torch.testing.assert_close(out.logits, model.head(model.norm(tokens.mean(1))))
    assert out.aux == {}
    assert METHOD.make_dynamic(model) is model


@pytest.mark.parametrize("r", [1, 5, 9])
def test_only_what_is_kept_is_computed_and_its_order_changes_nothing(r: int) -> None:
    model, frames = tiny(prune_number=r), clips(1)
    out = model(frames)
    tokens, alive, number = model.backbone.embed(frames), torch.arange(128), 0
    for index, block in enumerate(model.backbone.blocks):
        tokens = block(tokens).tokens
        if index in {stage.after_block for stage in stages(4)}:
            number += 1
            kept = out.aux[f"kept_{number}"][0].sort().values  # in their places, not in the order of their scores
            tokens, alive = tokens[:, torch.isin(alive, kept)], kept
    torch.testing.assert_close(out.logits, model.head(model.norm(tokens.mean(1))))
    assert [len(out.aux[f"kept_{i}"][0].unique()) for i in (1, 2, 3)] == [128 - 8 * r, 128 - 12 * r, 128 - 14 * r]
    assert not torch.allclose(out.logits, tiny()(frames).logits)


def test_every_stage_drops_as_many_tokens_of_every_group() -> None:
    out = tiny(prune_number=3)(clips())
    first = out.aux["kept_1"].unflatten(1, (8, -1))
    assert (first // 16 == torch.arange(8)[:, None]).all()  # groups stay in temporal order
    last = out.aux["kept_3"].unflatten(1, (2, -1))
    assert (last // 64 == torch.arange(2)[:, None]).all()


def test_the_tokens_most_like_others_leave_the_first_group() -> None:
    keys = torch.eye(6)[None].repeat(1, 2, 1)
    keys[0, 4] = keys[0, 1]  # the even token 4 is the odd token 1 again
    decision = choose_tokens(torch.rand(1, 12, 3), keys, num_groups=2, prune_number=1)
    assert sorted(decision.kept[0, 0].tolist()) == [0, 1, 2, 3, 5]
    assert decision.first_similarity.tolist() == [[0, 0, 1]]


def test_the_strongest_token_survives_and_kept_tokens_lie_in_the_order_of_their_scores() -> None:
    tokens, keys = torch.rand(3, 40, 6), torch.randn(3, 40, 4)
    tokens[:, 27] = 9.0
    decision = choose_tokens(tokens, keys, num_groups=4, prune_number=6)
    assert (decision.kept[:, 2] == 7).any(1).all()
    assert (decision.semantic[:, 2, 7] == 1).all()
    scores = decision.score[:, 0].gather(1, decision.kept[:, 1])
    assert (scores.diff(dim=1) >= 0).all()
    assert decision.accumulated[:, 0].mean(1).allclose(torch.ones(3))


def test_going_backwards_is_going_forwards_through_reversed_groups() -> None:
    tokens, keys = torch.rand(2, 40, 6), torch.randn(2, 40, 4)

    def reverse(x: Tensor) -> Tensor:
        return x.view(len(x), 4, 10, -1).flip(1).flatten(1, 2)

    backwards = choose_tokens(tokens, keys, num_groups=4, prune_number=3, backwards=True)
    forwards = choose_tokens(reverse(tokens), reverse(keys), num_groups=4, prune_number=3)
    assert torch.equal(backwards.kept, forwards.kept.flip(1))


def test_autocast_does_not_change_what_is_kept() -> None:
    tokens, keys = torch.rand(2, 160, 6), torch.randn(2, 160, 4)
    expected = choose_tokens(tokens, keys, num_groups=4, prune_number=9).kept
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(choose_tokens(tokens, keys, num_groups=4, prune_number=9).kept, expected)


def test_gathering_takes_whole_rows_of_each_group() -> None:
    tokens = torch.arange(2 * 6 * 2).view(2, 6, 2)
    kept = torch.tensor([[[2, 0], [1, 2]], [[0, 1], [2, 1]]])
    assert torch.equal(gather_tokens(tokens, kept)[0], tokens[0, [2, 0, 4, 5]])
    assert torch.equal(gather_tokens(tokens, kept)[1], tokens[1, [0, 1, 5, 4]])


def test_a_step_refuses_what_it_cannot_divide_or_would_empty() -> None:
    with pytest.raises(ValueError, match="10 tokens do not divide into 4 groups"):
        choose_tokens(torch.rand(1, 10, 2), torch.rand(1, 10, 2), num_groups=4, prune_number=1)
    with pytest.raises(ValueError, match="r = 5 of 5 tokens in a group leaves none"):
        choose_tokens(torch.rand(1, 10, 2), torch.rand(1, 10, 2), num_groups=2, prune_number=5)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"prune_number": 112}, "prune_number is at most 111 for clips of 1568 tokens, .* got 112"),
        ({"prune_number": -1}, "prune_number must be at least 0, got -1"),
        ({"prune_number": 1, "num_frames": 2, "image_size": 48}, "9 tokens do not divide into the 8 groups"),
        ({"prune_number": 1, "shape": ViTShape(width=8, depth=2, num_heads=1)}, "needs a depth of at least 3, got 2"),
        ({"drop_path": 1.0}, r"drop_path lies in \[0, 1\), got 1.0"),
        ({"layer_decay": 0.0}, r"layer_decay lies in \(0, 1\], got 0.0"),
        ({"mixup_alpha": -1.0}, "mixup_alpha and cutmix_alpha are at least 0"),
        ({"num_frames": 0}, "num_frames and image_size must be at least 1"),
    ],
)
def test_settings_out_of_range(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        StaConfig(**settings)


def test_recipes_whose_clips_are_not_the_models_are_refused() -> None:
    with pytest.raises(UsageError, match=r"model\.image_size = 48, but crops are 32 pixels"):
        load_recipe("sta/toy", ["data.crop=32"])
    with pytest.raises(UsageError, match=r"model\.num_frames = 16, but data\.num_frames = 8"):
        load_recipe("sta/toy", ["data.num_frames=8"])


# ---- what it costs ----

G_MACS = {
    # r: (tokens at the end, (published count, FlopCounterMode's) of S, B, L, H): specification section 4
    0: (1568, (56.950, 113.756), (180.489, 360.690), (597.218, 1193.666), (1191.636, 2381.988)),
    8: (1456, (53.029, 105.921), (169.102, 337.931), (558.458, 1116.188), (1114.426, 2227.640)),
    16: (1344, (49.148, 98.166), (157.895, 315.532), (520.395, 1040.103), (1038.463, 2075.787)),
    24: (1232, (45.407, 90.692), (146.968, 293.692), (483.128, 965.611), (963.872, 1926.676)),
    32: (1120, (41.806, 83.498), (136.321, 272.412), (446.657, 892.712), (890.653, 1780.310)),
    48: (896, (35.025, 69.951), (115.864, 231.530), (376.105, 751.692), (748.329, 1495.806)),
    64: (672, (28.804, 57.524), (96.527, 192.885), (308.738, 617.043), (611.491, 1222.275)),
    80: (448, (23.144, 46.219), (78.309, 156.478), (244.556, 488.765), (480.141, 959.718)),
    96: (224, (18.044, 36.034), (61.209, 122.309), (183.561, 366.858), (354.276, 708.134)),
}


@pytest.mark.parametrize("r", G_MACS)
@pytest.mark.parametrize(("position", "size"), [(1, "small"), (2, "base"), (3, "large"), (4, "huge")])
def test_published_costs(r: int, position: int, size: Any) -> None:
    cost = clip_cost(StaConfig(size=size, prune_number=r), 400)
    row: Any = G_MACS[r]
    assert cost.num_tokens[-1] == row[0]
    assert cost.published / 1e9 == pytest.approx(row[position][0], abs=5.1e-4)
    assert 2 * cost.macs / 1e9 == pytest.approx(row[position][1], abs=5.1e-4)


@pytest.mark.parametrize("r", [0, 4, 9])
def test_what_runs_costs_what_the_closed_form_says(r: int) -> None:
    model = tiny(prune_number=r)
    cost = clip_cost(model.config, 5)
    assert count_cost(model, clips(1)).macs == cost.macs
    figures = summarise(model, model(clips(3)))
    assert figures == {"gmacs_published": cost.published / 1e9, "tokens_kept": (128 - 14 * r) / 128}


def test_the_base_network_counts_as_published_when_it_runs() -> None:
    config = StaConfig(prune_number=48)
    with torch.device("meta"):
        cost = count_cost(build(config, 400), torch.empty(1, 16, 3, 224, 224))
    assert cost.macs == clip_cost(config, 400).macs


@pytest.mark.parametrize("name", [name for name in list_recipes("sta") if load_recipe(name).published])
def test_recipes_cost_what_they_publish(name: str) -> None:
    recipe = load_recipe(name)
    published = recipe.published
    assert published is not None
    assert published.gmacs is not None
    ours = clip_cost(recipe.model, known_classes(recipe.data) or 0).published / 1e9
    rounding = 0.5 if published.gmacs == round(published.gmacs) else 5e-4
    assert ours == pytest.approx(published.gmacs, abs=rounding)
    assert published.gmacs_figure == "gmacs_published"


# ---- training ----


def test_targets_are_smoothed_and_mixed_with_the_reversed_batch() -> None:
    frames, labels = torch.arange(4.0).view(4, 1, 1, 1, 1).expand(4, 2, 3, 8, 8), torch.tensor([0, 1, 2, 0])
    mixed, targets = mix(frames, labels, Mixing(share=0.75), num_classes=3, smoothing=0.3)
    assert mixed[:, 0, 0, 0, 0].tolist() == [0.75, 1.25, 1.75, 2.25]
    torch.testing.assert_close(targets[1], torch.tensor([0.1, 0.1 + 0.7 * 0.75, 0.1 + 0.7 * 0.25]))
    torch.testing.assert_close(targets.sum(1), torch.ones(4))


def test_cutmix_takes_one_box_in_every_frame() -> None:
    frames = torch.stack([torch.zeros(2, 3, 8, 8), torch.ones(2, 3, 8, 8)])
    mixed, _ = mix(frames, torch.tensor([0, 1]), Mixing(share=0.5, box=(1, 3, 4, 8)), num_classes=2, smoothing=0.0)
    assert mixed[0, :, :, 1:3, 4:8].eq(1).all()
    assert mixed[0].sum() == 2 * 3 * 8
    assert mixed[1].sum() == 2 * 3 * (64 - 8)
    assert frames[0].eq(0).all()


def test_drawn_boxes_lie_in_the_frame_and_say_their_share() -> None:
    config, drawn = StaConfig(), [draw_mixing(StaConfig(), height=20, width=30) for _ in range(200)]
    boxes = [mixing.box for mixing in drawn if mixing is not None and mixing.box is not None]
    assert 60 < len(boxes) < 140
    for mixing in drawn:
        assert mixing is not None
        assert 0 <= mixing.share <= 1
        if mixing.box is not None:
            top, bottom, left, right = mixing.box
            assert 0 <= top <= bottom <= 20
            assert 0 <= left <= right <= 30
            assert mixing.share == pytest.approx(1 - (bottom - top) * (right - left) / 600)
    assert config.cutmix_alpha == 1.0
    only = [draw_mixing(StaConfig(cutmix_alpha=0.0), height=8, width=8) for _ in range(20)]
    assert all(mixing is not None and mixing.box is None for mixing in only)
    assert draw_mixing(StaConfig(mixup_alpha=0.0, cutmix_alpha=0.0), height=8, width=8) is None


def test_repeated_views_of_a_clip_are_clips_with_its_label() -> None:
    model = tiny(mixup_alpha=0.0, cutmix_alpha=0.0, label_smoothing=0.0, drop_path=0.0).float().train()
    twice = batch(3, num_views=2)
    logits = model(twice.frames.flatten(0, 1)).logits
    expected = nn.functional.cross_entropy(logits, twice.labels.repeat_interleave(2))
    torch.testing.assert_close(training_step(model, twice, 0.0)["loss"], expected)


def test_a_pruned_model_learns_a_batch_by_heart() -> None:
    model = tiny(prune_number=5, mixup_alpha=0.0, cutmix_alpha=0.0, label_smoothing=0.0).float().train()
    settings = Train(epochs=1, batch_size=4, lr=3e-3, optimizer="adamw")
    optimizer, clip = torch.optim.AdamW(param_groups(model, settings), lr=settings.lr), batch()
    losses = []
    for _ in range(30):
        loss = training_step(model, clip, 0.0)["loss"]
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.1 * losses[0]


def test_checkpointed_activations_give_the_same_gradients() -> None:
    gradients = []
    for checkpointing in (False, True):
        torch.manual_seed(1)
        model = tiny(prune_number=4, activation_checkpointing=checkpointing, drop_path=0.0).float().train()
        torch.manual_seed(2)
        torch.autograd.backward(training_step(model, batch(), 0.0)["loss"])
        gradients.append([parameter.grad for parameter in model.parameters()])
    torch.testing.assert_close(gradients[0], gradients[1])


def test_layers_learn_slower_the_earlier_they_are() -> None:
    model = tiny(layer_decay=0.5)
    groups = param_groups(model, Train(epochs=1, batch_size=4, lr=2.0, optimizer="adamw", weight_decay=0.05))
    rates = {name: group["lr"] for group in groups for name, p in model.named_parameters() if _holds(group, p)}
    assert rates["backbone.patch_embed.proj.weight"] == 2 * 0.5**5
    assert rates["backbone.blocks.0.attn.q_bias"] == 2 * 0.5**4
    assert rates["backbone.blocks.3.mlp.fc2.weight"] == 2 * 0.5
    assert rates["head.bias"] == rates["norm.weight"] == 2
    assert len(rates) == len(list(model.parameters()))
    assert all(p.ndim > 1 for group in groups if group["weight_decay"] for p in group["params"])


def _holds(group: dict[str, Any], parameter: Tensor) -> bool:
    return any(parameter is held for held in group["params"])


def test_several_labels_a_clip_are_refused() -> None:
    many = Batch(
        video_id=["a"],
        frames=torch.zeros(1, 1, 16, 3, 32, 32),
        labels=torch.ones(1, 5),
        pts_seconds=torch.zeros(1, 1, 16, dtype=torch.float64),
    )
    with pytest.raises(UsageError, match="sta trains with one label a clip"):
        training_step(tiny().float(), many, 0.0)


def test_only_sta_models_are_taken() -> None:
    for function in (
        lambda: param_groups(nn.Linear(1, 1), Train(epochs=1, batch_size=1, lr=1.0)),
        lambda: summarise(nn.Linear(1, 1), tiny()(clips())),
        lambda: draw_kept_tokens(nn.Linear(1, 1), clips()[0], clips()[0]),
    ):
        with pytest.raises(TypeError, match="expected a Sta model, got Linear"):
            function()


# ---- checkpoints ----


def published_state(model: Sta, *, pre_trained: bool = False) -> dict[str, Tensor]:
    """The model's weights under VideoMAE's names."""
    names = {new: old for old, new in (ENCODER | CLASSIFIER).items() if "{}" not in old}
    state = {}
    for name, tensor in model.state_dict().items():
        state[names.get(name, name.removeprefix("backbone."))] = tensor
    if not pre_trained:
        return state
    encoder = {f"encoder.{key}": value for key, value in state.items() if not key.startswith(("fc_norm", "head"))}
    rest = ("encoder.norm.weight", "encoder_to_decoder.weight", "mask_token", "decoder.blocks.0.mlp.fc1.weight")
    return encoder | {key: torch.zeros(2) for key in rest}


def test_a_fine_tuned_checkpoint_becomes_ours() -> None:
    model = tiny()
    converted = convert(published_state(model))
    assert set(converted) == set(model.state_dict())
    load_into(tiny(), converted, "test")


def test_a_pre_trained_encoder_becomes_initial_weights() -> None:
    model = tiny()
    converted = convert(published_state(model, pre_trained=True))
    assert set(model.state_dict()) - set(converted) == {"norm.weight", "norm.bias", "head.weight", "head.bias"}
    fresh_model = tiny(num_classes=7)
    weights, fresh = fresh_model.initial_weights(converted)
    assert fresh == ["norm.weight", "norm.bias", "head.weight", "head.bias"]
    load_into(fresh_model, weights, "test")
    frames = clips()
    torch.testing.assert_close(fresh_model.backbone(frames), model.backbone(frames))


def test_a_head_for_other_classes_starts_afresh() -> None:
    model = tiny(num_classes=7)
    weights, fresh = model.initial_weights(convert(published_state(tiny(num_classes=5))))
    assert fresh == ["head.weight", "head.bias"]
    load_into(model, weights, "test")


def test_checkpoints_of_another_layout_are_refused() -> None:
    state = published_state(tiny())
    with pytest.raises(CheckpointError, match="1 unexpected entries such as gamma"):
        convert({**state, "gamma": torch.zeros(1)})
    del state["blocks.2.attn.q_bias"]
    with pytest.raises(CheckpointError, match=r"1 entries of blocks missing.*backbone\.blocks\.2\.attn\.q_bias"):
        convert(state)
    with pytest.raises(CheckpointError, match="expected entries missing such as"):
        convert({key: value for key, value in state.items() if "fc_norm" not in key})


@pytest.mark.parametrize("wrapper", ["module", "model"])
def test_training_states_with_their_settings_are_read(wrapper: str, tmp_path: Path) -> None:
    state = published_state(tiny())
    torch.save({wrapper: state, "epoch": 3, "args": argparse.Namespace(lr=0.1)}, tmp_path / "checkpoint.pth")
    assert set(load_checkpoint(tmp_path / "checkpoint.pth")) == set(state)


# ---- pictures ----


def test_dropped_patches_are_faded_in_the_picture() -> None:
    model = tiny(prune_number=9).float()
    picture = draw_kept_tokens(model, clips()[0].float(), torch.zeros(16, 3, 32, 32))
    dark = torch.frombuffer(bytearray(picture.convert("L").tobytes()), dtype=torch.uint8).view(picture.height, -1) < 25
    rows = dark.view(4, -1).sum(1)  # black frames: what is kept stays black, the rest is nearly white
    assert (rows.diff() < 0).all()
    assert float(rows[3] / rows[0]) == pytest.approx((128 - 14 * 9) / 128, abs=0.05)


def test_a_model_that_keeps_everything_has_no_picture() -> None:
    with pytest.raises(UsageError, match="this model keeps every token"):
        draw_kept_tokens(tiny().float(), clips()[0].float(), clips()[0])
