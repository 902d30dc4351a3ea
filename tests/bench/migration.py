"""What a live migration costs a VM: pings lost through vifd, and through taps and bridges made by hand, by turns."""

from __future__ import annotations

import subprocess
from collections import defaultdict
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import replace

from tests.bench.measure import Row, Samples, make_row
from tests.e2e import two_hosts
from tests.e2e.hypervisor import Hypervisor
from tests.e2e.traffic import Pings
from tests.e2e.two_hosts import Host, Site
from tests.guest import image, unprivileged
from tests.support import kernel

OPERATION = "pings lost in a migration"
BY_HAND = "made by hand"
CONTENDERS = 2
_TAP, _BRIDGE, _UPLINK, _MAC, _ADDRESS = "hand", "br-hand", "hand0", "52:54:00:68:61:6e", "10.94.0.99"


def measure_migration(rounds: int, advance: Callable[[], None]) -> list[Row]:
    """Let two VMs move to and fro, one at a time, under a ping every 5 ms.

    Args:
        rounds: how often each moves.
        advance: is called after each move.
    """
    samples: defaultdict[str, Samples] = defaultdict(list)
    with two_hosts.site(image.build()) as site, ExitStack() as stack:
        contenders = [_Vifd(stack, site), _ByHand(stack, site)]
        for _ in range(rounds):
            for contender in contenders:
                samples[contender.name].append(contender.move())
                advance()
            contenders.reverse()  # whoever comes second may find the machine in another mood
    return [make_row(name, OPERATION, lost, "") for name, lost in samples.items()]


class _Vifd:
    """A VM on an endpoint: a request on the one host, a release on the other."""

    name = "vifd"

    def __init__(self, stack: ExitStack, site: Site) -> None:
        self._stack, self._site, self._hosts = stack, site, self._prepare_hosts(site)
        self._at = 0
        self._endpoint_id, self._address = self._create(self._hosts[0])
        self._machine = stack.enter_context(two_hosts.booted(self._hosts[0], self._endpoint_id, self._address))

    def move(self) -> float:
        """Migrate to the other host, and give how many pings got no answer."""
        source, destination = self._hosts[self._at], self._hosts[1 - self._at]
        self._request(source, destination)
        coming = self._stack.enter_context(two_hosts.waiting(destination, self._endpoint_id, self._address))
        _ping(self._site, self._address)
        with closing(Pings(self._site.client, self._address)) as pings:
            two_hosts.start_migration(self._machine, coming)
            two_hosts.wait_for_migration(self._machine, "completed")
            self._machine.monitor.quit()
            self._release(source)
            _ping(self._site, self._address)
            self._at, self._machine = 1 - self._at, coming
            return float(pings.stop()[1])

    def _prepare_hosts(self, site: Site) -> tuple[Host, Host]:
        return site.hosts

    def _create(self, host: Host) -> tuple[str, str]:
        """Make what the VM starts on, and give its id and the VM's address."""
        endpoint_id = host.hypervisor.request("blue")
        return endpoint_id, two_hosts.address_of(host.client.get_endpoint(endpoint_id))

    def _request(self, source: Host, destination: Host) -> None:
        two_hosts.request_like(destination, source, self._endpoint_id)

    def _release(self, source: Host) -> None:
        source.hypervisor.release(self._endpoint_id)


class _ByHand(_Vifd):
    """A VM on a tap that is there on both hosts, on a bridge of its own with an own uplink."""

    name = BY_HAND

    def _prepare_hosts(self, site: Site) -> tuple[Host, Host]:
        first, second = (self._prepare_host(site, host) for host in site.hosts)
        return first, second

    @staticmethod
    def _prepare_host(site: Site, host: Host) -> Host:
        netns, driver = host.daemon.netns, host.hypervisor
        two_hosts.plug_in(site.switch, f"h{host.number}-{_UPLINK}", netns, _UPLINK)
        kernel.run(netns, "link", "add", _BRIDGE, "type", "bridge", "forward_delay", "0")
        kernel.run(netns, "tuntap", "add", "dev", _TAP, "mode", "tap", "user", str(driver.user.uid), "vnet_hdr")
        for ifname in (_UPLINK, _TAP):
            kernel.run(netns, "link", "set", ifname, "master", _BRIDGE)
        for ifname in (_BRIDGE, _TAP):
            kernel.run(netns, "link", "set", ifname, "addrgenmode", "none", "up")
        return replace(host, hypervisor=_OnTap(driver.user, driver.socket, driver.namespace, driver.image))

    def _create(self, host: Host) -> tuple[str, str]:
        return "", _ADDRESS

    def _request(self, source: Host, destination: Host) -> None:
        pass

    def _release(self, source: Host) -> None:
        pass


class _OnTap(Hypervisor):
    """Starts QEMU without vifd."""

    def _boot_command(self, endpoint_id: str, qemu: list[str], *, by_name: bool) -> list[str]:
        device = [
            "-netdev",
            f"tap,id=net0,ifname={_TAP},script=no,downscript=no",
            "-device",
            f"virtio-net-pci,netdev=net0,mac={_MAC}",
        ]
        return self._in_namespace(unprivileged.command([*qemu, *device], user=self.user, open_tun=True))


def _ping(site: Site, address: str) -> None:
    """Wait until a VM has answered some pings."""
    command = ["ip", "netns", "exec", site.client, "ping", "-q", "-c", "5", "-i", "0.05", address]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, timeout=60)
