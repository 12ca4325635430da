"""The recipe ``transfer`` and its parts, on a network of a few hundred weights and noise of two kinds."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from networks import TINY, answers, rewritten, tiny

from dicomsort.errors import BundleError, DicomsortError
from dicomsort.training.data.dataset import Dataset, Item
from dicomsort.training.data.grouping import keep_together
from dicomsort.training.data.rendered import Rendered
from dicomsort.training.data.robustness import SHORTCUTS
from dicomsort.training.fit.checkpoint import COLUMNS
from dicomsort.training.fit.hyperparameters import Hyperparameters, TrainedModel
from dicomsort.training.models import replay_set
from dicomsort.training.models.architectures import ARCHITECTURES, Architecture
from dicomsort.training.progress import Reporter

pytestmark = pytest.mark.xdist_group("transfer")

LABELS = ("CT", "MRI")
SOURCES, EACH = 3, 4  # a class, a source
RECIPE = Hyperparameters(12, 4, 0.05, 0.2, 7, "light")


@pytest.fixture(scope="module")
def rendered() -> Rendered:
    """Noise of two brightnesses, in three sources a class, the last of them twice as large."""
    items = [
        Item(f"{label}/{label}{source}/{i}", n, f"{label}{source}")
        for n, label in enumerate(LABELS)
        for source in range(SOURCES)
        for i in range(EACH * (1 + (source == SOURCES - 1)))
    ]
    images = np.random.default_rng(0).integers(0, 60, (len(items), 224, 224, 3), np.uint8)
    images[[item.label == 1 for item in items]] += 180
    dataset, kept = keep_together(Dataset(Path(), LABELS, tuple(items)), [None] * len(items), [""] * len(items))
    return Rendered(dataset, images, np.arange(len(items)), tuple(f"{i:064x}" for i in range(len(items))), (), kept)


def _fit(rendered: Rendered, recipe: Hyperparameters = RECIPE, architecture: Architecture = TINY) -> TrainedModel:
    from dicomsort.training.fit.recipes import fit

    with Reporter() as reporter:
        return fit(architecture, rendered, recipe, reporter)


@pytest.mark.parametrize(
    ("build", "start"),
    [
        pytest.param(tiny, "first", id="tiny"),
        *(
            pytest.param(ARCHITECTURES[name].build, ARCHITECTURES[name].trained_from, id=name)
            for name in ("mobilenet-v3-small", "resnet50")
        ),
    ],
)
def test_trunk_and_tail_are_the_network(build: Any, start: str) -> None:
    import keras

    from dicomsort.training.fit.frozen_features import divide

    shape = (224, 224, 3) if build is tiny else (64, 64, 3)
    network = build(shape, 3)
    network.get_layer("probabilities").set_weights(
        [np.random.default_rng(0).normal(size=w.shape) for w in network.get_layer("probabilities").get_weights()]
    )
    frozen, trainable, with_features = divide(network, start)
    images = np.random.default_rng(1).integers(0, 255, (3, *shape)).astype(np.float32)
    whole, seen = answers(network, images), answers(frozen, images)
    np.testing.assert_allclose(answers(trainable, seen), whole, atol=1e-5)
    features, probabilities = answers(with_features, seen)
    np.testing.assert_allclose(probabilities, whole, atol=1e-5)
    assert features.shape == (3, network.get_layer("features").output.shape[1])
    assert frozen.trainable_variables == []
    frozen = [layer for layer in trainable.layers if isinstance(layer, keras.layers.BatchNormalization)]
    assert not any(layer.trainable_variables for layer in frozen)
    assert {id(v) for v in trainable.trainable_variables} == {id(v) for v in network.trainable_variables} != set()


def test_batches_are_drawn_by_source_and_class_and_by_seed_alone(rendered: Rendered) -> None:
    from dicomsort.training.fit.samplers import CLEAN, EVENNESS
    from dicomsort.training.fit.transfer import BalancedSampler

    count, views = len(rendered.dataset.items), 5
    numbers = np.arange(views)[:, None] * 100 + np.arange(count)
    seen = numbers[..., None].astype(np.float16)
    everything = np.arange(count)
    recipe = replace(RECIPE, batch_size=4000)
    batch, truth = BalancedSampler(seen, rendered.dataset, everything, recipe).batch(0, 0)
    drawn, view = np.round(batch[:, 0] % 100).astype(int), (batch[:, 0] // 100).astype(int)
    assert batch.dtype == np.float32
    np.testing.assert_array_equal(truth.argmax(1), rendered.dataset.classes()[drawn])
    items = rendered.dataset.items
    sizes = Counter((item.label, item.group) for item in items)
    weights = {source: size ** (1 - EVENNESS) for source, size in sizes.items()}
    totals = {label: sum(weight for source, weight in weights.items() if source[0] == label) for label, _ in weights}
    shares = Counter((items[i].label, items[i].group) for i in drawn)
    for source, weight in weights.items():
        assert shares[source] / len(drawn) == pytest.approx(weight / totals[source[0]] / len(totals), abs=0.03)
    assert np.mean(view == 0) == pytest.approx(CLEAN, abs=0.03)
    again, other = (BalancedSampler(seen, rendered.dataset, everything, replace(recipe, seed=seed)) for seed in (7, 8))
    np.testing.assert_array_equal(batch, again.batch(0, 0)[0])
    assert not np.array_equal(batch, other.batch(0, 0)[0])
    assert not np.array_equal(batch, again.batch(1, 0)[0])
    few = BalancedSampler(seen, rendered.dataset, everything[:3], replace(recipe, batch_size=2))
    assert len(few) == 2
    assert {int(i) for n in range(9) for i in few.batch(0, n)[0][:, 0] % 100} <= {0, 1, 2}


def test_what_is_shown_clean_is_the_image_itself(rendered: Rendered, tmp_path: Path) -> None:
    from dicomsort.training.fit.frozen_features import VIEWS, divide, view_all

    frozen, _, _ = divide(tiny((224, 224, 3), 2), "first")
    spent: list[tuple[float, float]] = []
    with Reporter() as reporter:
        plain = view_all(frozen, rendered, "none", 0, tmp_path / "plain.npy", reporter, spent)
        varied = view_all(frozen, rendered, "light", 0, tmp_path / "varied.npy", reporter, spent)
    assert (len(plain), len(varied)) == (1, 1 + VIEWS)
    np.testing.assert_array_equal(plain[0], varied[0])
    means = rendered.images.reshape(-1, 8, 28, 8, 28, 3).mean((2, 4)) / 255
    np.testing.assert_allclose(plain[0], means, atol=2e-3)
    assert not np.array_equal(varied[1], varied[0])
    assert not list(tmp_path.iterdir())  # a process that is killed leaves no gigabytes


def test_every_item_is_predicted_by_a_model_not_trained_on_its_source(
    rendered: Rendered, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dicomsort.training.fit import transfer
    from dicomsort.training.fit.held_out import HeldOutPredictions
    from dicomsort.training.fit.transfer import TransferTrainer

    trained: list[set[int]] = []
    parts: list[tuple[set[int], set[int]]] = []
    fit, predict_fold = TransferTrainer.fit, transfer.predict_fold

    def fitted(self: TransferTrainer, items: Any, *rest: Any) -> Any:
        trained.append(set(items.tolist()))
        return fit(self, items, *rest)

    def predicted(trainer: TransferTrainer, held_out: HeldOutPredictions, outside: Any, inside: Any) -> Any:
        assert trained[-1] == set(outside.tolist())
        parts.append((trained[-1], set(inside.tolist())))
        return predict_fold(trainer, held_out, outside, inside)

    monkeypatch.setattr(TransferTrainer, "fit", fitted)
    monkeypatch.setattr(transfer, "predict_fold", predicted)
    model = _fit(rendered)
    found = model.held_out
    items = rendered.dataset.items
    assert sorted(i for _, inside in parts for i in inside) == list(range(len(items)))
    for outside, inside in parts:
        assert not {items[i].group for i in outside} & {items[i].group for i in inside}
    assert trained[-1] == set(range(len(items)))  # the model that is kept
    assert [len({int(found.fold[i]) for i in inside}) for _, inside in parts] == [1] * len(parts)
    assert found.by_source
    assert set(found.variants) == set(SHORTCUTS)
    for probabilities in (found.probabilities, *found.variants.values()):
        np.testing.assert_allclose(probabilities.sum(1), 1, atol=1e-5)
    assert np.mean(found.probabilities.argmax(1) == rendered.dataset.classes()) > 0.9
    assert found.distances is not None
    assert np.isfinite(found.distances).all()
    assert model.mahalanobis is not None
    assert {len(values) for values in model.history.values()} == {RECIPE.epochs}
    assert set(model.history) == {"accuracy", "loss", "val_accuracy", "val_loss"}


def test_subclasses_are_learnt_beside_the_classes_and_the_network_names_none(rendered: Rendered) -> None:
    import keras

    from dicomsort.training.fit.samplers import truth_of
    from dicomsort.training.fit.transfer import opened

    finer = {"CT0": "a", "CT1": "b", "MRI0": "a", "MRI1": "b"}  # of the third source of each it is not known
    items = tuple(replace(item, subclass=finer.get(item.group, "")) for item in rendered.dataset.items)
    images = rendered.images.copy()
    stripes = [row for row in range(224) if row // 28 % 2]
    images[np.ix_([item.subclass == "b" for item in items], stripes)] ^= 255
    finely = replace(rendered, images=images, dataset=replace(rendered.dataset, items=items))
    truth = truth_of(finely.dataset)
    assert truth.shape == (len(items), 2 + 4)
    assert {(item.label, item.subclass, *row) for item, row in zip(items, truth[:, 2:].astype(int), strict=True)} == {
        (0, "a", 1, 0, 0, 0), (0, "b", 0, 1, 0, 0), (1, "a", 0, 0, 1, 0), (1, "b", 0, 0, 0, 1),
        (0, "", 0, 0, 0, 0), (1, "", 0, 0, 0, 0),
    }  # fmt: skip
    everything, recipe = np.arange(len(items)), replace(RECIPE, epochs=40, augment="none")
    keras.utils.set_random_seed(0)  # else the weights begin as the tests before have left the generator
    with Reporter() as reporter, opened(TINY, finely, recipe, reporter) as trainer:
        history = trainer.fit(everything, everything, "subclasses")
        both = answers(trainer.trainable, trainer.views[0].astype(np.float32))
        _, probabilities = trainer.predict(trainer.views[0])
    known = truth[:, 2:].any(1)
    np.testing.assert_allclose(both[:, :2], probabilities, atol=1e-5)
    np.testing.assert_allclose(both[:, 2:].sum(1), 1, atol=1e-5)
    assert np.mean(both[known, 2:].argmax(1) == truth[known, 2:].argmax(1)) > 0.9
    assert history["val_accuracy"][-1] == pytest.approx(np.mean(probabilities.argmax(1) == finely.dataset.classes()))
    model = _fit(finely, replace(recipe, epochs=2))
    assert model.course["subclasses"] == 4
    assert [tuple(output.shape) for output in model.model.outputs] == [(None, 2)]


def test_an_interrupted_cross_validation_goes_on_with_the_next_fold(
    rendered: Rendered, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    from dicomsort.training.fit.transfer import TransferTrainer

    monkeypatch.setattr("dicomsort.training.fit.transfer.FOLDS", 2)
    recipe = replace(RECIPE, epochs=2, augment="none", checkpoint=tmp_path / "out.checkpoint")
    whole = _fit(rendered, replace(recipe, checkpoint=None))
    fit, names = TransferTrainer.fit, []

    def stopped(self: TransferTrainer, items: Any, held: Any, name: str) -> Any:
        names.append(name)
        if len(names) in {2, 5}:
            raise KeyboardInterrupt
        return fit(self, items, held, name)

    monkeypatch.setattr(TransferTrainer, "fit", stopped)
    with pytest.raises(KeyboardInterrupt):
        _fit(rendered, recipe)
    assert "The same command goes on from out.checkpoint; --fresh starts anew" in capfd.readouterr().err
    again = _fit(rendered, recipe)
    assert names[2:4] == ["Cross-validation, fold 2 of 2", "Training on everything"]
    assert "Going on from the checkpoint in out.checkpoint: 1 of 2 folds are done" in capfd.readouterr().err
    assert again.history == whole.history
    np.testing.assert_allclose(again.held_out.probabilities, whole.held_out.probabilities, atol=1e-5)
    for one, other in zip(again.model.get_weights(), whole.model.get_weights(), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)
    with pytest.raises(KeyboardInterrupt):
        _fit(rendered, replace(recipe, seed=8))
    assert "but it is of another training: seed differ" in capfd.readouterr().err


@pytest.mark.parametrize(
    "edit",
    [
        lambda arrays, _: arrays.update(variables0=arrays["variables0"][:-1]),
        lambda arrays, _: arrays.pop([name for name in arrays if name.startswith("variables")][-1]),
        lambda arrays, _: arrays.update(best0=np.zeros(3)),
        lambda _, progress: progress.update(history={}),
        lambda _, progress: progress.update(epoch=3),
        lambda _, progress: progress.update(epoch=0),
    ],
)
def test_a_checkpoint_that_does_not_fit_the_cross_validation_is_damaged(
    rendered: Rendered, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, edit: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    from dicomsort.training.fit.transfer import TransferTrainer

    monkeypatch.setattr("dicomsort.training.fit.transfer.FOLDS", 2)
    history, calls = {column: [0.5, 0.5] for column in COLUMNS}, list[str]()

    def stopped(_: TransferTrainer, __: Any, ___: Any, name: str) -> Any:
        calls.append(name)
        if len(calls) > 1:
            raise KeyboardInterrupt
        return history

    monkeypatch.setattr(TransferTrainer, "fit", stopped)
    recipe = replace(RECIPE, epochs=2, augment="none", checkpoint=tmp_path / "out.checkpoint")
    for change in (lambda *_: None, edit):
        with pytest.raises(KeyboardInterrupt):
            _fit(rendered, recipe)
        rewritten(tmp_path / "out.checkpoint", change)
    capfd.readouterr()
    with pytest.raises(KeyboardInterrupt):
        _fit(rendered, recipe)
    assert calls[1:] == ["Cross-validation, fold 2 of 2"] * 2 + ["Cross-validation, fold 1 of 2"]
    assert "Starting anew: there is a checkpoint, but it is damaged" in capfd.readouterr().err


def test_a_seed_fixes_a_training(rendered: Rendered) -> None:
    from dicomsort.training.fit.transfer import opened

    everything, found = np.arange(len(rendered.dataset.items)), []
    for seed in (7, 7, 8):
        import keras

        keras.utils.set_random_seed(seed)
        recipe = replace(RECIPE, epochs=2, seed=seed, augment="none")
        with Reporter() as reporter, opened(TINY, rendered, recipe, reporter) as trainer:
            found.append((trainer.fit(everything, None, "seed"), trainer.predict(trainer.views[0])[1]))
    assert found[0][0] == found[1][0] != found[2][0]
    np.testing.assert_array_equal(found[0][1], found[1][1])


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_weights_come_back_from_litert(precision: str) -> None:
    from dicomsort.training.export import tflite
    from dicomsort.training.models.tflite_weights import read_weights

    network = tiny((224, 224, 3), 3)
    random = np.random.default_rng(3)
    network.set_weights([random.normal(0, 0.5, weight.shape) for weight in network.get_weights()])
    images = random.integers(0, 255, (5, 224, 224, 3), np.uint8)
    kept, _ = tflite.convert(network, [precision], images)
    found = read_weights(kept.model, 2)
    again = tiny((224, 224, 3), 3)
    for name, weights in zip(("first", "second", "probabilities"), found, strict=True):
        again.get_layer(name).set_weights(weights)
    wanted = network.predict_on_batch(images.astype(np.float32))
    assert wanted.std() > 0.05
    np.testing.assert_allclose(again.predict_on_batch(images.astype(np.float32)), wanted, atol=0.005)
    with pytest.raises(BundleError, match="expected 3 convolutions, received 2"):
        read_weights(kept.model, 3)
    for junk in (b"", b"junk", bytes(4096), kept.model[:200], kept.model[: len(kept.model) // 2]):
        with pytest.raises(BundleError, match=r"model\.tflite: expected"):
            read_weights(junk, 2)


@pytest.mark.parametrize("folds", [0, 2])
def test_a_training_that_diverges_ends_in_its_fold(
    rendered: Rendered, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folds: int
) -> None:
    from dicomsort.training.fit.feeding import Diverged
    from dicomsort.training.fit.transfer import TransferTrainer

    began, names = TransferTrainer.fit, list[str]()

    def fit(trainer: TransferTrainer, items: Any, held_out: Any, name: str, callbacks: Any = ()) -> Any:
        names.append(name)
        if len(names) > folds:
            trainer = replace(trainer, hyper=replace(trainer.hyper, learning_rate=1e30))
        return began(trainer, items, held_out, name, callbacks)

    monkeypatch.setattr(TransferTrainer, "fit", fit)
    monkeypatch.setattr("dicomsort.training.fit.transfer.FOLDS", 2)
    with pytest.raises(Diverged, match=r"^the training diverged in epoch 1: expected loss and weights to be finite"):
        _fit(rendered, replace(RECIPE, epochs=2, augment="none", checkpoint=tmp_path / "out.checkpoint"))
    assert len(names) == folds + 1
    assert not (tmp_path / "out.checkpoint").exists()


def test_frozen_layers_too_large_for_their_file_are_no_divergence(rendered: Rendered) -> None:
    def build(shape: tuple[int, int, int], classes: int) -> Any:
        model = tiny(shape, classes)
        model.get_layer("first").set_weights([1e6 + 0 * part for part in model.get_layer("first").get_weights()])
        return model

    with pytest.raises(
        DicomsortError, match=r"frozen layers: expected activations up to 65,504, received .*; start fr"
    ):
        _fit(rendered, architecture=replace(TINY, build=build, trained_from="features"))


def test_features_too_large_to_be_kept_cost_only_themselves(rendered: Rendered) -> None:
    extractor = mock.Mock(output=np.zeros((0, 4), np.float32))
    items = np.arange(len(rendered.rows))
    for largest, expected in ((65_504, ""), (1e6, "they reach 1e+06, and float16"), (np.nan, "they reach nan, and f")):
        extractor.predict_on_batch = lambda images, each=largest: np.full((len(images), 4), each, np.float32)
        with mock.patch.object(replay_set, "FeatureExtractor", return_value=extractor), Reporter() as reporter:
            kept = replay_set.keep_features(b"", rendered, items, items < 0, 0, reporter)
        if expected:
            assert isinstance(kept, str)
            assert kept.startswith(expected)
        else:
            assert isinstance(kept, bytes)
            assert replay_set.report_of(kept)["judged"]
