"""The model card: what a bundle was trained on and what was measured, in Markdown; every number comes from a run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dicomsort.records import OTHER

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from dicomsort.training.export import Conversion

WORST = 12
LISTED = 20


@dataclass(frozen=True, slots=True)
class Story:
    """What the card tells: the bundle's fields, the figures of metrics.json, and the words of the run."""

    spec: Mapping[str, Any]
    figures: Mapping[str, Any]
    summary: str
    recipe: Mapping[str, object]
    split: str
    held_out: str
    notes: Sequence[str]
    kept: Conversion
    conversions: Sequence[Conversion]
    skipped: Sequence[tuple[str, str]]


def write_card(story: Story) -> str:
    """Return the card's text."""
    parts = (
        [f"# Model card: {story.spec['name']}", "", f"Architecture `{story.spec['arch']}`: {story.summary}."],
        _data(story),
        _figures(story),
        _confusion(story),
        _sources(story),
        _confidence(story),
        _speed(story),
        _limits(story),
    )
    return "\n\n".join("\n".join(part) for part in parts if part) + "\n"


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    """Return a Markdown table's lines; all columns but the first are numbers, or short."""
    lines = ["| " + " | ".join(head) + " |", "|---" + "|---:" * (len(head) - 1) + "|"]
    return lines + ["| " + " | ".join(str(cell).replace("|", "\\|") for cell in row) + " |" for row in rows]


def _data(story: Story) -> list[str]:
    training = story.spec["training"]
    lines = ["## Trained on", "", *table(("class", "images"), training["images"].items()), ""]
    lines += [
        f"Fingerprint of the files (SHA-256): `{training['fingerprint']}`. The images are not part of the bundle;"
    ]
    lines += ["their licences are those of their sources.", ""]
    lines += ["Recipe: " + ", ".join(f"{name} {value}" for name, value in story.recipe.items()) + "."]
    lines += [f"Held out for the learning curves (`accuracy.png`, `loss.png`): {story.split}."]
    if story.skipped:
        lines += ["", f"Skipped, being no readable image: {len(story.skipped)} files.", ""]
        lines += [f"- `{path}`: {reason}" for path, reason in story.skipped[:LISTED]]
        lines += [f"- … and {len(story.skipped) - LISTED} more"] if len(story.skipped) > LISTED else []
    return lines


def _figures(story: Story) -> list[str]:
    figures = story.figures
    lines = ["## Measured on held-out images", "", f"Held out by {story.held_out}.", ""]
    rows: list[tuple[str, object]] = [
        ("images", figures["images"]),
        ("accuracy", _percent(figures["accuracy"])),
        ("balanced accuracy", _percent(figures["balanced_accuracy"])),
    ]
    if other := figures.get("without_other"):
        rows += [
            ("accuracy, OTHER left out", _percent(other["accuracy"])),
            ("balanced accuracy, OTHER left out", _percent(other["balanced_accuracy"])),
        ]
    if "mean_recall_by_source" in figures:
        rows += [("mean recall by class and source", _percent(figures["mean_recall_by_source"]))]
    rows += [("expected calibration error", f"{figures['ece']:.3f}"), ("log loss", f"{figures['log_loss']:.3f}")]
    lines += [*table(("figure", "value"), rows), ""]
    return lines + table(
        ("class", "precision", "recall", "F1", "images"),
        (
            (label, _percent(row["precision"]), _percent(row["recall"]), _percent(row["f1"]), row["support"])
            for label, row in figures["classes"].items()
        ),
    )


def _confusion(story: Story) -> list[str]:
    matrix = story.figures["confusion_matrix"]
    rows = zip(matrix["labels"], matrix["rows_are_truth"], strict=True)
    return ["Confusion (rows: truth):", "", *table(("", *matrix["labels"]), ((label, *row) for label, row in rows))]


def _sources(story: Story) -> list[str]:
    worst = [row for row in story.figures.get("sources", ()) if row["recall"] < 1][:WORST]
    if not worst:
        return []
    rows = ((r["source"], r["label"], r["images"], _percent(r["recall"]), r["mistaken_for"]) for r in worst)
    head = ("source", "class", "images", "recall", "mostly mistaken for")
    return ["Where it is worst (a source is a folder in a class's folder):", "", *table(head, rows)]


def _confidence(story: Story) -> list[str]:
    lines = ["## Confidence", "", f"Temperature {story.spec['temperature']}; thresholds on calibrated confidence, both"]
    lines += ["fitted on the same held-out predictions, so the accuracies beside them flatter a little.", ""]
    rows = (
        (name, row["threshold"], _percent(row["coverage"]), _percent(row["accuracy"]))
        for name, row in story.figures["thresholds"].items()
    )
    lines += table(("threshold", "value", "images at or above", "right among them"), rows)
    return lines + (["", *story.notes] if story.notes else [])


def _speed(story: Story) -> list[str]:
    lines = [
        "## LiteRT",
        "",
        f"`model.tflite` holds {story.kept.precision} weights. Best of a few runs, one thread:",
        "",
    ]
    head = ("weights", "MB", "ms an image, batch 1", "ms an image, batch 32", "largest difference from Keras")
    rows = ((c.precision, f"{len(c.model) / 1e6:.1f}", c.single, c.batch, c.difference) for c in story.conversions)
    return lines + table(head, rows)


def _limits(story: Story) -> list[str]:
    lines = ["## Limits", "", "- A sorter's model, not a medical device: it names the kind of image, nothing in it."]
    lines += ["- It knows only these classes. What is none of them gets one of their names all the same, at times a"]
    lines += ["  confident one."]
    if OTHER in story.spec["labels"]:
        lines += [f"- {OTHER} is what these images of it show; another kind of image may be taken for a class."]
    if "sources" not in story.figures:
        lines += [
            "- The held-out images come from the same sources as the training images. On other scanners, body parts"
        ]
        lines += ["  and exports it will be right less often than the figures above say."]
    else:
        lines += [
            "- The figures are for sources that the model judged never saw; a source unlike all of these may do worse."
        ]
    return lines


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"
