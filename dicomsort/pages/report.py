"""The report of a run: what it did, and what needs a person, with pictures and what the model sees in them.

Workers with limits make the pictures: a hostile file costs its own picture and nothing else.
"""

from __future__ import annotations

import base64
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from dicomsort.bundle import Bundle, BundleReference
from dicomsort.engines.engine import Engine, batched, map_in_order
from dicomsort.errors import WorkerLost, counted
from dicomsort.files import is_straight
from dicomsort.pages.run_statistics import RunStatistics, allotted
from dicomsort.pages.templating import Fact, of_header, shown, title, why
from dicomsort.progress import Progress
from dicomsort.records import Header, Prediction, Row, Status
from dicomsort.report.manifest import Since, rows_of, since
from dicomsort.report.manifest_reader import RunRow, who_of
from dicomsort.report.review_queue import Item
from dicomsort.report.text import size
from dicomsort.sorting.inspection import ReportedRun, waiting_after
from dicomsort.sorting.pixel_sampling import mean
from dicomsort.tasks import FramePicture, PictureRequest, make_pictures

FRAMES = 3  # pictures of a series, evenly spread
SIDE = 176  # pixels of their longer side
WIDE = 256  # of one that stands alone


@dataclass(frozen=True, slots=True)
class Spot:
    """Where a file lies now: its absolute path ("": nowhere that is known) and a few words about it."""

    path: str
    words: str
    is_waiting: bool = False


@dataclass(frozen=True, slots=True)
class Thumbnail:
    """A thumbnail: its address (``data:``, "" where ``problem`` says why there is none) and what it is of."""

    address: str
    caption: str
    problem: str

    @classmethod
    def of(cls, preview: FramePicture, caption: str = "") -> Thumbnail:
        """Return a preview as a page shows it; the bytes are ours, whatever the file was."""
        if not preview.picture:
            return cls("", caption, shown(preview.problem or "no picture", 120))
        return cls(f"data:image/jpeg;base64,{base64.b64encode(preview.picture).decode()}", caption, "")


@dataclass(slots=True)
class Subject:
    """An item of the page; ``made`` are its previews by their place among its files, or the ``frames`` of its file."""

    item: Item
    spots: list[Spot]
    made: dict[int, FramePicture] = field(default_factory=dict)
    frames: int | None = None

    @property
    def row(self) -> Row:
        """The row of its first file."""
        return self.item.row

    @property
    def is_waiting(self) -> bool:
        """Whether any of its files still waits for a person."""
        return any(spot.is_waiting for spot in self.spots)

    @property
    def header(self) -> Header | None:
        """The header of the first file that was opened."""
        return next((preview.header for preview in self.made.values() if preview.header), None)

    @property
    def heading(self) -> str:
        """What it is, in a few words."""
        modality = shown(self.row.modality, 16)
        return " · ".join(part for part in (modality, title(self.row)) if part)

    @property
    def source(self) -> str:
        """The path of its first file in the inbox."""
        more = len(self.item.files) - 1
        return shown(self.row.source) + (f" and {more:,} more" if more else "")

    @property
    def paths(self) -> list[str]:
        """Where those of its files lie that are there."""
        return [spot.path for spot in self.spots if spot.path]

    def pictures(self) -> list[Thumbnail]:
        """Return its thumbnails."""
        count = len(self.paths)
        if self.frames is not None:
            caption = f"frame {{:,}} of {self.frames:,}"
        else:
            caption = f"{{:,}} of {count:,}" if count > 1 else ""
        return [Thumbnail.of(preview, caption.format(place + 1)) for place, preview in sorted(self.made.items())]

    def prediction(self) -> Prediction:
        """Return the mean of what the model sees in the frames that are shown."""
        return mean([preview.prediction or Prediction(problem=preview.problem) for preview in self.made.values()])

    def requests(self, bundle: BundleReference) -> Iterator[tuple[int, PictureRequest]]:
        """Yield a few of its files, evenly spread, by their place."""
        paths = self.paths
        for place in spread(len(paths), FRAMES):
            side = SIDE if len(paths) > 1 else WIDE
            yield place, PictureRequest(paths[place].lstrip("/"), None, side, bundle)

    def frame_requests(self, bundle: BundleReference) -> Iterator[tuple[int, PictureRequest]]:
        """Yield more frames, where it is one file that has them; the middle one was requested before."""
        frames, paths = self.header.frames if self.header else 1, self.paths
        if len(paths) != 1 or frames == 1 or not self.made[0].picture:
            return
        middle = frames // 2
        self.frames, self.made = frames, {middle: self.made[0]}
        for frame in spread(frames, FRAMES):
            if frame != middle:
                yield frame, PictureRequest(paths[0].lstrip("/"), frame, SIDE, bundle)

    def facts(self) -> Iterator[Fact]:
        """Yield what is known of it, for a list of terms."""
        row, count = self.row, len(self.item.files)
        yield Fact("Header says", shown(row.header_class, 64) or "no class")
        has_pixels = bool(row.pixel_class)
        pixels = (
            f"{shown(row.pixel_class, 64)}, {row.pixel_confidence}" if has_pixels else "not asked, or not to be had"
        )
        yield Fact("Pixels said", pixels)
        yield from of_header(self.header)
        extent = size(sum(held.row.size for held in self.item.files))
        yield Fact("Size", f"{counted(count, 'file')}, {extent}")
        yield from (Fact("Now", words) for words in self.whereabouts())
        if row.message and row.message.casefold() not in why(row.reason, row.status).casefold():
            yield Fact("Message", shown(row.message))
        yield Fact("In the inbox", self.source, is_code=True)
        for term, uid in (("Study", row.study_uid), ("Series", row.series_uid)):
            if uid:
                yield Fact(term, shown(uid, 80), is_code=True)

    def whereabouts(self) -> list[str]:
        """Return where its files are now, each place once, with their number where that is not all."""
        counts = Counter(spot.words for spot in self.spots)
        return [words if len(counts) == 1 else f"{words} ({count:,})" for words, count in counts.items()]


def _spot(run: ReportedRun, since: Since, row: Row) -> Spot:
    if not row.destination:
        if not run.head:
            return Spot("", "was left in the inbox")
        path = _existing(run.head["inbox"], row.source)
        return Spot(path, "in the inbox" if path else "no longer in the inbox under that name", bool(path))
    if found := since.decided.get((row.destination, row.sha256)):
        decision = found.row
        who, place = shown(who_of(decision.message), 64), shown(decision.class_, 64) or str(decision.status)
        return Spot(_existing(run.outbox, decision.destination), f"decided: {place}, by {who}")
    if undo := since.undone.get(row.destination):
        return Spot("", f"taken back by the undo {undo}")
    path = _existing(run.outbox, row.destination)
    if not path:
        return Spot("", "gone: somebody took it from the outbox")
    if row.status == Status.UNREADABLE:
        return Spot(path, "kept in UNREADABLE/", is_waiting=True)
    return Spot(path, f"waits in {shown('/'.join(row.destination.split('/')[:2]), 120)}/", is_waiting=True)


def _existing(root: str, path: str) -> str:
    """Return a row's absolute path; empty where nothing is there, or somebody wrote a path that leads out."""
    return f"{root}/{path}" if is_straight(root, path) and os.path.lexists(f"{root}/{path}") else ""


def spread(count: int, wanted: int) -> Sequence[int]:
    """Return at most ``wanted`` places, evenly spread over ``range(count)``; of one, the middle."""
    return sorted({int(count * (place + 0.5) / wanted) for place in range(wanted)}) if count > 0 else []


BATCH = 4  # previews a task: few, so that none meets its time limit for its neighbours' sake


def previews(engine: Engine, root: str, requests: Iterable[PictureRequest]) -> Iterator[FramePicture]:
    """Yield a preview for each request, in that order; ``problem`` tells of one that cost a worker its life or time.

    Paths are below ``root``. Some are made ahead of what is taken, but no more than the workers need to be busy.
    """
    for made in map_in_order(engine, partial(make_pictures, root), batched(requests, BATCH), _lost):
        yield from made


def _lost(_: PictureRequest, error: WorkerLost) -> FramePicture:
    return FramePicture(b"", str(error))


LISTED = 2000  # items without pictures that are listed; the rest is counted


@dataclass(frozen=True, slots=True)
class Group:
    """What needs a person for one reason: files, items with pictures, items in a table, how many are only counted."""

    reason: str
    why: str
    files: int
    pictured: list[Subject]
    listed: list[Subject]
    only_counted: int


@dataclass(frozen=True, slots=True)
class Report:
    """The content of the page; its template reads nothing else."""

    run: ReportedRun
    statistics: RunStatistics
    bundle: Bundle | None
    groups: Sequence[Group]
    samples: Mapping[str, Sequence[Thumbnail]]
    decided: int  # files that needed a person, and about which one has decided since
    waiting: str = ""  # how many files wait in REVIEW, where some are of other runs


def make(run: ReportedRun, bundle: Bundle | None, engine: Engine | None, pictures: int, progress: Progress) -> Report:
    """Gather a report with pictures of so many items; without a bundle and an engine there are none."""
    progress.stage("reading the manifest", None)
    statistics = RunStatistics.of(run.run, rows_of(run.outbox, run.run, doubtful=True))
    later = since(run.outbox, run.run)
    groups = _groups(run, statistics, later, pictures if engine else 0)
    decided = sum(_is_decided(held, later) for held in statistics.held)
    samples: dict[str, list[Thumbnail]] = {}
    if engine and bundle:
        subjects = [each for group in groups for each in group.pictured]
        _make_pictures(subjects, bundle.reference, engine, progress)
        samples = _samples(run, statistics, engine, progress) if pictures and not run.is_undone else {}
    waiting = waiting_after(run)
    others = waiting.waiting_words if waiting.waiting_from_other_runs else ""
    words = ". ".join(filter(None, (others, waiting.unreadable_words)))
    return Report(run, statistics, bundle, groups, samples, decided, words and f"{words}.")


def _groups(run: ReportedRun, statistics: RunStatistics, later: Since, pictures: int) -> list[Group]:
    reasons = statistics.by_reason()
    pictured = allotted([len(items) for items in reasons.values()], pictures)
    listed = allotted([len(items) - few for items, few in zip(reasons.values(), pictured, strict=True)], LISTED)
    groups = []
    for (reason, items), few, more in zip(reasons.items(), pictured, listed, strict=True):
        items.sort(key=lambda item: all(_is_decided(held, later) for held in item.files))  # what still waits first
        subjects = [Subject(each, [_spot(run, later, held.row) for held in each.files]) for each in items[: few + more]]
        sentence, files = why(reason, items[0].row.status if items else ""), statistics.summary.held[reason]
        only_counted = len(items) - len(subjects)
        groups.append(Group(shown(reason, 64), sentence, files, subjects[:few], subjects[few:], only_counted))
    return groups


def _is_decided(held: RunRow, later: Since) -> bool:
    return (held.row.destination, held.row.sha256) in later.decided


def _make_pictures(subjects: Sequence[Subject], bundle: BundleReference, engine: Engine, progress: Progress) -> None:
    """Have previews made of each: of a few files first and then, now that headers were read, of a few frames."""
    stages = {"making pictures": Subject.requests, "making pictures of frames": Subject.frame_requests}
    for name, requests_of in stages.items():
        wanted = [(each, place, request) for each in subjects for place, request in requests_of(each, bundle)]
        progress.stage(name, len(wanted))
        made = previews(engine, "", [request for _, _, request in wanted])
        for (each, place, _), preview in zip(wanted, made, strict=True):
            each.made[place] = preview
            progress.advance()


def _samples(
    run: ReportedRun, statistics: RunStatistics, engine: Engine, progress: Progress
) -> dict[str, list[Thumbnail]]:
    """Return a few pictures of each class, of files that are still where the run placed them."""
    samples = [(class_, row) for class_, rows in statistics.samples().items() for row in rows]
    wanted = [(class_, path) for class_, row in samples if (path := _existing(run.outbox, row.destination))]
    progress.stage("making pictures of classes", len(wanted))
    requests = [PictureRequest(path.lstrip("/"), None, SIDE) for _, path in wanted]
    found: dict[str, list[Thumbnail]] = {}
    for (class_, _), preview in zip(wanted, previews(engine, "", requests), strict=True):
        if preview.picture:
            found.setdefault(class_, []).append(Thumbnail.of(preview))
        progress.advance()
    return found
