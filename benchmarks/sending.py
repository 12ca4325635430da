"""How fast instances are sent: ``python benchmarks/sending.py``; needs DCMTK, Orthanc, and the extra ``pacs``.

500 CT instances of 25 KB to ``storescp --ignore``, and to an Orthanc that keeps its database in a temporary folder; on
loopback, without Nagle's algorithm on either side. Each repetition measures every way once, in turn: ``dcmsend``, and
``dicomsort send`` by C-STORE over one association and over four, and by STOW-RS; timed as a whole process, and without
its start: as the log tells, and for ``dcmsend`` less the time for one file. Prints Markdown with medians.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from measuring import timed

HOST = "127.0.0.1"
PLUGIN = "/usr/share/orthanc/plugins/libOrthancDicomWeb.so"
ORTHANC = shutil.which("Orthanc") or "/usr/sbin/Orthanc"
NO_DELAY = os.environ | {"TCP_NODELAY": "1"}  # what DCMTK asks
SEND = (sys.executable, "-m", "dicomsort", "send")


class Taken(NamedTuple):
    """Seconds of the whole process, seconds without its start, user CPU seconds of the sender."""

    whole: float
    sending: float
    cpu: float


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=500)
    parser.add_argument("--repeat", type=int, default=5)
    arguments = parser.parse_args()
    missing = [name for name in ("storescp", "dcmsend", ORTHANC, PLUGIN) if not shutil.which(name, mode=os.F_OK)]
    if missing:
        print(f"sending skipped: not installed: {', '.join(missing)}")
        return
    rounds: list[dict[str, Taken]] = []
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary)
        fill(place / "all", arguments.files)
        fill(place / "one", 1)
        for repetition in range(arguments.repeat):
            with peers(place / f"orthanc{repetition}") as (storescp, dicom, web):
                rounds.append(measured(place, storescp, dicom, web))
    print(f"| what | instances/s, whole process | without its start | user CPU seconds for {arguments.files} |")
    print("| --- | ---: | ---: | ---: |")
    for way in rounds[0]:
        whole, sending, cpu = (statistics.median(each[way][part] for each in rounds) for part in range(3))
        print(f"| {way} | {arguments.files / whole:,.0f} | {arguments.files / sending:,.0f} | {cpu:.2f} |")


def fill(folder: Path, count: int) -> None:
    """CT slices of 112 x 112 noise: 25 KB each."""
    import numpy as np
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian

    folder.mkdir()
    for number in range(count):
        dataset = Dataset()
        dataset.SOPClassUID, dataset.SOPInstanceUID = (
            "1.2.840.10008.5.1.4.1.1.2",
            f"1.2.826.0.1.3680043.10.999.{number + 1}",
        )
        dataset.StudyInstanceUID = dataset.SeriesInstanceUID = "1.2.826.0.1.3680043.10.999"
        dataset.PatientID, dataset.Modality, dataset.InstanceNumber = "1", "CT", number
        dataset.Rows = dataset.Columns = 112
        dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
        dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 12, 11, 0
        dataset.PixelData = np.random.default_rng(number).integers(0, 4096, 112 * 112).astype(np.uint16).tobytes()
        dataset.file_meta = FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        dataset.save_as(folder / f"{number}.dcm", enforce_file_format=True)


@contextlib.contextmanager
def peers(folder: Path) -> Iterator[tuple[int, int, int]]:
    """The ports of a storescp, and of an Orthanc: DICOM and HTTP."""
    storescp, dicom, web = free_ports(3)
    folder.mkdir()
    settings = {
        "StorageDirectory": str(folder), "IndexDirectory": str(folder), "HttpPort": web, "DicomPort": dicom,
        "Plugins": [PLUGIN], "RemoteAccessAllowed": False, "OverwriteInstances": True,
    }  # fmt: skip
    (folder / "orthanc.json").write_text(json.dumps(settings), encoding="utf-8")
    commands = [["storescp", "--ignore", str(storescp)], [ORTHANC, str(folder / "orthanc.json")]]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    running = [subprocess.Popen(command, env=NO_DELAY, **quiet) for command in commands]  # type: ignore[call-overload]
    try:
        for port in (storescp, dicom, web):
            wait_for(port)
        yield storescp, dicom, web
    finally:
        for process in running:
            process.terminate()
            process.wait()


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on."""
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.create_server((HOST, 0))) for _ in range(count)]
        return [probe.getsockname()[1] for probe in probes]


def wait_for(port: int) -> None:
    """Return when somebody listens there."""
    for _ in range(600):
        with contextlib.suppress(OSError), socket.create_connection((HOST, port), 1):
            return
        time.sleep(0.1)
    raise TimeoutError(port)


def measured(place: Path, storescp: int, dicom: int, web: int) -> dict[str, Taken]:
    """One repetition of each way."""
    taken: dict[str, Taken] = {}
    for peer, port in (("storescp", storescp), ("Orthanc", dicom)):
        to = f"PEER@{HOST}:{port}"
        ways = {
            f"dcmsend to {peer}": ("dcmsend", HOST, str(port), "--scan-directories"),
            f"send to {peer}, C-STORE": (*SEND, "--to", to),
            f"send to {peer}, C-STORE, 4 associations": (*SEND, "--to", to, "--associations", "4"),
        }
        if peer == "Orthanc":
            ways["send to Orthanc, STOW-RS"] = (*SEND, "--to", f"http://{HOST}:{web}/dicom-web")
        taken |= {way: run(place, command, web) for way, command in ways.items()}
    return taken


def run(place: Path, command: tuple[str, ...], web: int) -> Taken:
    """Send all, to an Orthanc that is empty; of dcmsend, which does not tell, one file too."""
    log = place / "log"
    log.unlink(missing_ok=True)
    ours = command[0] == sys.executable
    one = 0.0 if ours else sent(command, place / "one", web)[0]
    if ours:
        command = (*command, "--again", "--quiet", "--log-format", "json", "--log-file", str(log))
    whole, cpu = sent(command, place / "all", web)
    sending = json.loads(log.read_text("utf-8").splitlines()[-1])["seconds"] if ours else whole - one
    return Taken(whole, sending, cpu)


def sent(command: tuple[str, ...], folder: Path, web: int) -> tuple[float, float]:
    """Seconds that sending the folder takes, and user CPU seconds of the sender."""
    address = f"http://{HOST}:{web}/patients"
    for patient in json.loads(urllib.request.urlopen(address).read()):
        urllib.request.urlopen(urllib.request.Request(f"{address}/{patient}", method="DELETE")).close()  # noqa: S310
    before = os.times().children_user
    taken = timed(lambda: subprocess.run([*command, str(folder)], env=NO_DELAY, check=True, capture_output=True))
    return taken.seconds, os.times().children_user - before


if __name__ == "__main__":
    main()
