from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vidprep import splits
from vidprep.cli import main
from vidprep.datasets import BOX_READERS, DATASETS, toy_detection
from vidprep.datasets.imagenet_vid import annotation_folder
from vidprep.errors import UsageError
from vidprep.load import ShardDataset


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toy_detection, "NUM_SEQUENCES", {"train": 2, "val": 1})


@pytest.mark.parametrize("split", ["train", "val"])
def test_shipped_list_is_the_generated_one(split: str) -> None:
    assert splits.read_packaged("toy_detection", f"{split}.csv") == splits.split_to_csv(
        toy_detection.build_split(split)
    )
    assert splits.read_classes("toy_detection") == toy_detection.CLASSES


def test_every_data_set_with_boxes_has_a_reader_for_them() -> None:
    assert set(BOX_READERS) == {name for name, info in DATASETS.items() if info.task == "detection"}


def test_boxes_enclose_the_pixels_of_their_shapes() -> None:
    frames, annotations = toy_detection.render_sequence("train", 1)  # one shape
    first = next(found for found in annotations if found.boxes)
    background = np.median(frames.astype(np.float64), axis=0)
    [box] = first.boxes
    left, top, right, bottom = (int(value) for value in box.xyxy)
    differs = np.abs(frames[first.frame_index] - background).max(-1) > 40
    rows, columns = np.nonzero(differs)
    assert len(rows) > 50
    # a pixel that is covered by less than half belongs to the soft edge, outside of the box
    assert (abs(rows.min() - top), abs(columns.min() - left)) <= (1, 1)
    assert rows.max() <= bottom
    assert columns.max() <= right


def test_every_split_shows_every_class() -> None:
    for split, count in toy_detection.NUM_SEQUENCES.items():
        firsts = [toy_detection.render_sequence(split, number)[1][-1].boxes[0].label for number in range(min(count, 8))]
        assert firsts == [number % 4 for number in range(8)]


def test_all_classes_speeds_and_empty_frames_occur() -> None:
    labels: set[int] = set()
    num_empty = num_occluded = 0
    for number in range(12):
        _, annotations = toy_detection.render_sequence("train", number)
        labels |= {box.label for found in annotations for box in found.boxes}
        num_empty += sum(not found.boxes for found in annotations)
        num_occluded += sum(box.is_occluded for found in annotations for box in found.boxes)
    assert labels == {0, 1, 2, 3}
    assert num_empty > 0
    assert num_occluded > 0


def test_the_command_writes_frames_and_boxes_that_become_shards(tmp_path: Path, few: None) -> None:
    root = tmp_path / "data"
    toy_detection.generate(root)
    frames = root / "Data/VID/train/train_00"
    assert len(list(frames.glob("*.JPEG"))) == toy_detection.NUM_FRAMES
    rendered, annotations = toy_detection.render_sequence("train", 0)
    assert toy_detection.read_annotations(annotation_folder(frames)) == annotations
    stored = np.asarray(Image.open(frames / "000003.JPEG")).astype(int)
    assert np.abs(stored - rendered[3]).mean() < 4
    before = (frames / "000003.JPEG").stat().st_mtime_ns
    toy_detection.generate(root)
    assert (frames / "000003.JPEG").stat().st_mtime_ns == before


def test_an_interrupted_call_leaves_no_half_folder(tmp_path: Path, few: None, monkeypatch: pytest.MonkeyPatch) -> None:
    write_bytes, calls = Path.write_bytes, []

    def write_until_interrupted(path: Path, data: bytes) -> int:
        calls.append(path)
        if len(calls) == 30:
            raise KeyboardInterrupt
        return write_bytes(path, data)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "write_bytes", write_until_interrupted)
        with pytest.raises(KeyboardInterrupt):
            toy_detection.generate(tmp_path)
    assert not [path for path in tmp_path.rglob("train_00") if path.parent.parent.parent.name == "Data"]
    toy_detection.generate(tmp_path)
    assert len(list(tmp_path.rglob("*.JPEG"))) == 3 * toy_detection.NUM_FRAMES
    assert not list(tmp_path.rglob("*.part"))


def test_a_file_in_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    with pytest.raises(UsageError, match="is a file; give a folder for the toy data set"):
        toy_detection.generate(tmp_path / "a")


def test_from_the_command_line_to_boxes_in_a_sample(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*arguments: object) -> int:
        monkeypatch.setattr("sys.argv", ["vidprep", *map(str, arguments)])
        return main()

    assert run("toy", "toy_detection", "--data-root", tmp_path / "data", "--workers", 1) == 0
    assert "40 sequences of 4 classes" in capsys.readouterr().out
    where = ("--dataset", "toy_detection", "--data-root", tmp_path / "data", "--split", "val")
    assert run("verify", *where, "--workers", 1) == 0
    assert run("shard", *where, "--out", tmp_path / "shards", "--workers", 1) == 0
    dataset = ShardDataset(tmp_path / "shards", num_frames=1, fit="pad", resize=96, crop=128)
    assert len(dataset) == 8
    targets = dataset[0].targets
    assert targets is not None
    assert len(targets[0][0].boxes) == len(toy_detection.render_sequence("val", 0)[1][12].boxes)
    assert run("toy", "toys", "--data-root", tmp_path / "data") == 2
    assert "no generated data set 'toys'; did you mean toy" in capsys.readouterr().err
