"""``evaluate --compare``: two bundles side by side, as table, JSON and picture."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

from dicomsort.cli.options import BYTES_PER_TASK, SECONDS_PER_TASK

if TYPE_CHECKING:
    from pathlib import Path

    from dicomsort.bundle import Bundle

PATHS_SAID = 5


def show_compared(
    folders: tuple[Path, Path], dataset: Path | None, out: Path, groups: Path | None, seed: int, *, as_json: bool
) -> None:
    """Compare two bundles, write metrics.json and a picture to ``out``, and print tables, or one JSON object."""
    from dicomsort.bundle import load
    from dicomsort.records import RENDERING_VERSION
    from dicomsort.training.comparepicture import write_comparison
    from dicomsort.training.comparetables import warnings
    from dicomsort.training.evaluate import check_out

    folder = check_out(out, dataset)
    bundles = load(folders[0], RENDERING_VERSION), load(folders[1], RENDERING_VERSION)
    told = _compared(bundles, dataset, out, groups, seed)
    write_comparison(told, folder)
    for warning in warnings(told):
        print(f"WARNING: {warning}", file=sys.stderr)
    if as_json:
        print(json.dumps(told))
    else:
        _show(told, out)


def _compared(
    bundles: tuple[Bundle, Bundle], dataset: Path | None, out: Path, groups: Path | None, seed: int
) -> dict[str, Any]:
    from dicomsort.training.sidebyside import on_dataset, on_their_own

    if dataset is None:
        return on_their_own(bundles, seed)
    from dicomsort.adapters import open_engine
    from dicomsort.adapters.processes import usable_cores
    from dicomsort.engine import Limits
    from dicomsort.training.evaluate import WARM, Settings
    from dicomsort.training.progress import Reporter

    limits = Limits(SECONDS_PER_TASK, BYTES_PER_TASK)
    with Reporter() as reporter, open_engine("processes", usable_cores(), None, limits=limits, warm=WARM) as engine:
        return on_dataset(bundles, Settings(dataset, out, groups, seed), engine, reporter)


def _show(told: dict[str, Any], out: Path) -> None:
    """Print the tables for a person, and the first images that only one of the two has right."""
    from dicomsort.cli.tables import show
    from dicomsort.report import visible
    from dicomsort.training.comparetables import names_of, tables, title

    print(title(told))
    show(tables(told))
    for name, which in zip(names_of(told), ("only_first", "only_second"), strict=True):
        paths = told.get("changed", {}).get(which, ())
        if paths:
            print(f"\nRight by {name} alone ({told['agreement'][which]:,}):")
            print("\n".join(f"  {visible(path)}" for path in paths[:PATHS_SAID]))
            if told["agreement"][which] > PATHS_SAID:
                print(f"  … metrics.json lists {len(paths):,}")
    print(f"\nFigures and picture: {visible(str(out))}")
