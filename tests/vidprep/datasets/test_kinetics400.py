from pathlib import Path

import pytest

from vidprep.datasets import build_split, build_splits, kinetics400
from vidprep.datasets.kinetics400 import INFO
from vidprep.errors import UsageError
from vidprep.splits import read_classes
from vidprep.types import Video

HEADER = "label,youtube_id,time_start,time_end,split,is_cc"
ROW = "abseiling,0wR5jVB-WPk,417,427,val,0"
CLIP = Video(video_id="0wR5jVB-WPk_000417_000427", labels=(0,), duration_seconds=10.0)


def annotations(folder: Path, *rows: str, header: str = HEADER, name: str = "annotations.csv") -> Path:
    path = folder / name
    path.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return path


def read_one(path: Path) -> Video:
    (video,) = build_split("kinetics400", "val", [path]).videos
    return video


def test_classes_are_sorted_and_unique_in_every_spelling() -> None:
    classes = read_classes("kinetics400")
    assert len(classes) == 400
    assert list(classes) == sorted(classes)
    assert len({kinetics400.label_key(name) for name in classes}) == 400


def test_row_becomes_a_clip_named_as_its_file(tmp_path: Path) -> None:
    assert read_one(annotations(tmp_path, ROW)) == CLIP


@pytest.mark.parametrize(
    ("header", "row"),
    [
        (HEADER, "abseiling,0wR5jVB-WPk,417.0,427.9,val,1"),
        (HEADER, '"abseiling",0wR5jVB-WPk,417,427,validate,0'),
        (HEADER, "Abseiling_,0wR5jVB-WPk,417,427,val,0"),
        ("label,youtube_id,time_start,time_end,split", "abseiling,0wR5jVB-WPk,417,427,val"),
        ("split,youtube_id,time_end,time_start,label", "val,0wR5jVB-WPk,427,417,abseiling"),
        (f"\ufeff{HEADER}", f"{ROW}\n\n"),
        (f"{HEADER}\r", f"{ROW}\r"),
    ],
)
def test_forms_in_circulation_read_alike(tmp_path: Path, header: str, row: str) -> None:
    path = annotations(tmp_path, row, header=header)
    assert read_one(path) == CLIP


def test_test_file_without_labels_reads_unlabelled(tmp_path: Path) -> None:
    path = annotations(tmp_path, "--6bJUbfpnQ,17,27,test", header="youtube_id,time_start,time_end,split")
    assert build_split("kinetics400", "test", [path]).videos == (
        Video(video_id="--6bJUbfpnQ_000017_000027", duration_seconds=10.0),
    )


def test_several_files_give_several_splits(tmp_path: Path) -> None:
    train = annotations(tmp_path, "zumba,aaaaaaaaaaa,0,10,train,0", name="train.csv")
    val = annotations(tmp_path, ROW, name="val.csv")
    built = build_splits("kinetics400", [train, val])
    assert {name: [video.labels for video in split.videos] for name, split in built.items()} == {
        "train": [(399,)],
        "val": [(0,)],
    }


def test_repeated_row_is_taken_once_and_noted(tmp_path: Path) -> None:
    first = annotations(tmp_path, ROW, name="a.csv")
    second = annotations(tmp_path, ROW, name="b.csv")
    split = build_split("kinetics400", "val", [first, second])
    assert len(split.videos) == 1
    assert split.notes[0] == f"{second}, line 2: 0wR5jVB-WPk_000417_000427 repeats {first}, line 2; taken once."


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        ([ROW, "adjusting glasses,aaaaaaaaaaa,0,10,val,0"], "line 3: 'adjusting glasses' is no class of Kinetics-400"),
        ([ROW, "abseiling,0wR5jVB-WPk,4"], "line 3: expected 6 fields .* got 3; is the file cut short"),
        ([ROW, "abseiling,0wR5jVB-WPk,417,427,val,"], "line 3: expected is_cc 0 or 1, got ''; is the file cut short"),
        (["abseiling,0wR5jVB-WP,417,427,val,0"], "line 2: a youtube_id is 11 letters, .* got '0wR5jVB-WP'"),
        (["abseiling,#NAME?,417,427,val,0"], "line 2: a youtube_id is 11 letters, .* got '#NAME\\?'"),
        (
            ["abseiling,0wR5jVB-WPk,417,427,dev,0"],
            "line 2: expected split train, val, validate, validation, test, got 'dev'",
        ),
        (["abseiling,0wR5jVB-WPk,x,427,val,0"], "line 2: a time is a number of seconds, got 'x'"),
        (["abseiling,0wR5jVB-WPk,1,inf,val,0"], "line 2: a time is a number of seconds, got 'inf'"),
        (["abseiling,0wR5jVB-WPk,427,417,val,0"], "line 2: a clip needs 0 <= time_start < time_end, got 427 and 417"),
        (['"abseiling,0wR5jVB-WPk,417,427,val,0', ROW], "line 3: not readable as CSV"),
        ([ROW, ROW.replace("abseiling", "zumba")], "line 3: 0wR5jVB-WPk_000417_000427 has label 'zumba', another one"),
    ],
)
def test_wrong_row_is_refused_with_file_line_and_reason(tmp_path: Path, rows: list[str], sentence: str) -> None:
    path = annotations(tmp_path, *rows)
    with pytest.raises(UsageError, match=sentence) as caught:
        build_splits("kinetics400", [path])
    assert str(caught.value).startswith(f"{path}, line ")


def test_file_of_another_split_says_which_it_holds(tmp_path: Path) -> None:
    path = annotations(tmp_path, ROW)
    with pytest.raises(UsageError, match=r"no videos of kinetics400/train; of other splits: val \(1\)"):
        build_split("kinetics400", "train", [path])
    with pytest.raises(UsageError, match="no videos of kinetics400/val; of other splits: none"):
        build_split("kinetics400", "val", [annotations(tmp_path)])


@pytest.mark.parametrize(
    ("file", "split", "num_videos", "num_classes"),
    [
        ("kinetics-400_val.head200.csv", "val", 200, 5),
        ("kinetics-400_val.special_names.csv", "val", 10, 10),
        ("kinetics-400_val.dash_ids.csv", "val", 50, None),
        ("kinetics-400_test.head200.csv", "test", 200, 0),
    ],
)
def test_official_excerpts_are_read_whole(
    testdata: Path, file: str, split: str, num_videos: int, num_classes: int | None
) -> None:
    built = build_split("kinetics400", split, [testdata / "annotations" / file])
    assert len(built.videos) == num_videos
    assert built.notes == (f"kinetics400/{split}: {num_videos} videos; {INFO.splits[split]:,} were published.",)
    if num_classes is not None:
        assert len({label for video in built.videos for label in video.labels}) == num_classes


def test_names_with_brackets_and_apostrophes_keep_their_class(testdata: Path) -> None:
    built = build_split("kinetics400", "val", [testdata / "annotations" / "kinetics-400_val.special_names.csv"])
    assert [built.classes[video.labels[0]] for video in built.videos[:3]] == [
        "hurling (sport)",
        "massaging person's head",
        "passing American football (in game)",
    ]
    assert built.videos[1].video_id == "-huT_p-r_zA_001989_001999"


@pytest.mark.parametrize(
    ("file", "sentence"),
    [
        ("kinetics-600_val.head200.csv", "line 52: 'acting in play' is no class of Kinetics-400"),
        ("activity_net.v1-3.converted_excerpt.json", "line 1: "),
        ("anet_bsn_anno_action.excerpt.json", "line 1: "),
        ("anet_bsn_video_info_new.head200.csv", "line 1: expected the header"),
        ("jester-v1-train.head200.csv", "line 1: expected the header"),
        ("EPIC_100_validation.head200.csv", "line 1: expected the header"),
        ("ssv2_train.excerpt.json", "line 1: expected the header"),
        ("ILSVRC2015_val_00030000_000000.xml", "line 1: expected the header"),
        ("mmaction2_tests/rawframe_test_list.txt", "line 1: expected the header"),
    ],
)
def test_annotations_of_other_data_sets_are_refused(testdata: Path, file: str, sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        build_splits("kinetics400", [testdata / "annotations" / file])


def test_classes_are_those_of_other_public_lists(testdata: Path) -> None:
    public = (testdata / "classes" / "mmaction2_label_map_k400.txt").read_text(encoding="utf-8").splitlines()
    assert list(read_classes("kinetics400")) == public
