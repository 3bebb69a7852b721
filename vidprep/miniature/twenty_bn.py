"""Something-Something and Jester: a gzip tar cut in parts, labels as JSON (V2) or as `id;name` lines (V1, Jester)."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

import numpy as np

from vidprep.miniature.plan import Clip, Content, Flaw, Workshop, cut, make_tar, make_zip
from vidprep.splits import read_classes

__all__ = ["make"]


@dataclass(frozen=True, kw_only=True)
class _Form:
    """What differs between the three."""

    folder: str
    """Top folder of the archive."""
    parts: str
    """Name of a part, with its number."""
    num_parts: int
    templates: tuple[str, ...]
    """Of the clips; with [brackets] where the official files have them."""
    is_video: bool
    annotations: str
    """Name of an annotation file, with what it holds: labels, train, validation, test."""
    highest_id: int
    """Clips are numbered from 1; published are as many as this."""
    package: str
    """The zip with the labels."""


TEMPLATES = (
    "Holding [something] next to [something]",
    "[Something] falling like a feather or paper",
    "Stacking [number of] [something]",
    "Pulling [something] from left to right",
    "Pulling [something] from right to left",
)
FORMS: Mapping[str, _Form] = MappingProxyType(
    {
        "something_v2": _Form(
            folder="20bn-something-something-v2",
            parts="20bn-something-something-v2-{:02d}",
            num_parts=2,
            templates=TEMPLATES,
            is_video=True,
            annotations="something-something-v2-{}.json",
            highest_id=220_847,
            package="20bn-something-something-download-package-labels.zip",
        ),
        "something_v1": _Form(
            folder="20bn-something-something-v1",
            parts="20bn-something-something-v1-{:02d}",
            num_parts=3,
            templates=tuple(template.replace("[", "").replace("]", "") for template in TEMPLATES),
            is_video=False,
            annotations="something-something-v1-{}.csv",
            highest_id=108_499,
            package="20bn-something-something-v1-download-package-labels.zip",
        ),
        "jester": _Form(
            folder="20bn-jester-v1",
            parts="20bnjester-v1-{:02d}",  # without the hyphen, as Qualcomm names them
            num_parts=3,
            templates=("Swiping Left", "Swiping Right", "Drumming Fingers", "No gesture", "Doing other things"),
            is_video=False,
            annotations="jester-v1-{}.csv",
            highest_id=148_092,
            package="20bn-jester-download-package-labels.zip",
        ),
    }
)
WIDTHS = (427, 132, 176, 321, 240)
"""Of the videos, at 240 pixels of height; of the images as many less as they are lower (100 pixels)."""
FRAME_RATE = 12
SPLIT_FILES = {"train": "train", "val": "validation", "test": "test"}
"""Our names of the splits, and the publisher's."""


@dataclass(frozen=True, kw_only=True)
class _Row:
    clip: Clip
    template: str
    split: str


def make(name: str, out: Path, workshop: Workshop, rng: np.random.Generator) -> Content:
    """Write archives/ and annotations/ below `out`."""
    form = FORMS[name]
    rows = _plan(name, form, rng)
    stray = Clip(video_id=str(rng.integers(230_000, 240_000)), num_frames=20, fps=FRAME_RATE, width=132, height=100)
    for row in rows:
        _write(row.clip, form, workshop)
    _write(stray, form, workshop)
    archives = out / "archives"
    archives.mkdir()
    whole = make_tar(workshop.folder, only=[form.folder])
    for index, part in enumerate(cut(whole, form.num_parts)):
        (archives / form.parts.format(index)).write_bytes(part)
    files = _annotation_files(name, form, rows)
    (archives / form.package).write_bytes(make_zip({f"labels/{key}": text.encode() for key, text in files.items()}))
    annotations = out / "annotations"
    annotations.mkdir()
    for key, text in files.items():
        stem = key.partition(".")[0]
        path = annotations / (form.annotations.format(stem) if stem != "test-answers" else key)
        path.write_bytes(text.encode())
    traps = {
        "one gzip tar cut in parts": f"archives/{form.parts.format(0)} to {form.parts.format(form.num_parts - 1)}",
        "dead video": next(row.clip.video_id for row in rows if row.clip.flaw == "missing"),
        "file of zero bytes" if form.is_video else "folder without an image": next(
            row.clip.video_id for row in rows if row.clip.flaw == "empty"
        ),
        "file without a row in the annotations": stray.video_id,
        "odd width": ", ".join(row.clip.video_id for row in rows if row.clip.width % 2),
        "annotation file without a final newline": "validation",
    }
    if form.is_video:
        traps["templates with [brackets], also around a capital and around a phrase"] = "; ".join(form.templates[1:3])
        traps["no number of frames and no stream duration in the file"] = "every WebM"
    else:
        traps["image cut short"] = next(row.clip.video_id for row in rows if row.clip.flaw == "truncated")
        traps["annotation file with CRLF"] = "validation"
    if name == "jester":
        traps["classes in an order of their own, not sorted"] = "Swiping Left is 0, Doing other things 26"
        traps["parts without the hyphen of the folder"] = f"{form.parts.format(0)} unpacks to {form.folder}"
    if name == "something_v1":
        traps["the same 174 classes as V2 in another order"] = "Holding something is 0"
    return Content(
        annotations=tuple(f"annotations/{form.annotations.format(part)}" for part in ("labels", *SPLIT_FILES.values())),
        splits={split: workshop.expect(row.clip for row in rows if row.split == split) for split in SPLIT_FILES},
        traps=traps,
    )


def _plan(name: str, form: _Form, rng: np.random.Generator) -> list[_Row]:
    classes = read_classes(name)
    ids = rng.choice(np.arange(1, form.highest_id + 1), size=16, replace=False)
    # The publisher's order is by lot, too.
    plan: Sequence[tuple[str, int, Flaw | None]] = (
        ("train", 0, None),
        ("train", 1, None),
        ("train", 2, None),
        ("train", 3, None),
        ("train", 4, "missing"),
        ("train", 0, "empty"),
        ("train", 3, "truncated"),
        ("val", 4, None),
        ("val", 1, None),
        ("val", 2, "missing"),
        ("test", 0, None),
        ("test", 3, None),
    )
    rows = []
    for index, (split, template_index, flaw) in enumerate(plan):
        if form.is_video and flaw == "truncated":
            continue  # a WebM without its end is still one: it plays up to there
        template = form.templates[template_index]
        width = WIDTHS[index % len(WIDTHS)]
        clip = Clip(
            video_id=str(ids[index]),
            labels=() if split == "test" else (classes.index(_class_of(template)),),
            num_frames=int(rng.integers(16, 40)),
            fps=FRAME_RATE,
            width=width if form.is_video else width * 100 // 240,
            height=240 if form.is_video else 100,
        )
        rows.append(_Row(clip=replace(clip, flaw=flaw), template=template, split=split))
    return rows


def _class_of(template: str) -> str:
    return template.replace("[", "").replace("]", "")


def _write(clip: Clip, form: _Form, workshop: Workshop) -> None:
    below = workshop.folder / form.folder
    if form.is_video:
        workshop.write_video(clip, below / f"{clip.video_id}.webm", codec="libvpx-vp9")
    else:
        workshop.write_frames(clip, below / clip.video_id)


def _annotation_files(name: str, form: _Form, rows: Sequence[_Row]) -> dict[str, str]:
    """File name inside the package of labels -> text."""
    of_split = {split: [row for row in rows if row.split == split] for split in SPLIT_FILES}
    answers = "".join(f"{row.clip.video_id};{_class_of(row.template)}\n" for row in of_split["test"])
    if form.is_video:
        texts = {"labels": json.dumps({label: str(index) for index, label in enumerate(read_classes(name))}, indent=0)}
        for split, official in SPLIT_FILES.items():
            entries = [json.dumps(_entry(row), separators=(",", ":")) for row in of_split[split]]
            texts[official] = "[\n" + ",\n".join(entries) + "\n]" + ("" if split == "val" else "\n")
        return {f"{key}.json": text for key, text in texts.items()} | {"test-answers.csv": answers}
    texts = {"labels": "".join(f"{label}\n" for label in read_classes(name))}
    for split, official in SPLIT_FILES.items():
        newline = "\r\n" if split == "val" else "\n"
        lines = [row.clip.video_id + (f";{row.template}" if split != "test" else "") for row in of_split[split]]
        texts[official] = newline.join(lines) + ("" if split == "val" else newline)
    return {f"{key}.csv": text for key, text in texts.items()} | {"test-answers.csv": answers}


def _entry(row: _Row) -> Mapping[str, object]:
    """One object of train.json, validation.json or test.json."""
    if row.split == "test":
        return {"id": row.clip.video_id}
    placeholders = ["vicks vaporub bottle"] * row.template.count("[")
    words = row.template.lower()
    for placeholder in ("[number of]", "[something]"):
        words = words.replace(placeholder, "vicks vaporub bottle")
    return {"id": row.clip.video_id, "label": words, "template": row.template, "placeholders": placeholders}
