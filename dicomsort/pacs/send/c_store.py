"""C-STORE: associations that propose what is to be sent, and each instance on the one that took its kind."""

from __future__ import annotations

import ssl
from collections.abc import Iterable, Iterator

from dicomsort.config import SendSettings
from dicomsort.dicom.encoding import DEFLATED
from dicomsort.pacs.send import statuses
from dicomsort.pacs.send.association import MAX_CONTEXTS, Association
from dicomsort.pacs.send.destination import DicomPeer
from dicomsort.pacs.send.records import Answer, Batch, Instance, Temporary, Unsendable
from dicomsort.pacs.send.selection import outgoing
from dicomsort.pacs.send.transcoding import NATIVE, Transcoder, is_lossless

Pair = tuple[str, str]


class DimseChannel:
    """One association at a time; a new one where the last is lost, or did not propose what comes next."""

    def __init__(
        self, peer: DicomPeer, settings: SendSettings, tls: ssl.SSLContext | None, transcoder: Transcoder | None
    ) -> None:
        """Nothing is sent before the first delivery."""
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
                status = association.store(context, instance.sop_class, instance.sop_uid, file.pieces(instance.offset))
                return _answer(status, file.sha256)
        except Unsendable as problem:
            self._association = association if association.is_open else None
            return Answer(message=str(problem), reached=False)
        except Temporary:
            association.cut()
            self._association = None
            raise

    def _opened(self, pair: Pair, contexts: tuple[Pair, ...]) -> Association:
        held = self._association
        if held is not None and (pair in held.accepted or pair in held.refused):
            return held
        self.close()
        self._association = Association(
            self._peer, self._settings.ae_title, contexts, self._settings.timeout, self._tls
        )
        return self._association

    def _transcoded(self, association: Association, instance: Instance) -> Answer:
        """Send what the peer does not take as it is in another encoding, where that loses nothing and is wanted."""
        reason = association.refused[instance.sop_class, instance.syntax]
        syntax = next((s for s in NATIVE if (instance.sop_class, s) in association.accepted), None)
        if self._transcoder is None or syntax is None or not is_lossless(instance.syntax):
            hint = "; --decompress may help" if _would_help(self._transcoder, instance.syntax) else ""
            return Answer(message=f"{reason}: {instance.syntax} of {instance.sop_class}{hint}")
        data_set, sha256 = self._transcoder.transcode(instance, syntax)
        context = association.accepted[instance.sop_class, syntax]
        status = association.store(context, instance.sop_class, instance.sop_uid, [data_set])
        answer = _answer(status, sha256)
        note = f"sent as {NATIVE[syntax]}: {reason}"
        return Answer(answer.acknowledged, answer.again, "; ".join(filter(None, (note, answer.message))), sha256)

    def close(self) -> None:
        """See ``Channel``."""
        if self._association is not None:
            self._association.release()
            self._association = None

    def abort(self) -> None:
        """See ``Channel``."""
        if (association := self._association) is not None:
            association.cut()


def _would_help(transcoder: Transcoder | None, syntax: str) -> bool:
    return transcoder is None and is_lossless(syntax)


def _answer(status: int, sha256: str) -> Answer:
    message = "" if status == statuses.SUCCESS else statuses.describe(status)
    return Answer(statuses.is_stored(status), statuses.is_temporary(status), message, sha256)


def batches(instances: Iterable[Instance], *, decompress: bool) -> Iterator[Batch]:
    """Yield each instance alone, those of one association after each other; at most 128 contexts an association."""
    chosen: dict[Pair, list[Instance]] = {}
    proposed: dict[Pair, None] = {}
    ordered = sorted(instances, key=lambda instance: (instance.sop_class, instance.syntax))
    for instance in ordered:
        pair = instance.sop_class, instance.syntax
        needed = [pair, *((instance.sop_class, syntax) for syntax in NATIVE if decompress)]
        if len(proposed | dict.fromkeys(needed)) > MAX_CONTEXTS:
            yield from _batched(chosen, proposed)
            chosen, proposed = {}, {}
        proposed |= dict.fromkeys(needed)
        chosen.setdefault(pair, []).append(instance)
    yield from _batched(chosen, proposed)


def _batched(chosen: dict[Pair, list[Instance]], proposed: dict[Pair, None]) -> Iterator[Batch]:
    contexts = tuple(proposed)
    for instances in chosen.values():
        for instance in instances:
            yield Batch((instance,), contexts)
