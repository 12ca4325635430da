"""A bundle that another takes the place of while a command works with it: no answer of one is taken for the other's."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
from building import make_dicom, read_tree
from command import by_source, placed, rows, run, sort
from reports import holding
from reviewing import OneByOne, picture
from watching import Timer, Watch, runs_of, told

from dicomsort.bundle import default_path, load, predictor_of
from dicomsort.engines.engine import SerialEngine
from dicomsort.errors import BundleChanged
from dicomsort.pages.review import Gallery
from dicomsort.records import Prediction
from dicomsort.sorting import pixel_sampling
from dicomsort.tasks import PictureRequest, predict_frames
from dicomsort.training.evaluate import reporting

NAMES = {"CT": "TOMO", "MRI": "MAGNET", "XRAY": "RADIO"}
REFUSED = "expected the one that the command began with, received another in its place; run the command again"


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return Path(shutil.copytree(default_path(), tmp_path / "bundle"))


def replace(folder: Path, **changes: object) -> None:
    """Put another bundle there, as a training does, by a rename; it calls the classes otherwise, and turns them."""
    old = folder.rename(folder.with_name("old"))
    new = Path(shutil.copytree(old, folder.with_name("new")))
    spec = json.loads((new / "bundle.json").read_text("utf-8"))
    renamed = {"labels": [NAMES.get(label, label) for label in reversed(spec["labels"])], "header_classes": NAMES}
    (new / "bundle.json").write_text(json.dumps(spec | (changes or renamed)), "utf-8")
    new.rename(folder)


def test_a_worker_takes_no_other_bundle_for_the_one_that_is_meant(bundle: Path) -> None:
    meant = load(bundle).reference
    first = predictor_of(meant)
    replace(bundle)
    assert predictor_of(meant) is first  # loaded before: this is still the one that is meant
    predictor_of.cache_clear()
    with pytest.raises(BundleChanged, match=REFUSED):
        predictor_of(meant)
    assert predictor_of(load(bundle).reference).bundle.labels[-1] == "TOMO"
    shutil.rmtree(bundle)
    with pytest.raises(BundleChanged, match=r"began with, received model .* received nothing there; run the command"):
        predictor_of(meant)


COMMANDS: dict[str, Callable[[Path], tuple[object, ...]]] = {
    "sort": lambda at: ("sort", "--evidence", "auto", at / "dataset", at / "sorted"),
    "sort --dry-run": lambda at: ("sort", "--evidence", "auto", "--dry-run", at / "dataset"),
    "predict": lambda at: ("predict", at / "dataset" / "CT" / "1.png"),
    "evaluate": lambda at: ("evaluate", at / "dataset", "--out", at / "figures"),
    "report": lambda at: ("report", "--html", at / "report.html", at / "outbox"),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_whose_bundle_is_replaced_ends_with_1(
    name: str, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for label in ("CT", "MRI"):
        picture(tmp_path / "dataset" / label / "1.png")
    if name == "report":
        holding(tmp_path / "inbox", tmp_path / "outbox")
    before = {*tmp_path.iterdir()}

    class Late(SerialEngine):
        def submit(self, *arguments: Any, **options: Any) -> Future[Any]:
            if not bundle.with_name("old").exists():
                replace(bundle)
            return super().submit(*arguments, **options)

    monkeypatch.setattr("dicomsort.engines.open_engine", lambda *_, **__: Late())
    command, *arguments = COMMANDS[name](tmp_path)
    ran = run(command, "--model", bundle, *arguments)
    assert (ran.code, ran.out) == (1, "")
    assert f"bundle {str(bundle)!r}: {REFUSED}" in ran.err
    left = {*tmp_path.iterdir()} - before - {bundle.with_name("old")}
    assert left <= {tmp_path / "sorted"}
    assert list(placed(tmp_path / "sorted")) == []
    monkeypatch.undo()
    if name == "sort":
        assert sort("--evidence", "auto", "--model", bundle, *arguments[2:]).code in {0, 3}
        assert {row["status"] for row in rows(tmp_path / "sorted")} <= {"sorted", "review", "other"}


def test_an_evaluation_writes_no_card_of_another_bundle(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for label in ("CT", "MRI"):
        picture(tmp_path / "dataset" / label / "1.png")
    choose = reporting.mistakes
    monkeypatch.setattr(reporting, "mistakes", lambda predictions: (replace(bundle), choose(predictions))[1])
    monkeypatch.setattr("dicomsort.engines.open_engine", lambda *_, **__: SerialEngine())
    ran = run("evaluate", "--model", bundle, tmp_path / "dataset", "--out", tmp_path / "figures")
    assert (ran.code, REFUSED in ran.err) == (1, True)
    assert not (tmp_path / "figures").exists()


def test_a_review_goes_on_without_predictions_of_another_bundle(bundle: Path, tmp_path: Path) -> None:
    picture(tmp_path / "1.png")
    meant, gallery = load(bundle).reference, Gallery(OneByOne(), str(tmp_path))
    replace(bundle)
    refused = gallery.preview(PictureRequest("1.png", None, 0, meant), "a")
    assert (refused.prediction, REFUSED in refused.problem) == (None, True)
    assert gallery.preview(PictureRequest("1.png", None, 64), "a").picture


def test_watch_plans_anew_by_the_bundle_that_came(
    bundle: Path, tmp_path: Path, outbox: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "dicomsort")
    make_dicom(tmp_path / "inbox" / "1.dcm", study=1)
    watch = Watch(tmp_path / "inbox", outbox, model=bundle)
    assert told(watch.round()) == [{"sorted": 1}]
    replace(bundle)
    make_dicom(tmp_path / "inbox" / "2.dcm", study=2)
    assert told(watch.round()) == [{"sorted": 1}]
    assert watch.round() == []
    assert {source: row["class"] for source, row in by_source(outbox).items()} == {"1.dcm": "CT", "2.dcm": "TOMO"}
    assert [path.split("/")[0] for path in placed(outbox)] == ["CT", "TOMO"]
    (line,) = [record for record in caplog.records if "model was replaced" in record.getMessage()]
    assert vars(line)["facts"]["model"] == str(bundle)


def test_a_bundle_that_is_replaced_within_a_round_of_watch_places_nothing(
    bundle: Path, tmp_path: Path, outbox: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture(tmp_path / "inbox" / "1.png")
    whole = read_tree(tmp_path / "inbox")
    watch = Watch(tmp_path / "inbox", outbox, model=bundle, evidence="auto")

    def look(*given: object) -> list[Prediction]:
        replace(bundle)
        monkeypatch.undo()
        return predict_frames(*given)

    monkeypatch.setattr(pixel_sampling, "predict_frames", look)
    with pytest.raises(BundleChanged, match=REFUSED):
        watch.round()
    assert (read_tree(tmp_path / "inbox"), list(placed(outbox)), runs_of(outbox)) == (whole, [], [])
    watch.round()
    (row,) = rows(outbox)
    assert row["pixel_class"] in {*NAMES.values(), "OTHER"}


@pytest.mark.parametrize("broken", ["missing", "damaged"])
def test_watch_places_nothing_by_a_broken_bundle_and_goes_on_trying(
    broken: str, bundle: Path, inbox: Path, outbox: Path
) -> None:
    watch = Watch(inbox, outbox, model=bundle)
    before, spec = read_tree(inbox), (bundle / "bundle.json").read_bytes()

    def spoil() -> None:
        if broken == "missing":
            bundle.rename(bundle.with_name("away"))
        else:
            (bundle / "bundle.json").write_text("{")

    def mend() -> None:
        assert (read_tree(inbox), list(placed(outbox))) == (before, [])
        if broken == "missing":
            bundle.with_name("away").rename(bundle)
        (bundle / "bundle.json").write_bytes(spec)

    spoil()
    service, shown, complaints = watch.service(Timer(lambda: None, mend))
    service.run()
    received = "a file, received 'none'" if broken == "missing" else "JSON in UTF-8, received "
    assert len(complaints) == 2
    assert all(f"bundle {str(bundle)!r}: bundle.json: expected {received}" in complaint for complaint in complaints)
    assert told(shown) == [{"sorted": 4, "other": 1, "ignored": 1}]


def test_dask_workers_that_ran_another_bundle_load_the_one_that_came(
    scheduler: str, bundle: Path, tmp_path: Path
) -> None:
    """Their processes stay for a minute after a run."""
    picture(tmp_path / "inbox" / "1.png")
    told: list[str] = []
    for number, engine in enumerate((("--engine", "dask", "--scheduler", scheduler),) * 2 + (("--engine", "serial"),)):
        out = tmp_path / f"out{number}"
        sort(*engine, "--evidence", "auto", "--model", bundle, tmp_path / "inbox", out)
        told.append(by_source(out)["1.png"]["pixel_confidence"])
        if number == 0:
            replace(bundle, temperature=9.0)
    assert told[0] != told[1] == told[2]
