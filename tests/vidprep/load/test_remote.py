"""Shards behind a URL: the same samples as from a folder, fetched once, verified, within a bound."""

import multiprocessing
import os
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.vidprep.load.folders import SIDE, numbered_sources, write_shard_folder
from vidprep.errors import ChecksumMismatch, CorruptShard, UsageError
from vidprep.load import ClipOptions, ShardCache, ShardDataset, make_loader
from vidprep.types import Video

fsspec: Any = pytest.importorskip("fsspec")

CLIPS: ClipOptions = {"num_frames": 4, "resize": SIDE, "crop": SIDE}
NUM_VIDEOS = 6


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("remote")
    videos = [Video(video_id=f"v{k}", labels=(k,)) for k in range(NUM_VIDEOS)]
    return write_shard_folder(root / "shards", numbered_sources(root, videos, num_frames=12))


class Server(ThreadingHTTPServer):
    """Serves a folder with ranges, and remembers which bytes of which file were asked for."""

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder = folder
        self.asked: list[tuple[str, int]] = []
        self.break_after: int | None = None
        self.has_ranges = True

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/shards"

    def starts(self, name: str) -> list[int]:
        return [start for asked, start in self.asked if asked == name]


class _Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self.answer(with_body=False)

    def do_GET(self) -> None:
        self.answer(with_body=True)

    def answer(self, *, with_body: bool) -> None:
        path = self.server.folder / self.path.rpartition("/")[2]
        if not path.is_file():
            self.send_error(404)
            return
        data, status, start = path.read_bytes(), 200, 0
        size = len(data)
        wanted = self.headers.get("Range")
        if wanted and self.server.has_ranges:
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            start = int(first)
            data, status = data[start : int(last) + 1 if last else None], 206
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        if self.server.has_ranges:
            self.send_header("Accept-Ranges", "bytes")
        if status == 206:
            self.send_header("Content-Range", f"bytes {start}-{start + len(data) - 1}/{size}")
        self.end_headers()
        if with_body:
            self.server.asked.append((path.name, start))
            limit = self.server.break_after
            self.wfile.write(data if limit is None else data[:limit])
            if limit is not None and limit < len(data):
                self.close_connection = True

    def log_message(self, *arguments: Any) -> None:
        pass


@pytest.fixture
def server(folder: Path) -> Iterator[Server]:
    with Server(folder) as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield running
        finally:
            running.shutdown()
            thread.join()


def tars(root: Path) -> list[Path]:
    return sorted(root.glob("*/*.tar"))


def assert_same_samples(remote: ShardDataset, folder: Path) -> None:
    local = ShardDataset(folder, **CLIPS)
    assert len(remote) == len(local) == NUM_VIDEOS
    for index in range(NUM_VIDEOS):
        assert torch.equal(remote[index].frames, local[index].frames)
        assert remote[index].video_id == local[index].video_id


def test_shards_of_a_server_give_the_samples_of_the_folder(server: Server, folder: Path, tmp_path: Path) -> None:
    cache = ShardCache(server.url, root=tmp_path)
    assert_same_samples(ShardDataset(server.url, "train", cache=cache, **CLIPS), folder)
    assert len(tars(tmp_path)) == 3
    fetched = len(server.asked)
    assert_same_samples(ShardDataset(server.url, "train", cache=cache, **CLIPS), folder)
    assert {name for name, _ in server.asked[fetched:]} == {"train.json", "train.parquet"}


@pytest.mark.parametrize("scheme", ["memory", "file"])
def test_any_url_of_fsspec_is_read(folder: Path, tmp_path: Path, scheme: str) -> None:
    url = f"file://{folder}" if scheme == "file" else "memory://some/shards"
    if scheme == "memory":
        filesystem = fsspec.filesystem("memory")
        for path in folder.iterdir():
            filesystem.pipe_file(f"/some/shards/{path.name}", path.read_bytes())
    # The only split need not be named where a URL can be listed.
    assert_same_samples(ShardDataset(url, cache=ShardCache(url, root=tmp_path), **CLIPS), folder)


def test_shards_in_an_object_store_are_read(
    folder: Path,
    tmp_path: Path,
    s3_environment: dict[str, str],
    s3_url: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    options = {"client_kwargs": {"endpoint_url": s3_environment["AWS_ENDPOINT_URL"]}}
    monkeypatch.delenv("AWS_ENDPOINT_URL")  # only the options lead there
    store = fsspec.filesystem("s3", **options)
    for path in folder.iterdir():
        store.pipe_file(f"{s3_url}/{path.name}", path.read_bytes())
    cache = ShardCache(s3_url, root=tmp_path, storage_options=options)
    assert_same_samples(ShardDataset(s3_url, cache=cache, **CLIPS), folder)


def test_a_download_that_broke_off_goes_on_where_it_stopped(server: Server, folder: Path, tmp_path: Path) -> None:
    dataset = ShardDataset(server.url, "train", cache=ShardCache(server.url, root=tmp_path), **CLIPS)
    name = "train-000000.tar"
    size = (folder / name).stat().st_size
    server.break_after = 1000
    with pytest.raises(
        CorruptShard, match=rf"{name}: cannot be fetched \(.*\); \d+ of {size} bytes are kept, run again"
    ):
        dataset[0]
    assert not tars(tmp_path)
    (part,) = tmp_path.glob("*/*.part")
    part.write_bytes((folder / name).read_bytes()[:5000])
    server.break_after = None
    server.asked.clear()
    assert_same_samples(dataset, folder)
    assert min(server.starts(name)) >= 5000
    assert not list(tmp_path.glob("*/*.part"))


def test_a_server_without_ranges_sends_the_whole_shard_again(server: Server, folder: Path, tmp_path: Path) -> None:
    server.has_ranges = False
    dataset = ShardDataset(server.url, "train", cache=ShardCache(server.url, root=tmp_path), **CLIPS)
    (tmp_path / dataset.folder.name).mkdir(exist_ok=True)
    digest = dataset.manifest.shards[0].sha256[:16]
    (dataset.folder / f"{digest}-train-000000.tar.part").write_bytes(bytes(5000))
    assert_same_samples(dataset, folder)


def test_a_shard_that_is_not_what_its_manifest_says_is_refused(server: Server, folder: Path, tmp_path: Path) -> None:
    dataset = ShardDataset(server.url, "train", cache=ShardCache(server.url, root=tmp_path), **CLIPS)
    digest = dataset.manifest.shards[0].sha256[:16]
    (dataset.folder / f"{digest}-train-000000.tar.part").write_bytes(bytes(5000))
    with pytest.raises(ChecksumMismatch, match=r"train-000000\.tar: SHA-256 .* its manifest says .* is deleted"):
        dataset[0]
    assert not tars(tmp_path)
    assert_same_samples(dataset, folder)


def test_the_cache_stays_within_its_bound_and_drops_what_was_not_read_for_longest(
    server: Server, folder: Path, tmp_path: Path
) -> None:
    sizes = {path.name: path.stat().st_size for path in folder.glob("*.tar")}
    two = sum(sorted(sizes.values())[-2:])
    cache = ShardCache(server.url, root=tmp_path, max_bytes=two)
    dataset = ShardDataset(server.url, "train", cache=cache, **CLIPS)
    for index in (0, 2):
        dataset[index]
        time.sleep(0.01)
    first, second = (next(tmp_path.glob(f"*/*-train-00000{k}.tar")) for k in (0, 1))
    os.utime(first)  # read again, later than the second
    dataset[4]
    assert first.exists()
    assert not second.exists()
    assert sum(path.stat().st_size for path in tars(tmp_path)) <= two
    # A bound below one shard: always the one that is being read, alone.
    assert_same_samples(
        ShardDataset(server.url, "train", cache=ShardCache(server.url, root=tmp_path, max_bytes=1), **CLIPS), folder
    )
    assert len(tars(tmp_path)) == 1


def _fetch(url: str, root: Path) -> int:
    dataset = ShardDataset(url, "train", cache=ShardCache(url, root=root), **CLIPS)
    return int(sum(dataset[index].labels for index in range(NUM_VIDEOS)))


def test_processes_share_a_cache_and_fetch_each_shard_once(server: Server, tmp_path: Path) -> None:
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert pool.starmap(_fetch, [(server.url, tmp_path)] * 2) == [15, 15]
    for number in range(3):
        assert server.starts(f"train-00000{number}.tar").count(0) == 1


def test_a_loader_fetches_shards_before_they_are_read(server: Server, tmp_path: Path) -> None:
    dataset = ShardDataset(server.url, "train", cache=ShardCache(server.url, root=tmp_path), **CLIPS)
    dataset.announce(range(NUM_VIDEOS))
    deadline = time.monotonic() + 20
    while len(tars(tmp_path)) < 3 and time.monotonic() < deadline:
        time.sleep(0.02)
    assert len(tars(tmp_path)) == 3
    asked = len(server.asked)
    assert sum(len(batch.video_id) for batch in make_loader(dataset, batch_size=2, workers=2)) == NUM_VIDEOS
    assert len(server.asked) == asked
    dataset.close()


def test_some_shards_at_a_time_are_shuffled_and_every_sample_comes_once(folder: Path) -> None:
    dataset = ShardDataset(folder, shuffle_shards=2, **CLIPS)
    orders = [dataset.shuffled(np.random.default_rng(seed)).tolist() for seed in range(20)]
    assert all(sorted(order) == list(range(NUM_VIDEOS)) for order in orders)
    assert all(len({index // 2 for index in order[:4]}) == 2 for order in orders)
    assert len({tuple(order) for order in orders}) > 10
    assert dataset.shuffled(np.random.default_rng(3)).tolist() == orders[3]


def test_what_is_not_there_is_named(server: Server, tmp_path: Path, folder: Path) -> None:
    cache = ShardCache(server.url, root=tmp_path)
    with pytest.raises(UsageError, match=r"/shards: no val\.parquet here; is the split 'val' finished\?"):
        ShardDataset(server.url, "val", cache=cache, **CLIPS)
    with pytest.raises(UsageError, match="fsspec knows no such kind of URL"):
        ShardCache("gopher://host/shards", root=tmp_path)
    with pytest.raises(UsageError, match="a cache is for shards at a URL, got the folder"):
        ShardDataset(folder, cache=cache, **CLIPS)
    with pytest.raises(UsageError, match="a bound of at least 1 byte, got 0"):
        ShardCache(server.url, root=tmp_path, max_bytes=0)
