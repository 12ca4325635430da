"""Show the model a few frames of each series, from its middle half; a clear header is checked on one."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial

from dicomsort.catalog import Catalog
from dicomsort.classify import Judge, is_clear, is_contradicted, said_by, showable_frames
from dicomsort.engine import Engine, submit_batch
from dicomsort.errors import WorkerLost
from dicomsort.records import Group, Look, Vote
from dicomsort.sorting.progress import Progress
from dicomsort.tasks import look

FRAMES = 5
BATCH = 4  # frames a task: few, so that no worker idles at the end, and none meets its time limit

Frames = list[tuple[str, int | None, str]]  # as ``tasks.look`` wants them


@dataclass(frozen=True, slots=True)
class Looker:
    """One run's looks: asks the engine, keeps a vote a group in the catalog."""

    inbox: str
    bundle: str
    judge: Judge
    engine: Engine
    catalog: Catalog
    progress: Progress

    def run(self) -> None:
        """Ask once, and once more where one frame against a clear header, or no frame at all, is too little."""
        self.progress.stage("looking at pixels", None)
        doubtful = self._round((group, self._frames(group, *self._wanted(group))) for group in self._asked())
        self._round((group, self._frames(group, FRAMES, "")) for group in doubtful)

    def _asked(self) -> Iterator[Group]:
        for study in self.catalog.studies():
            for group, _ in study:
                header = group.sample.header
                if not header.problem and showable_frames(group.sample) and not said_by(header, self.judge).follows:
                    yield group

    def _wanted(self, group: Group) -> tuple[int, str]:
        """How many frames to show, and the class that a clear header names, which one is to confirm."""
        return (1, said_by(group.sample.header, self.judge).classes[0]) if is_clear(group, self.judge) else (FRAMES, "")

    def _frames(self, group: Group, count: int, named: str) -> Frames:
        """Which frames to show: of the middle half of the files, else of the middle half of each file's frames."""
        files = 1 if group.members == 1 else self.catalog.showable(group.number)
        if files >= count:
            return [(self.catalog.shown(group.number, place)[0], None, named) for place in middle_half(files, count)]
        each = -(-count // max(files, 1))
        shown = (self.catalog.shown(group.number, place) for place in range(files))
        return [(path, frame, named) for path, frames in shown for frame in middle_half(frames, each)]

    def _round(self, requests: Iterable[tuple[Group, Frames]]) -> list[Group]:
        """Ask for all of these; return the groups whose vote calls for a second look."""
        task = partial(look, self.bundle, self.inbox)
        waiting: deque[tuple[list[tuple[Group, Frames]], Future[list[Look]]]] = deque()
        doubtful: list[Group] = []
        for packed in _packed(requests):
            frames = [frame for _, chosen in packed for frame in chosen]
            waiting.append((packed, submit_batch(self.engine, task, frames, _on_lost)))
            while len(waiting) > 8 * self.engine.workers or (waiting and waiting[0][1].done()):
                doubtful += self._take(*waiting.popleft())
        for item in waiting:
            doubtful += self._take(*item)
        return doubtful

    def _take(self, packed: list[tuple[Group, Frames]], future: Future[list[Look]]) -> Iterator[Group]:
        looks = iter(future.result())
        for group, frames in packed:
            vote = mean([next(looks) for _ in frames])
            self.catalog.vote(group.number, vote)
            self.progress.advance()
            if len(frames) < FRAMES and self._is_doubtful(group, vote):
                yield group

    def _is_doubtful(self, group: Group, vote: Vote) -> bool:
        more = group.members > 1 or showable_frames(group.sample) > 1
        contradicted = is_clear(group, self.judge) and is_contradicted(group, vote, self.judge)
        return more and (contradicted or not vote.probabilities)


def middle_half(count: int, wanted: int) -> list[int]:
    """At most ``wanted`` places, evenly spread over the middle half of ``range(count)``."""
    return sorted({int(count * (0.25 + 0.5 * (i + 0.5) / wanted)) for i in range(wanted)}) if count > 0 else []


def mean(looks: list[Look]) -> Vote:
    """The means of probabilities and distances of those frames that could be shown; else why the first could not."""
    seen = [look.probabilities for look in looks if look.probabilities]
    if not seen:
        return Vote(problem=looks[0].problem if looks else "")
    distances = [look.distance for look in looks if look.distance is not None]
    distance = sum(distances) / len(distances) if distances else None
    return Vote(tuple(sum(column) / len(seen) for column in zip(*seen, strict=True)), distance=distance)


def _packed(requests: Iterable[tuple[Group, Frames]]) -> Iterator[list[tuple[Group, Frames]]]:
    packed: list[tuple[Group, Frames]] = []
    for group, frames in requests:
        if frames:
            packed.append((group, frames))
        if sum(len(chosen) for _, chosen in packed) >= BATCH:
            yield packed
            packed = []
    if packed:
        yield packed


def _on_lost(_: tuple[str, int | None, str], error: WorkerLost) -> Look:
    return Look(problem=str(error))
