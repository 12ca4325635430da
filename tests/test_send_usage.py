"""What a user may get wrong, what ``send`` prints and keeps, and what it never tells."""

from __future__ import annotations

import fcntl
import json
import os
import re
import socket
import subprocess
import sys
import tracemalloc
from collections import Counter
from contextlib import closing
from pathlib import Path

import manual
import pytest
from building import make_dicom, make_files, read_tree, uid
from command import Ran, run
from peers_send import Scp, Web
from sending_tools import rows, send, statuses, stored
from test_patient_data import MARKER, tags

from dicomsort.cli.send import COLUMNS
from dicomsort.config import SEND, SendSettings
from dicomsort.errors import DicomsortError
from dicomsort.files import Files
from dicomsort.jsonlines import dump
from dicomsort.pacs.send import SendStatus, destination, stow
from dicomsort.pacs.send import send as deliver
from dicomsort.pacs.send.acknowledged import Acknowledged
from dicomsort.pacs.send.destination import file_name
from dicomsort.pacs.send.retry import GIVEN_UP
from dicomsort.pacs.send.workers import LONGEST_WAIT
from dicomsort.progress import Silent
from dicomsort.records import Found

pytest.importorskip("pynetdicom", reason="the extra pacs is not installed")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number in range(3):
        make_dicom(tmp_path / "in" / f"{number}.dcm", instance=number)
    return tmp_path / "in"


@pytest.mark.parametrize(
    ("to", "message"),
    [
        ("ARCHIVE", "--to: expected AE@HOST:PORT or https://HOST/PATH, received 'ARCHIVE'"),
        ("pacs:104", "--to: expected AE@HOST:PORT"),
        ("ARCHIVE@pacs", "--to: expected AE@HOST:PORT"),
        ("ARCHIVE@pacs:dicom", "--to: expected a port of 1 to 65535"),
        ("ARCHIVE@pacs:0", "--to: expected a port of 1 to 65535"),
        ("ARCHIVE@pacs:65536", "--to: expected a port of 1 to 65535"),
        ("ARCHIVE@pacs:٣", "--to: expected a port of 1 to 65535"),
        ("@pacs:104", "--to: expected an AE title (1 to 16 characters"),
        ("SEVENTEENLETTERSX@pacs:104", "--to: expected an AE title (1 to 16 characters"),
        ("A\\B@pacs:104", "--to: expected an AE title (1 to 16 characters"),
        ("A@pa cs:104", "--to: expected AE@HOST:PORT"),
        ("A@pacs/x:104", "--to: expected AE@HOST:PORT"),
        ("ftp://pacs/", "--to: expected AE@HOST:PORT or https://HOST/PATH"),
        ("https://", "--to: expected AE@HOST:PORT"),
        ("https://pacs:x/", "--to: expected AE@HOST:PORT"),
        ("https://[pacs/", "--to: expected AE@HOST:PORT"),
        ("https://pacs/?a=b", "--to: expected AE@HOST:PORT"),
        ("https://me:secret@pacs/", "--to: expected an address without user and password"),
        ("", "--to: expected AE@HOST:PORT"),
        (f"A@h:{'9' * 5000}", "--to: expected a port of 1 to 65535 in AE@HOST:PORT, received '9999"),
        (f"https://h:{'9' * 5000}/", "--to: expected AE@HOST:PORT"),
        *(
            (to, "--to: expected ")
            for host in ("a..b", ".b", "a" * 70, f"{'a' * 64}.de", "a\udcffb", "a\nb", "pa cs", '"x"', "exa%mple")
            for to in (f"A@{host}:104", f"https://{host}/dicom-web")
        ),
        *(
            (f"https://localhost:1/{path}", "--to: expected AE@HOST:PORT")
            for path in ("\udcff", "a\nb", "a\tb", "\x1b")
        ),
    ],
)
def test_addresses_that_are_none(folder: Path, to: str, message: str) -> None:
    ran = send(folder, "--to", to)
    assert (ran.code, ran.out, read_tree(folder).keys()) == (2, "", {"0.dcm", "1.dcm", "2.dcm"})
    assert message in ran.err
    assert "secret" not in ran.err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--ae-title", "with\\slash"], "--ae-title: expected an AE title"),
        (["--retries", "-1"], "--retries: expected a whole number from 0 to 100, received -1"),
        (["--retries", "many"], "--retries: expected a whole number from 0 to 100, received 'many'"),
        (["--retry-wait", "-1"], "--retry-wait: expected a number from 0 to 3600"),
        (["--retry-wait", "nan"], "--retry-wait: expected a number from 0 to 3600"),
        (["--timeout", "0"], "--timeout: expected a number from 0.001 to 86400"),
        (["--timeout", "inf"], "--timeout: expected a number from 0.001 to 86400"),
        (["--timeout", "nan"], "--timeout: expected a number from 0.001 to 86400"),
        (["--associations", "0"], "--associations: expected a whole number from 1 to 256"),
        (["--auth", "file"], "--auth: expected an https:// address beside it"),
        (["--log-format", "xml"], "--log-format: expected text|json, received 'xml'"),
        (["--log-file", "/no/such/folder/log"], "--log-file: expected a file in a folder that can be written"),
        (["--colour"], "No such option"),
        (["--journal", "/proc/1/journal"], "--journal: expected a file in a folder that can be written"),
    ],
)
def test_options_that_are_wrong(folder: Path, options: list[str], message: str) -> None:
    ran = send(folder, "--to", "SCP@127.0.0.1:1", *options)
    assert ran.code == 2, ran.err
    assert message in ran.err


@pytest.mark.parametrize(
    "host", ["pacs", "pacs.example", "pacs.example.", "a_b", "10.0.0.1", "[::1]", "münchen.example"]
)
def test_addresses_that_are_some(host: str) -> None:
    assert destination(f"A@{host}:104").name == f"A@{host}:104"
    assert destination(f"https://{host}/dicom-web").name == f"https://{host}/dicom-web"


@pytest.mark.parametrize("missing", ["nowhere", "in/0.dcm", ""])
def test_folders_that_are_none(folder: Path, missing: str) -> None:
    ran = send(folder.parent / missing if missing else "", "--to", "SCP@127.0.0.1:1")
    assert ran.code == 2
    assert ("expected a folder to send, received" if missing else "FOLDER: expected a name, received") in ran.err


def test_an_empty_folder(tmp_path: Path) -> None:
    ran = send(tmp_path, "--to", "SCP@127.0.0.1:1")
    assert (ran.code, ran.out) == (0, "path,sop_uid,status,attempts,message\n")
    assert "SCP@127.0.0.1:1: 0 acknowledged" in ran.err


@pytest.mark.parametrize(("package", "to"), [("pynetdicom", "SCP@127.0.0.1:1"), ("urllib3", "http://127.0.0.1:1")])
def test_an_extra_that_is_not_installed(folder: Path, package: str, to: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    ran = send(folder, "--to", to)
    assert ran.code == 2
    assert "expected the extra pacs" in ran.err


def test_rows_as_csv_as_json_and_only_what_failed(folder: Path) -> None:
    make_files(folder, {"notes.txt": "x", "bad.dcm": b"\0" * 128 + b"DICM" + bytes(7)})
    with Scp().running() as scp:
        ran = send(folder, "--to", scp.to)
        assert ran.out.splitlines()[0] == "path,sop_uid,status,attempts,message"
        assert statuses(ran) == Counter(acknowledged=3, failed=1, ignored=1)
        assert f"{scp.to}: 3 acknowledged; 1 failed; 1 ignored, no DICOM instances" in ran.err
        ran = send(folder, "--to", scp.to, "--json")
        told = [json.loads(line) for line in ran.out.splitlines()]
        assert {tuple(each) for each in told} == {("path", "sop_uid", "status", "attempts", "message")}
        assert Counter(each["status"] for each in told) == Counter(skipped=3, failed=1, ignored=1)
        ran = send(folder, "--to", scp.to, "--quiet")
        told = "failed, 1: the data end within the header\n"  # for the mail of cron
        assert ([row["path"] for row in rows(ran)], ran.err, ran.code) == (["bad.dcm"], told, 3)
        (folder / "bad.dcm").unlink()
        assert send(folder, "--to", scp.to, "--quiet") == Ran(0, "", "")


def test_a_journal_of_another_destination(folder: Path, tmp_path: Path) -> None:
    with Scp().running() as one, Scp().running() as other:
        assert send(folder, "--to", one.to, "--journal", tmp_path / "journal").code == 0
        ran = send(folder, "--to", other.to, "--journal", tmp_path / "journal")
    assert (ran.code, other.came.total()) == (2, 0)
    assert f"to be of {other.to}, received one of {one.to}" in ran.err


HEAD = b'{"format":1,"destination":"SCP@127.0.0.1:1"}\n'


@pytest.mark.parametrize(
    "content",
    [
        *(b"some text\n", b"{}\n", b"[]\n", b'{"format":1}\n', b"\n", b"some text", b"text\nand no end", b"\0" * 99),
        *(b"\xff\xd8\xff\xe0\n" + bytes(range(256)), HEAD.decode().encode("utf-16"), b"x" * (3 << 20)),
        *(HEAD[:-1] + b"x", HEAD[:-2] + b"\0", HEAD[:9] + b"\nx", b"{}\n" + HEAD + b"torn"),
        *(HEAD.replace(b"1,", value + b",") for value in (b"true", b"1.0", b"0", b"-1", b'"1"', b"null")),
        *(HEAD.replace(b'"SCP@127.0.0.1:1"', value) for value in (b"null", b"1", b"[]", b"[" * 99_999, b"9" * 5000)),
        b"the inbox's own",
    ],
    ids=lambda content: repr(content[:40]),
)
def test_a_file_that_is_no_journal_is_left_alone(folder: Path, tmp_path: Path, content: bytes) -> None:
    notes = tmp_path / "notes"
    if content == b"the inbox's own":
        notes = folder / "1.dcm"
    else:
        notes.write_bytes(content)
    os.utime(notes, ns=(1, 1))
    content, before = notes.read_bytes(), notes.stat()
    ran = send(folder, "--to", "SCP@127.0.0.1:1", "--journal", notes)
    assert ran.code == 2, ran.err
    expected = "expected a file outside the FOLDER" if notes.parent == folder else "it was not changed"
    assert expected in ran.err
    after = notes.stat()
    assert notes.read_bytes() == content
    assert (after.st_mtime_ns, after.st_ctime_ns, after.st_ino) == (1, before.st_ctime_ns, before.st_ino)


@pytest.mark.parametrize("tail", [b"", b'["sent",', b'["base","/x"]\ntorn'])
def test_a_journal_of_a_later_version_is_left_alone(folder: Path, tmp_path: Path, tail: bytes) -> None:
    content = HEAD.replace(b'1,"', b'2,"') + tail
    (tmp_path / "journal").write_bytes(content)
    ran = send(folder, "--to", "SCP@127.0.0.1:1", "--journal", tmp_path / "journal")
    assert (ran.code, (tmp_path / "journal").read_bytes()) == (2, content)
    assert "received one of format 2, which a later version of dicomsort writes" in ran.err


def test_a_journal_that_a_crash_tore_in_its_first_line_is_begun_anew(folder: Path, tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    with Scp().running() as scp:
        head = HEAD.replace(b"SCP@127.0.0.1:1", scp.to.encode())
        for size in range(len(head)):
            journal.write_bytes(head[:size])
            assert statuses(send(folder, "--to", scp.to, "--journal", journal)) == Counter(acknowledged=3), size
            assert journal.read_bytes().startswith(head + b'["base",')
            assert journal.read_bytes().count(b'"sent"') == 3
        assert statuses(send(folder, "--to", scp.to, "--journal", journal)) == Counter(skipped=3)


def _but_its_last_reading(status: os.stat_result) -> tuple[int, ...]:
    return status.st_ino, status.st_mode, status.st_size, status.st_mtime_ns, status.st_ctime_ns


@pytest.mark.parametrize("kind", ["FIFO", "device", "folder", "socket", "link", "link to nothing"])
def test_a_journal_must_be_a_regular_file(folder: Path, tmp_path: Path, kind: str) -> None:
    place, notes = tmp_path / "place", tmp_path / "notes"
    notes.write_bytes(HEAD + b"torn")
    with socket.socket(socket.AF_UNIX) as server:
        if kind == "FIFO":
            os.mkfifo(place)
        elif kind == "device":
            place = Path(os.devnull)
        elif kind == "folder":
            place.mkdir()
        elif kind == "socket":
            server.bind(str(place))
        else:
            place.symlink_to(notes if kind == "link" else tmp_path / "nothing")
        before = _but_its_last_reading(place.lstat())
        ran = send(folder, "--to", "SCP@127.0.0.1:1", "--journal", place)
    assert ran.code == 2, ran.err
    assert "it is no regular file" in ran.err
    assert _but_its_last_reading(place.lstat()) == before
    assert notes.read_bytes() == HEAD + b"torn"
    assert not (tmp_path / "nothing").exists()


def test_a_journal_that_is_held(folder: Path, tmp_path: Path) -> None:
    with Scp().running() as scp:
        assert send(folder, "--to", scp.to, "--journal", tmp_path / "journal").code == 0
        with (tmp_path / "journal").open() as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            ran = send(folder, "--to", scp.to, "--journal", tmp_path / "journal")
    assert ran.code == 4
    assert "another `dicomsort send`" in ran.err


def test_a_journal_with_damaged_lines_sends_more_not_less(folder: Path, tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    with Scp().running() as scp:
        assert send(folder, "--to", scp.to, "--journal", journal).code == 0
        head, base, *lines = journal.read_bytes().splitlines(keepends=True)
        first, second, third = (line for line in lines if b'"sent"' in line)
        journal.write_bytes(head + base + b"\xff\xfe\n" + second.replace(b'"sent"', b'"seen"') + b"[]\n" + third[:-9])
        ran = send(folder, "--to", scp.to, "--journal", journal)
        assert statuses(ran) == Counter(acknowledged=3)
        assert statuses(send(folder, "--to", scp.to, "--journal", journal)) == Counter(skipped=3)
    assert first not in journal.read_bytes().splitlines(keepends=True)[:4]


def test_a_line_without_an_end_in_a_journal_costs_little_memory(tmp_path: Path) -> None:
    journal, found = tmp_path / "journal", Found("a.dcm", 5, 6, 7, 8)
    Acknowledged(Files(), str(journal), "A@b:1", "/in").close()
    os.truncate(journal, 32 << 20)
    with journal.open("ab") as lines:
        lines.write(b"\n" + dump(["sent", found.path, found.size, found.mtime_ns, "1.2.3", "f00d"]) + b"\n")
    tracemalloc.start()
    try:
        with closing(Acknowledged(Files(), str(journal), "A@b:1", "/in")) as known:
            assert known.may_hold(found)
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()


def test_damaged_lines_of_any_kind_are_passed_over(folder: Path, tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    with Scp().running() as scp:
        assert send(folder, "--to", scp.to, "--journal", journal).code == 0
        head, base, *sent = journal.read_bytes().splitlines(keepends=True)
        damaged = [
            *(b"[" * 99_999, b"[" * 900 + b"]" * 900, b'{"a":' * 99_999, b"9" * 5000, b"1e999", b"\0" * 300, b"\xff\n"),
            *(
                b"null",
                b"true",
                b'"sent"',
                b"[]",
                b'["sent"]',
                b'["sent",1,2,3,4,5]',
                b'["base",1]',
                b'["base"]',
                b"{}",
            ),
            *(
                b'["sent","0.dcm",%s,%s,"1.2","00"]' % (number, number)
                for number in (b"9" * 30, b"9" * 400, b"-1", b"1.5")
            ),
            *(b'["sent","0.dcm",1,1,%s,"00"]' % text for text in (b'""', b'"x"', b'"1.2\\n"', b'"\\ud800"', b"null")),
            *(
                b'["sent","\\ud800",1,1,"1.2","00"]',
                b'["sent","0.dcm",1,1,"1.2","\\ud800"]',
                b'["sent","\xed\xa0\x80"]',
                *(b'["file",%s,1,1]' % text for text in (b'"\\ud800"', b"null", b'""')),
                *(b'["file","1.2",%s,1]' % number for number in (b"9" * 400, b"-1", b"1.5", b'""')),
            ),
        ]
        journal.write_bytes(head + base + b"\n".join([*damaged, b""]) + b"".join(sent))
        assert statuses(send(folder, "--to", scp.to, "--journal", journal)) == Counter(skipped=3)
        journal.write_bytes(head + b'["base","\\ud800"]\n' + b"".join(sent))
        ran = send(folder, "--to", scp.to, "--journal", journal)  # told by UID and SHA-256, wherever the files lay
        assert (ran.code, statuses(ran)) == (0, Counter(skipped=3)), ran.err


def test_a_full_disk_says_what_will_be_sent_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full(Files):
        def write(self, descriptor: int, data: bytes | memoryview) -> None:
            if b'"sent"' in bytes(data):
                raise OSError(28, os.strerror(28))
            super().write(descriptor, data)

    with Scp().running() as scp:
        with monkeypatch.context() as patch:
            patch.setattr("dicomsort.files.Files", Full)
            ran = send(folder, "--to", scp.to)
        assert ran.code == 1
        assert "No space left on device; what the peer acknowledged last may be sent again" in ran.err
        assert rows(ran) == []
        assert statuses(send(folder, "--to", scp.to)) == Counter(acknowledged=3)


def test_nothing_that_is_written_or_printed_holds_a_tag(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    for number in range(3):
        make_dicom(folder / f"{number}.dcm", instance=number, **tags())
    log = ("--log-file", tmp_path / "log")
    with Scp(lambda _, times: 0xC000 if times == 1 else 0).running() as scp:
        ways = (log, (*log, "--log-format", "json"), ("--json",))
        told = [send(folder, "--to", scp.to, *options) for options in ways]
    with Web(lambda _, body: stored(body)).running() as web:
        told.append(send(folder, "--to", web.to, *log, "--decompress"))
    told.append(run("send", folder, "--to", "SCP@127.0.0.1:1", "--retries", 0, *log))
    written = "".join(ran.out + ran.err for ran in told) + (tmp_path / "log").read_text("utf-8")
    written += "".join(content.decode() for path, content in read_tree(folder).items() if not path.endswith(".dcm"))
    assert "not sent" in written
    assert '"sent"' in written
    assert MARKER not in written


def test_what_watch_calls(folder: Path) -> None:
    with Scp().running() as scp:
        sent = deliver(str(folder), SendSettings(scp.to), Files(), Silent())
        assert (sent.found, sent.acknowledged, sent.failed, sent.problem) == (3, 3, 0, "")
        assert sent.bytes == sum(path.stat().st_size for path in folder.glob("*.dcm"))
        assert deliver(str(folder), SendSettings(scp.to), Files(), Silent()).skipped == 3
    sent = deliver(str(folder), SendSettings(scp.to, again=True, retries=0), Files(), Silent())
    assert (sent.found, sent.failed, sent.acknowledged) == (3, 3, 0)
    assert "cannot be reached" in sent.problem
    with pytest.raises(DicomsortError, match="expected a folder to send"):
        deliver(str(folder / "no"), SendSettings(scp.to), Files(), Silent())


def test_names_of_destinations() -> None:
    addresses = (
        *("ARCHIVE@PACS.example:104", "ARCHIVE@pacs.example:105", "A B/.C@pacs:104", "A@[fe80::1]:104"),
        *(
            "https://PACS/dicom-web",
            "https://pacs/dicom-web/studies/",
            "http://pacs/dicom-web",
            f"https://{'a' * 50}.{'b' * 50}/",
        ),
    )
    names = [file_name(destination(address)) for address in addresses]
    assert names[0].startswith("ARCHIVE@pacs.example_104-")
    assert names[4] == names[5]
    assert len(set(names)) == len(names) - 1
    assert all(len(name) < 100 and "/" not in name and not name.startswith(".") for name in names)


def test_uids_as_they_are_in_the_field(tmp_path: Path) -> None:
    usual = f"{uid(5)}.{'1' * 31}"
    for number, odd in enumerate(("1.2.03", "7", "1." + "9" * 40)):
        path = make_dicom(tmp_path / "in" / f"{number}.dcm", instance=number, sop_class=usual)
        whole = path.read_bytes()
        assert whole.count(usual.encode()) == 2
        path.write_bytes(whole.replace(usual.encode(), odd.encode().ljust(len(usual), b"\0")))
    with Scp().running() as scp:
        command = [sys.executable, "-m", "dicomsort", "send", tmp_path / "in", "--to", scp.to, "--retries", "0"]
        ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.stderr.startswith(f"{scp.to}: 3 acknowledged")
    assert len(ran.stderr.splitlines()) == 1
    assert ran.returncode == 0


def test_the_manual_tells_statuses_codes_and_defaults() -> None:
    section = manual.section("pacs.md", "## Send")
    assert re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE) == [*SendStatus]
    assert {int(code) for code in re.findall(r"^\| (\d+) \|", section, re.MULTILINE)} == {0, 1, 3, 4, 130}
    told = re.search(r"HTTP ([\d, and]+)\.", " ".join(section.split()))
    assert told is not None
    assert {int(code) for code in re.findall(r"\d+", told[1])} == stow._RETRIED
    assert ", ".join(COLUMNS) in section
    assert f"`--retries` ({SEND['retries'].default}) times" in " ".join(section.split())
    assert LONGEST_WAIT == 5 * 60
    assert GIVEN_UP == 3


def test_the_help_tells_every_option_and_its_default() -> None:
    helped = " ".join(run("send", "--help").out.split())
    for name, option in SEND.items():
        assert f"--{name.replace('_', '-')} " in helped
        assert option.help in helped
        if option.default:
            assert f"{option.help} [default: {option.default}]" in helped
    assert SendSettings() == SendSettings(**{name: option.default for name, option in SEND.items()})  # type: ignore[arg-type]
