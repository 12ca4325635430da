"""The summary of a run, ``summary.json``, and the final rows that it counts."""

from __future__ import annotations

import json
import os
import traceback
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Any

from dicomsort.errors import DicomsortError, StateDamaged, command, counted
from dicomsort.files import Files, closing_descriptor, look_up, opened_file
from dicomsort.journal import run_folder
from dicomsort.jsonlines import parse
from dicomsort.records import (
    ARCHIVE,
    OPENED,
    OPENED_BEFORE,
    OPENS,
    REVIEW,
    UNREADABLE,
    Action,
    Operation,
    Outcome,
    Result,
    Row,
    Status,
    Verb,
    possible_archives,
)
from dicomsort.report.manifest import PLACED
from dicomsort.report.text import printable, visible

NEEDS_PERSON = frozenset({Status.REVIEW, Status.UNREADABLE, Status.CONFLICT, Status.CHANGED, Status.FAILED})
_TROUBLE = frozenset({Status.FAILED, Status.CHANGED})
CAUSES, FIRST = 50, 5  # causes that are counted apart, and files that are named, of what failed or changed
NAMED = 1000  # archives that a summary names
SUMMARY = "summary.json"
_LARGEST = 64 << 20  # bytes of a summary, with all its notes
_MOST = 1 << 62
_INTERNAL = frozenset({"files", "in_review", "inside", "openable"})  # no part of summary.json and --json
_COUNTERS = ("statuses", "classes", "actions", "held", "causes")
_TYPES: dict[str, type] = {
    "run_id": str, "verb": str, "dry_run": bool, "found": int, "bytes": int, "seconds": float, "archives": list,
    "archives_found": int, "archives_opened": int, "members": int, "notes": list, "stages": dict, "troubled": list,
    "undoes": str,
    **dict.fromkeys(_COUNTERS, dict),
}  # fmt: skip
_LATER: dict[str, Any] = {  # not in old files
    "stages": {}, "causes": {}, "troubled": [], "undoes": "", "archives_found": 0, "archives_opened": 0, "members": 0,
}  # fmt: skip
_ENDED = {Outcome.DUPLICATE: Status.DUPLICATE, Outcome.CONFLICT: Status.CONFLICT, Outcome.CHANGED: Status.CHANGED}


@dataclass
class Summary:
    """The counts of a run, for people, for ``--json``, for the exit code and for figures: the one counter of rows."""

    run_id: str = ""
    verb: str = "sort"
    dry_run: bool = False
    found: int = 0
    bytes: int = 0
    seconds: float = 0.0
    statuses: Counter[str] = field(default_factory=Counter)
    classes: Counter[str] = field(default_factory=Counter)  # of what was placed in a class folder or OTHER
    actions: Counter[str] = field(default_factory=Counter)
    held: Counter[str] = field(default_factory=Counter)  # by reason
    archives: list[str] = field(default_factory=list)  # left unopened: the first NAMED; all are in the manifest
    archives_found: int = 0
    archives_opened: int = 0
    members: int = 0  # files in archives, which ``found`` counts, too
    notes: list[str] = field(default_factory=list)
    stages: dict[str, float] = field(default_factory=dict)  # seconds of each, in their order; empty where not measured
    causes: Counter[str] = field(default_factory=Counter)  # of what failed or changed
    troubled: list[str] = field(default_factory=list)  # the first FIRST of these files
    undoes: str = ""  # the run that an undo took back
    # What follows is not read back from the file.
    unfinished: list[str] = field(default_factory=list)  # runs that stay cut short
    damaged: list[str] = field(default_factory=list)  # sentences about damaged runs, which may be unfinished
    finished: list[Summary] = field(default_factory=list)  # runs that were finished first
    files: Counter[tuple[str, str]] = field(default_factory=Counter)  # by status and class
    in_review: int = 0  # files that the run placed in REVIEW
    openable: int = 0  # archives that --archives open would open
    waiting: int = 0  # files that lie in REVIEW after the run, those of other runs too
    waiting_from_other_runs: int = 0
    unreadable: int = 0  # files that lie in UNREADABLE after the run, those of other runs too
    inside: Counter[str] = field(default_factory=Counter)  # files of the archives whose rows are still to come

    def count(self, row: Row) -> None:
        """Count one final row."""
        self.found += 1
        self.bytes += row.size
        self.actions[row.action] += 1
        self.files[row.status, row.class_] += 1
        if row.action == Action.UNDONE:
            self.statuses[row.action] += 1
            return
        self.statuses[row.status] += 1
        if row.status in {Status.SORTED, Status.OTHER}:
            self.classes[row.class_] += 1
        if needs_person(row):
            self.held[row.reason] += 1
        if row.status in _TROUBLE:
            self.causes[row.message if row.message in self.causes or len(self.causes) < CAUSES else "others"] += 1
            if len(self.troubled) < FIRST:
                self.troubled.append(row.source)
        if row.action in PLACED and row.destination.startswith(f"{REVIEW}/"):
            self.in_review += 1
        self.inside.update(possible_archives(row.source))
        if row.reason == ARCHIVE:
            self._count_archive(row)

    def _count_archive(self, row: Row) -> None:
        if OPENED in row.message:
            self.archives_opened += 1
            self.members += self.inside.pop(row.source, 0)
        if OPENED in row.message or OPENED_BEFORE in row.message:
            return
        self.openable += OPENS in row.message
        self.archives_found += 1
        if len(self.archives) < NAMED:
            self.archives.append(row.source)

    @property
    def needs_person(self) -> bool:
        """Whether the run, or one that it finished first, newly found something that a person must look at."""
        return any(summary.statuses[status] for summary in (self, *self.finished) for status in NEEDS_PERSON)

    @property
    def has_failed(self) -> bool:
        """Whether files failed, or runs stay unfinished: then this is no success, whatever else was done."""
        return bool(self.unfinished or self.damaged) or any(
            each.statuses[Status.FAILED] for each in (self, *self.finished)
        )

    def unfinished_notes(self, outbox: str) -> list[str]:
        """Return a sentence for each run of the outbox that was cut short and is not finished, or may be."""
        sentence = "run {} was cut short and is not finished: {} finishes it"
        return [*self.damaged, *(sentence.format(run, command("resume", outbox, run)) for run in self.unfinished)]

    @property
    def waiting_words(self) -> str:
        """How many files wait in REVIEW, those of other runs told apart; empty where none waits."""
        if not self.waiting:
            return ""
        words = counted(self.waiting, "file waits", "files wait") + f" in {REVIEW}"
        others = self.waiting_from_other_runs
        if others == self.waiting:
            return f"{words}, placed by {'another run' if others == 1 else 'other runs'}"
        return f"{words}, {others:,} of them from other runs" if others else words

    @property
    def unreadable_words(self) -> str:
        """How many files lie in UNREADABLE, and what to do; empty where none does."""
        if not self.unreadable:
            return ""
        words = counted(self.unreadable, "file lies", "files lie")
        return f"{words} in {UNREADABLE}, which no review shows: have such files sent again, or remove them"

    @property
    def trouble(self) -> str:
        """What failed or changed, for a log and for stderr: how many files, why, and the first names; else empty."""
        files = sum(self.causes.values())
        if not files:
            return ""
        failed, changed = self.statuses[Status.FAILED], self.statuses[Status.CHANGED]
        counts = " and ".join(f"{n:,} {word}" for n, word in ((failed, "failed"), (changed, "changed")) if n)
        causes = "; ".join(f"{cause} ({n:,})" for cause, n in self.causes.most_common(3))
        more = f" and {files - len(self.troubled):,} more" if files > len(self.troubled) else ""
        return f"files: {counts}: {causes}: {', '.join(map(visible, self.troubled))}{more}"

    def as_json(self) -> dict[str, Any]:
        """Return the summary as JSON values."""
        values = {name: value for name, value in vars(self).items() if name not in _INTERNAL}
        return values | {
            "seconds": round(self.seconds, 3),
            "archives": [*map(printable, self.archives)],
            "stages": {name: round(spent, 3) for name, spent in self.stages.items()},
            "troubled": [*map(printable, self.troubled)],
            "finished": {each.run_id: {"statuses": each.statuses, "held": each.held} for each in self.finished},
        }


def needs_person(row: Row) -> bool:
    """Whether this row is one that a person must look at."""
    return row.status in NEEDS_PERSON and row.action != Action.UNDONE


def final_row(row: Row, operation: Operation, result: Result | None) -> Row:
    """Return the planned row, corrected by the result."""
    if operation.verb is Verb.LEAVE:
        return row
    result = result or Result(operation.number, Outcome.FAILED, "not carried out")
    is_done = result.outcome is Outcome.DONE
    if is_done and not result.message:
        return row
    message = "; ".join(filter(None, (result.message, row.message)))
    if is_done:
        return replace(row, message=message)
    if result.outcome is Outcome.SKIPPED:
        return replace(row, action=Action.LEFT, destination="", message=message)
    status = _ENDED.get(result.outcome, Status.FAILED)
    left = replace(row, status=status, action=Action.LEFT, message=message)
    return left if result.outcome is Outcome.DUPLICATE else replace(left, destination="", reason=str(status))


def write_summary(files: Files, outbox: str, summary: Summary) -> None:
    """Write the run's ``summary.json``."""
    path = f"{run_folder(outbox, summary.run_id)}/{SUMMARY}"
    if look_up(path) is not None:
        files.unlink(path)
    with closing_descriptor(files.create(path, 0o600)) as descriptor:
        files.write(descriptor, json.dumps(summary.as_json(), indent=1).encode() + b"\n")
        files.flush(descriptor)


def read_summary(outbox: str, run: str) -> Summary | None:
    """Return the summary of a run that came to its end; None where there is none, or a half-written one.

    StateDamaged where it is no file, or holds values that ``write_summary`` does not write.
    """
    path = f"{run_folder(outbox, run)}/{SUMMARY}"
    if look_up(path) is None:
        return None
    try:
        with opened_file(path) as stream:
            values = parse(stream.read(_LARGEST))
    except OSError as error:
        expected = "expected a file that can be read"
        raise StateDamaged(f"run {run}, {SUMMARY}: {expected}, received {error.strerror}") from error
    except ValueError:
        return None
    if problem := _problem(values):
        advice = "move that file away, and `dicomsort resume` writes it anew"
        raise StateDamaged(f"run {run}, {SUMMARY}: expected the counts of a run, received {problem}; {advice}")
    values = _LATER | {"archives_found": len(values.get("archives", ()))} | values
    counters = {name: Counter(values[name]) for name in _COUNTERS}
    return Summary(**{name: value for name, value in values.items() if name in _TYPES} | counters)


def _problem(values: Any) -> str:
    """What is wrong with a summary's values; names that this version does not know are another version's."""
    if not isinstance(values, dict):
        return "another value"
    for name, kind in _TYPES.items():
        value: Any = values.get(name, _LATER.get(name, [] if kind is list else None))
        if not (type(value) is kind or (kind is float and type(value) is int)):
            return f"no such value as {name!r}"
        numbers: list[Any] = [*value.values()] if isinstance(value, dict) else [value] if kind in {int, float} else []
        if not all(type(n) in {int, float} and 0 <= n <= _MOST for n in numbers):
            return f"a number out of its range as {name!r}"
        if isinstance(value, list) and not all(isinstance(text, str) for text in value):
            return f"no list of texts as {name!r}"
    return ""


def describe_error(error: BaseException) -> str:
    """Return one line: our own errors as they are, the system's with the file's name, others by kind and place."""
    if isinstance(error, DicomsortError):
        return " ".join(printable(str(error)).split())
    if isinstance(error, OSError) and error.strerror:
        name = error.filename if isinstance(error.filename, str) else ""
        return f"{error.strerror} ({printable(os.path.basename(name))})" if name else error.strerror
    frames = traceback.extract_tb(error.__traceback__)
    place = f" at {os.path.basename(frames[-1].filename)}:{frames[-1].lineno}" if frames else ""
    return f"unexpected {type(error).__name__}{place}"
