"""What every hypervisor driver does with endpoints, written once: a new hypervisor is a class with six short methods.

    class Mine(HypervisorDriver):
        ...

    with Client() as client:
        driver = Mine(client)
        driver.recover()
        driver.start(VirtualMachine(uuid=str(uuid4()), name="web", interfaces=(Interface(network="blue"),)))

`client/examples/qemu_driver.py` is a whole one, for plain QEMU.

The rule that every path keeps: an endpoint that a VM has attached is never released, and what was made for something that failed
is. What can't be released then, because vifd is away, is garbage that `recover` finds; where the VM comes back before that, with
the same request the endpoint that was left is its own again, and with another one it makes way.

For asyncio: `await asyncio.to_thread(driver.start, vm)`. The methods block, may be called from several threads at once, and
refuse a second piece of work on a VM while one is under way (VmBusy). They know nothing of other processes: where two of one
driver may run, a lock has to keep `recover` of the one from what the other has requested and not attached yet.
"""

import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import ClassVar
from uuid import uuid4

from vif.v1.endpoint_pb2 import Endpoint, Instance, Lifetime, PortSpec, Requirements
from vif.v1.endpoint_service_pb2 import EndpointPreference, ReleaseEndpointRequest, RequestEndpointRequest
from vifclient.calls import BATCH
from vifclient.client import Client
from vifclient.errors import AlreadyExists, NotFound

DRIVER_LABEL, USER_LABEL = "hypervisor-driver", "hypervisor-driver-uid"


class VmBusy(RuntimeError):
    """Another piece of work on the same VM is under way: try again when it is done."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Interface:
    """A network interface of a VM, as it is wanted.

    Attributes:
        network: The network's name.
        endpoint_id: Its id, a UUID. Keep it with the VM's own configuration: the same id again is the same endpoint.
        port: What its port is like.
        require: What it must be able to do. None: nothing beyond its kind.
        lifetime: How long it lives. None: until it is released. Whoever gives it a lease renews it.
    """

    network: str
    endpoint_id: str = field(default_factory=lambda: str(uuid4()))
    port: PortSpec = field(default_factory=PortSpec)
    require: Requirements | None = None
    lifetime: Lifetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class VirtualMachine:
    """A VM, as far as its network goes.

    Attributes:
        uuid: Its UUID, in canonical lower-case form.
        name: Its name.
        interfaces: Its network interfaces, in the order in which it shall see them; at most 64.
    """

    uuid: str
    name: str
    interfaces: tuple[Interface, ...] = ()


class HypervisorDriver(ABC):
    """A hypervisor driver: a subclass says how its hypervisor does six things, and this class when.

    Args:
        client: vifd of this host. The caller closes it.

    Attributes:
        name: The driver's name, up to 255 bytes. Endpoints carry it as a label, and the user's id as another, so that drivers
            don't mistake each other's.
        client: vifd of this host.
    """

    name: ClassVar[str]

    def __init__(self, client: Client) -> None:
        self.client = client
        self._lock = threading.Lock()
        self._busy: set[str | None] = set()

    # What the hypervisor has to say and to do.

    @abstractmethod
    def acceptable(self, vm: VirtualMachine, interface: Interface) -> Sequence[EndpointPreference]:
        """Say which kinds can be attached, best first: the `acceptable` of a module in `vifclient.hypervisors`."""

    @abstractmethod
    def start_vm(self, vm: VirtualMachine, endpoints: Sequence[Endpoint]) -> None:
        """Start a VM with endpoints, in the order of its interfaces; raise if it doesn't run."""

    @abstractmethod
    def stop_vm(self, uuid: str) -> None:
        """Stop a VM, and wait until it has let its devices go. One that doesn't run is no error."""

    @abstractmethod
    def attach(self, uuid: str, endpoint: Endpoint) -> None:
        """Attach an endpoint to a running VM: all of it, or raise and leave nothing."""

    @abstractmethod
    def detach(self, uuid: str, endpoint: Endpoint) -> None:
        """Detach an endpoint from a VM, and wait until it has let it go. One that isn't attached is no error."""

    @abstractmethod
    def attached(self, uuid: str) -> Collection[str]:
        """Say which endpoints, by id, a VM has attached now; none where it doesn't run. Raise if that can't be known."""

    # When it is done.

    def start(self, vm: VirtualMachine) -> list[Endpoint]:
        """Start a VM on endpoints that are requested as one batch: all or none.

        Args:
            vm: The VM.

        Returns:
            Its endpoints, in the order of its interfaces.

        Raises:
            VmBusy: Another piece of work on it is under way.
            VifError: vifd can't give the endpoints.
            Exception: What `start_vm` raises; then the endpoints are released.
        """
        with self.incoming(vm) as endpoints:
            self.start_vm(vm, endpoints)
        return endpoints

    def stop(self, uuid: str) -> None:
        """Stop a VM and release its endpoints. One that doesn't run, or has none, is no error.

        Args:
            uuid: The VM's UUID.

        Raises:
            VmBusy: Another piece of work on it is under way.
            VifError: They can't be released: repeat it.
            Exception: What `stop_vm` raises; then the endpoints stay.
        """
        with self._working_on(uuid):
            self.stop_vm(uuid)
            self._release(self.endpoints(uuid))

    def hot_plug(self, vm: VirtualMachine, interface: Interface) -> Endpoint:
        """Give a running VM one more interface.

        Args:
            vm: The VM.
            interface: The interface.

        Returns:
            Its endpoint.

        Raises:
            VmBusy: Another piece of work on it is under way.
            VifError: vifd can't give the endpoint.
            Exception: What `attach` raises; then the endpoint is released.
        """
        with self.incoming(replace(vm, interfaces=(interface,))) as (endpoint,):
            if interface.endpoint_id not in self.attached(vm.uuid):
                self.attach(vm.uuid, endpoint)
        return endpoint

    def hot_unplug(self, uuid: str, endpoint_id: str) -> None:
        """Take an interface from a running VM and release its endpoint. One that is gone is no error.

        Args:
            uuid: The VM's UUID.
            endpoint_id: The interface's endpoint.

        Raises:
            VmBusy: Another piece of work on it is under way.
            NotFound: Somebody has released it while the VM had it.
            VifError: It can't be released: repeat it.
            Exception: What `detach` raises; then the endpoint stays.
        """
        with self._working_on(uuid):
            found = [endpoint for endpoint in self.endpoints(uuid) if endpoint.endpoint_id == endpoint_id]
            if not found and endpoint_id in self.attached(uuid):
                raise NotFound(f"the VM has {endpoint_id} attached still, but vifd knows it no more: stop the VM")
            for endpoint in found:
                self.detach(uuid, endpoint)
            self._release(found)

    @contextmanager
    def incoming(self, vm: VirtualMachine) -> Iterator[list[Endpoint]]:
        """Hold endpoints for a VM that the block brings here: by starting it, or as the destination of its migration.

        Args:
            vm: The VM; of one that migrates, what `outgoing` gave on its source.

        Yields:
            Its endpoints, in the order of its interfaces. If the block raises, those that no VM has attached are released: a
            block that has begun to start a VM ends it before.

        Raises:
            VmBusy: Another piece of work on it is under way.
            VifError: vifd can't give the endpoints.
        """
        with self._working_on(vm.uuid):
            try:
                yield self._request(vm)
            except BaseException as error:
                self._tidy_up(vm, error)
                raise

    @contextmanager
    def outgoing(self, vm: VirtualMachine) -> Iterator[VirtualMachine]:
        """Give the endpoints of a VM up that the block moves to another host.

        Args:
            vm: The VM, with all its interfaces, also those that were plugged later.

        Yields:
            The VM to be requested on its destination: with the ports as they are here now, so that addresses, guard and limits
            travel with it, and lifetimes but a process's. If the block raises, the VM goes on here, and nothing is released. Nor
            is what it has attached here after the block, but by `recover` later: the block ends a QEMU, which keeps its devices.

        Raises:
            VmBusy: Another piece of work on it is under way.
            VifError: vifd can't be asked; or, after the block, the endpoints can't be released: `recover` does it.
            Exception: What `attached` raises after the block: likewise.
        """
        with self._working_on(vm.uuid):
            ports = {endpoint.endpoint_id: endpoint.port for endpoint in self.endpoints(vm.uuid)}
            yield replace(vm, interfaces=tuple(_leaving(one, ports.get(one.endpoint_id, one.port)) for one in vm.interfaces))
            self._release_unused(vm.uuid)

    def migrate(self, vm: VirtualMachine, destination: "HypervisorDriver", move: Callable[[Sequence[Endpoint]], None]) -> None:
        """Migrate a VM, where one process speaks to the vifd of both hosts; else each host's driver does its half.

        vifd's part is a request on the destination and a release on the source; on which host the VM runs now it notices by
        itself on a tap, and of other kinds is told by `Client.activate_endpoint`, if a driver likes.

        Args:
            vm: The VM.
            destination: The other host's driver.
            move: Moves the VM onto the endpoints of the destination by the hypervisor's own means, and ends what is left of it
                here; raises if it stays, and then has ended what it began there.

        Raises:
            VmBusy: Another piece of work on it is under way.
            VifError: The destination can't give the endpoints; or those of the source can't be released: `recover` does it.
            Exception: What `move` raises; then the destination's endpoints are released, and the VM goes on.
        """
        # In this order: a source that can't release must not take the destination's endpoints from the VM that runs on them.
        with self.outgoing(vm) as moving, destination.incoming(moving) as endpoints:
            move(endpoints)

    def recover(self) -> list[str]:
        """Release what no VM has attached: after the driver's own restart, or at any time; VMs being worked on are left alone.

        Returns:
            The ids of what was released.

        Raises:
            VifError: vifd can't be asked.
            ExceptionGroup: Of some VMs it can't be known, or they can't be released; the others are done.
        """
        released, failures = list[str](), list[Exception]()
        for uuid in self._vms():
            try:
                with self._working_on(uuid):
                    released += self._release_unused(uuid)
            except VmBusy:
                continue
            except Exception as error:
                failures.append(error)
        if failures:
            raise ExceptionGroup("some VMs' endpoints could not be brought in order", failures)
        return released

    def collect_garbage(self, *, dry_run: bool = False) -> list[str]:
        """Release every endpoint of this user that no VM of this driver has attached, whoever requested it.

        Only for a driver that has its user for itself: it takes other programs' endpoints too. `recover` doesn't.

        Args:
            dry_run: Only say which would be released.

        Returns:
            The ids of what was released, or would be.

        Raises:
            VmBusy: Some piece of work is under way.
            VifError: vifd can't do it.
            Exception: What `attached` raises; then nothing is released.
        """
        with self._working_on(None):
            keep = [endpoint_id for uuid in self._vms() for endpoint_id in self.attached(uuid)]
            return self.client.collect_garbage(keep, dry_run=dry_run, allow_empty=True)

    def endpoints(self, uuid: str = "") -> list[Endpoint]:
        """List the endpoints that this driver requested.

        Args:
            uuid: Only those of this VM. Empty: of all.

        Returns:
            The endpoints, by id.

        Raises:
            VifError: vifd can't be asked.
        """
        return list(self.client.list_endpoints(instance_uuid=uuid, labels=self._labels))

    def make_request(self, vm: VirtualMachine, interface: Interface) -> RequestEndpointRequest:
        """Make the request for an interface; a subclass may add to it.

        Args:
            vm: The VM.
            interface: Its interface.

        Returns:
            The request, the same for the same interface.
        """
        return RequestEndpointRequest(
            endpoint_id=interface.endpoint_id,
            network=interface.network,
            acceptable=self.acceptable(vm, interface),
            port=interface.port,
            instance=Instance(uuid=vm.uuid, name=vm.name),
            labels=self._labels,
            require=interface.require,
            lifetime=interface.lifetime,
        )

    @property
    def _labels(self) -> dict[str, str]:
        # With the user: root sees everybody's endpoints, and the driver of another user may have the same name.
        return {DRIVER_LABEL: self.name, USER_LABEL: str(os.geteuid())}

    def _vms(self) -> list[str]:
        # An endpoint of no VM isn't `make_request`'s, so nobody knows who has it.
        return sorted({endpoint.instance.uuid for endpoint in self.endpoints()} - {""})

    @contextmanager
    def _working_on(self, uuid: str | None) -> Iterator[None]:
        """Have a VM for oneself. None: all of them."""
        if uuid == "":  # vifd would take it for all of them
            raise ValueError("the VM has no UUID")
        with self._lock:
            if self._busy and (uuid is None or not self._busy.isdisjoint({uuid, None})):
                raise VmBusy(f"another piece of work on {f'VM {uuid}' if uuid else 'a VM'} is under way")
            self._busy.add(uuid)
        try:
            yield
        finally:
            with self._lock:
                self._busy.discard(uuid)

    def _request(self, vm: VirtualMachine) -> list[Endpoint]:
        requests = [self.make_request(vm, interface) for interface in vm.interfaces]
        try:
            answers = self.client.batch_request_endpoints(requests) if requests else []
        except AlreadyExists:  # of an earlier stay of the VM, perhaps: it moved away or ended, and nobody released it
            if not self._release_unused(vm.uuid, vm.interfaces):
                raise
            answers = self.client.batch_request_endpoints(requests)
        return [answer.endpoint for answer in answers]

    def _tidy_up(self, vm: VirtualMachine, error: BaseException) -> None:
        """Release what was requested for something that failed; what stays behind is told with the error."""
        try:
            self._release_unused(vm.uuid, vm.interfaces)
        except Exception as failure:
            error.add_note(f"endpoints may be left behind until recover() releases them: {failure}")

    def _release_unused(self, uuid: str, of: Sequence[Interface] | None = None) -> list[str]:
        """Release what a VM hasn't attached, `of` some interfaces or all. It is listed anew: an answer may have got lost."""
        ids = {interface.endpoint_id for interface in of or ()}  # which may be another VM's
        endpoints = [one for one in self.endpoints(uuid) if of is None or one.endpoint_id in ids]
        attached = set(self.attached(uuid)) if endpoints else set()  # it may be what failed: don't ask it in vain
        unused = [endpoint for endpoint in endpoints if endpoint.endpoint_id not in attached]
        self._release(unused)
        return [endpoint.endpoint_id for endpoint in unused]

    def _release(self, endpoints: Sequence[Endpoint]) -> None:
        # With the generation, so that a release that is late can't hurt a later life of the id.
        requests = [ReleaseEndpointRequest(endpoint_id=one.endpoint_id, generation=one.generation) for one in endpoints]
        for first in range(0, len(requests), BATCH):
            self.client.batch_release_endpoints(requests[first : first + BATCH])


def _leaving(interface: Interface, port: PortSpec) -> Interface:
    """Leave its process behind: on another host that id is somebody else's."""
    by_process = interface.lifetime is not None and interface.lifetime.HasField("process")
    return replace(interface, port=port, lifetime=None if by_process else interface.lifetime)
