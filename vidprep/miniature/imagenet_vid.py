"""ImageNet VID: one gzip tar of JPEG frames, an XML of boxes for each, and the lists of the challenge."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from vidprep.miniature.plan import Clip, Content, ExpectedSplit, Workshop, make_tar
from vidprep.splits import read_packaged
from vidprep.types import Box, FrameAnnotation

__all__ = ["make"]

TOP = "ILSVRC2015"
SHORT = Clip(video_id="a snippet", num_frames=12, fps=25, width=320, height=180)


@dataclass(frozen=True, kw_only=True)
class _Snippet:
    clip: Clip
    split: str
    group: str
    """Folder between the split and the snippet, of train only."""
    synsets: tuple[str, ...]
    """Of its objects; () in test, whose boxes are not public."""

    @property
    def path(self) -> str:
        return "/".join(part for part in (self.split, self.group, self.clip.video_id) if part)


def make(name: str, out: Path, workshop: Workshop, rng: np.random.Generator) -> Content:
    """Write archives/ and annotations/ below `out`."""
    snippets = _plan(rng)
    synsets = read_packaged(name, "synsets.txt").splitlines()
    boxes: dict[str, tuple[FrameAnnotation, ...]] = {}
    top = workshop.folder / TOP
    for snippet in snippets:
        clip = snippet.clip
        workshop.write_frames(clip, top / "Data" / "VID" / snippet.path, template="{:06d}.JPEG", first_index=0)
        if snippet.synsets:
            boxes[clip.video_id] = _draw_boxes(clip, [synsets.index(synset) for synset in snippet.synsets], rng)
            folder = top / "Annotations" / "VID" / snippet.path
            folder.mkdir(parents=True)
            for frame in boxes[clip.video_id]:
                (folder / f"{frame.frame_index:06d}.xml").write_text(_to_xml(snippet, frame, synsets))
    sets = _image_sets(snippets)
    folder = top / "ImageSets" / "VID"
    folder.mkdir(parents=True)
    for file, text in sets.items():
        (folder / file).write_text(text)
    archives = out / "archives"
    archives.mkdir()
    (archives / "ILSVRC2015_VID.tar.gz").write_bytes(make_tar(workshop.folder, only=[TOP]))
    annotations = out / "annotations"
    annotations.mkdir()
    for file, text in _lists_of_fgfa(snippets).items():
        (annotations / file).write_text(text)
    for file in ("test.txt", "val.txt"):
        (annotations / file).write_text(sets[file])
    return Content(
        annotations=("annotations/VID_train_15frames.txt", "annotations/VID_val_videos.txt", "annotations/test.txt"),
        splits={
            split: _expect([snippet for snippet in snippets if snippet.split == split], workshop, boxes)
            for split in ("train", "val", "test")
        },
        traps={
            "frames counted from 000000, suffix .JPEG": "every snippet",
            "corners in the order xmax, xmin, ymax, ymin": "every XML",
            "right edge of a box equal to the width": "the first object of every snippet, in its last frame",
            "frame without an object": "the second frame of every snippet",
            "objects of one class told apart by their track only": snippets[1].clip.video_id,
            "object that leaves and comes back": snippets[0].clip.video_id,
            "dead snippet": ", ".join(s.clip.video_id for s in snippets if s.clip.flaw == "missing"),
            "image cut short": next(s.clip.video_id for s in snippets if s.clip.flaw == "truncated"),
            "missing image in the middle": next(s.clip.video_id for s in snippets if s.clip.flaw == "gap"),
            "folder without an image": next(s.clip.video_id for s in snippets if s.clip.flaw == "empty"),
            "odd width": next(s.clip.video_id for s in snippets if s.clip.width % 2),
            "train groups of which the snippet's name says nothing": "ILSVRC2015_VID_train_0000 to _0003",
            "test without boxes": next(s.clip.video_id for s in snippets if s.split == "test"),
        },
    )


def _plan(rng: np.random.Generator) -> list[_Snippet]:
    airplane, antelope, panda, zebra = "n02691156", "n02419796", "n02510455", "n02391049"

    def snippet(split: str, number: int, *objects: str, group: int | None = None, shape: Clip = SHORT) -> _Snippet:
        return _Snippet(
            clip=replace(shape, video_id=f"ILSVRC2015_{split}_{number:08d}"),
            split=split,
            group="" if group is None else f"ILSVRC2015_VID_train_{group:04d}",
            synsets=objects,
        )

    first = int(rng.integers(0, 1000)) * 1000
    return [
        snippet("train", first, airplane, group=0),
        snippet("train", first + 1003, panda, panda, group=2, shape=replace(SHORT, num_frames=20)),
        snippet("train", first + 2001, zebra, antelope, group=3, shape=replace(SHORT, width=213, height=240)),
        snippet("train", first + 3000, airplane, group=0, shape=replace(SHORT, flaw="missing")),
        snippet("train", first + 3001, airplane, group=1, shape=replace(SHORT, flaw="truncated")),
        snippet("train", first + 3002, zebra, group=1, shape=replace(SHORT, flaw="gap")),
        snippet("val", first, panda, airplane),
        snippet("val", first + 1, antelope, shape=replace(SHORT, num_frames=17)),
        snippet("val", first + 2, antelope, shape=replace(SHORT, flaw="empty")),
        snippet("test", first),
    ]


def _draw_boxes(clip: Clip, labels: Sequence[int], rng: np.random.Generator) -> tuple[FrameAnnotation, ...]:
    """Boxes that move to the right until they touch the edge in the last frame; none in the second frame."""
    frames = []
    sizes = rng.integers(20, 60, size=(len(labels), 2))
    for index in range(clip.num_frames):
        boxes = []
        for track_id, (label, (width, height)) in enumerate(zip(labels, sizes, strict=True)):
            right = clip.width - (clip.num_frames - 1 - index) * (clip.width - int(width)) // clip.num_frames
            top = int(track_id * 40)
            boxes.append(
                Box(
                    xyxy=(right - int(width), top, right, top + int(height)),
                    label=label,
                    track_id=track_id,
                    is_occluded=index % 3 == 0,
                    is_generated=index % 2 == 1,
                )
            )
        frames.append(
            FrameAnnotation(
                frame_index=index,
                width=clip.width,
                height=clip.height,
                boxes=() if index == 1 else tuple(boxes),
            )
        )
    return tuple(frames)


def _to_xml(snippet: _Snippet, frame: FrameAnnotation, synsets: Sequence[str]) -> str:
    folder = snippet.path.partition("/")[2]
    objects = "".join(
        f"""  <object>
    <trackid>{box.track_id}</trackid>
    <name>{synsets[box.label]}</name>
    <bndbox>
      <xmax>{box.xyxy[2]:g}</xmax>
      <xmin>{box.xyxy[0]:g}</xmin>
      <ymax>{box.xyxy[3]:g}</ymax>
      <ymin>{box.xyxy[1]:g}</ymin>
    </bndbox>
    <occluded>{box.is_occluded:d}</occluded>
    <generated>{box.is_generated:d}</generated>
  </object>
"""
        for box in frame.boxes
    )
    return f"""<annotation>
  <folder>{folder}</folder>
  <filename>{frame.frame_index:06d}</filename>
  <source>
    <database>ILSVRC_2015</database>
  </source>
  <size>
    <width>{frame.width}</width>
    <height>{frame.height}</height>
  </size>
{objects}</annotation>
"""


def _image_sets(snippets: Sequence[_Snippet]) -> dict[str, str]:
    """train_1.txt ... train_30.txt, one a class: its snippets; val.txt and test.txt: every frame and its number."""
    synsets = read_packaged("imagenet_vid", "synsets.txt").splitlines()
    sets = {}
    for number, synset in enumerate(synsets, start=1):
        of_class = [snippet for snippet in snippets if snippet.split == "train" and synset in snippet.synsets]
        sets[f"train_{number}.txt"] = "".join(f"{snippet.path.partition('/')[2]} 1\n" for snippet in of_class)
    for split in ("val", "test"):
        names = [
            f"{snippet.clip.video_id}/{index:06d}"
            for snippet in snippets
            if snippet.split == split
            for index in range(snippet.clip.num_frames)
        ]
        sets[f"{split}.txt"] = "".join(f"{name} {number}\n" for number, name in enumerate(names, start=1))
    return sets


def _lists_of_fgfa(snippets: Sequence[_Snippet]) -> dict[str, str]:
    """The lists by which detectors are trained and tested: some frames of each snippet, and all snippets of val."""
    train, val = [], []
    first = 1
    for snippet in snippets:
        num_frames = snippet.clip.num_frames
        if snippet.split == "train":
            train += [f"{snippet.path} 1 {index} {num_frames}" for index in range(0, num_frames, 3)]
        elif snippet.split == "val":
            val.append(f"{snippet.path} {first} 0 {num_frames}")
            first += num_frames
    return {
        "VID_train_15frames.txt": "\n".join(train) + "\n",
        "VID_val_videos.txt": "\n".join(val) + "\n",
    }


def _expect(
    snippets: Iterable[_Snippet], workshop: Workshop, boxes: dict[str, tuple[FrameAnnotation, ...]]
) -> ExpectedSplit:
    expected = workshop.expect(snippet.clip for snippet in snippets)
    samples = tuple(replace(sample, boxes=boxes.get(sample.video_id, ())) for sample in expected.samples)
    return replace(expected, samples=samples)
