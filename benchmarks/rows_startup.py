"""How long the commands take to start."""

from __future__ import annotations

import sys
from collections.abc import Callable
from itertools import count

from comparing import Setting
from inboxes import fill
from measuring import OURS, dicomsort, ratios, run, spread, timed
from peers import installed
from pictures import draw
from report import Section, Table
from tools import sort

TIMES = 5  # as many measurements as repetitions of other rows: these are short
TYPER, PYDICOM = "`python -c 'import typer, rich'`", "`python -c 'import pydicom, numpy'`"
HELP = "`dicomsort --help`"
DICOM, PICTURE = "`sort --copy` of one DICOM file, its pixels checked", "`sort --copy` of one PNG"
TEXT = """Wall time of the whole process, warm cache; milliseconds, median, in brackets the least and the most.
Where requests is installed, pydicom imports it, for downloads; workers of dicomsort do without."""


def measure(setting: Setting) -> Section:
    """Every command in turn."""
    single, picture = setting.folder / "single", setting.folder / "picture"
    outboxes = (setting.folder / f"outbox{number}" for number in count())
    fill(single, 1)
    draw(picture, 1)
    found = installed(setting.peers)

    def sorting(inbox: str) -> None:
        sort("copy", (), setting.folder / inbox, next(outboxes))

    commands: dict[str, Callable[[], None]] = {
        "`python -c pass`": lambda: python("pass"),
        TYPER: lambda: python("import typer, rich"),
        PYDICOM: lambda: python("import pydicom, numpy"),
        HELP: lambda: dicomsort("--help"),
        DICOM: lambda: sorting("single"),
        PICTURE: lambda: sorting("picture"),
        **{f"`{' '.join(each.peer.help)}` ({each.peer.package})": each.show_help for each in found if each.version},
    }
    for command in commands.values():  # compiles modules, fills the cache
        command()
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(TIMES * setting.repeat):
        for name, command in commands.items():
            seconds[name].append(timed(command).seconds)
    missing = {each.peer.package: each.problem for each in found if not each.version}
    print(f"start-up: {TIMES * setting.repeat} times each", file=sys.stderr)
    return Section("e", "Starting", TEXT, [_table(seconds, missing)], {"seconds": seconds})


def python(code: str) -> None:
    """Run a line of Python."""
    run([sys.executable, "-c", code], OURS)


def _table(seconds: dict[str, list[float]], missing: dict[str, str]) -> Table:
    rows = []
    for name, values in seconds.items():
        row = [name, spread([1000 * value for value in values])]
        row += [spread(ratios(values, seconds[other]), ".2f") if name != other else "1" for other in (TYPER, PYDICOM)]
        rows.append(row)
    rows += [[name, problem, "", ""] for name, problem in missing.items()]
    return Table(("command", "ms", f"of {TYPER}", f"of {PYDICOM}"), rows)
