"""Who may speak to the review page: by address, by token, and, for what changes something, from the page itself."""

from __future__ import annotations

import hmac
import ipaddress
import secrets
from dataclasses import dataclass, field

from dicomsort.errors import UsageError

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
    """What requests are held to. The token is in the address of everything; the seal only in the page.

    A page of another origin can neither read the address nor set a header (Fetch standard, CORS), and one whose name
    was made to point here (DNS rebinding) gives its own name as Host.
    """

    hosts: frozenset[str]  # as a browser writes them, with the port
    token: str = field(default_factory=lambda: secrets.token_urlsafe(TOKEN_BYTES))
    seal: str = field(default_factory=lambda: secrets.token_urlsafe(TOKEN_BYTES))

    def misses(self, host: str, token: str) -> str:
        """Why a request may not be answered; empty where it may."""
        if host.lower() not in self.hosts:
            return f"expected one of the hosts {', '.join(sorted(self.hosts))}, received another"
        if not hmac.compare_digest(token.encode(errors="replace"), self.token.encode()):
            return "expected the address that `dicomsort review` printed, with its token; received another"
        return ""

    def forges(self, host: str, origin: str | None, site: str | None, seal: str) -> str:
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
