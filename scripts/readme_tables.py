"""Fills the generated tables of README.md from data sets, recipes and a saved benchmark; `--check` only compares.

A table stands between `<!-- NAME -->` and `<!-- end -->`. That of speed is of `docs/speed.json`, which `scripts/bench
models --json docs/speed.json` writes. Other tables of measurements (demo, decode) are pasted by hand.
"""

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

import torch

from scripts.benchmarks.models import CASES
from vidmodels.cost import count_cost
from vidmodels.methods import METHODS
from vidmodels.recipes import list_recipes, load_recipe
from vidmodels.types import Published, Recipe
from vidprep.datasets import DATASETS
from vidprep.types import DatasetInfo

README = Path(__file__).parent.parent / "README.md"
SPEED = README.parent / "docs" / "speed.json"

TASKS = {
    "single_label": "one label",
    "multi_label": "several labels",
    "verb_noun": "verb and noun",
    "detection": "boxes",
}


def filled(readme: str) -> str:
    """The README's text with all tables as they should be."""
    speed = json.loads(SPEED.read_text(encoding="utf-8"))
    tables = {"data sets": dataset_table(), "methods": method_table(), "speed table": speed_table(speed)}
    for name, table in tables.items():
        marked = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end -->)", re.DOTALL)
        if not marked.search(readme):
            raise SystemExit(f"{README}: no place for the table, `<!-- {name} -->` ... `<!-- end -->`")
        readme = marked.sub(lambda found, table=table: f"{found[1]}{table}\n{found[2]}", readme)  # type: ignore[misc]
    return readme


def dataset_table() -> str:
    """One row a data set."""
    rows = ["| `--dataset` | what | task | classes | videos |", "|---|---|---|---|---|"]
    for info in DATASETS.values():
        title = f"[{info.title}]({info.homepage})" if info.homepage else info.title
        classes = str(info.num_classes) if info.num_classes is not None else "yours"
        if info.num_noun_classes is not None:
            classes += f" and {info.num_noun_classes}"
        rows.append(f"| `{info.name}` | {title} | {TASKS.get(info.task, info.task)} | {classes} | {_counts(info)} |")
    return "\n".join(rows)


def _counts(info: DatasetInfo) -> str:
    known = [f"{split} {count:,}" for split, count in info.splits.items() if count is not None]
    return ", ".join(known) or ("yours" if info.num_classes is None else "counts not published")


def method_table() -> str:
    """One row a recipe; costs are counted here, from the operators that run."""
    rows = [
        "| recipe | data set | clip | parameters | GMACs a clip, nothing skipped | published |",
        "|---|---|---|---|---|---|",
    ]
    for name in list_recipes():
        recipe = load_recipe(name)
        data = recipe.data
        macs, num_params = _cost(recipe)
        gmacs = macs / 1e9
        cost = f"{num_params / 1e6:.2f} M | {gmacs:.3g}" if gmacs < 1000 else f"{num_params / 1e6:.2f} M | {gmacs:.0f}"
        clip = f"{data.num_frames} x {recipe.eval_crop} x {recipe.eval_crop}"
        rows.append(f"| `{name}` | `{data.dataset}` | {clip} | {cost} | {_published(recipe.published)} |")
    return "\n".join(rows)


def _cost(recipe: Recipe) -> tuple[int, int]:
    data = recipe.data
    num_classes = data.num_classes
    if num_classes is None:
        info = DATASETS[data.dataset]
        if info.num_classes is None:
            raise SystemExit(
                f"recipe {recipe.name}: {data.dataset} does not say how many classes; set data.num_classes"
            )
        num_classes = info.num_classes
    with torch.device("meta"):
        model = METHODS[recipe.method].build(recipe.model, num_classes)
        clip = torch.empty(1, data.num_frames, 3, recipe.eval_crop, recipe.eval_crop)
    cost = count_cost(model.eval(), clip)
    return cost.macs, cost.num_params


def _published(published: Published | None) -> str:
    if published is None:
        return "ours"
    gmacs = "GMACs" if published.gmacs_views == 1 else f"GMACs of {published.gmacs_views} views"
    figures = {"top-1": published.top1, "mAP": published.map, "mAP50": published.map50, gmacs: published.gmacs}
    known = [f"{name} {value:g}" for name, value in figures.items() if value is not None]
    return ", ".join(known) or "no numbers in the text"


def speed_table(speed: dict[str, Any]) -> str:
    """One row a comparison of `scripts/bench models`."""
    rows = ["| recipe | dropped | against | GMACs | by MACs | by time | time / MACs |", "|---|---|---|---|---|---|---|"]
    for one in speed["measured"].values():
        gmacs = {form["name"]: form["gmacs"] for form in one["forms"]}
        batch = f"{one['num_clips']} clips" if one["unit"] == "clip" else "a stream"
        for pair in one["speed_ups"]:
            form, against = pair["form"], pair["against"]
            versus = f"`{against}`" if form == "dynamic" else f"`{form}` against `{against}`"
            cost = f"{gmacs[form]:.4g} of {gmacs[against]:.4g} a {one['unit']}"
            time, share = pair["by_time"]["median"], pair["time_over_macs"]["median"]
            rows.append(
                f"| `{one['recipe']}`, {batch} | {one['amount']} | {versus} | {cost} | {pair['by_macs']:.2f} | "
                f"{time:.2f} | {share:.2f} |"
            )
    machine, rounds = speed["machine"], {one["rounds"] for one in speed["measured"].values()}
    devices = {one["device"] for one in speed["measured"].values()}
    rounded = ", ".join(f"{number} round{'s' if number > 1 else ''}" for number in sorted(rounds))
    told = f"{machine['cpu']}, {', '.join(sorted(devices))}, float32, torch {machine['packages']['torch']}"
    missing = [case.name for case in CASES if case.name not in speed["measured"]]
    note = f" Not in this run: {', '.join(missing)}." if missing else ""
    return "\n".join([*rows, "", f"Medians of {rounded}: {told}.{note}"])


def main() -> None:
    """Write the tables, or say that they are not up to date."""
    parser = argparse.ArgumentParser(description="Fill the generated tables of README.md.")
    parser.add_argument("--check", action="store_true", help="change nothing; status 1 if something would change")
    is_check = parser.parse_args().check
    before = README.read_text(encoding="utf-8")
    after = filled(before)
    if before == after:
        return
    if is_check:
        sys.exit(
            "README.md: its tables are not those of the data sets, the recipes and docs/speed.json; "
            "run `python -m scripts.readme_tables`"
        )
    README.write_text(after, encoding="utf-8")


if __name__ == "__main__":
    main()
