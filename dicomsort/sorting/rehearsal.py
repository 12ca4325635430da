"""An undo after the undos of decisions, rehearsed: what would lie where, while nothing on disk is changed."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace

from dicomsort.execute import Placer, Roots
from dicomsort.records import ARCHIVED, Found, Operation, Outcome, Result, Verb
from dicomsort.sorting.later_runs import LaterRuns, look_for
from dicomsort.sorting.runs import Runs

_FOLDERS = frozenset({Verb.MAKE_FOLDER, Verb.REMOVE_FOLDER})


@dataclass
class Rehearsal:
    """What undos of decisions would change: by absolute path, what would lie there, with the path where it lies now."""

    undone: set[str] = field(default_factory=set)  # decisions that would be taken back wholly
    back: dict[str, set[str]] = field(default_factory=dict)  # decision -> the places that its undo would take back
    _moved: dict[str, tuple[Found, str] | None] = field(default_factory=dict)  # with the SHA-256; None: it would go

    def look_for(self, path: str) -> Found | None:
        """Return what would lie at an absolute path; see ``later_runs.look_for``."""
        if path not in self._moved:
            return look_for(path)
        there = self._moved[path]
        return there[0] if there else None

    def sha256_at(self, path: str) -> str:
        """Return the SHA-256 of what would be put at an absolute path; empty where nothing would."""
        there = self._moved.get(path)
        return there[1] if there else ""

    def check(self, placer: Placer, roots: Roots, o: Operation) -> Result | None:
        """Return how an operation would end where that is known before, else None."""
        if o.verb in _FOLDERS:
            return None
        if o.verb is Verb.LEAVE:
            return Result(o.number, Outcome.CHANGED, o.row.message if o.row else "")
        source, target, kept = (roots.absolute(place) if place else "" for place in (o.source, o.target, o.kept))
        if source in self._moved and self._moved[source] is None:
            return Result(o.number, Outcome.CHANGED, "the file is gone")
        if self.sha256_at(target):
            return Result(o.number, Outcome.CONFLICT, "another file would stand at the destination")
        here = replace(o, source=self._place_now(o.source, source, roots), kept=self._place_now(o.kept, kept, roots))
        refused = placer.check(here, fresh=target in self._moved)
        if refused is None and o.source.startswith(ARCHIVED) and (found := self.look_for(source)):
            self._moved[target] = found, o.sha256  # what came out of the archive is removed once it is back
        return refused

    def _place_now(self, place: str, path: str, roots: Roots) -> str:
        """Return the place where what would lie at ``place`` lies now: decisions move files within the outbox."""
        there = self._moved.get(path)
        return f"outbox{there[0].path.removeprefix(roots.outbox)}" if there else place

    def take_back(self, decision: str, roots: Roots, operations: Iterable[Operation], *, is_whole: bool) -> None:
        """Let the operations of a decision's undo that would succeed count as done."""
        for o in operations:
            source, target = roots.absolute(o.source), roots.absolute(o.target) if o.target else ""
            found, places = self.look_for(source), self.back.setdefault(decision, set())
            if o.verb is not Verb.COPY:
                self._moved[source] = None
            if target and found is not None:
                self._moved[target] = found, o.sha256
            places.add(o.target if o.verb is Verb.COPY else o.source)
        if is_whole:
            self.undone.add(decision)

    def later_runs(self, runs: Runs, name: str, inbox: str) -> LaterRuns:
        """Return the later runs of a run, as they would be then."""
        return _Rehearsed(self, runs, name, inbox)


class _Rehearsed(LaterRuns):
    def __init__(self, rehearsal: Rehearsal, runs: Runs, name: str, inbox: str) -> None:
        super().__init__(runs, name, inbox)
        self._rehearsal = rehearsal

    def look_up(self, place: str) -> Found | None:
        return self._rehearsal.look_for(self.roots.absolute(place))

    def is_same(self, place: str, sha256: str) -> bool:
        would_be = self._rehearsal.sha256_at(self.roots.absolute(place))
        return would_be == sha256 if would_be else super().is_same(place, sha256)

    def _undone(self) -> set[str]:
        return super()._undone() | self._rehearsal.undone

    def _taken_back(self, name: str) -> set[str]:
        return super()._taken_back(name) | self._rehearsal.back.get(name, set())


Show = Callable[[Operation, Result | None], None]
