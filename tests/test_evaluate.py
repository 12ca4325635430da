from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from building import make_dicom, make_files, read_tree
from command import Ran, run
from PIL import Image

from dicomsort.bundle import default_path, load
from dicomsort.errors import UsageError
from dicomsort.progress import Reporter
from dicomsort.training.data.fingerprint import encode, of_files
from dicomsort.training.data.robustness import SHORTCUTS
from dicomsort.training.evaluate.card import write_card
from dicomsort.training.evaluate.compare_bundles import on_their_own
from dicomsort.training.evaluate.cross_validation import crossable
from dicomsort.training.evaluate.evaluation import OUTPUTS, _content, _training_run

FOLDERS = ("CT", "mri", "XRAY")
SOURCES, EACH = 2, 2
UNREADABLE = {"CT/note.txt": "no image", "mri/s0/cut.png": b"\x89PNG\r\n\x1a\n"}


class Evaluated(NamedTuple):
    out: Path
    ran: Ran
    report: dict[str, Any]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Noise of several kinds, PNG and DICOM; no folder for one of the bundle's labels, one in small letters."""
    root = tmp_path_factory.mktemp("evaluate") / "dataset"
    random = np.random.default_rng(3)
    for label, name in enumerate(FOLDERS):
        for source in range(SOURCES):
            for number in range(EACH):
                path = root / name / f"s{source}" / str(number)
                path.parent.mkdir(parents=True, exist_ok=True)
                pixels = random.integers(0, 70 * (label + 1) - 20 * source, (60, 80), np.uint8)
                if number:
                    make_dicom(path.with_suffix(".dcm"), pixels=pixels, study=10 * label + source)
                else:
                    Image.fromarray(pixels).save(path.with_suffix(".png"))
    make_files(root, UNREADABLE)
    licences = "path,source,licence\nCT/s0/0.png,s0,CC0\n,s1,CC-BY-4.0\n"
    make_files(root, {"manifest.csv": licences})
    return root


def _evaluate(dataset: Path, out: Path, *options: object) -> Evaluated:
    ran = run("evaluate", dataset, "--out", out, *options)
    assert ran.code == 0, ran.err
    return Evaluated(out, ran, json.loads((out / "metrics.json").read_text("utf-8")))


@pytest.fixture(scope="module")
def evaluated(dataset: Path) -> Evaluated:
    return _evaluate(dataset, dataset.parent / "out", "--shortcuts", "--json")


@pytest.fixture
def bundle(tmp_path: Path) -> Callable[..., Path]:
    """A copy of the bundle that ships, that says this of its training too."""

    def copy(**training: object) -> Path:
        folder = Path(shutil.copytree(default_path(), tmp_path / "bundle"))
        spec = json.loads((folder / "bundle.json").read_text("utf-8"))
        spec["training"] |= training
        (folder / "bundle.json").write_text(json.dumps(spec), "utf-8")
        return folder

    return copy


def test_every_output_is_there_and_the_json_is_the_file(evaluated: Evaluated) -> None:
    assert {path.name for path in evaluated.out.iterdir()} == OUTPUTS
    printed = json.loads(evaluated.ran.out)
    assert printed == {key: value for key, value in evaluated.report.items() if key != "training_run"}
    for name in OUTPUTS - {"card.md", "metrics.json"}:
        with Image.open(evaluated.out / name) as picture:
            assert min(picture.size) > 200
    assert "Judging images" in evaluated.ran.err


def test_the_figures_are_those_of_predict(dataset: Path, evaluated: Evaluated) -> None:
    files = sorted(dataset.glob("*/s*/[01].*"))
    answers = [json.loads(line) for line in run("predict", "--json", *files).out.splitlines()]
    labels = evaluated.report["confusion_matrix"]["labels"]
    matrix = np.zeros((len(labels), len(labels)), int)
    for path, answer in zip(files, answers, strict=True):
        matrix[labels.index(path.parts[-3].upper()), labels.index(answer["class"])] += 1
    assert evaluated.report["confusion_matrix"]["rows_are_truth"] == matrix.tolist()
    assert evaluated.report["images"] == len(files) == len(FOLDERS) * SOURCES * EACH
    assert evaluated.report["accuracy"] == pytest.approx(np.trace(matrix) / len(files), abs=1e-4)


def test_every_figure_has_an_interval_around_it(evaluated: Evaluated) -> None:
    report, intervals = evaluated.report, evaluated.report["intervals"]
    assert report["bootstrap"] == {"unit": "source", "clusters": SOURCES, "resamples": 1000, "seed": 0}
    for name in ("accuracy", "balanced_accuracy", "log_loss", "ece", "mean_recall_by_source"):
        low, high = intervals[name]
        assert low - 1e-3 <= report[name] <= high + 1e-3, name
    for label, figures in intervals["classes"].items():
        assert set(figures) == {"precision", "recall", "f1"}
        assert label == "OTHER" or figures["recall"]
    assert set(intervals["shortcuts"]) == set(report["shortcuts"]) == set(SHORTCUTS)
    assert {"coverage", "accuracy"} == set(intervals["thresholds"]["decide"])


def test_what_is_missing_or_unreadable_is_said(evaluated: Evaluated) -> None:
    assert "No images of OTHER, which the model also knows" in evaluated.ran.err
    assert "Skipped 2 files" in evaluated.ran.err
    assert set(evaluated.report["skipped"]) == set(UNREADABLE)
    card = (evaluated.out / "card.md").read_text("utf-8")
    assert all(path in card for path in UNREADABLE)


def test_sources_and_licences_are_counted(evaluated: Evaluated) -> None:
    assert evaluated.report["data"] == {
        "images": {"CT": 4, "MRI": 4, "OTHER": 0, "XRAY": 4},
        "sources": {"CT": {"s0": 2, "s1": 2}, "MRI": {"s0": 2, "s1": 2}, "OTHER": {}, "XRAY": {"s0": 2, "s1": 2}},
        "licences": {"CC-BY-4.0": 6, "CC0": 6},
    }
    recalls = [row["recall"] for row in evaluated.report["sources"]]
    assert recalls == sorted(recalls)
    assert len(recalls) == len(FOLDERS) * SOURCES


def test_a_person_gets_plain_tables_where_there_is_no_terminal(dataset: Path, tmp_path: Path) -> None:
    shown = _evaluate(dataset, tmp_path / "new" / "out").ran.out
    for words in ("balanced accuracy", "95 % interval", "By class", "Confusion (rows: truth)", "images at or above"):
        assert words in shown
    assert shown.isascii() or "…" in shown
    assert not set("┃│\x1b") & set(shown)


def test_a_person_gets_the_same_tables_on_a_terminal(capsys: pytest.CaptureFixture[str], evaluated: Evaluated) -> None:
    from dicomsort.cli.console import _rich_table
    from dicomsort.training.evaluate.tables import tables

    for table in tables(evaluated.report):
        _rich_table(table)
        shown = capsys.readouterr().out
        assert table.title in shown
        assert all(row[0] in shown for row in table.rows)


def _digests(dataset: Path) -> list[str]:
    from hashlib import sha256

    return [sha256(path.read_bytes()).hexdigest() for path in sorted(dataset.glob("*/s*/[01].*"))]


def test_images_that_were_trained_on_are_said_loudly(
    dataset: Path, tmp_path: Path, bundle: Callable[..., Path]
) -> None:
    seen = _evaluate(dataset, tmp_path / "out", "--model", bundle(files=encode(_digests(dataset)[:5])))
    assert seen.report["trained_on"] == 5
    assert "WARNING: NOT all held out: the model was trained on 5 of these 12 images" in seen.ran.err
    assert "trained on 5 of these 12 images" in (seen.out / "card.md").read_text("utf-8")


def test_a_bundle_that_does_not_tell_is_said_too(dataset: Path, tmp_path: Path, bundle: Callable[..., Path]) -> None:
    unknown = _evaluate(dataset, tmp_path / "out", "--model", bundle(files=""))
    assert unknown.report["trained_on"] is None
    assert "whether these were is not known" in unknown.ran.out


def test_the_whole_training_set_is_known_by_its_fingerprint(
    dataset: Path, tmp_path: Path, bundle: Callable[..., Path]
) -> None:
    from dicomsort.training.data.dataset import scan

    items = [item for item in scan(dataset).items if item.path not in UNREADABLE]
    found = dict(zip(sorted(dataset.glob("*/s*/[01].*")), _digests(dataset), strict=True))
    whole = of_files(items, [found[dataset / item.path] for item in items])
    seen = _evaluate(dataset, tmp_path / "out", "--model", bundle(fingerprint=whole))
    assert seen.report["trained_on"] == 12
    assert "trained on every one of these images" in seen.ran.err


@pytest.mark.parametrize(
    ("files", "expected", "received"),
    [
        (None, "expected a folder with one folder per class", "received nothing there"),
        ({}, "expected at least one folder with images", "received 0 (none)"),
        (
            {"CT/a.png": "x", "CHEST/a.png": "x"},
            "the bundle's labels (CT, MRI, OTHER, XRAY)",
            "received 'CHEST' as well",
        ),
        ({"CT/a.png": "x"}, "expected a readable image", "received none (1 file skipped)"),
    ],
)
def test_a_data_set_that_cannot_be_judged(
    tmp_path: Path, files: dict[str, str | bytes] | None, expected: str, received: str
) -> None:
    if files is not None:
        (tmp_path / "dataset").mkdir()
        make_files(tmp_path / "dataset", files)
    ran = run("evaluate", tmp_path / "dataset", "--out", tmp_path / "out")
    assert (ran.code, ran.out) == (2, "")
    assert expected in ran.err.splitlines()[-1]
    assert received in ran.err.splitlines()[-1]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--cross-validate", "file"), "--cross-validate: expected source, received 'file'"),
        (("--folds", 1), "--folds: expected 0, or 2 or more, received 1"),
        (("--update",), "--update: expected --cross-validate source beside it"),
        (("--model", "gone"), "expected a bundle"),
        (("--groups", "gone.csv"), "--groups 'gone.csv': expected a CSV file"),
    ],
)
def test_a_setting_that_cannot_be(dataset: Path, tmp_path: Path, options: tuple[object, ...], message: str) -> None:
    ran = run("evaluate", dataset, "--out", tmp_path / "out", *options)
    assert (ran.code, ran.out) == (2, "")
    assert message in ran.err
    assert len(ran.err.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_bundle_is_not_written_over(dataset: Path, bundle: Callable[..., Path]) -> None:
    folder = bundle()
    before = read_tree(folder)
    ran = run("evaluate", dataset, "--out", folder)
    assert ran.code == 2
    assert "received a bundle" in ran.err
    assert read_tree(folder) == before


def test_files_of_others_in_the_folder_stay(dataset: Path, tmp_path: Path) -> None:
    make_files(tmp_path, {"out/thesis.txt": "mine"})
    _evaluate(dataset, tmp_path / "out")
    assert (tmp_path / "out" / "thesis.txt").read_text() == "mine"


def test_evaluating_loads_no_tensorflow(dataset: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from dicomsort.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "print({'tensorflow', 'keras', 'pandas'} & set(sys.modules))\n"
    )
    command = [sys.executable, "-c", code, "evaluate", str(dataset), "--out", str(tmp_path / "out")]
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    ran = subprocess.run(command, capture_output=True, text=True, check=True, env=env)
    assert ran.stdout.splitlines()[-1] == "set()"


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.write_text("[" * 100_000), lambda path: path.mkdir()])
def test_figures_of_a_bundle_that_cannot_be_read_are_none(
    bundle: Callable[..., Path], make: Callable[[Path], object]
) -> None:
    folder = bundle()
    (folder / "metrics.json").unlink()
    make(folder / "metrics.json")
    found = load(folder)
    assert _training_run(found) == {}
    other = replace(found, model_sha256="0" * 64, training={})
    with pytest.raises(UsageError, match=r"expected its own metrics\.json"):
        on_their_own((found, replace(other, evaluation=None)), 0)


def test_a_bundle_that_says_nothing_of_its_training_is_judged(
    dataset: Path, tmp_path: Path, bundle: Callable[..., Path]
) -> None:
    folder = bundle(fingerprint=None, files=None, images=None, recipe=None)
    card = (_evaluate(dataset, tmp_path / "out", "--model", folder).out / "card.md").read_text("utf-8")
    assert "`not known`" in card
    assert "Recipe: not known." in card


@pytest.mark.parametrize(
    "wrong",
    [
        {"litert": [{}]},
        {"litert": [{"precision": "int8", "kept": False}]},
        {"started_from": {"x": 1}},
        {"data": [1]},
        {"data": {"licences": {"CC0": "7"}}},
        {"evaluation": {"x": 1}},
        {"int8": 7},
        {"course": 7},
        {"notes": 7},
    ],
    ids=str,
)
def test_a_report_of_the_training_that_no_card_tells_is_left_out(
    bundle: Callable[..., Path], wrong: dict[str, object], evaluated: Evaluated, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = bundle()
    figures = json.loads((folder / "metrics.json").read_text("utf-8"))
    figures["training_run"] |= wrong
    (folder / "metrics.json").write_text(json.dumps(figures), "utf-8")
    with Reporter() as reporter:
        spec, report = _content(load(folder), evaluated.report, reporter)
    assert report == {**evaluated.report, "training_run": {}}
    assert "Fingerprint" in write_card(spec, report)
    (line,) = capsys.readouterr().err.splitlines()
    assert "metrics.json: training_run: expected what a training writes, received another (" in line


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("epochs", "many", "training.recipe.epochs: expected a whole number from 1 to 100000, received 'many'"),
        ("seed", -1, "training.recipe.seed: expected a whole number from 0 "),
        ("augment", "more", "augment among none, light, strong, received 'more'"),
        ("variation", {"dropout": 7}, "expected dropout among "),
    ],
)
def test_a_recipe_that_cannot_be_trained_is_not_cross_validated(
    bundle: Callable[..., Path], name: str, value: object, message: str
) -> None:
    recipe = json.loads((default_path() / "bundle.json").read_text("utf-8"))["training"]["recipe"]
    with pytest.raises(UsageError, match=message):
        crossable(load(bundle(recipe=recipe | {name: value})))


@pytest.mark.parametrize(
    "wrong",
    [
        {"balanced_accuracy": float("inf")},
        {"balanced_accuracy": float("nan")},
        {"balanced_accuracy": 10**400},
        {"accuracy": 1e308, "balanced_accuracy": -1e308},  # their difference is infinite
        {"accuracy": 1.01},
        {"classes": {"CT": {"recall": -0.1}}},
        {"thresholds": {"decide": {"coverage": 7}}},
    ],
)
def test_figures_of_a_bundle_that_are_no_shares_are_not_compared(
    bundle: Callable[..., Path], wrong: dict[str, object]
) -> None:
    folder = bundle()
    figures = json.loads((folder / "metrics.json").read_text("utf-8"))
    (folder / "metrics.json").write_text(json.dumps(figures | wrong), "utf-8")
    found = replace(load(folder), evaluation=None)
    with pytest.raises(UsageError, match=r"expected its own metrics\.json"):
        on_their_own((found, found), 0)
