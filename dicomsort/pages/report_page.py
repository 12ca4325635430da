"""A report as one page: words, numbers, and bars as inline SVG. Numbers stand beside each bar."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from typing import Final

from dicomsort import __version__
from dicomsort.bundle import Bundle
from dicomsort.classify import is_out_of_distribution
from dicomsort.content import Replaced, beginning
from dicomsort.errors import word
from dicomsort.pages.rendering import TEMPLATES, Fact, rendered, shown, styles
from dicomsort.pages.report import Report, Subject
from dicomsort.pages.run_statistics import Cell
from dicomsort.records import OTHER, Status
from dicomsort.report import NEEDS_PERSON
from dicomsort.report.text import size
from dicomsort.sorting.outbox import STAMP
from dicomsort.sorting.runs import ReportedRun

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


def bar_chart(share: float, colour: str, title: str, marks: Sequence[Mark] = ()) -> str:
    """A horizontal bar that fills ``share`` (0..1) of its track, with lines where ``marks`` are."""
    filled = _rect(0, min(max(share, 0.0), 1.0), colour)
    lines = "".join(
        f'<line class="{escape(mark.kind)}" x1="{_at(mark.at)}" x2="{_at(mark.at)}" y1="0" y2="10"/>' for mark in marks
    )
    return _svg(f'<rect class="track" width="1000" height="10"/>{filled}{lines}', title, "bar")


def stacked_chart(parts: Sequence[Part], title: str) -> str:
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


FIRST: Final = b"<!DOCTYPE html>\n<!-- dicomsort report -->\n"
FILE: Final = Replaced("--html", beginning("an earlier report", FIRST), 0o600)
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
    """The report as one HTML file, UTF-8, which fetches nothing and runs nothing."""
    style = styles([TEMPLATES / "common.css", TEMPLATES / "report.css"])
    return FIRST + rendered(
        TEMPLATES, "report.html", style=style, report=report, run=report.told.run, bundle=report.bundle,
        verdict=_verdict(report), notices=list(_notices(report)), meta=list(_meta(report)), whole=_whole(report),
        statuses=list(_statuses(report)), classes=list(_classes(report)), times=list(_times(report)),
        table=_table(report), remarks=list(_remarks(report)), seen=_model_rows, anchor=_anchor, shown=shown,
        columns=_COLUMNS, listed=_listed, kinds=_KINDS,
        version=__version__, made=time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
    )  # fmt: skip


def _verdict(report: Report) -> str:
    tale, left = report.tale, report.tale.needing - report.decided
    done = tale.summary.statuses[Status.SORTED] + tale.summary.statuses[Status.OTHER]
    if report.told.is_undone:
        return f"{_files(tale.summary.found)}: {done:,} had been sorted, {left:,} needed you; all was undone."
    need = f"{left:,} {'needs' if left == 1 else 'need'} you" if left else "nothing needs you"
    since = f", {report.decided:,} decided since" if report.decided else ""
    return f"{_files(tale.summary.found)}: {done:,} sorted, {need}{since}."


def _files(count: int) -> str:
    return f"{count:,} file" if count == 1 else f"{count:,} files"


def _notices(report: Report) -> Iterator[str]:
    """What must be known before anything else."""
    told, bundle = report.told, report.bundle
    if told.is_undone:
        yield f"This run was undone by {told.undone_by}: its files are gone from there and have no pictures."
    elif told.undone_by:
        yield f"This run was undone in part by {told.undone_by}: files that changed since were left, and are shown."
    if not told.head:
        yield "This run was pruned: this is made of its rows in manifest.csv; times and mode are not known any more."
    if left := report.tale.needing - len(report.tale.held):
        yield f"The first {len(report.tale.held):,} files that need a person are told of; {left:,} more are counted."
    if bundle and told.head and told.head["model"] != bundle.model_sha256:
        yield (
            f"The model of this run ({told.head['model'][:8]}) is not the one that was asked for this page "
            f"({shown(bundle.name)}, {bundle.model_sha256[:8]}): its probabilities below may differ from what decided."
        )


def _meta(report: Report) -> Iterator[Fact]:
    told, summary, bundle = report.told, report.told.summary, report.bundle
    began = time.strptime(told.run[:16], STAMP)
    yield Fact("Begun", time.strftime("%Y-%m-%d %H:%M:%S UTC", began))
    if summary is not None:
        is_whole = summary.seconds and summary.stages  # what a resume took is not what the run took
        speed = f", {summary.found / summary.seconds:,.0f} files/s" if is_whole else ""
        yield Fact("Took", f"{seconds(summary.seconds)}{speed}")
    else:
        yield Fact("Took", "not known any more")
    yield Fact("Read", size(report.tale.summary.bytes))
    yield Fact("Mode", str(told.head.get("mode", "not known any more")))
    if told.head:
        sha = told.head["model"]
        name = f"{shown(bundle.name)}, " if bundle and bundle.model_sha256 == sha else ""
        yield Fact("Model", f"{name}{sha[:8]}")


def seconds(spent: float) -> str:
    """A time for people."""
    if spent < 10:  # noqa: PLR2004 - below, tenths matter
        return f"{spent:.1f} s"
    minutes, rest = divmod(round(spent), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02} min"
    return f"{minutes} min {rest:02} s" if minutes else f"{rest} s"


def _whole(report: Report) -> str:
    counts = report.tale.summary.statuses
    parts = [Part(status, counts[status], colour) for status, (_, colour) in STATUSES.items()]
    return stacked_chart(parts, "Files by status: " + ", ".join(f"{p.name} {p.amount:,}" for p in parts if p.amount))


def _statuses(report: Report) -> Iterator[Line]:
    counts = report.tale.summary.statuses
    most = max(counts.values(), default=0)
    for status, (meaning, colour) in STATUSES.items():
        if count := counts[status]:
            bar = bar_chart(count / most, colour, f"{status}: {_files(count)}")
            yield Line(status, f"{count:,}", bar, meaning, "needs" if status in NEEDS_PERSON else "")


def _labels(report: Report) -> list[str]:
    """The classes: those of the model in its order, then others that the run knew."""
    known = list(report.bundle.labels) if report.bundle else []
    met = {*report.tale.summary.classes, *(class_ for pair in report.tale.cells for class_ in pair if class_)}
    return known + sorted(met - {*known})


def _classes(report: Report) -> Iterator[Line]:
    counts = report.tale.summary.classes
    most = max(counts.values(), default=0)
    for class_, colour in colours(_labels(report)).items():
        if count := counts[class_]:
            bar = bar_chart(count / most, colour, f"{class_}: {_files(count)}")
            kinds = report.tale.kinds.most_common() if class_ == OTHER else []
            yield Line(class_, f"{count:,}", bar, _some([f"{shown(kind, 32)} {n:,}" for kind, n in kinds]))


def _some(names: Sequence[str]) -> str:
    more = len(names) - NAMED
    return ", ".join(names[:NAMED]) + (f" and {more:,} more" if more > 0 else "")


def _times(report: Report) -> Iterator[Line]:
    stages = report.told.summary.stages if report.told.summary else {}
    most = max(stages.values(), default=0)
    for name, spent in stages.items():
        bar = bar_chart(spent / most if most else 0, "var(--accent)", f"{name}: {spent:.2f} s")
        yield Line(name, seconds(spent), bar)


@dataclass(frozen=True, slots=True)
class Square:
    """A cell of the table: how many series and files, and ``same``, ``differs`` or nothing for its class."""

    series: str
    files: str
    kind: str


def _table(report: Report) -> tuple[list[str], list[tuple[str, list[Square]]]]:
    """Header classes (rows) against pixel classes (columns): the columns' names, and each row's name and cells."""
    cells = report.tale.cells
    across, down = ([c for c in (*_labels(report), "") if any(pair[side] == c for pair in cells)] for side in (1, 0))
    rows = [(head, [_square(head, seen, cells.get((head, seen))) for seen in across]) for head in down]
    return [seen or "not seen" for seen in across], [(head or "no class", squares) for head, squares in rows]


def _square(head: str, seen: str, cell: Cell | None) -> Square:
    kind = "same" if head and head == seen else "differs" if head and seen else ""
    if cell is None:
        return Square("", "", kind if kind == "same" else "")
    return Square(f"{cell.count:,}", _files(cell.files), kind)


def _remarks(report: Report) -> Iterator[str]:
    tale, counts = report.tale, report.tale.summary.statuses
    if duplicates := counts[Status.DUPLICATE]:
        verb = "is a duplicate" if duplicates == 1 else "are duplicates"
        yield f"{_files(duplicates)} {verb} of what the outbox holds; nothing was placed twice."
    if settling := counts[Status.SETTLING]:
        yield f"{_files(settling)} of series that changed just before the run were left for the next one."
    if tale.ignored:
        yield f"Left as no images: {_some([f'{reason} {count:,}' for reason, count in tale.ignored.most_common()])}."
    if tale.summary.archives:
        more = tale.summary.archives_found - min(NAMED, len(tale.summary.archives))
        names = ", ".join(shown(name, 120) for name in tale.summary.archives[:NAMED])
        yield f"Archives, left unopened: {names}{f' and {more:,} more' if more else ''}."
    for note in report.told.summary.notes if report.told.summary else ():
        yield shown(_without_folders(note, report.told))


def _without_folders(note: str, told: ReportedRun) -> str:
    """A note without the folders of this machine, which may be named after somebody."""
    for folder, name in ((told.outbox, "OUTBOX"), (str(told.head.get("inbox", "")), "INBOX")):
        note = note.replace(word(folder), name).replace(folder, name) if folder else note
    return re.sub(r"(?<![\w.])/[^\s`]+", "…", note)


@dataclass(frozen=True, slots=True)
class ModelRow:
    """What the model sees in the frames that are shown: a line a class, a remark on the distance, or why nothing."""

    lines: Sequence[Line]
    remark: str
    problem: str


def _model_rows(each: Subject, bundle: Bundle) -> ModelRow:
    vote = each.vote()
    marks = (Mark(bundle.decide, "decide"), Mark(bundle.contradict, "contradict"))
    lines = []
    for (label, colour), share in zip(colours(bundle.labels).items(), vote.probabilities, strict=False):
        kind = "first" if share == max(vote.probabilities) else ""
        bar = bar_chart(share, colour, f"{label}: probability {share:.3f}", marks)
        lines.append(Line(label, f"{share:.2f}", bar, kind=kind))
    first = bundle.labels[vote.probabilities.index(max(vote.probabilities))] if vote.probabilities else ""
    strange = is_out_of_distribution(first, vote.distance, bundle.distance)
    return ModelRow(lines, "Unlike all that the model knows" if strange else "", shown(vote.problem, 120))


def _listed(each: Subject) -> list[str]:
    """The cells of an item without pictures, in the order of ``_COLUMNS``."""
    row = each.row
    return [
        each.source, each.heading, shown(row.header_class, 32), f"{shown(row.pixel_class, 32)} {row.pixel_confidence}",
        f"{len(each.item.files):,}", "; ".join(each.whereabouts()),
    ]  # fmt: skip


def _anchor(reason: str) -> str:
    return "reason-" + re.sub(r"[^a-z0-9]+", "-", reason.lower())
