"""A user without rights, for tests that root runs."""

from __future__ import annotations

import atexit
import functools
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

NOBODY = 65534
ROOT = Path(__file__).resolve().parents[1]


@functools.cache
def is_closed() -> bool:
    """Whether the checkout, or this interpreter's packages, lie where nobody but root may read them."""
    command = [sys.executable, "-P", "-c", "import dicomsort.cli, numpy"]
    environment = {"PATH": os.defpath, "PYTHONPATH": str(ROOT)}
    try:
        ran = subprocess.run(
            command, user=NOBODY, group=NOBODY, extra_groups=[], env=environment, cwd="/", capture_output=True,
            check=False,
        )  # fmt: skip
    except PermissionError:  # the interpreter itself
        return True
    return ran.returncode != 0


@functools.cache
def readable_bundle() -> str:
    """The bundle that ships, or a copy of it, where anybody may read it."""
    from dicomsort.bundle import default_path

    if not is_closed():
        return str(default_path())
    folder = Path(tempfile.mkdtemp(prefix="dicomsort-test-"))
    folder.chmod(0o755)
    atexit.register(shutil.rmtree, folder)
    return str(shutil.copytree(default_path(), folder / "default"))


def identity() -> dict[str, object]:
    """What ``subprocess`` needs to run a command without root's rights: nothing where we have none.

    Below a folder that is root's alone (mode 0700) nothing can be run but by root, who then has to do.
    """
    if os.geteuid() != 0 or is_closed():
        return {}
    return {"user": NOBODY, "group": NOBODY, "extra_groups": []}
