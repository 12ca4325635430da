"""Who carries batches to the peer: a thread a channel, patient with what may pass, and done with what will not."""

from __future__ import annotations

import queue
import random
import threading
import time
from collections.abc import Callable, Iterable, Sequence

from dicomsort.adapters.sending.records import Answer, Batch, Channel, Instance, Permanent, Request, Temporary

LONGEST_PAUSE = 60.0  # seconds between two attempts
LONGEST_WAIT = 300.0  # seconds that a peer may ask us to wait; beyond that another run is the better answer
GIVEN_UP = 3  # batches in a row that came to nothing, though the peer was there
GRACE = 10.0  # seconds that an interrupted instance has to be finished
_TICK = 0.2  # seconds between two looks at whether to stop

Settle = Callable[[Instance, Answer, int], None]


class Crew:
    """Works off batches; ``settle(instance, answer, attempts)`` is told of each instance once, by one thread at a time.

    ``problem`` is why it stopped trying, where it did: then every instance left over is settled as not tried. Where
    ``stop`` is set instead, or an interrupt comes, instances at hand are finished, and those left over are not settled.
    """

    def __init__(
        self, channels: Sequence[Channel], request: Request, settle: Settle, stop: threading.Event | None = None
    ) -> None:
        """Start a thread a channel."""
        self.problem = ""
        self._request, self._settle = request, settle
        self._channels = channels
        self._jobs: queue.Queue[Batch | None] = queue.Queue(2 * len(channels))
        self._lock = threading.Lock()
        self._interrupt = stop or threading.Event()
        self._halt = threading.Event()  # a problem, or a failure of ours
        self._failure: BaseException | None = None
        self._given_up = 0  # in a row
        self._last = ""  # why the last one was
        self._has_answered = False  # an instance was acknowledged, or refused for good
        self._threads = [
            threading.Thread(target=self._work, args=(channel,), name="dicomsort-send", daemon=True)
            for channel in channels
        ]
        for thread in self._threads:
            thread.start()

    def run(self, batches: Iterable[Batch]) -> None:
        """Work off all batches; raises what settling raised."""
        try:
            for batch in batches:
                self._put(batch)
                if self._failure is not None or self._interrupt.is_set():
                    break
            for _ in self._threads:
                self._put(None)
            for thread in self._threads:
                thread.join()
            if self._given_up and not self._has_answered:
                self._give_up_all(self._last)
        except BaseException:
            self._end()
            raise
        if self._failure is not None:
            raise self._failure

    def _put(self, job: Batch | None) -> None:
        while self._failure is None and not self._interrupt.is_set():
            try:
                self._jobs.put(job, timeout=_TICK)
            except queue.Full:
                continue
            return

    def _end(self) -> None:
        self._interrupt = threading.Event()  # ours, not that of who called us
        self._interrupt.set()
        until = time.monotonic() + GRACE
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()))
        for channel in self._channels:
            channel.abort()

    def _work(self, channel: Channel) -> None:
        try:
            while not self._interrupt.is_set() and self._failure is None:
                try:
                    job = self._jobs.get(timeout=_TICK)
                except queue.Empty:
                    continue
                if job is None:
                    break
                self._carry(channel, job)
            channel.close()
        except BaseException as error:  # noqa: BLE001 - it belongs to who waits for the crew
            self._failure = error
            self._halt.set()
            channel.abort()

    def _carry(self, channel: Channel, batch: Batch) -> None:
        """Deliver one batch, as often as it takes and is allowed."""
        attempts = tries = 0
        while batch.instances:
            if self._halt.is_set():
                self._leave(dict.fromkeys(batch.instances, Answer(message=f"not tried: {self.problem}")), attempts)
                return
            attempts, tries = attempts + 1, tries + 1
            left, trouble = self._attempt(channel, batch, attempts)
            if not left:
                return
            if trouble is not None and trouble.is_down and any(each.is_open for each in self._channels):
                tries = 1  # the peer is there, but has no room for one more
            if self._is_enough(tries, next(iter(left.values())).message, trouble):
                self._leave(left, attempts)
                return
            self._pause(tries, trouble)
            if self._halt.is_set():
                self._leave(left, attempts)
                return
            batch = Batch(tuple(left) if not self._interrupt.is_set() else (), batch.contexts)

    def _attempt(
        self, channel: Channel, batch: Batch, attempts: int
    ) -> tuple[dict[Instance, Answer], Temporary | None]:
        """Deliver once; what is left to try again, and what went wrong with the connection."""
        try:
            answers = channel.deliver(batch)
        except Temporary as error:
            return dict.fromkeys(batch.instances, Answer(again=True, message=str(error))), error
        except Permanent as error:
            with self._lock:
                self._give_up_all(str(error))
            self._leave(dict.fromkeys(batch.instances, Answer(message=str(error))), attempts)
            return {}, None
        left = {}
        for instance, answer in zip(batch.instances, answers, strict=True):
            if answer.again and not answer.acknowledged:
                left[instance] = answer
                continue
            with self._lock:
                self._given_up, self._has_answered = 0, True
                self._settle(instance, answer, attempts)
        return left, None

    def _is_enough(self, tries: int, message: str, trouble: Temporary | None) -> bool:
        """Whether to give the batch up; where other batches would fare no better, all is."""
        wait = trouble.wait if trouble else 0.0
        if tries <= self._request.retries and wait <= LONGEST_WAIT:
            return False
        with self._lock:
            self._given_up += 1
            self._last = message
            if wait > LONGEST_WAIT:
                self._give_up_all(f"{message}, and asks to wait {wait:.0f} s")
            elif trouble is not None and trouble.is_down:
                self._give_up_all(message)
            elif self._given_up >= GIVEN_UP:
                self._give_up_all(f"{GIVEN_UP} times in a row: {message}")
        return True

    def _pause(self, tries: int, trouble: Temporary | None) -> None:
        """Wait longer each time, and not all for the same time, so that senders do not come back together."""
        longest = min(self._request.retry_wait * 2 ** (tries - 1), LONGEST_PAUSE)
        seconds = longest * random.uniform(0.5, 1.0)  # noqa: S311 - no secret
        until = time.monotonic() + max(seconds, trouble.wait if trouble else 0.0)
        while (left := until - time.monotonic()) > 0 and not self._interrupt.is_set():
            if self._halt.wait(min(left, _TICK)):
                return

    def _give_up_all(self, problem: str) -> None:
        self.problem = self.problem or problem
        self._halt.set()

    def _leave(self, answers: dict[Instance, Answer], attempts: int) -> None:
        if self._interrupt.is_set():
            return
        with self._lock:
            for instance, answer in answers.items():
                self._settle(instance, answer, attempts)
