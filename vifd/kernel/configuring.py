"""Brings devices to what their ports are to be like: the part of making that new devices and living ones share.

One transaction of the guard's table, one netlink send that marks, attaches and limits all of them, and, for those that all went
well with, one that sets them up.
"""

from __future__ import annotations

import errno
from collections.abc import Mapping, Sequence

from vifd.kernel import ifb, ipv6, limits, names, netlink, ops, ports
from vifd.kernel.bridge import BridgeState
from vifd.kernel.netlink import Ifla, RtnlSocket
from vifd.kernel.nft.devices import Guards
from vifd.kernel.nft.elements import NOTHING, Elements
from vifd.kernel.nft.wire import NftError
from vifd.kernel.publics import Publics, PublicsError
from vifd.kernel.runs import Run
from vifd.model import Port


class Configurer:
    """Configures devices.

    Args:
        rtnl: the socket to ask through.
        guard: the guard's table.
        support: how this kernel keeps limits.
        publics: gives ports their public addresses.
    """

    def __init__(self, rtnl: RtnlSocket, guard: Guards, support: limits.Support, publics: Publics) -> None:
        self._rtnl, self._guard, self._support, self._publics = rtnl, guard, support, publics

    def configure(self, runs: Sequence[Run]) -> None:
        """Bring devices to what they are to be like, isolation before link-up; a living one goes back if that fails."""
        self._put_filters(runs)
        alive = [run for run in runs if run.refusal is None]
        self._exchange([(run, message) for run, messages in self._settings(alive) for message in messages])
        self._put_publics([run for run in alive if run.refusal is None])
        self._silence([run for run in alive if run.refusal is None])
        self._set_links([run for run in alive if run.refusal is None])
        for run in runs:
            # Where it stands on a VF, that goes back first.
            if run.refusal is not None and run.link is not None and (run.changed is None or run.uplink is None):
                self.go_back(run)

    def _put_filters(self, runs: Sequence[Run]) -> None:
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

    def _put_publics(self, runs: Sequence[Run]) -> None:
        """Let ports have their public addresses; most have none, and neither had they."""
        for run in runs:
            target = run.target
            if run.grant is not None and self._publics.concerns(target.port, target.before):
                try:
                    self._publics.change(run.grant, target.port, target.before)
                except PublicsError as error:
                    message = f"port.public_addresses: {error}"
                    run.fail(run.last, run.grant.nat_uplink, error.errno, message, ops.NOT_READY)

    def _filters(self, run: Run) -> Elements:
        target = run.target
        ingress, egress = self._support.left_over(self._wanted_limits(run, target.port))
        from_vm, to_vm = (ingress, egress) if run.uplink is None else (egress, ingress)
        return ports.filters(run.made.ifindex, target.port, from_vm, to_vm)

    def _wanted_limits(self, run: Run, port: Port) -> limits.Wanted:
        wanted = ports.wanted_limits(run.target.endpoint_id, run.made.ifindex, run.made.mtu_bytes, port)
        # What the VM sends leaves by a macvtap, as by any card.
        return wanted if run.uplink is None else wanted._replace(ingress=wanted.egress, egress=wanted.ingress)

    def _settings(self, runs: Sequence[Run]) -> list[tuple[Run, list[bytes]]]:
        """Give the messages that bring each device to what it is to be like, but for its being up."""
        wanted = {run: self._wanted_limits(run, run.target.port) for run in runs}
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

    def _link_messages(self, run: Run) -> list[bytes]:
        target, ifindex, state = run.target, run.made.ifindex, run.bridge
        if state is None and run.uplink is None:
            return []
        attributes = netlink.text(Ifla.IFNAME, target.ifname) if run.is_renamed else b""
        attributes += netlink.attribute(Ifla.ADDRESS, bytes.fromhex(target.mac.replace(":", ""))) if target.mac else b""
        attributes += netlink.text(Ifla.IFALIAS, names.mark(target.endpoint_id))
        attributes += ports.attributes(target.port, run.made.mtu_bytes, state.ifindex if state else None)
        had_length = target.mac and (target.before is None or target.before.tx_queue_length)  # a representor has the driver's
        if not run.is_new and not target.port.tx_queue_length and had_length:
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

    def _silence(self, runs: Sequence[Run]) -> None:
        """Keep the host from speaking by a macvtap: it would be with the VM's MAC, and the VM may still run on another host."""
        for run in (run for run in runs if run.uplink is not None):
            try:
                ipv6.set_all(run.target.ifname, run.made.mtu_bytes, ipv6.SILENCE)
            except ipv6.SettingError as error:
                run.fail(run.last, run.target.ifname, error.errno, str(error), ops.NOT_READY)

    def _set_links(self, runs: Sequence[Run]) -> None:
        """Set up what is to be up, and take off living devices the limits that they are not to have any more."""
        todo = []
        for run in runs:
            up = run.target.port.link_up is not False
            if up or not run.is_new:
                todo.append((run, netlink.set_link(run.made.ifindex, b"", up=up)))
        self._exchange(todo)
        for run in runs:
            if not run.is_new:
                self._take_off_limits(run, run.target.port)

    def _take_off_limits(self, run: Run, port: Port) -> None:
        wanted = self._wanted_limits(run, port)
        for reply in self._rtnl.exchange(limits.superfluous(self._support, wanted)):
            if reply.errno and reply.errno not in limits.ABSENT:
                run.fail(run.last, run.made.bridge_name, reply.errno, f"a limit can't be taken off: {reply.message}")
        if not self._support.needs_ifb(wanted):
            spare = ifb.find(self._rtnl, [wanted.endpoint_id])
            self._rtnl.exchange([netlink.delete_link(link.ifindex) for link in spare.values()])

    def go_back(self, run: Run) -> None:
        """Bring a living device back to what it was, as far as it goes; what is missing then, a check finds."""
        target, refusal = run.target, run.refusal
        if target.before is None:
            return
        run.target = target._replace(port=target.before, before=target.port)
        place, mtu_bytes = run.bridge or run.uplink, target.before.mtu_bytes
        run.made = ops.Made(run.made.ifindex, mtu_bytes or (place.mtu_bytes if place else 0), run.made.bridge_name)
        run.refusal = None
        self._put_filters([run])
        self._put_publics([run])
        self._exchange([(run, message) for _, messages in self._settings([run]) for message in messages])
        self._set_links([run])
        run.refusal = refusal

    def _exchange(self, todo: Sequence[tuple[Run, bytes]]) -> None:
        for (run, _), reply in zip(todo, self._rtnl.exchange([message for _, message in todo]), strict=True):
            run.note(reply)


def _vids_before(run: Run, state: BridgeState) -> Mapping[int, bool | None]:
    """Give the VLANs that a port is in before it is configured; of a living one they are read where they are to change."""
    target, fresh = run.target, ports.vids_of(None, state.vlans)
    if run.link is None or state.vlans.missing or run.link.number(Ifla.MASTER) != state.ifindex:
        return fresh
    if target.before is not None and target.before.vlan == target.port.vlan:
        return ports.vids_of(target.port.vlan, state.vlans)
    return ports.read_vids([run.made.ifindex])[run.made.ifindex]
