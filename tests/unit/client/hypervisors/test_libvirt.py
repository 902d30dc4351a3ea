from xml.etree import ElementTree

import pytest
from hypothesis import given

from tests.unit.client.hypervisors.examples import (
    ID,
    MAC,
    TEXT,
    bridge,
    kinds,
    macvtap,
    ovs_port,
    pci,
    tap,
    vdpa,
    vhost_user,
)
from vifclient.hypervisors import UnacceptableEndpoint, libvirt
from vifclient.messages import Endpoint, PciHostDriver, PortSpec, VlanSpec

ALIAS = {"name": f"ua-{ID}"}
OTHER_ID = "aaaaaaaa-6d1e-4c0b-8a57-1f0f3f1f7a10"


def test_accepts() -> None:
    assert kinds(libvirt.acceptable(queues=4)) == ["tap", "vdpa", "macvtap", "pci", "ovs_port", "bridge"]
    assert kinds(libvirt.acceptable(privileged=False)) == ["tap", "macvtap"]
    assert kinds(libvirt.acceptable(privileged=False, shared_memory=True)) == ["tap", "vhost_user", "macvtap"]
    assert libvirt.acceptable(queues=4)[0].tap.queues == 4


def parse(endpoint: Endpoint, **options: int) -> ElementTree.Element:
    return ElementTree.fromstring(libvirt.device_xml(endpoint, **options))


def test_never_manages_a_tap() -> None:
    element = parse(tap())
    assert element.tag == "interface"
    assert element.attrib == {"type": "ethernet"}
    assert {child.tag: child.attrib for child in element} == {
        "target": {"dev": "vdt0", "managed": "no"},
        "mac": {"address": MAC},
        "model": {"type": "virtio"},
        "alias": ALIAS,
        "mtu": {"size": "1500"},
    }


def test_never_manages_a_macvtap() -> None:
    element = parse(macvtap(4), queues=2)
    assert element.attrib == {"type": "ethernet"}
    assert {child.tag: child.attrib for child in element} == {
        "target": {"dev": "vdm0", "managed": "no"},
        "mac": {"address": MAC},
        "model": {"type": "virtio"},
        "alias": ALIAS,
        "driver": {"queues": "4"},
        "mtu": {"size": "1500"},
    }


def test_has_the_queues_of_the_tap() -> None:
    driver = parse(tap(queues=4, mtu_bytes=0), queues=2).find("driver")
    assert driver is not None
    assert driver.attrib == {"queues": "4"}
    assert parse(tap(mtu_bytes=0)).find("mtu") is None


@pytest.mark.parametrize(("link_up", "states"), [(None, []), (True, []), (False, ["down"])])
def test_takes_the_carrier_from_a_port_without_link(link_up: bool | None, states: list[str]) -> None:
    endpoint = tap()
    endpoint.port.MergeFrom(PortSpec(link_up=link_up))
    assert [link.attrib["state"] for link in parse(endpoint).iter("link")] == states


def test_what_vifd_keeps_itself_is_not_libvirts() -> None:
    endpoint = tap()
    plain = libvirt.device_xml(endpoint)
    endpoint.port.guard.enabled = True
    endpoint.port.limits.from_vm.rate_bps = 10**8
    endpoint.port.vlan.vid = 7
    endpoint.port.isolated = True
    assert libvirt.device_xml(endpoint) == plain


def test_on_a_bridge() -> None:
    assert {child.tag: child.attrib for child in parse(bridge(), queues=2)} == {
        "source": {"bridge": "br-blue"},
        "target": {"dev": "vdb0"},
        "mac": {"address": MAC},
        "model": {"type": "virtio"},
        "alias": ALIAS,
        "driver": {"queues": "2"},
        "mtu": {"size": "1500"},
    }


def test_vlans() -> None:
    access = parse(bridge(VlanSpec(vid=7))).find("vlan")
    assert access is not None
    assert [tag.attrib for tag in access] == [{"id": "7"}]
    trunk = parse(bridge(VlanSpec(trunk_vids=[7, 8], native_vid=7))).find("vlan")
    assert trunk is not None
    assert trunk.attrib == {"trunk": "yes"}
    assert [tag.attrib for tag in trunk] == [{"id": "7", "nativeMode": "untagged"}, {"id": "8"}]
    assert [tag.attrib for tag in parse(bridge(VlanSpec(trunk_vids=[8]))).iter("tag")] == [{"id": "8"}]


def test_a_port_of_open_vswitch() -> None:
    element = parse(ovs_port(), queues=2)
    assert element.attrib == {"type": "bridge"}
    port = element.find("virtualport")
    assert port is not None
    assert port.attrib == {"type": "openvswitch"}
    assert [one.attrib for one in port] == [{"interfaceid": ID}]
    attributes = {child.tag: child.attrib for child in element}
    assert attributes["source"] == {"bridge": "br-int"}
    assert attributes["target"] == {"dev": "vdo0"}
    assert attributes["driver"] == {"queues": "2"}


@pytest.mark.parametrize(("server", "mode"), [(True, "server"), (False, "client")])
def test_a_vhost_user_socket(server: bool, mode: str) -> None:
    element = parse(vhost_user(queues=2, server=server))
    assert element.attrib == {"type": "vhostuser"}
    attributes = {child.tag: child.attrib for child in element}
    assert attributes["source"] == {"type": "unix", "path": "/run/v.sock", "mode": mode}
    assert attributes["driver"] == {"queues": "2"}
    memory = ElementTree.fromstring(libvirt.memory_backing_xml())
    assert (memory.tag, [(one.tag, one.attrib) for one in memory]) == (
        "memoryBacking",
        [("source", {"type": "memfd"}), ("access", {"mode": "shared"})],
    )


def test_a_vdpa_device_says_its_mtu_itself() -> None:
    element = parse(vdpa())
    assert element.attrib == {"type": "vdpa"}
    assert {child.tag: child.attrib for child in element} == {
        "source": {"dev": "/dev/vhost-vdpa-0"},
        "mac": {"address": MAC},
        "model": {"type": "virtio"},
        "alias": ALIAS,
    }


def test_a_pci_function() -> None:
    element = parse(pci())
    assert (element.tag, element.attrib) == ("hostdev", {"mode": "subsystem", "type": "pci", "managed": "no"})
    address = element.find("source/address")
    assert address is not None
    assert address.attrib == {"domain": "0x0000", "bus": "0x03", "slot": "0x10", "function": "0x2"}
    assert [child.tag for child in element] == ["source", "alias"]
    assert parse(pci(PciHostDriver.PCI_HOST_DRIVER_KERNEL)).get("managed") == "yes"


def test_the_parts_of_a_pair_are_told_of_each_other() -> None:
    function, standby = pci(), tap()
    function.endpoint_id, function.partner_endpoint_id, standby.partner_endpoint_id = OTHER_ID, ID, OTHER_ID
    teaming = parse(function).find("teaming")
    assert teaming is not None
    assert teaming.attrib == {"type": "transient", "persistent": f"ua-{ID}"}
    teaming, named = parse(standby).find("teaming"), parse(standby).find("alias")
    assert teaming is not None
    assert named is not None
    assert (teaming.attrib, named.attrib) == ({"type": "persistent"}, {"name": f"ua-{ID}"})


def test_refuses_what_it_cannot_attach() -> None:
    with pytest.raises(UnacceptableEndpoint, match="has no location yet: libvirt attaches tap or vhost_user or"):
        libvirt.device_xml(Endpoint())
    with pytest.raises(UnacceptableEndpoint, match="interface id 'port-7', and libvirt takes only UUIDs"):
        libvirt.device_xml(ovs_port("port-7"))


@pytest.mark.parametrize("endpoint", [tap(), macvtap(), bridge(), pci(), ovs_port(), vhost_user(), vdpa()])
def test_every_kind_that_it_accepts_is_configured_and_found_again(endpoint: Endpoint) -> None:
    assert endpoint.WhichOneof("location") in kinds(libvirt.acceptable(shared_memory=True))
    devices = f"<interface><alias name='net0'/></interface>{libvirt.device_xml(endpoint)}<disk><alias name='ua-disk'/></disk>"
    assert libvirt.endpoint_ids(f"<domain><devices>{devices}</devices></domain>") == [ID]


DOMAIN_CAPABILITIES = """
<domainCapabilities>
  <memoryBacking supported='yes'><enum name='sourceType'><value>file</value>{memfd}</enum></memoryBacking>
  <devices><hostdev supported='{hostdev}'><enum name='subsysType'><value>usb</value>{pci}</enum></hostdev></devices>
</domainCapabilities>
"""


@pytest.mark.parametrize(
    ("hostdev", "pci_value", "memfd", "expected"),
    [
        (
            "yes",
            "<value>pci</value>",
            "<value>memfd</value>",
            ["tap", "vhost_user", "vdpa", "macvtap", "pci", "ovs_port", "bridge"],
        ),
        ("yes", "", "", ["tap", "vdpa", "macvtap", "ovs_port", "bridge"]),
        ("no", "<value>pci</value>", "", ["tap", "vdpa", "macvtap", "ovs_port", "bridge"]),
    ],
)
def test_what_a_libvirt_can_do_decides(hostdev: str, pci_value: str, memfd: str, expected: list[str]) -> None:
    text = DOMAIN_CAPABILITIES.format(hostdev=hostdev, pci=pci_value, memfd=memfd)
    capabilities = libvirt.read_capabilities(text)
    assert kinds(libvirt.acceptable(shared_memory=True, capabilities=capabilities)) == expected


@given(TEXT)
def test_reads_every_value_as_it_was(value: str) -> None:
    target = parse(tap(value)).find("target")
    assert target is not None
    assert target.attrib["dev"] == value
