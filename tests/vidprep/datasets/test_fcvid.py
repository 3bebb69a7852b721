from collections.abc import Sequence
from pathlib import Path

import pytest

from vidprep.datasets import build_split, build_splits, get, locate
from vidprep.errors import UsageError
from vidprep.splits import read_classes
from vidprep.types import Video

CLASSES = read_classes("fcvid")
NAMES = "FCVID_VideoName_TrainTestSplit.txt"


def matrix_row(*labels: int) -> str:
    return " ".join("1" if index in labels else "0" for index in range(len(CLASSES)))


def write(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def pair(folder: Path, rows: Sequence[tuple[str, tuple[int, ...]]]) -> list[Path]:
    names = write(folder / NAMES, *(line for line, _ in rows))
    return [names, write(folder / "FCVID_Label.txt", *(matrix_row(*labels) for _, labels in rows))]


def test_rows_of_names_and_labels_are_one_video_each(tmp_path: Path) -> None:
    rows: list[tuple[str, tuple[int, ...]]] = [
        (f"{CLASSES[3]}/-abc_def.flv train", (3, 7)),
        (f"{CLASSES[5]}\\a b.mp4\ttest", (5,)),
    ]
    built = build_splits("fcvid", pair(tmp_path, rows)[::-1])
    assert built["train"].videos == (Video(video_id=f"{CLASSES[3]}/-abc_def", labels=(3, 7)),)
    assert built["test"].videos == (Video(video_id=f"{CLASSES[5]}/a b", labels=(5,)),)


def test_labels_must_have_as_many_rows_as_videos(tmp_path: Path) -> None:
    files = pair(tmp_path, [("a/b.mp4 train", (0,)), ("a/c.mp4 test", (0,))])
    write(files[1], matrix_row(0))
    with pytest.raises(UsageError, match=r"FCVID_Label.txt, line 1: 1 rows of labels, but .* has 2 videos"):
        build_splits("fcvid", files)
    with pytest.raises(UsageError, match=r"together, one of each; got 1 and 0"):
        build_splits("fcvid", files[:1])


def test_row_with_too_few_columns_is_refused(tmp_path: Path) -> None:
    files = pair(tmp_path, [("a/b.mp4 train", (0,)), ("a/c.mp4 test", (0,))])
    write(files[1], matrix_row(0), matrix_row(0)[:100])
    with pytest.raises(UsageError, match=r"FCVID_Label.txt, line 2: expected 239 columns of 0 and 1, got 50"):
        build_splits("fcvid", files)
    files = pair(tmp_path, [("a/b.mp4 train", (0,)), ("a/c.mp4 te", (0,))])
    with pytest.raises(UsageError, match=f"{NAMES}, line 2: expected `path train` or `path test`"):
        build_splits("fcvid", files)


def test_columns_in_another_order_than_the_classes_are_found_out(tmp_path: Path) -> None:
    files = pair(tmp_path, [(f"{CLASSES[index]}/{index}.mp4 train", (238 - index,)) for index in range(10)])
    with pytest.raises(
        UsageError, match=r"10 of 10 videos the labels contradict the class folder; the columns are not"
    ):
        build_splits("fcvid", files)


def test_single_label_beside_its_folder_is_noted(tmp_path: Path) -> None:
    rows = [(f"{CLASSES[index]}/{index}.mp4 train", (index,)) for index in range(4)]
    rows.append((f"{CLASSES[9]}/x.mp4 train", (2,)))
    built = build_split("fcvid", "train", pair(tmp_path, rows))
    assert f"{CLASSES[9]}/x is labelled {CLASSES[2]}, which its folder does not say" in built.notes[0]


def test_hashing_lists_count_classes_from_one_and_ar_nets_from_zero(tmp_path: Path) -> None:
    hashing = build_split("fcvid", "train", [write(tmp_path / "fcv_train.txt", "a.mp4,1", "b.mp4,239")])
    assert [video.labels for video in hashing.videos] == [(0,), (238,)]
    with pytest.raises(UsageError, match=r"line 1: expected `video,class` with classes from 1 to 239, got 'a.mp4,0'"):
        build_splits("fcvid", [write(tmp_path / "fcv_train.txt", "a.mp4,0")])
    ar_net = build_split("fcvid", "test", [write(tmp_path / "fcvid_val_split.txt", "a,141,0", "b,12,238,5,5")])
    assert [video.labels for video in ar_net.videos] == [(0,), (238, 5)]
    with pytest.raises(UsageError, match=r"line 1: expected `folder frames class`"):
        build_splits("fcvid", [write(tmp_path / "fcvid_val_split.txt", "a,141,0,1,2,3")])


def test_videos_are_found_by_folder_and_name(tmp_path: Path) -> None:
    for place in (f"{CLASSES[0]}/a.flv", f"{CLASSES[1]}/a.mp4", f"x{CLASSES[1]}/a.mp4"):
        path = tmp_path / "videos" / place
        path.parent.mkdir(parents=True)
        path.touch()
    rows: list[tuple[str, tuple[int, ...]]] = [(f"{CLASSES[0]}/a.flv train", (0,)), (f"{CLASSES[1]}/a.mp4 train", (1,))]
    built = build_split("fcvid", "train", pair(tmp_path, rows))
    assert locate(get("fcvid"), built, tmp_path) == {
        f"{CLASSES[0]}/a": tmp_path / "videos" / CLASSES[0] / "a.flv",
        f"{CLASSES[1]}/a": tmp_path / "videos" / CLASSES[1] / "a.mp4",
    }


def test_classes_are_in_plain_sorted_order() -> None:
    assert list(CLASSES) == sorted(CLASSES)
    assert (CLASSES[0], CLASSES[-1]) == ("accordionPerformance", "yoyoTricks")
