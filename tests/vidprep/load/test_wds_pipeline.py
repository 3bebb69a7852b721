"""The WebDataset pipeline: the samples of `ShardDataset`, through plain webdataset stages."""

import io
import json
import tarfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import webdataset as wds
from torch.utils.data import DataLoader

from tests.vidprep.load import test_targets
from tests.vidprep.load.folders import SIDE, Source, numbered_sources, write_shard_folder
from vidprep.errors import CorruptShard, CorruptVideo, UsageError
from vidprep.index import Fault, read_manifest, read_samples, samples_to_frame
from vidprep.load import Batch, Sample, ShardDataset, webdataset
from vidprep.types import Video

CLIPS: Any = {"num_frames": 4, "resize": SIDE, "crop": 64, "train": True, "seed": 5}


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> list[Source]:
    videos = [Video(video_id=f"v{k}", labels=(k,)) for k in range(7)]
    return numbered_sources(tmp_path_factory.mktemp("videos"), videos, num_frames=16)


@pytest.fixture(scope="module", params=["video", "frames"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, sources: list[Source]) -> Path:
    return write_shard_folder(tmp_path_factory.mktemp(request.param), sources, content=request.param)


def by_id(samples: Any) -> dict[str, Sample]:
    found = {sample.video_id: sample for sample in samples}
    return dict(sorted(found.items()))


def assert_same(given: Sample, expected: Sample) -> None:
    assert given.video_id == expected.video_id
    assert torch.equal(given.frames, expected.frames)
    assert torch.equal(given.labels, expected.labels)
    assert torch.equal(given.pts_seconds, expected.pts_seconds)


def test_samples_are_those_of_the_shard_data_set(folder: Path) -> None:
    dataset, pipeline = ShardDataset(folder, **CLIPS), webdataset(folder, **CLIPS)
    assert isinstance(pipeline, wds.DataPipeline)
    for epoch in (0, 2):
        pipeline.set_epoch(epoch)
        given = list(pipeline)
        assert [sample.video_id for sample in given] == [f"v{k}" for k in range(7)]
        for k, sample in enumerate(given):
            assert_same(sample, dataset.load(k, epoch=epoch))


def test_urls_give_the_samples_of_their_folder(folder: Path) -> None:
    named = webdataset(f"{folder}/train-{{000000..000003}}.tar", task="single_label", num_classes=8, **CLIPS)
    listed = webdataset([f"pipe:cat {folder}/train-000001.tar"], task="single_label", num_classes=8, **CLIPS)
    expected = list(webdataset(folder, **CLIPS))
    for given, sample in zip(named, expected, strict=True):
        assert_same(given, sample)
    assert [sample.video_id for sample in listed] == ["v2", "v3"]


def test_shuffling_follows_from_seed_and_epoch_and_loses_nothing(folder: Path) -> None:
    pipeline = webdataset(folder, shuffle=4, **CLIPS)
    orders = []
    for epoch in (0, 0, 1):
        pipeline.set_epoch(epoch)
        orders.append([sample.video_id for sample in pipeline])
    assert orders[0] == orders[1] != orders[2]
    assert all(sorted(order) == [f"v{k}" for k in range(7)] for order in orders)
    assert orders[0] != sorted(orders[0])


@pytest.mark.parametrize("persistent", [True, False])
def test_workers_share_the_shards_and_follow_the_epoch(folder: Path, persistent: bool) -> None:
    pipeline = webdataset(folder, shuffle=2, **CLIPS)
    batches = pipeline.compose(wds.batched(2, collation_fn=Batch.stack))
    loader: Any = DataLoader(batches, batch_size=None, num_workers=2, persistent_workers=persistent)
    dataset = ShardDataset(folder, **CLIPS)
    for epoch in (1, 2):
        pipeline.set_epoch(epoch)
        read = {video_id: clip for batch in loader for video_id, clip in zip(batch.video_id, batch.frames, strict=True)}
        assert sorted(read) == [f"v{k}" for k in range(7)]
        for k in range(7):
            assert torch.equal(read[f"v{k}"], dataset.load(k, epoch=epoch).frames)


def test_processes_share_the_shards(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    shares = []
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        shares.append([sample.video_id for sample in webdataset(folder, shuffle=1, **CLIPS)])
    assert sorted(shares[0] + shares[1]) == [f"v{k}" for k in range(7)]
    whole = webdataset(folder, shuffle=1, nodesplitter=_keep, **CLIPS)
    assert len(list(whole)) == 7


def _keep(source: Iterator[Any]) -> Iterator[Any]:
    return source


def test_positions_are_those_of_the_data_set_where_others_are_faults(tmp_path: Path, sources: list[Source]) -> None:
    """A fault has a key and no sample: keys and positions then differ, random choices follow the position."""
    write_shard_folder(tmp_path, sources)
    rows, manifest = read_samples(tmp_path, "train"), read_manifest(tmp_path, "train")
    samples_to_frame(rows[2:]).to_parquet(tmp_path / "train.parquet")
    faulty = replace(manifest, shards=manifest.shards[1:], faults=(Fault(video_id="v0", reason="gone"),))
    (tmp_path / "train.json").write_text(faulty.to_json(), encoding="utf-8")
    dataset = ShardDataset(tmp_path, **CLIPS)
    for k, sample in enumerate(webdataset(tmp_path, **CLIPS)):
        assert sample.video_id == f"v{k + 2}"
        assert_same(sample, dataset[k])


def test_boxes_verbs_and_segments_come_through(tmp_path: Path, sources: list[Source]) -> None:
    boxes = test_targets.write_shards(tmp_path / "vid", num_snippets=1)
    (sample,) = webdataset(boxes, **CLIPS)
    expected = ShardDataset(boxes, **CLIPS)[0]
    assert sample.targets is not None
    assert expected.targets is not None
    assert torch.equal(sample.targets[0][3].boxes, expected.targets[0][3].boxes)
    assert torch.equal(sample.labels, expected.labels)
    test_targets.actions(tmp_path)
    actions = webdataset(tmp_path / "shards", num_frames=4, resize=64, crop=64)
    assert [sample.labels.tolist() for sample in actions] == [[1, 1], [0, 2], [1, 0]]
    assert [sample.video_id for sample in actions] == ["P01_11_0", "P01_11_1", "P01_11_2"]


def write_tar(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def test_a_sample_that_does_not_decode_is_named_or_left_to_the_handler(tmp_path: Path, sources: list[Source]) -> None:
    good = sources[0].path.read_bytes()
    facts = [json.dumps({"video_id": name, "labels": [1]}).encode() for name in ("good", "bad", "last")]
    members = {"a.json": facts[0], "a.mp4": good, "b.json": facts[1], "b.mp4": b"no video", "c.json": facts[2]}
    path = write_tar(tmp_path / "some.tar", {**members, "c.mp4": good})
    arguments: Any = {"task": "single_label", "num_classes": 2, **CLIPS}
    with pytest.raises(CorruptVideo, match=r"sample b of .*some.tar gives no clip: .*cannot be opened as a video"):
        list(webdataset(str(path), **arguments))
    seen: list[Exception] = []

    def go_on(error: Exception) -> bool:
        seen.append(error)
        return True

    kept = webdataset(str(path), handler=go_on, **arguments)
    assert [sample.video_id for sample in kept] == ["good", "last"]
    assert [type(error) for error in seen] == [CorruptVideo]


@pytest.mark.parametrize(
    ("members", "error", "sentence"),
    [
        ({"a.mp4": b"x"}, CorruptShard, r"some.tar: a has no json file, which says what it shows"),
        ({"a.json": b"{}", "a.mp4": b"x"}, CorruptShard, r"some.tar: a.json does not say which video it is"),
        ({"a.json": b"[]", "a.mp4": b"x"}, CorruptShard, r"some.tar: a.json is no JSON object"),
        ({"a.json": b"{}", "a.mp4": b"x", "a.wav": b""}, CorruptShard, r"should hold one video or numbered jpg files"),
        (
            {"a.json": b'{"video_id": "a", "labels": [0, 1]}', "a.mp4": b"x"},
            UsageError,
            r"a has the labels \(0, 1\), but the task is single_label",
        ),
        (
            {"a.json": b'{"video_id": "a", "labels": [0]}', "a.0001.jpg": b"x"},
            CorruptShard,
            r"a.json holds no times of the frames",
        ),
    ],
)
def test_tars_of_another_layout_are_refused(
    tmp_path: Path, members: dict[str, bytes], error: type[Exception], sentence: str
) -> None:
    path = write_tar(tmp_path / "some.tar", members)
    with pytest.raises(error, match=sentence):
        list(webdataset([str(path)], task="single_label", num_classes=2, **CLIPS))


@pytest.mark.parametrize("num_bytes", [1000, 2500])
def test_a_shard_cut_short_is_named(tmp_path: Path, sources: list[Source], num_bytes: int) -> None:
    write_shard_folder(tmp_path, sources)
    path = tmp_path / "train-000001.tar"
    path.write_bytes(path.read_bytes()[:num_bytes])
    with pytest.raises(CorruptShard, match=r"train-000001.tar: (cannot be read to its end|holds \d samples)"):
        list(webdataset(tmp_path, **CLIPS))


def test_a_shard_that_lost_whole_samples_is_named(tmp_path: Path, sources: list[Source]) -> None:
    """A tar that ends at the end of a member is a sound tar; only the manifest tells that something is missing."""
    write_shard_folder(tmp_path, sources)
    path = tmp_path / "train-000001.tar"
    with tarfile.open(path) as tar:
        members = {member.name: tar.extractfile(member) for member in tar}
        data = {name: file.read() for name, file in members.items() if file is not None}
    write_tar(path, {name: content for name, content in data.items() if name.startswith("00000002")})
    with pytest.raises(CorruptShard, match=r"train-000001.tar: holds 1 samples, its manifest says 2; it was cut short"):
        list(webdataset(tmp_path, **CLIPS))


def test_what_cannot_be_a_pipeline_is_refused(tmp_path: Path, sources: list[Source]) -> None:
    write_shard_folder(tmp_path, sources[:1])
    for nowhere in ("nowhere", "s3://bucket/shards"):
        with pytest.raises(UsageError, match="no such folder of shards on this machine, and no URLs of tars"):
            webdataset(nowhere, **CLIPS)
    with pytest.raises(UsageError, match="tars without their folder need task and num_classes"):
        webdataset("some.tar", **CLIPS)
    with pytest.raises(UsageError, match="says its task and its classes itself; leave them out"):
        webdataset(tmp_path, task="single_label", **CLIPS)
    with pytest.raises(UsageError, match="shuffle is a number of samples, 0 or more; got -1"):
        webdataset(tmp_path, shuffle=-1, **CLIPS)
