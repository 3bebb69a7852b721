import logging
import os
from pathlib import Path

import pytest

from vidprep import datasets
from vidprep.datasets.files import find_videos, is_video_name, walk_videos
from vidprep.errors import UsageError, VidprepError
from vidprep.splits import Split
from vidprep.types import Video

CLIP = "-QUuC_vJs-4_000084_000094"


def touch(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


def locate(name: str, root: Path, *video_ids: str) -> dict[str, Path]:
    info = datasets.get(name)
    videos = tuple(Video(video_id=video_id) for video_id in video_ids)
    return datasets.locate(info, Split(dataset=name, split="val", task=info.task, classes=(), videos=videos), root)


@pytest.mark.parametrize(
    "place",
    [
        f"val/{CLIP}.mp4",
        f"val/playing xylophone/{CLIP}.mkv",
        f"val/playing_xylophone/{CLIP}.webm",
        f"val/PLAYING-XYLOPHONE/{CLIP}.MP4",
        f"val/part_3/{CLIP}.avi",
        f"videos/val/{CLIP}.mp4",
        f"videos/val/playing xylophone/{CLIP}.mp4",
        f"videos_val/playing_xylophone/{CLIP}.mp4",
        f"replacement_for_corrupted_k400/{CLIP}.mp4",
        f"val_256/a class/{CLIP}.mov",
        f"{CLIP}.mp4",
    ],
)
def test_kinetics_clip_is_found_in_every_layout(tmp_path: Path, place: str) -> None:
    path = touch(tmp_path / place)
    touch(tmp_path / "val" / "another_000001_000002.mp4")
    assert locate("kinetics400", tmp_path, CLIP, "missing_000000_000010") == {CLIP: path}


@pytest.mark.parametrize(
    "place",
    [
        f"val/{CLIP}.mp4.part",
        f"val/.{CLIP}.mp4",
        f"val/.cache/{CLIP}.mp4",
        f"val/{CLIP}.txt",
        f"val/{CLIP.lower()}.mp4",
        f"val/{CLIP}.f137.mp4",
        f"frames/{CLIP}.mp4",
    ],
)
def test_file_that_is_not_the_video_is_not_taken_for_it(tmp_path: Path, place: str) -> None:
    touch(tmp_path / place)
    assert locate("kinetics400", tmp_path, CLIP) == {}


@pytest.mark.parametrize(
    "place", [f"val/{CLIP[:11]}.mp4", f"val/a class/{CLIP[:11]}.mkv", f"videos_val/{CLIP[:11]}.mp4"]
)
def test_clip_kept_under_its_youtube_id_alone_is_found(tmp_path: Path, place: str) -> None:
    path = touch(tmp_path / place)
    touch(tmp_path / "train" / f"{CLIP[:11]}.mp4")
    assert locate("kinetics400", tmp_path, CLIP, "missing_000000_000010") == {CLIP: path}
    whole = touch(tmp_path / "val" / f"{CLIP}.mp4")
    assert locate("kinetics400", tmp_path, CLIP) == {CLIP: whole}


def test_replacement_comes_before_the_corrupt_clip(tmp_path: Path) -> None:
    touch(tmp_path / "val" / f"{CLIP}.mp4")
    replacement = touch(tmp_path / "replacement" / f"{CLIP}.mp4")
    assert locate("kinetics400", tmp_path, CLIP) == {CLIP: replacement}


@pytest.mark.parametrize("place", ["val/{}.mp4", "val/a class/{}.mkv", "val_256/{}.mp4"])
def test_clip_named_by_the_old_crawler_is_found(tmp_path: Path, place: str) -> None:
    path = touch(tmp_path / place.format(f"{CLIP[:11]}_84"))
    for name in (f"{CLIP[:11]}_8", f"{CLIP[:11]}_840", f"{CLIP[:11]}_000085_000095"):
        touch(tmp_path / place.format(name))
    assert locate("kinetics400", tmp_path, CLIP, "missing_000000_000010") == {CLIP: path}
    whole = touch(tmp_path / place.format(CLIP))
    assert locate("kinetics400", tmp_path, CLIP) == {CLIP: whole}


@pytest.mark.parametrize("folder", ["replacement", "replacement_for_corrupted_k400/a class"])
def test_replacement_whose_times_differ_is_told_by_its_first_11_letters(tmp_path: Path, folder: str) -> None:
    corrupt = touch(tmp_path / "val" / f"{CLIP}.mp4")
    touch(tmp_path / folder / f"{CLIP[:10]}x_000085_000095.mp4")
    assert locate("kinetics400", tmp_path, CLIP) == {CLIP: corrupt}
    replacement = touch(tmp_path / folder / f"{CLIP[:11]}_000085_000095.mp4")
    assert locate("kinetics400", tmp_path, CLIP) == {CLIP: replacement}
    same_times = touch(tmp_path / folder / f"{CLIP}.mp4")
    assert locate("kinetics400", tmp_path, CLIP) == {CLIP: same_times}


def test_ids_that_differ_in_case_alone_are_two_videos(tmp_path: Path) -> None:
    paths = {video_id: touch(tmp_path / "val" / f"{video_id}.mp4") for video_id in (CLIP, CLIP.swapcase())}
    if len(list((tmp_path / "val").iterdir())) < 2:
        pytest.skip("the file system does not tell capitals from small letters")
    assert locate("kinetics400", tmp_path, *paths) == paths


def test_split_of_the_list_comes_before_other_folders(tmp_path: Path) -> None:
    touch(tmp_path / "train" / f"{CLIP}.mp4")
    path = touch(tmp_path / "val" / f"{CLIP}.mp4")
    assert locate("kinetics400", tmp_path, CLIP) == {CLIP: path}


@pytest.mark.parametrize("folder", ["v1-2/val", "v1-3/train_val", "missing_files", "."])
@pytest.mark.parametrize("suffix", ["mp4", "mkv", "webm"])
def test_activitynet_video_is_found_in_any_folder(tmp_path: Path, folder: str, suffix: str) -> None:
    path = touch(tmp_path / folder / f"v_--0edUL8zmA.{suffix}")
    touch(tmp_path / folder / "--1DO2V4K74.mp4")
    assert locate("activitynet", tmp_path, "--0edUL8zmA", "--1DO2V4K74") == {"--0edUL8zmA": path}


def test_two_files_of_one_video_are_refused_and_named(tmp_path: Path) -> None:
    first = touch(tmp_path / "missing_files" / "v_--0edUL8zmA.mkv")
    second = touch(tmp_path / "v1-3" / "train_val" / "v_--0edUL8zmA.mp4")
    with pytest.raises(VidprepError, match=f"--0edUL8zmA: two files, {first} and {second}; keep one of them"):
        locate("activitynet", tmp_path, "--0edUL8zmA")
    for folder in ("missing_files", "v1-3"):
        touch(tmp_path / folder / "v_another_one.mp4")
    with pytest.raises(VidprepError, match=r"and so for 1 other videos"):
        locate("activitynet", tmp_path, "--0edUL8zmA", "another_one")


def test_link_to_a_video_is_no_second_file(tmp_path: Path) -> None:
    path = touch(tmp_path / "a" / "v_--0edUL8zmA.mp4")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / path.name).symlink_to(path)
    assert locate("activitynet", tmp_path, "--0edUL8zmA") == {"--0edUL8zmA": path}


def test_linked_folders_are_entered_once(tmp_path: Path) -> None:
    elsewhere = tmp_path / "disk"
    touch(elsewhere / "a.mp4")
    root = tmp_path / "root"
    root.mkdir()
    (root / "videos").symlink_to(elsewhere)
    (elsewhere / "loop").symlink_to(root)
    assert list(walk_videos(root)) == ["videos/a.mp4"]


def test_folder_that_may_not_be_read_is_named_in_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    touch(tmp_path / "a.mp4")
    touch(tmp_path / "lost+found" / "b.mp4")
    scandir = os.scandir

    def scandir_of_other_users(folder: str) -> object:
        if "lost+found" in folder:
            raise PermissionError
        return scandir(folder)

    monkeypatch.setattr("vidprep.datasets.files.os.scandir", scandir_of_other_users)
    with caplog.at_level(logging.WARNING):
        assert list(walk_videos(tmp_path)) == ["a.mp4"]
    assert f"{tmp_path}/lost+found/: no permission to read this folder" in caplog.text


def test_missing_data_root_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"nowhere: no such folder; give the data root"):
        locate("activitynet", tmp_path / "nowhere", "--0edUL8zmA")


def test_pattern_without_the_video_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="a video pattern ends like"):
        find_videos(tmp_path, ["a"], patterns=["videos/*.mp4"], split="val")


def test_only_known_suffixes_are_videos() -> None:
    assert all(map(is_video_name, ["a.mp4", "-a.MKV", "a b.webm", "a.MOV"]))
    assert not any(map(is_video_name, ["a", "mp4", ".mp4", "._a.mp4", "a.mp4.part", "a.jpg", "a.wav"]))
