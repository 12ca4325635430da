"""The manual's way to a cluster on Slurm, as far as it goes without one: ``sbatch`` and ``scancel`` are stand-ins."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from command import placed, rows
from manual import fenced

pytest.importorskip("dask_jobqueue", reason="dask-jobqueue is not installed")
if missing := [tool for tool in ("openssl", "setsid") if shutil.which(tool) is None]:
    pytest.skip(f"{missing[0]} is not installed", allow_module_level=True)

ROOT = Path(__file__).resolve().parents[1]
SBATCH = """#!/bin/sh
cp "$1" "$0.$$"
setsid sh "$0.$$" > "$0.$$.log" 2>&1 &
echo "Submitted batch job $!"
"""
SCANCEL = """#!/bin/sh
for job in "$@"; do kill -9 -- "-$job"; done
"""


def block(kind: str, part: str) -> str:
    """The manual's block of that kind which holds ``part``."""
    return next(found for found in fenced(kind) if part in found)


def test_the_snippet_sorts(inbox: Path, outbox: Path, tmp_path: Path) -> None:
    for name, text in (("sbatch", SBATCH), ("scancel", SCANCEL)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    snippet = block("python", "SLURMCluster").replace('"ib0"', '"lo"').replace("jobs=4", "jobs=2")
    (tmp_path / "sort_on_slurm.py").write_text(snippet)
    search = os.pathsep.join([str(tmp_path), str(Path(sys.executable).parent), os.environ["PATH"]])
    script = block("sh", "openssl") + f"{sys.executable} sort_on_slurm.py --evidence header --json {inbox} {outbox}"
    ran = subprocess.run(
        ["sh", "-ec", script], cwd=tmp_path, env=os.environ | {"PATH": search, "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    logs = "".join(log.read_text() for log in tmp_path.glob("sbatch.*.log"))
    assert ran.returncode == 0, ran.stderr + logs
    assert '"found": 6' in ran.stdout
    assert len(rows(outbox)) == 6
    assert len(list(placed(outbox))) == 5
    jobs = [job.read_text() for job in tmp_path.glob("sbatch.*") if job.suffix != ".log"]
    assert len(jobs) == 2
    assert all("#SBATCH --cpus-per-task=8" in job and "tls://127.0.0.1:" in job for job in jobs)
