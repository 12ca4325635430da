from __future__ import annotations

import dataclasses
import os
import re
from pathlib import Path

import pytest
from command import load

from dicomsort.config import SORT, Option, SortSettings
from dicomsort.errors import UsageError

# Of each option: a text for the environment, the same for a file, and the value that both stand for.
GIVEN: dict[str, tuple[str, str, object]] = {
    "mode": ("move", '"move"', "move"),
    "dry_run": ("YES", "true", True),
    "model": ("/models/ct", '"/models/ct"', Path("/models/ct")),
    "evidence": ("pixels", '"pixels"', "pixels"),
    "layout": ("{class}/{sop_uid}.dcm", '"{class}/{sop_uid}.dcm"', "{class}/{sop_uid}.dcm"),
    "settle": ("2.5", "2.5", 2.5),
    "duplicates": ("remove", '"remove"', "remove"),
    "prune_empty": ("1", "true", True),
    "archives": ("open", '"open"', "open"),
    "archive_members": ("7", "7", 7),
    "archive_file_size": ("1.5", "1.5", 1.5),
    "archive_size": ("99", "99", 99.0),
    "archive_ratio": ("50", "50", 50.0),
    "archive_seconds": ("30", "30", 30.0),
    "held_ok": ("true", "true", True),
    "workers": ("3", "3", 3),
    "engine": ("dask", '"dask"', "dask"),
    "scheduler": ("tcp://10.0.0.1:8786", '"tcp://10.0.0.1:8786"', "tcp://10.0.0.1:8786"),
    "json": ("True", "true", True),
    "quiet": ("yes", "true", True),
    "metrics": ("/run/metrics/d.prom", '"/run/metrics/d.prom"', Path("/run/metrics/d.prom")),
    "log_file": ("/var/log/dicomsort", '"/var/log/dicomsort"', Path("/var/log/dicomsort")),
    "log_format": ("json", '"json"', "json"),
    "log_size": ("0.5", "0.5", 0.5),
    "log_count": ("9", "9", 9),
}
DEFAULTS = {name: option.default for name, option in SORT.items()}


def toml(folder: Path, text: str | bytes) -> Path:
    file = folder / "settings.toml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return file


def two_others(option: Option, value: object) -> list[object]:
    """Two values that the option may have and that are not ``value``, the same one twice where there is one only."""
    if option.kind is bool:
        return [False, False]
    if isinstance(option.kind, tuple):
        words: list[object] = [word for word in option.kind if word != value]
        return [words[0], words[-1]]
    return [option.kind("7"), option.kind("8")]


def test_the_table_names_every_setting_once() -> None:
    assert list(SORT) == [field.name for field in dataclasses.fields(SortSettings)] == list(GIVEN)
    assert all(option.help.endswith(".") for option in SORT.values())


def test_nothing_given_gives_the_defaults() -> None:
    other = {"PATH": "/bin", "dicomsort_mode": "move", "DICOMSORT_WORKERS": ""}
    assert dataclasses.asdict(load({"quiet": None}, other, None)) == DEFAULTS


@pytest.mark.parametrize("name", SORT)
def test_a_flag_beats_the_environment_which_beats_the_file(name: str, tmp_path: Path) -> None:
    text, literal, value = GIVEN[name]
    file = toml(tmp_path, f"{name} = {literal}")
    assert dataclasses.asdict(load({}, {}, file)) == DEFAULTS | {name: value}
    assert dataclasses.asdict(load({}, {f"DICOMSORT_{name.upper()}": text}, None)) == DEFAULTS | {name: value}
    others = two_others(SORT[name], value)
    over_file = load({}, {f"DICOMSORT_{name.upper()}": str(others[0])}, file)
    assert getattr(over_file, name) == others[0]
    engine = {"engine": "dask"} if name == "scheduler" else {}
    over_both = load({name: others[1], **engine}, {f"DICOMSORT_{name.upper()}": text}, file)
    assert getattr(over_both, name) == others[1]


def test_false_in_the_environment_beats_true_in_the_file(tmp_path: Path) -> None:
    file = toml(tmp_path, "held-ok = true\nquiet = true")
    settings = load({}, {"DICOMSORT_HELD_OK": "no", "DICOMSORT_QUIET": "0"}, file)
    assert (settings.held_ok, settings.quiet) == (False, False)


def test_a_file_has_dashes_underscores_and_a_table(tmp_path: Path) -> None:
    file = toml(tmp_path, b'\xef\xbb\xbfprune-empty = true\nlog_format = "json"\n[sort]\nheld-ok = true\nsettle = 5\n')
    settings = load({}, {}, file)
    assert (settings.prune_empty, settings.log_format, settings.held_ok, settings.settle) == (True, "json", True, 5.0)


def test_paths_start_at_the_file_and_at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/pacs")
    settings = load({}, {"DICOMSORT_LOG_FILE": "~/log"}, toml(tmp_path, 'model = "models/ct"'))
    assert (settings.model, settings.log_file) == (tmp_path / "models/ct", Path("/home/pacs/log"))


def test_the_environment_may_name_the_file_and_the_flag_beats_it(tmp_path: Path) -> None:
    named = {"DICOMSORT_CONFIG": str(toml(tmp_path, "workers = 5"))}
    other = tmp_path / "other.toml"
    other.write_text("workers = 6")
    assert load({}, named, None).workers == 5
    assert load({}, named, other).workers == 6


LARGE = f"0x{'f' * 9999}"  # of more decimal digits than Python writes


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("worker = 2", "received 'worker'; did you mean workers?"),
        ("[sort]\nlog-fromat = 'text'", "received 'log-fromat'; did you mean log_format?"),
        ("[wach]\nevery = 60", "expected the name of an option, received 'wach'; did you mean [watch]?"),
        ("[spam]\nevery = 60", "received 'spam'; known are mode, dry_run, model,"),
        ("sort = 1", "expected [sort] to be a table, received 1"),
        ("held-ok = true\nheld_ok = true", "held_ok: expected an option once, received it twice"),
        ("quiet = true\n[sort]\nquiet = true", "quiet: expected an option once, received it twice"),
        ("workers = '2'", "workers: expected a whole number from 1 to 1024, received '2'"),
        ("workers = true", "workers: expected a whole number from 1 to 1024, received True"),
        ("workers = 0", "workers: expected a whole number from 1 to 1024, received 0"),
        ("settle = -1", "settle: expected a number from 0 to 315360000, received -1"),
        ("settle = 1e308", "settle: expected a number from 0 to 315360000, received 1e+308"),
        (f"settle = {10**400}", f"settle: expected a number from 0 to 315360000, received {str(10**400)[:60]}…"),
        (f"workers = {10**400}", "workers: expected a whole number from 1 to 1024, received 1000"),
        (f"workers = {LARGE}", "workers: expected a whole number from 1 to 1024, received 0xfff"),
        (f"workers = [{LARGE}]", "workers: expected a whole number from 1 to 1024, received a list with a number of"),
        (f"sort = {LARGE}", "expected [sort] to be a table, received 0xfff"),
        (f"destinations = {{ x = {LARGE} }}", "[destinations.x]: expected a table, received 0xfff"),
        (f"routes = {{ CT = [{LARGE}] }}", "or a list of names of tables [destinations.NAME], received a list with a"),
        ("workers = 1025", "workers: expected a whole number from 1 to 1024, received 1025"),
        ("log-size = 2e6", "log-size: expected a number from 0 to 1048576, received 2000000.0"),
        ("log-count = 1001", "log-count: expected a whole number from 1 to 1000, received 1001"),
        (f"workers = 1{'0' * 5000}", "expected TOML, received: Exceeds the limit"),
        (f"workers = {'[' * 10_000}", "expected TOML, received arrays or tables that are nested too deeply"),
        ("settle = nan", "settle: expected a number from 0 to 315360000, received nan"),
        ("held-ok = 1", "held-ok: expected true or false, received 1"),
        ("mode = 'rename'", "mode: expected copy|move|link, received 'rename'"),
        ("mode = ['copy']", "mode: expected copy|move|link, received ['copy']"),
        ("layout = 7", "layout: expected text, received 7"),
        ("model = ''", "model: expected a path, received ''"),
        ("quiet = true\nworkers = = 2", "expected TOML, received: Invalid value (at line 2, column 11)"),
        (f"workers{'.a' * 40_000} = 1", "expected at most 200 dots on a line, received 40,000 (at line 1)"),
        (r'model = "a\u0000b"', r"model: expected a path, received 'a\x00b'"),
        (r'log-file = "~\u0000b/x"', r"log-file: expected a path, received '~\x00b/x'"),
        (r'metrics = "~\u0000b/x"', r"metrics: expected a path, received '~\x00b/x'"),
        (r'layout = "a\u0000b"', r"layout: expected text, received 'a\x00b'"),
        (r'send = { tls-ca = "a\u0000b" }', r"[send]: tls-ca: expected a path, received 'a\x00b'"),
        (r'send = { auth = "a\u0000b" }', r"[send]: auth: expected a path, received 'a\x00b'"),
        (r'receive = { allow = ["a\u0000b"] }', r"[receive]: allow: expected text, received 'a\x00b'"),
        (r'routes = { CT = "A@a\u0000b:1" }', r"[routes] CT: expected text, received 'A@a\x00b:1'"),
        (b"quiet = true\nlayout = '\xe4'", "expected UTF-8, received other bytes (at line 2)"),
    ],
)
def test_a_wrong_file_is_a_usage_error(tmp_path: Path, text: str | bytes, message: str) -> None:
    file = toml(tmp_path, text)
    with pytest.raises(UsageError, match=re.escape(message)) as raised:
        load({}, {}, file)
    assert str(raised.value).startswith(str(file))


def test_a_file_that_cannot_be_read_is_a_usage_error(tmp_path: Path) -> None:
    for file, reason in ((tmp_path / "absent.toml", "No such file or directory"), (tmp_path, "Is a directory")):
        with pytest.raises(UsageError, match=f"{file}: expected a readable TOML file, received: {reason}"):
            load({}, {}, file)


def test_a_file_that_may_never_end_is_a_usage_error(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "link").symlink_to("/dev/zero")
    for file in (tmp_path / "fifo", tmp_path / "link", Path("/dev/zero"), Path("/dev/null")):
        with pytest.raises(UsageError, match=f"{file}: expected a readable TOML file, received: it is no regular file"):
            load({}, {}, file)
    large = toml(tmp_path, "# long\n" * 200_000)
    with pytest.raises(UsageError, match="it is larger than 1,048,576 bytes"):
        load({}, {}, large)


def test_a_file_may_be_a_pipe_of_the_shell_or_a_link(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(toml(tmp_path, "workers = 3"))
    assert load({}, {}, tmp_path / "link").workers == 3
    for folder in ("/dev/fd", "/proc/self/fd"):
        if not Path(folder).is_dir():
            continue
        reader, writer = os.pipe()
        os.write(writer, b"workers = 5")
        os.close(writer)
        assert load({}, {}, Path(folder, str(reader))).workers == 5
        os.close(reader)


def test_a_home_of_nobody_is_a_usage_error(tmp_path: Path) -> None:
    nobody = "expected ~ or ~USER of a user with a home, received '~no-such-user/x'"
    file = toml(tmp_path, "log-file = '~no-such-user/x'")
    for environ, given, origin in (
        ({}, file, f"{file}: log-file"),
        ({"DICOMSORT_LOG_FILE": "~no-such-user/x"}, None, "DICOMSORT_LOG_FILE"),
        ({"DICOMSORT_CONFIG": "~no-such-user/x"}, None, "DICOMSORT_CONFIG"),
    ):
        with pytest.raises(UsageError, match=re.escape(f"{origin}: {nobody}")):
            load({}, environ, given)


@pytest.mark.parametrize(
    ("variable", "text", "message"),
    [
        ("DICOMSORT_WORKER", "2", "received DICOMSORT_WORKER; did you mean DICOMSORT_WORKERS?"),
        ("DICOMSORT_SPEED", "2", "received DICOMSORT_SPEED; known are DICOMSORT_MODE, DICOMSORT_DRY_RUN,"),
        ("DICOMSORT_mode", "copy", "received DICOMSORT_mode; did you mean DICOMSORT_MODE?"),
        ("DICOMSORT_WORKERS", "two", "DICOMSORT_WORKERS: expected a whole number from 1 to 1024, received 'two'"),
        ("DICOMSORT_WORKERS", "0", "DICOMSORT_WORKERS: expected a whole number from 1 to 1024, received 0"),
        ("DICOMSORT_SETTLE", "1e308", "DICOMSORT_SETTLE: expected a number from 0 to 315360000, received 1e+308"),
        ("DICOMSORT_WORKERS", "1000000", "DICOMSORT_WORKERS: expected a whole number from 1 to 1024, received 1000000"),
        ("DICOMSORT_WORKERS", "1" * 5000, "DICOMSORT_WORKERS: expected a whole number from 1 to 1024, received '1111"),
        ("DICOMSORT_SETTLE", "inf", "DICOMSORT_SETTLE: expected a number from 0 to 315360000, received inf"),
        ("DICOMSORT_QUIET", "maybe", "DICOMSORT_QUIET: expected true or false, received 'maybe'"),
        ("DICOMSORT_ENGINE", "threads", "DICOMSORT_ENGINE: expected processes|serial|dask, received 'threads'"),
    ],
)
def test_a_wrong_variable_is_a_usage_error(variable: str, text: str, message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        load({}, {variable: text}, None)


def test_bytes_that_are_no_utf_8_may_stand_in_paths(tmp_path: Path) -> None:
    name = os.fsdecode(b"r\xf6ntgen")
    settings = load({"log_file": tmp_path / name, "layout": f"{{class}}/{name}"}, {"DICOMSORT_MODEL": name}, None)
    assert (settings.log_file, settings.layout, settings.model) == (tmp_path / name, f"{{class}}/{name}", Path(name))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"workers": 0}, "--workers: expected a whole number from 1 to 1024, received 0"),
        ({"log_format": "xml"}, "--log-format: expected text|json, received 'xml'"),
        ({"settle": float("nan")}, "--settle: expected a number from 0 to 315360000, received nan"),
        ({"scheduler": "tcp://a:1"}, "--scheduler: expected --engine dask beside it, received --engine processes"),
    ],
)
def test_a_wrong_flag_is_a_usage_error(flags: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        load(flags, {}, None)
