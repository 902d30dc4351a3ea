"""What goes to a guest and back while something happens to it: pings, and a TCP connection that must not break."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import tempfile
import threading
from collections.abc import Callable
from contextlib import suppress

from tests.guest.machine import Console
from tests.support import kernel
from tests.support.daemon import wait_for

_PORT, _TIMEOUT_S = 5000, 60.0
_BLOCK_BYTES, _PAUSE_S = 1024, 0.005
_ANSWER = re.compile(rb"bytes from .* icmp_seq=(\d+) ")


class Pings:
    """A ping every 5 ms.

    Args:
        netns: where from.
        address: where to.
    """

    def __init__(self, netns: str, address: str) -> None:
        command = ["ip", "netns", "exec", netns, "ping", "-n", "-i", "0.005", address]
        self._said = tempfile.TemporaryFile()  # noqa: SIM115  a pipe that nobody reads would stop it
        self._process = subprocess.Popen(command, stdout=self._said)

    def stop(self) -> tuple[int, int]:
        """End, and say how many pings were sent, and how many of them lost, up to the last one that was answered."""
        self._process.send_signal(signal.SIGINT)
        self._process.wait(_TIMEOUT_S)
        self._said.seek(0)
        answered = {int(number) for number in _ANSWER.findall(self._said.read())}
        assert answered
        return max(answered), max(answered) - len(answered)

    def close(self) -> None:
        """End, whatever has come."""
        self._process.kill()
        self._process.wait()
        self._said.close()


class Stream:
    """A TCP connection to a guest that gives back what it gets: a numbered block every few milliseconds.

    Args:
        netns: where from.
        address: the guest's.
        console: the guest's.
    """

    def __init__(self, netns: str, address: str, console: Console) -> None:
        assert console.run(f"nc -ll -p {_PORT} -e cat & until netstat -lnt | grep -q :{_PORT}; do usleep 50000; done")[0] == 0
        self._socket = kernel.inside(netns, socket.socket)
        self._socket.settimeout(_TIMEOUT_S)
        self._socket.connect((address, _PORT))
        self._over = threading.Event()
        self._blocks, self._came = 0, bytearray()
        self._errors: list[OSError] = []
        self._threads = [threading.Thread(target=self._run, args=(one,), daemon=True) for one in (self._send, self._receive)]
        for thread in self._threads:
            thread.start()

    def wait_for_echo(self) -> None:
        """Wait until what is sent from now on has come back."""
        wanted = (self._blocks + 1) * _BLOCK_BYTES
        wait_for(lambda: self._errors or len(self._came) >= wanted, _TIMEOUT_S)
        assert not self._errors, self._errors

    def stop(self) -> int:
        """End, check that every byte came back in its order, and give their number."""
        self._over.set()
        for thread in self._threads:
            thread.join(_TIMEOUT_S)
        assert not self._errors, self._errors
        sent = b"".join(map(_block, range(self._blocks)))
        assert self._came == sent, f"{len(sent)} bytes were sent, and {len(self._came)} came back, or others"
        return len(sent)

    def close(self) -> None:
        """End, whatever has come."""
        self._over.set()
        with suppress(OSError):  # it is no connection any more
            self._socket.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(_TIMEOUT_S)
        self._socket.close()

    def _run(self, work: Callable[[], None]) -> None:
        try:
            work()
        except OSError as error:
            self._errors.append(error)

    def _send(self) -> None:
        while not self._over.wait(_PAUSE_S):
            self._socket.sendall(_block(self._blocks))
            self._blocks += 1
        self._socket.shutdown(socket.SHUT_WR)

    def _receive(self) -> None:
        while data := self._socket.recv(1 << 16):
            self._came += data


def _block(number: int) -> bytes:
    return number.to_bytes(8, "big") * (_BLOCK_BYTES // 8)
