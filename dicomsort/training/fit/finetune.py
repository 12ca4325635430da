"""A bundle as the start of another training: its network with its weights.

No code is taken from a bundle: the network is built here by its architecture's name, and gets numbers only.
"""

from __future__ import annotations

import json
import zipfile
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from dicomsort.bundle import Predictor, calibrate, load
from dicomsort.bundle.spec import MAX_MODEL_BYTES, read_model
from dicomsort.errors import BundleError
from dicomsort.pixels import INPUT_SHAPE
from dicomsort.records import RENDERING_VERSION
from dicomsort.training.fit.quantize import INT8
from dicomsort.training.models import efficientnet_lite0
from dicomsort.training.models.architectures import ARCHITECTURES, varied
from dicomsort.training.models.keras_applications import classifier
from dicomsort.training.models.replay_set import recall
from dicomsort.training.models.tflite_weights import precision, read_space, read_weights

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from dicomsort.bundle import Bundle
    from dicomsort.training.models.architectures import Architecture, Shape
    from dicomsort.training.models.ood import MahalanobisModel

KERAS_MODEL, KERAS_CONFIG = "model.keras", "config.json"
AGREEMENT = 0.02  # of probabilities, between what LiteRT says and the network made of it or lying beside it
# The same where LiteRT computes in integers. The bundle that ships strays by 0.005 at most on 32 images of noise, but
# where a network wavers between two classes rounding alone moves it by more: by 0.03 on one of 64 training images.
AGREEMENT_INT8 = 0.1
PROBES = 4


def from_bundle(folder: Path) -> Architecture:
    """Return the architecture that goes on from the bundle in ``folder``, which its ``start`` then is.

    Its last layer alone is trained, in seconds a fold: the features, and what they tell of other sites, stay.

    BundleError where that is no bundle, or one whose network is not known or whose weights cannot be had.
    """
    bundle = load(folder, RENDERING_VERSION)
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
    summary = f"{bundle.arch} with the weights of the bundle {bundle.name} (SHA-256 {bundle.model_sha256})"
    return replace(
        architecture,
        summary=f"{summary}; its last layer trained",
        recipe="staged",
        build=partial(network, bundle),
        trained_from="",
        require=tuple,
        start=bundle,
    )


def going_on(folder: Path) -> Architecture:
    """Return ``from_bundle`` with what a training that goes on needs beside the weights; BundleError as there."""
    architecture = from_bundle(folder)
    start = load(folder, RENDERING_VERSION)
    return replace(architecture, remembered=recall(start), space=_space(start))


def _space(bundle: Bundle) -> MahalanobisModel | None:
    """Return where the images lie that a bundle was trained on, None where its model does not tell it."""
    if bundle.distance is None:
        return None
    try:
        return read_space(read_model(bundle))
    except BundleError:  # a model that something else wrote
        return None


def network(bundle: Bundle, shape: Shape, classes: int) -> Any:
    """Return the keras.Model of a bundle; BundleError where what is made says something else than the bundle does."""
    model = _lite0(bundle) if bundle.arch == "efficientnet-lite0" else _beside(bundle, shape, classes)
    images = np.random.default_rng(0).integers(0, 256, (PROBES, *shape), np.uint8)
    raw = np.asarray(model.predict_on_batch(images.astype(np.float32)))
    said = Predictor(bundle).predict(images).probabilities
    difference = float(np.abs(calibrate(raw, bundle.temperature) - said).max())
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
    told = " ".join(str(error).split())[:200] or type(error).__name__
    return f"bundle {str(bundle.folder)!r}: {name}: expected weights of {bundle.arch}, received {told}"
