"""Makes the screen of a bundle that is there already, from the weights in its LiteRT file and a data set."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from dicomsort.bundle import SCREEN_NAME, load
from dicomsort.bundle.spec import read_model
from dicomsort.errors import DicomsortError
from dicomsort.pixels import INPUT_SHAPE
from dicomsort.records import RENDERING_VERSION
from dicomsort.training import screening, seen
from dicomsort.training.progress import load_tensorflow
from dicomsort.training.remaking import Addition, opened, remake
from dicomsort.training.restore import read_space
from dicomsort.training.starting import from_bundle

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from dicomsort.bundle import Bundle
    from dicomsort.engine import Engine
    from dicomsort.training.progress import Reporter
    from dicomsort.training.tensors import Rendered


def rescreen(
    folder: Path, root: Path, seed: int, open_workers: Callable[[], Engine], reporter: Reporter
) -> dict[str, Any]:
    """Put a screen into the bundle ``folder``, measured on all images of the data set ``root``; return the figures.

    UsageError where bundle or data set will not do, DicomsortError where no screen is worth having: then the bundle
    stays as it is.
    """
    bundle = load(folder, RENDERING_VERSION)
    with opened(bundle, root, open_workers, reporter) as rendered:
        if reason := screening.pointless(bundle.header_classes, len(rendered.rows)):
            raise DicomsortError(f"bundle {str(folder)!r}: no screen: {reason}")
        made = _made(bundle, rendered, seed, reporter)
    limits = screening.Limits(bundle.labels, bundle.temperature, bundle.decide, bundle.contradict, bundle.distance)
    settled = screening.settle(made, limits)
    if settled.confirm is None:
        raise DicomsortError(f"bundle {str(folder)!r}: no screen: {settled.told['reason']}")
    remake(folder, Addition(SCREEN_NAME, made.content, screening.KEY, {"confirm": settled.confirm}, settled.told))
    return settled.told


def _made(bundle: Bundle, rendered: Rendered, seed: int, reporter: Reporter) -> screening.Made:
    """Return a screen of the bundle's network, compared with its model on every image."""
    reporter.note("Loading TensorFlow")
    load_tensorflow()
    from dicomsort.training.screens import Screens

    model = read_model(bundle)
    network = from_bundle(bundle.folder).build(INPUT_SHAPE, len(bundle.labels))
    space = None if bundle.distance is None else read_space(model)
    screens, everything = Screens(rendered, seed, reporter), np.arange(len(rendered.rows))
    reporter.note("Making the screen")
    screen = screens.make(network, space, everything)
    model_single, single = screens.times(model, screen)
    known = seen.compare(bundle.training, rendered.dataset.items, rendered.digests)
    compared = screens.compare(f"every image; {known.words()}", model, screen, everything)
    return screening.Made(screen, single, model_single, (compared,))
