"""What a requestor and its peer say to each other before an association is open (PS3.8 9.3.2 to 9.3.4, 9.3.8).

The one place that uses pynetdicom, and the border to its exceptions.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from dicomsort.adapters.sending.records import Permanent, Temporary
from dicomsort.dicom.file_meta import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME
from dicomsort.errors import missing_extra

MAX_PDU = 16_384  # bytes that we take at once; answers are short
_APPLICATION = "1.2.840.10008.3.1.1.1"  # DICOM application context (PS3.7 annex A)
_TRANSIENT = 2
_warnings_lock = threading.Lock()  # what is caught is the whole process's
_REJECTED = {  # (source, reason), PS3.8 table 9-21
    (1, 1): "it gives no reason",
    (1, 2): "it does not support the application context",
    (1, 3): "it does not know our AE title; name it with --ae-title, or make it known there",
    (1, 7): "it does not know the AE title that it was called by; check --to",
    (2, 1): "it gives no reason",
    (2, 2): "it does not support the protocol version",
    (3, 1): "it is congested",
    (3, 2): "it has as many associations as it takes",
}
_CONTEXTS = {  # PS3.8 table 9-18
    1: "the peer refuses it",
    2: "the peer refuses it and gives no reason",
    3: "the peer does not take its SOP class",
    4: "the peer does not take its transfer syntax",
}
_ABORTS = {  # (source, reason), PS3.8 table 9-26; the service user gives none
    (2, 1): ": unrecognised PDU",
    (2, 2): ": unexpected PDU",
    (2, 4): ": unrecognised PDU parameter",
    (2, 5): ": unexpected PDU parameter",
    (2, 6): ": invalid PDU parameter value",
}


def require() -> None:
    """``UsageError`` where pynetdicom is not installed."""
    try:
        import pynetdicom  # noqa: F401
    except ImportError:
        raise missing_extra("send --to AE@HOST:PORT", "pacs") from None


def request(called: str, calling: str, contexts: Sequence[tuple[str, str]]) -> bytes:
    """An A-ASSOCIATE-RQ PDU that proposes each (SOP class, transfer syntax) as a context of its own: 1, 3, 5 …."""
    from pydicom.uid import UID
    from pynetdicom.pdu import A_ASSOCIATE_RQ
    from pynetdicom.pdu_primitives import (
        A_ASSOCIATE,
        ImplementationClassUIDNotification,
        ImplementationVersionNameNotification,
        MaximumLengthNotification,
    )
    from pynetdicom.presentation import PresentationContext

    primitive = A_ASSOCIATE()
    primitive.application_context_name = _APPLICATION
    primitive.called_ae_title, primitive.calling_ae_title = called, calling
    definitions = []
    for number, (sop_class, syntax) in enumerate(contexts):
        context = PresentationContext()
        context.context_id = 2 * number + 1
        with _quiet():
            context.abstract_syntax, context.transfer_syntax = UID(sop_class), [UID(syntax)]
        definitions.append(context)
    primitive.presentation_context_definition_list = definitions
    length, class_, version = (
        MaximumLengthNotification(), ImplementationClassUIDNotification(), ImplementationVersionNameNotification(),
    )  # fmt: skip
    length.maximum_length_received = MAX_PDU
    class_.implementation_class_uid = IMPLEMENTATION_CLASS_UID
    version.implementation_version_name = IMPLEMENTATION_VERSION_NAME
    primitive.user_information = [length, class_, version]
    pdu = A_ASSOCIATE_RQ()
    with _quiet():
        pdu.from_primitive(primitive)
        return pdu.encode()


def accepted(
    peer: str, pdu: bytes, contexts: Sequence[tuple[str, str]]
) -> tuple[dict[tuple[str, str], int], dict[tuple[str, str], str], int]:
    """Read an A-ASSOCIATE-AC: what was accepted under which number, what not and why, the longest PDU or 0."""
    from pynetdicom.pdu import A_ASSOCIATE_AC

    answer = A_ASSOCIATE_AC()
    try:
        with _quiet():
            answer.decode(pdu)
        results = {context.context_id: context for context in answer.presentation_context}
        user = answer.user_information
        limit = (user.maximum_length if user is not None else None) or 0
    except Exception as error:  # noqa: BLE001 - it raises almost anything on damaged bytes
        raise Temporary(f"{peer} accepts in a form that cannot be read ({type(error).__name__})") from None
    if not results:
        raise Temporary(f"{peer} accepts without a word of what was proposed")
    taken, refused = {}, {}
    for number, proposed in enumerate(contexts):
        context = results.get(2 * number + 1)
        if context is not None and context.result == 0 and context.transfer_syntax == proposed[1]:
            taken[proposed] = 2 * number + 1
        else:
            reason = context.result if context is not None else None
            refused[proposed] = _CONTEXTS.get(reason or 0, "the peer does not answer for its kind")
    return taken, refused, limit


@contextmanager
def _quiet() -> Iterator[None]:
    """Without pydicom's remarks on UIDs that are in use and not quite valid: their components begin with zeros."""
    with _warnings_lock, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def rejection(peer: str, calling: str, body: bytes) -> Permanent | Temporary:
    """What an A-ASSOCIATE-RJ says, as the error that it is."""
    _, result, source, reason = body[:4].ljust(4, b"\0")
    why = _REJECTED.get((source, reason), f"reason {source}/{reason}")
    message = f"{peer} refuses an association with {calling}: {why}"
    return Temporary(message, is_down=True) if result == _TRANSIENT else Permanent(message)


def abort_reason(body: bytes) -> str:
    """What an A-ABORT says, to be put behind a sentence; empty where it says nothing."""
    _, _, source, reason = body[:4].ljust(4, b"\0")
    return _ABORTS.get((source, reason), "")
