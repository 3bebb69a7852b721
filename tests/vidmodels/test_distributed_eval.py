"""Several processes score each video once, and come to the figures of one to the last bit."""

import json
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from tests.vidmodels import detection_shards, fakes
from tests.vidmodels.shards import TINY, write_tiny_shards
from vidmodels.checkpoints import save_weights
from vidmodels.cli import main
from vidmodels.distributed import World
from vidmodels.evaluate import Result, classify
from vidmodels.methods import METHODS
from vidmodels.recipes import dump_recipe, load_recipe
from vidprep.errors import UsageError
from vidprep.load.loader import make_loader

ROOT = Path(__file__).parents[2]


def write_model(path: Path, name: str, *changes: str) -> None:
    """A model of a toy recipe that learnt nothing."""
    recipe = load_recipe(name, changes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = METHODS[recipe.method].build(recipe.model, 4)
    save_weights(path, model.state_dict(), {"method": recipe.method, "recipe": dump_recipe(recipe)})


def evaluate(arguments: list[str], *, ranks: int) -> list[str]:
    """Run a command in so many processes, as torchrun would start them; what each of them printed."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    given = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    if ranks > 1:
        given |= {"WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "vidmodels.cli", *arguments],
            env=given | ({"RANK": str(rank), "LOCAL_RANK": str(rank)} if ranks > 1 else {}),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(ranks)
    ]
    said = [process.communicate(timeout=400) for process in processes]
    assert [process.returncode for process in processes] == [0] * ranks, [errors for _, errors in said]
    return [out for out, _ in said]


def without_times(path: Path) -> Any:
    content = json.loads(path.read_text())
    for run in content["runs"]:
        for part in (run, *run.get("forms", {}).values()):
            part.pop("latency", None)
    return content


def check_two_processes(tmp_path: Path, model: Path, data: Path) -> None:
    """Their figures and predictions are those of one, and only the first one prints."""

    def evaluation(out: Path) -> list[str]:
        files = ("--json", f"{out}.json", "--predictions", f"{out}.parquet")
        return ["eval", str(model), "--data", str(data), "--device", "cpu", "--timed-runs", "1", *files]

    one, two = tmp_path / "one", tmp_path / "two"
    [said_by_one] = evaluate(evaluation(one), ranks=1)
    said_by_first, said_by_second = evaluate(evaluation(two), ranks=2)
    assert said_by_second == ""
    assert len(said_by_first.splitlines()) == len(said_by_one.splitlines())
    assert without_times(two.with_suffix(".json")) == without_times(one.with_suffix(".json"))
    of_one, of_two = (pd.read_parquet(name.with_suffix(".parquet")) for name in (one, two))
    assert len(of_one)
    pd.testing.assert_frame_equal(of_two, of_one, check_exact=True)


def test_two_processes_come_to_the_figures_of_one(tmp_path: Path) -> None:
    data, model = write_tiny_shards(tmp_path), tmp_path / "taps.safetensors"
    views = ("eval.batch_size=3", "eval.num_clips=2", "eval.clips_per_call=4")  # of 8 videos: batches of 3, 3 and 2
    write_model(model, "taps/toy", *TINY, *views)
    check_two_processes(tmp_path, model, data)


@pytest.mark.slow
def test_two_processes_share_the_sequences_of_a_detector(tmp_path: Path) -> None:
    data, model = detection_shards.write_detection_shards(tmp_path, train=1, val=3), tmp_path / "detector.safetensors"
    write_model(model, "rgtp_vitdet/toy", *detection_shards.TINY)
    check_two_processes(tmp_path, model, data)


class ThreadWorld(World):
    """Threads in the place of processes."""

    def gather(self, value: Any) -> list[Any]:
        meeting, values = MEETINGS[self.size]
        values[self.rank] = value
        meeting.wait()
        found = [values[rank] for rank in range(self.size)]
        meeting.wait()
        return found


MEETINGS: dict[int, tuple[threading.Barrier, dict[int, Any]]] = {
    size: (threading.Barrier(size, timeout=60), {}) for size in (2, 3, 5)
}


@pytest.mark.parametrize("ranks", [2, 3, 5])
def test_every_process_has_the_result_of_all_even_one_without_a_batch(ranks: int) -> None:
    split = fakes.FakeSplit("val", 11, num_views=2)  # batches of 3: four of them
    model = fakes.FakeModel(fakes.FakeConfig(), 3).eval()

    def score(world: World) -> Result:
        loader = make_loader(split, batch_size=3, workers=0, rank=world.rank, world_size=world.size, share="batches")
        return classify(model, loader, num_classes=3, summarise=fakes.METHOD.summarise, world=world, quiet=True)

    alone = score(World())
    assert alone.video_id == tuple(f"val{k}" for k in range(11))
    results: list[Result | None] = [None] * ranks

    def run(rank: int) -> None:
        results[rank] = score(ThreadWorld(rank=rank, size=ranks))

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(ranks)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for result in results:
        assert result is not None
        assert (result.video_id, result.metrics, result.num_clips) == (alone.video_id, alone.metrics, alone.num_clips)
        assert torch.equal(result.scores, alone.scores)
        assert torch.equal(result.labels, alone.labels)


def test_batches_are_shared_whole_and_only_in_order() -> None:
    split = fakes.FakeSplit("val", 11)
    ids = [
        [batch.video_id for batch in make_loader(split, batch_size=3, workers=0, rank=r, world_size=2, share="batches")]
        for r in range(2)
    ]
    assert ids == [[["val0", "val1", "val2"], ["val6", "val7", "val8"]], [["val3", "val4", "val5"], ["val9", "val10"]]]
    with pytest.raises(UsageError, match=r"'batches' without shuffle and drop_last; got 'batches', shuffle = True"):
        make_loader(split, batch_size=3, share="batches", shuffle=True)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["list"], "`vidmodels list` is for one process, torchrun started 2; leave torchrun out."),
        (
            ["eval", "taps.safetensors", "--recipe", "taps/toy", "--thresholds", "t.json"],
            "--thresholds measure time video by video, which several processes disturb; leave torchrun out.",
        ),
    ],
)
def test_what_is_for_one_process_is_refused_in_several(
    arguments: list[str], sentence: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "argv", ["vidmodels", *arguments])
    assert main() == 2
    assert sentence in capsys.readouterr().err
