import json
from pathlib import Path

import pandas as pd
import pytest
import torch

from tests.vidmodels.detection_shards import TINY, write_detection_shards
from tests.vidmodels.test_cli import call
from vidmodels.checkpoints import save_weights
from vidmodels.methods import METHODS
from vidmodels.recipes import dump_recipe, load_recipe


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of one whole sequence and one that lacks a frame, and a detector that learnt nothing."""
    folder = tmp_path_factory.mktemp("toy")
    write_detection_shards(folder, train=1, val=2, damaged="val_01")
    recipe = load_recipe("rgtp_vitdet/toy", TINY)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = METHODS["rgtp_vitdet"].build(recipe.model, 4)
    save_weights(
        folder / "detector.safetensors",
        model.state_dict(),
        {"method": "rgtp_vitdet", "recipe": dump_recipe(recipe), "classes": '["disc", "square", "triangle", "cross"]'},
    )
    return folder


def test_eval_scores_every_frame_and_states_what_is_missing(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = ["--predictions", tmp_path / "found.parquet", "--json", tmp_path / "figures.json"]
    files += ["--per-class", tmp_path / "classes.parquet"]
    where = ("--data", folder / "shards", "--timed-runs", 1, "--device", "cpu")
    assert call("eval", folder / "detector.safetensors", *where, *files) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "toy_detection val: every one of 24 frames of 1 sequences, in order, in a square of 128 x 128" in out
    assert "model mAP50 slow medium fast mAP mAP75 GMACs/frame" in out
    assert "MISSING: 1 of 2 videos of the split are in no shard and are not scored" in out
    assert "val_01 (" in out
    figures = json.loads((tmp_path / "figures.json").read_text())["runs"][0]
    assert figures["num_frames"] == 24
    assert list(figures["missing"]) == ["val_01"]
    assert 0 <= figures["map50"] <= 100
    assert set(pd.read_parquet(tmp_path / "found.parquet")["video_id"]) <= {"val_00"}
    classes = pd.read_parquet(tmp_path / "classes.parquet")
    assert classes["class"].tolist() == ["disc", "square", "triangle", "cross"]
    assert classes["found"].sum() == len(pd.read_parquet(tmp_path / "found.parquet"))
    assert classes["map50"].mean() == pytest.approx(figures["map50"])


def test_wrong_questions_to_eval_are_refused(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    detector = folder / "detector.safetensors"

    def complaint(*arguments: object) -> str:
        assert call("eval", *arguments, "--device", "cpu") == 2
        return capsys.readouterr().err

    assert "say with --data which shards" in complaint(detector)
    assert "written as .parquet or .json" in complaint(detector, "--predictions", tmp_path / "a.csv")
    matrix = complaint(detector, "--confusion", tmp_path / "a.csv", "--data", folder / "shards")
    assert "a detector has no confusion matrix" in matrix
    classifier = tmp_path / "classifier.safetensors"
    save_weights(classifier, {"a": torch.zeros(1)}, {"recipe": dump_recipe(load_recipe("taps/toy"))})
    assert "detectors and classifiers have no figures in common" in complaint(detector, classifier)
    other = ("--set", "data.dataset=imagenet_vid", "--data", folder / "shards")
    assert "holds toy_detection, but recipe" in complaint(detector, *other)
    cropped = ("--set", "data.fit=crop", "--set", "data.resize=128", "--data", folder / "shards")
    assert 'a detector needs fit = "pad"' in complaint(detector, *cropped)
