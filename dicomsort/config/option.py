"""One option of a command: what its value may be, and whether one that was given is right."""

from __future__ import annotations

from pathlib import Path, PosixPath
from typing import NamedTuple

from dicomsort.errors import UsageError

TRUTH = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}
_SHOWN = 60  # characters of a wrong value
_BITS = 10_000  # of a number whose decimal digits Python still writes


class RelativePath(PosixPath):
    """A path that a configuration file gives relative to its own folder; ``note`` says so."""

    note = ""


def located(path: Path, file: Path) -> Path:
    """A path that a configuration file names: one that is relative starts at the folder of the file."""
    path = path.expanduser()
    if path.is_absolute():
        return path
    found = RelativePath(file.parent / path)
    found.note = f" ({str(path)!r} in {str(file)!r}: a relative path starts at the folder of that file)"
    return found


def quoted(path: Path) -> str:
    """A path as a message shows it, with how it came to be where a configuration file has a relative one."""
    return repr(str(path)) + (path.note if isinstance(path, RelativePath) else "")


class Option(NamedTuple):
    """One option: the type of its value or the words it may be, its default, its line of help, a number's bounds.

    ``metavar`` stands for a value in the help. ``is_list``: it may have several values, each of that type.
    """

    kind: type[bool | int | float | str | Path] | tuple[str, ...]
    default: bool | float | str | tuple[str, ...] | None
    help: str
    minimum: float | None = None
    maximum: float | None = None
    metavar: str = ""
    is_list: bool = False

    @property
    def described(self) -> str:
        """The line of help, with the range of a number."""
        return self.help + (f" Range: {self.range}." if self.range else "")

    @property
    def range(self) -> str:
        """The bounds in words; "" where the value is no number."""
        return "" if self.minimum is None else f"{self.minimum} to {self.maximum}"


def parsed(option: Option, text: str) -> object:
    """Turn text into the option's type, at commas where it is a list; what is none of that type stays text."""
    if option.is_list:
        return [part.strip() for part in text.split(",")]
    try:
        if option.kind is bool:
            return TRUTH[text.lower()]
        return option.kind(text) if option.kind in {int, float} else text
    except (KeyError, ValueError):
        return text


def checked(option: Option, value: object, origin: str) -> object:
    """The value in the option's type; UsageError names ``origin``, what was expected and what was received."""
    if option.is_list:
        if not isinstance(value, list | tuple):
            raise UsageError(f"{origin}: expected a list of texts, received {_shown(value)}")
        return tuple(checked(option._replace(is_list=False), each, origin) for each in value)
    kind = option.kind
    if isinstance(kind, tuple):
        right = value in kind
    elif kind is Path:
        right = isinstance(value, str | Path) and str(value) != "" and "\0" not in str(value)
    elif kind is str:
        right = isinstance(value, str) and "\0" not in value
    elif kind is float:
        right = isinstance(value, int | float) and not isinstance(value, bool)
    else:
        right = type(value) is kind
    if right and option.minimum is not None and option.maximum is not None:
        right = option.minimum <= value <= option.maximum  # type: ignore[operator]  # neither NaN nor infinity is
    if not right:
        raise UsageError(f"{origin}: expected {_expected(option)}, received {_shown(value)}")
    return kind(value) if kind in {Path, float} else value  # type: ignore[arg-type]


def at_home(path: Path, origin: str) -> Path:
    """The path with ``~`` replaced by the home it stands for; UsageError names ``origin`` where there is none."""
    try:
        return path.expanduser()
    except RuntimeError:
        raise UsageError(f"{origin}: expected ~ or ~USER of a user with a home, received {str(path)!r}") from None


def _expected(option: Option) -> str:
    if isinstance(option.kind, tuple):
        return "|".join(option.kind)
    kinds = {bool: "true or false", int: "a whole number", float: "a number", str: "text", Path: "a path"}
    return kinds[option.kind] + (f" from {option.range}" if option.range else "")


def _shown(value: object) -> str:
    """A value as it was written, cut where it is long."""
    text = hex(value) if isinstance(value, int) and value.bit_length() > _BITS else repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"
