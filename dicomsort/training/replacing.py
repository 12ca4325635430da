"""Whether what a training left may replace the bundle that lies where it shall go.

The rule, against that bundle: **worse** is a balanced accuracy on the evaluation images that both keep lower by more
than 2 points, and by 3 images, than its own or that of one before it in its line, so that no model slides down in small
steps; or a class's recall there lower by more than 8 points, where the paired interval leaves 0 out; or fewer of the
images at hand right, each judged by a model that did not see its fold, less those that the bundle was trained on.

Measured on 96 draws of 50 images from sources that a network never saw, trained on with rehearsal and without: where
the balanced accuracy on evaluation images fell by more than 2 points (11 times, all without), accuracy fell by 19 on
other sources that it never saw, and by 23 on the site's other images, on the average; where it fell by less, how much
said nothing of either.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dicomsort.bundle import Predictor, load
from dicomsort.bundle.fields import fail
from dicomsort.bundle.spec import SPEC_NAME, read_model
from dicomsort.errors import BundleError, UsageError
from dicomsort.records import RENDERING_VERSION
from dicomsort.training import comparing, seen
from dicomsort.training.restore import read_head

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from dicomsort.bundle import Bundle
    from dicomsort.training.recipe import Fitted
    from dicomsort.training.remembered import Remembered
    from dicomsort.training.tensors import Rendered

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
    kept: Remembered | None
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
        known = seen.known(bundle.training, dataset.items, digests, untold=False)
        said = comparing.Both(self._of_images(bundle), self.fitted.probabilities)
        told = comparing.compare(bundle, self.start.labels, dataset.classes(), said, known)
        before = self._of_kept(bundle)
        if before is None or self.kept is None or self.fitted.remembered is None or not len(before):
            return told
        temperatures = bundle.temperature, self.temperature
        both = comparing.Both(before, self.fitted.remembered[1])
        found = comparing.compare_remembered(self.kept, both, temperatures, digests, self.seed)
        best = max(found["before"]["balanced_accuracy"], comparing.best_of_line(bundle))
        return told | {comparing.REMEMBERED: {**found, "best_of_line": best}}

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


def said_of(bundle: Bundle, kept: Remembered) -> NDArray[np.float32] | None:
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
    kept, found = told.get(comparing.REMEMBERED), []
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
    old, new = (comparing.recalls(figures, kept["by_class"]) for figures in (before, after))
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
