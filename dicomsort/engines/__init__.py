"""Engines run tasks in workers: here they are opened by the names that ``--engine`` takes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dicomsort.engines.engine import SerialEngine
from dicomsort.engines.processes import ProcessEngine
from dicomsort.errors import UsageError

if TYPE_CHECKING:
    from dicomsort.engines.engine import Engine, TaskLimits

ENGINES = ("processes", "serial", "dask")


def check_engine(name: str, scheduler: str | None) -> None:
    """Raise UsageError where an engine of that name cannot be opened, whoever answers; nobody is called."""
    if name == "dask":
        from dicomsort.engines.dask_cluster import check_address  # imports asyncio, which every other start would pay

        check_address(scheduler)


def open_engine(
    name: str, workers: int | None, scheduler: str | None, *, limits: TaskLimits, warm: tuple[str, ...] = ()
) -> Engine:
    """Open the engine of that name; the caller closes it.

    ``workers`` bounds the tasks at a time (default: the cores, or the cluster's threads), ``scheduler`` is the address
    that ``dask`` needs, ``limits`` hold for each task (``serial`` has none), ``warm`` names modules for workers to
    import at their start. Raises ``UsageError`` for an unknown name, and what the engine raises.
    """
    if name == "serial":
        return SerialEngine()
    if name == "processes":
        return ProcessEngine(workers, limits, warm)
    if name == "dask":
        from dicomsort.engines.dask_cluster import ClusterEngine  # imports asyncio, as above

        return ClusterEngine(scheduler, workers, limits, warm)
    raise UsageError(f"expected --engine {'|'.join(ENGINES)}, received {name}")
