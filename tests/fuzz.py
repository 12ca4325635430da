"""``make fuzz``: coverage-guided mutation (libFuzzer by way of Atheris) of what reads headers, pixels and archives."""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

MODULES = ["dicomsort.archives", "dicomsort.dicom", "dicomsort.pixels", "tarfile", "zipfile"]
NAMES = ["header", "pixels", "archive"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, default=600, help="for each target")
    parser.add_argument("--target", help="this one alone, in this process", choices=NAMES)
    parser.add_argument("options", nargs="*", help="of libFuzzer, after --, with --target")
    given = parser.parse_args()
    if given.target:
        _fuzz(given.target, given.options)
        return
    ended = [_run(target, given.seconds) for target in NAMES]
    sys.exit(max(ended))


def _run(target: str, seconds: int) -> int:
    """One target in a process of its own; what broke it is left in the working folder, named fuzz-<target>-crash-…"""
    with tempfile.TemporaryDirectory(prefix="dicomsort-fuzz-") as found:
        command = [sys.executable, __file__, "--target", target, "--", found, f"-max_total_time={seconds}"]
        command += [f"-artifact_prefix=fuzz-{target}-", "-timeout=10", "-rss_limit_mb=2048", "-print_final_stats=1"]
        return subprocess.run(command, check=False).returncode


def _fuzz(target: str, options: list[str]) -> None:
    import atheris

    with atheris.instrument_imports(include=MODULES):
        import fuzzing
    with tempfile.TemporaryDirectory(prefix="dicomsort-fuzz-") as folder:
        (fuzzing.archive_seeds if target == "archive" else fuzzing.seeds)(Path(folder))
        arguments = [sys.argv[0], *options, folder, str(fuzzing.CORPUS / target), f"-max_len={fuzzing.MOST}"]
        atheris.Setup(arguments, fuzzing.TARGETS[target])
        atheris.Fuzz()


if __name__ == "__main__":
    main()
