"""A headless Chromium for tests of pages, driven by Playwright; none is downloaded."""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

#: Names a browser that is used instead of those on PATH.
VARIABLE = "WARPWRIGHT_CHROMIUM"
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def executable() -> str | None:
    """The browser's path, or None."""
    return os.environ.get(VARIABLE) or next(filter(None, map(shutil.which, NAMES)), None)


def missing() -> str | None:
    """Why no page can be opened here, or None."""
    if importlib.util.find_spec("playwright") is None:
        return "Playwright is not installed (pip install 'warpwright[test]')"
    found = executable()
    if found is None:
        return f"no Chromium: {VARIABLE} is not set, and PATH has none of {', '.join(NAMES)}"
    return None if os.access(found, os.X_OK) else f"no Chromium: {VARIABLE} names {found}, which cannot be run"


@dataclass
class Opened:
    """A page, and what went wrong or out since it was opened: messages of the console, errors, requests."""

    page: Any
    complaints: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)


class Browser:
    """Opens pages of files."""

    def __init__(self, browser: Any):
        self._browser = browser

    @contextmanager
    def open(self, path: Path, *, width: int = 1280, scheme: str = "light", **options: Any) -> Iterator[Opened]:
        """The page of a file in a window of its own; `scheme` is the colour scheme that its user prefers."""
        viewport = {"width": width, "height": 800}
        context = self._browser.new_context(viewport=viewport, color_scheme=scheme, **options)
        opened = Opened(context.new_page())
        page = opened.page
        page.on("console", lambda message: opened.complaints.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: opened.complaints.append(f"error: {error}"))
        page.on("request", lambda request: opened.requests.append(request.url))
        try:
            page.goto(path.resolve().as_uri())
            yield opened
        finally:
            context.close()


@contextmanager
def launch() -> Iterator[Browser]:
    """The browser; call `missing` before."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # Chromium refuses to put root, which tests in containers are, into its sandbox.
        arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
        browser = playwright.chromium.launch(executable_path=executable(), args=arguments)
        try:
            yield Browser(browser)
        finally:
            browser.close()
