import dataclasses
import html
import re
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import pytest
import torch

from tests.browser import open_page
from tests.vidmodels.detection_shards import TINY as TINY_DETECTOR
from tests.vidmodels.detection_shards import write_detection_shards
from tests.vidmodels.shards import TINY, write_tiny_shards
from vidmodels import cli
from vidmodels.breakdown import Coverage
from vidmodels.checkpoints import save_weights
from vidmodels.comparison import Comparison, Form, ScoredRun
from vidmodels.cost import LatencyStats
from vidmodels.early_exit import Curve, MeasuredPoint, Setting, read_curve, write_curve
from vidmodels.evaluate import Result
from vidmodels.methods import METHODS
from vidmodels.recipes import dump_recipe, load_recipe
from vidmodels.report import comparison_page, published_recipes
from vidmodels.runs import Run, find_variant
from vidmodels.stream_comparison import compare_streams
from vidmodels.types import Recipe
from vidprep.errors import UsageError
from vidprep.index import Fault

LATENCY = LatencyStats(median_ms=8.0, min_ms=6.0, max_ms=20.0, cpu_median_ms=7.0, runs=3)

CLASSES = tuple(f"class {label}" for label in range(4))


@pytest.fixture(scope="module")
def kinetics() -> list[Recipe]:
    """What is published on Kinetics-400, read once: there are many recipes."""
    return published_recipes("kinetics400")


@pytest.fixture(autouse=True)
def nothing_published(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the made-up data set; tests that want published figures put their own here."""
    for module in ("report", "stream_report"):
        monkeypatch.setattr(f"vidmodels.{module}.published_recipes", lambda dataset: [])


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_shards(tmp_path_factory.mktemp("tiny"))


def scored(
    name: str,
    shards: Path,
    *,
    right: int,
    metric: str = "top1",
    multi_label: bool = False,
    variant: str = "",
    gmacs: float = 4.0,
    missing: int = 0,
) -> ScoredRun:
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
        "trainable": Form(result=result, gmacs_per_clip=gmacs, latency=LATENCY),
        "dynamic": Form(result=result, gmacs_per_clip=gmacs / 2, latency=LATENCY),
    }
    weights = shards.parent / f"{name}.safetensors"
    weights.write_text(name)
    run = Run(name=name, recipe=recipe, weights=weights, data=shards, variant=variant)
    faults = tuple(Fault(video_id=f"lost{k}", reason="does not decode", kind="corrupt") for k in range(missing))
    coverage = Coverage(num_listed=8 + missing, num_scored=8, missing=faults)
    return ScoredRun(run=run, forms=forms, classes=CLASSES, coverage=coverage)


def exits_of(run: Run, split: str = "val") -> Curve:
    """Early exit of a model: half the work at 75 %, all of it at 100 %."""
    full = MeasuredPoint(
        setting=Setting(name="full"),
        top1=100.0,
        map=100.0,
        gmacs=3.0,
        gmacs_published=3.0,
        frames=8.0,
        ms=20.0,
        cpu_ms=20.0,
        network_ms=15.0,
        network_cpu_ms=16.0,
        exit_shares=(0.0, 1.0),
    )
    half = dataclasses.replace(
        full,
        setting=Setting(name="entropy 0.50", criterion="entropy", thresholds=(-0.1, -50.0), q=1.0, solved_share=0.5),
        top1=75.0,
        gmacs=1.5,
        network_cpu_ms=8.0,
        exit_shares=(0.75, 0.25),
    )
    return Curve(
        name=run.title,
        weights_sha256=sha256(run.weights.read_bytes()).hexdigest(),
        recipe=run.recipe,
        split=split,
        solve_split="train",
        num_videos=8,
        coverage=Coverage(num_listed=8, num_scored=8),
        whole_frames=8.0,
        device="cpu with 2 threads",
        points=(full, half),
    )


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
    shards: Path, kinetics: list[Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert {recipe.method for recipe in kinetics} >= {"sta", "tam"}
    assert all(recipe.data.dataset == "kinetics400" for recipe in kinetics)
    assert "Published on numbers" not in comparison_page(compared(scored("good", shards, right=8)))
    monkeypatch.setattr("vidmodels.report.published_recipes", lambda dataset: kinetics)
    page = comparison_page(compared(scored("good", shards, right=8)))
    tips = html.unescape(page)
    assert "tam/kinetics400_r50_8f, published\ntop-1 accuracy 76.1 %\n43 GMACs: multiply-adds of convolutions" in tips
    assert 'class="series k1 hollow"' in page
    assert "\ntam/kinetics400_r50_8f\n76.1\n" in part(page, "Published on numbers")


def test_early_exits_are_a_line_of_the_chart_with_their_own_times(shards: Path) -> None:
    good = scored("good", shards, right=8)
    page = comparison_page(compared(good, scored("poor", shards, right=5)), curves=[exits_of(good.run)])
    chart = html.unescape(part(page, "Accuracy and cost"))
    tips = html.unescape(page)
    half = "good, early exit: entropy 0.50\ntop-1 accuracy 75.00 %\n1.5 GMACs per video\n8.00 CPU ms per video"
    assert half in tips
    assert "leaving at each exit: 75 %, 25 %" in tips
    assert "good, leaving by entropy" in chart
    assert "Early exit of good: accuracy against time" in chart
    assert "\ngood\nentropy 0.50\n75.00\n100.00\n1.5000\n50.0 %\n" in part(page, "Early exit")
    assert "Early exit" not in part(comparison_page(compared(good)), "Accuracy and cost")


def test_a_curve_of_other_weights_or_of_another_split_is_refused(shards: Path) -> None:
    good, poor = scored("good", shards, right=8), scored("poor", shards, right=5)
    for curve in (exits_of(poor.run), exits_of(good.run, split="test")):
        with pytest.raises(UsageError, match="belongs to none of the models: it was measured with other weights"):
            comparison_page(compared(good), curves=[curve])
    with pytest.raises(UsageError, match="there is none among the models"):
        comparison_page(None, curves=[exits_of(good.run)])


def test_a_curve_is_read_back_as_it_was_written(shards: Path, tmp_path: Path) -> None:
    curve = exits_of(scored("good", shards, right=8).run)
    assert tmp_path / "curve.json" in write_curve(curve, tmp_path)
    assert read_curve(tmp_path) == curve
    with pytest.raises(UsageError, match=r"no curve.json here; give what `vidmodels curve --out` wrote"):
        read_curve(tmp_path / "none")
    (tmp_path / "curve.json").write_text('{"format": "vidmodels-curve 0"}')
    with pytest.raises(UsageError, match="expected 'vidmodels-curve 1', got 'vidmodels-curve 0'"):
        read_curve(tmp_path)
    (tmp_path / "curve.json").write_text("[]")
    with pytest.raises(UsageError, match="not a curve as `vidmodels curve` writes it"):
        read_curve(tmp_path)


def test_settings_of_the_same_weights_are_one_line(shards: Path) -> None:
    runs = [scored("good", shards, right=8), scored("good", shards, right=5, variant="keep=0.5", gmacs=1.0)]
    page = comparison_page(compared(*runs))
    assert page.count('<g class="series k0 filled">') == 2, "one for each chart"
    assert "k1 filled" not in page
    assert page.count('class="joined"') == 2
    assert "\ngood, keep=0.5\n" in part(page, "All figures")


def test_confusions_are_drawn_and_the_most_frequent_ones_listed(shards: Path) -> None:
    page = comparison_page(compared(scored("good", shards, right=8), scored("poor", shards, right=5)))
    confusions = part(page, "Confusions")
    assert "\npoor\nclass 1\nclass 2\n1\n50.0 %\n" in confusions
    assert "\ngood\nclass" not in confusions.partition("Most confused")[2]
    tips = html.unescape(page)
    assert "class 1, taken for class 2\n1 of 2 (50.0 %)" in tips
    assert "class 0, taken for class 0\n2 of 2 (100.0 %)" in tips
    assert "No video is taken for another class" in comparison_page(compared(scored("good", shards, right=8)))
    several = comparison_page(compared(scored("poor", shards, right=5, multi_label=True)))
    assert "several labels have no confusion matrix" in part(several, "Confusions")


def test_missing_videos_are_named_with_what_they_may_change(shards: Path) -> None:
    page = comparison_page(compared(scored("good", shards, right=8, missing=2)))
    missing = part(page, "Missing videos")
    assert "MISSING: 2 of the 10 videos of the split are not scored" in missing
    assert "\ngood\ndynamic\n100.00\n80.00\n" in missing
    assert "\nlost1\ncorrupt\ndoes not decode\n" in missing
    assert "Missing videos" not in comparison_page(compared(scored("good", shards, right=8)))


def test_other_shards_than_those_of_the_comparison_are_refused(shards: Path) -> None:
    with pytest.raises(UsageError, match="the split train does not hold the videos that good was scored on"):
        comparison_page(compared(scored("good", shards, right=8)), split="train")
    homeless = scored("good", shards, right=8)
    homeless = dataclasses.replace(homeless, run=dataclasses.replace(homeless.run, data=None))
    with pytest.raises(UsageError, match="say with --data which shards"):
        comparison_page(compared(homeless))


@pytest.fixture(scope="module")
def detector(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of one whole sequence and one that lacks a frame, and beside them a detector that learnt nothing."""
    folder = tmp_path_factory.mktemp("toy")
    write_detection_shards(folder, train=1, val=2, damaged="val_01")
    recipe = load_recipe("rgtp_vitdet/toy", TINY_DETECTOR)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = METHODS["rgtp_vitdet"].build(recipe.model, 4)
    save_weights(
        folder / "detector.safetensors",
        model.state_dict(),
        {"method": "rgtp_vitdet", "recipe": dump_recipe(recipe), "classes": '["disc", "square", "triangle", "cross"]'},
    )
    return folder


def test_detectors_get_their_part_of_the_page(detector: Path, shards: Path) -> None:
    runs = [find_variant(f"{detector / 'detector.safetensors'}{of}") for of in ("", ":model.keep_ratio=0.25")]
    streams = compare_streams(runs, data=detector / "shards", timed_runs=1, device="cpu")
    page = comparison_page(None, streams=streams, data=detector / "shards", num_clips=2)
    assert page.count('<g class="series k0 filled">') == 2, "both settings are one line of each chart"
    assert page.count('class="joined"') == 2
    assert "detector, keep_ratio=0.25\nmAP50 " in html.unescape(page)
    assert "\nval_01\n" in part(page, "Missing videos of detectors")
    assert "1 of the 2 videos of the split are in no shard" in part(page, "Missing videos of detectors")
    counts = part(page, "Classes of objects")
    assert all(f"\n{name}\n" in counts for name in ("disc", "square", "triangle", "cross"))
    assert page.count('class="film"') == 2, "the sequence once for each setting"
    both = comparison_page(compared(scored("good", shards, right=8)), streams=streams, num_clips=0)
    assert "<title>Accuracy against cost: good, detector</title>" in both
    assert "<h2>Accuracy and cost: numbers, val, by top-1 accuracy</h2>" in both
    assert "<h2>Precision and cost: toy_detection, val</h2>" in both


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
    capsys.readouterr()
    assert call("report", run, "--out", out, "--early-exit") == 2
    assert "--early-exit: none of the models has exits" in capsys.readouterr().err
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
def test_the_page_works_in_chromium(
    shards: Path, kinetics: list[Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scheme: str
) -> None:
    monkeypatch.setattr("vidmodels.report.published_recipes", lambda dataset: kinetics)
    path = tmp_path / "page.html"
    good = scored("good", shards, right=8)
    runs = compared(good, scored("poor", shards, right=5, missing=2))
    path.write_text(comparison_page(runs, curves=[exits_of(good.run)]))
    with open_page(path, viewport={"width": 380, "height": 800}, color_scheme=scheme) as (page, complaints):
        # Charts are drawn, as wide as the screen and no wider, and say what is pointed at.
        for chart in page.locator("figure.chart > svg").all():
            box = chart.bounding_box()
            assert box is not None
            assert box["width"] > 300
        assert page.locator("figure.chart > svg").count() == 5, "two, that of the exits, and two matrices"
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
        # Classes are sorted by a model's bars.
        classes = page.locator("table[aria-label='Videos of each class that are classified right']")
        classes.locator("th", has_text="poor").locator("button").click()
        assert classes.locator("tbody tr td:nth-child(4)").all_inner_texts() == [
            "100.0 %",
            "50.0 %",
            "50.0 %",
            "50.0 %",
        ]
        bar = classes.locator("tbody tr td.bar").first
        assert "gradient" in bar.evaluate("cell => getComputedStyle(cell).backgroundImage")
        # A cell of a matrix says what it is.
        cell = page.locator("figure.chart .cell.other[data-tip*='1 of 2']").first
        cell.hover()
        assert "taken for" in page.locator("#tip").inner_text()
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
