"""The threads that send, one a channel: what is sent next, what is retried, what is left. ``retry`` says when.

An instance that the peer refuses for now, or at which the connection breaks, is retried later; meanwhile others are
sent. Only a peer that takes nothing at all gets pauses between bursts of instances, and is given up in the end.
"""

from __future__ import annotations

import heapq
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import count

from dicomsort.config import SendSettings
from dicomsort.pacs.send.records import Answer, Batch, Channel, Instance, Permanent, Temporary
from dicomsort.pacs.send.retry import Pace, backoff

LONGEST_WAIT = 300.0  # seconds that a peer may ask us to wait; beyond that another run is the better answer
LONGEST_IDLE = 5.0  # seconds that a connection may wait for something to send before it is closed
GRACE = 10.0  # seconds that an interrupted instance has to be finished
_TICK = 0.2  # seconds between two looks at whether to stop

OnAnswer = Callable[[Instance, Answer, int], None]


@dataclass
class _Job:
    """A batch, and the results of its attempts."""

    batch: Batch
    attempts: int = 0
    refusals: int = 0  # attempts that failed for a reason of its own
    is_suspect: bool = False  # the connection broke at it: it is retried on one of its own
    answered_before: int = 0  # how many deliveries the peer had answered when this was first refused
    answers: dict[Instance, Answer] = field(default_factory=dict)  # the last one to each instance


class SendWorkers:
    """Delivers batches, a thread a channel; ``on_answer(instance, answer, attempts)`` gets each instance once.

    It is called by one thread at a time. ``problem`` says why sending was given up, where it was: then every instance
    left over is answered as not tried; for ``is_down`` and ``takes_nothing`` see ``Sent``. Where an interrupt comes,
    instances at hand are finished, and those left over get no answer.
    """

    def __init__(self, channels: Sequence[Channel], settings: SendSettings, on_answer: OnAnswer) -> None:
        self.problem, self.is_down, self.takes_nothing = "", False, False
        self._settings, self._on_answer, self._channels = settings, on_answer, channels
        self._changed = threading.Condition()  # guards all that follows
        self._fresh: deque[_Job] = deque()  # not tried yet
        self._later: list[tuple[float, int, _Job]] = []  # a heap of what is retried, by when
        self._numbers = count()
        self._busy: set[Channel] = set()  # with a job at hand
        self._is_fed = False
        self._pace = Pace(settings.retries, settings.retry_wait)
        self._answered = 0  # deliveries from which the peer accepted an instance, or refused one for good
        self._last = ""  # why the last delivery came to nothing
        self._was_open = False  # the peer accepted an association, whatever followed
        self._interrupt = threading.Event()
        self._halt = threading.Event()  # a problem, or a failure of ours
        self._failure: BaseException | None = None
        self._threads = [
            threading.Thread(target=self._work, args=(channel,), name="dicomsort-send", daemon=True)
            for channel in channels
        ]
        for thread in self._threads:
            thread.start()

    def run(self, batches: Iterable[Batch]) -> None:
        """Deliver all batches; raises what ``on_answer`` raised."""
        try:
            for batch in batches:
                self._put(_Job(batch))
                if self._is_over():
                    break
            with self._changed:
                self._is_fed = True
                self._changed.notify_all()
            for thread in self._threads:
                thread.join()
            if self._pace.in_vain and not self._answered:
                self.problem = self.problem or self._last
                self.takes_nothing |= not self._was_open
        except BaseException:
            self._end()
            raise
        if self._failure is not None:
            raise self._failure

    def _is_over(self) -> bool:
        return self._failure is not None or self._interrupt.is_set()

    def _put(self, job: _Job) -> None:
        with self._changed:
            while len(self._fresh) >= 2 * len(self._channels):
                if self._is_over():
                    return
                self._changed.wait(_TICK)
            self._fresh.append(job)
            self._changed.notify_all()

    def _put_later(self, job: _Job, seconds: float) -> None:
        with self._changed:
            heapq.heappush(self._later, (time.monotonic() + seconds, next(self._numbers), job))
            self._changed.notify_all()

    def _end(self) -> None:
        self._interrupt.set()
        until = time.monotonic() + GRACE
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()))
        for channel in self._channels:
            channel.abort()

    def _work(self, channel: Channel) -> None:
        try:
            refused, rest_until = 0, 0.0
            while (job := self._next(channel, rest_until)) is not None:
                rest = self._carry(channel, job)
                refused = 0 if rest is None else refused + 1
                if rest is not None:
                    rest_until = time.monotonic() + max(self._backoff(refused), rest, _TICK)
                with self._changed:
                    self._busy.discard(channel)
                    self._changed.notify_all()
            channel.close()
        except BaseException as error:  # noqa: BLE001 - ``run`` raises it
            self._failure = error
            self._halt.set()
            channel.abort()

    def _next(self, channel: Channel, rest_until: float) -> _Job | None:
        """Wait for the next job that is due; None where none is left, or an end was asked for.

        A connection that waits without need is closed: a peer may take one at a time.
        """
        since = time.monotonic()
        while not self._is_over():
            with self._changed:
                rest = 0.0 if self._halt.is_set() else rest_until - time.monotonic()
                seconds = max(self._until_due(), rest)
                if seconds <= 0:
                    self._busy.add(channel)
                    return self._pick()
                is_empty = self._is_fed and not (self._fresh or self._later)
                if is_empty and not self._busy:
                    return None
                is_idle = is_empty or max(seconds, time.monotonic() - since) > LONGEST_IDLE
                if not (is_idle and channel.is_open):
                    self._changed.wait(min(seconds, _TICK))
                    continue
            channel.close()
        return None

    def _until_due(self) -> float:
        """Seconds until there is something to send, as far as is known."""
        now = time.monotonic()
        if self._halt.is_set() and (self._fresh or self._later):
            return 0.0
        pause = self._pace.until - now
        if self._fresh:
            return pause
        return max(pause, self._later[0][0] - now) if self._later else _TICK

    def _pick(self) -> _Job:
        """Pick a retry that is due; while nothing is taken, rather something new."""
        is_due = bool(self._later) and (self._halt.is_set() or self._later[0][0] <= time.monotonic())
        if self._fresh and not (is_due and self._pace.wants_retry):
            job = self._fresh.popleft()
            self._changed.notify_all()
            return job
        return heapq.heappop(self._later)[-1]

    def _carry(self, channel: Channel, job: _Job) -> float | None:
        """Deliver a job once; where the peer is down, as often as is allowed.

        Where the peer has no room for one more channel, the job is left to those that it accepted, and the result is
        how many seconds this one must rest at least; else None.
        """
        down = 0
        while not self._halt.is_set():
            job.attempts += 1
            if job.is_suspect:
                channel.close()
            is_one_more = self._is_one_more(channel)
            try:
                self._on_answers(job, channel.deliver(job.batch))
                return None
            except Permanent as error:
                self._stop_for(job, str(error))
            except Temporary as error:
                if not error.is_down:
                    self._was_open |= error.was_open
                    answer = Answer(again=True, message=str(error))
                    self._retry_later(job, dict.fromkeys(job.batch.instances, answer), is_broken=True)
                    return None
                down += 1
                if error.wait > LONGEST_WAIT:
                    self._stop_for(job, f"{error}, and asks to wait {error.wait:.0f} s")
                elif is_one_more or self._is_one_more(channel):
                    job.attempts -= 1
                    self._put_later(job, 0.0)  # another channel may have it at once: nothing of it was tried
                    return error.wait
                elif down > self._settings.retries:
                    self._stop_for(job, str(error))
                elif not self._pause(max(self._backoff(down), error.wait)):
                    return None
        self._leave(job)
        return None

    def _is_one_more(self, channel: Channel) -> bool:
        """Whether the peer has accepted another channel, or one before this is trying and may be accepted."""
        at = self._channels.index(channel)
        is_open = any(each.is_open for each in self._channels if each is not channel)
        return is_open or not self._busy.isdisjoint(self._channels[:at])

    def _stop_for(self, job: _Job, problem: str) -> None:
        """Give the peer up: it was not there, or refused everything."""
        job.answers = dict.fromkeys(job.batch.instances, Answer(message=problem, reached=False))
        self.is_down = True
        self._give_up(problem)

    def _on_answers(self, job: _Job, answers: Sequence[Answer]) -> None:
        """Pass on final answers, and retry the rest later."""
        left = {}
        with self._changed:
            self._was_open |= any(answer.reached for answer in answers)
            for instance, answer in zip(job.batch.instances, answers, strict=True):
                if answer.again and not answer.acknowledged:
                    left[instance] = answer
                else:
                    self._on_answer(instance, answer, job.attempts)
            if any(answer.reached for answer in answers if answer.acknowledged or not answer.again):
                self._answered += 1
                self._pace.answered()
        if left:
            self._retry_later(job, left, is_broken=False)

    def _retry_later(self, job: _Job, left: dict[Instance, Answer], *, is_broken: bool) -> None:
        """Let what came to nothing be retried later, unless that was the last attempt."""
        with self._changed:
            if not job.refusals:
                job.answered_before = self._answered
            job.batch, job.answers, job.is_suspect = replace(job.batch, instances=tuple(left)), left, is_broken
            job.refusals += 1
            self._last = next(iter(left.values())).message
            size = sum(instance.size for instance in left)
            if self._speaks_of_peer(job) and self._pace.failed(size, is_broken=is_broken):
                self.takes_nothing = True
                self._give_up(f"{self._pace.in_vain} times in a row: {self._last}")
            if self._halt.is_set() or job.refusals > (0 if job.batch.once else self._settings.retries):
                self._leave(job)
            else:
                self._put_later(job, self._backoff(job.refusals))

    def _speaks_of_peer(self, job: _Job) -> bool:
        """Whether a failure may mean that the peer takes nothing: it took nothing else since the job's first one."""
        return self._answered == job.answered_before and (job.is_suspect or not job.batch.once)

    def _pause(self, seconds: float) -> bool:
        """Wait before the next attempt; False where an end was asked for."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0 and not self._is_over():
            if self._halt.wait(min(left, _TICK)):
                break
        return not self._is_over()

    def _backoff(self, times: int) -> float:
        return backoff(self._settings.retry_wait, times)

    def _give_up(self, problem: str) -> None:
        with self._changed:
            self.problem = self.problem or problem
            self._halt.set()
            self._changed.notify_all()

    def _leave(self, job: _Job) -> None:
        """Answer what will not be tried any more."""
        if self._interrupt.is_set():
            return
        with self._changed:
            for instance in job.batch.instances:
                answer = job.answers.get(instance) or Answer(message=f"not tried: {self.problem}", reached=False)
                answer = replace(answer, message=answer.message + self._remark(job))
                self._on_answer(instance, answer, job.attempts)

    def _remark(self, job: _Job) -> str:
        """Return what tells a refused instance from a peer that is full."""
        if not job.refusals:
            return ""
        if job.batch.once:
            return "; it failed before, so it was tried last, and once"
        return "; others were accepted meanwhile" if self._answered > job.answered_before else ""
