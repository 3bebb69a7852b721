"""Uni-AdaFocus with early exit against the full run: the same optimised network on the same videos.

Half the multiply-adds of the full run: with the toy recipe's network as trained, if its folder is in `TOY_RUN` (and
its shards are where it says), and with networks of random weights at the toy's size and at the published ActivityNet
size, in which so many videos leave at each exit as the budget asks for, whichever they are. Batches as the recipe
evaluates them, float32, 2 threads; sides take turns.
"""

import os
from functools import partial
from pathlib import Path

import torch
from rich.console import Console
from torch import Tensor, nn

from scripts.benchmarks.runner import Ratio, Side, compare, machine_facts, measure, print_rates, print_ratios
from vidmodels.cost import count_cost
from vidmodels.data import open_test_split
from vidmodels.memory import keep_freed_memory
from vidmodels.methods import METHODS
from vidmodels.methods.uni_adafocus.exits import (
    Criterion,
    exit_counts,
    exit_shares,
    exit_values,
    q_of_budget,
    solve_thresholds,
)
from vidmodels.recipes import load_recipe
from vidmodels.runs import find_run, load_model
from vidmodels.types import Recipe

__all__ = ["PACKAGES", "run"]

PACKAGES = ("torch", "torchvision", "numpy")
BUDGET = 0.5
"""Share of the full run's multiply-adds."""
METHOD = METHODS["uni_adafocus"]


def run(*, rounds: int) -> tuple[dict[str, Ratio], dict[str, object]]:
    """Measure and print; the ratios and the machine."""
    torch.set_num_threads(2)
    torch.manual_seed(0)
    keep_freed_memory()
    ratios: dict[str, Ratio] = {}
    for name, num_classes, num_clips in (("toy", 8, 32), ("activitynet_p128", 200, 8)):
        recipe = load_recipe(f"uni_adafocus/{name}")
        size = recipe.eval_crop
        clips = torch.randn(num_clips, recipe.data.num_frames, 3, size, size)
        model = METHOD.build(recipe.model, num_classes).eval()
        for module in model.modules():
            if isinstance(module, nn.Linear) and module.out_features == num_classes:
                nn.init.normal_(module.weight)  # or all answers of a new network are alike
        ratios |= _compare(f"{name}_random", recipe, model, clips, "confidence", rounds)
    if folder := os.environ.get("TOY_RUN"):
        trained = find_run(Path(folder))
        if trained.data is None:
            raise SystemExit(f"{folder}: does not say where its shards are")
        dataset = open_test_split(trained.recipe, trained.data, trained.recipe.data.val_split)
        model = load_model(trained, num_classes=len(dataset.manifest.classes))
        clips = torch.cat([dataset[index].frames for index in range(0, len(dataset), 2)])
        ratios |= _compare("toy_trained", trained.recipe, model, clips, "entropy", rounds)
    print_ratios("early exit over full run", ratios)
    return ratios, machine_facts(PACKAGES)


def _compare(
    name: str, recipe: Recipe, model: nn.Module, clips: Tensor, criterion: Criterion, rounds: int
) -> dict[str, Ratio]:
    exits = METHOD.early_exit
    assert exits is not None
    batches = torch.split(clips, recipe.eval.batch_size)
    with torch.no_grad():
        logits = torch.cat([exits.logits(model, model(batch)) for batch in batches])
    values = exit_values(logits, criterion)
    macs = exits.macs(recipe.model, logits.shape[-1])
    q = q_of_budget(BUDGET * macs[-1], macs, len(values))
    thresholds = solve_thresholds(values, exit_counts(exit_shares(q, len(macs)), len(values)))
    forms = {
        "full": exits.make(model),
        # A hair below: the network that stops rounds otherwise than the one that the thresholds were solved with.
        "early": exits.make(model, thresholds=(thresholds - 1e-4 * thresholds.abs()).tolist(), criterion=criterion),
    }
    counted = {side: sum(count_cost(form, batch).macs for batch in batches) for side, form in forms.items()}
    Console().print(
        f"{name}: {len(clips)} videos, {counted['full'] / 1e9 / len(clips):.4f} GMACs a video in full, "
        f"{counted['early'] / 1e9 / len(clips):.4f} with early exit: {counted['early'] / counted['full']:.3f}"
    )
    sides = [Side(name=side, run=partial(_classify, form, batches)) for side, form in forms.items()]
    rates = measure(sides, rounds=rounds)
    print_rates(name, rates, unit="videos / CPU s")
    return {f"{name}_time_share": compare(rates["full"], rates["early"])}


def _classify(form: nn.Module, batches: tuple[Tensor, ...]) -> int:
    with torch.inference_mode():
        for batch in batches:
            form(batch)
    return sum(map(len, batches))
