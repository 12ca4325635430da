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

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dicomsort.bundle import Predictor, calibrate, load
from dicomsort.bundle.spec import SPEC_NAME, fail, read_model
from dicomsort.errors import BundleError, UsageError
from dicomsort.records import RENDERING_VERSION
from dicomsort.training.data import fingerprint
from dicomsort.training.evaluate import metrics
from dicomsort.training.evaluate.metrics import Tally
from dicomsort.training.models.replay_set import counts
from dicomsort.training.models.tflite_weights import read_head

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from dicomsort.bundle import Bundle
    from dicomsort.training.data.rendered import Rendered
    from dicomsort.training.evaluate.metrics import Figures
    from dicomsort.training.fit.recipe import Fitted
    from dicomsort.training.models.replay_set import ReplaySet

DIGITS = 4


def changes(first: Tally, second: Tally, seed: int = 0) -> dict[str, Any]:
    """Return the figures of both, ``change`` from the first to the second, and its 95 % ``intervals``, ready for JSON.

    Each is a dictionary of the figures that both have, in the shape of metrics.json; undefined figures are left out.
    Both tallies are of the same images in the same order, with the same clusters. No intervals with one cluster alone.
    """
    once = np.ones((1, first.clusters))
    one, two = ({path: float(v[0]) for path, v in tally.figures(once).items()} for tally in (first, second))
    paths = [path for path in one if np.isfinite([one[path], two.get(path, np.nan)]).all()]
    told = {name: metrics.nest({path: _round(figures[path]) for path in paths}) for name, figures in
            (("first", one), ("second", two), ("change", {path: two[path] - one[path] for path in paths}))}  # fmt: skip
    if first.clusters >= metrics.MIN_CLUSTERS:
        drawn = _drawn(first, second, seed)
        told["intervals"] = metrics.nest({path: metrics.interval(drawn[path]) for path in paths})
    return told


def agreement(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> dict[str, int]:
    """Return how many images both have right, only the first, only the second, and neither; both (N,)."""
    return {
        "both": int((first & second).sum()),
        "only_first": int((first & ~second).sum()),
        "only_second": int((second & ~first).sum()),
        "neither": int((~first & ~second).sum()),
    }


def _drawn(first: Tally, second: Tally, seed: int) -> Figures:
    """Return the changes of every figure in 1,000 resamples, float64 (1000,)."""
    room = max(len(first.truth), len(first.labels) ** 2)
    parts = []
    for weights in metrics.resamples(first.clusters, room, seed):
        one, two = first.figures(weights), second.figures(weights)
        parts.append({path: two[path] - one[path] for path in one if path in two})
    return {path: np.concatenate([part[path] for part in parts]) for path in parts[0]}


def _round(value: float) -> float:
    return round(value, DIGITS)


if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from dicomsort.bundle import Bundle
    from dicomsort.training.models.replay_set import ReplaySet

    Said = NDArray[np.float32]

KEY, REMEMBERED = "started_from", "evaluation"
UNKNOWN = "What got worse on images of other sources is not known: {name} keeps none to tell by"


@dataclass(frozen=True, slots=True)
class Both:
    """What two models say of the same images, float32 (N, C), in the order of a bundle's labels, not calibrated."""

    before: Said
    after: Said


def compare(
    bundle: Bundle, labels: Sequence[str], truth: NDArray[np.int64], said: Both, known: NDArray[np.bool_]
) -> dict[str, Any]:
    """Return what metrics.json tells of ``bundle`` and of what came after it, in the order of ``labels``.

    ``said.before`` is what the bundle says, ``said.after`` what models say that were trained without the image's fold.
    ``truth``: int64 (N,), 0..C-1. Images that the bundle was trained on (``known``: bool (N,)) flatter it; they are
    ``left_out`` where there are others, else counted, and ``trained_on`` is their number.
    """
    fair = ~known | known.all()
    told: dict[str, Any] = {"name": bundle.name, "model_sha256": bundle.model_sha256}
    told |= {"images": int(fair.sum()), "trained_on": int((known & fair).sum()), "left_out": int((~fair).sum())}
    return told | {
        name: _figures(labels, truth[fair], answers[fair].argmax(1))
        for name, answers in (("before", said.before), ("after", said.after))
    }


def compare_remembered(
    kept: ReplaySet, said: Both, temperatures: tuple[float, float], digests: Sequence[str], seed: int
) -> dict[str, Any]:
    """Return what changed on the images that a bundle keeps, those that no training learns from, ready for JSON.

    ``kept`` holds these alone; ``temperatures`` are those of both models; ``digests`` are SHA-256 of the files at hand,
    among which some of them may have been put all the same.
    """
    names, cluster = np.unique(kept.clusters, return_inverse=True)
    one, two = (
        Tally(calibrate(answers, temperature), kept.truth, kept.labels, cluster, {})
        for answers, temperature in zip((said.before, said.after), temperatures, strict=True)
    )
    told = changes(one, two, seed)
    right = [answers.argmax(1) == kept.truth for answers in (said.before, said.after)]
    found = {"images": len(cluster), "by_class": counts(kept, kept.labels), "trained_on": int(kept.trained.sum())}
    found |= {
        "at_hand": int(np.isin(kept.files, fingerprint.keys(digests)).sum()),
        "clusters": len(names),
        "unit": kept.unit,
        "agreement": agreement(*right),
    }
    return found | {"before": told["first"], "after": told["second"]} | _rest(told)


def words(told: Mapping[str, Any]) -> str:
    """Say what was found in sentences, the last without a stop."""
    return ". ".join(sentences(told))


def sentences(told: Mapping[str, Any]) -> list[str]:
    """Say what was found in sentences without stops: on the images at hand, on those that the bundle keeps."""
    before, after = told["before"], told["after"]
    whose = f" (it was trained on all {told['trained_on']:,} of them)" if told["trained_on"] else ""
    which = f"{told['images']:,} images that it was not trained on" if told["left_out"] else "the same images"
    found = f"{told['name']}, from which it started, has {_shares(before)} of {which} right{whose}"
    found += f", what came of it {_shares(after)}{_moved(before['recall'], after['recall'])}"
    kept = told.get(REMEMBERED)
    return [found, _remembered(kept) if kept else UNKNOWN.format(name=told["name"])]


def lineage(bundle: Bundle, started: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """Return what bundle.json tells of the bundle that a model was started from, and of those before that.

    ``started`` is what ``compare`` told of it, with what it has right of the images that it keeps, where it keeps some.
    """
    earlier = bundle.training.get(KEY)
    told = {"name": bundle.name, "model_sha256": bundle.model_sha256, "fingerprint": bundle.training.get("fingerprint")}
    if bundle.evaluation and started and (kept := started.get(REMEMBERED)):
        right = kept["before"]["balanced_accuracy"]
        told[REMEMBERED] = {"sha256": bundle.evaluation.sha256, "balanced_accuracy": right}
    return [told, *(earlier if isinstance(earlier, list) else ())]


def best_of_line(bundle: Bundle) -> float:
    """Return the best balanced accuracy of those before a bundle on the images that it keeps; 0 where none is told."""
    earlier = bundle.training.get(KEY)
    told = [each.get(REMEMBERED) for each in earlier if isinstance(each, dict)] if isinstance(earlier, list) else []
    mine = bundle.evaluation and bundle.evaluation.sha256
    figures = [each.get("balanced_accuracy") for each in told if isinstance(each, dict) and each.get("sha256") == mine]
    return max((figure for figure in figures if isinstance(figure, float) and figure <= 1), default=0.0)


def recalls(figures: Mapping[str, Any], by_class: Mapping[str, int]) -> dict[str, float]:
    """Return label -> recall of the classes that have images, from the figures of ``compare_remembered``."""
    return {label: figures["classes"][label]["recall"] for label, count in by_class.items() if count}


def _remembered(kept: Mapping[str, Any]) -> str:
    """Say what changed on the images that the bundle keeps."""
    before, after, drawn = kept["before"], kept["after"], kept.get("intervals", {}).get("balanced_accuracy")
    interval = f", 95 % interval {_points(drawn[0])} to {_points(drawn[1])}" if drawn else ""
    change = f"{_points(kept['change']['balanced_accuracy'])} points{interval}"
    trained = "the network was trained on them, so this shows what is forgotten and no accuracy"
    if kept["trained_on"] < kept["images"]:
        trained = f"the network was trained on {kept['trained_on']:,} of them, and the last layer on none since"
    moved = _moved(recalls(before, kept["by_class"]), recalls(after, kept["by_class"]))
    learnt = f"; {kept['at_hand']:,} of them are among the images at hand, and flatter it" if kept["at_hand"] else ""
    return (
        f"Of the {kept['images']:,} evaluation images that the bundle keeps ({kept['clusters']} {kept['unit']}s; "
        f"{trained}), {_shares(before)} were right and {_shares(after)} are (balanced: {change}){moved}{learnt}"
    )


def _rest(told: Mapping[str, Any]) -> dict[str, Any]:
    return {name: told[name] for name in ("change", "intervals") if name in told}


def _figures(labels: Sequence[str], truth: NDArray[np.int64], answers: NDArray[np.intp]) -> dict[str, Any]:
    recall = {label: round(float(np.mean(answers[truth == i] == i)), 4) for i, label in enumerate(labels) if i in truth}
    balanced = round(float(np.mean(list(recall.values()))), 4)
    figures = {"right": int((answers == truth).sum()), "accuracy": round(float(np.mean(answers == truth)), 4)}
    return {**figures, "balanced_accuracy": balanced, "recall": recall}


def _moved(before: Mapping[str, float], after: Mapping[str, float]) -> str:
    """Say which classes' recall got better, and which got worse."""
    told = ""
    for name, sign in (("better", 1), ("worse", -1)):
        moved = [label for label, recall in before.items() if (after[label] - recall) * sign > 0]
        shown = ", ".join(f"{label} {before[label]:.1%} → {after[label]:.1%}" for label in moved)
        told += f"; {name}: {shown or 'none'}"
    return told


def _shares(figures: Mapping[str, Any]) -> str:
    return f"{figures['accuracy']:.1%} (balanced {figures['balanced_accuracy']:.1%})"


def _points(value: float) -> str:
    return f"{100 * value:+.1f}"


BALANCED, LOST, RECALL = 0.02, 3, 0.08
ANYWAY = "--replace-worse replaces it all the same, another --out keeps both"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a training that went on from a bundle left, beside what lies at its ``--out``.

    ``started`` is what metrics.json tells of the comparison with its start; ``reasons`` say why the bundle at ``--out``
    is not to be replaced, none where there is none or the new one is no worse.
    """

    started: dict[str, Any]
    reasons: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Judge:
    """Compares what a training left with other bundles: its start, its images, what it says of them.

    ``temperature`` is that of the new bundle; ``kept`` are the images that the start keeps and no training learns from,
    None where it keeps none.
    """

    start: Bundle
    rendered: Rendered
    fitted: Fitted
    kept: ReplaySet | None
    temperature: float
    seed: int

    def verdict(self, rival: Bundle | None) -> Verdict:
        """Return what the training made of its start, and whether it may replace ``rival`` (None: nothing there)."""
        started = self.told(self.start)
        if rival is None:
            return Verdict(started)
        if rival.model_sha256 == self.start.model_sha256:
            return Verdict(started, tuple(reasons(started)))
        return Verdict(started, tuple(reasons(self.told(rival))))

    def told(self, bundle: Bundle) -> dict[str, Any]:
        """Return the comparison of what came of the training with ``bundle``, as ``comparing`` tells it."""
        held = self.fitted.held
        dataset = self.rendered.dataset.only(held)
        digests = [self.rendered.digests[i] for i in held]
        known = fingerprint.known(bundle.training, dataset.items, digests, untold=False)
        said = Both(self._of_images(bundle), self.fitted.probabilities)
        told = compare(bundle, self.start.labels, dataset.classes(), said, known)
        before = self._of_kept(bundle)
        if before is None or self.kept is None or self.fitted.remembered is None or not len(before):
            return told
        temperatures = bundle.temperature, self.temperature
        both = Both(before, self.fitted.remembered[1])
        found = compare_remembered(self.kept, both, temperatures, digests, self.seed)
        best = max(found["before"]["balanced_accuracy"], best_of_line(bundle))
        return told | {REMEMBERED: {**found, "best_of_line": best}}

    def _of_images(self, bundle: Bundle) -> NDArray[np.float32]:
        """Return what a bundle says of the images at hand, in the order of the start's labels."""
        if bundle.model_sha256 == self.start.model_sha256 and self.fitted.before is not None:
            return self.fitted.before
        rows = self.rendered.rows[self.fitted.held]
        said = Predictor(bundle).predict(self.rendered.images[rows]).probabilities
        return said[:, [bundle.labels.index(label) for label in self.start.labels]]

    def _of_kept(self, bundle: Bundle) -> NDArray[np.float32] | None:
        """Return what a bundle says of the images that the start keeps; None where its features are others."""
        if self.kept is None or self.fitted.remembered is None:
            return None
        if bundle.model_sha256 == self.start.model_sha256:
            return self.fitted.remembered[0]
        return said_of(bundle, self.kept) if of_one_line(bundle, self.start) else None


def rival_at(out: Path, start: Bundle, *, anyway: bool) -> Bundle | None:
    """Return the bundle that lies at ``--out``, None where there is none, or it is replaced ``anyway``.

    UsageError where it cannot be compared with what goes on from ``start``.
    """
    if anyway or not (out / SPEC_NAME).is_file():
        return None
    try:
        bundle = load(out, RENDERING_VERSION)
        if set(bundle.labels) != set(start.labels):
            fail(str(out), "labels", f"{', '.join(start.labels)}, those of --from", ", ".join(bundle.labels))
        if bundle.input_shape != start.input_shape:
            fail(str(out), "input_shape", f"{start.input_shape}, that of --from", bundle.input_shape)
    except BundleError as error:
        raise UsageError(
            f"--out {str(out)!r}: expected a bundle there that can be compared with what comes of this training, "
            f"received another ({error}); {ANYWAY}"
        ) from error
    return bundle


def of_one_line(one: Bundle, other: Bundle) -> bool:
    """Tell whether two bundles differ in their last layer alone, and keep the same images to be judged by."""
    same = one.evaluation is not None and other.evaluation is not None and one.evaluation == other.evaluation
    return same and (one.arch, one.labels) == (other.arch, other.labels)


def said_of(bundle: Bundle, kept: ReplaySet) -> NDArray[np.float32] | None:
    """Return what a bundle's last layer says of features that it keeps, float32 (N, C), not calibrated.

    None where its file does not hold that layer as numbers that can be read.
    """
    try:
        kernel, bias = read_head(read_model(bundle))
    except BundleError:
        return None
    if kernel.shape != (kept.features.shape[1], len(bundle.labels)):
        return None
    logits = kept.features.astype(np.float32) @ kernel + bias
    shares = np.exp(logits - logits.max(axis=1, keepdims=True))
    result: NDArray[np.float32] = (shares / shares.sum(axis=1, keepdims=True)).astype(np.float32)
    return result


def reasons(told: Mapping[str, Any]) -> list[str]:
    """Return why what came after the bundle that ``told`` compares it with is worse; see the rule above."""
    kept, found = told.get(REMEMBERED), []
    if kept:
        found += _worse_on(kept)
    before, after = told["before"]["right"], told["after"]["right"]
    if told["trained_on"]:
        if not kept:
            found.append(
                f"nothing to compare them by: {told['name']} was trained on all {told['images']:,} images at hand, and "
                "there are no evaluation images that both keep"
            )
    elif after < before:
        found.append(f"of {told['images']:,} images at hand {before:,} were right and {after:,} are")
    return found


def _worse_on(kept: Mapping[str, Any]) -> list[str]:
    """Return what got worse on the images that the bundle keeps, beyond what is allowed."""
    before, after, found = kept["before"], kept["after"], []
    fallen = kept["best_of_line"] - after["balanced_accuracy"]
    if fallen > BALANCED and fallen * kept["images"] >= LOST:
        shares = f"{before['balanced_accuracy']:.1%} → {after['balanced_accuracy']:.1%}"
        if kept["best_of_line"] > before["balanced_accuracy"]:
            shares += f", and {kept['best_of_line']:.1%} earlier in its line"
        found.append(f"balanced accuracy on its {kept['images']:,} evaluation images {shares}")
    old, new = (recalls(figures, kept["by_class"]) for figures in (before, after))
    drawn = kept.get("intervals", {}).get("classes", {})
    for label in old:
        interval = drawn.get(label, {}).get("recall")
        if new[label] - old[label] < -RECALL and interval and interval[1] < 0:
            found.append(f"recall of {label} there {old[label]:.1%} → {new[label]:.1%}")
    return found


def beside_of(out: Path) -> Path:
    """Return where the bundle goes that is not to replace that at ``out``: beside it."""
    return out.absolute().with_name(f"{out.absolute().name}.refused")


def refusal(out: Path, rival: Bundle, why: tuple[str, ...], beside: Path) -> str:
    """Return the words of the error for a bundle that is not replaced, while the new one lies ``beside``."""
    return (
        f"--out {str(out)!r}: expected a model no worse than {rival.name}, which lies there, received a worse one: "
        f"{'; '.join(why)}. It is not replaced; the new one is in {str(beside)!r}; {ANYWAY}"
    )
