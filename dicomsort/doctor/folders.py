"""What the file systems of an inbox and an outbox promise, tried with small files that are taken away again."""

from __future__ import annotations

import os
import secrets
import shutil
import stat
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress

from dicomsort.doctor.finding import Finding, checked, fine, note, refused, wrong
from dicomsort.errors import counted
from dicomsort.execute import Leaving
from dicomsort.files import NO_LINK, NO_RENAME, Files, closing_descriptor, is_network, look_up
from dicomsort.journal import is_run, runs_folder
from dicomsort.report.text import size
from dicomsort.sorting.outbox import check_state, nearest_folder
from dicomsort.sorting.runs import STAMP

ROOM = 1 << 30  # bytes
_NAMED = 5  # folders
SKEW = 2.0  # seconds that a file server's clock may differ


def examine_folders(inbox: str | None, outbox: str | None, files: Files) -> Iterator[Finding]:
    """Check either or both; what is tried in them has names that no sort takes for an image."""
    if inbox is not None:
        yield from checked("inbox", _folder(inbox, files, is_inbox=True))
        yield from checked("inbox", _closed_folders(inbox))
    if outbox is not None:
        yield from checked("outbox", _state(outbox))
        yield from checked("outbox", _folder(outbox, files, is_inbox=False))
        yield from checked("outbox", _runs(outbox))
    if inbox is not None and outbox is not None:
        yield from checked("move", _across(inbox, outbox, files))


def _folder(folder: str, files: Files, *, is_inbox: bool) -> Iterator[Finding]:
    existing = nearest_folder(os.path.abspath(folder))
    if is_inbox and existing != os.path.abspath(folder):
        yield wrong(f"expected a folder, received nothing at {folder!r}", "make or mount it")
        return
    if not os.access(existing, os.R_OK | os.X_OK):
        yield wrong(
            f"{folder}: it cannot be read", f"give the user that runs dicomsort rights: chmod, chown {existing}"
        )
        return
    if not os.access(existing, os.W_OK):
        problem, mend = f"{existing}: it cannot be written", "give the user that runs dicomsort the right to write"
        yield note(problem, f"{mend}: --move needs it") if is_inbox else wrong(problem, mend)
        return
    usage = shutil.disk_usage(existing)
    room = f"{folder}: {size(usage.free)} free of {size(usage.total)}"
    yield fine(room) if usage.free >= ROOM else note(room, "free some: a full disk ends a run")
    with _probe(files, existing) as path:
        for check in (_exclusive, _links, _locks, _clock, _flushes, _letter_case):
            yield from check(path, files)


def _state(outbox: str) -> Iterator[Finding]:
    """Check that nothing else has the name of the outbox, or of a file or folder of its state."""
    if os.path.exists(outbox) and not os.path.isdir(outbox):
        yield wrong(f"{outbox}: expected a folder, received something else", "name another folder, or move that away")
        return
    yield from refused("a sort refuses it, too", lambda: check_state(os.path.abspath(outbox)))


def _closed_folders(inbox: str) -> Iterator[Finding]:
    """Check that a move may take files out of every folder of an inbox that may be changed itself."""
    if not os.access(inbox, os.W_OK | os.X_OK):
        return  # reported above
    leaving = Leaving()
    closed = [
        os.path.relpath(folder, inbox) for folder, _, names in os.walk(inbox) if _is_closed(leaving, folder, names)
    ]
    if closed:
        more = f" and {len(closed) - _NAMED:,} more" if len(closed) > _NAMED else ""
        yield wrong(
            f"files cannot leave {len(closed):,} of its folders: {', '.join(closed[:_NAMED])}{more}",
            "give the user that runs dicomsort the right to write these folders: --move needs it",
        )


def _is_closed(leaving: Leaving, folder: str, names: list[str]) -> bool:
    """Whether a file may not be taken out of its folder; one file tells for all, where their owners do not matter."""
    paths = [f"{folder}/{name}" for name in (names if leaving.depends_on_owner(folder) else names[:1])]
    found = ((path, look_up(path)) for path in paths)
    return any(status is not None and not leaving.may_leave(path, status) for path, status in found)


@contextmanager
def _probe(files: Files, folder: str) -> Iterator[str]:
    """Create a small file with a name that the walk passes over; take it away at the end."""
    path = f"{folder}/.dicomsort-doctor-{secrets.token_hex(4)}.part"
    descriptor = files.create(path, 0o600)
    try:
        with closing_descriptor(descriptor):
            files.write(descriptor, b"dicomsort doctor\n")
            files.flush(descriptor)
        yield path
    finally:
        with suppress(FileNotFoundError):
            files.unlink(path)


def _exclusive(path: str, files: Files) -> Iterator[Finding]:
    try:
        os.close(files.create(path))
    except FileExistsError:
        return
    yield wrong("a file was created where one was: nothing is safe there", "use another file system")


def _links(path: str, files: Files) -> Iterator[Finding]:
    with ExitStack() as undone:
        second = f"{path.removesuffix('.part')}-2.part"
        try:
            files.link(path, second)
        except OSError as error:
            if error.errno not in NO_LINK:
                raise
            yield note(f"refuses hard links ({error.strerror})", "nothing to mend: copies are verified, then renamed")
            yield from _renames(path, second, files)
            return
        undone.callback(files.unlink, second)
        if not os.path.samestat(os.lstat(path), os.lstat(second)):
            yield wrong("two names of one file have different inode numbers", "mount it with stable inode numbers")
        try:
            files.link(path, second)
        except FileExistsError:
            yield fine("hard links never replace")
        else:
            yield wrong("a hard link replaced a file: nothing is safe there", "use another file system")


def _renames(path: str, second: str, files: Files) -> Iterator[Finding]:
    try:
        files.rename(path, second)
    except OSError as error:
        if error.errno not in NO_RENAME:
            raise
        advice = "a crash may leave an empty file under the name of an image; better use another file system"
        yield note(f"refuses to rename without replacing ({error.strerror})", advice)
        return
    os.close(files.create(path))
    try:
        files.rename(second, path)
    except FileExistsError:
        yield fine("renaming never replaces")
        files.unlink(second)
    else:
        yield wrong("renaming replaced a file: nothing is safe there", "use another file system")


def _locks(path: str, files: Files) -> Iterator[Finding]:
    with closing_descriptor(files.open_append(path)) as first, closing_descriptor(files.open_append(path)) as second:
        try:
            is_exclusive = files.lock(first) and not files.lock(second)
        except OSError as error:
            mend = "mount it with locks (NFS: without nolock), and never run two at a time until then"
            yield wrong(f"expected a lock (flock), received {error.strerror}", mend)
            return
    if not is_exclusive:
        yield wrong("a lock that is held was given out again", "never run two at a time there")
    elif is_network(os.path.dirname(path)):
        yield note("locks hold here; between hosts as far as the file server's do", "run it from one host only")
    else:
        yield fine("locks hold")


def _clock(path: str, files: Files) -> Iterator[Finding]:
    """Compare clocks: a file settles by the file server's, "now" is by ours. The disk may take a while in between."""
    before = time.time()
    with closing_descriptor(files.open_append(path)) as descriptor:
        files.write(descriptor, b"now\n")
        files.flush(descriptor)
    there, after = os.lstat(path).st_mtime, time.time()
    skew = max(there - after, 0.0) or min(there - before, 0.0)
    if abs(skew) > SKEW:
        yield wrong(f"its file server's clock is {skew:+.0f} s off ours", "set both by NTP: settling depends on it")


def _flushes(path: str, files: Files) -> Iterator[Finding]:
    if files.flush_system(os.path.dirname(path)):
        yield fine("flushes a whole batch at once (syncfs)")
    else:
        yield note("flushes file by file: a network file system, or no syncfs", "nothing to mend; it is slower")


def _letter_case(path: str, _: Files) -> Iterator[Finding]:
    if look_up(path.upper()) is not None:
        yield note("takes upper and lower case for the same", "nothing to mend: names are kept apart")


def _runs(outbox: str) -> Iterator[Finding]:
    folder = runs_folder(outbox)
    if not os.path.isdir(folder):
        return
    state = os.path.dirname(folder)
    mode = stat.S_IMODE(os.stat(state).st_mode)
    if mode & 0o077:
        yield note(f"others may read its state (mode {mode:o})", f"chmod 700 {state}")
    with closing(os.scandir(folder)) as entries:
        runs = sorted(entry.name for entry in entries if is_run(entry.name))
    now = time.strftime(STAMP, time.gmtime())
    if runs and runs[-1][:16] > now:
        mend = "set the clock: it went backwards"
        yield wrong(f"its newest run is of {runs[-1][:16]}, later than now", mend, "clock")
    yield fine(f"{counted(len(runs), 'run')} kept")


def _across(inbox: str, outbox: str, files: Files) -> Iterator[Finding]:
    """Check whether a move is a second name, or a copy that needs room."""
    one, other = (nearest_folder(os.path.abspath(folder)) for folder in (inbox, outbox))
    if not (os.access(one, os.W_OK) and os.access(other, os.W_OK)):
        return
    with _probe(files, one) as path:
        target = f"{other}/{os.path.basename(path).removesuffix('.part')}-moved.part"
        try:
            files.link(path, target)
        except OSError as error:
            yield note(
                f"inbox and outbox do not share a file system that links ({error.strerror}): files are copied",
                "nothing to mend; --move needs room for a copy, and --link does not work",
            )
            return
        files.unlink(target)
        yield fine("is a second name on one file system: no bytes are copied")
