"""A report as one page: words, numbers, and bars as inline SVG. Numbers stand beside each bar."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from html import escape
from typing import Any, Final

from dicomsort import __version__
from dicomsort.bundle import Bundle
from dicomsort.classify import is_out_of_distribution
from dicomsort.errors import counted, word
from dicomsort.own_files import REPORT, REPORT_BEGINS, Replaced
from dicomsort.pages.report import Report, Subject
from dicomsort.pages.run_statistics import Cell
from dicomsort.pages.templating import TEMPLATES, Fact, rendered, shown
from dicomsort.records import OTHER, Status
from dicomsort.report import NEEDS_PERSON
from dicomsort.report.text import size
from dicomsort.sorting.inspection import ReportedRun
from dicomsort.sorting.runs import STAMP

_HUES = (1, 2, 3, 5, 6)  # of the style sheet, for classes; OTHER has the grey one
_GREY = 4


@dataclass(frozen=True, slots=True)
class Part:
    """A piece of a bar: its name, its amount (0 or more), its colour in CSS."""

    name: str
    amount: float
    colour: str


def colours(classes: Sequence[str]) -> dict[str, str]:
    """Return a colour in CSS for each class: the same for the same list of classes."""
    named = [class_ for class_ in classes if class_ != OTHER]
    hues = {class_: _HUES[place % len(_HUES)] for place, class_ in enumerate(named)}
    return {class_: f"var(--hue-{hues.get(class_, _GREY)})" for class_ in classes}


def bar_chart(share: float, colour: str, title: str, threshold: float | None = None) -> str:
    """Return a horizontal bar (SVG) that fills ``share`` (0..1) of its track, with a line at a ``threshold``."""
    line = "" if threshold is None else f'<line x1="{_at(threshold)}" x2="{_at(threshold)}" y1="0" y2="10"/>'
    return _svg(_TRACK + _rect(0, min(max(share, 0.0), 1.0), colour) + line, title, "bar")


def stacked_chart(parts: Sequence[Part], title: str) -> str:
    """Return a bar (SVG) of parts that fill it together; empty where all are nothing."""
    whole, begin, drawn = sum(part.amount for part in parts), 0.0, ""
    for part in parts:
        if part.amount > 0:
            drawn += _rect(begin / whole, part.amount / whole, part.colour, f"{part.name}: {part.amount:,.10g}")
            begin += part.amount
    return _svg(drawn or _TRACK, title, "bar stacked")


_TRACK = '<rect class="track" width="1000" height="10"/>'


def _svg(content: str, title: str, kind: str) -> str:
    return (
        f'<svg class="{kind}" viewBox="0 0 1000 10" preserveAspectRatio="none" role="img" aria-label="{escape(title)}">'
        f"<title>{escape(title)}</title>{content}</svg>"
    )


def _rect(begin: float, share: float, colour: str, title: str = "") -> str:
    name = f"<title>{escape(title)}</title>" if title else ""
    return f'<rect x="{_at(begin)}" width="{_at(share)}" height="10" style="fill:{escape(colour)}">{name}</rect>'


def _at(share: float) -> str:
    return f"{1000 * share:.1f}".removesuffix(".0")


FILE: Final = Replaced("--html", REPORT, 0o600)
_COLUMNS: Final = ("In the inbox", "What", "Header", "Pixels", "Files", "Now")  # of items without pictures
_KINDS: Final = {"In the inbox": "mono", "Files": "number"}
NAMED = 10  # archives and kinds that are named; more are counted

# In the order of the page: what it means, and its colour.
STATUSES: Final[dict[str, tuple[str, str]]] = {
    Status.SORTED: ("in the folder of a class", "var(--good)"),
    Status.OTHER: ("surely none of the classes", "var(--other)"),
    Status.REVIEW: ("a person must look", "var(--wait)"),
    Status.CONFLICT: ("the same UID, other content", "var(--wait)"),
    Status.UNREADABLE: ("the header cannot be trusted", "var(--bad)"),
    Status.CHANGED: ("changed while the run went on", "var(--bad)"),
    Status.FAILED: ("could not be read or placed", "var(--bad)"),
    Status.DUPLICATE: ("the outbox holds the same bytes", "var(--still)"),
    Status.SETTLING: ("still arriving; left for the next run", "var(--still)"),
    Status.IGNORED: ("no image; stays in the inbox", "var(--still)"),
}


@dataclass(frozen=True, slots=True)
class Line:
    """A line of a chart: a name, a number as it is shown, the bar, a remark, a class of the style sheet."""

    name: str
    number: str
    bar: str
    remark: str = ""
    kind: str = ""


def page(report: Report) -> bytes:
    """Return the report as one HTML file, UTF-8, which fetches nothing and runs nothing."""
    style = "\n".join((TEMPLATES / name).read_text(encoding="utf-8") for name in ("common.css", "report.css"))
    return REPORT_BEGINS + rendered(
        TEMPLATES, "report.html", style=style, report=report, run=report.run.run, bundle=report.bundle,
        verdict=_verdict(report), notices=list(_notices(report)), meta=list(_meta(report)), whole=_whole(report),
        statuses=list(_statuses(report)), classes=list(_classes(report)), times=list(_times(report)),
        table=_table(report), remarks=list(_remarks(report)), prediction_of=_prediction,
        anchor=_anchor, shown=shown,
        columns=_COLUMNS, listed=_listed, kinds=_KINDS,
        version=__version__, made=time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
    )  # fmt: skip


def _verdict(report: Report) -> str:
    summary, left = report.statistics.summary, report.statistics.needing - report.decided
    done, other = summary.statuses[Status.SORTED], summary.statuses[Status.OTHER]
    if report.run.is_undone:
        return f"{_files(summary.found)}: {done + other:,} had been sorted, {left:,} needed you; all was undone."
    need = f"{left:,} {'needs' if left == 1 else 'need'} you" if left else "nothing needs you"
    since = f", {report.decided:,} decided since" if report.decided else ""
    others = f", {other:,} other" if other else ""
    return f"{_files(summary.found)}: {done:,} sorted{others}, {need}{since}."


def _files(count: int) -> str:
    return counted(count, "file")


def _notices(report: Report) -> Iterator[str]:
    run, bundle, listed = report.run, report.bundle, len(report.statistics.held)
    if report.waiting:
        yield report.waiting
    if run.is_undone:
        yield f"This run was undone by {run.undone_by}: its files are gone from there and have no pictures."
    elif run.undone_by:
        yield f"This run was undone in part by {run.undone_by}: files that changed since were left, and are shown."
    if not run.head:
        yield "This run was pruned: this is made of its rows in manifest.csv; times and mode are not known any more."
    if left := report.statistics.needing - listed:
        yield f"The first {listed:,} files that need a person are told of; {left:,} more are counted."
    if bundle and run.head and run.head["model"] != bundle.model_sha256:
        yield (
            f"The model of this run ({run.head['model'][:8]}) is not the one that was asked for this page "
            f"({shown(bundle.name)}, {bundle.model_sha256[:8]}): its probabilities below may differ from what decided."
        )


def _meta(report: Report) -> Iterator[Fact]:
    run, summary, bundle = report.run, report.run.summary, report.bundle
    begun = "not known: the id of the run is no time"
    with suppress(ValueError):
        begun = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.strptime(run.run[:16], STAMP))
    yield Fact("Begun", begun)
    took = "not known any more"
    if summary is not None:
        is_whole = summary.seconds and summary.stages  # what a resume took is not what the run took
        took = seconds(summary.seconds) + (f", {summary.found / summary.seconds:,.0f} files/s" if is_whole else "")
    yield Fact("Took", took)
    yield Fact("Read", size(report.statistics.summary.bytes))
    yield Fact("Mode", str(run.head.get("mode", "not known any more")))
    if run.head:
        sha = run.head["model"]
        name = f"{shown(bundle.name)}, " if bundle and bundle.model_sha256 == sha else ""
        yield Fact("Model", f"{name}{sha[:8]}")


def seconds(spent: float) -> str:
    """Return a time for people."""
    if spent < 10:  # noqa: PLR2004 - below, tenths matter
        return f"{spent:.1f} s"
    minutes, rest = divmod(round(spent), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02} min"
    return f"{minutes} min {rest:02} s" if minutes else f"{rest} s"


def _whole(report: Report) -> str:
    counts = report.statistics.summary.statuses
    parts = [Part(status, counts[status], colour) for status, (_, colour) in STATUSES.items()]
    return stacked_chart(parts, "Files by status: " + ", ".join(f"{p.name} {p.amount:,}" for p in parts if p.amount))


def _statuses(report: Report) -> Iterator[Line]:
    counts = report.statistics.summary.statuses
    for status, (meaning, colour) in STATUSES.items():
        if counts[status]:
            yield _counted(status, counts, colour, meaning, "needs" if status in NEEDS_PERSON else "")


def _classes(report: Report) -> Iterator[Line]:
    statistics = report.statistics
    counts = statistics.summary.classes
    for class_, colour in colours(_labels(report)).items():
        if counts[class_]:
            kinds = statistics.kinds.most_common() if class_ == OTHER else []
            yield _counted(class_, counts, colour, _some([f"{shown(kind, 32)} {n:,}" for kind, n in kinds]))


def _counted(name: str, counts: Counter[str], colour: str, remark: str, kind: str = "") -> Line:
    count = counts[name]
    bar = bar_chart(count / max(counts.values()), colour, f"{name}: {_files(count)}")
    return Line(name, f"{count:,}", bar, remark, kind)


def _times(report: Report) -> Iterator[Line]:
    stages = report.run.summary.stages if report.run.summary else {}
    most = max(stages.values(), default=0)
    for name, spent in stages.items():
        bar = bar_chart(spent / most if most else 0, "var(--accent)", f"{name}: {spent:.2f} s")
        yield Line(name, seconds(spent), bar)


def _labels(report: Report) -> list[str]:
    """Return the classes: those of the model in its order, then others that the run knew."""
    known, statistics = list(report.bundle.labels) if report.bundle else [], report.statistics
    found = {*statistics.summary.classes, *(class_ for pair in statistics.cells for class_ in pair if class_)}
    return known + sorted(found - {*known})


def _some(names: Sequence[str]) -> str:
    more = len(names) - NAMED
    return ", ".join(names[:NAMED]) + (f" and {more:,} more" if more > 0 else "")


@dataclass(frozen=True, slots=True)
class Square:
    """A cell of the table: how many series and files, and ``same``, ``differs`` or nothing for its class."""

    series: str
    files: str
    kind: str


def _table(report: Report) -> tuple[list[str], list[tuple[str, list[Square]]]]:
    """Return header classes (rows) against pixel classes (columns): the columns' names, each row's name and cells."""
    cells = report.statistics.cells
    across, down = ([c for c in (*_labels(report), "") if any(pair[side] == c for pair in cells)] for side in (1, 0))
    rows = [
        (header or "no class", [_square(header, pixels, cells.get((header, pixels))) for pixels in across])
        for header in down
    ]
    return [pixels or "not seen" for pixels in across], rows


def _square(header: str, pixels: str, cell: Cell | None) -> Square:
    kind = "same" if header and header == pixels else "differs" if header and pixels and cell else ""
    return Square(f"{cell.count:,}", _files(cell.files), kind) if cell else Square("", "", kind)


def _remarks(report: Report) -> Iterator[str]:
    summary, counts = report.statistics.summary, report.statistics.summary.statuses
    if duplicates := counts[Status.DUPLICATE]:
        verb = "is a duplicate" if duplicates == 1 else "are duplicates"
        yield f"{_files(duplicates)} {verb} of what the outbox holds; nothing was placed twice."
    if settling := counts[Status.SETTLING]:
        yield f"{_files(settling)} of series that changed just before the run were left for the next one."
    if ignored := report.statistics.ignored:
        yield f"Left as no images: {_some([f'{reason} {count:,}' for reason, count in ignored.most_common()])}."
    if summary.archives:
        more = summary.archives_found - min(NAMED, len(summary.archives))
        names = ", ".join(shown(name, 120) for name in summary.archives[:NAMED])
        yield f"Archives, left unopened: {names}{f' and {more:,} more' if more else ''}."
    if summary.archives_opened:
        yield f"{_files(summary.members)} lay in archives that were opened: {summary.archives_opened:,}."
    for note in report.run.summary.notes if report.run.summary else ():
        yield shown(_without_folders(note, report.run))


def _without_folders(note: str, run: ReportedRun) -> str:
    """Return a note without the folders of this machine, which may be named after somebody."""
    for folder, name in ((run.outbox, "OUTBOX"), (str(run.head.get("inbox", "")), "INBOX")):
        note = note.replace(word(folder), name).replace(folder, name) if folder else note
    return re.sub(r"(?<![\w.])/[^\s`]+", "…", note)


def _prediction(each: Subject, bundle: Bundle) -> dict[str, Any]:
    """Return what the model sees in the frames that are shown: a line a class, a remark, or why there is nothing."""
    mean = each.prediction()
    most = max(mean.probabilities, default=0.0)
    lines = [
        Line(
            label,
            f"{share:.2f}",
            bar_chart(share, colour, f"{label}: probability {share:.3f}", bundle.decide),
            kind="first" if share == most else "",
        )
        for (label, colour), share in zip(colours(bundle.labels).items(), mean.probabilities, strict=False)
    ]
    first = bundle.labels[mean.probabilities.index(most)] if mean.probabilities else ""
    is_strange = is_out_of_distribution(first, mean.distance, bundle.distance)
    remark = "Unlike all that the model knows" if is_strange else ""
    return {"lines": lines, "remark": remark, "problem": shown(mean.problem, 120)}


def _listed(each: Subject) -> list[str]:
    """Return the cells of an item without pictures, in the order of ``_COLUMNS``."""
    row = each.row
    return [
        each.source, each.heading, shown(row.header_class, 32), f"{shown(row.pixel_class, 32)} {row.pixel_confidence}",
        f"{len(each.item.files):,}", "; ".join(each.whereabouts()),
    ]  # fmt: skip


def _anchor(reason: str) -> str:
    return "reason-" + re.sub(r"[^a-z0-9]+", "-", reason.lower())
