"""Makes vDPA devices for endpoints, and takes them down; runs in the privileged helper.

A device is marked before it is made, and its mark goes when it is gone: whoever dies in between leaves a mark that says whose it
is. Only what is marked for an endpoint is ever touched for it.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from functools import partial
from typing import TypeVar

from vifd.kernel import names, ops
from vifd.kernel.authority import VdpaGrant
from vifd.kernel.macvtap import Failure
from vifd.kernel.sriov.hardware import wait_for
from vifd.kernel.vdpa.inventory import BUS_DRIVER
from vifd.kernel.vdpa.marks import Mark
from vifd.kernel.vdpa.tools import Vdpa, VdpaError
from vifd.model import Drift, DriftKind, Kind

T = TypeVar("T")
_ELSEWHERE = (
    "the kernel speaks of vDPA only to the network namespace that the host began with: let vifd be started there, "
    "and daemon.netns say where it works"
)
_DROP_IN = "(systemd/vdpa.conf)"
#: What drivers answer that have all devices that they can have: mlx5_vdpa ENOSPC, others EBUSY or EEXIST.
_FULL = (errno.ENOSPC, errno.EBUSY, errno.EEXIST)


class VdpaDevices:
    """The vDPA devices of this vifd's endpoints.

    Args:
        prepared: what there is to work with; or why there is nothing.
    """

    def __init__(self, prepared: Vdpa | str) -> None:
        self._prepared = prepared

    def create(self, op: ops.CreateVdpa, grant: VdpaGrant) -> int | Failure:
        """Make a device.

        Args:
            op: checked.
            grant: what the configuration says of its network.

        Returns:
            Its MTU in bytes, 0 where it doesn't say; or why there is none. `release` undoes what was done then.
        """
        return self._tried(op.name, lambda: self._create(op, grant))

    def bind(self, op: ops.BindVdpa) -> str | Failure:
        """Bind an endpoint's device to vhost-vdpa, if it isn't, and give its node to its owner.

        Args:
            op: checked.

        Returns:
            The node's path, or why there is none.
        """
        return self._tried(op.name, lambda: self._bind(op))

    def release(self, endpoint_id: str, name: str) -> Failure | None:
        """Delete a device, if it is this endpoint's (still).

        Returns:
            None, or why it is there still.
        """
        if isinstance(self._prepared, str):
            return None  # without marks there is nothing that could be an endpoint's
        return self._tried(name, lambda: self._release(endpoint_id, name))

    def compare(self, create: ops.CreateVdpa, bind: ops.BindVdpa | None) -> list[Drift]:
        """Find the drifts of a device. Its MAC is none: its VM may change that, where the device lets it."""
        if isinstance(self._prepared, str):
            return [Drift(DriftKind.DEVICE_MISSING, create.name, "", self._prepared)]
        try:
            return list(_compare(self._prepared, create, bind))
        except OSError as error:
            # Not that it is missing, for which it would be made anew.
            words = f"vDPA device {create.name} can't be looked at: {_words(error)}"
            return [Drift(DriftKind.BINDING, create.name, "", words)]

    def prepare(self, grant: VdpaGrant) -> str:
        """Look whether devices can be made for a network.

        Returns:
            What is wrong, as sentences; empty: nothing.
        """
        if isinstance(self._prepared, str):
            return self._prepared
        if problem := self._prepared.inventory.find_problem():
            return problem
        found = [self._tried(name, partial(self._get_manager, name, grant.queues)) for name in grant.management_devices]
        return "; ".join(one.message for one in found if isinstance(one, Failure))

    def discard_stale_marks(self) -> None:
        """Forget marks of devices that are gone. Another vifd may have marked what it is about to make: those stay."""
        if isinstance(self._prepared, Vdpa):
            for name, mark in self._prepared.marks.find_all().items():
                if mark.netns == self._prepared.netns:
                    with self._prepared.locks.of(mark.management_device):
                        self._tried(name, partial(self._discard_if_gone, name))

    def find_marked(self) -> list[ops.Device]:
        """Tell every device that a vifd of this network namespace has marked."""
        if isinstance(self._prepared, str):
            return []
        marks = self._prepared.marks.find_all()
        return [_device(name, mark.endpoint_id) for name, mark in marks.items() if mark.netns == self._prepared.netns]

    # --- steps

    def _create(self, op: ops.CreateVdpa, grant: VdpaGrant) -> int:
        vdpa, (manager, _) = self._vdpa, names.parse_place(op.place) or ("", 0)
        if manager not in grant.management_devices:  # the plan's check has seen to it
            raise VdpaError(f"the configuration doesn't let this network use {op.place}", ops.REJECTED)
        with vdpa.locks.of(manager):
            self._delete_left(op)
            if problem := vdpa.inventory.find_problem():
                raise VdpaError(problem, ops.NOT_READY)
            self._get_manager(manager, op.queues)
            if vdpa.netlink.find(op.name) is not None:
                raise VdpaError(
                    f"there is a vDPA device {op.name} already that vifd didn't make; delete it", ops.KERNEL, errno.EEXIST
                )
            try:
                vdpa.marks.create(op.name, Mark(op.endpoint_id, manager, vdpa.netns))
            except FileExistsError as error:
                raise VdpaError(f"vDPA device {op.name} is another vifd's", ops.KERNEL, errno.EEXIST) from error
            self._add(op, manager)
            return self._read_back(op)

    def _get_manager(self, name: str, queues: int) -> None:
        """Check that a management device is there and can make what is wanted."""
        found = self._vdpa.netlink.find_management_device(name)
        if found is None:
            words = f"there is no vDPA management device {name}; load its driver (vdpa mgmtdev show lists those that there are)"
            raise VdpaError(words, ops.NOT_READY, errno.ENODEV)
        if not found.is_net:
            raise VdpaError(f"vDPA management device {name} makes no network devices; name another", ops.NOT_READY)
        if found.max_queues and queues > found.max_queues:
            words = f"a device of vDPA management device {name} has {found.max_queues} queue pair(s) at most, and not {queues}"
            raise VdpaError(words, ops.NOT_READY)

    def _add(self, op: ops.CreateVdpa, manager: str) -> None:
        port = op.port
        try:
            self._vdpa.netlink.add(op.name, manager, mac=port.mac, mtu_bytes=port.mtu_bytes, queues=op.queues)
        except OSError as error:
            if error.errno in _FULL:
                words = f"vDPA management device {manager} takes no more devices: {_words(error)}"
                raise VdpaError(words, ops.TAKEN, error.errno) from error
            if error.errno == errno.EOPNOTSUPP:
                asked = ["a MAC", *(["an MTU"] if port.mtu_bytes else []), *(["a number of queues"] if op.queues > 1 else [])]
                words = f"vDPA management device {manager} doesn't take all of {', '.join(asked)}: {_words(error)}"
                raise VdpaError(words, ops.NOT_READY, error.errno) from error
            raise

    def _read_back(self, op: ops.CreateVdpa) -> int:
        """Check that a device tells its VM what it is to, and give its MTU."""
        found = self._vdpa.netlink.find_config(op.name)
        if found is None:
            return op.port.mtu_bytes
        if found.mac != op.port.mac:
            raise VdpaError(f"its driver takes the MAC {op.port.mac} and doesn't keep it: it is {found.mac}", ops.NOT_READY)
        if op.port.mtu_bytes and found.mtu_bytes != op.port.mtu_bytes:
            words = f"its driver takes the MTU {op.port.mtu_bytes} and doesn't keep it: it is {found.mtu_bytes}"
            raise VdpaError(words, ops.NOT_READY)
        return found.mtu_bytes

    def _bind(self, op: ops.BindVdpa) -> str:
        vdpa, name = self._vdpa, op.name
        mark = vdpa.marks.find_of(name, op.endpoint_id)
        if mark is None:
            raise _gone(op)
        with vdpa.locks.of(mark.management_device):
            if vdpa.marks.find_of(name, op.endpoint_id) != mark or not vdpa.is_there(name):
                raise _gone(op)
            try:
                vdpa.nodes.bind(name)
            except OSError as error:
                bound = vdpa.inventory.driver(name) or "no driver"
                hint = f"; it takes a /sys that vifd may write {_DROP_IN}" if error.errno == errno.EROFS else ""
                words = f"it is bound to {bound} and can't be bound to {BUS_DRIVER}: {_words(error)}{hint}"
                raise VdpaError(f"vDPA device {name}: {words}", ops.NOT_READY, error.errno or 0) from error
            if not wait_for(lambda: bool(vdpa.nodes.path(name)), vdpa.patience.device):
                bound = vdpa.inventory.driver(name) or "no driver"
                raise VdpaError(f"vDPA device {name} has no node in /dev: it is bound to {bound}", ops.NOT_READY)
            vdpa.wait_for_udev(name)
            vdpa.nodes.give(name, op.owner_uid)
            return vdpa.nodes.path(name)

    def _release(self, endpoint_id: str, name: str) -> None:
        mark = self._vdpa.marks.find_of(name, endpoint_id)
        if mark is None:
            return
        with self._vdpa.locks.of(mark.management_device):
            if self._vdpa.marks.find_of(name, endpoint_id) == mark:
                self._delete(name)

    def _delete_left(self, op: ops.CreateVdpa) -> None:
        """Delete what an earlier life of this endpoint has left."""
        if self._vdpa.marks.find_of(op.name, op.endpoint_id) is not None:
            self._delete(op.name)

    def _delete(self, name: str) -> None:
        """Delete a device that nobody has open any more: until then the kernel would keep all of vDPA waiting."""
        vdpa = self._vdpa
        if vdpa.is_there(name):
            if vdpa.nodes.owner(name) is not None:
                vdpa.nodes.give(name, 0)
            if not wait_for(lambda: not self._is_open(name), vdpa.patience.close):
                words = f"a program has vDPA device {name} open still: let its VM end, or unplug it. vifd tries again"
                raise VdpaError(words, ops.KERNEL, errno.EBUSY)
            try:
                vdpa.netlink.delete(name)
            except OSError as error:
                if error.errno != errno.ENODEV:
                    raise
        vdpa.marks.discard(name)

    def _is_open(self, name: str) -> bool:
        try:
            return self._vdpa.nodes.is_open(name)
        except PermissionError as error:
            words = f"vifd may not open vhost-vdpa nodes: its unit takes DeviceAllow=char-vhost-vdpa rw {_DROP_IN}"
            raise VdpaError(words, ops.NOT_READY, error.errno or 0) from error

    def _discard_if_gone(self, name: str) -> None:
        if not self._vdpa.is_there(name):
            self._vdpa.marks.discard(name)

    @property
    def _vdpa(self) -> Vdpa:
        if isinstance(self._prepared, str):
            raise VdpaError(self._prepared, ops.NOT_READY)
        return self._prepared

    def _tried(self, name: str, step: Callable[[], T]) -> T | Failure:
        """Run a step; give what it gives, or why it failed."""
        try:
            return step()
        except VdpaError as error:
            return error.failure
        except OSError as error:
            if error.errno == errno.EPROTONOSUPPORT:
                return Failure(ops.NOT_READY, error.errno, _ELSEWHERE)
            return Failure(ops.KERNEL, error.errno or 0, f"vDPA device {name}: {_words(error)}")


def _compare(vdpa: Vdpa, create: ops.CreateVdpa, bind: ops.BindVdpa | None) -> Iterator[Drift]:
    name = create.name
    is_marked = vdpa.marks.find_of(name, create.endpoint_id) is not None
    if not is_marked or not vdpa.is_there(name):
        what = "is gone" if is_marked else "is not marked for this endpoint any more"
        yield Drift(DriftKind.DEVICE_MISSING, name, "", f"vDPA device {name} {what}; repair the endpoint, or release it")
        return
    bound = vdpa.inventory.driver(name)
    if bound != BUS_DRIVER:
        yield Drift(DriftKind.BINDING, BUS_DRIVER, bound, f"vDPA device {name} is bound to {bound or 'no driver'}")
    elif bind is not None and (found := vdpa.nodes.owner(name)) != (bind.owner_uid, 0o600):
        actual = "" if found is None else f"uid {found[0]}, mode {found[1]:o}"
        words = f"its node is for {actual}" if actual else "it has no node"
        yield Drift(DriftKind.OWNER, f"uid {bind.owner_uid}, mode 600", actual, words)


def _gone(op: ops.BindVdpa) -> VdpaError:
    return VdpaError(f"vDPA device {op.name} of endpoint {op.endpoint_id} is gone", ops.GONE, errno.ENODEV)


def _words(error: OSError) -> str:
    return error.strerror or os.strerror(error.errno or 0)


def _device(name: str, endpoint_id: str) -> ops.Device:
    """Tell of a marked device in the words for devices; whether somebody has it open shows when it is released."""
    return ops.Device(
        ifname=name,
        ifindex=0,
        kind=Kind.VDPA,
        endpoint_id=endpoint_id if names.is_endpoint_id(endpoint_id) else "",
        master=0,
        mtu_bytes=0,
        mac="",
        up=False,
        carrier=False,
    )
