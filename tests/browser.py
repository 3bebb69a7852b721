"""A page in headless Chromium, as a reader has it: opened from a file, without a network."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, sync_playwright

__all__ = ["find_chromium", "open_page"]

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")


def find_chromium() -> str:
    """The browser that the system has, or the one that VIDPREP_CHROMIUM names; without one the test is skipped."""
    found = os.environ.get("VIDPREP_CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        message = f"no Chromium here (none of {', '.join(NAMES)}); install it, or name it in VIDPREP_CHROMIUM"
        if os.environ.get("CI") == "true":
            pytest.fail(message)
        pytest.skip(message)
    return found


@contextmanager
def open_page(path: Path, **settings: Any) -> Iterator[tuple[Page, list[str]]]:
    """The page, and what it complained of or asked for: errors on its console, requests to anywhere else."""
    complaints: list[str] = []
    program = find_chromium()
    with sync_playwright() as playwright:
        # As root, in a container, Chromium has no sandbox to make; the page is our own.
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        try:
            page = browser.new_context(offline=True, **settings).new_page()
            page.on("console", lambda message: complaints.append(f"console {message.type}: {message.text}"))
            page.on("pageerror", lambda error: complaints.append(f"error: {error}"))
            page.on("requestfailed", lambda request: complaints.append(f"failed: {request.url[:80]}"))
            page.on(
                "request",
                lambda request: (
                    None
                    if request.url.startswith(("file:", "data:"))
                    else complaints.append(f"asked for {request.url[:80]}")
                ),
            )
            page.goto(path.absolute().as_uri())
            yield page, complaints
        finally:
            browser.close()
