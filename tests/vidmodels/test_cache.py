import json
import logging
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from tests.vidmodels.shards import TINY as TINY_TAPS
from tests.vidmodels.shards import write_tiny_shards
from vidmodels import cache
from vidmodels.cache import CachedSplit, cache_features, find_cached
from vidmodels.checkpoints import load_checkpoint, save_weights
from vidmodels.cli import app
from vidmodels.data import open_test_split
from vidmodels.features import FeatureDataset, open_features
from vidmodels.methods.rgtp import RgtpVivit, build
from vidmodels.methods.rgtp.training import SPATIAL
from vidmodels.recipes import load_recipe
from vidmodels.runs import find_run
from vidmodels.train import train
from vidmodels.types import Recipe
from vidprep.errors import CorruptShard, UsageError

TINY = (
    "data.dataset=numbers",
    "data.num_frames=8",
    "data.dense_window=8",
    "data.resize=40",
    "data.crop=32",
    "model.num_frames=8",
    "model.image_size=32",
    "model.keep_ratio=0.25",
    "model.shape.width=24",
    "model.shape.num_heads=2",
    "eval.num_clips=2",
    "eval.num_crops=3",
    "eval.batch_size=2",
    "eval.clips_per_call=5",
    "train.epochs=2",
    "train.batch_size=4",
    "train.warmup_epochs=0",
    "eval.best_from_epoch=1",
)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Splits train and val of eight videos each, in four classes."""
    return write_tiny_shards(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "start.safetensors"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        save_weights(path, model_of(tiny(path)).state_dict(), {"method": "rgtp_vivit"})
    return path


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "VIDEOS_PER_SHARD", 3)  # 2 of them: whole batches


def tiny(weights: Path, overrides: Sequence[str] = ()) -> Recipe:
    return load_recipe("rgtp_vivit/toy_keep_02", [*TINY, f"train.init={weights}", *overrides])


def model_of(recipe: Recipe) -> RgtpVivit:
    return build(recipe.model, 4).eval()


def write(weights: Path, shards: Path, out: Path, overrides: Sequence[str] = ()) -> list[CachedSplit]:
    run = find_cached("rgtp_vivit/toy_keep_02", overrides=[*TINY, f"train.init={weights}", *overrides])
    return list(cache_features(run, shards, out, device="cpu", workers=0))


@pytest.fixture(scope="module")
def cached(tmp_path_factory: pytest.TempPathFactory, shards: Path, weights: Path) -> Path:
    """Both splits, which tests do not change."""
    out = tmp_path_factory.mktemp("cached") / "features"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cache, "VIDEOS_PER_SHARD", 3)
        write(weights, shards, out)
    return out


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# ---- writing ----


def test_a_cache_holds_what_the_model_makes_of_every_view(cached: Path, shards: Path, weights: Path) -> None:
    recipe = tiny(weights)
    features, clips = open_features(recipe, cached, "val"), open_test_split(recipe, shards, "val")
    model = model_of(recipe)
    model.load_state_dict(load_checkpoint(weights))
    assert len(features) == len(clips) == 8
    assert features.manifest.num_shards == len(features.manifest.shards) == 4
    for index in (0, 5, 7):
        sample, clip = features[index], clips[index]
        assert (sample.video_id, sample.labels) == (clip.video_id, clip.labels)
        with torch.no_grad():
            expected = model.spatial_features(clip.frames)
        torch.testing.assert_close(sample.frames[..., 0, 0], expected, atol=1e-5, rtol=1e-5)
    with pytest.raises(IndexError, match="sample 8 of a data set of 8"):
        features[8]


def test_a_run_that_was_stopped_goes_on_and_ends_with_the_same_bytes(
    cached: Path, shards: Path, weights: Path, tmp_path: Path
) -> None:
    out = tmp_path / "features"
    shutil.copytree(cached, out)
    (out / "val-000001.safetensors").unlink()
    (out / "val-000003.safetensors").unlink()
    (out / "train.json").unlink()
    unfinished = json.loads((out / "val.json").read_text()) | {"shards": []}
    (out / "val.json").write_text(json.dumps(unfinished))
    with pytest.raises(UsageError, match=r"val\.json: this cache is not finished; the same `vidmodels cache` goes on"):
        FeatureDataset(out, "val")
    done = write(weights, shards, out)
    assert [split.num_new for split in done] == [0, 2]
    assert "val: 8 videos x 6 views x 4 x 24, 4 shards (2 new)" in done[1].sentence
    assert contents(out) == contents(cached)


def test_a_damaged_shard_is_named_when_it_is_read_and_written_again_on_request(
    cached: Path, shards: Path, weights: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "features"
    shutil.copytree(cached, out)
    broken = out / "val-000002.safetensors"
    content = bytearray(broken.read_bytes())
    content[-5] ^= 1
    broken.write_bytes(content)
    dataset = FeatureDataset(out, "val")
    assert dataset[0].frames.shape == (6, 4, 24, 1, 1)
    with pytest.raises(CorruptShard, match=r"val-000002\.safetensors: damaged: its SHA-256 is .* by val\.json"):
        dataset[4]
    with caplog.at_level(logging.WARNING):
        write(weights, shards, out)
    assert "val-000002.safetensors: damaged: its features are not those that were written. It is written" in caplog.text
    assert contents(out) == contents(cached)
    broken.write_bytes(content[:1000])
    with pytest.raises(CorruptShard, match=r"val-000002\.safetensors: missing, or not \d+ bytes long"):
        FeatureDataset(out, "val")
    write(weights, shards, out)
    assert contents(out) == contents(cached)


def test_a_folder_with_other_features_is_left_alone(cached: Path, shards: Path, weights: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"train\.json: features of other videos, settings or weights: .*keep_ratio"):
        write(weights, shards, cached, ["model.keep_ratio=0.5"])
    out = tmp_path / "features"
    shutil.copytree(cached, out)
    (out / "train.json").unlink()
    with pytest.raises(UsageError, match=r"train-000000\.safetensors: features of other videos, settings or weights"):
        write(weights, shards, out, ["model.keep_ratio=0.5"])


def test_what_cannot_be_cached_is_refused(shards: Path, weights: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="recipe kinetics400_base does not say which weights to start from"):
        find_cached("kinetics400_base")
    with pytest.raises(UsageError, match="has weights of its own; name a recipe to cache with"):
        find_cached(str(weights), weights=weights)
    run = find_cached("taps/toy", weights=weights, overrides=list(TINY_TAPS))
    with pytest.raises(UsageError, match="taps has no features to cache"):
        next(cache_features(run, shards, tmp_path / "features"))


# ---- reading and training ----


def test_features_of_other_settings_are_refused(cached: Path, weights: Path, tmp_path: Path) -> None:
    with pytest.raises(
        UsageError, match=r"features of other settings than recipe .*model\.keep_ratio: 0\.25 there, 0\.5"
    ):
        open_features(tiny(weights, ["model.keep_ratio=0.5"]), cached, "train")
    with pytest.raises(UsageError, match=r"data\.num_crops: 3 there, 1 now"):
        open_features(tiny(weights, ["eval.num_crops=1"]), cached, "train")
    with pytest.raises(UsageError, match="features of numbers, but recipe toy_keep_02 is for toy"):
        open_features(tiny(weights, ["data.dataset=toy"]), cached, "train")
    with pytest.raises(UsageError, match=r"no cached features of this split \(there: train, val\)"):
        open_features(tiny(weights), cached, "test")
    (tmp_path / "val.json").write_text("{}")
    with pytest.raises(CorruptShard, match=r"val\.json: no index of cached features"):
        open_features(tiny(weights), tmp_path, "val")


def test_training_on_a_cache_changes_the_rest_and_leaves_a_whole_checkpoint(
    cached: Path, shards: Path, weights: Path, tmp_path: Path
) -> None:
    out, recipe = tmp_path / "run", tiny(weights)
    result = train(recipe, None, out, cache=cached, device="cpu", workers=0)
    assert result["best_epoch"] == 1  # the last one, as published
    start, end = load_checkpoint(weights), load_checkpoint(out / "best.safetensors")
    assert set(end) == set(start)
    changed = {name for name in end if not torch.equal(start[name], end[name])}
    assert not any(name.startswith(SPATIAL) for name in changed)
    assert {"head.weight", "head.bias", "backbone.temporal.norm.weight"} <= changed
    assert find_run(out).data == shards.resolve()  # where `vidmodels eval` finds the clips
    facts = json.loads((out / "run.json").read_text())
    assert facts["cache"] == str(cached)
    again = train(recipe, None, out, cache=cached, device="cpu", workers=0)
    assert again == result


def test_training_on_a_cache_of_other_weights_is_refused(cached: Path, weights: Path, tmp_path: Path) -> None:
    state = load_checkpoint(weights)
    state["backbone.spatial.cls_token"] += 1e-6
    other = tmp_path / "other.safetensors"
    save_weights(other, state, {"method": "rgtp_vivit"})
    with pytest.raises(
        UsageError, match=r"split train: features of other weights \(SHA-256 .* than train\.init = .*other"
    ):
        train(tiny(other), None, tmp_path / "run", cache=cached, device="cpu", workers=0)
    with pytest.raises(UsageError, match=r"trains backbone\.patch_embed.* freeze them \(model\.trained = "):
        train(tiny(weights, ["model.trained=all"]), None, tmp_path / "run", cache=cached, device="cpu", workers=0)
    assert not (tmp_path / "run").exists()


# ---- the command line ----


def test_the_commands_cache_and_train(shards: Path, weights: Path, tmp_path: Path) -> None:
    changes = [part for change in (*TINY, "eval.num_crops=1", f"train.init={weights}") for part in ("--set", change)]
    features = str(tmp_path / "features")
    common = ["--workers", "0", "--device", "cpu", *changes]
    args = ["cache", "rgtp_vivit/toy_keep_02", "--data", str(shards), "--out", features, *common]
    done = CliRunner().invoke(app, args)
    assert done.exit_code == 0, done.output
    assert "train: 8 videos x 2 views x 4 x 24" in done.output
    args = [
        "train",
        "rgtp_vivit",
        "--recipe",
        "toy_keep_02",
        "--cache",
        features,
        "--out",
        str(tmp_path / "run"),
        *common,
    ]
    assert CliRunner().invoke(app, args).exit_code == 0
    both = CliRunner().invoke(app, [*args, "--data", str(shards)])
    assert isinstance(both.exception, UsageError)
    assert str(both.exception) == "training needs either --data SHARDS or --cache FOLDER."
