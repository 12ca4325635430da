"""Other encodings of a data set, for peers that do not take the file's own; only where no value changes.

It is done in a worker that can be killed: it parses and decodes what may be hostile.
"""

from __future__ import annotations

import hashlib
import io
import warnings
import zlib
from pathlib import Path

from dicomsort.adapters.processes import ProcessEngine
from dicomsort.adapters.sending.reading import check
from dicomsort.adapters.sending.records import Instance, Unsendable
from dicomsort.adapters.sending.rewriting import PIXEL_DATA, Malformed, Value, rewrite
from dicomsort.dicom.encoding import DEFLATED
from dicomsort.engine import Limits
from dicomsort.errors import WorkerLost

EXPLICIT, IMPLICIT = "1.2.840.10008.1.2.1", "1.2.840.10008.1.2"
NATIVE = {EXPLICIT: "Explicit VR Little Endian", IMPLICIT: "Implicit VR Little Endian"}  # in order of preference
LIMITS = Limits(60.0, 2 << 30)
# What must be the same of an image decompressed
_LAYOUT = (
    "SamplesPerPixel", "NumberOfFrames", "Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit",
    "PixelRepresentation",
)  # fmt: skip
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
        task = (instance.absolute, instance.offset, instance.syntax, syntax)
        try:
            data_set, told = self._engine.submit(_recode, task).result()
        except WorkerLost as error:
            raise Unsendable(f"it cannot be sent in another encoding: {error}") from None
        check(instance)
        if not data_set:
            raise Unsendable(f"it cannot be sent in another encoding: {told}")
        return data_set, told

    def close(self) -> None:
        """End the worker."""
        self._engine.close()


def _recode(task: tuple[str, int, str, str]) -> tuple[bytes, str]:
    """In the worker: the data set and the SHA-256 of the file; no data set, and why, where there is none."""
    path, offset, syntax, wanted = task
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            content = Path(path).read_bytes()
            return _encoded(content[offset:], syntax, wanted), hashlib.sha256(content).hexdigest()
        except Malformed:
            return b"", "its data set is cut short or malformed"
        except Exception as error:  # noqa: BLE001 - pydicom raises almost anything on damaged bytes
            return b"", type(error).__name__


def _encoded(body: bytes, syntax: str, wanted: str) -> bytes:
    replaced: dict[int, Value | None] = {}
    if syntax in DEFLATED:
        body = zlib.decompress(body, -zlib.MAX_WBITS)
    elif syntax not in NATIVE:
        replaced = _decompressed(body, syntax)
    made = rewrite(body, implicit=syntax == IMPLICIT, to_implicit=wanted == IMPLICIT, replaced=replaced)
    if len(made) % 2:
        raise Malformed
    return made


def _decompressed(body: bytes, syntax: str) -> dict[int, Value | None]:
    """The elements that change with the pixel data's encoding."""
    from pydicom.dataset import FileMetaDataset
    from pydicom.filereader import read_dataset
    from pydicom.uid import UID

    from dicomsort.pixels import decoders

    dataset = read_dataset(io.BytesIO(body), is_implicit_VR=False, is_little_endian=True)
    if "PixelData" not in dataset:
        return {}
    before = [dataset.get(keyword) for keyword in _LAYOUT]
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = UID(syntax)
    decoders.register()
    plugin = "pydicom" if syntax == _RLE else decoders.PLUGIN
    dataset.decompress(as_rgb=False, generate_instance_uid=False, decoding_plugin=plugin)
    if [dataset.get(keyword) for keyword in _LAYOUT] != before:
        raise Malformed
    photometric = dataset.PhotometricInterpretation.encode()
    photometric += b" " * (len(photometric) % 2)
    replaced: dict[int, Value | None] = {
        0x00280004: ("CS", photometric),
        0x7FE00001: None,  # Extended Offset Table, and its lengths
        0x7FE00002: None,
        PIXEL_DATA: ("OB" if dataset.BitsAllocated <= 8 else "OW", dataset.PixelData),  # noqa: PLR2004
    }
    if dataset.SamplesPerPixel > 1:
        replaced[0x00280006] = ("US", dataset.PlanarConfiguration.to_bytes(2, "little"))
    return replaced
