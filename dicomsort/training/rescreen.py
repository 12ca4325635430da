"""Makes the screen of a bundle that is there already, from the weights in its LiteRT file and a data set."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dicomsort.bundle import SCREEN_NAME, load, seal, staged
from dicomsort.bundle.spec import SPEC_NAME, read_model
from dicomsort.errors import DicomsortError
from dicomsort.pixels import INPUT_SHAPE
from dicomsort.records import RENDERING_VERSION
from dicomsort.training import screening, seen
from dicomsort.training.card import write_card
from dicomsort.training.dataset import relabelled, scan
from dicomsort.training.predictions import require_images
from dicomsort.training.progress import load_tensorflow
from dicomsort.training.restore import read_space
from dicomsort.training.starting import from_bundle
from dicomsort.training.tensors import render_all
from dicomsort.training.trainer import MAYBE, tell_skipped
from dicomsort.training.writing import OUTPUTS

if TYPE_CHECKING:
    from collections.abc import Callable

    from dicomsort.bundle import Bundle
    from dicomsort.engine import Engine
    from dicomsort.training.progress import Reporter
    from dicomsort.training.tensors import Rendered

FIGURES, CARD = "metrics.json", "card.md"


def rescreen(
    folder: Path, root: Path, seed: int, open_workers: Callable[[], Engine], reporter: Reporter
) -> dict[str, Any]:
    """Put a screen into the bundle ``folder``, measured on all images of the data set ``root``; return the figures.

    UsageError where bundle or data set will not do, DicomsortError where no screen is worth having: then the bundle
    stays as it is.
    """
    bundle = load(folder, RENDERING_VERSION)
    dataset = relabelled(scan(root, least=1), bundle.labels)
    with tempfile.TemporaryDirectory(prefix="dicomsort-screen-") as scratch:
        with open_workers() as engine:
            rendered = render_all(dataset, Path(scratch) / "images.npy", engine, reporter)
        tell_skipped(rendered, reporter)
        require_images(rendered.dataset, len(rendered.skipped))
        if reason := screening.pointless(bundle.header_classes, len(rendered.rows)):
            raise DicomsortError(f"bundle {str(folder)!r}: no screen: {reason}")
        made = _made(bundle, rendered, seed, reporter)
    limits = screening.Limits(bundle.labels, bundle.temperature, bundle.decide, bundle.contradict, bundle.distance)
    settled = screening.settle(made, limits)
    if settled.confirm is None:
        raise DicomsortError(f"bundle {str(folder)!r}: no screen: {settled.told['reason']}")
    _write(folder, made.content, settled)
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


def _write(folder: Path, screen: bytes, settled: screening.Settled) -> None:
    """Replace the bundle by itself with the screen, and with figures and card that tell of it."""
    with staged(folder, OUTPUTS | MAYBE) as part:
        shutil.copytree(folder, part, dirs_exist_ok=True)
        (part / SCREEN_NAME).write_bytes(screen)
        spec = json.loads((part / SPEC_NAME).read_text("utf-8")) | {screening.KEY: {"confirm": settled.confirm}}
        seal(part, spec)
        told = _read(part / FIGURES)
        if told:
            told["training_run"] = {**told.get("training_run", {}), screening.KEY: settled.told}
            (part / FIGURES).write_text(json.dumps(told, indent=1) + "\n", "utf-8")
            (part / CARD).write_text(write_card(spec, told), "utf-8", "backslashreplace")


def _read(path: Path) -> dict[str, Any]:
    """Return a bundle's figures; {} where it has none."""
    if not path.is_file():
        return {}
    told = json.loads(path.read_text("utf-8"))
    return told if isinstance(told, dict) else {}
