"""A training as the user asked for it, and whether it can be."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dicomsort.config import TRAINING, TrainSettings
from dicomsort.config import checked as in_range
from dicomsort.config.fields import flag_of
from dicomsort.errors import UsageError
from dicomsort.outputs import Gate
from dicomsort.own_files import CHECKPOINT, SHEET, TRIALS
from dicomsort.training.data.augment import STRENGTHS
from dicomsort.training.data.rendered import place_of
from dicomsort.training.evaluate.reporting import SHEET as SHEET_NAME
from dicomsort.training.fit.checkpoint import NAME, PART
from dicomsort.training.fit.finetune import from_bundle
from dicomsort.training.fit.hyperparameters import Hyperparameters
from dicomsort.training.models.architectures import ARCHITECTURES, Architecture, varied, with_weights

SPLITS = ("random", "source")
DEFAULT = "cnn"


@dataclass(frozen=True, slots=True)
class Settings(TrainSettings):
    """A training as the user asked for it; ``variation`` is what a search changed in the network.

    ``variation`` holds names and values of ``architectures.VARIATIONS``.
    """

    variation: tuple[tuple[str, Any], ...] = ()

    @property
    def checkpoint(self) -> Path:
        """The folder from which an interrupted training resumes."""
        return self._beside(".checkpoint")

    @property
    def refused(self) -> Path:
        """Where a bundle is written that must not replace the one at ``out``."""
        return self._beside(".refused")

    @property
    def sheet(self) -> Path:
        """The sheet of mistakes: beside the bundle, because it shows images of the data set."""
        return self._beside(f"-{SHEET_NAME}")

    @property
    def trials(self) -> Path:
        """The journal of a search."""
        return self._beside(".trials")

    def _beside(self, ending: str) -> Path:
        out = Path(os.path.abspath(self.out))
        return out.with_name(f"{out.name}{ending}")

    def hyperparameters(self) -> Hyperparameters:
        """Return the numbers of the training."""
        return Hyperparameters(
            self.epochs, self.batch_size, self.learning_rate, self.validation_split, self.seed,
            self.augment, self.patience, self.balance, self.split, self.checkpoint, self.fresh,
        )  # fmt: skip

    def as_json(self) -> dict[str, Any]:
        """Return the recipe for ``bundle.json``: numbers and names, no paths of this machine."""
        names = ("arch", "epochs", "batch_size", "learning_rate", "validation_split", "seed", "augment", "patience",
                 "target")  # fmt: skip
        files = {name: path.name for name in ("weights", "subclasses") if (path := getattr(self, name))}
        variation = dict(self.variation) or None
        chosen = {"balance": self.balance, "split": self.split, "variation": variation} | files
        return {name: getattr(self, name) for name in names} | {k: v for k, v in chosen.items() if v is not None}


def checked(settings: Settings) -> tuple[Settings, Architecture]:
    """Return the settings with all defaults filled in, and the architecture.

    UsageError names the first setting that cannot be.
    """
    arch = settings.arch or DEFAULT
    for name in ("epochs", "batch_size", "learning_rate", "validation_split", "seed", "patience", "target"):
        in_range(TRAINING[name], getattr(settings, name), flag_of(name))
    for option, chosen, known in (
        ("--arch", arch, tuple(ARCHITECTURES)),
        ("--augment", settings.augment, tuple(STRENGTHS)),
        ("--split", settings.split or SPLITS[0], SPLITS),
    ):
        if chosen not in known:
            raise UsageError(f"{option}: expected one of {', '.join(known)}, received {chosen!r}")
    settings = _check_outputs(settings)
    if settings.start:
        return _finetuning(settings, settings.start)
    architecture = ARCHITECTURES[arch]
    if settings.weights:
        architecture = with_weights(architecture, arch, settings.weights)
    else:
        architecture.require()
    if settings.subclasses and architecture.recipe != "transfer":
        raise UsageError(f"--subclasses: expected a network with pretrained weights, received --arch {arch}")
    return replace(settings, arch=arch), varied(architecture, arch, dict(settings.variation))


def _check_outputs(settings: Settings) -> Settings:
    """Return the settings, paths without ``..`` and links in them, so that no folder is made that is only passed.

    UsageError where a folder, or a file beside it, must not be written; ``staged`` checks the content of ``--out``.
    """
    out = Path(os.path.abspath(settings.out))
    if ".." in settings.out.parts:
        settings = replace(settings, out=out)
    gate = Gate({"data set": str(settings.dataset)})  # what lies there is taken for a class by the next training
    gate.check_folder("--out", out)
    beside = settings.refused if settings.start else out
    gate.check_folder("--out", beside)
    if settings.cache:
        cache = Path(gate.check_folder("--cache", settings.cache))
        settings = replace(settings, cache=cache)
        for each in (out, beside):  # what lies in a bundle's folder keeps it from being replaced
            Gate({f"folder {each.name!r} of --out": str(each)}).check_folder("--cache", cache)
            Gate({"renderings of --cache": str(place_of(cache))}).check_folder("--out", each)
    if os.path.islink(settings.trials):  # `tune` would not follow it, after hours of work
        raise UsageError(f"--out: expected {settings.trials.name} beside it to be a file, received a link")
    for path, content in (
        *((replace(settings, out=each).sheet, SHEET) for each in (out, beside)),
        (settings.trials, TRIALS),
        *((settings.checkpoint / name, CHECKPOINT) for name in (NAME, PART)),
    ):
        if os.path.lexists(path):
            gate.check_file("--out", path, content, devices=False)
    return settings


def _finetuning(settings: Settings, start: Path) -> tuple[Settings, Architecture]:
    for option, given in (("--weights", settings.weights), ("--subclasses", settings.subclasses)):
        if given:
            raise UsageError(f"--from: expected no {option} beside it, received both")
    architecture = from_bundle(start)
    arch = architecture.bundle.arch
    if settings.arch not in {None, arch}:
        raise UsageError(f"--arch: expected {arch}, that of --from, or nothing, received {settings.arch!r}")
    return replace(settings, arch=arch), architecture
