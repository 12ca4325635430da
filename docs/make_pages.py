"""Pictures of pages for the README: ``python docs/make_pages.py`` (needs Playwright and Debian's chromium).

Each page is made from a copy of sample_data, opened in a real browser, and photographed at a width and in a scheme.
"""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from PIL import Image
from playwright.sync_api import Browser, sync_playwright

ROOT = Path(__file__).resolve().parents[1]
CHROMIUM = "/usr/bin/chromium"
COLOURS = 128
NEEDS_PERSON = 3


@contextmanager
def report(outbox: Path) -> Iterator[str]:
    """The address of the report of the outbox's run."""
    page = outbox.parent / "report.html"
    dicomsort("report", "--html", str(page), str(outbox))
    yield page.as_uri()


@contextmanager
def review(outbox: Path) -> Iterator[str]:
    """The address of the review page, while its command runs."""
    command = [sys.executable, "-P", "-m", "dicomsort", "review", "--reviewer", "anna", str(outbox)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        if process.stdout is None or not (address := process.stdout.readline().strip()):
            sys.exit("expected an address of `dicomsort review`, received none")
        yield address
        process.terminate()


@dataclass(frozen=True)
class Shot:
    """A picture of a page: what makes it from an outbox and tells its address, and the window it is seen in.

    ``top`` selects what is scrolled to; the page's own top where it is empty.
    """

    page: Callable[[Path], AbstractContextManager[str]]
    width: int
    height: int
    scheme: Literal["light", "dark"]
    top: str = ""


# The file in docs/, less ".png" -> what it shows.
SHOTS = {
    "report": Shot(report, 1280, 1350, "light"),
    "report-phone": Shot(report, 390, 844, "dark", "#needs"),
    "review": Shot(review, 1280, 800, "light"),
    "review-phone": Shot(review, 390, 844, "dark"),
}


def main() -> None:
    """Make every picture, or those that are named."""
    wanted = sys.argv[1:] or list(SHOTS)
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        shutil.copytree(ROOT / "sample_data" / "inbox", Path(folder, "inbox"))
        dicomsort("sort", "--quiet", f"{folder}/inbox", f"{folder}/outbox")
        arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments)
        for name in wanted:
            target = ROOT / "docs" / f"{name}.png"
            target.write_bytes(photograph(browser, SHOTS[name], Path(folder, "outbox")))
            print(f"docs/{target.name}: {target.stat().st_size:,} bytes")
        browser.close()


def dicomsort(*words: str) -> None:
    """Run a command on the copy; what needs a person there is no failure."""
    command = [sys.executable, "-P", "-m", "dicomsort", *words]
    ran = subprocess.run(command, check=False, env=os.environ | {"PYTHONPATH": str(ROOT)})
    if ran.returncode not in {0, NEEDS_PERSON}:
        sys.exit(f"expected `dicomsort {' '.join(words)}` to end with 0 or 3, received {ran.returncode}")


def photograph(browser: Browser, shot: Shot, outbox: Path) -> bytes:
    """A PNG file of few colours."""
    with shot.page(outbox) as address:
        context = browser.new_context(
            viewport={"width": shot.width, "height": shot.height}, color_scheme=shot.scheme, device_scale_factor=1
        )
        page = context.new_page()
        page.goto(address, wait_until="networkidle")
        if shot.top:
            page.eval_on_selector(shot.top, "element => element.scrollIntoView()")
        taken = page.screenshot()
        context.close()
    stream = io.BytesIO()
    Image.open(io.BytesIO(taken)).convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE).save(
        stream, "PNG", optimize=True
    )
    return stream.getvalue()


if __name__ == "__main__":
    main()
