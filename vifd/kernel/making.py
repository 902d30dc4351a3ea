"""Carries plans out, in batches: the half of the executor that makes and changes.

A batch runs stage by stage: every bridge, then every tap, then what all of them are to be like (`configuring`). A tap lives as
long as its descriptor until its whole group is made: what fails, and a helper that dies at any moment, leaves nothing.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import msgspec

from vifd.kernel import bridge, ifb, limits, macvtap, names, netlink, ops, owner, tap, vlans
from vifd.kernel.authority import Authority, BridgeGrant, UplinkGrant, bridge_grant, function_grant, vdpa_grant
from vifd.kernel.configuring import Configurer
from vifd.kernel.direct import Macvtaps
from vifd.kernel.macvtap import Failure, Uplink
from vifd.kernel.marks import is_device_of, look_up
from vifd.kernel.netlink import Ifla, Link, RtnlSocket
from vifd.kernel.nft.devices import Guards
from vifd.kernel.nft.elements import NOTHING
from vifd.kernel.publics import Publics
from vifd.kernel.runs import Group, Run, Target, alive
from vifd.kernel.sriov.functions import Functions
from vifd.kernel.vdpa.devices import VdpaDevices
from vifd.model import Port


class Devices(NamedTuple):
    """What makes devices that aren't taps."""

    macvtaps: Macvtaps
    functions: Functions
    vdpa: VdpaDevices


class Maker:
    """Makes what plans say.

    Args:
        rtnl: the socket to ask through.
        guard: the guard's table.
        support: how this kernel keeps limits.
        devices: makes what isn't a tap.
        publics: gives ports their public addresses.
    """

    def __init__(self, rtnl: RtnlSocket, guard: Guards, support: limits.Support, devices: Devices, publics: Publics) -> None:
        self._rtnl, self._guard, self._publics = rtnl, guard, publics
        self._macvtaps, self._functions, self._vdpa = devices
        self._configurer = Configurer(rtnl, guard, support, publics)
        self._bridges: dict[str, bridge.BridgeState | bridge.BridgeError] = {}

    def apply(self, plans: Iterable[ops.Group], authority: Authority) -> ops.ApplyAnswer:
        """Make groups of plans, each all or none.

        Args:
            plans: from another process; every one is checked first.
            authority: what the configuration lets this process touch.

        Returns:
            For each group, what its plans came to, or the first refusal.
        """
        groups = [Group(group) for group in plans]
        for group in groups:
            for run in group.runs:
                run.check(authority)
        self._ensure_bridges(alive(groups, ops.EnsureBridge), authority)
        for group in groups:
            self._take_functions(group, authority)
            self._create_vdpa(group, authority)
        for run, op in alive(groups, ops.ChangeFunction):
            self._change_function(run, op)
        for run, create in alive(groups, ops.CreateTap):
            self._create_tap(run, create)
        with vlans.lock:
            self._create_macvtaps(groups, authority)
        for run, ensure in alive(groups, ops.EnsureOwner):
            if (failure := owner.ensure(self._rtnl, ensure)) is not None:
                run.fail_as(ensure, ensure.ifname, failure)
        for run, configure in alive(groups, ops.ConfigurePort):
            self._prepare_new(run, configure)
        self._find_living(alive(groups, ops.ChangePort))
        self._configurer.configure([run for group in groups if group.refusal is None for run in group.runs if run.has_target])
        for group in groups:
            self._settle(group)
        self._discard_bridges(groups)
        return [group.refusal or [run.result for run in group.runs] for group in groups]

    # --- the network

    def _ensure_bridges(self, todo: list[tuple[Run, Any]], authority: Authority) -> None:
        afresh = {op.network for run, op in todo if _needs_look(run.plan)}
        for network in {op.network for _, op in todo}:
            self._bridges[network] = self._find_bridge(network, bridge_grant(authority, network), afresh=network in afresh)
        for run, op in todo:
            state = self._bridges[op.network]
            if isinstance(state, bridge.BridgeError):
                run.fail(op, bridge_grant(authority, op.network).bridge, state.errno, str(state), ops.NOT_READY)
            else:
                run.bridge, run.grant = state, bridge_grant(authority, op.network)
                run.made = ops.Made(0, state.mtu_bytes, state.name)

    def _find_bridge(self, network: str, grant: BridgeGrant, *, afresh: bool) -> bridge.BridgeState | bridge.BridgeError:
        """Give a network's bridge, from memory if that still holds: no two bridges ever have the same index.

        Args:
            network: the network.
            grant: what the configuration says of it.
            afresh: whether memory isn't enough: its uplink may be gone from it, or it may keep VLANs apart no more.
        """
        known = None if afresh else self._bridges.get(network)
        if isinstance(known, bridge.BridgeState) and known.name == grant.bridge and bridge.is_unchanged(self._rtnl, known):
            return known._replace(created=False)
        try:
            return bridge.ensure(self._rtnl, network, grant)
        except bridge.BridgeError as error:
            return error

    # --- the device

    def _take_functions(self, group: Group, authority: Authority) -> None:
        """Take a group's VFs and bind them, one after the other, until one fails: each may take seconds."""
        steps = [(run, op) for run in group.runs for op in run.plan if isinstance(op, ops.ClaimFunction | ops.BindFunction)]
        for run, op in steps:
            if group.refusal is not None:
                return
            if isinstance(op, ops.BindFunction):
                port = run.claimed.port if run.claimed is not None else None
                made = self._functions.bind(op, port, silent=_has_macvtap(run.plan))
                self._note_function(run, op, made)
                self._find_standing(run, op)
            elif self._macvtaps.lack and _has_macvtap(run.plan):
                run.fail(op, op.address, 0, self._macvtaps.lack, ops.NOT_READY)
            else:
                run.claimed = op
                self._note_function(run, op, self._functions.claim(op, function_grant(authority, op.network)))

    def _change_function(self, run: Run, op: ops.ChangeFunction) -> None:
        changed = self._functions.change(op, silent=_has_macvtap(run.plan))
        self._note_function(run, op, changed)
        if not isinstance(changed, Failure):
            run.changed = op
        self._find_standing(run, op)

    def _find_standing(self, run: Run, op: ops.BindFunction | ops.ChangeFunction) -> None:
        """Find the netdev of a VF on which the plan's macvtap stands, or is to stand."""
        if run.refusal is not None or not _has_macvtap(run.plan):
            return
        found = self._functions.find_uplink(op)
        if isinstance(found, Failure):
            run.fail_as(op, op.address, found)
        else:
            run.uplink = found

    def _create_vdpa(self, group: Group, authority: Authority) -> None:
        """Make a group's vDPA devices and give them away, one after the other, until one fails: its driver may take seconds."""
        steps = [(run, op) for run in group.runs for op in run.plan if isinstance(op, ops.CreateVdpa | ops.BindVdpa)]
        for run, op in steps:
            if group.refusal is not None:
                return
            if isinstance(op, ops.CreateVdpa):
                run.vdpa = op
                made = self._vdpa.create(op, vdpa_grant(authority, op.network))
                if isinstance(made, Failure):
                    run.fail_as(op, op.place, made)
                else:
                    run.made = ops.Made(0, made)
            else:
                path = self._vdpa.bind(op)
                if isinstance(path, Failure):
                    run.fail_as(op, op.name, path)
                else:
                    run.device_path = path

    def _note_function(self, run: Run, op: Any, result: Failure | ops.FunctionMade | int) -> None:
        """Note what came of a step with a VF: what was made of it, or its MTU."""
        if isinstance(result, Failure):
            run.fail_as(op, op.address, result)
        elif isinstance(result, ops.FunctionMade):
            run.function = result
        else:
            run.changed = op if isinstance(op, ops.ChangeFunction) else None
            # At a bridge the port's MTU is what that has room for.
            run.made = ops.Made(0, result if run.bridge is None else run.bridge.mtu_bytes, run.made.bridge_name)

    def _create_tap(self, run: Run, op: ops.CreateTap) -> None:
        try:
            run.fd = tap.create(op.ifname, uid=op.owner_uid, gid=op.owner_gid, multi_queue=op.queues > 1, vnet_hdr=op.vnet_hdr)
            ifindex = tap.device_number(self._rtnl.fileno(), tap.SIOCGIFINDEX, op.ifname)
        except OSError as error:
            exists = f"a device of that name is there already that isn't {op.endpoint_id}'s"
            run.fail(op, op.ifname, error.errno or 0, exists if error.errno == errno.EBUSY else os.strerror(error.errno or 0))
            return
        if op.queues > 1 and not owner.is_ours_alone(self._rtnl, ifindex):
            run.close()
            run.fail(op, op.ifname, errno.EBUSY, "somebody opened it before it had an owner; ask again")
            return
        run.created = op
        run.made = ops.Made(ifindex, run.made.mtu_bytes, run.made.bridge_name)

    def _create_macvtaps(self, groups: list[Group], authority: Authority) -> None:
        """Find the uplinks of direct networks, then make macvtaps, those on VFs too, then their nodes."""
        for stage in (ops.CreateMacvtap, ops.ConfigurePort, ops.ChangePort):
            for run, op in alive(groups, stage):
                if run.uplink is None and isinstance(grant := authority[op.network], UplinkGrant):
                    found = self._macvtaps.find_uplink(grant)
                    if isinstance(found, Failure):
                        run.fail_as(op, grant.uplink, found)
                    else:
                        run.uplink = self._ensure_vlan(run, found)
        todo = [(run, op, run.uplink) for run, op in alive(groups, ops.CreateMacvtap) if run.uplink is not None]
        created = self._macvtaps.create([(op, uplink) for _, op, uplink in todo])
        for (run, op, uplink), made in zip(todo, created, strict=True):
            if isinstance(made, Failure):
                run.fail_as(op, op.ifname, made)
            else:
                run.created, run.made = op, ops.Made(made, uplink.mtu_bytes)
        for run, op in alive(groups, ops.EnsureNode):
            path = self._macvtaps.ensure_node(op, run.made.ifindex)
            if isinstance(path, Failure):
                run.fail_as(op, op.ifname, path)
            else:
                run.device_path = path

    def _ensure_vlan(self, run: Run, uplink: Uplink) -> Uplink | None:
        """Give what a plan's macvtap stands on: the uplink, or the device of its VLAN there."""
        op = next((op for op in run.plan if isinstance(op, ops.EnsureVlan)), None)
        if op is None:
            return uplink
        found = self._macvtaps.ensure_vlan(uplink, op.vid)
        if isinstance(found, Failure):
            run.fail_as(op, names.vlan_name(uplink.name, op.vid), found)
            return None
        return found

    def _prepare_new(self, run: Run, op: ops.ConfigurePort) -> None:
        if run.claimed is not None and run.created is None:
            self._prepare_representor(run, op, run.claimed.address, None)
            return
        if run.created is None:  # the plan's check has seen to it
            run.fail(op, op.ifname, 0, "a port needs a device in its plan", ops.REJECTED)
            return
        run.target = Target(op.endpoint_id, op.ifname, run.created.mac, op.port, None)
        self._check_port(run, op, op.port)

    def _prepare_representor(self, run: Run, op: ops.ConfigurePort | ops.ChangePort, address: str, before: Port | None) -> None:
        """Find the representor of a plan's VF. It is configured as a living device is, for it was there before its endpoint."""
        found = self._functions.find_representor(op.endpoint_id, address)
        if isinstance(found, Failure):
            run.fail_as(op, address, found)
            return
        reply = self._rtnl.ask(netlink.get_link(ifindex=found.ifindex))
        if reply.link is None:
            run.fail(op, found.ifname, reply.errno, f"representor {found.ifname}: {reply.message}")
            return
        run.link = reply.link
        run.made = ops.Made(found.ifindex, run.made.mtu_bytes, run.made.bridge_name)
        run.target = Target(op.endpoint_id, found.ifname, "", op.port, before)
        self._check_port(run, op, op.port)

    def _find_living(self, todo: list[tuple[Run, Any]]) -> None:
        for run, op in todo:
            if run.changed is not None and run.uplink is None:
                self._prepare_representor(run, op, run.changed.address, op.before)
        todo = [(run, op) for run, op in todo if run.changed is None or run.uplink is not None]
        replies = look_up(self._rtnl, [op.endpoint_id for _, op in todo])
        for (run, op), reply in zip(todo, replies, strict=True):
            if not is_device_of(reply.link, op.endpoint_id) or not _stands_where_it_should(run, reply.link):
                run.fail(op, op.ifname, reply.errno or errno.ENODEV, f"the device of endpoint {op.endpoint_id} is gone", ops.GONE)
                continue
            run.link = reply.link
            run.made = ops.Made(reply.link.ifindex, run.made.mtu_bytes, run.made.bridge_name)
            run.target = Target(op.endpoint_id, op.ifname, op.mac, op.port, op.before)
            self._check_port(run, op, op.port)

    def _check_port(self, run: Run, op: ops.Operation, port: Port) -> None:
        """Check what only the bridge or uplink can say: whether it has room for the MTU, and keeps VLANs apart."""
        if run.uplink is not None:
            self._check_standing(run, op, port, run.uplink)
            return
        state = run.bridge
        if state is None:  # the plan's check has seen to it
            run.fail(op, run.made.bridge_name, 0, "a port needs EnsureBridge in its plan", ops.REJECTED)
            return
        wanted = port.mtu_bytes
        if wanted > state.mtu_bytes:
            run.fail(op, state.name, 0, f"MTU {wanted} is more than bridge {state.name}'s {state.mtu_bytes}", ops.NOT_READY)
        elif 0 < wanted < state.mtu_bytes and not state.own:
            words = f"MTU {wanted} would lower the MTU of bridge {state.name} ({state.mtu_bytes}), which vifd didn't make"
            run.fail(op, state.name, 0, words, ops.NOT_READY)
        elif port.vlan is not None and state.vlans.missing:
            run.fail(op, state.name, 0, f"port.vlan: {state.vlans.missing}", ops.NOT_READY)
        else:
            run.made = ops.Made(run.made.ifindex, wanted or state.mtu_bytes, state.name)

    def _check_standing(self, run: Run, op: ops.Operation, port: Port, uplink: Uplink) -> None:
        if port.mtu_bytes > uplink.mtu_bytes:
            words = f"MTU {port.mtu_bytes} is more than uplink {uplink.name}'s {uplink.mtu_bytes}"
            run.fail(op, uplink.name, 0, words, ops.NOT_READY)
        elif run.changed is None and isinstance(op, ops.ChangePort) and op.before is not None and op.before.vlan != port.vlan:
            words = "port.vlan: a macvtap can't move to another VLAN; release the endpoint and request it again"
            run.fail(op, uplink.name, 0, words, ops.NOT_READY)
        else:
            run.made = ops.Made(run.made.ifindex, port.mtu_bytes or uplink.mtu_bytes, uplink.name)

    # --- the end

    def _settle(self, group: Group) -> None:
        """Let a group's taps outlive their descriptors, all or none."""
        persisted = []
        for run in group.runs:
            if group.refusal is None and run.fd >= 0:
                fd, run.fd = run.fd, -1
                try:
                    tap.persist(fd)
                    persisted.append(run)
                except OSError as error:
                    run.fail(run.last, run.made.bridge_name, error.errno or 0, os.strerror(error.errno or 0))
        if group.refusal is not None:
            self._undo(group, persisted)

    def _undo(self, group: Group, persisted: Sequence[Run]) -> None:
        """Delete what a group's plans made; first the taps, so that none is without its guard."""
        made = [run for run in group.runs if run.created is not None]
        for run in group.runs:
            run.close()
        self._rtnl.exchange([netlink.delete_link(run.made.ifindex) for run in persisted])
        self._macvtaps.delete((r.created.ifname, r.made.ifindex) for r in made if isinstance(r.created, ops.CreateMacvtap))
        if any(isinstance(op, ops.EnsureVlan) for run in group.runs for op in run.plan):
            vlans.discard_unused(self._rtnl)
        limited = [run.target.endpoint_id for run in made if run.has_target and run.target.port.limits is not None]
        self._rtnl.exchange([netlink.delete_link(link.ifindex) for link in ifb.find(self._rtnl, limited).values()])
        self._guard.put({run.made.ifindex: NOTHING for run in made})
        self._publics.release(run.target.port for run in made if run.has_target)
        for run in group.runs:  # what stood on a VF is gone
            self._undo_alone(run)

    def _undo_alone(self, run: Run) -> None:
        """Give a VF back, or delete a vDPA device."""
        failure = self._functions.undo(run.claimed) if run.claimed is not None else None
        if run.changed is not None and run.changed.before is not None:
            failure = self._undo_change(run, msgspec.structs.replace(run.changed, before=None, port=run.changed.before))
        if run.vdpa is not None:
            failure = self._vdpa.release(run.vdpa.endpoint_id, run.vdpa.name)
        if failure is not None and run.refusal is not None:
            run.refusal = msgspec.structs.replace(run.refusal, message=f"{run.refusal.message}; {failure.message}")

    def _undo_change(self, run: Run, back: ops.ChangeFunction) -> Failure | None:
        """Bring a VF back to what it was, and then its macvtap, which can't have a larger MTU."""
        changed = self._functions.change(back, silent=_has_macvtap(run.plan))
        stands = run.uplink is not None and run.has_target and run.link is not None
        found = self._functions.find_uplink(back) if stands else None
        if isinstance(found, Uplink):
            run.uplink = found
            self._configurer.go_back(run)
        return changed if isinstance(changed, Failure) else None

    def _discard_bridges(self, groups: list[Group]) -> None:
        """Delete bridges that this batch made for groups that failed, unless another group's port hangs on one."""
        runs = [run for group in groups if group.refusal is not None for run in group.runs]
        for network in {op.network for run in runs for op in run.plan if isinstance(op, ops.EnsureBridge)}:
            state = self._bridges.get(network)
            if isinstance(state, bridge.BridgeState) and state.created:
                bridge.discard_unused(self._rtnl, state)


def _stands_where_it_should(run: Run, link: Link) -> bool:
    """Tell whether an endpoint's device is of the kind that its network has, and on a VF on no other than the plan's."""
    if run.uplink is None or link.kind != macvtap.KIND:
        return run.uplink is None and link.kind != macvtap.KIND
    return run.changed is None or link.number(Ifla.LINK) == run.uplink.ifindex


def _has_macvtap(plan: ops.Plan) -> bool:
    """Tell whether a macvtap stands on the VF of a plan, or is to."""
    return any(
        isinstance(one, ops.CreateMacvtap | ops.ChangePort) and one.ifname for one in plan
    )  # a representor has no name here


def _needs_look(plan: ops.Plan) -> bool:
    """Tell whether a plan mends something, or needs what somebody else may have switched off on the bridge."""
    ports_of = [op for op in plan if isinstance(op, ops.ConfigurePort | ops.ChangePort)]
    return not ports_of or any(op.port.vlan is not None or _is_repair(op) for op in ports_of)


def _is_repair(op: ops.Operation) -> bool:
    return isinstance(op, ops.ChangePort) and op.before is None
