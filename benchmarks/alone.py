"""One worker's share of a part of sorting pictures, alone: ``python benchmarks/alone.py decode|infer|both LIST``.

LIST names a file with a path a line. It makes ready, prints ``ready``, waits for a line on stdin, and prints the
seconds of wall and of CPU time that the loop took.
``both`` decodes and infers in turn: what a worker cannot be faster than.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dicomsort.bundle import Predictor, default_path, load
from dicomsort.pixels import render


def main() -> None:
    """Prepare, wait, measure."""
    what, listed = sys.argv[1:]
    paths = Path(listed).read_text("utf-8").splitlines()
    predictor = Predictor(load(default_path()))
    predictor.predict(render(paths[0])[None])  # the first is slower than the others
    tasks: dict[str, tuple[Callable[[Any], object], list[Any]]] = {
        "decode": (render, paths),
        "infer": (lambda image: predictor.predict(image[None]), [render(p) for p in paths] if what == "infer" else []),
        "both": (lambda path: predictor.predict(render(path)[None]), paths),
    }
    task, items = tasks[what]
    print("ready", flush=True)
    sys.stdin.readline()
    started, spent = time.perf_counter(), time.process_time()
    for item in items:
        task(item)
    print(time.perf_counter() - started, time.process_time() - spent, flush=True)


if __name__ == "__main__":
    main()
