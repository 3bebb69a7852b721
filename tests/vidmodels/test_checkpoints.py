import os
import pickle
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from vidmodels.checkpoints import (
    CheckpointError,
    TrainingState,
    load_checkpoint,
    load_into,
    load_training,
    read_metadata,
    rename,
    save_training,
    save_weights,
)
from vidprep.errors import UsageError

STATE = {"stem.weight": torch.arange(6.0).reshape(2, 3), "head.bias": torch.zeros(2)}


class Malicious:
    """A pickle that makes a folder when it is loaded."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("protocol", [2, 4])
def test_pickled_arrays_are_read_as_tensors(tmp_path: Path, protocol: int) -> None:
    content = {"model": {name: tensor.numpy() for name, tensor in STATE.items()}, "__author__": "someone"}
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(content, protocol=protocol))
    state = load_checkpoint(tmp_path / "a.pkl")
    assert state.keys() == STATE.keys()
    assert all(torch.equal(state[name], STATE[name]) for name in STATE)


def test_pickles_of_more_than_arrays_are_refused_unexecuted(tmp_path: Path) -> None:
    (tmp_path / "a.pkl").write_bytes(pickle.dumps({"model": Malicious(tmp_path / "made")}))
    with pytest.raises(CheckpointError, match=r"it asks for \w+\.mkdir, which weights never need"):
        load_checkpoint(tmp_path / "a.pkl")
    assert not (tmp_path / "made").exists()
    whole = pickle.dumps({"model": {name: tensor.numpy() for name, tensor in STATE.items()}})
    (tmp_path / "cut.pkl").write_bytes(whole[:40])
    with pytest.raises(CheckpointError, match="cut short or no pickle of arrays"):
        load_checkpoint(tmp_path / "cut.pkl")


@pytest.mark.parametrize("name", ["a.pth", "a.pt", "a.pth.tar"])
@pytest.mark.parametrize("wrapped", [True, False])
@pytest.mark.parametrize("zipped", [True, False])
def test_pytorch_files_are_read_and_unwrapped(tmp_path: Path, name: str, wrapped: bool, zipped: bool) -> None:
    path = tmp_path / name
    torch.save({"state_dict": STATE, "epoch": 3} if wrapped else STATE, path, _use_new_zipfile_serialization=zipped)
    state = load_checkpoint(path)
    assert list(state) == list(STATE)
    torch.testing.assert_close(state, STATE, rtol=0, atol=0)


def test_safetensors_come_back_with_their_metadata(tmp_path: Path) -> None:
    path = tmp_path / "best.safetensors"
    save_weights(path, {**STATE, "slice": torch.arange(8.0)[::2]}, {"method": "taps"})
    torch.testing.assert_close(load_checkpoint(path)["slice"], torch.tensor([0.0, 2, 4, 6]), rtol=0, atol=0)
    assert read_metadata(path) == {"method": "taps"}
    assert [entry.name for entry in tmp_path.iterdir()] == ["best.safetensors"]


@pytest.mark.parametrize("how", ["zip", "legacy", "plain pickle"])
def test_a_malicious_pickle_is_one_sentence_and_executes_nothing(tmp_path: Path, how: str) -> None:
    path, evidence = tmp_path / "in.pth", tmp_path / "evidence"
    content = {"state_dict": Malicious(evidence)}
    if how == "plain pickle":
        path.write_bytes(pickle.dumps(content, protocol=2))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=how == "zip")
    with pytest.raises(CheckpointError, match=r"in\.pth: it asks for posix\.mkdir.*nothing of it was executed"):
        load_checkpoint(path)
    assert not evidence.exists()


def test_a_pickle_of_a_newer_protocol_is_refused_too(tmp_path: Path) -> None:
    path, evidence = tmp_path / "in.pth", tmp_path / "evidence"
    path.write_bytes(pickle.dumps(Malicious(evidence), protocol=4))
    with pytest.raises(CheckpointError, match="nothing of it was executed"):
        load_checkpoint(path)
    assert not evidence.exists()


def test_files_cut_short_say_so(tmp_path: Path) -> None:
    for name, whole in (("a.pth", True), ("a.safetensors", False)):
        path = tmp_path / name
        if whole:
            torch.save(STATE, path)
        else:
            save_weights(path, STATE, {})
        path.write_bytes(path.read_bytes()[:-30])
        with pytest.raises(CheckpointError, match=r"cut short|not a whole safetensors file"):
            load_checkpoint(path)


@pytest.mark.parametrize("content", [b"", b"hello world", b"\x80\x02}q\x00.", b"\x89PNG\r\n\x1a\n"])
def test_files_that_are_no_checkpoint_say_so(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.pth"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"a\.pth: "):
        load_checkpoint(path)


def test_a_file_without_a_state_dict_says_what_it_holds(tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    torch.save({"epoch": 3, "lr": 0.1, "weight": torch.zeros(1)}, path)
    with pytest.raises(CheckpointError, match="2 of 3 entries are no tensors, such as epoch, lr"):
        load_checkpoint(path)
    torch.save([torch.zeros(1)], path)
    with pytest.raises(CheckpointError, match="found a list"):
        load_checkpoint(path)


def test_a_missing_file_and_an_unknown_ending_are_wrong_questions(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such checkpoint file"):
        load_checkpoint(tmp_path / "a.pth")
    (tmp_path / "a.zip").write_bytes(b"")
    with pytest.raises(UsageError, match=r"expected a file ending in \.safetensors, \.pth"):
        load_checkpoint(tmp_path / "a.zip")


def test_renaming_carries_wildcards_over_and_drops_on_purpose() -> None:
    state = {"module.layer1.0.conv1.weight": torch.zeros(1), "module.layer2.3.conv1.weight": torch.ones(1)}
    state["module.layer2.3.unused.bias"] = torch.ones(2)
    table = {"module.layer{}.{}.conv1.{}": "stages.{}.{}.conv1.{}", "module.layer{}.{}.unused.bias": None}
    renamed = rename(state, table)
    assert list(renamed) == ["stages.1.0.conv1.weight", "stages.2.3.conv1.weight"]
    assert renamed["stages.2.3.conv1.weight"] is state["module.layer2.3.conv1.weight"]


def test_the_first_fitting_line_counts() -> None:
    assert list(rename({"a.x": torch.zeros(1), "a.y": torch.zeros(1)}, {"a.x": "first", "a.{}": "other.{}"})) == [
        "first",
        "other.y",
    ]


def test_a_wildcard_is_one_part_of_a_name() -> None:
    with pytest.raises(CheckpointError, match=r"1 unexpected entries such as a\.b\.c"):
        rename({"a.b.c": torch.zeros(1), "a.b": torch.zeros(1)}, {"a.{}": "{}"})


def test_renaming_reports_all_that_does_not_fit() -> None:
    state = {f"extra{index}": torch.zeros(1) for index in range(5)} | {"a": torch.zeros(1), "b": torch.zeros(1)}
    with pytest.raises(
        CheckpointError,
        match=r"5 unexpected entries such as extra0, extra1, extra2, \.\.\.; 1 expected entries missing such as fc; "
        r"1 entries given twice such as same",
    ):
        rename(state, {"fc": "head", "a": "same", "b": "same"})


def test_loading_is_strict_and_counts_what_differs() -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2))
    state = {"0.weight": torch.zeros(2, 3), "0.bias": torch.zeros(4), "1.weight": torch.zeros(2, 2), "x": torch.ones(1)}
    with pytest.raises(
        CheckpointError,
        match=r"a\.pth: checkpoint of another model: 1 keys missing such as 1\.bias; 1 unknown keys such as x; "
        r"1 of another shape such as 0\.bias \(4,\) instead of \(2,\)",
    ):
        load_into(model, state, "a.pth")
    with pytest.raises(CheckpointError, match=r"checkpoint of another method: 4 keys missing such as 0\.weight"):
        load_into(model, {"y": torch.ones(1)}, "a.pth")


def test_loading_puts_every_tensor_in() -> None:
    model, other = nn.Linear(3, 2), nn.Linear(3, 2)
    load_into(model, other.state_dict(), "other")
    torch.testing.assert_close(model.state_dict(), other.state_dict(), rtol=0, atol=0)


def training_state() -> TrainingState:
    model = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    return TrainingState(
        epochs_done=3,
        state_dict=model.state_dict(),
        optimizer=optimizer.state_dict(),
        scaler={},
        gradients={"weight": torch.ones(2, 3)},
    )


def test_the_state_of_a_training_run_comes_back(tmp_path: Path) -> None:
    path, state = tmp_path / "last.pt", training_state()
    save_training(path, state)
    back = load_training(path)
    assert back.epochs_done == 3
    torch.testing.assert_close(back.state_dict, dict(state.state_dict), rtol=0, atol=0)
    torch.testing.assert_close(back.optimizer["state"], dict(state.optimizer)["state"], rtol=0, atol=0)
    assert list(load_checkpoint(path)) == ["weight", "bias"]  # so `eval RUN/last.pt` works


def test_weights_are_no_training_state(tmp_path: Path) -> None:
    torch.save(STATE, tmp_path / "last.pt")
    with pytest.raises(CheckpointError, match=r"expected the state of a training run, found a dictionary of stem"):
        load_training(tmp_path / "last.pt")


@pytest.mark.skipif(sys.platform != "linux", reason="needs /dev/full")
@pytest.mark.parametrize("name", ["best.safetensors", "last.pt"])
def test_a_full_disk_keeps_the_file_that_was_there(tmp_path: Path, name: str) -> None:
    def save(path: Path) -> None:
        if name == "last.pt":
            save_training(path, training_state())
        else:
            save_weights(path, STATE, {})

    path = tmp_path / name
    path.write_bytes(b"before")
    (tmp_path / f"{name}.part").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left"):
        save(path)
    assert path.read_bytes() == b"before"
    assert [entry.name for entry in tmp_path.iterdir()] == [name]
