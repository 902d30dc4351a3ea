"""The guests' side of taps and macvtaps, without guests: frames go in, and what comes out there or at the host is read."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import select
import socket
import subprocess
from collections.abc import Iterator
from typing import Any, Protocol

from tests.support import frames, kernel
from tests.support.daemon import wait_for
from tests.support.patience import patient
from vifclient import Client
from vifclient.messages import Endpoint

_VNET_HDR = bytes(10)
_FRAME_BYTES = 1 << 16
_ETH_P_ALL = 3
_ARRIVAL_SECONDS = patient(10)
_numbers = itertools.count(1)


class Sender(Protocol):
    """Who sends frames: a guest, or what stands for one."""

    mac: str

    def send(self, frame: bytes) -> None:
        """Send a frame."""


class Guest:
    """The holder of an endpoint's tap or macvtap."""

    def __init__(self, endpoint: Endpoint, fd: int) -> None:
        device = endpoint.tap if endpoint.HasField("tap") else endpoint.macvtap
        #: Of the guard's table for it.
        self.family = "bridge" if endpoint.HasField("tap") else "netdev"
        self.endpoint_id, self.ifname, self.ifindex = endpoint.endpoint_id, device.ifname, device.ifindex
        self.mac, self.fd = endpoint.port.mac, fd
        self._header = _VNET_HDR if device.vnet_hdr else b""
        os.set_blocking(fd, False)

    def send(self, frame: bytes) -> None:
        """Send a frame."""
        os.write(self.fd, self._header + frame)

    def read(self) -> bytes:
        """Give the next frame.

        Raises:
            BlockingIOError: there is none.
        """
        return os.read(self.fd, _FRAME_BYTES)[len(self._header) :]

    def fileno(self) -> int:
        """For select."""
        return self.fd


class Host:
    """The host's side of a network: a bridge, or the other end of an uplink."""

    def __init__(self, netns: str, device: str) -> None:
        self._socket = kernel.inside(netns, lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETH_P_ALL)))
        self._socket.bind((device, _ETH_P_ALL))
        self._socket.setblocking(False)

    def read(self) -> bytes:
        """Give the next frame that the device handed up.

        Raises:
            BlockingIOError: there is none.
        """
        while True:
            frame, address = self._socket.recvfrom(_FRAME_BYTES)
            if address[2] != socket.PACKET_OUTGOING:  # type: ignore[attr-defined]  # mypy doesn't know it
                return frame

    def fileno(self) -> int:
        """For select."""
        return self._socket.fileno()

    def close(self) -> None:
        """Stop listening."""
        self._socket.close()


@contextlib.contextmanager
def guest(client: Client, endpoint: Endpoint) -> Iterator[Guest]:
    """Hold an endpoint's device for the time of a block."""
    with client.acquire_fds(endpoint.endpoint_id) as queues:
        yield Guest(endpoint, queues.fds[0])


@contextlib.contextmanager
def host_side(netns: str, device: str) -> Iterator[Host]:
    """Listen at a device of the host's for the time of a block."""
    host = Host(netns, device)
    try:
        yield host
    finally:
        host.close()


def arrived(sender: Sender, receivers: list[Guest | Host], *sent: bytes) -> list[list[bytes]]:
    """Send frames, and after them one that the guard always lets through; give what each receiver got before that one."""
    sentinel = frames.probe(sender.mac, next(_numbers))
    for frame in (*sent, sentinel):
        sender.send(frame)
    return [_up_to(receiver, sentinel) for receiver in receivers]


def connect(sender: Sender, receivers: list[Guest | Host]) -> None:
    """Wait until frames get through: a bridge forwards from the moment when it has noticed that its ports have carrier."""

    def is_through() -> bool:
        sentinel = frames.probe(sender.mac, next(_numbers))
        sender.send(sentinel)
        return all(_has(receiver, sentinel) for receiver in receivers)

    wait_for(is_through)


def drops(netns: str, guest_: Guest) -> int:
    """How many frames of a guest's the guard has dropped."""
    return drops_of(netns, guest_.ifname, guest_.family)


def drops_of(netns: str, ifname: str, family: str = "bridge") -> int:
    """How many frames from a device the guard has dropped."""
    elements = _nft(netns, "list", "set", family, "vifd", "drops")[-1]["set"].get("elem", [])
    return sum(one["elem"]["counter"]["packets"] for one in elements if one["elem"]["val"] == ifname)


def counters(netns: str, family: str = "bridge") -> dict[str, int]:
    """How many frames the guard has dropped, by why."""
    shown = _nft(netns, "list", "counters", "table", family, "vifd")
    return {one["counter"]["name"]: one["counter"]["packets"] for one in shown if "counter" in one}


def listed(netns: str, of: str, ifname: str) -> list[str]:
    """What a set or map of the guard has of a port: the rest of the keys; where there is none, the port itself."""
    kind = "map" if of == "ports" else "set"
    elements = _nft(netns, "list", kind, "bridge", "vifd", of)[-1][kind].get("elem", [])
    keys = [one[0] if kind == "map" else one for one in elements]
    parts = [key["concat"] if isinstance(key, dict) else [key] for key in keys]
    return [str(part[-1]) for part in parts if part[0] == ifname]


def learned(netns: str, ifname: str) -> set[str]:
    """The MACs that a bridge has learned behind a port."""
    argv = ["bridge", "-n", netns, "-j", "fdb", "show", "dynamic"]
    shown = json.loads(subprocess.run(argv, check=True, capture_output=True, text=True).stdout or "[]")
    return {entry["mac"] for entry in shown if entry["ifname"] == ifname}


def _has(receiver: Guest | Host, frame: bytes) -> bool:
    with contextlib.suppress(BlockingIOError):
        while True:
            if receiver.read() == frame:
                return True
    return False


def _up_to(receiver: Guest | Host, sentinel: bytes) -> list[bytes]:
    got: list[bytes] = []
    while True:
        readable, _, _ = select.select([receiver], [], [], _ARRIVAL_SECONDS)
        assert readable, "the frame that the guard lets through did not arrive"
        with contextlib.suppress(BlockingIOError):
            while (frame := receiver.read()) != sentinel:
                got.append(frame)
            return got


def _nft(netns: str, *arguments: str) -> Any:
    argv = ["ip", "netns", "exec", netns, "nft", "-j", *arguments]
    return json.loads(subprocess.run(argv, check=True, capture_output=True, text=True).stdout)["nftables"]
