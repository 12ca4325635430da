"""Figures for Prometheus: the text exposition format (0.0.4), written whole and put in place by a rename.

Whatever collects it (the textfile collector of node_exporter, say) meets the old file or the new one, never a half.
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from dicomsort.files import Files
from dicomsort.own_files import Replaced, beginning
from dicomsort.report import Summary
from dicomsort.report.text import printable

Labels = tuple[tuple[str, str], ...]
_ESCAPES: Final = str.maketrans({"\\": "\\\\", '"': '\\"', "\n": "\\n"})

# name -> (type, help); docs/operations.md has this table, a test compares them.
FAMILIES: Final[dict[str, tuple[str, str]]] = {
    "dicomsort_info": ("gauge", "The version that wrote this; always 1."),
    "dicomsort_last_success_timestamp_seconds": (
        "gauge",
        "When a run, or a round that found nothing new, last ended well (Unix time).",
    ),
    "dicomsort_last_run_files": ("gauge", "Files of the last run, by status and class."),
    "dicomsort_review_files": ("gauge", "Files that wait in REVIEW for a person."),
    "dicomsort_last_run_bytes": ("gauge", "Bytes of the files of the last run."),
    "dicomsort_last_run_duration_seconds": ("gauge", "How long the last run took."),
    "dicomsort_inbox_files": ("gauge", "Files that lie in the inbox."),
    "dicomsort_inbox_oldest_file_age_seconds": ("gauge", "Age of the oldest file in the inbox by its mtime, or 0."),
    "dicomsort_inbox_waiting_files": ("gauge", "Files in the inbox that no round has dealt with yet."),
    "dicomsort_inbox_oldest_waiting_age_seconds": (
        "gauge",
        "How long the file that waits longest has waited; 0: none waits.",
    ),
    "dicomsort_start_timestamp_seconds": ("gauge", "When the service began (Unix time)."),
    "dicomsort_files_total": ("counter", "Files of all runs since the service began, by status and class."),
    "dicomsort_rounds_total": ("counter", "Rounds since the service began, by how they ended."),
    "dicomsort_round_duration_seconds": ("gauge", "How long the last round took."),
    "dicomsort_failures_in_a_row": ("gauge", "Rounds that failed in a row."),
    "dicomsort_sent_total": ("counter", "Instances that a destination acknowledged, by route."),
    "dicomsort_send_failures_total": ("counter", "Instances that could not be sent, each attempt counted, by route."),
    "dicomsort_route_up": ("gauge", "Whether a route's destination could be reached when it was last tried: 1 or 0."),
}
FILE: Final = Replaced("--metrics", beginning("earlier figures", b"# HELP dicomsort_"), 0o644)


@dataclass
class Figures:
    """The samples of one file: (family, labels) -> value."""

    samples: dict[tuple[str, Labels], float] = field(default_factory=dict)

    def set(self, family: str, value: float, **labels: str) -> None:
        """Set a sample."""
        self.samples[family, tuple(sorted(labels.items()))] = value

    def add(self, family: str, value: float, **labels: str) -> None:
        """Add to a sample, which begins at 0."""
        key = (family, tuple(sorted(labels.items())))
        self.samples[key] = self.samples.get(key, 0) + value

    def drop(self, family: str) -> None:
        """Forget all samples of a family."""
        self.samples = {key: value for key, value in self.samples.items() if key[0] != family}

    def text(self) -> str:
        """Return the file's content, each family once, in the order of ``FAMILIES``."""
        lines = []
        for family, (kind, help_) in FAMILIES.items():
            samples = sorted((labels, value) for (name, labels), value in self.samples.items() if name == family)
            if samples:
                lines += [f"# HELP {family} {help_}\n", f"# TYPE {family} {kind}\n"]
                lines += [f"{family}{_labels(labels)} {_number(value)}\n" for labels, value in samples]
        return "".join(lines)


def set_run_metrics(figures: Figures, counted: Summary, seconds: float) -> None:
    """Replace the samples of the last run by those of the run whose rows were counted."""
    figures.drop("dicomsort_last_run_files")
    for (status, class_), count in counted.files.items():
        figures.set("dicomsort_last_run_files", count, **{"status": status, "class": class_})
    figures.set("dicomsort_last_run_bytes", counted.bytes)
    figures.set("dicomsort_last_run_duration_seconds", round(seconds, 3))


def set_file_metrics(figures: Figures, review: int, inbox: int, oldest_ns: int | None) -> None:
    """Set how many files lie in REVIEW and in the inbox; times are nanoseconds since 1970."""
    figures.set("dicomsort_review_files", review)
    figures.set("dicomsort_inbox_files", inbox)
    figures.set("dicomsort_inbox_oldest_file_age_seconds", age(oldest_ns, time.time_ns()))


def age(since_ns: int | None, now_ns: int) -> float:
    """Return the seconds from one moment to another; 0 where there is none, or it is still to come."""
    return 0.0 if since_ns is None else round(max(0, now_ns - since_ns) / 1e9, 3)


def last_success(path: Path) -> int | None:
    """Return when a run last ended well, from earlier figures; None where they do not say."""
    try:
        text = path.read_text("utf-8") if path.is_file() else ""
    except (OSError, ValueError):
        return None
    found = re.search(r"^dicomsort_last_success_timestamp_seconds (\d{1,15})$", text, re.MULTILINE)
    return int(found[1]) if found else None


def write_metrics(files: Files, path: Path, figures: Figures) -> None:
    """Write the figures; the file that was there stays whole until they are."""
    FILE.write(files, path, figures.text().encode())


def _labels(labels: Labels) -> str:
    cells = ",".join(f'{name}="{printable(value).translate(_ESCAPES)}"' for name, value in labels)
    return f"{{{cells}}}" if labels else ""


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else repr(value)
