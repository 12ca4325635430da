"""The report of a run: what it did, and what needs a person, with pictures and what the model sees in them.

Workers with limits make the pictures: a hostile file costs its own picture and nothing else.
"""

from __future__ import annotations

import base64
import os
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from operator import itemgetter

from dicomsort.bundle import Bundle
from dicomsort.engines.engine import Engine, submit_batch
from dicomsort.errors import WorkerLost
from dicomsort.files import is_straight
from dicomsort.pages.rendering import Fact, of_header, shown, title, why
from dicomsort.pages.run_statistics import RunStatistics, allotted
from dicomsort.progress import Progress
from dicomsort.records import FramePrediction, Header, Row, SeriesPrediction, Status
from dicomsort.report.manifest import Since, rows_of, since
from dicomsort.report.manifest_reader import RunRow, who_of
from dicomsort.report.review_queue import Item
from dicomsort.report.text import size
from dicomsort.sorting.pixel_sampling import mean
from dicomsort.sorting.runs import ReportedRun
from dicomsort.tasks import FramePicture, PictureRequest, make_pictures

FRAMES = 3  # pictures of a series, evenly spread
SIDE = 176  # pixels of their longer side
WIDE = 256  # of one that stands alone


@dataclass(frozen=True, slots=True)
class Spot:
    """Where a file lies now: its absolute path ("": nowhere that is known) and a few words about it."""

    path: str
    told: str
    is_waiting: bool = False


@dataclass(frozen=True, slots=True)
class Picture:
    """A thumbnail: its address (``data:``, "" where ``problem`` says why there is none) and what it is of."""

    address: str
    caption: str
    problem: str


@dataclass(frozen=True, slots=True, order=True)
class Shot:
    """What a portrait is of: its place among those of its item, and the words below it."""

    place: int
    caption: str


@dataclass(slots=True)
class Subject:
    """An item that the page tells of, and its portraits, if it is one that has pictures."""

    item: Item
    spots: list[Spot]
    made: list[tuple[Shot, FramePicture]] = field(default_factory=list)

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
        """What the header of the first file that was opened says."""
        return next((portrait.header for _, portrait in self.made if portrait.header), None)

    @property
    def heading(self) -> str:
        """What it is, in a few words."""
        modality = shown(self.row.modality, 16)
        return " · ".join(part for part in (modality, title(self.row)) if part)

    def pictures(self) -> list[Picture]:
        """Its thumbnails."""
        made = sorted(self.made, key=itemgetter(0))
        return [picture_of(shot.caption, portrait) for shot, portrait in made]

    def vote(self) -> SeriesPrediction:
        """The mean of what the model sees in the frames that are shown."""
        return mean([portrait.look or FramePrediction(problem=portrait.problem) for _, portrait in self.made])

    def asked(self, bundle: str) -> Iterator[tuple[Shot, PictureRequest]]:
        """A few of its files, evenly spread."""
        paths = [spot.path for spot in self.spots if spot.path]
        for place in spread(len(paths), FRAMES):
            caption = f"{place + 1:,} of {len(paths):,}" if len(paths) > 1 else ""
            side = SIDE if len(paths) > 1 else WIDE
            yield Shot(place, caption), PictureRequest(paths[place].lstrip("/"), None, side, bundle)

    def asked_more(self, bundle: str) -> Iterator[tuple[Shot, PictureRequest]]:
        """More frames, where it is one file that has them; the middle one was asked for before."""
        frames = self.header.frames if self.header else 1
        paths = [spot.path for spot in self.spots if spot.path]
        if len(paths) != 1 or frames == 1 or not self.made[0][1].picture:
            return
        middle = frames // 2
        self.made = [(_frame(middle, frames), portrait) for _, portrait in self.made]
        for frame in spread(frames, FRAMES):
            if frame != middle:
                yield _frame(frame, frames), PictureRequest(paths[0].lstrip("/"), frame, SIDE, bundle)

    def facts(self) -> Iterator[Fact]:
        """What is known of it, for a list of terms."""
        row = self.row
        yield Fact("Header says", shown(row.header_class, 64) or "no class")
        seen = (
            f"{shown(row.pixel_class, 64)}, {row.pixel_confidence}"
            if row.pixel_class
            else "not asked, or not to be had"
        )
        yield Fact("Pixels said", seen)
        yield from of_header(self.header)
        yield Fact("Size", self.extent)
        yield from (Fact("Now", told) for told in self.whereabouts())
        if row.message and row.message.casefold() not in why(row.reason, row.status).casefold():
            yield Fact("Message", shown(row.message))
        yield Fact("In the inbox", self.source, is_code=True)
        for term, uid in (("Study", row.study_uid), ("Series", row.series_uid)):
            if uid:
                yield Fact(term, shown(uid, 80), is_code=True)

    @property
    def source(self) -> str:
        """The path of its first file in the inbox."""
        more = len(self.item.files) - 1
        return shown(self.row.source) + (f" and {more:,} more" if more else "")

    @property
    def extent(self) -> str:
        """Its files and bytes."""
        count = len(self.item.files)
        return f"{count:,} {'file' if count == 1 else 'files'}, {size(sum(held.row.size for held in self.item.files))}"

    def whereabouts(self) -> list[str]:
        """Where its files are now, each place once, with their number where that is not all."""
        told = Counter(spot.told for spot in self.spots)
        return [words if len(told) == 1 else f"{words} ({count:,})" for words, count in told.items()]


def _frame(number: int, frames: int) -> Shot:
    return Shot(number, f"frame {number + 1:,} of {frames:,}")


def subject(told: ReportedRun, since: Since, item: Item) -> Subject:
    """An item with where its files lie now."""
    return Subject(item, [_spot(told, since, held.row) for held in item.files])


def _spot(told: ReportedRun, since: Since, row: Row) -> Spot:
    if not row.destination:
        if not told.head:
            return Spot("", "was left in the inbox")
        path = there(told.head["inbox"], row.source)
        return Spot(path, "in the inbox" if path else "no longer in the inbox under that name", bool(path))
    if decision := since.decided.get((row.destination, row.sha256)):
        who, place = shown(who_of(decision.message), 64), shown(decision.class_, 64) or str(decision.status)
        return Spot(there(told.outbox, decision.destination), f"decided: {place}, by {who}")
    if undo := since.undone.get(row.destination):
        return Spot("", f"taken back by the undo {undo}")
    path = there(told.outbox, row.destination)
    if not path:
        return Spot("", "gone: somebody took it from the outbox")
    if row.status == Status.UNREADABLE:
        return Spot(path, "kept in UNREADABLE/", is_waiting=True)
    return Spot(path, f"waits in {shown('/'.join(row.destination.split('/')[:2]), 120)}/", is_waiting=True)


def there(root: str, path: str) -> str:
    """The absolute path of what a row speaks of; empty where nothing is there, or somebody wrote one that leads out."""
    return f"{root}/{path}" if is_straight(root, path) and os.path.lexists(f"{root}/{path}") else ""


def picture_of(caption: str, portrait: FramePicture) -> Picture:
    """A portrait as a page shows it; the bytes are ours, whatever the file was."""
    if not portrait.picture:
        return Picture("", caption, shown(portrait.problem or "no picture", 120))
    return Picture(f"data:image/jpeg;base64,{base64.b64encode(portrait.picture).decode()}", caption, "")


def spread(count: int, wanted: int) -> Sequence[int]:
    """At most ``wanted`` places, evenly spread over ``range(count)``; of one, the middle."""
    return sorted({int(count * (place + 0.5) / wanted) for place in range(wanted)}) if count > 0 else []


BATCH = 4  # portraits a task: few, so that none meets its time limit for its neighbours' sake
AHEAD = 4  # tasks a worker that are sent before the first is waited for


def portraits(engine: Engine, root: str, asked: Iterable[PictureRequest]) -> Iterator[FramePicture]:
    """Yield a portrait of each, in that order; ``problem`` tells of one that cost a worker its life or its time.

    Paths are below ``root``. Some are made ahead of what is taken, but no more than the workers need to be busy.
    """
    rest = iter(asked)
    under_way: deque[Future[list[FramePicture]]] = deque()
    while batch := list(islice(rest, BATCH)):
        under_way.append(submit_batch(engine, partial(make_pictures, root), batch, _lost))
        if len(under_way) > AHEAD * engine.workers:
            yield from under_way.popleft().result()
    while under_way:
        yield from under_way.popleft().result()


def _lost(_: PictureRequest, error: WorkerLost) -> FramePicture:
    return FramePicture(b"", str(error))


LISTED = 2000  # items without pictures that are listed; the rest is counted


@dataclass(slots=True)
class Group:
    """What needs a person for one reason: items with pictures, items in a table, and how many are only counted."""

    reason: str
    why: str
    files: int
    items: int
    pictured: list[Subject] = field(default_factory=list)
    listed: list[Subject] = field(default_factory=list)

    @property
    def uncounted(self) -> int:
        """Items that the page does not list."""
        return self.items - len(self.pictured) - len(self.listed)


@dataclass(frozen=True, slots=True)
class Report:
    """All that the page tells; its template reads nothing else."""

    told: ReportedRun
    tale: RunStatistics
    bundle: Bundle | None
    groups: Sequence[Group]
    samples: Mapping[str, Sequence[Picture]]
    decided: int  # files that needed a person, and about which one has decided since


def make(told: ReportedRun, bundle: Bundle | None, engine: Engine | None, pictures: int, progress: Progress) -> Report:
    """Gather a report with pictures of so many items; without a bundle and an engine there are none."""
    progress.stage("reading the manifest", None)
    tale = RunStatistics.of(told.run, rows_of(told.outbox, told.run, doubtful=True))
    later = since(told.outbox, told.run)
    groups = _groups(told, tale, later, pictures if engine else 0)
    decided = sum(_is_decided(held, later) for held in tale.held)
    samples: dict[str, list[Picture]] = {}
    if engine and bundle:
        _picture([each for group in groups for each in group.pictured], str(bundle.folder.resolve()), engine, progress)
        samples = _samples(told, tale, engine, progress) if pictures and not told.is_undone else {}
    return Report(told, tale, bundle, groups, samples, decided)


def _groups(told: ReportedRun, tale: RunStatistics, later: Since, pictures: int) -> list[Group]:
    reasons = tale.by_reason()
    shown_ = allotted([len(items) for items in reasons.values()], pictures)
    listed = allotted([len(items) - few for items, few in zip(reasons.values(), shown_, strict=True)], LISTED)
    groups = []
    for (reason, items), few, more in zip(reasons.items(), shown_, listed, strict=True):
        items.sort(key=lambda item: all(_is_decided(held, later) for held in item.files))  # what still waits first
        group = Group(shown(reason, 64), _why(reason, items), tale.summary.held[reason], len(items))
        group.pictured = [subject(told, later, item) for item in items[:few]]
        group.listed = [subject(told, later, item) for item in items[few : few + more]]
        groups.append(group)
    return groups


def _is_decided(held: RunRow, later: Since) -> bool:
    return (held.row.destination, held.row.sha256) in later.decided


def _why(reason: str, items: Sequence[Item]) -> str:
    return why(reason, items[0].row.status if items else "")


def _picture(subjects: Sequence[Subject], bundle: str, engine: Engine, progress: Progress) -> None:
    """Have portraits made of each: of a few files first and then, now that headers were read, of a few frames."""
    for name, ask in (("making pictures", Subject.asked), ("making pictures of frames", Subject.asked_more)):
        wanted = [(each, shot, asked) for each in subjects for shot, asked in ask(each, bundle)]
        progress.stage(name, len(wanted))
        made = portraits(engine, "", [asked for _, _, asked in wanted])
        for (each, shot, _), portrait in zip(wanted, made, strict=True):
            each.made.append((shot, portrait))
            progress.advance()


def _samples(told: ReportedRun, tale: RunStatistics, engine: Engine, progress: Progress) -> dict[str, list[Picture]]:
    """A few pictures of each class, of files that are still where the run placed them."""
    placed = ((class_, there(told.outbox, row.destination)) for class_, rows in tale.samples().items() for row in rows)
    wanted = [(class_, path) for class_, path in placed if path]
    progress.stage("making pictures of classes", len(wanted))
    asked = [PictureRequest(path.lstrip("/"), None, SIDE) for _, path in wanted]
    found: dict[str, list[Picture]] = {}
    for (class_, _), portrait in zip(wanted, portraits(engine, "", asked), strict=True):
        if portrait.picture:
            found.setdefault(class_, []).append(picture_of("", portrait))
        progress.advance()
    return found
