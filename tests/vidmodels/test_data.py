from pathlib import Path

import pytest

from tests.vidmodels.shards import TINY, write_tiny_shards
from vidmodels.data import known_classes, open_split, open_test_split
from vidmodels.recipes import load_recipe
from vidprep.errors import UnknownName, UsageError


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
