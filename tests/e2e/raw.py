"""A virtual machine that sends whatever frames it is told to, as whoever has root in one can.

Its kernel puts what is written to a macvtap on its interface as it is, so a shell is enough.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from tests.guest.machine import Console

_FRAME_BYTES, _HEADER = 128, bytes(10)  # the header is virtio-net's, which the device wants before each frame
#: How often the frames are in what is sent in one go: no more than its socket has room for, as who has to wait for room may
#: wait forever (seen with Linux 6.1).
_ROUNDS = 10


class RawSender:
    """The way to the network past the guest's own stack.

    Args:
        console: the guest's.
        mac: the MAC that its interface was given.
    """

    def __init__(self, console: Console, mac: str) -> None:
        self._console, self.mac = console, mac
        self.run("for family in all default; do echo 1 >/proc/sys/net/ipv6/conf/$family/disable_ipv6; done")  # it would send too
        self.run("ip link add link eth0 name raw0 type macvtap && ip link set raw0 up && ls /dev/tap*")
        self._device = self.run("echo /dev/tap$(cat /sys/class/net/raw0/ifindex)").strip()

    def run(self, command: str) -> str:
        """Run a command in the guest, and give what it said.

        Raises:
            AssertionError: it failed.
        """
        status, said = self._console.run(command)
        assert status == 0, f"{command}: {said}"
        return said

    def send(self, frame: bytes) -> None:
        """Send a frame."""
        self.run(f"echo {(_HEADER + frame).hex()} | xxd -r -p | dd of={self._device} bs=4096 2>/dev/null")

    @contextmanager
    def flooding(self, frames: Iterable[bytes]) -> Iterator[None]:
        """Send frames over and over for the time of a block; each becomes as long as the others."""
        blocks = b"".join((_HEADER + frame).ljust(_FRAME_BYTES, b"\0") for frame in frames)
        self.run(f"echo {blocks.hex()} | xxd -r -p >/tmp/once")
        self.run(f"i=0; while [ $i -lt {_ROUNDS} ]; do cat /tmp/once; i=$((i + 1)); done >/tmp/flood")
        endless = f"while true; do dd if=/tmp/flood of={self._device} bs={_FRAME_BYTES}; done"
        pid = self.run(f"({endless}) >/dev/null 2>&1 & echo $!").strip()
        try:
            yield
        finally:
            self.run(f"kill {pid}")
