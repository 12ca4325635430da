"""Messages: what of pynetdicom is replaced, so that data sets go to disk as they come, and nothing else is kept.

The library collects a data set in memory, or in a temporary file that an abort leaves behind, and a command set however
long it is. Here data sets go where ``Arriving`` puts them, and what no real peer sends ends its association.
"""

from __future__ import annotations

import contextlib
import socket
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, Protocol, cast

from pynetdicom.dimse import DIMSEServiceProvider
from pynetdicom.dimse_messages import C_STORE_RQ, DIMSEMessage
from pynetdicom.dimse_primitives import C_STORE

from dicomsort.adapters.receiving.arriving import UNNAMED, Arriving, Request

if TYPE_CHECKING:
    from pynetdicom.association import Association
    from pynetdicom.pdu_primitives import P_DATA

_COMMAND: Final = 64 << 10  # bytes of a command set; that of a C-STORE has a few hundred
_WAITING: Final = 4  # messages that a peer may send without waiting for answers


class User(Protocol):
    """Who is told what happens on connections, from their threads."""

    def open_data_set(self, request: Callable[[], Request | None]) -> Arriving:
        """Where the data set of a message goes; ``request`` says what it asks for, once its command is there."""

    def on_unnamed(self, assoc: Association) -> None:
        """A C-STORE without what identifies its instance was answered, with ``UNNAMED``."""

    def on_end(self, assoc: Association) -> None:
        """An association, or an attempt at one, is over."""

    def on_failure(self, address: str, error: BaseException | None) -> None:
        """A connection failed before it was one of DICOM."""

    def on_refused(self, address: str, reason: str) -> None:
        """There is no room for a connection; told once a minute at most. ``address`` may be empty."""


class Dimse(DIMSEServiceProvider):
    """The messages of one association."""

    def __init__(self, assoc: Association, user: User, admit: Callable[[Dimse, int], bool]) -> None:
        """Begin without a message; ``admit`` makes it one of so many associations, or says that they are all open."""
        super().__init__(assoc)
        self._user, self._admit = user, admit
        self.counts: Counter[str] = Counter()
        self._data_sets: list[Arriving] = []
        self.is_admitted = False
        self._is_answering = False
        self._is_ending = False

    def receive_primitive(self, primitive: P_DATA) -> None:
        """Take a fragment of a message; what cannot be one ends the association, not the thread."""
        try:
            if self.message is None:
                self.message = self._new_message()
            super().receive_primitive(primitive)
            self._check_command()
        except Exception:  # noqa: BLE001 - the library raises almost anything on damaged messages
            self.dul.event_queue.put("Evt19")  # unrecognized or invalid PDU (PS3.8 9.2.1)

    def _check_command(self) -> None:
        if self.message is not None and self.message.encoded_command_set.tell() > _COMMAND:
            raise ValueError("a command set beyond any real one")

    def _new_message(self) -> DIMSEMessage:
        if self.msg_queue.qsize() >= _WAITING:
            raise ValueError("more messages than any real peer sends at once")
        message = DIMSEMessage()
        data_set = self._user.open_data_set(lambda: self._request(message))
        message.data_set = data_set
        self._data_sets = [*(each for each in self._data_sets if each.is_open), data_set]
        return message

    def _request(self, message: DIMSEMessage) -> Request | None:
        agreed = [c.transfer_syntax[0] for c in self.assoc.accepted_contexts if c.context_id == message.context_id]
        if not isinstance(message, C_STORE_RQ) or not agreed:
            return None
        names = ("AffectedSOPClassUID", "AffectedSOPInstanceUID")
        sop_class, sop = (str(message.command_set.get(name) or "") for name in names)
        return Request(sop_class, sop, agreed[0])

    def get_msg(self, block: bool = False) -> Any:  # noqa: FBT001, FBT002 - the library's signature
        """Return the next message; a C-STORE that does not say of what is answered here, as the library does not."""
        context, message = super().get_msg(block)
        self._is_answering = message is not None
        if isinstance(message, C_STORE) and message.MessageID is not None and not message.is_valid_request:
            answer: Any = C_STORE()
            answer.MessageIDBeingRespondedTo = message.MessageID
            answer.Status, answer.ErrorComment = UNNAMED.status, UNNAMED.comment
            cast("Arriving", message.DataSet).discard()
            self._user.on_unnamed(self.assoc)
            self.send_msg(answer, cast("int", context))
            return None, None
        return context, message

    def send_msg(self, primitive: Any, context_id: int) -> None:
        """Answer; where the receiver ends, the association ends behind the answer."""
        self.dul._idle_timer.restart()  # noqa: SLF001 - the disk took that time, not the peer
        super().send_msg(primitive, context_id)
        self._is_answering = False
        if self._is_ending:
            self.assoc.abort(block=False)

    def admit(self, limit: int) -> bool:
        """Make it one of the associations that are open; False where ``limit`` of them are."""
        return self._admit(self, limit)

    def end(self) -> None:
        """Abort the association, after the instance that is on its way if there is one; from any thread."""
        self._is_ending = True
        if not self._is_answering and not any(each.is_open for each in self._data_sets):
            self.assoc.abort(block=False)

    def cut(self) -> None:
        """Break the connection off, from any thread; what waits for it sees its end."""
        client = getattr(self.dul.socket, "socket", None)
        if client is not None:
            with contextlib.suppress(OSError):
                client.shutdown(socket.SHUT_RDWR)

    def discard(self) -> None:
        """Take away what an association that is over left on its way."""
        for each in self._data_sets:
            each.discard()
