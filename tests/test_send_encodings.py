"""Peers that do not take a file's transfer syntax: a reason, or another encoding of the same values where wanted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
from building import make_dicom
from numpy.typing import NDArray
from peers_send import Scp, storescp
from pydicom import Dataset, dcmread, uid
from pydicom.encaps import encapsulate
from pydicom.filereader import read_dataset
from sending_tools import data_set, rows, send, statuses

from dicomsort.pacs.send.transcoding import DECOMPRESSED

pytest.importorskip("pynetdicom", reason="the extra pacs is not installed")

IMPLICIT, EXPLICIT = uid.ImplicitVRLittleEndian, uid.ExplicitVRLittleEndian
PIXELS = np.random.default_rng(1).integers(-2000, 2000, (3, 24, 20)).astype(np.int16)
COLOURS = np.random.default_rng(2).integers(0, 255, (18, 22, 3)).astype(np.uint8)
Encode = Callable[[NDArray[Any]], bytes]
CODECS: dict[str, Encode] = {
    uid.JPEGLosslessSV1: lambda frame: bytes(imagecodecs.ljpeg_encode(frame)),
    uid.JPEGLSLossless: lambda frame: bytes(imagecodecs.jpegls_encode(frame)),
    uid.JPEG2000Lossless: lambda frame: bytes(imagecodecs.jpeg2k_encode(frame, codecformat="j2k", reversible=True)),
}


def encoded(path: Path, syntax: str, pixels: NDArray[Any]) -> Path:
    """A file of that transfer syntax: int16 (frames, rows, columns), or uint8 RGB (rows, columns, samples)."""
    is_colour = pixels.dtype == np.uint8
    grey = pixels[..., 0] if is_colour else pixels
    make_dicom(path, pixels=grey, PatientComments="ä", SpecificCharacterSet="ISO_IR 100")
    dataset = dcmread(path)
    dataset.add_new(0x00091010, "LO", "private")
    dataset.add_new(0x00090010, "LO", "creator")
    if is_colour:
        dataset.SamplesPerPixel, dataset.PhotometricInterpretation, dataset.PlanarConfiguration = 3, "RGB", 0
        dataset.PixelData = pixels.tobytes()
    if syntax == uid.RLELossless:
        dataset.compress(uid.RLELossless, generate_instance_uid=False)
    elif syntax in CODECS:
        frames = [pixels] if is_colour else [*pixels.astype(np.uint16)]
        dataset.PixelData = encapsulate([CODECS[syntax](frame) for frame in frames])
        dataset["PixelData"].VR = "OB"
        dataset["PixelData"].is_undefined_length = True
        if is_colour and syntax == uid.JPEG2000Lossless:
            dataset.PhotometricInterpretation = "YBR_RCT"
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.save_as(path, implicit_vr=syntax == IMPLICIT, little_endian=True)
    return path


def received(content: bytes, syntax: str) -> Dataset:
    return read_dataset(BytesIO(content), is_implicit_VR=syntax == IMPLICIT, is_little_endian=True)


@pytest.mark.parametrize(
    ("syntax", "taken", "pixels"),
    [
        *((syntax, EXPLICIT, PIXELS) for syntax in (*CODECS, uid.DeflatedExplicitVRLittleEndian, IMPLICIT)),
        *((syntax, IMPLICIT, PIXELS) for syntax in (uid.RLELossless, uid.JPEG2000Lossless, EXPLICIT)),
        *((syntax, EXPLICIT, COLOURS) for syntax in (uid.RLELossless, uid.JPEGLSLossless, uid.JPEG2000Lossless)),
    ],
)
def test_another_encoding_has_the_same_values(tmp_path: Path, syntax: str, pixels: NDArray[Any], taken: str) -> None:
    path = encoded(tmp_path / "1.dcm", syntax, pixels)
    sent = dcmread(path)
    with Scp().running(syntaxes=[taken]) as scp:
        ran = send(tmp_path, "--to", scp.to)
        assert (ran.code, statuses(ran)) == (3, Counter(failed=1))
        assert rows(ran)[0]["message"] == (
            f"the peer does not take its transfer syntax: {syntax} of {sent.SOPClassUID}; --decompress may help"
        )
        assert scp.came.total() == 0
        ran = send(tmp_path, "--to", scp.to, "--decompress")
    assert (ran.code, statuses(ran)) == (0, Counter(acknowledged=1)), ran.out
    name = DECOMPRESSED[taken]
    assert rows(ran)[0]["message"] == f"sent as {name}: the peer does not take its transfer syntax"
    (content,) = scp.kept.values()
    there = received(content, taken)
    assert np.frombuffer(there.PixelData, pixels.dtype).tobytes() == pixels.tobytes()
    assert there.PhotometricInterpretation == ("RGB" if pixels is COLOURS else "MONOCHROME2")
    there.pop("PixelData")
    sent.pop("PixelData")
    if syntax == uid.JPEG2000Lossless:
        sent.PhotometricInterpretation = there.PhotometricInterpretation
    private = there.pop(0x00091010).value, sent.pop(0x00091010).value
    assert {value if isinstance(value, str) else value.decode().strip() for value in private} == {"private"}
    assert there == sent


@pytest.mark.peers
def test_storescp_that_takes_implicit_only(tmp_path: Path) -> None:
    encoded(tmp_path / "in" / "1.dcm", uid.RLELossless, PIXELS)
    make_dicom(tmp_path / "in" / "2.dcm", instance=2, syntax=IMPLICIT)
    with storescp(tmp_path / "scp", "+xi", "+B") as to:
        assert statuses(send(tmp_path / "in", "--to", to)) == Counter(acknowledged=1, failed=1)
        assert statuses(send(tmp_path / "in", "--to", to, "--decompress")) == Counter(acknowledged=1, skipped=1)
    sets = {path.name.rpartition(".")[2]: path for path in (tmp_path / "scp").iterdir()}
    assert data_set(sets["2"].read_bytes()) == data_set((tmp_path / "in" / "2.dcm").read_bytes())
    there = dcmread(sets["1"])
    assert there.pixel_array.tobytes() == PIXELS.tobytes()


def test_what_has_lost_something_stays_as_it_is(tmp_path: Path) -> None:
    path = encoded(tmp_path / "1.dcm", uid.JPEG2000Lossless, PIXELS)
    dataset = dcmread(path)
    dataset.file_meta.TransferSyntaxUID = uid.JPEG2000
    dataset.save_as(path)
    with Scp().running(syntaxes=[EXPLICIT]) as scp:
        ran = send(tmp_path, "--to", scp.to, "--decompress")
    assert (ran.code, scp.came.total()) == (3, 0)
    assert rows(ran)[0]["message"].endswith(f"{uid.JPEG2000} of {dataset.SOPClassUID}")


def test_pixels_that_cannot_be_decoded_cost_their_own_file(tmp_path: Path) -> None:
    whole = encoded(tmp_path / "1.dcm", uid.RLELossless, PIXELS).read_bytes()
    make_dicom(tmp_path / "2.dcm", instance=2)
    (tmp_path / "1.dcm").write_bytes(whole[:-600])
    with Scp().running(syntaxes=[EXPLICIT]) as scp:
        ran = send(tmp_path, "--to", scp.to, "--decompress")
    assert (ran.code, statuses(ran)) == (3, Counter(acknowledged=1, failed=1))
    assert "it cannot be sent in another encoding: its data set is cut short or malformed" in ran.out
    assert scp.came.total() == 1


def test_a_class_that_the_peer_does_not_take(tmp_path: Path) -> None:
    make_dicom(tmp_path / "1.dcm")
    make_dicom(tmp_path / "2.dcm", instance=2, sop_class="1.2.826.0.1.3680043.10.999.77")
    with Scp().running(unrestricted=False) as scp:
        ran = send(tmp_path, "--to", scp.to)
    assert (ran.code, statuses(ran)) == (3, Counter(acknowledged=1, failed=1))
    assert "the peer does not take its SOP class" in ran.out


@pytest.mark.parametrize("associations", [1, 3])
def test_contexts_of_all_kinds_are_shared_between_associations(tmp_path: Path, associations: int) -> None:
    for number in range(30):
        make_dicom(tmp_path / f"{number}.dcm", instance=number, modality=("CT", "MR", "US")[number % 3])
    with Scp().running() as scp:
        assert send(tmp_path, "--to", scp.to, "--associations", associations).code == 0
    assert scp.came.total() == 30
    assert set(scp.contexts) == {3}
    assert len(scp.contexts) <= associations
