from pathlib import Path

import pytest

from vidprep.datasets import build_split, build_splits, get, imagenet_vid, locate
from vidprep.errors import MissingVideo, UsageError, VidprepError
from vidprep.splits import read_classes
from vidprep.types import Box, FrameAnnotation, Video

TRAIN = "train/ILSVRC2015_VID_train_0000/ILSVRC2015_train_00000000"
OBJECT = """
  <object>
    <trackid>3</trackid>
    <name>n02691156</name>
    <bndbox><xmax>1280</xmax><xmin>10</xmin><ymax>700</ymax><ymin>20</ymin></bndbox>
    <occluded>0</occluded>
    <generated>1</generated>
  </object>"""


def write(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def annotate(folder: Path, frame: int, *objects: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{frame:06d}.xml"
    size = "<size><width>1280</width><height>720</height></size>"
    path.write_text(f"<annotation><filename>{frame:06d}</filename>{size}{''.join(objects)}</annotation>")
    return path


def test_real_annotation_is_read(testdata: Path) -> None:
    annotation = imagenet_vid.read_annotation(testdata / "annotations" / "ILSVRC2015_val_00030000_000000.xml")
    panda = read_classes("imagenet_vid").index("giant_panda")
    assert annotation == FrameAnnotation(
        frame_index=0,
        width=1280,
        height=720,
        boxes=(
            Box(xyxy=(449, 304, 855, 682), label=panda, track_id=0, is_occluded=True),
            Box(xyxy=(172, 307, 931, 590), label=panda, track_id=1, is_occluded=True),
        ),
    )


def test_box_is_read_by_tag_and_may_reach_the_edge(tmp_path: Path) -> None:
    (box,) = imagenet_vid.read_annotation(annotate(tmp_path, 0, OBJECT)).boxes
    assert box == Box(xyxy=(10, 20, 1280, 700), label=0, track_id=3, is_generated=True)


def test_frames_without_objects_are_annotated_all_the_same(tmp_path: Path) -> None:
    annotate(tmp_path, 1)
    annotate(tmp_path, 0, OBJECT)
    assert [(frame.frame_index, len(frame.boxes)) for frame in imagenet_vid.read_annotations(tmp_path)] == [
        (0, 1),
        (1, 0),
    ]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("<annotation><filename>0", r"000000.xml, line 1: not readable as XML .*; is the file cut short"),
        (OBJECT, r"not an annotation of ImageNet VID .no <bndbox/xmin>|no <filename>"),
        ('<?xml version="1.0" encoding="x"?><a/>', r"000000.xml: not an annotation of ImageNet VID .unknown encoding"),
    ],
)
def test_damaged_annotation_is_refused_by_name(tmp_path: Path, text: str, sentence: str) -> None:
    (tmp_path / "000000.xml").write_text(text)
    with pytest.raises(VidprepError, match=sentence):
        imagenet_vid.read_annotations(tmp_path)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (("n02691156", "n00000000"), r"'n00000000' is none of the 30 classes"),
        (("<occluded>0", "<occluded>2"), r"<occluded> is 0 or 1, got '2'"),
        (("<xmin>10", "<xmin>1300"), r"a box is left, top, right, bottom"),
        (("<trackid>3</trackid>", ""), r"no <trackid>"),
    ],
)
def test_wrong_object_is_refused(tmp_path: Path, change: tuple[str, str], sentence: str) -> None:
    path = annotate(tmp_path, 0, OBJECT.replace(*change))
    with pytest.raises(VidprepError, match=rf"000000.xml: not an annotation of ImageNet VID \({sentence}"):
        imagenet_vid.read_annotation(path)


def test_boxes_lie_beside_the_frames(tmp_path: Path) -> None:
    frames = tmp_path / "ILSVRC2015/Data/VID/val/ILSVRC2015_val_00000000"
    folder = imagenet_vid.annotation_folder(frames)
    assert folder == tmp_path / "ILSVRC2015/Annotations/VID/val/ILSVRC2015_val_00000000"
    with pytest.raises(UsageError, match=r"expected frames below Data/VID"):
        imagenet_vid.annotation_folder(tmp_path / "val")
    with pytest.raises(MissingVideo, match=r"no XML files; a snippet's boxes lie in Annotations/VID"):
        imagenet_vid.read_annotations(folder)


@pytest.mark.parametrize("top", ["ILSVRC2015", "ILSVRC"])
def test_snippets_are_found_among_frames_not_among_annotations(tmp_path: Path, top: str) -> None:
    group = "ILSVRC2015_VID_train_0000/ILSVRC2015_train_00000000"
    for place in (f"Data/VID/train/{group}", f"Annotations/VID/train/{group}"):
        (tmp_path / top / place).mkdir(parents=True)
    built = build_split("imagenet_vid", "train", [write(tmp_path / "train_1.txt", f"{group} 1")])
    assert locate(get("imagenet_vid"), built, tmp_path) == {
        "ILSVRC2015_train_00000000": tmp_path / top / "Data/VID/train" / group
    }


@pytest.mark.parametrize(
    ("file", "lines", "num_frames"),
    [
        ("VID_train_15frames.txt", [f"{TRAIN} 1 10 300", f"{TRAIN} 1 30 300"], 300),
        ("train_3.txt", ["ILSVRC2015_VID_train_0000/ILSVRC2015_train_00000000 1"], None),
        ("train_4.txt", ["ILSVRC2015_VID_train_0000/ILSVRC2015_train_00000000 -1"], None),
    ],
)
def test_image_sets_of_ilsvrc_and_fgfa_name_each_snippet_once(
    tmp_path: Path, file: str, lines: list[str], num_frames: int | None
) -> None:
    built = build_split("imagenet_vid", "train", [write(tmp_path / file, *lines)])
    assert built.videos == (Video(video_id="ILSVRC2015_train_00000000", num_frames=num_frames),)
    assert (built.task, len(built.classes)) == ("detection", 30)


def test_val_of_ilsvrc_lists_frames(tmp_path: Path) -> None:
    lines = ["ILSVRC2015_val_00000000/000000 1", "ILSVRC2015_val_00000000/000001 2", "ILSVRC2015_val_00000001/000000 3"]
    built = build_split("imagenet_vid", "val", [write(tmp_path / "val.txt", *lines)])
    assert [(video.video_id, video.num_frames) for video in built.videos] == [
        ("ILSVRC2015_val_00000000", 2),
        ("ILSVRC2015_val_00000001", 1),
    ]


def test_two_lengths_of_a_snippet_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "VID_train_15frames.txt", f"{TRAIN} 1 10 300", f"{TRAIN} 1 30 301")
    with pytest.raises(UsageError, match=r"line 2: ILSVRC2015_train_00000000 has 301 frames here and 300 before"):
        build_splits("imagenet_vid", [path])


def test_annotation_under_the_name_of_another_frame_is_refused(tmp_path: Path) -> None:
    path = annotate(tmp_path, 3, OBJECT)
    assert imagenet_vid.read_annotation(path).frame_index == 3
    other = path.rename(path.with_name("000004.xml"))
    with pytest.raises(
        VidprepError, match=r"000004.xml: not an annotation of ImageNet VID .its <filename> is '000003'"
    ):
        imagenet_vid.read_annotation(other)
    with pytest.raises(VidprepError, match=r"000004.xml: .* the file was renamed, or is of another frame"):
        imagenet_vid.read_annotations(other.parent)


def test_missing_line_of_val_videos_is_found_out(tmp_path: Path) -> None:
    lines = ["val/ILSVRC2015_val_00000000 1 0 464", "val/ILSVRC2015_val_00000002 929 0 464"]
    with pytest.raises(UsageError, match=r"line 2: expected `snippet 465 0 length`.*is a line missing"):
        build_splits("imagenet_vid", [write(tmp_path / "VID_val_videos.txt", *lines)])


def test_frames_of_fgfa_count_from_zero(testdata: Path, tmp_path: Path) -> None:
    frames = imagenet_vid.read_frame_list(testdata / "lists" / "VID_train_15frames.head200.txt")
    assert frames["ILSVRC2015_train_00000000"][:3] == (10, 30, 50)
    assert len(frames) == 14
    with pytest.raises(UsageError, match=r"line 1: expected `snippet 1 frame length`, 0 <= frame < length"):
        imagenet_vid.read_frame_list(write(tmp_path / "a.txt", f"{TRAIN} 1 300 300"))


def test_frames_are_called_from_000000_in_capital_jpeg() -> None:
    frames = get("imagenet_vid").frames
    assert frames.template.format(frames.first_index) == "000000.JPEG"


def test_classes_are_in_the_order_of_their_names() -> None:
    names, synsets = read_classes("imagenet_vid"), read_classes("imagenet_vid", "synsets.txt")
    assert list(names) == sorted(names)
    assert (names[0], synsets[0], names[-1], synsets[-1]) == ("airplane", "n02691156", "zebra", "n02391049")
