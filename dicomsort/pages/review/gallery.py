"""Pictures on demand: made by workers with limits, the newest kept in bounded memory, none on disk."""

from __future__ import annotations

import threading
from collections import OrderedDict
from functools import partial

from dicomsort.engine import Engine
from dicomsort.errors import WorkerLost
from dicomsort.tasks import Asked, Portrait, portray

KEPT = 64 << 20  # bytes of pictures
_WEIGHT = 4096  # bytes of all else in a portrait, about


class Gallery:
    """Portraits of files below one folder; safe to ask from several threads."""

    def __init__(self, engine: Engine, root: str, kept: int = KEPT) -> None:
        """``kept`` bounds the memory of pictures that are asked for again."""
        self._engine, self._root, self._room = engine, root, kept
        self._portraits: OrderedDict[Asked, Portrait] = OrderedDict()
        self._turn = threading.Lock()

    def portrait(self, asked: Asked) -> Portrait:
        """A portrait, or one whose ``problem`` says why there is none."""
        with self._turn:
            if asked in self._portraits:
                self._portraits.move_to_end(asked)
                return self._portraits[asked]
        try:
            (portrait,) = self._engine.submit(partial(portray, self._root), [asked]).result()
        except WorkerLost as error:
            return Portrait(b"", str(error))
        if not portrait.problem:  # a problem may pass
            self._keep(asked, portrait)
        return portrait

    def forget(self) -> None:
        """Let go of everything: files have moved."""
        with self._turn:
            self._portraits.clear()

    def _keep(self, asked: Asked, portrait: Portrait) -> None:
        with self._turn:
            self._portraits[asked] = portrait
            weight = sum(len(each.picture) + _WEIGHT for each in self._portraits.values())
            while weight > self._room and len(self._portraits) > 1:
                _, gone = self._portraits.popitem(last=False)
                weight -= len(gone.picture) + _WEIGHT
