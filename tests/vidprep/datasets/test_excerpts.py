"""Every real excerpt that belongs to a data set is read whole, with the counts of its README."""

import csv
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from vidprep.datasets import build_splits, get, imagenet_vid
from vidprep.datasets.annotations import read_class_names, sorted_ids
from vidprep.errors import UsageError
from vidprep.splits import read_classes

KINETICS_400 = [
    ("kinetics-400_val.head200.csv", {"val": 200}),
    ("kinetics-400_val.special_names.csv", {"val": 10}),
    ("kinetics-400_val.dash_ids.csv", {"val": 50}),
    ("kinetics-400_test.head200.csv", {"test": 200}),
]
SSV2 = ["ssv2_train.excerpt.json", "ssv2_validation.excerpt.json", "ssv2_test.excerpt.json"]


@pytest.mark.parametrize(
    ("name", "files", "counts"),
    [
        *(("kinetics400", [f"annotations/{file}"], counts) for file, counts in KINETICS_400),
        ("kinetics600", ["annotations/kinetics-600_val.head200.csv"], {"val": 200}),
        ("kinetics600", ["annotations/kinetics-600_test.head200.csv"], {"test": 200}),
        ("mini_kinetics", ["annotations/kinetics-400_val.head200.csv"], {"val": 150}),
        ("mini_kinetics", ["lists/taps_mini_val_videofolder_aug23.txt"], {"val": 9860}),
        ("mini_kinetics", ["lists/adafuse_mini_val_videofolder.txt"], {"val": 9867}),
        ("mini_kinetics", ["lists/adafuse_mini_val.head200.txt"], {"val": 200}),
        ("something_v2", [f"annotations/{file}" for file in SSV2], {"train": 4, "val": 4, "test": 4}),
        ("something_v2", ["annotations/ssv2_test-answers.excerpt.csv"], {"test": 4}),
        ("something_v2", ["lists/taps_ssv2_train_videofolder.head200.txt"], {"train": 200}),
        ("something_v2", ["lists/taps_ssv2_val_videofolder.head200.txt"], {"val": 200}),
        ("something_v2", ["lists/taps_ssv2half1_train_videofolder.head200.txt"], {"train": 200}),
        ("something_v2", ["lists/taps_ssv2half1_val_videofolder.head200.txt"], {"val": 200}),
        ("something_v1", ["lists/adafuse_sthv1_train_split.head200.txt"], {"train": 200}),
        ("something_v1", ["lists/adafuse_sthv1_validation_split.head200.txt"], {"val": 200}),
        ("jester", ["annotations/jester-v1-labels.csv", "annotations/jester-v1-train.head200.csv"], {"train": 200}),
        ("jester", ["annotations/jester-v1-validation.head200.csv"], {"val": 200}),
        ("jester", ["annotations/jester-v1-test.head200.csv"], {"test": 200}),
        ("jester", ["lists/taps_jester_train_split.head200.txt"], {"train": 200}),
        ("jester", ["lists/taps_jester_validation_split.head200.txt"], {"val": 200}),
        (
            "activitynet",
            ["annotations/activity_net.v1-3.converted_excerpt.json"],
            {"train": 116, "val": 51, "test": 43},
        ),
        ("activitynet", ["lists/taps_actnet_train_videofolder_aug23.txt"], {"train": 9897}),
        ("activitynet", ["lists/taps_actnet_val_videofolder_aug23.txt"], {"val": 4862}),
        ("epic_kitchens", ["annotations/EPIC_100_validation.head200.csv"], {"val": 200}),
        ("epic_kitchens", ["annotations/EPIC_100_test_timestamps.head200.csv"], {"test": 200}),
        ("epic_kitchens", ["annotations/EPIC_100_uda_source_train.head200.csv"], {"train": 200}),
        (
            "epic_kitchens",
            [
                f"annotations/{file}"
                for file in (
                    "EPIC_100_validation.head200.csv",
                    "EPIC_100_test_timestamps.head200.csv",
                    "EPIC_100_uda_source_train.head200.csv",
                    "EPIC_100_video_info.csv",
                    "EPIC_100_verb_classes.csv",
                    "EPIC_100_noun_classes.csv",
                    "epic_100_splits.csv",
                )
            ],
            {"train": 200, "val": 200, "test": 200},
        ),
        ("imagenet_vid", ["lists/VID_val_videos.txt"], {"val": 555}),
        ("imagenet_vid", ["lists/VID_train_15frames.head200.txt"], {"train": 14}),
    ],
    ids=lambda value: Path(value[0]).name if isinstance(value, list) else None,
)
def test_excerpt_is_read_whole(testdata: Path, name: str, files: list[str], counts: dict[str, int]) -> None:
    built = build_splits(name, [testdata / file for file in files])
    assert {split: len(of_split.videos) for split, of_split in built.items()} == counts


@pytest.mark.parametrize(
    ("name", "file", "given"),
    [
        ("epic_kitchens", "EPIC_100_tail_nouns.csv", "noun"),
        ("epic_kitchens", "EPIC_100_tail_verbs.csv", "verb"),
        ("epic_kitchens", "EPIC_100_unseen_participant_ids_validation.csv", "participant_id"),
        ("epic_kitchens", "Extension_Participants.csv", "Participant,ReturningKitchen"),
        ("epic_kitchens", "epic_55_splits.csv", "participant_id,video_id,split"),
        ("epic_kitchens", "epic_errata.csv", "rdsf_path,dropbox_path"),
        ("epic_kitchens", "epic_md5.csv", "md5,file_remote_path,version"),
        ("kinetics400", "video2dataset_test_yt.csv", ""),
        ("kinetics400", "video2dataset_test_webvid.csv", ""),
    ],
)
def test_tables_that_list_no_clips_are_refused(testdata: Path, name: str, file: str, given: str) -> None:
    with pytest.raises(UsageError, match=rf"{file}, line 1: expected the header .* got '{given}"):
        build_splits(name, [testdata / "annotations" / file])


def test_every_excerpt_is_named_in_a_test(testdata: Path) -> None:
    tests = "".join(path.read_text() for path in Path(__file__).parent.parent.rglob("test_*.py"))
    excerpts = [path for folder in ("annotations", "lists", "classes") for path in (testdata / folder).iterdir()]
    assert len(excerpts) == 71
    unnamed = {path.name for path in excerpts if path.name not in tests}
    assert unnamed <= {"EPIC_100_license.txt"}


@pytest.mark.parametrize(
    ("file", "num_rows"),
    [
        ("epic_md5.csv", 3375),
        ("epic_100_splits.csv", 700),
        ("epic_55_splits.csv", 432),
        ("EPIC_100_video_info.csv", 700),
        ("EPIC_100_verb_classes.csv", 97),
        ("EPIC_100_noun_classes.csv", 300),
    ],
)
def test_tables_of_epic_have_as_many_rows_as_their_readme_says(testdata: Path, file: str, num_rows: int) -> None:
    with (testdata / "annotations" / file).open(encoding="utf-8-sig", newline="") as rows:
        assert len(list(csv.DictReader(rows))) == num_rows


def test_videos_of_epic_are_in_the_published_splits_and_all_have_a_length(testdata: Path) -> None:
    annotations = testdata / "annotations"
    with (annotations / "epic_100_splits.csv").open(encoding="utf-8-sig", newline="") as rows:
        named = [[row[column] for column in ("ar_train", "ar_val", "ar_test")] for row in csv.DictReader(rows)]
    assert [sum(row[index] == "TRUE" for row in named) for index in range(3)] == [495, 138, 67]
    built = build_splits(
        "epic_kitchens", [annotations / "EPIC_100_validation.head200.csv", annotations / "EPIC_100_video_info.csv"]
    )
    assert all(video.duration_seconds for video in built["val"].videos)
    with (annotations / "EPIC_100_video_info.csv").open(encoding="utf-8-sig", newline="") as rows:
        assert sum(float(row["duration"]) for row in csv.DictReader(rows)) / 3600 == pytest.approx(100.03, abs=0.005)


def test_lengths_of_vid_are_those_of_the_lists(testdata: Path) -> None:
    built = build_splits("imagenet_vid", [testdata / "lists" / "VID_val_videos.txt"])
    assert sum(video.num_frames or 0 for video in built["val"].videos) == 176_126


def test_ids_of_xie_are_joined_with_the_annotations_of_kinetics(testdata: Path) -> None:
    ids = testdata / "lists" / "minikinetics200_xie_val_ytid_list.head200.txt"
    built = build_splits("mini_kinetics_xie2018", [ids, testdata / "annotations" / "kinetics-400_val.dash_ids.csv"])
    (video,) = built["val"].videos
    assert video.video_id == "-7tDxxH2g6I_000016_000026"
    assert "199 ids are in no annotation file" in built["val"].notes[0]


FORMS: dict[str, Callable[[str], str]] = {
    "crlf": lambda text: text.replace("\r\n", "\n").replace("\n", "\r\n"),
    "lf": lambda text: text.replace("\r\n", "\n"),
    "byte-order mark": lambda text: "\ufeff" + text,
    "no final newline": lambda text: text.rstrip("\r\n"),
}


@pytest.mark.parametrize("rewrite", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("kinetics400", "annotations/kinetics-400_val.head200.csv"),
        ("kinetics600", "annotations/kinetics-600_val.head200.csv"),
        ("mini_kinetics", "lists/adafuse_mini_val.head200.txt"),
        ("something_v2", "annotations/ssv2_train.excerpt.json"),
        ("something_v2", "annotations/ssv2_test-answers.excerpt.csv"),
        ("something_v1", "lists/adafuse_sthv1_train_split.head200.txt"),
        ("jester", "annotations/jester-v1-train.head200.csv"),
        ("jester", "annotations/jester-v1-test.head200.csv"),
        ("activitynet", "annotations/activity_net.v1-3.converted_excerpt.json"),
        ("epic_kitchens", "annotations/EPIC_100_validation.head200.csv"),
        ("imagenet_vid", "lists/VID_val_videos.txt"),
    ],
)
def test_line_ends_and_marks_change_nothing(
    testdata: Path, tmp_path: Path, name: str, file: str, rewrite: Callable[[str], str]
) -> None:
    text = (testdata / file).read_bytes().decode("utf-8")
    copy = tmp_path / Path(file).name
    copy.write_bytes(rewrite(text).encode("utf-8"))
    expected = build_splits(name, [testdata / file])
    built = build_splits(name, [copy])
    assert {split: of_split.videos for split, of_split in built.items()} == {
        split: of_split.videos for split, of_split in expected.items()
    }


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("kinetics400", "annotations/kinetics-400_val.head200.csv"),
        ("kinetics600", "annotations/kinetics-600_val.head200.csv"),
        ("something_v2", "annotations/ssv2_train.excerpt.json"),
        ("jester", "annotations/jester-v1-train.head200.csv"),
        ("activitynet", "annotations/activity_net.v1-3.converted_excerpt.json"),
        ("epic_kitchens", "annotations/EPIC_100_validation.head200.csv"),
        ("imagenet_vid", "lists/VID_val_videos.txt"),
        ("mini_kinetics", "lists/adafuse_mini_val.head200.txt"),
    ],
)
def test_file_cut_within_a_line_is_refused_with_its_number(
    testdata: Path, tmp_path: Path, name: str, file: str
) -> None:
    content = (testdata / file).read_bytes().rstrip()
    last = content[content.rfind(b"\n") + 1 :]
    copy = tmp_path / Path(file).name
    copy.write_bytes(content[: -(len(last) * 2 // 3)] if len(last) > 3 else content[:-3])
    with pytest.raises(UsageError, match=rf"{Path(file).name}, line \d+"):
        build_splits(name, [copy])


OFFICIAL = {
    "kinetics400": "annotations/kinetics-400_val.head200.csv",
    "kinetics600": "annotations/kinetics-600_val.head200.csv",
    "something_v2": "annotations/ssv2_train.excerpt.json",
    "jester": "annotations/jester-v1-train.head200.csv",
    "activitynet": "annotations/activity_net.v1-3.converted_excerpt.json",
    "epic_kitchens": "annotations/EPIC_100_validation.head200.csv",
    "imagenet_vid": "lists/VID_val_videos.txt",
}
READERS = [*OFFICIAL, "kinetics700", "mini_kinetics", "something_v1", "fcvid"]
BELONGS = {  # Kinetics-700 has the classes of this excerpt of 600; Mini-Kinetics is made from Kinetics-400
    ("kinetics700", "kinetics600"),
    ("kinetics700", "kinetics400"),
    ("mini_kinetics", "kinetics400"),
    ("kinetics600", "kinetics400"),
}


@pytest.mark.parametrize(
    ("name", "other"),
    [(name, other) for name in READERS for other in OFFICIAL if name != other and (name, other) not in BELONGS],
)
def test_file_of_another_data_set_is_refused_by_name(testdata: Path, name: str, other: str) -> None:
    path = testdata / OFFICIAL[other]
    with pytest.raises(UsageError, match=path.name.replace(".", r"\.")):
        build_splits(name, [path])


@pytest.mark.parametrize("name", READERS)
def test_annotations_that_are_empty_missing_or_no_text_are_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "val.csv").touch()
    (tmp_path / "val.tar").write_bytes(b"\x1f\x8b\xff\xfe\x00")
    for file in ("val.csv", "val.tar", "nowhere.csv"):
        with pytest.raises(UsageError, match=file):
            build_splits(name, [tmp_path / file])


@pytest.mark.parametrize(
    ("name", "file", "content"),
    [
        ("kinetics400", "val.csv", "label,youtube_id,time_start,time_end,split,is_cc\n"),
        ("something_v2", "train.json", "[]"),
        ("something_v2", "labels.json", json.dumps({c: str(i) for i, c in enumerate(read_classes("something_v2"))})),
        ("jester", "labels.csv", "\n".join(read_classes("jester"))),
        ("activitynet", "activity_net.v1-3.min.json", '{"version": "VERSION 1.3",\n"database": {}}'),
        ("epic_kitchens", "EPIC_100_video_info.csv", "video_id,duration,fps,resolution\n"),
    ],
)
def test_files_that_hold_no_video_are_refused(tmp_path: Path, name: str, file: str, content: str) -> None:
    path = tmp_path / file
    path.write_text(content)
    with pytest.raises(UsageError, match=rf"{file}(: no videos of {name}|, line 2: its database holds no video)"):
        build_splits(name, [path])


@pytest.mark.parametrize(
    ("file", "name", "list_file"),
    [
        ("taps_actnet_classInd.txt", "activitynet", "classes.txt"),
        ("mmaction2_activitynet_action_name.csv", "activitynet", "classes_mmaction2.txt"),
        ("mmaction2_activitynet_label_map.txt", "activitynet", "classes_mmaction2.txt"),
        ("mmaction2_label_map_k400.txt", "kinetics400", "classes.txt"),
        ("tam_kinetics_label_map.txt", "kinetics400", "classes.txt"),
        ("mmaction2_label_map_k600.txt", "kinetics600", "classes.txt"),
        ("mmaction2_label_map_k700.txt", "kinetics700", "classes.txt"),
        ("taps_minik_classInd.txt", "mini_kinetics", "classes.txt"),
        ("adafuse_minik_classInd.txt", "mini_kinetics", "classes.txt"),
        ("taps_jester_classInd.txt", "jester", "classes.txt"),
        ("mmaction2_jester_label_map.txt", "jester", "classes.txt"),
        ("taps_ssv2_classInd.txt", "something_v2", "classes.txt"),
        ("mmaction2_sthv2_label_map.txt", "something_v2", "classes.txt"),
        ("taps_ssv2half1_classInd.txt", "something_v2", "classes_half1.txt"),
        ("adafuse_sthv1_classInd.txt", "something_v1", "classes.txt"),
        ("mmaction2_sthv1_label_map.txt", "something_v1", "classes.txt"),
    ],
)
def test_class_files_in_circulation_are_ours(testdata: Path, file: str, name: str, list_file: str) -> None:
    assert read_class_names(testdata / "classes" / file) == read_classes(name, list_file)


def test_class_file_with_a_gap_or_a_double_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "classInd.txt"
    path.write_text("0,a\n2,b\n")
    with pytest.raises(UsageError, match=r"line 2: expected `1,name`, got '2,b'"):
        read_class_names(path)
    path.write_text("a\nb\na\n")
    with pytest.raises(UsageError, match=r"line 3: 'a' is already given on line 1"):
        read_class_names(path)


@pytest.mark.parametrize(
    ("file", "list_file"),
    [("EPIC_100_verb_classes.csv", "verbs.txt"), ("EPIC_100_noun_classes.csv", "nouns.txt")],
)
def test_epic_classes_are_the_official_ones(testdata: Path, file: str, list_file: str) -> None:
    with (testdata / "annotations" / file).open(encoding="utf-8", newline="") as rows:
        assert tuple(row["key"] for row in csv.DictReader(rows)) == read_classes("epic_kitchens", list_file)


def test_templates_of_something_v2_are_in_the_order_of_labels_json(testdata: Path) -> None:
    labels = json.loads((testdata / "annotations" / "ssv2_labels.json").read_text())
    assert {name: str(index) for index, name in enumerate(read_classes("something_v2"))} == labels


def test_both_orders_of_something_v1_and_jester_hold_the_same_names() -> None:
    v1, v2 = read_classes("something_v1"), read_classes("something_v2")
    assert [v2[rank] for rank in sorted_ids(v1)] == list(v1)
    jester = read_classes("jester")
    assert sorted_ids(jester)[jester.index("Doing other things")] == 0
    assert (sorted_ids(jester)[0], sorted_ids(jester)[1]) == (16, 17)


def test_images_of_det_are_read_apart(testdata: Path) -> None:
    path = testdata / "lists" / "DET_train_30classes.head200.txt"
    images = imagenet_vid.read_det_images(path)
    assert (len(images), images[0]) == (200, "train/ILSVRC2014_train_0000/ILSVRC2014_train_00000663")
    with pytest.raises(UsageError, match=r"line 1: .*DET images, which are no videos"):
        build_splits("imagenet_vid", [path])


def test_count_that_differs_from_the_published_is_reported(testdata: Path) -> None:
    built = build_splits("kinetics600", [testdata / "annotations" / "kinetics-600_val.head200.csv"])
    assert built["val"].notes == ("kinetics600/val: 200 videos; 30,000 were published.",)
    built = build_splits("imagenet_vid", [testdata / "lists" / "VID_val_videos.txt"])
    assert (len(built["val"].videos), built["val"].notes) == (get("imagenet_vid").splits["val"], ())


DAMAGE = [
    b"",
    b'"',
    b"\n",
    b",",
    b";",
    b"{",
    b"]",
    b"null",
    b"\xff",
    b"\x00",
    b" ",
    b"-1",
    b"1e999",
    b"\r",
    "²".encode(),
]


@pytest.mark.parametrize(
    ("name", "file"),
    [
        *OFFICIAL.items(),
        ("mini_kinetics", "lists/adafuse_mini_val.head200.txt"),
        ("something_v2", "annotations/ssv2_test-answers.excerpt.csv"),
        ("something_v1", "lists/adafuse_sthv1_train_split.head200.txt"),
        ("epic_kitchens", "annotations/epic_100_splits.csv"),
        ("epic_kitchens", "annotations/EPIC_100_video_info.csv"),
    ],
)
def test_damaged_file_is_read_or_refused_in_one_line(
    testdata: Path, tmp_path: Path, rng: np.random.Generator, name: str, file: str
) -> None:
    content = (testdata / file).read_bytes()[:4000]
    path = tmp_path / Path(file).name
    for _ in range(60):
        damaged = bytearray(content)
        start = int(rng.integers(len(damaged)))
        damaged[start : start + int(rng.choice([0, 1, 5, 20]))] = DAMAGE[int(rng.integers(len(DAMAGE)))]
        path.write_bytes(bytes(damaged))
        try:
            build_splits(name, [path])
        except UsageError as error:
            assert path.name in str(error)  # noqa: PT017 - either is right
            assert "\n" not in str(error)  # noqa: PT017
