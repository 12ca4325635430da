"""What a file has beside its bytes and its time: owner, group, permission bits, extended attributes.

A move to another file system keeps of these what that file system and the rights of the process allow. They are set in
an order in which no change undoes an earlier one: the owner first (which clears set-ID bits and capabilities), then
attributes with access control lists, then mode and time.
"""

from __future__ import annotations

import errno
import os
import stat
import struct
from collections.abc import Callable
from typing import NamedTuple, TypeVar

from dicomsort.files import REFUSED_BY_DISK, Files, opened
from dicomsort.files.copying import Copied, created, fill
from dicomsort.records import Lost

T = TypeVar("T")
ACL = "system.posix_acl_access"
_CAPABILITY = "security.capability"  # lets a program do what root may, so it is treated as set-ID bits are
_KINDS = ("user.", "trusted.", "security.")
_OVERLAY = ("trusted.overlay.", "user.overlay.")  # notes of a file system about a file of its own
_SET_BY_SYSTEM = frozenset({"security.selinux", "security.SMACK64", "security.ima", "security.evm"})
_SET_ID = stat.S_ISUID | stat.S_ISGID
_ACL_HEAD, _ACL_ENTRY, _OWNING_GROUP = 4, "<HHI", 0x04  # <linux/posix_acl_xattr.h>


class Metadata(NamedTuple):
    """Numeric owner and group, permission bits with set-ID bits, extended attributes (None: cannot be read)."""

    owner: int
    group: int
    mode: int
    attributes: dict[str, bytes | None]


class Applied(NamedTuple):
    """What could not be kept, in words and as an undo needs it; empty where all was kept."""

    message: str = ""
    lost: Lost | None = None


def metadata_of(descriptor: int) -> Metadata:
    """Return what an open file has, without labels that the system gives to each file itself."""
    status = os.fstat(descriptor)
    names = filter(_is_the_files_own, _listed(descriptor))
    attributes = {name: _unless_denied(os.getxattr, descriptor, name) for name in names}
    return Metadata(status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode), attributes)


def copy_with_metadata(
    files: Files, source: str, target: str, wanted: Callable[[Metadata], Metadata], mtime_ns: int
) -> tuple[Copied, Metadata, Applied]:
    """Create ``target`` with the bytes and the holes of ``source``, and metadata; flush nothing.

    ``wanted`` returns the target's metadata, given the source's, which is read from the file whose bytes are copied.
    """
    with opened(source) as reader, created(files, target) as (writer, made):
        metadata = wanted(metadata_of(reader))
        copied = fill(files, reader, writer, made, target, holes=True)
        return copied, metadata, apply_metadata(files, writer, metadata, mtime_ns)


def lost_with(path: str) -> Lost | None:
    """Return what is gone with a file or folder that is removed; None for one of this process's user without more."""
    status, attributes = os.lstat(path), [*filter(_is_the_files_own, _listed(path))]
    if (status.st_uid, status.st_gid) == (os.geteuid(), os.getegid()) and not attributes:
        return None
    return Lost(status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode), len(attributes))


def apply_metadata(files: Files, descriptor: int, wanted: Metadata, mtime_ns: int) -> Applied:
    """Set metadata and time of an open file as far as that is allowed; OSError where the disk refuses.

    Set-ID bits and capabilities are set only together with the owner and group that they were given to.
    """
    is_owned = _set_owner(files, descriptor, wanted)
    if ACL not in wanted.attributes and ACL in _listed(descriptor):  # the default list of the folder
        _allowed(descriptor, files.remove_attribute, descriptor, ACL)
    refused = [
        name
        for name, value in wanted.attributes.items()
        if value is None
        or (name == _CAPABILITY and not is_owned)
        or not _allowed(descriptor, files.set_attribute, descriptor, name, value)
    ]
    mode = _without_acl(wanted) if ACL in refused else wanted.mode
    _allowed(descriptor, files.set_mode, descriptor, mode if is_owned else mode & 0o777)
    files.set_mtime(descriptor, mtime_ns)
    there = os.fstat(descriptor)
    differs = stat.S_IMODE(there.st_mode) ^ mode
    lost = {
        "owner": there.st_uid != wanted.owner,
        "group": there.st_gid != wanted.group,
        "set-ID bits": differs & _SET_ID,
        "permission bits": differs & 0o777,
        f"{len(refused):,} extended attribute{'s' if len(refused) > 1 else ''}": refused,
    }
    if not any(lost.values()):
        return Applied()
    words = ", ".join(name for name, is_lost in lost.items() if is_lost)
    return Applied(f"not kept: {words}", Lost(wanted.owner, wanted.group, mode, len(refused)))


def _set_owner(files: Files, descriptor: int, wanted: Metadata) -> bool:
    """Set owner and group, else the group alone; return whether both are as wanted."""
    for owner in (wanted.owner, -1):
        there = os.fstat(descriptor)
        if owner in {there.st_uid, -1} and there.st_gid == wanted.group:
            break
        try:
            if _allowed(descriptor, files.set_owner, descriptor, owner, wanted.group):
                break
        except OSError as error:
            if error.errno != errno.EDQUOT:  # the owner's quota is full: the file stays ours
                raise
    there = os.fstat(descriptor)
    return (there.st_uid, there.st_gid) == (wanted.owner, wanted.group)


def _allowed(descriptor: int, change: Callable[..., None], *arguments: object) -> bool:
    """Make a change; return False where the file system or our rights forbid it, OSError where the disk refuses."""
    try:
        change(*arguments)
    except OSError as error:
        has_room = error.errno == errno.ENOSPC and os.fstatvfs(descriptor).f_bavail > 0  # an attribute is too large
        if error.errno in REFUSED_BY_DISK and not has_room:
            raise
        return False
    return True


def _without_acl(wanted: Metadata) -> int:
    """Return the mode for a lost access control list, whose mask would give the group rights that no entry gave it."""
    entries = (wanted.attributes[ACL] or b"")[_ACL_HEAD:]
    size = struct.calcsize(_ACL_ENTRY)
    found = struct.iter_unpack(_ACL_ENTRY, entries[: len(entries) // size * size])
    group = next((bits for tag, bits, _ in found if tag == _OWNING_GROUP), 0)
    return wanted.mode & (~stat.S_IRWXG | group << 3)


def _listed(file: int | str) -> list[str]:
    if not hasattr(os, "listxattr"):  # not on Linux
        return []
    return sorted(_unless_denied(os.listxattr, file) or [])


def _is_the_files_own(name: str) -> bool:
    if name in _SET_BY_SYSTEM or name.startswith(_OVERLAY):
        return False
    return name == ACL or name.startswith(_KINDS)


def _unless_denied(read: Callable[..., T], *arguments: object) -> T | None:
    """Return what ``read`` returns, None where it is not allowed or supported; OSError where the disk refuses."""
    try:
        return read(*arguments)
    except OSError as error:
        if error.errno in REFUSED_BY_DISK:
            raise
        return None
