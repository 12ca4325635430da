"""A storage SCP (PS3.4 Annex B) that writes what it receives into an inbox; needs the extra ``pacs``.

``network`` is the border to pynetdicom, ``incoming`` writes a data set fragment by fragment and commits it,
``store_scp`` answers, ``receiver`` starts and stops.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from dicomsort.config import ReceiveSettings
from dicomsort.errors import UsageError
from dicomsort.pacs import require
from dicomsort.pacs.tls import server_context

if TYPE_CHECKING:
    import logging

    from dicomsort.files import Files
    from dicomsort.pacs.receive.receiver import Receiver

__all__ = ["GRACE", "check", "check_titles", "open_receiver"]

GRACE = 30.0  # seconds that a stop leaves to instances on their way
_TITLE = 16  # characters (PS3.5 6.2, AE)


def check_titles(settings: ReceiveSettings) -> ReceiveSettings:
    """Return the settings with titles as they are compared; ``UsageError`` for an invalid AE title."""
    for flag, title in [("--ae-title", settings.ae_title), *(("--allow", each) for each in settings.allow)]:
        if not title.strip() or len(title) > _TITLE or "\\" in title or not (title.isascii() and title.isprintable()):
            raise UsageError(f"{flag}: expected an AE title (1 to 16 characters of ASCII), received {title!r}")
    return replace(settings, allow=tuple(title.strip() for title in settings.allow))


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
