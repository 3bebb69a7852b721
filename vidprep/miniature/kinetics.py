"""Kinetics in CVDF's form: tars of MP4 clips, CSV files of ids and times; and the two sets called Mini-Kinetics."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from types import MappingProxyType

import numpy as np

from vidprep.miniature.plan import Clip, Content, Workshop, make_tar, youtube_id
from vidprep.splits import read_classes

__all__ = ["make"]

CLASSES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "kinetics400": (
            "abseiling",
            "air drumming",
            "hurling (sport)",
            "massaging person's head",
            "passing American football (in game)",
        ),
        # The lower-case a is K600's own.
        "kinetics600": (
            "abseiling",
            "air drumming",
            "passing american football (not in game)",
            "massaging person's head",
            "passing American football (in game)",
        ),
        "kinetics700": (
            "abseiling",
            "air drumming",
            "passing American football (not in game)",
            "massaging person's head",
            "passing American football (in game)",
        ),
        "mini_kinetics": (
            "air drumming",
            "answering questions",
            "shooting goal (soccer)",
            "using remote controller (not gaming)",
            "yoga",
        ),
        "mini_kinetics_xie2018": (
            "abseiling",
            "air drumming",
            "hurling (sport)",
            "tying knot (not on a tie)",
            "tai chi",
        ),
    }
)
"""Those of the clips, plain ones and all kinds of odd ones."""
FOREIGN_CLASS = {"mini_kinetics": "abseiling", "mini_kinetics_xie2018": "answering questions"}
"""A class of Kinetics-400 that is not in the smaller set."""

LANDSCAPE = Clip(video_id="ten seconds", num_frames=100, fps=10, width=340, height=256)
VERTICAL = Clip(video_id="from a telephone", num_frames=100, fps=10, width=256, height=340)
SHORT = Clip(video_id="genuinely short, at the rate of NTSC", num_frames=210, fps=Fraction(30_000, 1001), height=240)

BASE_URL = "https://s3.amazonaws.com/kinetics"


@dataclass(frozen=True, kw_only=True)
class _Row:
    """A clip and its line in the annotation file."""

    clip: Clip
    class_name: str
    youtube_id: str
    start: int
    split: str
    is_foreign: bool = False
    """Of a class that the smaller set leaves out."""


def make(name: str, out: Path, workshop: Workshop, rng: np.random.Generator) -> Content:
    """Write archives/ and annotations/ below `out`."""
    rows = _plan(name, rng)
    edition = name if name.startswith("kinetics") else "kinetics400"
    replaced = next(row for row in rows if row.split == "train" and row.clip.flaw is None)
    stray = Clip(video_id=f"{youtube_id(rng)}_000003_000013")
    for row in rows:
        is_replaced = edition == "kinetics400" and row is replaced
        clip = replace(row.clip, flaw="truncated") if is_replaced else row.clip
        workshop.write_video(clip, _clip_path(workshop.folder, edition, row), has_audio=True)
    workshop.write_video(
        stray,
        _clip_path(workshop.folder, edition, replace(rows[0], clip=stray)),
        has_audio=True,
    )
    archives = out / "archives"
    if edition == "kinetics700":
        _pack_by_class(archives, workshop.folder)
    else:
        _pack_flat(archives, workshop.folder, edition=edition)
    traps = {
        "dead video": next(row.clip.video_id for row in rows if row.clip.flaw == "missing"),
        "file of zero bytes": next(row.clip.video_id for row in rows if row.clip.flaw == "empty"),
        "truncated file (moov atom not found)": next(row.clip.video_id for row in rows if row.clip.flaw == "truncated"),
        "file without a row in the annotations": stray.video_id,
        "class name with an apostrophe or brackets": ", ".join(
            c for c in CLASSES[name] if not c.replace(" ", "").isalpha()
        ),
        "id that begins with -": next(row.clip.video_id for row in rows if row.youtube_id.startswith("-")),
        "id with _ in it": next(row.clip.video_id for row in rows if "_" in row.youtube_id[1:-1]),
        "vertical video": next(row.clip.video_id for row in rows if row.clip.height > row.clip.width),
        "clip shorter than its ten seconds": next(
            row.clip.video_id for row in rows if row.clip.num_frames / row.clip.fps < 10
        ),
        "annotation file with CRLF": "val",
        "annotation file without a final newline": "test",
    }
    if edition == "kinetics400":
        good = workshop.folder / "replacement" / "replacement_for_corrupted_k400" / f"{replaced.clip.video_id}.mp4"
        workshop.write_video(replaced.clip, good, has_audio=True)
        content = make_tar(workshop.folder / "replacement")
        (archives / "replacement_for_corrupted_k400.tgz").write_bytes(content)
        traps["truncated file with a replacement"] = replaced.clip.video_id
        traps["plain tar named .tar.gz"] = "archives/train/part_1.tar.gz"
    if edition == "kinetics600":
        traps["incomplete val.csv beside the complete val.txt"] = "annotations/val.csv"
    if name == "mini_kinetics":
        traps["list of TAPS, with CRLF and a wrong number of frames"] = "annotations/mini_val_videofolder_aug23.txt"
    if name in FOREIGN_CLASS:
        traps["class of Kinetics-400 that the set leaves out"] = FOREIGN_CLASS[name]
    annotations = _write_annotations(name, out / "annotations", rows)
    kept = [row for row in rows if not row.is_foreign]
    splits = dict.fromkeys(row.split for row in kept)
    return Content(
        annotations=annotations,
        splits={split: workshop.expect(row.clip for row in kept if row.split == split) for split in splits},
        traps=traps,
    )


def _plan(name: str, rng: np.random.Generator) -> list[_Row]:
    classes = read_classes(name)
    names = CLASSES[name]

    def row(split: str, class_name: str, shape: Clip = LANDSCAPE, *, start_of_id: str = "") -> _Row:
        is_foreign = class_name not in classes
        name_of_video = youtube_id(rng, start=start_of_id)
        start = int(rng.integers(0, 2000))
        labels = () if split == "test" or is_foreign else (classes.index(class_name),)
        return _Row(
            clip=replace(shape, video_id=f"{name_of_video}_{start:06d}_{start + 10:06d}", labels=labels),
            class_name=class_name,
            youtube_id=name_of_video,
            start=start,
            split=split,
            is_foreign=is_foreign,
        )

    rows = [
        row("train", names[0]),
        row("train", names[3], start_of_id="--"),
        row("train", names[2], start_of_id="a_b"),
        row("train", names[1], VERTICAL),
        row("train", names[4], replace(LANDSCAPE, flaw="missing")),
        row("train", names[0], replace(LANDSCAPE, flaw="empty")),
        row("train", names[1], replace(LANDSCAPE, flaw="truncated")),
        row("val", names[3]),
        row("val", names[4], SHORT),
        row("val", names[0], replace(LANDSCAPE, flaw="missing"), start_of_id="-"),
    ]
    if name in FOREIGN_CLASS:
        rows += [row("train", FOREIGN_CLASS[name]), row("val", FOREIGN_CLASS[name])]
    else:
        rows += [row("test", names[0]), row("test", names[1], start_of_id="-")]
    return rows


def _clip_path(folder: Path, edition: str, row: _Row) -> Path:
    """Flat; of Kinetics-700 in a folder of its class (of test, whose labels are not public, in one for all)."""
    below = row.class_name if edition == "kinetics700" and row.split != "test" else ""
    return folder / row.split / below / f"{row.clip.video_id}.mp4"


def _pack_flat(archives: Path, folder: Path, *, edition: str) -> None:
    """part_0.tar.gz, part_1.tar.gz ... of flat files, and the list of their addresses."""
    number = edition.removeprefix("kinetics")
    for split in sorted(path.name for path in folder.iterdir()):
        target = archives / split
        target.mkdir(parents=True)
        files = sorted(path.name for path in (folder / split).iterdir())
        parts = [files[: len(files) // 2], files[len(files) // 2 :]] if split == "train" else [files]
        addresses = []
        for index, names in enumerate(parts):
            # part_120 of Kinetics-400's training clips was once a plain tar under this name.
            is_gzip = not (edition == "kinetics400" and split == "train" and index == 1)
            content = make_tar(folder / split, is_gzip=is_gzip, only=names)
            (target / f"part_{index}.tar.gz").write_bytes(content)
            addresses.append(f"{BASE_URL}/{number}/{split}/part_{index}.tar.gz\n")
        (target / f"k{number}_{split}_path.txt").write_text("".join(addresses))


def _pack_by_class(archives: Path, folder: Path) -> None:
    """One archive a class, numbered in the alphabetical order of the classes, each a folder of the class's name."""
    classes = read_classes("kinetics700")
    for split in sorted(path.name for path in folder.iterdir()):
        target = archives / split
        target.mkdir(parents=True)
        packed = {}
        if split == "test":
            packed["k700_test_001"] = make_tar(folder / split)
        else:
            for below in sorted(path.name for path in (folder / split).iterdir()):
                number = classes.index(below) + 1
                packed[f"k700_{split}_{number:03d}"] = make_tar(folder / split, only=[below])
        for name, content in packed.items():
            (target / f"{name}.tar.gz").write_bytes(content)
        addresses = [f"{BASE_URL}/700_2020/{split}/{name}.tar.gz\n" for name in packed]
        (target / f"k700_2020_{split}_path.txt").write_text("".join(addresses))


def _write_annotations(name: str, folder: Path, rows: Sequence[_Row]) -> tuple[str, ...]:
    """The annotation files of the edition that the clips are from; the ids of Xie et al. beside them."""
    folder.mkdir(parents=True)
    written = []
    for split in dict.fromkeys(row.split for row in rows):
        of_split = [row for row in rows if row.split == split]
        lines = _annotation_lines(name, of_split)
        newline = "\r\n" if split == "val" else "\n"
        text = newline.join(lines) + ("" if split == "test" else newline)
        file = f"{split}.txt" if name == "kinetics600" and split != "test" else f"{split}.csv"
        (folder / file).write_bytes(text.encode())
        written.append(f"annotations/{file}")
        if file == "val.txt":
            (folder / "val.csv").write_bytes(newline.join(lines[: len(lines) // 2 + 1]).encode())
        if name == "mini_kinetics":
            # As TAPS publishes its lists: -r 5 of ten seconds, CRLF, all clips that it could read.
            listed = [row for row in of_split if row.clip.flaw is None and not row.is_foreign]
            lines = [f"{split}/{row.class_name}/{row.clip.video_id} 52 {row.clip.labels[0]}\r\n" for row in listed]
            (folder / f"mini_{split}_videofolder_aug23.txt").write_bytes("".join(lines).encode())
        if name == "mini_kinetics_xie2018":
            ids = [row.youtube_id for row in of_split if not row.is_foreign]
            (folder / f"{split}_ytid_list.txt").write_text("\n".join(ids) + "\n")
            written.append(f"annotations/{split}_ytid_list.txt")
    return tuple(written)


def _annotation_lines(name: str, rows: Sequence[_Row]) -> list[str]:
    """Header and rows; Kinetics-400 alone quotes labels and has is_cc, and the rows of test have no label."""
    is_400 = name not in ("kinetics600", "kinetics700")
    if rows[0].split == "test":
        return [
            "youtube_id,time_start,time_end,split",
            *(f"{row.youtube_id},{row.start},{row.start + 10},test" for row in rows),
        ]
    lines = ["label,youtube_id,time_start,time_end,split" + (",is_cc" if is_400 else "")]
    for row in rows:
        label = f'"{row.class_name}"' if is_400 and not row.class_name.isalpha() else row.class_name
        lines.append(f"{label},{row.youtube_id},{row.start},{row.start + 10},{row.split}" + (",0" if is_400 else ""))
    return lines
