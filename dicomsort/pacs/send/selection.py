"""Selects what is sent: the files below a folder, or those that a run placed.

A file that changed since it was selected is never sent.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace

from dicomsort.dicom import file_meta
from dicomsort.dicom.headers import data_set_offset, read_header
from dicomsort.dicom.tags import is_uid
from dicomsort.discover import Folder, Passed, walk
from dicomsort.errors import StateDamaged, UsageError, command
from dicomsort.files import CHUNK, look_up, opened
from dicomsort.files.beneath import one_below
from dicomsort.journal import STATE, is_run, runs_folder
from dicomsort.pacs.send.records import Instance, SendResult, SendStatus, Unsendable
from dicomsort.records import REVIEW, UNREADABLE, Found, Kind
from dicomsort.report import MANIFEST, read_summary
from dicomsort.report.manifest import PLACED, count_rows, rows_of

ASIDE = ".dicomsort-sent"  # where a folder that lies in no outbox keeps what was acknowledged
_HEAD = 16 << 10  # bytes
_LONG_AGO = -(1 << 80)  # nanoseconds
_GONE = "it is gone since it was found"
_CHANGED = "it changed while it was sent; send again"


@dataclass
class Outgoing:
    """One instance's file, open. ``sha256`` is of the whole file, once ``pieces`` has come to its end."""

    instance: Instance
    descriptor: int
    sha256: str = ""

    def pieces(self, start: int) -> Iterator[bytes]:
        """Yield the bytes from ``start`` on, never nothing; the last piece only once the file proved unchanged.

        Raises ``Unsendable`` where it changed: the receiver must be told to forget what came before.
        """
        digest, at, size = hashlib.sha256(), 0, self.instance.size
        while at < size:
            end = start if at < start else size
            piece = self._read(at, min(CHUNK, end - at))
            digest.update(piece)
            at += len(piece)
            if at == size:
                check(self.instance, self.descriptor)
                self.sha256 = digest.hexdigest()
            if at > start:
                yield piece

    def _read(self, offset: int, length: int) -> bytes:
        with _reading():
            piece = os.pread(self.descriptor, length, offset)
        if len(piece) != length:
            raise Unsendable(_CHANGED)
        return piece


def check(instance: Instance, descriptor: int | None = None) -> None:
    """Raise ``Unsendable`` where the file of that name, or the open one, is not what was found."""
    status = look_up(instance.absolute) if descriptor is None else os.fstat(descriptor)
    if status is None:
        raise Unsendable(_GONE)
    if (status.st_size, status.st_mtime_ns, status.st_ino) != (instance.size, instance.mtime_ns, instance.inode):
        raise Unsendable(_CHANGED)


@contextmanager
def _reading() -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise Unsendable(_GONE) from None
    except OSError as error:
        raise Unsendable(f"it cannot be read: {error.strerror}") from None


@contextmanager
def outgoing(instance: Instance) -> Iterator[Outgoing]:
    """Open an instance's file; ``Unsendable`` where it is gone, changed or unreadable."""
    base = instance.absolute.removesuffix(f"/{instance.path}")
    with ExitStack() as stack:
        with _reading(), one_below(base, instance.path) as path:
            descriptor = stack.enter_context(opened(path))
        check(instance, descriptor)
        yield Outgoing(instance, descriptor)


@dataclass(frozen=True, slots=True)
class Selection:
    """The folder to send, and what its files' paths are relative to: its outbox (``is_outbox``), else itself."""

    folder: str
    base: str
    is_outbox: bool
    run: str = ""

    def relative(self, path: str) -> str:
        """Return a path below ``folder`` as one below ``base``."""
        return os.path.relpath(f"{self.folder}/{path}", self.base) if self.folder != self.base else path


def select(folder: str, run: str) -> Selection:
    """Find the folder and the outbox that it lies in; ``UsageError`` where there is no such folder, or no such run.

    ``StateDamaged`` where rows of the run are lost, so that instances would be left out.
    """
    if not folder or not os.path.isdir(folder):
        raise UsageError(f"expected a folder to send, received {folder!r}")
    real = base = os.path.realpath(folder)
    while not os.path.isdir(f"{base}/{STATE}"):
        if base == "/":
            if run:
                raise UsageError(f"--run: expected a folder of an outbox of dicomsort, received {folder!r}")
            return Selection(real, real, is_outbox=False)
        base = os.path.dirname(base)
    if run:
        _check_run(base, run)
    return Selection(real, base, is_outbox=True, run=run)


def _check_run(outbox: str, run: str) -> None:
    is_kept = run in os.listdir(runs_folder(outbox))
    summary = read_summary(outbox, run) if is_kept else None
    if is_kept and summary is None:
        raise UsageError(f"--run: expected a run that has ended, received {run}; `dicomsort resume` finishes it")
    count, problem = count_rows(outbox, run, summary.found if summary else None) if is_run(run) else (0, "")
    if problem:
        raise StateDamaged(f"{problem}; `dicomsort send` without --run sends what lies in a folder")
    if not count:
        raise UsageError(
            f"--run: expected one of the runs that {command('runs', outbox)} lists, received {run!r}, "
            "of which neither its own manifest nor that of the outbox has a row"
        )


def candidates(selection: Selection) -> Iterator[Found | SendResult]:
    """Yield each file to examine, its path relative to ``base``, and the result of each entry that cannot be one."""
    found = _placed(selection) if selection.run else _walked(selection)
    left_out = (REVIEW, UNREADABLE) if selection.folder == selection.base and selection.is_outbox else ()
    return (each for each in found if each.path.partition("/")[0] not in left_out)


def _placed(selection: Selection) -> Iterator[Found | SendResult]:
    below = selection.relative(".") + "/" if selection.folder != selection.base else ""
    for row in rows_of(selection.base, selection.run):
        path = row.destination
        if row.action not in PLACED or not f"{path}/".startswith(below):
            continue
        status = look_up(f"{selection.base}/{path}")
        if status is None or not stat.S_ISREG(status.st_mode):
            yield SendResult(path, row.sop_uid, SendStatus.FAILED, 0, "gone from the outbox since the run placed it")
        else:
            numbers = (status.st_size, status.st_mtime_ns, status.st_dev, status.st_ino)
            yield Found(path, *numbers, ctime_ns=status.st_ctime_ns)


def _walked(selection: Selection) -> Iterator[Found | SendResult]:
    own = [look_up(f"{selection.folder}/{name}") for name in (STATE, ASIDE)]
    left_out = {(status.st_dev, status.st_ino) for status in own if status is not None}
    # With a clock that is behind all files the walk tells the ctime of each.
    for entry in walk(selection.folder, lambda status: (status.st_dev, status.st_ino) in left_out, lambda: _LONG_AGO):
        if isinstance(entry, Folder):
            continue
        path = selection.relative(entry.path)
        if isinstance(entry, Passed):
            status = SendStatus.FAILED if entry.failed else SendStatus.IGNORED
            yield SendResult(path, "", status, 0, entry.message or entry.reason)
        elif not (selection.is_outbox and path == MANIFEST):
            yield replace(entry, path=path)


def examine(base: str, found: Found) -> Instance | SendResult:
    """Read the header of one file."""
    absolute = f"{base}/{found.path}"
    try:
        with one_below(base, found.path) as path, opened(path) as descriptor:
            head = os.pread(descriptor, _HEAD, 0)
            more = lambda offset, size: os.pread(descriptor, size, offset)
            header = read_header(head, found.size, found.path.rpartition("/")[2], more)
            is_instance = header.kind is Kind.DICOM and not (header.ignored or header.problem)
            offset = data_set_offset(head, found.size, more) if is_instance else None
    except OSError as error:
        return SendResult(found.path, "", SendStatus.FAILED, 0, f"it cannot be read: {error.strerror}")
    if header.ignored or header.kind in {Kind.PNG, Kind.JPEG}:
        return SendResult(found.path, "", SendStatus.IGNORED, 0, f"not sent: {header.ignored or header.kind}")
    syntax, sop_class, sop_uid = header.transfer_syntax, header.sop_class_uid, header.sop_uid
    problem = ""
    if not is_instance and (header.message or header.problem):
        problem = header.message or header.problem
    elif offset is None:
        problem = "its file meta information is damaged"
    elif not (is_uid(sop_uid) and is_uid(sop_class)):
        problem = "it has no valid SOP Class UID (0008,0016) or SOP Instance UID (0008,0018)"
    elif not is_uid(syntax):
        problem = "its transfer syntax is not known"
    if problem or offset is None:
        return SendResult(found.path, "", SendStatus.FAILED, 0, problem)
    return Instance(
        found.path, absolute, found.size, found.mtime_ns, found.inode, offset, syntax, sop_class, sop_uid,
        file_meta.lacking(head, sop_class, sop_uid, syntax), found.ctime_ns,
    )  # fmt: skip
