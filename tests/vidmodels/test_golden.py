import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vidmodels.golden import (
    COMPONENTS,
    GoldenError,
    compare,
    fill_input,
    fill_smooth,
    fill_tensor,
    run_case,
    transform,
    verify,
    verify_command,
)
from vidmodels.methods import METHODS
from vidprep.errors import UsageError

CASES = Path(__file__).parents[1] / "golden"
WHOLE_NETWORKS = {
    "network",
    "early_exit_network",
    "tsm_network",
    "cascade_network",
    "training_step",
    "tsm_training_step",
}
MANY_VALUES = 100_000_000


def cases(*, whole_networks: bool) -> list[str]:
    """Cases by the time they take: whole networks have up to 374 million values to fill."""
    names = []
    for path in sorted(CASES.rglob("*.json")):
        case = json.loads(path.read_text())
        num_values = sum(math.prod(shape) for shape in case.get("state_dict", {}).values())
        if (case["component"] in WHOLE_NETWORKS or num_values >= MANY_VALUES) == whole_networks:
            names.append(str(path.relative_to(CASES)))
    return names


@pytest.mark.parametrize("name", cases(whole_networks=False))
def test_golden(name: str) -> None:
    result = run_case(CASES / name)
    assert result.passed, result.line()
    assert result.worst <= 1


@pytest.mark.slow
@pytest.mark.parametrize("name", cases(whole_networks=True))
def test_golden_network(name: str) -> None:
    result = run_case(CASES / name)
    assert result.passed, result.line()


@pytest.mark.parametrize("method", METHODS)
def test_every_component_of_a_method_has_a_golden_case(method: str) -> None:
    present = {json.loads(path.read_text())["component"] for path in (CASES / method).glob("*.json")}
    assert present == set(COMPONENTS[method])


# ---- filling ----


def test_values_follow_from_names_and_shapes_alone() -> None:
    assert fill_tensor("a.bn1.num_batches_tracked", []).dtype == np.int64
    assert fill_tensor("a.bn1.running_var", [1000]).min() >= 0.5
    assert fill_tensor("a.conv.weight", [4, 8, 3, 3]).std() == pytest.approx((2 / 72) ** 0.5, rel=0.1)
    assert fill_tensor("a.bn1.weight", [1000]).mean() == pytest.approx(1, abs=0.01)
    assert fill_tensor("a.bn1.bias", [1000]).std() == pytest.approx(0.02, rel=0.1)
    assert fill_tensor("a.scale", []).shape == ()
    # The stream itself, so that a change of NumPy's would show here.
    expected = np.array([0.06756716966629028, 0.028352491557598114, 0.023427171632647514], dtype=np.float32)
    np.testing.assert_array_equal(fill_tensor("stem.running_mean", [3]), expected)


def test_smooth_clips_add_a_little_to_each_frame() -> None:
    clip = fill_smooth("a", [2, 5, 3, 16, 16])
    assert clip.shape == (2, 5, 3, 16, 16)
    assert clip.dtype == np.float32
    assert np.diff(clip, axis=1).std() == pytest.approx(0.15, rel=0.05)
    assert clip[:, 0].std() == pytest.approx(1, rel=0.05)


GRID = np.arange(4, dtype=np.float32).reshape(2, 2, 1)
FRAMES = np.arange(8, dtype=np.float32).reshape(2, 1, 2, 2)


@pytest.mark.parametrize(
    ("step", "v", "expected"),
    [
        ("abs", [-1.5, 2], [1.5, 2]),
        ("mul:2", [1, 2], [2, 4]),
        ("add:-1", [1, 2], [0, 1]),
        ("greater:0.3", [0.2, 0.4], [0, 1]),
        ("softmax", [[0, 0]], [[0.5, 0.5]]),
        ("sum_to_one", [[1, 3]], [[0.25, 0.75]]),
        ("drop_last_axis", [[1, 2], [3, 4]], [1, 3]),
        ("uint8_128_48", [-9, 0.03125, 9], [0, 130, 255]),  # 129.5 to the even neighbour
        ("uint8_trunc_127_40", [-9, 0.06, 9], [0, 129, 255]),
        ("uint8", [0.5, 1.5, 300], [0, 2, 255]),
        ("clip_0_1", [-1, 0.5, 2], [0, 0.5, 1]),
        ("relu", [-1, 1], [0, 1]),
        ("repeat_cells:2:3:4", GRID, [[[0], [0], [1], [1]], [[0], [0], [1], [1]], [[2], [2], [3], [3]]]),
        ("roll_odd_frames", FRAMES, [[[[0, 1], [2, 3]]], [[[7, 6], [5, 4]]]]),
        ("grid_to_tokens", FRAMES, [[[0], [1], [2], [3]], [[4], [5], [6], [7]]]),
        ("ties_2x2_row1", [[0, 1, 2, 3], [4, 5, 6, 7]], [[0, 1, 2, 3], [4, 4, 4, 4]]),
    ],
)
def test_transforms(step: str, v: Any, expected: Any) -> None:
    np.testing.assert_array_equal(transform(np.asarray(v, dtype=np.float32), step), expected)


def test_transforms_of_clips() -> None:
    clip = np.arange(2 * 3 * 1 * 1 * 32, dtype=np.float32).reshape(2, 3, 1, 1, 32)
    assert transform(clip, "permute_tc").shape == (2, 1, 3, 1, 32)
    drifted = transform(clip[0], "drift_right_16")
    assert [frame[0, 0, 0] for frame in drifted] == [0, 32, 64 + 16]
    added = transform(clip, "add_input:0.5:a:b")
    np.testing.assert_array_equal(added, clip + np.float32(0.5) * fill_input("a:b", clip.shape))


def test_an_unknown_transform_is_named() -> None:
    with pytest.raises(GoldenError, match="no transform 'sofmax' for an input; did you mean softmax"):
        transform(np.zeros(1), "sofmax")


# ---- comparing ----


@pytest.mark.parametrize(
    ("ours", "stored", "rule", "ratio"),
    [
        ([1.0, 2.0], [1.0, 2.1], {"abs": 0.2}, 0.5),
        ([100.0, 0.0], [101.0, 0.0], {"rel": 0.1}, 1 / 10.1),
        ([100.0], [101.0], {"abs": 0.1, "rel": 0.1}, 1 / 10.1),
        ([3, 1, 2], [1, 2, 3], {"sets": True}, 0),
        ([1, 2], [1.0, 2.0], {"exact": True}, 0),
        ([16777217], np.array([16777216], dtype=np.float32), {"exact": True}, 0),
        ([], [], {"abs": 1.0}, 0),
    ],
)
def test_outputs_that_agree(ours: Any, stored: Any, rule: dict[str, Any], ratio: float) -> None:
    comparison = compare(np.asarray(ours), np.asarray(stored), rule)
    assert not comparison.fault
    assert comparison.ratio == pytest.approx(ratio)


@pytest.mark.parametrize(
    ("ours", "stored", "rule", "fault"),
    [
        ([1.0, 2.0], [1.0, 2.5], {"abs": 0.2}, "off by 0.5, tolerance 0.2"),
        ([1.0], [1.0, 2.5], {"abs": 0.2}, r"shape \(1,\), expected \(2,\)"),
        ([float("nan")], [1.0], {"abs": 0.2}, "off by nan"),
        ([1, 2, 3], [1, 2, 4], {"exact": True}, "1 of 3 values differ, by up to 1"),
        ([256], np.array([0], dtype=np.uint8), {"exact": True}, "1 of 1 values differ"),
        ([[1, 2], [3, 4]], [[2, 1], [3, 5]], {"sets": True}, "1 sets differ"),
    ],
)
def test_outputs_that_differ(ours: Any, stored: Any, rule: dict[str, Any], fault: str) -> None:
    comparison = compare(np.asarray(ours), np.asarray(stored), rule)
    assert comparison.ratio > 1
    with pytest.raises(GoldenError, match=fault):
        raise GoldenError(comparison.fault)


def test_boxes_match_in_any_order_but_only_once() -> None:
    stored = np.array([[0, 0, 10, 10, 0.9, 1], [20, 20, 30, 30, 0.8, 2], [0, 0, 0, 0, 0, -1]])
    rule = {"boxes": {"box": 1.0, "score": 0.05, "share": 1.0}}
    assert not compare(stored[[1, 0]] + 0.01 * np.array([1, 1, 1, 1, 1, 0]), stored, rule).fault
    assert compare(stored[[0, 0]], stored, rule).fault == "1 of 2 boxes match at index 0, 1 of them must"
    assert not compare(stored[[0, 0]], stored, {"boxes": {"box": 1.0, "score": 0.05, "share": 0.5}}).fault
    relabelled = stored * np.array([1, 1, 1, 1, 1, 2])
    assert compare(relabelled, stored, rule).fault
    assert not compare(stored[None, :2, :5], stored[None, :2, :5], rule).fault


def test_an_unknown_rule_is_refused() -> None:
    with pytest.raises(GoldenError, match="no way to compare by the rule"):
        compare(np.zeros(1), np.zeros(1), {"about": 1})


# ---- the command ----


def write_case(folder: Path, name: str, **changes: Any) -> Path:
    """A copy of the case `shift_modes` with changed fields."""
    content = json.loads((CASES / "taps" / "shift_modes.json").read_text())
    path = folder / f"{name}.json"
    path.write_text(json.dumps(content | {"case": name} | changes))
    shutil.copy(CASES / "taps" / "shift_modes.npz", path.with_suffix(".npz"))
    return path


def test_a_line_a_case_then_the_count(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_case(tmp_path, "good")
    (tmp_path / "more").mkdir()
    write_case(tmp_path / "more", "other", component="shift")
    assert verify_command([tmp_path]) == 1
    first, second, last = capsys.readouterr().out.splitlines()
    assert first.startswith("ok    taps/temporal_shift good  largest error 0")
    assert second.startswith(
        "FAIL  taps/shift other  taps has no golden component 'shift'; did you mean temporal_shift"
    )
    assert last == "1 passed, 1 failed"
    assert verify_command([tmp_path / "good.json", tmp_path / "good.npz"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "1 passed, 0 failed"


def test_a_case_whose_name_has_two_lines_gets_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_case(tmp_path, "good", case="two\nlines")
    assert verify_command([tmp_path]) == 0
    assert capsys.readouterr().out.splitlines()[0].startswith("ok    taps/temporal_shift two lines  ")


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:200])


def _remove(path: Path) -> None:
    path.unlink()


@pytest.mark.parametrize("damage", [_cut, _remove])
@pytest.mark.parametrize(
    ("suffix", "sentence"), [(".npz", "no readable arrays beside"), (".json", "not a readable JSON")]
)
def test_a_broken_case_fails_with_a_sentence(
    tmp_path: Path, damage: Callable[[Path], None], suffix: str, sentence: str
) -> None:
    path = write_case(tmp_path, "broken")
    if suffix == ".json" and damage is _remove:
        path = tmp_path / "broken.npz"
    damage(tmp_path / f"broken{suffix}")
    result = run_case(path.with_suffix(".json"))
    assert not result.passed
    assert sentence in result.faults[0]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"method": "tapz"}, "no method 'tapz' to run the case with; did you mean taps"),
        ({"outputs": {"unknown": {"exact": True}}}, "unknown: the npz holds no such array"),
        ({"config": {"num_frames": 5, "settings": {}}}, "offline_div8: not produced"),
        ({"config": {"num_frames": 5}}, "KeyError: 'settings'"),
        ({"outputs": {}}, "outputs: none of them is to be compared"),
        ({"outputs": {"online_div8": {"info": "kept"}}}, "outputs: none of them is to be compared"),
        (
            {"config": {"num_frames": 5, "settings": {"a": {"temporal_shift": "onlin", "shift_div": 8}}}},
            "no temporal shift 'onlin'; expected none, online, offline",
        ),
        ({"inputs": {"x": {"array": "y"}}}, "an input wants the array 'y', which the npz does not hold"),
        (
            {"inputs": {"x": {"fn": "fill_noise"}}},
            "no filling 'fill_noise' for an input; known: fill_input, fill_smooth",
        ),
        ({"inputs": {"x": {"fn": "fill_input", "name": "other", "shape": [10, 16, 2, 2]}}}, "values differ, by up to"),
    ],
)
def test_what_cannot_be_run_fails_with_a_sentence(tmp_path: Path, changes: dict[str, Any], sentence: str) -> None:
    result = run_case(write_case(tmp_path, "case", **changes))
    assert not result.passed
    assert sentence in "; ".join(result.faults)


def test_a_file_that_is_no_case_fails(tmp_path: Path) -> None:
    (tmp_path / "settings.json").write_text('{"case": "a"}')
    (result,) = verify([tmp_path])
    assert "not a golden case: it has no method, component, config, inputs, outputs" in result.faults[0]


def test_entries_that_are_not_converted_fail(tmp_path: Path) -> None:
    content = json.loads((CASES / "taps" / "policy_online.json").read_text())
    content["state_dict"][content["config"]["key_prefix"] + "gate_fc2.weight"] = [2, 2]
    (tmp_path / "case.json").write_text(json.dumps(content))
    shutil.copy(CASES / "taps" / "policy_online.npz", tmp_path / "case.npz")
    assert (
        "1 unexpected entries such as base_model.layer1.1.policy_net.gate_fc2.weight"
        in run_case(tmp_path / "case.json").faults[0]
    )


def test_there_must_be_cases(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no golden cases"):
        verify([tmp_path])
    with pytest.raises(UsageError, match="no such golden case or folder"):
        verify([tmp_path / "missing"])
