"""The network of a bundle, made anew with its weights.

No code is taken from a bundle: the network is built here by its architecture's name, and gets numbers only.
"""

from __future__ import annotations

import json
import zipfile
from typing import TYPE_CHECKING, Any

import numpy as np

from dicomsort.bundle import Predictor, calibrate
from dicomsort.bundle.spec import MAX_MODEL_BYTES, read_model
from dicomsort.errors import BundleError
from dicomsort.pixels import INPUT_SHAPE
from dicomsort.training.models import efficientnet_lite0
from dicomsort.training.models.architectures import ARCHITECTURES, varied
from dicomsort.training.models.keras_applications import classifier
from dicomsort.training.models.tflite_weights import INT8, precision, read_weights

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from dicomsort.bundle import Bundle
    from dicomsort.training.models.architectures import Architecture, Shape

KERAS_MODEL, KERAS_CONFIG = "model.keras", "config.json"
AGREEMENT = 0.02  # of probabilities, between what LiteRT says and the network made of it or lying beside it
# The same where LiteRT computes in integers. The bundle that ships strays by 0.005 at most on 32 images of noise, but
# where a network wavers between two classes rounding alone moves it by more: by 0.03 on one of 64 training images.
AGREEMENT_INT8 = 0.1
PROBES = 4


def architecture_of(bundle: Bundle) -> Architecture:
    """Return the architecture of a bundle; BundleError where it is not known, or there are no weights for it."""
    folder = bundle.folder
    architecture = ARCHITECTURES.get(bundle.arch)
    if architecture is None:
        known = ", ".join(ARCHITECTURES)
        raise BundleError(f"--from {str(folder)!r}: expected one of the networks {known}, received {bundle.arch!r}")
    if bundle.input_shape != INPUT_SHAPE:
        msg = f"--from {str(folder)!r}: expected a model of {INPUT_SHAPE} images, received {bundle.input_shape}"
        raise BundleError(msg)
    if bundle.arch != "efficientnet-lite0" and not (folder / KERAS_MODEL).is_file():
        raise BundleError(
            f"--from {str(folder)!r}: expected {KERAS_MODEL}, which `dicomsort train` leaves, received none"
        )
    return architecture


def network(bundle: Bundle, shape: Shape, classes: int) -> Any:
    """Return the keras.Model of a bundle; BundleError where what is made says something else than the bundle does."""
    model = _lite0(bundle) if bundle.arch == "efficientnet-lite0" else _beside(bundle, shape, classes)
    images = np.random.default_rng(0).integers(0, 256, (PROBES, *shape), np.uint8)
    raw = np.asarray(model.predict_on_batch(images.astype(np.float32)))
    shipped = Predictor(bundle).predict(images).probabilities
    difference = float(np.abs(calibrate(raw, bundle.temperature) - shipped).max())
    limit = AGREEMENT_INT8 if precision(read_model(bundle)) == INT8 else AGREEMENT
    if not difference <= limit:
        msg = f"expected weights that agree with model.tflite within {limit}, received {difference:.3f}"
        raise BundleError(f"bundle {str(bundle.folder)!r}: {msg}")
    return model


def _lite0(bundle: Bundle) -> Any:
    """Return the network with the weights that its LiteRT model holds."""
    count = 2 + sum(stage.repeats * (3 if stage.expansion > 1 else 2) for stage in efficientnet_lite0.STAGES)
    weights = read_weights(read_model(bundle), count)
    try:
        model = classifier(efficientnet_lite0.backbone(bundle.input_shape, weights.units), len(bundle.labels))
        model.get_layer("probabilities").set_weights([weights.kernel, weights.bias])
    except (ValueError, TypeError) as error:
        raise BundleError(_unlike(bundle, "model.tflite", error)) from error
    return model


def _beside(bundle: Bundle, shape: Shape, classes: int) -> Any:
    """Return the network with the weights of ``model.keras``, of which nothing else is used."""
    file = bundle.folder / KERAS_MODEL
    recipe = bundle.training.get("recipe")
    variation = recipe.get("variation") if isinstance(recipe, dict) else None
    variation = variation if isinstance(variation, dict) else {}
    model = varied(ARCHITECTURES[bundle.arch], bundle.arch, variation).build(shape, classes)
    try:
        _require_like(file, model)
        model.load_weights(file)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, zipfile.BadZipFile) as error:
        raise BundleError(_unlike(bundle, KERAS_MODEL, error)) from error
    return model


def _require_like(file: Path, model: Any) -> None:
    """Raise ValueError unless a Keras file has the layers of ``model``, in their order."""
    with zipfile.ZipFile(file) as archive:
        if (size := sum(part.file_size for part in archive.infolist())) > MAX_MODEL_BYTES:
            raise ValueError(f"{size} bytes")
        theirs = list(_kinds(json.loads(archive.read(KERAS_CONFIG))))
    ours = list(_kinds(json.loads(model.to_json())))
    if theirs != ours:
        strange = ", ".join(sorted(set(theirs) - set(ours)))
        raise ValueError(f"other layers: {strange}" if strange else "layers in another order")


def _kinds(config: dict[str, Any]) -> Iterator[str]:
    """Yield the classes of a Keras configuration's layers, with their modules where they are not Keras' own."""
    for layer in config["config"]["layers"]:
        module = str(layer["module"])
        yield str(layer["class_name"]) if module.startswith("keras.") else f"{module}.{layer['class_name']}"


def _unlike(bundle: Bundle, name: str, error: Exception) -> str:
    received = " ".join(str(error).split())[:200] or type(error).__name__
    return f"bundle {str(bundle.folder)!r}: {name}: expected weights of {bundle.arch}, received {received}"
