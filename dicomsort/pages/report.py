"""What the report of a run tells, gathered from plan, manifests, summary and the files that were held back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from dicomsort.bundle import Bundle
from dicomsort.engine import Engine
from dicomsort.pages.facts import shown, why
from dicomsort.pages.items import SIDE, Picture, Subject, picture_of, subject, there
from dicomsort.pages.portraits import portraits
from dicomsort.pages.telling import Tale, allotted
from dicomsort.progress import Progress
from dicomsort.report.held import Item
from dicomsort.report.reading import RunRow
from dicomsort.report.retold import Since, rows_of, since
from dicomsort.sorting.retelling import Told
from dicomsort.tasks import Asked

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

    told: Told
    tale: Tale
    bundle: Bundle | None
    groups: Sequence[Group]
    samples: Mapping[str, Sequence[Picture]]
    decided: int  # files that needed a person, and about which one has decided since


def make(told: Told, bundle: Bundle | None, engine: Engine | None, pictures: int, progress: Progress) -> Report:
    """Gather a report with pictures of so many items; without a bundle and an engine there are none."""
    progress.stage("reading the manifest", None)
    tale = Tale.of(told.run, rows_of(told.outbox, told.run, doubtful=True))
    later = since(told.outbox, told.run)
    groups = _groups(told, tale, later, pictures if engine else 0)
    decided = sum(_is_decided(held, later) for held in tale.held)
    samples: dict[str, list[Picture]] = {}
    if engine and bundle:
        _picture([each for group in groups for each in group.pictured], str(bundle.folder.resolve()), engine, progress)
        samples = _samples(told, tale, engine, progress) if pictures and not told.is_undone else {}
    return Report(told, tale, bundle, groups, samples, decided)


def _groups(told: Told, tale: Tale, later: Since, pictures: int) -> list[Group]:
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


def _samples(told: Told, tale: Tale, engine: Engine, progress: Progress) -> dict[str, list[Picture]]:
    """A few pictures of each class, of files that are still where the run placed them."""
    placed = ((class_, there(told.outbox, row.destination)) for class_, rows in tale.samples().items() for row in rows)
    wanted = [(class_, path) for class_, path in placed if path]
    progress.stage("making pictures of classes", len(wanted))
    asked = [Asked(path.lstrip("/"), None, SIDE) for _, path in wanted]
    found: dict[str, list[Picture]] = {}
    for (class_, _), portrait in zip(wanted, portraits(engine, "", asked), strict=True):
        if portrait.picture:
            found.setdefault(class_, []).append(picture_of("", portrait))
        progress.advance()
    return found
