from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.lives import FakeTime
from tests.support.messages import ID
from tests.support.nics import PFS, set_switchdev, sriov_driver, two_nics, vf
from tests.support.sysfs import FakeSysfs
from vifd.drivers.functions import FunctionState
from vifd.drivers.sriov import SriovDriver, SriovOptions
from vifd.errors import NetworkFull
from vifd.kernel import names
from vifd.kernel.authority import BridgeGrant, FunctionGrant, check_plan
from vifd.kernel.ops import (
    BindFunction,
    ClaimFunction,
    ConfigurePort,
    CreateMacvtap,
    EnsureBridge,
    EnsureNode,
    FunctionMade,
    Made,
)
from vifd.model import (
    EndpointSpec,
    Feature,
    Instance,
    Kind,
    Limits,
    MacvtapDevice,
    MacvtapMode,
    MacvtapPreference,
    Owner,
    PciDevice,
    PciHostDriver,
    PciPreference,
    Port,
    RateLimit,
    State,
    TapPreference,
    Vlan,
    VlanProtocol,
)

MAC = "16:52:d8:19:10:fd"
KERNEL = PciPreference(PciHostDriver.KERNEL)
MACVTAP = MacvtapPreference()


@pytest.fixture
def sysfs(tmp_path: Path) -> FakeSysfs:
    return two_nics(tmp_path / "sys")


def spec(preference: PciPreference | MacvtapPreference = KERNEL, **fields: object) -> EndpointSpec:
    return EndpointSpec("fast", (preference,), Owner(1000, 36), **fields)


def problem(driver: SriovDriver, wanted: EndpointSpec | None, kind: Kind = Kind.PCI) -> str:
    (offer,) = (offer for offer in driver.offers(wanted) if offer.kind is kind)
    return offer.unavailable


# --- the configuration


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"pfs": ()}, "pfs"),
        ({"pfs": ("",)}, "pfs"),
        ({"pfs": ("a/b",)}, "pfs"),
        ({"pfs": ("vdtaaaaaaaaaa",)}, "pfs"),
        ({"pfs": ("0000:03:00",)}, "pfs"),
        ({"pfs": ("eth1", "eth1")}, "pfs"),
        ({"vfs": ()}, "vfs"),
        ({"vfs": ("eth1",)}, "vfs"),
        ({"exclude": ("0000:01:10.2-0000:01:10.0",)}, "exclude"),
        ({"vfs": ("0000:01:10.0",), "exclude": ("0000:01:10.0-0000:01:10.6",)}, "exclude"),
        ({"bridge": "a/b"}, "bridge"),
        ({"bridge": "eth1"}, "bridge"),
    ],
)
def test_what_is_wrong_with_the_keys_is_named(options: dict[str, object], key: str) -> None:
    problems = SriovDriver.check_options(SriovOptions(**{"pfs": ("eth1",)} | options))
    assert [one.field for one in problems] == [key]


@pytest.mark.parametrize(
    "options",
    [
        {"pfs": ("ens1f0", "0000:81:00.0")},
        {"vfs": 7},
        {"vfs": ("0000:01:10.0", "0000:01:10.2-0000:01:11.4"), "exclude": ("0000:01:10.4",)},
    ],
)
def test_pfs_and_vfs_are_named_in_each_way(options: dict[str, object]) -> None:
    assert SriovDriver.check_options(SriovOptions(**{"pfs": ("eth1",)} | options)) == []


def test_the_helper_may_touch_the_vfs_that_the_configuration_names() -> None:
    counted = SriovOptions(("eth1",), vfs=7, exclude=("0000:01:10.0",), mtu=9000, vlan=7)
    assert SriovDriver.grant(counted) == FunctionGrant(("eth1",), 7, (), ("0000:01:10.0",), 9000, 7)
    listed = SriovOptions(("eth1",), vfs=("0000:01:10.0-0000:01:10.2",), exclude=("0000:01:10.1",))
    grant = SriovDriver.grant(listed)
    assert (grant.vfs, grant.addresses, grant.exclude) == (0, ("0000:01:10.0", "0000:01:10.2"), ("0000:01:10.1",))
    bridged = SriovOptions(("eth1",), bridge="br0", mtu=9000)
    assert SriovDriver.grant(bridged).bridge == BridgeGrant("br0", mtu_bytes=9000)


# --- offers


def test_it_offers_pci_functions_without_what_a_nic_cannot_do(sysfs: FakeSysfs) -> None:
    offer, _ = sriov_driver(sysfs).offers(None)
    assert (offer.kind, offer.unavailable) == (Kind.PCI, "")
    lacks = {Feature.GUARD, Feature.ADDRESSES, Feature.ISOLATION, Feature.FD_HANDOFF, Feature.LIVE_MIGRATION}
    assert lacks.isdisjoint(offer.features)
    assert {Feature.VLAN_QOS, Feature.MIN_RATE, Feature.TRUST, Feature.MTU, Feature.LINK_STATE} <= offer.features


def test_it_offers_macvtaps_with_what_the_nic_and_the_kernel_can_do(sysfs: FakeSysfs) -> None:
    _, offer = sriov_driver(sysfs).offers(None)
    assert (offer.kind, offer.unavailable) == (Kind.MACVTAP, "")
    assert set(Feature) - offer.features == {Feature.ISOLATION, Feature.PORT_ID, Feature.PUBLIC_ADDRESSES}


@pytest.mark.parametrize(
    "port",
    [
        Port(),
        Port(vlan=Vlan(7, qos=3, protocol=VlanProtocol.DOT1AD)),
        Port(limits=Limits(RateLimit(rate_bps=10**8, min_rate_bps=10**6))),
        Port(mtu_bytes=9000, link_up=False, trusted=True),
    ],
)
def test_what_a_vf_can_do_is_possible(sysfs: FakeSysfs, port: Port) -> None:
    assert problem(sriov_driver(sysfs, mtu=9000), spec(port=port)) == ""


@pytest.mark.parametrize(
    ("port", "why"),
    [
        (Port(vlan=Vlan(0, (7, 8))), "no trunks"),
        (Port(vlan=Vlan(8)), "VLAN 7"),
        (Port(mtu_bytes=9001), "MTU 9001 is more than the 9000"),
        (Port(limits=Limits(to_vm=RateLimit(rate_bps=10**6))), "to_vm"),
        (Port(limits=Limits(RateLimit(rate_bps=10**6, burst_bytes=10**6))), "burst_bytes"),
        (Port(limits=Limits(RateLimit(rate_pps=1))), "rate_pps"),
        (Port(limits=Limits(RateLimit(rate_bps=1_500_000))), "rate_bps be a multiple of 1000000"),
        (Port(limits=Limits(RateLimit(min_rate_bps=1))), "min_rate_bps be a multiple of 1000000"),
    ],
)
def test_what_no_vf_can_do_is_refused_with_the_reason(sysfs: FakeSysfs, port: Port, why: str) -> None:
    assert why in problem(sriov_driver(sysfs, vlan=7, mtu=9000), spec(port=port))


@pytest.mark.parametrize(
    ("preference", "port", "why"),
    [
        (MACVTAP, Port(limits=Limits(RateLimit(1_500_000, 10**6, 7), RateLimit(rate_bps=10**6))), ""),
        (MacvtapPreference(MacvtapMode.PASSTHRU), Port(guard_enabled=True, addresses=("192.0.2.1",)), ""),
        (MacvtapPreference(MacvtapMode.BRIDGE), Port(), "let its mode be passthru"),
        (MACVTAP, Port(limits=Limits(RateLimit(min_rate_bps=1))), "min_rate_bps be a multiple of 1000000"),
        (MACVTAP, Port(vlan=Vlan(0, (7, 8))), "no trunks"),
        (MACVTAP, Port(vlan=Vlan(8)), "VLAN 7"),
        (MACVTAP, Port(mtu_bytes=9001), "MTU 9001 is more than the 9000"),
    ],
)
def test_a_macvtap_can_do_what_the_kernel_can(sysfs: FakeSysfs, preference: MacvtapPreference, port: Port, why: str) -> None:
    found = problem(sriov_driver(sysfs, vlan=7, mtu=9000), spec(preference, port=port), Kind.MACVTAP)
    assert why in found
    assert bool(why) is bool(found)


def test_what_stands_in_the_way_of_pass_through_does_not_in_that_of_a_macvtap(tmp_path: Path) -> None:
    sysfs = FakeSysfs(tmp_path)
    sysfs.add_pf(PFS["ens1f0"], "ens1f0")
    sysfs.add_vf(PFS["ens1f0"], 0, vf(0, 0))
    driver = sriov_driver(sysfs, pfs=("ens1f0",))
    wanted = EndpointSpec("fast", (PciPreference(), MACVTAP), Owner(1000, 36))
    assert problem(driver, wanted) != ""
    assert problem(driver, wanted, Kind.MACVTAP) == ""
    assert "has no VF" in problem(sriov_driver(FakeSysfs(tmp_path / "empty")), wanted, Kind.MACVTAP)


def test_the_networks_own_vlan_may_be_named_to_give_it_a_priority(sysfs: FakeSysfs) -> None:
    assert problem(sriov_driver(sysfs, vlan=7), spec(port=Port(vlan=Vlan(7, qos=5)))) == ""


def test_without_a_pf_nothing_can_be_made(tmp_path: Path) -> None:
    found = problem(sriov_driver(FakeSysfs(tmp_path)), None)
    assert "network fast has no VF" in found
    assert "ens1f0 isn't there" in found
    assert "ens2f0 isn't there" in found


def test_without_vfs_nothing_can_be_made(tmp_path: Path) -> None:
    sysfs = two_nics(tmp_path, vfs=0)
    assert "PF ens1f0 has no VFs; PF ens2f0 has no VFs" in problem(sriov_driver(sysfs), None)


def test_where_all_are_kept_out_nothing_can_be_made(sysfs: FakeSysfs) -> None:
    driver = sriov_driver(sysfs, pfs=("ens1f0",), exclude=(f"{vf(0, 0)}-{vf(0, 2)}",))
    assert "each VF of PF ens1f0 is kept out" in problem(driver, None)


def test_one_pf_that_is_there_is_enough(sysfs: FakeSysfs) -> None:
    driver = sriov_driver(sysfs, pfs=("nothere0", "ens1f0"))
    assert problem(driver, None) == ""
    assert driver.pick(spec(), {}) == vf(0, 0)


def test_a_vfio_node_is_for_a_user_whatever_the_group(sysfs: FakeSysfs) -> None:
    assert "leave owner.gid out" in problem(sriov_driver(sysfs), spec(PciPreference(PciHostDriver.VFIO)))
    assert problem(sriov_driver(sysfs), EndpointSpec("fast", (PciPreference(),), Owner(1000))) == ""
    assert problem(sriov_driver(sysfs), spec(KERNEL)) == ""


def test_without_an_iommu_there_is_no_pass_through_but_there_are_netdevs(tmp_path: Path) -> None:
    sysfs = FakeSysfs(tmp_path)
    sysfs.add_pf(PFS["ens1f0"], "ens1f0")
    sysfs.add_vf(PFS["ens1f0"], 0, vf(0, 0))
    driver = sriov_driver(sysfs, pfs=("ens1f0",))
    assert "no IOMMU" in problem(driver, EndpointSpec("fast", (PciPreference(PciHostDriver.VFIO),), Owner(1000)))
    assert problem(driver, spec(KERNEL)) == ""
    assert problem(driver, None) == ""


# --- which VF


def test_vfs_are_spread_over_the_pfs_in_the_order_of_their_numbers(sysfs: FakeSysfs) -> None:
    driver, taken = sriov_driver(sysfs), dict[str, State]()
    for _ in range(6):
        taken[driver.pick(spec(), taken)] = State.PENDING
    assert list(taken) == [vf(0, 0), vf(1, 0), vf(0, 1), vf(1, 1), vf(0, 2), vf(1, 2)]


def test_the_instances_numa_node_comes_first(sysfs: FakeSysfs) -> None:
    driver, taken = sriov_driver(sysfs), dict[str, State]()
    for _ in range(4):
        taken[driver.pick(spec(instance=Instance(numa_node=1)), taken)] = State.READY
    assert list(taken) == [vf(1, 0), vf(1, 1), vf(1, 2), vf(0, 0)]


def test_a_pf_that_is_down_comes_last(tmp_path: Path) -> None:
    sysfs = FakeSysfs(tmp_path)
    for place, (ifname, address) in enumerate(PFS.items()):
        sysfs.add_pf(address, ifname, up=ifname == "ens2f0", numa_node=place)
        sysfs.add_vf(address, 0, vf(place, 0))
    driver = sriov_driver(sysfs)
    assert driver.pick(spec(instance=Instance(numa_node=0)), {}) == vf(1, 0)
    assert driver.pick(spec(), {vf(1, 0): State.READY}) == vf(0, 0)
    assert problem(driver, None) == ""
    assert "PF ens1f0 is down" in problem(sriov_driver(sysfs, pfs=("ens1f0",)), None)


def test_a_vf_that_is_excluded_or_not_listed_is_never_picked(sysfs: FakeSysfs) -> None:
    listed = sriov_driver(sysfs, vfs=(vf(1, 1), vf(1, 2)), exclude=(vf(1, 1),))
    assert listed.pick(spec(), {}) == vf(1, 2)
    with pytest.raises(NetworkFull):
        listed.pick(spec(), {vf(1, 2): State.READY})


def test_a_vf_that_was_unfit_is_left_out_for_a_minute(sysfs: FakeSysfs) -> None:
    time = FakeTime()
    driver = sriov_driver(sysfs, time, pfs=("ens1f0",))
    driver.note_unfit(vf(0, 0), "somebody has it")
    assert driver.pick(spec(), {}) == vf(0, 1)
    time.advance(59)
    assert driver.pick(spec(), {}) == vf(0, 1)
    time.advance(2)
    assert driver.pick(spec(), {}) == vf(0, 0)


def test_when_none_is_left_it_says_who_has_them(sysfs: FakeSysfs) -> None:
    driver = sriov_driver(sysfs, exclude=(vf(0, 0),))
    driver.note_unfit(vf(0, 1), "somebody has it")
    taken = {vf(0, 2): State.READY, vf(1, 0): State.PENDING, vf(1, 1): State.RELEASING, vf(1, 2): State.ACTIVE, "x": State.READY}
    with pytest.raises(NetworkFull) as caught:
        driver.pick(spec(), taken)
    assert str(caught.value) == (
        "network fast has no free VF: of 6, 3 in use by endpoints, 1 taken by others on this host, "
        "1 not yet as new after a release, 1 kept out by the configuration; release an endpoint of it, or use another network"
    )


def test_a_vf_that_went_away_is_not_picked(sysfs: FakeSysfs) -> None:
    sysfs.remove(vf(0, 0))
    assert sriov_driver(sysfs, pfs=("ens1f0",)).pick(spec(), {}) == vf(0, 1)


def test_the_vfs_of_a_pf_share_a_lane(sysfs: FakeSysfs) -> None:
    driver = sriov_driver(sysfs)
    assert driver.lane(vf(0, 0)) == driver.lane(vf(0, 2)) == PFS["ens1f0"]
    assert driver.lane(vf(1, 0)) == PFS["ens2f0"]
    sysfs.remove(vf(0, 0))
    assert driver.lane(vf(0, 0)) == vf(0, 0)


# --- plans and locations


def test_a_vf_is_claimed_with_the_port_and_bound_for_its_owner(sysfs: FakeSysfs) -> None:
    planned = sriov_driver(sysfs).plan(ID, spec(function=vf(0, 1)), KERNEL)
    assert planned.plan == (
        ClaimFunction(ID, "fast", vf(0, 1), Port(mac=MAC)),
        BindFunction(ID, "fast", vf(0, 1), PciHostDriver.KERNEL, 1000, 36),
    )
    assert planned.port == Port(mac=MAC)


def test_what_the_caller_leaves_open_is_the_networks(sysfs: FakeSysfs) -> None:
    driver = sriov_driver(sysfs, vlan=7, mtu=9000)
    planned = driver.plan(ID, spec(function=vf(0, 1)), PciPreference())
    assert planned.port == Port(mac=MAC, mtu_bytes=9000, vlan=Vlan(7))
    asked = Port(mac="52:54:00:12:34:56", mtu_bytes=1400, vlan=Vlan(7, qos=3))
    assert driver.plan(ID, spec(function=vf(0, 1), port=asked), PciPreference()).port == asked


def test_without_a_vf_or_of_another_kind_nothing_is_planned(sysfs: FakeSysfs) -> None:
    driver = sriov_driver(sysfs)
    with pytest.raises(ValueError, match="has no VF"):
        driver.plan(ID, spec(), KERNEL)
    with pytest.raises(TypeError):
        driver.plan(ID, spec(function=vf(0, 1)), TapPreference())
    with pytest.raises(ValueError, match="nothing is known"):
        driver.locate(ID, KERNEL, Made())


def test_below_a_macvtap_a_vf_has_what_only_the_nic_can_keep(sysfs: FakeSysfs) -> None:
    limits = Limits(RateLimit(10**9, 10**6, 7, min_rate_bps=10**6), RateLimit(rate_bps=10**6))
    port = Port(MAC, 1400, ("192.0.2.1",), Vlan(7, qos=3), True, limits, link_up=False, tx_queue_length=7, trusted=True)
    planned = sriov_driver(sysfs).plan(ID, spec(function=vf(0, 1), port=port), MACVTAP)
    of_vf = Port(MAC, 1400, vlan=Vlan(7, qos=3), limits=Limits(RateLimit(min_rate_bps=10**6)), trusted=True)
    ifname = names.device_name(Kind.MACVTAP, ID)
    assert planned.plan == (
        ClaimFunction(ID, "fast", vf(0, 1), of_vf),
        BindFunction(ID, "fast", vf(0, 1), PciHostDriver.KERNEL, 1000, 36),
        CreateMacvtap(ID, ifname, "fast", MAC, MacvtapMode.PASSTHRU),
        EnsureNode(ID, ifname, 1000, 36),
        ConfigurePort(ID, ifname, "fast", port),
    )
    assert planned.port == port


def test_a_macvtap_stands_on_the_netdev_that_the_helper_found(sysfs: FakeSysfs) -> None:
    made = Made(9, 1500, "vdpaaa", "/dev/vifd/macvtap7", FunctionMade("ens1f0", 1, 9, ifname="vdpaaa", address=vf(0, 1)))
    ifname = names.device_name(Kind.MACVTAP, ID)
    found = sriov_driver(sysfs).locate(ID, MacvtapPreference(queues=2), made)
    assert found == MacvtapDevice(ifname, 9, "/dev/vifd/macvtap7", "vdpaaa", MacvtapMode.PASSTHRU, queues=2)


def test_a_vf_is_where_the_helper_says(sysfs: FakeSysfs) -> None:
    preference = PciPreference(PciHostDriver.VFIO)
    made = Made(function=FunctionMade("ens1f0", 1, 9, 0, "/dev/vfio/9", "/dev/vfio/devices/vfio3", "", vf(0, 1)))
    assert sriov_driver(sysfs).locate(ID, preference, made) == PciDevice(
        vf(0, 1), "ens1f0", 1, PciHostDriver.VFIO, 9, "/dev/vfio/9", "/dev/vfio/devices/vfio3", numa_node=0
    )


# --- representors


@pytest.fixture
def switchdev(sysfs: FakeSysfs) -> FakeSysfs:
    """PFs whose switches are in mode switchdev."""
    set_switchdev(sysfs)
    return sysfs


def test_with_a_bridge_a_vf_can_what_a_port_of_it_can(switchdev: FakeSysfs) -> None:
    offer, macvtap = sriov_driver(switchdev, bridge="br0").offers(None)
    assert "has a bridge for its VFs' representors" in macvtap.unavailable
    assert {Feature.GUARD, Feature.ADDRESSES, Feature.ISOLATION, Feature.LIMITS, Feature.VLAN} <= offer.features
    assert {Feature.VLAN_QOS, Feature.MIN_RATE, Feature.TRUST, Feature.LIVE_MIGRATION}.isdisjoint(offer.features)
    limits = Limits(RateLimit(1, 1, 1), RateLimit(7))
    assert problem(sriov_driver(switchdev, bridge="br0"), spec(port=Port(limits=limits, vlan=Vlan(trunk_vids=(7, 8))))) == ""


def test_its_plan_puts_the_representor_on_the_bridge_last_and_names_none(switchdev: FakeSysfs) -> None:
    driver = sriov_driver(switchdev, bridge="br0", vlan=7)
    planned = driver.plan(ID, spec(function=vf(0, 1)), KERNEL)
    ensure, claim, _, configure = planned.plan
    assert (ensure, claim.port) == (EnsureBridge("fast"), planned.port)
    assert configure == ConfigurePort(ID, "", "fast", planned.port)
    check_plan(planned.plan, {"fast": SriovDriver.grant(driver.config)})
    assert driver.bridge_name == driver.addressing(driver.config).segment == "br0"


def test_the_answer_names_it(switchdev: FakeSysfs) -> None:
    made = Made(7, 1500, "br0", function=FunctionMade("ens1f0", 1, 9, address=vf(0, 1), representor="ens1f0r1"))
    found = sriov_driver(switchdev, bridge="br0").locate(ID, KERNEL, made)
    assert isinstance(found, PciDevice)
    assert (found.representor, found.representor_ifindex) == ("ens1f0r1", 7)


def test_a_bridge_and_a_switch_of_the_host_belong_together(sysfs: FakeSysfs) -> None:
    legacy = problem(sriov_driver(sysfs, bridge="br0"), None)
    assert "PF ens1f0 isn't in mode switchdev" in legacy
    assert "devlink dev eswitch set pci/0000:81:00.0 mode switchdev" in legacy
    assert "isn't in mode switchdev" in sriov_driver(sysfs, bridge="br0").physical_functions()[0].message
    set_switchdev(sysfs)
    assert "name the bridge" in problem(sriov_driver(sysfs), None)
    assert sriov_driver(sysfs, bridge="br0").physical_functions()[0].message == ""


def test_of_pfs_in_different_modes_the_fitting_one_is_used(sysfs: FakeSysfs) -> None:
    set_switchdev(sysfs)
    for netdev in (sysfs.device(PFS["ens1f0"]) / "net").glob("ens1f0r*"):
        (netdev / "phys_port_name").unlink()
    driver = sriov_driver(sysfs, bridge="br0")
    assert problem(driver, None) == ""
    assert [driver.pick(spec(), {vf(1, one): State.READY for one in range(used)}) for used in range(3)] == [
        vf(1, 0),
        vf(1, 1),
        vf(1, 2),
    ]
    with pytest.raises(NetworkFull):
        driver.pick(spec(), {vf(1, one): State.READY for one in range(3)})


# --- what a host has


def test_the_pfs_and_vfs_are_told_with_what_is_known_of_them(sysfs: FakeSysfs) -> None:
    driver = sriov_driver(sysfs, pfs=("ens1f0", "nothere0"), exclude=(vf(0, 0),))
    driver.note_unfit(vf(0, 1), "somebody has it")
    one, other = driver.physical_functions()
    assert (one.name, one.message) == ("ens1f0", "")
    assert [(status.function.address, status.state, status.message) for status in one.functions] == [
        (vf(0, 0), FunctionState.EXCLUDED, "the configuration of network fast keeps it out"),
        (vf(0, 1), FunctionState.TAKEN, "somebody has it"),
        (vf(0, 2), FunctionState.FREE, ""),
    ]
    assert (other.pf, list(other.functions), other.message) == (None, [], "PF nothere0 isn't there")


@pytest.mark.parametrize(
    ("ifname", "up", "vfs", "message"),
    [
        ("", False, 1, "has no network device here"),
        ("eth5", True, 0, "has no VFs; it can have 7"),
        ("eth5", False, 1, "is down, and with it its VFs: ip link set eth5 up"),
        ("eth5", True, 1, ""),
    ],
)
def test_what_is_wrong_with_a_pf_is_told(tmp_path: Path, ifname: str, up: bool, vfs: int, message: str) -> None:
    sysfs = FakeSysfs(tmp_path)
    sysfs.add_pf("0000:05:00.0", ifname, up=up)
    for index in range(vfs):
        sysfs.add_vf("0000:05:00.0", index, f"0000:05:10.{index}")
    (status,) = sriov_driver(sysfs, pfs=("0000:05:00.0",)).physical_functions()
    assert message in status.message
    assert bool(status.message) is bool(message)


def test_a_pf_with_another_number_of_vfs_is_told(sysfs: FakeSysfs) -> None:
    assert sriov_driver(sysfs, vfs=3).physical_functions()[0].message == ""
    assert "has 3 VFs, and vfs = 2 says otherwise" in sriov_driver(sysfs, vfs=2).physical_functions()[0].message


def test_a_pf_without_a_carrier_is_told(sysfs: FakeSysfs) -> None:
    (sysfs.device(PFS["ens1f0"]) / "net/ens1f0/carrier").write_text("0\n")
    assert "no carrier" in sriov_driver(sysfs).physical_functions()[0].message
