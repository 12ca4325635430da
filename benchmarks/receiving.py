"""How fast instances are received: ``python benchmarks/receiving.py`` (needs DCMTK's dcmsend, storescp).

``dcmsend`` sends files over loopback, over one association and over four at once, to ``dicomsort receive`` as it is, to
it with parts of it taken away, and to ``storescp``, which flushes nothing. Each repetition measures everything once, in
turn; the time of sending one file is taken off. Prints Markdown with medians.
"""

from __future__ import annotations

import argparse
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

MAIN = "from dicomsort.cli import main; main()"
NO_FLUSH = "from dicomsort.files import Files; Files.flush = lambda self, descriptor: None; "
FILE_ONLY = "from dicomsort.pacs.receive import incoming; incoming.flush_path = lambda files, path: None; "
SLOW = "import socket; del socket.TCP_QUICKACK; "
NAGLE = """
import socket
class Plain(socket.socket):
    def setsockopt(self, level, option, value):
        if (level, option) != (socket.IPPROTO_TCP, socket.TCP_NODELAY):
            super().setsockopt(level, option, value)
socket.socket = Plain
"""
WAYS: dict[str, tuple[str, tuple[str, ...]]] = {
    "dicomsort receive": (MAIN, ()),
    "without TCP_NODELAY": (NAGLE + MAIN, ()),
    "without TCP_QUICKACK": (SLOW + MAIN, ()),
    "without both": (NAGLE + SLOW + MAIN, ()),
    "--max-pdu 16384": (MAIN, ("--max-pdu", "16384")),
    "folders not flushed": (FILE_ONLY + MAIN, ()),
    "nothing flushed": (NO_FLUSH + MAIN, ()),
    "storescp": ("", ()),
}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=500)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="where to work (a temporary folder by default)")
    arguments = parser.parse_args()
    print("| way | file | associations | instances/s | MB/s | CPU ms an instance |")
    print("| --- | --- | ---: | ---: | ---: | ---: |")
    with tempfile.TemporaryDirectory(dir=arguments.folder) as temporary:
        for kilobytes in (25, 512):
            source = Path(temporary, f"{kilobytes}")
            fill(source, arguments.files, kilobytes)
            for associations in (1, 4):
                rounds = [one_round(Path(temporary, "work"), source, associations) for _ in range(arguments.repeat)]
                for name in WAYS:
                    seconds = statistics.median(each[name][0] for each in rounds)
                    cpu = statistics.median(each[name][1] for each in rounds) / arguments.files * 1000
                    rate = arguments.files / seconds
                    cells = (name, f"{kilobytes} KB", associations, f"{rate:,.0f}", f"{rate * kilobytes / 1000:,.1f}")
                    print(f"| {' | '.join(map(str, cells))} | {cpu:.1f} |", flush=True)
            shutil.rmtree(source)


def fill(folder: Path, count: int, kilobytes: int) -> None:
    """CT slices of so many thousand bytes, in four folders of one series each."""
    noise = np.random.default_rng(0).integers(0, 4096, (kilobytes - 1) * 500, dtype=np.uint16).tobytes()
    for number in range(count):
        dataset = Dataset()
        dataset.SOPClassUID, dataset.Modality = CTImageStorage, "CT"
        dataset.StudyInstanceUID, dataset.SeriesInstanceUID = "1.2.3", f"1.2.3.{number % 4}"
        dataset.SOPInstanceUID = f"1.2.3.{number % 4}.{number}"
        dataset.Rows, dataset.Columns, dataset.BitsAllocated = len(noise) // 1000, 500, 16
        dataset.add_new("PixelData", "OW", noise)
        dataset.file_meta = FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        path = folder / str(number % 4) / f"{number}.dcm"
        path.parent.mkdir(parents=True, exist_ok=True)
        dataset.save_as(path, enforce_file_format=True)


def one_round(work: Path, source: Path, associations: int) -> dict[str, tuple[float, float]]:
    """Seconds of sending, and of the receiver's CPU, by each way."""
    taken = {}
    for name, (code, options) in WAYS.items():
        work.mkdir()
        with receiver(work, code, options) as (port, process):
            send(port, [source / "0" / "0.dcm"])
            begun, before = time.perf_counter(), cpu_of(process)
            groups = [source] if associations == 1 else [source / str(number) for number in range(associations)]
            send(port, groups)
            taken[name] = time.perf_counter() - begun, cpu_of(process) - before
        shutil.rmtree(work)
    return taken


@contextmanager
def receiver(work: Path, code: str, options: tuple[str, ...]) -> Iterator[tuple[int, int]]:
    """A receiver that listens: its port and process id."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = ["receive", "--quiet", "--port", str(port), *options, str(work)]
    command = (
        [sys.executable, "-c", code, *words]
        if code
        else [shutil.which("storescp") or "storescp", "-od", str(work), str(port)]
    )
    process = subprocess.Popen(command)
    try:
        while subprocess.run(["/usr/bin/echoscu", "127.0.0.1", str(port)], capture_output=True, check=False).returncode:
            time.sleep(0.1)
        yield port, process.pid
    finally:
        process.terminate()
        process.wait()


def send(port: int, groups: list[Path]) -> None:
    """Send each group over an association of its own, all at once."""
    command = [shutil.which("dcmsend") or "dcmsend", "-dn", "-nh", "+sd", "+r", "127.0.0.1", str(port)]
    running = [subprocess.Popen([*command, str(group)]) for group in groups]
    for process in running:
        if process.wait():
            raise SystemExit("expected every file to be received, received an error of dcmsend")


def cpu_of(process: int) -> float:
    """Seconds of CPU that a process has taken."""
    fields = Path(f"/proc/{process}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    main()
