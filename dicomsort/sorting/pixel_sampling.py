"""Show the model a few frames of each series, from its middle half; a clear header is checked on one.

A series is looked at while headers of others are still read: where no file of it came for a while it is most likely
whole, and what the model saw is kept. When all files are there, the frames that count are chosen, and only those that
were not seen are asked for: the result is the same as if nothing had been looked at early.
"""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial

from dicomsort.catalog import Catalog
from dicomsort.classify import Criteria, header_evidence, is_clear, is_contradicted, showable_frames
from dicomsort.engines.engine import Engine, submit_batch
from dicomsort.errors import WorkerLost
from dicomsort.progress import Progress
from dicomsort.records import FramePrediction, Group, SeriesPrediction
from dicomsort.tasks import predict_frames

FRAMES = 5
BATCH = 4  # frames a task: few, so that no worker idles at the end, and none meets its time limit
QUIET = 128  # files that came since a series got its last
OPEN = 4096  # series that may be waited for
WAITING = 256  # groups whose frames are under way

Asked = tuple[str, int | None]  # a frame as ``tasks.look`` wants it
Frames = list[Asked]


@dataclass(slots=True)
class PixelSampler:
    """One run's looks: asks the engine, keeps what was seen, and a vote a group, in the catalog."""

    inbox: str
    bundle: str
    judge: Criteria
    engine: Engine
    catalog: Catalog
    progress: Progress
    _open: dict[int, int] = field(default_factory=dict)  # group -> files there when it got its last; oldest first
    _files: int = 0
    _packed: Frames = field(default_factory=list)
    _sent: deque[tuple[Frames, Future[list[FramePrediction]]]] = field(default_factory=deque)
    _under_way: set[Asked] = field(default_factory=set)
    _asked: int = 0  # frames, in their order
    _seen: int = 0  # of them, those whose looks are kept

    def files_added(self, added: Mapping[int, int]) -> None:
        """Files were added to these groups; look at those that are most likely whole."""
        self._files += sum(added.values())
        for number in added:
            self._open.pop(number, None)
            self._open[number] = self._files
        while self._open:
            number, last = next(iter(self._open.items()))
            if self._files - last < QUIET and len(self._open) <= OPEN:
                break
            del self._open[number]
            if self.catalog.begin_early(number):  # once: a series that trickles in is not looked at again and again
                group = self.catalog.group(number)
                if self._is_asked(group):
                    self._ask(self._frames(group, self._wanted(group)))

    def run(self) -> None:
        """Ask once, and once more where one frame against a clear header, or no frame at all, is too little."""
        self.progress.stage("looking at pixels", None)
        groups = (group for study in self.catalog.studies() for group, _ in study if self._is_asked(group))
        doubtful = array("q")  # numbers, for there may be many
        for group, vote, frames in self._votes((group, self._wanted(group)) for group in groups):
            if frames < FRAMES and self._is_doubtful(group, vote):
                doubtful.append(group.number)
        for _ in self._votes((self.catalog.group(number), FRAMES) for number in doubtful):
            pass

    def _is_asked(self, group: Group) -> bool:
        header = group.sample.header
        return (
            bool(not header.problem and showable_frames(group.sample))
            and not header_evidence(header, self.judge).follows
        )

    def _wanted(self, group: Group) -> int:
        """How many frames to show: a clear header is checked on one."""
        return 1 if is_clear(group, self.judge) else FRAMES

    def _frames(self, group: Group, count: int) -> Frames:
        """Which frames to show: of the middle half of the files, else of the middle half of each file's frames."""
        files = 1 if group.members == 1 else self.catalog.showable(group.number)
        if files >= count:
            return [(self.catalog.shown(group.number, place)[0], None) for place in middle_half(files, count)]
        each = -(-count // max(files, 1))
        shown = (self.catalog.shown(group.number, place) for place in range(files))
        return [(path, frame) for path, frames in shown for frame in middle_half(frames, each)]

    def _votes(self, wanted: Iterable[tuple[Group, int]]) -> Iterator[tuple[Group, SeriesPrediction, int]]:
        """Vote on groups by so many frames each; yield each with its vote and the number of frames that it rests on."""
        waiting: deque[tuple[Group, Frames, int]] = deque()
        for group, count in wanted:
            frames = self._frames(group, count)
            self._ask(frames)
            waiting.append((group, frames, self._asked))
            if len(waiting) > WAITING:
                self._await(waiting[0][2])
            while waiting and waiting[0][2] <= self._seen:
                yield self._vote(*waiting.popleft())
        self._await(self._asked)
        for item in waiting:
            yield self._vote(*item)

    def _vote(self, group: Group, frames: Frames, _: int) -> tuple[Group, SeriesPrediction, int]:
        looks = [look for path, frame in frames if (look := self.catalog.prediction(path, frame)) is not None]
        vote = mean(looks)
        self.catalog.set_series_prediction(group.number, vote)
        self.progress.advance()
        return group, vote, len(frames)

    def _ask(self, frames: Frames) -> None:
        """Have these frames looked at, unless they were; returns before they are."""
        for asked in frames:
            if asked not in self._under_way and self.catalog.prediction(*asked) is None:
                self._under_way.add(asked)
                self._packed.append(asked)
                self._asked += 1
                if len(self._packed) >= BATCH:
                    self._send()
        while self._sent and (self._sent[0][1].done() or len(self._sent) > 8 * self.engine.workers):
            self._keep()

    def _send(self) -> None:
        frames, self._packed = self._packed, []
        self._sent.append(
            (frames, submit_batch(self.engine, partial(predict_frames, self.bundle, self.inbox), frames, _on_lost))
        )

    def _keep(self) -> None:
        """Keep what was seen in the frames that were sent first; waits for them."""
        frames, future = self._sent.popleft()
        for asked, seen in zip(frames, future.result(), strict=True):
            self.catalog.add_prediction(*asked, seen)
            self._under_way.discard(asked)
        self._seen += len(frames)

    def _await(self, asked: int) -> None:
        """Wait until the looks at the first so many frames are kept."""
        if self._packed and self._asked - len(self._packed) < asked:
            self._send()
        while self._seen < asked:
            self._keep()

    def _is_doubtful(self, group: Group, vote: SeriesPrediction) -> bool:
        more = group.members > 1 or showable_frames(group.sample) > 1
        contradicted = is_clear(group, self.judge) and is_contradicted(group, vote, self.judge)
        return more and (contradicted or not vote.probabilities)


def middle_half(count: int, wanted: int) -> list[int]:
    """At most ``wanted`` places, evenly spread over the middle half of ``range(count)``."""
    return sorted({int(count * (0.25 + 0.5 * (i + 0.5) / wanted)) for i in range(wanted)}) if count > 0 else []


def mean(looks: list[FramePrediction]) -> SeriesPrediction:
    """The means of probabilities and distances of those frames that could be shown; else why the first could not."""
    seen = [look.probabilities for look in looks if look.probabilities]
    if not seen:
        return SeriesPrediction(problem=looks[0].problem if looks else "")
    distances = [look.distance for look in looks if look.distance is not None]
    distance = sum(distances) / len(distances) if distances else None
    return SeriesPrediction(tuple(sum(column) / len(seen) for column in zip(*seen, strict=True)), distance=distance)


def _on_lost(_: Asked, error: WorkerLost) -> FramePrediction:
    return FramePrediction(problem=str(error))
