"""From verdicts and decisions to operations: what becomes of each file, duplicates among them.

The planner changes nothing. Every file gets exactly one operation. No two operations get the same target, not even
where only case or Unicode form differ. Every target is proven to lie below the outbox.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import chain

from dicomsort.files import fold
from dicomsort.plan.layout import Layout, NameLookup, PlanContext, parents, prove_inside, unreserved, with_suffix
from dicomsort.records import (
    ARCHIVE,
    ARCHIVES,
    OPENED,
    OTHER,
    REVIEW,
    REVIEWED,
    Action,
    DecidedBy,
    Examined,
    Grouping,
    Operation,
    Row,
    Status,
    Verb,
    Verdict,
)

COLLISION = "uid-collision"
_ARCHIVES = "archives"  # the queue of what becomes of them
_NO_NAME = "every name it could get is taken by other files, or too long"
_CODE = re.compile(r"[A-Z0-9_ ]{0,16}")  # a Code String (PS3.5 6.2); what is typed there instead may be a name
_ACTIONS = {Verb.COPY: Action.COPIED, Verb.MOVE: Action.MOVED, Verb.LINK: Action.LINKED}


@dataclass(frozen=True, slots=True)
class Options:
    """How to place: COPY, MOVE or LINK; the layout; whether proven duplicates and emptied folders are removed.

    ``outbox`` is the absolute path of the outbox, below which archives were unpacked.
    """

    verb: Verb
    layout: Layout
    remove_duplicates: bool = False
    prune_empty: bool = False
    outbox: str = ""


def plan(
    files: Iterable[tuple[Examined, Grouping, Verdict]],
    folders: Callable[[], Iterable[tuple[str, int, int]]],
    options: Options,
    context: PlanContext,
) -> Generator[Operation]:
    """Yield the operations, numbered from 0: files in path order, archives, duplicates to remove, folders to prune.

    ``files`` holds each archive that was opened before its members. ``folders`` yields path, mode and mtime (ns) of the
    inbox's folders, each after those within it.
    """
    planner = _Planner(options, context)
    emptied: set[str] = set()
    number = 0

    def empties(operation: Operation) -> None:
        if options.prune_empty and operation.verb in {Verb.MOVE, Verb.REMOVE} and not operation.archive_sha256:
            emptied.update(parents(operation.source.removeprefix("inbox/")))

    for e, grouping, verdict in files:
        operation = planner.operation(number, e, grouping, verdict)
        if operation is None:
            continue
        empties(operation)
        if operation.verb is Verb.REMOVE:
            context.defer(operation)
            continue
        yield operation
        number += 1
    planner.end_archive()
    for operation in context.deferred(_ARCHIVES):
        empties(operation)
        yield replace(operation, number=number)
        number += 1
    pruned = (_prune("inbox", *folder) for folder in folders() if folder[0] in emptied) if emptied else ()
    for operation in chain(context.deferred(), pruned):
        yield replace(operation, number=number)
        number += 1


def _prune(root: str, path: str, mode: int, mtime_ns: int) -> Operation:
    return Operation(0, Verb.REMOVE_FOLDER, f"{root}/{path}", mode=mode, mtime_ns=mtime_ns)


@dataclass(slots=True)
class _Opened:
    """An archive that was opened, and whether its members so far were placed, or wait."""

    examined: Examined
    verdict: Verdict
    is_placed: bool = True
    settles: bool = False

    def add(self, operation: Operation) -> None:
        """Take a member into account; what is no image need not be placed, but a further archive may hold some."""
        status, reason = (operation.row.status, operation.row.reason) if operation.row else ("", "")
        is_needless = status == Status.DUPLICATE or (status == Status.IGNORED and reason != ARCHIVE)
        self.is_placed &= operation.verb is not Verb.LEAVE or is_needless
        self.settles |= status == Status.SETTLING


class _Planner:
    def __init__(self, options: Options, context: PlanContext) -> None:
        self._options = options
        self._context = context
        self._number = 0  # of the operation at hand
        self._by_instance = options.layout.by_instance
        self._archive: _Opened | None = None

    def operation(self, number: int, e: Examined, grouping: Grouping, verdict: Verdict) -> Operation | None:
        """Return what becomes of a file; None of an archive that was opened, which follows its members."""
        self._number = number
        if self._archive is not None and e.found.archive == self._archive.examined.found.path:
            operation = self._of_file(e, grouping, verdict)
            self._archive.add(operation)
            return operation
        self.end_archive()
        if e.header.ignored == ARCHIVE and e.header.message.startswith(OPENED):
            self._archive = _Opened(e, verdict)
            return None
        return self._of_file(e, grouping, verdict)

    def end_archive(self) -> None:
        """Plan what becomes of the archive whose members came last, if any."""
        if opened := self._archive:
            self._archive = None
            self._context.defer(self._of_archive(opened), _ARCHIVES)

    def _of_archive(self, opened: _Opened) -> Operation:
        """An archive moves where all of it that is an image was placed."""
        e, verdict = opened.examined, opened.verdict
        if opened.settles:
            return self._leave(e, replace(verdict, status=Status.SETTLING, reason=Status.SETTLING))
        if self._options.verb is not Verb.MOVE or verdict.status is Status.SETTLING:
            return self._leave(e, verdict)
        if not opened.is_placed:
            return self._leave(e, replace(verdict, note="it stays, as not everything in it was placed"))
        destination, same = self._destination(e, replace(verdict, folder=ARCHIVES), with_uids=False)
        if same is not None:
            return self._leave(e, replace(verdict, note=f"it stays, as {destination} holds it, or {_NO_NAME}"))
        return self._place(e, verdict, destination)

    def _of_file(self, e: Examined, grouping: Grouping, verdict: Verdict) -> Operation:
        if not verdict.folder:
            return self._leave(e, verdict)
        with_uids = bool(grouping.study) and verdict.status is not Status.UNREADABLE
        if with_uids:
            if known := self._known(e, e):
                return self._duplicate(e, verdict, known)
            if other := self._known(e, None):
                verdict = _collision(verdict, other)
        destination, same = self._destination(e, verdict, with_uids=with_uids)
        if same is False:
            verdict = _collision(verdict, destination)
            destination, same = self._destination(e, verdict, with_uids=with_uids)
        if same is False:
            return self._leave(e, replace(verdict, status=Status.CONFLICT, note=_NO_NAME))
        if with_uids and self._context.is_repeated(e.header.sop_uid):
            self._context.give(e.header.sop_uid, e.sha256, destination)
        if same:
            return self._duplicate(e, verdict, destination)
        return self._place(e, verdict, destination)

    def _known(self, e: Examined, content: Examined | None) -> str | None:
        """Return where a file with this SOP Instance UID lies or will lie, of this content or (None) of any."""
        sop = e.header.sop_uid
        sha256 = content.sha256 if content else None
        return self._context.given(sop, sha256) or self._context.placed_instance(sop, content)

    def _destination(self, e: Examined, verdict: Verdict, *, with_uids: bool) -> tuple[str, bool | None]:
        """Return a name and what is there: nothing (None), the same content (True); False where no name is free."""
        top = verdict.folder.partition("/")[0]
        sorted_ = verdict.status is Status.SORTED and top != REVIEW
        layout = self._options.layout
        path = layout.path(verdict.folder, e, with_uids=with_uids) if sorted_ else f"{verdict.folder}/{e.found.path}"
        path = unreserved(path)
        by_instance = sorted_ and with_uids and self._by_instance
        for name in _candidates(self._context, path, "" if by_instance else e.sha256):
            prove_inside(name)
            same = self._context.holds(name, e)
            if same is not False and self._context.claim(fold(name)):
                return name, same
        return path, False

    def _place(self, e: Examined, verdict: Verdict, destination: str) -> Operation:
        verb, found, kept, archive_sha256 = self._options.verb, e.found, "", ""
        source, action = f"inbox/{found.path}", _ACTIONS[verb]
        if archive := self._archive:  # a member moves out of the folder that the archive was unpacked to
            verb, action = Verb.MOVE, Action.COPIED
            source = f"outbox{found.unpacked.removeprefix(self._options.outbox)}"
            kept, archive_sha256 = f"inbox/{found.archive}", archive.examined.sha256
        return Operation(
            self._number, verb, source, f"outbox/{destination}", kept, found.size, found.mtime_ns, found.device,
            found.inode, found.mode, e.sha256, row=row_of(e, verdict, destination, action),
            archive_sha256=archive_sha256,
        )  # fmt: skip

    def _duplicate(self, e: Examined, verdict: Verdict, destination: str) -> Operation:
        verdict = replace(verdict, status=Status.DUPLICATE)
        if self._archive:  # which is whole only if what the member equals is there
            left = self._leave(e, verdict, destination)
            return replace(left, kept=left.source, archive_sha256=self._archive.examined.sha256)
        if not self._options.remove_duplicates:
            return self._leave(e, verdict, destination)
        placed = self._place(e, verdict, destination)
        row = row_of(e, verdict, destination, Action.REMOVED)
        return replace(placed, verb=Verb.REMOVE, target="", kept=placed.target, row=row)

    def _leave(self, e: Examined, verdict: Verdict, destination: str = "") -> Operation:
        row = row_of(e, verdict, destination, Action.LEFT)
        source = f"inbox/{e.found.archive or e.found.path}"  # a member's name may be no path
        return Operation(self._number, Verb.LEAVE, source, size=e.found.size, sha256=e.sha256, row=row)


def _candidates(names: NameLookup, path: str, sha256: str) -> Iterator[str]:
    """Yield the names that a file may get, the best first: with a suffix only where a SHA-256 is given."""
    yield path
    if sha256:
        yield with_suffix(path, sha256)
    apart = names.passable(path)
    if apart != path:
        yield from (apart, *([with_suffix(apart, sha256)] if sha256 else []))


def _collision(verdict: Verdict, other: str) -> Verdict:
    return replace(
        verdict, status=Status.CONFLICT, folder=f"{REVIEW}/{COLLISION}", reason=COLLISION, decided_by=DecidedBy.NONE,
        note=f"{other} has the same SOP Instance UID and other content",
    )  # fmt: skip


def row_of(e: Examined, verdict: Verdict, destination: str, action: Action) -> Row:
    """Return the manifest's row of a file, as it will be if the operation succeeds."""
    h = e.header
    modality, odd = (h.modality, "") if _CODE.fullmatch(h.modality) else ("", "Modality (0008,0060) is no code")
    date = "time in the future" if e.found.met_ns else ""
    message = "; ".join(part for part in (e.failed, h.message, verdict.note, odd, date) if part)
    return Row(
        e.found.path, destination, action, verdict.status, verdict.class_, verdict.reason, verdict.decided_by,
        _number(verdict.confidence), verdict.header_class, verdict.pixel_class, _number(verdict.pixel_confidence),
        modality, h.sop_class_uid, h.study_uid, h.series_uid, h.sop_uid, h.kind, e.found.size, e.sha256, message,
    )  # fmt: skip


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


@dataclass(frozen=True, slots=True)
class Decided:
    """A file in review about which a person decided.

    ``examined`` is the file as it lies below the outbox now, ``row`` the manifest's row that sent it to review,
    ``folder`` where it belongs (a class, or OTHER/<KIND>); ``with_uids``: whether it has valid UIDs; ``layout`` is that
    of the run that placed it. ``message`` is for its row.
    """

    examined: Examined
    row: Row
    folder: str
    with_uids: bool
    layout: Layout
    message: str


def decide(
    files: Iterable[Decided], folders: Callable[[set[str]], Iterable[tuple[str, int, int]]], names: NameLookup
) -> Iterator[Operation]:
    """Yield the operations, numbered from 0: moves, then files that equal what lies there, then emptied folders.

    ``folders`` yields path, mode and mtime (ns) of those folders of the outbox that may be empty then, each after those
    within it. A file that shares its SOP Instance UID with another is placed beside it: the person's decision counts.
    """
    moves: list[Operation] = []
    removals: list[Operation] = []
    left: set[str] = set()
    for file in files:
        operation = _operation(file, names)
        (removals if operation.verb is Verb.REMOVE else moves).append(operation)
        left.update(parents(file.examined.found.path))
    pruned = [_prune("outbox", *folder) for folder in folders(left)]
    for number, operation in enumerate([*moves, *removals, *pruned]):
        yield replace(operation, number=number)


def _operation(file: Decided, names: NameLookup) -> Operation:
    e, found = file.examined, file.examined.found
    class_ = file.folder.partition("/")[0]
    if class_ == OTHER:
        path = f"{file.folder}/{file.row.source}"
    else:
        in_inbox = replace(e, found=replace(found, path=file.row.source))
        path = file.layout.path(file.folder, in_inbox, with_uids=file.with_uids)
    row = replace(
        file.row, status=Status.OTHER if class_ == OTHER else Status.SORTED, class_=class_, reason=REVIEWED,
        decided_by=DecidedBy.REVIEWER, confidence="", message=file.message,
    )  # fmt: skip
    moved = Operation(
        0, Verb.MOVE, f"outbox/{found.path}", "", "", found.size, found.mtime_ns, found.device, found.inode,
        found.mode, e.sha256,
    )  # fmt: skip
    for name in _candidates(names, unreserved(path), e.sha256):
        prove_inside(name)
        same = names.holds(name, e)
        if same:
            row = replace(row, destination=name, action=Action.REMOVED, status=Status.DUPLICATE)
            return replace(moved, verb=Verb.REMOVE, kept=f"outbox/{name}", row=row)
        if same is None and names.claim(fold(name)):
            return replace(moved, target=f"outbox/{name}", row=replace(row, destination=name, action=Action.MOVED))
    row = replace(file.row, action=Action.LEFT, destination="", message=_NO_NAME)
    return replace(moved, verb=Verb.LEAVE, row=row)
