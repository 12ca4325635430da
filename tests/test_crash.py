"""Invariants 1, 2 and 4 at every instant: a run dies before, after and within each change on disk."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pytest
from matrix import MODES, Mode, Tears, once, try_all, twice

MEMORY = Path("/dev/shm")  # noqa: S108 - flushing costs nothing there
STRIDE = 54  # each mode tears the writes at other bytes; `make torture` at every one


@pytest.fixture(params=MODES, ids=lambda mode: f"{mode.verb} {mode.system}")
def mode(request: pytest.FixtureRequest) -> Mode:
    found = request.param
    assert isinstance(found, Mode)
    return found


@pytest.fixture
def root() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None) as folder:
        yield Path(folder)


def test_a_death_at_any_change_loses_nothing_and_resume_and_undo_complete(
    root: Path, mode: Mode, record_property: pytest.RecordProperty
) -> None:
    tears = Tears(STRIDE, STRIDE, 3 * MODES.index(mode))
    tried = try_all(root, mode, once(root / "whole", mode, tears))
    record_property("crash points", (f"{mode.verb}, {mode.system}", "once", tried))
    assert tried > 100


def test_two_deaths_in_a_row(root: Path, mode: Mode, record_property: pytest.RecordProperty) -> None:
    tried = try_all(root, mode, twice(root / "whole", mode, random.Random(MODES.index(mode))))
    record_property("crash points", (f"{mode.verb}, {mode.system}", "twice", tried))
    assert tried > (50 if mode.places else 40)  # where nothing was placed there is nothing to undo


@pytest.mark.parametrize("mode", MODES[:6], indirect=True)
def test_a_death_on_a_disk_that_gives_inode_numbers_out_again(tmp_path: Path, mode: Mode) -> None:
    chains = once(tmp_path / "whole", mode, Tears(10**6, 10**6))
    assert try_all(tmp_path, mode, islice(chains, MODES.index(mode), None, 7)) > 10
