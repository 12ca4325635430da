"""Every error that a user can get, with the exit code of the process; and words that messages have in common."""

from __future__ import annotations

import os
import shlex
from pathlib import Path, PosixPath

from dicomsort import __version__

_PLAIN = frozenset(range(0x20, 0x7F)) - frozenset(b"'\\")  # within $'…'


class DicomsortError(Exception):
    """The run failed; the message says what was expected and what was received."""

    exit_code = 1  # of this error and of those below that set no other


class UsageError(DicomsortError):
    """Wrong usage or configuration."""

    exit_code = 2


class RelativePath(PosixPath):
    """A path that a configuration file gives relative to its own folder; ``note`` says so."""

    note = ""


def quoted(path: Path) -> str:
    """Return a path as a message shows it, and where a configuration file has a relative one, say so."""
    return repr(str(path)) + (path.note if isinstance(path, RelativePath) else "")


def escaped(text: str) -> str:
    """Return the text with unprintable characters escaped: a terminal may obey them."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def command(*words: str) -> str:
    """Return a command of dicomsort for a message, quoted for a shell and printable."""
    return f"`dicomsort {' '.join(map(word, words))}`"


def word(text: str) -> str:
    """Return a word of such a command."""
    if text.isprintable():
        return shlex.quote(text)
    plain = (chr(byte) if byte in _PLAIN else f"\\x{byte:02x}" for byte in os.fsencode(text))
    return f"$'{''.join(plain)}'"


def counted(count: int, one: str, many: str = "") -> str:
    """Return a number with its words for a message: "1 file", "2,000 files"; ``many`` where an s does not make it."""
    return f"{count:,} {one if count == 1 else many or f'{one}s'}"


def missing_extra(command: str, extra: str) -> UsageError:
    """Return the error of a command that needs an extra which is not installed.

    Its advice is to install from the checkout or the wheel: ``dicomsort`` on PyPI is another project.
    """
    return UsageError(
        f"{command}: expected the extra {extra}, received: not installed; run pip install '.[{extra}]' in the "
        f"checkout, or pip install 'dicomsort-{__version__}-py3-none-any.whl[{extra}]' beside the wheel"
    )


class BundleError(UsageError):
    """A model path that is no bundle, or a bundle that this version must not use."""


class BundleChanged(BundleError):
    """A bundle that another took the place of, or that was damaged, after the command had begun with it."""

    exit_code = 1


class Outdated(DicomsortError):
    """The subject of a decision was decided, removed or changed since it was shown."""


class OutboxLocked(DicomsortError):
    """The outbox is locked by another run."""

    exit_code = 4


class StateDamaged(DicomsortError):
    """A file in an outbox's state folder is not what dicomsort wrote: nothing of its run is touched."""


class PlacingFailed(DicomsortError):
    """The file system refused a change that placing needs; ``resume`` continues from the journal."""


class WorkerLost(DicomsortError):
    """A worker process died, or ran past its limit of time or memory, while it held a task.

    The message is one sentence without a full stop. ``from_outside``: something else is at fault, not the task (the
    system without memory, a person who killed the worker, a disk that stood still).
    """

    def __init__(self, message: str, *, from_outside: bool = False) -> None:
        super().__init__(message)
        self.from_outside = from_outside
