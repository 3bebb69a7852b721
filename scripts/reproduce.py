"""From download to a number beside the published one: the steps for a recipe, printed and run in order.

    scripts/reproduce tam/something_v2_r50_8f --data-root ROOT --from ARCHIVES --dry-run

Each step is a command of vidprep or vidmodels that goes on where it stopped, so the same line again goes on, too.
"""

import argparse
import json
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vidmodels.recipes import load_recipe
from vidmodels.types import Recipe
from vidprep.datasets import BUILDERS, DATASETS
from vidprep.datasets.info import how_generated
from vidprep.errors import UsageError, VidprepError
from vidprep.types import DatasetInfo

__all__ = ["Step", "annotation_files", "data_steps", "model_steps", "shard_options", "steps"]

GIVEN_ANNOTATIONS: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "something_v2": {
        "train": ("annotations/labels/train.json",),
        "val": ("annotations/labels/validation.json",),
    },
    "something_v1": {"train": ("labels/train.csv",), "val": ("labels/validation.csv",)},
    "jester": {"train": ("labels/train.csv",), "val": ("labels/validation.csv",)},
    "activitynet": {
        "train": ("annotations/activity_net.v1-3.min.json",),
        "val": ("annotations/activity_net.v1-3.min.json",),
    },
    "fcvid": {
        "train": ("FCVID_VideoName_TrainTestSplit.txt", "FCVID_Label.txt"),
        "test": ("FCVID_VideoName_TrainTestSplit.txt", "FCVID_Label.txt"),
    },
    "imagenet_vid": {
        "train": ("VID_train_15frames.txt",),
        "val": ("ILSVRC2015/ImageSets/VID/val.txt",),
    },
    "mini_kinetics_xie2018": {
        "train": ("annotations/train.csv", "train_ytid_list.txt"),
        "val": ("annotations/val.csv", "val_ytid_list.txt"),
    },
}
"""Data set -> split -> annotation files below its data root, where `DatasetInfo.files` do not name them."""

SHARD_OPTIONS: Mapping[tuple[str, str], tuple[str, ...]] = {
    ("taps", "activitynet"): ("--content", "frames"),
    ("taps", "mini_kinetics"): ("--content", "frames"),
    ("uni_adafocus", "fcvid"): ("--content", "frames", "--fps", "1", "--rate-mode", "output", "--height", "360"),
    ("rgtp_vivit", "kinetics400"): (
        *("--content", "frames", "--fps", "25", "--rate-mode", "output", "--short-side", "224"),
    ),
    ("rgtp_vivit", "epic_kitchens"): ("--fps", "30", "--short-side", "0"),
}
"""(method, data set) -> which frames the published code was given; where it read the videos themselves, nothing."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """One command."""

    title: str
    command: tuple[str, ...]
    names_what_is_missing: bool = False
    """Ends with status 1 where videos are missing or damaged, after doing the others."""

    def line(self) -> str:
        """The command as one types it."""
        return " ".join(word if word == "..." else shlex.quote(word) for word in self.command)


def annotation_files(info: DatasetInfo, splits: Sequence[str]) -> tuple[str, ...]:
    """Which annotation files, below the data root, say who is in these splits."""
    given = GIVEN_ANNOTATIONS.get(info.name)
    if given is None:
        wanted = [file.filename for file in info.files if file.kind == "file" and file.split in splits]
        if info.name == "epic_kitchens":
            wanted += [file.filename for file in info.files if file.filename and "video_info" in file.filename]
        names = [name for name in wanted if name is not None]
    else:
        names = [name for split in splits for name in given[split]]
    return tuple(dict.fromkeys(names))


def shard_options(method: str, dataset: str) -> tuple[str, ...]:
    """What `vidprep shard` is told so that shards hold what the published code read."""
    return SHARD_OPTIONS.get((method, dataset), ())


def data_steps(
    info: DatasetInfo,
    *,
    splits: Sequence[str],
    data_root: str,
    shards: str,
    options: Sequence[str] = (),
    source: str = "ARCHIVES",
) -> list[Step]:
    """From nothing, or from the archives that one was given, to verified shards.

    Args:
        info: of the data set.
        splits: those that are wanted.
        data_root: where its files go.
        shards: where the shards go.
        options: further ones of `vidprep shard`.
        source: the folder of the archives, of data sets that are had after a form.
    """
    found: list[Step] = []
    if info.access == "generated":
        generate = (*how_generated(info).split(), "--data-root", data_root)
        found.append(Step(title="Generate the videos", command=generate))
    elif info.access != "own":
        found += _download_steps(info, splits, data_root, source)
    for split in splits:
        where = ("--dataset", info.name, "--data-root", data_root, "--split", split)
        if info.access not in ("generated", "own"):
            found.append(
                Step(
                    title=f"Which videos of {split} are there, and whole",
                    command=("vidprep", "verify", *where, "--check", "open"),
                    names_what_is_missing=True,
                )
            )
        found.append(
            Step(
                title=f"Shards of {split}",
                command=("vidprep", "shard", *where, *options, "--out", shards),
                names_what_is_missing=True,
            )
        )
    return found


def _download_steps(info: DatasetInfo, splits: Sequence[str], data_root: str, source: str) -> list[Step]:
    given = ("vidprep", "download", info.name, "--data-root", data_root)
    files = annotation_files(info, splits)
    annotations = [word for name in files for word in ("--annotations", f"{data_root}/{name}")]
    listing = [
        Step(
            title="Who is in which split",
            command=("vidprep", "split", info.name, *annotations, "--data-root", data_root),
        )
    ]
    if info.access == "form":
        fetch = Step(title="Unpack what the publisher gave", command=(*given, "--from", source))
        return [fetch, *(listing if info.name in BUILDERS else [])]
    if info.access == "youtube":
        videos = [
            Step(
                title=f"Videos of {split} that YouTube still has",
                command=(*given, "--split", split, "--youtube"),
                names_what_is_missing=True,
            )
            for split in splits
        ]
        return [Step(title="Download the annotations", command=given), *listing, *videos]
    fetch_all = [
        Step(title=f"Download {split}", command=(*given, "--split", split, "--delete-archives")) for split in splits
    ]
    return [*fetch_all, *listing]


def model_steps(
    recipe: Recipe, *, shards: str, out: str, checkpoint: str | None, init: str | None, overrides: Sequence[str] = ()
) -> list[Step]:
    """From shards to a number: published weights converted and scored, or a training and its evaluation.

    Args:
        recipe: what is reproduced.
        shards: of its data.
        out: folder of the run.
        checkpoint: published weights, or the same converted (.safetensors); None: train.
        init: initial weights of the training, where the recipe names a file; None: as the recipe says.
        overrides: further changes to the recipe.
    """
    name = f"{recipe.method}/{recipe.name}"
    changes = [word for override in overrides for word in ("--set", override)]
    folder = Step(title="Where results go", command=("mkdir", "-p", out))
    scoring = ("--data", shards, *changes, "--json", f"{out}/result.json")
    if checkpoint is not None:
        weights, converted = checkpoint, []
        if not checkpoint.endswith(".safetensors"):  # those are ours already
            weights = f"{out}/published.safetensors"
            convert = ("vidmodels", "convert", recipe.method, checkpoint, weights)
            converted = [Step(title="The authors' weights, under our names", command=convert)]
        return [
            folder,
            *converted,
            Step(title="The number", command=("vidmodels", "eval", weights, "--recipe", name, *scoring)),
        ]
    if init is not None:
        changes = ["--set", f"train.init={init}", *changes]
    train = ("vidmodels", "train", recipe.method, "--recipe", recipe.name)
    found = [folder]
    if getattr(recipe.model, "trained", "all") == "temporal":  # its first part stays as it is: run it once
        cache = f"{out}/features"
        found.append(
            Step(
                title="Features of every view of every video",
                command=("vidmodels", "cache", name, "--data", shards, *changes, "--out", cache),
            )
        )
        found.append(
            Step(title="Training on the features", command=(*train, "--cache", cache, *changes, "--out", f"{out}/run"))
        )
    else:
        found.append(Step(title="Training", command=(*train, "--data", shards, *changes, "--out", f"{out}/run")))
    # What was trained has its recipe, with its changes, beside it.
    number = ("vidmodels", "eval", f"{out}/run", "--data", shards, "--json", f"{out}/result.json")
    return [*found, Step(title="The number", command=number)]


def steps(
    recipe: Recipe,
    *,
    data_root: str,
    out: str,
    source: str = "ARCHIVES",
    checkpoint: str | None = None,
    init: str | None = None,
    overrides: Sequence[str] = (),
) -> list[Step]:
    """All steps of a recipe; see `data_steps` and `model_steps`."""
    dataset = recipe.data.dataset
    is_own = dataset not in DATASETS  # UCF101: one's own copy
    if is_own:
        overrides = ("data.dataset=folder", *overrides)
    info = DATASETS["folder" if is_own else dataset]
    if recipe.train is None and checkpoint is None:
        raise UsageError(
            f"{recipe.method}/{recipe.name} trains nothing: say with --checkpoint where its published weights are."
        )
    options = shard_options(recipe.method, dataset)
    kind = "-".join(["frames", *(word for word in options if word[0].isdigit())]) if options else "whole"
    shards = f"{out}/shards/{dataset}-{kind}"
    data = recipe.data
    wanted = [data.val_split] if checkpoint is not None else [data.train_split, data.val_split]
    return [
        *data_steps(info, splits=wanted, data_root=data_root, shards=shards, options=options, source=source),
        *model_steps(
            recipe,
            shards=shards,
            out=f"{out}/{recipe.method}/{recipe.name}",
            checkpoint=checkpoint,
            init=init,
            overrides=overrides,
        ),
    ]


def compare(recipe: Recipe, result: Mapping[str, Any]) -> list[str]:
    """Our figures beside the published ones, a line each.

    Args:
        recipe: what was reproduced.
        result: what `vidmodels eval --json` wrote.
    """
    (run,) = result["runs"]
    published = recipe.published
    lines = []
    for form, figures in run.get("forms", {"": run}).items():
        for name in ("top1", "top5", "map", "map50"):
            if name in figures:
                theirs = getattr(published, name, None)
                said = f"published {theirs:g}, difference {figures[name] - theirs:+.2f}" if theirs else "not published"
                lines.append(f"{form or 'detector'} {name}: {figures[name]:.2f}; {said}")
    return lines


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the steps of a recipe, and run them unless told otherwise; the exit status."""
    parser = argparse.ArgumentParser(
        prog="scripts/reproduce",
        description="A published number, from download to comparison. The same line again goes on where it stopped.",
    )
    parser.add_argument("recipe", help="METHOD/NAME; `vidmodels list` has them")
    parser.add_argument("--data-root", required=True, metavar="ROOT", help="folder of the data set's files")
    parser.add_argument("--from", dest="source", default="ARCHIVES", metavar="DIR", help="the archives you were given")
    parser.add_argument("--checkpoint", metavar="FILE", help="published weights to score, instead of a training")
    parser.add_argument("--init", metavar="FILE", help="initial weights, where the recipe names a file")
    parser.add_argument("--out", default="reproduced", metavar="DIR", help="shards, runs, results (reproduced)")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE", help="as in train")
    parser.add_argument("--accept-missing", action="store_true", help="go on with the videos that are there")
    parser.add_argument("--dry-run", action="store_true", help="print the steps, run nothing")
    given = parser.parse_args(arguments)
    try:
        recipe = load_recipe(given.recipe)
        checkpoint = given.checkpoint
        if checkpoint is None and recipe.train is None and given.dry_run:
            checkpoint = "CHECKPOINT"
        todo = steps(
            recipe,
            data_root=given.data_root,
            out=given.out,
            source=given.source,
            checkpoint=checkpoint,
            init=given.init,
            overrides=given.overrides,
        )
    except VidprepError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for step in todo:
        print(f"\n== {step.title}\n$ {step.line()}", flush=True)
        if given.dry_run:
            continue
        status = _run(step)
        if status == 1 and step.names_what_is_missing and given.accept_missing:
            print("going on with what is there (--accept-missing)", flush=True)
        elif status:
            cure = "; --accept-missing goes on with the videos that are there" if step.names_what_is_missing else ""
            print(f"error: this step ended with status {status}{cure}.", file=sys.stderr)
            return status
    if not given.dry_run:
        result = Path(given.out) / recipe.method / recipe.name / "result.json"
        print("\n".join(["", *compare(recipe, json.loads(result.read_text(encoding="utf-8")))]))
    return 0


def _run(step: Step) -> int:
    # Beside this Python, whatever PATH has.
    own = Path(sys.executable).with_name(step.command[0])
    program = str(own) if own.exists() else step.command[0]
    return subprocess.run([program, *step.command[1:]], check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
