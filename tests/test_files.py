"""What the functions of ``files`` and ``metadata`` do where a name, a system or a disk is not as they expect."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from test_metadata import OWNER, acl

from dicomsort import files as files_module
from dicomsort.files import Files, check_input, closing_descriptor, opened
from dicomsort.metadata import ACL, apply_metadata, metadata_of


@pytest.mark.parametrize("kind", ["folder", "link", "FIFO"])
def test_only_a_regular_file_is_appended_to(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "log"
    if kind == "folder":
        path.mkdir()
    elif kind == "link":
        path.symlink_to(tmp_path / "other")
    else:
        os.mkfifo(path)
    with pytest.raises(OSError, match="it is no regular file"):
        Files().open_append(str(path))
    assert not (tmp_path / "other").exists()


def test_a_fifo_that_took_the_name_meanwhile_is_not_appended_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "log"
    os.mkfifo(path)
    monkeypatch.setattr(files_module, "look_up", lambda _: None)
    with pytest.raises(OSError, match="it is no regular file"):
        Files().open_append(str(path))


def test_a_standard_stream_is_written_where_it_stands(capfd: pytest.CaptureFixture[str]) -> None:
    os.write(1, b"first\n")
    with closing_descriptor(Files().open_device("/dev/stdout")) as descriptor:
        Files().write(descriptor, b"second\n")
    assert capfd.readouterr().out == "first\nsecond\n"


def test_another_device_is_opened() -> None:
    with closing_descriptor(Files().open_device(os.devnull)) as descriptor:
        Files().write(descriptor, b"gone")
        assert os.path.samestat(os.fstat(descriptor), Path(os.devnull).stat())


def test_a_system_without_allocation_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "posix_fallocate")
    with (
        closing_descriptor(Files().create(str(tmp_path / "file"))) as descriptor,
        pytest.raises(OSError, match="not implemented"),
    ):
        Files().allocate(descriptor, 1)


def test_a_full_quota_of_the_owner_costs_the_owner_and_another_error_the_file(tmp_path: Path) -> None:
    class Refusing(Files):
        code = errno.EDQUOT

        def set_owner(self, descriptor: int, owner: int, group: int) -> None:
            raise OSError(self.code, os.strerror(self.code))

    (tmp_path / "a").touch()
    with opened(str(tmp_path / "a")) as reader:
        wanted = metadata_of(reader)._replace(owner=OWNER[0])
        with closing_descriptor(Files().create(str(tmp_path / "b"))) as writer:
            assert apply_metadata(Refusing(), writer, wanted, 0).message == "not kept: owner"
            Refusing.code = errno.EIO
            with pytest.raises(OSError, match=os.strerror(errno.EIO)):
                apply_metadata(Refusing(), writer, wanted, 0)


def test_the_default_access_list_of_a_folder_does_not_stay_on_a_file_that_had_none(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    (folder := tmp_path / "folder").mkdir()
    try:
        os.setxattr(folder, "system.posix_acl_default", acl(7, 7))
    except OSError as error:
        pytest.skip(f"no access lists here: {error.strerror}")
    with opened(str(tmp_path / "a")) as reader, closing_descriptor(Files().create(str(folder / "b"))) as writer:
        assert ACL in os.listxattr(writer)
        assert apply_metadata(Files(), writer, metadata_of(reader), 0).message == ""
        assert ACL not in os.listxattr(writer)


class Cloning(Files):
    """A file system that makes reflinks."""

    def clone(self, source: int, target: int) -> None: ...


class Refusing(Files):
    """One that makes none."""

    def clone(self, source: int, target: int) -> None:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP), source, None, target)


def test_whether_blocks_are_shared_is_tried_and_leaves_nothing(tmp_path: Path) -> None:
    assert Cloning().shares_blocks(str(tmp_path))
    assert not Refusing().shares_blocks(str(tmp_path))
    assert not Files().shares_blocks(str(tmp_path / "nowhere"))
    assert [*tmp_path.iterdir()] == []


def test_what_is_handed_over_open_is_not_read_before_its_reader(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    check_input("/dev/stdin")
    with pytest.raises(OSError, match="it is no regular file"):
        check_input(tmp_path / "fifo")
