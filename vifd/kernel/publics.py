"""Public addresses of endpoints: translated one to one to the guests' own, and answered for by the host on the way out.

They are few and change rarely, so pyroute2 puts them on the device; a request without any doesn't come here.
"""

from __future__ import annotations

import errno
import ipaddress
from collections.abc import Iterable, Iterator, Mapping

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from vifd.kernel.authority import Authority, BridgeGrant, own_addresses, public_pairs
from vifd.kernel.nft.nat import Address, NatTable, NoNatTable
from vifd.kernel.nft.wire import NftError
from vifd.model import Port

_IFA_F_NODAD = 0x02
#: Deprecated (RFC 4862, 5.5.4): the host itself takes another address for what it sends.
_NOT_PREFERRED = {"ifa_preferred": 0, "ifa_valid": 0xFFFFFFFF}


class PublicsError(Exception):
    """A public address can't be had: what the caller has to know."""

    def __init__(self, message: str, number: int = 0) -> None:
        super().__init__(message)
        self.errno = number


class Publics:
    """What the table and the devices on the way out have of public addresses.

    Args:
        table: the table of networks with NAT.
    """

    def __init__(self, table: NatTable | NoNatTable) -> None:
        self._table = table

    def concerns(self, *ports: Port | None) -> bool:
        """Tell whether there is anything to do for a port that goes from one state to another."""
        known = [port for port in ports if port is not None]
        if any(port.public_addresses for port in known):
            return True
        owned = set(self._table.publics.values())
        return bool(owned) and any(address in owned for port in known for address in own_addresses(port))

    def change(self, grant: BridgeGrant, port: Port, before: Port | None) -> None:
        """Let a port have the public addresses that it should, and no others.

        Args:
            grant: of its network; the port was checked against it.
            port: as it is to be.
            before: as it is, as far as that is known.

        Raises:
            PublicsError: an address is another's or can't be put on the device; nothing has changed.
        """
        wanted = {public: private for public, private in public_pairs(port).items() if grant.allows_public(public, private)}
        privates = {address for one in (port, before) if one is not None for address in own_addresses(one)}
        for public in wanted:
            if self._table.publics.get(public) not in (None, *privates):
                raise PublicsError(f"public address {public} is another endpoint's", errno.EADDRINUSE)
        added = _add(grant.nat_uplink, wanted)
        try:
            removed = self._table.translate(privates, wanted)
        except NftError as error:
            _delete(added)
            raise PublicsError(f"the kernel refuses to translate public addresses: {error.strerror}", error.errno or 0) from error
        _delete(removed)

    def release(self, ports: Iterable[Port]) -> None:
        """Take public addresses from ports that are gone; what they haven't is fine.

        Raises:
            NftError: the kernel refuses.
        """
        privates = {address for port in ports if self.concerns(port) for address in own_addresses(port)}
        if privates:
            _delete(self._table.translate(privates, {}))

    def missing(self, grant: BridgeGrant, port: Port) -> list[Address]:
        """Tell which of a port's public addresses lead nowhere, or aren't answered for."""
        found = _present()
        with IPRoute() as ipr:
            indexes = ipr.link_lookup(ifname=grant.nat_uplink)
        table = self._table.publics
        return [
            public
            for public, private in public_pairs(port).items()
            if table.get(public) != private or not any(index in indexes for index, _ in found.get(public, ()))
        ]

    def settle(self, authority: Authority, before: Mapping[Address, Address]) -> dict[str, str]:
        """Bring the devices to what the table has, after another configuration.

        Args:
            authority: the configuration.
            before: what the table had.

        Returns:
            By network, why that was not possible.
        """
        now, problems = self._table.publics, dict[str, str]()
        _delete(public for public in before if public not in now)
        for network, grant in authority.items():
            if isinstance(grant, BridgeGrant) and grant.public_pool:
                mine = {public: private for public, private in now.items() if grant.allows_public(public, private)}
                _delete(_elsewhere(grant.nat_uplink, mine))
                try:
                    _add(grant.nat_uplink, mine)
                except PublicsError as error:
                    problems[network] = str(error)
        return problems


def _present() -> dict[Address, list[tuple[int, int]]]:
    """Give every address of the host, with its device and prefix length."""
    found: dict[Address, list[tuple[int, int]]] = {}
    with IPRoute() as ipr:
        for message in ipr.get_addr():
            text = message.get_attr("IFA_LOCAL") or message.get_attr("IFA_ADDRESS")
            found.setdefault(ipaddress.ip_address(text), []).append((message["index"], message["prefixlen"]))
    return found


def _elsewhere(uplink: str, wanted: Iterable[Address]) -> Iterator[Address]:
    with IPRoute() as ipr:
        indexes = ipr.link_lookup(ifname=uplink)
    found = _present()
    return (public for public in wanted if any(index not in indexes for index, _ in found.get(public, ())))


def _add(uplink: str, wanted: Iterable[Address]) -> list[Address]:
    """Put public addresses on a device, each a subnet of its own; give those that weren't there.

    Raises:
        PublicsError: one is the host's own in another way, or the kernel refuses; none was added.
    """
    found, added = _present(), list[Address]()
    with IPRoute() as ipr:
        indexes = ipr.link_lookup(ifname=uplink)
        for public in wanted:
            if not indexes:
                raise PublicsError(f"nat_uplink {uplink} isn't there, and nobody would answer for {public}", errno.ENODEV)
            places = found.get(public, [])
            if (indexes[0], public.max_prefixlen) in places:
                continue
            try:
                if places:
                    raise PublicsError(f"public address {public} is the host's own", errno.EADDRINUSE)
                more = {"flags": _IFA_F_NODAD, "IFA_CACHEINFO": _NOT_PREFERRED} if public.version == 6 else {}
                ipr.addr("add", index=indexes[0], address=str(public), prefixlen=public.max_prefixlen, **more)
            except NetlinkError as error:
                _delete(added)
                raise PublicsError(f"can't put {public} on {uplink}: {error.args[1]}", error.code) from error
            except PublicsError:
                _delete(added)
                raise
            added.append(public)
    return added


def _delete(publics: Iterable[Address]) -> None:
    """Take public addresses from whatever device has them as a subnet of their own; somebody else may have done so already."""
    gone = list(publics)
    found = _present() if gone else {}
    with IPRoute() as ipr:
        for public in gone:
            for index, length in found.get(public, ()):
                if length == public.max_prefixlen:
                    try:
                        ipr.addr("del", index=index, address=str(public), prefixlen=length)
                    except NetlinkError as error:
                        if error.code not in (errno.EADDRNOTAVAIL, errno.ENODEV):
                            raise
