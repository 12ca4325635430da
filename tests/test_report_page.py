"""The report in a real browser: nothing is fetched, nothing is cut off, light and dark and paper."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from browser import looking_at
from building import make_dicom
from command import run
from reports import holding

if TYPE_CHECKING:
    from playwright.sync_api import Browser

WIDTHS = (360, 390, 768, 1280)


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory, sample_inbox: Path) -> str:
    """The report of the sample data."""
    folder = tmp_path_factory.mktemp("report")
    assert run("sort", "--engine", "serial", "--quiet", sample_inbox, folder / "outbox").code == 3
    assert run("report", "--html", folder / "report.html", folder / "outbox").code == 0
    return (folder / "report.html").as_uri()


@pytest.fixture(scope="module")
def long_address(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A report of names without a place to break them at."""
    folder = tmp_path_factory.mktemp("long")
    for name in ("x" * 240, "W" * 200, "ä" * 100):
        make_dicom(folder / "inbox" / name / f"{name}.dcm", study=1, instance=1, PatientID=name)
        (folder / "inbox" / name / "cut.dcm").write_bytes((folder / "inbox" / name / f"{name}.dcm").read_bytes()[:200])
    holding(folder / "inbox", folder / "outbox")
    assert run("report", "--pictures", 2, "--html", folder / "report.html", folder / "outbox").code == 0
    return (folder / "report.html").as_uri()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
def test_nothing_is_fetched_complained_of_or_cut_off(browser: Browser, address: str, width: int, scheme: str) -> None:
    with looking_at(browser, address, width, scheme=scheme) as sight:
        assert [url for url in sight.requests if not url.startswith("data:")] == [address]
        assert sight.complaints == []
        assert not sight.is_too_wide()
        loaded = "images => images.map(image => image.complete && image.naturalWidth > 0)"
        pictures = sight.page.eval_on_selector_all("img", loaded)
        assert len(pictures) > 10
        assert all(pictures)
        small = "all => all.filter(e => e.textContent.trim() && parseFloat(getComputedStyle(e).fontSize) < 11).length"
        assert sight.page.eval_on_selector_all("body *:not(svg *)", small) == 0
        for heading in ("Header against pixels", "What needs a person", "A look at what was sorted"):
            assert sight.page.get_by_role("heading", name=heading).is_visible()


@pytest.mark.parametrize("width", [320, 360, 390])
def test_no_table_is_wider_than_a_phone(browser: Browser, address: str, long_address: str, width: int) -> None:
    wider = "all => all.filter(e => e.scrollWidth > e.clientWidth).map(e => [e.scrollWidth, e.clientWidth])"
    for page in (address, long_address):
        with looking_at(browser, page, width, 844) as sight:
            sight.page.eval_on_selector_all("details", "all => all.forEach(each => each.open = true)")
            assert sight.page.eval_on_selector_all(".scroll", wider) == []
            for table in sight.page.get_by_role("table").all():
                cells = table.get_by_role("cell")
                named = "e => getComputedStyle(e, '::before').content"  # its column: the head is not shown
                assert all("none" not in cells.nth(place).evaluate(named) for place in range(min(cells.count(), 12)))


@pytest.mark.parametrize("width", [360, 1280])
def test_long_names_break(browser: Browser, long_address: str, width: int) -> None:
    with looking_at(browser, long_address, width) as sight:
        sight.page.eval_on_selector_all("details", "all => all.forEach(each => each.open = true)")
        assert not sight.is_too_wide()
        assert sight.complaints == []


def test_light_and_dark_differ_and_text_stands_out(browser: Browser, address: str) -> None:
    seen = {}
    for scheme in ("light", "dark"):
        with looking_at(browser, address, scheme=scheme) as sight:
            pairs = (("body", "body"), (".card", ".card h2"), (".card", ".remark"), ("body", ".soft"), (".item", "dt"))
            seen[scheme] = [sight.colour(back) for back, _ in pairs]
            for back, text in pairs:
                contrast = _contrast(sight.colour(back), sight.colour(text, "color"))
                assert contrast >= 4.5, (scheme, back, text)  # WCAG 2.2, 1.4.3
    assert not {*seen["light"]} & {*seen["dark"]}


def test_on_paper_all_is_light_and_nothing_is_left_out(browser: Browser, address: str, tmp_path: Path) -> None:
    with looking_at(browser, address, 1280, scheme="dark") as sight:
        assert sight.page.pdf(format="A4").startswith(b"%PDF")
        sight.page.emulate_media(media="print", color_scheme="dark")
        assert sight.colour("body") == "rgb(255, 255, 255)"
        assert sight.page.get_by_role("article").first.is_visible()
        assert sight.page.eval_on_selector(".item", "e => getComputedStyle(e).breakInside") == "avoid"


def test_on_paper_what_was_folded_is_there(browser: Browser, long_address: str) -> None:
    with looking_at(browser, long_address) as sight:
        shown = "e => e.checkVisibility({contentVisibilityAuto: true}) && e.getBoundingClientRect().height > 20"
        assert not sight.page.eval_on_selector("details table", shown)
        sight.page.emulate_media(media="print")
        sight.page.wait_for_function(f"() => ({shown})(document.querySelector('details table'))")  # a frame later


def test_what_a_bar_says_is_said_in_words(browser: Browser, address: str) -> None:
    with looking_at(browser, address) as sight:
        bars = sight.page.get_by_role("img")
        assert bars.count() > 20
        assert all(bars.nth(place).get_attribute("alt") or bars.nth(place).get_attribute("aria-label")
                   for place in range(bars.count()))  # fmt: skip
        assert sight.page.locator("html").get_attribute("lang") == "en"
        assert sight.page.get_by_role("main").count() == 1


def _contrast(one: str, other: str) -> float:
    """The contrast of two colours, ``rgb(r, g, b)``, by WCAG 2.2: 1 to 21."""
    low, high = sorted(map(_luminance, (one, other)))
    return (high + 0.05) / (low + 0.05)


def _luminance(colour: str) -> float:
    channels = [int(part) / 255 for part in colour.removeprefix("rgb(").removesuffix(")").split(",")]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
