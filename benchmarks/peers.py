"""Other sorters that pip installs, each in a virtual environment of its own."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from measuring import CLEAN, run

BY_UID = "%StudyInstanceUID/%SeriesInstanceUID"


@dataclass(frozen=True, slots=True)
class Peer:
    """A package, and how its command is called: ``{source}`` and ``{target}`` are filled in."""

    package: str
    command: tuple[str, ...]
    moves: bool
    help: tuple[str, ...]


# fmt: off
PEERS = (
    Peer("pydicomsorter",
         ("dicomsort", "-m", "move", "{source}", "{target}/" + BY_UID + "/%SOPInstanceUID.dcm"),
         moves=True, help=("dicomsort", "--help")),
    Peer("med-imagetools",
         ("imgtools", "dicomsort", "-a", "move", "-j", "2", "{source}", "{target}/" + BY_UID),
         moves=True, help=("imgtools", "dicomsort", "--help")),
    Peer("dcm2niix",
         ("dcm2niix", "-r", "y", "-d", "9", "-f", "%k/%j/%o", "-o", "{target}", "{source}"),
         moves=False, help=("dcm2niix", "-h")),
    Peer("dicom-organizer",
         ("dicom-organizer", "{source}", "-o", "{target}", "--action", "move", "--confirm-move", "--no-progress"),
         moves=True, help=("dicom-organizer", "--help")),
)
# fmt: on


@dataclass(frozen=True, slots=True)
class Installed:
    """A peer that was installed, or why it could not be."""

    peer: Peer
    programs: Path
    version: str = ""
    problem: str = ""

    def sort(self, source: Path, target: Path) -> None:
        """Sort ``source`` into ``target`` as a user would."""
        target.mkdir(parents=True, exist_ok=True)
        program, *arguments = self.peer.command
        run([self.programs / program, *(a.format(source=source, target=target) for a in arguments)], CLEAN)

    def show_help(self) -> None:
        """Start it and end at once; some end with 1 after their help."""
        program, *arguments = self.peer.help
        run([self.programs / program, *arguments], CLEAN, (0, 1))


@cache
def installed(folder: Path) -> list[Installed]:
    """Every peer, installed below ``folder`` where it is not yet."""
    return [_install(peer, folder / peer.package) for peer in PEERS]


def _install(peer: Peer, place: Path) -> Installed:
    programs = place / "bin"
    version = _version(peer, programs)
    if not version:
        print(f"installing {peer.package}", file=sys.stderr)
        pip: list[str | Path] = [
            programs / "python",
            "-m",
            "pip",
            "install",
            "--quiet",
            "--disable-pip-version-check",
            peer.package,
        ]
        venv: list[str | Path] = [sys.executable, "-m", "venv", "--clear", place]
        for command in (venv, pip):
            ran = subprocess.run([*command], check=False, env=CLEAN, capture_output=True, text=True)
            if ran.returncode:
                print(ran.stderr, file=sys.stderr)
                return Installed(peer, programs, problem="could not be installed")
        version = _version(peer, programs)
    return Installed(peer, programs, version, "" if version else "could not be installed")


def _version(peer: Peer, programs: Path) -> str:
    """The version that is installed, or nothing."""
    if not (programs / peer.command[0]).is_file():
        return ""
    code = f"import importlib.metadata as m; print(m.version({peer.package!r}))"
    ran = subprocess.run([programs / "python", "-c", code], check=False, env=CLEAN, capture_output=True, text=True)
    return ran.stdout.strip()
