"""What a training that went on from a bundle made better and worse, on the same images."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from dicomsort.bundle import Bundle

KEY = "started_from"


def compare(
    start: Bundle, truth: NDArray[np.int64], before: NDArray[np.float32], after: NDArray[np.float32]
) -> dict[str, Any]:
    """Return what metrics.json tells of the bundle ``start`` and what came of it, ready for JSON.

    ``before`` is what the bundle says, ``after`` what models say that went on from it without the image's fold; both
    float32 (N, C). ``truth``: int64 (N,), 0..C-1.
    """
    told = {"name": start.name, "model_sha256": start.model_sha256}
    return told | {
        "before": _figures(start.labels, truth, before.argmax(1)),
        "after": _figures(start.labels, truth, after.argmax(1)),
    }


def words(told: Mapping[str, Any]) -> str:
    """Say what ``compare`` found in a sentence."""
    before, after = told["before"], told["after"]
    found = f"{told['name']}, from which it started, has {_shares(before)} of the same images right"
    changes = {label: after["recall"][label] - recall for label, recall in before["recall"].items()}
    for name, sign in (("better", 1), ("worse", -1)):
        moved = [label for label, change in changes.items() if change * sign > 0]
        shown = ", ".join(f"{label} {before['recall'][label]:.1%} → {after['recall'][label]:.1%}" for label in moved)
        found += f"; {name}: {shown or 'none'}"
    return found


def lineage(bundle: Bundle) -> list[dict[str, Any]]:
    """Return what bundle.json tells of the bundle that a model was started from, and of those before that."""
    earlier = bundle.training.get(KEY)
    told = {"name": bundle.name, "model_sha256": bundle.model_sha256, "fingerprint": bundle.training.get("fingerprint")}
    return [told, *(earlier if isinstance(earlier, list) else ())]


def _figures(labels: Sequence[str], truth: NDArray[np.int64], answers: NDArray[np.intp]) -> dict[str, Any]:
    recall = {label: round(float(np.mean(answers[truth == i] == i)), 4) for i, label in enumerate(labels) if i in truth}
    balanced = round(float(np.mean(list(recall.values()))), 4)
    return {"accuracy": round(float(np.mean(answers == truth)), 4), "balanced_accuracy": balanced, "recall": recall}


def _shares(figures: Mapping[str, Any]) -> str:
    return f"{figures['accuracy']:.1%} (balanced {figures['balanced_accuracy']:.1%})"
