"""The state of an interrupted training: one file, replaced as a whole, without pickles.

A training that starts from it computes what the uninterrupted one would have. SIGINT, SIGTERM and SIGHUP are delayed to
a moment at which everything can be saved.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
import zipfile
import zlib
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dicomsort.signals import hear, restore

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    Arrays = Sequence[NDArray[Any]]

NAME, PART, STORY = "state.npz", "state.npz.part", "story"
KINDS = ("variables", "sums", "best")


@dataclass
class Progress:
    """How far a training has come: the next epoch and batch, counted from 0, and what it learned on the way.

    ``best`` is the epoch with the lowest validation loss, counted from 0, -1 before there is one.
    """

    epoch: int = 0
    batch: int = 0
    best: int = -1
    history: dict[str, list[float]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Saved:
    """What a checkpoint holds: progress, and arrays in their order, none of some kinds.

    ``variables`` are the model's and the optimizer's, ``sums`` those that an unfinished epoch's figures are made of,
    ``best`` the best epoch's weights.
    """

    progress: Progress
    variables: Arrays
    sums: Arrays
    best: Arrays


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The folder of a training's checkpoint; ``identity`` says which training it is, as JSON values.

    The folder is made by the first ``save``, for its owner alone.
    """

    folder: Path
    identity: Mapping[str, Any]

    def save(self, saved: Saved) -> None:
        """Replace the checkpoint, durably; OSError where that cannot be."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        part = self.folder / PART
        counts = {kind: len(getattr(saved, kind)) for kind in KINDS}
        story = json.dumps({"identity": self.identity, "progress": asdict(saved.progress), "arrays": counts})
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW
        with os.fdopen(os.open(part, flags, 0o600), "wb") as file:
            np.savez(file, allow_pickle=False, **{STORY: np.array(story)}, **_named(saved))
            file.flush()
            os.fsync(file.fileno())
        part.replace(self.folder / NAME)

    def load(self) -> tuple[Saved | None, str]:
        """Return what was saved, None where there is nothing to go on from; and why not, "" if there was nothing."""
        path = self.folder / NAME
        if not path.is_file():
            return None, ""
        try:
            with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
                story = json.loads(str(file[STORY]))
                arrays = [[file[f"{kind}{i}"] for i in range(story["arrays"][kind])] for kind in KINDS]
            identity, progress = dict(story["identity"]), _progress(story["progress"])
        except (
            OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, EOFError, RuntimeError,
            zipfile.BadZipFile, zlib.error,
        ):  # fmt: skip
            return None, "it is damaged"
        if other := sorted(key for key in {*identity, *self.identity} if identity.get(key) != self.identity.get(key)):
            return None, f"it is of another training: {', '.join(other)} differ"
        return Saved(progress, *arrays), ""


def _progress(stored: Mapping[str, Any]) -> Progress:
    """Return the progress in a checkpoint; ValueError or TypeError where it is none."""
    progress = Progress(**stored)
    numbers = (progress.epoch, progress.batch, progress.best + 1)
    if any(type(number) is not int for number in numbers) or min(numbers) < 0:
        raise ValueError("expected whole numbers")
    for values in progress.history.values():
        if type(values) is not list or any(type(value) not in {int, float} for value in values):
            raise ValueError("expected lists of numbers")
    return progress


def forget(folder: Path | None) -> None:
    """Remove a checkpoint whose training has ended well, and its folder if nothing else is in it."""
    if folder is None:
        return
    for name in (NAME, PART):
        (folder / name).unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        folder.rmdir()


def _named(saved: Saved) -> dict[str, NDArray[Any]]:
    return {f"{kind}{i}": array for kind in KINDS for i, array in enumerate(getattr(saved, kind))}


class StopRequest:
    """Whether the training was asked to end."""

    def __init__(self) -> None:
        """Not yet."""
        self.yes = False

    def check(self) -> None:
        """Raise KeyboardInterrupt if it was."""
        if self.yes:
            raise KeyboardInterrupt


@contextmanager
def held_back(announce: Callable[[], None]) -> Iterator[StopRequest]:
    """Yield what knows of a first signal that ends, which ``announce`` reports; a second one ends the block at once.

    Outside the main thread, where no signals arrive, nothing is held back.
    """
    asked = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return

    def note(number: int, frame: FrameType | None) -> None:
        before = saved[number]
        if asked.yes and callable(before):
            before(number, frame)
        asked.yes = True
        announce()

    saved = hear(note)
    try:
        yield asked
    finally:
        restore(saved)
