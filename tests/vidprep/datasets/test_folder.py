import os
from pathlib import Path

import pytest

from vidprep import datasets
from vidprep.datasets import folder, load_split
from vidprep.errors import UnknownName, UsageError
from vidprep.splits import Split


def lay(root: Path, *paths: str) -> Path:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).touch()
    return root


def labels(split: Split) -> dict[str, tuple[str, ...]]:
    return {video.video_id: tuple(split.classes[label] for label in video.labels) for video in split.videos}


def write(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_sub_folders_are_classes(tmp_path: Path) -> None:
    split = load_split("folder", "all", data_root=lay(tmp_path, "run fast/b.mkv", "cook/-a.mp4", "run fast/a.MOV"))
    assert labels(split) == {"cook/-a.mp4": ("cook",), "run fast/a.MOV": ("run fast",), "run fast/b.mkv": ("run fast",)}
    assert split.classes == ("cook", "run fast")
    assert split.task == "single_label"
    assert folder.list_splits(tmp_path) == ["all"]


def test_split_folders_share_the_classes_of_all_splits(tmp_path: Path) -> None:
    lay(tmp_path, "train/cook/a.mp4", "train/run/b.mp4", "val/swim/c.mp4", "val/run/d.mp4")
    assert folder.list_splits(tmp_path) == ["train", "val"]
    train, val = (load_split("folder", name, data_root=tmp_path) for name in ("train", "val"))
    assert train.classes == val.classes == ("cook", "run", "swim")
    assert labels(val) == {"val/run/d.mp4": ("run",), "val/swim/c.mp4": ("swim",)}


def test_flat_folder_is_unlabelled_and_keeps_suffixes_in_names(tmp_path: Path) -> None:
    split = load_split("folder", "all", data_root=lay(tmp_path, "a.webm", "a.mp4"))
    assert labels(split) == {"a.mp4": (), "a.webm": ()}
    assert split.classes == ()
    paths = datasets.locate(folder.INFO, split, tmp_path)
    assert paths == {"a.mp4": tmp_path / "a.mp4", "a.webm": tmp_path / "a.webm"}


def test_what_is_no_video_is_passed_over_and_noted(tmp_path: Path) -> None:
    lay(tmp_path, "cook/a.mp4", "cook/._a.mp4", "cook/a.srt", "README.md", ".DS_Store", ".git/x.mp4", "frames/a/1.jpg")
    split = load_split("folder", "all", data_root=tmp_path)
    assert labels(split) == {"cook/a.mp4": ("cook",)}
    passed_over = "entries are hidden or no videos by their suffix and are passed over"
    assert split.notes == (
        f"{tmp_path}: 3 {passed_over} (.DS_Store, .git, README.md).",
        f"{tmp_path / 'cook'}: 2 {passed_over} (._a.mp4, a.srt).",
        f"{tmp_path / 'frames'}: holds no videos, so it is no class.",
    )


@pytest.mark.parametrize(
    ("paths", "sentence"),
    [
        (["a.mp4", "cook/b.mp4"], r"holds both loose videos \(a.mp4\) and class folders with videos \(cook/b.mp4\)"),
        (["train/a.mp4", "train/cook/b.mp4"], "train: holds both loose videos"),
        (["one/cook/a.mp4"], "one/cook: videos two folders down; class folders hold videos directly"),
        (["train/cook/a.mp4", "plane/b.mp4"], r"folders called like splits \(train\) beside other videos \(plane/\)"),
        (["train/cook/a.mp4", "b.mp4"], r"folders called like splits \(train\) beside other videos \(b.mp4\)"),
    ],
)
def test_layout_that_could_mean_two_things_is_refused(tmp_path: Path, paths: list[str], sentence: str) -> None:
    lay(tmp_path, *paths)
    with pytest.raises(UsageError, match=sentence):
        load_split("folder", "train" if (tmp_path / "train").exists() else "all", data_root=tmp_path)


def test_folder_without_videos_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"folder/all at .* holds no videos\. Lay the videos out as ROOT/CLASS"):
        load_split("folder", "all", data_root=lay(tmp_path, "README.md"))


def test_unknown_split_names_those_there_are(tmp_path: Path) -> None:
    with pytest.raises(UnknownName, match="no split 'all'; there are: train, val"):
        load_split("folder", "all", data_root=lay(tmp_path, "train/a/a.mp4", "val/a/b.mp4"))
    lay(tmp_path / "flat", "a.mp4")
    with pytest.raises(UnknownName, match="no split 'train'; there are: all"):
        load_split("folder", "train", data_root=tmp_path / "flat")


def test_broken_link_is_a_missing_video(tmp_path: Path) -> None:
    lay(tmp_path, "cook/a.mp4")
    (tmp_path / "cook" / "b.mp4").symlink_to(tmp_path / "gone.mp4")
    split = load_split("folder", "all", data_root=tmp_path)
    assert set(labels(split)) == {"cook/a.mp4", "cook/b.mp4"}
    assert set(datasets.locate(folder.INFO, split, tmp_path)) == {"cook/a.mp4"}


def test_name_that_is_no_text_is_refused(tmp_path: Path) -> None:
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.mp4")).touch()
    with pytest.raises(UsageError, match=r"the name '\\udcff.mp4' is not UTF-8; rename it"):
        load_split("folder", "all", data_root=tmp_path)


def test_csv_itself_may_be_the_data_root(tmp_path: Path) -> None:
    path = write(tmp_path / "mine.csv", "video,label", "clips/b.mp4,run", "./clips/a.mp4,cook", "gone.mp4,run")
    lay(tmp_path, "clips/a.mp4", "clips/b.mp4")
    split = load_split("folder", "all", data_root=path)
    assert labels(split) == {"clips/b.mp4": ("run",), "clips/a.mp4": ("cook",), "gone.mp4": ("run",)}
    assert load_split("folder", "mine", data_root=path).videos == split.videos
    located = datasets.locate(folder.INFO, split, path)
    assert located == {name: tmp_path / name for name in ("clips/b.mp4", "clips/a.mp4")}


def test_csv_files_of_a_folder_are_its_splits_and_share_classes(tmp_path: Path) -> None:
    lay(tmp_path, "run/a.mp4", "swim/b.mp4")
    write(tmp_path / "train.csv", "video,label", "run/a.mp4,run")
    write(tmp_path / "val.csv", "video,label", "swim/b.mp4,swim")
    write(tmp_path / "sizes.csv", "video,megabytes", "run/a.mp4,1")
    assert folder.list_splits(tmp_path) == ["train", "val"]
    val = load_split("folder", "val", data_root=tmp_path)
    assert (labels(val), val.classes) == ({"swim/b.mp4": ("swim",)}, ("run", "swim"))
    with pytest.raises(UsageError, match=r"sizes.csv, line 1: expected the header video,label"):
        load_split("folder", "sizes", data_root=tmp_path)


def test_absolute_paths_are_kept(tmp_path: Path) -> None:
    lay(tmp_path, "elsewhere/a.mp4", "lists/x")
    path = write(
        tmp_path / "lists" / "all.csv", "video,label", f"{tmp_path}/elsewhere/a.mp4,run", "../elsewhere/a.mp4,run"
    )
    split = load_split("folder", "all", data_root=path)
    located = datasets.locate(folder.INFO, split, path)
    assert [file.resolve() for file in located.values()] == [tmp_path / "elsewhere" / "a.mp4"] * 2


def test_number_labels_are_class_indices(tmp_path: Path) -> None:
    path = write(tmp_path / "all.csv", "video,label", "a.mp4,2", "b.mp4,0", "c.mp4,")
    split = load_split("folder", "all", data_root=path)
    assert split.classes == ("0", "1", "2")
    assert [video.labels for video in split.videos] == [(2,), (0,), ()]


def test_classes_file_names_the_indices_and_fixes_the_order(tmp_path: Path) -> None:
    write(tmp_path / "classes.txt", "swim", "run", "cook")
    path = write(tmp_path / "all.csv", "video,label", "a.mp4,2", "b.mp4,swim")
    split = load_split("folder", "all", data_root=path)
    assert split.classes == ("swim", "run", "cook")
    assert [video.labels for video in split.videos] == [(2,), (0,)]


def test_several_labels_make_the_task_multi_label(tmp_path: Path) -> None:
    path = write(tmp_path / "all.csv", "video,label", "a.mp4,run|cook", "b.mp4,cook")
    split = load_split("folder", "all", data_root=path)
    assert split.task == "multi_label"
    assert labels(split) == {"a.mp4": ("run", "cook"), "b.mp4": ("cook",)}


def test_segments_of_one_video_are_rows_of_their_own(tmp_path: Path) -> None:
    header = "video,label,start_seconds,end_seconds"
    path = write(tmp_path / "all.csv", header, "a.mp4,run,0,1.5", "a.mp4,cook,1.5,", "b.mp4,run,,")
    split = load_split("folder", "all", data_root=path)
    assert [(video.start_seconds, video.end_seconds) for video in split.videos] == [(0, 1.5), (1.5, None), (None, None)]


@pytest.mark.parametrize(
    ("lines", "sentence"),
    [
        (["video,label", "a.mp4"], "line 2: expected 2 fields"),
        (["video;label", "a.mp4;1"], "line 1: expected the header video,label"),
        (["video,label", ",run"], "line 2: the video is empty"),
        (["video,label", "a.mp4,run|"], r"line 2: expected labels joined by '\|', got 'run\|'"),
        (["video,label", "a.mp4,run", "b.mp4,7"], "line 2: label 'run' is a name, but '7' elsewhere is a number"),
        (["video,label", "a.mp4,1000000"], "line 2: a class index lies below 100000, got 1000000"),
        (
            ["video,label", "a.mp4,run", "./a.mp4,cook"],
            "line 3: a.mp4 is already listed in .*all.csv, line 2; keep one",
        ),
        (["video,label,start_seconds,end_seconds", "a.mp4,run,5,2"], "line 2: a.mp4: a segment needs 0 <= start < end"),
        (["video,label,start_seconds,end_seconds", "a.mp4,run,a,2"], "line 2: a time is a number of seconds, got 'a'"),
    ],
)
def test_malformed_csv_is_refused_with_the_line(tmp_path: Path, lines: list[str], sentence: str) -> None:
    path = write(tmp_path / "all.csv", *lines)
    for data_root in (path, tmp_path):
        with pytest.raises(UsageError, match=sentence) as caught:
            load_split("folder", "all", data_root=data_root)
        assert str(caught.value).startswith(f"{path}, line ")


def test_label_that_no_class_has_names_the_nearest(tmp_path: Path) -> None:
    write(tmp_path / "classes.txt", "swim", "run")
    for label, sentence in [("runn", "'runn' is none of the 2 classes .* did you mean run"), ("2", "'2' is none of")]:
        path = write(tmp_path / "all.csv", "video,label", f"a.mp4,{label}")
        with pytest.raises(UsageError, match=f"line 2: {sentence}"):
            load_split("folder", "all", data_root=path)
    write(tmp_path / "classes.txt", "swim", "swim")
    with pytest.raises(UsageError, match="the class 'swim' is listed twice"):
        load_split("folder", "all", data_root=path)


def test_csv_without_rows_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"folder/all at .* holds no videos"):
        load_split("folder", "all", data_root=write(tmp_path / "all.csv", "video,label"))


def test_real_videos_are_listed_by_their_file_names(testdata: Path) -> None:
    split = load_split("folder", "all", data_root=testdata / "videos")
    names = {path.name for path in (testdata / "videos").iterdir()}
    assert {video.video_id for video in split.videos} == names
    assert {"mdn_rabbit320.mp4", "mdn_rabbit320.webm", "-video-with-dash-.mp4", "moviepy_zero_bytes.webm"} <= names
    assert set(datasets.locate(folder.INFO, split, testdata / "videos")) == names
    assert split.classes == ()
