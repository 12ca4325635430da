"""The model card: what a bundle was trained on and what was measured, in Markdown.

It is made of bundle.json and metrics.json alone, so that training and evaluation write the same one; every number in it
was measured or counted.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dicomsort.records import OTHER
from dicomsort.report import visible
from dicomsort.training.evaluate import compare
from dicomsort.training.evaluate.predictions import NESTED
from dicomsort.training.evaluate.tables import number, percent, sizes, tables
from dicomsort.training.fit.quantize import words
from dicomsort.training.models import replay_set
from dicomsort.training.models.tflite_weights import INT8

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from dicomsort.training.evaluate.tables import Table

LISTED = 20


@dataclass(frozen=True, slots=True)
class _Content:
    """What the card tells: bundle.json, metrics.json, and of the latter what is about the training."""

    spec: Mapping[str, Any]
    report: Mapping[str, Any]
    run: Mapping[str, Any]


def write_card(spec: Mapping[str, Any], report: Mapping[str, Any]) -> str:
    """Return the card's text from the content of bundle.json and of metrics.json."""
    content = _Content(spec, report, report.get("training_run", {}))
    summary = f": {content.run['summary']}" if "summary" in content.run else ""
    parts = (
        [f"# Model card: {spec['name']}", "", f"Architecture `{spec['arch']}`{summary}."],
        _use(),
        _data(content),
        _measured(content),
        _abstaining(content),
        _speed(content),
        _evaluation(content),
        _files(content),
        _limits(content),
    )
    return "\n\n".join("\n".join(part) for part in parts if part) + "\n"


def markdown(table: Table) -> list[str]:
    """Return a table as Markdown lines; all columns but the first are numbers, or short."""
    head = ["| " + " | ".join(table.head) + " |", "|---" + "|---:" * (len(table.head) - 1) + "|"]
    return head + ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in table.rows]


def _use() -> list[str]:
    return [
        "## Intended use",
        "",
        "Sorting image files by the kind of image they show, together with their headers, where a person looks at what",
        "is held back. Not a medical device: it says nothing of what an image shows of a patient, and nothing may be",
        "diagnosed, triaged or left out by it.",
    ]


def _data(content: _Content) -> list[str]:
    training, data = content.spec["training"], content.run.get("data", {})
    sources = data.get("sources", {})
    head = "| class | images | sources |" if sources else "| class | images |"
    lines = ["## Trained on", "", head, "|---|---:|---:|" if sources else "|---|---:|"]
    for label, count in training["images"].items():
        lines += [f"| {label} | {count:,} | {len(sources[label])} |" if sources else f"| {label} | {count:,} |"]
    for label, counts in sources.items():
        listed = ", ".join(f"{visible(source)} {count:,}" for source, count in counts.items())
        lines += ["", f"Sources of {label} (images): {listed}."]
    lines += ["", f"Fingerprint of the files (SHA-256): `{training['fingerprint']}`."]
    lines += ["The images are not part of the bundle."]
    if licences := data.get("licences"):
        lines += ["", "Licences, as the data set's manifest states them (images):", ""]
        lines += [f"- {licence}: {count:,}" for licence, count in licences.items()]
    else:
        lines += ["No licences were listed with them (`manifest.csv`): they are those of their sources."]
    recipe = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in training.get("recipe", {}).items())
    lines += ["", f"Recipe: {recipe}."]
    if chosen := content.run.get("course", {}).get("kept"):
        lines += [f"Weights kept: {chosen}."]
    if split := content.run.get("split"):
        lines += [f"Held out for the learning curves (`accuracy.png`, `loss.png`): {split}."]
    return lines


def _skipped(skipped: Mapping[str, str]) -> list[str]:
    if not skipped:
        return []
    lines = ["", f"Skipped, being no readable image: {len(skipped)} files.", ""]
    lines += [f"- `{path}`: {reason}" for path, reason in list(skipped.items())[:LISTED]]
    return lines + ([f"- … and {len(skipped) - LISTED} more"] if len(skipped) > LISTED else [])


def _measured(content: _Content) -> list[str]:
    report, drawn = content.report, content.report["bootstrap"]
    lines = ["## Measured", "", f"Images: {report['held_out']}."]
    if "intervals" in report:
        lines += [f"Intervals hold 95 % of {drawn['resamples']:,} bootstrap resamples (seed {drawn['seed']}) of"]
        lines += [
            f"{drawn['clusters']:,} {drawn['unit']}s, each drawn as a whole; that of the calibration error is given"
        ]
        lines += [
            "less the bias of resampling;",
            "one from 100.0% to 100.0% says that no mistake was seen, not that none will be.",
        ]
    else:
        lines += [f"No intervals: there is one {drawn['unit']} only to resample."]
    if started := content.run.get(compare.KEY):
        lines += ["", f"{compare.words(started)}."]
    lines += _flatters(content)
    for table in tables(report, content.spec["thresholds"]):
        lines += ["", f"**{table.title}**", "", *markdown(table)]
    if "shortcuts" in report:
        lines += ["", "The shortcut tests change the rendered image in ways that leave what it shows as it is; the"]
        lines += ["change is against the same models' accuracy on the same images, unchanged."]
    return lines + _skipped(report["skipped"])


def _flatters(content: _Content) -> list[str]:
    """Say what makes the figures look better than they are."""
    report = content.report
    lines = ["", "What flatters these figures:", ""]
    if report.get("trained_on"):
        lines += [f"- The model was trained on {report['trained_on']:,} of these {report['images']:,} images."]
    if not report["by_source"]:
        lines += [
            "- The images may come from the sources that the model was trained on; on others it is right less often."
        ]
    if report.get("calibration") == NESTED:
        lines += [
            "- Temperature and thresholds of each image were fitted on other folds' held-out predictions, never on its",
            "  own; but the models behind those predictions had seen images of its fold.",
            "- Settings of the recipe that were chosen by looking at these figures, or at figures of the same images,",
            "  are chosen in their favour.",
        ]
    lines += ["- A label that is wrong in the data set counts as it stands, for the model or against it."]
    return lines


def _abstaining(content: _Content) -> list[str]:
    spec, report = content.spec, content.report
    limits = spec["thresholds"]
    lines = ["## When it abstains", "", f"Temperature {spec['temperature']}; it decides from a confidence of"]
    lines += [
        f"{number(limits['decide'])} on. So confident, it contradicts a clear header where, of what it gives to the",
        f"header's class and to its own, its own has {number(limits['contradict'])} or more.",
    ]
    if "out_of_distribution" in report:
        lines += [
            "What lies farther from the training images' features than a limit is out of distribution, whatever the",
            f"confidence: {percent(report['out_of_distribution'])} of the images judged here.",
        ]
    else:
        lines += [
            "It has no measure of distance: what is unlike all it was trained on is held back by low confidence alone."
        ]
    return lines + [f"\n{note}" for note in content.run.get("notes", ())]


def _speed(content: _Content) -> list[str]:
    conversions: Sequence[Mapping[str, Any]] = content.run.get("litert", ())
    if not conversions:
        return []
    chosen = next(conversion["precision"] for conversion in conversions if conversion["kept"])
    lines = ["## LiteRT", "", f"`model.tflite` computes in {chosen}."]
    if report := content.run.get(INT8):
        lines += [f"{words(report)}."]
    lines += ["Best of a few runs when it was converted, one thread; the difference is the largest of any probability:"]
    lines += [""]
    lines += ["| numbers | MB | ms an image, batch 1 | ms an image, batch 32 | difference from Keras |"]
    lines += ["|---|---:|---:|---:|---:|"]
    return lines + [
        f"| {c['precision']} | {c['megabytes']:.1f} | {c['single']} | {c['batch']} | {c['difference']} |"
        for c in conversions
    ]


def _evaluation(content: _Content) -> list[str]:
    if not (report := content.run.get(replay_set.KEY)):
        return []
    head = ["## Evaluation images", ""]
    if isinstance(report, str):
        return [*head, f"The bundle keeps no features of them: {report}."]
    lines = [*head, f"{replay_set.words(report)}."]
    lines += ["`train --from` rehearses the one part and is judged by the other, which shares no "]
    lines[-1] += f"{report['unit']} with it and which no such training learns from."
    if report["trained_on"]:
        lines += ["What the network was trained on shows what a later training forgets, and is no measure of accuracy."]
    return lines


def _files(content: _Content) -> list[str]:
    table = sizes(content.run)
    if not table.rows:
        return []
    rest = "All other files are small. Sorting needs `bundle.json` and `model.tflite` alone."
    return [f"## {table.title}", "", *markdown(table), "", rest]


def _limits(content: _Content) -> list[str]:
    lines = ["## Limits", "", "- It knows only these classes. What is none of them may get one of their names all the"]
    lines += ["  same, at times a confident one."]
    if OTHER in content.spec["labels"]:
        lines += [f"- {OTHER} is what the images of it show; another kind of image may be taken for a class."]
    if content.report["by_source"]:
        lines += [
            "- The figures are for sources that the model judged never saw; one unlike all of these may do worse."
        ]
    else:
        lines += ["- On other scanners, body parts and exports it will be right less often than these figures say."]
    worst = [row for row in content.report.get("sources", ()) if row["recall"] < 1]
    if worst:
        row = worst[0]
        share = f"{percent(row['recall'])} of {row['images']:,} images right"
        lines += [f"- It is weakest on {row['source'] or 'images without a source'} ({row['label']}): {share}."]
    return lines
