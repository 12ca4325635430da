"""One damaged file of an outbox's state costs its own run, and nothing else: no byte, no other run, no traceback."""

from __future__ import annotations

import pytest
from damaging import World, check, damages, state_files

STRIDE = 41  # of all damages of all files; `make torture` plays each


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("damaged"))


def test_a_sample_of_all_damages(world: World) -> None:
    cases = [(path, damage) for path in state_files(world) for damage in damages(world)]
    assert len(cases) > 2000
    for path, damage in cases[::STRIDE]:
        check(world, path, damage)
