"""Carries plans out and takes them back, in batches; runs in the privileged helper. What makes is in `making`."""

from __future__ import annotations

import errno
import os
import secrets
import socket
from collections.abc import Callable, Iterable
from typing import NamedTuple

from pyroute2 import IPRoute

from vifd.kernel import bridge, ifb, limits, macvtap, names, nat, netlink, ops, tap, vlans
from vifd.kernel.announcing import Announcer
from vifd.kernel.authority import (
    Authority,
    BridgeGrant,
    FunctionGrant,
    PlanRejectedError,
    UplinkGrant,
    VdpaGrant,
    check_function,
    check_identity,
    check_plan,
)
from vifd.kernel.checking import Checker
from vifd.kernel.direct import Macvtaps
from vifd.kernel.making import Devices, Maker
from vifd.kernel.marks import is_device_of, is_port_of, look_up
from vifd.kernel.netlink import Ifla, Link, Reply, RtnlSocket, TunInfo
from vifd.kernel.nft.devices import Guards
from vifd.kernel.nft.elements import NOTHING
from vifd.kernel.nft.nat import NatTable, NoNatTable
from vifd.kernel.nodes import Nodes
from vifd.kernel.publics import Publics
from vifd.kernel.sriov.comparing import FunctionChecker
from vifd.kernel.sriov.functions import Functions
from vifd.kernel.sriov.hardware import Hardware
from vifd.kernel.sriov.nic import RtnlNic
from vifd.kernel.sriov.preparing import FunctionPreparer
from vifd.kernel.vdpa.devices import VdpaDevices
from vifd.kernel.vdpa.tools import Vdpa
from vifd.model import Drift, DriftKind, Kind

_Create = ops.CreateTap | ops.CreateMacvtap
_KINDS = ("tun", macvtap.KIND)


class Tools(NamedTuple):
    """What the helper's executors share: made while it has every capability.

    Args:
        guard: the guard's table.
        nat: the table of networks with NAT.
        support: how this kernel keeps limits.
        nodes: the device nodes of macvtaps; or why none can be made.
        packets: what frames are sent from; None: there is none.
        hardware: the VFs of this host; or why none can be used.
        vdpa: the vDPA devices of this host; or why none can be made.
    """

    guard: Guards
    nat: NatTable | NoNatTable
    support: limits.Support
    nodes: Nodes | str
    packets: socket.socket | None
    hardware: Hardware | str
    vdpa: Vdpa | str

    def close(self) -> None:
        """Let go of it, in a process that must not have it."""
        self.guard.close()
        self.nat.close()
        if isinstance(self.nodes, Nodes):
            self.nodes.close()
        if self.packets is not None:
            self.packets.close()
        if isinstance(self.hardware, Hardware):
            self.hardware.close()
        if isinstance(self.vdpa, Vdpa):
            self.vdpa.close()


class Executor:
    """Carries plans out with the helper's capabilities. One thread at a time.

    Args:
        authority: gives what the configuration lets it touch, as it is now.
        tools: what the executors share.
    """

    def __init__(self, authority: Callable[[], Authority], tools: Tools) -> None:
        self._authority, self._guard, self._nat = authority, tools.guard, tools.nat
        self._publics = Publics(tools.nat)
        self._rtnl = RtnlSocket()
        self._macvtaps = Macvtaps(self._rtnl, tools.nodes)
        nic = RtnlNic(self._rtnl)
        self._functions, self._preparer = Functions(tools.hardware, nic, tools.guard), FunctionPreparer(tools.hardware, nic)
        self._function_checker = FunctionChecker(tools.hardware, nic)
        self._vdpa = VdpaDevices(tools.vdpa)
        devices = Devices(self._macvtaps, self._functions, self._vdpa)
        self._maker = Maker(self._rtnl, tools.guard, tools.support, devices, self._publics)
        self._checker = Checker(self._rtnl, tools.guard, tools.support, self._macvtaps, self._publics)
        self._announcer = Announcer(self._rtnl, tools.packets)

    def apply(self, groups: Iterable[ops.Group]) -> ops.ApplyAnswer:
        """Make groups of plans, each all or none; see Maker."""
        return self._maker.apply(groups, self._authority())

    def revert(self, plans: Iterable[ops.Plan]) -> ops.RevertAnswer:
        """Delete what plans have made. What isn't there (any more), or isn't the endpoint's, is left alone.

        Args:
            plans: from another process; names and marks are checked first.

        Returns:
            For each plan, None, or why its device is still there.
        """
        known = list(plans)
        created = [next((op for op in plan if isinstance(op, ops.CreateTap | ops.CreateMacvtap)), None) for plan in known]
        answer: ops.RevertAnswer = [None] * len(created)
        found: list[tuple[int, _Create, Link]] = []
        wanted = [(i, op) for i, op in enumerate(created) if op is not None]
        for i, op in wanted:
            answer[i] = _check_identity(i, op)
        wanted = [(i, op) for i, op in wanted if answer[i] is None]
        for (i, op), reply in zip(wanted, look_up(self._rtnl, [op.endpoint_id for _, op in wanted]), strict=True):
            if is_device_of(reply.link, op.endpoint_id):
                found.append((i, op, reply.link))
            elif reply.errno not in (0, errno.ENODEV):
                answer[i] = _refusal(i, op, reply)
        self._discard_nodes([op for _, op in wanted], [link for *_, link in found])
        # A device's ifb goes in the same group, for the same RCU grace periods. Then what the guard has of it.
        ifbs = list(ifb.find(self._rtnl, [op.endpoint_id for _, op, _ in found]).values())
        replies = self._delete([link for *_, link in found] + ifbs)
        for (i, op, _), reply in zip(found, replies, strict=False):
            if reply.errno not in (0, errno.ENODEV):
                answer[i] = _refusal(i, op, reply)
        self._guard.put({link.ifindex: NOTHING for i, _, link in found if answer[i] is None})
        gone = [plan for plan, refusal in zip(known, answer, strict=True) if refusal is None]
        self._publics.release(op.port for plan in gone for op in plan if isinstance(op, ops.ConfigurePort))
        if any(isinstance(op, ops.EnsureVlan) for plan in gone for op in plan):
            vlans.discard_unused(self._rtnl)
        for i, plan in enumerate(known):  # last: it may take seconds, and no tap waits for it
            answer[i] = answer[i] or self._release_function(i, plan) or self._delete_vdpa(i, plan)
        return answer

    def _release_function(self, index: int, plan: ops.Plan) -> ops.Refusal | None:
        """Give the VF of a plan back, if there is one and it is the endpoint's."""
        op = next((op for op in plan if isinstance(op, ops.ClaimFunction)), None)
        if op is None:
            return None
        try:
            check_function(op.endpoint_id, op.address)
        except PlanRejectedError as error:
            return ops.Refusal(index, "check", "", 0, f"the helper rejects the plan: {error}", ops.REJECTED)
        failure = self._functions.release(op.endpoint_id, op.address)
        if failure is None:
            return None
        return ops.Refusal(index, "ReleaseFunction", op.address, failure.errno, failure.message, failure.cause)

    def _delete_vdpa(self, index: int, plan: ops.Plan) -> ops.Refusal | None:
        """Delete the vDPA device of a plan, if there is one and it is the endpoint's."""
        op = next((op for op in plan if isinstance(op, ops.CreateVdpa)), None)
        if op is None:
            return None
        try:
            check_identity(op.endpoint_id, op.name, Kind.VDPA)
        except PlanRejectedError as error:
            return ops.Refusal(index, "check", "", 0, f"the helper rejects the plan: {error}", ops.REJECTED)
        failure = self._vdpa.release(op.endpoint_id, op.name)
        return (
            None if failure is None else ops.Refusal(index, "DeleteVdpa", op.name, failure.errno, failure.message, failure.cause)
        )

    def check(self, plans: Iterable[ops.Plan]) -> list[list[Drift]]:
        """Compare what plans have made with what is there; see Checker.

        Of what the configuration doesn't allow any more, it tells just that.
        """
        wanted, authority = list(plans), self._authority()
        answer = [_rejection(plan, authority) for plan in wanted]
        allowed = [plan for plan, drifts in zip(wanted, answer, strict=True) if not drifts]
        compared = iter(self._checker.check(allowed, authority))
        return [drifts or next(compared) + self._compare_alone(plan) for plan, drifts in zip(wanted, answer, strict=True)]

    def _compare_alone(self, plan: ops.Plan) -> list[Drift]:
        """Compare the VF or the vDPA device of a plan."""
        if (create := next((op for op in plan if isinstance(op, ops.CreateVdpa)), None)) is not None:
            return self._vdpa.compare(create, next((op for op in plan if isinstance(op, ops.BindVdpa)), None))
        claim = next((op for op in plan if isinstance(op, ops.ClaimFunction)), None)
        bind = next((op for op in plan if isinstance(op, ops.BindFunction)), None)
        return [] if claim is None else self._function_checker.compare(claim, bind)

    def announce(self, plans: Iterable[ops.Plan]) -> list[str]:
        """Announce VMs that run here now; see Announcer.

        Returns:
            For each plan, why its VM couldn't be announced; empty: it was, or there is nothing to announce it to.
        """
        authority = self._authority()
        return [_rejected(plan, authority) or self._announcer.announce(plan, authority) for plan in plans]

    def restore_guard(self) -> bool:
        """Put the tables back if somebody has changed them, the guard's without what it had of devices that are gone.

        Returns:
            Whether somebody had changed one.
        """
        changed = self._guard.restore() | self._nat.restore()
        self._sweep()
        return changed

    def _sweep(self) -> None:
        """Forget what the guard's table has of devices that are gone, and delete ifbs of those."""
        ports = sorted(self._guard.ports)
        links = self._rtnl.exchange([netlink.get_link(ifindex=ifindex) for ifindex in ports])
        gone = {i for i, reply in zip(ports, links, strict=True) if reply.errno == errno.ENODEV}
        self._guard.put(dict.fromkeys(gone, NOTHING))
        marked = ifb.find_marked()
        ports_of = look_up(self._rtnl, list(marked))
        idle = [i for (e, i), reply in zip(marked.items(), ports_of, strict=True) if not is_port_of(reply.link, e)]
        self._rtnl.exchange([netlink.delete_link(ifindex) for ifindex in idle])

    def prepare(self) -> dict[str, str]:
        """Bring NAT and every configured bridge to what the configuration says, and look at the uplinks of direct networks.

        Nodes without a device are swept up, and devices of VLANs that nothing uses.

        Returns:
            By network, why that was not possible.
        """
        self._sweep()
        publics = self._nat.publics
        problems = nat.prepare(self._rtnl, self._nat, self._authority())
        # Networks of VFs last: a bridge that one has in common with another network is the other's to make.
        grants = sorted(self._authority().items(), key=lambda one: isinstance(one[1], FunctionGrant))
        for network, grant in grants:
            try:
                if isinstance(grant, UplinkGrant):
                    self._macvtaps.prepare(network, grant)
                    continue
                if isinstance(grant, VdpaGrant):
                    problem = self._vdpa.prepare(grant)
                    problems |= {network: problem} if problem else {}
                    continue
                if (bridged := grant if isinstance(grant, BridgeGrant) else grant.bridge) is not None:
                    bridge.prepare(self._rtnl, network, bridged, publics)
                if isinstance(grant, FunctionGrant) and (problem := self._preparer.prepare(network, grant)):
                    problems[network] = problem
            except (bridge.BridgeError, macvtap.UplinkError) as error:
                problems[network] = str(error)
        self._macvtaps.discard_stale_nodes()
        self._preparer.discard_stale_marks()
        self._vdpa.discard_stale_marks()
        vlans.discard_unused(self._rtnl)
        return self._publics.settle(self._authority(), publics) | problems

    @property
    def remarks(self) -> dict[str, str]:
        """Give by network what `prepare` found that isn't as it was configured, though endpoints can be made."""
        return self._preparer.remarks

    def _discard_nodes(self, wanted: list[_Create], found: list[Link]) -> None:
        """Delete the nodes of macvtaps that are about to be deleted, and of those that are gone already."""
        macvtaps = [link for link in found if link.kind == macvtap.KIND]
        for link in macvtaps:
            self._macvtaps.discard_node(link.text(Ifla.IFNAME), link.ifindex)
        if sum(isinstance(op, ops.CreateMacvtap) for op in wanted) > len(macvtaps):
            self._macvtaps.discard_stale_nodes()

    def inspect(self, endpoint_ids: Iterable[str]) -> list[ops.Device]:
        """Tell what is there of some endpoints' devices; endpoints that have none are left out."""
        found = zip(endpoint_ids, look_up(self._rtnl, list(endpoint_ids)), strict=True)
        return [self._device(reply.link) for endpoint_id, reply in found if is_port_of(reply.link, endpoint_id)]

    def find_marked(self) -> list[ops.Device]:
        """Tell every tap and macvtap and VF and vDPA device that has an endpoint's mark, of all: for the start alone."""
        with IPRoute() as ipr:
            found = [m for kind in _KINDS for m in ipr.link("dump", kind=kind)]
        indexes = [m["index"] for m in found if names.marked_endpoint_id(m.get_attr("IFLA_IFALIAS") or "")]
        replies = self._rtnl.exchange([netlink.get_link(ifindex=index) for index in indexes])
        devices = [self._device(reply.link) for reply in replies if reply.link]
        return devices + self._preparer.find_marked(self._authority()) + self._vdpa.find_marked()

    def open_queues(self, endpoint_id: str, count: int, *, vnet_hdr: bool) -> list[int]:
        """Open queues of an endpoint's tap, as its own settings say they must be, or of its macvtap.

        Args:
            endpoint_id: the endpoint.
            count: how many.
            vnet_hdr: whether frames of a macvtap carry a virtio-net header: each queue of one has it in its own way.

        Raises:
            OSError: ENODEV where the endpoint has no device (any more), EBUSY where a tap is open already, or what else the
            kernel says.
        """
        link = look_up(self._rtnl, [endpoint_id])[0].link
        if not is_device_of(link, endpoint_id):
            raise OSError(errno.ENODEV, f"endpoint {endpoint_id} has no tap")
        if link.kind == macvtap.KIND:
            return self._macvtaps.open_queues(link, count, vnet_hdr=vnet_hdr)
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

    def _device(self, link: Link) -> ops.Device:
        return ops.Device(
            ifname=link.text(Ifla.IFNAME),
            ifindex=link.ifindex,
            kind=link.kind,
            endpoint_id=names.marked_endpoint_id(link.text(Ifla.IFALIAS)),
            master=link.number(Ifla.MASTER),
            mtu_bytes=link.number(Ifla.MTU),
            mac=link.attributes.get(Ifla.ADDRESS, b"").hex(":"),
            up=bool(link.flags & netlink.IFF_UP),
            # A macvtap's carrier is its uplink's: it doesn't tell whether somebody has it open.
            carrier=link.kind == "tun" and bool(link.flags & netlink.IFF_LOWER_UP),
            device_path=self._macvtaps.find_node(link),
        )

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


def _rejected(plan: ops.Plan, authority: Authority) -> str:
    try:
        check_plan(plan, authority)
    except PlanRejectedError as error:
        return f"the helper rejects the plan: {error}"
    return ""


def _rejection(plan: ops.Plan, authority: Authority) -> list[Drift]:
    problem = _rejected(plan, authority)
    return [Drift(DriftKind.NETWORK_MISSING, "", "", problem)] if problem else []


def _is_same(link: Link, before: Link, group: int) -> bool:
    alias = link.attributes.get(Ifla.IFALIAS) == before.attributes.get(Ifla.IFALIAS)
    return link.ifindex == before.ifindex and alias and link.number(Ifla.GROUP) == group


def _check_identity(index: int, op: _Create) -> ops.Refusal | None:
    try:
        check_identity(op.endpoint_id, op.ifname, Kind.TAP if isinstance(op, ops.CreateTap) else Kind.MACVTAP)
    except PlanRejectedError as error:
        return ops.Refusal(index, "check", op.ifname, 0, f"the helper rejects the plan: {error}", ops.REJECTED)
    return None


def _refusal(index: int, op: _Create, reply: Reply) -> ops.Refusal:
    return ops.Refusal(
        index, "DeleteTap" if isinstance(op, ops.CreateTap) else "DeleteMacvtap", op.ifname, reply.errno, reply.message
    )
