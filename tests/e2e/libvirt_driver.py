"""A hypervisor driver for libvirt, on the base of vifclient. The tests run it as an ordinary user.

libvirt_driver.py SOCKET URI start XML NETWORK KIND QUEUES     the domain's XML has <interfaces/> where they belong
libvirt_driver.py SOCKET URI hot-plug|hot-unplug|stop UUID [NETWORK KIND QUEUES | ENDPOINT_ID]
libvirt_driver.py SOCKET URI migrate XML KIND SOCKET URI MIGRATION_URI [OPTION...]     of the destination; the options are virsh's

migrate says when the domain has moved, and releases what it left when its input ends.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from xml.etree import ElementTree

from vifclient import Client, HypervisorDriver, Interface, VifError, VirtualMachine
from vifclient.hypervisors import libvirt
from vifclient.messages import Endpoint, EndpointPreference


class LibvirtError(Exception):
    """libvirt refused; the message is its own."""


class LibvirtDriver(HypervisorDriver):
    """libvirt by virsh: what a hypervisor has to say and to do."""

    name = "libvirt-test"

    def __init__(self, client: Client, uri: str, *, kind: str = "", queues: int = 1, domain_xml: str = "") -> None:
        super().__init__(client)
        self._uri, self._kind, self._queues, self._domain_xml = uri, kind, queues, domain_xml

    def acceptable(self, vm: VirtualMachine, interface: Interface) -> Sequence[EndpointPreference]:
        """Accept what this libvirt can attach, of the kind that is tested."""
        capabilities = libvirt.read_capabilities(self._virsh("domcapabilities"))
        privileged = "///system" in self._uri
        every = libvirt.acceptable(queues=self._queues, privileged=privileged, capabilities=capabilities)
        return [one for one in every if one.WhichOneof("kind") == self._kind]

    def start_vm(self, vm: VirtualMachine, endpoints: Sequence[Endpoint]) -> None:
        """Create a transient domain: it is gone when it ends."""
        self._virsh("create", "--validate", xml=self._domain(endpoints))

    def stop_vm(self, uuid: str) -> None:
        """End the domain."""
        if self._is_running(uuid):
            self._virsh("destroy", uuid)

    def attach(self, uuid: str, endpoint: Endpoint) -> None:
        """Attach it to the running domain."""
        self._virsh("attach-device", uuid, "--live", xml=libvirt.device_xml(endpoint, queues=self._queues))

    def detach(self, uuid: str, endpoint: Endpoint) -> None:
        """Detach it; libvirt waits some seconds for the guest."""
        if endpoint.endpoint_id in self.attached(uuid):
            self._virsh("detach-device", uuid, "--live", xml=libvirt.device_xml(endpoint, queues=self._queues))
        if endpoint.endpoint_id in self.attached(uuid):
            raise LibvirtError(f"the guest doesn't let {endpoint.endpoint_id} go")

    def attached(self, uuid: str) -> Collection[str]:
        """Ask for the domain's devices."""
        return libvirt.endpoint_ids(self._virsh("dumpxml", uuid)) if self._is_running(uuid) else []

    def move(self, uuid: str, destination: LibvirtDriver, endpoints: Sequence[Endpoint], options: Sequence[str]) -> None:
        """Move the running domain to another libvirt, onto endpoints of that host: its XML there names their devices."""
        self._virsh("migrate", uuid, destination._uri, *options, "--xml", xml=destination._domain(endpoints))

    def _domain(self, endpoints: Sequence[Endpoint]) -> str:
        devices = "".join(libvirt.device_xml(endpoint, queues=self._queues) for endpoint in endpoints)
        return self._domain_xml.replace("<interfaces/>", devices)

    def _is_running(self, uuid: str) -> bool:
        return uuid in self._virsh("list", "--uuid").split()

    def _virsh(self, command: str, *arguments: str, xml: str = "") -> str:
        with tempfile.NamedTemporaryFile("w", suffix=".xml") as file:
            file.write(xml)
            file.flush()
            argv = ["virsh", "--quiet", "--connect", self._uri, command, *arguments, *([file.name] if xml else [])]
            done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise LibvirtError(done.stderr.strip())
        return done.stdout


def start(client: Client, uri: str, path: str, network: str, kind: str, queues: str) -> str:
    """Start a domain with one interface."""
    text = Path(path).read_text()
    driver = LibvirtDriver(client, uri, kind=kind, queues=int(queues), domain_xml=text)
    return driver.start(machine(text, Interface(network=network)))[0].endpoint_id


def machine(domain_xml: str, *interfaces: Interface) -> VirtualMachine:
    """Name the VM that a domain is."""
    domain = ElementTree.fromstring(domain_xml)
    return VirtualMachine(uuid=domain.findtext("uuid") or "", name=domain.findtext("name") or "", interfaces=interfaces)


def hot_plug(client: Client, uri: str, uuid: str, network: str, kind: str, queues: str) -> str:
    """Give a running domain another interface."""
    driver = LibvirtDriver(client, uri, kind=kind, queues=int(queues))
    return driver.hot_plug(VirtualMachine(uuid=uuid, name=""), Interface(network=network)).endpoint_id


def hot_unplug(client: Client, uri: str, uuid: str, endpoint_id: str) -> str:
    """Take one from it."""
    LibvirtDriver(client, uri).hot_unplug(uuid, endpoint_id)
    return ""


def stop(client: Client, uri: str, uuid: str) -> str:
    """End a domain."""
    LibvirtDriver(client, uri).stop(uuid)
    return ""


def migrate(client: Client, uri: str, path: str, kind: str, to_socket: str, to_uri: str, where: str, *options: str) -> str:
    """Move a domain to another host."""
    text = Path(path).read_text()
    uuid = machine(text).uuid
    driver = LibvirtDriver(client, uri)

    def move(endpoints: Sequence[Endpoint]) -> None:
        driver.move(uuid, destination, endpoints, ["--migrateuri", where, *options])
        print("moved", flush=True)
        sys.stdin.read()

    with Client(to_socket) as there:
        destination = LibvirtDriver(there, to_uri, kind=kind, domain_xml=text)
        interfaces = [Interface(network=one.network, endpoint_id=one.endpoint_id) for one in driver.endpoints(uuid)]
        driver.migrate(machine(text, *interfaces), destination, move)
    return ""


VERBS: Mapping[str, Callable[..., str]] = {
    "start": start,
    "hot-plug": hot_plug,
    "hot-unplug": hot_unplug,
    "stop": stop,
    "migrate": migrate,
}


def main() -> None:
    """Run one of them."""
    socket, uri, verb, *arguments = sys.argv[1:]
    with Client(socket) as client:
        try:
            print(VERBS[verb](client, uri, *arguments))
        except (VifError, LibvirtError) as error:
            sys.exit("\n".join([f"{type(error).__name__}: {error}", *getattr(error, "__notes__", [])]))


if __name__ == "__main__":
    main()
