"""A run is cut short, and the resume cannot see a folder of the inbox: whole copies are kept, nothing torn stays."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import pytest
from building import make_dicom, read_tree
from command import by_source, rows, run, sort
from crashing import FixedModes, NoLinks, OtherDevice
from test_interrupted_runs import dies

from dicomsort.files import Files
from dicomsort.sorting.runs import all_runs


@pytest.fixture
def inbox(tmp_path: Path) -> Path:
    for number in range(2):
        make_dicom(tmp_path / f"inbox/a/{number}.dcm", instance=number)
    return tmp_path / "inbox"


@contextlib.contextmanager
def away(folder: Path, how: str) -> Iterator[None]:
    """Take a folder away by another name; ``how``: with nothing, or a link, in its place."""
    kept = folder.with_name("kept")
    folder.rename(kept)
    if how == "link":
        folder.symlink_to(kept)
    yield
    if how == "link":
        folder.unlink()
    kept.rename(folder)


def images(*folders: Path) -> set[bytes]:
    return {path.read_bytes() for folder in folders for path in folder.rglob("*.dcm")}


@pytest.mark.parametrize("how", ["gone", "link"])
@pytest.mark.parametrize(
    ("base", "mode"),
    [(NoLinks, "--copy"), (NoLinks, "--move"), (FixedModes, "--move"), (OtherDevice, "--move")],
)
def test_what_a_sort_had_copied_is_placed_though_its_source_is_not_seen(
    tmp_path: Path, inbox: Path, base: Callable[[], Files], mode: str, how: str
) -> None:
    before, placed = read_tree(inbox), 0
    for at in range(12, 200, 5):
        outbox = tmp_path / str(at) / "outbox"
        died = dies(at, lambda outbox=outbox: sort(mode, "--settle", 0, inbox, outbox), base, 40)  # type: ignore[misc]
        if not died.dead:
            break
        assert images(outbox, inbox) >= set(before.values())
        with mock.patch("dicomsort.files.Files", base):
            if all_runs(str(outbox)):
                with away(inbox / "a", how):
                    resumed = run("resume", outbox)
                    assert resumed.code in {0, 3} or "before its plan was sealed" in resumed.err
                    assert images(outbox) <= set(before.values())  # nothing torn
                    assert not list(outbox.rglob("*.part"))
                    told = by_source(outbox) if (outbox / "manifest.csv").exists() else {}
                    found = [row for row in told.values() if row["action"] != "left"]
                    assert sorted(row["destination"] for row in found) == sorted(
                        str(path.relative_to(outbox)) for path in outbox.rglob("*.dcm")
                    )
                    placed += len(found)
                assert run("undo", outbox).code == 0
        assert read_tree(inbox) == before
        assert not images(outbox)
    assert placed > 5


@pytest.mark.parametrize("how", ["gone", "link"])
@pytest.mark.parametrize("base", [NoLinks, OtherDevice])
def test_what_an_undo_left_where_its_resume_could_not_look_is_cleared_by_the_next(
    tmp_path: Path, inbox: Path, base: Callable[[], Files], how: str
) -> None:
    before, deaths = read_tree(inbox), 0
    for at in range(0, 120, 5):
        outbox = tmp_path / str(at) / "outbox"
        with mock.patch("dicomsort.files.Files", base):
            assert sort("--move", "--settle", 0, inbox, outbox).code == 0
            (name,) = all_runs(str(outbox))
        deaths += dies(at, lambda outbox=outbox: run("undo", outbox), base, 40).dead  # type: ignore[misc]
        with mock.patch("dicomsort.files.Files", base):
            if (inbox / "a").exists():
                with away(inbox / "a", how):
                    run("resume", outbox)
                    if how == "gone" and (inbox / "a").exists():  # what was placed in the new folder of that name
                        for path in (inbox / "a").iterdir():
                            path.replace(inbox / "kept" / path.name)
                        (inbox / "a").rmdir()
            assert run("undo", outbox, name).code == 0
            for part in list(inbox.rglob("*.part")):  # of an undo that had done all but that
                assert run("resume", outbox, part.name.removeprefix(".dicomsort-").rpartition("-")[0]).code == 0
        assert read_tree(inbox) == before
    assert deaths > 10


@pytest.mark.parametrize("mode", ["--copy", "--move"])
def test_a_whole_copy_is_kept_beside_a_file_of_somebody_else(tmp_path: Path, inbox: Path, mode: str) -> None:
    (inbox / "a/1.dcm").unlink()
    outbox, before = tmp_path / "outbox", read_tree(inbox)
    called = dies(-1, lambda: sort(mode, "--settle", 0, inbox, tmp_path / "trial"), OtherDevice).called
    run("undo", tmp_path / "trial")
    at = max(i for i, call in enumerate(called) if call == "link")  # of the temporary copy
    dies(at, lambda: sort(mode, "--settle", 0, inbox, outbox), OtherDevice)
    (name,) = all_runs(str(outbox))
    (part,) = outbox.rglob("*.part")
    target = part.with_name("1.2.826.0.1.3680043.10.999.1.1.0.dcm")
    target.write_bytes(b"somebody's")
    with away(inbox / "a", "gone"):
        assert run("resume", outbox).code == 3
        (row,) = rows(outbox)
        assert re.search(r"another file stands at the destination; its source is not seen", row["message"])
        assert "its source is not seen" in run("resume", outbox, name).out
        assert part.read_bytes() in before.values()
    assert run("resume", outbox, name).code == 3
    assert not part.exists()
    assert target.read_bytes() == b"somebody's"
    assert read_tree(inbox) == before
