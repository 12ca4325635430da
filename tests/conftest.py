from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from browser import launched
from building import make_dicom, make_files
from dask_cluster import running_cluster
from hypothesis import HealthCheck, settings
from packing import dicom, make_inbox, zipped

if TYPE_CHECKING:
    from playwright.sync_api import Browser

# A shared, loaded machine is no failure of the code under test.
settings.register_profile("suite", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("suite")

ROOT = Path(__file__).resolve().parents[1]
SPREAD = frozenset({"test_crash.py"})  # whose tests are long, and share no fixture


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep the tests of a file on one worker (``--dist loadgroup``), as fixtures of modules are made once for each."""
    for item in items:
        if item.path.name not in SPREAD:
            item.add_marker(pytest.mark.xdist_group(item.path.name))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """How many crash points were tried in each mode, and whether any failed."""
    reports = [r for name in ("passed", "failed") for r in terminalreporter.stats.get(name, []) if r.when == "call"]
    told = [(*value, r.outcome) for r in reports for name, value in r.user_properties if name == "crash points"]
    for mode, kind, tried, outcome in sorted(told):
        terminalreporter.write_line(f"crash points: {mode}, {kind}: {tried} tried, {outcome}")


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


@pytest.fixture
def inbox(tmp_path: Path) -> Path:
    """A CT study of two files, an MR, a radiograph, an ultrasound, a text file."""
    root = tmp_path / "inbox"
    make_dicom(root / "ct" / "1.dcm", study=1, instance=1)
    make_dicom(root / "ct" / "2", study=1, instance=2)
    make_dicom(root / "mr.dcm", study=2, modality="MR")
    make_dicom(root / "cr.dcm", study=3, modality="CR")
    make_dicom(root / "us.dcm", study=4, modality="US")
    make_files(root, {"notes.txt": "hello"})
    return root


@pytest.fixture
def outbox(tmp_path: Path) -> Path:
    return tmp_path / "outbox"


@pytest.fixture(scope="session")
def tiny_start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of the tiny network; read it, never write to it."""
    from networks import started

    return started(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def scheduler(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a real Dask scheduler with two worker processes behind it."""
    pytest.importorskip("distributed", reason="the extra cluster is not installed")
    with running_cluster(tmp_path_factory.mktemp("dask")) as cluster:
        yield cluster.address


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A real browser; a module's, because Playwright keeps an event loop running in this thread."""
    with launched() as opened:
        yield opened


@pytest.fixture
def study(tmp_path: Path) -> dict[str, bytes]:
    """The members of an export: two CT of one series, a text, a DICOMDIR's neighbour without a meaning."""
    return {
        "DICOM/IM1": dicom(tmp_path, study=7, instance=1),
        "DICOM/IM2": dicom(tmp_path, study=7, instance=2),
        "README.txt": b"a patient CD",
    }


@pytest.fixture
def export(tmp_path: Path, study: dict[str, bytes]) -> Path:
    """An inbox with one ZIP file, long at rest."""
    return make_inbox(tmp_path / "inbox", {"export/study.zip": zipped(study)})
