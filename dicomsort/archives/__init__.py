"""ZIP and TAR files: told by their content, read within limits, unpacked into a staging folder.

A member's name is never used as a path. An archive is either unpacked whole, or not at all; a single damaged member of
a ZIP file costs only itself.
"""

from dicomsort.archives.limits import ArchiveLimits
from dicomsort.archives.members import DAMAGED, ENCRYPTED, UNSAFE_NAME
from dicomsort.archives.unpack import Unpacked, UnpackedMember, UnpackRequest, remove_staging, unpack

__all__ = [
    "DAMAGED",
    "ENCRYPTED",
    "UNSAFE_NAME",
    "ArchiveLimits",
    "UnpackRequest",
    "Unpacked",
    "UnpackedMember",
    "remove_staging",
    "unpack",
]
