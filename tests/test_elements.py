"""The one reader of data elements: what pydicom reads, byte for byte, or a reason to let it read."""

from __future__ import annotations

import struct
from contextlib import suppress
from pathlib import Path

import pydicom.data
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom import dcmread
from pydicom.dataelem import RawDataElement

from dicomsort.dicom import file_meta
from dicomsort.dicom.elements import UNDEFINED, ByteSource, ElementReader, NeedsFullParser, ReadingEnded
from dicomsort.dicom.encoding import Encoding, sniff

TEST_FILES = sorted((Path(pydicom.data.__file__).parent / "test_files").rglob("*.dcm"))
EXPLICIT, IMPLICIT = Encoding(explicit=True, little=True), Encoding(explicit=False, little=True)
ITEM, ITEM_END, SEQUENCE_END = "feff00e0", "feff0de0 00000000", "feffdde0 00000000"
OPEN = "ffffffff"
# (0008,0060) CS, (0008,1140) SQ that holds an item that holds one, (0040,0275) UN with an implicit item, (0040,A730) SQ
NESTED = bytes.fromhex(
    f"08006000 43530200 4354 08004011 53510000 {OPEN} {ITEM} {OPEN} 08004011 53510000 {OPEN} {ITEM} 00000000"
    f"{SEQUENCE_END} {ITEM_END} {SEQUENCE_END} 40007502 554e0000 {OPEN} {ITEM} {OPEN} 08000001 02000000 4142 {ITEM_END}"
    f"{SEQUENCE_END} 400030a7 53510000 08000000 {ITEM} 00000000"
)
EVERY = frozenset({0x00080060, 0x00081140, 0x00400275, 0x0040A730})


def values(data: bytes, encoding: Encoding, wanted: frozenset[int]) -> tuple[dict[int, bytes], str]:
    """All there are, as bytes, and the code by which reading ended."""
    reader, found = ElementReader(ByteSource.of_bytes(data), encoding), {}
    try:
        for tag, _, length, offset, value in reader.elements(wanted):
            size = reader.position - 8 - offset if length == UNDEFINED else length
            found[tag] = reader.value(offset, size) if value is None else value
    except ReadingEnded as ended:
        return found, ended.code
    raise NeedsFullParser


@pytest.mark.parametrize("path", TEST_FILES, ids=lambda path: path.name)
def test_every_value_is_the_one_of_pydicom(path: Path) -> None:
    content = path.read_bytes()
    start = file_meta.offset(content)
    meta = file_meta.read(ByteSource.of_bytes(content), start or 0)
    data = content[meta.end :]
    encoding = sniff(data[:6])
    if start is None or encoding is None:
        pytest.skip("not a file with file meta information")
    dataset = dcmread(path, force=True)
    raw = {tag: dataset.get_item(tag) for tag in dataset.keys()}  # noqa: SIM118
    found, _ = values(data, encoding, frozenset(raw))
    plain = {tag: (each.value or b"", each.length) for tag, each in raw.items() if isinstance(each, RawDataElement)}
    expected = {tag: value for tag, (value, length) in plain.items() if length in {len(value), UNDEFINED}}
    assert {tag: found.get(tag) for tag in expected} == expected


def test_sequences_of_every_kind_are_passed_and_taken() -> None:
    found, code = values(NESTED, EXPLICIT, EVERY)
    assert (found.keys(), code) == (EVERY, "")
    assert found[0x0040A730] == bytes.fromhex(f"{ITEM} 00000000")
    assert found[0x00400275] == bytes.fromhex(f"{ITEM} {OPEN} 08000001 02000000 4142 {ITEM_END}")


@pytest.mark.parametrize("end", range(len(NESTED)))
def test_a_cut_ends_reading_and_changes_no_value(end: int) -> None:
    whole, _ = values(NESTED, EXPLICIT, EVERY)
    found, code = values(NESTED[:end], EXPLICIT, EVERY)
    assert found.items() < whole.items()
    assert code == "truncated-header" or (
        code == "" and NESTED[end : end + 4].hex() in {"08006000", "08004011", "40007502", "400030a7"}
    )


@pytest.mark.parametrize(
    "element",
    [
        "0a000000 5a5a0200 4142",  # an unknown VR
        "08005000 53480200 4142",  # a tag that is less than the last
        f"0a000000 53510000 {OPEN} {ITEM} {OPEN} {SEQUENCE_END}",  # a sequence ends in an item
        f"0a000000 53510000 {OPEN} {ITEM_END}",  # an item where none began
        f"0a000000 53510000 {OPEN} 08006000 43530200 4354",  # no item
    ],
)
def test_what_is_not_plain_needs_a_full_parser(element: str) -> None:
    with pytest.raises(NeedsFullParser):
        values(NESTED[:10] + bytes.fromhex(element) + bytes(20), EXPLICIT, EVERY)


@pytest.mark.parametrize(("levels", "fits"), [(8, True), (7, False)])
def test_levels_are_bounded(*, levels: int, fits: bool) -> None:
    deep = b"".join(struct.pack("<HHLHHL", 0x40, 0xA730, UNDEFINED, 0xFFFE, 0xE000, UNDEFINED) for _ in range(4))
    deep += bytes.fromhex(f"{ITEM_END} {SEQUENCE_END}") * 4
    reader = ElementReader(ByteSource.of_bytes(deep), IMPLICIT, max_levels=levels)
    with pytest.raises(ReadingEnded) as ended:
        list(reader.elements(frozenset()))
    assert (ended.value.code == "", reader.position == len(deep)) == (fits, fits)


@given(data=st.binary(max_size=400), explicit=st.booleans(), little=st.booleans(), plain=st.booleans())
def test_whatever_the_bytes_are_reading_ends(data: bytes, *, explicit: bool, little: bool, plain: bool) -> None:
    data = NESTED[:10] * plain + data
    reader = ElementReader(ByteSource.of_bytes(data), Encoding(explicit, little))
    with suppress(ReadingEnded, NeedsFullParser):
        for _, _, length, offset, value in reader.elements(frozenset(range(0x00080000, 0x00100000))):
            assert value is None or len(value) == length
            assert offset <= len(data)
    with suppress(ReadingEnded, NeedsFullParser):
        assert 8 <= reader.item(0)[0] <= len(data)
