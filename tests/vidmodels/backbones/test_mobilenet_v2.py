from pathlib import Path

import pytest
import torch
from torch.nn.functional import adaptive_avg_pool2d
from torchvision.models import mobilenet_v2

from vidmodels.backbones.mobilenet_v2 import MobileNetV2, is_shifted, load_imagenet
from vidmodels.checkpoints import CheckpointError

SMALL = ((1, 8, 1, 1), (2, 8, 2, 2), (2, 16, 2, 2))


def test_without_a_shift_it_is_torchvisions(tmp_path: Path) -> None:
    torch.manual_seed(0)
    theirs = mobilenet_v2().eval()
    torch.save(theirs.state_dict(), tmp_path / "imagenet.pth")
    ours = MobileNetV2().eval()
    load_imagenet(ours, tmp_path / "imagenet.pth")
    frames = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        maps = ours(frames)
        assert maps.shape == (2, 1280, 2, 2)
        logits = theirs.classifier(adaptive_avg_pool2d(maps, 1).flatten(1))
        torch.testing.assert_close(logits, theirs(frames))


def test_ten_blocks_of_the_published_network_are_shifted() -> None:
    shifted = [index for index, block in enumerate(MobileNetV2().features) if is_shifted(block)]
    assert shifted == [3, 5, 6, 8, 9, 10, 12, 13, 15, 16]


def test_the_shift_mixes_frames_of_one_clip_only() -> None:
    torch.manual_seed(0)
    network = MobileNetV2(stages=SMALL, shift_div=4).eval()
    clips = torch.randn(2, 3, 3, 32, 32)
    changed = clips.clone()
    changed[0, 0] += 1
    with torch.no_grad():
        before, after = (network(x.flatten(0, 1), num_frames=3).view(2, 3, -1) for x in (clips, changed))
    differs = (before != after).any(-1)
    assert differs.tolist() == [[True, True, True], [False, False, False]]
    plain = MobileNetV2(stages=SMALL).eval()
    plain.load_state_dict(network.state_dict())
    with torch.no_grad():
        alone = (plain(clips.flatten(0, 1)) != plain(changed.flatten(0, 1))).flatten(1).any(1)
    assert alone.tolist() == [True, False, False, False, False, False]


def test_weights_of_another_width_are_refused(tmp_path: Path) -> None:
    torch.save(MobileNetV2(stages=SMALL).state_dict(), tmp_path / "small.pth")
    with pytest.raises(CheckpointError, match="do not fit this MobileNetV2"):
        load_imagenet(MobileNetV2(stages=SMALL, width=0.5), tmp_path / "small.pth")


def test_its_stride_follows_from_its_stages() -> None:
    assert MobileNetV2().stride == 32
    assert MobileNetV2(stages=SMALL).stride == 8
