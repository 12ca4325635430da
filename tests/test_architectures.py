"""Every network that can be trained: its parts, the bundle that it leaves, and a training that goes on from that.

Trainings of the large networks take minutes: here their weights are random, and nothing is trained.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from networks import answers

from dicomsort.bundle import default_path, seal
from dicomsort.bundle.predictor import LiteRTModel
from dicomsort.errors import UsageError
from dicomsort.pixels import INPUT_SHAPE
from dicomsort.training.models.architectures import ARCHITECTURES, Shape, varied

pytestmark = pytest.mark.xdist_group("architectures")

LABELS = ("CT", "MRI", "XRAY")
SMALL = (64, 64, 3)
VARIATION = {"filters": 16, "dense": 64}  # what a search may leave
ALL = [*((arch, {}) for arch in sorted(ARCHITECTURES)), ("cnn", VARIATION)]
LARGE = {"resnet50", "vgg16"}  # whose bundles differ from that of mobilenet-v3-small in their layers alone


def _each(cases: list[tuple[str, dict[str, Any]]]) -> pytest.MarkDecorator:
    names = [f"{arch}-tuned" if variation else arch for arch, variation in cases]
    return pytest.mark.parametrize(("arch", "variation"), cases, ids=names)


def _network(arch: str, variation: dict[str, Any], shape: Shape) -> Any:
    """The network as a training builds it, with an end that tells images apart."""
    import keras

    architecture = varied(ARCHITECTURES[arch], arch, variation)
    try:
        architecture.require()
    except UsageError as error:
        pytest.skip(str(error))
    keras.utils.set_random_seed(0)
    network = architecture.build(shape, len(LABELS))
    end = network.get_layer("probabilities")
    kernel, bias = end.get_weights()
    end.set_weights([np.random.default_rng(0).normal(0, 0.01, kernel.shape), bias])
    return network


def _images(shape: Shape) -> Any:
    return np.random.default_rng(1).integers(0, 256, (3, *shape)).astype(np.float32)


@_each(ALL)
def test_its_parts_say_what_the_whole_says(arch: str, variation: dict[str, Any]) -> None:
    from dicomsort.training.fit.frozen_features import divide

    images = _images(SMALL)
    for start in sorted({"", ARCHITECTURES[arch].trained_from}):
        network = _network(arch, variation, SMALL)  # never called before it is divided, as where a training begins
        frozen, trainable, with_features = divide(network, start)
        wanted, seen = answers(network, images), answers(frozen, images)
        np.testing.assert_allclose(answers(trainable, seen), wanted, atol=1e-5)
        features, probabilities = answers(with_features, seen)
        np.testing.assert_allclose(probabilities, wanted, atol=1e-5)
        assert features.shape == (3, *network.get_layer("features").output.shape[1:])
        assert not any(layer.trainable for layer in frozen.layers)
        assert trainable.trainable_variables


@_each([case for case in ALL if case[0] not in LARGE])
def test_its_bundle_can_be_gone_on_from(arch: str, variation: dict[str, Any], tmp_path: Path) -> None:
    from dicomsort.training.export import tflite
    from dicomsort.training.fit.finetune import from_bundle
    from dicomsort.training.fit.frozen_features import divide
    from dicomsort.training.models.outputs import complete
    from dicomsort.training.models.tflite_head import FeatureExtractor, with_head

    network, images = _network(arch, variation, INPUT_SHAPE), _images(INPUT_SHAPE)
    wanted = answers(network, images)
    kept, _ = tflite.convert(network, ARCHITECTURES[arch].precisions[1:2], images.astype(np.uint8))
    tflite.save_keras(network, tmp_path)
    (tmp_path / "model.tflite").write_bytes(kept.model)
    spec = json.loads((default_path() / "bundle.json").read_text("utf-8"))
    for name in ("model_sha256", "model_size", "evaluation"):
        del spec[name]
    thresholds = {"decide": 0.9, "contradict": 0.99, "distance": None}
    spec |= {"arch": arch, "labels": list(LABELS), "thresholds": thresholds, "temperature": 1.0}
    spec["training"]["recipe"]["variation"] = variation
    spec["header_classes"] = {label: label for label in LABELS}
    seal(tmp_path, spec)
    architecture = from_bundle(tmp_path)
    again = architecture.build(INPUT_SHAPE, len(LABELS))  # which compares it with the LiteRT model
    frozen, trainable, _ = divide(again, architecture.trained_from)
    np.testing.assert_allclose(answers(trainable, answers(frozen, images)), wanted, atol=0.01)
    np.testing.assert_allclose(
        answers(trainable, FeatureExtractor(kept.model).predict_on_batch(images)), wanted, atol=0.01
    )
    last = again.get_layer("probabilities")
    last.set_weights([np.random.default_rng(1).normal(0, 0.1, part.shape) for part in last.get_weights()])
    running = LiteRTModel(with_head(kept.model, *last.get_weights()))
    for name, values in answers(complete(again), images).items():
        given = np.concatenate([running.run(image[None])[name] for image in images])
        np.testing.assert_allclose(given, values, rtol=0.02, atol=0.02 * values.max(), err_msg=name)


def test_files_for_keras_hold_no_state_of_an_optimizer(tmp_path: Path) -> None:
    from dicomsort.training.export import tflite

    network, images = _network("cnn", VARIATION, SMALL), _images(SMALL)
    network.compile("adam", "categorical_crossentropy")
    network.train_on_batch(images, np.eye(3))
    tflite.save_keras(network, tmp_path)
    weights = sum(weight.nbytes for weight in network.get_weights())
    for name in ("model.keras", "medical_image_classifier.h5"):
        assert weights <= (tmp_path / name).stat().st_size < 1.5 * weights, name  # Adam keeps two numbers a weight
