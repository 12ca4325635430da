"""STOW-RS servers that are busy, refuse, answer for some only, or are none: a clear word, nothing taken for sent."""

from __future__ import annotations

import email.utils
import json
import re
import socket
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from building import make_dicom, read_tree, uid
from command import Ran
from hypothesis import given
from hypothesis import strategies as st
from peers_send import Reply, Web, free_port, raw_server
from sending_tools import JSON, dated, parts, rows, send, statuses, stored, uids

from dicomsort.pacs.send import stow

pytest.importorskip("urllib3", reason="the extra pacs is not installed")

FILES = 5
POISON = uid(1, 1, 3)
UIDS = b"".join(b"\x08\0\x18\0UI\0\0%b" % uid(1, 1, number).encode() for number in range(FILES))
HTML = Reply(200, b"<html><body>Welcome</body></html>", {"Content-Type": "text/html; charset=utf-8"})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number in range(FILES):
        make_dicom(tmp_path / "in" / f"{number}.dcm", instance=number)
    return tmp_path / "in"


def run(folder: Path, answer: Callable[[int, bytes], Reply], *options: object) -> tuple[Ran, Web]:
    with Web(answer).running() as web:
        return send(folder, "--to", web.to, *options), web


def all_sent(ran: Ran) -> None:
    assert (ran.code, statuses(ran)) == (0, Counter(acknowledged=FILES)), ran.err


def nothing_sent(ran: Ran, folder: Path, message: str) -> None:
    assert (ran.code, statuses(ran)) == (1, Counter(failed=FILES)), ran.err
    assert message in ran.err
    journals = [content for path, content in read_tree(folder).items() if path.endswith(".jsonl")]
    assert all(b'"sent"' not in content for content in journals)


def test_a_request_is_what_the_standard_says(folder: Path) -> None:
    ran, web = run(folder, lambda _, body: stored(body))
    all_sent(ran)
    ((path, headers, body),) = web.requests
    assert path == "/dicom-web/studies"
    assert headers["Accept"] == "application/dicom+json"
    assert re.fullmatch(r'multipart/related; type="application/dicom"; boundary=[0-9a-f]{32}', headers["Content-Type"])
    assert int(headers["Content-Length"]) == len(body)
    assert "Transfer-Encoding" not in headers
    assert "Authorization" not in headers
    assert parts(body) == [(folder / f"{number}.dcm").read_bytes() for number in range(FILES)]


@pytest.mark.parametrize("address", ["", "/", "/studies", "/studies/"])
def test_addresses_of_one_service(folder: Path, address: str) -> None:
    with Web(lambda _, body: stored(body)).running() as web:
        all_sent(send(folder, "--to", web.to + address))
        assert statuses(send(folder, "--to", web.to)) == Counter(skipped=FILES)
    assert [path for path, _, _ in web.requests] == ["/dicom-web/studies"]


@pytest.mark.parametrize("after", ["0", "", "soon", -5])
@pytest.mark.parametrize("code", [503, 429])
def test_a_busy_server_is_asked_again(folder: Path, code: int, after: str | int) -> None:
    after = dated(after)
    busy = Reply(code, b"busy", {"Retry-After": after})
    ran, web = run(folder, lambda times, body: busy if times <= 2 else stored(body))
    all_sent(ran)
    assert len(web.requests) == 3
    assert {row["attempts"] for row in rows(ran)} == {"3"}


@pytest.mark.parametrize(("text", "least"), [("7", 7), ("", 0), ("-5", 0), ("Thu, 32 Foo", 0), ("9" * 400, 1e9)])
def test_how_long_a_server_asks_to_wait(text: str, least: float) -> None:
    assert stow._seconds(text) >= least
    ahead = email.utils.formatdate(time.time() + 1000, usegmt=True)
    assert 900 < stow._seconds(ahead) <= 1000


def test_a_server_that_stays_busy(folder: Path) -> None:
    ran, web = run(folder, lambda *_: Reply(503), "--retries", 2)
    nothing_sent(ran, folder, "answers HTTP 503")
    assert len(web.requests) == 3


@pytest.mark.parametrize("after", ["3600", 3600])
def test_a_server_that_asks_to_wait_for_long(folder: Path, after: str | int) -> None:
    after = dated(after)
    ran, web = run(folder, lambda *_: Reply(503, b"", {"Retry-After": after}))
    nothing_sent(ran, folder, "answers HTTP 503, and asks to wait 3")
    assert len(web.requests) == 1


def test_a_page_where_an_answer_was_due(folder: Path) -> None:
    ran, web = run(folder, lambda *_: HTML)
    nothing_sent(ran, folder, "received HTTP 200 with text/html: no STOW-RS service; check --to")
    assert len(web.requests) == 1


@pytest.mark.parametrize(
    "body", [b"", b"{}", b"[]", b"[[1]]", b'{"error": "no"}', b"null", b"\xff", b"[{}, {}]", b"[" * 99_999]
)
def test_json_that_tells_of_no_instance(folder: Path, body: bytes) -> None:
    ran, _ = run(folder, lambda *_: Reply(200, body, JSON))
    nothing_sent(ran, folder, "no STOW-RS service")


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (401, "refuses with HTTP 401; --auth FILE"),
        (403, "refuses with HTTP 403; --auth FILE"),
        (404, "answers HTTP 404: there is no STOW-RS service"),
        (405, "answers HTTP 405: there is no STOW-RS service"),
        (302, "answers HTTP 302: there is no STOW-RS service"),
    ],
)
def test_what_no_retry_mends(folder: Path, code: int, message: str) -> None:
    ran, web = run(folder, lambda *_: Reply(code, b"", {"Location": "http://127.0.0.1:1/elsewhere"}))
    nothing_sent(ran, folder, message)
    assert len(web.requests) == 1


def test_a_connection_that_ends_in_the_middle(folder: Path) -> None:
    ran, web = run(folder, lambda times, body: Reply(None) if times == 1 else stored(body))
    all_sent(ran)
    assert len(web.requests) == 2


def test_a_connection_that_ends_while_we_send(folder: Path) -> None:
    with raw_server(lambda connection: connection.recv(100) and None) as port:
        ran = send(folder, "--to", f"http://127.0.0.1:{port}", "--retries", 1)
    nothing_sent(ran, folder, "broke off the connection")


def test_a_server_that_says_nothing(folder: Path) -> None:
    with raw_server(lambda connection: (connection.recv(1 << 20), time.sleep(1))[1]) as port:
        ran = send(folder, "--to", f"http://127.0.0.1:{port}", "--retries", 0, "--timeout", 0.2)
    nothing_sent(ran, folder, "did not answer within 0.2 s")


@pytest.mark.parametrize(
    ("first", "again"),
    [
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
        (b"HTTP/1.1 200 OK\r\nX: ", b"x"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n", b"x"),
        (b"HTTP/1.1 200 OK\r\n\r\n" + stored(UIDS).body, b" "),  # whatever stands in it, it did not end
    ],
    ids=["interim answers", "header", "body", "body that ends with the connection"],
)
def test_an_answer_that_trickles_is_cut_off(folder: Path, first: bytes, again: bytes) -> None:
    def trickle(connection: socket.socket) -> None:
        while (piece := connection.recv(1 << 20)) and b"--\r\n" not in piece:
            pass
        connection.sendall(first)
        while True:
            connection.sendall(again)
            time.sleep(0.02)

    with raw_server(trickle) as port:
        ran = send(folder, "--to", f"http://127.0.0.1:{port}", "--retries", 0, "--timeout", 0.2)
    nothing_sent(ran, folder, "did not answer within 0.2 s")


def test_an_answer_that_is_too_long(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stow, "MAX_ANSWER", 1000)
    ran, _ = run(folder, lambda *_: Reply(200, b" " * 1001, JSON), "--retries", 0)
    nothing_sent(ran, folder, "answers without end")


@pytest.mark.parametrize("answer", [b"SSH-2.0-OpenSSH\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{}", b"\0"])
def test_what_is_no_http(folder: Path, answer: bytes) -> None:
    with raw_server(lambda connection: connection.recv(1 << 20) and connection.sendall(answer)) as port:
        ran = send(folder, "--to", f"http://127.0.0.1:{port}", "--retries", 0)
    nothing_sent(ran, folder, "broke off the connection")


def test_a_closed_port_and_a_host_without_an_address(folder: Path) -> None:
    ran = send(folder, "--to", f"http://127.0.0.1:{free_port()}", "--retries", 1)
    nothing_sent(ran, folder, "cannot be reached: Connection refused")
    ran = send(folder, "--to", "http://no-such-host.invalid/dicom-web", "--retries", 1)
    nothing_sent(ran, folder, "'no-such-host.invalid' cannot be resolved")


def test_each_instance_has_its_own_answer(folder: Path) -> None:
    ran, web = run(folder, lambda _, body: stored(body, {POISON: 0xC000}, status=202))
    assert (ran.code, statuses(ran)) == (3, Counter(acknowledged=FILES - 1, failed=1))
    told = {row["sop_uid"]: row["message"] for row in rows(ran)}
    assert told[POISON] == "the peer says: cannot be understood (0xC000)"
    assert len(web.requests) == 1


def test_a_server_that_refuses_all_says_of_each_why(folder: Path) -> None:
    ran, web = run(folder, lambda _, body: stored(body, dict.fromkeys(uids(body), 0x0124), status=409))
    assert (ran.code, statuses(ran)) == (3, Counter(failed=FILES))
    assert {row["message"] for row in rows(ran)} == {"the peer says: not authorised (0x0124)"}
    assert len(web.requests) == 1


def test_out_of_resources_is_tried_again_alone(folder: Path) -> None:
    ran, web = run(folder, lambda times, body: stored(body, {POISON: 0xA700} if times <= 2 else {}))
    all_sent(ran)
    assert [len(uids(body)) for _, _, body in web.requests] == [FILES, 1, 1]


def test_warnings(folder: Path) -> None:
    ran, _ = run(folder, lambda _, body: stored(body, warning=0xB000))
    all_sent(ran)
    assert {row["message"] for row in rows(ran)} == {"the peer says: data elements were changed there (0xB000)"}


@pytest.mark.parametrize("code", [400, 409, 413, 415, 500])
def test_one_that_spoils_its_batch_is_found(folder: Path, code: int) -> None:
    ran, _ = run(folder, lambda _, body: Reply(code, b"no") if POISON in uids(body) else stored(body))
    assert (ran.code, statuses(ran)) == (3, Counter(acknowledged=FILES - 1, failed=1))
    told = {row["sop_uid"]: row["message"] for row in rows(ran)}
    assert told[POISON] == f"the server refuses it (HTTP {code})"


def test_one_that_the_answer_does_not_name(folder: Path) -> None:
    ran, _ = run(folder, lambda _, body: stored(body.replace(POISON.encode(), b"2.2" + POISON.encode()[3:])))
    assert statuses(ran) == Counter(acknowledged=FILES - 1, failed=1)
    assert "the server's answer does not name it" in ran.out


def item(uid_: object, **tags: object) -> dict[str, object]:
    """An item of a response's sequence; ``tags`` are values by tag (``x00081197=…``)."""
    others = {name[1:]: {"vr": "US", "Value": [value]} for name, value in tags.items()}
    return {"00081155": {"vr": "UI", "Value": [uid_]}, **others}


def answering(referenced: list[object], failed: list[object] | None = None, *, status: int = 200) -> Reply:
    sequences = {"00081199": referenced, "00081198": failed or []}
    content = {tag: {"vr": "SQ", "Value": items} for tag, items in sequences.items()}
    return Reply(status, json.dumps(content).encode(), JSON)


@pytest.mark.parametrize(
    ("tell", "message"),
    [
        (lambda _: answering([item(uid(9, 9, number)) for number in range(FILES)]), "does not name it"),
        (lambda each: answering([item(f"{each}.1"), item(each[:-1]), item("")]), "does not name it"),
        (lambda each: answering([item([each]), item({each: each}), item(None), {}]), "does not name it"),
        (lambda _: answering([]), "does not name it"),
        (lambda each: answering([item(each)], [item(each, x00081197=0xC000)]), "cannot be understood (0xC000)"),
        (lambda each: answering([item(each)], [item(each, x00081197=0)]), "processing failed (0x0110)"),
        (lambda each: answering([], [item(each, x00081197=0)]), "processing failed (0x0110)"),
        (lambda each: answering([], [item(each, x00081197=0xB000)]), "processing failed (0x0110)"),
        (lambda each: answering([], [item(each)]), "processing failed (0x0110)"),
        (lambda each: answering([], [item(each, x00081197=0xC000), item(each, x00081197=0)]), "(0xC000)"),
        (lambda each: answering([item(each, x00081196=0x0124), item(each)]), "not authorised (0x0124)"),
    ],
)
def test_what_a_response_does_not_say_is_stored_is_not(
    tmp_path: Path, tell: Callable[[str], Reply], message: str
) -> None:
    make_dicom(tmp_path / "1.dcm")
    ran, web = run(tmp_path, lambda _, body: tell(uids(body)[0]))
    assert (ran.code, statuses(ran), len(web.requests)) == (3, Counter(failed=1), 1), ran.err
    assert message in rows(ran)[0]["message"]
    assert all(b'"sent"' not in content for path, content in read_tree(tmp_path).items() if path.endswith(".jsonl"))


@pytest.mark.parametrize("warning", [0x0001, 0xB007, 0xB123])
def test_what_is_referenced_as_stored_is_whatever_it_is_warned_of(tmp_path: Path, warning: int) -> None:
    make_dicom(tmp_path / "1.dcm")
    ran, _ = run(tmp_path, lambda _, body: answering([item(uids(body)[0], x00081196=warning)]))
    assert (ran.code, statuses(ran)) == (0, Counter(acknowledged=1)), ran.err
    assert f"(0x{warning:04X})" in rows(ran)[0]["message"]


def test_batches_are_bounded_and_hold_no_uid_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(10):
        make_dicom(tmp_path / f"{number}.dcm", instance=number // 2, PatientComments=str(number))
    monkeypatch.setattr(stow, "BATCH_FILES", 3)
    ran, web = run(tmp_path, lambda _, body: stored(body))
    assert statuses(ran) == Counter(acknowledged=10)
    sent = [uids(body) for _, _, body in web.requests]
    assert all(len(set(each)) == len(each) <= 3 for each in sent)
    monkeypatch.setattr(stow, "BATCH_BYTES", 1)
    _, web = run(tmp_path, lambda _, body: stored(body), "--again")
    assert [len(uids(body)) for _, _, body in web.requests] == [1] * 10


def test_files_that_vanish_or_change_meanwhile(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stow, "BATCH_FILES", 1)

    def meddle(_: int, body: bytes) -> Reply:
        (folder / "3.dcm").unlink(missing_ok=True)
        with (folder / "4.dcm").open("ab") as file:
            file.write(b"\0\0")
        return stored(body)

    ran, web = run(folder, meddle)
    assert (ran.code, statuses(ran)) == (3, Counter(acknowledged=FILES - 2, failed=2))
    assert len(web.requests) == FILES - 2


def test_a_large_file_that_changes_on_the_way_is_not_sent(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_dicom(folder / "large.dcm", instance=99, PixelData=bytes(3 << 20), Rows=1024, Columns=1536)
    real = stow.Body.__iter__

    def meddling(body: stow.Body):  # type: ignore[no-untyped-def]  # noqa: ANN202
        for number, piece in enumerate(real(body)):
            if number == 1 and (folder / "large.dcm").exists():
                (folder / "large.dcm").write_bytes(b"torn")
            yield piece

    monkeypatch.setattr(stow.Body, "__iter__", meddling)
    ran, _ = run(folder, lambda _, body: stored(body))
    assert (ran.code, statuses(ran)) == (3, Counter(acknowledged=FILES, failed=1))
    assert "it changed while it was sent" in ran.out


def test_user_and_password_come_from_a_file(folder: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    for text, header in {"me:pass word\n": "Basic bWU6cGFzcyB3b3Jk", "Bearer a.b.c": "Bearer a.b.c"}.items():
        secret.write_text(text)
        ran, web = run(folder, lambda _, body: stored(body), "--auth", secret)
        all_sent(ran)
        assert web.requests[0][1]["Authorization"] == header
        assert "pass" not in ran.out + ran.err


@pytest.mark.parametrize("text", [None, "", "two\nlines", b"\xff\xfe"])
def test_no_user_and_password_in_that_file(folder: Path, tmp_path: Path, text: str | bytes | None) -> None:
    secret = tmp_path / "secret"
    if text is not None:
        secret.write_bytes(text if isinstance(text, bytes) else text.encode())
    ran = send(folder, "--to", "http://127.0.0.1:1/", "--auth", secret)
    assert ran.code == 2
    assert "--auth: expected" in ran.err


KEYS = ["00081199", "00081198", "Value", "00081155", "00081197", "00081196", "vr"]


@given(
    st.recursive(
        st.none() | st.integers() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(KEYS), inner),
        max_leaves=10,
    )
)
def test_any_json_is_judged(value: object) -> None:
    told = stow._response_statuses(json.dumps(value).encode())
    assert told is None or all(isinstance(status, int) for status in told.values())


@pytest.mark.parametrize(
    "after",
    ["Mon, 01 Jan 99999999999999999999 00:00:00 GMT", "Mon, 01 Jan 2024 99999999999:00:00 GMT", "9" * 400,
     "Mon, 01 Jan 2024 00:00:00 +9999999999999999"],
)  # fmt: skip
def test_a_time_that_cannot_exist(folder: Path, after: str) -> None:
    ran, _ = run(folder, lambda *_: Reply(503, b"", {"Retry-After": after}), "--retries", 0)
    assert (ran.code, statuses(ran)) == (1, Counter(failed=FILES)), ran.err
    assert "HTTP 503" in ran.err


def test_what_a_server_says_in_words_is_not_repeated(folder: Path) -> None:
    headers = {"Content-Type": "\x1b[2J\x1b]0;owned\x07 Mueller^Hans"}
    ran, _ = run(folder, lambda *_: Reply(200, b"", headers), "--retries", 0)
    nothing_sent(ran, folder, "received HTTP 200 with another type: no STOW-RS service")
    assert "\x1b" not in ran.err + ran.out
