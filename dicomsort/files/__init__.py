"""The only module that changes bytes on disk.

Every change goes through one ``Files`` object, a call a system call, so that a test double can crash before and after
each of them. Nothing that sorting places replaces a file: names are made by ``link``, or by ``rename``, which replaces
nothing. ``replace`` is for manifests, outputs that dicomsort itself wrote before, and names of its own.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import hashlib
import os
import re
import stat
import sys
import tempfile
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

CHUNK = 1 << 20
PATH_MAX = os.pathconf("/", "PC_PATH_MAX")  # bytes of a path that a call takes, with the NUL at its end
REFUSED_BY_DISK = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ENOMEM, errno.EMFILE, errno.ENFILE}
)  # other files would be refused, too
NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT})
# Of `rename` where the system has no such call
NO_RENAME = frozenset({errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP})
_AT_FDCWD, _RENAME_NOREPLACE = -100, 1  # <fcntl.h>, <linux/fs.h>
NO_LINK = frozenset({errno.EXDEV, errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK})
_FICLONE = 0x40049409  # <linux/fs.h>
_NO_SYNCFS = frozenset({errno.ENOSYS, errno.EINVAL, errno.ENOTSUP})
_NETWORK_SYSTEMS = (
    b"nfs", b"cifs", b"smb", b"fuse", b"9p", b"ceph", b"gluster", b"lustre", b"afs", b"virtiofs", b"vboxsf", b"beegfs",
    b"ecryptfs",
)  # fmt: skip
MOST_READ = 1 << 20  # bytes of a file that a person wrote: a configuration, a crontab, certificates
PROBE = ".dicomsort-mount-"  # the beginning of names of empty files by which two mounts are compared
STREAMS = {"/dev/stdout": 1, "/dev/stderr": 2}
_HANDED_OVER = re.compile(r"/dev/fd/\d+|/proc/self/fd/\d+|/dev/stdin")
_OCTAL = re.compile(rb"\\([0-3][0-7][0-7])")  # what mountinfo writes for a blank in a path
_NO_FOLLOW = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC  # a name that became a FIFO must not hang the run
_spare: list[memoryview] = []  # buffers that no thread uses now: one a thread, made once


class Files:
    """The changes that dicomsort makes on disk, one method a system call. Paths are absolute; errors are OSError."""

    def __init__(self) -> None:
        library = ctypes.CDLL(None, use_errno=True)  # that of C
        self._syncfs, self._renameat2 = (getattr(library, name, None) for name in ("syncfs", "renameat2"))
        self.without_clones: set[tuple[int, int]] = set()  # devices, from and to, between which no reflink was made
        self._error_descriptors: dict[int, int] = {}  # by device; open since before the first byte
        self.flushed_singly: set[int] = set()  # devices whose files are flushed one by one, by their writer

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
        """Remove one name."""
        os.unlink(path)

    def rename(self, source: str, target: str) -> None:
        """Give the file another name; FileExistsError where ``target`` is there (renameat2(2), RENAME_NOREPLACE).

        ``NO_RENAME`` has the codes of errors where the system or the file system has no such call.
        """
        if self._renameat2 is None:
            raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
        if self._renameat2(_AT_FDCWD, os.fsencode(source), _AT_FDCWD, os.fsencode(target), _RENAME_NOREPLACE):
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code), source, None, target)

    def replace(self, source: str, target: str) -> None:
        """Give the file the name ``target``, in place of what has it, which must be dicomsort's own."""
        os.replace(source, target)

    def create(self, path: str, mode: int = 0o600) -> int:
        """Create a file that is not there yet and return its descriptor, open for writing."""
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _NO_FOLLOW, mode)

    def open_append(self, path: str, mode: int = 0o666) -> int:
        """Open a regular file for appending, creating it where needed; return the descriptor.

        A link, a FIFO or a device is refused at once, and not opened.
        """
        there = look_up(path)
        if there is None or stat.S_ISREG(there.st_mode):
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | _NO_FOLLOW, mode)
            if stat.S_ISREG(os.fstat(descriptor).st_mode):  # it may have changed since
                return descriptor
            os.close(descriptor)
        raise OSError(errno.EINVAL, "it is no regular file", path)

    def open_device(self, path: str) -> int:
        """Open a character device for writing; return the descriptor.

        A standard stream is not opened anew, which would begin at the start of the file that the shell appends to.
        """
        if path in STREAMS:
            return os.dup(STREAMS[path])
        return os.open(path, os.O_WRONLY | os.O_NOCTTY | os.O_CLOEXEC)

    def write(self, descriptor: int, data: bytes | memoryview) -> None:
        """Write all of ``data``."""
        view = memoryview(data)
        while view:
            view = view[os.write(descriptor, view) :]

    def clone(self, source: int, target: int) -> None:
        """Let an empty file hold the bytes of another by sharing its blocks (a reflink)."""
        fcntl.ioctl(target, _FICLONE, source)

    def shares_blocks(self, folder: str) -> bool:
        """Whether a file system makes reflinks, as btrfs and XFS do; tried with two files that never have a name."""
        try:
            with tempfile.TemporaryFile(dir=folder) as source, tempfile.TemporaryFile(dir=folder) as target:
                self.clone(source.fileno(), target.fileno())
        except OSError:
            return False
        return True

    def allocate(self, descriptor: int, size: int) -> None:
        """Give the file ``size`` bytes of the disk; ENOSPC where there is no room, others where the system cannot.

        The file must be open for appending: else libc imitates what the file system cannot do, by writing.
        """
        if not hasattr(os, "posix_fallocate"):
            raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
        os.posix_fallocate(descriptor, 0, size)

    def truncate(self, descriptor: int, size: int) -> None:
        """Cut the file to ``size`` bytes."""
        os.ftruncate(descriptor, size)

    def set_mode(self, path: str | int, mode: int) -> None:
        """Set the permission bits of what a path names, or a descriptor."""
        os.chmod(path, stat.S_IMODE(mode))

    def set_owner(self, descriptor: int, owner: int, group: int) -> None:
        """Set numeric owner and group of an open file; -1 leaves one as it is."""
        os.chown(descriptor, owner, group)

    def set_attribute(self, descriptor: int, name: str, value: bytes) -> None:
        """Set an extended attribute of an open file; ``system.posix_acl_access`` is its access control list."""
        os.setxattr(descriptor, name, value)

    def remove_attribute(self, descriptor: int, name: str) -> None:
        """Remove an extended attribute of an open file."""
        os.removexattr(descriptor, name)

    def set_mtime(self, path: str | int, mtime_ns: int) -> None:
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
            if self._syncfs(self._error_descriptors.get(os.fstat(descriptor).st_dev, descriptor)) == 0:
                return True
            code = ctypes.get_errno()
        if code in _NO_SYNCFS:
            return False
        raise OSError(code, os.strerror(code), path)

    @contextlib.contextmanager
    def watching_errors(self, path: str) -> Iterator[None]:
        """Make later flushes report each write to a folder's file system that fails from now on.

        Linux reports such an error to every descriptor that was open before. To one that is opened later it reports it
        only if no other has seen it.
        """
        with opened(path, os.O_RDONLY | os.O_DIRECTORY) as descriptor:
            device = os.fstat(descriptor).st_dev
            self._error_descriptors[device] = descriptor
            if self._syncfs is None or is_network(path):
                self.flushed_singly.add(device)
            try:
                yield
            finally:
                del self._error_descriptors[device]

    def lock(self, descriptor: int, *, shared: bool = False) -> bool:
        """Take the lock of an open file without waiting, alone or ``shared``; False where another process holds it."""
        try:
            fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True


@contextlib.contextmanager
def closing_descriptor(descriptor: int) -> Iterator[int]:
    """Close the descriptor at the end."""
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def opened(path: str, flags: int = os.O_RDONLY) -> contextlib.AbstractContextManager[int]:
    """Open for reading without following a link at the end, and close."""
    return closing_descriptor(os.open(path, flags | _NO_FOLLOW))


@contextlib.contextmanager
def opened_file(path: str) -> Iterator[BinaryIO]:
    """Open a regular file for reading; OSError, without waiting, where a link, FIFO or device has the name."""
    with opened(path) as descriptor:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "it is no regular file", path)
        with os.fdopen(descriptor, "rb", closefd=False) as stream:
            yield stream


@contextlib.contextmanager
def opened_input(path: str | Path) -> Iterator[BinaryIO]:
    """Open a regular file, or a pipe that was handed over open, as a shell does for ``<(…)``; links are followed.

    OSError, without waiting, for what might never end, or never begin: a device, or a FIFO by its name.
    """
    is_handed = _HANDED_OVER.fullmatch(str(path)) is not None
    flags = os.O_RDONLY | os.O_CLOEXEC | (0 if is_handed else os.O_NONBLOCK)
    with closing_descriptor(os.open(path, flags)) as descriptor:
        mode = os.fstat(descriptor).st_mode
        if not stat.S_ISREG(mode) and not (is_handed and stat.S_ISFIFO(mode)):
            code = errno.EISDIR if stat.S_ISDIR(mode) else errno.EINVAL
            raise OSError(code, os.strerror(code) if code == errno.EISDIR else "it is no regular file", str(path))
        with os.fdopen(descriptor, "rb", closefd=False) as stream:
            yield stream


def read_bounded(path: str | Path) -> bytes:
    """Return the bytes of what ``opened_input`` opens; OSError where there are more than ``MOST_READ``."""
    with opened_input(path) as stream:
        content = stream.read(MOST_READ + 1)
    if len(content) > MOST_READ:
        raise OSError(errno.EFBIG, f"it is larger than {MOST_READ:,} bytes", str(path))
    return content


def look_up(path: str) -> os.stat_result | None:
    """Return ``lstat``, None where nothing is there or the name is too long to exist."""
    try:
        return os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            return None
        raise


def check_input(path: str | Path) -> None:
    """Raise OSError where ``read_bounded`` would, before a library opens the path by itself and perhaps waits."""
    if _HANDED_OVER.fullmatch(str(path)) is None:  # else nothing would be left to read
        read_bounded(path)


def missing_folders(path: str) -> list[str]:
    """Return the folders of an absolute path that do not exist, itself included, parents first."""
    chain: list[str] = []
    while look_up(path) is None:
        chain.append(path)
        path = os.path.dirname(path)
    return chain[::-1]


def is_straight(root: str, path: str) -> bool:
    """Whether a path below ``root`` leads through folders alone, none of them a link."""
    parts = path.split("/")
    if {"", ".", ".."} & set(parts) or "\0" in path:
        return False
    chain = ("/".join(parts[:end]) for end in range(1, len(parts)))
    return all((there := look_up(f"{root}/{folder}")) and stat.S_ISDIR(there.st_mode) for folder in chain)


def chunks(descriptor: int, start: int = 0, size: int = -1, end: int = sys.maxsize) -> Iterator[memoryview]:
    """Yield the file's bytes from ``start`` on, up to ``end``, in pieces that are only valid until the next.

    Where its ``size`` is known, a small file costs one call: no second one finds its end.
    """
    try:
        buffer = _spare.pop()
    except IndexError:
        buffer = memoryview(bytearray(CHUNK))
    try:
        while count := os.preadv(descriptor, [buffer[: end - start]], start):
            yield buffer[:count]
            start += count
            if count < CHUNK and start == size:
                return
    finally:
        _spare.append(buffer)


def sha256_of(path: str) -> str:
    """Return the SHA-256 of a file's bytes, in hex."""
    with opened_file(path) as stream:
        return hashed(stream.fileno(), size=os.fstat(stream.fileno()).st_size)


def hashed(descriptor: int, head: bytes = b"", size: int = -1) -> str:
    """Return the SHA-256, in hex, of an open file, whose first bytes may be given as ``head``.

    What is appended beyond a given ``size`` while it is read is left out: it may never end.
    """
    digest = hashlib.sha256(head)
    for piece in chunks(descriptor, len(head), size, size if size >= 0 else sys.maxsize):
        digest.update(piece)
    return digest.hexdigest()


def same_bytes(one: str, other: str) -> bool:
    """Whether two files hold the same bytes, all compared; two names of one file do, one name by two paths does not."""
    with opened(one) as first, opened(other) as second:
        here, there = os.fstat(first), os.fstat(second)
        if os.path.samestat(here, there):
            return here.st_nlink > 1 and not _is_one_name(one, other)
        if here.st_size != there.st_size:
            return False
        offset = 0
        for piece in chunks(first):
            if piece != os.pread(second, len(piece), offset):
                return False
            offset += len(piece)
    return True


def fold(path: str) -> str:
    """Return the same for names that some file system takes for one: without case and Unicode normal form."""
    if path.isascii():
        return path.lower()
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", path).casefold())


def _is_one_name(one: str, other: str) -> bool:
    (folder, name), (other_folder, other_name) = os.path.split(one), os.path.split(other)
    return name == other_name and os.path.samefile(folder, other_folder)


def flush_path(files: Files, path: str) -> None:
    """Make one file or folder durable."""
    with opened(path) as descriptor:
        files.flush(descriptor)


def flush_and_drop(files: Files, descriptor: int) -> None:
    """Make an open file durable, and let it be read from the disk: memory may hold more than that."""
    files.flush(descriptor)
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)


def is_network(path: str) -> bool:
    """Whether the path lies on a network or FUSE file system, whose ``syncfs`` promises little."""
    device = os.stat(path).st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}".encode()
    return next((system.startswith(_NETWORK_SYSTEMS) for number, _, system in mounts() if number == wanted), False)


def mounts() -> Iterator[tuple[bytes, str, bytes]]:
    """Yield the device, the path and the file system of each mount, bind mounts too; none where Linux does not say."""
    try:
        found = Path("/proc/self/mountinfo").read_bytes()
    except OSError:
        return
    for line in found.split(b"\n"):  # names may hold other line ends, such as a form feed
        fields, _, system = line.partition(b" - ")
        for device, _, path in [fields.split(b" ")[2:5]] if system else ():
            yield device, os.fsdecode(_OCTAL.sub(lambda octal: bytes([int(octal[1], 8)]), path)), system
