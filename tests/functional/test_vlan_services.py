"""A network that is a VLAN of the uplink serves its guests as any other: DHCP, and NAT by the uplink itself."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from tests.support import kernel
from tests.support.asking import make
from tests.support.daemon import Daemon, network_namespace, running, wait_for
from tests.support.dhcp import DISCOVER, ROUTER, Guest, guest
from tests.support.outside import GUEST_DEVICE, HOST, OUTSIDE, OUTSIDE_DEVICE, UPLINK, Cabled, ask, cabled
from vifclient import Client
from vifclient.messages import PortSpec
from vifclient.retry import NO_RETRY

pytestmark = pytest.mark.kernel("8021q")

GATEWAY, GUEST, BEYOND = "10.91.0.1", "10.91.0.9", "10.91.0.77"
MAC, STRANGER = "52:54:00:00:00:0a", "52:54:00:00:00:0b"
VID = 100
BLUE = (
    f'[networks.blue]\ndriver = "bridge"\nbridge = "br-blue"\nuplink = "{UPLINK}"\nvlan = {VID}\n'
    f'addresses = ["{GATEWAY}/24"]\ndhcp = true\nnat = true\nnat_uplink = "{UPLINK}"\n'
)


@pytest.fixture
def site() -> Iterator[Cabled]:
    with cabled() as one:
        yield one


@pytest.fixture
def vifd(site: Cabled) -> Iterator[Daemon]:
    with running(netns=site.host, networks=BLUE) as daemon:
        wait_for(lambda: "dhcp is served" in daemon.log())
        yield daemon
        print(daemon.log())  # pytest shows it when a test fails
        assert "Traceback" not in daemon.log()


@contextlib.contextmanager
def served(vifd: Daemon) -> Iterator[Guest]:
    """Give a guest on the network whose endpoint has GUEST for its address."""
    with Client(vifd.socket, retry=NO_RETRY) as client:
        make(client, port=PortSpec(mac=MAC, addresses=[GUEST]))
        with guest(vifd.netns, "br-blue", MAC) as one:
            yield one


def configured(one: Guest) -> None:
    """Give a guest what DHCP says."""
    answer = wait_for(one.configure)
    assert (answer.address, answer.address_of(ROUTER)) == (GUEST, GATEWAY)
    kernel.run(one.netns, "address", "add", f"{answer.address}/24", "dev", GUEST_DEVICE)
    kernel.run(one.netns, "route", "add", "default", "via", answer.address_of(ROUTER))


@contextlib.contextmanager
def beyond(site: Cabled) -> Iterator[str]:
    """Give a machine in the VLAN at the uplink's other end."""
    with network_namespace() as netns:
        link = ("link", OUTSIDE_DEVICE, "name", "v0", "type", "vlan", "id", str(VID))
        kernel.run(site.outside, "link", "add", *link)
        kernel.run(site.outside, "link", "set", "v0", "netns", netns, "name", GUEST_DEVICE, "address", STRANGER)
        kernel.run(netns, "link", "set", GUEST_DEVICE, "up")
        yield netns


def test_a_guest_gets_its_address_and_gets_out_under_the_hosts(site: Cabled, vifd: Daemon) -> None:
    with served(vifd) as one:
        configured(one)
        assert ask(one.netns, site.outside, OUTSIDE) == (HOST, OUTSIDE)


def test_a_machine_in_the_vlan_is_reached_as_it_is_and_nobody_outside_gets_in(site: Cabled, vifd: Daemon) -> None:
    kernel.run(site.outside, "route", "add", "10.91.0.0/24", "via", HOST)
    with served(vifd) as one, beyond(site) as netns:
        configured(one)
        kernel.run(netns, "address", "add", f"{BEYOND}/24", "dev", GUEST_DEVICE)
        assert ask(one.netns, netns, BEYOND) == (GUEST, BEYOND)
        assert ask(netns, one.netns, GUEST) == (BEYOND, GUEST)
        assert ask(one.netns, site.outside, OUTSIDE) == (HOST, OUTSIDE)  # the way is there
        assert ask(site.outside, one.netns, GUEST) is None


def test_who_has_no_endpoint_gets_no_address_in_the_vlan_either(site: Cabled, vifd: Daemon) -> None:
    with served(vifd) as one, beyond(site) as netns, contextlib.closing(Guest(netns, STRANGER)) as stranger:
        asked = stranger.ask(DISCOVER)
        configured(one)  # the server has read what came before
        assert stranger.hear(asked, seconds=0.2) is None
