"""The address book: which endpoint has which addresses and MAC, what is free, and what a new one gets.

It follows the registry, so what it knows is what the journal has: nothing else makes an address durable. Between a decision and
the registry a draft holds it. Everything lives in the event loop's thread.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from vifd.drivers.addressing import parse_range
from vifd.drivers.base import NetworkDriver
from vifd.endpoints.networks import Networks
from vifd.endpoints.segments import NETWORK, Holders, Prefix, Segment, parse_prefix
from vifd.errors import AddressInUse, InvalidRequest, NetworkFull, NotAllowed, Violation
from vifd.kernel.names import derived_mac
from vifd.model import Endpoint, IpConfig, Port


class Settled(NamedTuple):
    """A port with the addresses and the MAC that it gets, and what its guest should have; None: the network hands out none."""

    port: Port
    ip_config: IpConfig | None


class _Claim(NamedTuple):
    """What an endpoint has."""

    endpoint_id: str
    network: str
    prefixes: tuple[Prefix, ...]
    mac: str
    publics: tuple[Prefix, ...]


class AddressBook:
    """Who has what, by segment: endpoints of networks that reach each other never have the same.

    Args:
        networks: the networks that are configured now; a reload is seen at the next look.
    """

    def __init__(self, networks: Networks) -> None:
        self._networks = networks
        self._seen: Mapping[str, NetworkDriver[Any]] | None = None
        self._segments: dict[str, Segment] = {}
        self._keys: dict[str, str] = {}
        #: By endpoint and draft; without a draft: what the registry has.
        self._claims: dict[tuple[str, Draft | None], _Claim] = {}
        self._drafts: list[Draft] = []
        self._publics: Holders[Prefix] = Holders()

    def put(self, endpoint: Endpoint) -> None:
        """Note what an endpoint has, in the place of what it had; a draft that holds just that has done so already."""
        claim = _claim(endpoint.endpoint_id, endpoint.network, endpoint.port)
        draft = next((draft for draft in self._drafts if self._claims.get((claim.endpoint_id, draft)) == claim), None)
        if draft is None:
            self.set_claim(None, claim)
        else:
            self.drop_claim(None, claim.endpoint_id)
            self._claims[claim.endpoint_id, None] = self._claims.pop((claim.endpoint_id, draft))
        segment = self._segment(claim.network)
        for prefix in claim.prefixes:
            segment.go_on_after(prefix)

    def drop(self, endpoint_id: str) -> None:
        """Forget an endpoint."""
        self.drop_claim(None, endpoint_id)

    @contextlib.contextmanager
    def draft(self) -> Iterator[Draft]:
        """Give a draft; when the block ends, what it holds and the registry hasn't taken over is free again."""
        draft = Draft(self)
        self._drafts.append(draft)
        try:
            yield draft
        finally:
            self._drafts.remove(draft)
            draft.drop()

    # --- for drafts

    def settle(self, draft: Draft, endpoint_id: str, network: str, port: Port) -> Settled:
        """Choose what the caller left open, check what it asked for, and hold it; see Draft.settle."""
        segment = self._segment(network)
        has = self._claims.get((endpoint_id, None)) or _Claim(endpoint_id, network, (), "", ())
        asked = [parse_prefix(text) for text in port.addresses]
        if segment.hands_out:
            _check_places(segment, network, asked, has.prefixes)
        prefixes = asked or self._hand_out(segment, network, has)
        port = msgspec.structs.replace(
            port,
            mac=port.mac or derived_mac(endpoint_id),
            addresses=port.addresses or tuple(map(str, prefixes)),
        )
        claim = _claim(endpoint_id, network, port)
        _check_publics(segment, claim, has)
        self._check_free(segment, claim, has)
        self.set_claim(draft, claim)
        return Settled(port, _ip_config(segment, prefixes) if segment.hands_out else None)

    def set_claim(self, draft: Draft | None, claim: _Claim) -> None:
        """Note what an endpoint has, in the place of what it had."""
        segment = self._segment(claim.network)  # first of all: it may move the claims that there are
        self.drop_claim(draft, claim.endpoint_id)
        self._claims[claim.endpoint_id, draft] = claim
        self._enter(segment, claim)
        for public in claim.publics:
            self._publics.add(public, claim.endpoint_id)

    def drop_claim(self, draft: Draft | None, endpoint_id: str) -> None:
        """Forget what an endpoint had; what isn't there is fine."""
        claim = self._claims.get((endpoint_id, draft))
        if claim is not None:
            self._strike(self._segment(claim.network), claim)
            del self._claims[endpoint_id, draft]
            for public in claim.publics:
                self._publics.remove(public, endpoint_id)

    # --- inside

    def _hand_out(self, segment: Segment, network: str, has: _Claim) -> list[Prefix]:
        """Give one address of each family that the pool has; those that the endpoint has already, if it has."""
        had = {prefix.version: prefix for prefix in has.prefixes if segment.has_in_pool(prefix)}
        given = []
        for version, pool in segment.pools().items():
            prefix = had.get(version) or segment.next_free(version)
            if prefix is None:
                raise NetworkFull(
                    f"network {network} has no free address left in its pool ({pool}); release an endpoint, "
                    "or ask the administrator for a larger pool"
                )
            given.append(prefix)
        return given

    def _check_free(self, segment: Segment, claim: _Claim, has: _Claim) -> None:
        """Check that nothing that a claim adds to what the endpoint has is another's."""
        for prefix in claim.prefixes:
            if prefix not in has.prefixes and (found := segment.find(prefix, claim.endpoint_id)) is not None:
                raise AddressInUse(_taken(prefix, *found, claim.network))
        if claim.mac != has.mac and segment.macs.find(claim.mac, claim.endpoint_id) is not None:
            raise AddressInUse(f"MAC {claim.mac} is another endpoint's on network {claim.network}; ask for another, or for none")
        for public in (public for public in claim.publics if public not in has.publics):
            if any(one.is_own(public) for one in self._segments.values()):
                raise AddressInUse(f"public address {public} is the host's own; ask for another")
            if self._publics.find(public, claim.endpoint_id) is not None:
                raise AddressInUse(f"public address {public} is another endpoint's; ask for another")

    def _segment(self, network: str) -> Segment:
        """Give a network's segment, as it is configured now."""
        if self._networks.drivers is not self._seen:
            self._reconfigure()
        if network not in self._keys:  # of an endpoint whose network was gone before vifd started
            self._keys[network] = _key(network, "", "")
        key = self._keys[network]
        if key not in self._segments:
            self._segments[key] = Segment()
        return self._segments[key]

    def _reconfigure(self) -> None:
        """Follow the configuration; endpoints of networks that are gone still have what they have, where they have it."""
        self._seen = self._networks.drivers
        drivers = dict(self._seen)
        keys = self._keys | {name: _key(name, one.name, one.addressing(one.config).segment) for name, one in drivers.items()}
        moved = [claim for claim in self._claims.values() if keys[claim.network] != self._keys[claim.network]]
        for claim in moved:
            self._strike(self._segments[self._keys[claim.network]], claim)
        self._keys = keys
        wanted = {keys[name]: driver for name, driver in reversed(drivers.items())}
        for key in {*self._segments, *wanted}:
            segment = self._segments.setdefault(key, Segment())
            if (driver := wanted.get(key)) is not None:
                segment.configure(driver.addressing(driver.config))
            else:
                segment.configure(msgspec.structs.replace(segment.addressing, pool=(), dhcp=False))
        for claim in moved:
            self._enter(self._segments[keys[claim.network]], claim)

    def _enter(self, segment: Segment, claim: _Claim) -> None:
        for prefix in claim.prefixes:
            segment.add(prefix, claim.endpoint_id)
        if claim.mac:
            segment.macs.add(claim.mac, claim.endpoint_id)

    def _strike(self, segment: Segment, claim: _Claim) -> None:
        for prefix in claim.prefixes:
            segment.remove(prefix, claim.endpoint_id)
        if claim.mac:
            segment.macs.remove(claim.mac, claim.endpoint_id)


class Draft:
    """Ports that are decided on and not yet in the registry. It holds their addresses for a block, see AddressBook.draft.

    Args:
        book: what it is a draft for.
    """

    def __init__(self, book: AddressBook) -> None:
        self._book = book
        self._endpoint_ids: list[str] = []

    def settle(self, endpoint_id: str, network: str, port: Port) -> Settled:
        """Choose what the caller left open, check what it asked for, and hold it.

        What the endpoint has already is no obstacle, whatever the configuration says meanwhile, and stays its own beside the new
        until the registry says otherwise.

        Args:
            endpoint_id: the endpoint, new or to be changed.
            network: its network.
            port: as it is asked for, addresses in their canonical form.

        Raises:
            AddressInUse: an address or the MAC is another endpoint's or the network's own.
            InvalidRequest: an address is in no subnet of a network that hands out addresses, or a public one leads to nothing.
            NotAllowed: a public address is not of the network's pool.
            NetworkFull: the pool is used up.
        """
        settled = self._book.settle(self, endpoint_id, network, port)
        self._endpoint_ids.append(endpoint_id)
        return settled

    def drop(self) -> None:
        """Hold nothing any more."""
        for endpoint_id in self._endpoint_ids:
            self._book.drop_claim(self, endpoint_id)
        self._endpoint_ids.clear()


def _key(network: str, driver: str, segment: str) -> str:
    return f"{driver} {segment}" if segment else f"network {network}"


def _claim(endpoint_id: str, network: str, port: Port) -> _Claim:
    prefixes, publics = map(parse_prefix, port.addresses), map(parse_prefix, port.public_addresses)
    return _Claim(endpoint_id, network, tuple(prefixes), port.mac, tuple(publics))


def _check_places(segment: Segment, network: str, asked: Sequence[Prefix], has: Sequence[Prefix]) -> None:
    misplaced = [
        (i, prefix)
        for i, prefix in enumerate(asked)
        if not (prefix in has or prefix.is_link_local or any(subnet.prefix.covers(prefix) for subnet in segment.subnets))
    ]
    if misplaced:
        subnets = ", ".join(str(subnet.prefix) for subnet in segment.subnets)
        where = f"is in no subnet of network {network} ({subnets}); ask for one of these, or for none and get one"
        raise InvalidRequest([Violation(f"port.addresses[{i}]", f"{prefix} {where}") for i, prefix in misplaced])


def _check_publics(segment: Segment, claim: _Claim, has: _Claim) -> None:
    """Check that public addresses are of the network's pool, and that each has an address of the endpoint's to lead to."""
    pool = segment.addressing.public_pool
    ranges = [parse_range(text) for text in pool]
    for i, public in enumerate(claim.publics if pool else ()):
        if not any(prefix.is_single and prefix.version == public.version for prefix in claim.prefixes):
            what = f"{public} leads to nothing: the endpoint has no IPv{public.version} address of its own (port.addresses)"
            raise InvalidRequest([Violation(f"port.public_addresses[{i}]", what)])
        is_in_pool = any(one.version == public.version and one.first <= public.first <= one.last for one in ranges)
        if public not in has.publics and not is_in_pool:
            where = f"is not in the public_pool of network {claim.network} ({', '.join(pool)})"
            raise NotAllowed(f"public address {public} {where}; ask for one of these")


def _taken(asked: Prefix, taken: Prefix, holder: str, network: str) -> str:
    """Say that an address isn't to be had; never whose it is, and of another's prefix not even which it is."""
    if holder == NETWORK:
        where = "is" if asked == taken else f"has {taken}, which is"
        return f"{asked} {where} network {network}'s own; ask for another address"
    where = "is" if asked.is_single else "overlaps what is"
    return f"{asked} {where} another endpoint's on network {network}; ask for another address"


def _ip_config(segment: Segment, prefixes: Sequence[Prefix]) -> IpConfig:
    """Say what a guest should have. A prefix is routed to it, and no address of its own to configure."""
    addresses, gateways = [], dict[int, str]()
    for prefix in prefixes:
        subnet = next((one for one in segment.subnets if one.prefix.covers(prefix)), None)
        if prefix.is_single:
            addresses.append(f"{prefix}/{64 if subnet is None else subnet.prefix.length}")
        if subnet is not None:
            gateways.setdefault(prefix.version, subnet.gateway)
    addressing = segment.addressing
    own_dns = tuple(gateways.values()) if addressing.dhcp else ()
    return IpConfig(tuple(addresses), tuple(gateways.values()), addressing.dns_servers or own_dns, addressing.dhcp)
