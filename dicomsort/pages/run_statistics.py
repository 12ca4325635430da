"""What a run's rows add up to: counts, header against pixels, what needs a person, a few files of each class."""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from dicomsort.records import Row, Status
from dicomsort.report import Summary, needs_person
from dicomsort.report.manifest_reader import RunRow
from dicomsort.report.review_queue import Item, grouped

MAX_ROWS = 50_000  # rows of what needs a person that are kept; more are counted only
SAMPLES = 6  # files of a class that are shown
_URGENCY = (Status.REVIEW, Status.CONFLICT, Status.CHANGED, Status.FAILED, Status.UNREADABLE)


@dataclass(slots=True)
class Cell:
    """How many files a header class and a pixel class have in common, and of how many series."""

    files: int = 0
    single: int = 0  # files that are of no series
    series: set[int] = field(default_factory=set)

    @property
    def count(self) -> int:
        """Series, each file without one counted as one."""
        return len(self.series) + self.single


@dataclass(slots=True)
class RunStatistics:
    """What the rows of a run add up to; grows with what needs a person and with the number of series."""

    summary: Summary
    cells: dict[tuple[str, str], Cell] = field(default_factory=dict)  # (header class, pixel class), "": none
    kinds: Counter[str] = field(default_factory=Counter)  # of OTHER, by folder
    ignored: Counter[str] = field(default_factory=Counter)  # by reason
    held: list[RunRow] = field(default_factory=list)
    _samples: dict[str, dict[int, Row]] = field(default_factory=dict)  # by class, then by the series' checksum

    @classmethod
    def of(cls, run: str, rows: Iterable[Row]) -> RunStatistics:
        """Count the rows of a run."""
        statistics = cls(Summary(run))
        for row in rows:
            statistics._add(row)
        return statistics

    @property
    def needing(self) -> int:
        """Files that need a person, or did."""
        return sum(self.summary.held.values())

    def by_reason(self) -> dict[str, list[Item]]:
        """What needs a person, as items, by reason: what is to be decided first, and of that what there is most of."""
        reasons: dict[str, list[Item]] = {reason: [] for reason, _ in self.summary.held.most_common()}
        placed = [each for each in self.held if each.row.destination or each.row.series_uid]
        alone = [grouped([each])[0] for each in self.held if not (each.row.destination or each.row.series_uid)]
        for item in grouped(placed) + alone:
            reasons[item.row.reason].append(item)
        return dict(sorted(reasons.items(), key=lambda pair: _URGENCY.index(pair[1][0].row.status) if pair[1] else 9))

    def samples(self) -> dict[str, list[Row]]:
        """A few files of each class, of different series where there are as many; the same ones each time."""
        return {
            class_: [rows[checksum] for checksum in sorted(rows, reverse=True)]
            for class_, rows in sorted(self._samples.items())
        }

    def _add(self, row: Row) -> None:
        self.summary.count(row)
        if row.header_class or row.pixel_class:
            cell = self.cells.setdefault((row.header_class, row.pixel_class), Cell())
            cell.files += 1
            if row.series_uid:
                cell.series.add(hash(row.series_uid))
            else:
                cell.single += 1
        if row.status == Status.OTHER:
            self.kinds[row.destination.partition("/")[2].partition("/")[0]] += 1
        elif row.status == Status.IGNORED:
            self.ignored[row.reason] += 1
        if needs_person(row):
            if len(self.held) < MAX_ROWS:
                self.held.append(RunRow(self.summary.run_id, row))
        elif row.status in {Status.SORTED, Status.OTHER} and row.destination:
            self._sample(row)

    def _sample(self, row: Row) -> None:
        """Keep the files whose series have the smallest checksums: a choice that looks random but is repeatable."""
        series = row.series_uid or row.source
        rows = self._samples.setdefault(row.class_, {})
        rows.setdefault(zlib.crc32(series.encode(errors="surrogateescape")), row)
        if len(rows) > SAMPLES:
            del rows[max(rows)]


def allotted(wanted: list[int], room: int) -> list[int]:
    """How many of ``room`` places each gets who wants so many: nobody more than that, and all as alike as can be."""
    given = [0] * len(wanted)
    for left, place in zip(range(len(wanted), 0, -1), sorted(range(len(wanted)), key=wanted.__getitem__), strict=True):
        given[place] = min(wanted[place], room // left)
        room -= given[place]
    return given
