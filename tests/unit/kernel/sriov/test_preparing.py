"""PFs got ready for networks, and marks that are left."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.support.messages import ID
from tests.support.sriov_host import PFS, FakeHost, FakeNic, vf_address
from vifd.kernel.authority import BridgeGrant, FunctionGrant
from vifd.kernel.sriov.marks import Mark
from vifd.kernel.sriov.preparing import FunctionPreparer
from vifd.kernel.sriov.settings import VfSettings

VF = vf_address("eth0", 0)
BOTH = FunctionGrant(("eth0", "eth1"))
MARK = Mark(ID, PFS["eth0"], "igbvf", "", VfSettings())


@pytest.fixture
def empty(tmp_path: Path) -> Iterator[FakeHost]:
    """Two PFs without VFs."""
    with closing(FakeHost(tmp_path, vfs=0)) as one:
        yield one


def prepare(host: FakeHost, grant: FunctionGrant) -> str:
    preparer = FunctionPreparer(host.open(), FakeNic(host))
    problem = preparer.prepare("net", grant)
    assert preparer.remarks == {}
    return problem


def remark(host: FakeHost, grant: FunctionGrant) -> str:
    """Prepare what can be used though not all is as it was configured; give what isn't."""
    preparer = FunctionPreparer(host.open(), FakeNic(host))
    assert preparer.prepare("net", grant) == ""
    return preparer.remarks["net"]


def count(host: FakeHost, pf: str) -> str:
    return (host.sysfs.device(PFS[pf]) / "sriov_numvfs").read_text().strip()


def test_a_pf_that_is_ready_is_left_alone(host: FakeHost) -> None:
    assert (prepare(host, BOTH), prepare(host, FunctionGrant(("eth0",), vfs=2)), host.steps) == ("", "", [])


def test_vfs_are_made_where_there_are_none(empty: FakeHost) -> None:
    assert prepare(empty, FunctionGrant(("eth0", PFS["eth1"]), vfs=3)) == ""
    assert (count(empty, "eth0"), count(empty, "eth1"), empty.steps) == ("3", "3", ["sriov_numvfs", "sriov_numvfs"])


def test_another_number_of_vfs_is_told_and_none_is_destroyed(host: FakeHost) -> None:
    words = remark(host, FunctionGrant(("eth0",), vfs=3))
    how = f"release its endpoints and write 0 to /sys/bus/pci/devices/{PFS['eth0']}/sriov_numvfs, or set vfs = 2"
    assert words == f"PF eth0 has 2 VFs, and vfs = 3 says otherwise: {how}"
    assert (count(host, "eth0"), host.steps) == ("2", [])


def test_a_pf_without_vfs_is_told(empty: FakeHost) -> None:
    assert prepare(empty, FunctionGrant(("eth0",))) == "PF eth0 has no VFs: say how many it is to have with vfs (7 at most)"
    assert empty.steps == []


def test_more_vfs_than_a_pf_can_have_are_told(empty: FakeHost) -> None:
    assert prepare(empty, FunctionGrant(("eth0",), vfs=8)) == "PF eth0 can have 7 VFs at most; vfs = 8 asks for more"
    assert empty.steps == []


def test_a_pf_that_makes_no_vfs_is_told(empty: FakeHost) -> None:
    empty.failing["sriov_numvfs"] = OSError(errno.ENOSPC, "no")
    assert prepare(empty, FunctionGrant(("eth0",), vfs=7)).startswith("PF eth0 makes no 7 VFs: No space left on device")


def test_a_pf_that_is_down_is_set_up(host: FakeHost) -> None:
    host.netdevs["eth0"] = host.netdevs["eth0"]._replace(up=False)
    assert prepare(host, BOTH) == ""
    assert (host.netdevs["eth0"].up, host.steps) == (True, ["up"])


def test_a_pf_is_up_before_it_has_vfs(empty: FakeHost) -> None:
    empty.netdevs["eth0"] = empty.netdevs["eth0"]._replace(up=False)
    assert prepare(empty, FunctionGrant(("eth0",), vfs=3)) == ""
    assert empty.steps == ["up", "sriov_numvfs"]


def test_an_mtu_above_a_pfs_is_told(host: FakeHost) -> None:
    assert prepare(host, FunctionGrant(("eth0",), mtu_bytes=9000)) == "MTU 9000 of network net is more than PF eth0's 1500"


def test_each_pf_that_cant_be_used_is_told(host: FakeHost) -> None:
    host.netdevs.pop("eth1")
    words = remark(host, FunctionGrant(("eth7", VF, "eth1", "eth0")))
    assert prepare(host, FunctionGrant(("eth7", VF, "eth1"))) == words
    assert "PF eth7 isn't there" in words
    assert f"{VF} is a VF, of PF {PFS['eth0']}; name the PF" in words
    assert "PF eth1 has no netdev here: it has no driver, or it is in another network namespace" in words
    assert "eth0 " not in words


def test_what_is_as_it_was_configured_again_is_told_no_more(host: FakeHost) -> None:
    preparer = FunctionPreparer(host.open(), FakeNic(host))
    for vfs in (3, 2):
        assert preparer.prepare("net", FunctionGrant(("eth0",), vfs=vfs)) == ""
    assert preparer.remarks == {}


def test_without_anything_to_work_with_the_reason_is_told() -> None:
    preparer = FunctionPreparer("it takes a restart", FakeNic(None))
    assert (preparer.prepare("net", BOTH), preparer.find_marked({"net": BOTH})) == ("it takes a restart", [])
    preparer.discard_stale_marks()


# --- marks


def test_marked_vfs_of_configured_networks_are_told(host: FakeHost) -> None:
    marks, preparer = host.open().marks, FunctionPreparer(host.open(), FakeNic(host))
    marks.create(VF, MARK)
    marks.create(vf_address("eth1", 0), MARK)
    (device,) = preparer.find_marked({"net": FunctionGrant(("eth0",)), "blue": BridgeGrant("br0")})
    assert (device.ifname, device.kind, device.endpoint_id, device.carrier) == (VF, "pci", ID, False)
    assert preparer.find_marked({"blue": BridgeGrant("br0")}) == []


def test_marks_of_vfs_that_are_gone_are_forgotten(host: FakeHost) -> None:
    marks = host.open().marks
    marks.create(VF, MARK)
    marks.create("0000:09:10.0", MARK)
    FunctionPreparer(host.open(), FakeNic(host)).discard_stale_marks()
    assert marks.marked() == [VF]
