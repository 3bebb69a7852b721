"""Every command of the documents is one that the programs take; it is run here, or stands marked with what it needs.

A new command in a document: it is parsed at once. To have it run, see that a rule of `RULES` fits; to mark it, write
`<!-- needs: ... -->` before its block, or `needs: ...` at the end of the comment behind it.
"""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

import vidmodels.cli
import vidprep.cli
from scripts.reproduce import main as reproduce
from tests.documents import (
    Block,
    Command,
    blocks,
    inline_commands,
    names_that_are_missing,
    parse,
    python_blocks,
)
from tests.toy_clips import ONE_EPOCH, write_toy_clips
from tests.videos import write_numbered_video
from tests.vidmodels.detection_shards import TINY as TINY_DETECTOR
from tests.vidmodels.detection_shards import write_detection_shards
from vidprep.datasets import DATASETS
from vidprep.miniature import MAKERS, make_miniature

ROOT = Path(__file__).parent.parent
BLOCKS = blocks()
MAINS = {"vidprep": vidprep.cli.main, "vidmodels": vidmodels.cli.main}


@dataclass(frozen=True, kw_only=True)
class Rule:
    """How a command is run: the first rule fits whose expression the command begins with."""

    begins: str
    """A regular expression; {dataset} stands for the name of any data set that has a miniature."""
    world: str = "empty"
    """The folder that it is run in: a name of `WORLDS`, or that of a data set ("{dataset}": the one that is named)."""
    added: tuple[str, ...] = ()
    """Words behind the command, such as changes that make it short."""
    status: tuple[int, ...] = (0,)
    is_quick: bool = False


TRAIN = tuple(word for change in ONE_EPOCH for word in ("--set", change))
DETECTOR = tuple(word for change in (*TINY_DETECTOR, "train.warmup_epochs=0") for word in ("--set", change))
SOME_MISSING = (0, 1)
"""Miniatures hold faulty videos on purpose, which their commands name, with status 1."""

RULES = (
    Rule(begins=r"vidprep (list|info)\b", is_quick=True),
    Rule(begins=r"vidprep doctor", status=SOME_MISSING),
    Rule(begins=r"vidprep miniature "),
    Rule(begins=r"vidprep toy\b"),
    Rule(begins=r"vidprep (ledger|inspect) SHARDS", world="clips", is_quick=True),
    Rule(begins=r"vidprep (verify|repair|report) SHARDS", world="clips"),
    Rule(begins=r"vidprep bench load", world="clips", added=("--rounds", "1", "--seconds", "0.1")),
    Rule(begins=r"vidprep ledger ROOT/frames/val", world="extracted"),
    Rule(begins=r"vidprep shard --dataset folder", world="clips"),
    Rule(begins=r"vidprep extract --dataset folder", world="clips"),
    Rule(begins=r"vidprep shard --dataset toy --data-root ROOT", world="toy"),
    Rule(begins=r"vidprep shard --dataset toy_detection", world="toy_detection"),
    Rule(begins=r"vidprep shard --dataset activitynet .*--from frames", world="extracted", status=SOME_MISSING),
    Rule(
        begins=r"vidprep shard --dataset kinetics400 --data-root CLIPS", world="kinetics400 clips", status=SOME_MISSING
    ),
    Rule(begins=r"vidprep extract --dataset kinetics400 .*--retry", world="kinetics400", status=SOME_MISSING),
    Rule(begins=r"vidprep download something_v2 --data-root ROOT$", world="empty", status=(1,)),
    Rule(begins=r"vidprep download {dataset} .*--from", world="{dataset} archives"),
    Rule(begins=r"vidprep split {dataset} .*FILE", world="{dataset} archives"),
    Rule(
        begins=r"vidprep (plan|clips|extract|verify|export|shard|report|import-list|split)\b.* ?{dataset}\b",
        world="{dataset}",
        status=SOME_MISSING,
    ),
    Rule(begins=r"vidmodels (list|show) ?[\w/]*$", is_quick=True),
    Rule(begins=r"vidmodels cost "),
    Rule(begins=r"vidmodels bench taps/toy --checkpoint RUN1", world="runs", added=("--rounds", "1")),
    Rule(begins=r"vidmodels bench (sta|taps)/toy", added=("--rounds", "1")),
    Rule(begins=r"vidmodels train rgtp_vitdet", world="detection", added=DETECTOR),
    Rule(begins=r"vidmodels (eval|show|detect|report) .*(runs/toy|boxes\.mp4)", world="detection"),
    Rule(begins=r"vidmodels train taps .*--out RUN --set train", world="clips", added=TRAIN, is_quick=True),
    Rule(begins=r"vidmodels train .*--cache", world="runs", added=TRAIN),
    Rule(begins=r"vidmodels train .*--data", world="clips", added=TRAIN),
    Rule(begins=r"vidmodels cache rgtp_vivit/toy_keep_02", world="runs"),
    Rule(begins=r"vidmodels predict --webcam clip.mp4", world="runs", added=("--checkpoint", "RUN1", "--seconds", "1")),
    Rule(begins=r"vidmodels (predict|show)\b|vidmodels \w+ .*(RUN|runs/)", world="runs"),
    Rule(begins=r"vidmodels verify (tests/golden/\w+|GOLDEN)", world="checkout"),
    Rule(begins=r"torchrun --nproc-per-node 2 -m vidmodels.cli train", world="clips", added=TRAIN),
    Rule(begins=r"torchrun --nproc-per-node 2 -m vidmodels.cli eval runs/", world="runs"),
    Rule(begins=r"scripts/reproduce .*--dry-run", world="checkout", is_quick=True),
    Rule(begins=r"scripts/reproduce taps/toy", world="toy", added=TRAIN),
)

Run = Callable[..., tuple[int, str]]

CALL = "import sys; from {0}.cli import main; sys.argv[0] = '{0}'; raise SystemExit(main())"


def run(*words: str, folder: Path) -> tuple[int, str]:
    """Run a command line in a process and a folder of its own: its exit status, and what it said."""
    program, *rest = words
    command = {
        "vidprep": ["-c", CALL.format("vidprep")],
        "vidmodels": ["-c", CALL.format("vidmodels")],
        "torchrun": ["-m", "torch.distributed.run", "--standalone"],
        "scripts/reproduce": ["-m", "scripts.reproduce"],
    }[program]
    here = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    done = subprocess.run(
        [sys.executable, *command, *rest],
        cwd=folder,
        env={**os.environ, **here},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


@pytest.fixture
def run_here(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """The same in this process, which is quicker, for commands that start no processes."""

    def run_it(*words: str, folder: Path) -> tuple[int, str]:
        with monkeypatch.context() as patched:
            patched.chdir(folder)
            patched.setattr(sys, "argv", list(words))
            status = MAINS[words[0]]() if words[0] in MAINS else reproduce(words[1:])
        said = capfd.readouterr()
        return status, said.out + said.err

    return run_it


class Worlds:
    """Folders in which the words of the documents (ROOT, SHARDS, clip.mp4) are real files; each is made once."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.made: set[str] = set()

    def copy(self, name: str, target: Path) -> Path:
        """A copy of a world to work in."""
        if name not in self.made:
            (self.base / name).mkdir()
            self._make(name, self.base / name)
            self.made.add(name)
        shutil.copytree(self.base / name, target, symlinks=True)
        return target

    def _make(self, name: str, folder: Path) -> None:
        kind, _, part = name.partition(" ")
        if kind in MAKERS:
            self._make_miniature(kind, folder, is_unpacked=part != "archives")
            if part == "clips":
                cut = f"vidprep clips --dataset {kind} --data-root ROOT --split val --short-side 64 --out CLIPS"
                assert run(*cut.split(), folder=folder)[0] in SOME_MISSING
        elif name == "extracted":
            self._make_miniature("activitynet", folder, is_unpacked=True)
            extract = "vidprep extract --dataset activitynet --data-root ROOT --split val"
            assert run(*extract.split(), folder=folder)[0] in SOME_MISSING
        elif name == "toy":
            assert run("vidprep", "toy", "--data-root", "ROOT", folder=folder)[0] == 0
        elif name == "toy_detection":
            assert run("vidprep", "toy", "toy_detection", "--data-root", "ROOT", folder=folder)[0] == 0
        elif name == "detection":
            write_detection_shards(folder).rename(folder / "SHARDS")
            write_numbered_video(folder / "clip.mp4", num_frames=8)
            train = "vidmodels train rgtp_vitdet --recipe toy --data SHARDS --out runs/toy"
            assert run(*train.split(), *DETECTOR, folder=folder)[0] == 0
            (folder / "RUN").symlink_to("runs/toy")
        elif name in ("clips", "runs"):
            self._make_clips(folder)
            if name == "runs":
                self._make_runs(folder)
        else:
            assert name == "empty", name

    def _make_miniature(self, name: str, folder: Path, *, is_unpacked: bool) -> None:
        made = make_miniature(name, folder / "MINI")
        (folder / "mini").symlink_to("MINI")
        (folder / "DIR").symlink_to("MINI/archives")
        # Of several official files, the one of the training split.
        is_train = next((path for path in made.annotation_files if "train" in path.name), made.annotation_files[0])
        for path in made.annotation_files:  # as a user has them who names them one by one
            shutil.copy(path, folder)
        (folder / "FILE").mkdir()
        shutil.copy(is_train, folder / "FILE" / is_train.name)
        if is_unpacked:
            root = ("--data-root", "ROOT")
            assert run("vidprep", "download", name, "--from", "DIR", *root, folder=folder)[0] == 0
            files = [word for path in made.annotation_files for word in ("--annotations", str(path))]
            assert run("vidprep", "split", name, *files, *root, folder=folder)[0] == 0

    def _make_clips(self, folder: Path) -> None:
        write_toy_clips(folder)
        one, other = sorted(folder.glob("videos/videos/val/*.mp4"))[:2]
        for name in ("my_videos", "VIDEOS"):
            for label, path in (("left", one), ("right", other)):
                (folder / name / label).mkdir(parents=True)
                shutil.copy(path, folder / name / label)
        for name in ("CLIPS", "more/below"):
            (folder / name).mkdir(parents=True)
            shutil.copy(one, folder / name)
        (folder / "folder").mkdir()
        shutil.copy(other, folder / "folder")
        shutil.copy(one, folder / "clip.mp4")
        (folder / "ROOT").symlink_to("videos")

    def _make_runs(self, folder: Path) -> None:
        for name, recipe in {
            "taps": "taps/toy",
            "dense": "taps/toy_dense",
            "uni_adafocus": "uni_adafocus/toy",
            "vit": "sta/toy",
            "sta": "sta/toy_r11",
            "vivit": "rgtp_vivit/toy",
        }.items():
            method, _, short = recipe.partition("/")
            line = f"vidmodels train {method} --recipe {short} --data SHARDS --out runs/{name}"
            status, said = run(*line.split(), *TRAIN, folder=folder)
            assert status == 0, said
        for name, other in (("RUN", "uni_adafocus"), ("RUN1", "taps"), ("RUN2", "dense")):
            (folder / name).symlink_to(f"runs/{other}")


@pytest.fixture(scope="module")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> Worlds:
    return Worlds(tmp_path_factory.mktemp("worlds"))


def find_rule(command: Command) -> tuple[Rule, str] | None:
    """How a command is run, and in which world."""
    names = "|".join(sorted(MAKERS, key=len, reverse=True))
    for rule in RULES:
        found = re.match(rule.begins.replace("{dataset}", f"(?P<dataset>{names})"), command.text)
        if found:
            return rule, rule.world.replace("{dataset}", found.groupdict().get("dataset") or "")
    return None


def stated(chosen: Callable[[Block], object]) -> list[object]:
    return [pytest.param(block, id=block.place) for block in BLOCKS if chosen(block)]


def test_the_documents_show_commands() -> None:
    assert len(BLOCKS) >= 60
    assert sum(len(block.commands) for block in BLOCKS) >= 250


@pytest.mark.parametrize("block", stated(lambda block: True))
def test_the_programs_take_every_command_of_the_documents(block: Block) -> None:
    for command in block.commands:
        parse(command.words)


@pytest.mark.parametrize("block", stated(lambda block: any(not command.needs for command in block.commands)))
def test_a_command_is_run_by_a_test_or_says_what_it_needs(block: Block) -> None:
    strays = [command.line for command in block.commands if not command.needs and find_rule(command) is None]
    assert not strays, "no rule of RULES fits, and nothing says what it needs (<!-- needs: ... -->)"


def is_quick(command: Command) -> bool:
    found = find_rule(command)
    return found is not None and found[0].is_quick and not command.needs


def run_block(block: Block, worlds: Worlds, run_it: Run, tmp_path: Path, *, only_quick: bool) -> None:
    folders: dict[str, Path] = {}
    for command in block.commands:
        found = find_rule(command)
        if command.needs or found is None or (only_quick and not is_quick(command)):
            continue
        rule, world = found
        if world == "checkout":
            folder = ROOT
        else:
            if world not in folders:
                folders[world] = worlds.copy(world, tmp_path / world)
            folder = folders[world]
        words = [_existing(word, folder) for word in command.words]
        status, said = run_it(*words, *rule.added, folder=folder)
        assert "0 samples in 0 shards" not in said, command.line
        assert status in rule.status, f"{command.line}\nstatus {status}\n{said[-2000:]}"


def _existing(word: str, folder: Path) -> str:
    """FILE stands for a file that a folder of this name holds, under the name that its publisher gave it."""
    if word.startswith("GOLDEN"):
        return "tests/golden/taps"
    if word == "FILE" and (folder / word).is_dir():
        return str(next((folder / word).iterdir()))
    return word


@pytest.mark.parametrize("block", stated(lambda block: any(map(is_quick, block.commands))))
def test_the_quick_commands_run(block: Block, worlds: Worlds, run_here: Run, tmp_path: Path) -> None:
    run_block(block, worlds, run_here, tmp_path, only_quick=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    "block",
    stated(lambda block: any(not command.needs and not is_quick(command) for command in block.commands)),
)
def test_all_commands_of_a_block_run_one_after_the_other(block: Block, worlds: Worlds, tmp_path: Path) -> None:
    run_block(block, worlds, run, tmp_path, only_quick=False)


@pytest.mark.parametrize(("document", "text"), inline_commands())
def test_options_of_commands_in_running_text_exist(document: str, text: str) -> None:
    from tests.documents import GROUPS

    program, name, *words = text.split()
    commands = GROUPS[program].commands
    if name not in commands:  # `vidprep` and another word, such as `vidprep toy | list`
        pytest.fail(f"{document}: {program} has no command {name}")
    options = {option for parameter in commands[name].params for option in parameter.opts}
    for sub_command in getattr(commands[name], "commands", {}).values():
        options |= {option for parameter in sub_command.params for option in parameter.opts}
    given = {re.sub(r"[^\w-]+$", "", word) for word in words if word.startswith("--")}
    assert given <= options | {"--help"}, f"{document}: {text}"


EXAMPLES = ("docs/adding_a_data_set.md", "docs/adding_a_method.md")
"""Their programs are files of a data set and a method that another test adds."""


@pytest.mark.parametrize(
    ("place", "program"), [found for found in python_blocks() if not found[0].startswith(EXAMPLES)]
)
def test_programs_of_the_documents_name_what_is_there(place: str, program: str) -> None:
    assert names_that_are_missing(program) == [], place


def test_every_data_set_with_a_miniature_is_one_of_vidprep() -> None:
    assert set(MAKERS) <= set(DATASETS)
