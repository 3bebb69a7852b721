import json
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from tests.vidmodels import fakes
from vidmodels.evaluate import Result, choose_device, classify, write_predictions
from vidmodels.types import Batch, Output
from vidprep.errors import UsageError, VidprepError
from vidprep.load.loader import make_loader


class Echo(nn.Module):
    """A model whose logits are the first pixels of each clip."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes

    def forward(self, frames: Tensor) -> Output:
        assert not self.training
        assert not torch.is_grad_enabled()
        return Output(logits=frames[:, 0, 0, 0, : self.num_classes])


def batch_of(logits: Sequence[Sequence[Sequence[float]]], labels: Tensor, *, first: int = 0) -> Batch:
    """Clips for `Echo`: logits (b, v, k)."""
    views = torch.tensor(logits)[:, :, None, None, None, :]
    return Batch(
        video_id=[f"video{first + index}" for index in range(len(views))],
        frames=views,
        labels=labels,
        pts_seconds=torch.zeros(*views.shape[:3], dtype=torch.float64),
    )


def test_views_are_averaged_as_logits_or_as_probabilities() -> None:
    # one view very sure of class 0, two rather of class 1
    batch = batch_of([[[6.0, 0.0], [0.0, 2.0], [0.0, 2.0]], [[0.0, 9.0], [0.0, 9.0], [0.0, 9.0]]], torch.tensor([0, 1]))
    logits = classify(Echo(2), [batch], num_classes=2, average="logits")
    probabilities = classify(Echo(2), [batch], num_classes=2, average="probabilities")
    assert logits.scores[0].tolist() == pytest.approx([2.0, 4 / 3])
    torch.testing.assert_close(logits.probabilities, logits.scores.softmax(1))
    assert (logits.top1, probabilities.top1) == (100.0, 50.0)
    torch.testing.assert_close(probabilities.scores, batch.frames[:, :, 0, 0, 0].double().softmax(-1).mean(1))
    torch.testing.assert_close(probabilities.scores, probabilities.probabilities)


def test_every_video_is_scored_once_in_order() -> None:
    split = fakes.FakeSplit("val", 7, num_views=2)
    model = fakes.FakeModel(fakes.FakeConfig(), 3)
    result = classify(model, make_loader(split, batch_size=3, workers=0), num_classes=3)
    assert result.video_id == tuple(f"val{index}" for index in range(7))
    assert result.scores.shape == (7, 3)
    assert result.labels.tolist() == [0, 1, 2, 0, 1, 2, 0]
    alone = classify(model, make_loader(split, batch_size=7, workers=0), num_classes=3)
    torch.testing.assert_close(result.scores, alone.scores)


def test_many_views_go_through_the_model_a_few_at_a_time() -> None:
    split = fakes.FakeSplit("val", 5, num_views=6)
    model = fakes.FakeModel(fakes.FakeConfig(), 3)
    sizes: list[int] = []
    model.register_forward_pre_hook(lambda _module, inputs: sizes.append(len(inputs[0])))

    def evaluate(clips_per_call: int | None) -> Result:
        return classify(
            model,
            make_loader(split, batch_size=2, workers=0),
            num_classes=3,
            clips_per_call=clips_per_call,
            summarise=lambda _, out: {"mean_logit": float(out.logits.mean())},
        )

    whole, parts = evaluate(None), evaluate(5)
    assert sizes == [12, 12, 6, 5, 5, 2, 5, 5, 2, 5, 1]
    torch.testing.assert_close(parts.scores, whole.scores)
    assert parts.summary["mean_logit"] == pytest.approx(whole.summary["mean_logit"])


def test_the_model_comes_back_in_its_mode() -> None:
    model = Echo(2).train()
    classify(model, [batch_of([[[0.0, 1.0]]], torch.tensor([0]))], num_classes=2)
    assert model.training


def test_summaries_are_means_over_the_clips() -> None:
    batches = [
        batch_of([[[0.0, 1.0]]] * 3, torch.tensor([0, 1, 1])),
        batch_of([[[0.0, 5.0]]], torch.tensor([0]), first=3),
    ]
    result = classify(
        Echo(2), batches, num_classes=2, summarise=lambda _, out: {"mean_logit": float(out.logits[:, 1].mean())}
    )
    assert result.summary == {"mean_logit": pytest.approx(2.0)}
    assert result.metrics == {
        "top1": 50.0,
        "top5": 100.0,
        "map": result.map,
        "mean_logit": result.summary["mean_logit"],
    }


def test_multi_label_videos_count_by_their_first_label_and_in_the_map_by_all() -> None:
    labels = torch.tensor([[1.0, 0, 1], [0, 1, 0]])
    result = classify(Echo(3), [batch_of([[[0.0, 0, 9]], [[8, 9, 0]]], labels)], num_classes=3)
    assert result.top1 == 50.0  # the first video's prediction is its second label
    assert result.map == pytest.approx(100 * (1 / 2 + 1 + 1) / 3)  # class 0 ranks second


def test_broken_weights_name_the_first_video() -> None:
    batch = batch_of([[[0.0, 1.0]], [[float("nan"), 1.0]]], torch.tensor([0, 0]))
    with pytest.raises(VidprepError, match=r"video1: the model's scores are not finite numbers"):
        classify(Echo(2), [batch], num_classes=2)


def test_a_model_of_other_classes_and_an_empty_split_are_refused() -> None:
    with pytest.raises(UsageError, match="the model has 2 classes, the data have 3"):
        classify(Echo(2), [batch_of([[[0.0, 1.0]]], torch.tensor([0]))], num_classes=3)
    with pytest.raises(UsageError, match="nothing to evaluate"):
        classify(Echo(2), [], num_classes=3)


@pytest.fixture
def result() -> Result:
    return classify(Echo(2), [batch_of([[[0.0, 1.0]], [[3.0, 3.0]]], torch.tensor([1, 1]))], num_classes=2)


def test_predictions_are_written_as_parquet_and_json(tmp_path: Path, result: Result) -> None:
    write_predictions(result, tmp_path / "p.parquet")
    write_predictions(result, tmp_path / "p.json")
    table = pd.read_parquet(tmp_path / "p.parquet")
    assert list(table.columns) == ["video_id", "labels", "predicted", "probability"]
    assert table["predicted"].tolist() == [1, 0]  # of equal scores the lowest class
    rows = json.loads((tmp_path / "p.json").read_text())
    assert rows[1] == {"video_id": "video1", "labels": [1], "predicted": 0, "probability": 0.5}
    with pytest.raises(UsageError, match=r"p\.csv: predictions are written as \.parquet or \.json"):
        write_predictions(result, tmp_path / "p.csv")


def test_several_labels_are_written_as_a_list(tmp_path: Path) -> None:
    labels = torch.tensor([[1.0, 0, 1]])
    write_predictions(classify(Echo(3), [batch_of([[[0.0, 0, 9]]], labels)], num_classes=3), tmp_path / "p.json")
    assert json.loads((tmp_path / "p.json").read_text())[0]["labels"] == [0, 2]


def test_an_unknown_device_is_a_wrong_question() -> None:
    for name in ("gpu", "cuda:99"):
        with pytest.raises(UsageError, match=f"device '{name}' is not to be had here"):
            choose_device(name)


class EchoVerbsAndNouns(nn.Module):
    """A model whose logits are the first pixels of each clip: three verbs, then two nouns."""

    def forward(self, frames: Tensor) -> Output:
        values = frames[:, 0, 0, 0]
        return Output(logits=values[:, :3], aux={"noun_logits": values[:, 3:5]})


def test_verbs_nouns_and_actions_are_scored_where_a_model_knows_both() -> None:
    labels = torch.tensor([[0, 1], [2, 0], [1, 1], [1, 0]])
    # verb right and noun right; verb right only; noun right only, its verb second; both wrong
    rows = [[9.0, 0, 0, 0, 9], [0, 0, 9, 0, 9], [9, 8, 0, 0, 9], [9, 0, 1, 0, 9]]
    batch = batch_of([[[float(value) for value in row]] * 2 for row in rows], labels)
    result = classify(EchoVerbsAndNouns(), [batch], num_classes=3)
    assert result.labels.tolist() == [0, 2, 1, 1]
    assert (result.top1, result.nouns["noun_top1"], result.nouns["action_top1"]) == (50.0, 50.0, 25.0)
    # six pairs in all: only the last clip's is not among the five most probable
    assert (result.top5, result.nouns["noun_top5"], result.nouns["action_top5"]) == (100.0, 100.0, 75.0)
    assert result.metrics["action_top1"] == 25.0
    verbs_only = classify(Echo(3), [batch], num_classes=3)
    assert (verbs_only.top1, verbs_only.nouns) == (50.0, {})
    beyond = batch_of([[[0.0] * 5]], torch.tensor([[0, 7]]))
    with pytest.raises(UsageError, match="the model has 2 classes of nouns, the data have noun 7"):
        classify(EchoVerbsAndNouns(), [beyond], num_classes=3)
