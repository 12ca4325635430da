"""The real process, killed by SIGKILL at a random moment of ``sort``, ``resume`` or ``undo``."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import random
import shutil
import time
from collections import Counter
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from unittest import mock

from building import make_dicom
from command import Ran, placed, run
from matrix import NO_RUN_YET
from packing import zipped
from unprivileged import NOBODY, is_closed, readable_bundle

FILES = 40
SORT = ("sort", "--evidence", "header", "--engine", "serial", "--settle", "0", "--archives", "open", "--quiet")
TESTS = Path(__file__).resolve().parent
_server = multiprocessing.get_context("forkserver")


def _warm_up() -> None:
    """Start the process that the others are forked from; it imports all that a run needs, also unprivileged ones."""
    path = os.pathsep.join([str(TESTS.parent), str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])])
    _server.set_forkserver_preload(["warmed"])
    with mock.patch.dict(os.environ, PYTHONPATH=path):
        forkserver.ensure_running()


def _main(arguments: list[str], answer: Connection[Ran, Ran] | None, bundle: str = "") -> None:
    """In a process of its own: the command line, as an unprivileged user where an answer is wanted and we are root."""
    if bundle:
        os.environ["DICOMSORT_MODEL"] = bundle
    if answer and os.geteuid() == 0:
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)
    ran = run(*arguments)
    if answer:
        answer.send(ran)
    os._exit(ran.code)


def start(*arguments: object) -> ForkServerProcess:
    """``dicomsort ARGUMENTS`` in a new process, forked from one that has imported it."""
    _warm_up()
    process = _server.Process(target=_main, args=([str(a) for a in arguments], None))
    process.start()
    return process


def run_unprivileged(*arguments: object) -> Ran:
    """``dicomsort ARGUMENTS`` in a process without root's rights, which may not be able to read the checkout."""
    _warm_up()
    here, there = _server.Pipe(duplex=False)
    bundle = readable_bundle() if os.geteuid() == 0 and is_closed() else ""
    process = _server.Process(target=_main, args=([str(a) for a in arguments], there, bundle))
    process.start()
    there.close()
    ran = here.recv()
    process.join()
    assert isinstance(ran, Ran)
    return ran


class Killer:
    """Trials on one inbox, all of them told by the seed."""

    def __init__(self, root: Path, outboxes: list[Path], seed: int) -> None:
        """``outboxes`` are folders for outboxes, one of which is taken by chance each time."""
        self._root = root
        self._outboxes = outboxes
        self._chosen = random.Random(seed)
        self._template = root / "template"
        template = make_dicom(root / "one.dcm", study=1, instance=10_000).read_bytes()
        self._template.mkdir()
        made: dict[str, bytes] = {}
        for number in range(FILES):
            content = template.replace(b".1.1.10000", b".1.1.%d" % (10_000 + number))
            made[f"{number}.dcm"] = content
        loose = [*made][: FILES // 2]
        for name in loose:
            (self._template / name).write_bytes(made.pop(name))
        (self._template / "box.zip").write_bytes(zipped(made))
        self._whole = digests(self._template)
        self._seconds = self._measure()
        self.killed: Counter[str] = Counter()

    def _measure(self) -> float:
        """Seconds that a whole run takes here and now."""
        seconds = []
        for number in range(3):
            begun = time.monotonic()
            process = start(*SORT, "--copy", self._template, self._root / f"measured{number}")
            process.join()
            seconds.append(time.monotonic() - begun)
        return min(seconds)

    def trial(self) -> None:
        """Sort, be killed, perhaps resume or undo and be killed again; then finish, undo, and compare."""
        inbox, outbox = self._root / "inbox", self._chosen.choice(self._outboxes) / "outbox"
        shutil.copytree(self._template, inbox)
        mode = self._chosen.choice(["--copy", "--move", "--link"])
        self._kill("sort", mode, *SORT, mode, inbox, outbox)
        assert digests(inbox, outbox) >= self._whole
        for _ in range(self._chosen.randrange(3)):
            door = self._chosen.choice(["resume", "undo"])
            self._kill(door, mode, door, "--quiet", outbox)
            assert digests(inbox, outbox) >= self._whole
        self._finish(inbox, outbox, mode)
        shutil.rmtree(inbox)
        shutil.rmtree(outbox, ignore_errors=True)

    def _kill(self, door: str, mode: str, *arguments: object) -> None:
        process = start(*arguments)
        process.join(self._chosen.uniform(0.01, self._seconds))
        process.kill()
        process.join()
        assert process.exitcode in {-9, 0, 1, 2, 3}, f"{door} {mode}: exit status {process.exitcode}"
        if process.exitcode == -9:
            self.killed[f"{door} {mode}"] += 1
        process.close()

    def _finish(self, inbox: Path, outbox: Path, mode: str) -> None:
        """Whatever happened, ``resume`` and ``undo`` bring everything back, and a last run sorts it all."""
        for door in ("resume", "undo"):
            ran = run(door, "--quiet", outbox)
            refused = 3 if mode == "--link" and outbox.parent != inbox.parent else 0  # no links to another file system
            told = any(reason in ran.err for reason in NO_RUN_YET)
            assert ran.code in {0, refused} or told, f"{door} {mode} ended with {ran.code}: {ran.err}"
        assert digests(inbox) == self._whole
        assert not outbox.exists() or list(placed(outbox)) == []
        ran = run(*SORT, "--move", inbox, outbox)
        assert (ran.code, ran.err) == (0, "")
        assert len(list(placed(outbox))) == FILES + 1
        assert digests(outbox) >= self._whole


def digests(*roots: Path) -> set[str]:
    paths = (path for root in roots for path in root.rglob("*.dcm"))
    return {hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}
