"""A sender of C-STORE made of plain bytes (PS3.8 9.3, PS3.7 9.3.1), which can say what no library would."""

from __future__ import annotations

import socket
import ssl
import struct
from collections.abc import Iterable
from types import TracebackType
from typing import Self

from building import STORAGE
from pydicom.uid import ExplicitVRLittleEndian

ASSOCIATE, ACCEPTED, REJECTED, DATA, RELEASE, RELEASED, ABORT = 1, 2, 3, 4, 5, 6, 7
COMMAND, LAST = 1, 2  # bits of a message control header (PS3.8 E.2)
NO_DATA_SET = 0x0101
ECHO = "1.2.840.10008.1.1"
Contexts = Iterable[tuple[int, str, Iterable[str]]]


class Scu:
    """One connection; every read waits ten seconds at most."""

    def __init__(self, port: int, *, tls: ssl.SSLContext | None = None) -> None:
        connection = socket.create_connection(("127.0.0.1", port), timeout=30)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket = tls.wrap_socket(connection, server_hostname="localhost") if tls else connection
        self.message = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.socket.close()

    def associate(self, *, calling: str = "TEST", contexts: Contexts | None = None) -> bytes:
        """Ask for an association; the answer's PDU, its type first."""
        proposed = contexts or [(1, STORAGE["CT"], [ExplicitVRLittleEndian]), (3, ECHO, [ExplicitVRLittleEndian])]
        items = item(0x10, b"1.2.840.10008.3.1.1.1")
        for number, abstract, syntaxes in proposed:
            inner = b"".join([item(0x30, abstract.encode()), *(item(0x40, syntax.encode()) for syntax in syntaxes)])
            items += item(0x20, struct.pack(">BBBB", number, 0, 0, 0) + inner)
        items += item(0x50, item(0x51, struct.pack(">I", 16384)) + item(0x52, b"1.2.3"))
        names = b"DICOMSORT".ljust(16) + calling.encode().ljust(16)
        self.send(pdu(ASSOCIATE, struct.pack(">HH", 1, 0) + names + bytes(32) + items))
        return self.receive()

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def receive(self) -> bytes:
        """One PDU, its type and five bytes first; empty where the connection ended."""
        try:
            head = self._exactly(6)
            return head + self._exactly(struct.unpack(">I", head[2:])[0]) if head else b""
        except ConnectionError:
            return b""

    def _exactly(self, count: int) -> bytes:
        data = b""
        while len(data) < count and (more := self.socket.recv(count - len(data))):
            data += more
        return data

    def command(self, field: int, *, data_set: bool, context: int = 1, **uids: bytes | None) -> bytes:
        """The PDU of a request; ``uids`` are ``sop_class`` and ``sop``."""
        self.message += 1
        elements = [(0x0100, short(field)), (0x0110, short(self.message))]
        if field == 1:
            elements += [(0x0700, short(0))]
        elements += [(0x0800, short(1 if data_set else NO_DATA_SET))]
        for name, tag in (("sop_class", 0x0002), ("sop", 0x1000)):
            if (value := uids.get(name)) is not None:
                elements.append((tag, value + b"\0" * (len(value) % 2)))
        return pdata(context, COMMAND | LAST, command_set(elements))

    def store(
        self, sop_class: bytes | None, sop: bytes | None, data: bytes, *, context: int = 1, size: int = 16000
    ) -> int:
        """Send an instance; the status of the answer, -1 where the association ended instead."""
        self.send(self.command(1, data_set=True, context=context, sop_class=sop_class, sop=sop))
        for start in range(0, len(data), size):
            last = LAST if start + size >= len(data) else 0
            self.send(pdata(context, last, data[start : start + size]))
        return self.status()

    def status(self) -> int:
        """Status (0000,0900) of the next answer; -1 where the association ended instead."""
        answer = self.receive()
        if answer[:1] != bytes([DATA]):
            return -1
        values = elements_of(answer[12:])
        assert values[0x0120] == short(self.message)
        return int(struct.unpack("<H", values[0x0900])[0])

    def echo(self) -> int:
        self.send(self.command(0x30, data_set=False, context=3, sop_class=ECHO.encode()))
        return self.status()

    def release(self) -> bytes:
        self.send(pdu(RELEASE, bytes(4)))
        return self.receive()

    def abort(self) -> None:
        self.send(pdu(ABORT, bytes(4)))


def item(kind: int, content: bytes) -> bytes:
    return struct.pack(">BBH", kind, 0, len(content)) + content


def pdu(kind: int, content: bytes) -> bytes:
    return struct.pack(">BBI", kind, 0, len(content)) + content


def pdata(context: int, control: int, content: bytes) -> bytes:
    return pdu(DATA, struct.pack(">IBB", len(content) + 2, context, control) + content)


def short(value: int) -> bytes:
    return struct.pack("<H", value)


def command_set(elements: Iterable[tuple[int, bytes]]) -> bytes:
    """Group 0000 in implicit little endian, with its length."""
    body = b"".join(struct.pack("<HHI", 0, tag, len(value)) + value for tag, value in sorted(elements))
    return struct.pack("<HHII", 0, 0, 4, len(body)) + body


def elements_of(data: bytes) -> dict[int, bytes]:
    """The elements of a command set by element number."""
    found, offset = {}, 0
    while offset < len(data):
        _, tag, size = struct.unpack_from("<HHI", data, offset)
        found[tag] = data[offset + 8 : offset + 8 + size]
        offset += 8 + size
    return found
