"""What the helper's check says of plans with VFs."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from tests.support.messages import ID, endpoint_id
from tests.support.plans import configure
from tests.support.sriov_host import vf_address
from vifd.kernel import names
from vifd.kernel.authority import BridgeGrant, FunctionGrant, PlanRejectedError, UplinkGrant, check_plan
from vifd.kernel.ops import BindFunction, ChangeFunction, ChangePort, ClaimFunction, ConfigurePort, CreateTap, EnsureBridge, Plan
from vifd.model import Kind, Limits, PciHostDriver, Port, RateLimit, Vlan, VlanProtocol

VF = vf_address("eth0", 0)
AUTHORITY = {
    "net": FunctionGrant(("eth0",)),
    "seven": FunctionGrant(("eth0",), vlan=7),
    "wide": FunctionGrant(("eth0",), bridge=BridgeGrant("br-wide")),
    "apart": FunctionGrant(("eth0",), bridge=BridgeGrant("br-apart", "eth9", vlan=9)),
    "blue": BridgeGrant("br-blue"),
    "lan": UplinkGrant("eth1"),
}
PORT = Port("52:54:00:12:34:56")
LIMITS = Limits(from_vm=RateLimit(rate_bps=2_000_000, min_rate_bps=1_000_000))
FULL = replace(PORT, vlan=Vlan(7, qos=7, protocol=VlanProtocol.DOT1AD), limits=LIMITS, link_up=False, trusted=True)
CLAIM = ClaimFunction(ID, "net", VF, PORT)
BIND = BindFunction(ID, "net", VF, PciHostDriver.VFIO, 1000, None)
CHANGE = ChangeFunction(ID, "net", VF, PORT, FULL)


def rejected(*plan: object) -> str:
    with pytest.raises(PlanRejectedError) as caught:
        check_plan(plan, AUTHORITY)
    return str(caught.value)


@pytest.mark.parametrize(
    "plan",
    [
        (CLAIM, BIND),
        (replace(CLAIM, port=FULL), replace(BIND, host_driver=PciHostDriver.KERNEL)),
        (replace(CLAIM, network="seven", port=FULL),),
        (CHANGE,),
        (replace(CHANGE, before=None),),
        (BIND,),
        (BIND, CHANGE),
    ],
)
def test_what_a_driver_would_plan_passes(plan: Plan) -> None:
    check_plan(plan, AUTHORITY)


@pytest.mark.parametrize("network", ["blue", "lan", "green", ""])
def test_a_network_without_pfs_has_no_vfs(network: str) -> None:
    assert rejected(replace(CLAIM, network=network)) == f"the configuration has no PF for network {network!r}"


def test_a_network_of_vfs_has_no_other_ports() -> None:
    tap = CreateTap(ID, names.device_name(Kind.TAP, ID), "fe:54:00:12:34:56", 1000, None, 1, vnet_hdr=True)
    assert "no bridge for network" in rejected(EnsureBridge("net"))
    assert "no bridge for network" in rejected(tap, configure(ID, "net"))


@pytest.mark.parametrize(
    "other",
    [replace(BIND, address=vf_address("eth0", 1)), replace(BIND, endpoint_id=endpoint_id(1)), replace(BIND, network="seven")],
)
def test_a_plan_has_one_vf_of_one_endpoint_and_network(other: BindFunction) -> None:
    assert rejected(CLAIM, other) == "two devices in one plan"


def test_a_plan_has_a_vf_or_another_device() -> None:
    assert rejected(EnsureBridge("blue"), CLAIM) == "two devices in one plan"


def test_what_is_taken_needs_no_change() -> None:
    assert rejected(CLAIM, CHANGE) == "a VF that this plan takes needs no change"


def test_ids_and_addresses() -> None:
    assert rejected(replace(CLAIM, endpoint_id="x")) == "endpoint id 'x'"
    assert rejected(replace(CLAIM, address="../x")) == "PCI address '../x'"
    assert rejected(replace(BIND, owner_uid=-1)) == "uid -1"
    assert rejected(replace(BIND, owner_gid=2**32 - 1)) == f"gid {2**32 - 1}"


@pytest.mark.parametrize(
    ("port", "words"),
    [
        (replace(PORT, mac="00:00:00:00:00:00"), "MAC '00:00:00:00:00:00'"),
        (replace(PORT, mac="01:00:00:00:00:00"), "the VM's MAC '01:00:00:00:00:00'"),
        (replace(PORT, guard_enabled=True), "a guard at a VF"),
        (replace(PORT, isolated=True), "a guard at a VF"),
        (replace(PORT, addresses=("192.0.2.1",)), "a guard at a VF"),
        (replace(PORT, tx_queue_length=1), "a VF with a queue length"),
        (replace(PORT, vlan=Vlan(trunk_vids=(7,))), "a VF that isn't in one VLAN"),
        (replace(PORT, vlan=Vlan(7, native_vid=7)), "a VF that isn't in one VLAN"),
        (replace(PORT, vlan=Vlan(4095)), "a VLAN that is not 1 to 4094"),
        (replace(PORT, vlan=Vlan(7, qos=8)), "priority 8"),
        (replace(PORT, limits=Limits(to_vm=RateLimit(1_000_000))), "a limit that no VF has"),
        (replace(PORT, limits=Limits(from_vm=RateLimit(1_000_000, 1))), "a limit that no VF has"),
        (replace(PORT, limits=Limits(from_vm=RateLimit(1_500_000))), "a rate that isn't whole Mbit/s"),
        (replace(PORT, limits=Limits(from_vm=RateLimit(1_000_000, min_rate_bps=2_000_000))), "a least rate above the most"),
    ],
)
def test_what_no_vf_can_be_is_rejected_also_as_what_it_was(port: Port, words: str) -> None:
    assert rejected(replace(CLAIM, port=port)) == words
    assert rejected(replace(CHANGE, port=port)) == words
    assert rejected(replace(CHANGE, before=port)) == words


@pytest.mark.parametrize("port", [PORT, replace(PORT, vlan=Vlan(8))])
def test_a_networks_vlan_is_that_of_its_vfs(port: Port) -> None:
    assert rejected(replace(CLAIM, network="seven", port=port)) == "a VF outside its network's VLAN"


# --- with a representor

GUARDED = Port(
    PORT.mac,
    guard_enabled=True,
    isolated=True,
    addresses=("192.0.2.7",),
    vlan=Vlan(trunk_vids=(7, 8)),
    limits=Limits(from_vm=RateLimit(rate_pps=1), to_vm=RateLimit(rate_bps=1)),
)
ENSURE = EnsureBridge("wide")
TAKE, TIE = ClaimFunction(ID, "wide", VF, GUARDED), replace(BIND, network="wide")
PUT = ConfigurePort(ID, "", "wide", GUARDED)
MOVE, TELL = ChangePort(ID, "", "wide", "", PORT, GUARDED), ChangeFunction(ID, "wide", VF, PORT, GUARDED)


@pytest.mark.parametrize(
    "plan",
    [(ENSURE, TAKE, TIE, PUT), (ENSURE, MOVE, TELL), (TIE,), (ENSURE, replace(MOVE, before=None), replace(TELL, before=None))],
)
def test_a_vf_of_a_network_with_a_bridge_has_what_a_port_has(plan: Plan) -> None:
    check_plan(plan, AUTHORITY)


@pytest.mark.parametrize(
    "plan",
    [
        (TAKE, TIE),
        (ENSURE, TAKE, TIE),
        (TAKE, TIE, PUT),
        (TELL,),
        (MOVE, TELL),
        (ENSURE, TIE),
        (ENSURE, TAKE, TIE, replace(PUT, ifname="eth1")),
        (ENSURE, TAKE, TIE, replace(PUT, ifname=names.device_name(Kind.TAP, ID))),
        (ENSURE, TAKE, TIE, replace(PUT, port=replace(GUARDED, guard_enabled=False))),
        (ENSURE, TAKE, TIE, replace(PUT, endpoint_id=endpoint_id(1))),
        (ENSURE, TAKE, TIE, replace(PUT, network="blue")),
        (replace(ENSURE, network="blue"), TAKE, TIE, PUT),
        (ENSURE, replace(MOVE, ifname="eth1"), TELL),
        (ENSURE, replace(MOVE, mac="fe:54:00:12:34:56"), TELL),
        (ENSURE, replace(MOVE, before=GUARDED), TELL),
        (ENSURE, replace(MOVE, port=PORT), TELL),
        (ENSURE, TAKE, TIE, PUT, MOVE),
        (ENSURE, TAKE, CreateTap(ID, names.device_name(Kind.TAP, ID), "fe:54:00:12:34:56", 1000, None, 1, vnet_hdr=True), PUT),
    ],
)
def test_it_has_nothing_else(plan: Plan) -> None:
    assert rejected(*plan) in ("a VF with something else than its representor", "a VF with what its network has not")


@pytest.mark.parametrize(
    ("network", "port", "words"),
    [
        ("wide", replace(GUARDED, mac="01:00:5e:00:00:01"), "the VM's MAC"),
        ("wide", replace(GUARDED, public_addresses=("198.51.100.7",)), "a public address"),
        ("wide", replace(GUARDED, vlan=Vlan(4095)), "a VLAN that is not 1 to 4094"),
        ("apart", replace(GUARDED, vlan=Vlan(7)), "on a bridge that is one"),
    ],
)
def test_its_port_is_checked_as_every_other(network: str, port: Port, words: str) -> None:
    take, put = replace(TAKE, network=network, port=port), replace(PUT, network=network, port=port)
    assert words in rejected(EnsureBridge(network), take, replace(TIE, network=network), put)


@pytest.mark.parametrize("port", [replace(PUT, ifname=""), replace(MOVE, network="blue"), replace(PUT, network="blue")])
def test_no_plan_without_a_vf_has_a_representor(port: ConfigurePort | ChangePort) -> None:
    assert rejected(EnsureBridge(port.network), port)
