from collections import Counter
from pathlib import Path

import pytest

from tests.vidprep.test_export import call, write_frames
from vidprep.datasets import load_split
from vidprep.errors import UsageError
from vidprep.layouts import LAYOUTS, Layout, class_folder, find_layout
from vidprep.layouts.lists import FrameList, check_frames, format_classes, read_class_file, read_list
from vidprep.splits import read_classes

ROOT = Path("/data")
CLASSES_OF_OWN = tuple(f"class {index}" for index in range(128))


def read(path: Path, name: str, *, split: str = "val", root: Path = ROOT, class_file: Path | None = None) -> FrameList:
    code, _, rest = name.partition("/")
    dataset, _, variant = rest.partition(":")
    classes = CLASSES_OF_OWN if dataset == "folder" and class_file is None else None
    layout = find_layout(code, dataset, variant)
    return read_list(path, layout, split=split, root=root, classes=classes, class_file=class_file)


def write(folder: Path, text: str) -> Path:
    path = folder / "list.txt"
    path.write_bytes(text.encode())
    return path


@pytest.mark.parametrize(
    ("file", "name", "split", "num_videos", "first", "frames"),
    [
        ("taps_actnet_train_videofolder_aug23.txt", "taps/activitynet", "train", 9_897, "sJFgo9H6zNo", 141),
        ("taps_actnet_val_videofolder_aug23.txt", "taps/activitynet", "val", 4_862, "JDg--pjY5gg", 128),
        ("taps_mini_val_videofolder_aug23.txt", "taps/mini_kinetics", "val", 9_860, "7LSJ2Ryv1a8_000000_000010", 52),
        ("taps_jester_train_split.head200.txt", "taps/jester", "train", 200, "34870", 37),
        ("taps_jester_validation_split.head200.txt", "taps/jester", "val", 200, "9223", 35),
        ("taps_ssv2_train_videofolder.head200.txt", "taps/something_v2", "train", 200, "194181", 45),
        ("taps_ssv2_val_videofolder.head200.txt", "taps/something_v2", "val", 200, "32", 29),
        ("taps_ssv2half1_train_videofolder.head200.txt", "taps/something_v2:half1", "train", 200, "126639", 46),
        ("taps_ssv2half1_val_videofolder.head200.txt", "taps/something_v2:half1", "val", 200, "32", 29),
        (
            "adafuse_mini_val_videofolder.txt",
            "uni_adafocus/mini_kinetics",
            "val",
            9_867,
            "7LSJ2Ryv1a8_000000_000010",
            60,
        ),
        ("adafuse_mini_val.head200.txt", "uni_adafocus/mini_kinetics", "val", 200, "7LSJ2Ryv1a8_000000_000010", 60),
        ("adafuse_sthv1_train_split.head200.txt", "uni_adafocus/something_v1:adafuse", "train", 200, "100218", 42),
        ("adafuse_sthv1_validation_split.head200.txt", "uni_adafocus/something_v1:adafuse", "val", 200, "85", 46),
    ],
)
def test_published_lists_parse_whole(
    testdata: Path, file: str, name: str, split: str, num_videos: int, first: str, frames: int
) -> None:
    listed = read(testdata / "lists" / file, name, split=split)
    assert (len(listed.rows), len(listed.split.videos)) == (num_videos, num_videos)
    assert (listed.split.videos[0].video_id, listed.rows[0].num_frames) == (first, frames)
    assert listed.split.notes == ()


def test_mini_kinetics_of_taps_has_52_frames_in_8430_of_9860_clips_and_200_classes(testdata: Path) -> None:
    taps = read(testdata / "lists" / "taps_mini_val_videofolder_aug23.txt", "taps/mini_kinetics")
    assert Counter(row.num_frames for row in taps.rows)[52] == 8_430
    assert len({video.labels for video in taps.split.videos}) == 200
    assert str(taps.rows[0].source) == (
        "/data/Kinetics_400/mini_kinetics_frames_aug23/val/air drumming/7LSJ2Ryv1a8_000000_000010"
    )
    adafuse = read(testdata / "lists" / "adafuse_mini_val_videofolder.txt", "uni_adafocus/mini_kinetics")
    labels = {video.video_id: video.labels for video in adafuse.split.videos}
    assert all(labels[video.video_id] == video.labels for video in taps.split.videos)


def test_half1_numbers_are_read_into_those_of_the_whole_set(testdata: Path) -> None:
    whole = read(testdata / "lists" / "taps_ssv2_val_videofolder.head200.txt", "taps/something_v2").split.videos
    half = read(
        testdata / "lists" / "taps_ssv2half1_val_videofolder.head200.txt", "taps/something_v2:half1"
    ).split.videos
    labels = {video.video_id: video.labels for video in whole}
    shared = [video for video in half if video.video_id in labels]
    assert len(shared) > 50
    assert all(labels[video.video_id] == video.labels for video in shared)


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("taps_actnet_classInd.txt", "taps/activitynet"),
        ("taps_minik_classInd.txt", "taps/mini_kinetics"),
        ("taps_jester_classInd.txt", "taps/jester"),
        ("taps_ssv2_classInd.txt", "taps/something_v2"),
        ("taps_ssv2half1_classInd.txt", "taps/something_v2:half1"),
        ("adafuse_minik_classInd.txt", "uni_adafocus/mini_kinetics"),
        ("tam_kinetics_label_map.txt", "tam/kinetics400"),
    ],
)
def test_class_files_are_written_byte_for_byte_and_read_back(testdata: Path, file: str, name: str) -> None:
    layout = next(layout for layouts in LAYOUTS.values() for layout in layouts if layout.name == name)
    classes = read_classes(layout.dataset)
    assert format_classes(layout, classes).encode() == (testdata / "classes" / file).read_bytes()
    assert read_class_file(testdata / "classes" / file, classes) == layout.order_classes(classes)


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("adafuse_sthv1_classInd.txt", "uni_adafocus/something_v1:adafuse"),
        ("mmaction2_sthv1_label_map.txt", "mmaction2/something_v1"),
        ("mmaction2_sthv2_label_map.txt", "mmaction2/something_v2"),
        ("mmaction2_jester_label_map.txt", "mmaction2/jester"),
        ("mmaction2_activitynet_label_map.txt", "mmaction2/activitynet"),
        ("mmaction2_label_map_k400.txt", "mmaction2/kinetics400"),
        ("mmaction2_label_map_k600.txt", "mmaction2/kinetics600"),
        ("mmaction2_label_map_k700.txt", "mmaction2/kinetics700"),
    ],
)
def test_layouts_number_classes_as_the_published_class_files(testdata: Path, file: str, name: str) -> None:
    layout = next(layout for layouts in LAYOUTS.values() for layout in layouts if layout.name == name)
    classes = read_classes(layout.dataset)
    assert read_class_file(testdata / "classes" / file, classes) == layout.order_classes(classes)


@pytest.mark.parametrize(
    ("file", "variant", "first", "row"),
    [
        ("rawframe_test_list.txt", "", "imgs", ((127,), 5, 1)),
        ("rawframe_test_list_with_offset.txt", "offset", "imgs@2", ((127,), 5, 2)),
        ("video_test_list.txt", "videos", "test.mp4", ((127,), None, 0)),
    ],
)
def test_mmaction2_lists_repeat_a_line_that_is_taken_once(
    testdata: Path, file: str, variant: str, first: str, row: tuple[tuple[int, ...], int | None, int]
) -> None:
    path = testdata / "annotations/mmaction2_tests" / file
    if variant == "videos":
        row = ((0,), None, 0)
    listed = read(path, f"mmaction2/folder:{variant}" if variant else "mmaction2/folder")
    [found] = listed.rows
    assert (found.video_id, (found.labels, found.num_frames, found.first_index)) == (first, row)
    assert listed.split.notes == (f"{path}, line 2: repeats line 1; taken once.",)


@pytest.mark.parametrize("file", ["rawframe_test_list_multi_label.txt", "video_test_list_multi_label.txt"])
def test_a_path_with_two_sets_of_labels_is_refused(testdata: Path, file: str) -> None:
    variant = "multi_label" if "rawframe" in file else "videos_multi_label"
    with pytest.raises(UsageError, match=r"line 2: \S+ was listed on line 1 with other numbers"):
        read(testdata / "annotations/mmaction2_tests" / file, f"mmaction2/folder:{variant}")


def test_several_labels_are_read(tmp_path: Path) -> None:
    listed = read(write(tmp_path, "imgs 5 3 5\nother 7 1\n"), "mmaction2/folder:multi_label")
    assert [video.labels for video in listed.split.videos] == [(3, 5), (1,)]
    listed = read(write(tmp_path, "v_a,141,57,60\nv_b,12,3"), "uni_adafocus/activitynet")
    assert [(video.video_id, video.labels) for video in listed.split.videos] == [("a", (57, 60)), ("b", (3,))]


def test_flow_beside_frames_is_not_counted(testdata: Path, tmp_path: Path) -> None:
    (tmp_path / "rawframes").symlink_to(testdata / "frames")
    listed = read(write(tmp_path, "mmaction2_imgs 10 1\n"), "mmaction2/folder", root=tmp_path)
    assert check_frames(listed) == ()
    listed = read(write(tmp_path, "mmaction2_imgs 20 1\n"), "mmaction2/folder", root=tmp_path)
    [fault] = check_frames(listed)
    assert fault.reason == (
        "holds 10 frames, expected 20: img_00011.jpg, img_00012.jpg, img_00013.jpg and 7 more are missing (line 1)"
    )


def test_holes_extra_frames_and_missing_folders_are_reported(tmp_path: Path) -> None:
    for name in ("1", "2"):
        write_frames(tmp_path / "jester/20bn-jester-v1" / name, 5)
    (tmp_path / "jester/20bn-jester-v1/1/00002.jpg").unlink()
    listed = read(write(tmp_path, "1 5 0\n2 3 0\n3 5 0\n"), "taps/jester", root=tmp_path)
    assert [(fault.video_id, fault.reason) for fault in check_frames(listed)] == [
        ("1", "holds 4 frames, expected 5: 00002.jpg is missing (line 1)"),
        ("2", "holds 5 frames, expected 3: 2 frames besides (00004.jpg ...) (line 2)"),
        ("3", "no such folder (line 3)"),
    ]


def test_an_offset_names_a_part_of_a_folder(tmp_path: Path) -> None:
    write_frames(tmp_path / "rawframes/imgs", 10, template="img_{:05d}.jpg")
    listed = read(write(tmp_path, "imgs 2 5 127\nimgs 7 5 1"), "mmaction2/folder:offset", root=tmp_path)
    assert [video.video_id for video in listed.split.videos] == ["imgs@2", "imgs@7"]
    assert [(fault.video_id, "img_00011.jpg is missing" in fault.reason) for fault in check_frames(listed)] == [
        ("imgs@7", True)
    ]


@pytest.mark.parametrize("text", ["1 5 24", "1 5 24\n", "1 5 24\r\n", "\ufeff1 5 24\r\n\r\n", "\n1 5 24  \n"])
def test_line_ends_marks_and_blank_lines_do_not_matter(text: str, tmp_path: Path) -> None:
    [row] = read(write(tmp_path, text), "taps/jester").rows
    assert (row.video_id, row.num_frames, row.labels) == ("1", 5, (24,))


@pytest.mark.parametrize(
    ("text", "name", "sentence"),
    [
        ("1 5 0\n2 5\n", "taps/jester", r"line 2: expected PATH FRAMES LABEL, got '2 5'; is the line cut short\?"),
        ("v_a,5\n", "uni_adafocus/activitynet", r"line 1: expected PATH,FRAMES,LABEL\[,LABEL \.\.\.\], got 'v_a,5'"),
        ("1 5 27\n", "taps/jester", r"line 1: class 27, expected 0 to 26; are its classes counted from 1\?"),
        ("1 5 -1\n", "taps/jester", r"line 1: expected PATH FRAMES LABEL, got '1 5 -1'"),
        ("1 0 3\n", "taps/jester", r"line 1: 1 has 0 frames; take the line out"),
        ("a 5 3\n", "taps/activitynet", r"line 1: expected PATH,FRAMES,LABEL, got 'a 5 3'"),
        ("a,5,3\n", "taps/activitynet", r"line 1: expected a path like v_\{video_id\}, got 'a'"),
        ("v_a,5,1,2,3,4\n", "uni_adafocus/activitynet", r"line 1: 4 classes, uni_adafocus takes 3 at most"),
        ("train/yoga/a 52 199\n", "taps/mini_kinetics", r"line 1: train/yoga/a lies in train/, the list is of val"),
        (
            "val/yoga/a 52 19\n",
            "taps/mini_kinetics",
            r"line 1: lies in the folder 'yoga' and is labelled '.*class file",
        ),
        ("1 5 0\n1 6 0\n", "taps/jester", r"line 2: 1 was listed on line 1 with other numbers"),
        ("", "taps/jester", r"holds no line; expected PATH FRAMES LABEL"),
        ("my clip.mp4 3\n", "mmaction2/folder:videos", r"'my clip.mp4' holds a space, which mmaction2 takes"),
        ("a.mp4 3\n", "sta/kinetics400", r"line 1: sta lists whole paths, got 'a.mp4'"),
        ("/k/my clip.mp4 3\n", "sta/kinetics400", r"holds a space, which sta takes for the end of the path"),
        ("/k/a.mp4  3\n", "sta/kinetics400", r"'/k/a.mp4 ' holds a space"),
        (
            "1 5 0\n.. 5 0\n",
            "taps/jester",
            r"line 2: expected a path like \{video_id\}, got '..', which leads elsewhere",
        ),
        ("../.. 5 0\n", "mmaction2/folder", r"line 1: expected a path like .*, got '../..', which leads elsewhere"),
        ("a/../../x,5,0\n", "uni_adafocus/fcvid", r"line 1: .* got 'a/../../x', which leads elsewhere"),
        ("/etc/passwd 5 0\n", "mmaction2/folder", r"line 1: mmaction2 lists paths below /data/raw.*'/etc/passwd'"),
        ("/etc/passwd,5,0\n", "uni_adafocus/fcvid", r"line 1: uni_adafocus lists paths below .*'/etc/passwd'"),
        ("val/part_0/...mp4 5 0\n", "tam/kinetics400:videos", r"line 1: .* which leads elsewhere"),
        ("/k/...mp4 0\n", "sta/kinetics400", r"line 1: .* which leads elsewhere"),
        ("a\0b 5 0\n", "taps/jester", r"line 1: .* which leads elsewhere"),
        ("x", "rgtp/kinetics400", r"reads the official label files \(labels.csv\).*use `vidprep split kinetics400`"),
        ("x", "rgtp/epic_kitchens", r"reads the official label files \(EPIC_100_validation.csv\)"),
    ],
)
def test_wrong_lists_are_refused_with_line_and_reason(text: str, name: str, sentence: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=sentence):
        read(write(tmp_path, text), name)


def test_a_binary_file_is_no_list(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="not a text file in UTF-8"):
        read(tmp_path / "a", "taps/jester")
    with pytest.raises(UsageError, match="b: cannot be read"):
        read(tmp_path / "b", "taps/jester")


def test_sta_lists_of_files_anywhere_are_read_by_their_names(tmp_path: Path) -> None:
    text = "/mnt/k400/val/abseiling/0wR5jVB-WPk_000417_000427.mp4 0\n"
    [row] = read(write(tmp_path, text), "sta/kinetics400").rows
    assert (row.video_id, row.source) == ("0wR5jVB-WPk_000417_000427", Path(text.split()[0]))


def test_whole_paths_of_tams_list_maker_are_read(tmp_path: Path) -> None:
    text = f"{tmp_path}/val/part_3/0wR5jVB-WPk_000417_000427.mp4 300 0"
    [row] = read(write(tmp_path, text), "tam/kinetics400:videos").rows
    assert (row.video_id, row.source) == ("0wR5jVB-WPk_000417_000427", Path(text.split()[0]))
    [row] = read(write(tmp_path, "val/0wR5jVB-WPk_000417_000427.mp4 300 0"), "tam/kinetics400:videos").rows
    assert row.source == Path("/data/k400/val/0wR5jVB-WPk_000417_000427.mp4")


def test_tsm_lists_with_their_longer_prefix_and_sorted_numbers_are_read(tmp_path: Path) -> None:
    path = write(tmp_path, "something/v1/img/100218 42 134\n100219 40 31")
    folder = write_frames(tmp_path / "something-something-v1/20bn-something-something-v1/100218", 42)
    listed = read(path, "uni_adafocus/something_v1", root=tmp_path)
    assert [row.source for row in listed.rows] == [folder, folder.with_name("100219")]
    assert [video.video_id for video in listed.split.videos] == ["100218", "100219"]
    assert listed.split.videos[0].labels == (31,)


def test_a_class_file_replaces_the_order_of_the_layout(tmp_path: Path) -> None:
    classes = tmp_path / "category.txt"
    classes.write_text("\n".join(sorted(read_classes("jester"))))
    listed = read(write(tmp_path, "34870 37 1"), "taps/jester", class_file=classes)
    assert listed.split.classes[listed.split.videos[0].labels[0]] == "Drumming Fingers"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("Swiping Left\nSwiping Up\nSwiping Left\n", "line 3: 'Swiping Left' was on line 1 already"),
        ("Swiping Left\nyoga\n", "line 2: 'yoga' is none of the 27 classes"),
        ("1,Swiping Left\n", "line 1: expected class 0, got 1; ids count from 0"),
    ],
)
def test_wrong_class_files_are_refused(text: str, sentence: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=sentence):
        read_class_file(write(tmp_path, text), read_classes("jester"))


def test_class_folders_are_spelt_in_three_ways() -> None:
    name = "massaging person's head"
    assert class_folder(name, "as_is") == name
    assert class_folder(name, "underscore") == "massaging_person's_head"
    assert class_folder(name, "tsm") == "massaging_persons_head"
    assert class_folder("hurling (sport)", "tsm") == "hurling_sport"


def test_an_own_list_with_frames_goes_to_shards(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root, back = tmp_path / "root", tmp_path / "back"
    write_frames(root / "rawframes/imgs", 5, template="img_{:05d}.jpg")
    write_frames(root / "rawframes/more", 6, template="img_{:05d}.jpg")
    (tmp_path / "classes.txt").write_text("walk\nrun\n")
    path = write(tmp_path, "imgs 5 1\nmore 5 0\n")
    given = ["import-list", path, "--dataset", "folder", "--layout", "mmaction2", "--split", "train", "--workers", 1]
    assert call(*given, "--root", root, "--data-root", back) == 2
    assert "needs a --class-file" in capsys.readouterr().err
    more = ["--root", root, "--data-root", back, "--class-file", tmp_path / "classes.txt", "--copy-frames"]
    assert call(*given, *more) == 1
    assert "1 of 2 videos are not as listed:\n  more: holds 6 frames, expected 5" in capsys.readouterr().out
    split = load_split("folder", "train", data_root=back)
    assert (split.classes, [video.labels for video in split.videos]) == (("walk", "run"), [(1,), (0,)])
    arguments = ["shard", "-d", "folder", "--data-root", back, "-s", "train", "--from", "frames", "-w", 1]
    assert call(*arguments, "--out", tmp_path / "shards") == 0


def test_templates_become_patterns_that_name_their_fields() -> None:
    layout: Layout = find_layout("tam", "kinetics400", "videos")
    found = layout.pattern(layout.path).fullmatch("val/part_12/a_000001_000011.mp4")
    assert found is not None
    assert found.groupdict() == {"split": "val", "part": "12", "video_id": "a_000001_000011", "suffix": ".mp4"}
