import copy
import pickle

import pytest
import torch
from torch import nn

from vidmodels.cost import count_cost
from vidmodels.layers.packed import HAS_KERNELS, PackedLinear, pack_linears


def packed(dtype: torch.dtype = torch.float32, *, bias: bool = True) -> tuple[nn.Linear, PackedLinear]:
    generator = torch.Generator().manual_seed(0)
    layer = nn.Linear(24, 40, bias=bias, dtype=dtype)
    nn.init.normal_(layer.weight, generator=generator)
    both = nn.Sequential(layer)
    pack_linears(both)
    replaced = both[0]
    assert isinstance(replaced, PackedLinear)
    return layer, replaced


def rows(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, 24, generator=torch.Generator().manual_seed(1)).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(1,), (3, 8), (0,)])
def test_it_gives_what_the_ordinary_layer_gives(dtype: torch.dtype, bias: bool, shape: tuple[int, ...]) -> None:
    layer, fast = packed(dtype, bias=bias)
    x = rows(*shape, dtype=dtype)
    with torch.no_grad():
        torch.testing.assert_close(fast(x), layer(x), rtol=1e-4, atol=1e-4)


def test_it_shares_the_layers_parameters_and_packs_a_changed_weight_again() -> None:
    layer, fast = packed()
    assert fast.weight is layer.weight
    assert fast.bias is layer.bias
    with torch.no_grad():
        before = fast(rows(3))
        layer.weight.mul_(2)
        layer.bias.add_(1)
        assert not torch.allclose(fast(rows(3)), before)
        torch.testing.assert_close(fast(rows(3)), layer(rows(3)))


def test_gradients_flow_as_through_an_ordinary_layer() -> None:
    _, fast = packed()
    torch.autograd.backward(fast(rows(3)).sum())
    assert fast.weight.grad is not None


def test_only_the_parameters_are_copied_and_saved() -> None:
    _, fast = packed()
    with torch.no_grad():
        expected = fast(rows(3))
        for copied in (copy.deepcopy(fast), pickle.loads(pickle.dumps(fast))):
            assert copied._packed is None
            torch.testing.assert_close(copied(rows(3)), expected)
    assert list(fast.state_dict()) == ["weight", "bias"]


def test_its_multiply_accumulates_are_counted() -> None:
    _, fast = packed()
    cost = count_cost(fast, rows(3, 8))
    assert cost.macs == 3 * 8 * 24 * 40
    if HAS_KERNELS:
        assert fast._packed is not None
