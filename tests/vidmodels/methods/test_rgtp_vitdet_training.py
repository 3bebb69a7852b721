"""The detector's losses against cases computed by hand, and a training that learns its own sequences."""

import json
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from tests.vidmodels.detection_shards import TINY, write_detection_shards
from vidmodels.backbones.detection import BoxHeadOutput, BoxHeads, RpnOutput, encode_boxes
from vidmodels.methods import METHODS
from vidmodels.methods.rgtp.vitdet import Detector, DetectorOutput, VitDetConfig
from vidmodels.methods.rgtp.vitdet_training import (
    NUM_ANCHORS,
    NUM_PROPOSALS,
    SampledProposals,
    box_losses,
    match_anchors,
    param_groups,
    rpn_losses,
    sample,
    training_step,
)
from vidmodels.recipes import load_recipe
from vidmodels.runs import find_run
from vidmodels.stream_comparison import compare_streams
from vidmodels.train import train
from vidmodels.types import Train
from vidprep.errors import UsageError
from vidprep.load import Batch, FrameTargets, ShardDataset

Row = tuple[float, float, float, float]


def objects(*rows: Row, labels: Sequence[int] = ()) -> FrameTargets:
    n = len(rows)
    return FrameTargets(
        boxes=torch.tensor(rows, dtype=torch.float32).reshape(n, 4),
        labels=torch.tensor(labels or [0] * n, dtype=torch.int64),
        track_ids=torch.arange(n),
        is_occluded=torch.zeros(n, dtype=torch.bool),
        is_generated=torch.zeros(n, dtype=torch.bool),
    )


def test_anchors_are_matched_at_their_thresholds() -> None:
    overlap = torch.tensor([[0.70, 0.69, 0.30, 0.29, 0.1], [0.0, 0.8, 0.0, 0.2, 0.2]])
    assert match_anchors(overlap).tolist() == [0, 1, -2, -1, -1]


def test_the_best_anchors_of_an_object_count_however_little_they_overlap() -> None:
    overlap = torch.tensor([[0.2, 0.2, 0.1], [0.0, 0.75, 0.05]])
    # Anchors 0 and 1 are the best of object 0; anchor 1 keeps object 1, which it overlaps more.
    assert match_anchors(overlap).tolist() == [0, 1, -1]
    assert match_anchors(torch.zeros(1, 3)).tolist() == [-1, -1, -1]  # an object that nothing overlaps
    assert match_anchors(torch.zeros(0, 3)).tolist() == [-1, -1, -1]


def test_a_sample_is_filled_up_with_background(rng_torch: torch.Generator) -> None:
    matched = torch.tensor([3] * 10 + [-1] * 50 + [-2] * 40)
    right, wrong = sample(matched, number=32, right_share=0.25, generator=rng_torch)
    assert (len(right), len(wrong)) == (8, 24)
    assert (matched[right] == 3).all()
    assert (matched[wrong] == -1).all()
    assert len(set(right.tolist())) == 8
    right, wrong = sample(matched, number=200, right_share=0.5, generator=rng_torch)
    assert (len(right), len(wrong)) == (10, 50)


@pytest.fixture
def rng_torch() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_losses_of_the_anchors_are_sums_over_the_sample_by_its_size(rng_torch: torch.Generator) -> None:
    anchors = torch.tensor([[0.0, 0, 10, 10], [40, 40, 50, 50], [0, 0, 10, 16]])
    frame = objects((0, 0, 10, 10))  # IoU 1, 0 and 0.625: right, wrong, neither
    logits = torch.tensor([[2.0, -1.0, 5.0]])
    deltas = torch.zeros(1, 3, 4)
    deltas[0, 0] = torch.tensor([0.5, 0, 0, -0.25])
    rpn = RpnOutput(
        anchors=(anchors[:2], anchors[2:]), logits=(logits[:, :2], logits[:, 2:]), deltas=(deltas[:, :2], deltas[:, 2:])
    )
    class_loss, box_loss = rpn_losses(rpn, [frame], generator=rng_torch)
    expected = -torch.tensor(2.0).sigmoid().log() - torch.tensor(1.0).sigmoid().log()
    torch.testing.assert_close(class_loss, expected / NUM_ANCHORS)
    torch.testing.assert_close(box_loss, torch.tensor(0.75) / NUM_ANCHORS)


def test_a_frame_without_objects_teaches_background(rng_torch: torch.Generator) -> None:
    anchors = torch.tensor([[0.0, 0, 10, 10]])
    rpn = RpnOutput(anchors=(anchors,), logits=(torch.zeros(2, 1),), deltas=(torch.ones(2, 1, 4),))
    class_loss, box_loss = rpn_losses(rpn, [objects(), objects()], generator=rng_torch)
    torch.testing.assert_close(class_loss, torch.tensor(2.0).log() / NUM_ANCHORS)
    assert box_loss == 0


def test_proposals_are_sampled_with_the_objects_among_them(rng_torch: torch.Generator) -> None:
    frame = objects((0, 0, 20, 20), (50, 50, 70, 70), labels=[2, 1])
    near = torch.tensor([[0.0, 0, 20, 10 + k / 100] for k in range(200)])  # IoU 0.5 and more
    far = torch.tensor([[100.0, 100, 120, 120]]).expand(200, 4)
    chosen = SampledProposals([frame, objects()], num_classes=3, generator=rng_torch)
    first, second = chosen([torch.cat([far, near]), far])
    assert len(first) == len(second) == NUM_PROPOSALS
    assert sorted(set(chosen.labels[0].tolist())) in ([2, 3], [1, 2, 3])
    assert int((chosen.labels[0] < 3).sum()) == NUM_PROPOSALS // 4
    assert (chosen.boxes[0][chosen.labels[0] == 2] == torch.tensor([0.0, 0, 20, 20])).all()
    assert (first[chosen.labels[0] == 3] == far[0]).all()
    assert (chosen.labels[1] == 3).all()
    [only] = SampledProposals([frame], num_classes=3)([torch.zeros(0, 4)])
    assert sorted(only.tolist()) == frame.boxes.tolist()


def test_perfect_boxes_cost_nothing_and_shifted_ones_their_giou() -> None:
    frame = objects((0, 0, 20, 20), labels=[1])
    proposal, other = torch.tensor([[0.0, 0, 10, 20]]), torch.tensor([[80.0, 80, 90, 90]])
    chosen = SampledProposals([frame], num_classes=2)
    chosen.labels, chosen.boxes = [torch.tensor([1, 2])], [torch.cat([frame.boxes, other])]
    logits = torch.tensor([[0.0, 3.0, 0.0], [0.0, 0.0, 1.0]])

    def losses(box: Row) -> tuple[Tensor, Tensor]:
        deltas = torch.full((2, 8), 7.0)
        deltas[0, 4:] = encode_boxes(torch.tensor([box]), proposal, BoxHeads.box_weights)[0]  # of class 1
        out = DetectorOutput(
            rpn=RpnOutput(anchors=(), logits=(), deltas=()),
            proposals=[torch.cat([proposal, other])],
            boxes=BoxHeadOutput(logits=logits, deltas=deltas),
        )
        return box_losses(out, chosen)

    class_loss, box_loss = losses((0, 0, 20, 20))
    torch.testing.assert_close(class_loss, cross_entropy(logits, torch.tensor([1, 2])))
    assert box_loss == pytest.approx(0, abs=1e-6)
    # Half of it: IoU 1/2, and the hull is the object itself; one right of two samples, times 2.
    assert losses((0, 0, 10, 20))[1] == pytest.approx(2 * 0.5 / 2)
    # Beside it: IoU 0, the hull is 40 x 20 of which nothing is left over.
    assert losses((20, 0, 40, 20))[1] == pytest.approx(2 * 1.0 / 2)


# ---- with the model ----


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_detection_shards(tmp_path_factory.mktemp("toy"), train=2, val=4)


@pytest.fixture
def model() -> Detector:
    torch.manual_seed(0)
    config = load_recipe("rgtp_vitdet/toy", TINY).model
    assert isinstance(config, VitDetConfig)
    return Detector(config, 4).train()


@pytest.fixture
def batch(shards: Path) -> Batch:
    dataset = ShardDataset(shards, "train", num_frames=2, fit="pad", resize=96, crop=128, dtype="uint8", train=True)
    return Batch.stack([dataset[0], dataset[1]])


def test_a_step_gives_finite_losses_and_gradients_everywhere(model: Detector, batch: Batch) -> None:
    terms = training_step(model, batch, 0.0)
    parts = [value for name, value in terms.items() if name != "loss"]
    assert set(terms) == {"loss", "rpn_class_loss", "rpn_box_loss", "class_loss", "box_loss"}
    torch.testing.assert_close(terms["loss"], torch.stack(parts).sum())
    assert all(value > 0 for value in parts)
    torch.autograd.backward(terms["loss"])
    without = [
        name for name, parameter in model.named_parameters() if parameter.grad is None or not parameter.grad.any()
    ]
    assert without == []


def test_equal_generators_give_equal_losses(model: Detector, batch: Batch) -> None:
    first, again = (training_step(model, batch, 0.0, generator=torch.Generator().manual_seed(3)) for _ in range(2))
    assert {name: float(value.detach()) for name, value in first.items()} == {
        name: float(value.detach()) for name, value in again.items()
    }


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_step_on_a_gpu_has_the_losses_of_the_cpu(model: Detector, batch: Batch) -> None:
    expected = training_step(model, batch, 0.0, generator=torch.Generator().manual_seed(3))
    given = training_step(model.cuda(), batch.to("cuda"), 0.0, generator=torch.Generator().manual_seed(3))
    for name, value in expected.items():
        # proposals of nearly equal scores may change places, and with them the sample
        torch.testing.assert_close(given[name].detach().cpu(), value.detach(), rtol=0.1, atol=0.02)


def test_padding_is_zero_whatever_its_bytes_are(model: Detector, batch: Batch) -> None:
    model.eval()
    sizes = [(96, 128)] * 4
    frames = batch.frames.flatten(0, 2)
    torch.testing.assert_close(model.normalise(frames, sizes), model.normalise(frames[..., :96, :]), rtol=0, atol=0)
    grey = frames.clone()
    grey[..., 96:, :] = 99
    torch.testing.assert_close(model.normalise(grey, sizes), model.normalise(frames, sizes), rtol=0, atol=0)


def test_what_a_detector_cannot_train_with_is_refused(model: Detector, batch: Batch) -> None:
    with pytest.raises(UsageError, match="a detector trains with boxes, these data have none"):
        training_step(model, replace(batch, targets=None), 0.0)
    with pytest.raises(TypeError, match="expected a Detector, got Linear"):
        param_groups(torch.nn.Linear(1, 1), Train(epochs=1, batch_size=1, lr=1.0))


def test_only_matrices_and_filters_decay(model: Detector) -> None:
    decayed, others = param_groups(model, Train(epochs=1, batch_size=1, lr=0.1, weight_decay=0.05))
    assert (decayed["weight_decay"], others["weight_decay"]) == (0.05, 0)
    assert all(parameter.ndim > 1 for parameter in decayed["params"])
    assert len(decayed["params"]) + len(others["params"]) == len(list(model.parameters()))
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    tables = [names[id(parameter)] for parameter in others["params"] if parameter.ndim > 1]
    assert len(tables) == 5
    assert all("position" in name for name in tables)


def test_weights_of_a_cascade_start_a_detector_with_one_head(model: Detector) -> None:
    cascade = Detector(replace(model.config, cascade=True), 7)
    state = cascade.state_dict() | {"roi_heads.mask_head.mask_fcn1.weight": torch.zeros(1)}
    given, fresh = model.initial_weights(state)
    assert sorted(fresh) == sorted(
        f"roi_heads.box_predictor.{part}.{kind}" for part in ("cls_score", "bbox_pred") for kind in ("weight", "bias")
    )
    model.load_state_dict(given)
    first = cascade.state_dict()["roi_heads.box_head.0.fc1.weight"]
    assert torch.equal(model.state_dict()["roi_heads.box_head.fc1.weight"], first)
    assert model.initial_weights(model.state_dict())[1] == []


def test_a_missing_backbone_entry_does_not_start_afresh(model: Detector) -> None:
    state = model.state_dict()
    del state["embedding.conv.weight"]
    given, fresh = model.initial_weights(state)
    assert fresh == []
    assert "embedding.conv.weight" not in given


def test_a_run_trains_validates_and_is_evaluated(shards: Path, tmp_path: Path) -> None:
    recipe = load_recipe("rgtp_vitdet/toy", (*TINY, "data.val_split=train"))
    result = train(recipe, shards, tmp_path / "run", device="cpu", workers=1)
    assert set(result["best"]) >= {"map50", "map", "map75"}
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert set(log[0]["train"]) == {"loss", "rpn_class_loss", "rpn_box_loss", "class_loss", "box_loss"}
    comparison = compare_streams([find_run(tmp_path / "run")], timed_runs=1, device="cpu")
    assert "every one of 48 frames of 2 sequences" in comparison.heading
    header, row = comparison.table
    assert header[:5] == ["model", "mAP50", "slow", "medium", "fast"]
    assert row[0] == "run"
    assert comparison.to_json()["runs"][0]["num_frames"] == 48
    assert comparison.runs[0].gmacs_per_frame > 0


@pytest.mark.slow
def test_a_small_detector_learns_its_own_sequences(
    shards: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Overfitting: the loss falls, and every frame of the sequences it was trained on is found, pruned ones too."""
    caplog.set_level(logging.INFO)
    recipe = load_recipe("rgtp_vitdet/toy", ("data.train_split=val", "train.epochs=30", "data.flip=false"))
    train(recipe, shards, tmp_path / "run", device="cpu", workers=1)
    losses = [json.loads(line)["train"]["loss"] for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert losses[-1] < 0.3 * losses[0]
    [scored] = compare_streams([find_run(tmp_path / "run")], timed_runs=1, device="cpu").runs
    assert scored.result.scores is not None
    assert scored.result.scores.map50 > 50
    assert METHODS[recipe.method].name == "rgtp_vitdet"
