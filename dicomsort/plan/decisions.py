"""From a person's decision about what was held to operations: out of REVIEW, to where a sort would have put it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

from dicomsort.plan.layout import Layout, fold, parents, prove_inside, with_suffix
from dicomsort.plan.protocols import NameLookup
from dicomsort.records import OTHER, REVIEWED, Action, DecidedBy, Examined, Operation, Row, Status, Verb


@dataclass(frozen=True, slots=True)
class Decided:
    """A held file about which a person decided.

    ``examined`` is the file as it lies below the outbox now, ``row`` the manifest's of when it was held, ``folder``
    where it belongs (a class, or OTHER/<KIND>); ``with_uids``: whether it has valid UIDs; ``layout`` is that of the run
    that held it. ``message`` is for its row.
    """

    examined: Examined
    row: Row
    folder: str
    with_uids: bool
    layout: Layout
    message: str


def decide(
    files: Iterable[Decided],
    folders: Callable[[set[str]], Iterable[tuple[str, int, int]]],
    names: NameLookup,
) -> Iterator[Operation]:
    """Yield the operations, numbered from 0: moves, then files that equal what lies there, then emptied folders.

    ``folders`` gives path, mode and mtime (ns) of those folders of the outbox that may be empty then, each after those
    within it. A person's word outdoes a name: what shares its SOP Instance UID with another file lies beside that.
    """
    moves: list[Operation] = []
    removals: list[Operation] = []
    left: set[str] = set()
    for file in files:
        operation = _operation(file, names)
        (removals if operation.verb is Verb.REMOVE else moves).append(operation)
        left.update(parents(file.examined.found.path))
    prunings = [
        Operation(0, Verb.REMOVE_FOLDER, f"outbox/{path}", mode=mode, mtime_ns=mtime_ns)
        for path, mode, mtime_ns in folders(left)
    ]
    for number, operation in enumerate([*moves, *removals, *prunings]):
        yield replace(operation, number=number)


def _operation(file: Decided, names: NameLookup) -> Operation:
    e, found = file.examined, file.examined.found
    is_other = file.folder.partition("/")[0] == OTHER
    named = replace(e, found=replace(found, path=file.row.source))  # as the inbox knew it
    path = f"{file.folder}/{file.row.source}"
    if not is_other:
        path = file.layout.path(file.folder, named, with_uids=file.with_uids)
    row = replace(
        file.row, status=Status.OTHER if is_other else Status.SORTED, class_=file.folder.partition("/")[0],
        reason=REVIEWED, decided_by=DecidedBy.REVIEWER, confidence="", message=file.message,
    )  # fmt: skip
    moved = Operation(
        0, Verb.MOVE, f"outbox/{found.path}", "", "", found.size, found.mtime_ns, found.device, found.inode,
        found.mode, e.sha256,
    )  # fmt: skip
    for name in (path, with_suffix(path, e.sha256)):
        prove_inside(name)
        same = names.holds(name, found.size, e.sha256)
        if same:
            row = replace(row, destination=name, action=Action.REMOVED, status=Status.DUPLICATE)
            return replace(moved, verb=Verb.REMOVE, kept=f"outbox/{name}", row=row)
        if same is None and names.claim(fold(name)):
            return replace(moved, target=f"outbox/{name}", row=replace(row, destination=name, action=Action.MOVED))
    message = "every name it could get is taken by other files, or too long"
    kept = replace(file.row, action=Action.LEFT, destination="", message=message)
    return replace(moved, verb=Verb.LEAVE, row=kept)
