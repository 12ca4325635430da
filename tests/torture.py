"""``make torture``: the whole crash matrix, every byte of the journal torn, real kills, every damage of the state."""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import test_archives_crash
from damaging import World, check, every_case
from killing import Killer
from matrix import MODES, Tears, once, try_all, twice

MEMORY = Path("/dev/shm")  # noqa: S108 - flushing costs nothing there
OTHERS = 40  # every so-manieth byte of the plan, the manifests and the summary


@contextmanager
def folder(parent: Path | None) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="dicomsort-torture-", dir=parent) as made:
        yield Path(made)


def _tell(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def _damage(parent: Path | None) -> None:
    """Play every damage of every state file; AssertionError where one costs more than its own run."""
    with folder(parent) as root:
        world = World(root)
        cases = every_case(world)
        for path, damage in cases:
            check(world, path, damage)
        _tell(f"damaged state: {len(cases):,} damages, every command over each, nothing lost")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=time.time_ns() % 10**6, help="told at the start; default: the time")
    parser.add_argument("--kills", type=int, default=300)
    parser.add_argument("--no-matrix", action="store_true", help="no crash matrix")
    parser.add_argument("--no-damage", action="store_true", help="no damaged state files")
    options = parser.parse_args()
    _tell(f"seed {options.seed}")
    chosen = random.Random(options.seed)
    memory = MEMORY if MEMORY.is_dir() else None
    with folder(memory) as root, folder(None) as disk:
        killer = Killer(root, [root, disk], options.seed)
        while killer.killed.total() < options.kills:
            killer.trial()
        for what, times in sorted(killer.killed.items()):
            _tell(f"kill -9: {what}: {times} times, nothing lost")
    if not options.no_damage:
        _damage(memory)
    for kind in () if options.no_matrix else test_archives_crash.MODES:
        with folder(memory) as root:
            _tell(f"crash points: archives, {' '.join(kind)}: {test_archives_crash.try_all(root, *kind)}, nothing lost")
    for mode in () if options.no_matrix else MODES:
        with folder(memory) as root:
            tears = Tears(1, OTHERS, chosen.randrange(OTHERS))
            one = try_all(root, mode, once(root / "whole", mode, tears))
            two = sum(try_all(root, mode, twice(root / "whole", mode, chosen)) for _ in range(3))
            _tell(f"crash points: {mode.verb}, {mode.system}: {one} once, {two} twice, nothing lost")


if __name__ == "__main__":
    main()
