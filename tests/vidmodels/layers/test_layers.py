from collections.abc import Iterator

import pytest
import torch
from torch import nn

from vidmodels.layers.attention import MultiHeadAttention, sinusoidal_positions
from vidmodels.layers.gumbel import GateNoise, draw_gate_noise, open_gates, straight_through_gate
from vidmodels.layers.temporal_shift import ShiftMode, shifted_in_place, temporal_shift


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def numbered_clip(num_frames: int = 3, channels: int = 8) -> torch.Tensor:
    """(t, c, 1, 1): every value is its frame's number, from 1."""
    return torch.arange(1.0, num_frames + 1)[:, None, None, None].expand(-1, channels, 1, 1).contiguous()


def test_online_shift_moves_the_second_part_only() -> None:
    shifted = temporal_shift(numbered_clip(), num_frames=3, mode="online", shift_div=4)[:, :, 0, 0]
    assert shifted.T.tolist() == [[1, 2, 3]] * 2 + [[0, 1, 2]] * 2 + [[1, 2, 3]] * 4


def test_offline_shift_reaches_both_ways() -> None:
    shifted = temporal_shift(numbered_clip(), num_frames=3, mode="offline", shift_div=4)[:, :, 0, 0]
    assert shifted.T.tolist() == [[2, 3, 0]] * 2 + [[0, 1, 2]] * 2 + [[1, 2, 3]] * 4


def test_copied_edges_keep_the_edge_frames_values() -> None:
    shifted = temporal_shift(numbered_clip(), num_frames=3, mode="offline", shift_div=4, copy_edges=True)[:, :, 0, 0]
    assert shifted.T.tolist() == [[2, 3, 3]] * 2 + [[1, 1, 2]] * 2 + [[1, 2, 3]] * 4


def test_shift_does_not_cross_clips_and_leaves_its_input_alone() -> None:
    clips = torch.cat([numbered_clip(), 10 * numbered_clip()])
    before = clips.clone()
    shifted = temporal_shift(clips, num_frames=3, mode="offline", shift_div=4)
    assert shifted[2, 0].item() == 0
    assert shifted[3, 2].item() == 0
    assert torch.equal(clips, before)


def test_no_shift_returns_the_input_itself() -> None:
    clip = numbered_clip()
    assert temporal_shift(clip, num_frames=3, mode="none") is clip


def test_shift_refuses_parts_of_clips() -> None:
    with pytest.raises(ValueError, match="3 frames are not whole clips of 2"):
        temporal_shift(numbered_clip(), num_frames=2, mode="online")


@pytest.mark.parametrize("has_value", [False, True])
@pytest.mark.parametrize("has_bias", [False, True])
def test_attention_is_torchs(has_value: bool, has_bias: bool) -> None:
    ours, theirs = MultiHeadAttention(12, 3), nn.MultiheadAttention(12, 3, batch_first=True)
    theirs.in_proj_weight.data, theirs.in_proj_bias.data = ours.in_proj.weight.data, torch.randn(36)
    ours.in_proj.bias.data = theirs.in_proj_bias.data
    theirs.out_proj.load_state_dict(ours.out_proj.state_dict())
    x = torch.randn(2, 5, 12)
    value = torch.randn(2, 5, 12) if has_value else None
    bias = torch.ones(5, 5).triu(1) if has_bias else None
    out, weights = ours(x, value=value, bias=bias)
    expected, expected_weights = theirs(x, x, x if value is None else value, attn_mask=bias)
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(weights.mean(1), expected_weights)


def test_attention_needs_heads_that_divide_its_width() -> None:
    with pytest.raises(ValueError, match="a width of 10 does not divide into 4 heads"):
        MultiHeadAttention(10, 4)


def test_positions_alternate_sine_and_cosine() -> None:
    table = sinusoidal_positions(4, 6, like=torch.zeros(1, dtype=torch.float64))
    assert table.dtype == torch.float64
    angle = torch.tensor(3 * 10000 ** (-2 / 6))
    torch.testing.assert_close(table[3, 2:4].float(), torch.stack([angle.sin(), angle.cos()]))


def test_a_gate_is_hard_going_forward_and_soft_going_back() -> None:
    logits = torch.tensor([-1.0, -0.001, 0.0, 2.0], dtype=torch.float64, requires_grad=True)
    gate = straight_through_gate(logits, temperature=0.5)
    assert gate.detach().round().tolist() == open_gates(logits).tolist() == [0, 0, 1, 1]
    torch.autograd.backward(gate.sum())
    soft = torch.sigmoid(logits.detach() / 0.5)
    torch.testing.assert_close(logits.grad, soft * (1 - soft) / 0.5)


def test_noise_moves_gates_and_equal_draws_cancel() -> None:
    logits = torch.full((1000,), 0.5)
    noise = draw_gate_noise(logits, torch.Generator().manual_seed(0))
    kept = straight_through_gate(logits, temperature=1.0, noise=noise).mean()
    assert 0.55 < kept < 0.70  # sigmoid(0.5) = 0.62: logistic noise keeps with the logit's probability
    same = straight_through_gate(logits, temperature=1.0, noise=GateNoise(noise.u1, noise.u1))
    assert (same.round() == 1).all()


def test_noise_comes_from_the_given_generator() -> None:
    logits = torch.zeros(3)
    first, again = (draw_gate_noise(logits, torch.Generator().manual_seed(5)) for _ in range(2))
    assert torch.equal(first.u1, again.u1)
    assert torch.equal(first.u2, again.u2)
    assert not torch.equal(first.u1, first.u2)


@pytest.mark.parametrize("mode", ["none", "online", "offline"])
@pytest.mark.parametrize("copy_edges", [False, True])
@pytest.mark.parametrize("rows", [slice(0, 8), slice(0, 3), slice(2, 6), slice(3, 4), slice(5, 8), slice(4, 8)])
def test_a_part_shifted_in_place_is_that_part_of_the_whole_and_is_put_back(
    mode: ShiftMode, copy_edges: bool, rows: slice
) -> None:
    x = torch.arange(8 * 16 * 2 * 3, dtype=torch.float32).view(8, 16, 2, 3) + 1
    x = x.contiguous(memory_format=torch.channels_last)
    before = x.clone()
    expected = temporal_shift(x, num_frames=4, mode=mode, shift_div=4, copy_edges=copy_edges)[rows]
    with shifted_in_place(x, rows, num_frames=4, mode=mode, shift_div=4, copy_edges=copy_edges) as shifted:
        assert torch.equal(shifted, expected)
    assert torch.equal(x, before)
