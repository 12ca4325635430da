"""What needs a person, as the report shows it: where it lies now, its pictures, what the model sees in them."""

from __future__ import annotations

import base64
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from operator import itemgetter

from dicomsort.files import is_straight
from dicomsort.pages.facts import Fact, of_header, shown, title, why
from dicomsort.records import Header, Look, Row, Status, Vote
from dicomsort.report.held import Item
from dicomsort.report.retold import Since
from dicomsort.report.reviewed import who_of
from dicomsort.report.text import size
from dicomsort.sorting.looking import mean
from dicomsort.sorting.retelling import Told
from dicomsort.tasks import Asked, Portrait

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
    made: list[tuple[Shot, Portrait]] = field(default_factory=list)

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

    def vote(self) -> Vote:
        """The mean of what the model sees in the frames that are shown."""
        return mean([portrait.look or Look(problem=portrait.problem) for _, portrait in self.made])

    def asked(self, bundle: str) -> Iterator[tuple[Shot, Asked]]:
        """A few of its files, evenly spread."""
        paths = [spot.path for spot in self.spots if spot.path]
        for place in spread(len(paths), FRAMES):
            caption = f"{place + 1:,} of {len(paths):,}" if len(paths) > 1 else ""
            side = SIDE if len(paths) > 1 else WIDE
            yield Shot(place, caption), Asked(paths[place].lstrip("/"), None, side, bundle)

    def asked_more(self, bundle: str) -> Iterator[tuple[Shot, Asked]]:
        """More frames, where it is one file that has them; the middle one was asked for before."""
        frames = self.header.frames if self.header else 1
        paths = [spot.path for spot in self.spots if spot.path]
        if len(paths) != 1 or frames == 1 or not self.made[0][1].picture:
            return
        middle = frames // 2
        self.made = [(_frame(middle, frames), portrait) for _, portrait in self.made]
        for frame in spread(frames, FRAMES):
            if frame != middle:
                yield _frame(frame, frames), Asked(paths[0].lstrip("/"), frame, SIDE, bundle)

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


def subject(told: Told, since: Since, item: Item) -> Subject:
    """An item with where its files lie now."""
    return Subject(item, [_spot(told, since, held.row) for held in item.files])


def _spot(told: Told, since: Since, row: Row) -> Spot:
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


def picture_of(caption: str, portrait: Portrait) -> Picture:
    """A portrait as a page shows it; the bytes are ours, whatever the file was."""
    if not portrait.picture:
        return Picture("", caption, shown(portrait.problem or "no picture", 120))
    return Picture(f"data:image/jpeg;base64,{base64.b64encode(portrait.picture).decode()}", caption, "")


def spread(count: int, wanted: int) -> Sequence[int]:
    """At most ``wanted`` places, evenly spread over ``range(count)``; of one, the middle."""
    return sorted({int(count * (place + 0.5) / wanted) for place in range(wanted)}) if count > 0 else []
