"""Archives of an inbox: unpacked by workers into the run's staging folder, from where their files go the way of others.

An archive whose SHA-256 an earlier run opened whole is not opened again.
"""

from __future__ import annotations

import os
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from functools import partial

from dicomsort.archives import ArchiveLimits, Unpacked, UnpackedMember, UnpackRequest, remove_staging, unpack
from dicomsort.catalog import Catalog
from dicomsort.config import SortSettings
from dicomsort.engines.engine import Engine, submit_batch
from dicomsort.errors import PlacingFailed, WorkerLost, counted
from dicomsort.execute import Roots
from dicomsort.files import Files, look_up, missing_folders, sha256_of
from dicomsort.journal import Plan, Replay, run_folder
from dicomsort.progress import Progress
from dicomsort.records import (
    ARCHIVE,
    ARCHIVE_LIMIT,
    MEMBER,
    OPENED,
    OPENED_BEFORE,
    Examined,
    Found,
    Header,
    Kind,
)
from dicomsort.report import visible
from dicomsort.report.manifest import EarlierArchives, earlier_archives
from dicomsort.sorting.examine import BATCH_FILES, on_lost, spooled
from dicomsort.sorting.outbox import RunContext
from dicomsort.sorting.runs import Run, RunState, journal_of
from dicomsort.tasks import examine

STAGING = "staging"
_MIB = 1 << 20
_NO_LIMITS = ArchiveLimits(sys.maxsize, sys.maxsize, sys.maxsize, float(sys.maxsize), float(sys.maxsize))
_AHEAD = 2  # archives a worker that are unpacked before their turn
_Opening = tuple[Examined, str, "Future[Unpacked] | None"]


def limits_of(settings: SortSettings) -> ArchiveLimits:
    """Return the limits on archives that the settings name."""
    sizes = int(settings.archive_file_size * _MIB), int(settings.archive_size * _MIB)
    return ArchiveLimits(settings.archive_members, *sizes, settings.archive_ratio, settings.archive_seconds)


def staging_of(outbox: str, run: str) -> str:
    """Return the folder that a run unpacks archives into."""
    return f"{run_folder(outbox, run)}/{STAGING}"


def is_archive(e: Examined) -> bool:
    """Whether a file of the inbox is an archive by its content."""
    return e.header.ignored == ARCHIVE and not e.found.archive


@dataclass(slots=True)
class ArchiveOpener:
    """Opens the archives that the catalog keeps apart, and adds them and their members to it.

    ``staging`` returns the folder to unpack into, and makes it. ``outbox`` is where earlier runs may have opened them.
    ``settled_before_ns`` is as in ``classify.Criteria``.
    """

    inbox: str
    outbox: str | None
    settings: SortSettings
    settled_before_ns: int | None
    engine: Engine
    catalog: Catalog
    progress: Progress
    files: Files
    staging: Callable[[], str]
    _earlier: EarlierArchives = field(default_factory=EarlierArchives)
    _count: int = 0
    _folder: str = ""  # of what was unpacked
    _watched: ExitStack = field(default_factory=ExitStack)  # for errors of the disk, from before the first byte on

    def run(self) -> Iterator[dict[int, int]]:
        """Add all archives and their members; yields how many files each group got, by the group's number."""
        waiting: deque[_Opening] = deque()
        with self._watched:
            for archive in self.catalog.archives():
                if not self._count:
                    self.progress.stage("unpacking archives", None)
                    self._earlier = earlier_archives(self.outbox) if self.outbox else self._earlier
                self._count += 1
                waiting.append(self._begin(archive))
                while len(waiting) > _AHEAD * self.engine.workers:
                    yield from self._end(*waiting.popleft())
            while waiting:
                yield from self._end(*waiting.popleft())
            if self._folder:
                self.files.flush_system(self._folder)  # before the plan that names these files is sealed

    def _begin(self, archive: Examined) -> _Opening:
        """Begin to unpack an archive, unless it is known or settles."""
        if closed := self._closed(archive):
            return closed, "", None
        if not self._folder:
            self._folder = self.staging()
            self._watched.enter_context(self.files.watching_errors(self._folder))
        folder = f"{self._folder}/{self._count}"
        request = UnpackRequest(self.inbox, archive.found, folder, limits_of(self.settings))
        return archive, folder, self.engine.submit(unpack, request, seconds=self.settings.archive_seconds)

    def _closed(self, e: Examined) -> Examined | None:
        """Return an archive that is left as it is, with the reason; None where it is to be opened."""
        before, changed = self.settled_before_ns, self.catalog.changed_ns(e.found)
        if before is not None and changed > before:
            return replace(e, header=Header(Kind.UNKNOWN, has_pixels=False))  # the rule "settling" finds it
        if self.settings.mode == "link":
            return replace(
                e, header=replace(e.header, message="a run with --link opens no archive: use --copy or --move")
            )
        if e.sha256 in self._earlier.opened:
            return replace(e, header=replace(e.header, message=OPENED_BEFORE))
        if reason := self._earlier.refused.get(e.sha256):
            return replace(e, header=replace(e.header, ignored=reason, message="an earlier run said so"))
        return None

    def _end(self, archive: Examined, folder: str, future: Future[Unpacked] | None) -> Iterator[dict[int, int]]:
        """Add an archive to the catalog, then its members."""
        if future is None:
            yield self._add([archive])
            return
        try:
            unpacked = future.result()
        except WorkerLost as error:
            lost = f"unpacking it: {error}"
            unpacked = Unpacked(failed=lost) if error.from_outside else Unpacked(reason=ARCHIVE_LIMIT, message=lost)
        if unpacked.reason or unpacked.failed:
            remove_staging(self.files, folder)
        yield self._add([self._described(archive, unpacked)])
        batches = [unpacked.members[at : at + BATCH_FILES] for at in range(0, len(unpacked.members), BATCH_FILES)]
        under_way = deque[Callable[[], list[Examined]]]()
        for batch in batches:
            under_way.append(self._examined(archive.found, folder, batch))
            if len(under_way) > 4 * self.engine.workers:
                yield self._add(under_way.popleft()())
        for take in under_way:
            yield self._add(take())

    def _add(self, batch: Sequence[Examined]) -> dict[int, int]:
        self.progress.advance(len(batch))
        return self.catalog.add([spooled(self.inbox, e) for e in batch])

    def _described(self, e: Examined, unpacked: Unpacked) -> Examined:
        """Return the archive with what became of it as its header."""
        header = Header(Kind.UNKNOWN, has_pixels=False, message=unpacked.message)
        if unpacked.failed:
            return replace(e, header=header, failed=unpacked.failed)
        if unpacked.reason == ARCHIVE:
            return e
        if not unpacked.reason:
            return replace(
                e, header=replace(header, ignored=ARCHIVE, message=f"{OPENED}{counted(len(unpacked.members), 'file')}")
            )
        if unpacked.reason == ARCHIVE_LIMIT and e.sha256 in self._earlier.limited:
            return replace(e, header=replace(header, ignored=unpacked.reason))
        return replace(e, header=replace(header, problem=unpacked.reason))

    def _examined(self, archive: Found, folder: str, batch: Sequence[UnpackedMember]) -> Callable[[], list[Examined]]:
        """Begin to examine members; return what waits for the result, in their order."""
        found = [_found(archive, folder, member) for member in batch]
        there = [f for f in found if f.unpacked]
        future = submit_batch(self.engine, partial(examine, self.inbox), there, on_lost) if there else None

        def result() -> list[Examined]:
            examined = iter(future.result() if future else ())
            pairs = zip(found, batch, strict=True)
            return [_within(next(examined)) if f.unpacked else _refused(f, member) for f, member in pairs]

        return result


def _found(archive: Found, folder: str, member: UnpackedMember) -> Found:
    path = f"{archive.path}{MEMBER}{member.name}"
    if not member.file:
        return Found(path, 0, 0, 0, 0, archive=archive.path)
    there = os.lstat(unpacked := f"{folder}/{member.file}")
    facts = (there.st_size, there.st_mtime_ns, there.st_dev, there.st_ino, there.st_mode & 0o7777)
    return Found(path, *facts, archive=archive.path, unpacked=unpacked)


def _within(e: Examined) -> Examined:
    """Return a member; an archive in an archive is told as such."""
    if e.header.ignored != ARCHIVE:
        return e
    return replace(e, header=replace(e.header, message="an archive in an archive: unpack it to sort what it holds"))


def _refused(found: Found, member: UnpackedMember) -> Examined:
    return Examined(found, Header(Kind.UNKNOWN, problem=member.reason, message=member.message, has_pixels=False))


def unpack_again(files: Files, roots: Roots, plan: Plan, known: Replay) -> None:
    """Unpack anew what a run that was cut short has still to place, where its unpacked files are gone.

    The archive must be the one that was opened. Its bytes kept the limits then, so no limit counts now. What cannot be
    unpacked is not placed, and its row says so.
    """
    lacking: dict[tuple[str, str], str] = {}  # the folder of an archive, by its place and SHA-256
    for o in plan.operations():
        if o.target and o.archive_sha256 and not known.has_ended(o.number):
            source = roots.absolute(o.source)
            if look_up(source) is None and look_up(roots.absolute(o.target)) is None:
                lacking[o.kept, o.archive_sha256] = source.rpartition("/")[0]
    for (kept, sha256), folder in lacking.items():
        with suppress(OSError):
            if sha256_of(path := roots.absolute(kept)) == sha256:
                remove_staging(files, folder)
                for parent in missing_folders(folder)[:-1]:
                    files.make_folder(parent, 0o700)
                status = os.stat(path)
                found = Found(kept.partition("/")[2], status.st_size, status.st_mtime_ns, status.st_dev, status.st_ino)
                unpack(UnpackRequest(roots.inbox, found, folder, _NO_LIMITS))
    for o in plan.operations() if lacking else ():  # times may be read otherwise in another time zone
        source = roots.absolute(o.source)
        if o.target and (o.kept, o.archive_sha256) in lacking and look_up(source):
            files.set_mtime(source, o.mtime_ns)


def clear_unsealed(context: RunContext, runs: Iterable[Run]) -> None:
    """Remove what runs unpacked that died before their plan was sealed."""
    for run in runs:
        if run.state is RunState.UNSEALED:
            clear_staging(context.files, context.outbox, run.name)


def clear_staging(files: Files, outbox: str, run: str) -> None:
    """Remove what a run unpacked; PlacingFailed where that cannot be done."""
    try:
        remove_staging(files, folder := staging_of(outbox, run))
    except OSError as error:
        raise PlacingFailed(f"{folder}: expected to remove what was unpacked, received {error.strerror}") from error


def clear_placed(context: RunContext, run: str, inbox: str) -> list[str]:
    """Remove what a run unpacked; what is placed nowhere stays, with a note, if its archive is gone or another."""
    folder, roots = staging_of(context.outbox, run), Roots(inbox, context.outbox)
    if look_up(folder) is None:
        return []
    plan = Plan.open(run_folder(context.outbox, run))
    known = journal_of(plan)
    open_ = (o for o in plan.operations() if o.target and o.archive_sha256 and not known.is_there(o.number))
    archives = {(roots.absolute(o.kept), o.archive_sha256) for o in open_ if look_up(roots.absolute(o.source))}
    if not all(_has_sha256(path, sha256) for path, sha256 in archives):
        return [f"what was unpacked and not placed stays in {visible(folder)}: its archive is gone, or another"]
    clear_staging(context.files, context.outbox, run)
    return []


def _has_sha256(path: str, sha256: str) -> bool:
    with suppress(OSError):
        return sha256_of(path) == sha256
    return False


def discard(files: Files, outbox: str, run: str) -> None:
    """Remove a run that placed nothing: what it unpacked, and its folder, as far as that can be done."""
    with suppress(OSError):
        remove_staging(files, staging_of(outbox, run))
    with suppress(OSError):
        files.remove_folder(run_folder(outbox, run))
