"""How a screen is made and measured, and when a training keeps one."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from command import Ran, run
from networks import TINY, brief, tiny
from numpy.typing import NDArray
from PIL import Image

from dicomsort.bundle import SCREEN_NAME, Predictor, load
from dicomsort.bundle.running import Running
from dicomsort.bundle.tensors import read_outputs
from dicomsort.errors import BundleError
from dicomsort.records import RENDERING_VERSION
from dicomsort.training import distance, screening
from dicomsort.training.architectures import ARCHITECTURES
from dicomsort.training.progress import load_tensorflow
from dicomsort.training.screening import Compared, Limits, Made, Said, settle
from dicomsort.training.trainer import OUTPUTS

pytestmark = pytest.mark.xdist_group("screening")

LABELS = ("CT", "MRI", "OTHER", "XRAY")
LIMITS = Limits(LABELS, 1.0, 0.95, 0.985, 2.0)


def sure(labels: list[int], confidence: float = 0.99) -> NDArray[np.float32]:
    """Probabilities (n, 4): the rest is shared by the other labels."""
    rows = np.full((len(labels), 4), (1 - confidence) / 3, np.float32)
    rows[np.arange(len(labels)), labels] = confidence
    return rows


def compared(truth: list[int], screen: NDArray[np.float32], far: float = 1.0) -> Compared:
    """A model that is right of all, and a screen."""
    distances = np.full(len(truth), 1.0, np.float32)
    return Compared("some", np.array(truth), Said(sure(truth), distances), Said(screen, distances * far))


def test_the_least_confidence_is_chosen_that_confirms_nothing_the_model_denies() -> None:
    truth = [0, 1, 2, 3] * 5
    screen = sure(truth, 0.9)
    screen[1] = sure([0], 0.72)[0]  # wrong, and the model would deny it
    settled = settle(Made(b"screen", 2.0, 5.0, (compared(truth, screen),)), LIMITS)
    assert settled.confirm == 0.725
    assert settled.told["kept"]
    assert settled.told["times_as_fast"] == 2.5
    assert settled.told["on"] == [
        {"what": "some", "images": 20, "confirmed": round(14 / 15, 4), "pairs": 60, "wrong": 0, "wrongly_confirmed": 0}
    ]


def test_what_the_model_would_not_deny_does_no_harm() -> None:
    truth = [0, 1] * 10
    screen = sure(truth, 0.995)
    screen[1] = sure([0], 0.982)[0]
    unsure = compared(truth, screen)
    unsure.model.probabilities[1] = sure([1], 0.9)[0]
    strange = compared(truth, screen)
    assert strange.model.distances is not None
    strange.model.distances[1] = 3.0
    for each in (unsure, strange):
        assert settle(Made(b"", 2.0, 5.0, (each,)), LIMITS).confirm == screening.LEAST
    assert settle(Made(b"", 2.0, 5.0, (compared(truth, screen),)), LIMITS).confirm == 0.985


def test_one_in_ten_thousand_is_allowed_where_none_cannot_be_had() -> None:
    screen = sure([0], 0.995)[0]
    for count, kept in ((3200, False), (3400, True)):
        truth = [1] * count
        said = sure(truth, 0.9)
        said[7] = screen
        settled = settle(Made(b"", 2.0, 5.0, (compared(truth, said),)), LIMITS)
        assert (settled.confirm, settled.told["kept"]) == ((screening.LEAST, True) if kept else (None, False))
        assert settled.told["on"][0]["wrong"] == 1
    assert "even at 0.99 it confirms 1 of 9,600 wrong labels against the model" in screening.words(
        settle(Made(b"", 2.0, 5.0, (compared([1] * 3200, np.vstack([screen, sure([1] * 3199)])),)), LIMITS).told
    )


@pytest.mark.parametrize(
    ("made", "reason"),
    [
        (Made(b"", 4.0, 5.0), "1.25 times as fast as the model where it was made, and 1.3 are wanted"),
        (Made(b"", 2.0, 5.0, (compared([0, 1], sure([0, 1], 0.5)),)), "confirms 0.0% of right labels, too few"),
        (Made(b"", 2.0, 5.0, (compared([0, 1], sure([0, 1]), 3.0),)), "confirms 0.0% of right labels, too few"),
        ("no header names one of these classes", "no header names one of these classes"),
    ],
)
def test_what_does_not_pay_is_dropped_and_the_reason_is_said(made: Made | str, reason: str) -> None:
    settled = settle(made, LIMITS)
    assert settled.confirm is None
    assert reason in settled.told["reason"]
    assert screening.words(settled.told).startswith("No screen: ")


def test_every_comparison_counts() -> None:
    truth = [0, 1] * 10
    wrong = sure(truth, 0.9)
    wrong[0] = sure([1], 0.842)[0]
    both = (compared(truth, sure(truth, 0.9)), compared(truth, wrong))
    assert settle(Made(b"", 2.0, 5.0, both), LIMITS).confirm == 0.845


def test_where_none_can_pay_none_is_made() -> None:
    assert "no header names" in screening.pointless({}, 10_000)
    assert "499 images were held out, and 500 are needed" in screening.pointless({"CT": "CT"}, 499)
    assert not screening.pointless({"CT": "CT"}, 500)


def blocks(count: int, seed: int = 0) -> NDArray[np.uint8]:
    """Images (N, 224, 224, 3) of random blocks."""
    small = np.random.default_rng(seed).integers(0, 256, (count, 8, 8, 3), np.uint8)
    return small.repeat(28, 1).repeat(28, 2)


def test_a_network_in_integers_says_nearly_the_same() -> None:
    load_tensorflow()
    from dicomsort.training import export, outputs
    from dicomsort.training.quantize import quantize
    from dicomsort.training.restore import read_space

    network, random = tiny((224, 224, 3), 3), np.random.default_rng(3)
    network.set_weights([random.normal(0, 0.5, weight.shape) for weight in network.get_weights()])
    images = blocks(60)
    features = outputs.featured(network).predict(images.astype(np.float32), verbose=0)
    space = distance.fit(features, np.arange(60) % 3)
    kept, _ = export.convert(network, ("float32",), images[:8], space)
    model, screen = Running(kept.model), Running(quantize(network, space, images[:30]))
    assert {name: tensor.shape[1:] for name, tensor in screen.outputs.items()} == {
        "probabilities": (3,),
        "distance": (),
    }
    for image in images[30:].astype(np.float32):
        one, other = model.run(image[None]), screen.run(image[None])
        np.testing.assert_allclose(other["probabilities"], one["probabilities"], atol=0.1)
        np.testing.assert_allclose(other["distance"], one["distance"], rtol=0.3, atol=0.3)
    assert set(read_outputs(quantize(network, None, images[:8]))) == {"probabilities"}
    told = read_space(kept.model)
    np.testing.assert_allclose(told.distances(features), space.distances(features), rtol=1e-3, atol=1e-3)
    for junk in (b"", kept.model[:300], export.convert(network, ("float32",), images[:8])[0].model):
        with pytest.raises(BundleError, match=r"model\.tflite: expected distances as dicomsort exports them"):
            read_space(junk)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Noise of three brightnesses, in two sources a class."""
    root = tmp_path_factory.mktemp("screening") / "images"
    for level, label in enumerate(("CT", "MRI", "XRAY")):
        for number in range(8):
            noise = np.random.default_rng((level, number)).integers(0, 60, (40, 40), np.uint8)
            path = root / label / f"source{number % 2}" / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(noise + np.uint8(80 * level)).save(path)
    return root


@pytest.fixture
def lenient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A screen of a few images, however slow."""
    monkeypatch.setattr(screening, "MIN_IMAGES", 5)
    monkeypatch.setattr(Made, "times", 2.0)
    monkeypatch.setattr(screening, "_reason_against", lambda *_: "")
    for recipe in ("staged", "whole"):
        monkeypatch.setitem(ARCHITECTURES, recipe, replace(TINY, recipe=recipe))


def _train(dataset: Path, out: Path, arch: str) -> Ran:
    numbers = ("--epochs", 8, "--batch-size", 8, "--learning-rate", 0.05, "--seed", 3)
    with brief():
        return run("train", dataset, "--out", out, "--arch", arch, *numbers)


@pytest.mark.parametrize("arch", ["staged", "whole"])
def test_a_training_leaves_a_screen_measured_on_what_was_held_out(
    dataset: Path, tmp_path: Path, lenient: None, arch: str
) -> None:
    out = tmp_path / "out"
    ran = _train(dataset, out, arch)
    assert ran.code == 0, ran.err
    assert {path.name for path in out.iterdir()} == OUTPUTS | {SCREEN_NAME}
    bundle = load(out, RENDERING_VERSION)
    assert bundle.screen is not None
    told = json.loads((out / "metrics.json").read_text("utf-8"))
    found = told["training_run"]["screen"]
    assert found["confirm"] == bundle.screen.confirm
    held, files = found["on"]
    assert (held["what"], held["images"]) == (told["held_out"], told["images"])
    assert files["images"] == 24
    assert files["pairs"] == 48
    assert "\n## Screen\n" in (out / "card.md").read_text("utf-8")
    assert "Screen: " in ran.err
    image = blocks(3)
    seen = [Predictor(bundle, name).predict(image).probabilities for name in ("model.tflite", SCREEN_NAME)]
    np.testing.assert_allclose(*seen, atol=0.1)


def test_a_screen_that_is_not_faster_is_not_kept(
    dataset: Path, tmp_path: Path, lenient: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(screening, "FASTER", 3.0)
    out = tmp_path / "out"
    ran = _train(dataset, out, "whole")
    assert ran.code == 0, ran.err
    assert {path.name for path in out.iterdir()} == OUTPUTS
    assert load(out, RENDERING_VERSION).screen is None
    assert "No screen: it is 2.0 times as fast" in ran.err
    assert "There is none: it is 2.0 times as fast" in (out / "card.md").read_text("utf-8")


def test_a_bundle_that_is_there_gets_a_screen(
    dataset: Path, tmp_path: Path, lenient: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    monkeypatch.setattr(screening, "MIN_IMAGES", 500)
    ran = _train(dataset, out, "staged")
    assert load(out, RENDERING_VERSION).screen is None
    assert "24 images were held out, and 500 are needed" in ran.err
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    ran = run("screen", dataset, "--model", out)
    assert ran.code == 1
    assert "no screen: 24 images" in ran.err
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    monkeypatch.setattr(screening, "MIN_IMAGES", 5)
    ran = run("screen", dataset, "--model", out)
    assert ran.code == 0, ran.err
    assert "Screen: 2.0 times as fast as the model" in ran.out
    assert "NOT held out" in ran.out
    after = {path.name: path.read_bytes() for path in out.iterdir()}
    assert set(after) == {*before, SCREEN_NAME}
    assert {name for name in before if before[name] != after[name]} == {"bundle.json", "card.md", "metrics.json"}
    assert load(out, RENDERING_VERSION).screen is not None
    assert "\n## Screen\n" in after["card.md"].decode()
