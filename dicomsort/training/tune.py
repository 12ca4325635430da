"""The search for a recipe: trials of it, each evaluated on the same held-out images, and a training by the best.

Optuna's TPE (Bergstra et al. 2011) chooses what to try, its median pruner ends trials that fall behind. Trials are kept
in a journal beside the bundle, so that an interrupted search goes on.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from dicomsort.config import TRAINING
from dicomsort.config import checked as in_range
from dicomsort.engines.engine import Engine
from dicomsort.errors import UsageError, counted, missing_extra
from dicomsort.files import Files, closing_descriptor
from dicomsort.jsonlines import whole_lines
from dicomsort.training.data import fingerprint
from dicomsort.training.data.augment import STRENGTHS
from dicomsort.training.data.rendered import Rendered
from dicomsort.training.evaluate.plots import plot_trials
from dicomsort.training.fit.checkpoint import resumable
from dicomsort.training.models.architectures import VARIATIONS
from dicomsort.training.pipeline import Trained, rendering, scanned, train
from dicomsort.training.progress import Reporter, load_tensorflow
from dicomsort.training.settings import Settings, checked

TABLE, PICTURE = "trials.csv", "trials.png"
RATES = (1e-4, 1e-2)
BATCHES = (16, 32, 64)
AUGMENTS = tuple(STRENGTHS)  # the strongest is the last
WARM_UP_TRIALS = 5  # that are never ended early
ENDED = ("COMPLETE", "PRUNED")


@dataclass(frozen=True, slots=True)
class Tuned:
    """The bundle of the best recipe, the balanced accuracy of that in the search, and the number of trials."""

    trained: Trained
    score: float
    trials: int


def tune(settings: Settings, trials: int, open_workers: Callable[[], Engine], reporter: Reporter) -> Tuned:
    """Search until there are ``trials``, then train the best and write the bundle ``settings.out`` with the trials.

    UsageError where Optuna is missing, or a setting or the data set cannot be trained with; KeyboardInterrupt leaves
    the trials, from which the same settings resume.
    """
    optuna = _require_optuna()
    in_range(TRAINING["trials"], trials, "--trials")
    settings, architecture = checked(settings)
    dataset = scanned(settings, architecture)
    with ExitStack() as search:
        with rendering(dataset, settings, architecture, open_workers, reporter, AUGMENTS[-1]) as rendered:
            search.enter_context(_locked(settings))
            study = _open_study(optuna, settings, rendered, reporter)
            reporter.note("Loading TensorFlow")
            load_tensorflow()
            with resumable(settings.trials, reporter):
                _search(optuna, study, settings, trials, rendered, reporter)
        best, score, count = _with(settings, study.best_trial.params), study.best_value, len(_ended(study))
        reporter.note(f"The best of {counted(count, 'trial')}: {_words(study.best_trial.params)}")
        trained = train(best, open_workers, reporter)
        _write(trained.folder, study)
        settings.trials.unlink(missing_ok=True)
    return Tuned(trained, score, count)


def _require_optuna() -> Any:
    try:
        import optuna
    except ModuleNotFoundError as error:
        raise missing_extra("tune", "tune") from error
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna


def _expected(settings: Settings) -> str:
    beside = f"expected {settings.trials.name} beside it to be writable and of a search"
    return f"--out {str(settings.out)!r}: {beside}, received "


class _NoLock:
    """Stands for Optuna's lock, which makes names beside the journal: ``_locked`` has locked the journal itself."""

    def acquire(self) -> bool:
        return True

    def release(self) -> None:
        pass


@contextmanager
def _locked(settings: Settings) -> Iterator[None]:
    """Lock the journal of the trials, made where there is none; UsageError where that fails, or another has it."""
    path, files = settings.trials, Files()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = files.open_append(str(path))
    except OSError as error:
        raise UsageError(f"{_expected(settings)}{error.strerror}") from error
    with closing_descriptor(descriptor):
        is_ours = files.lock(descriptor)
        if not (is_ours and path.exists() and os.path.samestat(path.stat(), os.fstat(descriptor))):
            raise UsageError(f"{_expected(settings)}one that another `dicomsort tune` holds; wait for it to end")
        # a kill or a full disk may have cut the last line
        files.truncate(descriptor, 0 if settings.fresh else whole_lines(descriptor, os.fstat(descriptor).st_size))
        yield


def _open_study(optuna: Any, settings: Settings, rendered: Rendered, reporter: Reporter) -> Any:
    """Return the study of these settings and this data set, with the trials that it had."""
    path = settings.trials
    ignored = {"out", "cache", "fresh", "subclasses"}  # `tune` takes no subclasses
    options = {name: str(value) for name, value in asdict(settings).items() if name not in ignored}
    content = json.dumps([options, fingerprint.of_files(rendered.dataset.items, rendered.digests)], sort_keys=True)
    name = hashlib.sha256(content.encode()).hexdigest()[:16]
    try:
        storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(path), _NoLock()))
        others = [other for other in optuna.get_all_study_names(storage) if other != name]
        study = optuna.create_study(
            storage=storage, study_name=name, load_if_exists=True, direction="maximize",
            sampler=optuna.samplers.TPESampler(seed=settings.seed),
            pruner=optuna.pruners.MedianPruner(n_startup_trials=WARM_UP_TRIALS),
        )  # fmt: skip
        _check(optuna, study, settings)
    except OSError as error:
        raise UsageError(f"{_expected(settings)}{error}; --fresh starts anew") from error
    except (
        ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RuntimeError, AssertionError,
    ) as error:  # fmt: skip
        raise UsageError(
            f"{_expected(settings)}a damaged one ({type(error).__name__}: {error}); --fresh starts anew"
        ) from error
    if _ended(study):
        reporter.note(f"Going on from {path.name}: {counted(len(_ended(study)), 'trial is', 'trials are')} done")
    elif others:
        reporter.note(f"Starting anew: {path.name} is of another search")
    return study


def _check(optuna: Any, study: Any, settings: Settings) -> None:
    """Raise ValueError, or what Python does, unless the journal has the trials that ``_search`` leaves."""
    made = optuna.distributions
    space = {"learning_rate": made.FloatDistribution(*RATES, log=True)}
    space |= {name: made.CategoricalDistribution(values) for name, values in _choices(settings).items()}
    for trial in study.trials:
        has_ended, scores = trial.state.name in ENDED, list(trial.intermediate_values.values())
        if has_ended:
            scores += trial.values if trial.values and len(trial.values) == 1 else [None]
        if not (
            trial.state.name in {*ENDED, "RUNNING", "FAIL"}
            and not trial.system_attrs
            and all(type(step) is int for step in trial.intermediate_values)
            and all(type(score) in {int, float} and 0 <= score <= 1 for score in scores)
            and all(space[name] == distribution for name, distribution in trial.distributions.items())
            and RATES[0] <= trial.params.get("learning_rate", RATES[0]) <= RATES[1]
            and (not has_ended or trial.params.keys() == space.keys())
        ):
            raise ValueError(f"trial {trial.number + 1} is not of this search")
    states = {trial.state.name for trial in study.trials}
    if study.direction.name != "MAXIMIZE" or ("PRUNED" in states and "COMPLETE" not in states):
        raise ValueError("its trials are not of this search")


def _ended(study: Any) -> list[Any]:  # not interrupted
    return [trial for trial in study.trials if trial.state.name in ENDED]


def _search(optuna: Any, study: Any, settings: Settings, trials: int, rendered: Rendered, reporter: Reporter) -> None:
    from dicomsort.training.trial import attempt

    done = len(_ended(study))
    with reporter.step("Trials", max(trials, done), done) as step:

        def objective(trial: Any) -> float:
            chosen = _with(settings, _suggest(trial, settings))
            reporter.note(f"Trial {trial.number + 1}: {_words(trial.params)}")

            def report(epoch: int, score: float) -> None:
                trial.report(score, epoch)
                if trial.should_prune():
                    raise optuna.TrialPruned

            return attempt(chosen, rendered, reporter, report)

        def show(study: Any, trial: Any) -> None:
            if trial.state.name in ENDED:
                scores = [one.value for one in study.trials if one.state.name == "COMPLETE"]
                step.advance(1, f"best {max(scores):.1%}" if scores else "")

        study.optimize(objective, n_trials=max(0, trials - done), callbacks=[show])


def _suggest(trial: Any, settings: Settings) -> dict[str, Any]:
    rate, choices = trial.suggest_float("learning_rate", *RATES, log=True), _choices(settings)
    return {"learning_rate": rate} | {name: trial.suggest_categorical(name, each) for name, each in choices.items()}


def _choices(settings: Settings) -> dict[str, tuple[Any, ...]]:
    return {"batch_size": BATCHES, "augment": AUGMENTS, **VARIATIONS[settings.arch or ""]}


def _with(settings: Settings, params: dict[str, Any]) -> Settings:
    """Return the settings with a trial's parameters; those that are no setting vary the network."""
    own = ("learning_rate", "batch_size", "augment")
    variation = tuple(sorted((name, value) for name, value in params.items() if name not in own))
    return replace(settings, **{name: params[name] for name in own}, variation=variation)


def _words(params: dict[str, Any]) -> str:
    shown = (f"{value:.2g}" if isinstance(value, float) else str(value) for value in params.values())
    return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in zip(params, shown, strict=True))


def _write(folder: Path, study: Any) -> None:
    trials = _ended(study)
    names = sorted({name for trial in trials for name in trial.params})
    with (folder / TABLE).open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(("trial", "state", "balanced_accuracy", "epochs", *names))
        for trial in trials:
            params = [trial.params.get(name, "") for name in names]
            score = (trial.state.name.lower(), round(trial.value, 4), len(trial.intermediate_values))
            writer.writerow((trial.number + 1, *score, *params))
    plot_trials([(trial.number + 1, trial.value, trial.state.name == "COMPLETE") for trial in trials], folder / PICTURE)
