from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# A shared, loaded machine is no failure of the code under test.
settings.register_profile("suite", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("suite")

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout."""
    return ROOT


@pytest.fixture(scope="session")
def sample_inbox() -> Path:
    """The inbox of the sample data; read it, never write to it."""
    return ROOT / "sample_data" / "inbox"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of test data beside the checkout, which not every machine has."""
    folder = ROOT.parent / "shared"
    if not (folder / "dicom" / "index.csv").is_file():
        pytest.skip("no folder ../shared with the test corpus beside this checkout")
    return folder
