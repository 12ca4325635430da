"""``dicomsort`` and ``python -m dicomsort``: hear signals first, for importing the command line takes a while."""

from __future__ import annotations

import gc
import os
import resource
import sys
from typing import NoReturn

from dicomsort import signals

LEAST = 96  # MiB of address space, in which the command line can be imported


def main() -> None:
    """Run the command line."""
    _require_utf8()
    signals.listen()
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit != resource.RLIM_INFINITY and limit >> 20 < LEAST:
        expected = f"expected at least about {LEAST} MiB of address space"
        _refuse(f"{expected}, received a limit of {limit >> 20} MiB; raise `ulimit -v`")
    gc.disable()  # a tenth of the time of imports goes into looking for garbage, of which they leave little
    from dicomsort.cli import main as command_line

    gc.enable()
    try:
        command_line()
    finally:
        gc.freeze()  # what is left goes with the process: looking at each object once more takes longer


def _require_utf8() -> None:
    """Start anew in UTF-8 mode (PEP 540) where the locale has another encoding.

    Plan, journal and manifest hold names as text. Read in another locale, they would name other files.
    """
    if sys.getfilesystemencoding().lower() == "utf-8" or sys.flags.utf8_mode:
        return
    os.environ["PYTHONUTF8"] = "1"  # for the workers, too
    if not sys.executable:  # of a Python that does not know where it lies
        _refuse("expected to start anew in UTF-8 mode, received no path of Python; set PYTHONUTF8=1")
    try:
        os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])  # noqa: S606 - no shell is wanted
    except OSError as error:  # with these bytes more, the arguments may be too long
        _refuse(f"expected to start anew in UTF-8 mode, received {error.strerror}; set PYTHONUTF8=1")


def _refuse(message: str) -> NoReturn:
    os.write(2, f"dicomsort: {message}\n".encode())
    sys.exit(1)


if __name__ == "__main__":
    main()
