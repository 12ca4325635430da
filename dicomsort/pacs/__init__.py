"""Sending to a PACS and receiving from it: C-STORE (PS3.4 Annex B) and STOW-RS (PS3.18 10.5)."""

from __future__ import annotations

from importlib import import_module

from dicomsort.errors import UsageError, missing_extra


def require(module: str, command: str) -> None:
    """Raise ``UsageError`` where a module of the extra ``pacs``, which ``command`` needs, is not installed."""
    try:
        import_module(module)
    except ImportError as error:
        missing = missing_extra(command, "pacs")
        if not isinstance(error, ModuleNotFoundError) or error.name != module.partition(".")[0]:
            raise UsageError(f"{missing}; importing {module} failed: {error}") from error
        raise missing from None
