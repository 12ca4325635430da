"""Figures for Prometheus: the format, what they say, and that no reader meets a half or loses another file."""

from __future__ import annotations

import errno
import os
import re
from contextlib import suppress
from pathlib import Path

import pytest
from building import make_dicom, make_files
from command import run, sort
from crashing import Crash, CrashingFiles
from reviewing import held_outbox
from test_faults import Broken
from watching import Timer, Watch, age, end, wait_until, watching

from dicomsort.errors import UsageError
from dicomsort.files import Files
from dicomsort.records import Row
from dicomsort.report import Summary
from dicomsort.report.metrics import FAMILIES, Figures, set_run_metrics, write_metrics

NAME = r"[a-zA-Z_:][a-zA-Z0-9_:]*"
LABEL = r'[a-zA-Z_][a-zA-Z0-9_]*="(?:[^"\\\n]|\\\\|\\"|\\n)*"'
SAMPLE = re.compile(rf"({NAME})(?:\{{((?:{LABEL})(?:,{LABEL})*)\}})? (-?[0-9]+(?:\.[0-9]+)?(?:e[+-]?[0-9]+)?)")


def parse(text: str) -> dict[str, dict[str, float]]:
    """Family -> labels -> value, by the rules of the text exposition format 0.0.4; AssertionError where one is broken.

    https://prometheus.io/docs/instrumenting/exposition_formats/
    """
    assert text.endswith("\n")
    families: dict[str, dict[str, float]] = {}
    current = kind = ""
    for line in text[:-1].split("\n"):
        if found := re.fullmatch(rf"# HELP ({NAME}) ((?:[^\\]|\\\\|\\n)*)", line):
            current, kind = found[1], ""
            assert current not in families, "a family stands in one place"
            families[current] = {}
        elif found := re.fullmatch(rf"# TYPE ({NAME}) (counter|gauge)", line):
            assert (found[1], kind, families[current]) == (current, "", {})
            kind = found[2]
        else:
            found = SAMPLE.fullmatch(line)
            assert found, line
            name, labels, value = found.groups()
            assert (name, bool(kind)) == (current, True)
            assert (kind == "counter") == name.endswith("_total")
            assert (labels or "") not in families[name], "a sample stands once"
            families[name][labels or ""] = float(value)
    assert all(families.values())
    return families


def test_the_parser_is_strict() -> None:
    good = '# HELP a_total A.\n# TYPE a_total counter\na_total{x="\\"\\\\\\n"} 1\n'
    assert parse(good) == {"a_total": {'x="\\"\\\\\\n"': 1.0}}
    broken = [good.replace(*change) for change in ((" 1", ""), ("# TYPE", "#TYPE"), ('\\"', "\\q"), ("x=", "1x="))]
    for bad in (good[:-1], good * 2, *broken):
        with pytest.raises(AssertionError):
            parse(bad)


def test_every_family_and_odd_values_can_be_read(tmp_path: Path) -> None:
    figures = Figures()
    odd = 'quo"te back\\slash line\nfeed \udcff ü'
    for name in FAMILIES:
        figures.set(name, 0.25, **{"class": odd, "to": "A@b:1"})
        figures.add(name, 3, to="C@d:1")
    write_metrics(Files(), tmp_path / "m", figures)
    found = parse((tmp_path / "m").read_text(encoding="utf-8"))
    assert list(found) == list(FAMILIES)
    assert all(set(values.values()) == {0.25, 3.0} for values in found.values())
    assert all(help_.endswith(".") for _, help_ in FAMILIES.values())


def test_sort_tells_of_its_run_and_of_what_is_left(inbox: Path, outbox: Path, tmp_path: Path) -> None:
    age(inbox / "notes.txt", 500)
    file = tmp_path / "sort.prom"
    assert sort("--move", "--settle", 0, "--metrics", file, inbox, outbox).code == 0
    found = parse(file.read_text())
    assert found["dicomsort_last_run_files"] == {
        'class="",status="ignored"': 1,
        'class="CT",status="sorted"': 2,
        'class="MRI",status="sorted"': 1,
        'class="OTHER",status="other"': 1,
        'class="XRAY",status="sorted"': 1,
    }
    assert found["dicomsort_inbox_files"] == {"": 1}
    assert found["dicomsort_inbox_oldest_file_age_seconds"][""] >= 500
    assert found["dicomsort_last_success_timestamp_seconds"][""] > 1.7e9
    assert "dicomsort_rounds_total" not in found
    (inbox / "notes.txt").unlink()
    sort("--move", "--metrics", file, inbox, outbox)
    found = parse(file.read_text())
    assert (found["dicomsort_inbox_files"], found["dicomsort_inbox_oldest_file_age_seconds"]) == ({"": 0}, {"": 0})


def test_what_waits_in_review_is_counted_after_each_run_and_each_round(tmp_path: Path) -> None:
    file = tmp_path / "sort.prom"
    outbox = held_outbox(tmp_path, "--move", "--settle", "0", "--metrics", str(file))
    held = sorted((outbox / "REVIEW").rglob("*.*"))
    assert len(held) > 1
    assert parse(file.read_text())["dicomsort_review_files"] == {"": len(held)}
    seen = []

    def step() -> None:
        seen.append(parse(file.read_text())["dicomsort_review_files"][""])
        held[len(seen)].unlink()  # a person took it

    service, _, _ = Watch(tmp_path / "inbox", outbox).service(Timer(step, step), metrics=file)
    service.run()
    assert seen == [len(held), len(held) - 1]


def test_a_run_that_fails_leaves_the_last_success(inbox: Path, outbox: Path, tmp_path: Path) -> None:
    file = tmp_path / "sort.prom"
    sort("--metrics", file, inbox, outbox)
    before = file.read_bytes()
    make_dicom(inbox / "new.dcm", study=9)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dicomsort.files.Files", lambda: Broken("write", 3, errno.ENOSPC))
        assert sort("--metrics", file, inbox, outbox).code == 1
    assert file.read_bytes() == before
    assert sort("--dry-run", "--metrics", file, inbox, outbox).code == 0
    assert file.read_bytes() == before


def test_figures_that_cannot_be_written_are_no_failure_of_the_run(inbox: Path, outbox: Path, tmp_path: Path) -> None:
    file = tmp_path / "sort.prom"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dicomsort.files.Files", lambda: Broken("replace", 1, errno.ENOSPC))  # not the manifest
        ran = sort("--metrics", file, inbox, outbox)
    assert (ran.code, ran.err) == (0, "dicomsort: the metrics could not be written: No space left on device\n")
    assert [path.name for path in tmp_path.iterdir() if "prom" in path.name] == []


def test_the_service_counts_over_its_rounds(inbox: Path, outbox: Path, tmp_path: Path) -> None:
    file = tmp_path / "watch.prom"
    for path in inbox.rglob("*"):
        age(path, 600)
    watch = Watch(inbox, outbox, mode="copy", settle=60)
    seen: list[dict[str, dict[str, float]]] = []

    def step() -> None:
        seen.append(parse(file.read_text()))
        make_dicom(inbox / f"new {len(seen)}.dcm", study=9, instance=len(seen))
        watch.now += 20 * 10**9

    def later() -> None:
        watch.now += 10**11

    service, _, _ = watch.service(Timer(step, step, step, later, later), metrics=file)
    service.run()
    first, second, third = seen
    assert first["dicomsort_rounds_total"]['result="sorted"'] == 1
    assert (first["dicomsort_inbox_files"], first["dicomsort_inbox_waiting_files"]) == ({"": 6}, {"": 0})
    assert second["dicomsort_inbox_waiting_files"] == {"": 1}
    assert third["dicomsort_inbox_waiting_files"] == {"": 2}
    assert third["dicomsort_inbox_oldest_waiting_age_seconds"][""] >= 20
    last = parse(file.read_text())
    assert last["dicomsort_rounds_total"] == {
        'result="failed"': 0, 'result="idle"': 4, 'result="locked"': 0, 'result="sorted"': 2, 'result="stopped"': 0,
    }  # fmt: skip
    assert last["dicomsort_files_total"]['class="CT",status="sorted"'] == 5
    assert last["dicomsort_last_run_files"] == {'class="CT",status="sorted"': 3}
    assert last["dicomsort_inbox_waiting_files"] == {"": 0}


def test_a_figure_that_cannot_be_written_is_told_once_and_no_failure(
    inbox: Path, outbox: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "gone"
    folder.mkdir()
    service, shown, complaints = Watch(inbox, outbox).service(
        Timer(folder.rmdir, lambda: None, folder.mkdir), metrics=folder / "m.prom"
    )
    (folder / "m.prom").unlink(missing_ok=True)
    service.files = Emptying()
    service.run()
    assert (len(shown), complaints) == (1, [])
    assert [r.message for r in caplog.records].count("metrics could not be written") == 1
    assert parse((folder / "m.prom").read_text())


class Emptying(Files):
    """Leaves nothing in its folder after the first time, so that it can be removed."""

    done = 0

    def replace(self, source: str, target: str) -> None:
        super().replace(source, target)
        self.done += 1
        if self.done == 1:
            Path(target).unlink()


def test_a_crash_at_any_change_leaves_the_old_figures_or_the_new(tmp_path: Path) -> None:
    file = tmp_path / "m.prom"
    old, new = Figures(), Figures()
    old.set("dicomsort_info", 1, version="old")
    new.set("dicomsort_info", 1, version="new")
    whole = CrashingFiles(-1)
    write_metrics(whole, file, old)
    kept = file.read_text()
    for at in range(len(whole.called)):
        for torn in (0, 1, 30):
            write_metrics(Files(), file, old)
            with suppress(Crash):
                write_metrics(CrashingFiles(at, torn=torn), file, new)
            assert file.read_text() in {kept, new.text()}
            write_metrics(Files(), file, new)
            assert [path.name for path in tmp_path.iterdir()] == ["m.prom"]
            assert file.read_text() == new.text()


def test_a_reader_beside_the_service_never_meets_a_half(tmp_path: Path, outbox: Path) -> None:
    inbox, file = tmp_path / "inbox", tmp_path / "m.prom"
    make_dicom(inbox / "1.dcm")
    read: set[str] = set()

    def has_read_many() -> bool:
        read.add(file.read_text())
        return len(read) > 40

    with watching("--settle", 0, "--metrics", file, inbox, outbox, every=0) as process:
        wait_until(process, file.exists)
        wait_until(process, has_read_many)
        assert end(process) == (0, "")
    assert all("dicomsort_rounds_total" in parse(text) for text in read)


@pytest.mark.parametrize("content", ["DICM", "# HELP other_metric x\n", "\0" * 200])
def test_another_file_is_never_replaced(tmp_path: Path, content: str) -> None:
    make_files(tmp_path, {"m.prom": content})
    with pytest.raises(UsageError, match="expected a new file or earlier figures"):
        write_metrics(Files(), tmp_path / "m.prom", Figures())
    assert (tmp_path / "m.prom").read_text() == content
    assert len(list(tmp_path.iterdir())) == 1


def test_what_is_no_file_is_refused_and_a_link_is_followed(tmp_path: Path, inbox: Path, outbox: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "real.prom").write_text("")
    (tmp_path / "link.prom").symlink_to("real.prom")
    for name in ("pipe", "inbox"):
        assert run("sort", "--metrics", tmp_path / name, inbox, outbox).code == 2
    assert sort("--metrics", tmp_path / "link.prom", inbox, outbox).code == 0
    assert (tmp_path / "link.prom").is_symlink()
    assert parse((tmp_path / "real.prom").read_text())


def test_figures_are_readable_for_others(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        write_metrics(Files(), tmp_path / "m.prom", Figures())
    finally:
        os.umask(before)
    assert (tmp_path / "m.prom").stat().st_mode & 0o777 == 0o644


def test_a_run_is_told_by_status_and_class() -> None:
    counted, figures = Summary(), Figures()
    for row in (Row("1", status="sorted", class_="CT", size=5), Row("2", status="sorted", class_="CT", size=6)):
        counted.count(row)
    set_run_metrics(figures, counted, 1.23456)
    assert 'dicomsort_last_run_files{class="CT",status="sorted"} 2\n' in figures.text()
    set_run_metrics(figures, Summary(), 0.5)
    assert "dicomsort_last_run_files{" not in figures.text()
    assert "dicomsort_last_run_duration_seconds 0.5\n" in figures.text()
