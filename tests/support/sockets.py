"""Unix sockets for tests, and who connects to them."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from tests.support.patience import patient

NOBODY = 65534


@contextlib.contextmanager
def ordinary_user() -> Iterator[int]:
    """Be no root for a while, where the tests run as root: what connects meanwhile is an ordinary user's. Gives the uid."""
    before = os.geteuid()
    if before == 0:
        os.seteuid(NOBODY)
    try:
        yield os.geteuid()
    finally:
        os.seteuid(before)


def connect(path: Path, kind: socket.SocketKind = socket.SOCK_STREAM) -> socket.socket:
    """Connect; the socket blocks for at most ten seconds."""
    connection = socket.socket(socket.AF_UNIX, kind)
    connection.settimeout(patient(10))
    connection.connect(str(path))
    return connection
