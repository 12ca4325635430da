"""The review page: what was held back, shown large, and one key a class; each decision is a run that can be undone."""

from __future__ import annotations

from dicomsort.pages.review.server import checked_address, serve
from dicomsort.pages.review.session import Gallery, Session

__all__ = ["Gallery", "Session", "checked_address", "serve"]
