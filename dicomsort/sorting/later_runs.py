"""What runs did that are later than one, or ended later: an undo and a resume must not take that away."""

from __future__ import annotations

import os
import stat
from array import array
from bisect import bisect_left
from collections.abc import Callable, Container, Hashable, Iterable, Iterator
from contextlib import suppress
from functools import cached_property

from dicomsort.errors import DicomsortError, StateDamaged
from dicomsort.execute import Roots
from dicomsort.files import fold, look_up, sha256_of
from dicomsort.journal import Plan, Replay, run_folder
from dicomsort.records import Action, Found, Operation, Outcome, Verb
from dicomsort.report import MANIFEST, Damages, read_rows, visible
from dicomsort.report.manifest import PLACED, rows_of, since
from dicomsort.report.manifest_reader import decided_from
from dicomsort.sorting.outbox import REVIEW_VERB, mounts_below
from dicomsort.sorting.runs import UNDONE_BY, Run, Runs, journal_of, read_all

# What became of a place: filled; filled by a run that may be earlier; needed, with the SHA-256 of what is needed. Or
# the SHA-256 of what a decision took from there.
_FILLED, _MAYBE, _NEEDED = "filled", "maybe filled", "needed "
_Use = tuple[str, str]  # a place, and what became of it
PLACING = frozenset({Verb.MOVE, Verb.COPY, Verb.LINK, Verb.REMOVE})


class LaterRuns:
    """The ``UndoContext`` of a run; later runs are read only when needed."""

    def __init__(self, runs: Runs, name: str, inbox: str) -> None:
        """``runs`` are all of the outbox; ``inbox`` is that of the run ``name``.

        ``notes`` gets a sentence for a person where a damaged manifest keeps files from being recognised.
        """
        self.roots, self.notes = Roots(inbox, runs.outbox), list[str]()
        self._name, self._runs = name, runs

    def look_up(self, place: str) -> Found | None:
        """What lies at a place now."""
        return look_for(self.roots.absolute(place))

    def is_same(self, place: str, sha256: str) -> bool:
        """Whether the file has this content, and no run whose plan is gone, or that was resumed late, placed it."""
        try:
            is_same = sha256_of(self.roots.absolute(place)) == sha256
        except OSError:  # what cannot be read is not believed
            return False
        placed, damage = self._placed_by_pruned
        if is_same and damage:
            self.notes[:] = [
                f"{damage}; only then does an undo take back files of a new time or inode, as from a backup"
            ]
        is_theirs = self._run_of(placed, place, _FILLED) or self._run_of(self._used, place, _MAYBE)
        return is_same and not damage and not is_theirs

    def filled_by(self, place: str) -> str:
        """The later run that placed a file there; else ""."""
        return self._run_of(self._used, place, _FILLED)

    def needed_by(self, place: str, sha256: str) -> str:
        """The later run that removed a duplicate of the file there, and has not restored it; else ""."""
        return self._run_of(self._used, place, _NEEDED + sha256)

    def moved_by(self, place: str, sha256: str) -> str:
        """The decision that took a file of this content from there, and did not put it back; else ""."""
        decided = self._decided.get((place.removeprefix("outbox/"), sha256), "")
        return self._run_of(self._used, place, sha256) or decided

    def unmounted(self, place: str) -> str:
        """The mount point above a place where nothing is mounted any more since the run began; else ""."""
        return next((mount for mount in self._unmounted if f"{place}/".startswith(f"{mount}/")), "")

    def is_back(self, operation: Operation) -> bool:
        """Whether an earlier undo of the run took back what it placed: what lies there by now is not the run's."""
        return operation.target in self._back

    def hides(self, operation: Operation) -> bool:
        """Whether an operation's target may be there, in a file system that is not mounted now."""
        return bool(self.unmounted(operation.target)) and self.look_up(operation.target) is None

    @cached_property
    def mounts(self) -> list[str]:
        """The places below inbox and outbox where a file system is mounted now."""
        return mounts_below(self.roots.inbox, self.roots.outbox)

    @cached_property
    def _unmounted(self) -> list[str]:
        plan = self._runs[self._name].plan
        before = plan.head.get("mounts", []) if plan else []  # which older versions did not note
        return sorted({*before}.difference(self.mounts)) if before else []

    @cached_property
    def _back(self) -> set[str]:
        return self._taken_back(self._name)

    @cached_property
    def _used(self) -> _Places:
        return _Places(self._later_uses())

    def _later_uses(self) -> Iterator[tuple[_Use, str]]:
        """Yield what later runs did or may do: a place with what became of it, the run.

        An earlier run may have been resumed later: what it placed or needs counts, too.
        """
        undone, begun_ns = self._undone(), self._runs.begun_ns(self._name)
        for name, run in self._runs.items():
            if name in undone or run.undoes or name == self._name:
                continue
            is_later = name > self._name
            if is_later or self._runs.ended_ns(name) > begun_ns:
                for place, what in _uses(self._runs, run, self._taken_back):
                    yield (place, _MAYBE if what == _FILLED and not is_later else what), name

    def _run_of(self, places: _Places, place: str, what: str) -> str:
        """Return the run that used a place, by this name or one that the file system takes for it; else ""."""
        if run := places.run_of((place, what)):
            return run
        run = places.run_of(_folded((place, what)))
        return run if run and self._has_other_names(place) else ""

    def _has_other_names(self, place: str) -> bool:
        """Whether the file system shows what lies there under a name of another case, too: its own, or a folder's."""
        root, *names = place.split("/")
        others = (
            "/".join((root, *names[:i], other, *names[i + 1 :]))
            for i, name in enumerate(names)
            for other in {name.swapcase(), name.lower(), name.upper()} - {name}
        )
        return any(_is_one(self.roots.absolute(place), self.roots.absolute(other)) for other in others)

    def _undone(self) -> set[str]:
        return self._runs.wholly_undone()

    def _taken_back(self, name: str) -> set[str]:
        return _taken_back(self._runs, name)

    @cached_property
    def _decided(self) -> dict[tuple[str, str], str]:
        """The decisions that stand, by the manifest: where each took which content from, and its run.

        It tells of those whose plan is damaged or gone.
        """
        try:
            return {key: found.run for key, found in since(self._runs.outbox, self._name).decided.items()}
        except DicomsortError:  # it is no manifest
            return {}

    @cached_property
    def _placed_by_pruned(self) -> tuple[_Places, str]:
        """Where later runs whose plan is gone placed files, as the manifest says; and a sentence if it is damaged."""
        known = {name for name, run in self._runs.items() if run.plan is not None}
        damages = Damages()
        rows = read_rows(f"{self._runs.outbox}/{MANIFEST}", damages.add)
        try:
            found = (each for each in rows if each.run > self._name and each.run not in known)
            places = ((f"outbox/{each.row.destination}", each.run) for each in found if each.row.action in PLACED)
            placed = _Places(((place, _FILLED), run) for place, run in places)
        except DicomsortError as error:  # it is no manifest: nothing is known of these runs; the undo of others goes on
            return _Places(()), str(error)
        return placed, "".join(damages.notes(self._runs.outbox))


def _is_one(path: str, other: str) -> bool:
    with suppress(OSError):
        there, found = look_up(path), look_up(other)
        return there is not None and found is not None and os.path.samestat(there, found)
    return False


def _uses(runs: Runs, run: Run, taken_back: Callable[[str], set[str]]) -> Iterator[_Use]:
    """Yield what a run did or may do, and no undo took back: a place, and what became of it.

    Where plan or journal are damaged its rows tell; where these may not be all, what it planned counts as done.
    StateDamaged where nothing tells all; of a run that is damaged as a whole, what can be read counts.
    """
    if run.plan is not None:
        with suppress(StateDamaged):
            known = journal_of(run.plan)
            yield from _uses_of(run.plan, known, taken_back(run.name), known.begun)
            return
    elif not run.damage:
        return
    damages, count = Damages(), 0
    with suppress(DicomsortError, OSError):
        for row in rows_of(runs.outbox, run.name, damages.add):
            count += 1
            if row.action in PLACED or row.action == Action.REMOVED:
                yield f"outbox/{row.destination}", _NEEDED + row.sha256 if row.action == Action.REMOVED else _FILLED
                if was := decided_from(row):
                    yield f"outbox/{was}", row.sha256
    if run.summary is not None and count == run.summary.found and not damages.count:
        return
    folder = run_folder(runs.outbox, run.name)
    try:
        if plan := run.plan or Plan.peek(folder):
            yield from _uses_of(plan, Replay.empty(plan.count))
    except (StateDamaged, OSError) as error:
        if run.plan is not None:
            advice = f"put both back from a backup, or look at what it placed and move {visible(folder)} away"
            message = f"{error}; nor can all its rows be read, so what it needs is not known: {advice}"
            raise StateDamaged(message) from error


def _uses_of(
    plan: Plan, known: Replay, back: Container[str] = (), begun: Container[int] | None = None
) -> Iterator[_Use]:
    """Yield the uses of a run; what did not end was done, if it is among ``begun`` where that is known.

    A duplicate is removed only after that ended: none was in a run that was undone since.
    """
    is_over = UNDONE_BY in known.marks
    for o in plan.operations():
        result = known.result(o.number)
        may_be = begun is None or (o.number in begun and not (is_over and o.verb is Verb.REMOVE))
        is_done = result.outcome is Outcome.DONE if result else may_be
        if o.verb not in PLACING or not is_done:
            continue
        is_back = (o.target or o.source) in back
        if o.target:
            yield o.target, _MAYBE if is_back else _FILLED  # a copy of an earlier run may lie there again
        elif not is_back:
            yield o.kept, _NEEDED + o.sha256
        if plan.head["verb"] == REVIEW_VERB and not is_back:
            yield o.source, o.sha256


def _taken_back(runs: Runs, name: str) -> set[str]:
    """Return what undos of a run took back: duplicates by where they lay, files by where they had been placed."""
    places = set[str]()
    for undo in runs.undos_of(name):
        with suppress(DicomsortError):  # what cannot be read counts as not taken back
            plan, known = read_all(run_folder(runs.outbox, undo.name), undo.summary)
            for o in plan.operations():
                result = known.result(o.number)
                if o.verb is Verb.COPY and result and result.is_there:
                    places.add(o.target)
                elif o.verb in {Verb.MOVE, Verb.REMOVE} and result and result.outcome is Outcome.DONE:
                    places.add(o.source)
    return places


class _Places:
    """The runs that used places, from pairs of both, each also by its folded name: 24 bytes a use."""

    def __init__(self, found: Iterable[tuple[_Use, str]]) -> None:
        names: dict[str, int] = {}
        keys, numbers = array("q"), array("i")
        for use, name in found:
            keys.extend((hash(use), hash(_folded(use))))
            numbers.extend([names.setdefault(name, len(names))] * 2)
        order = sorted(range(len(keys)), key=keys.__getitem__)
        self._names = [*names]
        self._keys = array("q", (keys[at] for at in order))
        self._numbers = array("i", (numbers[at] for at in order))

    def run_of(self, use: Hashable) -> str:
        """The run, or ""."""
        at = bisect_left(self._keys, hash(use))
        is_known = at < len(self._keys) and self._keys[at] == hash(use)
        return self._names[self._numbers[at]] if is_known else ""


def _folded(use: _Use) -> Hashable:
    """Return what is equal for names that a file system may take for one, and equals no use by its own name."""
    place, what = use
    return fold(place), what, "folded"


def look_for(path: str) -> Found | None:
    """Return the regular file at an absolute path, or None; one of inode 0 where that cannot be found out."""
    try:
        status = look_up(path)
    except OSError:
        return Found(path, 0, 0, 0, 0)
    if status is None or not stat.S_ISREG(status.st_mode):
        return None
    return Found(path, status.st_size, status.st_mtime_ns, status.st_dev, status.st_ino, stat.S_IMODE(status.st_mode))
