"""The site of docs/: its generated parts, its links, what it asks for; and its instructions, followed to the letter."""

import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from mkdocs.exceptions import PluginError

from scripts.docs_hooks import PAGES_OF_FILES, section, show
from scripts.docs_pages import pages
from tests.browser import find_chromium
from tests.toy_clips import ONE_EPOCH, write_toy_clips
from vidmodels.methods import METHODS
from vidprep.datasets import DATASETS

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))


def test_the_generated_parts_are_those_of_the_data_sets_and_recipes() -> None:
    stale = [path.name for path, text in pages() if path.read_text(encoding="utf-8") != text]
    assert stale == [], "run `python -m scripts.docs_pages`"


def test_every_data_set_and_every_method_has_a_page() -> None:
    assert {path.stem for path in (DOCS / "data").glob("*.md")} == {*DATASETS, "index"}
    assert {path.stem for path in (DOCS / "methods").glob("*.md")} == {*METHODS, "index"}


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.relative_to(DOCS).as_posix())
def test_the_links_and_includes_of_a_page_lead_somewhere(path: Path) -> None:
    shown = show(path.read_text(encoding="utf-8"), source=path, page=path)
    assert "<!-- include:" not in shown
    assert "<!-- needs:" not in shown


def test_a_page_of_a_method_shows_the_file_beside_its_code() -> None:
    path = DOCS / "methods" / "rgtp_vitdet.md"
    shown = show(path.read_text(encoding="utf-8"), source=path, page=path)
    assert "The rollout of the published mAP" not in path.read_text(encoding="utf-8")
    assert "## What the published code does that one may not expect, and ours" in shown
    assert '<p class="needs">' not in shown, "its commands say it themselves"


def test_links_are_turned_towards_the_site() -> None:
    text = (
        "[a](../README.md#ten-minutes), [b](../vidmodels/methods/rgtp/vitdet.md), [c](../scripts/demo), [d](shards.md)"
    )
    shown = show(text, source=DOCS / "loading.md", page=DOCS / "loading.md")
    assert shown == "[a](index.md#ten-minutes), [b](methods/rgtp_vitdet.md), c (`scripts/demo`), [d](shards.md)"


def test_a_link_to_nothing_is_an_error() -> None:
    with pytest.raises(PluginError, match=r"loading\.md: link to nowhere\.md, which is not there"):
        show("[a](nowhere.md)", source=DOCS / "loading.md", page=DOCS / "loading.md")
    include = "<!-- include: shards.md#nothing -->\n<!-- end -->"
    with pytest.raises(PluginError, match=r"shards\.md has no part 'nothing' to include"):
        show(include, source=DOCS / "loading.md", page=DOCS / "loading.md")


def test_what_a_block_needs_is_shown_before_it() -> None:
    text = "<!-- needs: Kinetics-400 -->\n```\nvidprep list\n```\n"
    shown = show(text, source=DOCS / "loading.md", page=DOCS / "loading.md")
    assert shown == '<p class="needs">Needs: Kinetics-400</p>\n\n```bash\nvidprep list\n```\n'


def test_sections_end_where_the_next_of_their_level_begins() -> None:
    text = "# T\n\nfirst\n\n## A b\n\none\n\n### c\n\ntwo\n\n```\n## no heading\n```\n\n## D\n\nthree\n"
    assert section(text, "top") == "first"
    assert section(text, "a-b") == "one\n\n### c\n\ntwo\n\n```\n## no heading\n```"
    assert section(text, "d") == "three"
    assert section(text, "rest").startswith("## A b")
    assert section(text, "e") == ""


def test_files_that_have_a_page_are_there() -> None:
    assert [name for name in PAGES_OF_FILES if not (ROOT / name).exists()] == []


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """The address of a folder, over HTTP."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder))) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
        thread.join()


@pytest.mark.slow
def test_the_site_is_built_without_a_complaint_and_works_without_a_network(tmp_path: Path) -> None:
    from playwright.sync_api import sync_playwright

    site = tmp_path / "site"
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(site)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": str(ROOT)}
    built = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stdout + built.stderr
    asked = re.compile(r"<(?:script|link|img)\b[^>]*(?:src|href)=\"?https?://(?!localhost)[^\s>\"]+")
    for page in site.rglob("*.html"):
        assert asked.findall(page.read_text(encoding="utf-8")) == [], page
    program = find_chromium()
    with served(site) as address, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        try:
            tab = browser.new_page(viewport={"width": 390, "height": 800})
            complaints: list[str] = []
            tab.on("console", lambda message: complaints.append(message.text))
            tab.on("request", lambda r: None if r.url.startswith((address, "data:")) else complaints.append(r.url))
            for name in ("", "data/something_v2/", "methods/sta/", "reproducing/", "api/"):
                tab.goto(address + name)
                width = tab.evaluate("document.documentElement.scrollWidth")
                assert width <= 390, f"{name} is {width} pixels wide on a phone"
            tab.set_viewport_size({"width": 1360, "height": 900})
            tab.goto(address)
            tab.fill("input.md-search__input", "quarantine")
            tab.wait_for_selector(".md-search-result__item")
            assert complaints == []
        finally:
            browser.close()


def follow(document: Path, checkout: Path) -> None:
    """Do what a page says to do with files: write them, append to them, replace lines in them."""
    steps = re.findall(
        r"^<!-- (file|append|replace in): (\S+) -->\n```\w+\n(.*?)^```$",
        document.read_text(encoding="utf-8"),
        re.DOTALL | re.MULTILINE,
    )
    assert len(steps) >= 6
    for kind, name, body in steps:
        path = checkout / name
        if kind == "file":
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(body, encoding="utf-8")
        elif kind == "append":
            path.write_text(path.read_text(encoding="utf-8") + body, encoding="utf-8")
        else:
            old = "".join(f"{line[1:]}\n" for line in body.splitlines() if line.startswith("-"))
            new = "".join(f"{line[1:]}\n" for line in body.splitlines() if line.startswith("+"))
            text = path.read_text(encoding="utf-8")
            assert text.count(old) == 1, f"{name} has {old!r} {text.count(old)} times"
            path.write_text(text.replace(old, new), encoding="utf-8")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of the packages, the lists and the tests."""
    for name in ("vidprep", "vidmodels", "splits", "scripts", "tests", "docs"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__", "golden", "*.npz"))
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, tmp_path)
    return tmp_path


def run_there(checkout: Path, *words: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", *words]
    done = subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


CALL = "import sys; from {0}.cli import main; sys.argv = sys.argv[1:]; raise SystemExit(main())"


@pytest.mark.slow
def test_the_page_on_adding_a_data_set_adds_one(checkout: Path) -> None:
    follow(DOCS / "adding_a_data_set.md", checkout)
    (checkout / "call.py").write_text(CALL.format("vidprep"), encoding="utf-8")
    assert "Ids begin with a hyphen." in run_there(checkout, "call", "vidprep", "info", "tiny_hands")
    tested = run_there(
        *(checkout, "pytest", "tests/vidprep/datasets", "tests/vidprep/test_splits.py"),
        *(
            "-q",
            "-k",
            "tiny_hands or checksums",
            "-p",
            "no:cacheprovider",
            "--override-ini",
            "addopts=--import-mode=importlib",
        ),
    )
    assert re.search(r"\d+ passed", tested)
    run_there(checkout, "scripts.docs_pages")
    page = (checkout / "docs" / "data" / "tiny_hands.md").read_text(encoding="utf-8")
    assert "vidprep shard --dataset tiny_hands --data-root ROOT --split train --out SHARDS" in page


@pytest.mark.slow
def test_the_page_on_adding_a_method_adds_one_that_trains_and_skips(checkout: Path) -> None:
    follow(DOCS / "adding_a_method.md", checkout)
    (checkout / "call.py").write_text(CALL.format("vidmodels"), encoding="utf-8")
    write_toy_clips(checkout)
    assert "late_mean/toy" in run_there(checkout, "call", "vidmodels", "list", "late_mean")
    changes = [word for change in ONE_EPOCH for word in ("--set", change)]
    train = ("train", "late_mean", "--recipe", "toy", "--data", "SHARDS", "--out", "RUN")
    run_there(checkout, "call", "vidmodels", *train, *changes)
    table = run_there(checkout, "call", "vidmodels", "eval", "RUN")
    share = re.search(r"^RUN +dynamic .* ([\d.]+) % ", table, re.MULTILINE)
    assert share is not None, table
    assert float(share[1]) == pytest.approx(50, abs=0.1), "half of the frames, and so of the work"
    tested = run_there(
        *(checkout, "pytest", "tests/vidmodels/test_dynamic_equals_trainable.py", "tests/vidmodels/test_recipes.py"),
        *("-q", "-k", "late_mean", "-p", "no:cacheprovider", "--override-ini", "addopts=--import-mode=importlib"),
    )
    assert re.search(r"\d+ passed", tested)
