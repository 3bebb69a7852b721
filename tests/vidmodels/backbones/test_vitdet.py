"""ViTDet's windows and relative positions against plain ways of computing them."""

import pytest
import torch
from torch.testing import assert_close

from vidmodels.backbones.vitdet import (
    Block,
    Pyramid,
    RelativePosition,
    ViTDet,
    ViTDetShape,
    relative_bias,
    relative_terms,
    relative_terms_at,
    windows,
)

SHAPE = ViTDetShape(width=16, depth=2, num_heads=2, window_size=3, global_blocks=(1,), relative_position_size=4)


def test_tokens_of_a_window_are_neighbours_in_its_order() -> None:
    layout = windows(4, 3, torch.device("cpu"))
    assert (layout.count, layout.area) == (4, 9)
    assert layout.slots.view(4, 4).tolist() == [[0, 1, 2, 9], [3, 4, 5, 12], [6, 7, 8, 15], [18, 19, 20, 27]]


def test_windows_made_without_gradients_serve_those_with() -> None:
    block = Block(SHAPE, is_global=False)
    with torch.inference_mode():
        block(torch.zeros(1, 49, 16), block.relative_tables(7))
    block(torch.zeros(1, 49, 16), block.relative_tables(7)).sum().backward()
    assert block.qkv.weight.grad is not None


def test_relative_positions_are_vectors_of_the_distance() -> None:
    table = RelativePosition(3, 2)
    with torch.no_grad():
        table.y_embedding.copy_(torch.arange(10.0).view(5, 2))
    y = table(3)[0]
    assert y.shape == (3, 3, 2)
    for query in range(3):
        for key in range(3):
            assert torch.equal(y[query, key], table.y_embedding[query - key + 2])
    assert table(6).shape == (2, 6, 6, 2)


def test_some_queries_have_the_relative_terms_of_all() -> None:
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(1, 2, 16, 8, generator=generator)
    tables = torch.randn(2, 4, 4, 8, generator=generator)
    bias = relative_bias(*relative_terms(query, tables))[0]
    chosen = torch.tensor([3, 9, 14])
    some = relative_bias(*relative_terms_at(query[0, :, chosen], tables, chosen // 4, chosen % 4))
    assert_close(some, bias[:, chosen])
    # Query at row 2, column 1, key at row 0, column 3.
    expected = query[0, 1, 9] @ (tables[0][2, 0] + tables[1][1, 3])
    assert_close(bias[1, 9, 3], expected)


def test_a_window_does_not_see_the_others() -> None:
    block = Block(SHAPE, is_global=False)
    x = torch.randn(1, 36, 16, generator=torch.Generator().manual_seed(1))
    other = x.clone()
    other.view(6, 6, 16)[:, 3:] += 1
    tables = block.relative_tables(6)
    ours, theirs = (block(tokens, tables).view(6, 6, 16) for tokens in (x, other))
    assert torch.equal(ours[:, :3], theirs[:, :3])
    assert not torch.isclose(ours[:, 3:], theirs[:, 3:]).all(-1).any()


def test_every_image_of_a_batch_is_on_its_own() -> None:
    backbone = ViTDet(SHAPE).eval()
    patches = torch.randn(2, 25, 16, generator=torch.Generator().manual_seed(2))
    assert_close(backbone(patches)[1:], backbone(patches[1:]))


def test_the_pyramid_has_strides_of_4_to_64() -> None:
    levels = Pyramid(16, channels=8)(torch.zeros(2, 49, 16))
    assert [tuple(level.shape) for level in levels] == [(2, 8, side, side) for side in (28, 14, 7, 3, 2)]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"width": 15}, "a width of 15 does not divide into 2 heads"),
        ({"depth": 0}, "depth must be at least 1, got 0"),
        ({"global_blocks": (0, 2)}, r"global_blocks lie in 0 ... 1, got \[2\]"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(changes: dict[str, int], sentence: str) -> None:
    settings = {"width": 16, "depth": 2, "num_heads": 2, "global_blocks": (1,), **changes}
    with pytest.raises(ValueError, match=sentence):
        ViTDetShape(**settings)  # type: ignore[arg-type]
