"""Macvtaps of a direct network, and who is at the other end of its uplink."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.support import kernel
from tests.support.asking import make, refusal
from tests.support.daemon import Daemon, ip
from tests.support.patience import patient
from tests.support.wires import macvtap_preference
from vifclient import Client
from vifclient.messages import DriftKind, Endpoint, EndpointPreference

ALICE = 20001
NETWORKS = """
[networks.lan]
driver = "direct"
uplink = "up0"
"""
VNET_HDR = bytes(10)
MAGIC = b"a frame of vifd's tests"
ETHER_TYPE = 0x88B5  # IEEE 802, local experiments


def macvtap(mode: str = "bridge", **options: Any) -> list[EndpointPreference]:
    return [macvtap_preference(mode, **options)]


def make_macvtap(client: Client, mode: str = "bridge", *, network: str = "lan", **fields: Any) -> Endpoint:
    queues = {"queues": fields.pop("queues")} if "queues" in fields else {}
    return make(client, network=network, acceptable=macvtap(mode, **queues), **fields)


def macvtaps(netns: str) -> list[Any]:
    return [link for link in ip(netns, "link", "show") if link.get("linkinfo", {}).get("info_kind") == "macvtap"]


def nodes(vifd: Daemon) -> list[Path]:
    return [path for path in vifd.devices.rglob("*") if not path.is_dir()]


def sysfs_number(netns: str, ifname: str) -> int:
    """The device number, from a sysfs of that namespace (`ip netns exec` mounts one)."""
    show = f"cat /sys/class/net/{ifname}/macvtap/tap*/dev"
    done = subprocess.run(["ip", "netns", "exec", netns, "sh", "-c", show], check=True, capture_output=True, text=True)
    major, minor = done.stdout.split(":")
    return os.makedev(int(major), int(minor))


def frame(destination: str, source: str, payload: bytes = MAGIC) -> bytes:
    addresses = bytes.fromhex((destination + source).replace(":", ""))
    return addresses + struct.pack("!H", ETHER_TYPE) + payload.ljust(46, b"\0")


@contextlib.contextmanager
def listening(netns: str, ifname: str = "far0", *, ether_type: int = ETHER_TYPE) -> Iterator[socket.socket]:
    """A socket on the other end of the uplink."""
    one = kernel.packet_socket(netns, ifname, ether_type)
    one.settimeout(patient(20))
    try:
        yield one
    finally:
        one.close()


def refused(vifd: Daemon, client: Client, words: str, *, code: str = "FAILED_PRECONDITION", reason: str, **fields: Any) -> None:
    """A request is refused, with these words, and changes nothing."""
    before, before_nodes = kernel.snapshot(vifd.netns), nodes(vifd)
    with refusal(code, reason) as caught:
        make_macvtap(client, **fields)
    assert words in caught.value.message
    assert (kernel.snapshot(vifd.netns), nodes(vifd)) == (before, before_nodes)


def checked(client: Client, endpoint_id: str) -> tuple[list[str], Endpoint]:
    answer = client.check_endpoint(endpoint_id, repair=True)
    return [DriftKind.Name(drift.kind).removeprefix("DRIFT_KIND_") for drift in answer.drifts], answer.endpoint
