"""What fuzzing once found or kept, and its seeds, replayed: nothing raises what it must not."""

from __future__ import annotations

from pathlib import Path

import pytest
from fuzzing import CORPUS, TARGETS, archive_seeds, seeds


@pytest.mark.parametrize("target", TARGETS)
def test_the_corpus_and_the_seeds_hold(target: str, tmp_path: Path) -> None:
    (archive_seeds if target == "archive" else seeds)(tmp_path)
    inputs = [*tmp_path.iterdir(), *(CORPUS / target).iterdir()]
    assert sum(path.stat().st_size for path in inputs) < 300_000
    assert len(inputs) > 20
    for path in inputs:
        TARGETS[target](path.read_bytes())
