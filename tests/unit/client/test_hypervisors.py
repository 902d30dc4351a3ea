from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vifclient.hypervisors import UnacceptableEndpoint, libvirt, qemu
from vifclient.messages import BridgePort, Endpoint, MacvtapDevice, PciDevice, PortSpec, TapDevice, VlanSpec

MAC = "52:54:00:12:34:56"
TEXT = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"], exclude_characters="\ufffe\uffff"), max_size=40)


def tap(ifname: str = "vdt0", queues: int = 1, *, mtu_bytes: int = 1500, vnet_hdr: bool = True) -> Endpoint:
    device = TapDevice(ifname=ifname, queues=queues, multi_queue=queues > 1, vnet_hdr=vnet_hdr)
    return Endpoint(endpoint_id="e", tap=device, port=PortSpec(mac=MAC, mtu_bytes=mtu_bytes))


def macvtap(queues: int = 1) -> Endpoint:
    device = MacvtapDevice(ifname="vdm0", device_path="/dev/vifd/macvtap1", queues=queues, vnet_hdr=True)
    return Endpoint(endpoint_id="e", macvtap=device, port=PortSpec(mac=MAC, mtu_bytes=1500))


def bridge(vlan: VlanSpec | None = None) -> Endpoint:
    port = BridgePort(bridge_name="br-blue", suggested_ifname="vdb0", vlan=vlan)
    return Endpoint(endpoint_id="e", bridge=port, port=PortSpec(mac=MAC, mtu_bytes=1500))


PCI = Endpoint(endpoint_id="e", pci=PciDevice(address="0000:03:10.2"))


def kinds(preferences: list) -> list[str | None]:
    return [preference.WhichOneof("kind") for preference in preferences]


def read_options(text: str) -> list[str]:
    """Split as QEMU does: at single commas, and a doubled comma is one."""
    return [option.replace("\0", ",") for option in text.replace(",,", "\0").split(",")]


def test_qemu_accepts() -> None:
    assert kinds(qemu.acceptable()) == ["tap", "macvtap", "bridge"]
    # qemu-bridge-helper makes taps with one queue: a bridge would silently give fewer than were asked for.
    several = qemu.acceptable(queues=4)
    assert kinds(several) == ["tap", "macvtap"]
    assert (several[0].tap.queues, several[1].macvtap.queues) == (4, 4)


def test_qemu_opens_a_tap_by_name() -> None:
    assert qemu.argv(tap(), netdev_id="n0") == [
        "-netdev", "tap,id=n0,ifname=vdt0,script=no,downscript=no",
        "-device", f"virtio-net-pci,netdev=n0,mac={MAC}",
    ]  # fmt: skip


def test_qemu_with_queues_by_name() -> None:
    assert qemu.argv(tap(queues=4), netdev_id="n0", vhost=True) == [
        "-netdev", "tap,id=n0,ifname=vdt0,script=no,downscript=no,queues=4,vhost=on",
        "-device", f"virtio-net-pci,netdev=n0,mac={MAC},mq=on,vectors=10",
    ]  # fmt: skip


def test_qemu_takes_fds() -> None:
    assert qemu.argv(tap(queues=2, mtu_bytes=9000), netdev_id="n0", fds=[5, 6], device_options={"romfile": ""}) == [
        "-netdev", "tap,id=n0,fds=5:6",
        "-device", f"virtio-net-pci,netdev=n0,mac={MAC},mq=on,vectors=6,host_mtu=9000,romfile=",
    ]  # fmt: skip
    assert qemu.argv(tap(), netdev_id="n0", fds=(5,))[1] == "tap,id=n0,fds=5"


def test_qemu_takes_the_fds_of_a_macvtap() -> None:
    assert qemu.argv(macvtap(2), netdev_id="n0", fds=[5, 6], vhost=True) == [
        "-netdev", "tap,id=n0,fds=5:6,vhost=on",
        "-device", f"virtio-net-pci,netdev=n0,mac={MAC},mq=on,vectors=6",
    ]  # fmt: skip
    with pytest.raises(ValueError, match="can't open the macvtap vdm0 by itself"):
        qemu.argv(macvtap(), netdev_id="n0")
    with pytest.raises(ValueError, match="has 1 queues, and 2 fds"):
        qemu.argv(macvtap(), netdev_id="n0", fds=[5, 6])


def test_qemu_is_told_of_a_missing_header() -> None:
    assert "vnet_hdr=off" in qemu.argv(tap(vnet_hdr=False), netdev_id="n0")[1]


def test_qemu_on_a_bridge() -> None:
    assert qemu.argv(bridge(), netdev_id="n0")[1] == "bridge,id=n0,br=br-blue"


def test_qemu_refuses_what_it_cannot_attach() -> None:
    with pytest.raises(UnacceptableEndpoint, match="is of kind pci: QEMU attaches tap or macvtap or bridge"):
        qemu.argv(PCI, netdev_id="n0")
    with pytest.raises(UnacceptableEndpoint, match="has no location yet"):
        qemu.argv(Endpoint(), netdev_id="n0")
    with pytest.raises(UnacceptableEndpoint, match="VLAN"):
        qemu.argv(bridge(VlanSpec(vid=7)), netdev_id="n0")


def test_qemu_refuses_wrong_arguments() -> None:
    with pytest.raises(ValueError, match="netdev_id"):
        qemu.argv(tap(), netdev_id="n0,fds=3")
    with pytest.raises(ValueError, match="has 2 queues, and 1 fds"):
        qemu.argv(tap(queues=2), netdev_id="n0", fds=[5])
    with pytest.raises(ValueError, match="leave fds out"):
        qemu.argv(bridge(), netdev_id="n0", fds=[5])


@given(TEXT)
def test_qemu_reads_every_value_as_it_was(value: str) -> None:
    options = read_options(qemu.argv(tap(value), netdev_id="n0")[1])
    assert options == ["tap", "id=n0", f"ifname={value}", "script=no", "downscript=no"]


def test_libvirt_accepts() -> None:
    assert kinds(libvirt.acceptable(queues=4)) == ["tap", "macvtap", "bridge"]
    assert libvirt.acceptable(queues=4)[0].tap.queues == 4


def parse(endpoint: Endpoint, **options: int) -> ElementTree.Element:
    return ElementTree.fromstring(libvirt.interface_xml(endpoint, **options))


def test_libvirt_never_manages_a_tap() -> None:
    element = parse(tap())
    assert element.tag == "interface"
    assert element.attrib == {"type": "ethernet"}
    assert {child.tag: child.attrib for child in element} == {
        "target": {"dev": "vdt0", "managed": "no"},
        "mac": {"address": MAC},
        "model": {"type": "virtio"},
        "mtu": {"size": "1500"},
    }


def test_libvirt_never_manages_a_macvtap() -> None:
    element = parse(macvtap(4), queues=2)
    assert element.attrib == {"type": "ethernet"}
    assert {child.tag: child.attrib for child in element} == {
        "target": {"dev": "vdm0", "managed": "no"},
        "mac": {"address": MAC},
        "model": {"type": "virtio"},
        "driver": {"queues": "4"},
        "mtu": {"size": "1500"},
    }


def test_libvirt_has_the_queues_of_the_tap() -> None:
    driver = parse(tap(queues=4, mtu_bytes=0), queues=2).find("driver")
    assert driver is not None
    assert driver.attrib == {"queues": "4"}
    assert parse(tap(mtu_bytes=0)).find("mtu") is None


@pytest.mark.parametrize(("link_up", "states"), [(None, []), (True, []), (False, ["down"])])
def test_libvirt_takes_the_carrier_from_a_port_without_link(link_up: bool | None, states: list[str]) -> None:
    endpoint = tap()
    endpoint.port.MergeFrom(PortSpec(link_up=link_up))
    assert [link.attrib["state"] for link in parse(endpoint).iter("link")] == states


def test_what_vifd_keeps_itself_is_not_libvirts() -> None:
    endpoint = tap()
    plain = libvirt.interface_xml(endpoint)
    endpoint.port.guard.enabled = True
    endpoint.port.limits.from_vm.rate_bps = 10**8
    endpoint.port.vlan.vid = 7
    endpoint.port.isolated = True
    assert libvirt.interface_xml(endpoint) == plain


def test_libvirt_on_a_bridge() -> None:
    assert {child.tag: child.attrib for child in parse(bridge(), queues=2)} == {
        "source": {"bridge": "br-blue"},
        "target": {"dev": "vdb0"},
        "mac": {"address": MAC},
        "model": {"type": "virtio"},
        "driver": {"queues": "2"},
        "mtu": {"size": "1500"},
    }


def test_libvirt_vlans() -> None:
    access = parse(bridge(VlanSpec(vid=7))).find("vlan")
    assert access is not None
    assert [tag.attrib for tag in access] == [{"id": "7"}]
    trunk = parse(bridge(VlanSpec(trunk_vids=[7, 8], native_vid=7))).find("vlan")
    assert trunk is not None
    assert trunk.attrib == {"trunk": "yes"}
    assert [tag.attrib for tag in trunk] == [{"id": "7", "nativeMode": "untagged"}, {"id": "8"}]
    assert [tag.attrib for tag in parse(bridge(VlanSpec(trunk_vids=[8]))).iter("tag")] == [{"id": "8"}]


def test_libvirt_refuses_what_it_cannot_attach() -> None:
    with pytest.raises(UnacceptableEndpoint, match="libvirt attaches tap or macvtap or bridge"):
        libvirt.interface_xml(PCI)


@given(TEXT)
def test_libvirt_reads_every_value_as_it_was(value: str) -> None:
    target = parse(tap(value)).find("target")
    assert target is not None
    assert target.attrib["dev"] == value
