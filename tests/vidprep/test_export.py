import csv
import json
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from tests.videos import number_image, read_number, write_numbered_video
from vidprep import cli
from vidprep.datasets import get
from vidprep.errors import UnknownName, UsageError
from vidprep.export import export
from vidprep.extract import extract, frame_size
from vidprep.layouts import LAYOUTS, Layout, describe_frames, find_layout
from vidprep.layouts.lists import check_frames, read_list
from vidprep.probe import probe
from vidprep.splits import Split, read_classes
from vidprep.types import Box, FrameAnnotation, FrameFormat, Task, Video


def make_split(dataset: str, *videos: Video, split: str = "val", classes: Sequence[str] = ()) -> Split:
    tasks: dict[str, Task] = {"activitynet": "multi_label", "fcvid": "multi_label", "imagenet_vid": "detection"}
    names = tuple(classes) or read_classes(dataset)
    return Split(dataset=dataset, split=split, task=tasks.get(dataset, "single_label"), classes=names, videos=videos)


def write_frames(folder: Path, num_frames: int, *, template: str = "{:05d}.jpg", first: int = 1) -> Path:
    folder.mkdir(parents=True)
    for index in range(num_frames):
        Image.fromarray(number_image(index, width=64, height=48)).save(folder / template.format(first + index))
    return folder


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def picture_in(path: Path) -> NDArray[Any]:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def number_in(path: Path) -> int:
    return read_number(picture_in(path))


@dataclass(frozen=True, kw_only=True)
class Case:
    """A line of section 9 of the table of layouts, and the source it is made from."""

    layout: str
    video_id: str
    label: int
    """In the numbers of vidprep."""
    line: str
    """As the code base's list has it, line end included where it is last."""
    folder: str
    first: str
    last: str
    num_frames: int
    """Of the source."""
    fps: int = 12
    """Of the source; 0: it is a folder of frames."""
    split: str = "val"
    size: tuple[int, int] = (64, 48)
    """Of the exported frames."""


AIR = "val/air drumming/7LSJ2Ryv1a8_000000_000010"
CASES = [
    Case(
        layout="taps/activitynet",
        video_id="sJFgo9H6zNo",
        label=57,
        split="train",
        num_frames=139 * 4,
        fps=4,
        line="v_sJFgo9H6zNo,141,57\r\n",
        folder="ActivityNet1_3/Frames_aug23/train_val/v_sJFgo9H6zNo",
        first="image_00001.jpg",
        last="image_00141.jpg",
        size=(467, 350),
    ),
    Case(
        layout="taps/mini_kinetics",
        video_id="7LSJ2Ryv1a8_000000_000010",
        label=0,
        num_frames=300,
        fps=30,
        line="val/air drumming/7LSJ2Ryv1a8_000000_000010 52 0\r\n",
        folder=f"Kinetics_400/mini_kinetics_frames_aug23/{AIR}",
        first="image_00001.jpg",
        last="image_00052.jpg",
        size=(341, 256),
    ),
    Case(
        layout="taps/something_v2",
        video_id="194181",
        label=105,
        split="train",
        num_frames=45,
        line="train/194181 45 105\r\n",
        folder="something2something-v2/frames/train/194181",
        first="00001.jpg",
        last="00045.jpg",
    ),
    Case(
        layout="taps/something_v2",
        video_id="32",
        label=114,
        num_frames=29,
        line="val/32 29 114\r\n",
        folder="something2something-v2/frames/val/32",
        first="00001.jpg",
        last="00029.jpg",
    ),
    Case(
        layout="taps/something_v2:half1",
        video_id="32",
        label=114,
        num_frames=29,
        line="val/32 29 56\r\n",
        folder="something2something-v2/frames/val/32",
        first="00001.jpg",
        last="00029.jpg",
    ),
    Case(
        layout="taps/jester",
        video_id="34870",
        label=24,
        split="train",
        num_frames=37,
        fps=0,
        line="34870 37 24\r\n",
        folder="jester/20bn-jester-v1/34870",
        first="00001.jpg",
        last="00037.jpg",
    ),
    Case(
        layout="uni_adafocus/activitynet",
        video_id="sJFgo9H6zNo",
        label=57,
        num_frames=141,
        line="v_sJFgo9H6zNo,141,57\n",
        folder="frames/v_sJFgo9H6zNo",
        first="image_00001.jpg",
        last="image_00141.jpg",
        size=(480, 360),
    ),
    Case(
        layout="uni_adafocus/fcvid",
        video_id="tajMahal/clip",
        label=57,
        split="test",
        num_frames=139 * 4,
        fps=4,
        line="tajMahal/clip,141,57\n",
        folder="frames/tajMahal/clip",
        first="image_00001.jpg",
        last="image_00141.jpg",
        size=(480, 360),
    ),
    Case(
        layout="uni_adafocus/mini_kinetics",
        video_id="7LSJ2Ryv1a8_000000_000010",
        label=0,
        num_frames=60,
        line=f"images/{AIR} 60 0",
        folder=f"images/{AIR}",
        first="img_00001.jpg",
        last="img_00060.jpg",
        size=(480, 360),
    ),
    Case(
        layout="uni_adafocus/something_v1:adafuse",
        video_id="100218",
        label=31,
        split="train",
        num_frames=42,
        fps=0,
        line="100218 42 31",
        folder="something-something-v1/20bn-something-something-v1/100218",
        first="00001.jpg",
        last="00042.jpg",
    ),
    Case(
        layout="uni_adafocus/something_v1",
        video_id="100218",
        label=31,
        split="train",
        num_frames=42,
        fps=0,
        line="100218 42 134",
        folder="something-something-v1/20bn-something-something-v1/100218",
        first="00001.jpg",
        last="00042.jpg",
    ),
    Case(
        layout="uni_adafocus/something_v2",
        video_id="78687",
        label=19,
        split="train",
        num_frames=54,
        line="78687 54 19",
        folder="something-something-v2/20bn-something-something-v2-frames/78687",
        first="000001.jpg",
        last="000054.jpg",
        size=(341, 256),
    ),
    Case(
        layout="uni_adafocus/jester",
        video_id="34870",
        label=24,
        num_frames=37,
        fps=0,
        line="34870 37 1",
        folder="jester/20bn-jester-v1/34870",
        first="00001.jpg",
        last="00037.jpg",
    ),
    Case(
        layout="uni_adafocus/kinetics400",
        video_id="-huT_p-r_zA_001989_001999",
        label=196,
        num_frames=30,
        line="massaging_persons_head/-huT_p-r_zA_001989_001999 30 196",
        folder="kinetics/images/massaging_persons_head/-huT_p-r_zA_001989_001999",
        first="img_00001.jpg",
        last="img_00030.jpg",
        size=(441, 331),
    ),
    Case(
        layout="tam/kinetics400",
        video_id="video_1",
        label=5,
        num_frames=300,
        fps=30,
        line="frames/video_1 300 5",
        folder="k400/frames/video_1",
        first="img_00001.png",
        last="img_00300.png",
    ),
    Case(
        layout="tam/kinetics600",
        video_id="yq_M1PMw2hY_000038_000048",
        label=0,
        num_frames=20,
        line="frames/yq_M1PMw2hY_000038_000048 20 0",
        folder="k600/frames/yq_M1PMw2hY_000038_000048",
        first="img_00001.jpg",
        last="img_00020.jpg",
    ),
    Case(
        layout="tam/something_v1",
        video_id="100218",
        label=31,
        num_frames=42,
        fps=0,
        line="100218 42 134",
        folder="sth-v1/20bn-something-something-v1/100218",
        first="00001.jpg",
        last="00042.jpg",
    ),
    Case(
        layout="tam/something_v2",
        video_id="78687",
        label=19,
        num_frames=54,
        line="78687 54 19",
        folder="sth-v2/sth-v2-frames/78687",
        first="img_00001.png",
        last="img_00054.png",
    ),
    Case(
        layout="tam/jester",
        video_id="34870",
        label=24,
        num_frames=37,
        fps=0,
        line="34870 37 1",
        folder="jester/20bn-jester-v1/34870",
        first="00001.jpg",
        last="00037.jpg",
    ),
    Case(
        layout="rgtp/kinetics400",
        video_id="0wR5jVB-WPk_000417_000427",
        label=0,
        num_frames=25,
        fps=25,
        line="abseiling,0wR5jVB-WPk,417,427,val,0\n",
        folder="kinetics400/val/frames_224_25/0wR5jVB-WPk_000417_000427",
        first="001.jpg",
        last="025.jpg",
        size=(299, 224),
    ),
    Case(
        layout="mmaction2/kinetics400",
        video_id="-huT_p-r_zA_001989_001999",
        label=196,
        num_frames=30,
        line="massaging_person's_head/-huT_p-r_zA_001989_001999 30 196\n",
        folder="data/kinetics400/rawframes_val/massaging_person's_head/-huT_p-r_zA_001989_001999",
        first="img_00001.jpg",
        last="img_00030.jpg",
        size=(341, 256),
    ),
    Case(
        layout="mmaction2/activitynet",
        video_id="sJFgo9H6zNo",
        label=1,
        num_frames=20,
        line="v_sJFgo9H6zNo 20 188\n",
        folder="data/ActivityNet/rawframes/v_sJFgo9H6zNo",
        first="img_00000.jpg",
        last="img_00019.jpg",
        size=(341, 256),
    ),
]


def layout_of(name: str) -> Layout:
    code, _, rest = name.partition("/")
    dataset, _, variant = rest.partition(":")
    return find_layout(code, dataset, variant)


def make_source(case: Case, folder: Path) -> tuple[Path, FrameFormat | None]:
    if case.fps == 0:
        return write_frames(folder / case.video_id, case.num_frames), FrameFormat(fps=12, template="{:05d}.jpg")
    path = folder / f"{case.video_id.rpartition('/')[2]}.mp4"
    return write_numbered_video(path, num_frames=case.num_frames, fps=case.fps, width=64, height=48), None


@pytest.mark.parametrize("case", CASES, ids=[case.layout for case in CASES])
def test_list_lines_and_frame_names_are_those_of_the_code_base(case: Case, tmp_path: Path) -> None:
    layout = layout_of(case.layout)
    source, delivered = make_source(case, tmp_path)
    split = make_split(layout.dataset, Video(video_id=case.video_id, labels=(case.label,)), split=case.split)
    out = tmp_path / "out"
    report = export(split, {case.video_id: source}, layout=layout, out=out, delivered=delivered)
    assert not report.faults
    assert (
        report.list_file.read_bytes().decode().removeprefix("label,youtube_id,time_start,time_end,split,is_cc\n")
        == case.line
    )
    names = names_in(out / case.folder)
    assert (names[0], names[-1]) == (case.first, case.last)
    assert len(names) == report.num_frames
    assert picture_in(out / case.folder / case.first).shape[1::-1] == case.size
    assert number_in(out / case.folder / case.first) == 0
    assert number_in(out / case.folder / case.last) == case.num_frames - 1
    if layout.class_file:
        assert (out / layout.class_file).is_file()
    if layout.write_list is None:
        listed = read_list(report.list_file, layout, split=case.split, root=out, classes=split.classes)
        assert listed.split.videos == split.videos
        assert [(row.num_frames, row.source) for row in listed.rows] == [(len(names), out / case.folder)]
        assert check_frames(listed) == ()


ALL_LAYOUTS = [layout for layouts in LAYOUTS.values() for layout in layouts]
COVERED = {case.layout for case in CASES}


@pytest.mark.parametrize(
    "layout",
    [layout for layout in ALL_LAYOUTS if layout.write_list is None and layout.name not in COVERED],
    ids=lambda layout: layout.name,
)
def test_every_other_layout_reads_back_what_it_wrote(layout: Layout, tmp_path: Path) -> None:
    split_name = next(iter(layout.splits))
    is_file = layout.dataset == "folder" and layout.frames is None
    video_id = "run/a.mp4" if is_file else "0wR5jVB-WPk_000417_000427"
    is_delivered = layout.frames is not None and get(layout.dataset).media == "frames"
    delivered = FrameFormat(template="{:05d}.jpg") if is_delivered else None
    if delivered is not None:
        source = write_frames(tmp_path / "frames", 12)
    else:
        source = write_numbered_video(tmp_path / "0wR5jVB-WPk_000417_000427.mp4", num_frames=12)
    split = make_split(
        layout.dataset,
        Video(video_id=video_id, labels=(0,)),
        split=split_name,
        classes=("walk", "run") if layout.dataset == "folder" else (),
    )
    out = tmp_path / "out"
    report = export(split, {video_id: source}, layout=layout, out=out, delivered=delivered)
    assert report.faults == ()
    listed = read_list(report.list_file, layout, split=split_name, root=out, classes=split.classes)
    assert [video.labels for video in listed.split.videos] == [(0,)]
    assert [video.video_id.partition("@")[0] for video in listed.split.videos] == [video_id]
    assert check_frames(listed) == ()


def test_five_frames_per_second_mean_52_or_50_of_ten_seconds(tmp_path: Path) -> None:
    path = write_numbered_video(tmp_path / "a.mp4", num_frames=300, fps=30, width=64, height=48)
    counts: dict[Literal["output", "filter"], int] = {"output": 52, "filter": 50}
    for rate_mode, expected in counts.items():
        layout = find_layout("taps", "mini_kinetics")
        assert layout.frames is not None
        changed = replace(layout, frames=replace(layout.frames, rate_mode=rate_mode))
        split = make_split("mini_kinetics", Video(video_id="a", labels=(0,)))
        report = export(split, {"a": path}, layout=changed, out=tmp_path / rate_mode)
        assert report.list_file.read_text().split()[-2:] == [str(expected), "0"]


def test_sta_lists_whole_paths_with_one_space(tmp_path: Path) -> None:
    path = write_numbered_video(tmp_path / "0wR5jVB-WPk_000417_000427.mp4", num_frames=30)
    split = make_split("kinetics400", Video(video_id=path.stem, labels=(0,)), Video(video_id="gone", labels=(1,)))
    out = tmp_path / "k400"
    report = export(split, {path.stem: path}, layout=find_layout("sta", "kinetics400"), out=out)
    assert (out / "val.csv").read_text() == f"{out}/val/abseiling/0wR5jVB-WPk_000417_000427.mp4 0\n"
    assert (out / "test.csv").read_bytes() == (out / "val.csv").read_bytes()
    assert (out / "val/abseiling" / path.name).samefile(path)
    assert [fault.video_id for fault in report.faults] == ["gone"]
    listed = read_list(out / "val.csv", find_layout("sta", "kinetics400"), split="val", root=out, classes=split.classes)
    assert listed.split.videos == split.videos[:1]


def test_sta_gets_something_v2_as_mp4_of_height_240(tmp_path: Path) -> None:
    path = write_numbered_video(
        tmp_path / "78687.webm", num_frames=24, fps=12, width=107, height=60, codec="libvpx-vp9"
    )
    split = make_split("something_v2", Video(video_id="78687", labels=(19,)))
    out = tmp_path / "ssv2"
    export(split, {"78687": path}, layout=find_layout("sta", "something_v2"), out=out)
    assert (out / "val.csv").read_text() == f"{out}/78687.mp4 19\n" == (out / "test.csv").read_text()
    facts = probe(out / "78687.mp4")
    assert (facts.num_frames, facts.width, facts.height, facts.codec) == (24, 428, 240, "h264")
    assert facts.fps == pytest.approx(12, rel=1e-3)  # WebM stores milliseconds


def test_sta_refuses_a_path_with_a_space(tmp_path: Path) -> None:
    split = make_split("kinetics400", Video(video_id="a", labels=(0,)))
    with pytest.raises(
        UsageError, match=r"my data/val/abseiling/a\.mp4'.* ends a path at the first space .*choose an --out"
    ):
        export(split, {}, layout=find_layout("sta", "kinetics400"), out=tmp_path / "my data")


def test_sta_leaves_out_files_that_its_loader_would_replace_in_silence(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(b"x" * 1023)
    split = make_split("kinetics400", Video(video_id="a", labels=(0,)))
    report = export(split, {"a": tmp_path / "a.mp4"}, layout=find_layout("sta", "kinetics400"), out=tmp_path / "out")
    assert "has 1023 bytes, which is no video" in report.faults[0].reason
    assert report.num_videos == 0


def test_tam_videos_are_listed_with_the_frames_that_decode(tmp_path: Path) -> None:
    path = write_numbered_video(tmp_path / "0wR5jVB-WPk_000417_000427.mp4", num_frames=30)
    split = make_split("kinetics400", Video(video_id=path.stem, labels=(0,)))
    layout = find_layout("tam", "kinetics400", "videos")
    report = export(split, {path.stem: path}, layout=layout, out=tmp_path / "out")
    assert report.list_file.read_text() == f"val/part_0/{path.name} 30 0"
    listed = read_list(report.list_file, layout, split="val", root=tmp_path / "out", classes=split.classes)
    assert listed.split.videos == split.videos
    assert check_frames(listed) == ()


def test_rgtp_gets_markers_and_labels_quoted_as_in_the_official_file(tmp_path: Path) -> None:
    path = write_numbered_video(tmp_path / "a.mp4", num_frames=10, fps=25)
    video = Video(video_id="--nQbRBEz2s_000104_000114", labels=(1,))
    out = tmp_path / "out"
    export(make_split("kinetics400", video), {video.video_id: path}, layout=find_layout("rgtp", "kinetics400"), out=out)
    folder = out / "kinetics400/val"
    assert (folder / "labels.csv").read_text().splitlines()[1] == '"air drumming",--nQbRBEz2s,104,114,val,0'
    assert [(folder / name).stat().st_size for name in ("downloaded", "unpacked", "decoded_224_25")] == [0, 0, 0]


def test_rgtp_calls_clips_of_epic_by_their_row_even_when_one_is_missing(tmp_path: Path) -> None:
    path = write_numbered_video(tmp_path / "P01_11.MP4", num_frames=90, fps=30)
    rows = [("P01_11", 0.0, 1.89, "P01_11_0"), ("P01_12", 0.0, 1.0, "P01_12_0"), ("P01_11", 1.0, 2.0, "P01_11_1")]
    split = Split(
        dataset="epic_kitchens",
        split="val",
        task="verb_noun",
        classes=("take", "put"),
        noun_classes=("tap", "spoon", "plate"),
        videos=tuple(
            Video(video_id=name, labels=(0, 2), start_seconds=start, end_seconds=end, segment_id=segment)
            for name, start, end, segment in rows
        ),
    )
    out = tmp_path / "out"
    report = export(split, {"P01_11": path}, layout=find_layout("rgtp", "epic_kitchens"), out=out)
    assert [fault.video_id for fault in report.faults] == ["P01_12_0"]
    folder = out / "epic_kitchens/validation/frames"
    assert names_in(folder) == ["00000", "00002"]
    assert (len(names_in(folder / "00000")), number_in(folder / "00000/0001.jpg")) == (57, 0)
    assert (len(names_in(folder / "00002")), number_in(folder / "00002/0001.jpg")) == (30, 30)
    with (out / "epic_kitchens/EPIC_100_validation.csv").open() as lines:
        assert lines.readlines()[1] == (
            "P01_11_0,P01,P01_11,,00:00:00.00,00:00:01.89,1,113,,take,0,plate,2,['plate'],[2]\n"
        )
        lines.seek(0)
        assert [row["verb_class"] for row in csv.DictReader(lines)] == ["0", "0", "0"]


def test_rgtp_gets_vid_frames_by_digits_and_coco_boxes_with_categories_from_1(tmp_path: Path) -> None:
    source = write_frames(tmp_path / "ILSVRC2015_val_00030000", 2, template="{:06d}.JPEG", first=0)
    boxes = [
        FrameAnnotation(
            frame_index=index,
            width=64,
            height=48,
            boxes=(Box(xyxy=(1, 2, 11, 22), label=12, track_id=0),) * (1 - index),
        )
        for index in range(2)
    ]
    split = make_split("imagenet_vid", Video(video_id=source.name))
    out = tmp_path / "out"
    export(
        split,
        {source.name: source},
        layout=find_layout("rgtp", "imagenet_vid"),
        out=out,
        delivered=FrameFormat(template="{:06d}.JPEG", first_index=0),
        read_boxes=lambda video: boxes,
    )
    assert names_in(out / "vid/vid_val/frames/00030000") == ["000000.jpg", "000001.jpg"]
    labels = json.loads((out / "vid/vid_val/labels.json").read_text())
    assert labels["images"][1]["file_name"] == "ILSVRC2015_val_00030000_000001.JPEG"
    assert [(box["image_id"], box["bbox"], box["category_id"]) for box in labels["annotations"]] == [
        (1, [1, 2, 10, 20], 13)
    ]


def test_videos_of_several_classes_are_listed_as_each_code_base_takes_them(tmp_path: Path) -> None:
    path = write_numbered_video(tmp_path / "a.mp4", num_frames=12, fps=12)
    split = make_split("activitynet", Video(video_id="a", labels=(60, 57)))
    taps = export(split, {"a": path}, layout=find_layout("taps", "activitynet"), out=tmp_path / "taps")
    assert taps.list_file.read_text().strip().split(",")[2:] == ["60"]
    assert "1 videos of several classes are listed with the first" in taps.notes[0]
    uni = export(split, {"a": path}, layout=find_layout("uni_adafocus", "activitynet"), out=tmp_path / "uni")
    assert uni.list_file.read_text() == "v_a,12,57,60\n"
    too_many = make_split("fcvid", Video(video_id="a", labels=(1, 2, 3, 4)), split="train")
    report = export(too_many, {"a": path}, layout=find_layout("uni_adafocus", "fcvid"), out=tmp_path / "fcvid")
    assert [fault.reason for fault in report.faults] == ["has 4 classes; uni_adafocus takes 3 and stops at more"]


def test_classes_that_a_layout_lacks_are_left_out_and_counted(tmp_path: Path) -> None:
    path = write_numbered_video(tmp_path / "a.mp4", num_frames=5)
    videos = (Video(video_id="a", labels=(105,)), Video(video_id="b", labels=(0,)))
    report = export(
        make_split("something_v2", *videos),
        {"a": path, "b": path},
        layout=find_layout("taps", "something_v2", "half1"),
        out=tmp_path / "out",
    )
    assert report.list_file.read_text() == "val/b 5 0\n"
    assert "1 videos of classes that taps/something_v2:half1 does not have" in report.notes[0]


def test_a_second_run_makes_nothing_again_and_mends_what_failed(tmp_path: Path) -> None:
    path = write_numbered_video(tmp_path / "a.mp4", num_frames=12)
    damaged = tmp_path / "b.mp4"
    damaged.write_bytes(path.read_bytes()[:900])
    split = make_split("something_v2", Video(video_id="a", labels=(0,)), Video(video_id="b", labels=(1,)))
    layout = find_layout("taps", "something_v2")
    paths = {"a": path, "b": damaged}
    first = export(split, paths, layout=layout, out=tmp_path / "out")
    assert ([fault.video_id for fault in first.faults], first.num_made) == (["b"], 1)
    assert first.list_file.read_text() == "val/a 12 0\n"
    damaged.write_bytes(path.read_bytes())
    second = export(split, paths, layout=layout, out=tmp_path / "out")
    assert (second.num_videos, second.num_made, second.faults) == (2, 1, ())
    assert second.list_file.read_bytes() == b"val/a 12 0\r\nval/b 12 1\r\n"
    third = export(split, paths, layout=layout, out=tmp_path / "out", workers=2)
    assert (third.num_made, third.list_file.read_bytes()) == (0, second.list_file.read_bytes())
    assert not list((tmp_path / "out/.vidprep").glob("*.part"))


def test_variants_share_frames_and_splits_share_a_folder(tmp_path: Path) -> None:
    path = write_numbered_video(tmp_path / "a.mp4", num_frames=12)
    split = make_split("something_v2", Video(video_id="a", labels=(0,)))
    for variant, made in (("", 1), ("half1", 0)):
        layout = find_layout("taps", "something_v2", variant)
        assert export(split, {"a": path}, layout=layout, out=tmp_path / "out").num_made == made


def test_frames_that_no_export_made_are_refused(tmp_path: Path) -> None:
    write_frames(tmp_path / "out/something2something-v2/frames/val/a", 3)
    split = make_split("something_v2", Video(video_id="a", labels=(0,)))
    with pytest.raises(UsageError, match=r"val/a: is there already, and no `vidprep export` recorded .*import-list"):
        export(split, {}, layout=find_layout("taps", "something_v2"), out=tmp_path / "out")


def test_a_frame_that_vanished_from_an_export_is_a_fault(tmp_path: Path) -> None:
    path = write_numbered_video(tmp_path / "a.mp4", num_frames=12)
    split = make_split("something_v2", Video(video_id="a", labels=(0,)))
    layout = find_layout("taps", "something_v2")
    export(split, {"a": path}, layout=layout, out=tmp_path / "out")
    (tmp_path / "out/something2something-v2/frames/val/a/00007.jpg").unlink()
    report = export(split, {"a": path}, layout=layout, out=tmp_path / "out")
    assert "00007.jpg is missing; remove the folder" in report.faults[0].reason


def test_extracted_frames_are_linked_when_their_settings_agree(tmp_path: Path) -> None:
    path = write_numbered_video(tmp_path / "a.mp4", num_frames=30)
    split = make_split("mini_kinetics", Video(video_id="a", labels=(0,)))
    layout = find_layout("taps", "mini_kinetics")
    assert layout.frames is not None
    same = FrameFormat(fps=5, rate_mode="output", short_side=256, jpeg_quality=95, template="img_{:04d}.jpg")
    extract(split, {"a": path}, out=tmp_path / "same", settings=same)
    report = export(split, {"a": path}, layout=layout, out=tmp_path / "linked", frames_from=tmp_path / "same")
    assert (report.num_linked, report.num_made) == (1, 0)
    frames = tmp_path / "linked" / layout.base / "val/air drumming/a"
    assert (frames / "image_00001.jpg").samefile(tmp_path / "same/a/img_0001.jpg")
    extract(split, {"a": path}, out=tmp_path / "other", settings=FrameFormat(fps=5, short_side=256, jpeg_quality=95))
    report = export(split, {"a": path}, layout=layout, out=tmp_path / "made", frames_from=tmp_path / "other")
    assert (report.num_linked, report.num_made) == (0, 1)
    assert "rate_mode was filter, now output" in report.notes[0]
    assert names_in(tmp_path / "made" / layout.base / "val/air drumming/a") == names_in(frames)


def test_a_hole_in_delivered_frames_is_a_fault_and_flow_beside_them_is_not_counted(tmp_path: Path) -> None:
    write_frames(tmp_path / "1", 5)
    write_frames(tmp_path / "2", 5)
    (tmp_path / "1/00003.jpg").unlink()
    (tmp_path / "2/x_00001.jpg").write_bytes(b"flow")
    split = make_split("jester", Video(video_id="1", labels=(0,)), Video(video_id="2", labels=(0,)))
    report = export(
        split,
        {"1": tmp_path / "1", "2": tmp_path / "2"},
        layout=find_layout("taps", "jester"),
        out=tmp_path / "out",
        delivered=FrameFormat(fps=12, template="{:05d}.jpg"),
    )
    assert [(fault.video_id, "00003.jpg is missing" in fault.reason) for fault in report.faults] == [("1", True)]
    assert report.list_file.read_text() == "2 5 0\n"
    assert names_in(tmp_path / "out/jester/20bn-jester-v1/2")[0] == "00001.jpg"


def test_a_delivered_frame_that_is_cut_short_is_a_fault(tmp_path: Path) -> None:
    last = write_frames(tmp_path / "1", 5) / "00005.jpg"
    last.write_bytes(last.read_bytes()[:-40])
    report = export(
        make_split("jester", Video(video_id="1", labels=(0,))),
        {"1": tmp_path / "1"},
        layout=find_layout("taps", "jester"),
        out=tmp_path / "out",
        delivered=FrameFormat(fps=12, template="{:05d}.jpg"),
    )
    assert "00005.jpg: is damaged" in report.faults[0].reason


@pytest.mark.parametrize(
    ("size", "height", "expected"),
    [((340, 256), 360, (478, 360)), ((320, 568), 360, (203, 360)), ((340, 256), 331, (440, 331))],
)
def test_scaling_to_a_height_is_not_scaling_the_short_side(
    size: tuple[int, int], height: int, expected: tuple[int, int]
) -> None:
    assert frame_size(*size, None, to_height=height) == expected
    assert frame_size(320, 568, 350) == (350, 621)


@pytest.mark.parametrize(
    ("video", "layout", "sentence"),
    [
        (Video(video_id="a,b", labels=(0,)), "taps/activitynet", r"holds ',', which separates the columns of taps"),
        (Video(video_id="a"), "taps/mini_kinetics", r"a has no label; the lists of taps need one each"),
        (Video(video_id="../../a", labels=(0,)), "taps/jester", r"would lie outside .*20bn-jester-v1"),
        (Video(video_id="a\nb", labels=(0,)), "taps/jester", r"holds a line break"),
        (Video(video_id="short", labels=(0,)), "rgtp/kinetics400", r"a clip of Kinetics is called"),
        (Video(video_id="a b", labels=(0,)), "mmaction2/kinetics400", r"mmaction2 ends a path at the first space"),
    ],
)
def test_what_would_break_a_list_is_refused(video: Video, layout: str, sentence: str, tmp_path: Path) -> None:
    chosen = layout_of(layout)
    source = write_numbered_video(tmp_path / "a.mp4", num_frames=5)
    with pytest.raises(UsageError, match=sentence):
        export(make_split(chosen.dataset, video), {video.video_id: source}, layout=chosen, out=tmp_path / "out")


def test_two_segments_of_one_video_do_not_share_a_folder(tmp_path: Path) -> None:
    videos = [Video(video_id="a", labels=(0,), start_seconds=start, end_seconds=start + 1) for start in (0.0, 1.0)]
    with pytest.raises(UsageError, match=r"a and a would both go to .*v_a; export whole videos"):
        export(make_split("activitynet", *videos), {}, layout=find_layout("taps", "activitynet"), out=tmp_path)


def test_unknown_layouts_name_the_known_ones() -> None:
    with pytest.raises(UnknownName, match=r"no layout 'tap'; did you mean .*taps"):
        find_layout("tap", "jester")
    with pytest.raises(UsageError, match="sta has no layout for 'jester'; it has kinetics400, something_v2"):
        find_layout("sta", "jester")
    with pytest.raises(UnknownName, match=r"taps/something_v2 has no variant 'x'; it has \(none\), half1"):
        find_layout("taps", "something_v2", "x")


def test_every_layout_is_found_by_its_name_and_described_as_it_is() -> None:
    layouts = [layout for of_code in LAYOUTS.values() for layout in of_code]
    names = [layout.name for layout in layouts]
    assert len(set(names)) == len(names)
    assert all(layout_of(name).name == name for name in names)
    lines = (Path(__file__).parents[2] / "docs" / "layouts.md").read_text().splitlines()
    assert [line for line in lines if line.startswith("| `")] == [row_of_table(layout) for layout in layouts]


def row_of_table(layout: Layout) -> str:
    """A layout as docs/layouts.md describes it."""
    if layout.frames is None:
        how = "video files" if layout.video_height is None else f"MP4, height {layout.video_height}"
    elif get(layout.dataset).media == "frames":
        how = f"as delivered, {layout.frames.template.format(layout.frames.first_index)}"
    else:
        how = describe_frames(layout.frames)
    separator = {" ": "space", ",": "comma"}[layout.separators[0]]
    end = ("CRLF" if layout.line_end == "\r\n" else "LF") + ("" if layout.has_final_newline else ", none at the end")
    line = f"{' '.join(layout.columns)}; {separator}; {end}" if layout.write_list is None else "official form"
    order = {"own": "official order", "sorted": "by name"}.get(layout.class_order, f"`{layout.class_order}`")
    classes = f"{order}, `{layout.class_file}`" if layout.class_file else order
    place = "/".join(part for part in (layout.base, layout.path) if part)
    return f"| `{layout.name}` | `{place}` | {how} | `{layout.list_file}` | {line} | {classes} |"


@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="needs the ffmpeg program")
@pytest.mark.parametrize(
    ("name", "video_id", "recipe"),
    [
        ("taps/mini_kinetics", "a", "-vf scale=256:256:force_original_aspect_ratio=increase -r 5"),
        (
            "rgtp/kinetics400",
            "0wR5jVB-WPk_000417_000427",
            "-vf scale=224:224:force_original_aspect_ratio=increase -r 25",
        ),
        ("uni_adafocus/something_v2", "1", "-vf scale=-1:256"),
    ],
)
def test_frames_are_those_of_the_published_command(name: str, video_id: str, recipe: str, tmp_path: Path) -> None:
    layout = layout_of(name)
    path = write_numbered_video(tmp_path / "a.mp4", num_frames=50, fps=30, width=96, height=128)
    export(
        make_split(layout.dataset, Video(video_id=video_id, labels=(0,))), {video_id: path}, layout=layout, out=tmp_path
    )
    [record] = (tmp_path / ".vidprep").glob("*.json")
    assert json.loads(record.read_text())["layout"] == name
    (tmp_path / "theirs").mkdir()
    command = [
        "ffmpeg",
        "-v",
        "error",
        "-i",
        str(path),
        *recipe.split(),
        "-q:v",
        "2",
        str(tmp_path / "theirs/%05d.jpg"),
    ]
    subprocess.run(command, check=True)
    [ours] = [folder for folder in tmp_path.rglob(video_id) if folder.is_dir()]
    assert [number_in(ours / file) for file in names_in(ours)] == [
        number_in(tmp_path / "theirs" / file) for file in names_in(tmp_path / "theirs")
    ]
    assert picture_in(next(ours.iterdir())).shape == picture_in(tmp_path / "theirs/00001.jpg").shape


def test_what_a_killed_run_left_half_filled_is_removed(tmp_path: Path) -> None:
    path = write_numbered_video(tmp_path / "a.mp4", num_frames=12)
    half = tmp_path / "out/.vidprep/taps-something_v2.part/1-0123"
    half.mkdir(parents=True)
    (half / "00001.jpg").write_bytes(b"half")
    split = make_split("something_v2", Video(video_id="a", labels=(0,)))
    export(split, {"a": path}, layout=find_layout("taps", "something_v2"), out=tmp_path / "out")
    assert names_in(tmp_path / "out/.vidprep") == ["taps-something_v2.json"]


def call(*arguments: object) -> int:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["vidprep", *map(str, arguments)])
        return cli.main()


def test_the_command_line_exports_and_reads_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root, out, back = tmp_path / "root", tmp_path / "out", tmp_path / "back"
    (root / "splits").mkdir(parents=True)
    (root / "splits/val.csv").write_text("video_id,label\n7LSJ2Ryv1a8_000000_000010,0\nDcwyDVypfYg_000000_000010,0\n")
    (root / "val").mkdir()
    write_numbered_video(root / "val/7LSJ2Ryv1a8_000000_000010.mp4", num_frames=30)
    arguments = ["--layout", "taps", "--split", "val", "--workers", 1]
    assert call("export", "mini_kinetics", *arguments, "--data-root", root, "--out", out) == 1
    captured = capsys.readouterr()
    assert "mini_val_videofolder_aug23.txt: 1 videos, 7 frames; 1 made now, 0 linked" in captured.out
    assert "1 of 2 videos are not in the list:\n  DcwyDVypfYg_000000_000010: no file found for it" in captured.out
    list_file = out / "data/kinetics/mini_val_videofolder_aug23.txt"
    given = ["import-list", list_file, "--dataset", "mini_kinetics", *arguments, "--root", out, "--data-root", back]
    assert call(*given, "--copy-frames") == 0
    assert (back / "splits/val.csv").read_text() == "video_id,label\n7LSJ2Ryv1a8_000000_000010,0\n"
    shards = ["shard", "-d", "mini_kinetics", "--data-root", back, "-s", "val", "--from", "frames", "-w", 1]
    assert call(*shards, "--out", tmp_path / "shards") == 0
    assert "1 samples in 1 shards" in capsys.readouterr().out
    assert call("export", "mini_kinetics", "--layout", "sta", "--data-root", root, "--split", "val", "--out", out) == 2
    assert "sta has no layout for 'mini_kinetics'" in capsys.readouterr().err
