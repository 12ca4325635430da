"""``review``: a page on which a person decides what was held back."""

from __future__ import annotations

import getpass
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dicomsort.cli.options import bundle_of, open_workers, with_options
from dicomsort.cli.state import Outbox
from dicomsort.config.settings import CORRECTIONS, REVIEW, ReviewSettings
from dicomsort.progress import Silent

if TYPE_CHECKING:
    from dicomsort.bundle import Bundle
    from dicomsort.pages.review import Session
    from dicomsort.sorting import Corrections, RunContext


@with_options(REVIEW)
def review(outbox: Outbox, **flags: Any) -> None:
    """Decide what was held back: large pictures in a browser, a key a class, each decision with an undo.

    Files move to their class as by a sort: `runs` lists the decisions, `undo` takes them back. The page is on this
    machine alone; from another: ssh -L 8642:127.0.0.1:8642 HOST. Ctrl-C or the page's Finish ends it.

    Example: dicomsort review --port 8642 outbox/
    """
    from dicomsort.files import Files
    from dicomsort.pages.review import checked_address, serve
    from dicomsort.sorting import RunContext

    settings = ReviewSettings(**flags)
    address, bundle = checked_address(settings.host), bundle_of(settings.model)
    context = RunContext(outbox, Files(), Silent()).located()
    kept = _corrections(context, settings.corrections, bundle) if settings.learn else None
    with _session(context, kept, bundle, settings.workers) as session:
        session.who, session.identifiers = _name(settings.reviewer), settings.show_identifiers
        try:
            serve(session, address, settings.port, os.path.basename(context.outbox), lambda at: _tell(at, session))
        except KeyboardInterrupt as stop:
            stop.add_note("what was decided is kept, and the same command shows what still waits")
            raise
        _conclude(session)


@contextmanager
def _session(context: RunContext, kept: Corrections | None, bundle: Bundle, workers: int) -> Iterator[Session]:
    from dicomsort.pages.review import Gallery, Session
    from dicomsort.sorting import ReviewService

    with open_workers(workers) as engine:
        desk = ReviewService(context, kept, engine)
        for note in desk.open():
            print(f"dicomsort: {note}", file=sys.stderr)
        session = Session(desk, bundle, Gallery(engine, desk.outbox))
        session.refresh()
        yield session


def _corrections(context: RunContext, folder: str | None, bundle: Bundle) -> Corrections:
    from dicomsort.errors import UsageError
    from dicomsort.outputs import Gate
    from dicomsort.sorting import Corrections
    from dicomsort.sorting.outbox import inboxes

    outbox = context.outbox
    chosen = os.path.realpath(folder or f"{outbox}/{CORRECTIONS}")
    refused = {outbox: "outside the OUTBOX", **dict.fromkeys(inboxes(outbox), "outside the inboxes of its runs")}
    own = f"{outbox}/{CORRECTIONS}"
    for root, expected in refused.items():
        if os.path.commonpath([root, chosen]) == root and os.path.commonpath([own, chosen]) != own:
            raise UsageError(f"--corrections: expected a folder {expected}, received {folder!r}")
    if os.path.commonpath([own, chosen]) != own:
        Gate({}).check_folder("--corrections", Path(chosen))
    return Corrections(chosen, bundle.model_sha256, context.files)


def _name(given: str | None) -> str:
    from dicomsort.report.manifest_reader import reviewer

    try:
        return reviewer(given or getpass.getuser())
    except (OSError, KeyError):  # a user without a name, as in a container
        return f"uid {os.getuid()}"


def _tell(address: str, session: Session) -> None:
    """Say where the page is; its address is the only thing on stdout."""
    print(address, flush=True)
    waiting = session.state()["waiting"]
    words = f"{waiting:,} things wait" if waiting != 1 else "one thing waits"
    print(f"dicomsort: {words} for a decision. Open the address above; Ctrl-C ends the page.", file=sys.stderr)


def _conclude(session: Session) -> None:
    """Say what was decided, and how a model learns from it."""
    from dicomsort.report import visible

    end = session.farewell()
    print(f"dicomsort: {end['made']:,} decisions; {end['waiting']:,} things wait still", file=sys.stderr)
    if end["train"]:
        print(f"dicomsort: a model learns from {end['images']:,} images by", file=sys.stderr)
        print(f"  {visible(end['train'])}", file=sys.stderr)
