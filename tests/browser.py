"""A real browser that looks at pages: Chromium, driven by Playwright, without anything of its own from the network."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

CHROMIUM = Path("/usr/bin/chromium")
PATIENCE = 120_000  # milliseconds that a page has for what a test waits for: the machine may do much else


@contextmanager
def launched() -> Iterator[Browser]:
    """Chromium, or a skipped test with the reason."""
    library = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
    if not CHROMIUM.is_file():
        pytest.skip(f"no {CHROMIUM} (Debian: chromium)")
    with library.sync_playwright() as playwright:
        arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=arguments, timeout=PATIENCE)
        try:
            yield browser
        finally:
            browser.close()


@dataclass
class Sight:
    """A page as it is shown: what it asked for, in order, and what it complained of on the console."""

    page: Page
    requests: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)

    def is_too_wide(self) -> bool:
        """Whether the page scrolls sideways."""
        return bool(self.page.evaluate("document.documentElement.scrollWidth > document.documentElement.clientWidth"))

    def colour(self, selector: str, name: str = "background-color") -> str:
        """A computed colour of the first element that the selector finds."""
        told = self.page.eval_on_selector(selector, f"e => getComputedStyle(e).getPropertyValue({name!r})")
        return str(told)


@contextmanager
def looking_at(
    browser: Browser, address: str, width: int = 1280, height: int = 900, scheme: str = "light", faster: float = 1
) -> Iterator[Sight]:
    """Open an address in a window of so many CSS pixels, in a ``light`` or ``dark`` colour scheme.

    What the page does every few seconds it does that many times as often, where it is to be ``faster``.
    """
    size = {"width": width, "height": height}
    context = browser.new_context(viewport=size, color_scheme=scheme)  # type: ignore[arg-type]
    context.set_default_timeout(PATIENCE)
    try:
        sight = Sight(context.new_page())
        sight.page.on("request", lambda request: sight.requests.append(request.url))
        sight.page.on("console", lambda message: sight.complaints.append(message.text))
        sight.page.on("pageerror", lambda error: sight.complaints.append(str(error)))
        sight.page.add_init_script(
            f"const every = setInterval; window.setInterval = (act, ms) => every(act, ms / {faster})"
        )
        sight.page.goto(address)
        yield sight
    finally:
        context.close()
