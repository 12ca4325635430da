"""Other encodings of a data set, for peers that do not take the file's own; only where no value changes.

It is done in a worker that can be killed: it parses and decodes what may be hostile.
"""

from __future__ import annotations

import hashlib
import io
import warnings
from pathlib import Path

from dicomsort.adapters.processes import ProcessEngine
from dicomsort.adapters.sending.records import Instance, Unsendable
from dicomsort.engine import Limits
from dicomsort.errors import WorkerLost

EXPLICIT, IMPLICIT = "1.2.840.10008.1.2.1", "1.2.840.10008.1.2"
NATIVE = {EXPLICIT: "Explicit VR Little Endian", IMPLICIT: "Implicit VR Little Endian"}  # in order of preference
LIMITS = Limits(60.0, 2 << 30)
_RLE = "1.2.840.10008.1.2.5"
_LOSSLESS = frozenset({
    *NATIVE,
    "1.2.840.10008.1.2.1.99",  # deflated
    "1.2.840.10008.1.2.4.57",  # JPEG lossless
    "1.2.840.10008.1.2.4.70",
    "1.2.840.10008.1.2.4.80",  # JPEG-LS lossless
    "1.2.840.10008.1.2.4.90",  # JPEG 2000 lossless
    "1.2.840.10008.1.2.4.201",  # high throughput JPEG 2000 lossless
    "1.2.840.10008.1.2.4.202",
    _RLE,
})  # fmt: skip


def is_lossless(syntax: str) -> bool:
    """Whether data of this transfer syntax can be sent in another without a value changed.

    What was compressed with losses could be decompressed, too, but decoders differ in the last bit; and bytes of big
    endian data would have to be swapped by VRs that a private element may not tell.
    """
    return syntax in _LOSSLESS


class Recoder:
    """A worker that encodes data sets anew."""

    def __init__(self) -> None:
        """Start it."""
        self._engine = ProcessEngine(1, LIMITS, (__name__,))

    def recode(self, instance: Instance, syntax: str) -> tuple[bytes, str]:
        """The data set in the transfer syntax, and the SHA-256 of the file; ``Unsendable`` where it cannot be had."""
        try:
            data_set, sha256, size = self._engine.submit(_recode, (instance.absolute, syntax)).result()
        except WorkerLost as error:
            raise Unsendable(f"it cannot be decompressed: {error}") from None
        if not data_set:
            raise Unsendable(sha256)
        if size != instance.size:
            raise Unsendable("it changed while it was sent; send again")
        return data_set, sha256

    def close(self) -> None:
        """End the worker."""
        self._engine.close()


def _recode(task: tuple[str, str]) -> tuple[bytes, str, int]:
    """In the worker: data set, SHA-256 and size of the file; no data set, and why, where there is none."""
    path, syntax = task
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        return b"", f"it cannot be read: {error.strerror}", 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return _encoded(content, syntax), hashlib.sha256(content).hexdigest(), len(content)
        except Exception as error:  # noqa: BLE001 - pydicom raises almost anything on damaged bytes
            return b"", f"it cannot be decompressed: {type(error).__name__}", len(content)


def _encoded(content: bytes, syntax: str) -> bytes:
    from pydicom import dcmread
    from pydicom.filebase import DicomBytesIO
    from pydicom.filewriter import write_dataset

    from dicomsort.pixels import decoders

    dataset = dcmread(io.BytesIO(content), force=True)
    declared = str(dataset.file_meta.get("TransferSyntaxUID", ""))
    if "PixelData" in dataset and declared not in {*NATIVE, "1.2.840.10008.1.2.1.99", ""}:
        decoders.register()
        plugin = "pydicom" if declared == _RLE else decoders.PLUGIN
        dataset.decompress(as_rgb=False, generate_instance_uid=False, decoding_plugin=plugin)
    buffer = DicomBytesIO()
    buffer.is_little_endian, buffer.is_implicit_VR = True, syntax == IMPLICIT
    write_dataset(buffer, dataset)
    return buffer.getvalue()
