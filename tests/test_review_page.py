"""The review page as a person uses it, in a real browser."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest
from browser import looking_at
from building import read_tree, uid
from command import by_source, rows, run, sort
from review_browser import status, wait_for
from reviewing import ENDS, held_outbox, picture, reviewed

if TYPE_CHECKING:
    from playwright.sync_api import Browser

ITEMS = 10_000


@contextmanager
def command(outbox: Path, *options: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """``dicomsort review`` as a process, and the address that it prints."""
    words = [sys.executable, "-m", "dicomsort", "review", *options, str(outbox)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip(), process
        finally:
            process.kill()


def test_a_person_looks_presses_keys_undoes_one_and_finishes(browser: Browser, tmp_path: Path) -> None:
    outbox = held_outbox(tmp_path)
    before = read_tree(outbox / "REVIEW")
    with (
        command(outbox, "--reviewer", "anna b.") as (address, process),
        looking_at(browser, address, faster=0.001) as sight,  # nobody else decides: no look just when the server ends
    ):
        page = sight.page
        wait_for(page, "header-contradicts-itself", 0)
        assert page.text_content("#count") == "0 of 4 decided"
        page.keyboard.press("c")
        status(page, "CT: 2 files moved")
        wait_for(page, "header-contradicts-itself", 1)
        page.keyboard.press("x")
        status(page, "XRAY: 1 file moved")
        wait_for(page, "no-evidence", 2)
        page.keyboard.press("u")
        status(page, "The decision is undone")
        wait_for(page, "header-contradicts-itself", 1)
        page.keyboard.press("m")
        status(page, "MRI: 1 file moved")
        wait_for(page, "no-evidence", 2)
        page.keyboard.press("s")
        wait_for(page, "no-evidence", 3)
        page.click("#keys button[data-class=OTHER]")
        status(page, "OTHER: 1 file moved")
        wait_for(page, "no-evidence", 2)
        assert page.text_content("#count") == "3 of 4 decided"
        page.click("#finish")
        page.wait_for_selector("#ended-train:visible")
        assert "3 decisions in this session; 1 item still waits" in str(page.text_content("#ended-told"))
        errors = process.communicate(timeout=ENDS)[1]
        assert process.returncode == 0, errors
        assert sight.complaints == []
    check_session(outbox, before, errors)


def check_session(outbox: Path, before: dict[str, bytes], errors: str) -> None:
    """Files, manifest, journals and corrections are as that session should have left them; and it can be undone."""
    assert "3 decisions; 1 thing still waits" in errors
    assert "train --from" in errors
    tree = {k: v for k, v in read_tree(outbox).items() if not k.startswith(".dicomsort/")}
    assert [path for path in tree if path.startswith("REVIEW/")] == ["REVIEW/no-evidence/pictures/a.png"]
    assert tree["OTHER/image/pictures/b.png"] == before["no-evidence/pictures/b.png"]
    for n in (1, 2):
        assert tree[f"CT/{uid(1)}/{uid(1, 1)}/{uid(1, 1, n)}.dcm"] == before[f"header-contradicts-itself/odd{n}.dcm"]
    assert tree[f"MRI/{uid(1)}/{uid(1, 2)}/{uid(1, 2, 1)}.dcm"] == before["header-contradicts-itself/odd3.dcm"]
    newest = by_source(outbox)
    assert {newest[f]["message"].partition(";")[0] for f in ("odd1.dcm", "odd3.dcm", "pictures/b.png")} == {
        "by anna b."
    }
    assert [row["action"] for row in rows(outbox) if row["source"] == "odd3.dcm"] == [
        "moved",
        "moved",
        "undone",
        "moved",
    ]
    listed = [line.split()[3] for line in run("runs", outbox).out.splitlines() if "Z-" in line]
    assert listed == ["sort", "review", "review", "undo", "review", "review"]
    corrections = outbox / ".dicomsort/corrections"
    images = sorted(p.relative_to(corrections).parts[0] for p in corrections.rglob("*.png"))
    assert images == ["CT", "CT", "MRI", "OTHER"]
    assert run("verify", outbox).code == 0
    assert run("undo", "--with-decisions", outbox, rows(outbox)[0]["run_id"]).code == 0
    assert list(corrections.rglob("*.png")) == []


@pytest.mark.parametrize(("width", "height"), [(390, 844), (820, 1180), (1280, 800)])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_and_asks_only_its_own_server(
    browser: Browser, tmp_path: Path, width: int, height: int, scheme: str
) -> None:
    with (
        reviewed(held_outbox(tmp_path)) as server,
        looking_at(browser, server.address, width, height, scheme) as sight,
    ):
        wait_for(sight.page, "header-contradicts-itself", 0)
        assert not sight.is_too_wide()
        for selector in ("#picture", "#keys .class", "#reason", "#finish", "#undo"):
            box = sight.page.locator(selector).first.bounding_box()
            assert box is not None
            assert 0 <= box["x"] <= box["x"] + box["width"] <= width
            assert 0 <= box["y"] <= box["y"] + box["height"] <= height
        light = [int(part) for part in sight.colour("body").strip("rgb()").split(",")]
        assert (sum(light) > 384) == (scheme == "light")
        assert sight.complaints == []
        assert {urlsplit(request).netloc for request in sight.requests} == {urlsplit(server.address).netloc}


def test_a_thousand_times_ten_things_scroll_without_the_page_growing(browser: Browser, tmp_path: Path) -> None:
    first = picture(tmp_path / "inbox/0.png", side=32)
    for number in range(1, ITEMS):
        os.link(first, first.with_name(f"{number}.png"))
    sort("--move", "--settle", "0", "--quiet", tmp_path / "inbox", tmp_path / "outbox")
    with reviewed(tmp_path / "outbox") as server, looking_at(browser, server.address) as sight:
        page = sight.page
        wait_for(page, "no-evidence", 0)
        assert page.text_content("#count") == "0 of 10,000 decided"
        page.wait_for_timeout(400)
        count = "document.querySelectorAll('*').length"
        nodes, shown = page.evaluate(count), sum("/picture/" in r for r in sight.requests)
        page.evaluate(
            """async () => {
                const list = document.querySelector("#list");
                for (let step = 0; step < 60; step += 1) {
                    list.scrollTop = (step / 59) * list.scrollHeight;
                    await new Promise((drawn) => requestAnimationFrame(() => setTimeout(drawn)));
                }
            }"""
        )  # by the page, whose pauses are no rest: a slow round trip from here would be one
        page.wait_for_function("() => document.querySelector('.tile[data-place=\"9999\"].has-picture')")
        assert page.evaluate(count) < nodes + 60
        assert sum("/picture/" in r for r in sight.requests) < shown + 200
        assert sum("/items/" in r for r in sight.requests) < 80
        page.click(".tile[data-place='9999']")
        wait_for(page, "no-evidence", 9999)
        page.keyboard.press("x")
        status(page, "XRAY: 1 file moved")
        wait_for(page, "no-evidence", 0)
        assert page.text_content("#count") == "1 of 10,000 decided"


def test_a_picture_that_is_not_there_yet_cannot_be_decided_about(browser: Browser, tmp_path: Path) -> None:
    outbox = held_outbox(tmp_path)
    with reviewed(outbox) as server, looking_at(browser, "about:blank") as sight:
        page = sight.page
        waiting: list[Any] = []
        held_up = True
        page.route("**/picture/0/**", lambda route: waiting.append(route) if held_up else route.continue_())
        page.goto(server.address)
        page.wait_for_function("() => document.querySelector('#reason').textContent")
        before = rows(outbox)
        page.keyboard.press("c")
        status(page, "Wait: the picture is not there yet")
        held_up = False
        for route in waiting:
            route.continue_()
        wait_for(page, "header-contradicts-itself", 0)
        assert rows(outbox) == before
        page.keyboard.press("c")
        status(page, "CT: 2 files moved")


def test_a_key_with_shift_decides_the_whole_study(browser: Browser, tmp_path: Path) -> None:
    with reviewed(held_outbox(tmp_path)) as server, looking_at(browser, server.address) as sight:
        wait_for(sight.page, "header-contradicts-itself", 0)
        assert "Decide the other one of this study too" in str(sight.page.text_content("#fellows"))
        sight.page.keyboard.press("Shift+C")
        status(sight.page, "CT: 3 files moved")
        wait_for(sight.page, "no-evidence", 2)


def test_frames_of_a_file_and_files_of_a_series_are_gone_through(browser: Browser, tmp_path: Path) -> None:
    with reviewed(held_outbox(tmp_path)) as server, looking_at(browser, server.address) as sight:
        page = sight.page
        wait_for(page, "header-contradicts-itself", 0)
        assert page.text_content("#frame-told") == "2 of 2"
        page.keyboard.press("ArrowLeft")
        assert page.text_content("#frame-told") == "1 of 2"
        page.wait_for_function("() => document.querySelector('#picture').src.match('/picture/0/[0-9a-f]+/0/')")
        page.keyboard.press("ArrowDown")
        wait_for(page, "header-contradicts-itself", 1)
        assert not page.is_visible("#frames")


def test_a_server_that_is_gone_is_told_of(browser: Browser, tmp_path: Path) -> None:
    outbox = held_outbox(tmp_path)
    with command(outbox) as (address, process), looking_at(browser, address) as sight:
        wait_for(sight.page, "header-contradicts-itself", 0)
        process.send_signal(signal.SIGINT)
        assert process.wait(ENDS) == 130
        sight.page.keyboard.press("c")
        status(sight.page, "the review's server does not answer")
    assert run("verify", outbox).code == 0
