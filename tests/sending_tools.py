"""Run ``dicomsort send`` as a user does, and read what it tells."""

from __future__ import annotations

import csv
import hashlib
import io
from collections import Counter

from command import Ran, run

from dicomsort.headers import data_set_offset


def send(*arguments: object) -> Ran:
    quick = [] if "--retry-wait" in arguments else ["--retry-wait", 0.01]
    return run("send", *arguments, *quick)


def rows(ran: Ran) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(ran.out)))


def statuses(ran: Ran) -> Counter[str]:
    return Counter(row["status"] for row in rows(ran))


def data_set(content: bytes) -> str:
    """A hash of the bytes behind the file meta information, less the padding that makes deflated ones even."""
    offset = data_set_offset(content, len(content), lambda start, size: content[start : start + size])
    assert offset is not None
    return hashlib.sha256(content[offset:].rstrip(b"\0")).hexdigest()
