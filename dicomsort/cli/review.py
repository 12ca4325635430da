"""``review``: a page on which a person decides what was held back."""

from __future__ import annotations

import getpass
import os
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dicomsort.cli.options import bundle_of, open_workers, with_options
from dicomsort.cli.state import Outbox
from dicomsort.config.settings import CORRECTIONS, REVIEW, ReviewSettings
from dicomsort.errors import UsageError, counted
from dicomsort.progress import Silent

if TYPE_CHECKING:
    from dicomsort.bundle import Bundle
    from dicomsort.pages.review import Session
    from dicomsort.sorting import Corrections, RunContext


@with_options(REVIEW)
def review(outbox: Outbox, **flags: Any) -> None:
    """Decide in a browser what was held, with one key per class.

    The files move to the class that you choose. `runs` lists the decisions, and `undo` takes them back. Only this
    machine can open the page. To open it from another, use --port 8642 and ssh -L 8642:127.0.0.1:8642 HOST. Ctrl-C, or
    Finish on the page, ends it.

    Example: dicomsort review --port 8642 outbox/
    """
    from dicomsort.files import Files
    from dicomsort.pages.review import Gallery, Session, checked_address, serve
    from dicomsort.sorting import ReviewService, RunContext

    settings = ReviewSettings(**flags)
    address, bundle = checked_address(settings.host), bundle_of(settings.model)
    context = RunContext(outbox, Files(), Silent()).located()
    corrections = _corrections(context, settings.corrections, bundle) if settings.learn else None
    with open_workers(settings.workers) as engine:
        service = ReviewService(context, corrections, engine)
        for note in service.open():
            print(f"dicomsort: {note}", file=sys.stderr)
        gallery = Gallery(engine, service.outbox)
        session = Session(service, bundle, gallery, identifiers=settings.show_identifiers)
        session.refresh()
        session.who = _name(settings.reviewer)
        try:
            serve(session, address, settings.port, os.path.basename(context.outbox), partial(_announce, session))
        except KeyboardInterrupt as stop:
            stop.add_note("what was decided is kept, and the same command shows what still waits")
            raise
        _conclude(session)


def _corrections(context: RunContext, folder: str | None, bundle: Bundle) -> Corrections:
    from dicomsort.outputs import Gate
    from dicomsort.sorting import Corrections
    from dicomsort.sorting.runs import inboxes

    outbox, own = context.outbox, f"{context.outbox}/{CORRECTIONS}"
    chosen = os.path.realpath(folder or own)
    refused = {outbox: "outside the OUTBOX", **dict.fromkeys(inboxes(outbox), "outside the inboxes of its runs")}
    if os.path.commonpath([own, chosen]) != own:
        for root, expected in refused.items():
            if os.path.commonpath([root, chosen]) == root:
                raise UsageError(f"--corrections: expected a folder {expected}, received {folder!r}")
        Gate({}).check_folder("--corrections", Path(chosen))
    return Corrections(chosen, bundle.model_sha256, context.files)


def _name(given: str | None) -> str:
    from dicomsort.report.manifest_reader import reviewer

    try:
        return reviewer(given or getpass.getuser())
    except (OSError, KeyError):  # a user without a name, as in a container
        return f"uid {os.getuid()}"


def _announce(session: Session, address: str) -> None:
    """Print where the page is; its address is the only thing on stdout."""
    print(address, flush=True)
    words = counted(session.state()["waiting"], "thing waits", "things wait")
    print(f"dicomsort: {words} for a decision. Open the address above; Ctrl-C ends the page.", file=sys.stderr)


def _conclude(session: Session) -> None:
    from dicomsort.report import visible

    end = session.farewell()
    made = counted(end["made"], "decision")
    wait = counted(end["waiting"], "thing still waits", "things still wait")
    print(f"dicomsort: {made}; {wait}", file=sys.stderr)
    if end["train"]:
        images = counted(end["images"], "image")
        print(f"dicomsort: {images} of two studies or more are enough to fine-tune a model:", file=sys.stderr)
        print(f"  {visible(end['train'])}", file=sys.stderr)
