"""One file and one environment for all commands: ``[watch]``, ``[routes]``, and the tables of others."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest
from command import load
from test_config import DEFAULTS, toml

from dicomsort.config import TABLES, WATCH, Destination, load_watch
from dicomsort.errors import UsageError

SHARED = """
layout = "keep"
every = 20
log-format = "json"
[sort]
mode = "move"
settle = 5
workers = 2
held-ok = true
[watch]
settle = 120
every = 30
layout = "readable"
[routes]
CT = "ARCHIVE@pacs:104"
"Chest X-ray" = "https://pacs/dicom-web"
"""


def test_the_table_is_that_of_sort_and_more() -> None:
    settings = load_watch({}, {}, None)
    fields = dataclasses.asdict(settings.sort)
    assert {*WATCH} == ({*fields} - {"dry_run"}) | {"every"}
    assert all(option.help.endswith(".") for option in WATCH.values())
    assert fields == DEFAULTS | {"settle": 60.0}
    assert (settings.every, settings.routes) == (60.0, {})


def test_flag_beats_environment_beats_watch_beats_sort_beats_top(tmp_path: Path) -> None:
    file = toml(tmp_path, SHARED)
    settings = load_watch({}, {}, file)
    sort = settings.sort
    assert (sort.mode, sort.workers, sort.log_format) == ("move", 2, "json")
    assert (sort.settle, settings.every, sort.layout) == (120.0, 30.0, "readable")
    expected = {"CT": "ARCHIVE@pacs:104", "Chest X-ray": "https://pacs/dicom-web"}
    assert settings.routes == {class_: (Destination(to),) for class_, to in expected.items()}
    environ = {"DICOMSORT_EVERY": "40", "DICOMSORT_SETTLE": "7", "DICOMSORT_MODE": "link"}
    settings = load_watch({"settle": 8.0}, environ, file)
    assert (settings.every, settings.sort.settle, settings.sort.mode) == (40.0, 8.0, "link")
    alone = load_watch({}, {}, toml(tmp_path, "[sort]\nsettle = 5"))
    assert alone.sort.settle == 5.0


def test_sort_passes_over_what_is_for_others(tmp_path: Path) -> None:
    file = toml(tmp_path, SHARED.replace('layout = "keep"', "") + "[receive]\nport = 11112\n[send]\nretries = 2\n")
    settings = load({}, {"DICOMSORT_EVERY": "40"}, file)
    changed = {"mode": "move", "settle": 5.0, "workers": 2, "held_ok": True, "log_format": "json"}
    assert dataclasses.asdict(settings) == DEFAULTS | changed


@pytest.mark.parametrize("resolve", [load, load_watch])
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[watch]\nevry = 5", "received 'evry'; did you mean every?"),
        ("[watch]\ndry-run = true", "expected the name of an option, received 'dry-run'"),
        ("[watch]\nevery = 'often'", "every: expected a number from 0 to 315360000, received 'often'"),
        ("[watch]\nevery = -1", "every: expected a number from 0 to 315360000, received -1"),
        ("[sort]\nevery = 5", "expected the name of an option, received 'every'"),
        ("evry = 5", "received 'evry'; did you mean every?"),
        ("[route]\nCT = 'A@b:1'", "received 'route'; did you mean [routes]?"),
        ("routes = 'A@b:1'", "expected [routes] to be a table, received 'A@b:1'"),
        (
            "[routes]\nCT = 5",
            "[routes] CT: expected a destination (AE@HOST:PORT or https://HOST/PATH), or a list of names",
        ),
        ("[routes]\nCT = ['A@b:1']", "[routes] CT: expected a destination"),
        ("[routes]\nCT = ''", "[routes] CT: expected a destination"),
        ("receive = 1", "expected [receive] to be a table, received 1"),
        ("[watch]\nlog-file = 'a'\nlog_file = 'b'", "log_file: expected an option once, received it twice"),
    ],
)
def test_whichever_command_reads_a_wrong_file_says_so(tmp_path: Path, resolve: object, text: str, message: str) -> None:
    assert callable(resolve)
    with pytest.raises(UsageError, match=re.escape(message)):
        resolve({}, {}, toml(tmp_path, text))


def test_a_wrong_variable_is_told_by_every_command() -> None:
    with pytest.raises(UsageError, match="received DICOMSORT_EVRY; did you mean DICOMSORT_EVERY"):
        load({}, {"DICOMSORT_EVRY": "5"}, None)
    for resolve in (load, load_watch):
        with pytest.raises(UsageError, match="DICOMSORT_EVERY: expected a number from 0 to 315360000, received 'soon'"):
            resolve({}, {"DICOMSORT_EVERY": "soon"}, None)
    with pytest.raises(UsageError, match="--scheduler: expected --engine dask"):
        load_watch({"scheduler": "tcp://a:1"}, {}, None)


def test_paths_of_a_table_start_at_the_file(tmp_path: Path) -> None:
    settings = load_watch({}, {}, toml(tmp_path, "[watch]\nmetrics = 'm.prom'\nlog-file = '/var/log/d'"))
    assert (settings.sort.metrics, settings.sort.log_file) == (tmp_path / "m.prom", Path("/var/log/d"))


def test_every_command_has_its_table() -> None:
    assert list(TABLES) == ["sort", "watch", "receive", "send"]
