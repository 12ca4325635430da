"""The review page while others decide, sort, take files away, or hold the outbox."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from browser import looking_at
from command import by_source, quiet, sort
from review_browser import status, wait_for
from reviewing import decide, desk_of, held_outbox, item_of, picture, reviewed

from dicomsort.sorting import locked, review

if TYPE_CHECKING:
    from playwright.sync_api import Browser


def test_what_another_decided_meanwhile_is_told_and_shown(browser: Browser, tmp_path: Path) -> None:
    outbox = held_outbox(tmp_path)
    other = desk_of(outbox)
    with reviewed(outbox) as server, looking_at(browser, server.address) as sight:
        page = sight.page
        wait_for(page, "header-contradicts-itself", 0)
        # A page that is hidden does not look by itself: it could, between the decision and the key.
        page.evaluate("Object.defineProperty(document, 'visibilityState', {value: 'hidden', configurable: true})")
        decide(other, item_of(other, "odd1.dcm"), "MRI", "bert")
        page.keyboard.press("c")
        status(page, "decided or taken away meanwhile (MRI by bert, run ")
        page.evaluate("delete document.visibilityState")
        page.wait_for_function("() => document.querySelector('#state').textContent.includes('Decided: MRI, by bert')")
        decide(other, item_of(other, "odd3.dcm"), "MRI", "bert")
        page.wait_for_function("() => document.querySelector('#count').textContent === '2 of 4 decided'")
        page.wait_for_function("() => document.querySelector('.tile[data-place=\"1\"] span').textContent === '✓ MRI'")
    assert by_source(outbox)["odd1.dcm"]["class"] == "MRI"


def test_a_held_key_undoes_one_and_nobody_elses(browser: Browser, tmp_path: Path) -> None:
    outbox = held_outbox(tmp_path)
    other = desk_of(outbox)
    with reviewed(outbox) as server, looking_at(browser, server.address) as sight:
        page = sight.page
        wait_for(page, "header-contradicts-itself", 0)
        decide(other, item_of(other, "pictures/b.png"), "MRI", "bert")
        for place, reason in ((0, "header-contradicts-itself"), (1, "header-contradicts-itself")):
            wait_for(page, reason, place)
            page.keyboard.press("c")
        wait_for(page, "no-evidence", 2)
        for _ in range(4):
            page.keyboard.down("u")  # from the second on a repetition
        page.keyboard.up("u")
        status(page, "The decision is undone")
        wait_for(page, "header-contradicts-itself", 1)
        page.keyboard.press("u")
        wait_for(page, "header-contradicts-itself", 0)
        page.wait_for_function("() => document.querySelector('#undo').disabled")
        page.keyboard.press("u")
        page.click(".tile[data-place='3']")
        page.wait_for_function("() => document.querySelector('#state').textContent.includes('Decided: MRI, by bert')")
    assert by_source(outbox)["pictures/b.png"]["class"] == "MRI"


def test_what_is_shown_follows_what_others_do(browser: Browser, tmp_path: Path) -> None:
    outbox = held_outbox(tmp_path)
    other = desk_of(outbox)
    with reviewed(outbox) as server, looking_at(browser, server.address, faster=20) as sight:
        wait_for(sight.page, "header-contradicts-itself", 0)
        decide(other, item_of(other, "odd1.dcm"), "MRI", "bert")
        sight.page.wait_for_function(
            "() => document.querySelector('#state').textContent.includes('Decided: MRI, by bert')"
        )
        assert sight.page.is_disabled("#keys .class")


def test_a_name_that_comes_again_is_shown_as_what_it_is(browser: Browser, tmp_path: Path) -> None:
    outbox = held_outbox(tmp_path)
    with reviewed(outbox) as server, looking_at(browser, server.address, faster=20) as sight:
        page = sight.page
        wait_for(page, "header-contradicts-itself", 0)
        page.click(".tile[data-place='2']")
        wait_for(page, "no-evidence", 2)
        assert page.evaluate("document.querySelector('#picture').naturalWidth") == 96
        page.keyboard.press("x")
        status(page, "XRAY: 1 file moved")
        picture(tmp_path / "inbox/pictures/a.png", 200, 64)
        sort("--move", "--settle", "0", tmp_path / "inbox", outbox)
        page.wait_for_function("() => document.querySelector('#count').textContent === '1 of 5 decided'")
        page.click(".tile[data-place='4']")
        wait_for(page, "no-evidence", 4)
        assert page.evaluate("document.querySelector('#picture').naturalWidth") == 64


def files_below(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if path.is_file()}


def test_files_that_vanished_and_an_outbox_that_is_held(
    browser: Browser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outbox = held_outbox(tmp_path)
    sorted_before = files_below(outbox / "CT")
    monkeypatch.setattr(review, "PATIENCE", 0.1)
    with reviewed(outbox) as server, looking_at(browser, server.address) as sight:
        page = sight.page
        wait_for(page, "header-contradicts-itself", 0)
        with locked(quiet(outbox), create=False):
            page.keyboard.press("c")
            status(page, "is held by process")
        assert files_below(outbox / "CT") == sorted_before, "nothing is moved while another holds the outbox"
        wait_for(page, "header-contradicts-itself", 0)
        page.keyboard.press("c")
        status(page, "CT: 2 files moved")
        wait_for(page, "header-contradicts-itself", 1)
        (outbox / "REVIEW/header-contradicts-itself/odd3.dcm").unlink()
        page.keyboard.press("c")
        status(page, "received none: 1 file is gone from REVIEW")
        assert len(files_below(outbox / "CT") - sorted_before) == 2, "only what was there has moved"
        page.keyboard.press("s")
        wait_for(page, "no-evidence", 2)
