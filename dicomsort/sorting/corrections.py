"""What persons decided, as a folder that ``dicomsort train --from`` takes: CLASS/<study>/<image>.png, and a table.

An image is what the model was shown, 224 x 224 pixels: it renders to itself, and carries no header. Its folder is named
by a hash of the Study Instance UID, so that a training keeps the images of a study together. All of it is made from
finished runs, again where a crash came between; an image without its row is not lost, one without its run not kept.
The table is appended to only where its first line is ours: the folder is one that a user names.
"""

from __future__ import annotations

import csv
import errno
import hashlib
import io
import os
import re
import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

from dicomsort.engines.engine import Engine, submit_batch
from dicomsort.errors import DicomsortError, UsageError
from dicomsort.files import Files, closing_descriptor, flush_path, is_straight, look_up, missing_folders
from dicomsort.jsonlines import whole_lines
from dicomsort.records import RENDERING_VERSION, Action, Row
from dicomsort.report import cell, visible
from dicomsort.report.manifest import rows_of
from dicomsort.report.manifest_reader import LONGEST, decided_from
from dicomsort.sorting.pixel_sampling import FRAMES, middle_half
from dicomsort.sorting.runs import load_run, load_runs
from dicomsort.tasks import FramePicture, PictureRequest, make_pictures

TABLE = "corrections.csv"
COLUMNS = (
    "time", "run_id", "action", "reviewer", "class", "image", "reason", "header_class", "pixel_class",
    "pixel_confidence", "study_uid", "series_uid", "sop_uid", "sha256", "rendering_version", "model_sha256",
)  # fmt: skip
DECIDED = "decided"
_HEAD = ",".join(COLUMNS).encode()
_LONGEST_HEAD = 1 << 16
_KEY = 8
_IMAGE = re.compile(r"(.+)-\d+\.png")
_README = """\
What persons decided on the review page of dicomsort: an image below the class that it is of, as the model was shown it.
corrections.csv says who decided what, when, and against what, with the UIDs of what it was; rows of action "undone"
take earlier ones back.

`dicomsort train --from BUNDLE --out NEW THIS_FOLDER` makes a model that has learned from it. The images are patients'.
"""


class Corrections:
    """The corrections that one model's reviewers leave in one folder."""

    def __init__(self, folder: str, model_sha256: str, files: Files) -> None:
        """UsageError where the folder cannot be made or written, or its ``corrections.csv`` is not of corrections."""
        self.folder = os.path.realpath(folder)
        self._model, self._files = model_sha256, files
        try:
            _make_folders(files, self.folder)
            with _table(files, self.folder):
                pass
            with suppress(FileExistsError), closing_descriptor(files.create(f"{self.folder}/README", 0o600)) as readme:
                files.write(readme, _README.encode())
        except OSError as error:
            message = f"corrections {folder!r}: expected a folder that can be written, received {error.strerror}"
            raise UsageError(message) from error

    def named(self, outbox: str) -> str:
        """Return the folder as a decision's plan names it: relative where it lies in the outbox, which may be moved."""
        inside = os.path.relpath(self.folder, outbox)
        return self.folder if inside.startswith("..") else inside

    def count(self) -> int:
        """Return how many images the folder's table lists and no undo took out; 0 where it cannot be read."""
        with suppress(OSError):
            return sum(len(images) for images in images_by_run(self.folder).values())
        return 0

    def record(self, outbox: str, run: str, engine: Engine) -> list[str]:
        """Add a finished decision, whose files have moved, in a locked outbox; return notes about it."""
        try:
            return self._record(outbox, run, engine)
        except OSError as error:
            return [f"no model learns from it yet: {visible(self.folder)} cannot be written ({error.strerror})"]
        except (DicomsortError, ValueError) as error:
            return [f"no model learns from it yet: {error}"]

    def _record(self, outbox: str, run: str, engine: Engine) -> list[str]:
        plan = load_run(outbox, run).plan
        if plan is None or not is_straight(self.folder, plan.head.get("class", "")):  # it is no name of a class
            return []
        rows = [row for row in rows_of(outbox, run) if row.action == Action.MOVED]
        pictures = _pictures_of_series(outbox, rows, engine)
        common = {
            "time": plan.head["started"], "run_id": run, "action": DECIDED, "reviewer": plan.head.get("reviewer", ""),
            "class": plan.head["class"], "rendering_version": RENDERING_VERSION, "model_sha256": self._model,
        }  # fmt: skip
        lines = []
        for number, (row, picture) in enumerate(pictures):
            image = f"{plan.head['class']}/{_study_key(row)}/{run}-{number}.png"
            self._save(image, picture.rendering)
            lines.append(common | _cells(row) | {"image": image})
        _append(self._files, self.folder, lines or [common | _cells(row) for row in rows[:1]])
        return [] if pictures or not rows else ["its pixels cannot be had, so no model learns from it"]

    def mend(self, outbox: str, engine: Engine) -> list[str]:
        """Add decisions that a crash left out, take out what was undone since, in a locked outbox; return notes."""
        try:
            known = images_by_run(self.folder)
        except OSError as error:
            return [f"{visible(self.folder)}/{TABLE} cannot be read, so nothing is added to it ({error.strerror})"]
        notes, runs = list[str](), load_runs(outbox)
        undone = runs.wholly_undone()
        for run, found in runs.items():
            if not (found.plan and found.summary) or found.plan.head.get("corrections") != self.named(outbox):
                continue
            if run in undone and run in known:
                notes += retracted(self._files, self.folder, run)
            elif run not in undone and run not in known:
                notes += self.record(outbox, run, engine)
        return notes

    def _save(self, image: str, content: bytes) -> None:
        """Place an image whole, or leave the one that is there."""
        path = f"{self.folder}/{image}"
        _make_folders(self._files, os.path.dirname(path))
        if not is_straight(self.folder, image):
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
        if look_up(path) is not None:
            return
        part = f"{os.path.dirname(path)}/.{os.path.basename(path)}.part"
        if look_up(part) is not None:
            self._files.unlink(part)
        with closing_descriptor(self._files.create(part, 0o600)) as descriptor:
            self._files.write(descriptor, content)
            self._files.flush(descriptor)
        self._files.replace(part, path)  # a name of ours, with the run's id; links may be refused here
        flush_path(self._files, os.path.dirname(path))


def retracted(files: Files, folder: str, run: str) -> list[str]:
    """Take out what a decision added, after it was undone, and return notes; do nothing where the folder is gone."""
    try:
        images = images_by_run(folder).get(run)
        if images is not None:
            for image in images:
                _remove(files, folder, image, run)
            common = {"run_id": run, "action": str(Action.UNDONE)}
            _append(files, folder, [common | {"image": image} for image in images or [""]])
    except (OSError, UsageError, ValueError) as error:
        return [f"models learn from it still: its images could not be taken out ({error})"]
    return []


def _remove(files: Files, folder: str, image: str, run: str) -> None:
    """Remove an image of ours, and the folders that it leaves empty: the table may have been edited."""
    parts = image.split("/")
    ours = _IMAGE.fullmatch(parts[-1])
    if len(parts) != 3 or ours is None or ours[1] != run or not is_straight(folder, image):  # noqa: PLR2004
        return
    if (status := look_up(f"{folder}/{image}")) is not None and stat.S_ISREG(status.st_mode):
        files.unlink(f"{folder}/{image}")
    with suppress(OSError):  # not empty
        files.remove_folder(f"{folder}/{parts[0]}/{parts[1]}")
        files.remove_folder(f"{folder}/{parts[0]}")


def images_by_run(folder: str) -> dict[str, list[str]]:
    """Return the decisions of a table that stand, each run with its images (paths below the folder)."""
    runs: dict[str, list[str]] = {}
    path = Path(folder, TABLE)
    if not path.is_file():
        return runs
    with path.open(encoding="utf-8", errors="replace", newline="") as table:
        lines = iter(partial(table.readline, LONGEST), "")  # what is longer is no row of ours, and comes in pieces
        for row in _readable(csv.DictReader(lines)):
            run, image = row.get("run_id") or "", row.get("image") or ""
            if "\0" in run + image:  # not a row of ours, and not a path
                continue
            if row.get("action") == DECIDED:
                runs.setdefault(run, []).extend([image] if image else [])
            elif row.get("action") == Action.UNDONE:
                runs.pop(run, None)
    return runs


def _readable(rows: Iterator[dict[str, str]]) -> Iterator[dict[str, str]]:
    """Yield the rows without those that the reader refuses."""
    while True:
        try:
            yield next(rows)
        except StopIteration:
            return
        except csv.Error:
            continue


def _pictures_of_series(outbox: str, rows: Sequence[Row], engine: Engine) -> list[tuple[Row, FramePicture]]:
    """Return what the model is shown of a series for a prediction: a few files, or frames of a file."""
    chosen = [rows[place] for place in middle_half(len(rows), FRAMES)]
    pictures = _pictures(outbox, [(row, None) for row in chosen], engine)
    frames = pictures[0][1].header.frames if len(pictures) == 1 and pictures[0][1].header else 1
    if frames > 1:
        pictures = _pictures(outbox, [(chosen[0], frame) for frame in middle_half(frames, FRAMES)], engine)
    return [(row, picture) for row, picture in pictures if picture.rendering]


def _pictures(outbox: str, frames: list[tuple[Row, int | None]], engine: Engine) -> list[tuple[Row, FramePicture]]:
    requests = [PictureRequest(row.destination, frame, 0, rendering=True) for row, frame in frames]
    on_lost = lambda _, error: FramePicture(b"", str(error))
    pictures = submit_batch(engine, partial(make_pictures, outbox), requests, on_lost).result()
    return [(row, picture) for (row, _), picture in zip(frames, pictures, strict=True)]


def _cells(row: Row) -> dict[str, object]:
    names = ("header_class", "pixel_class", "pixel_confidence", "study_uid", "series_uid", "sop_uid", "sha256")
    was = decided_from(row)
    return {name: getattr(row, name) for name in names} | {"reason": was.split("/")[1] if was else ""}


def _study_key(row: Row) -> str:
    uid = row.study_uid.encode(errors="surrogateescape")
    return (hashlib.sha256(uid).hexdigest() if uid else row.sha256)[:_KEY]


def _append(files: Files, folder: str, lines: Sequence[Mapping[str, object]]) -> None:
    """Append rows in one write, durably; a torn line before them is ended."""
    with _table(files, folder) as descriptor:
        size = os.fstat(descriptor).st_size
        text = io.StringIO(newline="")
        if not (whole := whole_lines(descriptor, size)) and size:  # a torn head
            files.truncate(descriptor, size := 0)
        elif whole != size:
            text.write("\n")
        writer = csv.DictWriter(text, COLUMNS, restval="", lineterminator="\n")
        if not size:
            writer.writeheader()
        writer.writerows({name: cell(str(value)) for name, value in line.items()} for line in lines)
        files.write(descriptor, text.getvalue().encode(errors="replace"))
        files.flush(descriptor)


@contextmanager
def _table(files: Files, folder: str) -> Iterator[int]:
    """The table, open for appending; UsageError where a file of that name is another, which is left as it is.

    It is ours where its first line begins with our columns (a person may have edited it), or is cut short within them.
    """
    with closing_descriptor(files.open_append(f"{folder}/{TABLE}", 0o600)) as descriptor:
        first, is_whole, _ = os.pread(descriptor, _LONGEST_HEAD, 0).partition(b"\n")
        ours = rb"(\xef\xbb\xbf)?" + _HEAD + rb"(,|\r?$)"
        if not (re.match(ours, first) if is_whole else _HEAD.startswith(first)):
            raise UsageError(
                f"corrections {folder!r}: expected a {TABLE} that begins with {_HEAD.decode()}, received another file; "
                "it was not changed; name another folder, or move the file away"
            )
        yield descriptor


def _make_folders(files: Files, path: str) -> None:
    for folder in missing_folders(path):
        with suppress(FileExistsError):
            files.make_folder(folder, 0o700)
