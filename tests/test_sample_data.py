from __future__ import annotations

import hashlib
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
from building import read_tree


@pytest.fixture(scope="module")
def script(root: Path) -> ModuleType:
    pytest.importorskip("data_store", reason="the package pydicom-data is not installed")
    sys.path.insert(0, str(root / "sample_data"))
    try:
        import make_inbox
    finally:
        sys.path.pop(0)
    return make_inbox


def test_the_script_makes_the_committed_inbox(root: Path, script: ModuleType, tmp_path: Path) -> None:
    if script.made_with() not in (root / "sample_data" / "README.md").read_text("utf-8"):
        pytest.skip(f"the inbox was made with other versions than these: {script.made_with()}")
    script.build(tmp_path)
    assert _hashes(tmp_path / "inbox") == _hashes(root / "sample_data" / "inbox")
    for name in ("README.md", "NOTICE"):
        assert (tmp_path / name).read_text("utf-8") == (root / "sample_data" / name).read_text("utf-8")


def test_readme_lists_every_file_of_the_inbox(root: Path, sample_inbox: Path) -> None:
    listed = re.findall(r"^\| `(.+?)` \|", (root / "sample_data" / "README.md").read_text("utf-8"), re.MULTILINE)
    assert sorted(listed) == sorted(read_tree(sample_inbox))


def test_inbox_is_small(sample_inbox: Path) -> None:
    assert sum(map(len, read_tree(sample_inbox).values())) < 8_000_000


def test_inbox_holds_a_duplicate_and_two_contents_of_one_uid(sample_inbox: Path) -> None:
    from pydicom import dcmread

    tree = read_tree(sample_inbox)
    assert tree["export/IM0001 (copy).dcm"] == tree["CD_2019/DICOM/PA1/ST1/SE1/IM0001"]
    pair = [sample_inbox / "from-modality/ct" / name for name in ("1.dcm", "sent again/1.dcm")]
    first, second = map(dcmread, pair)
    assert first.SOPInstanceUID == second.SOPInstanceUID
    assert first.PixelData != second.PixelData


def _hashes(folder: Path) -> dict[str, str]:
    return {path: hashlib.sha256(content).hexdigest() for path, content in read_tree(folder).items()}
