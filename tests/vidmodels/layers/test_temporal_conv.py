import pytest
import torch
from torch import Tensor
from torch.nn.functional import conv1d

from vidmodels.cost import counting_macs
from vidmodels.layers.temporal_conv import temporal_conv


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def draw(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(shape, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize(("num_frames", "num_taps"), [(1, 3), (4, 1), (4, 3), (5, 5), (2, 7)])
def test_a_kernel_that_stays_the_same_is_a_convolution(
    num_frames: int, num_taps: int, generator: torch.Generator
) -> None:
    x, kernel = draw(generator, 2, num_frames, 3, 4, 5), draw(generator, 2, 3, num_taps)
    ours = temporal_conv(x, kernel[:, None].expand(-1, num_frames, -1, -1))
    for clip in range(2):
        rows = x[clip].permute(2, 3, 1, 0).flatten(0, 1)  # (h*w, c, t)
        theirs = conv1d(rows, kernel[clip][:, None], padding=num_taps // 2, groups=3)
        torch.testing.assert_close(ours[clip].permute(2, 3, 1, 0).flatten(0, 1), theirs)


def test_every_frame_has_its_own_taps(generator: torch.Generator) -> None:
    x, kernel = draw(generator, 1, 3, 1, 1, 1), draw(generator, 1, 3, 1, 3)
    a, b, c = x.flatten().tolist()
    (_, a1, a2), (b0, b1, b2), (c0, c1, _) = kernel[0, :, 0].tolist()
    expected = [a1 * a + a2 * b, b0 * a + b1 * b + b2 * c, c0 * b + c1 * c]
    assert temporal_conv(x, kernel).flatten().tolist() == pytest.approx(expected)


@pytest.mark.parametrize("num_taps", [1, 3, 7])
def test_its_gradients_are_right(num_taps: int, generator: torch.Generator) -> None:
    x = draw(generator, 2, 4, 2, 2, 2).requires_grad_()
    kernel = draw(generator, 2, 4, 2, num_taps).requires_grad_()
    assert torch.autograd.gradcheck(temporal_conv, (x, kernel))
    assert torch.autograd.gradgradcheck(temporal_conv, (x, kernel))


def test_it_is_registered_as_pytorch_wants_operators(generator: torch.Generator) -> None:
    inputs = (draw(generator, 2, 4, 3, 2, 2).requires_grad_(), draw(generator, 2, 4, 3, 3).requires_grad_())
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(torch.ops.vidmodels.temporal_conv.default, inputs, test_utils=checks)


def test_the_layout_in_memory_is_kept(generator: torch.Generator) -> None:
    frames = draw(generator, 8, 3, 4, 5).contiguous(memory_format=torch.channels_last)
    y = temporal_conv(frames.view(2, 4, 3, 4, 5), draw(generator, 2, 4, 3, 3))
    assert y.flatten(0, 1).is_contiguous(memory_format=torch.channels_last)


def test_cost_counters_see_a_multiplication_for_each_tap(generator: torch.Generator) -> None:
    with counting_macs() as counter:
        temporal_conv(draw(generator, 2, 4, 3, 5, 5), draw(generator, 2, 4, 3, 3))
    assert counter.macs == 3 * 2 * 4 * 3 * 5 * 5


def test_the_kernel_is_taken_in_the_precision_of_the_frames(generator: torch.Generator) -> None:
    x, kernel = draw(generator, 1, 4, 3, 2, 2), draw(generator, 1, 4, 3, 3)
    assert temporal_conv(x.bfloat16(), kernel).dtype == torch.bfloat16


@pytest.mark.parametrize("shape", [(2, 4, 3, 2), (2, 4, 1, 3), (2, 4, 3)])
def test_kernels_that_do_not_fit_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"needs a kernel \(n, t, c, odd number of taps\), got"):
        temporal_conv(torch.zeros(2, 4, 3, 1, 1), torch.zeros(shape))
