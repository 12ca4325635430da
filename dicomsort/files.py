"""The only module that changes bytes on disk.

Every change goes through one ``Files`` object, a call a system call, so that a test double can crash before and after
each of them. Nothing that sorting places replaces a file: names are made by ``link`` or by exclusive creation.
``replace`` is for figures that dicomsort itself wrote before.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import hashlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path

CHUNK = 1 << 20
NO_LINK = frozenset({errno.EXDEV, errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK})
_NO_SYNCFS = frozenset({errno.ENOSYS, errno.EINVAL, errno.ENOTSUP})
_NETWORK_SYSTEMS = ("nfs", "cifs", "smb", "fuse", "9p", "ceph", "gluster", "lustre", "afs")
_NO_FOLLOW = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC  # a name that became a FIFO must not hang the run


class Files:
    """The changes that dicomsort makes on disk, one method a system call. Paths are absolute; errors are OSError."""

    def __init__(self) -> None:
        """Look up ``syncfs`` of the C library, where it has one."""
        self._syncfs = getattr(ctypes.CDLL(None, use_errno=True), "syncfs", None)

    def make_folder(self, path: str, mode: int = 0o777) -> None:
        """Make one folder; its parent must be there."""
        os.mkdir(path, mode)

    def remove_folder(self, path: str) -> None:
        """Remove one empty folder."""
        os.rmdir(path)

    def link(self, source: str, target: str) -> None:
        """Give the file a second name; fails where ``target`` is there. Links themselves are not followed."""
        os.link(source, target, follow_symlinks=False)

    def unlink(self, path: str) -> None:
        """Take one name away."""
        os.unlink(path)

    def replace(self, source: str, target: str) -> None:
        """Give the file the name ``target``, in place of what has it; only ``report.metrics`` does this."""
        os.replace(source, target)

    def create(self, path: str, mode: int = 0o600) -> int:
        """Create a file that is not there yet and return its descriptor, open for writing."""
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _NO_FOLLOW, mode)

    def open_append(self, path: str, mode: int = 0o666) -> int:
        """Open for appending, creating it where needed; return the descriptor."""
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | _NO_FOLLOW, mode)

    def write(self, descriptor: int, data: bytes | memoryview) -> None:
        """Write all of ``data``."""
        view = memoryview(data)
        while view:
            view = view[os.write(descriptor, view) :]

    def truncate(self, descriptor: int, size: int) -> None:
        """Cut the file to ``size`` bytes."""
        os.ftruncate(descriptor, size)

    def set_mode(self, path: str, mode: int) -> None:
        """Set the permission bits."""
        os.chmod(path, stat.S_IMODE(mode))

    def set_mtime(self, path: str, mtime_ns: int) -> None:
        """Set the time of last modification (nanoseconds since 1970)."""
        os.utime(path, ns=(mtime_ns, mtime_ns))

    def flush(self, descriptor: int) -> None:
        """Return when the file's bytes are durable."""
        os.fsync(descriptor)

    def flush_system(self, path: str) -> bool:
        """Make the whole file system that holds ``path`` durable; False where it has no call for that.

        ``syncfs`` reports errors of writing back since Linux 5.8; network file systems are left to ``flush``.
        """
        if self._syncfs is None or is_network(path):
            return False
        with opened(path, os.O_RDONLY | os.O_DIRECTORY) as descriptor:
            if self._syncfs(descriptor) == 0:
                return True
            code = ctypes.get_errno()
        if code in _NO_SYNCFS:
            return False
        raise OSError(code, os.strerror(code), path)

    def lock(self, descriptor: int) -> bool:
        """Take the lock of an open file without waiting; False where another process holds it."""
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True


@contextlib.contextmanager
def opened(path: str, flags: int = os.O_RDONLY) -> Iterator[int]:
    """Open for reading without following a link at the end, and close."""
    descriptor = os.open(path, flags | _NO_FOLLOW)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def closing(descriptor: int) -> Iterator[int]:
    """Close the descriptor at the end."""
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def look_up(path: str) -> os.stat_result | None:
    """``lstat``, or None where nothing is there."""
    try:
        return os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None


def chunks(descriptor: int) -> Iterator[memoryview]:
    """Yield the file's bytes from its present offset, in pieces that are only valid until the next."""
    buffer = memoryview(bytearray(CHUNK))
    while count := os.readv(descriptor, [buffer]):
        yield buffer[:count]


def sha256_of(path: str) -> str:
    """SHA-256 of a file's bytes, in hex."""
    digest = hashlib.sha256()
    with opened(path) as descriptor:
        for piece in chunks(descriptor):
            digest.update(piece)
    return digest.hexdigest()


def same_bytes(one: str, other: str) -> bool:
    """Whether two files hold the same bytes, every one compared; two names of one file do, one name by two ways not."""
    with opened(one) as first, opened(other) as second:
        here, there = os.fstat(first), os.fstat(second)
        if os.path.samestat(here, there):
            return here.st_nlink > 1 and not _is_one_name(one, other)
        if here.st_size != there.st_size:
            return False
        return all(piece == os.pread(second, len(piece), offset) for offset, piece in _with_offsets(first))


def _is_one_name(one: str, other: str) -> bool:
    (folder, name), (other_folder, other_name) = os.path.split(one), os.path.split(other)
    return name == other_name and os.path.samefile(folder, other_folder)


def _with_offsets(descriptor: int) -> Iterator[tuple[int, memoryview]]:
    offset = 0
    for piece in chunks(descriptor):
        yield offset, piece
        offset += len(piece)


def copy_bytes(files: Files, source: str, target: str) -> str:
    """Create ``target`` with the bytes of ``source``, flushing nothing; return the SHA-256 of what was written."""
    digest = hashlib.sha256()
    with opened(source) as reader, closing(files.create(target)) as writer:
        for piece in chunks(reader):
            digest.update(piece)
            files.write(writer, piece)
    return digest.hexdigest()


def whole_lines(descriptor: int, size: int) -> int:
    """The offset after the last line feed."""
    end = size
    while end > 0:
        start = max(0, end - 65536)
        found = os.pread(descriptor, end - start, start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        end = start
    return 0


def flush_path(files: Files, path: str) -> None:
    """Make one file or folder durable."""
    with opened(path) as descriptor:
        files.flush(descriptor)


def is_network(path: str) -> bool:
    """Whether the path lies on a network or FUSE file system, whose ``syncfs`` promises little."""
    device = os.stat(path).st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    try:
        mounts = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:
        return False
    for line in mounts.splitlines():
        fields, _, tail = line.partition(" - ")
        if fields.split(" ")[2] == wanted:
            return tail.startswith(_NETWORK_SYSTEMS)
    return False
