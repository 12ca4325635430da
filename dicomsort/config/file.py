"""The configuration file: TOML, its keys and tables checked, whichever command reads it."""

from __future__ import annotations

import difflib
import errno
import os
import re
import stat
import tomllib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from dicomsort.config.option import Option, at_home, checked
from dicomsort.config.tables import TABLES
from dicomsort.errors import UsageError
from dicomsort.files import closing

ROUTES = "routes"
MOST_BYTES = 1 << 20
_HANDED = re.compile(r"/dev/fd/\d+|/proc/self/fd/\d+|/dev/stdin")
TOP = ""  # the table that stands for the keys above all tables
KNOWN: dict[str, Option] = {name: option for table in TABLES.values() for name, option in (table or {}).items()}


def read(file: Path) -> dict[str, dict[str, Any]]:
    """The checked values of each table, by option; those above all tables are in the table ``TOP``.

    Relative paths start at the file's folder. UsageError where the file cannot be read or is no TOML, and for a key or
    a table that is none.
    """
    content = _parsed(file)
    tables = {name: content.pop(name) for name in [*TABLES] if name in content}
    for name, table in tables.items():
        if not isinstance(table, dict):
            raise UsageError(f"{file}: expected [{name}] to be a table, received {table!r}")
    values = {TOP: _checked(file, content, KNOWN, list(TABLES))}
    for name, table in tables.items():
        options = TABLES[name]
        values[name] = table if options is None else _checked(file, table, options)
    for key in values.get("sort", {}).keys() & values[TOP].keys():
        raise UsageError(f"{file}: {key}: expected an option once, received it twice")
    _check_routes(file, values.get(ROUTES, {}))
    return values


def _parsed(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(_read(file).decode("utf-8-sig"))  # editors of Windows write a mark
    except OSError as error:
        raise UsageError(f"{file}: expected a readable TOML file, received: {error.strerror}") from None
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise UsageError(f"{file}: expected UTF-8, received other bytes (at line {line})") from None
    except ValueError as error:  # of TOML, or a number of more digits than Python reads
        raise UsageError(f"{file}: expected TOML, received: {error}") from None
    except RecursionError:
        raise UsageError(f"{file}: expected TOML, received arrays or tables that are nested too deeply") from None


def _read(file: Path) -> bytes:
    """The bytes of a file, or of a pipe that was handed over open, as a shell does for ``<(…)``.

    What else might never end, or never begin, is an OSError.
    """
    is_handed = _HANDED.fullmatch(str(file)) is not None
    descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC | (0 if is_handed else os.O_NONBLOCK))
    with closing(descriptor):
        mode = os.fstat(descriptor).st_mode
        if not stat.S_ISREG(mode) and not (is_handed and stat.S_ISFIFO(mode)):
            code = errno.EISDIR if stat.S_ISDIR(mode) else errno.EINVAL
            raise OSError(code, os.strerror(code) if code == errno.EISDIR else "it is no regular file", str(file))
        with os.fdopen(descriptor, "rb", closefd=False) as stream:
            content = stream.read(MOST_BYTES + 1)
    if len(content) > MOST_BYTES:
        raise OSError(errno.EFBIG, f"it is larger than {MOST_BYTES:,} bytes", str(file))
    return content


def _checked(
    file: Path, entries: Mapping[str, object], options: Mapping[str, Option], tables: Iterable[str] = ()
) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key, value in entries.items():
        name, origin = key.replace("-", "_"), f"{file}: {key}"
        if name not in options:
            known = [*options, *(f"[{table}]" for table in tables)]
            near = f"[{name}]" if isinstance(value, dict) else name
            raise UsageError(f"{file}: expected the name of an option, received {key!r}; {nearest(near, known)}")
        if name in values:
            raise UsageError(f"{origin}: expected an option once, received it twice")
        right = checked(options[name], value, origin)
        values[name] = file.parent / at_home(right, origin) if isinstance(right, Path) else right
    return values


def _check_routes(file: Path, routes: Mapping[str, object]) -> None:
    for class_, destination in routes.items():
        if not isinstance(destination, str) or not destination:
            message = f"expected a destination (AE@HOST:PORT or https://HOST/PATH), received {destination!r}"
            raise UsageError(f"{file}: [{ROUTES}] {class_}: {message}")


def nearest(name: str, known: Iterable[str], show: Callable[[str], str] = str) -> str:
    """Say which known name was probably meant, else all of them, each as ``show`` writes it."""
    known = list(known)
    near = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {show(near[0])}?" if near else f"known are {', '.join(map(show, known))}"
