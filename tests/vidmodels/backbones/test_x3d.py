from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import pytest
import torch
from torch import Tensor

from vidmodels.backbones.x3d import DEPTHS, X3d, X3dHead, convert, load_kinetics400, round_width
from vidmodels.checkpoints import CheckpointError
from vidmodels.cost import counting_macs
from vidmodels.golden import fill_input, fill_tensor

Size = Literal["s", "l"]


def pytorchvideo_shapes(depths: tuple[int, ...], num_classes: int = 400) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of PyTorchVideo's networks, written down apart from our table of them."""

    def norm(name: str, channels: int) -> Iterator[tuple[str, tuple[int, ...]]]:
        for part in ("weight", "bias", "running_mean", "running_var"):
            yield f"{name}.{part}", (channels,)
        yield f"{name}.num_batches_tracked", ()

    yield "blocks.0.conv.conv_t.weight", (24, 3, 1, 3, 3)
    yield "blocks.0.conv.conv_xy.weight", (24, 1, 5, 1, 1)
    yield from norm("blocks.0.norm", 24)
    before = 24
    for stage, (depth, out, inner, squeezed) in enumerate(
        zip(depths, (24, 48, 96, 192), (54, 108, 216, 432), (8, 8, 16, 32), strict=True), start=1
    ):
        for index in range(depth):
            block = f"blocks.{stage}.res_blocks.{index}"
            if index == 0:
                yield f"{block}.branch1_conv.weight", (out, before, 1, 1, 1)
                if out != before:
                    yield from norm(f"{block}.branch1_norm", out)
            yield f"{block}.branch2.conv_a.weight", (inner, before, 1, 1, 1)
            yield from norm(f"{block}.branch2.norm_a", inner)
            yield f"{block}.branch2.conv_b.weight", (inner, 1, 3, 3, 3)
            yield from norm(f"{block}.branch2.norm_b.0", inner)
            if index % 2 == 0:
                se = f"{block}.branch2.norm_b.1.block"
                yield f"{se}.0.weight", (squeezed, inner, 1, 1, 1)
                yield f"{se}.0.bias", (squeezed,)
                yield f"{se}.2.weight", (inner, squeezed, 1, 1, 1)
                yield f"{se}.2.bias", (inner,)
            yield f"{block}.branch2.conv_c.weight", (out, inner, 1, 1, 1)
            yield from norm(f"{block}.branch2.norm_c", out)
            before = out
    yield "blocks.5.pool.pre_conv.weight", (432, 192, 1, 1, 1)
    yield from norm("blocks.5.pool.pre_norm", 432)
    yield "blocks.5.pool.post_conv.weight", (2048, 432, 1, 1, 1)
    yield "blocks.5.proj.weight", (num_classes, 2048)
    yield "blocks.5.proj.bias", (num_classes,)


def pyslowfast_name(name: str) -> str:
    """PyTorchVideo's name -> PySlowFast's."""
    for theirs, others in {
        "blocks.0.conv.conv_t.": "s1.pathway0_stem.conv_xy.",
        "blocks.0.conv.conv_xy.": "s1.pathway0_stem.conv.",
        "blocks.0.norm.": "s1.pathway0_stem.bn.",
        "blocks.5.pool.pre_conv.": "head.conv_5.",
        "blocks.5.pool.pre_norm.": "head.conv_5_bn.",
        "blocks.5.pool.post_conv.": "head.lin_5.",
        "blocks.5.proj.": "head.projection.",
        "blocks.1.res_blocks.": "s2.pathway0_res",
        "blocks.2.res_blocks.": "s3.pathway0_res",
        "blocks.3.res_blocks.": "s4.pathway0_res",
        "blocks.4.res_blocks.": "s5.pathway0_res",
        ".branch1_conv.": ".branch1.",
        ".branch1_norm.": ".branch1_bn.",
        ".norm_b.0.": ".b_bn.",
        ".norm_b.1.block.0.": ".se.fc1.",
        ".norm_b.1.block.2.": ".se.fc2.",
        ".norm_a.": ".a_bn.",
        ".norm_c.": ".c_bn.",
        ".conv_a.": ".a.",
        ".conv_b.": ".b.",
        ".conv_c.": ".c.",
    }.items():
        name = name.replace(theirs, others)
    return name


def weights(size: Size, value: Callable[[str, tuple[int, ...]], Tensor] | None = None) -> dict[str, Tensor]:
    value = value or (lambda name, shape: torch.from_numpy(fill_tensor(name, shape)))
    state = {name: value(name, shape) for name, shape in pytorchvideo_shapes(DEPTHS[size])}
    for name in state:
        if name.endswith("norm_c.weight"):
            state[name] *= 0.3
    return state


@pytest.mark.parametrize(
    ("size", "logits"),
    [
        ("s", [-0.8832889, 0.8557993, -4.8136507, -3.4798610, -3.8108213, 5.3059874]),
        ("l", [1.1065098, 19.4687023, -14.4835434, -17.1737823, -18.6960392, 11.8037901]),
    ],
)
def test_it_is_pytorchvideos(size: Size, logits: list[float], tmp_path: Path) -> None:
    """The logits are those of pytorchvideo 0.1.5, `create_x3d`, with the same values under the same names."""
    state = weights(size)
    torch.save({"model_state": state}, tmp_path / "X3D.pyth")
    network, heads = X3d(depths=DEPTHS[size]).eval(), [X3dHead(432, 400).eval(), X3dHead(432, 400).eval()]
    assert load_kinetics400(network, heads, size=size, path=tmp_path / "X3D.pyth") == []
    clip = torch.from_numpy(fill_input("x3d", (1, 3, 4, 64, 64)))
    with torch.no_grad():
        maps = network(clip.transpose(1, 2).flatten(0, 1), num_frames=4)
        assert maps.shape == (4, 432, 2, 2)
        for head in heads:
            found = head(maps.mean((0, 2, 3)))[:6]
            torch.testing.assert_close(found, torch.tensor(logits), atol=1e-4, rtol=1e-4)


def test_pyslowfasts_weights_are_the_same_and_have_one_norm_more(tmp_path: Path) -> None:
    state = weights("s")
    renamed = {pyslowfast_name(name): value for name, value in state.items()}
    assert not any("blocks" in name for name in renamed)
    for part, value in (("weight", 1.0), ("bias", 0.5), ("running_mean", 0.0), ("running_var", 4.0)):
        renamed[f"s2.pathway0_res0.branch1_bn.{part}"] = torch.full((24,), value)
    renamed["s2.pathway0_res0.branch1_bn.num_batches_tracked"] = torch.tensor(7)
    ours, theirs = convert(renamed), convert(state)
    assert ours.keys() == theirs.keys()
    different = {name for name in ours if not torch.equal(ours[name], theirs[name])}
    assert different == {
        f"stages.0.0.shortcut.1.{part}" for part in ("weight", "bias", "running_var", "num_batches_tracked")
    }
    torch.save(renamed, tmp_path / "x3d_s.pyth")
    load_kinetics400(X3d(), [], size="s", path=tmp_path / "x3d_s.pyth")


def test_a_head_for_other_classes_keeps_its_projection(tmp_path: Path) -> None:
    state = weights("s")
    torch.save(state, tmp_path / "x3d_s.pyth")
    head = X3dHead(432, 7)
    before = head.projection.weight.detach().clone()
    fresh = load_kinetics400(X3d(), [head], size="s", path=tmp_path / "x3d_s.pyth")
    assert fresh == ["projection.weight", "projection.bias"]
    assert torch.equal(head.projection.weight, before)
    assert torch.equal(head.lin5.weight, state["blocks.5.pool.post_conv.weight"].flatten(1))


def test_weights_of_another_depth_are_refused(tmp_path: Path) -> None:
    torch.save(weights("s"), tmp_path / "x3d_s.pyth")
    with pytest.raises(CheckpointError, match="keys missing"):
        load_kinetics400(X3d(depths=DEPTHS["l"]), [], size="l", path=tmp_path / "x3d_s.pyth")


def test_weights_that_cannot_be_fetched_say_where_a_copy_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))

    def offline(*_: object, **__: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    with pytest.raises(
        CheckpointError, match=r"X3D_S\.pyth: not to be had \(no network\); put a copy of the file into"
    ):
        load_kinetics400(X3d(), [], size="s")
    (tmp_path / "hub" / "checkpoints" / "X3D_S.pyth").parent.mkdir(parents=True, exist_ok=True)
    torch.save(weights("s"), tmp_path / "hub" / "checkpoints" / "X3D_S.pyth")
    load_kinetics400(X3d(), [], size="s")


@pytest.mark.parametrize(
    ("size", "num_frames", "side", "num_params", "macs"),
    [("s", 16, 160, 3_794_274, 2_415_437_312), ("l", 32, 128, 6_153_384, 5_984_488_160)],
)
def test_size_and_cost_are_the_published_ones(
    size: Size, num_frames: int, side: int, num_params: int, macs: int
) -> None:
    with torch.device("meta"):
        network, head = X3d(depths=DEPTHS[size]), X3dHead(432, 400)
        with counting_macs() as counter:
            maps = network(torch.empty(num_frames, 3, side, side), num_frames=num_frames)
            head(maps.mean((0, 2, 3)))
    extra_norm = 2 * 24
    parameters = [*network.parameters(), *head.parameters()]
    assert sum(parameter.numel() for parameter in parameters) == num_params + extra_norm
    assert counter.macs == macs


def test_frames_of_other_clips_change_nothing() -> None:
    torch.manual_seed(0)
    network = X3d(depths=(2, 1), widths=(8, 16)).eval()
    for name, value in network.named_parameters():
        if name.endswith("norm_c.weight"):
            torch.nn.init.ones_(value)
    clips = torch.randn(2, 3, 3, 32, 32)
    changed = clips.clone()
    changed[0, 0] += 1
    with torch.no_grad():
        before, after = (network(x.flatten(0, 1), num_frames=3).view(2, 3, -1) for x in (clips, changed))
    assert (before != after).any(-1).tolist() == [[True, True, True], [False, False, False]]


def test_widths_round_to_eights() -> None:
    assert [round_width(0.0625 * width) for width in (54, 108, 216, 432)] == [8, 8, 16, 32]


def test_depths_and_widths_go_together() -> None:
    with pytest.raises(ValueError, match="one depth and one width a stage"):
        X3d(depths=(1, 2), widths=(8,))
