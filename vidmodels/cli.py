"""The commands of vidmodels: `vidmodels --help` lists them.

What takes long to import is imported by the command that needs it: `--help` answers at once.
"""

import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vidprep.console import run_app
from vidprep.errors import UnknownName, UsageError, suggest

if TYPE_CHECKING:
    from vidmodels.distributed import World
    from vidmodels.early_exit import Curve
    from vidmodels.predict import Prediction
    from vidmodels.runs import Run
    from vidmodels.types import Method, Recipe

__all__ = ["app", "main"]

app = typer.Typer(
    rich_markup_mode=None,
    add_completion=False,
    no_args_is_help=True,
    help="Train and evaluate efficient video models on the shards that vidprep makes.",
)

IN_SEVERAL_PROCESSES = ("train", "eval")


@app.callback()
def check_processes(context: typer.Context) -> None:
    """Several processes would each do the whole work of most commands, and write over each other."""
    name, size = context.invoked_subcommand, os.environ.get("WORLD_SIZE", "1")
    if "RANK" in os.environ and size != "1" and name not in IN_SEVERAL_PROCESSES:
        raise UsageError(f"`vidmodels {name}` is for one process, torchrun started {size}; leave torchrun out.")


RecipeArgument = Annotated[str, typer.Argument(metavar="RECIPE", help="NAME, METHOD/NAME or a .toml file.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change a setting, such as train.lr=0.02; may be repeated."),
]
Targets = Annotated[
    list[str],
    typer.Argument(
        metavar="RUN|CHECKPOINT...",
        help="Run folders or weight files; RUN:KEY=VALUE,... or RUN:RECIPE is the same weights with other settings.",
    ),
]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1; by default a GPU where there is one.")]
Workers = Annotated[int | None, typer.Option(min=0, help="Threads that prepare clips; by default one per CPU.")]
JsonFile = Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write the figures to a file too.")]


def main() -> int:
    """Run the command line; the exit status."""
    return run_app(app)


@app.command("list")
def list_command(method: Annotated[str | None, typer.Argument(help="Only recipes of this method.")] = None) -> None:
    """Show the methods and recipes, with the published figures."""
    from vidmodels.methods import METHODS
    from vidmodels.recipes import list_recipes, load_recipe

    names = list_recipes(method)
    _print_table([["method", "paper"], *([name, METHODS[name].paper] for name in METHODS if method in (None, name))])
    typer.echo()
    rows = [["recipe", "data set", "trains", "top-1", "mAP", "mAP50", "GMACs"]]
    for name in names:
        recipe = load_recipe(name)
        published = recipe.published
        figures = [published.top1, published.map, published.map50, published.gmacs] if published else [None] * 4
        trains = f"{recipe.train.epochs} epochs" if recipe.train else "-"
        rows.append([name, recipe.data.dataset, trains, *("-" if value is None else f"{value:g}" for value in figures)])
    _print_table(rows)
    typer.echo("published figures; -: not published as text. `vidmodels show RECIPE` prints all settings.")


@app.command()
def show(
    recipe: Annotated[
        str, typer.Argument(metavar="RECIPE|METHOD", help="NAME, METHOD/NAME or a .toml file; or a method's name.")
    ],
    overrides: Overrides = None,
    video: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw what the model keeps of this video, instead.")
    ] = None,
    out: Annotated[Path | None, typer.Option(metavar="PNG", help="Where the picture goes.")] = None,
    weights: Annotated[
        Path | None, typer.Option(metavar="RUN|CHECKPOINT", help="Of the drawn model; random ones without it.")
    ] = None,
) -> None:
    """Print a recipe with all its settings, as TOML, or a method's recipes; or draw what its model keeps of a video."""
    from vidmodels.methods import ALIASES, METHODS
    from vidmodels.recipes import dump_recipe, load_recipe

    recipe = ALIASES.get(recipe, recipe)
    if (video is None) != (out is None):
        raise UsageError("a picture needs both --video FILE and --out PNG.")
    if video is not None and out is not None:
        from vidmodels.show import draw_video

        typer.echo(draw_video(recipe, video, out, weights=weights, overrides=overrides or ()))
        return
    if weights is not None:
        raise UsageError("--weights is for a picture: add --video FILE --out PNG.")
    if recipe in METHODS and not overrides:
        list_command(recipe)
        return
    typer.echo(dump_recipe(load_recipe(recipe, overrides or ())), nl=False)


@app.command()
def train(
    method: Annotated[str, typer.Argument(help="See `vidmodels list`.")],
    recipe: Annotated[str, typer.Option(metavar="NAME|FILE", help="A recipe of this method, or a .toml file.")],
    out: Annotated[
        Path, typer.Option(metavar="RUN", help="Folder of this run; the same one goes on where it stopped.")
    ],
    data: Annotated[Path | None, typer.Option(metavar="SHARDS", help="What `vidprep shard --out` wrote.")] = None,
    cache_folder: Annotated[
        Path | None,
        typer.Option("--cache", metavar="FOLDER", help="What `vidmodels cache --out` wrote, instead of shards."),
    ] = None,
    overrides: Overrides = None,
    device: Device = None,
    workers: Workers = None,
    save_steps: Annotated[
        int | None, typer.Option(min=1, help="Save a running epoch after so many steps; by default every 10 minutes.")
    ] = None,
    wandb: Annotated[
        str | None, typer.Option(metavar="PROJECT", help="Send each epoch's figures to Weights & Biases, too.")
    ] = None,
) -> None:
    """Train a model; the same command again goes on where it stopped. Several processes: start it with torchrun."""
    from vidmodels.recipes import load_recipe
    from vidmodels.train import train as run_training

    _find_method(method)
    if (data is None) == (cache_folder is None):
        raise UsageError("training needs either --data SHARDS or --cache FOLDER.")
    is_short_name = not recipe.endswith(".toml") and "/" not in recipe
    loaded = load_recipe(f"{method}/{recipe}" if is_short_name else recipe, overrides or ())
    if loaded.method != method:
        raise UsageError(f"recipe {recipe} is for {loaded.method}, not for {method}.")
    run_training(
        loaded, data, out, cache=cache_folder, device=device, workers=workers, save_steps=save_steps, wandb=wandb
    )


@app.command()
def cache(
    target: Annotated[
        str, typer.Argument(metavar="RECIPE|RUN", help="NAME, METHOD/NAME or a .toml file; or a run folder.")
    ],
    data: Annotated[Path, typer.Option(metavar="SHARDS", help="What `vidprep shard --out` wrote.")],
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Folder of the cache; the same one goes on.")],
    split: Annotated[
        list[str] | None, typer.Option(help="May be repeated; by default what the recipe trains and validates on.")
    ] = None,
    weights: Annotated[
        Path | None, typer.Option(metavar="RUN|CHECKPOINT", help="By default the recipe's train.init.")
    ] = None,
    overrides: Overrides = None,
    device: Device = None,
    workers: Workers = None,
) -> None:
    """Keep what the costly first part of a model makes of every video, to train the rest on it (train --cache).

    A run that was stopped goes on with the same command.
    """
    from vidmodels.cache import cache_features, find_cached

    run = find_cached(target, weights=weights, overrides=overrides or ())
    for done in cache_features(run, data, out, splits=split or (), device=device, workers=workers):
        typer.echo(done.sentence)


@app.command("eval")
def evaluate(
    targets: Targets,
    recipe: Annotated[str | None, typer.Option(metavar="NAME|FILE", help="For files that bring no recipe.")] = None,
    data: Annotated[Path | None, typer.Option(metavar="SHARDS", help="By default those of the run.")] = None,
    split: Annotated[str | None, typer.Option(help="By default the recipe's validation split.")] = None,
    overrides: Overrides = None,
    dynamic: Annotated[bool, typer.Option(help="Evaluate the form that really skips, too.")] = True,
    predictions: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write each video's prediction, .parquet or .json (one target).")
    ] = None,
    per_class: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the figures of each class, .csv, .parquet or .json.")
    ] = None,
    confusion: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write which class is taken for which, .png, .csv or .parquet (one target)."),
    ] = None,
    thresholds: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Let videos leave early, as `vidmodels curve` found; beside the run without (one target).",
        ),
    ] = None,
    timed_clips: Annotated[int, typer.Option(min=1, help="Clips of one timed call.")] = 1,
    timed_runs: Annotated[int, typer.Option(min=1, help="Timed calls of each model; they take turns.")] = 10,
    device: Device = None,
    workers: Workers = None,
    json_file: JsonFile = None,
) -> None:
    """Evaluate runs or checkpoints: accuracy, multiply-accumulates and time, masked and really skipped.

    Detectors go through every frame of every video, in order: mean average precision, also by the speed of objects.
    """
    import pandas as pd

    from vidmodels.breakdown import (
        check_confusion_exists,
        check_confusion_file,
        check_table_file,
        write_confusion,
        write_table,
    )
    from vidmodels.comparison import compare_runs
    from vidmodels.distributed import are_several, joined_world
    from vidmodels.evaluate import choose_device, write_predictions
    from vidmodels.memory import keep_freed_memory
    from vidmodels.runs import find_variant

    if thresholds is not None and are_several():
        raise UsageError(
            "--thresholds measure time video by video, which several processes disturb; leave torchrun out."
        )
    for option, file in (("--predictions", predictions), ("--confusion", confusion)):
        if file is not None and len(targets) > 1:
            raise UsageError(f"{option} holds those of one model, got {len(targets)} targets.")
    if per_class is not None:
        check_table_file(per_class)
    if confusion is not None:
        check_confusion_file(confusion)
    runs = [find_variant(target, recipe=recipe, overrides=overrides or ()) for target in targets]
    are_detectors = {run.recipe.eval.metric == "map50" for run in runs}
    if are_detectors == {True, False}:
        raise UsageError("detectors and classifiers have no figures in common; evaluate them one after the other.")
    if confusion is not None:
        check_confusion_exists(runs[0], data=data, split=split)
    keep_freed_memory()
    if thresholds is not None:
        from vidmodels.early_exit import evaluate_thresholds

        if len(targets) > 1 or any(file is not None for file in (predictions, per_class, confusion)):
            raise UsageError("--thresholds are for one target, without --predictions, --per-class and --confusion.")
        curve = evaluate_thresholds(runs[0], thresholds, data=data, split=split, device=device, workers=workers)
        _print_curve(curve)
        if json_file is not None:
            _write_json(json_file, {"heading": curve.heading, "rows": curve.rows()})
        return
    with joined_world(on_gpu=choose_device(device).type == "cuda") as world:
        if are_detectors == {True}:
            _evaluate_streams(
                runs,
                data=data,
                split=split,
                predictions=predictions,
                per_class=per_class,
                timed_runs=timed_runs,
                device=device,
                world=world,
                json_file=json_file,
            )
            return
        comparison = compare_runs(
            runs,
            data=data,
            split=split,
            dynamic=dynamic,
            timed_clips=timed_clips,
            timed_runs=timed_runs,
            device=device,
            workers=workers,
            world=world,
        )
        if not world.is_main:
            return
        typer.echo(comparison.heading)
        _print_table(comparison.table)
        for remark in comparison.remarks:
            typer.echo(remark)
        if predictions is not None:
            write_predictions(comparison.runs[0].forms["trainable"].result, predictions)
        if per_class is not None:
            tables = [scored.per_class(form) for scored in comparison.runs for form in scored.forms]
            write_table(pd.concat(tables, ignore_index=True), per_class)
        if confusion is not None:
            first = comparison.runs[0]
            for written in write_confusion(first.confusion("trainable"), confusion, title=first.run.title):
                typer.echo(f"{written}: which class is taken for which")
        if json_file is not None:
            _write_json(json_file, comparison.to_json())


def _evaluate_streams(
    runs: "Sequence[Run]",
    *,
    data: Path | None,
    split: str | None,
    predictions: Path | None,
    per_class: Path | None,
    timed_runs: int,
    device: str | None,
    world: "World",
    json_file: Path | None,
) -> None:
    import pandas as pd

    from vidmodels.breakdown import Naming, objects_per_class, write_table
    from vidmodels.stream_comparison import compare_streams
    from vidmodels.streams import write_detections

    if predictions is not None and predictions.suffix not in (".parquet", ".json"):
        raise UsageError(f"{predictions}: detections are written as .parquet or .json.")
    comparison = compare_streams(runs, data=data, split=split, timed_runs=timed_runs, device=device, world=world)
    if not world.is_main:
        return
    typer.echo(comparison.heading)
    _print_table(comparison.table)
    for remark in comparison.remarks:
        typer.echo(remark)
    if predictions is not None:
        write_detections(comparison.runs[0].result, predictions)
    if per_class is not None:
        tables = [
            objects_per_class(scored.result, Naming(model=scored.run.title, form="stream"))
            for scored in comparison.runs
        ]
        write_table(pd.concat(tables, ignore_index=True), per_class)
    if json_file is not None:
        _write_json(json_file, comparison.to_json())


@app.command()
def detect(
    video: Annotated[Path, typer.Option(metavar="FILE|DIR", help="A video, or a folder of numbered images.")],
    out: Annotated[Path, typer.Option(metavar="MP4", help="The same with boxes, classes and scores.")],
    weights: Annotated[
        Path | None, typer.Option(metavar="RUN|CHECKPOINT", help="Of the detector; random ones without it.")
    ] = None,
    recipe: Annotated[
        str | None, typer.Option(metavar="NAME|FILE", help="For weights that bring none; or of random weights.")
    ] = None,
    overrides: Overrides = None,
    min_score: Annotated[float, typer.Option(help="Boxes with a lower score are not drawn.")] = 0.5,
    frame_rate: Annotated[float, typer.Option("--fps", help="Of a folder of images, which bring no times.")] = 25.0,
    max_frames: Annotated[int | None, typer.Option(min=1, help="Stop after so many.")] = None,
    device: Device = None,
) -> None:
    """Draw what a detector finds in a video, frame by frame."""
    from vidmodels.render import render_video

    typer.echo(
        render_video(
            video,
            out,
            weights=weights,
            recipe_name=recipe,
            overrides=overrides or (),
            min_score=min_score,
            frame_rate=frame_rate,
            max_frames=max_frames,
            device=device,
        )
    )


@app.command()
def curve(
    target: Annotated[Path, typer.Argument(metavar="RUN|CHECKPOINT", help="A run folder or a weight file.")],
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Gets curve.csv, curve.png and thresholds/.")],
    recipe: Annotated[str | None, typer.Option(metavar="NAME|FILE", help="For files that bring no recipe.")] = None,
    data: Annotated[Path | None, typer.Option(metavar="SHARDS", help="By default those of the run.")] = None,
    solve_split: Annotated[
        str | None, typer.Option(help="Whose videos say how sure is sure enough; by default the training split.")
    ] = None,
    split: Annotated[str | None, typer.Option(help="What is measured; by default the validation split.")] = None,
    overrides: Overrides = None,
    criterion: Annotated[str, typer.Option(help="confidence, entropy or both.")] = "both",
    points: Annotated[int, typer.Option(min=1, help="Published budgets of each criterion, evenly chosen by cost.")] = 7,
    budgets: Annotated[
        list[float] | None,
        typer.Option(
            "--budget", metavar="SHARE", help="A further one: a share of the full cost; may be repeated. [0.5]"
        ),
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Timed passes over each batch.")] = 1,
    device: Device = None,
    workers: Workers = None,
) -> None:
    """Early exit: accuracy against multiply-accumulates, and against measured time, as a table and a picture."""
    from vidmodels.early_exit import check_plots, measure_curve, write_curve
    from vidmodels.memory import keep_freed_memory
    from vidmodels.runs import find_run

    if criterion not in ("confidence", "entropy", "both"):
        raise UsageError(f"--criterion is confidence, entropy or both, got {criterion!r}.")
    if out.exists() and not out.is_dir():
        raise UsageError(f"{out}: expected a folder, or nothing yet.")
    check_plots()
    keep_freed_memory()
    measured = measure_curve(
        find_run(target, recipe=recipe, overrides=overrides or ()),
        data=data,
        solve_split=solve_split,
        split=split,
        criteria=criterion,  # type: ignore[arg-type]  # checked above
        num_points=points,
        budgets=budgets or (0.5,),
        rounds=rounds,
        device=device,
        workers=workers,
    )
    _print_curve(measured)
    written = write_curve(measured, out)
    typer.echo(f"{written[0]}, {written[1]}, and thresholds for `vidmodels eval --thresholds`, such as {written[2]}")


@app.command()
def report(
    targets: Targets,
    out: Annotated[Path, typer.Option(metavar="PAGE.html", help="The page to write.")],
    recipe: Annotated[str | None, typer.Option(metavar="NAME|FILE", help="For files that bring no recipe.")] = None,
    data: Annotated[Path | None, typer.Option(metavar="SHARDS", help="By default those of each run.")] = None,
    split: Annotated[str | None, typer.Option(help="By default each recipe's validation split.")] = None,
    overrides: Overrides = None,
    curve_folders: Annotated[
        list[Path] | None,
        typer.Option("--curve", metavar="FOLDER", help="Draw what `vidmodels curve` wrote; may be repeated."),
    ] = None,
    early_exit: Annotated[
        bool, typer.Option("--early-exit", help="Measure the curves of models with exits, as `vidmodels curve` does.")
    ] = False,
    dynamic: Annotated[bool, typer.Option(help="Evaluate the form that really skips, too.")] = True,
    videos: Annotated[int, typer.Option(min=0, help="Sample clips; half of them wrong, where there are such.")] = 8,
    seed: Annotated[int, typer.Option(min=0, help="Of the choice of sample clips.")] = 0,
    timed_clips: Annotated[int, typer.Option(min=1, help="Clips of one timed call.")] = 1,
    timed_runs: Annotated[int, typer.Option(min=1, help="Timed calls of each model; they take turns.")] = 10,
    device: Device = None,
    workers: Workers = None,
    json_file: JsonFile = None,
) -> None:
    """Write a page on runs or checkpoints: accuracy against cost and time, classes, confusions, samples, settings.

    Classifiers and detectors may come together; each kind gets its part of the page.
    """
    from vidmodels.checkpoints import write_atomically
    from vidmodels.comparison import compare_runs
    from vidmodels.early_exit import measure_curve, read_curve
    from vidmodels.memory import keep_freed_memory
    from vidmodels.methods import METHODS
    from vidmodels.report import comparison_page
    from vidmodels.runs import find_variant
    from vidmodels.stream_comparison import compare_streams

    if out.suffix != ".html" or not out.absolute().parent.is_dir():
        raise UsageError(f"{out}: expected a name ending in .html, in a folder that exists.")
    runs = [find_variant(target, recipe=recipe, overrides=overrides or ()) for target in targets]
    classifiers = [run for run in runs if run.recipe.eval.metric != "map50"]
    detectors = [run for run in runs if run.recipe.eval.metric == "map50"]
    curves = [read_curve(folder) for folder in curve_folders or ()]
    with_exits = [run for run in classifiers if METHODS[run.recipe.method].early_exit is not None]
    if early_exit and not with_exits:
        raise UsageError("--early-exit: none of the models has exits.")
    keep_freed_memory()
    comparison = streams = None
    if classifiers:
        comparison = compare_runs(
            classifiers,
            data=data,
            split=split,
            dynamic=dynamic,
            timed_clips=timed_clips,
            timed_runs=timed_runs,
            device=device,
            workers=workers,
        )
    if early_exit:
        curves += [measure_curve(run, data=data, split=split, device=device, workers=workers) for run in with_exits]
    if detectors:
        streams = compare_streams(detectors, data=data, split=split, timed_runs=timed_runs, device=device)
    text = comparison_page(
        comparison, curves=curves, streams=streams, data=data, split=split, num_clips=videos, seed=seed
    )
    write_atomically(out, lambda file: file.write(text.encode()))
    if json_file is not None:
        figures: dict[str, Any] = {} if comparison is None else comparison.to_json()
        if curves:
            figures["early_exit"] = [
                {"name": curve.name, "heading": curve.heading, "rows": curve.rows()} for curve in curves
            ]
        if streams is not None:
            figures["detectors"] = streams.to_json()
        _write_json(json_file, figures)
    for one in (comparison, streams):
        if one is not None:
            typer.echo(one.heading)
            _print_table(one.table)
    typer.echo(f"{out}: {len(targets)} model{'s' if len(targets) > 1 else ''}, {len(text.encode()) / 1e6:.1f} MB")


@app.command()
def predict(
    checkpoint: Annotated[Path, typer.Option(metavar="RUN|FILE", help="A run folder or a weight file.")],
    videos: Annotated[
        list[Path] | None, typer.Argument(metavar="VIDEO|FOLDER...", help="Files, folders of them, or patterns.")
    ] = None,
    webcam: Annotated[
        str | None, typer.Option(metavar="N|DEVICE|URL|FILE", help="Watch a camera (0, /dev/video0) until Ctrl-C.")
    ] = None,
    recipe: Annotated[str | None, typer.Option(metavar="NAME|FILE", help="For a file that brings no recipe.")] = None,
    overrides: Overrides = None,
    top: Annotated[int, typer.Option(min=1, help="Classes of each video.")] = 5,
    seconds: Annotated[
        float, typer.Option(help="Of a camera: what a clip spans, for recipes whose clips span a whole video.")
    ] = 4.0,
    every: Annotated[float, typer.Option(help="Of a camera: seconds between predictions, if the model is fast.")] = 0.5,
    device: Device = None,
    json_file: Annotated[
        Path | None,
        typer.Option("--json", metavar="FILE", help="Write a line of JSON for each video, too; - for lines alone."),
    ] = None,
) -> None:
    """Say what is in videos, or in front of a camera: the likeliest classes. Status 1 where one does not decode."""
    from vidmodels.predict import find_videos
    from vidmodels.predict import predict as predict_videos
    from vidmodels.runs import find_run

    to_stdout = json_file == Path("-")
    if json_file is not None and not to_stdout and not json_file.absolute().parent.is_dir():
        raise UsageError(f"{json_file}: its folder does not exist; make it first.")
    if bool(videos) == (webcam is not None):
        raise UsageError("give either videos, or --webcam.")
    if webcam is not None:
        from vidmodels.live import watch

        run = find_run(checkpoint, recipe=recipe, overrides=overrides or ())
        to_stderr = partial(typer.echo, err=True)
        predictions = watch(run, webcam, seconds=seconds, every=every, top=top, device=device, tell=to_stderr)
    else:
        found = find_videos(videos or [])
        run = find_run(checkpoint, recipe=recipe, overrides=overrides or ())
        predictions = predict_videos(run, found, top=top, device=device)
    faults = _print_predictions(predictions, json_file, is_live=webcam is not None)
    if faults:
        raise typer.Exit(1)


def _print_predictions(predictions: "Iterator[Prediction]", json_file: Path | None, *, is_live: bool) -> int:
    """How many are faults. Lines of JSON go to their file as they come; Ctrl-C is how watching a camera ends."""
    num_done = num_faults = 0
    with ExitStack() as stack:
        lines = None
        if json_file is not None:
            is_stdout = json_file == Path("-")
            lines = sys.stdout if is_stdout else stack.enter_context(json_file.open("w", encoding="utf-8"))
        if is_live:
            stack.enter_context(suppress(KeyboardInterrupt))
        for prediction in predictions:
            num_done += 1
            num_faults += bool(prediction.fault)
            if lines is not None:
                print(prediction.to_json(), file=lines, flush=True)
            if prediction.fault or lines is not sys.stdout:
                for line in [prediction.short_line] if is_live else prediction.lines:
                    typer.echo(line, err=bool(prediction.fault))
    if is_live:
        typer.echo(f"{num_done} predictions", err=True)
    return num_faults


@app.command()
def export(
    target: Annotated[Path, typer.Argument(metavar="RUN|CHECKPOINT", help="A run folder or a weight file.")],
    out: Annotated[Path, typer.Option(metavar="FILE", help="model.onnx, or model.pt2 for torch.export.load.")],
    recipe: Annotated[str | None, typer.Option(metavar="NAME|FILE", help="For a file that brings no recipe.")] = None,
    overrides: Overrides = None,
    form: Annotated[str, typer.Option(help="trainable computes everything; dynamic skips.")] = "trainable",
    clips: Annotated[str, typer.Option(metavar="dynamic|N", help="Clips of a call: any number, or N.")] = "dynamic",
    opset: Annotated[int | None, typer.Option(min=18, help="Of ONNX; by default what PyTorch writes best.")] = None,
    tolerance: Annotated[
        float, typer.Option(help="Largest difference allowed in the check, over the largest logit.")
    ] = 1e-4,
) -> None:
    """Write a model for other programs, as ONNX or torch.export, and check that it gives what the model gives."""
    from vidmodels.export import export_model
    from vidmodels.runs import find_run

    if clips != "dynamic" and not clips.isdecimal():
        raise UsageError(f"--clips is a number from 1 on, or dynamic; got {clips}.")
    done = export_model(
        find_run(target, recipe=recipe, overrides=overrides or ()),
        out,
        form=form,  # type: ignore[arg-type]  # checked there
        clips=None if clips == "dynamic" else int(clips),
        opset=opset,
        tolerance=tolerance,
    )
    for line in done.lines:
        typer.echo(line)


@app.command()
def package(
    target: Annotated[str, typer.Argument(metavar="RUN|CHECKPOINT", help="A run folder or a weight file.")],
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Gets config.json, model.safetensors and a model card.")],
) -> None:
    """Write a model as a folder that vidmodels.from_pretrained and the Hugging Face Hub take."""
    from vidmodels.hub import save_pretrained

    folder = save_pretrained(target, out)
    typer.echo(f"{folder}: load it with vidmodels.from_pretrained({str(folder)!r})")


@app.command()
def push(
    target: Annotated[str, typer.Argument(metavar="RUN|CHECKPOINT", help="A run folder or a weight file.")],
    repository: Annotated[str, typer.Argument(metavar="NAME/MODEL", help="Made where it is not there.")],
    private: Annotated[bool | None, typer.Option(help="Of a new repository.")] = None,
    revision: Annotated[str | None, typer.Option(metavar="BRANCH", help="By default main.")] = None,
) -> None:
    """Put a model on the Hugging Face Hub; `hf auth login` first."""
    from vidmodels.hub import push as push_model

    typer.echo(push_model(target, repository, private=private, revision=revision))


@app.command()
def convert(
    method: Annotated[str, typer.Argument(help="See `vidmodels list`.")],
    source: Annotated[Path, typer.Argument(metavar="IN.pth", help="A published checkpoint.")],
    target: Annotated[Path, typer.Argument(metavar="OUT.safetensors", help="The same weights under our names.")],
) -> None:
    """Convert a published checkpoint."""
    from vidmodels.checkpoints import CheckpointError, load_checkpoint, save_weights

    converter = _find_method(method).convert
    if target.suffix != ".safetensors" or not target.parent.is_dir():
        raise UsageError(f"{target}: expected a name ending in .safetensors, in a folder that exists.")
    state = load_checkpoint(source)
    try:
        converted = converter(state)
    except CheckpointError as error:
        raise CheckpointError(f"{source}: {error}") from error
    save_weights(target, converted, {"method": method, "source": source.name})
    num_values = sum(tensor.numel() for tensor in converted.values())
    typer.echo(f"{target}: {len(converted)} of {len(state)} entries, {num_values / 1e6:.2f} M values")


@app.command()
def cost(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    num_classes: Annotated[int | None, typer.Option("--classes", min=1, help="Where the recipe does not say.")] = None,
    json_file: JsonFile = None,
) -> None:
    """Count a recipe's multiply-accumulates and parameters on one random clip, beside the published figures."""
    from vidmodels.recipes import load_recipe

    loaded = load_recipe(recipe, overrides or ())
    figures, by_operator = _count(loaded, num_classes)
    published = loaded.published
    known: dict[str, float | None] = {}
    if published is not None:
        figure = f"{published.gmacs_figure} (random weights)" if published.gmacs_figure else "GMACs per clip"
        if published.gmacs_views > 1:
            per_clip, figure = figures[figure], f"{published.gmacs_figure or 'GMACs'}, {published.gmacs_views} views"
            figures[figure] = published.gmacs_views * per_clip
        known = {"parameters": published.num_params, figure: published.gmacs}
    data, side = loaded.data, loaded.eval_crop
    typer.echo(f"{loaded.method}/{loaded.name}: one clip of {data.num_frames} frames, {side} x {side}")
    rows = [["", "ours", "published", "difference"]]
    for name, ours in figures.items():
        theirs = known.get(name)
        said = "-" if theirs is None else _number(theirs)
        rows.append([name, _number(ours), said, "-" if theirs is None else f"{100 * (ours / theirs - 1):+.2f} %"])
    _print_table(rows)
    typer.echo("\nGMACs by operator, trainable form")
    _print_table([[name, _number(gmacs)] for name, gmacs in by_operator.items()])
    typer.echo("Weights are random, so what is skipped says nothing about a trained model.")
    if published is not None and published.convention:
        typer.echo(f"Published convention: {published.convention}")
    if json_file is not None:
        _write_json(json_file, {"recipe": loaded.name, "figures": figures, "gmacs_by_operator": by_operator})


@app.command()
def bench(
    recipes: Annotated[
        list[str] | None,
        typer.Argument(metavar="[RECIPE]...", help="By default a published setting of every method: takes minutes."),
    ] = None,
    checkpoint: Annotated[
        Path | None, typer.Option(metavar="RUN|CHECKPOINT", help="Weights of one recipe; by default random ones.")
    ] = None,
    overrides: Overrides = None,
    clips: Annotated[str, typer.Option(metavar="N,N,...", help="Clips of a call, each number measured.")] = "4",
    kept: Annotated[
        float | None,
        typer.Option(help="TAPS: share of the gated channels that is kept; by default a third, or as weights decide."),
    ] = None,
    masks: Annotated[
        str, typer.Option(metavar="same|clip|frame", help="TAPS: whether clips or frames keep other channels.")
    ] = "same",
    budget: Annotated[float, typer.Option(help="Uni-AdaFocus: share of the full run that videos spend.")] = 0.5,
    threads: Annotated[int | None, typer.Option(help="Of a CPU; by default as PyTorch chooses.")] = None,
    precision: Annotated[
        str, typer.Option(metavar="float32|bf16|fp16", help="The shorter ones under autocast.")
    ] = "float32",
    rounds: Annotated[int, typer.Option(help="Timed calls of each form; they take turns.")] = 5,
    device: Device = None,
    num_classes: Annotated[int | None, typer.Option("--classes", min=1, help="Where the recipe does not say.")] = None,
    json_file: JsonFile = None,
) -> None:
    """Time every method's dynamic form against its dense form, beside what their multiply-accumulates promise.

    Clips are random. `--set` changes each recipe, such as model.prune_number=48.
    """
    from typing import get_args

    from vidmodels.bench import Precision, bench_recipes, facts
    from vidmodels.forms import Amounts, Masks

    for option, given, choices in (("masks", masks, get_args(Masks)), ("precision", precision, get_args(Precision))):
        if given not in choices:
            raise UsageError(f"--{option} is one of {', '.join(choices)}, got {given!r}.")
    try:
        numbers = [int(part) for part in clips.split(",")]
    except ValueError as error:
        raise UsageError(f"--clips are numbers such as 1,4,8, got {clips!r}.") from error
    if json_file is not None and not json_file.absolute().parent.is_dir():
        raise UsageError(f"--json: no folder {json_file.absolute().parent}.")
    content: dict[str, Any] = {"machine": facts(), "measured": []}
    for measured in bench_recipes(
        recipes or (),
        checkpoint=checkpoint,
        overrides=overrides or (),
        clips=numbers,
        device=device,
        threads=threads,
        precision=precision,  # type: ignore[arg-type]
        rounds=rounds,
        amounts=Amounts(kept=kept, masks=masks, budget=budget),  # type: ignore[arg-type]
        num_classes=num_classes,
    ):
        typer.echo(measured.heading)
        _print_table(measured.table)
        typer.echo()
        _print_table(measured.comparisons)
        typer.echo()
        content["measured"].append(measured.to_json())
        if json_file is not None:
            _write_json(json_file, content)
    typer.echo(
        "by MACs: what is promised; by time: what is measured (a CPU's time of all threads, a GPU's wall clock)."
    )


@app.command()
def verify(
    paths: Annotated[list[Path], typer.Argument(metavar="PATH...", help="Golden cases: files, or folders of them.")],
) -> None:
    """Run golden cases: published numbers against ours."""
    from vidmodels.golden import verify_command

    raise typer.Exit(verify_command(paths))


def _find_method(name: str) -> "Method":
    from vidmodels.methods import METHODS

    if name not in METHODS:
        raise UnknownName(f"no method {name!r}; {suggest(name, METHODS)}")
    return METHODS[name]


def _count(recipe: "Recipe", num_classes: int | None) -> tuple[dict[str, float], dict[str, float]]:
    """Figures of a model with random weights on one random clip; the trainable form's GMACs by operator."""
    import torch

    from vidmodels.cost import count_cost
    from vidmodels.data import known_classes

    method = _find_method(recipe.method)
    num_classes = num_classes or known_classes(recipe.data)
    if num_classes is None:
        raise UsageError(
            f"recipe {recipe.name} does not say how many classes {recipe.data.dataset} has; add --classes."
        )
    torch.manual_seed(0)
    model = method.build(recipe.model, num_classes).eval()
    clip = torch.randn(1, recipe.data.num_frames, 3, recipe.eval_crop, recipe.eval_crop)
    trainable = count_cost(model, clip)
    figures: dict[str, float] = {"parameters": trainable.num_params, "GMACs per clip": trainable.macs / 1e9}
    dynamic = method.make_dynamic(model)
    if dynamic is not model:
        figures["GMACs per clip, dynamic"] = count_cost(dynamic, clip).macs / 1e9
    with torch.no_grad():
        figures |= {f"{name} (random weights)": value for name, value in method.summarise(model, model(clip)).items()}
    return figures, {name: macs / 1e9 for name, macs in trainable.by_operator.items()}


def _print_curve(curve: "Curve") -> None:
    typer.echo(curve.heading)
    _print_table(curve.table)
    for remark in curve.remarks:
        typer.echo(remark)


def _print_table(rows: Sequence[Sequence[str]]) -> None:
    """Columns as wide as their widest cell; figures to the right."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [
            cell.rjust(width) if cell[:1].isdigit() or cell[:1] in "+-" else cell.ljust(width)
            for cell, width in zip(row, widths, strict=True)
        ]
        typer.echo("  ".join(cells).rstrip())


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.4f}"


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    raise SystemExit(main())
