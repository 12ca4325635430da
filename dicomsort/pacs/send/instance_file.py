"""A file's bytes on their way to the peer; what is not what it was when it was found is never sent as if it were."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from dicomsort.files import look_up, opened
from dicomsort.pacs.send.records import Instance, Unsendable

CHUNK = 1 << 20
_GONE = "it is gone since it was found"
_CHANGED = "it changed while it was sent; send again"


class Outgoing:
    """One instance's file, open. ``sha256`` is of the whole file, once ``pieces`` has come to its end."""

    def __init__(self, instance: Instance, descriptor: int) -> None:
        """Check that the file is the one that was found."""
        self._instance = instance
        self._descriptor = descriptor
        self.sha256 = ""
        self._check()

    def pieces(self, start: int) -> Iterator[bytes]:
        """Yield the bytes from ``start`` on, never nothing; the last piece only once the file proved unchanged.

        Raises ``Unsendable`` where it did not, so that whoever receives must be told to forget what came before.
        """
        digest, at, size = hashlib.sha256(), 0, self._instance.size
        while at < size:
            end = start if at < start else size
            piece = self._read(at, min(CHUNK, end - at))
            digest.update(piece)
            at += len(piece)
            if at == size:
                self._check()
                self.sha256 = digest.hexdigest()
            if at > start:
                yield piece

    def _read(self, offset: int, length: int) -> bytes:
        try:
            piece = os.pread(self._descriptor, length, offset)
        except OSError as error:
            raise Unsendable(f"it cannot be read: {error.strerror}") from None
        if len(piece) != length:
            raise Unsendable(_CHANGED)
        return piece

    def _check(self) -> None:
        _compare(self._instance, os.fstat(self._descriptor))


def check(instance: Instance) -> None:
    """``Unsendable`` where the file is no more what it was when it was found."""
    _compare(instance, look_up(instance.absolute))


def _compare(found: Instance, status: os.stat_result | None) -> None:
    if status is None:
        raise Unsendable(_GONE)
    if (status.st_size, status.st_mtime_ns, status.st_ino) != (found.size, found.mtime_ns, found.inode):
        raise Unsendable(_CHANGED)


@contextmanager
def outgoing(instance: Instance) -> Iterator[Outgoing]:
    """Open an instance's file; ``Unsendable`` where it is gone, changed or unreadable."""
    with ExitStack() as stack:
        try:
            descriptor = stack.enter_context(opened(instance.absolute))
        except FileNotFoundError:
            raise Unsendable(_GONE) from None
        except OSError as error:
            raise Unsendable(f"it cannot be read: {error.strerror}") from None
        yield Outgoing(instance, descriptor)
