"""Every script of docs/reuse.md runs as it stands there, and reads what it should."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.vidprep.load.folders import numbered_sources, write_shard_folder
from vidprep.types import Video

ROOT = Path(__file__).parent.parent
DOCUMENT = (ROOT / "docs" / "reuse.md").read_text(encoding="utf-8")
SCRIPT_OF_A_HEADING = re.compile(r"^## ([^\n]+)\n(?:(?!^## ).)*?```python\n(.*?)```", re.DOTALL | re.MULTILINE)
SCRIPTS: dict[str, str] = dict(SCRIPT_OF_A_HEADING.findall(DOCUMENT))
NUM_VIDEOS = 16

# Counts what a script trains on, epoch by epoch; a warning about our code is an error, other projects have their own.
DRIVER = """
import json, sys, warnings
from vidprep.load import ShardDataset

warnings.filterwarnings("error", module=r"vidprep\\b")
read, begin = [], ShardDataset.begin

def counted(self, index, *, epoch, **others):
    if self.make.settings.train:
        read.append((epoch, index))
    return begin(self, index, epoch=epoch, **others)

ShardDataset.begin = counted
script = {"__name__": "__main__"}  # kept to the end, as what a script makes is
with open(sys.argv[1]) as file:
    exec(compile(file.read(), sys.argv[1], "exec"), script)
print("READ " + json.dumps(read))
"""


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("examples")
    videos = [Video(video_id=f"v{k}", labels=(k % 8,)) for k in range(NUM_VIDEOS)]
    sources = numbered_sources(folder, videos, num_frames=12)
    for split in ("train", "val"):
        write_shard_folder(folder / "SHARDS", sources, split=split, num_classes=8, per_shard=8)
    return folder / "SHARDS"


def run(folder: Path, shards: Path, script: str, *, launcher: tuple[str, ...] = ()) -> str:
    """What a script prints, with its shards at hand and no GPU."""
    (folder / "SHARDS").symlink_to(shards)
    (folder / "script.py").write_text(script, encoding="utf-8")
    (folder / "driver.py").write_text(DRIVER, encoding="utf-8")
    quiet = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, *launcher, "driver.py", "script.py"],
        cwd=folder,
        env={**os.environ, **quiet},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def assert_trained_on_every_video_in_both_epochs(output: str) -> None:
    lines = [line for line in output.splitlines() if line.startswith("READ ")]
    read = sorted(tuple(pair) for line in lines for pair in json.loads(line.removeprefix("READ ")))
    assert read == [(epoch, index) for epoch in (0, 1) for index in range(NUM_VIDEOS)]
    assert re.search(r"top-1 \d+\.\d%$", output, re.MULTILINE)


def test_there_is_a_script_for_each_framework() -> None:
    assert list(SCRIPTS) == [
        "Plain PyTorch",
        "Lightning",
        "Hugging Face `datasets` and `Trainer`",
        "MMAction2's dataset interface",
    ]


@pytest.mark.parametrize(
    ("script", "package"),
    [
        ("Plain PyTorch", "torch"),
        pytest.param("Lightning", "lightning", marks=pytest.mark.slow),
        pytest.param("Hugging Face `datasets` and `Trainer`", "transformers", marks=pytest.mark.slow),
        pytest.param("MMAction2's dataset interface", "mmengine", marks=pytest.mark.slow),
    ],
)
def test_the_script_trains_on_every_video_in_each_epoch(
    tmp_path: Path, shards: Path, script: str, package: str
) -> None:
    pytest.importorskip(package)
    assert_trained_on_every_video_in_both_epochs(run(tmp_path, shards, SCRIPTS[script]))


@pytest.mark.slow
def test_the_plain_script_runs_in_two_processes(tmp_path: Path, shards: Path) -> None:
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
    assert_trained_on_every_video_in_both_epochs(run(tmp_path, shards, SCRIPTS["Plain PyTorch"], launcher=launcher))


@pytest.mark.slow
def test_the_webdataset_script_of_the_page_on_loading_runs(tmp_path: Path, shards: Path) -> None:
    page = (ROOT / "docs" / "loading.md").read_text(encoding="utf-8")
    (script,) = [script for script in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "webdataset(" in script]
    output = run(tmp_path, shards, script + "print(*batch.frames.shape)\n")
    assert output.splitlines()[0] == "8 1 8 3 224 224"  # a shard of 8 for each of two workers


def test_loaders_bring_no_model_code() -> None:
    code = "import sys, vidprep, vidprep.load; print(sorted({name.split('.')[0] for name in sys.modules}))"
    command = [sys.executable, "-c", code]
    loaded = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "'vidprep'" in loaded
    assert not re.search(r"'(vidmodels|timm|nvidia|lightning|transformers)'", loaded)
