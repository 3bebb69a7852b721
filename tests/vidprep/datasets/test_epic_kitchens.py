import csv
from pathlib import Path

import pytest

from vidprep.datasets import build_split, build_splits, get, info_text, locate
from vidprep.datasets.epic_kitchens import COLUMNS, TEST_COLUMNS, frame_rate, list_files
from vidprep.errors import UsageError
from vidprep.splits import read_split, write_split
from vidprep.types import Video

HEADER = ",".join(COLUMNS)
ROW = "P01_11_0,P01,P01_11,00:00:00.560,00:00:00.00,00:00:01.89,1,113,take plate,take,0,plate,2,['plate'],[2]"
TWO_NOUNS = (
    "P01_11_1,P01,P01_11,,01:02:03.40,01:02:05.00,93,147,put plate on mat,put,1,plate,2,"
    "\"['plate', 'mat']\",\"[2, 41]\""
)
TEST_ROW = "P01_101_0,P01,P01_101,00:00:02.851,00:00:02.86,00:00:03.87,143,193"


def write(path: Path, *rows: str, header: str = HEADER) -> Path:
    path.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return path


def test_row_is_a_segment_in_seconds_with_a_verb_and_a_noun(tmp_path: Path) -> None:
    built = build_split("epic_kitchens", "val", [write(tmp_path / "EPIC_100_validation.csv", ROW)])
    assert built.videos == (
        Video(video_id="P01_11", labels=(0, 2), start_seconds=0.0, end_seconds=1.89, segment_id="P01_11_0"),
    )
    assert (built.classes[0], built.noun_classes[2]) == ("take", "plate")


def test_literals_with_commas_and_an_empty_narration_time_are_read(tmp_path: Path) -> None:
    built = build_split("epic_kitchens", "train", [write(tmp_path / "EPIC_100_train.csv", TWO_NOUNS)])
    (video,) = built.videos
    assert (video.labels, video.start_seconds, video.end_seconds) == ((1, 2), 3723.4, 3725.0)


def test_verb_and_noun_of_one_number_are_kept(tmp_path: Path, testdata: Path) -> None:
    built = build_split("epic_kitchens", "train", [testdata / "annotations" / "EPIC_100_uda_source_train.head200.csv"])
    assert built.videos[0].labels == (3, 3)
    write_split(built, tmp_path / "train.csv")
    again = read_split(
        tmp_path / "train.csv",
        dataset="epic_kitchens",
        split="train",
        task="verb_noun",
        classes=built.classes,
        noun_classes=built.noun_classes,
    )
    assert again.videos == built.videos


def test_two_segments_of_equal_times_are_told_apart_by_narration(tmp_path: Path) -> None:
    other = ROW.replace("P01_11_0", "P01_11_7").replace(",take,0,", ",put,1,")
    built = build_split("epic_kitchens", "val", [write(tmp_path / "EPIC_100_validation.csv", ROW, other)])
    assert [video.segment_id for video in built.videos] == ["P01_11_0", "P01_11_7"]


def test_frame_numbers_of_the_file_are_those_of_the_published_rate_not_of_the_video(testdata: Path) -> None:
    for file, split in (("validation", "val"), ("test_timestamps", "test")):
        path = testdata / "annotations" / f"EPIC_100_{file}.head200.csv"
        videos = build_split("epic_kitchens", split, [path]).videos
        stops = [int(line.split(",")[7]) for line in path.read_text().splitlines()[1:]]
        floors = [int((video.end_seconds or 0) * frame_rate(video.video_id) + 1e-6) for video in videos]
        assert all(floor - stop in (0, 1) for floor, stop in zip(floors, stops, strict=True))
    assert (frame_rate("P01_11"), frame_rate("P01_101")) == (60, 50)
    with pytest.raises(UsageError, match=r"a video of EPIC-KITCHENS-100 is called P01_01 or P01_101, got 'P01_1'"):
        frame_rate("P01_1")


def test_segments_of_test_are_unlabelled(tmp_path: Path) -> None:
    path = write(tmp_path / "any name.csv", TEST_ROW, header=",".join(TEST_COLUMNS))
    built = build_split("epic_kitchens", "test", [path])
    assert built.videos[0] == Video(video_id="P01_101", start_seconds=2.86, end_seconds=3.87, segment_id="P01_101_0")


def test_train_and_validation_are_told_apart_by_name_or_by_the_splits_file(tmp_path: Path) -> None:
    path = write(tmp_path / "labels.csv", ROW)
    with pytest.raises(UsageError, match=r"labels.csv: train and validation have the same columns"):
        build_splits("epic_kitchens", [path])
    splits = write(tmp_path / "splits.csv", "P01_11,FALSE,TRUE,FALSE", header="video_id,ar_train,ar_val,ar_test")
    assert list(build_splits("epic_kitchens", [path, splits])) == ["val"]


def test_video_of_another_split_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "EPIC_100_validation.csv", ROW)
    splits = write(tmp_path / "splits.csv", "P01_11,FALSE,FALSE,TRUE", header="video_id,ar_train,ar_val,ar_test")
    with pytest.raises(UsageError, match=r"line 2: P01_11 is a video of test, but the file has labels"):
        build_splits("epic_kitchens", [path, splits])


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (("00:00:01.89", "1.89"), r"line 2: a timestamp is HH:MM:SS.ss, got '1.89'"),
        (("00:00:01.89", "00:00:00.00"), r"line 2: P01_11: a segment needs 0 <= start < end"),
        ((",take,0,", ",take,97,"), r"line 2: verb_class is a number from 0 to 96, got '97'"),
        (("plate,2,", "plate,300,"), r"line 2: noun_class is a number from 0 to 299, got '300'"),
        ((",[2]", ",[3]"), r"line 2: noun_class 2, .* do not agree"),
        ((",[2]", ",[2"), r"line 2: all_noun_classes is a Python list, got '\[2'; is the file cut short"),
        ((",[2]", ",{[]}"), r"line 2: all_noun_classes is a Python list, got '{\[\]}'"),
        ((",[2]", ",['2']"), r"line 2: all_noun_classes is a list of int"),
        ((",[2]", ""), r"line 2: expected 15 fields"),
        (("P01_11", "P1_11"), r"line 2: expected a video P01_01 or P01_101"),
    ],
)
def test_damaged_row_is_refused(tmp_path: Path, change: tuple[str, str], sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        build_splits("epic_kitchens", [write(tmp_path / "EPIC_100_validation.csv", ROW.replace(*change))])


def test_annotations_of_epic_55_are_refused(tmp_path: Path) -> None:
    header = "uid,participant_id,video_id,narration,start_timestamp,stop_timestamp,start_frame,stop_frame,verb"
    path = write(tmp_path / "EPIC_train_action_labels.csv", header=header)
    with pytest.raises(UsageError, match=r"line 1: expected the header narration_id,participant_id"):
        build_splits("epic_kitchens", [path])


def test_nouns_of_version_2_are_refused(testdata: Path, tmp_path: Path) -> None:
    text = (testdata / "annotations" / "EPIC_100_noun_classes.csv").read_text()
    path = tmp_path / "EPIC_100_noun_classes_v2.csv"
    path.write_text(text.rstrip() + "\n300,hand:left,['hand:left'],body\n")
    with pytest.raises(UsageError, match=r"line 302: 300 'hand:left' is none of the 300 nouns"):
        build_splits("epic_kitchens", [path])


def test_segment_beyond_its_video_is_noted(tmp_path: Path) -> None:
    table = write(tmp_path / "EPIC_100_validation.csv", ROW)
    video_info = write(tmp_path / "info.csv", "P01_11,1.5,59.94,1920x1080", header="video_id,duration,fps,resolution")
    built = build_split("epic_kitchens", "val", [table, video_info])
    assert "P01_11_0 ends at 1.89 s, its video at 1.5 s" in built.notes[0]


def test_every_video_has_its_address_and_md5(testdata: Path) -> None:
    files = list_files()
    assert len(files) == len({file.url for file in files}) == 700
    by_name = {(file.filename or "").rpartition("/")[2]: file for file in files}
    old, new = by_name["P01_01.MP4"], by_name["P01_101.MP4"]
    assert old.url == "https://data.bris.ac.uk/datasets/3h91syskeag572hl6tvuovwv4d/videos/train/P01/P01_01.MP4"
    assert old.md5 == "f7de046e4f7719e373eb85c62e73f15b"
    assert new.url == "https://data.bris.ac.uk/datasets/2g1n6qdydwa9u22shpxqzp0t8m/P01/videos/P01_101.MP4"
    assert new.md5 == "654113cadf8ba21f51cb81cd35ad18a1"
    published = (testdata / "annotations" / "epic_md5.csv").read_text()
    assert all(f"{file.md5},{file.url.split('/', 5)[5]}," in published for file in files)


def test_ids_of_two_and_three_digits_are_told_apart_however_they_are_sorted(tmp_path: Path) -> None:
    ids = ["P01_11", "P01_101", "P01_10"]
    assert sorted(ids) == ["P01_10", "P01_101", "P01_11"]
    for video_id in ids:
        (tmp_path / f"{video_id}.MP4").touch()
    rows = [ROW.replace("P01_11", video_id) for video_id in ids]
    built = build_split("epic_kitchens", "train", [write(tmp_path / "EPIC_100_train.csv", *rows)])
    assert [video.segment_id for video in built.videos] == ["P01_11_0", "P01_101_0", "P01_10_0"]  # as in the file
    found = locate(get("epic_kitchens"), built, tmp_path)
    assert {video_id: path.stem for video_id, path in found.items()} == {video_id: video_id for video_id in ids}
    assert [frame_rate(video_id) for video_id in ids] == [60, 50, 60]


def test_archives_of_the_errata_are_never_offered(testdata: Path) -> None:
    with (testdata / "annotations" / "epic_errata.csv").open(newline="") as file:
        wrong = [row["rdsf_path"] for row in csv.DictReader(file)]
    assert {"P01_109", "P27_103"} == {Path(path).stem for path in wrong}
    offered = {file.url: file.filename for file in list_files()}
    assert not [url for url in offered if any(url.endswith(path) for path in wrong)]
    assert {"videos/P01/P01_109.MP4", "videos/P27/P27_103.MP4"} <= set(offered.values())
    assert all(url.endswith(".MP4") for url in offered)  # frames are extracted from the videos


def test_video_that_is_said_never_to_match_its_md5_is_named() -> None:
    assert "P09_06.MP4 is said never to match its md5" in info_text("epic_kitchens").replace("\n     ", "")
    assert [file.md5 for file in list_files() if file.url.endswith("/P09_06.MP4")]


def test_videos_with_the_suffix_in_capitals_are_found(tmp_path: Path) -> None:
    for place in ("videos/P01/P01_11.MP4", "videos/P01/P01_101.MP4", "videos/P01/P01_1.MP4"):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / place).touch()
    built = build_split("epic_kitchens", "val", [write(tmp_path / "EPIC_100_validation.csv", ROW)])
    assert locate(get("epic_kitchens"), built, tmp_path) == {"P01_11": tmp_path / "videos/P01/P01_11.MP4"}
