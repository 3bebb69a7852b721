"""RGTP on ViTDet: what is kept between frames, and that nothing leaks; its converter and its cost."""

import logging
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from vidmodels.backbones.detection import BoxHeadOutput, BoxHeads, DetectionLimits, Detections, ProposalLimits
from vidmodels.backbones.vitdet import ViTDetShape
from vidmodels.checkpoints import CheckpointError
from vidmodels.cost import counting_macs
from vidmodels.methods.rgtp.vitdet import Detector, VitDetConfig, build
from vidmodels.methods.rgtp.vitdet_boxes import _touched, run_boxes
from vidmodels.methods.rgtp.vitdet_convert import DETECTRON2, convert
from vidmodels.methods.rgtp.vitdet_cost import backbone_cost, detector_macs, mean_over_frames, summarise
from vidmodels.methods.rgtp.vitdet_maps import all_maps, changed_maps
from vidmodels.methods.rgtp.vitdet_stream import Rollout, StreamState, anchor_tokens, heat_from_attention
from vidmodels.recipes import list_recipes, load_recipe
from vidprep.errors import UsageError

NUM_CLASSES = 3
TINY = VitDetConfig(
    image_size=64,
    reset_interval=4,
    shape=ViTDetShape(
        width=32,
        depth=4,
        num_heads=2,
        patch_size=8,
        window_size=3,
        global_blocks=(1, 3),
        position_grid=4,
        relative_position_size=5,
    ),
    channels=8,
    proposals=ProposalLimits(num_candidates=100, num_proposals=20),
    detections=DetectionLimits(score_threshold=0.2, max_detections=10),
)
"""8 x 8 tokens in nine windows, of which the outer five are not full."""


def detector(config: VitDetConfig) -> Detector:
    """The same weights for every configuration, large enough that all parts matter."""
    model = build(config, NUM_CLASSES).eval()
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(std=0.1, generator=generator)
            elif parameter.ndim > 1:
                deviation = 0.3 if "embedding" in name or "encoding" in name else (2 / parameter[0].numel()) ** 0.5
                parameter.normal_(std=deviation, generator=generator)
    return model


def video(num_frames: int, *, height: int = 40, seed: int = 0) -> Tensor:
    """Noise that changes a little from frame to frame, (t, 3, height, 64)."""
    generator = torch.Generator().manual_seed(seed)
    first = torch.rand(3, height, 64, generator=generator)
    return (first + 0.1 * torch.randn(num_frames, 3, height, 64, generator=generator)).clamp(0, 1)


def watch(model: Detector, frames: Tensor) -> list[tuple[Detections, StreamState]]:
    """Run a stream from its start."""
    results, state = [], None
    for frame in frames:
        detections, state = model.step(frame, state)
        results.append((detections, state))
    return results


def assert_same(ours: Detections, theirs: Detections) -> None:
    """Exactly the same boxes."""
    for name in ("boxes", "scores", "labels"):
        assert torch.equal(getattr(ours, name), getattr(theirs, name)), name


# ---- keeping everything, and less ----


@pytest.mark.parametrize("rollout", ["pooled", "backward"])
def test_keeping_every_token_is_the_dense_detector(rollout: Rollout) -> None:
    dense, pruned = detector(TINY), detector(replace(TINY, keep_ratio=1.0, rollout=rollout))
    frames = video(6)
    state: StreamState | None = None
    for frame in frames:
        computed = pruned.run_backbone(frame, state)
        expected = dense.backbone(dense.embed(frame))
        assert_close(computed.output, expected, rtol=1e-4, atol=1e-4)
        levels, rpn = pruned.run_maps(computed)
        for level, whole in zip(levels, dense.pyramid(expected), strict=True):
            assert_close(level, whole, rtol=1e-3, atol=1e-3)
        state = pruned.follow(computed, pruned.detect_in(levels, rpn)[0])


def test_without_a_keep_ratio_a_stream_gives_what_single_frames_give() -> None:
    model = detector(TINY)
    frames = video(3)
    for (found, state), single in zip(watch(model, frames), model.detect(frames), strict=True):
        assert len(found.scores)
        assert_close(found.boxes, single.boxes, rtol=1e-4, atol=1e-3)
        assert_close(found.scores, single.scores, rtol=1e-4, atol=1e-4)
        assert state.kept is None


@pytest.mark.parametrize("rollout", ["pooled", "backward"])
def test_key_frames_are_whole_and_the_others_keep_k_tokens(rollout: Rollout) -> None:
    model = detector(replace(TINY, keep_ratio=0.2, rollout=rollout))
    frames = video(9)
    for number, (found, state) in enumerate(watch(model, frames)):
        assert state.num_frames == number + 1
        if number % 4 == 0:
            assert state.kept is None
            assert_close(found.boxes, model.detect(frames[number])[0].boxes, rtol=1e-4, atol=1e-3)
        else:
            assert state.kept is not None
            assert len(set(state.kept.tolist())) == round(0.2 * 64) == 13
        if number % 4 == 3:
            assert state.heat is None  # a key frame follows, which reads none
        else:
            assert state.heat is not None
            assert float(state.heat.sum()) == pytest.approx(1.0)


def test_dropped_tokens_have_the_output_of_the_last_frame_that_kept_them() -> None:
    model = detector(replace(TINY, keep_ratio=0.2))
    state, before = None, None
    for frame in video(4):
        computed = model.run_backbone(frame, state)
        output = computed.output.clone()
        if before is not None:
            assert computed.kept is not None
            is_kept = torch.zeros(64, dtype=torch.bool)
            is_kept[computed.kept] = True
            assert torch.equal(output[:, ~is_kept], before[:, ~is_kept])
            assert not torch.isclose(output[:, is_kept], before[:, is_kept]).all(-1).any()
        before = output
        state = model.follow(computed, model.detect_in(*model.run_maps(computed))[0])


# ---- streams ----


def test_streams_side_by_side_do_not_see_each_other() -> None:
    model = detector(replace(TINY, keep_ratio=0.2))
    one, two = video(6, seed=1), video(6, seed=2)
    alone = [watch(model, frames) for frames in (one, two)]
    states: list[StreamState | None] = [None, None]
    for number in range(6):
        for stream, frames in enumerate((one, two)):
            found, states[stream] = model.step(frames[number], states[stream])
            assert_same(found, alone[stream][number][0])


def test_a_second_run_of_a_stream_is_the_first_one() -> None:
    model = detector(replace(TINY, keep_ratio=0.3, rollout="backward"))
    frames = video(5)
    for (ours, _), (theirs, _) in zip(watch(model, frames), watch(model, frames), strict=True):
        assert_same(ours, theirs)


def test_a_state_is_used_once() -> None:
    model = detector(replace(TINY, keep_ratio=0.2))
    frames = video(3)
    _, state = model.step(frames[0])
    model.step(frames[1], state)
    with pytest.raises(ValueError, match="this state, after 1 frames, was used before: its buffers went on"):
        model.step(frames[2], state)


# ---- maps of a stream ----


def test_maps_around_changed_tokens_are_those_of_computing_all() -> None:
    model = detector(TINY)
    generator = torch.Generator().manual_seed(3)
    tokens = torch.randn(1, 64, 32, generator=generator)
    for changed in (torch.tensor([0, 1, 9, 63]), torch.tensor([7, 36])):
        with torch.no_grad():
            _, _, maps = all_maps(model.pyramid, model.proposal_generator, tokens)
            tokens = tokens.index_copy(1, changed, torch.randn(1, len(changed), 32, generator=generator))
            levels, rpn = changed_maps(model.pyramid, model.proposal_generator, tokens, changed, maps)
            whole = model.pyramid(tokens)
            expected = model.proposal_generator(whole)
        for ours, theirs in zip(
            (*levels, *rpn.logits, *rpn.deltas), (*whole, *expected.logits, *expected.deltas), strict=True
        ):
            assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_few_changed_tokens_cost_little() -> None:
    model = detector(replace(TINY, image_size=128))
    tokens = torch.zeros(1, 256, 32)
    with torch.no_grad():
        _, _, maps = all_maps(model.pyramid, model.proposal_generator, tokens)
        with counting_macs() as all_of_them:
            model.proposal_generator(model.pyramid(tokens))
        with counting_macs() as around:
            changed_maps(model.pyramid, model.proposal_generator, tokens, torch.tensor([20, 21]), maps)
    assert around.macs < 0.2 * all_of_them.macs


@pytest.mark.parametrize("keep_ratio", [0.05, 0.2])
def test_boxes_of_a_stream_are_those_of_scoring_every_proposal(keep_ratio: float) -> None:
    model = detector(replace(TINY, image_size=128, keep_ratio=keep_ratio, detections=DetectionLimits()))
    state: StreamState | None = None
    for frame in video(6):
        computed = model.run_backbone(frame, state)
        ours = model.run_heads(computed)
        (theirs,) = model.detect_in(*all_maps(model.pyramid, model.proposal_generator, computed.output)[:2])
        assert_close(ours.boxes, theirs.boxes, rtol=1e-4, atol=1e-2)
        assert_close(ours.scores, theirs.scores, rtol=1e-3, atol=1e-4)
        state = model.follow(computed, ours)


def test_only_proposals_on_changed_ground_are_scored_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    heads = BoxHeads(NUM_CLASSES, channels=8).eval()
    levels = [torch.randn(1, 8, side, side, generator=torch.Generator().manual_seed(side)) for side in (32, 16, 8, 4)]
    boxes = torch.tensor([[0.0, 0, 9, 9], [40, 40, 60, 62], [90, 90, 120, 120], [100, 10, 118, 30]])
    given: list[Tensor] = []
    forward = BoxHeads.forward

    def recorded(self: BoxHeads, levels: Sequence[Tensor], proposals: Sequence[Tensor]) -> BoxHeadOutput:
        given.extend(proposals)
        return forward(self, levels, proposals)

    monkeypatch.setattr(BoxHeads, "forward", recorded)
    with torch.no_grad():
        _, memory = run_boxes(heads, levels, boxes, before=None, changed=None, grid=8)
        moved = boxes[[3, 1, 2, 0]] + torch.tensor([[0.0], [0.0], [0.5], [0.0]])
        # Token 18 is the third of row 2, pixels 32 to 48: it touches the second box alone.
        out, _ = run_boxes(heads, levels, moved, before=memory, changed=torch.tensor([18]), grid=8)
        assert torch.equal(given[1], moved[[1, 2]])
        assert_close(out.logits, forward(heads, levels, [moved]).logits)


def test_a_box_next_to_a_changed_token_is_scored_anew() -> None:
    # A token of 16 pixels changes its 4 x 4 cells of p2 and, by the pyramid's convolution, one more around; samples
    # read a cell beyond the box. So up to 4 + 4 + 2 pixels to the left of pixel 32 still count, 24 pixels do not.
    near = torch.tensor([[18.0, 34, 27, 40], [10, 34, 18, 40]])
    assert _touched(near, torch.tensor([18]), 8).tolist() == [True, False]


# ---- anchors and heat ----


def found(*boxes: tuple[float, float, float, float], score: float = 0.9) -> Detections:
    n = len(boxes)
    return Detections(
        boxes=torch.tensor(boxes, dtype=torch.float32).view(n, 4),
        scores=torch.full((n,), score),
        labels=torch.zeros(n, dtype=torch.int64),
    )


def test_anchors_are_the_tokens_of_boxes_but_never_of_the_last_row_and_column() -> None:
    mask = anchor_tokens(found((17.0, 8.0, 30.0, 24.0)), grid=8, patch_size=8, threshold=0.1).view(8, 8)
    expected = torch.zeros(8, 8, dtype=torch.bool)
    expected[1:3, 2:4] = True
    assert torch.equal(mask, expected)
    whole = anchor_tokens(found((0.0, 0.0, 64.0, 64.0)), grid=8, patch_size=8, threshold=0.1).view(8, 8)
    assert whole[:7, :7].all()
    assert not whole[7].any()
    assert not whole[:, 7].any()


def test_without_a_box_above_the_threshold_all_tokens_are_anchors() -> None:
    assert anchor_tokens(found((0.0, 0.0, 9.0, 9.0), score=0.1), grid=8, patch_size=8, threshold=0.1).all()
    assert anchor_tokens(found(), grid=8, patch_size=8, threshold=0.1).all()


@pytest.mark.parametrize(("rollout", "size"), [("pooled", 16), ("backward", 64)])
def test_an_empty_anchor_set_starts_from_all_tokens_and_says_so(
    rollout: Rollout, size: int, caplog: pytest.LogCaptureFixture
) -> None:
    attention = [torch.rand(1, size, size, generator=torch.Generator().manual_seed(1))]
    nothing = anchor_tokens(found((58.0, 58.0, 63.0, 63.0)), grid=8, patch_size=8, threshold=0.1)
    assert not nothing.any()
    with caplog.at_level(logging.WARNING):
        heat = heat_from_attention(attention, nothing, rollout=rollout)
    assert "the rollout starts from all tokens instead" in caplog.text
    assert torch.equal(heat, heat_from_attention(attention, torch.ones(64, dtype=torch.bool), rollout=rollout))


# ---- faults ----


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"image_size": 60}, "image_size is a multiple of the patch, 8 pixels, got 60"),
        ({"keep_ratio": 1.5}, r"keep_ratio lies in \(0, 1\], got 1.5"),
        ({"keep_ratio": 0.001}, "keep_ratio = 0.001 keeps none of 64 tokens"),
        (
            {"keep_ratio": 0.5, "image_size": 72},
            "the pooled rollout takes 2 x 2 tokens together, but the grid is 9 x 9",
        ),
        ({"reset_interval": 0}, "reset_interval must be at least 1, got 0"),
    ],
)
def test_settings_that_do_not_fit_are_refused(changes: dict[str, float], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        replace(TINY, **changes)  # type: ignore[arg-type]


def test_large_frames_and_training_a_cascade_are_refused() -> None:
    with pytest.raises(UsageError, match="expected RGB frames of at most 64 x 64 pixels, got 3 channels of 65 x 64"):
        detector(TINY).step(torch.zeros(3, 65, 64))
    cascade = build(replace(TINY, cascade=True), NUM_CLASSES)
    with pytest.raises(UsageError, match="a cascade of box heads does not train"):
        cascade(torch.zeros(1, 3, 64, 64))
    with pytest.raises(UsageError, match="a detector needs at least 1 class, got 0"):
        build(TINY, 0)


def test_a_cascade_detects() -> None:
    model = detector(replace(TINY, cascade=True, keep_ratio=0.5, detections=DetectionLimits()))
    assert all(len(found.scores) for found, _ in watch(model, video(2)))


# ---- checkpoints ----


def published_names(model: nn.Module) -> dict[str, Tensor]:
    """The model's entries as detectron2 names them, the class token's position put back."""
    state = model.state_dict()
    by_ours = {ours: theirs for theirs, ours in DETECTRON2.items() if ours is not None}
    names = {}
    for name, tensor in state.items():
        parts = name.split(".")
        pattern = ".".join(["backbone", "blocks", "{}", *parts[3:]]) if parts[:2] == ["backbone", "blocks"] else name
        theirs = by_ours.get(pattern, name).format(parts[2] if len(parts) > 2 else "")
        is_table = name.endswith("encoding.encoding")
        names[theirs] = torch.cat([tensor[:, :1] + 9, tensor], dim=1) if is_table else tensor
    return names


def test_checkpoints_of_detectron2_and_of_rgtp_become_ours() -> None:
    for config in (TINY, replace(TINY, cascade=True)):
        model = detector(config)
        own = model.state_dict()
        for state in (published_names(model), own):
            converted = convert(state)
            assert converted.keys() == own.keys()
            assert all(torch.equal(converted[name], own[name]) for name in own)


def test_checkpoints_with_gaps_or_a_strange_table_are_refused() -> None:
    state = published_names(detector(TINY))
    with pytest.raises(CheckpointError, match=r"1 unexpected entries such as backbone\.net\.norm\.weight"):
        convert({**state, "backbone.net.norm.weight": torch.zeros(1)})
    with pytest.raises(CheckpointError, match=r"such as backbone\.blocks\.1\.qkv\.bias"):
        convert({name: tensor for name, tensor in state.items() if name != "backbone.net.blocks.1.attn.qkv.bias"})
    with pytest.raises(CheckpointError, match=r"a position table of shape \(1, 16, 32\)"):
        convert({**state, "backbone.net.pos_embed": torch.zeros(1, 16, 32)})


# ---- cost ----


PUBLISHED = [name for name in list_recipes("rgtp_vitdet") if load_recipe(name).published is not None]


def test_every_row_of_both_tables_is_a_recipe() -> None:
    assert len(PUBLISHED) == 12


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_gmacs_come_out_to_the_printed_digit(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.published is not None
    key, other = (backbone_cost(recipe.model, is_key=is_key).published / 1e9 for is_key in (True, False))
    assert round(mean_over_frames(recipe.model, key, other), 1) == recipe.published.gmacs


def test_costs_of_single_frames_are_those_that_the_published_code_counts() -> None:
    keep512 = load_recipe("rgtp_vitdet/imagenet_vid_672_keep512").model
    cost = backbone_cost(keep512, is_key=False)
    parts = (cost.linear, cost.matmul, cost.einsum, cost.add, cost.bias)
    assert [round(part / 1e9, 3) for part in parts] == [46.440, 10.153, 0.759, 0.377, 0.046]
    assert round(backbone_cost(keep512, is_key=True).published / 1e9, 3) == 174.839


@pytest.mark.parametrize("rollout", ["pooled", "backward"])
def test_what_runs_is_what_the_closed_form_says(rollout: Rollout) -> None:
    # As many proposals as there can be: no overlap is too much. All windows have kept tokens.
    limits = ProposalLimits(num_candidates=100, num_proposals=20, nms_iou=1.0)
    config = replace(TINY, keep_ratio=0.9, rollout=rollout, proposals=limits)
    model = detector(config)
    state: StreamState | None = None
    for number, frame in enumerate(video(2)):
        with counting_macs() as counter:
            _, state = model.step(frame, state)
        assert counter.macs == detector_macs(config, NUM_CLASSES, is_key=number == 0)


def test_figures_are_means_over_key_frames_and_others() -> None:
    config = replace(TINY, keep_ratio=0.5)
    figures = summarise(build(config, NUM_CLASSES), None)
    key, other = (backbone_cost(config, is_key=is_key).published / 1e9 for is_key in (True, False))
    assert figures["gmacs_published"] == pytest.approx(key / 4 + 3 * other / 4)
    assert figures["gmacs_heads"] < figures["gmacs_detector"]
