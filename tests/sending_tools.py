"""Run ``dicomsort send`` as a user does, and read what it tells."""

from __future__ import annotations

import csv
import email.utils
import hashlib
import io
import json
import re
import time
from collections import Counter

from command import Ran, run
from peers_send import Reply

from dicomsort.dicom.headers import data_set_offset

JSON = {"Content-Type": "application/dicom+json"}


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


def parts(body: bytes) -> list[bytes]:
    """The DICOM files of a request."""
    boundary = body[: body.index(b"\r\n")]
    return [part.partition(b"\r\n\r\n")[2][:-2] for part in body.split(boundary)[1:-1]]


def uids(body: bytes) -> list[str]:
    return [found.decode() for found in re.findall(rb"\x08\x00\x18\x00UI..([0-9.]+)", body)]


def stored(body: bytes, failing: dict[str, int] | None = None, *, warning: int = 0, status: int = 200) -> Reply:
    """What a server answers that stored all but those that fail."""
    failing = failing or {}
    sequences: dict[str, list[dict[str, object]]] = {"00081199": [], "00081198": []}
    for each in uids(body):
        item: dict[str, object] = {"00081155": {"vr": "UI", "Value": [each]}}
        if each in failing:
            item["00081197"] = {"vr": "US", "Value": [failing[each]]}
        elif warning:
            item["00081196"] = {"vr": "US", "Value": [warning]}
        sequences["00081198" if each in failing else "00081199"].append(item)
    answer = {tag: {"vr": "SQ", "Value": items} for tag, items in sequences.items() if items}
    return Reply(status, json.dumps(answer).encode(), JSON)


def dated(after: str | int) -> str:
    """What a server says of when to ask again: a text, or the date so many seconds from now."""
    return after if isinstance(after, str) else email.utils.formatdate(time.time() + after, usegmt=True)
