"""One round of the service: what was cut short, then what is new."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace

from dicomsort.engine import Engine
from dicomsort.errors import DicomsortError
from dicomsort.records import Row
from dicomsort.report import Summary
from dicomsort.service.seen import Scan, Seen
from dicomsort.sorting import (
    Request,
    RunContext,
    look_at_runs,
    newest_run,
    resume,
    sort_news,
    still_unfinished,
    walk_inbox,
)


@dataclass
class Round:
    """What a round came to: the runs that it finished, what lay in the inbox; filled as it goes on."""

    summaries: list[Summary] = field(default_factory=list)
    scan: Scan | None = None  # at its end
    runs: list[str] = field(default_factory=list)  # that placed something, somebody else's too
    cut_short: str = ""  # an unfinished run of another inbox, which is left to a person, where it is met first
    damaged: list[str] = field(default_factory=list)  # of runs that cannot be read and may be unfinished, met first
    left: list[str] = field(default_factory=list)  # such runs, for as long as they are there


class Rounds:
    """Looks into one inbox again and again; every round is a run of ``sorting`` of its own, or none."""

    def __init__(
        self,
        request: Request,
        context: RunContext,
        settle_ns: int,
        again_ns: int,
        open_engine: Callable[[], AbstractContextManager[Engine]],
        clock: Callable[[], int],
    ) -> None:
        """``clock`` tells nanoseconds since 1970 and never goes back; the engine is opened where there is work.

        A study settles ``settle_ns`` after the last of its files' times, and ``again_ns`` after the last was met.
        """
        self._request = replace(request, clock=replace(request.clock, now_ns=clock))
        self._context = context
        self._settle_ns = settle_ns
        self._open_engine = open_engine
        self._clock = clock
        self._seen = Seen(settle_ns, again_ns, clock)
        self._settled: str | None = None  # no run up to this one is unfinished, or it is of another inbox
        self._left: list[str] = []  # runs that only a person can end
        self._inbox = os.stat(request.inbox)

    def go(self, round_: Round, on_row: Callable[[Row], None]) -> None:
        """Do one round; ``on_row`` is given each final row.

        OutboxLocked where somebody else holds the outbox; DicomsortError, OSError and others where the round failed.
        """
        context = replace(self._context, on_row=on_row)
        self._check_inbox()
        self._resume(round_, context)
        round_.scan = self._scan()
        if not round_.scan.ripe:
            return
        before = self._clock() - self._settle_ns if self._settle_ns else None
        request = replace(self._request, judge=replace(self._request.judge, settled_before_ns=before))
        with self._open_engine() as engine:
            summary = sort_news(request, context, engine, self._seen)
        self._seen.end_round()
        if summary is not None:
            self._settled = summary.run_id
            round_.summaries.append(summary)
            round_.runs.append(summary.run_id)
        round_.scan = self._scan()

    def _scan(self) -> Scan:
        return self._seen.scan(walk_inbox(self._request.inbox, self._context.outbox, self._clock))

    def _check_inbox(self) -> None:
        """An inbox that is not mounted is missing, or an empty folder that is not the one of before."""
        inbox = self._request.inbox
        if not os.path.isdir(inbox):
            raise DicomsortError(f"INBOX: expected the folder {inbox!r}, received nothing there; is it mounted?")
        now = os.stat(inbox)
        if os.path.samestat(now, self._inbox):
            return
        with os.scandir(inbox) as entries:
            if next(entries, None) is None:
                raise DicomsortError(
                    f"INBOX: expected the folder {inbox!r} of before, received another, empty one; is it mounted?"
                )
        self._inbox = now

    def _resume(self, round_: Round, context: RunContext) -> None:
        """Go on with runs that were cut short, wherever runs came that this service did not make."""
        self._left = round_.left = still_unfinished(context.outbox, self._left)  # one list, which may grow below
        since = self._settled or ""
        if newest_run(context.outbox, since) == self._settled:
            return
        standing = look_at_runs(context, self._request.inbox, since)
        while standing.cut_short:
            round_.summaries.append(resume(context, standing.cut_short))
            standing = look_at_runs(context, self._request.inbox, since)
        if self._settled is not None and standing.is_ours:
            self._seen.forget()
        round_.runs += standing.sorted
        self._settled, round_.cut_short = standing.newest, standing.of_another
        round_.damaged = [*standing.damaged.values()]
        self._left += [*standing.damaged, *filter(None, [standing.of_another])]
