"""What a shipped model gives beside probabilities: distances, class maps; what ``predict`` and ``sort`` make of them.

One process loads TensorFlow for all of these.
"""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from building import make_dicom
from command import by_source, run
from numpy.typing import NDArray
from PIL import Image

from dicomsort.bundle import Predictor, default_path, load, seal
from dicomsort.cli.predict import MARGIN, draw_overlay
from dicomsort.errors import DicomsortError
from dicomsort.training.models import ood
from dicomsort.training.models.ood import MahalanobisModel

pytestmark = pytest.mark.xdist_group("model_outputs")

SIDE = 224
LABELS = ["CT", "MRI", "XRAY"]


def clusters(count: int, seed: int = 0, size: int = 24) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Features (N, size) around three class means, in a subspace of six directions."""
    random = np.random.default_rng(seed)
    basis = np.random.default_rng(99).normal(size=(6, size))
    classes = np.arange(count) % 3
    inside = np.random.default_rng(98).normal(size=(3, 6))[classes] * 3 + random.normal(size=(count, 6)) * 0.3
    return (inside @ basis + random.normal(size=(count, size)) * 0.05).astype(np.float32), classes


def test_distance_tells_what_leaves_the_training_features() -> None:
    features, classes = clusters(600)
    mahalanobis = ood.fit(features, classes)
    near = mahalanobis.distances(features)
    assert near.dtype == np.float32
    assert 0.5 < np.median(near) < 2
    limit = ood.threshold(mahalanobis.distances(clusters(600, seed=1)[0]))
    far = mahalanobis.distances(np.random.default_rng(2).normal(size=(200, 24)).astype(np.float32) * 3)
    assert (near <= limit).mean() > 0.97
    assert (far > limit).mean() > 0.99
    assert np.isfinite(mahalanobis.distances(np.zeros((1, 24), np.float32))).all()


def test_units_that_are_dead_are_not_all_that_distances_tell() -> None:
    """Of 32 units 8 live: nothing varies in the other directions, which count as if a thousandth of the mean did."""
    features = np.zeros((400, 32), np.float32)
    features[:, :8] = np.random.default_rng(0).normal(size=(400, 8))
    classes = np.arange(400) % 2
    mahalanobis = ood.fit(features, classes)
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    inside = np.concatenate([unit[classes == c] - unit[classes == c].mean(0) for c in range(2)])
    assert mahalanobis.rest == pytest.approx(1e-3 * inside.var(0).mean(), rel=0.01)
    assert mahalanobis.scale > ood.ROUNDING  # of unit vectors a ten-thousandth would never be more than rounding


def test_distance_is_mahalanobis_to_the_nearest_class() -> None:
    features, classes = clusters(300)
    mahalanobis = ood.fit(features, classes)
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    means = np.stack([unit[classes == c].mean(0) for c in range(3)])
    inside = (unit - means[classes]).astype(np.float64)
    variances, vectors = np.linalg.eigh(inside.T @ inside / len(inside))
    variances[:-6] = variances[:-6].mean()
    precision = (vectors / variances) @ vectors.T
    each = np.stack([np.einsum("nd,de,ne->n", unit - m, precision, unit - m) for m in means], 1)
    wanted = each.min(1) / 24
    np.testing.assert_allclose(mahalanobis.distances(features), wanted, rtol=2e-2)


@pytest.mark.parametrize(("count", "size"), [(6, 24), (3, 24), (30, 1)])
def test_few_images_or_features_still_make_a_space(count: int, size: int) -> None:
    features, classes = clusters(count, size=size)
    mahalanobis = ood.fit(features, classes)
    assert np.isfinite(mahalanobis.distances(features)).all()


def pooled(classes: int = 3) -> Any:
    """A network as those that are fitted on frozen features: pooling, then a head of its own."""
    import keras

    image = keras.Input((SIDE, SIDE, 3), name="image")
    x = keras.layers.Conv2D(12, 7, strides=16, activation="relu")(keras.layers.Rescaling(1 / 32, offset=-1)(image))
    body = keras.layers.GlobalAveragePooling2D(name="features")(x)
    head = keras.Sequential([keras.layers.Dropout(0.5), keras.layers.Dense(classes, activation="softmax")])
    return keras.Model(image, head(body), name="pooled")


def flattened() -> Any:
    """A network as the reference, only smaller."""
    import keras

    layers = keras.layers
    return keras.Sequential(
        [
            keras.Input((SIDE, SIDE, 3)),
            layers.Rescaling(1 / 128, offset=-1),
            layers.Conv2D(4, 7, strides=16, activation="relu"),
            layers.MaxPooling2D(2),
            layers.Flatten(),
            layers.Dense(10, activation="relu"),
            layers.Dropout(0.5),
            layers.Dense(6),
            layers.Dense(3, activation="softmax"),
        ]
    )


def noise(count: int, seed: int = 0) -> NDArray[np.uint8]:
    """Images (N, 224, 224, 3) of random blocks."""
    blocks = np.random.default_rng(seed).integers(0, 256, (count, 4, 4, 1), np.uint8)
    return blocks.repeat(56, 1).repeat(56, 2).repeat(3, 3)


@pytest.mark.parametrize("build", [pooled, flattened])
def test_maps_are_grad_cam(build: Any) -> None:
    import keras
    import tensorflow as tf

    from dicomsort.training.models import outputs

    keras.utils.set_random_seed(0)
    model, images = build(), noise(3).astype(np.float32)
    pool, *behind = outputs.find_top(model)
    given = outputs.complete(model).predict_on_batch(images)
    places = keras.Model(model.inputs[0], pool.input)(images)
    for c in range(3):
        with tf.GradientTape() as tape:
            tape.watch(places)
            x = pool(places)
            for layer in behind:
                last = layer is behind[-1]
                x = x @ layer.kernel + layer.bias if last else layer(x)
            logit = x[:, c]
        weights = tf.reduce_mean(tape.gradient(logit, places), (1, 2), keepdims=True)
        wanted = tf.nn.relu(tf.reduce_sum(places * weights, -1)).numpy()
        np.testing.assert_allclose(given["maps"][..., c], wanted, rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(given["probabilities"], model.predict_on_batch(images), atol=1e-6)
    assert outputs.featured(model).output_shape == (None, 12 if build is pooled else 6)


def test_a_network_that_ends_otherwise_has_probabilities_alone() -> None:
    import keras

    from dicomsort.training.export import tflite
    from dicomsort.training.models import outputs

    image = keras.Input((SIDE, SIDE, 3))
    x = keras.layers.Conv2D(3, SIDE)(image)
    model = keras.Model(image, keras.layers.Softmax()(keras.layers.Reshape((3,))(x)), name="odd")
    assert list(outputs.complete(model).output) == ["probabilities"]
    mahalanobis = ood.fit(*clusters(30))
    for use in (outputs.featured, lambda odd: tflite.convert(odd, ("float32",), noise(2), mahalanobis)):
        with pytest.raises(DicomsortError, match="network 'odd': expected one that ends in pooling"):
            use(model)


class Made(NamedTuple):
    bundle: Path
    model: Any
    mahalanobis: MahalanobisModel


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """A bundle with distances and maps that is confident of all, and knows only dark images of large blocks."""
    import keras

    from dicomsort.training.export import tflite
    from dicomsort.training.models import outputs

    keras.utils.set_random_seed(1)
    model, images = pooled(), noise(300) // 4
    model.layers[-1].layers[-1].set_weights([model.get_weights()[-2] * 0, np.array([9, 0, 0], np.float32)])
    features = outputs.featured(model).predict(images.astype(np.float32), verbose=0)
    mahalanobis = ood.fit(features, np.arange(300) % 3)
    kept, _ = tflite.convert(model, ("float32",), images[:8], mahalanobis)
    folder = tmp_path_factory.mktemp("made") / "bundle"
    folder.mkdir()
    (folder / "model.tflite").write_bytes(kept.model)
    spec = json.loads((default_path() / "bundle.json").read_text("utf-8"))
    limit = float(mahalanobis.distances(features).max()) * 2
    for name in ("model_sha256", "model_size", "evaluation"):
        del spec[name]
    spec |= {"labels": LABELS, "thresholds": {"decide": 0.9, "contradict": 0.99, "distance": limit}, "temperature": 1}
    seal(folder, spec)
    return Made(folder, model, mahalanobis)


def test_litert_gives_what_keras_gives(made: Made) -> None:
    from dicomsort.training.models import outputs

    images = np.concatenate([noise(4, 5) // 4, noise(3, 6)])
    seen = Predictor(load(made.bundle)).predict(images)
    wanted = outputs.complete(made.model, made.mahalanobis).predict_on_batch(images.astype(np.float32))
    features = outputs.featured(made.model).predict_on_batch(images.astype(np.float32))
    np.testing.assert_allclose(wanted["distance"], made.mahalanobis.distances(features), rtol=1e-2, atol=1e-2)
    np.testing.assert_allclose(seen.distances, wanted["distance"], rtol=1e-2, atol=1e-2)
    np.testing.assert_allclose(seen.probabilities, wanted["probabilities"], atol=1e-3)
    assert seen.maps is not None
    np.testing.assert_allclose(seen.maps, wanted["maps"], rtol=1e-2, atol=1e-4)


@pytest.fixture
def images(tmp_path: Path) -> tuple[Path, Path]:
    """An image like those that the bundle knows, and one that is not."""
    known, strange = tmp_path / "in" / "a" / "x.png", tmp_path / "in" / "b" / "x.png"
    bright = np.full((SIDE, SIDE, 3), 255, np.uint8)
    bright[::3] = 0
    for path, pixels in ((known, noise(1, 7)[0] // 4), (strange, bright)):
        path.parent.mkdir(parents=True)
        Image.fromarray(pixels).save(path)
    return known, strange


def test_predict_abstains_from_what_the_model_does_not_know(made: Made, images: tuple[Path, Path]) -> None:
    ran = run("predict", "--json", "--model", made.bundle, *images)
    known, strange = (json.loads(line) for line in ran.out.splitlines())
    assert (known["abstained"], known["reason"]) == (False, "")
    assert (strange["abstained"], strange["reason"]) == (True, "out-of-distribution")
    assert strange["class"] == "CT"
    assert strange["confidence"] > 0.99
    assert sum(strange["probabilities"].values()) == pytest.approx(1)


def test_sort_holds_what_the_model_does_not_know(made: Made, images: tuple[Path, Path], tmp_path: Path) -> None:
    with Image.open(images[1]) as image:
        make_dicom(tmp_path / "in" / "clear.dcm", modality="MR", pixels=np.asarray(image)[..., 0].astype(np.uint16))
    ran = run("sort", "--engine", "serial", "--quiet", "--model", made.bundle, tmp_path / "in", tmp_path / "out")
    rows = by_source(tmp_path / "out")
    assert ran.code == 3
    assert (rows["a/x.png"]["class"], rows["a/x.png"]["reason"]) == ("CT", "pixels")
    assert rows["b/x.png"]["destination"] == "REVIEW/out-of-distribution/b/x.png"
    assert (rows["b/x.png"]["pixel_class"], rows["b/x.png"]["decided_by"]) == ("CT", "none")
    assert (rows["clear.dcm"]["class"], rows["clear.dcm"]["reason"]) == ("MRI", "header")


def test_explain_writes_a_picture_a_file_and_never_replaces_one(
    made: Made, images: tuple[Path, Path], tmp_path: Path
) -> None:
    folder, command = tmp_path / "new" / "pictures", ("predict", "--model", made.bundle, "--explain")
    (tmp_path / "no.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    ran = run(*command, folder, *images, tmp_path / "no.png")
    assert ran.code == 0
    assert len(list(csv.reader(ran.out.splitlines()))) == 3
    assert f"{tmp_path / 'no.png'}: no picture: " in ran.err
    pictures = sorted(folder.iterdir())
    assert len(pictures) == 2
    assert all(picture.name.startswith("x.png.") and picture.suffix == ".png" for picture in pictures)
    with Image.open(pictures[0]) as picture:
        assert picture.size[0] > 2 * picture.size[1] - 200 > SIDE
        assert len(np.unique(np.asarray(picture.convert("RGB")).reshape(-1, 3), axis=0)) > 100
    for picture in pictures:
        picture.write_text("mine")
    again = run(*command, folder, images[0])
    assert "is there already, and stays as it is" in again.err
    assert again.out == ran.out.splitlines(keepends=True)[0]
    assert [picture.read_text() for picture in pictures] == ["mine", "mine"]


def _covered(map_: NDArray[np.float32], confidence: float) -> NDArray[np.float64]:
    """The image under a map, float (h, w, 3), where the image is grey."""
    sheet = np.asarray(draw_overlay("", np.full((SIDE, SIDE, 3), 128, np.uint8), map_, confidence), float)
    return sheet[MARGIN : MARGIN + 2 * SIDE, 2 * MARGIN + 2 * SIDE : 2 * MARGIN + 4 * SIDE]


def test_an_even_map_looks_even_and_an_unsure_one_pale() -> None:
    random = np.random.default_rng(0)
    even = (5 + random.normal(0, 0.02, (7, 7))).astype(np.float32)
    spot = np.zeros((7, 7), np.float32)
    spot[3, 3] = 5
    sure, unsure, found = _covered(even, 0.99), _covered(even, 0.4), _covered(spot, 0.99)
    assert np.ptp(sure.reshape(-1, 3), axis=0).max() < 20  # of 255: no place stands out
    assert np.ptp(found.reshape(-1, 3), axis=0).max() > 50
    assert np.abs(unsure - 128).mean() < np.abs(sure - 128).mean()
    assert np.ptp(_covered(np.zeros((7, 7), np.float32), 0.99)) == 0
    np.testing.assert_array_equal(_covered(even * 64, 0.99), sure)  # a logit has no scale of its own


def test_an_accent_is_drawn_however_the_name_is_written() -> None:
    image, even = np.zeros((SIDE, SIDE, 3), np.uint8), np.ones((7, 7), np.float32)
    composed, decomposed = (draw_overlay(name, image, even, 1) for name in ("R\u00f6ntgen", "Ro\u0308ntgen"))
    assert composed.tobytes() == decomposed.tobytes()


def test_a_picture_is_the_same_whatever_else_is_explained(
    made: Made, images: tuple[Path, Path], tmp_path: Path
) -> None:
    command = ("predict", "--model", made.bundle, "--explain")
    assert run(*command, tmp_path / "alone", images[0]).code == 0
    assert run(*command, tmp_path / "together", *images).code == 0
    (alone,) = (tmp_path / "alone").iterdir()
    assert (tmp_path / "together" / alone.name).read_bytes() == alone.read_bytes()


def test_explain_into_a_file_is_wrong_usage(made: Made, images: tuple[Path, Path]) -> None:
    ran = run("predict", "--model", made.bundle, "--explain", images[1], images[0])
    assert (ran.code, ran.out) == (2, "")
    assert "expected a folder that can be written" in ran.err


def test_a_model_without_maps_cannot_explain(made: Made, images: tuple[Path, Path], tmp_path: Path) -> None:
    import keras

    from dicomsort.training.export.tflite import _convert

    bare = keras.Model(made.model.inputs[0], {"probabilities": made.model.outputs[0]})
    spec = json.loads((made.bundle / "bundle.json").read_text("utf-8"))
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "model.tflite").write_bytes(_convert(bare, "float32"))
    seal(tmp_path / "bare", spec | {"thresholds": {"decide": 0.9, "contradict": 0.99}})
    ran = run("predict", "--model", tmp_path / "bare", "--explain", tmp_path / "pictures", images[0])
    assert (ran.code, ran.out) == (2, "")
    assert "expected a bundle whose model gives class maps" in ran.err
    assert not (tmp_path / "pictures").exists()
    assert run("predict", "--model", tmp_path / "bare", images[0]).code == 0
