"""Macvtaps on VFs: what the helper's check says of their plans, and in which order they are made and undone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import pytest
from msgspec.structs import replace

from tests.support.messages import ID, endpoint_id
from tests.support.sriov_host import FakeHost, FakeNic, no_guards, vf_address
from vifd.kernel import names, ops
from vifd.kernel.authority import FunctionGrant, PlanRejectedError, UplinkGrant, check_plan
from vifd.kernel.direct import Macvtaps
from vifd.kernel.limits import Support
from vifd.kernel.macvtap import Failure, Uplink
from vifd.kernel.making import Devices, Maker
from vifd.kernel.netlink import RtnlSocket
from vifd.kernel.nft.nat import NoNatTable
from vifd.kernel.ops import (
    BindFunction,
    ChangeFunction,
    ChangePort,
    ClaimFunction,
    ConfigurePort,
    CreateMacvtap,
    CreateTap,
    EnsureNode,
    EnsureVlan,
    Plan,
    Refusal,
    below_macvtap,
)
from vifd.kernel.publics import Publics
from vifd.kernel.sriov.functions import Functions
from vifd.kernel.vdpa.devices import VdpaDevices
from vifd.model import Kind, Limits, LimitsMechanism, MacvtapMode, PciHostDriver, Port, RateLimit, Vlan

VF = vf_address("eth0", 0)
AUTHORITY = {"net": FunctionGrant(("eth0",)), "seven": FunctionGrant(("eth0",), vlan=7), "lan": UplinkGrant("eth1")}
MAC = "52:54:00:12:34:56"
PORT = Port(
    MAC,
    addresses=("192.0.2.1",),
    vlan=Vlan(7, qos=3),
    guard_enabled=True,
    limits=Limits(RateLimit(10**9, 10**6, min_rate_bps=10**6), RateLimit(rate_bps=1)),
    trusted=True,
)
NAME = names.device_name(Kind.MACVTAP, ID)
CLAIM = ClaimFunction(ID, "net", VF, below_macvtap(PORT))
BIND = BindFunction(ID, "net", VF, PciHostDriver.KERNEL, 1000, 36)
CREATE = CreateMacvtap(ID, NAME, "net", MAC, MacvtapMode.PASSTHRU)
NODE = EnsureNode(ID, NAME, 1000, 36)
CONFIGURE = ConfigurePort(ID, NAME, "net", PORT)
PLAN = (CLAIM, BIND, CREATE, NODE, CONFIGURE)
AFTER = replace(PORT, vlan=None, mtu_bytes=1400, link_up=False)
OF_VF = ChangeFunction(ID, "net", VF, below_macvtap(PORT), below_macvtap(AFTER))
OF_MACVTAP = ChangePort(ID, NAME, "net", MAC, PORT, AFTER)
CHANGE = (NODE, OF_MACVTAP, OF_VF)
TAP = CreateTap(ID, names.device_name(Kind.TAP, ID), "fe:54:00:12:34:56", 1000, None, 1, vnet_hdr=True)
OTHER = endpoint_id(7)


@pytest.mark.parametrize(
    "plan", [PLAN, PLAN[:4], CHANGE, CHANGE[1:], (NODE, replace(OF_MACVTAP, before=None), replace(OF_VF, before=None))]
)
def test_what_a_driver_would_plan_passes(plan: Plan) -> None:
    check_plan(plan, AUTHORITY)


@pytest.mark.parametrize(
    ("plan", "words"),
    [
        ((BIND, CREATE), "a macvtap on a VF that this plan doesn't give"),
        ((CLAIM, CREATE, NODE, CONFIGURE), "a macvtap on a VF that this plan doesn't give"),
        ((CLAIM, replace(BIND, host_driver=PciHostDriver.VFIO), CREATE), "a macvtap on a VF that this plan doesn't give"),
        ((CLAIM, BIND, replace(CREATE, mode=MacvtapMode.BRIDGE)), "a macvtap in mode bridge"),
        ((CLAIM, BIND, replace(CREATE, mac="52:54:00:12:34:57")), "with MAC 52:54:00:12:34:57 on a VF with MAC"),
        ((CLAIM, BIND, replace(CREATE, network="lan")), "two networks in one plan"),
        ((CLAIM, BIND, replace(CREATE, network="seven")), "two networks in one plan"),
        ((CLAIM, BIND, replace(CREATE, ifname="eth1")), "'eth1' is not the name of"),
        ((CLAIM, BIND, replace(CREATE, endpoint_id=OTHER, ifname=names.device_name(Kind.MACVTAP, OTHER))), "two devices in one"),
        ((CLAIM, BIND, TAP), "two devices in one plan"),
        ((EnsureVlan("net", 7), *PLAN), "two devices in one plan"),
        ((CLAIM, BIND, CREATE, replace(NODE, owner_uid=-1)), "uid -1"),
        ((CLAIM, BIND, CREATE, replace(NODE, ifname="../x")), "'../x' is not the name of"),
        ((CLAIM, BIND, NODE, CONFIGURE), "is no device of this plan"),
        ((BIND, CONFIGURE), "is no device of this plan"),
        ((CREATE, NODE, CONFIGURE), "the configuration has no uplink for network 'net'"),
    ],
)
def test_a_macvtap_stands_on_the_plans_own_vf_alone(plan: Plan, words: str) -> None:
    with pytest.raises(PlanRejectedError, match=words):
        check_plan(plan, AUTHORITY)


@pytest.mark.parametrize(
    ("port", "words"),
    [
        (replace(PORT, mac="52:54:00:12:34:57"), f"a macvtap and its VF that differ|MAC '{MAC}'"),
        (replace(PORT, vlan=None), "a macvtap and its VF that differ"),
        (replace(PORT, vlan=Vlan(8)), "a macvtap and its VF that differ"),
        (replace(PORT, trusted=False), "a macvtap and its VF that differ"),
        (replace(PORT, mtu_bytes=1400), "a macvtap and its VF that differ"),
        (replace(PORT, limits=None), "a macvtap and its VF that differ"),
        (replace(PORT, isolated=True), "a macvtap with isolation or public addresses"),
        (replace(PORT, public_addresses=("192.0.2.7",)), "a macvtap with isolation or public addresses"),
        (replace(PORT, addresses=("x",)), "addresses"),
        (replace(PORT, tx_queue_length=-1), "a queue of -1"),
    ],
)
def test_a_macvtap_and_its_vf_are_one_port(port: Port, words: str) -> None:
    for plan in ((*PLAN[:4], replace(CONFIGURE, port=port)), (replace(OF_MACVTAP, port=port), replace(OF_VF, port=OF_VF.before))):
        with pytest.raises(PlanRejectedError, match=words):
            check_plan(plan, AUTHORITY)


@pytest.mark.parametrize(
    ("plan", "words"),
    [
        ((OF_MACVTAP,), "EnsureBridge|no bridge"),
        ((replace(OF_MACVTAP, before=None), OF_VF), "a macvtap that changes without its VF"),
        ((BIND, OF_MACVTAP), "a macvtap that changes without its VF"),
        ((replace(OF_MACVTAP, mac="52:54:00:12:34:57"), OF_VF), "MAC '52:54:00:12:34:57'"),
        ((replace(OF_MACVTAP, before=replace(PORT, vlan=Vlan(8))), OF_VF), "a macvtap and its VF that differ"),
    ],
)
def test_a_macvtap_changes_with_its_vf(plan: Plan, words: str) -> None:
    with pytest.raises(PlanRejectedError, match=words):
        check_plan(plan, AUTHORITY)


def test_a_networks_vlan_is_that_of_its_macvtaps() -> None:
    port = replace(PORT, vlan=Vlan(8))
    plan = (*(replace(one, network="seven") for one in (replace(CLAIM, port=below_macvtap(port)), BIND, CREATE)), NODE)
    with pytest.raises(PlanRejectedError, match="a VF outside its network's VLAN"):
        check_plan(plan, AUTHORITY)


# --- making


class FakeMacvtaps(Macvtaps):
    """Makes macvtaps of no kernel, with an index that no device has.

    Args:
        rtnl: of the maker.
        host: where each step is noted.
        reason: why none can be made.
    """

    INDEX = 2**31 - 7

    def __init__(self, rtnl: RtnlSocket, host: FakeHost, reason: Failure | None = None) -> None:
        super().__init__(rtnl, "")
        self._host, self._reason = host, reason
        self.uplinks: list[Uplink] = []

    def create(self, wanted: Sequence[tuple[CreateMacvtap, Uplink]]) -> list[int | Failure]:
        self.uplinks += [uplink for _, uplink in wanted]
        self._host.steps += ["macvtap" for _ in wanted]
        return [self._reason or self.INDEX for _ in wanted]

    def ensure_node(self, op: EnsureNode, ifindex: int) -> str | Failure:
        self._host.steps.append("node")
        return f"/dev/vifd/{op.ifname}"

    def delete(self, made: Iterable[tuple[str, int]]) -> None:
        self._host.steps += [f"delete {ifname}" for ifname, _ in made]


@pytest.fixture
def rtnl() -> Iterator[RtnlSocket]:
    one = RtnlSocket()
    yield one
    one.close()


def maker(host: FakeHost, macvtaps: Macvtaps, rtnl: RtnlSocket) -> Maker:
    guards = no_guards()
    devices = Devices(macvtaps, Functions(host.open(), FakeNic(host), guards), VdpaDevices("no vDPA here"))
    return Maker(rtnl, guards, Support(LimitsMechanism.POLICE, egress_tbf=False), devices, Publics(NoNatTable()))


def test_it_stands_on_the_netdev_that_sysfs_shows_of_the_vf_and_goes_before_the_vf_does(host: FakeHost, rtnl: RtnlSocket) -> None:
    before, macvtaps = host.snapshot(), FakeMacvtaps(rtnl, host)
    (answer,) = maker(host, macvtaps, rtnl).apply([(PLAN,)], AUTHORITY)
    (uplink,) = macvtaps.uplinks
    assert (uplink.name, uplink.mac, uplink.mtu_bytes, uplink.up) == (names.device_name(Kind.PCI, ID), MAC, 1500, True)
    assert isinstance(answer, Refusal)  # no kernel has this device
    assert answer.operation == "ConfigurePort"
    assert [step for step in host.steps if step in ("drivers_probe", "macvtap", "node", f"delete {NAME}", "unmark")] == [
        "drivers_probe",
        "macvtap",
        "node",
        f"delete {NAME}",
        "drivers_probe",
        "unmark",
    ]
    assert host.snapshot() == before


def test_a_vf_whose_macvtap_cant_be_made_is_given_back(host: FakeHost, rtnl: RtnlSocket) -> None:
    before, reason = host.snapshot(), Failure(ops.NOT_READY, 22, "this kernel has no macvtap")
    (answer,) = maker(host, FakeMacvtaps(rtnl, host, reason), rtnl).apply([(PLAN,)], AUTHORITY)
    assert answer == Refusal(0, "CreateMacvtap", NAME, 22, "this kernel has no macvtap", ops.NOT_READY)
    assert host.snapshot() == before


def test_where_no_node_can_be_made_no_vf_is_touched(host: FakeHost, rtnl: RtnlSocket) -> None:
    (answer,) = maker(host, Macvtaps(rtnl, "it takes CAP_MKNOD"), rtnl).apply([(PLAN,)], AUTHORITY)
    assert answer == Refusal(0, "ClaimFunction", VF, 0, "it takes CAP_MKNOD", ops.NOT_READY)
    assert host.steps == []


def test_a_netdev_that_is_another_namespaces_is_none(host: FakeHost, rtnl: RtnlSocket) -> None:
    one = Functions(host.open(), FakeNic(host), no_guards())
    assert one.claim(CLAIM, AUTHORITY["net"]) == 1500
    one.bind(BIND, CLAIM.port)
    found = one.find_uplink(BIND)
    assert isinstance(found, Uplink)
    host.netdevs[found.name] = host.netdevs[found.name]._replace(ifindex=found.ifindex + 1)
    assert isinstance(one.find_uplink(BIND), Failure)
    assert isinstance(one.find_uplink(replace(BIND, endpoint_id=OTHER)), Failure)


def test_a_change_that_its_macvtap_cant_follow_is_undone_at_the_vf(host: FakeHost, rtnl: RtnlSocket) -> None:
    one = Functions(host.open(), FakeNic(host), no_guards())
    one.claim(CLAIM, AUTHORITY["net"])
    one.bind(BIND, CLAIM.port)
    before = host.snapshot()
    (answer,) = maker(host, FakeMacvtaps(rtnl, host), rtnl).apply([(CHANGE,)], AUTHORITY)
    assert isinstance(answer, Refusal)
    assert (answer.operation, answer.cause) == ("ChangePort", ops.GONE)
    assert "set VLAN" in host.steps
    assert host.snapshot() == before
