"""The configuration file: TOML, its keys and tables checked, whichever command reads it."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from dicomsort.config.fields import Option, at_home, checked, located, shown
from dicomsort.config.settings import DESTINATION, RECEIVE, SEND, SORT, WATCH, Destination
from dicomsort.errors import UsageError

TABLES: dict[str, Mapping[str, Option]] = {"sort": SORT, "watch": WATCH, "receive": RECEIVE, "send": SEND}
ROUTES, DESTINATIONS = "routes", "destinations"  # tables whose keys are no options
TOP = ""  # the table that stands for the keys above all tables
MOST_DOTS = 200  # on a line: tomllib takes a time that is quadratic in the parts of a dotted key
KNOWN: dict[str, Option] = SORT | WATCH  # what may stand there
_EXPECTED = "a destination (AE@HOST:PORT or https://HOST/PATH), or a list of names of tables [destinations.NAME]"


class Written(NamedTuple):
    """The content of a file: the values of each table by option, the destinations by name, those of each class."""

    tables: Mapping[str, Mapping[str, Any]] = {}
    destinations: Mapping[str, Destination] = {}
    routes: Mapping[str, tuple[Destination, ...]] = {}


def read(file: Path) -> Written:
    """Return the checked content of a file; what stands above all tables is in the table ``TOP``.

    Relative paths start at the file's folder. UsageError where the file cannot be read or is no TOML, and for an
    unknown key or table.
    """
    content = parse_file(file)
    names = [*TABLES, ROUTES, DESTINATIONS]
    tables = {name: content.pop(name) for name in names if name in content}
    for name, table in tables.items():
        if not isinstance(table, dict):
            raise UsageError(f"{file}: expected [{name}] to be a table, received {shown(table)}")
    values = {TOP: _checked(file, str(file), content, KNOWN, names)}
    for name in (name for name in TABLES if name in tables):  # in one order, so that the first error is the same
        values[name] = _checked(file, f"{file}: [{name}]", tables[name], TABLES[name])
    for key in values.get("sort", {}).keys() & values[TOP].keys():
        raise UsageError(f"{file}: {key}: expected an option once, received it twice")
    destinations = _destinations(file, tables.get(DESTINATIONS, {}))
    return Written(values, destinations, _routes(file, tables.get(ROUTES, {}), destinations))


def parse_file(file: Path) -> dict[str, Any]:
    """Return the unchecked content of a file; UsageError where it cannot be read or is no TOML."""
    import tomllib  # here, as most commands read no file

    from dicomsort.files import read_bounded

    try:
        content = read_bounded(file)
        dots = [line.count(b".") for line in content.split(b"\n")]
        if max(dots) > MOST_DOTS:
            where = f"(at line {dots.index(max(dots)) + 1})"
            raise UsageError(f"{file}: expected at most {MOST_DOTS} dots on a line, received {max(dots):,} {where}")
        return tomllib.loads(content.decode("utf-8-sig"))  # editors of Windows write a mark
    except OSError as error:
        raise UsageError(f"{file}: expected a readable TOML file, received: {error.strerror}") from None
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise UsageError(f"{file}: expected UTF-8, received other bytes (at line {line})") from None
    except ValueError as error:  # of TOML, or a number of more digits than Python reads
        raise UsageError(f"{file}: expected TOML, received: {error}") from None
    except RecursionError:
        raise UsageError(f"{file}: expected TOML, received arrays or tables that are nested too deeply") from None


def _checked(
    file: Path, origin: str, entries: Mapping[str, object], options: Mapping[str, Option], tables: Iterable[str] = ()
) -> dict[str, Any]:
    """Return the values of a table; ``origin`` is the file, and the table where it has a name."""
    values: dict[str, Any] = {}
    for key, value in entries.items():
        name = key.replace("-", "_")
        if name not in options:
            known = [*options, *(f"[{table}]" for table in tables)]
            near = f"[{name}]" if isinstance(value, dict) else name
            raise UsageError(f"{origin}: expected the name of an option, received {shown(key)}; {nearest(near, known)}")
        if name in values:
            raise UsageError(f"{origin}: {key}: expected an option once, received it twice")
        right = checked(options[name], value, f"{origin}: {key}")
        values[name] = located(at_home(right, f"{origin}: {key}"), file) if isinstance(right, Path) else right
    return values


def _destinations(file: Path, tables: Mapping[str, object]) -> dict[str, Destination]:
    found = {}
    for name, table in tables.items():
        origin = f"{file}: [{DESTINATIONS}.{name}]"
        if not isinstance(table, dict):
            raise UsageError(f"{origin}: expected a table, received {shown(table)}")
        if not name or "@" in name or "/" in name:
            raise UsageError(f"{origin}: expected a name without @ and /, which addresses have, received {shown(name)}")
        values = _checked(file, origin, table, DESTINATION)
        if not values.get("to"):
            raise UsageError(f"{origin}: expected to = AE@HOST:PORT or https://HOST/PATH, received none")
        found[name] = Destination(**values)
    return found


def _routes(
    file: Path, routes: Mapping[str, object], known: Mapping[str, Destination]
) -> dict[str, tuple[Destination, ...]]:
    """Return the destinations of each class: an address, a name, or a list of names."""
    found: dict[str, tuple[Destination, ...]] = {}
    for class_, value in routes.items():
        origin = f"{file}: [{ROUTES}] {class_}"
        given: list[object] = value if isinstance(value, list) else [value]
        names = [name for name in given if isinstance(name, str) and name]
        if not names or len(names) != len(given):
            raise UsageError(f"{origin}: expected {_EXPECTED}, received {shown(value)}")
        if isinstance(value, str) and value not in known and ("@" in value or "://" in value):
            found[class_] = (Destination(str(checked(DESTINATION["to"], value, origin))),)
            continue
        for name in names:
            if name not in known:
                near = nearest(name, known) if known else f"the file has no table [{DESTINATIONS}.NAME]"
                raise UsageError(f"{origin}: expected {_EXPECTED}, received {shown(value)}; {near}")
        found[class_] = tuple(known[name] for name in names)
        if len({each.to for each in found[class_]}) < len(names):
            raise UsageError(f"{origin}: expected each destination once, received {shown(value)}")
    return found


def nearest(name: str, known: Iterable[str], show: Callable[[str], str] = str) -> str:
    """Say which known name was probably meant, else all of them, each as ``show`` writes it."""
    known = list(known)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.7)
    return f"did you mean {show(near[0])}?" if near else f"known are {', '.join(map(show, known))}"
