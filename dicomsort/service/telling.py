"""What a service says of an error: enough to mend it, nothing that a file's content could have put there."""

from __future__ import annotations

import os
import traceback

from dicomsort.errors import DicomsortError
from dicomsort.report import printable


def describe_error(error: BaseException) -> str:
    """One line: our own errors in their words, the system's with the file's name, others by kind and place alone."""
    if isinstance(error, DicomsortError):
        return " ".join(printable(str(error)).split())
    if isinstance(error, OSError) and error.strerror:
        name = error.filename if isinstance(error.filename, str) else ""
        return f"{error.strerror} ({printable(os.path.basename(name))})" if name else error.strerror
    frames = traceback.extract_tb(error.__traceback__)
    place = f" at {os.path.basename(frames[-1].filename)}:{frames[-1].lineno}" if frames else ""
    return f"unexpected {type(error).__name__}{place}"
