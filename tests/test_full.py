"""Training a whole network, on one of a few hundred weights: what a seed fixes, what an interruption keeps."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from networks import rewritten

from dicomsort.training.data.dataset import Dataset, Item
from dicomsort.training.data.grouping import keep_together
from dicomsort.training.data.rendered import Rendered
from dicomsort.training.evaluate.card import on_other_sources
from dicomsort.training.fit.checkpoint import Checkpoint, forget, resumable
from dicomsort.training.fit.hyperparameters import Hyperparameters, TrainedModel
from dicomsort.training.models.architectures import ARCHITECTURES, Architecture, with_weights
from dicomsort.training.progress import Reporter, Step, load_tensorflow

pytestmark = pytest.mark.xdist_group("full")

LABELS = ("CT", "MRI")
EACH, BATCHES = 10, 4  # images a class, batches an epoch


@pytest.fixture(scope="module", autouse=True)
def _tensorflow() -> None:
    load_tensorflow()


def _speck(shape: tuple[int, int, int], classes: int) -> Any:
    import keras

    layers = keras.layers
    parts = [
        layers.Rescaling(1 / 255),
        layers.AveragePooling2D(28),
        layers.Flatten(),
        layers.Dense(8, "relu", name="features"),
        layers.Dropout(0.3),
        layers.Dense(classes, "softmax", dtype="float32", name="probabilities"),
    ]
    return keras.Sequential([keras.Input(shape), *parts], name="speck")


SPECK = Architecture("a speck", "full", _speck, ("float32",))


@pytest.fixture(scope="module")
def rendered() -> Rendered:
    """Noise of two brightnesses."""
    items = [Item(f"{label}/{i}", n) for n, label in enumerate(LABELS) for i in range(EACH)]
    random = np.random.default_rng(0)
    images = random.integers(0, 128, (2 * EACH, 224, 224, 3), np.uint8)
    images[EACH:] += 60
    count = len(items)
    dataset, kept = keep_together(Dataset(Path(), LABELS, tuple(items)), [None] * count, [""] * count)
    return Rendered(dataset, images, np.arange(count), tuple(map(str, range(count))), (), kept)


RECIPE = Hyperparameters(3, 4, 0.01, 0.2, 7, "light")


@pytest.fixture
def recipe(tmp_path: Path) -> Hyperparameters:
    return replace(RECIPE, checkpoint=tmp_path / "out.checkpoint")


@pytest.fixture(scope="module")
def whole(rendered: Rendered) -> TrainedModel:
    """The result of a training that nothing disturbs, and that leaves no checkpoint."""
    return _fit(rendered, RECIPE)


def _fit(rendered: Rendered, recipe: Hyperparameters) -> TrainedModel:
    from dicomsort.training.fit.recipes import fit

    with Reporter() as reporter:
        return fit(SPECK, rendered, recipe, reporter)


def _same(one: TrainedModel, other: TrainedModel) -> bool:
    pairs = zip(one.model.get_weights(), other.model.get_weights(), strict=True)
    return all(np.array_equal(first, second) for first, second in pairs)


def _interrupting(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Send this process a signal as the n-th batch from now ends; 0: never."""
    advance, batches = Step.advance, [0]

    def stop_at(count: int) -> None:
        batches[0] = count

    def advanced(step: Step, parts: int = 1, text: str | None = None) -> None:
        advance(step, parts, text)
        if step.name == "Training" and parts:
            batches[0] -= 1
            if batches[0] == 0:
                os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(Step, "advance", advanced)
    return stop_at


@pytest.fixture
def interrupt(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], None]]:
    """Send this process a signal as the n-th batch from now ends."""
    stop_at = _interrupting(monkeypatch)
    yield stop_at
    stop_at(0)


def test_a_seed_fixes_weights_and_variations(rendered: Rendered, recipe: Hyperparameters, whole: TrainedModel) -> None:
    runs = [whole, *(_fit(rendered, replace(recipe, seed=seed, fresh=True)) for seed in (7, 8))]
    assert _same(runs[0], runs[1])
    assert runs[0].history == runs[1].history
    assert not _same(runs[0], runs[2])


@pytest.mark.parametrize("batch", [BATCHES + 2, 2 * BATCHES])
def test_an_interrupted_training_ends_as_if_it_had_not_been(
    rendered: Rendered,
    recipe: Hyperparameters,
    whole: TrainedModel,
    interrupt: Callable[[int], None],
    batch: int,
    capfd: pytest.CaptureFixture[str],
) -> None:
    interrupt(batch)
    with pytest.raises(KeyboardInterrupt):
        _fit(rendered, recipe)
    assert recipe.checkpoint is not None
    assert recipe.checkpoint.stat().st_mode & 0o777 == 0o700
    again = _fit(rendered, recipe)
    assert _same(whole, again)
    for column, values in whole.history.items():
        assert again.history[column] == pytest.approx(values, rel=1e-4)
    said = capfd.readouterr().err
    assert "The same command goes on from out.checkpoint; --fresh starts anew" in said
    assert f"Going on from the checkpoint in out.checkpoint: epoch {batch // BATCHES + 1} of 3" in said
    forget(recipe.checkpoint)
    assert not recipe.checkpoint.exists()


def _archive(story: str, *, member: str = "story.npy", method: int = 0, encrypted: bool = False) -> bytes:
    """A checkpoint whose one array is the text of ``story``, marked as compressed or encrypted."""
    array, stream = io.BytesIO(), io.BytesIO()
    np.save(array, np.array(story))
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr(member, array.getvalue())
    content = bytearray(stream.getvalue())
    for signature, at in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        place = content.index(signature) + at
        content[place] |= encrypted
        content[place + 2 : place + 4] = method.to_bytes(2, "little")
    return bytes(content)


def _story(**changes: object) -> str:
    told = {"identity": {"arch": "x"}, "progress": {}, "arrays": {"variables": 0, "sums": 0, "best": 0}}
    return json.dumps(told | changes)


@pytest.mark.parametrize(
    "content",
    [
        _archive(_story(), method=97), _archive(_story(), encrypted=True), _archive("[" * 100_000), _archive("[]"),
        _archive(_story(identity=["arch"])), _archive(_story(arrays=[])), _archive(_story(progress=[])),
        _archive(_story(progress={"epoch": "1"})), _archive(_story(progress={"epoch": -5})),
        _archive(_story(progress={"history": []})), _archive(_story(progress={"history": {"loss": "x"}})),
        _archive(_story(), member="other.npy"), b"PK\x03\x04", b"",
    ],
)  # fmt: skip
def test_a_damaged_checkpoint_is_said_to_be(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "state.npz").write_bytes(content)
    assert Checkpoint(tmp_path, {"arch": "x"}).load() == (None, "it is damaged")


def test_the_damage_is_all_that_is_wrong(tmp_path: Path) -> None:
    (tmp_path / "state.npz").write_bytes(_archive(_story()))
    found, why = Checkpoint(tmp_path, {"arch": "x"}).load()
    assert (found is not None, why) == (True, "")


@pytest.mark.parametrize(
    "edit",
    [
        lambda arrays, _: arrays.update(variables0=np.zeros((1, 2), np.float32)),
        lambda arrays, _: arrays.update(variables0=arrays["variables0"].astype(np.float64)),
        lambda arrays, _: arrays.pop([name for name in arrays if name.startswith("variables")][-1]),
        lambda arrays, _: arrays.pop("sums3"),
        lambda arrays, _: arrays.update(best0=np.zeros(3, np.float32)),
        lambda _, progress: progress.update(history={}),
        lambda _, progress: progress["history"]["val_loss"].pop(),
        lambda _, progress: progress["history"].pop("accuracy"),
        lambda _, progress: progress.update(best=1),
        lambda _, progress: progress.update(epoch=3),
        lambda _, progress: progress.update(batch=BATCHES),
    ],
)
def test_a_checkpoint_that_does_not_fit_the_training_is_damaged(
    rendered: Rendered,
    interrupted: Hyperparameters,
    edit: Callable[[dict[str, Any], dict[str, Any]], object],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    assert interrupted.checkpoint is not None
    recipe = replace(interrupted, checkpoint=Path(shutil.copytree(interrupted.checkpoint, tmp_path / "out.checkpoint")))
    said = list[str]()
    for change in (lambda *_: None, edit):
        rewritten(tmp_path / "out.checkpoint", change)
        _restore(rendered, recipe)
        said.append(capfd.readouterr().err)
    assert "Going on from the checkpoint in out.checkpoint: epoch 2 of 3, batch 3" in said[0]
    assert "Starting anew: there is a checkpoint, but it is damaged" in said[1]


@pytest.fixture(scope="module")
def interrupted(rendered: Rendered, tmp_path_factory: pytest.TempPathFactory) -> Hyperparameters:
    """A recipe whose training was interrupted in its second epoch."""
    recipe = Hyperparameters(3, 4, 0.01, 0.2, 7, "light", 2, checkpoint=tmp_path_factory.mktemp("a") / "out.checkpoint")
    with pytest.MonkeyPatch.context() as monkeypatch:
        _interrupting(monkeypatch)(BATCHES + 2)
        with pytest.raises(KeyboardInterrupt):
            _fit(rendered, recipe)
    return recipe


def _restore(rendered: Rendered, recipe: Hyperparameters) -> None:
    """Do what a training begins with."""
    import keras

    from dicomsort.training.fit import checkpoint, feeding, full

    keras.backend.clear_session()
    model = feeding.compiled(lambda: _speck(rendered.images.shape[1:], len(LABELS)), recipe.learning_rate)
    with Reporter() as reporter:
        saved = checkpoint.checkpoint_of(model, rendered, recipe, precision="float32")
        callback = full.CheckpointCallback(model, recipe, saved, reporter)
        callback.batches = BATCHES
        callback.restore()


def test_another_training_starts_anew_and_says_why(
    rendered: Rendered, recipe: Hyperparameters, interrupt: Callable[[int], None], capfd: pytest.CaptureFixture[str]
) -> None:
    interrupt(BATCHES)
    with pytest.raises(KeyboardInterrupt):
        _fit(rendered, recipe)
    _fit(rendered, replace(recipe, learning_rate=0.02, seed=8))
    assert "Starting anew: there is a checkpoint, but it is of another training: learning_rate, seed differ" in (
        capfd.readouterr().err
    )
    assert recipe.checkpoint is not None
    (recipe.checkpoint / "state.npz").write_bytes(b"PK\x03\x04 torn")
    _fit(rendered, recipe)
    assert "Starting anew: there is a checkpoint, but it is damaged" in capfd.readouterr().err


def test_a_checkpoint_that_cannot_be_written_costs_only_itself(
    rendered: Rendered, recipe: Hyperparameters, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "out.checkpoint").write_text("in the way", "utf-8")
    fitted = _fit(rendered, recipe)
    assert len(fitted.history["loss"]) == 3
    assert capfd.readouterr().err.count("No checkpoint: ") == 1


def test_patience_ends_the_training_and_keeps_the_best_weights(rendered: Rendered, recipe: Hyperparameters) -> None:
    fitted = _fit(rendered, replace(recipe, epochs=30, patience=2, learning_rate=1.0, checkpoint=None))
    losses = fitted.history["val_loss"]
    best = int(np.argmin(losses))
    waited, kept = fitted.course.pop("waiting"), fitted.course.pop("kept")
    assert 0 <= waited < 1
    assert kept.startswith(f"epoch {best + 1} of {len(losses)}, with the lowest validation loss ({min(losses):.3f})")
    assert fitted.course == {"epochs_run": len(losses), "epoch_kept": best + 1}
    assert len(losses) == best + 3 < 30
    truth = rendered.dataset.classes()[fitted.held_out.items]
    wrong = -np.log(np.maximum(fitted.held_out.probabilities[np.arange(len(truth)), truth], 1e-7)).mean()
    assert wrong == pytest.approx(losses[best], rel=1e-3)


@pytest.fixture
def diverging(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Make weights of the training infinite in its n-th epoch."""
    from dicomsort.training.fit.full import CheckpointCallback

    ended = CheckpointCallback.on_train_batch_end

    def diverge_in(epoch: int) -> None:
        def diverge(callback: Any, batch: int, logs: Any = None) -> None:
            ended(callback, batch, logs)
            if callback.progress.epoch == epoch - 1:
                callback.trained.set_weights([np.full_like(w, np.inf) for w in callback.trained.get_weights()])

        monkeypatch.setattr(CheckpointCallback, "on_train_batch_end", diverge)

    return diverge_in


@pytest.mark.parametrize(("epoch", "patience"), [(1, 0), (2, 0), (1, 2)])
def test_a_training_that_diverges_ends_with_its_epoch(
    rendered: Rendered, recipe: Hyperparameters, diverging: Callable[[int], None], epoch: int, patience: int
) -> None:
    from dicomsort.training.fit.feeding import Diverged

    diverging(epoch)
    expected = (
        f"^the training diverged in epoch {epoch}: expected loss and weights to be finite, received .*val_loss nan"
    )
    with pytest.raises(Diverged, match=expected + "; train with a --learning-rate smaller than 0.01$"):
        _fit(rendered, replace(recipe, patience=patience))
    assert recipe.checkpoint is not None
    assert not recipe.checkpoint.exists()


def test_weights_that_diverge_under_a_finite_loss_are_named() -> None:
    import keras

    from dicomsort.training.fit.feeding import Diverged, require_finite

    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2)])
    require_finite(model, {"loss": 1.0, "accuracy": np.nan}, 0, 0.1)
    model.set_weights([np.full_like(weight, np.nan) for weight in model.get_weights()])
    with pytest.raises(Diverged, match="expected loss and weights to be finite, received weights that are not; train"):
        require_finite(model, {"loss": 1.0}, 0, 0.1)


def test_patience_retains_the_epoch_before_a_training_diverged(
    rendered: Rendered, recipe: Hyperparameters, diverging: Callable[[int], None]
) -> None:
    diverging(2)
    fitted = _fit(rendered, replace(recipe, epochs=5, patience=2))
    assert (fitted.course["epochs_run"], fitted.course["epoch_kept"]) == (3, 1)
    assert np.isfinite(fitted.held_out.probabilities).all()


def test_whole_sources_are_held_out_where_asked(rendered: Rendered, recipe: Hyperparameters) -> None:
    items = [Item(f"{LABELS[item.label]}/s{i % 4}/{i}", item.label) for i, item in enumerate(rendered.dataset.items)]
    items = [replace(item, group=f"{item.label}{item.source}") for item in items]
    sourced = replace(rendered, dataset=replace(rendered.dataset, items=tuple(items)))
    fitted = _fit(sourced, replace(recipe, split="source", balance=True, checkpoint=None))
    held = {items[i].group for i in fitted.held_out.items}
    assert not held & {item.group for i, item in enumerate(items) if i not in set(fitted.held_out.items.tolist())}
    assert fitted.held_out.by_source
    assert "other_sources" not in fitted.course


def test_where_there_are_sources_it_is_told_what_to_expect_of_others(rendered: Rendered, whole: TrainedModel) -> None:
    items = [replace(item, group=f"{item.label}s{i % 4}") for i, item in enumerate(rendered.dataset.items)]
    sourced = replace(rendered, dataset=replace(rendered.dataset, items=tuple(items)))
    fitted = _fit(sourced, RECIPE)
    told = fitted.course["other_sources"]
    assert (told["sources"], told["images"]) == (2, 6)
    assert 0 <= told["balanced_accuracy"] <= 1
    assert "other_sources" not in whole.course
    assert all(
        np.array_equal(*pair) for pair in zip(fitted.model.get_weights(), whole.model.get_weights(), strict=True)
    )
    assert "expect less" in on_other_sources(told)[0]


def test_a_second_training_that_diverges_costs_only_what_it_would_tell(
    rendered: Rendered, recipe: Hyperparameters, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from dicomsort.training.fit import full
    from dicomsort.training.fit.feeding import Diverged

    train = full._train

    def diverge(callback: Any, *given: Any) -> None:
        if isinstance(given[-1], str):  # the name that the second has
            raise Diverged("the training diverged in epoch 1")
        train(callback, *given)

    monkeypatch.setattr(full, "_train", diverge)
    items = [replace(item, group=f"{item.label}s{i % 4}") for i, item in enumerate(rendered.dataset.items)]
    sourced = replace(rendered, dataset=replace(rendered.dataset, items=tuple(items)))
    fitted = _fit(sourced, replace(recipe, epochs=1))
    assert (fitted.course["epochs_run"], "other_sources" in fitted.course) == (1, False)
    assert "the sources that are held out, the training diverged in epoch 1" in capfd.readouterr().err
    assert recipe.checkpoint is not None
    assert recipe.checkpoint.exists()


def test_mixed_precision_is_left_in_float32(
    rendered: Rendered, recipe: Hyperparameters, monkeypatch: pytest.MonkeyPatch
) -> None:
    import keras

    from dicomsort.training.fit import feeding

    monkeypatch.setattr(feeding, "has_gpu", lambda: True)
    fitted = _fit(rendered, recipe)
    assert {layer.compute_dtype for layer in fitted.model.layers} == {"float32"}
    assert keras.config.dtype_policy().name == "float32"
    assert np.isfinite(fitted.held_out.probabilities).all()


@pytest.mark.parametrize(
    ("name", "weights"),
    [("cnn", 11_169_218), ("mobilenet-v3-small", 940_274), ("resnet50", 23_591_810), ("vgg16", 14_715_714)],
)
def test_every_network_has_features_before_its_probabilities(name: str, weights: int) -> None:
    model = ARCHITECTURES[name].build((224, 224, 3), 2)
    assert model.count_params() == weights
    assert (model.input_shape, model.output_shape) == ((None, 224, 224, 3), (None, 2))
    names = [layer.name for layer in model.layers]
    assert names[-1] == "probabilities"
    assert names.index("features") >= len(names) - 3
    assert len(model.get_layer("features").output.shape) == 2
    start = ARCHITECTURES[name].trained_from
    assert not start or 0 < names.index(start) < names.index("features")
    assert not any("Lambda" in type(layer).__name__ for layer in model.layers)


def test_weights_of_a_file_are_taken_and_others_refused(tmp_path: Path) -> None:
    from dicomsort.errors import UsageError
    from dicomsort.training.models import keras_applications

    shape = (64, 64, 3)
    theirs = keras_applications.body("vgg16", shape)
    theirs.save_weights(tmp_path / "theirs.weights.h5")
    architecture = with_weights(ARCHITECTURES["vgg16"], "vgg16", tmp_path / "theirs.weights.h5")
    assert "theirs.weights.h5 (SHA-256 " in architecture.summary
    assert (architecture.recipe, ARCHITECTURES["vgg16"].recipe) == ("transfer", "full")
    ours = architecture.build(shape, 2)
    kernels = [model.get_layer("block1_conv1").get_weights()[0] for model in (theirs, ours)]
    np.testing.assert_array_equal(kernels[0][:, :, ::-1], kernels[1])  # theirs expects blue, green, red
    other = with_weights(ARCHITECTURES["mobilenet-v3-small"], "mobilenet-v3-small", tmp_path / "theirs.weights.h5")
    with pytest.raises(UsageError, match="expected weights of mobilenet-v3-small without its ImageNet layer, received"):
        other.build(shape, 2)


def test_a_checkpoint_holds_no_objects(tmp_path: Path) -> None:
    np.savez(tmp_path / "state.npz", story=np.array([{}], dtype=object))
    assert Checkpoint(tmp_path, {}).load() == (None, "it is damaged")


def test_an_interruption_promises_a_resume_only_where_something_was_saved(tmp_path: Path) -> None:
    notes = list[str]()
    (tmp_path / "saved").mkdir()
    for name in ("nothing", "saved"):
        with (
            pytest.raises(KeyboardInterrupt),
            mock.patch.object(Reporter, "note", lambda _, line: notes.append(line)),
            resumable(tmp_path / name, Reporter()),
        ):
            raise KeyboardInterrupt
    assert notes == ["The same command goes on from saved; --fresh starts anew"]
