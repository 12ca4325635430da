"""Data sets in another encoding hold the same values, byte for byte; damaged ones are refused."""

from __future__ import annotations

import os
import struct
import warnings
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import engine_tasks
import pytest
from building import make_dicom
from pydicom import Dataset, dcmread
from pydicom.dataelem import RawDataElement
from pydicom.encaps import encapsulate, generate_frames
from pydicom.filebase import DicomBytesIO
from pydicom.filereader import read_dataset
from pydicom.filewriter import write_dataset

from dicomsort.dicom.encoding import DEFLATED
from dicomsort.dicom.encoding import EXPLICIT_LITTLE as EXPLICIT
from dicomsort.dicom.encoding import IMPLICIT_LITTLE as IMPLICIT
from dicomsort.pacs.send import transcoding
from dicomsort.pacs.send.records import Instance, Unsendable
from dicomsort.pacs.send.selection import examine
from dicomsort.pacs.send.transcoding import DECOMPRESSED, Malformed, transcode
from dicomsort.records import Found

LARGEST = 4 << 20


def instances(root: Path) -> Iterator[Instance]:
    """Those whose transfer syntax loses nothing."""
    for path in sorted(root.rglob("*")):
        if path.is_file() and path.stat().st_size <= LARGEST:
            status = os.lstat(path)
            found = Found(path.relative_to(root).as_posix(), status.st_size, status.st_mtime_ns, 0, status.st_ino)
            instance = examine(str(root), found)
            if isinstance(instance, Instance) and transcoding.is_lossless(instance.syntax):
                yield instance


def body(instance: Instance) -> bytes:
    return Path(instance.absolute).read_bytes()[instance.offset :]


def read(data_set: bytes, syntax: str) -> Dataset:
    return read_dataset(BytesIO(data_set), syntax == IMPLICIT, is_little_endian=True)


def flat(dataset: Dataset, prefix: tuple[object, ...] = ()) -> Iterator[tuple[tuple[object, ...], bytes]]:
    """Every value as the bytes that it is, but pixel data and group lengths."""
    held = {tag: dataset.get_item(tag) for tag in dict.fromkeys(dataset.keys())}  # before reading one changes others
    for tag, element in held.items():
        if tag & 0xFFFF == 0 or tag in {0x7FE00010, 0x7FE00001, 0x7FE00002, 0x00280004, 0x00280006}:
            continue
        if dataset[tag].VR == "SQ":
            yield (*prefix, tag), b"%d" % len(dataset[tag].value)
            for number, item in enumerate(dataset[tag].value):
                yield from flat(item, (*prefix, tag, number))
        else:
            value = element.value
            if not isinstance(element, RawDataElement):  # Specific Character Set, Pixel Representation
                value = value.to_bytes(2, "little") if isinstance(value, int) else str(value or "").encode()
            yield (*prefix, tag), bytes(value or b"").rstrip(b" ")


def compare(root: Path) -> int:
    """Transcode all there is in both encodings; how many could be."""
    done = 0
    for instance in instances(root):
        for wanted in DECOMPRESSED:
            if wanted == instance.syntax:
                continue
            made, told = transcoding._transcode_file((instance.absolute, instance.offset, instance.syntax, wanted))
            if not made:
                assert len(told) < 64
                continue
            done += 1
            if instance.syntax in DEFLATED:
                continue
            assert dict(flat(read(made, wanted))) == dict(flat(read(body(instance), instance.syntax))), instance.path
            if wanted == IMPLICIT and instance.syntax == EXPLICIT:
                back = transcode(made, IMPLICIT, IMPLICIT)
                assert back == made
    return done


def test_values_of_the_sample_data(sample_inbox: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert compare(sample_inbox) > 20


def test_values_of_the_corpus(shared: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert compare(shared / "dicom") > 400


@pytest.fixture
def nested(tmp_path: Path) -> bytes:
    """An explicit data set with sequences in sequences, of defined and undefined length, one of them of unknown VR."""
    inner, outer = Dataset(), Dataset()
    inner.CodeValue, inner.CodeMeaning = "121", "odd "
    inner.add_new(0x00111001, "UN", b"\x01\x02\x03\x04")
    outer.ConceptNameCodeSequence = [inner, inner]
    outer["ConceptNameCodeSequence"].is_undefined_length = True
    outer.is_undefined_length_sequence_item = True
    path = make_dicom(tmp_path / "1.dcm", ContentSequence=[outer, Dataset()], has_pixels=False)
    dataset = dcmread(path)
    dataset.save_as(path)
    content = path.read_bytes()
    unknown = bytes.fromhex("11000210 554e0000 ffffffff feff00e0 0c000000 08000001 04000000 41424344 feffdde0 00000000")
    return content[content.index(b"\x08\x00\x16\x00") :] + unknown.replace(b"\x11\0\2\x10", b"\x41\0\2\x10")


def test_sequences_of_every_kind(nested: bytes) -> None:
    implicit = transcode(nested, EXPLICIT, IMPLICIT)
    explicit = transcode(implicit, IMPLICIT, EXPLICIT)
    assert dict(flat(read(implicit, IMPLICIT))) == dict(flat(read(nested, EXPLICIT)))
    assert read(explicit, EXPLICIT).ContentSequence == read(nested, EXPLICIT).ContentSequence
    assert transcode(explicit, EXPLICIT, IMPLICIT) == implicit


def test_every_cut_is_noticed(nested: bytes) -> None:
    whole = set()
    for length in range(len(nested)):
        try:
            transcode(nested[:length], EXPLICIT, IMPLICIT)
        except Malformed:
            continue
        whole.add(length)
    assert whole <= set(ends(nested))


def ends(data_set: bytes) -> Iterator[int]:
    """Where elements begin: a data set that ends there is whole as far as anybody can tell."""
    dataset = read(data_set, EXPLICIT)
    for tag in dict.fromkeys(dataset.keys()):
        element = dataset.get_item(tag)
        value_tell = element.value_tell if isinstance(element, RawDataElement) else element.file_tell
        long = (element.VR or "UN") in {"OB", "OW", "SQ", "UN", "UT", "LT"} and element.VR != "LT"
        yield value_tell - (12 if long else 8)


ENCAPSULATED = "e07f1000 4f420000 ffffffff feff00e0 00000000 feffdde0 00000000"


@pytest.mark.parametrize(
    "element",
    [
        "41000210 5a5a0200 4142",  # an unknown VR
        "feff00e0 00000000",
        "feffdde0 00000000",
        "08001600 55490000",  # a tag that was there before: one of the two values would be lost
        ENCAPSULATED,
        f"41001010 53510000 ffffffff feff00e0 ffffffff {ENCAPSULATED} feff0de0 00000000 feffdde0 00000000",
    ],
)
def test_what_is_no_element(nested: bytes, element: str) -> None:
    with pytest.raises(Malformed):
        transcode(nested + bytes.fromhex(element), EXPLICIT, IMPLICIT)


def test_values_too_long_for_their_vr_become_unknown_ones() -> None:
    implicit = bytes.fromhex("08000001") + (70_000).to_bytes(4, "little") + b"A" * 70_000
    explicit = transcode(implicit, IMPLICIT, EXPLICIT)
    assert explicit[4:8] == b"UN\0\0"
    assert transcode(explicit, EXPLICIT, IMPLICIT) == implicit


@pytest.mark.parametrize("character_set", [None, b"", b"ISO_IR 100", b"\\ISO 2022 IR 87 ", b"unknown "])
@pytest.mark.parametrize("is_nested", [False, True])
def test_values_stay_as_they_are_whatever_the_character_set(
    *,
    is_nested: bool,
    character_set: bytes | None,
) -> None:
    held = {
        0x00080060: b" CT ", 0x00090010: b"GEMS_IDEN_01", 0x00091001: b" GE ", 0x00091027: b"\1\2\3\4",
        0x00100010: b"\xc4^B\0", 0x00200013: b"007 ", 0x00280103: b"\1\0", 0x00280106: b"\xff\xff",
    }  # fmt: skip
    named = {} if character_set is None else {0x00080005: character_set}
    implicit = b"".join(implicit_element(tag, value) for tag, value in (named | held).items())
    if is_nested:
        implicit = implicit_element(0x00081115, implicit_element(0xFFFEE000, implicit))
    made = transcode(implicit, IMPLICIT, EXPLICIT)
    dataset = read(made, EXPLICIT)
    if is_nested:
        dataset = dataset.ReferencedSeriesSequence[0]
    found = {int(tag): dataset.get_item(tag) for tag in dataset.keys() if tag != 0x00080005}  # noqa: SIM118
    assert {tag: element.value for tag, element in found.items()} == held
    assert (found[0x00091027].VR, found[0x00090010].VR, found[0x00280106].VR) == ("UN", "LO", "SS")
    assert transcode(made, EXPLICIT, IMPLICIT) == implicit


def implicit_element(tag: int, value: bytes) -> bytes:
    return struct.pack("<HHL", tag >> 16, tag & 0xFFFF, len(value)) + value


RLE, JPEG_LS, JPEG_2000 = "1.2.840.10008.1.2.5", "1.2.840.10008.1.2.4.80", "1.2.840.10008.1.2.4.90"
SMALL = "pydicom+pydicom-data/data_store/data"


def encapsulated(shared: Path, name: str, **changes: object) -> bytes:
    """The data set of a file of the corpus with other values."""
    dataset = dcmread(shared / "dicom" / SMALL / name)
    for keyword, value in changes.items():
        setattr(dataset, keyword, value)
    dataset["PixelData"].is_undefined_length = True
    file = DicomBytesIO()
    file.is_implicit_VR, file.is_little_endian = False, True
    write_dataset(file, Dataset({tag: dataset[tag] for tag in dict.fromkeys(dataset.keys())}))
    return file.getvalue()


def frames_of(shared: Path, name: str) -> list[bytes]:
    dataset = dcmread(shared / "dicom" / SMALL / name)
    return list(generate_frames(dataset.PixelData, number_of_frames=int(dataset.get("NumberOfFrames") or 1)))


@pytest.mark.parametrize(
    ("name", "syntax", "changes", "told"),
    [
        ("liver_j2k.dcm", JPEG_2000, {}, "its compressed frames allocate 1 bits a pixel"),
        ("US1_J2KR.dcm", JPEG_2000, {"PhotometricInterpretation": "YBR_FULL_422"}, "3 samples, which are not YBR_FULL"),
        ("US1_J2KR.dcm", JPEG_2000, {"PhotometricInterpretation": "MONOCHROME2"}, "3 samples, which are not MONO"),
        ("emri_small_jpeg_2k_lossless.dcm", JPEG_2000, {"NumberOfFrames": 1}, "it declares 1 frames and has 10"),
        ("emri_small_jpeg_2k_lossless.dcm", JPEG_2000, {"NumberOfFrames": 11}, "it declares 11 frames and has 10"),
        ("emri_small_jpeg_ls_lossless.dcm", JPEG_LS, {"NumberOfFrames": 1}, "it declares 1 frames and has 10"),
        ("emri_small_jpeg_ls_lossless.dcm", JPEG_LS, {"Rows": 32, "Columns": 128}, "frames of 32 rows and 128 columns"),
        ("emri_small_RLE.dcm", RLE, {"NumberOfFrames": 9}, "it declares 9 frames and has 10"),
        ("emri_small_RLE.dcm", RLE, {"Rows": 32}, "The decoded RLE segment"),
    ],
)
def test_pixels_that_are_not_what_is_declared(
    shared: Path, name: str, syntax: str, changes: dict[str, object], told: str
) -> None:
    with pytest.raises((Malformed, RuntimeError), match=told):
        transcode(encapsulated(shared, name, **changes), syntax, EXPLICIT)


def test_frames_whatever_the_offset_table_and_the_fragments(shared: Path) -> None:
    name = "emri_small_jpeg_2k_lossless.dcm"
    frames = frames_of(shared, name)
    whole = read(transcode(encapsulated(shared, name), JPEG_2000, EXPLICIT), EXPLICIT)
    cut = encapsulate(frames, fragments_per_frame=3, has_bot=False)
    tables = [b"", struct.pack("<10L", *range(0, 80, 8)), struct.pack("<2L", 0, len(frames[0]))]
    for table in tables:
        pixels = b"\xfe\xff\x00\xe0" + struct.pack("<L", len(table)) + table + cut[8:]
        made = read(transcode(encapsulated(shared, name, PixelData=pixels), JPEG_2000, EXPLICIT), EXPLICIT)
        assert made.PixelData == whole.PixelData
    assert len(whole.PixelData) == 10 * 64 * 64 * 2


def test_two_frames_in_one_fragment(shared: Path) -> None:
    for name, syntax in (("emri_small_jpeg_2k_lossless.dcm", JPEG_2000), ("emri_small_jpeg_ls_lossless.dcm", JPEG_LS)):
        first, second, *_ = frames_of(shared, name)
        pixels = encapsulate([first + second], has_bot=False)
        with pytest.raises(Malformed, match="it declares 1 frames and has 2"):
            transcode(encapsulated(shared, name, NumberOfFrames=1, PixelData=pixels), syntax, EXPLICIT)


def test_what_is_not_sent_says_why(shared: Path) -> None:
    path = shared / "dicom" / SMALL / "liver_j2k.dcm"
    status = os.lstat(path)
    found = Found(path.name, status.st_size, status.st_mtime_ns, 0, status.st_ino)
    instance = examine(str(path.parent), found)
    assert isinstance(instance, Instance)
    transcoder = transcoding.Transcoder()
    try:
        with pytest.raises(Unsendable, match="another encoding: its compressed frames allocate 1 bits a pixel"):
            transcoder.transcode(instance, EXPLICIT)
    finally:
        transcoder.close()


def test_an_instance_whose_worker_something_else_killed_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_dicom(tmp_path / "1.dcm")
    status = os.lstat(path)
    instance = examine(str(tmp_path), Found(path.name, status.st_size, status.st_mtime_ns, 0, status.st_ino))
    assert isinstance(instance, Instance)
    monkeypatch.setattr(transcoding, "_transcode_files", engine_tasks.transcode_unless_killed)
    transcoder = transcoding.Transcoder()
    try:
        assert transcoder.transcode(instance, IMPLICIT) == (b"data set", "sha256")
    finally:
        transcoder.close()
    assert Path(f"{path}.tried").exists()
