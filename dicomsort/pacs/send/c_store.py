"""C-STORE: associations that propose what is to be sent, and each instance on the one that accepted its kind."""

from __future__ import annotations

import ssl
from collections.abc import Iterable, Iterator
from dataclasses import replace

from dicomsort.config import SendSettings
from dicomsort.dicom.encoding import DEFLATED
from dicomsort.pacs.send import statuses
from dicomsort.pacs.send.association import MAX_CONTEXTS, Association, Pair
from dicomsort.pacs.send.destination import DicomPeer
from dicomsort.pacs.send.records import Answer, Batch, Instance, Temporary, Unsendable
from dicomsort.pacs.send.selection import outgoing
from dicomsort.pacs.send.transcoding import DECOMPRESSED, Transcoder, is_lossless


class DimseChannel:
    """One association at a time; a new one where the last is lost, or did not propose what comes next."""

    def __init__(
        self, peer: DicomPeer, settings: SendSettings, tls: ssl.SSLContext | None, transcoder: Transcoder | None
    ) -> None:
        self._peer, self._settings, self._tls, self._transcoder = peer, settings, tls, transcoder
        self._association: Association | None = None

    @property
    def is_open(self) -> bool:
        """See ``Channel``."""
        return (association := self._association) is not None and association.is_open

    def deliver(self, batch: Batch) -> list[Answer]:
        """See ``Channel``."""
        return [self._store(instance, batch.contexts) for instance in batch.instances]

    def _store(self, instance: Instance, contexts: tuple[Pair, ...]) -> Answer:
        if (instance.size - instance.offset) % 2 and instance.syntax not in DEFLATED:
            message = "its data set has an odd number of bytes, so it was cut short (PS3.5 7.1)"
            return Answer(message=message, reached=False)
        association = self._opened((instance.sop_class, instance.syntax), contexts)
        context = association.accepted.get((instance.sop_class, instance.syntax))
        try:
            if context is None:
                return self._transcoded(association, instance)
            with outgoing(instance) as file:
                pieces = file.pieces(instance.offset)
                status = association.store(context, instance.sop_class, instance.sop_uid, pieces)
                return _answer(status, file.sha256)
        except Unsendable as problem:
            self._association = association if association.is_open else None
            return Answer(message=str(problem), reached=False)
        except Temporary:
            association.cut()
            self._association = None
            raise

    def _opened(self, pair: Pair, contexts: tuple[Pair, ...]) -> Association:
        """Return an association that proposed the pair."""
        current = self._association
        if current is not None and (pair in current.accepted or pair in current.refused):
            return current
        self.close()
        settings = self._settings
        self._association = Association(self._peer, settings.ae_title, contexts, settings.timeout, self._tls)
        return self._association

    def _transcoded(self, association: Association, instance: Instance) -> Answer:
        """Send in another encoding what the peer does not take as it is, where that is lossless and wanted."""
        reason = association.refused[instance.sop_class, instance.syntax]
        syntax = next((s for s in DECOMPRESSED if (instance.sop_class, s) in association.accepted), None)
        lossless = is_lossless(instance.syntax)
        if self._transcoder is None or syntax is None or not lossless:
            hint = "; --decompress may help" if self._transcoder is None and lossless else ""
            return Answer(message=f"{reason}: {instance.syntax} of {instance.sop_class}{hint}")
        data_set, sha256 = self._transcoder.transcode(instance, syntax)
        context = association.accepted[instance.sop_class, syntax]
        status = association.store(context, instance.sop_class, instance.sop_uid, [data_set])
        answer = _answer(status, sha256)
        note = f"sent as {DECOMPRESSED[syntax]}: {reason}"
        return replace(answer, message="; ".join(filter(None, (note, answer.message))))

    def close(self) -> None:
        """See ``Channel``."""
        if self._association is not None:
            self._association.release()
            self._association = None

    def abort(self) -> None:
        """See ``Channel``."""
        if (association := self._association) is not None:
            association.cut()


def _answer(status: int, sha256: str) -> Answer:
    return Answer(statuses.is_stored(status), statuses.is_temporary(status), statuses.describe(status), sha256)


def batches(instances: Iterable[Instance], *, decompress: bool) -> Iterator[Batch]:
    """Yield each instance alone, those of one association after each other; at most 128 contexts an association."""
    together: list[Instance] = []
    contexts: dict[Pair, None] = {}  # ordered
    for instance in sorted(instances, key=lambda each: (each.sop_class, each.syntax)):
        native = DECOMPRESSED if decompress else ()
        needed = dict.fromkeys((instance.sop_class, syntax) for syntax in (instance.syntax, *native))
        if len(contexts | needed) > MAX_CONTEXTS:
            yield from _alone(together, tuple(contexts))
            together, contexts = [], {}
        contexts |= needed
        together.append(instance)
    yield from _alone(together, tuple(contexts))


def _alone(instances: list[Instance], contexts: tuple[Pair, ...]) -> Iterator[Batch]:
    return (Batch((instance,), contexts) for instance in instances)
