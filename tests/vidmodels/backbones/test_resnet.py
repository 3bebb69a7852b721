from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import torchvision
from torch import nn

from vidmodels.backbones.resnet import (
    IMAGENET_URLS,
    BlockShape,
    Layout,
    ResidualBlock,
    ResNet,
    Stem,
    load_imagenet,
    size_after,
)
from vidmodels.checkpoints import CheckpointError


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


@pytest.mark.parametrize(
    ("layout", "depths", "reference"),
    [("bottleneck", (3, 4, 6, 3), torchvision.models.resnet50), ("basic", (2, 2, 2, 2), torchvision.models.resnet18)],
)
def test_it_is_torchvisions_resnet(
    layout: Layout, depths: tuple[int, ...], reference: Callable[[], nn.Module], tmp_path: Path
) -> None:
    theirs = reference().eval()
    torch.save(theirs.state_dict(), tmp_path / "resnet.pth")
    ours = ResNet(layout=layout, depths=depths).eval()
    load_imagenet(ours, tmp_path / "resnet.pth")
    theirs.fc, theirs.avgpool = nn.Identity(), nn.Identity()
    frames = torch.randn(2, 3, 33, 64)
    with torch.no_grad():
        torch.testing.assert_close(ours(frames).flatten(1), theirs(frames))


def test_every_published_imagenet_file_names_its_hash() -> None:
    for url in IMAGENET_URLS.values():
        assert torch.hub.HASH_REGEX.search(url)


def test_the_temporal_slot_follows_conv1_and_keeps_its_own_weights(tmp_path: Path) -> None:
    torch.save(torchvision.models.resnet18().state_dict(), tmp_path / "resnet.pth")
    net = ResNet(layout="basic", depths=(2, 2, 2, 2), temporal=lambda channels: nn.BatchNorm2d(channels))
    slot = net.stages["layer3"][0].temporal
    assert isinstance(slot, nn.BatchNorm2d)
    slot.weight.data.fill_(7.0)
    load_imagenet(net, tmp_path / "resnet.pth")
    assert slot.weight.shape == (256,)
    assert (slot.weight == 7.0).all()
    assert net.eval()(torch.randn(1, 3, 32, 32)).shape == (1, 512, 1, 1)


def test_weights_of_another_depth_are_refused(tmp_path: Path) -> None:
    torch.save(torchvision.models.resnet18().state_dict(), tmp_path / "resnet.pth")
    with pytest.raises(CheckpointError, match=r"10 entries missing, 0 not known.*use weights of the same depths"):
        load_imagenet(ResNet(layout="basic", depths=(3, 2, 2, 2)), tmp_path / "resnet.pth")


def test_there_are_no_imagenet_weights_for_a_toy() -> None:
    with pytest.raises(CheckpointError, match="no published ImageNet weights for bottleneck blocks of depths"):
        load_imagenet(ResNet(layout="bottleneck", depths=(1, 1), widths=(8, 16)))


def test_depths_and_widths_must_pair_up() -> None:
    with pytest.raises(ValueError, match="one depth and one width a stage, got depths"):
        ResNet(layout="basic", depths=(1, 1), widths=(8,))


@pytest.mark.parametrize("stem", ["conv7_pool", "conv3"])
def test_sizes_shrink_as_predicted(stem: Stem) -> None:
    net = ResNet(layout="bottleneck", depths=(1, 2), widths=(4, 8), stem=stem)
    x = net.stem(torch.randn(1, 3, 37, 50))
    size = (37, 50)
    for _ in range(2 if stem == "conv7_pool" else 0):
        size = (size_after(size[0], 2), size_after(size[1], 2))
    assert x.shape[-2:] == size
    assert net(torch.randn(1, 3, 37, 50)).shape == (1, 32, size_after(size[0], 2), size_after(size[1], 2))


def test_the_parts_of_a_block_make_the_whole() -> None:
    block = ResidualBlock(BlockShape(layout="bottleneck", in_channels=8, width=4, stride=2)).eval()
    x = torch.randn(2, 8, 9, 9)
    torch.testing.assert_close(block.outer(block.inner(x), block.shortcut(x)), block(x))
