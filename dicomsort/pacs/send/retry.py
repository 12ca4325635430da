"""When to retry: how long to wait before the next attempt, and when a peer that takes nothing is given up.

``workers`` asks; ``SendSettings.retries`` says how often an instance is retried at most.
"""

from __future__ import annotations

import random
import time

LONGEST_PAUSE = 60.0  # seconds between two attempts
GIVEN_UP = 3  # deliveries in a row that came to nothing before the first pause
MOST_DOUBLED = 6  # how often the deliveries between two pauses are doubled
MOST_BYTES = 256 << 20  # sent for nothing between two pauses


class Pace:
    """How long to go on with a peer that takes nothing: bursts of deliveries, and a longer pause after each.

    There are as many pauses as ``retries``, the first of ``retry_wait`` seconds. One delivery that the peer answers
    proves that it is not full, and all begins anew.
    """

    def __init__(self, retries: int, retry_wait: float) -> None:
        self._retries, self._retry_wait = retries, retry_wait
        self.answered()

    def answered(self) -> None:
        """Begin anew: a delivery was accepted, or refused for good."""
        self.in_vain = 0  # deliveries in a row
        self.until = 0.0  # nothing is sent before (monotonic seconds)
        self._pauses, self._paused_at, self._room, self._bytes = 0, 0, GIVEN_UP, 0

    @property
    def wants_retry(self) -> bool:
        """Whether to retry what is due: where the peer takes something, else once after every second pause."""
        return self.in_vain == self._paused_at and self._pauses % 2 == 0

    def failed(self, size: int, *, is_broken: bool) -> bool:
        """Count a delivery of so many bytes that came to nothing; whether to give the peer up.

        A refusal costs little time, so bursts grow, and many bad instances do not hide a good one. Where the
        connection broke, or the peer was silent, there is one delivery a burst.
        """
        self.in_vain += 1
        self._bytes += size
        if self.in_vain < self._room and self._bytes < MOST_BYTES:
            return False
        self._pauses += 1
        if self._pauses > self._retries:
            return True
        self.until = time.monotonic() + backoff(self._retry_wait, self._pauses)
        self._room = self.in_vain + (1 if is_broken else GIVEN_UP << min(self._pauses, MOST_DOUBLED))
        self._paused_at, self._bytes = self.in_vain, 0
        return False


def backoff(retry_wait: float, times: int) -> float:
    """Seconds, longer each time, and not the same for all, so that senders do not come back together."""
    return min(retry_wait * 2.0 ** (times - 1), LONGEST_PAUSE) * random.uniform(0.5, 1.0)  # noqa: S311 - no secret
