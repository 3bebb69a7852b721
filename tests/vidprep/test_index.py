import io
import json
import math
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from vidprep.errors import CorruptShard, UnknownName, UsageError
from vidprep.index import (
    Fault,
    Manifest,
    Member,
    SampleRow,
    ShardFacts,
    faults_to_csv,
    list_splits,
    read_manifest,
    read_samples,
    samples_to_frame,
    write_samples,
)

ROW = SampleRow(
    key="00000000",
    video_id="a.mp4",
    labels=(3, 1),
    shard="val-000000.tar",
    num_frames=10,
    fps=29.97,
    width=64,
    height=48,
    duration_seconds=0.33,
    start_seconds=None,
    end_seconds=2.5,
    members=(Member(name="json", offset=512, size=20), Member(name="mp4", offset=1536, size=300)),
)
ROWS = [ROW, replace(ROW, key="00000001", labels=(), fps=math.inf, end_seconds=None, members=())]
MANIFEST = Manifest(
    dataset="folder",
    split="val",
    task="multi_label",
    classes=("a", "b", "c", "ü"),
    content="video",
    settings={"samples_per_shard": 256},
    num_videos=3,
    shards=(ShardFacts(name="val-000000.tar", num_samples=2, num_bytes=10240, sha256="0" * 64),),
    faults=(Fault(video_id="x", reason='is empty, "really"', path="/x.mp4", kind="empty"),),
    flip_pairs={"0": 1},
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "val.json").write_text(MANIFEST.to_json(), encoding="utf-8")
    with (tmp_path / "val.parquet").open("wb") as stream:
        assert write_samples(stream, [ROWS[:1], ROWS[1:]]) == 2
    return tmp_path


def test_manifest_and_samples_come_back_as_they_were(folder: Path) -> None:
    assert read_manifest(folder) == read_manifest(folder, "val") == MANIFEST
    assert read_samples(folder, "val") == ROWS
    assert list_splits(folder) == ["val"]


def test_both_ways_to_write_samples_read_back_equal(folder: Path) -> None:
    samples_to_frame(ROWS).to_parquet(folder / "frame.parquet")
    assert read_samples(folder, "frame") == ROWS


def test_a_table_without_samples_has_its_columns(folder: Path) -> None:
    with (folder / "none.parquet").open("wb") as stream:
        write_samples(stream, [])
    assert read_samples(folder, "none") == []
    assert "members" in pd.read_parquet(folder / "none.parquet").columns


def test_folders_without_shards_say_what_to_do(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(UsageError, match="no such folder; give the folder that `vidprep shard --out` wrote"):
        read_manifest(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="no finished shards here"):
        read_manifest(tmp_path / "empty")
    with pytest.raises(UnknownName, match="no split 'vall'; did you mean val"):
        read_manifest(folder, "vall")
    for name in ("train.json", "train.parquet"):
        (folder / name).write_bytes((folder / name.replace("train", "val")).read_bytes())
    with pytest.raises(UsageError, match="holds the splits train, val; say which with --split"):
        read_manifest(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "webdataset"}, "expected a vidprep-shards manifest of version 1, got 'webdataset'"),
        ({"version": 2}, "got 'vidprep-shards' version 2"),
        ({"shards": [{"name": "x"}]}, "not a readable manifest"),
        ({"surprise": 1}, "not a readable manifest"),
        (
            {"shards": [{"name": "../../etc/passwd", "num_samples": 1, "num_bytes": 1, "sha256": ""}]},
            "a shard lies beside its manifest, got the name '../../etc/passwd'",
        ),
    ],
)
def test_manifests_of_others_are_refused(change: dict[str, object], message: str, folder: Path) -> None:
    raw = json.loads(MANIFEST.to_json()) | change
    (folder / "val.json").write_text(json.dumps(raw))
    with pytest.raises(CorruptShard, match=message):
        read_manifest(folder)


@pytest.mark.parametrize("content", ["", "[]", "{", "null", '"text"'])
def test_damaged_manifests_are_corrupt_shards(content: str, folder: Path) -> None:
    (folder / "val.json").write_text(content)
    with pytest.raises(CorruptShard, match=r"val\.json"):
        read_manifest(folder)


def test_damaged_tables_are_corrupt_shards(folder: Path) -> None:
    data = (folder / "val.parquet").read_bytes()
    for damaged in (b"", data[: len(data) // 2], b"nonsense" * 100):
        (folder / "val.parquet").write_bytes(damaged)
        with pytest.raises(CorruptShard, match="not a readable table of samples"):
            read_samples(folder, "val")
    pd.DataFrame({"key": ["1"]}).to_parquet(folder / "val.parquet")
    with pytest.raises(CorruptShard, match="not a readable table of samples"):
        read_samples(folder, "val")


def test_faults_are_a_table_that_other_programs_read() -> None:
    table = pd.read_csv(io.StringIO(faults_to_csv(MANIFEST.faults)))
    assert table.to_dict("records") == [
        {"video_id": "x", "reason": 'is empty, "really"', "path": "/x.mp4", "kind": "empty"}
    ]
