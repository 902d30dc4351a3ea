"""Names: those of other guests are answered by the host, and others by whom the host asks."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import NamedTuple

import pytest

from tests.support import kernel
from tests.support.asking import make
from tests.support.daemon import Daemon, network_namespace, short_directory, wait_for
from tests.support.dhcp import DNS, PTR, Answer, Guest, guest
from tests.support.dns import Upstream, upstream
from vifclient import Client
from vifclient.messages import Instance, PortSpec

SERVER, OUTSIDE, OUTSIDE_ADDRESS = "192.0.2.53", "www.example.net", "198.51.100.7"
GATEWAY, MAC, ADDRESS, WEB_ADDRESS = "10.91.0.1", "52:54:00:00:00:0a", "10.91.0.10", "10.91.0.20"
NETWORK = f"""
[networks.blue]
driver = "bridge"
bridge = "br-blue"
addresses = ["{GATEWAY}/24"]
dhcp = true
domain = "vms.example.org"
"""


class Apart(Daemon):
    """A vifd that finds another /etc/resolv.conf."""

    @property
    def argv(self) -> list[str]:
        """The command that starts it."""
        own = self.directory / "resolv.conf"
        own.write_text(f"nameserver {SERVER}\n")
        own.chmod(0o644)
        bind = f'mount --bind {own} "$(realpath /etc/resolv.conf)" && exec "$@"'
        return ["unshare", "--mount", "--propagation", "private", "sh", "-c", bind, "sh", *super().argv]


class Scene(NamedTuple):
    """A guest, what it was told by DHCP, and the server outside."""

    guest: Guest
    told: Answer
    outside: Upstream


@contextlib.contextmanager
def scene(networks: str) -> Iterator[Scene]:
    """Run a network with two VMs, of which one is a guest here and the other a name."""
    with contextlib.ExitStack() as stack:
        netns, directory = stack.enter_context(network_namespace()), stack.enter_context(short_directory())
        outside = stack.enter_context(upstream(netns, SERVER, {OUTSIDE: OUTSIDE_ADDRESS}))
        daemon = Apart(directory, netns=netns, networks=networks)
        stack.callback(lambda: print(daemon.log()))
        stack.callback(daemon.kill)
        client = stack.enter_context(Client(daemon.start().socket))
        make(client, port=PortSpec(mac=MAC, addresses=[ADDRESS]))
        make(client, port=PortSpec(addresses=[WEB_ADDRESS]), instance=Instance(name="Web"))
        wait_for(lambda: "dhcp is served" in daemon.log())
        one = stack.enter_context(guest(netns, "br-blue", MAC))
        told = wait_for(one.configure)
        assert told.address == ADDRESS
        kernel.run(one.netns, "address", "add", f"{ADDRESS}/24", "dev", "eth0")
        kernel.run(one.netns, "route", "add", "default", "via", GATEWAY)
        yield Scene(one, told, outside)
        assert daemon.stop() == 0


@pytest.mark.parametrize("dns", ["", f'dns = ["{SERVER}"]\n'], ids=["the host's own server", "a server of the network"])
def test_a_guest_resolves_another_vms_name_and_one_outside(dns: str) -> None:
    with scene(NETWORK + dns) as (one, told, outside):
        assert told.address_of(DNS) == (SERVER if dns else GATEWAY)
        for name in ("web", "web.vms.example.org"):
            assert wait_for(lambda name=name: one.resolve(GATEWAY, name)) == [WEB_ADDRESS]
        assert one.resolve(GATEWAY, OUTSIDE) == [OUTSIDE_ADDRESS]
        assert one.resolve(told.address_of(DNS), OUTSIDE) == [OUTSIDE_ADDRESS]
        assert OUTSIDE in outside.asked


def test_nobody_outside_is_asked_for_what_is_inside() -> None:
    with scene(NETWORK) as (one, _, outside):
        for name in ("web", "none", "none.vms.example.org"):
            one.resolve(GATEWAY, name)
        assert one.resolve(GATEWAY, "99.0.91.10.in-addr.arpa", PTR) == []
        assert one.resolve(GATEWAY, "none.example.net") == []
        assert outside.asked == {"none.example.net"}
