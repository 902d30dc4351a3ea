"""A network's bridge: made when it is missing, used as it is when somebody else made it.

It isn't on the way of a request, so pyroute2 makes it.

A bridge that vifd makes has a MAC address derived from the network's name, from its first moment, and an ifalias from its
second; either says whose it is, so a helper that dies in between finishes its work at the next start.
"""

from __future__ import annotations

import errno
import ipaddress
from collections.abc import Collection, Iterable
from socket import AF_INET, AF_INET6
from struct import unpack_from
from typing import NamedTuple

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from vifd.kernel import ipv6, names, netlink, vlans
from vifd.kernel.authority import Address, BridgeGrant
from vifd.kernel.macvtap import Failure, Uplink
from vifd.kernel.netlink import IFF_UP, Ifla, Link, RtnlSocket, delete_link, get_link
from vifd.kernel.tap import SIOCGIFINDEX, SIOCGIFMTU, device_number

_IFLA_BR_VLAN_FILTERING, _IFLA_BR_VLAN_DEFAULT_PVID = 7, 39
_RTN_UNICAST = 1  # linux/rtnetlink.h


class BridgeError(Exception):
    """The bridge or its uplink can't be used: what the administrator has to know.

    Args:
        message: a sentence.
        number: the kernel's errno, 0 where vifd itself refused.
    """

    def __init__(self, message: str, number: int = 0) -> None:
        super().__init__(message)
        self.errno = number


class BridgeVlans(NamedTuple):
    """What a bridge does with VLANs.

    Args:
        missing: why it can't keep them apart; empty: it can.
        default_vid: the VLAN that a new port is in; 0: none.
    """

    missing: str
    default_vid: int = 0


class BridgeState(NamedTuple):
    """A bridge as it was found or made.

    Args:
        own: whether vifd made it, at whatever time.
        created: whether this call made it.
        vlans: whether it can keep VLANs apart.
        uplink: the index of its uplink, or of the device of its VLAN there; 0: none.
        uplink_name: the name of that.
    """

    name: str
    ifindex: int
    mtu_bytes: int
    own: bool
    created: bool
    vlans: BridgeVlans
    uplink: int = 0
    uplink_name: str = ""


def find_link(rtnl: RtnlSocket, ifname: str) -> Link | None:
    """Look one device up by its name.

    Raises:
        BridgeError: the kernel refused to say.
    """
    reply = rtnl.ask(get_link(ifname=ifname))
    if reply.errno not in (0, errno.ENODEV):
        raise BridgeError(f"can't look {ifname} up: {reply.message}", reply.errno)
    return reply.link


def ensure(rtnl: RtnlSocket, network: str, grant: BridgeGrant) -> BridgeState:
    """Give the network's bridge with its uplink on it, making it first if it is missing or was left half made.

    A bridge of somebody else's is used without changing any of its settings; only a configured uplink is put on it. With a VLAN
    it is the 802.1Q device of that, which is made first if it is missing; the uplink stays the host's.

    Args:
        rtnl: the socket to ask through.
        network: the network's name.
        grant: what the configuration says of it.

    Raises:
        BridgeError: it can't be made or used.
    """
    with vlans.lock:
        try:
            return _ensure(rtnl, network, grant)
        except BridgeError:
            if grant.vlan:
                vlans.sweep(rtnl)
            raise


def _ensure(rtnl: RtnlSocket, network: str, grant: BridgeGrant) -> BridgeState:
    link = find_link(rtnl, grant.bridge)
    uplink = _find_uplink(rtnl, network, grant, link) if grant.uplink else None
    created = link is None
    if link is None or (_is_own(link, network) and not link.flags & IFF_UP):
        _make(network, grant, create=created, fresh=True)
        link = find_link(rtnl, grant.bridge)
    if link is None:
        raise BridgeError(f"bridge {grant.bridge} went away as it was made", errno.ENODEV)
    if link.kind != "bridge":
        raise BridgeError(
            f"{grant.bridge} is a {link.kind or 'network card'}, not a bridge; give network {network} another name for its own"
        )
    if uplink is not None and uplink.number(Ifla.MASTER) != link.ifindex:
        _attach_uplink(grant, uplink, link)
    uplink_index, uplink_name = (0, "") if uplink is None else (uplink.ifindex, uplink.text(Ifla.IFNAME))
    own = _is_own(link, network)
    return BridgeState(grant.bridge, link.ifindex, link.number(Ifla.MTU), own, created, vlans_of(link), uplink_index, uplink_name)


def vlans_of(link: Link) -> BridgeVlans:
    """Read what a bridge does with VLANs (linux/if_link.h, IFLA_BR_*)."""
    filtering = link.data.get(_IFLA_BR_VLAN_FILTERING)
    if filtering is None or _IFLA_BR_VLAN_DEFAULT_PVID not in link.data:
        return BridgeVlans("this kernel keeps no VLANs apart on a bridge (CONFIG_BRIDGE_VLAN_FILTERING)")
    if not filtering[0]:
        name = link.text(Ifla.IFNAME)
        return BridgeVlans(f"bridge {name} isn't VLAN-aware; switch that on: ip link set {name} type bridge vlan_filtering 1")
    return BridgeVlans("", unpack_from("=H", link.data[_IFLA_BR_VLAN_DEFAULT_PVID])[0])


def find_uplink_problem(rtnl: RtnlSocket, grant: BridgeGrant, bridge: Link) -> tuple[str, str]:
    """Say what is wrong with a bridge's uplink now: what should be on the bridge, and a sentence; empty: nothing.

    Raises:
        BridgeError: the kernel refused to say.
    """
    if not grant.uplink:
        return "", ""
    expected = grant.uplink_port
    what = f"the device {expected} of VLAN {grant.vlan} of uplink {grant.uplink}" if grant.vlan else f"uplink {grant.uplink}"
    link = find_link(rtnl, expected)
    if link is None:
        return expected, f"{what} is gone"
    if link.number(Ifla.MASTER) != bridge.ifindex:
        return expected, f"{what} isn't on bridge {grant.bridge}"
    if grant.vlan and not link.flags & IFF_UP:
        return expected, f"{what} is down"
    return "", ""


def is_unchanged(rtnl: RtnlSocket, state: BridgeState) -> bool:
    """Tell by ioctls, each a fortieth of a message's cost, whether a bridge and its uplink are still there (netdevice(7))."""
    try:
        if state.uplink and device_number(rtnl.fileno(), SIOCGIFINDEX, state.uplink_name) != state.uplink:
            return False
        index = device_number(rtnl.fileno(), SIOCGIFINDEX, state.name)
        return index == state.ifindex and device_number(rtnl.fileno(), SIOCGIFMTU, state.name) == state.mtu_bytes
    except OSError:
        return False


def prepare(rtnl: RtnlSocket, network: str, grant: BridgeGrant, publics: Collection[Address] = ()) -> None:
    """Bring a network's bridge to what the configuration says: at start, and after a reload.

    Args:
        rtnl: the socket to ask through.
        network: the network's name.
        grant: what the configuration says of it.
        publics: addresses of endpoints that it may have beside its own.

    Raises:
        BridgeError: it can't be.
    """
    _take_off_former_vlans(rtnl, grant)
    state = ensure(rtnl, network, grant)
    if state.own and not state.created:
        _make(network, grant, create=False, fresh=False, publics=publics)


def is_foreign(rtnl: RtnlSocket, ifname: str, networks: Iterable[str]) -> bool:
    """Tell whether none of some networks made a bridge; one that isn't there is nobody's.

    Raises:
        BridgeError: the kernel refused to say.
    """
    link = find_link(rtnl, ifname)
    return link is not None and not any(_is_own(link, network) for network in networks)


def discard_unused(rtnl: RtnlSocket, state: BridgeState) -> None:
    """Delete a bridge that this very batch made, unless a port of another group hangs on it; its uplink is free again."""
    with IPRoute() as ipr:
        if any(port["index"] != state.uplink for port in ipr.get_links(master=state.ifindex)):
            return
    rtnl.ask(delete_link(state.ifindex))
    vlans.discard_unused(rtnl)


def _is_own(link: Link | None, network: str) -> bool:
    if link is None or link.kind != "bridge":
        return False
    alias = link.text(Ifla.IFALIAS)
    mac = link.attributes.get(Ifla.ADDRESS, b"").hex(":")
    return alias == names.network_mark(network) or (not alias and mac == names.derived_mac(names.network_mark(network)))


def _make(network: str, grant: BridgeGrant, *, create: bool, fresh: bool, publics: Collection[Address] = ()) -> None:
    """Make the bridge, or finish one that is half made, or bring one up to date; every step can be repeated.

    Args:
        network: the network's name.
        grant: what the configuration says of it.
        create: whether it isn't there yet.
        fresh: whether nobody has used it yet.
        publics: see prepare.
    """
    try:
        with IPRoute() as ipr:
            if create:
                mac = names.derived_mac(names.network_mark(network))
                ipr.link("add", ifname=grant.bridge, kind="bridge", address=mac, br_forward_delay=0)
            index = ipr.link_lookup(ifname=grant.bridge)[0]
            if fresh:
                # Only an MTU that was changed keeps the bridge from following its smallest port's (net/bridge/br_device.c,
                # br_change_mtu); the kernel doesn't count one that is set to what it is.
                ipr.link("set", index=index, mtu=grant.mtu_bytes ^ 1)
            ipr.link("set", index=index, ifalias=names.network_mark(network), mtu=grant.mtu_bytes)
            _set_ipv6(grant)
            if ipv6.is_possible(grant.mtu_bytes) and not any(
                ipaddress.ip_interface(address).version == 6 for address in grant.addresses
            ):
                spec = {"attrs": [("AF_INET6", {"attrs": [("IFLA_INET6_ADDR_GEN_MODE", 1)]})]}
                ipr.link("set", index=index, IFLA_AF_SPEC=spec)
            _set_addresses(ipr, index, grant.addresses, publics)
            ipr.link("set", index=index, state="up")
    except NetlinkError as error:
        raise BridgeError(f"can't make bridge {grant.bridge} of network {network}: {error.args[1]}", error.code) from error
    except ipv6.SettingError as error:
        raise BridgeError(str(error), error.errno) from error


def _set_ipv6(grant: BridgeGrant) -> None:
    """Let no VM decide on the host's addresses and routes (ip-sysctl.rst).

    It takes none from router advertisements. On a bridge without an uplink its addresses are there at once: the search for
    duplicates would begin with the first VM, for which the gateway then is silent for seconds, and let a VM take it away.
    """
    settings = {**ipv6.NO_AUTOCONFIGURATION, "accept_dad": "1" if grant.uplink else "0"}
    ipv6.set_all(grant.bridge, grant.mtu_bytes, settings)


def _set_addresses(ipr: IPRoute, index: int, addresses: tuple[str, ...], publics: Collection[Address]) -> None:
    """Give the bridge the configured addresses, and take those that a former configuration gave it."""
    wanted = {ipaddress.ip_interface(address) for address in addresses}
    present = set()
    for message in ipr.get_addr(index=index):
        address = ipaddress.ip_interface(f"{message.get_attr('IFA_ADDRESS')}/{message['prefixlen']}")
        if not address.is_link_local and address.ip not in publics:
            present.add(address)
    for address in present - wanted:
        ipr.addr("del", index=index, address=str(address.ip), prefixlen=address.network.prefixlen)
    for address in wanted - present:
        ipr.addr("add", index=index, address=str(address.ip), prefixlen=address.network.prefixlen)


def _find_uplink(rtnl: RtnlSocket, network: str, grant: BridgeGrant, bridge: Link | None) -> Link:
    """Give what is put on a bridge: its uplink, once it is clear that it can be put there, or the device of its VLAN there.

    Raises:
        BridgeError: it isn't there, belongs to another, carries less than the bridge, or the host would be cut off.
    """
    link = find_link(rtnl, grant.uplink)
    if link is None:
        raise BridgeError(f"uplink {grant.uplink} of bridge {grant.bridge} isn't there", errno.ENODEV)
    mtu_bytes = grant.mtu_bytes if bridge is None or _is_own(bridge, network) else bridge.number(Ifla.MTU)
    _check_mtu(grant, link, mtu_bytes)
    if grant.vlan:
        link = _ensure_vlan(rtnl, grant, link, bridge)
        _check_mtu(grant, link, mtu_bytes)
    master = link.number(Ifla.MASTER)
    if master and (bridge is None or master != bridge.ifindex):
        what = f"VLAN {grant.vlan} of uplink" if grant.vlan else "uplink"
        raise BridgeError(
            f"{what} {grant.uplink} belongs to another bridge or bond already; take it out of that first", errno.EBUSY
        )
    if not grant.vlan and not master and not grant.uplink_force and _has_default_route(link.ifindex):
        words = f"uplink {grant.uplink} is the host's own way out (a default route): on bridge {grant.bridge} it would be cut off"
        raise BridgeError(f"{words}; take another, or say uplink_force = true", errno.EBUSY)
    return link


def _check_mtu(grant: BridgeGrant, link: Link, mtu_bytes: int) -> None:
    if link.number(Ifla.MTU) < mtu_bytes:
        what = f"uplink {grant.uplink} has an MTU of {link.number(Ifla.MTU)}, less than the {mtu_bytes} of bridge {grant.bridge}"
        raise BridgeError(f"{what}: larger frames would get lost; raise the one, or lower the other (mtu)")


def _ensure_vlan(rtnl: RtnlSocket, grant: BridgeGrant, uplink: Link, bridge: Link | None) -> Link:
    """Give the 802.1Q device of a bridge's VLAN, with the uplink up below it."""
    if bridge is not None and uplink.number(Ifla.MASTER) == bridge.ifindex:
        words = f"uplink {grant.uplink} is on bridge {grant.bridge} itself, where only its VLAN {grant.vlan} belongs"
        raise BridgeError(f"{words}; take it off: ip link set {grant.uplink} nomaster", errno.EBUSY)
    if not uplink.flags & IFF_UP:
        reply = rtnl.ask(netlink.set_link(uplink.ifindex, b"", up=True))
        if reply.errno:
            raise BridgeError(f"can't set uplink {grant.uplink} up: {reply.message}", reply.errno)
    mac = uplink.attributes.get(Ifla.ADDRESS, b"").hex(":")
    parent = Uplink(grant.uplink, uplink.ifindex, uplink.number(Ifla.MTU), mac, up=True)
    found = vlans.ensure(rtnl, parent, grant.vlan)
    if isinstance(found, Failure):
        raise BridgeError(found.message, found.errno)
    return found


def _take_off_former_vlans(rtnl: RtnlSocket, grant: BridgeGrant) -> None:
    """Delete the devices of VLANs that a former configuration put on a bridge, before another joins them to its own."""
    link = find_link(rtnl, grant.bridge)
    if link is None:
        return
    wanted = grant.uplink_port
    with vlans.lock, IPRoute() as ipr:
        for port in ipr.get_links(master=link.ifindex):
            if vlans.is_own(port) and port.get_attr("IFLA_IFNAME") != wanted:
                rtnl.ask(delete_link(port["index"]))


def _has_default_route(ifindex: int) -> bool:
    """Tell whether a default route of any table leads out of a device, alone or beside others."""
    with IPRoute() as ipr:
        for family in (AF_INET, AF_INET6):
            for route in ipr.get_routes(family=family):
                if route["dst_len"] == 0 and route["type"] == _RTN_UNICAST:
                    hops = [hop["oif"] for hop in route.get_attr("RTA_MULTIPATH") or []]
                    if ifindex in (route.get_attr("RTA_OIF"), *hops):
                        return True
    return False


def _attach_uplink(grant: BridgeGrant, uplink: Link, bridge: Link) -> None:
    try:
        with IPRoute() as ipr:
            ipr.link("set", index=uplink.ifindex, master=bridge.ifindex, state="up")
    except NetlinkError as error:
        if grant.vlan and error.code == errno.EBUSY:
            words = f"VLAN {grant.vlan} of uplink {grant.uplink} carries macvtaps of another network; release them"
            raise BridgeError(words, error.code) from error
        raise BridgeError(f"can't put uplink {grant.uplink} on bridge {grant.bridge}: {error.args[1]}", error.code) from error
