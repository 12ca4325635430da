"""Adds to a bundle that is there what a training would have left: renders a data set, and replaces the bundle."""

from __future__ import annotations

import json
import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from dicomsort.bundle import seal, staged
from dicomsort.bundle.spec import SPEC_NAME
from dicomsort.jsonlines import parse
from dicomsort.training.card import write_card
from dicomsort.training.dataset import read_groups, relabelled, scan
from dicomsort.training.predictions import require_images
from dicomsort.training.reporting import figures_in
from dicomsort.training.tensors import render_all
from dicomsort.training.trainer import MAYBE, tell_skipped
from dicomsort.training.writing import OUTPUTS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from dicomsort.bundle import Bundle
    from dicomsort.engine import Engine
    from dicomsort.training.progress import Reporter
    from dicomsort.training.tensors import Rendered

FIGURES, CARD = "metrics.json", "card.md"


class Addition(NamedTuple):
    """A file for a bundle: name and content, its block of bundle.json by ``key``, and what metrics.json tells of it."""

    name: str
    content: bytes
    key: str
    block: dict[str, Any]
    told: dict[str, Any]


@contextmanager
def opened(
    bundle: Bundle, root: Path, open_workers: Callable[[], Engine], reporter: Reporter, groups: Path | None = None
) -> Iterator[Rendered]:
    """Yield the data set ``root`` with its pixels and the bundle's labels; UsageError where it will not do."""
    dataset = relabelled(scan(root, read_groups(groups) if groups else None, least=1), bundle.labels)
    with tempfile.TemporaryDirectory(prefix="dicomsort-remake-") as scratch:
        with open_workers() as engine:
            rendered = render_all(dataset, Path(scratch) / "images.npy", engine, reporter)
        tell_skipped(rendered, reporter)
        require_images(rendered.dataset, len(rendered.skipped))
        yield rendered


def remake(folder: Path, addition: Addition) -> None:
    """Replace the bundle by itself with an addition, and with figures and card that tell of it."""
    with staged(folder, OUTPUTS | MAYBE) as part:
        shutil.copytree(folder, part, dirs_exist_ok=True)
        (part / addition.name).write_bytes(addition.content)
        spec = parse((part / SPEC_NAME).read_bytes()) | {addition.key: addition.block}
        seal(part, spec)
        if (part / FIGURES).is_file():
            told = figures_in(part)
            told["training_run"] = {**told.get("training_run", {}), addition.key: addition.told}
            (part / FIGURES).write_text(json.dumps(told, indent=1) + "\n", "utf-8")
            (part / CARD).write_text(write_card(spec, told), "utf-8", "backslashreplace")
