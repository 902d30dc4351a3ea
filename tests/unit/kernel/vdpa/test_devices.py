"""vDPA devices as the helper makes and deletes them, on a made-up host."""

from __future__ import annotations

import errno
import shutil

import msgspec
import pytest

from tests.support.messages import ID, endpoint_id
from tests.support.sriov_host import Killed
from tests.support.vdpa_host import ELSEWHERE, FIRST, NETNS, SECOND, FakeVdpaHost
from vifd.kernel import names, ops
from vifd.kernel.authority import VdpaGrant
from vifd.kernel.macvtap import Failure
from vifd.kernel.ops import BindVdpa, CreateVdpa
from vifd.kernel.vdpa.devices import VdpaDevices
from vifd.kernel.vdpa.inventory import BUS_DRIVER
from vifd.kernel.vdpa.marks import Mark
from vifd.kernel.vdpa.netlink import NetConfig
from vifd.model import DriftKind, Kind, Port

GRANT = VdpaGrant((FIRST, SECOND))
NAME, MAC, ALICE = names.device_name(Kind.VDPA, ID), "52:54:00:12:34:56", 1000
CREATE = CreateVdpa(ID, NAME, "net", names.place(FIRST, 0), Port(MAC, mtu_bytes=1400), 1)
BIND = BindVdpa(ID, NAME, "net", ALICE)


def devices(host: FakeVdpaHost) -> VdpaDevices:
    """Give what a helper that begins has."""
    return VdpaDevices(host.prepared())


def made(host: FakeVdpaHost) -> VdpaDevices:
    """Make the endpoint's device."""
    one = devices(host)
    assert one.create(CREATE, GRANT) == 1400
    assert str(one.bind(BIND)).startswith("/dev/vhost-vdpa-")
    return one


def failure(result: object) -> Failure:
    assert isinstance(result, Failure)
    return result


def test_a_device_is_marked_then_made_then_given(host: FakeVdpaHost) -> None:
    made(host)
    assert host.steps == ["mark", "add", f"give to {ALICE}"]
    assert host.devices == {NAME: (FIRST, NetConfig(MAC, 1400))}
    assert host.owners == {NAME: (ALICE, 0o600)}


def test_without_an_mtu_it_has_what_the_driver_gives(host: FakeVdpaHost) -> None:
    assert devices(host).create(msgspec.structs.replace(CREATE, port=Port(MAC)), GRANT) == 1500


def test_a_device_that_another_driver_takes_is_bound_to_vhost_vdpa(host: FakeVdpaHost) -> None:
    host.binds_to = "virtio_vdpa"
    made(host)
    assert host.steps == ["mark", "add", "bind", f"give to {ALICE}"]


def test_what_cant_be_bound_says_what_has_it(host: FakeVdpaHost) -> None:
    host.binds_to, host.failing["bind"] = "virtio_vdpa", OSError(errno.EROFS, "read-only")
    one = devices(host)
    one.create(CREATE, GRANT)
    refused = failure(one.bind(BIND))
    assert refused.cause == ops.NOT_READY
    assert "bound to virtio_vdpa and can't be bound to vhost_vdpa" in refused.message
    assert "systemd/vdpa.conf" in refused.message


def test_release_takes_the_node_back_first_and_unmarks_last(host: FakeVdpaHost) -> None:
    one = made(host)
    host.steps.clear()
    assert one.release(ID, NAME) is None
    assert host.steps == ["give to 0", "delete", "unmark"]
    assert one.release(ID, NAME) is None
    assert (host.devices, host.marked()) == ({}, [])


def test_what_somebody_has_open_is_not_deleted(host: FakeVdpaHost) -> None:
    one = made(host)
    host.open.add(NAME)
    refused = failure(one.release(ID, NAME))
    assert (refused.cause, refused.errno) == (ops.KERNEL, errno.EBUSY)
    assert f"a program has vDPA device {NAME} open still" in refused.message
    assert (list(host.devices), host.marked(), host.owners[NAME]) == ([NAME], [NAME], (0, 0o600))
    host.open.clear()
    assert one.release(ID, NAME) is None
    assert host.snapshot() == ([], {}, {}, {})


@pytest.mark.parametrize("other", [endpoint_id(7), "", "../x"])
def test_a_release_of_another_endpoint_touches_nothing(host: FakeVdpaHost, other: str) -> None:
    one, before = made(host), host.snapshot()
    assert one.release(other, NAME) is None
    assert one.release(ID, names.device_name(Kind.VDPA, endpoint_id(7))) is None
    assert host.snapshot() == before


def test_a_device_that_vifd_didnt_make_is_never_touched(host: FakeVdpaHost) -> None:
    host.add(NAME, FIRST, NetConfig(MAC, 1500))
    before, one = host.snapshot(), devices(host)
    refused = failure(one.create(CREATE, GRANT))
    assert "that vifd didn't make" in refused.message
    one.release(ID, NAME)
    assert failure(one.bind(BIND)).cause == ops.GONE
    assert host.snapshot() == before


def test_what_an_earlier_life_has_left_makes_way(host: FakeVdpaHost) -> None:
    made(host)
    host.steps.clear()
    made(host)
    assert host.steps == ["give to 0", "delete", "unmark", "mark", "add", f"give to {ALICE}"]


def test_a_management_device_that_the_configuration_doesnt_name_is_never_used(host: FakeVdpaHost) -> None:
    refused = failure(devices(host).create(msgspec.structs.replace(CREATE, place=names.place(ELSEWHERE, 0)), GRANT))
    assert (refused.cause, host.steps) == (ops.REJECTED, [])


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EBUSY, errno.EEXIST])
def test_a_full_management_device_lets_the_front_pick_another(host: FakeVdpaHost, number: int) -> None:
    host.failing["add"] = OSError(number, "no more")
    refused = failure(devices(host).create(CREATE, GRANT))
    assert (refused.cause, refused.message) == (ops.TAKEN, f"vDPA management device {FIRST} takes no more devices: no more")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"is_net": False}, "makes no network devices"),
        ({"max_queues": 1}, "has 1 queue pair(s) at most, and not 2"),
    ],
)
def test_a_management_device_that_cant_is_told(host: FakeVdpaHost, change: dict[str, object], words: str) -> None:
    host.managers[FIRST] = host.managers[FIRST]._replace(**change)  # type: ignore[arg-type]  # of these two
    refused = failure(devices(host).create(msgspec.structs.replace(CREATE, queues=2), GRANT))
    assert (refused.cause, host.steps) == (ops.NOT_READY, [])
    assert words in refused.message
    assert words in devices(host).prepare(VdpaGrant((FIRST,), queues=2))


def test_a_management_device_that_isnt_there_is_told(host: FakeVdpaHost) -> None:
    del host.managers[FIRST]
    words = f"there is no vDPA management device {FIRST}"
    assert words in failure(devices(host).create(CREATE, GRANT)).message
    assert words in devices(host).prepare(GRANT)
    assert devices(host).prepare(VdpaGrant((SECOND,))) == ""


def test_a_kernel_without_vdpa_is_told(host: FakeVdpaHost) -> None:
    shutil.rmtree(host.sysfs / "bus/vdpa/drivers/vhost_vdpa")
    words = "this kernel hands no vDPA device to a VM now: load its module (modprobe vhost_vdpa), and at each start"
    assert devices(host).prepare(GRANT) == words
    shutil.rmtree(host.sysfs / "bus/vdpa")
    words = "this kernel has no vDPA now: load its module (modprobe vdpa), and at each start"
    assert devices(host).prepare(GRANT) == words
    assert failure(devices(host).create(CREATE, GRANT)) == Failure(ops.NOT_READY, 0, words)


def test_a_vifd_that_was_started_in_another_namespace_is_told(host: FakeVdpaHost) -> None:
    host.failing["find"] = OSError(errno.EPROTONOSUPPORT, "Protocol not supported")
    refused = failure(devices(host).create(CREATE, GRANT))
    assert refused.cause == ops.NOT_READY
    assert "only to the network namespace that the host began with" in refused.message


def test_a_setting_that_its_driver_doesnt_take_is_told(host: FakeVdpaHost) -> None:
    host.failing["add"] = OSError(errno.EOPNOTSUPP, "All provided attributes are not supported")
    refused = failure(devices(host).create(CREATE, GRANT))
    assert (refused.cause, refused.errno) == (ops.NOT_READY, errno.EOPNOTSUPP)
    assert "doesn't take all of a MAC, an MTU: All provided" in refused.message


def test_a_mac_that_its_driver_ignores_fails_the_request(host: FakeVdpaHost) -> None:
    host.ignores_mac = True
    assert "takes the MAC 52:54:00:12:34:56 and doesn't keep it" in failure(devices(host).create(CREATE, GRANT)).message


def test_an_older_kernel_says_nothing_of_a_device_that_no_vm_uses(host: FakeVdpaHost) -> None:
    host.is_silent = True
    assert devices(host).create(CREATE, GRANT) == 1400


@pytest.mark.parametrize("step", range(1, 4))
def test_who_dies_at_a_step_of_making_leaves_what_the_next_one_deletes(host: FakeVdpaHost, step: int) -> None:
    host.die_at = step
    with pytest.raises(Killed):
        made(host)
    host.die_at = 0
    next_one = devices(host)
    assert [device.endpoint_id for device in next_one.find_marked()] == [ID]
    assert next_one.release(ID, NAME) is None
    assert host.snapshot() == ([], {}, {}, {})


@pytest.mark.parametrize("step", range(1, 4))
def test_who_dies_at_a_step_of_deleting_leaves_what_the_next_one_deletes(host: FakeVdpaHost, step: int) -> None:
    one = made(host)
    host.die_at = len(host.steps) + step
    with pytest.raises(Killed):
        one.release(ID, NAME)
    host.die_at = 0
    assert devices(host).release(ID, NAME) is None
    assert host.snapshot() == ([], {}, {}, {})


def test_marks_of_devices_that_are_gone_are_forgotten(host: FakeVdpaHost) -> None:
    one = made(host)
    others = names.device_name(Kind.VDPA, endpoint_id(7))
    host.prepared().marks.create(others, Mark(endpoint_id(7), FIRST, NETNS + 1))  # another vifd is about to make it
    one.discard_stale_marks()
    assert host.marked() == sorted([NAME, others])
    host.delete(NAME)
    one.discard_stale_marks()
    assert host.marked() == [others]


def test_the_devices_of_another_vifd_are_not_told_of(host: FakeVdpaHost) -> None:
    made(host)
    vdpa = host.prepared()
    other = endpoint_id(7)
    vdpa.marks.create(names.device_name(Kind.VDPA, other), Mark(other, FIRST, NETNS + 1))
    (found,) = VdpaDevices(vdpa).find_marked()
    assert (found.ifname, found.kind, found.endpoint_id, found.ifindex) == (NAME, Kind.VDPA, ID, 0)


# --- drifts


def test_what_is_as_it_was_made_has_no_drift(host: FakeVdpaHost) -> None:
    assert made(host).compare(CREATE, BIND) == []


def test_what_others_change_is_a_drift_and_binding_it_again_mends_it(host: FakeVdpaHost) -> None:
    one = made(host)
    host.owners[NAME] = (1001, 0o666)
    (drift,) = one.compare(CREATE, BIND)
    assert (drift.kind, drift.expected, drift.actual) == (DriftKind.OWNER, "uid 1000, mode 600", "uid 1001, mode 666")
    assert one.bind(BIND) == "/dev/vhost-vdpa-0"
    assert one.compare(CREATE, BIND) == []
    host.bind(NAME, "virtio_vdpa")
    (drift,) = one.compare(CREATE, BIND)
    assert (drift.kind, drift.expected, drift.actual) == (DriftKind.BINDING, BUS_DRIVER, "virtio_vdpa")


def test_a_device_that_is_gone_is_missing(host: FakeVdpaHost) -> None:
    one = made(host)
    host.delete(NAME)
    (drift,) = one.compare(CREATE, BIND)
    assert (drift.kind, drift.expected) == (DriftKind.DEVICE_MISSING, NAME)


def test_a_device_without_its_mark_is_missing(host: FakeVdpaHost) -> None:
    one = made(host)
    (host.path / "device_dir/vdpa" / NAME).unlink()
    (drift,) = one.compare(CREATE, BIND)
    assert (drift.kind, drift.message) == (
        DriftKind.DEVICE_MISSING,
        f"vDPA device {NAME} is not marked for this endpoint any more; repair the endpoint, or release it",
    )


def test_a_device_that_cant_be_looked_at_is_not_missing(host: FakeVdpaHost) -> None:
    one = made(host)
    host.failing["find"] = OSError(errno.ENOBUFS, "No buffer space available")
    (drift,) = one.compare(CREATE, BIND)
    assert drift.kind is DriftKind.BINDING


def test_without_anything_to_work_with_it_says_why(host: FakeVdpaHost) -> None:
    one = VdpaDevices("no vDPA here")
    assert failure(one.create(CREATE, GRANT)) == Failure(ops.NOT_READY, 0, "no vDPA here")
    assert (one.prepare(GRANT), one.release(ID, NAME), one.find_marked()) == ("no vDPA here", None, [])
    assert [drift.kind for drift in one.compare(CREATE, BIND)] == [DriftKind.DEVICE_MISSING]
    one.discard_stale_marks()
