from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.vidmodels.test_cli import call
from vidmodels.checkpoints import save_weights
from vidmodels.show import draw_video
from vidprep.datasets import toy
from vidprep.errors import MissingVideo, UsageError


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One clip of the toy data set."""
    path = tmp_path_factory.mktemp("video") / "right.mp4"
    path.write_bytes(toy._encode(toy.render_clip("val", 0, 0)))
    return path


def test_a_picture_of_the_kept_tokens_is_drawn(video: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "kept.png"
    assert call("show", "sta/toy_r11", "--video", video, "--out", out) == 0
    assert "right.mp4 as sta/toy_r11 sees it, with RANDOM weights" in capsys.readouterr().out
    with Image.open(out) as picture:
        assert picture.width > picture.height > 500


def test_a_picture_of_frames_and_rectangles_is_drawn(
    video: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "looks.png"
    assert call("show", "uni_adafocus/toy", "--video", video, "--out", out) == 0
    assert "right.mp4 as uni_adafocus/toy sees it, with RANDOM weights" in capsys.readouterr().out
    with Image.open(out) as picture:
        assert picture.width > 2 * picture.height > 600


def test_what_cannot_be_drawn_is_said(video: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "kept.png"
    with pytest.raises(UsageError, match="this model keeps every token; say how many to drop"):
        draw_video("sta/toy", video, out)
    with pytest.raises(UsageError, match="taps has no pictures"):
        draw_video("taps", video, out)
    with pytest.raises(UsageError, match=r"kept\.jpg: expected a name ending in \.png"):
        draw_video("sta/toy_r11", video, tmp_path / "kept.jpg")
    save_weights(tmp_path / "converted.safetensors", {"x": torch.zeros(1)}, {})
    with pytest.raises(UsageError, match=r"brings no recipe; .* in `vidmodels show` instead of the method"):
        draw_video("uni_adafocus", video, out, weights=tmp_path / "converted.safetensors")
    with pytest.raises(MissingVideo, match=r"no\.mp4"):
        draw_video("sta/toy_r11", tmp_path / "no.mp4", out)
    assert not out.exists()
    assert call("show", "sta/toy_r11", "--video", video) == 2
    assert "a picture needs both --video FILE and --out PNG" in capsys.readouterr().err
    assert call("show", "sta/toy_r11", "--weights", "runs/sta") == 2
    assert "--weights is for a picture" in capsys.readouterr().err
