"""``[send]``, ``[receive]``, ``[routes]`` and ``[destinations.NAME]``: every key is read, and a wrong one is told."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from building import make_dicom
from command import load, run
from manual import fenced
from test_config import toml, two_others

from dicomsort.config import (
    RECEIVE,
    SEND,
    Destination,
    Option,
    ReceiveSettings,
    SendSettings,
    load_receive,
    load_send,
    load_sort,
    load_watch,
)
from dicomsort.errors import UsageError

LOADERS: dict[str, tuple[Callable[..., Any], dict[str, Option], type[Any]]] = {
    "send": (load_send, SEND, SendSettings),
    "receive": (load_receive, RECEIVE, ReceiveSettings),
}
EVERY = [(command, name) for command, (_, options, _) in LOADERS.items() for name in options]
DESTINATIONS = """
[destinations.ARCHIVE]
to = "ARCHIVE@pacs:104"
ae-title = "SORTER"
tls-ca = "ca.pem"
[destinations.cloud]
to = "https://pacs/dicom-web"
auth = "secret"
"""


def value_of(option: Option) -> tuple[str, str, object]:
    """A value that is not the default: as a variable, in a file, and what it stands for."""
    if option.is_list:
        return "CT1, CT 2", '["CT1", "CT 2"]', ("CT1", "CT 2")
    if option.kind is bool:
        return "yes", "true", True
    if isinstance(option.kind, tuple):
        return option.kind[-1], f'"{option.kind[-1]}"', option.kind[-1]
    if option.kind is Path:
        return "/etc/x", '"/etc/x"', Path("/etc/x")
    if option.kind is str:
        return "A@b:1", '"A@b:1"', "A@b:1"
    number = option.kind(option.maximum)  # type: ignore[arg-type]
    return str(number), str(number), number


def other_values(option: Option, value: object) -> list[object]:
    """Two values that the option may have and that are not ``value``."""
    if option.is_list:
        return [("X",), ("Y",)]
    if option.minimum is not None and option.kind in {int, float}:
        return [option.kind(option.minimum), option.kind(option.minimum + 1)]  # type: ignore[arg-type]
    return two_others(option, value)


@pytest.mark.parametrize(("command", "name"), EVERY)
def test_a_flag_beats_the_environment_which_beats_the_file(command: str, name: str, tmp_path: Path) -> None:
    resolve, options, kind = LOADERS[command]
    assert resolve({}, {}, None) == kind()
    text, literal, value = value_of(options[name])
    file = toml(tmp_path, f"[{command}]\n{name.replace('_', '-')} = {literal}")
    variable = f"DICOMSORT_{command.upper()}_{name.upper()}"
    assert resolve({}, {}, file) == resolve({}, {variable: text}, None) == dataclasses.replace(kind(), **{name: value})
    others = other_values(options[name], value)
    written = "X" if options[name].is_list else str(others[0])
    assert getattr(resolve({}, {variable: written}, file), name) == others[0]
    assert getattr(resolve({name: others[1]}, {variable: text}, file), name) == others[1]


def test_the_names_of_variables_and_keys_are_of_one_command(tmp_path: Path) -> None:
    environ = {"DICOMSORT_SEND_TIMEOUT": "5", "DICOMSORT_RECEIVE_TIMEOUT": "6", "DICOMSORT_QUIET": "1"}
    assert (load_send({}, environ, None).timeout, load_receive({}, environ, None).timeout) == (5, 6)
    assert (load({}, environ, None).quiet, load_send({}, environ, None).quiet) == (True, False)
    file = toml(tmp_path, "log-format = 'json'\n[send]\nretries = 1\n[receive]\nlog-format = 'text'\nport = 0")
    assert (load_send({}, {}, file).log_format, load_send({}, {}, file).retries) == ("json", 1)
    assert (load_receive({}, {}, file).log_format, load_receive({}, {}, file).port) == ("text", 0)
    named = {"DICOMSORT_CONFIG": str(file)}
    assert load_receive({}, named, None).port == 0


@pytest.mark.parametrize("resolve", [load, load_watch, load_send, load_receive])
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[send]\nretrys = 5", "[send]: expected the name of an option, received 'retrys'; did you mean retries?"),
        ("[send]\nxyzzy = 5", "[send]: expected the name of an option, received 'xyzzy'; known are to, ae_title,"),
        ("[send]\nretries = 'many'", "[send]: retries: expected a whole number from 0 to 100, received 'many'"),
        ("[send]\nretries = 101", "[send]: retries: expected a whole number from 0 to 100, received 101"),
        ("[send]\ntimeout = nan", "[send]: timeout: expected a number from 0.001 to 86400, received nan"),
        ("[send]\ntls-ca = 5", "[send]: tls-ca: expected a path, received 5"),
        ("[send]\nto = ['A@b:1']", "[send]: to: expected text, received ['A@b:1']"),
        ("[send]\nport = 5", "expected the name of an option, received 'port'"),
        ("[receive]\nports = 5", "[receive]: expected the name of an option, received 'ports'; did you mean port?"),
        ("[receive]\nport = 65536", "[receive]: port: expected a whole number from 0 to 65535, received 65536"),
        ("[receive]\nport = true", "[receive]: port: expected a whole number from 0 to 65535, received True"),
        ("[receive]\nallow = 'CT1'", "[receive]: allow: expected a list of texts, received 'CT1'"),
        ("[receive]\nallow = ['CT1', 5]", "[receive]: allow: expected text, received 5"),
        ("[receive]\nlog-format = 'xml'", "[receive]: log-format: expected text|json, received 'xml'"),
        ("[receive]\ntimeout = 0.5", "[receive]: timeout: expected a number from 1 to 86400, received 0.5"),
        ("port = 5", "expected the name of an option, received 'port'"),
        ("destinations = 5", "expected [destinations] to be a table, received 5"),
        ("[destinations]\nA = 5", "[destinations.A]: expected a table, received 5"),
        ("[destinations.A]\nae-title = 'X'", "[destinations.A]: expected to = AE@HOST:PORT or https://HOST/PATH"),
        ("[destinations.A]\nto = ''", "[destinations.A]: expected to = AE@HOST:PORT"),
        ("[destinations.A]\nto = 5", "[destinations.A]: to: expected text, received 5"),
        ("[destinations.A]\nto = 'A@b:1'\ntls-cat = 'x'", "[destinations.A]: expected the name of an option, received"),
        ("[destinations.A]\nto = 'A@b:1'\nretries = 5", "received 'retries'"),
        ("[destinations.'A@b']\nto = 'A@b:1'", "expected a name without @ and /"),
        ("[destination.A]\nto = 'A@b:1'", "received 'destination'; did you mean [destinations]?"),
        (f"{DESTINATIONS}[routes]\nCT = 'ARCHIV'", "[routes] CT: expected a destination"),
        (f"{DESTINATIONS}[routes]\nCT = 'ARCHIV'", "received 'ARCHIV'; did you mean ARCHIVE?"),
        (f"{DESTINATIONS}[routes]\nCT = ['ARCHIVE', 'nothing']", "known are ARCHIVE, cloud"),
        (f"{DESTINATIONS}[routes]\nCT = ['ARCHIVE', 'A@b:1']", "or a list of names of tables [destinations.NAME]"),
        (f"{DESTINATIONS}[routes]\nCT = ['ARCHIVE', 'ARCHIVE']", "expected each destination once"),
        (f"{DESTINATIONS}[routes]\nCT = []", "[routes] CT: expected a destination"),
        ("[routes]\nCT = 'ARCHIVE'", "the file has no table [destinations.NAME]"),
        ("[routes]\nCT = { to = 'A@b:1' }", "[routes] CT: expected a destination"),
    ],
)
def test_whichever_command_reads_a_wrong_file_says_so(
    tmp_path: Path, resolve: Callable[..., object], text: str, message: str
) -> None:
    with pytest.raises(UsageError, match=re.escape(message)) as raised:
        resolve({}, {}, toml(tmp_path, text))
    assert str(raised.value).startswith(str(tmp_path))


@pytest.mark.parametrize("resolve", [load, load_watch, load_send, load_receive])
@pytest.mark.parametrize(
    ("variable", "text", "message"),
    [
        ("DICOMSORT_SEND_RETRYS", "5", "received DICOMSORT_SEND_RETRYS; did you mean DICOMSORT_SEND_RETRIES?"),
        ("DICOMSORT_RECIEVE_PORT", "5", "did you mean DICOMSORT_RECEIVE_PORT?"),
        ("DICOMSORT_RECEIVE_PORT", "x", "DICOMSORT_RECEIVE_PORT: expected a whole number from 0 to 65535"),
        ("DICOMSORT_SEND_TLS", "maybe", "DICOMSORT_SEND_TLS: expected true or false, received 'maybe'"),
        ("DICOMSORT_PORT", "5", "expected DICOMSORT_<OPTION> in the environment, received DICOMSORT_PORT"),
    ],
)
def test_whichever_command_meets_a_wrong_variable_says_so(
    resolve: Callable[..., object], variable: str, text: str, message: str
) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        resolve({}, {variable: text}, None)


def test_routes_name_destinations(tmp_path: Path) -> None:
    text = f"{DESTINATIONS}[routes]\nCT = ['ARCHIVE', 'cloud']\nMRI = 'cloud'\nXRAY = 'X@pacs:104'"
    routes = load_watch({}, {}, toml(tmp_path, text)).routes
    archive = Destination("ARCHIVE@pacs:104", "SORTER", tls_ca=tmp_path / "ca.pem")
    cloud = Destination("https://pacs/dicom-web", auth=tmp_path / "secret")
    assert routes == {"CT": (archive, cloud), "MRI": (cloud,), "XRAY": (Destination("X@pacs:104"),)}


def test_send_to_a_name_has_what_its_table_says_and_no_password_of_another(tmp_path: Path) -> None:
    file = toml(tmp_path, f"[send]\nto = 'https://elsewhere/'\nauth = 'other'\nae-title = 'ME'\n{DESTINATIONS}")
    assert load_send({}, {}, file).auth == tmp_path / "other"
    settings = load_send({"to": "ARCHIVE"}, {}, file)
    assert (settings.to, settings.ae_title, settings.auth) == ("ARCHIVE@pacs:104", "SORTER", None)
    assert settings.tls_ca == tmp_path / "ca.pem"
    settings = load_send({"ae_title": "FLAG"}, {"DICOMSORT_SEND_TO": "cloud"}, file)
    assert (settings.to, settings.ae_title, settings.auth) == ("https://pacs/dicom-web", "FLAG", tmp_path / "secret")
    with pytest.raises(UsageError, match=r"received 'ARCHIVES'; did you mean ARCHIVE\?"):
        load_send({"to": "ARCHIVES"}, {}, file)


def test_the_commands_read_their_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_dicom(tmp_path / "in" / "1.dcm")
    file = toml(tmp_path, "[send]\nto = 'A@127.0.0.1:1'\nretries = 0\nlog-file = 'log'\n[receive]\nae-title = 'Ä'")
    ran = run("send", "--config", file, tmp_path / "in")
    assert (ran.code, "A@127.0.0.1:1 cannot be reached" in ran.err) == (1, True)
    assert "send ended" in (tmp_path / "log").read_text()
    assert "--ae-title: expected an AE title" in run("receive", "--config", file, tmp_path / "in").err
    ran = run("send", tmp_path / "in")
    assert (ran.code, ran.err) == (2, "dicomsort: --to: expected AE@HOST:PORT or https://HOST/PATH, received none\n")
    monkeypatch.setenv("DICOMSORT_SEND_JOURNAL", str(tmp_path / "in" / "1.dcm"))
    ran = run("send", "--config", file, tmp_path / "in")
    assert (ran.code, "--journal: expected a file outside the FOLDER" in ran.err) == (2, True)


@pytest.mark.parametrize("command", ["sort", "watch"])
def test_a_route_of_no_class_of_the_model_is_told_by_sort_too(tmp_path: Path, command: str) -> None:
    make_dicom(tmp_path / "in" / "1.dcm")
    file = toml(tmp_path, "[routes]\nCTT = 'A@b:1'\n[sort]\nengine = 'serial'\nevidence = 'header'\n")
    ran = run(command, "--config", file, tmp_path / "in", tmp_path / "out")
    assert ran.code == 2
    assert "[routes]: expected a class of the model (CT, MRI, OTHER, XRAY), received 'CTT'" in ran.err
    assert not (tmp_path / "out").exists() or not [*(tmp_path / "out").glob("[A-Z]*")]


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("to = 'A@b'", "[routes] CT: --to: expected AE@HOST:PORT or https://HOST/PATH, received 'A@b'"),
        ("to = 'A@b:1'\ntls-ca = 'missing.pem'", "[routes] CT: --tls-ca: expected a PEM file"),
        ("to = 'A@b:1'\nauth = 'missing'", "[routes] CT: --auth: expected an https:// address"),
        ("to = 'https://b'\nauth = 'missing'", "[routes] CT: --auth: expected a file that can be read"),
        ("to = 'https://b'\nauth = 'fifo'", "[routes] CT: --auth: expected a file that can be read"),
        ("to = 'A@b:1'\ntls-ca = 'fifo'", "[routes] CT: --tls-ca: expected a PEM file"),
        ("to = 'A@b..c:1'", "[routes] CT: --to: expected AE@HOST:PORT"),
        ("to = 'A@b:1'\nae-title = '12345678901234567'", "[routes] CT: --ae-title: expected an AE title"),
    ],
)
def test_watch_does_not_begin_with_a_destination_that_cannot_be(tmp_path: Path, table: str, message: str) -> None:
    pytest.importorskip("pynetdicom", reason="the extra pacs is not installed")
    (tmp_path / "in").mkdir()
    os.mkfifo(tmp_path / "fifo")  # which nobody waits for
    file = toml(tmp_path, f"[destinations.X]\n{table}\n[routes]\nCT = ['X']\n[sort]\nengine = 'serial'")
    ran = run("watch", "--config", file, tmp_path / "in", tmp_path / "out")
    assert ran.code == 2
    assert message in ran.err


def test_the_file_in_the_manual_is_one(tmp_path: Path) -> None:
    (text,) = (block for block in fenced("toml") if block.startswith("# pacs.toml\n"))
    file = toml(tmp_path, text)
    settings = load_send({}, {}, file)
    assert (settings.to, settings.ae_title, settings.associations) == ("ARCHIVE@pacs.example:104", "SORTER", 4)
    assert load_receive({}, {}, file).allow == ("CT1", "ARCHIVE")
    assert [len(each) for each in load_watch({}, {}, file).routes.values()] == [2, 1]


def test_sort_reads_its_configuration_once_so_that_it_may_be_a_pipe(tmp_path: Path) -> None:
    make_dicom(tmp_path / "in" / "1.dcm")
    reader, writer = os.pipe()
    os.write(writer, b"[routes]\nCTT = 'A@b:1'\n[sort]\nengine = 'serial'\nevidence = 'header'\n")
    os.close(writer)
    ran = run("sort", "--config", f"/dev/fd/{reader}", tmp_path / "in", tmp_path / "out")
    os.close(reader)
    assert (ran.code, ran.out) == (2, "")
    assert "[routes]: expected a class of the model (CT, MRI, OTHER, XRAY), received 'CTT'" in ran.err


def test_sort_passes_over_routes_of_another_model(tmp_path: Path) -> None:
    text = "[routes]\nCHEST = 'A@b:1'\n[watch]\nmodel = 'chest'\n"
    assert load_sort({}, {}, toml(tmp_path, text))[1] == {}
    assert [*load_sort({}, {}, toml(tmp_path, text.replace("[watch]", "[sort]")))[1]] == ["CHEST"]
    assert [*load_sort({"model": tmp_path / "chest"}, {}, tmp_path / "settings.toml")[1]] == ["CHEST"]
