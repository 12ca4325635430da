"""Where the time of a training goes before its model has it: ``python benchmarks/training.py DATASET``.

Prints Markdown: how fast files become renderings, beside a plain loop over ``pixels.render`` in as many processes; how
fast a sort looks at loose images, beside decoding and inference alone; how fast batches are made where no model asks
for them; and which share of its time a model waited for them. The rows of a table are measured in turn ``--repeat``
times, medians are told. Other load on the machine changes the milliseconds of a core less than the rates.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import tempfile
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from functools import cache, partial
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dicomsort import tasks
from dicomsort.bundle import Predictor, default_path, load
from dicomsort.engines import open_engine
from dicomsort.engines.engine import Engine, TaskLimits, submit_batch
from dicomsort.errors import WorkerLost
from dicomsort.pixels import render
from dicomsort.records import INPUT_SHAPE, Prediction
from dicomsort.training.data.augment import STRENGTHS
from dicomsort.training.data.dataset import Dataset, scan
from dicomsort.training.data.prefetch import Feed
from dicomsort.training.data.rendered import Rendered, open_cache, render_all
from dicomsort.training.fit.hyperparameters import Hyperparameters
from dicomsort.training.models.architectures import ARCHITECTURES
from dicomsort.training.progress import Reporter, load_tensorflow

LIMITS = TaskLimits(10.0, 1 << 30)
PIECES = 40  # of a plain loop, so that no process idles at its end
AHEAD = 8  # tasks a worker that wait, as in a sort
SIZES = (4, 16, 64)  # images a task

Frame = tuple[str, int | None]


class Cost(NamedTuple):
    """What something cost: seconds on the clock, and of all cores, children that have ended included."""

    wall: float
    cpu: float


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dataset", type=Path, help="a folder with a folder a class")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--images", type=int, default=256, help="of the files, to look at and to train on")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--only", choices=("decode", "feed", "wait", "look"), nargs="+")
    arguments = parser.parse_args()
    dataset = scan(arguments.dataset)
    wanted = arguments.only or ("decode", "feed", "wait", "look")
    print(f"{len(dataset.items):,} files, {arguments.workers} workers, medians of {arguments.repeat}")
    if "decode" in wanted:
        decode(dataset, arguments.workers, arguments.repeat)
    some = dataset.only(range(0, len(dataset.items), max(1, len(dataset.items) // arguments.images)))
    if "look" in wanted:  # before TensorFlow is there: its threads and forks do not go together
        look([str(dataset.root / item.path) for item in some.items], arguments.workers, arguments.repeat)
    if "feed" in wanted or "wait" in wanted:
        with tempfile.TemporaryDirectory() as scratch:
            rendered = rendered_in(some, Path(scratch), arguments.workers)
            if "feed" in wanted:
                feed(rendered, arguments.workers, arguments.repeat)
            if "wait" in wanted:
                wait(rendered, arguments.epochs)


def decode(dataset: Dataset, workers: int, repeat: int) -> None:
    """Print how fast files become renderings: by a plain loop, by ``render_all``, and with a cache."""
    paths = [str(dataset.root / item.path) for item in dataset.items]
    few = dataset.only(range(workers))

    def plain(paths: Sequence[str]) -> None:
        with processes(workers) as pool:
            deque(pool.map(loop, [paths[i::PIECES] for i in range(PIECES)]), 0)

    def all_at(data: Dataset, place: Path | None) -> None:
        with tempfile.TemporaryDirectory() as scratch:
            rendered_in(data, Path(scratch), workers, place)

    costs: dict[str, list[Cost]] = {}
    for _ in range(repeat):
        with tempfile.TemporaryDirectory() as folder:
            kept = open_cache(Path(folder))
            # Less what starting the processes costs.
            rows = {"plain loop": (lambda: plain(paths), lambda: plain(paths[:workers]))}
            for name, place in (("render_all", None), ("render_all, filling a cache", kept), ("… from it", kept)):
                rows[name] = (partial(all_at, dataset, place), partial(all_at, few, None))
            for name, (task, start) in rows.items():
                costs.setdefault(name, []).append(less(cost_of(task), cost_of(start)))
    print("\n| files to renderings | images/s | ms of a core each | of the plain loop |\n| --- | ---: | ---: | ---: |")
    whole = median(costs["plain loop"])
    for name, found in costs.items():
        cost = median(found)
        row = f"{len(paths) / cost.wall:,.0f} | {cost.cpu / len(paths) * 1e3:.2f} | {whole.wall / cost.wall:.0%}"
        print(f"| {name} | {row} |")


def processes(workers: int) -> ProcessPoolExecutor:
    """Return a plain pool; forks of a process with threads would wait for these forever."""
    return ProcessPoolExecutor(workers, get_context("spawn"))


def loop(paths: Sequence[str]) -> None:
    """Render files one after the other."""
    for path in paths:
        render(path)


def rendered_in(dataset: Dataset, scratch: Path, workers: int, kept: Path | None = None) -> Rendered:
    """Render a data set as a training does."""
    warm = ("dicomsort.training.data.rendered",)
    with open_engine("processes", workers, None, limits=LIMITS, warm=warm) as engine, Reporter() as reporter:
        return render_all(dataset, scratch / "images.npy", engine, reporter, kept)


def feed(rendered: Rendered, threads: int, repeat: int) -> None:
    """Print how fast batches are made while nothing else is done."""
    load_tensorflow()
    from dicomsort.training.fit.feeding import Batches, one_hot

    truth = one_hot(rendered.dataset)
    costs: dict[str, list[Cost]] = {name: [] for name in STRENGTHS}
    for _ in range(repeat):
        for name, strength in STRENGTHS.items():
            batches = Batches(rendered.images, rendered.rows, truth, 32, 0, None, strength)
            with Feed(batches, 1, threads) as made:
                costs[name].append(cost_of(partial(deque[object], made, 0)))
    print("\n| feed alone, `--augment` | images/s | ms of a core each |\n| --- | ---: | ---: |")
    for name, found in costs.items():
        cost, count = median(found), len(rendered.rows)
        print(f"| {name} | {count / cost.wall:,.0f} | {cost.cpu / count * 1e3:.2f} |")


def wait(rendered: Rendered, epochs: int) -> None:
    """Print which share of its time a training waits for batches, by architecture and augmentation."""
    load_tensorflow()
    from dicomsort.training.fit.recipes import fit

    print(
        f"\n| `--arch` | `--augment` | waiting | seconds, {len(rendered.rows):,} images |\n| --- | --- | ---: | ---: |"
    )
    for arch in ("cnn", "efficientnet-lite0"):
        for name in STRENGTHS:
            began = time.perf_counter()
            with Reporter() as reporter:
                numbers = Hyperparameters(epochs, 32, 0.001, 0.2, 0, name)
                fitted = fit(ARCHITECTURES[arch], rendered, numbers, reporter)
            print(
                f"| {arch} | {name} | {fitted.course['waiting']:.1%} | {time.perf_counter() - began:.0f} |", flush=True
            )


def look(paths: Sequence[str], workers: int, repeat: int) -> None:
    """Print how fast a sort looks at loose images, and decoding and inference alone in as many processes."""
    frames: list[Frame] = [(path.lstrip("/"), None) for path in paths]
    pieces = [paths[i::PIECES] for i in range(PIECES)]
    warm = ("dicomsort.tasks", "dicomsort.pixels")
    with (
        open_engine("processes", workers, None, limits=LIMITS, warm=warm) as engine,
        processes(workers) as pool,
    ):
        rows: dict[str, Callable[[], object]] = {
            "decoding alone": lambda: list(pool.map(loop, pieces)),
            "inference alone": lambda: list(pool.map(infer, map(len, pieces))),
            **{f"both, {size} images a task": partial(look_at, engine, frames, size) for size in SIZES},
        }
        costs: dict[str, list[Cost]] = {name: [] for name in rows}
        for turn in range(repeat + 1):
            for name, task in rows.items():
                cost = cost_of(task)
                costs[name] += [cost] if turn else []  # the first loads the model
    walls = {name: median(found).wall for name, found in costs.items()}
    one, other, *_ = walls.values()
    print("\n| loose images in a sort | images/s | of the slower alone | of both in turn |")
    print("| --- | ---: | ---: | ---: |")
    for name, wall in walls.items():
        print(f"| {name} | {len(paths) / wall:,.0f} | {max(one, other) / wall:.0%} | {(one + other) / wall:.0%} |")


@cache
def predictor() -> Predictor:
    """Return the model that ships, once a process."""
    return Predictor(load(default_path()))


def infer(count: int) -> None:
    """Show the model that ships as many images, one by one as a sort does."""
    image = np.zeros((1, *INPUT_SHAPE), np.uint8)
    for _ in range(count):
        predictor().predict(image)


def look_at(engine: Engine, frames: Sequence[Frame], size: int) -> None:
    """Have frames looked at as a sort does, some tasks waiting."""
    task = partial(tasks.predict_frames, load(default_path()).reference, "/")
    waiting: deque[Future[list[Prediction]]] = deque()
    for start in range(0, len(frames), size):
        waiting.append(submit_batch(engine, task, frames[start : start + size], lost))
        if len(waiting) > AHEAD * engine.workers:
            waiting.popleft().result()
    while waiting:
        waiting.popleft().result()


def lost(_: Frame, error: WorkerLost) -> Prediction:
    """Say why an image was not seen."""
    return Prediction(problem=str(error))


def cost_of(task: Callable[[], object]) -> Cost:
    """Do a task, and return what it cost."""
    began, spent = time.perf_counter(), _cpu()
    task()
    return Cost(time.perf_counter() - began, _cpu() - spent)


def _cpu() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def less(cost: Cost, other: Cost) -> Cost:
    """Return a cost without another that is part of it."""
    return Cost(cost.wall - other.wall, cost.cpu - other.cpu)


def median(costs: Sequence[Cost]) -> Cost:
    """Return the medians of costs."""
    return Cost(*(statistics.median(values) for values in zip(*costs, strict=True)))


if __name__ == "__main__":
    main()
