import hashlib
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vidprep import splits
from vidprep.errors import ChecksumMismatch, UsageError, VidprepError
from vidprep.splits import Split, read_split, write_split
from vidprep.types import Task, Video

CLASSES = ("archery", "ballet", "canoeing")


def make_split(*videos: Video, task: Task = "multi_label") -> Split:
    return Split(dataset="mine", split="val", task=task, classes=CLASSES, videos=videos)


def read(path: Path, *, task: Task = "multi_label") -> Split:
    return read_split(path, dataset="mine", split="val", task=task, classes=CLASSES)


def write(path: Path, text: str, encoding: str = "utf-8") -> Path:
    path.write_bytes(text.encode(encoding))
    return path


def test_written_split_reads_back_the_same(tmp_path: Path) -> None:
    split = make_split(
        Video(video_id="-a_b", labels=(2, 0)),
        Video(video_id='odd, "quoted"\nname.mp4', labels=(1,)),
        Video(video_id="unlabelled"),
        Video(video_id="cut", labels=(1,), start_seconds=0.1, end_seconds=2 / 3),
        Video(video_id="cut", labels=(1,), start_seconds=1.0),
    )
    write_split(split, tmp_path / "new folder" / "val.csv")
    assert read(tmp_path / "new folder" / "val.csv") == split


videos = st.builds(
    lambda name, labels, start, length, duration, num_frames: Video(
        video_id=name,
        labels=tuple(labels),
        start_seconds=start,
        end_seconds=None if length is None else (start or 0.0) + length,
        duration_seconds=duration,
        num_frames=num_frames,
    ),
    st.text(st.characters(codec="utf-8"), min_size=1),
    st.lists(st.integers(0, 2), unique=True),
    st.none() | st.floats(0, 1e5),
    st.none() | st.floats(0.01, 1e5),
    st.none() | st.floats(0.01, 1e5),
    st.none() | st.integers(1, 10**6),
)


@given(st.lists(videos, unique_by=lambda video: video.video_id))
def test_any_split_reads_back_the_same(tmp_path_factory: pytest.TempPathFactory, rows: list[Video]) -> None:
    path = tmp_path_factory.mktemp("splits") / "val.csv"
    split = make_split(*rows)
    write_split(split, path)
    assert read(path) == split


def test_file_without_segments_has_two_columns_and_plain_line_ends(tmp_path: Path) -> None:
    write_split(make_split(Video(video_id="a", labels=(2, 0)), Video(video_id="b")), tmp_path / "val.csv")
    assert (tmp_path / "val.csv").read_bytes() == b"video_id,label\na,2|0\nb,\n"


def test_annotated_lengths_have_columns_of_their_own_where_there_are_any(tmp_path: Path) -> None:
    path = tmp_path / "val.csv"
    videos = (Video(video_id="a", labels=(1,), duration_seconds=82.73), Video(video_id="b", num_frames=37))
    write_split(make_split(*videos), path)
    assert path.read_bytes() == b"video_id,label,duration_seconds,num_frames\na,1,82.73,\nb,,,37\n"
    assert read(path).videos == videos
    write_split(make_split(videos[0]), path)
    assert path.read_bytes() == b"video_id,label,duration_seconds\na,1,82.73\n"
    named = Video(video_id="P01_01", labels=(1,), start_seconds=0.5, segment_id="P01_01_0", duration_seconds=1652.0)
    write_split(make_split(named), path)
    assert path.read_text().splitlines()[0] == ("video_id,label,start_seconds,end_seconds,segment_id,duration_seconds")
    assert read(path).videos == (named,)


@pytest.mark.parametrize(
    "text",
    ["video_id,label\r\na,2|0\r\nb,\r\n", "\ufeffvideo_id,label\na,2|0\nb,", "label,video_id\n2|0,a\n\n,b\n\n"],
    ids=["crlf", "byte-order mark, no final newline", "other order, blank lines"],
)
def test_other_hands_line_ends_and_column_orders_are_read(tmp_path: Path, text: str) -> None:
    expected = (Video(video_id="a", labels=(2, 0)), Video(video_id="b"))
    assert read(write(tmp_path / "val.csv", text)).videos == expected


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (
            "",
            r"line 1: expected the header video_id,label\[,start_seconds\]\[,end_seconds\]\[,segment_id\]"
            r"\[,duration_seconds\]\[,num_frames\], got",
        ),
        ("video,label\na,0\n", "line 1: expected the header .* got 'video,label'"),
        ("video_id,label,label\na,0,0\n", "line 1: expected the header"),
        ("video_id,label\na,0\nb\n", r"line 3: expected 2 fields \(video_id,label\), got 1; is the file cut short\?"),
        ("video_id,label\na,3\n", "line 2: a label is a class index from 0 to 2, got '3'"),
        ("video_id,label\na,-1\n", "line 2: a label is a class index from 0 to 2, got '-1'"),
        ("video_id,label\na,archery\n", "line 2: a label is a class index from 0 to 2, got 'archery'"),
        ("video_id,label\na,0|\n", "line 2: a label is a class index from 0 to 2, got ''"),
        ("video_id,label\na,1|1\n", "line 2: a: labels repeat"),
        ("video_id,label\n,1\n", "line 2: a video needs a video_id"),
        ("video_id,label\na,1\nb,1\na,0\n", "line 4: a is already listed on line 2; keep one"),
        ('video_id,label\n"a,1\n', "line 2: not readable as CSV"),
        ("video_id,label,start_seconds,end_seconds\na,1,x,2\n", "line 2: a time is a number of seconds, got 'x'"),
        ("video_id,label,start_seconds,end_seconds\na,1,nan,2\n", "line 2: a time is a number of seconds, got 'nan'"),
        ("video_id,label,start_seconds,end_seconds\na,1,3,2\n", "line 2: a: a segment needs 0 <= start < end"),
        ("video_id,label,duration_seconds\na,1,x\n", "line 2: a time is a number of seconds, got 'x'"),
        ("video_id,label,duration_seconds\na,1,0\n", "line 2: a: a video lasts more than 0 seconds, got 0.0"),
        ("video_id,label,num_frames\na,1,2.5\n", "line 2: num_frames is a number of frames, got '2.5'"),
        ("video_id,label,num_frames\na,1,0\n", "line 2: a: a video has at least 1 frame, got 0"),
    ],
)
def test_malformed_line_is_refused_with_its_number(tmp_path: Path, text: str, sentence: str) -> None:
    path = write(tmp_path / "val.csv", text)
    with pytest.raises(UsageError, match=sentence) as caught:
        read(path)
    assert str(caught.value).startswith(str(path))


def make_verb_noun(*videos: Video) -> Split:
    return Split(
        dataset="mine", split="val", task="verb_noun", classes=("take",), noun_classes=("cup", "pan"), videos=videos
    )


def test_verb_and_noun_are_counted_each_in_its_own_list(tmp_path: Path) -> None:
    split = make_verb_noun(
        Video(video_id="P01_01", labels=(0, 1), start_seconds=0.0, end_seconds=1.0, segment_id="P01_01_0"),
        Video(video_id="P01_01", labels=(0, 0), start_seconds=0.0, end_seconds=1.0, segment_id="P01_01_1"),
        Video(video_id="P01_02", start_seconds=0.5, end_seconds=1.0, segment_id="P01_02_0"),
    )
    write_split(split, tmp_path / "val.csv")
    assert (tmp_path / "val.csv").read_text().splitlines()[:2] == [
        "video_id,label,start_seconds,end_seconds,segment_id",
        "P01_01,0|1,0.0,1.0,P01_01_0",
    ]
    again = read_split(
        tmp_path / "val.csv",
        dataset="mine",
        split="val",
        task="verb_noun",
        classes=("take",),
        noun_classes=("cup", "pan"),
    )
    assert again == split


def test_verb_without_a_noun_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"a has labels \(0,\), the task is verb_noun: a verb and a noun, or none"):
        make_verb_noun(Video(video_id="a", labels=(0,)))
    with pytest.raises(ValueError, match=r"a has labels \(1, 1\), of 1 classes, 2 nouns"):
        make_verb_noun(Video(video_id="a", labels=(1, 1)))
    path = write(tmp_path / "val.csv", "video_id,label\na,0\n")
    with pytest.raises(UsageError, match=r"line 2: mine has a verb and a noun \(verb\|noun\), got '0'"):
        read(path, task="verb_noun")


def test_detection_has_no_labels_of_videos() -> None:
    with pytest.raises(ValueError, match="the task is detection: its labels are those of its boxes"):
        make_split(Video(video_id="a", labels=(0,)), task="detection")


def test_second_label_is_refused_where_a_video_has_one(tmp_path: Path) -> None:
    path = write(tmp_path / "val.csv", "video_id,label\na,0|1\n")
    with pytest.raises(UsageError, match=r"line 2: mine has one label a video, got '0\|1'"):
        read(path, task="single_label")


def test_file_that_is_missing_or_not_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"nowhere.csv: cannot be read \(No such file or directory\)"):
        read(tmp_path / "nowhere.csv")
    with pytest.raises(UsageError, match="Is a directory"):
        read(tmp_path)
    with pytest.raises(UsageError, match=r"not a text file in UTF-8 \(byte 0\)"):
        read(write(tmp_path / "val.csv", "video_id,label\na,0\n", "utf-16"))


def test_interrupted_writing_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "val.csv"
    write_split(make_split(Video(video_id="old")), path)
    before = path.read_bytes()

    def interrupted(*args: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("vidprep.splits.os.replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_split(make_split(Video(video_id="new")), path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_writing_where_one_may_not_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(VidprepError, match=r"val.csv: cannot be written \("):
        write_split(make_split(), tmp_path / "file" / "val.csv")


@pytest.mark.parametrize(
    ("rows", "task", "sentence"),
    [
        ((Video(video_id="a", labels=(3,)),), "multi_label", r"mine/val: a has labels \(3,\), of 3 classes"),
        ((Video(video_id="a", labels=(0, 1)),), "single_label", r"a has labels \(0, 1\), the task is single_label"),
        ((Video(video_id="a"), Video(video_id="a")), "multi_label", "a is listed twice with the same start and end"),
    ],
)
def test_split_checks_itself(rows: tuple[Video, ...], task: Task, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        make_split(*rows, task=task)
    with pytest.raises(ValueError, match="class names repeat"):
        Split(dataset="mine", split="val", task="multi_label", classes=("a", "a"), videos=())


def packaged_lists() -> list[str]:
    return sorted(splits.read_checksums())


def test_every_list_has_a_checksum_and_every_checksum_a_list() -> None:
    root = splits.split_path("toy", "train.csv").parent.parent
    assert packaged_lists() == sorted(f"{path.parent.name}/{path.name}" for path in root.glob("*/*"))


@pytest.mark.parametrize("name", packaged_lists())
def test_list_has_the_recorded_rows_and_sha256(name: str) -> None:
    folder, file = name.split("/")
    content = splits.split_path(folder, file).read_bytes()
    recorded = splits.read_checksums()[name]
    assert hashlib.sha256(content).hexdigest() == recorded["sha256"]
    assert len(content.splitlines()) - file.endswith(".csv") == recorded["rows"]
    assert content.endswith(b"\n")
    assert b"\r" not in content
    assert splits.read_packaged(folder, file).encode() == content


def test_changed_list_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "toy").mkdir()
    write(tmp_path / "checksums.toml", '["toy/classes.txt"]\nrows = 1\nsha256 = "00"\n')
    write(tmp_path / "toy" / "classes.txt", "right\n")
    monkeypatch.setattr(splits, "_lists_folder", lambda: tmp_path)
    with pytest.raises(ChecksumMismatch, match="expected SHA-256 00, got"):
        splits.read_classes("toy")
    with pytest.raises(VidprepError, match="not among the lists"):
        splits.read_classes("kinetics400")
    (tmp_path / "toy" / "classes.txt").unlink()
    with pytest.raises(VidprepError, match="install vidprep again"):
        splits.read_classes("toy")


def test_lists_of_an_installed_package_lie_inside_it() -> None:
    root = Path(__file__).parent.parent.parent
    settings = tomllib.loads((root / "pyproject.toml").read_text())
    wheel = settings["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert wheel["force-include"] == {"splits": "vidprep/_splits"}


def test_lists_beside_a_checkout_give_way_to_those_inside_a_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(splits, "__file__", str(tmp_path / "vidprep" / "splits.py"))
    assert splits.split_path("toy", "val.csv") == tmp_path / "splits" / "toy" / "val.csv"
    (tmp_path / "vidprep" / "_splits").mkdir(parents=True)
    assert splits.split_path("toy", "val.csv") == tmp_path / "vidprep" / "_splits" / "toy" / "val.csv"
