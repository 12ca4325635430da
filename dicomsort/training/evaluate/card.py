"""The model card: what a bundle was trained on and what was measured, in Markdown.

It is made of bundle.json and metrics.json alone, so that training and evaluation write the same one; every number in it
was measured or counted.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dicomsort.errors import counted
from dicomsort.records import OTHER
from dicomsort.report import visible
from dicomsort.training.evaluate import compare
from dicomsort.training.evaluate.predictions import NESTED
from dicomsort.training.evaluate.tables import Table, number, percent, sizes, source_of, tables, with_interval
from dicomsort.training.fit.hyperparameters import OTHER_SOURCES
from dicomsort.training.fit.quantize import words
from dicomsort.training.models import replay_set
from dicomsort.training.models.tflite_weights import INT8

Content = Mapping[str, Any]  # of bundle.json (spec), of metrics.json (report), of its part on the training (run)
LISTED = 20
WEAK, WEAK_LISTED = 0.8, 12  # the recall below which a source is named; sources named at most
MIN_OF_SOURCE = 10  # images of a source that is named
USE = [
    "## Intended use",
    "",
    "Sorting image files by the kind of image they show, together with their headers, where a person looks at what",
    "is held back. Not a medical device: it says nothing of what an image shows of a patient, and nothing may be",
    "diagnosed, triaged or left out by it.",
]


def write_card(spec: Content, report: Content) -> str:
    """Return the card's text from the content of bundle.json and of metrics.json."""
    run = report.get("training_run", {})
    summary = f": {run['summary']}" if "summary" in run else ""
    parts = (
        [f"# Model card: {spec['name']}", "", f"Architecture `{spec['arch']}`{summary}."],
        _in_short(report),
        USE,
        _limits(spec, report),
        _measured(spec, report, run),
        _abstaining(spec, report, run),
        _speed(run),
        _evaluation(run),
        _files(run),
        _data(spec, run),
    )
    return "\n\n".join("\n".join(part) for part in parts if part) + "\n"


def markdown(table: Table) -> list[str]:
    """Return a table as Markdown lines; all columns but the first are numbers, or short."""
    head = ["| " + " | ".join(table.head) + " |", "|---" + "|---:" * (len(table.head) - 1) + "|"]
    return head + ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in table.rows]


def _in_short(report: Content) -> list[str]:
    """Return what a person asks first: how often it decides, how often it is right then, and where it is not."""
    name = "decide_and_distance" if "decide_and_distance" in report["thresholds"] else "decide"
    decided = report["thresholds"].get(name, {})
    if "decided" not in report or decided.get("accuracy") is None:
        return []
    right = with_interval(report, ("thresholds", name, "accuracy"))
    where = "of sources that it never saw" if report["by_source"] else "that it never saw, of sources that it knows"
    if report.get("trained_on"):
        where = "some of which it was trained on"
    rows = []
    for label, row in report["classes"].items():
        part = report["decided"][label]
        rows.append((label, f"{row['support']:,}", *map(percent, (row["recall"], part["share"], part["right"]))))
    head = ("class", "images", "first choice is right", "decided alone", "right among those named so")
    return [
        "## In short",
        "",
        f"Of {counted(report['images'], 'image')} {where}, it decides **{percent(decided['coverage'])}** alone",
        f"and leaves the rest to a person. Of those that it decides, **{right}** are right.",
        "",
        *markdown(Table("", head, rows)),
        *_weak(report),
    ]


def _weak(report: Content) -> list[str]:
    """Return the sources that the model is bad at, the worst first; of these a person should expect little."""
    sources = [row for row in report.get("sources", ()) if row["images"] >= MIN_OF_SOURCE]
    weak = [row for row in sources if row["recall"] < WEAK]
    if not weak:
        return []
    listed = [
        f"- {source_of(row)}: {percent(row['recall'])} of {row['label']}, mostly taken for {row['mistaken_for']}"
        for row in weak[:WEAK_LISTED]
    ]
    listed += [f"- … and {len(weak) - WEAK_LISTED} more"] if len(weak) > WEAK_LISTED else []
    good = f"Its first choice is right for {WEAK:.0%} or more of the images"
    return ["", f"{good} of {len(sources) - len(weak)} of {len(sources)} sources. The others are:", "", *listed]


def _data(spec: Content, run: Content) -> list[str]:
    training, data = spec["training"], run.get("data", {})
    sources = data.get("sources", {})
    columns = ("class", "images", "sources") if sources else ("class", "images")
    rows = [
        (label, f"{count:,}", *([str(len(sources[label]))] if sources else []))
        for label, count in (training.get("images") or {}).items()
    ]
    lines = ["## Trained on", "", *markdown(Table("", columns, rows))]
    for label, counts in sources.items():
        listed = ", ".join(f"{visible(source)} {count:,}" for source, count in counts.items())
        lines += ["", f"Sources of {label} (images): {listed}."]
    lines += ["", f"Fingerprint of the files (SHA-256): `{training.get('fingerprint') or 'not known'}`."]
    lines += ["The images are not part of the bundle."]
    if licences := data.get("licences"):
        lines += ["", "Licences, as the data set's manifest states them (images):", ""]
        lines += [f"- {licence}: {count:,}" for licence, count in licences.items()]
    else:
        lines += ["No licences were listed with them (`manifest.csv`): they are those of their sources."]
    recipe = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in (training.get("recipe") or {}).items())
    lines += ["", f"Recipe: {recipe or 'not known'}."]
    if chosen := run.get("course", {}).get("kept"):
        lines += [f"Weights kept: {chosen}."]
    if subclasses := run.get("course", {}).get("subclasses"):
        lines += [f"Learnt beside the classes, and not kept: {subclasses} subclasses."]
    if split := run.get("split"):
        lines += [f"Held out for the learning curves (`accuracy.png`, `loss.png`): {split}."]
    return lines


def _measured(spec: Content, report: Content, run: Content) -> list[str]:
    drawn = report["bootstrap"]
    lines = ["## Measured", "", f"Images: {report['held_out']}."]
    if "intervals" in report:
        lines += [
            f"Intervals hold 95 % of {drawn['resamples']:,} bootstrap resamples (seed {drawn['seed']}) of",
            f"{drawn['clusters']:,} {drawn['unit']}s, each drawn as a whole; that of the calibration error is given",
            "less the bias of resampling;",
            "one from 100.0% to 100.0% says that no mistake was seen, not that none will be.",
        ]
    else:
        lines += [f"No intervals: there is one {drawn['unit']} only to resample."]
    if other := run.get("course", {}).get(OTHER_SOURCES):
        lines += ["", *on_other_sources(other)]
    if started := run.get(compare.KEY):
        lines += ["", f"{'. '.join(compare.sentences(started))}."]
    lines += ["", "What flatters these figures:", "", *_flatters(report)]
    for table in tables(report, spec["thresholds"]):
        lines += ["", f"**{table.title}**", "", *markdown(table)]
    if "shortcuts" in report:
        lines += ["", "The shortcut tests change the rendered image in ways that leave what it shows as it is; the"]
        lines += ["change is against the same models' accuracy on the same images, unchanged."]
    return lines + _skipped(report["skipped"])


def on_other_sources(other: Content) -> list[str]:
    """Return in a sentence, of two lines, what a training without some sources makes of their images."""
    right, balanced = percent(other["accuracy"]), percent(other["balanced_accuracy"])
    return [
        f"On other sources, expect less: a training of the same recipe without {other['sources']:,} of the sources was",
        f"right about {right} of their {counted(other['images'], 'image')} (balanced accuracy {balanced}).",
    ]


def _flatters(report: Content) -> list[str]:
    lines = []
    if report.get("trained_on"):
        lines += [f"- The model was trained on {report['trained_on']:,} of these {counted(report['images'], 'image')}."]
    if not report["by_source"]:
        lines += [
            "- The images may come from the sources that the model was trained on; on others it is right less often."
        ]
    if report.get("calibration") == NESTED:
        if (report.get("training_run") or {}).get("course", {}).get("class_bias"):
            lines += ["- The bias of the classes, a number each, was fitted on the held-out predictions of all folds."]
        lines += [
            "- Temperature and thresholds of each image were fitted on other folds' held-out predictions, never on its",
            "  own; but the models behind those predictions had seen images of its fold.",
            "- Settings of the recipe that were chosen by looking at these figures, or at figures of the same images,",
            "  are chosen in their favour.",
        ]
    return [*lines, "- A label that is wrong in the data set counts as it stands, for the model or against it."]


def _skipped(skipped: Mapping[str, str]) -> list[str]:
    if not skipped:
        return []
    lines = ["", f"Skipped, being no readable image: {counted(len(skipped), 'file')}.", ""]
    lines += [f"- `{path}`: {reason}" for path, reason in list(skipped.items())[:LISTED]]
    return lines + ([f"- … and {len(skipped) - LISTED} more"] if len(skipped) > LISTED else [])


def _abstaining(spec: Content, report: Content, run: Content) -> list[str]:
    lines = [
        "## When it abstains",
        "",
        f"Temperature {spec['temperature']}; it decides from a confidence of {number(spec['thresholds']['decide'])}.",
        "So confident, it contradicts a clear header where, of what it gives to the header's class and to its own, its",
        f"own has {number(spec['thresholds']['contradict'])} or more. `coverage.png` shows the share that is right",
        "against the share that is decided, with the thresholds.",
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
    return lines + [f"\n{note}" for note in run.get("notes", ())]


def _speed(run: Content) -> list[str]:
    conversions = run.get("litert", ())
    if not conversions:
        return []
    chosen = next(conversion["precision"] for conversion in conversions if conversion["kept"])
    lines = ["## LiteRT", "", f"`model.tflite` computes in {chosen}."]
    if report := run.get(INT8):
        lines += [f"{words(report)}."]
    lines += ["Best of a few runs when it was converted, one thread; the difference is the largest of any probability:"]
    head = ("numbers", "MB", "ms an image, batch 1", "ms an image, batch 32", "difference from Keras")
    rows = [
        (c["precision"], f"{c['megabytes']:.1f}", str(c["single"]), str(c["batch"]), str(c["difference"]))
        for c in conversions
    ]
    return [*lines, "", *markdown(Table("", head, rows))]


def _evaluation(run: Content) -> list[str]:
    if not (report := run.get(replay_set.KEY)):
        return []
    lines = ["## Evaluation images", ""]
    if isinstance(report, str):
        return [*lines, f"The bundle keeps no features of them: {report}."]
    use = "`train --from` rehearses the one part and is judged by the other, which shares no "
    use += f"{report['unit']} with it and which no such training learns from."
    lines += [f"{replay_set.words(report)}.", use]
    if report["trained_on"]:
        lines += ["What the network was trained on shows what a later training forgets, and is no measure of accuracy."]
    return lines


def _files(run: Content) -> list[str]:
    table = sizes(run)
    if not table.rows:
        return []
    rest = "All other files are small. Sorting needs `bundle.json` and `model.tflite` alone."
    return [f"## {table.title}", "", *markdown(table), "", rest]


def _limits(spec: Content, report: Content) -> list[str]:
    lines = ["## Limits", "", "- It knows only these classes. An image of another kind may still get one of their"]
    lines += ["  names, at times with a high confidence."]
    if OTHER in spec["labels"]:
        lines += [f"- {OTHER} is what the images of it show; another kind of image may be taken for a class."]
    if report["by_source"]:
        lines += [
            "- The figures are for sources that the model judged never saw; one unlike all of these may do worse."
        ]
    else:
        lines += ["- On other scanners, body parts and exports it will be right less often than these figures say."]
    if row := next((row for row in report.get("sources", ()) if row["recall"] < 1), None):
        share = f"{percent(row['recall'])} of {counted(row['images'], 'image')} right"
        lines += [f"- It is weakest on {row['source'] or 'images without a source'} ({row['label']}): {share}."]
    return lines
