"""libvirt: an endpoint as an `<interface>` element of a domain (https://libvirt.org/formatdomain.html#network-interfaces)."""

from collections.abc import Callable, Mapping
from xml.etree.ElementTree import Element, SubElement, indent, tostring

from vif.v1.endpoint_pb2 import Endpoint, VlanSpec
from vif.v1.endpoint_service_pb2 import BridgePreference, EndpointPreference, MacvtapPreference, TapPreference
from vifclient.hypervisors import refuse


def acceptable(*, queues: int = 1) -> list[EndpointPreference]:
    """Say which kinds libvirt attaches, best first.

    Args:
        queues: How many queue pairs the VM shall have, 1 to 256.

    Returns:
        A tap, which also an unprivileged libvirt attaches; then a macvtap and a bridge, for which libvirt needs privileges of its
        own: it opens /dev/tapN, which belongs to root, and not the node that vifd made. That is named by interface index, so
        libvirt has to run in the host's network namespace, and vifd as well.
    """
    tap = EndpointPreference(tap=TapPreference(queues=queues, vnet_hdr=True))
    macvtap = EndpointPreference(macvtap=MacvtapPreference(queues=queues, vnet_hdr=True))
    return [tap, macvtap, EndpointPreference(bridge=BridgePreference())]


def interface_xml(endpoint: Endpoint, *, queues: int = 1, model: str = "virtio") -> str:
    """Turn an endpoint into an `<interface>` element.

    Args:
        endpoint: The endpoint, a tap, a macvtap or a bridge.
        queues: How many queue pairs the VM has on a bridge, where libvirt makes the tap; a device of vifd knows its own number.
        model: The device that the VM sees.

    Returns:
        The element as text.

    Raises:
        UnacceptableEndpoint: libvirt can't attach it.
    """
    build = _BUILDERS.get(endpoint.WhichOneof("location") or "")
    if build is None:
        raise refuse(endpoint, "libvirt", _BUILDERS)
    element = build(endpoint)
    SubElement(element, "mac", address=endpoint.port.mac)
    SubElement(element, "model", type=model)
    queues = {"tap": endpoint.tap.queues, "macvtap": endpoint.macvtap.queues}.get(endpoint.WhichOneof("location") or "", queues)
    if queues > 1:
        SubElement(element, "driver", queues=str(queues))
    if endpoint.port.mtu_bytes:
        SubElement(element, "mtu", size=str(endpoint.port.mtu_bytes))
    if endpoint.port.HasField("link_up") and not endpoint.port.link_up:
        SubElement(element, "link", state="down")  # else the guest takes a device that is down for a cable that is plugged in
    indent(element)
    return tostring(element, encoding="unicode")


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


_BUILDERS: Mapping[str, Callable[[Endpoint], Element]] = {"tap": _tap, "macvtap": _macvtap, "bridge": _bridge}
