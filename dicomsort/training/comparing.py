"""What a training that went on from a bundle made better and worse: on its images, and on those the bundle keeps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dicomsort.bundle import calibrate
from dicomsort.training import paired, seen
from dicomsort.training.remembered import counts
from dicomsort.training.tally import Tally

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from dicomsort.bundle import Bundle
    from dicomsort.training.remembered import Remembered

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
    kept: Remembered, said: Both, temperatures: tuple[float, float], digests: Sequence[str], seed: int
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
    told = paired.changes(one, two, seed)
    right = [answers.argmax(1) == kept.truth for answers in (said.before, said.after)]
    found = {"images": len(cluster), "by_class": counts(kept, kept.labels), "trained_on": int(kept.trained.sum())}
    found |= {
        "at_hand": int(np.isin(kept.files, seen.keys(digests)).sum()),
        "clusters": len(names),
        "unit": kept.unit,
        "agreement": paired.agreement(*right),
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
