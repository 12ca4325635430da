"""Imported once by the process that others are forked from: everything that a run imports when it needs it."""

from __future__ import annotations

import tempfile
from pathlib import Path

from building import make_dicom
from command import run, sort

with tempfile.TemporaryDirectory() as folder:
    inbox, outbox = Path(folder, "inbox"), Path(folder, "outbox")
    make_dicom(inbox / "1.dcm")
    sort("--move", "--settle", 0, inbox, outbox)
    run("undo", outbox)
    run("resume", outbox)
