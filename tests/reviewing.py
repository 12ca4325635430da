"""A review for tests: an outbox with something held, and its page's server in a thread of this process."""

from __future__ import annotations

import http.client
import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from building import STORAGE, make_dicom, read_tree
from command import Ran, quiet, run, sort
from PIL import Image

from dicomsort.bundle import default_path, load
from dicomsort.engines.engine import R, SerialEngine, T
from dicomsort.files import Files
from dicomsort.pages.review import Gallery, Session, serve
from dicomsort.sorting import Corrections, ReviewService
from dicomsort.sorting.review import Decision

ENDS = 120  # seconds that a server has to begin, to answer or to end
CONTRADICTING = {"modality": "CT", "sop_class": STORAGE["CR"]}


class OneByOne(SerialEngine):
    """The serial engine, asked by the threads of a server: a model runs in one of them at a time."""

    def __init__(self) -> None:
        super().__init__()
        self._turn = threading.Lock()

    def submit(self, function: Callable[[T], R], task: T, /) -> Future[R]:
        with self._turn:
            return super().submit(function, task)


def picture(path: Path, grey: int = 120, side: int = 96) -> Path:
    """A PNG, which headers say nothing of."""
    path.parent.mkdir(parents=True, exist_ok=True)
    values = (np.add.outer(np.arange(side), np.arange(side)) + grey) % 256
    Image.fromarray(values.astype(np.uint8)).save(path)
    return path


def fill(inbox: Path) -> None:
    """A clear CT; a series of two whose header contradicts itself, and another series of that study; two pictures."""
    make_dicom(inbox / "clear.dcm", study=9)
    for instance in (1, 2):
        make_dicom(inbox / f"odd{instance}.dcm", study=1, series=1, instance=instance, **CONTRADICTING)
    make_dicom(inbox / "odd3.dcm", study=1, series=2, **CONTRADICTING)
    picture(inbox / "pictures" / "a.png")
    picture(inbox / "pictures" / "b.png", 60)


def held_outbox(tmp_path: Path, *options: str) -> Path:
    """An outbox that holds back what ``fill`` makes: two series for one reason, two pictures for another."""
    fill(tmp_path / "inbox")
    ran = sort(*(options or ("--move", "--settle", "0")), tmp_path / "inbox", tmp_path / "outbox", "--quiet")
    assert ran.code == 3, ran.err
    return tmp_path / "outbox"


def desk_of(outbox: Path, files: Files | None = None, *, learn: bool = True) -> ReviewService:
    """A desk that has read what is held."""
    used = files or Files()
    corrections = Corrections(f"{outbox}/.dicomsort/corrections", "f00d", used) if learn else None
    desk = ReviewService(quiet(outbox, used), corrections, SerialEngine())
    desk.open()
    return desk


def item_of(desk: ReviewService, source: str) -> str:
    """The key of the item that has a file of the inbox."""
    return next(k for k, i in desk.queue.items.items() if any(f.row.source == source for f in i.files))


def decide(desk: ReviewService, key: str, class_: str, who: str) -> Decision:
    """Decide about an item as it is now."""
    desk.refresh()
    item = desk.queue.items.get(key)
    return desk.decide(key, item.version if item else "", class_, who)


@dataclass
class Server:
    """A running review, and how it is spoken to."""

    session: Session
    address: str = ""
    seal: str = ""
    thread: threading.Thread = field(default_factory=threading.Thread)

    def ask(
        self, path: str, body: object = None, *, method: str = "", token: str | None = None, **headers: str
    ) -> tuple[int, str, dict[str, str]]:
        """Status, text and headers of an answer; ``headers`` have ``_`` for ``-``, an empty one is left out."""
        parts = urlsplit(self.address)
        place = f"/{parts.path.strip('/') if token is None else token}/{path}"
        told = {"Host": parts.netloc, "X-Dicomsort": self.seal} | {k.replace("_", "-"): v for k, v in headers.items()}
        data = body if isinstance(body, bytes) else None if body is None else json.dumps(body).encode()
        with closing(http.client.HTTPConnection(parts.netloc, timeout=ENDS)) as connection:
            connection.putrequest(method or ("GET" if data is None else "POST"), place, skip_host=True)
            for name, value in told.items():
                if value:
                    connection.putheader(name, value)
            if data is not None:
                connection.putheader("Content-Length", str(len(data)))
            connection.endheaders(data)
            answer = connection.getresponse()
            return answer.status, answer.read().decode("utf-8", "replace"), dict(answer.headers)

    def told(self, path: str, body: object = None) -> Any:
        """The JSON of an answer that must be one."""
        status, text, _ = self.ask(path, body)
        assert status == 200, text
        return json.loads(text)


@contextmanager
def reviewed(outbox: Path, **options: Any) -> Iterator[Server]:
    """The page of an outbox, until the block ends."""
    desk = desk_of(outbox)
    bundle = load(default_path())
    session = Session(desk, bundle, Gallery(OneByOne(), str(outbox)), "anna", **options)
    session.refresh()
    server, ready = Server(session), threading.Event()

    def tell(address: str) -> None:
        server.address = address
        ready.set()

    server.thread = threading.Thread(target=serve, args=(session, "127.0.0.1", 0, "outbox", tell))
    server.thread.start()
    assert ready.wait(ENDS)
    try:
        server.seal = server.ask("")[1].partition('name="seal" content="')[2].partition('"')[0]
        yield server
    finally:
        if server.thread.is_alive():
            server.ask("finish", {})
        server.thread.join(ENDS)


def undo_as_rehearsed(outbox: Path, sorted_: str) -> Ran:
    """Undo a run with its decisions, once ``--dry-run`` has said the same and changed nothing."""
    before = read_tree(outbox)
    dry = run("undo", "--with-decisions", "--dry-run", "--json", outbox, sorted_)
    assert read_tree(outbox) == before
    ran = run("undo", "--with-decisions", "--json", outbox, sorted_)
    told, done = json.loads(dry.out), json.loads(ran.out)
    assert (dry.code, told["dry_run"], done["dry_run"]) == (ran.code, True, False)
    same = "found", "bytes", "statuses", "actions", "held", "causes", "undoes"
    assert {name: told[name] for name in same} == {name: done[name] for name in same}
    return ran
