"""An uplink with a cable's far end, and the VLANs there."""

from __future__ import annotations

import contextlib
import secrets
import subprocess
from collections.abc import Iterator
from typing import Any

from tests.support import kernel
from tests.support.daemon import ip
from tests.support.guests import Host

UPLINK, FAR = "up0", "far0"


def add_uplink(netns: str, name: str = UPLINK, peer: str = FAR, *, mtu_bytes: int = 1500) -> None:
    """Make an uplink, and what is at its other end, without addresses."""
    mtu = str(mtu_bytes)
    kernel.run(netns, "link", "add", name, "mtu", mtu, "type", "veth", "peer", "name", peer, "mtu", mtu)
    for ifname in (name, peer):
        kernel.run(netns, "link", "set", ifname, "addrgenmode", "none", "up")


def rare_index() -> int:
    """Choose an interface index that hardly any other namespace has come to: `/dev/tapN` is named by it, and shared by all."""
    return 200 + secrets.randbelow(100)


def skip_indexes(netns: str, last: int) -> None:
    """Use interface indexes up, so that the next device has one beyond `last`."""
    lines = [f"link add skip{number} type bridge" for number in range(last)]
    subprocess.run(["ip", "-n", netns, "-batch", "-"], input="\n".join(lines), text=True, check=True)


def vlan_devices(netns: str) -> list[Any]:
    """Every 802.1Q device of a namespace but those of the far end."""
    links = ip(netns, "link", "show")
    return [link for link in links if link.get("linkinfo", {}).get("info_kind") == "vlan" and link["link"] != FAR]


class Far(Host):
    """One VLAN at the far end."""

    def __init__(self, netns: str, ifname: str) -> None:
        super().__init__(netns, ifname)
        self.mac = kernel.settings(netns, ifname)["address"]

    def send(self, frame: bytes) -> None:
        """Send a frame in this VLAN."""
        self._socket.send(frame)


@contextlib.contextmanager
def far_side(netns: str, vid: int) -> Iterator[Far]:
    """Take part in a VLAN at the far end of the uplink, for the time of a block; 0: without a tag."""
    ifname = f"{FAR}.{vid}" if vid else FAR
    if vid:
        kernel.run(netns, "link", "add", "link", FAR, "name", ifname, "type", "vlan", "id", str(vid))
        kernel.run(netns, "link", "set", ifname, "addrgenmode", "none", "up")
    far = Far(netns, ifname)
    try:
        yield far
    finally:
        far.close()
        if vid:
            kernel.run(netns, "link", "delete", ifname)
