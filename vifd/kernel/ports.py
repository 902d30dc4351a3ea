"""What a port of a bridge is like, as what the kernel is told: elements of the guard's table, and messages of rtnetlink."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

from pyroute2 import IPRoute

from vifd.kernel import ipv6, netlink
from vifd.kernel.bridge import BridgeVlans
from vifd.kernel.limits import Wanted
from vifd.kernel.netlink import Ifla, MulticastRouter
from vifd.kernel.nft import sets
from vifd.kernel.nft.elements import Element, Elements, guarded, limited, only_limited
from vifd.model import Limits, Port, RateLimit, Vlan

#: Of the sixteen addresses that a bridge never forwards, all but that of pause frames, which it drops itself. A bridge learns
#: even from such a frame whose source is forged, and no filter sees it (net/bridge/br_input.c, br_handle_frame); with the mask
#: it passes the guard, which drops it.
_RESERVED_TO_GUARD = 0xFFFD
_BURSTS_A_SECOND, _LEAST_BURST = 20, 64  # a burst holds 50 ms of the rate, and at least so many packets


def wanted_limits(endpoint_id: str, ifindex: int, mtu_bytes: int, port: Port) -> Wanted:
    """Give the limits of a tap's port in the directions that the tap sees: what its VM sends comes in."""
    limits = port.limits or Limits()
    return Wanted(endpoint_id, ifindex, mtu_bytes, ingress=limits.from_vm, egress=limits.to_vm)


def filters(ifindex: int, port: Port, from_vm: RateLimit, to_vm: RateLimit) -> Elements:
    """Give what the guard's table has to have of a port.

    Args:
        ifindex: the device.
        port: what it is to be like.
        from_vm: what of the limits is the table's to keep.
        to_vm: the same in the other direction.
    """
    outgoing = [*_limits(ifindex, from_vm, sets.PPS_FROM_VM, sets.BPS_FROM_VM)]
    elements = frozenset([*outgoing, *_limits(ifindex, to_vm, sets.PPS_TO_VM, sets.BPS_TO_VM)])
    if port.guard_enabled:
        trunk = port.vlan is not None and bool(port.vlan.trunk_vids)
        return elements | guarded(ifindex, [port.mac], port.addresses, trunk=trunk, is_limited=bool(outgoing))
    return elements | {only_limited(ifindex)} if outgoing else elements


def _limits(ifindex: int, limit: RateLimit, packets: str, octets: str) -> Iterator[Element]:
    if limit.rate_pps:
        yield limited(ifindex, packets, limit.rate_pps, max(limit.rate_pps // _BURSTS_A_SECOND, _LEAST_BURST))
    if limit.rate_bps:
        yield limited(ifindex, octets, max(limit.rate_bps // 8, 1), limit.burst_bytes)


def attributes(port: Port, mtu_bytes: int, master: int | None) -> bytes:
    """Give what an RTM_SETLINK of the device has to set, beside its mark and address.

    Args:
        port: what it is to be like.
        mtu_bytes: its MTU.
        master: the bridge's index; None: it stands on no bridge.
    """
    packed = netlink.number(Ifla.MTU, mtu_bytes)
    if master is not None:
        packed += netlink.number(Ifla.MASTER, master)
    if port.tx_queue_length:
        packed += netlink.number(Ifla.TXQLEN, port.tx_queue_length)
    return packed + (netlink.NO_IPV6_ADDRESS if ipv6.is_possible(mtu_bytes) else b"")


def default_queue_length(*, macvtap: bool) -> bytes:
    """Give what takes a device's queue back to the length that the kernel makes it with.

    Args:
        macvtap: whether it is one (drivers/net/macvtap.c, TUN_READQ_SIZE), or a tap (linux/netdevice.h, DEFAULT_TX_QUEUE_LEN).
    """
    return netlink.number(Ifla.TXQLEN, 500 if macvtap else 1000)


def group_forward_mask(port: Port) -> int:
    """Give which reserved addresses the bridge has to take in like others."""
    return _RESERVED_TO_GUARD if port.guard_enabled else 0


def multicast_router(port: Port) -> MulticastRouter:
    """Give whether the bridge may take the VM for a router: one that asks who has joined what would get everybody's multicast."""
    return MulticastRouter.NEVER if port.guard_enabled else MulticastRouter.IF_IT_ASKS


def bridge_port(ifindex: int, before: Port | None, port: Port) -> bytes:
    """Give the message that sets what the bridge has to know of its port, once the guard's table knows it.

    Args:
        ifindex: the device.
        before: what it was like; None: it is new, or that isn't known.
        port: what it is to be like.
    """
    unguarded_before = before is None or not before.guard_enabled
    return netlink.set_bridge_port(
        ifindex,
        isolated=bool(port.isolated),
        group_forward_mask=group_forward_mask(port),
        multicast_router=multicast_router(port),
        forget=bool(port.guard_enabled) and unguarded_before,  # without it the VM may have pretended to be anybody
    )


def vids_of(vlan: Vlan | None, bridge: BridgeVlans) -> dict[int, bool]:
    """Give the VLANs that a port is to be in, each with whether its frames are untagged there.

    Args:
        vlan: the port's setting; None: what the bridge gives a new port.
        bridge: what the bridge does with VLANs.
    """
    if bridge.missing:
        return {}
    if vlan is None:
        return {bridge.default_vid: True} if bridge.default_vid else {}
    if vlan.vid:
        return {vlan.vid: True}
    native = {vlan.native_vid: True} if vlan.native_vid else {}
    return dict.fromkeys(vlan.trunk_vids, False) | native


def read_vids(ifindexes: Collection[int]) -> dict[int, dict[int, bool | None]]:
    """Read the VLANs of ports, in the form of `vids_of`; None where frames are untagged in one direction alone.

    The kernel lists every port of every bridge.
    """
    found = dict[int, dict[int, bool | None]]()
    with IPRoute() as ipr:
        for message in ipr.get_vlans():
            if message["index"] in ifindexes and (spec := message.get_attr("IFLA_AF_SPEC")) is not None:
                infos = spec.get_attrs("IFLA_BRIDGE_VLAN_INFO")
                found[message["index"]] = {info["vid"]: netlink.is_untagged(info["flags"]) for info in infos}
    return {ifindex: found.get(ifindex, {}) for ifindex in ifindexes}


def change_vids(ifindex: int, present: Mapping[int, bool | None], wanted: Mapping[int, bool]) -> list[bytes]:
    """Give the messages that bring a port from some VLANs to others: what is wanted first, then what goes."""
    added = [
        netlink.set_port_vlan(ifindex, vid, untagged=untagged)
        for vid, untagged in sorted(wanted.items())
        if present.get(vid, ...) is not untagged
    ]
    return added + [netlink.delete_port_vlan(ifindex, vid) for vid in sorted(present.keys() - wanted.keys())]
