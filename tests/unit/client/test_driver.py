import contextlib
import os
import threading
import uuid
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration

from tests.unit.client.conftest import QUICK_RETRY
from tests.unit.client.fake_vifd import FakeVifd, make_status
from vifclient import Client, HypervisorDriver, Interface, VirtualMachine, VmBusy, errors
from vifclient.driver import DRIVER_LABEL, USER_LABEL
from vifclient.hypervisors import preferences
from vifclient.messages import (
    Endpoint,
    EndpointPreference,
    LeaseLifetime,
    Lifetime,
    PortSpec,
    ProcessLifetime,
    RequestEndpointRequest,
)


class HypervisorError(Exception):
    pass


class FakeHypervisor(HypervisorDriver):
    """Its VMs are the ids of what they have attached. `failing` names what raises; `began` lets it fail with the VM running."""

    name = "fake"

    def __init__(self, client: Client) -> None:
        super().__init__(client)
        self.vms: dict[str, list[str]] = {}
        self.failing: set[str] = set()
        self.began = False

    def acceptable(self, vm: VirtualMachine, interface: Interface) -> Sequence[EndpointPreference]:
        return preferences(["tap"])

    def start_vm(self, vm: VirtualMachine, endpoints: Sequence[Endpoint]) -> None:
        if self.began or "start_vm" not in self.failing:
            self.vms[vm.uuid] = [endpoint.endpoint_id for endpoint in endpoints]
        self._fail("start_vm")

    def stop_vm(self, uuid: str) -> None:
        self._fail("stop_vm")
        self.vms.pop(uuid, None)

    def attach(self, uuid: str, endpoint: Endpoint) -> None:
        self._fail("attach")
        self.vms[uuid].append(endpoint.endpoint_id)

    def detach(self, uuid: str, endpoint: Endpoint) -> None:
        self._fail("detach")
        with contextlib.suppress(ValueError):
            self.vms[uuid].remove(endpoint.endpoint_id)

    def attached(self, uuid: str) -> Collection[str]:
        self._fail("attached")
        return self.vms.get(uuid, [])

    def _fail(self, what: str) -> None:
        if what in self.failing:
            raise HypervisorError(f"{what} failed")


def make_vm(count: int = 2) -> VirtualMachine:
    return VirtualMachine(
        uuid=str(uuid.uuid4()), name="web", interfaces=tuple(Interface(network="default") for _ in range(count))
    )


def ids(vm: VirtualMachine) -> list[str]:
    return [interface.endpoint_id for interface in vm.interfaces]


@pytest.fixture
def driver(client: Client) -> FakeHypervisor:
    return FakeHypervisor(client)


@pytest.fixture
def other_host(folder: Path) -> Iterator[FakeVifd]:
    (folder / "b").mkdir()
    server = FakeVifd(folder / "b")
    yield server
    server.close()


@pytest.fixture
def destination(other_host: FakeVifd) -> Iterator[FakeHypervisor]:
    with Client(other_host.socket_path, timeout_s=10, retry=QUICK_RETRY) as one:
        yield FakeHypervisor(one)


def test_a_vm_starts_on_one_batch_and_stops(vifd: FakeVifd, driver: FakeHypervisor) -> None:
    vm = make_vm(3)
    endpoints = driver.start(vm)
    assert [endpoint.endpoint_id for endpoint in endpoints] == ids(vm)
    assert vifd.calls == ["BatchRequestEndpoints"]
    request = vifd.requests[0].requests[0]
    assert (request.instance.uuid, request.instance.name) == (vm.uuid, "web")
    assert request.labels == {DRIVER_LABEL: "fake", USER_LABEL: str(os.geteuid())}
    assert driver.vms == {vm.uuid: ids(vm)}
    driver.stop(vm.uuid)
    assert (driver.vms, vifd.endpoints) == ({}, {})
    assert vifd.calls[-1] == "BatchReleaseEndpoints"
    assert all(one.generation for one in vifd.requests[-1].requests)
    driver.stop(vm.uuid)


def test_a_vm_without_interfaces_asks_for_nothing(vifd: FakeVifd, driver: FakeHypervisor) -> None:
    vm = make_vm(0)
    assert driver.start(vm) == []
    assert vifd.calls == []


def test_more_than_a_batch_is_released_in_several(vifd: FakeVifd, driver: FakeHypervisor) -> None:
    vm = make_vm(65)
    driver.start(vm)
    driver.stop(vm.uuid)
    assert vifd.endpoints == {}
    assert [len(one.requests) for one in vifd.requests if type(one).__name__.startswith("BatchRelease")] == [64, 1]


def test_a_vm_that_does_not_start_leaves_nothing(vifd: FakeVifd, driver: FakeHypervisor) -> None:
    driver.failing = {"start_vm"}
    with pytest.raises(HypervisorError, match="start_vm failed") as caught:
        driver.start(make_vm())
    assert vifd.endpoints == {}
    assert getattr(caught.value, "__notes__", []) == []


def test_endpoints_that_a_vm_has_attached_stay_whatever_fails(vifd: FakeVifd, driver: FakeHypervisor) -> None:
    vm = make_vm()
    driver.start(vm)
    driver.failing = {"start_vm"}
    with pytest.raises(HypervisorError):  # it runs already
        driver.start(vm)
    assert sorted(vifd.endpoints) == sorted(ids(vm))


def test_a_request_that_fails_starts_nothing(vifd: FakeVifd, driver: FakeHypervisor) -> None:
    vm = make_vm(1)
    wrong = replace(vm, interfaces=(*vm.interfaces, Interface(network="none")))
    with pytest.raises(errors.NotFound):
        driver.start(wrong)
    assert (driver.vms, vifd.endpoints) == ({}, {})


def test_a_hypervisor_is_not_asked_where_there_is_nothing_to_release(vifd: FakeVifd, driver: FakeHypervisor) -> None:
    driver.failing = {"attached"}
    with pytest.raises(errors.NotFound) as caught:
        driver.start(replace(make_vm(0), interfaces=(Interface(network="none"),)))
    assert getattr(caught.value, "__notes__", []) == []


def test_a_request_whose_answer_is_lost_leaves_nothing(vifd: FakeVifd, driver: FakeHypervisor) -> None:
    vm = make_vm()
    # what was made before the answer was lost
    driver.client.batch_request_endpoints([driver.make_request(vm, interface) for interface in vm.interfaces])
    assert len(vifd.endpoints) == 2
    vifd.failures_of["BatchRequestEndpoints"] = [make_status(grpc.StatusCode.DEADLINE_EXCEEDED, "too late")]
    with pytest.raises(errors.DeadlineExceeded):
        driver.start(vm)
    assert vifd.endpoints == {}


def test_another_vms_endpoint_is_never_released(vifd: FakeVifd, driver: FakeHypervisor) -> None:
    vm = make_vm()
    driver.start(vm)
    thief = replace(make_vm(0), interfaces=vm.interfaces)
    vifd.failures_of["BatchRequestEndpoints"] = [make_status(grpc.StatusCode.ALREADY_EXISTS, "other spec", "ENDPOINT_EXISTS")]
    with pytest.raises(errors.AlreadyExists):
        driver.start(thief)
    assert sorted(vifd.endpoints) == sorted(ids(vm))


@pytest.mark.parametrize("failing", ["vifd", "attached"])
def test_what_may_be_left_behind_is_told_and_recovered(vifd: FakeVifd, driver: FakeHypervisor, failing: str) -> None:
    driver.failing = {"start_vm"}
    if failing == "vifd":
        vifd.failures_of["BatchReleaseEndpoints"] = [make_status(grpc.StatusCode.INTERNAL, "no")]
    else:
        driver.failing.add("attached")
    with pytest.raises(HypervisorError, match="start_vm failed") as caught:
        driver.start(make_vm())
    assert "may be left behind" in caught.value.__notes__[0]
    assert len(vifd.endpoints) == 2
    driver.failing = set()
    assert len(driver.recover()) == 2
    assert vifd.endpoints == {}


def test_a_vm_that_does_not_stop_keeps_its_endpoints(vifd: FakeVifd, driver: FakeHypervisor) -> None:
    vm = make_vm()
    driver.start(vm)
    driver.failing = {"stop_vm"}
    with pytest.raises(HypervisorError):
        driver.stop(vm.uuid)
    assert len(vifd.endpoints) == 2


def test_hot_plug_and_hot_unplug(vifd: FakeVifd, driver: FakeHypervisor) -> None:
    vm = make_vm(1)
    driver.start(vm)
    extra = Interface(network="default")
    assert driver.hot_plug(vm, extra).endpoint_id == extra.endpoint_id
    assert driver.hot_plug(vm, extra).endpoint_id == extra.endpoint_id  # again changes nothing
    assert driver.vms[vm.uuid] == [*ids(vm), extra.endpoint_id]
    driver.hot_unplug(vm.uuid, extra.endpoint_id)
    assert driver.vms[vm.uuid] == ids(vm)
    assert list(vifd.endpoints) == ids(vm)
    driver.hot_unplug(vm.uuid, extra.endpoint_id)


def test_what_somebody_released_under_a_vm_cannot_be_unplugged(client: Client, driver: FakeHypervisor) -> None:
    vm = make_vm(1)
    driver.start(vm)
    client.release_endpoint(ids(vm)[0])
    with pytest.raises(errors.NotFound, match="attached still"):
        driver.hot_unplug(vm.uuid, ids(vm)[0])
    assert driver.vms[vm.uuid] == ids(vm)
    driver.stop(vm.uuid)
    driver.hot_unplug(vm.uuid, ids(vm)[0])


def test_what_cannot_be_attached_is_released(vifd: FakeVifd, driver: FakeHypervisor) -> None:
    vm = make_vm(1)
    driver.start(vm)
    driver.failing = {"attach"}
    with pytest.raises(HypervisorError):
        driver.hot_plug(vm, Interface(network="default"))
    assert list(vifd.endpoints) == ids(vm)


def test_what_cannot_be_detached_stays(vifd: FakeVifd, driver: FakeHypervisor) -> None:
    vm = make_vm(1)
    driver.start(vm)
    driver.failing = {"detach"}
    with pytest.raises(HypervisorError):
        driver.hot_unplug(vm.uuid, ids(vm)[0])
    assert list(vifd.endpoints) == ids(vm)


def test_a_migration_requests_there_and_releases_here(
    vifd: FakeVifd, other_host: FakeVifd, driver: FakeHypervisor, destination: FakeHypervisor
) -> None:
    vm = make_vm(1)
    driver.start(vm)
    driver.client.update_endpoint(ids(vm)[0], PortSpec(addresses=["10.0.0.7"]), ["addresses"])

    def move(endpoints: Sequence[Endpoint]) -> None:
        assert len(vifd.endpoints) == len(other_host.endpoints) == 1
        destination.start_vm(vm, endpoints)
        driver.vms.clear()

    driver.migrate(vm, destination, move)
    assert vifd.endpoints == {}
    assert other_host.calls == ["BatchRequestEndpoints"]
    asked = other_host.requests[0].requests[0]
    # what was vifd's choice here, and what was changed while it ran, is asked for there
    assert (asked.endpoint_id, asked.port.mac, asked.port.addresses) == (ids(vm)[0], "52:54:00:12:34:56", ["10.0.0.7"])


def test_a_process_stays_on_its_host_and_a_lease_travels(
    other_host: FakeVifd, driver: FakeHypervisor, destination: FakeHypervisor
) -> None:
    process, lease = Lifetime(process=ProcessLifetime(pid=os.getpid())), Lifetime(lease=LeaseLifetime(ttl=Duration(seconds=60)))
    vm = replace(make_vm(), interfaces=tuple(Interface(network="default", lifetime=one) for one in (process, lease, None)))
    driver.start(vm)
    driver.migrate(vm, destination, lambda endpoints: destination.start_vm(vm, endpoints))
    assert [one.lifetime for one in other_host.requests[0].requests] == [Lifetime(), lease, Lifetime()]


def test_a_migration_that_is_given_up_releases_there_alone(
    vifd: FakeVifd, other_host: FakeVifd, driver: FakeHypervisor, destination: FakeHypervisor
) -> None:
    vm = make_vm()
    driver.start(vm)

    def move(endpoints: Sequence[Endpoint]) -> None:
        raise HypervisorError("the line is too slow")

    with pytest.raises(HypervisorError, match="too slow"):
        driver.migrate(vm, destination, move)
    assert (len(vifd.endpoints), other_host.endpoints) == (2, {})


def test_a_migration_that_the_destination_refuses(vifd: FakeVifd, driver: FakeHypervisor, destination: FakeHypervisor) -> None:
    vm = make_vm()
    driver.start(vm)
    there = replace(vm, interfaces=tuple(replace(one, network="none") for one in vm.interfaces))
    with pytest.raises(errors.NotFound), driver.outgoing(there) as moving, destination.incoming(moving):
        raise AssertionError("nothing is moved")
    assert len(vifd.endpoints) == 2


def test_a_source_that_cannot_release_leaves_the_destination_alone(
    vifd: FakeVifd, other_host: FakeVifd, driver: FakeHypervisor, destination: FakeHypervisor
) -> None:
    vm = make_vm()
    driver.start(vm)

    def move(endpoints: Sequence[Endpoint]) -> None:
        destination.start_vm(vm, endpoints)
        driver.vms.clear()
        vifd.failures_of["BatchReleaseEndpoints"] = [make_status(grpc.StatusCode.INTERNAL, "no")]

    with pytest.raises(errors.ServerError):
        driver.migrate(vm, destination, move)
    assert (len(vifd.endpoints), len(other_host.endpoints)) == (2, 2)
    assert sorted(driver.recover()) == sorted(ids(vm))


def test_what_stays_attached_on_the_source_is_released_once_it_is_ended(
    vifd: FakeVifd, driver: FakeHypervisor, destination: FakeHypervisor
) -> None:
    vm = make_vm()
    driver.start(vm)
    driver.migrate(vm, destination, lambda endpoints: destination.start_vm(vm, endpoints))
    assert len(vifd.endpoints) == 2
    driver.vms.clear()
    assert sorted(driver.recover()) == sorted(ids(vm))


def test_a_vm_without_uuid_is_not_every_vm(vifd: FakeVifd, client: Client, driver: FakeHypervisor) -> None:
    vm = make_vm()
    driver.start(vm)
    nobody = replace(make_vm(), uuid="")
    for work in (lambda: driver.start(nobody), lambda: driver.stop(""), lambda: driver.hot_unplug("", ids(vm)[0])):
        with pytest.raises(ValueError, match="no UUID"):
            work()
    # of no VM, though it carries this driver's labels
    client.request_endpoint(driver.make_request(nobody, nobody.interfaces[0]))
    assert driver.recover() == []
    assert (driver.vms[vm.uuid], len(vifd.endpoints)) == (ids(vm), 3)
    assert driver.collect_garbage() == [nobody.interfaces[0].endpoint_id]


def test_after_a_restart_what_no_vm_has_is_released(vifd: FakeVifd, client: Client, driver: FakeHypervisor) -> None:
    running, ended = make_vm(), make_vm()
    driver.start(running)
    driver.start(ended)
    half = Interface(network="default")
    driver.hot_plug(running, half)
    anothers = RequestEndpointRequest(endpoint_id="x", network="default", acceptable=preferences(["tap"]))
    client.request_endpoint(anothers)
    restarted = FakeHypervisor(client)
    restarted.vms = {running.uuid: ids(running)}
    assert sorted(restarted.recover()) == sorted([*ids(ended), half.endpoint_id])
    assert sorted(vifd.endpoints) == sorted([*ids(running), "x"])
    assert restarted.recover() == []


def test_a_vm_that_cannot_be_asked_keeps_its_endpoints(vifd: FakeVifd, driver: FakeHypervisor) -> None:
    vms = [make_vm(1), make_vm(1)]
    for vm in vms:
        driver.start(vm)
    driver.failing = {"attached"}
    with pytest.raises(ExceptionGroup) as caught:
        driver.recover()
    assert [str(error) for error in caught.value.exceptions] == ["attached failed", "attached failed"]
    assert len(vifd.endpoints) == 2


def test_recovery_leaves_a_vm_alone_that_is_being_started(vifd: FakeVifd, driver: FakeHypervisor) -> None:
    vm = make_vm()
    with driver.incoming(vm):
        assert driver.recover() == []
        assert len(vifd.endpoints) == 2


def test_roots_driver_leaves_those_of_a_user_alone_that_has_its_name(
    vifd: FakeVifd, client: Client, driver: FakeHypervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    vm = make_vm()
    monkeypatch.setattr(os, "geteuid", lambda: 20001)
    driver.start(vm)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    roots = FakeHypervisor(client)
    assert (roots.endpoints(), roots.recover()) == ([], [])
    roots.stop(vm.uuid)
    assert len(vifd.endpoints) == 2


def test_garbage_is_what_no_vm_has_whoever_requested_it(vifd: FakeVifd, client: Client, driver: FakeHypervisor) -> None:
    vm = make_vm(1)
    driver.start(vm)
    client.request_endpoint(RequestEndpointRequest(endpoint_id="x", network="default", acceptable=preferences(["tap"])))
    assert driver.collect_garbage(dry_run=True) == ["x"]
    assert driver.collect_garbage() == ["x"]
    assert list(vifd.endpoints) == ids(vm)
    driver.vms.clear()
    assert driver.collect_garbage() == ids(vm)


def test_no_garbage_is_collected_where_a_vm_cannot_be_asked(vifd: FakeVifd, driver: FakeHypervisor) -> None:
    driver.start(make_vm(1))
    driver.failing = {"attached"}
    with pytest.raises(HypervisorError):
        driver.collect_garbage()
    assert len(vifd.endpoints) == 1


def test_one_piece_of_work_on_a_vm_at_a_time(driver: FakeHypervisor) -> None:
    vm, other = make_vm(), make_vm()
    with driver.incoming(vm):
        for work in (lambda: driver.stop(vm.uuid), lambda: driver.hot_unplug(vm.uuid, "x"), lambda: driver.start(vm)):
            with pytest.raises(VmBusy, match=f"another piece of work on VM {vm.uuid}"):
                work()
        with pytest.raises(VmBusy, match="on a VM is under way"):
            driver.collect_garbage()
        driver.start(other)
    driver.stop(vm.uuid)


def test_several_threads_work_on_several_vms(vifd: FakeVifd, driver: FakeHypervisor) -> None:
    vms = [make_vm() for _ in range(8)]

    def live(vm: VirtualMachine) -> None:
        driver.start(vm)
        driver.stop(vm.uuid)

    threads = [threading.Thread(target=live, args=(vm,)) for vm in vms]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (driver.vms, vifd.endpoints) == ({}, {})
