"""Memory that a run holds does not grow with the files of the inbox: what must be kept is spooled."""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Callable

import pytest
from building import STORAGE, uid

from dicomsort.catalog import Catalog
from dicomsort.classify import grouping_of, showable_frames
from dicomsort.plan import Options, parse_layout, plan
from dicomsort.records import Examined, Found, Header, Kind, Row, Status, Verb, Verdict
from dicomsort.report import Summary
from dicomsort.sorting.outbox import OutboxState

FEW, MANY = 2000, 6000
GROWTH = 512 << 10  # bytes; a record of each of the files between would be ten times as much


def spooled(catalog: Catalog, count: int, content: Callable[[int], str]) -> None:
    """Fill the catalog with files two of which have the same SOP Instance UID; ``content`` gives the SHA-256."""
    for number in range(count):
        uids = {"study_uid": uid(1), "series_uid": uid(1, 1), "sop_uid": uid(1, 1, number // 2)}
        header = Header(Kind.DICOM, sop_class_uid=STORAGE["CT"], modality="CT", **uids)
        e = Examined(Found(f"{number:06d}", 1, 1, 1, number + 1), header, content(number))
        catalog.add([(e, grouping_of(e), showable_frames(e))])
    catalog.set_verdict(1, Verdict(Status.SORTED, "CT", "CT", "header"))


def peak_of(task: Callable[[], object]) -> int:
    gc.collect()
    tracemalloc.start()
    task()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return peak


@pytest.mark.parametrize(
    "content", [lambda number: f"{number // 2:064d}", lambda number: f"{number:064d}"], ids=["removed", "collisions"]
)
def test_planning(content: Callable[[int], str]) -> None:
    peaks = []
    for count in (FEW, FEW, MANY):  # the first fills what is filled once
        with Catalog() as catalog:
            spooled(catalog, count, content)
            around = OutboxState(catalog.complete(), None)
            options = Options(Verb.MOVE, parse_layout("uid"), remove_duplicates=True)

            def exhaust(catalog: Catalog = catalog, around: OutboxState = around, options: Options = options) -> None:
                assert sum(1 for _ in plan(catalog.verdicts(), list, options, around)) > FEW // 2

            peaks.append(peak_of(exhaust))
    assert peaks[2] - peaks[1] < GROWTH


def test_a_summary_names_the_first_of_many_archives() -> None:
    summary = Summary()
    for number in range(1200):
        summary.count(Row(f"{number}.zip", reason="archive"))
    assert (len(summary.archives), summary.archives_found) == (1000, 1200)
