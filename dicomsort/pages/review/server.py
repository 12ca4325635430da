"""The review page's server: a small application of Tornado's, on loopback, for the time of one command.

A request is allowed by address and by token, and a change only from the page itself.
"""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import json
import secrets
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from tornado.http1connection import HTTP1Connection
from tornado.httpserver import HTTPServer
from tornado.iostream import IOStream
from tornado.web import Application, HTTPError, RequestHandler

from dicomsort.errors import DicomsortError, OutboxLocked, Outdated, UsageError
from dicomsort.jsonlines import parse
from dicomsort.pages.review.session import Session, keys_for
from dicomsort.pages.templating import TEMPLATES, rendered

TOKEN_BYTES = 24
HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": (
        "default-src 'none'; img-src 'self'; script-src 'self'; style-src 'self'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",  # the address holds the token
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
_LOOPBACK = ("localhost", "127.0.0.1", "[::1]")


@dataclass(frozen=True, slots=True)
class Guard:
    """What a request must show. The token is in the address of everything; the seal only in the page.

    A page of another origin can neither read the address nor set a header (Fetch standard, CORS), and one whose name
    was made to point here (DNS rebinding) gives its own name as Host.
    """

    hosts: frozenset[str]  # as a browser writes them, with the port
    token: str = field(default_factory=partial(secrets.token_urlsafe, TOKEN_BYTES))
    seal: str = field(default_factory=partial(secrets.token_urlsafe, TOKEN_BYTES))

    def access_error(self, host: str, token: str) -> str:
        """Why a request may not be answered; empty where it may."""
        if host.lower() not in self.hosts:
            return f"expected one of the hosts {', '.join(sorted(self.hosts))}, received another"
        if not hmac.compare_digest(token.encode(errors="replace"), self.token.encode()):
            return "expected the address that `dicomsort review` printed, with its token; received another"
        return ""

    def forgery_error(self, host: str, origin: str | None, site: str | None, seal: str) -> str:
        """Why a request may not change anything; empty where it comes from the page."""
        if origin is not None and origin.lower() != f"http://{host.lower()}":
            return "expected a request of the page itself, received one of another origin"
        if site not in {None, "same-origin", "none"}:
            return f"expected a request of the page itself, received one that is {site}"
        if not hmac.compare_digest(seal.encode(errors="replace"), self.seal.encode()):
            return "expected the header X-Dicomsort with what the page holds, received another; reload the page"
        return ""


def guard_for(address: str, port: int) -> Guard:
    """The guard of a server that listens there."""
    ip = ipaddress.ip_address(address)
    names = _LOOPBACK if ip.is_loopback else (f"[{address}]" if ip.version == 6 else address,)  # noqa: PLR2004
    return Guard(frozenset(f"{name}:{port}" for name in names) | (frozenset(names) if port == 80 else frozenset()))  # noqa: PLR2004


def checked_address(text: str) -> str:
    """An address to listen at: loopback, or one address of this machine; UsageError otherwise."""
    try:
        ip = ipaddress.ip_address("127.0.0.1" if text == "localhost" else text)
    except ValueError:
        raise UsageError(f"--host: expected an IP address of this machine, received {text!r}") from None
    if ip.is_unspecified or ip.is_multicast:
        raise UsageError(f"--host: expected one address, whose name requests must give, received {text!r}")
    return str(ip)


PAGE = Path(__file__).parent / "page"
_OWN = ("review.css", "review.js", "drawing.js", "list.js", "asking.js", "icon.svg")
STATIC = {path.name: path for path in (TEMPLATES / "common.css", *(PAGE / name for name in _OWN))}
TYPES = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
CODES: dict[type[Exception], int] = {Outdated: 409, OutboxLocked: 423, UsageError: 400}
MOST_SIDE, MOST_BODY = 2048, 64 << 10  # pixels, bytes
MOST_CONNECTIONS, IDLE = 64, 20.0  # open at a time; seconds without a request
KNOWN = "dicomsort_knows"  # an attribute of the streams whose client has shown the token
THREADS = 8  # that wait for workers, or for the outbox


@dataclass
class Serving:
    """A running server; ``address`` is what a person opens."""

    session: Session
    guard: Guard
    name: str  # of the outbox, for the page's head
    address: str = ""
    done: asyncio.Event = field(default_factory=asyncio.Event)
    pool: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(THREADS, "dicomsort-review"))


def serve(session: Session, address: str, port: int, name: str, announce: Callable[[str], None]) -> None:
    """Serve until a page says that the review is finished, or a signal ends it; a decision that runs is waited for.

    ``announce`` gets the address to open when all is ready. UsageError where the port cannot be had.
    """
    try:
        listening = socket.create_server((address, port), family=socket.AF_INET6 if ":" in address else socket.AF_INET)
    except OSError as error:
        raise UsageError(f"--port: expected one that is free at {address}, received {port} ({error})") from error
    listening.setblocking(False)
    asyncio.run(_serve(session, listening, address, name, announce))


async def _serve(
    session: Session, listening: socket.socket, address: str, name: str, announce: Callable[[str], None]
) -> None:
    port = listening.getsockname()[1]
    guard = guard_for(address, port)
    host = f"[{address}]" if ":" in address else address
    serving = Serving(session, guard, name, f"http://{host}:{port}/{guard.token}/")
    limits = {"max_body_size": MOST_BODY, "max_header_size": MOST_BODY, "body_timeout": IDLE}
    server = Server(application(serving), idle_connection_timeout=IDLE, **limits)
    server.add_socket(listening)
    with serving.pool:
        announce(serving.address)
        await serving.done.wait()
        server.stop()
        await server.close_all_connections()


class Server(HTTPServer):
    """Keeps few connections: clients without the token must not stop others, nor use up descriptors."""

    def initialize(self, *arguments: Any, **options: Any) -> None:
        """As Tornado's."""
        super().initialize(*arguments, **options)
        self._streams: dict[IOStream, None] = {}

    def handle_stream(self, stream: IOStream, address: tuple[str, int]) -> None:
        """Take a connection; where there are too many, close the oldest that has not shown the token."""
        self._streams = {each: None for each in self._streams if not each.closed()} | {stream: None}
        if len(self._streams) > MOST_CONNECTIONS:
            known = [each for each in self._streams if getattr(each, KNOWN, False)]
            strangers = [each for each in self._streams if each not in known]
            (strangers or known)[0].close()
        super().handle_stream(stream, address)


def application(serving: Serving) -> Application:
    """Return all that can be requested; anything else is refused as if its token were wrong."""
    to = {"serving": serving}
    routes: list[Any] = [
        (r"/([^/]+)/", Page, to),
        (r"/([^/]+)/static/([a-z.]+)", Static, to),
        (r"/([^/]+)/(state)", Query, to),
        (r"/([^/]+)/(items)/(\d{1,99})/(\d{1,99})", Query, to),
        (r"/([^/]+)/(next)/(-?\d{1,99})", Query, to),
        (r"/([^/]+)/(item)/(\d{1,99})", Query, to),
        (r"/([^/]+)/picture/(\d{1,99})/([0-9a-f]+)/(-?\d{1,99})/(\d{1,99})", PictureHandler, to),
        (r"/([^/]+)/(decide|undo|finish)", Act, to),
    ]
    return Application(routes, default_handler_class=NotFound, default_handler_args=to, log_function=lambda _: None)


class Guarded(RequestHandler):
    """Answers only requests that the guard allows; nothing may be cached, framed or sniffed."""

    def initialize(self, serving: Serving) -> None:
        """Take what every handler needs."""
        self.serving = serving

    def set_default_headers(self) -> None:
        """Set the headers of every answer, also of refusals."""
        for name, value in HEADERS.items():
            self.set_header(name, value)
        self.clear_header("Server")

    def prepare(self) -> None:
        """Refuse a wrong host or token; and what changes something, where the page did not send it."""
        token = self.request.path.removeprefix("/").partition("/")[0]
        guard, host, headers = self.serving.guard, self.request.host, self.request.headers
        if error := guard.access_error(host, token):
            raise HTTPError(403, reason="Forbidden", log_message=error)
        if isinstance(self.request.connection, HTTP1Connection):
            setattr(self.request.connection.stream, KNOWN, True)
        if self.request.method in {"GET", "HEAD"}:
            return
        origin, site = headers.get("Origin"), headers.get("Sec-Fetch-Site")
        if error := guard.forgery_error(host, origin, site, headers.get("X-Dicomsort", "")):
            raise HTTPError(403, reason="Forbidden", log_message=error)

    def write_error(self, status_code: int, **kwargs: Any) -> None:  # noqa: ARG002 - Tornado's signature
        """Say what was expected and what was received, in plain text."""
        error = kwargs.get("exc_info", (None, None, None))[1]
        self.set_header("Content-Type", "text/plain; charset=utf-8")
        if isinstance(error, HTTPError):
            self.finish(f"{error.log_message or error}\n")
            return
        self.set_status(next((code for kind, code in CODES.items() if isinstance(error, kind)), 500))
        received = error.strerror if isinstance(error, OSError) else type(error).__name__
        self.finish(f"{error if isinstance(error, DicomsortError) else f'expected success, received {received}'}\n")

    def log_exception(self, *_: Any) -> None:
        """Log nothing: an address holds the token."""

    async def in_thread(self, act: Callable[..., Any], *arguments: Any) -> Any:
        """Do what takes time in a thread."""
        return await asyncio.get_running_loop().run_in_executor(self.serving.pool, act, *arguments)

    def answer(self, content: dict[str, Any]) -> None:
        """Answer with JSON."""
        self.set_header("Content-Type", "application/json")
        self.finish(json.dumps(content))


class Page(Guarded):
    """The page itself."""

    async def get(self, _: str) -> None:
        """Fill in the template."""
        session = self.serving.session
        classes = [(key, label) for label, key in keys_for(session.bundle.labels).items()]
        facts = {"name": self.serving.name, "seal": self.serving.guard.seal, "classes": classes, "who": session.who}
        self.finish(rendered(PAGE, "review.html", **facts))


class Static(Guarded):
    """Styles and scripts, a handful."""

    async def get(self, _: str, name: str) -> None:
        """Give one of them."""
        if name not in STATIC:
            raise HTTPError(404, log_message="expected a file of the page, received another name")
        path = STATIC[name]
        self.set_header("Content-Type", f"{TYPES[path.suffix]}; charset=utf-8")
        self.finish(path.read_bytes())


class Query(Guarded):
    """What is known of the review, or of items by their places, as JSON."""

    async def get(self, _: str, what: str, *numbers: str) -> None:
        """Answer, in a thread where that takes time."""
        session, given = self.serving.session, [int(number) for number in numbers]
        if what == "items":
            self.answer(session.window(*given))
        elif what == "next":
            self.answer(session.next_open(*given))
        else:
            self.answer(await self.in_thread(session.facts if what == "item" else session.state, *given))


class PictureHandler(Guarded):
    """One picture of an item, at most so many pixels a side."""

    async def get(self, _: str, place: str, version: str, number: str, side: str) -> None:
        """Give it as a JPEG; 404 says why there is none."""
        size = max(32, min(int(side), MOST_SIDE))
        preview = await self.in_thread(self.serving.session.picture, int(place), version, int(number), size)
        if not preview.picture:
            raise HTTPError(404, log_message=preview.problem or "it has no pixels")
        self.set_header("Content-Type", "image/jpeg")
        self.finish(preview.picture)


class Act(Guarded):
    """What changes something."""

    async def post(self, _: str, what: str) -> None:
        """Decide, undo, or finish."""
        session, body = self.serving.session, self._body()
        if what == "finish":
            try:
                self.answer(await self.in_thread(session.farewell))
            finally:
                self.serving.done.set()
        elif what == "undo":
            self.answer(await self.in_thread(session.undo, str(body.get("run", ""))))
        else:
            place = body.get("place")
            if not isinstance(place, int):
                raise UsageError(f"expected the number of an item, received {place!r}")
            key, version, class_, who = (str(body.get(name, "")) for name in ("key", "version", "class", "who"))
            self.answer(await self.in_thread(session.decide, place, (key, version), class_, who))

    def _body(self) -> dict[str, Any]:
        try:
            body = parse(self.request.body or b"{}")
        except ValueError:
            body = None
        if not isinstance(body, dict):
            raise UsageError("expected a JSON object, received something else")
        return body


class NotFound(Guarded):
    """Any other address."""

    async def get(self, *_: str) -> None:
        """Say so."""
        raise HTTPError(404, log_message="expected an address of the review page, received another")
