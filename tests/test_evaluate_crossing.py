from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from building import make_files
from command import Ran, run
from networks import brief
from PIL import Image

from dicomsort.bundle import default_path, load
from dicomsort.training.data.robustness import SHORTCUTS
from dicomsort.training.evaluate import reporting
from dicomsort.training.models.architectures import ARCHITECTURES, Architecture
from dicomsort.training.pipeline import OUTPUTS

CLASSES, SOURCES, EACH = ("CT", "MRI", "OTHER"), 4, 5
LEAST_CHANGE = -0.02
# Where the bundle that ships changes by more, as its card says. A better one makes these tests fail: take it out then.
MISSED = frozenset({"crop, centre"})


@pytest.fixture(scope="module")
def raster() -> Any:
    """An architecture of the registry whose features are the means of an 8 x 8 raster."""

    def build(shape: tuple[int, int, int], classes: int) -> Any:
        import keras

        image = keras.Input(shape)
        pooled = keras.layers.AveragePooling2D(28, name="means")(keras.layers.Rescaling(1 / 255)(image))
        features = keras.layers.Flatten(name="features")(pooled)
        dense = keras.layers.Dense(classes, activation="softmax", kernel_initializer="zeros", name="probabilities")
        return keras.Model(image, dense(features), name="raster")

    chosen = Architecture("means of a raster", "transfer", build, ("float32",), "means")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ARCHITECTURES, "raster", chosen)
        yield


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bright band whose place tells the class; each class has one source where it lies in another class's place."""
    root = tmp_path_factory.mktemp("crossing") / "dataset"
    random = np.random.default_rng(1)
    for label, name in enumerate(CLASSES):
        for source in range(SOURCES):
            (root / name / f"{name}{source}").mkdir(parents=True)
            place = (label + (source == 0)) % 3
            for number in range(EACH):
                picture = random.integers(0, 60, (60, 60), np.uint8)
                picture[20 * place : 20 * place + 20] += 150
                Image.fromarray(picture).save(root / name / f"{name}{source}" / f"{number}.png")
    make_files(root, {"MRI/MRI1/broken.png": b"\x89PNG\r\n\x1a\n"})
    return root


@pytest.fixture(scope="module")
def bundle(dataset: Path, raster: None) -> Path:
    recipe = ("--epochs", 6, "--batch-size", 4, "--learning-rate", 0.05)
    with brief():
        ran = run("train", dataset, "--out", dataset.parent / "model", "--arch", "raster", *recipe)
    assert ran.code == 0, ran.err
    return dataset.parent / "model"


def _json(path: Path) -> dict[str, Any]:
    read: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return read


@pytest.fixture(scope="module")
def crossed(dataset: Path, bundle: Path) -> dict[str, Any]:
    before = _json(bundle / "bundle.json")
    options = ("--cross-validate", "source", "--folds", 0, "--shortcuts", "--update", "--json")
    ran = run("evaluate", dataset, "--model", bundle, "--out", dataset.parent / "out", *options)
    assert ran.code == 0, ran.err
    assert _json(bundle / "bundle.json") == before
    read: dict[str, Any] = json.loads(ran.out)
    return read


def test_a_trained_bundle_tells_what_it_was_trained_on(dataset: Path, bundle: Path) -> None:
    out = dataset.parent / "again"
    ran = run("evaluate", dataset, "--model", bundle, "--out", out)
    assert ran.code == 0, ran.err
    assert "trained on every one of these images" in ran.err
    assert _json(out / "metrics.json")["training_run"] == _json(bundle / "metrics.json")["training_run"]
    assert "means of a raster" in (out / "card.md").read_text("utf-8")


def test_training_writes_the_same_figures_with_intervals(bundle: Path) -> None:
    report = _json(bundle / "metrics.json")
    assert {"bootstrap", "intervals", "data", "training_run"} <= set(report)
    assert {path.name for path in bundle.iterdir()} == OUTPUTS
    assert reporting.SHEET not in OUTPUTS
    assert bundle.with_name(f"{bundle.name}-{reporting.SHEET}").read_bytes().startswith(b"\x89PNG")


def test_each_source_is_judged_by_a_model_that_never_saw_it(crossed: dict[str, Any]) -> None:
    assert "each of 12 sources alone" in crossed["held_out"]
    assert crossed["trained_on"] == 0
    assert crossed["by_source"]
    recalls = {row["source"]: row["recall"] for row in crossed["sources"]}
    assert recalls.keys() == {f"{name}{source}" for name in CLASSES for source in range(SOURCES)}
    # learnt only by who has seen it
    assert max(recalls[f"{name}0"] for name in CLASSES) < 0.5
    assert np.mean([recalls[f"{name}{source}"] for name in CLASSES for source in (1, 2, 3)]) > 0.8


def test_subclasses_are_given_where_the_recipe_has_some(dataset: Path, bundle: Path, tmp_path: Path) -> None:
    finer = tmp_path / "finer.csv"
    finer.write_text("".join(["path,subclass\n", *(f"{name}/{name}{i},{i % 2}\n" for name in CLASSES for i in (1, 2))]))
    recipe = ("--epochs", 2, "--batch-size", 4, "--seed", 1)
    with brief():
        ran = run("train", dataset, "--out", tmp_path / "model", "--arch", "raster", "--subclasses", finer, *recipe)
    assert ran.code == 0, ran.err
    assert _json(tmp_path / "model/bundle.json")["training"]["recipe"]["subclasses"] == "finer.csv"
    assert "Learnt beside the classes, and not kept: 6 subclasses." in (tmp_path / "model/card.md").read_text("utf-8")

    def evaluated(model: Path, *options: object) -> Ran:
        return run("evaluate", dataset, "--model", model, "--out", tmp_path / "out", *options)

    crossing = ("--cross-validate", "source", "--folds", 2)
    assert evaluated(tmp_path / "model", *crossing, "--subclasses", finer).code == 0
    ran = evaluated(tmp_path / "model", *crossing)
    assert (ran.code, "--cross-validate: expected --subclasses beside it" in ran.err) == (2, True)
    for model, options in ((bundle, crossing), (tmp_path / "model", ())):
        ran = evaluated(model, *options, "--subclasses", finer)
        assert (ran.code, "--subclasses: expected --cross-validate beside it, and a bu" in ran.err) == (2, True)


def test_shortcut_tests_are_judged_by_the_same_models(crossed: dict[str, Any]) -> None:
    assert set(crossed["shortcuts"]) == set(SHORTCUTS)
    for row in crossed["shortcuts"].values():
        assert row["change"] == pytest.approx(row["accuracy"] - crossed["accuracy"], abs=2e-4)
    assert abs(crossed["shortcuts"]["JPEG quality 30"]["change"]) < 0.1


def test_update_replaces_figures_card_and_pictures_but_shows_no_image(
    dataset: Path, bundle: Path, crossed: dict[str, Any]
) -> None:
    assert _json(bundle / "metrics.json")["held_out"] == crossed["held_out"]
    card = (bundle / "card.md").read_text("utf-8")
    assert "Shortcut tests" in card
    assert "MRI/MRI1/broken.png" in card
    assert card == (dataset.parent / "out" / "card.md").read_text("utf-8")
    assert {path.name for path in bundle.iterdir()} == OUTPUTS
    assert load(bundle).name == "model"


def test_what_cannot_be_cross_validated_is_said(dataset: Path, bundle: Path, tmp_path: Path) -> None:
    whole = tmp_path / "dataset"
    for label in ("CT", "MRI"):
        (whole / label / "one").mkdir(parents=True)
        Image.new("L", (9, 9)).save(whole / label / "one" / "1.png")
    ran = run("evaluate", whole, "--model", bundle, "--cross-validate", "source", "--out", tmp_path / "out")
    assert ran.code == 2
    assert "at least two sources a class, received fewer" in ran.err
    other = Path(shutil.copytree(bundle, tmp_path / "cnn"))
    text = (other / "bundle.json").read_text("utf-8")
    (other / "bundle.json").write_text(text.replace('"arch": "raster"', '"arch": "cnn"', 1), "utf-8")
    ran = run("evaluate", dataset, "--model", other, "--cross-validate", "source", "--out", tmp_path / "out")
    assert ran.code == 2
    assert "expected a bundle trained from pretrained weights, received architecture 'cnn'" in ran.err
    assert not (tmp_path / "out").exists()


def _shipped() -> dict[str, Any]:
    report = _json(default_path() / "metrics.json")
    if "shortcuts" not in report:
        pytest.skip("the bundle that ships has no shortcut tests measured yet: make evaluate")
    return report


@pytest.mark.parametrize("name", SHORTCUTS)
def test_the_bundle_that_ships_takes_no_shortcut_on_held_out_sources(name: str, request: pytest.FixtureRequest) -> None:
    if name in MISSED:
        request.applymarker(pytest.mark.xfail(strict=True, reason="beyond the limit: models/default/card.md"))
    assert _shipped()["shortcuts"][name]["change"] >= LEAST_CHANGE


def test_the_model_that_ships_takes_no_shortcuts(shared: Path, tmp_path: Path) -> None:
    _shipped()
    if not (shared / "dataset").is_dir():
        pytest.skip("no folder ../shared/dataset beside this checkout")
    for path in sorted((shared / "dataset").glob("*/*/*.*"))[::24]:
        link = tmp_path / "dataset" / path.relative_to(shared / "dataset")
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(path)
    ran = run("evaluate", tmp_path / "dataset", "--shortcuts", "--out", tmp_path / "out", "--json")
    changes = {name: row["change"] for name, row in json.loads(ran.out)["shortcuts"].items()}
    assert {name: change for name, change in changes.items() if change < LEAST_CHANGE} == {}
