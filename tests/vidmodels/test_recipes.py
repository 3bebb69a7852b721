from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.vidmodels import fakes
from vidmodels import recipes
from vidmodels.data import known_classes
from vidmodels.methods import METHODS
from vidmodels.recipes import dump_recipe, list_recipes, load_recipe, read_recipe
from vidmodels.types import Recipe
from vidprep.datasets import DATASETS
from vidprep.errors import UnknownName, UsageError

SHIPPED = list_recipes()


@pytest.fixture
def fake_method(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Two methods, whose recipes lie below the returned folder."""
    other = replace(fakes.METHOD, name="other")
    monkeypatch.setattr(recipes, "METHODS", {"fake": fakes.METHOD, "other": other})
    monkeypatch.setattr(recipes, "FOLDER", tmp_path)
    for name, method in (("toy", "fake"), ("bright_2f", "fake"), ("toy", "other")):
        folder = tmp_path / method / "recipes"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.toml").write_text(fakes.RECIPE.replace('"fake"', f'"{method}"'))
    return tmp_path


def read(text: str, overrides: Sequence[str] = ()) -> Recipe:
    return read_recipe(text, source_file="mine.toml", name="mine", overrides=overrides)


@pytest.mark.usefixtures("fake_method")
def test_a_recipe_is_its_settings_and_defaults() -> None:
    recipe = load_recipe("bright_2f")
    assert (recipe.name, recipe.method, recipe.source) == ("bright_2f", "fake", "Table 1")
    assert recipe.model == fakes.FakeConfig(width=6, depths=(2, 3))
    assert recipe.train is not None
    assert recipe.train.lr_milestones == (20, 40)
    assert (recipe.data.train_split, recipe.eval.num_clips, recipe.eval.num_crops) == ("train", 2, 1)
    assert recipe.published is not None
    assert recipe.published.top1 == 62.7


@pytest.mark.usefixtures("fake_method")
def test_what_is_left_out_whole_takes_its_defaults() -> None:
    lines = [line for line in fakes.RECIPE.splitlines() if line.split()[0] in ("method", "source", "data")]
    recipe = read("\n".join(lines))
    assert (recipe.model, recipe.train, recipe.published) == (fakes.FakeConfig(), None, None)


@pytest.mark.usefixtures("fake_method")
def test_names_are_listed_and_found_with_or_without_their_method() -> None:
    assert list_recipes() == ["fake/bright_2f", "fake/toy", "other/toy"]
    assert list_recipes("other") == ["other/toy"]
    assert load_recipe("other/toy").method == "other"


@pytest.mark.usefixtures("fake_method")
def test_a_name_of_two_methods_is_ambiguous() -> None:
    with pytest.raises(UsageError, match="recipe 'toy' is ambiguous: fake/toy or other/toy"):
        load_recipe("toy")


@pytest.mark.usefixtures("fake_method")
def test_unknown_names_list_the_nearest() -> None:
    with pytest.raises(UnknownName, match="no recipe 'bright_3f'; did you mean bright_2f"):
        load_recipe("bright_3f")
    with pytest.raises(UnknownName, match="no recipe 'fake/toi'; did you mean fake/toy"):
        load_recipe("fake/toi")
    with pytest.raises(UnknownName, match="no method 'fakee'; did you mean fake"):
        list_recipes("fakee")


def test_a_missing_file_and_a_broken_one_say_so(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no\.toml: no such recipe file"):
        load_recipe(tmp_path / "no.toml")
    with pytest.raises(UsageError, match=r"mine\.toml: not valid TOML: .*line 1"):
        read("method = x\n")
    (tmp_path / "latin.toml").write_bytes(b"source = '\xe9'")
    with pytest.raises(UsageError, match=r"latin\.toml: a recipe is a TOML text in UTF-8"):
        load_recipe(tmp_path / "latin.toml")


@pytest.mark.usefixtures("fake_method")
def test_all_faults_are_reported_at_once_with_their_paths() -> None:
    text = """\
method = "fake"
data = { dataset = "bright", num_frames = "two", resize = 8, crops = 8 }
model = { widht = 6, depths = [2, "x"], gate = 1 }
train = { epochs = 2.5, batch_size = 4, lr = "0.1", optimizer = 3 }
"""
    with pytest.raises(UsageError) as caught:
        read(text)
    for fault in (
        "mine.toml: 10 faults: ",
        "source: missing",
        "data.crops: unknown key, did you mean crop",
        "data.crop: missing",
        "data.num_frames: Input should be a valid integer, got 'two'",
        "model.widht: unknown key, did you mean width?",
        "model.depths[1]: Input should be a valid integer, got 'x'",
        "model.gate: Input should be a valid boolean, got 1",
        "train.epochs: Input should be a valid integer, got 2.5",
        "train.lr: Input should be a valid number, got '0.1'",
        "train.optimizer: Input should be a valid string, got 3",
    ):
        assert fault in str(caught.value)


@pytest.mark.usefixtures("fake_method")
def test_an_unknown_method_lists_the_nearest_beside_the_other_faults() -> None:
    with pytest.raises(UsageError, match=r"method: no method 'fakes', did you mean fake\?; source: missing"):
        read(fakes.RECIPE.replace('"fake"', '"fakes"').replace('source = "Table 1"', ""))
    with pytest.raises(UsageError, match="method: missing"):
        read(fakes.RECIPE.replace('method = "fake"', ""))
    with pytest.raises(UsageError, match="method: no method 3, known: fake, other"):
        read(fakes.RECIPE.replace('"fake"', "3"))


@pytest.mark.usefixtures("fake_method")
@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("model.width=0", "model: width must be at least 1, got 0"),
        ("data.resize=4", "data: resize must be at least crop = 8 pixels, got 4"),
        ("data.train_scales=[1.5]", r"data: train_scales are fractions of the short side in \(0, 1\], got \(1.5,\)"),
        ("data.std=[0.0, 1.0, 1.0]", "data: std must be above 0"),
        ("train.epochs=0", "train: epochs must be at least 1, got 0"),
        ("train.lr=0", "train: lr and clip_grad must be above 0, got 0.0 and None"),
        ("train.lr=nan", "train: lr and clip_grad must be above 0, got nan"),
        ("eval.batch_size=-1", "eval: batch_size must be at least 1, got -1"),
        ("eval=3", "eval: expected a table of settings, got 3"),
        ("source=2024-01-01", "source: dates and times are no settings, got 2024-01-01"),
    ],
)
def test_settings_out_of_range_name_their_section(override: str, sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        read(fakes.RECIPE, [override])


@pytest.mark.usefixtures("fake_method")
def test_overrides_are_toml_values_or_bare_words() -> None:
    overrides = [
        "train.lr=2e-2",
        "train.lr_milestones=[1]",
        "model.gate = false",
        "train.optimizer=adamw",
        "source='x y'",
    ]
    recipe = read(fakes.RECIPE, overrides)
    assert recipe.train is not None
    assert (recipe.train.lr, recipe.train.lr_milestones, recipe.train.optimizer) == (0.02, (1,), "adamw")
    assert (recipe.model.gate, recipe.source) == (False, "x y")


@pytest.mark.usefixtures("fake_method")
def test_overrides_meet_the_same_checks() -> None:
    with pytest.raises(UsageError, match=r"train\.lrr: unknown key, did you mean lr\?"):
        read(fakes.RECIPE, ["train.lrr=0.1"])
    with pytest.raises(UsageError, match=r"train\.lr: Input should be a valid number, got 'fast'"):
        read(fakes.RECIPE, ["train.lr=fast"])
    with pytest.raises(UsageError, match=r"--set 'train\.lr': expected KEY=VALUE"):
        read(fakes.RECIPE, ["train.lr"])
    with pytest.raises(UsageError, match="source is a value, not a table"):
        read(fakes.RECIPE, ["source.x.y=1"])


@pytest.mark.usefixtures("fake_method")
def test_a_dumped_recipe_reads_back_equal() -> None:
    recipe = read(fakes.RECIPE, ['source="quotes \\" and é \\u007f"', "train.clip_grad=20", "train.weight_decay=1e-20"])
    again = read_recipe(dump_recipe(recipe), source_file="recipe.toml", name="recipe")
    assert again == recipe
    assert again.name == "mine"


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_recipe_loads_and_reads_back_equal(name: str) -> None:
    recipe = load_recipe(name)
    assert f"{recipe.method}/{recipe.name}" == name
    assert read_recipe(dump_recipe(recipe), source_file="recipe.toml", name="recipe") == recipe


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_recipe_names_splits_its_data_set_has(name: str) -> None:
    data = load_recipe(name).data
    if data.dataset in DATASETS:
        assert {data.train_split, data.val_split} <= set(DATASETS[data.dataset].splits)


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_recipe_builds_a_model_of_the_published_size(name: str) -> None:
    recipe = load_recipe(name)
    with torch.device("meta"):
        model = METHODS[recipe.method].build(recipe.model, known_classes(recipe.data) or 200)
    num_params = sum(parameter.numel() for parameter in model.parameters())
    assert num_params > 0  # that each of them runs, the README's table proves
    if recipe.published is not None and recipe.published.num_params is not None:
        assert num_params == recipe.published.num_params


@pytest.mark.parametrize("method", METHODS)
def test_every_method_has_a_toy_recipe(method: str) -> None:
    assert f"{method}/toy" in list_recipes(method)


@pytest.mark.usefixtures("fake_method")
def test_options_of_timm_are_an_open_table_that_is_checked_and_written_back() -> None:
    text = fakes.RECIPE.replace(
        "lr_milestones = [20, 40]",
        'optimizer = "timm:lamb", optimizer_options = { betas = [0.9, 0.98], max_grad_norm = 2 }, '
        'schedule = "timm:cosine", schedule_options = { step_on_epochs = false }',
    )
    recipe = read(text)
    assert recipe.train is not None
    assert recipe.train.optimizer_options == {"betas": (0.9, 0.98), "max_grad_norm": 2}
    assert "optimizer_options = { betas = [0.9, 0.98], max_grad_norm = 2 }" in dump_recipe(recipe)
    assert read(dump_recipe(recipe)) == recipe
    sentence = (
        r"2 faults: train\.optimizer_options\.beta: no argument of timm's lamb, did you mean betas\?; "
        r"train\.schedule: timm has no 'cosin', did you mean cosine\?"
    )
    with pytest.raises(UsageError, match=sentence):
        read(text.replace("betas", "beta").replace("timm:cosine", "timm:cosin"))
