"""The modules of hypervisors are pure: what they give depends on their arguments alone, and those stay as they were."""

import ast
import inspect
from collections.abc import Callable
from types import ModuleType

import pytest

from tests.unit.client.hypervisors.examples import bridge, macvtap, ovs_port, pci, tap, vdpa, vhost_user, without_link
from vifclient.hypervisors import UnacceptableEndpoint, cloud_hypervisor, firecracker, libvirt, qemu
from vifclient.messages import Endpoint

MODULES = [libvirt, qemu, cloud_hypervisor, firecracker]
ENDPOINTS = [tap(queues=2), macvtap(), bridge(), pci(), ovs_port(), vhost_user(), vdpa(), without_link(tap())]
CONFIGURE: list[Callable[[Endpoint], object]] = [
    libvirt.device_xml,
    lambda endpoint: qemu.argv(endpoint, netdev_id="n0"),
    lambda endpoint: qemu.plug(endpoint, netdev_id="n0"),
    lambda endpoint: cloud_hypervisor.argv(endpoint, device_id="n0"),
    lambda endpoint: cloud_hypervisor.add(endpoint, device_id="n0"),
    lambda endpoint: firecracker.add(endpoint, iface_id="n0"),
]


def outcome(configure: Callable[[Endpoint], object], endpoint: Endpoint) -> object:
    try:
        return configure(endpoint)
    except (UnacceptableEndpoint, ValueError) as error:
        return str(error)


@pytest.mark.parametrize("endpoint", ENDPOINTS)
@pytest.mark.parametrize("configure", CONFIGURE)
def test_the_same_endpoint_gives_the_same_and_stays(configure: Callable[[Endpoint], object], endpoint: Endpoint) -> None:
    before = Endpoint()
    before.CopyFrom(endpoint)
    assert outcome(configure, endpoint) == outcome(configure, before)
    assert endpoint == before


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
def test_nothing_is_imported_that_reaches_outside(module: ModuleType) -> None:
    nodes = list(ast.walk(ast.parse(inspect.getsource(module))))
    names = {name.name for node in nodes if isinstance(node, ast.Import) for name in node.names}
    names |= {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)}
    pure = {"re", "uuid", "typing", "collections.abc", "dataclasses", "xml.etree", "xml.etree.ElementTree"}
    ours = {"vifclient.hypervisors", "vifclient.hypervisors.rest", "vif.v1.endpoint_pb2", "vif.v1.endpoint_service_pb2"}
    assert names <= pure | ours
