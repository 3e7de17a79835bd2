"""A real browser, and a page that watches itself: no error in its console, no break of its policy, no request to another host."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page, Request, ViewportSize, sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome")
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update", "--disable-sync")
PATIENCE_MS = 15_000
DESKTOP: ViewportSize = {"width": 1360, "height": 900}
PHONE: ViewportSize = {"width": 375, "height": 812}

_FAILED_LOAD = "Failed to load resource"


def find_chromium() -> str | None:
    """Return the path of a Chromium of this machine."""
    return next((path for name in NAMES if (path := shutil.which(name)) is not None), None)


@contextmanager
def launched(path: str) -> Iterator[Browser]:
    """Run a browser."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=list(FLAGS))
        try:
            yield browser
        finally:
            browser.close()


class Watched:
    """One page of a browser, and all that was wrong with it. `expected` are paths whose requests may fail."""

    def __init__(self, context: BrowserContext, url: str) -> None:
        self.url = url
        self.expected: set[str] = set()
        self.troubles: list[str] = []
        self.page = context.new_page()
        self.page.set_default_timeout(PATIENCE_MS)
        self.page.on("console", self._on_console)
        self.page.on("pageerror", lambda error: self.troubles.append(f"page error: {error}"))
        self.page.on("request", self._on_request)
        self.page.on("dialog", lambda dialog: self.troubles.append(f"a dialog of the browser: {dialog.message}"))

    def open(self, path: str) -> Page:
        """Go to a path of the server."""
        self.page.goto(self.url + path)
        self.page.wait_for_selector("h1")
        return self.page

    def _on_console(self, message: ConsoleMessage) -> None:
        where = message.location.get("url", "")
        if message.text.startswith(_FAILED_LOAD) and any(where.startswith(self.url + path) for path in self.expected):
            return
        if message.type in {"error", "warning"}:
            self.troubles.append(f"{message.type}: {message.text} ({where})")

    def _on_request(self, request: Request) -> None:
        if not request.url.startswith((self.url + "/", "data:")):
            self.troubles.append(f"a request to {request.url}")


@contextmanager
def watched(browser: Browser, url: str, viewport: ViewportSize | None = None, **options: Any) -> Iterator[Watched]:
    """Open a page of its own in a context of its own; afterwards nothing may have been wrong with it."""
    context = browser.new_context(viewport=viewport or DESKTOP, **options)
    try:
        page = Watched(context, url)
        yield page
        assert page.troubles == []
    finally:
        context.close()
