import json
import shutil
from pathlib import Path

import pytest

from tests.vidmodels.shards import TINY, write_tiny_shards
from tests.vidprep.load.folders import numbered_sources, write_shard_folder
from vidmodels.data import known_classes, open_split, open_test_split
from vidmodels.recipes import load_recipe
from vidprep.errors import UnknownName, UsageError
from vidprep.types import Video


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_shards(tmp_path_factory.mktemp("tiny"))


def test_training_takes_one_clip_and_testing_all_views(shards: Path) -> None:
    recipe = load_recipe("taps/toy", [*TINY, "eval.num_clips=2", "eval.num_crops=3"])
    assert open_split(recipe, shards, "train", train=True)[0].frames.shape == (1, 4, 3, 32, 32)
    assert open_split(recipe, shards, "val", train=False)[0].frames.shape == (1, 4, 3, 32, 32)
    assert open_test_split(recipe, shards, "val")[0].frames.shape == (6, 4, 3, 32, 32)


def test_shards_of_another_data_set_are_refused(shards: Path) -> None:
    with pytest.raises(
        UsageError,
        match=r"holds numbers \(4 classes\), but recipe toy is for toy \(8 classes\); .*--set data\.dataset=numbers",
    ):
        open_split(load_recipe("taps/toy"), shards, "val", train=False)


def test_shards_of_another_number_of_classes_are_refused(shards: Path) -> None:
    recipe = load_recipe("taps/toy", [*TINY, "data.num_classes=5"])
    with pytest.raises(UsageError, match=r"holds numbers \(4 classes\), but recipe toy is for numbers \(5 classes\)"):
        open_split(recipe, shards, "val", train=False)


def test_a_missing_split_and_a_missing_folder_are_named(shards: Path) -> None:
    recipe = load_recipe("taps/toy", TINY)
    with pytest.raises(UnknownName, match="no split 'test'; known: train, val"):
        open_split(recipe, shards, "test", train=False)
    with pytest.raises(UsageError, match="nowhere: no such folder"):
        open_split(recipe, shards / "nowhere", "val", train=False)


def test_classes_are_as_the_recipe_says_or_as_vidprep_knows() -> None:
    assert known_classes(load_recipe("taps/toy").data) == 8
    assert known_classes(load_recipe("taps/toy", ["data.num_classes=3"]).data) == 3
    assert known_classes(load_recipe("taps/toy", ["data.dataset=numbers"]).data) is None


def test_testing_may_resize_crop_and_fill_up_otherwise_than_training(shards: Path) -> None:
    changes = ["data.num_frames=16", "data.short=first", "eval.short=spread", "eval.resize=48", "eval.crop=40"]
    recipe = load_recipe("taps/toy", [*TINY, *changes])
    validated = open_split(recipe, shards, "val", train=False)
    tested = open_test_split(recipe, shards, "val")
    assert validated.make.settings.indices(3, None).tolist() == [[0] * 16]
    assert tested.make.settings.indices(3, None)[0].tolist() == [int(3 / 16 / 2 + 3 / 16 * i) for i in range(16)]
    assert validated[0].frames.shape[-2:] == (32, 32)
    assert tested[0].frames.shape[-2:] == (40, 40)
    with pytest.raises(UsageError, match="eval: resize must be at least crop = 40 pixels, got 32"):
        load_recipe("taps/toy", [*TINY, "eval.crop=40"])


def test_classes_sorted_by_name_take_labels_and_flipped_pairs_along(shards: Path, tmp_path: Path) -> None:
    folder = tmp_path / "shards"
    shutil.copytree(shards, folder)
    for manifest in folder.glob("*.json"):
        content = json.loads(manifest.read_text())
        if "classes" in content:
            manifest.write_text(json.dumps(content | {"classes": ["d", "b", "a", "c"], "flip_pairs": {"0": 1, "1": 0}}))
    recipe = load_recipe("taps/toy", TINY)
    official = open_split(recipe, folder, "val", train=False)
    by_name = open_split(load_recipe("taps/toy", [*TINY, "data.class_order=sorted"]), folder, "val", train=False)
    assert by_name.manifest.classes == ("a", "b", "c", "d")
    names = [[split.manifest.classes[int(split[i].labels)] for i in range(8)] for split in (official, by_name)]
    assert names[0] == names[1] == ["d", "b", "a", "c"] * 2
    assert [int(by_name[i].labels) for i in range(4)] == [3, 1, 0, 2]
    assert by_name.make.flip_pairs == {3: 1, 1: 3}
    assert open_test_split(load_recipe("taps/toy", [*TINY, "data.class_order=sorted"]), folder, "val")[0].labels == 3


def test_a_recipe_may_say_itself_which_classes_a_flip_exchanges(shards: Path) -> None:
    pairs = [*TINY, "data.flip_pairs=[[0, 2], [1, 3]]"]
    dataset = open_split(load_recipe("taps/toy", pairs), shards, "train", train=True)
    assert dataset.make.flip_pairs == {0: 2, 2: 0, 1: 3, 3: 1}
    with pytest.raises(UsageError, match=r"data\.flip_pairs: \(0, 4\) are no classes of 0 \.\.\. 3"):
        open_split(load_recipe("taps/toy", [*TINY, "data.flip_pairs=[[0, 4]]"]), shards, "train", train=True)


def test_videos_that_are_too_short_are_left_out_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    videos = [Video(video_id=f"v{k}", labels=(k,)) for k in range(4)]
    sources = [
        numbered_sources(tmp_path, [video], num_frames=n)[0] for video, n in zip(videos, (2, 12, 3, 1), strict=True)
    ]
    write_shard_folder(tmp_path / "shards", sources, num_classes=4, split="val", per_shard=2)
    recipe = load_recipe("taps/toy", [*TINY, "data.min_frames=3"])
    dataset = open_split(recipe, tmp_path / "shards", "val", train=False)
    assert [video.video_id for video in dataset.videos] == ["v1", "v2"]
    assert [int(dataset[i].labels) for i in range(2)] == [1, 2]
    assert "2 of 4 videos have fewer than 3 frames and are left out" in caplog.text
    with pytest.raises(UsageError, match="none of the 4 videos has min_frames = 13 frames"):
        open_split(load_recipe("taps/toy", [*TINY, "data.min_frames=13"]), tmp_path / "shards", "val", train=False)
