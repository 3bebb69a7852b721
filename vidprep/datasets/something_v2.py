"""Something-Something V2: hands acting on objects after 174 templates, one label a clip, WebM files at 12 fps."""

from collections.abc import Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from vidprep.datasets.annotations import (
    Answers,
    Rows,
    is_number,
    line_numbers,
    line_of,
    read_json,
    read_lines,
    read_list,
    read_text,
    split_of_list,
)
from vidprep.errors import UsageError, quote, suggest
from vidprep.splits import Split, read_classes
from vidprep.types import DatasetInfo, FrameFormat, RemoteFile, Video

__all__ = ["INFO", "build_splits"]

QUALCOMM = "https://apigwx-aws.qualcomm.com/qsc/public/v1/api/download/software/dataset/AIDataset"

INFO = DatasetInfo(
    name="something_v2",
    title="Something-Something V2",
    description="Crowd-acted actions of hands on objects, 174 templates, 2 to 6 s, where order in time matters.",
    task="single_label",
    num_classes=174,
    splits={"train": 168_913, "val": 24_777, "test": 27_157},
    video_paths=("20bn-something-something-v2/{video_id}.*", "{split}/{video_id}.*", "**/{video_id}.*"),
    frames=FrameFormat(template="{:05d}.jpg"),
    access="form",
    files=(
        RemoteFile(
            url=(
                "https://softwarecenter.qualcomm.com/api/download/software/dataset/AIDataset/Something-Something-V2/"
                "20bn-something-something-download-package-labels.zip"
            ),
            filename="annotations/20bn-something-something-download-package-labels.zip",
            kind="archive",
            unpack_to="annotations",
        ),
        *(
            RemoteFile(
                url=f"{QUALCOMM}/Something-Something-V2/20bn-something-something-v2-{part:02d}",
                filename=f"archives/20bn-something-something-v2-{part:02d}",
                kind="archive",
            )
            for part in range(2)
        ),
    ),
    archives=(
        "20bn-something-something-v2-??",
        "20bn-something-something-v2-??.zip",
        "20bn-something-something-download-package-labels.zip",
    ),
    flip_pairs=MappingProxyType({86: 87, 87: 86, 93: 94, 94: 93}),
    traps=(
        "A flip changes the class: 86 and 87 (pulling left to right), 93 and 94 (pushing) are swapped.",
        "Templates hold [brackets] that labels.json lacks, with capitals and phrases: [Something], [number of].",
        "The parts are one gzip tar, 2 or 20 of them, some in zips: look at the first bytes, join by number.",
        "WebM gives no frame count and no duration: both are known only by decoding.",
        "Ids, also those of classes in labels.json, are strings of digits.",
        "TAPS' somethingv2_half1 has 87 of the classes under ids of its own, 0 to 86.",
    ),
    instructions=(
        "Sign the research licence at https://www.qualcomm.com/developer/software/something-something-v-2-dataset; put "
        "the parts 20bn-something-something-v2-?? (zipped or not) and the labels zip into one folder; unpacked, the "
        "videos lie in ROOT/20bn-something-something-v2/. Then `vidprep split something_v2 --annotations train.json "
        "--annotations validation.json --data-root ROOT`."
    ),
    homepage="https://www.qualcomm.com/developer/software/something-something-v-2-dataset",
    licence="Qualcomm research licence: internal, non-commercial",
    paper="https://arxiv.org/abs/1706.04261",
)


def build_splits(annotations: Sequence[Path]) -> dict[str, Split]:
    """The splits that the official files, or lists of TAPS (`train/194181 45 105`), hold.

    train.json and validation.json are told apart by their names; test.json gives ids without labels, and
    test-answers.csv (`1420;Throwing something`) labels for them. labels.json is compared with the classes, no more.
    Lists of TAPS' `half1` are read with their own numbers and give the classes of the whole set.

    Raises:
        UsageError: a file is of none of these forms or of another data set; names file, line and reason.
    """
    rows = Rows(INFO, read_classes(INFO.name))
    answers = Answers()
    tests: list[tuple[str, str]] = []
    for path in annotations:
        if read_text(path, expected="JSON or CSV").lstrip().startswith(("{", "[")):
            content, text = read_json(path, name="train.json, validation.json, test.json or labels.json")
            if isinstance(content, dict):
                _check_labels(content, rows.classes, path, text)
            else:
                tests += _read_entries(content, path, text, rows)
        elif ";" in next(read_lines(path))[1]:
            _read_answers(path, rows.classes, answers)
        else:
            _read_list(path, rows)
    answers.add_tests(tests, rows)
    return rows.to_splits()


def _check_labels(content: dict[str, Any], classes: Sequence[str], path: Path, text: str) -> None:
    for index, name in enumerate(classes):
        if str(content.get(name)) != str(index):
            raise UsageError(
                f"{path}, line {line_of(name, text)}: expected {name!r} as class {index}, got "
                f"{quote(content.get(name))}; is it labels.json of Something-Something V2?"
            )
    if len(content) != len(classes):
        raise UsageError(f"{path}: expected {len(classes)} classes, got {len(content)}.")


def _read_entries(content: Any, path: Path, text: str, rows: Rows) -> list[tuple[str, str]]:
    """Take the entries of train.json or validation.json; those without template are test ids, given back."""
    class_index = {name: index for index, name in enumerate(rows.classes)}
    tests: list[tuple[str, str]] = []
    split = ""
    lines = line_numbers(text, r'"id"\s*:\s*"(\d+)"')
    for number, entry in enumerate(content, start=1):
        video_id = entry.get("id") if isinstance(entry, dict) else None
        place = f"{path}, entry {number}"
        if not isinstance(video_id, str) or not is_number(video_id):
            raise UsageError(
                f'{place}: expected {{"id": "78687", "template": ...}} with the id a string, got {quote(entry)}.'
            )
        place = f"{path}, line {lines.get(video_id, 1)}"
        if ("template" in entry) != ("template" in content[0]):
            raise UsageError(f"{place}: {video_id} and the first entry must both have a template (or, in test, none).")
        if "template" not in entry:
            tests.append((video_id, place))
            continue
        template = str(entry["template"])
        name = template.replace("[", "").replace("]", "")
        if name not in class_index:
            raise UsageError(
                f"{place}: {quote(template)} is no template of Something-Something V2; {suggest(name, class_index)}"
            )
        split = split or split_of_list(path)
        rows.add(split, Video(video_id=video_id, labels=(class_index[name],)), place=place, label=template)
    return tests


def _read_answers(path: Path, classes: Sequence[str], answers: Answers) -> None:
    class_index = {name: index for index, name in enumerate(classes)}
    for line, text in read_lines(path):
        video_id, _, name = text.partition(";")
        if not is_number(video_id) or name not in class_index:
            raise UsageError(
                f"{path}, line {line}: expected `id;class` of Something-Something V2, got {quote(text)}; is the file "
                "cut short, or of another data set?"
            )
        answers.add(video_id, class_index[name], place=f"{path}, line {line}")


def _read_list(path: Path, rows: Rows) -> None:
    half = read_classes(INFO.name, "classes_half1.txt")
    is_half = "half1" in path.name
    listed = read_list(path, num_classes=len(half if is_half else rows.classes))
    if not is_half and len(listed) >= 1000 and all(row.labels[0] < len(half) for row in listed):
        raise UsageError(
            f"{path}: all classes are below {len(half)}, as in TAPS' somethingv2_half1, which has numbers of its own; "
            "call the file ...half1... if it is that list."
        )
    for row in listed:
        label = rows.classes.index(half[row.labels[0]]) if is_half else row.labels[0]
        split = split_of_list(path, row.folder)
        rows.add(split, Video(video_id=row.name, labels=(label,)), place=row.place, label=str(row.labels[0]))
    if is_half:
        for split in {split_of_list(path, row.folder) for row in listed}:
            rows.note(split, f"{path}: TAPS' half of the classes; their numbers became those of the whole set.")
