"""One option of a command: what its value may be, and whether one that was given is right."""

from __future__ import annotations

import math
from pathlib import Path
from typing import NamedTuple

from dicomsort.errors import UsageError

TRUTH = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}


class Option(NamedTuple):
    """One option: the type of its value or the words it may be, its default, its line of help, its least value."""

    kind: type[bool | int | float | str | Path] | tuple[str, ...]
    default: bool | float | str | None
    help: str
    minimum: int | None = None


def parsed(option: Option, text: str) -> object:
    """Turn text into the option's type; text that is none of that type stays text, and is refused as such."""
    try:
        if option.kind is bool:
            return TRUTH[text.lower()]
        return option.kind(text) if option.kind in {int, float} else text
    except (KeyError, ValueError):
        return text


def checked(option: Option, value: object, origin: str) -> object:
    """The value in the option's type; UsageError names ``origin``, what was expected and what was received."""
    kind = option.kind
    if isinstance(kind, tuple):
        right = value in kind
    elif kind is Path:
        right = isinstance(value, str | Path) and str(value) != ""
    elif kind is float:
        right = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    else:
        right = type(value) is kind
    if not right or (option.minimum is not None and value < option.minimum):  # type: ignore[operator]
        raise UsageError(f"{origin}: expected {_expected(option)}, received {value!r}")
    return kind(value) if kind in {Path, float} else value  # type: ignore[arg-type]


def _expected(option: Option) -> str:
    if isinstance(option.kind, tuple):
        return "|".join(option.kind)
    kinds = {bool: "true or false", int: "a whole number", float: "a number", str: "text", Path: "a path"}
    return kinds[option.kind] + ("" if option.minimum is None else f" of at least {option.minimum}")
