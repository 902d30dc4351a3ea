"""`port.link_up`: what the guest sees of it, without a hypervisor that follows the endpoint and with one."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.e2e.conftest import FIRST_UID
from tests.e2e.host import hosting
from tests.e2e.hypervisor import Guest, Hypervisor
from tests.e2e.test_virtual_machine import GUESTS, HOST_ADDRESS, NETWORK, ping
from tests.support import kernel
from tests.support.daemon import Daemon, ip, short_directory, wait_for
from tests.support.wires import MACVTAP, TAP, Wire
from vifclient import Client
from vifclient.hypervisors import qemu, qmp
from vifclient.messages import Endpoint, EndpointState, PortSpec

pytestmark = pytest.mark.timeout(300)

ADDRESS = GUESTS[0]


@pytest.fixture(params=[TAP, MACVTAP], ids=lambda wire: wire.name)
def wire(request: pytest.FixtureRequest) -> Wire:
    wire: Wire = request.param
    return wire


@pytest.fixture
def host(wire: Wire) -> Iterator[Daemon]:
    with hosting(wire.networks, uplink=bool(wire.mode)) as daemon:
        kernel.run(daemon.netns, "address", "add", f"{HOST_ADDRESS}/24", "dev", wire.far_device)
        yield daemon


@dataclass(frozen=True)
class Machine:
    """A VM on its endpoint.

    Args:
        host: where it is.
        guest: its console.
        monitor: its QEMU's.
    """

    host: Daemon
    guest: Guest
    monitor: qmp.Monitor

    @property
    def carrier(self) -> str:
        """The guest's."""
        return self.guest.console.run("cat /sys/class/net/eth0/carrier")[1].strip()

    def follow(self, endpoint: Endpoint) -> None:
        """Do what a hypervisor does that watches its endpoints."""
        self.monitor.run(qemu.set_link("net0", up=endpoint.port.link_up))

    def check_it_is_cut_off(self, ifname: str) -> None:
        """Check that nothing passes, either way."""
        before = passed(self.host, ifname)
        assert self.guest.console.run(f"ping -c 2 -W 1 {HOST_ADDRESS}")[0] == 1
        command = ["ip", "netns", "exec", self.host.netns, "ping", "-c", "2", "-W", "1", ADDRESS]
        assert subprocess.run(command, stdout=subprocess.DEVNULL, check=False).returncode == 1
        assert passed(self.host, ifname) == before


def passed(host: Daemon, ifname: str) -> tuple[int, int]:
    """Count the frames that a device has let pass to and fro, read with ip."""
    statistics = ip(host.netns, "-s", "link", "show", ifname)[0]["stats64"]
    return statistics["rx"]["packets"], statistics["tx"]["packets"]


def test_nothing_passes_and_the_carrier_is_the_hypervisors(
    host: Daemon, client: Client, hypervisor: Hypervisor, wire: Wire
) -> None:
    endpoint_id = hypervisor.request(NETWORK)
    location = getattr(client.get_endpoint(endpoint_id), wire.name.split("-")[0])
    with short_directory() as directory:
        os.chown(directory, FIRST_UID, FIRST_UID)
        argv = ["-qmp", f"unix:{directory}/qmp,server=on,wait=off"]
        with (
            hypervisor.boot(endpoint_id, f"{ADDRESS}/24", qemu=argv) as guest,
            qmp.Monitor.connect(f"{directory}/qmp") as monitor,
        ):
            machine = Machine(host, guest, monitor)
            ping(host, ADDRESS)

            down = client.update_endpoint(endpoint_id, PortSpec(link_up=False), ["link_up"])
            machine.check_it_is_cut_off(location.ifname)
            assert machine.carrier == "1"
            wait_for(lambda: client.get_endpoint(endpoint_id).state == EndpointState.ENDPOINT_STATE_READY)
            machine.follow(down)
            wait_for(lambda: machine.carrier == "0")

            machine.follow(client.update_endpoint(endpoint_id, PortSpec(), ["link_up"]))
            wait_for(lambda: machine.carrier == "1")
            # Both have just not found each other, and don't try again at once.
            wait_for(lambda: guest.console.run(f"ping -c 1 -W 1 {HOST_ADDRESS}")[0] == 0)
            ping(host, ADDRESS)
    hypervisor.release(endpoint_id)
