from __future__ import annotations

import importlib
import io
import sys
from pathlib import Path
from types import ModuleType

import pytest
from building import read_tree
from PIL import Image
from pydicom import dcmread

pytest.importorskip("data_store", reason="the package pydicom-data is not installed")
LAST = 1_999_999  # of the number of files that the generator promises


@pytest.fixture(scope="module")
def inboxes(root: Path) -> ModuleType:
    return _script(root, "inboxes")


def _script(root: Path, name: str) -> ModuleType:
    sys.path.insert(0, str(root / "benchmarks"))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.pop(0)


@pytest.mark.parametrize("kind", ["small", "slices", "tiny"])
def test_generated_files_keep_their_length_and_are_read_by_pydicom(inboxes: ModuleType, kind: str) -> None:
    for make, template in zip(inboxes.KINDS[kind], inboxes.templates(kind), strict=True):
        original, found = make(), []
        for numbers in ((0, 0, 0), (1, 2, 3), (LAST, LAST, LAST)):
            content = template.filled(numbers)
            assert len(content) == len(original)
            dataset = dcmread(io.BytesIO(content))
            assert dataset.file_meta.MediaStorageSOPInstanceUID == dataset.SOPInstanceUID
            assert all(dataset[keyword].value.is_valid for keyword in inboxes.UIDS)
            assert (dataset.pixel_array == dcmread(io.BytesIO(original)).pixel_array).all()
            found += [str(dataset[keyword].value) for keyword in inboxes.UIDS]
        assert len(set(found)) == len(found)


def test_an_inbox_has_the_shape_asked_for_and_no_two_files_alike(inboxes: ModuleType, tmp_path: Path) -> None:
    places = inboxes.fill(tmp_path / "inbox", 12, "tiny", inboxes.Shape(per_study=6, per_series=2))
    headers = [dcmread(io.BytesIO(content)) for content in read_tree(tmp_path / "inbox").values()]
    counts = [len({header[keyword].value for header in headers}) for keyword in inboxes.UIDS]
    assert counts == [2, 6, 12]
    assert len(places) == len(set(read_tree(tmp_path / "inbox").values())) == 12


def test_files_that_were_moved_are_known_by_their_bytes_and_taken_back(inboxes: ModuleType, tmp_path: Path) -> None:
    places = inboxes.fill(tmp_path / "inbox", 4, "tiny", inboxes.Shape(2, 1))
    before = read_tree(tmp_path / "inbox")
    for number, path in enumerate(list(inboxes.files_below(tmp_path / "inbox"))):
        Path(path).rename(tmp_path / "inbox" / f"moved{number}")
    found = inboxes.arrived(tmp_path / "inbox", places)
    assert sorted(Path(path).name for path in found.values()) == ["moved0", "moved1", "moved2", "moved3"]
    inboxes.roll_back(found, tmp_path / "again", places)
    assert read_tree(tmp_path / "again") == before
    (tmp_path / "again" / places[next(iter(places))]).write_bytes(b"torn")
    assert len(inboxes.arrived(tmp_path / "again", places)) == 3


def test_uids_without_room_for_the_number_are_refused(inboxes: ModuleType) -> None:
    with pytest.raises(ValueError, match="expected room"):
        inboxes.renumbered(20, 2, LAST)
    with pytest.raises(ValueError, match="expected room"):
        inboxes.renumbered(40, 2, LAST + 1)


def test_pictures_are_of_real_size_and_no_two_alike(root: Path) -> None:
    pictures = _script(root, "pictures")
    encoded = [pictures.encoded(number) for number in range(4)]
    images = [Image.open(io.BytesIO(content)) for content in encoded]
    assert [image.format for image in images] == ["PNG", "JPEG"] * 2
    assert all(512 <= max(image.size) <= 1024 for image in images)
    assert len(set(encoded)) == 4
    assert pictures.encoded(1) == encoded[1]


def test_results_are_pasted_between_the_marks_alone(root: Path, tmp_path: Path) -> None:
    report = _script(root, "report")
    document = tmp_path / "RESULTS.md"
    document.write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n")
    table = report.Table(("tool", "files/s"), [("one|two", "3")])
    sections = {"a": report.Section("a", "Title", "Text.", [table], {}, "Measured.")}
    report.save(tmp_path / "results.json", sections)
    report.paste(document, report.markdown(report.load(tmp_path / "results.json")))
    assert document.read_text() == (
        f"before\n{report.BEGIN}\nMeasured.\n\n## Title\nText.\n\n| tool | files/s |\n| --- | ---: |\n"
        f"| one\\|two | 3 |\n\n{report.END}\nafter\n"
    )
