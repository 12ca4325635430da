"""One review of an outbox: items in an order that stays, what became of each, and pictures on demand.

Workers with limits make the pictures; the newest are kept in bounded memory, none on disk.
"""

from __future__ import annotations

import shlex
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from dicomsort.bundle import Bundle
from dicomsort.engines.engine import Engine
from dicomsort.errors import BundleChanged, Outdated, UsageError, WorkerLost, counted
from dicomsort.files import is_straight
from dicomsort.pages.templating import of_header, shown, title, why
from dicomsort.records import OTHER
from dicomsort.report.manifest_reader import RunRow, reviewer, who_of
from dicomsort.report.review_queue import Item
from dicomsort.report.text import size
from dicomsort.sorting import ReviewService
from dicomsort.sorting.pixel_sampling import mean, middle_half
from dicomsort.tasks import FramePicture, PictureRequest, make_pictures

CACHE_BYTES = 64 << 20  # of pictures
_OVERHEAD = 4096  # bytes of all else in a preview, about


class Gallery:
    """Previews of files below one folder, the newest cached; safe to use from several threads."""

    def __init__(self, engine: Engine, root: str) -> None:
        """Begin without a picture."""
        self._engine, self._root = engine, root
        self._previews: OrderedDict[tuple[PictureRequest, str], FramePicture] = OrderedDict()
        self._lock = threading.Lock()

    def preview(self, request: PictureRequest, sha256: str) -> FramePicture:
        """Return a preview of a file of this content, or one whose ``problem`` says why there is none."""
        key = (request, sha256)  # another file may come by the same name
        with self._lock:
            if key in self._previews:
                self._previews.move_to_end(key)
                return self._previews[key]
        try:
            (preview,) = self._engine.submit(partial(make_pictures, self._root), [request]).result()
        except (WorkerLost, BundleChanged) as error:
            return FramePicture(b"", str(error))
        if not preview.problem:  # a problem may pass
            with self._lock:
                self._previews[key] = preview
                total = sum(len(each.picture) + _OVERHEAD for each in self._previews.values())
                while total > CACHE_BYTES and len(self._previews) > 1:
                    _, oldest = self._previews.popitem(last=False)
                    total -= len(oldest.picture) + _OVERHEAD
        return preview


FRAMES = 3  # that the bars are the mean of
NAMED = 3  # paths of an item
MOST_ITEMS = 500  # that one answer describes
TAKEN = frozenset("ujksn")  # keys that do other things


def keys_for(labels: Sequence[str]) -> dict[str, str]:
    """A key a class, OTHER with them: a letter of its name, else a digit, else none (there are buttons)."""
    chosen: dict[str, str] = {}
    for number, label in enumerate(dict.fromkeys([*labels, OTHER]), 1):
        letters = (c for c in label.lower() if c.isascii() and c.isalpha() and c not in TAKEN)
        free = (c for c in letters if c not in chosen.values())
        chosen[label] = next(free, str(number) if number <= len("123456789") else "")
    return chosen


@dataclass
class Session:
    """The state of a review; safe to use from several threads. Items keep their places, new ones come last."""

    service: ReviewService
    bundle: Bundle
    gallery: Gallery
    who: str = "unknown"
    identifiers: bool = False
    revision: int = 0
    _made: set[str] = field(default_factory=set)  # runs of this session's decisions, less those undone
    _items: list[Item] = field(default_factory=list)
    _places: dict[str, int] = field(default_factory=dict)
    _studies: dict[str, list[int]] = field(default_factory=dict)  # the places of each study's items
    _lock: threading.RLock = field(default_factory=threading.RLock)

    def refresh(self) -> None:
        """Read on in the manifest, for others may be at work."""
        if self.service.refresh() or not self.revision:
            self._arrange()

    def _arrange(self) -> None:
        with self._lock:
            for key, item in self.service.queue.items.items():
                if key not in self._places:
                    self._places[key] = len(self._items)
                    self._studies.setdefault(item.study, []).append(len(self._items))
                place = self._places[key]
                self._items[place : place + 1] = [item]
            self.revision += 1

    def state(self) -> dict[str, Any]:
        """Return how far the review has come."""
        self.refresh()
        count, waiting = len(self._items), len(self.service.queue.items)
        return {
            "revision": self.revision, "count": count, "waiting": waiting, "decided": count - waiting,
            "made": len(self._made),
        }  # fmt: skip

    def farewell(self) -> dict[str, Any]:
        """Return how far it has come at its end, and the command by which a model learns from it ("": from nothing)."""
        corrections = self.service.corrections
        images = corrections.count() if corrections else 0
        words = ["dicomsort", "train", "--from", str(self.bundle.folder), "--out", "models/ours"]
        train = shlex.join([*words, corrections.folder]) if corrections and images else ""
        return self.state() | {"images": images, "train": train}

    def window(self, start: int, count: int) -> dict[str, Any]:
        """Return some of the items, in a few words each."""
        chosen = self._items[start : start + min(count, MOST_ITEMS)]
        items = [self._brief(place, item) for place, item in enumerate(chosen, start)]
        return {"revision": self.revision, "count": len(self._items), "items": items}

    def next_open(self, after: int) -> dict[str, Any]:
        """Return the place of the next item that waits after one, or after -1, around the end; -1 where none does."""
        if after != -1:
            self.item(after)
        waiting = self.service.queue.items
        places = [*range(after + 1, len(self._items)), *range(after + 1)]
        return {"place": next((place for place in places if self._items[place].key in waiting), -1)}

    def facts(self, place: int) -> dict[str, Any]:
        """Return everything that is shown of one item."""
        item = self.item(place)
        frames, previews = self._sampled(item)
        header, prediction = previews[0].header, mean([p.prediction for p in previews if p.prediction])
        shares = zip(self.bundle.labels, prediction.probabilities, strict=False)
        row = item.row
        facts = self._brief(place, item) | {
            "why": why(item.reason, row.status), "message": shown(row.message), "pictures": frames,
            "confidence": row.pixel_confidence, "modality": shown(row.modality, 16), "title": title(row),
            "codes": {fact.term: fact.value for fact in of_header(header)},
            "study_uid": shown(row.study_uid, 64), "series_uid": shown(row.series_uid, 64),
            "paths": [shown(each.row.source) for each in item.files[:NAMED]],
            "size": size(sum(each.row.size for each in item.files)),
            "problem": next((p.problem for p in previews if p.problem), ""),
            "probabilities": {label: round(share, 4) for label, share in shares},
            "fellows": self._fellows(place, item),
            "looks": sum(1 for p in previews if p.prediction and p.prediction.probabilities),
        }  # fmt: skip
        if self.identifiers and header:
            patient, accession = shown(header.patient_id), shown(header.accession_number)
            facts["identifiers"] = {"Patient ID": patient, "Accession Number": accession}
        return facts

    def picture(self, place: int, version: str, number: int, side: int) -> FramePicture:
        """Return one picture of an item: of a file, or where it has one file alone, of a frame; -1 is the middle one.

        Outdated where the item has other files than it had as ``version``.
        """
        item = self.item(place)
        if item.version != version:
            raise Outdated("expected the files that are shown, received others or more of them: look again")
        files = item.files
        if len(files) == 1:
            return self._preview(files[0], number if number >= 0 else None, side)
        if number >= len(files):
            raise Outdated(f"expected one of {counted(len(files), 'picture')}, received number {number}")
        return self._preview(files[number if number >= 0 else len(files) // 2], None, side)

    def decide(self, place: int, shown_: tuple[str, str], class_: str, who: str) -> dict[str, Any]:
        """Decide about an item, by its place and the key and version that were shown; return what was done."""
        item = self.item(place)
        if item.key != shown_[0]:
            raise Outdated("expected the item that is shown, received another; reload the page")
        if class_ not in keys_for(self.bundle.labels):
            raise UsageError(f"expected one of {', '.join(keys_for(self.bundle.labels))}, received {class_!r}")
        try:
            done = self.service.decide(*shown_, class_, reviewer(who or self.who))
        except Outdated as error:
            self.refresh()
            earlier = self._decision(item)
            by = f"{earlier.row.class_} by {who_of(earlier.row.message)}, run {earlier.run}" if earlier else ""
            raise Outdated(f"{error} ({by or 'not by a decision'})") from error
        self._arrange()
        if done.moved:
            self._made.add(done.run)
        return {"run": done.run, "moved": done.moved, "notes": done.notes} | self.state()

    def undo(self, run: str) -> dict[str, Any]:
        """Take a decision back."""
        decisions = enumerate(map(self._decision, self._items))
        place = next((place for place, decision in decisions if decision and decision.run == run), -1)
        try:
            summary = self.service.undo(run)
        finally:
            self._arrange()
        self._made.discard(run)
        return {"undone": summary.actions["undone"], "place": place} | self.state()

    def item(self, place: int) -> Item:
        """Return the item at a place; Outdated where there is none."""
        if not 0 <= place < len(self._items):
            raise Outdated(
                f"expected one of {counted(len(self._items), 'item')}, received number {place}; reload the page"
            )
        return self._items[place]

    def _brief(self, place: int, item: Item) -> dict[str, Any]:
        row, decision = item.row, self._decision(item)
        state = "waiting" if item.key in self.service.queue.items else "decided" if decision else "gone"
        return {
            "place": place, "key": item.key, "version": item.version, "state": state, "files": len(item.files),
            "reason": item.reason,
            "header": row.header_class, "pixels": row.pixel_class,
            "class": decision.row.class_ if decision and state == "decided" else "",
            "run": decision.run if decision else "",
            "by": f"by {who_of(decision.row.message)}" if decision else "",
        }  # fmt: skip

    def _fellows(self, place: int, item: Item) -> list[dict[str, Any]]:
        """Return the other items of its study that wait: place, key and version of each."""
        places = self._studies.get(item.study, []) if item.study else []
        waiting = self.service.queue.items
        others = [(at, self._items[at]) for at in places if at != place]
        return [{"place": at, "key": i.key, "version": i.version} for at, i in others if i.key in waiting]

    def _sampled(self, item: Item) -> tuple[int, list[FramePicture]]:
        """Return how many pictures an item has, and what the model sees in a few of them."""
        files = item.files
        if len(files) > 1:
            return len(files), [self._preview(files[place], None, 0) for place in middle_half(len(files), FRAMES)]
        first = self._preview(files[0], None, 0)
        frames = first.header.frames if first.header and not first.problem else 1
        if frames <= 1:
            return 1, [first]
        return frames, [self._preview(files[0], place, 0) for place in middle_half(frames, FRAMES)]

    def _preview(self, held: RunRow, frame: int | None, side: int) -> FramePicture:
        """Return a picture, or with ``side`` 0 what header and model say; of the file where it lies now."""
        decision = self.service.queue.decision(held)
        path = (decision and decision.row.destination) or held.row.destination
        if not is_straight(self.service.outbox, path):
            return FramePicture(b"", "it is gone, or lies behind a link")
        model = None if side else self.bundle.reference
        return self.gallery.preview(PictureRequest(path, frame, side, model), held.row.sha256)

    def _decision(self, item: Item) -> RunRow | None:
        return self.service.queue.decision(item.files[0])
