"""What a destination has acknowledged, as JSON lines: sending again sends only the rest.

The first line names format and destination, ``base`` lines the folder that later paths start at, the others an
instance each: ``["sent", path, size, mtime_ns, sop_uid, sha256]``. A line is written when the peer has said so, before
anything else is sent on that connection, and flushed with others: what a power cut takes is sent twice, never lost.
``["file", sop_uid, inode, ctime_ns]`` identifies the file: another may come to have its path, size and mtime. Without
that line (earlier versions wrote none, and skip it), the header must name the same SOP Instance UID.
``["failed", path, size, mtime_ns]`` is one that the peer did not take: the next sending tries others before it.
So a line that cannot be read is skipped, and a torn last one is cut off. A file is changed only after its first
line has proven it to be this destination's journal: the name may be one that a user typed.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from hashlib import blake2b
from io import BufferedReader
from itertools import count

from dicomsort.dicom.tags import is_uid
from dicomsort.errors import DicomsortError, OutboxLocked, UsageError
from dicomsort.files import Files, flush_path, look_up, missing_folders, sha256_of
from dicomsort.jsonlines import dump, parse, whole_lines
from dicomsort.pacs.send.records import Instance
from dicomsort.records import Found
from dicomsort.report import printable

FORMAT = 1
FLUSH_EVERY = 256  # lines
LONGEST_LINE = 1 << 20  # bytes; what is longer was not written by us, and is read in pieces
MOST_FILES = 4  # "file" lines for each instance that was sent, on average: some file systems make up new inodes
_DIGEST = 16  # bytes of a hash kept in memory
_SHOWN = 200  # characters of another destination's name in a message


class Acknowledged:
    """The journal of one destination, open and locked."""

    def __init__(self, files: Files, path: str, destination: str, base: str) -> None:
        """Open or create the journal, and read it.

        Raises ``OutboxLocked`` where another process holds it, ``UsageError`` where it is of another destination, is
        something else (then it is left as it is) or cannot be written.
        """
        self._files, self._path, self._base = files, path, base
        self._places: dict[bytes, str] = {}  # of path, size and mtime -> SOP Instance UID
        self._identities: set[bytes] = set()  # of SOP Instance UID, inode and ctime
        self._contents: dict[str, tuple[bytes, ...]] = {}  # SOP Instance UID -> of what was sent under it, last
        self._latest: dict[bytes, bytes] = {}  # of a path -> of what it had last, where contents of one UID differ
        self._failed: dict[bytes, int] = {}  # of path, size and mtime -> a number that grows from failure to failure
        self._failures = count()
        self._unflushed = 0  # lines
        self._lock = threading.Lock()
        self._descriptor = self._open()
        try:
            self._begin(destination)
        except BaseException:
            os.close(self._descriptor)
            raise

    def _open(self) -> int:
        folder = os.path.dirname(self._path)
        try:
            is_new = look_up(self._path) is None
            for missing in missing_folders(folder):
                with suppress(FileExistsError):
                    self._files.make_folder(missing, 0o700)
            descriptor = self._files.open_append(self._path, 0o600)
            if is_new:
                flush_path(self._files, folder)
        except OSError as error:
            raise UsageError(
                f"expected to keep in {self._path!r} what was acknowledged, received: {error.strerror}; "
                "--journal FILE names another place"
            ) from None
        return descriptor

    def _begin(self, destination: str) -> None:
        if not self._files.lock(self._descriptor):
            raise OutboxLocked(
                f"another `dicomsort send` to {destination} holds {self._path!r}; wait for it to end "
                "(the lock of a dead process frees itself)"
            )
        head = {"format": FORMAT, "destination": destination}
        with os.fdopen(os.dup(self._descriptor), "rb") as lines:
            first = lines.readline(LONGEST_LINE)
            # Else it is empty, or torn in its first line.
            is_begun = first.endswith(b"\n") or not (dump(head) + b"\n").startswith(first)
            if is_begun and (other := _other_than(destination, first)):
                raise UsageError(
                    f"expected {self._path!r} to be of {destination}, received one of {other}; it was not changed, and "
                    "--journal FILE names another place"
                )
            base = self._read(lines)
        size = os.fstat(self._descriptor).st_size
        whole = whole_lines(self._descriptor, size)
        if whole != size:
            with self._writing():
                self._files.truncate(self._descriptor, whole)
        if not is_begun:
            self._write(head)
        if base != self._base:
            self._write(["base", self._base])

    def _read(self, lines: BufferedReader) -> str:
        """Read all whole lines but damaged ones, and return the base at their end."""
        base = ""
        for line in iter(partial(lines.readline, LONGEST_LINE), b""):
            with suppress(ValueError):  # not JSON
                match parse(line) if line.endswith(b"\n") else None:
                    case ["base", str(base)]:
                        pass
                    case ["sent", str(path), int(size), int(mtime_ns), str(sop_uid), str(sha256)] if is_uid(sop_uid):
                        self._remember(base, path, _digest(base, path, size, mtime_ns), sop_uid, sha256)
                    case ["file", str(sop_uid), int(inode), int(ctime_ns)]:
                        self._identities.add(_digest(sop_uid, inode, ctime_ns))
                    case ["failed", str(path), int(size), int(mtime_ns)]:
                        self._failed[_digest(base, path, size, mtime_ns)] = next(self._failures)
        return base

    def _remember(self, base: str, path: str, place: bytes, sop_uid: str, sha256: str) -> None:
        self._places[place] = sop_uid
        self._failed.pop(place, None)
        content, known = _digest(sha256), self._contents.get(sop_uid, ())
        if known[-1:] != (content,):
            self._contents[sop_uid] = known = (*(each for each in known if each != content), content)
        if len(known) > 1:
            self._latest[_digest(f"{base}/{path}", sop_uid)] = content

    def _place(self, file: Found | Instance) -> bytes:
        return _digest(self._base, file.path, file.size, file.mtime_ns)

    def holds(self, found: Found) -> str | None:
        """Return the SOP Instance UID of a file that was acknowledged as it is now, as far as its ``stat`` shows."""
        sop_uid = self._places.get(self._place(found))
        return sop_uid if _digest(sop_uid, found.inode, found.ctime_ns) in self._identities else None

    def may_hold(self, found: Found) -> bool:
        """Whether a file was acknowledged that had the same path, size and mtime."""
        return self._place(found) in self._places

    def holds_instance(self, instance: Instance) -> bool:
        """Whether its bytes were acknowledged, be it under another path or time; writes it down.

        Another file of the same path, size and time may hold others: a corrected export. What was sent last from
        its path, or else at all, is what counts: the peer has that now.
        """
        known = self._contents.get(instance.sop_uid)
        if known is None:
            return False
        try:
            sha256 = sha256_of(instance.absolute)
        except OSError:
            return False  # sending will tell why
        content = _digest(sha256)
        place = _digest(f"{self._base}/{instance.path}", instance.sop_uid)
        if content not in known or self._latest.get(place, known[-1]) != content:
            return False
        if self._places.get(self._place(instance)) != instance.sop_uid:
            self.add(instance, sha256)
        elif len(self._identities) < MOST_FILES * len(self._places):
            self._write(_file(instance))
            self._identities.add(_digest(instance.sop_uid, instance.inode, instance.ctime_ns))
        return True

    def add(self, instance: Instance, sha256: str) -> None:
        """Write that the peer has the instance; ``DicomsortError`` where that cannot be written."""
        path, size, mtime_ns, sop_uid = instance.path, instance.size, instance.mtime_ns, instance.sop_uid
        self._write(["sent", path, size, mtime_ns, sop_uid, sha256], _file(instance))
        self._remember(self._base, path, self._place(instance), sop_uid, sha256)
        self._identities.add(_digest(sop_uid, instance.inode, instance.ctime_ns))

    def failed_at(self, found: Found) -> int | None:
        """Return the place of a file that failed before among all that did, the oldest failure first; else None."""
        return self._failed.get(self._place(found))

    def add_failed(self, instance: Instance) -> None:
        """Write that the peer did not take the instance; ``DicomsortError`` where that cannot be written."""
        self._write(["failed", instance.path, instance.size, instance.mtime_ns])
        self._failed[self._place(instance)] = next(self._failures)

    def _write(self, *entries: object) -> None:
        with self._lock, self._writing():
            self._files.write(self._descriptor, b"".join(dump(entry) + b"\n" for entry in entries))
            self._unflushed += 1
            if self._unflushed >= FLUSH_EVERY:
                self._files.flush(self._descriptor)
                self._unflushed = 0

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise DicomsortError(
                f"expected to write to {self._path!r} what was acknowledged, received: {error.strerror}; what the peer "
                "acknowledged last may be sent again"
            ) from None

    def close(self) -> None:
        """Make all lines durable, and release the lock."""
        try:
            with self._writing():
                self._files.flush(self._descriptor)
        finally:
            os.close(self._descriptor)


def _other_than(destination: str, line: bytes) -> str:
    """Describe a file by its first line; empty where it is the destination's journal."""
    with suppress(ValueError):
        match parse(line) if line.endswith(b"\n") else None:
            case {"format": int(number), "destination": str(found)} if number is not True and number >= FORMAT:
                if number > FORMAT:
                    return f"format {number}, which a later version of dicomsort writes"
                return "" if found == destination else printable(found[:_SHOWN])
    return "another kind: its first line is not that of a journal of `dicomsort send`"


def _file(instance: Instance) -> list[object]:
    return ["file", instance.sop_uid, instance.inode, instance.ctime_ns]


def _digest(*facts: object) -> bytes:
    text = "\0".join(map(str, facts))
    return blake2b(text.encode("utf-8", "surrogateescape"), digest_size=_DIGEST).digest()
