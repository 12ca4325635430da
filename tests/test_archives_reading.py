"""Archives as a worker reads them: every format, limits, names, and files that are damaged or lie."""

from __future__ import annotations

import base64
import gzip
import os
import random
import struct
import subprocess
import tarfile
import time
import zipfile
from pathlib import Path

import pytest
from backports import zstd
from building import read_tree
from hypothesis import given
from hypothesis import strategies as st
from packing import tarred, zipped

from dicomsort.archives import (
    DAMAGED,
    ENCRYPTED,
    UNSAFE_NAME,
    ArchiveLimits,
    Unpacked,
    UnpackRequest,
    remove_staging,
    unpack,
)
from dicomsort.archives.members import safe_name
from dicomsort.files import Files
from dicomsort.records import ARCHIVE_LIMIT as LIMIT
from dicomsort.records import Found

LIMITS = ArchiveLimits(1000, 1 << 24, 1 << 26, 200.0, 600.0)
CONTENT = {"DICOM/1": b"one" * 70_000, "DICOM/2": b"", "Röntgen.txt": os.urandom(3000)}


def opened(folder: Path, data: bytes, name: str = "study.zip", limits: ArchiveLimits = LIMITS) -> Unpacked:
    """Unpack an archive into ``folder/staging``."""
    folder.mkdir(exist_ok=True)
    (folder / name).write_bytes(data)
    return unpack(UnpackRequest(str(folder), found(folder / name), str(folder / "staging"), limits))


def found(path: Path) -> Found:
    status = path.stat()
    return Found(path.name, status.st_size, status.st_mtime_ns, status.st_dev, status.st_ino)


def contents(folder: Path, unpacked: Unpacked) -> dict[str, bytes]:
    """What came out, by the members' names."""
    return {m.name: (folder / "staging" / m.file).read_bytes() for m in unpacked.members if m.file}


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_zip(tmp_path: Path, method: int) -> None:
    unpacked = opened(tmp_path, zipped(CONTENT, method))
    assert contents(tmp_path, unpacked) == CONTENT
    assert (tmp_path / "staging").stat().st_mode & 0o777 == 0o700
    made = (tmp_path / "staging" / "0").stat()
    assert time.localtime(made.st_mtime)[:6] == (2019, 5, 4, 3, 2, 0)


def test_zip_by_another_tool_and_with_data_descriptors(tmp_path: Path) -> None:
    class Pipe:
        def __init__(self, path: Path) -> None:
            self.stream = path.open("wb")

        def write(self, data: bytes) -> int:
            return self.stream.write(data)

        def flush(self) -> None:
            self.stream.flush()

    pipe = Pipe(tmp_path / "made.zip")
    with zipfile.ZipFile(pipe, "w", zipfile.ZIP_DEFLATED) as archive:  # type: ignore[call-overload]
        for name, content in CONTENT.items():
            with archive.open(name, "w", force_zip64=True) as member:
                member.write(content)
    pipe.stream.close()
    assert contents(tmp_path, opened(tmp_path, (tmp_path / "made.zip").read_bytes())) == CONTENT


# 3,900 bytes of text by 7-Zip, with the method deflate64.
DEFLATE64 = base64.b64decode(
    b"UEsDBBUAAAAJACOsfV3MTbpyRgAAADwPAAABAAAAdOXMqQ0AIBBFwVYogdtQDhgE2QToP9hfA0+OGe/G7LaO7dtcUERFUmRFUVQF"
    b"vsbX+Bpf42t8ja/xNb7G1/gaX+NrfP1h/QBQSwECPwMVAAAACQAjrH1dzE26ckYAAAA8DwAAAQAkAAAAAAAAACCApIEAAAAAdAoA"
    b"IAAAAAAAAQAYAFc7ZzhJgN0BAAAAAAAAAAAAAAAAAAAAAFBLBQYAAAAAAQABAFMAAABlAAAAAAA="
)


def test_zip_with_deflate64(tmp_path: Path) -> None:
    text = b"".join(b"%d dicomsort; " % (number % 7) for number in range(300))
    assert contents(tmp_path / "whole", opened(tmp_path / "whole", DEFLATE64)) == {"t": text}
    data = bytearray(DEFLATE64)
    data[data.index(b"PK\x01\x02") + 16] ^= 1  # the checksum
    assert [m.reason for m in opened(tmp_path / "damaged", bytes(data)).members] == [DAMAGED]


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
@pytest.mark.parametrize("kind", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_tar(tmp_path: Path, mode: str, kind: int) -> None:
    folder = tarfile.TarInfo("DICOM")
    folder.type = tarfile.DIRTYPE
    assert contents(tmp_path, opened(tmp_path, tarred(CONTENT, mode, kind, folder), "a")) == CONTENT


def test_tar_with_zstd_and_an_empty_one(tmp_path: Path) -> None:
    assert contents(tmp_path / "1", opened(tmp_path / "1", zstd.compress(tarred(CONTENT)), "a")) == CONTENT
    assert opened(tmp_path / "2", tarred({}, "w:gz"), "a.tar") == Unpacked()


def test_what_holds_no_tar_is_left(tmp_path: Path) -> None:
    assert opened(tmp_path / "1", gzip.compress(b"NIfTI" * 1000), "brain.nii.gz") == Unpacked(
        reason="archive", message="it holds no TAR file"
    )
    assert opened(tmp_path / "2", gzip.compress(b"")).reason == "archive"
    assert opened(tmp_path / "3", b"7z\xbc\xaf\x27\x1c" + bytes(600), "a.7z").reason == "archive"


@pytest.mark.parametrize(
    ("name", "data"),
    [("a.zip", zipped(CONTENT))] + [(f"a.tar{end}", tarred(CONTENT, f"w:{end}")) for end in ("", "gz", "bz2", "xz")],
    ids=["zip", "tar", "gz", "bz2", "xz"],
)
def test_one_that_is_cut_short_is_damaged_as_a_whole(tmp_path: Path, name: str, data: bytes) -> None:
    whole = len(data.rstrip(b"\0")) + 1024 if name == "a.tar" else len(data)  # a TAR file ends in padding
    for cut in {1024, whole // 2, whole - 1, *range(600, whole, max(whole // 12, 1))}:
        assert opened(tmp_path / str(cut), data[:cut], name).reason == DAMAGED, cut


def test_a_damaged_member_costs_only_itself(tmp_path: Path) -> None:
    data = bytearray(zipped(CONTENT, zipfile.ZIP_STORED))
    data[data.index(b"oneoneone")] ^= 1
    unpacked = opened(tmp_path, bytes(data))
    assert [(m.name, m.reason) for m in unpacked.members] == [
        ("DICOM/1", DAMAGED),
        ("DICOM/2", ""),
        ("Röntgen.txt", ""),
    ]
    assert "CRC" in unpacked.members[0].message
    assert sorted(read_tree(tmp_path / "staging")) == ["1", "2"]


def test_an_unknown_method_costs_only_its_member(tmp_path: Path) -> None:
    data = bytearray(zipped({"a": b"x"}))
    for magic, offset in ((b"PK\x03\x04", 8), (b"PK\x01\x02", 10)):
        data[data.index(magic) + offset] = 98  # PPMd
    data = bytes(data)
    assert [m.reason for m in opened(tmp_path, data).members] == [DAMAGED]


def test_an_encrypted_one_is_left_whole(tmp_path: Path) -> None:
    data = bytearray(zipped({"a": b"x"}))
    for magic, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        data[data.index(magic) + offset] |= 1
    assert opened(tmp_path, bytes(data)).reason == ENCRYPTED


def test_members_that_share_bytes_are_a_bomb(tmp_path: Path) -> None:
    data = zipped({"a": b"x" * 1000, "b": b"x" * 1000}, zipfile.ZIP_STORED)
    directory = data.index(b"PK\x01\x02")
    second = data.index(b"PK\x01\x02", directory + 1)
    lying = bytearray(data)
    lying[second + 42 : second + 46] = bytes(4)  # the offset of the first
    unpacked = opened(tmp_path, bytes(lying))
    assert (unpacked.reason, unpacked.members) == (DAMAGED, ())
    assert "share bytes" in unpacked.message


@pytest.mark.parametrize(("field", "value"), [(20, 0xFFFF_FF00), (24, 0xFFFF_FF00), (42, 0xFFFF_FF00)])
def test_a_directory_that_lies_unpacks_nothing(tmp_path: Path, field: int, value: int) -> None:
    data = bytearray(zipped({"a": b"x" * 1000}, zipfile.ZIP_STORED))
    at = data.index(b"PK\x01\x02") + field
    data[at : at + 4] = struct.pack("<I", value)
    assert opened(tmp_path, bytes(data)).reason in {DAMAGED, LIMIT}


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        (ArchiveLimits(2, 1 << 24, 1 << 26, 200.0, 600.0), "at most 2 files"),
        (ArchiveLimits(9, 1 << 16, 1 << 26, 200.0, 600.0), "files of at most 65,536 bytes, received one of 210,000"),
        (ArchiveLimits(9, 1 << 24, 1 << 16, 200.0, 600.0), "files of at most 65,536 bytes together"),
    ],
)
@pytest.mark.parametrize("data", [zipped(CONTENT), tarred(CONTENT, "w:gz")], ids=["zip", "tar"])
def test_limits(tmp_path: Path, data: bytes, limits: ArchiveLimits, expected: str) -> None:
    unpacked = opened(tmp_path, data, limits=limits)
    assert unpacked.reason == LIMIT
    assert expected in unpacked.message


def test_a_bomb_is_no_archive(tmp_path: Path) -> None:
    zeros, limits = {"zeros": bytes(100 << 20)}, ArchiveLimits(9, 1 << 40, 1 << 40, 200.0, 600.0)
    for name, data in (("a.zip", zipped(zeros)), ("a.tgz", tarred(zeros, "w:gz"))):
        unpacked = opened(tmp_path / name, data, name, limits)
        assert (unpacked.reason, "67,108,864 bytes together" in unpacked.message) == (LIMIT, True)
        written = sum(path.stat().st_size for path in (tmp_path / name / "staging").iterdir())
        assert written <= 64 << 20


def test_a_promise_beyond_the_room_is_no_fault_of_the_archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there = os.statvfs(tmp_path)
    monkeypatch.setattr(os, "statvfs", lambda _: type("Disk", (), {"f_bavail": 1, "f_frsize": 4096, "real": there}))
    unpacked = opened(tmp_path, zipped(CONTENT))
    assert (unpacked.reason, unpacked.members) == ("", ())
    assert unpacked.failed == "expected room to unpack 213,000 bytes or more, received 2,048 bytes free"


UNSAFE = [
    "/etc/passwd",
    "../a",
    "a/../../b",
    "C:\\a",
    "\\\\host\\a",
    "a\nb",
    "a\x00b",
    "..\\a",
    "x" * 256,
    "a/" * 600 + "a",
]


@pytest.mark.parametrize("name", UNSAFE)
def test_unsafe_names_are_not_unpacked(tmp_path: Path, name: str) -> None:
    data = zipped({name.replace("\0", "0"): b"1", "good": b"2"})
    unpacked = opened(tmp_path, data.replace(b"a0b", b"a\0b"))
    assert [(m.file, m.reason) for m in unpacked.members] == [("", UNSAFE_NAME), ("1", "")]
    assert set(read_tree(tmp_path)) == {"study.zip", "staging/1"}
    assert unpacked.members[0].name.isprintable()


@given(st.text(max_size=300))
def test_no_name_leads_anywhere(name: str) -> None:
    safe, unsafe = safe_name(name)
    assert bool(safe) != bool(unsafe)
    parts = safe.split("/")
    assert not {"..", "."} & set(parts)
    assert not safe.startswith("/")
    assert "\0" not in safe


def test_links_and_devices_are_not_unpacked(tmp_path: Path) -> None:
    others = []
    for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE):
        others.append(info := tarfile.TarInfo(kind.decode()))
        info.type, info.linkname = kind, "../../etc/passwd"
    unpacked = opened(tmp_path / "tar", tarred({"a": b"1"}, "w", tarfile.GNU_FORMAT, *others), "a.tar")
    assert [m.message for m in unpacked.members] == [
        "",
        "it is a link",
        "it is a link",
        "it is a device",
        "it is a device",
    ]
    link = zipfile.ZipInfo("link")
    link.create_system, link.external_attr = 3, 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr(link, "/etc/passwd")
    unpacked = opened(tmp_path / "zip", (tmp_path / "a.zip").read_bytes())
    assert [(m.reason, m.message) for m in unpacked.members] == [(UNSAFE_NAME, "it is a link")]


def test_a_folder_in_a_zip_file_that_has_bytes_is_told(tmp_path: Path) -> None:
    unpacked = opened(tmp_path, zipped({"a": b"1", "empty/": b"", "b/": b"2"}))
    assert [(m.name, m.reason) for m in unpacked.members] == [("a", ""), ("b∕", UNSAFE_NAME)]
    assert unpacked.members[1].message == "it has bytes, and the name of a folder"


def test_an_archive_that_changes_is_not_placed(tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(zipped(CONTENT))
    before = found(tmp_path / "a.zip")
    os.utime(tmp_path / "a.zip", (1, 1))
    unpacked = unpack(UnpackRequest(str(tmp_path), before, str(tmp_path / "staging"), LIMITS))
    assert unpacked.failed == "the archive changed while it was read"
    (tmp_path / "a.zip").unlink()
    assert (
        unpack(UnpackRequest(str(tmp_path), before, str(tmp_path / "staging"), LIMITS)).failed
        == "No such file or directory"
    )


def test_what_follows_or_precedes_an_archive_is_not_overlooked(tmp_path: Path) -> None:
    for number, data in enumerate((tarred(CONTENT) * 2, tarred(CONTENT, "w:gz") * 2, zipped(CONTENT) * 2)):
        assert opened(tmp_path / str(number), data, "a.tar").reason == DAMAGED


def test_names_in_code_page_437_and_in_utf_8(tmp_path: Path) -> None:
    old = zipped({"R?ntgen": b"1"}).replace(b"R?ntgen", b"R\x94ntgen")
    assert [m.name for m in opened(tmp_path / "old", old).members] == ["Röntgen"]
    assert [m.name for m in opened(tmp_path / "new", zipped({"日本/Röntgen": b"1"})).members] == ["日本/Röntgen"]


def test_times_that_are_none_and_parts_of_several(tmp_path: Path) -> None:
    info = tarfile.TarInfo("a")
    info.pax_headers = {"mtime": "inf"}
    unpacked = opened(tmp_path / "tar", tarred({"b": b"1"}, "w", tarfile.PAX_FORMAT, info), "a.tar")
    assert [m.file for m in unpacked.members] == ["0", "1"]
    assert (tmp_path / "tar" / "staging" / "1").stat().st_mtime <= (tmp_path / "tar" / "a.tar").stat().st_mtime
    part = bytearray(zipped({"a": b"x"}))
    part[part.index(b"PK\x01\x02") + 34] = 2
    assert opened(tmp_path / "zip", bytes(part)).message == "expected a whole ZIP file, received one part of several"


def test_whatever_a_library_raises_costs_only_the_archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = zipped(CONTENT)

    def raising(*_: object) -> None:
        raise AssertionError("in a library")

    monkeypatch.setattr(zipfile, "ZipFile", raising)
    expected = "expected a whole archive, received: AssertionError"
    assert opened(tmp_path, data) == Unpacked((), DAMAGED, expected)
    monkeypatch.setattr(zipfile, "ZipFile", lambda _: bytearray(1 << 62))
    with pytest.raises(MemoryError):
        unpack(UnpackRequest(str(tmp_path), found(tmp_path / "study.zip"), str(tmp_path / "other"), LIMITS))


def test_bytes_that_are_no_archive_raise_nothing(tmp_path: Path) -> None:
    generator = random.Random(0)
    samples = [zipped(CONTENT), tarred(CONTENT), tarred(CONTENT, "w:gz"), tarred(CONTENT, "w:xz")]
    for number in range(300):
        data = bytearray(samples[number % 4])
        for _ in range(generator.randrange(1, 9)):
            data[generator.randrange(4, len(data))] = generator.randrange(256)
        folder = tmp_path / str(number)
        unpacked = opened(folder, bytes(data), "a.tar.gz")
        assert not unpacked.failed
        remove_staging(Files(), str(folder / "staging"))
        assert not (folder / "staging").exists()


def test_sparse_files_come_out_whole(tmp_path: Path) -> None:
    with (tmp_path / "sparse").open("wb") as stream:
        stream.seek(3 << 20)
        stream.write(b"end")
    made = subprocess.run(["tar", "-S", "-cf", "a.tar", "sparse"], cwd=tmp_path, check=False, capture_output=True)
    if made.returncode:
        pytest.skip("no GNU tar")
    unpacked = opened(tmp_path / "out", (tmp_path / "a.tar").read_bytes(), "a.tar")
    assert contents(tmp_path / "out", unpacked) == {"sparse": (tmp_path / "sparse").read_bytes()}
