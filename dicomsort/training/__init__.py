"""Training: scan a data set, render it once, fit a model, measure it on what was held out, write a bundle.

pipeline, settings   the steps in their order, and what was asked for; tune, trial: the search for hyperparameters
data                 folders to classes and sources, rendered images, splits, augmentation, robustness tests
models               the networks, as a table; what is in a LiteRT file; Mahalanobis model, replay set
fit                  the recipes full, transfer and finetune, with checkpoints; they leave ``HeldOutPredictions``
evaluate             calibration, metrics with intervals, cross-validation, comparison, tables, card, pictures
export               LiteRT models, and the files of a bundle

TensorFlow, Keras and matplotlib are imported inside functions only.
"""

from __future__ import annotations

PACKAGES = frozenset({"keras", "matplotlib", "tensorflow"})  # which an installation for sorting alone does without
