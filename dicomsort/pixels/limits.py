"""The error of files without pixels, and the limits that keep a hostile file cheap."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from dicomsort.errors import DicomsortError

MAX_PIXELS = 100_000_000  # rows times columns of a frame; a mammogram has 25 million, a large slide's frame 1 million
MAX_INFLATED = 256 * 2**20  # bytes that a deflated data set (PS3.5 A.5) may inflate to
MAX_FRAGMENTS = 1_000_000  # offsets in a Basic Offset Table (PS3.5 A.4), and fragments of one file


class PixelsError(DicomsortError):
    """A file has no pixels that can be rendered; the message is one short phrase without patient data."""


@contextmanager
def wrap_errors(phrase: str) -> Iterator[None]:
    """Translate whatever a library raises into ``PixelsError(phrase)``, without its message, which may quote values."""
    try:
        yield
    except PixelsError:
        raise
    except RecursionError:
        raise PixelsError("sequences are nested too deep") from None
    except MemoryError:
        raise PixelsError(f"{phrase}: it takes too much memory") from None
    except OSError as exc:
        raise PixelsError(f"{phrase}: {exc.strerror}" if exc.strerror else phrase) from None
    except Exception as exc:
        kind = type(exc)
        name = kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__name__}"
        raise PixelsError(f"{phrase} ({name})") from exc


def check_size(rows: int, columns: int) -> None:
    """Refuse a frame without pixels or beyond ``MAX_PIXELS`` before anything is allocated for it."""
    if rows < 1 or columns < 1:
        raise PixelsError("the image has no rows or no columns")
    if rows * columns > MAX_PIXELS:
        raise PixelsError(f"{columns} x {rows} exceeds the limit of {MAX_PIXELS} pixels")
