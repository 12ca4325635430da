"""JSON values as bytes: orjson, and for names that are no UTF-8 (lone surrogates, PEP 383) the standard library.

What is read back is what was written, whichever wrote it; but whole numbers beyond 64 bits must be written as text.
"""

from __future__ import annotations

import json
from typing import Any

import orjson

_encode = json.JSONEncoder(separators=(",", ":")).encode
_LARGE = 1 << 63


def number_cell(number: int) -> int | str:
    """A whole number as it can be kept: as text beyond 64 bits, which SQLite refuses and ``parse`` would round."""
    return number if -_LARGE <= number < _LARGE else str(number)


def dump(value: object) -> bytes:
    """Write a value as compact JSON in UTF-8, without a line feed in it."""
    try:
        return orjson.dumps(value)
    except TypeError:  # a lone surrogate
        return _encode(value).encode("ascii")


def parse(data: bytes) -> Any:
    """Read a value; ValueError where the bytes are no JSON."""
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError:  # perhaps an escaped surrogate
        return json.loads(data)
