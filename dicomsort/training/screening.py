"""Whether a screen is worth having, and from what confidence on it may confirm: the arithmetic, without TensorFlow.

A screen is the network in integers, which says nearly the same and sooner. ``sort`` shows it the one frame that checks
a clear header, and asks the model wherever the screen does not confirm that header's class.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from dicomsort.bundle import calibrate
from dicomsort.classify import Judge, evidence
from dicomsort.records import OTHER, Examined, Found, Group, Grouping, Header, Kind, Look, Vote
from dicomsort.tasks import confidence_in

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

KEY = "screen"
FASTER = 1.3  # times as fast as the model, or there is no screen
MIN_IMAGES = 500  # fewer say nothing about what is rare
# Confidences from which a screen may confirm; the least is so far above one half that the model hardly says otherwise.
LEAST, MOST, STEP = 0.6, 0.99, 0.005
ALLOWED = 1e-4  # of all (image, wrong label): so often may it confirm what the model would deny, and better never

_ANY = Group(0, Grouping("", "", ""), 1, 0, Examined(Found("", 0, 0, 0, 0), Header(Kind.DICOM)))


class Said(NamedTuple):
    """What a model says of n images.

    ``probabilities``: float32 (n, C), not calibrated; ``distances``: float32 (n,), None where it tells none.
    """

    probabilities: NDArray[np.float32]
    distances: NDArray[np.float32] | None


class Compared(NamedTuple):
    """What a model and its screen say of the same n images; ``what`` says which, ``truth``: int64 (n,)."""

    what: str
    truth: NDArray[np.int64]
    model: Said
    screen: Said


class Made(NamedTuple):
    """A screen's file, milliseconds an image that it and the model take (batch 1), and what was compared."""

    content: bytes
    single: float
    model_single: float
    compared: Sequence[Compared] = ()

    @property
    def times(self) -> float:
        """How many times as fast as the model the screen is."""
        return self.model_single / max(self.single, 0.01)


class Limits(NamedTuple):
    """What of a bundle decides about images: labels, temperature and thresholds."""

    labels: Sequence[str]
    temperature: float
    decide: float
    contradict: float
    distance: float | None


class Settled(NamedTuple):
    """From which confidence a screen may confirm, None where there shall be none; and what metrics.json tells of it."""

    confirm: float | None
    told: dict[str, Any]


class _Tally(NamedTuple):
    """What a screen would confirm: its confidence (n,), whether that is the right label, or one that is denied (n,)."""

    confidence: NDArray[np.float64]
    right: NDArray[np.bool_]
    denied: NDArray[np.bool_]
    counted: NDArray[np.bool_]
    pairs: int


def pointless(header_classes: Mapping[str, str], images: int) -> str:
    """Return why no screen need be made, "" where one may be worth it; ``images`` are held out to measure it on."""
    if not header_classes:
        return "no header names one of these classes"
    if images < MIN_IMAGES:
        return f"{images:,} images were held out, and {MIN_IMAGES} are needed to tell what it gets wrong"
    return ""


def settle(made: Made | str, limits: Limits) -> Settled:
    """Choose the least confidence from which the screen confirms nothing that the model would deny, or next to nothing.

    ``made`` may be the reason why there is none.
    """
    if isinstance(made, str):
        return Settled(None, {"kept": False, "reason": made})
    times = round(made.times, 2)
    told: dict[str, Any] = {"single": made.single, "model_single": made.model_single, "times_as_fast": times}
    if made.times < FASTER:
        reason = f"it is {times} times as fast as the model where it was made, and {FASTER} are wanted"
        return Settled(None, {"kept": False, "reason": reason, **told})
    tallies = [_tally(compared, limits) for compared in made.compared]
    candidates = [float(c) for c in np.round(np.arange(LEAST, MOST + STEP / 2, STEP), 4)]
    confirm = next(
        (
            c
            for allowed in (0.0, ALLOWED)
            for c in candidates
            if all(_wrong(t, c) <= allowed * t.pairs for t in tallies)
        ),
        MOST,
    )
    figures = [_figures(each.what, tally, confirm) for each, tally in zip(made.compared, tallies, strict=True)]
    told |= {"confirm": confirm, "megabytes": round(len(made.content) / 1e6, 2), "on": figures}
    reason = _reason_against(figures, made)
    return Settled(None if reason else confirm, {"kept": not reason, **({"reason": reason} if reason else {}), **told})


def _reason_against(figures: Sequence[Mapping[str, Any]], made: Made) -> str:
    """Return why a screen is dropped, "" where it is safe and saves time."""
    for on in figures:
        if on["wrong"] > ALLOWED * on["pairs"]:
            return f"even at {MOST} it confirms {on['wrong']:,} of {on['pairs']:,} wrong labels against the model"
        if on["confirmed"] * made.model_single <= made.single:
            return f"it confirms {on['confirmed']:.1%} of right labels, too few to save time"
    return ""


def words(told: Mapping[str, Any]) -> str:
    """Say in a sentence without a stop what ``settle`` told."""
    if not told["kept"]:
        return f"No screen: {told['reason']}"
    found = "; ".join(
        f"confirms {on['confirmed']:.1%} of right labels, and {on['wrong']:,} of {on['pairs']:,} wrong ones that the "
        f"model would deny ({on['what']})"
        for on in told["on"]
    )
    return f"Screen: {told['times_as_fast']} times as fast as the model; from {told['confirm']} on it {found}"


def _tally(compared: Compared, limits: Limits) -> _Tally:
    judge = Judge(tuple(limits.labels), {}, limits.decide, limits.contradict, distance=limits.distance)
    confidence = np.zeros(len(compared.truth))
    denied = np.zeros(len(compared.truth), bool)
    model, screen = (_looks(said, limits.temperature) for said in (compared.model, compared.screen))
    first = compared.screen.probabilities.argmax(1)
    for i, best in enumerate(first):
        label = limits.labels[best]
        confidence[i] = confidence_in(label, screen[i], judge.labels, judge.distance)
        if confidence[i] and best != compared.truth[i]:
            vote = Vote(model[i].probabilities, distance=model[i].distance)
            denied[i] = evidence.Case(judge, _ANY, evidence.Said((label,)), vote).is_denied
    other = limits.labels.index(OTHER) if OTHER in limits.labels else -1
    pairs = len(first) * (len(limits.labels) - 1)
    return _Tally(confidence, first == compared.truth, denied, compared.truth != other, pairs)


def _looks(said: Said, temperature: float) -> list[Look]:
    probabilities = calibrate(said.probabilities, temperature).tolist()
    distances = [None] * len(probabilities) if said.distances is None else said.distances.tolist()
    return [Look(tuple(p), distance=d) for p, d in zip(probabilities, distances, strict=True)]


def _wrong(tally: _Tally, confirm: float) -> int:
    return int(((tally.confidence >= confirm) & tally.denied).sum())


def _figures(what: str, tally: _Tally, confirm: float) -> dict[str, Any]:
    """Return the share of class images whose right label is confirmed, and how many wrong ones against the model."""
    confirmed = ((tally.confidence >= confirm) & tally.right)[tally.counted]
    wrong = _wrong(tally, confirm)
    return {
        "what": what,
        "images": len(tally.right),
        "confirmed": round(float(confirmed.mean()), 4) if len(confirmed) else 0.0,
        "pairs": tally.pairs,
        "wrong": wrong,
        "wrongly_confirmed": round(wrong / tally.pairs, 6),
    }
