"""A trained model on disk: a folder with ``bundle.json`` (the contract) and ``model.tflite`` (run by LiteRT).

It may hold ``evaluation.npz``, features of images by which later trainings are judged; sorting does not read that.

``fields`` says what its JSON holds, ``spec`` what a bundle is, and reads one, ``tensors`` looks into a model's file,
``running`` runs one, ``predictor`` makes predictions of it, ``staging`` writes a bundle (aside, then renamed).
Importing this package loads neither TensorFlow nor LiteRT nor numpy.
"""

from __future__ import annotations

from dicomsort.bundle.predictor import ModelOutput, Predictor, calibrate, require_answer
from dicomsort.bundle.spec import (
    EVALUATION_NAME,
    FORMAT_VERSION,
    MODEL_NAME,
    SPEC_NAME,
    Bundle,
    default_path,
    label_problem,
    load,
)
from dicomsort.bundle.staging import check_target, seal, staged

__all__ = [
    "EVALUATION_NAME",
    "FORMAT_VERSION",
    "MODEL_NAME",
    "SPEC_NAME",
    "Bundle",
    "ModelOutput",
    "Predictor",
    "calibrate",
    "check_target",
    "default_path",
    "label_problem",
    "load",
    "require_answer",
    "seal",
    "staged",
]
