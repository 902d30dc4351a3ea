import pytest

from tests.support.messages import request
from vifd import model
from vifd.errors import InvalidRequest
from vifd.server import requests

CALLER = model.Caller(1000, 1000)


def parse(text: str) -> model.EndpointSpec:
    return requests.endpoint_request(request(text), CALLER).spec


def wrong(text: str) -> list[str]:
    with pytest.raises(InvalidRequest) as caught:
        parse(text)
    return [violation.field for violation in caught.value.violations]


def port(text: str) -> str:
    return f"acceptable {{ tap {{}} }} port {{ {text} }}"


@pytest.mark.parametrize(
    ("text", "preference"),
    [
        ("bridge {}", model.BridgePreference()),
        ("tap {}", model.TapPreference(1, vnet_hdr=True)),
        ("tap { vnet_hdr: false }", model.TapPreference(1, vnet_hdr=False)),
        ("macvtap {}", model.MacvtapPreference(None, 1, vnet_hdr=True)),
        ("macvtap { mode: MACVTAP_MODE_BRIDGE }", model.MacvtapPreference(model.MacvtapMode.BRIDGE)),
        ("macvtap { mode: MACVTAP_MODE_VEPA }", model.MacvtapPreference(model.MacvtapMode.VEPA)),
        ("macvtap { mode: MACVTAP_MODE_PRIVATE }", model.MacvtapPreference(model.MacvtapMode.PRIVATE)),
        ("macvtap { mode: MACVTAP_MODE_PASSTHRU }", model.MacvtapPreference(model.MacvtapMode.PASSTHRU)),
        ("pci {}", model.PciPreference(model.PciHostDriver.VFIO)),
        ("pci { host_driver: PCI_HOST_DRIVER_VFIO }", model.PciPreference(model.PciHostDriver.VFIO)),
        ("pci { host_driver: PCI_HOST_DRIVER_KERNEL }", model.PciPreference(model.PciHostDriver.KERNEL)),
        ("ovs_port {}", model.OvsPortPreference()),
        ("vhost_user {}", model.VhostUserPreference(model.VhostUserRole.SERVER, 1)),
        ("vhost_user { hypervisor_role: VHOST_USER_ROLE_CLIENT }", model.VhostUserPreference(model.VhostUserRole.CLIENT)),
        ("vdpa { queues: 2 }", model.VdpaPreference(2)),
    ],
)
def test_each_preference_is_taken_with_its_options(text: str, preference: model.Preference) -> None:
    assert parse(f"acceptable {{ {text} }}").acceptable == (preference,)


def test_preferences_keep_the_callers_order() -> None:
    kinds = [
        preference.kind for preference in parse("acceptable { pci {} } acceptable { tap {} } acceptable { bridge {} }").acceptable
    ]
    assert kinds == [model.Kind.PCI, model.Kind.TAP, model.Kind.BRIDGE]


def test_a_request_that_accepts_nothing_is_a_violation() -> None:
    assert wrong("") == ["acceptable"]


def test_a_kind_that_is_there_twice_is_a_violation() -> None:
    assert wrong("acceptable { tap {} } acceptable { bridge {} } acceptable { tap { queues: 2 } }") == ["acceptable[2]"]


def test_a_preference_that_names_no_kind_is_a_violation() -> None:
    assert wrong("acceptable { tap {} } acceptable {}") == ["acceptable[1]"]


def test_more_preferences_than_there_are_kinds_are_not_looked_at_one_by_one() -> None:
    assert wrong("acceptable {}" * 10_000) == ["acceptable", *(f"acceptable[{i}]" for i in range(7))]


@pytest.mark.parametrize("kind", ["tap", "macvtap", "vhost_user", "vdpa"])
@pytest.mark.parametrize("queues", [257, 4294967295])
def test_more_queues_than_a_tap_can_have_are_a_violation(kind: str, queues: int) -> None:
    assert wrong(f"acceptable {{ {kind} {{ queues: {queues} }} }}") == [f"acceptable[0].{kind}.queues"]


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ("macvtap { mode: 5 }", "macvtap.mode"),
        ("pci { host_driver: -1 }", "pci.host_driver"),
        ("vhost_user { hypervisor_role: 3 }", "vhost_user.hypervisor_role"),
    ],
)
def test_an_unknown_value_of_an_enum_is_a_violation(text: str, field: str) -> None:
    assert wrong(f"acceptable {{ {text} }}") == [f"acceptable[0].{field}"]


@pytest.mark.parametrize(
    "mac",
    [
        "01:00:5e:00:00:01",
        "ff:ff:ff:ff:ff:ff",
        "00:00:00:00:00:00",
        "52:54:00:12:34",
        "52:54:00:12:34:56:78",
        "52-54-00-12-34-56",
        "5254.0012.3456",
        "52:54:00:12:34:5g",
        "52:54:00:12:34:56\\n",
        " 52:54:00:12:34:56",
        "x",
        "\\000",
    ],
)
def test_what_is_no_unicast_mac_is_a_violation(mac: str) -> None:
    assert wrong(port(f'mac: "{mac}"')) == ["port.mac"]


def test_a_mac_is_taken_in_lower_case() -> None:
    assert parse(port('mac: "FE:54:00:AB:CD:EF"')).port.mac == "fe:54:00:ab:cd:ef"


@pytest.mark.parametrize("mtu", [1, 67, 65536, 4294967295])
def test_an_mtu_out_of_range_is_a_violation(mtu: int) -> None:
    assert wrong(port(f"mtu_bytes: {mtu}")) == ["port.mtu_bytes"]


@pytest.mark.parametrize("mtu", [0, 68, 65535])
def test_the_ends_of_the_range_of_an_mtu_are_taken(mtu: int) -> None:
    assert parse(port(f"mtu_bytes: {mtu}")).port.mtu_bytes == mtu


@pytest.mark.parametrize(
    "address", ["", "blue", "10.0.0.256", "10.0.0.1/33", "fd00::/129", "fe80::1%eth0", "10.0.0.1 ", "../x", "1\\000"]
)
def test_what_is_no_address_is_a_violation(address: str) -> None:
    assert wrong(port(f'addresses: ["10.0.0.1", "{address}"]')) == ["port.addresses[1]"]


def test_sixty_four_addresses_are_taken_and_one_more_is_a_violation() -> None:
    many = ", ".join(f'"10.0.0.{i}"' for i in range(64))
    assert len(parse(port(f"addresses: [{many}]")).port.addresses) == 64
    assert wrong(port(f'addresses: [{many}, "10.0.0.65"]')) == ["port.addresses"]


@pytest.mark.parametrize(
    "vlan", ["vid: 1", "vid: 4094", "trunk_vids: [1, 4094]", "trunk_vids: [1] native_vid: 4094", "vid: 1 qos: 7"]
)
def test_a_vlan_is_taken(vlan: str) -> None:
    assert parse(port(f"vlan {{ {vlan} }}")).port.vlan is not None


@pytest.mark.parametrize(
    ("vlan", "field"),
    [
        ("vid: 4095", "port.vlan.vid"),
        ("trunk_vids: [0]", "port.vlan.trunk_vids"),
        ("trunk_vids: [4095]", "port.vlan.trunk_vids"),
        ("trunk_vids: [7, 7]", "port.vlan.trunk_vids"),
        ("trunk_vids: [7] native_vid: 4095", "port.vlan.native_vid"),
        ("", "port.vlan"),
        ("vid: 1 trunk_vids: [2]", "port.vlan"),
        ("vid: 1 qos: 8", "port.vlan.qos"),
        ("trunk_vids: [2] qos: 1", "port.vlan.qos"),
        ("vid: 1 protocol: 3", "port.vlan.protocol"),
        ("trunk_vids: [2] protocol: VLAN_PROTOCOL_DOT1AD", "port.vlan.protocol"),
    ],
)
def test_a_bad_vlan_is_a_violation(vlan: str, field: str) -> None:
    assert wrong(port(f"vlan {{ {vlan} }}")) == [field]


@pytest.mark.parametrize(
    ("text", "protocol"),
    [
        ("", model.VlanProtocol.DOT1Q),
        ("protocol: VLAN_PROTOCOL_DOT1Q", model.VlanProtocol.DOT1Q),
        ("protocol: VLAN_PROTOCOL_DOT1AD", model.VlanProtocol.DOT1AD),
    ],
)
def test_the_tags_of_a_vlan_are_taken(text: str, protocol: model.VlanProtocol) -> None:
    assert parse(port(f"vlan {{ vid: 7 qos: 3 {text} }}")).port.vlan == model.Vlan(7, qos=3, protocol=protocol)


def test_what_a_port_leaves_out_is_left_to_vifd() -> None:
    assert parse("acceptable { tap {} }").port == model.Port()


@pytest.mark.parametrize("value", [True, False])
def test_a_port_that_says_no_differs_from_one_that_says_nothing(value: bool) -> None:
    text = str(value).lower()
    taken = parse(port(f"isolated: {text} link_up: {text} guard {{ enabled: {text} }} trusted: {text}")).port
    assert (taken.isolated, taken.link_up, taken.guard_enabled, taken.trusted) == (value, value, value, value)


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ("", "port.limits"),
        ("from_vm {}", "port.limits.from_vm"),
        ("to_vm { rate_bps: 0 }", "port.limits.to_vm"),
        (f"to_vm {{ rate_bps: {2**40 + 1} }}", "port.limits.to_vm.rate_bps"),
        (f"to_vm {{ rate_pps: {2**32} }}", "port.limits.to_vm.rate_pps"),
        ("from_vm { burst_bytes: 2000 }", "port.limits.from_vm.burst_bytes"),
        ("from_vm { rate_bps: 1 burst_bytes: 67 }", "port.limits.from_vm.burst_bytes"),
        (f"from_vm {{ rate_bps: 1 burst_bytes: {2**32} }}", "port.limits.from_vm.burst_bytes"),
        ("from_vm { rate_bps: 1 min_rate_bps: 2 }", "port.limits.from_vm.min_rate_bps"),
        (f"from_vm {{ min_rate_bps: {2**40 + 1} }}", "port.limits.from_vm.min_rate_bps"),
        ("to_vm { rate_bps: 2 min_rate_bps: 1 }", "port.limits.to_vm.min_rate_bps"),
    ],
)
def test_limits_that_limit_nothing_or_everything_are_refused(text: str, field: str) -> None:
    assert wrong(port(f"limits {{ {text} }}")) == [field]


@pytest.mark.parametrize(
    ("text", "limit"),
    [
        ("min_rate_bps: 5", model.RateLimit(min_rate_bps=5)),
        ("rate_bps: 5 min_rate_bps: 5", model.RateLimit(rate_bps=5, min_rate_bps=5)),
    ],
)
def test_a_rate_that_is_promised_is_a_limit_by_itself(text: str, limit: model.RateLimit) -> None:
    assert parse(port(f"limits {{ from_vm {{ {text} }} }}")).port.limits == model.Limits(limit)


@pytest.mark.parametrize(("text", "node"), [("", None), ("numa_node: 0", 0), ("numa_node: 1023", 1023)])
def test_the_numa_node_of_an_instance_is_taken(text: str, node: int | None) -> None:
    assert parse(f"acceptable {{ pci {{}} }} instance {{ {text} }}").instance.numa_node == node


def test_a_numa_node_that_no_kernel_has_is_a_violation() -> None:
    assert wrong("acceptable { pci {} } instance { numa_node: 1024 }") == ["instance.numa_node"]


def test_a_burst_has_to_hold_the_port_s_mtu() -> None:
    wanted = "limits { to_vm { rate_bps: 1 burst_bytes: 8999 } } mtu_bytes: 9000"
    assert wrong(port(wanted)) == ["port.limits.to_vm.burst_bytes"]


def test_addresses_are_brought_to_one_form() -> None:
    taken = parse(port('addresses: ["10.0.0.7/32", "10.1.0.9/16", "FD00:0::2"] public_addresses: ["203.0.113.5"]')).port
    assert taken.addresses == ("10.0.0.7", "10.1.0.0/16", "fd00::2")
    assert taken.public_addresses == ("203.0.113.5",)


@pytest.mark.parametrize("address", ["224.0.0.1", "127.0.0.1", "::1", "0.0.0.0", "ff02::1"])
def test_an_address_has_to_be_one_that_a_vm_can_have(address: str) -> None:
    assert wrong(port(f'addresses: ["{address}"]')) == ["port.addresses[0]"]


def test_an_address_that_is_in_another_already_is_refused() -> None:
    assert wrong(port('addresses: ["10.0.0.0/24", "10.0.0.7"]')) == ["port.addresses[1]"]


@pytest.mark.parametrize("address", ["10.0.0.0/24", "x", ""])
def test_a_public_address_is_a_single_one(address: str) -> None:
    assert wrong(port(f'public_addresses: ["{address}"]')) == ["port.public_addresses[0]"]
