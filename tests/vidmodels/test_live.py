"""Predictions from a camera: here its frames come from a file, or from the test."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from tests.videos import write_numbered_video
from tests.vidmodels.shards import TINY
from tests.vidmodels.test_cli import call
from vidmodels import live
from vidmodels.checkpoints import save_weights
from vidmodels.data import clip_of_file, clip_of_frames
from vidmodels.live import Frame, Source, open_source, watch, window_frames
from vidmodels.methods import METHODS
from vidmodels.predict import Prediction
from vidmodels.recipes import dump_recipe, load_recipe
from vidmodels.runs import Run, find_run, load_model
from vidprep.errors import UsageError, VidprepError

RECIPE = load_recipe("taps/toy", TINY)
CLASSES = ("zero", "one", "two", "drei")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    torch.manual_seed(0)
    state = METHODS["taps"].build(RECIPE.model, 4).state_dict()
    save_weights(path, state, {"method": "taps", "recipe": dump_recipe(RECIPE), "classes": json.dumps(CLASSES)})
    return find_run(path)


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("video") / "clip.mp4"
    write_numbered_video(path, num_frames=30, width=64, height=48)
    return path


def given(
    frames: Iterator[Frame], *, frame_rate: float = 10, is_live: bool = False
) -> Callable[[str], AbstractContextManager[Source]]:
    @contextmanager
    def opening(name: str) -> Iterator[Source]:
        yield Source(name=name, frames=frames, frame_rate=frame_rate, is_live=is_live)

    return opening


def noise(number: int, seed: int = 0) -> list[Frame]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 256, (48, 64, 3), dtype=np.uint8) for _ in range(number)]


def test_frames_at_hand_make_the_clip_of_a_file_that_holds_them(video: Path) -> None:
    with open_source(str(video)) as source:
        frames = list(source.frames)
    torch.testing.assert_close(clip_of_frames(RECIPE, frames), clip_of_file(RECIPE, video), rtol=0, atol=0)


def test_every_prediction_is_of_the_last_window(run: Run) -> None:
    frames = noise(13)
    found = list(watch(run, "x", seconds=0.8, every=0.2, top=4, device="cpu", opening=given(iter(frames))))
    assert [prediction.video for prediction in found] == ["0.8 s", "1.0 s", "1.2 s"]
    model = load_model(run, num_classes=4)
    for prediction, end in zip(found, (8, 10, 12), strict=True):
        with torch.no_grad():
            logits = model(clip_of_frames(RECIPE, frames[end - 8 : end])[None]).logits[0].double()
        best = logits.argsort(descending=True).tolist()
        assert prediction.classes == tuple(CLASSES[index] for index in best)
        assert prediction.probabilities == pytest.approx(logits.softmax(0)[best].tolist(), abs=1e-5)
    assert found[0].short_line.startswith("   0.8 s  " + found[0].classes[0])


def test_the_window_is_what_a_clip_of_the_recipe_spans() -> None:
    assert window_frames(RECIPE, frame_rate=30, seconds=4) == 120
    assert window_frames(RECIPE, frame_rate=5, seconds=0.1) == RECIPE.data.num_frames
    assert window_frames(load_recipe("sta/kinetics400_vit_base"), frame_rate=30, seconds=4) == 64


def test_a_slow_model_sees_the_newest_frames_of_a_camera(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    is_looking, is_over = threading.Event(), threading.Event()
    seen: list[np.ndarray] = []

    def camera() -> Iterator[Frame]:
        for number in range(40):
            if number == 9:
                assert is_looking.wait(30)
            yield np.full((48, 64, 3), number, dtype=np.uint8)
        is_over.set()

    def slow(_: object, frames: list[Frame]) -> torch.Tensor:
        seen.append(np.array([frame[0, 0, 0] for frame in frames]))
        is_looking.set()
        assert is_over.wait(30)
        return clip_of_frames(RECIPE, frames)

    monkeypatch.setattr(live, "clip_of_frames", slow)
    found = list(watch(run, "x", seconds=0.8, every=0.1, device="cpu", opening=given(camera(), is_live=True)))
    assert len(seen) == len(found) == 2
    assert seen[1].tolist() == list(range(32, 40))  # the newest ones, though the first look took until the end
    assert found[1].video == "4.0 s"
    assert all(thread.name != "camera" for thread in threading.enumerate())


def test_what_breaks_off_says_so(run: Run) -> None:
    def camera() -> Iterator[Frame]:
        yield from noise(3)
        raise VidprepError("/dev/video0: broke off (No such device); is it still connected?")

    with pytest.raises(VidprepError, match=r"broke off \(No such device\)"):
        list(watch(run, "x", seconds=0.8, device="cpu", opening=given(camera(), is_live=True)))


def test_a_file_shorter_than_the_window_is_no_silence(run: Run) -> None:
    with pytest.raises(VidprepError, match="ended after 3 frames, and a window has 40"):
        list(watch(run, "x", device="cpu", opening=given(iter(noise(3)))))


def test_what_cannot_be_opened_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match=r"^/dev/video97: no such camera; `ls /dev/video\*` shows"), open_source("97"):
        pass
    with pytest.raises(UsageError, match=r"no\.mp4: no such file; give a camera's number"), open_source("no.mp4"):
        pass
    (tmp_path / "notes.txt").write_text("no video")
    with pytest.raises(VidprepError, match="cannot be opened as a video"), open_source(str(tmp_path / "notes.txt")):
        pass
    # A device that is no camera stands for one that another program holds.
    with (
        pytest.raises(VidprepError, match=r"cannot be opened as a camera \(.*another program"),
        open_source("/dev/null"),
    ):
        pass

    def refuse(*_: object, **__: object) -> None:
        raise av.error.PermissionError(13, "Permission denied")

    monkeypatch.setattr(av, "open", refuse)
    with pytest.raises(VidprepError, match="may not be read; add yourself to the group"), open_source("/dev/null"):
        pass


def test_the_command_prints_a_line_for_every_window(
    run: Run, video: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("predict", "--checkpoint", run.weights, "--webcam", video, "--seconds", 0.2, "--every", 0.5)
    assert call(*words, "--json", tmp_path / "found.jsonl", "--device", "cpu", "--top", 2) == 0
    printed = capsys.readouterr()
    found = [json.loads(line) for line in (tmp_path / "found.jsonl").read_text().splitlines()]
    assert len(found) == len(printed.out.splitlines()) >= 2
    assert all(len(entry["classes"]) == 2 for entry in found)
    assert f"watching {video}, 0.2 s at a time; Ctrl-C ends it\n{len(found)} predictions\n" in printed.err


def test_either_videos_or_a_camera(run: Run, video: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("predict", video, "--webcam", "0", "--checkpoint", run.weights) == 2
    assert call("predict", "--checkpoint", run.weights) == 2
    assert capsys.readouterr().err.count("give either videos, or --webcam") == 2
    assert call("predict", "--webcam", video, "--checkpoint", run.weights, "--every", 0) == 2
    assert "--seconds and --every must be above 0" in capsys.readouterr().err


def test_ctrl_c_is_the_usual_end(run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(*_: object, **__: object) -> Iterator[Prediction]:
        yield Prediction(video="0.5 s", classes=("zero",), probabilities=(0.75,))
        raise KeyboardInterrupt

    monkeypatch.setattr(live, "watch", interrupted)
    assert call("predict", "--webcam", "0", "--checkpoint", run.weights) == 0
    printed = capsys.readouterr()
    assert printed.out == "   0.5 s  zero 75.0 %\n"
    assert printed.err == "1 predictions\n"
