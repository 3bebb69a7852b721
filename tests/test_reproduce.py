"""`scripts/reproduce`: every step is a command that the programs take; on miniatures, those of the data really run."""

import shutil
import sys
from pathlib import Path

import pytest

import vidprep.cli
from scripts.reproduce import annotation_files, compare, data_steps, main, shard_options, steps
from tests.documents import parse
from vidmodels.recipes import list_recipes, load_recipe
from vidprep.datasets import DATASETS
from vidprep.errors import UsageError
from vidprep.miniature import MAKERS, make_miniature


@pytest.mark.parametrize("name", list_recipes())
def test_every_step_of_every_recipe_is_a_command_that_the_programs_take(name: str) -> None:
    recipe = load_recipe(name)
    for checkpoint in ["published.pth", *([None] if recipe.train is not None else [])]:
        found = steps(recipe, data_root="ROOT", out="OUT", checkpoint=checkpoint, init="init.pth")
        for step in found:
            parse(step.command)
        assert found[-1].command[:2] == ("vidmodels", "eval")


def lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return [line[2:] for line in capsys.readouterr().out.splitlines() if line.startswith("$ ")]


def test_the_steps_of_published_weights(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [
        "tam/something_v2_r50_8f",
        "--data-root",
        "ROOT",
        "--from",
        "DIR",
        "--checkpoint",
        "a.pth",
        "--dry-run",
    ]
    assert main(arguments) == 0
    shards = "reproduced/shards/something_v2-whole"
    out = "reproduced/tam/something_v2_r50_8f"
    assert lines(capsys) == [
        "vidprep download something_v2 --data-root ROOT --from DIR",
        "vidprep split something_v2 --annotations ROOT/annotations/labels/validation.json --data-root ROOT",
        "vidprep verify --dataset something_v2 --data-root ROOT --split val --check open",
        f"vidprep shard --dataset something_v2 --data-root ROOT --split val --out {shards}",
        f"mkdir -p {out}",
        f"vidmodels convert tam a.pth {out}/published.safetensors",
        f"vidmodels eval {out}/published.safetensors --recipe tam/something_v2_r50_8f --data {shards} "
        f"--json {out}/result.json",
    ]


def test_the_steps_of_a_training_on_features(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["rgtp_vivit/kinetics400_keep_0215", "--data-root", "ROOT", "--init", "b.safetensors", "--dry-run"]
    assert main(arguments) == 0
    found = lines(capsys)
    shards = "reproduced/shards/kinetics400-frames-25-224"
    assert found[4].endswith(f"--fps 25 --rate-mode output --short-side 224 --out {shards}")
    out = "reproduced/rgtp_vivit/kinetics400_keep_0215"
    init = "--set train.init=b.safetensors"
    assert found[-3:] == [
        f"vidmodels cache rgtp_vivit/kinetics400_keep_0215 --data {shards} {init} --out {out}/features",
        f"vidmodels train rgtp_vivit --recipe kinetics400_keep_0215 --cache {out}/features {init} --out {out}/run",
        f"vidmodels eval {out}/run --data {shards} --json {out}/result.json",
    ]


def test_weights_that_are_ours_already_are_not_converted() -> None:
    recipe = load_recipe("taps/activitynet_offline")
    found = steps(recipe, data_root="ROOT", out="OUT", checkpoint="ours.safetensors")
    assert [step.command[1] for step in found if step.command[0] == "vidmodels"] == ["eval"]


def test_a_data_set_without_a_name_here_is_ones_own_folder() -> None:
    found = steps(load_recipe("sta/ucf101_vit_base"), data_root="ROOT", out="OUT")
    assert [step.command[:4] for step in found[:2]] == [("vidprep", "shard", "--dataset", "folder")] * 2
    assert "data.dataset=folder" in found[-2].command


def test_a_recipe_that_trains_nothing_asks_for_weights(capsys: pytest.CaptureFixture[str]) -> None:
    recipe = load_recipe("rgtp_vitdet/imagenet_vid_672_keep512")
    with pytest.raises(UsageError, match="imagenet_vid_672_keep512 trains nothing: say with --checkpoint where"):
        steps(recipe, data_root="ROOT", out="OUT")
    assert main(["rgtp_vitdet/imagenet_vid_672_keep512", "--data-root", "ROOT"]) == 2
    assert "error: rgtp_vitdet/imagenet_vid_672_keep512 trains nothing" in capsys.readouterr().err
    assert main(["tam/nothing", "--data-root", "ROOT"]) == 2
    assert "error: no recipe 'tam/nothing'" in capsys.readouterr().err


def test_a_step_that_fails_ends_the_run_and_says_what_goes_on(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    arguments = ["tam/something_v2_r50_8f", "--data-root", str(tmp_path), "--from", str(tmp_path / "none")]
    assert main([*arguments, "--checkpoint", "a.pth", "--out", str(tmp_path / "out")]) == 2
    said = capfd.readouterr()
    assert "error: this step ended with status 2." in said.err
    assert "vidprep split" not in said.out


def test_the_number_stands_beside_the_published_one() -> None:
    recipe = load_recipe("tam/something_v2_r50_8f")
    forms = {"trainable": {"top1": 62.0, "top5": 88.125, "map": 1.0}}
    assert compare(recipe, {"runs": [{"forms": forms}]}) == [
        "trainable top1: 62.00; published 62.7, difference -0.70",
        "trainable top5: 88.12; published 88, difference +0.12",
        "trainable map: 1.00; not published",
    ]
    detector = load_recipe("rgtp_vitdet/imagenet_vid_672_keep512")
    assert compare(detector, {"runs": [{"map50": 82.0}]}) == [
        "detector map50: 82.00; published 82.39, difference -0.39"
    ]


@pytest.mark.slow
@pytest.mark.parametrize("name", MAKERS)
def test_the_steps_lead_from_the_archives_of_every_data_set_to_shards(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = make_miniature(name, tmp_path / "MINI")
    info = DATASETS[name]
    splits = (
        [split for split in ("train", "val") if split in info.splits] if "val" in info.splits else list(info.splits)
    )
    options = shard_options("rgtp_vivit", name) or shard_options("taps", name) or shard_options("uni_adafocus", name)
    found = data_steps(info, splits=splits, data_root="ROOT", shards="SHARDS", options=options, source="MINI/archives")
    monkeypatch.chdir(tmp_path)
    is_listed = False
    for step in found:
        words = list(step.command)
        if words[1] == "download" and "--from" not in words:
            # What the network would bring lies in the miniature: archives, and annotation files beside them.
            words = ["vidprep", "download", name, "--data-root", "ROOT", "--from", "MINI/archives"]
        if words[1] == "split":
            is_listed = True
            for wanted in annotation_files(info, splits):
                if not Path("ROOT", wanted).exists():
                    given = next(path for path in made.annotation_files if path.name == Path(wanted).name)
                    Path("ROOT", wanted).parent.mkdir(parents=True, exist_ok=True)
                    shutil.copy(given, Path("ROOT", wanted))
        monkeypatch.setattr(sys, "argv", words)
        status = vidprep.cli.main()
        # Miniatures hold faulty videos on purpose.
        assert status in ((0, 1) if step.names_what_is_missing else (0,)), step.line()
    assert is_listed
    assert sorted(path.stem for path in Path("SHARDS").glob("*.json") if path.stem in splits) == sorted(splits)
