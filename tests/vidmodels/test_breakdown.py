import json
from pathlib import Path

import pandas as pd
import pytest
import torch
from PIL import Image
from torch import Tensor

from tests.vidmodels.shards import TINY, write_tiny_shards
from tests.vidmodels.test_cli import call
from vidmodels.breakdown import (
    Coverage,
    Naming,
    confusion_matrix,
    confusion_pairs,
    confusion_tables,
    coverage_of,
    figures_per_class,
    write_confusion,
    write_table,
)
from vidmodels.checkpoints import save_weights
from vidmodels.data import open_test_split
from vidmodels.evaluate import Result
from vidmodels.methods import METHODS
from vidmodels.recipes import dump_recipe, load_recipe
from vidprep.errors import UsageError
from vidprep.index import Fault

NAMING = Naming(model="run", form="trainable")


def result(labels: Tensor, scores: Tensor, *, nouns: tuple[Tensor, Tensor] | None = None) -> Result:
    return Result(
        video_id=tuple(f"video{k}" for k in range(len(labels))),
        labels=labels,
        scores=scores.double(),
        probabilities=scores.double(),
        top1=0.0,
        top5=0.0,
        map=0.0,
        num_clips=len(labels),
        summary={},
        seconds=1.0,
        noun_labels=None if nouns is None else nouns[0],
        noun_probabilities=None if nouns is None else nouns[1].double(),
    )


# Of class 0 both videos are found, of class 1 one of two; class 2 has one, which is taken for 0; class 3 has none.
LABELS = torch.tensor([0, 0, 1, 1, 2])
SCORES = torch.tensor([[9, 1, 0, 0], [8, 1, 0, 0], [1, 7, 0, 0], [6, 5, 0, 0], [7.5, 1, 0, 0]])
CLASSES = ("up", "down", "left", "right")


def test_every_class_has_a_row_and_only_classes_with_videos_have_figures() -> None:
    table = figures_per_class(result(LABELS, SCORES), NAMING, classes=CLASSES)
    assert list(table["class"]) == list(CLASSES)
    assert table["videos"].tolist() == [2, 2, 1, 0]
    assert table["predicted"].tolist() == [4, 1, 0, 0]
    assert table["top1"].tolist() == [100, 50, 0, pd.NA]
    assert table["top5"].tolist() == [100, 100, 100, pd.NA]
    # Of class 1 the videos rank first and second by its score.
    assert table["average_precision"].tolist()[:2] == [100, 100]
    assert table["average_precision"].tolist()[3] is pd.NA


def test_several_labels_have_average_precision_and_no_confusion_matrix() -> None:
    several = result(torch.tensor([[1, 0, 1, 0], [0, 1, 0, 0]]), torch.tensor([[0.9, 0.8, 0.1, 0], [0.5, 0.1, 0.2, 0]]))
    table = figures_per_class(several, NAMING, classes=CLASSES)
    assert table["videos"].tolist() == [1, 1, 1, 0]
    assert table["average_precision"].tolist() == [100, 50, 50, pd.NA]
    assert table["predicted"].isna().all()
    assert table["top1"].isna().all()
    with pytest.raises(UsageError, match=r"several labels have no confusion matrix.*--per-class has the average"):
        confusion_matrix(several.labels, several.predictions, num_classes=4)


def test_verbs_and_nouns_are_taken_apart_each() -> None:
    nouns = (torch.tensor([0, 1, 1, 0, 1]), torch.tensor([[1, 0], [0, 1], [0, 1], [0, 1], [0, 1]]))
    both = result(LABELS, SCORES, nouns=nouns)
    table = figures_per_class(both, NAMING, classes=CLASSES, nouns=("cup", "pan"))
    assert table["kind"].tolist() == ["verb"] * 4 + ["noun"] * 2
    assert table[table["kind"] == "noun"]["top1"].tolist() == [50, 100]
    matrices = confusion_tables(both, classes=CLASSES, nouns=("cup", "pan"))
    assert list(matrices) == ["verb", "noun"]
    assert matrices["noun"].to_numpy().tolist() == [[1, 1], [0, 3]]


def test_a_confusion_matrix_counts_every_video_once() -> None:
    table = confusion_tables(result(LABELS, SCORES), classes=CLASSES)["class"]
    assert table.to_numpy().tolist() == [[2, 0, 0, 0], [1, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]]
    pairs = [(pair.label, pair.predicted, pair.count, pair.share) for pair in confusion_pairs(table)]
    assert pairs == [("left", "up", 1, 1.0), ("down", "up", 1, 0.5)], "the larger share of equal counts first"


def test_classes_of_one_name_are_told_apart() -> None:
    table = confusion_tables(result(LABELS, SCORES), classes=("a", "b", "a", "c"))["class"]
    assert list(table.columns) == ["a (0)", "b", "a (2)", "c"]


def test_tables_and_matrices_are_read_back_as_written(tmp_path: Path) -> None:
    table = figures_per_class(result(LABELS, SCORES), NAMING, classes=CLASSES)
    for name in ("a.csv", "a.parquet", "a.json"):
        write_table(table, tmp_path / name)
    assert pd.read_csv(tmp_path / "a.csv")["predicted"].tolist() == [4, 1, 0, 0]
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "a.parquet"), table)
    assert json.loads((tmp_path / "a.json").read_text())[3]["top1"] is None
    with pytest.raises(UsageError, match=r"expected a name ending in .csv, .parquet, .json"):
        write_table(table, tmp_path / "a.txt")
    nouns = (torch.tensor([0, 1, 1, 0, 1]), torch.eye(2)[[0, 1, 1, 1, 1]])
    matrices = confusion_tables(result(LABELS, SCORES, nouns=nouns), classes=CLASSES, nouns=("cup", "pan"))
    for name in ("m.csv", "m.parquet", "m.png"):
        written = write_confusion(matrices, tmp_path / name, title="run")
        assert [path.name for path in written] == [name, name.replace("m.", "m_noun.")]
    assert pd.read_csv(tmp_path / "m.csv", index_col=0).loc["down", "up"] == 1
    assert pd.read_parquet(tmp_path / "m_noun.parquet").loc["cup", "pan"] == 1
    with Image.open(tmp_path / "m.png") as picture:
        assert min(picture.size) > 400
    with pytest.raises(UsageError, match=r"expected a name ending in .png, .csv, .parquet"):
        write_confusion(matrices, tmp_path / "m.json", title="run")


def test_missing_videos_are_named_and_counted_as_wrong_on_paper_only() -> None:
    faults = tuple(Fault(video_id=f"lost{k}", reason="does not decode", kind="corrupt") for k in range(7))
    coverage = Coverage(num_listed=20, num_scored=12, missing=faults, num_too_short=1)
    assert coverage.if_wrong(75.0) == 45.0
    assert coverage.sentence.startswith("MISSING: 8 of the 20 videos of the split are not scored")
    assert "7 in no shard: lost0 (does not decode); " in coverage.sentence
    assert "lost4 (does not decode); and 2 more; 1 shorter than data.min_frames" in coverage.sentence
    assert len(coverage.to_json()["missing"]) == 7
    assert Coverage(num_listed=3, num_scored=3).sentence == ""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards whose list has two videos more than they hold, and a model that learnt nothing."""
    folder = tmp_path_factory.mktemp("tiny")
    manifest = write_tiny_shards(folder) / "val.json"
    content = json.loads(manifest.read_text())
    content["num_videos"] += 2
    content["faults"] = [{"video_id": name, "reason": "no frame", "path": "", "kind": "corrupt"} for name in "ab"]
    manifest.write_text(json.dumps(content))
    recipe = load_recipe("taps/toy", TINY)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = METHODS["taps"].build(recipe.model, 4)
    save_weights(folder / "model.safetensors", model.state_dict(), {"method": "taps", "recipe": dump_recipe(recipe)})
    return folder


def test_short_videos_that_a_recipe_leaves_out_are_missing_too(folder: Path) -> None:
    dataset = open_test_split(load_recipe("taps/toy", TINY), folder / "shards", "val")
    coverage = coverage_of(dataset)
    assert (coverage.num_listed, coverage.num_scored, coverage.num_too_short) == (10, 8, 0)
    assert [fault.video_id for fault in coverage.missing] == ["a", "b"]


def test_eval_writes_classes_and_confusions_and_states_what_is_missing(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = ("--data", folder / "shards", "--timed-runs", 1, "--device", "cpu", "--workers", 1)
    files = ("--per-class", tmp_path / "classes.csv", "--confusion", tmp_path / "confusion.csv")
    model = folder / "model.safetensors"
    assert call("eval", model, *where, *files, "--json", tmp_path / "figures.json") == 0
    out = capsys.readouterr().out
    assert "MISSING: 2 of the 10 videos of the split are not scored" in out
    run = json.loads((tmp_path / "figures.json").read_text())["runs"][0]
    figures = run["forms"]["dynamic"]
    assert figures["top1_if_missing_are_wrong"] == pytest.approx(figures["top1"] * 0.8)
    assert f"trainable top-1 {0.8 * figures['top1']:.2f} instead of {figures['top1']:.2f}" in out
    assert run["coverage"]["missing"] == {"a": "no frame", "b": "no frame"}
    table = pd.read_csv(tmp_path / "classes.csv")
    assert table["form"].tolist() == ["trainable"] * 4 + ["dynamic"] * 4
    assert table["videos"].tolist() == [2] * 8
    assert table[table["form"] == "dynamic"]["top1"].mean() == pytest.approx(figures["top1"])
    matrix = pd.read_csv(tmp_path / "confusion.csv", index_col=0).to_numpy()
    assert matrix.sum() == 8
    assert 100 * matrix.trace() / 8 == pytest.approx(figures["top1"])
    assert sum(pair["count"] for pair in figures["confused"]["class"]) == 8 - matrix.trace()


def test_wrong_questions_about_classes_are_refused_before_the_evaluation(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = folder / "model.safetensors"

    def complaint(*arguments: object) -> str:
        assert call("eval", *arguments, "--data", folder / "shards") == 2
        return capsys.readouterr().err

    assert "expected a name ending in .csv, .parquet, .json" in complaint(model, "--per-class", tmp_path / "a.txt")
    assert "in a folder that exists" in complaint(model, "--confusion", tmp_path / "none" / "a.png")
    assert "--confusion holds those of one model" in complaint(model, model, "--confusion", tmp_path / "a.png")
    several = tmp_path / "shards"
    several.mkdir()
    for path in (folder / "shards").iterdir():
        (several / path.name).write_bytes(path.read_bytes())
    manifest = several / "val.json"
    manifest.write_text(manifest.read_text().replace("single_label", "multi_label"))
    assert call("eval", model, "--data", several, "--confusion", tmp_path / "a.png") == 2
    assert "several labels have no confusion matrix" in capsys.readouterr().err
