"""What happens at each event of an association: contexts are negotiated, instances stored, all of it logged.

Log lines name AE titles, valid UIDs, counts and paths below the inbox; nothing else of what peers send.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Final, cast

from pydicom.dataset import Dataset

from dicomsort.dicom.tags import is_uid
from dicomsort.pacs.receive.incoming import (
    FAILURE,
    SUCCESS,
    UNNAMED,
    Committed,
    IncomingDataset,
    PartFiles,
    Refused,
    StoreRequest,
    commit,
    refusal,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from pynetdicom.association import Association
    from pynetdicom.events import Event

    from dicomsort.config import ReceiveSettings
    from dicomsort.files import Files

VERIFICATION: Final = "1.2.840.10008.1.1"
# Uncompressed: implicit, explicit, deflated, big endian; deflated frames; RLE (PS3.5 Annex A)
_SYNTAXES: Final = frozenset(f"1.2.840.10008.1.2{end}" for end in ("", ".1", ".1.99", ".2", ".8.1", ".5"))
_COMPRESSED: Final = "1.2.840.10008.1.2.4."  # the JPEG, MPEG and HEVC families
_ELSEWHERE: Final = frozenset(f"{_COMPRESSED}{end}" for end in ("94", "95", "204", "205"))  # JPIP: pixels on a server
_MIB: Final = 1 << 20


class Store:
    """Stores what peers send in one inbox (an absolute path); a server calls it from the threads of connections."""

    def __init__(self, files: Files, inbox: str, settings: ReceiveSettings, log: logging.Logger) -> None:
        self._files, self._inbox, self._settings, self._log = files, inbox, settings, log
        self.parts = PartFiles(files, inbox)

    def open_data_set(self, request: Callable[[], StoreRequest | None]) -> IncomingDataset:
        """Return where the data set of a message goes; ``request`` says what it asks for, once its command is there."""
        return IncomingDataset(request, self.parts.begin, self._settings.max_object_size * _MIB)

    def on_requested(self, event: Event) -> None:
        """Reject an association beyond the limit; else leave of each context the syntaxes that can be sorted."""
        assoc, allowed = event.assoc, event.assoc.ae.require_calling_aet
        name = cast("Any", assoc.requestor.primitive).calling_ae_title
        is_allowed = not allowed or name in allowed
        dimse: Any = assoc.dimse
        if is_allowed and not dimse.server.admit(dimse, self._settings.max_associations):
            assoc.requestor.ae_title = name
            assoc.acse.send_reject(2, 3, 2)  # transient; presentation related: local limit exceeded (PS3.8 9.3.4)
            self._write("association rejected", assoc, logging.WARNING, reason="--max-associations are open")
            assoc.kill()  # returns when that is sent
        else:
            _choose_syntaxes(assoc)

    def on_accepted(self, event: Event) -> None:
        """Log an association that was accepted."""
        accepted, refused = len(event.assoc.accepted_contexts), len(event.assoc.rejected_contexts)
        self._write("association accepted", event.assoc, contexts=accepted, contexts_refused=refused)

    def on_rejected(self, event: Event) -> None:
        """Log an association that was rejected."""
        self._write("association rejected", event.assoc, logging.WARNING, reason="not among --allow")

    def on_end(self, assoc: Association) -> None:
        """Log what an association brought, and how it ended."""
        if assoc.accepted_contexts:
            how = "released" if assoc.is_released else "aborted"
            level = logging.INFO if assoc.is_released else logging.WARNING
            self._write("association ended", assoc, level, how=how, **cast("Any", assoc.dimse).counts)

    def on_failure(self, address: str, error: BaseException | None) -> None:
        """Log a connection that failed before it was one of DICOM, in a TLS handshake as a rule."""
        reason = getattr(error, "reason", None) or type(error).__name__
        self._log.warning("connection failed", extra={"facts": {"address": address, "reason": reason}})

    def on_refused(self, address: str, reason: str) -> None:
        """Log that there is no room for a connection; ``address`` may be empty."""
        self._log.warning("connections are refused", extra={"facts": {"address": address, "reason": reason}})

    def on_unnamed(self, assoc: Association) -> None:
        """Log an instance without the UIDs that identify it, which was answered with ``UNNAMED``."""
        self._refuse(assoc, None, UNNAMED)

    def on_store(self, event: Event) -> Dataset:
        """Store an instance, and say so only when it is durable (PS3.4 B.2.3)."""
        incoming: IncomingDataset = cast("Any", event.request).DataSet
        try:
            return self._store(event.assoc, incoming)
        except Refused as error:
            refused = error
        except OSError as error:
            refused = refusal(error)
        except Exception as error:  # noqa: BLE001 - whatever it is, the sender must not take it for success
            refused = Refused(FAILURE, f"an error of the receiver: {type(error).__name__}", failed=True)
        finally:
            incoming.discard()
        return self._refuse(event.assoc, incoming.request, refused)

    def _store(self, assoc: Association, incoming: IncomingDataset) -> Dataset:
        part, header = incoming.proven()
        committed, path = commit(self._files, self._inbox, part, header)
        level = logging.WARNING if committed is Committed.BESIDE else logging.INFO
        self._write(f"instance {committed}", assoc, level, path=path, bytes=part.size)
        cast("Any", assoc.dimse).counts.update({committed.name.lower(): 1, "bytes": part.size})
        return _answer(SUCCESS)

    def _refuse(self, assoc: Association, request: StoreRequest | None, refused: Refused) -> Dataset:
        level = logging.ERROR if refused.failed else logging.WARNING
        named = {"sop": request.sop_uid} if request and is_uid(request.sop_uid) else {}
        facts = named | {"status": f"0x{refused.status:04X}", "reason": refused.comment}
        self._write("instance refused", assoc, level, **facts)
        cast("Any", assoc.dimse).counts["refused"] += 1
        answer = _answer(refused.status)
        answer.ErrorComment = refused.comment
        if refused.tags:
            answer.OffendingElement = [*refused.tags]
        return answer

    def _write(self, event: str, assoc: Association, level: int = logging.INFO, **facts: object) -> None:
        peer = {"calling": assoc.requestor.ae_title, "address": assoc.requestor.address}
        self._log.log(level, event, extra={"facts": peer | facts})


def _choose_syntaxes(assoc: Association) -> None:
    """Leave of each proposed context the transfer syntaxes that are known, in the peer's order.

    The library takes the first of any storage context. One that has none left becomes one of verification, which is
    not offered with them either: so the peer is told that its transfer syntaxes are not supported.
    """
    for context in cast("Any", assoc.requestor.primitive).presentation_context_definition_list:
        known = [syntax for syntax in context.transfer_syntax if _is_known(syntax)]
        if known:
            context.transfer_syntax = known
        else:
            context.abstract_syntax = VERIFICATION


def _is_known(syntax: str) -> bool:
    return syntax in _SYNTAXES or (syntax.startswith(_COMPRESSED) and syntax not in _ELSEWHERE)


def _answer(status: int) -> Dataset:
    answer = Dataset()
    answer.Status = status
    return answer
