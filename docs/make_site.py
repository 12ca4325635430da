"""Gather the pages of the manual, and what they link to, for mkdocs: ``python docs/make_site.py`` (see ``make docs``).

The pages keep their places, so that their links hold on the site as they do in the checkout.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "build" / "site-source"
LINK = re.compile(r"\]\((?!https?:|#)([^)#]+)")


def main() -> None:
    """Copy README.md and each page and file that it, or a page, links to."""
    shutil.rmtree(SOURCE, ignore_errors=True)
    waiting, done = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))], set[Path]()
    while waiting:
        path = waiting.pop()
        if path in done:
            continue
        done.add(path)
        target = SOURCE / path.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
        if path.suffix == ".md":
            links = LINK.findall(path.read_text(encoding="utf-8"))
            waiting += [(path.parent / link).resolve() for link in links]


if __name__ == "__main__":
    main()
