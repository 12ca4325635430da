"""The sealed plan and the journal: what is torn is told from what is damaged, and nothing is believed unsealed."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from command import run, sort
from hypothesis import given
from hypothesis import strategies as st

from dicomsort.errors import DicomsortError, StateDamaged
from dicomsort.files import Files
from dicomsort.journal import Journal, Plan, PlanWriter, pack, replay, unpack
from dicomsort.jsonlines import dump, parse
from dicomsort.records import Operation, Outcome, Result, Row, Verb
from dicomsort.sorting.runs import all_runs

ROW = Row("a\udce9", "CT/a\udce9", class_="CT")
HEAD = {
    "verb": "sort", "inbox": "/in", "outbox": "/out", "started": "2026-01-01T00:00:00Z", "mode": "move",
    "model": "ab" * 32,
}  # fmt: skip
OPERATIONS = [
    Operation(0, Verb.MOVE, "inbox/a\udce9", "outbox/CT/a", "", 1, 2, 3, 1 << 63, 0o640, "ab" * 32, row=ROW),
    Operation(1, Verb.REMOVE_FOLDER, "inbox/b", mode=0o750, mtime_ns=5),
]


def write(folder: Path, *, seal: bool = True) -> Path:
    writer = PlanWriter(Files(), str(folder), HEAD)
    for operation in OPERATIONS:
        writer.add(operation)
    if seal:
        writer.seal()
    writer.close()
    return folder / "plan.jsonl"


def test_a_sealed_plan_gives_its_operations_back(tmp_path: Path) -> None:
    write(tmp_path)
    plan = Plan.open(str(tmp_path))
    assert plan.head["verb"] == "sort"
    assert list(plan.operations()) == OPERATIONS


def test_an_operation_survives_packing() -> None:
    assert [unpack(parse(dump(pack(operation)))) for operation in OPERATIONS] == OPERATIONS


def test_an_unsealed_plan_is_none(tmp_path: Path) -> None:
    path = write(tmp_path, seal=False)
    with pytest.raises(DicomsortError, match="died before its plan was sealed"):
        Plan.open(str(tmp_path))
    path.unlink()
    with pytest.raises(DicomsortError, match="died before its plan was sealed"):
        Plan.open(str(tmp_path))


def test_a_plan_torn_anywhere_is_none(tmp_path: Path) -> None:
    path = write(tmp_path)
    whole = path.read_bytes()
    for size in range(0, len(whole) - 1, 7):
        path.write_bytes(whole[:size])
        with pytest.raises(DicomsortError):
            Plan.open(str(tmp_path))


def test_a_plan_that_was_changed_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path)
    path.write_bytes(path.read_bytes().replace(b"outbox/CT/a", b"outbox/CT/b"))
    with pytest.raises(DicomsortError, match="expected SHA-256"):
        Plan.open(str(tmp_path))


def forge(folder: Path, head: Any, cells: list[Any], count: int | None = None) -> Plan:
    """Open a plan of one operation that anybody could have written, with a hash that is right."""
    lines = b"".join(dump(value) + b"\n" for value in (head, cells))
    seal = {"sealed": 1 if count is None else count, "sha256": hashlib.sha256(lines).hexdigest()}
    (folder / "plan.jsonl").write_bytes(lines + dump(seal) + b"\n")
    return Plan.open(str(folder))


HEADS = {
    "is no object": [1],
    "has another format": HEAD | {"format": 99},
    "has a number for a text": HEAD | {"inbox": 1},
    "has a zero byte": HEAD | {"inbox": "/in\0"},
    "has a text for a list": HEAD | {"notes": "note"},
    "has a verb that is none": HEAD | {"verb": "destroy"},
    "has no outbox": HEAD | {"outbox": ""},
    "sorted in no mode": {name: value for name, value in HEAD.items() if name != "mode"},
    "sorted by no model": {name: value for name, value in HEAD.items() if name != "model"},
    "undoes nothing": HEAD | {"verb": "undo"},
    "undoes what is no run": HEAD | {"verb": "undo", "undoes": "../x"},
    "has a relative path": HEAD | {"inbox": "in"},
}


@pytest.mark.parametrize("head", HEADS.values(), ids=HEADS)
def test_a_head_that_no_run_writes_is_refused(tmp_path: Path, head: Any) -> None:
    path = write(tmp_path)
    ours = parse(path.read_bytes().splitlines()[0])
    with pytest.raises(StateDamaged):
        forge(tmp_path, {"format": ours["format"]} | head if isinstance(head, dict) else head, pack(OPERATIONS[0]))


CELLS = {
    "a text for a size": {"size": "1"},
    "a size below zero": {"size": -1},
    "a time beyond the years": {"mtime_ns": 1 << 100},
    "a path that leads out": {"source": "inbox/../a"},
    "a target that leads out": {"target": "/etc/passwd"},
    "an invalid SHA-256": {"sha256": "ab"},
    "an invalid owner": {"owner": (-2, 0)},
    "another number": {"number": 7},
}


@pytest.mark.parametrize("changed", CELLS.values(), ids=CELLS)
def test_an_operation_that_no_run_plans_is_refused(tmp_path: Path, changed: dict[str, Any]) -> None:
    head = parse(write(tmp_path).read_bytes().splitlines()[0])
    plan = forge(tmp_path, head, pack(replace(OPERATIONS[0], **changed)))
    with pytest.raises(StateDamaged, match="operation 0"):
        list(plan.operations())


def test_a_plan_of_another_count_is_refused(tmp_path: Path) -> None:
    head = parse(write(tmp_path).read_bytes().splitlines()[0])
    with pytest.raises(StateDamaged, match="2 operations"):
        forge(tmp_path, head, pack(OPERATIONS[0]), count=2)
    with pytest.raises(StateDamaged, match="its seal"):
        forge(tmp_path, head, pack(OPERATIONS[0]), count=-1)


def test_a_plan_that_lost_its_seal_after_placing_began_is_damaged(tmp_path: Path) -> None:
    write(tmp_path, seal=False)
    (tmp_path / "journal.jsonl").touch()
    with pytest.raises(StateDamaged, match="its seal at the end"):
        Plan.peek(str(tmp_path))


def test_a_plan_that_is_no_file_is_damaged(tmp_path: Path) -> None:
    (tmp_path / "plan.jsonl").mkdir()
    with pytest.raises(StateDamaged, match="a file that can be read"):
        Plan.peek(str(tmp_path))


def test_a_last_line_of_somebody_else_is_not_taken_for_a_torn_one(tmp_path: Path) -> None:
    (tmp_path / "journal.jsonl").write_bytes(b"dear diary")
    with pytest.raises(StateDamaged, match="line 1 was not written by dicomsort"):
        replay(str(tmp_path), 5)


ENTRIES = st.tuples(st.integers(0, 4), st.sampled_from(Outcome), st.text(max_size=5))
DAMAGE = [
    b"{}\n",
    b"[1]\n",
    b'["end",99,"done","",0]\n',
    b"\xff\n",
    b'["end",0,"lost","",0]\n',
    b'["begin",[0],["outbox/../.."]]\n',
    b'["end",0,"done","",0,[0,0,-1,0]]\n',
]


@given(st.lists(ENTRIES, max_size=8), st.integers(0))
def test_a_torn_tail_is_cut_off_and_the_rest_believed(
    tmp_path_factory: pytest.TempPathFactory, entries: list[tuple[int, Outcome, str]], cut: int
) -> None:
    folder = tmp_path_factory.mktemp("run")
    journal = Journal(Files(), str(folder), 5)
    journal.begin(range(5), ["outbox/CT"])
    for number, outcome, message in entries:
        journal.end([Result(number, outcome, message, 7)])
    journal.close()
    path = folder / "journal.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole[: cut % (len(whole) + 1)])
    kept = path.read_bytes().count(b"\n")
    again = Journal(Files(), str(folder), 5)
    again.mark("x", 1)
    again.close()
    assert path.read_bytes().count(b"\n") == kept + 1
    known = replay(str(folder), 5)
    last = {number: Result(number, outcome, message, 7) for number, outcome, message in entries[: max(kept - 1, 0)]}
    for number in range(5):
        result = known.result(number)
        assert (result is None) == (number not in last)
        assert result is None or (result.outcome, result.inode) == (last[number].outcome, 7)
    assert known.begun == (set(range(5)) - set(last) if kept else set())


@pytest.mark.parametrize("line", DAMAGE)
def test_damage_in_the_middle_stops_everything(tmp_path: Path, line: bytes) -> None:
    (tmp_path / "journal.jsonl").write_bytes(line + b'["mark","x",1]\n')
    with pytest.raises(DicomsortError, match="line 1 is damaged"):
        replay(str(tmp_path), 5)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers(-(1 << 63), (1 << 64) - 1) | st.text() | st.just("a\udce9"),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    )
)
def test_what_is_read_back_is_what_was_written(value: object) -> None:
    assert parse(dump(value)) == value


@pytest.mark.parametrize(
    "data",
    [
        *(b"", b"\0", b"\xff", b"[1", b"[1]x", b"[1]\0", b'"\xed\xa0\x80"', '"a"'.encode("utf-16"), b"\xef\xbb\xbf1"),
        *(b"[" * 99_999, b"[" * 99_999 + b"]" * 99_999, b'{"a":' * 99_999, b'["\\udce9",' * 99_999),
        *(
            b"9" * 400,
            b"-" + b"9" * 400,
            b"9" * 5000,
            b'["\\udce9",18446744073709551616]',
            b'["\\udce9",-9223372036854775809]',
        ),
    ],
    ids=lambda data: f"{data[:20]!r}-{len(data)}",
)
def test_what_is_no_json_or_beyond_it_is_a_value_error(data: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - the words are those of two libraries
        parse(data)


SURROGATES = [rb'"\ud800"', rb'["outbox/\udfff"]', rb'{"\udc7f": 1}', rb'["\udd00", "\udc80"]']


@pytest.mark.parametrize("text", SURROGATES)
def test_text_that_no_name_of_a_file_holds_is_damage(text: bytes) -> None:
    with pytest.raises(ValueError, match="surrogate"):
        parse(text)


def test_a_journal_with_text_that_no_name_holds_is_damage_and_other_runs_work(inbox: Path, outbox: Path) -> None:
    assert sort("--settle", 0, inbox, outbox).code in {0, 3}
    (name,) = all_runs(str(outbox))
    journal = outbox / ".dicomsort" / "runs" / name / "journal.jsonl"
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join([lines[0], rb'["begin",[],["outbox/\ud800"]]', b"\n", *lines[1:]]))
    assert run("undo", outbox).code == 1
    assert run("undo", "--dry-run", outbox).code == 1
    assert sort("--settle", 0, inbox, outbox).code == 0
