from __future__ import annotations

import logging
import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from building import gradient, make_dicom
from PIL import Image
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset
from pydicom.pixels.decoders.base import get_decoder
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
)

from dicomsort.pixels import INPUT_SHAPE, MAX_INFLATED, MAX_PIXELS, RENDERING_VERSION, PixelsError, decoders, render


def test_output_is_the_models_input() -> None:
    pixels = render(get_testdata_file("CT_small.dcm"))
    assert (pixels.shape, pixels.dtype, RENDERING_VERSION) == (INPUT_SHAPE, np.uint8, 2)
    assert pixels.flags.c_contiguous
    assert pixels.flags.writeable
    assert (pixels[:, :, 0] == pixels[:, :, 1]).all()
    assert (pixels[:, :, 0] == pixels[:, :, 2]).all()


@pytest.mark.parametrize(("rows", "columns"), [(50, 100), (100, 50), (300, 900), (1, 4000), (1, 1)])
def test_aspect_is_kept_and_the_rest_is_black(tmp_path: Path, rows: int, columns: int) -> None:
    Image.new("L", (columns, rows), 200).save(tmp_path / "a.png")
    lit = render(tmp_path / "a.png")[:, :, 0] > 0
    longer = max(rows, columns)
    assert (lit.any(1).sum(), lit.any(0).sum()) == (max(1, round(224 * rows / longer)), round(224 * columns / longer))
    for axis in (0, 1):
        inside = np.flatnonzero(lit.any(1 - axis))
        assert abs(inside[0] - (223 - inside[-1])) <= 1


def test_kind_is_told_by_content_not_by_name(tmp_path: Path) -> None:
    dicom = make_dicom(tmp_path / "a.dcm")
    (tmp_path / "b.png").write_bytes(dicom.read_bytes())
    Image.new("L", (10, 10), 90).save(tmp_path / "c.png")
    (tmp_path / "d.dcm").write_bytes((tmp_path / "c.png").read_bytes())
    (tmp_path / "e").write_bytes(b"\x89PNG\r\n\x1a\n".ljust(128, b"\0") + dicom.read_bytes()[128:])
    assert (render(tmp_path / "b.png") == render(dicom)).all()
    assert (render(tmp_path / "d.dcm") == 90).all()
    assert (render(tmp_path / "e") == render(dicom)).all()


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian])
def test_every_native_syntax_gives_the_same_picture(tmp_path: Path, syntax: str) -> None:
    assert (render(make_dicom(tmp_path / "a", syntax=syntax)) == render(make_dicom(tmp_path / "b"))).all()


@pytest.mark.parametrize(("implicit", "little"), [(True, True), (False, True), (False, False)])
def test_bare_data_sets_are_read(tmp_path: Path, implicit: bool, little: bool) -> None:  # noqa: FBT001
    pixels = gradient()
    dataset = Dataset()
    dataset.SOPClassUID, dataset.Rows, dataset.Columns = "1.2.840.10008.5.1.4.1.1.2", *pixels.shape
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 16, 15
    dataset.add_new("PixelData", "OW", pixels.astype("<u2" if little else ">u2").tobytes())
    dataset.save_as(tmp_path / "bare", implicit_vr=implicit, little_endian=little)
    assert (render(tmp_path / "bare") == render(make_dicom(tmp_path / "a"))).all()


def test_middle_frame_is_shown_unless_one_is_named(tmp_path: Path) -> None:
    stack = np.stack([gradient(), gradient()[::-1], gradient().T])
    path = make_dicom(tmp_path / "a", pixels=stack)
    for frame, same in ((None, 1), (0, 0), (1, 1), (2, 2)):
        assert (render(path, frame) == render(make_dicom(tmp_path / f"{same}", pixels=stack[same]))).all()
    with pytest.raises(PixelsError, match="frame 3 does not exist, the file holds 3"):
        render(path, 3)
    with pytest.raises(PixelsError, match="frame -1 does not exist"):
        render(path, -1)


@pytest.mark.parametrize(("declared", "middle"), [(2**31 - 1, 1), (-1, 1), (0, 1), (1, 0), (2, 1)])
def test_a_false_number_of_frames_is_put_right(tmp_path: Path, declared: int, middle: int) -> None:
    stack = np.stack([gradient(), gradient()[::-1], gradient().T])
    path = make_dicom(tmp_path / "a", pixels=stack, NumberOfFrames=declared)
    assert (render(path) == render(make_dicom(tmp_path / "b", pixels=stack[middle]))).all()


def test_a_number_of_frames_that_is_no_number_is_put_right() -> None:
    assert render(get_testdata_file("badVR.dcm")).any()


def test_only_the_chosen_frame_of_a_large_stack_is_read(tmp_path: Path) -> None:
    path = make_dicom(tmp_path / "a", pixels=np.stack([gradient()] * 4))
    frames, frame = 1 << 20, gradient().nbytes
    head = path.read_bytes()[: -4 * frame - 12].replace(b"IS\x02\x004 ", b"IS\x08\x00" + b"%-8d" % frames)
    with path.open("wb") as file:  # a sparse file of half a gigabyte
        file.write(head + b"\xe0\x7f\x10\0OW\0\0" + struct.pack("<I", frames * frame))
        file.seek(frames // 2 * frame, os.SEEK_CUR)
        file.write(gradient().tobytes())
        file.truncate(len(head) + 12 + frames * frame)
    assert (render(path) == render(make_dicom(tmp_path / "b"))).all()


@pytest.mark.parametrize(
    ("tags", "reason"),
    [
        ({"Rows": 65535, "Columns": 65535}, f"65535 x 65535 exceeds the limit of {MAX_PIXELS} pixels"),
        ({"Rows": 0}, "the image has no rows or no columns"),
        ({"Rows": 17}, "truncated pixel data: 512 of 544 bytes"),
        ({"BitsAllocated": 12}, "12 bits allocated are not supported"),
        ({"PhotometricInterpretation": "HSV"}, "the photometric interpretation is not supported"),
        ({"PixelData": None}, "no pixel data"),
        ({"PixelData": b""}, "truncated pixel data: 0 of 512 bytes"),
    ],
)
def test_what_cannot_be_rendered_is_one_phrase(tmp_path: Path, tags: dict[str, object], reason: str) -> None:
    with pytest.raises(PixelsError) as caught:
        render(make_dicom(tmp_path / "a", **tags))
    assert str(caught.value) == reason


@pytest.mark.parametrize("content", [b"", b"x", b"plain text, long enough for a header", bytes(200), bytes(range(256))])
def test_other_files_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(PixelsError):
        render(tmp_path / "a")


def test_what_is_no_readable_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name, reason in (("none", "No such file"), ("pipe", "not a regular file"), (".", "directory")):
        with pytest.raises(PixelsError, match=reason) as caught:
            render(tmp_path / name)
        assert str(tmp_path) not in str(caught.value)


def test_a_deflated_data_set_is_inflated_within_a_limit(tmp_path: Path) -> None:
    path = make_dicom(tmp_path / "a", syntax=DeflatedExplicitVRLittleEndian)
    content = path.read_bytes()
    meta = content[: 144 + int.from_bytes(content[140:144], "little")]
    deflater = zlib.compressobj(9, wbits=-15)
    block = bytes(1 << 20)
    bomb = b"".join(deflater.compress(block) for _ in range(MAX_INFLATED // len(block) + 1)) + deflater.flush()
    path.write_bytes(meta + bomb)
    with pytest.raises(PixelsError, match=f"exceeds the limit of {MAX_INFLATED} bytes"):
        render(path)


def test_deep_nesting_is_refused(tmp_path: Path) -> None:
    content = make_dicom(tmp_path / "a").read_bytes()
    at = content.index(b"\x28\0\x02\0US")
    opened = (b"\x09\0\x01\x10SQ\0\0\xff\xff\xff\xff" + b"\xfe\xff\x00\xe0\xff\xff\xff\xff") * 5000
    (tmp_path / "b").write_bytes(content[:at] + opened + content[at:])
    with pytest.raises(PixelsError, match="sequences are nested too deep"):
        render(tmp_path / "b")


def test_pixels_of_a_defined_length_are_native_whatever_the_syntax_says(tmp_path: Path) -> None:
    content = make_dicom(tmp_path / "a").read_bytes()
    for syntax in (JPEGBaseline8Bit, "1.2.840.10008.1.2.4.102"):
        head = make_dicom(tmp_path / "b", has_pixels=False, syntax=syntax).read_bytes()
        body = content[content.index(b"\x08\0\x16\0UI") :]
        (tmp_path / "b").write_bytes(head[: head.index(b"\x08\0\x16\0UI")] + body)
        assert (render(tmp_path / "b") == render(tmp_path / "a")).all()


def test_rendering_is_silent(capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    level = logging.getLogger("pydicom").level
    render(get_testdata_file("badVR.dcm"))  # pydicom warns
    render(get_testdata_file("MR_small_padded.dcm"))
    for name in ("MR_truncated.dcm", "JPEG2000-embedded-sequence-delimiter.dcm"):
        with pytest.raises(PixelsError):
            render(get_testdata_file(name))
    assert capfd.readouterr() == ("", "")
    assert not caplog.records
    assert logging.getLogger("pydicom").level == level


def test_plugin_is_registered_by_name_once_and_not_by_import() -> None:
    decoder = get_decoder(JPEG2000Lossless)
    decoders.register()
    decoders.register()
    assert decoder.available_plugins.count(decoders.PLUGIN) == 1
    code = (
        "import dicomsort.pixels\n"
        "from pydicom.pixels.decoders.base import get_decoder\n"
        f"assert 'dicomsort' not in get_decoder('{JPEG2000Lossless}').available_plugins"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[1])
