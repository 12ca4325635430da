"""Makes what a bundle keeps of its evaluation images (``remembered``): with a training, or for a bundle that is there.

Imports TensorFlow inside functions only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from dicomsort.bundle import EVALUATION_NAME, load
from dicomsort.errors import DicomsortError
from dicomsort.pixels import INPUT_SHAPE
from dicomsort.records import RENDERING_VERSION
from dicomsort.training import remembered, seen
from dicomsort.training.outputs import featured, find_tail
from dicomsort.training.progress import load_tensorflow
from dicomsort.training.remaking import Addition, opened, remake
from dicomsort.training.starting import from_bundle

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

    from dicomsort.engine import Engine
    from dicomsort.training.dataset import Indices
    from dicomsort.training.progress import Reporter
    from dicomsort.training.tensors import Rendered

BATCH = 32
NO_END = "the network does not end in features and layers behind them"


def keep_features(
    model: Any, rendered: Rendered, items: Indices, trained: NDArray[np.bool_], seed: int, reporter: Reporter
) -> bytes | str:
    """Return the file of what is kept of some of ``items``, (n,); or why a keras.Model has no features to keep.

    ``trained``: bool (n,), which of them the model was trained on; ``seed`` fixes which are chosen.
    """
    if find_tail(model) is None:
        return NO_END
    network = featured(model)
    dataset = rendered.dataset.only(items)
    chosen = remembered.choose(dataset, int(network.output.shape[1]), seed)
    rows = rendered.rows[items[chosen]]
    parts = []
    with reporter.step("Keeping features of evaluation images", len(rows)) as step:
        for start in range(0, len(rows), BATCH):
            parts.append(_features(network, rendered.images[rows[start : start + BATCH]]))
            step.advance(len(parts[-1]))
    probes = _features(network, remembered.probe_images(rendered.images.shape[1:]))
    digests = [rendered.digests[i] for i in items[chosen]]
    kept = remembered.remember(dataset.only(chosen), digests, np.concatenate(parts), probes, trained[chosen], seed)
    return kept.pack()


def refeature(
    folder: Path, root: Path, groups: Path | None, seed: int, open_workers: Callable[[], Engine], reporter: Reporter
) -> dict[str, Any]:
    """Put features of images of the data set ``root`` into the bundle ``folder``; return what is told of them.

    UsageError where bundle or data set will not do; DicomsortError where the network has no features to keep. Then the
    bundle stays as it is.
    """
    bundle = load(folder, RENDERING_VERSION)
    architecture = from_bundle(folder)
    with opened(bundle, root, open_workers, reporter, groups) as rendered:
        reporter.note("Loading TensorFlow")
        load_tensorflow()
        network = architecture.build(INPUT_SHAPE, len(bundle.labels))
        everything = np.arange(len(rendered.rows))
        known = seen.known(bundle.training, rendered.dataset.items, rendered.digests, untold=True)
        content = keep_features(network, rendered, everything, known, seed, reporter)
    if isinstance(content, str):
        raise DicomsortError(f"bundle {str(folder)!r}: no features kept: {content}")
    told = remembered.told(content)
    remake(folder, Addition(EVALUATION_NAME, content, remembered.KEY, {}, told))
    return told


def _features(network: Any, images: NDArray[np.uint8]) -> NDArray[np.float32]:
    return np.asarray(network.predict_on_batch(images.astype(np.float32)), np.float32)
