"""A trained model on disk: a folder with ``bundle.json`` (the contract) and ``model.tflite`` (run by LiteRT).

It may hold ``evaluation.npz``, the replay set, which sorting does not read. ``spec`` says what a bundle is and reads
one, ``tensors`` reads the outputs of a model's file, ``predictor`` runs it, ``staging`` writes a bundle. Importing this
package loads neither TensorFlow nor LiteRT nor numpy.
"""

from __future__ import annotations

from dicomsort.bundle.predictor import Predictor, calibrate, predictor_of, require_answer
from dicomsort.bundle.spec import (
    EVALUATION_NAME,
    MODEL_NAME,
    SPEC_NAME,
    Bundle,
    BundleReference,
    default_path,
    has_changed,
    label_problem,
    load,
)
from dicomsort.bundle.staging import check_target, seal, staged

__all__ = [
    "EVALUATION_NAME",
    "MODEL_NAME",
    "SPEC_NAME",
    "Bundle",
    "BundleReference",
    "Predictor",
    "calibrate",
    "check_target",
    "default_path",
    "has_changed",
    "label_problem",
    "load",
    "predictor_of",
    "require_answer",
    "seal",
    "staged",
]
