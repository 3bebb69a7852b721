from collections.abc import Iterator

import pytest
import torch

from vidmodels.backbones.vit import ViTShape
from vidmodels.backbones.vivit import Attention, Block, FactorisedViViT, resize_positions

SHAPE = ViTShape(width=24, depth=3, num_heads=2, patch_size=8)


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def test_attention_with_and_without_its_weights_gives_the_same() -> None:
    attention, x = Attention(24, 2), torch.randn(3, 7, 24)
    fused = attention.attend(*attention.project(x))
    explicit = attention.attend(*attention.project(x), with_weights=True)
    assert fused.weights is None
    assert explicit.weights is not None
    torch.testing.assert_close(fused.out, explicit.out)
    torch.testing.assert_close(explicit.weights.sum(-1), torch.ones(3, 2, 7))


def test_queries_and_keys_and_values_apart_are_those_of_one_projection() -> None:
    attention, x = Attention(24, 2), torch.randn(3, 7, 24)
    for alone, together in zip((attention.queries(x), *attention.keys_values(x)), attention.project(x), strict=True):
        torch.testing.assert_close(alone, together)


def test_a_block_is_a_pre_norm_transformer_layer() -> None:
    block, x = Block(SHAPE).eval(), torch.randn(2, 5, 24)
    theirs = torch.nn.TransformerEncoderLayer(
        24, 2, 96, dropout=0.0, activation="gelu", layer_norm_eps=1e-6, batch_first=True, norm_first=True
    ).eval()
    names = {
        "norm1": "norm1",
        "attn.qkv": "self_attn.in_proj",
        "attn.proj": "self_attn.out_proj",
        "norm2": "norm2",
        "mlp.fc1": "linear1",
        "mlp.fc2": "linear2",
    }
    state = {}
    for name, tensor in block.state_dict().items():
        module, _, kind = name.rpartition(".")
        state[f"{names[module]}{'_' if module == 'attn.qkv' else '.'}{kind}"] = tensor
    theirs.load_state_dict(state)
    torch.testing.assert_close(block(x), theirs(x))


def test_the_class_token_comes_first_and_has_the_first_position() -> None:
    model = FactorisedViViT(SHAPE, temporal_depth=2, num_frames=8, image_size=32).spatial
    x = torch.randn(2, 16, 24)
    tokens = model.with_class_token(x)
    torch.testing.assert_close(tokens[:, 0], (model.cls_token + model.pos_embed[:, :1])[:, 0].expand(2, -1))
    torch.testing.assert_close(tokens[:, 1:], x + model.pos_embed[:, 1:])


def test_positions_of_another_grid_are_resized_and_the_class_tokens_is_not() -> None:
    encoding = torch.randn(1, 17, 24)
    assert resize_positions(encoding, (4, 4), (4, 4)) is encoding
    larger = resize_positions(encoding, (4, 4), (6, 8))
    assert larger.shape == (1, 49, 24)
    assert torch.equal(larger[:, 0], encoding[:, 0])
    model = FactorisedViViT(SHAPE, temporal_depth=2, num_frames=8, image_size=48, position_grid=(4, 4))
    assert model.positions().shape == (1, 37, 24)
    torch.testing.assert_close(
        resize_positions(torch.ones(1, 17, 24), (4, 4), (5, 5)), torch.ones(1, 26, 24)
    )  # what is equal everywhere stays so


def test_stochastic_depth_rises_over_both_sub_models() -> None:
    model = FactorisedViViT(SHAPE, temporal_depth=2, num_frames=8, image_size=32, drop_path=0.2)
    rates = [
        part.get_submodule(f"blocks.{index}.drop_path").drop_prob
        for part, depth in ((model.spatial, 3), (model.temporal, 2))
        for index in range(depth)
    ]
    assert rates == pytest.approx([0.0, 0.05, 0.1, 0.15, 0.2])


def test_frames_that_do_not_divide_are_refused() -> None:
    with pytest.raises(ValueError, match="7 frames of 32 x 32 do not divide into tubelets of 2 x 8 x 8"):
        FactorisedViViT(SHAPE, temporal_depth=2, num_frames=7, image_size=32)
