"""The state of an interrupted training: one file, replaced as a whole, without pickles.

A training that resumes from it computes the same as an uninterrupted one. SIGINT, SIGTERM and SIGHUP are delayed until
everything can be saved.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dicomsort.records import RENDERING_VERSION
from dicomsort.signals import restore, set_handlers
from dicomsort.training.data import fingerprint
from dicomsort.training.data.rendered import Rendered
from dicomsort.training.fit.hyperparameters import Hyperparameters
from dicomsort.training.progress import Reporter

Arrays = Sequence[NDArray[Any]]

NAME, PART, HEADER = "state.npz", "state.npz.part", "story"
DAMAGED = "it is damaged"
KINDS = ("variables", "sums", "best")
COLUMNS = ("loss", "accuracy", "val_loss", "val_accuracy")  # of a history


@dataclass
class TrainingState:
    """How far a training has come: the next epoch and batch, counted from 0, and the history so far.

    ``best`` is the epoch with the lowest validation loss, counted from 0, -1 before there is one.
    """

    epoch: int = 0
    batch: int = 0
    best: int = -1
    history: dict[str, list[float]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Saved:
    """The content of a checkpoint: progress, and arrays in their order, which may be empty.

    ``variables`` are the model's and the optimizer's, ``sums`` those of an unfinished epoch's metrics, ``best`` the
    best epoch's weights.
    """

    progress: TrainingState
    variables: Arrays
    sums: Arrays
    best: Arrays


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The folder of a training's checkpoint; ``identity`` identifies the training, as JSON values.

    The first ``save`` makes the folder, for its owner alone. A ``fresh`` training does not resume.
    """

    folder: Path
    identity: Mapping[str, Any]
    fresh: bool = False

    def save(self, saved: Saved) -> None:
        """Replace the checkpoint, durably; OSError where it cannot be written."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        part = self.folder / PART
        counts = {kind: len(getattr(saved, kind)) for kind in KINDS}
        header = json.dumps({"identity": self.identity, "progress": asdict(saved.progress), "arrays": counts})
        arrays = {f"{kind}{i}": array for kind in KINDS for i, array in enumerate(getattr(saved, kind))}
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW
        with os.fdopen(os.open(part, flags, 0o600), "wb") as file:
            np.savez(file, allow_pickle=False, **{HEADER: np.array(header)}, **arrays)
            file.flush()
            os.fsync(file.fileno())
        part.replace(self.folder / NAME)

    def resume(
        self, reporter: Reporter, done: Callable[[TrainingState], str], fits: Callable[[Saved], bool]
    ) -> Saved | None:
        """Return what was saved, None where the training starts anew; report which, and what is ``done``.

        What does not fit the training is damaged.
        """
        saved, problem = (None, "") if self.fresh else self.load()
        if saved and not fits(saved):
            saved, problem = None, DAMAGED
        if problem:
            reporter.note(f"Starting anew: there is a checkpoint, but {problem}")
        if saved:
            reporter.note(f"Going on from the checkpoint in {self.folder.name}: {done(saved.progress)}")
        return saved

    def load(self) -> tuple[Saved | None, str]:
        """Return what was saved, or None and why it cannot be used, "" if there is nothing."""
        path = self.folder / NAME
        if not path.is_file():
            return None, ""
        try:
            with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
                header = json.loads(str(file[HEADER]))
                arrays = [[file[f"{kind}{i}"] for i in range(header["arrays"][kind])] for kind in KINDS]
            identity, progress = dict(header["identity"]), _progress(header["progress"])
        except (
            OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, EOFError, RuntimeError,
            MemoryError, zipfile.BadZipFile, zlib.error,
        ):  # fmt: skip
            return None, DAMAGED
        if other := sorted(key for key in {*identity, *self.identity} if identity.get(key) != self.identity.get(key)):
            return None, f"it is of another training: {', '.join(other)} differ"
        return Saved(progress, *arrays), ""


def checkpoint_of(model: Any, rendered: Rendered, hyper: Hyperparameters, **more: str) -> Checkpoint | None:
    """Return the checkpoint of a training, None where none is wanted.

    Its identity is what must be the same to resume, by the names under which a difference is reported.
    """
    import keras

    if hyper.checkpoint is None:
        return None
    items = rendered.dataset.items

    def digest(content: Any) -> str:
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    identity = {
        **asdict(replace(hyper, checkpoint=None, fresh=False)),
        "network": digest([model.name, *(list(variable.shape) for variable in model.variables)]),
        "data set": fingerprint.of_files(items, rendered.digests),
        "groups": digest([(item.path, item.group, item.kin) for item in items]),
        "rendering": RENDERING_VERSION,
        "Keras": keras.__version__,
        **more,
    }
    if any(subclasses := [item.subclass for item in items]):
        identity["subclasses"] = digest(subclasses)
    return Checkpoint(hyper.checkpoint, identity, hyper.fresh)


def _progress(stored: Mapping[str, Any]) -> TrainingState:
    """Return the progress in a checkpoint; ValueError or TypeError where it is invalid."""
    progress = TrainingState(**stored)
    numbers = (progress.epoch, progress.batch, progress.best + 1)
    if any(type(number) is not int for number in numbers) or min(numbers) < 0:
        raise ValueError("expected whole numbers")
    for values in progress.history.values():
        if type(values) is not list or any(type(value) not in {int, float} for value in values):
            raise ValueError("expected lists of numbers")
    return progress


def are_like(arrays: Arrays, others: Sequence[Any]) -> bool:
    """Return whether arrays have the number, shapes and types of others, which may be variables of Keras."""
    found, expected = ([(tuple(one.shape), str(one.dtype)) for one in part] for part in (arrays, others))
    return found == expected


def is_history(history: Mapping[str, Sequence[float]], epochs: int) -> bool:
    """Return whether a history has all columns, with a value for each of so many epochs; none for no epoch."""
    expected = dict.fromkeys(COLUMNS if epochs else (), epochs)
    return {column: len(values) for column, values in history.items()} == expected


@contextmanager
def resumable(place: Path | None, reporter: Reporter) -> Iterator[None]:
    """Report how to resume where an interrupted block has left something at ``place``."""
    try:
        yield
    except KeyboardInterrupt:
        if place and place.exists():
            reporter.note(f"The same command goes on from {place.name}; --fresh starts anew")
        raise


def forget(folder: Path | None) -> None:
    """Remove the checkpoint of a completed training, and its folder if nothing else is in it."""
    if folder is None:
        return
    for name in (NAME, PART):
        (folder / name).unlink(missing_ok=True)
    with suppress(OSError):
        folder.rmdir()


@dataclass
class StopRequest:
    """Whether a signal has requested that the training ends."""

    yes: bool = False

    def check(self) -> None:
        """Raise KeyboardInterrupt if so."""
        if self.yes:
            raise KeyboardInterrupt


@contextmanager
def deferred_signals(announce: Callable[[], None]) -> Iterator[StopRequest]:
    """Yield what a first signal that ends sets, while it calls ``announce``; a second one ends the block at once.

    Outside the main thread, where no signals arrive, nothing is changed.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return

    def note(number: int, frame: FrameType | None) -> None:
        before = saved[number]
        if request.yes and callable(before):
            before(number, frame)
        request.yes = True
        announce()

    saved = set_handlers(note)
    try:
        yield request
    finally:
        restore(saved)
