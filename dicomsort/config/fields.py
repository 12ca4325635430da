"""One option: its type, default, help and limits; how text becomes its value, and how a dataclass declares it."""

from collections.abc import Callable
from dataclasses import field, fields
from pathlib import Path
from types import NoneType
from typing import Any, NamedTuple, get_args, get_origin

from dicomsort.errors import RelativePath, UsageError

TRUTH = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}
_SHOWN = 60  # characters of a wrong value


def located(path: Path, file: Path) -> Path:
    """Return a path that a configuration file names: one that is relative starts at the folder of the file."""
    if path.is_absolute():
        return path
    found = RelativePath(file.parent / path)
    found.note = f" ({str(path)!r} in {str(file)!r}: a relative path starts at the folder of that file)"
    return found


class Option(NamedTuple):
    """One option: the type of its value or the words it may be, its default, its line of help, a number's bounds.

    ``metavar`` stands for a value in the help. ``is_list``: it may have several values, each of that type. ``flag`` is
    its name on the command line where that is another. ``flags_of_words``: the words that are flags, and their help.
    """

    kind: type[bool | int | float | str | Path] | tuple[str, ...]
    default: bool | float | str | Path | tuple[str, ...] | None
    help: str
    minimum: float | None = None
    maximum: float | None = None
    metavar: str = ""
    is_list: bool = False
    flag: str = ""
    flags_of_words: tuple[tuple[str, str], ...] = ()

    @property
    def described(self) -> str:
        """The line of help, with the range of a number."""
        return self.help + (f" Range: {self.range}." if self.range else "")

    @property
    def range(self) -> str:
        """The bounds in words; "" where the value is no number."""
        return "" if self.minimum is None else f"{self.minimum} to {self.maximum}"


def flag_of(name: str) -> str:
    """Return the flag of an option that declares no other: ``--log-file`` of ``log_file``."""
    return "--" + name.replace("_", "-")


def parsed(option: Option, text: str) -> object:
    """Turn text into the option's type, at commas where it is a list; other text stays as it is."""
    if option.is_list:
        return [part.strip() for part in text.split(",")]
    try:
        if option.kind is bool:
            return TRUTH[text.lower()]
        return option.kind(text) if option.kind in {int, float} else text
    except (KeyError, ValueError):
        return text


def checked(option: Option, value: object, origin: str) -> object:
    """Return the value in the option's type; UsageError names ``origin``, what was expected and received."""
    if option.is_list:
        if not isinstance(value, list | tuple):
            raise UsageError(f"{origin}: expected a list of texts, received {shown(value)}")
        return tuple(checked(option._replace(is_list=False), each, origin) for each in value)
    kind = option.kind
    right = value in kind if isinstance(kind, tuple) else _KINDS[kind][1](value)
    if right and option.minimum is not None and option.maximum is not None:
        right = option.minimum <= value <= option.maximum  # type: ignore[operator]  # neither NaN nor infinity is
    if not right:
        raise UsageError(f"{origin}: expected {_expected(option)}, received {shown(value)}")
    return kind(value) if kind in {Path, float} else value  # type: ignore[arg-type]


def at_home(path: Path, origin: str) -> Path:
    """Return the path with ``~`` replaced by the home it stands for; UsageError names ``origin`` if there is none."""
    try:
        return path.expanduser()
    except RuntimeError:
        raise UsageError(f"{origin}: expected ~ or ~USER of a user with a home, received {str(path)!r}") from None


def _expected(option: Option) -> str:
    if isinstance(option.kind, tuple):
        return "|".join(option.kind)
    return _KINDS[option.kind][0] + (f" from {option.range}" if option.range else "")


# What a value of each type is called, and whether a value is one.
_KINDS: dict[type, tuple[str, Callable[[Any], bool]]] = {
    bool: ("true or false", lambda value: type(value) is bool),
    int: ("a whole number", lambda value: type(value) is int),
    float: ("a number", lambda value: isinstance(value, int | float) and not isinstance(value, bool)),
    str: ("text", lambda value: isinstance(value, str) and "\0" not in value),
    Path: ("a path", lambda value: isinstance(value, str | Path) and str(value) != "" and "\0" not in str(value)),
}


def shown(value: object) -> str:
    """Return a wrong value as a message shows it."""
    try:
        text = repr(value)
    except ValueError:
        more = f"a {type(value).__name__} with a number of more digits than Python writes"
        text = hex(value) if isinstance(value, int) else more
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


def setting(
    default: Any, help_: str, metavar: str = "", *, least: float | None = None, most: float | None = None, **more: Any
) -> Any:
    """A field that is an option; ``words`` are the only values that a text may have, ``more`` is as in ``Option``."""
    facts = {"help": help_, "metavar": metavar, "minimum": least, "maximum": most, **more}
    return field(default=default, metadata=facts)


def options_of(settings: type[Any]) -> dict[str, Option]:
    """Return the options that a dataclass of settings declares, by name."""
    options = {}
    for declared in fields(settings):
        if facts := dict(declared.metadata):
            hint: Any = declared.type
            default: Any = declared.default
            kind = facts.pop("words", None) or next((part for part in get_args(hint) if part is not NoneType), hint)
            options[declared.name] = Option(kind, default, is_list=get_origin(hint) is tuple, **facts)
    return options
