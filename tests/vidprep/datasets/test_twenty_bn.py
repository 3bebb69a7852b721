"""Something-Something V2 and V1, and Jester: the three sets of 20BN."""

import json
from pathlib import Path

import pytest

from tests.vidprep.media import write_frames
from vidprep.datasets import build_split, build_splits, get, locate
from vidprep.errors import UsageError, VidprepError
from vidprep.load.dataset import ClipDataset
from vidprep.splits import Split, read_classes
from vidprep.types import Video


def write(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def entries(path: Path, *templates: str) -> Path:
    rows = [{"id": str(index), "template": template} for index, template in enumerate(templates, start=1)]
    path.write_text(json.dumps(rows, indent=0))
    return path


@pytest.mark.parametrize(
    ("template", "name"),
    [
        ("Holding [something] next to [something]", "Holding something next to something"),
        ("[Something] falling like a feather or paper", "Something falling like a feather or paper"),
        ("Stacking [number of] [something]", "Stacking number of something"),
        ("Holding something", "Holding something"),
    ],
)
def test_brackets_of_templates_are_dropped_whatever_is_in_them(tmp_path: Path, template: str, name: str) -> None:
    built = build_split("something_v2", "train", [entries(tmp_path / "train.json", template)])
    assert built.classes[built.videos[0].labels[0]] == name


def test_ids_of_something_v2_are_strings(tmp_path: Path) -> None:
    path = tmp_path / "train.json"
    path.write_text('[{"id": 78687, "template": "Holding [something]"}]')
    with pytest.raises(UsageError, match=r"train.json, entry 1: expected .* with the id a string"):
        build_splits("something_v2", [path])


def test_line_of_an_unknown_template_is_named(tmp_path: Path) -> None:
    path = entries(tmp_path / "train.json", "Holding [something]", "Juggling [something]")
    with pytest.raises(UsageError, match=r"train.json, line \d+: 'Juggling \[something\]' is no template"):
        build_splits("something_v2", [path])


def test_train_and_validation_are_told_apart_by_their_names(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"its name does not say of which split it is"):
        build_splits("something_v2", [entries(tmp_path / "mine.json", "Holding [something]")])
    for name, split in (("something-something-v2-train.json", "train"), ("validation.json", "val")):
        assert list(build_splits("something_v2", [entries(tmp_path / name, "Holding [something]")])) == [split]


def test_answers_label_the_test_videos(testdata: Path) -> None:
    folder = testdata / "annotations"
    alone = build_split("something_v2", "test", [folder / "ssv2_test.excerpt.json"])
    assert {video.labels for video in alone.videos} == {()}
    files = [folder / "ssv2_test.excerpt.json", folder / "ssv2_test-answers.excerpt.csv"]
    built = build_split("something_v2", "test", files)
    throwing = built.classes.index("Throwing something")
    assert {video.video_id: video.labels for video in built.videos}["1420"] == (throwing,)
    assert built.notes[0].startswith("1 of 4 test videos are not in the answers")
    assert built.notes[1].startswith("1 answers are of videos that the test file does not list")


def test_labels_json_of_another_order_is_refused(tmp_path: Path) -> None:
    v1 = {name: str(index) for index, name in enumerate(read_classes("something_v1"))}
    path = tmp_path / "labels.json"
    path.write_text(json.dumps(v1))
    with pytest.raises(UsageError, match=r"labels.json, line 1: expected .* as class 0, got '6'"):
        build_splits("something_v2", [path])


def test_half_of_taps_keeps_the_classes_of_the_whole(testdata: Path) -> None:
    lists = testdata / "lists"
    whole = build_split("something_v2", "val", [lists / "taps_ssv2_val_videofolder.head200.txt"])
    half = build_split("something_v2", "val", [lists / "taps_ssv2half1_val_videofolder.head200.txt"])
    labels = {video.video_id: video.labels for video in whole.videos}
    shared = [video for video in half.videos if video.video_id in labels]
    assert len(shared) > 50
    assert all(video.labels == labels[video.video_id] for video in shared)
    assert "numbers became those of the whole set" in half.notes[0]


def test_half_of_taps_under_another_name_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "train_videofolder.txt", *(f"train/{index} 30 {index % 87}" for index in range(1000)))
    with pytest.raises(UsageError, match=r"all classes are below 87, as in TAPS' somethingv2_half1"):
        build_splits("something_v2", [path])


@pytest.mark.parametrize(
    ("name", "pairs"),
    [
        ("something_v2", [("Pulling something from left to right", "Pulling something from right to left")]),
        ("something_v1", [("Pushing something from left to right", "Pushing something from right to left")]),
        ("jester", [("Swiping Left", "Swiping Right"), ("Sliding Two Fingers Left", "Sliding Two Fingers Right")]),
    ],
)
def test_flip_swaps_left_and_right(name: str, pairs: list[tuple[str, str]]) -> None:
    classes, flips = read_classes(name), get(name).flip_pairs
    assert all(flips[classes.index(left)] == classes.index(right) for left, right in pairs)
    assert len(flips) == 4


def test_flip_pairs_are_those_of_taps() -> None:
    assert get("something_v2").flip_pairs == {86: 87, 87: 86, 93: 94, 94: 93}
    assert get("jester").flip_pairs == {0: 1, 1: 0, 6: 7, 7: 6}


def test_something_v1_is_numbered_as_its_own_labels_file() -> None:
    assert read_classes("something_v1")[:2] == ("Holding something", "Turning something upside down")
    assert sorted(read_classes("something_v1")) == list(read_classes("something_v2"))


@pytest.mark.parametrize(
    ("name", "file", "line", "official"),
    [
        ("something_v1", "train_videofolder.txt", "something/v1/img/100218 42 136", 31),
        ("jester", "train_videofolder.txt", "34870 37 1", 24),
    ],
)
def test_list_in_sorted_order_is_renumbered(tmp_path: Path, name: str, file: str, line: str, official: int) -> None:
    rank = sorted(read_classes(name)).index(read_classes(name)[official])
    line = f"{line.rpartition(' ')[0]} {rank}"
    built = build_split(name, "train", [write(tmp_path / file, line)])
    assert built.videos[0].labels == (official,)
    assert "numbered in sorted order" in built.notes[0]


def test_list_without_a_known_clip_says_what_it_was_taken_for(tmp_path: Path) -> None:
    built = build_split("jester", "val", [write(tmp_path / "val_videofolder.txt", "77 37 4")])
    assert built.videos == (Video(video_id="77", labels=(4,), num_frames=37),)
    assert "taken for the official one" in built.notes[0]


def test_list_of_another_set_is_refused_by_a_known_clip(tmp_path: Path) -> None:
    path = write(tmp_path / "train_videofolder.txt", "34870 37 5")
    with pytest.raises(UsageError, match=r"line 1: 34870 is class 24 officially and .* in sorted order, got 5"):
        build_splits("jester", [path])


def test_test_ids_of_the_other_set_are_refused(testdata: Path, tmp_path: Path) -> None:
    jester = testdata / "annotations" / "jester-v1-test.head200.csv"
    with pytest.raises(UsageError, match=r"jester-v1-test.head200.csv: is called as a file of another data set"):
        build_splits("something_v1", [jester])
    renamed = tmp_path / "test.csv"
    renamed.write_bytes(jester.read_bytes())
    with pytest.raises(UsageError, match=r"test.csv, line 1: the ids of Something-Something V1 go from 1 to 108499"):
        build_splits("something_v1", [renamed])
    assert len(build_split("jester", "test", [renamed]).videos) == 200
    with pytest.raises(UsageError, match=r"something-something-v1-test.csv: is called as a file of another data set"):
        build_splits("jester", [renamed.rename(tmp_path / "something-something-v1-test.csv")])


def test_jester_clips_of_fewer_than_32_frames_are_read_round_in_a_dense_clip(testdata: Path, tmp_path: Path) -> None:
    built = build_split("jester", "train", [testdata / "lists" / "taps_jester_train_split.head200.txt"])
    short = min(built.videos, key=lambda video: video.num_frames or 0)
    num_frames = short.num_frames or 0
    assert 12 <= num_frames < 32
    folder = write_frames(tmp_path / short.video_id, num_frames)
    dataset = ClipDataset(
        [short],
        [folder],
        task="single_label",
        num_classes=27,
        delivered=get("jester").frames,
        num_frames=16,
        sampler="dense",
        dense_window=64,
        resize=32,
        crop=32,
    )
    shown = (dataset[0].pts_seconds[0] * 12).round().int().tolist()
    assert shown == [4 * index % num_frames for index in range(16)]


def test_copy_of_jester_labels_that_swaps_4_and_5_is_refused(tmp_path: Path) -> None:
    names = list(read_classes("jester"))
    names[4], names[5] = names[5], names[4]
    path = write(tmp_path / "jester-v1-labels.csv", *names)
    with pytest.raises(UsageError, match=r"line 5: expected 'Pushing Hand Away' as class 4, got 'Pulling Hand In'"):
        build_splits("jester", [path])
    path = write(tmp_path / "jester-v1-labels.csv", *read_classes("jester")[:20])
    with pytest.raises(UsageError, match=r"expected 27 classes, got 20; is the file cut short"):
        build_splits("jester", [path])


def test_jester_spells_its_last_classes_in_lower_case(tmp_path: Path) -> None:
    path = write(tmp_path / "jester-v1-train.csv", "1;No gesture", "2;Doing Other Things")
    with pytest.raises(
        UsageError, match=r"line 2: 'Doing Other Things' is no class .* did you mean Doing other things"
    ):
        build_splits("jester", [path])


def test_answers_of_jester_label_its_test_videos(tmp_path: Path) -> None:
    test = write(tmp_path / "test.csv", "109621", "7")
    answers = write(tmp_path / "test-answers.csv", "109621;Thumb Up")
    assert build_split("jester", "test", [test, answers]).videos == (
        Video(video_id="109621", labels=(20,)),
        Video(video_id="7"),
    )


def test_answers_that_do_not_fit_the_test_videos_are_noted(tmp_path: Path) -> None:
    test = write(tmp_path / "test.csv", "109621", "7")
    answers = write(tmp_path / "test-answers.csv", "109621;Thumb Up", "8;Thumb Up")
    unlabelled, strangers, _ = build_split("jester", "test", [test, answers]).notes
    assert unlabelled.startswith("1 of 2 test videos are not in the answers")
    assert strangers.startswith("1 answers are of videos that the test file does not list")


@pytest.mark.parametrize(
    ("name", "classes"),
    [("jester", ("Thumb Up", "Thumb Down")), ("something_v2", ("Throwing something", "Opening something"))],
)
def test_two_answers_for_one_video_are_refused(tmp_path: Path, name: str, classes: tuple[str, str]) -> None:
    path = write(tmp_path / "test-answers.csv", *(f"1420;{label}" for label in classes))
    with pytest.raises(UsageError, match=r"csv, line 2: 1420 has another class than in .*test-answers.csv, line 1"):
        build_splits(name, [path])


def test_entry_that_lost_its_template_is_not_taken_for_a_test_video(tmp_path: Path) -> None:
    path = tmp_path / "train.json"
    path.write_text('[{"id": "1", "template": "Throwing [something]"},\n {"id": "2"}]')
    with pytest.raises(UsageError, match=r"train.json, line 2: 2 and the first entry must both have a template"):
        build_splits("something_v2", [path])


@pytest.mark.parametrize("line", ["34870;Drumming Fing", "34870;", "x;Thumb Up"])
def test_line_cut_short_is_refused(tmp_path: Path, line: str) -> None:
    path = write(tmp_path / "jester-v1-train.csv", "1;Thumb Up", line)
    with pytest.raises(UsageError, match=r"jester-v1-train.csv, line 2: "):
        build_splits("jester", [path])


def test_jester_files_are_called_without_the_hyphen() -> None:
    info = get("jester")
    assert [file.url.rpartition("/")[2] for file in info.files] == [f"20bnjester-v1-{part:02d}" for part in range(3)]
    assert all(file.sha256 for file in info.files)
    assert {"20bnjester-v1-??", "20bn-jester-v1-??.zip"} <= set(info.archives)


@pytest.mark.parametrize(
    ("name", "folder"), [("jester", "20bn-jester-v1"), ("something_v1", "20bn-something-something-v1")]
)
def test_folders_of_frames_are_found(tmp_path: Path, name: str, folder: str) -> None:
    assert get(name).media == "frames"
    for place in (f"{folder}/34870", f"{folder}/7", "elsewhere/9"):
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / "00001.jpg").touch()
    videos = tuple(Video(video_id=video_id) for video_id in ("34870", "9", "12"))
    split = Split(dataset=name, split="val", task="single_label", classes=(), videos=videos)
    assert locate(get(name), split, tmp_path) == {"34870": tmp_path / folder / "34870", "9": tmp_path / "elsewhere/9"}
    (tmp_path / "copy" / "9").mkdir(parents=True)
    with pytest.raises(VidprepError, match=r"9: two folders, .*; keep one of them"):
        locate(get(name), split, tmp_path)
    with pytest.raises(UsageError, match=r"no such folder; give the data root that holds the frames"):
        locate(get(name), split, tmp_path / "nowhere")
