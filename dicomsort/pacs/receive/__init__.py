"""A storage SCP (PS3.4 Annex B) that writes what it receives into an inbox; needs the extra ``pacs``.

``network`` is the border to pynetdicom, ``incoming`` writes a data set fragment by fragment and commits it,
``store_scp`` answers, ``receiver`` starts and stops.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from dicomsort.config import ReceiveSettings
from dicomsort.pacs import ae_title, require
from dicomsort.pacs.tls import server_context

if TYPE_CHECKING:
    import logging

    from dicomsort.files import Files
    from dicomsort.pacs.receive.receiver import Receiver

__all__ = ["GRACE", "check", "check_titles", "open_receiver"]

GRACE = 30.0  # seconds that a stop leaves to instances on their way


def check_titles(settings: ReceiveSettings) -> ReceiveSettings:
    """Return the settings with titles as they are compared; ``UsageError`` for an invalid AE title."""
    allow = tuple(ae_title(each, "--allow") for each in settings.allow)
    return replace(settings, ae_title=ae_title(settings.ae_title, "--ae-title"), allow=allow)


def check(settings: ReceiveSettings) -> None:
    """Raise ``UsageError`` where no receiver can be made of the settings; nothing listens."""
    server_context(check_titles(settings))
    require("pynetdicom", "receive")


def open_receiver(inbox: str, settings: ReceiveSettings, files: Files, log: logging.Logger) -> Receiver:
    """Make a receiver, which listens from its ``start`` to its ``stop``.

    Raises ``UsageError`` without the extra, without the inbox, or for invalid certificates.
    """
    require("pynetdicom", "receive")
    from dicomsort.pacs.receive.receiver import Receiver

    return Receiver(inbox, settings, files, log)
