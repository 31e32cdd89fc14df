"""Pages in the system's Chromium: open a file, collect what the console complains about."""

import importlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import pytest

CHROMIUM = ("/usr/bin/chromium", "chromium", "chromium-browser", "google-chrome")


@dataclass(kw_only=True)
class OpenPage:
    """A playwright page; `problems` grows with console errors, uncaught exceptions and failed requests."""

    page: Any
    problems: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    """Addresses asked for besides the page itself; data: and blob: are inside it and left out."""


@contextmanager
def open_page(
    path: Path, *, width: int = 1280, height: int = 900, has_touch: bool = False
) -> Iterator[OpenPage]:
    """The HTML file opened from file://, offline.

    Where playwright or Chromium is absent the test is skipped with the reason, and under CI it fails.
    """
    try:
        playwright = importlib.import_module("playwright.sync_api")
    except ImportError:
        absent("playwright is absent: pip install -e '.[dev]'")
    with playwright.sync_playwright() as engine:
        browser = engine.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])
        context = browser.new_context(
            viewport={"width": width, "height": height}, has_touch=has_touch, offline=True
        )
        opened = OpenPage(page=context.new_page())
        _listen(opened)
        opened.page.goto(path.resolve().as_uri(), wait_until="load")
        try:
            yield opened
        finally:
            browser.close()


def chromium() -> str:
    """The browser's path, or a skip."""
    path = next((where for name in CHROMIUM if (where := shutil.which(name))), None)
    return path or absent(
        f"no Chromium: apt-get install chromium (looked for {', '.join(CHROMIUM)})"
    )


def absent(reason: str) -> NoReturn:
    """Skips the test; under CI, where a page that nobody opened must not pass, fails it."""
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)


def _listen(opened: OpenPage) -> None:
    def on_console(message: Any) -> None:
        if message.type == "error":
            opened.problems.append(message.text)

    def on_request(request: Any) -> None:
        if not request.url.startswith(("data:", "blob:")) and not request.is_navigation_request():
            opened.requests.append(request.url)

    opened.page.on("console", on_console)
    opened.page.on("pageerror", lambda error: opened.problems.append(str(error)))
    opened.page.on("requestfailed", lambda r: opened.problems.append(f"failed: {r.url[:200]}"))
    opened.page.on("request", on_request)
