"""A guest's network without a guest, and flows to measure through it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import socket
import statistics
import struct
import threading
import time
from collections.abc import Iterator
from typing import NamedTuple

from tests.support import kernel
from tests.support.daemon import ip, network_namespace
from tests.support.patience import patient

HOST, GUEST = "10.99.0.1", "10.99.0.2"
TAP, GUEST_DEVICE = "tap0", "eth0"
PORT = 9000

_TUNSETOFFLOAD, _TUN_F_CSUM, _TUN_F_TSO4 = 0x400454D0, 1, 2
_FRAME_BYTES = 1 << 17
_DATAGRAM_BYTES = 1400
_UDP_FRAME_BYTES = _DATAGRAM_BYTES + 8 + 20 + 14
_SEGMENT_BYTES, _SEGMENT_FRAME_BYTES = 1448, 1514  # with TCP's timestamps
_SKIPPED_SECONDS, _WINDOWS, _WINDOW_SECONDS = 0.5, 5, 0.7
_DATAGRAMS_A_MS = 5


class Wire(NamedTuple):
    """A tap with a guest behind it.

    Args:
        host: the namespace with the tap.
        guest: the namespace with the guest's device.
        ifindex: the tap's.
    """

    host: str
    guest: str
    ifindex: int


@contextlib.contextmanager
def wired() -> Iterator[Wire]:
    """Give a tap whose frames go to a second tap in another namespace, and back, as between vhost-net and a guest: with
    virtio-net's headers, and with TCP's segments together in one frame.
    """
    with network_namespace() as host, network_namespace() as guest:
        fds = [kernel.open_tap(host, TAP), kernel.open_tap(guest, GUEST_DEVICE)]
        for fd in fds:
            fcntl.ioctl(fd, _TUNSETOFFLOAD, _TUN_F_CSUM | _TUN_F_TSO4)
        macs = {}
        for netns, device, address in ((host, TAP, HOST), (guest, GUEST_DEVICE, GUEST)):
            # In two steps: in one, the kernel sets it up first and gives it an address, which would change by itself later.
            kernel.run(netns, "link", "set", device, "addrgenmode", "none")
            kernel.run(netns, "link", "set", device, "up")
            kernel.run(netns, "address", "add", f"{address}/24", "dev", device)
            macs[address] = ip(netns, "link", "show", device)[0]["address"]
        for netns, device, other in ((host, TAP, GUEST), (guest, GUEST_DEVICE, HOST)):
            kernel.run(netns, "neighbour", "replace", other, "lladdr", macs[other], "dev", device)
        with _copied(*fds):
            yield Wire(host, guest, ip(host, "link", "show", TAP)[0]["ifindex"])


@contextlib.contextmanager
def guest_behind(fd: int, mac: str, address: str) -> Iterator[str]:
    """Give the namespace of a guest whose device is at the other end of an open tap with a virtio-net header.

    Args:
        fd: the tap's; it is closed in the end.
        mac: the guest's.
        address: the guest's, with its prefix length.
    """
    with network_namespace() as guest:
        device = kernel.open_tap(guest, GUEST_DEVICE)
        for one in (fd, device):
            fcntl.ioctl(one, _TUNSETOFFLOAD, _TUN_F_CSUM | _TUN_F_TSO4)
        kernel.run(guest, "link", "set", GUEST_DEVICE, "address", mac, "addrgenmode", "none")
        kernel.run(guest, "link", "set", GUEST_DEVICE, "up")
        kernel.run(guest, "address", "add", address, "dev", GUEST_DEVICE)
        with _copied(fd, device):
            yield guest


@contextlib.contextmanager
def _copied(first: int, second: int) -> Iterator[None]:
    """Copy frames between two taps; close them afterwards."""
    stop, stopping = os.pipe()

    def copy() -> None:
        while True:
            readable, _, _ = select.select([first, second, stop], [], [])
            if stop in readable:
                return
            for fd in readable:
                os.write(second if fd == first else first, os.read(fd, _FRAME_BYTES))

    thread = threading.Thread(target=copy)
    thread.start()
    try:
        yield
    finally:
        os.close(stopping)
        thread.join()
        for fd in (stop, first, second):
            os.close(fd)


def udp_receiver(netns: str, address: str) -> socket.socket:
    """Give a socket that takes the flood."""
    receiver = kernel.inside(netns, lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    receiver.bind((address, PORT))
    receiver.settimeout(patient(10))
    return receiver


@contextlib.contextmanager
def udp_flood(netns: str, address: str, size_bytes: int = _DATAGRAM_BYTES) -> Iterator[None]:
    """Send datagrams, 5,000 a second (at 1,442 bytes a frame: 58 Mbit/s), or as many as this machine can."""
    stop = threading.Event()

    def send() -> None:
        while not stop.wait(0.001):
            for _ in range(_DATAGRAMS_A_MS):
                sender.send(bytes(size_bytes))

    with kernel.inside(netns, lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as sender:
        sender.connect((address, PORT))
        thread = threading.Thread(target=send)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()


def send_datagrams(netns: str, address: str, count: int) -> None:
    """Send some datagrams at once."""
    with kernel.inside(netns, lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as sender:
        for _ in range(count):
            sender.sendto(bytes(_DATAGRAM_BYTES), (address, PORT))


def udp_bps(source: str, netns: str, address: str) -> float:
    """Measure what arrives of a flood, in bits of frames a second."""
    with udp_receiver(netns, address) as receiver, udp_flood(source, address):
        return _bits_a_second(receiver) * _UDP_FRAME_BYTES / _DATAGRAM_BYTES


def tcp_bps(source: str, netns: str, address: str) -> float:
    """Measure what arrives of a TCP connection that sends as fast as it can, in bits of frames a second."""

    def send() -> None:
        with contextlib.suppress(ConnectionError):  # the receiver has had enough
            while True:
                sender.send(bytes(1 << 16))

    with (
        kernel.inside(netns, lambda: socket.create_server((address, PORT))) as server,
        kernel.inside(source, lambda: socket.create_connection((address, PORT), timeout=patient(10))) as sender,
    ):
        receiver, _ = server.accept()
        thread = threading.Thread(target=send)
        thread.start()
        with receiver:
            receiver.settimeout(patient(10))
            bps = _bits_a_second(receiver) * _SEGMENT_FRAME_BYTES / _SEGMENT_BYTES
            # A reset: without it the sender's queue would drain at the rate first.
            receiver.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        thread.join()
        return bps


def _bits_a_second(receiver: socket.socket) -> float:
    """Measure five times 0.7 s, after 0.5 s in which the burst goes through; give the median.

    What stops on a busy machine, like the copying between two taps, catches up later: that is in one or two of them.
    """
    begin = time.monotonic() + _SKIPPED_SECONDS
    while time.monotonic() < begin:
        receiver.recv(1 << 16)
    return statistics.median(_bits_a_second_of_window(receiver) for _ in range(_WINDOWS))


def _bits_a_second_of_window(receiver: socket.socket) -> float:
    begin, received = time.monotonic(), 0
    while (now := time.monotonic()) < begin + _WINDOW_SECONDS:
        received += len(receiver.recv(1 << 16))
    return received * 8 / (now - begin)


def drain(receiver: socket.socket) -> int:
    """Count the datagrams that are there already."""
    receiver.setblocking(False)
    count = 0
    with contextlib.suppress(BlockingIOError):
        while receiver.recv(1 << 16):
            count += 1
    return count
