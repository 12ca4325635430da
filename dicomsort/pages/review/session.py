"""One review of an outbox, as its pages see it: items in an order that stays, and what became of each."""

from __future__ import annotations

import shlex
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dicomsort.bundle import Bundle
from dicomsort.errors import Outdated, UsageError
from dicomsort.pages.facts import of_header, shown, size, title, why
from dicomsort.pages.review.gallery import Gallery
from dicomsort.records import OTHER, Look
from dicomsort.report.held import Held, Item
from dicomsort.report.reviewed import reviewer, who_of
from dicomsort.sorting import Desk, spread
from dicomsort.tasks import Asked, Portrait

LOOKED = 3  # frames that the bars are the mean of
FELLOWS = 100  # neighbours, among which those of a study lie
NAMED = 3  # paths of an item that are told
TAKEN = frozenset("ujksn")  # keys that do other things


def keys_for(labels: Sequence[str]) -> dict[str, str]:
    """A key a class, OTHER with them: a letter of its name, else a digit."""
    chosen: dict[str, str] = {}
    for number, label in enumerate(dict.fromkeys([*labels, OTHER]), 1):
        letters = (c for c in label.lower() if c.isascii() and c.isalpha() and c not in TAKEN)
        free = (c for c in letters if c not in chosen.values())
        chosen[label] = next(free, str(number % 10))
    return chosen


@dataclass
class Session:
    """What pages ask for; safe to use from several threads. Items keep their places, new ones come last."""

    desk: Desk
    bundle: Bundle
    gallery: Gallery
    who: str = "unknown"
    identifiers: bool = False
    made: list[str] = field(default_factory=list)  # the runs of this session's decisions, undone ones left out
    revision: int = 0
    _items: list[Item] = field(default_factory=list)
    _places: dict[str, int] = field(default_factory=dict)
    _turn: threading.RLock = field(default_factory=threading.RLock)

    def refresh(self) -> None:
        """Read on in the manifest, for others may be at work."""
        if self.desk.refresh() or not self.revision:
            self._arrange()

    def _arrange(self) -> None:
        with self._turn:
            for key, item in self.desk.holdings.items.items():
                place = self._places.setdefault(key, len(self._items))
                self._items[place : place + 1] = [item]
            self.revision += 1

    def state(self) -> dict[str, Any]:
        """How far the review has come."""
        self.refresh()
        count, waiting = len(self._items), len(self.desk.holdings.items)
        return {
            "revision": self.revision, "count": count, "waiting": waiting, "decided": count - waiting,
            "last": self.made[-1] if self.made else "", "made": len(self.made),
        }  # fmt: skip

    def farewell(self) -> dict[str, Any]:
        """How far it has come at its end, and the command by which a model learns from it ("": from nothing)."""
        kept = self.desk.corrections
        images = kept.count() if kept else 0
        words = ["dicomsort", "train", "--from", str(self.bundle.folder), "--out", "models/ours"]
        train = shlex.join([*words, kept.folder]) if kept and images else ""
        return self.state() | {"images": images, "train": train}

    def window(self, start: int, count: int) -> dict[str, Any]:
        """Some of the items, in a few words each."""
        chosen = self._items[start : start + count]
        items = [self._brief(place, item) for place, item in enumerate(chosen, start)]
        return {"revision": self.revision, "count": len(self._items), "items": items}

    def next_open(self, after: int) -> dict[str, Any]:
        """The place of the next item that waits, around the end; -1 where none does."""
        waiting = self.desk.holdings.items
        places = [*range(after + 1, len(self._items)), *range(min(after + 1, len(self._items)))]
        return {"place": next((place for place in places if self._items[place].key in waiting), -1)}

    def facts(self, place: int) -> dict[str, Any]:
        """Everything that is told of one item."""
        item = self.item(place)
        frames, portraits = self._looked(item)
        header = portraits[0].header
        row = item.row
        told = self._brief(place, item) | {
            "why": why(row.reason, row.status), "message": shown(row.message), "pictures": frames,
            "confidence": row.pixel_confidence, "modality": shown(row.modality, 16), "title": title(row),
            "codes": {fact.term: fact.value for fact in of_header(header)},
            "study_uid": shown(row.study_uid, 64), "series_uid": shown(row.series_uid, 64),
            "paths": [shown(each.row.source) for each in item.files[:NAMED]],
            "size": size(sum(each.row.size for each in item.files)),
            "problem": next((p.problem for p in portraits if p.problem), ""),
            "probabilities": self._mean([p.look for p in portraits if p.look and p.look.probabilities]),
            "fellows": self._fellows(place, item),
            "looks": sum(1 for p in portraits if p.look and p.look.probabilities),
        }  # fmt: skip
        if self.identifiers and header:
            told["identifiers"] = {
                "Patient ID": shown(header.patient_id),
                "Accession Number": shown(header.accession_number),
            }
        return told

    def picture(self, place: int, number: int, side: int) -> Portrait:
        """One picture of an item: of a file, or where it has one file alone, of a frame; -1 is the middle one."""
        item = self.item(place)
        if len(item.files) > 1:
            number = len(item.files) // 2 if number < 0 else number
            return self.gallery.portrait(Asked(self._lies(_at(item.files, number)), None, side))
        frame = number if number >= 0 else None
        return self.gallery.portrait(Asked(self._lies(item.files[0]), frame, side))

    def decide(self, place: int, key: str, class_: str, who: str) -> dict[str, Any]:
        """Decide about an item, by its place and its key; what came of it."""
        item = self.item(place)
        if item.key != key:
            raise Outdated("expected the item that is shown, received another; reload the page")
        if class_ not in keys_for(self.bundle.labels):
            raise UsageError(f"expected one of {', '.join(keys_for(self.bundle.labels))}, received {class_!r}")
        try:
            decision = self.desk.decide(key, class_, reviewer(who or self.who))
        except Outdated as error:
            self.refresh()
            raise Outdated(f"{error} ({self._fate(item)})") from error
        self.made.append(decision.run)
        self._arrange()
        return {"run": decision.run, "moved": decision.moved, "notes": decision.notes} | self.state()

    def undo(self, run: str) -> dict[str, Any]:
        """Take a decision back."""
        decided = self.desk.holdings.decided
        place = next((p for p, item in enumerate(self._items) if (by := _by(item, decided)) and by.run == run), -1)
        summary = self.desk.undo(run)
        if run in self.made:
            self.made.remove(run)
        self._arrange()
        return {"undone": summary.actions["undone"], "place": place} | self.state()

    def item(self, place: int) -> Item:
        """The item at a place; Outdated where there is none."""
        if not 0 <= place < len(self._items):
            raise Outdated(f"expected one of {len(self._items):,} items, received number {place}; reload the page")
        return self._items[place]

    def _brief(self, place: int, item: Item) -> dict[str, Any]:
        row, by = item.row, _by(item, self.desk.holdings.decided)
        state = "waiting" if item.key in self.desk.holdings.items else "decided" if by else "gone"
        return {
            "place": place, "key": item.key, "state": state, "files": len(item.files), "reason": row.reason,
            "header": row.header_class, "pixels": row.pixel_class, "study": row.study_uid[-12:],
            "class": by.row.class_ if by and state == "decided" else "", "run": by.run if by else "",
            "by": f"by {who_of(by.row.message)}" if by else "",
        }  # fmt: skip

    def _fellows(self, place: int, item: Item) -> list[dict[str, Any]]:
        """The other items of its study that wait, each with its place and key."""
        waiting = self.desk.holdings.items
        near = [place + by for by in range(-FELLOWS, FELLOWS + 1) if by and 0 <= place + by < len(self._items)]
        same = [at for at in near if item.study and self._items[at].study == item.study]
        return [{"place": at, "key": key} for at in same if (key := self._items[at].key) in waiting]

    def _fate(self, item: Item) -> str:
        by = _by(item, self.desk.holdings.decided)
        return f"{by.row.class_} by {who_of(by.row.message)}, run {by.run}" if by else "an undo, or somebody"

    def _looked(self, item: Item) -> tuple[int, list[Portrait]]:
        """How many pictures an item has, and what the model sees in a few of them."""
        model = str(self.bundle.folder.resolve())
        if len(item.files) > 1:
            files = [self._lies(item.files[place]) for place in spread(len(item.files), LOOKED)]
            return len(item.files), [self.gallery.portrait(Asked(path, None, 0, model)) for path in files]
        path = self._lies(item.files[0])
        first = self.gallery.portrait(Asked(path, None, 0, model))
        frames = first.header.frames if first.header and not first.problem else 1
        if frames <= 1:
            return 1, [first]
        return frames, [self.gallery.portrait(Asked(path, place, 0, model)) for place in spread(frames, LOOKED)]

    def _mean(self, looks: Sequence[Look]) -> dict[str, float]:
        shares = zip(*(look.probabilities for look in looks), strict=True)
        return dict(zip(self.bundle.labels, (round(sum(each) / len(looks), 4) for each in shares), strict=False))

    def _lies(self, held: Held) -> str:
        """Where a file lies now."""
        pair = self.desk.holdings.decided.get(held.row.destination)
        return (pair and pair[1].row.destination) or held.row.destination


def _by(item: Item, decided: Mapping[str, tuple[Held, Held]]) -> Held | None:
    """The decision about an item's first file, if there is one."""
    pair = decided.get(item.row.destination)
    return pair[1] if pair else None


def _at(files: Sequence[Held], number: int) -> Held:
    if not 0 <= number < len(files):
        raise Outdated(f"expected one of {len(files):,} pictures, received number {number}")
    return files[number]
