"""New files with the bytes of others: copied in one pass, shared by the file system, or with the same holes."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
from collections.abc import Iterator
from typing import NamedTuple

from dicomsort.files import CHUNK, Files, chunks, closing_descriptor, hashed, opened, sha256_of

_NEVER_CLONES = frozenset({errno.EXDEV, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOTTY, errno.ENOSYS})
_ZEROS = memoryview(bytes(CHUNK))


class Copied(NamedTuple):
    """A new file: the SHA-256 of the bytes it was given, and which file it is."""

    sha256: str
    device: int
    inode: int


def copy(files: Files, source: str, target: str, mode: int, mtime_ns: int) -> Copied:
    """Create ``target`` with the bytes of ``source``, then with that mode and mtime; flush nothing.

    Where the file system shares blocks, ``target`` is a snapshot of ``source``. Then the source is hashed, which may
    still be in memory, if it did not change since before the snapshot; else the snapshot. Where the disk refuses,
    ``target`` is removed again.
    """
    with opened(source) as reader, created(files, target) as (writer, made):
        copied = fill(files, reader, writer, made, target)
        files.set_mode(writer, mode)
        files.set_mtime(writer, mtime_ns)
    return copied


@contextlib.contextmanager
def created(files: Files, target: str, mode: int = 0o600) -> Iterator[tuple[int, os.stat_result]]:
    """Create a file and close it at the end; where the disk refuses, also at closing, the file is removed again."""
    writer = files.create(target, mode)
    made = os.fstat(writer)
    try:
        with closing_descriptor(writer):
            yield writer, made
            if made.st_dev in files.flushed_singly:
                files.flush(writer)
    except OSError:
        with contextlib.suppress(OSError):
            if os.path.samestat(os.lstat(target), made):
                files.unlink(target)
        raise


def fill(files: Files, reader: int, writer: int, made: os.stat_result, target: str, *, holes: bool = False) -> Copied:
    """Fill an empty file, ``target``, with the bytes of another, and with the same holes if ``holes``."""
    before = os.fstat(reader)
    if not before.st_size or not _is_cloned(files, reader, writer, (before.st_dev, made.st_dev)):
        is_sparse = holes and before.st_blocks * 512 < before.st_size
        write = _filled_but_for_holes if is_sparse else _filled
        sha256 = write(files, reader, writer, before.st_size)
    else:
        sha256 = hashed(reader, size=before.st_size)
        if _last_touched(os.fstat(reader)) != _last_touched(before):
            sha256 = sha256_of(target)
    return Copied(sha256, made.st_dev, made.st_ino)


def _is_cloned(files: Files, reader: int, writer: int, devices: tuple[int, int]) -> bool:
    """Whether the file system shared the blocks; an error that prevents writing, too, is raised by writing."""
    if devices in files.without_clones:
        return False
    try:
        files.clone(reader, writer)
    except OSError as error:
        if error.errno in _NEVER_CLONES:
            files.without_clones.add(devices)
        return False
    return True


def _filled(files: Files, reader: int, writer: int, size: int) -> str:
    digest = hashlib.sha256()
    for piece in chunks(reader, size=size, end=size):
        digest.update(piece)
        files.write(writer, piece)
    return digest.hexdigest()


def _filled_but_for_holes(files: Files, reader: int, writer: int, size: int) -> str:
    digest, done = hashlib.sha256(), 0
    for start, end in with_data(reader, size):
        _hash_zeros(digest, start - done)
        os.lseek(writer, start, os.SEEK_SET)
        for piece in chunks(reader, start, end=end):
            digest.update(piece)
            files.write(writer, piece)
        done = end
    if done < size:
        _hash_zeros(digest, size - done)
        files.truncate(writer, size)
    return digest.hexdigest()


def holds_only_zeros(descriptor: int, size: int) -> bool:
    """Whether the file's first ``size`` bytes are zeros; holes are not read."""
    pieces = (piece for start, end in with_data(descriptor, size) for piece in chunks(descriptor, start, end=end))
    return all(bytes(piece) == bytes(len(piece)) for piece in pieces)


def with_data(descriptor: int, size: int) -> Iterator[tuple[int, int]]:
    """Yield start and end of each part of a file that has data; between them are holes, which read as zeros."""
    end = 0
    while end < size:
        try:
            start = os.lseek(descriptor, end, os.SEEK_DATA)
        except OSError as error:
            if error.errno != errno.ENXIO:  # the file system does not say; else it is a hole up to the end
                yield end, size
            return
        end = min(os.lseek(descriptor, start, os.SEEK_HOLE), size)
        if start < end:
            yield start, end


def _hash_zeros(digest: hashlib._Hash, count: int) -> None:
    for _ in range(count // CHUNK):
        digest.update(_ZEROS)
    digest.update(_ZEROS[: count % CHUNK])


def _last_touched(status: os.stat_result) -> tuple[int, int, int]:
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns
