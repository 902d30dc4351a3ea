"""What the helper's check says of plans with VFs."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from tests.support.messages import ID, endpoint_id
from tests.support.plans import configure
from tests.support.sriov_host import vf_address
from vifd.kernel import names
from vifd.kernel.authority import BridgeGrant, FunctionGrant, PlanRejectedError, UplinkGrant, check_plan
from vifd.kernel.ops import BindFunction, ChangeFunction, ClaimFunction, CreateTap, EnsureBridge, Plan
from vifd.model import Kind, Limits, PciHostDriver, Port, RateLimit, Vlan, VlanProtocol

VF = vf_address("eth0", 0)
AUTHORITY = {
    "net": FunctionGrant(("eth0",)),
    "seven": FunctionGrant(("eth0",), vlan=7),
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
    assert rejected(EnsureBridge("blue"), CLAIM) == "a VF with what its network has not"


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
