"""Signals that end the program at any moment: one plain line and an exit code, never a traceback.

While modules are imported, a signal ends the process at once (``listen``). While a command runs, it raises
``KeyboardInterrupt``, so that all is closed in order (``raising``). Once the exit code is known, a signal ends the
process with that code (``over``). This module is imported before all others, so it imports little.
"""

from __future__ import annotations

import atexit
import os
import signal
import sys
import time
from contextlib import contextmanager, suppress

TYPE_CHECKING = False  # typing takes longer to import than all else here
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from types import FrameType
    from typing import Any, TypeAlias

    Handler: TypeAlias = Callable[[int, FrameType | None], Any]

EXIT_INTERRUPTED = 130
SERVICES = (["watch"], ["receive"])  # commands that SIGTERM and SIGHUP end regularly
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
AGAIN = "run the same command again"
RESEND_SECONDS = 0.02
MOST_POLLED = 86400.0  # seconds; poll() takes milliseconds of 31 bits

_listens = False


class Signalled(KeyboardInterrupt):
    """SIGTERM or SIGHUP came; ``number`` says which."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


def set_handlers(handler: Handler, numbers: tuple[int, ...] = ENDING) -> dict[int, Any]:
    """Set the handler of some signals and return the earlier ones; SIGHUP stays ignored where nohup ignores it."""
    handled = [number for number in numbers if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN]
    return {number: signal.signal(number, handler) for number in handled}


def restore(handlers: Mapping[int, Any]) -> None:
    """Set handlers that ``set_handlers`` returned."""
    for number, handler in handlers.items():
        signal.signal(number, handler)


def code_of(number: int) -> int:
    """Return the exit code of the present command where a signal ends it."""
    return 0 if sys.argv[1:2] in SERVICES and number != signal.SIGINT else EXIT_INTERRUPTED


def number_of(stop: KeyboardInterrupt) -> int:
    """Return the signal that raised it."""
    return stop.number if isinstance(stop, Signalled) else signal.SIGINT


class ServiceStop:
    """The request to end a service, which a signal makes; ``signal`` is its number, 0 before.

    An Event could deadlock: the handler that sets it may run while the main thread holds its lock.
    """

    def __init__(self) -> None:
        import socket

        self.signal = 0
        self._waiting, self._waking = socket.socketpair()

    @property
    def is_made(self) -> bool:
        """Whether the service must end."""
        return self.signal != 0

    def repeat(self, number: int) -> None:
        """Handle a later signal; here it changes nothing."""

    def wait(self, seconds: float) -> None:
        """Sleep, but not longer than until the request is made."""
        import select

        poll = select.poll()  # select() cannot wait for descriptors above 1,023
        poll.register(self._waiting, select.POLLIN)
        until = time.monotonic() + seconds
        while not self.is_made and (left := until - time.monotonic()) > 0:
            poll.poll(min(left, MOST_POLLED) * 1000)

    def close(self) -> None:
        """Close the sockets that ``wait`` uses."""
        self._waiting.close()
        self._waking.close()

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Let SIGTERM, SIGHUP and SIGINT make the request."""
        before = set_handlers(self.make)
        try:
            yield
        finally:
            restore(before)
            self.close()

    def make(self, number: int, _frame: FrameType | None = None) -> None:
        """Make the request, or repeat it; a signal handler."""
        if self.is_made:
            self.repeat(number)
            return
        self.signal = number
        with suppress(OSError):  # the service may be ending already
            self._waking.send(b"\0")


def listen() -> None:
    """Let a signal end the process at once, because nothing has begun."""
    global _listens  # noqa: PLW0603 - there is one process
    _listens = True
    atexit.register(_close)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # who starts a daemon may ignore it: then no child can be waited for
    set_handlers(_end, _present())


@contextmanager
def raising() -> Iterator[None]:
    """Let signals raise ``KeyboardInterrupt`` in the main thread.

    One that is lost, because it is raised in a callback of the garbage collector, is raised again a moment later.
    """
    hook, sys.unraisablehook = sys.unraisablehook, lambda unraisable: _resend(unraisable, hook)
    before = set_handlers(_raise, tuple(number for number in _present() if number != signal.SIGINT))
    if signal.SIGINT in _present():  # asyncio takes over Python's own handler, and no other
        before[signal.SIGINT] = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        sys.unraisablehook = hook
        if not _listens:
            restore(before)


def over(code: int) -> None:
    """Let a signal end the process at once with the known exit code."""
    # CPython remembers that an exec of text was interrupted, and then ends by SIGINT; the next exec resets that.
    exec("")  # noqa: S102
    if _listens:
        set_handlers(lambda _number, _frame: os._exit(code), _present())


def _close() -> None:
    """Ignore signals while the interpreter shuts down, which removes the handlers: the default is to die."""
    for number in ENDING:
        signal.signal(number, signal.SIG_IGN)


def _present() -> tuple[int, ...]:
    """Return those that are not ignored; a shell without job control ignores SIGINT for background processes."""
    return tuple(n for n in ENDING if n == signal.SIGTERM or signal.getsignal(n) != signal.SIG_IGN)


def _end(number: int, _frame: FrameType | None) -> None:
    with suppress(OSError):
        os.write(2, f"dicomsort: interrupted before anything was done; {AGAIN}\n".encode())
    os._exit(code_of(number))


def _raise(number: int, _frame: FrameType | None) -> None:
    raise Signalled(number)


def _resend(unraisable: sys.UnraisableHookArgs, hook: Callable[[sys.UnraisableHookArgs], Any]) -> None:
    stop = unraisable.exc_value
    if not isinstance(stop, KeyboardInterrupt):
        hook(unraisable)
        return
    import threading

    timer = threading.Timer(RESEND_SECONDS, os.kill, (os.getpid(), number_of(stop)))
    timer.daemon = True
    timer.start()
