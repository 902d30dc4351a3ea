"""Carries plans out, in batches: the half of the executor that makes and changes.

A batch runs stage by stage: every bridge, then every tap, then one transaction of the guard's table, one netlink send that marks,
attaches and limits all of them, and, for those that all went well with, one that sets them up. A tap lives as long as its
descriptor until its whole group is made: what fails, and a helper that dies at any moment, leaves nothing.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from vifd.kernel import bridge, ifb, limits, macvtap, names, netlink, ops, owner, ports, tap, vlans
from vifd.kernel.authority import Authority, BridgeGrant, PlanRejectedError, UplinkGrant, bridge_grant, check_plan
from vifd.kernel.direct import Macvtaps
from vifd.kernel.macvtap import Failure, Uplink
from vifd.kernel.marks import is_device_of, look_up
from vifd.kernel.netlink import Ifla, Link, Reply, RtnlSocket
from vifd.kernel.nft.devices import Guards
from vifd.kernel.nft.elements import NOTHING, Elements
from vifd.kernel.nft.wire import NftError
from vifd.kernel.publics import Publics, PublicsError
from vifd.model import Port

_EXFULL = 54  # net/bridge/br_if.c, find_portno: a bridge takes 1,023 ports


class _Target(NamedTuple):
    """What a device is to be like: a new one's whole state, or what changes of a living one.

    Args:
        mac: of the host's side.
        before: what it is like; None: it is new, or that isn't known.
    """

    endpoint_id: str
    ifname: str
    mac: str
    port: Port
    before: Port | None


class _Run:
    """One plan on its way: what it has made so far, what its device is to be like, and why it failed."""

    def __init__(self, plan: ops.Plan, index: int) -> None:
        self.plan, self.index = plan, index
        self.fd = -1
        self.link: Link | None = None
        self.created: ops.CreateTap | ops.CreateMacvtap | None = None
        self.target: _Target | None = None
        self.bridge: bridge.BridgeState | None = None
        self.grant: BridgeGrant | None = None
        self.uplink: Uplink | None = None
        self.device_path = ""
        self.made = ops.Made()
        self.refusal: ops.Refusal | None = None

    def fail(self, operation: ops.Operation, device: str, code: int, message: str, cause: str = ops.KERNEL) -> None:
        self.refusal = self.refusal or ops.Refusal(self.index, type(operation).__name__, device, code, message, cause)

    def fail_as(self, operation: ops.Operation, device: str, failure: Failure) -> None:
        self.fail(operation, device, failure.errno, failure.message, failure.cause)

    def close(self) -> None:
        """Let go of a tap; one that doesn't persist is deleted by the kernel."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    @property
    def last(self) -> ops.Operation:
        return self.plan[-1]

    @property
    def is_new(self) -> bool:
        return self.created is not None

    @property
    def is_renamed(self) -> bool:
        return self.link is not None and self.target is not None and self.link.text(Ifla.IFNAME) != self.target.ifname


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
        guard: the guard's table.
        support: how this kernel keeps limits.
        macvtaps: makes those.
        publics: gives ports their public addresses.
    """

    def __init__(self, rtnl: RtnlSocket, guard: Guards, support: limits.Support, macvtaps: Macvtaps, publics: Publics) -> None:
        self._rtnl, self._guard, self._support, self._macvtaps, self._publics = rtnl, guard, support, macvtaps, publics
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
        with vlans.lock:
            self._create_macvtaps(groups, authority)
        for run, ensure in _alive(groups, ops.EnsureOwner):
            if (failure := owner.ensure(self._rtnl, ensure)) is not None:
                run.fail_as(ensure, ensure.ifname, failure)
        for run, configure in _alive(groups, ops.ConfigurePort):
            self._prepare_new(run, configure)
        self._find_living(_alive(groups, ops.ChangePort))
        self._configure([run for group in groups if group.refusal is None for run in group.runs if run.target is not None])
        for group in groups:
            self._settle(group)
        self._discard_bridges(groups)
        return [group.refusal or [_made(run) for run in group.runs] for group in groups]

    # --- the network

    def _ensure_bridges(self, todo: list[tuple[_Run, Any]], authority: Authority) -> None:
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

    def _create_tap(self, run: _Run, op: ops.CreateTap) -> None:
        try:
            run.fd = tap.create(op.ifname, uid=op.owner_uid, gid=op.owner_gid, multi_queue=op.queues > 1, vnet_hdr=op.vnet_hdr)
            ifindex = tap.device_number(self._rtnl.fileno(), tap.SIOCGIFINDEX, op.ifname)
        except OSError as error:
            exists = f"a device of that name is there already that isn't {op.endpoint_id}'s"
            run.fail(op, op.ifname, error.errno or 0, exists if error.errno == errno.EBUSY else os.strerror(error.errno or 0))
            return
        run.created = op
        run.made = ops.Made(ifindex, run.made.mtu_bytes, run.made.bridge_name)

    def _create_macvtaps(self, groups: list[_Group], authority: Authority) -> None:
        """Find the uplinks of direct networks, then make macvtaps, then their nodes."""
        for stage in (ops.CreateMacvtap, ops.ConfigurePort, ops.ChangePort):
            for run, op in _alive(groups, stage):
                if run.uplink is None and isinstance(grant := authority[op.network], UplinkGrant):
                    found = self._macvtaps.find_uplink(grant)
                    if isinstance(found, Failure):
                        run.fail_as(op, grant.uplink, found)
                    else:
                        run.uplink = self._ensure_vlan(run, found)
        todo = [(run, op, run.uplink) for run, op in _alive(groups, ops.CreateMacvtap) if run.uplink is not None]
        created = self._macvtaps.create([(op, uplink) for _, op, uplink in todo])
        for (run, op, uplink), made in zip(todo, created, strict=True):
            if isinstance(made, Failure):
                run.fail_as(op, op.ifname, made)
            else:
                run.created, run.made = op, ops.Made(made, uplink.mtu_bytes)
        for run, op in _alive(groups, ops.EnsureNode):
            path = self._macvtaps.ensure_node(op, run.made.ifindex)
            if isinstance(path, Failure):
                run.fail_as(op, op.ifname, path)
            else:
                run.device_path = path

    def _ensure_vlan(self, run: _Run, uplink: Uplink) -> Uplink | None:
        """Give what a plan's macvtap stands on: the uplink, or the device of its VLAN there."""
        op = next((op for op in run.plan if isinstance(op, ops.EnsureVlan)), None)
        if op is None:
            return uplink
        found = self._macvtaps.ensure_vlan(uplink, op.vid)
        if isinstance(found, Failure):
            run.fail_as(op, names.vlan_name(uplink.name, op.vid), found)
            return None
        return found

    def _prepare_new(self, run: _Run, op: ops.ConfigurePort) -> None:
        if run.created is None:  # the plan's check has seen to it
            run.fail(op, op.ifname, 0, "a port needs a device in its plan", ops.REJECTED)
            return
        run.target = _Target(op.endpoint_id, op.ifname, run.created.mac, op.port, None)
        self._check_port(run, op, op.port)

    def _find_living(self, todo: list[tuple[_Run, Any]]) -> None:
        replies = look_up(self._rtnl, [op.endpoint_id for _, op in todo])
        for (run, op), reply in zip(todo, replies, strict=True):
            if not is_device_of(reply.link, op.endpoint_id):
                run.fail(op, op.ifname, reply.errno or errno.ENODEV, f"the device of endpoint {op.endpoint_id} is gone", ops.GONE)
                continue
            run.link = reply.link
            run.made = ops.Made(reply.link.ifindex, run.made.mtu_bytes, run.made.bridge_name)
            run.target = _Target(op.endpoint_id, op.ifname, op.mac, op.port, op.before)
            self._check_port(run, op, op.port)

    def _check_port(self, run: _Run, op: ops.Operation, port: Port) -> None:
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

    def _check_standing(self, run: _Run, op: ops.Operation, port: Port, uplink: Uplink) -> None:
        if port.mtu_bytes > uplink.mtu_bytes:
            words = f"MTU {port.mtu_bytes} is more than uplink {uplink.name}'s {uplink.mtu_bytes}"
            run.fail(op, uplink.name, 0, words, ops.NOT_READY)
        elif isinstance(op, ops.ChangePort) and op.before is not None and op.before.vlan != port.vlan:
            words = "port.vlan: a macvtap can't move to another VLAN; release the endpoint and request it again"
            run.fail(op, uplink.name, 0, words, ops.NOT_READY)
        else:
            run.made = ops.Made(run.made.ifindex, port.mtu_bytes or uplink.mtu_bytes, uplink.name)

    # --- what it is like

    def _configure(self, runs: list[_Run]) -> None:
        """Bring devices to what they are to be like, isolation before link-up; a living one goes back if that fails."""
        self._put_filters(runs)
        alive = [run for run in runs if run.refusal is None]
        self._exchange([(run, message) for run, messages in self._settings(alive) for message in messages])
        self._put_publics([run for run in alive if run.refusal is None])
        self._set_links([run for run in alive if run.refusal is None])
        for run in runs:
            if run.refusal is not None and run.link is not None:
                self._go_back(run)

    def _put_filters(self, runs: Sequence[_Run]) -> None:
        """Tell the guard's table of all in one transaction; if it refuses, one by one, so that one fails for itself."""
        wanted = {run.made.ifindex: self._filters(run) for run in runs if run.refusal is None}
        try:
            self._guard.put(wanted, frozenset(run.made.ifindex for run in runs if run.uplink is not None))
        except NftError:
            for run in runs:
                try:
                    standing = frozenset([run.made.ifindex] if run.uplink is not None else [])
                    self._guard.put({run.made.ifindex: wanted.get(run.made.ifindex, NOTHING)}, standing)
                except NftError as error:
                    cause = ops.NOT_READY if error.errno == errno.EOPNOTSUPP else ops.KERNEL
                    message = f"port.guard or port.limits: {error.strerror}"
                    run.fail(run.last, run.made.bridge_name, error.errno or 0, message, cause)

    def _put_publics(self, runs: Sequence[_Run]) -> None:
        """Let ports have their public addresses; most have none, and neither had they."""
        for run in runs:
            target = _target_of(run)
            if run.grant is not None and self._publics.concerns(target.port, target.before):
                try:
                    self._publics.change(run.grant, target.port, target.before)
                except PublicsError as error:
                    message = f"port.public_addresses: {error}"
                    run.fail(run.last, run.grant.nat_uplink, error.errno, message, ops.NOT_READY)

    def _filters(self, run: _Run) -> Elements:
        target = _target_of(run)
        ingress, egress = self._support.left_over(self._wanted_limits(run, target.port))
        from_vm, to_vm = (ingress, egress) if run.uplink is None else (egress, ingress)
        return ports.filters(run.made.ifindex, target.port, from_vm, to_vm)

    def _wanted_limits(self, run: _Run, port: Port) -> limits.Wanted:
        wanted = ports.wanted_limits(_target_of(run).endpoint_id, run.made.ifindex, run.made.mtu_bytes, port)
        # What the VM sends leaves by a macvtap, as by any card.
        return wanted if run.uplink is None else wanted._replace(ingress=wanted.egress, egress=wanted.ingress)

    def _settings(self, runs: Sequence[_Run]) -> list[tuple[_Run, list[bytes]]]:
        """Give the messages that bring each device to what it is to be like, but for its being up."""
        wanted = {run: self._wanted_limits(run, _target_of(run).port) for run in runs}
        needed = {w.endpoint_id: w.mtu_bytes for w in wanted.values() if self._support.needs_ifb(w)}
        ifbs = ifb.ensure(self._rtnl, needed) if needed else {}
        result = []
        for run, limited in wanted.items():
            own = ifbs.get(limited.endpoint_id, ifb.Ifb(0))
            if own.errno:
                run.fail(run.last, names.ifb_name(limited.endpoint_id), own.errno, own.message)
                continue
            result.append((run, [*self._link_messages(run), *limits.messages(self._support, limited, own.ifindex)]))
        return result

    def _link_messages(self, run: _Run) -> list[bytes]:
        target, ifindex, state = _target_of(run), run.made.ifindex, run.bridge
        if state is None and run.uplink is None:
            return []
        attributes = netlink.text(Ifla.IFNAME, target.ifname) if run.is_renamed else b""
        attributes += netlink.attribute(Ifla.ADDRESS, bytes.fromhex(target.mac.replace(":", "")))
        attributes += netlink.text(Ifla.IFALIAS, names.mark(target.endpoint_id))
        attributes += ports.attributes(target.port, run.made.mtu_bytes, state.ifindex if state else None)
        if not run.is_new and not target.port.tx_queue_length and (target.before is None or target.before.tx_queue_length):
            attributes += ports.default_queue_length(macvtap=run.uplink is not None)
        messages = [netlink.set_link(ifindex, attributes)]
        if run.is_new:
            # The name first: what changes while a device is down wakes no monitor.
            messages.insert(0, netlink.add_altname(ifindex, names.altname(target.endpoint_id)))
        else:
            # Alone: a device whose MTU was below IPv6's least has no IPv6 that the other message could be about.
            messages.insert(0, netlink.set_link(ifindex, netlink.number(Ifla.MTU, run.made.mtu_bytes)))
        if state is None:
            return messages
        if run.link is not None and run.link.number(Ifla.MASTER) != state.ifindex:
            # A fresh port of a bridge learns from frames to reserved addresses, and isn't isolated, until it is told otherwise.
            messages.insert(0, netlink.set_link(ifindex, b"", up=False))
        messages.append(ports.bridge_port(ifindex, target.before, target.port))
        return messages + ports.change_vids(ifindex, _vids_before(run, state), ports.vids_of(target.port.vlan, state.vlans))

    def _set_links(self, runs: Sequence[_Run]) -> None:
        """Set up what is to be up, and take off living devices the limits that they are not to have any more."""
        todo = []
        for run in runs:
            up = _target_of(run).port.link_up is not False
            if up or not run.is_new:
                todo.append((run, netlink.set_link(run.made.ifindex, b"", up=up)))
        self._exchange(todo)
        for run in runs:
            if not run.is_new:
                self._take_off_limits(run, _target_of(run).port)

    def _take_off_limits(self, run: _Run, port: Port) -> None:
        wanted = self._wanted_limits(run, port)
        for reply in self._rtnl.exchange(limits.superfluous(self._support, wanted)):
            if reply.errno and reply.errno not in limits.ABSENT:
                run.fail(run.last, run.made.bridge_name, reply.errno, f"a limit can't be taken off: {reply.message}")
        if not self._support.needs_ifb(wanted):
            spare = ifb.find(self._rtnl, [wanted.endpoint_id])
            self._rtnl.exchange([netlink.delete_link(link.ifindex) for link in spare.values()])

    def _go_back(self, run: _Run) -> None:
        """Bring a living device back to what it was, as far as it goes; what is missing then, a check finds."""
        target, refusal = _target_of(run), run.refusal
        if target.before is None:
            return
        run.target = target._replace(port=target.before, before=target.port)
        state, mtu_bytes = run.bridge, target.before.mtu_bytes
        run.made = ops.Made(run.made.ifindex, mtu_bytes or (state.mtu_bytes if state else 0), run.made.bridge_name)
        run.refusal = None
        self._put_filters([run])
        self._put_publics([run])
        self._exchange([(run, message) for _, messages in self._settings([run]) for message in messages])
        self._set_links([run])
        run.refusal = refusal

    def _exchange(self, todo: Sequence[tuple[_Run, bytes]]) -> None:
        for (run, _), reply in zip(todo, self._rtnl.exchange([message for _, message in todo]), strict=True):
            _note_refusal(run, reply)

    # --- the end

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
                    run.fail(run.last, run.made.bridge_name, error.errno or 0, os.strerror(error.errno or 0))
        if group.refusal is not None:
            self._undo(group, persisted)

    def _undo(self, group: _Group, persisted: Sequence[_Run]) -> None:
        """Delete what a group's plans made; first the taps, so that none is without its guard."""
        made = [run for run in group.runs if run.created is not None]
        for run in group.runs:
            run.close()
        self._rtnl.exchange([netlink.delete_link(run.made.ifindex) for run in persisted])
        self._macvtaps.delete((r.created.ifname, r.made.ifindex) for r in made if isinstance(r.created, ops.CreateMacvtap))
        if any(isinstance(op, ops.EnsureVlan) for run in group.runs for op in run.plan):
            vlans.discard_unused(self._rtnl)
        limited = [run.target.endpoint_id for run in made if run.target is not None and run.target.port.limits is not None]
        self._rtnl.exchange([netlink.delete_link(link.ifindex) for link in ifb.find(self._rtnl, limited).values()])
        self._guard.put({run.made.ifindex: NOTHING for run in made})
        self._publics.release(run.target.port for run in made if run.target is not None)

    def _discard_bridges(self, groups: list[_Group]) -> None:
        """Delete bridges that this batch made for groups that failed, unless another group's port hangs on one."""
        runs = [run for group in groups if group.refusal is not None for run in group.runs]
        for network in {op.network for run in runs for op in run.plan if isinstance(op, ops.EnsureBridge)}:
            state = self._bridges.get(network)
            if isinstance(state, bridge.BridgeState) and state.created:
                bridge.discard_unused(self._rtnl, state)


def _target_of(run: _Run) -> _Target:
    if run.target is None:
        raise RuntimeError("a run without a device is not configured")
    return run.target


def _vids_before(run: _Run, state: bridge.BridgeState) -> Mapping[int, bool | None]:
    """Give the VLANs that a port is in before it is configured; of a living one they are read where they are to change."""
    target, fresh = _target_of(run), ports.vids_of(None, state.vlans)
    if run.link is None or state.vlans.missing or run.link.number(Ifla.MASTER) != state.ifindex:
        return fresh
    if target.before is not None and target.before.vlan == target.port.vlan:
        return ports.vids_of(target.port.vlan, state.vlans)
    return ports.read_vids([run.made.ifindex])[run.made.ifindex]


def _needs_look(plan: ops.Plan) -> bool:
    """Tell whether a plan mends something, or needs what somebody else may have switched off on the bridge."""
    ports_of = [op for op in plan if isinstance(op, ops.ConfigurePort | ops.ChangePort)]
    return not ports_of or any(op.port.vlan is not None or _is_repair(op) for op in ports_of)


def _is_repair(op: ops.Operation) -> bool:
    return isinstance(op, ops.ChangePort) and op.before is None


def _check(run: _Run, authority: Authority) -> None:
    try:
        check_plan(run.plan, authority)
    except PlanRejectedError as error:
        run.refusal = ops.Refusal(run.index, "check", "", 0, f"the helper rejects the plan: {error}", ops.REJECTED)


def _alive(groups: list[_Group], stage: type[ops.Operation]) -> list[tuple[_Run, Any]]:
    """Give the operations of one stage, of the groups that nothing has failed in so far."""
    return [(run, op) for g in groups if g.refusal is None for run in g.runs for op in run.plan if isinstance(op, stage)]


def _made(run: _Run) -> ops.Made:
    return ops.Made(run.made.ifindex, run.made.mtu_bytes, run.made.bridge_name, run.device_path)


def _note_refusal(run: _Run, reply: Reply) -> None:
    if reply.errno and run.uplink is not None:
        target = _target_of(run)
        run.fail_as(run.last, target.endpoint_id, macvtap.explain_up(run.uplink, target.mac, reply))
    elif reply.errno == _EXFULL:
        message = f"bridge {run.made.bridge_name} has no free port (it takes 1,023)"
        run.fail(run.last, run.made.bridge_name, reply.errno, message, ops.FULL)
    elif reply.errno:
        run.fail(run.last, run.target.endpoint_id if run.target else "", reply.errno, reply.message)
