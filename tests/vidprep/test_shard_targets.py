"""The same shards in one go, in tasks and in stores; indices for other readers; targets and sources that fail."""

import json
import shutil
import subprocess
import sys
import tarfile
import uuid
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.videos import write_numbered_video
from tests.vidprep import s3
from tests.vidprep.test_tasks import held_elsewhere
from vidprep import shard as shard_module
from vidprep import store as store_module
from vidprep.cli import main
from vidprep.datasets import load_split
from vidprep.engine import CannotWrite
from vidprep.errors import UsageError, VidprepError
from vidprep.index import dali_index, read_manifest, read_samples, wids_index
from vidprep.probe import VideoFacts, check
from vidprep.report import contact_sheet
from vidprep.shard import shard
from vidprep.splits import Split
from vidprep.store import Location, ObjectStore, is_url, open_store
from vidprep.tasks import ArrayTask, Held
from vidprep.types import FrameFormat, Video
from vidprep.verify import verify_shards

NUM_VIDEOS = 12
OF_ONE_RUN = ".ledger.jsonl"
"""When and how often: of each run its own."""


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("my videos")
    paths = {}
    for number in range(NUM_VIDEOS):
        name = f"{number:02d}.mp4"
        paths[name] = write_numbered_video(folder / name, num_frames=4 + 3 * number, fps=10, width=64, height=48)
    paths["05.mp4"].write_bytes(b"")
    return paths


def make_split(videos: dict[str, Path], split: str = "val") -> Split:
    rows = tuple(Video(video_id=name, labels=(number % 2,)) for number, name in enumerate(videos))
    return Split(dataset="folder", split=split, task="single_label", classes=("a", "b"), videos=rows)


def contents(place: Location) -> dict[str, bytes]:
    """What all runs must agree in."""
    if isinstance(place, str):
        found = s3.contents(place)
    else:
        found = {path.name: path.read_bytes() for path in sorted(place.iterdir()) if path.is_file()}
    return {name: content for name, content in found.items() if not name.endswith(OF_ONE_RUN)}


@pytest.fixture(scope="module")
def in_one_go(videos: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("in one go")
    shard(make_split(videos), videos, out=out, samples_per_shard=2)
    return out


# Tasks


def test_tasks_in_any_order_and_repeated_write_the_same_bytes(
    videos: dict[str, Path], in_one_go: Path, tmp_path: Path
) -> None:
    split = make_split(videos)
    published = []
    for number in (3, 1, 1, 3, 2, 2):
        task = ArrayTask(number=number, count=3)
        report = shard(split, videos, out=tmp_path, samples_per_shard=2, task=task)
        published.append(report.is_published)
        assert (tmp_path / "val.json").exists() == report.is_published
    assert published == [False, False, False, False, True, True]
    assert contents(tmp_path) == contents(in_one_go)
    assert shard(split, videos, out=tmp_path, samples_per_shard=2).num_new_shards == 0


def test_more_tasks_than_shards_and_a_run_for_the_rest_end_in_the_same_bytes(
    videos: dict[str, Path], in_one_go: Path, tmp_path: Path
) -> None:
    split = make_split(videos)
    for number in range(1, 9):
        task = ArrayTask(number=number, count=20)
        report = shard(split, videos, out=tmp_path, samples_per_shard=2, task=task)
        assert not report.is_published
    assert report.num_missing_shards == 4
    assert shard(split, videos, out=tmp_path, samples_per_shard=2).num_new_shards == 4
    assert contents(tmp_path) == contents(in_one_go)


def test_a_task_reports_what_its_own_shards_hold(videos: dict[str, Path], tmp_path: Path) -> None:
    report = shard(make_split(videos), videos, out=tmp_path, samples_per_shard=2, task=ArrayTask(number=2, count=3))
    assert (report.num_samples, report.num_new_shards, report.num_missing_shards) == (3, 2, 4)
    assert [facts.name for facts in report.manifest.shards] == ["val-000002.tar", "val-000003.tar"]
    assert [fault.video_id for fault in report.manifest.faults] == ["05.mp4"]
    assert report.manifest.num_videos == 4
    [problem] = verify_shards(tmp_path).splits[0].problems
    assert problem.startswith("val.json: missing, 2 shards are there")


def test_a_task_leaves_alone_what_other_tasks_are_writing(videos: dict[str, Path], tmp_path: Path) -> None:
    for name in ("val-000000.tar.1-aa.part", "val-000005.tar.1-aa.part"):
        (tmp_path / name).touch()
    shard(make_split(videos), videos, out=tmp_path, samples_per_shard=2, task=ArrayTask(number=1, count=3))
    assert [path.name for path in tmp_path.glob("*.part")] == ["val-000005.tar.1-aa.part"]


def test_a_task_beside_another_is_welcome_and_one_beside_itself_is_not(
    videos: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shard_module, "PUBLISH_PATIENCE_SECONDS", 0.2)
    split = make_split(videos)
    shard(split, videos, out=tmp_path, samples_per_shard=2, task=ArrayTask(number=1, count=3))
    with held_elsewhere(tmp_path / "val.plan.json", range(4, 6)):  # task 3/3 is at work
        shard(split, videos, out=tmp_path, samples_per_shard=2, task=ArrayTask(number=2, count=3))
        for task in (ArrayTask(number=3, count=3), ArrayTask(number=2, count=2)):
            with pytest.raises(Held, match=f"another vidprep shard --task {task} is at work here; wait for it to end"):
                shard(split, videos, out=tmp_path, samples_per_shard=2, task=task)
        with pytest.raises(Held, match="another vidprep shard is at work here"):
            shard(split, videos, out=tmp_path, samples_per_shard=2)
    assert shard(split, videos, out=tmp_path, samples_per_shard=2, task=ArrayTask(number=3, count=3)).is_published


def test_the_manifest_is_left_to_a_task_that_is_still_at_work(
    videos: dict[str, Path], in_one_go: Path, tmp_path: Path
) -> None:
    split = make_split(videos)
    shard(split, videos, out=tmp_path, samples_per_shard=2)
    (tmp_path / "val.json").unlink()
    with held_elsewhere(tmp_path / "val.plan.json", range(4, 6)):
        report = shard(split, videos, out=tmp_path, samples_per_shard=2, task=ArrayTask(number=1, count=3))
        assert (report.num_missing_shards, report.is_published) == (0, False)
    assert shard(split, videos, out=tmp_path, samples_per_shard=2, task=ArrayTask(number=1, count=3)).is_published
    assert contents(tmp_path) == contents(in_one_go)


def run_vidprep(*arguments: object) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", "import sys; from vidprep.cli import main; sys.exit(main())"]
    return subprocess.Popen([*command, *map(str, arguments)], text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def test_three_processes_at_once_write_one_run(videos: dict[str, Path], in_one_go: Path, tmp_path: Path) -> None:
    root = videos["00.mp4"].parent
    arguments = ["shard", "-d", "folder", "--data-root", root, "--samples-per-shard", 2, "-w", 1, "--out", tmp_path]
    tasks = [run_vidprep(*arguments, "--task", f"{number}/3") for number in (1, 2, 3)]
    outputs = [task.communicate(timeout=120) for task in tasks]
    assert all("Traceback" not in errors for _, errors in outputs)
    assert tasks[1].returncode == 1  # the fault is in the shards of the second, and in the report of the last
    assert sum("samples in 6 shards" in output for output, _ in outputs) == 1
    assert verify_shards(tmp_path).is_sound
    assert len(read_samples(tmp_path, "all")) == NUM_VIDEOS - 1
    assert media_of(tmp_path) == media_of(in_one_go)


def media_of(place: Location) -> list[bytes]:
    """The videos of all samples, wherever they lie."""
    store = open_store(place)
    [split] = [name.removesuffix(".parquet") for name in store.sizes() if name.endswith(".parquet")]
    found = []
    for row in read_samples(store, split):
        [_, member] = row.members
        found.append(store.read(row.shard)[member.offset : member.offset + member.size])
    return found


# Stores


@pytest.mark.parametrize("kind", ["memory", "s3"])
def test_a_store_gets_the_same_bytes_and_a_second_run_adds_nothing(
    kind: str, videos: dict[str, Path], in_one_go: Path, request: pytest.FixtureRequest
) -> None:
    url = f"memory://{uuid.uuid4().hex}" if kind == "memory" else str(request.getfixturevalue("s3_url"))
    split = make_split(videos)
    first = shard(split, videos, out=url, samples_per_shard=2)
    assert (first.num_new_shards, first.folder) == (6, url)
    store = open_store(url)
    found = {name: store.read(name) for name in store.sizes() if not name.endswith(OF_ONE_RUN)}
    assert found == contents(in_one_go)
    assert shard(split, videos, out=url, samples_per_shard=2).num_new_shards == 0
    assert verify_shards(url).is_sound
    assert verify_shards(url).splits == verify_shards(in_one_go).splits
    assert read_samples(url, "val") == read_samples(in_one_go, "val")
    assert read_manifest(url) == first.manifest


def test_a_restart_writes_what_a_store_lacks(videos: dict[str, Path], in_one_go: Path, s3_url: str) -> None:
    split = make_split(videos)
    shard(split, videos, out=s3_url, samples_per_shard=2)
    system, place = s3.file_system(), s3_url.removeprefix("s3://")
    system.rm_file(f"{place}/val-000001.jsonl")
    system.rm_file(f"{place}/val-000002.tar")
    system.pipe_file(f"{place}/val-000003.tar", b"half")
    system.rm_file(f"{place}/val-000004.idx")
    assert not verify_shards(s3_url).is_sound
    assert shard(split, videos, out=s3_url, samples_per_shard=2).num_new_shards == 3
    assert contents(s3_url) == contents(in_one_go)


def test_the_sidecar_follows_its_shard_and_the_manifest_comes_last(
    videos: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    puts: list[str] = []
    put = ObjectStore._put

    def note(self: ObjectStore, staged: Path, name: str) -> None:
        puts.append(name)
        put(self, staged, name)

    monkeypatch.setattr(ObjectStore, "_put", note)
    shard(make_split(videos), videos, out=f"memory://{uuid.uuid4().hex}", samples_per_shard=6)
    puts = [name for name in puts if not name.endswith(OF_ONE_RUN)]
    of_shards = [f"val-{number:06d}.{suffix}" for number in range(2) for suffix in ("tar", "idx", "jsonl")]
    assert puts == ["val.plan.json", *of_shards, "val.parquet", "val.faults.csv", "val.wids.json", "val.json"]
    assert len(set(puts)) == len(puts)  # each once


def test_an_upload_that_is_cut_off_is_no_shard(
    videos: dict[str, Path], in_one_go: Path, s3_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    split = make_split(videos)
    put = ObjectStore._put

    def fail_at_the_third(self: ObjectStore, staged: Path, name: str) -> None:
        if name == "val-000002.tar":
            raise CannotWrite(f"{self.url}/{name}: cannot be written (Connection reset by peer).")
        put(self, staged, name)

    monkeypatch.setattr(ObjectStore, "_put", fail_at_the_third)
    with pytest.raises(CannotWrite, match=r"val-000002\.tar: cannot be written"):
        shard(split, videos, out=s3_url, samples_per_shard=2)
    monkeypatch.undo()
    found = contents(s3_url)
    assert not {"val-000002.tar", "val-000002.jsonl", "val.json", "val.parquet"} & found.keys()
    staging = open_store(s3_url).lock_file("x").parent
    assert not [path.name for path in staging.iterdir() if path.suffix in (".tar", ".part")]
    assert shard(split, videos, out=s3_url, samples_per_shard=2).num_new_shards == 4
    assert contents(s3_url) == contents(in_one_go)


def test_tasks_and_workers_write_to_a_store_as_one_run_does(
    videos: dict[str, Path], in_one_go: Path, s3_url: str
) -> None:
    root = videos["00.mp4"].parent
    arguments = ["shard", "-d", "folder", "--data-root", root, "--samples-per-shard", 2, "--out", s3_url]
    task = run_vidprep(*arguments, "-w", 2, "--task", "2/2")
    output, errors = task.communicate(timeout=120)
    assert "3 shards of other tasks are missing; the last task to finish writes the manifest." in output, errors
    assert "Traceback" not in errors
    split = load_split("folder", "all", data_root=root)
    report = shard(split, videos, out=s3_url, samples_per_shard=2, task=ArrayTask(number=1, count=2))
    assert report.is_published
    assert verify_shards(s3_url).is_sound
    assert media_of(s3_url) == media_of(in_one_go)


def test_videos_are_read_from_a_store(
    videos: dict[str, Path],
    s3_url: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    system = s3.file_system()
    for name, path in videos.items():
        below = f"{'ab'[int(name[:2]) % 2]}/{name}"
        system.pipe_file(f"{s3_url}/{below}", path.read_bytes())
        (tmp_path / "root" / below).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, tmp_path / "root" / below)
    for more in ([], ["--content", "frames", "--fps", "5"]):
        found = []
        for place in (s3_url, str(tmp_path / "root")):
            out = tmp_path / f"{is_url(place)} {len(more)}"
            arguments = ["shard", "-d", "folder", "--data-root", place, "-w", "1", *more, "--out", str(out)]
            monkeypatch.setattr(sys, "argv", ["vidprep", *arguments])
            assert main() == 1
            assert "1 of 12 videos are in no shard:\n  b/05.mp4: is empty (0 bytes)" in capsys.readouterr().out
            found.append(contents(out))
        for name, content in found[0].items():
            if name.endswith((".tar", ".idx", ".parquet", ".wids.json")):
                assert content == found[1][name]


def test_a_video_that_is_replaced_in_a_store_is_tried_again(videos: dict[str, Path], s3_url: str) -> None:
    system = s3.file_system()
    for name in ("00.mp4", "01.mp4"):
        system.pipe_file(f"{s3_url}/{name}", b"" if name == "01.mp4" else videos[name].read_bytes())
    split = make_split({name: videos[name] for name in ("00.mp4", "01.mp4", "02.mp4")})
    urls = {name: f"{s3_url}/{name}" for name in ("00.mp4", "01.mp4", "02.mp4")}
    out = f"memory://{uuid.uuid4().hex}"
    first = shard(split, urls, out=out, samples_per_shard=1)
    assert {fault.video_id: fault.reason for fault in first.manifest.faults} == {
        "01.mp4": "is empty (0 bytes); fetch it again",
        "02.mp4": "no file found for it",
    }
    system.pipe_file(f"{s3_url}/01.mp4", videos["01.mp4"].read_bytes())
    again = shard(split, urls, out=out, samples_per_shard=1)
    assert (again.num_new_shards, len(again.manifest.faults)) == (1, 1)


def test_a_store_of_videos_that_does_not_answer_ends_the_run_and_makes_no_faults(
    videos: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(url: str) -> None:
        raise store_module.StoreUnreachable(f"{url}: cannot be read (Could not connect).")

    monkeypatch.setattr(shard_module, "url_state", fail)
    urls: dict[str, Location] = {name: f"s3://bucket/{name}" for name in videos}
    with pytest.raises(VidprepError, match=r"s3://bucket/00.mp4: cannot be read \(Could not connect\)"):
        shard(make_split(videos), urls, out=tmp_path, samples_per_shard=2)
    assert not list(tmp_path.glob("val-*"))
    monkeypatch.undo()
    shard(make_split(videos), videos, out=tmp_path, samples_per_shard=2)
    assert verify_shards(tmp_path).is_sound


def test_memory_of_one_process_is_not_for_several(videos: dict[str, Path]) -> None:
    with pytest.raises(UsageError, match="lies in the memory of one process; write to it with --workers 1"):
        shard(make_split(videos), videos, out="memory://x", workers=2)


# How large a shard is


def test_shards_of_so_many_bytes_are_planned_and_the_plan_stays(videos: dict[str, Path], tmp_path: Path) -> None:
    split = make_split(videos)
    target = 25_000
    shard(split, videos, out=tmp_path / "a", shard_bytes=target)
    plan = json.loads((tmp_path / "a" / "val.plan.json").read_text())
    assert plan["samples_per_shard"] is None
    assert plan["starts"][0] == 0
    sizes = [facts.num_bytes for facts in read_manifest(tmp_path / "a").shards]
    assert len(sizes) == len(plan["starts"]) > 2
    # The end of a tar is filled up to 10,240 bytes.
    assert max(sizes) <= target + tarfile.RECORDSIZE
    assert read_manifest(tmp_path / "a").settings["shard_bytes"] == target
    for number in (2, 1):
        shard(split, videos, out=tmp_path / "b", shard_bytes=target, task=ArrayTask(number=number, count=2))
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    # A file that came later makes its shard larger, and moves no other.
    later = tmp_path / "later.mp4"
    shutil.copy(videos["11.mp4"], later)
    again = shard(split, {**videos, "05.mp4": later}, out=tmp_path / "a", shard_bytes=target)
    assert again.num_new_shards == 1
    assert json.loads((tmp_path / "a" / "val.plan.json").read_text()) == plan
    with pytest.raises(UsageError, match="shard_bytes was 25000, now 40000"):
        shard(split, videos, out=tmp_path / "a", shard_bytes=40_000)
    with pytest.raises(UsageError, match="--samples-per-shard and --shard-bytes both say how large a shard is"):
        shard(split, videos, out=tmp_path / "c", shard_bytes=40_000, samples_per_shard=3)


def test_a_plan_that_another_task_made_meanwhile_keeps_its_file(
    videos: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    split = make_split(videos)
    measure = shard_module._sample_bytes
    plan = tmp_path / "val.plan.json"
    inodes = []

    def measure_while_another_begins(*arguments: Any) -> list[int]:
        monkeypatch.setattr(shard_module, "_sample_bytes", measure)
        shard(split, videos, out=tmp_path, shard_bytes=25_000, task=ArrayTask(number=1, count=2))
        inodes.append(plan.stat().st_ino)
        return measure(*arguments)

    monkeypatch.setattr(shard_module, "_sample_bytes", measure_while_another_begins)
    assert shard(split, videos, out=tmp_path, shard_bytes=25_000, task=ArrayTask(number=2, count=2)).is_published
    assert inodes == [plan.stat().st_ino]  # the locks of the other task are in it


def test_shards_of_so_many_frames_each_hold_as_many_samples(tmp_path: Path) -> None:
    lengths = {"a.mp4": 4, "b.mp4": 60, "c.mp4": 4, "d.mp4": 60}
    paths = {name: write_numbered_video(tmp_path / name, num_frames=count) for name, count in lengths.items()}
    probe = shard(make_split(paths), paths, out=tmp_path / "a", content="frames", frames=FrameFormat(num_frames=4))
    half = sum(facts.num_bytes for facts in probe.manifest.shards) // 2 + 4096
    shard(
        make_split(paths),
        paths,
        out=tmp_path / "b",
        content="frames",
        frames=FrameFormat(num_frames=4),
        shard_bytes=half,
    )
    assert [facts.num_samples for facts in read_manifest(tmp_path / "b").shards] == [2, 2]


def test_shards_of_frames_are_planned_by_what_some_samples_take(videos: dict[str, Path], tmp_path: Path) -> None:
    target = 100_000
    settings = FrameFormat(fps=None, short_side=None)
    shard(make_split(videos), videos, out=tmp_path, content="frames", frames=settings, shard_bytes=target)
    facts = read_manifest(tmp_path).shards
    assert len(facts) >= 3
    assert sum(shard.num_bytes for shard in facts) / len(facts) == pytest.approx(target, rel=0.5)
    with pytest.raises(
        VidprepError, match="gives frames, so nothing tells how large their shards would be; give --samp"
    ):
        shard(
            make_split({"05.mp4": videos["05.mp4"]}, "test"), videos, out=tmp_path, content="frames", shard_bytes=target
        )


def test_a_sample_larger_than_a_shard_has_one_of_its_own() -> None:
    assert shard_module._starts([1, 1, 10, 1, 1, 0, 3], 4) == [0, 2, 3, 6]
    assert shard_module._starts([0, 0, 0], 1) == [0]


# Other readers


def test_the_index_is_the_one_that_dalis_own_tool_writes(in_one_go: Path, tmp_path: Path) -> None:
    wds2idx = pytest.importorskip("wds2idx", reason="comes with nvidia-dali")
    for path in in_one_go.glob("*.tar"):
        with wds2idx.IndexCreator(str(path), str(tmp_path / "theirs.idx"), verbose=False) as creator:
            creator.create_index()
        assert path.with_suffix(".idx").read_text() == (tmp_path / "theirs.idx").read_text()


@pytest.mark.dali
def test_dali_reads_the_members_through_our_index(videos: dict[str, Path], tmp_path: Path) -> None:
    dali = pytest.importorskip("nvidia.dali")
    split = make_split(videos)
    shard(split, videos, out=tmp_path / "videos", samples_per_shard=4)
    shard(split, videos, out=tmp_path / "frames", samples_per_shard=4, content="frames")

    def read(folder: Path, *names: str) -> list[list[bytes]]:
        tars = sorted(folder.glob("*.tar"))
        pipeline = dali.Pipeline(batch_size=NUM_VIDEOS - 1, num_threads=1, device_id=None)
        with pipeline:
            members = dali.fn.readers.webdataset(
                paths=[str(path) for path in tars],
                index_paths=[str(path.with_suffix(".idx")) for path in tars],
                ext=list(names),
            )
            pipeline.set_outputs(*members)
        pipeline.build()
        return [[bytes(batch.at(i)) for i in range(NUM_VIDEOS - 1)] for batch in pipeline.run()]

    media, infos = read(tmp_path / "videos", "mp4", "json")
    assert media == [path.read_bytes() for name, path in videos.items() if name != "05.mp4"]
    assert [json.loads(info)["video_id"] for info in infos] == [name for name in videos if name != "05.mp4"]
    first, fourth = read(tmp_path / "frames", "00001.jpg", "00004.jpg")
    with tarfile.open(tmp_path / "frames" / "val-000000.tar") as archive:
        assert archive.extractfile("00000000.00001.jpg").read() == first[0]  # type: ignore[union-attr]
    assert all(image.startswith(b"\xff\xd8") for image in first + fourth)


def test_wids_is_told_the_shards(in_one_go: Path) -> None:
    told = json.loads((in_one_go / "val.wids.json").read_text())
    manifest = read_manifest(in_one_go)
    assert told["wids_version"] == 1
    assert [(entry["url"], entry["nsamples"]) for entry in told["shardlist"]] == [
        (facts.name, facts.num_samples) for facts in manifest.shards
    ]
    assert (in_one_go / "val.wids.json").read_text() == wids_index(manifest)


def test_tar_and_python_read_the_shards(in_one_go: Path, tmp_path: Path) -> None:
    for path in in_one_go.glob("*.tar"):
        listed = subprocess.run(["tar", "-tf", str(path)], capture_output=True, text=True, check=True).stdout.split()
        with tarfile.open(path) as archive:
            assert archive.getnames() == listed
            assert listed == sorted(listed)
    subprocess.run(["tar", "-xf", str(in_one_go / "val-000000.tar"), "-C", str(tmp_path)], check=True)
    assert (tmp_path / "00000001.mp4").stat().st_mtime == 0


@pytest.mark.parametrize("name", ["val-000001.idx", "val.wids.json"])
def test_a_lost_index_is_named_and_written_again_alone(
    name: str, videos: dict[str, Path], in_one_go: Path, tmp_path: Path
) -> None:
    shutil.copytree(in_one_go, tmp_path, dirs_exist_ok=True)
    (tmp_path / name).unlink()
    [problem] = verify_shards(tmp_path).splits[0].problems
    assert problem.startswith(f"{name}: ")
    assert problem.endswith("run the same `vidprep shard` command again")
    written = (tmp_path / "val-000001.tar").stat().st_mtime_ns
    assert shard(make_split(videos), videos, out=tmp_path, samples_per_shard=2).num_new_shards == 0
    assert contents(tmp_path) == contents(in_one_go)
    assert (tmp_path / "val-000001.tar").stat().st_mtime_ns == written


def test_a_wrong_index_is_named(in_one_go: Path, tmp_path: Path) -> None:
    shutil.copytree(in_one_go, tmp_path, dirs_exist_ok=True)
    shutil.copy(tmp_path / "val-000000.idx", tmp_path / "val-000001.idx")
    report = verify_shards(tmp_path).splits[0]
    assert report.problems == (
        "val-000001.idx: does not say where the members of val-000001.tar lie; `vidprep repair` rebuilds it",
    )
    assert report.damaged == ("val-000001.idx",)
    rows = [row for row in read_samples(tmp_path, "val") if row.shard == "val-000000.tar"]
    assert (tmp_path / "val-000000.idx").read_text() == dali_index(rows)


# Targets and sources that fail


@pytest.mark.parametrize("options", ["ro", "size=40k"])
@pytest.mark.parametrize("workers", [1, 2])
def test_a_disk_that_takes_no_more_ends_the_run_and_the_next_one_completes_it(
    options: str,
    workers: int,
    videos: dict[str, Path],
    in_one_go: Path,
    disk: tuple[Path, Callable[[str], Any]],
) -> None:
    folder, remount = disk
    split = make_split(videos)
    shard(split, videos, out=folder, samples_per_shard=2, task=ArrayTask(number=1, count=6))
    assert remount(options).returncode == 0
    message = {"ro": r"cannot be written \(Read-only file system\)", "size=40k": "no space left on the disk"}[options]
    with pytest.raises(CannotWrite, match=message):
        shard(split, videos, out=folder, samples_per_shard=2, workers=workers)
    assert remount("rw,size=4m").returncode == 0
    assert not list(folder.glob("*.part"))
    assert shard(split, videos, out=folder, samples_per_shard=2, workers=workers).num_new_shards == 5
    assert contents(folder) == contents(in_one_go)


def test_finished_shards_on_a_disk_that_cannot_be_written_are_all_there(
    videos: dict[str, Path], disk: tuple[Path, Callable[[str], Any]]
) -> None:
    folder, remount = disk
    shard(make_split(videos), videos, out=folder, samples_per_shard=2)
    assert remount("ro").returncode == 0
    assert shard(make_split(videos), videos, out=folder, samples_per_shard=2).num_new_shards == 0
    assert remount("rw").returncode == 0


def test_a_source_that_vanishes_and_comes_back_leaves_the_same_bytes(
    videos: dict[str, Path], in_one_go: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "videos"
    shutil.copytree(videos["00.mp4"].parent, root)
    paths = {name: root / name for name in videos}
    num_checked = 0

    def vanish_in_the_middle(data: bytes) -> VideoFacts:
        nonlocal num_checked
        num_checked += 1
        if num_checked == 4:
            root.rename(tmp_path / "elsewhere")
        return check(data)

    monkeypatch.setattr(shard_module, "_decode_all", vanish_in_the_middle)
    report = shard(make_split(videos), paths, out=tmp_path / "out", samples_per_shard=2)
    assert {fault.reason for fault in report.manifest.faults} == {"no file found for it"}
    assert report.num_samples == 4
    monkeypatch.undo()
    (tmp_path / "elsewhere").rename(root)
    report = shard(make_split(videos), paths, out=tmp_path / "out", samples_per_shard=2)
    assert (report.num_samples, report.num_new_shards) == (11, 4)
    found, expected = contents(tmp_path / "out"), contents(in_one_go)
    for name in expected:
        if name.endswith((".tar", ".idx", ".parquet", ".wids.json")):
            assert found[name] == expected[name]
    assert verify_shards(tmp_path / "out").is_sound
    assert replace(report.manifest, faults=()) == replace(read_manifest(in_one_go), faults=())


def test_a_sheet_of_samples_is_drawn_from_a_store(videos: dict[str, Path], tmp_path: Path) -> None:
    url = f"memory://{uuid.uuid4().hex}"
    shard(make_split(videos), videos, out=url, samples_per_shard=4)
    shard(make_split(videos), videos, out=tmp_path / "disk", samples_per_shard=4)
    for place in (url, tmp_path / "disk"):
        contact_sheet(place, None, tmp_path / f"{is_url(place)}.png", num_samples=3)
    assert (tmp_path / "True.png").read_bytes() == (tmp_path / "False.png").read_bytes()
