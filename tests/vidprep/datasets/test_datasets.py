import re
from pathlib import Path

import pytest

from tests.conftest import ROOT
from vidprep import datasets, splits
from vidprep.datasets import DATASETS, build_split, build_splits, class_names, get, load_split
from vidprep.errors import UnknownDataset, UnknownName, UsageError
from vidprep.splits import Split, write_split
from vidprep.types import DatasetInfo, Video

with_classes = pytest.mark.parametrize(
    "info", [info for info in DATASETS.values() if info.num_classes is not None], ids=lambda info: info.name
)


@pytest.mark.parametrize("name", DATASETS)
def test_data_set_is_found_by_its_own_name(name: str) -> None:
    assert get(name).name == name
    assert get(name).splits
    assert get(name).instructions


@with_classes
def test_class_list_has_as_many_classes_as_the_data_set(info: DatasetInfo) -> None:
    classes, nouns = class_names(info)
    assert len(classes) == len(set(classes)) == info.num_classes
    assert len(nouns) == len(set(nouns)) == (info.num_noun_classes or 0)
    assert all(name == name.strip() and name for name in classes + nouns)


@pytest.mark.parametrize("name", sorted(name for name in splits.read_checksums() if name.endswith(".csv")))
def test_shipped_list_has_the_published_number_of_videos_and_labels_in_range(name: str, tmp_path: Path) -> None:
    dataset, file = name.split("/")
    split = load_split(dataset, Path(file).stem, data_root=tmp_path)
    info = get(dataset)
    assert len(split.videos) == info.splits[split.split]
    labels = {label for video in split.videos for label in video.labels}
    assert labels == (set() if info.task == "detection" else set(range(info.num_classes or 0)))


@pytest.mark.parametrize("name", sorted({name.split("/")[0] for name in splits.read_checksums() if ".csv" in name}))
def test_shipped_splits_share_no_video(name: str, tmp_path: Path) -> None:
    ids = [
        {video.video_id for video in load_split(name, split, data_root=tmp_path).videos} for split in get(name).splits
    ]
    assert len(set.union(*ids)) == sum(map(len, ids))


@pytest.mark.parametrize("info", DATASETS.values(), ids=lambda info: info.name)
def test_every_pattern_tells_videos_apart(info: DatasetInfo) -> None:
    for pattern in info.video_paths:
        fields = {"split": "val", "start_seconds": 0}
        assert pattern.format(video_id="a", **fields) != pattern.format(video_id="b", **fields)


@with_classes
def test_a_second_flip_undoes_the_first(info: DatasetInfo) -> None:
    assert set(info.flip_pairs) <= set(range(info.num_classes or 0))
    assert all(info.flip_pairs[flipped] == label for label, flipped in info.flip_pairs.items())


def test_unknown_data_set_names_the_nearest() -> None:
    with pytest.raises(UnknownDataset, match="no data set 'kinetics'; did you mean kinetics"):
        get("kinetics")
    with pytest.raises(
        UnknownDataset, match=r"no data set 'x'; known: activitynet, epic_kitchens, fcvid, folder, .*, toy"
    ):
        load_split("x", "val", data_root=Path())


def test_unknown_split_names_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(UnknownName, match=r"kinetics400 has no split 'vall'; did you mean val\?"):
        load_split("kinetics400", "vall", data_root=tmp_path)
    with pytest.raises(UnknownName, match="toy has no split 'test'"):
        load_split("toy", "test", data_root=tmp_path)
    with pytest.raises(UnknownName, match="activitynet has no split 'validation'; known: test, train, val"):
        build_split("activitynet", "validation", [])


@pytest.mark.parametrize("name", DATASETS)
def test_missing_data_root_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=f"nowhere: no such data root for {name}"):
        load_split(name, "train", data_root=tmp_path / "nowhere")


def test_file_as_data_root_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").touch()
    with pytest.raises(UsageError, match=r"a.mp4: is no folder; toy needs the data root"):
        load_split("toy", "val", data_root=tmp_path / "a.mp4")


@pytest.mark.parametrize("name", ["kinetics400", "activitynet"])
def test_data_root_without_list_says_how_to_make_it(name: str, tmp_path: Path) -> None:
    command = f"`vidprep split {name} --annotations FILE --data-root {tmp_path}`"
    with pytest.raises(UsageError, match=f"no list of the videos of {name}/val yet; .*{command}"):
        load_split(name, "val", data_root=tmp_path)


def test_list_that_the_user_built_is_loaded(tmp_path: Path) -> None:
    videos = (Video(video_id="--0edUL8zmA", labels=(3, 1)),)
    classes = splits.read_classes("activitynet")
    built = Split(dataset="activitynet", split="val", task="multi_label", classes=classes, videos=videos)
    write_split(built, datasets.list_path(tmp_path, "val"))
    assert (tmp_path / "splits" / "val.csv").is_file()
    assert load_split("activitynet", "val", data_root=tmp_path) == built


def test_empty_split_is_refused(tmp_path: Path) -> None:
    path = datasets.list_path(tmp_path, "val")
    path.parent.mkdir()
    path.write_text("video_id,label\n")
    with pytest.raises(UsageError, match=r"kinetics400/val at .* holds no videos"):
        load_split("kinetics400", "val", data_root=tmp_path)


def test_only_some_lists_are_built_from_annotations() -> None:
    with pytest.raises(UsageError, match=r"toy is not built from annotation files \(.* kinetics400, .*, activitynet"):
        build_splits("toy", [Path("a.csv")])
    with pytest.raises(UsageError, match="kinetics400: give at least one annotation file"):
        build_splits("kinetics400", [])


def test_every_trap_of_the_documents_has_its_test_and_every_data_set_its_traps() -> None:
    text = (ROOT / "docs" / "datasets.md").read_text(encoding="utf-8")
    table = text.partition("| data set | trap | test |")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (\S+) \| .+ \| `(test_\w+)` \|$", table, flags=re.MULTILINE)
    assert len(rows) == table.strip().count("\n") > 90  # without the line below the heading: each row names one test
    tests = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
    defined = set(re.findall(r"^def (test_\w+)\(", tests, flags=re.MULTILINE))
    assert {test for _, test in rows} <= defined
    published = set(DATASETS) - {"toy", "toy_detection", "folder"}
    of_group = {"kinetics": "kinetics400"}
    assert {of_group.get(name, name) for name, _ in rows} - {"all", "layouts"} == published


def test_every_data_set_and_every_list_is_described() -> None:
    root = Path(__file__).parent.parent.parent.parent
    docs, provenance = (root / "docs" / "datasets.md").read_text(), (root / "splits" / "README.md").read_text()
    assert [name for name in DATASETS if f"`{name}`" not in docs] == []
    assert [name for name in splits.read_checksums() if f"`{name}`" not in provenance] == []
    assert [name for name in datasets.BUILDERS if f"| {name} |" not in provenance] == []
