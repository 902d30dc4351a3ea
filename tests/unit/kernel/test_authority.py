from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from tests.support.messages import ID, endpoint_id
from tests.support.plans import change, configure
from vifd.kernel import names
from vifd.kernel.authority import BridgeGrant, PlanRejectedError, UplinkGrant, check_identity, check_plan
from vifd.kernel.ops import CreateMacvtap, CreateTap, EnsureBridge, EnsureNode, EnsureOwner, EnsureVlan, Plan
from vifd.model import Kind, Limits, MacvtapMode, Port, RateLimit, Vlan

AUTHORITY = {"blue": BridgeGrant("br-blue"), "red": BridgeGrant("br-red"), "lan": UplinkGrant("eth0"), "wan": UplinkGrant("eth1")}
NAME = names.device_name(Kind.TAP, ID)
ENSURE = EnsureBridge("blue")
TAP = CreateTap(ID, NAME, "fe:54:00:12:34:56", 1000, None, 1, vnet_hdr=True)
PORT = configure(ID)
MACVTAP = CreateMacvtap(ID, names.device_name(Kind.MACVTAP, ID), "lan", "52:54:00:12:34:56", MacvtapMode.BRIDGE)
NODE = EnsureNode(ID, MACVTAP.ifname, 1000, None)
OWNER = EnsureOwner(ID, NAME, 1000, None)
STANDING = configure(ID, "lan", ifname=MACVTAP.ifname)
CHANGED = change(ID, "lan", ifname=MACVTAP.ifname, mac=MACVTAP.mac)


def rejected(*plan: object) -> str:
    with pytest.raises(PlanRejectedError) as caught:
        check_plan(plan, AUTHORITY)
    return str(caught.value)


@pytest.mark.parametrize(
    "plan",
    [
        (),
        (ENSURE,),
        (TAP,),
        (ENSURE, TAP, PORT),
        (ENSURE, change(ID)),
        (MACVTAP, NODE, STANDING),
        (NODE, CHANGED),
        (NODE,),
        (OWNER,),
    ],
)
def test_what_a_driver_would_plan_passes(plan: Plan) -> None:
    check_plan(plan, AUTHORITY)


@pytest.mark.parametrize(
    "plan", [(TAP, ENSURE), (PORT, TAP), (ENSURE, ENSURE), (TAP, TAP), (ENSURE, TAP, PORT, PORT), (ENSURE, TAP, PORT, TAP)]
)
def test_operations_out_of_order_or_twice_are_rejected(plan: Plan) -> None:
    assert rejected(*plan) == "operations out of order, or twice"


@pytest.mark.parametrize("network", ["green", "", "br-blue", "../blue", "BLUE", "blue\0", "*"])
def test_a_network_that_isnt_configured_is_rejected(network: str) -> None:
    assert "no bridge for network" in rejected(EnsureBridge(network))
    assert "no bridge for network" in rejected(ENSURE, TAP, configure(ID, network))


def test_a_plan_over_two_networks_is_rejected() -> None:
    assert rejected(ENSURE, TAP, configure(ID, "red")) == "two networks in one plan"


@pytest.mark.parametrize("ifname", ["eth0", "lo", "br-blue", "", names.device_name(Kind.TAP, endpoint_id(1)), NAME.upper()])
def test_only_the_device_of_the_plan_is_attached(ifname: str) -> None:
    assert "no device of this plan" in rejected(ENSURE, TAP, configure(ID, ifname=ifname))


def test_no_port_is_attached_to_a_bridge_that_the_plan_didnt_ensure() -> None:
    assert rejected(TAP, PORT) == "a port needs EnsureBridge in its plan"


def test_nothing_is_attached_that_the_plan_didnt_make() -> None:
    assert "no device of this plan" in rejected(ENSURE, PORT)


def test_an_empty_name_is_no_device_of_a_plan_without_a_tap() -> None:
    with pytest.raises(PlanRejectedError):
        check_plan((configure(ID, "green", ifname=""),), AUTHORITY)


@pytest.mark.parametrize("ifname", ["eth0", "vdt", "", names.device_name(Kind.MACVTAP, ID), "../x", NAME + "\0", NAME + "%d"])
def test_a_tap_of_another_name_than_its_endpoints_is_rejected(ifname: str) -> None:
    assert "is not the name of" in rejected(replace(TAP, ifname=ifname))


@pytest.mark.parametrize("bad", ["", "x", ID[:-1], f"{ID}\n", ID.replace("1", "A"), "00000000-0000-0000-0000-000000000000"])
def test_a_tap_of_what_is_no_endpoint_is_rejected(bad: str) -> None:
    tap = replace(TAP, endpoint_id=bad, ifname=names.device_name(Kind.TAP, bad))
    assert rejected(tap) == f"endpoint id {bad!r}"


@pytest.mark.parametrize(
    "mac",
    [
        "",
        "52:54:00:12:34:56",
        "ff:ff:ff:ff:ff:ff",
        "fb:54:00:12:34:56",
        "FE:54:00:12:34:56",
        "fe:54:00:12:34",
        "fe:54:00:12:34:56\n",
    ],
)
def test_a_mac_that_no_hosts_side_has_is_rejected(mac: str) -> None:
    assert rejected(replace(TAP, mac=mac)) == f"host-side MAC {mac!r}"


@pytest.mark.parametrize("number", [-1, 2**32 - 1, 2**32, 2**63])
def test_what_is_no_id_is_rejected(number: int) -> None:
    assert rejected(replace(TAP, owner_uid=number)) == f"uid {number}"
    assert rejected(replace(TAP, owner_gid=number)) == f"gid {number}"


@pytest.mark.parametrize("number", [0, 1, 2**32 - 2])
def test_every_id_may_be_an_owner(number: int) -> None:
    check_plan((replace(TAP, owner_uid=number, owner_gid=number),), AUTHORITY)


@pytest.mark.parametrize("queues", [-1, 0, 257, 2**31])
def test_a_number_of_queues_that_no_tap_has_is_rejected(queues: int) -> None:
    assert rejected(replace(TAP, queues=queues)) == f"{queues} queues"


@pytest.mark.parametrize("mtu", [-1, 1, 67, 65536, 2**32])
def test_an_mtu_that_no_port_has_is_rejected(mtu: int) -> None:
    assert rejected(ENSURE, TAP, configure(ID, mtu_bytes=mtu)) == f"MTU {mtu}"


@pytest.mark.parametrize("mtu", [0, 68, 65535])
def test_the_ends_of_the_range_of_an_mtu_pass(mtu: int) -> None:
    check_plan((ENSURE, TAP, configure(ID, mtu_bytes=mtu)), AUTHORITY)


def test_without_a_network_nothing_may_be_touched() -> None:
    with pytest.raises(PlanRejectedError):
        check_plan((ENSURE,), {})


@given(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=40), st.text(st.characters(exclude_categories=["Cs"]), max_size=16)
)
def test_no_texts_are_an_endpoint_and_its_tap(name: str, ifname: str) -> None:
    with pytest.raises(PlanRejectedError):
        check_identity(name, ifname)


@pytest.mark.parametrize("plan", [(NODE, MACVTAP), (MACVTAP, MACVTAP), (MACVTAP, NODE, NODE), (MACVTAP, TAP)])
def test_operations_on_macvtaps_out_of_order_or_twice_are_rejected(plan: Plan) -> None:
    assert rejected(*plan) == "operations out of order, or twice"


def test_a_plan_with_two_devices_is_rejected() -> None:
    assert rejected(TAP, MACVTAP) == "two devices in one plan"
    assert "no device of this plan" in rejected(TAP, NODE)


@pytest.mark.parametrize("network", ["blue", "green", "", "eth0", "lan\0"])
def test_a_macvtap_stands_on_a_configured_uplink_alone(network: str) -> None:
    assert "no uplink for network" in rejected(replace(MACVTAP, network=network), NODE)


def test_no_tap_is_put_on_an_uplink_and_no_macvtap_on_a_bridge() -> None:
    assert "no bridge for network" in rejected(EnsureBridge("lan"))
    assert "is not the name of" in rejected(TAP, configure(ID, "lan"))
    assert "is not the name of" in rejected(ENSURE, MACVTAP, configure(ID, "blue", ifname=MACVTAP.ifname))
    assert "is not the name of" in rejected(ENSURE, replace(CHANGED, network="blue"))
    assert rejected(MACVTAP, NODE, replace(STANDING, network="wan")) == "two networks in one plan"


@pytest.mark.parametrize("ifname", ["eth0", "vdm", "", NAME, "../x", MACVTAP.ifname + "\0", MACVTAP.ifname + "%d"])
def test_a_macvtap_of_another_name_than_its_endpoints_is_rejected(ifname: str) -> None:
    assert "is not the name of" in rejected(replace(MACVTAP, ifname=ifname))
    assert "is not the name of" in rejected(replace(NODE, ifname=ifname))
    assert "is not the name of" in rejected(NODE, replace(CHANGED, ifname=ifname))


@pytest.mark.parametrize(
    "mac",
    [
        "",
        "53:54:00:12:34:56",
        "ff:ff:ff:ff:ff:ff",
        "00:00:00:00:00:00",
        "01:00:5e:00:00:01",
        "52:54:00:12:34:5G",
        "52:54:00:12:34",
        "52:54:00:12:34:56\n",
        "52:54:00:12:34:56:78",
        "AA:54:00:12:34:56",
    ],
)
def test_a_mac_that_no_macvtap_has_is_rejected(mac: str) -> None:
    assert rejected(replace(MACVTAP, mac=mac)) == f"MAC {mac!r}"
    assert rejected(replace(CHANGED, mac=mac)) == f"MAC {mac!r}"


@pytest.mark.parametrize("number", [-1, 2**32 - 1, 2**32])
def test_a_node_of_what_is_no_id_is_rejected(number: int) -> None:
    assert rejected(MACVTAP, replace(NODE, owner_uid=number)) == f"uid {number}"
    assert rejected(MACVTAP, replace(NODE, owner_gid=number)) == f"gid {number}"


IN_VLAN = replace(STANDING, port=replace(STANDING.port, vlan=Vlan(7)))


def test_a_macvtap_stands_in_its_ports_vlan_and_no_other() -> None:
    check_plan((EnsureVlan("lan", 7), MACVTAP, NODE, IN_VLAN), AUTHORITY)
    for ensured in ((), (EnsureVlan("lan", 8),)):
        assert "for a port in [7]" in rejected(*ensured, MACVTAP, NODE, IN_VLAN)
    assert "for a port in []" in rejected(EnsureVlan("lan", 7), MACVTAP, NODE, STANDING)
    assert "two networks" in rejected(EnsureVlan("wan", 7), MACVTAP, NODE, IN_VLAN)


@pytest.mark.parametrize("vid", [-1, 0, 4095, 2**31])
def test_what_is_no_vlan_is_rejected(vid: int) -> None:
    assert rejected(EnsureVlan("lan", vid)) == f"VLAN {vid}"
    assert "no uplink for network" in rejected(EnsureVlan("blue", 7))


OPERATIONS = st.sampled_from([ENSURE, EnsureBridge("green"), TAP, replace(TAP, queues=0), PORT, replace(PORT, network="red")])


@given(st.lists(OPERATIONS, max_size=4).map(tuple))
def test_a_plan_that_passes_touches_nothing_but_its_own(plan: Plan) -> None:
    try:
        check_plan(plan, AUTHORITY)
    except PlanRejectedError:
        return
    assert plan in {(), (ENSURE,), (TAP,), (ENSURE, TAP), (ENSURE, TAP, PORT)}


@pytest.mark.parametrize(
    ("plan", "why"),
    [
        ((change(ID),), "needs EnsureBridge"),
        ((ENSURE, TAP, change(ID)), "needs no change"),
        ((ENSURE, change(ID, ifname="eth0")), "is not the name of"),
        ((ENSURE, change(ID, "red")), "two networks"),
        ((ENSURE, change(ID, mac="52:54:00:12:34:56")), "host-side MAC"),
        ((ENSURE, change(ID, before=Port(mac="x"))), "the VM's MAC"),
    ],
)
def test_only_an_endpoints_own_device_is_changed(plan: Plan, why: str) -> None:
    assert why in rejected(*plan)


@pytest.mark.parametrize(
    "port",
    [
        {"mac": ""},
        {"mac": "01:00:5e:00:00:01"},
        {"mac": "52:54:00:12:34:5"},
        {"mac": "52-54-00-12-34-56"},
        {"mtu_bytes": 67},
        {"mtu_bytes": -1},
        {"mtu_bytes": 1 << 32},
        {"tx_queue_length": -1},
        {"tx_queue_length": 1 << 32},
        {"addresses": ("10.0.0.1/33",)},
        {"addresses": ("10.0.0.1/24",)},
        {"addresses": ("eth0",)},
        {"addresses": ("10.0.0.1",) * 67},
        {"vlan": Vlan(4095)},
        {"vlan": Vlan(0, (0,))},
        {"vlan": Vlan(0, (1,), -1)},
        {"limits": Limits(RateLimit((1 << 40) + 1))},
        {"limits": Limits(RateLimit(-1))},
        {"limits": Limits(RateLimit(1, 1 << 32))},
        {"limits": Limits(RateLimit(), RateLimit(0, 0, 1 << 32))},
    ],
)
def test_a_port_that_no_vifd_would_plan_is_rejected(port: dict[str, Any]) -> None:
    rejected(ENSURE, TAP, configure(ID, **port))
    rejected(ENSURE, change(ID, **port))


NAT = BridgeGrant(
    "br-blue",
    addresses=("10.0.0.1/24", "fd00::1/64"),
    nat=True,
    nat_uplink="eth0",
    public_pool=(("192.0.2.50", "192.0.2.59"), ("2001:db8::50", "2001:db8::50")),
)


def rejected_publics(grant: BridgeGrant | UplinkGrant, addresses: tuple[str, ...], publics: tuple[str, ...]) -> bool:
    port = replace(PORT.port, addresses=addresses, public_addresses=publics)
    for plan in ((ENSURE, TAP, replace(PORT, port=port)), (ENSURE, replace(change(ID), port=port))):
        try:
            check_plan(plan, {"blue": grant})
        except PlanRejectedError:
            continue
        return False
    return True


@pytest.mark.parametrize("publics", [(), ("192.0.2.50",), ("192.0.2.59", "2001:db8::50", "192.0.2.51")])
def test_public_addresses_of_the_pool_pass(publics: tuple[str, ...]) -> None:
    assert not rejected_publics(NAT, ("10.0.0.7", "fd00::7"), publics)


@pytest.mark.parametrize(
    ("addresses", "publics"),
    [
        (("10.0.0.7",), ("192.0.2.49",)),
        (("10.0.0.7",), ("192.0.2.60",)),
        (("10.0.0.7",), ("192.0.2.50", "192.0.2.1")),
        (("10.0.0.7",), ("10.0.0.1",)),
        (("10.0.0.7",), ("2001:db8::50",)),
        (("10.0.0.7",), ("192.0.2.50/32",)),
        (("10.0.0.7",), ("192.0.2.48/28",)),
        (("10.0.0.7",), ("x",)),
        (("fd00::7",), ("2001:db8::51",)),
        ((), ("192.0.2.50",)),
        (("10.0.0.0/28",), ("192.0.2.50",)),
        (("10.0.1.7",), ("192.0.2.50",)),
        (("127.0.0.1",), ("192.0.2.50",)),
    ],
)
def test_no_other_public_address_is_to_be_had_nor_for_another_place(addresses: tuple[str, ...], publics: tuple[str, ...]) -> None:
    assert rejected_publics(NAT, addresses, publics)


@pytest.mark.parametrize("grant", [BridgeGrant("br-blue"), replace(NAT, nat=False), replace(NAT, public_pool=())])
def test_no_public_address_is_to_be_had_without_nat_and_a_pool(grant: BridgeGrant) -> None:
    assert rejected_publics(grant, ("10.0.0.7",), ("192.0.2.50",))


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        ({"ifname": "eth0"}, "is not the name of"),
        ({"ifname": names.device_name(Kind.TAP, endpoint_id(1))}, "is not the name of"),
        ({"ifname": MACVTAP.ifname}, "is not the name of"),
        ({"endpoint_id": "../../etc"}, "endpoint id"),
        ({"owner_uid": (1 << 32) - 1}, "uid"),
        ({"owner_uid": -1}, "uid"),
        ({"owner_gid": 1 << 32}, "gid"),
    ],
)
def test_a_tap_is_given_back_under_its_own_name_and_to_somebody(changed: dict[str, Any], problem: str) -> None:
    assert problem in rejected(replace(OWNER, **changed))


def test_a_living_macvtap_stands_in_the_vlan_that_it_was_made_in() -> None:
    moved = replace(IN_VLAN.port, vlan=Vlan(8))
    moving = replace(CHANGED, before=IN_VLAN.port, port=moved)
    check_plan((EnsureVlan("lan", 7), moving), AUTHORITY)  # it is refused later, with words for the caller
    for ensured in ((), (EnsureVlan("lan", 8),)):
        assert "for a port in [7]" in rejected(*ensured, moving)
    check_plan((EnsureVlan("lan", 8), replace(moving, before=None)), AUTHORITY)


def test_a_port_of_a_network_that_is_a_vlan_is_in_no_other() -> None:
    authority = {"blue": BridgeGrant("br-blue", "eth1", vlan=100)}
    in_vlan = replace(PORT, port=replace(PORT.port, vlan=Vlan(7)))
    check_plan((ENSURE, TAP, in_vlan), AUTHORITY)
    check_plan((ENSURE, TAP, PORT), authority)
    with pytest.raises(PlanRejectedError, match="a port in a VLAN, on a network that is one"):
        check_plan((ENSURE, TAP, in_vlan), authority)
