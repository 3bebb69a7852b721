"""Kinetics-600 and -700, both Mini-Kinetics, and what the releases share (Kinetics-400 has its own file)."""

import json
from pathlib import Path

import pytest

from vidprep.datasets import build_split, build_splits, get, mini_kinetics
from vidprep.datasets.annotations import label_key
from vidprep.errors import UsageError
from vidprep.splits import read_classes
from vidprep.types import Video

RELEASES = ["kinetics400", "kinetics600", "kinetics700"]


def write(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.mark.parametrize("name", [*RELEASES, "mini_kinetics", "mini_kinetics_xie2018"])
def test_classes_are_numbered_in_plain_sorted_order_with_case(name: str) -> None:
    classes = read_classes(name)
    assert list(classes) == sorted(classes)


@pytest.mark.parametrize("name", RELEASES)
def test_letters_and_digits_alone_tell_classes_apart(name: str) -> None:
    classes = read_classes(name)
    assert len({label_key(class_name) for class_name in classes}) == len(classes)


@pytest.mark.parametrize(("name", "count"), [("kinetics400", 10), ("kinetics600", 19), ("kinetics700", 21)])
def test_names_with_brackets_or_apostrophe_are_kept(name: str, count: int) -> None:
    assert sum(any(mark in class_name for mark in "()'") for class_name in read_classes(name)) == count


@pytest.mark.parametrize(
    "label", ["massaging person's head", "massaging_person's_head", "massaging_persons_head", "Massaging Persons Head"]
)
def test_class_folders_of_all_spellings_are_one_class(tmp_path: Path, label: str) -> None:
    path = write(tmp_path / "val.csv", "label,youtube_id,time_start,time_end,split", f"{label},-huT_p-r_zA,1,11,val")
    built = build_split("kinetics400", "val", [path])
    assert built.classes[built.videos[0].labels[0]] == "massaging person's head"


def test_lower_case_american_football_of_600_is_a_class_of_its_own(tmp_path: Path) -> None:
    names = ["passing American football (in game)", "passing american football (not in game)"]
    rows = [f'"{name}",aaaaaaaaaa{index},0,10,val' for index, name in enumerate(names)]
    path = write(tmp_path / "val.csv", "label,youtube_id,time_start,time_end,split", *rows)
    built = build_split("kinetics600", "val", [path])
    assert [built.classes[video.labels[0]] for video in built.videos] == names
    assert "passing American football (not in game)" in read_classes("kinetics700")


def test_releases_are_not_mixed() -> None:
    k400, k600, k700 = (set(map(label_key, read_classes(name))) for name in RELEASES)
    assert len(set(read_classes("kinetics400")) - set(read_classes("kinetics600"))) == 32
    assert len(set(read_classes("kinetics600")) - set(read_classes("kinetics700"))) == 4
    assert len(k400) < len(k600) < len(k700)
    assert any("Never mix releases" in trap for trap in get("kinetics400").traps)


def test_class_of_another_release_is_refused_and_the_release_named(tmp_path: Path) -> None:
    header = "label,youtube_id,time_start,time_end,split"
    path = write(tmp_path / "val.csv", header, "bull fighting,aaaaaaaaaaa,0,10,val")
    with pytest.raises(
        UsageError, match=r"line 2: 'bull fighting' is no class of Kinetics-700 \(2020\) .*Kinetics-600"
    ):
        build_splits("kinetics700", [path])
    path = write(tmp_path / "val.csv", header, "juggling knives badly,aaaaaaaaaaa,0,10,val")
    with pytest.raises(UsageError, match=r"is no class of Kinetics-400 .no release has it."):
        build_splits("kinetics400", [path])


EXPECTED = {"train": (Video(video_id="--6bJUbfpnQ_000017_000027", labels=(0,), duration_seconds=10.0),)}


@pytest.mark.parametrize(
    "lines",
    [
        ["label,youtube_id,time_start,time_end,split", "abseiling,--6bJUbfpnQ,17,27,train"],
        ["label\tyoutube_id\ttime_start\ttime_end\tsplit", "abseiling\t--6bJUbfpnQ\t17\t27\ttrain"],
        ["abseiling,--6bJUbfpnQ,17,27,train"],
        ["abseiling\t--6bJUbfpnQ\t17\t27\ttrain"],
        ["abseiling,--6bJUbfpnQ,17,27"],
        ["abseiling;--6bJUbfpnQ;17.0;27.5;train;0"],
        ['"abseiling",--6bJUbfpnQ,17,27,train'],
    ],
)
def test_txt_of_kinetics_600_is_read_whatever_its_columns(tmp_path: Path, lines: list[str]) -> None:
    built = build_splits("kinetics600", [write(tmp_path / "train.txt", *lines)])
    assert {split: of_split.videos for split, of_split in built.items()} == EXPECTED


def test_row_of_another_width_is_refused_in_files_without_a_header(tmp_path: Path) -> None:
    path = write(tmp_path / "train.txt", "abseiling,--6bJUbfpnQ,17,27,train", "abseiling,--6bJUbf")
    with pytest.raises(UsageError, match=r"train.txt, line 2: expected 5 fields .* got 2; is the file cut short"):
        build_splits("kinetics600", [path])


@pytest.mark.parametrize("separator", [",", "\t"])
@pytest.mark.parametrize(("damage", "reason"), [("x" * 200_000, "field larger"), ('"27', "unexpected end of data")])
def test_damaged_line_is_refused_in_files_without_strict_columns(
    tmp_path: Path, separator: str, damage: str, reason: str
) -> None:
    header = [] if separator == "," else ["label\tyoutube_id\ttime_start\ttime_end"]
    fields = ["abseiling", "--6bJUbfpnQ", "17"]
    lines = [separator.join([*fields, "27"]), separator.join([*fields, damage])]
    path = write(tmp_path / "train.txt", *header, *lines)
    with pytest.raises(UsageError, match=rf"train.txt, line {len(header) + 2}: not readable as columns \({reason}"):
        build_splits("kinetics600", [path])


def test_name_of_two_splits_does_not_say_which_it_is(tmp_path: Path) -> None:
    path = write(tmp_path / "train_val.txt", "abseiling,--6bJUbfpnQ,17,27")
    with pytest.raises(UsageError, match=r"train_val.txt: its name does not say of which split it is"):
        build_splits("kinetics600", [path])


def test_incomplete_csv_of_kinetics_600_is_told_by_its_count(tmp_path: Path) -> None:
    path = write(tmp_path / "val.csv", "label,youtube_id,time_start,time_end,split", "abseiling,yq_M1PMw2hY,38,48,val")
    assert build_split("kinetics600", "val", [path]).notes == ("kinetics600/val: 1 videos; 30,000 were published.",)
    offered = [file.url.rpartition("/")[2] for file in get("kinetics600").files]
    assert {"train.txt", "val.txt", "test.csv"} <= set(offered)
    assert not {"train.csv", "val.csv"} & set(offered)


def test_file_of_kinetics_700_is_counted_though_no_number_was_published(tmp_path: Path) -> None:
    path = write(tmp_path / "val.csv", "label,youtube_id,time_start,time_end,split", "abseiling,yq_M1PMw2hY,38,48,val")
    (note,) = build_split("kinetics700", "val", [path]).notes
    assert note.startswith("kinetics700/val: 1 videos; vidprep knows no published number")


def test_classes_that_a_later_release_lacks_are_those_that_were_renamed_or_dropped() -> None:
    of_400, of_600, of_700 = (set(read_classes(f"kinetics{number}")) for number in (400, 600, 700))
    assert len(of_400 - of_600) == 32
    assert {"changing wheel", "drinking beer", "cooking chicken"} <= of_400 - of_600
    assert of_600 - of_700 == {
        "bull fighting",
        "chopping vegetables",
        "passing american football (not in game)",
        "picking fruit",
    }


def test_holdout_of_kinetics_600_is_no_part_of_test() -> None:
    assert not [file.url for file in get("kinetics600").files if "holdout" in file.url]


def test_complete_txt_beside_the_incomplete_csv_names_a_few_of_the_repeated_rows(tmp_path: Path) -> None:
    rows = [f"abseiling,{index:011d},17,27,val" for index in range(20)]
    complete = write(tmp_path / "val.txt", *rows)
    incomplete = write(tmp_path / "val.csv", "label,youtube_id,time_start,time_end,split", *rows[:12])
    built = build_split("kinetics600", "val", [incomplete, complete])
    assert len(built.videos) == 20
    assert built.notes[0].endswith("val.csv, line 2; taken once.")
    assert built.notes[5:] == (
        "7 more rows repeat an earlier one; taken once.",
        "kinetics600/val: 20 videos; 30,000 were published.",
    )


def test_json_of_deepmind_is_read_and_validate_is_val(tmp_path: Path) -> None:
    entry = {"annotations": {"label": "abseiling", "segment": [417.0, 427.0]}, "duration": 10.0, "subset": "validate"}
    path = tmp_path / "validate.json"
    path.write_text(json.dumps({"0wR5jVB-WPk": entry}, indent=1))
    assert build_split("kinetics700", "val", [path]).videos == (
        Video(video_id="0wR5jVB-WPk_000417_000427", labels=(0,), duration_seconds=10.0),
    )
    path.write_text(json.dumps({"0wR5jVB-WPk": {**entry, "annotations": {"label": "x", "segment": [1.0, 2.0]}}}))
    with pytest.raises(UsageError, match=r"validate.json, line 1: 'x' is no class of Kinetics-700"):
        build_split("kinetics700", "val", [path])


def test_labelled_test_file_of_deepmind_is_read(tmp_path: Path) -> None:
    header = "label,youtube_id,time_start,time_end,split"
    path = write(tmp_path / "test.csv", header, "drinking beer,--6bJUbfpnQ,17,27,test")
    assert build_split("kinetics400", "test", [path]).videos[0].labels == (
        read_classes("kinetics400").index("drinking beer"),
    )


def test_archives_are_listed_by_url_for_each_split() -> None:
    for name, url in (
        ("kinetics400", "https://s3.amazonaws.com/kinetics/400/val/k400_val_path.txt"),
        ("kinetics600", "https://s3.amazonaws.com/kinetics/600/val/k600_val_path.txt"),
        ("kinetics700", "https://s3.amazonaws.com/kinetics/700_2020/val/k700_2020_val_path.txt"),
    ):
        (file,) = [file for file in get(name).files if file.kind == "url_list" and file.split == "val"]
        assert (file.url, file.unpack_to) == (url, "val")


def test_two_sets_called_mini_kinetics_share_102_classes() -> None:
    arnet, xie = set(read_classes("mini_kinetics")), set(read_classes("mini_kinetics_xie2018"))
    assert len(arnet & xie) == 102
    assert arnet | xie <= set(read_classes("kinetics400"))


def test_paths_with_spaces_are_cut_from_the_right(tmp_path: Path) -> None:
    path = write(tmp_path / "mini_val_videofolder.txt", "val/air drumming/-_a bJUb_pnQ_000000_000010 52 0\r")
    (video,) = build_split("mini_kinetics", "val", [path]).videos
    assert video.video_id == "-_a bJUb_pnQ_000000_000010"


def test_mini_kinetics_of_kinetics_400_keeps_its_200_classes(tmp_path: Path) -> None:
    header = "label,youtube_id,time_start,time_end,split,is_cc"
    rows = ["yoga,aaaaaaaaaaa,0,10,val,0", "abseiling,bbbbbbbbbbb,0,10,val,0", "abseiling,ccccccccccc,0,10,val,0"]
    built = build_split("mini_kinetics", "val", [write(tmp_path / "val.csv", header, *rows)])
    assert built.videos == (Video(video_id="aaaaaaaaaaa_000000_000010", labels=(199,), duration_seconds=10.0),)
    assert "2 clips are of the other 200 classes of Kinetics-400" in built.notes[0]


def test_list_of_the_other_mini_kinetics_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "mini_val_videofolder.txt", "val/air drumming/7LSJ2Ryv1a8_000000_000010 52 1")
    with pytest.raises(UsageError, match=r"line 1: class 1 is 'answering questions' here, but the folder is 'air drum"):
        build_splits("mini_kinetics", [path])
    ids = write(tmp_path / "val_ytid_list.txt", "aaaaaaaaaaa")
    header = "label,youtube_id,time_start,time_end,split"
    only_arnet = next(
        name for name in read_classes("mini_kinetics") if name not in read_classes("mini_kinetics_xie2018")
    )
    table = write(tmp_path / "val.csv", header, f'"{only_arnet}",aaaaaaaaaaa,0,10,val')
    with pytest.raises(UsageError, match=r"line 1: aaaaaaaaaaa is of .* none of the 200 classes of Xie"):
        build_splits("mini_kinetics_xie2018", [ids, table])


def test_id_of_two_clips_is_noted_with_the_one_that_is_taken(tmp_path: Path) -> None:
    header = "label,youtube_id,time_start,time_end,split,is_cc"
    rows = ["yoga,aaaaaaaaaaa,0,10,val,0", "yoga,aaaaaaaaaaa,50,60,val,0", "yoga,bbbbbbbbbbb,0,10,val,0"]
    table = write(tmp_path / "val.csv", header, *rows, rows[2])
    ids = write(tmp_path / "val_ytid_list.txt", "aaaaaaaaaaa", "bbbbbbbbbbb")
    built = build_split("mini_kinetics_xie2018", "val", [ids, table])
    assert [video.video_id for video in built.videos] == ["aaaaaaaaaaa_000000_000010", "bbbbbbbbbbb_000000_000010"]
    (note,) = [note for note in built.notes if "aaaaaaaaaaa" in note]
    assert "aaaaaaaaaaa is the id of 2 clips (aaaaaaaaaaa_000000_000010 'yoga' in " in note
    assert note.endswith("val.csv, line 3); the first is taken.")


def test_xie_needs_ids_and_annotations(tmp_path: Path) -> None:
    ids = write(tmp_path / "val_ytid_list.txt", "aaaaaaaaaaa")
    header = "label,youtube_id,time_start,time_end,split"
    with pytest.raises(UsageError, match=r"needs both; Kinetics-400's file \(val.csv\) is not among them"):
        build_splits("mini_kinetics_xie2018", [ids])
    table = write(tmp_path / "val.csv", header, "abseiling,bbbbbbbbbbb,0,10,val")
    with pytest.raises(UsageError, match=r"needs both; the list of YouTube ids"):
        build_splits("mini_kinetics_xie2018", [table])
    with pytest.raises(UsageError, match=r"none of its 1 ids is in the val split"):
        build_splits("mini_kinetics_xie2018", [ids, table])
    ids = write(tmp_path / "val_ytid_list.txt", "aaaaaaaaaaa", "too short")
    with pytest.raises(UsageError, match=r"line 2: expected a YouTube id of 11 characters, got 'too short'"):
        build_splits("mini_kinetics_xie2018", [ids, table])


def test_five_fps_of_taps_are_52_frames_of_ten_seconds() -> None:
    frames = mini_kinetics.INFO.frames
    assert (frames.fps, frames.rate_mode, frames.template) == (5.0, "output", "image_{:05d}.jpg")
