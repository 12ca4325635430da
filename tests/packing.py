"""Archives for tests: ZIP and TAR files made from dictionaries, and ZIP files that lie."""

from __future__ import annotations

import io
import tarfile
import zipfile
from collections.abc import Mapping

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
