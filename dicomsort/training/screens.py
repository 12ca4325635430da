"""Makes a network's screen (see ``screening``), and asks it and the model about images.

Imports TensorFlow inside functions only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dicomsort.bundle.running import Running
from dicomsort.bundle.tensors import DISTANCE, PROBABILITIES
from dicomsort.training import screening
from dicomsort.training.export import fastest
from dicomsort.training.progress import hushed
from dicomsort.training.quantize import quantize
from dicomsort.training.screening import Compared, Made, Said
from dicomsort.training.splitting import balance

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dicomsort.training.dataset import Indices
    from dicomsort.training.distance import Space
    from dicomsort.training.progress import Reporter
    from dicomsort.training.recipe import Fitted
    from dicomsort.training.tensors import Rendered

EXAMPLES = 240  # images that the ranges of activations are taken from
CHECKED = 2000  # images that the two files of a bundle are compared on
ROUNDS, REPEATS = 5, 10


@dataclass(frozen=True, slots=True)
class Screens:
    """Makes and asks screens; ``rendered`` has the images, ``seed`` fixes which of them serve as examples."""

    rendered: Rendered
    seed: int
    reporter: Reporter

    def make(self, network: Any, space: Space | None, items: Indices) -> bytes:
        """Return the LiteRT file of a network's screen; its examples are some of ``items``."""
        return quantize(network, space, self._images(self.spread(items, EXAMPLES)))

    def ask(self, model: bytes, items: Indices, name: str) -> Said:
        """Return what a LiteRT file says of ``items``, counted under ``name``."""
        parts: list[dict[str, NDArray[np.float32]]] = []
        with self.reporter.step(name, len(items)) as step:
            running = self._load(model)
            for item in items:
                parts.append(running.run(self._images(item[None]).astype(np.float32)))
                step.advance()
        distances = np.concatenate([part[DISTANCE] for part in parts]) if DISTANCE in parts[0] else None
        return Said(np.concatenate([part[PROBABILITIES] for part in parts]), distances)

    def judge(self, network: Any, space: Space | None, outside: Indices, inside: Indices) -> Said:
        """Return what the screen of a network that was trained on ``outside`` says of ``inside``."""
        return self.ask(self.make(network, space, outside), inside, "Asking the screen of this fold")

    def spread(self, items: Indices, count: int) -> Indices:
        """Return at most ``count`` of ``items``, drawn so that classes, and in each its sources, come alike."""
        weights = balance(self.rendered.dataset.only(items)).astype(np.float64)
        random = np.random.default_rng(self.seed)
        drawn: Indices = random.choice(items, min(count, len(items)), replace=False, p=weights / weights.sum())
        return np.sort(drawn)

    def times(self, model: bytes, screen: bytes) -> tuple[float, float]:
        """Return milliseconds an image of model and screen, the best of many runs in turn."""
        image = self._images(np.zeros(1, np.intp)).astype(np.float32)
        both = self._load(model), self._load(screen)
        rounds = [[fastest(running, image, REPEATS) for running in both] for _ in range(ROUNDS)]
        first, second = (min(column) for column in zip(*rounds, strict=True))
        return first, second

    def compare(self, what: str, model: bytes, screen: bytes, items: Indices) -> Compared:
        """Return what the two files of a bundle say of ``items``."""
        said = self.ask(model, items, "Asking the model"), self.ask(screen, items, "Asking the screen")
        return Compared(what, self.rendered.dataset.classes()[items], *said)

    def of_training(self, fitted: Fitted, model: bytes) -> Made:
        """Return the screen of a trained network, whose bundle's model is ``model``."""
        everything = np.arange(len(self.rendered.rows))
        trained = everything if fitted.fold is not None else np.setdiff1d(everything, fitted.held)
        self.reporter.note("Making the screen")
        screen = self.make(fitted.model, fitted.space, trained)
        model_single, single = self.times(model, screen)
        made = Made(screen, single, model_single)
        if made.times < screening.FASTER:
            return made
        said = fitted.screened or self.ask(screen, fitted.held, "Asking the screen")
        held = Compared(
            fitted.held_out,
            self.rendered.dataset.classes()[fitted.held],
            Said(fitted.probabilities, fitted.distances),
            said,
        )
        some = self.spread(everything, CHECKED)
        what = "the files of the bundle, on images of the data set, most of which it was trained on"
        return made._replace(compared=(held, self.compare(what, model, screen, some)))

    def _images(self, items: Indices) -> NDArray[np.uint8]:
        images: NDArray[np.uint8] = self.rendered.images[self.rendered.rows[items]]
        return images

    def _load(self, model: bytes) -> Running:
        """Return a model that has run once, after which LiteRT says no more."""
        with hushed():
            running = Running(model)
            running.run(np.zeros((1, *self.rendered.images.shape[1:]), np.float32))
        return running
