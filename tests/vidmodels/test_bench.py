import json
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from vidmodels.bench import Measured, Precision, bench_recipes
from vidmodels.checkpoints import save_weights
from vidmodels.cli import app, main
from vidmodels.cost import count_cost, time_in_turns
from vidmodels.forms import BENCH_RECIPES, FORMS, Amounts, Forms, Masks, make_forms
from vidmodels.measuring import compare, machine_facts
from vidmodels.memory import measure_peak_memory
from vidmodels.methods import METHODS
from vidmodels.recipes import load_recipe
from vidmodels.types import Output
from vidprep.errors import UsageError

TOYS = {
    "taps": "taps/toy",
    "sta": "sta/toy_r11",
    "rgtp_vivit": "rgtp_vivit/toy_keep_02",
    "tam": "tam/toy",
    "uni_adafocus": "uni_adafocus/toy",
    "rgtp_vitdet": "rgtp_vitdet/toy",
}
NUM_CLASSES = 8


def build(name: str) -> nn.Module:
    recipe = load_recipe(name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = METHODS[recipe.method].build(recipe.model, NUM_CLASSES).eval()
        for module in model.modules():
            if isinstance(module, nn.Linear) and module.out_features == NUM_CLASSES:
                nn.init.normal_(module.weight)
    return model


def forms_of(name: str, num_clips: int = 2, amounts: Amounts | None = None) -> Forms:
    return make_forms(load_recipe(name), build(name), num_clips=num_clips, amounts=amounts)


# ---- forms ----


def test_every_method_has_forms_and_a_published_recipe_to_measure() -> None:
    assert set(FORMS) == set(BENCH_RECIPES) == set(TOYS) == set(METHODS)
    for method, name in BENCH_RECIPES.items():
        assert load_recipe(name).method == method
        assert load_recipe(name).published is not None


@pytest.mark.parametrize("name", TOYS.values())
def test_what_is_compared_is_there_and_counts_what_it_says(name: str) -> None:
    made = forms_of(name)
    known = {form.name: form for form in made.forms}
    assert len(known) == len(made.forms)
    assert all(pair[0] in known and pair[1] in known for pair in made.pairs)
    assert made.pairs[0][0] == "dynamic"
    with torch.no_grad():
        for form in made.forms:
            form.run()
    assert made.unit == ("frame" if name == "rgtp_vitdet/toy" else "clip")


@pytest.mark.parametrize("masks", ["same", "clip", "frame"])
@pytest.mark.parametrize("kept", [0.1, 1 / 3, 0.75, 1.0])
def test_the_set_share_of_channels_is_kept(kept: float, masks: Masks) -> None:
    made = forms_of("taps/toy", 4, Amounts(kept=kept, masks=masks))
    shares = float(made.amount.partition(" %")[0]) / 100
    assert shares == pytest.approx(kept, abs=0.06)


def test_masks_differ_by_clip_or_by_frame_where_they_are_to() -> None:
    recipe = load_recipe("taps/toy")

    def spread(masks: Masks) -> tuple[float, float]:
        """Shares of gates that differ from those of another frame, and of another clip."""
        made = make_forms(recipe, build("taps/toy"), num_clips=4, amounts=Amounts(masks=masks))
        form = next(form for form in made.forms if form.name == "dynamic")
        output = form.run()
        assert isinstance(output, Output)
        gates = output.aux["masks"]
        return float((gates != gates[:, 3:4]).float().mean()), float((gates != gates[:1]).float().mean())

    assert spread("same") == (0, 0)
    of_clips, of_frames = spread("clip"), spread("frame")
    assert of_clips[0] < 0.7 * of_frames[0]  # not 0: the shift brings zeros to the ends of a clip
    assert min(of_clips[1], of_frames[1]) > 0.2


def test_given_weights_decide_themselves_which_channels_are_kept() -> None:
    recipe, model = load_recipe("taps/toy"), build("taps/toy")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    made = make_forms(recipe, model, num_clips=2, is_trained=True)
    assert made.amount.endswith("as the given weights decide on random clips")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(("budget", "share"), [(0.3, 25), (0.5, 44), (1.0, 100)])
def test_videos_leave_where_the_budget_is_met_best(budget: float, share: int) -> None:
    made = forms_of("uni_adafocus/toy", 4, Amounts(budget=budget))
    assert made.amount.endswith(f", {share} % of the full run")


def test_the_budget_is_spread_over_all_exits_of_a_network_with_many() -> None:
    recipe = load_recipe("uni_adafocus/toy", ["model.variant='pooling'", "model.num_candidates=32"])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = METHODS["uni_adafocus"].build(recipe.model, NUM_CLASSES).eval()
        for module in model.modules():
            if isinstance(module, nn.Linear) and module.out_features == NUM_CLASSES:
                nn.init.normal_(module.weight)
    made = make_forms(recipe, model, num_clips=8)
    exits, _, share = made.amount.partition(" of 8, ")
    assert len(set(exits.removeprefix("exits ").split(", "))) >= 4
    assert 40 <= int(share.partition(" %")[0]) <= 60


@pytest.mark.parametrize(
    ("name", "overrides", "instead"),
    [
        ("taps/toy_dense", [], "taps/mini_kinetics_online, or --set model.pruning=true"),
        ("sta/toy", [], "sta/something_v2_vit_base_r64, or --set model.prune_number=64"),
        ("rgtp_vivit/toy", [], "rgtp_vivit/kinetics400_keep_0215, or --set model.mode=rollout"),
    ],
)
def test_a_recipe_that_drops_nothing_is_refused(name: str, overrides: list[str], instead: str) -> None:
    with pytest.raises(UsageError, match=f"recipe {name} drops nothing, .* take {instead}."):
        forms_of(name)


@pytest.mark.parametrize(
    ("amounts", "sentence"),
    [
        ({"kept": 0.0}, r"--kept is a share of the channels in \(0, 1\], got 0"),
        ({"kept": 1.5}, "got 1.5"),
        ({"budget": -1.0}, r"--budget is a share of the full run in \(0, 1\], got -1"),
    ],
)
def test_impossible_amounts_are_refused(amounts: dict[str, float], sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        Amounts(**amounts)  # type: ignore[arg-type]


# ---- measurements ----


@pytest.fixture(scope="module")
def measured() -> dict[str, Measured]:
    before = torch.get_num_threads()
    found = bench_recipes(list(TOYS.values()), clips=(2,), rounds=2, device="cpu", threads=1)
    measured = {one.recipe: one for one in found}
    assert torch.get_num_threads() == before
    return measured


def test_all_methods_are_measured_in_turn(measured: dict[str, Measured]) -> None:
    assert list(measured) == list(TOYS.values())
    for one in measured.values():
        assert one.device == "cpu with 1 thread"
        assert one.rounds == 2
        for form in one.forms:
            assert 0 < form.min_ms <= form.median_ms <= form.max_ms
            assert 0 < form.cpu_min_ms <= form.cpu_median_ms <= form.cpu_max_ms
            assert form.gmacs > 0
            assert form.memory is not None
            assert form.memory.peak_mib > form.memory.rise_mib >= 0
        for speed_up in one.speed_ups:
            assert len(speed_up.by_time.runs) == 2
            assert speed_up.time_over_macs.median == pytest.approx(speed_up.by_time.median / speed_up.by_macs)


def test_promises_are_counted_from_what_ran(measured: dict[str, Measured]) -> None:
    for one in measured.values():
        gmacs = {form.name: form.gmacs for form in one.forms}
        for speed_up in one.speed_ups:
            assert speed_up.by_macs == pytest.approx(gmacs[speed_up.against] / gmacs[speed_up.form])
    recipe, model = load_recipe("sta/toy_r11"), build("sta/toy_r11")
    clip = torch.randn(1, recipe.data.num_frames, 3, recipe.eval_crop, recipe.eval_crop)
    ours = next(form for form in measured["sta/toy_r11"].forms if form.name == "dynamic")
    assert ours.gmacs == pytest.approx(count_cost(model, clip).macs / 1e9)
    assert measured["tam/toy"].speed_ups[0].by_macs == 1


@pytest.mark.slow
def test_bfloat16_runs_every_method_that_allows_it() -> None:
    names = [name for name in TOYS.values() if name != "rgtp_vitdet/toy"]
    found = list(bench_recipes(names, clips=(1,), rounds=1, device="cpu", threads=1, precision="bf16"))
    assert [one.precision for one in found] == ["bf16"] * len(names)


def test_a_detector_is_not_measured_in_bfloat16() -> None:
    with pytest.raises(UsageError, match="rgtp_vitdet keeps what it computed of earlier frames in float32"):
        next(bench_recipes(["rgtp_vitdet/toy"], device="cpu", precision="bf16"))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_all_methods_are_measured_on_a_gpu() -> None:
    precisions: tuple[Precision, ...] = ("float32", "bf16", "fp16")
    for precision in precisions:
        names = [name for name in TOYS.values() if precision == "float32" or name != "rgtp_vitdet/toy"]
        found = list(bench_recipes(names, clips=(1, 4), rounds=2, device="cuda", precision=precision))
        assert len(found) == 2 * len(names)
        for one in found:
            assert one.device == torch.cuda.get_device_name()
            assert all(form.memory is not None and form.memory.rise_mib > 0 for form in one.forms)


def test_the_peak_of_a_call_is_what_it_held_at_most() -> None:
    def call() -> None:
        torch.ones(32 * 2**18)  # 32 MiB
        torch.ones(64 * 2**18)

    memory = measure_peak_memory(call, torch.device("cpu"))
    assert memory is not None
    assert 60 < memory.rise_mib < 90
    assert memory.peak_mib > memory.rise_mib


def test_rates_are_compared_round_by_round() -> None:
    ratio = compare([2.0, 6.0, 3.0], [1.0, 2.0, 2.0])
    assert ratio.runs == (2.0, 3.0, 1.5)
    assert (ratio.median, ratio.min, ratio.max) == (2.0, 1.5, 3.0)
    assert ratio.over(2).runs == (1.0, 1.5, 0.75)


def test_a_missing_package_is_said() -> None:
    facts = machine_facts(["torch", "no-such-package"])
    assert facts["packages"] == {"torch": version("torch"), "no-such-package": "not installed"}


def test_timings_hold_every_run() -> None:
    timings = time_in_turns({"a": lambda: None, "b": lambda: None}, warmup=0, runs=3)
    assert {name: len(timing.wall_ms) for name, timing in timings.items()} == {"a": 3, "b": 3}


# ---- the command ----


def invoke(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["bench", *arguments], catch_exceptions=False)
    assert result.exit_code == 0
    return result.output


def test_the_command_prints_and_writes_what_it_measured(tmp_path: Path) -> None:
    out = tmp_path / "bench.json"
    text = invoke("sta/toy_r11", "--clips", "1,2", "--rounds", "1", "--device", "cpu", "--json", str(out))
    assert text.count("sta/toy_r11, ") == 2
    assert "sta/toy_r11, 1 clip a call, cpu with" in text
    assert "dropped: r = 11, whatever the clip shows" in text
    assert "time over MACs" in text
    content = json.loads(out.read_text(encoding="utf-8"))
    assert [one["num_clips"] for one in content["measured"]] == [1, 2]
    assert {"cpu", "num_cores", "system", "python", "packages"} <= set(content["machine"])
    first = content["measured"][0]
    assert first["speed_ups"][0]["time_over_macs"]["median"] > 0
    assert {form["name"] for form in first["forms"]} == {"dense", "dynamic"}


def test_the_command_takes_a_checkpoint(tmp_path: Path) -> None:
    weights = tmp_path / "tanet.safetensors"
    save_weights(weights, build("tam/toy").state_dict(), {"method": "tam"})
    text = invoke("tam/toy", "--checkpoint", str(weights), "--clips", "1", "--rounds", "1", "--device", "cpu")
    assert "tam/toy, 1 clip a call" in text


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["no_such_recipe"], "no_such_recipe"),
        (["tam/toy", "--clips", "0"], "--clips are numbers of at least 1, got 0."),
        (["tam/toy", "--clips", "many"], "--clips are numbers such as 1,4,8, got 'many'."),
        (["tam/toy", "--rounds", "0"], "--rounds and --threads must be at least 1, got 0 and None."),
        (["tam/toy", "--threads", "0"], "--rounds and --threads must be at least 1, got 5 and 0."),
        (["tam/toy", "--precision", "int8"], "--precision is one of float32, bf16, fp16, got 'int8'."),
        (["tam/toy", "--precision", "fp16", "--device", "cpu"], "--precision fp16 is for GPUs; a CPU takes float32"),
        (["tam/toy", "--masks", "none"], "--masks is one of same, clip, frame, got 'none'."),
        (["tam/toy", "--kept", "2"], "--kept is a share of the channels in (0, 1], got 2."),
        (["tam/toy", "sta/toy_r11", "--checkpoint", "x"], "--checkpoint holds the weights of one recipe, got 2"),
        (["tam/toy", "--json", "no_such_folder/x.json"], "--json: no folder"),
        (["sta/toy", "--device", "cpu"], "recipe sta/toy drops nothing"),
    ],
)
def test_wrong_arguments_are_one_sentence_and_status_2(
    arguments: list[str], sentence: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["vidmodels", "bench", *arguments])
    assert main() == 2
    error = " ".join(capfd.readouterr().err.split())
    assert sentence in error
    assert "Traceback" not in error


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_device_that_is_not_there_is_refused() -> None:
    with pytest.raises(UsageError, match="device 'cuda' is not to be had here"):
        next(bench_recipes(["tam/toy"], device="cuda"))
