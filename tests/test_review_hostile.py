"""What files say on the review page: as text, and nothing of the patient unless it is asked for."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from browser import looking_at
from building import make_dicom, read_tree
from command import sort
from review_browser import status, wait_for
from reviewing import CONTRADICTING, picture, reviewed

if TYPE_CHECKING:
    from playwright.sync_api import Browser


def test_names_from_files_are_shown_and_never_run(browser: Browser, tmp_path: Path) -> None:
    hostile = '<img src=x onerror="document.title=1">.png'
    picture(tmp_path / "inbox" / hostile)
    picture(tmp_path / "inbox" / "'\"><script>document.title=2<" / "script>.png")
    make_dicom(
        tmp_path / "inbox/x.dcm", **(CONTRADICTING | {"ImageType": ["<b>", "ORIGINAL"], "PatientName": "Doe^Jane"})
    )
    sort("--move", "--settle", "0", tmp_path / "inbox", tmp_path / "outbox")
    with reviewed(tmp_path / "outbox") as server, looking_at(browser, server.address) as sight:
        texts = []
        sight.page.wait_for_selector(".tile[data-place='2']")
        for place in range(3):
            sight.page.evaluate("place => document.querySelector(`.tile[data-place='${place}']`).click()", place)
            sight.page.wait_for_function(
                "place => document.querySelector('.tile.current')?.dataset.place === String(place)"
                " && !document.querySelector('#keys .class').disabled",
                arg=place,
            )
            texts.append(str(sight.page.text_content("body")))
        assert any(hostile in text for text in texts)
        assert not any("<b>" in text for text in texts)  # no code, so it may be anything
        assert not any("Doe" in text or "P1" in text for text in texts)
        assert sight.page.title().startswith("Review")
        assert sight.page.locator("#told img, #told b, script:not([type=module])").count() == 0
        assert sight.complaints == []


def test_identifiers_are_shown_where_asked_for_and_kept_nowhere(browser: Browser, tmp_path: Path) -> None:
    make_dicom(tmp_path / "inbox/x.dcm", **(CONTRADICTING | {"PatientID": "PID-77", "AccessionNumber": "ACC-88"}))
    sort("--move", "--settle", "0", tmp_path / "inbox", tmp_path / "outbox")
    for asked in (False, True):
        with (
            reviewed(tmp_path / "outbox", identifiers=asked) as server,
            looking_at(browser, server.address) as sight,
        ):
            wait_for(sight.page, "header-contradicts-itself", 0)
            text = str(sight.page.text_content("#told"))
            assert ("PID-77" in text, "ACC-88" in text) == (asked, asked)
            if asked:
                sight.page.keyboard.press("c")
                status(sight.page, "CT: 1 file moved")
    kept = {k: v for k, v in read_tree(tmp_path / "outbox").items() if not k.endswith(".dcm")}
    assert not [k for k, v in kept.items() if b"PID-77" in v or b"ACC-88" in v]
