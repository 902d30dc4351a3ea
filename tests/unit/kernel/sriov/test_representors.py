"""VFs whose PF's switch is in mode switchdev: what is done with their representors, in which order, and what is left."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from msgspec.structs import replace

from tests.support.messages import ID, endpoint_id
from tests.support.sriov_host import PFS, FakeHost, FakeNic, Killed, NotingGuards, vf_address
from vifd.kernel import names, ops
from vifd.kernel.authority import BridgeGrant, FunctionGrant
from vifd.kernel.macvtap import Failure
from vifd.kernel.ops import BindFunction, ChangeFunction, ClaimFunction, FunctionMade
from vifd.kernel.sriov.comparing import FunctionChecker
from vifd.kernel.sriov.functions import Functions, Representor
from vifd.kernel.sriov.settings import NO_MAC, Setting, VfSettings
from vifd.model import DriftKind, Limits, PciHostDriver, Port, RateLimit, Vlan

GRANT = FunctionGrant(("eth0",), bridge=BridgeGrant("br-fast"))
VF, OTHER = vf_address("eth0", 0), vf_address("eth0", 1)
MAC = "52:54:00:12:34:56"
PORT = Port(MAC, vlan=Vlan(7), limits=Limits(RateLimit(1_000_000), RateLimit(1_000_000)), guard_enabled=True)
CLAIM = ClaimFunction(ID, "net", VF, PORT)
BIND = BindFunction(ID, "net", VF, PciHostDriver.VFIO, 1000, None)
MARK = names.mark(ID)


@pytest.fixture
def host(host: FakeHost) -> FakeHost:
    """A host whose first PF's switch is in mode switchdev."""
    assert host.set_switchdev("eth0") == ["eth0r0", "eth0r1"]
    return host


def functions(host: FakeHost) -> Functions:
    return Functions(host.open(), FakeNic(host), NotingGuards(host))


def make(host: FakeHost, claim: ClaimFunction = CLAIM, grant: FunctionGrant = GRANT) -> FunctionMade | Failure:
    own = functions(host)
    claimed = own.claim(claim, grant)
    return claimed if isinstance(claimed, Failure) else own.bind(replace(BIND, address=claim.address), claim.port)


def change(host: FakeHost, **fields: object) -> None:
    host.netdevs["eth0r0"] = host.netdevs["eth0r0"]._replace(**fields)


def refused(result: object, cause: str) -> str:
    assert isinstance(result, Failure), result
    assert result.cause == cause, result
    return result.message


def test_a_representor_is_marked_before_anything_is_touched_and_named_in_the_answer(host: FakeHost) -> None:
    made = make(host)
    assert isinstance(made, FunctionMade)
    assert made.representor == "eth0r0"
    assert host.netdevs["eth0r0"].alias == MARK
    assert host.steps[:4] == ["mark", "mark representor", "unbind", "set MAC"]


def test_of_a_vf_its_pf_is_told_the_mac_alone(host: FakeHost) -> None:
    host.settings["eth0", 0] = before = VfSettings(spoof_check=False)
    host.refused = {setting: 95 for setting in Setting if setting is not Setting.MAC}
    assert isinstance(make(host), FunctionMade)
    assert host.settings["eth0", 0] == replace(before, mac=MAC)
    assert functions(host).release(ID, VF) is None
    assert host.settings["eth0", 0] == before


def test_it_is_given_back_first_and_as_it_was(host: FakeHost) -> None:
    change(host, alias="port of rack 7", mtu_bytes=9000)
    before = host.snapshot()
    make(host)
    change(host, master=7, up=True, mtu_bytes=1400)
    host.steps = []
    assert functions(host).release(ID, VF) is None
    assert host.steps[:4] == ["detach", "forget guard of eth0r0", "restore", "take back"]
    assert host.steps[-1] == "unmark"
    assert host.snapshot() == before


def test_what_is_no_endpoints_any_more_is_left_alone(host: FakeHost) -> None:
    make(host)
    change(host, alias="somebody's", master=9, up=True)
    kept = host.netdevs["eth0r0"]
    assert functions(host).release(ID, VF) is None
    assert host.netdevs["eth0r0"] == kept


def test_one_that_cant_be_given_back_keeps_its_vf_out_of_use(host: FakeHost) -> None:
    before = host.snapshot()
    make(host)
    host.refused_steps = {"detach"}
    assert "representor eth0r0 can't be taken off its bridge" in refused(functions(host).release(ID, VF), ops.KERNEL)
    host.refused_steps = {"restore"}
    assert "representor eth0r0 can't be set back" in refused(functions(host).release(ID, VF), ops.KERNEL)
    host.refused_steps = set()
    assert functions(host).release(ID, VF) is None
    assert host.snapshot() == before


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"up": True}, "its representor eth0r0 is up"),
        ({"master": 7}, "its representor eth0r0 belongs to a bridge"),
        ({"alias": names.mark(endpoint_id(9))}, f"its representor eth0r0 is marked for endpoint {endpoint_id(9)}"),
    ],
)
def test_one_that_somebody_uses_costs_the_vf(host: FakeHost, fields: dict[str, object], words: str) -> None:
    change(host, **fields)
    before = host.snapshot()
    assert refused(make(host), ops.TAKEN).startswith(f"VF {VF} is taken: {words}")
    assert (host.steps, host.snapshot()) == ([], before)
    assert isinstance(make(host, replace(CLAIM, address=OTHER)), FunctionMade)


def test_a_network_has_a_bridge_where_the_switch_is_the_hosts_and_nowhere_else(host: FakeHost) -> None:
    before = host.snapshot()
    assert "name the bridge that the representors of its VFs go to" in refused(
        make(host, grant=FunctionGrant(("eth0",))), ops.NOT_READY
    )
    elsewhere = replace(CLAIM, address=vf_address("eth1", 0))
    words = refused(make(host, elsewhere, replace(GRANT, pfs=("eth1",))), ops.NOT_READY)
    assert words.endswith(f"devlink dev eswitch set pci/{PFS['eth1']} mode switchdev")
    assert (host.steps, host.snapshot()) == ([], before)


def test_the_representor_is_found_for_its_endpoint_alone(host: FakeHost) -> None:
    make(host)
    own = functions(host)
    assert own.find_representor(ID, VF) == Representor(host.netdevs["eth0r0"].ifindex, "eth0r0")
    assert "is gone" in refused(own.find_representor(endpoint_id(1), VF), ops.GONE)
    assert "is gone" in refused(own.find_representor(ID, OTHER), ops.GONE)


def test_one_that_is_made_anew_is_marked_if_nobody_has_it(host: FakeHost) -> None:
    make(host)
    change(host, alias="", up=True)
    assert "its representor eth0r0 is up" in refused(functions(host).find_representor(ID, VF), ops.NOT_READY)
    change(host, up=False)
    assert isinstance(functions(host).find_representor(ID, VF), Representor)
    assert host.netdevs["eth0r0"].alias == MARK


def test_one_that_went_away_is_told(host: FakeHost) -> None:
    make(host)
    (host.sysfs.device(PFS["eth0"]) / "net/eth0r0/phys_port_name").write_text("pf0vf7\n")
    assert "has no representor" in refused(functions(host).find_representor(ID, VF), ops.NOT_READY)
    assert functions(host).release(ID, VF) is None


def test_a_vf_of_a_legacy_switch_has_none(host: FakeHost) -> None:
    legacy = replace(CLAIM, address=vf_address("eth1", 0), port=Port(MAC))
    made = make(host, legacy, FunctionGrant(("eth1",)))
    assert isinstance(made, FunctionMade)
    assert made.representor == ""
    refused(functions(host).find_representor(ID, legacy.address), ops.REJECTED)


def test_a_change_is_told_to_the_pf_as_far_as_it_is_its_own(host: FakeHost) -> None:
    make(host)
    wanted = replace(PORT, mac="52:54:00:00:00:02", vlan=Vlan(8))
    assert functions(host).change(ChangeFunction(ID, "net", VF, PORT, wanted)) == 1500
    assert host.settings["eth0", 0] == VfSettings("52:54:00:00:00:02")


def test_what_the_representor_keeps_is_no_drift_of_the_vf_but_its_name_is(host: FakeHost) -> None:
    make(host)
    checker = FunctionChecker(host.open(), FakeNic(host))
    assert checker.compare(CLAIM, BIND) == []
    folder = host.sysfs.device(PFS["eth0"]) / "net"
    (folder / "eth0r0").rename(folder / "other")
    (drift,) = checker.compare(CLAIM, BIND)
    assert (drift.kind, drift.expected, drift.actual) == (DriftKind.NAME, "eth0r0", "other")


@pytest.mark.parametrize("ending", [False, True])
def test_who_is_killed_after_any_step_leaves_what_a_release_makes_as_new(host: FakeHost, ending: bool) -> None:
    before = host.snapshot()

    def release(one: FakeHost) -> None:
        assert functions(one).release(ID, VF) is None

    begin: Callable[[FakeHost], object] = release if ending else make
    make(host)
    if ending:
        host.steps = []
    total = len(host.steps)
    release(host)
    total = len(host.steps) if ending else total
    for step in range(1, total + 1):
        if ending:
            make(host)
        host.steps, host.die_at = [], step
        with pytest.raises(Killed):
            begin(host)
        host.die_at = 0
        release(host)
        assert host.snapshot() == before, f"after {host.steps[:step]}"
    assert host.settings["eth0", 0].mac == NO_MAC
