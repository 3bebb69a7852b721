"""Wrong annotation files of every data set: read right, or refused with file and reason, never half-read in silence."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.vidprep.conftest import Make
from vidprep.datasets import BUILDERS, build_splits
from vidprep.errors import UsageError, VidprepError
from vidprep.types import Video

FORMS: dict[str, Callable[[bytes], bytes]] = {
    "crlf": lambda content: content.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n"),
    "lf": lambda content: content.replace(b"\r\n", b"\n"),
    "byte-order mark": lambda content: b"\xef\xbb\xbf" + content,
    "no final newline": lambda content: content.rstrip(b"\r\n"),
    "final blank lines": lambda content: content + b"\n\n",
}
NO_TEXT = {
    "empty": b"",
    "blank": b"\n \r\n\n",
    "zeros": bytes(5000),
    "gzip": b"\x1f\x8b\x08\x00" + bytes(range(256)),
    "utf-16": "label,youtube_id,time_start,time_end,split\n".encode("utf-16"),
    "web page": b"<!DOCTYPE html>\n<html><body>Please log in</body></html>\n",
    "git-lfs pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n",
}


def copy(make: Make, name: str, folder: Path) -> list[Path]:
    folder.mkdir(parents=True)
    return [Path(shutil.copy(path, folder)) for path in make(name).annotation_files]


def videos(name: str, paths: list[Path]) -> dict[str, tuple[Video, ...]]:
    return {split: built.videos for split, built in build_splits(name, paths).items()}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("name", BUILDERS)
def test_line_ends_and_marks_change_nothing_in_any_data_set(
    make: Make, tmp_path: Path, name: str, form: Callable[[bytes], bytes]
) -> None:
    paths = copy(make, name, tmp_path / "copy")
    expected = videos(name, paths)
    for path in paths:
        path.write_bytes(form(path.read_bytes()))
    assert videos(name, paths) == expected


@pytest.mark.parametrize("content", NO_TEXT.values(), ids=NO_TEXT)
@pytest.mark.parametrize("name", BUILDERS)
def test_what_is_no_annotation_file_is_refused_by_name_in_its_place(
    make: Make, tmp_path: Path, name: str, content: bytes
) -> None:
    for index in range(len(make(name).annotation_files)):
        paths = copy(make, name, tmp_path / str(index))
        paths[index].write_bytes(content)
        with pytest.raises(UsageError, match=paths[index].name.replace(".", r"\.")) as caught:
            build_splits(name, paths)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", BUILDERS)
def test_file_cut_short_anywhere_is_refused_or_a_note_tells(make: Make, tmp_path: Path, name: str) -> None:
    paths = copy(make, name, tmp_path / "copy")
    expected = videos(name, paths)
    for path in paths:
        content = path.read_bytes()
        for length in range(1, len(content), max(1, len(content) // 40)):
            path.write_bytes(content[:length])
            try:
                built = build_splits(name, paths)
            except VidprepError as error:
                assert path.name in str(error)  # noqa: PT017 - either is right
                continue
            for split, of_split in expected.items():
                # a miniature is never as long as the published split, so that what is left must say so
                assert split not in built or built[split].notes or built[split].videos == of_split, length
        path.write_bytes(content)


@pytest.mark.parametrize("name", BUILDERS)
@pytest.mark.parametrize("other", BUILDERS)
def test_miniature_of_another_data_set_is_refused_or_counted(make: Make, name: str, other: str) -> None:
    if other == name:
        return
    paths = list(make(other).annotation_files)
    try:
        built = build_splits(name, paths)
    except UsageError as error:
        assert any(path.name in str(error) for path in paths)  # noqa: PT017 - either is right
    else:
        assert all(of_split.notes for of_split in built.values())
