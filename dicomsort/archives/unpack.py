"""Unpacks one archive into a folder of its own, as a task of a worker; and removes such folders again."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from dicomsort.archives.limits import ArchiveLimits, ArchiveRefused, Budget
from dicomsort.archives.members import DAMAGED, UNSAFE_NAME, Member, MemberDamaged, safe_name, shown_name
from dicomsort.dicom.magic import OPENED, archive_of
from dicomsort.files import Files, flush_path, is_network, look_up, opened_file
from dicomsort.files.beneath import one_below
from dicomsort.files.copying import created
from dicomsort.records import ARCHIVE, Found

_MODE = 0o666  # less the umask: a placed file has it
_HEAD = 512
_EARLIEST = 315_532_800  # 1980 in seconds since 1970: the first year of a ZIP file's times
_DEPTH = 3  # folders within each other of a staging folder


@dataclass(frozen=True, slots=True)
class UnpackRequest:
    """An archive below ``inbox``, as it was found, and the absolute path of the folder to make for its members."""

    inbox: str
    found: Found
    folder: str
    limits: ArchiveLimits


@dataclass(frozen=True, slots=True)
class UnpackedMember:
    """A member by its name, and its file in the folder; ``reason`` and ``message`` where it was not unpacked."""

    name: str
    file: str = ""
    reason: str = ""
    message: str = ""


@dataclass(frozen=True, slots=True)
class Unpacked:
    """The members of an archive, in its order; else why it was not unpacked: ``reason``, or ``failed`` by the disk."""

    members: tuple[UnpackedMember, ...] = ()
    reason: str = ""
    message: str = ""
    failed: str = ""


def unpack(request: UnpackRequest) -> Unpacked:
    """Unpack an archive; the caller removes what is left in the folder where that fails."""
    files, found = Files(), request.found
    try:
        with one_below(request.inbox, found.path) as path, opened_file(path) as stream:
            _require_unchanged(stream, found)
            files.make_folder(request.folder, 0o700)
            disk = os.statvfs(request.folder)
            budget = Budget(request.limits, found.size, disk.f_bavail * disk.f_frsize // 2)  # others need room, too
            with files.watching_errors(request.folder):  # on a network each file is flushed when it is written
                written = tuple(_written(files, stream, request, budget))
            _require_unchanged(stream, found)
        if is_network(request.folder):
            flush_path(files, request.folder)
        return Unpacked(written)
    except ArchiveRefused as refused:
        return Unpacked(reason=refused.reason, message=str(refused))
    except OSError as error:
        return Unpacked(failed=error.strerror or str(error))
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001 - whatever a library raises for hostile bytes must not end the run
        return Unpacked(reason=DAMAGED, message=f"expected a whole archive, received: {type(error).__name__}")


def _require_unchanged(stream: BinaryIO, found: Found) -> None:
    """OSError where an open file is not as it was found, as far as another host can see."""
    status = os.fstat(stream.fileno())
    if (status.st_size, status.st_mtime_ns // 10**9) != (found.size, found.mtime_ns // 10**9):
        raise OSError("the archive changed while it was read")


def _written(files: Files, stream: BinaryIO, request: UnpackRequest, budget: Budget) -> Iterator[UnpackedMember]:
    for number, member in enumerate(_members(stream, request.found, budget)):
        name, unsafe = safe_name(member.name)
        if why := unsafe or member.unsafe:
            yield UnpackedMember(shown_name(member.name), "", UNSAFE_NAME, why)
            continue
        path = f"{request.folder}/{number}"
        try:
            _write(files, path, member, request.found, budget)
        except MemberDamaged as damaged:
            files.unlink(path)
            yield UnpackedMember(name, "", damaged.reason, str(damaged))
        else:
            yield UnpackedMember(name, str(number))


def _members(stream: BinaryIO, found: Found, budget: Budget) -> Iterator[Member]:
    """Read an archive of either kind; its reader is imported only here, where one is opened."""
    head = stream.read(_HEAD)
    stream.seek(0)
    kind = archive_of(head, len(head), lambda *_: b"")
    if kind == "ZIP":
        from dicomsort.archives import zip as zip_file

        return zip_file.members(stream, found.size, budget)
    if kind in OPENED:
        from dicomsort.archives import tar

        return tar.members(stream, kind, found.path, budget)
    raise ArchiveRefused(ARCHIVE, "")


def _write(files: Files, path: str, member: Member, archive: Found, budget: Budget) -> None:
    """Write a member's bytes, and give the file the member's time, never one after the archive's or the clock's."""
    size = 0
    with created(files, path, _MODE) as (writer, _):
        for piece in member.read():
            size += len(piece)
            budget.add_written(len(piece), size)
            files.write(writer, piece)
        latest = min(archive.mtime_ns, time.time_ns())
        is_dated = member.mtime is not None and _EARLIEST <= member.mtime < latest / 10**9  # which may be infinite
        files.set_mtime(writer, int((member.mtime or 0) * 10**9) if is_dated else latest)


def remove_staging(files: Files, path: str, depth: int = _DEPTH) -> None:
    """Remove a folder of unpacked members with all that it holds; links are not followed."""
    status = look_up(path)
    if status is None:
        return
    if not stat.S_ISDIR(status.st_mode):
        files.unlink(path)
        return
    with os.scandir(path) as entries:
        names = [entry.name for entry in entries]
    for name in names if depth else ():
        remove_staging(files, f"{path}/{name}", depth - 1)
    files.remove_folder(path)
