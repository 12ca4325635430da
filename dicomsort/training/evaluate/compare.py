"""Two models on the same images: what got better, what got worse, and whether one may replace the other.

Both are resampled alike, so what is hard for both adds nothing to an interval (a paired bootstrap).

A trained bundle is **worse** than the one that it shall replace where one of these holds:

- On the evaluation images that both keep, its balanced accuracy is lower by more than 2 points, and by 3 images, than
  that of the other bundle, or of any bundle before that in its lineage. So no model slides down in small steps.
- The recall of a class there is lower by more than 8 points, and the paired interval leaves 0 out.
- Fewer of the images at hand are right. Each is predicted by a model that did not see its fold, and those that the
  other bundle was trained on do not count.

Measured on 96 draws of 50 images from sources that a network never saw, trained on with a replay set and without: where
the balanced accuracy on evaluation images fell by more than 2 points (11 times, all without), accuracy fell by 19 on
other sources that it never saw, and by 23 on the site's other images, on the average. Where it fell by less, how much
said nothing of either.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dicomsort.bundle import Bundle, Predictor, calibrate, load
from dicomsort.bundle.spec import SPEC_NAME, fail
from dicomsort.errors import BundleError, UsageError, counted
from dicomsort.training.data import fingerprint
from dicomsort.training.data.dataset import Indices
from dicomsort.training.data.rendered import Rendered
from dicomsort.training.evaluate import metrics
from dicomsort.training.evaluate.calibration import Calibration
from dicomsort.training.evaluate.metrics import Figures, Tally, Values
from dicomsort.training.evaluate.tables import at, interval, points
from dicomsort.training.fit.finetune import Finetune
from dicomsort.training.fit.hyperparameters import TrainedModel
from dicomsort.training.models.architectures import Architecture
from dicomsort.training.models.replay_set import ReplaySet, predictions_of
from dicomsort.training.models.tflite_head import predict_head

KEY, EVALUATION = "started_from", "evaluation"
UNKNOWN = "What got worse on images of other sources is not known: {name} keeps none to tell by"
BALANCED, LOST, RECALL = 0.02, 3, 0.08
ANYWAY = "--replace-worse replaces it all the same, another --out keeps both"
BATCH = 256  # images in memory at a time


class Comparison(NamedTuple):
    """How a fine-tuned model compares with its bundle (``started``, for metrics.json) and with the one at ``--out``.

    ``worse`` says why the latter is not to be replaced; empty where there is none or the new model is no worse.
    """

    started: dict[str, Any]
    worse: tuple[str, ...]


def changes(first: Tally, second: Tally, seed: int = 0) -> dict[str, Any]:
    """Return the figures of both, ``change`` from the first to the second, and its 95 % ``intervals``, ready for JSON.

    Each is a dictionary of the figures that both have, in the shape of metrics.json; undefined figures are left out.
    Both tallies are of the same images in the same order, with the same clusters. No intervals with one cluster alone.
    ``agreement`` counts the images that both have right, one alone, and neither; ``support`` those of each label.
    """
    once = np.ones((1, first.clusters))
    one, two = ({path: float(v[0]) for path, v in tally.figures(once).items()} for tally in (first, second))
    paths = [path for path in one if np.isfinite([one[path], two.get(path, np.nan)]).all()]
    figures = {"first": one, "second": two, "change": {path: two[path] - one[path] for path in paths}}
    report: dict[str, Any] = {
        name: metrics.nest({path: round(each[path], metrics.DIGITS) for path in paths})
        for name, each in figures.items()
    }
    if first.clusters >= metrics.MIN_CLUSTERS:

        def change(weights: Values) -> Figures:
            before, after = first.figures(weights), second.figures(weights)
            return {path: after[path] - before[path] for path in before if path in after}

        drawn = metrics.bootstrap(change, first, seed)
        report["intervals"] = metrics.nest({path: metrics.interval(drawn[path]) for path in paths})
    support = np.bincount(first.truth, minlength=len(first.labels)).tolist()
    agreement = {
        "both": first.right & second.right,
        "only_first": first.right & ~second.right,
        "only_second": second.right & ~first.right,
        "neither": ~first.right & ~second.right,
    }
    return report | {
        "images": len(first.truth),
        "clusters": first.clusters,
        "support": dict(zip(first.labels, support, strict=True)),
        "agreement": {name: int(images.sum()) for name, images in agreement.items()},
    }


def on_replay_set(
    images: ReplaySet,
    first: NDArray[np.float32],
    second: NDArray[np.float32],
    seed: int,
    thresholds: Sequence[Mapping[str, Values]] = ({}, {}),
) -> dict[str, Any]:
    """Return ``changes`` between two models' predictions for a replay set, both float32 (N, C), calibrated.

    ``unit`` is what is resampled as one, ``trained_on`` how many of the images the network was trained on.
    """
    one, two = (
        Tally(each, images.truth, images.labels, images.clusters, limits)
        for each, limits in zip((first, second), thresholds, strict=True)
    )
    return {"unit": images.unit, "trained_on": int(images.trained.sum()), **changes(one, two, seed)}


def compared(
    architecture: Architecture,
    rendered: Rendered,
    trained: TrainedModel,
    calibration: Calibration,
    rival: Bundle | None,
    seed: int,
) -> Comparison | None:
    """Compare a fine-tuned model with its bundle, and with ``rival``, which it is to replace (None: there is none).

    Return None where a training did not start from a bundle.
    """
    if not isinstance(architecture, Finetune):
        return None
    start, rest = architecture.bundle, (architecture, rendered, trained, calibration.temperature, seed)
    started = with_bundle(start, *rest)
    if rival is None:
        return Comparison(started, ())
    with_rival = started if rival.model_sha256 == start.model_sha256 else with_bundle(rival, *rest)
    return Comparison(started, tuple(reasons(with_rival)))


def with_bundle(
    bundle: Bundle, recipe: Finetune, rendered: Rendered, trained: TrainedModel, temperature: float, seed: int
) -> dict[str, Any]:
    """Return what metrics.json reports of ``bundle`` (before) and of the fine-tuned model (after).

    Of the images at hand, those that the bundle was trained on flatter it: they are ``left_out`` where there are
    others, else counted, and ``trained_on`` is their number.
    """
    held_out, labels = trained.held_out, recipe.bundle.labels
    digests = [rendered.digests[i] for i in held_out.items]
    items = rendered.dataset.only(held_out.items).items
    known = fingerprint.known(bundle.training, items, digests)
    fair = ~known | known.all()
    before = _predict(bundle, rendered, held_out.items[fair])[:, [bundle.labels.index(label) for label in labels]]
    report = {"name": bundle.name, "model_sha256": bundle.model_sha256, "images": int(fair.sum())}
    report |= {"trained_on": int((known & fair).sum()), "left_out": int((~fair).sum())}
    for name, probabilities in (("before", before), ("after", held_out.probabilities[fair])):
        report[name] = _figures(labels, held_out.truth[fair], probabilities)
    images = recipe.evaluation_set
    first = predictions_of(bundle, images) if images and of_one_line(bundle, recipe.bundle) else None
    if images is None or first is None:
        return report
    second = predict_head(images.features, *trained.head)
    figures = on_replay_set(images, calibrate(first, bundle.temperature), calibrate(second, temperature), seed)
    figures["by_class"] = figures.pop("support")
    figures["at_hand"] = int(np.isin(images.files, fingerprint.keys(digests)).sum())
    figures["before"], figures["after"] = figures.pop("first"), figures.pop("second")
    figures["best_of_line"] = max(figures["before"]["balanced_accuracy"], best_of_line(bundle))
    return report | {EVALUATION: figures}


def _predict(bundle: Bundle, rendered: Rendered, items: Indices) -> NDArray[np.float32]:
    predictor, rows = Predictor(bundle), rendered.rows[items]
    parts = (rows[start : start + BATCH] for start in range(0, len(rows), BATCH))
    return np.concatenate([predictor.predict(rendered.images[part]).probabilities for part in parts])


def sentences(report: Mapping[str, Any]) -> list[str]:
    """Return the comparison: a sentence on the images at hand, one on those that the bundle keeps; without stops."""
    before, after = report["before"], report["after"]
    whose = f" ({report['name']} was trained on all of them)" if report["trained_on"] else ""
    images = counted(report["images"], "image")
    which = f"{images} that {report['name']} was not trained on" if report["left_out"] else f"the same {images}"
    at_hand = f"On {which}{whose}: {report['name']} has {_shares(before)} right, the new model {_shares(after)}"
    at_hand += _changed(before["recall"], after["recall"])
    figures = report.get(EVALUATION)
    return [at_hand, _on_evaluation_set(figures) if figures else UNKNOWN.format(name=report["name"])]


def lineage(bundle: Bundle, started: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """Return what bundle.json lists of the bundle that was trained further, and of those before that.

    ``started`` is what ``with_bundle`` returned for it.
    """
    entry: dict[str, Any] = {"name": bundle.name, "model_sha256": bundle.model_sha256}
    entry["fingerprint"] = bundle.training.get("fingerprint")
    if bundle.evaluation and started and (figures := started.get(EVALUATION)):
        right = figures["before"]["balanced_accuracy"]
        entry[EVALUATION] = {"sha256": bundle.evaluation.sha256, "balanced_accuracy": right}
    return [entry, *_earlier(bundle)]


def _earlier(bundle: Bundle) -> list[Any]:
    """Return what bundle.json lists of those before a bundle; anything may stand there."""
    earlier = bundle.training.get(KEY)
    return earlier if isinstance(earlier, list) else []


def best_of_line(bundle: Bundle) -> float:
    """Return the best balanced accuracy of those before a bundle on its evaluation images; 0 where none is known."""
    digest = bundle.evaluation and bundle.evaluation.sha256
    same = [each for each in _earlier(bundle) if at(each, (EVALUATION, "sha256")) == digest]
    figures = [at(each, (EVALUATION, "balanced_accuracy")) for each in same]
    return max((figure for figure in figures if isinstance(figure, float) and figure <= 1), default=0.0)


def recalls(figures: Mapping[str, Any], by_class: Mapping[str, int]) -> dict[str, float]:
    """Return label -> recall of the classes that have images, from figures on a replay set."""
    return {label: figures["classes"][label]["recall"] for label, count in by_class.items() if count}


def _on_evaluation_set(figures: Mapping[str, Any]) -> str:
    before, after = figures["before"], figures["after"]
    bounds = interval(figures, ("balanced_accuracy",), points)
    change = f"{points(figures['change']['balanced_accuracy'])} points{bounds and f', 95 % interval {bounds}'}"
    trained = "the network was trained on them, so this shows what is forgotten and no accuracy"
    if figures["trained_on"] < figures["images"]:
        trained = f"the network was trained on {figures['trained_on']:,} of them, and the last layer on none since"
    changed = _changed(*(recalls(each, figures["by_class"]) for each in (before, after)))
    count = figures["at_hand"]
    learnt = f"; this flatters it, because the images at hand have {count:,} of them" if count else ""
    kept = f"the {counted(figures['images'], 'evaluation image')} that the bundle keeps"
    units = counted(figures["clusters"], figures["unit"])
    shares = f"{_shares(before)} right before, {_shares(after)} now (balanced: {change})"
    return f"On {kept} ({units}; {trained}): {shares}{changed}{learnt}"


def _figures(labels: Sequence[str], truth: NDArray[np.int64], probabilities: NDArray[np.float32]) -> dict[str, Any]:
    figures = metrics.measure(probabilities, truth, labels, {})
    return {
        "right": int((probabilities.argmax(axis=1) == truth).sum()),
        "accuracy": figures["accuracy"],
        "balanced_accuracy": figures["balanced_accuracy"],
        "recall": {label: row["recall"] for label, row in figures["classes"].items() if row["support"]},
    }


def _changed(before: Mapping[str, float], after: Mapping[str, float]) -> str:
    """Return the classes whose recall (label -> share) got better, and those where it got worse."""
    text = ""
    for name, sign in (("better", 1), ("worse", -1)):
        labels = [label for label, recall in before.items() if (after[label] - recall) * sign > 0]
        shown = ", ".join(f"{label} {before[label]:.1%} → {after[label]:.1%}" for label in labels)
        text += f"; {name}: {shown or 'none'}"
    return text


def _shares(figures: Mapping[str, Any]) -> str:
    return f"{figures['accuracy']:.1%} (balanced {figures['balanced_accuracy']:.1%})"


def rival_at(out: Path, start: Bundle, *, anyway: bool) -> Bundle | None:
    """Return the bundle that lies at ``--out``, None where there is none, or it is replaced ``anyway``.

    UsageError where it cannot be compared with a model that is trained from ``start``.
    """
    if anyway or not (out / SPEC_NAME).is_file():
        return None
    try:
        bundle = load(out)
        if set(bundle.labels) != set(start.labels):
            fail(str(out), "labels", f"{', '.join(start.labels)}, those of --from", ", ".join(bundle.labels))
    except BundleError as error:
        raise UsageError(
            f"--out {str(out)!r}: expected a bundle there that can be compared with what comes of this training, "
            f"received another ({error}); {ANYWAY}"
        ) from error
    return bundle


def of_one_line(one: Bundle, other: Bundle) -> bool:
    """Tell whether two bundles differ in their last layer alone, and have the same replay set."""
    same = (one.evaluation, one.arch, one.labels) == (other.evaluation, other.arch, other.labels)
    return one.evaluation is not None and same


def reasons(report: Mapping[str, Any]) -> list[str]:
    """Return why the new model is worse than the bundle that ``report`` compares it with; see the rule above."""
    figures = report.get(EVALUATION)
    worse = _worse_on(figures) if figures else []
    before, after = report["before"]["right"], report["after"]["right"]
    if report["trained_on"]:
        if not figures:
            all_ = f"all {counted(report['images'], 'image')} at hand"
            why = f"{report['name']} was trained on {all_}, and there are no evaluation images that both keep"
            worse.append(f"nothing to compare them by: {why}")
    elif after < before:
        worse.append(
            f"of {counted(report['images'], 'image')} at hand, {before:,} were right before, and {after:,} are now"
        )
    return worse


def _worse_on(figures: Mapping[str, Any]) -> list[str]:
    """Return what got worse on the images that the bundle keeps, beyond what is allowed."""
    before, after, worse = figures["before"], figures["after"], []
    loss = figures["best_of_line"] - after["balanced_accuracy"]
    if loss > BALANCED and loss * figures["images"] >= LOST:
        shares = f"{before['balanced_accuracy']:.1%} → {after['balanced_accuracy']:.1%}"
        if figures["best_of_line"] > before["balanced_accuracy"]:
            shares += f", and {figures['best_of_line']:.1%} earlier in its line"
        worse.append(f"balanced accuracy on its {figures['images']:,} evaluation images {shares}")
    old, new = (recalls(each, figures["by_class"]) for each in (before, after))
    for label in old:
        bounds = at(figures, ("intervals", "classes", label, "recall"))
        if new[label] - old[label] < -RECALL and bounds and bounds[1] < 0:
            worse.append(f"recall of {label} there {old[label]:.1%} → {new[label]:.1%}")
    return worse


def refusal(out: Path, rival: Bundle, why: tuple[str, ...], beside: Path) -> str:
    """Return the message of the error for a bundle that is not replaced; the new one lies ``beside``."""
    return (
        f"--out {str(out)!r}: expected a model no worse than {rival.name}, which lies there, received a worse one: "
        f"{'; '.join(why)}. It is not replaced; the new one is in {str(beside)!r}; {ANYWAY}"
    )
