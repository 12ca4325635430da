"""Settings declared once, as dataclasses: each field has its option's name, type, default, help and limits.

The command line, the environment, the tables of a file and the help are made from these.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_origin, get_type_hints

from dicomsort.config.option import Option
from dicomsort.config.tables import DAY, MOST_PORT

LOG_FORMATS = ("text", "json")


def _setting(
    default: Any,
    help_: str,
    metavar: str = "",
    *,
    least: float | None = None,
    most: float | None = None,
    words: tuple[str, ...] = (),
) -> Any:
    """A field; ``words`` are the only values that a text may have."""
    facts = {"help": help_, "metavar": metavar, "minimum": least, "maximum": most, "words": words}
    return field(default=default, metadata=facts)


def options_of(settings: type[Any]) -> dict[str, Option]:
    """The options that a dataclass of settings declares, by name."""
    hints = get_type_hints(settings)
    found = {}
    for each in fields(settings):
        hint = next((part for part in get_args(hints[each.name]) if part is not NoneType), hints[each.name])
        is_list = get_origin(hints[each.name]) is tuple
        facts = {**each.metadata}
        default: Any = each.default
        found[each.name] = Option(facts.pop("words") or hint, default, is_list=is_list, **facts)
    return found


@dataclass(frozen=True, slots=True)
class Destination:
    """A peer to send to, and what it must be told; a table ``[destinations.NAME]`` of a file."""

    to: str | None = _setting(
        None,
        "Where to: AE@HOST:PORT (C-STORE), the address of a DICOMweb server (STOW-RS), or NAME of a table "
        "[destinations.NAME].",
        "AE@HOST:PORT|https://HOST/PATH|NAME",
    )
    ae_title: str = _setting("DICOMSORT", "The AE title that we call ourselves.", "AE")
    tls: bool = _setting(False, "Use TLS to AE@HOST:PORT; the other --tls options imply it.")
    tls_ca: Path | None = _setting(None, "The certificates to trust (PEM) [default: the system's].", "FILE")
    tls_cert: Path | None = _setting(None, "The certificate that we show (PEM).", "FILE")
    tls_key: Path | None = _setting(None, "Its key (PEM, without a password).", "FILE")
    auth: Path | None = _setting(
        None, "A file that holds user:password, or the value of the HTTP header Authorization.", "FILE"
    )

    def values(self) -> dict[str, Any]:
        """The value of each field; paths are as they are, which ``asdict`` would copy without their notes."""
        return {each.name: getattr(self, each.name) for each in fields(self)}


@dataclass(frozen=True, slots=True)
class SendSettings(Destination):
    """How to send; ``[send]``. ``retry_wait`` and ``timeout`` are in seconds."""

    run: str | None = _setting(None, "Only what this run placed, of those that `dicomsort runs` lists.", "RUN")
    associations: int = _setting(1, "Associations, or connections, at a time.", "N", least=1, most=256)
    retries: int = _setting(
        5, "How often to retry after a temporary failure: no connection, out of resources, HTTP 503.", "N", least=0,
        most=100,
    )  # fmt: skip
    retry_wait: float = _setting(
        1.0, "Seconds before the first retry; doubled for each further one, up to 60.", "SECONDS", least=0, most=3600
    )
    timeout: float = _setting(60.0, "Seconds to wait for the peer, each time.", "SECONDS", least=0.001, most=DAY)
    decompress: bool = _setting(False, "Send uncompressed what the peer refuses as it is, where no value changes.")
    again: bool = _setting(False, "Send also what was acknowledged before.")
    journal: Path | None = _setting(
        None, "Where to keep what was acknowledged [default: in the outbox's state].", "FILE"
    )
    json: bool = _setting(False, "Print a JSON object a file instead of CSV.")
    quiet: bool = _setting(False, "Print only what failed.")
    log_file: Path | None = _setting(None, "Append the log to this file.", "FILE")
    log_format: str = _setting("text", "The form of the log's lines.", words=LOG_FORMATS)


@dataclass(frozen=True, slots=True)
class ReceiveSettings:
    """How to receive; ``[receive]``.

    ``max_object_size`` is in MiB, ``max_pdu`` in bytes, ``timeout`` in seconds; an empty ``allow`` allows all.
    """

    port: int = _setting(
        11112, "The TCP port to listen at; 0 takes a free one, which the log tells.", "PORT", least=0, most=MOST_PORT
    )
    bind: str = _setting(
        "0.0.0.0",  # noqa: S104 - a receiver is there for others
        "The address to listen at; one of this host's to be heard there only.",
        "ADDRESS",
    )
    ae_title: str = _setting(
        "DICOMSORT", "The AE title of this receiver; it answers to every name it is called by.", "AE"
    )
    allow: tuple[str, ...] = _setting(
        (), "An AE title that may send; give it again for each [default: everybody].", "AE"
    )
    max_associations: int = _setting(
        20, "How many associations may be open; more are rejected.", "N", least=1, most=1000
    )
    max_pdu: int = _setting(131_072, "The longest PDU to be sent, in bytes.", "BYTES", least=4096, most=1 << 20)
    max_object_size: int = _setting(
        4096, "The largest instance, in MiB; larger ones are refused.", "MIB", least=1, most=1 << 20
    )
    timeout: float = _setting(60.0, "Cut off a sender that was silent for SECONDS.", "SECONDS", least=1, most=DAY)
    tls_cert: Path | None = _setting(None, "Speak TLS (1.2 or newer) with this certificate (PEM).", "FILE")
    tls_key: Path | None = _setting(None, "The key of --tls-cert, where it is in a file of its own.", "FILE")
    tls_ca: Path | None = _setting(None, "Hear only senders with a certificate that one of these (PEM) signed.", "FILE")
    log_file: Path | None = _setting(None, "Append the log to this file [default: stderr].", "FILE")
    log_format: str = _setting("text", "The form of the log's lines.", words=LOG_FORMATS)
    quiet: bool = _setting(False, "Log warnings and errors only.")


Routes = Mapping[str, Sequence[Destination]]  # where each class is sent on to
DESTINATION, SEND, RECEIVE = options_of(Destination), options_of(SendSettings), options_of(ReceiveSettings)
