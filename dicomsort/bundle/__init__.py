"""A trained model on disk: a folder with ``bundle.json`` (the contract) and ``model.tflite`` (run by LiteRT).

``spec`` says what a bundle is and reads one, ``tensors`` looks into the model's file, ``predictor`` runs it,
``staging`` writes one (aside, then renamed).
Importing this package loads neither TensorFlow nor LiteRT nor numpy.
"""

from __future__ import annotations

from dicomsort.bundle.predictor import Predictor, Seen, calibrate
from dicomsort.bundle.spec import FORMAT_VERSION, MODEL_NAME, SPEC_NAME, Bundle, default_path, label_problem, load
from dicomsort.bundle.staging import seal, staged

__all__ = [
    "FORMAT_VERSION",
    "MODEL_NAME",
    "SPEC_NAME",
    "Bundle",
    "Predictor",
    "Seen",
    "calibrate",
    "default_path",
    "label_problem",
    "load",
    "seal",
    "staged",
]
