"""Sort a corpus whose truth is known, and compare: ``python benchmarks/corpus.py --corpus ../shared/dicom``.

The corpus is a folder with an ``index.csv`` (columns source_id, path, truth, header_state, …). Prints Markdown; exits 1
where a requirement is not met.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

CLASSES = ("CT", "MRI", "XRAY")
SHARE_REQUIRED = 0.99
RIGHT_REQUIRED, WRONG_ALLOWED = 0.75, 0.02  # of the files with a bad header
SIDES = (32, 64, 128, 256)  # pixels of the longer side
BAD = ("conflict_modality_sop", "missing_or_empty", "nonstandard", "uninformative", "wrong")
EVIDENCE = {"auto": "header and pixels", "header": "header alone", "pixels": "pixels alone"}
READ = ("class", "status", "reason", "destination", "decided_by")
STAYS = {"ignored", "duplicate", "settling"}  # statuses of files that are rightly not in the outbox

Row = dict[str, str]


class Pair(NamedTuple):
    """A file of the index, and its rows in the manifest."""

    path: str
    truth: Row
    rows: list[Row]

    @property
    def row(self) -> Row:
        """The file's row, an empty one where it has none."""
        return self.rows[0] if self.rows else dict.fromkeys(READ, "")


class Check(NamedTuple):
    """One line of the result: what was measured, the figure, and whether it meets its requirement."""

    what: str
    figure: str
    passed: bool


def main() -> int:
    """Sort, compare, print; 0 where every requirement is met."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--corpus", type=Path, required=True, help="folder with index.csv")
    parser.add_argument("--out", type=Path, help="outbox to keep (a temporary one by default)")
    parser.add_argument("--model", help="bundle to sort by (default: the one that ships)")
    arguments = parser.parse_args()
    model = ("--model", arguments.model) if arguments.model else ()
    with tempfile.TemporaryDirectory() as temporary:
        outbox = arguments.out or Path(temporary, "outbox")
        code, seconds = sort(arguments.corpus, outbox, *model)
        pairs = joined(arguments.corpus, outbox)
        checks = [Check("exit code of the sort (0 or 3)", str(code), code in {0, 3}), *checks_of(pairs)]
        checks += contents(arguments.corpus, outbox, pairs)
        bad = {"auto": bad_headers(pairs)}
        for evidence in ("header", "pixels"):
            other = Path(temporary, evidence)
            sort(arguments.corpus, other, "--evidence", evidence, *model)
            by_evidence = joined(arguments.corpus, other)
            bad[evidence] = bad_headers(by_evidence)
        by_side = by_pixels_alone(by_evidence)
        checks += checks_of_bad_headers(bad)
    print(f"`dicomsort sort` of {len(pairs)} files: {seconds:.1f} s\n")
    print_table(("requirement", "measured", "met"), ((c.what, c.figure, "yes" if c.passed else "NO") for c in checks))
    print("Bad headers: images of a class whose header is missing, empty, OT or SC, no defined term, torn or wrong.\n")
    print_table(("header state", "files", *EVIDENCE.values()), table_of_bad_headers(bad))
    print("Clear headers that are ignored (`--evidence pixels`), by the pixels of the longer side.\n")
    print_table(("pixels", "files", "right", "wrong", "held"), by_side)
    print_table(("header state", "truth", "class given", "files"), confusion(pairs))
    print_table(("file", "truth", "class", "folder", "reason", "note"), wrong(pairs))
    return 0 if all(check.passed for check in checks) else 1


def sort(corpus: Path, outbox: Path, *options: str) -> tuple[int, float]:
    """Run the command as a user does; its exit code and wall time in seconds."""
    started = time.perf_counter()
    command = [sys.executable, "-m", "dicomsort", "sort", str(corpus), str(outbox), "--quiet", *options]
    return subprocess.run(command, check=False).returncode, time.perf_counter() - started


def joined(corpus: Path, outbox: Path) -> list[Pair]:
    """Each file of the index with its rows in the newest run of the manifest."""
    manifest = read(outbox / "manifest.csv")
    rows: dict[str, list[Row]] = {}
    for row in manifest:
        if row["run_id"] == manifest[-1]["run_id"]:
            rows.setdefault(row["source"].removeprefix("'"), []).append(row)
    paths = ((f"{truth['source_id']}/{truth['path']}", truth) for truth in read(corpus / "index.csv"))
    return [Pair(path, truth, rows.get(path, [])) for path, truth in paths]


def checks_of(pairs: list[Pair]) -> Iterator[Check]:
    """The requirements that the manifest alone can tell."""
    unrowed = sum(len(pair.rows) != 1 for pair in pairs)
    yield Check("files with other than one row (0)", str(unrowed), unrowed == 0)
    clear = [pair for pair in pairs if pair.truth["header_state"] == "ok" and pair.truth["truth"] in CLASSES]
    held = [pair for pair in clear if pair.row["reason"] == "uid-collision"]
    for name, some in (("apart from uid-collision", [p for p in clear if p not in held]), ("in uid-collision", held)):
        right = sum(pair.row["class"] == pair.truth["truth"] for pair in some)
        share = right / len(some) if some else 1.0
        figure = f"{right} of {len(some)} = {share:.2%}"
        yield Check(f"clear header, {name}: class is the truth (99 %)", figure, share >= SHARE_REQUIRED)
    none = [pair for pair in pairs if pair.truth["header_state"] == "ok" and pair.truth["truth"] == "none"]
    landed = [pair for pair in none if folder(pair.row) in CLASSES]
    followed = sum(pair.row["decided_by"] == "study" for pair in landed)
    figure = f"{len(landed) - followed} of {len(none)} (and {followed} followed their study)"
    yield Check("clear header of none (US, NM, SR, RT, …) in CT, MRI, XRAY (0)", figure, len(landed) == followed)
    images = [pair.row for pair in pairs if pair.truth["truth"] in CLASSES]
    ignored = sum(row["status"] == "ignored" for row in images)
    yield Check("images of a class that were ignored (0)", f"{ignored} of {len(images)}", ignored == 0)
    unclear = [pair for pair in pairs if pair.truth["header_state"] != "ok"]
    misfiled = sum(folder(pair.row) in {*CLASSES} - {pair.truth["truth"]} for pair in unclear)
    yield Check(
        "no clear header: in the folder of a wrong class (no limit)", f"{misfiled} of {len(unclear)}", passed=True
    )


def bad_headers(pairs: list[Pair]) -> dict[str, Counter[str]]:
    """How many images of a class with a bad header are right, wrong, held; by header state, and of the crafted ones.

    Right and wrong are what lies in a folder of a class, or in OTHER; all else waits for a person.
    """
    found: dict[str, Counter[str]] = {}
    for path, truth, row in ((pair.path, pair.truth, pair.row) for pair in pairs):
        if truth["header_state"] not in BAD or truth["truth"] not in CLASSES:
            continue
        outcome = outcome_of(row, truth)
        states = [truth["header_state"], "all", *(["crafted+identity"] if path.startswith("crafted+identity/") else [])]
        for state in states:
            found.setdefault(state, Counter())[outcome] += 1
    return found


def outcome_of(row: Row, truth: Row) -> str:
    """Whether an image of a class lies in its folder, in a wrong one, or waits for a person."""
    if folder(row) not in {*CLASSES, "OTHER"}:
        return "held"
    return "right" if folder(row) == truth["truth"] else "wrong"


def by_pixels_alone(pairs: list[Pair]) -> list[tuple[str, ...]]:
    """How many images of a class with a clear header are right, wrong and held where the header does not count."""
    found: dict[str, Counter[str]] = {}
    for pair in pairs:
        if pair.truth["header_state"] == "ok" and pair.truth["truth"] in CLASSES and pair.truth["has_pixels"] == "yes":
            side = max(int(pair.truth[name] or 0) for name in ("rows", "cols"))
            name = next((f"at most {limit}" for limit in SIDES if side <= limit), f"more than {SIDES[-1]}")
            for key in (name, "all"):
                found.setdefault(key, Counter())[outcome_of(pair.row, pair.truth)] += 1
    order = [*(f"at most {limit}" for limit in SIDES), f"more than {SIDES[-1]}", "all"]
    rows = ((name, found[name]) for name in order if name in found)
    return [
        (name, str(count.total()), *(str(count[key]) for key in ("right", "wrong", "held"))) for name, count in rows
    ]


def checks_of_bad_headers(bad: dict[str, dict[str, Counter[str]]]) -> Iterator[Check]:
    """The requirement on header and pixels together, and that they beat each alone."""
    for state in ("all", "crafted+identity"):
        both, *alone = (bad[evidence][state] for evidence in EVIDENCE)
        right, wrong = both["right"] / both.total(), both["wrong"] / both.total()
        figure = f"{right:.1%} right, {wrong:.1%} wrong of {both.total()}"
        passed = right >= RIGHT_REQUIRED and wrong <= WRONG_ALLOWED
        yield Check(f"bad headers, {state}: right class (75 %), wrong class (2 %)", figure, passed)
        gain = both["right"] - both["wrong"]
        figure = f"{gain} against {', '.join(str(one['right'] - one['wrong']) for one in alone)}"
        beats = all(gain >= one["right"] - one["wrong"] for one in alone)
        yield Check(f"bad headers, {state}: right less wrong, against header alone, pixels alone", figure, beats)


def table_of_bad_headers(bad: dict[str, dict[str, Counter[str]]]) -> Iterator[tuple[str, ...]]:
    """Right / wrong / held of each header state, by evidence."""
    for state in sorted(bad["auto"], key=lambda state: (state == "all", state)):
        counts = [bad[evidence][state] for evidence in EVIDENCE]
        cells = (f"{c['right']} right, {c['wrong']} wrong, {c['held']} held" for c in counts)
        yield state, str(counts[0].total()), *cells


def contents(corpus: Path, outbox: Path, pairs: list[Pair]) -> Iterator[Check]:
    """Nothing lost, nothing changed: by the bytes, not by the manifest."""
    kept = Counter(digest(path) for path in outbox.rglob("*") if path.is_file() and ".dicomsort" not in path.parts)
    missing = [
        pair.path
        for pair in pairs
        if pair.row["status"] not in STAYS - {"duplicate"} and digest(corpus / pair.path) not in kept
    ]
    yield Check("files whose bytes are not in the outbox (0)", f"{len(missing)} {missing[:3] or ''}", not missing)
    placed = {pair.row["destination"] for pair in pairs if pair.row["status"] not in STAYS and pair.row["destination"]}
    count = sum(bool(pair.row["destination"]) and pair.row["status"] not in STAYS for pair in pairs)
    yield Check("destinations used twice (0)", str(count - len(placed)), count == len(placed))
    wrong_bytes = sum(digest(corpus / pair.path) != pair.truth["sha256"] for pair in pairs)
    yield Check("files of the inbox that changed (0)", str(wrong_bytes), wrong_bytes == 0)


def confusion(pairs: list[Pair]) -> list[tuple[str, ...]]:
    """How many files of each header state and truth got which class."""
    cells = Counter((p.truth["header_state"], p.truth["truth"], p.row["class"] or "-") for p in pairs)
    return [(*cell, str(count)) for cell, count in sorted(cells.items())]


def wrong(pairs: list[Pair]) -> Iterator[tuple[str, ...]]:
    """Every clear header without its class, and every file in the folder of a class that it is not."""
    for path, truth, row in ((pair.path, pair.truth, pair.row) for pair in pairs):
        expected = truth["truth"]
        clear = truth["header_state"] == "ok" and expected in CLASSES
        if row["class"] != expected and (clear or folder(row) in CLASSES):
            note = truth["truth_note"] or truth["header_state"]
            yield path, expected, row["class"] or row["status"], folder(row), row["reason"], note


def folder(row: Row) -> str:
    """The top folder that the file lies in."""
    return row["destination"].split("/")[0]


def read(path: Path) -> list[Row]:
    """The rows of a CSV file."""
    with path.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def digest(path: Path) -> str:
    """SHA-256 of the file, hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def print_table(columns: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> None:
    """A Markdown table."""
    print("|", " | ".join(columns), "|")
    print("|", " | ".join("---" for _ in columns), "|")
    for row in rows:
        print("|", " | ".join(cell.replace("|", "\\|") for cell in row), "|")
    print()


if __name__ == "__main__":
    sys.exit(main())
