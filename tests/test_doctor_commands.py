"""``doctor`` refuses what the commands refuse: a crontab or a configuration that it calls fine does not end with 2."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

import pytest
from building import make_dicom, read_tree
from command import run, sort
from test_doctor import named

TIME = "15 2 * * *"
SORT, SEND, RECEIVE = "sort IN OUT", "send IN --to A@h:104", "receive IN"
REFUSED = [
    ("sort --copy --move IN OUT", "expected one of --copy, --move, --link, received --copy and --move"),
    ("sort IN", "expected an OUTBOX, received none"),
    ("sort IN IN", "expected an OUTBOX other than the INBOX"),
    ("sort IN/below IN/.dicomsort", "expected a folder, received nothing at"),
    ("sort --duplicates remove IN OUT", "--duplicates remove: expected --move with it, received --copy"),
    ("sort --duplicates never IN OUT", "--duplicates: expected keep|remove"),
    ("sort --layout {foo} IN OUT", "{foo}"),
    ("sort --scheduler tcp://h:8786 IN OUT", "--scheduler: expected --engine dask beside it"),
    ("sort --engine dask IN OUT", "expected --scheduler ADDRESS"),
    ("sort --engine dask --scheduler h IN OUT", "expected --scheduler tcp://HOST:PORT"),
    ("sort --evidence nonsense IN OUT", "--evidence: expected auto|header|pixels"),
    ("sort --engine nonsense IN OUT", "--engine: expected processes|serial|dask"),
    ("sort --log-format nonsense IN OUT", "--log-format: expected text|json"),
    ("sort --model ROOT IN OUT", "bundle.json: expected a file"),
    ("sort --log-file IN/x.log IN OUT", "--log-file: expected a file outside the INBOX"),
    ("watch --move --link IN OUT", "expected one of --copy, --move, --link, received --move and --link"),
    ("watch --layout {foo} IN OUT", "{foo}"),
    ("watch IN IN", "expected an OUTBOX other than the INBOX"),
    ("send IN", "--to: expected AE@HOST:PORT or https://HOST/PATH, received none"),
    ("send IN --to nonsense", "--to: expected AE@HOST:PORT or https://HOST/PATH, received 'nonsense'"),
    ("send IN --to A@h:99999", "--to: expected a port of 1 to 65535"),
    ("send IN --to A@h:104 --auth ROOT/auth", "--auth: expected an https:// address beside it"),
    ("send IN --to A@h:104 --log-file IN/x.log", "--log-file: expected a file outside the FOLDER"),
    ("send IN --to A@h:104 --run x", "--run: expected a folder of an outbox"),
    ("receive IN --ae-title ABCDEFGHIJKLMNOPQ", "--ae-title: expected an AE title (1 to 16 characters"),
    ("receive IN --allow ' '", "--allow: expected an AE title (1 to 16 characters"),
    ("receive IN --tls-key ROOT/auth", "expected --tls-cert beside --tls-key"),
    ("receive IN --tls-cert ROOT/auth", "expected a certificate and its key without a password, as PEM"),
    ("receive IN --log-file IN/x.log", "--log-file: expected a file outside the INBOX"),
    ("report DONE --html DONE/CT/x.html", "--html: expected a file that is not one of the outbox's own"),
    ("report DONE --html ROOT/missing/x.html", "--html: expected a file in a folder that can be written"),
    ("report DONE --html ROOT/x.html --json", "expected one of --html, --json, received both"),
    ("report DONE nonsense", "expected one of the runs"),
    ("report IN", "expected an outbox of dicomsort"),
    ("runs IN", "expected an outbox of dicomsort"),
    ("verify IN", "expected an outbox of dicomsort"),
    ("verify OUT", "expected an outbox of dicomsort"),
    ("resume IN", "expected an outbox of dicomsort"),
    ("undo IN", "expected an outbox of dicomsort"),
    ("predict IN/1.dcm --model ROOT", "bundle.json: expected a file"),
    ("evaluate IN --model ROOT", "bundle.json: expected a file"),
    ("train IN --out ROOT/new/model --augment nonsense", "--augment: expected one of none, light, strong"),
    ("train IN --out IN/model", "--out: expected a folder outside the data set"),
]  # fmt: skip
TAKEN = [
    SORT,
    SEND,
    RECEIVE,
    "watch --move --duplicates remove IN OUT",
    "sort --dry-run IN",
    "sort --move --duplicates remove --metrics ROOT/x.prom --log-file ROOT/x.log IN OUT",
    "receive IN --ae-title SORTER --allow CT1 --allow ARCHIVE",
    "report DONE --html ROOT/x.html",
    "report DONE --html -",
    "runs --prune 90 --keep 10 DONE",
    "verify DONE",
    "train IN --out ROOT/new/model",
    "predict IN/1.dcm --explain ROOT/new/pictures",
]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """An inbox ``IN`` that dicomsort can run beside, an outbox ``DONE``, a file that is no certificate."""
    make_dicom(tmp_path / "IN" / "1.dcm")
    assert sort(tmp_path / "IN", tmp_path / "DONE").code == 0
    (tmp_path / "auth").write_text("user:password")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "dicomsort").touch(0o755)
    return tmp_path


def words(place: Path, line: str) -> list[str]:
    for name in ("IN", "OUT", "DONE"):
        line = line.replace(f" {name}", f" {place}/{name}")
    return shlex.split(line.replace("ROOT", str(place)))


def doctor(place: Path, *lines: str, before: str = "", time: str = TIME) -> list[str]:
    jobs = [f"{time}  {place}/bin/dicomsort {shlex.join(words(place, line))}\n" for line in lines]
    (place / "crontab").write_text(before + "".join(jobs))
    return named("--crontab", place / "crontab")


@pytest.mark.parametrize(("line", "expected"), REFUSED)
def test_a_line_that_ends_with_2_is_found(place: Path, line: str, expected: str) -> None:
    if line.startswith(("send", "receive")):
        pytest.importorskip("pynetdicom", reason="the extra pacs is not installed")
    elif "--scheduler h" in line:
        pytest.importorskip("distributed", reason="the extra cluster is not installed")
    assert run(*words(place, line)).code == 2
    before = read_tree(place)
    told = doctor(place, line)
    assert expected in " ".join(told)
    assert told[0].startswith("crontab line 1: ") or "inbox: " in told[0]
    assert {name: data for name, data in read_tree(place).items() if name != "crontab"} == before


def test_blanks_in_a_crontab_take_no_time(place: Path) -> None:
    """Time grew with their square: hours for a file of the size that is read."""
    assert doctor(place, "sort --copy IN OUT", before=f"MAILTO=a{' ' * 500_000}b\n") == []


@pytest.mark.parametrize("line", TAKEN)
def test_a_line_that_works_is_fine(place: Path, line: str) -> None:
    if line.startswith(("send", "receive")):
        pytest.importorskip("pynetdicom", reason="the extra pacs is not installed")
    assert doctor(place, line) == []


def test_lines_may_use_the_outbox_that_another_line_makes(place: Path) -> None:
    pytest.importorskip("pynetdicom", reason="the extra pacs is not installed")
    lines = ("report OUT --html ROOT/x.html", "runs OUT", "verify OUT", "send OUT/CT --to A@h:104")
    assert doctor(place, SORT, *lines) == []
    assert not (place / "OUT").exists()
    assert len(doctor(place, "sort --dry-run IN OUT", *lines)) == len(lines)
    (told,) = doctor(place, SORT, "report OUT --html ROOT/OUT/CT/x.html")
    assert "--html: expected a file that is not one of the outbox's own" in told


@pytest.mark.parametrize(
    ("before", "line", "expected"),
    [
        ("DICOMSORT_SETTL=30\n", SORT, "crontab line 1: expected DICOMSORT_<OPTION> in the environment, received"),
        ("DICOMSORT_SETTLE = '30'\n", SORT, ""),
        ("DICOMSORT_SETTLE=never\n", "runs DONE", "crontab line 1: DICOMSORT_SETTLE: expected a number from 0"),
        ("DICOMSORT_DUPLICATES=remove\n", SORT, "crontab line 2: --duplicates remove: expected --move with it"),
        ("DICOMSORT_DUPLICATES=remove\nDICOMSORT_MODE=move\n", SORT, ""),
        ("DICOMSORT_SEND_TO=A@h:104\n", "send IN", ""),
        ("DICOMSORT_SEND_TO=nonsense\n", "send IN", "crontab line 2: --to: expected AE@HOST:PORT"),
        ("DICOMSORT_RECEIVE_AE_TITLE=ABCDEFGHIJKLMNOPQ\n", RECEIVE, "crontab line 2: --ae-title: expected an AE title"),
        ("export DICOMSORT_MODE=move\n", SORT, "crontab line 1: expected NAME=VALUE, or a time in five fields"),
        ("# DICOMSORT_MODE=never\n\n  \n@reboot /bin/true\n0 1 * * * root true\n", SORT, ""),
        ("DICOMSORT_CONFIG=/missing.toml\n", SORT, "/missing.toml: expected a readable TOML file"),
        ("DICOMSORT_LOG_FILE=/missing/x.log\n", SORT, "crontab line 2: --log-file: expected a file in a folder"),
    ],
)
def test_the_variables_of_a_crontab_are_those_of_its_jobs(place: Path, before: str, line: str, expected: str) -> None:
    told = doctor(place, line, before=before)
    assert bool(told) == bool(expected), told
    assert expected in " ".join(told)


def test_a_job_has_the_variables_above_it_and_its_own_and_none_of_ours(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DICOMSORT_MODE", "move")
    line = "sort --duplicates remove IN OUT"
    assert len(doctor(place, line)) == 1
    job = (place / "crontab").read_text()
    (place / "crontab").write_text(f"{job}DICOMSORT_MODE=move\n")
    assert len(named("--crontab", place / "crontab")) == 1
    (place / "crontab").write_text(job.replace(f"{TIME}  ", f"{TIME}  DICOMSORT_MODE=move "))
    assert named("--crontab", place / "crontab") == []
    (place / "crontab").write_text(job.replace(f"{TIME}  ", f"{TIME}  export DICOMSORT_SETTL=1; "))
    assert "received DICOMSORT_SETTL" in named("--crontab", place / "crontab")[0]


@pytest.mark.parametrize(
    ("time", "expected"),
    [
        ("0 25 * * *", "expected as the hour numbers from 0 to 23, ranges, steps or *, received '25'"),
        ("60 2 * * *", "expected as the minute"),
        ("0 2 0 * *", "expected as the day of the month"),
        ("0 2 * 13 *", "expected as the month"),
        ("0 2 * * 8", "expected as the day of the week"),
        ("0 2 * * fry", "expected as the day of the week"),
        ("5-1 2 * * *", "expected as the minute"),
        ("*/0 2 * * *", "expected as the minute"),
        ("0 2 * *", "expected as the day of the week"),  # a field is missing
        ("", "expected NAME=VALUE, or a time in five fields"),
        ("@nightly", "expected one of @annually, @daily"),
        ("@daily", ""),
        ("*/5,7 0-23/2 1,15 jan-MAR Mon-fri", ""),
        ("0~59 2 * * 7", ""),
    ],
)
def test_the_time_of_a_line(place: Path, time: str, expected: str) -> None:
    told = doctor(place, SORT, time=time)
    assert bool(told) == bool(expected), told
    assert expected in " ".join(told)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('layout = "{foo}"', "configuration, as `sort` reads it: "),
        ('duplicates = "remove"', "configuration, as `sort` reads it: --duplicates remove: expected --move with it"),
        ('[sort]\nduplicates = "remove"\nmode = "copy"', "--duplicates remove: expected --move with it"),
        ('[watch]\nduplicates = "remove"', "configuration, as `watch` reads it: --duplicates remove: expected --move"),
        ('duplicates = "remove"\nmode = "move"', ""),
        ('engine = "dask"', "expected --scheduler ADDRESS"),
        ('model = "IN"', "configuration, as `sort` reads it: "),
        (
            '[receive]\nae-title = "ABCDEFGHIJKLMNOPQ"',
            "configuration, as `receive` reads it: --ae-title: expected an AE",
        ),
        ('[receive]\nallow = [""]', "--allow: expected an AE title"),
        ('[receive]\ntls-cert = "auth"', "expected a certificate and its key without a password, as PEM"),
        ('[receive]\ntls-key = "auth"', "expected --tls-cert beside --tls-key"),
        ('[receive]\nallow = ["CT1"]', ""),
    ],
)
def test_a_configuration_that_a_command_refuses_is_found(place: Path, text: str, expected: str) -> None:
    if "[receive]" in text:
        pytest.importorskip("pynetdicom", reason="the extra pacs is not installed")
    file = place / "dicomsort.toml"
    file.write_text(text)
    told = named("--config", file)
    assert len(told) == bool(expected), told
    assert expected in "".join(told)
    command = ("receive", place / "IN") if "[receive]" in text else ("sort", place / "IN", place / "OUT")
    if expected and "[watch]" not in text:
        assert run(*command, "--config", file).code == 2


@pytest.mark.parametrize("text", ['duplicates = "remove"', '[receive]\nae-title = "ABCDEFGHIJKLMNOPQ"'])
def test_a_configuration_that_can_be_read_once_is_told_of_as_any(place: Path, text: str) -> None:
    if "[receive]" in text:
        pytest.importorskip("pynetdicom", reason="the extra pacs is not installed")
    (place / "dicomsort.toml").write_text(text)
    reader, writer = os.pipe()  # as <(…) of a shell
    os.write(writer, text.encode())
    os.close(writer)
    (told,) = named("--config", f"/dev/fd/{reader}")
    os.close(reader)
    assert [told] == named("--config", place / "dicomsort.toml")


def test_a_line_may_complete_its_configuration(place: Path) -> None:
    (place / "dicomsort.toml").write_text('duplicates = "remove"\n')
    assert doctor(place, "sort --move --config ROOT/dicomsort.toml IN OUT") == []
    assert len(doctor(place, "sort --config ROOT/dicomsort.toml IN OUT")) == 1


def test_a_variable_of_our_own_that_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DICOMSORT_SETTL", "30")
    (told,) = named()
    assert told.startswith("environment: expected DICOMSORT_<OPTION> in the environment, received DICOMSORT_SETTL;")


def test_the_shipped_crontab_is_what_its_commands_take(place: Path, root: Path) -> None:
    text = (root / "deploy" / "crontab").read_text()
    for there, here in (("/opt/dicomsort", ""), ("/srv/inbox", "IN"), ("/srv/outbox", "OUT"), ("/var/l", "l")):
        text = text.replace(there, f"{place}/{here}".rstrip("/"))
    for folder in ("lib/dicomsort", "log/dicomsort"):
        (place / folder).mkdir(parents=True)
    (place / "crontab").write_text(text.replace("  dicomsort  ", "  "))
    assert named("--crontab", place / "crontab") == []


def test_a_user_before_variables_of_the_line(place: Path) -> None:
    job = (
        f"{TIME} dicomsort DICOMSORT_MODE=move {place}/bin/dicomsort sort --duplicates remove {place}/IN {place}/OUT\n"
    )
    (place / "crontab").write_text(job)
    wrong = [told for told in named("--crontab", place / "crontab") if "expected a user of this machine" not in told]
    assert wrong == []


def test_home_is_that_of_the_shell(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(place))
    (place / "crontab").write_text(f"{TIME} ~/bin/dicomsort sort ~/IN ~/OUT\n{TIME} ~no-such-user/dicomsort runs x\n")
    told = named("--crontab", place / "crontab")
    assert not any("line 1" in each for each in told)
