"""One data set on its way in: each fragment goes to disk as it comes, so memory does not grow with the instance."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, NamedTuple

from dicomsort.classify import is_uid
from dicomsort.dicom import file_meta
from dicomsort.dicom.headers import read_header
from dicomsort.files import opened
from dicomsort.pacs.receive.part_files import Uids

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

    from dicomsort.pacs.receive.part_files import PartFile
    from dicomsort.records import Header

HEAD: Final = 16 << 10  # bytes kept in memory, for the header

# Statuses of a C-STORE response (PS3.4 B.2.3)
SUCCESS: Final = 0x0000
OUT_OF_RESOURCES: Final = 0xA700
MISMATCH: Final = 0xA900  # data set does not match SOP class
NOT_UNDERSTOOD: Final = 0xC000
FAILURE: Final = 0x0110  # processing failure (PS3.7 C.5.8)


class Request(NamedTuple):
    """What the command says of an instance: unproven texts, and the transfer syntax that was agreed on."""

    sop_class: str
    sop: str
    syntax: str


class Refused(Exception):
    """An instance that is not stored: the status, a comment for the sender (at most 64 characters), offending tags.

    ``failed`` tells that not the instance but the receiver, or its disk, is the cause.
    """

    def __init__(self, status: int, comment: str, tags: tuple[int, ...] = (), *, failed: bool = False) -> None:
        """Keep them."""
        super().__init__(comment)
        self.status, self.comment, self.tags, self.failed = status, comment[:64], tags, failed


UNNAMED: Final = Refused(NOT_UNDERSTOOD, "SOP Class UID or SOP Instance UID is missing")


class IncomingDataset(io.BytesIO):
    """Takes the data set of one message, as the network library writes it; never raises, for it would end the thread.

    The buffer that it is by its type stays empty.
    """

    def __init__(self, request: Callable[[], Request | None], begin: Callable[[], PartFile], limit: int) -> None:
        """``request`` tells what the message is, None where it stores nothing; ``limit`` is in bytes."""
        super().__init__()
        self._request, self._begin, self._limit = request, begin, limit
        self._head = bytearray()
        self.request: Request | None = None
        self.part: PartFile | None = None
        self.refused: Refused | None = None
        self.received = 0

    def write(self, data: ReadableBuffer) -> int:
        """Take a fragment; after a refusal the rest of the data set is dropped."""
        piece = memoryview(data)
        if not self.received:
            self.request = self._request()
        self.received += len(piece)
        if self.request is not None and self.refused is None:
            try:
                self._take(piece, self.request)
            except Refused as refused:
                self._refuse(refused)
            except OSError as error:
                self._refuse(refusal(error))
        return len(piece)

    def _take(self, piece: memoryview, request: Request) -> None:
        if self.received > self._limit:
            raise Refused(OUT_OF_RESOURCES, "the instance is larger than this receiver accepts")
        if self.part is None:
            if not is_uid(request.sop_class):
                raise Refused(NOT_UNDERSTOOD, "the SOP Class UID is no UID", (0x00000002,))
            if not is_uid(request.sop):
                raise Refused(NOT_UNDERSTOOD, "the SOP Instance UID is no UID", (0x00001000,))
            self.part = self._begin()
            self._put(self.part, memoryview(file_meta.encode(*request)))
        self._put(self.part, piece)

    def _put(self, part: PartFile, data: memoryview) -> None:
        part.write(data)
        if len(self._head) < HEAD:
            self._head += data[: HEAD - len(self._head)]

    def _refuse(self, refused: Refused) -> None:
        self.refused = refused
        self.discard()

    def proven(self) -> tuple[PartFile, Uids]:
        """What arrived, and its place: its UIDs are such, and those of command and data set agree.

        Raises ``Refused`` where they do not, or nothing arrived, and OSError where it cannot be read.
        """
        if self.refused is not None:
            raise self.refused
        if self.part is None or self.request is None:
            raise Refused(NOT_UNDERSTOOD, "there is no data set")
        header = self._header(self.part)
        if not is_uid(header.sop_uid):
            raise Refused(NOT_UNDERSTOOD, "no SOP Instance UID could be read", (0x00080018,))
        if header.sop_uid != self.request.sop:
            raise Refused(MISMATCH, "SOP Instance UID of command and data set differ", (0x00080018,))
        if header.sop_class_uid != self.request.sop_class:
            raise Refused(MISMATCH, "SOP Class UID of command and data set differ", (0x00080016,))
        if not is_uid(header.study_uid):
            raise Refused(NOT_UNDERSTOOD, "no Study Instance UID could be read", (0x0020000D,))
        if not is_uid(header.series_uid):
            raise Refused(NOT_UNDERSTOOD, "no Series Instance UID could be read", (0x0020000E,))
        return self.part, Uids(header.study_uid, header.series_uid, header.sop_uid)

    def _header(self, part: PartFile) -> Header:
        def more(offset: int, length: int) -> bytes:
            with opened(part.path) as descriptor:
                return os.pread(descriptor, length, offset)

        return read_header(bytes(self._head), part.size, "", more)

    @property
    def is_open(self) -> bool:
        """Whether it holds a part."""
        return self.part is not None and self.part.is_open

    def discard(self) -> None:
        """Take away what of it is on disk under a part's name."""
        if self.part is not None:
            self.part.discard()


def refusal(error: OSError) -> Refused:
    """What an error of the disk becomes: the sender may try again."""
    return Refused(OUT_OF_RESOURCES, f"storing failed: {error.strerror or 'the disk refused'}", failed=True)
