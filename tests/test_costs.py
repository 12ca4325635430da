"""What sorting one more file costs, in calls of the system and in bytes: no clock, so no noise.

Two inboxes are sorted, one of 200 real files and one of 400, and what the second cost more is told by 200 files in 8
series and 4 studies, each series a folder below its study's, in the inbox as in the outbox. A bound is what a file, a
series and a study may cost, in this order; what is not named may cost nothing. All are what was measured when they were
written: a call more a file fails, and where there are fewer, lower the bound.

What the calls are for, each once a file where nothing else is said:

- in a worker: ``open``, ``fstat``, one ``pread`` for header and hash of a small file, ``close``;
- ``lstat`` of the walk, and of the planner, which asks what lies at the destination;
- to place a file that moves: ``lstat`` of the source, ``link``, ``lstat`` of the new name (is it the file that was
  judged?); when that is durable ``lstat`` of both and ``unlink`` of the source. None of the target before: its folder
  is made by this batch;
- to copy it: ``lstat`` of the source; ``open``, ``fstat`` and ``close`` of source and temporary file, one ``preadv``,
  one ``write``, ``chmod``, ``utime``; ``link``, and ``unlink`` of the temporary name. ``clone`` is asked once a run;
- a folder of the inbox: ``lstat``, ``open`` (a link is not followed), ``fstat`` (is it the one that was met?),
  ``scandir`` and ``close``; ``open`` and ``close`` of it and the folder above, once a worker's task and three times a
  batch of placing (to check, to place, to remove), so that no link is followed later; and before a move ``access`` and
  ``stat``, whether files may leave it;
  of the outbox: ``lstat``, ``mkdir``, and where files go ``stat`` for its device.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from counting import IN_SERIES, IN_STUDY, Costs, costs_of, fill

from dicomsort.execute import executor
from dicomsort.files import Files
from dicomsort.tasks import HEAD

FILES = 200
Bound = dict[str, tuple[int, int, int]]  # a file, a series, a study

WORKER: Bound = {"open": (1, 4, 0), "fstat": (1, 0, 0), "pread": (1, 0, 0), "close": (1, 4, 0)}
WALK: Bound = {"open": (0, 1, 1), "fstat": (0, 1, 1), "scandir": (0, 1, 1), "close": (0, 1, 1)}
REHEARSE: Bound = {**WALK, "lstat": (2, 1, 1)}
FOLDERS: Bound = {**WALK, "open": (0, 7, 1), "close": (0, 7, 1), "mkdir": (0, 1, 1), "stat": (0, 1, 0)}
DRIVER: dict[str, Bound] = {
    "--dry-run": REHEARSE,
    "--link": {**FOLDERS, "lstat": (4, 2, 2), "link": (1, 0, 0)},
    "--move": {
        **FOLDERS, "lstat": (6, 2, 2), "link": (1, 0, 0), "unlink": (1, 0, 0), "access": (0, 1, 0), "stat": (0, 2, 0),
    },
    "--copy": {
        **FOLDERS, "lstat": (3, 2, 2), "open": (2, 6, 1), "fstat": (2, 1, 1), "close": (2, 6, 1), "preadv": (1, 0, 0),
        "write": (1, 0, 0), "chmod": (1, 0, 0), "utime": (1, 0, 0), "link": (1, 0, 0), "unlink": (1, 0, 0),
    },
}  # fmt: skip
PICKLED = 460  # bytes a file, there and back: 443 where inode numbers are small


@pytest.fixture(autouse=True)
def warm(tmp_path: Path) -> None:
    """What only the first run of a process costs is paid before anything is counted."""
    if not Files().flush_system(str(tmp_path)):
        pytest.skip("a file system that flushes file by file costs other calls")
    fill(tmp_path / "warm", 1)
    costs_of(tmp_path / "warm", tmp_path / "warmed")


def grown(tmp_path: Path, mode: str, *, count: int = FILES, pixels: int = 1) -> tuple[Costs, Costs]:
    """The costs of so many files, and of twice as many."""
    costs = []
    for number in (count, 2 * count):
        fill(tmp_path / f"inbox{number}", number, pixels=pixels)
        costs.append(costs_of(tmp_path / f"inbox{number}", tmp_path / f"outbox{number}", mode))
    return costs[0], costs[1]


def over(fewer: Counter[str], more: Counter[str], bound: Bound) -> dict[str, str]:
    """The calls that 200 files more cost beyond their bound."""
    found = {}
    for name in more:
        a_file, a_series, a_study = bound.get(name, (0, 0, 0))
        allowed = FILES * a_file + FILES // IN_SERIES * a_series + FILES // IN_STUDY * a_study
        if more[name] - fewer[name] > allowed:
            found[name] = f"{more[name] - fewer[name]} calls for {FILES} files, at most {allowed} are expected"
    return found


@pytest.mark.parametrize("mode", DRIVER)
def test_a_file_costs_no_more_calls_than_it_did(tmp_path: Path, mode: str) -> None:
    fewer, more = grown(tmp_path, mode)
    assert over(fewer.driver, more.driver, DRIVER[mode]) == {}
    assert over(fewer.worker, more.worker, WORKER) == {}


def test_a_file_is_read_once_by_who_examines_it(tmp_path: Path) -> None:
    fewer, more = grown(tmp_path, "--dry-run")
    sizes = [sum(f.stat().st_size for f in (tmp_path / f"inbox{n}").rglob("IM*")) for n in (FILES, 2 * FILES)]
    assert more.read - fewer.read == {"pread": sizes[1] - sizes[0]}


def test_of_a_large_file_the_header_is_read_and_the_rest_hashed_in_one_pass(tmp_path: Path) -> None:
    fewer, more = grown(tmp_path, "--dry-run", count=8, pixels=16)
    size = next((tmp_path / "inbox8").rglob("IM*")).stat().st_size
    assert size > 512 << 10
    assert more.read - fewer.read == {"pread": 8 * HEAD, "preadv": 8 * (size - HEAD)}
    assert more.worker - fewer.worker == dict.fromkeys(("open", "fstat", "pread", "preadv", "close"), 8)


def test_a_file_system_without_reflinks_is_asked_once_a_thread(tmp_path: Path) -> None:
    _, more = grown(tmp_path, "--copy")
    assert 1 <= more.driver["clone"] <= 2


@pytest.mark.parametrize("mode", ["--copy", "--move", "--link"])
def test_a_batch_costs_two_lines_and_three_flushes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str) -> None:
    """``begin`` and ``end`` are each written and flushed, and what lies between them once for all of its files."""
    monkeypatch.setattr(executor, "BATCH", 100)
    fewer, more = grown(tmp_path, mode)
    writes = DRIVER[mode].get("write", (0, 0, 0))[0] * FILES
    batches = FILES // 100
    assert more.driver["flush_system"] - fewer.driver["flush_system"] == batches
    assert more.driver["fsync"] - fewer.driver["fsync"] == 2 * batches
    assert more.driver["write"] - fewer.driver["write"] == 2 * batches + writes


def test_few_bytes_go_between_processes(tmp_path: Path) -> None:
    fewer, more = grown(tmp_path, "--dry-run")
    assert (more.pickled - fewer.pickled) / FILES <= PICKLED
