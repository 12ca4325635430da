"""JSON values as bytes: orjson, and for names that are no UTF-8 (lone surrogates, PEP 383) the standard library.

Both write and read the same values; whole numbers beyond 64 bits must be written as text.
"""

from __future__ import annotations

import json
import os
import re
from typing import Any

import orjson

_encode = json.JSONEncoder(separators=(",", ":")).encode
_as_text = json.JSONEncoder(ensure_ascii=False).encode
_NO_NAME = re.compile("[\ud800-\udc7f\udd00-\udfff]")  # PEP 383 uses U+DC80 to U+DCFF
_INTEGERS = range(-(1 << 63), 1 << 64)
_SIGNED = range(-(1 << 63), 1 << 63)


def number_cell(number: int) -> int | str:
    """Return a whole number, as text beyond 64 bits, which SQLite refuses and ``parse`` would round."""
    return number if number in _SIGNED else str(number)


def dump(value: object) -> bytes:
    """Write a value as compact JSON in UTF-8, without a line feed in it."""
    try:
        return orjson.dumps(value)
    except TypeError:  # a lone surrogate
        return _encode(value).encode("ascii")


def parse(data: bytes) -> Any:
    """Read a value; ValueError, and no other error, where the bytes are not JSON or beyond the limits.

    Values may be nested to a depth of about 1,000. An integer beyond 64 bits is refused or becomes a float, so callers
    that need an integer check the type. Lone surrogates are accepted if they stand for bytes of names.
    """
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError:  # perhaps an escaped surrogate
        pass
    try:
        value = _decode(data.decode("utf-8"))
        text = _as_text(value)
    except RecursionError:
        raise ValueError("expected JSON, received values that are nested too deeply") from None
    if _NO_NAME.search(text):
        raise ValueError("expected text, received a surrogate that no name of a file holds")
    return value


def whole_lines(descriptor: int, size: int) -> int:
    """Return the offset after the last line feed."""
    end = size
    while end > 0:
        start = max(0, end - 65536)
        found = os.pread(descriptor, end - start, start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        end = start
    return 0


def _integer(digits: str) -> int:
    if (value := int(digits)) not in _INTEGERS:
        raise ValueError(f"expected an integer of at most 64 bits, received one of {len(digits)} characters")
    return value


_decode = json.JSONDecoder(parse_int=_integer).decode
