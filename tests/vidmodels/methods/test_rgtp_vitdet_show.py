import numpy as np
import pytest
import torch

from tests.vidmodels.detection_shards import TINY
from vidmodels.methods.rgtp.vitdet import Detector
from vidmodels.methods.rgtp.vitdet_show import GAP, LABEL_HEIGHT, WIDTH, draw_kept_tokens
from vidmodels.recipes import load_recipe
from vidprep.errors import UsageError


def detector(*overrides: str) -> Detector:
    torch.manual_seed(0)
    return Detector(load_recipe("rgtp_vitdet/toy", (*TINY, *overrides)).model, 4).eval()


def test_the_picture_fades_the_tokens_that_were_not_computed() -> None:
    model = detector("model.keep_ratio=0.25")
    clip = (torch.rand(3, 3, 96, 128, generator=torch.Generator().manual_seed(1)) * 80).to(torch.uint8)
    picture = np.asarray(draw_kept_tokens(model, clip, clip / 255)).astype(int)
    height = WIDTH * 96 // 128
    assert picture.shape == (3 * (LABEL_HEIGHT + height + GAP), GAP + 3 * (WIDTH + GAP), 3)
    top = LABEL_HEIGHT + height + GAP + LABEL_HEIGHT
    state = None
    for column, frame in enumerate(clip):
        _, state = model.step(frame, state)
        kept = torch.ones(64) if state.kept is None else torch.zeros(64).index_fill(0, state.kept.flatten(), 1.0)
        assert int(kept.sum()) == (64 if column == 0 else 16)
        left = GAP + column * (WIDTH + GAP)
        cells = picture[top : top + height, left : left + WIDTH].mean(-1).reshape(6, height // 6, 8, WIDTH // 8)
        is_dark = cells.mean((1, 3)) < 100  # the frame is dark, a faded token nearly white
        np.testing.assert_array_equal(is_dark, kept.view(8, 8)[:6].bool().numpy())


def test_a_detector_that_computes_every_token_has_no_picture() -> None:
    model = detector()
    everything = Detector(type(model.config)(**{**model.config.__dict__, "keep_ratio": None}), 4)
    with pytest.raises(UsageError, match=r"computes every token; say how many to keep with --set model.keep_ratio=R"):
        draw_kept_tokens(everything, torch.zeros(1, 3, 96, 128), torch.zeros(1, 3, 96, 128))
    with pytest.raises(TypeError, match="expected a Detector, got Linear"):
        draw_kept_tokens(torch.nn.Linear(1, 1), torch.zeros(1, 3, 8, 8), torch.zeros(1, 3, 8, 8))
