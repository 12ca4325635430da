"""A receiver in this process, and instances to send to it."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from unittest import mock

import pytest
from building import make_dicom

from dicomsort.config import ReceiveSettings
from dicomsort.dicom import file_meta
from dicomsort.files import Files
from dicomsort.pacs.receive import open_receiver

if TYPE_CHECKING:
    from dicomsort.pacs.receive.receiver import Receiver

SETTINGS = ReceiveSettings(0, "127.0.0.1", "DICOMSORT", (), 20, 16384, 1, 20.0)  # at most 1 MiB an instance


class Listening(NamedTuple):
    port: int
    told: list[logging.LogRecord]

    def events(self) -> list[str]:
        return [record.getMessage() for record in self.told]

    def wait_for(self, event: str) -> None:
        """Return when it was logged, which it will be."""
        while event not in self.events():
            time.sleep(0.01)

    def facts(self, event: str) -> dict[str, Any]:
        """Of the newest event of that name."""
        return next(vars(record)["facts"] for record in reversed(self.told) if record.getMessage() == event)


def opened(
    inbox: Path, settings: ReceiveSettings = SETTINGS, files: Files | None = None
) -> tuple[Receiver, list[logging.LogRecord]]:
    """A receiver that does not listen yet, and what it is going to log."""
    pytest.importorskip("pynetdicom", reason="the extra pacs is not installed")
    told: list[logging.LogRecord] = []
    log = logging.Logger("receiver under test")  # noqa: LOG001 - one of its own
    log.addFilter(lambda record: told.append(record) is not None)
    return open_receiver(str(inbox), settings, files or Files(), log), told


@contextmanager
def listening(inbox: Path, settings: ReceiveSettings = SETTINGS, files: Files | None = None) -> Iterator[Listening]:
    """A receiver at a free port, and what it logs."""
    receiver, told = opened(inbox, settings, files)
    with mock.patch("dicomsort.pacs.receive.receiver._ACCEPTING", 0.01):  # or each would end a quarter second later
        port = receiver.start()
    try:
        yield Listening(port, told)
    finally:
        receiver.stop(5)


def data_of(path: Path) -> bytes:
    """The data set of a file, as it lies there."""
    with path.open("rb") as stream:
        found = file_meta.read_file(stream.fileno())
        assert found is not None
        stream.seek(found.end)
        return stream.read()


def made(folder: Path, **tags: Any) -> bytes:
    """The data set of an instance made for it."""
    path = make_dicom(folder / "made.dcm", **tags)
    data = data_of(path)
    path.unlink()
    return data
