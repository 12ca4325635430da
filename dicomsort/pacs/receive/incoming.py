"""One incoming data set: its fragments go to a part file as they come, and it is committed to the inbox under its name.

Memory does not grow with the size of an instance.
"""

from __future__ import annotations

import errno
import io
import itertools
import os
import re
import secrets
import stat
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Final, NamedTuple

from dicomsort.dicom import file_meta
from dicomsort.dicom.headers import read_header
from dicomsort.dicom.tags import is_uid
from dicomsort.discover import RECEIVING
from dicomsort.errors import DicomsortError
from dicomsort.files import CHUNK, NO_ROOM, Files, closing_descriptor, flush_path, opened, sha256_of

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

    from dicomsort.records import Header

MODE: Final = 0o640  # of received files, less what umask takes: never for everybody
FOLDER_MODE: Final = 0o750
HEAD: Final = 16 << 10  # bytes kept in memory, for the header
_OURS: Final = re.compile(re.escape(RECEIVING) + r"[0-9a-f]{8}-[0-9]+\.part")
_PART_TRIES: Final = 8
_TRIES: Final = 20  # a sort that moves may take a file, or prune a folder, between any two calls
_SUFFIXES: Final = (8, 16, 32, 64)  # hex digits of a SHA-256

# Statuses of a C-STORE response (PS3.4 B.2.3)
SUCCESS: Final = 0x0000
OUT_OF_RESOURCES: Final = 0xA700
MISMATCH: Final = 0xA900  # data set does not match SOP class
NOT_UNDERSTOOD: Final = 0xC000
FAILURE: Final = 0x0110  # processing failure (PS3.7 C.5.8)


@dataclass
class PartFile:
    """A part file, open until it is discarded. Its writer holds it locked, which tells it from a leftover."""

    files: Files
    path: str
    descriptor: int | None
    size: int = 0

    def write(self, data: bytes | memoryview) -> None:
        """Append; OSError where the disk refuses."""
        self.files.write(self._open(), data)
        self.size += len(data)

    def flush(self) -> None:
        """Return when all that was written is durable."""
        self.files.flush(self._open())

    def discard(self) -> None:
        """Remove this name of the file and close, once; a name that cannot be removed is left to the next start."""
        if self.descriptor is not None:
            descriptor, self.descriptor = self.descriptor, None
            with closing_descriptor(descriptor), suppress(OSError):
                self.files.unlink(self.path)

    def _open(self) -> int:
        if self.descriptor is None:
            raise ValueError("expected a part in use, received a discarded one")
        return self.descriptor


class PartFiles:
    """Makes part files in an inbox (an absolute path), and removes what earlier processes left."""

    def __init__(self, files: Files, inbox: str) -> None:
        self._files, self._inbox = files, inbox
        self._token = secrets.token_hex(4)
        self._numbers = itertools.count()

    def begin(self) -> PartFile:
        """Make a new, empty part; OSError where the disk refuses."""
        for _ in range(_PART_TRIES):
            path = f"{self._inbox}/{RECEIVING}{self._token}-{next(self._numbers)}.part"
            with ExitStack() as stack:
                descriptor = self._files.create(path, MODE)
                stack.callback(os.close, descriptor)
                # A process that starts at this moment may have taken it for a leftover before it was locked.
                if self._files.lock(descriptor) and os.fstat(descriptor).st_nlink > 0:
                    stack.pop_all()
                    return PartFile(self._files, path, descriptor)
        raise FileExistsError(f"expected a part of our own within {_PART_TRIES} tries")

    def clean_up(self) -> int:
        """Remove the parts that nobody has locked, which a killed process left; return how many there were."""
        removed = 0
        for name in filter(_OURS.fullmatch, os.listdir(self._inbox)):
            path = f"{self._inbox}/{name}"
            with suppress(OSError), closing_descriptor(self._files.open_append(path, MODE)) as descriptor:
                if self._files.lock(descriptor):
                    self._files.unlink(path)
                    removed += 1
        return removed

    def check(self) -> str:
        """Try what receiving needs of the inbox's file system; ``DicomsortError`` says what it refuses.

        Return why there is no room to try it: until there is, instances are refused, and senders try again.
        """
        expected = "writing and locking a file"
        try:
            part = self.begin()
            try:
                expected = "flushing it"
                part.write(b"\x00")
                part.flush()
                expected = "hard links (NFS, ext4, XFS have them; exFAT and some FUSE file systems do not)"
                second = f"{part.path.removesuffix('.part')}0.part"
                self._files.link(part.path, second)
                self._files.unlink(second)
            finally:
                part.discard()
        except OSError as error:
            if error.errno in NO_ROOM:
                return error.strerror or str(error)
            message = f"inbox {self._inbox!r}: expected {expected} to work, received {error.strerror or error}"
            raise DicomsortError(message) from error
        return ""


class Committed(StrEnum):
    """What became of an instance."""

    STORED = "stored"
    REPEATED = "repeated"  # it is there with the same data set and transfer syntax; nothing was written
    BESIDE = "stored beside another"  # its name was taken by other content


def commit(files: Files, inbox: str, part: PartFile, header: Header) -> tuple[Committed, str]:
    """Give a whole part its name in the inbox; return, when that is durable, its fate and its path below the inbox.

    The part is flushed, folders are made, it is linked to its name, the folders up to the inbox are flushed, and the
    part is removed, in this order: only then may success be answered. The header's UIDs must be valid (PS3.5 9.1), so
    that none leads anywhere else. Of two instances that come at once by one name, only one can win ``link``. Raises
    OSError where the disk refuses; the part is the caller's to discard in any case.
    """
    part.flush()
    folder = f"{header.study_uid}/{header.series_uid}"
    for name in _names(part, header.sop_uid):
        path = f"{folder}/{name}"
        committed = _link_or_match(files, inbox, part, path)
        if committed is None:
            continue
        for each in (f"{inbox}/{folder}", f"{inbox}/{header.study_uid}", inbox):
            with suppress(FileNotFoundError):  # pruned after a sort moved the file out, durably
                flush_path(files, each)
        part.discard()
        is_first = name == f"{header.sop_uid}.dcm"
        return Committed.BESIDE if committed is Committed.STORED and not is_first else committed, path
    raise OSError(errno.EEXIST, "every name that its content gives it is taken by other content")


def _names(part: PartFile, sop_uid: str) -> Iterator[str]:
    yield f"{sop_uid}.dcm"
    digest = sha256_of(part.path)
    yield from (f"{sop_uid}.{digest[:digits]}.dcm" for digits in _SUFFIXES)


def _link_or_match(files: Files, inbox: str, part: PartFile, path: str) -> Committed | None:
    """Link the part to ``path``, or find the same instance there; None where something else is."""
    for _ in range(_TRIES):
        try:
            _make_folders(files, inbox, os.path.dirname(path))
            files.link(part.path, f"{inbox}/{path}")
            return Committed.STORED
        except FileExistsError:
            with suppress(FileNotFoundError):
                return Committed.REPEATED if _same_instance(files, part.path, f"{inbox}/{path}") else None
        except FileNotFoundError:
            continue
    raise OSError(errno.EBUSY, "its folder, or the file of its name, came and went while it was stored")


def _make_folders(files: Files, inbox: str, folder: str) -> None:
    path = inbox
    for name in folder.split("/"):
        path = f"{path}/{name}"
        with suppress(FileExistsError):
            files.make_folder(path, FOLDER_MODE)
        if not stat.S_ISDIR(os.lstat(path).st_mode):
            raise NotADirectoryError(errno.ENOTDIR, "something else stands where a folder of its UIDs should be")


def _same_instance(files: Files, part: str, path: str) -> bool:
    """Whether a file holds the part's data set in the part's transfer syntax; if so, it is durable from now on."""
    if not stat.S_ISREG(os.lstat(path).st_mode):
        return False
    with opened(part) as one, opened(path) as other:
        here, there = file_meta.read_file(one), file_meta.read_file(other)
        if here is None or there is None or here.syntax != there.syntax:
            return False
        if os.fstat(one).st_size - here.end != os.fstat(other).st_size - there.end:
            return False
        offset = 0
        while piece := os.pread(one, CHUNK, here.end + offset):
            if piece != os.pread(other, len(piece), there.end + offset):
                return False
            offset += len(piece)
        files.flush(other)
    return True


class StoreRequest(NamedTuple):
    """What the command says of an instance: unproven texts, and the negotiated transfer syntax."""

    sop_class: str
    sop_uid: str
    syntax: str


class Refused(Exception):
    """An instance that is not stored: the status, a comment for the sender (at most 64 characters), offending tags.

    ``failed``: the cause is not the instance but the receiver, or its disk.
    """

    def __init__(self, status: int, comment: str, tags: tuple[int, ...] = (), *, failed: bool = False) -> None:
        super().__init__(comment)
        self.status, self.comment, self.tags, self.failed = status, comment[:64], tags, failed


UNNAMED: Final = Refused(NOT_UNDERSTOOD, "SOP Class UID or SOP Instance UID is missing")


class IncomingDataset(io.BytesIO):
    """Takes the data set of one message, as the network library writes it; never raises, for it would end the thread.

    ``request`` returns what the message asks for, None where it stores nothing; ``limit`` is in bytes. The buffer that
    it is by its type stays empty.
    """

    def __init__(self, request: Callable[[], StoreRequest | None], begin: Callable[[], PartFile], limit: int) -> None:
        super().__init__()
        self._request, self._begin, self._limit = request, begin, limit
        self._head = bytearray()
        self.request: StoreRequest | None = None
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
            except (Refused, OSError) as error:
                self.refused = error if isinstance(error, Refused) else refusal(error)
                self.discard()
        return len(piece)

    def _take(self, piece: memoryview, request: StoreRequest) -> None:
        if self.received > self._limit:
            raise Refused(OUT_OF_RESOURCES, "the instance is larger than this receiver accepts")
        if self.part is None:
            if not is_uid(request.sop_class):
                raise Refused(NOT_UNDERSTOOD, "the SOP Class UID is no UID", (0x00000002,))
            if not is_uid(request.sop_uid):
                raise Refused(NOT_UNDERSTOOD, "the SOP Instance UID is no UID", (0x00001000,))
            self.part = self._begin()
            self._put(self.part, memoryview(file_meta.encode(*request)))
        self._put(self.part, piece)

    def _put(self, part: PartFile, data: memoryview) -> None:
        part.write(data)
        if len(self._head) < HEAD:
            self._head += data[: HEAD - len(self._head)]

    def proven(self) -> tuple[PartFile, Header]:
        """Return what arrived, and its header: the UIDs are valid, and those of command and data set agree.

        Raises ``Refused`` where they do not, or nothing arrived, and OSError where it cannot be read.
        """
        if self.refused is not None:
            raise self.refused
        if self.part is None or self.request is None:
            raise Refused(NOT_UNDERSTOOD, "there is no data set")
        header = self._header(self.part)
        is_same_sop = header.sop_uid == self.request.sop_uid
        is_same_class = header.sop_class_uid == self.request.sop_class
        for is_right, status, comment, tag in (
            (is_uid(header.sop_uid), NOT_UNDERSTOOD, "no SOP Instance UID could be read", 0x00080018),
            (is_same_sop, MISMATCH, "SOP Instance UID of command and data set differ", 0x00080018),
            (is_same_class, MISMATCH, "SOP Class UID of command and data set differ", 0x00080016),
            (is_uid(header.study_uid), NOT_UNDERSTOOD, "no Study Instance UID could be read", 0x0020000D),
            (is_uid(header.series_uid), NOT_UNDERSTOOD, "no Series Instance UID could be read", 0x0020000E),
        ):
            if not is_right:
                raise Refused(status, comment, (tag,))
        return self.part, header

    def _header(self, part: PartFile) -> Header:
        def more(offset: int, length: int) -> bytes:
            with opened(part.path) as descriptor:
                return os.pread(descriptor, length, offset)

        return read_header(bytes(self._head), part.size, "", more)

    @property
    def is_open(self) -> bool:
        """Whether it holds a part."""
        return self.part is not None and self.part.descriptor is not None

    def discard(self) -> None:
        """Remove what of it is on disk under a part's name."""
        if self.part is not None:
            self.part.discard()


def refusal(error: OSError) -> Refused:
    """Return the refusal that an error of the disk becomes: the sender may try again."""
    return Refused(OUT_OF_RESOURCES, f"storing failed: {error.strerror or 'the disk refused'}", failed=True)
