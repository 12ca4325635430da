"""stdout and stderr that cannot be written: what is printed there is lost, and no command fails in its midst.

A command that only prints ends with 141, as if SIGPIPE had ended it (128 + 13). A command that places, sends or trains
goes on (``optional``), with its own exit code.
"""

from __future__ import annotations

import errno
import io
import os
import select
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

EXIT_UNREAD = 141
_STDIN, _STDOUT, _STDERR = 0, 1, 2
_is_optional = False


class _Unfailing(io.RawIOBase):
    """The bytes of a standard stream: the first failure is told to ``on_lost``, and all later bytes are dropped."""

    def __init__(self, descriptor: int, on_lost: Callable[[OSError], None], *, is_closed: bool) -> None:
        super().__init__()
        self._descriptor, self._on_lost = descriptor, on_lost
        self._is_closed, self._is_lost = is_closed, False

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._descriptor

    def isatty(self) -> bool:
        return os.isatty(self._descriptor)

    def write(self, data: Any, /) -> int:
        left = memoryview(data).cast("B")
        size = len(left)
        while left and not self._is_lost:
            try:
                left = left[self._written(left) :]
            except BlockingIOError:
                select.select([], [self._descriptor], [])
            except OSError as error:
                self._is_lost = True
                self._on_lost(error)
        return size

    def _written(self, data: memoryview) -> int:
        if self._is_closed:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        return os.write(self._descriptor, data)


def guard() -> None:
    """Guard stdout and stderr where they are the process's own, and mend those that are closed.

    A file that is opened later must not get the number of a closed one: what libraries print would go into it.
    """
    optional(is_optional=False)
    for descriptor in (_STDIN, _STDOUT, _STDERR):
        try:
            os.fstat(descriptor)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    if sys.stdout is sys.__stdout__:
        sys.stdout = _guarded(sys.__stdout__, _STDOUT, _unread)
    if sys.stderr is sys.__stderr__:
        sys.stderr = _guarded(sys.__stderr__, _STDERR, lambda _: None)


def optional(*, is_optional: bool = True) -> None:
    """Say whether the command goes on where stdout cannot be written."""
    global _is_optional  # noqa: PLW0603 - there is one stdout
    _is_optional = is_optional


def _guarded(stream: Any, descriptor: int, on_lost: Callable[[OSError], None]) -> io.TextIOWrapper:
    raw = _Unfailing(descriptor, on_lost, is_closed=stream is None)
    encoding = getattr(stream, "encoding", None) or "utf-8"
    unbuffered = getattr(stream, "write_through", False)  # PYTHONUNBUFFERED
    return io.TextIOWrapper(
        raw if unbuffered else io.BufferedWriter(raw),  # type: ignore[arg-type]
        encoding,
        "backslashreplace",  # a name must not end the run of a terminal without UTF-8
        line_buffering=getattr(stream, "line_buffering", False),
        write_through=unbuffered,
    )


def _unread(error: OSError) -> None:
    if _is_optional or error.errno != errno.EPIPE:  # `| head` has read all that it wants
        rest = "; the command goes on without it" if _is_optional else ""
        line = f"dicomsort: expected stdout to take what is printed, received: {error.strerror}{rest}\n"
        with suppress(OSError):
            os.write(_STDERR, line.encode())
    if not _is_optional:
        raise SystemExit(EXIT_UNREAD)
