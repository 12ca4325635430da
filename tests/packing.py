"""Archives for tests: ZIP and TAR files made from dictionaries, and ZIP files that lie."""

from __future__ import annotations

import io
import os
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

from building import make_dicom, make_files, uid
from command import sort

Files = Mapping[str, bytes]


def zipped(files: Files, method: int = zipfile.ZIP_DEFLATED) -> bytes:
    """A ZIP file that holds ``files`` (name -> content)."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as archive:
        for name, content in files.items():
            archive.writestr(zipfile.ZipInfo(name, (2019, 5, 4, 3, 2, 0)), content, method)
    return stream.getvalue()


def tarred(files: Files, mode: str = "w", kind: int = tarfile.PAX_FORMAT, *others: tarfile.TarInfo) -> bytes:
    """A TAR file that holds ``files``, and ``others`` without content; ``mode`` is as for ``tarfile.open``."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode=mode, format=kind) as archive:  # type: ignore[call-overload]
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(content), 1_556_938_920
            archive.addfile(info, io.BytesIO(content))
        for info in others:
            archive.addfile(info)
    return stream.getvalue()


OLD = 1_500_000_000
CT = f"CT/{uid(7)}/{uid(7, 1)}/{uid(7, 1, 1)}.dcm"


def dicom(tmp_path: Path, **tags: object) -> bytes:
    """The bytes of a small DICOM file."""
    return make_dicom(tmp_path / "one.dcm", **tags).read_bytes()  # type: ignore[arg-type]


def make_inbox(root: Path, files: dict[str, bytes]) -> Path:
    make_files(root, files)  # type: ignore[arg-type]
    for path in root.rglob("*"):
        os.utime(path, (OLD, OLD))
    return root


def opening(*arguments: object, code: int = 0) -> str:
    """``sort --archives open``, which must end with that code; its stdout."""
    ran = sort("--archives", "open", *arguments)
    assert ran.code == code, ran
    return ran.out
