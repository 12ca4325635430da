"""Bars as inline SVG. Each has a title, and numbers stand beside it: nothing is told by colour alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from dicomsort.records import OTHER

_HUES = (1, 2, 3, 5, 6)  # of the style sheet, for classes; OTHER has the grey one
_GREY = 4


@dataclass(frozen=True, slots=True)
class Part:
    """A piece of a bar: its name, its amount (0 or more), its colour as CSS writes it."""

    name: str
    amount: float
    colour: str


@dataclass(frozen=True, slots=True)
class Mark:
    """A line across a bar at a share (0..1) of its length; ``kind`` is its class in the style sheet."""

    at: float
    kind: str


def colours(classes: Sequence[str]) -> dict[str, str]:
    """A colour a class, as CSS writes it: the same for the same list of classes."""
    named = [class_ for class_ in classes if class_ != OTHER]
    hues = {class_: _HUES[place % len(_HUES)] for place, class_ in enumerate(named)}
    return {class_: f"var(--hue-{hues.get(class_, _GREY)})" for class_ in classes}


def bar(share: float, colour: str, title: str, marks: Sequence[Mark] = ()) -> str:
    """A horizontal bar that fills ``share`` (0..1) of its track, with lines where ``marks`` are."""
    filled = _rect(0, min(max(share, 0.0), 1.0), colour)
    lines = "".join(
        f'<line class="{escape(mark.kind)}" x1="{_at(mark.at)}" x2="{_at(mark.at)}" y1="0" y2="10"/>' for mark in marks
    )
    return _svg(f'<rect class="track" width="1000" height="10"/>{filled}{lines}', title, "bar")


def stacked(parts: Sequence[Part], title: str) -> str:
    """A bar of parts that fill it together; empty where all are nothing."""
    whole, begin, drawn = sum(part.amount for part in parts), 0.0, []
    for part in parts:
        if part.amount > 0:
            drawn.append(_rect(begin / whole, part.amount / whole, part.colour, f"{part.name}: {part.amount:,.10g}"))
            begin += part.amount
    return _svg("".join(drawn) or '<rect class="track" width="1000" height="10"/>', title, "bar stacked")


def _svg(content: str, title: str, kind: str) -> str:
    told = escape(title)
    return (
        f'<svg class="{kind}" viewBox="0 0 1000 10" preserveAspectRatio="none" role="img" aria-label="{told}">'
        f"<title>{told}</title>{content}</svg>"
    )


def _rect(begin: float, share: float, colour: str, title: str = "") -> str:
    told = f"<title>{escape(title)}</title>" if title else ""
    return f'<rect x="{_at(begin)}" width="{_at(share)}" height="10" style="fill:{escape(colour)}">{told}</rect>'


def _at(share: float) -> str:
    return f"{1000 * share:.1f}".removesuffix(".0")
