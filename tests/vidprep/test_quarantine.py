"""Verified videos and folders of frames: their report, and the damaged ones put aside."""

import csv
import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tests.videos import write_numbered_video
from tests.vidprep.media import write_boxes, write_frames
from tests.vidprep.test_cli import run
from vidprep import verify as verification
from vidprep.errors import UsageError
from vidprep.splits import Split, read_classes, split_to_csv
from vidprep.types import Box, FrameFormat, Video
from vidprep.verify import VideosReport, quarantine, verify_videos

__all__ = ["run"]  # the fixture

JESTER = FrameFormat(fps=12, template="{:05d}.jpg")
Run = Callable[..., tuple[int, str, str]]


def make_split(*videos: Video) -> Split:
    return Split(dataset="jester", split="val", task="single_label", classes=(), videos=videos)


def verify_folders(folders: dict[str, Path], *, check: verification.Check = "decode", workers: int = 1) -> VideosReport:
    split = make_split(*(Video(video_id=name) for name in folders))
    return verify_videos(split, folders, check=check, delivered=JESTER, workers=workers)


@pytest.mark.parametrize("workers", [1, 2])
def test_folders_of_frames_are_verified_frame_by_frame(workers: int, tmp_path: Path) -> None:
    folders = {name: write_frames(tmp_path / name, 9, size=(320, 240)) for name in ("good", "hole", "late", "cut")}
    (folders["hole"] / "00004.jpg").unlink()
    (folders["late"] / "00001.jpg").unlink()
    whole = (folders["cut"] / "00003.jpg").read_bytes()
    (folders["cut"] / "00003.jpg").write_bytes(whole[:-300])
    report = verify_folders({**folders, "gone": tmp_path / "gone"}, workers=workers)
    reasons = {fault.video_id: fault.reason for fault in report.faults}
    assert reasons["hole"].startswith("00004.jpg is missing between 00001.jpg and 00009.jpg")
    assert reasons["late"].startswith("its first frame is 00002.jpg, expected 00001.jpg")
    assert reasons["cut"].startswith("00003.jpg: is damaged")
    assert "no such folder of frames" in reasons["gone"]
    assert report.damaged == ("hole", "late", "cut")
    assert (report.num_sound, report.num_frames) == (1, 9)


def test_sampling_looks_at_some_frames_and_opening_at_the_first(tmp_path: Path) -> None:
    folders = {name: write_frames(tmp_path / name, 20, size=(320, 240)) for name in ("last", "between")}
    for name, number in (("last", 20), ("between", 2)):
        path = folders[name] / f"{number:05d}.jpg"
        path.write_bytes(path.read_bytes()[:-300])
    faults = {
        check: [fault.video_id for fault in verify_folders(folders, check=check).faults]
        for check in ("decode", "sample", "open")
    }
    assert faults == {"decode": ["last", "between"], "sample": ["last"], "open": []}


def test_sampled_videos_decode_at_their_ends(tmp_path: Path) -> None:
    good = write_numbered_video(tmp_path / "a.mp4", num_frames=60, width=160, height=120)
    split = make_split(Video(video_id="a"))
    report = verify_videos(split, {"a": good}, check="sample")
    assert (report.num_sound, report.num_frames) == (1, 60)
    data = bytearray(good.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 400] = bytes(400)
    good.write_bytes(data)
    assert verify_videos(split, {"a": good}, check="decode").damaged == ("a",)


def test_segments_that_do_not_lie_in_their_video_are_doubted(tmp_path: Path) -> None:
    path = write_numbered_video(tmp_path / "P01_11.MP4", num_frames=50, fps=10, width=64, height=48)
    times = [(0.0, 2.0), (1.0, 5.5), (3.0, 9.0), (6.0, 7.0)]
    split = Split(
        dataset="epic_kitchens",
        split="val",
        task="verb_noun",
        classes=("take",),
        noun_classes=("cup",),
        videos=tuple(
            Video(video_id=video_id, labels=(0, 0), start_seconds=start, end_seconds=end, segment_id=f"{video_id}_{k}")
            for video_id in ("P01_11", "P01_12")
            for k, (start, end) in enumerate(times)
        ),
    )
    report = verify_videos(split, {"P01_11": path}, num_published=9_668)
    assert [(doubt.video_id, doubt.reason) for doubt in report.doubts] == [
        ("P01_11_2", "the segment ends at 9 s, the video at 5.000 s"),
        ("P01_11_3", "the segment begins at 6 s, the video ends at 5.000 s"),
    ]
    assert report.coverage == (
        "epic_kitchens/val: 1 of 2 listed videos (50.0 %); 3 of 8 segments; published: 9668 segments"
    )
    assert report.footnote.startswith("epic_kitchens/val: 3 of 8 segments of 2 videos (37.5 %), list sha256 ")


def test_lengths_other_than_annotated_are_named_with_both_figures_and_counted(tmp_path: Path) -> None:
    path = write_numbered_video(tmp_path / "a.mp4", num_frames=80, fps=10, width=64, height=48)
    annotated = {"cut": 15.5, "near": 8.9, "equal": 8.0, "long": 6.9, "unknown": None, "gone": 20.0}
    split = make_split(*(Video(video_id=name, duration_seconds=seconds) for name, seconds in annotated.items()))
    report = verify_videos(split, {name: path for name in annotated if name != "gone"})
    assert [(length.video_id, length.annotated, length.measured) for length in report.length_differences] == [
        ("cut", 15.5, 8.0),
        ("long", 6.9, 8.0),
    ]
    assert report.to_text().splitlines()[:4] == [
        "gone: no file found for it",
        "cut: lasts 8.000 s, annotated are 15.5 s",
        "long: lasts 8.000 s, annotated are 6.9 s",
        "lengths: 2 of 4 sound videos are as long as annotated (seconds within 1 s or 0.5%, frames exactly)",
    ]
    as_json = json.loads(report.to_json())
    assert (as_json["num_lengths"], as_json["length_differences"][0]["measured"]) == (4, 8.0)
    assert report.num_sound == 5  # a length is no fault


def test_long_videos_may_differ_by_a_share_of_their_length() -> None:
    times = [(975.0, 979.8), (975.0, 980.0), (60.0, 61.0), (60.0, 61.1)]
    lengths = [
        verification.LengthDifference(video_id="a", annotated=annotated, measured=measured, unit="seconds", path="")
        for annotated, measured in times
    ]
    assert [verification._differs(length) for length in lengths] == [False, True, False, True]


def test_annotated_frames_are_compared_exactly_and_once_a_video(tmp_path: Path) -> None:
    folders = {name: write_frames(tmp_path / name, 9) for name in ("1", "2", "3")}
    counts = {"1": 9, "2": 10, "3": None}
    split = make_split(
        *(
            Video(video_id=name, start_seconds=start, end_seconds=start + 0.1, num_frames=counts[name])
            for name in folders
            for start in (0.0, 0.2)
        )
    )
    report = verify_videos(split, folders, delivered=JESTER)
    assert [str(length) for length in report.length_differences] == ["2: has 9 frames, annotated are 10"]
    assert report.num_lengths == 2


def test_a_list_with_lengths_has_the_checksum_of_the_same_list_without(tmp_path: Path) -> None:
    folders = {"1": write_frames(tmp_path / "1", 3)}
    with_length, without = (
        verify_videos(make_split(video), folders, delivered=JESTER)
        for video in (Video(video_id="1", num_frames=3), Video(video_id="1"))
    )
    assert with_length.footnote == without.footnote
    assert (with_length.num_lengths, without.num_lengths, without.lengths) == (1, 0, "")


def test_the_footnote_names_the_list_by_its_checksum(tmp_path: Path) -> None:
    folders = {"1": write_frames(tmp_path / "1", 3)}
    split = make_split(Video(video_id="1"), Video(video_id="2"))
    report = verify_videos(split, folders, delivered=JESTER)
    digest = hashlib.sha256(split_to_csv(split).encode()).hexdigest()
    assert report.footnote == f"jester/val: 1 of 2 videos (50.0 %), list sha256 {digest}"
    as_json = json.loads(report.to_json())
    assert as_json["footnote"] == report.footnote
    there = replace(split, videos=split.videos[:1])
    assert as_json["sound_list_sha256"] == hashlib.sha256(split_to_csv(there).encode()).hexdigest()
    many = replace(report, num_sound=19_404, num_listed=19_906)
    assert "19,404 of 19,906 videos (97.5 %)" in many.footnote


# Quarantine


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Folders of frames of which two are damaged."""
    root = tmp_path / "root"
    for name in ("1", "2", "3"):
        write_frames(root / "20bn-jester-v1" / name, 4)
    for name in ("2", "3"):
        (root / "20bn-jester-v1" / name / "00002.jpg").write_bytes(b"")
    return root


def verify_root(root: Path) -> VideosReport:
    names = ("1", "2", "3", "gone")
    folders = {name: root / "20bn-jester-v1" / name for name in names}
    split = make_split(*(Video(video_id=name) for name in names))
    there = {name: folder for name, folder in folders.items() if folder.is_dir()}
    return verify_videos(split, there, delivered=JESTER)


def read_ledger(root: Path) -> list[list[str]]:
    with (root / "quarantine.csv").open(newline="") as stream:
        return list(csv.reader(stream))


def test_damaged_videos_are_moved_and_written_down(root: Path) -> None:
    damaged = {path.name: path.read_bytes() for path in (root / "20bn-jester-v1" / "2").iterdir()}
    moves = quarantine(verify_root(root), root)
    assert [move.to_path for move in moves] == ["quarantine/20bn-jester-v1/2", "quarantine/20bn-jester-v1/3"]
    assert sorted(path.name for path in (root / "20bn-jester-v1").iterdir()) == ["1"]
    aside = root / "quarantine" / "20bn-jester-v1" / "2"
    assert {path.name: path.read_bytes() for path in aside.iterdir()} == damaged
    header, first, second = read_ledger(root)
    assert header == ["video_id", "reason", "from", "to"]
    assert first[0] == "2"
    assert first[1].startswith("00002.jpg: is not a JPEG")
    assert first[2:] == ["20bn-jester-v1/2", "quarantine/20bn-jester-v1/2"]
    assert second[0] == "3"
    # Once more: they are missing now, and nothing is left to be moved.
    assert quarantine(verify_root(root), root) == []
    assert len(read_ledger(root)) == 3


def test_a_second_damaged_copy_gets_a_name_of_its_own(root: Path) -> None:
    quarantine(verify_root(root), root)
    write_frames(root / "20bn-jester-v1" / "2", 1, first_index=5)
    [move] = quarantine(verify_root(root), root)
    assert move.to_path == "quarantine/20bn-jester-v1/2.2"
    assert [row[3] for row in read_ledger(root)[1:]] == [
        "quarantine/20bn-jester-v1/2",
        "quarantine/20bn-jester-v1/3",
        "quarantine/20bn-jester-v1/2.2",
    ]


@pytest.mark.parametrize("torn", [True, False])
def test_a_quarantine_that_was_killed_goes_on_without_a_line_too_many(
    torn: bool, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = verify_root(root)
    rename = Path.rename

    def die_at_the_second(self: Path, target: Path) -> Path:
        if self.name == "3":
            raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", die_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        quarantine(report, root)
    monkeypatch.undo()
    ledger = root / "quarantine.csv"
    assert len(read_ledger(root)) == 3  # the line of a move that was not done
    if torn:
        ledger.write_bytes(ledger.read_bytes()[:-7])
    [move] = quarantine(verify_root(root), root)
    assert move.video_id == "3"
    assert [row[0] for row in read_ledger(root)] == ["video_id", "2", "3"]
    assert not (root / "20bn-jester-v1" / "3").exists()


def test_missing_videos_and_files_elsewhere_are_not_moved(root: Path, tmp_path: Path) -> None:
    elsewhere = write_frames(tmp_path / "elsewhere", 2, first_index=2)
    report = verify_folders({"1": root / "20bn-jester-v1" / "1", "elsewhere": elsewhere})
    with pytest.raises(UsageError, match=r"elsewhere: .* does not lie below .*; move it away yourself"):
        quarantine(report, root)
    assert elsewhere.is_dir()
    with pytest.raises(UsageError, match="is no folder; --quarantine needs the folder"):
        quarantine(report, root / "nothing")
    (root / "quarantine.csv").write_text("video,label\na.mp4,b\n")
    with pytest.raises(UsageError, match="is no ledger of `vidprep verify --quarantine`"):
        quarantine(verify_root(root), root)


# On the command line


def test_the_command_verifies_and_quarantines_a_set_of_frames(run: Run, root: Path) -> None:
    (root / "splits").mkdir()
    (root / "splits" / "val.csv").write_text("video_id,label\n1,0\n2,1\n3,2\n4,3\n")
    arguments = ["verify", "--dataset", "jester", "--data-root", root, "--split", "val", "--workers", 1]
    status, output, _ = run(*arguments, "--check", "sample", "--json", root / "report.json")
    assert status == 1
    assert "4: no file found for it" in output
    assert "footnote: jester/val: 1 of 4 videos (25.0 %), list sha256 " in output
    assert output.splitlines()[-1] == "jester/val: 1 of 4 listed videos (25.0 %); published: 14787"
    assert json.loads((root / "report.json").read_text())["damaged"] == ["2", "3"]
    status, output, _ = run(*arguments, "--quarantine")
    assert status == 1
    assert output.splitlines()[-2:] == [
        "quarantine: 20bn-jester-v1/2 -> quarantine/20bn-jester-v1/2",
        "quarantine: 20bn-jester-v1/3 -> quarantine/20bn-jester-v1/3",
    ]
    _, output, _ = run(*arguments)
    assert "2: no file found for it" in output  # what lies in quarantine is not found again


def test_quarantine_leaves_a_folder_of_classes_readable(run: Run, tmp_path: Path) -> None:
    root = tmp_path / "videos"
    for name in ("archery", "mowing"):
        (root / name).mkdir(parents=True)
        write_numbered_video(root / name / "a.mp4", num_frames=5, width=64, height=48)
    (root / "archery" / "b.mp4").write_bytes(b"text")
    arguments = ["verify", "--dataset", "folder", "--data-root", root, "--workers", 1]
    assert run(*arguments, "--quarantine")[0] == 1
    assert (root / "quarantine" / "archery" / "b.mp4").read_bytes() == b"text"
    status, output, _ = run(*arguments)
    assert status == 0
    assert output.splitlines()[-1] == "folder/all: 2 of 2 listed videos (100.0 %)"


def test_the_command_shards_frames_as_they_are_and_refuses_what_does_not_apply(run: Run, root: Path) -> None:
    shutil.rmtree(root / "20bn-jester-v1" / "3")
    (root / "splits").mkdir()
    (root / "splits" / "val.csv").write_text("video_id,label\n1,0\n")
    arguments = ["--dataset", "jester", "--data-root", root, "--split", "val", "--workers", 1]
    status, output, _ = run("shard", *arguments, "--out", root / "out")
    assert status == 0, output
    assert "val: 1 samples in 1 shards" in output
    status, _, errors = run("shard", *arguments, "--out", root / "out2", "--content", "video")
    assert status == 2
    assert "jester is delivered as folders of frames, there are no video files to copy" in errors
    assert run("extract", *arguments, "--short-side", 24)[0] == 0
    assert (root / "frames" / "val" / "1" / "00004.jpg").is_file()
    status, _, errors = run("verify", root / "out", "--quarantine")
    assert status == 2
    assert "--quarantine: for videos (--dataset and --data-root)" in errors


def test_lists_are_built_from_several_files_by_video_or_by_segment(run: Run, testdata: Path, tmp_path: Path) -> None:
    annotations = testdata / "annotations"
    (tmp_path / "root").mkdir()
    files = [annotations / "kinetics-400_val.head200.csv", annotations / "kinetics-400_test.head200.csv"]
    status, output, _ = run("split", "kinetics400", "--annotations", *files, "--data-root", tmp_path / "root")
    assert status == 0, output
    assert "splits/val.csv: " in output
    assert "splits/test.csv: " in output
    assert "note: kinetics400/val: " in output
    anet = annotations / "activity_net.v1-3.converted_excerpt.json"
    lines = {}
    for unit in ("video", "segment"):
        status, output, _ = run("split", "activitynet", "-a", anet, "--data-root", tmp_path / "root", "--unit", unit)
        assert status == 0, output
        lines[unit] = output
    assert " segments of " in lines["segment"]
    assert " segments of " not in lines["video"]
    for text in lines.values():
        assert "note: activitynet/train: 116 videos; 10,024 were published." in text
    status, _, errors = run("split", "jester", "-a", anet, "--data-root", tmp_path / "root", "--unit", "segment")
    assert status == 2
    assert "--unit segment: for activitynet" in errors


def test_info_prints_one_screen(run: Run) -> None:
    status, output, _ = run("info", "jester")
    assert status == 0
    assert "Jester" in output
    assert "148,092" in output or "118,562" in output
    status, _, errors = run("info", "jestr")
    assert status == 2
    assert "did you mean jester?" in errors


def test_boxes_are_verified_with_their_frames_and_never_reason_to_move_these(run: Run, tmp_path: Path) -> None:
    names = [f"ILSVRC2015_val_{number:08d}" for number in range(3)]
    for name in names:
        write_frames(tmp_path / "ILSVRC2015/Data/VID/val" / name, 3, template="{:06d}.JPEG", first_index=0)
    box = Box(xyxy=(1, 2, 30, 40), label=0, track_id=0)
    for name, num_annotated in zip(names[:2], (3, 2), strict=True):
        folder = tmp_path / "ILSVRC2015/Annotations/VID/val" / name
        write_boxes(folder, [[box]] * num_annotated, synsets=read_classes("imagenet_vid", "synsets.txt"))
    (tmp_path / "splits").mkdir()
    (tmp_path / "splits" / "val.csv").write_text("video_id,label\n" + "".join(f"{name},\n" for name in names))
    arguments = ["--dataset", "imagenet_vid", "--data-root", tmp_path, "--split", "val", "--workers", 1]
    status, output, _ = run("verify", *arguments, "--quarantine")
    assert status == 1
    assert output.splitlines()[:2] == [
        "ILSVRC2015_val_00000001: frame 000002.JPEG has no annotation (3 frames, 2 annotations)",
        "ILSVRC2015_val_00000002: no annotations found for it",
    ]
    assert not (tmp_path / "quarantine").exists()
    status, output, _ = run("shard", *arguments, "--out", tmp_path / "out")
    assert status == 1
    assert "1 samples in 1 shards" in output
