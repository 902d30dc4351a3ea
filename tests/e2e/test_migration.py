"""Live migration between two hosts, each with its own vifd: a request on the one, a release on the other, and that is all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, closing
from typing import Any

import pytest

from tests.e2e import two_hosts
from tests.e2e.traffic import Pings, Stream
from tests.e2e.two_hosts import CLIENT_ADDRESS, Frame, Host, Machine, Site
from tests.guest.image import Image
from tests.guest.packages import PackageError
from tests.support import frames, guests, kernel
from tests.vm import CACHE, emulator
from tests.vm.apt import Apt
from vifclient.messages import Endpoint, EndpointState, LimitsSpec, PortSpec, RateLimit

pytestmark = pytest.mark.timeout(300)

READY = EndpointState.ENDPOINT_STATE_READY
ATTACHED, ACTIVE = EndpointState.ENDPOINT_STATE_ATTACHED, EndpointState.ENDPOINT_STATE_ACTIVE
#: In a migration, of pings every 5 ms, so two seconds: no load of the machine should reach it. The figure is the bench's.
LOST_AT_MOST = 400
LIMITS = LimitsSpec(to_vm=RateLimit(rate_bps=10**9), from_vm=RateLimit(rate_bps=2 * 10**9))
FIRST_OF_POOL, NEXT_OF_POOL, NEITHERS = "10.94.0.16", "10.94.0.17", "10.94.0.99"
SLOW = 1 << 20  # bytes a second: it doesn't end
ANNOUNCEMENT_BYTES = 60  # of vifd's, which it pads; a guest's ARP over virtio has 42


@pytest.fixture(autouse=True)
def qemu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have a QEMU with which a VM moves while it runs: the emulated machine's, where this host's is too old.

    Where there is none to be had, the VM is paused while it moves.
    """
    if two_hosts.moves_live():
        return
    CACHE.mkdir(parents=True, exist_ok=True)
    try:
        found = emulator.ensure(CACHE, Apt(CACHE / "apt"), print)
    except PackageError as error:
        print(f"VMs are paused while they move: {error}")
        return
    if found.is_unpacked:
        found.write_program(CACHE / "bin")
        monkeypatch.setenv("PATH", f"{CACHE / 'bin'}:{os.environ['PATH']}")


@pytest.fixture
def site(guest_image: Image) -> Iterator[Site]:
    with two_hosts.site(guest_image) as one:
        yield one


class Journey:
    """A VM that moves between hosts under traffic.

    Args:
        stack: what ends its QEMUs.
        site: where it is.
        network: on which network.
        port: what its port is like.
    """

    def __init__(self, stack: ExitStack, site: Site, network: str, port: PortSpec) -> None:
        self._stack, self.site = stack, site
        self.host, other = site.hosts
        self.endpoint_id = self.host.hypervisor.request(network, port=port)
        self.machine = stack.enter_context(two_hosts.booted(self.host, self.endpoint_id, self.address))
        mac = self.endpoint.port.mac
        self.ports = {one: stack.enter_context(site.listen(one.switch_port(network), mac)) for one in (self.host, other)}
        self.stream = stack.enter_context(closing(Stream(site.client, self.address, self.machine.guest.console)))
        self.pings = stack.enter_context(closing(Pings(site.client, self.address)))

    @property
    def endpoint(self) -> Endpoint:
        """The VM's endpoint where it runs."""
        return self.host.client.get_endpoint(self.endpoint_id)

    @property
    def address(self) -> str:
        """The VM's."""
        return self.endpoint.port.addresses[0]

    def prepare(self, destination: Host) -> Machine:
        """Request on another host, and let a QEMU wait there."""
        endpoint = self.endpoint
        prepared = two_hosts.request_like(destination, self.host, self.endpoint_id)
        assert prepared.port == endpoint.port
        waiting = self._stack.enter_context(two_hosts.waiting(destination, self.endpoint_id, self.address))
        if prepared.HasField("tap"):
            wait_for_state(destination, self.endpoint_id, ATTACHED)
            check_is_prepared(destination, prepared)
        self.check_is_here()
        assert self.ports[destination].read() == []
        return waiting

    def check_is_here(self) -> None:
        """Check that the switch and the client find the VM where it runs."""
        self.stream.wait_for_echo()
        assert self.site.port_of(self.endpoint.port.mac) == self.host.switch_port(self.endpoint.network)

    def move(self, destination: Host) -> None:
        """Migrate; each host speaks in the VM's name only while it is there."""
        source, leaving = self.host, self.machine
        coming = self.prepare(destination)
        two_hosts.migrate(leaving, coming)
        self.host, self.machine = destination, coming
        follows = self.endpoint.HasField("tap")
        if follows:
            wait_for_state(destination, self.endpoint_id, ACTIVE)
        leaving.monitor.quit()
        if follows:
            wait_for_state(source, self.endpoint_id, READY)
        self.check_is_here()
        before, after = self.ports[source].read(), self.ports[destination].read()
        assert max(frame.time_s for frame in before) < two_hosts.time_of(coming, "RESUME")
        assert min(frame.time_s for frame in after) > two_hosts.time_of(leaving, "STOP")
        assert is_announced(after) == follows

    def end(self, moves: int) -> None:
        """Check that nothing but a few pings got lost on the way."""
        self.check_is_here()
        sent, lost = self.pings.stop()
        print(f"{lost} of {sent} pings lost, {self.stream.stop()} bytes came back")
        assert lost < min(LOST_AT_MOST * moves, sent / 2)


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as one:
        yield one


def wait_for_state(host: Host, endpoint_id: str, state: EndpointState.ValueType) -> None:
    """Wait until a host's vifd says by itself that an endpoint is in a state."""
    with host.client.watch_endpoints(timeout_s=60) as watch:
        for event in watch:
            if (event.endpoint.endpoint_id, event.endpoint.state) == (endpoint_id, state):
                return
    raise AssertionError("the watch ended")


def is_announced(said: list[Frame]) -> bool:
    """Tell whether vifd has announced a VM."""
    return (frames.ARP, ANNOUNCEMENT_BYTES) in {(int.from_bytes(one.data[12:14], "big"), len(one.data)) for one in said}


def check_is_prepared(host: Host, endpoint: Endpoint) -> None:
    """Check that a host has a tap for a VM that isn't there: nothing of it claims the VM's MAC."""
    assert kernel.settings(host.daemon.netns, endpoint.tap.ifname)["address"] != endpoint.port.mac
    known = [(entry["ifname"], entry.get("state", "")) for entry in host.fdb(endpoint.port.mac)]
    assert known in ([], [("up0", "")])  # learned of what the VM sends


def filters(host: Host, ifname: str) -> Any:
    """What keeps an endpoint's VM within its guard and its limits, read with nft and tc."""
    guard = {name: sorted(guests.listed(host.daemon.netns, name, ifname)) for name in ("macs", "listed", "ip4")}
    return guard, [(qdisc["kind"], qdisc.get("options")) for qdisc in kernel.qdiscs(host.daemon.netns, ifname)]


def check_its_guard_came_along(journey: Journey) -> None:
    """Check that the host drops what the VM sends under an address that isn't its own."""
    before = sum(guests.counters(journey.host.daemon.netns).values())
    forge = f"ip address add {NEITHERS}/24 dev eth0; ping -c 2 -W 1 -I {NEITHERS} {CLIENT_ADDRESS}"
    assert journey.machine.guest.console.run(f"{forge}; ip address del {NEITHERS}/24 dev eth0")[0] == 0
    assert sum(guests.counters(journey.host.daemon.netns).values()) >= before + 2
    seen = journey.ports[journey.host].read()
    assert seen
    assert not [frame for frame in seen if frames.ip_bytes(NEITHERS) in frame.data[14:34]]


def new_address(host: Host) -> str:
    """Give what another endpoint gets of a host's pool."""
    endpoint = host.client.get_endpoint(host.hypervisor.request("blue"))
    host.hypervisor.release(endpoint.endpoint_id)
    return endpoint.port.addresses[0]


def test_it_goes_there_and_back(site: Site, stack: ExitStack) -> None:
    first, second = site.hosts
    journey = Journey(stack, site, "blue", PortSpec(limits=LIMITS))
    wait_for_state(first, journey.endpoint_id, ACTIVE)
    assert journey.address == FIRST_OF_POOL
    ifname = journey.endpoint.tap.ifname
    wanted = filters(first, ifname)

    journey.move(second)
    assert filters(second, ifname) == wanted
    check_its_guard_came_along(journey)
    assert new_address(second) == NEXT_OF_POOL  # the first of the pool is taken here too
    first.hypervisor.release(journey.endpoint_id)
    assert new_address(first) == NEXT_OF_POOL  # what a VM took along comes last

    journey.move(first)  # and nobody releases it on the second
    check_its_guard_came_along(journey)
    journey.end(moves=2)


def test_it_stays_when_it_is_called_off(site: Site, stack: ExitStack) -> None:
    _, second = site.hosts
    journey = Journey(stack, site, "blue", PortSpec())

    def give_up() -> None:
        second.hypervisor.release(journey.endpoint_id)
        assert list(second.client.list_endpoints()) == []
        journey.check_is_here()
        assert journey.ports[second].read() == []
        assert journey.endpoint.state == ACTIVE

    waiting = journey.prepare(second)
    two_hosts.start_migration(journey.machine, waiting, bytes_a_second=SLOW)
    journey.machine.monitor.execute("migrate_cancel")
    two_hosts.wait_for_migration(journey.machine, "cancelled")
    assert waiting.guest.process.wait(60) != 0  # a QEMU whose migration breaks off ends
    give_up()

    waiting = journey.prepare(second)
    two_hosts.start_migration(journey.machine, waiting, bytes_a_second=SLOW)
    two_hosts.wait_for_migration(journey.machine, "active")
    waiting.guest.process.kill()
    two_hosts.wait_for_migration(journey.machine, "failed")
    give_up()

    journey.move(second)
    journey.end(moves=1)


def test_it_moves_between_macvtaps(site: Site, stack: ExitStack) -> None:
    first, second = site.hosts
    journey = Journey(stack, site, "cable", PortSpec(addresses=[FIRST_OF_POOL]))
    journey.move(second)
    first.hypervisor.release(journey.endpoint_id)
    journey.move(first)
    journey.end(moves=2)
