import errno
import gc
import hashlib
import io
import json
import os
import resource
import shutil
import subprocess
import sys
import tarfile
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import simplejpeg
import webdataset

from tests.videos import read_number, write_numbered_video
from tests.vidprep.fatal import die_on_14_frames
from vidprep import shard as shard_module
from vidprep.engine import CannotWrite
from vidprep.errors import CorruptShard, UsageError
from vidprep.extract import extract, select_frames
from vidprep.index import read_manifest, read_samples
from vidprep.probe import VideoFacts, check
from vidprep.shard import TarWriter, default_samples_per_shard, shard
from vidprep.splits import Split
from vidprep.types import FrameFormat, Video
from vidprep.verify import verify_shards

CLASSES = ("archery", "mowing the lawn")


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("videos with spaces")
    paths = {}
    for number, name in enumerate(["-dash.mp4", "b.MKV", "c d.mp4", "e.mp4", "f.webm"]):
        codec = "libvpx" if name.endswith("webm") else "libx264"
        paths[name] = write_numbered_video(
            folder / name, num_frames=12 + number, fps=10, start=100 * number, codec=codec, width=64, height=48
        )
    return paths


def make_split(*names: str) -> Split:
    return Split(
        dataset="folder",
        split="val",
        task="single_label",
        classes=CLASSES,
        videos=tuple(Video(video_id=name, labels=(number % 2,)) for number, name in enumerate(names)),
    )


def tars(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.tar"))}


def read_plainly(folder: Path) -> list[dict[str, Any]]:
    urls = sorted(str(path) for path in folder.glob("*.tar"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # webdataset leaves closing its files to the collector
        samples = list(webdataset.WebDataset(urls, shardshuffle=False))
        gc.collect()
    return samples


def test_webdataset_reads_every_sample_with_its_own_bytes(videos: dict[str, Path], tmp_path: Path) -> None:
    split = make_split(*videos)
    report = shard(split, videos, out=tmp_path, samples_per_shard=2)
    assert [facts.num_samples for facts in report.manifest.shards] == [2, 2, 1]
    samples = read_plainly(tmp_path)
    assert [sample["__key__"] for sample in samples] == [f"{number:08d}" for number in range(5)]
    for sample, (name, path), video in zip(samples, videos.items(), split.videos, strict=True):
        info = json.loads(sample["json"])
        assert info["video_id"] == name
        assert info["labels"] == list(video.labels)
        assert info["classes"] == [CLASSES[label] for label in video.labels]
        assert (info["dataset"], info["split"], info["width"], info["height"]) == ("folder", "val", 64, 48)
        assert sample[path.suffix.lower()[1:]] == path.read_bytes()


def test_the_table_says_where_each_member_lies(videos: dict[str, Path], tmp_path: Path) -> None:
    shard(make_split(*videos), videos, out=tmp_path, samples_per_shard=3)
    rows = read_samples(tmp_path, "val")
    assert [row.video_id for row in rows] == list(videos)
    for row, path in zip(rows, videos.values(), strict=True):
        _, media = row.members
        with (tmp_path / row.shard).open("rb") as stream:
            stream.seek(media.offset)
            assert stream.read(media.size) == path.read_bytes()
        facts = check(path)
        assert (row.num_frames, row.fps, row.width) == (facts.num_frames, facts.fps, facts.width)


def test_shards_are_plain_ustar_without_owner_and_time(videos: dict[str, Path], tmp_path: Path) -> None:
    shard(make_split(*videos), videos, out=tmp_path)
    with tarfile.open(tmp_path / "val-000000.tar") as archive:
        for member in archive:
            assert (member.mtime, member.uid, member.gid, member.uname, member.mode) == (0, 0, 0, "", 0o644)
            assert not member.pax_headers
            assert member.offset_data == member.offset + 512
    assert (tmp_path / "val-000000.tar").stat().st_size % tarfile.RECORDSIZE == 0


def test_the_tar_writer_writes_what_tarfile_writes() -> None:
    ours, theirs = io.BytesIO(), io.BytesIO()
    contents = {
        "00000000.json": b"{}",
        "00000000.mp4": bytes(1536),
        "00000001.json": b"",
        "00000001.mp4": os.urandom(3 << 20),  # more than is gathered
        **{f"00000002.{number:05d}.jpg": os.urandom(5000) for number in range(300)},
    }
    with TarWriter(ours) as writer, tarfile.open(fileobj=theirs, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        offsets = {name: writer.add(name, content) for name, content in contents.items()}
        for name, content in contents.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
        facts = writer.finish("x.tar", num_samples=3)
    assert ours.getvalue() == theirs.getvalue()
    assert facts.sha256 == hashlib.sha256(ours.getvalue()).hexdigest()
    for name, content in contents.items():
        assert ours.getvalue()[offsets[name] : offsets[name] + len(content)] == content


def test_a_long_suffix_does_not_make_a_name_that_tars_cannot_hold(videos: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / f"a.{'x' * 200}"
    shutil.copy(videos["e.mp4"], path)
    shard(make_split("a"), {"a": path}, out=tmp_path / "out")
    assert read_plainly(tmp_path / "out")[0]["video"] == path.read_bytes()


def test_workers_do_not_change_a_byte(videos: dict[str, Path], tmp_path: Path) -> None:
    split = make_split(*videos, "gone.mp4")
    for workers in (1, 2):
        shard(split, videos, out=tmp_path / str(workers), samples_per_shard=2, workers=workers)
    assert tars(tmp_path / "1") == tars(tmp_path / "2")
    for name in ("val.json", "val.faults.csv", "val.parquet"):
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "2" / name).read_bytes()


def test_damaged_empty_and_missing_videos_are_listed_and_the_rest_goes_on(
    videos: dict[str, Path], tmp_path: Path
) -> None:
    whole = next(iter(videos.values())).read_bytes()
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("<html>not found</html>")
    (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    paths = {**videos, **{path.name: path for path in tmp_path.glob("*.mp4")}}
    split = make_split("empty.mp4", *videos, "gone.mp4", "text.mp4", "cut.mp4")
    report = shard(split, paths, out=tmp_path / "out", samples_per_shard=3)
    reasons = {fault.video_id: fault.reason for fault in report.manifest.faults}
    assert set(reasons) == {"empty.mp4", "gone.mp4", "text.mp4", "cut.mp4"}
    assert "is empty (0 bytes)" in reasons["empty.mp4"]
    assert reasons["gone.mp4"] == "no file found for it"
    assert "cannot be opened as a video" in reasons["text.mp4"]
    assert "bytes in memory" not in reasons["text.mp4"]
    # Positions stay as in the split: the keys of the others do not move.
    assert [row.key for row in read_samples(tmp_path / "out", "val")] == [f"{number:08d}" for number in range(1, 6)]
    # A shard of faults only has no tar, which readers would stumble over.
    assert [facts.name for facts in report.manifest.shards] == ["val-000000.tar", "val-000001.tar"]
    assert not (tmp_path / "out" / "val-000002.tar").exists()
    assert verify_shards(tmp_path / "out").is_sound
    assert len(read_plainly(tmp_path / "out")) == 5


def test_the_same_command_again_writes_nothing(videos: dict[str, Path], tmp_path: Path) -> None:
    split = make_split(*videos, "gone.mp4")
    first = shard(split, videos, out=tmp_path, samples_per_shard=2)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    again = shard(split, videos, out=tmp_path, samples_per_shard=2)
    assert (first.num_new_shards, again.num_new_shards) == (3, 0)
    assert again.manifest == first.manifest
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("name", ["val.json", "val.parquet"])
@pytest.mark.parametrize("content", [b"", b"PAR1 garbage PAR1", None], ids=["empty", "garbage", "half"])
def test_a_damaged_manifest_or_table_is_written_again(
    name: str, content: bytes | None, videos: dict[str, Path], tmp_path: Path
) -> None:
    split = make_split(*videos)
    shard(split, videos, out=tmp_path, samples_per_shard=2)
    sound = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(sound[: len(sound) // 2] if content is None else content)
    assert not verify_shards(tmp_path).is_sound
    assert shard(split, videos, out=tmp_path, samples_per_shard=2).num_new_shards == 0
    assert (tmp_path / name).read_bytes() == sound
    assert verify_shards(tmp_path).is_sound


def test_a_sidecar_that_was_cut_short_is_named(videos: dict[str, Path], tmp_path: Path) -> None:
    split = make_split(*videos)
    shard(split, videos, out=tmp_path)
    sidecar = tmp_path / "val-000000.jsonl"
    lines = sidecar.read_text().splitlines(keepends=True)
    for content in ("".join(lines[:-1]), "".join(lines)[:-9]):
        (tmp_path / "val.json").unlink(missing_ok=True)
        sidecar.write_text(content)
        with pytest.raises(CorruptShard, match=r"val-000000.jsonl: cut short or changed .* remove it and run the same"):
            shard(split, videos, out=tmp_path)
    sidecar.unlink()
    shard(split, videos, out=tmp_path)
    assert verify_shards(tmp_path).is_sound


def test_a_restart_does_only_what_is_missing(videos: dict[str, Path], tmp_path: Path) -> None:
    split = make_split(*videos)
    shard(split, videos, out=tmp_path, samples_per_shard=1)
    whole = tars(tmp_path)
    # What kills and careless hands leave: no manifest, a tar without its sidecar, a cut tar, a torn sidecar, parts.
    (tmp_path / "val.json").unlink()
    (tmp_path / "val-000000.jsonl").unlink()
    os.truncate(tmp_path / "val-000001.tar", 1000)
    os.truncate(tmp_path / "val-000002.jsonl", 10)
    (tmp_path / "val-000003.tar.17.part").write_bytes(b"half")
    untouched = (tmp_path / "val-000004.tar").stat().st_mtime_ns
    report = shard(split, videos, out=tmp_path, samples_per_shard=1, workers=2)
    assert report.num_new_shards == 3
    assert tars(tmp_path) == whole
    assert (tmp_path / "val-000004.tar").stat().st_mtime_ns == untouched
    assert not list(tmp_path.glob("*.part"))
    assert verify_shards(tmp_path).is_sound


def test_a_replaced_file_is_tried_again_and_only_its_shard_is_written(videos: dict[str, Path], tmp_path: Path) -> None:
    bad = tmp_path / "bad.mp4"
    bad.touch()
    split = make_split("bad.mp4", *videos)
    paths = {**videos, "bad.mp4": bad}
    out = tmp_path / "out"
    assert len(shard(split, paths, out=out, samples_per_shard=2).manifest.faults) == 1
    shutil.copy(videos["e.mp4"], bad)
    report = shard(split, paths, out=out, samples_per_shard=2)
    assert report.num_new_shards == 1
    assert report.manifest.faults == ()
    assert len(read_samples(out, "val")) == 6


def test_no_manifest_stands_while_its_shards_change(
    videos: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    split = make_split(*videos)
    shard(split, videos, out=tmp_path)
    (tmp_path / "val-000000.jsonl").unlink()

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(shard_module, "_add_sample", interrupt)
    with pytest.raises(KeyboardInterrupt):
        shard(split, videos, out=tmp_path)
    monkeypatch.undo()
    assert not list(tmp_path.glob("*.part"))
    [problem] = verify_shards(tmp_path).splits[0].problems
    assert problem == "val.json: missing, 1 shards are there; run the same `vidprep shard` command again"
    shard(split, videos, out=tmp_path)
    assert verify_shards(tmp_path).is_sound


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"samples_per_shard": 3}, "samples_per_shard was 2, now 3"),
        ({"content": "frames"}, "content was video, now frames; frames was None"),
        ({"check": "open"}, "check was decode, now open"),
    ],
)
def test_other_settings_in_the_same_folder_are_refused(
    changes: dict[str, Any], message: str, videos: dict[str, Path], tmp_path: Path
) -> None:
    shard(make_split(*videos), videos, out=tmp_path, samples_per_shard=2)
    with pytest.raises(UsageError, match=message):
        shard(make_split(*videos), videos, out=tmp_path, **{"samples_per_shard": 2, **changes})


def test_another_list_of_videos_in_the_same_folder_is_refused(videos: dict[str, Path], tmp_path: Path) -> None:
    split = make_split(*videos)
    shard(split, videos, out=tmp_path)
    with pytest.raises(UsageError, match="num_videos was 5, now 4; videos_sha256 was"):
        shard(replace(split, videos=split.videos[1:]), videos, out=tmp_path)
    with pytest.raises(UsageError, match="dataset was folder, now toy"):
        shard(replace(split, dataset="toy"), videos, out=tmp_path)


def test_several_splits_share_a_folder(videos: dict[str, Path], tmp_path: Path) -> None:
    split = make_split(*videos)
    shard(split, videos, out=tmp_path)
    shard(replace(split, split="train"), videos, out=tmp_path)
    report = verify_shards(tmp_path)
    assert [part.split for part in report.splits] == ["train", "val"]
    assert report.is_sound


def test_foreign_shards_are_left_alone(videos: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "val-000000.tar").touch()
    with pytest.raises(UsageError, match=r"holds val-000000.tar but no val.plan.json"):
        shard(make_split(*videos), videos, out=tmp_path)


@pytest.mark.parametrize(("num_videos", "expected"), [(1, 16), (37, 16), (400, 25), (4096, 256), (240_000, 256)])
def test_small_splits_get_several_shards(num_videos: int, expected: int) -> None:
    assert default_samples_per_shard(num_videos) == expected


def test_out_that_is_a_file_and_senseless_settings_are_refused(videos: dict[str, Path], tmp_path: Path) -> None:
    split = make_split(*videos)
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="is a file; give --out the name of a folder"):
        shard(split, videos, out=tmp_path / "file")
    with pytest.raises(UsageError, match="samples_per_shard must be at least 1, got 0"):
        shard(split, videos, out=tmp_path, samples_per_shard=0)
    with pytest.raises(UsageError, match="the split is empty"):
        shard(replace(split, videos=()), videos, out=tmp_path)
    with pytest.raises(UsageError, match="for --content frames"):
        shard(split, videos, out=tmp_path, frames=FrameFormat())


def test_frames_straight_from_videos_are_those_asked_for(videos: dict[str, Path], tmp_path: Path) -> None:
    settings = FrameFormat(fps=5, rate_mode="output", short_side=32)
    shard(make_split(*videos), videos, out=tmp_path, content="frames", frames=settings, samples_per_shard=2)
    samples = read_plainly(tmp_path)
    for number, sample in enumerate(samples):
        chosen = select_frames(np.arange(12 + number) / 10, fps=5, rate_mode="output", frame_rate=10)
        names = sorted(name for name in sample if name.endswith(".jpg"))
        assert names == [f"{place:05d}.jpg" for place in range(1, len(chosen) + 1)]
        shown = [read_number(simplejpeg.decode_jpeg(sample[name])) for name in names]
        assert shown == [100 * number + index for index in chosen]
        info = json.loads(sample["json"])
        assert info["pts_seconds"] == pytest.approx((chosen / 10).tolist())
        assert (info["num_frames"], info["fps"], info["height"]) == (len(chosen), 5, 32)
    assert verify_shards(tmp_path).is_sound


def test_frames_of_a_segment_are_the_whole_sample(videos: dict[str, Path], tmp_path: Path) -> None:
    video = Video(video_id="e.mp4", labels=(0,), start_seconds=0.5, end_seconds=1.0)
    beyond = Video(video_id="e.mp4", labels=(0,), start_seconds=50, end_seconds=60)
    split = replace(make_split(), videos=(video, beyond))
    report = shard(split, videos, out=tmp_path / "frames", content="frames")
    [row] = read_samples(tmp_path / "frames", "val")
    assert (row.num_frames, row.start_seconds, row.end_seconds) == (5, None, None)
    [sample] = read_plainly(tmp_path / "frames")
    assert json.loads(sample["json"])["start_seconds"] == 0.5
    assert read_number(simplejpeg.decode_jpeg(sample["00001.jpg"])) == 305
    assert "the segment 50 to 60 s lies outside the video" in report.manifest.faults[0].reason
    report = shard(split, videos, out=tmp_path / "videos")
    [row] = read_samples(tmp_path / "videos", "val")
    assert (row.num_frames, row.start_seconds, row.end_seconds) == (15, 0.5, 1.0)
    assert report.manifest.faults[0].reason == "the segment begins at 50 s, the video ends at 1.500 s"


def test_extracted_frames_give_the_same_shards_as_the_videos(videos: dict[str, Path], tmp_path: Path) -> None:
    split = make_split(*videos)
    settings = FrameFormat(fps=5, short_side=32)
    extract(split, videos, out=tmp_path / "frames", settings=settings)
    shard(split, {}, out=tmp_path / "a", content="frames", frames_from=tmp_path / "frames")
    shard(split, videos, out=tmp_path / "b", content="frames", frames=settings)
    assert tars(tmp_path / "a") == tars(tmp_path / "b")


def test_a_fault_of_one_segment_is_not_tried_again_for_another_of_the_same_video(
    videos: dict[str, Path], tmp_path: Path
) -> None:
    segments = tuple(
        Video(video_id="e.mp4", labels=(0,), start_seconds=start, end_seconds=start + 0.5) for start in (90.0, 0.0)
    )
    split = replace(make_split("e.mp4"), videos=segments)
    extract(split, videos, out=tmp_path / "frames", settings=FrameFormat())
    for num_new in (1, 0):
        report = shard(split, {}, out=tmp_path / "shards", content="frames", frames_from=tmp_path / "frames")
        assert (report.num_samples, report.num_new_shards) == (1, num_new)


def test_extracted_png_frames_are_refused(videos: dict[str, Path], tmp_path: Path) -> None:
    split = make_split(*videos)
    extract(split, videos, out=tmp_path / "frames", settings=FrameFormat(template="{:03d}.png"))
    with pytest.raises(UsageError, match=r"shards hold JPEG frames, got '{:03d}.png'; extract them with a --template"):
        shard(split, {}, out=tmp_path / "shards", content="frames", frames_from=tmp_path / "frames")
    assert not (tmp_path / "shards").exists()


def test_missing_and_damaged_extracted_frames_are_faults(videos: dict[str, Path], tmp_path: Path) -> None:
    split = make_split(*videos, "gone.mp4")
    frames = tmp_path / "frames"
    extract(split, videos, out=frames, settings=FrameFormat(fps=5, short_side=32))
    (frames / "-dash.mp4" / "image_00002.jpg").unlink()
    image = frames / "e.mp4" / "image_00001.jpg"
    os.truncate(image, image.stat().st_size // 2)
    report = shard(split, {}, out=tmp_path / "out", content="frames", frames_from=frames)
    reasons = {fault.video_id: fault.reason for fault in report.manifest.faults}
    assert set(reasons) == {"-dash.mp4", "e.mp4", "gone.mp4"}
    assert "frame 2 of 6 (image_00002.jpg) is missing" in reasons["-dash.mp4"]
    assert "frame 1 of 8 (image_00001.jpg) does not decode" in reasons["e.mp4"]
    assert reasons["gone.mp4"] == "no file found for it"


def test_a_source_that_changes_while_it_is_read_is_a_fault(
    videos: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.mp4"
    shutil.copy(videos["e.mp4"], path)
    read_bytes = Path.read_bytes

    def append_meanwhile(self: Path) -> bytes:
        data = read_bytes(self)
        if self == path:
            with path.open("ab") as stream:
                stream.write(b"more")
        return data

    monkeypatch.setattr(Path, "read_bytes", append_meanwhile)
    report = shard(make_split("a.mp4"), {"a.mp4": path}, out=tmp_path / "out")
    assert "changed while it was read" in report.manifest.faults[0].reason


def test_what_was_checked_is_what_is_written(
    videos: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.mp4"
    shutil.copy(videos["e.mp4"], path)

    def replace_meanwhile(data: bytes) -> VideoFacts:
        path.write_bytes(b"something else")
        return check(data)

    monkeypatch.setattr(shard_module, "_decode_all", replace_meanwhile)
    shard(make_split("a.mp4"), {"a.mp4": path}, out=tmp_path / "out")
    [sample] = read_plainly(tmp_path / "out")
    assert sample["mp4"] == videos["e.mp4"].read_bytes()


def test_a_source_that_vanishes_is_a_fault(
    videos: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read_bytes = Path.read_bytes

    def fail(self: Path) -> bytes:
        if self.suffix == ".mp4":
            raise OSError(errno.EIO, "Input/output error")
        return read_bytes(self)

    monkeypatch.setattr(Path, "read_bytes", fail)
    report = shard(make_split("e.mp4"), videos, out=tmp_path / "out")
    assert report.manifest.faults[0].reason == "cannot be read (Input/output error)"


def test_a_video_that_kills_the_decoder_is_found_and_left_out(
    videos: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shard_module, "_decode_all", die_on_14_frames)
    report = shard(make_split(*videos), videos, out=tmp_path, samples_per_shard=3, workers=2)
    [fault] = report.manifest.faults
    assert fault.video_id == "c d.mp4"  # the third, of 14 frames
    assert "its worker process died 2 times (SIGSEGV" in fault.reason
    assert [row.video_id for row in read_samples(tmp_path, "val")] == ["-dash.mp4", "b.MKV", "e.mp4", "f.webm"]
    assert verify_shards(tmp_path).is_sound


def test_flips_and_settings_stand_in_the_manifest(videos: dict[str, Path], tmp_path: Path) -> None:
    split = replace(make_split("e.mp4"), dataset="toy")
    shard(split, videos, out=tmp_path)
    manifest = read_manifest(tmp_path)
    assert manifest.flip_pairs["0"] == 4
    assert manifest.settings == {"source": "videos", "samples_per_shard": 16, "check": "decode", "frames": None}


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
def test_a_full_disk_ends_the_run_and_more_space_completes_it(videos: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "small"
    out.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(out)], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip(f"cannot mount: {mounted.stderr.decode()}")
    try:
        many = {f"{number}.mp4": videos["e.mp4"] for number in range(40)}
        split = make_split(*many)
        for workers in (1, 2):
            with pytest.raises(CannotWrite, match="no space left on the disk; free some and run the same command"):
                shard(split, many, out=out, samples_per_shard=4, workers=workers)
            assert not list(out.glob("*.part"))
        subprocess.run(["mount", "-o", "remount,size=4m", str(out)], check=True)
        assert shard(split, many, out=out, samples_per_shard=4).num_samples == 40
        assert verify_shards(out).is_sound
    finally:
        subprocess.run(["umount", str(out)], check=True)


def test_a_file_size_limit_ends_the_run_in_one_line(videos: dict[str, Path], tmp_path: Path) -> None:
    script = (
        "import resource, sys\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000))\n"
        "from vidprep.cli import main\n"
        f"sys.argv = ['vidprep', 'shard', '--dataset', 'folder', '--data-root', {str(videos['e.mp4'].parent)!r},\n"
        f"            '--out', {str(tmp_path / 'out')!r}, '--workers', '1']\n"
        "sys.exit(main())\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "error:" in done.stderr
    assert "file too large on the disk" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list((tmp_path / "out").glob("*.part"))
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY


@pytest.mark.real
def test_real_videos_are_in_shards_or_in_the_report(testdata: Path, tmp_path: Path) -> None:
    folder = testdata / "videos"
    names = [
        "-video-with-dash-.mp4",
        "decord_corrupted.mp4",
        "decord_video_90.mov",
        "mdn_rabbit320.webm",
        "mmaction2_test.avi",
        "moviepy_zero_bytes.webm",
        "torchcodec_av1_video.mkv",
        "torchcodec_h265_10bits.mp4",
    ]
    paths = {name: folder / name for name in names}
    report = shard(make_split(*names), paths, out=tmp_path, workers=2, samples_per_shard=3)
    assert [fault.video_id for fault in report.manifest.faults] == ["decord_corrupted.mp4", "moviepy_zero_bytes.webm"]
    assert verify_shards(tmp_path).is_sound
    samples = read_plainly(tmp_path)
    sound = [name for name in names if name not in {fault.video_id for fault in report.manifest.faults}]
    assert [json.loads(sample["json"])["video_id"] for sample in samples] == sound
    for sample, name in zip(samples, sound, strict=True):
        assert sample[name.rsplit(".", 1)[1]] == paths[name].read_bytes()
