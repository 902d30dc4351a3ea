"""Carries plans out and takes them back, in batches; runs in the privileged helper.

A batch runs stage by stage: every bridge, then every tap, then every port, so that one netlink send serves them all. What fails
takes its
group with it, and what the group had made is undone.
"""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Callable, Iterable
from typing import Any, TypeGuard

from pyroute2 import IPRoute

from vifd.kernel import bridge, names, netlink, ops, tap
from vifd.kernel.authority import Authority, BridgeGrant, PlanRejectedError, check_identity, check_plan
from vifd.kernel.netlink import Ifla, Link, Reply, RtnlSocket, TunInfo

_OWN_BRIDGE_IS_FULL = 54  # EXFULL, net/bridge/br_if.c, find_portno: 1,023 ports


class _Run:
    """One plan on its way: what it has made so far, and why it failed."""

    def __init__(self, plan: ops.Plan, group: int, index: int) -> None:
        self.plan, self.group, self.index = plan, group, index
        self.fd = -1
        self.made = ops.Made()
        self.tap: ops.CreateTap | None = None
        self.refusal: ops.Refusal | None = None

    def fail(self, operation: ops.Operation, device: str, code: int, message: str, cause: str = ops.KERNEL) -> None:
        self.refusal = ops.Refusal(self.index, type(operation).__name__, device, code, message, cause)


class Executor:
    """Carries plans out with the helper's capabilities. One thread at a time.

    Args:
        authority: gives what the configuration lets it touch, as it is now.
    """

    def __init__(self, authority: Callable[[], Authority]) -> None:
        self._authority = authority
        self._rtnl = RtnlSocket()
        self._bridges: dict[str, bridge.BridgeState | bridge.BridgeError] = {}
        self._stages: dict[type[ops.Operation], Callable[[list[tuple[_Run, Any]]], None]] = {
            ops.EnsureBridge: self._ensure_bridges,
            ops.CreateTap: self._create_taps,
            ops.AttachPort: self._attach_ports,
        }

    def apply(self, groups: Iterable[ops.Group]) -> ops.ApplyAnswer:
        """Make groups of plans, each all or none.

        Args:
            groups: from another process; every plan is checked first.

        Returns:
            For each group, what its plans came to, or the first refusal.
        """
        authority = self._authority()
        per_group = [[_Run(plan, g, i) for i, plan in enumerate(group)] for g, group in enumerate(groups)]
        runs = [run for group in per_group for run in group]
        failed: set[int] = set()
        for run in runs:
            _check(run, authority)
        _note_failures(runs, failed)
        for stage, handler in self._stages.items():
            alive = [(run, op) for run in runs if run.group not in failed for op in run.plan if isinstance(op, stage)]
            if alive:
                handler(alive)
                _note_failures(runs, failed)
        self._undo([run for run in runs if run.group in failed])
        return [_answer(group) for group in per_group]

    def revert(self, plans: Iterable[ops.Plan]) -> ops.RevertAnswer:
        """Delete what plans have made. What isn't there (any more), or isn't the endpoint's, is left alone.

        Args:
            plans: from another process; names and marks are checked first.

        Returns:
            For each plan, None, or why its device is still there.
        """
        taps = [next((op for op in plan if isinstance(op, ops.CreateTap)), None) for plan in plans]
        answer: ops.RevertAnswer = [None] * len(taps)
        found: list[tuple[int, ops.CreateTap, Link]] = []
        wanted = [(i, op) for i, op in enumerate(taps) if op is not None]
        for i, op in wanted:
            answer[i] = _check_tap_identity(i, op)
        wanted = [(i, op) for i, op in wanted if answer[i] is None]
        for (i, op), reply in zip(wanted, self._look_up([op.endpoint_id for _, op in wanted]), strict=True):
            if is_tap_of(reply.link, op.endpoint_id):
                found.append((i, op, reply.link))
            elif reply.errno not in (0, errno.ENODEV):
                answer[i] = _refusal(i, op, reply)
        for (i, op, _), reply in zip(found, self._delete([link for *_, link in found]), strict=True):
            if reply.errno not in (0, errno.ENODEV):
                answer[i] = _refusal(i, op, reply)
        return answer

    def prepare(self) -> dict[str, str]:
        """Bring every configured bridge to what the configuration says.

        Returns:
            By network, why that was not possible.
        """
        problems = {}
        for network, grant in self._authority().items():
            try:
                bridge.prepare(self._rtnl, network, grant)
            except bridge.BridgeError as error:
                problems[network] = str(error)
        return problems

    def _ensure_bridges(self, todo: list[tuple[_Run, ops.EnsureBridge]]) -> None:
        authority = self._authority()
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

    def _create_taps(self, todo: list[tuple[_Run, ops.CreateTap]]) -> None:
        opened = [(run, op) for run, op in todo if self._open_tap(run, op)]
        messages = []
        for run, op in opened:
            attributes = (
                netlink.attribute(Ifla.ADDRESS, bytes.fromhex(op.mac.replace(":", "")))
                + netlink.text(Ifla.IFALIAS, names.mark(op.endpoint_id))
                + (netlink.NO_IPV6_ADDRESS if bridge.has_ipv6() else b"")
            )
            messages.append(netlink.set_link(run.made.ifindex, attributes))
            messages.append(netlink.add_altname(run.made.ifindex, names.altname(op.endpoint_id)))
        replies = self._rtnl.exchange(messages)
        for (run, op), marked, named in zip(opened, replies[::2], replies[1::2], strict=True):
            _settle_tap(run, op, marked if marked.errno else named)

    def _open_tap(self, run: _Run, op: ops.CreateTap) -> bool:
        try:
            run.fd = tap.create(op.ifname, uid=op.owner_uid, gid=op.owner_gid, multi_queue=op.queues > 1, vnet_hdr=op.vnet_hdr)
            run.made = ops.Made(
                tap.device_number(self._rtnl.fileno(), tap.SIOCGIFINDEX, op.ifname), run.made.mtu_bytes, run.made.bridge_name
            )
        except OSError as error:
            _close(run)
            exists = f"a device of that name is there already that isn't {op.endpoint_id}'s"
            run.fail(op, op.ifname, error.errno or 0, exists if error.errno == errno.EBUSY else os.strerror(error.errno or 0))
        return run.refusal is None

    def _attach_ports(self, todo: list[tuple[_Run, ops.AttachPort]]) -> None:
        ready = [(run, op, state) for run, op in todo if (state := self._usable_bridge(run, op))]
        messages = []
        for run, op, state in ready:
            mtu_bytes = op.mtu_bytes or state.mtu_bytes
            run.made = ops.Made(run.made.ifindex, mtu_bytes, state.name)
            attributes = netlink.number(Ifla.MTU, mtu_bytes) + netlink.number(Ifla.MASTER, state.ifindex)
            messages.append(netlink.set_link(run.made.ifindex, attributes, up=True))
        for (run, op, state), reply in zip(ready, self._rtnl.exchange(messages), strict=True):
            if reply.errno == _OWN_BRIDGE_IS_FULL:
                run.fail(op, state.name, reply.errno, f"bridge {state.name} has no free port (it takes 1,023)", ops.FULL)
            elif reply.errno:
                run.fail(op, op.ifname, reply.errno, reply.message)

    def _usable_bridge(self, run: _Run, op: ops.AttachPort) -> bridge.BridgeState | None:
        state = self._bridges.get(op.network)
        if not isinstance(state, bridge.BridgeState):
            run.fail(op, op.ifname, 0, "a port needs EnsureBridge in its plan", ops.REJECTED)
            return None
        if op.mtu_bytes > state.mtu_bytes:
            message = f"MTU {op.mtu_bytes} is more than bridge {state.name}'s {state.mtu_bytes}"
            run.fail(op, op.ifname, 0, message, ops.NOT_READY)
            return None
        if 0 < op.mtu_bytes < state.mtu_bytes and not state.own:
            message = f"MTU {op.mtu_bytes} would lower the MTU of bridge {state.name} ({state.mtu_bytes}), which vifd didn't make"
            run.fail(op, op.ifname, 0, message, ops.NOT_READY)
            return None
        return state

    def _undo(self, runs: list[_Run]) -> None:
        """Take back what failed groups have made, newest first."""
        for run in runs:
            _close(run)
        made = [run for run in runs if run.tap is not None]
        replies = self._rtnl.exchange([netlink.get_link(ifindex=run.made.ifindex) for run in made])
        links = [r.link for run, r in zip(made, replies, strict=True) if run.tap and is_tap_of(r.link, run.tap.endpoint_id)]
        self._delete([link for link in links if link is not None])
        used = {op.network for run in runs for op in run.plan if isinstance(op, ops.EnsureBridge)}
        for network in used:
            state = self._bridges.get(network)
            if isinstance(state, bridge.BridgeState) and state.created:
                bridge.discard_unused(self._rtnl, state)

    def _look_up(self, endpoint_ids: list[str]) -> list[Reply]:
        """Find devices by the alternative name that stays when somebody renames them."""
        return self._rtnl.exchange([netlink.get_link(altname=names.altname(endpoint_id)) for endpoint_id in endpoint_ids])

    def inspect(self, endpoint_ids: Iterable[str]) -> list[ops.Device]:
        """Tell what is there of some endpoints' devices; endpoints that have none are left out."""
        found = zip(endpoint_ids, self._look_up(list(endpoint_ids)), strict=True)
        return [_device(reply.link) for endpoint_id, reply in found if is_tap_of(reply.link, endpoint_id)]

    def find_marked(self) -> list[ops.Device]:
        """Tell every tap of this namespace that carries an endpoint's mark. It lists all devices: for the start alone."""
        with IPRoute() as ipr:
            indexes = [
                m["index"] for m in ipr.link("dump", kind="tun") if names.marked_endpoint_id(m.get_attr("IFLA_IFALIAS") or "")
            ]
        replies = self._rtnl.exchange([netlink.get_link(ifindex=index) for index in indexes])
        return [_device(reply.link) for reply in replies if reply.link]

    def open_queues(self, endpoint_id: str, count: int) -> list[int]:
        """Open queues of an endpoint's tap, as its own settings say they must be.

        Raises:
            OSError: ENODEV where the endpoint has no tap (any more), EBUSY where it is open already, or what else the kernel
            says.
        """
        link = self._look_up([endpoint_id])[0].link
        if not is_tap_of(link, endpoint_id):
            raise OSError(errno.ENODEV, f"endpoint {endpoint_id} has no tap")
        ifname, fds = link.text(Ifla.IFNAME), []
        flags = {"multi_queue": link.tun_flag(TunInfo.MULTI_QUEUE), "vnet_hdr": link.tun_flag(TunInfo.VNET_HDR)}
        try:
            for _ in range(count):
                fds.append(tap.open_queue(ifname, **flags))
                if tap.device_number(self._rtnl.fileno(), tap.SIOCGIFINDEX, ifname) != link.ifindex:
                    raise OSError(errno.ENODEV, f"tap {ifname} went away")
        except OSError:
            for fd in fds:
                os.close(fd)
            raise
        return fds

    def _delete(self, links: list[Link]) -> list[Reply]:
        """Delete devices whose marks were just read: one by its index, several by a group of their own.

        Each deletion waits for RCU grace periods of 13 to 20 ms, a group for the same ones once.
        """
        if len(links) < 2:
            return self._rtnl.exchange([netlink.delete_link(link.ifindex) for link in links])
        # Deleting by group deletes every member: the number is fresh, and random, and no group that anybody gives by hand.
        group = secrets.randbelow(1 << 30) + (1 << 30)
        moved = self._rtnl.exchange([netlink.set_link(link.ifindex, netlink.number(Ifla.GROUP, group)) for link in links])
        checked = self._rtnl.exchange([netlink.get_link(ifindex=link.ifindex) for link in links])
        together = all(
            reply.link is None or _is_same(reply.link, link, group) for reply, link in zip(checked, links, strict=True)
        )
        if together and any(reply.errno == 0 for reply in moved):
            reply = self._rtnl.ask(netlink.delete_group(group))
            if reply.errno == 0:
                return [Reply(0)] * len(links)
        return self._rtnl.exchange([netlink.delete_link(link.ifindex) for link in links])


def is_tap_of(link: Link | None, endpoint_id: str) -> TypeGuard[Link]:
    """Tell whether a device is the tap that vifd made for an endpoint: by its kind and mark, which only root can change."""
    return link is not None and link.kind == "tun" and link.text(Ifla.IFALIAS) == names.mark(endpoint_id)


def _device(link: Link) -> ops.Device:
    return ops.Device(
        ifname=link.text(Ifla.IFNAME),
        ifindex=link.ifindex,
        kind=link.kind,
        endpoint_id=names.marked_endpoint_id(link.text(Ifla.IFALIAS)),
        master=link.number(Ifla.MASTER),
        mtu_bytes=link.number(Ifla.MTU),
        mac=link.attributes.get(Ifla.ADDRESS, b"").hex(":"),
        up=bool(link.flags & netlink.IFF_UP),
        carrier=bool(link.flags & netlink.IFF_LOWER_UP),
    )


def _is_same(link: Link, before: Link, group: int) -> bool:
    alias = link.attributes.get(Ifla.IFALIAS) == before.attributes.get(Ifla.IFALIAS)
    return link.ifindex == before.ifindex and alias and link.number(Ifla.GROUP) == group


def _check(run: _Run, authority: Authority) -> None:
    try:
        check_plan(run.plan, authority)
    except PlanRejectedError as error:
        run.refusal = ops.Refusal(run.index, "check", "", 0, f"the helper rejects the plan: {error}", ops.REJECTED)


def _check_tap_identity(index: int, op: ops.CreateTap) -> ops.Refusal | None:
    try:
        check_identity(op.endpoint_id, op.ifname)
    except PlanRejectedError as error:
        return ops.Refusal(index, "check", op.ifname, 0, f"the helper rejects the plan: {error}", ops.REJECTED)
    return None


def _refusal(index: int, op: ops.CreateTap, reply: Reply) -> ops.Refusal:
    return ops.Refusal(index, "DeleteTap", op.ifname, reply.errno, reply.message)


def _settle_tap(run: _Run, op: ops.CreateTap, reply: Reply) -> None:
    """Keep a tap that carries its mark, let one go that doesn't."""
    if reply.errno:
        _close(run)
        run.fail(op, op.ifname, reply.errno, reply.message)
        return
    fd, run.fd = run.fd, -1
    try:
        tap.persist(fd)
        run.tap = op
    except OSError as error:
        run.fail(op, op.ifname, error.errno or 0, os.strerror(error.errno or 0))


def _close(run: _Run) -> None:
    """Close a tap that isn't persistent yet: the kernel deletes it."""
    if run.fd >= 0:
        os.close(run.fd)
        run.fd = -1


def _note_failures(runs: list[_Run], failed: set[int]) -> None:
    failed.update(run.group for run in runs if run.refusal is not None)


def _answer(group: list[_Run]) -> list[ops.Made] | ops.Refusal:
    return next((run.refusal for run in group if run.refusal is not None), None) or [run.made for run in group]
