"""Compares what plans have made with what is there: the half of the executor that only looks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from vifd.kernel import bridge, limitcheck, limits, macvtap, names, netlink, ops, ports
from vifd.kernel.authority import Authority, BridgeGrant, Grant, UplinkGrant, bridge_grant
from vifd.kernel.direct import Macvtaps
from vifd.kernel.marks import is_device_of, is_representor_of, look_up
from vifd.kernel.netlink import IFF_UP, BridgePort, Ifla, Link, RtnlSocket
from vifd.kernel.nft.devices import Guards
from vifd.kernel.owner import NOBODY, owner_of
from vifd.kernel.publics import Publics
from vifd.model import Drift, DriftKind, Port


class Checker:
    """Finds drifts: differences between what a plan says and what the kernel has.

    Args:
        rtnl: the socket to ask through.
        guard: the guard's table.
        support: how this kernel keeps limits.
        macvtaps: knows their nodes.
        publics: knows public addresses.
    """

    def __init__(self, rtnl: RtnlSocket, guard: Guards, support: limits.Support, macvtaps: Macvtaps, publics: Publics) -> None:
        self._rtnl, self._guard, self._support, self._macvtaps, self._publics = rtnl, guard, support, macvtaps, publics

    def check(self, plans: Sequence[ops.Plan], authority: Authority) -> list[list[Drift]]:
        """Compare.

        Args:
            plans: those that made the endpoints' devices, already checked.
            authority: by network, which bridge it is.

        Returns:
            For each plan, what differs.
        """
        devices = [_device_of(plan) for plan in plans]
        replies = iter(look_up(self._rtnl, [op.endpoint_id for op in devices if op is not None]))
        links = [None if op is None else next(replies).link for op in devices]
        networks = {op.network for plan in plans for op in plan if isinstance(op, ops.EnsureBridge)}
        bridges = {network: self._find_bridge(bridge_grant(authority, network)) for network in networks}
        vids = _read_vids(plans, links)
        result = []
        for plan, created, link in zip(plans, devices, links, strict=True):
            configured = next((op for op in plan if isinstance(op, ops.ConfigurePort)), None)
            network = next((op.network for op in plan if isinstance(op, ops.EnsureBridge)), "")
            state, drifts = bridges[network] if network else (None, ())
            found = list(drifts)
            if created is not None:
                if isinstance(created, ops.ClaimFunction):
                    found += self._compare_representor(link, created, state, vids)
                elif not is_device_of(link, created.endpoint_id):
                    words = f"{created.ifname} is gone; repair the endpoint, or release it"
                    found.append(_drift(DriftKind.DEVICE_MISSING, created.ifname, "", words))
                elif isinstance(created, ops.CreateMacvtap):
                    found += self._compare_macvtap(link, created, plan, authority)
                elif configured is not None:
                    found += self._compare(link, created, configured.port, state, vids.get(link.ifindex, {}))
                    found += self._compare_publics(configured.port, authority[configured.network])
            result.append(found)
        return result

    def _find_bridge(self, grant: BridgeGrant) -> tuple[Link | None, tuple[Drift, ...]]:
        """Give a network's bridge, if it is there, and what is wrong with the network itself."""
        link = bridge.find_link(self._rtnl, grant.bridge)
        if link is None or link.kind != "bridge":
            actual = "" if link is None else link.kind or "a network card"
            return None, (_drift(DriftKind.NETWORK_MISSING, grant.bridge, actual, f"there is no bridge {grant.bridge}"),)
        expected, problem = bridge.find_uplink_problem(self._rtnl, grant, link)
        return link, (_drift(DriftKind.NETWORK_MISSING, expected, "", problem),) if problem else ()

    def _compare(
        self, link: Link, created: ops.CreateTap, port: Port, master: Link | None, vids: Mapping[int, bool | None]
    ) -> Iterator[Drift]:
        yield from _compare_link(link, created, port, master)
        yield from _compare_owner(link, created)
        if master is not None and link.number(Ifla.MASTER) == master.ifindex:
            yield from _compare_port(link, port)
            yield from _compare_vlan(master, port, vids)
        yield from self._compare_guard_and_limits(link, created.endpoint_id, port)

    def _compare_representor(
        self, link: Link | None, claim: ops.ClaimFunction, master: Link | None, vids: Mapping[int, Mapping[int, bool | None]]
    ) -> Iterator[Drift]:
        """Compare what a VF is attached through. Its name and what else is the VF's is told with that."""
        if not is_representor_of(link, claim.endpoint_id):
            words = f"VF {claim.address} has no representor with this endpoint's mark: is its PF's switch in mode switchdev?"
            yield _drift(DriftKind.NETWORK_MISSING, "a representor", "", words)
            return
        yield from _compare_state(link, claim.port, master)
        if master is not None and link.number(Ifla.MASTER) == master.ifindex:
            yield from _compare_port(link, claim.port)
            yield from _compare_vlan(master, claim.port, vids.get(link.ifindex, {}))
        yield from self._compare_guard_and_limits(link, claim.endpoint_id, claim.port)

    def _compare_macvtap(self, link: Link, created: ops.CreateMacvtap, plan: ops.Plan, authority: Authority) -> Iterator[Drift]:
        uplink = self._find_lower(link, authority[created.network])
        vid = next((op.vid for op in plan if isinstance(op, ops.EnsureVlan)), 0)
        if vid and uplink is not None:
            is_up, name = bool(uplink.flags & IFF_UP), names.vlan_name(uplink.text(Ifla.IFNAME), vid)
            uplink = bridge.find_link(self._rtnl, name)
            if uplink is not None and is_up and not uplink.flags & IFF_UP:
                yield _drift(DriftKind.VLAN, "up", "down", f"the device {name} of its VLAN {vid} is down")
        mode = macvtap.mode_of(link)
        if mode != created.mode:
            yield _drift(DriftKind.MASTER, created.mode, mode, f"it is in mode {mode or 'unknown'}")
        for op in plan:
            match op:
                case ops.EnsureNode(_, _, uid, gid):
                    if (problem := self._macvtaps.compare_node(link, uid, gid)) is not None:
                        yield _drift(DriftKind.OWNER, _owner_in_words(uid, NOBODY if gid is None else gid), "", problem)
                case ops.ConfigurePort(endpoint_id, _, _, port):
                    yield from _compare_link(link, created, port, None)
                    if uplink is not None and not port.mtu_bytes and link.number(Ifla.MTU) != uplink.number(Ifla.MTU):
                        expected, actual = str(uplink.number(Ifla.MTU)), str(link.number(Ifla.MTU))
                        yield _drift(DriftKind.MTU, expected, actual, f"its MTU is {actual}")
                    yield from self._compare_guard_and_limits(link, endpoint_id, port)
                case _:
                    pass

    def _find_lower(self, link: Link, grant: Grant) -> Link | None:
        """Give what a macvtap stands on, or the uplink below the device of its VLAN."""
        if isinstance(grant, UplinkGrant):
            return bridge.find_link(self._rtnl, grant.uplink)
        return self._rtnl.ask(netlink.get_link(ifindex=link.number(Ifla.LINK))).link

    def _compare_publics(self, port: Port, grant: Grant) -> Iterator[Drift]:
        missing = self._publics.missing(grant, port) if port.public_addresses and isinstance(grant, BridgeGrant) else []
        if missing:
            lost = ", ".join(map(str, missing))
            yield _drift(DriftKind.BINDING, ", ".join(port.public_addresses), "", f"public address {lost} doesn't lead to it")

    def _compare_guard_and_limits(self, link: Link, endpoint_id: str, port: Port) -> Iterator[Drift]:
        wanted = ports.wanted_limits(endpoint_id, link.ifindex, link.number(Ifla.MTU), port)
        standing = link.kind == macvtap.KIND
        if standing:
            wanted = wanted._replace(ingress=wanted.egress, egress=wanted.ingress)
        ingress, egress = self._support.left_over(wanted)
        from_vm, to_vm = (egress, ingress) if standing else (ingress, egress)
        filters = ports.filters(link.ifindex, port, from_vm, to_vm)
        if not self._guard.has(link.ifindex, filters, standing=standing):
            yield _drift(DriftKind.GUARD, "in place", "other elements", "the guard's table has not what it should of this port")
        found = limitcheck.find(self._rtnl, [link.ifindex])[link.ifindex]
        for difference in limitcheck.differences(self._support, wanted, found):
            words = f"the limit at its {difference.direction} is {difference.actual}"
            yield _drift(DriftKind.LIMITS, difference.expected, difference.actual, words)


def _device_of(plan: ops.Plan) -> ops.CreateTap | ops.CreateMacvtap | ops.ClaimFunction | None:
    """Give what makes or takes a plan's device; a VF counts where it is attached through its representor."""
    has_port = any(isinstance(op, ops.ConfigurePort) for op in plan)
    claim = next((op for op in plan if has_port and isinstance(op, ops.ClaimFunction)), None)
    return next((op for op in plan if isinstance(op, ops.CreateTap | ops.CreateMacvtap)), claim)


def _compare_link(link: Link, created: ops.CreateTap | ops.CreateMacvtap, port: Port, master: Link | None) -> Iterator[Drift]:
    name, mac = link.text(Ifla.IFNAME), link.attributes.get(Ifla.ADDRESS, b"").hex(":")
    if name != created.ifname:
        yield _drift(DriftKind.NAME, created.ifname, name, f"{created.ifname} was renamed to {name}")
    if mac != created.mac:
        yield _drift(DriftKind.MAC, created.mac, mac, f"it has the MAC {mac}")
    yield from _compare_state(link, port, master)


def _compare_state(link: Link, port: Port, master: Link | None) -> Iterator[Drift]:
    if master is not None and link.number(Ifla.MASTER) != master.ifindex:
        on = _name_of(link.number(Ifla.MASTER))
        bridge_name = master.text(Ifla.IFNAME)
        yield _drift(DriftKind.MASTER, bridge_name, on, f"it is on {on or 'no bridge'} instead of {bridge_name}")
    mtu_bytes = port.mtu_bytes or (master.number(Ifla.MTU) if master else 0)
    if mtu_bytes and link.number(Ifla.MTU) != mtu_bytes:
        actual = str(link.number(Ifla.MTU))
        yield _drift(DriftKind.MTU, str(mtu_bytes), actual, f"its MTU is {actual}")
    is_up = bool(link.flags & IFF_UP)
    if is_up != (port.link_up is not False):
        states = ("up", "down")
        yield _drift(DriftKind.LINK_STATE, states[is_up], states[not is_up], f"its link is {states[not is_up]}")
    length = link.number(Ifla.TXQLEN)
    if port.tx_queue_length and length != port.tx_queue_length:
        yield _drift(DriftKind.TX_QUEUE_LENGTH, str(port.tx_queue_length), str(length), f"its queue has {length} places")


def _compare_owner(link: Link, created: ops.CreateTap) -> Iterator[Drift]:
    """Compare who may open it: whoever has a queue open can give it away, and no event tells (drivers/net/tun.c)."""
    expected = _owner_in_words(created.owner_uid, NOBODY if created.owner_gid is None else created.owner_gid)
    actual = _owner_in_words(*owner_of(link))
    if actual != expected:
        yield _drift(DriftKind.OWNER, expected, actual, f"it belongs to {actual}")


def _compare_port(link: Link, port: Port) -> Iterator[Drift]:
    data = link.port_data
    is_isolated = data.get(BridgePort.ISOLATED, b"\0") != b"\0"
    if is_isolated != bool(port.isolated):
        words = ("not isolated", "isolated")
        yield _drift(DriftKind.ISOLATION, words[bool(port.isolated)], words[is_isolated], f"it is {words[is_isolated]}")
    mask = int.from_bytes(data.get(BridgePort.GROUP_FWD_MASK, bytes(2)), "little")
    if mask != ports.group_forward_mask(port):
        expected = f"{ports.group_forward_mask(port):#06x}"
        yield _drift(DriftKind.GUARD, expected, f"{mask:#06x}", "the bridge takes other reserved addresses in than it should")
    router = ports.multicast_router(port)
    (found,) = data.get(BridgePort.MULTICAST_ROUTER, bytes([router]))  # none where the kernel has no IGMP snooping
    if found != router:
        message = "the bridge takes it for a router of multicast when it should not, or the other way round"
        yield _drift(DriftKind.GUARD, str(int(router)), str(found), message)


def _compare_vlan(master: Link, port: Port, found: Mapping[int, bool | None]) -> Iterator[Drift]:
    if port.vlan is None:
        return
    state = bridge.vlans_of(master)
    wanted = ports.vids_of(port.vlan, state._replace(missing=""))
    if state.missing:
        yield _drift(DriftKind.VLAN, _vids_in_words(wanted), "", state.missing)
    elif found != wanted:
        actual = _vids_in_words(found)
        yield _drift(DriftKind.VLAN, _vids_in_words(wanted), actual, f"it is in VLAN {actual or 'none'}")


def _read_vids(plans: Sequence[ops.Plan], links: Sequence[Link | None]) -> dict[int, dict[int, bool | None]]:
    """Read the VLANs of the ports that should be in some; the kernel lists all ports, so where there is none it isn't asked."""
    indexes = {
        link.ifindex
        for plan, link in zip(plans, links, strict=True)
        if link is not None and any(isinstance(op, ops.ConfigurePort) and op.port.vlan is not None for op in plan)
    }
    return ports.read_vids(indexes) if indexes else {}


def _vids_in_words(vids: Mapping[int, bool | None]) -> str:
    how = {True: " untagged", False: "", None: " untagged one way"}
    return ", ".join(f"{vid}{how[untagged]}" for vid, untagged in sorted(vids.items()))


def _name_of(ifindex: int) -> str:
    if not ifindex:
        return ""
    rtnl = RtnlSocket()
    try:
        link = rtnl.ask(netlink.get_link(ifindex=ifindex)).link
    finally:
        rtnl.close()
    return link.text(Ifla.IFNAME) if link is not None else str(ifindex)


def _owner_in_words(uid: int, gid: int) -> str:
    who = "nobody" if uid == NOBODY else f"uid {uid}"
    return who if gid == NOBODY else f"{who}, gid {gid}"


def _drift(kind: DriftKind, expected: str, actual: str, message: str) -> Drift:
    return Drift(kind, expected, actual, message)
