"""Carries plans out, in batches: the half of the executor that makes.

A batch runs stage by stage: every bridge, then every tap, then one netlink send that marks, attaches and sets up all of them. A
tap lives as long as its descriptor until its whole group is made: what fails, and a helper that dies at any moment, leaves
nothing.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable
from typing import Any

from vifd.kernel import bridge, names, netlink, ops, tap
from vifd.kernel.authority import Authority, BridgeGrant, PlanRejectedError, check_plan
from vifd.kernel.netlink import Ifla, Reply, RtnlSocket

_EXFULL = 54  # net/bridge/br_if.c, find_portno: a bridge takes 1,023 ports


class _Run:
    """One plan on its way: what it has made so far, what is still to be set on its device, and why it failed."""

    def __init__(self, plan: ops.Plan, index: int) -> None:
        self.plan, self.index = plan, index
        self.fd = -1
        self.attributes = b""
        self.endpoint_id = ""
        self.up = False
        self.made = ops.Made()
        self.refusal: ops.Refusal | None = None

    def fail(self, operation: ops.Operation, device: str, code: int, message: str, cause: str = ops.KERNEL) -> None:
        self.refusal = ops.Refusal(self.index, type(operation).__name__, device, code, message, cause)

    def close(self) -> None:
        """Let go of a tap; one that doesn't persist is deleted by the kernel."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    @property
    def last(self) -> ops.Operation:
        return self.plan[-1]


class _Group:
    """Plans that are made all or none."""

    def __init__(self, plans: ops.Group) -> None:
        self.runs = [_Run(plan, index) for index, plan in enumerate(plans)]

    @property
    def refusal(self) -> ops.Refusal | None:
        return next((run.refusal for run in self.runs if run.refusal is not None), None)


class Maker:
    """Makes what plans say.

    Args:
        rtnl: the socket to ask through.
    """

    def __init__(self, rtnl: RtnlSocket) -> None:
        self._rtnl = rtnl
        self._bridges: dict[str, bridge.BridgeState | bridge.BridgeError] = {}

    def apply(self, plans: Iterable[ops.Group], authority: Authority) -> ops.ApplyAnswer:
        """Make groups of plans, each all or none.

        Args:
            plans: from another process; every one is checked first.
            authority: what the configuration lets this process touch.

        Returns:
            For each group, what its plans came to, or the first refusal.
        """
        groups = [_Group(group) for group in plans]
        for group in groups:
            for run in group.runs:
                _check(run, authority)
        self._ensure_bridges(_alive(groups, ops.EnsureBridge), authority)
        for run, create in _alive(groups, ops.CreateTap):
            self._create_tap(run, create)
        for run, attach in _alive(groups, ops.AttachPort):
            self._prepare_port(run, attach)
        self._configure([run for group in groups if group.refusal is None for run in group.runs if run.fd >= 0])
        for group in groups:
            self._settle(group)
        self._discard_bridges(groups)
        return [group.refusal or [run.made for run in group.runs] for group in groups]

    def _ensure_bridges(self, todo: list[tuple[_Run, Any]], authority: Authority) -> None:
        for network in {op.network for _, op in todo}:
            self._bridges[network] = self._find_bridge(network, authority[network])
        for run, op in todo:
            state = self._bridges[op.network]
            if isinstance(state, bridge.BridgeError):
                run.fail(op, authority[op.network].bridge, state.errno, str(state), ops.NOT_READY)
            else:
                run.made = ops.Made(0, state.mtu_bytes, state.name)

    def _find_bridge(self, network: str, grant: BridgeGrant) -> bridge.BridgeState | bridge.BridgeError:
        """Give a network's bridge, from memory if that still holds: no two bridges ever have the same index."""
        known = self._bridges.get(network)
        if isinstance(known, bridge.BridgeState) and known.name == grant.bridge and bridge.is_unchanged(self._rtnl, known):
            return known._replace(created=False)
        try:
            return bridge.ensure(self._rtnl, network, grant)
        except bridge.BridgeError as error:
            return error

    def _create_tap(self, run: _Run, op: ops.CreateTap) -> None:
        try:
            run.fd = tap.create(op.ifname, uid=op.owner_uid, gid=op.owner_gid, multi_queue=op.queues > 1, vnet_hdr=op.vnet_hdr)
            ifindex = tap.device_number(self._rtnl.fileno(), tap.SIOCGIFINDEX, op.ifname)
        except OSError as error:
            exists = f"a device of that name is there already that isn't {op.endpoint_id}'s"
            run.fail(op, op.ifname, error.errno or 0, exists if error.errno == errno.EBUSY else os.strerror(error.errno or 0))
            return
        run.made = ops.Made(ifindex, run.made.mtu_bytes, run.made.bridge_name)
        run.endpoint_id = op.endpoint_id
        run.attributes = netlink.attribute(Ifla.ADDRESS, bytes.fromhex(op.mac.replace(":", "")))
        run.attributes += netlink.text(Ifla.IFALIAS, names.mark(op.endpoint_id))

    def _prepare_port(self, run: _Run, op: ops.AttachPort) -> None:
        state = self._bridges.get(op.network)
        if not isinstance(state, bridge.BridgeState):
            run.fail(op, op.ifname, 0, "a port needs EnsureBridge in its plan", ops.REJECTED)
        elif op.mtu_bytes > state.mtu_bytes:
            message = f"MTU {op.mtu_bytes} is more than bridge {state.name}'s {state.mtu_bytes}"
            run.fail(op, op.ifname, 0, message, ops.NOT_READY)
        elif 0 < op.mtu_bytes < state.mtu_bytes and not state.own:
            message = f"MTU {op.mtu_bytes} would lower the MTU of bridge {state.name} ({state.mtu_bytes}), which vifd didn't make"
            run.fail(op, op.ifname, 0, message, ops.NOT_READY)
        else:
            mtu_bytes = op.mtu_bytes or state.mtu_bytes
            run.made = ops.Made(run.made.ifindex, mtu_bytes, state.name)
            run.attributes += netlink.number(Ifla.MTU, mtu_bytes) + netlink.number(Ifla.MASTER, state.ifindex)
            run.up = True

    def _configure(self, runs: list[_Run]) -> None:
        """Mark, attach and set up every tap of the batch in one send."""
        messages = []
        for run in runs:
            if run.up and bridge.has_ipv6(run.made.mtu_bytes):
                run.attributes += netlink.NO_IPV6_ADDRESS
            # The name first: what changes while a device is down wakes no monitor.
            messages.append(netlink.add_altname(run.made.ifindex, names.altname(run.endpoint_id)))
            messages.append(netlink.set_link(run.made.ifindex, run.attributes, up=run.up))
        replies = self._rtnl.exchange(messages)
        for run, named, configured in zip(runs, replies[::2], replies[1::2], strict=True):
            _note_refusal(run, named if named.errno else configured)

    def _settle(self, group: _Group) -> None:
        """Let a group's taps outlive their descriptors, all or none."""
        persisted = []
        for run in group.runs:
            if group.refusal is None and run.fd >= 0:
                fd, run.fd = run.fd, -1
                try:
                    tap.persist(fd)
                    persisted.append(run)
                except OSError as error:
                    run.fail(run.last, run.endpoint_id, error.errno or 0, os.strerror(error.errno or 0))
        if group.refusal is not None:
            for run in group.runs:
                run.close()
            self._rtnl.exchange([netlink.delete_link(run.made.ifindex) for run in persisted])

    def _discard_bridges(self, groups: list[_Group]) -> None:
        """Delete bridges that this batch made for groups that failed, unless another group's port hangs on one."""
        runs = [run for group in groups if group.refusal is not None for run in group.runs]
        for network in {op.network for run in runs for op in run.plan if isinstance(op, ops.EnsureBridge)}:
            state = self._bridges.get(network)
            if isinstance(state, bridge.BridgeState) and state.created:
                bridge.discard_unused(self._rtnl, state)


def _check(run: _Run, authority: Authority) -> None:
    try:
        check_plan(run.plan, authority)
    except PlanRejectedError as error:
        run.refusal = ops.Refusal(run.index, "check", "", 0, f"the helper rejects the plan: {error}", ops.REJECTED)


def _alive(groups: list[_Group], stage: type[ops.Operation]) -> list[tuple[_Run, Any]]:
    """Give the operations of one stage, of the groups that nothing has failed in so far."""
    return [(run, op) for g in groups if g.refusal is None for run in g.runs for op in run.plan if isinstance(op, stage)]


def _note_refusal(run: _Run, reply: Reply) -> None:
    if reply.errno == _EXFULL:
        message = f"bridge {run.made.bridge_name} has no free port (it takes 1,023)"
        run.fail(run.last, run.made.bridge_name, reply.errno, message, ops.FULL)
    elif reply.errno:
        run.fail(run.last, names.altname(run.endpoint_id), reply.errno, reply.message)
