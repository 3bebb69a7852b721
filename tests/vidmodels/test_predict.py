"""Predictions for files that are in no data set."""

import json
from pathlib import Path

import pytest
import torch

from tests.videos import write_numbered_video
from tests.vidmodels.shards import TINY
from tests.vidmodels.test_cli import call
from vidmodels.checkpoints import load_checkpoint, save_weights
from vidmodels.data import clips_of_file
from vidmodels.methods import METHODS
from vidmodels.predict import find_videos, predict
from vidmodels.recipes import dump_recipe, load_recipe
from vidmodels.runs import Run
from vidprep.errors import UsageError

RECIPE = load_recipe("taps/toy", [*TINY, "eval.num_clips=2"])
CLASSES = ("zero", "one", "two", "drei")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    torch.manual_seed(0)
    state = METHODS["taps"].build(RECIPE.model, 4).state_dict()
    save_weights(path, state, {"method": "taps", "recipe": dump_recipe(RECIPE), "classes": json.dumps(CLASSES)})
    return path


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    (folder / "deep").mkdir()
    for name in ("b.mp4", "deep/a.mp4"):
        write_numbered_video(folder / name, num_frames=12, width=64, height=64)
    (folder / "notes.txt").write_text("no video")
    return folder


def test_the_likeliest_classes_of_each_video_are_named(
    weights: Path, videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "found.jsonl"
    assert call("predict", videos, "--checkpoint", weights, "--top", 3, "--json", out, "--device", "cpu") == 0
    shown = capsys.readouterr().out
    found = [json.loads(line) for line in out.read_text().splitlines()]
    assert [entry["video"] for entry in found] == [str(videos / "b.mp4"), str(videos / "deep" / "a.mp4")]
    model = METHODS["taps"].build(RECIPE.model, 4).eval()
    model.load_state_dict(load_checkpoint(weights))
    with torch.no_grad():
        expected = model(clips_of_file(RECIPE, videos / "b.mp4")).logits.double().mean(0).softmax(-1)
    best = expected.argsort(descending=True)[:3]
    assert found[0]["classes"] == [CLASSES[index] for index in best]
    assert found[0]["probabilities"] == pytest.approx(expected[best].tolist(), abs=1e-5)
    assert f"{100 * expected[best[0]]:5.1f} %  █" in shown


def test_a_damaged_video_is_named_and_the_others_are_predicted(
    weights: Path, videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no video at all")
    out = tmp_path / "found.jsonl"
    assert call("predict", broken, videos / "b.mp4", "--checkpoint", weights, "--json", out, "--device", "cpu") == 1
    printed = capsys.readouterr()
    assert f"{broken}: " in printed.err
    assert f"{videos / 'b.mp4'}\n" in printed.out
    assert [bool(json.loads(line)["fault"]) for line in out.read_text().splitlines()] == [True, False]


def test_what_is_not_there_is_refused(
    weights: Path, videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("predict", tmp_path / "no.mp4", "--checkpoint", weights) == 2
    assert "no.mp4: no such file or folder" in capsys.readouterr().err
    assert call("predict", tmp_path, "--checkpoint", weights) == 2
    assert "no video in this folder" in capsys.readouterr().err
    assert call("predict", videos, "--checkpoint", weights, "--json", tmp_path / "no" / "x") == 2
    assert "its folder does not exist" in capsys.readouterr().err


def test_weights_that_do_not_name_their_classes_need_a_known_data_set(
    weights: Path, videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nameless = tmp_path / "nameless.safetensors"
    save_weights(nameless, load_checkpoint(weights), {"method": "taps", "recipe": dump_recipe(RECIPE)})
    assert call("predict", videos, "--checkpoint", nameless) == 2
    assert "does not say what its classes are called" in capsys.readouterr().err


def test_a_pattern_stands_for_its_videos(videos: Path) -> None:
    assert find_videos([videos / "**" / "*.mp4"]) == [videos / "b.mp4", videos / "deep" / "a.mp4"]
    assert find_videos([videos / "?.mp4", videos / "deep"]) == [videos / "b.mp4", videos / "deep" / "a.mp4"]
    with pytest.raises(UsageError, match=r"\*\.txt: no video fits this pattern"):
        find_videos([videos / "*.txt"])


def test_lines_of_json_alone_go_to_another_program(
    weights: Path, videos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("predict", videos / "*.mp4", "--checkpoint", weights, "--json", "-", "--device", "cpu") == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert json.loads(line)["video"] == str(videos / "b.mp4")


def test_a_detector_is_sent_to_its_own_command(tmp_path: Path) -> None:
    detector = Run(name="x", recipe=load_recipe("rgtp_vitdet/toy"), weights=tmp_path / "x.safetensors", data=None)
    with pytest.raises(UsageError, match=r"a detector finds boxes, .* use `vidmodels detect`"):
        next(predict(detector, []))
