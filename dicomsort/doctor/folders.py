"""What the file systems of an inbox and an outbox promise, tried with small files that are taken away again."""

from __future__ import annotations

import os
import secrets
import shutil
import stat
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from functools import partial

from dicomsort.doctor.finding import Finding, fine, guarded, note, wrong
from dicomsort.execute import Leaving
from dicomsort.files import NO_LINK, Files, is_network, look_up
from dicomsort.files import closing_descriptor as closing_file
from dicomsort.journal import is_run, runs_folder
from dicomsort.report.text import size

ROOM = 1 << 30  # bytes
_NAMED = 5  # folders
SKEW = 2.0  # seconds that a file server's clock may differ


def examine_folders(inbox: str | None, outbox: str | None, files: Files) -> Iterator[Finding]:
    """Look at either or both; what is tried in them has names that no sort takes for an image."""
    if inbox is not None:
        yield from guarded("inbox", partial(_examine, "inbox", inbox, files))
        yield from guarded("inbox", partial(_leaving, inbox))
    if outbox is not None:
        yield from guarded("outbox", partial(_examine, "outbox", outbox, files))
        yield from guarded("outbox", partial(_runs, outbox))
    if inbox is not None and outbox is not None:
        yield from guarded("move", partial(_across, inbox, outbox, files))


def _examine(what: str, folder: str, files: Files) -> Iterator[Finding]:
    there = _existing(folder)
    if there != os.path.abspath(folder) and what == "inbox":
        yield wrong(what, f"expected a folder, received nothing at {folder!r}", "make or mount it")
        return
    if not os.access(there, os.R_OK | os.X_OK):
        yield wrong(
            what, f"{folder}: it cannot be read", f"give the user that runs dicomsort rights: chmod, chown {there}"
        )
        return
    if not os.access(there, os.W_OK):
        mend = "give the user that runs dicomsort the right to write" + (": --move needs it" if what == "inbox" else "")
        yield (note if what == "inbox" else wrong)(what, f"{there}: it cannot be written", mend)
        return
    usage = shutil.disk_usage(there)
    told = f"{folder}: {size(usage.free)} free of {size(usage.total)}"
    yield fine(what, told) if usage.free >= ROOM else note(what, told, "free some: a full disk ends a run")
    yield from _semantics(what, there, files)


def _leaving(inbox: str) -> Iterator[Finding]:
    """Whether a move may take files out of every folder of an inbox that may be changed itself."""
    if not os.access(inbox, os.W_OK | os.X_OK):
        return  # told above
    leaving = Leaving()
    closed = [
        os.path.relpath(folder, inbox) for folder, _, names in os.walk(inbox) if _holds_back(leaving, folder, names)
    ]
    if closed:
        more = f" and {len(closed) - _NAMED:,} more" if len(closed) > _NAMED else ""
        told = f"files cannot leave {len(closed):,} of its folders: {', '.join(closed[:_NAMED])}{more}"
        mend = "give the user that runs dicomsort the right to write these folders: --move needs it"
        yield wrong("inbox", told, mend)


def _holds_back(leaving: Leaving, folder: str, names: list[str]) -> bool:
    """Whether a file may not be taken out of its folder; one file tells for all, where their owners do not matter."""
    asked = names if leaving.depends_on_owner(folder) else names[:1]
    found = ((path, look_up(path)) for path in (f"{folder}/{name}" for name in asked))
    return any(status is not None and not leaving.may_leave(path, status) for path, status in found)


def _existing(folder: str) -> str:
    """The folder, or the nearest above it that is there."""
    path = os.path.abspath(folder)
    while not os.path.isdir(path):
        path = os.path.dirname(path)
    return path


@contextmanager
def _probe(files: Files, folder: str) -> Iterator[str]:
    """Create an empty file with a name that the walk passes over; take it away at the end."""
    path = f"{folder}/.dicomsort-doctor-{secrets.token_hex(4)}.part"
    descriptor = files.create(path, 0o600)
    try:
        with closing_file(descriptor):
            files.write(descriptor, b"dicomsort doctor\n")
            files.flush(descriptor)
        yield path
    finally:
        with suppress(FileNotFoundError):
            files.unlink(path)


def _semantics(what: str, folder: str, files: Files) -> Iterator[Finding]:
    with _probe(files, folder) as path:
        yield from _exclusive(what, path, files)
        yield from _links(what, path, files)
        yield from _locks(what, path, files)
        yield from _server(what, path)
        if files.flush_system(folder):
            yield fine(what, "flushes a whole batch at once (syncfs)")
        else:
            yield note(
                what, "flushes file by file: a network file system, or no syncfs", "nothing to mend; it is slower"
            )
        if look_up(path.upper()) is not None:
            yield note(what, "takes upper and lower case for the same", "nothing to mend: names are kept apart")


def _exclusive(what: str, path: str, files: Files) -> Iterator[Finding]:
    try:
        os.close(files.create(path))
    except FileExistsError:
        return
    yield wrong(what, "a file was created where one was: nothing is safe there", "use another file system")


def _links(what: str, path: str, files: Files) -> Iterator[Finding]:
    with ExitStack() as undone:
        second = f"{path.removesuffix('.part')}-2.part"
        try:
            files.link(path, second)
        except OSError as error:
            if error.errno not in NO_LINK:
                raise
            yield note(what, f"refuses hard links ({error.strerror})", "nothing to mend: copies are made and verified")
            return
        undone.callback(files.unlink, second)
        if not os.path.samestat(os.lstat(path), os.lstat(second)):
            yield wrong(
                what, "two names of one file have different inode numbers", "mount it with stable inode numbers"
            )
        try:
            files.link(path, second)
        except FileExistsError:
            yield fine(what, "hard links never replace")
        else:
            yield wrong(what, "a hard link replaced a file: nothing is safe there", "use another file system")


def _locks(what: str, path: str, files: Files) -> Iterator[Finding]:
    with closing_file(files.open_append(path)) as first, closing_file(files.open_append(path)) as second:
        try:
            excluded = files.lock(first) and not files.lock(second)
        except OSError as error:
            mend = "mount it with locks (NFS: without nolock), and never run two at a time until then"
            yield wrong(what, f"expected a lock (flock), received {error.strerror}", mend)
            return
    if not excluded:
        yield wrong(what, "a lock that is held was given out again", "never run two at a time there")
    elif is_network(os.path.dirname(path)):
        yield note(what, "locks hold here; between hosts as far as the file server's do", "run it from one host only")
    else:
        yield fine(what, "locks hold")


def _server(what: str, path: str) -> Iterator[Finding]:
    """Compare clocks: what settles is told by the file server's, "now" by ours."""
    skew = os.lstat(path).st_mtime - time.time()
    if abs(skew) > SKEW:
        yield wrong(
            what, f"its file server's clock is {skew:+.0f} s off ours", "set both by NTP: settling depends on it"
        )


def _runs(outbox: str) -> Iterator[Finding]:
    folder = runs_folder(outbox)
    if not os.path.isdir(folder):
        return
    state = stat.S_IMODE(os.stat(os.path.dirname(folder)).st_mode)
    if state & 0o077:
        yield note("outbox", f"others may read its state (mode {state:o})", f"chmod 700 {os.path.dirname(folder)}")
    with closing(os.scandir(folder)) as entries:
        runs = sorted(entry.name for entry in entries if is_run(entry.name))
    now = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    if runs and runs[-1][:16] > now:
        yield wrong(
            "clock", f"its newest run is of {runs[-1][:16]}, later than now", "set the clock: it went backwards"
        )
    yield fine("outbox", f"{len(runs):,} runs kept")


def _across(inbox: str, outbox: str, files: Files) -> Iterator[Finding]:
    """Whether a move is a second name, or a copy that needs room."""
    one, other = _existing(inbox), _existing(outbox)
    if not (os.access(one, os.W_OK) and os.access(other, os.W_OK)):
        return
    with _probe(files, one) as path:
        target = f"{other}/{os.path.basename(path)[:-5]}-moved.part"
        try:
            files.link(path, target)
        except OSError as error:
            told = f"inbox and outbox do not share a file system that links ({error.strerror}): files are copied"
            yield note("move", told, "nothing to mend; --move needs room for a copy, and --link does not work")
            return
        files.unlink(target)
        yield fine("move", "is a second name on one file system: no bytes are copied")
