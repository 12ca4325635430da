"""Sending to a PACS and receiving from it: C-STORE (PS3.4 Annex B) and STOW-RS (PS3.18 10.5)."""

from __future__ import annotations

import re
from importlib import import_module

from dicomsort.errors import UsageError, missing_extra

_AE = re.compile(r"[\x20-\x5b\x5d-\x7e]{1,16}")  # PS3.5 6.2: no backslash, no control characters


def require(module: str, command: str) -> None:
    """Raise ``UsageError`` where a module of the extra ``pacs``, which ``command`` needs, is not installed."""
    try:
        import_module(module)
    except ImportError as error:
        missing = missing_extra(command, "pacs")
        if not isinstance(error, ModuleNotFoundError) or error.name != module.partition(".")[0]:
            raise UsageError(f"{missing}; importing {module} failed: {error}") from error
        raise missing from None


def ae_title(text: str, option: str) -> str:
    """Return an application entity's title without padding; ``UsageError`` for an invalid one."""
    title = text.strip(" ")
    if not _AE.fullmatch(title):
        raise UsageError(
            f"{option}: expected an AE title (1 to 16 characters of ASCII, no backslash), received {text!r}"
        )
    return title
