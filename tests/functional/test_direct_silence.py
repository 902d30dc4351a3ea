"""A macvtap has its VM's MAC, and the VM may still run elsewhere: the host says nothing by it."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import frames, kernel
from tests.support.asking import asked, make, refusal
from tests.support.daemon import Daemon, network_namespace, running, short_directory
from vifclient import Client
from vifclient.messages import EndpointPreference, GuardSpec, MacvtapPreference, PortSpec

NETWORKS = """
[networks.lan]
driver = "direct"
uplink = "up0"
"""
MACVTAP = [EndpointPreference(macvtap=MacvtapPreference())]
MAC, OTHER_MAC = "52:54:00:12:34:56", "52:54:00:12:34:57"
ETH_P_IPV6 = 0x86DD
READ_ONLY = 'mount --bind /proc/sys /proc/sys && mount -o remount,bind,ro /proc/sys && exec "$@"'


class Confined(Daemon):
    """A vifd that may write none of the kernel's settings."""

    @property
    def argv(self) -> list[str]:
        return ["unshare", "--mount", "--propagation", "private", "sh", "-c", READ_ONLY, "-", *super().argv]


@pytest.fixture
def netns() -> Iterator[str]:
    """A host that forwards IPv6, as with NAT, and so reports its multicast groups on every device."""
    with network_namespace() as name:
        subprocess.run(["ip", "netns", "exec", name, "sysctl", "-q", "net.ipv6.conf.all.forwarding=1"], check=True)
        kernel.run(name, "link", "add", "up0", "type", "veth", "peer", "name", "far0")
        for ifname in ("up0", "far0"):
            kernel.run(name, "link", "set", ifname, "addrgenmode", "none", "up")
        yield name


def test_nothing_is_said_in_its_name(netns: str) -> None:
    far = kernel.packet_socket(netns, "far0", ETH_P_IPV6)
    far.settimeout(20)
    with contextlib.closing(far), running(networks=NETWORKS, netns=netns) as vifd, Client(vifd.socket) as client:
        endpoint = make(client, network="lan", acceptable=MACVTAP, port=PortSpec(mac=MAC, guard=GuardSpec(enabled=False)))
        setting = Path("/proc/sys/net/ipv6/conf", endpoint.macvtap.ifname, "disable_ipv6")
        assert kernel.inside(netns, setting.read_text) == "1\n"
        # A device like it, but that vifd didn't make: by when that has spoken twice, vifd's would have too.
        other = ["link", "add", "other", "link", "up0", "address", OTHER_MAC, "type", "macvtap", "mode", "bridge"]
        kernel.run(netns, *other)
        kernel.run(netns, "link", "set", "other", "addrgenmode", "none", "up")
        heard = []
        while heard.count(frames.mac_bytes(OTHER_MAC)) < 2:
            heard.append(far.recv(2048)[6:12])
        assert frames.mac_bytes(MAC) not in heard


def test_where_that_cannot_be_made_sure_there_is_no_macvtap(netns: str) -> None:
    with short_directory() as directory:
        vifd = Confined(directory, networks=NETWORKS, netns=netns)
        before = kernel.snapshot(netns)
        try:
            with Client(vifd.start().socket) as client, refusal("FAILED_PRECONDITION", "HOST_NOT_READY") as caught:
                client.request_endpoint(asked(network="lan", acceptable=MACVTAP))
            assert "can't set disable_ipv6" in caught.value.message
            assert kernel.snapshot(netns) == before
        finally:
            vifd.kill()


def test_where_there_is_no_ipv6_there_is_nothing_to_switch_off(netns: str) -> None:
    with running(networks=NETWORKS, netns=netns) as vifd, Client(vifd.socket) as client:
        make(client, network="lan", acceptable=MACVTAP, port=PortSpec(mtu_bytes=1000))
