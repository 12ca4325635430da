"""One damaged file of an outbox's state costs its own run, and nothing else: no byte, no other run, no traceback."""

from __future__ import annotations

from pathlib import Path

import pytest
from damaging import Damage, World, damages, play, state_files

STRIDE = 41  # of all damages of all files; `make torture` plays each


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("damaged"))


def test_a_sample_of_all_damages(world: World) -> None:
    cases = [(path, damage) for path in state_files(world) for damage in damages(world)]
    assert len(cases) > 2000
    for path, damage in cases[::STRIDE]:
        _check(world, path, damage)


def _check(world: World, path: Path, damage: Damage) -> None:
    try:
        ended = play(world, path, damage)
    except BaseException as error:
        error.add_note(f"{path}: {damage.name}")
        raise
    run = path.parts[2] if len(path.parts) > 2 else ""
    if run and run != world.runs["finished"]:
        codes = {name: ended[name].code for name in ("sort", "undo of the finished run", "sort again")}
        assert set(codes.values()) <= {0, 3}, (path, damage.name, codes)
