"""Who carries batches to the peer: a thread a channel, patient with what may pass, and done with what will not."""

from __future__ import annotations

import queue
import random
import threading
from collections.abc import Callable, Iterable, Sequence

from dicomsort.adapters.sending.records import Answer, Batch, Channel, Instance, Permanent, Request, Temporary

LONGEST_PAUSE = 60.0  # seconds between two attempts
LONGEST_WAIT = 300.0  # seconds that a peer may ask us to wait; beyond that another run is the better answer
GIVEN_UP = 3  # batches in a row that came to nothing, though the peer was there
GRACE = 10.0  # seconds that an interrupted instance has to be finished
_TICK = 0.2

Settle = Callable[[Instance, Answer, int], None]


class Crew:
    """Works off batches; ``settle(instance, answer, attempts)`` is told of each instance once, by one thread at a time.

    ``problem`` is why it stopped trying, where it did: then every instance left over is settled as not tried.
    """

    def __init__(self, channels: Sequence[Channel], request: Request, settle: Settle) -> None:
        """Start a thread a channel."""
        self.problem = ""
        self._request, self._settle = request, settle
        self._channels = channels
        self._jobs: queue.Queue[Batch | None] = queue.Queue(2 * len(channels))
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._is_interrupted = False
        self._failure: BaseException | None = None
        self._given_up = 0  # in a row
        self._has_answered = False  # an instance was acknowledged, or refused for good
        self._last = ""
        self._threads = [
            threading.Thread(target=self._work, args=(channel,), name="dicomsort-send", daemon=True)
            for channel in channels
        ]
        for thread in self._threads:
            thread.start()

    def run(self, batches: Iterable[Batch]) -> None:
        """Work off all batches; raises what settling raised. What interrupts it lets instances at hand be finished."""
        try:
            for batch in batches:
                self._put(batch)
                if self._failure is not None:
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
        while self._failure is None:
            try:
                self._jobs.put(job, timeout=_TICK)
            except queue.Full:
                continue
            return

    def _end(self) -> None:
        self._is_interrupted = True
        self._stop.set()
        for thread in self._threads:
            thread.join(GRACE)
        for channel in self._channels:
            channel.abort()

    def _work(self, channel: Channel) -> None:
        try:
            while not self._is_interrupted and self._failure is None:
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
            self._stop.set()
            channel.abort()

    def _carry(self, channel: Channel, batch: Batch) -> None:
        """Deliver one batch, as often as it takes and is allowed."""
        attempts = 0
        while batch.instances:
            if self._stop.is_set():
                self._leave(batch, Answer(message=f"not tried: {self.problem}"), attempts)
                return
            attempts += 1
            left, trouble = self._attempt(channel, batch, attempts)
            batch = Batch(tuple(left), batch.contexts)
            if not left:
                return
            answer = next(iter(left.values()))
            wait = trouble.wait if trouble else 0.0
            if attempts > self._request.retries or wait > LONGEST_WAIT:
                self._give_up(answer.message, is_down=trouble is not None and trouble.is_down, wait=wait)
                for instance, last in left.items():
                    self._leave(Batch((instance,)), Answer(message=last.message), attempts)
                return
            self._stop.wait(max(wait, self._pause(attempts)))
            if self._stop.is_set():
                self._leave(batch, Answer(message=answer.message), attempts)
                return

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
            self._leave(batch, Answer(message=str(error)), attempts)
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

    def _pause(self, attempts: int) -> float:
        """Seconds before the next attempt: doubled each time, and spread, so that senders do not come back together."""
        longest = min(self._request.retry_wait * 2 ** (attempts - 1), LONGEST_PAUSE)
        return float(longest * random.uniform(0.5, 1.0))  # noqa: S311 - no secret

    def _give_up(self, message: str, *, is_down: bool, wait: float) -> None:
        with self._lock:
            self._given_up += 1
            self._last = message
            if wait > LONGEST_WAIT:
                self._give_up_all(f"{message}, and asks to wait {wait:.0f} s")
            elif is_down:
                self._give_up_all(message)
            elif self._given_up >= GIVEN_UP:
                self._give_up_all(f"{GIVEN_UP} times in a row: {message}")

    def _give_up_all(self, problem: str) -> None:
        self.problem = self.problem or problem
        self._stop.set()

    def _leave(self, batch: Batch, answer: Answer, attempts: int) -> None:
        if self._is_interrupted:
            return
        with self._lock:
            for instance in batch.instances:
                self._settle(instance, answer, attempts)
