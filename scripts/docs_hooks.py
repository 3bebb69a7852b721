"""What mkdocs does with a page before it is shown: includes, "Needs:" lines, links, pages that lie outside of docs/.

    <!-- include: ../../vidmodels/methods/taps/README.md#rest -->
    [The method's own page](../../vidmodels/methods/taps/README.md)       what a reader of the repository sees
    <!-- end -->                                                          the site has the file's text instead

    <!-- needs: Kinetics-400 -->     what the block of commands after it cannot be tried without
    <!-- api: vidprep.load -->       a table of the module's public names

After the `#`: a heading's slug, for what stands below this heading; `top` for what stands before the first heading of
the second level (without the title), `rest` for everything from there on.
"""

import ast
import importlib
import inspect
import os
import re
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PROGRAMS = ("vidprep", "vidmodels", "torchrun", "pip", "python", "dask", "scripts/")
"""What a line of a block of commands begins with."""

PAGES_OF_FILES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "splits": "splits.md",
    "splits/README.md": "splits.md",
    "docs": "index.md",
    "vidmodels/methods/taps/README.md": "methods/taps.md",
    "vidmodels/methods/tam/README.md": "methods/tam.md",
    "vidmodels/methods/sta/README.md": "methods/sta.md",
    "vidmodels/methods/uni_adafocus/README.md": "methods/uni_adafocus.md",
    "vidmodels/methods/rgtp/README.md": "methods/rgtp_vivit.md",
    "vidmodels/methods/rgtp/vitdet.md": "methods/rgtp_vitdet.md",
}
"""File of the repository -> the page of the site that shows it."""

WHOLE_FILES = {"contributing.md": "CONTRIBUTING.md", "changelog.md": "CHANGELOG.md", "splits.md": "splits/README.md"}
"""Pages that are a file outside of docs/ and nothing else."""

INCLUDE = re.compile(r"<!-- include: (?P<path>[^\s#]+)#(?P<part>\S+) -->\n.*?<!-- end -->", re.DOTALL)
API = re.compile(r"^<!-- api: (\S+) -->$", re.MULTILINE)
NEEDS = re.compile(r"^<!-- needs: (.+) -->\n+(?=```)", re.MULTILINE)
LINK = re.compile(r"(\[[^\]\n]*(?:\n[^\]\n]*)?\])\((?!https?:|mailto:|#)([^)\s#]*)(#[^)\s]*)?\)")
FENCE = re.compile(
    r"^(?P<fence>```+)(?P<language>\S*)[^\n]*\n(?P<body>.*?)^(?P=fence)[ \t]*$", re.DOTALL | re.MULTILINE
)


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Fill the lists of data sets and methods, and give pages that the table of contents lacks a place in it."""
    from scripts.docs_pages import DATA_PAGES, METHOD_PAGES

    for title, pages in (("Data sets", DATA_PAGES), ("Methods", METHOD_PAGES)):
        _section(config.nav, title).extend(pages)
    known = set(_pages(config.nav))
    guides = sorted(path.name for path in DOCS.glob("*.md") if path.name not in known)
    _section(config.nav, "Working with them").extend(guides)
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are files outside of docs/."""
    for page, source in WHOLE_FILES.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """The text of a page as the site shows it."""
    name = page.file.src_uri
    source = ROOT / WHOLE_FILES[name] if name in WHOLE_FILES else DOCS / name
    return show(markdown, source=source, page=DOCS / name)


def show(markdown: str, *, source: Path, page: Path) -> str:
    """The text of a page as the site shows it.

    Args:
        markdown: the text as it lies in the file.
        source: that file; links are relative to it.
        page: where the page lies, below docs/; links are made relative to it.

    Raises:
        PluginError: an include or a link leads nowhere.
    """
    text = INCLUDE.sub(lambda found: _included(found["path"], found["part"], source=source), markdown)
    text = API.sub(lambda found: api_table(found[1]), text)
    text = NEEDS.sub(lambda found: f'<p class="needs">Needs: {found[1]}</p>\n\n', text)
    text = FENCE.sub(_with_language, text)
    return _outside_of_fences(text, lambda part: LINK.sub(lambda found: _link(found, source, page), part))


def api_table(module_name: str) -> str:
    """A module's public names, each with the first sentence of its docstring."""
    module = importlib.import_module(module_name)
    values = _described_values(inspect.getsource(module))
    rows = [f"| `{module_name}` | {_first_line(module)} |", "|---|---|"]
    for name in module.__all__:
        thing = getattr(module, name)
        is_described = callable(thing) and not isinstance(thing, Mapping) and hasattr(thing, "__module__")
        rows.append(f"| `{name}` | {_first_line(thing) if is_described else values.get(name, '')} |")
    return "\n".join(rows)


def _described_values(source: str) -> dict[str, str]:
    """Constants and types of a module, each with the sentence in quotes below it."""
    body = ast.parse(source).body
    found = {}
    for line, below in pairwise(body):
        target = line.targets[0] if isinstance(line, ast.Assign) else getattr(line, "target", None)
        is_text = isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant)
        if isinstance(target, ast.Name) and is_text and isinstance(text := below.value.value, str):
            found[target.id] = _escaped(text)
    return found


def _first_line(thing: object) -> str:
    text = inspect.getdoc(thing) or ""
    is_generated = inspect.isclass(thing) and text.startswith(
        f"{thing.__name__}("
    )  # of a dataclass without a docstring
    return "" if is_generated else _escaped(text)


def _escaped(text: str) -> str:
    return " ".join(text.split("\n\n")[0].split()).replace("|", "\\|").replace("<", "&lt;")


def _section(nav: Any, title: str) -> list[Any]:
    for entry in nav:
        if isinstance(entry, dict):
            for name, content in entry.items():
                if name == title:
                    return content  # type: ignore[no-any-return]  # of mkdocs.yml
                if isinstance(content, list):
                    try:
                        return _section(content, title)
                    except PluginError:
                        continue
    raise PluginError(f"mkdocs.yml: nav has no list called {title!r}")


def _pages(nav: Any) -> list[str]:
    if isinstance(nav, str):
        return [nav]
    entries = nav.values() if isinstance(nav, dict) else nav
    return [page for entry in entries for page in _pages(entry)]


def _included(path: str, part: str, *, source: Path) -> str:
    """Part of another file, its links relative to `source`."""
    other = (source.parent / path).resolve()
    if not other.is_file():
        raise PluginError(f"{source}: no file {path} to include")
    text = section(other.read_text(encoding="utf-8"), part)
    if not text:
        raise PluginError(f"{source}: {path} has no part {part!r} to include")
    return _outside_of_fences(text, lambda piece: LINK.sub(lambda found: _moved(found, other, source), piece))


def section(markdown: str, part: str) -> str:
    """What stands below the heading with this slug; or "top", or "rest"; "" if there is no such heading."""
    headings = [
        (found.start(), found.end(), len(found[1]), slug(found[2]))
        for found in re.finditer(r"^(#+) +(.+?) *$", _without_fences(markdown), re.MULTILINE)
    ]
    starts = [start for start, _, level, _ in headings if level > 1]
    first = starts[0] if starts else len(markdown)
    if part == "rest":
        return markdown[first:].strip()
    if part == "top":
        return markdown[headings[0][1] if headings and headings[0][2] == 1 else 0 : first].strip()
    for place, (_, end, level, name) in enumerate(headings):
        if name == part:
            ends = [start for start, _, other, _ in headings[place + 1 :] if other <= level]
            return markdown[end : ends[0] if ends else len(markdown)].strip()
    return ""


def slug(heading: str) -> str:
    """The anchor of a heading, as GitHub and mkdocs make it."""
    return re.sub(r"\s", "-", re.sub(r"[^\w\s-]", "", heading.lower()).strip())


def _without_fences(text: str) -> str:
    """The same text, as long, with spaces for what stands in fences."""
    return FENCE.sub(lambda found: re.sub(r"[^\n]", " ", found[0]), text)


def _outside_of_fences(text: str, change: Any) -> str:
    parts, last = [], 0
    for found in FENCE.finditer(text):
        parts += [change(text[last : found.start()]), found[0]]
        last = found.end()
    return "".join([*parts, change(text[last:])])


def _with_language(found: re.Match[str]) -> str:
    """Blocks of commands get the colours of a shell."""
    if found["language"] or not found["body"].startswith(PROGRAMS):
        return found[0]
    return f"{found['fence']}bash\n{found['body']}{found['fence']}"


def _moved(found: re.Match[str], old: Path, new: Path) -> str:
    target = os.path.relpath((old.parent / found[2]).resolve(), new.parent)
    return f"{found[1]}({Path(target).as_posix()}{found[3] or ''})"


def _link(found: re.Match[str], source: Path, page: Path) -> str:
    """A link of a file in the repository, as one of the site; to what the site does not show: its name alone."""
    target = (source.parent / found[2]).resolve()
    if not target.exists():
        raise PluginError(f"{source}: link to {found[2]}, which is not there")
    name = target.relative_to(ROOT).as_posix()
    shown = DOCS / PAGES_OF_FILES[name] if name in PAGES_OF_FILES else target
    if not shown.is_relative_to(DOCS):
        return f"{found[1][1:-1]} (`{name}`)"
    return f"{found[1]}({Path(os.path.relpath(shown, page.parent)).as_posix()}{found[3] or ''})"
