"""A storage SCP (PS3.4 Annex B) that puts what it receives into an inbox; needs the extra ``pacs``.

``network`` and ``messages`` are the border to pynetdicom, ``arriving`` takes a data set fragment by fragment, ``parts``
and ``keeping`` write it, ``storing`` answers, ``receiver`` begins and ends.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dicomsort.config import ReceiveSettings
from dicomsort.errors import missing_extra

if TYPE_CHECKING:
    import logging

    from dicomsort.adapters.receiving.receiver import Receiver
    from dicomsort.files import Files

__all__ = ["GRACE", "ReceiveSettings", "open_receiver"]

GRACE = 30.0  # seconds that an end leaves to instances on their way


def open_receiver(inbox: str, settings: ReceiveSettings, files: Files, log: logging.Logger) -> Receiver:
    """Make a receiver, which listens from its ``start`` to its ``stop``.

    Raises ``UsageError`` without the extra, without the inbox, or for certificates that are none.
    """
    try:
        from dicomsort.adapters.receiving.receiver import Receiver
    except ModuleNotFoundError as error:
        if error.name != "pynetdicom":
            raise
        raise missing_extra("receive", "pacs") from None
    return Receiver(inbox, settings, files, log)
