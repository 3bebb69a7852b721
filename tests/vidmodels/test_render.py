import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from tests.videos import read_number, write_numbered_video
from vidmodels.cli import main
from vidmodels.methods import METHODS
from vidmodels.render import draw_boxes, render_video
from vidmodels.types import Detections
from vidprep.decode import open_video
from vidprep.errors import CorruptVideo, MissingVideo, UsageError, VidprepError


class Finder(nn.Module):
    """Finds a box of class 1 that moves to the right, and one of a low score."""

    def __init__(self) -> None:
        super().__init__()
        self.num_sequences = 0

    def step(self, frame: torch.Tensor, state: Any = None) -> tuple[Detections, Any]:
        assert frame.shape == (3, 96, 128)
        self.num_sequences += state is None
        place = state or 0
        boxes = torch.tensor([[10.0 + 4 * place, 30, 40 + 4 * place, 70], [0, 0, 5, 5]])
        found = Detections(boxes=boxes, scores=torch.tensor([0.9, 0.2]), labels=torch.tensor([1, 0]))
        return found, place + 1


@pytest.fixture
def finder(monkeypatch: pytest.MonkeyPatch) -> Finder:
    """In place of the toy's model with random weights."""
    model = Finder()
    fake = replace(METHODS["rgtp_vitdet"], build=lambda config, num_classes: model)
    monkeypatch.setattr("vidmodels.render.METHODS", {"rgtp_vitdet": fake})
    return model


@pytest.fixture
def video(tmp_path: Path) -> Path:
    return write_numbered_video(tmp_path / "in.mp4", num_frames=12, fps=10, width=256, height=192)


def frames_of(path: Path) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
    with open_video(path) as reader:
        batch = reader.get_frames_at(range(reader.num_frames))
    return batch.data.transpose(0, 2, 3, 1), batch.pts_seconds


def test_boxes_lie_on_the_frames_in_their_own_size(finder: Finder, video: Path, tmp_path: Path) -> None:
    said = render_video(video, tmp_path / "out.mp4", recipe_name="rgtp_vitdet/toy", device="cpu")
    assert "12 frames, 12 boxes (1.0 a frame)" in said
    assert "RANDOM weights" in said
    drawn, times = frames_of(tmp_path / "out.mp4")
    given, given_times = frames_of(video)
    assert drawn.shape == given.shape == (12, 192, 256, 3)
    np.testing.assert_allclose(times, given_times, atol=1e-4)
    assert [read_number(frame) for frame in drawn] == list(range(12))
    for index in (0, 11):
        difference = np.abs(drawn[index].astype(int) - given[index]).max(-1)
        left, right = 2 * (10 + 4 * index), 2 * (40 + 4 * index)
        assert (difference[70:130, left - 1 : left + 2].max(1) > 40).all()  # the left edge, in stored pixels
        assert (difference[70:130, left + 6 : right - 6] < 40).all()
        assert (difference[150:, :] < 40).all()


def test_a_folder_of_images_starts_anew_after_a_gap(finder: Finder, video: Path, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    for index, frame in enumerate(frames_of(video)[0]):
        if index != 4:
            Image.fromarray(frame).save(folder / f"{index:04d}.png")
    said = render_video(folder, tmp_path / "out.mp4", recipe_name="rgtp_vitdet/toy", frame_rate=5, device="cpu")
    assert "11 frames of 2 sequences" in said
    assert finder.num_sequences == 2
    drawn, times = frames_of(tmp_path / "out.mp4")
    assert [read_number(frame) for frame in drawn] == [0, 1, 2, 3, *range(5, 12)]
    np.testing.assert_allclose(times, np.arange(11) / 5, atol=1e-4)


def test_it_stops_where_it_is_told(finder: Finder, video: Path, tmp_path: Path) -> None:
    said = render_video(
        video, tmp_path / "out.mp4", recipe_name="rgtp_vitdet/toy", max_frames=3, min_score=0.1, device="cpu"
    )
    assert "3 frames, 6 boxes" in said
    assert len(frames_of(tmp_path / "out.mp4")[0]) == 3


def test_odd_sides_lose_a_pixel(finder: Finder, tmp_path: Path) -> None:
    folder = tmp_path / "odd"
    folder.mkdir()
    Image.new("RGB", (255, 191)).save(folder / "0.png")
    render_video(folder, tmp_path / "out.mp4", recipe_name="rgtp_vitdet/toy", device="cpu")
    assert frames_of(tmp_path / "out.mp4")[0].shape == (1, 190, 254, 3)


def test_a_fault_on_the_way_leaves_no_file(
    finder: Finder, video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(frame: torch.Tensor, state: Any = None) -> tuple[Detections, Any]:
        raise KeyboardInterrupt

    monkeypatch.setattr(finder, "step", stop)
    with pytest.raises(KeyboardInterrupt):
        render_video(video, tmp_path / "out.mp4", recipe_name="rgtp_vitdet/toy", device="cpu")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.mp4"]


def render_toy(video: Path, out: Path, *, min_score: float = 0.5) -> str:
    return render_video(video, out, recipe_name="rgtp_vitdet/toy", min_score=min_score, device="cpu")


def test_wrong_questions_are_refused(finder: Finder, video: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.mp4"
    with pytest.raises(UsageError, match=r"expected a name ending in .mp4, in a folder that exists"):
        render_toy(video, tmp_path / "out.avi")
    with pytest.raises(UsageError, match="is the video itself"):
        render_toy(video, video)
    with pytest.raises(UsageError, match=r"min_score lies in 0 ... 1"):
        render_toy(video, out, min_score=2)
    with pytest.raises(UsageError, match="recipe toy crops its frames"):
        render_video(video, out, recipe_name="taps/toy", device="cpu")
    with pytest.raises(MissingVideo, match="no such video file or folder of images"):
        render_toy(tmp_path / "nowhere.mp4", out)
    (tmp_path / "text.mp4").write_text("no video")
    with pytest.raises(CorruptVideo):
        render_toy(tmp_path / "text.mp4", out)
    assert not out.exists()


def test_sequences_of_two_sizes_do_not_go_into_one_video(finder: Finder, tmp_path: Path) -> None:
    folder = tmp_path / "two"
    folder.mkdir()
    Image.new("RGB", (256, 192)).save(folder / "0.png")
    Image.new("RGB", (128, 96)).save(folder / "2.png")
    with pytest.raises(VidprepError, match="a frame of 128x96 pixels follows frames of 256x192"):
        render_video(folder, tmp_path / "out.mp4", recipe_name="rgtp_vitdet/toy", device="cpu")
    assert not (tmp_path / "out.mp4").exists()


def test_boxes_in_the_padding_and_labels_at_the_edge_do_not_fail() -> None:
    picture = np.zeros((60, 80, 3), dtype=np.uint8)
    boxes = [(0, 0, 200, 30), (10, 70, 40, 90), (70, 50, 79, 59)]
    drawn = draw_boxes(picture, boxes, [0, 1, 2], [0.9, 0.8, 0.7], ["a very long name of a class", "b", "c"])
    assert drawn.shape == picture.shape
    assert not picture.any()
    assert drawn[30, 5:75].any()
    assert drawn[55, 70].any()


def test_the_command_draws_a_video_with_the_toys_model(
    video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*arguments: object) -> int:
        monkeypatch.setattr("sys.argv", ["vidmodels", *map(str, arguments)])
        return main()

    out = tmp_path / "out.mp4"
    settings = ("--recipe", "rgtp_vitdet/toy", "--device", "cpu", "--max-frames", 2)
    assert run("detect", "--video", video, "--out", out, *settings) == 0
    assert "2 frames, 0 boxes" in capsys.readouterr().out
    assert run("detect", "--video", tmp_path / "no.mp4", "--out", out, *settings) == 1
    assert "no such video file" in capsys.readouterr().err
    picture = tmp_path / "kept.png"
    assert run("show", "rgtp_vitdet/toy", "--video", video, "--out", picture) == 0
    assert "as rgtp_vitdet/toy sees it" in capsys.readouterr().out
    assert picture.stat().st_size > 1000
    assert run("show", "rgtp_vitdet/toy", "--video", video, "--out", picture, "--set", "model.keep_ratio=1.0") == 0


def test_ctrl_c_leaves_the_folder_as_it_was(tmp_path: Path, wait_until: Callable[[Callable[[], bool]], None]) -> None:
    video = write_numbered_video(tmp_path / "in.mp4", num_frames=600, fps=10, width=256, height=192)
    command = "import sys; from vidmodels.cli import main; sys.exit(main())"
    arguments = ["detect", "--video", str(video), "--out", str(tmp_path / "out.mp4"), "--recipe", "rgtp_vitdet/toy"]
    process = subprocess.Popen([sys.executable, "-c", command, *arguments, "--device", "cpu"], stderr=subprocess.PIPE)
    wait_until(lambda: (tmp_path / "out.mp4.part").exists())
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130
    assert b"interrupted" in err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.mp4"]


@pytest.fixture
def wait_until() -> Callable[[Callable[[], bool]], None]:
    def wait(condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 200
        while not condition():
            assert time.monotonic() < deadline, "it never came"
            time.sleep(0.05)

    return wait
