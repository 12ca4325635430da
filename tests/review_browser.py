"""What a test waits for on the review page."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from playwright.sync_api import Page


def wait_for(page: Page, reason: str, place: int) -> None:
    """Until an item is shown, its picture with it, and can be decided about."""
    page.wait_for_function(
        "([reason, place]) => document.querySelector('#reason').textContent === reason"
        " && document.querySelector('.tile.current')?.dataset.place === String(place)"
        " && !document.querySelector('#keys .class').disabled",
        arg=[reason, place],
    )


def status(page: Page, words: str) -> None:
    """Until the page says so."""
    said = page.locator("#status")
    try:
        page.wait_for_function("words => document.querySelector('#status').textContent.includes(words)", arg=words)
    except Exception as error:
        raise AssertionError(f"expected {words!r}, received {said.text_content()!r}") from error
