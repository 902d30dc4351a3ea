"""The table of networks with NAT in the kernel: made from the configuration alone, and kept as it was made.

Like the guard's table, the helper owns it where the kernel can, and puts it back elsewhere. Without such a network there is none.
"""

from __future__ import annotations

import errno
import ipaddress
from collections.abc import Collection, Iterable, Iterator, Mapping
from struct import unpack_from
from typing import NamedTuple

from vifd.kernel.nft import natrules, seals, wire
from vifd.kernel.nft.natrules import BRIDGES, CLOSED, FREE, HAIRPINS, OWN, PRIVATES, PUBLICS, SETS, SUBNETS, WAYS, Element
from vifd.kernel.nft.table import Table, open_table
from vifd.kernel.nft.wire import Kind, Message, NftError

_IFNAME_BYTES = 16

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class NatNetwork(NamedTuple):
    """A network whose guests reach what is outside under an address of the host's.

    Args:
        bridge: its bridge.
        subnets: what its guests' addresses are in.
        uplink: the only device that they get out by; empty: any.
    """

    bridge: str
    subnets: tuple[Network, ...]
    uplink: str = ""


class NatConfiguration(NamedTuple):
    """What the table is made from.

    Args:
        networks: those with NAT; none: there is no table.
        closed: bridges of networks that guests of networks with NAT don't get to.
    """

    networks: tuple[NatNetwork, ...] = ()
    closed: tuple[str, ...] = ()


def elements_of(configuration: NatConfiguration, publics: Mapping[Address, Address]) -> frozenset[Element]:
    """Give all elements of the table.

    Args:
        configuration: the networks.
        publics: by public address, the guest's own.
    """
    elements = {Element(CLOSED, _name(bridge)) for bridge in configuration.closed}
    for bridge, subnets, uplink in configuration.networks:
        elements |= {Element(BRIDGES, _name(bridge)), Element(HAIRPINS, _name(bridge) + _name(bridge))}
        elements.add(Element(WAYS, _name(bridge) + _name(uplink)) if uplink else Element(FREE, _name(bridge)))
        for subnet in subnets:
            first, last = subnet.network_address.packed, subnet.broadcast_address.packed
            elements.add(Element(f"{OWN}{subnet.version}", _name(bridge) + first, _name(bridge) + last))
    elements |= set(_ranges([subnet for one in configuration.networks for subnet in one.subnets]))
    for public, private in sorted(publics.items(), key=lambda pair: pair[0].packed, reverse=True):
        elements.add(Element(f"{PUBLICS}{public.version}", public.packed, value=private.packed))
    first_public = {private: public for public, private in sorted(publics.items(), key=lambda p: p[0].packed, reverse=True)}
    elements |= {Element(f"{PRIVATES}{key.version}", key.packed, value=value.packed) for key, value in first_public.items()}
    return frozenset(elements)


def _ranges(subnets: list[Network]) -> Iterator[Element]:
    """Give subnets as ranges that touch nowhere: the kernel refuses others."""
    for version in (4, 6):
        borders: list[tuple[int, int]] = []
        for subnet in sorted((one for one in subnets if one.version == version), key=lambda one: int(one.network_address)):
            first, after = int(subnet.network_address), int(subnet.broadcast_address) + 1
            if borders and first <= borders[-1][1]:
                borders[-1] = (borders[-1][0], max(after, borders[-1][1]))
            else:
                borders.append((first, after))
        size = 4 if version == 4 else 16
        for first, after in borders:
            yield Element(f"{SUBNETS}{version}", first.to_bytes(size, "big"))
            if after < 1 << 8 * size:
                yield Element(f"{SUBNETS}{version}", after.to_bytes(size, "big"), is_end=True)


def _name(ifname: str) -> bytes:
    return ifname.encode().ljust(_IFNAME_BYTES, b"\0")


class NoNatTable:
    """In the place of a NatTable where the kernel has no nftables."""

    port_id = 0
    publics: Mapping[Address, Address] = {}

    def configure(self, configuration: NatConfiguration, publics: Mapping[Address, Address]) -> None:
        """Do nothing where there is nothing to do.

        Raises:
            NftError: a network has NAT.
        """
        if configuration.networks or publics:
            raise NftError(errno.EOPNOTSUPP, "this kernel has no nftables (CONFIG_NF_TABLES)")

    def translate(self, privates: Collection[Address], publics: Mapping[Address, Address]) -> list[Address]:  # noqa: ARG002  NatTable's signature
        """Do nothing where there is nothing to do.

        Raises:
            NftError: something is to be translated.
        """
        self.configure(NatConfiguration(), publics)
        return []

    def restore(self) -> bool:
        """Nobody can have changed what isn't there."""
        return False

    def close(self) -> None:
        """Nothing is open."""


def open_nat_table(*, owned: bool) -> NatTable | NoNatTable:
    """Get ready to make the table; see NatTable.

    Raises:
        OSError: the kernel has nftables and refuses.
    """
    return open_table(lambda: NatTable(owned=owned)) or NoNatTable()


class NatTable(Table):
    """The table. Any thread may call.

    Args:
        owned: whether to own it where the kernel can; without, other programs may change it.
    """

    def __init__(self, *, owned: bool = True) -> None:
        super().__init__(natrules.FAMILY, natrules.TABLE, owned=owned)
        self._configuration = NatConfiguration()
        self._publics: dict[Address, Address] = {}

    def open(self) -> None:
        """Look what an earlier helper has left: public addresses lead on where they lead.

        Raises:
            NftError: the kernel refuses to say.
        """
        with self._lock:
            self._publics = {} if self._find_table() is None else self._read_publics()

    @property
    def publics(self) -> Mapping[Address, Address]:
        """By public address, the guest's own."""
        return dict(self._publics)

    def configure(self, configuration: NatConfiguration, publics: Mapping[Address, Address]) -> None:
        """Let the table be as the configuration says, in one transaction: each packet meets the old one or the new one.

        Args:
            configuration: the networks.
            publics: the public addresses that it is to have from now on.

        Raises:
            NftError: the kernel refuses; nothing has changed.
        """
        with self._lock:
            found = self._find_table()
            if configuration.networks:
                self._replace(found, configuration, publics)
            elif found is not None:
                self._socket.commit([self._deletion()])
            self._configuration, self._publics = configuration, dict(publics)

    def translate(self, privates: Collection[Address], publics: Mapping[Address, Address]) -> list[Address]:
        """Let some guests' addresses have what is given and no other public addresses, in one transaction.

        Args:
            privates: the guests' own.
            publics: by public address, one of them.

        Returns:
            The public addresses that led to them and don't any more.

        Raises:
            NftError: the kernel refuses; nothing has changed.
        """
        with self._lock:
            kept = {public: private for public, private in self._publics.items() if private not in privates}
            removed = [public for public in self._publics if public not in kept and public not in publics]
            now = kept | dict(publics)
            before, after = elements_of(self._configuration, self._publics), elements_of(self._configuration, now)
            if self._configuration.networks:
                self._socket.commit(
                    [*self._packed(Kind.DELSETELEM, before - after), *self._packed(Kind.NEWSETELEM, after - before)]
                )
            elif publics:
                raise NftError(errno.ENOENT, "no network has NAT")
            self._publics = now
            return removed

    def restore(self) -> bool:
        """Put the table back as it was if somebody has changed it; tell whether somebody had.

        Raises:
            NftError: the kernel refuses.
        """
        with self._lock:
            if not self._configuration.networks:
                return False
            found = self._find_table()
            if found is not None and self._is_whole(found):
                return False
            self._replace(found, self._configuration, self._publics)
            return True

    # --- inside

    def _is_whole(self, table: dict[int, bytes]) -> bool:
        """Tell whether the table has the rules and elements that it should."""
        chains = {name: (chain.rules, chain.hook is not None) for name, chain in natrules.CHAINS.items()}
        is_current = natrules.VERSION.encode() in table.get(6, b"")
        is_complete = is_current and seals.is_whole(self._socket, natrules.FAMILY, natrules.TABLE, chains)
        return is_complete and self._read() == elements_of(self._configuration, self._publics)

    def _replace(
        self, found: dict[int, bytes] | None, configuration: NatConfiguration, publics: Mapping[Address, Address]
    ) -> None:
        elements = elements_of(configuration, publics)
        deleted = [] if found is None else [self._deletion()]
        self._own(lambda flags: [*deleted, *natrules.messages(flags), *self._packed(Kind.NEWSETELEM, elements)])

    def _read(self) -> frozenset[Element]:
        return frozenset(_parse(name, item) for name in SETS for item in self._read_set(name))

    def _read_publics(self) -> dict[Address, Address]:
        return {
            ipaddress.ip_address(element.key): ipaddress.ip_address(element.value)
            for version in (4, 6)
            for element in (_parse(PUBLICS, item) for item in self._read_set(f"{PUBLICS}{version}"))
        }

    def _packed(self, kind: Kind, elements: Iterable[Element]) -> list[Message]:
        by_set: dict[str, list[bytes]] = {}
        for element in sorted(elements):
            by_set.setdefault(element.of, []).append(natrules.pack_element(element))
        return [message for of, packed in by_set.items() for message in self._elements(kind, of, packed)]


def _parse(name: str, item: bytes) -> Element:
    fields = wire.attributes_of(item)
    key, end, value = (wire.attributes_of(fields.get(kind, b"")).get(1, b"") for kind in (1, 10, 2))
    is_end = bool(unpack_from(">I", fields.get(3, bytes(4)))[0] & 1)
    return Element(name, key, end, value, is_end)
