import dataclasses
import html
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.browser import open_page
from tests.vidmodels.shards import TINY, write_tiny_shards
from vidmodels import cli
from vidmodels.breakdown import Coverage
from vidmodels.comparison import Comparison, Form, ScoredRun
from vidmodels.cost import LatencyStats
from vidmodels.evaluate import Result
from vidmodels.recipes import load_recipe
from vidmodels.report import comparison_page, published_recipes
from vidmodels.runs import Run
from vidprep.errors import UsageError

LATENCY = LatencyStats(median_ms=8.0, min_ms=6.0, max_ms=20.0, cpu_median_ms=7.0, runs=3)

CLASSES = tuple(f"class {label}" for label in range(4))


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_shards(tmp_path_factory.mktemp("tiny"))


def scored(name: str, shards: Path, *, right: int, metric: str = "top1", multi_label: bool = False) -> ScoredRun:
    """A model that gets the first `right` of eight videos right, by 0.7, and takes the others for the next class."""
    recipe = load_recipe("taps/toy", [*TINY, f"eval.metric={metric}"])
    labels = torch.arange(8) % 4
    predicted = torch.where(torch.arange(8) < right, labels, (labels + 1) % 4)
    probabilities = torch.full((8, 4), 0.1).double()
    probabilities[torch.arange(8), predicted] = 0.7
    result = Result(
        video_id=tuple(f"val{k}" for k in range(8)),
        labels=torch.nn.functional.one_hot(labels).float() if multi_label else labels,
        scores=probabilities.log(),
        probabilities=probabilities,
        top1=100 * right / 8,
        top5=100.0,
        map=50.0,
        num_clips=8,
        summary={},
        seconds=1.0,
    )
    forms = {
        "trainable": Form(result=result, gmacs_per_clip=4.0, latency=LATENCY),
        "dynamic": Form(result=result, gmacs_per_clip=2.0, latency=LATENCY),
    }
    run = Run(name=name, recipe=recipe, weights=Path("nowhere/best.safetensors"), data=shards)
    return ScoredRun(run=run, forms=forms, classes=CLASSES, coverage=Coverage(num_listed=8, num_scored=8))


def compared(*runs: ScoredRun) -> Comparison:
    return Comparison(runs=runs, timed_clips=2, heading="eight videos on a made-up machine")


def part(page: str, title: str) -> str:
    """One section of a page as plain text, a cell a line."""
    (body,) = re.findall(rf"<h2>{re.escape(title)}</h2>(.*?)</section>", page, re.DOTALL)
    return html.unescape(re.sub(r"(?:<[^>]*>|\n)+", "\n", body))


def test_the_page_has_the_figures_of_each_model_and_form(shards: Path) -> None:
    page = comparison_page(compared(scored("good", shards, right=8), scored("poor", shards, right=5)))
    figures = part(page, "All figures").split("\n")
    rows = [figures[place : place + 9] for place, text in enumerate(figures) if text in ("good", "poor")]
    assert rows[0] == ["good", "trainable", "taps/toy", "100.00", "100.00", "50.00", "4.0000", "4.00", "3.00-10.00"]
    assert rows[3][:6] == ["poor", "dynamic", "taps/toy", "62.50", "100.00", "50.00"]
    assert part(page, "Accuracy and cost").count("2 GMACs per clip\n4.00 ms per clip (3.00 to 10.00)") == 4
    assert "eight videos on a made-up machine" in page


def test_accuracy_is_counted_class_by_class(shards: Path) -> None:
    page = comparison_page(compared(scored("good", shards, right=8), scored("poor", shards, right=5)))
    classes = part(page, "Classes")
    assert "\nclass 0\n2\n100.0 %\n100.0 %\n" in classes, "val0 and val4 are among the first five"
    assert "\nclass 1\n2\n100.0 %\n50.0 %\n" in classes, "val1 is, val5 is not"


def test_of_several_labels_a_class_has_its_average_precision(shards: Path) -> None:
    page = comparison_page(compared(scored("poor", shards, right=5, multi_label=True)))
    assert "Average precision of each class" in part(page, "Classes")
    # Class 0: val0 and val4 score 0.7, and so does val7, which is taken for it: 2 of the first 2 with equal scores.
    assert "\nclass 0\n2\n100.0 %\n" in part(page, "Classes")


def test_half_of_the_sample_clips_are_wrong_ones(shards: Path) -> None:
    runs = compared(scored("good", shards, right=8), scored("poor", shards, right=5))
    samples = part(comparison_page(runs, num_clips=4), "Sample clips")
    assert "5 of 8 videos are classified right by all models (good, poor)" in samples
    wrong, right = samples.split("Right by all")
    assert (wrong.count("\N{BALLOT X} \npoor"), right.count("\N{CHECK MARK} \npoor")) == (2, 2)
    video, label, predicted = re.findall(r"\nclass (\d)\nval(\d)\n.*?poor: class (\d), 70", wrong, re.DOTALL)[0]
    assert (int(label) % 4, (int(label) + 1) % 4) == (int(video), int(predicted))
    assert "Sample clips" not in comparison_page(runs, num_clips=0)


def test_too_few_wrong_clips_are_made_up_for_by_right_ones(shards: Path) -> None:
    page = comparison_page(compared(scored("good", shards, right=7)), num_clips=8)
    assert page.count('class="film"') == 8


def test_runs_of_one_name_are_told_apart(shards: Path) -> None:
    page = comparison_page(compared(scored("run", shards, right=8), scored("run", shards, right=5)))
    assert "<title>Accuracy against cost: run (1), run (2)</title>" in page


def test_models_that_do_not_compare_get_a_part_of_the_page_each(shards: Path) -> None:
    page = comparison_page(compared(scored("a", shards, right=8), scored("b", shards, right=5, metric="map")))
    assert "\na, dynamic form\n" in part(page, "Accuracy and cost: numbers, val, by top-1 accuracy")
    assert "\na, " not in part(page, "Accuracy and cost: numbers, val, by mAP")
    assert "\nb, dynamic form\nmAP 50.00 %\n" in part(page, "Accuracy and cost: numbers, val, by mAP")


def test_published_figures_stand_beside_ours_with_their_convention(
    shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    published = published_recipes("kinetics400")
    assert {recipe.method for recipe in published} >= {"sta", "tam"}
    assert all(recipe.data.dataset == "kinetics400" for recipe in published)
    assert "Published on numbers" not in comparison_page(compared(scored("good", shards, right=8)))
    monkeypatch.setattr("vidmodels.report.published_recipes", lambda dataset: published)
    page = comparison_page(compared(scored("good", shards, right=8)))
    tips = html.unescape(page)
    assert "tam/kinetics400_r50_8f, published\ntop-1 accuracy 76.1 %\n43 GMACs: multiply-adds of convolutions" in tips
    assert 'class="series k1 hollow"' in page
    assert "\ntam/kinetics400_r50_8f\n76.1\n" in part(page, "Published on numbers")


def test_other_shards_than_those_of_the_comparison_are_refused(shards: Path) -> None:
    with pytest.raises(UsageError, match="the split train does not hold the videos that good was scored on"):
        comparison_page(compared(scored("good", shards, right=8)), split="train")
    homeless = scored("good", shards, right=8)
    homeless = dataclasses.replace(homeless, run=dataclasses.replace(homeless.run, data=None))
    with pytest.raises(UsageError, match="say with --data which shards"):
        comparison_page(compared(homeless))


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    def run(*arguments: object) -> int:
        monkeypatch.setattr("sys.argv", ["vidmodels", *map(str, arguments)])
        return cli.main()

    return run


def test_the_command_writes_a_page_on_runs(
    call: Callable[..., int], shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = [word for override in TINY for word in ("--set", override)]
    run, out = tmp_path / "small", tmp_path / "page.html"
    assert call("report", run, "--out", tmp_path / "page.pdf") == 2
    assert "expected a name ending in .html, in a folder that exists" in capsys.readouterr().err
    training = ["train", "taps", "--recipe", "toy", "--data", shards, "--out", run, "--device", "cpu", *settings]
    assert call(*training, "--workers", 1) == 0
    arguments = ["report", run, "--out", out, "--timed-runs", 1, "--workers", 1, "--device", "cpu", "--videos", 2]
    assert call(*arguments, "--json", tmp_path / "figures.json") == 0
    page = out.read_text()
    assert f"{out}: 1 model, " in capsys.readouterr().out
    assert page.count('class="film"') == 2
    settings_part = part(page, "Settings and versions")
    assert "\ntrained for\n2 epochs, 0.00 h\n" in settings_part
    assert 'method = "taps"' in settings_part
    assert f"\ntorch\n{torch.__version__.partition('+')[0]}" in settings_part
    assert (tmp_path / "figures.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_works_in_chromium(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scheme: str) -> None:
    published = published_recipes("kinetics400")
    monkeypatch.setattr("vidmodels.report.published_recipes", lambda dataset: published)
    path = tmp_path / "page.html"
    path.write_text(comparison_page(compared(scored("good", shards, right=8), scored("poor", shards, right=5))))
    with open_page(path, viewport={"width": 380, "height": 800}, color_scheme=scheme) as (page, complaints):
        # Charts are drawn, as wide as the screen and no wider, and say what is pointed at.
        for chart in page.locator("figure.chart > svg").all():
            box = chart.bounding_box()
            assert box is not None
            assert box["width"] > 300
        assert page.locator("figure.chart > svg").count() == 2
        assert page.evaluate("document.documentElement.scrollWidth") == 380
        mark = page.locator("figure.chart .point").first
        mark.focus()
        assert page.locator("#tip").inner_text().startswith("good, trainable form\ntop-1 accuracy 100.00 %")
        page.keyboard.press("Escape")
        assert page.locator("#tip").is_hidden()
        # A table is sorted by a click, and the other way by the keyboard.
        table = page.locator("table[aria-label='Figures of all models and forms']")
        header = table.locator("th", has_text="top-1")
        values = table.locator("tbody td:nth-child(4)")
        header.locator("button").click()
        assert header.get_attribute("aria-sort") == "descending"
        assert values.all_inner_texts() == ["100.00", "100.00", "62.50", "62.50"]
        page.keyboard.press("Enter")
        assert header.get_attribute("aria-sort") == "ascending"
        assert values.all_inner_texts() == ["62.50", "62.50", "100.00", "100.00"]
        # What has no figure comes last, whichever way.
        of_published = page.locator("table[aria-label^='Published']")
        for order in ("descending", "ascending"):
            of_published.locator("th", has_text="top-1").locator("button").click()
            assert of_published.locator("th", has_text="top-1").get_attribute("aria-sort") == order
            assert of_published.locator("tbody td:nth-child(2)").last.inner_text() == ""
        # A film plays, and pauses.
        film = page.locator(".film").first
        place = "film => getComputedStyle(film).backgroundPositionX"
        before = film.evaluate(place)
        page.wait_for_timeout(400)
        assert film.evaluate(place) == before
        film.click()
        assert film.get_attribute("aria-pressed") == "true"
        page.wait_for_function(
            "([film, before]) => getComputedStyle(film).backgroundPositionX !== before",
            arg=[film.element_handle(), before],
        )
        film.click()
        page.wait_for_timeout(100)
        paused = film.evaluate(place)
        page.wait_for_timeout(400)
        assert film.evaluate(place) == paused
        play_all = page.locator(".play-all").first
        play_all.click()
        assert play_all.inner_text() == "Pause all"
        assert film.evaluate("film => film.getAnimations()[0].playState") == "running"
        assert complaints == []
