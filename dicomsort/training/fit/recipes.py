"""The three recipes: ``full`` trains all layers, ``transfer`` those behind frozen ones, ``finetune`` a bundle's last.

Imports Keras: import this module inside a function, after everything that can fail early.
"""

from __future__ import annotations

import keras

from dicomsort.training.data.rendered import Rendered
from dicomsort.training.fit.checkpoint import forget
from dicomsort.training.fit.feeding import Diverged
from dicomsort.training.fit.finetune import Finetune, fit_finetune
from dicomsort.training.fit.full import fit_full
from dicomsort.training.fit.hyperparameters import Hyperparameters, TrainedModel
from dicomsort.training.fit.transfer import fit_transfer
from dicomsort.training.models.architectures import Architecture
from dicomsort.training.progress import Reporter


def fit(architecture: Architecture, rendered: Rendered, hyper: Hyperparameters, reporter: Reporter) -> TrainedModel:
    """Train ``architecture`` on rendered images by its recipe; the seed fixes splits, weights and order."""
    keras.utils.set_random_seed(hyper.seed)
    try:
        if isinstance(architecture, Finetune):
            return fit_finetune(architecture, rendered, hyper, reporter)
        recipe = {"full": fit_full, "transfer": fit_transfer}[architecture.recipe]
        return recipe(architecture, rendered, hyper, reporter)
    except Diverged:
        forget(hyper.checkpoint)  # from which it would diverge again
        raise
