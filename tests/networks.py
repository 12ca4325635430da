"""A network small enough to be trained in a test, and images of noise for it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from command import run
from PIL import Image

from dicomsort.engines.engine import SerialEngine
from dicomsort.training.evaluate import plots
from dicomsort.training.models.architectures import ARCHITECTURES, Architecture
from dicomsort.training.progress import load_tensorflow

LABELS, EACH = ("CT", "MRI", "XRAY"), 8
RECIPE = ("--epochs", 4, "--batch-size", 8, "--seed", 3)


def tiny(shape: tuple[int, int, int], classes: int) -> Any:
    """Layers that take means, then a convolution, a depthwise one, and the end that all networks have."""
    import keras

    from dicomsort.training.models.keras_applications import classifier

    layers = keras.layers
    image = keras.Input(shape)
    means = layers.AveragePooling2D(28, name="means")(layers.Rescaling(1 / 255)(image))
    first = layers.Conv2D(16, 3, padding="same", activation="relu", name="first")(means)
    second = layers.DepthwiseConv2D(3, padding="same", activation="relu", name="second")(first)
    return classifier(keras.Model(image, layers.GlobalAveragePooling2D(name="features")(second), name="tiny"), classes)


def answers(model: Any, images: Any) -> Any:
    """What a model says of images, layer by layer: as a graph, which ``predict`` makes of it first, it takes longer."""
    import keras

    return keras.tree.map_structure(np.asarray, model(images, training=False))


TINY = Architecture("a tiny network", "transfer", tiny, ("float32",), "first")


@contextmanager
def known() -> Iterator[None]:
    """Let the tiny network be one that can be asked for by name, and its trainings be short."""
    with mock.patch.dict(ARCHITECTURES, {"tiny": TINY}), brief():
        yield


@contextmanager
def brief() -> Iterator[None]:
    """Cross-validate in two folds, draw small pictures, decode in this process: most of a tiny training's time."""
    load_tensorflow()
    from dicomsort.training.fit import transfer

    with (
        mock.patch.object(transfer, "FOLDS", 2),
        mock.patch.object(plots, "DPI", 72),
        mock.patch("dicomsort.cli.train.open_workers", SerialEngine),
        mock.patch("dicomsort.cli.evaluate.open_workers", side_effect=lambda *_: SerialEngine()),
    ):
        yield


def noise(root: Path, labels: tuple[str, ...], count: int = EACH, first: int = 0, folder: str = "") -> Path:
    """A folder a class of noise, brighter from class to class; ``folder`` is one in each, {} the image's number."""
    for label in labels:
        level = 80 * [name.casefold() for name in LABELS].index(label.casefold())
        for number in range(first, first + count):
            pixels = np.random.default_rng((level, number)).integers(0, 60, (40, 40), np.uint8)
            path = root / label / folder.format(number) / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels + np.uint8(level)).save(path)
    return root


def started(folder: Path) -> Path:
    """A bundle of the tiny network, trained on such noise."""
    out = folder / "start"
    with known():
        more = ("--learning-rate", 0.05, "--epochs", 30)
        ran = run("train", noise(folder / "images", LABELS), "--out", out, "--arch", "tiny", *RECIPE, *more)
    assert ran.code == 0, ran.err
    return out


def saying(*probabilities: float, distance: float | None = None) -> bytes:
    """A LiteRT model that says the same of every image: probabilities, and a distance where one is given."""
    import keras
    from keras import ops

    from dicomsort.training.export.tflite import _convert

    image = keras.Input((224, 224, 3), name="image")
    nothing = keras.layers.GlobalAveragePooling2D()(image) * 0.0
    dense = keras.layers.Dense(len(probabilities), activation="softmax")
    outputs = {"probabilities": dense(nothing)}
    dense.set_weights([np.zeros((3, len(probabilities))), np.log(np.array(probabilities))])
    if distance is not None:
        outputs["distance"] = ops.sum(nothing, axis=1) + distance
    return _convert(keras.Model(image, outputs), "float32")


def rewritten(checkpoint: Path, edit: Callable[[dict[str, Any], dict[str, Any]], object]) -> None:
    """Write a folder's checkpoint as it is after ``edit`` of its arrays and of its progress."""
    with np.load(checkpoint / "state.npz") as saved:
        arrays = dict(saved)
    header = json.loads(str(arrays["story"]))
    edit(arrays, header["progress"])
    kinds = {kind: sum(name.startswith(kind) for name in arrays) for kind in ("variables", "sums", "best")}
    np.savez(checkpoint / "state.npz", **arrays | {"story": np.array(json.dumps(header | {"arrays": kinds}))})


def edited(model: bytes, edit: Callable[[Any], None]) -> bytes:
    """A LiteRT model after ``edit`` of its flatbuffer."""
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema

    tree = schema.ModelT.InitFromPackedBuf(model, 0)
    edit(tree)
    builder = flatbuffers.Builder(1 << 20)
    builder.Finish(tree.Pack(builder), b"TFL3")
    return bytes(builder.Output())
