"""VFs of one VM: all or none; and what becomes of one that can't be given back then."""

from __future__ import annotations

import errno
from collections.abc import Iterator

import pytest
from msgspec.structs import replace

from tests.support.messages import endpoint_id
from tests.support.sriov_host import FakeHost, FakeNic, no_guards, vf_address
from vifd.kernel import ops
from vifd.kernel.authority import FunctionGrant
from vifd.kernel.direct import Macvtaps
from vifd.kernel.limits import Support
from vifd.kernel.making import Devices, Maker
from vifd.kernel.netlink import RtnlSocket
from vifd.kernel.nft.nat import NoNatTable
from vifd.kernel.ops import BindFunction, ChangeFunction, ClaimFunction, Made, Plan, Refusal
from vifd.kernel.publics import Publics
from vifd.kernel.sriov.functions import Functions
from vifd.kernel.sriov.settings import Setting, VfSettings
from vifd.kernel.vdpa.devices import VdpaDevices
from vifd.model import LimitsMechanism, PciHostDriver, Port, Vlan

AUTHORITY = {"net": FunctionGrant(("eth0", "eth1"))}
FIRST, SECOND, THIRD = vf_address("eth0", 0), vf_address("eth0", 1), vf_address("eth1", 0)


@pytest.fixture
def maker(host: FakeHost) -> Iterator[Maker]:
    """What carries plans out, on a kernel that has nothing but VFs."""
    rtnl, guards = RtnlSocket(), no_guards()
    devices = Devices(Macvtaps(rtnl, "no nodes here"), Functions(host.open(), FakeNic(host), guards), VdpaDevices("no vDPA here"))
    yield Maker(rtnl, guards, Support(LimitsMechanism.POLICE, egress_tbf=False), devices, Publics(NoNatTable()))
    rtnl.close()


def plan(number: int, address: str, **port: object) -> Plan:
    wanted = Port(f"52:54:00:00:00:{number:02x}", **port)
    claim = ClaimFunction(endpoint_id(number), "net", address, wanted)
    return (claim, BindFunction(endpoint_id(number), "net", address, PciHostDriver.VFIO, 1000, None))


def test_vfs_of_one_group_are_made_together(host: FakeHost, maker: Maker) -> None:
    (made,) = maker.apply([(plan(1, FIRST), plan(2, THIRD, mtu_bytes=1400))], AUTHORITY)
    assert [(one.mtu_bytes, one.function.address, one.function.vfio_path) for one in made] == [
        (1500, FIRST, "/dev/vfio/10"),
        (1400, THIRD, "/dev/vfio/12"),
    ]


def test_if_one_fails_none_is_made_and_what_follows_is_not_begun(host: FakeHost, maker: Maker) -> None:
    before = host.snapshot()
    group = (plan(1, FIRST), plan(2, SECOND, mtu_bytes=9000), plan(3, THIRD))
    (answer,) = maker.apply([group], AUTHORITY)
    assert isinstance(answer, Refusal)
    assert (answer.plan_index, answer.operation, answer.device, answer.cause) == (1, "ClaimFunction", SECOND, ops.NOT_READY)
    assert host.snapshot() == before
    assert host.steps.count("mark") == 1


def test_a_group_that_fails_costs_no_other_its_vfs(host: FakeHost, maker: Maker) -> None:
    failed, made = maker.apply([(plan(1, FIRST, mtu_bytes=9000),), (plan(2, FIRST),)], AUTHORITY)
    assert isinstance(failed, Refusal)
    assert isinstance(made, list)


def test_a_vf_is_taken_by_one_alone(host: FakeHost, maker: Maker) -> None:
    made, failed = maker.apply([(plan(1, FIRST),), (plan(2, FIRST),)], AUTHORITY)
    assert isinstance(made, list)
    assert isinstance(failed, Refusal)
    assert (failed.cause, failed.device) == (ops.TAKEN, FIRST)


def test_what_cant_be_given_back_is_told_and_tried_again_for_who_wants_it(host: FakeHost, maker: Maker) -> None:
    host.failing = {"give": OSError(errno.EIO, "no"), "reset": OSError(errno.EIO, "no")}
    (answer,) = maker.apply([(plan(1, FIRST),)], AUTHORITY)
    assert isinstance(answer, Refusal)
    assert answer.message.startswith(f"VF {FIRST}: Input/output error; VF {FIRST} can't be made as new")
    (answer,) = maker.apply([(plan(2, FIRST),)], AUTHORITY)
    assert isinstance(answer, Refusal)
    assert "can't be made as new" in answer.message
    host.failing.clear()
    (made,) = maker.apply([(plan(2, FIRST),)], AUTHORITY)
    assert isinstance(made, list)


def test_a_change_is_made_and_a_failed_one_undone(host: FakeHost, maker: Maker) -> None:
    maker.apply([(plan(1, FIRST),)], AUTHORITY)
    before = Port("52:54:00:00:00:01")
    change = ChangeFunction(endpoint_id(1), "net", FIRST, before, replace(before, vlan=Vlan(7)))
    assert maker.apply([((change,),)], AUTHORITY) == [[Made(0, 1500)]]
    assert host.settings["eth0", 0].vid == 7
    host.ignored.add(Setting.TRUST)
    (answer,) = maker.apply([((replace(change, port=replace(before, trusted=True)),),)], AUTHORITY)
    assert isinstance(answer, Refusal)
    assert answer.cause == ops.NOT_READY
    assert host.settings["eth0", 0].vid == 0


def test_repairs_of_one_call_bind_first_and_then_change(host: FakeHost, maker: Maker) -> None:
    claim, bind = plan(1, FIRST)
    maker.apply([((claim, bind),)], AUTHORITY)
    host.unbind(FIRST)
    host.settings["eth0", 0] = VfSettings()
    host.steps = []
    change = ChangeFunction(endpoint_id(1), "net", FIRST, None, claim.port)
    _, made = maker.apply([((change,),), ((bind,),)], AUTHORITY)
    assert made[0].function.vfio_path == "/dev/vfio/10"
    assert host.node_owners[10] == (1000, 0o600)
    assert host.steps[-2:] == ["give", "set MAC"]
