import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import relu6

from vidmodels.cost import counting_macs
from vidmodels.layers.folded import Activation, FoldedNorms, can_prepack


def shaken(norm: nn.BatchNorm2d | nn.BatchNorm1d) -> Any:
    """The norm far from the identity that it starts as."""
    generator = torch.Generator().manual_seed(0)
    for name, values in (("weight", 0.5), ("bias", 0.0), ("running_mean", 0.0), ("running_var", 0.5)):
        tensor = dict(norm.state_dict(keep_vars=True))[name]
        tensor.data.copy_(values + torch.rand(tensor.shape, generator=generator))
    return norm.eval()


@pytest.mark.parametrize("settings", [{"bias": False}, {"stride": 2, "padding": 1}, {"groups": 4, "bias": False}])
def test_a_folded_convolution_gives_what_both_layers_give(settings: dict[str, Any]) -> None:
    conv, norm, x = nn.Conv2d(4, 8, 3, **settings), shaken(nn.BatchNorm2d(8)), torch.randn(2, 4, 9, 9)
    torch.testing.assert_close(FoldedNorms().conv(conv, norm, x), norm(conv(x)), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("then", ["", "relu", "relu6"])
@pytest.mark.parametrize("settings", [{"bias": False}, {"stride": 2, "padding": 1}, {"groups": 4, "bias": False}])
@pytest.mark.parametrize("has_gradients", [True, False])
def test_weights_in_the_order_of_the_kernel_give_the_same(
    then: Activation, settings: dict[str, Any], has_gradients: bool
) -> None:
    conv, norm, x = nn.Conv2d(4, 8, 3, **settings), shaken(nn.BatchNorm2d(8)), 9 * torch.randn(3, 4, 9, 9)
    expected = norm(conv(x))
    if then:
        expected = expected.relu() if then == "relu" else relu6(expected)
        assert (expected == 0).any()
    norms = FoldedNorms()
    with torch.set_grad_enabled(has_gradients):
        for size in (3, 1, 2):  # the order that the first size asks for serves all
            given = norms.conv(conv, norm, x[:size].contiguous(memory_format=torch.channels_last), then=then)
            torch.testing.assert_close(given, expected[:size], atol=1e-4, rtol=1e-4)


def test_a_changed_weight_is_put_in_order_anew() -> None:
    conv, norm, x, norms = nn.Conv2d(4, 8, 3), shaken(nn.BatchNorm2d(8)), torch.randn(2, 4, 9, 9), FoldedNorms()
    with torch.no_grad():
        before = norms.conv(conv, norm, x)
        conv.weight.mul_(2)
        after = norms.conv(conv, norm, x)
        assert not torch.equal(before, after)
        torch.testing.assert_close(after, norm(conv(x)), atol=1e-5, rtol=1e-4)


def test_a_copy_folds_for_itself() -> None:
    conv, norm, x, norms = nn.Conv2d(4, 8, 3), shaken(nn.BatchNorm2d(8)), torch.randn(2, 4, 9, 9), FoldedNorms()
    with torch.no_grad():
        expected = norms.conv(conv, norm, x)
        copied_conv, copied_norm, copied = copy.deepcopy((conv, norm, norms))
        torch.testing.assert_close(copied.conv(copied_conv, copied_norm, x), expected)


def test_only_plain_running_takes_the_place_of_the_convolution() -> None:
    x = torch.randn(1, 3, 4, 4)
    assert not can_prepack(x)
    with torch.no_grad():
        assert can_prepack(x)
        assert not can_prepack(x.double())
        assert not can_prepack(x.to("meta"))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert not can_prepack(x)
        with counting_macs() as counter:
            assert not can_prepack(x)
            FoldedNorms().conv(nn.Conv2d(3, 8, 1), shaken(nn.BatchNorm2d(8)), x)
        assert counter.macs == 16 * 3 * 8


def test_a_folded_linear_layer_gives_what_both_layers_give() -> None:
    layer, norm, x = nn.Linear(4, 8), shaken(nn.BatchNorm1d(8)), torch.randn(5, 4)
    torch.testing.assert_close(FoldedNorms().linear(layer, norm, x), norm(layer(x)), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("part", ["conv.weight", "conv.bias", "norm.weight", "norm.bias"])
def test_a_changed_tensor_is_folded_anew_and_others_are_not(part: str) -> None:
    conv, norm, folded = nn.Conv2d(4, 8, 1), shaken(nn.BatchNorm2d(8)), FoldedNorms()
    first = folded.fold(conv, norm)
    assert folded.fold(conv, norm) is first
    owner, name = part.split(".")
    with torch.no_grad():
        getattr({"conv": conv, "norm": norm}[owner], name).mul_(2)
    again = folded.fold(conv, norm)
    assert not (torch.equal(again.weight, first.weight) and torch.equal(again.bias, first.bias))


def test_statistics_of_a_training_pass_are_folded_anew() -> None:
    conv, norm, folded = nn.Conv2d(4, 8, 1), nn.BatchNorm2d(8), FoldedNorms()
    first: Tensor = folded.fold(conv, norm).bias
    norm.train()(conv(torch.randn(2, 4, 3, 3)))
    assert not torch.equal(folded.fold(conv, norm).bias, first)


def test_what_cannot_be_folded_is_refused() -> None:
    with pytest.raises(ValueError, match="running statistics and a scale"):
        FoldedNorms().fold(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2, track_running_stats=False))
    with pytest.raises(ValueError, match="without dilation that pad with zeros"):
        FoldedNorms().fold(nn.Conv2d(1, 2, 3, dilation=2), nn.BatchNorm2d(2))
