"""Looking early changes nothing but the time: the same frames decide, and none is shown twice."""

from __future__ import annotations

import hashlib
from collections import Counter
from pathlib import Path
from typing import Any

import command
import pytest
from building import STORAGE, make_dicom, uid
from hypothesis import given
from hypothesis import strategies as st

from dicomsort import tasks
from dicomsort.bundle import BundleReference, default_path, load
from dicomsort.catalog import Catalog
from dicomsort.classify import Criteria, grouping_of, showable_frames
from dicomsort.engines.engine import SerialEngine
from dicomsort.progress import Silent
from dicomsort.records import Examined, Found, Header, Kind, Prediction
from dicomsort.sorting import pixel_sampling
from dicomsort.sorting.pixel_sampling import FRAMES, PixelSampler, middle_half

JUDGE = Criteria(("CT", "MRI", "XRAY"), {"CT": "CT", "MRI": "MRI", "XRAY": "XRAY"}, 0.8, 0.9)
NEVER = 1 << 40

# A file: its series, its instance number, its frames, and whether its header names a class.
FILES = st.lists(
    st.tuples(st.integers(0, 4), st.integers(0, 9), st.sampled_from([1, 1, 1, 7]), st.booleans()), max_size=40
)


def examined(place: int, series: int, instance: int, frames: int, *, clear: bool) -> Examined:
    uids = {"study_uid": uid(1), "series_uid": uid(1, series), "sop_uid": uid(1, series, place)}
    sop_class, modality = (STORAGE["CT"], "CT") if clear else (STORAGE["OT"], "OT")
    header = Header(
        Kind.DICOM, sop_class_uid=sop_class, modality=modality, instance_number=str(instance), frames=frames, **uids
    )
    return Examined(Found(f"{place:04d}.dcm", 1, 1, 1, place + 1), header, "00")


def run(files: list[tuple[int, int, int, bool]], quiet: int, batch: int) -> tuple[dict[Any, Any], Counter[Any]]:
    """The votes by group, and how often each frame was shown."""
    shown: Counter[Any] = Counter()

    def look(_: BundleReference, __: str, frames: list[tuple[str, int | None]]) -> list[Prediction]:
        shown.update(frames)
        return [seen_in(path, frame) for path, frame in frames]

    with pytest.MonkeyPatch.context() as patch, Catalog() as catalog:
        patch.setattr(pixel_sampling, "QUIET", quiet)
        patch.setattr(pixel_sampling, "predict_frames", look)
        sampler = PixelSampler("", BundleReference("", ""), JUDGE, SerialEngine(), catalog, Silent())
        items = [examined(i, s, n, frames, clear=clear) for i, (s, n, frames, clear) in enumerate(files)]
        for start in range(0, len(items), batch):
            part = items[start : start + batch]
            sampler.files_added(catalog.add([(e, grouping_of(e), showable_frames(e)) for e in part]))
        catalog.complete()
        sampler.run()
        votes = {group.grouping: vote for study in catalog.studies() for group, vote in study}
    return votes, shown


def seen_in(path: str, frame: int | None) -> Prediction:
    """What a model would see: for some CT, confidently or not, for some MRI, in some nothing."""
    kind = hashlib.sha256(f"{path} {frame}".encode()).digest()[0] % 5
    if kind == 0:
        return Prediction(problem="truncated pixel data")
    return Prediction(
        ((0.98, 0.01, 0.01), (0.5, 0.3, 0.2), (0.01, 0.98, 0.01), (0.2, 0.7, 0.1))[kind - 1], distance=1.0
    )


@given(FILES, st.integers(1, 12), st.integers(1, 5))
def test_looking_early_gives_the_same_votes(files: list[tuple[int, int, int, bool]], quiet: int, batch: int) -> None:
    votes, shown = run(files, quiet, batch)
    expected, asked = run(files, NEVER, batch)
    assert votes == expected
    assert max(shown.values(), default=1) == 1
    assert asked.keys() <= shown.keys()


def test_series_that_come_one_after_the_other_are_looked_at_early_and_nothing_is_wasted() -> None:
    files = [(series, place, 1, True) for series in range(5) for place in range(20)]
    _, shown = run(files, 8, 4)
    assert shown == run(files, NEVER, 4)[1]


def test_a_series_that_trickles_in_is_looked_at_early_once() -> None:
    files = [(0, 0, 1, True) if place % 10 == 0 else (1 + place % 3, place, 1, True) for place in range(400)]
    _, shown = run(files, 4, 1)
    assert shown.total() <= run(files, NEVER, 1)[1].total() + 4


def test_frames_come_from_the_middle_half() -> None:
    assert middle_half(100, FRAMES) == [30, 40, 50, 60, 70]
    assert middle_half(2, FRAMES) == [0, 1]
    assert middle_half(0, FRAMES) == []


def test_a_frame_that_cannot_be_shown_says_why_and_spoils_no_other(tmp_path: Path) -> None:
    (tmp_path / "cut.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    make_dicom(tmp_path / "whole.dcm")
    bundle = load(default_path()).reference
    cut, whole = tasks.predict_frames(bundle, str(tmp_path), [("cut.png", None), ("whole.dcm", None)])
    assert cut.problem
    assert not cut.probabilities
    assert sum(whole.probabilities) == pytest.approx(1, abs=1e-5)
    assert whole.distance is not None


def test_a_clear_header_is_denied_only_after_more_frames_were_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model is sure of another class in every frame: a person is asked, but not because of a single one."""
    asked: list[str] = []

    def look(_: BundleReference, __: str, frames: list[tuple[str, int | None]]) -> list[Prediction]:
        asked.extend(path for path, _ in frames)
        return [Prediction((0.001, 0.997, 0.001, 0.001), distance=1.0) for _ in frames]

    monkeypatch.setattr(pixel_sampling, "predict_frames", look)
    for i in range(8):
        make_dicom(tmp_path / "in" / f"{i}.dcm", study=1, instance=i + 1)
    ran = command.run("sort", "--engine", "serial", "--quiet", tmp_path / "in", tmp_path / "out")
    assert ran.code == 3
    rows = command.by_source(tmp_path / "out").values()
    assert {(row["reason"], row["pixel_class"]) for row in rows} == {("header-against-pixels", "MRI")}
    assert sorted(asked) == ["2.dcm", "3.dcm", "4.dcm", "5.dcm"]  # one first, then all of the middle half
