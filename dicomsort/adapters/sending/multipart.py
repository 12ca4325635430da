"""The body of a STOW-RS request (PS3.18 10.5.2): ``multipart/related``, a part a file, of a length known before."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Sequence

from dicomsort.adapters.sending.reading import CHUNK, outgoing
from dicomsort.adapters.sending.records import Instance, Unsendable

_HEAD = b"--%b\r\nContent-Type: application/dicom\r\n\r\n"
_TAIL = b"--%b--\r\n"


class Part:
    """A file as a part; small ones are read when it is made, large ones as they are sent."""

    def __init__(self, instance: Instance) -> None:
        """Read a small file; ``Unsendable`` where it is gone or changed."""
        self.instance = instance
        self.sha256 = ""
        self.size = len(instance.lacking) + instance.size
        self._content = b""
        if instance.size <= CHUNK:
            self._content = b"".join(self._read())

    def pieces(self) -> Iterator[bytes]:
        """The file's bytes, as a DICOM file begins; ``Unsendable`` where it changes meanwhile."""
        if self.instance.lacking:
            yield self.instance.lacking
        if self._content:
            yield self._content
        else:
            yield from self._read()

    def _read(self) -> Iterator[bytes]:
        try:
            with outgoing(self.instance) as file:
                yield from file.pieces(0)
                self.sha256 = file.sha256
        except Unsendable as problem:
            raise PartLost(self, str(problem)) from None


class PartLost(Unsendable):
    """The file of this part cannot be sent, or not be sent on."""

    def __init__(self, part: Part, message: str) -> None:
        """Keep which."""
        super().__init__(message)
        self.part = part


class Body:
    """The parts between their boundaries."""

    def __init__(self, parts: Sequence[Part]) -> None:
        """Choose a boundary that no file contains."""
        self._parts = parts
        boundary = secrets.token_hex(16)
        self._head, self._tail = _HEAD % boundary.encode(), _TAIL % boundary.encode()
        self.content_type = f'multipart/related; type="application/dicom"; boundary={boundary}'
        self.length = sum(len(self._head) + part.size + 2 for part in parts) + len(self._tail)

    def __iter__(self) -> Iterator[bytes]:
        """Yield the body in pieces of about a megabyte, so that small files do not cost a packet each."""
        out = bytearray()
        for part in self._parts:
            out += self._head
            for piece in part.pieces():
                out += piece
                if len(out) >= CHUNK:
                    yield bytes(out)
                    out.clear()
            out += b"\r\n"
        yield bytes(out + self._tail)
