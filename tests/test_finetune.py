"""Training that goes on from a bundle."""

from __future__ import annotations

import json
import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command import Ran, run
from networks import LABELS, RECIPE, known, noise

from dicomsort.bundle import load
from dicomsort.errors import BundleError
from dicomsort.training.data import fingerprint
from dicomsort.training.data.dataset import Item
from dicomsort.training.evaluate import calibration, compare
from dicomsort.training.pipeline import OUTPUTS

pytestmark = pytest.mark.xdist_group("finetune")


@pytest.fixture(scope="module", autouse=True)
def _tiny() -> Any:
    with known():
        yield


@pytest.fixture(scope="module")
def start(tiny_start: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of the tiny network."""
    return Path(shutil.copytree(tiny_start, tmp_path_factory.mktemp("starting") / "start"))


@pytest.fixture(scope="module")
def gone_on(start: Path) -> tuple[Path, Ran]:
    """What came of it on images of two of its classes, one of them written otherwise."""
    out = start.with_name("ours")
    site = noise(start.with_name("site"), ("ct", "XRAY"), 6, 100)
    return out, run("train", site, "--from", start, "--out", out, *RECIPE)


def _json(path: Path) -> dict[str, Any]:
    read: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return read


def test_a_training_goes_on_with_the_classes_of_its_bundle(start: Path, gone_on: tuple[Path, Ran]) -> None:
    out, ran = gone_on
    assert ran.code == 0, ran.err
    assert {path.name for path in out.iterdir()} == OUTPUTS
    before, after = (load(folder) for folder in (start, out))
    assert (after.labels, after.arch, after.header_classes) == (LABELS, "tiny", before.header_classes)
    assert after.training["images"] == {"CT": 6, "MRI": 0, "XRAY": 6}
    assert after.training["recipe"]["learning_rate"] == 0.001
    assert (after.decide, after.contradict) == (before.decide, before.contradict)
    assert after.distance is None
    card = (out / "card.md").read_text("utf-8")
    assert "Temperature and thresholds are those of start" in card
    assert ("as sure of the images that start keeps" in card) == (after.temperature != before.temperature)


def test_it_tells_where_it_came_from_and_what_changed(start: Path, gone_on: tuple[Path, Ran]) -> None:
    out, ran = gone_on
    before, after = (load(folder) for folder in (start, out))
    figures = _json(out / "metrics.json")
    report = figures["training_run"][compare.KEY]
    right = report["evaluation"]["before"]["balanced_accuracy"]
    assert before.evaluation is not None
    assert after.training[compare.KEY] == [
        {
            "name": "start",
            "model_sha256": before.model_sha256,
            "fingerprint": before.training["fingerprint"],
            "evaluation": {"sha256": before.evaluation.sha256, "balanced_accuracy": right},
        }
    ]
    assert report["model_sha256"] == before.model_sha256
    assert set(report["before"]["recall"]) == set(report["after"]["recall"]) == {"CT", "XRAY"}
    assert report["after"]["accuracy"] == figures["accuracy"]
    said = ". ".join(compare.sentences(report))
    assert "\n".join(compare.sentences(report)) in ran.out
    assert said in (out / "card.md").read_text("utf-8")
    known = fingerprint.compare(after.training, [Item("a", 0), Item("b", 0)], ["0" * 64, "f" * 64])
    assert known.count == 0
    kept = len(fingerprint.encode([], before.training)), len(fingerprint.encode([], after.training))
    assert kept[0] < kept[1]  # the files of both


def test_one_class_alone_will_do(start: Path, tmp_path: Path) -> None:
    site = noise(tmp_path / "site", ("MRI",), 5)
    ran = run("train", site, "--from", start, "--out", tmp_path / "out", *RECIPE)
    assert ran.code == 0, ran.err
    assert load(tmp_path / "out").labels == LABELS
    assert "better: none; worse: none" in ran.out  # one class alone teaches nothing, and unteaches nothing


@pytest.mark.parametrize(
    ("options", "folder", "expected"),
    [
        ((), "PET", "expected folders with names among the bundle's labels (CT, MRI, XRAY), received 'PET' as well"),
        (("--arch", "cnn"), "CT", "--arch: expected tiny, that of --from, or nothing, received 'cnn'"),
        (("--weights", "x.h5"), "CT", "--from: expected no --weights beside it, received both"),
    ],
)
def test_what_does_not_fit_the_bundle(
    start: Path, tmp_path: Path, options: tuple[str, ...], folder: str, expected: str
) -> None:
    site = noise(tmp_path / "site", ("MRI",), 2)
    (site / "MRI").rename(site / folder)
    ran = run("train", site, "--from", start, "--out", tmp_path / "out", *options)
    assert ran.code == 2
    assert expected in ran.err
    assert not (tmp_path / "out").exists()


def _with_config(file: Path, change: Any) -> None:
    with zipfile.ZipFile(file) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    config = json.loads(parts["config.json"])
    change(config["config"]["layers"])
    parts["config.json"] = json.dumps(config).encode()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in parts.items():
            archive.writestr(name, content)


def _carry_code(layers: list[dict[str, Any]]) -> None:
    layers[1] |= {"class_name": "Lambda"}
    layers[2] |= {"module": "os", "class_name": "system", "registered_name": "os>system"}


def test_a_keras_file_with_code_or_of_another_network_is_refused(start: Path, tmp_path: Path) -> None:
    from dicomsort.training.fit.finetune import from_bundle

    folder = tmp_path / "hostile"
    shutil.copytree(start, folder)
    _with_config(folder / "model.keras", _carry_code)
    architecture = from_bundle(folder)
    with pytest.raises(BundleError, match=r"expected weights of tiny, received other layers: Lambda, os\.system"):
        architecture.build((224, 224, 3), 3)
    for content in (b"", b"PK\x03\x04junk"):
        (folder / "model.keras").write_bytes(content)
        with pytest.raises(BundleError, match=r"model\.keras: expected weights of tiny"):
            architecture.build((224, 224, 3), 3)
    (folder / "model.keras").unlink()
    with pytest.raises(BundleError, match=r"expected model\.keras, which `dicomsort train` leaves, received none"):
        from_bundle(folder)


def test_weights_that_say_something_else_than_the_bundle_are_refused(start: Path, tmp_path: Path) -> None:
    import keras

    from dicomsort.training.fit.finetune import from_bundle

    folder = tmp_path / "other"
    shutil.copytree(start, folder)
    model = keras.saving.load_model(folder / "model.keras", compile=False)
    model.set_weights([weight[..., ::-1] * 3 for weight in model.get_weights()])
    model.save(folder / "model.keras")
    with pytest.raises(BundleError, match=r"expected weights that agree with model\.tflite within 0\.02, received"):
        from_bundle(folder).build((224, 224, 3), 3)


def test_the_bundle_that_ships_can_be_gone_on_from(root: Path) -> None:
    from dicomsort.training.fit.finetune import from_bundle

    architecture = from_bundle(root / "models" / "default")
    model = architecture.build((224, 224, 3), len(architecture.bundle.labels))  # compared with LiteRT as it is built
    assert model.count_params() > 3_000_000


def test_what_went_on_is_as_sure_of_kept_images_as_its_start(start: Path) -> None:
    bundle = load(start)
    sharp = np.array([[0.97, 0.02, 0.01], [0.9, 0.06, 0.04], [0.1, 0.8, 0.1]], np.float32)
    soft = np.sqrt(sharp) / np.sqrt(sharp).sum(axis=1, keepdims=True)  # what twice the temperature would make of it
    assert calibration.as_sure(sharp, sharp, 1.5) == pytest.approx(1.5, rel=0.02)
    assert calibration.as_sure(sharp, soft, 1.5) == pytest.approx(0.75, rel=0.02)
    few = {"CT": 40, "MRI": 9}
    fitted = calibration.Calibration(3.0, (0.9,) * 3, 0.95)
    found = calibration.finetuned(bundle, None, few, fitted, (), (sharp, soft))
    assert found.temperature == pytest.approx(bundle.temperature / 2, rel=0.03)
    assert (found.decide, found.contradict) == (bundle.decide, bundle.contradict)
    enough = calibration.finetuned(bundle, None, {"CT": 30, "MRI": 30}, fitted, (), (sharp, soft))
    assert enough.temperature == 3.0


def test_calibration_is_kept_unless_there_are_enough_of_every_class(start: Path) -> None:
    bundle = load(start)
    assert calibration.bundle_calibration(bundle, {"CT": 20, "MRI": 20, "XRAY": 20}) is None
    few, lacking = (
        calibration.bundle_calibration(bundle, counts) for counts in ({"CT": 40, "MRI": 9}, {"CT": 400, "MRI": 0})
    )
    for found in (few, lacking):
        assert found is not None
        assert (found.temperature, found.decide, found.distance) == (bundle.temperature, bundle.decide, None)
    assert lacking is not None
    assert ", none of MRI" in lacking.notes[0]
