"""One damaged file of an outbox's state costs its own run, and nothing else: no byte, no other run, no traceback."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest
from damaging import World, check, every_case, sample
from elsewhere import MEMORY

SEED = 7  # of the sample; `make torture` plays all damages of all files


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None) as folder:
        yield World(Path(folder))


def test_a_sample_of_all_damages(world: World) -> None:
    chosen = sample(world, SEED)
    assert len(every_case(world)) > 2000
    assert len({path for path, _ in chosen}) == len({path for path, _ in every_case(world)})
    with mock.patch("dicomsort.doctor.examine_machine", return_value=[]):  # most of its time, and none of the outbox
        for path, damage in chosen:
            check(world, path, damage)
