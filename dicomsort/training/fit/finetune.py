"""The recipe that trains a bundle further: all before its last layer stays as it is, in seconds a fold.

Between the new images, some of the bundle's replay set are shown, so that the network does not forget them.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from dicomsort.bundle import Bundle, load
from dicomsort.bundle.spec import read_model
from dicomsort.errors import BundleError
from dicomsort.records import RENDERING_VERSION
from dicomsort.training.data.dataset import DatasetError
from dicomsort.training.data.splitting import folds
from dicomsort.training.models.architectures import Architecture
from dicomsort.training.models.bundle_network import architecture_of, network
from dicomsort.training.models.replay_set import probe_images, recall, require_of
from dicomsort.training.models.tflite_head import Body
from dicomsort.training.models.tflite_weights import read_mahalanobis

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from dicomsort.training.data.dataset import Dataset
    from dicomsort.training.data.rendered import Rendered
    from dicomsort.training.fit.recipe import Hyperparameters, TrainedModel
    from dicomsort.training.fit.transfer import TailTrainer
    from dicomsort.training.models.ood import MahalanobisModel
    from dicomsort.training.models.replay_set import ReplaySet
    from dicomsort.training.progress import Reporter

# Of the bundle's weights, averaged with what the training came to (Wortsman et al. 2022, arXiv:2109.01903), where it
# has no replay set: what the new images do not show is not all forgotten.
START_SHARE = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Finetune(Architecture):
    """A bundle's network, and what is needed to train it further.

    ``build`` gives it the bundle's weights. ``replay_set`` is None where the bundle keeps none; ``mahalanobis`` is
    that of its training images, None where its file does not hold it.
    """

    bundle: Bundle
    replay_set: ReplaySet | None
    mahalanobis: MahalanobisModel | None

    @property
    def evaluation_set(self) -> ReplaySet | None:
        """The images of the replay set that no training learns from, None where there are none."""
        return (self.replay_set and self.replay_set.part(rehearsed=False)) or None

    def header_classes(self, labels: Sequence[str]) -> dict[str, str]:  # noqa: ARG002 - the bundle's
        """Return which labels are the classes that a header may name: those of the bundle."""
        return dict(self.bundle.header_classes)


def from_bundle(folder: Path) -> Finetune:
    """Return the recipe that trains the bundle in ``folder`` further.

    BundleError where that is no bundle, or one whose network is not known or whose weights cannot be had.
    """
    bundle = load(folder, RENDERING_VERSION)
    precisions = architecture_of(bundle).precisions
    weights = f"{bundle.arch} with the weights of the bundle {bundle.name} (SHA-256 {bundle.model_sha256})"
    return Finetune(
        f"{weights}; its last layer trained", "finetune", partial(network, bundle), precisions,
        bundle=bundle, replay_set=recall(bundle), mahalanobis=_mahalanobis(bundle),
    )  # fmt: skip


def _mahalanobis(bundle: Bundle) -> MahalanobisModel | None:
    """Return the Mahalanobis model of a bundle's training images, None where its file does not hold it."""
    if bundle.distance is None:
        return None
    try:
        return read_mahalanobis(read_model(bundle))
    except BundleError:  # a model that something else wrote
        return None


def fit_finetune(
    architecture: Finetune, rendered: Rendered, hyper: Hyperparameters, reporter: Reporter
) -> TrainedModel:
    """Train the last layer: once for each fold of sources on the others, at last on everything."""
    from dicomsort.training.fit.transfer import FOLDS, fit_in_folds

    dataset = rendered.dataset
    # A class may have one source alone: its other images are known from the bundle.
    grouped = any(item.group for item in dataset.items)
    fold = folds(dataset, FOLDS, hyper.seed, grouped=grouped)
    if len(np.unique(fold)) == 1:  # each class has one source
        fold = np.unique(dataset.units(grouped=grouped), return_inverse=True)[1] % FOLDS
    if len(np.unique(fold)) == 1:
        raise DatasetError(_one_alone(dataset))
    weights = f"{architecture.summary}, from {architecture.trained_from}"
    if evaluation := architecture.bundle.evaluation:
        weights += f", rehearsing {evaluation.sha256}"
    with _opened(architecture, rendered, hyper, reporter) as trainer:
        return fit_in_folds(trainer, fold, weights, by_source=grouped)


@contextmanager
def _opened(
    architecture: Finetune, rendered: Rendered, hyper: Hyperparameters, reporter: Reporter
) -> Iterator[TailTrainer]:
    """Yield the network; its frozen layers are those of the LiteRT file, whose features are the ones that ship."""
    from dicomsort.training.fit import transfer
    from dicomsort.training.fit.frozen_features import ReplayTargets

    body, replay_set = Body(read_model(architecture.bundle)), architecture.replay_set
    if replay_set:
        require_of(architecture.bundle, replay_set, body.predict_on_batch(probe_images(rendered.images.shape[1:])))
    with transfer.opened(architecture, rendered, hyper, reporter, body) as trainer:
        rehearsed = (replay_set and replay_set.part(rehearsed=True)) or None
        replay = rehearsed and ReplayTargets(rehearsed, trainer.predict(rehearsed.features)[1])
        share = 0.0 if replay else START_SHARE
        # A site's few images are no measure of how far other images lie.
        yield replace(trainer, replay=replay, start_share=share, mahalanobis=lambda *_: architecture.mahalanobis)


def _one_alone(dataset: Dataset) -> str:
    return (
        f"data set {str(dataset.root)!r}: expected images of two sources (folders in a class's folder) or more, so "
        f"that one can be held out and judged, received {len(dataset.items)} of one, or near-duplicates of one image"
    )
