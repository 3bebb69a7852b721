import csv
import gzip
import hashlib
import io
import itertools
import json
import tarfile
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import av
import numpy as np
import pytest
from PIL import Image

from tests.videos import read_number
from tests.vidprep.conftest import Make
from vidprep.cli import app
from vidprep.errors import CorruptVideo, UnknownName, UsageError
from vidprep.miniature import MAKERS, make_miniature, read_miniature
from vidprep.miniature.videos import write_numbered_video
from vidprep.probe import check
from vidprep.splits import read_classes


def digest(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def members(archive: Path | bytes) -> dict[str, bytes]:
    content = archive.read_bytes() if isinstance(archive, Path) else archive
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        files = [member for member in tar.getmembers() if member.isfile()]
        return {member.name: read_member(tar, member) for member in files}


def read_member(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(member)
    assert file is not None
    return file.read()


def read_rows(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text().splitlines()))


def join(parts: Iterable[Path]) -> bytes:
    return b"".join(path.read_bytes() for path in sorted(parts))


# What all miniatures are


@pytest.mark.parametrize("name", sorted(MAKERS))
def test_a_miniature_says_what_it_is_in_expected_json(name: str, make: Make) -> None:
    made = make(name)
    assert read_miniature(made.folder) == made
    assert all(path.is_file() for path in made.annotation_files)
    assert made.archives.is_dir()
    assert made.traps
    assert all(split.samples for split in made.splits.values())
    assert any(fault.flaw == "missing" for split in made.splits.values() for fault in split.faults)


@pytest.mark.parametrize("name", sorted(MAKERS))
def test_no_two_samples_but_overlapping_segments_share_a_number(name: str, make: Make) -> None:
    ranges: dict[str, tuple[int, int]] = {}
    for split in make(name).splits.values():
        for sample in split.samples:
            first, last = ranges.get(sample.video_id, (sample.first_number, sample.last_number))
            ranges[sample.video_id] = min(first, sample.first_number), max(last, sample.last_number)
    in_order = sorted(ranges.values())
    assert all(earlier[1] < later[0] for earlier, later in itertools.pairwise(in_order))


@pytest.mark.parametrize("name", ["something_v2", "imagenet_vid"])
def test_the_same_seed_gives_the_same_bytes_and_another_one_others(name: str, make: Make, tmp_path: Path) -> None:
    again = make_miniature(name, tmp_path / "again")
    other = make_miniature(name, tmp_path / "other", seed=1)
    assert digest(again.folder) == digest(make(name).folder)
    names = {sample.video_id for split in again.splits.values() for sample in split.samples}
    other_names = {sample.video_id for split in other.splits.values() for sample in split.samples}
    assert not names & other_names


def test_a_miniature_with_all_its_codecs_comes_out_the_same_twice(make: Make, tmp_path: Path) -> None:
    assert digest(make_miniature("epic_kitchens", tmp_path / "again").folder) == digest(make("epic_kitchens").folder)


def test_an_unknown_data_set_is_refused_with_its_neighbours(tmp_path: Path) -> None:
    with pytest.raises(UnknownName, match=r"no miniature of a data set 'kinetics40'; did you mean kinetics400"):
        make_miniature("kinetics40", tmp_path / "new")


def test_a_folder_with_something_in_it_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match="there is something already; give a new or empty folder"):
        make_miniature("jester", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_an_empty_folder_is_taken(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    make_miniature("jester", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert (tmp_path / "out" / "expected.json").is_file()


def test_a_failure_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("vidprep.miniature.twenty_bn.make_zip", fail)
    with pytest.raises(KeyboardInterrupt):
        make_miniature("jester", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_negative_seed_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="a seed is 0 or more, got -1"):
        make_miniature("jester", tmp_path / "out", seed=-1)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"splits": 3}'])
def test_a_file_that_is_no_description_is_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / "expected.json").write_text(content)
    with pytest.raises(UsageError, match=r"expected\.json: not the description of a miniature"):
        read_miniature(tmp_path)


def test_the_command_says_what_it_made_and_how_to_go_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    app(["miniature", "jester", "--out", str(tmp_path / "out")], standalone_mode=False)
    said = capsys.readouterr().out
    assert "train: 4 samples, 3 faulty\n" in said
    assert "  dead video: " in said
    assert f"  vidprep download jester --from {tmp_path}/out/archives --data-root ROOT\n" in said
    assert f"--annotations {tmp_path}/out/annotations/jester-v1-train.csv" in said


def test_a_numbered_video_may_have_a_tone(tmp_path: Path) -> None:
    path = write_numbered_video(tmp_path / "with.mp4", num_frames=20, fps=10, has_audio=True)
    container: Any = av.open(str(path))
    with container:
        [audio] = container.streams.audio
        assert audio.codec_context.name == "aac"
        assert sum(frame.samples for frame in container.decode(audio)) == pytest.approx(2 * 44_100, abs=2 * 1024)
    assert check(path).num_frames == 20


# The Kinetics family


def test_kinetics400_is_flat_tars_of_mp4_with_sound_beside_a_list_of_addresses(make: Make) -> None:
    made = make("kinetics400")
    train = made.archives / "train"
    addresses = (train / "k400_train_path.txt").read_text().splitlines()
    assert addresses == [f"https://s3.amazonaws.com/kinetics/400/train/part_{index}.tar.gz" for index in range(2)]
    clips = members(train / "part_0.tar.gz") | members(train / "part_1.tar.gz")
    assert all("/" not in name and len(name) == 11 + 7 + 7 + 4 for name in clips)
    sample = made.splits["train"].samples[1]
    content = clips[f"{sample.video_id}.mp4"]
    facts = check(content)
    assert (facts.codec, facts.num_frames) == ("h264", sample.num_frames)
    assert facts.duration_seconds == pytest.approx(10)
    with av.open(io.BytesIO(content)) as container:
        assert [stream.codec_context.name for stream in container.streams.audio] == ["aac"]


def test_one_archive_of_kinetics400_is_a_plain_tar_named_tar_gz(make: Make) -> None:
    train = make("kinetics400").archives / "train"
    assert (train / "part_0.tar.gz").read_bytes()[:2] == b"\x1f\x8b"
    assert (train / "part_1.tar.gz").read_bytes()[257:262] == b"ustar"


def test_the_replacement_of_a_truncated_clip_is_whole(make: Make) -> None:
    made = make("kinetics400")
    video_id = made.traps["truncated file with a replacement"]
    train = made.archives / "train"
    clips = members(train / "part_0.tar.gz") | members(train / "part_1.tar.gz")
    with pytest.raises(CorruptVideo, match="moov atom"):
        check(clips[f"{video_id}.mp4"])
    [(name, content)] = members(made.archives / "replacement_for_corrupted_k400.tgz").items()
    assert name == f"replacement_for_corrupted_k400/{video_id}.mp4"
    assert check(content).num_frames == 100


def test_kinetics400_quotes_labels_with_spaces_and_brackets_only(make: Make) -> None:
    folder = make("kinetics400").folder / "annotations"
    lines = (folder / "train.csv").read_text().splitlines()
    assert lines[0] == "label,youtube_id,time_start,time_end,split,is_cc"
    assert any(line.startswith("abseiling,") for line in lines)
    assert any(line.startswith('"massaging person\'s head",--') for line in lines)
    assert b"\r\n" in (folder / "val.csv").read_bytes()
    test = (folder / "test.csv").read_text()
    assert test.startswith("youtube_id,time_start,time_end,split\n")
    assert not test.endswith("\n")


def test_kinetics600_never_quotes_and_has_an_incomplete_csv(make: Make) -> None:
    folder = make("kinetics600").folder / "annotations"
    assert '"' not in (folder / "train.txt").read_text()
    assert "passing american football (not in game)," in (folder / "train.txt").read_text()
    whole, part = ((folder / file).read_text().splitlines() for file in ("val.txt", "val.csv"))
    assert len(part) < len(whole)
    assert whole[: len(part)] == part


def test_kinetics700_has_one_archive_a_class_numbered_by_the_class(make: Make) -> None:
    archives = make("kinetics700").archives
    classes = read_classes("kinetics700")
    names = {path.name: set(members(path)) for path in (archives / "train").glob("*.tar.gz")}
    for name, files in names.items():
        [class_name] = {file.partition("/")[0] for file in files}
        assert name == f"k700_train_{classes.index(class_name) + 1:03d}.tar.gz"
    assert "k700_train_001.tar.gz" in names  # abseiling


def test_mini_kinetics_comes_with_clips_of_classes_that_it_leaves_out(make: Make) -> None:
    for name in ("mini_kinetics", "mini_kinetics_xie2018"):
        made = make(name)
        foreign = made.traps["class of Kinetics-400 that the set leaves out"]
        assert foreign in read_classes("kinetics400")
        assert foreign not in read_classes(name)
        assert foreign in [row["label"] for row in read_rows(made.folder / "annotations" / "train.csv")]
    assert len((made.folder / "annotations" / "val_ytid_list.txt").read_text().split()) == 3


# Something-Something and Jester


def test_something_v2_is_vp9_in_webm_at_twelve_frames_a_second(make: Make) -> None:
    made = make("something_v2")
    parts = sorted(made.archives.glob("20bn-something-something-v2-??"))
    assert [path.name[-3:] for path in parts] == ["-00", "-01"]
    clips = members(join(parts))
    sample = made.splits["train"].samples[0]
    content = clips[f"20bn-something-something-v2/{sample.video_id}.webm"]
    facts = check(content)
    assert (facts.codec, facts.width, facts.height, facts.num_frames) == ("vp9", 427, 240, sample.num_frames)
    assert facts.fps == pytest.approx(12, abs=0.1)
    with av.open(io.BytesIO(content)) as container:
        assert container.format.name == "matroska,webm"
        assert not container.streams.audio
        assert container.streams.video[0].frames == 0
        assert container.streams.video[0].duration is None


def test_a_part_after_the_first_has_no_magic_bytes(make: Make) -> None:
    for name, part in (("something_v2", "20bn-something-something-v2-01"), ("jester", "20bnjester-v1-01")):
        content = (make(name).archives / part).read_bytes()
        assert content[:2] not in (b"\x1f\x8b", b"PK")
        with pytest.raises(gzip.BadGzipFile):
            gzip.decompress(content)


def test_labels_of_something_v2_are_strings_and_templates_keep_their_brackets(make: Make) -> None:
    folder = make("something_v2").folder / "annotations"
    labels = json.loads((folder / "something-something-v2-labels.json").read_text())
    assert list(labels) == list(read_classes("something_v2"))
    assert labels["Approaching something with your camera"] == "0"
    entries = json.loads((folder / "something-something-v2-train.json").read_text())
    assert all(labels[entry["template"].replace("[", "").replace("]", "")] for entry in entries)
    assert any(entry["template"].startswith("[Something]") for entry in entries)
    assert list(entries[0]) == ["id", "label", "template", "placeholders"]
    assert list(json.loads((folder / "something-something-v2-test.json").read_text())[0]) == ["id"]


@pytest.mark.parametrize(
    ("name", "folder"), [("something_v1", "20bn-something-something-v1"), ("jester", "20bn-jester-v1")]
)
def test_jester_and_something_v1_are_folders_of_jpeg_from_00001(name: str, folder: str, make: Make) -> None:
    made = make(name)
    files = members(join(path for path in made.archives.iterdir() if path.suffix != ".zip"))
    sample = made.splits["train"].samples[0]
    of_sample = [file for file in files if file.startswith(f"{folder}/{sample.video_id}/")]
    assert of_sample == [f"{folder}/{sample.video_id}/{index:05d}.jpg" for index in range(1, sample.num_frames + 1)]
    picture = np.asarray(Image.open(io.BytesIO(files[of_sample[-1]])))
    assert picture.shape[0] == 100
    assert read_number(picture) == sample.last_number


def test_the_package_of_labels_holds_them_under_their_short_names(make: Make) -> None:
    made = make("jester")
    with zipfile.ZipFile(made.archives / "20bn-jester-download-package-labels.zip") as package:
        assert package.namelist() == [
            f"labels/{key}.csv" for key in ("labels", "test-answers", "test", "train", "validation")
        ]
        assert package.read("labels/train.csv") == (made.folder / "annotations" / "jester-v1-train.csv").read_bytes()
    validation = (made.folder / "annotations" / "jester-v1-validation.csv").read_bytes()
    assert b"\r\n" in validation
    assert not validation.endswith(b"\n")


# ActivityNet and FCVID


def test_activitynet_comes_in_eight_archives_that_hold_a_split_only_together(make: Make) -> None:
    made = make("activitynet")
    names = sorted(path.name for path in made.archives.iterdir())
    assert len(names) == 8
    folders: dict[str, str] = {}
    for archive in made.archives.iterdir():
        if archive.suffix == ".zip":
            with zipfile.ZipFile(archive) as package:
                files = package.namelist()
        else:
            files = list(members(archive))
        folders |= {file.rpartition("/v_")[2].rpartition(".")[0]: file.rpartition("/")[0] for file in files}
    train = {folders[sample.video_id] for sample in made.splits["train"].samples}
    assert train == {"v1-2/train", "v1-3/train_val", "missing_files"}


def test_activitynet_has_segments_beyond_the_video_and_videos_of_two_classes(make: Make) -> None:
    made = make("activitynet")
    content = json.loads(made.annotation_files[0].read_text())
    assert content["version"] == "VERSION 1.3"
    database = content["database"]
    entry = database[made.traps["segment that ends after the video"]]
    assert entry["annotations"][0]["segment"][1] > entry["duration"]
    two = made.traps["video of two classes, the later one in the order of names first"]
    [sample] = [sample for sample in made.splits["train"].samples if sample.video_id == two]
    assert sample.labels[0] > sample.labels[1]


def test_the_tables_of_fcvid_belong_together_row_by_row(make: Make) -> None:
    made = make("fcvid")
    names, matrix = (path.read_text().split("\n") for path in made.annotation_files)
    names = [line for line in names if line]
    assert len(names) == len(matrix)
    labels = {sample.video_id: sample.labels for split in made.splits.values() for sample in split.samples}
    for name, row in zip(names, matrix, strict=True):
        video_id = name.split()[0].replace("\\", "/").rpartition(".")[0]
        columns = row.split(" ")
        assert len(columns) == 239
        if video_id in labels:
            assert tuple(index for index, column in enumerate(columns) if column == "1") == labels[video_id]


# EPIC-KITCHENS


def test_epic_is_h264_with_two_digits_and_hevc_with_three(make: Make) -> None:
    archives = make("epic_kitchens").archives
    older, newer = check(archives / "videos/train/P01/P01_01.MP4"), check(archives / "P01/videos/P01_102.MP4")
    assert (older.codec, newer.codec) == ("h264", "hevc")
    assert older.fps == pytest.approx(59.94, abs=0.01)
    assert newer.fps == pytest.approx(50)


def test_rows_of_epic_hold_quoted_lists_and_sometimes_no_narration_time(make: Make) -> None:
    folder = make("epic_kitchens").folder / "annotations"
    train = (folder / "EPIC_100_train.csv").read_text()
    assert "\"['spoon', 'plate', 'tap']\",\"[1, 2, 0]\"\n" in train
    assert ",['plate'],[2]\n" in train
    rows = {row["narration_id"]: row for row in read_rows(folder / "EPIC_100_validation.csv")}
    assert rows["P01_11_2"]["narration_timestamp"] == ""
    assert rows["P01_11_0"]["narration_timestamp"] != ""
    assert len((folder / "EPIC_100_test_timestamps.csv").read_text().partition("\n")[0].split(",")) == 8


def test_frame_numbers_of_epic_count_sixty_a_second_whatever_the_video_has(make: Make) -> None:
    made = make("epic_kitchens")
    rows = {row["narration_id"]: row for row in read_rows(made.annotation_files[0])}
    [sample] = [sample for sample in made.splits["train"].samples if sample.segment_id == "P01_02_0"]
    seconds = float(rows["P01_02_0"]["stop_timestamp"].rpartition(":")[2])
    assert int(rows["P01_02_0"]["stop_frame"]) == int(seconds * 60)
    assert sample.num_frames == pytest.approx((seconds - float(sample.start_seconds or 0)) * 29.97, abs=1)


# ImageNet VID


def test_imagenet_vid_has_an_xml_for_each_frame_and_corners_in_its_own_order(make: Make) -> None:
    made = make("imagenet_vid")
    files = members(made.archives / "ILSVRC2015_VID.tar.gz")
    sample = made.splits["train"].samples[1]
    images = sorted(file for file in files if f"/{sample.video_id}/" in file and file.endswith(".JPEG"))
    assert images[0].endswith("Data/VID/train/ILSVRC2015_VID_train_0002/" + sample.video_id + "/000000.JPEG")
    assert len(images) == sample.num_frames == len(sample.boxes)
    last = files[images[-1].replace("Data", "Annotations").replace(".JPEG", ".xml")]
    root = ElementTree.fromstring(last)
    assert root.findtext("folder") == f"ILSVRC2015_VID_train_0002/{sample.video_id}"
    assert [element.tag for element in root.findall("object")[0].find("bndbox") or []] == [
        "xmax",
        "xmin",
        "ymax",
        "ymin",
    ]
    assert [item.findtext("trackid") for item in root.findall("object")] == ["0", "1"]
    assert {item.findtext("name") for item in root.findall("object")} == {"n02510455"}
    assert sample.boxes[-1].boxes[0].xyxy[2] == sample.boxes[-1].width
    assert sample.boxes[1].boxes == ()


def test_the_xml_has_the_form_of_a_real_one(make: Make, testdata: Path) -> None:
    real = ElementTree.fromstring((testdata / "annotations" / "ILSVRC2015_val_00030000_000000.xml").read_bytes())
    files = members(make("imagenet_vid").archives / "ILSVRC2015_VID.tar.gz")
    ours = ElementTree.fromstring(next(content for name, content in files.items() if name.endswith("000000.xml")))
    assert [item.tag for item in ours.iter()][:18] == [item.tag for item in real.iter()][:18]


def test_the_annotation_files_have_the_headers_of_real_ones(make: Make, testdata: Path) -> None:
    pairs = {
        ("kinetics400", "val.csv"): "kinetics-400_val.head200.csv",
        ("kinetics400", "test.csv"): "kinetics-400_test.head200.csv",
        ("kinetics600", "val.txt"): "kinetics-600_val.head200.csv",
        ("epic_kitchens", "EPIC_100_validation.csv"): "EPIC_100_validation.head200.csv",
        ("epic_kitchens", "EPIC_100_test_timestamps.csv"): "EPIC_100_test_timestamps.head200.csv",
        ("epic_kitchens", "EPIC_100_video_info.csv"): "EPIC_100_video_info.csv",
    }
    for (name, ours), real in pairs.items():
        written = (make(name).folder / "annotations" / ours).read_text().splitlines()[0]
        assert written == (testdata / "annotations" / real).read_text().splitlines()[0]
    labels = json.loads((make("something_v2").folder / "annotations/something-something-v2-labels.json").read_text())
    assert labels == json.loads((testdata / "annotations" / "ssv2_labels.json").read_text())
    jester = (make("jester").folder / "annotations" / "jester-v1-labels.csv").read_text().splitlines()
    assert jester == (testdata / "annotations" / "jester-v1-labels.csv").read_text().splitlines()
