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
        self._portraits: OrderedDict[tuple[Asked, str], Portrait] = OrderedDict()
        self._turn = threading.Lock()

    def portrait(self, asked: Asked, sha256: str) -> Portrait:
        """A portrait of a file of this content, or one whose ``problem`` says why there is none."""
        key = (asked, sha256)  # another file may come by the same name
        with self._turn:
            if key in self._portraits:
                self._portraits.move_to_end(key)
                return self._portraits[key]
        try:
            (portrait,) = self._engine.submit(partial(portray, self._root), [asked]).result()
        except WorkerLost as error:
            return Portrait(b"", str(error))
        if not portrait.problem:  # a problem may pass
            self._keep(key, portrait)
        return portrait

    def _keep(self, key: tuple[Asked, str], portrait: Portrait) -> None:
        with self._turn:
            self._portraits[key] = portrait
            weight = sum(len(each.picture) + _WEIGHT for each in self._portraits.values())
            while weight > self._room and len(self._portraits) > 1:
                _, gone = self._portraits.popitem(last=False)
                weight -= len(gone.picture) + _WEIGHT
