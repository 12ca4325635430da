"""What a destination has acknowledged, as JSON lines: why sending again sends only the rest.

The first line names format and destination, ``base`` lines the folder that later paths start at, the others an
instance each: ``["sent", path, size, mtime_ns, sop_uid, sha256]``. A line is written when the peer has said so, before
anything else is sent on that connection, and flushed with others: what a power cut takes is sent twice, never lost.
So a line that cannot be read is passed over, and a torn last one is cut off.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from hashlib import blake2b
from pathlib import Path
from typing import Any

from dicomsort.adapters.sending.records import Instance
from dicomsort.errors import DicomsortError, OutboxLocked, UsageError
from dicomsort.files import Files, flush_path, look_up, sha256_of, whole_lines
from dicomsort.jsonlines import dump, parse

FORMAT = 1
FLUSH_EVERY = 256  # lines
_DIGEST = 16  # bytes of a hash kept in memory


class Acknowledged:
    """The journal of one destination, open and locked."""

    def __init__(self, files: Files, path: str, destination: str, base: str) -> None:
        """Open or create the journal, and read it.

        Raises ``OutboxLocked`` where another sending holds it, ``UsageError`` where it is of another destination or
        cannot be written.
        """
        self._files = files
        self._path = path
        self._base = base
        self._files_known: dict[bytes, str] = {}  # of path, size and mtime -> SOP Instance UID
        self._contents: dict[str, tuple[bytes, ...]] = {}  # SOP Instance UID -> of what was sent under it
        self._waiting = 0  # lines that are not flushed yet
        self._lock = threading.Lock()
        self._descriptor = self._open()
        try:
            self._begin(destination)
        except BaseException:
            os.close(self._descriptor)
            raise

    def _open(self) -> int:
        try:
            for folder in _missing(os.path.dirname(self._path)):
                with suppress(FileExistsError):
                    self._files.make_folder(folder, 0o700)
            fresh = look_up(self._path) is None
            descriptor = self._files.open_append(self._path, 0o600)
            if fresh:
                flush_path(self._files, os.path.dirname(self._path))
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
        size = os.fstat(self._descriptor).st_size
        whole = whole_lines(self._descriptor, size)
        if whole != size:
            self._files.truncate(self._descriptor, whole)
        if not whole:
            self._write({"format": FORMAT, "destination": destination})
        base = self._read(destination)
        if base != self._base:
            self._write(["base", self._base])

    def _read(self, destination: str) -> str:
        """Take up all lines; the base that holds at their end."""
        base = ""
        with Path(self._path).open("rb") as lines:
            head = _parsed(lines.readline())
            there = head.get("destination") if isinstance(head, dict) else "something else"
            if there != destination:
                raise UsageError(f"expected {self._path!r} to be of {destination}, received one of {there}")
            for line in lines:
                match _parsed(line):
                    case ["base", str(base)]:
                        pass
                    case ["sent", str(path), int(size), int(mtime_ns), str(sop_uid), str(sha256)]:
                        self._remember(_key(base, path, size, mtime_ns), sop_uid, sha256)
        return base

    def _remember(self, key: bytes, sop_uid: str, sha256: str) -> None:
        self._files_known[key] = sop_uid
        content, known = _content(sha256), self._contents.get(sop_uid, ())
        if content not in known:
            self._contents[sop_uid] = (*known, content)

    def holds(self, path: str, size: int, mtime_ns: int) -> str | None:
        """The SOP Instance UID of a file that was acknowledged as it is now, else None."""
        return self._files_known.get(_key(self._base, path, size, mtime_ns))

    def holds_content(self, instance: Instance) -> bool:
        """Whether the same bytes were acknowledged under another path or time; from now on this path is known too."""
        known = self._contents.get(instance.sop_uid)
        if known is None:
            return False
        try:
            sha256 = sha256_of(instance.absolute)
        except OSError:
            return False  # sending will tell why
        if _content(sha256) in known:
            self.add(instance, sha256)
            return True
        return False

    def add(self, instance: Instance, sha256: str) -> None:
        """Write that the peer has the instance; ``DicomsortError`` where that cannot be written."""
        path, size, mtime_ns, sop_uid = instance.path, instance.size, instance.mtime_ns, instance.sop_uid
        self._write(["sent", path, size, mtime_ns, sop_uid, sha256])
        self._remember(_key(self._base, path, size, mtime_ns), sop_uid, sha256)

    def _write(self, entry: object) -> None:
        with self._lock, self._border():
            self._files.write(self._descriptor, dump(entry) + b"\n")
            self._waiting += 1
            if self._waiting >= FLUSH_EVERY:
                self._files.flush(self._descriptor)
                self._waiting = 0

    @contextmanager
    def _border(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise DicomsortError(
                f"expected to write to {self._path!r} what was acknowledged, received: {error.strerror}; what the peer "
                "acknowledged last may be sent again"
            ) from None

    def close(self) -> None:
        """Make all lines durable, and let go of the lock."""
        try:
            with self._border():
                self._files.flush(self._descriptor)
        finally:
            os.close(self._descriptor)


def _parsed(line: bytes) -> Any:
    try:
        return parse(line)
    except ValueError:
        return None


def _missing(folder: str) -> list[str]:
    chain = []
    while look_up(folder) is None:
        chain.append(folder)
        folder = os.path.dirname(folder)
    return chain[::-1]


def _key(base: str, path: str, size: int, mtime_ns: int) -> bytes:
    text = f"{base}\0{path}\0{size}\0{mtime_ns}"
    return blake2b(text.encode("utf-8", "surrogateescape"), digest_size=_DIGEST).digest()


def _content(sha256: str) -> bytes:
    return blake2b(sha256.encode(), digest_size=_DIGEST).digest()
