"""The search for a recipe, on a network that is trained in a moment."""

from __future__ import annotations

import csv
import fcntl
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from command import run
from networks import TINY, brief
from PIL import Image

from dicomsort.bundle import load
from dicomsort.training.evaluate.tables import MEGABYTES, PURPOSES
from dicomsort.training.models.architectures import ARCHITECTURES, VARIATIONS, varied
from dicomsort.training.pipeline import OUTPUTS, TRIALS, Trained
from dicomsort.training.settings import Settings

pytestmark = pytest.mark.xdist_group("tune")


@pytest.fixture(scope="module", autouse=True)
def _tiny() -> Any:
    variations = {"tiny": {"trained_from": ("first", "second")}}
    with mock.patch.dict(ARCHITECTURES, {"tiny": TINY}), mock.patch.dict(VARIATIONS, variations), brief():
        yield


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("tune") / "images"
    for level, label in enumerate(("CT", "MRI")):
        for number in range(8):
            noise = np.random.default_rng((level, number)).integers(0, 60, (40, 40), np.uint8)
            path = root / label / f"source{number % 2}{label}" / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(noise + np.uint8(150 * level)).save(path)
    return root


def _trials(out: Path) -> list[dict[str, str]]:
    with (out / "trials.csv").open(encoding="utf-8", newline="") as lines:
        return list(csv.DictReader(lines))


def test_a_search_is_interrupted_goes_on_and_leaves_the_best_as_a_bundle(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dicomsort.training.progress import load_tensorflow

    load_tensorflow()
    from dicomsort.training import trial

    out = tmp_path / "tuned"
    command = ("tune", dataset, "--out", out, "--arch", "tiny", "--trials", 2, "--epochs", 2)
    tried, attempt = [], trial.attempt

    def stopped(*arguments: Any) -> float:
        tried.append(arguments[0])
        if len(tried) == 2:
            raise KeyboardInterrupt
        return attempt(*arguments)

    monkeypatch.setattr(trial, "attempt", stopped)
    ran = run(*command)
    assert ran.code == 130
    assert "The same command goes on from tuned.trials; --fresh starts anew" in ran.err
    assert not out.exists()
    ran = run(*command)
    assert ran.code == 0, ran.err
    assert "Going on from tuned.trials: 1 trial is done" in ran.err
    assert len(tried) == 3
    assert {path.name for path in out.iterdir()} == OUTPUTS | TRIALS
    assert not out.with_name("tuned.trials").exists()
    rows = [row for row in _trials(out) if row["state"] == "complete"]
    assert len(rows) == 2
    best = max(rows, key=lambda row: float(row["balanced_accuracy"]))
    recipe = load(out).training["recipe"]
    assert float(best["learning_rate"]) == recipe["learning_rate"]
    assert (int(best["batch_size"]), best["augment"]) == (recipe["batch_size"], recipe["augment"])
    assert recipe["variation"] == {"trained_from": best["trained_from"]}
    assert "the best of" in ran.out
    assert "flatters the figures" in ran.out


def test_a_training_goes_on_from_what_a_search_made_of_the_reference_network(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(VARIATIONS, "cnn", {"filters": (4, 8), "dense": (8, 16)})  # small ones are as good
    tuned, site = tmp_path / "tuned", tmp_path / "site"
    ran = run("tune", dataset, "--out", tuned, "--trials", 1, "--epochs", 1)
    assert ran.code == 0, ran.err
    assert "Weights kept: epoch 1 of 1, " in ran.out
    assert set(load(tuned).training["recipe"]["variation"]) == {"filters", "dense"}
    ran = run("train", dataset, "--from", tuned, "--out", site, "--epochs", 1, "--replace-worse")
    assert ran.code == 0, ran.err
    ran = run("evaluate", "--compare", tuned, site, dataset, "--out", tmp_path / "compared")
    assert ran.code == 0, ran.err


@pytest.mark.parametrize("arch", ["cnn", "mobilenet-v3-small"])
def test_variations_change_the_network(arch: str) -> None:
    name, values = next(iter(VARIATIONS[arch].items()))
    architecture = ARCHITECTURES[arch]
    models = [varied(architecture, arch, {name: value}).build((64, 64, 3), 2) for value in (values[0], values[-1])]
    assert str(models[0].get_config()) != str(models[1].get_config())
    assert varied(architecture, arch, {}) is architecture


def test_a_variation_that_is_not_known(tmp_path: Path) -> None:
    from dicomsort.errors import UsageError

    with pytest.raises(UsageError, match=r"expected filters among .*, received 100000"):
        varied(ARCHITECTURES["cnn"], "cnn", {"filters": 100_000})


def test_trials_that_are_nested_too_deeply_are_wrong_usage(dataset: Path, tmp_path: Path) -> None:
    (tmp_path / "tuned.trials").write_text('{"op_code": 0, "study": ' + "[" * 100_000 + "\n")
    ran = run("tune", dataset, "--out", tmp_path / "tuned", "--arch", "tiny", "--trials", 1, "--epochs", 1)
    assert ran.code == 2, ran.err
    assert "expected tuned.trials beside it to be writable and of a search" in ran.err
    assert (tmp_path / "tuned.trials").exists()


@pytest.fixture(scope="module")
def interrupted(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """The records of a search that was interrupted in its second trial."""
    from dicomsort.training import trial

    out = tmp_path_factory.mktemp("interrupted") / "tuned"
    with mock.patch.object(trial, "attempt", side_effect=[0.5, KeyboardInterrupt]):
        ran = run("tune", dataset, "--out", out, "--arch", "tiny", "--trials", 2, "--epochs", 2)
    assert ran.code == 130, ran.err
    return [json.loads(line) for line in out.with_name("tuned.trials").read_text().splitlines()]


def _of(records: list[dict[str, Any]], code: int, **fields: object) -> dict[str, Any]:
    return next(one for one in records if one["op_code"] == code and fields.items() <= one.items())


@pytest.mark.parametrize(
    "edit",
    [
        lambda all_: _of(all_, 5, param_name="augment").update(param_value_internal=99),
        lambda all_: _of(all_, 5, param_name="learning_rate").update(param_value_internal="fast"),
        lambda all_: _of(all_, 5, param_name="learning_rate").update(param_value_internal=1e9),
        lambda all_: all_.remove(_of(all_, 5, param_name="batch_size")),
        lambda all_: _of(all_, 5).update(param_name="other"),
        lambda all_: _of(all_, 5, param_name="learning_rate").update(
            _of(all_, 5, param_name="augment"), param_name="learning_rate"
        ),
        lambda all_: _of(all_, 6, state=1).update(values=None),
        lambda all_: _of(all_, 6, state=1).update(values=["x"]),
        lambda all_: _of(all_, 6, state=1).update(values=[0.5, 0.5]),
        lambda all_: _of(all_, 6, state=1).update(values=0.5),
        lambda all_: _of(all_, 6, state=1).update(state=2),
        lambda all_: all_.insert(
            2, {"op_code": 7, "worker_id": "x", "trial_id": 0, "step": 0, "intermediate_value": "x"}
        ),
        lambda all_: all_[0].update(directions=[1]),
        lambda all_: all_[0].update(directions=[2, 2]),
        lambda all_: all_[1].update(state=4, system_attrs={"fixed_params": {"batch_size": -1}}),
        lambda all_: all_.insert(1, "x"),
    ],
)
def test_a_damaged_journal_of_trials_is_wrong_usage(
    dataset: Path, tmp_path: Path, interrupted: list[dict[str, Any]], edit: Callable[[list[Any]], object]
) -> None:
    records = json.loads(json.dumps(interrupted))
    edit(records)
    (tmp_path / "tuned.trials").write_text("".join(f"{json.dumps(one)}\n" for one in records))
    ran = run("tune", dataset, "--out", tmp_path / "tuned", "--arch", "tiny", "--trials", 2, "--epochs", 2)
    assert ran.code == 2, ran.err
    assert "expected tuned.trials beside it to be writable and of a search, received a damaged one (" in ran.err
    assert "--fresh starts anew" in ran.err


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trials and the training after them that end at once: what is tested is the journal."""
    from dicomsort.training import trial

    run_ = {"course": {"kept": "epoch 1 of 1"}, MEGABYTES: dict.fromkeys(PURPOSES, 0.1)}
    figures = {"accuracy": 1.0, "balanced_accuracy": 1.0, "images": 4, "training_run": run_}

    def made(settings: Settings, *_: object) -> Trained:
        settings.out.mkdir()
        return Trained(settings.out, figures, "", (), settings.out)

    monkeypatch.setattr(trial, "attempt", lambda *_: 0.6)
    monkeypatch.setattr("dicomsort.training.tune.train", made)


@pytest.mark.usefixtures("quick")
def test_a_search_whose_last_record_is_torn_goes_on(
    dataset: Path, tmp_path: Path, interrupted: list[dict[str, Any]]
) -> None:
    (tmp_path / "tuned.trials").write_text("\n".join(map(json.dumps, interrupted))[:-9])
    ran = run("tune", dataset, "--out", tmp_path / "tuned", "--arch", "tiny", "--trials", 2, "--epochs", 2)
    assert ran.code == 0, ran.err
    assert "Going on from tuned.trials: 1 trial is done" in ran.err


@pytest.mark.usefixtures("quick")
def test_a_search_locks_its_journal_and_makes_and_removes_no_other_name(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from optuna.storages.journal import JournalFileSymlinkLock

    def spins(_: object) -> bool:
        pytest.fail("for ever, at a link that leads nowhere")

    monkeypatch.setattr(JournalFileSymlinkLock, "acquire", spins)
    lock = tmp_path / "tuned.trials.lock"
    lock.symlink_to(tmp_path / "nowhere")
    (tmp_path / "tuned.trials").write_bytes(b"")
    command = ("tune", dataset, "--out", tmp_path / "tuned", "--arch", "tiny", "--trials", 1, "--epochs", 1, "--fresh")
    with (tmp_path / "tuned.trials").open("rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        ran = run(*command)
    assert ran.code == 2, ran.err
    assert "received one that another `dicomsort tune` holds; wait for it to end" in ran.err
    ran = run(*command)
    assert ran.code == 0, ran.err
    assert lock.readlink() == tmp_path / "nowhere"
    assert [path.name for path in tmp_path.glob("tuned.*")] == ["tuned.trials.lock"]


def test_a_journal_of_trials_that_is_a_link_is_refused_and_not_followed(dataset: Path, tmp_path: Path) -> None:
    (tmp_path / "tuned.trials").symlink_to(tmp_path / "nowhere")
    ran = run("tune", dataset, "--out", tmp_path / "tuned", "--arch", "tiny", "--trials", 1, "--epochs", 1)
    assert ran.code == 2, ran.err
    assert "expected tuned.trials beside it to be a file, received a link" in ran.err
    assert [path.name for path in tmp_path.iterdir()] == ["tuned.trials"]


def test_no_trials_and_no_optuna(dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran = run("tune", dataset, "--out", tmp_path / "out", "--trials", 0)
    assert (ran.code, ran.err) == (2, "dicomsort: --trials: expected a whole number from 1 to 100000, received 0\n")
    monkeypatch.setitem(sys.modules, "optuna", None)
    ran = run("tune", dataset, "--out", tmp_path / "out")
    assert ran.code == 2
    assert (
        "tune: expected the extra tune, received: not installed; run pip install '.[tune]' in the checkout" in ran.err
    )
