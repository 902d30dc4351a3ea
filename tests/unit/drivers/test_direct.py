import pytest
from msgspec.structs import replace

from tests.support.messages import ID
from vifd.drivers.direct import DirectDriver, DirectOptions
from vifd.kernel.authority import UplinkGrant, check_plan
from vifd.kernel.ops import ConfigurePort, CreateMacvtap, EnsureNode, EnsureVlan, Made
from vifd.model import (
    EndpointSpec,
    Feature,
    Kind,
    MacvtapDevice,
    MacvtapMode,
    MacvtapPreference,
    Owner,
    Port,
    Preference,
    TapPreference,
    Vlan,
)

NAME = "vdmz5geomx5ho"
MAC = "16:52:d8:19:10:fd"


def driver(**options: object) -> DirectDriver:
    return DirectDriver("lan", DirectOptions("eth1", **options))


PLAIN = MacvtapPreference()


def spec(preference: Preference = PLAIN, **fields: object) -> EndpointSpec:
    return EndpointSpec("lan", (preference,), Owner(1000, 36), **fields)


def test_a_macvtap_is_made_with_the_vms_mac_and_a_node_for_its_owner() -> None:
    preference = MacvtapPreference(MacvtapMode.VEPA, 2, vnet_hdr=False)
    planned = driver().plan(ID, spec(preference), preference)
    assert planned.plan == (
        CreateMacvtap(ID, NAME, "lan", MAC, MacvtapMode.VEPA),
        EnsureNode(ID, NAME, 1000, 36),
        ConfigurePort(ID, NAME, "lan", Port(mac=MAC)),
    )
    assert planned.port == Port(mac=MAC, mtu_bytes=0)


def test_a_vlan_has_a_device_of_its_own_below_the_macvtap() -> None:
    planned = driver().plan(ID, spec(port=Port(vlan=Vlan(7))), PLAIN)
    assert planned.plan[0] == EnsureVlan("lan", 7)
    check_plan(planned.plan, {"lan": UplinkGrant("eth1")})
    made = Made(7, 1500, "vdq2a", "/dev/vifd/macvtap3")
    assert driver().locate(ID, PLAIN, made).lower_ifname == "vdq2a"


def test_a_trunk_isnt_possible() -> None:
    (offer,) = driver().offers(spec(port=Port(vlan=Vlan(0, (7, 8)))))
    assert "no trunks" in offer.unavailable


def test_the_callers_mac_is_the_macvtaps() -> None:
    planned = driver().plan(ID, spec(port=Port(mac="fe:54:00:12:34:56")), MacvtapPreference())
    assert (planned.port.mac, planned.plan[0].mac) == ("fe:54:00:12:34:56", "fe:54:00:12:34:56")


@pytest.mark.parametrize(("network", "asked", "planned"), [(0, 0, 0), (9000, 0, 9000), (9000, 1400, 1400), (0, 1400, 1400)])
def test_the_mtu_is_the_callers_or_else_the_networks(network: int, asked: int, planned: int) -> None:
    made = driver(mtu=network).plan(ID, spec(port=Port(mtu_bytes=asked)), MacvtapPreference())
    assert (made.plan[2].port.mtu_bytes, made.port.mtu_bytes) == (planned, planned)


@pytest.mark.parametrize("mode", list(MacvtapMode))
def test_the_helper_accepts_every_plan(mode: MacvtapMode) -> None:
    preference = MacvtapPreference(mode)
    authority = {"lan": DirectDriver.grant(DirectOptions("eth1"))}
    check_plan(driver().plan(ID, spec(preference), preference).plan, authority)


def test_a_macvtap_is_where_the_kernel_and_its_node_say() -> None:
    preference = MacvtapPreference(MacvtapMode.PRIVATE, 2, vnet_hdr=False)
    made = Made(7, 1500, device_path="/dev/vifd/macvtap3")
    location = MacvtapDevice(NAME, 7, "/dev/vifd/macvtap3", "eth1", MacvtapMode.PRIVATE, 2, vnet_hdr=False)
    assert driver().locate(ID, preference, made) == location


def test_it_offers_macvtaps_alone() -> None:
    (offer,) = driver().offers(None)
    assert (offer.kind, offer.unavailable) == (Kind.MACVTAP, "")
    assert {Feature.LIVE_MIGRATION, Feature.MULTI_QUEUE, Feature.FD_HANDOFF, Feature.MTU} <= offer.features


def test_another_kind_is_never_planned() -> None:
    with pytest.raises(TypeError):
        driver().plan(ID, spec(), TapPreference())


@pytest.mark.parametrize(("mtu", "possible"), [(9000, True), (9001, False)])
def test_a_larger_mtu_than_the_networks_isnt_possible(mtu: int, *, possible: bool) -> None:
    (offer,) = driver(mtu=9000).offers(spec(port=Port(mtu_bytes=mtu)))
    assert (offer.unavailable == "") is possible


def test_the_helper_may_touch_the_uplink_of_the_configuration() -> None:
    assert DirectDriver.grant(DirectOptions("eth1", 9000)) == UplinkGrant("eth1", 9000)


@pytest.mark.parametrize("uplink", ["", "%d", "a b", "eth0/1", NAME, "vdtaaaaaaaaaa"])
def test_what_cant_be_an_uplink_is_found_in_the_configuration(uplink: str) -> None:
    (problem,) = DirectDriver.check_options(DirectOptions(uplink))
    assert problem.field == "uplink"


@pytest.mark.parametrize("uplink", ["eth0", "eth0.100", "bond0", "vdsl0"])
def test_devices_of_the_host_can_be_uplinks(uplink: str) -> None:
    assert DirectDriver.check_options(replace(DirectOptions("x"), uplink=uplink)) == []
