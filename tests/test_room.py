"""Room is asked for on each disk of an outbox before the first file, for as many bytes as will be written there."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Protocol

import numpy as np
import pytest
from building import make_dicom
from command import placed, sort

from dicomsort.sorting.outbox import data_size

MIB = 1 << 20


class Mount(Protocol):
    def __call__(self, folder: Path, size: int) -> Path: ...


@pytest.fixture
def mount() -> Iterator[Mount]:
    """Mount file systems of so many MiB."""
    with ExitStack() as stack:

        def mounted(folder: Path, size: int) -> Path:
            folder.mkdir()
            command = ["mount", "-t", "tmpfs", "-o", f"size={size}m", "tmpfs", folder]
            if sys.platform != "linux" or subprocess.run(command, check=False, capture_output=True).returncode:
                pytest.skip("a tmpfs may not be mounted here")
            stack.callback(subprocess.run, ["umount", folder], check=True)
            return folder

        yield mounted


@pytest.fixture
def large(inbox: Path) -> Path:
    """An inbox with an image of 3 MiB."""
    make_dicom(inbox / "large.dcm", study=7, pixels=np.ones((1024, 1536), np.uint16))
    return inbox


@pytest.mark.parametrize("mode", ["--copy", "--move"])
def test_a_class_has_the_room_of_its_own_mount(large: Path, tmp_path: Path, mount: Mount, mode: str) -> None:
    outbox = mount(tmp_path / "out", 2)
    mount(outbox / "CT", 8)
    assert sort(mode, "--settle", 0, "--dry-run", large, outbox).code == 0
    assert sort(mode, "--settle", 0, large, outbox).code == 0
    assert any((outbox / path).stat().st_size > 3 * MIB for path in placed(outbox))


@pytest.mark.parametrize("options", [("--copy",), ("--move", "--settle", 0), ("--dry-run",)])
def test_a_class_whose_own_mount_is_too_small_is_named(
    large: Path, tmp_path: Path, mount: Mount, options: tuple[object, ...]
) -> None:
    outbox = tmp_path / "out"
    outbox.mkdir()
    mount(outbox / "CT", 1)
    ran = sort(*options, large, outbox)
    assert (ran.code, f"outbox '{outbox}/CT': expected room for 3," in ran.err) == (1, True)
    assert "received 1,048,576 free: 2," in ran.err
    assert list(placed(outbox)) == []


@pytest.mark.parametrize("mode", ["--copy", "--move"])
def test_holes_of_a_file_that_moves_need_no_room(large: Path, tmp_path: Path, mount: Mount, mode: str) -> None:
    with (large / "large.dcm").open("ab") as file:  # Data Set Trailing Padding
        file.write(b"\xfc\xff\xfc\xffOB\0\0" + (16 * MIB).to_bytes(4, "little"))
        file.truncate(file.tell() + 16 * MIB)
    if (size := data_size(str(large / "large.dcm"))) > 4 * MIB:
        pytest.skip("a file system without holes")
    assert size > 3 * MIB
    outbox = mount(tmp_path / "out", 8)
    ran = sort(mode, "--settle", 0, large, outbox)
    assert ran.code == (1 if mode == "--copy" else 0), ran.err
    assert ("expected room for 19," in ran.err) == (mode == "--copy")


def test_holes_are_counted_by_extents(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"x" * 1000)
    assert data_size(str(file)) == 1000
    os.truncate(file, 64 * MIB)
    assert data_size(str(file)) in {64 * MIB, *range(1000, MIB)}  # the first where the file system has no holes
