"""How often a run goes to the system, and what it hands to workers: counted in this process, by wrappers."""

from __future__ import annotations

import errno
import io
import os
import pickle
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest import mock

from command import sort
from pydicom import dcmread
from pydicom.data import get_testdata_file

from dicomsort.engines import SerialEngine
from dicomsort.files import Files
from dicomsort.tasks import examine

UIDS = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")
IN_STUDY, IN_SERIES = 50, 25
SYSTEM = (
    "access", "chmod", "chown", "close", "copy_file_range", "fstat", "fstatvfs", "fsync", "ftruncate", "getxattr",
    "link", "listdir", "listxattr", "lseek", "lstat", "mkdir", "open", "pread", "preadv", "pwrite", "read", "readlink",
    "readv", "rename", "replace", "rmdir", "scandir", "sendfile", "setxattr", "stat", "statvfs", "symlink", "truncate",
    "unlink", "utime", "write", "writev",
)  # fmt: skip


class Costs:
    """Calls by name, those of ``tasks.examine`` apart; bytes read by each there; pickled bytes of tasks and results."""

    def __init__(self) -> None:
        self.driver: Counter[str] = Counter()
        self.worker: Counter[str] = Counter()
        self.read: Counter[str] = Counter()
        self.pickled = 0
        self._at_work = False

    def counted(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, with its calls counted."""

        def call(*arguments: Any, **options: Any) -> Any:
            (self.worker if self._at_work else self.driver)[name] += 1
            result = function(*arguments, **options)
            if self._at_work and name in {"pread", "preadv"}:
                self.read[name] += result if isinstance(result, int) else len(result)
            return result

        return call

    def examine(self, inbox: str, files: Sequence[Any]) -> Any:
        """As ``tasks.examine``, which a worker runs."""
        self._at_work = True
        try:
            return examine(inbox, files)
        finally:
            self._at_work = False

    def weigh(self, message: object) -> None:
        """Count the bytes that a message has on its way between two processes."""
        self.pickled += len(pickle.dumps(message, pickle.HIGHEST_PROTOCOL))


class _Weighing(SerialEngine):
    def __init__(self, costs: Costs) -> None:
        super().__init__()
        self._costs = costs

    def submit(self, function: Callable[[Any], Any], task: Any, /) -> Future[Any]:
        future = super().submit(function, task)
        self._costs.weigh(task)
        self._costs.weigh(future.result())
        return future


class _Plain(Files):
    """A file system without reflinks, whatever the tests run on; what ``os`` has no function for is counted here."""

    def __init__(self, costs: Costs) -> None:
        super().__init__()
        for name in ("flush_system", "lock"):
            setattr(self, name, costs.counted(name, getattr(super(), name)))
        self.clone = costs.counted("clone", self._refuse)  # type: ignore[method-assign]

    def _refuse(self, source: int, target: int) -> None:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))


def costs_of(inbox: Path, *arguments: object) -> Costs:
    """What ``dicomsort sort`` costs with these arguments."""
    costs = Costs()
    with ExitStack() as patches:
        enter = patches.enter_context
        enter(mock.patch("dicomsort.engines.SerialEngine", return_value=_Weighing(costs)))
        enter(mock.patch("dicomsort.files.Files", return_value=_Plain(costs)))
        enter(mock.patch("dicomsort.sorting.examine.examine", costs.examine))
        enter(mock.patch.object(io, "open", costs.counted("open", io.open)))
        for name in SYSTEM:
            enter(mock.patch.object(os, name, costs.counted(name, getattr(os, name))))
        ran = sort("--settle", 0, "--quiet", inbox, *arguments)
    assert (ran.code, ran.err) == (0, "")
    return costs


def fill(inbox: Path, count: int, *, pixels: int = 1) -> None:
    """Real files, each with UIDs of its own: studies of 50, CT and MR in turn, in series of 25, each in a folder."""
    kinds = [_template(name, pixels) for name in ("CT_small.dcm", "MR_small.dcm")]
    for number in range(count):
        study, series = number // IN_STUDY, number // IN_SERIES
        content, uids = kinds[study % 2]
        for uid, new in zip(uids, (study, series, number), strict=True):
            head, _, last = uid.rpartition(b".")
            content = content.replace(uid, head + b".%d" % (10 ** (len(last) - 1) + new))
        folder = inbox / f"PA{study:03}" / f"SE{series:04}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"IM{number:06}").write_bytes(content)


def _template(name: str, pixels: int) -> tuple[bytes, list[bytes]]:
    """The content of pydicom's test file, with so many times its pixels, and its UIDs."""
    dataset = dcmread(str(get_testdata_file(name, download=False)))
    dataset.PixelData *= pixels
    dataset.Rows *= pixels
    written = io.BytesIO()
    dataset.save_as(written)
    return written.getvalue(), [str(dataset[keyword].value).encode() for keyword in UIDS]
