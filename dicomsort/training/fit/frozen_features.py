"""Activations of a network's frozen layers for a data set and its variations, computed once.

Imports Keras: import this module inside a function, after everything that can fail early.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from dicomsort.errors import DicomsortError
from dicomsort.training.data.augment import STRENGTHS
from dicomsort.training.data.dataset import Indices
from dicomsort.training.data.prefetch import Feed
from dicomsort.training.data.rendered import Rendered, allocated_memmap
from dicomsort.training.models.replay_set import MOST_FLOAT16
from dicomsort.training.progress import Reporter, Step

Change = Callable[[int, Indices, NDArray[np.uint8]], NDArray[np.uint8]]
Spent = list[tuple[float, float]]

VIEWS = 6  # variations of each image
BATCH = 32


def divide(network: Any, start: str, subclasses: int = 0) -> tuple[Any, Any, Any]:
    """Return the frozen and the trainable layers of a keras.Model, before and from its layer ``start``.

    An empty ``start`` is the layer behind ``features``. The trainable layers are returned twice, the second time with
    two outputs, features and probabilities. All share the network's weights. Batch normalisation in them keeps its
    statistics, for they learn from few images.

    With ``subclasses``, and a ``start``, the trainable layers have a second head, whose output follows that for the
    classes, float32 (N, C + K). It is an auxiliary task (Caruana 1997), for the training alone: the features then tell
    apart what a class puts together.
    """
    features = network.get_layer("features").output
    # Not ``network.input``: a keras.Sequential that was never called has none.
    image, probabilities = network.inputs[0], network.outputs[0]
    if start:
        cut = network.get_layer(start).input
        trained = probabilities
        if subclasses:
            head = keras.layers.Dense(subclasses, activation="softmax", dtype="float32", name="subclasses")
            finer = head(network.get_layer("probabilities").input)
            trained = keras.layers.Concatenate(name="both")([probabilities, finer])
        frozen, trainable = keras.Model(image, cut), keras.Model(cut, trained)
        with_features = keras.Model(cut, [features, probabilities])
    else:
        frozen, (trainable, with_features) = keras.Model(image, features), _behind_features(network)
    network.trainable = True
    for layer in frozen.layers:
        layer.trainable = False
    for layer in trainable.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.trainable = False
    return frozen, trainable, with_features


def _behind_features(network: Any) -> tuple[Any, Any]:
    """Return the layers behind a network's features, and the same with the features as first output."""
    layer = network.get_layer("features")
    features = result = keras.Input(layer.output.shape[1:])
    for behind in network.layers[network.layers.index(layer) + 1 :]:
        result = behind(result)
    return keras.Model(features, result), keras.Model(features, [features, result])


def view_all(
    frozen: Any, rendered: Rendered, strength: str, seed: int, place: Path, reporter: Reporter, spent: Spent
) -> NDArray[np.float16]:
    """Return the activations of frozen layers for a data set, and ``VIEWS`` variations of each image by ``strength``.

    They are float16 (views, N, …), mapped from the new file ``place``; the first view is of the unchanged images.
    DicomsortError where there is no room, or they are too large for float16. ``spent``: see ``activations_of``.
    """
    chosen = STRENGTHS[strength]
    count = 1 if chosen is None else 1 + VIEWS
    views = allocated_memmap(place, (count, len(rendered.rows), *frozen.output.shape[1:]), np.float16, named=False)

    def change(view: int, items: Indices, images: NDArray[np.uint8]) -> NDArray[np.uint8]:
        if not view or not chosen:
            return images
        return rendered.vary(images, chosen, [(seed, view, int(item)) for item in items])

    images = ChangedImages(rendered, np.arange(len(rendered.rows)), change)
    name = "Looking at variations" if chosen else "Looking at images"
    with reporter.step(name, count * len(rendered.rows)) as step:
        for view, items, activations in activations_of(frozen, images, count, step, spent):
            if not (largest := float(np.abs(activations).max())) <= MOST_FLOAT16:
                raise DicomsortError(
                    f"frozen layers: expected activations up to {MOST_FLOAT16:,.0f}, received {largest:.3g}; start "
                    "from other weights, or train these anew with a smaller --learning-rate"
                )
            views[view, items] = activations
    return views


@dataclass(frozen=True, slots=True)
class ChangedImages:
    """Batches of images, uint8 (n, …), changed by ``change(epoch, items, images)``; see ``BatchSource``."""

    rendered: Rendered
    items: Indices
    change: Change

    def __len__(self) -> int:
        return math.ceil(len(self.items) / BATCH)

    def batch(self, epoch: int, index: int) -> tuple[NDArray[Any], ...]:
        """Return the images of a batch, and its items, int (n,)."""
        items = self.items[index * BATCH : (index + 1) * BATCH]
        images = self.rendered.images[self.rendered.rows[items]]
        return self.change(epoch, items, images), items


def activations_of(
    frozen: Any, images: ChangedImages, epochs: int, step: Step, spent: Spent
) -> Iterator[tuple[int, Indices, NDArray[np.float32]]]:
    """Yield (epoch, items, their activations, float32 (n, …)) batch by batch.

    Images are changed by threads while the network runs. The seconds that it waited for them, and all that it took, are
    appended to ``spent``.
    """
    began = time.perf_counter()
    with Feed(images, epochs) as feed:
        for epoch in range(epochs):
            feed.go_to(epoch)
            for batch, items in feed:
                yield epoch, items, np.asarray(frozen.predict_on_batch(batch))
                step.advance(len(items))
    spent.append((feed.waited, time.perf_counter() - began))
