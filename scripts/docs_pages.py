"""Fills the generated parts of the pages on data sets, on methods and on reproducing; `--check` only compares.

A part stands between `<!-- NAME -->` and `<!-- end -->`, as in README.md, whose tables `scripts.readme_tables` fills
first: parameters and multiply-accumulates are taken from there. A data set without a page gets one.
"""

import argparse
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from scripts.readme_tables import TASKS
from scripts.reproduce import Step, data_steps, model_steps, shard_options, steps
from vidmodels.methods import METHODS
from vidmodels.recipes import list_recipes, load_recipe
from vidmodels.types import Published, Recipe
from vidprep.datasets import DATASETS
from vidprep.datasets.info import ACCESS
from vidprep.types import DatasetInfo, RemoteFile

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
README = ROOT / "README.md"

DATA_PAGES = tuple(f"data/{name}.md" for name in DATASETS)
METHOD_PAGES = tuple(f"methods/{name}.md" for name in METHODS)

SECTIONS = {
    "kinetics400": "kinetics400-kinetics600-kinetics700",
    "kinetics600": "kinetics400-kinetics600-kinetics700",
    "kinetics700": "kinetics400-kinetics600-kinetics700",
    "mini_kinetics": "mini_kinetics-mini_kinetics_xie2018",
    "mini_kinetics_xie2018": "mini_kinetics-mini_kinetics_xie2018",
    "something_v2": "something_v2-something_v1-jester",
    "something_v1": "something_v2-something_v1-jester",
    "jester": "something_v2-something_v1-jester",
    "folder": "folder-your-own-videos",
}
"""Data set -> heading of docs/datasets.md that it is under, where that is not its name."""


@dataclass(frozen=True, kw_only=True)
class Size:
    """How large a data set is, for estimates: nobody publishes all of this."""

    gigabytes: float | None
    """As delivered, all splits; None: not known."""
    seconds: float
    """Mean length of a video (of a segment, where these are what is classified)."""
    frame_rate: float
    side: tuple[int, int]
    """Usual width and height of a frame in pixels."""
    is_by_split: bool = False
    """The splits are downloaded one by one."""


SIZES: Mapping[str, Size] = {
    "kinetics400": Size(gigabytes=436, seconds=10, frame_rate=30, side=(340, 256), is_by_split=True),
    "kinetics600": Size(gigabytes=727, seconds=10, frame_rate=30, side=(340, 256), is_by_split=True),
    "kinetics700": Size(gigabytes=867, seconds=10, frame_rate=30, side=(340, 256), is_by_split=True),
    "mini_kinetics": Size(gigabytes=379, seconds=10, frame_rate=30, side=(340, 256)),
    "mini_kinetics_xie2018": Size(gigabytes=379, seconds=10, frame_rate=30, side=(340, 256)),
    "something_v2": Size(gigabytes=19.4, seconds=3.8, frame_rate=12, side=(427, 240)),
    "something_v1": Size(gigabytes=None, seconds=3.8, frame_rate=12, side=(132, 100)),
    "jester": Size(gigabytes=22.8, seconds=3, frame_rate=12, side=(176, 100)),
    "activitynet": Size(gigabytes=700, seconds=117, frame_rate=30, side=(640, 360)),
    "fcvid": Size(gigabytes=1900, seconds=167, frame_rate=30, side=(480, 360)),
    "epic_kitchens": Size(gigabytes=740, seconds=3.7, frame_rate=50, side=(1920, 1080)),
    "imagenet_vid": Size(gigabytes=92, seconds=11, frame_rate=29, side=(1280, 720)),
}
"""The gigabytes are what publishers and users of the data sets report; the rest are rounded means."""

MEGABITS_PER_SECOND = 100.0
DECODED_PER_CPU_SECOND = 1600.0
"""Frames of 340 x 256, H.264, by PyAV on one core of the development machine (AMD EPYC, shared)."""
BYTES_PER_PIXEL = 20_100 / (340 * 256)
"""JPEG at ffmpeg's `-q:v 2`, measured on one frame of Kinetics."""
GMACS_PER_THREAD_SECOND = 46.0
"""Float32 matrix products of a ViT's size on one thread of the same machine: the most that a network can reach."""
BACKWARD = 3
"""Multiply-accumulates of a training step over those of the pass forward."""


@dataclass(frozen=True, kw_only=True)
class Counted:
    """A row of the README's table of recipes."""

    parameters: str
    gmacs: float


def pages() -> Iterator[tuple[Path, str]]:
    """Every page with generated parts, as it should be."""
    counted = read_counted(README.read_text(encoding="utf-8"))
    recipes = [load_recipe(name) for name in list_recipes()]
    yield from _filled(DOCS / "data" / "index.md", {"data sets": data_table(recipes)})
    for info in DATASETS.values():
        parts = {
            "facts": facts(info),
            "get": how_to_get(info),
            "commands": commands(info),
            "traps": traps(info),
            "recipes": users_of(info, recipes),
        }
        yield from _filled(DOCS / "data" / f"{info.name}.md", parts, skeleton=skeleton(info))
    yield from _filled(DOCS / "methods" / "index.md", {"methods": method_table(recipes)})
    for name in METHODS:
        table = recipe_table([recipe for recipe in recipes if recipe.method == name], counted)
        yield from _filled(DOCS / "methods" / f"{name}.md", {"recipes": table})
    published = [recipe for recipe in recipes if recipe.published is not None]
    yield from _filled(DOCS / "reproducing.md", {"tables": published_tables(published, counted)})


def _filled(path: Path, parts: Mapping[str, str], *, skeleton: str = "") -> Iterator[tuple[Path, str]]:
    text = path.read_text(encoding="utf-8") if path.exists() else skeleton
    for name, part in parts.items():
        place = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end -->)", re.DOTALL)
        if not place.search(text):
            raise SystemExit(f"{path}: no place for a generated part, `<!-- {name} -->` ... `<!-- end -->`")
        text = place.sub(lambda found, part=part: f"{found[1]}{part}\n{found[2]}", text)  # type: ignore[misc]
    yield path, text


def read_counted(readme: str) -> dict[str, Counted]:
    """METHOD/NAME -> what the README's table of recipes says of its size and cost."""
    row = re.compile(r"^\| `(\S+/\S+)` \| `\S+` \| [^|]+ \| ([^|]+) \| ([\d.]+) \|", re.MULTILINE)
    found = {name: Counted(parameters=text, gmacs=float(gmacs)) for name, text, gmacs in row.findall(readme)}
    missing = set(list_recipes()) - set(found)
    if missing:
        raise SystemExit(f"{README}: no row for {', '.join(sorted(missing))}; run `python -m scripts.readme_tables`")
    return found


# Data sets


def skeleton(info: DatasetInfo) -> str:
    """A new page, its generated parts still empty."""
    anchor = SECTIONS.get(info.name, info.name)
    return f"""# {info.title}

<!-- facts -->
<!-- end -->

## How to get it

<!-- get -->
<!-- end -->

## Commands

<!-- commands -->
<!-- end -->

## How it is read

<!-- include: ../datasets.md#{anchor} -->
[Of this and the sets like it](../datasets.md#{anchor}).
<!-- end -->

## Traps

<!-- traps -->
<!-- end -->

## Recipes on it

<!-- recipes -->
<!-- end -->
"""


def data_table(recipes: Sequence[Recipe]) -> str:
    """One row a data set."""
    rows = [
        "| data set | task | classes | videos | as delivered | how it is had | recipes |",
        "|---|---|---|---|---|---|---|",
    ]
    for info in DATASETS.values():
        number = sum(recipe.data.dataset == info.name for recipe in recipes)
        rows.append(
            f"| [{info.title}]({info.name}.md) | {TASKS[info.task]} | {_classes(info)} | {_videos(info)} | "
            f"{_gigabytes(info)} | {ACCESS[info.access].removesuffix(': see below')} | {number or ''} |"
        )
    return "\n".join(rows)


def facts(info: DatasetInfo) -> str:
    """What it is, as a table."""
    frames = info.frames
    rate = "every frame" if frames.fps is None else f"{frames.fps:g} frames per second (`{frames.rate_mode}`)"
    size = "own size" if frames.short_side is None else f"short side {frames.short_side}"
    how = "as published" if info.media == "frames" else "when extracted, unless told otherwise"
    known = {
        "name": f"`{info.name}`",
        "task": f"{TASKS[info.task]}; {_classes(info)} classes",
        "videos": _videos(info),
        "size": _gigabytes(info),
        "licence": info.licence,
        "homepage": f"<{info.homepage}>" if info.homepage else "",
        "paper": f"<{info.paper}>" if info.paper else "",
        "files": f"{'folders of frames' if info.media == 'frames' else 'video files'} at "
        + " or ".join(f"`{path}`" for path in info.video_paths),
        "frames": f"{how}: {rate}, {size}, `{frames.template}` from {frames.first_index}",
        "a mirror swaps": ", ".join(f"{a} and {b}" for a, b in sorted(info.flip_pairs.items()) if a < b),
    }
    rows = [f"| {name} | {text} |" for name, text in known.items() if text]
    return "\n".join([info.description, "", "| | |", "|---|---|", *rows])


def how_to_get(info: DatasetInfo) -> str:
    """Access, instructions and what the publisher offers."""
    access = ACCESS[info.access].removesuffix(": see below").replace("open: ", "open, ")
    text = [f"Access: {access}. {info.instructions}"]
    if info.files:
        text += ["", "| file below the data root | what | checksum | from |", "|---|---|---|---|"]
        text += [_file_row(file) for file in info.files]
    if info.archives:
        text += ["", f"Archives, as you hold them: {', '.join(f'`{name}`' for name in info.archives)}."]
    if info.archive_md5:
        text += ["", "| archive | md5 |", "|---|---|"]
        text += [f"| `{name}` | `{digest}` |" for name, digest in info.archive_md5.items()]
    return "\n".join(text)


def _file_row(file: RemoteFile) -> str:
    kind = {"file": "annotations", "archive": "archive", "url_list": "list of archives"}[file.kind]
    split = f" of {file.split}" if file.split else ""
    checksum = next((f"{name} `{value}`" for name, value in (("sha256", file.sha256), ("md5", file.md5)) if value), "-")
    return f"| `{file.filename or file.url.rsplit('/', 1)[-1]}` | {kind}{split} | {checksum} | <{file.url}> |"


def commands(info: DatasetInfo) -> str:
    """From download to shards, exactly."""
    if info.access == "own":
        return "```\nvidprep shard --dataset folder --data-root my_videos --out my_shards\n```"
    wanted = [split for split in ("train", "val") if split in info.splits] or list(info.splits)
    if len(wanted) == 1:
        wanted = list(info.splits)
    lines = [step.line() for step in data_steps(info, splits=wanted, data_root="ROOT", shards="SHARDS")]
    block = "\n".join(["```", *lines, "```"])
    if info.access == "generated":
        return block
    given = " `ARCHIVES` is the folder with what you were given." if info.access == "form" else ""
    return "\n".join(
        [
            "Tried first on a [miniature](../miniatures.md), in a few seconds:",
            "",
            "```",
            f"vidprep miniature {info.name} --out MINI",
            "```",
            "",
            f"From download to verified shards.{given} Status 1 of `verify` and `shard` means that videos are missing,",
            "which are named; the others are done. The same command again goes on.",
            "",
            f"<!-- needs: {_needed(info)} -->",
            block,
        ]
    )


def _needed(info: DatasetInfo) -> str:
    size = SIZES[info.name].gigabytes if info.name in SIZES else None
    about = f", about {size:,.0f} GB" if size else ""
    how = {"form": "what its form gives", "youtube": "network", "open": "network"}.get(info.access, "")
    return f"{info.title} ({how}{about})"


def traps(info: DatasetInfo) -> str:
    """What has misled people, and the tests that hold vidprep to it."""
    stated = [f"- {trap}" for trap in info.traps]
    table = (DOCS / "datasets.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\w+) \| (.+?) \| (`test_\w+`) \|$", table, re.MULTILINE)
    groups = {info.name, "kinetics" if info.name.startswith("kinetics") else "", info.name.removesuffix("_xie2018")}
    tested = [f"| {trap} | {test} |" for group, trap, test in rows if group in groups]
    if tested:
        stated += ["", "| trap | the test that fails when vidprep falls for it |", "|---|---|", *tested]
    return "\n".join(stated) or "None known."


def users_of(info: DatasetInfo, recipes: Sequence[Recipe]) -> str:
    """The recipes on this data set."""
    found = [recipe for recipe in recipes if recipe.data.dataset == info.name]
    if not found:
        return "None comes with the package."
    methods = dict.fromkeys(recipe.method for recipe in found)
    return "\n".join(
        f"- [{method}](../methods/{method}.md#recipes): "
        + ", ".join(f"`{recipe.name}`" for recipe in found if recipe.method == method)
        for method in methods
    )


def _classes(info: DatasetInfo) -> str:
    if info.num_noun_classes is not None:
        return f"{info.num_classes} verbs and {info.num_noun_classes} nouns"
    return "its own" if info.num_classes is None else str(info.num_classes)


def _videos(info: DatasetInfo) -> str:
    known = [f"{split} {count:,}" for split, count in info.splits.items() if count is not None]
    return ", ".join(known) or ("yours" if info.access == "own" else "counts not published")


def _gigabytes(info: DatasetInfo) -> str:
    if info.name not in SIZES:
        return "a few megabytes" if info.access == "generated" else ""
    size = SIZES[info.name].gigabytes
    return "size not published" if size is None else f"about {size:,.0f} GB"


# Methods


def method_table(recipes: Sequence[Recipe]) -> str:
    """One row a method."""
    rows = ["| method | paper | data sets with recipes | skips, when run dynamically |", "|---|---|---|---|"]
    skips = {
        "taps": "channels of each frame",
        "tam": "nothing: it adds time to a 2D network",
        "sta": "tokens, of a network as it was trained",
        "uni_adafocus": "pixels, frames, and the rest of an easy video",
        "rgtp_vivit": "patches, led by the attention of the time step before",
        "rgtp_vitdet": "tokens in seven frames of eight",
    }
    for name, method in METHODS.items():
        sets = dict.fromkeys(recipe.data.dataset for recipe in recipes if recipe.method == name)
        paper = f"[paper]({method.paper})" if method.paper.startswith("http") else method.paper
        links = ", ".join(f"[`{one}`](../data/{one}.md)" if one in DATASETS else f"`{one}`" for one in sets)
        rows.append(f"| [{name}]({name}.md) | {paper} | {links} | {skips.get(name, 'see its page')} |")
    return "\n".join(rows)


def recipe_table(recipes: Sequence[Recipe], counted: Mapping[str, Counted]) -> str:
    """One row a recipe: what it costs here, what is published."""
    rows = [
        "| recipe | data set | clip | views | trains | parameters | GMACs a view, ours | published GMACs | published |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for recipe in recipes:
        name, dataset, side = f"{recipe.method}/{recipe.name}", recipe.data.dataset, recipe.eval_crop
        link = f"[`{dataset}`](../data/{dataset}.md)" if dataset in DATASETS else f"`{dataset}`"
        trains = f"{recipe.train.epochs} epochs" if recipe.train else "-"
        ours = counted[name]
        rows.append(
            f"| `{recipe.name}` | {link} | {recipe.data.num_frames} x {side} x {side} | {_views(recipe)} | {trains} | "
            f"{ours.parameters} | {ours.gmacs:g} | {_published_gmacs(recipe.published)} | "
            f"{_accuracy(recipe.published)} |"
        )
    return "\n".join(rows)


def _views(recipe: Recipe) -> int:
    return recipe.eval.num_clips * recipe.eval.num_crops


def _published_gmacs(published: Published | None) -> str:
    if published is None or published.gmacs is None:
        return "-"
    return f"{published.gmacs:g}" + (f" of {published.gmacs_views} views" if published.gmacs_views > 1 else "")


def _accuracy(published: Published | None) -> str:
    if published is None:
        return "ours"
    figures = {"top-1": published.top1, "mAP": published.map, "mAP50": published.map50}
    return ", ".join(f"{name} {value:g}" for name, value in figures.items() if value is not None) or "only in figures"


# Reproducing


def published_tables(recipes: Sequence[Recipe], counted: Mapping[str, Counted]) -> str:
    """A section for each method and data set: the numbers, what they take, the commands."""
    groups: dict[tuple[str, str], list[Recipe]] = {}
    for recipe in recipes:
        groups.setdefault((recipe.method, recipe.data.dataset), []).append(recipe)
    return "\n\n".join(
        _published_table(method, dataset, found, counted) for (method, dataset), found in sorted(groups.items())
    )


def _published_table(method: str, dataset: str, recipes: Sequence[Recipe], counted: Mapping[str, Counted]) -> str:
    title = DATASETS[dataset].title if dataset in DATASETS else dataset.upper()
    rows = [
        "| recipe | published | evaluation: PMACs | thread-hours, at least | training: PMACs | thread-hours |",
        "|---|---|---|---|---|---|",
    ]
    for recipe in recipes:
        gmacs = counted[f"{method}/{recipe.name}"].gmacs
        rows.append(
            f"| `{recipe.name}` | {_accuracy(recipe.published)} | {_work(_evaluation(recipe, gmacs))} | "
            f"{_work(_training(recipe, gmacs))} |"
        )
    needs = [_needed(DATASETS[dataset]) if dataset in DATASETS else f"{title}, your copy", "a GPU for most"]
    # One that can be trained shows the longest way; among these, one whose weights are published shows both ways.
    shown = max(
        recipes, key=lambda recipe: (recipe.train is not None, bool(recipe.published and recipe.published.checkpoint))
    )
    return "\n".join(
        [
            f"### {method}: {title}",
            "",
            _preparation(method, dataset, shown),
            "",
            *rows,
            "",
            f"`{method}/{shown.name}`, from download to number:",
            "",
            f"<!-- needs: {'; '.join(needs)} -->",
            "```",
            *(step.line() for step in _shown_steps(shown)),
            "```",
            *_others([recipe for recipe in recipes if recipe is not shown], is_trained=shown.train is not None),
        ]
    )


def _others(recipes: Sequence[Recipe], *, is_trained: bool) -> list[str]:
    alike = [recipe for recipe in recipes if (recipe.train is not None) == is_trained]
    scored = [recipe for recipe in recipes if recipe not in alike]
    lines = []
    if alike:
        lines += ["", f"The same, with these names: {', '.join(f'`{recipe.name}`' for recipe in alike)}."]
    if scored:
        names = ", ".join(f"`{recipe.name}`" for recipe in scored)
        lines += [
            "",
            f"Not trained, but scored with the weights that their first lines name (`--checkpoint`): {names}.",
        ]
    return lines


def _shown_steps(recipe: Recipe) -> list[Step]:
    out = f"reproduced/{recipe.method}/{recipe.name}"
    init = recipe.train.init if recipe.train is not None else ""
    is_file = init.endswith((".pth", ".safetensors"))
    found = steps(
        recipe,
        data_root="ROOT",
        out="reproduced",
        checkpoint=None if recipe.train is not None else "CHECKPOINT.pth",
        init=init if is_file else None,
    )
    if init.endswith(".safetensors"):  # ours, of published ones
        convert = ("vidmodels", "convert", recipe.method, "PUBLISHED.pth", init)
        place = next(index for index, step in enumerate(found) if step.command[0] == "vidmodels")
        found.insert(place, Step(title="The authors' weights, under our names", command=convert))
    published = recipe.published
    if recipe.train is not None and published is not None and published.checkpoint:
        shards = next(step.command[-1] for step in found if step.command[:2] == ("vidprep", "shard"))
        weights = published.checkpoint.rsplit("/", 1)[-1]
        found += model_steps(recipe, shards=shards, out=out, checkpoint=weights, init=None)
    return found


def _preparation(method: str, dataset: str, recipe: Recipe) -> str:
    """Disk and hours until the shards are there."""
    if dataset not in SIZES:
        return "Size and hours are those of your copy."
    info, size = DATASETS[dataset], SIZES[dataset]
    wanted = {recipe.data.val_split} | ({recipe.data.train_split} if recipe.train is not None else set())
    counts = {split: count or 0 for split, count in info.splits.items()}
    num_videos = sum(counts[split] for split in wanted)
    share = num_videos / max(sum(counts.values()), 1) if size.is_by_split else 1.0
    sentences = [f"{' and '.join(sorted(wanted, key=list(info.splits).index))}, {num_videos:,} videos:"]
    if size.gigabytes is None:
        sentences.append("the download's size is not published;")
    else:
        delivered = size.gigabytes * share
        hours = delivered * 8000 / MEGABITS_PER_SECOND / 3600
        sentences.append(f"about {delivered:,.0f} GB to download ({hours:,.1f} h at {MEGABITS_PER_SECOND:g} Mbit/s);")
    options = shard_options(method, dataset)
    if info.media == "frames":
        sentences.append("the shards are as large as the images.")
    elif "frames" in options or info.task == "verb_noun":
        sentences.append(f"shards of JPEG frames, about {_frames_gigabytes(info, size, options, num_videos):,.0f} GB.")
    else:
        sentences.append("the shards are as large as the videos of these splits.")
    if info.media == "video":
        frames = num_videos * size.seconds * size.frame_rate * size.side[0] * size.side[1] / (340 * 256)
        sentences.append(f"Decoding all of it once: about {frames / DECODED_PER_CPU_SECOND / 3600:,.0f} core-hours.")
    return " ".join(sentences)


def _frames_gigabytes(info: DatasetInfo, size: Size, options: Sequence[str], num_videos: int) -> float:
    def option(name: str) -> float | None:
        return float(options[options.index(name) + 1]) if name in options else None

    fps = option("--fps") or info.frames.fps or size.frame_rate
    side = option("--short-side")
    short = (info.frames.short_side if side is None else side) or option("--height") or min(size.side)
    pixels = short * short * max(size.side) / min(size.side)
    return num_videos * size.seconds * fps * pixels * BYTES_PER_PIXEL / 1e9


def _evaluation(recipe: Recipe, gmacs: float) -> float | None:
    """Multiply-accumulates in 1e9 of a whole evaluation."""
    num_videos = _num_videos(recipe, recipe.data.val_split)
    if num_videos is None:
        return None
    if recipe.eval.metric == "map50":  # every frame of every video
        size = SIZES[recipe.data.dataset]
        return num_videos * size.seconds * size.frame_rate * gmacs
    return num_videos * _views(recipe) * gmacs


def _training(recipe: Recipe, gmacs: float) -> float | None:
    """The same of a whole training: every clip forward and back in every epoch."""
    num_videos = _num_videos(recipe, recipe.data.train_split)
    if recipe.train is None or num_videos is None:
        return None
    if getattr(recipe.model, "trained", "all") == "temporal":  # one pass over all views; what then trains is cheap
        return num_videos * _views(recipe) * gmacs
    smaller = (recipe.data.crop / recipe.eval_crop) ** 2
    return BACKWARD * recipe.train.epochs * num_videos * recipe.data.num_repeats * gmacs * smaller


def _num_videos(recipe: Recipe, split: str) -> int | None:
    info = DATASETS.get(recipe.data.dataset)
    return info.splits.get(split) if info is not None else None


def _work(gmacs: float | None) -> str:
    if gmacs is None:
        return "- | -"
    hours = gmacs / GMACS_PER_THREAD_SECOND / 3600
    return f"{gmacs / 1e6:,.3g} | {hours:,.0f}" if gmacs < 1e9 else f"{gmacs / 1e6:,.0f} | {hours:,.0f}"


def main() -> None:
    """Write the pages, or say which are not up to date."""
    parser = argparse.ArgumentParser(description="Fill the generated parts of the pages below docs/.")
    parser.add_argument("--check", action="store_true", help="change nothing; status 1 if something would change")
    is_check = parser.parse_args().check
    stale = []
    for path, text in pages():
        if path.exists() and path.read_text(encoding="utf-8") == text:
            continue
        stale.append(path.relative_to(ROOT).as_posix())
        if not is_check:
            path.write_text(text, encoding="utf-8")
    if is_check and stale:
        sys.exit(f"{', '.join(stale)}: not as their data say; run `python -m scripts.docs_pages`")


if __name__ == "__main__":
    main()
