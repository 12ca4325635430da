"""Where the places of a plan are on disk: ``inbox/…`` and ``outbox/…``."""

from __future__ import annotations

from dataclasses import dataclass

from dicomsort.files.beneath import Beneath


@dataclass(frozen=True, slots=True)
class Roots:
    """The absolute folders that ``inbox/`` and ``outbox/`` stand for."""

    inbox: str
    outbox: str

    def absolute(self, path: str) -> str:
        """Return the absolute path of one that begins with its root."""
        root, slash, rest = path.partition("/")
        return (self.inbox if root == "inbox" else self.outbox) + slash + rest


class Resolver:
    """Paths of places to read and to change; those of the inbox lead through no link, see ``Beneath``.

    Many may write to an inbox. The outbox's folders are those that dicomsort made.
    """

    def __init__(self, roots: Roots) -> None:
        self.roots = roots
        self._inbox = Beneath(roots.inbox)
        self.kept_open = self._inbox.kept_open

    def path(self, place: str) -> str:
        """Return the path of a place, valid in this block of ``kept_open``."""
        root, _, below = place.partition("/")
        return self._inbox.path(below) if root == "inbox" and below else self.roots.absolute(place)


def renaming_name(part: str) -> str:
    """Return the name of the empty file that is made before a part file is renamed."""
    return f"{part.removesuffix('.part')}-2.part"


def spare_name(part: str) -> str:
    """Return the name under which a whole part file is made anew: the earlier one stays until that is done."""
    return f"{part.removesuffix('.part')}-3.part"
