"""Templates and styles to pages: everything is escaped, and nothing is fetched from anywhere."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tornado.template import Loader

TEMPLATES = Path(__file__).parent / "templates"


def rendered(folder: Path, name: str, /, **facts: Any) -> bytes:
    """A template of a folder, filled in; what it puts out is escaped unless it says ``raw``."""
    loader = Loader(str(folder), autoescape="xhtml_escape", whitespace="single")
    return loader.load(name).generate(**facts)


def styles(paths: Sequence[Path]) -> str:
    """The text of style sheets, one behind the other, for a page's own ``<style>``."""
    return "\n".join(path.read_text(encoding="utf-8") for path in paths)
