"""At least fifty times ``kill -9`` at random moments of the real process; ``make torture`` does three hundred."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest
from killing import Killer

KILLS, COMMANDS = 50, {"sort", "resume", "undo"}
MEMORY = Path("/dev/shm")  # noqa: S108 - a second file system, where there is one


def test_fifty_kills_lose_nothing(tmp_path: Path, record_property: pytest.RecordProperty) -> None:
    with tempfile.TemporaryDirectory(dir=MEMORY if os.access(MEMORY, os.W_OK) else None) as other:
        killer = Killer(Path(other), [Path(other), tmp_path], seed=20_240_229)
        while killer.killed.total() < KILLS or {what.split()[0] for what in killer.killed} < COMMANDS:
            killer.trial()
    for what, times in killer.killed.items():
        record_property("crash points", (what, "kill -9", times))
    assert {what.split()[0] for what in killer.killed} == COMMANDS
