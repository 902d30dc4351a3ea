"""An endpoint of each kind, as vifd answers with them."""

from hypothesis import strategies as st

from vifclient.messages import (
    BridgePort,
    Endpoint,
    EndpointPreference,
    MacvtapDevice,
    OvsPort,
    PciDevice,
    PciHostDriver,
    PortSpec,
    TapDevice,
    VdpaDevice,
    VhostUserRole,
    VhostUserSocket,
    VlanSpec,
)

ID = "9f3c1a52-6d1e-4c0b-8a57-1f0f3f1f7a10"
MAC = "52:54:00:12:34:56"
TEXT = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"], exclude_characters="\ufffe\uffff"), max_size=40)


def _endpoint(mtu_bytes: int = 1500, **location) -> Endpoint:
    return Endpoint(endpoint_id=ID, port=PortSpec(mac=MAC, mtu_bytes=mtu_bytes), **location)


def tap(ifname: str = "vdt0", queues: int = 1, *, mtu_bytes: int = 1500, vnet_hdr: bool = True) -> Endpoint:
    device = TapDevice(ifname=ifname, queues=queues, multi_queue=queues > 1, vnet_hdr=vnet_hdr)
    return _endpoint(mtu_bytes, tap=device)


def macvtap(queues: int = 1) -> Endpoint:
    return _endpoint(macvtap=MacvtapDevice(ifname="vdm0", device_path="/dev/vifd/macvtap1", queues=queues, vnet_hdr=True))


def bridge(vlan: VlanSpec | None = None) -> Endpoint:
    return _endpoint(bridge=BridgePort(bridge_name="br-blue", suggested_ifname="vdb0", vlan=vlan))


def pci(host_driver: PciHostDriver.ValueType = PciHostDriver.PCI_HOST_DRIVER_VFIO) -> Endpoint:
    return _endpoint(pci=PciDevice(address="0000:03:10.2", host_driver=host_driver))


def ovs_port(interface_id: str = ID) -> Endpoint:
    return _endpoint(ovs_port=OvsPort(bridge_name="br-int", port_name="vdo0", interface_id=interface_id, datapath_type="system"))


def vhost_user(path: str = "/run/v.sock", queues: int = 1, *, server: bool = False) -> Endpoint:
    role = VhostUserRole.VHOST_USER_ROLE_SERVER if server else VhostUserRole.VHOST_USER_ROLE_CLIENT
    return _endpoint(vhost_user=VhostUserSocket(socket_path=path, hypervisor_role=role, queues=queues))


def vdpa(queues: int = 1) -> Endpoint:
    return _endpoint(vdpa=VdpaDevice(device_path="/dev/vhost-vdpa-0", name="vdpa0", queues=queues))


def without_link(endpoint: Endpoint) -> Endpoint:
    endpoint.port.link_up = False
    return endpoint


def kinds(preferences: list[EndpointPreference]) -> list[str | None]:
    return [preference.WhichOneof("kind") for preference in preferences]
