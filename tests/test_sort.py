"""Every option of ``dicomsort sort``, as the interface names them."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path

import pytest
from building import make_dicom, make_files, read_tree, uid
from command import by_source, placed, rows, run, sort

COLUMNS = (
    "run_id,source,destination,action,status,class,reason,decided_by,confidence,header_class,pixel_class,"
    "pixel_confidence,modality,sop_class_uid,study_uid,series_uid,sop_uid,kind,size,sha256,message"
)


def name(study: int, instance: int = 1) -> str:
    return f"{uid(study)}/{uid(study, 1)}/{uid(study, 1, instance)}.dcm"


SORTED = {f"CT/{name(1, 1)}", f"CT/{name(1, 2)}", f"MRI/{name(2)}", f"XRAY/{name(3)}", "OTHER/US/us.dcm"}


def test_copy_is_the_default_and_keeps_mode_and_time(inbox: Path, outbox: Path) -> None:
    before = read_tree(inbox)
    source = inbox / "mr.dcm"
    source.chmod(0o640)
    os.utime(source, ns=(1, 1_234_567_890_123_456_789))
    ran = sort(inbox, outbox)
    assert (ran.code, ran.err) == (0, "")
    assert set(placed(outbox)) == SORTED
    assert read_tree(inbox) == before
    copied = (outbox / "MRI" / name(2)).stat()
    assert (copied.st_mode & 0o777, copied.st_mtime_ns) == (0o640, 1_234_567_890_123_456_789)
    assert copied.st_nlink == 1
    assert (outbox / "manifest.csv").read_text().splitlines()[0] == COLUMNS
    assert (outbox / ".dicomsort").stat().st_mode & 0o777 == 0o700


def test_the_manifest_tells_of_each_file_once(inbox: Path, outbox: Path) -> None:
    sort(inbox, outbox)
    assert len(rows(outbox)) == 6
    row = by_source(outbox)["ct/2"]
    assert row["destination"] == f"CT/{name(1, 2)}"
    assert (row["action"], row["status"], row["class"], row["reason"]) == ("copied", "sorted", "CT", "header")
    assert (row["decided_by"], row["header_class"], row["modality"], row["kind"]) == ("header", "CT", "CT", "dicom")
    assert int(row["size"]) == (inbox / "ct" / "2").stat().st_size
    assert len(row["sha256"]) == 64
    ignored = by_source(outbox)["notes.txt"]
    assert (ignored["status"], ignored["action"], ignored["destination"]) == ("ignored", "left", "")


def test_move_leaves_only_what_is_no_image(inbox: Path, outbox: Path) -> None:
    before = set(read_tree(inbox).values())
    assert sort("--move", "--settle", 0, inbox, outbox).code == 0
    assert list(read_tree(inbox)) == ["notes.txt"]
    assert {(outbox / path).read_bytes() for path in SORTED} | {b"hello"} == before


def test_link_gives_a_second_name(inbox: Path, outbox: Path) -> None:
    assert sort("--link", inbox, outbox).code == 0
    assert (outbox / "MRI" / name(2)).samefile(inbox / "mr.dcm")


@pytest.mark.skipif(not os.access("/dev/shm", os.W_OK), reason="no second file system at /dev/shm")  # noqa: S108
def test_link_across_file_systems_fails_with_the_reason_and_copies_nothing(inbox: Path) -> None:
    outbox = Path("/dev/shm", f"dicomsort-test-{os.getpid()}")  # noqa: S108
    try:
        assert "hard link refused" in sort("--dry-run", "--link", inbox, outbox).err
        ran = sort("--link", inbox, outbox)
        assert ran.code == 3
        assert list(placed(outbox)) == []
        row = by_source(outbox)["mr.dcm"]
        assert (row["status"], row["action"]) == ("failed", "left")
        assert "hard link refused" in row["message"]
        assert sort("--move", "--settle", 0, inbox, outbox).code == 0
        assert set(placed(outbox)) == SORTED
        assert run("undo", outbox).code == 0
        assert len(read_tree(inbox)) == 6
    finally:
        shutil.rmtree(outbox, ignore_errors=True)


def test_two_modes_at_once_are_wrong_usage(inbox: Path, outbox: Path) -> None:
    ran = sort("--move", "--link", inbox, outbox)
    assert ran.code == 2
    assert "expected one of --copy, --move, --link, received --move and --link" in ran.err
    assert not outbox.exists()


def test_dry_run_prints_the_plan_and_changes_nothing(inbox: Path, outbox: Path) -> None:
    before = read_tree(inbox)
    ran = sort("--dry-run", "--move", "--settle", 0, inbox)
    assert ran.code == 0
    assert f"move      mr.dcm -> MRI/{name(2)}  [header]" in ran.out
    assert sort("--dry-run", inbox, outbox).code == 0
    assert not outbox.exists()
    assert read_tree(inbox) == before


def test_dry_run_ends_as_the_real_run_would(inbox: Path, outbox: Path) -> None:
    make_files(inbox, {"broken.dcm": "nothing"})
    assert sort("--dry-run", inbox).code == 3
    assert sort(inbox, outbox).code == 3
    tree = read_tree(outbox)
    assert sort("--dry-run", inbox, outbox).code == 0
    assert read_tree(outbox) == tree


def test_held_ok_turns_3_into_0(inbox: Path, outbox: Path) -> None:
    make_files(inbox, {"broken.dcm": "nothing"})
    assert sort("--held-ok", inbox, outbox).code == 0
    assert "UNREADABLE/broken.dcm" in placed(outbox)


def test_the_second_night_copies_nothing_and_says_so(inbox: Path, outbox: Path) -> None:
    make_files(inbox, {"broken.dcm": "nothing"})
    sort(inbox, outbox)
    tree = set(placed(outbox))
    ran = sort(inbox, outbox)
    assert ran.code == 0
    assert "6 files are duplicates of what the outbox holds; nothing was placed twice" in ran.out
    assert set(placed(outbox)) == tree
    assert by_source(outbox)["mr.dcm"]["destination"] == f"MRI/{name(2)}"


@pytest.mark.parametrize(
    ("layout", "expected"),
    [
        ("uid", f"MRI/{name(2)}"),
        ("keep", "MRI/mr.dcm"),
        ("readable", "MRI/20260102_MR_{study}/1_T1_axial_{series}/1_{sop}.dcm"),
        ("{class}/{study_date}/{body_part}-{instance_number}.dcm", "MRI/20260102/HEAD-1.dcm"),
        ("{class}/{series_description}/{sop_uid}.dcm", f"MRI/T1_axial/{uid(2, 1, 1)}.dcm"),
    ],
)
def test_layouts(tmp_path: Path, outbox: Path, layout: str, expected: str) -> None:
    tags = {"StudyDate": "20260102", "SeriesDescription": "../T1/axial", "BodyPartExamined": "HEAD"}
    make_dicom(tmp_path / "inbox" / "mr.dcm", study=2, modality="MR", **tags)
    assert sort("--layout", layout, tmp_path / "inbox", outbox).code == 0
    keys = {"study": key(uid(2)), "series": key(uid(2, 1)), "sop": key(uid(2, 1, 1))}
    for token, value in keys.items():
        expected = expected.replace(f"{{{token}}}", value)
    assert list(placed(outbox)) == [expected]


def key(text: str) -> str:
    import hashlib

    return hashlib.sha256(text.encode()).hexdigest()[:8]


@pytest.mark.parametrize(
    "layout", ["{class}/{colour}.dcm", "{class}", "{sop_uid}.dcm", "{class}/../{sop_uid}", "{class}/{"]
)
def test_a_layout_that_is_none_is_wrong_usage(inbox: Path, outbox: Path, layout: str) -> None:
    ran = sort("--layout", layout, inbox, outbox)
    assert ran.code == 2
    assert "--layout: expected" in ran.err
    assert repr(layout) in ran.err
    assert not outbox.exists()


def test_settle_leaves_a_series_whole(inbox: Path, outbox: Path) -> None:
    for path in inbox.rglob("*"):
        os.utime(path, (1, 1))
    now = time.time()
    os.utime(inbox / "ct" / "2", (now, now))
    ran = sort("--settle", 3600, inbox, outbox)
    assert ran.code == 0
    assert {by_source(outbox)[path]["status"] for path in ("ct/1.dcm", "ct/2")} == {"settling"}
    assert by_source(outbox)["mr.dcm"]["status"] == "sorted"
    assert "--settle 0" in ran.out


def test_move_settles_for_a_minute_unless_told_otherwise(inbox: Path, outbox: Path) -> None:
    sort("--move", inbox, outbox)
    assert {row["status"] for row in rows(outbox)} == {"settling", "ignored"}


def test_duplicates_stay_in_the_inbox_or_are_removed_and_come_back(inbox: Path, outbox: Path) -> None:
    shutil.copy2(inbox / "mr.dcm", inbox / "zz again.dcm")
    sort("--move", "--settle", 0, inbox, outbox)
    row = by_source(outbox)["zz again.dcm"]
    assert (row["status"], row["action"], row["destination"]) == ("duplicate", "left", f"MRI/{name(2)}")
    assert (inbox / "zz again.dcm").exists()
    content, mtime = (inbox / "zz again.dcm").read_bytes(), (inbox / "zz again.dcm").stat().st_mtime_ns
    assert sort("--move", "--settle", 0, "--duplicates", "remove", inbox, outbox).code == 0
    assert by_source(outbox)["zz again.dcm"]["action"] == "removed"
    assert not (inbox / "zz again.dcm").exists()
    assert run("undo", outbox).code == 0
    assert (inbox / "zz again.dcm").read_bytes() == content
    assert (inbox / "zz again.dcm").stat().st_mtime_ns == mtime


@pytest.mark.parametrize("damage", ["emptied", "edited", "a folder"])
@pytest.mark.parametrize("source", ["mr.dcm", "broken.dcm"])
def test_what_lost_its_content_in_the_outbox_is_no_original(
    inbox: Path, outbox: Path, source: str, damage: str
) -> None:
    make_files(inbox, {"broken.dcm": "no header"})
    sort(inbox, outbox)
    kept = outbox / by_source(outbox)[source]["destination"]
    content = kept.read_bytes()
    kept.unlink()
    if damage == "a folder":
        kept.mkdir()
    else:
        kept.write_bytes(b"" if damage == "emptied" else content[:-1] + bytes([content[-1] ^ 1]))
    assert sort(inbox, outbox).code == 3
    row = by_source(outbox)[source]
    assert (row["action"], row["status"]) == ("copied", "conflict" if source == "mr.dcm" else "unreadable")
    assert (outbox / row["destination"]).read_bytes() == content
    assert sort(inbox, outbox).code == 0
    assert by_source(outbox)[source]["status"] == "duplicate"


def test_what_kept_size_and_time_is_not_read_again(inbox: Path, outbox: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sort(inbox, outbox)
    read: list[str] = []
    monkeypatch.setattr("dicomsort.sorting.outbox.sha256_of", lambda path: read.append(path) or "")
    assert sort(inbox, outbox).code == 0
    assert read == []


def test_duplicates_are_removed_only_by_a_move(inbox: Path, outbox: Path) -> None:
    ran = sort("--duplicates", "remove", inbox, outbox)
    assert ran.code == 2
    assert "expected --move with it, received --copy" in ran.err


def test_prune_empty_removes_what_the_move_emptied_and_undo_makes_it_again(inbox: Path, outbox: Path) -> None:
    (inbox / "was empty").mkdir()
    (inbox / "ct").chmod(0o750)
    sort("--move", "--settle", 0, "--prune-empty", inbox, outbox)
    assert sorted(path.name for path in inbox.iterdir()) == ["notes.txt", "was empty"]
    assert run("undo", outbox).code == 0
    assert (inbox / "ct").stat().st_mode & 0o777 == 0o750
    assert (inbox / "ct" / "1.dcm").exists()


def test_json_is_one_object_and_nothing_else(inbox: Path, outbox: Path) -> None:
    ran = sort("--json", inbox, outbox)
    summary = json.loads(ran.out)
    assert summary["found"] == 6
    assert summary["statuses"] == {"sorted": 4, "other": 1, "ignored": 1}
    assert sum(summary["statuses"].values()) == summary["found"]
    assert summary["classes"] == {"CT": 2, "MRI": 1, "XRAY": 1, "OTHER": 1}
    assert not {"files", "in_review", "inside", "openable"} & set(summary)  # which it only counts by
    assert json.loads((outbox / ".dicomsort" / "runs" / summary["run_id"] / "summary.json").read_text())["found"] == 6


def test_quiet_says_nothing(inbox: Path, outbox: Path) -> None:
    ran = sort("--quiet", inbox, outbox)
    assert (ran.code, ran.out, ran.err) == (0, "", "")


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_log(inbox: Path, outbox: Path, tmp_path: Path, log_format: str) -> None:
    make_files(inbox, {"broken.dcm": "nothing"})
    sort("--log-file", tmp_path / "log", "--log-format", log_format, inbox, outbox)
    lines = (tmp_path / "log").read_text().splitlines()
    assert len(lines) == 4
    assert "dicomsort log" in lines[0]
    assert "broken.dcm" in lines[2]
    if log_format == "json":
        assert json.loads(lines[3])["found"] == 7


def test_flag_beats_environment_beats_file(
    inbox: Path, outbox: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = tmp_path / "settings.toml"
    settings.write_text('layout = "keep"\nmode = "link"\nheld-ok = true\n')
    monkeypatch.setenv("DICOMSORT_MODE", "move")
    monkeypatch.setenv("DICOMSORT_SETTLE", "0")
    assert sort("--config", settings, "--copy", inbox, outbox).code == 0
    assert "MRI/mr.dcm" in placed(outbox)
    assert {row["action"] for row in rows(outbox)} == {"copied", "left"}
    settings.write_text("colour = 1\n")
    ran = sort("--config", settings, inbox, outbox)
    assert ran.code == 2
    assert "'colour'" in ran.err


@pytest.mark.parametrize("engine", ["serial", "processes"])
def test_engines_agree(sample_inbox: Path, tmp_path: Path, engine: str) -> None:
    outbox = tmp_path / engine
    ran = sort("--engine", engine, "--workers", 2, "--evidence", "auto", sample_inbox, outbox)
    assert ran.code == 3
    other = tmp_path / "other"
    sort("--engine", "serial", "--evidence", "auto", sample_inbox, other)
    assert set(placed(outbox)) == set(placed(other))


@pytest.mark.parametrize("evidence", ["auto", "header", "pixels"])
def test_evidence(sample_inbox: Path, outbox: Path, evidence: str) -> None:
    sort("--evidence", evidence, sample_inbox, outbox)
    found = by_source(outbox)
    ct, png = found["from-modality/ct/abdomen 0001.dcm"], found["mail/CT head.png"]
    assert bool(ct["header_class"]) == (evidence != "pixels")
    assert bool(ct["pixel_class"]) == (evidence != "header")
    if evidence == "header":
        assert png["reason"] == "no-evidence"
        assert png["destination"] == "REVIEW/no-evidence/mail/CT head.png"


def test_a_model_of_other_classes_sorts_by_pixels_alone_and_says_so(sample_inbox: Path, tmp_path: Path) -> None:
    from dicomsort.bundle import default_path

    bundle = tmp_path / "bundle"
    shutil.copytree(default_path(), bundle)
    spec = json.loads((bundle / "bundle.json").read_text())
    spec["labels"], spec["header_classes"] = ["CHEST", "HAND", "KNEE", "SKULL"], {}
    spec["training"]["images"] = dict.fromkeys(spec["labels"], 1)
    spec["thresholds"]["decide"] = 0.95
    (bundle / "bundle.json").write_text(json.dumps(spec))
    ran = sort("--model", bundle, "--evidence", "auto", sample_inbox, tmp_path / "outbox")
    assert "sorted by pixels alone" in ran.out
    classes = {row["class"] for row in rows(tmp_path / "outbox") if row["status"] == "sorted"}
    assert classes
    assert classes <= set(spec["labels"])
