"""Ways in which a file could be lost, or an undo fail, that were once found: each keeps its test."""

from __future__ import annotations

import json
import os
import shutil
from contextlib import suppress
from itertools import count
from pathlib import Path

import pytest
from building import make_dicom, make_files, read_tree
from command import by_source, placed, quiet, rows, run, sort
from crashing import Crash, CrashingFiles, NoLinks
from matrix import FILES, check_nothing_lost, checked_again, facts, start, step, world

from dicomsort.execute import Placer, Roots
from dicomsort.files import Files, same_bytes
from dicomsort.journal import Replay
from dicomsort.records import Outcome, Verb
from dicomsort.sorting import undo


def crashed(inbox: Path, outbox: Path, at: int, verb: Verb = Verb.MOVE) -> None:
    with pytest.raises(Crash):
        start(CrashingFiles(at), inbox, outbox, verb)


def last_call(tmp_path: Path, name: str, verb: Verb = Verb.MOVE) -> int:
    """The number of the last call of that name in a whole run."""
    whole = CrashingFiles(-1)
    start(whole, *world(tmp_path / "whole"), verb)
    return max(number for number, called in enumerate(whole.called) if called == name)


def test_a_run_that_was_undone_is_not_resumed(tmp_path: Path) -> None:
    at = last_call(tmp_path, "unlink")
    inbox, outbox = world(tmp_path)
    crashed(inbox, outbox, at + 1)
    assert run("undo", outbox).code == 0
    assert read_tree(inbox) == FILES
    ran = run("resume", outbox)
    assert "undone" in ran.err or "nothing to resume" in ran.out
    named = min(path.name for path in (outbox / ".dicomsort" / "runs").iterdir())
    assert "has undone" in run("resume", outbox, named).err
    assert read_tree(inbox) == FILES


def test_an_old_plan_carried_out_again_removes_no_source_without_its_replacement(tmp_path: Path) -> None:
    inbox, outbox = world(tmp_path)
    operation = step(inbox, Verb.MOVE, "a/1", target="outbox/CT/1")
    placer = Placer(Files(), Roots(str(inbox), str(outbox)), "run", Replay.empty(1))
    for message in ("its new name is gone; it stays", "it and its new name hold different bytes by now; it stays"):
        result = placer.remove_source(operation)
        assert result is not None
        assert (result.outcome, result.message) == (Outcome.CHANGED, message)
        make_files(outbox, {"CT/1": b"x" * operation.size})
    assert read_tree(inbox) == FILES


def test_a_file_that_is_its_own_target_by_a_linked_folder_is_not_removed(tmp_path: Path) -> None:
    inbox, outbox = world(tmp_path)
    (outbox / "linked").symlink_to(inbox / "a")
    operation = step(inbox, Verb.MOVE, "a/1", target="outbox/linked/1")
    placer = Placer(Files(), Roots(str(inbox), str(outbox)), "run", Replay.empty(1))
    assert placer.remove_source(operation) is None
    assert read_tree(inbox) == FILES


def test_the_note_of_a_cut_short_run_never_names_an_undone_one(inbox: Path, outbox: Path) -> None:
    sort("--move", "--settle", 0, inbox, outbox)
    run("undo", outbox)
    for summary in (outbox / ".dicomsort" / "runs").glob("*/summary.json"):
        if json.loads(summary.read_text())["verb"] == "sort":
            summary.unlink()
    assert "cut short" not in sort("--dry-run", inbox, outbox).out
    assert "cut short" not in sort(inbox, outbox).out


def test_one_name_by_two_ways_is_not_two_files(tmp_path: Path) -> None:
    make_files(tmp_path, {"real/x": "content"})
    (tmp_path / "way").symlink_to(tmp_path / "real")
    assert not same_bytes(f"{tmp_path}/real/x", f"{tmp_path}/way/x")
    os.link(tmp_path / "real/x", tmp_path / "second")
    assert not same_bytes(f"{tmp_path}/real/x", f"{tmp_path}/way/x")
    assert same_bytes(f"{tmp_path}/real/x", f"{tmp_path}/second")


def test_undo_spares_the_outbox_when_the_inbox_leads_into_it(inbox: Path, outbox: Path) -> None:
    sort("--layout", "keep", inbox, outbox)
    shutil.rmtree(inbox / "ct")
    (inbox / "ct").symlink_to(outbox / "CT" / "ct")
    run("undo", outbox)
    assert (outbox / "CT" / "ct" / "1.dcm").exists()


def test_an_inbox_inside_what_the_outbox_holds_is_refused(inbox: Path, outbox: Path) -> None:
    sort("--layout", "{class}/sub/{sop_uid}.dcm", inbox, outbox)
    (outbox / "CT").rename(outbox / "TOMO")
    manifest = outbox / "manifest.csv"
    manifest.write_text(manifest.read_text().replace(",CT/", ",TOMO/"))
    ran = sort("--move", outbox / "TOMO", outbox)
    assert ran.code == 2
    assert "received its folder 'TOMO'" in ran.err


def test_equal_inode_numbers_on_two_devices_are_two_files(tmp_path: Path) -> None:
    inbox, outbox = world(tmp_path)
    operation = step(inbox, Verb.MOVE, "a/1", target="outbox/CT/1")
    (outbox / "CT/1").write_bytes(FILES["a/1"][:70])
    torn = (outbox / "CT/1").stat()
    values = {name: getattr(operation, name) for name in operation.__slots__}
    lying = type(operation)(**values | {"inode": torn.st_ino, "device": torn.st_dev + 1})
    result = checked_again(inbox, outbox, lying, Files())
    assert result is not None
    assert result.outcome is Outcome.CONFLICT


def test_a_foreign_beginning_of_our_file_stays(tmp_path: Path) -> None:
    inbox, outbox = world(tmp_path)
    operation = step(inbox, Verb.MOVE, "a/1", target="outbox/CT/1")
    make_files(outbox, {"CT/1": FILES["a/1"][:20], "CT/.dicomsort-run-0.part": FILES["a/1"]})
    (outbox / "CT/1").chmod(0o644)
    result = checked_again(inbox, outbox, operation, NoLinks())
    assert result is not None
    assert result.outcome is Outcome.CONFLICT
    assert (outbox / "CT/1").read_bytes() == FILES["a/1"][:20]


def test_rows_of_other_runs_survive_a_resume(tmp_path: Path) -> None:
    at = last_call(tmp_path, "write")  # the summary's; the manifest's is the one before the last journal line
    for back in range(8):
        inbox, outbox = world(tmp_path / str(back))
        crashed(inbox, outbox, at - back, Verb.COPY)
        make_dicom(tmp_path / f"other{back}" / "1.dcm")
        assert sort(tmp_path / f"other{back}", outbox).code in {0, 3}  # 3: the run that died is not finished
        run("resume", outbox)
        sources = [row["source"] for row in rows(outbox)]
        assert sources.count("1.dcm") == 1
        assert len(sources) == len(set(sources))
        assert len(sources) in {1, 1 + 4}


@pytest.mark.parametrize("verb", [Verb.MOVE, Verb.COPY])
def test_undo_of_a_run_that_was_cut_short(tmp_path: Path, verb: Verb) -> None:
    for at in count():
        inbox, outbox = world(tmp_path / str(at))
        before, files = facts(inbox), CrashingFiles(at)
        with suppress(Crash):
            start(files, inbox, outbox, verb)
        if not files.dead:  # threads make a call more or less from run to run
            break
        ran = run("undo", outbox)
        assert ran.code == 0 or "sealed" in ran.err or "none to undo" in ran.err or "expected an outbox" in ran.err
        check_nothing_lost(inbox, outbox)
        assert facts(inbox) == before
        left = {path for path in read_tree(outbox) if not path.startswith((".dicomsort/", "manifest.csv"))}
        assert left == {"CT/foreign", "MRI/s/other"}
    assert at > 30


def test_undo_and_resume_wait_for_the_inbox(inbox: Path, outbox: Path, tmp_path: Path) -> None:
    before = read_tree(inbox)
    sort("--move", "--settle", 0, inbox, outbox)
    inbox.rename(tmp_path / "unmounted")
    ran = run("undo", outbox)
    assert ran.code == 1
    assert "expected its inbox" in ran.err
    (tmp_path / "unmounted").rename(inbox)
    assert run("undo", outbox).code == 0
    assert read_tree(inbox) == before


def test_an_undo_that_was_cut_short_is_resumed_not_repeated(tmp_path: Path) -> None:
    (trial, trial_outbox), (inbox, outbox) = world(tmp_path / "trial"), world(tmp_path)
    for one, other in ((trial, trial_outbox), (inbox, outbox)):
        start(Files(), one, other, Verb.MOVE)
    traced = CrashingFiles(-1)
    undo(quiet(trial_outbox, traced))
    with pytest.raises(Crash):
        undo(quiet(outbox, CrashingFiles(traced.called.index("link") + 1)))
    ran = run("undo", outbox)
    assert ran.code == 2
    assert "was cut short: `dicomsort resume` finishes it" in ran.err
    assert run("resume", outbox).code == 0
    assert read_tree(inbox) == FILES


def test_undoing_the_removal_of_a_duplicate_keeps_the_kept_file_known(inbox: Path, outbox: Path) -> None:
    sort(inbox, outbox)
    sort("--move", "--settle", 0, "--duplicates", "remove", inbox, outbox)
    assert run("undo", outbox).code == 0
    assert len(read_tree(inbox)) == 6
    assert json.loads(run("verify", "--json", outbox).out)["whole"] == 5


def test_the_source_that_was_swapped_after_the_check_is_not_placed(tmp_path: Path) -> None:
    inbox, outbox = world(tmp_path)
    operation = step(inbox, Verb.MOVE, "a/1", target="outbox/CT/1")
    (inbox / "a/2").rename(inbox / "a/1")
    placer = Placer(Files(), Roots(str(inbox), str(outbox)), "run", Replay.empty(1))
    result = placer.apply(operation)
    assert getattr(result, "outcome", None) is Outcome.CHANGED
    assert not (outbox / "CT/1").exists()
    assert (inbox / "a/1").read_bytes() == FILES["a/2"]


def test_one_uid_in_two_studies_collides_across_runs_too(inbox: Path, outbox: Path) -> None:
    make_dicom(inbox / "mr2.dcm", study=7, modality="MR", SOPInstanceUID="1.2.3.4")
    sort(inbox, outbox)
    make_dicom(inbox / "mr3.dcm", study=8, modality="MR", SOPInstanceUID="1.2.3.4")
    assert sort(inbox, outbox).code == 3
    assert by_source(outbox)["mr3.dcm"]["reason"] == "uid-collision"


def test_odd_names_are_found_again(tmp_path: Path, outbox: Path) -> None:
    inbox = tmp_path / "inbox"
    inbox.mkdir()
    for name in (b"latin-\xe9.dcm", b"cr\rhere.dcm", b"literal\\x41.dcm", b"back\\slash.dcm", b"line\nfeed.dcm"):
        (inbox / os.fsdecode(name)).write_bytes(name)
    sort(inbox, outbox)
    nothing = {"missing": [], "different": [], "unreadable": [], "damaged": [], "runs": [], "unfinished": []}
    assert json.loads(run("verify", "--json", outbox).out) == {"whole": 5, **nothing}
    assert sort(inbox, outbox).code == 0
    assert {row["status"] for row in rows(outbox)[5:]} == {"duplicate"}
    assert len(list(placed(outbox))) == 5


def test_a_manifest_that_a_spreadsheet_saved_again(inbox: Path, outbox: Path) -> None:
    sort(inbox, outbox)
    manifest = outbox / "manifest.csv"
    manifest.write_bytes(b"\xef\xbb\xbf" + manifest.read_bytes())
    assert sort(inbox, outbox).code == 0
    assert "duplicate" in {row["status"] for row in rows(outbox)}
    manifest.write_text("a,b\n1,2\n")
    ran = sort(inbox, outbox)
    assert ran.code == 1
    assert "manifest.csv: expected the columns run_id," in ran.err


def test_odd_things_in_the_state_folder_do_no_harm(inbox: Path, outbox: Path) -> None:
    sort(inbox, outbox)
    make_files(outbox / ".dicomsort" / "runs", {"stray": "x"})
    next((outbox / ".dicomsort" / "runs").glob("*/summary.json")).write_text("")
    assert json.loads(run("runs", "--json", outbox).out)[0]["state"] == "unfinished"
    assert run("resume", outbox).code == 0
    assert json.loads(run("runs", "--json", outbox).out)[0]["state"] == "finished"


def test_paths_too_long_cost_their_own_file(tmp_path: Path, outbox: Path) -> None:
    inbox = tmp_path / "inbox"
    deep = inbox
    for _ in range(15):
        deep = deep / ("d" * 250)
    deep.mkdir(parents=True)
    name = "x" * (4090 - len(str(deep)) - 5) + ".dcm"
    (deep / name[-200:]).write_bytes(b"no header")
    ran = sort(inbox, tmp_path / ("o" * 200))
    assert ran.code == 3
    assert "Traceback" not in ran.err
    assert [row["action"] for row in rows(tmp_path / ("o" * 200))] == ["left"]
