import json
from collections import Counter
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from tests.videos import read_number, write_numbered_video
from tests.vidprep.test_tasks import held_elsewhere
from vidprep.cli import main
from vidprep.clips import CODERS, ClipCodec, ClipFormat, ClipReport, clips
from vidprep.datasets import DATASETS, get, load_split, locate
from vidprep.decode.pyav import PyavReader
from vidprep.errors import UsageError
from vidprep.ledger import ledger_paths, missing_tasks, read_ledger
from vidprep.shard import shard
from vidprep.splits import Split
from vidprep.tasks import Held, parse_task
from vidprep.types import Video


def make_split(*videos: Video, dataset: str = "folder") -> Split:
    return Split(dataset=dataset, split="val", task="single_label", classes=("one", "two"), videos=videos)


def cut(path: Path, out: Path, *, start: float | None = None, end: float | None = None, **settings: Any) -> Path:
    """One clip of one video."""
    video = Video(video_id="a.mp4", start_seconds=start, end_seconds=end)
    report = clips(get("folder"), make_split(video), {"a.mp4": path}, out=out, settings=ClipFormat(**settings))
    assert report.faults == ()
    return out / str(facts_of(out)["path"])


def facts_of(out: Path) -> dict[str, Any]:
    """Of the only clip there."""
    lines = map(json.loads, (out / "val.clips.jsonl").read_text().splitlines())
    [facts] = [line["facts"] for line in lines if "facts" in line]
    assert isinstance(facts, dict)
    return facts


def numbers_of(path: Path) -> list[int]:
    with PyavReader(path) as reader:
        return [read_number(frame) for frame in reader.iterate_frames(range(reader.num_frames))]


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("codec", ["h264", "vp9", "mjpeg"])
def test_a_segment_is_cut_scaled_and_timed_anew(codec: ClipCodec, tmp_path: Path) -> None:
    path = write_numbered_video(tmp_path / "a.mp4", num_frames=60, fps=30, width=192, height=128)
    clip = cut(path, tmp_path / "out", start=0.5, end=1.5, codec=codec, short_side=96, fps=10.0)
    with PyavReader(clip) as reader:
        assert (reader.width, reader.height) == (144, 96)
        assert reader.stream.codec_context.codec.canonical_name == codec
        assert reader.pts_seconds == pytest.approx(np.arange(10) / 10)
    assert numbers_of(clip) == [16, 19, 22, 25, 28, 31, 34, 37, 40, 43]


def test_tasks_in_any_order_and_repeated_cut_what_one_run_does(tmp_path: Path) -> None:
    path = write_numbered_video(tmp_path / "long.mp4", num_frames=50, fps=10)
    (tmp_path / "empty.mp4").touch()
    segments = [Video(video_id="long.mp4", start_seconds=n, end_seconds=n + 1, segment_id=f"s{n}") for n in range(5)]
    split = make_split(*segments[:3], Video(video_id="empty.mp4"), *segments[3:])
    paths = {"long.mp4": path, "empty.mp4": tmp_path / "empty.mp4"}

    def run(out: Path, task: str = "") -> ClipReport:
        part = parse_task(task) if task else None
        return clips(get("folder"), split, paths, out=out, settings=ClipFormat(short_side=64), task=part)

    def results(out: Path) -> dict[str, bytes]:
        return {name: content for name, content in tree(out).items() if not name.endswith((".jsonl", ".lock"))}

    whole = run(tmp_path / "whole")
    out = tmp_path / "tasks"
    reports = [run(out, task) for task in ("3/3", "1/3", "3/3", "2/3", "2/3")]
    assert [report.is_finished for report in reports] == [False, False, False, True, True]
    assert [report.num_new for report in reports] == [2, 2, 0, 1, 0]
    assert [report.num_missing for report in reports[:3]] == [4, 2, 2]
    assert [report.num_clips for report in reports] == [2, 2, 2, 5, 5]
    assert reports[-1].faults == whole.faults
    assert results(out) == results(tmp_path / "whole")
    assert not list(out.glob("*-of-*"))
    # A run without tasks does what they have left, and takes in what they noted.
    run(tmp_path / "rest", "2/3")
    [ledgers] = ledger_paths(tmp_path / "rest").values()
    assert Counter(entry.state for entry in read_ledger(ledgers)) == {"done": 1, "failed": 1, "pending": 4}
    assert run(tmp_path / "rest").num_new == 4
    assert results(tmp_path / "rest") == results(out)


def test_a_task_sweeps_only_what_is_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = {f"{n}.mp4": write_numbered_video(tmp_path / f"{n}.mp4", num_frames=4) for n in range(4)}
    split, out = make_split(*(Video(video_id=name) for name in paths)), tmp_path / "out"
    out.mkdir()
    for name in ("0.mp4", "3.mp4"):
        (out / f"{name}.17-abc.part").touch()
    (out / "val.clips.lock").touch()
    with held_elsewhere(out / "val.clips.lock", range(2, 4)):  # task 2/2 is at work
        clips(get("folder"), split, paths, out=out, settings=ClipFormat(), task=parse_task("1/2"))
        assert [path.name for path in out.glob("*.part")] == ["3.mp4.17-abc.part"]
        [ledgers] = ledger_paths(out).values()
        assert missing_tasks(ledgers) == "2/2"
        assert Counter(entry.state for entry in read_ledger(ledgers)) == {"done": 2}
        monkeypatch.setattr("vidprep.journal.FINISH_PATIENCE_SECONDS", 0.2)
        with pytest.raises(Held, match="another vidprep clips --task 2/2 is at work here; wait for it to end"):
            clips(get("folder"), split, paths, out=out, settings=ClipFormat(), task=parse_task("2/2"))
        with pytest.raises(Held, match="another vidprep clips is at work here; wait for it to end"):
            clips(get("folder"), split, paths, out=out, settings=ClipFormat())


def test_the_command_says_what_other_tasks_have_left(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "root").mkdir()
    for name in "ab":
        write_numbered_video(tmp_path / "root" / f"{name}.mp4", num_frames=4)
    command = f"vidprep clips -d folder --data-root {tmp_path / 'root'} --out {tmp_path / 'out'} -w 1 --time-limit 0"
    for task, said in (
        ("2/2", "1 videos of other tasks are missing; the last task to finish writes the list."),
        ("1/2", "2 clips"),
    ):
        monkeypatch.setattr("sys.argv", [*command.split(), "--task", task])
        assert main() == 0
        assert said in capsys.readouterr().out


def test_frames_of_a_variable_rate_keep_their_times(tmp_path: Path) -> None:
    pts = np.cumsum([0, 33, 100, 40, 17, 300, 66, 33]).tolist()
    path = write_numbered_video(tmp_path / "a.mkv", num_frames=8, pts=pts, time_base=Fraction(1, 1000))
    clip = cut(path, tmp_path / "out", short_side=64)
    with PyavReader(clip) as reader:
        assert reader.pts_seconds == pytest.approx(np.array(pts) / 1000, abs=0.0011)


@pytest.mark.parametrize("rotation", [90, 180, 270])
def test_clips_are_upright(rotation: int, tmp_path: Path) -> None:
    path = write_numbered_video(tmp_path / "a.mp4", num_frames=4, rotation=rotation)
    clip = cut(path, tmp_path / "out", short_side=64)
    with av.open(str(clip)) as container:
        frames = list(container.decode(video=0))
    assert [read_number(frame.to_ndarray(format="rgb24")) for frame in frames] == [0, 1, 2, 3]
    assert {frame.rotation for frame in frames} == {0}


def test_key_frames_come_at_the_distance_asked_for_and_groups_are_closed(tmp_path: Path) -> None:
    path = write_numbered_video(tmp_path / "a.mp4", num_frames=50, gop=50)
    clip = cut(path, tmp_path / "out", gop=8)
    with PyavReader(clip) as reader:
        keyframes = reader.keyframe_indices.tolist()
        assert max(np.diff([*keyframes, 50])) <= 8
        # Every key frame can be decoded without what is before it.
        assert reader.packets_of(keyframes[1], keyframes[2] - 1) is not None


def test_the_index_of_an_mp4_comes_first(tmp_path: Path) -> None:
    path = write_numbered_video(tmp_path / "a.mp4", num_frames=10)
    for copies in (True, False):
        content = cut(path, tmp_path / f"out{copies}", copies=copies).read_bytes()
        assert content.index(b"moov") < content.index(b"mdat")


def test_a_cut_at_key_frames_copies_the_pictures(tmp_path: Path) -> None:
    path = write_numbered_video(tmp_path / "a.mp4", num_frames=60, fps=10, gop=10, bframes=2)
    clip = cut(path, tmp_path / "out", start=2, end=4)
    assert facts_of(tmp_path / "out")["is_copied"]
    assert numbers_of(clip) == list(range(20, 40))
    with PyavReader(path) as source, PyavReader(clip) as copy:
        assert copy.pts_seconds == pytest.approx(np.arange(20) / 10)
        np.testing.assert_array_equal(copy.get_frames_at([0, 7, 19]).data, source.get_frames_at([20, 27, 39]).data)


@pytest.mark.parametrize(
    ("start", "end", "settings"),
    [
        (2.1, 4.0, {}),
        (2.0, 3.5, {}),
        (2.0, 4.0, {"fps": 5.0}),
        (2.0, 4.0, {"gop": 5}),
        (2.0, 4.0, {"short_side": 64}),
        (2.0, 4.0, {"copies": False}),
        (2.0, 4.0, {"codec": "vp9"}),
    ],
)
def test_any_other_cut_or_change_encodes_them(start: float, end: float, settings: Any, tmp_path: Path) -> None:
    path = write_numbered_video(tmp_path / "a.mp4", num_frames=60, fps=10, gop=10, bframes=2)
    clip = cut(path, tmp_path / "out", start=start, end=end, **settings)
    assert not facts_of(tmp_path / "out")["is_copied"]
    expected = [number for number in range(60) if start <= number / 10 < end]
    assert numbers_of(clip) == (expected if "fps" not in settings else expected[::2])


def test_open_groups_are_not_copied_out_of_their_middle(tmp_path: Path) -> None:
    path = write_numbered_video(tmp_path / "a.mp4", num_frames=60, fps=10, gop=10, bframes=2, open_gop=True)
    clip = cut(path, tmp_path / "out", start=2, end=4)
    assert not facts_of(tmp_path / "out")["is_copied"]
    assert numbers_of(clip) == list(range(20, 40))


@pytest.mark.parametrize(("codec", "sound"), [("h264", "aac"), ("vp9", "opus"), ("mjpeg", "aac")])
@pytest.mark.parametrize("copies", [True, False])
def test_sound_is_kept_when_asked_for_and_dropped_otherwise(
    codec: ClipCodec, sound: str, copies: bool, tmp_path: Path
) -> None:
    path = write_numbered_video(tmp_path / "a.mp4", num_frames=60, fps=10, gop=10, has_audio=True)
    clip = cut(path, tmp_path / "out", start=2, end=5, codec=codec, keeps_audio=True, copies=copies)
    with av.open(str(clip)) as container:
        stream: Any = container.streams.audio[0]
        assert stream.codec_context.codec.canonical_name == sound
        seconds = [float(packet.pts * packet.time_base) for packet in container.demux(stream) if packet.size]
    assert seconds[0] == pytest.approx(0, abs=0.05)
    assert seconds[-1] == pytest.approx(3, abs=0.08)
    with av.open(str(cut(path, tmp_path / "silent", codec=codec))) as container:
        assert not container.streams.audio


@pytest.mark.parametrize("codec", ["h264", "vp9", "mjpeg"])
def test_the_same_video_gives_the_same_bytes_with_any_number_of_workers(codec: ClipCodec, tmp_path: Path) -> None:
    paths = {
        f"{name}.mp4": write_numbered_video(tmp_path / f"{name}.mp4", num_frames=20, start=start, has_audio=True)
        for start, name in enumerate("abc")
    }
    split = make_split(*(Video(video_id=name, labels=(1,)) for name in paths))
    settings = ClipFormat(codec=codec, short_side=64, keeps_audio=True)
    for workers in (1, 2):
        clips(get("folder"), split, paths, out=tmp_path / f"{workers}", settings=settings, workers=workers)
    one, two = tree(tmp_path / "1"), tree(tmp_path / "2")
    # The journal says when, and in which order.
    for files in (one, two):
        del files["val.clips.jsonl"], files["val.clips.lock"]
    assert len(one) == 6
    assert one == two


def test_a_restart_makes_only_what_is_missing(tmp_path: Path) -> None:
    paths = {f"{name}.mp4": write_numbered_video(tmp_path / f"{name}.mp4", num_frames=10) for name in "abc"}
    (tmp_path / "empty.mp4").touch()
    paths["empty.mp4"] = tmp_path / "empty.mp4"
    split = make_split(*(Video(video_id=name) for name in (*paths, "gone.mp4")))
    out = tmp_path / "out"
    first = clips(get("folder"), split, paths, out=out, settings=ClipFormat(short_side=64))
    assert (first.num_clips, first.num_new) == (3, 3)
    assert [fault.video_id for fault in first.faults] == ["empty.mp4", "gone.mp4"]
    assert first.faults[1].reason == "no file found for it"
    whole = tree(out)
    again = clips(get("folder"), split, paths, out=out, settings=ClipFormat(short_side=64))
    assert (again.num_clips, again.num_new, again.faults) == (3, 0, first.faults)
    # What a killed run leaves: a lost clip, half a line, half a file.
    (out / "b.mp4").unlink()
    (out / "b.mp4.17-0a1b2c3d.part").touch()
    (out / "b.mp4.17.part").touch()
    journal = out / "val.clips.jsonl"
    journal.write_text(journal.read_text() + '{"clip": "c.m')
    assert clips(get("folder"), split, paths, out=out, settings=ClipFormat(short_side=64)).num_new == 1
    left = tree(out)
    assert {name: left[name] for name in left if name.endswith(".mp4")} == {
        name: whole[name] for name in whole if name.endswith(".mp4")
    }
    assert not list(out.glob("*.part"))


def test_other_settings_in_the_same_folder_are_refused(tmp_path: Path) -> None:
    path = write_numbered_video(tmp_path / "a.mp4", num_frames=5)
    cut(path, tmp_path / "out", short_side=64)
    with pytest.raises(UsageError, match=r"out: holds clips of other settings \(short_side was 64, now 32\)"):
        cut(path, tmp_path / "out", short_side=32)


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"codec": "av1"}, "codec is one of h264, vp9, mjpeg, got 'av1'"),
        ({"short_side": 255}, "short_side is an even number of pixels or None, got 255"),
        ({"fps": 0.0}, "fps must be positive"),
        ({"gop": 0}, "gop must be at least 1 frame or None, got 0"),
        ({"quality": 52}, "quality of h264 lies between 0 and 51, got 52"),
        ({"codec": "mjpeg", "quality": 0}, "quality of mjpeg lies between 1 and 31, got 0"),
        ({"preset": "quick"}, "presets of h264: ultrafast, .* placebo; got 'quick'"),
        ({"codec": "mjpeg", "preset": "fast"}, "presets of mjpeg: none; got 'fast'"),
    ],
)
def test_settings_out_of_range_are_refused(wrong: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        ClipFormat(**wrong)


def test_what_no_clips_can_be_made_of_is_refused(tmp_path: Path) -> None:
    split = make_split(Video(video_id="a"))
    with pytest.raises(UsageError, match="jester is delivered as folders of frames; clips are made from video files"):
        clips(get("jester"), split, {}, out=tmp_path, settings=ClipFormat())
    with pytest.raises(UsageError, match="the split is empty, there is nothing to cut"):
        clips(get("folder"), make_split(), {}, out=tmp_path, settings=ClipFormat())
    with pytest.raises(UsageError, match="would lie outside"):
        clips(get("folder"), make_split(Video(video_id="../a")), {}, out=tmp_path, settings=ClipFormat())
    with pytest.raises(UsageError, match=r"toy's videos are called .*; choose a codec whose files are, not \.webm"):
        clips(get("toy"), split, {}, out=tmp_path, settings=ClipFormat(codec="vp9"))
    twice = make_split(Video(video_id="a.mkv"), Video(video_id="a.mkv.mp4"))
    with pytest.raises(UsageError, match=r"two of its videos would be the clip a\.mkv\.mp4; rename one"):
        clips(get("folder"), twice, {}, out=tmp_path, settings=ClipFormat())


@pytest.mark.parametrize("name", [name for name, info in DATASETS.items() if info.media == "video" and name != "toy"])
def test_the_folder_of_clips_is_a_data_root_of_the_same_data_set(name: str, tmp_path: Path) -> None:
    info = get(name)
    path = write_numbered_video(tmp_path / "a.mp4", num_frames=20, fps=10)
    rows = [("aCbHx1yGnNE_000010_000020", None), ("QOlSCBRmfWY_000003_000013", 0.5)]
    labels = (0, 1) if info.task == "verb_noun" else (0,)
    names = tuple(f"class {index}" for index in range(info.num_classes or 2))
    nouns = tuple(f"noun {index}" for index in range(info.num_noun_classes or 0))
    videos = tuple(
        Video(video_id=video_id, labels=labels, start_seconds=start, end_seconds=start and 1.5)
        for video_id, start in rows
    )
    split = Split(dataset=name, split="val", task=info.task, classes=names, noun_classes=nouns, videos=videos)
    if "val" not in info.splits:
        split = Split(dataset=name, split="test", task=info.task, classes=names, videos=videos)
    out = tmp_path / "out"
    report = clips(info, split, {row[0]: path for row in rows}, out=out, settings=ClipFormat(short_side=48))
    assert (report.num_clips, report.faults) == (2, ())
    loaded = load_split(name, split.split, data_root=out)
    assert [video.labels for video in loaded.videos] == [labels, labels]
    found = locate(info, loaded, out)
    assert [numbers_of(found[video.video_id]) for video in loaded.videos] == [list(range(20)), list(range(5, 15))]


def test_clips_are_sharded_like_any_video(tmp_path: Path) -> None:
    paths = {f"one/{name}.mp4": write_numbered_video(tmp_path / f"{name}.mp4", num_frames=20, fps=10) for name in "ab"}
    split = make_split(*(Video(video_id=name, labels=(1,), start_seconds=0.5, end_seconds=1.0) for name in paths))
    out = tmp_path / "out"
    clips(get("folder"), split, paths, out=out, settings=ClipFormat(codec="vp9", short_side=64))
    loaded = load_split("folder", "val", data_root=out)
    assert loaded.classes == ("one", "two")
    report = shard(loaded, locate(get("folder"), loaded, out), out=tmp_path / "shards")
    assert (report.num_samples, report.manifest.faults) == (2, ())


@pytest.mark.slow  # importing DALI takes its time
@pytest.mark.dali
@pytest.mark.parametrize("codec", ["vp9", "mjpeg"])
def test_dali_decodes_clips_without_a_gpu(codec: ClipCodec, tmp_path: Path) -> None:
    dali = pytest.importorskip("nvidia.dali")
    path = write_numbered_video(tmp_path / "a.mp4", num_frames=12)
    clip = np.frombuffer(cut(path, tmp_path / "out", codec=codec, short_side=64).read_bytes(), dtype=np.uint8)
    pipeline = dali.Pipeline(batch_size=1, num_threads=1, device_id=None)
    with pipeline:
        encoded = dali.fn.external_source(source=lambda: [clip], ndim=1)
        pipeline.set_outputs(dali.fn.decoders.video(encoded, device="cpu"))
    pipeline.build()
    [frames] = pipeline.run()
    assert [read_number(frame) for frame in frames.at(0)] == list(range(12))


def test_every_codec_has_its_defaults_in_range() -> None:
    for codec, coder in CODERS.items():
        assert coder.quality in coder.qualities
        ClipFormat(codec=codec, quality=coder.quality, preset=coder.preset or None)
