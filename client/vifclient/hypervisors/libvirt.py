"""libvirt: an endpoint as an `<interface>` or `<hostdev>` element of a domain, for `virsh attach-device` as well.

Source: https://libvirt.org/formatdomain.html, for libvirt 9.0 and later with its QEMU driver. An element's alias is the
endpoint's id, by which the device is detached (virDomainDetachDeviceAlias), and by which a restarted driver knows it again
(`endpoint_ids`).

A live migration takes the domain's XML as it will be on the destination (virDomainMigrate3's VIR_MIGRATE_PARAM_DEST_XML, `virsh
migrate --xml`): the same, with the devices of the endpoints that the destination's vifd gave.

A domain with a vhost-user endpoint has to share its memory: put `memory_backing_xml()` into its XML.
"""

import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from xml.etree import ElementTree
from xml.etree.ElementTree import Element, SubElement, indent, tostring

from vif.v1.endpoint_pb2 import Endpoint, PciHostDriver, VhostUserRole, VlanSpec
from vif.v1.endpoint_service_pb2 import EndpointPreference
from vifclient.hypervisors import Kind, UnacceptableEndpoint, count_queues, preferences, refuse

ALIAS_PREFIX = "ua-"  # libvirt's, for aliases that users give
# In the order of preference: first what can migrate and be guarded.
_KINDS: tuple[Kind, ...] = ("tap", "vhost_user", "vdpa", "macvtap", "pci", "ovs_port", "bridge")
# An unprivileged libvirt opens what is its user's. It makes no port: that takes root, or a qemu-bridge-helper that is setuid.
_SESSION_KINDS: tuple[Kind, ...] = ("tap", "vhost_user", "macvtap")


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """What a libvirt can do for domains, of its domain capabilities.

    Attributes:
        pci: Whether it passes PCI devices through here.
        shared_memory: Whether it shares a domain's memory by memfd, as `memory_backing_xml` has it.
    """

    pci: bool
    shared_memory: bool


def read_capabilities(domain_capabilities: str) -> Capabilities:
    """Read what a libvirt can do.

    Args:
        domain_capabilities: The XML of virConnectGetDomainCapabilities (`virsh domcapabilities`).

    Returns:
        What it can do.
    """
    # It is the caller's own libvirt that wrote it.
    root = ElementTree.fromstring(domain_capabilities)  # noqa: S314  (libvirt wrote it)
    return Capabilities(
        pci="pci" in _values(root, "./devices/hostdev[@supported='yes']/enum[@name='subsysType']"),
        shared_memory="memfd" in _values(root, "./memoryBacking[@supported='yes']/enum[@name='sourceType']"),
    )


def acceptable(
    *, queues: int = 1, privileged: bool = True, shared_memory: bool = False, capabilities: Capabilities | None = None
) -> list[EndpointPreference]:
    """Say which kinds libvirt attaches, best first.

    Args:
        queues: How many queue pairs the VM shall have, 1 to 256.
        privileged: Whether libvirt runs as root (qemu:///system); else (qemu:///session) it attaches what its user may open. It
            then makes no port on a bridge: its `<interface type='bridge'>` takes a qemu-bridge-helper that is setuid root.
        shared_memory: Whether the domain has `memory_backing_xml()`, which a vhost-user socket needs.
        capabilities: What this libvirt can do on this host. None: what libvirt 9.0 can where the host has everything.

    Returns:
        A tap and a macvtap; with shared memory a vhost-user socket; if it is privileged, also a vDPA device, a PCI function, a
        port of Open vSwitch and a bridge. Of a macvtap, libvirt opens the kernel's /dev/tapN, and not the node that vifd made:
        both are its owner's, unless that one has a gid. The kernel's is named by interface index, so libvirt has to run in the
        host's network namespace, and vifd as well.
    """
    unfit: set[Kind] = set() if shared_memory and (capabilities is None or capabilities.shared_memory) else {"vhost_user"}
    if capabilities is not None and not capabilities.pci:
        unfit.add("pci")
    return preferences((kind for kind in (_KINDS if privileged else _SESSION_KINDS) if kind not in unfit), queues=queues)


def device_xml(endpoint: Endpoint, *, queues: int = 1, model: str = "virtio") -> str:
    """Turn an endpoint into a device of a domain.

    Args:
        endpoint: The endpoint, of a kind that `acceptable` has.
        queues: How many queue pairs the VM has on a bridge or a port of Open vSwitch, where libvirt makes the tap; a device of
            vifd knows its own number.
        model: The device that the VM sees. A PCI function is its own.

    Returns:
        The element as text: `<hostdev>` for a PCI function, else `<interface>`.

    Raises:
        UnacceptableEndpoint: libvirt can't attach it.
    """
    kind = endpoint.WhichOneof("location") or ""
    build = _BUILDERS.get(kind)
    if build is None:
        raise refuse(endpoint, "libvirt", _BUILDERS)
    element = build(endpoint)
    if kind != "pci":
        _describe_card(element, endpoint, count_queues(endpoint) or queues, model)
    if endpoint.partner_endpoint_id:
        element.append(_teaming(endpoint))
    SubElement(element, "alias", name=alias(endpoint.endpoint_id))
    indent(element)
    return tostring(element, encoding="unicode")


def memory_backing_xml() -> str:
    """Say how a domain shares its memory, which a vhost-user endpoint needs: the other side reads and writes it.

    Returns:
        The `<memoryBacking>` element, a child of `<domain>`.
    """
    element = Element("memoryBacking")
    SubElement(element, "source", type="memfd")
    SubElement(element, "access", mode="shared")
    return tostring(element, encoding="unicode")


def alias(endpoint_id: str) -> str:
    """Name the device of an endpoint, as virDomainDetachDeviceAlias and `virsh detach-device-alias` take it.

    Args:
        endpoint_id: The endpoint.

    Returns:
        The alias.
    """
    return f"{ALIAS_PREFIX}{endpoint_id}"


def endpoint_ids(domain_xml: str) -> list[str]:
    """Find the endpoints that a domain has attached.

    Args:
        domain_xml: The domain's XML (virDomainGetXMLDesc, `virsh dumpxml`).

    Returns:
        Their ids, in the order of its devices.
    """
    root = ElementTree.fromstring(domain_xml)  # noqa: S314  (libvirt wrote it)
    names = [element.get("name", "") for element in root.iterfind("./devices/*/alias")]
    return [
        name.removeprefix(ALIAS_PREFIX) for name in names if name.startswith(ALIAS_PREFIX) and _is_uuid(name[len(ALIAS_PREFIX) :])
    ]


def _values(root: Element, path: str) -> set[str | None]:
    return {value.text for value in root.iterfind(f"{path}/value")}


def _is_uuid(text: str) -> bool:
    try:
        return str(uuid.UUID(text)) == text
    except ValueError:
        return False


def _describe_card(element: Element, endpoint: Endpoint, queues: int, model: str) -> None:
    """Add what the guest sees of its network card."""
    SubElement(element, "mac", address=endpoint.port.mac)
    SubElement(element, "model", type=model)
    if queues > 1:
        SubElement(element, "driver", queues=str(queues))
    if endpoint.port.mtu_bytes and not endpoint.HasField("vdpa"):  # libvirt refuses it there: the device says it itself
        SubElement(element, "mtu", size=str(endpoint.port.mtu_bytes))
    if endpoint.port.HasField("link_up") and not endpoint.port.link_up:
        SubElement(element, "link", state="down")  # else the guest takes a device that is down for a cable that is plugged in


def _tap(endpoint: Endpoint) -> Element:
    element = Element("interface", type="ethernet")
    # Without managed='no' libvirt fails on a tap that exists, and deletes it.
    SubElement(element, "target", dev=endpoint.tap.ifname, managed="no")
    return element


def _macvtap(endpoint: Endpoint) -> Element:
    element = Element("interface", type="ethernet")
    # As with a tap; libvirt sees by itself that it is a macvtap. With type='direct' it would make one of its own.
    SubElement(element, "target", dev=endpoint.macvtap.ifname, managed="no")
    return element


def _bridge(endpoint: Endpoint) -> Element:
    bridge = endpoint.bridge
    element = Element("interface", type="bridge")
    SubElement(element, "source", bridge=bridge.bridge_name)
    SubElement(element, "target", dev=bridge.suggested_ifname)
    if bridge.HasField("vlan"):
        element.append(_vlan(bridge.vlan))
    return element


def _ovs_port(endpoint: Endpoint) -> Element:
    port = endpoint.ovs_port
    if not _is_uuid(port.interface_id):
        raise UnacceptableEndpoint(
            f"the endpoint {endpoint.endpoint_id} has the interface id {port.interface_id!r}, and libvirt takes only UUIDs"
        )
    element = Element("interface", type="bridge")
    SubElement(element, "source", bridge=port.bridge_name)
    SubElement(element, "target", dev=port.port_name)
    SubElement(SubElement(element, "virtualport", type="openvswitch"), "parameters", interfaceid=port.interface_id)
    return element


def _vhost_user(endpoint: Endpoint) -> Element:
    socket = endpoint.vhost_user
    mode = "server" if socket.hypervisor_role == VhostUserRole.VHOST_USER_ROLE_SERVER else "client"
    element = Element("interface", type="vhostuser")
    SubElement(element, "source", type="unix", path=socket.socket_path, mode=mode)
    return element


def _vdpa(endpoint: Endpoint) -> Element:
    element = Element("interface", type="vdpa")
    SubElement(element, "source", dev=endpoint.vdpa.device_path)
    return element


def _pci(endpoint: Endpoint) -> Element:
    # Not <interface type='hostdev'>, with which libvirt sets the function's MAC and VLAN: they are vifd's.
    rebind = endpoint.pci.host_driver == PciHostDriver.PCI_HOST_DRIVER_KERNEL
    element = Element("hostdev", mode="subsystem", type="pci", managed="yes" if rebind else "no")
    domain, bus, rest = endpoint.pci.address.split(":")
    slot, function = rest.split(".")
    numbers = {"domain": domain, "bus": bus, "slot": slot, "function": function}
    SubElement(SubElement(element, "source"), "address", {name: f"0x{number}" for name, number in numbers.items()})
    return element


def _teaming(endpoint: Endpoint) -> Element:
    """Say which part of a pair this is: a PCI function goes away while the VM moves, and comes back (libvirt 7.1)."""
    if endpoint.HasField("pci"):
        return Element("teaming", type="transient", persistent=alias(endpoint.partner_endpoint_id))
    return Element("teaming", type="persistent")


def _vlan(spec: VlanSpec) -> Element:
    # libvirt does VLANs of Linux bridges since 11.0 and refuses them before that; either is better than to leave them out.
    if spec.vid:
        element = Element("vlan")
        SubElement(element, "tag", id=str(spec.vid))
        return element
    element = Element("vlan", trunk="yes")
    if spec.native_vid:
        SubElement(element, "tag", id=str(spec.native_vid), nativeMode="untagged")
    for vid in spec.trunk_vids:
        if vid != spec.native_vid:
            SubElement(element, "tag", id=str(vid))
    return element


_BUILDERS: Mapping[str, Callable[[Endpoint], Element]] = {
    "tap": _tap,
    "vhost_user": _vhost_user,
    "vdpa": _vdpa,
    "macvtap": _macvtap,
    "pci": _pci,
    "ovs_port": _ovs_port,
    "bridge": _bridge,
}
