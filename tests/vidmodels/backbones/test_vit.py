from collections.abc import Iterator

import pytest
import torch
from torch import nn

from vidmodels.backbones.vit import SIZES, Attention, Block, VideoViT, ViTShape
from vidmodels.layers.patch_embed import TubeletEmbed

SMALL = ViTShape(width=24, depth=3, num_heads=2, patch_size=8)


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def test_a_tubelet_is_embedded_as_its_convolution_does() -> None:
    embed, frames = TubeletEmbed(12, patch_size=8, tubelet=2), torch.randn(2, 6, 3, 24, 32)
    expected = embed.proj(frames.transpose(1, 2)).flatten(2).transpose(1, 2)
    torch.testing.assert_close(embed(frames), expected)
    assert embed(frames.transpose(-1, -2).contiguous().transpose(-1, -2)).shape == (2, 3 * 3 * 4, 12)


def test_frames_that_do_not_divide_into_tubelets_are_refused() -> None:
    with pytest.raises(ValueError, match="3 frames of 8 x 8 do not divide into boxes of 2 x 8 x 8"):
        TubeletEmbed(4, patch_size=8, tubelet=2)(torch.zeros(1, 3, 3, 8, 8))
    with pytest.raises(ValueError, match="16 frames of 30 x 32 do not divide into tubelets"):
        VideoViT(SMALL, num_frames=16, image_size=(30, 32))


def test_attention_is_softmax_of_scaled_products_and_keys_have_no_bias() -> None:
    attention, x = Attention(12, 3), torch.randn(2, 7, 12)
    nn.init.normal_(attention.q_bias)
    nn.init.normal_(attention.v_bias)
    query, key, value = (attention.qkv(x)).chunk(3, dim=-1)
    query, value = query + attention.q_bias, value + attention.v_bias
    query, key, value = (part.view(2, 7, 3, 4).transpose(1, 2) for part in (query, key, value))
    weights = (query @ key.transpose(-1, -2) / 2).softmax(-1)
    out, keys = attention(x, with_keys=True)
    torch.testing.assert_close(out, attention.proj((weights @ value).transpose(1, 2).flatten(2)))
    torch.testing.assert_close(keys, key.mean(1))
    assert attention(x).keys is None


def test_a_block_is_the_same_with_and_without_gradients_and_leaves_its_input_alone() -> None:
    block, x = Block(SMALL), torch.randn(2, 5, 24)
    before = x.clone()
    expected = block(x).tokens
    with torch.no_grad():
        torch.testing.assert_close(block(x).tokens, expected)
    assert torch.equal(x, before)


def test_mixed_precision_keeps_the_residual_stream_in_float32() -> None:
    model = VideoViT(SMALL, num_frames=4, image_size=(16, 16)).eval()
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        out = model(torch.randn(1, 4, 3, 16, 16))
    assert out.dtype == torch.float32


def test_stochastic_depth_rises_from_nothing_to_its_rate() -> None:
    model = VideoViT(SMALL, num_frames=4, image_size=(16, 16), drop_path=0.4)
    assert [block.get_submodule("drop_path").drop_prob for block in model.blocks] == pytest.approx([0, 0.2, 0.4])


def test_the_table_is_no_entry_and_fits_one_size_of_clips() -> None:
    model = VideoViT(SMALL, num_frames=4, image_size=(16, 24))
    assert model.grid == (2, 2, 3)
    assert "positions" not in model.state_dict()
    assert len(model.state_dict()) == 13 * 3 + 2
    with pytest.raises(ValueError, match="is for clips of 4 frames of 16 x 24, got 4 of 16 x 16"):
        model(torch.zeros(1, 4, 3, 16, 16))


@pytest.mark.parametrize(("size", "millions"), [("small", 21.88), ("base", 86.23), ("large", 303.86), ("huge", 631.61)])
def test_sizes_are_videomaes(size: str, millions: float) -> None:
    with torch.device("meta"):
        model = VideoViT(SIZES[size], num_frames=16, image_size=(224, 224))
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.01)


def test_shapes_check_themselves() -> None:
    with pytest.raises(ValueError, match="a width of 10 does not divide into 4 heads"):
        ViTShape(width=10, depth=1, num_heads=4)
    with pytest.raises(ValueError, match="must be at least 1"):
        ViTShape(width=8, depth=0, num_heads=4)
