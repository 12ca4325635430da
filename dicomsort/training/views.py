"""What the frozen part of a network sees in a data set's images and in variations of them, computed once.

Imports Keras: import this module inside a function, after everything that can fail early.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import keras
import numpy as np

from dicomsort.training.augment import STRENGTHS, augment
from dicomsort.training.tensors import claim

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from dicomsort.training.dataset import Indices
    from dicomsort.training.progress import Reporter, Step
    from dicomsort.training.tensors import Rendered

    Change = Callable[[int, NDArray[np.uint8]], NDArray[np.uint8]]

VIEWS = 6  # variations of each image
BATCH = 32
CLEAN = 0.25  # the share of images that are shown as they are


@dataclass(frozen=True, slots=True)
class Views:
    """Activations where the frozen part ends, float16 (views, N, …), mapped; the first view is the images' own."""

    seen: NDArray[np.float16]

    def batch(self, items: Indices, random: np.random.Generator) -> NDArray[np.float32]:
        """Return float32 (n, …) for these items, each in a view that ``random`` draws."""
        view = np.zeros(len(items), np.intp)
        if len(self.seen) > 1:
            varied = random.random(len(items)) >= CLEAN
            view[varied] = random.integers(1, len(self.seen), varied.sum())
        return self.seen[view, items].astype(np.float32)


def divide(network: Any, start: str) -> tuple[Any, Any, Any]:
    """Return the parts of a keras.Model before and from its layer ``start``, which everything passes through.

    The second part comes twice, the other time with two outputs, features and probabilities. All share the network's
    weights. What normalises batches in the second part keeps its statistics: it is to learn from few images.
    """
    cut = network.get_layer(start).input
    trunk, tail = keras.Model(network.input, cut), keras.Model(cut, network.output)
    both = keras.Model(cut, [network.get_layer("features").output, network.output])
    network.trainable = True
    for layer in trunk.layers:
        layer.trainable = False
    for layer in tail.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.trainable = False
    return trunk, tail, both


def view_all(trunk: Any, rendered: Rendered, strength: str, seed: int, place: Path, reporter: Reporter) -> Views:
    """Show all images of a data set, and ``VIEWS`` variations of each by a strength's name, to ``trunk``.

    The activations go to the new file ``place``; DicomsortError where it finds no room.
    """
    chosen = STRENGTHS[strength]
    count = 1 if chosen is None else 1 + VIEWS
    seen = claim(place, (count, len(rendered.rows), *trunk.output.shape[1:]), np.float16)
    everything = np.arange(len(rendered.rows))
    with reporter.step("Looking at variations" if chosen else "Looking at images", count * len(everything)) as step:
        for view in range(count):

            def change(item: int, image: NDArray[np.uint8], view: int = view) -> NDArray[np.uint8]:
                return augment(image, chosen, np.random.default_rng((seed, view, item))) if view and chosen else image

            for items, activations in look(trunk, rendered, everything, change, step):
                seen[view, items] = activations
    return Views(seen)


def look(
    trunk: Any, rendered: Rendered, items: Indices, change: Change, step: Step
) -> Iterator[tuple[Indices, NDArray[np.float32]]]:
    """Yield (items, their activations, float32 (n, …)) batch by batch, each image changed by ``change(item, image)``.

    Images are changed while the network looks at those before.
    """
    batches = [items[start : start + BATCH] for start in range(0, len(items), BATCH)]

    def load(batch: Indices) -> NDArray[np.float32]:
        images = rendered.images[rendered.rows[batch]]
        return np.stack([change(int(i), image) for i, image in zip(batch, images, strict=True)]).astype(np.float32)

    ahead = 2 * (os.cpu_count() or 1)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        loading = [pool.submit(load, batch) for batch in batches[:ahead]]
        for i, batch in enumerate(batches):
            images = loading.pop(0).result()
            if i + ahead < len(batches):
                loading.append(pool.submit(load, batches[i + ahead]))
            yield batch, np.asarray(trunk.predict_on_batch(images))
            step.advance(len(batch))
