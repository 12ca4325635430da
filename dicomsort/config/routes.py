"""Checks of ``[routes]``: each class is one of the model, and each destination can be sent to."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from dicomsort.config.settings import Destination, Routes
from dicomsort.errors import UsageError
from dicomsort.records import OTHER


def check_classes(routes: Routes, labels: Iterable[str]) -> None:
    """Raise ``UsageError`` where a route is of no class of the model."""
    known = list(dict.fromkeys([*labels, OTHER]))
    for class_ in routes:
        if class_ not in known:
            raise UsageError(f"[routes]: expected a class of the model ({', '.join(known)}), received {class_!r}")


def check_routes(routes: Routes, labels: Iterable[str], check: Callable[[Destination], object]) -> None:
    """Raise ``UsageError`` where a route is of no class of the model, or ``check`` raises one for a destination."""
    check_classes(routes, labels)
    for class_, destinations in routes.items():
        for destination in destinations:
            try:
                check(destination)
            except UsageError as error:
                raise UsageError(f"[routes] {class_}: {error}") from None
