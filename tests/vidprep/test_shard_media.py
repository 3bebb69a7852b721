"""Shards of folders of frames, of segments of long videos, and of frames with boxes."""

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import simplejpeg

from tests.videos import read_number, write_numbered_video
from tests.vidprep.media import write_boxes, write_frames
from tests.vidprep.test_shard import read_plainly, tars
from vidprep import report
from vidprep.datasets.imagenet_vid import read_annotations
from vidprep.decode.pyav import PyavReader
from vidprep.errors import UsageError
from vidprep.extract import extract, read_frame_index
from vidprep.index import Manifest, SampleRow, read_manifest, read_samples
from vidprep.shard import default_samples_per_shard, shard
from vidprep.splits import Split, read_classes
from vidprep.types import Box, FrameFormat, Video
from vidprep.verify import verify_shards

JESTER = FrameFormat(fps=12, template="{:05d}.jpg")
VID = FrameFormat(template="{:06d}.JPEG", first_index=0)
SYNSETS = read_classes("imagenet_vid", "synsets.txt")


def gestures(*names: str) -> Split:
    videos = tuple(Video(video_id=name, labels=(number % 2,)) for number, name in enumerate(names))
    return Split(dataset="jester", split="val", task="single_label", classes=("left", "right"), videos=videos)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("jester")
    return {
        str(number): write_frames(root / "20bn-jester-v1" / str(number), 10 + number, start=100 * number)
        for number in range(1, 5)
    }


def shown(sample: dict[str, Any]) -> list[int]:
    return [read_number(simplejpeg.decode_jpeg(sample[name])) for name in sorted(sample) if name.endswith(".jpg")]


# Folders of frames


def test_delivered_frames_keep_their_bytes_and_get_the_times_of_their_rate(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    split = gestures(*folders)
    shard(split, folders, out=tmp_path, content="frames", frames=FrameFormat(), delivered=JESTER, samples_per_shard=3)
    samples = read_plainly(tmp_path)
    assert len(samples) == 4
    for sample, row, folder in zip(samples, read_samples(tmp_path, "val"), folders.values(), strict=True):
        files = sorted(folder.iterdir())
        assert [sample[f"{number:05d}.jpg"] for number in range(1, len(files) + 1)] == [
            path.read_bytes() for path in files
        ]
        info = json.loads(sample["json"])
        np.testing.assert_allclose(info["pts_seconds"], np.arange(len(files)) / 12)
        assert (row.num_frames, row.fps, row.width, row.height) == (len(files), 12, 64, 48)
        assert row.duration_seconds == pytest.approx(len(files) / 12)
    manifest = read_manifest(tmp_path)
    assert (manifest.content, manifest.settings["source"]) == ("frames", "delivered frames")
    assert verify_shards(tmp_path).is_sound


def test_frames_without_a_stated_rate_have_no_times(folders: dict[str, Path], tmp_path: Path) -> None:
    delivered = replace(JESTER, fps=None)
    shard(gestures("1"), folders, out=tmp_path, content="frames", frames=FrameFormat(), delivered=delivered)
    [row] = read_samples(tmp_path, "val")
    assert np.isnan(row.fps)
    assert np.isnan(row.duration_seconds)
    info = json.loads(read_plainly(tmp_path)[0]["json"])
    assert info["fps"] is None
    assert info["pts_seconds"] == [None] * 11


def test_delivered_frames_are_resized_and_thinned_out_when_asked(folders: dict[str, Path], tmp_path: Path) -> None:
    settings = FrameFormat(fps=6, short_side=32)
    shard(gestures("2"), folders, out=tmp_path, content="frames", frames=settings, delivered=JESTER)
    [sample] = read_plainly(tmp_path)
    assert shown(sample) == [200, 202, 204, 206, 208, 210]
    info = json.loads(sample["json"])
    assert (info["width"], info["height"], info["fps"], info["num_frames"]) == (43, 32, 6, 6)
    report = shard(
        gestures("2"),
        folders,
        out=tmp_path / "no rate",
        content="frames",
        frames=settings,
        delivered=replace(JESTER, fps=None),
    )
    assert "frames by seconds need a frame rate, which the data set does not state" in report.manifest.faults[0].reason


def test_holes_wrong_first_numbers_and_damaged_frames_are_faults_until_replaced(tmp_path: Path) -> None:
    names = ("hole", "late", "cut", "size", "text", "good")
    folders = {name: write_frames(tmp_path / name, 6, size=(320, 240)) for name in names}
    (folders["hole"] / "00003.jpg").unlink()
    (folders["late"] / "00001.jpg").unlink()
    whole = (folders["cut"] / "00004.jpg").read_bytes()
    (folders["cut"] / "00004.jpg").write_bytes(whole[: len(whole) // 2])
    other = write_frames(tmp_path / "other", 1, size=(80, 48))
    (folders["size"] / "00002.jpg").write_bytes((other / "00001.jpg").read_bytes())
    (folders["text"] / "00006.jpg").write_text("not found")
    folders["empty"] = tmp_path / "empty"
    folders["empty"].mkdir()
    split = gestures(*folders, "gone")
    arguments: dict[str, Any] = {"content": "frames", "frames": FrameFormat(), "delivered": JESTER}
    report = shard(split, folders, out=tmp_path / "out", samples_per_shard=2, **arguments)
    reasons = {fault.video_id: fault.reason for fault in report.manifest.faults}
    assert set(reasons) == {"hole", "late", "cut", "size", "text", "empty", "gone"}
    assert reasons["hole"].startswith("00003.jpg is missing between 00001.jpg and 00006.jpg")
    assert reasons["late"] == "its first frame is 00002.jpg, expected 00001.jpg; fetch the frames again"
    assert reasons["cut"].startswith("00004.jpg: is damaged")
    assert reasons["size"].startswith("00002.jpg: is 80x48 pixels, the first frame 320x240")
    assert reasons["text"].startswith("00006.jpg: is not a JPEG")
    assert reasons["empty"] == "is an empty folder; fetch the frames again"
    assert reasons["gone"] == "no file found for it"
    # The file is replaced, its folder's own time stays: still the shard is tried again, and it alone.
    folder_times = folders["cut"].stat()
    (folders["cut"] / "00004.jpg").write_bytes(whole)
    os.utime(folders["cut"], ns=(folder_times.st_atime_ns, folder_times.st_mtime_ns))
    report = shard(split, folders, out=tmp_path / "out", samples_per_shard=2, **arguments)
    assert report.num_new_shards == 1
    assert "cut" not in {fault.video_id for fault in report.manifest.faults}


def test_opening_alone_misses_damage_within_a_frame(tmp_path: Path) -> None:
    folder = write_frames(tmp_path / "cut", 3, size=(320, 240))
    whole = (folder / "00002.jpg").read_bytes()
    (folder / "00002.jpg").write_bytes(whole[:-200])
    arguments: dict[str, Any] = {"content": "frames", "frames": FrameFormat(), "delivered": JESTER}
    thorough = shard(gestures("cut"), {"cut": folder}, out=tmp_path / "a", **arguments)
    quick = shard(gestures("cut"), {"cut": folder}, out=tmp_path / "b", check="open", **arguments)
    assert (len(thorough.manifest.faults), len(quick.manifest.faults)) == (1, 0)


def test_video_shards_of_frame_folders_are_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="jester is delivered as folders of frames, there are no video files to copy"):
        shard(gestures("1"), folders, out=tmp_path, content="video", delivered=JESTER)


def test_workers_and_restarts_do_not_change_a_byte_of_frame_shards(folders: dict[str, Path], tmp_path: Path) -> None:
    split = gestures(*folders)
    arguments: dict[str, Any] = {"content": "frames", "frames": FrameFormat(), "delivered": JESTER}
    for workers in (1, 2):
        out = tmp_path / str(workers)
        shard(split, folders, out=out, samples_per_shard=1, workers=workers, **arguments)
    os.truncate(tmp_path / "1" / "val-000001.tar", 1000)
    (tmp_path / "1" / "val-000002.jsonl").unlink()
    assert shard(split, folders, out=tmp_path / "1", samples_per_shard=1, **arguments).num_new_shards == 2
    assert tars(tmp_path / "1") == tars(tmp_path / "2")
    with pytest.raises(UsageError, match=r"\(delivered\.fps was 12, now 30\); give another --out"):
        shard(
            split,
            folders,
            out=tmp_path / "1",
            samples_per_shard=1,
            **(arguments | {"delivered": replace(JESTER, fps=30)}),
        )


def test_extracted_copies_of_delivered_frames_keep_their_bytes(folders: dict[str, Path], tmp_path: Path) -> None:
    split = gestures(*folders)
    settings = FrameFormat(template="img_{:05d}.jpg")
    report = extract(split, folders, out=tmp_path / "frames", settings=settings, delivered=JESTER)
    assert (report.num_videos, report.faults) == (4, ())
    for name, folder in folders.items():
        copies = sorted((tmp_path / "frames" / name).iterdir())
        assert copies[0].name == "img_00001.jpg"
        assert [path.read_bytes() for path in copies] == [path.read_bytes() for path in sorted(folder.iterdir())]
    assert read_frame_index(tmp_path / "frames").frames["1"].fps == 12
    shard(split, {}, out=tmp_path / "a", content="frames", frames_from=tmp_path / "frames")
    shard(split, folders, out=tmp_path / "b", content="frames", frames=FrameFormat(), delivered=JESTER)
    assert tars(tmp_path / "a") == tars(tmp_path / "b")


# Segments of long videos


SEGMENTS = [
    ("P01_11", 0.0, 1.0, (1, 2)),
    ("P01_11", 0.5, 1.5, (0, 0)),
    ("P01_11", 7.25, 9.0, (3, 1)),
    ("P01_11", 7.25, 9.0, (2, 1)),  # the same seconds, another narration
    ("P01_11", 15.0, 15.3, (0, 2)),
    ("P01_12", 2.0, 4.0, (0, 1)),
]


@pytest.fixture(scope="module")
def kitchen(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("epic")
    return {
        name: write_numbered_video(
            folder / f"{name}.MP4", num_frames=180, fps=10, start=1000 * number, width=64, height=48
        )
        for number, name in enumerate(["P01_11", "P01_12"])
    }


def actions() -> Split:
    return Split(
        dataset="epic_kitchens",
        split="train",
        task="verb_noun",
        classes=("take", "put", "wash", "open"),
        noun_classes=("plate", "cup", "door"),
        videos=tuple(
            Video(video_id=video_id, labels=labels, start_seconds=start, end_seconds=end, segment_id=f"{video_id}_{k}")
            for k, (video_id, start, end, labels) in enumerate(SEGMENTS)
        ),
    )


def count_openings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    opened: list[str] = []
    scan = PyavReader._scan

    def note(self: PyavReader, kept_packet_bytes: int) -> None:
        opened.append(Path(str(self._source)).name)
        scan(self, kept_packet_bytes)

    monkeypatch.setattr(PyavReader, "_scan", note)
    return opened


def test_segments_are_cut_by_seconds_with_one_opening_of_each_video(
    kitchen: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = count_openings(monkeypatch)
    report = shard(actions(), kitchen, out=tmp_path, content="frames")
    assert opened == ["P01_11.MP4", "P01_12.MP4"]
    assert report.manifest.faults == ()
    assert report.manifest.noun_classes == ("plate", "cup", "door")
    assert read_manifest(tmp_path).noun_classes == ("plate", "cup", "door")
    samples = read_plainly(tmp_path)
    for k, (sample, row) in enumerate(zip(samples, read_samples(tmp_path, "train"), strict=True)):
        video_id, start, end, labels = SEGMENTS[k]
        first, last = int(np.ceil(start * 10)), int(np.ceil(end * 10))
        assert shown(sample) == [1000 * (video_id == "P01_12") + index for index in range(first, last)]
        info = json.loads(sample["json"])
        assert (info["video_id"], info["segment_id"]) == (video_id, f"{video_id}_{k}")
        assert (info["start_seconds"], info["end_seconds"], info["labels"]) == (start, end, list(labels))
        assert info["classes"] == [("take", "put", "wash", "open")[labels[0]], ("plate", "cup", "door")[labels[1]]]
        assert info["pts_seconds"][0] == pytest.approx(first / 10)
        assert (row.segment_id, row.labels) == (f"{video_id}_{k}", labels)
    assert verify_shards(tmp_path).is_sound


def test_segments_give_the_same_bytes_with_any_number_of_workers_and_from_extracted_frames(
    kitchen: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    split = actions()
    shard(split, kitchen, out=tmp_path / "1", content="frames", samples_per_shard=2)
    shard(split, kitchen, out=tmp_path / "2", content="frames", samples_per_shard=2, workers=2)
    opened = count_openings(monkeypatch)
    extract(split, kitchen, out=tmp_path / "frames", settings=FrameFormat())
    assert opened == ["P01_11.MP4", "P01_12.MP4"]
    assert sorted(path.name for path in (tmp_path / "frames").iterdir() if path.is_dir()) == [
        video.segment_id for video in split.videos
    ]
    shard(split, {}, out=tmp_path / "3", content="frames", frames_from=tmp_path / "frames", samples_per_shard=2)
    assert tars(tmp_path / "1") == tars(tmp_path / "2") == tars(tmp_path / "3")


def test_segments_beyond_their_video_and_of_damaged_videos_are_faults_by_their_own_names(
    kitchen: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut = tmp_path / "P01_11.MP4"
    cut.write_bytes(kitchen["P01_11"].read_bytes()[:3000])
    beyond = Video(video_id="P01_12", labels=(0, 0), start_seconds=30.0, end_seconds=31.0, segment_id="P01_12_9")
    split = replace(actions(), videos=(*actions().videos, beyond))
    monkeypatch.setattr(PyavReader, "__init__", count_attempts := CountedInit())
    report = shard(split, {**kitchen, "P01_11": cut}, out=tmp_path / "out", content="frames")
    reasons = {fault.video_id: fault.reason for fault in report.manifest.faults}
    assert set(reasons) == {"P01_11_0", "P01_11_1", "P01_11_2", "P01_11_3", "P01_11_4", "P01_12_9"}
    assert "cut short" in reasons["P01_11_0"]
    assert "the segment 30 to 31 s lies outside the video" in reasons["P01_12_9"]
    assert count_attempts.num_attempts == 2  # the damaged one is tried once for its five segments
    monkeypatch.undo()
    cut.write_bytes(kitchen["P01_11"].read_bytes())
    report = shard(split, {**kitchen, "P01_11": cut}, out=tmp_path / "out", content="frames")
    assert [fault.video_id for fault in report.manifest.faults] == ["P01_12_9"]
    extracted = extract(split, {**kitchen, "P01_11": cut}, out=tmp_path / "frames", settings=FrameFormat())
    assert [fault.video_id for fault in extracted.faults] == ["P01_12_9"]
    assert extracted.num_videos == 6


class CountedInit:
    """`PyavReader.__init__` that counts its calls."""

    def __init__(self) -> None:
        self.num_attempts = 0
        self._init = PyavReader.__init__

    def __get__(self, reader: PyavReader, kind: type) -> Any:
        def init(*arguments: Any, **options: Any) -> None:
            self.num_attempts += 1
            self._init(reader, *arguments, **options)

        return init


def test_a_long_video_is_not_copied_for_each_of_its_segments(kitchen: dict[str, Path], tmp_path: Path) -> None:
    sentence = "its 6 rows are segments of 2 long videos, and --content video would copy a whole video for each"
    with pytest.raises(UsageError, match=sentence):
        shard(actions(), kitchen, out=tmp_path)


# Frames with boxes


def snippets(*names: str) -> Split:
    videos = tuple(Video(video_id=name) for name in names)
    return Split(
        dataset="imagenet_vid", split="val", task="detection", classes=read_classes("imagenet_vid"), videos=videos
    )


def moving_boxes(num_frames: int) -> list[list[Box]]:
    """One object that moves a pixel a frame, another one that comes in the third frame; none in the last frame."""
    boxes = [
        [Box(xyxy=(index, 10, index + 20, 48), label=12, track_id=0, is_occluded=index % 2 == 1)]
        + ([Box(xyxy=(40, 0, 64, 12), label=3, track_id=7, is_generated=True)] if index >= 2 else [])
        for index in range(num_frames - 1)
    ]
    return [*boxes, []]


@pytest.fixture
def vid(tmp_path: Path) -> tuple[dict[str, Path], dict[str, Path]]:
    """The frames and the boxes of three snippets."""
    names = [f"ILSVRC2015_val_{number:08d}" for number in range(3)]
    data, xml = tmp_path / "ILSVRC2015/Data/VID/val", tmp_path / "ILSVRC2015/Annotations/VID/val"
    frames = {
        name: write_frames(data / name, 8, start=100 * k, template=VID.template, first_index=0)
        for k, name in enumerate(names)
    }
    return frames, {name: write_boxes(xml / name, moving_boxes(8), synsets=SYNSETS) for name in names}


def test_boxes_travel_with_their_frames_in_order(vid: tuple[dict[str, Path], dict[str, Path]], tmp_path: Path) -> None:
    frames, boxes = vid
    out = tmp_path / "out"
    shard(
        snippets(*frames),
        frames,
        out=out,
        content="frames",
        frames=FrameFormat(),
        delivered=VID,
        annotations=boxes,
        read_boxes=read_annotations,
        samples_per_shard=2,
        workers=2,
    )
    assert [row.shard for row in read_samples(out, "val")] == ["val-000000.tar"] * 2 + ["val-000001.tar"]
    for k, sample in enumerate(read_plainly(out)):
        assert shown(sample) == [100 * k + index for index in range(8)]
        info = json.loads(sample["json"])
        assert info["labels"] == []
        assert len(info["boxes"]) == 8
        assert info["boxes"][3] == [
            {"label": 12, "xyxy": [3, 10, 23, 48], "track_id": 0, "occluded": True, "generated": False},
            {"label": 3, "xyxy": [40, 0, 64, 12], "track_id": 7, "occluded": False, "generated": True},
        ]
        assert info["boxes"][7] == []
    assert read_manifest(out).settings["has_boxes"] is True


def test_boxes_shrink_with_their_frames(vid: tuple[dict[str, Path], dict[str, Path]], tmp_path: Path) -> None:
    frames, boxes = vid
    shard(
        snippets(*frames),
        frames,
        out=tmp_path / "out",
        content="frames",
        frames=FrameFormat(short_side=24),
        delivered=VID,
        annotations=boxes,
        read_boxes=read_annotations,
    )
    info = json.loads(read_plainly(tmp_path / "out")[0]["json"])
    assert (info["width"], info["height"]) == (32, 24)
    assert info["boxes"][3][0]["xyxy"] == [1.5, 5, 11.5, 24]


def test_frames_without_their_annotations_are_faults_until_these_come(
    vid: tuple[dict[str, Path], dict[str, Path]], tmp_path: Path
) -> None:
    frames, boxes = vid
    first, second, third = frames
    late = boxes[first] / "000005.xml"
    text = late.read_text()
    late.unlink()
    (boxes[second] / "000001.xml").write_text(text.replace("000005", "000001").replace("<width>64", "<width>1280"))
    del boxes[third]

    def run() -> dict[str, str]:
        report = shard(
            snippets(*frames),
            frames,
            out=tmp_path / "out",
            content="frames",
            frames=FrameFormat(),
            delivered=VID,
            annotations=boxes,
            read_boxes=read_annotations,
            samples_per_shard=1,
        )
        return {fault.video_id: fault.reason for fault in report.manifest.faults}

    assert run() == {
        first: "frame 000005.JPEG has no annotation (8 frames, 7 annotations)",
        second: "the annotation of frame 000001.JPEG is of 1280x48 pixels, the frame has 64x48",
        third: "no annotations found for it",
    }
    late.write_text(text)
    assert set(run()) == {second, third}


def test_detection_frames_are_not_taken_from_extracted_ones(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="boxes belong to the frames as they are delivered; leave --from frames out"):
        shard(snippets("a"), {}, out=tmp_path, content="frames", frames_from=tmp_path)
    assert default_samples_per_shard(3862, task="detection") == 16


def test_a_sheet_names_the_verb_and_the_noun_of_a_segment(
    kitchen: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shard(actions(), kitchen, out=tmp_path, content="frames")
    titles: list[str] = []
    title = report._title

    def note(manifest: Manifest, row: SampleRow) -> str:
        titles.append(title(manifest, row))
        return titles[-1]

    monkeypatch.setattr(report, "_title", note)
    report.contact_sheet(tmp_path, "train", tmp_path / "sheet.png", num_samples=6, num_frames=2)
    assert titles == ["put, door", "take, plate", "open, cup", "wash, cup", "take, door", "take, cup"]
