"""The review page: what was held back, shown large, and one key a class; each decision is a run that can be undone."""

from __future__ import annotations

from dicomsort.pages.review.gallery import Gallery
from dicomsort.pages.review.guard import checked_address
from dicomsort.pages.review.server import serve
from dicomsort.pages.review.session import Session

__all__ = ["Gallery", "Session", "checked_address", "serve"]
