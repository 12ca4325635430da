"""What happens at each event of an association: contexts are agreed on, instances stored, all of it logged.

Log lines name AE titles, valid UIDs, counts and paths below the inbox; nothing else of what peers send.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Final, NamedTuple, cast

from pydicom.dataset import Dataset

from dicomsort.classify import is_uid
from dicomsort.pacs.receive.incoming import (
    FAILURE,
    SUCCESS,
    UNNAMED,
    Committed,
    IncomingDataset,
    Refused,
    Request,
    commit,
    refusal,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from pynetdicom.association import Association
    from pynetdicom.events import Event

    from dicomsort.files import Files
    from dicomsort.pacs.receive.incoming import PartFiles
    from dicomsort.pacs.receive.network import BoundedDimseProvider

VERIFICATION: Final = "1.2.840.10008.1.1"
# Uncompressed: implicit, explicit, deflated, big endian; deflated frames; RLE (PS3.5 Annex A)
_SYNTAXES: Final = frozenset(f"1.2.840.10008.1.2{end}" for end in ("", ".1", ".1.99", ".2", ".8.1", ".5"))
_COMPRESSED: Final = "1.2.840.10008.1.2.4."  # the JPEG, MPEG and HEVC families
_ELSEWHERE: Final = frozenset(f"{_COMPRESSED}{end}" for end in ("94", "95", "204", "205"))  # JPIP: pixels on a server


class Limits(NamedTuple):
    """The bytes that an instance may have, and the associations that may be open."""

    size: int
    associations: int


class Store:
    """Stores what peers send in one inbox: the ``AssociationHandler`` of a server, called from its threads."""

    def __init__(self, files: Files, inbox: str, parts: PartFiles, limits: Limits, log: logging.Logger) -> None:
        """``inbox`` is an absolute path."""
        self._files, self._inbox, self._parts, self._limits, self._log = files, inbox, parts, limits, log

    def open_data_set(self, request: Callable[[], Request | None]) -> IncomingDataset:
        """See ``AssociationHandler``."""
        return IncomingDataset(request, self._parts.begin, self._limits.size)

    def on_requested(self, event: Event) -> None:
        """Turn away who comes when all are there; else leave of each context the syntaxes that can be sorted."""
        assoc, allowed = event.assoc, event.assoc.ae.require_calling_aet
        name = cast("Any", assoc.requestor.primitive).calling_ae_title
        may_come = not allowed or name in allowed
        if may_come and not cast("BoundedDimseProvider", assoc.dimse).admit(self._limits.associations):
            assoc.requestor.ae_title = name
            assoc.acse.send_reject(2, 3, 2)  # transient; presentation related: local limit exceeded (PS3.8 9.3.4)
            self._tell("association rejected", assoc, logging.WARNING, reason="--max-associations are open")
            assoc.kill()  # returns when that is sent
        else:
            _choose_syntaxes(assoc)

    def on_accepted(self, event: Event) -> None:
        """Log who came."""
        agreed, refused = len(event.assoc.accepted_contexts), len(event.assoc.rejected_contexts)
        self._tell("association accepted", event.assoc, contexts=agreed, contexts_refused=refused)

    def on_rejected(self, event: Event) -> None:
        """Log who was not let in."""
        self._tell("association rejected", event.assoc, logging.WARNING, reason="not among --allow")

    def on_end(self, assoc: Association) -> None:
        """Log what an association brought, and how it ended."""
        if assoc.accepted_contexts:
            how = "released" if assoc.is_released else "aborted"
            level = logging.INFO if assoc.is_released else logging.WARNING
            self._tell("association ended", assoc, level, how=how, **cast("BoundedDimseProvider", assoc.dimse).counts)

    def on_failure(self, address: str, error: BaseException | None) -> None:
        """Log a connection that failed, in a TLS handshake as a rule."""
        reason = getattr(error, "reason", None) or type(error).__name__
        self._log.warning("connection failed", extra={"facts": {"address": address, "reason": reason}})

    def on_refused(self, address: str, reason: str) -> None:
        """Log that there is no room for a connection."""
        self._log.warning("connections are refused", extra={"facts": {"address": address, "reason": reason}})

    def on_unnamed(self, assoc: Association) -> None:
        """Log an instance without the UIDs that would say what it is."""
        self._refuse(assoc, None, UNNAMED)

    def on_store(self, event: Event) -> Dataset:
        """Store an instance, and say so only when it is durable (PS3.4 B.2.3)."""
        arriving: IncomingDataset = cast("Any", event.request).DataSet
        try:
            return self._store(event.assoc, arriving)
        except Refused as refused:
            return self._refuse(event.assoc, arriving.request, refused)
        except OSError as error:
            return self._refuse(event.assoc, arriving.request, refusal(error))
        except Exception as error:  # noqa: BLE001 - whatever it is, the sender must not take it for success
            ours = Refused(FAILURE, f"an error of the receiver: {type(error).__name__}", failed=True)
            return self._refuse(event.assoc, arriving.request, ours)
        finally:
            arriving.discard()

    def _store(self, assoc: Association, arriving: IncomingDataset) -> Dataset:
        part, uids = arriving.proven()
        size = part.size
        kept, path = commit(self._files, self._inbox, part, uids)
        level = logging.WARNING if kept is Committed.BESIDE else logging.INFO
        self._tell(f"instance {kept}", assoc, level, path=path, bytes=size)
        cast("BoundedDimseProvider", assoc.dimse).counts.update({kept.name.lower(): 1, "bytes": size})
        return _answer(SUCCESS)

    def _refuse(self, assoc: Association, request: Request | None, refused: Refused) -> Dataset:
        level = logging.ERROR if refused.failed else logging.WARNING
        named = {"sop": request.sop} if request and is_uid(request.sop) else {}
        facts = named | {"status": f"0x{refused.status:04X}", "reason": refused.comment}
        self._tell("instance refused", assoc, level, **facts)
        cast("BoundedDimseProvider", assoc.dimse).counts["refused"] += 1
        answer = _answer(refused.status)
        answer.ErrorComment = refused.comment
        if refused.tags:
            answer.OffendingElement = [*refused.tags]
        return answer

    def _tell(self, what: str, assoc: Association, level: int = logging.INFO, **facts: object) -> None:
        peer = {"calling": assoc.requestor.ae_title, "address": assoc.requestor.address}
        self._log.log(level, what, extra={"facts": peer | facts})


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
