import gzip
import hashlib
import io
import random
import tarfile
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from vidprep import archives
from vidprep.archives import Archive, CorruptArchive, Limits, RefusedArchive, Unpacked, group_parts, unpack
from vidprep.engine import CannotWrite
from vidprep.errors import ChecksumMismatch

FILES = {"set/a.webm": random.Random(1).randbytes(70_000), "set/b.webm": random.Random(2).randbytes(3), "set/c": b""}


def make_tar(members: Iterable[tuple[tarfile.TarInfo, bytes]], *, is_gzip: bool = True) -> bytes:
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w") as tar:
        for member, content in members:
            member.size = member.size or len(content)
            tar.addfile(member, io.BytesIO(content) if content else None)
    return gzip.compress(plain.getvalue(), mtime=0) if is_gzip else plain.getvalue()


def tar_of(files: dict[str, bytes], *, is_gzip: bool = True) -> bytes:
    return make_tar(((tarfile.TarInfo(name), content) for name, content in files.items()), is_gzip=is_gzip)


def zip_of(files: dict[str, bytes]) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as writer:
        for name, content in files.items():
            writer.writestr(name, content)
    return packed.getvalue()


def member(name: str, kind: bytes = tarfile.REGTYPE, linkname: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, linkname
    return info


class Place:
    """A folder to unpack into, with something beside it that must not change."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.source = root / "given"
        self.target = root / "target"
        self.source.mkdir()
        (root / "outside").write_text("untouched")

    def add(self, name: str, content: bytes) -> Path:
        (self.source / name).write_bytes(content)
        return self.source / name

    def unpack(self, *, delete_archives: bool = False, limits: Limits | None = None) -> list[Unpacked]:
        return [
            unpack(
                archive,
                self.target,
                marks=self.root / "marks",
                delete_archives=delete_archives,
                limits=limits,
            )
            for archive in group_parts(self.source.iterdir())
        ]

    def files(self) -> dict[str, bytes]:
        return {
            path.relative_to(self.target).as_posix(): path.read_bytes()
            for path in self.target.rglob("*")
            if path.is_file()
        }

    def assert_nothing_written(self) -> None:
        assert sorted(path.name for path in self.root.iterdir()) in (
            ["given", "outside", "target"],
            ["given", "outside"],
        )
        assert (self.root / "outside").read_text() == "untouched"
        assert not self.target.exists() or not list(self.target.iterdir())


@pytest.fixture
def at(tmp_path: Path) -> Place:
    return Place(tmp_path)


PACKINGS: dict[str, Callable[[dict[str, bytes]], bytes]] = {
    "x.tar.gz": tar_of,
    "plain tar called x.tar.gz": lambda files: tar_of(files, is_gzip=False),
    "zip called x.tar.gz": zip_of,
    "tar called x.zip": tar_of,
}


@pytest.mark.parametrize("case", PACKINGS)
def test_the_packing_is_told_by_the_first_bytes(at: Place, case: str) -> None:
    at.add(case.split()[-1], PACKINGS[case](FILES))

    [unpacked] = at.unpack()

    assert at.files() == FILES
    assert (unpacked.num_files, unpacked.num_bytes, unpacked.is_new) == (3, 70_003, True)
    assert not list(at.target.glob(".*"))


@pytest.mark.parametrize("num_parts", [2, 3, 23])
@pytest.mark.parametrize("packing", ["raw", "zipped", "zipped with md5", "raw but called zip"])
def test_parts_are_joined_in_any_number_and_packing(at: Place, num_parts: int, packing: str) -> None:
    whole = tar_of(FILES)
    step = -(-len(whole) // num_parts)
    for index in reversed(range(num_parts)):
        name, part = f"20bn-set-v2-{index:02d}", whole[index * step : (index + 1) * step]
        if packing.startswith("zipped"):
            inside = {name: part}
            if "md5" in packing:
                inside[f"{name}.md5"] = f"{hashlib.md5(part).hexdigest()}  {name}\n".encode()
            at.add(f"{name}.zip", zip_of(inside))
        else:
            at.add(f"{name}.zip" if "called zip" in packing else name, part)

    [unpacked] = at.unpack()

    assert unpacked.name == "20bn-set-v2"
    assert at.files() == FILES


@pytest.mark.parametrize("suffixes", [["00", "01", "02"], ["aa", "ab", "ac"], ["001", "002", "003"]])
def test_parts_as_split_calls_them_are_joined(at: Place, suffixes: list[str]) -> None:
    whole = tar_of(FILES)
    step = -(-len(whole) // 3)
    for index, suffix in enumerate(suffixes):
        at.add(f"set.tar.gz.{suffix}", whole[index * step : (index + 1) * step])

    at.unpack()

    assert at.files() == FILES


def test_zips_called_as_parts_that_hold_none_are_archives_of_their_own(at: Place) -> None:
    at.add("videos-01.zip", zip_of({"a.mp4": b"a"}))
    at.add("videos-03.zip", zip_of({"b.mp4": b"b"}))

    assert [unpacked.name for unpacked in at.unpack()] == ["videos-01.zip", "videos-03.zip"]
    assert at.files() == {"a.mp4": b"a", "b.mp4": b"b"}


def test_a_missing_part_is_named(at: Place) -> None:
    for index in (0, 1, 3):
        at.add(f"set-{index:02d}", b"x")
    with pytest.raises(CorruptArchive, match="set lacks part 2; there are set-00, set-01, set-03"):
        group_parts(at.source.iterdir())


def test_a_missing_last_part_is_found_by_the_check_sum(at: Place) -> None:
    whole = tar_of(FILES)
    at.add("set-00", whole[:30_000])
    at.add("set-01", whole[30_000:60_000])
    with pytest.raises(CorruptArchive, match=r"cannot be unpacked .*a part is missing"):
        at.unpack()
    at.assert_nothing_written()


def test_a_part_that_is_there_twice_is_refused(at: Place) -> None:
    at.add("set-00", b"x")
    at.add("set-00.zip", zip_of({"set-00": b"x"}))
    with pytest.raises(CorruptArchive, match=r"set-00 and set-00.zip are both part 0 of set"):
        group_parts(at.source.iterdir())


def test_a_part_that_differs_from_its_md5_is_refused(at: Place) -> None:
    whole = tar_of(FILES)
    at.add("set-00.zip", zip_of({"set-00": whole, "set-00.md5": b"0" * 32}))
    with pytest.raises(ChecksumMismatch, match="the file beside it says 00000000000000000000000000000000"):
        at.unpack()
    at.assert_nothing_written()


@pytest.mark.parametrize("position", [0, 20_000, -6])
def test_a_changed_byte_is_found(at: Place, position: int) -> None:
    whole = bytearray(tar_of(FILES))
    whole[position] ^= 0x55
    at.add("set.tar.gz", bytes(whole))
    with pytest.raises(CorruptArchive, match=r"set.tar.gz: cannot be unpacked"):
        at.unpack()
    at.assert_nothing_written()


def test_a_changed_byte_in_a_zip_is_found(at: Place) -> None:
    whole = bytearray(zip_of(FILES))
    whole[20_000] ^= 0x55
    at.add("set.zip", bytes(whole))
    with pytest.raises(CorruptArchive, match="Bad CRC-32"):
        at.unpack()
    at.assert_nothing_written()


# Ends of a plain tar, which has no check sum of its contents: in a file, between two, before the end mark.
@pytest.mark.parametrize("num_bytes", [1, 300, 30_000, 512 + 70_000 + 512 - 70_000 % 512, 512 + 70_144 + 2 * 512])
def test_a_plain_tar_that_ends_early_is_found(at: Place, num_bytes: int) -> None:
    at.add("set.tar", tar_of(FILES, is_gzip=False)[:num_bytes])
    with pytest.raises(CorruptArchive, match=r"set.tar: cannot be unpacked"):
        at.unpack()
    at.assert_nothing_written()


def test_a_bad_header_in_the_middle_is_not_taken_for_the_end(at: Place) -> None:
    whole = bytearray(tar_of({"a": b"a", "b": b"b", "c": b"c"}, is_gzip=False))
    whole[1024] ^= 0x55  # of the second header
    at.add("set.tar", bytes(whole))
    with pytest.raises(CorruptArchive, match="no tar member where one should begin"):
        at.unpack()
    at.assert_nothing_written()


NO_ARCHIVES = {"empty": b"", "web page": b"<html>log in</html>", "gzip of text": gzip.compress(b"no tar", mtime=0)}


@pytest.mark.parametrize("content", NO_ARCHIVES.values(), ids=NO_ARCHIVES)
def test_what_is_no_archive_is_refused(at: Place, content: bytes) -> None:
    at.add("set.tar.gz", content)
    with pytest.raises(CorruptArchive, match=r"set.tar.gz: cannot be unpacked"):
        at.unpack()
    at.assert_nothing_written()


@pytest.mark.parametrize("is_gzip", [True, False])
@pytest.mark.parametrize("num_bytes", [1024, 10240], ids=["zeros in the middle", "two tars joined"])
def test_a_tar_that_goes_on_after_its_end_is_refused(at: Place, num_bytes: int, is_gzip: bool) -> None:
    first, second = tar_of({"a": b"a"}, is_gzip=False), tar_of({"b": b"b"}, is_gzip=False)
    whole = first[:num_bytes] + bytes(512) + second
    at.add("set.tar", gzip.compress(whole) if is_gzip else whole)
    with pytest.raises(CorruptArchive, match="a second one, or zeros in its middle"):
        at.unpack()
    at.assert_nothing_written()


@pytest.mark.parametrize("name", ["n" * 300, "/".join(["n" * 200] * 30)])
def test_a_name_that_the_disk_does_not_take_is_refused_with_its_archive(at: Place, name: str) -> None:
    at.add("set.tar.gz", tar_of({"good": b"good", name: b"bad"}))
    with pytest.raises(RefusedArchive, match=rf"set.tar.gz: refused: nnn.* of {len(name)} characters, is longer"):
        at.unpack()
    at.assert_nothing_written()


SPARSE_FAULTS = {
    "no numbers": {"GNU.sparse.map": "a,b", "GNU.sparse.size": "1"},
    "no map": {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": "9"},
}


@pytest.mark.parametrize("case", SPARSE_FAULTS)
def test_a_sparse_file_that_does_not_say_where_its_holes_are_is_refused(at: Place, case: str) -> None:
    bad = member("bad")
    bad.pax_headers = SPARSE_FAULTS[case]
    at.add("set.tar.gz", make_tar([(member("good"), b"good"), (bad, b"")]))
    with pytest.raises(CorruptArchive, match=r"set.tar.gz: cannot be unpacked"):
        at.unpack()
    at.assert_nothing_written()


@pytest.mark.parametrize(("flags", "reason"), [(1, "locked with a password"), (1 << 5, "compressed patched data")])
def test_a_zip_called_as_a_part_that_cannot_be_read_is_refused(at: Place, flags: int, reason: str) -> None:
    packed = bytearray(zip_of({"set-00": b"part", "set-00.md5": b"0" * 32}))
    for magic, position in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        begin = packed.find(magic)
        while begin >= 0:
            packed[begin + position] |= flags
            begin = packed.find(magic, begin + 1)
    at.add("set-00.zip", bytes(packed))
    with pytest.raises(CorruptArchive, match=rf"set-00.zip.*{reason}"):
        at.unpack()
    at.assert_nothing_written()


@pytest.mark.parametrize("name", ["set.zip", "set-00.zip"])
def test_a_zip_with_an_empty_name_is_refused(at: Place, name: str) -> None:
    at.add(name, zip_of({"good": b"good", "empty": b""}).replace(b"empty", b"\0mpty"))
    with pytest.raises(CorruptArchive, match=rf"{name}: cannot be unpacked"):
        at.unpack()
    at.assert_nothing_written()


LEAVING = {
    "../x": (member("../outside"), "../outside would leave"),
    "a/../../x": (member("a/../../outside"), "would leave"),
    "absolute": (member("/tmp/vidprep_was_here"), "/tmp/vidprep_was_here would leave"),
    "absolute folder": (member("/tmp/vidprep_was_here", tarfile.DIRTYPE), "would leave"),
    "backslashes": (member("..\\outside"), "would leave"),
    "symbolic link up": (member("a", tarfile.SYMTYPE, "../outside"), "a links to ../outside, which leaves"),
    "symbolic link absolute": (member("a", tarfile.SYMTYPE, "/etc"), "a links to /etc, which leaves"),
    "symbolic link around": (member("d/a", tarfile.SYMTYPE, "c/../../.."), "which leaves, or may"),
    "hard link up": (member("a", tarfile.LNKTYPE, "../outside"), "a links to ../outside, which leaves"),
    "hard link absolute": (member("a", tarfile.LNKTYPE, "/etc/passwd"), "which leaves"),
    "hard link to nothing": (member("a", tarfile.LNKTYPE, "b"), "a is a hard link to b, no file of the archive"),
    "device": (member("a", tarfile.CHRTYPE), "a is a device"),
    "block device": (member("a", tarfile.BLKTYPE), "a is a device"),
    "pipe": (member("a", tarfile.FIFOTYPE), "a is a pipe"),
    "vidprep's notes": (member(".vidprep/unpacked/x.json"), "would change vidprep's own notes"),
}


@pytest.mark.parametrize("case", LEAVING)
@pytest.mark.parametrize("is_gzip", [True, False])
def test_no_member_leaves_the_folder(at: Place, case: str, is_gzip: bool) -> None:
    info, reason = LEAVING[case]
    at.add("bad.tar.gz", make_tar([(member("good"), b"good"), (info, b"")], is_gzip=is_gzip))
    with pytest.raises(RefusedArchive, match=r"bad.tar.gz: refused: ") as caught:
        at.unpack()
    assert reason in str(caught.value)
    at.assert_nothing_written()
    assert not Path("/tmp/vidprep_was_here").exists()


def test_nothing_is_written_through_a_link_of_the_archive(at: Place) -> None:
    at.add("bad.tar", make_tar([(member("a", tarfile.SYMTYPE, "b"), b""), (member("a/x"), b"x")], is_gzip=False))
    with pytest.raises(RefusedArchive, match=r"needs a folder where the archive has a file|is a link"):
        at.unpack()
    at.assert_nothing_written()


def test_links_that_only_together_leave_are_refused(at: Place) -> None:
    chain = [
        (member("d/e/up", tarfile.SYMTYPE, "../.."), b""),
        (member("d/e/up/x", tarfile.SYMTYPE, "../outside"), b""),
    ]
    at.add("bad.tar", make_tar(chain))
    with pytest.raises(RefusedArchive, match=r"lies behind another link|leaves"):
        at.unpack()
    at.assert_nothing_written()


def test_nothing_is_written_through_a_link_in_the_target(at: Place) -> None:
    elsewhere = at.root / "target" / "elsewhere"
    elsewhere.mkdir(parents=True)
    (at.target / "set").symlink_to(elsewhere)
    at.add("set.tar.gz", tar_of(FILES))
    with pytest.raises(RefusedArchive, match="is a link, set in the archive a folder"):
        at.unpack()
    assert not list(elsewhere.iterdir())


def test_links_that_stay_inside_are_kept(at: Place) -> None:
    at.add(
        "set.tar.gz",
        make_tar(
            [
                (member("d/a"), b"a"),
                (member("d/hard", tarfile.LNKTYPE, "d/a"), b""),
                (member("e/soft", tarfile.SYMTYPE, "../d/a"), b""),
            ]
        ),
    )

    at.unpack()

    assert at.files() == {"d/a": b"a", "d/hard": b"a", "e/soft": b"a"}
    assert (at.target / "e" / "soft").readlink() == Path("../d/a")


LEAVING_ZIP = [
    "../outside",
    "/tmp/vidprep_was_here",
    "a/../../outside",
    "..\\outside",
    "a\\..\\..\\outside",
    "a/..\\../outside",
    "\\tmp\\vidprep_was_here",
    "\\\\host\\share",
    "C:\\tmp\\vidprep_was_here",
    "c:/tmp/vidprep_was_here",
]


@pytest.mark.parametrize("name", LEAVING_ZIP)
def test_no_member_of_a_zip_leaves_the_folder(at: Place, name: str) -> None:
    at.add("bad.zip", zip_of({"good": b"good", name: b"bad"}))
    with pytest.raises(RefusedArchive, match="would leave"):
        at.unpack()
    at.assert_nothing_written()
    assert not Path("/tmp/vidprep_was_here").exists()


def test_backslashes_in_a_zip_of_windows_are_folders(at: Place) -> None:
    at.add("set.zip", zip_of({"set\\": b"", "set\\yoga\\": b"", "set\\yoga\\a.mp4": b"a", "set\\b c.mp4": b"b"}))

    [unpacked] = at.unpack()

    assert at.files() == {"set/yoga/a.mp4": b"a", "set/b c.mp4": b"b"}
    assert unpacked.num_files == 2


def test_a_part_behind_backslashes_in_a_zip_of_its_own_is_joined(at: Place) -> None:
    whole = tar_of(FILES)
    for number, part in enumerate((whole[:30_000], whole[30_000:])):
        at.add(f"set-0{number}.zip", zip_of({"parts\\": b"", f"parts\\set-0{number}": part}))

    at.unpack()

    assert at.files() == FILES


def test_a_link_in_a_zip_is_refused(at: Place) -> None:
    info = zipfile.ZipInfo("a")
    info.external_attr = 0o120777 << 16
    with zipfile.ZipFile(at.source / "bad.zip", "w") as packed:
        packed.writestr(info, "/etc/passwd")
    with pytest.raises(RefusedArchive, match="a is a link or a device in a zip"):
        at.unpack()
    at.assert_nothing_written()


def test_a_sparse_bomb_is_refused_before_it_is_written(at: Place) -> None:
    bomb = member("bomb", tarfile.REGTYPE)
    bomb.pax_headers = {
        "GNU.sparse.major": "1",
        "GNU.sparse.minor": "0",
        "GNU.sparse.name": "bomb",
        "GNU.sparse.realsize": str(10 * 10**9),
    }
    content = f"1\n{10 * 10**9 - 1}\n1\n".encode().ljust(512, b"\0") + b"x"
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w", format=tarfile.PAX_FORMAT) as tar:
        bomb.size = len(content)
        tar.addfile(bomb, io.BytesIO(content))
    at.add("bomb.tar", plain.getvalue())
    with pytest.raises(RefusedArchive, match=r"bomb.tar: refused: with bomb, of 10000000000 bytes, it unpacks to more"):
        at.unpack()
    at.assert_nothing_written()


def test_a_negative_size_does_not_make_room_for_a_sparse_bomb(at: Place) -> None:
    credit, bomb = member("credit"), member("bomb")
    credit.pax_headers = {"GNU.sparse.map": "0,0", "GNU.sparse.size": str(-(10**9))}
    bomb.pax_headers = {"GNU.sparse.map": "0,0", "GNU.sparse.size": str(10**9)}
    at.add("bomb.tar", make_tar([(credit, b""), (bomb, b"")], is_gzip=False))
    with pytest.raises(RefusedArchive, match=r"bomb.tar: refused: credit says that it is -1000000000 bytes long"):
        at.unpack()
    at.assert_nothing_written()


def test_a_gzip_bomb_is_refused(at: Place) -> None:
    at.add("bomb.tar.gz", tar_of({"zeros": bytes(3_000_000)}))
    with pytest.raises(RefusedArchive, match="unpacks to more than 1000000 bytes, though it has only"):
        at.unpack(limits=Limits(max_ratio=100, min_bytes=1_000_000))
    at.assert_nothing_written()


def test_a_bomb_behind_the_end_of_the_tar_is_refused(at: Place) -> None:
    at.add("bomb.tar.gz", gzip.compress(tar_of({"a": b"a"}, is_gzip=False) + bytes(3_000_000)))
    with pytest.raises(RefusedArchive, match="unpacks to more than 1000000 bytes"):
        at.unpack(limits=Limits(max_ratio=100, min_bytes=1_000_000))
    at.assert_nothing_written()


def test_a_zip_bomb_is_refused(at: Place) -> None:
    with zipfile.ZipFile(at.source / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("zeros", bytes(3_000_000))
    with pytest.raises(RefusedArchive, match="with zeros, of 3000000 bytes, it unpacks to more than 1000000"):
        at.unpack(limits=Limits(max_ratio=100, min_bytes=1_000_000))
    at.assert_nothing_written()


def test_a_header_that_would_fill_the_memory_is_refused(at: Place) -> None:
    info = member("././@LongLink", tarfile.GNUTYPE_LONGNAME)
    info.size = 2**33
    at.add("bad.tar", info.tobuf(tarfile.GNU_FORMAT) + bytes(2048))
    with pytest.raises(RefusedArchive, match="a tar header says that it is 8589934592 bytes long"):
        at.unpack()
    at.assert_nothing_written()


def test_what_the_disk_has_no_room_for_is_refused(at: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 50_000}))
    at.add("set.tar.gz", tar_of(FILES))
    with pytest.raises(CannotWrite, match="more than the 50000 bytes that are free"):
        at.unpack()
    at.assert_nothing_written()


def test_an_archive_is_unpacked_once(at: Place) -> None:
    path = at.add("set.tar.gz", tar_of(FILES))
    assert [unpacked.is_new for unpacked in at.unpack()] == [True]
    (at.target / "set" / "a.webm").unlink()

    assert [unpacked.is_new for unpacked in at.unpack()] == [False]
    assert not (at.target / "set" / "a.webm").exists()

    path.write_bytes(tar_of({"set/new": b"new"}))
    assert [unpacked.is_new for unpacked in at.unpack()] == [True]
    assert at.files()["set/new"] == b"new"


def test_archives_share_folders(at: Place) -> None:
    at.add("part_0.tar.gz", tar_of({"train/a": b"a", "train/deep/b": b"b"}))
    at.add("part_1.tar.gz", tar_of({"train/c": b"c", "train/deep/d": b"d"}))

    at.unpack()

    assert at.files() == {"train/a": b"a", "train/deep/b": b"b", "train/c": b"c", "train/deep/d": b"d"}


def test_a_file_where_the_archive_has_a_folder_is_named_and_left(at: Place) -> None:
    at.target.mkdir()
    (at.target / "set").write_text("mine")
    at.add("set.tar.gz", tar_of(FILES))
    with pytest.raises(RefusedArchive, match="are a file and a folder; move it away"):
        at.unpack()
    assert at.files() == {"set": b"mine"}


def test_a_tar_with_a_file_that_is_also_a_folder_is_refused(at: Place) -> None:
    at.add("bad.tar", tar_of({"a": b"a", "a/b": b"b"}))
    with pytest.raises(RefusedArchive, match="a/b needs a folder where the archive has a file"):
        at.unpack()
    at.assert_nothing_written()


def test_parts_are_freed_when_all_is_verified_and_not_before(at: Place) -> None:
    whole = tar_of(FILES)
    at.add("set-00", whole[:40_000])
    at.add("set-01", whole[40_000:-1])
    with pytest.raises(CorruptArchive):
        at.unpack(delete_archives=True)
    assert len(list(at.source.iterdir())) == 2

    at.add("set-01", whole[40_000:])
    at.unpack(delete_archives=True)
    assert not list(at.source.iterdir())
    assert at.files() == FILES
    assert archives.find_mark("set", at.root / "marks") == Unpacked(
        name="set", num_files=3, num_bytes=70_003, is_new=False
    )


@pytest.mark.parametrize("num_freed", [1, 2, 3])
def test_parts_that_a_killed_run_had_not_freed_yet_are_freed_by_the_next(
    at: Place, num_freed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = tar_of(FILES)
    for number in range(4):
        at.add(f"set-0{number}", whole[number * 20_000 : (number + 1) * 20_000])
    unlinked: list[Path] = []
    really_unlink = Path.unlink

    def unlink(path: Path, missing_ok: bool = False) -> None:
        if path.parent == at.source:
            if len(unlinked) == num_freed:
                raise KeyboardInterrupt
            unlinked.append(path)
        really_unlink(path, missing_ok=missing_ok)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", unlink)
        with pytest.raises(KeyboardInterrupt):
            at.unpack(delete_archives=True)
    assert len(list(at.source.iterdir())) == 4 - num_freed

    [again] = at.unpack(delete_archives=True)

    assert not again.is_new
    assert not list(at.source.iterdir())
    assert at.files() == FILES


@pytest.mark.parametrize("num_moved", [0, 1, 2])
def test_a_run_that_ends_while_it_moves_into_place_is_made_good_by_the_next(
    at: Place, num_moved: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    at.add("first.tar.gz", tar_of({"set/old": b"old"}))
    at.unpack()
    at.add("set.tar.gz", tar_of(FILES))
    moved: list[Path] = []
    really_replace = Path.replace

    def replace(path: Path, target: Path) -> Path:
        if ".unpacking-set.tar.gz" in path.parts:
            if len(moved) == num_moved:
                raise KeyboardInterrupt
            moved.append(path)
        return really_replace(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", replace)
        with pytest.raises(KeyboardInterrupt):
            at.unpack(delete_archives=True)
    assert (at.source / "set.tar.gz").is_file()
    assert not list(at.target.glob(".*"))
    assert {"set/old": b"old", **FILES}.items() >= at.files().items()
    assert len(at.files()) == 1 + num_moved

    assert [(unpacked.num_files, unpacked.is_new) for unpacked in at.unpack()] == [(3, True)]

    assert at.files() == {"set/old": b"old", **FILES}


def test_what_a_killed_run_left_is_removed(at: Place) -> None:
    (at.target / ".unpacking-set.tar.gz" / "half").mkdir(parents=True)
    at.add("set.tar.gz", tar_of(FILES))

    at.unpack()

    assert at.files() == FILES
    assert not list(at.target.glob(".*"))


def test_the_archive_of_a_cut_zip_says_how_to_join_it(at: Place) -> None:
    whole = zip_of(FILES)
    at.add("set.zip.aa", whole[:40_000])
    at.add("set.zip.ab", whole[40_000:])
    archive = Archive(name="set.zip", parts=tuple(sorted(at.source.iterdir())))
    with pytest.raises(CorruptArchive, match=r"a zip cut into parts; join them first \(cat set.zip.aa"):
        unpack(archive, at.target, marks=at.root / "marks")
