"""The recipe that fine-tunes a bundle: all layers but the last stay as they are, in seconds a fold.

Images of the bundle's replay set are shown between the new images, so that the network does not forget them. No code
is read from a bundle: the network is built here by its architecture's name, and only numbers are read.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dicomsort.bundle import Bundle, Predictor, calibrate, load
from dicomsort.bundle.spec import MAX_MODEL_BYTES, read_model
from dicomsort.errors import BundleError
from dicomsort.records import INPUT_SHAPE
from dicomsort.training.data.dataset import DatasetError
from dicomsort.training.data.rendered import Rendered
from dicomsort.training.data.splitting import folds
from dicomsort.training.fit.hyperparameters import Hyperparameters, TrainedModel
from dicomsort.training.models import efficientnet_lite0
from dicomsort.training.models.architectures import ARCHITECTURES, Architecture, Shape, varied
from dicomsort.training.models.keras_applications import classifier
from dicomsort.training.models.ood import MahalanobisModel
from dicomsort.training.models.replay_set import ReplaySet, load_replay_set, probe_images, require_of
from dicomsort.training.models.tflite_head import FeatureExtractor
from dicomsort.training.models.tflite_weights import INT8, precision, read_mahalanobis, read_weights
from dicomsort.training.progress import Reporter

if TYPE_CHECKING:
    from dicomsort.training.fit.transfer import TransferTrainer

KERAS_MODEL, KERAS_CONFIG = "model.keras", "config.json"
AGREEMENT = 0.02  # of probabilities, between LiteRT and the network built from it, or stored beside it
# The same for LiteRT in int8. The bundle that ships differs by 0.005 at most on 32 images of noise, but where a network
# is undecided between two classes rounding alone makes more difference: 0.03 on one of 64 training images.
AGREEMENT_INT8 = 0.1


def architecture_of(bundle: Bundle) -> Architecture:
    """Return the architecture of a bundle; BundleError where it is unknown, or its weights are missing."""
    where = f"--from {str(bundle.folder)!r}"
    architecture = ARCHITECTURES.get(bundle.arch)
    if architecture is None:
        known = ", ".join(ARCHITECTURES)
        raise BundleError(f"{where}: expected one of the networks {known}, received {bundle.arch!r}")
    if bundle.arch != "efficientnet-lite0" and not (bundle.folder / KERAS_MODEL).is_file():
        raise BundleError(f"{where}: expected {KERAS_MODEL}, which `dicomsort train` leaves, received none")
    return architecture


def network(bundle: Bundle, shape: Shape, classes: int) -> Any:
    """Return the keras.Model of a bundle; BundleError unless its predictions agree with the bundle's."""
    model = _lite0(bundle) if bundle.arch == "efficientnet-lite0" else _beside(bundle, shape, classes)
    images = probe_images(shape)
    raw = np.asarray(model.predict_on_batch(images.astype(np.float32)))
    shipped = Predictor(bundle).predict(images).probabilities
    difference = float(np.abs(calibrate(raw, bundle.temperature) - shipped).max())
    limit = AGREEMENT_INT8 if precision(read_model(bundle)) == INT8 else AGREEMENT
    if not difference <= limit:
        raise BundleError(
            f"bundle {str(bundle.folder)!r}: expected weights that agree with model.tflite within {limit}, received "
            f"{difference:.3f}"
        )
    return model


def _lite0(bundle: Bundle) -> Any:
    """Return the network with the weights of its LiteRT model."""
    count = 2 + sum(stage.repeats * (3 if stage.expansion > 1 else 2) for stage in efficientnet_lite0.STAGES)
    *units, head = read_weights(read_model(bundle), count)
    try:
        model = classifier(efficientnet_lite0.backbone(INPUT_SHAPE, units), len(bundle.labels))
        model.get_layer("probabilities").set_weights(list(head))
    except (ValueError, TypeError) as error:
        raise BundleError(_unlike(bundle, "model.tflite", error)) from error
    return model


def _beside(bundle: Bundle, shape: Shape, classes: int) -> Any:
    """Return the network with the weights of ``model.keras``; nothing else of that file is read."""
    file = bundle.folder / KERAS_MODEL
    variation = (bundle.training.get("recipe") or {}).get("variation") or {}
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
        unknown = ", ".join(sorted(set(theirs) - set(ours)))
        raise ValueError(f"other layers: {unknown}" if unknown else "layers in another order")


def _kinds(config: dict[str, Any]) -> Iterator[str]:
    """Yield the classes of a Keras configuration's layers, with their modules where they are not in Keras."""
    for layer in config["config"]["layers"]:
        module = str(layer["module"])
        yield str(layer["class_name"]) if module.startswith("keras.") else f"{module}.{layer['class_name']}"


def _unlike(bundle: Bundle, name: str, error: Exception) -> str:
    received = " ".join(str(error).split())[:200] or type(error).__name__
    return f"bundle {str(bundle.folder)!r}: {name}: expected weights of {bundle.arch}, received {received}"


# The share of the bundle's weights in an average with the trained ones (Wortsman et al. 2022, arXiv:2109.01903), where
# it has no replay set, so that the network forgets less.
START_SHARE = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Finetune(Architecture):
    """A bundle's network, with the parts of the bundle that fine-tuning needs.

    ``build`` returns it with the bundle's weights. ``replay_set`` is None where the bundle has none; ``mahalanobis`` is
    the model of its training images, None where its file does not hold it.
    """

    bundle: Bundle
    replay_set: ReplaySet | None
    mahalanobis: MahalanobisModel | None

    @property
    def evaluation_set(self) -> ReplaySet | None:
        """The images of the replay set that fine-tuning does not learn from, None where there are none."""
        return (self.replay_set and self.replay_set.part(rehearsed=False)) or None

    def header_classes(self, labels: Sequence[str]) -> dict[str, str]:  # noqa: ARG002 - the bundle's
        """Return class that a header may name -> label, as in the bundle."""
        return dict(self.bundle.header_classes)


def from_bundle(folder: Path) -> Finetune:
    """Return the recipe that fine-tunes the bundle in ``folder``.

    BundleError where that is no bundle, or its network is unknown or its weights are missing.
    """
    bundle = load(folder)
    Predictor(bundle)  # which checks the network's inputs and outputs
    precisions = architecture_of(bundle).precisions
    weights = f"{bundle.arch} with the weights of the bundle {bundle.name} (SHA-256 {bundle.model_sha256})"
    return Finetune(
        f"{weights}; its last layer trained", "finetune", partial(network, bundle), precisions,
        bundle=bundle, replay_set=load_replay_set(bundle), mahalanobis=_mahalanobis(bundle),
    )  # fmt: skip


def _mahalanobis(bundle: Bundle) -> MahalanobisModel | None:
    """Return the Mahalanobis model of a bundle's training images, None where its file does not hold it."""
    try:
        return None if bundle.distance is None else read_mahalanobis(read_model(bundle))
    except BundleError:  # a model that something else wrote
        return None


def fit_finetune(
    architecture: Finetune, rendered: Rendered, hyper: Hyperparameters, reporter: Reporter
) -> TrainedModel:
    """Train the last layer: once for each fold of sources on the others, finally on everything."""
    from dicomsort.training.fit.transfer import FOLDS, fit_in_folds

    dataset = rendered.dataset
    # A class may have one source alone: its other images are known from the bundle.
    grouped = any(item.group for item in dataset.items)
    fold = folds(dataset, FOLDS, hyper.seed, grouped=grouped)
    if len(np.unique(fold)) == 1:  # each class has one source
        fold = np.unique(dataset.units(grouped=grouped), return_inverse=True)[1] % FOLDS
    if len(np.unique(fold)) == 1:
        raise DatasetError(
            f"data set {str(dataset.root)!r}: expected images of two sources (folders in a class's folder) or more, so "
            f"that one can be held out and judged, received {len(dataset.items)} of one, or near-duplicates of one "
            "image"
        )
    weights = f"{architecture.summary}, from {architecture.trained_from}"
    if evaluation := architecture.bundle.evaluation:
        weights += f", rehearsing {evaluation.sha256}"
    with _opened(architecture, rendered, hyper, reporter) as trainer:
        return fit_in_folds(trainer, fold, weights, by_source=grouped)


@contextmanager
def _opened(
    architecture: Finetune, rendered: Rendered, hyper: Hyperparameters, reporter: Reporter
) -> Iterator[TransferTrainer]:
    """Yield the network; its frozen layers run in LiteRT, so that the features are those of the network that ships."""
    from dicomsort.training.fit import transfer
    from dicomsort.training.fit.samplers import ReplayTargets

    extractor, replay_set = FeatureExtractor(read_model(architecture.bundle)), architecture.replay_set
    if replay_set:
        require_of(architecture.bundle, replay_set, extractor.predict_on_batch(probe_images(rendered.images.shape[1:])))
    with transfer.opened(architecture, rendered, hyper, reporter, extractor) as trainer:
        rehearsed = (replay_set and replay_set.part(rehearsed=True)) or None
        replay = rehearsed and ReplayTargets(rehearsed, trainer.predict(rehearsed.features)[1])
        share = 0.0 if replay else START_SHARE
        # A site's few images are too few to fit another Mahalanobis model.
        yield replace(trainer, replay=replay, start_share=share, mahalanobis=lambda *_: architecture.mahalanobis)
