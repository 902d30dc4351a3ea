"""The kinds of devices by which VMs are on a network, and where else on it the frames are seen that they send."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, NamedTuple

from tests.support import frames, kernel
from tests.support.asking import make
from tests.support.daemon import Daemon, ip, network_namespace, running
from vifclient import Client
from vifclient.messages import Endpoint, EndpointPreference, MacvtapMode, MacvtapPreference, TapPreference

UPLINK, UPLINKS_PEER = "up0", "far0"
MACVTAP_MODES = ("bridge", "vepa", "private", "passthru")


class Wire(NamedTuple):
    """A kind of device.

    Args:
        name: of the kind.
        networks: the configuration of a network `blue` that has it.
        acceptable: what a request for it says.
        far_device: the host's device where what VMs send arrives.
        mode: a macvtap's.
    """

    name: str
    networks: str
    acceptable: EndpointPreference
    far_device: str
    mode: str = ""

    @property
    def family(self) -> str:
        """Of the guard's table for it."""
        return "netdev" if self.mode else "bridge"

    @property
    def without_header(self) -> EndpointPreference:
        """What a request for one says whose frames come without a virtio-net header."""
        if self.mode:
            return macvtap_preference(self.mode, vnet_hdr=False)
        return EndpointPreference(tap=TapPreference(vnet_hdr=False))

    @contextlib.contextmanager
    def running(self, **options: Any) -> Iterator[Daemon]:
        """Run a vifd with the network; `options` as `daemon.running` has them."""
        with network_namespace() as netns:
            if self.mode:
                add_uplink(netns)
            with running(netns=netns, networks=self.networks, **options) as vifd:
                yield vifd
                print(vifd.log()[-5000:])  # pytest shows it when a test fails

    def make(self, client: Client, endpoint_id: str = "", **fields: Any) -> Endpoint:
        """Request an endpoint and give it."""
        return make(client, endpoint_id, acceptable=[self.acceptable], **fields)

    def host_macs(self, netns: str) -> set[bytes]:
        """The MACs of the host's own devices, which send by themselves."""
        names = {self.far_device, UPLINK} if self.mode else {self.far_device}
        return {frames.mac_bytes(link["address"]) for link in ip(netns, "link", "show") if link["ifname"] in names}


def add_uplink(netns: str, name: str = UPLINK, peer: str = UPLINKS_PEER) -> None:
    """Make an uplink whose other end is in the same namespace."""
    kernel.run(netns, "link", "add", name, "type", "veth", "peer", "name", peer)
    for ifname in (name, peer):
        kernel.run(netns, "link", "set", ifname, "addrgenmode", "none", "up")


def macvtap_preference(mode: str, **options: Any) -> EndpointPreference:
    """What a request for a macvtap says."""
    number = MacvtapMode.Value(f"MACVTAP_MODE_{mode.upper()}")
    return EndpointPreference(macvtap=MacvtapPreference(mode=number, **options))


def macvtap(mode: str) -> Wire:
    """A macvtap of a mode."""
    networks = f'[networks.blue]\ndriver = "direct"\nuplink = "{UPLINK}"\n'
    return Wire(f"macvtap-{mode}", networks, macvtap_preference(mode), UPLINKS_PEER, mode)


TAP = Wire("tap", '[networks.blue]\ndriver = "bridge"\nbridge = "br-blue"\n', EndpointPreference(tap=TapPreference()), "br-blue")
MACVTAP = macvtap("bridge")
