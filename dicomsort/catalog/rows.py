"""Records as cells of the spool, and back."""

from __future__ import annotations

import os
import re
from dataclasses import fields
from operator import attrgetter
from typing import Any, Final

from dicomsort.jsonlines import dump, number_cell, parse
from dicomsort.records import (
    DecidedBy,
    Examined,
    Found,
    Group,
    Grouping,
    Header,
    Kind,
    Look,
    Placement,
    Status,
    Verdict,
    Vote,
)

_HEADER_CELLS: Final = attrgetter(*(f.name for f in fields(Header)))
_FOUND_CELLS: Final = attrgetter(*(f.name for f in fields(Found)))
_LOOK_CELLS: Final = attrgetter(*(f.name for f in fields(Look)))
_VOTE_CELLS: Final = attrgetter(*(f.name for f in fields(Vote)))
_VERDICT_CELLS: Final = attrgetter(*(f.name for f in fields(Verdict)))
_NUMBER: Final = re.compile(r"[+-]?\d{1,12}")
_SIGN: Final = 1 << 63  # SQLite's integers end at 63 bits; inode and device numbers may not


def file_cells(ordinal: int, group: int, e: Examined, frames: int, *, has_uids: bool) -> tuple[Any, ...]:
    """A row of ``files``."""
    path, size, mtime, device, inode, mode, ctime, met = _FOUND_CELLS(e.found)
    number = e.header.instance_number
    instance = int(number) if _NUMBER.fullmatch(number) else 0
    times = (number_cell(mtime), number_cell(ctime), met)
    sop = e.header.sop_uid if has_uids else ""
    header = dump(_HEADER_CELLS(e.header))
    facts = (os.fsencode(path), size, _signed(device), _signed(inode), mode, *times)
    return (ordinal, *facts, header, e.sha256, e.failed, group, sop, instance, frames)


def examined(cells: list[Any]) -> Examined:
    """The inverse, from path to ``failed``."""
    *facts, header, sha256, failed = cells
    kind, *rest = parse(header)
    return Examined(found(facts), Header(Kind(kind), *rest), sha256, failed)


def found(cells: list[Any]) -> Found:
    """A file as the walk met it."""
    path, size, device, inode, mode, mtime, ctime, met = cells
    numbers = (device % (2 * _SIGN), inode % (2 * _SIGN), mode, int(ctime), met)
    return Found(os.fsdecode(path), size, int(mtime), *numbers)


def _signed(number: int) -> int:
    return number - 2 * _SIGN if number >= _SIGN else number


def group(row: tuple[Any, ...]) -> Group:
    """A group from its number, study, series, evidence, members, newest and the sample's cells."""
    number, study, series, evidence, members, newest, *sample = row
    return Group(number, Grouping(study, os.fsdecode(series), evidence), members, newest, examined(sample))


def placement_cells(p: Placement) -> tuple[Any, ...]:
    """A row of ``placements``."""
    return (p.study, p.series, p.sop, p.class_, p.status, p.reason, os.fsencode(p.destination), p.sha256)


def placement(row: tuple[Any, ...]) -> Placement:
    """The inverse."""
    study, series, sop, class_, status, reason, destination, sha256 = row
    return Placement(study, series, sop, class_, status, reason, os.fsdecode(destination), sha256)


def look_cell(look: Look) -> bytes:
    """What the model saw in a frame."""
    return dump(_LOOK_CELLS(look))


def look(cell: bytes) -> Look:
    """The inverse."""
    probabilities, *rest = parse(cell)
    return Look(tuple(probabilities), *rest)


def vote_cell(vote: Vote) -> bytes:
    """The model's vote on a group."""
    return dump(_VOTE_CELLS(vote))


def vote(cell: bytes | None) -> Vote:
    """The inverse; an empty vote where there is none."""
    if cell is None:
        return Vote()
    probabilities, *rest = parse(cell)
    return Vote(tuple(probabilities), *rest)


def verdict_cell(verdict: Verdict) -> bytes:
    """The verdict on a group."""
    return dump(_VERDICT_CELLS(verdict))


def verdict(cell: bytes) -> Verdict:
    """The inverse."""
    status, folder, class_, reason, decided_by, *rest = parse(cell)
    return Verdict(Status(status), folder, class_, reason, DecidedBy(decided_by), *rest)
