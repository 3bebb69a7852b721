import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import nn
from typer.testing import CliRunner

from tests.vidprep.load.folders import numbered_sources, write_shard_folder
from vidmodels import early_exit
from vidmodels.checkpoints import save_weights
from vidmodels.cli import app
from vidmodels.data import open_test_split
from vidmodels.early_exit import Setting, measure_curve, read_thresholds, run_settings, write_curve
from vidmodels.methods import METHODS
from vidmodels.methods.uni_adafocus.exits import NEVER, expected_macs, q_of_budget
from vidmodels.recipes import dump_recipe, load_recipe
from vidmodels.runs import Run, find_run, load_model
from vidprep.errors import MissingPackage, UsageError
from vidprep.load import ClipsOnDemand
from vidprep.types import Video

SMALL = (
    "data.dataset=numbers",
    "data.resize=32",
    "data.crop=32",
    "model.image_size=32",
    "model.patch_size=16",
    "model.min_extent=16",
    "model.num_glance=4",
    "model.num_focus=3",
    "model.glance_stages=[[1, 8, 1, 1], [2, 8, 1, 2], [2, 16, 1, 2]]",
    "model.focus_depths=[1, 1]",
    "model.focus_widths=[8, 16]",
    "eval.batch_size=3",
)
VARIANTS = {
    "tsm": ("data.num_frames=16", "data.leading_frames=4", "model.num_candidates=12"),
    "pooling": (
        "model.variant=pooling",
        "data.num_frames=12",
        "data.leading_frames=0",
        "model.num_candidates=12",
        "model.classifier_hidden_dim=16",
    ),
}


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("early_exit")
    for split, num_videos in (("train", 8), ("val", 5)):
        videos = [Video(video_id=f"{split}{k}", labels=(k % 4,)) for k in range(num_videos)]
        sources = numbered_sources(folder, videos, num_frames=24)
        write_shard_folder(folder / "shards", sources, num_classes=4, split=split, content="frames", per_shard=4)
    return folder / "shards"


def untrained(folder: Path, shards: Path, variant: str = "tsm") -> Run:
    """A run with random weights whose answers differ from video to video."""
    recipe = load_recipe("uni_adafocus/toy", (*SMALL, *VARIANTS[variant]))
    model = METHODS["uni_adafocus"].build(recipe.model, 4)
    for module in model.modules():
        if isinstance(module, nn.Linear) and module.out_features == 4:
            nn.init.normal_(module.weight, std=30)
    folder.mkdir(exist_ok=True)
    (folder / "recipe.toml").write_text(dump_recipe(recipe))
    (folder / "run.json").write_text(json.dumps({"data": str(shards)}))
    save_weights(folder / "best.safetensors", model.state_dict(), {"method": "uni_adafocus"})
    return find_run(folder)


@pytest.mark.parametrize("variant", VARIANTS)
def test_early_exit_on_demand_gives_the_logits_of_the_decoded_clips_with_fewer_frames(
    variant: str, shards: Path, tmp_path: Path
) -> None:
    run, exits = untrained(tmp_path, shards, variant), METHODS["uni_adafocus"].early_exit
    assert exits is not None
    model, dataset = load_model(run, num_classes=4), open_test_split(run.recipe, shards, "val")
    frames = torch.cat([dataset[index].frames for index in range(5)])
    full = exits.make(model)
    first = full.first_frames.tolist()  # type: ignore[operator]
    with torch.no_grad():
        answers = exits.logits(model, model(frames))[:, 0]
    middle = float(answers.amax(1).sort().values[2:4].mean())
    early = exits.make(model, thresholds=[middle, *[NEVER] * (len(exits.macs(run.recipe.model, 4)) - 1)])
    counts = {}
    for name, form in (("full", full), ("early", early)):
        clips = ClipsOnDemand(dataset, range(5), first=first)
        expected, given = form(frames), form(clips)
        assert torch.equal(given.logits, expected.logits)
        assert torch.equal(given.aux["exit_steps"], expected.aux["exit_steps"])
        counts[name] = clips.num_decoded
        assert clips.num_decoded < clips.num_distinct
    assert sorted(early(frames).aux["exit_steps"].tolist()).count(0) == 2
    assert 5 * 4 < counts["early"] < counts["full"]


def test_nobody_asks_for_more_than_the_first_frames_of_videos_that_leave_at_once(shards: Path, tmp_path: Path) -> None:
    run = untrained(tmp_path, shards)
    model, dataset = load_model(run, num_classes=4), open_test_split(run.recipe, shards, "val")
    settings = [Setting(name="full"), Setting(name="all out", thresholds=(-NEVER, -NEVER))]
    curve = run_settings(run, model, dataset, settings, workers=0)
    full, out = curve.points
    assert (out.frames, out.exit_shares) == (4.0, (1.0, 0.0))
    assert out.frames < full.frames < curve.whole_frames
    macs = [value / 1e9 for value in METHODS["uni_adafocus"].early_exit.macs(run.recipe.model, 4)]  # type: ignore[union-attr]
    assert [out.gmacs_published, full.gmacs_published] == pytest.approx(macs)
    assert out.gmacs < full.gmacs
    assert 0 < out.network_ms < out.ms


def test_a_curve_is_a_table_a_picture_and_thresholds_that_eval_takes(shards: Path, tmp_path: Path) -> None:
    untrained(tmp_path / "run", shards)
    out = tmp_path / "curve"
    arguments = ["curve", str(tmp_path / "run"), "--out", str(out), "--points", "2", "--criterion", "entropy"]
    result = CliRunner().invoke(app, [*arguments, "--budget", "0.9", "--workers", "0"])
    assert result.exit_code == 0, result.output
    with (out / "curve.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 4
    assert rows[0]["exits"] == "full"
    assert float(rows[0]["gmacs"]) == max(float(row["gmacs"]) for row in rows)
    with Image.open(out / "curve.png") as picture:
        assert picture.size == (1320, 576)
        assert len(picture.convert("RGB").getcolors(2**20) or []) > 10
    paths = sorted((out / "thresholds").iterdir())
    assert len(paths) == 3
    arguments = ["eval", str(tmp_path / "run"), "--thresholds", str(paths[1]), "--workers", "0"]
    result = CliRunner().invoke(app, [*arguments, "--json", str(tmp_path / "eval.json")])
    assert result.exit_code == 0, result.output
    again = json.loads((tmp_path / "eval.json").read_text())["rows"]
    by_name = {row["exits"]: row for row in rows}
    same = by_name[paths[1].stem.replace("-", " ")]
    for name in ("gmacs", "top1", "frames_decoded"):
        assert again[1][name] == pytest.approx(float(same[name]))


def test_the_page_draws_curves_that_were_written_and_curves_that_it_measures(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vidmodels.report.published_recipes", lambda dataset: [])
    run = untrained(tmp_path / "run", shards)
    write_curve(measure_curve(run, criteria="entropy", num_points=1, workers=0), tmp_path / "curve")
    page = ["report", str(tmp_path / "run"), "--out", str(tmp_path / "page.html"), "--videos", "0", "--workers", "0"]
    page += ["--timed-runs", "1", "--no-dynamic", "--json", str(tmp_path / "page.json")]
    for how in (["--curve", str(tmp_path / "curve")], ["--early-exit"]):
        result = CliRunner().invoke(app, [*page, *how])
        assert result.exit_code == 0, result.output
        assert "run, leaving by entropy" in (tmp_path / "page.html").read_text()
        [curve] = json.loads((tmp_path / "page.json").read_text())["early_exit"]
        assert curve["rows"][0]["exits"] == "full"
    assert len(curve["rows"]) > 3, "both criteria"


def test_a_budget_is_spent_but_not_exceeded() -> None:
    macs = [10, 20, 30, 40]
    for share in (0.3, 0.5, 0.99):
        q = q_of_budget(share * 40, macs, 1000)
        assert 0.98 * share * 40 < expected_macs(q, macs, 1000) <= share * 40
    with pytest.raises(ValueError, match="the first exit costs"):
        q_of_budget(5, macs, 1000)


@pytest.mark.parametrize(
    ("budget", "sentence"), [(0.01, r"above that of the first exit \(0\.\d+\) and below 1, got 0.01"), (1.5, "got 1.5")]
)
def test_budgets_that_cannot_be_met_are_refused(budget: float, sentence: str, shards: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=sentence):
        measure_curve(untrained(tmp_path, shards), budgets=[budget])


def test_thresholds_of_another_network_are_refused(shards: Path, tmp_path: Path) -> None:
    run, path = untrained(tmp_path / "run", shards), tmp_path / "it.json"
    good: dict[str, Any] = {
        "method": "uni_adafocus",
        "criterion": "entropy",
        "thresholds": [0.5, -NEVER],
        "q": 1.0,
        "solved_share": 0.5,
    }
    for change, sentence in (
        ({"method": "taps"}, "thresholds of taps with 2 exits"),
        ({"thresholds": [1.0]}, "with 1 exits and .* is uni_adafocus with 2"),
        ({"criterion": "hope"}, "the criterion 'hope'"),
        ({"thresholds": None}, "not thresholds as `vidmodels curve` writes them"),
    ):
        path.write_text(json.dumps(good | change))
        with pytest.raises(UsageError, match=sentence):
            read_thresholds(path, run, num_classes=4)
    path.write_text(json.dumps(good))
    assert read_thresholds(path, run, num_classes=4).thresholds == (0.5, -NEVER)
    with pytest.raises(UsageError, match="no such file; `vidmodels curve` writes thresholds"):
        read_thresholds(tmp_path / "none.json", run, num_classes=4)


def test_methods_without_exits_are_refused(shards: Path, tmp_path: Path) -> None:
    run = Run(name="x", recipe=load_recipe("taps/toy"), weights=tmp_path / "x", data=shards)
    with pytest.raises(UsageError, match="taps has no exits; early exit is for uni_adafocus"):
        measure_curve(run)


def test_without_matplotlib_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    with pytest.raises(MissingPackage, match=r"needs the `plots` extra: pip install 'vidprep\[plots\]'"):
        early_exit.check_plots()


def test_a_curve_that_is_written_again_is_the_same(shards: Path, tmp_path: Path) -> None:
    curve = measure_curve(
        untrained(tmp_path / "run", shards), num_points=1, budgets=(), criteria="confidence", workers=0
    )
    written = write_curve(curve, tmp_path / "out")
    assert [path.name for path in written[:2]] == ["curve.csv", "curve.png"]
    before = {path: path.read_bytes() for path in written}
    assert write_curve(curve, tmp_path / "out") == written
    assert all(path.read_bytes() == content for path, content in before.items() if path.suffix != ".png")
