"""Who may speak to the review page, and what whoever else does is told; nothing is changed by any of them."""

from __future__ import annotations

import contextlib
import http.client
import json
import logging
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from building import open_descriptors, read_tree
from command import run
from reviewing import Server, held_outbox, reviewed

from dicomsort.errors import UsageError
from dicomsort.pages.review import checked_address
from dicomsort.pages.review.server import HEADERS, guard_for

ADDRESSES = (
    "",
    "state",
    "items/0/10",
    "next/-1",
    "item/0",
    "picture/0/abc/-1/160",
    "static/review.js",
    "nothing",
    "decide",
)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with reviewed(held_outbox(tmp_path_factory.mktemp("guarded"))) as running:
        yield running


@pytest.fixture(autouse=True)
def unchanged(server: Server) -> Iterator[None]:
    before = read_tree(Path(server.session.service.outbox))
    yield
    after = read_tree(Path(server.session.service.outbox))
    lock = ".dicomsort/lock"  # says who held it last
    assert {k: v for k, v in after.items() if k != lock} == {k: v for k, v in before.items() if k != lock}


@pytest.mark.parametrize("address", ADDRESSES)
@pytest.mark.parametrize("token", ["", "wrong", "%00", "../x", "%C3%A9"])
def test_a_missing_or_wrong_token_is_told_what_was_expected(server: Server, address: str, token: str) -> None:
    status, text, headers = server.ask(address, token=token)
    assert status == 403
    assert "expected the address that `dicomsort review` printed" in text
    assert not set(HEADERS.items()) - set(headers.items())


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:80", "127.0.0.1", "127.0.0.1.evil.example:1", "localhost:1"]
)
@pytest.mark.parametrize("address", ["", "state", "picture/0/abc/-1/160"])
def test_another_host_is_refused_though_it_leads_here(server: Server, host: str, address: str) -> None:
    status, text, _ = server.ask(address, Host=host)
    assert (status, "expected one of the hosts" in text) == (403, True)


def test_localhost_is_the_same_place(server: Server) -> None:
    port = server.address.rsplit(":", 1)[1].partition("/")[0]
    assert server.ask("state", Host=f"LOCALHOST:{port}")[0] == 200
    assert server.ask("state", Host=f"[::1]:{port}")[0] == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"X_Dicomsort": ""},
        {"X_Dicomsort": "guessed"},
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Sec_Fetch_Site": "cross-site"},
        {"Sec_Fetch_Site": "same-site"},
    ],
    ids=str,
)
@pytest.mark.parametrize("what", ["decide", "undo", "finish"])
def test_what_the_page_did_not_send_changes_nothing(server: Server, headers: dict[str, str], what: str) -> None:
    key = server.session.item(0).key
    status, text, _ = server.ask(what, {"place": 0, "key": key, "class": "CT"}, **headers)
    assert (status, text.startswith("expected")) == (403, True)
    assert server.thread.is_alive()


@pytest.mark.parametrize(
    ("body", "code", "words"),
    [
        (b"[" * 60_000, 400, "expected a JSON object"),
        (b"{", 400, "expected a JSON object"),
        (b"[]", 400, "expected a JSON object"),
        (b"\xff\xfe", 400, "expected a JSON object"),
        ({}, 400, "expected the number of an item"),
        ({"place": "0"}, 400, "expected the number of an item"),
        ({"place": 99, "key": "", "class": "CT"}, 409, "expected one of 4 items"),
        ({"place": -1, "key": "", "class": "CT"}, 409, "expected one of 4 items"),
        ({"place": 0, "key": "other", "class": "CT"}, 409, "reload the page"),
        ({"place": 0, "key": "KEY", "class": "../x"}, 400, "expected one of CT, MRI, OTHER, XRAY"),
        ({"place": 0, "key": "KEY", "class": "REVIEW"}, 400, "expected one of CT, MRI, OTHER, XRAY"),
        ({"place": 0, "key": "KEY", "class": "CT"}, 409, "expected the files that were shown"),
        ({"place": 0, "key": "KEY", "class": ""}, 400, "expected one of CT, MRI, OTHER, XRAY"),
    ],
)
def test_nonsense_is_told_what_was_expected(server: Server, body: object, code: int, words: str) -> None:
    if isinstance(body, dict) and body.get("key") == "KEY":
        body = body | {"key": server.session.item(0).key}
    status, text, _ = server.ask("decide", body)
    assert (status, words in text) == (code, True), text


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("item/99", 409), ("item/-1", 404), ("item/" + "9" * 30, 409), ("item/" + "9" * 5000, 404),
        ("next/4", 409), ("next/-2", 409), ("next/-" + "9" * 30, 409),
        ("picture/0/abc/99/64", 409),
        ("picture/99/abc/0/64", 409), ("picture/0/../../x", 404),
        ("static/../server.py", 404), ("static/..%2fserver.py", 404), ("static/server.py", 404), ("state/x", 404),
    ],
)  # fmt: skip
def test_what_is_not_there(server: Server, path: str, code: int) -> None:
    assert server.ask(path)[0] == code


def test_an_undo_of_what_is_no_decision(server: Server) -> None:
    sorted_ = next(server.session.service.queue.items.values().__iter__()).files[0].run
    for run_ in ("", "../..", "20200101T000000Z-aaaaaa", sorted_):
        status, text, _ = server.ask("undo", {"run": run_})
        assert (status, "expected the run of a decision" in text) == (400, True), text


def test_bodies_and_windows_are_bounded(server: Server) -> None:
    with contextlib.suppress(OSError, http.client.HTTPException):  # or the connection is closed at once
        assert server.ask("decide", b" " * (1 << 20))[0] in {400, 413}
    assert len(server.told("items/0/99999999")["items"]) == 4
    assert server.ask(f"picture/0/{server.session.item(0).version}/-1/99999999")[0] == 200
    assert server.ask("state", {"a": 1}, method="PUT")[0] in {404, 405}


def test_strangers_who_hold_connections_open_stop_nobody(server: Server) -> None:
    port = int(server.address.rsplit(":", 1)[1].partition("/")[0])
    before = open_descriptors()
    with contextlib.ExitStack() as stack:
        for _ in range(300):
            stranger = stack.enter_context(socket.create_connection(("127.0.0.1", port)))
            stranger.sendall(b"GET /x/ HTTP/1.1\r\nHost: ")
        assert server.told("state")["waiting"] == 4
        assert open_descriptors() < before + 300 + 150


def test_neither_token_nor_seal_come_into_a_log(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        server.ask("item/99")
        server.ask("state", token="wrong")  # noqa: S106
        server.ask("state")
    token = server.address.rstrip("/").rpartition("/")[2]
    assert not [
        record for record in caplog.records if token in record.getMessage() or server.seal in record.getMessage()
    ]


def test_the_page_asks_for_nothing_elsewhere(server: Server) -> None:
    page = server.ask("")[1]
    assert "http" not in page.replace("http-equiv", "")
    assert json.loads(server.ask("state")[1])["waiting"] == 4


@pytest.mark.parametrize("text", ["0.0.0.0", "::", "224.0.0.1", "example.org", "", "127.0.0.1:80"])  # noqa: S104
def test_addresses_that_are_none_to_listen_at(text: str) -> None:
    with pytest.raises(UsageError, match="--host: expected"):
        checked_address(text)


def test_addresses_and_the_names_they_go_by() -> None:
    assert checked_address("localhost") == "127.0.0.1"
    assert guard_for("192.0.2.7", 80).hosts == {"192.0.2.7:80", "192.0.2.7"}
    assert guard_for("::1", 8642).hosts == {"localhost:8642", "127.0.0.1:8642", "[::1]:8642"}
    assert guard_for("2001:db8::7", 8642).hosts == {"[2001:db8::7]:8642"}


def test_a_port_that_is_taken(server: Server) -> None:
    port = server.address.rsplit(":", 1)[1].partition("/")[0]
    ran = run("review", "--port", port, server.session.service.outbox)
    assert (ran.code, "--port: expected one that is free" in ran.err) == (2, True)


def test_what_is_no_outbox(tmp_path: Path) -> None:
    ran = run("review", tmp_path)
    assert (ran.code, "expected an outbox of dicomsort" in ran.err) == (2, True)
