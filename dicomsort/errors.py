"""Every error a user can meet, and the exit code each ends the process with.

DicomsortError            1  the run failed
├── UsageError            2  wrong usage or configuration
├── Outdated              1  what a decision was about is decided, gone or changed since
├── OutboxLocked          4  another run holds the outbox
├── BundleError           2  a model path that is no bundle, or one this version must not use
├── StateDamaged          1  a file of an outbox's state cannot be read: its run is left alone
├── PlacingFailed         1  the disk refused; ``resume`` goes on from there
└── WorkerLost            1  a worker died, or ran past its limit of time or memory, on a task
"""

from __future__ import annotations

import os
import shlex

from dicomsort import __version__

_PLAIN = frozenset(range(0x20, 0x7F)) - frozenset(b"'\\")  # within $'…'


class DicomsortError(Exception):
    """The run failed; the message says what was expected and what was received."""

    exit_code = 1


class UsageError(DicomsortError):
    """Wrong usage or configuration."""

    exit_code = 2


def escaped(text: str) -> str:
    """The text, with what is no character to look at escaped: a terminal may obey it."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def command(*words: str) -> str:
    """A command of dicomsort for a sentence, as a shell takes it and a terminal may show it."""
    return f"`dicomsort {' '.join(map(word, words))}`"


def word(text: str) -> str:
    """A word of such a command."""
    if text.isprintable():
        return shlex.quote(text)
    plain = (chr(byte) if byte in _PLAIN else f"\\x{byte:02x}" for byte in os.fsencode(text))
    return f"$'{''.join(plain)}'"


def missing_extra(command: str, extra: str) -> UsageError:
    """Return the error of a command that needs an extra which is not installed.

    It tells to install from the checkout or the wheel: the name ``dicomsort`` on PyPI belongs to another project.
    """
    return UsageError(
        f"{command}: expected the extra {extra}, received: not installed; run pip install '.[{extra}]' in the "
        f"checkout, or pip install 'dicomsort-{__version__}-py3-none-any.whl[{extra}]' beside the wheel"
    )


class BundleError(UsageError):
    """A model path that is no bundle, or a bundle that this version must not use."""


class Outdated(DicomsortError):
    """What a decision was about has been decided, is gone, or has changed since it was shown."""


class OutboxLocked(DicomsortError):
    """Another run holds the outbox."""

    exit_code = 4


class StateDamaged(DicomsortError):
    """A file in an outbox's state folder is not what dicomsort wrote: nothing of its run is touched."""


class PlacingFailed(DicomsortError):
    """The file system refused a change that placing needs; the journal tells ``resume`` where to go on."""


class WorkerLost(DicomsortError):
    """A worker process died, or ran past its limit of time or memory, while it held a task.

    ``from_outside``: something else killed it (the system without memory, a person), so the task is not at fault.
    """

    def __init__(self, message: str, *, from_outside: bool = False) -> None:
        """Say why; the message is one sentence without a stop."""
        super().__init__(message)
        self.from_outside = from_outside
