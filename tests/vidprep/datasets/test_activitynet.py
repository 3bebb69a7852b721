import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.videos import write_numbered_video
from vidprep.datasets import activitynet, build_split, build_splits, get, info_text, load_split, locate
from vidprep.errors import UsageError
from vidprep.splits import read_classes, write_split
from vidprep.types import Video
from vidprep.verify import VideosReport, verify_videos


def entry(*annotations: tuple[float, float, str], subset: str = "validation", duration: float = 60.0) -> dict[str, Any]:
    return {
        "subset": subset,
        "duration": duration,
        "annotations": [{"segment": [start, end], "label": label} for start, end, label in annotations],
    }


def write(path: Path, database: object, **top: object) -> Path:
    path.write_text(json.dumps({"taxonomy": [], "version": "VERSION 1.3", "database": database, **top}, indent=1))
    return path


def test_classes_are_in_plain_sorted_order() -> None:
    classes = read_classes("activitynet")
    assert len(classes) == 200
    assert list(classes) == sorted(classes)
    assert {"Polishing forniture", "Mooping floor", "Hitting a pinata", "Rock-paper-scissors"} <= set(classes)


def test_whole_video_has_all_its_classes_in_order_of_appearance(tmp_path: Path) -> None:
    path = write(tmp_path / "a.json", {"aaaaaaaaaaa": entry((5, 9, "Zumba"), (0, 3, "Archery"), (20, 30, "Zumba"))})
    split = build_split("activitynet", "val", [path])
    assert split.videos == (Video(video_id="aaaaaaaaaaa", labels=(199, 1), duration_seconds=60.0),)
    assert split.notes == (
        f"{path}: holds no video of train (10,024), test (5,044); the published file holds all splits.",
        "activitynet/val: 1 videos; 4,926 were published.",
    )


def test_segments_have_their_own_times_and_classes(tmp_path: Path) -> None:
    segments = [(5, 9, "Zumba"), (0, 3.5, "Archery"), (5, 9, "Ballet")]
    path = write(tmp_path / "a.json", {"aaaaaaaaaaa": entry(*segments)})
    ballet = read_classes("activitynet").index("Ballet")
    whole = Video(video_id="aaaaaaaaaaa", duration_seconds=60.0)
    assert activitynet.build_splits([path], unit="segment")["val"].videos == (
        replace(whole, labels=(199, ballet), start_seconds=5.0, end_seconds=9.0),
        replace(whole, labels=(1,), start_seconds=0.0, end_seconds=3.5),
    )


def test_segments_outside_their_video_are_clamped_or_left_out_and_noted(tmp_path: Path) -> None:
    segments = [(50, 60.5, "Zumba"), (-1, 2, "Zumba"), (8, 8, "Archery"), (70, 80, "Zumba")]
    path = write(tmp_path / "a.json", {"aaaaaaaaaaa": entry(*segments)})
    split = activitynet.build_splits([path], unit="segment")["val"]
    assert [(video.start_seconds, video.end_seconds) for video in split.videos] == [(50.0, 60.0), (0.0, 2.0)]
    assert split.notes[:4] == (
        "aaaaaaaaaaa: segment 1 (50 to 60.5 s of 60.0 s) clamped to 50.0 to 60.0 s.",
        "aaaaaaaaaaa: segment 2 (-1 to 2 s of 60.0 s) clamped to 0.0 to 2.0 s.",
        "aaaaaaaaaaa: segment 3 (8 to 8 s of 60.0 s) is empty; left out of the segments.",
        "aaaaaaaaaaa: segment 4 (70 to 80 s of 60.0 s) is empty; left out of the segments.",
    )
    assert build_split("activitynet", "val", [path]).videos[0].labels == (199, 1)


def test_test_videos_are_unlabelled_in_either_unit(tmp_path: Path) -> None:
    path = write(tmp_path / "a.json", {"aaaaaaaaaaa": entry(subset="testing")})
    expected = (Video(video_id="aaaaaaaaaaa", duration_seconds=60.0),)
    assert build_split("activitynet", "test", [path]).videos == expected
    assert activitynet.build_splits([path], unit="segment")["test"].videos == expected


@pytest.mark.parametrize(
    ("database", "sentence"),
    [
        ({"v_aaaaaaaaaaa": entry((0, 1, "Zumba"))}, "line 5, v_aaaaaaaaaaa: a video is named by its 11-character"),
        ({"aaaaaaaaaaa": []}, "line 5, aaaaaaaaaaa: expected an object with subset, duration and annotations"),
        ({"aaaaaaaaaaa": entry((0, 1, "Zumba"), subset="val")}, "expected subset training, .* got 'val'"),
        ({"aaaaaaaaaaa": entry((0, 1, "Zumba"), duration=0)}, "expected a duration in seconds, got 0"),
        ({"aaaaaaaaaaa": entry()}, r"a validation video needs a list of annotations, got \[\]"),
        ({"aaaaaaaaaaa": entry((0, 1, "Zumbo"))}, r"'Zumbo' is no class of ActivityNet v1.3; did you mean Zumba"),
        (
            {"aaaaaaaaaaa": {**entry(), "annotations": [{"label": "Zumba", "segment": [1]}]}},
            r"a segment is \[start, end\] in seconds, got \[1\]",
        ),
        (
            {"aaaaaaaaaaa": {**entry(), "annotations": [{"label": "Zumba", "segment": [1, True]}]}},
            r"a segment is \[start, end\] in seconds, got \[1, True\]",
        ),
    ],
)
def test_wrong_entry_is_refused_with_file_line_and_reason(tmp_path: Path, database: object, sentence: str) -> None:
    path = write(tmp_path / "a.json", database)
    with pytest.raises(UsageError, match=sentence) as caught:
        build_splits("activitynet", [path])
    assert str(caught.value).startswith(f"{path}, line 5")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A data root with the list of three videos, one of which could not be fetched and one only in part."""
    names = ("0dkIbKXXFzI", "aaaaaaaaaaa", "-bbbbbbbbbb")
    database = {name: entry((0, 1, "Zumba"), duration=15.5) for name in names}
    built = build_split("activitynet", "val", [write(tmp_path / "a.json", database)])
    write_split(built, tmp_path / "splits" / "val.csv")
    (tmp_path / "v1-2").mkdir()
    write_numbered_video(tmp_path / "v1-2" / "v_0dkIbKXXFzI.mp4", num_frames=30, fps=10, width=64, height=48)
    write_numbered_video(tmp_path / "v1-2" / "v_-bbbbbbbbbb.mkv", num_frames=155, fps=10, width=64, height=48)
    return tmp_path


def verify(root: Path) -> VideosReport:
    listed = load_split("activitynet", "val", data_root=root)
    return verify_videos(listed, locate(get("activitynet"), listed, root), num_published=4_926, check="open")


def test_videos_that_youtube_blocks_stay_in_the_list_and_are_missing_by_name(root: Path) -> None:
    report = verify(root)
    assert [(fault.video_id, fault.reason) for fault in report.faults] == [("aaaaaaaaaaa", "no file found for it")]
    assert report.damaged == ()
    assert report.coverage == "activitynet/val: 2 of 3 listed videos (66.7 %); published: 4926"
    assert "about 9 % of the videos are gone" in info_text("activitynet").replace("\n", " ").lower()


def test_truncated_download_is_shorter_than_annotated(root: Path) -> None:
    (length,) = verify(root).length_differences
    assert str(length) == "0dkIbKXXFzI: lasts 3.000 s, annotated are 15.5 s"
    for name in ("v_0dkIbKXXFzI", "v_vdYFwqfqgJA", "v_90vop6PS2Y0", "v_MvZFYjs80Y4"):
        assert name in info_text("activitynet")


def test_file_of_a_few_videos_is_reported_as_not_the_published_one(testdata: Path, tmp_path: Path) -> None:
    content = json.loads((testdata / "annotations" / "activity_net.v1-3.converted_excerpt.json").read_text())
    training = [item for item in content["database"].items() if item[1]["subset"] == "training"]
    content["database"] = dict(training[:5])
    path = tmp_path / "activity_net.v1-3.min.json"
    path.write_text(json.dumps(content))
    built = build_splits("activitynet", [path])
    assert {name: len(split.videos) for name, split in built.items()} == {"train": 5}
    assert built["train"].notes == (
        f"{path}: holds no video of val (4,926), test (5,044); the published file holds all splits.",
        "activitynet/train: 5 videos; 10,024 were published.",
    )


def test_damaged_fields_are_quoted_in_part(tmp_path: Path) -> None:
    for database in (
        {"aaaaaaaaaaa": entry((0, 1, "Z" * 5000))},
        {"a" * 5000: entry((0, 1, "Zumba"))},
        {"aaaaaaaaaaa": ["x" * 5000]},
    ):
        with pytest.raises(UsageError) as caught:
            build_splits("activitynet", [write(tmp_path / "a.json", database)])
        assert not re.search(r"[Zax]{100}", str(caught.value))


def test_other_versions_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.json", {}, version="VERSION 1.2")
    with pytest.raises(UsageError, match=r"line 3: expected version 1\.3 of ActivityNet, got 'VERSION 1.2'"):
        build_splits("activitynet", [path])


def test_file_cut_short_anywhere_is_refused(tmp_path: Path) -> None:
    whole = write(tmp_path / "a.json", {"aaaaaaaaaaa": entry((0, 1, "Zumba"))}).read_text()
    path = tmp_path / "cut.json"
    for length in range(len(whole)):
        path.write_text(whole[:length])
        with pytest.raises(UsageError, match=r"cut.json, line \d+, column \d+: not readable as JSON"):
            build_splits("activitynet", [path])


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ('{"database": {"a": 1, "a": 2}}', "not readable as JSON .'a' is given twice in one object"),
        ('{"database": NaN}', "not readable as JSON .NaN is no number of JSON"),
        ("[1]", "line 1: expected ActivityNet's own form, .* got list"),
        ("{}", "line 1: expected ActivityNet's own form, .* got nothing"),
        ("[" * 100_000, "not readable as JSON"),
    ],
)
def test_other_json_is_refused(tmp_path: Path, text: str, sentence: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(UsageError, match=sentence):
        build_splits("activitynet", [path])


def test_file_that_is_missing_or_not_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"nowhere.json: cannot be read \(No such file"):
        build_splits("activitynet", [tmp_path / "nowhere.json"])
    (tmp_path / "a.json.gz").write_bytes(b"\x1f\x8b\x08")
    with pytest.raises(UsageError, match=r"not a text file in UTF-8 .* unpacked"):
        build_splits("activitynet", [tmp_path / "a.json.gz"])


def test_video_of_two_files_is_refused(tmp_path: Path) -> None:
    paths = [write(tmp_path / name, {"aaaaaaaaaaa": entry((0, 1, "Zumba"))}) for name in ("a.json", "b.json")]
    with pytest.raises(UsageError, match=r"b.json, line 5, aaaaaaaaaaa: already given by .*a.json"):
        build_splits("activitynet", paths)


def test_excerpt_is_read_whole(testdata: Path) -> None:
    built = build_splits("activitynet", [testdata / "annotations" / "activity_net.v1-3.converted_excerpt.json"])
    assert {name: len(split.videos) for name, split in built.items()} == {"train": 116, "val": 51, "test": 43}
    num_labels = [len(video.labels) for split in built.values() for video in split.videos]
    assert [num_labels.count(n) for n in range(4)] == [43, 156, 11, 0]
    assert all(len(split.notes) == 1 and "were published" in split.notes[0] for split in built.values())
    first = built["train"].videos[0]
    assert (first.video_id, [built["train"].classes[label] for label in first.labels]) == ("QOlSCBRmfWY", ["Ballet"])


@pytest.mark.parametrize(
    ("file", "sentence"),
    [
        ("anet_bsn_anno_action.excerpt.json", "line 1: expected ActivityNet's own form, .* got v_QOlSCBRmfWY"),
        ("anet_sample_classification_prediction.excerpt.json", "line 1: expected .* got version, results"),
        ("ssv2_train.excerpt.json", "line 1: expected ActivityNet's own form, .* got list"),
        ("kinetics-400_val.head200.csv", "line 1, column 1: not readable as JSON"),
    ],
)
def test_annotations_of_other_forms_are_refused(testdata: Path, file: str, sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        build_splits("activitynet", [testdata / "annotations" / file])


def test_classes_are_in_the_order_of_the_methods_lists(testdata: Path) -> None:
    rows = (testdata / "classes" / "taps_actnet_classInd.txt").read_text(encoding="utf-8").splitlines()
    assert [f"{index},{name}" for index, name in enumerate(read_classes("activitynet"))] == rows


def test_list_of_taps_is_read_with_one_class_a_video(testdata: Path) -> None:
    built = build_split("activitynet", "val", [testdata / "lists" / "taps_actnet_val_videofolder_aug23.txt"])
    assert {len(video.labels) for video in built.videos} == {1}
    assert built.videos[0] == Video(video_id="JDg--pjY5gg", labels=(10,))


def test_misspelt_and_punctuated_names_are_the_official_ones() -> None:
    misspelt = {"Polishing forniture", "Mooping floor", "Hitting a pinata"}
    punctuated = {"Blow-drying hair", "Carving jack-o-lanterns", "Ping-pong", "Rock-paper-scissors"}
    assert misspelt | punctuated <= set(read_classes("activitynet"))


def test_list_of_ar_net_may_give_up_to_three_classes(tmp_path: Path) -> None:
    path = tmp_path / "actnet_train_split.txt"
    path.write_text("v_sJFgo9H6zNo,141,57,60,60\r\nv_u2uoYvo8J5s,210,171")
    built = build_split("activitynet", "train", [path])
    assert [video.labels for video in built.videos] == [(57, 60), (171,)]
    path.write_text("v_sJFgo9H6zNo,141,57\nv_short,3,1\n")
    with pytest.raises(UsageError, match=r"line 2: expected v_ and an 11-character YouTube id, got 'v_short'"):
        build_splits("activitynet", [path])
    path.write_text("v_sJFgo9H6zNo,141,200\n")
    with pytest.raises(UsageError, match=r"line 1: the classes count from 0 to 199, got 200"):
        build_splits("activitynet", [path])


def test_openmmlab_numbers_the_same_names_otherwise() -> None:
    ours, theirs = read_classes("activitynet"), read_classes("activitynet", "classes_mmaction2.txt")
    assert set(ours) == set(theirs)
    assert (theirs.index("Archery"), theirs.index("Playing badminton")) == (188, 199)


def test_archives_and_their_md5_are_those_of_the_readme() -> None:
    assert len(activitynet.INFO.archive_md5) == 5
    assert set(activitynet.INFO.archive_md5) < set(activitynet.INFO.archives)
    assert "missing_files*.zip" in activitynet.INFO.archives


def test_bsn_files_are_refused(testdata: Path) -> None:
    for file in ("anet_bsn_anno_action.excerpt.json", "anet_bsn_video_info_new.head200.csv"):
        with pytest.raises(UsageError, match=file.replace(".", r"\.")):
            build_splits("activitynet", [testdata / "annotations" / file])
    with pytest.raises(UsageError, match=r"line 1: expected ActivityNet's own form"):
        build_splits("activitynet", [testdata / "annotations" / "anet_sample_classification_prediction.excerpt.json"])
