"""The whole way, with real peers: an Orthanc sends, ``receive`` keeps, ``watch`` sorts and sends on to two archives."""

from __future__ import annotations

import io
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from building import make_dicom
from command import by_source
from peers import ENDS, Orthanc, environment, orthanc, receiving, running
from pydicom import dcmread

pytestmark = pytest.mark.peers
CT, MR = 5, 4


def wait_for(what: Callable[[], object], wanted: object) -> None:
    deadline = time.monotonic() + ENDS
    while what() != wanted:
        assert time.monotonic() < deadline, f"expected {wanted}, received {what()}"
        time.sleep(0.1)


def data_of(content: bytes) -> bytes:
    """The bytes of the data set, without preamble and file meta information, which each archive writes anew."""
    length = dcmread(io.BytesIO(content), stop_before_pixels=True).file_meta.FileMetaInformationGroupLength
    return content[144 + length :]


def held(archive: Orthanc) -> int:
    return int(archive.ask("/statistics")["CountInstances"])


def test_what_one_archive_sends_arrives_sorted_in_two_others(tmp_path: Path) -> None:
    inbox, outbox = tmp_path / "inbox", tmp_path / "outbox"
    inbox.mkdir()
    with (
        receiving(inbox, "--ae-title", "SORTER") as receiver,
        orthanc(tmp_path / "source", {"sorter": ("SORTER", receiver.port)}) as source,
        orthanc(tmp_path / "archive", title="ARCHIVE") as archive,
        orthanc(tmp_path / "web") as web,
    ):
        files = [make_dicom(tmp_path / "made" / f"ct{n}", study=1, instance=n, modality="CT") for n in range(CT)]
        files += [make_dicom(tmp_path / "made" / f"mr{n}", study=2, instance=n, modality="MR") for n in range(MR)]
        studies = {source.add(path) for path in files}
        configuration = tmp_path / "dicomsort.toml"
        routes = f'[routes]\nCT = "ARCHIVE@127.0.0.1:{archive.dicom_port}"\nMRI = "{web.dicom_web}"\n'
        configuration.write_text(f'[watch]\nmode = "move"\nevery = 0.3\nsettle = 0\nevidence = "header"\n{routes}')
        command = [
            sys.executable,
            "-P",
            "-m",
            "dicomsort",
            "watch",
            "--config",
            str(configuration),
            str(inbox),
            str(outbox),
        ]
        with running(command, env=environment(), cwd="/", stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as service:
            for study in studies:
                source.send(study, "sorter")
            wait_for(lambda: held(archive), CT)
            if "dicom-web" in web.ask("/plugins"):
                wait_for(lambda: held(web), MR)
            service.send_signal(signal.SIGTERM)
            _, errors = service.communicate(timeout=ENDS)
            assert (service.returncode, errors) == (0, b"")
        assert {row["status"] for row in by_source(outbox).values()} == {"sorted"}
        assert not [path for path in inbox.rglob("*") if path.is_file()]
        sent = source.instances()
        arrived = archive.instances() | web.instances()
        assert {uid: data_of(content) for uid, content in arrived.items()} == {
            uid: data_of(content) for uid, content in sent.items() if uid in arrived
        }
        assert len(list((outbox / "CT").rglob("*.dcm"))) == CT
