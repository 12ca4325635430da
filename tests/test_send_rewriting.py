"""Data sets in another encoding hold the same values, byte for byte; damaged ones are refused."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import pytest
from building import make_dicom
from pydicom import Dataset, dcmread
from pydicom.dataelem import RawDataElement
from pydicom.filereader import read_dataset

from dicomsort.adapters.sending import recoding
from dicomsort.adapters.sending.recoding import EXPLICIT, IMPLICIT, NATIVE
from dicomsort.adapters.sending.records import Instance
from dicomsort.adapters.sending.rewriting import Malformed, rewrite
from dicomsort.adapters.sending.selecting import examine
from dicomsort.dicom.encoding import DEFLATED
from dicomsort.records import Found

LARGEST = 4 << 20


def instances(root: Path) -> Iterator[Instance]:
    """Those whose transfer syntax loses nothing."""
    for path in sorted(root.rglob("*")):
        if path.is_file() and path.stat().st_size <= LARGEST:
            status = os.lstat(path)
            found = Found(path.relative_to(root).as_posix(), status.st_size, status.st_mtime_ns, 0, status.st_ino)
            instance = examine(str(root), found)
            if isinstance(instance, Instance) and recoding.is_lossless(instance.syntax):
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
    """Recode all there is in both encodings; how many could be."""
    done = 0
    for instance in instances(root):
        for wanted in NATIVE:
            if wanted == instance.syntax:
                continue
            made, told = recoding._recode((instance.absolute, instance.offset, instance.syntax, wanted))
            if not made:
                assert len(told) < 64
                continue
            done += 1
            if instance.syntax in DEFLATED:
                continue
            assert dict(flat(read(made, wanted))) == dict(flat(read(body(instance), instance.syntax))), instance.path
            if wanted == IMPLICIT and instance.syntax == EXPLICIT:
                back = rewrite(made, implicit=True, to_implicit=True, replaced={})
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
    implicit = rewrite(nested, implicit=False, to_implicit=True, replaced={})
    explicit = rewrite(implicit, implicit=True, to_implicit=False, replaced={})
    assert dict(flat(read(implicit, IMPLICIT))) == dict(flat(read(nested, EXPLICIT)))
    assert read(explicit, EXPLICIT).ContentSequence == read(nested, EXPLICIT).ContentSequence
    assert rewrite(explicit, implicit=False, to_implicit=True, replaced={}) == implicit


def test_every_cut_is_noticed(nested: bytes) -> None:
    whole = set()
    for length in range(len(nested)):
        try:
            rewrite(nested[:length], implicit=False, to_implicit=True, replaced={})
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


@pytest.mark.parametrize("element", ["41000210 5a5a0200 4142", "feff00e0 00000000", "feffdde0 00000000"])
def test_what_is_no_element(nested: bytes, element: str) -> None:
    with pytest.raises(Malformed):
        rewrite(nested + bytes.fromhex(element), implicit=False, to_implicit=True, replaced={})


def test_values_too_long_for_their_vr_become_unknown_ones() -> None:
    implicit = bytes.fromhex("08000001") + (70_000).to_bytes(4, "little") + b"A" * 70_000
    explicit = rewrite(implicit, implicit=True, to_implicit=False, replaced={})
    assert explicit[4:8] == b"UN\0\0"
    assert rewrite(explicit, implicit=False, to_implicit=True, replaced={}) == implicit
