"""Show the model a few frames of each series, from its middle half; a clear header is checked on one.

The frames of a series are predicted while headers of others are still read: where no file of it came for a while it is
most likely whole, and the predictions are stored. When all files are there, the frames that count are chosen, and only
the missing ones are predicted: the result is the same as if nothing had been predicted early.
"""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial

from dicomsort.bundle import BundleReference
from dicomsort.catalog import Catalog
from dicomsort.classify import Criteria, header_evidence, is_clear, is_contradicted, showable_frames
from dicomsort.engines.engine import Engine, submit_batch
from dicomsort.errors import WorkerLost
from dicomsort.progress import Progress
from dicomsort.records import Group, Prediction
from dicomsort.tasks import predict_frames

FRAMES = 5
BATCH = 4  # frames a task: few, so that no worker idles at the end, and none meets its time limit
QUIET = 128  # files that came since a series got its last
OPEN = 4096  # series that may be waited for
WAITING = 256  # groups whose frames are under way

Frame = tuple[str, int | None]  # a path and a frame number, as ``tasks.predict_frames`` takes it


@dataclass(slots=True)
class PixelSampler:
    """One run's sampling of pixels: the engine predicts frames, the catalog stores frame and series predictions."""

    inbox: str
    bundle: BundleReference
    criteria: Criteria
    engine: Engine
    catalog: Catalog
    progress: Progress
    _open: dict[int, int] = field(default_factory=dict)  # group -> files there when it got its last; oldest first
    _files: int = 0
    _batch: list[Frame] = field(default_factory=list)
    _sent: deque[tuple[list[Frame], Future[list[Prediction]]]] = field(default_factory=deque)
    _under_way: set[Frame] = field(default_factory=set)  # of the batch or sent; the catalog lacks their predictions

    def files_added(self, added: Mapping[int, int]) -> None:
        """Files were added to these groups; predict those that are most likely whole."""
        self._files += sum(added.values())
        for number in added:
            self._open.pop(number, None)
            self._open[number] = self._files
        while self._open:
            number, last = next(iter(self._open.items()))
            if self._files - last < QUIET and len(self._open) <= OPEN:
                break
            del self._open[number]
            if self.catalog.begin_early(number):  # once: a series that trickles in is not predicted again and again
                group = self.catalog.group(number)
                if self._needs_pixels(group):
                    self._request(self._frames(group, self._wanted(group)))

    def run(self) -> None:
        """Predict once, and once more where one frame against a clear header, or no frame at all, is too little."""
        self.progress.stage("looking at pixels", None)
        groups = (group for study in self.catalog.studies() for group, _ in study if self._needs_pixels(group))
        doubtful = array("q")  # numbers, for there may be many
        for group, prediction, frames in self._predict((group, self._wanted(group)) for group in groups):
            if frames < FRAMES and self._is_doubtful(group, prediction):
                doubtful.append(group.number)
        for _ in self._predict((self.catalog.group(number), FRAMES) for number in doubtful):
            pass
        while self._sent:  # frames that were requested early and are not needed any more
            self._store()

    def _needs_pixels(self, group: Group) -> bool:
        header = group.sample.header
        return (
            bool(not header.problem and showable_frames(group.sample))
            and not header_evidence(header, self.criteria).follows
        )

    def _wanted(self, group: Group) -> int:
        """How many frames to show: a clear header is checked on one."""
        return 1 if is_clear(group, self.criteria) else FRAMES

    def _frames(self, group: Group, count: int) -> list[Frame]:
        """Which frames to show: of the middle half of the files, else of the middle half of each file's frames."""
        files = 1 if group.members == 1 else self.catalog.showable(group.number)
        if files >= count:
            return [(self.catalog.shown(group.number, place)[0], None) for place in middle_half(files, count)]
        each = -(-count // max(files, 1))
        shown = (self.catalog.shown(group.number, place) for place in range(files))
        return [(path, frame) for path, frames in shown for frame in middle_half(frames, each)]

    def _predict(self, wanted: Iterable[tuple[Group, int]]) -> Iterator[tuple[Group, Prediction, int]]:
        """Predict groups by so many frames each; yield each with its prediction and the number of these frames."""
        waiting: deque[tuple[Group, list[Frame]]] = deque()
        for group, count in wanted:
            frames = self._frames(group, count)
            self._request(frames)
            waiting.append((group, frames))
            while waiting and (len(waiting) > WAITING or self._under_way.isdisjoint(waiting[0][1])):
                yield self._predicted(*waiting.popleft())
        self._send()
        for item in waiting:
            yield self._predicted(*item)

    def _predicted(self, group: Group, frames: list[Frame]) -> tuple[Group, Prediction, int]:
        """Wait for the predictions of a group's frames, and predict the group."""
        while not self._under_way.isdisjoint(frames):
            if not self._sent:
                self._send()
            self._store()
        predictions = (self.catalog.prediction(*frame) for frame in frames)
        prediction = mean([each for each in predictions if each is not None])
        self.catalog.set_series_prediction(group.number, prediction)
        self.progress.advance()
        return group, prediction, len(frames)

    def _request(self, frames: list[Frame]) -> None:
        """Have these frames predicted, unless they were; returns before they are."""
        for frame in frames:
            if frame not in self._under_way and self.catalog.prediction(*frame) is None:
                self._under_way.add(frame)
                self._batch.append(frame)
                if len(self._batch) >= BATCH:
                    self._send()
        while self._sent and (self._sent[0][1].done() or len(self._sent) > 8 * self.engine.workers):
            self._store()

    def _send(self) -> None:
        frames, self._batch = self._batch, []
        if frames:
            predict = partial(predict_frames, self.bundle, self.inbox)
            self._sent.append((frames, submit_batch(self.engine, predict, frames, _on_lost)))

    def _store(self) -> None:
        """Store the predictions of the frames that were sent first; waits for them."""
        frames, future = self._sent.popleft()
        for frame, prediction in zip(frames, future.result(), strict=True):
            self.catalog.add_prediction(*frame, prediction)
            self._under_way.discard(frame)

    def _is_doubtful(self, group: Group, prediction: Prediction) -> bool:
        more = group.members > 1 or showable_frames(group.sample) > 1
        contradicted = is_clear(group, self.criteria) and is_contradicted(group, prediction, self.criteria)
        return more and (contradicted or not prediction.probabilities)


def middle_half(count: int, wanted: int) -> list[int]:
    """Return at most ``wanted`` places, evenly spread over the middle half of ``range(count)``."""
    return sorted({int(count * (0.25 + 0.5 * (i + 0.5) / wanted)) for i in range(wanted)}) if count > 0 else []


def mean(frames: list[Prediction]) -> Prediction:
    """Return the means of probabilities and distances of the frames that could be shown; else the first's problem."""
    shown = [frame for frame in frames if frame.probabilities]
    if not shown:
        return Prediction(problem=frames[0].problem if frames else "")
    distances = [frame.distance for frame in frames if frame.distance is not None]
    distance = sum(distances) / len(distances) if distances else None
    columns = zip(*(frame.probabilities for frame in shown), strict=True)
    means = tuple(sum(column) / len(shown) for column in columns)
    return Prediction(means, "", distance, all(frame.too_small for frame in shown))


def _on_lost(_: Frame, error: WorkerLost) -> Prediction:
    return Prediction(problem=str(error))
