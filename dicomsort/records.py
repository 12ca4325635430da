"""The records that the stages exchange: small, frozen and picklable, with few methods.

Paths are ``str`` decoded with ``surrogateescape`` (``os.fsdecode``), relative to the inbox or outbox, with ``/``.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple, Self

RENDERING_VERSION = 2  # of ``pixels.render``; a bundle trained on another rendering is refused
INPUT_SHAPE = (224, 224, 3)  # of what ``pixels.render`` returns; a bundle whose model takes another is refused
# Pixels of a frame's longer side from which on it is evidence. Measured on real files without their headers: of at most
# 32 pixels 10 of 13 decisions were wrong, of 33 to 64 pixels none of 13.
LEAST_SIDE = 48

OTHER = "OTHER"
REVIEW = "REVIEW"
UNREADABLE = "UNREADABLE"
ARCHIVES = "ARCHIVES"  # where archives go that were opened and moved

ARCHIVED = f"outbox/{ARCHIVES}/"  # what their places begin with
ARCHIVE, ARCHIVE_LIMIT = "archive", "archive-limit"  # reasons: it was left, or opened; it is beyond a limit
MEMBER = "!/"  # between the path of an archive and the name of a file in it
OPENED = "opened: "  # in the message of an archive that was opened
NOT_WHOLE = "it stays, as a file in it could not be placed"
OPENED_BEFORE = "an earlier run opened it"
OPENS = "`sort --archives open` opens it"

REVIEWED = "reviewed"  # the reason in the manifest after a person's decision
REVIEWED_FILE = "reviewed-file"  # of a placement: the decision was about one file, not about its series
OF_ONE_FILE = frozenset({"uid-collision", "against-placement"})  # in review because of one file, not of its series


def possible_archives(source: str) -> list[str]:
    """Return the paths that may be the archive of a row's file; some may be folders whose names end in "!"."""
    parts = source.split(MEMBER)
    return [MEMBER.join(parts[:end]) for end in range(1, len(parts))]


class Kind(StrEnum):
    """What a file is by its content (``unknown`` too where only its name says DICOM or image)."""

    DICOM = "dicom"
    PNG = "png"
    JPEG = "jpeg"
    UNKNOWN = "unknown"


class Status(StrEnum):
    """What became of a file; the column ``status`` of the manifest."""

    SORTED = "sorted"
    OTHER = "other"
    REVIEW = "review"
    UNREADABLE = "unreadable"
    DUPLICATE = "duplicate"
    CONFLICT = "conflict"
    IGNORED = "ignored"
    SETTLING = "settling"
    CHANGED = "changed"
    FAILED = "failed"


class Action(StrEnum):
    """What was done to a file; the column ``action`` of the manifest."""

    COPIED = "copied"
    MOVED = "moved"
    LINKED = "linked"
    LEFT = "left"
    REMOVED = "removed"
    UNDONE = "undone"


class DecidedBy(StrEnum):
    """Which evidence decided; the column ``decided_by`` of the manifest."""

    HEADER = "header"
    PIXELS = "pixels"
    BOTH = "both"
    STUDY = "study"
    REVIEWER = "reviewer"
    NONE = "none"


class _Packed:
    """Pickles as a plain tuple of its fields, because every file's record is sent from a worker."""

    __slots__: tuple[str, ...] = ()

    def __reduce__(self) -> tuple[type[Self], tuple[object, ...]]:
        return type(self), tuple([getattr(self, name) for name in self.__slots__])


@dataclass(frozen=True, slots=True)
class Found(_Packed):
    """A regular file that the walk found, with its ``stat``.

    ``ctime_ns`` and ``met_ns``, ``st_ctime`` and the time of the walk, are set only if ``mtime_ns`` was in the future.
    A file that an archive holds has that archive's path, and the absolute path of its unpacked bytes (none where it was
    not unpacked).
    """

    path: str
    size: int
    mtime_ns: int
    device: int
    inode: int
    mode: int = 0o644
    ctime_ns: int = 0
    met_ns: int = 0
    archive: str = ""
    unpacked: str = ""

    @property
    def is_ahead(self) -> bool:
        """Whether mtime and ctime were both in the future, so that it is unknown when the file changed."""
        return self.ctime_ns > self.met_ns

    @property
    def changed_ns(self) -> int:
        """When the file changed: its mtime, its ctime where the mtime was in the future, 0 where both were."""
        if not self.met_ns:
            return self.mtime_ns
        return 0 if self.is_ahead else self.ctime_ns


@dataclass(frozen=True, slots=True)
class Header(_Packed):
    """A file's kind by its first bytes and, for DICOM, the attributes that matter (PS3.6 names).

    Text values are stripped of padding (blanks, NUL) and decoded by (0008,0005); absent ones are ``""``.
    ``problem`` is a reason code where the header cannot be trusted to decide (``truncated-header``, ``not-dicom``,
    ``empty-file``, ``executable-preamble``, …), ``ignored`` one where the file is no image at all (``not-an-image``,
    ``archive``, ``dicomdir``). ``message`` is one sentence that names neither patient nor absolute path.
    """

    kind: Kind
    problem: str = ""
    ignored: str = ""
    message: str = ""
    transfer_syntax: str = ""  # (0002,0010), or what the bytes turned out to be
    image_type: str = ""  # (0008,0008), values joined by a backslash
    sop_class_uid: str = ""  # (0008,0016)
    sop_uid: str = ""  # (0008,0018)
    study_date: str = ""  # (0008,0020)
    accession_number: str = ""  # (0008,0050)
    modality: str = ""  # (0008,0060)
    study_description: str = ""  # (0008,1030)
    series_description: str = ""  # (0008,103E)
    patient_id: str = ""  # (0010,0020)
    body_part: str = ""  # (0018,0015)
    study_uid: str = ""  # (0020,000D)
    series_uid: str = ""  # (0020,000E)
    series_number: str = ""  # (0020,0011)
    instance_number: str = ""  # (0020,0013)
    refers_to: str = ""  # first Series Instance UID in (0008,1115), (0040,A375) or (3006,0010), of what FOLLOWS only
    frames: int = 1  # (0028,0008)
    has_pixels: bool = True  # Rows and Columns are there; False for SR, PR, KO, …


@dataclass(frozen=True, slots=True)
class Prediction:
    """The prediction for one frame, or the mean over the frames of a series.

    ``probabilities`` sum to 1, in the order of the bundle's labels. Without them, ``problem`` says why in a short
    phrase; both are empty where nothing was predicted. ``distance`` is the Mahalanobis distance, 0 or more, None where
    the model computes none. ``too_small``: every frame has fewer pixels than ``LEAST_SIDE``, and decides nothing.
    """

    probabilities: tuple[float, ...] = ()
    problem: str = ""
    distance: float | None = None
    too_small: bool = False


class Verb(StrEnum):
    """What an operation does; ``sort``, ``resume`` and ``undo`` are all made of these."""

    COPY = "copy"
    MOVE = "move"
    LINK = "link"
    REMOVE = "remove"  # the source, after every byte of it was found in ``kept``
    LEAVE = "leave"  # nothing on disk, only a row
    MAKE_FOLDER = "make-folder"
    REMOVE_FOLDER = "remove-folder"  # only where it is empty


@dataclass(frozen=True, slots=True)
class Row:
    """A row of the manifest, less its ``run_id``; the cells are in the order of its columns."""

    source: str
    destination: str = ""
    action: str = Action.LEFT
    status: str = Status.IGNORED
    class_: str = ""
    reason: str = ""
    decided_by: str = DecidedBy.NONE
    confidence: str = ""
    header_class: str = ""
    pixel_class: str = ""
    pixel_confidence: str = ""
    modality: str = ""
    sop_class_uid: str = ""
    study_uid: str = ""
    series_uid: str = ""
    sop_uid: str = ""
    kind: str = Kind.UNKNOWN
    size: int = 0
    sha256: str = ""
    message: str = ""


@dataclass(frozen=True, slots=True)
class Operation:
    """One step of a sealed plan.

    ``source``, ``target`` and ``kept`` begin with the root they lie under, ``inbox/`` or ``outbox/``. Size, mtime,
    device and inode are those of the source when it was planned; where they differ later it is ``changed``.
    ``stamp_ns`` is the mtime of a copy where that is not the source's. ``row`` is None for folders. ``owner`` (numeric
    owner and group) and ``mode`` are restored where a file goes back from a place that could not keep them.
    ``archive_sha256`` is the SHA-256 of ``kept`` where that is not a copy but an archive that contains the file.
    """

    number: int
    verb: Verb
    source: str = ""
    target: str = ""
    kept: str = ""
    size: int = 0
    mtime_ns: int = 0
    device: int = 0
    inode: int = 0
    mode: int = 0o644
    sha256: str = ""
    stamp_ns: int | None = None
    row: Row | None = None
    owner: tuple[int, int] | None = None
    archive_sha256: str = ""


class Outcome(StrEnum):
    """How an operation ended."""

    DONE = "done"
    DUPLICATE = "duplicate"
    CONFLICT = "conflict"
    CHANGED = "changed"
    FAILED = "failed"
    SKIPPED = "skipped"  # a folder that was not empty, or is there already; an archive of which not all was placed


class Lost(NamedTuple):
    """What a file could not keep, or took with it: numeric owner and group, mode, number of extended attributes."""

    owner: int
    group: int
    mode: int
    attributes: int


@dataclass(frozen=True, slots=True)
class Result:
    """How an operation ended, as the journal records it; ``inode`` is the target's."""

    number: int
    outcome: Outcome
    message: str = ""
    inode: int = 0
    lost: Lost | None = None

    @property
    def is_there(self) -> bool:
        """Whether the bytes are at the target: placed, or there already."""
        return self.outcome in {Outcome.DONE, Outcome.DUPLICATE}


@dataclass(frozen=True, slots=True)
class Examined(_Packed):
    """A file with its header and the SHA-256 of its bytes, or ``failed``: why it could not be read."""

    found: Found
    header: Header
    sha256: str = ""
    failed: str = ""


@dataclass(frozen=True, slots=True)
class Grouping:
    """The key of a group: files of one series (PS3.3 A.1.2.3) with the same header evidence get one verdict.

    ``study`` and ``series`` are UIDs; a file without valid ones is a study of its own (``study`` is then ``""`` and
    ``series`` its path). ``evidence`` is that of SOP Class and Modality, or the problem.
    """

    study: str
    series: str
    evidence: str


@dataclass(frozen=True, slots=True)
class Group:
    """A grouping with what its files have in common; ``sample`` is one of them, the first in path order."""

    number: int
    grouping: Grouping
    members: int
    newest_mtime_ns: int  # of the whole series
    sample: Examined


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a group is, and why; ``folder`` is where below the outbox it belongs (``""``: it stays in the inbox)."""

    status: Status
    folder: str = ""
    class_: str = ""
    reason: str = ""
    decided_by: DecidedBy = DecidedBy.NONE
    confidence: float | None = None
    header_class: str = ""
    pixel_class: str = ""
    pixel_confidence: float | None = None
    note: str = ""


@dataclass(frozen=True, slots=True)
class Placement:
    """Where an earlier run of this outbox put a file, by ``manifest.csv``."""

    study: str
    series: str
    sop: str
    class_: str
    status: str
    reason: str
    destination: str
    sha256: str
