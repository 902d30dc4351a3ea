"""A DNS server of somebody else's, that other servers ask."""

from __future__ import annotations

import contextlib
import ipaddress
import socket
import struct
import threading
from collections.abc import Iterator, Mapping

from tests.support import kernel

_A, _RESPONSE, _NO_SUCH_NAME = 1, 0x8180, 3  # RFC 1035, 3.2.2 and 4.1.1


class Upstream:
    """It knows some names, and whoever asks for others is told that there are none.

    Args:
        server: an open socket.
        known: IPv4 addresses by name.
    """

    def __init__(self, server: socket.socket, known: Mapping[str, str]) -> None:
        self._server, self._known = server, known
        #: What it was asked for.
        self.asked: set[str] = set()

    def serve(self) -> None:
        """Answer until the socket is shut down."""
        while True:
            query, sender = self._server.recvfrom(2048)
            if not sender:
                return
            self._server.sendto(self._answer(query), sender)

    def _answer(self, query: bytes) -> bytes:
        labels, rest = [], query[12:]
        while length := rest[0]:
            labels.append(rest[1 : 1 + length].decode())
            rest = rest[1 + length :]
        name, question = ".".join(labels), query[12 : len(query) - len(rest) + 5]
        self.asked.add(name)
        address = self._known.get(name) if struct.unpack("!H", rest[1:3]) == (_A,) else None
        flags = _RESPONSE | (0 if name in self._known else _NO_SUCH_NAME)
        head = query[:2] + struct.pack("!HHHHH", flags, 1, 1 if address else 0, 0, 0) + question
        if address is None:
            return head
        return head + struct.pack("!HHHIH", 0xC00C, _A, 1, 60, 4) + ipaddress.IPv4Address(address).packed


@contextlib.contextmanager
def upstream(netns: str, address: str, known: Mapping[str, str]) -> Iterator[Upstream]:
    """Serve at an address of a namespace for the time of a block."""
    kernel.run(netns, "address", "add", address, "dev", "lo")
    with kernel.inside(netns, lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as server:
        server.bind((address, 53))
        one = Upstream(server, known)
        thread = threading.Thread(target=one.serve)
        thread.start()
        try:
            yield one
        finally:
            with contextlib.suppress(OSError):  # it isn't connected, and ends waiting all the same
                server.shutdown(socket.SHUT_RDWR)
            thread.join()
