import os
from collections import Counter
from pathlib import Path

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from vidprep import datasets, splits
from vidprep.datasets import toy
from vidprep.engine import CannotWrite
from vidprep.errors import UsageError


@pytest.fixture
def few_scenes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toy, "NUM_SCENES", {"train": 2, "val": 1})


def files_below(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


@pytest.mark.parametrize("split", ["train", "val"])
def test_shipped_list_is_the_generated_one(split: str) -> None:
    assert splits.read_packaged("toy", f"{split}.csv") == splits.split_to_csv(toy.build_split(split))
    assert splits.read_classes("toy") == toy.CLASSES


@pytest.mark.parametrize(("split", "per_class"), [("train", 50), ("val", 20)])
def test_classes_are_equally_frequent_from_the_first_rows_on(split: str, per_class: int) -> None:
    labels = [video.labels[0] for video in toy.build_split(split).videos]
    assert Counter(labels) == dict.fromkeys(range(8), per_class)
    assert sorted(labels[:8]) == list(range(8))


def test_same_bytes_each_time_with_one_worker_and_with_two(tmp_path: Path, few_scenes: None) -> None:
    toy.generate(tmp_path / "a", workers=1)
    toy.generate(tmp_path / "b", workers=2)
    files = files_below(tmp_path / "a")
    assert files == files_below(tmp_path / "b")
    assert sorted(files) == sorted(
        f"videos/{split}/{video.video_id}.mp4" for split in ("train", "val") for video in toy.build_split(split).videos
    )


def test_same_frames_encode_to_the_same_bytes() -> None:
    frames = toy.render_clip("train", 0, 1)
    assert len({toy._encode(frames) for _ in range(10)}) == 1


def test_second_call_writes_only_what_is_missing(tmp_path: Path, few_scenes: None) -> None:
    toy.generate(tmp_path)
    before = files_below(tmp_path)
    kept, lost = tmp_path / "videos/val/val_00_up.mp4", tmp_path / "videos/val/val_00_down.mp4"
    os.utime(kept, (1, 1))
    lost.unlink()
    (tmp_path / "videos/val/val_00_left.mp4.4000000.part").touch()
    toy.generate(tmp_path)
    assert kept.stat().st_mtime == 1
    assert files_below(tmp_path) == before


def test_interrupted_call_leaves_whole_files_and_is_repeated(
    tmp_path: Path, few_scenes: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode, calls = toy._encode, []

    def encode_until_interrupted(frames: NDArray[np.uint8]) -> bytes:
        calls.append(1)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return encode(frames)

    toy.generate(tmp_path / "undisturbed")
    monkeypatch.setattr(toy, "_encode", encode_until_interrupted)
    with pytest.raises(KeyboardInterrupt):
        toy.generate(tmp_path / "interrupted")
    assert len(files_below(tmp_path / "interrupted")) == 4
    toy.generate(tmp_path / "interrupted")
    assert files_below(tmp_path / "interrupted") == files_below(tmp_path / "undisturbed")


def test_data_root_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="file: is a file; give a folder"):
        toy.generate(tmp_path / "file")
    with pytest.raises(CannotWrite, match="cannot be written"):
        toy.generate(tmp_path / "file" / "below")


def test_clip_is_h264_of_two_seconds_and_close_to_what_was_drawn(tmp_path: Path, few_scenes: None) -> None:
    toy.generate(tmp_path)
    split = toy.build_split("val")
    paths = datasets.locate(toy.INFO, split, tmp_path)
    assert list(paths) == [video.video_id for video in split.videos]
    with av.open(paths["val_00_up-left"]) as container:
        stream = container.streams.video[0]
        assert stream.codec_context.name == "h264"
        assert stream.frames == 30
        assert stream.average_rate == 15
        decoded = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(stream)])
        assert stream.duration is not None
        assert stream.time_base is not None
        assert stream.duration * stream.time_base == 2
    drawn = toy.render_clip("val", 0, toy.CLASSES.index("up-left"))
    assert decoded.shape == drawn.shape == (30, 96, 96, 3)
    assert np.abs(decoded.astype(int) - drawn).mean() < 6  # of 255: chroma is kept at half the resolution


def displacement(before: NDArray[np.uint8], after: NDArray[np.uint8]) -> tuple[int, int]:
    """(down, right) in whole pixels by which `after` is shifted around the torus, from phase correlation."""
    spectra = [np.fft.fft2(frame.mean(axis=2) - frame.mean()) for frame in (before, after)]
    cross = np.conj(spectra[0]) * spectra[1]
    surface = np.fft.ifft2(cross).real
    down, right = np.unravel_index(np.argmax(surface), surface.shape)
    return (int(down) + 48) % 96 - 48, (int(right) + 48) % 96 - 48


@pytest.mark.parametrize("label", range(8))
def test_shapes_drift_the_way_the_class_says(label: int) -> None:
    frames = toy.render_clip("train", 3, label)
    down, right = displacement(frames[10], frames[14])
    angle = np.degrees(np.arctan2(-down, right))
    assert abs((angle - label * 45 + 180) % 360 - 180) < 15
    assert 4 <= np.hypot(down, right) <= 9


def test_mirrored_clip_is_one_of_the_flipped_class() -> None:
    for label, flipped in toy.INFO.flip_pairs.items():
        frames = toy.render_clip("train", 3, label)[:, :, ::-1]
        down, right = displacement(frames[10], frames[14])
        angle = np.degrees(np.arctan2(-down, right))
        assert abs((angle - flipped * 45 + 180) % 360 - 180) < 15


def test_clips_of_a_scene_share_its_shapes_colours_and_background() -> None:
    colours, still = [], []
    for label in range(8):
        frames = toy.render_clip("val", 5, label)
        colours.append(frames.mean(axis=(0, 1, 2)))
        still.append(np.median(frames, axis=0))  # what the shapes cover only now and then
    assert np.ptp(colours, axis=0).max() < 2  # of 255
    for background in still[1:]:
        assert np.mean(np.abs(background - still[0]).max(axis=2) <= 1) > 0.3


@pytest.fixture(scope="module")
def small_pictures() -> dict[str, NDArray[np.float64]]:
    """(scene, class, t, 12 * 12 * 3) pictures of every frame, reduced eightfold."""
    return {
        split: np.array(
            [
                [
                    toy.render_clip(split, scene, label).reshape(-1, 12, 8, 12, 8, 3).mean(axis=(2, 4)).reshape(30, -1)
                    / 255
                    for label in range(8)
                ]
                for scene in range(num_scenes)
            ]
        )
        for split, num_scenes in {"train": 20, "val": 20}.items()
    }


@pytest.mark.parametrize("only_middle", [True, False], ids=["middle frame", "any frame"])
def test_single_frame_says_nothing_about_the_class(
    small_pictures: dict[str, NDArray[np.float64]], rng: np.random.Generator, only_middle: bool
) -> None:
    pictures, labels = {}, {}
    for split, clips in small_pictures.items():
        num_clips = clips.shape[0] * clips.shape[1]
        frame_index = np.full(num_clips, 15) if only_middle else rng.integers(30, size=num_clips)
        pictures[split] = clips.reshape(num_clips, 30, -1)[np.arange(num_clips), frame_index]
        labels[split] = np.arange(num_clips) % 8
    train, val = (pictures[split] - pictures["train"].mean(axis=0) for split in ("train", "val"))
    weights = np.linalg.solve(train.T @ train + 10.0 * np.eye(train.shape[1]), train.T @ np.eye(8)[labels["train"]])
    nearest = ((val[:, None] - train[None]) ** 2).sum(axis=2).argmin(axis=1)
    for predicted in ((val @ weights).argmax(axis=1), labels["train"][nearest]):
        # chance is 0.125; 160 clips: + 4 standard deviations of 0.026
        assert (predicted == labels["val"]).mean() < 0.23


@pytest.mark.slow
def test_the_whole_set_is_made_once(tmp_path: Path) -> None:
    toy.generate(tmp_path, workers=2)
    written = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.mp4")}
    toy.generate(tmp_path, workers=2)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.mp4")} == written
    for split, num_videos in toy.INFO.splits.items():
        assert len(datasets.locate(toy.INFO, toy.build_split(split), tmp_path)) == num_videos
