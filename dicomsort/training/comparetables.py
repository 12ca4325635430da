"""The tables of two bundles side by side, for the terminal; every cell is text."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dicomsort.report import visible
from dicomsort.training.cardtables import NUMBERS, ROWS, Table, at, number, percent, points
from dicomsort.training.sidebyside import KEPT, OWN

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

WORST = 12
THRESHOLDS = ("decide", "contradict", "decide_and_distance")


def tables(told: Mapping[str, Any]) -> Iterator[Table]:
    """Yield the tables of what ``sidebyside`` tells that have rows."""
    names = names_of(told)
    for table in (
        _figures(told, names),
        _classes(told, names),
        _thresholds(told, names),
        _agreement(told, names),
        _sources(told, names),
    ):
        if table.rows:
            yield table


def names_of(told: Mapping[str, Any]) -> list[str]:
    """Return what the two bundles are called in tables, which must not be the same."""
    names = [visible(told["bundles"][name]["name"]) for name in ("first", "second")]
    return names if names[0] != names[1] else [f"{name} ({which})" for name, which in zip(names, "AB", strict=True)]


def warnings(told: Mapping[str, Any]) -> list[str]:
    """Return what must not be overlooked, in sentences without a stop."""
    both = [told["bundles"][name] for name in ("first", "second")]
    if told["of"] == OWN:
        if told["same_images"]:
            return ["Each bundle's own figures; both were trained on the same files, and held out what their card says"]
        return ["Each bundle's own figures, OF DIFFERENT IMAGES: a difference says nothing of which is the better one"]
    if told["of"] == KEPT:
        if not both[0]["trained_on"]:
            return []
        known = f"The network was trained on {both[0]['trained_on']:,} of these {told['images']:,} images"
        return [f"{known}: this shows what one of the two forgot, and no accuracy"]
    said = []
    for each in both:
        if each["trained_on"] is None:
            said.append(f"{visible(each['name'])} does not tell which files it was trained on")
        elif each["trained_on"]:
            said.append(
                f"{visible(each['name'])} was trained on {each['trained_on']:,} of these {told['images']:,} images, "
                "which flatters it"
            )
    return said


def _figures(told: Mapping[str, Any], names: list[str]) -> Table:
    rows: list[tuple[str, ...]] = [("images", *_counts(told), "", "")]
    for title, path in ROWS:
        cells = _cells(told, path, number if path in NUMBERS else percent, path in NUMBERS)
        if cells:
            rows.append((title, *cells))
    return Table("Figures", ("figure", *names, *_change_heads(told)), tuple(_cut(told, row) for row in rows))


def _classes(told: Mapping[str, Any], names: list[str]) -> Table:
    rows = []
    for label in told["labels"]:
        if told.get("support", {}).get(label) == 0:
            continue
        for key in ("recall", "precision"):
            cells = _cells(told, ("classes", label, key), percent)
            if cells:
                rows.append((f"{label} {key}", *cells))
    return Table("By class", ("class", *names, *_change_heads(told)), tuple(_cut(told, row) for row in rows))


def _thresholds(told: Mapping[str, Any], names: list[str]) -> Table:
    rows = []
    for name in THRESHOLDS:
        for key, words in (("coverage", "images at or above"), ("accuracy", "right among them")):
            cells = _cells(told, ("thresholds", name, key), percent)
            if cells:
                rows.append((f"{name.replace('_', ' ')}: {words}", *cells))
    title = "Confidence (each bundle's own thresholds)"
    return Table(title, ("threshold", *names, *_change_heads(told)), tuple(_cut(told, row) for row in rows))


def _agreement(told: Mapping[str, Any], names: list[str]) -> Table:
    found = told.get("agreement")
    if not found:
        return Table("", (), ())
    rows = (
        (f"{names[0]} right", f"{found['both']:,}", f"{found['only_first']:,}"),
        (f"{names[0]} wrong", f"{found['only_second']:,}", f"{found['neither']:,}"),
    )
    return Table("Images", ("", f"{names[1]} right", f"{names[1]} wrong"), rows)


def _sources(told: Mapping[str, Any], names: list[str]) -> Table:
    moved = [row for row in told.get("sources", ()) if row["first"] != row["second"]]
    rows = tuple(
        (
            visible(row["source"]) or "(none)", row["label"], f"{row['images']:,}", percent(row["first"]),
            percent(row["second"]), points(row["second"] - row["first"]),
        )
        for row in moved[:WORST]
    )  # fmt: skip
    title = f"Recall by source, what changed most ({len(moved):,} of {len(told.get('sources', ())):,} changed)"
    return Table(title, ("source", "class", "images", *names, "change"), rows)


def _counts(told: Mapping[str, Any]) -> tuple[str, str]:
    """Return the number of images that each was judged by."""
    if told["of"] == OWN:
        return tuple(f"{told['figures'][name]['images']:,}" for name in ("first", "second"))  # type: ignore[return-value]
    return (f"{told['images']:,}",) * 2


def _cells(
    told: Mapping[str, Any],
    path: tuple[str, ...],
    write: Any,
    plain: bool = False,  # noqa: FBT001, FBT002
) -> tuple[str, ...]:
    """Return the figure of both, its change and the interval of that; () where either has none."""
    one, two = (at(told["figures"][name], path) for name in ("first", "second"))
    if not isinstance(one, float | int) or not isinstance(two, float | int):
        return ()
    shown: Any = (lambda value: f"{value:+.3f}") if plain else points
    drawn = at(told.get("intervals", {}), path)
    interval = f"{shown(drawn[0])} to {shown(drawn[1])}" if drawn else ""
    return (write(one), write(two), shown(two - one), interval)


def _change_heads(told: Mapping[str, Any]) -> tuple[str, ...]:
    return () if told["of"] == OWN else ("change, points", "95 % interval")


def _cut(told: Mapping[str, Any], row: tuple[str, ...]) -> tuple[str, ...]:
    """Return a row without changes where figures are of different images."""
    return row[:3] if told["of"] == OWN else row


def title(told: Mapping[str, Any]) -> str:
    """Return what is compared, and on what, in a line."""
    first, second = names_of(told)
    if told["of"] == OWN:
        return f"{first} and {second}, each by its own figures"
    what = "evaluation images that both keep" if told["of"] == KEPT else "images"
    return f"{first} and {second} on {told['images']:,} {what} of {told['clusters']:,} {told['unit']}s"
