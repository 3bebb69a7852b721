import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from vidmodels.backbones.vit import ViTShape
from vidmodels.checkpoints import CheckpointError, load_checkpoint, rename
from vidmodels.cost import count_cost
from vidmodels.methods.rgtp import RgtpVivit, RgtpVivitConfig, StreamState, build, convert
from vidmodels.methods.rgtp.convert import tadaconv_table
from vidmodels.methods.rgtp.cost import clip_cost
from vidprep.errors import UsageError

GOLDEN = Path(__file__).parents[2] / "golden" / "rgtp_vivit"
TINY: dict[str, Any] = {
    "mode": "rollout",
    "shape": ViTShape(width=24, depth=3, num_heads=2, patch_size=8),
    "temporal_depth": 2,
    "num_frames": 14,
    "image_size": 48,
    "keep_ratio": 0.25,
    "reset_interval": 3,
}
"""7 time steps of 6 x 6 patches, with resets at 3 and 6."""
SETTINGS: list[dict[str, Any]] = [
    {},
    {"mode": "base"},
    {"reset_interval": 0},
    {"reset_interval": 1},
    {"reset_interval": 4, "reset_pattern": "1in4", "foreground_ratio": 0.5, "background_ratio": 0.2},
    {"offset_radius": 0, "head_fusion": "mean", "background_ratio": 0.3, "gilbert_sampling": True},
    {"offset_radius": 2, "reset_interval": 20, "num_noun_classes": 3},
]


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def tiny(num_classes: int = 5, **settings: Any) -> RgtpVivit:
    """A small model in float64 whose parts all have an influence."""
    model = build(RgtpVivitConfig(**{**TINY, **settings}), num_classes).double().eval()
    for name, parameter in model.named_parameters():
        if parameter.ndim == 2 or "norm" not in name:
            nn.init.normal_(parameter, std=0.3)
    return model


def videos(num_videos: int = 2, num_frames: int = 14) -> Tensor:
    """Frames that change little from one to the next, and pan."""
    first = torch.randn(num_videos, 1, 3, 48, 48, dtype=torch.float64)
    frames = [first.roll(3 * t, dims=-1) + 0.1 * torch.randn_like(first) for t in range(num_frames)]
    return torch.cat(frames, dim=1)


def stream(model: RgtpVivit, frames: Tensor, state: StreamState | None = None) -> tuple[list[Tensor], StreamState]:
    """Logits after every time step of (n, t, 3, h, w)."""
    state = model.start(len(frames)) if state is None else state
    logits = []
    for pair in torch.split(frames, 2, dim=1):
        output, state = model.step(pair, state)
        logits.append(output.logits)
    return logits, state


# ---- clips and streams ----


@pytest.mark.parametrize("settings", SETTINGS)
def test_a_stream_gives_what_its_clip_gives(settings: dict[str, Any]) -> None:
    model, frames = tiny(**settings), videos()
    with torch.no_grad():
        clip = model(frames)
    state = model.start(2)
    for step, pair in enumerate(torch.split(frames, 2, dim=1)):
        output, state = model.step(pair, state)
        if "kept" in clip.aux:
            assert torch.equal(output.aux["kept"], clip.aux["kept"][:, step])
    torch.testing.assert_close(output.logits, clip.logits)
    torch.testing.assert_close(state.class_tokens, model.spatial_features(frames))
    if model.noun_head is not None:
        torch.testing.assert_close(output.aux["noun_logits"], clip.aux["noun_logits"])


def test_pruning_changes_what_is_kept_from_step_to_step() -> None:
    kept = tiny()(videos()).aux["kept"]
    assert kept.sum(-1).tolist() == [[36, 9, 9, 18, 9, 9, 18]] * 2
    assert not torch.equal(kept[:, 1], kept[:, 2])
    assert not torch.equal(kept[0], kept[1])


def test_two_videos_interleaved_give_what_they_give_one_after_the_other() -> None:
    model = tiny()
    first, second = videos(2, 20)
    alone = [stream(model, video[None])[0] for video in (first, second)]
    states = [model.start(1), model.start(1)]
    for step in range(10):
        for number, video in enumerate((first, second)):
            output, states[number] = model.step(video[None, 2 * step : 2 * step + 2], states[number])
            assert torch.equal(output.logits.nan_to_num(), alone[number][step].nan_to_num())


def test_running_a_model_leaves_nothing_behind_in_it() -> None:
    model, first, second = tiny(), *videos()[:, None]
    with torch.no_grad():
        alone = model(second).logits
        before = {name: tensor.clone() for name, tensor in [*model.named_parameters(), *model.named_buffers()]}
        model(first)
        assert torch.equal(model(second).logits, alone)
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        assert torch.equal(tensor, before[name])


def test_a_batch_of_views_gives_what_each_view_gives() -> None:
    model, frames = tiny(background_ratio=0.25), videos(5)
    with torch.no_grad():
        together, alone = model(frames), [model(view) for view in torch.split(frames, 1)]
    torch.testing.assert_close(together.logits, torch.cat([output.logits for output in alone]))
    assert torch.equal(together.aux["kept"], torch.cat([output.aux["kept"] for output in alone]))


def test_streams_join_and_leave_wherever_they_are() -> None:
    """Three streams that begin at different times and run together give what each gives alone."""
    model, a, b, c = tiny(), *videos(3, 24)[:, None]
    alone = [stream(model, video)[0] for video in (a, b, c)]
    (_, _, *_), state_a = stream(model, a[:, :4])
    state = StreamState.join([state_a, model.start(1)])  # b joins at a's step 2
    for step in range(3):
        output, state = model.step(torch.cat([a[:, 4 + 2 * step :][:, :2], b[:, 2 * step :][:, :2]]), state)
    torch.testing.assert_close(output.logits, torch.cat([alone[0][4], alone[1][2]]), equal_nan=True)
    state = StreamState.join([model.start(1), state])[[0, 2, 1]]  # c joins; the order is now c, b, a
    for step in range(5):
        pairs = [c[:, 2 * step :][:, :2], b[:, 6 + 2 * step :][:, :2], a[:, 10 + 2 * step :][:, :2]]
        output, state = model.step(torch.cat(pairs), state)
        expected = torch.cat([alone[2][step], alone[1][3 + step], alone[0][5 + step]])
        torch.testing.assert_close(output.logits, expected, equal_nan=True)
    state = state[torch.tensor([False, True, False])]  # c and a leave
    assert len(state) == 1
    output, _ = model.step(b[:, 16:18], state)
    torch.testing.assert_close(output.logits, alone[1][8])


def test_logits_of_a_stream_are_of_its_last_clip_and_no_numbers_before_there_is_one() -> None:
    model = tiny(reset_interval=7)
    frames = videos(1, 28)
    logits, state = stream(model, frames)
    assert [bool(values.isnan().all()) for values in logits] == [True] * 6 + [False] * 8
    torch.testing.assert_close(logits[6], model(frames[:, :14]).logits)
    torch.testing.assert_close(logits[13], model.classify(state.class_tokens).logits)
    # The second clip begins with a reset, which keeps a pattern: not the clip that begins afresh.
    assert not torch.allclose(logits[13], model(frames[:, 14:]).logits)


def test_a_reset_forgets_all_that_was_before() -> None:
    model, frames = tiny(), videos()
    other = torch.cat([torch.randn_like(frames[:, :6]), frames[:, 6:]], dim=1)  # step 3 is a reset
    torch.testing.assert_close(model.spatial_features(frames)[:, 3:], model.spatial_features(other)[:, 3:])
    assert not torch.allclose(model.spatial_features(frames)[:, 2], model.spatial_features(other)[:, 2])


def test_heat_that_nobody_reads_changes_nothing() -> None:
    model, frames = tiny(), videos()
    with torch.no_grad():
        embedding = model.backbone.embed(frames)
        needed, every = model.run_clip(embedding), model.run_clip(embedding, every_heat=True)
    assert [step.heat is not None for step in needed] == [True, True, False, True, True, False, True]
    for some, all_of_it in zip(needed, every, strict=True):
        torch.testing.assert_close(some.class_token, all_of_it.class_token)
        assert all_of_it.heat is not None
        torch.testing.assert_close(all_of_it.heat.sum(-1), torch.ones(2, dtype=torch.float64))


def test_keeping_everything_is_the_base() -> None:
    pruned, base = tiny(keep_ratio=1.0, reset_interval=0), tiny(mode="base")
    base.load_state_dict(pruned.state_dict())
    frames = videos()
    torch.testing.assert_close(pruned(frames).logits, base(frames).logits)
    assert pruned(frames).aux["kept"].all()


def test_more_pruning_costs_less_and_never_more_than_published() -> None:
    frames = videos(1)
    macs = []
    cases: list[dict[str, Any]] = [{"mode": "base"}, {"keep_ratio": 0.5}, {"keep_ratio": 0.25}, {"keep_ratio": 0.1}]
    for settings in cases:
        model = tiny(**settings)
        macs.append(count_cost(model, frames).macs)
        cost = clip_cost(model.config, 5)
        published = cost.linear + cost.matmul + cost.convolution
        if settings.get("mode") == "base":
            assert macs[-1] == published
        else:
            assert macs[-1] < published
    assert macs == sorted(macs, reverse=True)


def test_base_time_steps_run_together_and_pruned_ones_in_as_few_calls_as_resets_allow() -> None:
    calls = {}
    for mode in ("base", "rollout"):
        model = tiny(mode=mode)
        rows: list[int] = []
        model.get_submodule("backbone.spatial.blocks.1.norm1").register_forward_hook(
            lambda _, args, __, rows=rows: rows.append(len(args[0]))
        )
        model(videos())
        calls[mode] = rows
    assert calls == {"base": [14], "rollout": [2, 4, 4, 4]}  # first, two resets, then the steps after all three


def test_gradients_reach_every_parameter() -> None:
    model = tiny(num_noun_classes=3).train()
    output = model(videos())
    (output.logits.sum() + output.aux["noun_logits"].sum()).backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


def test_patches_are_chosen_in_full_precision_under_autocast() -> None:
    model, frames = tiny().float(), videos().float()
    chosen: list[torch.dtype] = []
    choose = model.choose

    def listen(embedding: Tensor, previous: Tensor, heat: Tensor) -> tuple[Tensor | None, Tensor, Tensor]:
        chosen.append(heat.dtype)
        return choose(embedding, previous, heat)

    model.choose = listen  # type: ignore[method-assign]
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        output = model(frames)
        logits, _ = stream(model, frames)
    model.bfloat16()(frames.bfloat16())
    logits += stream(model, frames.bfloat16())[0]
    assert set(chosen) == {torch.float32}
    assert output.logits.isfinite().all()
    assert logits[6].isfinite().all()
    assert logits[13].isfinite().all()


def test_inference_mode_leaves_a_model_that_trains() -> None:
    model = tiny()
    with torch.inference_mode():
        model(videos())
    model.train()(videos()).logits.sum().backward()


# ---- what is refused ----


def test_wrong_settings_say_what_is_expected() -> None:
    cases: list[tuple[dict[str, Any], str]] = [
        ({"keep_ratio": 0.0}, r"keep_ratio lies in \(0, 1\], got 0\.0"),
        ({"background_ratio": 1.5}, r"background_ratio lies in \[0, 1\], got 1\.5"),
        ({"reset_interval": -1}, "reset_interval must be at least 0, got -1"),
        ({"keep_ratio": 0.01}, "keep_ratio 0.01 of 36 patches is none"),
        ({"num_frames": 15}, "15 frames of 48 x 48 do not divide into tubelets of 2 x 8 x 8"),
    ]
    for settings, message in cases:
        with pytest.raises(ValueError, match=message):
            tiny(**settings)


def test_a_stream_wants_the_frames_of_one_time_step_of_each_stream() -> None:
    model = tiny()
    with pytest.raises(ValueError, match=r"expected 2 frames of each of 2 streams, got \(2, 3\)"):
        model.step(videos()[:, :3], model.start(2))
    with pytest.raises(ValueError, match=r"expected 2 frames of each of 1 streams, got \(2, 2\)"):
        model.step(videos()[:, :2], model.start(1))
    with pytest.raises(TypeError, match=r"a slice, a list or a tensor of streams, got 1; one alone is state\[\[1\]\]"):
        model.start(2)[1]  # type: ignore[index]
    with pytest.raises(UsageError, match=r'streams run with model\.mode "rollout" or "base"'):
        tiny(mode="eventful").step(videos()[:, :2], model.start(2))


def test_frames_of_another_size_are_refused() -> None:
    with pytest.raises(ValueError, match="the model is for frames of 6 x 6 patches, got 5 x 6"):
        tiny()(videos()[..., :40, :])
    with pytest.raises(ValueError, match=r"clips of 7 time steps \(14 frames\), got 6"):
        tiny()(videos()[:, :12])


# ---- checkpoints ----


def published(name: str) -> tuple[dict[str, Tensor], list[str]]:
    """Entries of a TAdaConv file without values, and what RGTP calls them."""
    case = json.loads((GOLDEN / f"{name}.json").read_text())
    with np.load(GOLDEN / f"{name}.npz") as file:
        names = [str(value) for value in file["converted_keys"]]
    return {key: torch.empty(shape, device="meta") for key, shape in case["state_dict"].items()}, names


@pytest.mark.parametrize(
    ("name", "num_classes", "settings", "num_params"),
    [
        ("convert_keys_k400", 400, {}, 115_062_928),
        ("convert_keys_epic", 97, {"image_size": 320, "num_noun_classes": 300}, 114_986_593 + 300 * 769),
    ],
)
def test_published_checkpoints_fit_the_model(
    name: str, num_classes: int, settings: dict[str, Any], num_params: int
) -> None:
    state, names = published(name)
    with torch.device("meta"):
        model = build(RgtpVivitConfig(**settings), num_classes)
    assert sum(parameter.numel() for parameter in model.parameters()) == num_params
    own = {key: tensor.shape for key, tensor in model.state_dict().items()}
    assert {key: tensor.shape for key, tensor in convert(state).items()} == own
    numbers = rename({key: torch.tensor(number) for number, key in enumerate(state)}, tadaconv_table(state))
    assert [names[int(number)] for number in numbers.values()] == list(numbers)


def test_rgtps_own_checkpoints_convert_too() -> None:
    state, names = published("convert_keys_epic")
    theirs = {name: tensor for name, tensor in zip(names, state.values(), strict=True) if name}
    with torch.device("meta"):
        model = build(RgtpVivitConfig(image_size=320), 97)
    assert set(convert(theirs)) == set(model.state_dict())


def test_a_block_that_lacks_an_entry_is_told() -> None:
    state, _ = published("convert_keys_k400")
    del state["backbone.layers.3.attn.proj.bias"]
    with pytest.raises(CheckpointError, match=r"backbone\.spatial\.blocks\.3\.attn\.proj\.bias"):
        convert(state)


def test_unknown_entries_are_told() -> None:
    state, _ = published("convert_keys_k400")
    with pytest.raises(CheckpointError, match=r"1 unexpected entries such as backbone\.stem\.bn\.weight"):
        convert({**state, "backbone.stem.bn.weight": torch.empty(1)})


def test_tadaconvs_files_are_read_as_they_are(tmp_path: Path) -> None:
    path = tmp_path / "vivit.pyth"
    torch.save({"epoch": 30, "model_state": {"head.linear.bias": torch.ones(3)}, "cfg": "..."}, path)
    assert load_checkpoint(path)["head.linear.bias"].tolist() == [1, 1, 1]
