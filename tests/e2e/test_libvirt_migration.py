"""Live migration between the libvirts of two hosts, each with its own vifd, by an ordinary user's driver."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace

import pytest

from tests.e2e import two_hosts
from tests.e2e.test_example_driver import open_console
from tests.e2e.test_libvirt import DriverError, Libvirt, libvirtd
from tests.e2e.test_migration import ACTIVE, FIRST_OF_POOL, LOST_AT_MOST, READY, is_announced, wait_for_state
from tests.e2e.traffic import Pings, Stream
from tests.e2e.two_hosts import CLIENT_ADDRESS, Host, Listener, Site
from tests.guest import machine
from tests.guest.image import Image

pytestmark = pytest.mark.timeout(300)

ENOUGH_S = 60.0
PING = f"ping -c 1 -W 10 {CLIENT_ADDRESS}"


@dataclass(frozen=True)
class Place:
    """A host that the domain may be on.

    Args:
        host: the host.
        libvirt: its libvirt.
        port: what the switch hears from it in the domain's name.
    """

    host: Host
    libvirt: Libvirt
    port: Listener

    def migration(self, destination: Libvirt, image: Image, uri: str) -> list[str]:
        """Say how the driver moves the domain from here."""
        xml = destination.describe(image, FIRST_OF_POOL)
        live = ["--live"] if two_hosts.moves_live() else []  # without, libvirt pauses it meanwhile
        return ["migrate", xml, "tap", destination.vifd.socket, destination.uri, uri, *live]

    @contextmanager
    def left_by_domain(self, destination: Libvirt, image: Image) -> Iterator[None]:
        """Move the domain before the block; what it had here, the driver releases after the block."""
        command = self.libvirt.command(*self.migration(destination, image, f"unix://{destination.directory}/run/migration"))
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as driver:
            assert driver.stdout is not None
            assert driver.stdout.readline() == "moved\n"
            yield
            driver.communicate(timeout=ENOUGH_S)  # its input ends
        assert driver.returncode == 0


@dataclass(frozen=True)
class Journey:
    """A domain on its way, under traffic.

    Args:
        site: where it is.
        image: what it boots.
        endpoint_id: its endpoint, on every host.
        mac: its MAC.
        stream: a TCP connection to it.
    """

    site: Site
    image: Image
    endpoint_id: str
    mac: str
    stream: Stream

    def move(self, source: Place, destination: Place) -> None:
        """Migrate; both vifds notice it by themselves, and each host speaks in the domain's name only while it is there."""
        with source.left_by_domain(destination.libvirt, self.image):
            wait_for_state(destination.host, self.endpoint_id, ACTIVE)
            wait_for_state(source.host, self.endpoint_id, READY)
            self.check_is_at(destination)
        assert list(source.host.client.list_endpoints()) == []
        self.check_is_at(destination)
        with open_console(destination.libvirt.console) as console:
            assert console.run(PING)[0] == 0
        before, after = source.port.read(), destination.port.read()
        assert max(frame.time_s for frame in before) < min(frame.time_s for frame in after)
        assert is_announced(after)

    def call_off(self, source: Place, destination: Place) -> None:
        """Migrate to where it can't: the domain goes on, and the destination has nothing of it."""
        with pytest.raises(DriverError, match="/nonexistent"):
            source.libvirt.drive(*source.migration(destination.libvirt, self.image, "unix:///nonexistent/migration"))
        assert list(destination.host.client.list_endpoints()) == []
        assert source.host.client.get_endpoint(self.endpoint_id).state == ACTIVE
        self.check_is_at(source)

    def check_is_at(self, place: Place) -> None:
        """Check that the switch and the client find the domain at a place."""
        self.stream.wait_for_echo()
        assert self.site.port_of(self.mac) == place.host.switch_port("blue")


def test_a_domain_goes_there_and_back(guest_image: Image) -> None:
    with ExitStack() as stack:
        site = stack.enter_context(two_hosts.site(guest_image))
        here, there = (stack.enter_context(libvirtd(host.daemon, "session")) for host in site.hosts)
        endpoint_id = here.start(guest_image, "tap", address=FIRST_OF_POOL)
        endpoint = site.hosts[0].client.get_endpoint(endpoint_id)
        first, second = (
            Place(host, libvirt, stack.enter_context(site.listen(host.switch_port("blue"), endpoint.port.mac)))
            for host, libvirt in zip(site.hosts, (here, replace(there, uuid=here.uuid)), strict=True)
        )
        with open_console(here.console) as console:
            console.wait_for(machine.READY, machine.BOOT_TIMEOUT_S)
            stream = stack.enter_context(closing(Stream(site.client, FIRST_OF_POOL, console)))
        journey = Journey(site, guest_image, endpoint_id, endpoint.port.mac, stream)
        wait_for_state(first.host, endpoint_id, ACTIVE)
        pings = stack.enter_context(closing(Pings(site.client, FIRST_OF_POOL)))

        journey.call_off(first, second)
        journey.move(first, second)
        journey.move(second, first)
        assert first.host.client.get_endpoint(endpoint_id).port == endpoint.port

        sent, lost = pings.stop()
        print(f"{lost} of {sent} pings lost, {journey.stream.stop()} bytes came back")
        assert lost < min(2 * LOST_AT_MOST, sent / 2)
        here.drive("stop", here.uuid)
        assert list(first.host.client.list_endpoints()) == []
