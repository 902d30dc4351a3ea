import pytest

from tests.support.messages import ID
from vifd.drivers.addressing import Addressing
from vifd.drivers.bridge import BridgeDriver, BridgeOptions
from vifd.kernel.authority import BridgeGrant, check_plan
from vifd.kernel.ops import ConfigurePort, CreateTap, EnsureBridge, Made
from vifd.model import (
    BridgePort,
    BridgePreference,
    EndpointSpec,
    Feature,
    Kind,
    Owner,
    Port,
    Preference,
    TapDevice,
    TapPreference,
    Vlan,
)

NAME = "vdtz5geomx5ho"
MAC = "16:52:d8:19:10:fd"


def driver(**options: object) -> BridgeDriver:
    return BridgeDriver("blue", BridgeOptions("br-blue", **options))


def spec(preference: Preference, **fields: object) -> EndpointSpec:
    return EndpointSpec("blue", (preference,), Owner(1000, 36), **fields)


def test_a_tap_is_made_marked_and_put_on_the_networks_bridge() -> None:
    preference = TapPreference(2, vnet_hdr=False)
    planned = driver().plan(ID, spec(preference), preference)
    assert planned.plan == (
        EnsureBridge("blue"),
        CreateTap(ID, NAME, "fe:52:d8:19:10:fd", 1000, 36, 2, vnet_hdr=False),
        ConfigurePort(ID, NAME, "blue", Port(mac=MAC)),
    )
    assert planned.port == Port(mac=MAC, mtu_bytes=0)


def test_a_bridge_endpoint_needs_nothing_but_the_bridge() -> None:
    planned = driver().plan(ID, spec(BridgePreference()), BridgePreference())
    assert planned.plan == (EnsureBridge("blue"),)
    assert planned.port == Port(mac=MAC)


def test_the_hosts_side_has_the_callers_mac_with_another_first_octet() -> None:
    wanted = spec(TapPreference(), port=Port(mac="fe:54:00:12:34:56"))
    planned = driver().plan(ID, wanted, TapPreference())
    assert planned.port.mac == "fe:54:00:12:34:56"
    assert planned.plan[1].mac == "fa:54:00:12:34:56"


@pytest.mark.parametrize(("network", "asked", "planned"), [(0, 0, 0), (9000, 0, 9000), (9000, 1400, 1400), (0, 1400, 1400)])
def test_the_mtu_is_the_callers_or_else_the_networks(network: int, asked: int, planned: int) -> None:
    made = driver(mtu=network).plan(ID, spec(TapPreference(), port=Port(mtu_bytes=asked)), TapPreference())
    assert (made.plan[2].port.mtu_bytes, made.port.mtu_bytes) == (planned, planned)


@pytest.mark.parametrize("preference", [TapPreference(), TapPreference(256), BridgePreference()])
def test_the_helper_accepts_every_plan(preference: Preference) -> None:
    options = BridgeOptions("br-blue")
    check_plan(driver().plan(ID, spec(preference), preference).plan, {"blue": BridgeDriver.grant(options)})


def test_the_plan_is_the_same_each_time() -> None:
    assert driver().plan(ID, spec(TapPreference()), TapPreference()) == driver().plan(ID, spec(TapPreference()), TapPreference())


def test_a_tap_is_where_the_kernel_says() -> None:
    made = Made(7, 1500, "br-blue")
    assert driver().locate(ID, TapPreference(2, vnet_hdr=False), made) == TapDevice(NAME, 7, 2, vnet_hdr=False)


def test_a_bridge_comes_with_a_name_for_the_port_that_no_other_has() -> None:
    assert driver().locate(ID, BridgePreference(), Made(0, 1500, "br-blue")) == BridgePort("br-blue", "vdbz5geomx5ho")


def test_it_offers_taps_and_bridges_and_what_they_can_do() -> None:
    of_cards = {Feature.VLAN_QOS, Feature.MIN_RATE, Feature.TRUST}
    assert {offer.kind: offer.features for offer in driver().offers(None)} == {
        Kind.TAP: set(Feature) - {Feature.PORT_ID, Feature.PUBLIC_ADDRESSES} - of_cards,
        Kind.BRIDGE: {Feature.LIVE_MIGRATION},
    }
    assert not any(offer.unavailable for offer in driver().offers(None))


@pytest.mark.parametrize(("mtu", "possible"), [(9000, True), (9001, False)])
def test_a_tap_with_a_larger_mtu_than_the_networks_isnt_possible(mtu: int, possible: bool) -> None:
    wanted = spec(TapPreference(), port=Port(mtu_bytes=mtu))
    (tap, _) = driver(mtu=9000).offers(wanted)
    assert (tap.unavailable == "") is possible


def test_the_helper_may_touch_the_bridge_and_the_uplink_of_the_configuration() -> None:
    options = BridgeOptions("br-blue", "eth1", 9000, ("10.0.0.1/24",))
    assert BridgeDriver.grant(options) == BridgeGrant("br-blue", "eth1", 9000, ("10.0.0.1/24",))


def test_a_bridge_that_vifd_makes_has_the_usual_mtu_unless_told_otherwise() -> None:
    assert BridgeDriver.grant(BridgeOptions("br-blue")) == BridgeGrant("br-blue", "", 1500, ())


def test_every_bad_key_is_found_at_once() -> None:
    problems = BridgeDriver.check_options(BridgeOptions("%d", "a b", 0, ("10.0.0.1", "x")))
    assert [problem.field for problem in problems] == ["bridge", "uplink", "addresses", "addresses"]


def test_good_keys_have_no_problems() -> None:
    assert BridgeDriver.check_options(BridgeOptions("br-blue", "eth0.100", 1500, ("10.0.0.1/24", "fd00::1/64"))) == []


def test_networks_on_one_bridge_share_their_addresses() -> None:
    options = BridgeOptions("br-blue", addresses=("10.0.0.1/24",), pool=("10.0.0.9",), dns=("9.9.9.9",))
    assert BridgeDriver.addressing(options) == Addressing("br-blue", ("10.0.0.1/24",), ("10.0.0.9",), ("9.9.9.9",))


def violations(**options: object) -> set[str]:
    return {problem.field for problem in BridgeDriver.check_options(BridgeOptions("br-blue", **options))}


def test_nat_is_granted_with_its_way_out() -> None:
    options = BridgeOptions("br-blue", addresses=("10.0.0.1/24",), nat=True, nat_uplink="eth0")
    assert BridgeDriver.check_options(options) == []
    assert BridgeDriver.grant(options) == BridgeGrant("br-blue", addresses=("10.0.0.1/24",), nat=True, nat_uplink="eth0")


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"nat": True}, "nat"),
        ({"nat_uplink": "eth0"}, "nat_uplink"),
        ({"nat": True, "addresses": ("10.0.0.1/24",), "nat_uplink": "br-blue"}, "nat_uplink"),
        ({"nat": True, "addresses": ("10.0.0.1/24",), "nat_uplink": "eth0", "uplink": "eth0"}, "nat_uplink"),
        ({"nat": True, "addresses": ("10.0.0.1/24",), "nat_uplink": "no such/name"}, "nat_uplink"),
    ],
)
def test_nat_that_cant_be_is_refused(options: dict[str, object], field: str) -> None:
    assert violations(**options) == {field}


PUBLIC = {"nat": True, "addresses": ("10.0.0.1/24",), "nat_uplink": "eth0", "public_pool": ("192.0.2.48/30", "192.0.2.99")}


def test_public_addresses_are_offered_where_there_is_a_pool_of_them() -> None:
    assert BridgeDriver.check_options(BridgeOptions("br-blue", **PUBLIC)) == []
    (tap, bridge) = driver(**PUBLIC).offers(None)
    assert (Feature.PUBLIC_ADDRESSES in tap.features, Feature.PUBLIC_ADDRESSES in bridge.features) == (True, False)
    pool = BridgeDriver.grant(BridgeOptions("br-blue", **PUBLIC)).public_pool
    assert pool == (("192.0.2.48", "192.0.2.51"), ("192.0.2.99", "192.0.2.99"))


@pytest.mark.parametrize(
    "changed",
    [{"nat": False, "nat_uplink": ""}, {"nat_uplink": ""}, {"public_pool": ("x",)}, {"public_pool": ("10.0.0.200-10.0.1.7",)}],
)
def test_a_pool_of_public_addresses_that_cant_be_is_refused(changed: dict[str, object]) -> None:
    assert violations(**(PUBLIC | changed)) == {"public_pool"}


@pytest.mark.parametrize("vlan", [Vlan(7), Vlan(100), Vlan(0, (7, 8), 9)])
def test_a_network_that_is_a_vlan_puts_no_port_into_another(vlan: Vlan) -> None:
    of_vlan = driver(uplink="eth1", vlan=100)
    (tap, _) = of_vlan.offers(spec(TapPreference(), port=Port(vlan=vlan)))
    assert "network blue is VLAN 100 itself" in tap.unavailable
    (tap, _) = of_vlan.offers(spec(TapPreference()))
    assert tap.unavailable == ""
    assert Feature.VLAN not in of_vlan.offers(None)[0].features


def test_a_vlan_is_granted_with_its_uplink() -> None:
    assert BridgeDriver.grant(BridgeOptions("br-blue", "eth1", vlan=100)) == BridgeGrant("br-blue", "eth1", vlan=100)


@pytest.mark.parametrize(
    ("options", "field"), [({"vlan": 7}, "vlan"), ({"uplink": "eth1", "vlan": 7, "uplink_force": True}, "uplink_force")]
)
def test_a_vlan_that_cant_be_is_refused(options: dict[str, object], field: str) -> None:
    (problem,) = BridgeDriver.check_options(BridgeOptions("br-blue", **options))
    assert problem.field == field


def test_guests_in_a_vlan_may_get_out_by_the_uplink_itself() -> None:
    nat = {"addresses": ("10.0.0.1/24",), "nat": True, "nat_uplink": "eth1", "uplink": "eth1"}
    assert BridgeDriver.check_options(BridgeOptions("br-blue", vlan=7, **nat)) == []
    assert [problem.field for problem in BridgeDriver.check_options(BridgeOptions("br-blue", **nat))] == ["nat_uplink"]
