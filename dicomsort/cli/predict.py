"""``predict``: what a bundle's model sees in files, as lines and, where asked, as pictures."""

from __future__ import annotations

import csv
import json
import os
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dicomsort.cli.options import BYTES_PER_TASK, SECONDS_PER_TASK, WARM, require_room

if TYPE_CHECKING:
    from dicomsort.bundle import Bundle
    from dicomsort.errors import WorkerLost
    from dicomsort.records import Look
    from dicomsort.tasks import Explained

BATCH = 8  # files a task
UNSURE, STRANGE = "unsure", "out-of-distribution"


def predict(
    files: Annotated[list[str], typer.Argument(metavar="FILE...", help="DICOM, PNG or JPEG files.")],
    *,
    model: Annotated[
        Path | None, typer.Option(metavar="BUNDLE", help="The bundle to judge by (default: the one that ships).")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object a line instead.")] = False,
    explain: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Write a picture a file there: where in it the evidence for its class lies."),
    ] = None,
) -> None:
    """Judge files by their pixels alone, a line a file.

    The line, as CSV: path, class, confidence, probabilities, abstained, reason.

    Example: dicomsort predict --explain pictures/ scan.dcm photo.jpg
    """
    from dicomsort.bundle import default_path, load
    from dicomsort.records import RENDERING_VERSION

    require_room()
    bundle = load(model or default_path(), RENDERING_VERSION)
    if explain is not None:
        from dicomsort.cli.overlay import prepare
        from dicomsort.outputs import Gate

        gate = Gate({f"FILE {path!r}": path for path in files})
        explain = Path(gate.check_folder("--explain", explain))  # no folder is made that a path only passes
        prepare(explain, bundle)
    write = _write_json if as_json else _write_csv
    for path, explained in zip(files, _looks(files, bundle), strict=True):
        answer = _answer(path, explained.look, bundle)
        write(answer)
        if explain is not None:
            _draw(explain, answer, explained, bundle)


def _looks(files: Sequence[str], bundle: Bundle) -> Iterator[Explained]:
    """What the model sees in the middle frame of each file; workers decode, so that a hostile file costs its own."""
    from dicomsort.adapters import open_engine
    from dicomsort.adapters.processes import usable_cores
    from dicomsort.engine import Limits, submit_batch
    from dicomsort.tasks import explain

    here = "" if all(map(os.path.isabs, files)) else os.getcwd()  # the working folder may be gone
    frames = [(os.path.join(here, path).lstrip("/"), None) for path in files]
    batches = [frames[start : start + BATCH] for start in range(0, len(frames), BATCH)]
    task = partial(explain, str(bundle.folder.resolve()), "")
    limits = Limits(SECONDS_PER_TASK, BYTES_PER_TASK)
    workers = min(usable_cores(), len(batches))
    with open_engine("processes", workers, None, limits=limits, warm=WARM) as engine:
        for future in [submit_batch(engine, task, batch, _on_lost) for batch in batches]:
            yield from future.result()


def _on_lost(_: tuple[str, None], error: WorkerLost) -> Explained:
    from dicomsort.records import Look
    from dicomsort.tasks import Explained

    return Explained(Look(problem=str(error)))


def _answer(path: str, look: Look, bundle: Bundle) -> dict[str, Any]:
    """The line of one file, as the interface orders its cells."""
    from dicomsort.classify import is_strange

    best = max(look.probabilities, default=0.0)
    class_ = bundle.labels[look.probabilities.index(best)] if look.probabilities else ""
    reason = look.problem
    if not reason and is_strange(class_, look.distance, bundle.distance):
        reason = STRANGE
    elif not reason and best < bundle.decide:
        reason = UNSURE
    return {
        "path": path,
        "class": class_,
        "confidence": round(best, 6),
        "probabilities": dict(zip(bundle.labels, look.probabilities, strict=False)),
        "abstained": bool(reason),
        "reason": reason,
    }


def _draw(folder: Path, answer: dict[str, Any], explained: Explained, bundle: Bundle) -> None:
    """Write one picture, and say on stderr where none was written."""
    from dicomsort.cli.overlay import write_overlay
    from dicomsort.report import visible

    problem = explained.look.problem
    if explained.image is not None and explained.maps is not None:
        map_ = explained.maps[..., bundle.labels.index(answer["class"])]
        problem = write_overlay(folder, answer, explained.image, map_)
    if problem:
        print(f"dicomsort: {visible(answer['path'])}: no picture: {problem}", file=sys.stderr)


def _write_json(answer: dict[str, Any]) -> None:
    print(json.dumps(answer), flush=True)


def _write_csv(answer: dict[str, Any]) -> None:
    from dicomsort.report import visible

    path, class_, confidence, probabilities, abstained, reason = answer.values()
    shares = " ".join(f"{label}={share:.4f}" for label, share in probabilities.items())
    told = "yes" if abstained else "no"
    csv.writer(sys.stdout, lineterminator="\n").writerow(
        (visible(path), class_, f"{confidence:.4f}", shares, told, reason)
    )
