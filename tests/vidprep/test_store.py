import errno
import re
import sys
import tomllib
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import pytest

from tests.vidprep.s3 import BUCKET
from vidprep import store as store_module
from vidprep.engine import CannotWrite
from vidprep.errors import MissingPackage, UsageError
from vidprep.store import (
    HEAD_BYTES,
    DiskStore,
    ObjectStore,
    Store,
    StoreUnreachable,
    is_url,
    local_or_url,
    open_store,
    placeholders,
    read_url,
    url_sizes,
    url_state,
)


@pytest.fixture(params=["disk", "memory", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "disk":
        place = open_store(tmp_path / "a b")
    elif request.param == "memory":
        place = open_store(f"memory://{uuid.uuid4().hex}/a b/")
    else:
        place = open_store(f"{request.getfixturevalue('s3_url')}/a b")
    place.make()
    return place


def write(store: Store, name: str, content: bytes) -> None:
    with store.publish(name) as stream:
        stream.write(content)


def test_every_kind_of_store_keeps_files_alike(store: Store) -> None:
    assert store.sizes() == {}
    write(store, "a.tar", bytes(3000))
    write(store, "b.jsonl", b'{"a": 1}\nsecond\n')
    write(store, "b.jsonl", b'{"b": 1}\nsecond\n')
    assert store.exists()
    assert store.sizes() == {"a.tar": 3000, "b.jsonl": 16}
    assert store.read("b.jsonl") == b'{"b": 1}\nsecond\n'
    with store.open("a.tar") as stream:
        assert stream.read(10) == bytes(10)
    assert {name: head.strip() for name, head in store.heads(["b.jsonl", "gone", "a.tar"]).items()} == {
        "b.jsonl": b'{"b": 1}',
        "a.tar": bytes(3000),
    }
    store.move("a.tar", to="damaged/a.tar")
    assert store.sizes() == {"b.jsonl": 16}
    assert open_store(f"{store.location}/damaged").sizes() == {"a.tar": 3000}
    for _ in range(2):
        store.remove("b.jsonl")
        assert store.sizes() == {}
    for read in (store.read, store.open):
        with pytest.raises(FileNotFoundError):
            read("b.jsonl")


def test_a_file_is_created_once(store: Store) -> None:
    store.create("val.plan.json", b"first")
    store.create("val.plan.json", b"second")
    assert store.sizes() == {"val.plan.json": 5}
    assert store.read("val.plan.json") == b"first"


@pytest.mark.parametrize("is_there", [False, True])
def test_a_file_is_created_on_a_disk_without_links(
    is_there: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Path, target: Path) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    if is_there:
        (tmp_path / "a").write_bytes(b"first")
    open_store(tmp_path).create("a", b"second")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [
        ("a", b"first" if is_there else b"second")
    ]


def test_a_block_that_fails_leaves_what_was_there(store: Store) -> None:
    write(store, "a.tar", b"before")

    def fail() -> None:
        with store.publish("a.tar") as stream:
            stream.write(b"half")
            raise ValueError("interrupted")

    with pytest.raises(ValueError, match="interrupted"):
        fail()
    assert store.read("a.tar") == b"before"
    assert store.sizes() == {"a.tar": 6}


def test_a_first_line_may_be_long(store: Store) -> None:
    line = b"x" * (3 * HEAD_BYTES)
    write(store, "a.jsonl", line + b"\nmore")
    assert store.heads(["a.jsonl"])["a.jsonl"].strip() == line


def test_only_half_written_files_of_the_given_names_are_swept(tmp_path: Path) -> None:
    for store in (DiskStore(folder=tmp_path), ObjectStore(url=f"memory://{uuid.uuid4().hex}")):
        store.make()
        folder = store.lock_file("lock").parent
        for name in (
            "a.tar.17.part",
            "a.tar.17-0f3c.part",
            "a.tar.17-0f3c.part.17-1a.part",
            "b.tar.17.part",
            "a.tar.part",
            "other",
        ):
            (folder / name).touch()
        store.sweep({"a.tar", "lock"})
        left = {path.name for path in folder.iterdir()}
        assert left >= {"b.tar.17.part", "a.tar.part", "other"}
        assert not [name for name in left if name.startswith("a.tar.17")]


@pytest.mark.parametrize("swept_at", ["while it is written", "before it has its name"])
def test_a_file_that_two_runs_create_at_once_stays_that_of_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, swept_at: str
) -> None:
    store = DiskStore(folder=tmp_path)
    publish = DiskStore.publish

    @contextmanager
    def publish_late(store: DiskStore, name: str) -> Iterator[IO[bytes]]:
        def the_first_run_comes() -> None:
            (tmp_path / "plan.json").write_bytes(b"first")
            store.sweep({"plan.json"})

        with publish(store, name) as stream:
            yield stream
            if swept_at == "while it is written":
                the_first_run_comes()
        if swept_at == "before it has its name":
            the_first_run_comes()

    monkeypatch.setattr(DiskStore, "publish", publish_late)
    store.create("plan.json", b"second")
    assert (tmp_path / "plan.json").read_bytes() == b"first"
    assert [path.name for path in tmp_path.iterdir()] == ["plan.json"]


def test_paths_and_urls_are_told_apart() -> None:
    assert local_or_url("a/b") == Path("a/b")
    assert local_or_url("file:///a/b%20c") == Path("/a/b c")
    assert local_or_url("s3://bucket/a/") == "s3://bucket/a"
    assert local_or_url(Path("C:/a")) == Path("C:/a")
    assert [is_url(place) for place in ("s3://a", "file:///a", "a", Path("a"))] == [True, False, False, False]
    with pytest.raises(UsageError, match=re.escape("give URLs as text, Path() makes s3:// into s3:/")):
        local_or_url(Path("s3://bucket/a"))


def test_an_unknown_kind_of_store_and_a_missing_driver_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match=r"no kind of store is called s4://; known are s3://, gs://"):
        open_store("s4://bucket")
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(
        MissingPackage, match=re.escape("gs:// needs a driver that is not installed: pip install 'vidp")
    ):
        open_store("gs://bucket")
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    assert set(store_module.EXTRAS.values()) <= project["optional-dependencies"].keys()


def test_a_bucket_that_is_not_there_cannot_be_written(s3_environment: dict[str, str]) -> None:
    store = open_store("s3://no-such-bucket/a")
    assert not store.exists()
    with pytest.raises(CannotWrite, match=r"s3://no-such-bucket/a/b: cannot be written \(.*bucket.*\); see to it and"):
        write(store, "b", b"x")
    assert not list(store.lock_file("lock").parent.glob("b*"))


def test_a_store_that_does_not_answer_is_said_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    class Silent:
        def ls(self, *_: object, **__: object) -> None:
            raise RuntimeError("Could not connect\nto the endpoint URL")

        cat_file = info = put_file = find = ls

    monkeypatch.setattr(store_module, "_connect", lambda url: (Silent(), url))
    store = ObjectStore(url="s3://bucket/a")
    message = r"s3://bucket/a.*: cannot be read \(Could not connect to the endpoint URL\); see to it and run the same"
    for ask in (store.sizes, lambda: store.read("b"), lambda: url_state("s3://bucket/a")):
        with pytest.raises(StoreUnreachable, match=message):
            ask()
    with pytest.raises(CannotWrite, match=r"s3://bucket/a/b: cannot be written \(Could not connect"):
        write(store, "b", b"x")


def test_a_file_of_which_the_store_has_only_a_part_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    store = ObjectStore(url=f"memory://{uuid.uuid4().hex}")
    system = store_module._connect(store.url)[0]
    put_file = type(system).put_file

    def put_a_part(self: object, local: str, path: str) -> None:
        Path(local).write_bytes(Path(local).read_bytes()[:5])
        put_file(self, local, path)
        Path(local).write_bytes(b"0123456789")

    monkeypatch.setattr(type(system), "put_file", put_a_part)
    with pytest.raises(CannotWrite, match=r"a.tar: the store has 5 of 10 bytes after it was put there; run the same"):
        write(store, "a.tar", b"0123456789")


def test_single_objects_are_read_and_known_by_their_state(s3_url: str) -> None:
    store = open_store(s3_url)
    write(store, "a.mp4", b"first")
    before = url_state(f"{s3_url}/a.mp4")
    assert before is not None
    assert before[0] == 5
    assert url_state(f"{s3_url}/a.mp4") == before
    write(store, "a.mp4", b"other")
    assert url_state(f"{s3_url}/a.mp4") != before
    assert read_url(f"{s3_url}/a.mp4") == b"other"
    assert url_state(f"{s3_url}/gone.mp4") is None
    assert url_state(s3_url) is None
    write(store, "b.mp4", b"")
    assert url_sizes([f"{s3_url}/a.mp4", f"{s3_url}/b.mp4"]) == {f"{s3_url}/a.mp4": 5, f"{s3_url}/b.mp4": 0}


def test_a_tree_of_placeholders_stands_for_a_bucket(s3_url: str, tmp_path: Path) -> None:
    store = open_store(s3_url)
    for name in ("videos/running/a.mp4", "videos/b.mp4", "splits/val.csv", "classes.txt"):
        write_below(store, name)
    num_files = placeholders(s3_url, tmp_path, is_fetched=re.compile(r"(splits/)?[^/]+\.(csv|txt)"))
    assert num_files == 4
    found = {path.relative_to(tmp_path).as_posix(): path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert found == {
        "videos/running/a.mp4": b"",
        "videos/b.mp4": b"",
        "splits/val.csv": b"splits/val.csv",
        "classes.txt": b"classes.txt",
    }
    for url in (f"{s3_url}/nothing", "s3://no-such-bucket/a"):
        with pytest.raises(UsageError, match="nothing lies there; give the data root that holds the videos"):
            placeholders(url, tmp_path, is_fetched=re.compile("x"))


def write_below(store: Store, name: str) -> None:
    folder, _, file = name.rpartition("/")
    write(open_store(f"{store.location}/{folder}" if folder else store.location), file, name.encode())


def test_a_new_object_is_seen_at_once(s3_url: str) -> None:
    store = open_store(s3_url)
    write(store, "a", b"1")
    assert store.sizes() == {"a": 1}
    path = f"{BUCKET}/{s3_url.rpartition('/')[2]}/b"
    store_module._connect(s3_url)[0].pipe_file(path, b"22")  # somebody else
    assert store.sizes() == {"a": 1, "b": 2}
