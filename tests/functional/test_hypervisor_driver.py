"""The base of hypervisor drivers against real vifds: two hosts, and a hypervisor that only remembers."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4

import pytest

from tests.functional.conftest import ALICE
from tests.support.asking import event, make, state_of
from tests.support.daemon import Daemon, running, taps, wait_for
from tests.support.users import user
from vifclient import Client, HypervisorDriver, Interface, VirtualMachine, errors
from vifclient.hypervisors import preferences, qemu, qmp
from vifclient.messages import Endpoint, EndpointPreference, Lifetime, LimitsSpec, PortSpec, ProcessLifetime, RateLimit

POOLED = """
[networks.blue]
driver = "bridge"
bridge = "br-blue"
addresses = ["10.91.0.1/24"]
pool = ["10.91.0.10-10.91.0.99"]
"""


class Remembering(HypervisorDriver):
    """Its VMs are what they have attached."""

    name = "remembering"

    def __init__(self, client: Client) -> None:
        super().__init__(client)
        self.vms: dict[str, list[str]] = {}

    def acceptable(self, vm: VirtualMachine, interface: Interface) -> list[EndpointPreference]:
        return preferences(["tap"])

    def start_vm(self, vm: VirtualMachine, endpoints: Sequence[Endpoint]) -> None:
        self.vms[vm.uuid] = [endpoint.endpoint_id for endpoint in endpoints]

    def stop_vm(self, uuid: str) -> None:
        self.vms.pop(uuid, None)

    def attach(self, uuid: str, endpoint: Endpoint) -> None:
        self.vms[uuid].append(endpoint.endpoint_id)

    def detach(self, uuid: str, endpoint: Endpoint) -> None:
        self.vms[uuid].remove(endpoint.endpoint_id)

    def attached(self, uuid: str) -> Collection[str]:
        return self.vms.get(uuid, [])


class Neighbour(Remembering):
    name = "neighbour"


class Plugging(Remembering):
    """It plugs into a QEMU, from its first root port on."""

    def __init__(self, client: Client, monitor: qmp.Monitor) -> None:
        super().__init__(client)
        self.monitor = monitor

    def attach(self, uuid: str, endpoint: Endpoint) -> None:
        number = len(self.vms[uuid])
        plug = qemu.plug(endpoint, netdev_id=f"net{number}", device_options={"bus": f"rp{number}", "romfile": ""})
        with self.client.acquire_fds(endpoint.endpoint_id) as fds:
            qmp.plug(self.monitor, plug, fds)
        super().attach(uuid, endpoint)


class Mute(Remembering):
    """It can't say what its VMs have attached."""

    def attached(self, uuid: str) -> Collection[str]:
        raise OSError("the hypervisor is away")


Host = tuple[Daemon, Remembering]


@pytest.fixture
def source() -> Iterator[Host]:
    with running(networks=POOLED) as vifd, Client(vifd.socket) as client:
        yield vifd, Remembering(client)


@pytest.fixture
def destination() -> Iterator[Host]:
    with running(networks=POOLED) as vifd, Client(vifd.socket) as client:
        yield vifd, Remembering(client)


def make_vm(*ports: PortSpec) -> VirtualMachine:
    return VirtualMachine(uuid=str(uuid4()), name="web", interfaces=tuple(Interface(network="blue", port=one) for one in ports))


def test_a_life_with_hot_plug(source: Host) -> None:
    vifd, driver = source
    vm = make_vm(PortSpec(), PortSpec())
    driver.start(vm)
    extra = Interface(network="blue")
    driver.hot_plug(vm, extra)
    assert len(taps(vifd.netns)) == 3
    driver.hot_unplug(vm.uuid, extra.endpoint_id)
    assert len(taps(vifd.netns)) == 2
    driver.stop(vm.uuid)
    assert taps(vifd.netns) == []


def test_a_batch_is_all_or_nothing(source: Host) -> None:
    vifd, driver = source
    with pytest.raises(errors.InvalidArgument):
        driver.start(make_vm(PortSpec(), PortSpec(mac="ff:ff:ff:ff:ff:ff")))
    assert (taps(vifd.netns), driver.vms) == ([], {})


def test_what_a_port_is_travels_with_a_migration(source: Host, destination: Host) -> None:
    (here, old), (there, new) = source, destination
    new.start(make_vm(PortSpec()))  # the destination would hand the same address out to the next
    new.stop(next(iter(new.vms)))
    vm = make_vm(PortSpec(), PortSpec(addresses=["10.91.0.50"]))
    before = old.start(vm)
    limits = LimitsSpec(to_vm=RateLimit(rate_bps=10**8))
    old.client.update_endpoint(before[0].endpoint_id, PortSpec(limits=limits, isolated=True), ["limits", "isolated"])

    def move(endpoints: Sequence[Endpoint]) -> None:
        assert [len(taps(vifd.netns)) for vifd in (here, there)] == [2, 2]
        new.start_vm(vm, endpoints)
        old.vms.clear()

    as_it_was = [old.client.get_endpoint(endpoint.endpoint_id).port for endpoint in before]
    old.migrate(vm, new, move)
    after = [new.client.get_endpoint(interface.endpoint_id).port for interface in vm.interfaces]
    assert after == as_it_was
    assert (after[0].limits, after[0].isolated, after[0].guard.enabled) == (limits, True, True)
    assert [len(taps(vifd.netns)) for vifd in (here, there)] == [0, 2]


def test_a_migration_that_is_given_up_leaves_the_source_alone(source: Host, destination: Host) -> None:
    (here, old), (there, new) = source, destination
    vm = make_vm(PortSpec())
    old.start(vm)

    def move(endpoints: Sequence[Endpoint]) -> None:
        raise OSError("the line is too slow")

    with pytest.raises(OSError, match="too slow"):
        old.migrate(vm, new, move)
    assert [len(taps(vifd.netns)) for vifd in (here, there)] == [1, 0]


class DriverDied(Exception):
    """It can't go on where it was."""


def leave(source: Remembering, vm: VirtualMachine, destination: Remembering) -> None:
    """Move a VM, and lose the source's driver before it releases what is left there."""
    with suppress(DriverDied), source.outgoing(vm) as moving:
        with destination.incoming(moving) as endpoints:
            destination.start_vm(vm, endpoints)
            source.vms.clear()
        raise DriverDied


def test_a_vm_comes_back_to_where_it_was_never_released(source: Host, destination: Host) -> None:
    (here, old), (there, new) = source, destination
    vm = make_vm(PortSpec())
    (first,) = old.start(vm)

    leave(old, vm, new)
    moved = new.client.get_endpoint(first.endpoint_id)
    assert [len(taps(vifd.netns)) for vifd in (here, there)] == [1, 1]

    leave(new, vm, old)  # it asks for all that the port has by now, and not for what it began with
    back = old.client.get_endpoint(first.endpoint_id)
    assert (back.port, back.generation > first.generation) == (first.port, True)
    assert [len(taps(vifd.netns)) for vifd in (here, there)] == [1, 1]

    leave(old, vm, new)  # the same request as before finds what is left
    assert new.client.get_endpoint(first.endpoint_id) == moved

    leave(new, vm, old)
    old.client.update_endpoint(first.endpoint_id, PortSpec(isolated=True), ["isolated"])
    leave(old, vm, new)
    changed = new.client.get_endpoint(first.endpoint_id)
    assert (changed.port.isolated, changed.generation > moved.generation) == (True, True)


def test_what_a_vm_has_attached_does_not_make_way(source: Host, destination: Host) -> None:
    (here, old), (there, new) = source, destination
    vm = make_vm(PortSpec())
    (first,) = old.start(vm)
    leave(old, vm, new)
    old.vms = {vm.uuid: [first.endpoint_id]}  # the VM that moved away holds it still
    with pytest.raises(errors.AlreadyExists, match="another spec"):
        leave(new, vm, old)
    assert old.client.get_endpoint(first.endpoint_id).generation == first.generation
    assert [len(taps(vifd.netns)) for vifd in (here, there)] == [1, 1]


def test_an_id_of_somebody_elses_does_not_make_way(source: Host) -> None:
    vifd, driver = source
    vm = make_vm(PortSpec())
    Neighbour(driver.client).start(vm)
    with pytest.raises(errors.AlreadyExists):
        driver.start(vm)
    assert (len(taps(vifd.netns)), driver.vms) == (1, {})


def test_after_a_restart_of_both_what_no_vm_has_is_released(source: Host) -> None:
    vifd, driver = source
    running_vm, ended = make_vm(PortSpec()), make_vm(PortSpec())
    driver.start(running_vm)
    driver.start(ended)
    assert vifd.stop() == 0
    vifd.start()
    restarted = Remembering(driver.client)
    restarted.vms = {running_vm.uuid: driver.vms[running_vm.uuid]}
    assert restarted.recover() == [ended.interfaces[0].endpoint_id]
    assert [one.endpoint_id for one in restarted.endpoints()] == [running_vm.interfaces[0].endpoint_id]


@contextmanager
def paused_qemu(directory: Path) -> Iterator[qmp.Monitor]:
    """Start a QEMU with two root ports, which isn't a child of this process."""
    machine = ["-machine", "q35", "-nodefaults", "-no-user-config", "-display", "none", "-S", "-daemonize"]
    ports = ["-device", "pcie-root-port,id=rp0,slot=0", "-device", "pcie-root-port,id=rp1,slot=1"]
    path = str(directory / "qmp")
    command = ["qemu-system-x86_64", *machine, *ports, "-qmp", f"unix:{path},server=on,wait=off"]
    subprocess.run(command, check=True, timeout=60)
    with qmp.Monitor.connect(path) as monitor:
        process = os.pidfd_open(monitor.pid)
        try:
            yield monitor
        finally:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(process, signal.SIGKILL)
            os.close(process)


def test_an_interface_may_live_as_long_as_its_qemu(source: Host) -> None:
    vifd, remembering = source
    client = remembering.client
    vm = make_vm()
    with paused_qemu(vifd.directory) as monitor:
        driver = Plugging(client, monitor)
        driver.start(vm)
        mortal = driver.hot_plug(vm, Interface(network="blue", lifetime=Lifetime(process=ProcessLifetime(pid=monitor.pid))))
        left = driver.hot_plug(vm, Interface(network="blue"))
        assert (mortal.lifetime.process.pid, left.HasField("lifetime")) == (monitor.pid, False)
        wait_for(lambda: state_of(client, mortal.endpoint_id) == "ATTACHED")
        with client.watch_endpoints(timeout_s=60) as watch:
            next(message for message in watch if event(message)[0] == "SYNCED")
            os.kill(monitor.pid, signal.SIGKILL)
            next(message for message in watch if event(message)[:2] == ("REMOVED", mortal.endpoint_id))
    driver.vms.clear()
    assert [tap["ifname"] for tap in taps(vifd.netns)] == [left.tap.ifname]
    assert driver.recover() == [left.endpoint_id]
    assert taps(vifd.netns) == []


# --- garbage


def test_garbage_is_what_no_vm_of_the_driver_has(source: Host) -> None:
    vifd, driver = source
    vm, ended = make_vm(PortSpec(), PortSpec()), make_vm(PortSpec())
    kept = {endpoint.tap.ifname for endpoint in driver.start(vm)}
    driver.start(ended)
    driver.vms.pop(ended.uuid)  # it ended while the driver was away
    program = make(driver.client)
    garbage = sorted([ended.interfaces[0].endpoint_id, program.endpoint_id])
    assert driver.collect_garbage(dry_run=True) == garbage
    assert len(taps(vifd.netns)) == 4
    assert driver.collect_garbage() == garbage
    assert {tap["ifname"] for tap in taps(vifd.netns)} == kept
    assert driver.collect_garbage() == driver.collect_garbage(dry_run=True) == []


def test_another_driver_of_the_user_loses_what_its_vms_have_and_one_of_another_user_nothing(source: Host) -> None:
    vifd, driver = source
    vm, neighbours, strangers = (make_vm(PortSpec()) for _ in range(3))
    driver.start(vm)
    neighbour = Neighbour(driver.client)
    (taken,) = neighbour.start(neighbours)
    with user(ALICE) as alice, alice.client(vifd) as as_alice:
        stranger = Neighbour(as_alice)
        stranger.start(strangers)
        with driver.client.acquire_fds(taken.endpoint_id):  # its VM runs
            wait_for(lambda: state_of(driver.client, taken.endpoint_id) == "ATTACHED")
            assert driver.recover() == []
            assert driver.collect_garbage(dry_run=True) == [taken.endpoint_id]
            assert driver.collect_garbage() == [taken.endpoint_id]
        assert stranger.collect_garbage() == []
    left = {interface.endpoint_id for one in (vm, strangers) for interface in one.interfaces}
    assert {endpoint.endpoint_id for endpoint in driver.client.list_endpoints()} == left
    assert len(taps(vifd.netns)) == 2


def test_where_no_vm_is_left_everything_of_the_user_is_garbage(source: Host) -> None:
    vifd, driver = source
    make(driver.client)
    driver.start(make_vm(PortSpec()))
    driver.vms.clear()
    assert len(driver.collect_garbage()) == 2
    assert taps(vifd.netns) == []


def test_no_garbage_is_collected_where_a_vm_cannot_be_asked(source: Host) -> None:
    vifd, driver = source
    driver.start(make_vm(PortSpec()))
    make(driver.client)
    mute = Mute(driver.client)
    with pytest.raises(OSError, match="the hypervisor is away"):
        mute.collect_garbage()
    assert len(taps(vifd.netns)) == 2
