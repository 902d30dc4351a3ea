from enum import StrEnum
from typing import Any

import pytest

from tests.support.messages import ID
from vif.v1 import endpoint_pb2, error_pb2, host_service_pb2
from vifd import model
from vifd.drivers.bridge import BridgeDriver, BridgeOptions
from vifd.drivers.functions import FunctionState, FunctionStatus, PfStatus
from vifd.drivers.sriov import SriovDriver, SriovOptions
from vifd.endpoints.registry import Change
from vifd.endpoints.views import NetworkInfo
from vifd.kernel.sriov.inventory import Function, PhysicalFunction
from vifd.model import Kind
from vifd.server import services, words

LOCATIONS: list[tuple[model.Location, dict[str, Any]]] = [
    (model.BridgePort("br-blue", "vdb"), {"bridge_name": "br-blue", "suggested_ifname": "vdb"}),
    (
        model.TapDevice("vdt", 7, 2, vnet_hdr=True),
        {"ifname": "vdt", "ifindex": 7, "queues": 2, "multi_queue": True, "vnet_hdr": True, "netns_path": "/run/netns/x"},
    ),
    (
        model.MacvtapDevice("vdm", 8, "/dev/tap8", "eth0", model.MacvtapMode.VEPA, 2),
        {
            "ifname": "vdm",
            "ifindex": 8,
            "device_path": "/dev/tap8",
            "lower_ifname": "eth0",
            "mode": endpoint_pb2.MACVTAP_MODE_VEPA,
            "queues": 2,
            "vnet_hdr": True,
            "netns_path": "/run/netns/x",
        },
    ),
    (
        model.PciDevice(
            "0000:03:10.2",
            "eth0",
            0,
            model.PciHostDriver.KERNEL,
            9,
            "/dev/vfio/9",
            "/dev/vfio/devices/vfio3",
            "eth0v0",
            0,
            "eth0_0",
            7,
        ),
        {
            "address": "0000:03:10.2",
            "pf_ifname": "eth0",
            "vf_index": 0,
            "host_driver": endpoint_pb2.PCI_HOST_DRIVER_KERNEL,
            "iommu_group": 9,
            "vfio_path": "/dev/vfio/9",
            "vfio_device_path": "/dev/vfio/devices/vfio3",
            "ifname": "eth0v0",
            "numa_node": 0,
            "representor": "eth0_0",
        },
    ),
    (
        model.OvsPort("br-int", "vdo", "id", "system"),
        {"bridge_name": "br-int", "port_name": "vdo", "interface_id": "id", "datapath_type": "system"},
    ),
    (
        model.VhostUserSocket("/run/x.sock", model.VhostUserRole.CLIENT, 3),
        {"socket_path": "/run/x.sock", "hypervisor_role": endpoint_pb2.VHOST_USER_ROLE_CLIENT, "queues": 3},
    ),
    (model.VdpaDevice("/dev/vhost-vdpa-0", "vdpa0", 4), {"device_path": "/dev/vhost-vdpa-0", "name": "vdpa0", "queues": 4}),
]


def endpoint(**fields: Any) -> endpoint_pb2.Endpoint:
    value = model.Endpoint(
        **{
            "endpoint_id": ID,
            "generation": 2**63,
            "spec_hash": "hash",
            "network": "blue",
            "network_driver": "bridge",
            "state": model.State.READY,
            "port": model.Port(),
            "owner": model.Owner(0),
            "create_time_ns": 1_700_000_000_123_456_789,
        }
        | fields
    )
    return words.endpoint(value, "/run/netns/x")


@pytest.mark.parametrize(("value", "fields"), LOCATIONS)
def test_each_location_has_every_field_of_its_message(value: model.Location, fields: dict[str, Any]) -> None:
    message = endpoint(location=value)
    assert message.WhichOneof("location") == value.kind.value
    location = getattr(message, value.kind.value)
    assert {name: getattr(location, name) for name in fields} == fields
    assert {field.name for field in location.DESCRIPTOR.fields} - {"vlan"} == set(fields)


def test_every_location_of_the_contract_is_covered() -> None:
    oneof = endpoint_pb2.Endpoint.DESCRIPTOR.oneofs_by_name["location"]
    assert [field.name for field in oneof.fields] == [value.kind.value for value, _ in LOCATIONS] == list(Kind)


def test_a_location_whose_fields_are_all_empty_is_still_set() -> None:
    assert endpoint(location=model.BridgePort("", "")).WhichOneof("location") == "bridge"


@pytest.mark.parametrize("number", [0, 1])
def test_what_a_host_does_not_say_of_a_function_is_unset(number: int) -> None:
    unknown = endpoint(location=model.PciDevice("0000:03:10.2", "eth0", 0, model.PciHostDriver.KERNEL, -1, "")).pci
    assert not unknown.HasField("iommu_group")
    assert not unknown.HasField("numa_node")
    device = model.PciDevice("0000:03:10.2", "eth0", 0, model.PciHostDriver.KERNEL, number, "", numa_node=number)
    known = endpoint(location=device).pci
    assert known.HasField("iommu_group")
    assert known.HasField("numa_node")
    assert (known.iommu_group, known.numa_node) == (number, number)


def test_an_instance_is_told_as_it_was_named() -> None:
    message = endpoint(instance=model.Instance(numa_node=0)).instance
    assert message.HasField("numa_node")
    assert not endpoint(instance=model.Instance("uuid")).instance.HasField("numa_node")


def test_a_lifetime_is_told_as_it_was_asked_for() -> None:
    assert endpoint(lifetime=model.ProcessLifetime(7, inode=8)).lifetime.process.pid == 7
    assert endpoint(lifetime=model.LeaseLifetime(1_500_000_000)).lifetime.lease.ttl.ToMilliseconds() == 1500
    assert not endpoint().HasField("lifetime")


def test_a_pending_endpoint_has_no_location() -> None:
    assert endpoint(state=model.State.PENDING).WhichOneof("location") is None


def test_every_field_of_an_endpoint_is_filled_in() -> None:
    message = endpoint(
        location=LOCATIONS[1][0],
        port=model.Port(mac="52:54:00:00:00:01"),
        owner=model.Owner(1000, 36),
        instance=model.Instance("uuid", "name", 1),
        partner_endpoint_id="partner",
        labels={"a": "b"},
        drifts=(model.Drift(model.DriftKind.MTU, "1500", "1400", "x"),),
        ip_config=model.IpConfig(("10.0.0.2/24",), ("10.0.0.1",), ("10.0.0.1",), dhcp=True),
        lifetime=model.ProcessLifetime(7, 8),
    )
    unset = {"bridge", "macvtap", "pci", "ovs_port", "vhost_user", "vdpa"}
    assert {field.name for field, _ in message.ListFields()} == {f.name for f in message.DESCRIPTOR.fields} - unset
    assert message.create_time.ToNanoseconds() == 1_700_000_000_123_456_789
    assert (message.generation, message.owner.uid, message.owner.gid) == (2**63, 1000, 36)


def test_root_without_a_group_is_an_owner_that_is_set() -> None:
    message = endpoint(owner=model.Owner(0))
    assert message.owner.HasField("uid")
    assert not message.owner.HasField("gid")


def test_an_instance_that_nobody_named_is_unset() -> None:
    assert not endpoint().HasField("instance")


def test_a_port_tells_all_that_it_is() -> None:
    value = model.Port(
        mac="52:54:00:00:00:01",
        mtu_bytes=1400,
        addresses=("10.0.0.2",),
        vlan=model.Vlan(0, (1, 2), 3),
        guard_enabled=True,
        limits=model.Limits(model.RateLimit(1, 2, 3), model.RateLimit(4, 5, 2**64 - 1)),
        isolated=True,
        link_up=True,
        tx_queue_length=500,
        public_addresses=("203.0.113.9",),
        trusted=True,
    )
    message = words.port(value)
    assert {field.name for field, _ in message.ListFields()} == {field.name for field in message.DESCRIPTOR.fields}
    assert (message.vlan.vid, list(message.vlan.trunk_vids), message.vlan.native_vid) == (0, [1, 2], 3)
    assert (message.limits.from_vm.rate_bps, message.limits.from_vm.burst_bytes, message.limits.to_vm.rate_pps) == (
        1,
        2,
        2**64 - 1,
    )


def test_the_tags_of_a_vlan_are_told() -> None:
    vlan = words.port(model.Port(vlan=model.Vlan(7, qos=3, protocol=model.VlanProtocol.DOT1AD))).vlan
    assert vlan == endpoint_pb2.VlanSpec(vid=7, qos=3, protocol=endpoint_pb2.VLAN_PROTOCOL_DOT1AD)
    usual = words.port(model.Port(vlan=model.Vlan(7))).vlan
    assert usual == endpoint_pb2.VlanSpec(vid=7), "802.1Q is what unset means"


def test_what_a_vm_is_promised_to_send_is_told() -> None:
    limits = words.port(model.Port(limits=model.Limits(model.RateLimit(min_rate_bps=5)))).limits
    assert limits.from_vm == endpoint_pb2.RateLimit(min_rate_bps=5)
    assert not limits.HasField("to_vm")


def test_what_a_port_leaves_open_is_unset() -> None:
    assert words.port(model.Port()).ListFields() == []


def test_a_port_that_says_no_differs_from_one_that_says_nothing() -> None:
    value = model.Port(isolated=False, link_up=False, guard_enabled=False, limits=model.Limits(), trusted=False)
    names = ("isolated", "link_up", "guard", "limits", "trusted")
    assert [name for name in names if words.port(value).HasField(name)] == list(names)


@pytest.mark.parametrize(
    ("members", "enum"),
    [
        (model.Kind, endpoint_pb2.EndpointKind),
        (model.State, endpoint_pb2.EndpointState),
        (model.MacvtapMode, endpoint_pb2.MacvtapMode),
        (model.PciHostDriver, endpoint_pb2.PciHostDriver),
        (model.VhostUserRole, endpoint_pb2.VhostUserRole),
        (model.VlanProtocol, endpoint_pb2.VlanProtocol),
        (model.DriftKind, endpoint_pb2.DriftKind),
        (model.Outcome, error_pb2.ConsiderationOutcome),
        (model.Feature, host_service_pb2.Feature),
        (FunctionState, host_service_pb2.VirtualFunctionState),
        (Change, services.pb.WatchEventKind),
    ],
)
def test_the_models_enums_and_the_contracts_are_the_same(members: type[StrEnum], enum: Any) -> None:
    prefix = enum.DESCRIPTOR.values[0].name.removesuffix("UNSPECIFIED")
    assert [member.name for member in members] == [name.removeprefix(prefix) for name in enum.keys()[1:]]


@pytest.mark.parametrize("state", list(model.State))
def test_each_state_is_told(state: model.State) -> None:
    assert endpoint_pb2.EndpointState.Name(endpoint(state=state).state) == f"ENDPOINT_STATE_{state.name}"


@pytest.mark.parametrize("outcome", list(model.Outcome))
def test_each_outcome_is_told(outcome: model.Outcome) -> None:
    message = words.consideration(model.Consideration(3, Kind.PCI, outcome, "why"))
    assert (message.index, message.kind, message.message) == (3, endpoint_pb2.ENDPOINT_KIND_PCI, "why")
    assert error_pb2.ConsiderationOutcome.Name(message.outcome) == f"CONSIDERATION_OUTCOME_{outcome.name}"


@pytest.mark.parametrize("kind", list(model.DriftKind))
def test_each_drift_is_told(kind: model.DriftKind) -> None:
    message = words.drift(model.Drift(kind, "expected", "actual", "sentence"))
    assert (message.expected, message.actual, message.message) == ("expected", "actual", "sentence")
    assert endpoint_pb2.DriftKind.Name(message.kind) == f"DRIFT_KIND_{kind.name}"


def test_pfs_and_vfs_are_told_with_who_has_them() -> None:
    pf = PhysicalFunction("0000:03:00.0", "eth7", 0, 8, 2, up=True, carrier=False)
    used = FunctionStatus(Function("0000:03:10.0", pf.address, "eth7", 0, 9, "vfio-pci", "", 0), FunctionState.IN_USE, "", ID)
    bare = FunctionStatus(Function("0000:03:10.2", pf.address, "eth7", 1, -1, "", "", -1), FunctionState.TAKEN, "why")
    driver = SriovDriver("fast", SriovOptions(("eth7",), "core", mtu=9000))
    statuses = [PfStatus("eth7", pf, [used, bare], "no carrier"), PfStatus("eth8", None, (), "it isn't there")]
    message = words.network(NetworkInfo("fast", driver, [], 1, statuses))
    assert message.physical_network == "core"
    one, other = message.physical_functions
    assert (one.ifname, one.address, one.numa_node, one.up, one.carrier, one.total_vfs, one.message) == (
        "eth7",
        "0000:03:00.0",
        0,
        True,
        False,
        8,
        "no carrier",
    )
    assert one.HasField("numa_node")
    assert one.virtual_functions[0] == host_service_pb2.VirtualFunction(
        address="0000:03:10.0", iommu_group=9, driver="vfio-pci", state=2, endpoint_id=ID
    )
    taken = host_service_pb2.VirtualFunction(address="0000:03:10.2", vf_index=1, state=3, message="why")
    assert one.virtual_functions[1] == taken
    assert other == host_service_pb2.PhysicalFunction(ifname="eth8", message="it isn't there")


@pytest.mark.parametrize(
    ("vf_count", "switchdev", "mode"), [(2, True, "SWITCHDEV"), (2, False, "LEGACY"), (0, False, "UNSPECIFIED")]
)
def test_the_mode_of_a_pfs_switch_is_told(vf_count: int, switchdev: bool, mode: str) -> None:
    pf = PhysicalFunction("0000:03:00.0", "eth7", 0, 8, vf_count, up=True, carrier=True, switchdev=switchdev)
    driver = SriovDriver("fast", SriovOptions(("eth7",)))
    (told,) = words.network(NetworkInfo("fast", driver, [], 0, [PfStatus("eth7", pf)])).physical_functions
    assert host_service_pb2.EswitchMode.Name(told.eswitch_mode) == f"ESWITCH_MODE_{mode}"


def test_a_network_is_told_with_what_it_offers() -> None:
    driver = BridgeDriver("blue", BridgeOptions("br-blue", mtu=9000))
    offers = [model.Offer(Kind.TAP, frozenset(model.Feature)), model.Offer(Kind.PCI, unavailable="no VF is left")]
    message = words.network(NetworkInfo("blue", driver, offers, 3))
    assert (message.name, message.network_driver, message.mtu_bytes, message.endpoint_count) == ("blue", "bridge", 9000, 3)
    assert [(offer.kind, offer.available, offer.message) for offer in message.offers] == [
        (endpoint_pb2.ENDPOINT_KIND_TAP, True, ""),
        (endpoint_pb2.ENDPOINT_KIND_PCI, False, "no VF is left"),
    ]
    assert list(message.offers[0].features) == list(range(1, len(model.Feature) + 1))
