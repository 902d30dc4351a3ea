"""Sends the same frames through a tap or macvtap, over and over, as fast as it can: `python -I -S flood.py FD|NAME FRAME...`.

Args:
    an open one's descriptor, or the name of one that will be, which is opened as early as the kernel lets it; then frames in hex.

What it sends has a virtio-net header in front. A link that is down is no reason to stop. It ends with its stdin, or when the
device is gone, and says how many frames it got rid of; with a name, it says first that it is ready.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import select
import socket
import stat
import struct
import sys
import tempfile
from pathlib import Path

_TUNSETIFF, _TUNSETCARRIER = 0x400454CA, 0x400454E2
_IFF_TAP, _IFF_NO_PI, _IFF_VNET_HDR, _IFF_MULTI_QUEUE = 0x0002, 0x1000, 0x4000, 0x0100
_TURNS = 50


def _is_over() -> bool:
    return bool(select.select([0], [], [], 0)[0])


def _open_early(name: str) -> int:
    print("ready", flush=True)
    while not _is_over():
        try:
            socket.if_nametoindex(name)
            numbers = [path.read_text() for path in Path("/sys/class/net", name, "macvtap").glob("tap*/dev")]
            return _open_macvtap(numbers[0]) if numbers else _open_tap(name)
        except OSError:
            continue
    return -1


def _open_tap(name: str) -> int:
    """Open a tap with several queues: the second can be had while whoever makes it still holds the first."""
    flags = _IFF_TAP | _IFF_NO_PI | _IFF_VNET_HDR | _IFF_MULTI_QUEUE
    fd = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.ioctl(fd, _TUNSETIFF, struct.pack("16sH22x", name.encode(), flags))
    except OSError:
        os.close(fd)
        raise
    return fd


def _open_macvtap(number: str) -> int:
    """Open a macvtap by a node of our own, before its owner's is there."""
    major, minor = number.split(":")
    with tempfile.TemporaryDirectory() as directory:
        node = Path(directory, "node")
        os.mknod(node, stat.S_IFCHR | 0o600, os.makedev(int(major), int(minor)))
        return os.open(node, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)


def _flood(fd: int, frames: list[bytes]) -> int:
    count = 0
    while True:
        with contextlib.suppress(
            OSError
        ):  # whoever makes a tap takes its carrier away, and it may have been open before; no macvtap
            fcntl.ioctl(fd, _TUNSETCARRIER, struct.pack("i", 1))
        for _ in range(_TURNS):
            for frame in frames:
                try:
                    os.write(fd, frame)
                    count += 1
                except OSError as error:
                    if error.errno in (errno.EBADFD, errno.ENODEV):
                        return count
        if _is_over():
            return count


def main() -> None:
    """Flood."""
    target, packed = sys.argv[1], [bytes(10) + bytes.fromhex(one) for one in sys.argv[2:]]
    fd = int(target) if target.isdecimal() else _open_early(target)
    print(_flood(fd, packed) if fd >= 0 else 0)


if __name__ == "__main__":
    main()
