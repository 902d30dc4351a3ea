"""Networks with NAT: what of the configuration their table is made from, and that the host forwards at all.

It isn't on the way of a request: the table is made at start and at each reload.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from pathlib import Path

from vifd.kernel import bridge
from vifd.kernel.authority import Authority, BridgeGrant
from vifd.kernel.netlink import RtnlSocket
from vifd.kernel.nft.nat import NatConfiguration, NatNetwork, NatTable, NoNatTable
from vifd.kernel.nft.wire import NftError

_SYSCTL = Path("/proc/sys/net")
_ACCEPT_RA, _ACCEPT_RA_THOUGH_FORWARDING = "1", "2"  # Documentation/networking/ip-sysctl.rst


def prepare(rtnl: RtnlSocket, table: NatTable | NoNatTable, authority: Authority) -> dict[str, str]:
    """Bring the table, and whether the host forwards, to what the configuration says. Call it before bridges are made.

    Forwarding is switched on where a network needs it, and never off: by then others may rely on it.

    Returns:
        By network, why it has no NAT.
    """
    wanted = {network: grant for network, grant in authority.items() if isinstance(grant, BridgeGrant) and grant.nat}
    problems = dict[str, str]()
    for network, grant in wanted.items():
        try:
            on_it = [name for name, one in wanted.items() if one.bridge == grant.bridge]
            if bridge.is_foreign(rtnl, grant.bridge, on_it):
                problems[network] = f"nat = true takes a bridge that vifd makes, and {grant.bridge} is somebody else's"
        except bridge.BridgeError as error:
            problems[network] = str(error)
    able = {network: grant for network, grant in wanted.items() if network not in problems}
    try:
        publics = {one: to for one, to in table.publics.items() if any(g.allows_public(one, to) for g in able.values())}
        table.configure(configuration(able, authority), publics)
        for version, forward in ((4, _forward_ip4), (6, _forward_ip6)):
            if any(subnet.version == version for grant in able.values() for subnet in subnets_of(grant)):
                forward()
    except NftError as error:
        problems |= dict.fromkeys(able, f"nat = true: the kernel refuses the table of nftables: {error.strerror or error}")
    except OSError as error:
        message = f"nat = true: the host doesn't forward, and {error.filename} can't be written ({error.strerror})"
        problems |= dict.fromkeys(able, f"{message}; let vifd write it, or switch it on with sysctl")
    return problems


def configuration(networks: Mapping[str, BridgeGrant], authority: Authority) -> NatConfiguration:
    """Give what the table is made from.

    A bridge with an uplink is a way out like another device; one with addresses alone is a network apart.

    Args:
        networks: those that have NAT.
        authority: all there are.
    """
    by_bridge = {grant.bridge: NatNetwork(grant.bridge, subnets_of(grant), grant.nat_uplink) for grant in networks.values()}
    ways = {grant.nat_uplink for grant in networks.values()}
    others = {
        grant.bridge
        for grant in authority.values()
        if isinstance(grant, BridgeGrant) and not grant.nat and grant.addresses and not grant.uplink
    }
    return NatConfiguration(tuple(by_bridge.values()), tuple(sorted(others - ways)))


def subnets_of(grant: BridgeGrant) -> tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...]:
    """Give the subnets of a network's addresses."""
    return tuple(dict.fromkeys(ipaddress.ip_interface(address).network for address in grant.addresses))


def _forward_ip4() -> None:
    _set(_SYSCTL / "ipv4/ip_forward", "1")


def _forward_ip6() -> None:
    """Let the host forward IPv6, and go on taking router advertisements where it does now.

    A host that forwards takes none where accept_ra is 1, and would lose the route that it has from them.
    """
    conf = _SYSCTL / "ipv6/conf"
    if (conf / "all/forwarding").read_text().strip() != "0":
        return
    for device in sorted(path for path in conf.iterdir() if path.name != "all"):
        try:
            if (device / "forwarding").read_text().strip() == "0" and (device / "accept_ra").read_text().strip() == _ACCEPT_RA:
                _set(device / "accept_ra", _ACCEPT_RA_THOUGH_FORWARDING)
        except FileNotFoundError:  # the device went away
            continue
    _set(conf / "all/forwarding", "1")


def _set(path: Path, value: str) -> None:
    """Write a setting that is another: what is right already need not be writable."""
    if path.read_text().strip() != value:
        path.write_text(value)
